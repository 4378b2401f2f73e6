-- The shipped notify.lua: told now, later or not at all? And over time, as the sender asks it.
local kit = require("lb.testkit")
local PATH = "policies/notify.lua"
local HOUR, DAY = 3600, 86400
local NOW = kit.event("test").now

local policy = kit.load(PATH)

-- The file with one of its locals set to something else, as an operator edits it.
local function edited(name, value)
  local f = assert(io.open(PATH))
  local text = f:read("*a")
  f:close()
  local changed, n = text:gsub("\nlocal " .. name .. " = [^\n]*", "\nlocal " .. name .. " = " .. value, 1)
  assert.equal(1, n)
  local bare = os.tmpname()
  f = assert(io.open(bare, "w"))
  f:write(changed)
  f:close()
  local other = kit.load(bare, { as = "notify" })
  os.remove(bare)
  return other
end

local function decide(kind, sent, event, with)
  local word, _, wait = (with or policy).decide(kit.event(kind, event), kit.make("sent", sent))
  return wait and word .. " " .. wait or word
end

local function told(ago, count)
  return { count = count or 1, last_at = NOW - ago, same_at = NOW - ago, last_urgency = "high" }
end

describe("an outage", function()
  it("is told at once, then hourly", function()
    assert.equal("send 3600", decide("server_down"))
    assert.equal("hold 3599", decide("server_down", told(1)))
    assert.equal("hold 1", decide("server_down", told(HOUR - 0.5)))
    assert.equal("send 3600", decide("server_down", told(HOUR)))
  end)

  it("is told at once again when it begins again, but not when it flaps", function()
    assert.equal("send 3600", decide("server_down", told(60, 0), { openings = 3 }))
    assert.equal("hold 3540", decide("server_down", told(60, 0), { openings = 4 }))
  end)

  it("is always told to be over, if it was told", function()
    assert.equal("send", decide("server_up", { count = 1, in_last_minute = 99, in_last_hour = 999 }))
    assert.equal("drop", decide("server_up", { count = 0 }))
  end)
end)

describe("a recommendation", function()
  it("is told once in 24 hours", function()
    assert.equal("send 86400", decide("recommendation_opened"))
    assert.equal("hold 3600", decide("recommendation_opened", told(23 * HOUR)))
    assert.equal("hold 3600", decide("recommendation_opened", told(23 * HOUR, 0)))
    assert.equal("send 86400", decide("recommendation_opened", told(DAY)))
  end)

  it("is told at once when it becomes more urgent", function()
    assert.equal("send 86400", decide("recommendation_raised",
      { count = 1, last_at = NOW - 60, last_urgency = "medium", same_at = 0 }))
  end)
end)

describe("what happens and is over", function()
  it("is told hourly at most, and never again by itself", function()
    assert.equal("send", decide("failover"))
    assert.equal("hold 3000", decide("failover", told(600)))
    assert.equal("send", decide("failover", told(HOUR)))
    assert.equal("send", decide("never_heard_of"))
  end)
end)

describe("too many messages", function()
  it("wait to be told together, but for urgent ones", function()
    assert.equal("hold 30", decide("copy_lost", { in_last_minute = 10 }))
    assert.equal("hold 600", decide("copy_lost", { in_last_hour = 60 }))
    assert.equal("send 21600", decide("copy_lost", { in_last_minute = 9, in_last_hour = 59 }))
    assert.equal("send 3600", decide("server_down", { in_last_minute = 100, in_last_hour = 1000 }))
  end)
end)

describe("silence:", function()
  it("of a muted key nothing is told; what still goes on when that ends is told then", function()
    assert.equal("hold 600", decide("server_down", { muted_until = NOW + 600 }))
    assert.equal("hold 600", decide("server_up", { muted_until = NOW + 600, count = 1 }))
    assert.equal("drop", decide("failover", { muted_until = NOW + 600 }))
    assert.equal("send 3600", decide("server_down", { muted_until = NOW }))
  end)

  it("maintenance holds everything back until it is over", function()
    assert.equal("hold 600", decide("server_down", { silent_until = NOW + 600 }))
    assert.equal("hold 600", decide("server_up", { silent_until = NOW + 600, count = 1 }))
    assert.equal("drop", decide("server_up", { silent_until = NOW + 600 }))
  end)

  it("an operator can mute keys in the file", function()
    local quiet = edited("MUTED", '{ "^lag/", "^server/b$" }')
    assert.equal("drop", decide("lag_above", {}, { key = "lag/a" }, quiet))
    assert.equal("drop", decide("server_down", {}, { key = "server/b" }, quiet))
    assert.equal("send 3600", decide("server_down", {}, { key = "server/a" }, quiet))
  end)

  it("quiet hours hold back what is not urgent, until they are over", function()
    local quiet = edited("QUIET", "{ from = 22, to = 7 }")
    local function at(hour, kind, sent)
      return decide(kind, sent, { now = os.time({ year = 2024, month = 3, day = 5, hour = hour }) }, quiet)
    end
    assert.equal("hold 28800", at(23, "copy_lost"))
    assert.equal("hold 3600", at(6, "copy_lost"))
    assert.equal("send 21600", at(7, "copy_lost"))
    assert.equal("send 21600", at(21, "copy_lost"))
    assert.equal("send 3600", at(23, "server_down"))
    assert.equal("send", at(23, "copy_rebuilt", { count = 1 }))
  end)
end)

