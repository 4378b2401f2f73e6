-- sound.lua: does a copy still have what its server keeps in files besides its database?
--
-- Chroma keeps vectors in a folder for each collection. A server that comes back without that folder does not say so:
-- it answers 200, queries find only what was written lately, and an add to a record that exists gives it another
-- vector, for good. With a broken file in it everything about the collection is a 500. (Measured, 1.0.20 to 1.5.9.)
-- So in each life of a server every copy is looked at before it is read from or sent to.
local records = require("chromux.records")
local slice = require("chromux.slice")
local json = json

local M = {}

local SAMPLE = 50              -- records at the beginning, in the middle and at the end
local BROKEN_AFTER = 5         -- looks in a row that found it broken; a delete that comes between looks so once
local FIRST_PAUSE, LAST_PAUSE = 0.05, 0.5
local DOUBTED = 1000           -- entries in doubt whose ids are looked up

local IN_DOUBT = "in doubt"

-- Was it found whole in the server's present life? What was found while entries were in doubt holds no longer than
-- they are: an update that is sent again gives no record its vector back.
function M.known(copy)
  local sound = copy.server.sound
  local is = sound and sound.life == copy.server.admitted and sound[copy.physical]
  return is == true or (is == IN_DOUBT and copy.doubt > 0)
end

-- It is so: it is new, or was looked at. spared: but for records of entries in doubt.
function M.found(copy, life, spared)
  local sound = copy.server.sound
  if not sound or sound.life ~= life then sound = { life = life } end
  sound[copy.physical] = spared and IN_DOUBT or true
  copy.server.sound = sound
end

