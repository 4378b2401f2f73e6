-- The holder's part of rebuilds (lua/lb/rebuild.lua, leftovers.lua), what is left over (aside.lua), and repairs of
-- single records (reconcile.lua), with stand-ins for PostgreSQL and the servers. They need chromux's slice and records,
-- so under plain busted they are pending.
local json = require("cjson.safe")

local GLOBALS = { "now", "sleep", "spawn", "log", "pg", "json" }

local it_ = pcall(require, "chromux.records") and require("chromux.slice").members and it or pending
local saved, tasks, time

local function silent() end

local function set_up()
  saved, tasks, time = {}, {}, 1000
  for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
  rawset(_G, "now", function() return time end)
  rawset(_G, "sleep", function(seconds) time = time + seconds end)
  rawset(_G, "spawn", function(fn, ...) tasks[#tasks + 1] = { fn, ... } end)
  rawset(_G, "log", { debug = silent, info = silent, warn = silent, error = function(_, text) error(text, 0) end })
  rawset(_G, "pg", { bytes = function(s) return { bytes = s } end })
  rawset(_G, "json", json)
end

local function tear_down()
  for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
end

local OLD, NEW = "0ld00000-0000-4000-8000-000000000000", "4e300000-0000-4000-8000-000000000000"

local function answer(status, body) return { status = status, type = "application/json", body = body or "{}" } end

local function described(id, name)
  return string.format('{"id":"%s","name":"%s","metadata":null,"dimension":null,"tenant":"t","database":"d",'
    .. '"configuration_json":{}}', id, name)
end

-- PostgreSQL says of a swap that it is done, and of all else that one row was changed.
local function database()
  local store = { epoch = 1, statements = {}, reader = { query = function() return {} end } }
  function store.commit(_, statements, _, done)
    local out = {}
    for i, s in ipairs(statements) do
      store.statements[#store.statements + 1] = s
      out[i] = { affected = 1, { id = 7, state = s[1]:find("^SELECT state") and "swapped" or nil } }
    end
    if done then done(out) end
    return out
  end
  return store
end

-- An instance: what is sent to change it is put into `sent` and done; take(server, method, rest, body) may answer
-- otherwise. names: of its collections, by id.
local function instance(name, names, take)
  local s = { name = name, health = "up", admitted = 1, incarnation = 1, retired = false, names = names, sent = {} }
  function s.usable() return true end
  function s.stamp_after_now() return true, true end
  function s.horizon_after() return 1 end
  function s.settle() end
  local function named(want)
    for id, is in pairs(names) do
      if is == want then return id end
    end
  end
  local function change(method, rest, body)
    local b = json.decode(body or "null")
    if method == "POST" and rest == "" then
      names[NEW] = b.name
      return answer(200, described(NEW, b.name))
    elseif method == "PUT" then
      local there = named(b.new_name)
      if there and there ~= rest:sub(2) then return answer(500, '{"error":"E","message":"UNIQUE constraint"}') end
      if not names[rest:sub(2)] then return answer(404, '{"error":"E","message":"' .. rest .. '"}') end
      names[rest:sub(2)] = b.new_name
    elseif method == "DELETE" then
      names[named(rest:sub(2)) or ""] = nil
    end
    return answer(method == "POST" and rest:find("/add$") and 201 or 200)
  end
  function s.ask(_, method, target, body)
    local rest = target:match("/collections(.*)$")
    local a = take and take(s, method, rest, body)
    if a ~= nil then return a or nil, a == false and "late" or nil end
    if rest == "" then
      local list = {}
      for id, is in pairs(names) do list[#list + 1] = described(id, is) end
      return answer(200, "[" .. table.concat(list, ",") .. "]")
    end
    local id = named(rest:sub(2))
    return id and answer(200, described(id, names[id])) or answer(404)
  end
  function s.send(_, r)
    local rest = r.target:match("/collections(.*)$")
    s.sent[#s.sent + 1] = r.method .. " " .. rest .. " " .. (r.body or "")
    local a = change(r.method, rest, r.body)
    return { wait = function() return a end }
  end
  return s
end

-- A collection whose copies are on a, the source, and on b.
local function world(take)
  local w = { notes = {}, store = database() }
  w.a = instance("a", { [OLD] = "red" }, take)
  w.b = instance("b", { [OLD] = "red" }, take)
  local context = { settings = { TRY_TIMEOUT = 1, DRAIN_CAP = 1 }, store = w.store, drives = true, holder = true,
    fault = silent, encode = tostring, servers = { list = { w.a, w.b }, by_name = { a = w.a, b = w.b } },
    events = { note = function(_, kind) w.notes[#w.notes + 1] = kind end } }
  local function copy(server, state, p)
    return { instance = server.name, server = server, physical = OLD, incarnation = 0, p = p, state = state,
      reason = "", settled = true, doubt = 0 }
  end
  local a, b = copy(w.a, "ready", 0), copy(w.b, "rebuild", 0)
  w.lane = { id = 1, logical = "L", name = "red", tenant = "t", database = "d", open = true, pins = {}, entries = {},
    copies = { a = a, b = b }, order = { a, b }, context = context, is_sound = function() return true end,
    head = 0, kick = silent, kick_copy = silent, publish = silent,
    entry = function(lane, n) return lane.entries[n] end }
  local function member(server)
    return { instance = server.name, server = server, state = "ready", p = 0, settled = true, doubt = 0 }
  end
  w.names = { by_lane = { w.lane }, copies = { a = member(w.a), b = member(w.b) }, physical = { a = {}, b = {} },
    context = context, kick = silent, kick_copy = silent, copy_swap = silent, at_work_on = function() return false end,
    path = function(_, _, _, rest) return "/api/v2/tenants/t/databases/d" .. rest end }
  w.context = context
  w.rebuilds = require("lb.rebuild").new(context, w.names)
  return w
end

local function run_tasks()
  local mine = tasks
  tasks = {}
  for _, task in ipairs(mine) do task[1](unpack(task, 2)) end
end

local function write(w, id)
  local n = #w.lane.entries + 1
  w.lane.entries[n] = { n = n, action = "upsert", verdict = "applied",
    body = '{"ids":["' .. id .. '"],"embeddings":[[1]],"documents":[null],"metadatas":[null],"uris":[null]}' }
  w.lane.copies.a.p = n
end

-- The answer of a get, each with this vector, or with its own of a list.
local function got(ids, vectors)
  local columns = { {}, {}, {} }
  for i, id in ipairs(ids) do
    columns[1][i], columns[3][i] = '"' .. id .. '"', "null"
    columns[2][i] = type(vectors) == "table" and vectors[i] or vectors
  end
  local nulls = table.concat(columns[3], ",")
  return answer(200, string.format('{"ids":[%s],"embeddings":[%s],"documents":[%s],"metadatas":[%s],"uris":[%s]}',
    table.concat(columns[1], ","), table.concat(columns[2], ","), nulls, nulls, nulls))
end

describe("the end of a rebuild", function()
  before_each(set_up)
  after_each(tear_down)

  it_("asks the held source for fewer records after it was too slow, not for the same again", function()
    local asked = {}
    local w = world(function(_, method, rest, body)
      if method ~= "POST" or not rest:find("/get$") then return nil end
      local ids = json.decode(body).ids
      asked[#asked + 1] = #ids
      return #ids <= 2 and got(ids, "[1]") -- false: too late
    end)
    local r = assert(w.rebuilds:begin { lane = 1, instance = "b", source = "a", until_ = time + 60 })
    for i = 1, 10 do write(w, "id" .. i) end
    local function finish(upto)
      return w.rebuilds:finish { lane = 1, instance = "b", rebuild = r.rebuild, upto = upto, settle = 0,
        until_ = time + 60 }
    end
    assert.same({ more = 10, position = 10, from = 0 }, finish(0))
    assert.same({ more = 5, position = 10, from = 5 }, finish(5))
    assert.equal(3, finish(7).more)
    assert.is_true(finish(8).done)
    assert.same({ 10, 5, 2 }, asked)
  end)

  it_("does not come for a record with NaN, of which nothing is deleted", function()
    local w = world(function(_, method, rest, body)
      return method == "POST" and rest:find("/get$") and got(json.decode(body).ids, "[null]") or nil
    end)
    local r = assert(w.rebuilds:begin { lane = 1, instance = "b", source = "a", until_ = time + 60 })
    write(w, "x")
    w.b.sent = {}
    local a = w.rebuilds:finish { lane = 1, instance = "b", rebuild = r.rebuild, upto = 0, settle = 0,
      until_ = time + 60 }
    assert.equal('1 records have vectors that hold what is no number (NaN), which cannot be copied: x, '
      .. "whatever is tried", a.gone)
    assert.same({}, w.b.sent)
    for _, s in ipairs(w.store.statements) do assert.is_nil(s[1]:find("^WITH r AS")) end
  end)

  -- A source without records has a dimension, in a collection with this id. What finish() answers, and what is sent.
  local function with_dimension(id, busy)
    local finishing = false
    local w = world(function(s, method, rest)
      if method ~= "GET" or rest ~= "/red" or s.name ~= "a" then return nil end
      local said = described(finishing and id or OLD, "red"):gsub('"dimension":null', '"dimension":2')
      return answer(200, said)
    end)
    local r = assert(w.rebuilds:begin { lane = 1, instance = "b", source = "a", until_ = time + 60 })
    local send, sent = w.b.send, {}
    function w.b.send(s, request)
      sent[#sent + 1] = request.target:match("/(%w+)$")
      if #sent > busy then return send(s, request) end
      return { wait = function() return answer(503) end }
    end
    finishing = true
    return w.rebuilds:finish { lane = 1, instance = "b", rebuild = r.rebuild, upto = 0, settle = 0,
      until_ = time + 60 }, table.concat(sent, " ")
  end

  it_("gives it the dimension of an empty source, also when the instance is busy for a moment", function()
    local a, sent = with_dimension(OLD, 2)
    assert.same({ true, "add add add delete" }, { a.done, sent })
  end)

  it_("does not take the dimension of another collection that has the source's name", function()
    local a, sent = with_dimension(NEW, 0)
    assert.same({ "a has another collection of that name", "" }, { a.gone, sent })
  end)

  local function rebuilt(w)
    local r = assert(w.rebuilds:begin { lane = 1, instance = "b", source = "a", until_ = time + 60 })
    assert.is_true(w.rebuilds:finish { lane = 1, instance = "b", rebuild = r.rebuild, upto = 0, settle = 0,
      until_ = time + 60 }.done)
    run_tasks()
    time = time + 3
    w.rebuilds.leftovers:work(w.rebuilds.leftovers.items[1])
  end

  it_("keeps what stood there before the instance joined, under another name", function()
    local w = world()
    w.lane.adopted = true
    rebuilt(w)
    assert.same({ [OLD] = "red-aside-0ld00000", [NEW] = "red" }, w.b.names)
    assert.same({ "copy_rebuilt", "not_adopted" }, w.notes)
  end)

  it_("deletes what was a copy", function()
    for _, adopted in ipairs { true, false } do
      local w = world()
      w.lane.adopted = adopted
      if adopted then w.lane.copies.b.p = 1 end
      rebuilt(w)
      assert.same({ [NEW] = "red" }, w.b.names)
    end
  end)
end)

describe("a name that is to be put right after a swap", function()
  before_each(set_up)
  after_each(tear_down)

  it_("is taken from another good copy, whose own turn in the catalogue comes later", function()
    local w = world()
    local other = "07e00000-0000-4000-8000-000000000000"
    w.b.names[OLD], w.b.names[NEW], w.b.names[other] = nil, "chromux-temp-1", "red"
    local lane = { id = 2, name = "blue", copies = { b = { physical = other, state = "ready" } } }
    w.names.physical.b[other] = lane
    local item = w.rebuilds.leftovers:add { id = 7, lane = 1, instance = "b", tenant = "t", database = "d", temp = NEW,
      temp_name = "chromux-temp-1", old = OLD, state = "swapped" }
    w.rebuilds.leftovers:work(item)
    assert.same({ [NEW] = "red", [other] = "chromux-old-2-07e00000" }, w.b.names)
    assert.is_nil(w.names.copies.b.held)
  end)
end)

describe("a collection that nobody knows, with a name of chromux's own", function()
  before_each(set_up)
  after_each(tear_down)

  local function looked_at(recorded)
    local w = world()
    w.names.databases, w.names.head, w.context.rebuilds = { ["t\0d"] = true }, 0, w.rebuilds
    w.names.physical.b[OLD] = w.lane
    w.names.physical.a[OLD] = w.lane
    w.b.names[NEW] = "chromux-temp-of-somebody"
    w.store.reader.query = function(_, sql, on, name, id)
      if not sql:find("journal_rebuilds", 1, true) then return {} end
      assert.same({ "b", "chromux-temp-of-somebody", NEW }, { on, name, id })
      return recorded and { { id = 1 } } or {}
    end
    local aside = require("lb.aside").new(w.context, w.names)
    aside:look()
    aside:look()
    return w.b.names[NEW], aside.count
  end

  it_("is deleted when it is recorded that chromux made it", function()
    assert.same({ nil, 0 }, { looked_at(true) })
  end)

  it_("is shown and not touched when it is not", function()
    assert.same({ "chromux-temp-of-somebody", 1 }, { looked_at(false) })
  end)
end)

describe("a collection that an operator has deleted", function()
  before_each(set_up)
  after_each(tear_down)

  it_("leaves the catalogue of its instance free also when something breaks", function()
    local w = world()
    w.names.databases, w.names.head, w.context.rebuilds = { ["t\0d"] = true }, 0, w.rebuilds
    w.names.physical.a[OLD], w.names.physical.b[OLD] = w.lane, w.lane
    w.b.names[NEW] = "strange"
    local aside = require("lb.aside").new(w.context, w.names)
    aside:look()
    aside:look()
    w.b.send = function() error("broken", 0) end
    assert.has_error(function() aside:discard { instance = "b", id = NEW, by = "me" } end, "broken")
    assert.is_nil(w.names.copies.b.held)
  end)
end)

describe("records that differ", function()
  before_each(set_up)
  after_each(tear_down)

  -- a has these vectors, b has others; false: there is no vector.
  local function differing(vectors, at_get)
    local w
    w = world(function(s, method, rest, body)
      if method ~= "POST" or not rest:find("/get$") then return nil end
      local ids, list = json.decode(body).ids, {}
      if at_get then at_get(w, s, ids) end
      for i, id in ipairs(ids) do
        list[i] = s == w.a and vectors[id] or "[9]"
        if s == w.a and vectors[id] == false then return answer(500, '{"error":"E","message":"Error finding id"}') end
      end
      return got(ids, list)
    end)
    w.lane.copies.b.state = "ready"
    return w
  end

  local function confirm(w, ids)
    return require("lb.reconcile").confirm(w.context, w.names, { lane = 1, authority = "a", instance = "b", ids = ids,
      repair = true, until_ = time + 60 })
  end

  it_("are repaired but for those that can't be, which are said", function()
    local w = differing { x = "[1]", n = "[null]", torn = false, same = "[9]", y = "[2]" }
    local out = assert(confirm(w, { "x", "n", "torn", "same", "y" }))
    assert.same({ { id = "n", how = "unrepairable", why = "its vector on a holds what is no number (NaN)" },
      { id = "torn", how = "unrepairable", why = "a has no vector of it" }, { id = "x", how = "changed" },
      { id = "y", how = "changed" } }, out.differing)
    assert.same({ 2, 1, 0 }, { out.repaired, out.equal, #out.busy })
    assert.equal("ready", w.lane.copies.b.state)
    assert.same({ "POST /" .. OLD .. '/delete {"ids":["x","y"]}' }, { w.b.sent[1] })
    assert.truthy(w.b.sent[2]:find('"ids":["x","y"]', 1, true) and w.b.sent[2]:find("[[1],[2]]", 1, true))
  end)

  it_("are read by fewer at a time when the hold is too short for them", function()
    local held = {}
    local w = differing({ a = "[1]", b = "[1]", c = "[1]", d = "[1]" }, function(w, s, ids)
      if not w.lane.copies.b.held or s == w.b then return end
      held[#held + 1] = #ids
      if #ids > 1 then run_tasks() end -- the hold lets go
    end)
    local out = assert(confirm(w, { "a", "b", "c", "d" }))
    assert.same({ 4, 2, 1, 1, 1, 1 }, held)
    assert.same({ 4, 0, 0 }, { out.repaired, out.equal, #out.busy })
  end)

  it_("are not looked at before it is known how the collection measures distances", function()
    local w = differing { x = "[1]" }
    w.a.names[OLD] = "another" -- it is being renamed
    local out, why = confirm(w, { "x" })
    assert.same({ nil, "a does not say how it measures distances" }, { out, why })
    assert.same({}, w.b.sent)
  end)
end)
