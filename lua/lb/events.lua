-- events.lua: rows of failover_events: what happened to the service, for people who look later.
--
--   instance_down, instance_up        health; from_instance is the instance
--   failover, failback                writes are decided by to_instance instead of from_instance, but not because sync
--                                     fills that one, which is up
--   copy_lost                         a copy is out of use until it is made anew; from_instance has it
--   server_lost_data                  a server came back without what it had
--   lease_taken, postgres_restored, journal_filling, journal_full, entry_skipped, instance_retired
--
-- One row per instance and change, however many lanes it touches: a repetition within WINDOW seconds is counted, and
-- the count becomes one row at the window's end. What people are told of each collection by itself is counted by
-- collection. Rows are written with the journal's own transactions, so only the holder of the lease writes any. What
-- people are told of is recorded for that as well (notices.lua).
local Store = require("lb.store")
local notices = require("lb.notices")

local Events = {}
Events.__index = Events

local WINDOW = 10
local BY_COLLECTION = { rebuild_slow = true } -- whose reason begins with a collection's id

function Events.new(context)
  return setmetatable({ context = context, windows = {}, over = {}, written = 0 }, Events)
end

-- {name= as people know it, lane=}; nil: it is not known, or deleted.
local function collection(self, id)
  local names = self.context.names
  local lane = names and names.by_logical[id]
  if not lane then return nil end
  local at_home = lane.tenant == "default_tenant" and lane.database == "default_database"
  return { lane = lane.id, name = at_home and lane.name or lane.name .. " of " .. lane.tenant .. "/" .. lane.database }
end

local function write(self, kind, from, to, reason, success)
  self.written = self.written + 1
  self.context.store:enqueue({ Store.event(kind, from, to, reason, success), notices.of_journal(kind, from, to, reason,
    function(id) return collection(self, id) end) }, nil, function() end)
end

local function close_window(self, key, w)
  sleep(WINDOW)
  self.windows[key] = nil
  if w.more == 0 or self.context.dead then return end
  write(self, w.kind, w.from, w.to, w.more .. " more of these within " .. WINDOW .. " s; the last: " .. w.reason,
    w.success)
end

-- success: false for what is a loss. reason: one line.
function Events:note(kind, from, to, reason, success)
  if not self.context.holder then return end
  local key = kind .. "\0" .. (from or "") .. "\0" .. (to or "")
  if BY_COLLECTION[kind] then key = key .. "\0" .. reason:match("^[^:]*") end
  local w = self.windows[key]
  if w then
    w.more, w.reason, w.success = w.more + 1, reason, success
    return
  end
  w = { kind = kind, from = from, to = to, reason = reason, success = success, more = 0 }
  self.windows[key] = w
  write(self, kind, from, to, reason, success)
  spawn(close_window, self, key, w)
end

local function place(self, server)
  for i, s in ipairs(self.context.servers.list) do
    if s == server then return i end
  end
  return math.huge
end

-- Nothing is wrong with the server, but sync fills it, or did when what is decided now began: the route policy spares
-- it.
local function only_spared(server)
  return server.health == "up" and server:usable() and now() - (server.filled_at or -math.huge) < WINDOW
end

-- The lane's newest verdict is this server's. A change of server is a failover or, towards one that is preferred, a
-- failback; the first lane to change tells for all.
function Events:decided(lane, server)
  if not self.context.holder then return end
  local was = lane.decided_on
  if was and place(self, server) > place(self, was) and only_spared(was) then return end
  lane.decided_on = server
  if not was or was == server then return end
  local where = "seen first at " .. (lane.logical and "collection " .. lane.logical or "the catalogue")
  if place(self, server) < place(self, was) then
    if not self.over[server.name] then return end -- told already
    self.over[server.name] = nil
    self:note("failback", was.name, server.name, where)
  elseif self.over[was.name] ~= server.name then
    self.over[was.name] = server.name
    self:note("failover", was.name, server.name, was.name .. " is " .. was.health
      .. (was.note ~= "" and " (" .. was.note .. ")" or "") .. "; " .. where)
  end
end

return Events
