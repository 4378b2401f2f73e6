-- What the monitor keeps while PostgreSQL is away (lua/lb/monitor_store.lua), what it measures (samples.lua) and what
-- it makes of advice (advice.lua), with stand-ins for PostgreSQL, the kernel and the policy.
local GLOBALS = { "now", "sleep", "log", "json", "pg" }
local STAND_INS = { "chromux.usage", "chromux.policy", "lb.notices" }

local json = require("cjson.safe")

local t, saved, said, usage, policy, told

local function set_up()
  saved, said, told, t = {}, {}, {}, 1000
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  for _, name in ipairs(STAND_INS) do saved[name] = package.loaded[name] end
  for _, name in ipairs { "lb.samples", "lb.advice" } do package.loaded[name] = nil end
  local function note(event, text) said[#said + 1] = event .. ": " .. text end
  rawset(_G, "now", function() return t end)
  rawset(_G, "sleep", function(s) t = t + s end)
  rawset(_G, "log", { info = note, warn = note, error = note })
  rawset(_G, "json", json)
  usage = { self = 1, pids = {}, of_pid = {}, found = 0 }
  usage.of = function(pid) return usage.of_pid[pid] end
  usage.find = function(names)
    local pids, why = {}, {}
    usage.found = usage.found + 1
    for _, name in ipairs(names) do
      pids[name] = usage.pids[name]
      if not pids[name] then why[name] = usage.why or "silent" end
    end
    return pids, why
  end
  usage.folder = function() return nil end
  policy = { call = function() return {} end }
  package.loaded["chromux.usage"], package.loaded["chromux.policy"] = usage, policy
  package.loaded["lb.notices"] = { make = function(e) return e end, insert = function(e)
    told[#told + 1] = e
    return { "notice", e }
  end, raise = function(e) told[#told + 1] = e end }
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
  for _, name in ipairs(STAND_INS) do package.loaded[name] = saved[name] end
  for _, name in ipairs { "lb.samples", "lb.advice" } do package.loaded[name] = nil end
end

describe("samples that wait for PostgreSQL", function()
  local Store, conn, store

  before_each(function()
    set_up()
    Store = require("lb.monitor_store")
    conn = { sent = {}, answer = true }
    function conn.transaction(self, statements)
      self.sent[#self.sent + 1] = statements
      if self.answer == true then return {} end
      return nil, "gone", self.answer
    end
    store = Store.new(conn, "m", "h")
  end)
  after_each(tear_down)

  local function keep(n)
    for _ = 1, n do
      t = t + 1
      store:keep(t, { { instance = "a", memory_percent = 50 } }, {})
    end
  end

  local function written()
    local out = {}
    for _, statements in ipairs(conn.sent) do
      for _, row in ipairs(json.decode(statements[2][2])) do out[#out + 1] = row.at end
    end
    return out
  end

  it("are written in order, all that waited", function()
    keep(3)
    assert.is_true(store:flush(1))
    assert.are.same({ 1001, 1002, 1003 }, written())
    assert.are.equal(0, #store.waiting)
    assert.are.equal(0, store.bytes)
  end)

  it("stay while PostgreSQL is away, and are said once", function()
    conn.answer = ""
    keep(3)
    assert.is_nil(store:flush(1))
    assert.is_nil(store:flush(1))
    assert.are.equal(3, #store.waiting)
    assert.are.equal(1, #said)
    conn.answer, conn.sent = true, {}
    assert.is_true(store:flush(1))
    assert.are.same({ 1001, 1002, 1003 }, written())
    assert.are.equal(2, #said)
  end)

  it("are thinned out evenly when they are too many", function()
    conn.answer = ""
    keep(100000)
    assert.is_true(store.bytes <= 1024 * 1024)
    assert.is_true(#store.waiting > 5000)
    assert.are.equal(100000, #store.waiting + store.let_go)
    conn.answer = true
    store:flush(1)
    local all = written()
    assert.are.equal(1001, all[1])
    assert.is_true(all[#all] >= 100990)
    for i = 2, #all do assert.is_true(all[i] > all[i - 1] and all[i] - all[i - 1] <= 16) end
    for _, statements in ipairs(conn.sent) do assert.is_true(#statements[2][2] <= 300 * 1024) end
  end)

  it("are given up when PostgreSQL refuses what they say", function()
    conn.answer = "22003"
    keep(2)
    assert.is_true(store:flush(1))
    assert.are.equal(0, #store.waiting)
    assert.are.equal(2, store.let_go)
    assert.is_truthy(said[1]:find("samples_refused", 1, true))
  end)
end)

describe("a sample", function()
  local samples
  local node = { name = "a", url = "http://a", health = "up" }

  local function process(cpu, at, started)
    return { at = at, started = started or 5, cpu_seconds = cpu, rss = 100 * 1048576, private = 1048576, cores = 2,
      memory_used = 50 * 1048576, memory_limit = 200 * 1048576, open_files = 10 }
  end

  before_each(function()
    set_up()
    usage.of_pid[1] = process(0, 1)
    samples = require("lb.samples").new()
  end)
  after_each(tear_down)

  local function take(at)
    local rows = samples:take(at, { node })
    return rows[1].instance == "a" and rows[1] or nil
  end

  it("says memory of the limit and CPU of what may be used", function()
    usage.pids.a, usage.of_pid[7] = 7, process(10, 100)
    local row = take(100)
    assert.are.equal(25, row.memory_percent)
    assert.are.equal(100, row.rss_mb)
    assert.is_nil(row.cpu_percent)
    usage.of_pid[7] = process(11, 101)
    assert.are.equal(50, take(101).cpu_percent)
    assert.are.equal(1, usage.found)
  end)

  it("is not taken of another process with the same number", function()
    usage.pids.a, usage.of_pid[7] = 7, process(10, 100)
    take(100)
    usage.of_pid[7], usage.pids.a = process(0, 101, 6), nil
    assert.is_nil(take(101))
    assert.is_nil(take(102))
    assert.are.equal(2, usage.found)
  end)

  it("is searched for ever more seldom, and at once when the server is well again", function()
    for at = 100, 219 do take(at) end
    assert.is_true(usage.found >= 4 and usage.found <= 6)
    local before = usage.found
    node.health = "down"
    take(220)
    assert.are.equal(before + 1, usage.found)
    node.health, usage.pids.a, usage.of_pid[7] = "up", 7, process(1, 221)
    assert.is_truthy(take(221))
  end)

  it("of another host's server is left to the monitor there, which is said once", function()
    usage.why = "elsewhere"
    for at = 100, 300 do take(at) end
    assert.are.equal(1, #said)
    assert.is_truthy(said[1]:find("another host", 1, true))
  end)
end)

describe("advice", function()
  local Advice, monitor, advice, conn, open, fits

  before_each(function()
    set_up()
    Advice = require("lb.advice")
    fits = require("lb.contract").fits
    open = {}
    conn = { mine = true, sent = {}, retired = {}, gone = {} }
    function conn.query(_, sql, ...)
      if sql:find("FROM journal_servers", 1, true) then return conn.retired end
      if sql:find("UNION SELECT instance", 1, true) then
        conn.wanted = ...
        return conn.gone
      end
      if sql:find("FROM upgrade_recommendations", 1, true) then return open end
      if sql:find("FROM notify_events", 1, true) then return {} end
      if sql:find("INSERT INTO monitor_instances", 1, true) then
        return conn.mine and { { instance = "a", disk_above = conn.disk_above or false } } or {}
      end
      if sql:find("regr_slope", 1, true) then return { { instance = "a", seconds = 7200, memory = 2 } } end
      return { { instance = "a", samples = 20, seconds = 570, memory_mean = 90, memory_p95 = 91, memory_max = 92,
        disk_mean = 50, disk_p95 = 50, disk_max = 50 } }
    end
    function conn.transaction(_, statements)
      conn.sent[#conn.sent + 1] = statements
      return {}
    end
    monitor = { conn = conn, host = "h", name = "m",
      settings = { MONITOR_INTERVAL = 30, MONITOR_WINDOW = 600, instances = { { name = "a" } } },
      samples = { here = function() return { "a" } end },
      sizes = { of = function() return { vectors = 10, dimensions = 3, mb = 1 } end },
      latest = { a = { at = t, memory_percent = 89, memory_usage_mb = 89, memory_limit_mb = 100, cpu_cores = 2,
        disk_percent = 50, disk_free_mb = 5, disk_total_mb = 10 } } }
    advice = Advice.new(monitor)
  end)
  after_each(tear_down)

  local function recommends(urgency)
    policy.call = function(name, window)
      policy.asked, policy.window = name, window
      return urgency and { { type = "memory", urgency = urgency, current_usage = 89, recommended_tier = "standard",
        estimated_monthly_cost = 21, reason = "memory at 90", value = 90 } } or {}
    end
  end

  local function kinds()
    local out = {}
    for i, e in ipairs(told) do out[i] = e.kind end
    return out
  end

  it("gives the policy a window as the contract says", function()
    recommends(nil)
    open = { { id = 1, instance = "a", type = "memory", urgency = "medium", value = 88, since = 900, reason = "r",
      current_usage = 88 } }
    advice:look()
    assert.are.equal("upgrade.advise", policy.asked)
    assert.is_true(fits("window", policy.window))
    assert.is_true(fits("memory", policy.window.memory))
    assert.is_true(fits("disk", policy.window.disk))
    assert.is_true(fits("open", policy.window.open.memory))
    assert.is_nil(policy.window.cpu) -- not measured yet
    assert.are.equal(2, policy.window.memory.trend)
  end)

  it("opens, goes on, rises and closes with one notice each", function()
    recommends("medium")
    advice:look()
    assert.are.same({ "recommendation_opened" }, kinds())
    open = { { id = 1, instance = "a", type = "memory", urgency = "medium", value = 88, since = 900, reason = "r",
      current_usage = 88 } }
    advice:look()
    assert.are.equal(1, #told)
    recommends("high")
    advice:look()
    assert.are.same({ "recommendation_opened", "recommendation_raised" }, kinds())
    open[1].urgency = "high"
    recommends("medium")
    advice:look()
    assert.are.equal(2, #told)
    recommends(nil)
    advice:look()
    assert.are.same({ "recommendation_opened", "recommendation_raised", "recommendation_closed" }, kinds())
    for _, e in ipairs(told) do assert.are.equal("recommendation/a/memory", e.key) end
  end)

  it("checks in each transaction that this monitor still decides", function()
    recommends("medium")
    advice:look()
    assert.are.equal(1, #conn.sent)
    assert.is_truthy(conn.sent[1][1][1]:find("1 / count", 1, true))
    conn.mine = false
    advice:look()
    assert.are.equal(1, #conn.sent)
  end)

  it("changes nothing while the policy fails or the server is not sampled", function()
    open = { { id = 1, instance = "a", type = "memory", urgency = "medium", value = 88, since = 900, reason = "r",
      current_usage = 88, host = "h" } }
    policy.call = function() return nil, "tripped" end
    advice:look()
    recommends(nil)
    t = t + 1000
    advice:look()
    assert.are.equal(0, #conn.sent)
  end)

  it("tells of a policy that fails at each look, and when it does no more", function()
    local query, there = conn.query, {}
    function conn.query(self, sql, key)
      if not sql:find("notify_events", 1, true) then return query(self, sql) end
      assert.are.equal("policy/upgrade.lua on h", key)
      return conn.away and nil or there
    end
    local function fails(why)
      policy.call = function() return nil, why end
      advice:look()
    end
    for _ = 1, 5 do fails("upgrade.lua is missing") end
    fails("upgrade.lua:7: oops")
    recommends(nil)
    advice:look()
    for _ = 1, 2 do fails("upgrade.lua:7: oops") end
    assert.are.same({}, kinds())
    conn.away = true
    for _ = 1, 2 do fails("upgrade.lua:7: oops") end
    conn.away = false
    for _ = 1, 20 do fails("upgrade.lua:7: oops") end
    assert.are.same({ "policy_tripped" }, kinds())
    assert.are.same({ "cause", "upgrade.lua:7: oops" }, told[1].fields[2])
    there = { {} }
    advice = Advice.new(monitor) -- it has told already
    for _ = 1, 20 do fails("upgrade.lua:7: oops") end
    recommends(nil)
    for _ = 1, 3 do advice:look() end
    assert.are.same({ "policy_tripped", "policy_back" }, kinds())
  end)

  it("tells of a policy that fails about one server of several", function()
    local query, rows = conn.query, {}
    for i, name in ipairs { "a", "b" } do
      rows[i] = { instance = name, samples = 20, seconds = 570, memory_mean = 90, memory_p95 = 91, memory_max = 92 }
    end
    function conn.query(self, sql, ...)
      if sql:find("INSERT INTO monitor_instances", 1, true) then return { { instance = "a" }, { instance = "b" } } end
      if sql:find("percentile_cont", 1, true) then return rows end
      return query(self, sql, ...)
    end
    monitor.settings.instances = { { name = "a" }, { name = "b" } }
    monitor.samples.here = function() return { "a", "b" } end
    monitor.latest.b = monitor.latest.a
    policy.call = function(_, window)
      if window.instance == "a" then return nil, "upgrade.lua:7: oops" end
      return {}
    end
    for _ = 1, 5 do advice:look() end
    assert.are.same({ "policy_tripped" }, kinds())
  end)

  it("closes nothing that it cannot measure", function()
    for i, kind in ipairs { "cpu", "memory", "licences" } do
      open[i] = { id = i, instance = "a", type = kind, urgency = "medium", value = 88, since = 900, reason = "r",
        current_usage = 88, host = "h" }
    end
    recommends(nil)
    advice:look() -- there is no figure of the CPU
    table.sort(told, function(a, b) return a.key < b.key end)
    assert.are.same({ "recommendation_closed", "recommendation_closed" }, kinds())
    assert.are.equal("recommendation/a/licences", told[1].key)
    assert.are.equal("recommendation/a/memory", told[2].key)
  end)

  it("looks at ten samples at least", function()
    recommends(nil)
    local query, since = conn.query, {}
    function conn.query(self, sql, ...)
      if sql:find("percentile_cont", 1, true) then since[1] = t - select(2, ...) end
      if sql:find("regr_slope", 1, true) then since[2] = t - select(2, ...) end
      return query(self, sql, ...)
    end
    advice:look()
    assert.are.same({ 600, 36 * 600 }, since)
    monitor.settings.MONITOR_INTERVAL, t = 300, t + 100
    monitor.latest.a.at = t
    advice:look()
    assert.are.same({ 3000, 36 * 3000 }, since)
    assert.are.equal(300, advice:pause())
  end)

  it("ends what is open of an instance that was taken out or retired, and no other's", function()
    open = { { id = 1, instance = "gone", type = "cpu", urgency = "medium", value = 88, since = 900, reason = "r",
      current_usage = 88, host = "elsewhere" },
      { id = 2, instance = "other", type = "cpu", urgency = "medium", value = 88, since = 900, reason = "r",
        current_usage = 88, host = "elsewhere" } }
    conn.gone = { { instance = "gone", disk_above = true }, { instance = "quiet", disk_above = false } }
    recommends("high")
    conn.retired = { { instance = "a" } }
    advice:look()
    assert.equals("{}", conn.wanted)
    assert.are.same({ "recommendation_closed", "disk_below" }, kinds())
    assert.are.equal("recommendation/gone/cpu", told[1].key)
    assert.are.equal("disk/gone", told[2].key)
    assert.are.equal(2, #conn.sent)
    assert.is_truthy(conn.sent[1][1][1]:find("resolved_at IS NULL", 1, true)) -- another monitor may be first
    for _, sent in ipairs(conn.sent) do assert.is_truthy(sent[#sent][1]:find("^DELETE FROM monitor_instances")) end
    conn.retired, conn.gone = {}, {}
    advice:look()
    assert.equals("{a}", conn.wanted)
    assert.are.equal("recommendation_opened", kinds()[3])
  end)

  it("tells of a disk that is nearly full at once, and of its end with some room", function()
    recommends(nil)
    monitor.latest.a.disk_percent = 91
    advice:look()
    conn.disk_above = true
    monitor.latest.a.disk_percent = 86
    advice:look()
    monitor.latest.a.disk_percent = 84
    advice:look()
    assert.are.same({ "disk_above", "disk_below" }, kinds())
  end)
end)
