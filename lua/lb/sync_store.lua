-- sync_store.lua: what sync keeps in PostgreSQL (schema.lua, step 4): who coordinates, workers, jobs, tasks, and what
-- is known of each collection. All of its SQL is here.
--
-- What the coordinator changes it changes only while the lease is its own: commit() checks that in the transaction. A
-- task is a worker's while it has the epoch of that worker's claim: the report of an earlier claim is refused.
local Store = {}
Store.__index = Store

-- Payload "tasks": there are new ones; "jobs": something for the coordinator.
Store.CHANNEL = "chromux_sync_work"

Store.RETRIES = 5       -- failures of a task after which it stays failed
Store.HOPELESS = require("lb.words").HOPELESS
local FIRST_PAUSE = 1   -- seconds before it is tried again, doubled each time
local KEEP_DAYS = 30
local LATER_MOST = 30   -- seconds that a job waits after it could not go on

-- conn: for work; keeper: for what must not wait behind it (leases). Connections of lb.runtime's pg. epoch: of the
-- coordinator whose store it is; without one nothing can be changed that is a coordinator's to change.
function Store.new(conn, keeper, epoch) return setmetatable({ conn = conn, keeper = keeper, epoch = epoch }, Store) end

function Store:of_coordinator(epoch) return Store.new(self.conn, self.keeper, epoch) end

-- Names the copy of a job.
function Store.copy_key(job) return string.format("%d/%s", job.lane, job.instance) end

local function tell(what) return { "SELECT pg_notify($1, $2)", Store.CHANNEL, what } end

-- "{1,2}" of numbers, for a parameter of type bigint[].
local function numbers(list)
  local words = {}
  for i, n in ipairs(list) do words[i] = string.format("%d", n) end
  return "{" .. table.concat(words, ",") .. "}"
end

-- "{"a","b"}" of texts, for one of type text[].
local function texts(list)
  local words = {}
  for i, s in ipairs(list) do words[i] = '"' .. s:gsub('[\\"]', "\\%0") .. '"' end
  return "{" .. table.concat(words, ",") .. "}"
end

-- An operator wants nothing new to begin (`chromux sync pause`).
local PAUSED = "EXISTS (SELECT 1 FROM sync_lease WHERE paused_at IS NOT NULL)"

-- ---- who coordinates -------------------------------------------------------------------------------------

-- Takes or keeps the lease for so many seconds. A worker leaves it to a coordinator that is alive. instances: names of
-- those that are configured. Its epoch, which is another one after any time without the lease | false: another has it |
-- nil, why
function Store:lease(holder, is_worker, seconds, instances)
  local rows, why = self.keeper:query({ [[UPDATE sync_lease SET holder = $1,
      epoch = epoch + (holder <> $1 OR until < now())::int,
      until = now() + $2 * interval '1 second', instances = $4
      WHERE (until < now() OR holder = $1) AND NOT ($3 AND EXISTS (
        SELECT 1 FROM sync_workers WHERE role = 'coordinator' AND lease_until > now()))
      RETURNING epoch]], timeout = seconds }, holder, seconds, is_worker,
    #instances > 0 and json.encode(instances) or "[]")
  if not rows then return nil, why end
  return rows[1] and rows[1].epoch or false
end

function Store:lease_release(holder)
  return self.keeper:query({ "UPDATE sync_lease SET until = now() WHERE holder = $1", timeout = 2 }, holder)
end

-- All of the statements while the lease is ours. rows of each | nil, why; "not ours" when the lease is another's
function Store:commit(statements)
  local all = { { "SELECT 1 / (epoch = $1)::int AS mine FROM sync_lease FOR SHARE", self.epoch } }
  for i, s in ipairs(statements) do all[i + 1] = s end
  local rows, why, state = self.conn:transaction(all)
  if not rows then return nil, state == "22012" and "not ours" or why end
  table.remove(rows, 1)
  return rows
end

-- ---- workers ---------------------------------------------------------------------------------------------

-- w: {id=, role=, process=, status=, task= | nil, memory_mb=, cpu_percent=, policies_aside= text}. Renews its lease and
-- that of its tasks.
-- {[task id] = {epoch=, state= of its job}} of the tasks that are its own | nil, why
function Store:beat(w, seconds)
  local rows, why = self.keeper:transaction { timeout = seconds,
    { [[INSERT INTO sync_workers (worker_id, role, process, worker_status, current_task_id, memory_usage_mb,
          cpu_percent, policies_aside, lease_until)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $9, now() + $8 * interval '1 second')
        ON CONFLICT (worker_id) DO UPDATE SET last_heartbeat = now(), worker_status = $4, current_task_id = $5,
          memory_usage_mb = $6, cpu_percent = $7, policies_aside = $9,
          lease_until = now() + $8 * interval '1 second']],
      w.id, w.role, w.process, w.status, w.task, w.memory_mb, w.cpu_percent, seconds, w.policies_aside, n = 9 },
    { [[UPDATE sync_tasks t SET lease_until = now() + $2 * interval '1 second' FROM sync_jobs j
        WHERE j.id = t.job AND worker_id = $1 AND task_status = 'processing'
        RETURNING t.id, t.epoch, j.state]], w.id, seconds } }
  if not rows then return nil, why end
  local own = {}
  for _, row in ipairs(rows[2]) do own[row.id] = row end
  return own
