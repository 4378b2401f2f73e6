-- sync_read.lua: what servers say of a job's collection: which ids it holds, how many, and what it is. Each answers, or
-- ends the job's step (Stop): no good answer is no answer.
--
--   Read.count(job, instance, physical) -> how many records
--   Read.lists(context, job, both, fn)    fn(ids of the source, of the target | nil) with both in memory, as text
--   Read.look(job, instance) -> is its space the cosine, how many numbers are in a vector
--   Read.text_bytes(job, instance, physical) -> bytes of a record's texts, from a look at some
--   Read.difference(job) -> what differs in the collection itself, in words | nil
--
-- job: tenant, database, collection_name, source, source_physical, instance, temp. context.room(bytes, fn): fn when so
-- much memory is left for lists (sync_coordinate.lua).
local Ids = require("lb.sync_ids")
local Stop = require("lb.sync_stop")
local courier = require("lb.courier")
local slice = require("chromux.slice")
local json = json

local Read = {}

local MB = 1024 * 1024
local MOST_IDS = 256 * MB              -- bytes of a list
local LEAST_IDS, ID_BYTES = 64 * 1024, 100 -- room for one: this, and so much for each id at first
local TEXTS_MOST = 16 * MB             -- of some records
local LOOK_SECONDS = 10                -- for what is quickly said
local LIST_SECONDS, LISTED = 10, 20000 -- for a list: that, and a second more for each so many ids

local stop = Stop.stop

local function encode(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function is_down(instance)
  for _, node in ipairs(courier.nodes()) do
    if node.name == instance then return node.health == "down" end
  end
  return true
end

-- The body of a good answer. o: {body=, most= bytes, seconds=}. nil: it is larger than that
local function read(job, instance, method, rest, o)
  o = o or {}
  local seconds = o.seconds or LOOK_SECONDS
  local a, kind, text = courier.request { node = instance, method = method, body = o.body,
    target = "/api/v2/tenants/" .. encode(job.tenant) .. "/databases/" .. encode(job.database) .. "/collections/"
      .. rest, type = o.body and "application/json" or nil, max = o.most or MOST_IDS, timeout = seconds,
    unless = function() return is_down(instance) end }
  if not a and kind == "garbage" and tostring(text):find("larger than", 1, true) then return nil end
  if kind == "late" and not is_down(instance) then
    stop("silent", string.format("%s did not answer within %.0f s", instance, seconds))
  end
  if not a then stop("later", instance .. ": " .. tostring(text or kind)) end
  if a.status == 404 then stop("over", instance .. " does not know the collection") end
  if a.status == 500 then stop("over", string.format("%s answered 500: %s", instance, a.body:sub(1, 200))) end
  if a.status ~= 200 then stop("later", string.format("%s answered %d: %s", instance, a.status, a.body:sub(1, 200))) end
  return a.body
end

function Read.count(job, instance, physical)
  return tonumber(read(job, instance, "GET", physical .. "/count")) or stop("later", instance .. ": not a count")
end

-- The ids on one side; nil: more than `most` bytes.
local function list(job, instance, physical, records, most)
  return read(job, instance, "POST", physical .. "/get", { body = '{"include":[]}', most = most,
    seconds = LIST_SECONDS + records / LISTED })
end

-- Room is taken for what the counts let expect, and for as much as there may be when the ids are longer than that. One
-- that is not answered keeps none from being read but those for which there is no room beside it.
function Read.lists(context, job, both, fn)
  local records = Read.count(job, job.source, job.source_physical)
  if both then records = math.max(records, Read.count(job, job.instance, job.temp)) end
  local sides = both and 2 or 1
  local whole = math.min(MOST_IDS, math.floor(context.settings.MAX_MEMORY_MB * MB / (sides + 2)))
  local most, fits = math.min(whole, LEAST_IDS + records * ID_BYTES), false
  repeat
    local last = most == whole
    context.room(sides * most, function()
      local ids, larger = list(job, job.source, job.source_physical, records, most), job.source
      local other
      if ids and both then
        other, larger = list(job, job.instance, job.temp, records, most), job.instance
      end
      fits = ids ~= nil and (other ~= nil or not both)
      if not fits and last then
        stop("failed", string.format("%s: the list of its ids is larger than the %.0f MB that MAX_MEMORY_MB leaves "
          .. "for it", larger, most / MB))
      end
      if fits then fn(ids, other) end
    end)
    most = whole
  until fits
end

function Read.look(job, instance)
  local c = json.decode(read(job, instance, "GET", encode(job.collection_name)))
  if type(c) ~= "table" then stop("later", instance .. ": not a collection") end
  local configuration = type(c.configuration_json) == "table" and c.configuration_json or {}
  local space
  for _, index in ipairs { "hnsw", "spann" } do
    if type(configuration[index]) == "table" then space = configuration[index].space or space end
  end
  if not space and type(c.metadata) == "table" then space = c.metadata["hnsw:space"] end
  return space == "cosine", tonumber(c.dimension) or 0
end

function Read.text_bytes(job, instance, physical)
  local body = read(job, instance, "POST", physical .. "/get",
    { body = '{"limit":100,"include":["documents","metadatas"]}', most = TEXTS_MOST })
  return body and #body / math.max(1, Ids.count(body)) or TEXTS_MOST / 100
end

-- ---- the collection itself: is it what the other one is, under its name? ---------------------------------------

-- What a server says of the collection of that name: its members | nil: there is none
local function members_on(job, instance)
  local fine, body = pcall(read, job, instance, "GET", encode(job.collection_name))
  if fine then return slice.members(body) end
  if not Stop.of(body).why:find("does not know", 1, true) then error(body, 0) end
end

-- Which member of a configuration both have, but not the same; nil: none. Servers of other versions have others.
local function differing_member(a, b, path)
  for key, value in pairs(a) do
    if type(value) == "table" and type(b[key]) == "table" then
      local found = differing_member(value, b[key], path .. key .. ".")
      if found then return found end
    elseif value ~= json.null and b[key] ~= nil and b[key] ~= json.null and value ~= b[key] then
      return path .. key
    end
  end
end

local function canonical(raw) return raw and raw ~= "null" and slice.canonical(raw) or "null" end

function Read.difference(job)
  local right, mine = members_on(job, job.source), members_on(job, job.instance)
  if not right then return nil end -- it is just being renamed or deleted
  if not mine or slice.string(mine.id) ~= job.temp then return "it is not there under its name" end
  if canonical(right.metadata) ~= canonical(mine.metadata) then return "its metadata are others" end
  local a, b = json.decode(right.configuration_json or "{}"), json.decode(mine.configuration_json or "{}")
  local member = type(a) == "table" and type(b) == "table" and differing_member(a, b, "")
  return member and "its configuration has another " .. member
end

return Read
