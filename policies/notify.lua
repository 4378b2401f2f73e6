-- notify.lua: is an operator told this now, later or not at all? See README.md.
--
-- "send": now; what lasts is asked about again after the `wait` that comes with it. "hold": ask again
-- in `wait` seconds, if it is not over by then. "drop": never.
local M = {}

local HOUR, DAY = 3600, 86400

-- Between two messages of the same key and urgency lie `every` seconds. `lasts`: it goes on until an
-- event says that it is over, and is told again as long as it does. `at_once`: an outage, told each
-- time it begins, until it began OPENINGS_MOST times within an hour: then it flaps.
local KINDS = {
  server_down = { every = HOUR, lasts = true, at_once = true },
  journal_unavailable = { every = HOUR, lasts = true, at_once = true },
  journal_full = { every = HOUR, lasts = true, at_once = true },
  postgres_restored = { every = HOUR, lasts = true, at_once = true },
  no_source = { every = HOUR, lasts = true, at_once = true },
  messages_failing = { every = HOUR, lasts = true },
  server_lost_data = { every = 6 * HOUR, lasts = true },
  copy_lost = { every = 6 * HOUR, lasts = true },
  rebuild_slow = { every = 6 * HOUR, lasts = true },
  rebuild_failed = { every = DAY, lasts = true },
  lag_above = { every = 6 * HOUR, lasts = true },
  journal_filling = { every = 6 * HOUR, lasts = true },
  monitor_silent = { every = 6 * HOUR, lasts = true },
  policy_tripped = { every = DAY, lasts = true },
  disk_above = { every = DAY, lasts = true },
  recommendation_opened = { every = DAY, lasts = true },
  recommendation_raised = { every = DAY, lasts = true },
  test = { every = 0 },
}
local OTHERS = { every = HOUR }
local OPENINGS_MOST = 3

-- Messages about anything; what comes on top of them waits, so that it is told together.
local A_MINUTE, BURST_WAIT = 10, 30
local AN_HOUR, BUSY_WAIT = 60, 600

-- Hours of the day (local time) in which only high urgency and recoveries are told; none:
-- { from = 22, to = 7 } would be the night.
local QUIET = {}

-- Keys that are never told, as Lua patterns: "^lag/", "^server/staging$".
local MUTED = {}

local function matches(key, patterns)
  for _, pattern in ipairs(patterns) do
    if key:find(pattern) then
      return true
    end
  end
  return false
end

-- Seconds until the quiet hours are over; 0: they are not now.
local function quiet_for(now)
  if not QUIET.from then
    return 0
  end
  local t = os.date("*t", now)
  local left = (QUIET.to - t.hour - t.min / 60 - t.sec / 3600) % 24
  return left <= (QUIET.to - QUIET.from) % 24 and left * HOUR or 0
end

-- Seconds until the same may be told again; 0: now.
local function limited_for(event, sent, kind)
  local begins = sent.count == 0
  if sent.same_at == 0 or (kind.at_once and begins and event.openings <= OPENINGS_MOST) then
    return 0
  end
  return math.max(sent.same_at + kind.every - event.now, 0)
end

local function hold(reason, seconds)
  return "hold", reason, math.max(seconds, 1)
end

function M.decide(event, sent)
  local kind = KINDS[event.kind] or OTHERS
  if matches(event.key, MUTED) then
    return "drop", "muted"
  end
  if event.ends and sent.count == 0 then
    return "drop", "nothing was told of what is over"
  end
  if sent.muted_until > event.now then
    if event.ends or kind.lasts then -- what still goes on then is told then
      return hold("muted", sent.muted_until - event.now)
    end
    return "drop", "muted"
  end
  if sent.silent_until > event.now then
    return hold("silence for maintenance", sent.silent_until - event.now)
  end
  if event.ends then
    return "send", "over"
  end
  local limited = limited_for(event, sent, kind)
  if limited > 0 then
    return hold("the same was told lately", limited)
  end
  if event.urgency ~= "high" then
    local quiet = quiet_for(event.now)
    if quiet > 0 then
      return hold("quiet hours", quiet)
    elseif sent.in_last_minute >= A_MINUTE then
      return hold("many messages within a minute", BURST_WAIT)
    elseif sent.in_last_hour >= AN_HOUR then
      return hold("many messages within an hour", BUSY_WAIT)
    end
  end
  return "send", "due", kind.lasts and kind.every or nil
end

return M
