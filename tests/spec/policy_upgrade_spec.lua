-- The shipped upgrade.lua: which server needs a bigger plan?
local kit = require("lb.testkit")
local PATH = "policies/upgrade.lua"

local policy = kit.load(PATH)

-- Advice by type; usage: {memory = {mean = 90}, …} on top of a server that is well.
local function advise(usage, window)
  local w = kit.window(window)
  for kind, given in pairs(usage) do
    if given.mean and not given.last then
      given.last = given.mean
    end
    w[kind] = kit.make(kind, given)
  end
  local by_type = {}
  for _, r in ipairs(policy.advise(w)) do
    by_type[r.type] = r
  end
  return by_type
end

local function urgency(kind, given, open)
  local advice = advise({ [kind] = given }, { open = open and { [kind] = kit.make("open", { urgency = open }) } or {} })
  return advice[kind] and advice[kind].urgency
end

describe("the guide's rules:", function()
  it("nothing is advised to a server that is well", function()
    assert.same({}, policy.advise(kit.window()))
  end)

  it("memory above 85 % is medium, above 95 % high", function()
    assert.is_nil(urgency("memory", { mean = 85 }))
    assert.equal("medium", urgency("memory", { mean = 85.1 }))
    assert.equal("medium", urgency("memory", { mean = 95 }))
    assert.equal("high", urgency("memory", { mean = 95.1 }))
  end)

  it("CPU above 80 % is medium", function()
    assert.is_nil(urgency("cpu", { mean = 80 }))
    assert.equal("medium", urgency("cpu", { mean = 81 }))
    assert.equal("medium", urgency("cpu", { mean = 100 }))
  end)

  it("disk above 80 % is low", function()
    assert.is_nil(urgency("disk", { mean = 80 }))
    assert.equal("low", urgency("disk", { mean = 81 }))
  end)

  it("the plans are the guide's", function()
    local advice = advise({ memory = { mean = 90 }, cpu = { mean = 90, cores = 0.5 }, disk = { mean = 90 } })
    assert.equal("standard", advice.memory.recommended_tier)
    assert.equal(21, advice.memory.estimated_monthly_cost)
    assert.equal("standard", advice.cpu.recommended_tier)
    assert.equal(21, advice.cpu.estimated_monthly_cost)
    assert.equal("larger_disk", advice.disk.recommended_tier)
    assert.equal(10, advice.disk.estimated_monthly_cost)
    assert.equal(90, advice.memory.current_usage)
  end)
end)

describe("a step", function()
  it("must be passed on average, not by one sample", function()
    assert.is_nil(urgency("memory", { mean = 70, last = 99, max = 99, p95 = 99 }))
    assert.is_nil(urgency("cpu", { mean = 79, last = 100, max = 100, p95 = 100 }))
  end)

  it("must still be passed", function()
    assert.is_nil(urgency("memory", { mean = 90, last = 60 }))
  end)

  it("says nothing by a few samples", function()
    local function count(samples)
      return #policy.advise(kit.window({ samples = samples, memory = kit.make("memory", { mean = 99, last = 99 }) }))
    end
    assert.equal(0, count(4))
    assert.equal(1, count(5))
    for samples, closes in pairs({ [1] = false, [4] = false, [5] = true }) do
      local open = { cpu = kit.make("open", { urgency = "medium" }) }
      local advice = advise({ cpu = { mean = 99 } }, { samples = samples, open = open })
      assert.equal("medium", advice.cpu.urgency)
      advice = advise({ cpu = { mean = 10 } }, { samples = samples, open = open })
      assert.equal(closes, advice.cpu == nil)
    end
  end)

  it("closes five points below", function()
    assert.equal("medium", urgency("memory", { mean = 80.1 }, "medium"))
    assert.is_nil(urgency("memory", { mean = 80 }, "medium"))
    assert.equal("high", urgency("memory", { mean = 90.1 }, "high"))
    assert.equal("medium", urgency("memory", { mean = 90 }, "high"))
    assert.equal("high", urgency("memory", { mean = 96 }, "medium"))
    assert.equal("medium", urgency("cpu", { mean = 75.1 }, "medium"))
    assert.is_nil(urgency("cpu", { mean = 75 }, "medium"))
    assert.is_nil(urgency("disk", { mean = 75 }, "low"))
    assert.equal("medium", urgency("memory", { mean = 84, last = 50 }, "medium"))
  end)

  it("does not flap on load that goes up and down around it", function()
    local open, changes = nil, 0
    for minute = 1, 600 do
      local mean = 85 + 4 * math.sin(minute / 7)
      local now = urgency("memory", { mean = mean }, open)
      if now ~= open then
        open, changes = now, changes + 1
      end
    end
    assert.equal(1, changes)
    assert.equal("medium", open)
  end)

  it("is named with figures", function()
    local reason = advise({ memory = { mean = 87.34 } }).memory.reason
    assert.equal("memory at 87.3 % on average over 10 minutes (the step is 85 %)", reason)
  end)
end)

