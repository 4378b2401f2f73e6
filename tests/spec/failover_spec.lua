-- The shipped failover.lua: when is an instance, or a collection on it, down and up again?
local kit = require("lb.testkit")
local PATH = "policies/failover.lua"

local function judge(subject, history, settings)
  return (kit.load(PATH, { settings = settings }).judge(kit.subject(subject), kit.history(history)))
end

describe("an instance", function()
  it("goes down after three failed probes in a row", function()
    assert.equal("up", judge({}, { fails = 2 }))
    assert.equal("down", judge({}, { fails = 3 }))
    assert.equal("down", judge({ state = "suspect" }, { fails = 3 }))
  end)

  it("takes its thresholds from the settings", function()
    local settings = { FAILURE_THRESHOLD = 5, SUCCESS_THRESHOLD = 4 }
    assert.equal("up", judge({}, { fails = 4 }, settings))
    assert.equal("down", judge({}, { fails = 5 }, settings))
    assert.equal("down", judge({ state = "down" }, { passes = 3 }, settings))
    assert.equal("up", judge({ state = "down" }, { passes = 4 }, settings))
  end)

  it("comes up after two good probes in a row", function()
    assert.equal("down", judge({ state = "down" }, { passes = 1 }))
    assert.equal("up", judge({ state = "down" }, { passes = 2 }))
  end)

  it("does not come up by requests alone", function()
    assert.equal("down", judge({ state = "down" }, { oks = 100 }))
  end)

  it("needs a failed probe to confirm failed requests", function()
    for _, kind in ipairs({ "connect_fails", "timeouts", "resets" }) do
      assert.equal("up", judge({}, { [kind] = 100 }))
      assert.equal("up", judge({}, { [kind] = 4, fails = 1 }))
      assert.equal("down", judge({}, { [kind] = 5, fails = 1 }))
    end
    assert.equal("down", judge({}, { connect_fails = 2, timeouts = 2, resets = 1, fails = 1 }))
  end)

  it("is never down for 5xx answers", function()
    assert.equal("up", judge({}, { errors_5xx = 1000, fails = 2 }))
  end)

  it("may be busy for a minute", function()
    assert.equal("up", judge({}, { busy = 59 }))
    assert.equal("down", judge({}, { busy = 60 }))
  end)

  it("says why", function()
    local policy = kit.load(PATH)
    local history = kit.history({ fails = 3, last_error = "connection refused" })
    local _, reason = policy.judge(kit.subject(), history)
    assert.equal("3 probes failed: connection refused", reason)
  end)
end)

describe("a collection", function()
  it("goes down after three 5xx answers in a row", function()
    assert.equal("up", judge({ kind = "collection" }, { errors_5xx = 2 }))
    assert.equal("down", judge({ kind = "collection" }, { errors_5xx = 3 }))
  end)

  it("goes down after failed probes", function()
    assert.equal("up", judge({ kind = "collection" }, { fails = 2 }))
    assert.equal("down", judge({ kind = "collection" }, { fails = 3 }))
  end)

  it("does not go down for trouble of the connection", function()
    assert.equal("up", judge({ kind = "collection" }, { connect_fails = 9, timeouts = 9 }))
  end)

  it("comes up by good probes or good answers", function()
    local down = { kind = "collection", state = "down" }
    assert.equal("down", judge(down, { passes = 1, oks = 2 }))
    assert.equal("up", judge(down, { passes = 2 }))
    assert.equal("up", judge(down, { oks = 3 }))
  end)
end)

-- A run as the core has it: counts as core/health.c keeps them.
describe("over time", function()
  it("a server that dies and comes back changes its state twice", function()
    local policy = kit.load(PATH)
    local state, changes = "up", {}
    local fails, passes = 0, 0
    for probe = 1, 30 do
      if probe > 5 and probe <= 15 then
        fails, passes = fails + 1, 0
      else
        fails, passes = 0, passes + 1
      end
      local answer = policy.judge(kit.subject({ state = state }),
        kit.history({ fails = fails, passes = passes }))
      if answer ~= state then
        changes[#changes + 1] = answer .. "@" .. probe
        state = answer
        fails, passes = 0, 0
      end
    end
    assert.same({ "down@8", "up@17" }, changes)
  end)
end)