-- Records that entries in doubt may have left without a vector, which sending those again mends: an upsert gives them
-- one whatever was there, an add only to a record that it has made itself. {upserts = {[id]=true}, adds = {[id]={entry,
-- ...}}}; nil: too many.
local function half_written(lane, copy)
  local out = { upserts = {}, adds = {} }
  if copy.doubt - copy.p > DOUBTED then return nil end
  for n = copy.p + 1, math.min(copy.doubt, lane.head) do
    local e = lane:entry(n)
    if not e then return nil end
    if e.action == "add" or e.action == "upsert" then
      for _, id in ipairs((slice.records(e.body, #e.body) or {}).ids or {}) do
        if e.action == "upsert" then
          out.upserts[id] = true
        else
          out.adds[id] = out.adds[id] or {}
          table.insert(out.adds[id], e)
        end
      end
    end
  end
  return out
end

-- The answer's body | nil, "later" | nil, "broken", what it said | nil, "gone"
local function ask(server, method, target, body)
  local a = server:ask(method, target, body)
  if not a or a.status == 429 or a.status == 503 then return nil, "later" end
  if a.status == 500 then return nil, "broken", a.body:sub(1, 300) end
  local got = a.status == 200 and json.decode(a.body)
  if not got then return nil, "gone" end -- whoever sends to it sees that
  return got
end

local function vectors(server, base, ids)
  return ask(server, "POST", base .. "/get", slice.ids_body(ids):sub(1, -2) .. ',"include":["embeddings"]}')
end

-- Of an object like {"ids":[...],"documents":[...],"metadatas":[...]}: the values of one record by these names. nil: it
-- is not in there.
local function row_of(object, id, names)
  local m = slice.members(object) or {}
  for i, raw in ipairs(slice.elements(m.ids or "[]") or {}) do
    if slice.string(raw) == id then
      local out = {}
      for k, name in ipairs(names) do
        local list = (m[name] or "null") ~= "null" and slice.elements(m[name]) or {}
        out[k] = list[i] or "null"
      end
      return out
    end
  end
end

-- What the record has besides its vector; nil: nothing.
local function texts_of(object, id)
  local row, any = row_of(object, id, { "documents", "metadatas" }), false
  for k, raw in ipairs(row or {}) do
    row[k] = slice.canonical(raw)
    if row[k] == "{}" then row[k] = "null" end
    any = any or row[k] ~= "null"
  end
  return any and table.concat(row, "\0") or nil
end

local function vector_of(object, id) return (row_of(object, id, { "embeddings" }) or {})[1] end

-- A vector of a request, a list or base64, and one that a server shows: the same, but for how far one of a cosine
-- collection drifts?
local function same_vector(sent, shown)
  local function whole(vector)
    return '{"ids":["x"],"embeddings":[' .. vector .. '],"documents":[null],"metadatas":[null],"uris":[null]}'
  end
  if sent:sub(1, 1) == '"' then
    local body = records.add_body(whole(shown), { base64 = true })
    return body ~= nil and slice.string(vector_of(body, "x")) == slice.string(sent)
  end
  local found = records.compare(whole(sent), whole(shown), { cosine = true })
  return found ~= nil and found.equal == 1
end

-- Did the record stand there before this add, which then left it alone? Another copy tells that has it with another
-- vector; one that stands right before the add and lacks it tells the contrary. nil: none can be asked
local function stood_before(lane, copy, id, e)
  local told
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and other.server:usable() then
      local at = other.p
      local a = other.server:ask("POST", lane:target(other, "/get"),
        slice.ids_body { id }:sub(1, -2) .. ',"include":["embeddings"]}')
      if a and a.status == 200 then
        local shown = vector_of(a.body, id)
        local new = not shown and at >= copy.p and math.max(other.p, other.doubt) < e.n
        if new or (shown and same_vector(vector_of(e.body, id), shown)) then return false end
        told = true
      end
    end
  end
  return told
end

-- Was the record, which has no vector, made by one of these adds? Who can't tell by what it says must take it for lost:
-- the add would give it the new vector and leave the rest as it was. The same text may have stood there before.
local function made_by(lane, copy, base, id, adds)
  local a = copy.server:ask("POST", base .. "/get", slice.ids_body { id }:sub(1, -2)
    .. ',"include":["documents","metadatas"]}')
  local is = a and a.status == 200 and texts_of(a.body, id)
  for _, e in ipairs(adds) do
    if is and texts_of(e.body, id) == is and not stood_before(lane, copy, id, e) then return true end
  end
  return false
end

-- The records from this number on. nil, nil, how many there are: those that are not half written have their vectors
local function look_from(lane, copy, base, offset, half)
  local server = copy.server
  local got, how, said = ask(server, "POST", base .. "/get",
    string.format('{"limit":%d,"offset":%d,"include":[]}', SAMPLE, offset))
  if not got then return how, said end
  local ids = {}
  for _, id in ipairs(got.ids or {}) do
    if half.adds[id] and not half.upserts[id] then
      local whole
      whole, how, said = vectors(server, base, { id })
      if not whole and not (how == "broken" and made_by(lane, copy, base, id, half.adds[id])) then return how, said end
    elseif not half.upserts[id] then
      ids[#ids + 1] = id
    end
  end
  if #ids > 0 then
    local whole
    whole, how, said = vectors(server, base, ids)
    if not whole then return how, said end
  end
  return nil, nil, #(got.ids or {})
end

-- "whole" | "broken", what it said | "later"
local function look(lane, copy, base)
  local server, half = copy.server, half_written(lane, copy)
  if not half then return "whole" end
  local how, said, n = look_from(lane, copy, base, 0, half)
  if not how and n == SAMPLE then
    local count
    count, how, said = ask(server, "GET", base .. "/count")
    if count and count > SAMPLE then
      how, said = look_from(lane, copy, base, math.max(math.floor(count / 2), SAMPLE), half)
      if not how then how, said = look_from(lane, copy, base, math.max(count - SAMPLE, SAMPLE), half) end
    end
  end
  return (how == nil or how == "gone") and "whole" or how, said
end

local function stands_elsewhere(lane, copy)
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and not other.server.retired then return true end
  end
  return false
end

local function wanted(lane, copy)
  return not lane.context.dead and lane.open and copy.state == "ready" and copy.server:readable() and not M.known(copy)
end

local function follow(lane, copy, base)
  local life, bad, pause = copy.server.admitted, 0, FIRST_PAUSE
  while wanted(lane, copy) do
    if life ~= copy.server.admitted then life, bad, pause = copy.server.admitted, 0, FIRST_PAUSE end
    local doubtful = copy.doubt > 0
    local is, said = look(lane, copy, base())
    if is == "whole" and life == copy.server.admitted then return M.found(copy, life, doubtful) end
    bad = is == "broken" and bad + 1 or 0
    if bad >= BROKEN_AFTER then
      if not stands_elsewhere(lane, copy) then
        log.error("copy_broken", lane.logical .. " on " .. copy.instance .. ", and there is no other copy: " .. said)
        return M.found(copy, life)
      end
      if lane.context.holder then lane:mark(copy, "rebuild", "the server has lost vectors of it: " .. said) end
    end
    sleep(pause)
    pause = math.min(pause * 2, LAST_PAUSE)
  end
end

-- Looks at the copy, in a task of its own, unless it is known. base(): the path of the collection on its server.
-- urgent: somebody waits for it, so it does not wait for its turn behind those of all other collections.
function M.look(lane, copy, base, urgent)
  if copy.looking == "now" or (copy.looking and not urgent) or not wanted(lane, copy) then return end
  copy.looking = "soon"
  local function begin()
    if copy.looking ~= "soon" then return end -- it was urgent meanwhile
    copy.looking = "now"
    local ok, why = xpcall(follow, debug.traceback, lane, copy, base)
    if not ok then
      log.error("copy_look_failed", why)
      sleep(LAST_PAUSE)
    end
    copy.looking = nil
    if lane.context.dead or not lane.open then return end
    lane:publish(copy)
    lane:kick_copy(copy)
  end
  if urgent then spawn(begin) else copy.server:run(begin) end
end

return M