end

-- A worker that ends in peace: nothing of it is under way.
function Store:worker_leaves(id)
  return self.keeper:transaction { timeout = 2,
    { [[UPDATE sync_tasks SET task_status = 'pending', worker_id = NULL
        WHERE worker_id = $1 AND task_status = 'processing']], id },
    { "DELETE FROM sync_workers WHERE worker_id = $1", id }, tell("tasks") }
end

-- Those that are there or should be: {{worker_id=, process=, task=, late=bool, left= seconds of its lease}, ...}
function Store:workers()
  return self.conn:query([[SELECT worker_id, process, current_task_id AS task, lease_until < now() AS late,
      extract(epoch FROM lease_until - now())::float8 AS left FROM sync_workers
    UNION ALL SELECT worker_id, '', max(id), true, extract(epoch FROM max(lease_until) - now())::float8
      FROM sync_tasks t WHERE task_status = 'processing' AND lease_until < now()
        AND NOT EXISTS (SELECT 1 FROM sync_workers w WHERE w.worker_id = t.worker_id) GROUP BY worker_id]])
end

-- A worker is dead, or late: its tasks go to others. What it sent may be executed for `settle` seconds more, which
-- their jobs remember: what that undoes is done again before the end (sync_job.lua). Number of tasks | nil, why
function Store:worker_lost(w, dead, settle, why)
  local rows, reason = self:commit {
    { [[DELETE FROM sync_workers WHERE worker_id = $1 AND ($2 OR lease_until < now()) RETURNING worker_id]],
      w.worker_id, dead },
    { [[WITH lost AS (UPDATE sync_tasks SET
          task_status = CASE WHEN retry_count + 1 >= $4 THEN 'failed' ELSE 'pending' END,
          completed_at = CASE WHEN retry_count + 1 >= $4 THEN now() END,
          retry_count = retry_count + 1, worker_id = NULL, error_message = $3
          WHERE worker_id = $1 AND task_status = 'processing' AND NOT EXISTS (
            SELECT 1 FROM sync_workers WHERE worker_id = $1)
          RETURNING job),
        marked AS (UPDATE sync_jobs SET settle = GREATEST(settle, $2), losses = losses + 1,
            settle_until = GREATEST(settle_until, now() + $2 * interval '1 second')
          WHERE id IN (SELECT job FROM lost))
        SELECT count(*) AS n FROM lost]], w.worker_id, settle, why, Store.RETRIES },
    tell("tasks") }
  if not rows then return nil, reason end
  return rows[2][1].n
end

-- ---- tasks, as a worker ----------------------------------------------------------------------------------

