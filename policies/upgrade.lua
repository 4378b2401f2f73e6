-- upgrade.lua: which server needs a bigger plan, and why? See README.md.
--
-- Asked for each instance after every sample, about a window of time. What is in the list holds, what
-- is not in it any more is over: the caller opens, keeps and closes.
local M = {}

-- Percent of what there is, on average over the window and now: the highest step that is passed
-- counts. What is open holds until the average is CLOSES_BELOW points under its step.
local STEPS = {
  memory = { { above = 95, urgency = "high" }, { above = 85, urgency = "medium" } },
  cpu = { { above = 80, urgency = "medium" } },
  disk = { { above = 80, urgency = "low" } },
}
local CLOSES_BELOW = 5

local SAMPLES_LEAST = 5 -- fewer neither open nor close anything

-- Hours until it is full, if it goes on growing as it did. Only what was watched for TREND_SECONDS
-- and is at least TREND_FROM percent full counts: what starts grows fast, and stops.
local FULL = {
  memory = { { hours = 24, urgency = "medium" } },
  disk = { { hours = 6, urgency = "high" }, { hours = 24, urgency = "medium" }, { hours = 72, urgency = "low" } },
}
local FULL_CLOSES = 1.5 -- times those hours
local TREND_SECONDS = 3600
local TREND_FROM = 50

-- Chroma keeps all vectors in memory: percent of it that they may take.
local INDEX_PERCENT = 80

-- What there is to buy: the first row with more than is there now is recommended. Prices in $ a month; 0: none is
-- known, because no row is large enough.
local TIERS = {
  { name = "standard", memory_mb = 2048, cores = 1, cost = 21 },
  { name = "pro", memory_mb = 4096, cores = 2, cost = 85 },
  { name = "pro_plus", memory_mb = 8192, cores = 4, cost = 175 },
  { name = "pro_max", memory_mb = 16384, cores = 4, cost = 225 },
  { name = "pro_ultra", memory_mb = 32768, cores = 8, cost = 450 },
}
local LARGER = { name = "larger", cost = 0 }
local LARGER_DISK = { name = "larger_disk", cost = 10 }

local RANK = { low = 1, medium = 2, high = 3 }

local function duration(seconds)
  if seconds < 120 then
    return ("%d seconds"):format(seconds)
  elseif seconds < 7200 then
    return ("%d minutes"):format(seconds / 60)
  end
  return ("%.1f hours"):format(seconds / 3600)
end

local function number(n)
  return (n < 1 and "%.2f" or n < 10 and "%.1f" or "%.0f"):format(n)
end

local function size(mb)
  return mb < 1024 and number(mb) .. " MB" or ("%.1f GB"):format(mb / 1024)
end

-- ---- the rules: each gives an urgency and a reason, or nothing ---------------------------------

local function is_open(window, kind, urgency)
  local open = window.open[kind]
  return open and RANK[open.urgency] >= RANK[urgency]
end

local function level(window, kind)
  local usage = window[kind]
  for _, step in ipairs(STEPS[kind]) do
    local passed
    if is_open(window, kind, step.urgency) then
      passed = usage.mean > step.above - CLOSES_BELOW
    else
      passed = usage.mean > step.above and usage.last > step.above
    end
    if passed then
      return step.urgency, ("%s at %.1f %% on average over %s (the step is %d %%)"):format(
        kind, usage.mean, duration(window.seconds), step.above)
    end
  end
end

local function time_to_full(window, kind)
  local usage = window[kind]
  if not FULL[kind] or usage.trend <= 0 or usage.last < TREND_FROM or window.trend_seconds < TREND_SECONDS then
    return
  end
  local hours = math.max(100 - usage.last, 0) / usage.trend
  for _, step in ipairs(FULL[kind]) do
    local within = is_open(window, kind, step.urgency) and step.hours * FULL_CLOSES or step.hours
    if hours < within then
      return step.urgency, ("%s at %.1f %% and growing by %s points an hour: full in %s"):format(
        kind, usage.last, number(usage.trend), duration(hours * 3600))
    end
  end
end

local function index_percent(window)
  return 100 * (window.index_mb or 0) / window.memory.limit_mb
end

local function sizing(window, kind)
  if kind ~= "memory" or window.memory.limit_mb <= 0 then
    return
  end
  local percent = index_percent(window)
  if percent > (is_open(window, kind, "medium") and INDEX_PERCENT - CLOSES_BELOW or INDEX_PERCENT) then
    return "medium", ("%d vectors need about %s, %.0f %% of the memory"):format(
      window.vectors or 0, size(window.index_mb), percent)
  end
end

-- ---- the plan ---------------------------------------------------------------------------------

local function tier_with(field, more_than)
  for _, tier in ipairs(TIERS) do
    if tier[field] > more_than then
      return tier
    end
  end
  return LARGER
end

local PLAN = {
  memory = function(window)
    return tier_with("memory_mb", math.max(window.memory.limit_mb, (window.index_mb or 0) * 100 / INDEX_PERCENT))
  end,
  cpu = function(window) return tier_with("cores", window.cpu.cores) end,
  disk = function() return LARGER_DISK end,
}

-- The highest urgency of all rules that hold, and the reasons of all.
local function judge(window, kind)
  local urgency, reasons = nil, {}
  for _, rule in ipairs({ level, time_to_full, sizing }) do
    local found, reason = rule(window, kind)
    if found then
      reasons[#reasons + 1] = reason
      urgency = urgency and RANK[urgency] >= RANK[found] and urgency or found
    end
  end
  return urgency, reasons
end

-- A server or a monitor that has just begun: what is open is kept.
local function keep(window, kind)
  local open = window.open[kind]
  return open and open.urgency, { ("%s at %.1f %%; there are few samples yet"):format(kind, window[kind].last) }
end

local function advise_on(window, kind)
  local urgency, reasons = (window.samples < SAMPLES_LEAST and keep or judge)(window, kind)
  if urgency then
    local plan = PLAN[kind](window)
    return {
      type = kind,
      urgency = urgency,
      current_usage = window[kind].last,
      recommended_tier = plan.name,
      estimated_monthly_cost = plan.cost,
      reason = table.concat(reasons, "; "),
      value = window[kind].mean,
    }
  end
end

function M.advise(window)
  local list = {}
  for _, kind in ipairs({ "memory", "cpu", "disk" }) do
    if window[kind] then
      list[#list + 1] = advise_on(window, kind)
    end
  end
  return list
end

return M
