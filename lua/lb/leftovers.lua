-- leftovers.lua: what rebuilds leave on the servers: collections that were replaced, temporary ones that were given up,
-- and names that are to be put right (PROTOCOL.md R10, R11).
--
-- Each is a row of journal_rebuilds:
--   swapped    the copy is the new collection, which still has its temporary name, and the old one has the name. Until
--              both names are right the instance does no catalogue operation (its part in lane 0 is held)
--   named      the old one is to be deleted, under the name of a tomb; done: it is, or it is kept under a name of its
--              own (`keep`: somebody else made it)
--   dropping   the temporary one is to be deleted; dropped: it is
-- Names of tombs and temporary collections are chromux's own, and each is used once: whoever has it may be deleted.
local deeds = require("lb.deeds")
local json = json

local Leftovers = {}
Leftovers.__index = Leftovers

local EVERY = 0.25       -- seconds between rounds
local GRACE = 2          -- seconds for which reads that were sent to a replaced collection may still come
local FIRST_PAUSE, LAST_PAUSE = 0.25, 30

-- While this stands in a member's `held` it does nothing.
local UNFINISHED = {}

function Leftovers.new(context, names)
  return setmetatable({ context = context, names = names, items = {}, active = 0 }, Leftovers)
end

local function tomb_of(item) return "chromux-tomb-rebuild-" .. item.id end