-- busy: tasks under way on each instance, which is that of the task and the one that it is copied from. What is made
-- equal is limited by what is made equal there alone: being a source for others keeps no instance from it. Workers
-- share what an instance takes: one alone may have all of it.
local CLAIM = [[WITH works AS (SELECT t.instance, j.source, t.worker_id
      FROM sync_tasks t JOIN sync_jobs j ON j.id = t.job WHERE task_status = 'processing'),
    busy AS (SELECT name, count(*) AS n FROM (SELECT instance AS name FROM works UNION ALL SELECT source FROM works) w
      GROUP BY name),
    free AS (SELECT t.id FROM sync_tasks t JOIN sync_jobs j ON j.id = t.job
      WHERE t.task_status = 'pending' AND t.not_before <= now() AND NOT ]] .. PAUSED .. [[
        AND j.state IN ('copying', 'catching_up', 'comparing')
        AND t.instance = ANY($3::text[]) AND j.source = ANY($3::text[])
        AND (SELECT count(*) FROM works w WHERE w.instance = t.instance) < $4
        AND COALESCE((SELECT n FROM busy b WHERE b.name = j.source), 0) < $5
        AND (SELECT count(*) FROM works) < $6
        AND (SELECT count(*) FROM works w WHERE w.worker_id = $1 AND w.instance = t.instance) < ceil($4::float8
          / GREATEST((SELECT count(*) FROM sync_workers WHERE role = 'worker' AND lease_until > now()), 1))
      ORDER BY (t.kind = 'touched') DESC, j.priority DESC, t.id LIMIT 1 FOR UPDATE OF t SKIP LOCKED)
    UPDATE sync_tasks t SET task_status = 'processing', worker_id = $1, started_at = now(), completed_at = NULL,
      epoch = t.epoch + 1, lease_until = now() + $2 * interval '1 second'
    FROM free, sync_jobs j WHERE t.id = free.id AND j.id = t.job
    RETURNING t.id, t.epoch, t.kind, t.instance, t.chunk_start_offset AS first, t.chunk_end_offset AS last,
      t.retry_count AS retries, j.id AS job, j.lane, j.tenant, j.database, j.collection_name AS name, j.source,
      j.source_physical, j.temp, j.cosine, j.kind = 'adopt' AS adopts,
      (SELECT ids FROM sync_chunks WHERE task = t.id) AS ids]]

-- The next task | false: there is none | nil, why. able: names of instances that can be used. most: with so many tasks
-- under way none is begun, {instance= that make the same one equal, source= on its source in any part, all=}.
function Store:claim(worker, seconds, able, most)
  local rows, why = self.conn:query(CLAIM, worker, seconds, texts(able), most.instance, most.source, most.all)
  if not rows then return nil, why end
  return rows[1] or false
end

-- The statement's first words, and its last: of a task that is still this claim's.
local MINE = " WHERE id = $1 AND epoch = $2 AND task_status = 'processing'"

-- r: {records=, requests=, memory_mb=, found= text | nil}. true | false: it is another's now | nil, why
function Store:completed(task, r)
  local rows, why = self.conn:transaction {
    { "UPDATE sync_tasks SET task_status = 'completed', completed_at = now(), error_message = NULL, records = $3, "
        .. "requests = $4, memory_mb = $5" .. MINE, task.id, task.epoch, r.records, r.requests, r.memory_mb },
    { [[UPDATE sync_chunks SET found = $3 WHERE task = (SELECT id FROM sync_tasks
        WHERE id = $1 AND epoch = $2 AND task_status = 'completed')]], task.id, task.epoch, r.found, n = 3 },
    tell("jobs") }
  if not rows then return nil, why end
  return rows[1].affected == 1
end

-- It did not work. for_good: there is no use in trying it again. true | nil, why
function Store:failed(task, text, for_good)
  local rows, why = self.conn:transaction {
    { "UPDATE sync_tasks SET task_status = CASE WHEN $4 OR retry_count + 1 >= $5 THEN 'failed' ELSE 'pending' END, "
        .. "completed_at = CASE WHEN $4 OR retry_count + 1 >= $5 THEN now() END, retry_count = retry_count + 1, "
        .. "error_message = $3, worker_id = CASE WHEN $4 OR retry_count + 1 >= $5 THEN worker_id END, "
        .. "not_before = now() + $6 * 2 ^ retry_count * interval '1 second'" .. MINE,
      task.id, task.epoch, text, for_good, Store.RETRIES, FIRST_PAUSE },
    tell("jobs") }
  return rows and true, why
