-- notify_watch.lua: what nobody raises as an event, because it is a state: servers that are down, PostgreSQL that is
-- away, instances that lag, policies that are set aside, workers and monitors that are silent.
--
-- A state is compared with the story that people know (notify_book.lua): where there is one without the other, the
-- event that begins or ends it is raised. So what happened while nobody was there to tell is told as well, and what was
-- told before a restart is not told again.
--
--   Watch.new{journal=roles.state, nodes=courier.nodes, figures=fn() -> figures.status, tripped=fn() -> {file, ...},
--             settings=fn() -> {LAG_ALERT=, MONITOR_INTERVAL=}, clock=fn}
--   watch:look(teller)      as often as one likes
local notices = require("lb.notices")
local process = require("lb.process")

local Watch = {}
Watch.__index = Watch

local SECOND, OFTEN, SELDOM = 1, 5, 10 -- seconds between looks: at memory, at all lanes, at tables
local GRACE = 5             -- seconds that PostgreSQL may be away before people are told
local LAGGING = 2           -- looks in a row
local SILENT_LEAST = 60     -- seconds without a sign of life
local DEAD_AFTER = 30       -- seconds after the end of a worker's lease
local UNDEFINED_TABLE = "42P01"

function Watch.new(options)
  local self = setmetatable({ at = {}, lagging = {} }, Watch)
  for name, value in pairs(options) do self[name] = value end
  self.began = self.clock()
  return self
end

local function due(self, what, seconds)
  local t = self.clock()
  if self.at[what] and t < self.at[what] + seconds then return false end
  self.at[what] = t
  return true
end

-- The story that goes on as far as people will know; nil: none, or its end waits to be told.
local function going_on(book, family, key)
  local s = book:story(family, key)
  return s and not s.ending and s or nil
end

-- Without fields a message is headed by the title: an end that is none of the usual ones says so in it.
local function raise(kind, key, title, fields, text)
  notices.raise { kind = kind, key = key, title = title, text = text, fields = fields }
end

-- Ends what is told of a family where it is about somebody who is not there any more. there: {[name]=true}, by what
-- follows the family in the key; words(name): the title.
local function end_gone(book, family, kind, there, words)
  for _, s in pairs(book.stories) do
    local e = s.event
    local name = e.opens == family and not s.ending and (e.key:match("^%a+/(.*)$") or e.key)
    if name and not there[name] then raise(kind, e.key, words(name)) end
  end
end

local function not_configured(name) return name .. " is not configured any more" end

-- What was said to be the cause of a story, for its end; how long it went on is in each event.
local function cause_of(told)
  for _, f in ipairs(told.event.fields) do
    if f[1] == "cause" then return f end
  end
  return { "cause", "not known" }
end

-- ---- servers ---------------------------------------------------------------------------------------------

-- Nobody waits for an instance that an operator has retired.
local function retired(self, name)
  local context = self.journal.context
  local server = context and context.servers and context.servers.by_name[name]
  return server and server.retired
end

local function servers(self, book)
  local there, up, all = {}, 0, 0
  for _, node in ipairs(self.nodes()) do
    local counts = not retired(self, node.name)
    all, up = all + (counts and 1 or 0), up + (counts and node.health ~= "down" and 1 or 0)
  end
  for _, node in ipairs(self.nodes()) do
    local key = "server/" .. node.name
    local told = going_on(book, "server", key)
    there[node.name] = true
    if retired(self, node.name) then
      if told then raise("server_up", key, "Server " .. node.name .. " is retired: nobody waits for it") end
    elseif node.health == "down" and not told then
      raise("server_down", key, "Server " .. node.name .. " is down", { { "instance", node.name },
        { "cause", node.last_error ~= "" and node.last_error or "no answer" },
        { "servers_up", up .. " of " .. all } })
    elseif node.health == "up" and told then
      raise("server_up", key, "Server " .. node.name .. " is up again", { { "instance", node.name }, cause_of(told) })
    end
  end
  end_gone(book, "server", "server_up", there, function(name) return not_configured("Server " .. name) end)
end

-- ---- the journal -----------------------------------------------------------------------------------------

local function away(self, store)
  local J = self.journal
  if self.clock() - math.max(store.last_ok, self.began) > GRACE then return store.last_error end
  if J.store and not J.store:healthy() then return J.store.last_error end
end

local function postgres(self, teller)
  local book, store = teller.book, teller.store
  local why = away(self, store)
  self.away_since = why and (self.away_since or self.clock()) or nil
  if why then self.away_at = self.clock() end
  local told = going_on(book, "journal", "journal")
  -- Its own evidence is as old as the grace already.
  local long = why and (why == store.last_error or self.clock() - self.away_since > GRACE)
  if long and not told then
    raise("journal_unavailable", "journal", "The journal is unavailable: writes are refused", { { "cause",
      why ~= "" and why or "PostgreSQL does not answer" } }, "Reads go on.")
  elseif told and not why and store.last_ok > 0 then
    raise("journal_back", "journal", "The journal is back: writes are taken again", { cause_of(told) })
  end
end

