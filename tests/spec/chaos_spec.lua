-- The history checker of tests/chaos: each kind of wrong is found in a history that has it, and nothing in one that
-- has none.
package.path = "tests/chaos/?.lua;" .. package.path
local Model = require("model")
local Check = require("check")
local Rng = require("rng")
local Faults = require("faults")
local CheckSync = require("check_sync")
local Plants = require("plants")
local bugs = require("bugs")

local NULL = (require("cjson")).null

-- A history of one collection (lane 1, id L) on two servers: created, then these writes, in order.
-- w: {action=, body=}; each is acknowledged, at [10 n, 10 n + 5].
local function history(writes)
  local h = { ops = {}, entries = {}, collections = { { lane = 1, logical = "L", name = "c" } }, servers = {} }
  h.ops[1] = { id = 0, class = "catalogue", action = "create_collection", token = "u0", name = "c", start = 0,
    stop = 1, outcome = "ack", status = 200, lane = 0, n = 1 }
  h.entries[1] = { lane = 0, n = 1, action = "create_collection", token = "u0", verdict = "applied", name = "c",
    logical = "L" }
  local lane = Model.new()
  for n, w in ipairs(writes) do
    h.ops[#h.ops + 1] = { id = n, class = "write", action = w.action, token = "u" .. n, start = 10 * n,
      raw = "raw" .. n, stop = 10 * n + 5,
      outcome = "ack", status = 200, lane = 1, n = n, logical = "L", body = w.body }
    h.entries[#h.entries + 1] = { lane = 1, n = n, action = w.action, token = "u" .. n, verdict = "applied",
      body = w.body, raw = "raw" .. n }
    Model.apply(lane, n, w.action, w.body)
  end
  h.copies = {}
  for _, name in ipairs { "a", "b" } do
    local records = {}
    for id, r in pairs(lane.records) do
      records[id] = { doc = r.doc, emb = r.emb, meta = {} }
      for k, v in pairs(r.meta) do records[id].meta[k] = v end
    end
    h.servers[name] = { ["P" .. name] = { name = "c", records = records } }
    table.insert(h.copies, { lane = 0, instance = name, physical = "", position = 1, head = 1, state = "ready" })
    table.insert(h.copies, { lane = 1, instance = name, physical = "P" .. name, position = #writes, head = #writes,
      state = "ready" })
  end
  return h
end

local function upsert(u, ...)
  local body = { ids = { ... }, documents = {}, metadatas = {}, embeddings = {} }
  for i in ipairs(body.ids) do
    body.documents[i], body.metadatas[i], body.embeddings[i] = "d" .. u, { u = u }, { u, 0.5 }
  end
  return { action = "upsert", body = body }
end

local function read(action, start, seen, body)
  return { id = "read", class = "read", action = action, logical = "L", start = start, stop = start + 1, status = 200,
    seen = seen, body = body, instance = "a" }
end

local function record(u) return { doc = "d" .. u, meta = { u = u }, emb = { u, 0.5 } } end

