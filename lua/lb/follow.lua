-- follow.lua: how a standby's view keeps up with the holder (PROTOCOL.md R8).
--
-- Whatever hints at a change (a notification of the holder's commit, the answer to a write that was forwarded, an id
-- that is not known) marks lanes, and one task reads the marked lanes again from PostgreSQL: a hint is never believed,
-- only looked into. While notifications may be missing nothing is trusted: no copy is readable until everything was
-- read again.
--
--   Follow.listen(connection, current)   once for a connection: current() -> the follower that is in charge, or nil
--   local f = Follow.new(context, names) names as of everything that was loaded after Follow.listen
--   f:touch(lanes) | f:touch("*")        these are to be read again
--   f:caught_up(until_) -> true | false  all that was touched before is known now; false: not in time
--   f:saw(lane, n, until_)               an answer said that entry n of the lane is applied: known when it returns
--   f:look(id_or_name, tenant, database, until_) -> true: it is there, and known now; false; nil, why
local Store = require("lb.store")
local Signal = require("lb.signal")
local View = require("lb.view")
local json = json

local Follow = {}
Follow.__index = Follow

local MOST_LANES = 1000 -- more are read as everything
local RETRY = 0.1       -- seconds
local PACE = 0.002      -- seconds between two readings that nobody waits for

local listening = false -- notifications arrive

function Follow.new(context, names)
  return setmetatable({ context = context, names = names, dirty = {}, count = 0, all = false, asked = 0, done = 0,
    wanted = Signal.new(), known = Signal.new(), waiting = 0 }, Follow)
end

local function set_trust(self, trusted)
  if self.context.trusted == trusted then return end
  self.context.trusted = trusted
  View.each_copy(self.names, function(lane, copy) lane:publish(copy) end)
end

function Follow.listen(connection, current, on_lease)
  connection:listen(Store.CHANNEL, function(news)
    local f = current()
    if f and news and f.context.fault("notify.lost") then
      connection:query("SELECT pg_terminate_backend(pg_backend_pid())")
    elseif news == nil then
      listening = true
      if f then f:touch("*") end
    elseif news == "lease" then
      on_lease()
    elseif f and news == "*" then
      f:touch("*")
    elseif f then
      local lanes = {}
      for word in news:gmatch("%d+") do lanes[#lanes + 1] = tonumber(word) end
      f:touch(lanes)
    end
  end)
  connection:observe(function(state)
    if state == "ready" then return end
    listening = false
    local f = current()
    if f then set_trust(f, false) end
  end)
end

function Follow.listening() return listening end

function Follow:touch(lanes)
  self.asked = self.asked + 1
  if lanes == "*" then
    self.all = true
  else
    for _, lane in ipairs(lanes) do
      if not self.dirty[lane] then self.dirty[lane], self.count = true, self.count + 1 end
    end
  end
  self.wanted:fire()
end

-- Reads what is marked. Runs until the context is dead.
function Follow:run()
  local context = self.context
  while not context.dead do
    local upto, all, dirty = self.asked, self.all or self.count > MOST_LANES, self.dirty
    if not all and self.count == 0 then
      self.done = upto
      self.known:fire()
      self.wanted:wait()
    else
      self.dirty, self.count, self.all = {}, 0, false
      local lanes, heard = {}, listening
      for lane in pairs(dirty) do lanes[#lanes + 1] = lane end
      local rows, why
      if all then rows, why = context.store:load() else rows, why = context.store:load_lanes(lanes) end
      if context.dead then break end
      if rows then
        View.apply(context, self.names, rows, not all and dirty or nil)
        if all then set_trust(self, heard and listening) end
        self.done = upto
        self.known:fire()
        if self.waiting == 0 then sleep(PACE) end
      else
        log.debug("standby_reload_failed", why)
        self.all = self.all or all
        for _, lane in ipairs(lanes) do
          if not self.dirty[lane] then self.dirty[lane], self.count = true, self.count + 1 end
        end
        sleep(RETRY)
      end
    end
  end
  self.known:fire()
end

function Follow:stop()
  self.wanted:fire()
  self.known:fire()
end

function Follow:caught_up(until_)
  local mine = self.asked
  -- Somebody looks at the clock for those who wait.
  if not self.clock then
    self.clock = true
    spawn(function()
      while not self.context.dead do
        sleep(0.05)
        if self.done < self.asked then self.known:fire() end
      end
    end)
  end
  self.waiting = self.waiting + 1
  while self.done < mine and not self.context.dead and now() < until_ do self.known:wait() end
  self.waiting = self.waiting - 1
  return self.done >= mine
end

-- The lanes that a catalogue entry made, changed or ended.
local function lanes_of(self, n)
  local lanes = { 0 }
  local rows = self.context.store:entries(0, n, 1)
  local p = rows and rows[1] and json.decode(rows[1].rest) or {}
  if p.lane then lanes[2] = p.lane end
  for _, l in ipairs(p.lanes or {}) do lanes[#lanes + 1] = type(l) == "table" and l.id or l end
  return rows and lanes or nil
end

function Follow:saw(lane_id, n, until_)
  local names = self.names
  if lane_id == 0 then
    names.floor = math.max(names.floor, n)
    self:touch(lanes_of(self, n) or "*")
    self:caught_up(until_)
    return
  end
  local lane = names.by_lane[lane_id]
  if lane then
    lane.floor = math.max(lane.floor, n)
    lane:publish_floor()
    for _, copy in ipairs(lane.order) do
      if copy.p >= n and copy.state == "ready" and copy.doubt == 0 then return end
    end
  end
  self:touch { lane_id }
  self:caught_up(until_)
  lane = names.by_lane[lane_id]
  if lane and lane.floor < n then
    lane.floor = n
    lane:publish_floor()
  end
end

function Follow:look(id_or_name, tenant, database, until_)
  local lane, why = self.context.store:lane_of(id_or_name, tenant, database)
  if not lane then return lane, why end
  self:touch { lane }
  if not self:caught_up(until_) then return nil, "PostgreSQL does not answer" end
  return true
end

return Follow
