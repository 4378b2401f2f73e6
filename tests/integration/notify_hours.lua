-- Three days of what is told, in seconds: the real teller, the advice on what the monitor samples, policies and
-- database with a clock that is wound on by hand.
-- Run by notify_test.c with an empty DATABASE_URL; exits 1 with what is wrong.
local Book = require("lb.notify_book")
local Store = require("lb.notify_store")
local Sinks = require("lb.notify_sinks")
local Teller = require("lb.notify_teller")
local contract = require("lb.contract")
local kit = require("lb.testkit")
local notices = require("lb.notices")
local schema = require("lb.schema")

local MINUTE, HOUR = 60, 3600
local START = math.floor(now())
local T
local conn = assert(pg.connection("default"))

local function expect(fine, ...)
  if not fine then error(string.format(...), 2) end
end

-- ---- the parts --------------------------------------------------------------------------------------------

local decide = kit.load("policies/notify.lua", { settings = {} }).decide
local advise = kit.load("policies/upgrade.lua", { settings = {} }).advise
package.loaded["chromux.policy"] = { call = function(_, window) return advise(window) end } -- for lb.advice
local format = kit.load("policies/slack.lua", { settings = { DEPLOYMENT_NAME = "x", PUBLIC_URL = "" } }).format

local sent -- {{at= hours since the start, kind=, key=}, ...}
local sinks = Sinks.new { secrets = { SLACK_WEBHOOK_URL = "http://hook" }, deployment = "x", call = function(_, e)
  return format(e)
end, fetch = function(r)
  local why = contract.check("slack.format", json.decode(r.body))
  expect(not why, "a payload: %s", why)
  return { status = 200, headers = {}, body = "ok" }
end }
local sink = setmetatable({}, { __index = sinks })
function sink.send(_, name, m, events)
  for _, e in ipairs(events) do sent[#sent + 1] = { at = (T - START) / HOUR, kind = e.kind, key = e.key } end
  return sinks:send(name, m, events)
end

local function real_policy(_, event, history)
  local fine, why = contract.fits("event", event)
  expect(fine, "%s", why)
  fine, why = contract.fits("sent", history)
  expect(fine, "%s", why)
  return decide(event, history)
end

local serial = 0
local function new_teller(call, fault)
  serial = serial + 1
  local clock = function() return T end
  local teller = Teller.new { now = clock, store = Store.new(conn, "teller " .. serial, clock), sinks = sink,
    call = call, may = function() return true end, dead = function() return true end, fault = fault or function() end }
  teller:turn()
  expect(teller.leased, "the lease is not taken")
  return teller
end

-- ---- time -------------------------------------------------------------------------------------------------

local teller
local function work()
  teller.poked = true
  teller:turn()
  while teller:deliver("slack") do teller:turn() end
end

-- Until then everything is done when its time has come.
local function wind_to(t)
  work()
  while true do
    local at = math.max(teller.book:next_at() or t, T + 0.5)
    if at > t then break end
    T = at
    work()
  end
  T = math.max(T, t)
end

-- As this balancer raises one, or another process by its row.
local function raise(e)
  e.at = T
  if e.elsewhere then
    local s = notices.insert(notices.make(e))
    assert(conn:query(unpack(s, 1, 10)))
  else
    notices.raise(e)
  end
  work()
end

-- ---- what happens -----------------------------------------------------------------------------------------

local function at(list, hour, what) list[#list + 1] = { at = START + hour * HOUR, order = #list, what = what } end

local function outage(list, key, from, to)
  at(list, from, function()
    raise { kind = "server_down", key = key, title = "down", fields = { { "instance", key } } }
  end)
  at(list, to, function() raise { kind = "server_up", key = key, title = "up" } end)
end

local function silence(list, from, to)
  at(list, from, function()
    assert(conn:query("INSERT INTO notify_mutes (what, until) VALUES ('*', to_timestamp($1))", START + to * HOUR))
  end)
end

local function advice(list, hour, kind, urgency)
  at(list, hour, function()
    raise { kind = kind, key = "recommendation/a/memory", urgency = urgency, title = "memory", elsewhere = true,
      fields = { { "instance", "a" }, { "type", "memory" }, { "current_usage", 88.5 }, { "estimated_monthly_cost", 21 },
        { "recommended_tier", "standard" }, { "reason", "memory over 85 %" } } }
  end)
end

local function three_days()
  local list = {}
  outage(list, "server/sustained", 1, 10.25)
  for i = 0, 35 do -- five minutes down, five minutes up, for six hours
    outage(list, "server/flapping", 12 + i / 6, 12 + i / 6 + 1 / 12)
  end
  advice(list, 20, "recommendation_opened", "medium")
  advice(list, 26, "recommendation_closed", "low")
  advice(list, 27, "recommendation_opened", "medium") -- again within a day: waits for its end
  advice(list, 46, "recommendation_raised", "high")
  advice(list, 71, "recommendation_closed", "low")
  silence(list, 30, 32)
  outage(list, "server/short", 30.5, 31.5)
  outage(list, "server/long", 31, 33)
  outage(list, "server/known", 29.5, 31)
  at(list, 72, function() end)
  table.sort(list, function(a, b) return a.at < b.at or (a.at == b.at and a.order < b.order) end)
  return list
end

local function play(call, restarts)
  assert(conn:query("TRUNCATE notify_events, notify_messages, notify_sent, notify_mutes"))
  sent, T = {}, START
  teller = new_teller(call)
  local next_restart = START + 0.4 * HOUR
  for _, step in ipairs(three_days()) do
    while restarts and next_restart < step.at do
      wind_to(next_restart)
      teller = new_teller(call) -- the old one is gone with all it had in memory
      next_restart = next_restart + 1.7 * HOUR
    end
    wind_to(step.at)
    step.what()
  end
  return sent
end

-- ---- what is to be told -----------------------------------------------------------------------------------

local function of(list, key, kind)
  local hours = {}
  for _, m in ipairs(list) do
    if m.key == key and (not kind or m.kind == kind) then hours[#hours + 1] = m.at end
  end
  return hours
end

-- The hours of these messages are those, give or take the seconds for gathering and reminding.
local function check_hours(list, key, kind, wanted)
  local hours, text = of(list, key, kind), {}
  for i, h in ipairs(hours) do text[i] = string.format("%.3f", h) end
  local said = string.format("%s of %s came at hours %s", kind, key, table.concat(text, " "))
  expect(#hours == #wanted, "%s: %d, not %d", said, #hours, #wanted)
  for i, h in ipairs(hours) do
    expect(h >= wanted[i] and h < wanted[i] + 1 * MINUTE / HOUR, "%s: %.3f is not %.3f", said, h, wanted[i])
  end
end

local function check_real(list)
  check_hours(list, "server/sustained", "server_down", { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 })
  check_hours(list, "server/sustained", "server_up", { 10.25 })
  -- Three times at once; then it flaps, and is told when an hour is over since the last and it is down just then.
  local down = of(list, "server/flapping", "server_down")
  check_hours(list, "server/flapping", "server_down", { 12, 12 + 1 / 6, 12 + 2 / 6, 13 + 2 / 6, 14 + 2 / 6, 15 + 2 / 6,
    16 + 2 / 6, 17 + 2 / 6 })
  expect(#of(list, "server/flapping", "server_up") == #down, "each of %d outages that are told has its end", #down)
  check_hours(list, "recommendation/a/memory", "recommendation_opened", { 20, 44 })
  check_hours(list, "recommendation/a/memory", "recommendation_raised", { 46, 70 })
  check_hours(list, "recommendation/a/memory", "recommendation_closed", { 26, 71 })
  check_hours(list, "server/short", "server_down", {})
  check_hours(list, "server/short", "server_up", {})
  check_hours(list, "server/long", "server_down", { 32 })
  check_hours(list, "server/long", "server_up", { 33 })
  check_hours(list, "server/known", "server_down", { 29.5 })
  check_hours(list, "server/known", "server_up", { 32 })
end

-- Without policies: at once, then at most hourly, always the end.
local function check_fallback(list)
  local last = -1
  for _, h in ipairs(of(list, "server/flapping", "server_down")) do
    expect(h - last >= 1, "told at %.3f, after %.3f", h, last)
    last = h
  end
  expect(#of(list, "server/flapping", "server_down") >= 4, "told too seldom")
  expect(#of(list, "server/flapping", "server_up") == #of(list, "server/flapping", "server_down"), "ends")
  check_hours(list, "recommendation/a/memory", "recommendation_opened", { 20, 44 })
  check_hours(list, "server/sustained", "server_down", { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 })
end

local function check_same(a, b)
  expect(#a == #b, "with restarts there are %d messages, without %d", #b, #a)
  for i, m in ipairs(a) do
    expect(m.kind == b[i].kind and m.key == b[i].key and math.abs(m.at - b[i].at) < MINUTE / HOUR,
      "message %d: %s %s at %.3f, with restarts %s %s at %.3f", i, m.kind, m.key, m.at, b[i].kind, b[i].key, b[i].at)
  end
end

-- ---- load that rises and flaps ------------------------------------------------------------------------------

local STEP = 300 -- seconds between samples

-- Percent of the hour: memory grows by half a point an hour until somebody does something, processors are busy every
-- other hour for half a day and once more, the disk is nearly full for sixty hours.
local function memory(h) return h < 70 and 60 + 0.55 * h or 60 end
local function cpu(h) return ((h >= 2 and h < 12) or (h >= 30 and h < 31)) and h % 2 < 1 and 90 or 70 end
local function disk(h) return h < 60 and 92 or 40 end

local function sample(monitor)
  local h = (T - START) / HOUR
  local s = { at = T, memory_percent = memory(h), cpu_percent = cpu(h), disk_percent = disk(h), memory_usage_mb = 500,
    memory_limit_mb = 1000, cpu_cores = 1, disk_free_mb = 1000, disk_total_mb = 10000 }
  monitor.latest.a = s
  assert(conn:query([[INSERT INTO performance_metrics (metric_timestamp, host, instance, memory_percent, cpu_percent,
      disk_percent) VALUES (to_timestamp($1), 'here', 'a', $2, $3, $4)]], T, s.memory_percent, s.cpu_percent,
    s.disk_percent))
end

local function sampled_days(restarts)
  assert(conn:query([[TRUNCATE notify_events, notify_messages, notify_sent, notify_mutes, performance_metrics,
      upgrade_recommendations, monitor_instances]]))
  sent, T = {}, START
  teller = new_teller(real_policy)
  local monitor = { conn = conn, host = "here", name = "monitor", latest = {},
    settings = { MONITOR_INTERVAL = STEP, MONITOR_WINDOW = 10 * STEP, instances = { { name = "a" } } },
    samples = { here = function() return { "a" } end }, sizes = { of = function() return {} end } }
  local look = require("lb.advice").new(monitor)
  for n = 1, 72 * HOUR / STEP do
    wind_to(START + n * STEP)
    sample(monitor)
    look:look()
    work()
    if restarts and n % 47 == 0 then teller = new_teller(real_policy) end
  end
  return sent
end

-- By hand, from the rules of upgrade.lua and a window of ten samples: memory is at 85 and 95 % at hours 45.45 and
-- 63.64, its mean 22.5 minutes later; what is open is closed once the mean is five points below the step.
local function check_sampled(list)
  local key = "recommendation/a/"
  check_hours(list, key .. "memory", "recommendation_opened", { 45 + 10 / 12 })
  check_hours(list, key .. "memory", "recommendation_raised", { 64 + 1 / 12 })
  check_hours(list, key .. "memory", "recommendation_closed", { 70 + 4 / 12 })
  check_hours(list, key .. "cpu", "recommendation_opened", { 2 + 5 / 12, 30 + 5 / 12 })
  check_hours(list, key .. "cpu", "recommendation_closed", { 3 + 7 / 12, 31 + 7 / 12 })
  check_hours(list, key .. "disk", "recommendation_opened", { 5 / 12, 24 + 5 / 12, 48 + 5 / 12 })
  check_hours(list, key .. "disk", "recommendation_closed", { 60 + 3 / 12 })
  check_hours(list, "disk/a", "disk_above", { 1 / 12, 24 + 1 / 12, 48 + 1 / 12 })
  check_hours(list, "disk/a", "disk_below", { 60 })
  local opened = conn:query("SELECT count(*) AS n FROM upgrade_recommendations WHERE recommendation_type = 'cpu'")[1].n
  expect(opened == 6, "cpu was recommended %d times, not 6, of which two are told", opened)
end

-- ---- a sender that dies at each step ------------------------------------------------------------------------

local function die_at(point)
  assert(conn:query("TRUNCATE notify_events, notify_messages, notify_sent, notify_mutes"))
  sent, T = {}, START
  local died = false
  teller = new_teller(real_policy, function(name)
    if name == point and not died then
      died = true
      error("died", 0)
    end
  end)
  raise { kind = "server_down", key = "server/x", title = "down" }
  local fine = pcall(wind_to, START + 5)
  expect(died and not fine, "it did not die at %s", point)
  teller = new_teller(real_policy)
  wind_to(START + 20)
  local times = #of(sent, "server/x", "server_down")
  local wanted = point == "notify.answered" and 2 or 1
  expect(times == wanted, "dead at %s: sent %d times, not %d", point, times, wanted)
  raise { kind = "server_up", key = "server/x", title = "up" }
  wind_to(START + 40)
  expect(#of(sent, "server/x", "server_up") == 1, "the end is told once")
  local open = conn:query("SELECT count(*) AS n FROM notify_events WHERE open OR state <> 'told'")
  expect(open[1].n == 0, "%d events are left", open[1].n)
end

-- A sender that dies while it gathers: what was decided already is told by the next one, at once.
local function die_gathering()
  assert(conn:query("TRUNCATE notify_events, notify_messages, notify_sent, notify_mutes"))
  sent, T = {}, START
  teller = new_teller(real_policy)
  for i, kind in ipairs { "server_down", "server_up" } do
    raise { kind = kind, key = "server/x", title = kind }
    expect(#teller.book.ready == 1, "%s is not gathered", kind)
    teller = new_teller(real_policy)
    wind_to(START + 20 * i)
    local times = of(sent, "server/x", kind)
    expect(#times == 1, "%s was told %d times, not once, after a death while it was gathered", kind, #times)
  end
  local open = conn:query("SELECT count(*) AS n FROM notify_events WHERE open OR state NOT IN ('told')")
  expect(open[1].n == 0, "%d events are left", open[1].n)
end

-- ---- all of it ----------------------------------------------------------------------------------------------

assert(schema.migrate(conn))
for _, point in ipairs { "notify.before_claim", "notify.before_send", "notify.answered", "notify.recorded" } do
  die_at(point)
end
die_gathering()
local plain = play(real_policy, false)
check_real(plain)
check_same(plain, play(real_policy, true))
check_fallback(play(function() return nil, "no such file" end, false))
local real_now = now
rawset(_G, "now", function() return T end)
local sampled = sampled_days(false)
check_sampled(sampled)
check_same(sampled, sampled_days(true))
rawset(_G, "now", real_now)
expect(Book.GATHER == 2, "the hours above are right for 2 s")
print(#plain .. " and " .. #sampled .. " messages")
return 0