-- The kinds of what was found.
local function kinds(h)
  local out = {}
  for _, text in ipairs((Check.all(h))) do out[text:match("^([^:]+):")] = true end
  local list = {}
  for k in pairs(out) do list[#list + 1] = k end
  table.sort(list)
  return table.concat(list, " ")
end

local function two() return history { upsert(1, "x"), upsert(2, "x", "y") } end

describe("the model", function()
  local lane
  before_each(function()
    lane = Model.new()
    Model.apply(lane, 1, "upsert", { ids = { "x" }, documents = { "d" }, metadatas = { { a = 1, b = "t" } },
      embeddings = { { 1 } } })
  end)

  it("leaves an existing record to add", function()
    Model.apply(lane, 2, "add", { ids = { "x", "y", "y" }, documents = { "e", "f", "g" },
      embeddings = { { 2 }, { 3 }, { 4 } } })
    assert.equal("d", lane.records.x.doc)
    assert.equal("f", lane.records.y.doc)
  end)

  it("merges metadata, and keeps what is not sent", function()
    Model.apply(lane, 2, "upsert", { ids = { "x" }, documents = { NULL }, metadatas = { { a = NULL, c = 3 } },
      embeddings = { { 2 } } })
    assert.equal("doc:d b=string:t c=3", Model.text(lane.records.x))
    assert.equal("2", Model.vector(lane.records.x))
  end)

  it("makes nothing by update", function()
    Model.apply(lane, 2, "update", { ids = { "y" }, documents = { "d" } })
    assert.is_nil(lane.records.y)
  end)

  it("knows that an update of a missing record may leave its vector", function()
    Model.apply(lane, 2, "update", { ids = { "y" }, embeddings = { { 7 } } })
    Model.apply(lane, 3, "add", { ids = { "y" }, embeddings = { { 8 } } })
    assert.is_true(Model.may_have(lane.records.y, "8"))
    assert.is_true(Model.may_have(lane.records.y, "7"))
    assert.is_false(Model.may_have(lane.records.y, "9"))
    Model.apply(lane, 4, "update", { ids = { "y" }, embeddings = { { 9 } } })
    assert.is_false(Model.may_have(lane.records.y, "7"))
  end)

  it("deletes what a filter matches", function()
    Model.apply(lane, 2, "delete", { where = { ["$or"] = { { a = { ["$gte"] = 2 } }, { b = "t" } } } })
    assert.is_nil(lane.records.x)
    assert.equal(0, lane.count)
  end)

  it("knows what may be seen from an entry on", function()
    Model.apply(lane, 2, "delete", { ids = { "x" } })
    Model.apply(lane, 5, "add", { ids = { "x" }, embeddings = { { 9 } } })
    local seen = Model.versions_from(lane, "x", 3)
    assert.equal(2, #seen)
    assert.is_nil(seen[1].record)
    assert.equal("9", Model.vector(seen[2].record))
  end)
end)

describe("the checker", function()
  it("has nothing against a clean history", function()
    local h = two()
    table.insert(h.ops, read("get_ids", 16, { x = record(1) }, { ids = { "x", "z" } }))
    table.insert(h.ops, read("get_ids", 21, { x = record(2), y = record(2) }, { ids = { "x", "y" } }))
    table.insert(h.ops, read("count", 26, 2))
    table.insert(h.ops, read("get_where", 26, { x = record(2), y = record(2) }, { where = { u = 2 } }))
    assert.equal("", kinds(h))
  end)

  it("finds a lost acknowledged write", function()
    local h = two()
    table.remove(h.entries)
    for _, c in ipairs(h.copies) do if c.lane == 1 then c.head, c.position = 1, 1 end end
    for name in pairs(h.servers) do h.servers[name]["P" .. name].records = { x = record(1) } end
    assert.equal("lost", kinds(h))
  end)

  it("finds a write that was acknowledged before it was anything", function()
    local h = two()
    h.ops[3].lane, h.ops[3].n = nil, nil
    assert.equal("unnamed", kinds(h))
    h.ops[3].token = "u7"
    assert.equal("lost", kinds(h))
  end)

  it("finds an entry that comes over the connection of who had the lease before", function()
    local h = two()
    h.appends = { { lane = 1, n = 1, epoch = 1, holder = "one", backend = 11 },
      { lane = 1, n = 2, epoch = 2, holder = "two", backend = 12 },
      { lane = 1, n = 3, epoch = 3, holder = "one", backend = 11 } }
    assert.equal("", kinds(h))
    h.appends[3].holder, h.appends[3].epoch = "two", 2
    assert.equal("old holder", kinds(h))
  end)

  it("lets a read see what the server was doing just then and is rejected, and no other", function()
    local h = two()
    h.ops[4] = { id = 3, class = "write", action = "upsert", token = "u3", start = 30, stop = 33, outcome = "reject",
      status = 400, lane = 1, n = 3, logical = "L", body = upsert(3, "x").body }
    h.entries[4] = { lane = 1, n = 3, action = "upsert", token = "u3", verdict = "rejected", body = h.ops[4].body }
    for _, c in ipairs(h.copies) do if c.lane == 1 then c.head, c.position = 3, 3 end end
    h.ops[5] = read("get_ids", 31, { x = record(3) }, { ids = { "x" } })
    assert.equal("unknown state", kinds(h))
    h.wire = { { server = "a", action = "upsert", marks = { "u3" }, came = 30.9, answered = 31.5, done = true } }
    assert.equal("", kinds(h))
    h.wire[1].came, h.wire[1].answered = 30.1, 30.2
    assert.equal("unknown state", kinds(h))
  end)

  it("finds a filter where ids should be", function()
    local h = two()
    h.wire = { { server = "b", action = "delete", raw = "", body = { ids = { "x" } } } }
    assert.equal("", kinds(h))
    h.wire[1].body = { where = { g = 1 } }
    assert.equal("filter sent", kinds(h))
  end)

  it("finds an acknowledged write that was rejected, and a rejected one that was applied", function()
    local h = history { upsert(1, "x") }
    h.entries[2].verdict = "rejected"
    for name in pairs(h.servers) do h.servers[name]["P" .. name].records = {} end
    assert.equal("lost", kinds(h))
    h = two()
    h.ops[3].outcome = "reject"
    assert.equal("rejected", kinds(h))
  end)

  it("finds a write that was said not to be kept", function()
    local h = two()
    h.ops[3].outcome, h.ops[3].lane, h.ops[3].n = "not_kept", nil, nil
    assert.equal("not_kept", kinds(h))
    h.ops[3].outcome = "unknown"
    assert.equal("", kinds(h))
  end)

  it("finds one write twice in the journal", function()
    local h = two()
    table.insert(h.entries, { lane = 1, n = 3, action = "upsert", token = "u2", verdict = "applied", raw = "raw2",
      body = upsert(2, "x", "y").body })
    for _, c in ipairs(h.copies) do if c.lane == 1 then c.head, c.position = 3, 3 end end
    assert.equal("twice", kinds(h))
  end)

  it("finds numbers against the order of time", function()
    local h = two()
    h.ops[2].start, h.ops[2].stop = 40, 45
    h.ops[3].start, h.ops[3].stop = 20, 25
    assert.equal("order", kinds(h))
  end)

  it("finds a stale read of a record, a filter and a count", function()
    for _, r in ipairs {
      read("get_ids", 26, { x = record(1) }, { ids = { "x" } }),
      read("get_ids", 26, {}, { ids = { "y" } }),
      read("get_where", 26, { x = record(2) }, { where = { u = 2 } }),
      read("query", 26, { x = record(1) }, { n_results = 1 }),
      read("count", 26, 1),
    } do
      local h = two()
      table.insert(h.ops, r)
      assert.equal("stale", kinds(h), r.action)
      r.start, r.stop = 24, 27
      assert.equal("", kinds(h), r.action)
    end
  end)

  it("finds a query that comes back with too few", function()
    local h = two()
    h.ops[4] = read("query", 26, { x = record(2) }, { n_results = 5 })
    assert.equal("short", kinds(h))
    h.ops[4].start = 24
    assert.equal("", kinds(h))
  end)

  it("judges a read by what its own balancer had acknowledged", function()
    local h = two()
    for _, op in ipairs(h.ops) do op.via = 1 end
    h.ops[4] = read("get_ids", 26, { x = record(1) }, { ids = { "x" } })
    h.ops[4].via = 2
    assert.equal("", kinds(h))
    h.ops[3].via = 2
    assert.equal("stale", kinds(h))
    h.ops[4] = { id = "read", class = "read", action = "count", logical = "L", start = 26, stop = 27, status = 404,
      via = 2 }
    assert.equal("", kinds(h))
    h.ops[1].via = 2
    assert.equal("missing", kinds(h))
  end)

  it("lets a copy whose files were damaged be set aside or right, and no other", function()
    local h = two()
    h.broken = { a = { Pa = "segment" }, b = {} }
    assert.equal("", kinds(h))
    h.servers.a.Pa = { name = "c", error = "500" }
    assert.equal("diverged", kinds(h))
    for _, c in ipairs(h.copies) do
      if c.physical == "Pa" then c.state, c.reason = "rebuild", "500" end
    end
    assert.equal("", kinds(h))
    h.broken = { a = {}, b = { Pb = "segment" } }
    assert.equal("rebuild", kinds(h))
  end)

  it("finds a read of what was never applied, and of half a write", function()
    local h = two()
    table.insert(h.ops, read("get_ids", 26, { x = record(7) }, { ids = { "x" } }))
    assert.equal("unknown state", kinds(h))
    h = two()
    table.insert(h.ops, read("get_ids", 26, { x = { doc = "d2", meta = { u = 2 }, emb = { 1, 0.5 } } },
      { ids = { "x" } }))
    assert.equal("unknown state", kinds(h))
  end)

  it("finds a copy that differs in a document, a vector or by a record", function()
    for _, change in ipairs {
      function(r) r.x.doc = "other" end, function(r) r.x.emb = { 1, 0.5 } end, function(r) r.y = nil end,
      function(r) r.z = record(3) end, function(r) r.x.meta.extra = 1 end,
    } do
      local h = two()
      change(h.servers.b.Pb.records)
      assert.equal("diverged", kinds(h))
    end
  end)

  it("finds a collection that is missing, nameless or nobody's", function()
    local h = two()
    h.servers.b.Pb = nil
    assert.equal("diverged", kinds(h))
    h = two()
    h.servers.b.Pb.name = "d"
    assert.equal("diverged", kinds(h))
    h = two()
    h.servers.b.Q = { name = "q", records = {} }
    assert.equal("ghost", kinds(h))
  end)

  it("finds names that the catalogue's rows and entries see differently", function()
    local h = two()
    h.collections[1].deleted = true
    assert.truthy(kinds(h):find("catalogue", 1, true))
  end)

  it("finds a journal that has not come to rest", function()
    local h = two()
    h.copies[4].position = 1
    assert.equal("behind", kinds(h))
    h.servers.b.Pb.records = { x = record(1) } -- as it was then
    assert.equal("behind", kinds(h))
    h.servers.b.Pb.records = { x = record(2), y = record(1) }
    assert.equal("behind diverged", kinds(h))
    h = two()
    h.entries[3].verdict = nil
    assert.truthy(kinds(h):find("undecided", 1, true))
  end)

  it("counts copies that are to be made anew against what is allowed", function()
    local h = two()
    h.copies[4].state = "rebuild"
    h.servers.b.Pb.records = {}
    assert.equal("rebuild", kinds(h))
    h.rebuild_most = 1
    assert.equal("", kinds(h))
  end)

  it("finds a collection that is said to be gone, and one read after its end", function()
    local h = two()
    local r = read("get_ids", 26, nil, { ids = { "x" } })
    r.status = 404
    table.insert(h.ops, r)
    assert.equal("missing", kinds(h))
    h = two()
    h.entries[4] = { lane = 0, n = 2, action = "delete_collection", token = "u9", verdict = "applied", name = "c" }
    h.collections[1].deleted = true
    for _, c in ipairs(h.copies) do if c.lane == 0 then c.position, c.head = 2, 2 end end
    h.servers.a.Pa, h.servers.b.Pb = nil, nil
    table.insert(h.ops, { id = 9, class = "catalogue", action = "delete_collection", token = "u9", name = "c",
      start = 30, stop = 31, outcome = "ack", status = 200, lane = 0, n = 2 })
    assert.equal("", kinds(h))
    table.insert(h.ops, read("get_ids", 35, { x = record(2) }, { ids = { "x" } }))
    assert.equal("stale", kinds(h))
  end)

  it("finds a name that is seen as it was before", function()
    local h = two()
    local r = read("get_name", 5)
    r.name, r.logical, r.status = "c", nil, 404
    table.insert(h.ops, r)
    assert.equal("stale", kinds(h))
    r.start = 0.5
    assert.equal("", kinds(h))
  end)

  it("compares only between servers what failed everywhere", function()
    local h = two()
    h.ops[3].outcome, h.ops[3].n, h.entries[3].verdict = "unknown", nil, "failed"
    assert.equal("", kinds(h))
    h.servers.b.Pb.records.x.doc = "other"
    assert.equal("diverged", kinds(h))
  end)
end)

describe("a planted bug", function()
  -- What is said of the first bug when rounds are as play() says.
  local function told(play)
    local out = {}
    local passed, failed = Plants.find(bugs[1].name, { play = play, now = os.clock,
      say = function(...) out[#out + 1] = string.format(...) end })
    return passed, failed, out[1]
  end
  local LOST = "lost: op 1 was acknowledged without an entry's number and is not in the journal"

  it("is found by what is its own, in a round that is clean without it", function()
    local passed, failed, text = told(function(seed, planted)
      return planted.bug and seed == 3 and { "stale: x", LOST } or planted.bug and { "stale: x" } or {}
    end)
    assert.same({ 1, 0 }, { passed, failed })
    assert.truthy(text:find("^ok .*seed 3, .*not in the journal"))
  end)

  it("is not by anything else, nor if the same round has findings without it", function()
    local passed, failed, text = told(function() return { "round: it crashed" } end)
    assert.same({ 0, 1 }, { passed, failed })
    assert.truthy(text:find("^MISSED .*20 rounds; round: it crashed"))
    passed, failed, text = told(function() return { LOST } end)
    assert.same({ 0, 1 }, { passed, failed })
    assert.truthy(text:find("^MISSED .*not clean"))
  end)

  it("has a round of its own, each", function()
    assert.equal(8, #bugs)
    assert.same({ 0, #bugs }, { Plants.find("all", { play = function() return {} end, now = os.clock,
      say = function() end }) })
  end)
end)

describe("a schedule of faults", function()
  it("is the same for the same seed", function()
    for schedule, names in pairs { schedule = Faults.names, schedule_sync = Faults.sync_names } do
      local function plan(seed) return Faults.describe(Faults[schedule](Rng.new(seed, "faults"), names, 5)) end
      assert.equal(plan(5), plan(5))
      assert.not_equal(plan(5), plan(6))
    end
  end)
end)

describe("what workers did", function()
  -- A rebuild of three ids in two chunks and a comparison of them, both done; equal everywhere, nothing left.
  local function done()
    return {
      jobs = {
        { id = 1, kind = "rebuild", lane = 1, instance = "a", state = "done", records = 3, done_records = 3,
          reason = "lost" },
        { id = 2, kind = "verify", lane = 1, instance = "a", state = "done", records = 3, done_records = 3,
          reason = "scheduled" },
      },
      tasks = {
        { id = 11, job = 1, kind = "copy", first = 0, last = 1, status = "completed", records = 2, ids = { "x", "y" } },
        { id = 12, job = 1, kind = "copy", first = 2, last = 2, status = "completed", records = 0, ids = { "z" } },
        { id = 13, job = 1, kind = "touched", first = 5, last = 9, status = "completed", records = 4 },
        { id = 21, job = 2, kind = "compare", first = 0, last = 2, status = "completed", records = 3,
          ids = { "x", "y", "z" } },
      },
      completed = { { task = 11, job = 1 }, { task = 12, job = 1 }, { task = 13, job = 1 }, { task = 21, job = 2 } },
      hashes = { [1] = { a = { x = "1", y = "2" }, b = { x = "1", y = "2" } } },
      names = { a = { "c" }, b = { "c" } },
    }
  end

  local function found(change)
    local s = done()
    change(s)
    local out = {}
    for _, text in ipairs(CheckSync.all(s)) do out[text:match("^[^:]+")] = true end
    local names = {}
    for name in pairs(out) do names[#names + 1] = name end
    table.sort(names)
    return table.concat(names, " ")
  end

  it("is clean when all was done once", function()
    assert.equal("", found(function() end))
  end)

  it("is not when a chunk is counted twice, missing, or its ids are another's too", function()
    assert.equal("counted twice", found(function(s) table.insert(s.completed, { task = 11, job = 1 }) end))
    assert.equal("chunks", found(function(s) table.remove(s.tasks, 1) end))
    assert.equal("chunks", found(function(s) s.tasks[2].ids = { "x" } end))
    assert.equal("chunks", found(function(s) s.tasks[2].ids = { "z", "w" } end))
    assert.equal("chunks", found(function(s) s.tasks[1].records = 3 end))
    assert.equal("chunks", found(function(s) s.tasks[2].status = "pending" end))
    assert.equal("chunks", found(function(s) s.jobs[1].records = 4 end))
    assert.equal("chunks", found(function(s) s.jobs[2].done_records = 4 end))
    assert.equal("", found(function(s) s.jobs[2].done_records, s.jobs[2].reason = 0, "it was dropped" end))
  end)

  it("is not when something failed for good", function()
    local failed = { id = 3, kind = "rebuild", lane = 1, instance = "a", state = "failed", records = 0,
      done_records = 0, error = "why" }
    assert.equal("failed job", found(function(s) table.insert(s.jobs, failed) end))
    assert.equal("", found(function(s)
      table.insert(s.jobs, failed)
      table.insert(s.jobs, { id = 4, kind = "rebuild", lane = 1, instance = "a", state = "done", records = 0,
        done_records = 0 })
    end))
    assert.equal("failed task", found(function(s)
      table.insert(s.tasks, { id = 14, job = 1, kind = "touched", first = 0, last = 9, status = "failed", records = 0 })
    end))
  end)

  it("is not when a copy was held too long", function()
    assert.equal("", found(function(s) s.jobs[1].hold_ms, s.hold_most = 250, 250 end))
    assert.equal("hold", found(function(s) s.jobs[1].hold_ms, s.hold_most = 251, 250 end))
  end)

  it("is not when copies differ", function()
    assert.equal("not equal", found(function(s) s.hashes[1].a.x = "3" end))
    assert.equal("not equal", found(function(s) s.hashes[1].a.x = nil end))
    assert.equal("not equal", found(function(s) s.hashes[1].b.x = nil end))
  end)

  it("is not when something of ours is left on a server", function()
    assert.equal("left over", found(function(s) s.names.a[2] = "chromux-temp-1-a-1-1" end))
    assert.equal("left over", found(function(s) s.names.a[2] = "chromux-tomb-rebuild-1" end))
    assert.equal("left over", found(function(s) s.names.a[2] = "c-aside-01234567" end))
  end)
end)

describe("the fault points that the protocol names", function()
  it("are each a call, and those in which something is made to happen can be planned", function()
    local f = assert(io.popen("cat lua/lb/*.lua core/courier.c"))
    local text = f:read("*a")
    f:close()
    local called = {}
    for name in text:gmatch('fault[%w_]*(%b())') do
      for point in name:gmatch('"([%w_.]+)"') do called[point] = true end
    end
    for _, name in ipairs(Faults.protocol) do assert.is_true(called[name], name .. " is no call") end
    for _, list in ipairs { Faults.steps, Faults.poison_steps } do
      for _, name in ipairs(list) do assert.is_true(called[name], name .. " is no call") end
    end
    for name in pairs(Faults.made) do assert.is_true(called[name], name .. " is no call") end
  end)

  it("are planned by the seed alone", function()
    local function plan(seed)
      local rng = Rng.new(seed, "x")
      return table.concat(Faults.make_things_happen(rng, Faults.step_plan(rng, Faults.steps, seed), 2, seed), " | ")
    end
    for seed = 1, 20 do assert.equal(plan(seed), plan(seed)) end
    assert.is_true(plan(1) ~= plan(2))
  end)
end)
