-- The shipped route.lua: every strategy, and what all have in common.
local kit = require("lb.testkit")
local PATH = "policies/route.lua"

local function with(strategy, options)
  options = options or {}
  options.settings = { LOAD_BALANCE_STRATEGY = strategy }
  return kit.load(PATH, options)
end

-- How often each name is answered in n calls.
local function tally(policy, n, make_request, nodes)
  local counts = {}
  for i = 1, n do
    local name = policy.route(make_request(i), nodes)
    counts[name] = (counts[name] or 0) + 1
  end
  return counts
end

local function reads()
  return kit.request()
end

local function writes()
  return kit.write()
end

describe("route.lua", function()
  local STRATEGIES = {
    "write_primary", "round_robin", "random", "priority", "least_connections", "two_choices",
    "peak_ewma", "read_replica", "collection_affinity", "sticky",
  }

  it("has the strategies that policies/README.md lists, and no other", function()
    local names, listed, known = {}, {}, { unpack(STRATEGIES) }
    for name in pairs(with("write_primary").strategies) do
      names[#names + 1] = name
    end
    local file = assert(io.open("policies/README.md"))
    local part = file:read("*a"):match("### Strategies of the shipped route.lua\n(.-)\n#")
    file:close()
    for name in part:gmatch("\n| `([%w_]+)` |") do
      listed[#listed + 1] = name
    end
    table.sort(names)
    table.sort(listed)
    table.sort(known)
    assert.same(listed, names)
    assert.same(known, names)
  end)

  for _, strategy in ipairs(STRATEGIES) do
    it(strategy .. " answers any request over one to three nodes", function()
      local policy = with(strategy)
      local all = kit.nodes("a", "b", "c")
      for count = 1, 3 do
        local nodes, known = {}, {}
        for i = 1, count do
          nodes[i] = all[i]
          known[all[i].name] = true
        end
        for _, req in ipairs({ kit.request(), kit.write(), kit.request({ collection = "" }) }) do
          local name, reason = policy.route(req, nodes)
          assert.is_true(known[name])
          assert.equal("string", type(reason))
        end
      end
    end)

    it(strategy .. " retries where the request has not been yet", function()
      local policy = with(strategy)
      for seed = 1, 20 do
        local req = kit.request({
          attempt = 3,
          tried = { a = true, c = true },
          session = "s" .. seed,
        })
        assert.equal("b", (policy.route(req, kit.nodes("a", "b", "c"))))
      end
    end)

    it(strategy .. " goes on when every node was tried", function()
      local policy = with(strategy)
      local req = kit.request({ attempt = 4, tried = { a = true, b = true } })
      assert.is_not_nil((policy.route(req, kit.nodes("a", "b"))))
    end)
  end
end)

describe("write_primary", function()
  it("sends writes of records and catalogue to the primary", function()
    local policy = with("write_primary")
    assert.same({ a = 50 }, tally(policy, 50, writes, kit.nodes("a", "b")))
    local create = kit.request({ class = "catalog", action = "create_collection", reads = false })
    assert.equal("a", (policy.route(create, kit.nodes("a", "b"))))
  end)

  it("finds the primary wherever it stands", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[1].role, nodes[3].role = "replica", "primary"
    assert.equal("c", (with("write_primary").route(kit.write(), nodes)))
  end)

  it("sends reads round over all, by weight", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[1].weight = 2
    assert.same({ a = 50, b = 25, c = 25 }, tally(with("write_primary"), 100, reads, nodes))
  end)

  it("sends writes to another node when the primary is no candidate", function()
    local nodes = { kit.node("b"), kit.node("c") }
    assert.same({ b = 5, c = 5 }, tally(with("write_primary"), 10, writes, nodes))
  end)
end)

describe("a node that sync writes to", function()
  it("is spared by every strategy while another one can answer", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[1].syncing, nodes[2].syncing = 1, 4
    for name in pairs(with("write_primary").strategies) do
      assert.same({ c = 20 }, tally(with(name), 20, reads, nodes), name)
      assert.same({ c = 20 }, tally(with(name), 20, writes, nodes), name)
    end
  end)

  it("answers when all are written to", function()
    local nodes = kit.nodes("a", "b")
    nodes[1].syncing, nodes[2].syncing = 1, 1
    assert.same({ a = 5, b = 5 }, tally(with("write_primary"), 10, reads, nodes))
    assert.same({ a = 10 }, tally(with("write_primary"), 10, writes, nodes))
  end)

  it("is tried again only after all others", function()
    local nodes = kit.nodes("a", "b")
    nodes[2].syncing = 1
    assert.equal("b", (with("write_primary").route(kit.request({ attempt = 2, tried = { a = true } }), nodes)))
  end)
end)

describe("round_robin", function()
  it("is smooth", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[1].weight = 5
    local policy, order = with("round_robin"), {}
    for i = 1, 7 do
      order[i] = policy.route(kit.request(), nodes)
    end
    assert.equal("aabacaa", table.concat(order))
  end)
end)

describe("random", function()
  it("takes what chance says", function()
    local policy, lb = with("random")
    lb.chances = { 0, 0.34, 0.99 }
    local order = {}
    for i = 1, 3 do
      order[i] = policy.route(kit.request(), kit.nodes("a", "b", "c"))
    end
    assert.equal("abc", table.concat(order))
  end)
end)

describe("priority", function()
  it("gives all to the highest", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[3].priority = 200
    assert.same({ c = 10 }, tally(with("priority"), 10, reads, nodes))
  end)
end)

describe("least_connections", function()
  it("counts what is in flight and waiting, per weight", function()
    local policy, nodes = with("least_connections"), kit.nodes("a", "b", "c")
    nodes[1].inflight, nodes[2].inflight, nodes[3].inflight = 3, 2, 4
    assert.equal("b", (policy.route(kit.request(), nodes)))
    nodes[2].queued = 5
    assert.equal("a", (policy.route(kit.request(), nodes)))
    nodes[3].weight = 4
    assert.equal("c", (policy.route(kit.request(), nodes)))
  end)
end)

describe("two_choices", function()
  it("takes the less loaded of two different nodes", function()
    local policy, lb = with("two_choices")
    local nodes = kit.nodes("a", "b", "c")
    nodes[1].inflight, nodes[2].inflight, nodes[3].inflight = 9, 5, 1
    for _, case in ipairs({ { 0, 0, "b" }, { 0, 0.9, "c" }, { 0.4, 0, "b" }, { 0.9, 0.9, "c" } }) do
      lb.chances = { case[1], case[2] }
      assert.equal(case[3], (policy.route(kit.request(), nodes)))
    end
  end)

  it("never picks the most loaded of three", function()
    local nodes = kit.nodes("a", "b", "c")
    nodes[2].inflight = 1
    assert.is_nil(tally(with("two_choices"), 500, reads, nodes).b)
  end)
end)

describe("peak_ewma", function()
  it("weighs time to answer and requests ahead", function()
    local policy, nodes = with("peak_ewma"), kit.nodes("a", "b")
    nodes[1].ewma_ms, nodes[2].ewma_ms = 10, 4
    assert.equal("b", (policy.route(kit.request(), nodes)))
    nodes[2].inflight = 2
    assert.equal("a", (policy.route(kit.request(), nodes)))
  end)

  it("tries a node that was not measured yet", function()
    local nodes = kit.nodes("a", "b")
    nodes[1].ewma_ms = 1
    assert.equal("b", (with("peak_ewma").route(kit.request(), nodes)))
  end)
end)

describe("read_replica", function()
  it("gives replicas eight of ten reads", function()
    local counts = tally(with("read_replica"), 10000, reads, kit.nodes("a", "b", "c"))
    assert.is_true(counts.a > 1700 and counts.a < 2300)
    assert.is_true(math.abs(counts.b - counts.c) <= 1)
  end)

  it("sends writes to the primary", function()
    assert.same({ a = 20 }, tally(with("read_replica"), 20, writes, kit.nodes("a", "b")))
  end)

  it("reads from whoever is there", function()
    assert.same({ a = 5 }, tally(with("read_replica"), 5, reads, { kit.nodes("a")[1] }))
    assert.same({ b = 5 }, tally(with("read_replica"), 5, reads, { kit.node("b") }))
  end)
end)

describe("collection_affinity", function()
  local function of_collections(i)
    return kit.request({ collection = "collection-" .. i })
  end

  it("keeps a collection at home", function()
    local policy, nodes = with("collection_affinity"), kit.nodes("a", "b", "c")
    for i = 1, 50 do
      local home = policy.route(of_collections(i), nodes)
      assert.equal(home, (policy.route(of_collections(i), { nodes[3], nodes[1], nodes[2] })))
    end
  end)

  it("spreads collections by weight", function()
    local nodes = kit.nodes("a", "b")
    nodes[1].weight = 3
    local counts = tally(with("collection_affinity"), 4000, of_collections, nodes)
    assert.is_true(counts.a > 2850 and counts.a < 3150)
  end)

  it("moves only what had its home on a node that went", function()
    local policy, nodes = with("collection_affinity"), kit.nodes("a", "b", "c")
    for i = 1, 200 do
      local home = policy.route(of_collections(i), nodes)
      local then_home = policy.route(of_collections(i), { nodes[1], nodes[2] })
      if home ~= "c" then
        assert.equal(home, then_home)
      end
    end
  end)

  it("goes round without a collection", function()
    local function without()
      return kit.request({ collection = "" })
    end
    local counts = tally(with("collection_affinity"), 10, without, kit.nodes("a", "b"))
    assert.same({ a = 5, b = 5 }, counts)
  end)
end)

describe("sticky", function()
  it("keeps a session on its node and spreads sessions", function()
    local policy, nodes = with("sticky"), kit.nodes("a", "b")
    local counts = tally(policy, 1000, function(i)
      return kit.request({ session = "s" .. i })
    end, nodes)
    assert.is_true(counts.a > 430 and counts.b > 430)
    local mine = kit.request({ session = "me" })
    assert.same(1, (function()
      local n = 0
      for _ in pairs(tally(policy, 20, function() return mine end, nodes)) do
        n = n + 1
      end
      return n
    end)())
  end)
end)
