-- sync_view.lua: what the balancer's /status and /metrics say of sync, which other processes do.
--
-- The pages are made without waiting, so they show what was last read from PostgreSQL: every EVERY seconds while
-- somebody asks, now and then when nobody does. What that costs is bounded: between two looks at least COST times the
-- duration of the last one passes.
local M = {}

local EVERY, RARELY, LATELY, COST = 2, 10, 60, 20
local LISTED = 50 -- jobs

local asked_at, seen, failed, running = 0, nil, nil, false

local function iso(column)
  return "to_char(" .. column .. [[ AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')]]
end

local OVER = "('done', 'failed', 'cancelled')"

local LEASE = "SELECT holder, (SELECT worker_id FROM sync_workers WHERE process = holder) AS worker, until > now() AS "
  .. "held, paused_by, paused_why, " .. iso("paused_at") .. " AS paused FROM sync_lease"

local WORKERS = [[SELECT worker_id AS id, role, worker_status AS status, lease_until > now() AS alive,
    current_task_id AS task, memory_usage_mb::float8 AS memory_mb, cpu_percent::float8 AS cpu_percent,
    extract(epoch FROM now() - last_heartbeat)::float8 AS heartbeat_age_seconds, policies_aside
  FROM sync_workers ORDER BY worker_id LIMIT 100]]

local JOBS = [[SELECT id, kind, collection_id AS collection, collection_name AS name, tenant, database, instance,
    source, state, records, done_records, differences, repaired, attempts, error, asked_by,
    extract(epoch FROM now() - COALESCE(started_at, created_at))::float8 AS age_seconds
  FROM sync_jobs WHERE state NOT IN ]] .. OVER .. " ORDER BY priority DESC, id LIMIT " .. LISTED

local COUNTS = "SELECT state, count(*) AS n FROM sync_jobs WHERE state NOT IN " .. OVER .. " GROUP BY 1"

local REBUILDING = "SELECT instance, count(*) AS n FROM sync_jobs WHERE kind <> 'verify' AND state NOT IN " .. OVER
  .. " GROUP BY 1"

-- Collections: rebuilding when a copy is not whole; else differing when one was found so; else equal when all copies
-- but the one that they were compared with were proven, and each instance has one.
local COLLECTIONS = [[WITH m AS (SELECT count(*) AS n FROM (SELECT instance FROM journal_copies WHERE lane = 0
        UNION SELECT json_array_elements_text(instances::json) FROM sync_lease) i
      LEFT JOIN journal_servers USING (instance) WHERE NOT COALESCE(retired, false)),
  c AS (SELECT k.lane, count(*) AS copies, count(*) FILTER (WHERE c.state <> 'ready') AS bad,
      count(*) FILTER (WHERE c.state = 'ready' AND s.differences > s.repaired) AS differing,
      count(s.proven_equal_at) AS proven, min(s.proven_equal_at) AS oldest
    FROM journal_collections k JOIN journal_copies c USING (lane)
      LEFT JOIN journal_servers i ON i.instance = c.instance
      LEFT JOIN sync_collections s ON s.collection_id = k.logical AND s.instance = c.instance
    WHERE NOT k.deleted AND NOT COALESCE(i.retired, false) GROUP BY k.lane),
  d AS (SELECT oldest, CASE WHEN bad > 0 THEN 'rebuilding' WHEN differing > 0 THEN 'differing'
      WHEN copies > 1 AND copies >= m.n AND proven >= copies - 1 THEN 'equal' ELSE 'unproven' END AS word FROM c, m)
  SELECT count(*) FILTER (WHERE word = 'equal') AS equal, count(*) FILTER (WHERE word = 'differing') AS differing,
    count(*) FILTER (WHERE word = 'rebuilding') AS rebuilding, count(*) FILTER (WHERE word = 'unproven') AS unproven,
    ]] .. iso("min(oldest) FILTER (WHERE word = 'equal')") .. [[ AS oldest_proof,
    extract(epoch FROM now() - min(oldest) FILTER (WHERE word = 'equal'))::float8 AS oldest_proof_seconds FROM d]]

-- The last of each kind, and the last that failed.
local LAST = "SELECT DISTINCT ON (what) CASE WHEN state = 'failed' THEN 'failure' ELSE kind END AS what, id, kind, "
  .. "collection_name AS name, instance, source, state, records, differences, repaired, error, hold_ms, "
  .. iso("finished_at") .. [[ AS finished_at, extract(epoch FROM finished_at - started_at)::float8 AS seconds
  FROM sync_jobs WHERE state IN ('done', 'failed') AND started_at < finished_at ORDER BY what, finished_at DESC]]

local function document(rows)
  local lease, d = rows[1][1], { jobs_by_state = {}, jobs_open = 0, instances = {}, last = {} }
  d.coordinator = lease.held and (lease.worker or lease.holder) or ""
  if lease.paused then d.paused = { by = lease.paused_by, why = lease.paused_why, since = lease.paused } end
  d.workers, d.jobs, d.collections = rows[2], rows[3], rows[6][1]
  rows[2].affected, rows[3].affected = nil, nil
  for _, row in ipairs(rows[4]) do
    d.jobs_by_state[row.state] = row.n
    d.jobs_open = d.jobs_open + row.n
  end
  for _, row in ipairs(rows[5]) do d.instances[row.instance] = row.n end
  for _, row in ipairs(rows[7]) do
    d.last[row.what], row.what = row, nil
  end
  return d
end

local function look(conn)
  local rows, why = conn:transaction { { LEASE }, { WORKERS }, { JOBS }, { COUNTS }, { REBUILDING }, { COLLECTIONS },
    { LAST }, timeout = 5 }
  failed = why
  if rows then
    seen = document(rows)
    seen.at = now()
  end
end

local function keep_looking(conn)
  while true do
    local began = now()
    look(conn)
    local least, slept = failed and 0 or COST * (now() - began), 0
    repeat
      sleep(1)
      slept = slept + 1
      local often = failed or now() - asked_at < LATELY
    until slept >= least and slept >= (often and EVERY or RARELY)
  end
end

-- From now on. Called once, with a journal.
function M.start()
  local conn = not running and pg.connection("default")
  if conn then
    running = true
    spawn(keep_looking, conn)
  end
  return true
end

-- {age_seconds=, error= of the last look, coordinator=, paused=, workers=, jobs=, collections=, last=, instances=}
function M.status()
  asked_at = now()
  local out = { error = failed }
  for key, value in pairs(seen or {}) do out[key] = value end
  out.age_seconds = seen and asked_at - seen.at
  out.at = nil
  return out
end

function M.metrics()
  asked_at = now()
  if not seen then return {} end
  local rows, alive = {}, 0
  for _, w in ipairs(seen.workers) do alive = alive + (w.alive and 1 or 0) end
  local function add(name, help, value, labels)
    rows[#rows + 1] = { name = "chromux_sync_" .. name, help = help, value = value, labels = labels }
  end
  add("workers", "Workers and coordinators that are alive.", alive)
  add("paused", "1 while an operator has paused sync.", seen.paused and 1 or 0)
  add("jobs", "Rebuilds and comparisons that are not over.", seen.jobs_open)
  local help = "Collections by what is known of their copies."
  for _, word in ipairs { "equal", "differing", "rebuilding", "unproven" } do
    add("collections", help, seen.collections[word], 'state="' .. word .. '"')
    help = nil
  end
  if seen.collections.oldest_proof_seconds then
    add("oldest_proof_seconds", "Age of the oldest proof that a collection is equal everywhere.",
      seen.collections.oldest_proof_seconds + (now() - seen.at))
  end
  return rows
end

return M
