-- What a worker reports (lua/lb/sync_work.lua) and how a job goes on when it cannot (sync_job.lua), with stand-ins for
-- PostgreSQL, the holder of the journal and the servers.
local GLOBALS = { "now", "sleep", "spawn", "log", "json", "pg" }
local STAND_INS = { "chromux.records", "chromux.slice", "lb.courier", "lb.signal", "lb.sync_calls",
  "lb.sync_choose", "lb.sync_work", "lb.sync_job", "lb.sync_read", "lb.sync_coordinate",
  "lb.sync_store", "lb.schema", "lb.sync", "chromux.copies" }

local json = require("cjson.safe")

local t, saved, waiting, spawned

local function silent() end

local function set_up()
  saved, spawned, waiting, t = {}, {}, {}, 1000
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  for _, name in ipairs(STAND_INS) do saved[name] = package.loaded[name] or false end
  for _, name in ipairs { "lb.sync_work", "lb.sync_job", "lb.sync_read", "lb.sync_coordinate" } do
    package.loaded[name] = nil
  end
  for _, name in ipairs { "chromux.records", "chromux.slice" } do package.loaded[name] = {} end
  package.loaded["lb.courier"] = { nodes = function() return {} end }
  package.loaded["lb.signal"] = { new = function() return { fire = silent, wait = silent } end }
  package.loaded["lb.sync_calls"] = {}
  package.loaded["lb.sync_choose"] = { notice = silent }
  rawset(_G, "now", function() return t end)
  rawset(_G, "sleep", function(s)
    t = t + s
    waiting[#waiting + 1] = s
  end)
  rawset(_G, "spawn", function(fn, ...) spawned[#spawned + 1] = { fn, ... } end)
  rawset(_G, "log", { debug = silent, info = silent, warn = silent, error = silent })
  rawset(_G, "json", json)
  rawset(_G, "pg", { bytes = function(s) return s end, null = json.null })
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
  for _, name in ipairs(STAND_INS) do package.loaded[name] = saved[name] or nil end
end

describe("a worker", function()
  local store, work, clients

  -- One turn of a slot: the task that it claims first, whatever becomes of it.
  local function turn(task)
    store.claim = function()
      if not task then
        work.stopping = true
        return false
      end
      local one = task
      task = nil
      return one
    end
    local slot = spawned[#spawned]
    work.stopping = false
    slot[1](unpack(slot, 2))
  end

  before_each(function()
    set_up()
    store, clients = {}, 0
    package.loaded["chromux.slice"].elements = function() return nil end -- its ids cannot be read
    local Work = require("lb.sync_work")
    work = Work.new { store = store, settings = {}, id = "w", batch = { look = silent, peak_mb = 1 }, lease = 5,
      load = { clients = function() return clients == 0 and "gone" or "here" end,
        figures = function() return { requests = clients } end },
      able = function() return {} end, fault = silent }
    work:start()
  end)
  after_each(tear_down)

  it("reports the end of a task until the answer is known, however long PostgreSQL is away", function()
    local calls = 0
    function store.failed(_, task, _, for_good)
      calls = calls + 1
      assert.equal(7, task.id)
      assert.is_true(for_good)
      assert.is_table(work.own[7]) -- nobody else's meanwhile
      if calls < 200 then return nil, "connection lost" end
      return true
    end
    turn { id = 7, epoch = 1, kind = "copy", ids = "", name = "c", instance = "b" }
    assert.equal(200, calls)
    assert.is_nil(work.own[7])
    assert.is_true(t - 1000 > 60)
  end)

  it("takes one task for a server at a time while there may be clients", function()
    local most
    function store.claim(_, _, _, _, m)
      most = m.instance
      work.stopping = true
      return false
    end
    for _, case in ipairs { { 0, 4 }, { 1, 1 }, { nil, 1 } } do
      clients = case[1]
      work.stopping = false
      spawned[#spawned][1](work)
      assert.equal(case[2], most)
    end
  end)

  it("gets no more places by what was read ahead for a task that is over", function()
    local courier, given_up = package.loaded["lb.courier"], nil
    package.loaded["chromux.slice"].elements = function() return { '"x"' } end
    function work.batch.ids() return 10 end
    function work.able() return { "a", "b" } end
    function store.reading() return {} end
    function store.failed() return true end
    function courier.request(r)
      t = t + 30
      given_up = r.unless()
      return nil, "late"
    end
    turn { id = 7, epoch = 1, kind = "copy", ids = "", name = "c", instance = "b", source = "a", job = 1,
      source_physical = "p", tenant = "t", database = "d" } -- it fails with an error before its first read is done
    local active, begun, reader = work.active, #spawned, spawned[#spawned]
    work.stopping = false
    reader[1](unpack(reader, 2))
    assert.same({ true, active, begun }, { given_up, work.active, #spawned })
  end)

  it("ends its reports when the task is another's", function()
    function store.failed()
      work:renewed({}, t + 1)
      return nil, "connection lost"
    end
    turn { id = 7, epoch = 1, kind = "copy", ids = "", name = "c", instance = "b" }
    assert.is_nil(work.own[7])
  end)

  it("gives back what was claimed without its hearing of it", function()
    local back = {}
    function store.give_back(_, task) back[#back + 1] = task end
    local before = #spawned
    work.own[1] = { id = 1, epoch = 4, since = 0 }
    work.claims = 1 -- this one may be it
    work:renewed({ [1] = { epoch = 4, state = "copying" }, [2] = { epoch = 9, state = "copying" } }, t)
    assert.equal(before, #spawned)
    work.claims = 0
    work:renewed({ [1] = { epoch = 4, state = "copying" }, [2] = { epoch = 9, state = "copying" } }, t)
    assert.equal(before + 1, #spawned)
    local task = spawned[#spawned]
    task[1](unpack(task, 2))
    assert.same({ { id = 2, epoch = 9 } }, back)
    assert.is_nil(work.own[1].lost)
  end)
end)

describe("a job", function()
  local Job, context, row, calls, events

  -- What PostgreSQL keeps of it.
  local function store_of(job)
    local store = { epoch = 3, more = {} }
    function store.job_set(_, _, was, fields, more)
      if was and was ~= job.state then return false end
      for name, value in pairs(fields) do
        if value == json.null then job[name] = nil else job[name] = value end
      end
      for _, s in ipairs(more or {}) do store.more[#store.more + 1] = s[1] end
      return true
    end
    function store.job_ends(_, _, state, fields)
      job.state, job.ended = state, fields
      return true
    end
    function store.job_dropped()
      job.state = "gone"
      return true
    end
    function store.job() return job end
    function store.collection() return { logical = "l", name = "c", tenant = "t", database = "d" } end
    function store.copies()
      return { { instance = "a", state = "ready", physical = "pa", position = 9 },
        { instance = "b", state = "ready", physical = "pb", position = 9 } }
    end
    function store.catalogue() return 1 end
    function store.repaired() return 0 end
    function store.found() return {} end
    return store
  end

  before_each(function()
    set_up()
    events = {}
    package.loaded["lb.sync_choose"] = { notice = function(e) events[#events + 1] = e.kind end }
    calls = package.loaded["lb.sync_calls"]
    package.loaded["lb.courier"].request = function(r)
      return { status = 200, body = r.target:find("/count$") and "5" or r.target:find("/get$") and '{"ids":["x"]}'
        or '{"metadata":{"k":1},"configuration_json":{}}' }
    end
    package.loaded["chromux.slice"].members = json.decode
    package.loaded["chromux.slice"].string = function(s) return s end
    package.loaded["chromux.slice"].canonical = function(v) return json.encode(v) end
    Job = require("lb.sync_job")
    row = { id = 1, lane = 4, kind = "verify", instance = "b", source = "a", state = "confirming", attempts = 0,
      laters = 0, records = 5, differences = 0, repaired = 0, losses = 0, settle = 0, temp = "pb",
      source_physical = "pa",
      source_records = 5, dry_run = false, asked_by = "", collection_id = "l", collection_name = "c", tenant = "t",
      database = "d" }
    context = { store = store_of(row), settings = { MAX_MEMORY_MB = 400, SYNC_CHUNK_SIZE = 10 }, progress = {},
      running = {}, failed_from = {}, able = function() return true end, nodes = function() return {} end,
      fault = silent,
      life = function() return 1 end, await = function(job) return { state = job.state, failed = 0, open = 0 } end }
    function context.room(_, fn) fn() end
  end)
  after_each(tear_down)

  local function copy_of(job)
    local out = {}
    for k, v in pairs(job) do out[k] = v end
    return out
  end

  it("ends as different when a record cannot be repaired, and does not ask for ever", function()
    package.loaded["chromux.slice"].quote = json.encode
    function context.store.found() return { '{"ids":["x","y"]}' } end
    local asked = 0
    function calls.ask(kind)
      assert.equal("confirm", kind)
      asked = asked + 1
      return { position = 9, equal = 0, repaired = 1, differing = { { id = "x", how = "changed" },
        { id = "y", how = "unrepairable", why = "it holds no number" } } }
    end
    Job.run(context, copy_of(row))
    assert.equal(1, asked)
    assert.equal("done", row.state)
    assert.same({ 2, 1 }, { row.ended.differences, row.ended.repaired })
    assert.equal('record "y" cannot be repaired: it holds no number', row.ended.error)
  end)

  it("waits longer each time that it cannot go on, and starts over in the end", function()
    function context.store.found() return { '{"ids":["x"]}' } end
    function calls.ask() return nil, "the holder did not answer" end
    local runs = 0
    while row.state == "confirming" and runs < 100 do
      runs = runs + 1
      Job.run(context, copy_of(row))
      if row.state == "confirming" then
        assert.is_truthy(context.store.more[#context.store.more]:find("laters = laters + 1", 1, true))
        row.laters = row.laters + 1
      end
    end
    assert.equal(10, runs)
    assert.same({ "waiting", 1, 0 }, { row.state, row.attempts, row.laters })
  end)

  it("keeps the copy that it was made to compare with while that is whole", function()
    row.state = "waiting"
    package.loaded["lb.sync_choose"].authority = function() error("nobody is to choose again") end
    package.loaded["lb.sync_store"].collection_begins = function() return { "begins" } end
    function context.await() return nil end
    Job.run(context, copy_of(row))
    assert.same({ "comparing", "a" }, { row.state, row.source })
  end)

  it("does not wait for ever for an instance that cannot be used", function()
    local Coordinator = require("lb.sync_coordinate")
    local c = Coordinator.new { store = {}, settings = {} }
    c.progress[1] = { state = "copying", failed = 0, open = 3 }
    c.able = function(instance) return instance ~= "a" end
    c.round.wait = function()
      t, c.over = t + 1, c.over + 1
      c.begun = c.over
    end
    local job = copy_of(row)
    job.state = "copying"
    assert.equal("a", c:await_tasks(job).away)
    assert.is_true(t < 1020)
  end)

  it("that was cancelled stays so, however long it cannot be cleaned up behind it", function()
    row.kind, row.state, row.rebuild, row.laters = "rebuild", "cancelled", 5, 50
    function calls.ask() return nil, "the holder did not answer" end
    Job.run(context, copy_of(row))
    assert.same({ "cancelled", 0 }, { row.state, row.attempts })
  end)

  it("of which another one coordinates is left alone", function()
    function context.store.found() return { '{"ids":["x"]}' } end
    function calls.ask(_, _, _, _, _, epoch)
      assert.equal(3, epoch)
      return nil, "not ours"
    end
    Job.run(context, copy_of(row))
    assert.same({ "confirming", 0 }, { row.state, #context.store.more })
  end)

  it("fails at once when its records cannot be copied whatever is tried", function()
    row.kind, row.state, row.rebuild, row.p0, row.upto, row.chunked = "rebuild", "copying", 5, 9, 9, true
    function calls.ask() return { ok = true } end
    function context.await(job)
      return { state = job.state, failed = 1, open = 0, error = "1 record holds NaN, whatever is tried" }
    end
    Job.run(context, copy_of(row))
    assert.same({ "failed", 0 }, { row.state, row.attempts })
    assert.same({ "rebuild_failed" }, events)
  end)

  it("fails at once when the list of ids is larger than its memory", function()
    row.state, row.chunked = "comparing", false
    local most = {}
    package.loaded["lb.courier"].request = function(r)
      if r.method == "GET" then return { status = 200, body = "1" } end
      most[#most + 1] = r.max
      return nil, "garbage", "an answer larger than " .. r.max
    end
    Job.run(context, copy_of(row))
    assert.equal("failed", row.state)
    assert.same({ true, 100 * 1024 * 1024 }, { most[1] < 100000, most[2] })
    assert.is_truthy(row.ended.error:find("larger than the 100 MB that MAX_MEMORY_MB leaves", 1, true))
  end)

  it("leaves a source that does not answer for another one, and waits for it when there is none", function()
    row.kind, row.state, row.rebuild, row.p0, row.chunked = "rebuild", "copying", 5, 3, false
    local copies, asked = context.store.copies(), {}
    function context.store.copies() return copies end
    package.loaded["lb.courier"].nodes = function()
      return { { name = "a", health = "up" }, { name = "b", health = "up" }, { name = "c", health = "up" } }
    end
    package.loaded["lb.courier"].request = function(r)
      if r.method == "GET" and r.target:find("/count$") then return { status = 200, body = "5" } end
      if r.method == "GET" then return { status = 200, body = "{}" } end
      return nil, "late"
    end
    package.loaded["lb.sync_choose"].authority = function(_, list) return list[1] end
    package.loaded["lb.sync_store"].collection_begins = function() return { "begins" } end
    function context.store.disk_free_mb() end
    function calls.ask(kind, _, _, a)
      asked[#asked + 1] = kind .. " " .. tostring(a.source)
      return kind == "begin" and nil or { ok = true }, "that is all"
    end
    Job.run(context, copy_of(row))
    assert.same({ "copying", 0, "a did not answer within 10 s" }, { row.state, row.attempts, row.error })
    copies[3] = { instance = "c", state = "ready", physical = "pc", position = 9 }
    Job.run(context, copy_of(row))
    assert.same({ "waiting", 1 }, { row.state, row.attempts })
    row.asked_by = "somebody"
    Job.run(context, copy_of(row))
    assert.same({ "abandon nil", "begin c" }, asked)
  end)

  -- A rebuild of b that begins while these do not answer. {source that was begun with, ...}
  local function begins(silent_ones)
    local begun = {}
    row.kind, row.state, row.source, row.asked_by = "rebuild", "waiting", nil, "somebody"
    package.loaded["lb.courier"].nodes = function()
      return { { name = "a", health = "up" }, { name = "b", health = "up" }, { name = "c", health = "up" } }
    end
    package.loaded["lb.courier"].request = function(r)
      if silent_ones[r.node] then return nil, "late" end
      return { status = 200, body = "{}" }
    end
    package.loaded["lb.sync_choose"].authority = function(_, list) return list[1] end
    function context.store.disk_free_mb() end
    function calls.ask(kind, _, _, a)
      if kind == "begin" then begun[#begun + 1] = a.source end
      return nil, "that is all"
    end
    return begun
  end

  it("leaves a source that does not answer when it begins for another one, or waits for it", function()
    local begun, copies = begins { a = true }, context.store.copies()
    function context.store.copies() return copies end
    Job.run(context, copy_of(row))
    assert.same({ "waiting", 0, "a did not answer within 10 s" }, { row.state, row.attempts, row.error })
    copies[3] = { instance = "c", state = "ready", physical = "pc", position = 9 }
    Job.run(context, copy_of(row))
    assert.same({ "waiting", 1 }, { row.state, row.attempts })
    Job.run(context, copy_of(row))
    assert.same({ "c" }, begun)
  end)

  it("keeps its source when its target was at fault", function()
    local begun = begins {}
    local copies = context.store.copies()
    copies[3] = { instance = "c", state = "ready", physical = "pc", position = 9 }
    function context.store.copies() return copies end
    for why, source in pairs { ["b answered 500 to add: a"] = "a", ["a-b answered 500 to get"] = "a",
      ["a answered 500 to get: b"] = "c", ["the copy on a is rebuild"] = "c" } do
      row.state, row.source, row.p0, row.rebuild, row.chunked, row.attempts = "copying", "a", 3, nil, true, 0
      context.failed_from = {}
      function context.await(job) return { state = job.state, failed = 1, open = 0, error = why } end
      Job.run(context, copy_of(row))
      assert.same({ "waiting", 1 }, { row.state, row.attempts })
      Job.run(context, copy_of(row))
      assert.equal(source, begun[#begun], why)
    end
  end)

  it("fails before anything is made when the disk of its target has no room for it and for others", function()
    local begun = begins {}
    package.loaded["lb.courier"].request = function(r)
      return { status = 200, body = r.target:find("/count$") and "100000"
        or r.target:find("/get$") and '{"ids":["x"],"documents":["' .. ("d"):rep(1000) .. '"]}' or '{"dimension":384}' }
    end
    local free = 1000 -- MB, of which it needs 780
    function context.store.disk_free_mb(_, instance)
      assert.equal("b", instance)
      return free
    end
    Job.run(context, copy_of(row))
    assert.same({ "waiting", "a" }, { row.state, begun[1] })
    local other = { id = 2, instance = "b", needed_mb = 600 }
    context.running, context.progress = { [2] = other }, { [2] = { records = 50 } }
    other.records = 100 -- half of it is there
    Job.run(context, copy_of(row))
    assert.same({ "failed", 1, "rebuild_failed" }, { row.state, #begun, events[1] })
    assert.is_truthy(row.ended.error:find("^b needs about %d+ MB for it, and about 300 MB for others and has 1000 MB"))
    context.running, free, row.state, row.ended = {}, 700, "waiting", nil
    Job.run(context, copy_of(row))
    assert.same({ "failed", 1 }, { row.state, #begun })
    assert.is_truthy(row.ended.error:find("^b needs about %d+ MB for it and has 700 MB left$"))
  end)

  it("has what a lost worker sent waited for where the target runs, and catches up from the beginning then", function()
    row.kind, row.state, row.rebuild, row.p0, row.upto, row.chunked = "rebuild", "copying", 5, 3, 3, true
    row.settle, row.losses = 30, 1
    local asked = {}
    function calls.ask(kind, _, _, a)
      assert.equal("finish", kind)
      asked[#asked + 1] = { a.upto, a.settle }
      if #asked == 1 then
        row.settle = 0 -- as job_settled does
        return { more = 500, position = 9, from = 3 }
      end
      return { done = true, position = 9, hold_ms = 1 }
    end
    Job.run(context, copy_of(row))
    assert.same({ { 3, 30 }, { 9, 0 } }, asked)
    assert.equal("done", row.state)
  end)

  it("of an adoption that had begun makes the copy anew and is not repeated", function()
    row.kind, row.state, row.rebuild, row.p0, row.chunked = "adopt", "copying", 5, 3, true
    local asked = {}
    function calls.ask(kind)
      asked[#asked + 1] = kind
      return { ok = true }
    end
    function context.await(job) return { state = job.state, failed = 1, open = 0, error = "some" } end
    Job.run(context, copy_of(row))
    assert.same({ "mark", "abandon" }, asked)
    assert.same({ "gone", 0 }, { row.state, row.attempts })
  end)

  it("of an adoption by which much would be changed makes the copy anew and mends nothing", function()
    row.kind, row.state, row.rebuild, row.p0, row.chunked = "adopt", "comparing", 5, 3, true
    local asked, found = {}, '{"ids":["x"]}'
    function calls.ask(kind)
      asked[#asked + 1] = kind
      return { ok = true }
    end
    function context.store.found() return { found } end
    function context.await(job) return job.state == "comparing" and { state = job.state, failed = 0, open = 0 } end
    Job.run(context, copy_of(row)) -- one of five
    assert.same({ {}, "copying" }, { asked, row.state })
    row.state, row.chunked, found = "comparing", true, '{"ids":["x","y"]}'
    Job.run(context, copy_of(row))
    assert.same({ "mark", "abandon" }, asked)
    assert.equal("gone", row.state)
  end)

  it("is different when the collection itself is not what it is elsewhere", function()
    package.loaded["lb.courier"].request = function(r)
      if r.target:find("/count$") then return { status = 200, body = "5" } end
      return { status = 200, body = string.format('{"id":"p%s","metadata":{"k":%d},"configuration_json":"{}"}', r.node,
        r.node == "a" and 1 or 2) }
    end
    Job.run(context, copy_of(row))
    assert.equal("done", row.state)
    assert.equal("the collection on b is not what it is on a: its metadata are others", row.ended.error)
  end)
end)

describe("the lease of a worker", function()
  local sync, fence, boot, work

  before_each(function()
    set_up()
    boot, fence = 100, 0
    package.loaded["lb.courier"] = { nodes = function() return {} end, boottime = function() return boot end,
      fence = function(till) fence = till end }
    work = { changing = 0, wake = {}, current = silent, renewed = silent, start = silent }
    package.loaded["lb.sync_work"] = { new = function() return work end }
    package.loaded["lb.sync_coordinate"] = { new = silent }
    package.loaded["lb.sync_store"] = { new = function() return { beat = function() return {} end } end }
    package.loaded["lb.schema"] = { migrate = function() return true end }
    package.loaded["chromux.copies"] = {}
    rawset(_G, "pg", { connection = function() return { listen = silent } end })
    package.loaded["lb.sync"] = nil
    sync = require("lb.sync")
    sync.start { role = "worker", LEASE_TIMEOUT = 5, DEFAULT_BATCH_SIZE = 10, MAX_MEMORY_MB = 100 }
    spawned[1][1](spawned[1][2])
  end)
  after_each(tear_down)

  -- One more heartbeat.
  local function beat()
    local keep = spawned[2]
    rawset(_G, "sleep", function() error("one is enough", 0) end)
    pcall(keep[1], keep[2], keep[3])
  end

  it("is not taken up again while a write from before it ran out is on its way", function()
    assert.equal(105, fence)
    boot, work.changing = 104, 1
    beat()
    assert.equal(109, fence)
    boot = 150
    beat()
    assert.equal(109, fence)
    work.changing = 0
    beat()
    assert.equal(155, fence)
  end)
end)