end

-- It was not its fault: it waits again, for `pause` seconds at least.
function Store:give_back(task, pause)
  return self.conn:query("UPDATE sync_tasks SET task_status = 'pending', worker_id = NULL, "
    .. "not_before = now() + $3 * interval '1 second'" .. MINE, task.id, task.epoch, pause)
end

-- ---- what the journal says -------------------------------------------------------------------------------

-- Copies of a lane: {{instance=, position=, state=, physical=, proven_at= unix time | nil, records= | nil}, ...} | nil,
-- why
function Store:copies(lane)
  return self.conn:query([[SELECT c.instance, c.position, c.state, c.physical,
      extract(epoch FROM s.proven_equal_at)::float8 AS proven_at, s.replica_document_count AS records
    FROM journal_copies c LEFT JOIN journal_collections k USING (lane)
      LEFT JOIN sync_collections s ON s.collection_id = k.logical AND s.instance = c.instance
    WHERE c.lane = $1]], lane)
end

-- Where the catalogue stands on both instances of a job | false: not at the same entry, or the copy has yet to get its
-- name | nil, why
function Store:catalogue(job)
  local rows, why = self.conn:query([[SELECT position FROM journal_copies a
      JOIN journal_copies b USING (lane, position)
    WHERE lane = 0 AND a.instance = $1 AND b.instance = $2 AND NOT EXISTS (SELECT 1 FROM journal_rebuilds
      WHERE lane = $3 AND instance = $2 AND state NOT IN ('done', 'dropped'))]], job.source, job.instance, job.lane)
  if not rows then return nil, why end
  return rows[1] and rows[1].position or false
end

-- Entries of a lane behind `from` up to `upto`, in order; no more of them after the first megabytes.
function Store:entries(lane, from, upto)
  return self.conn:query([[SELECT n, action, body, resolved FROM (
      SELECT *, sum(length(body) + COALESCE(length(resolved), 0)) OVER (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING
        AND 1 PRECEDING) AS before FROM journal_entries
      WHERE lane = $1 AND n > $2 AND n <= LEAST($3, $2 + 1000)) e
      WHERE COALESCE(before, 0) < 4000000 ORDER BY n]], lane, from, upto)
end

-- {[instance]=true} of those that serve reads of any collection.
function Store:reading()
  local rows, why = self.conn:query("SELECT DISTINCT instance FROM journal_copies WHERE lane <> 0 AND state = 'ready'")
  if not rows then return nil, why end
  local out = {}
  for _, row in ipairs(rows) do out[row.instance] = true end
  return out
end

-- Instances whose catalogue is to be made anew.
function Store:members_lost(able)
  return self.conn:query([[SELECT instance FROM journal_copies WHERE lane = 0 AND state = 'rebuild'
      AND instance = ANY($1::text[])]], texts(able))
end

-- Copies that can be made from nothing: no copy of their collection is whole. {{instance=, name=, reason=}, ...}
function Store:without_source()
  return self.conn:query([[SELECT c.instance, c.reason, k.name
      FROM journal_collections k JOIN journal_copies c USING (lane) WHERE NOT k.deleted AND c.state = 'rebuild'
        AND NOT EXISTS (SELECT 1 FROM journal_copies o WHERE o.lane = k.lane AND o.state = 'ready')
        AND NOT EXISTS (SELECT 1 FROM journal_servers s WHERE s.instance = c.instance AND s.retired)
      ORDER BY k.lane LIMIT 1000]])
end

-- MB that the monitor last saw free on an instance's disk; nil: it is not known.
function Store:disk_free_mb(instance)
  local rows = self.conn:query([[SELECT disk_free_mb::float8 AS mb FROM performance_metrics
      WHERE instance = $1 AND disk_free_mb IS NOT NULL AND metric_timestamp > now() - interval '10 minutes'
      ORDER BY metric_timestamp DESC LIMIT 1]], instance)
  return rows and rows[1] and rows[1].mb
end

-- ---- jobs, as the coordinator ----------------------------------------------------------------------------

