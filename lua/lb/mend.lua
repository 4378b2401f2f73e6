-- mend.lua: records that a dying server left half written.
--
-- A server killed in the middle of a write may come back with a record's document and metadata but not its vector
-- (measured on Chroma 1.0.20), and it stays so until the same write is done again. An upsert or update that is sent
-- again does that by itself; an add leaves ids that exist alone. So after an add was sent a second time, its records
-- are read with their vectors, and one that has none is deleted and added from the entry.
local slice = require("chromux.slice")
local json = json

local M = {}

local AT_ONCE = 500 -- ids in one request
local MISSING = "Error finding id" -- what Chroma says when it has a record's document but not its vector

-- "whole" | "torn" | nil, why
local function look(ask, ids)
  local a, why = ask("/get", slice.ids_body(ids):sub(1, -2) .. ',"include":["embeddings"]}')
  if not a then return nil, why end
  if a.status == 500 and a.body:find(MISSING, 1, true) then return "torn" end
  local got = a.status == 200 and json.decode(a.body)
  if not got then return nil, "answered " .. a.status end
  for _, vector in ipairs(type(got.embeddings) == "table" and got.embeddings or {}) do
    if type(vector) ~= "table" then return "torn" end
  end
  return "whole"
end

-- Adds to `torn` those of ids[from..to] that have no vector. true | nil, why
local function search(ask, ids, from, to, torn)
  local part = {}
  for i = from, to do part[#part + 1] = ids[i] end
  local state, why = look(ask, part)
  if not state then return nil, why end
  if state == "whole" then return true end
  if from == to then
    torn[ids[from]] = true
    return true
  end
  local middle = math.floor((from + to) / 2)
  local ok
  ok, why = search(ask, ids, from, middle, torn)
  if not ok then return nil, why end
  return search(ask, ids, middle + 1, to, torn)
end

-- The rows of a body of add for the ids that are torn, as a body.
local function rows_of(body, ids, torn)
  local parts = {}
  for name, raw in pairs(slice.members(body)) do
    local elements = raw ~= "null" and slice.elements(raw)
    if elements then
      local kept = {}
      for i, id in ipairs(ids) do
        if torn[id] then kept[#kept + 1] = elements[i] end
      end
      raw = "[" .. table.concat(kept, ",") .. "]"
    end
    parts[#parts + 1] = slice.quote(name) .. ":" .. raw
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- The set of those of these records that have no vector. ask(rest, body) -> answer | nil, why: a POST to the copy.
-- nil, why
function M.torn(ids, ask)
  local torn = {}
  for from = 1, #ids, AT_ONCE do
    local ok, why = search(ask, ids, from, math.min(#ids, from + AT_ONCE - 1), torn)
    if not ok then return nil, why end
  end
  return torn
end

-- Makes the records of this add whole. ask as above. true | nil, why
function M.add(body, ask)
  local info = slice.records(body, #body)
  if not info then return true end -- not something that Chroma takes apart into records either
  local torn, why = M.torn(info.ids, ask)
  if not torn then return nil, why end
  local list = {}
  for id in pairs(torn) do list[#list + 1] = id end
  if #list == 0 then return true end
  log.warn("records_mended", #list .. " records without a vector")
  local a
  a, why = ask("/delete", slice.ids_body(list))
  if not a or a.status ~= 200 then return nil, why or "delete answered " .. a.status end
  a, why = ask("/add", rows_of(body, info.ids, torn))
  if not a or a.status ~= 201 then return nil, why or "add answered " .. a.status end
  return true
end

return M
