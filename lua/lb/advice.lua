-- advice.lua: what policies/upgrade.lua says to the samples of a window of time, kept as upgrade_recommendations.
--
-- A recommendation opens once, is updated while it holds, and is resolved when the policy does not name it any more. Of
-- several monitors that sample an instance one decides: the one in its row of monitor_instances, until that runs out.
-- What people are told goes with the row, in one transaction. While a policy fails, or a server or what it is about is
-- not measured, nothing is known, and recommendations stay as they are.
local policy = require("chromux.policy")
local notices = require("lb.notices")

local Advice = {}
Advice.__index = Advice

local SAMPLES = 10          -- that a window spans at least
local TREND = 36            -- windows that a trend is taken over
local TREND_EVERY = 60      -- seconds between two looks at so many samples
local LOOKS = 20            -- in a window
local CLAIM_LEAST = 30      -- seconds that deciding is one monitor's
local FAILURES = 3          -- looks in a row at which the policy fails
local FRESH = 3             -- intervals after which a sample says nothing of now
local DISK_ABOVE, DISK_BELOW = 90, 85 -- percent: nearly full, and not any more

local RANK = { low = 1, medium = 2, high = 3 }
local KINDS = { "memory", "cpu", "disk" }
local MEASURED = { memory = true, cpu = true, disk = true }

local WINDOW = [[
  SELECT instance, count(*) AS samples,
      extract(epoch FROM max(metric_timestamp) - min(metric_timestamp))::double precision AS seconds]]
local TRENDS = [[
  SELECT instance, extract(epoch FROM max(metric_timestamp) - min(metric_timestamp))::double precision AS seconds]]
for _, kind in ipairs(KINDS) do
  WINDOW = WINDOW .. string.gsub([[, avg(K_percent) AS K_mean, max(K_percent)::double precision AS K_max,
      percentile_cont(0.95) WITHIN GROUP (ORDER BY K_percent) AS K_p95]], "K", kind)
  TRENDS = TRENDS .. string.gsub([[, regr_slope(K_percent, extract(epoch FROM metric_timestamp - to_timestamp($2))
      / 3600) AS K]], "K", kind)
end
local FROM = " FROM performance_metrics WHERE host = $1 AND metric_timestamp > to_timestamp($2) GROUP BY instance"
WINDOW, TRENDS = WINDOW .. FROM, TRENDS .. FROM

local CLAIM = [[
  INSERT INTO monitor_instances (instance, monitor, until)
    SELECT unnest($1::text[]), $2, now() + make_interval(secs => $3)
    ON CONFLICT (instance) DO UPDATE SET monitor = $2, until = excluded.until
      WHERE monitor_instances.monitor = $2 OR monitor_instances.until < now()
    RETURNING instance, disk_above]]

-- Fails the transaction when another monitor decides by now.
local STILL_MINE = [[
  SELECT 1 / count(*) AS mine FROM (SELECT 1 FROM monitor_instances
    WHERE instance = $1 AND monitor = $2 AND until > now() FOR UPDATE) m]]

local OPEN = [[
  SELECT id, instance, host, recommendation_type AS type, urgency, value, reason, current_usage,
      extract(epoch FROM created_at)::double precision AS since
    FROM upgrade_recommendations WHERE resolved_at IS NULL]]

local RETIRED = "SELECT instance FROM journal_servers WHERE retired"

-- What is said of instances that are not among $1, unless another monitor decides about them.
local GONE = [[
  SELECT instance, COALESCE(disk_above, false) AS disk_above
    FROM (SELECT instance FROM upgrade_recommendations WHERE resolved_at IS NULL
        UNION SELECT instance FROM monitor_instances) i LEFT JOIN monitor_instances m USING (instance)
    WHERE instance <> ALL ($1::text[]) AND (m.monitor IS NULL OR m.monitor = $2 OR m.until < now())]]

-- Fail the transaction when another monitor was first.
local STILL_OPEN = [[
  SELECT 1 / count(*) AS open FROM (SELECT 1 FROM upgrade_recommendations WHERE id = $1 AND resolved_at IS NULL
    FOR UPDATE) r]]
local STILL_FULL = [[
  SELECT 1 / count(*) AS above FROM (SELECT 1 FROM monitor_instances WHERE instance = $1 AND disk_above
    FOR UPDATE) m]]

function Advice.new(monitor)
  return setmetatable({ monitor = monitor, trends = {}, trends_again = 0, failures = 0 }, Advice)
end

local function window_seconds(self)
  local s = self.monitor.settings
  return math.max(s.MONITOR_WINDOW, SAMPLES * s.MONITOR_INTERVAL)
end

-- Seconds between two looks.
function Advice:pause() return math.max(self.monitor.settings.MONITOR_INTERVAL, window_seconds(self) / LOOKS) end

-- ---- the window ------------------------------------------------------------------------------------------

local function by_instance(rows)
  local out = {}
  for _, row in ipairs(rows) do out[row.instance] = row end
  return out
end