-- A sender as policies/README.md describes it, for one key, with a clock of its own.
local function sender(key)
  local self = { sent = {}, same = {}, openings = {}, count = 0, open = nil, ask_at = nil }

  local function ask(event, now)
    local recent = 0
    for _, at in ipairs(self.openings) do
      recent = recent + (at > now - HOUR and 1 or 0)
    end
    local word, _, wait = policy.decide(
      kit.event(event.kind, { key = key, at = event.at, now = now, since = event.at, openings = recent }),
      kit.make("sent", { count = self.count, same_at = self.same[event.kind] or 0 }))
    if word == "send" then
      self.sent[#self.sent + 1] = event.kind .. "@" .. now - NOW
      self.same[event.kind] = now
      self.count = self.count + 1
    end
    self.ask_at = word ~= "drop" and wait and now + wait or nil
  end

  function self.raise(kind, at)
    local event = { kind = kind, at = NOW + at }
    if kit.event(kind).ends then
      self.open, self.ask_at = nil, nil
      ask(event, NOW + at)
      self.count = 0
    else
      if not self.open then
        table.insert(self.openings, NOW + at)
      end
      self.open = event
      ask(event, NOW + at)
    end
  end

  function self.pass(till)
    while self.open and self.ask_at and self.ask_at <= NOW + till do
      ask(self.open, self.ask_at)
    end
  end
  return self
end

describe("over time,", function()
  it("an outage of four and a half hours makes six messages", function()
    local s = sender("server/a")
    s.raise("server_down", 0)
    s.pass(4.5 * HOUR)
    s.raise("server_up", 4.5 * HOUR)
    s.pass(24 * HOUR)
    assert.same({ "server_down@0", "server_down@3600", "server_down@7200", "server_down@10800", "server_down@14400",
      "server_up@16200" }, s.sent)
  end)

  it("a server that flaps every minute for six hours is told of a few times an hour", function()
    local s = sender("server/a")
    for minute = 0, 6 * 60 - 2, 2 do
      s.pass(60 * minute)
      s.raise("server_down", 60 * minute)
      s.raise("server_up", 60 * minute + 30)
    end
    assert.same({ "server_down@0", "server_up@30", "server_down@120", "server_up@150", "server_down@240",
      "server_up@270" }, { unpack(s.sent, 1, 6) })
    local per_hour = {}
    for _, what in ipairs(s.sent) do
      local hour = math.floor(what:match("@(%d+)") / HOUR)
      per_hour[hour] = (per_hour[hour] or 0) + 1
    end
    for hour = 1, 5 do
      assert.is_true((per_hour[hour] or 0) <= 2, "hour " .. hour .. ": " .. tostring(per_hour[hour]))
    end
    -- and what was told last is how it is
    assert.truthy(s.sent[#s.sent]:find("server_up", 1, true))
  end)

  it("a recommendation that lasts 72 hours is told daily, one that flaps as well", function()
    local lasting, flapping = sender("recommendation/a/memory"), sender("recommendation/b/memory")
    lasting.raise("recommendation_opened", 0)
    lasting.pass(72 * HOUR - 1)
    assert.same({ "recommendation_opened@0", "recommendation_opened@86400", "recommendation_opened@172800" },
      lasting.sent)
    for hour = 0, 70, 2 do
      flapping.pass(hour * HOUR)
      flapping.raise("recommendation_opened", hour * HOUR)
      flapping.pass((hour + 1) * HOUR)
      flapping.raise("recommendation_closed", (hour + 1) * HOUR)
    end
    assert.same({ "recommendation_opened@0", "recommendation_closed@3600", "recommendation_opened@86400",
      "recommendation_closed@90000", "recommendation_opened@172800", "recommendation_closed@176400" }, flapping.sent)
  end)

  it("a trouble that was held back and is over is told nothing of", function()
    local s = sender("lag/a")
    s.raise("lag_above", 0)
    s.raise("lag_below", 60)
    s.raise("lag_above", 120)
    s.raise("lag_below", 180)
    s.pass(DAY)
    assert.same({ "lag_above@0", "lag_below@60" }, s.sent)
  end)

  it("a trouble that was held back and goes on is told as soon as it may be", function()
    local s = sender("lag/a")
    s.raise("lag_above", 0)
    s.raise("lag_below", 60)
    s.raise("lag_above", 120)
    s.pass(DAY)
    assert.same({ "lag_above@0", "lag_below@60", "lag_above@21600" }, { unpack(s.sent, 1, 3) })
  end)
end)
