-- What people are told (lua/lb/notices.lua, notify_book.lua, notify_watch.lua, notify_sinks.lua), with stand-ins for
-- the clock, PostgreSQL, the servers and the webhooks.
local GLOBALS = { "now", "sleep", "spawn", "log", "pg", "json", "fetch" }
local saved, t, logged

local function note(_, text) logged[#logged + 1] = text end

local function set_up()
  saved, t, logged = {}, 1700000000, {}
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  rawset(_G, "now", function() return t end)
  rawset(_G, "log", { debug = note, info = note, warn = note, error = note })
  rawset(_G, "json", require("cjson.safe"))
end

local function tear_down()
  require("lb.notices").consume(nil)
  require("lb.notices").pending = {}
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
end

-- A book of one sink that takes all; asked[i] is what was decided about.
local function new_book(decide, sinks)
  local Book, notices = require("lb.notify_book"), require("lb.notices")
  local asked = {}
  local counts = { accepted = 0, refused = 0, retries = 0, dropped = 0 }
  local book = Book.new { now = function() return t end, counts = counts, free = function(e) return not e.theirs end,
    sinks = function() return sinks or { "slack" } end, decide = function(event, sent)
      asked[#asked + 1] = { event = event, sent = sent }
      if decide then return decide(event, sent) end
      return "send"
    end }
  rawset(_G, "spawn", function() end)
  notices.pending = {}
  notices.consume(function(e) book:add(e) end)
  return book, asked
end

local function raise(kind, key, given)
  given = given or {}
  given.kind, given.key = kind, key
  given.title = given.title or kind
  return require("lb.notices").raise(given)
end

-- The kinds of the messages that go out within so many seconds, each a text of kinds.
local function goes_out(book, seconds, sink)
  local out, till = {}, t + seconds
  repeat
    book:turn()
    local m = book:next_message(sink or "slack")
    while m do
      book:begun(m)
      local kinds = {}
      for i, uid in ipairs(m.events) do kinds[i] = book.events[uid].kind end
      out[#out + 1] = table.concat(kinds, " ")
      book:accepted(m, 200)
      m = book:next_message(sink or "slack")
    end
    t = t + 1
  until t > till
  return out
end

describe("texts of events", function()
  before_each(set_up)
  after_each(tear_down)

  it("are UTF-8 without control characters, cut between characters", function()
    local clean = require("lb.notices").clean
    assert.equals("a b\nc", clean("a\tb\nc", 100))
    assert.equals("a ?b", clean("a\0\255b", 100))
    assert.equals("ä€🚨", clean("ä€🚨", 100))
    assert.equals("??", clean("\237\160", 100))
    for most = 10, 40 do
      local cut = clean(("ä€🚨x"):rep(20), most)
      assert.is_true(#cut <= most)
      assert.equals("…", cut:sub(-3))
      assert.equals(cut, clean(cut, 100))
    end
    assert.equals(("x"):rep(10), clean(("x"):rep(10), 10))
  end)

  it("keep numbers, and bound everything", function()
    local fields = {}
    for i = 1, 30 do fields[i] = { "n" .. i, i % 2 == 0 and i or ("y"):rep(5000) } end
    local e = require("lb.notices").make { kind = "disk_above", key = ("k"):rep(999), title = ("t"):rep(999),
      text = ("z"):rep(9999), fields = fields }
    assert.equals(10, #e.fields)
    assert.equals(2, e.fields[2][2])
    assert.is_true(#e.fields[1][2] <= 1000 and #e.key <= 200 and #e.title <= 200 and #e.text <= 2000)
    assert.equals("medium", e.urgency)
    assert.equals("[]", require("lb.notices").fields_text { fields = {} })
  end)
end)

describe("the book", function()
  before_each(set_up)
  after_each(tear_down)

  it("gathers a burst into one message, in order", function()
    local book = new_book()
    raise("server_down", "server/a")
    t = t + 1
    raise("failover", "writes/a")
    raise("copy_lost", "copies/a")
    assert.same({ "server_down failover copy_lost" }, goes_out(book, 10))
    for i = 1, 40 do raise("note", "some/" .. i) end
    local out = goes_out(book, 10)
    assert.equals(2, #out)
    for _ = 1, 3 do
      raise("note", "some/same")
      raise("server_lost_data", "copies/b")
    end
    assert.same({ "note server_lost_data" }, goes_out(book, 10))
    assert.equals(1, book:story("copies", "copies/b").known)
  end)

  it("tells neither beginning nor end of what is over before it was told", function()
    local book, asked = new_book(function(event)
      if event.kind == "server_down" then return "hold", "", 100 end
      return "send"
    end)
    raise("server_down", "server/a")
    t = t + 50
    raise("server_up", "server/a")
    assert.same({}, goes_out(book, 300))
    assert.equals(1, #asked)
    assert.is_nil(book:story("server", "server/a"))
  end)

  it("tells the end of what was told, and how long it went on", function()
    local book, asked = new_book()
    raise("server_down", "server/a")
    assert.same({ "server_down" }, goes_out(book, 5))
    t = t + 600
    raise("server_up", "server/a")
    assert.same({ "server_up" }, goes_out(book, 5))
    assert.equals(1, asked[2].sent.count)
    assert.is_true(asked[2].event.ends and asked[2].event.now - asked[2].event.since >= 600)
  end)

  it("reminds while it goes on, and holds an equal one back while one waits to be sent", function()
    local book, asked = new_book(function() return "send", "", 3600 end)
    raise("server_down", "server/a")
    assert.same({ "server_down" }, goes_out(book, 10))
    assert.same({ "server_down", "server_down" }, goes_out(book, 2 * 3600 + 100))
    book:turn()
    t = t + 3600
    book:turn() -- ready
    t = t + 10
    book:turn() -- a message, which nobody takes
    local n = #asked
    raise("server_down", "server/a")
    t = t + 7200
    book:turn()
    assert.equals(n, #asked)
    raise("server_up", "server/a")
    assert.equals("server_up", asked[#asked].event.kind)
  end)

  it("counts only what a sink has taken", function()
    local book, asked = new_book()
    raise("note", "some/a")
    t = t + 5
    book:turn()
    local m = book:next_message("slack")
    book:begun(m)
    book:refused(m, "refused", 400, "invalid")
    raise("note", "some/a")
    assert.equals(0, asked[2].sent.same_at)
    assert.equals(0, asked[2].sent.in_last_hour)
    assert.same({ "note" }, goes_out(book, 5))
    raise("note", "some/a")
    assert.is_true(asked[3].sent.same_at > 0)
    assert.equals(1, asked[3].sent.in_last_minute)
  end)

  it("does not tell the end of what no sink has taken", function()
    local book = new_book()
    raise("server_down", "server/a")
    t = t + 5
    book:turn()
    local m = book:next_message("slack")
    book:begun(m)
    book:refused(m, "refused", 400, "invalid")
    assert.equals(0, book:story("server", "server/a").known)
    raise("server_up", "server/a")
    assert.same({}, goes_out(book, 10))
    assert.is_nil(book:story("server", "server/a"))
  end)

  it("lets a message that fails be passed by those about something else only", function()
    local book = new_book()
    raise("note", "some/a", { title = "first" })
    t = t + 3
    book:turn()
    local m = book:next_message("slack")
    book:begun(m)
    book:retry(m, 100, 500, "oops")
    raise("remark", "some/a")
    raise("note", "some/b")
    t = t + 3
    book:turn()
    assert.is_nil(book:next_message("slack")) -- the two go together, behind the first
    t = t + 10
    raise("note", "some/c")
    t = t + 3
    book:turn()
    assert.equals("some/c", next(book:next_message("slack").keys))
    t = t + 100
    assert.equals(m, book:next_message("slack"))
  end)

  it("gives what waits for a sink that is taken out to those that are there", function()
    local sinks = { "slack" }
    local book, asked = new_book(nil, sinks)
    raise("server_down", "server/a")
    raise("note", "some/a")
    t = t + 5
    book:turn()
    local m = book:next_message("slack")
    book:begun(m)
    book:retry(m, 300, 500, "oops")
    raise("remark", "some/b")
    t = t + 5
    book:turn() -- a second message
    local second = book:next_message("slack")
    book:begun(second)
    sinks[1] = "webhook"
    book:configured()
    assert.equals("given_up", m.state)
    assert.equals("its sink is not configured any more", m.error)
    assert.equals("sending", second.state)
    book:retry(second, 1, 500, "oops")
    assert.equals("given_up", second.state)
    assert.same({ "server_down note remark" }, goes_out(book, 10, "webhook"))
    assert.equals(1, book:story("server", "server/a").known)
    raise("server_up", "server/a")
    t = t + 5
    book:turn()
    m = book:next_message("webhook")
    sinks[2], sinks[1] = "slack", "slack"
    table.remove(sinks)
    book:configured() -- an end that was not told yet as well
    assert.same({ "server_up" }, goes_out(book, 10))
    assert.equals("given_up", m.state)
    assert.equals(4, #asked)
    assert.equals(0, #book.messages)
  end)

  it("leaves alone what another sink has taken", function()
    local sinks = { "slack", "webhook" }
    local book = new_book(nil, sinks)
    raise("note", "some/a")
    assert.same({ "note" }, goes_out(book, 5))
    table.remove(sinks)
    book:configured()
    assert.same({}, goes_out(book, 10))
    assert.equals(0, #book.messages)
  end)

  -- What a restart makes of the book, as if it were in PostgreSQL.
  local function again(book, sinks)
    local all, messages, sent = {}, {}, {}
    for _, e in pairs(book.events) do
      local copy = {}
      for name, value in pairs(e) do copy[name] = value end
      copy.opens, copy.ends, copy.parts, copy.counted, copy.sequence = nil, nil, nil, nil, nil
      all[#all + 1] = copy
    end
    table.sort(all, function(a, b) return a.at < b.at end)
    for i, m in ipairs(book.messages) do
      messages[i] = { uid = m.uid, sink = m.sink, events = m.events, title = m.title, state = m.state, at = m.at,
        attempts = m.attempts, next_at = m.next_at, error = m.error }
    end
    for _, s in pairs(book.sent) do
      if s.last then
        sent[#sent + 1] = { kind = s.kind, key = s.key, urgency = s.urgency, times = s.times, last = s.last }
      end
    end
    local next_one = new_book(nil, sinks)
    next_one:restore(all, messages, sent, {}, {})
    return next_one
  end

  it("knows after a restart what another sink had taken before it", function()
    local sinks = { "slack", "webhook" }
    local book = new_book(nil, sinks)
    raise("server_down", "server/a")
    assert.same({ "server_down" }, goes_out(book, 5))
    local taken = t
    t = t + 60
    local next_one = again(book, sinks)
    assert.same({}, goes_out(next_one, 5))
    assert.same({ "server_down" }, goes_out(next_one, 5, "webhook"))
    local _, limit = next(next_one.sent)
    assert.same({ 1, 0 }, { limit.times, limit.pending }) -- the second one counts no more than without a restart
    assert.is_true(limit.last < taken)
    t = taken
    next_one = again(book, { "slack" })
    assert.same({}, goes_out(next_one, 10))
    assert.equals(0, #next_one.messages)
    assert.equals(1, next_one:story("server", "server/a").known)
  end)

  it("gives after a restart what no sink had taken to those that are there", function()
    local book = new_book(nil, { "webhook" })
    raise("note", "some/a")
    t = t + 5
    book:turn()
    local next_one = again(book, { "slack" })
    assert.same({ "note" }, goes_out(next_one, 10))
    local _, limit = next(next_one.sent)
    assert.same({ 1, 0 }, { limit.times, limit.pending })
  end)

  it("does not tell of a sink's trouble through it", function()
    local book = new_book(nil, { "slack", "webhook" })
    raise("messages_failing", "messages/slack")
    assert.same({}, goes_out(book, 5))
    assert.same({ "messages_failing" }, goes_out(book, 5, "webhook"))
    local alone = new_book()
    raise("messages_failing", "messages/slack", { title = "only in the log" })
    assert.same({}, goes_out(alone, 5))
    assert.equals("only in the log", logged[#logged])
  end)

  it("counts the openings of the last hour, and those that were not told", function()
    local book, asked = new_book(function(event)
      if event.kind == "server_down" and event.openings > 2 then return "hold", "", 600 end
      return "send"
    end)
    for _ = 1, 4 do
      raise("server_down", "server/a")
      goes_out(book, 60)
      raise("server_up", "server/a")
      goes_out(book, 60)
    end
    assert.equals(4, asked[#asked].event.openings)
    t = t + 3601
    raise("server_down", "server/a")
    assert.equals(1, asked[#asked].event.openings)
    local _, e = next(book.ready)
    assert.equals(2, e.repeats)
  end)

  it("leaves to another one what that may be telling, and tells its end", function()
    local book = new_book(function() return "send", "", 3600 end)
    raise("server_down", "server/a")
    assert.same({ "server_down" }, goes_out(book, 10))
    book:story("server", "server/a").event.theirs = true
    assert.same({}, goes_out(book, 7300))
    raise("server_up", "server/a")
    assert.same({ "server_up" }, goes_out(book, 10))
  end)

  it("does not wait longer when the clock is set back", function()
    local notify = require("lb.testkit").load("policies/notify.lua", { settings = {} })
    local Teller = require("lb.notify_teller")
    rawset(_G, "spawn", function() end)
    local tried = 0
    local sinks = { names = function() return { "slack" } end, send = function()
      tried = tried + 1
      return tried == 2 and "retry" or "accepted", tried == 2 and 429 or 200, "slow", tried == 2 and 60 or nil
    end }
    local teller = Teller.new { now = function() return t end, sinks = sinks, may = function() return true end,
      call = function(_, ...) return notify.decide(...) end }
    local function pass(seconds)
      for _ = 1, seconds do
        teller:turn()
        while teller:deliver("slack") do teller:turn() end
        t = t + 1
      end
    end
    pass(1)
    raise("note", "some/a")
    pass(5)
    raise("note", "some/a") -- held for an hour
    raise("server_down", "server/a") -- the sink wants it in 60 s
    pass(5)
    assert.equals(2, tried)
    t = t - 86400
    pass(70)
    assert.equals(3, tried)
    assert.equals("told", teller.book:story("server", "server/a").event.state)
    pass(3600) -- the other one, and the reminder
    assert.equals(5, tried)
    raise("server_up", "server/a")
    t = t - 86400
    pass(5)
    assert.equals(6, tried)
  end)

  it("is bounded", function()
    local book = new_book(function() return "hold", "", 3600 end)
    for i = 1, 1500 do raise("note", "some/" .. i) end
    assert.equals(1000, book.live)
    assert.equals(500, book.overflowed)
  end)
end)

-- The kinds of what goes on.
local function sorted(stories)
  local kinds = {}
  for _, s in pairs(stories) do kinds[#kinds + 1] = s.event.kind end
  table.sort(kinds)
  return kinds
end

describe("events of other processes", function()
  before_each(set_up)
  after_each(tear_down)

  it("wait for PostgreSQL, in bounds", function()
    local notices = require("lb.notices")
    local fails, written, task = 2, {}, nil
    rawset(_G, "spawn", function(fn) task = fn end)
    rawset(_G, "sleep", function() end)
    rawset(_G, "pg", { connection = function()
      return { transaction = function(_, statements)
        fails = fails - 1
        if fails >= 0 then return nil, "away" end
        for _, s in ipairs(statements) do written[#written + 1] = s[4] end
        return {}
      end }
    end })
    notices.consume(nil)
    notices.pending = {}
    for i = 1, 600 do raise("note", "some/" .. i) end
    assert.equals(500, #notices.pending)
    task()
    assert.equals(500, #written)
    assert.equals("some/500", written[500])
    assert.equals(0, #notices.pending)
  end)
end)

describe("policies of a worker", function()
  local policy, aside

  before_each(function()
    set_up()
    policy = package.loaded["chromux.policy"]
    package.loaded["chromux.policy"], package.loaded["lb.tripped"] = { tripped = function() return aside end }, nil
  end)
  after_each(function()
    package.loaded["chromux.policy"], package.loaded["lb.tripped"] = policy, nil
    tear_down()
  end)

  it("are told when they are set aside, each once, and when they decide again", function()
    local tripped, raised = require("lb.tripped"), {}
    require("lb.notices").consume(function(e) raised[#raised + 1] = e end)
    aside = { { file = "sync.lua", last_error = "sync.lua:3: oops" }, { file = "upgrade.lua", last_error = "x" } }
    for _ = 1, 3 do tripped.look("sync worker", "upgrade.lua") end
    assert.equals(1, #raised)
    local name = require("lb.process").name()
    assert.equals("policy_tripped", raised[1].kind)
    assert.equals(name, raised[1].source)
    assert.is_truthy(raised[1].key:find("^policy/sync%.lua of sync worker " .. name:match("/(%d+)/") .. " on %S+$"))
    assert.same({ "cause", "sync.lua:3: oops" }, raised[1].fields[3])
    aside = {}
    for _ = 1, 3 do tripped.look("sync worker") end
    assert.equals(2, #raised)
    assert.equals("policy_back", raised[2].kind)
    assert.equals(raised[1].key, raised[2].key)
  end)
end)

describe("what the journal notes", function()
  before_each(set_up)
  after_each(tear_down)
  local ID = "01234567-89ab-cdef-0123-456789abcdef"

  -- key, fields and text of the statement's event
  local function event(kind, reason)
    local s = require("lb.notices").of_journal(kind, "b", "a", reason, function(id)
      return id == ID and { name = "docs", lane = 7 } or nil
    end)
    return s[4], s[8], s[7]
  end

  it("is told by names, not by ids", function()
    local function fields_of(...)
      local _, fields = event(...)
      local f = require("cjson.safe").decode(fields)
      return f[2][2], f[3][2]
    end
    assert.same({ "docs", "its server answered 500" }, { fields_of("copy_lost", ID .. ": its server answered 500") })
    assert.same({ "several", "3 more of these within 10 s; the last: docs: gone" },
      { fields_of("copy_lost", "3 more of these within 10 s; the last: " .. ID .. ": gone") })
    local deleted = ID:gsub("0", "1") -- nobody knows its name
    assert.same({ deleted, "gone" }, { fields_of("copy_lost", deleted .. ": gone") })
    assert.equals("first: collection docs; b is down",
      select(2, fields_of("failover", "first: collection " .. ID .. "; b is down")))
    local key, _, text = event("rebuild_slow", ID .. ": 10 times")
    assert.equals("rebuild/b/7", key)
    assert.equals("10 times.", text)
    -- A count of several is about no copy, whose story it would begin.
    assert.is_nil(require("lb.notices").of_journal("rebuild_slow", "b", nil, "1 more of these; the last: " .. ID))
  end)

  it("of slow rebuilds is told for each collection", function()
    local written = {}
    rawset(_G, "spawn", function() end)
    local store = package.loaded["lb.store"]
    package.loaded["lb.store"], package.loaded["lb.events"] = { event = function() return {} end }, nil
    local Events = require("lb.events")
    package.loaded["lb.store"], package.loaded["lb.events"] = store, nil
    local events = Events.new { holder = true, store = { enqueue = function(_, statements)
      written[#written + 1] = statements[2][4]
    end }, names = { by_logical = {} } }
    local other = ID:gsub("0", "1")
    for _, id in ipairs { ID, other, ID } do events:note("rebuild_slow", "b", nil, id .. ": 10 times", false) end
    assert.same({ "rebuild/b/" .. ID, "rebuild/b/" .. other }, written)
    for _, id in ipairs { ID, other } do events:note("copy_lost", "b", nil, id .. ": gone", false) end
    assert.equals(3, #written)
  end)
end)

describe("the watch", function()
  before_each(set_up)
  after_each(tear_down)

  -- {nodes=, tripped=, instances=, J=, workers=, monitors=, look(seconds) -> kinds of what was raised, book=}
  local function new_watch()
    local Watch = require("lb.notify_watch")
    local w = { nodes = {}, tripped = {}, instances = {}, workers = {}, monitors = {}, balancers = {},
      sinks = { "slack" }, settings = { LAG_ALERT = 60 },
      J = { phase = "on", role = "holder", context = { trim = { full = false, warned = false } },
        store = { last_error = "" } } }
    w.J.store.healthy = function() return w.healthy ~= false end
    local book = new_book()
    w.book = book
    local store = { last_ok = t, last_error = "", conn = { state = function() return "ready" end } }
    function store.query(_, sql)
      if sql:find("balancer_figures", 1, true) then return w.balancers end
      return sql:find("sync_workers", 1, true) and w.workers or w.monitors
    end
    w.store = store
    local watch = Watch.new { journal = w.J, nodes = function() return w.nodes end, clock = function() return t end,
      tripped = function() return w.tripped end, figures = function() return { instances = w.instances } end,
      settings = function() return w.settings end }
    function w.look(seconds)
      local raised = {}
      require("lb.notices").consume(function(e)
        raised[#raised + 1] = e.kind
        w.last = e
        book:add(e)
      end)
      for _ = 1, seconds do
        if not w.away then store.last_ok = t end
        watch:look { book = book, store = store, leased = true, sinks = { names = function() return w.sinks end } }
        goes_out(book, 0)
      end
      return table.concat(raised, " ")
    end
    return w
  end

  -- What slack.lua writes over what was raised last.
  local function heading(w)
    local slack = require("lb.testkit").load("policies/slack.lua", { settings = {} })
    return slack.format(w.book:view(w.last)).blocks[1].text.text:match("^%S+ (.*)$")
  end

  it("tells of servers once each way, also what happened before it began", function()
    local w = new_watch()
    w.nodes = { { name = "a", health = "suspect", last_error = "" } }
    assert.equals("", w.look(5))
    w.nodes[1].health, w.nodes[1].last_error = "down", "probe: refused"
    assert.equals("server_down", w.look(20))
    assert.equals("probe: refused", w.last.fields[2][2])
    w.nodes[1].health = "suspect"
    assert.equals("", w.look(5))
    w.nodes[1].health = "up"
    assert.equals("server_up", w.look(20))
    assert.same({ "cause", "probe: refused" }, w.last.fields[2])
    w.nodes[1].health = "down"
    assert.equals("server_down", w.look(5))
    w.nodes = {}
    assert.equals("server_up", w.look(5))
    assert.equals("Server a is not configured any more", heading(w))
  end)

  it("raises an end that is held back once, and a new beginning", function()
    local w = new_watch()
    w.nodes = { { name = "a", health = "down", last_error = "" } }
    assert.equals("server_down", w.look(5))
    w.book.decide = function() return "hold", "silence", 1000 end
    w.nodes[1].health = "up"
    assert.equals("server_up", w.look(20))
    w.nodes[1].health = "down"
    assert.equals("server_down", w.look(20))
  end)

  it("tells that PostgreSQL is away after some seconds, not of a hiccup", function()
    local w = new_watch()
    w.look(1)
    w.away, w.store.last_error = true, "refused"
    assert.equals("", w.look(4))
    w.away, w.store.last_error = false, ""
    assert.equals("", w.look(5))
    w.away, w.store.last_error = true, "refused"
    assert.equals("journal_unavailable", w.look(10))
    w.away, w.store.last_error = false, ""
    assert.equals("journal_back", w.look(5))
    w.healthy, w.J.store.last_error = false, "disk full" -- it answers, and takes nothing
    assert.equals("journal_unavailable", w.look(10))
    assert.equals("disk full", w.last.fields[1][2])
    w.healthy = true
    assert.equals("journal_back", w.look(5))
    w.J.phase, w.J.why = "restored", "its timeline is 2"
    assert.equals("postgres_restored", w.look(5))
    w.J.phase = "on"
    assert.equals("restore_accepted", w.look(5))
  end)

  it("tells of lag that stays, of servers that are up", function()
    local w = new_watch()
    w.nodes = { { name = "a", health = "up", last_error = "" } }
    w.instances.a = { lag_entries = 9, lag_seconds = 61, copies_not_ready = 0 }
    assert.equals("lag_above", w.look(20))
    w.instances.a.lag_seconds = 40
    assert.equals("", w.look(20))
    w.instances.a.lag_seconds = 29
    assert.equals("lag_below", w.look(20))
    w.nodes[1].health = "down"
    w.instances.a.lag_seconds = 1000
    assert.equals("server_down", w.look(20))
  end)

  it("tells when all copies of an instance are whole again, and the journal has room", function()
    local w = new_watch()
    w.instances.a = { lag_entries = 0, lag_seconds = 0, copies_not_ready = 2 }
    assert.equals("", w.look(10))
    raise("copy_lost", "copies/a", { fields = { { "instance", "a" }, { "collection", "docs" } } })
    assert.equals("", w.look(10))
    w.instances.a.copies_not_ready = 0
    assert.equals("copy_rebuilt", w.look(10))
    assert.equals("docs", w.last.fields[2][2])
    w.J.context.trim.full = true
    raise("journal_full", "journal/room")
    assert.equals("", w.look(10))
    w.J.context.trim.full = false
    assert.equals("journal_room", w.look(10))
  end)

  it("tells the end of what was about an instance that is not configured any more", function()
    local w = new_watch()
    w.instances.b = { lag_entries = 0, lag_seconds = 0, copies_not_ready = 0 }
    raise("lag_above", "lag/a")
    raise("copy_lost", "copies/a")
    raise("copy_lost", "copies/b")
    assert.equals("copy_lost copy_lost lag_above", table.concat(sorted(w.book.stories), " "))
    local ends = {}
    for kind in w.look(10):gmatch("%S+") do ends[#ends + 1] = kind end
    table.sort(ends)
    assert.same({ "copy_rebuilt", "copy_rebuilt", "lag_below" }, ends)
    assert.same({}, sorted(w.book.stories))
  end)

  it("tells of policies that are set aside until they are loaded again", function()
    local w = new_watch()
    w.tripped = { { file = "route.lua", last_error = "route.lua:3: oops" } }
    assert.equals("policy_tripped", w.look(10))
    assert.equals("route.lua:3: oops", w.last.fields[2][2])
    w.tripped = {}
    assert.equals("policy_back", w.look(10))
    w.monitors = { { host = "h", monitor = "m", age = 1, every = 30 } }
    raise("policy_tripped", "policy/upgrade.lua on h") -- by a monitor, which tells of the end as well
    assert.equals("", w.look(70))
    w.monitors = {}
    assert.equals("policy_back", w.look(20)) -- nobody will
  end)

  it("ends what was told of the policies of a process that has ended", function()
    local w = new_watch()
    w.workers = { { worker_id = "h-12-9", role = "worker", process = "p12", alive = true } }
    w.monitors = { { host = "h", monitor = "m", age = 1, every = 30 } }
    raise("policy_tripped", "policy/sync.lua of worker 12 on h", { source = "p12" })
    raise("policy_tripped", "policy/failover.lua of monitor 3 on h", { source = "m" })
    assert.equals("", w.look(70))
    w.workers[1].process = "p13"
    assert.equals("policy_back", w.look(20))
    assert.equals("policy/sync.lua of worker 12 on h", w.last.key)
    w.monitors[1].monitor, w.balancers = "m2", { { balancer = "b" } }
    assert.equals("policy_back", w.look(20))
    raise("policy_tripped", "policy/route.lua of balancer 3 on h", { source = "b" })
    assert.equals("", w.look(70))
    w.balancers = {}
    assert.equals("policy_back", w.look(20))
    assert.same({}, sorted(w.book.stories))
  end)

  it("leaves alone what was told of a process that has not left a row yet", function()
    local w = new_watch()
    raise("policy_tripped", "policy/route.lua of balancer 3 on h", { source = "b" })
    assert.equals("", w.look(50))
    w.balancers = { { balancer = "b" } }
    assert.equals("", w.look(60))
    w.balancers, w.settings.MONITOR_INTERVAL = {}, 60
    assert.equals("", w.look(50)) -- its next row may come later
    assert.equals("policy_back", w.look(50))
  end)

  it("ends what was told of an instance that is retired, and tells no more of it", function()
    local w = new_watch()
    local server = { retired = false }
    w.J.context.servers = { by_name = { a = server } }
    w.nodes = { { name = "a", health = "down", last_error = "" } }
    w.instances.a = { lag_entries = 9, lag_seconds = 99, copies_not_ready = 3 }
    raise("copy_lost", "copies/a")
    raise("lag_above", "lag/a")
    assert.equals("server_down", w.look(20))
    server.retired, w.instances.a.retired = true, true
    local ends = w.look(20)
    for _, kind in ipairs { "server_up", "copy_rebuilt", "lag_below" } do assert.is_truthy(ends:find(kind, 1, true)) end
    assert.same({}, sorted(w.book.stories))
    assert.equals("", w.look(20))
  end)

  it("ends what was told of a rebuild when the copy is made, or not wanted any more", function()
    local w = new_watch()
    local copy = { state = "rebuild", changed = t, server = { retired = false } }
    local lane = { id = 7, name = "docs", copies = { a = copy } }
    w.J.context.names, w.J.context.rebuilds = { by_lane = { [7] = lane } }, { by_copy = {} }
    raise("rebuild_failed", "rebuild/a/7", { title = "failed" })
    assert.equals("", w.look(20))
    copy.state, copy.changed = "ready", t
    w.J.context.rebuilds.by_copy.x = { lane = lane, instance = "a" } -- asked for once more
    assert.equals("", w.look(20))
    w.J.context.rebuilds.by_copy.x = nil
    assert.equals("rebuild_done", w.look(20))
    assert.equals("The copy of docs on a is made anew", heading(w))
    raise("rebuild_failed", "rebuild/a/7", { title = "failed" }) -- an operator asked for it, though it was whole
    assert.equals("rebuild_done", w.look(20))
    assert.equals("The copy of docs on a is whole: it stays as it was", heading(w))
    raise("rebuild_slow", "rebuild/a/8", { title = "slow" })
    assert.equals("rebuild_done", w.look(20))
    assert.equals("A copy on a is not wanted any more", heading(w))
  end)

  it("ends the trouble with a sink that is not configured any more", function()
    local w = new_watch()
    raise("messages_failing", "messages/webhook")
    w.sinks = { "slack", "webhook" }
    assert.equals("", w.look(10))
    w.sinks = { "slack" }
    assert.equals("messages_delivered", w.look(10))
    assert.equals("The sink webhook is not configured any more", heading(w))
  end)

  it("tells of workers that nobody missed, and of the end of those that were told of", function()
    local w = new_watch()
    local function worker(id, late)
      return { worker_id = id, process = id, role = "worker", alive = late < 0, dead = late > 30 }
    end
    w.workers = { worker("w1", -5), worker("w2", 20) }
    assert.equals("", w.look(20))
    w.workers[2].dead = true
    assert.equals("worker_dead", w.look(30))
    w.workers[2].dead, w.workers[2].alive = false, true
    assert.equals("worker_back", w.look(30))
    raise("worker_dead", "worker/w2") -- by the coordinator, which took its row away
    w.workers = {}
    assert.equals("", w.look(30))
    w.workers = { worker("w2", -5) }
    w.workers[1].role = "coordinator" -- it takes no tasks
    assert.equals("", w.look(30))
    w.workers[2] = worker("w3", -5)
    assert.equals("worker_back", w.look(30))
    assert.equals("Other sync workers have taken over", heading(w))
    raise("worker_dead", "worker/w3")
    assert.equals("worker_back", w.look(30))
    assert.equals("A sync worker on w3 is at work", heading(w))
  end)

  it("tells of a monitor that is silent", function()
    local w = new_watch()
    assert.equals("", w.look(20))
    w.monitors = { { host = "h", monitor = "m", age = 80, every = 30 } }
    assert.equals("", w.look(20))
    w.monitors[1].age = 95
    assert.equals("monitor_silent", w.look(20))
    w.monitors[1].age = 5
    assert.equals("monitor_back", w.look(20))
    w.monitors[1].age, w.monitors[1].every = 95, 60 -- by its own interval
    assert.equals("", w.look(20))
    w.monitors = {} -- it was stopped
    assert.equals("", w.look(20))
  end)

  it("gives a monitor the time to write after PostgreSQL was away", function()
    local w = new_watch()
    w.monitors = { { host = "h", monitor = "m", age = 5, every = 30 } }
    w.away = true
    assert.equals("journal_unavailable", w.look(100))
    w.away, w.monitors[1].age = false, 105
    assert.equals("journal_back", w.look(50))
    assert.equals("monitor_silent", w.look(30))
  end)

  it("tells the end of a monitor's silence when nobody expects it any more", function()
    local w = new_watch()
    w.monitors = { { host = "h", monitor = "m", age = 100, every = 1 } }
    assert.equals("monitor_silent", w.look(20))
    w.monitors = {}
    assert.equals("monitor_back", w.look(20))
    assert.equals("No monitor is expected on h any more", heading(w))
  end)
end)

describe("the sinks", function()
  before_each(set_up)
  after_each(tear_down)
  local URL = "https://hooks.slack.com/services/T0/B0/secret"

  local function sinks(answer, call)
    local sent = {}
    local s = require("lb.notify_sinks").new { secrets = { SLACK_WEBHOOK_URL = URL, WEBHOOK_URL = "" },
      deployment = "here", public_url = "", call = call or function() return nil, "broken: oops" end,
      fetch = function(r)
        sent[#sent + 1] = r
        if answer.error then return nil, answer.error, answer.status end
        return answer
      end }
    return s, sent
  end

  local function event(given)
    local e = require("lb.contract").event("server_down", given)
    e.title = "Server a is down"
    return e
  end

  it("say what an answer means", function()
    local function outcome(answer)
      local s = sinks(answer)
      local o, status, why, seconds = s:send("slack", { uid = "1", attempts = 1 }, { event() })
      assert.is_nil((why or ""):find("secret", 1, true))
      return o, status, why, seconds
    end
    assert.equals("accepted", (outcome { status = 204, headers = {}, body = "" }))
    for _, status in ipairs { 301, 400, 403, 404, 408, 410 } do
      assert.equals("refused", (outcome { status = status, headers = {}, body = "no " .. URL .. " /T0/B0/secret" }))
    end
    for _, status in ipairs { 429, 500, 503 } do
      assert.equals("retry", (outcome { status = status, headers = {}, body = "services/T0/B0/secret" }))
    end
    local _, _, _, seconds = outcome { status = 429, headers = { ["retry-after"] = "7" }, body = "" }
    assert.equals(7, seconds)
    local _, _, why = outcome { error = "Failed to connect to hooks.slack.com port 443" }
    assert.equals("it cannot be reached", why)
    _, _, why = outcome { error = "time-out" }
    assert.equals("no answer in time", why)
    -- Of an answer that is too long or is cut off the status counts.
    assert.equals("accepted", (outcome { status = 200, error = "the answer is longer than 65536 bytes" }))
    assert.equals("refused", (outcome { status = 404, error = "transfer closed" }))
    assert.equals("retry", (outcome { status = 503, error = "time-out" }))
    assert.equals("retry", (outcome { status = 100, error = "time-out" }))
  end)

  it("show nothing of the URL, wherever in it the secret is", function()
    for _, url in ipairs { "https://user:secret@hooks.example/x", "https://hooks.example/?token=secret",
      "https://hooks.example#secret", "https://hooks.example/a/secret?b" } do
      local s = sinks { status = 400, headers = {}, body = "no such secret at " .. url }
      s:configure { secrets = { SLACK_WEBHOOK_URL = url } }
      local outcome, _, why = s:send("slack", { uid = "1", attempts = 1 }, { event() })
      assert.equals("refused", outcome)
      assert.is_nil(why:find("secret", 1, true))
    end
  end)

  it("understand Retry-After", function()
    local after = require("lb.notify_sinks").retry_after
    assert.equals(30, after("30", t))
    assert.equals(3600, after("99999999", t))
    assert.equals(20, after("Tue, 14 Nov 2023 22:13:40 GMT", 1700000000)) -- that is 22:13:20
    assert.equals(0, after("Thu, 01 Jan 1970 00:00:00 GMT", t))
    assert.equals(3600, after("Thu, 29 Feb 2028 00:00:00 GMT", t))
    assert.is_nil(after("soon", t))
    assert.is_nil(after(nil, t))
  end)

  it("write plain text that says why, within Slack's limits, and always name the deployment", function()
    local s, sent = sinks { status = 200, headers = {}, body = "ok" }
    local many = {}
    for i = 1, 10 do many[i] = event { text = ("<!channel>"):rep(200), fields = { { "cause", ("x"):rep(900) } } } end
    s:send("slack", { uid = "1", attempts = 1 }, many)
    local payload = require("cjson.safe").decode(sent[1].body)
    assert.is_nil(require("lb.contract").check("slack.format", payload))
    assert.is_truthy(payload.text:find("^%[here%]"))
    assert.is_nil(payload.text:find("<!", 1, true))
    s:send("slack", { uid = "1", attempts = 1 }, { event() })
    assert.is_truthy(sent[2].body:find("slack.format failed: broken: oops", 1, true))
    local other = sinks({ status = 200, headers = {}, body = "ok" }, function() return { text = "words" } end)
    assert.equals("[here] words", other:slack({ event() }).text)
    other:configure { deployment = 'a<b & "c"/d' }
    assert.equals('[a&lt;b &amp; "c"/d] words', other:slack({ event() }).text)
    local named = sinks({ status = 200, headers = {}, body = "ok" }, function()
      return { text = 'words of a&lt;b &amp; "c"/d' }
    end)
    named:configure { deployment = 'a<b & "c"/d' }
    assert.equals('words of a&lt;b &amp; "c"/d', named:slack({ event() }).text)
  end)

  it("ask about a group as one event", function()
    local asked
    local s = sinks({ status = 200, headers = {}, body = "ok" }, function(_, e)
      asked = e
      return { text = "here" }
    end)
    s:slack { event { urgency = "low" }, event { urgency = "high" } }
    assert.equals("group", asked.kind)
    assert.equals("high", asked.urgency)
    assert.equals(2, #asked.group)
    assert.is_true(require("lb.contract").fits("event", asked))
  end)
end)