-- {[instance]=row} of what was sampled here since.
local function samples_since(self, sql, seconds)
  local rows = self.monitor.conn:query(sql, self.monitor.host, now() - seconds)
  return rows and by_instance(rows)
end

local function trends(self)
  local t, window = now(), window_seconds(self)
  if t >= self.trends_again or t < self.trends_again - TREND_EVERY then
    self.trends = samples_since(self, TRENDS, TREND * window) or self.trends
    self.trends_again = t + TREND_EVERY
  end
  return self.trends
end

-- What the policy is given (policies/README.md). latest: the newest sample; open: rows of OPEN by type.
local function window_of(self, row, trend, latest, open)
  local size = self.monitor.sizes:of(row.instance)
  local w = { instance = row.instance, now = now(), seconds = row.seconds or 0, samples = row.samples,
    trend_seconds = trend and trend.seconds or 0, vectors = size.vectors, dimensions = size.dimensions,
    index_mb = size.mb, open = {} }
  for _, kind in ipairs(KINDS) do
    local last = latest[kind .. "_percent"]
    if last and row[kind .. "_mean"] then
      w[kind] = { mean = row[kind .. "_mean"], p95 = row[kind .. "_p95"], max = row[kind .. "_max"], last = last,
        trend = trend and trend[kind] or 0 }
    end
  end
  if w.memory then w.memory.last_mb, w.memory.limit_mb = latest.memory_usage_mb, latest.memory_limit_mb end
  if w.cpu then w.cpu.cores = latest.cpu_cores end
  if w.disk then w.disk.free_mb, w.disk.total_mb = latest.disk_free_mb, latest.disk_total_mb end
  for kind, r in pairs(open) do w.open[kind] = { urgency = r.urgency, since = r.since, value = r.value } end
  return w
end

-- ---- what changes ----------------------------------------------------------------------------------------

local function tell(statements, event) statements[#statements + 1] = notices.insert(notices.make(event)) end

local function tell_of(statements, kind, instance, r, title)
  tell(statements, { kind = kind, key = "recommendation/" .. instance .. "/" .. r.type, urgency = r.urgency,
    title = title, text = r.reason, value = r.value,
    fields = { { "instance", instance }, { "type", r.type },
      { "current_usage", string.format("%.1f", r.current_usage) }, { "recommended_tier", r.recommended_tier },
      { "estimated_monthly_cost", string.format("%g", r.estimated_monthly_cost) }, { "reason", r.reason } } })
end

local function opened(self, statements, instance, r)
  statements[#statements + 1] = { [[INSERT INTO upgrade_recommendations (recommendation_type, current_usage,
      recommended_tier, estimated_monthly_cost, reason, urgency, instance, host, value)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)]], r.type, r.current_usage, r.recommended_tier,
    r.estimated_monthly_cost, r.reason, r.urgency, instance, self.monitor.host, r.value }
  tell_of(statements, "recommendation_opened", instance, r, instance .. " needs more " .. r.type)
end

local function goes_on(statements, instance, r, before)
  statements[#statements + 1] = { [[UPDATE upgrade_recommendations SET current_usage = $2, recommended_tier = $3,
      estimated_monthly_cost = $4, reason = $5, urgency = $6, value = $7, updated_at = now() WHERE id = $1]],
    before.id, r.current_usage, r.recommended_tier, r.estimated_monthly_cost, r.reason, r.urgency, r.value }
  if RANK[r.urgency] <= RANK[before.urgency] then return end
  tell_of(statements, "recommendation_raised", instance, r, instance .. " needs more " .. r.type .. ": " .. r.urgency
    .. " instead of " .. before.urgency)
end

local function closed(statements, before, usage, why)
  statements[#statements + 1] = { "UPDATE upgrade_recommendations SET resolved_at = now(), updated_at = now() "
    .. "WHERE id = $1", before.id }
  tell(statements, { kind = "recommendation_closed", key = "recommendation/" .. before.instance .. "/" .. before.type,
    title = before.instance .. " needs no more " .. before.type .. " now", text = why, value = usage,
    fields = { { "instance", before.instance }, { "type", before.type },
      { "current_usage", string.format("%.1f", usage) } } })
end

-- One sample is enough here: a disk that is full stops the server.
local function look_at_disk(statements, instance, latest, above)
  local percent = latest.disk_percent
  if not percent or (above and percent >= DISK_BELOW) or (not above and percent < DISK_ABOVE) then return end
  statements[#statements + 1] = { "UPDATE monitor_instances SET disk_above = $2 WHERE instance = $1", instance,
    not above }
  tell(statements, { kind = above and "disk_below" or "disk_above", key = "disk/" .. instance,
    title = string.format("The disk of %s is %s", instance, above and "no longer nearly full" or "nearly full"),
    fields = { { "instance", instance }, { "percent", string.format("%.1f", percent) },
      { "free_mb", string.format("%.0f", latest.disk_free_mb) } } })
end