describe("time to full", function()
  it("warns of a disk that fills up, the more urgently the sooner", function()
    assert.is_nil(urgency("disk", { mean = 60, trend = 0.5 }))
    assert.equal("low", urgency("disk", { mean = 60, trend = 0.6 }))
    assert.equal("medium", urgency("disk", { mean = 60, trend = 2 }))
    assert.equal("high", urgency("disk", { mean = 60, trend = 8 }))
    assert.equal("high", urgency("disk", { mean = 100, trend = 1 }))
    assert.truthy(advise({ disk = { mean = 60, trend = 8 } }).disk.reason:find("full in 5.0 hours", 1, true))
    for trend, text in pairs { [0.56] = "0.56", [8] = "8.0", [99.6] = "100", [120] = "120" } do
      assert.truthy(advise({ disk = { mean = 60, trend = trend } }).disk.reason:find("growing by " .. text
        .. " points", 1, true))
    end
  end)

  it("warns of memory that will be full within a day", function()
    assert.is_nil(urgency("memory", { mean = 60, trend = 1.6 }))
    assert.equal("medium", urgency("memory", { mean = 60, trend = 1.7 }))
  end)

  it("does not believe a short look, or what is hardly used", function()
    local growing = { memory = { mean = 60, trend = 30 } }
    assert.is_nil(advise(growing, { trend_seconds = 3599 }).memory)
    assert.is_nil(urgency("disk", { mean = 49, trend = 50 }))
    assert.is_nil(urgency("disk", { mean = 70, trend = -5 }))
  end)

  it("closes when there is half as much time again", function()
    assert.equal("low", urgency("disk", { mean = 60, trend = 0.4 }, "low"))
    assert.is_nil(urgency("disk", { mean = 60, trend = 0.37 }, "low"))
  end)
end)

describe("Chroma's sizing rule", function()
  local function of_index(mb, open)
    local advice = advise({ memory = { mean = 60, limit_mb = 512 } }, { index_mb = mb,
      open = open and { memory = kit.make("open") } or {} })
    return advice.memory
  end

  it("warns when the vectors take more than 80 % of the memory", function()
    assert.is_nil(of_index(409))
    assert.equal("medium", of_index(410).urgency)
    assert.equal("10000 vectors need about 410 MB, 80 % of the memory", of_index(410).reason)
    for mb, text in pairs { [999.7] = "1000 MB", [1023] = "1023 MB", [1024] = "1.0 GB" } do
      assert.truthy(of_index(mb).reason:find("need about " .. text, 1, true))
    end
    assert.equal("medium", of_index(390, true).urgency)
    assert.is_nil(of_index(380, true))
  end)

  it("recommends a plan that they fit into", function()
    assert.equal("standard", of_index(1600).recommended_tier)
    assert.equal("pro", of_index(1700).recommended_tier)
    assert.equal("larger", of_index(1e6).recommended_tier) -- no plan has as much
    assert.equal(0, of_index(1e6).estimated_monthly_cost)
    assert.truthy(of_index(1e6).reason:find("need about 976.6 GB", 1, true))
  end)

  it("says nothing where they were not counted", function()
    local w = kit.make("window", { memory = kit.make("memory") })
    assert.same({}, policy.advise(w))
  end)
end)

it("a plan is larger than what is there", function()
  assert.equal("pro", advise({ memory = { mean = 90, limit_mb = 2048 } }).memory.recommended_tier)
  assert.equal("pro", advise({ cpu = { mean = 90, cores = 1 } }).cpu.recommended_tier)
end)

it("several reasons make one recommendation, of the highest urgency", function()
  local r = advise({ memory = { mean = 96, trend = 1 } }, { index_mb = 500 }).memory
  assert.equal("high", r.urgency)
  assert.truthy(r.reason:find("on average", 1, true))
  assert.truthy(r.reason:find("full in 4.0 hours", 1, true))
  assert.truthy(r.reason:find("vectors need", 1, true))
end)

it("what was not measured gets no advice", function()
  for _, kind in ipairs({ "memory", "cpu", "disk" }) do
    local w = kit.window()
    w[kind] = nil
    assert.same({}, policy.advise(w))
  end
end)