-- A job for each copy that is to be made anew or was found standing, on an instance that can be used, if there is
-- another copy to take it from. First those of collections with the fewest copies; within them the smaller lane.
-- One that failed or was cancelled is made again after `again` seconds, the next one after twice that, up to an hour.
-- Number | nil, why
function Store:make_rebuilds(able, again)
  local rows, why = self:commit { { [[INSERT INTO sync_jobs (kind, lane, collection_id, collection_name, tenant,
      database, instance, reason, priority)
    SELECT CASE c.state WHEN 'rebuild' THEN 'rebuild' ELSE 'adopt' END, k.lane, k.logical, k.name, k.tenant, k.database,
      c.instance, c.reason, CASE c.state WHEN 'rebuild' THEN 100 ELSE 50 END - 10 * LEAST(r.ready, 4)
    FROM journal_copies c JOIN journal_collections k USING (lane)
      JOIN LATERAL (SELECT count(*) AS ready FROM journal_copies o WHERE o.lane = c.lane AND o.state = 'ready') r
        ON r.ready > 0
    WHERE NOT k.deleted AND c.state IN ('rebuild', 'unverified') AND c.instance = ANY($1::text[])
      AND NOT ]] .. PAUSED .. [[
      AND EXISTS (SELECT 1 FROM journal_copies m WHERE m.lane = 0 AND m.instance = c.instance AND m.state = 'ready')
      AND NOT EXISTS (SELECT 1 FROM journal_servers s WHERE s.instance = c.instance AND s.retired)
      AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.lane = c.lane AND j.instance = c.instance
        AND (j.state NOT IN ('done', 'failed', 'cancelled') OR j.finished_at IS NULL))
      AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.lane = c.lane AND j.instance = c.instance AND j.kind <> 'verify'
          AND (j.state = 'failed' OR (j.state = 'cancelled' AND j.asked_by = ''))
          AND j.finished_at > now() - interval '1 day'
        HAVING max(j.finished_at) > now() - LEAST($2 * 2 ^ (LEAST(count(*), 7) - 1), 3600) * interval '1 second')
    ORDER BY k.lane LIMIT 1000
    ON CONFLICT DO NOTHING RETURNING id]], texts(able), again } }
  return rows and #rows[1], why
end

-- Collections to be compared: two whole copies on instances that can be used, nothing of it under way, and none
-- compared for `every` seconds. {{lane=, logical=, name=, tenant=, database=, copies= json text}, ...} | nil, why
function Store:verifies_due(able, every)
  return self.conn:query([[SELECT k.lane, k.logical, k.name, k.tenant, k.database,
      json_agg(json_strip_nulls(json_build_object('instance', c.instance, 'position', c.position, 'state', c.state,
        'behind', l.next - 1 - c.position, 'proven_at', extract(epoch FROM s.proven_equal_at)::float8,
        'records', s.replica_document_count))
      ORDER BY c.instance)::text AS copies
    FROM journal_collections k JOIN journal_lanes l USING (lane) JOIN journal_copies c USING (lane)
      LEFT JOIN sync_collections s ON s.collection_id = k.logical AND s.instance = c.instance
    WHERE NOT k.deleted AND c.state = 'ready' AND c.instance = ANY($1::text[]) AND NOT ]] .. PAUSED .. [[
      AND k.created_at < now() - $2 * interval '1 second'
      AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.lane = k.lane AND (
        (j.finished_at IS NULL AND j.instance = ANY($1::text[]))
        OR (j.kind = 'verify' AND j.finished_at > now() - $2 * interval '1 second')))
    GROUP BY k.lane, k.logical, k.name, k.tenant, k.database HAVING count(*) > 1
    ORDER BY k.lane LIMIT 500]], texts(able), every)
end

