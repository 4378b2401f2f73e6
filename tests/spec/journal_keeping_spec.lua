-- What the journal keeps and tells of itself (lua/lb/trim.lua, figures.lua, events.lua, and whom lanes.lua follows
-- after a failed or skipped entry), with stand-ins for PostgreSQL, the clock and the servers.
local GLOBALS = { "now", "sleep", "spawn", "log", "pg", "json" }
local STAND_INS = { "chromux.api", "chromux.slice", "chromux.records" }

local t, saved, tasks

local function silent() end

local function set_up()
  saved, tasks, t = {}, {}, 1000
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  for _, name in ipairs(STAND_INS) do
    if not package.loaded[name] and not pcall(require, name) then package.loaded[name] = {} end
  end
  rawset(_G, "now", function() return t end)
  rawset(_G, "sleep", function(s) t = t + s end)
  rawset(_G, "spawn", function(fn, ...) tasks[#tasks + 1] = { fn, ... } end)
  rawset(_G, "log", { debug = silent, info = silent, warn = silent, error = silent })
  rawset(_G, "pg", { bytes = function(s) return { bytes = s } end })
  rawset(_G, "json", require("cjson.safe"))
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
end

local function run_tasks()
  local mine = tasks
  tasks = {}
  for _, task in ipairs(mine) do task[1](unpack(task, 2)) end
end

local function server(name)
  -- Its copies were found whole in its present life (lb/sound.lua).
  return { name = name, health = "up", note = "", retired = false, role = "replica", queue = {}, admitted = 1,
    sound = setmetatable({ life = 1 }, { __index = function() return true end }),
    usable = function(s) return s.health == "up" end, readable = function() return true end,
    run = function(_, fn) fn() end }
end

-- Answers every statement; answers[pattern] = fn(statement) -> rows. What was committed is in .statements.
local function store(answers)
  local s = { statements = {}, last_error = "", commits = 0, epoch = 7, reader = {} }
  function s.commit(_, statements)
    local out = {}
    for i, st in ipairs(statements) do
      s.statements[#s.statements + 1] = st
      out[i] = { affected = 1 }
      for pattern, fn in pairs(answers or {}) do
        if st[1]:find(pattern, 1, true) then out[i] = fn(st) end
      end
    end
    return out
  end
  function s.enqueue(_, statements, _, done) done(s:commit(statements)) end
  function s.healthy() return true end
  function s.trouble() return nil end
  function s.commit_ms() return 1.5, 4 end
  function s.table_size() return 4096 end
  -- Those that begin so, in order.
  function s.beginning(_, text)
    local out = {}
    for _, st in ipairs(s.statements) do
      if st[1]:find(text, 1, true) == 1 then out[#out + 1] = st end
    end
    return out
  end
  function s.count(_, pattern)
    local n = 0
    for _, st in ipairs(s.statements) do n = n + (st[1]:find(pattern, 1, true) and 1 or 0) end
    return n
  end
  return s
end

local function world(answers)
  local a, b = server("a"), server("b")
  local context = { settings = { JOURNAL_KEEP = 60, JOURNAL_KEEP_BYTES = 1e9, JOURNAL_MAX_BYTES = 2e9 },
    servers = { list = { a, b }, by_name = { a = a, b = b } }, store = store(answers), dead = false, holder = true,
    drives = true, trusted = true, memory = { used = 0, most = 1e9 }, fault = silent, answer = silent,
    calls = {}, copies = setmetatable({}, { __index = function() return silent end }) }
  context.counts = require("lb.figures").counts()
  context.events = require("lb.events").new(context)
  context.rebuilds = { give_up = silent }
  return context, a, b
end

-- A lane as of trim's and figures' concern.
local function lane(context, id, head, positions)
  local Lane = require("lb.lanes")
  local l = Lane.new(context, { id = id, logical = "L" .. id, tenant = "t", database = "d", name = "c" .. id,
    head = head })
  for instance, p in pairs(positions) do
    l:copy_add { instance = instance, server = context.servers.by_name[instance], physical = "", position = p }
  end
  return l
end

local function names(lanes)
  local n = { id = 0, head = 0, floor = 0, decided = 0, waiting_since = 0, order = {}, entries = {}, by_logical = {},
    copies = {} }
  for _, l in ipairs(lanes) do n.by_logical[l.logical] = l end
  function n.each_in() return lanes end
  return n
end

local function trimming(bytes_each)
  return { ["WITH part AS"] = function(st)
    local rows = st[4] - st[3]
    if st[5] < 16000000 then rows = math.min(rows, math.max(1, math.ceil(st[5] / bytes_each))) end
    return { { n = st[3] + rows, rows = rows, bytes = rows * bytes_each } }
  end }
end

describe("retention", function()
  before_each(set_up)
  after_each(tear_down)
  local Trim

  it("keeps what all have for JOURNAL_KEEP, and what one lacks for as long as it does", function()
    Trim = require("lb.trim")
    local context = world(trimming(100))
    local l = lane(context, 1, 10, { a = 10, b = 4 })
    local trim = Trim.new(context, names { l })
    trim.bytes = 1000
    trim:step()
    assert.equals(0, l.trimmed)
    t = t + 61
    trim:step()
    assert.equals(4, l.trimmed)
    assert.equals(600, trim.bytes)
    assert.equals(4, trim.trimmed)
    l.copies.b.p = 10
    trim:step()
    assert.equals(4, l.trimmed)
    t = t + 61
    trim:step()
    assert.equals(10, l.trimmed)
  end)

  it("is held back neither by a copy to be made anew nor by a retired instance, but by a pin", function()
    local context, _, b = world(trimming(100))
    context.settings.JOURNAL_KEEP = 0
    local first, second, third = lane(context, 1, 9, { a = 9, b = 2 }), lane(context, 2, 9, { a = 9, b = 9 }),
      lane(context, 3, 9, { a = 9 })
    first.copies.b.state = "rebuild"
    second.pins = { rebuild = 5 }
    Trim = require("lb.trim").new(context, names { first, second, third })
    Trim:step()
    assert.equals(9, first.trimmed)
    assert.equals(5, second.trimmed)
    local fourth = lane(context, 4, 9, { a = 9, b = 2 })
    b.retired = true
    Trim.names = names { fourth }
    Trim:step()
    assert.equals(9, fourth.trimmed)
  end)

  it("is held back by an instance that has yet to make the collection, but not when the journal is full", function()
    local context, a, b = world(trimming(100))
    context.settings.JOURNAL_KEEP = 0
    local l = lane(context, 1, 9, { a = 9 })
    local trim = require("lb.trim").new(context, names { l })
    trim.names.head, trim.names.order = 5, { { instance = "a", server = a, state = "ready", p = 5 },
      { instance = "b", server = b, state = "ready", p = 4 } }
    trim:step()
    assert.equals(0, l.trimmed)
    trim.full = true
    trim:step()
    assert.equals(9, l.trimmed)
    trim.full, l.trimmed, trim.names.order[2].p = false, 0, 5
    trim:step()
    assert.equals(9, l.trimmed)
  end)

  -- b has yet to make the first collection, and is behind in the second.
  local function full_world()
    local context, a, b = world(trimming(100))
    context.settings.JOURNAL_KEEP, context.settings.JOURNAL_KEEP_BYTES = 1e6, 300
    context.settings.JOURNAL_MAX_BYTES = 1000
    function context.rebuilds.give_up() context.gave_up = true end
    local first, second = lane(context, 1, 9, { a = 9 }), lane(context, 2, 2, { a = 2, b = 1 })
    local trim = require("lb.trim").new(context, names { first, second })
    trim.names.head, trim.names.order = 5, { { instance = "a", server = a, state = "ready", p = 5 },
      { instance = "b", server = b, state = "ready", p = 4 } }
    return trim, context, first, second, b
  end

  it("gives up nothing when the journal became full of what an instance lacks that has no copy yet", function()
    local trim, context, first, second, b = full_world()
    b.health = "down"
    trim.bytes = 1100
    trim:step()
    assert.equals(1, context.store:count("failover_events"))
    assert.is_false(trim.full)
    assert.equals(300, trim.bytes)
    assert.equals(8, first.trimmed + second.trimmed)
    assert.equals("ready", second.copies.b.state)
    assert.is_nil(context.gave_up)
  end)

  it("is not held back for an instance by a lane of which it would lack the beginning", function()
    local trim, context, first = full_world()
    first.trimmed, trim.bytes = 3, 900
    trim:step()
    assert.equals(0, context.store:count("failover_events"))
    assert.is_true(first.trimmed > 3)
    assert.equals(300, trim.bytes)
  end)

  it("trims no more by size than it must", function()
    local context = world(trimming(100))
    context.settings.JOURNAL_KEEP_BYTES = 650
    local l = lane(context, 1, 10, { a = 10, b = 10 })
    local trim = require("lb.trim").new(context, names { l })
    trim.bytes = 1000
    trim:step()
    assert.equals(600, trim.bytes)
    assert.equals(4, l.trimmed)
  end)

  it("warns at 80 %, refuses at 100 %, and gives up the copy that is behind on a server that is away", function()
    local context, _, b = world(trimming(100))
    context.settings.JOURNAL_MAX_BYTES, context.settings.JOURNAL_KEEP_BYTES = 1000, 100
    local l = lane(context, 1, 10, { a = 10, b = 0 })
    local trim = require("lb.trim").new(context, names { l })
    trim.bytes = 850
    trim:step()
    assert.equals(1, context.store:count("failover_events"))
    assert.is_false(trim.full)
    trim.bytes = 1000
    trim:step()
    assert.is_true(trim.full) -- it follows, and may catch up
    assert.equals("ready", l.copies.b.state)
    b.health = "down"
    trim:step()
    assert.equals("rebuild", l.copies.b.state)
    assert.is_false(trim.full)
    assert.equals(100, trim.bytes)
  end)

  it("never gives up the last copy", function()
    local context, a, b = world(trimming(100))
    a.health, b.health = "down", "down"
    context.settings.JOURNAL_MAX_BYTES = 1000
    local l = lane(context, 1, 10, { a = 0, b = 0 })
    local trim = require("lb.trim").new(context, names { l })
    trim.bytes = 2000
    trim:step()
    assert.is_true(trim.full)
    assert.equals("ready", l.copies.a.state)
    assert.equals("ready", l.copies.b.state)
  end)
end)

describe("figures", function()
  before_each(set_up)
  after_each(tear_down)

  local function state(lanes)
    local context = world()
    local n = names(lanes(context))
    context.names = n
    context.trim = { bytes = 123, table_bytes = 456, rows = 7, trimmed = 8, full = false }
    context.aside = { list = { { name = "x" } }, count = 1, of = function() return 1 end }
    context.journal_id = "id"
    return { phase = "on", why = "", role = "holder", address = "", context = context, store = context.store, names = n,
      tickets = { {}, {} } }
  end

  it("are each what happened", function()
    local J = state(function(context)
      local l = lane(context, 1, 5, { a = 5, b = 2 })
      l.decided, l.waiting_since = 4, t - 9
      l.copies.b.since, l.copies.b.doubt = t - 3, 4
      local bad = lane(context, 2, 1, { a = 1, b = 0 })
      bad.copies.b.state, bad.copies.b.reason = "rebuild", "lost"
      return { l, bad }
    end)
    for i, name in ipairs { "appended", "sent", "requests", "applied", "rejected", "failed", "skipped", "void" } do
      J.context.counts[name] = 10 * i
    end
    J.context.events.written = 3
    local s = require("lb.figures").status(J)
    local j = s.journal
    assert.same({ 6, 1, 1, 3, 2, 9 }, { j.head, j.pending, j.in_doubt, j.lanes, j.waiting_clients,
      j.oldest_age_seconds })
    assert.same({ 10, 40, 50, 60, 70, 80 }, { j.appended, j.applied, j.rejected, j.failed, j.skipped, j.void })
    assert.equals(20 / 30, j.coalescing_ratio)
    assert.same({ mean = 1.5, p99 = 4 }, j.commit_ms)
    assert.same({ 123, 456, 7, 8, 7, 3 }, { j.bytes, j.table_bytes, j.entries, j.trimmed, j.epoch, j.events })
    assert.equals("1/5", j.entries_waiting[1].entry)
    assert.equals("b", j.copies_not_ready[1].instance)
    assert.equals(1, j.collections_aside_count)
    assert.equals("degraded", s.replication)
    assert.equals(4, s.instances.b.lag_entries)
    assert.equals(3, s.instances.b.lag_seconds)
    assert.equals(1, s.instances.b.copies_not_ready)
    assert.equals(0, s.instances.a.lag_entries)
    local seen = {}
    for _, m in ipairs(require("lb.figures").metrics(J)) do
      seen[m.name .. (m.labels and "{" .. m.labels .. "}" or "")] = m.value
    end
    assert.equals(60, seen['chromux_journal_verdicts_total{verdict="failed"}'])
    assert.equals(4, seen['chromux_instance_lag_entries{instance="b"}'])
    assert.equals(0.004, seen.chromux_journal_commit_seconds_p99)
    assert.equals(123, seen.chromux_journal_bytes)
  end)

  it("list no more than fifty of a thousand, and count them all", function()
    local J = state(function(context)
      local all = {}
      for i = 1, 1000 do
        all[i] = lane(context, i, 1, { a = 1, b = 0 })
        all[i].copies.b.state = "rebuild"
      end
      return all
    end)
    local j = require("lb.figures").status(J).journal
    assert.equals(50, #j.copies_not_ready)
    assert.equals(1000, j.copies_not_ready_count)
  end)

  it("add up a thousand lanes in some milliseconds", function()
    local J = state(function(context)
      local all = {}
      for i = 1, 1000 do all[i] = lane(context, i, 3, { a = 3, b = 1 }) end
      return all
    end)
    local best = math.huge
    for _ = 1, 20 do
      t = t + 100
      local began = os.clock()
      require("lb.figures").status(J)
      best = math.min(best, os.clock() - began)
    end
    assert.is_true(best < 0.02, best .. " s")
  end)
end)

describe("how long an entry has been there", function()
  before_each(set_up)
  after_each(tear_down)

  -- PostgreSQL's clock is hours away from ours.
  it("is what PostgreSQL's clock alone says, and goes on by ours", function()
    local Store = require("lb.store")
    local reader = { query = function(_, text)
      assert.is_truthy(text:find("now() - created_at", 1, true))
      return { { n = 1, age = 7 } }
    end }
    local st = Store.new({}, reader)
    t = 5000
    assert.equals(4993, st:entries(1, 1, 10)[1].created)
    assert.equals(4993, st:by_token("x")[1].created)
  end)

  it("is known of a copy that is behind before its entries are read", function()
    local context = world()
    function context.doubt_of() return 0 end
    function context.lane_new(row) return require("lb.lanes").new(context, row) end
    local n = require("lb.names").new(context)
    local function rows(position, lacks)
      return { lanes = { { lane = 1, next = 10, floor = 8, undecided = 9, trimmed = 0, waiting = 30 } },
        collections = { { lane = 1, logical = "L", tenant = "t", database = "d", name = "c" } },
        copies = { { lane = 1, instance = "a", physical = "p", position = position, incarnation = 1, state = "ready",
          doubt = 0, lacks = lacks } } }
    end
    require("lb.view").apply(context, n, rows(4, 60), { [1] = true })
    local l = n.by_lane[1]
    t = t + 5
    assert.same({ 5, 65 }, { l:lag(l.copies.a) })
    assert.equals(35, t - l.waiting_since)
    require("lb.view").apply(context, n, rows(6, 20), { [1] = true }) -- as a standby hears of it
    assert.same({ 3, 20 }, { l:lag(l.copies.a) })
    l.copies.a.p, l.copies.a.since = 7, t
    assert.same({ 2, 0 }, { l:lag(l.copies.a) })
  end)
end)

describe("events", function()
  before_each(set_up)
  after_each(tear_down)

  it("are one for a change however many lanes it touches, and the rest is counted", function()
    local context = world()
    for i = 1, 1000 do context.events:note("copy_lost", "a", nil, "collection " .. i, false) end
    context.events:note("copy_lost", "b", nil, "another", false)
    assert.equals(2, context.store:count("failover_events"))
    run_tasks()
    assert.equals(3, context.store:count("failover_events"))
    local last = context.store:beginning("INSERT INTO failover_events")[3]
    assert.truthy(last[5]:find("999 more", 1, true))
    context.events:note("copy_lost", "a", nil, "later", false)
    assert.equals(4, context.store:count("failover_events"))
  end)

  it("tell a failover and the way back once each", function()
    local context, a, b = world()
    local lanes = {}
    for i = 1, 5 do
      lanes[i] = {}
      context.events:decided(lanes[i], a)
    end
    assert.equals(0, #context.store.statements)
    for i = 1, 5 do context.events:decided(lanes[i], b) end
    local function rows() return context.store:beginning("INSERT INTO failover_events") end
    assert.equals("failover", rows()[1][2])
    for i = 1, 5 do context.events:decided(lanes[i], a) end
    assert.equals("failback", rows()[2][2])
    assert.equals(2, #rows())
  end)

  it("tell of no failover while sync fills the preferred server, unless it is not well", function()
    local context, a, b = world()
    local l = {}
    local function decided(by) context.events:decided(l, by) end
    local function rows() return context.store:beginning("INSERT INTO failover_events") end
    decided(a)
    a.filled_at = t
    decided(b)
    t = t + 5 -- sync is done, and this was sent before
    decided(b)
    decided(a)
    assert.equals(0, #rows())
    a.filled_at = t
    decided(b)
    a.health = "down"
    decided(b)
    assert.equals("failover", rows()[1][2])
    a.health = "up"
    decided(b)
    decided(a)
    assert.equals("failback", rows()[2][2])
    run_tasks()
    t = t + 60
    decided(b) -- though a is not filled any more
    assert.equals(3, #rows())
  end)

  it("are the holder's only", function()
    local context = world()
    context.holder = false
    context.events:note("copy_lost", "a", nil, "x", false)
    assert.equals(0, #context.store.statements)
  end)
end)

describe("after an entry whose outcome is known only on its authority", function()
  before_each(set_up)
  after_each(tear_down)

  -- Copy a stands before entry 1; what it does of it.
  local function meet(entry, change, answers)
    local context = world(answers)
    local l = lane(context, 1, 1, { a = 0, b = 0 })
    entry.n, entry.tickets, entry.body, entry.action, entry.rest, entry.type = 1, {}, "{}", "add", "/add", ""
    l.entries[1] = entry
    l.copies.b.server = setmetatable({ usable = function() return false end }, { __index = l.copies.b.server })
    change(l)
    l:kick_copy(l.copies.a)
    return l, context
  end

  it("a copy is made anew while that authority is there", function()
    local l = meet({ verdict = "failed", authority = "b" }, function(l) l.copies.b.p = 1 end)
    assert.equals("rebuild", l.copies.a.state)
    assert.equals(0, l.copies.a.p)
  end)

  it("the first copy to arrive becomes it when it is lost", function()
    local l, context = meet({ verdict = "failed", authority = "b" }, function(l) l.copies.b.state = "rebuild" end)
    assert.equals("ready", l.copies.a.state)
    assert.equals(1, l.copies.a.p)
    assert.equals("a", l.entries[1] and l.entries[1].authority or "a")
    assert.equals(1, context.store:count("SET authority"))
  end)

  it("only one copy becomes it", function()
    local looks = 0
    local l = meet({ verdict = "failed", authority = "c" }, function(l)
      l.copies.b.p = 1
      function l.context.store.entries()
        looks = looks + 1
        return { { n = 1, authority = "b" } }
      end
    end, { ["SET authority"] = function() return { affected = 0 } end })
    assert.equals(1, looks)
    assert.equals("rebuild", l.copies.a.state)
  end)

  it("a copy that was never sent a skipped entry passes it", function()
    local l, context = meet({ verdict = "skipped" }, function() end)
    assert.equals("ready", l.copies.a.state)
    assert.equals(1, l.copies.a.p)
    assert.equals(0, context.store:count("SET authority"))
  end)

  it("a copy that may have got a skipped entry is made anew from one that did not", function()
    local l = meet({ verdict = "skipped" }, function(l) l.copies.a.doubt = 1 end)
    assert.equals("rebuild", l.copies.a.state)
  end)

  it("and stays when all may have got it", function()
    local l, context = meet({ verdict = "skipped" }, function(l)
      l.copies.a.doubt, l.copies.b.doubt = 1, 1
    end)
    assert.equals("ready", l.copies.a.state)
    assert.equals(1, l.copies.a.p)
    assert.equals(1, context.store:count("SET authority"))
  end)

  it("copies that lack trimmed entries are made anew", function()
    local l = meet({ verdict = "applied" }, function(l) l.trimmed = 1 end)
    assert.equals("rebuild", l.copies.a.state)
  end)
end)

describe("the memory of a lane's entries", function()
  before_each(set_up)
  after_each(tear_down)

  it("counts an entry once, and none of a collection that is gone", function()
    local context = world()
    local l = lane(context, 1, 0, { a = 0, b = 0 })
    local function entry(n) return { n = n, body = "12345", tickets = {}, verdict = "applied" } end
    l.copies.a.server.usable = function() return false end
    l.copies.b.server.usable = l.copies.a.server.usable
    l:remember(entry(1)) -- read from PostgreSQL before the answer to its append is here
    l:insert(entry(1))
    l:insert(entry(2))
    assert.equals(10, context.memory.used)
    l:forget(1)
    assert.equals(5, context.memory.used)
    l:close()
    assert.equals(0, context.memory.used)
    l:remember(entry(3)) -- by a step that was under way
    l:forget(3)
    assert.equals(0, context.memory.used)
  end)
end)

describe("an answer", function()
  before_each(set_up)
  after_each(tear_down)

  it("is a verdict only when it is Chroma's", function()
    local answers = require("lb.answers")
    local function means(status, body) return answers.meaning({ status = status, body = body }, "0123-id") end
    for _, body in ipairs { "{}", "true", " null", "[1]" } do assert.equals("applied", means(201, body)) end
    for _, body in ipairs { "<html>hello</html>", "", "OK" } do assert.equals("unsure", means(200, body)) end
    assert.equals("lost", means(404, '{"error":"NotFoundError","message":"Collection [0123-id] does not exists."}'))
    assert.equals("unsure", means(404, '{"error":"NotFoundError","message":"no such site"}'))
    assert.equals("unsure", means(404, "<html>no such site</html>"))
    assert.equals("unsure", means(400, "<html>bad</html>"))
    assert.equals("refused", means(400, '{"error":"InvalidArgumentError","message":"m"}'))
    assert.equals(502, answers.failure { status = 200, body = "OK" }.status)
    assert.equals(500, answers.failure { status = 500, body = "OK" }.status)
    local st = require("lb.store").decide(1, 1, 1, "applied", { status = 200, body = "{}", type = "a\255/b" })
    assert.equals("a?/b", st[7])
  end)

  it("names the collection by the id that clients know, whoever gave it", function()
    local answers = require("lb.answers")
    local physical, logical = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
    local function said(body) return answers.under({ status = 500, type = "t", body = body }, physical, logical) end
    assert.same({ status = 500, type = "t", body = "x " .. logical .. " " .. logical .. "%1" },
      said("x " .. physical .. " " .. physical .. "%1"))
    assert.equals("{}", said("{}").body)
    local context = world()
    local told
    function context.answer(e) told = e.answer end
    local l = lane(context, 1, 0, { a = 0 })
    l.logical, l.copies.a.physical = logical, physical
    context.encode = tostring
    l.copies.a.server.send = function()
      return { wait = function()
        return { status = 400, type = "", body = '{"error":"E","message":"' .. physical .. ' is odd"}' }
      end }
    end
    context.settings.TRY_TIMEOUT = 1
    l:insert { n = 1, action = "modify", rest = "", type = "", body = "{}", tickets = {} }
    assert.equals('{"error":"E","message":"' .. logical .. ' is odd"}', told)
  end)

  it("of a stranger to a catalogue operation leaves it to the other instance", function()
    local Names = require("lb.names")
    local context, a, b = world()
    context.encode, context.lane_new, context.settings.TRY_TIMEOUT = tostring, nil, 1
    local function answering(s, status, body)
      s.sent = 0
      function s.send()
        s.sent = s.sent + 1
        return { wait = function() return { status = status, body = body, type = "" } end }
      end
    end
    answering(a, 404, "<html>no such site</html>")
    answering(b, 200, "{}")
    local told
    function context.answer(e, who) told = { e.status, who } end
    local names_ = Names.new(context)
    names_.tenants.t = true
    names_:member_add { instance = "a", server = a }
    names_:member_add { instance = "b", server = b }
    a.run = function(_, fn) rawget(_G, "spawn")(fn) end
    b.run = a.run
    local tries = 0
    rawset(_G, "sleep", function()
      tries = tries + 1
      if told or tries > 20 then context.drives = false end
    end)
    names_:insert { n = 1, action = "create_database", rest = '{"tenant":"t","name":"d"}', body = "{}", tickets = {} }
    run_tasks()
    assert.is_true(a.sent > 0)
    run_tasks()
    assert.same({ 200, "b" }, told)
  end)
end)