-- row: {id=, lane=, instance=, tenant=, database=, temp=, temp_name=, old=, keep=, state=}. settle: seconds for which a
-- request that makes the temporary collection may still be executed. One that is swapped stops the instance's part in
-- the catalogue, or takes it from whoever holds it. -> the item
function Leftovers:add(row, settle)
  local item = { id = row.id, lane = row.lane, instance = row.instance, tenant = row.tenant, database = row.database,
    temp = row.temp, temp_name = row.temp_name, old = row.old, keep = row.keep, state = row.state, settle = settle,
    pause = FIRST_PAUSE, at = 0, since = now() }
  self.items[#self.items + 1] = item
  local member = item.state == "swapped" and self.names.copies[item.instance]
  if member then member.held = UNFINISHED end
  return item
end

local function let_go(self, item)
  for _, other in ipairs(self.items) do
    if other ~= item and other.instance == item.instance and other.state == "swapped" then return end
  end
  local member = self.names.copies[item.instance]
  if member and member.held == UNFINISHED then
    member.held = nil
    self.names:kick_copy(member)
  end
end

local function base_of(self, item) return self.names:path(item.tenant, item.database, "/collections") end

-- One change on the item's server: did it end for certain, how, answer.
local function change(self, item, method, name, body, physical)
  local kind, answer = deeds.send(self.context, item.server, method, base_of(self, item) .. "/" .. name, body, physical)
  if kind == "unknown" then item.settle = item.server:horizon_after(answer) end
  return kind, answer
end

local function state_is(self, item, state)
  local rows = self.context.store:commit { { [[UPDATE journal_rebuilds SET state = $2, changed_at = now()
      WHERE id = $1 AND state = $3]], item.id, state, item.state, lane = item.lane } }
  if not rows then return false end
  item.state = state
  return true
end

-- Gives a collection another name: true, whether it was there; false: not now; nil: the name is taken.
local function rename(self, item, physical, name)
  local kind, answer = change(self, item, "PUT", physical, json.encode { new_name = name }, physical)
  if kind == "applied" or kind == "lost" then return true, kind == "applied" end
  if kind == "refused" and answer.body:find("UNIQUE", 1, true) then return nil end
  if kind == "refused" then log.warn("rename_refused", item.instance .. ": " .. name .. ": " .. answer.body) end
  return false
end

local function aside(name, id) return name:sub(1, 400) .. "-aside-" .. id:sub(1, 8) end

-- Whoever has the name on this server goes out of its way. A copy of another lane gets its own name from what its
-- instance has yet to do in the catalogue, which says whose name it is and asks nobody, or is deleted by its id; only
-- that can't be waited for, since nothing is done there while names are not right. One that nobody knows keeps all that
-- it has, under a name that says what it was.
local function make_way(self, item, name)
  local there = deeds.id_by_name(self.context, item.server, base_of(self, item), name)
  if not there or there == item.temp then return there == false or there == item.temp end
  local lane = (self.names.physical[item.instance] or {})[there]
  local other = lane and "chromux-old-" .. lane.id .. "-" .. there:sub(1, 8) or aside(name, there)
  log.warn("collection_moved_aside", name .. " (" .. there .. ") on " .. item.instance .. " is now " .. other)
  return rename(self, item, there, other)
end

-- Nobody has the name any more that the new one is to have: the old one is a tomb, or kept. false: not now
local function put_away(self, item, lane)
  if item.old == "" or item.old == item.temp then return true end
  if not item.keep then return rename(self, item, item.old, tomb_of(item)) end
  local name = aside(lane and lane.name or "collection-" .. item.lane, item.old)
  local done, there = rename(self, item, item.old, name)
  if not done then return false end
  if not there then return true end
  local text = string.format("what stood on %s before it joined and is not what the others have is kept there as %s",
    item.instance, name)
  log.warn("collection_moved_aside", text)
  self.context.events:note("not_adopted", item.instance, nil, text, false)
  return true
end

local Step = {}

function Step.swapped(self, item)
  self.context.fault("rebuild.swapped_old_alive")
  local lane = self.names.by_lane[item.lane]
  if not put_away(self, item, lane) then return false end
  if lane then
    local fine = rename(self, item, item.temp, lane.name)
    if fine == nil and make_way(self, item, lane.name) then fine = rename(self, item, item.temp, lane.name) end
    if not fine then return false end
  end
  local done = state_is(self, item, (item.old == "" or item.keep) and "done" or "named")
  if done then let_go(self, item) end
  return done
end

-- Deletes what has this name of ours. true: there is none any more.
local function delete(self, item, name)
  local kind, answer = change(self, item, "DELETE", name)
  if kind == "applied" or (type(answer) == "table" and answer.status == 404) then return true end
  -- An error may come after the deed.
  return kind == "unsure"
    and deeds.id_by_name(self.context, item.server, base_of(self, item), name) == false
end

function Step.named(self, item)
  if now() < item.since + GRACE then return nil end
  return delete(self, item, tomb_of(item)) and state_is(self, item, "done")
end

function Step.dropping(self, item)
  return (item.temp_name == "" or delete(self, item, item.temp_name)) and state_is(self, item, "dropped")
end

-- As far as it goes now. Runs in a task.
function Leftovers:work(item)
  if item.busy then return end
  item.busy, self.active = true, self.active + 1
  local ok, why = xpcall(function()
    item.server = self.context.servers.by_name[item.instance]
    while Step[item.state] and self.context.drives and not self.context.dead and item.server and item.server:usable() do
      if item.settle then
        item.server:settle(item.settle)
        item.settle = nil
        if self.context.dead then return end
      end
      local done = Step[item.state](self, item)
      if done == nil then return end
      if done == false then
        item.at, item.pause = now() + item.pause, math.min(item.pause * 2, LAST_PAUSE)
        return
      end
      item.pause = FIRST_PAUSE
    end
  end, debug.traceback)
  if not ok then
    log.error("rebuild_leftover_failed", why)
    item.at = now() + LAST_PAUSE
  end
  item.busy, self.active = false, self.active - 1
end

-- One round.
function Leftovers:look()
  local left = {}
  for _, item in ipairs(self.items) do
    if Step[item.state] then
      left[#left + 1] = item
      local server = self.context.servers.by_name[item.instance]
      if not item.busy and now() >= item.at and server and server:usable() then
        server:run(function() self:work(item) end)
      end
    end
  end
  self.items = left
end

function Leftovers:run()
  while not self.context.dead do
    if self.context.drives then self:look() end
    sleep(EVERY)
  end
end

-- Whether a collection of one of our names is still needed by that name.
function Leftovers:knows(instance, name)
  for _, item in ipairs(self.items) do
    if item.instance == instance and (item.temp_name == name or tomb_of(item) == name) then return true end
  end
  return false
end

return Leftovers