-- Scheduled comparisons: {{lane=, logical=, name=, tenant=, database=, instance=, source=}, ...}. The last ones of the
-- same copies that found nothing are forgotten: only what was found is history. true | nil, why
function Store:make_verifies(list)
  local statements = {}
  for _, v in ipairs(list) do
    statements[#statements + 1] = { [[DELETE FROM sync_jobs WHERE lane = $1 AND instance = $2 AND kind = 'verify'
      AND state = 'done' AND asked_by = '' AND differences = 0]], v.lane, v.instance }
    statements[#statements + 1] = { [[INSERT INTO sync_jobs (kind, lane, collection_id, collection_name, tenant,
        database, instance, source, reason) VALUES ('verify', $1, $2, $3, $4, $5, $6, $7, 'scheduled')
      ON CONFLICT DO NOTHING]],
      v.lane, v.logical, v.name, v.tenant, v.database, v.instance, v.source }
  end
  local rows, why = self:commit(statements)
  return rows and true, why
end

-- Some that may be run now: neither over nor paused, on instances that can be used, with a source that can be; and
-- those that were cancelled and may have left something behind. First those of the highest priority. busy: keys of the
-- copies on which one is under way; full: instances on which no more is to be done now; compared: on which nothing more
-- is to be compared. One that waits for a source says so first (its error).
function Store:jobs_due(able, busy, full, compared)
  return self.conn:query([[SELECT * FROM sync_jobs j WHERE finished_at IS NULL AND not_before <= now()
      AND NOT lane || '/' || instance = ANY($2::text[]) AND NOT instance = ANY($3::text[])
      AND (kind <> 'verify' OR state = 'cancelled' OR NOT instance = ANY($4::text[]))
      AND (state = 'cancelled' OR (state <> 'paused' AND instance = ANY($1::text[])
        AND CASE WHEN state <> 'waiting' THEN source = ANY($1::text[]) ELSE NOT ]] .. PAUSED .. [[
          AND (error = '' OR (SELECT bool_or(c.instance = ANY($1::text[])) FROM journal_copies c
            WHERE c.lane = j.lane AND c.instance <> j.instance AND c.state = 'ready') IS NOT FALSE) END))
    ORDER BY priority DESC, id LIMIT 40]], texts(able), texts(busy), texts(full), texts(compared))
end

-- One job as it is now | false | nil, why
function Store:job(id)
  local rows, why = self.conn:query("SELECT * FROM sync_jobs WHERE id = $1", id)
  if not rows then return nil, why end
  return rows[1] or false
end

-- The collection of a lane as the journal has it: {logical=, name=, tenant=, database=} | false | nil, why
function Store:collection(lane)
  local rows, why = self.conn:query(
    "SELECT logical, name, tenant, database FROM journal_collections WHERE lane = $1 AND NOT deleted", lane)
  if not rows then return nil, why end
  return rows[1] or false
end

-- Times are given as these words.
local TIMES = { now = "now()" }

