-- resources.lua: the balancer's part of monitoring: it leaves for monitors what it sees of the instances, and reads
-- what they found, for /status and /metrics.
--
-- Both in one transaction every MONITOR_INTERVAL. While PostgreSQL is away the pages show what was known last, with its
-- time; metrics leave out what is old.
local usage = require("chromux.usage")
local journal = require("lb.journal")

local M = {}

local OLD = 5        -- intervals after which a sample is no longer given as a metric,
local OLD_LEAST = 60 -- and seconds
local MB = 1024 * 1024

local before         -- {at=, nodes={[name]=…}}: what was counted up to the last time
M.samples, M.recommendations = {}, {}

local LEAVE = [[
  INSERT INTO balancer_figures (balancer, instance, at, seconds, requests, errors, in_flight, p50_ms, p99_ms,
      lag_entries, lag_seconds)
    SELECT $2, r.instance, to_timestamp($3), $4, r.requests, r.errors, r.in_flight, r.p50_ms, r.p99_ms, r.lag_entries,
        r.lag_seconds
      FROM json_to_recordset($1::json) AS r (instance text, requests bigint, errors bigint, in_flight integer,
        p50_ms double precision, p99_ms double precision, lag_entries bigint, lag_seconds double precision)
    ON CONFLICT (balancer, instance) DO UPDATE SET at = excluded.at, seconds = excluded.seconds,
      requests = excluded.requests, errors = excluded.errors, in_flight = excluded.in_flight,
      p50_ms = excluded.p50_ms, p99_ms = excluded.p99_ms, lag_entries = excluded.lag_entries,
      lag_seconds = excluded.lag_seconds]]

local NEWEST = [[
  SELECT p.*, extract(epoch FROM p.metric_timestamp)::double precision AS at
    FROM unnest($1::text[]) n CROSS JOIN LATERAL (SELECT * FROM performance_metrics WHERE instance = n
      ORDER BY metric_timestamp DESC LIMIT 1) p]]

local OPEN = [[
  SELECT instance, recommendation_type AS type, urgency, current_usage, recommended_tier, estimated_monthly_cost,
      reason, extract(epoch FROM created_at)::double precision AS created_at,
      extract(epoch FROM updated_at)::double precision AS updated_at
    FROM upgrade_recommendations WHERE resolved_at IS NULL ORDER BY instance, recommendation_type]]

-- What happened to an instance since the last time; lag: of the journal's status, nil in a standby.
local function figures_of(n, was, lag)
  local p50, p99 = usage.quantiles(n.latency, was.latency, 0.5, 0.99)
  return { instance = n.name, requests = n.requests - was.requests, in_flight = n.active + n.queued,
    errors = n.failures - was.failures + n.errors - was.errors,
    p50_ms = p50 and p50 * 1000, p99_ms = p99 and p99 * 1000,
    lag_entries = lag and lag.lag_entries, lag_seconds = lag and lag.lag_seconds }
end

local function look()
  local at, names, rows, counted = now(), {}, {}, {}
  local J = journal.state
  local lags = J.role == "holder" and journal.status().instances or {}
  for i, n in ipairs(usage.nodes()) do
    names[i], counted[n.name] = n.name, n
    local was = before and before.nodes[n.name]
    -- An instance that was taken out and in again counts from nothing.
    if was and was.requests <= n.requests then rows[#rows + 1] = figures_of(n, was, lags[n.name]) end
  end
  local seconds = before and at - before.at or 0
  before = { at = at, nodes = counted }
  local got = pg.connection("default"):transaction { timeout = 10,
    { LEAVE, #rows > 0 and seconds > 0 and json.encode(rows) or "[]", J.name, at, seconds },
    { NEWEST, "{" .. table.concat(names, ",") .. "}" },
    { OPEN } }
  if not got then return end
  local samples = {}
  for _, row in ipairs(got[2]) do
    row.id, row.metric_timestamp = nil, nil
    samples[row.instance], row.instance = row, nil
  end
  M.samples, M.recommendations = samples, got[3]
  M.recommendations.affected = nil
end

-- Runs beside the journal, whose settings it shares, for as long as the process.
function M.start()
  spawn(function()
    while true do
      if journal.state.phase ~= "starting" then spawn(look):wait() end
      sleep(journal.state.settings.MONITOR_INTERVAL)
    end
  end)
  return true
end

-- {samples={[instance]={column=, …, at=unix time}}, recommendations={{instance=, type=, …}, …}}
function M.status() return { samples = M.samples, recommendations = M.recommendations } end

local GAUGES = {
  { "memory_bytes", "memory_usage_mb", MB, "Memory that counts against the nearest limit." },
  { "memory_limit_bytes", "memory_limit_mb", MB, "That limit: a cgroup's, or the machine's memory." },
  { "memory_ratio", "memory_percent", 0.01, "The one divided by the other." },
  { "resident_bytes", "rss_mb", MB, "Resident memory of the process." },
  { "cpu_ratio", "cpu_percent", 0.01, "CPU used, of what the process may use." },
  { "cpu_cores", "cpu_cores", 1, "Cores that the process may use." },
  { "open_files", "open_files", 1, "Open descriptors." },
  { "disk_free_bytes", "disk_free_mb", MB, "Free space where its data lies." },
  { "disk_ratio", "disk_percent", 0.01, "Used share of that file system." },
  { "data_bytes", "data_mb", MB, "Size of its data." },
  { "index_bytes", "index_mb", MB, "Of that, indexes." },
  { "vectors", "vectors", 1, "Records, all collections together." },
}

function M.metrics()
  local out, names = {}, {}
  local oldest = now() - math.max(OLD * journal.state.settings.MONITOR_INTERVAL, OLD_LEAST)
  for name, row in pairs(M.samples) do
    if row.at >= oldest then names[#names + 1] = name end
  end
  table.sort(names)
  for _, g in ipairs(GAUGES) do
    local help = g[4]
    for _, name in ipairs(names) do
      local value = M.samples[name][g[2]]
      if value then
        out[#out + 1] = { name = "chromux_instance_" .. g[1], type = "gauge", help = help, value = value * g[3],
          labels = 'instance="' .. name .. '"' }
        help = nil
      end
    end
  end
  for i, r in ipairs(M.recommendations) do
    out[#out + 1] = { name = "chromux_recommendation", type = "gauge", value = 1,
      help = i == 1 and "1 for each recommendation that is open." or nil,
      labels = string.format('instance="%s",type="%s",urgency="%s"', r.instance, (r.type:gsub('[\\"\n]', "?")),
        r.urgency) }
  end
  return out
end

return M
