-- model.lua: what one collection of Chroma holds after a sequence of writes, and what every record of it looked
-- like after each of them. Pure: bodies come decoded, with JSON's null as anything that is no plain value.
--
--   lane.records   id -> {doc=, meta={...}, emb={...}}
--   lane.versions  id -> {{n=, record= | nil}, ...}   rising n; before the first the record was absent
--   lane.counts    {{n=, count=}, ...}
--
-- One thing of Chroma (1.0.20 to 1.5.9) depends on who reads meanwhile: an update with a vector for a record that is
-- not there may leave that vector behind, and an add of the record then keeps it. So such a record has `ghosts`:
-- vectors that it may have instead of its own, until it is given another or deleted.
local M = {}

function M.new()
  return { records = {}, versions = {}, counts = { { n = 0, count = 0 } }, count = 0, hazy = {}, ghosts = {} }
end

local function number(x) return string.format("%.17g", x) end

local function value(v)
  if type(v) == "number" then return number(v) end
  return type(v) .. ":" .. tostring(v)
end

-- Document and metadata, which Chroma writes in one transaction, as one text that does not depend on key order.
function M.text(record)
  if not record then return "absent" end
  local keys, out = {}, { type(record.doc) == "string" and "doc:" .. record.doc or "no doc" }
  for k in pairs(type(record.meta) == "table" and record.meta or {}) do keys[#keys + 1] = k end
  table.sort(keys)
  for _, k in ipairs(keys) do out[#out + 1] = k .. "=" .. value(record.meta[k]) end
  return table.concat(out, " ")
end

function M.vector(record)
  if not record then return "absent" end
  if type(record.emb) ~= "table" then return "none" end
  local out = {}
  for i, x in ipairs(record.emb) do out[i] = number(x) end
  return table.concat(out, ",")
end

-- Is this vector (as text) one that the record may have?
function M.may_have(record, vector)
  if M.vector(record) == vector then return true end
  for _, emb in ipairs(record and record.ghosts or {}) do
    if M.vector { emb = emb } == vector then return true end
  end
  return false
end

-- `$eq` by a plain value, the comparisons, `$in`, `$and`, `$or`: what the workload asks for.
function M.matches(record, where)
  if not record then return false end
  for k, want in pairs(where) do
    local have = k:sub(1, 1) ~= "$" and record.meta[k]
    if k == "$and" then
      for _, w in ipairs(want) do if not M.matches(record, w) then return false end end
    elseif k == "$or" then
      local any = false
      for _, w in ipairs(want) do any = any or M.matches(record, w) end
      if not any then return false end
    elseif type(want) ~= "table" then
      if have ~= want then return false end
    else
      local op, arg = next(want)
      if type(have) ~= "number" and op ~= "$in" then return false end
      local ok
      if op == "$gte" then ok = have >= arg
      elseif op == "$lt" then ok = have < arg
      elseif op == "$in" then for _, x in ipairs(arg) do ok = ok or have == x end
      else error("the model does not know " .. op) end
      if not ok then return false end
    end
  end
  return true
end

local function copy(record)
  if not record then return nil end
  local meta = {}
  for k, v in pairs(record.meta) do meta[k] = v end
  return { doc = record.doc, meta = meta, emb = record.emb, ghosts = record.ghosts }
end

local function put(lane, n, id, record)
  lane.count = lane.count + (record and 1 or 0) - (lane.records[id] and 1 or 0)
  lane.records[id] = record
  local all = lane.versions[id] or {}
  lane.versions[id] = all
  if all[#all] and all[#all].n == n then all[#all] = nil end
  all[#all + 1] = { n = n, record = record }
end

local function plain(v) return v ~= nil and type(v) ~= "userdata" end

local function merge(record, body, i)
  local doc, meta, emb = body.documents, body.metadatas, body.embeddings
  if type(doc) == "table" and type(doc[i]) == "string" then record.doc = doc[i] end
  if type(emb) == "table" and type(emb[i]) == "table" then record.emb, record.ghosts = emb[i], nil end
  for k, v in pairs(type(meta) == "table" and type(meta[i]) == "table" and meta[i] or {}) do
    if plain(v) then record.meta[k] = v else record.meta[k] = nil end
  end
  return record
end

local Apply = {}

function Apply.add(lane, n, id, body, i)
  if lane.records[id] then return end
  local record = merge({ meta = {} }, body, i)
  record.ghosts, lane.ghosts[id] = lane.ghosts[id], nil
  put(lane, n, id, record)
end

function Apply.upsert(lane, n, id, body, i)
  lane.ghosts[id] = nil
  put(lane, n, id, merge(copy(lane.records[id]) or { meta = {} }, body, i))
end

function Apply.update(lane, n, id, body, i)
  if lane.records[id] then return put(lane, n, id, merge(copy(lane.records[id]), body, i)) end
  local emb = type(body.embeddings) == "table" and body.embeddings[i]
  if type(emb) == "table" then
    lane.ghosts[id] = lane.ghosts[id] or {}
    table.insert(lane.ghosts[id], emb)
  end
end

function Apply.delete(lane, n, id)
  lane.ghosts[id] = nil
  if lane.records[id] then put(lane, n, id, nil) end
end

-- Entry n of the lane has been applied. ids: those that a delete was resolved to; nil: the body's own, or those
-- that its filter matches here.
function M.apply(lane, n, action, body, ids)
  local fn = Apply[action] or error("not a write: " .. tostring(action))
  if action == "delete" then
    ids = ids or M.resolve(lane, body)
  end
  for i, id in ipairs(ids or body.ids) do fn(lane, n, id, body, i) end
  lane.counts[#lane.counts + 1] = { n = n, count = lane.count }
end

-- The ids that a delete takes away here.
function M.resolve(lane, body)
  local given = type(body.ids) == "table" and body.ids or nil
  if type(body.where) ~= "table" then return given or {} end
  local out = {}
  if given then
    for _, id in ipairs(given) do if M.matches(lane.records[id], body.where) then out[#out + 1] = id end end
  else
    for id, record in pairs(lane.records) do if M.matches(record, body.where) then out[#out + 1] = id end end
    table.sort(out)
  end
  return out
end

-- Entry n may have done anything to these records: nothing is known of them from here on.
function M.blur(lane, n, body)
  for _, id in ipairs(type(body.ids) == "table" and body.ids or {}) do lane.hazy[id] = lane.hazy[id] or n end
  if type(body.ids) ~= "table" then lane.hazy_all = lane.hazy_all or n end
end

function M.is_hazy(lane, id) return lane.hazy_all ~= nil or lane.hazy[id] ~= nil end

-- The versions of a record that somebody may see who must see entry `floor`: the last one up to it and all later.
function M.versions_from(lane, id, floor)
  local out, last = {}, { n = 0 }
  for _, v in ipairs(lane.versions[id] or {}) do
    if v.n <= floor then last = v else out[#out + 1] = v end
  end
  table.insert(out, 1, last)
  return out
end

return M