local function restored(self, book)
  local J = self.journal
  local told = going_on(book, "restored", "journal/restored")
  if J.phase == "restored" and not told then
    raise("postgres_restored", "journal/restored", "PostgreSQL was restored from a backup: writes are stopped",
      { { "cause", J.why } })
  elseif J.phase == "on" and told then
    raise("restore_accepted", "journal/restored", "The restored PostgreSQL is accepted: writes are taken again")
  end
end

local function room(self, book)
  local context = self.journal.context
  local told = going_on(book, "room", "journal/room")
  if told and context and context.trim and not context.trim.full and not context.trim.warned then
    raise("journal_room", "journal/room", "The journal has room again")
  end
end

-- ---- copies ----------------------------------------------------------------------------------------------

local function copies(book, name, i)
  local key = "copies/" .. name
  local told = going_on(book, "copies", key)
  if told and i.retired then return raise("copy_rebuilt", key, name .. " is retired: its copies are not made anew") end
  if not told or i.copies_not_ready > 0 then return end
  local one = told.event.kind == "copy_lost" and told.known <= 1 and told.event.fields[2] or nil
  raise("copy_rebuilt", key, "All copies on " .. name .. " are whole again", { { "instance", name }, one })
end

local function lag(self, book, name, i, up)
  local most, key = self.settings().LAG_ALERT or 0, "lag/" .. name
  local told = going_on(book, "lag", key)
  if most <= 0 or i.retired or not up then
    self.lagging[name] = nil
    if not told or up == false and not i.retired then return end -- one that is down lags; that it is down was told
  end
  local above = most > 0 and i.lag_seconds > most
  self.lagging[name] = above and (self.lagging[name] or 0) + 1 or nil
  if above and not told and self.lagging[name] >= LAGGING then
    raise("lag_above", key, name .. " lags behind", { { "instance", name }, { "entries", i.lag_entries },
      { "seconds", math.floor(i.lag_seconds) } })
  elseif told and i.retired then
    raise("lag_below", key, name .. " is retired: nobody waits for it")
  elseif told and (most <= 0 or i.lag_seconds <= most / 2) then
    raise("lag_below", key, name .. " has caught up", { { "instance", name }, { "entries", i.lag_entries } })
  end
end

-- What was told of making a copy anew (rebuild.lua, sync_job.lua) is over when it is made, or nobody wants it any more.
-- A copy that was whole before is whole after a failure as well, and is not made anew then.
local function rebuilds(book, context)
  local there, whole = {}, {}
  for _, r in pairs(context.rebuilds and context.rebuilds.by_copy or {}) do
    there[r.instance .. "/" .. r.lane.id] = true
  end
  for _, s in pairs(book.stories) do
    local instance, id = s.event.key:match("^rebuild/([^/]+)/(%d+)$")
    local lane = id and context.names.by_lane[tonumber(id)]
    local copy = lane and lane.copies[instance]
    local name = id and instance .. "/" .. id
    if copy and not copy.server.retired and copy.state ~= "ready" then there[name] = true end
    if copy and copy.state == "ready" then
      whole[name] = "The copy of " .. lane.name .. " on " .. instance
        .. (copy.changed >= s.since and " is made anew" or " is whole: it stays as it was")
    end
  end
  end_gone(book, "rebuild", "rebuild_done", there, function(name)
    return whole[name] or "A copy on " .. name:match("^[^/]*") .. " is not wanted any more"
  end)
end

local function instances(self, book)
  local J, known = self.journal, self.figures().instances
  if J.phase ~= "on" or J.role ~= "holder" or not known then return end
  local health = {}
  for _, node in ipairs(self.nodes()) do health[node.name] = node.health == "up" end
  for name, i in pairs(known) do
    copies(book, name, i)
    lag(self, book, name, i, health[name])
  end
  end_gone(book, "copies", "copy_rebuilt", known, not_configured)
  end_gone(book, "lag", "lag_below", known, not_configured)
  if J.context and J.context.names then rebuilds(book, J.context) end
end

-- ---- policies --------------------------------------------------------------------------------------------

-- Of this process; others tell of theirs (tripped.lua, advice.lua), and say whose they are behind the file.
local function policies(self, book)
  local there = {}
  for _, p in ipairs(self.tripped()) do
    there[p.file] = true
    if not going_on(book, "policy", "policy/" .. p.file) then
      raise("policy_tripped", "policy/" .. p.file, "Policy " .. p.file .. " failed too often and is set aside",
        { { "file", p.file }, { "cause", p.last_error } })
    end
  end
  for _, s in pairs(book.stories) do
    local other = s.event.key:match("^policy/(%S+ .*)$")
    if other then there[other] = true end
  end
  end_gone(book, "policy", "policy_back", there, function(file) return "Policy " .. file .. " decides again" end)
end

-- ---- sinks -----------------------------------------------------------------------------------------------

-- Trouble with one ends when it takes a message (notify_teller.lua), or here.
local function sinks(teller, book)
  local there = {}
  for _, name in ipairs(teller.sinks:names()) do there[name] = true end
  end_gone(book, "messages", "messages_delivered", there, function(name) return not_configured("The sink " .. name) end)
end

-- ---- other processes -------------------------------------------------------------------------------------