local function decide(self, instance, window, latest, open, above)
  local statements = { timeout = 10, { STILL_MINE, instance, self.monitor.name } }
  look_at_disk(statements, instance, latest, above)
  local list, failure = policy.call("upgrade.advise", window)
  if not list and not tostring(failure):find(" is missing$") then self.failure = tostring(failure) end
  if list then
    local named = {}
    for _, r in ipairs(list) do
      named[r.type] = true
      if open[r.type] then
        goes_on(statements, instance, r, open[r.type])
      else
        opened(self, statements, instance, r)
      end
    end
    for kind, before in pairs(open) do
      if not named[kind] and (window[kind] or not MEASURED[kind]) then
        closed(statements, before, latest[kind .. "_percent"] or before.current_usage, "It was: " .. before.reason)
      end
    end
  end
  if #statements == 1 then return end
  local ok, why = self.monitor.conn:transaction(statements)
  if not ok then log.warn("advice_not_written", instance .. ": " .. tostring(why)) end
end

-- A policy that fails at each look advises nothing, and nobody would miss it. What an earlier monitor of this host said
-- of it lies in PostgreSQL.
local function look_at_policy(self)
  local key, why = "policy/upgrade.lua on " .. self.monitor.host, self.failure
  self.failures = why and self.failures + 1 or 0
  if why and self.failures ~= FAILURES or not why and self.works then return end
  local told = self.monitor.conn:query("SELECT 1 FROM notify_events WHERE open AND key = $1", key)
  if not told then
    self.failures = math.max(self.failures - 1, 0) -- once more
    return
  end
  self.works = not why
  if why and #told == 0 then
    notices.raise { kind = "policy_tripped", key = key, title = "Policy upgrade.lua fails: nothing is advised",
      text = "Recommendations stay as they are.", fields = { { "host", self.monitor.host }, { "cause", why } } }
  elseif not why and #told > 0 then
    notices.raise { kind = "policy_back", key = key, title = "Policy upgrade.lua advises again",
      fields = { { "host", self.monitor.host } } }
  end
end

-- ---- instances that are gone -----------------------------------------------------------------------------

-- {[name]=true} of the instances that are configured and not retired | nil
local function wanted(self)
  local rows = self.monitor.conn:query(RETIRED)
  if not rows then return nil end
  local names = {}
  for _, i in ipairs(self.monitor.settings.instances) do names[i.name] = true end
  for _, row in ipairs(rows) do names[row.instance] = nil end
  return names
end

local function listed(set)
  local names = {}
  for name in pairs(set) do names[#names + 1] = name end
  table.sort(names)
  return "{" .. table.concat(names, ",") .. "}"
end

-- Instances that were taken out of the configuration, or retired, need nothing, and nobody looks at their disks.
local function close_gone(self, rows, names)
  for _, gone in ipairs(self.monitor.conn:query(GONE, listed(names), self.monitor.name) or {}) do
    local instance, statements = gone.instance, { timeout = 10 }
    local why = instance .. " is not in the configuration any more, or retired."
    for _, before in ipairs(rows) do
      if before.instance == instance then
        statements[#statements + 1] = { STILL_OPEN, before.id }
        closed(statements, before, before.current_usage, why)
      end
    end
    if gone.disk_above then
      statements[#statements + 1] = { STILL_FULL, instance }
      tell(statements, { kind = "disk_below", key = "disk/" .. instance, text = why,
        title = "The disk of " .. instance .. " is watched no more" })
    end
    statements[#statements + 1] = { "DELETE FROM monitor_instances WHERE instance = $1", instance }
    self.monitor.conn:transaction(statements)
  end
end

-- ---- a look ----------------------------------------------------------------------------------------------

local function sampled_now(self, wants)
  local names, oldest = {}, now() - math.max(FRESH * self.monitor.settings.MONITOR_INTERVAL, 5)
  for _, name in ipairs(self.monitor.samples:here()) do
    local latest = self.monitor.latest[name]
    if latest and latest.at >= oldest and wants[name] then names[#names + 1] = name end
  end
  return names
end

-- Asks the policy about each server that is sampled here, and keeps what it says.
function Advice:look()
  local conn, wants = self.monitor.conn, wanted(self)
  local rows = wants and conn:query(OPEN)
  if not rows then return end
  close_gone(self, rows, wants)
  local names = sampled_now(self, wants)
  if #names == 0 then return end
  local mine = conn:query(CLAIM, "{" .. table.concat(names, ",") .. "}", self.monitor.name,
    math.max(CLAIM_LEAST, FRESH * self:pause()))
  local windows = mine and #mine > 0 and samples_since(self, WINDOW, window_seconds(self))
  if not windows then return end
  local slopes = trends(self)
  self.failure = nil -- of this look, about whichever instance
  for _, claim in ipairs(mine) do
    local name, open = claim.instance, {}
    for _, r in ipairs(rows) do
      if r.instance == name then open[r.type] = r end
    end
    local latest = self.monitor.latest[name]
    if windows[name] then
      decide(self, name, window_of(self, windows[name], slopes[name], latest, open), latest, open, claim.disk_above)
    end
  end
  look_at_policy(self)
end

return Advice
