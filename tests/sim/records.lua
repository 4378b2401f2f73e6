-- records.lua: what a collection of Chroma makes of add, upsert, update and delete (facts: records in order of
-- insertion do not matter here; what matters is which records there are and what is in them).
local json = require("lb.runtime").json

local M = {}

-- What the simulated clients put into a body so that the servers' answer is known.
M.BAD, M.SKEW, M.POISON = "BAD", "SKEW", "POISON"

function M.collection(id, name, tenant, database)
  return { id = id, name = name, tenant = tenant, database = database, records = {} }
end

local decoded = setmetatable({}, { __mode = "v" })
local function decode(body)
  local t = decoded[body]
  if not t then
    t = json.decode(body)
    decoded[body] = t
  end
  return t
end
M.decode = decode

local function merge(meta, new)
  local out = {}
  for k, v in pairs(meta or {}) do out[k] = v end
  for k, v in pairs(new) do
    if v == json.null then out[k] = nil else out[k] = v end
  end
  return out
end

local function value(list, i)
  local v = list and list ~= json.null and list[i]
  if v == json.null then return nil end
  return v or nil
end

local function vector(list, i)
  local v = value(list, i)
  return v and table.concat(v, ",")
end

-- A body with this text anywhere is refused, or fails.
function M.flag(body)
  return body:find(M.BAD, 1, true) and M.BAD or body:find(M.SKEW, 1, true) and M.SKEW
    or body:find(M.POISON, 1, true) and M.POISON
end

-- Ids that the operation touches, in order.
function M.ids(body) return decode(body).ids or {} end

-- "limits" of the records of a filter.
function M.matching(collection, where)
  local out = {}
  for id, r in pairs(collection.records) do
    local fits = true
    for k, v in pairs(where) do fits = fits and r.meta and r.meta[k] == v end
    if fits then out[#out + 1] = id end
  end
  table.sort(out)
  return out
end

-- Changes the collection. only(id): of which ids; torn(id): whose vector stays as it was, or is missing when the
-- record is new (what a kill in the middle of a write leaves). Records are never changed in place.
function M.apply(collection, action, body, only, torn)
  local b, records = decode(body), collection.records
  for i, id in ipairs(b.ids or {}) do
    local r = records[id]
    if only and not only(id) then -- luacheck: ignore 542
    elseif action == "delete" then
      records[id] = nil
    elseif action == "add" then
      if not r then
        records[id] = { vector = not (torn and torn(id)) and vector(b.embeddings, i) or nil,
          doc = value(b.documents, i), meta = merge(nil, value(b.metadatas, i) or {}) }
      end
    elseif action == "upsert" or r then
      local new = { vector = r and r.vector, doc = value(b.documents, i) or (r and r.doc),
        meta = merge(r and r.meta, value(b.metadatas, i) or {}) }
      if not (torn and torn(id)) then new.vector = vector(b.embeddings, i) or new.vector end
      records[id] = new
    end
  end
end

-- The text that equal records have.
function M.record_text(r)
  local keys = {}
  for k in pairs(r.meta) do keys[#keys + 1] = k end
  table.sort(keys)
  for i, k in ipairs(keys) do keys[i] = k .. "=" .. tostring(r.meta[k]) end
  return (r.vector or "TORN") .. "|" .. tostring(r.doc) .. "|" .. table.concat(keys, ",")
end

-- One text for all records.
function M.text(collection)
  local out = {}
  for id, r in pairs(collection.records) do out[#out + 1] = id .. ":" .. M.record_text(r) end
  table.sort(out)
  return table.concat(out, "\n")
end

function M.clone(c)
  local out = M.collection(c.id, c.name, c.tenant, c.database)
  out.metadata = c.metadata
  for id, r in pairs(c.records) do out.records[id] = r end
  return out
end

return M
