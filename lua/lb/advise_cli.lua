-- advise_cli.lua: `chromux advise`: the recommendations that are open, and the figures behind them.
local M = {}

-- Exit codes.
local FINE, HIGH, USAGE, AWAY = 0, 1, 2, 3

local HELP = [[
chromux advise - which Chroma servers need more than they have; DATABASE_URL says where monitors write

Prints what each server uses and the recommendations that are open. Exit codes: 0 none is of high urgency, 1 one is,
2 wrong use, 3 PostgreSQL cannot be used.
]]

local NEWEST = [[
  SELECT p.*, extract(epoch FROM now() - p.metric_timestamp)::double precision AS age
    FROM (SELECT DISTINCT instance FROM monitor_instances UNION
      SELECT DISTINCT instance FROM upgrade_recommendations WHERE resolved_at IS NULL) i
    CROSS JOIN LATERAL (SELECT * FROM performance_metrics WHERE instance = i.instance
      ORDER BY metric_timestamp DESC LIMIT 1) p ORDER BY p.instance]]

local OPEN = [[
  SELECT *, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS since FROM upgrade_recommendations
    WHERE resolved_at IS NULL
    ORDER BY instance, array_position(ARRAY['high', 'medium', 'low'], urgency), recommendation_type]]

-- Whose health a monitor asks for, and what they use nobody measures.
local UNSAMPLED = [[
  SELECT DISTINCT instance_name AS instance FROM health_metrics WHERE checked_at > now() - interval '10 minutes'
    AND instance_name NOT IN (SELECT instance FROM monitor_instances UNION
      SELECT instance FROM journal_servers WHERE retired) ORDER BY 1]]

local function out(...) io.stdout:write(string.format(...), "\n") end

local function fail(code, ...)
  io.stdout:flush()
  io.stderr:write("chromux advise: ", string.format(...), "\n")
  error({ code = code }, 0)
end

local function query(sql)
  local rows, why, state = pg.query({ sql, timeout = 15 })
  if rows then return rows end
  if state == "42P01" or state == "42703" then
    fail(AWAY, "this database has no samples of this version: has chromux run with this DATABASE_URL? (%s)", why)
  end
  fail(AWAY, "%s", why == "no DATABASE_URL" and "DATABASE_URL is not set" or "PostgreSQL: " .. tostring(why))
end

-- "85.2 % of 512 MB", or "not known"
local function share(percent, fmt, whole)
  if not percent then return "not known" end
  return string.format("%.1f %%" .. (whole and fmt or ""), percent, whole)
end

local function age(seconds)
  if seconds < 120 then return string.format("%d seconds ago", seconds) end
  if seconds < 7200 then return string.format("%d minutes ago", seconds / 60) end
  return string.format("%d hours ago", seconds / 3600)
end

local function show_sample(s)
  out("%s, sampled %s on %s", s.instance, age(s.age), s.host)
  out("  memory  %s; resident %.0f MB", share(s.memory_percent, " of %.0f MB", s.memory_limit_mb), s.rss_mb or 0)
  out("  cpu     %s", share(s.cpu_percent, " of %g cores", s.cpu_cores))
  local whole = s.disk_used_mb and s.disk_free_mb and s.disk_used_mb + s.disk_free_mb
  out("  disk    %s%s", share(s.disk_percent, " of %.0f MB", whole),
    s.data_mb and string.format("; data %.0f MB, of that indexes %.0f MB", s.data_mb, s.index_mb or 0) or "")
  if s.vectors then out("  vectors %d", s.vectors) end
end

local function show_recommendation(r)
  out("  %-6s  %s: %s", r.urgency, r.recommendation_type, r.reason)
  local price = r.estimated_monthly_cost > 0 and string.format("%g $ a month", r.estimated_monthly_cost)
    or "price not known"
  out("          plan %s, %s; open since %s UTC", r.recommended_tier, price, r.since)
end

-- true: one of them is high.
local function show()
  local samples, open, unsampled = query(NEWEST), query(OPEN), query(UNSAMPLED)
  if #samples == 0 and #open == 0 and #unsampled == 0 then
    out("no server is sampled: is a monitor running beside the servers?")
    return false
  end
  local by_instance, names, high = {}, {}, false
  local function of(name)
    if not by_instance[name] then
      by_instance[name] = { open = {} }
      names[#names + 1] = name
    end
    return by_instance[name]
  end
  for _, s in ipairs(samples) do of(s.instance).sample = s end
  for _, r in ipairs(open) do
    table.insert(of(r.instance).open, r)
    high = high or r.urgency == "high"
  end
  for _, name in ipairs(names) do
    local i = by_instance[name]
    if i.sample then show_sample(i.sample) else out("%s, not sampled any more", name) end
    for _, r in ipairs(i.open) do show_recommendation(r) end
    if #i.open == 0 then out("  needs nothing") end
  end
  for _, row in ipairs(unsampled) do
    if not by_instance[row.instance] then
      out("%s, sampled by no monitor: is one running on its host, as its user or root?", row.instance)
    end
  end
  return high
end

-- main("--help"…) -> exit code
function M.main(...)
  local word = ...
  if word == "help" or word == "--help" or word == "-h" then
    io.stdout:write(HELP)
    return FINE
  end
  if word then
    io.stderr:write("chromux advise: takes no arguments, not ", word, "; see chromux advise help\n")
    return USAGE
  end
  local ok, result = pcall(show)
  if ok then return result and HIGH or FINE end
  if type(result) == "table" and result.code then return result.code end
  error(result, 0)
end

return M