local function rows_of(store, sql, ...)
  local rows, why, state = store:query(sql, ...)
  if not rows and state ~= UNDEFINED_TABLE and store.conn:state() == "ready" then log.warn("notify_watch", why) end
  return rows
end

-- Who coordinates tells of a worker that died when it takes its row away (sync_coordinate.lua). Here those are told of
-- whose row nobody takes away, because the coordinator is gone as well.
local function workers(store, book)
  local rows = rows_of(store, [[SELECT worker_id, role, process, current_task_id, lease_until > now() AS alive,
      lease_until < now() - $1 * interval '1 second' AS dead FROM sync_workers]], DEAD_AFTER)
  if not rows then return nil end
  local there, working, running = {}, false, {}
  for _, w in ipairs(rows) do
    local host, pid = process.host_of(w.worker_id), process.pid_of(w.worker_id)
    local key = "worker/" .. host
    local at_work = w.alive and w.role == "worker" -- a coordinator takes no tasks
    running[w.process] = true
    there[host] = there[host] or w.role == "worker" or w.dead
    working = working or at_work
    if w.dead and not going_on(book, "worker", key) then
      raise("worker_dead", key, "The sync " .. w.role .. " on " .. host .. " is silent, and nobody coordinates",
        { { "host", host }, { "process", pid }, { "worker", w.worker_id },
          w.current_task_id and { "task", w.current_task_id } or nil })
    elseif at_work and going_on(book, "worker", key) then
      raise("worker_back", key, "A sync worker on " .. host .. " is at work", { { "host", host },
        { "worker", w.worker_id } })
    end
  end
  if working then
    end_gone(book, "worker", "worker_back", there, function() return "Other sync workers have taken over" end)
  end
  return running
end

-- Of each host the newest row counts: a monitor that was killed leaves its own behind. One that ends of its own accord
-- takes it away, and is not missed.
local MONITORS = [[
  SELECT host, monitor, every_seconds AS every, extract(epoch FROM now() - last_seen)::float8 AS age
    FROM monitors ORDER BY host, last_seen DESC]]

local function monitors(store, book)
  local rows = rows_of(store, MONITORS)
  if not rows then return nil end
  local there, running = {}, {}
  for _, m in ipairs(rows) do
    local silent = m.age > math.max(3 * m.every, SILENT_LEAST)
    local key, newest = "monitor/" .. m.host, not there[m.host]
    local told = going_on(book, "monitor", key)
    there[m.host], running[m.monitor] = true, not silent
    if newest and silent and not told then
      raise("monitor_silent", key, "The monitor on " .. m.host .. " is silent", { { "host", m.host },
        { "monitor", m.host }, { "seconds", math.floor(m.age) } })
    elseif newest and told and not silent then
      raise("monitor_back", key, "The monitor on " .. m.host .. " is back", { { "host", m.host },
        { "monitor", m.host } })
    end
  end
  end_gone(book, "monitor", "monitor_back", there, function(host) return "No monitor is expected on " .. host
    .. " any more" end)
  return running, there
end

-- Balancers leave what they see of the instances for monitors (resources.lua).
local BALANCERS = [[
  SELECT DISTINCT balancer FROM balancer_figures WHERE at > now() - make_interval(secs => greatest(3 * seconds, $1))]]

-- Seconds within which each process has left its row.
local function patience(self) return math.max(3 * (self.settings().MONITOR_INTERVAL or 0), SILENT_LEAST) end

-- A process that has ended does not say any more that a policy of its own is over its trouble; nor does a host without
-- a monitor. One that has just begun may not have left a row yet.
local function processes(self, store, book)
  local workers_running = workers(store, book)
  local monitors_running, hosts = monitors(store, book)
  local balancers = rows_of(store, BALANCERS, SILENT_LEAST)
  if not workers_running or not monitors_running or not balancers then return end
  local there, running = {}, {}
  for _, b in ipairs(balancers) do running[b.balancer] = true end
  local young = now() - patience(self)
  for _, s in pairs(book.stories) do
    local e = s.event
    local name = e.opens == "policy" and e.key:match("^policy/(.*)$") or ""
    if not name:find(" ") or s.since > young or hosts[name:match("^%S+ on (.*)$") or ""] or workers_running[e.source]
      or monitors_running[e.source] or running[e.source] then
      there[name] = true
    end
  end
  end_gone(book, "policy", "policy_back", there, function(name) return "Policy " .. name
    .. " is not in use any more: that process has ended" end)
end

-- ---- all of it -------------------------------------------------------------------------------------------

function Watch:look(teller)
  if not due(self, "memory", SECOND) then return end
  local book = teller.book
  servers(self, book)
  policies(self, book)
  sinks(teller, book)
  if not teller.store then return end
  postgres(self, teller)
  restored(self, book)
  room(self, book)
  if due(self, "lanes", OFTEN) then instances(self, book) end
  -- After PostgreSQL was away all rows are old: who is there gets the time to write.
  local settled = not self.away_at or self.clock() - self.away_at > patience(self)
  if teller.leased and settled and due(self, "tables", SELDOM) then processes(self, teller.store, book) end
end

return Watch
