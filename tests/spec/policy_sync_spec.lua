-- The shipped sync.lua: how much at once, from whom, how fast?
local kit = require("lb.testkit")
local PATH = "policies/sync.lua"

describe("batch", function()
  local policy = kit.load(PATH)
  local function batch(given)
    return (policy.batch(kit.make("sample", given)))
  end

  it("grows by a quarter while all goes well, up to the most", function()
    assert.equal(625, batch({ batch = 500, payload_bytes = 0 }))
    assert.equal(2, batch({ batch = 1, least = 1 }))
    assert.equal(1000, batch({ batch = 1000, payload_bytes = 0 }))
    local n, steps = 100, 0
    while n < 1000 do
      n, steps = batch({ batch = n, payload_bytes = 0 }), steps + 1
    end
    assert.is_true(steps <= 11)
  end)

  it("is a quarter, at most 100, with less than 50 MB free", function()
    assert.equal(100, batch({ free_mb = 49 }))
    assert.equal(50, batch({ free_mb = 49, most = 200, batch = 200 }))
    assert.equal(1, batch({ free_mb = 0, most = 2, batch = 2 }))
  end)

  it("is half, at most 500, with less than 100 MB free", function()
    assert.equal(500, batch({ free_mb = 99 }))
    assert.equal(300, batch({ free_mb = 99, most = 600, batch = 600 }))
    assert.equal(500, batch({ free_mb = 50 }))
    assert.equal(1000, batch({ free_mb = 100 }))
  end)

  it("is halved while more than 90 % of the memory is used, down to the least", function()
    local n, seen = 1000, {}
    for i = 1, 5 do
      n = batch({ batch = n, used_share = 0.91, least = 100 })
      seen[i] = n
    end
    assert.same({ 500, 250, 125, 100, 100 }, seen)
    assert.equal(1000, batch({ used_share = 0.9, payload_bytes = 0 }))
  end)

  it("is halved by a refusal, beyond the least only if that was too big", function()
    assert.equal(500, batch({ refused = "413" }))
    assert.equal(50, batch({ refused = "413", batch = 1000, records = 100, least = 100 }))
    assert.equal(1, batch({ refused = "413", batch = 1, records = 1 }))
    assert.equal(500, batch({ refused = "429" }))
    assert.equal(500, batch({ refused = "503" }))
    assert.equal(100, batch({ refused = "503", batch = 150, least = 100 }))
    assert.equal(500, batch({ errors = 1 }))
  end)

  it("grows slowly from below the least again", function()
    assert.equal(62, batch({ batch = 50, least = 100, records = 50, payload_bytes = 0 }))
  end)

  it("shrinks when requests are slow", function()
    assert.equal(750, batch({ latency = 6 }))
    assert.equal(1000, batch({ latency = 5, payload_bytes = 0 }))
  end)

  it("keeps requests at 4 MiB", function()
    assert.equal(512, batch({ payload_bytes = 8 * 1024 * 1024, records = 1024 }))
    assert.equal(1, batch({ payload_bytes = 9e6, records = 1 }))
  end)
end)

describe("authority", function()
  local policy = kit.load(PATH)
  local function authority(...)
    local copies = {}
    for i, given in ipairs({ ... }) do
      copies[i] = kit.make("copy", given)
      copies[i].instance = ("abc"):sub(i, i)
    end
    return policy.authority(copies)
  end
  local replica = { role = "replica", priority = 80 }

  it("is the primary, though others have more", function()
    assert.equal("a", authority({}, replica))
    assert.equal("b", authority(replica, {}))
    assert.equal("a", authority({ behind = 5 }, replica))
  end)

  it("is never one that is not ready, or down", function()
    for _, state in ipairs({ "rebuild", "unverified", "lost", "absent" }) do
      assert.equal("b", authority({ state = state }, replica))
    end
    assert.equal("b", authority({ health = "down" }, replica))
    local name, reason = authority({ state = "lost" }, { health = "down" })
    assert.is_nil(name)
    assert.equal("no copy is ready on an instance that is up", reason)
    assert.is_nil((authority()))
  end)

  it("is one that is up rather than a suspect", function()
    assert.equal("b", authority({ health = "suspect" }, replica))
    assert.equal("a", authority({ health = "suspect" }))
  end)

  it("among replicas is the one that has most, then by priority, then the one proven last", function()
    assert.equal("b", authority({ role = "replica", behind = 2 }, { role = "replica", behind = 1 }))
    assert.equal("b", authority({ role = "replica", priority = 1 }, { role = "replica", priority = 2 }))
    assert.equal("b", authority({ role = "replica", proven_at = 1 }, { role = "replica", proven_at = 2 }))
    assert.equal("a", authority({ role = "replica" }, { role = "replica" }))
  end)
end)

describe("pace", function()
  local policy = kit.load(PATH)
  local function pace(given)
    return (policy.pace(kit.make("load", given)))
  end

  it("is full where no clients read", function()
    assert.equal(0, pace({ reads = false, latency = 10 }))
  end)

  it("gives servers that clients read from a rest", function()
    assert.equal(0.05, pace({ latency = 0.1 }))
    assert.equal(0.25, pace({ latency = 10 }))
  end)

  it("gives them more while clients wait", function()
    assert.equal(0.4, pace({ latency = 0.1, usual = 0.3 }))
    assert.equal(5, pace({ latency = 10, usual = 0.3 }))
  end)
end)
