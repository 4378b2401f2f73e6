-- monitor.lua: the engine of the monitor (core/engine.h): what each Chroma server of this host uses, and what this
-- process does, goes to PostgreSQL every MONITOR_INTERVAL, and advice.lua judges it.
--
-- samples.lua measures, monitor_store.lua writes, sizes.lua counts vectors. Measuring never waits for anything, so it
-- goes on while PostgreSQL is away.
local usage = require("chromux.usage")
local courier = require("lb.courier")
local process = require("lb.process")
local Schema = require("lb.schema")
local Samples = require("lb.samples")
local Store = require("lb.monitor_store")
local Advice = require("lb.advice")
local Sizes = require("lb.sizes")
local Signal = require("lb.signal")
local tripped = require("lb.tripped")

local M = {}

local OLD_EVERY = 600    -- seconds between two looks for what is kept no longer
local TRIPPED_EVERY = 1  -- seconds between looks at this process's policies
local TOTALS_EVERY = 60  -- seconds between two sums over all collections
local RETRY = 1          -- seconds until PostgreSQL is tried again, doubled up to RETRY_MOST
local RETRY_MOST = 5

local S      -- of the engine that runs
local ending -- it was told to stop; "over": all is written

-- ---- measuring -------------------------------------------------------------------------------------------

local function health_rows(nodes)
  local rows = {}
  for _, n in ipairs(nodes) do
    if n.last_check > 0 and S.checked[n.name] ~= n.last_check then
      S.checked[n.name] = n.last_check
      local healthy = n.health == "up"
      rows[#rows + 1] = { name = n.name, url = n.url, healthy = healthy, at = n.last_check,
        ms = n.probe_ms > 0 and n.probe_ms or nil,
        error = not healthy and n.last_error ~= "" and n.last_error:gsub("[^\32-\126]", "?") or nil }
    end
  end
  return rows
end

local function add_totals(row)
  local totals = S.totals
  if not totals then return end
  row.active_collections, row.avg_sync_time_seconds = totals.collections, totals.seconds
  row.total_documents_synced = totals.documents[row.instance] or 0
end

local function take()
  if not S then return end
  local nodes = usage.nodes()
  local rows = S.samples:take(courier.boottime(), nodes)
  for _, row in ipairs(rows) do
    add_totals(row)
    row.vectors = S.sizes:of(row.instance).vectors
    S.latest[row.instance] = row
  end
  S.store:keep(now(), rows, health_rows(nodes))
  S.more:fire()
end

-- Ticks keep their distance whatever a tick takes and whatever the clock on the wall does; missed ones are not made up.
local function measure(life)
  local due = courier.boottime()
  while S == life do
    spawn(take):wait() -- an error costs this tick
    local t = courier.boottime()
    due = math.max(due + life.settings.MONITOR_INTERVAL, t + 0.01)
    sleep(due - t)
  end
end

-- ---- writing ---------------------------------------------------------------------------------------------

local function write(life)
  local wait = RETRY
  while not Schema.migrate(life.conn) do sleep(RETRY) end
  life.migrated = true
  while S == life do
    if #life.store.waiting == 0 then
      life.more:wait()
    elseif select(2, spawn(Store.flush, life.store, life.settings.MONITOR_INTERVAL):wait()) == true then
      wait = RETRY
    else
      sleep(wait)
      wait = math.min(wait * 2, RETRY_MOST)
    end
  end
end

-- ---- what is done now and then -----------------------------------------------------------------------------

local function every(life, seconds, fn)
  spawn(function()
    while S == life do
      local can = life.migrated and not life.store.away
      if can then spawn(fn, life):wait() end
      sleep(not can and RETRY or type(seconds) == "function" and seconds(life) or seconds)
    end
  end)
end

function M.start(settings)
  local conn = pg.connection("default")
  local host, name = process.host(), process.name()
  S = { settings = settings, conn = conn, host = host, name = name, samples = Samples.new(), latest = {}, checked = {},
    store = Store.new(conn, name, host), more = Signal.new() }
  S.sizes = Sizes.new(conn)
  S.advice = Advice.new(S)
  spawn(measure, S)
  spawn(write, S)
  every(S, OLD_EVERY, function(life) life.store:forget_old(life.settings) end)
  every(S, TOTALS_EVERY, function(life) life.totals = life.store:totals() or life.totals end)
  every(S, function(life) return life.advice:pause() end, function(life) life.advice:look() end)
  every(S, TRIPPED_EVERY, function() tripped.look("monitor", "upgrade.lua") end) -- of that one advice.lua tells
  every(S, 10, function(life) life.sizes:look(life.samples:here()) end)
  return true
end

function M.reload(settings) S.settings = settings end

-- true once what was measured is written, or cannot be.
function M.stop()
  local life = S
  if life then
    S, ending = nil, "on its way"
    spawn(function()
      if life.migrated and life.store:flush(life.settings.MONITOR_INTERVAL) then life.store:farewell() end
      ending = "over"
    end)
  end
  return ending ~= "on its way"
end

-- Pages are the balancer's, which reads what was written (resources.lua).
function M.status() return {} end

function M.metrics() return {} end

return M
