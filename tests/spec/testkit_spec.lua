-- The test kit against its documentation, and against the policy VM where there is one.
local kit = require("lb.testkit")
local contract = require("lb.contract")

-- The names in the first column of the table under a heading of the README.
local function documented(heading)
  local names, inside = {}, false
  for line in io.lines("policies/README.md") do
    local level, title = line:match("^(#+) (.*)$")
    if level then
      inside = title == heading
    elseif inside then
      local name = line:match("^| `([%w_.]+)")
      if name then
        names[#names + 1] = name
      end
    end
  end
  table.sort(names)
  assert(#names > 0, "the README has no table under " .. heading)
  return names
end

local function keys(t)
  local names = {}
  for k in pairs(t) do
    names[#names + 1] = k
  end
  table.sort(names)
  return names
end

local function temporary(text)
  local bare = os.tmpname()
  local path = bare .. ".lua"
  assert(os.rename(bare, path))
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  return path
end

describe("the fields of the README are those that the kit gives:", function()
  local headings = {
    req = kit.request(),
    node = kit.node("a"),
    subject = kit.subject(),
    history = kit.history(),
  }
  for what, given in pairs(contract.given) do
    headings[what] = given
  end
  for heading, given in pairs(headings) do
    it(heading, function()
      assert.same(documented(heading), keys(given))
    end)

    it(heading .. ", with their types", function()
      local inside = false
      for line in io.lines("policies/README.md") do
        local title = line:match("^#+ (.*)$")
        if title then
          inside = title == heading
        end
        local name, kind = line:match("^| `([%w_]+)` | (%w+) |")
        if inside and name then
          assert.equal(kind, type(given[name]), name)
        end
      end
    end)
  end

  it("kinds of events", function()
    local text = ""
    for line in io.lines("policies/README.md") do
      text = text .. line .. "\n"
    end
    for _, kind in ipairs(contract.kinds) do
      assert.truthy(text:find("`" .. kind[1] .. "`", 1, true), kind[1])
    end
  end)

  it("lb", function()
    local _, lb = kit.load("policies/failover.lua")
    for _, name in ipairs(documented("What a policy may use")) do
      assert.is_not_nil(lb[name:match("^lb%.(%w+)$")], name)
    end
  end)
end)

describe("load", function()
  it("refuses what the policy VM refuses", function()
    for text, message in pairs({
      ["return io"] = "uses the global 'io'",
      ["x = 1"] = "sets the global 'x'",
      ["return 1"] = "returns no table",
      ["return {"] = "unexpected symbol",
    }) do
      local path = temporary(text)
      local ok, why = pcall(kit.load, path)
      os.remove(path)
      assert.is_false(ok)
      assert.truthy(why:find(message, 1, true), why)
    end
  end)

  it("repeats chance by its seed", function()
    local function draw(seed)
      local _, lb = kit.load("policies/failover.lua", { seed = seed })
      return { lb.random(), lb.random(), lb.random(6) }
    end
    assert.same(draw(7), draw(7))
    assert.not_same(draw(7), draw(8))
  end)

  it("draws whole numbers from 1 to n evenly", function()
    local _, lb = kit.load("policies/failover.lua")
    local counts = { 0, 0, 0 }
    for _ = 1, 3000 do
      local i = lb.random(3)
      counts[i] = counts[i] + 1
    end
    for i = 1, 3 do
      assert.is_true(counts[i] > 900 and counts[i] < 1100)
    end
  end)

  it("moves its clock when told", function()
    local _, lb = kit.load("policies/failover.lua", { now = 5 })
    lb.advance(2.5)
    assert.equal(7.5, lb.now)
  end)

  it("says which setting a spec forgot", function()
    local _, lb = kit.load("policies/failover.lua")
    assert.has_error(function()
      return lb.settings.NO_SUCH
    end, "the spec gives no setting NO_SUCH: options.settings")
  end)

  it("knows no fields but the documented ones", function()
    assert.has_error(function()
      kit.request({ methud = "GET" })
    end, "no such field: methud")
  end)
end)

-- What needs the policy VM is pending under plain busted.
local in_vm = kit.native_kit() and it or pending

describe("in the policy VM", function()
  local path
  after_each(function()
    if path then
      os.remove(path)
      path = nil
    end
  end)

  local function route(body, settings)
    path = temporary("return {route = function(req, nodes)\n" .. body .. "\nend}")
    return kit.native(path, { as = "route", settings = settings })
  end

  in_vm("the fields are those of the README", function()
    local policy = route([[
      local function names(t)
        local out = {}
        for k, v in pairs(t) do out[#out + 1] = k .. "=" .. type(v) end
        table.sort(out)
        return table.concat(out, " ")
      end
      local text = names(req.bytes == 1 and nodes[1] or req)
      local from = req.attempt * 100 - 99
      return nil, text:sub(from, from + 99)
    ]])
    local function seen(bytes)
      local text = ""
      for part = 1, 4 do
        local _, reason = policy.route(kit.request({ bytes = bytes, attempt = part }),
          kit.nodes("a"))
        text = text .. reason
      end
      return text
    end
    local function told(given)
      local out = {}
      for _, name in ipairs(keys(given)) do
        out[#out + 1] = name .. "=" .. type(given[name])
      end
      return table.concat(out, " ")
    end
    assert.equal(told(kit.request()), seen(0))
    assert.equal(told(kit.node("a")), seen(1))
  end)

  in_vm("values arrive as they were given", function()
    local policy = route([[
      local n = nodes[2]
      assert(n.name == "b" and n.role == "replica" and n.priority == 90 and n.weight == 3)
      assert(n.state == "suspect" and n.inflight == 4 and n.queued == 5 and n.maxconn == 6)
      assert(n.ewma_ms == 7.5 and n.fails == 8 and n.behind == 0 and n.requests == 9 and n.syncing == 2)
      assert(req.class == "write" and req.action == "add" and not req.reads)
      assert(req.tried.b and not req.tried.a and req.last_error == "server_reset")
      assert(req.bytes == 44 and req.attempt == 2 and req.session == "s")
      return n.name, "fine", {timeout = 2.5, max_behind = 1}
    ]])
    local nodes = kit.nodes("a", "b")
    for k, v in pairs({
      weight = 3, state = "suspect", inflight = 4, queued = 5, maxconn = 6, ewma_ms = 7.5,
      fails = 8, requests = 9, syncing = 2,
    }) do
      nodes[2][k] = v
    end
    local name, reason, options = policy.route(kit.write({
      tried = { b = true },
      last_error = "server_reset",
      bytes = 44,
      attempt = 2,
      session = "s",
    }), nodes)
    assert.equal("b", name)
    assert.equal("fine", reason)
    assert.same({ timeout = 2.5, max_behind = 1 }, options)
  end)

  in_vm("the hash is the kit's", function()
    local _, lb = kit.load("policies/failover.lua")
    local policy = route("return nil, tostring(lb.hash(req.session))")
    for _, text in ipairs({ "", "a", "collection-1", ("long "):rep(100), "\1\255" }) do
      local _, sum = policy.route(kit.request({ session = text }), kit.nodes("a"))
      assert.equal(tostring(lb.hash(text)), sum)
    end
  end)

  in_vm("chance repeats by the seed and is even", function()
    path = temporary("return {route = function(_, n) return n[lb.random(#n)].name end}")
    local function draw(seed)
      local policy, counts, order = kit.native(path, { as = "route", seed = seed }), {}, {}
      for i = 1, 900 do
        order[i] = policy.route(kit.request(), kit.nodes("a", "b", "c"))
        counts[order[i]] = (counts[order[i]] or 0) + 1
      end
      return table.concat(order), counts
    end
    assert.equal((draw(3)), (draw(3)))
    assert.not_equal((draw(3)), (draw(4)))
    local _, counts = draw(5)
    for _, name in ipairs({ "a", "b", "c" }) do
      assert.is_true(counts[name] > 240 and counts[name] < 360)
    end
  end)

  in_vm("limits hold and are named", function()
    for body, message in pairs({
      ["while true do end"] = "^instructions: .*:2: used more than 200000 instructions",
      ["local t = {} while true do t[#t + 1] = ('x'):rep(6e4) .. #t end"] = "^memory: ",
      ["return 5"] = "^wrong_answer: ",
      ["return 'ghost'"] = "^unknown_node: ",
      ["return nodes.x.y"] = "^error: .*:2: attempt to index",
    }) do
      local policy = route(body, { POLICY_TIME = 5 })
      local ok, why = pcall(policy.route, kit.request(), kit.nodes("a"))
      os.remove(path)
      assert.is_false(ok)
      assert.truthy(why:find(message), why)
    end
  end)

  in_vm("the shipped policies answer as they do in Lua", function()
    for _, strategy in ipairs({
      "write_primary", "round_robin", "priority", "least_connections", "peak_ewma",
      "collection_affinity", "sticky",
    }) do
      local settings = { LOAD_BALANCE_STRATEGY = strategy }
      local native = kit.native("policies/route.lua", { settings = settings })
      local plain = kit.load("policies/route.lua", { settings = settings })
      for i = 1, 60 do
        local nodes = kit.nodes("a", "b", "c")
        for k, node in ipairs(nodes) do
          node.weight = k
          node.inflight = i * k * 7 % 11
          node.ewma_ms = i * k * 5 % 13
        end
        local req = (i % 3 == 0 and kit.write or kit.request)({
          collection = i % 4 == 0 and "" or "c" .. i,
          session = "s" .. i,
          attempt = i % 5 == 0 and 2 or 1,
          tried = i % 5 == 0 and { b = true } or {},
        })
        local want, why = plain.route(req, nodes)
        local got, because = native.route(req, nodes)
        assert.equal(want, got, strategy)
        assert.equal(why, because)
      end
    end
    for _, name in ipairs(contract.questions) do
      local file, fn = name:match("^(%w+)%.(%w+)$")
      local path_of = "policies/" .. file .. ".lua"
      local options = { settings = { PUBLIC_URL = "https://chromux.example", POLICY_TIME = 5 } }
      local native, plain = kit.native(path_of, options), kit.load(path_of, options)
      for i = 1, math.huge do
        local label = contract.sample(name, i)
        if not label then
          break
        end
        local want = { plain[fn](select(2, contract.sample(name, i))) }
        assert.same(want, { native[fn](select(2, contract.sample(name, i))) }, label)
      end
    end
    local native, plain = kit.native("policies/failover.lua"), kit.load("policies/failover.lua")
    for _, state in ipairs({ "up", "suspect", "down" }) do
      for _, kind in ipairs({ "instance", "collection" }) do
        for field in pairs(kit.history()) do
          local history = kit.history(field ~= "last_error" and { [field] = 70 } or { fails = 1 })
          local subject = kit.subject({ kind = kind, state = state })
          assert.same({ plain.judge(subject, history) }, { native.judge(subject, history) })
        end
      end
    end
  end)

  in_vm("plain values go in and come out as they were given", function()
    path = temporary([[return {advise = function(w)
      assert(w.instance == "a" and w.open.memory.since == 5 and w.memory.limit_mb == 512 and w.cpu == nil)
      w.instance = "changed"
      return {{type = "memory", urgency = "low", current_usage = 0.5, recommended_tier = "t",
        estimated_monthly_cost = 1, reason = ("r"):rep(1000), value = -1, more = {true, {"deep"}}}}
    end}]])
    local policy = kit.native(path, { as = "upgrade" })
    local window = kit.window({ open = { memory = { since = 5 } }, instance = "a" })
    window.cpu = nil
    local list = policy.advise(window)
    assert.equal("a", window.instance)
    assert.same({ true, { "deep" } }, list[1].more)
    assert.equal(1000, #list[1].reason)
    list[1].more, list[1].reason = nil, nil
    assert.same({ type = "memory", urgency = "low", current_usage = 0.5, recommended_tier = "t",
      estimated_monthly_cost = 1, value = -1 }, list[1])
  end)

  in_vm("plain calls fail by name, with the place, and the next one is none the worse", function()
    path = temporary([[local M = {}
      function M.batch(sample) return 5 end
      function M.authority(copies) return copies[1] and copies[1].instance end
      function M.pace(load)
        if load.jobs == 1 then return {} end
        if load.jobs == 2 then while true do end end
        if load.jobs == 3 then return load.x.y end
        if load.jobs == 4 then local t = {} while true do t[#t + 1] = ("x"):rep(6e4) .. #t end end
        if load.jobs == 5 then return 0 / 0 end
        if load.jobs == 6 then return function() end end
        if load.jobs == 7 then return lb.settings end
        if load.jobs == 8 then return 1, setmetatable({}, {__index = lb}) end
        local deep = {}
        if load.jobs == 9 then for _ = 1, 20 do deep = {deep} end return deep end
        if load.jobs == 10 then for i = 1, 20000 do deep[i] = i end return deep end
        return 0.5
      end
      return M]])
    local policy = kit.native(path, { as = "sync", settings = { POLICY_TIME = 5 } })
    for jobs, message in ipairs({
      "^wrong_answer: .*:4: answered a table, not 0 to 60 seconds",
      "^instructions: .*:6: used more than 2000000 instructions",
      "^error: .*:7: attempt to index",
      "^memory: ",
      "^wrong_answer: .*a number that is none",
      "^wrong_answer: .*a function",
      "^wrong_answer: .*a table with a metatable",
      "^wrong_answer: .*a table with a metatable",
      "^wrong_answer: .*tables more than 16 deep",
      "^wrong_answer: .*more than 10,000 values",
    }) do
      local ok, why = pcall(policy.pace, kit.make("load", { jobs = jobs }))
      assert.is_false(ok)
      assert.truthy(why:find(message), why)
      assert.equal(0.5, policy.pace(kit.make("load", { jobs = 99 })))
    end
    local function fails(fn, ...)
      local ok, why = pcall(fn, ...)
      assert.is_false(ok)
      return why
    end
    assert.truthy(fails(policy.batch, kit.make("sample", { most = 4 })):find("not a whole number from 1 to 4"))
    assert.truthy(fails(policy.authority, { kit.make("copy", { state = "lost" }) }):find("whose copy is ready"))
    assert.truthy(fails(policy.authority, {}):find("nor nil and a reason"))
    assert.truthy(fails(policy.pace, kit.make("load", { jobs = function() end })):find("what it was asked"))
    assert.equal("a", policy.authority({ kit.make("copy") }))
  end)

  in_vm("mistakes of a file and of its settings are told", function()
    path = temporary("return {\n\nroute = }")
    local ok, why = pcall(kit.native, path, { as = "route" })
    assert.is_false(ok)
    assert.truthy(why:find(":3: unexpected symbol near '}'", 1, true), why)
    local settings = { LOAD_BALANCE_STRATEGY = "mine" }
    ok, why = pcall(kit.native, "policies/route.lua", { settings = settings })
    assert.is_false(ok)
    assert.truthy(why:find('LOAD_BALANCE_STRATEGY = "mine" (', 1, true))
  end)
end)

describe("main", function()
  it("gives 0 for good specs and 1 for bad ones", function()
    local function run(text)
      local spec = temporary(text)
      local command = ("LUA_PATH='lua/?.lua;;' luajit -e 'os.exit(require(%q).main({%q, %q}))'")
        :format("lb.testkit", spec, "--output=TAP")
      local status = os.execute(command .. " >/dev/null 2>&1")
      os.remove(spec)
      return status == 0 or status == true
    end
    assert.is_true(run("describe('x', function() it('y', function() end) end)"))
    assert.is_false(run("describe('x', function() it('y', function() error('no') end) end)"))
    assert.is_false(run("syntax error"))
    assert.equal(1, kit.main({ "policies/README.md" }))
  end)
end)
