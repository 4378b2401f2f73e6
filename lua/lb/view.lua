-- view.lua: what PostgreSQL holds as names, lanes and copies in memory, for the holder and for standbys.
--
--   View.apply(context, names, rows, asked)   rows as Store:load gives them. asked: {[lane]=true} when they are of
--       these lanes only; nil: they are everything, and what they lack is gone
--   View.each_copy(names, fn)                 fn(lane, copy) of every collection
--
-- What is there already is brought up to date; floors only rise.
local View = {}

local function server_for(context, instance)
  return context.servers.by_name[instance] or context.servers:absent(instance)
end

local function apply_names(names, rows)
  if rows.tenants then
    names.tenants = {}
    for _, row in ipairs(rows.tenants) do names.tenants[row.name] = true end
  end
  if rows.databases then
    names.databases = {}
    for _, row in ipairs(rows.databases) do names.databases[row.tenant .. "\0" .. row.name] = true end
  end
end

-- Since when the oldest entry without a verdict waits.
local function dated(lane, row)
  if row.waiting then lane.waiting_since = now() - row.waiting end
end

local function apply_collections(names, rows, lanes, asked)
  local there = {}
  for _, row in ipairs(rows.collections) do
    local l = lanes[row.lane]
    if l then
      there[row.lane] = true
      local lane = names.by_lane[row.lane]
      if not lane then
        lane = names:collection_add { id = row.lane, logical = row.logical, tenant = row.tenant,
          database = row.database, name = row.name, head = l.next - 1, floor = l.floor, oldest = l.trimmed + 1,
          decided = l.undecided - 1 }
      end
      dated(lane, l)
      names:collection_rename(lane, row.name)
      lane.adopted, lane.head = row.adopted, math.max(lane.head, l.next - 1)
      lane.floor = math.max(lane.floor, l.floor)
      lane.trimmed, lane.decided = math.max(lane.trimmed, l.trimmed), math.max(lane.decided, l.undecided - 1)
      lane:publish_floor()
    end
  end
  local gone = {}
  for id, lane in pairs(names.by_lane) do
    if (not asked or asked[id]) and not there[id] then gone[#gone + 1] = lane end
  end
  for _, lane in ipairs(gone) do names:collection_gone(lane) end
end

local function apply_copy(context, names, row, lanes)
  local lane = row.lane == 0 and names or names.by_lane[row.lane]
  if not lane then return end
  local head = lanes[row.lane] and lanes[row.lane].next - 1 or lane.head
  local doubt = context.doubt_of(row, head)
  local copy = lane.copies[row.instance]
  local lacking = row.lacks and { n = row.position + 1, since = now() - row.lacks }
  if not copy then
    local c = { instance = row.instance, server = server_for(context, row.instance), physical = row.physical,
      incarnation = row.incarnation, position = row.position, state = row.state, reason = row.reason, doubt = doubt,
      settled = doubt == 0 or row.state ~= "ready", changed = row.changed }
    copy = row.lane == 0 and names:member_add(c) or names:copy_of(lane, c)
    copy.lacking = lacking
    return
  end
  if row.lane ~= 0 and row.physical ~= copy.physical then
    local of = names.physical[row.instance] or {}
    names.physical[row.instance] = of
    if of[copy.physical] == lane then of[copy.physical] = nil end
    if row.physical ~= "" then of[row.physical] = lane end
  end
  copy.physical, copy.incarnation, copy.state, copy.reason = row.physical, row.incarnation, row.state, row.reason
  if row.position > copy.p then copy.since = now() end
  copy.changed = row.changed
  copy.p, copy.doubt, copy.lacking = row.position, doubt, lacking
  if row.lane ~= 0 then lane:publish(copy) end
end

function View.apply(context, names, rows, asked)
  local lanes = {}
  for _, row in ipairs(rows.lanes) do lanes[row.lane] = row end
  if rows.newest then names.next_lane = math.max(names.next_lane, rows.newest[1].lane + 1) end
  apply_names(names, rows)
  if lanes[0] then
    names.head = math.max(names.head, lanes[0].next - 1)
    names.floor = math.max(names.floor, lanes[0].undecided - 1)
    dated(names, lanes[0])
  end
  apply_collections(names, rows, lanes, asked)
  local held = {}
  for _, row in ipairs(rows.copies) do
    apply_copy(context, names, row, lanes)
    held[row.lane .. "/" .. row.instance] = true
  end
  View.each_copy(names, function(lane, copy)
    if lanes[lane.id] and not held[lane.id .. "/" .. copy.instance] then lane:copy_drop(copy) end
  end)
  for _, row in ipairs(rows.servers or {}) do
    local s = server_for(context, row.instance)
    -- Below 0: an operator has said that what the server has is taken.
    s.witness = row.witness < 0 and row.witness or math.max(s.witness, row.witness)
    s.retired = row.retired
  end
end

-- fn may drop the copy.
function View.each_copy(names, fn)
  for _, lane in pairs(names.by_logical) do
    for i = #lane.order, 1, -1 do fn(lane, lane.order[i]) end
  end
end

return View
