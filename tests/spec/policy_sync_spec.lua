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

  it("keeps requests short while there are clients, whose own may wait for them", function()
    assert.equal(800, batch({ latency = 0.0625, requests = 50 }))
    assert.equal(500, batch({ latency = 1, requests = 50 }))
    assert.equal(100, batch({ latency = 1, requests = 50, batch = 110, least = 100 }))
    assert.equal(1000, batch({ latency = 1, requests = 0, payload_bytes = 0 }))
    assert.equal(500, batch({ latency = 0.05, requests = 50, batch = 400, payload_bytes = 0 }))
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
  local policy, told
  before_each(function()
    policy, told = kit.load(PATH), 0
  end)

  local function pace(given)
    return (policy.pace(kit.make("load", given)))
  end

  -- What share of the time requests may take after new figures.
  local function share(waits, usual)
    told = told + 1
    return 1 / (pace({ latency = 0.01, requests = 100, waits = waits, usual = usual, told = told }) / 0.01 + 1)
  end

  local function near(wanted, got)
    assert.is_true(math.abs(wanted - got) < 1e-6, wanted .. " is not " .. got)
  end

  it("is full where there are no clients", function()
    assert.equal(0, pace({ requests = 0, latency = 10 }))
    assert.equal(0, pace({ reads = false, latency = 10 }))
  end)

  it("gives servers that clients read from a rest while it is not known how they fare", function()
    assert.equal(0.05, pace({ latency = 0.1 }))
    assert.equal(0.25, pace({ latency = 10 }))
    assert.equal(0.05, pace({ latency = 0.1, requests = 5 }))
  end)

  it("takes more of the time until clients wait, and half of it each time they do", function()
    near(0.25, share(0.01, 0.01))
    near(0.5, share(0.01, 0.01))
    near(1, share(0.01, 0.01))
    near(1, share(0.017, 0.01))
    near(0.5, share(0.018, 0.01))
    near(0.25, share(0.018, 0.01))
    near(0.35, share(0.01, 0.01))
    near(0.45, share(0.01, 0.01))
    for _ = 1, 20 do
      share(1, 0.01)
    end
    near(0.1, share(1, 0.01))
    for _ = 1, 50 do
      share(0.01, 0.01)
    end
    near(1, share(0.01, 0.01))
  end)

  it("judges the same figures once", function()
    near(0.25, share(0.01, 0.01))
    told = told - 1
    near(0.25, share(1, 0.01))
  end)

  it("does not mind what nobody notices, and knows what is usual where nobody says it", function()
    near(0.25, share(0.0055, 0.001))
    near(0.125, share(0.0065, 0.001))
    near(0.225, share(0.034, nil))
    near(0.1125, share(0.036, nil))
  end)

  it("rests five seconds at most", function()
    assert.equal(5, pace({ latency = 100, requests = 1, waits = 1, usual = 0.01 }))
  end)

  it("begins anew when the clients have been away", function()
    near(0.1, share(1, 0.01))
    near(0.2, share(0.01, 0.01))
    pace({ requests = 0 })
    near(0.25, share(0.01, 0.01))
  end)
end)
