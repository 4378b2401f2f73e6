-- sync.lua: what a worker and the coordinator do: the engine of core/engine.h.
--
-- A process has one row in sync_workers and renews its lease and those of its tasks; as long as that is known to have
-- succeeded, what it sends may be completed (courier.fence). Coordinating is a lease of its own that any worker may
-- hold; a process of role "coordinator" takes that before them, and no tasks.
local Batch = require("lb.sync_batch")
local Coordinator = require("lb.sync_coordinate")
local Load = require("lb.sync_load")
local Store = require("lb.sync_store")
local Work = require("lb.sync_work")
local courier = require("lb.courier")
local notices = require("lb.notices")
local process = require("lb.process")
local schema = require("lb.schema")
local tripped = require("lb.tripped")
local copies = require("chromux.copies")

local M = {}

local BEATS = 3 -- in the time of a lease
local ASIDE_MOST = 1000 -- bytes of text

-- Fault points are compiled into test builds only.
local fault = copies.fault or function() end

local S = { settings = {} }

local function id_of(name)
  local pid, began = name:match("/(%d+)/(%d+)$")
  return string.format("%s-%s-%s", process.host(), pid or "?", began or "?")
end

-- ---- the heartbeat -------------------------------------------------------------------------------------------

local function status()
  if S.stopping then return "stopping" end
  if S.work and S.work:current() then return "working" end
  return S.coordinator and "coordinating" or "idle"
end

-- Share of one processor since the last time, in percent.
local function cpu_percent()
  local used, at = process.cpu_seconds(), now()
  local was = S.cpu
  S.cpu = { used = used, at = at }
  return was and at > was.at and 100 * (used - was.used) / (at - was.at) or 0
end

-- What this process sends may be completed until then. A lease that had run out is not taken up while a request from
-- before that is on its way: others have done its work since, and it may be completed only after them.
local function extend(till)
  if courier.boottime() >= S.fence and S.work and S.work.changing > 0 then
    return log.warn("sync_lapsed", "the lease had run out; what was on its way has to end first")
  end
  S.fence = till
  courier.fence(till)
end

-- Policies that fail so often in this process that they are not asked any more; "": none.
local function policies_aside()
  local there, policy = pcall(require, "chromux.policy")
  local words = {}
  for i, p in ipairs(there and policy.tripped() or {}) do words[i] = p.file .. ": " .. p.last_error end
  return notices.clean(table.concat(words, "; "), ASIDE_MOST)
end

local function beat()
  local lease = S.settings.LEASE_TIMEOUT
  local at, boottime = now(), courier.boottime()
  S.batch:look()
  local own, why = S.store:beat({ id = S.id, role = S.settings.role, process = S.name, status = status(),
    task = S.work and S.work:current(), memory_mb = S.batch.memory_mb, cpu_percent = cpu_percent(),
    policies_aside = policies_aside() }, lease)
  if not own then
    if not S.silent then log.warn("sync_silent", "the lease cannot be renewed: " .. tostring(why)) end
    S.silent, S.troubled = true, now()
    return
  end
  S.silent = false
  tripped.look("sync " .. S.settings.role)
  extend(boottime + lease)
  if S.work then S.work:renewed(own, at) end
end

local function coordinate()
  local configured = {}
  for i, node in ipairs(courier.nodes()) do configured[i] = node.name end
  local epoch = S.store:lease(S.name, S.settings.role ~= "coordinator", S.settings.LEASE_TIMEOUT, configured)
  if epoch then S.held_at = now() end
  local ours = epoch or (epoch == nil and S.coordinator and now() - S.held_at < S.settings.LEASE_TIMEOUT)
  if S.coordinator and (not ours or (epoch and epoch ~= S.epoch)) then
    S.coordinator:stop()
    S.coordinator = nil
    if epoch == false then S.store:lease_release(S.name) end -- to a coordinator that came
  end
  if epoch and not S.coordinator then
    S.epoch, S.troubled = epoch, now()
    S.coordinator = Coordinator.new { store = S.store:of_coordinator(epoch), settings = S.settings, id = S.id,
      steady = function() return now() - S.troubled end, fault = fault }
    S.coordinator:start()
  end
end

-- ---- life ----------------------------------------------------------------------------------------------------

-- What of each turn is repeated for ever.
local function keep(life, fn)
  while S.life == life and not S.stopping do
    local fine, why = xpcall(fn, debug.traceback)
    if not fine then log.error("sync_failed", why) end
    sleep(S.settings.LEASE_TIMEOUT / BEATS)
  end
end

local function told(payload)
  if S.coordinator and payload ~= "tasks" then S.coordinator:look() end
  if S.work and payload ~= "jobs" then S.work:look() end
end

-- PostgreSQL may be away when this process starts.
local function run(life)
  local conn, keeper = pg.connection("default"), pg.connection("leases")
  local wait = 0.1
  repeat
    local made, why = schema.migrate(conn)
    if not made then
      if not S.waiting then log.warn("sync_waits", tostring(why)) end
      S.waiting = true
      sleep(wait)
      wait = math.min(wait * 2, 2)
    end
  until made or S.life ~= life or S.stopping
  if S.life ~= life or S.stopping then return end
  S.name = process.name()
  S.id = id_of(S.name)
  S.store, S.batch = Store.new(conn, keeper), Batch.new(S.settings)
  if S.settings.role ~= "coordinator" then
    local load = Load.new()
    conn:listen(Load.CHANNEL, function(payload) load:hear(payload) end)
    S.work = Work.new { store = S.store, settings = S.settings, id = S.id, batch = S.batch, load = load,
      lease = S.settings.LEASE_TIMEOUT, able = Coordinator.usable_names, fault = fault }
  end
  S.waiting = false
  beat()
  conn:listen(Store.CHANNEL, told)
  if S.work then S.work:start() end
  spawn(keep, life, beat)
  spawn(keep, life, coordinate)
end

function M.start(settings)
  S = { settings = settings, life = {}, waiting = false, troubled = now(), fence = 0 }
  spawn(run, S.life)
  return true
end

function M.reload(settings)
  for name, value in pairs(settings) do S.settings[name] = value end
  return true
end

-- What is under way goes back after its present request; then the leases are given back.
local function leave()
  if S.coordinator then S.coordinator:stop() end
  while S.work and not S.work:stop() do sleep(0.02) end
  if S.store then
    S.store:lease_release(S.name)
    S.store:worker_leaves(S.id)
  end
  S.over = true
end

function M.stop()
  if not S.stopping then
    S.stopping = true
    spawn(leave)
  end
  return S.over == true
end

function M.status()
  local work = S.work
  return { worker = S.id, state = S.id and status() or "waiting for PostgreSQL", coordinates = S.coordinator ~= nil,
    jobs = S.coordinator and S.coordinator.count or nil, tasks_done = work and work.done or nil,
    tasks_failed = work and work.failures or nil, records = work and work.records or nil,
    batch = S.batch and S.batch.batch or nil, memory_mb = S.batch and S.batch.memory_mb or nil,
    memory_peak_mb = S.batch and S.batch.peak_mb or nil }
end

function M.metrics()
  local work = S.work
  if not work then return {} end
  return {
    { name = "chromux_sync_tasks_total", help = "Sync tasks that this worker completed", type = "counter",
      value = work.done },
    { name = "chromux_sync_records_total", help = "Records that this worker copied or compared", type = "counter",
      value = work.records },
    { name = "chromux_sync_memory_peak_bytes", help = "Most memory that this worker has used", type = "gauge",
      value = S.batch.peak_mb * 1024 * 1024 },
  }
end

return M