-- fields: {column=value | TIMES word for columns that end in _at}. Only while its state is `was` (nil: any that is not
-- over). true | false: somebody changed it | nil, why
function Store:job_set(id, was, fields, more)
  local sets, params = {}, { id, was or pg.null }
  for column, value in pairs(fields) do
    if column:match("_at$") then
      sets[#sets + 1] = column .. " = " .. TIMES[value]
    else
      params[#params + 1] = value
      sets[#sets + 1] = column .. " = $" .. #params
    end
  end
  if not sets[1] then sets[1] = "id = id" end
  local statements = { { "UPDATE sync_jobs SET " .. table.concat(sets, ", ") .. " WHERE id = $1 AND "
    .. "CASE WHEN $2::text IS NULL THEN state NOT IN ('done', 'failed') ELSE state = $2 END", unpack(params) } }
  for _, s in ipairs(more or {}) do statements[#statements + 1] = s end
  local rows, why = self:commit(statements)
  if not rows then return nil, why end
  return rows[1].affected == 1
end

-- Not before a time that grows with each call until the job's state changes; a statement for job_set's `more`.
function Store.job_waits(id)
  return { [[UPDATE sync_jobs SET laters = laters + 1,
      not_before = now() + LEAST($2, 2 ^ LEAST(laters, 20)) * interval '1 second' WHERE id = $1]], id, LATER_MOST }
end

-- Not before so many seconds from now; a statement for job_set's `more`.
function Store.job_later(id, seconds)
  return { "UPDATE sync_jobs SET not_before = now() + $2 * interval '1 second' WHERE id = $1", id, seconds }
end

-- What was lost before `losses` was read has been waited for; a statement for job_set's `more`.
function Store.job_settled(id, losses)
  return { "UPDATE sync_jobs SET settle = 0 WHERE id = $1 AND losses = $2", id, losses }
end

function Store.tasks_gone(job) return { "DELETE FROM sync_tasks WHERE job = $1", job } end

-- The chunks of a job that has ended.
local function chunks_gone(job)
  return { "DELETE FROM sync_chunks WHERE task IN (SELECT id FROM sync_tasks WHERE job = $1)", job }
end

-- The tasks of a job: statements for job_set's `more`. t: {kind=, first=, last=, ids= json text}. Those that change
-- something are made only while what they fill is nobody's copy yet.
function Store.task_new(job, t)
  return { [[WITH r AS (SELECT r.id FROM journal_rebuilds r JOIN sync_jobs j ON j.rebuild = r.id
        WHERE j.id = $1 AND r.state = 'copying' FOR SHARE OF r),
      t AS (INSERT INTO sync_tasks (collection_id, collection_name, chunk_start_offset, chunk_end_offset, job, kind,
        instance) SELECT collection_id, collection_name, $2, $3, id, $4, instance FROM sync_jobs
        WHERE id = $1 AND state IN ('copying', 'catching_up', 'comparing') AND ($4 = 'compare' OR EXISTS (
          SELECT 1 FROM r)) RETURNING id)
      INSERT INTO sync_chunks (task, ids) SELECT id, $5 FROM t]],
    job, t.first, t.last, t.kind, pg.bytes(t.ids) }
end
Store.TASKS_TOLD = tell("tasks")

-- {[job]={state=, open=, failed=, error=, records=, carried=, requests=, memory_mb=}} of these jobs'
-- tasks. records: of what was copied or compared, each once; carried: in all.
function Store:progress(jobs)
  local rows, why = self.conn:query([[SELECT j.id AS job, j.state,
      count(*) FILTER (WHERE task_status IN ('pending', 'processing')) AS open,
      count(*) FILTER (WHERE task_status = 'failed') AS failed,
      min(error_message) FILTER (WHERE task_status = 'failed') AS error,
      COALESCE(sum(t.records) FILTER (WHERE task_status = 'completed' AND t.kind <> 'touched'), 0)::bigint AS records,
      COALESCE(sum(t.requests) FILTER (WHERE task_status = 'completed'), 0)::bigint AS requests,
      COALESCE(sum(t.records) FILTER (WHERE task_status = 'completed'), 0)::bigint AS carried,
      max(memory_mb) AS memory_mb
    FROM sync_jobs j LEFT JOIN sync_tasks t ON t.job = j.id WHERE j.id = ANY($1::bigint[]) GROUP BY j.id]],
    numbers(jobs))
  if not rows then return nil, why end
  local out = {}
  for _, row in ipairs(rows) do out[row.job] = row end
  return out
end

-- Makes what the progress is part of their rows.
function Store:show_progress(jobs)
  return self:commit { { [[UPDATE sync_jobs j SET done_records = s.n FROM (
        SELECT job, sum(records) AS n FROM sync_tasks WHERE job = ANY($1::bigint[]) AND task_status = 'completed'
          AND kind <> 'touched' GROUP BY job) s
      WHERE j.id = s.job AND j.done_records <> s.n]], numbers(jobs) } }
end

-- How many records the holder of the journal has repaired for a comparison, by its answers.
function Store:repaired(job)
  local rows, why = self.conn:query([[SELECT COALESCE(sum((answer::json->>'repaired')::bigint), 0)::bigint AS n
    FROM sync_calls WHERE kind = 'confirm' AND lane = $2 AND done AND (arguments::json->>'job')::bigint = $1]],
    job.id, job.lane)
  if not rows then return nil, why end
  return rows[1].n
end

-- What tasks of the job found to differ: json texts.
function Store:found(job)
  local rows, why = self.conn:query([[SELECT found FROM sync_chunks JOIN sync_tasks t ON t.id = task
      WHERE job = $1 AND found IS NOT NULL ORDER BY t.id]], job)
  if not rows then return nil, why end
  local out = {}
  for i, row in ipairs(rows) do out[i] = row.found end
  return out
end

-- ---- what is known of a collection on an instance --------------------------------------------------------

-- A job on it begins: statements.
function Store.collection_begins(job)
  return { [[INSERT INTO sync_collections (collection_id, collection_name, instance, tenant, database,
        last_sync_attempt, sync_status) VALUES ($1, $2, $3, $4, $5, now(), 'syncing')
      ON CONFLICT (collection_id, instance) DO UPDATE SET collection_name = $2, last_sync_attempt = now(),
        sync_status = 'syncing', updated_at = now()]],
    job.collection_id, job.collection_name, job.instance, job.tenant, job.database }
end

-- It is over. how: {status=, fine=bool, error= | nil, primary_count=, replica_count=, batch=, memory_mb=, proven=bool,
-- differences=, repaired=}
function Store.collection_ends(job, how)
  return { [[UPDATE sync_collections SET sync_status = $3, updated_at = now(),
        last_successful_sync = CASE WHEN $4 THEN now() ELSE last_successful_sync END,
        sync_duration_seconds = (SELECT extract(epoch FROM now() - started_at)::float8 FROM sync_jobs WHERE id = $13),
        consecutive_errors = CASE WHEN $4 THEN 0 ELSE consecutive_errors + 1 END, last_error_message = $5,
        primary_document_count = COALESCE($6, primary_document_count),
        replica_document_count = COALESCE($7, replica_document_count),
        avg_batch_size = COALESCE($8, avg_batch_size), memory_peak_mb = COALESCE($9, memory_peak_mb),
        proven_equal_at = CASE WHEN $10 THEN now() ELSE proven_equal_at END,
        differences = COALESCE($11, differences), repaired = COALESCE($12, repaired)
      WHERE collection_id = $1 AND instance = $2]],
    job.collection_id, job.instance, how.status, how.fine, how.error, how.primary_count, how.replica_count, how.batch,
    how.memory_mb, how.proven or false, how.differences, how.repaired, job.id, n = 13 }
end

-- It is not: a job on it had begun. A statement.
function Store.collection_left(job)
  return { [[UPDATE sync_collections SET sync_status = 'pending', updated_at = now()
      WHERE collection_id = $1 AND instance = $2 AND sync_status = 'syncing']], job.collection_id, job.instance }
end

-- A job ends as `state`, whatever it was; its tasks stay, what they were for does not. how: as for collection_ends;
-- nil: nothing was found out.
function Store:job_ends(job, state, fields, how)
  fields.state, fields.finished_at = state, "now"
  return self:job_set(job.id, nil, fields, {
    chunks_gone(job.id), how and Store.collection_ends(job, how) or Store.collection_left(job),
    { [[UPDATE sync_tasks SET task_status = 'failed', error_message = COALESCE(error_message, 'its job ended'),
        completed_at = now() WHERE job = $1 AND task_status IN ('pending', 'processing')]], job.id } })
end

-- An automatic one for which there is nothing to do is forgotten.
function Store:job_dropped(job)
  return self:commit { Store.collection_left(job),
    { "DELETE FROM sync_jobs WHERE id = $1 AND state NOT IN ('done', 'failed')", job.id } }
end

-- What is old, and what belongs to collections or instances that are gone.
function Store:forget()
  return self:commit {
    { [[UPDATE sync_jobs j SET state = 'cancelled', finished_at = now(), reason = 'there is no such instance any more'
        WHERE finished_at IS NULL AND NOT EXISTS (SELECT 1 FROM journal_copies c
          LEFT JOIN journal_servers s USING (instance)
          WHERE c.lane = 0 AND c.instance = j.instance AND NOT COALESCE(s.retired, false))]] },
    { "DELETE FROM sync_jobs WHERE finished_at < now() - $1 * interval '1 day'", KEEP_DAYS },
    { [[DELETE FROM sync_collections s WHERE NOT EXISTS (SELECT 1 FROM journal_collections k
        WHERE k.logical = s.collection_id AND NOT k.deleted)]] } }
end

return Store
