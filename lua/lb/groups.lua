-- groups.lua: entries of a lane that go as one request (coalescing). Chroma pays for each request, so this makes many
-- small writes several times faster; what is refused as a whole is sent one by one (lanes.lua).
--
--   joins(action)            may entries of this kind share a request?
--   from(lane, copy, e)      entries from e on that may: {e, ...}
--   bodies(group)            what is to be sent for them, one request each: {body, ...}
local slice = require("chromux.slice")
local json = json

local M = {}

M.MOST = 128                   -- entries in a group
local GROUP_RECORDS, GROUP_BYTES = 2000, 4 * 1024 * 1024
local GROUPABLE = 256 * 1024   -- bytes: a larger body goes alone
local DELETE_IDS = 32000       -- Chroma's limit on ids is 32,760 (SQL variables)

local JOINS = { add = true, upsert = true, update = true }

function M.joins(action) return JOINS[action] end

-- What slice.records says of the body, or false when it can't share a request.
local function records(e)
  if e.records == nil then
    e.records = JOINS[e.action] and #e.body <= GROUPABLE and slice.records(e.body, GROUPABLE) or false
  end
  return e.records
end

-- Entries from n on that may go as one request: same operation, same members, disjoint ids, same verdict.
function M.from(lane, copy, e)
  local group, first = { e }, records(e)
  if not first or (copy.alone_until or 0) >= e.n then return group end
  local seen, count, bytes = {}, first.count, #e.body
  for _, id in ipairs(first.ids) do seen[id] = true end
  for n = e.n + 1, math.min(lane.head, e.n + M.MOST - 1) do
    local o = lane.entries[n]
    if not o or o.verdict ~= e.verdict or o.action ~= e.action or o.rest ~= e.rest or o.type ~= e.type then break end
    local r = records(o)
    if not r or r.shape ~= first.shape then break end
    count, bytes = count + r.count, bytes + #o.body
    if count > GROUP_RECORDS or bytes > GROUP_BYTES then break end
    local clash
    for _, id in ipairs(r.ids) do clash = clash or seen[id] end
    if clash then break end
    for _, id in ipairs(r.ids) do seen[id] = true end
    group[#group + 1] = o
  end
  return group
end

-- The bodies to send, one request each.
function M.bodies(group)
  local e = group[1]
  if #group > 1 then
    local texts = {}
    for i, o in ipairs(group) do texts[i] = o.body end
    return { slice.join(texts) }
  end
  if not e.resolved then return { e.body } end
  local ids = json.decode(e.resolved)
  local out = {}
  for from = 1, #ids, DELETE_IDS do
    local part = {}
    for i = from, math.min(#ids, from + DELETE_IDS - 1) do part[#part + 1] = ids[i] end
    out[#out + 1] = slice.ids_body(part)
  end
  return out
end

return M
