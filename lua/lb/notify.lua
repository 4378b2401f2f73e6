-- notify.lua: the balancer's engine (core/engine.h): tells people what happened. The work is notify_teller.lua's; here
-- it gets its clock, its policies and its place among several balancers: the holder of the journal's lease tells,
-- without DATABASE_URL the one there is.
local Roles = require("lb.roles")
local Sinks = require("lb.notify_sinks")
local Store = require("lb.notify_store")
local Teller = require("lb.notify_teller")
local Watch = require("lb.notify_watch")
local courier = require("lb.courier")
local figures = require("lb.figures")
local notices = require("lb.notices")
local process = require("lb.process")
local tripped = require("lb.tripped")
local copies = require("chromux.copies")
local policy = require("chromux.policy")

local M = {}

local TICK = 0.2  -- seconds between steps
local ALONE = 10  -- seconds after the start for which a balancer that never reached PostgreSQL tells nothing
local LISTED = 50 -- troubles on /status
local DRAIN = 15  -- seconds for what is under way, when stopping

local N -- this life: {settings=, teller=, busy={[sink]=true}, began=, stopping=, over=}

local function options(settings)
  return { secrets = settings.secrets, deployment = settings.DEPLOYMENT_NAME, public_url = settings.PUBLIC_URL,
    call = policy.call }
end

-- Nobody knows who holds the lease while PostgreSQL was never reached: whoever started then tells what it sees.
local function may(life)
  local J = Roles.state
  if not life.store or J.role == "holder" or J.phase == "restored" then return true end
  if life.store.last_ok == 0 and not J.context and courier.boottime() > life.began + ALONE then return "alone" end
  return false
end

local function deliver(life, sink)
  if life.busy[sink] then return end
  life.busy[sink] = true
  spawn(function()
    local ok, why = xpcall(function()
      while not life.stopping and life.teller:deliver(sink) do life.delivered = true end
    end, debug.traceback)
    if not ok then
      log.error("notify_failed", why)
      sleep(5)
    end
    life.busy[sink] = nil
  end)
end

local function run(life)
  local failed = 0
  while not life.stopping do
    local ok, why = xpcall(life.teller.turn, debug.traceback, life.teller)
    if not ok then
      log.error("notify_failed", why)
      failed = failed + 1
      sleep(math.min(failed, 30))
    end
    for _, sink in ipairs(life.teller.sinks:names()) do deliver(life, sink) end
    if life.teller.on then tripped.leave() elseif life.store then tripped.look("balancer") end
    sleep(TICK)
  end
  local till = now() + DRAIN
  while next(life.busy) and now() < till do sleep(0.02) end
  local ok, why = xpcall(life.teller.stop, debug.traceback, life.teller)
  if not ok then log.error("notify_failed", why) end
  life.over = true
end

function M.start(settings)
  local conn = pg.connection("default")
  local life = { settings = settings, busy = {}, began = courier.boottime() }
  N = life
  notices.source = "balancer"
  life.store = conn and Store.new(conn, process.name(), courier.boottime) or nil
  local watch = Watch.new { journal = Roles.state, nodes = courier.nodes, clock = courier.boottime,
    tripped = policy.tripped, settings = function() return life.settings end,
    figures = function() return figures.status(Roles.state) end }
  life.teller = Teller.new { now = now, store = life.store, sinks = Sinks.new(options(settings)), call = policy.call,
    may = function() return may(life) end, dead = process.dead, fault = copies.fault,
    watch = function(teller) watch:look(teller) end }
  if conn then
    conn:listen(notices.CHANNEL, function()
      if N then N.teller.poked = true end
    end)
  end
  spawn(run, life)
  return true
end

function M.reload(settings)
  N.settings = settings
  N.teller.sinks:configure(options(settings))
  N.teller:changed()
  return true
end

-- true when nothing is under way any more; asked again until then.
function M.stop()
  if not N then return true end
  N.stopping = true
  return N.over == true
end

-- ---- telling of itself -----------------------------------------------------------------------------------

local function sinks_status(teller)
  local out = {}
  for _, name in ipairs(teller.sinks:names()) do
    local s = teller.trouble[name] or { failures = 0, error = "" }
    local waiting, oldest = teller.book:waiting(name)
    out[#out + 1] = { sink = name, waiting = waiting, oldest = oldest or 0, failing = s.failures > 0
      or teller.book:story("messages", "messages/" .. name) ~= nil, failures = s.failures, last_error = s.error or "" }
  end
  return out
end

-- {teller=, queued=, held=, failing=, sinks={...}, open={...}, last={...}, silences={...}, dropped=}
function M.status()
  if not N then return {} end
  local teller, book = N.teller, N.teller.book
  local out = { teller = teller.on, recorded = teller.leased, queued = 0, held = 0, failing = false, last = book.last,
    sinks = sinks_status(teller), open = {}, silences = {}, dropped = notices.dropped + book.overflowed }
  for _, s in ipairs(out.sinks) do
    out.queued, out.failing = out.queued + s.waiting, out.failing or s.failing
  end
  for _, e in pairs(book.events) do
    if e.state == "held" then out.held = out.held + 1 end
  end
  for _, s in pairs(book.stories) do
    if #out.open == LISTED then break end
    out.open[#out.open + 1] = { kind = s.event.kind, key = s.event.key, urgency = s.event.urgency,
      title = s.event.title, since = s.since, told = s.known }
  end
  table.sort(out.open, function(a, b) return a.since < b.since end)
  for what, till in pairs(book.mutes) do out.silences[#out.silences + 1] = { what = what, ["until"] = till } end
  return out
end

function M.metrics()
  if not N then return {} end
  local teller, book, out = N.teller, N.teller.book, {}
  local function add(name, type, help, value, labels)
    out[#out + 1] = { name = "chromux_" .. name, type = type, help = help, value = value, labels = labels }
  end
  add("messages_teller", "gauge", "1 while this balancer is the one that tells people.", teller.on and 1 or 0)
  add("messages_sent_total", "counter", "Messages that a sink has taken.", book.counts.accepted)
  add("messages_refused_total", "counter", "Messages that no sink will get any more.", book.counts.refused)
  add("messages_retries_total", "counter", "Tries to send a message that failed.", book.counts.retries)
  add("messages_dropped_total", "counter", "Events that were not told: over before, overtaken, or as policies say.",
    book.counts.dropped)
  local stories = 0
  for _ in pairs(book.stories) do stories = stories + 1 end
  add("alerts_open", "gauge", "Troubles that go on.", stories)
  for i, s in ipairs(sinks_status(teller)) do
    add("messages_waiting", "gauge", i == 1 and "Messages that wait to be sent." or nil, s.waiting,
      'sink="' .. s.sink .. '"')
  end
  for i, s in ipairs(sinks_status(teller)) do
    add("messages_failing", "gauge", i == 1 and "1 while the sink does not take messages." or nil,
      s.failing and 1 or 0, 'sink="' .. s.sink .. '"')
  end
  return out
end

return M
