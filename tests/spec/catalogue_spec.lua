-- Verdicts on catalogue operations that every instance answers with an error (lua/lb/names.lua, operations.lua), with
-- stand-ins for PostgreSQL and the servers. They need chromux's slice, so under plain busted they are pending.
local json = require("cjson.safe")

local GLOBALS = { "now", "sleep", "spawn", "log", "pg", "json" }
local CONFIG = '"dimension":null,"tenant":"t","database":"d","configuration_json":{"hnsw":{"ef_search":100}}'

local it_ = pcall(require, "chromux.slice") and require("chromux.slice").members and it or pending
local saved, tasks, clock

local function silent() end

local function set_up()
  saved, tasks, clock = {}, {}, 1000
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  rawset(_G, "now", function() return clock end)
  rawset(_G, "spawn", function(fn, ...) tasks[#tasks + 1] = { fn, ... } end)
  rawset(_G, "log", { debug = silent, info = silent, warn = silent, error = silent })
  rawset(_G, "pg", { bytes = function(s) return { bytes = s } end })
  rawset(_G, "json", json)
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
end

-- Two instances that have the collection "old", each under an id of its own, and answer every PUT with 500.
-- at_put(server): what it does before.
local function world(at_put)
  local w = { told = {}, marked = {} }
  local function server(name)
    local s = { name = name, health = "up", admitted = 1, retired = false, held = "old", metadata = "null",
      collection = "00000000-0000-4000-8000-00000000000" .. name }
    function s.usable() return true end
    function s.run(_, fn) rawget(_G, "spawn")(fn) end
    function s.send(_, r)
      return { wait = function()
        if r.method == "PUT" then at_put(s, r.body) end
        return { status = 500, type = "application/json", body = '{"error":"InternalError","message":"m"}' }
      end }
    end
    function s.ask(_, _, target)
      if not target:find("/collections$") then return { status = 404, body = "{}" } end
      return { status = 200, body = string.format('[{"id":"%s","name":"%s","metadata":%s,%s}]', s.collection, s.held,
        s.metadata, CONFIG) }
    end
    return s
  end
  local a, b = server("a"), server("b")
  local store = { reader = { query = function() return {} end } }
  function store.commit(_, statements)
    local out = {}
    for i in ipairs(statements) do out[i] = { affected = 1 } end
    return out
  end
  function store.enqueue(_, statements, _, done) done(store:commit(statements)) end
  local context = { settings = { TRY_TIMEOUT = 1, DRAIN_CAP = 1 }, servers = { list = { a, b } }, store = store,
    drives = true, holder = true, fault = silent, rebuilds = { disturbed = silent }, encode = tostring,
    counts = require("lb.figures").counts(),
    events = { decided = silent }, answer = function(e, who) w.told[#w.told + 1] = { e.verdict, e.status, who } end }
  function context.lane_new(row)
    local lane = { id = row.id, logical = row.logical, tenant = "t", database = "d", name = row.name, copies = {},
      order = {} }
    function lane.copy_add(_, c)
      lane.copies[c.instance] = { instance = c.instance, server = c.server, physical = c.physical,
        state = c.state or "ready" }
      lane.order[#lane.order + 1] = lane.copies[c.instance]
      return lane.copies[c.instance]
    end
    function lane.mark(_, copy, state)
      copy.state = state
      w.marked[#w.marked + 1] = copy.instance
    end
    return lane
  end
  local names = require("lb.names").new(context)
  for _, s in ipairs { a, b } do names:member_add { instance = s.name, server = s } end
  w.lane = names:collection_add { id = 1, logical = "x", name = "old", tenant = "t", database = "d" }
  for _, s in ipairs { a, b } do
    names:copy_of(w.lane, { instance = s.name, server = s, physical = s.collection })
  end
  w.names, w.a, w.b = names, a, b
  local rounds = 0
  rawset(_G, "sleep", function(seconds)
    rounds, clock = rounds + 1, clock + seconds
    if rounds > 200 then context.drives = false end
  end)
  function w.go_on() rounds, context.drives = 0, true end
  function w.enter(e)
    e.n, e.tickets = names.head + 1, {}
    names:insert(e)
    for _ = 1, 200 do
      local mine = tasks
      tasks = {}
      for _, task in ipairs(mine) do task[1](unpack(task, 2)) end
    end
  end
  function w.put(body)
    w.enter { action = "update_collection", body = body,
      rest = json.encode { tenant = "t", database = "d", collection = "x", new_name = json.decode(body).new_name } }
  end
  return w
end

describe("an update of a collection that every instance answers with 500", function()
  before_each(set_up)
  after_each(tear_down)

  it_("is rejected when none has done it", function()
    local w = world(silent)
    w.put '{"new_name":"new","new_metadata":{"k":1}}'
    assert.same({ { "rejected", 500, "b" } }, w.told)
    assert.equals("old", w.lane.name)
    assert.same({ 1, 1 }, { w.names.copies.a.p, w.names.copies.b.p })
    assert.same({}, w.marked)
  end)

  it_("is applied when one has done it, whatever the others did", function()
    local w = world(function(s) if s.name == "b" then s.held, s.metadata = "new", '{"k":1}' end end)
    w.put '{"new_name":"new","new_metadata":{"k":1,"gone":null}}'
    assert.same({ { "applied", 200, "b" } }, w.told)
    assert.equals("new", w.lane.name)
    assert.same({ "a" }, w.marked) -- it never does it
    assert.same({ 1, 1 }, { w.names.copies.a.p, w.names.copies.b.p })
  end)

  it_("has failed when it does not show, and is as the instance has it that decided", function()
    local w = world(silent)
    w.put '{"new_configuration":{"hnsw":{"num_threads":2}}}'
    assert.equals("failed", w.told[1][1])
    local authority = w.told[1][3]
    assert.same({ authority == "a" and "b" or "a" }, w.marked)
    assert.same({ 1, 1 }, { w.names.copies.a.p, w.names.copies.b.p })
  end)

  it_("waits for an instance that is set aside, and for none that is retired or has no copy", function()
    local w = world(silent)
    w.names.copies.b.state = "unverified"
    w.put '{"new_name":"new"}'
    assert.same({}, w.told)
    w = world(silent)
    w.names.copies.b.state = "unverified"
    w.b.retired = true
    w.put '{"new_name":"new"}'
    assert.same({ { "rejected", 500, "a" } }, w.told)
    w = world(silent)
    w.lane.copies.b.physical, w.lane.copies.b.state = "", "rebuild"
    w.put '{"new_name":"new"}'
    assert.equals("rejected", w.told[1][1])
    assert.equals(500, w.told[1][2])
  end)

  it_("that was skipped gets its name back where it was done", function()
    local w = world(silent)
    local sent = {}
    function w.a.send(_, r)
      sent[#sent + 1] = r.body
      w.a.held = json.decode(r.body).new_name
      return { wait = function() return { status = 200, type = "application/json", body = "{}" } end }
    end
    w.names.copies.a.doubt, w.a.held = 1, "new"
    w.names:insert { n = 1, action = "update_collection", body = '{"new_name":"new"}', tickets = {},
      verdict = "skipped", rest = '{"tenant":"t","database":"d","collection":"x","new_name":"new","lane":1}' }
    for _ = 1, 50 do
      local mine = tasks
      tasks = {}
      for _, task in ipairs(mine) do task[1](unpack(task, 2)) end
    end
    assert.same({ '{"new_name":"old"}' }, sent)
    assert.equals(1, w.names.copies.a.p)
    assert.same({}, w.marked)
  end)
end)

describe("an instance that answers with 500 whatever it is asked", function()
  before_each(set_up)
  after_each(tear_down)

  local function ill(s)
    function s.ask()
      return { status = 500, body = '{"error":"InternalError","message":"m"}' }
    end
  end
  local created = { "create_collection", "create_database", "create_tenant" }

  it_("ends no create while another may do it, and one that all answer so fails", function()
    for _, action in ipairs(created) do
      local w = world(silent)
      ill(w.a)
      ill(w.b)
      w.b.usable = function() return false end
      w.enter { action = action, body = '{"name":"new"}', rest = '{"tenant":"t","database":"d","name":"new"}' }
      assert.same({}, w.told)
      w.b.usable = function() return true end
      w.go_on()
      w.enter { action = "update_collection", body = '{"new_name":"newer"}',
        rest = '{"tenant":"t","database":"d","collection":"y","new_name":"newer"}' }
      assert.same({ "failed", 500 }, { w.told[1][1], w.told[1][2] })
      assert.equals("rejected", w.told[2][1]) -- the next one comes to its turn
    end
  end)

  it_("does not hold up those behind what it may have done of a skipped entry", function()
    local w = world(silent)
    ill(w.a)
    w.names.copies.a.doubt = 1
    w.names:insert { n = 1, action = "update_collection", body = '{"new_name":"new"}', tickets = {},
      verdict = "skipped", rest = '{"tenant":"t","database":"d","collection":"x","new_name":"new","lane":1}' }
    w.enter { action = "update_collection", body = '{"new_name":"newer"}',
      rest = '{"tenant":"t","database":"d","collection":"y","new_name":"newer"}' }
    assert.equals(2, w.names.copies.a.p)
    assert.same({ "a" }, w.marked)
  end)

  it_("keeps its copy when there is no other good one, whatever it has done of a skipped entry", function()
    for _, lack in ipairs { function(w) w.lane.copies.b.state = "rebuild" end,
      function(w) w.b.usable = function() return false end end } do
      local w = world(silent)
      ill(w.a)
      lack(w)
      w.names.copies.a.doubt = 1
      w.enter { action = "update_collection", body = '{"new_metadata":{"k":1}}', verdict = "skipped",
        rest = '{"tenant":"t","database":"d","collection":"x","lane":1}' }
      assert.equals(1, w.names.copies.a.p)
      assert.same({ "ready", 0 }, { w.lane.copies.a.state, #w.marked })
    end
  end)

  -- How long it is asked what it has done of a create that was rejected; ill_for: how many times it answers so.
  local function asked_for(ill_for)
    local w, errors = world(silent), 0
    local killed = {}
    function w.a.ask(_, _, target)
      if target:find("/get$") then return { status = 200, body = '{"ids":[]}' } end
      errors = errors + 1
      if errors <= ill_for then return { status = 500, body = '{"error":"InternalError","message":"m"}' } end
      return { status = 200, body = '{"id":"00000000-0000-4000-8000-000000000009","name":"new",' .. CONFIG .. "}" }
    end
    function w.a.send(_, r)
      killed[#killed + 1] = r.method
      return { wait = function() return { status = 200, type = "application/json", body = "{}" } end }
    end
    w.names.copies.a.doubt = 1
    w.enter { action = "create_collection", body = '{"name":"new"}', verdict = "rejected",
      rest = '{"tenant":"t","database":"d","name":"new"}' }
    assert.equals(1, w.names.copies.a.p)
    return clock - 1000, killed
  end

  it_("is asked for ten seconds what it has done, not for a moment", function()
    local seconds, killed = asked_for(1000)
    assert.is_true(seconds >= 10 and seconds < 15)
    assert.same({}, killed)
    clock = 1000
    seconds, killed = asked_for(12)
    assert.is_true(seconds < 10)
    assert.same({ "PUT", "DELETE" }, killed)
  end)
end)

describe("a create of a free name that the instance says is taken", function()
  before_each(set_up)
  after_each(tear_down)

  local GHOST = "00000000-0000-4000-8000-000000000009"

  -- The instance has a collection of that name. recorded: the rests of creates that may have left it; ids: of its
  -- records. The verdict, its status, and what was sent.
  local function created(recorded, ids, body)
    local w, sent, there = world(silent), {}, "new"
    w.b.usable = function() return false end
    function w.names.context.store.reader.query(_, sql, name)
      if not sql:find("journal_entries", 1, true) then return {} end
      assert.equals('"new"', name)
      local rows = {}
      for i, rest in ipairs(recorded) do rows[i] = { rest = rest } end
      return rows
    end
    function w.a.ask(_, _, target)
      if target:find("/get$") then return { status = 200, body = '{"ids":' .. ids .. "}" } end
      if there ~= "new" then return { status = 404, body = "{}" } end
      return { status = 200, body = '{"id":"' .. GHOST .. '","name":"new",' .. CONFIG .. "}" }
    end
    function w.a.send(_, r)
      local a = { status = 200, type = "application/json", body = "{}" }
      sent[#sent + 1] = r.method .. " " .. r.target:match("/collections(.*)$")
      if r.method == "POST" and there == "new" then
        a.status, a.body = 409, '{"error":"UniqueConstraintError","message":"m"}'
      elseif r.method == "POST" then
        assert.is_nil(r.body:find("get_or_create", 1, true))
        a.body = '{"id":"00000000-0000-4000-8000-000000000008","name":"new",' .. CONFIG .. "}"
      elseif r.method == "PUT" then
        there = json.decode(r.body).new_name
      end
      return { wait = function() return a end }
    end
    w.enter { action = "create_collection", body = body or '{"name":"new"}',
      rest = '{"tenant":"t","database":"d","name":"new"}' }
    return w.told[1][1], w.told[1][2], sent
  end

  local OURS = { '{"tenant":"t","database":"d","name":"new","lane":4}' }

  it_("is done once the empty one has made way that an earlier create has left there", function()
    for _, body in ipairs { '{"name":"new"}', '{"name":"new","get_or_create":true}' } do
      local verdict, status, sent = created(OURS, "[]", body)
      assert.same({ "applied", 200 }, { verdict, status })
      assert.same({ "POST ", "PUT /" .. GHOST, "DELETE /chromux-tomb-ghost-1-1", "POST " }, sent)
    end
  end)

  it_("is rejected when that one has records, or no create of ours has left it there", function()
    for _, case in ipairs { { OURS, '["r"]' }, { {}, "[]" },
      { { '{"tenant":"t","database":"other","name":"new"}', '{"tenant":"t","database":"d","name":"newer"}' },
        "[]" } } do
      local verdict, status, sent = created(case[1], case[2])
      assert.same({ "rejected", 409, { "POST " } }, { verdict, status, sent })
    end
  end)
end)

describe("a collection that stands under the name of one that may have been made", function()
  before_each(set_up)
  after_each(tear_down)

  local function looked_at(ids)
    local server = { ask = function(_, method, target)
      if method == "GET" then
        return { status = 200, body = '{"id":"00000000-0000-4000-8000-000000000001","name":"x",' .. CONFIG .. "}" }
      end
      assert.equals("/collections/00000000-0000-4000-8000-000000000001/get", target)
      return ids and { status = 200, body = '{"ids":' .. ids .. "}" } or { status = 500, body = "" }
    end }
    local names = { physical = {}, context = { encode = tostring }, path = function(_, _, _, rest) return rest end }
    local is = require("lb.operations").create_collection.look(names, { instance = "a", server = server }, {},
      { tenant = "t", database = "d", name = "x" })
    return is or "later"
  end

  it_("is deleted under its tomb's name when that is all an earlier try had done", function()
    local asked = {}
    local server = { ask = function() return { status = 404, body = "{}" } end }
    function server.send(_, r)
      asked[#asked + 1] = r.method .. " " .. r.target
      return { wait = function() return { status = 200, body = "{}" } end }
    end
    local names = { physical = {}, context = { encode = tostring, settings = {}, fault = silent },
      path = function(_, _, _, rest) return rest end }
    local kind = require("lb.operations").create_collection.undo(names,
      { instance = "a", server = server, incarnation = 1 }, { n = 4 }, { tenant = "t", database = "d", name = "x" })
    assert.same({ "applied", { "DELETE /collections/chromux-tomb-undone-4-1" } }, { kind, asked })
  end)

  it_("is that one only while it is empty", function()
    assert.same({ "done", "undone", "later" }, { looked_at("[]"), looked_at('["r"]'), looked_at(nil) })
  end)
end)
