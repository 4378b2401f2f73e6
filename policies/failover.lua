-- failover.lua: is this instance, or this collection on it, up or down? See README.md.
--
-- Asked after every sign of life or trouble. Saying what is so already changes nothing. An instance
-- that is up but just failed something is `suspect` meanwhile: it gets requests only when no other
-- instance can serve, so being slow to say "down" here costs little.
local M = {}

-- Probes: settings, so that an operator need not edit this file.
local PROBES_DOWN = lb.settings.FAILURE_THRESHOLD
local PROBES_UP = lb.settings.SUCCESS_THRESHOLD

-- Requests: so many failed ones in a row need only one failed probe to confirm them.
local REQUESTS_DOWN = 5

-- A server at work on a big write answers its heartbeat but no data; so long is that forgiven.
local BUSY_SECONDS = 60

-- A collection: 5xx answers in a row that take it out, good answers that bring it back.
local COLLECTION_5XX_DOWN = 3
local COLLECTION_OKS_UP = 3

-- 5xx answers never take a whole instance down: a broken collection is no dead server.
local function judge_instance(subject, history)
  local failed = history.connect_fails + history.timeouts + history.resets
  if not subject.up then
    if history.passes >= PROBES_UP then
      return "up", history.passes .. " probes passed"
    end
    return "down", "not yet " .. PROBES_UP .. " good probes in a row"
  end
  if history.fails >= PROBES_DOWN then
    return "down", history.fails .. " probes failed: " .. history.last_error
  end
  if failed >= REQUESTS_DOWN and history.fails >= 1 then
    return "down", failed .. " requests and a probe failed: " .. history.last_error
  end
  if history.busy >= BUSY_SECONDS then
    return "down", ("no data for %d s"):format(history.busy)
  end
  return "up", "no change"
end

local function judge_collection(subject, history)
  if not subject.up then
    if history.passes >= PROBES_UP then
      return "up", history.passes .. " probes passed"
    end
    if history.oks >= COLLECTION_OKS_UP then
      return "up", history.oks .. " good answers"
    end
    return "down", "not well again yet"
  end
  if history.errors_5xx >= COLLECTION_5XX_DOWN then
    return "down", history.errors_5xx .. " answers 5xx in a row: " .. history.last_error
  end
  if history.fails >= PROBES_DOWN then
    return "down", history.fails .. " probes failed: " .. history.last_error
  end
  return "up", "no change"
end

function M.judge(subject, history)
  if subject.kind == "collection" then
    return judge_collection(subject, history)
  end
  return judge_instance(subject, history)
end

return M
