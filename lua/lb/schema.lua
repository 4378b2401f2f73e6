-- schema.lua: the journal's tables in PostgreSQL, as steps that are applied once each, in order.
--
-- The user needs to own no more than the schema at the head of its search_path. A step that has been
-- released is never edited: a change is a new step at the end.
--
-- journal_lanes      one row per ordered sequence of writes: 0 is the catalogue, each collection has its own
-- journal_entries    the writes themselves, with their verdicts
-- journal_copies     how far each instance has come in each lane
-- journal_collections, journal_tenants, journal_databases   the catalogue: names live here
-- journal_servers    what was last stamped into each instance's witness
-- journal_lease      who may write all of the above
-- journal_requests   what operators asked the holder of the lease to do, and what became of it (operator.lua)
-- journal_rebuilds   copies that are being made anew, and what is left over from that (rebuild.lua, leftovers.lua)
-- sync_calls         what sync asks the holder of the lease to do for it (sync_calls.lua)
-- notify_*           what people are to be told, what they were told, and who tells them (notify_store.lua)
local M = {}

-- ---- sync: rebuilds, jobs, tasks, workers ------------------------------------------------------------------

local SYNC = {
  -- Who coordinates: one row. epoch: raised by each who takes it; what an earlier one still does changes nothing.
  -- paused: an operator wants nothing new to begin; what is under way ends.
  [[CREATE TABLE sync_lease (
      one boolean PRIMARY KEY DEFAULT true CHECK (one),
      holder text NOT NULL DEFAULT '',
      epoch bigint NOT NULL DEFAULT 0,
      until timestamptz NOT NULL DEFAULT '-infinity',
      paused_by text NOT NULL DEFAULT '',
      paused_why text NOT NULL DEFAULT '',
      paused_at timestamptz)]],
  "INSERT INTO sync_lease DEFAULT VALUES",
  [[CREATE TABLE sync_workers (
      worker_id text PRIMARY KEY,
      last_heartbeat timestamptz NOT NULL DEFAULT now(),
      worker_status text NOT NULL DEFAULT 'idle',
      current_task_id bigint,
      memory_usage_mb double precision,
      cpu_percent double precision,
      role text NOT NULL,
      process text NOT NULL,
      started_at timestamptz NOT NULL DEFAULT now(),
      lease_until timestamptz NOT NULL)]],
  -- Copies to be made anew, taken over or compared. Whoever asks for one inserts a row that waits, with kind, lane,
  -- instance (the copy that is to become or be proven equal) and asked_by; the coordinator fills in the rest. rebuild,
  -- temp, p0: as the holder of the journal answered (sync_calls.lua). upto: all that was written up to this entry is
  -- in the temporary collection. laters: how often it could not go on in its present state. losses: workers that were
  -- lost with a task of it; settle: for how long (s) of the target's running time what they sent may yet be executed;
  -- settle_until: that by the clock, at least.
  [[CREATE TABLE sync_jobs (
      id bigserial PRIMARY KEY,
      kind text NOT NULL CHECK (kind IN ('rebuild', 'adopt', 'verify')),
      lane bigint NOT NULL,
      collection_id text NOT NULL DEFAULT '',
      collection_name text NOT NULL DEFAULT '',
      tenant text NOT NULL DEFAULT '',
      database text NOT NULL DEFAULT '',
      instance text NOT NULL,
      source text,
      state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'copying', 'catching_up', 'finishing',
        'comparing', 'confirming', 'done', 'failed', 'cancelled', 'paused')),
      reason text NOT NULL DEFAULT '',
      asked_by text NOT NULL DEFAULT '',
      dry_run boolean NOT NULL DEFAULT false,
      priority integer NOT NULL DEFAULT 0,
      rebuild bigint,
      temp text,
      source_physical text,
      cosine boolean NOT NULL DEFAULT false,
      p0 bigint,
      upto bigint,
      chunked boolean NOT NULL DEFAULT false,
      records bigint NOT NULL DEFAULT 0,
      target_records bigint NOT NULL DEFAULT 0,
      done_records bigint NOT NULL DEFAULT 0,
      differences bigint NOT NULL DEFAULT 0,
      repaired bigint NOT NULL DEFAULT 0,
      attempts integer NOT NULL DEFAULT 0,
      not_before timestamptz NOT NULL DEFAULT now(),
      laters integer NOT NULL DEFAULT 0,
      settle double precision NOT NULL DEFAULT 0,
      settle_until timestamptz NOT NULL DEFAULT now(),
      losses bigint NOT NULL DEFAULT 0,
      error text NOT NULL DEFAULT '',
      hold_ms double precision,
      memory_peak_mb double precision,
      created_at timestamptz NOT NULL DEFAULT now(),
      started_at timestamptz,
      finished_at timestamptz)]],
  [[CREATE UNIQUE INDEX sync_jobs_open ON sync_jobs (lane, instance, kind)
      WHERE state NOT IN ('done', 'failed', 'cancelled')]],
  "CREATE INDEX sync_jobs_recent ON sync_jobs (lane, instance, finished_at)",
  "CREATE INDEX sync_jobs_live ON sync_jobs (id) WHERE finished_at IS NULL",
  -- chunk offsets: places in the list of ids that was taken at the job's beginning. epoch: raised by each claim; the
  -- report of an earlier one is refused.
  [[CREATE TABLE sync_tasks (
      id bigserial PRIMARY KEY,
      collection_id text NOT NULL,
      collection_name text NOT NULL,
      chunk_start_offset bigint NOT NULL,
      chunk_end_offset bigint NOT NULL,
      task_status text NOT NULL DEFAULT 'pending'
        CHECK (task_status IN ('pending', 'processing', 'completed', 'failed')),
      worker_id text,
      started_at timestamptz,
      completed_at timestamptz,
      retry_count integer NOT NULL DEFAULT 0,
      error_message text,
      created_at timestamptz NOT NULL DEFAULT now(),
      job bigint NOT NULL REFERENCES sync_jobs ON DELETE CASCADE,
      kind text NOT NULL CHECK (kind IN ('copy', 'touched', 'compare', 'mend')),
      instance text NOT NULL,
      epoch bigint NOT NULL DEFAULT 0,
      lease_until timestamptz,
      not_before timestamptz NOT NULL DEFAULT now(),
      records bigint NOT NULL DEFAULT 0,
      requests bigint NOT NULL DEFAULT 0,
      memory_mb double precision)]],
  "CREATE INDEX sync_tasks_job ON sync_tasks (job)",
  "CREATE INDEX sync_tasks_open ON sync_tasks (id) WHERE task_status IN ('pending', 'processing')",
  "CREATE INDEX sync_tasks_created ON sync_tasks (created_at)",
  -- What is long: the ids that a task is for (text of a JSON array) and those that it found to differ. Deleted with
  -- the job's end.
  [[CREATE TABLE sync_chunks (
      task bigint PRIMARY KEY REFERENCES sync_tasks ON DELETE CASCADE,
      ids bytea NOT NULL,
      found text)]],
  [[CREATE TABLE sync_collections (
      collection_id text NOT NULL,
      collection_name text NOT NULL,
      primary_document_count bigint NOT NULL DEFAULT 0,
      replica_document_count bigint NOT NULL DEFAULT 0,
      last_successful_sync timestamptz,
      last_sync_attempt timestamptz,
      sync_status text NOT NULL DEFAULT 'pending',
      sync_duration_seconds double precision,
      avg_batch_size double precision,
      consecutive_errors integer NOT NULL DEFAULT 0,
      last_error_message text,
      memory_peak_mb double precision,
      created_at timestamptz NOT NULL DEFAULT now(),
      updated_at timestamptz NOT NULL DEFAULT now(),
      instance text NOT NULL,
      tenant text NOT NULL DEFAULT '',
      database text NOT NULL DEFAULT '',
      proven_equal_at timestamptz,
      differences bigint NOT NULL DEFAULT 0,
      repaired bigint NOT NULL DEFAULT 0,
      PRIMARY KEY (collection_id, instance))]],
  -- What is being made anew, and what of it is yet to be cleaned up (rebuild.lua, leftovers.lua). temp: the id of the
  -- collection on the instance; old: of the one that it replaced; keep: which somebody else made.
  [[CREATE TABLE journal_rebuilds (
      id bigserial PRIMARY KEY,
      token text NOT NULL UNIQUE,
      lane bigint NOT NULL,
      instance text NOT NULL,
      source text NOT NULL,
      adopt boolean NOT NULL,
      tenant text NOT NULL,
      database text NOT NULL,
      temp text NOT NULL DEFAULT '',
      temp_name text NOT NULL DEFAULT '',
      old text NOT NULL DEFAULT '',
      keep boolean NOT NULL DEFAULT false,
      p0 bigint NOT NULL,
      position bigint,
      hold_ms double precision,
      state text NOT NULL CHECK (state IN ('making', 'copying', 'swapped', 'named', 'done', 'dropping', 'dropped')),
      why text NOT NULL DEFAULT '',
      created_at timestamptz NOT NULL DEFAULT now(),
      changed_at timestamptz NOT NULL DEFAULT now())]],
  "CREATE INDEX journal_rebuilds_open ON journal_rebuilds (id) WHERE state NOT IN ('done', 'dropped')",
  -- What sync asks of the holder of the journal's lease (sync_calls.lua).
  [[CREATE TABLE sync_calls (
      id bigserial PRIMARY KEY,
      kind text NOT NULL,
      lane bigint NOT NULL,
      instance text NOT NULL,
      arguments text NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(),
      until timestamptz NOT NULL,
      answered_at timestamptz,
      done boolean,
      answer text)]],
  "CREATE INDEX sync_calls_open ON sync_calls (id) WHERE answered_at IS NULL",
  "CREATE INDEX sync_calls_confirmed ON sync_calls (lane) WHERE kind = 'confirm'",
}

-- ---- monitoring: samples and recommendations ---------------------------------------------------------------

local MONITOR = {
  -- One row per process and sample: of a Chroma server, or of the monitor itself (instance "chromux:monitor"). What a
  -- monitor does not know is NULL. memory_*: of the limit that is nearest (monitor.lua); disk_*: the file system of the
  -- server's data, data_mb and index_mb what it takes up there; lag_* to errors_percent: as balancers had it.
  [[CREATE TABLE performance_metrics (
      id bigserial PRIMARY KEY,
      metric_timestamp timestamptz NOT NULL DEFAULT now(),
      host text NOT NULL,
      instance text NOT NULL,
      memory_usage_mb real,
      memory_limit_mb real,
      memory_percent real,
      rss_mb real,
      private_mb real,
      cpu_percent real,
      cpu_cores real,
      open_files integer,
      max_files bigint,
      disk_used_mb real,
      disk_free_mb real,
      disk_percent real,
      data_mb real,
      index_mb real,
      vectors bigint,
      active_collections integer,
      total_documents_synced bigint,
      avg_sync_time_seconds real,
      lag_entries bigint,
      lag_seconds real,
      p50_ms real,
      p99_ms real,
      errors_percent real,
      requests_per_second real,
      in_flight integer)]],
  -- With what people draw, so that a month of a server is read from the index alone.
  [[CREATE UNIQUE INDEX performance_metrics_once ON performance_metrics (instance, metric_timestamp, host)
      INCLUDE (memory_percent, cpu_percent, disk_percent)]],
  "CREATE INDEX performance_metrics_time ON performance_metrics (metric_timestamp)",
  [[CREATE TABLE health_metrics (
      id bigserial PRIMARY KEY,
      instance_name text NOT NULL,
      instance_url text NOT NULL,
      is_healthy boolean NOT NULL,
      response_time_ms real,
      error_message text,
      checked_at timestamptz NOT NULL DEFAULT now(),
      host text NOT NULL)]],
  "CREATE UNIQUE INDEX health_metrics_once ON health_metrics (instance_name, checked_at, host)",
  "CREATE INDEX health_metrics_time ON health_metrics (checked_at)",
  [[CREATE TABLE upgrade_recommendations (
      id bigserial PRIMARY KEY,
      recommendation_type text NOT NULL,
      current_usage double precision NOT NULL,
      recommended_tier text NOT NULL,
      estimated_monthly_cost double precision NOT NULL,
      reason text NOT NULL,
      urgency text NOT NULL CHECK (urgency IN ('low', 'medium', 'high')),
      created_at timestamptz NOT NULL DEFAULT now(),
      instance text NOT NULL,
      host text NOT NULL,
      value double precision NOT NULL,
      updated_at timestamptz NOT NULL DEFAULT now(),
      resolved_at timestamptz)]],
  [[CREATE UNIQUE INDEX upgrade_recommendations_open ON upgrade_recommendations (instance, recommendation_type)
      WHERE resolved_at IS NULL]],
  "CREATE INDEX upgrade_recommendations_time ON upgrade_recommendations (created_at)",
  -- Monitors that run. One that ends of its own accord takes its row away: a row that gets old is a monitor that died.
  [[CREATE TABLE monitors (
      monitor text PRIMARY KEY,
      host text NOT NULL,
      last_seen timestamptz NOT NULL,
      every_seconds double precision NOT NULL,
      started_at timestamptz NOT NULL)]],
  -- Which monitor decides about an instance's recommendations, until when; and whether its disk was said to be full.
  [[CREATE TABLE monitor_instances (
      instance text PRIMARY KEY,
      monitor text NOT NULL,
      until timestamptz NOT NULL,
      disk_above boolean NOT NULL DEFAULT false)]],
  -- What each balancer has seen of an instance in the last interval; for monitors to add to their samples.
  [[CREATE TABLE balancer_figures (
      balancer text NOT NULL,
      instance text NOT NULL,
      at timestamptz NOT NULL,
      seconds double precision NOT NULL,
      requests bigint NOT NULL,
      errors bigint NOT NULL,
      in_flight integer NOT NULL,
      p50_ms double precision,
      p99_ms double precision,
      lag_entries bigint,
      lag_seconds double precision,
      PRIMARY KEY (balancer, instance)) WITH (fillfactor = 50)]],
}

-- ---- notification: events, and what was sent ---------------------------------------------------------------

local NOTIFY = {
  -- open: an alert that nothing has ended yet; since: when its story began; known: how often people were told of that
  -- story. state: new until a sender has it in hand. version: a statement that was long on its way changes nothing that
  -- was written since.
  [[CREATE TABLE notify_events (
      id bigserial PRIMARY KEY,
      uid text NOT NULL UNIQUE,
      kind text NOT NULL,
      key text NOT NULL,
      urgency text NOT NULL CHECK (urgency IN ('low', 'medium', 'high')),
      title text NOT NULL,
      text text NOT NULL DEFAULT '',
      fields text NOT NULL DEFAULT '[]',
      source text NOT NULL DEFAULT '',
      raised_at timestamptz NOT NULL,
      state text NOT NULL DEFAULT 'new'
        CHECK (state IN ('new', 'taken', 'held', 'ready', 'queued', 'told', 'dropped', 'refused')),
      reason text NOT NULL DEFAULT '',
      ask_at timestamptz,
      open boolean NOT NULL DEFAULT false,
      since timestamptz,
      known integer NOT NULL DEFAULT 0,
      told integer NOT NULL DEFAULT 0,
      told_at timestamptz,
      repeats integer NOT NULL DEFAULT 0,
      version integer NOT NULL DEFAULT 0,
      created_at timestamptz NOT NULL DEFAULT now())]],
  [[CREATE INDEX notify_events_live ON notify_events (id)
      WHERE open OR state IN ('new', 'taken', 'held', 'ready', 'queued')]],
  "CREATE INDEX notify_events_raised ON notify_events (raised_at)",
  [[CREATE TABLE notify_messages (
      id bigserial PRIMARY KEY,
      uid text NOT NULL UNIQUE,
      sink text NOT NULL,
      events text NOT NULL,
      title text NOT NULL,
      state text NOT NULL CHECK (state IN ('queued', 'sending', 'sent', 'refused', 'given_up')),
      attempts integer NOT NULL DEFAULT 0,
      next_at timestamptz,
      status integer,
      error text NOT NULL DEFAULT '',
      version integer NOT NULL DEFAULT 0,
      created_at timestamptz NOT NULL DEFAULT now(),
      sent_at timestamptz)]],
  "CREATE INDEX notify_messages_live ON notify_messages (id) WHERE state IN ('queued', 'sending')",
  [[CREATE TABLE notify_sent (
      kind text NOT NULL,
      key text NOT NULL,
      urgency text NOT NULL,
      times bigint NOT NULL DEFAULT 0,
      last_at timestamptz NOT NULL,
      PRIMARY KEY (kind, key, urgency))]],
  [[CREATE TABLE notify_mutes (
      what text PRIMARY KEY,
      until timestamptz NOT NULL,
      who text NOT NULL DEFAULT '',
      created_at timestamptz NOT NULL DEFAULT now())]],
  [[CREATE TABLE notify_lease (
      one boolean PRIMARY KEY DEFAULT true CHECK (one),
      holder text NOT NULL DEFAULT '',
      until timestamptz NOT NULL DEFAULT '-infinity')]],
  "INSERT INTO notify_lease DEFAULT VALUES",
}

M.steps = {
  {
    [[CREATE TABLE journal_meta (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        journal_id text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now())]],
    [[INSERT INTO journal_meta (journal_id) VALUES (md5(random()::text || clock_timestamp()::text))]],
    [[CREATE TABLE journal_lease (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        holder text NOT NULL DEFAULT '',
        address text NOT NULL DEFAULT '',
        epoch bigint NOT NULL DEFAULT 0,
        until timestamptz NOT NULL DEFAULT '-infinity',
        closed boolean NOT NULL DEFAULT true)]],
    [[INSERT INTO journal_lease DEFAULT VALUES]],
    [[CREATE TABLE journal_lanes (
        lane bigint PRIMARY KEY,
        next bigint NOT NULL DEFAULT 1,
        trimmed bigint NOT NULL DEFAULT 0,
        open boolean NOT NULL DEFAULT true)]],
    [[INSERT INTO journal_lanes (lane) VALUES (0)]],
    [[CREATE TABLE journal_entries (
        lane bigint NOT NULL REFERENCES journal_lanes,
        n bigint NOT NULL,
        token text NOT NULL UNIQUE,
        action text NOT NULL,
        rest text NOT NULL,
        type text NOT NULL,
        body bytea NOT NULL,
        resolved bytea,
        verdict text CHECK (verdict IN ('applied', 'rejected', 'failed', 'skipped', 'void')),
        authority text,
        status integer,
        answer_type text,
        answer bytea,
        note text,
        created_at timestamptz NOT NULL DEFAULT now(),
        decided_at timestamptz,
        PRIMARY KEY (lane, n))]],
    [[CREATE INDEX journal_entries_undecided ON journal_entries (lane, n) WHERE verdict IS NULL]],
    [[CREATE TABLE journal_collections (
        lane bigint PRIMARY KEY REFERENCES journal_lanes,
        logical text NOT NULL UNIQUE,
        tenant text NOT NULL,
        database text NOT NULL,
        name text NOT NULL,
        deleted boolean NOT NULL DEFAULT false,
        adopted boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz)]],
    [[CREATE UNIQUE INDEX journal_collections_name ON journal_collections (tenant, database, name) WHERE NOT deleted]],
    [[CREATE TABLE journal_copies (
        lane bigint NOT NULL REFERENCES journal_lanes,
        instance text NOT NULL,
        physical text NOT NULL DEFAULT '',
        incarnation integer NOT NULL DEFAULT 1,
        position bigint NOT NULL DEFAULT 0,
        state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'rebuild', 'incompatible', 'unverified')),
        reason text NOT NULL DEFAULT '',
        changed_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (lane, instance))]],
    [[CREATE TABLE journal_tenants (name text PRIMARY KEY)]],
    [[INSERT INTO journal_tenants VALUES ('default_tenant')]],
    [[CREATE TABLE journal_databases (tenant text NOT NULL, name text NOT NULL, PRIMARY KEY (tenant, name))]],
    [[INSERT INTO journal_databases VALUES ('default_tenant', 'default_database')]],
    [[CREATE TABLE journal_servers (
        instance text PRIMARY KEY,
        witness bigint NOT NULL DEFAULT 0,
        retired boolean NOT NULL DEFAULT false)]],
    [[CREATE TABLE failover_events (
        id bigserial PRIMARY KEY,
        event_type text NOT NULL,
        from_instance text,
        to_instance text,
        reason text,
        success boolean NOT NULL DEFAULT true,
        occurred_at timestamptz NOT NULL DEFAULT now())]],
  },
  { -- several balancers: what is in doubt on a copy, and until when a holder of the past may be only paused
    "ALTER TABLE journal_copies ADD COLUMN doubt bigint NOT NULL DEFAULT 0",
    "ALTER TABLE journal_lease ADD COLUMN paused_until timestamptz NOT NULL DEFAULT '-infinity'",
  },
  {
    -- By these a database that was restored from a backup is noticed (identity.lua).
    "ALTER TABLE journal_lease ADD COLUMN renewed bigint NOT NULL DEFAULT 0",
    [[ALTER TABLE journal_meta ADD COLUMN system_id text NOT NULL DEFAULT '',
        ADD COLUMN timeline text NOT NULL DEFAULT '', ADD COLUMN suspended text NOT NULL DEFAULT '']],
    [[CREATE TABLE journal_requests (
        id bigserial PRIMARY KEY,
        kind text NOT NULL,
        lane bigint,
        n bigint,
        instance text,
        who text NOT NULL,
        why text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        answered_at timestamptz,
        done boolean,
        answer text)]],
    "CREATE INDEX journal_requests_open ON journal_requests (id) WHERE answered_at IS NULL",
  },
  SYNC,
  MONITOR,
  NOTIFY,
  { -- names of the instances that whoever coordinates is configured with (JSON); a worker's policies that are set aside
    "ALTER TABLE sync_lease ADD COLUMN instances text NOT NULL DEFAULT '[]'",
    "ALTER TABLE sync_workers ADD COLUMN policies_aside text NOT NULL DEFAULT ''",
  },
}

-- migrate(conn) -> true | nil, message. Several programs may call it at once: one does the work. conn is a
-- connection of lb.runtime's pg; every step is a transaction of its own under an advisory lock.
function M.migrate(conn)
  local LOCK = "SELECT pg_advisory_xact_lock(7021951)"
  local ok, why = conn:transaction { { LOCK },
    { [[CREATE TABLE IF NOT EXISTS chromux_schema (
        step integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())]] } }
  if not ok then return nil, why end
  for step, statements in ipairs(M.steps) do
    local rows, message = conn:query("SELECT 1 AS there FROM chromux_schema WHERE step = $1", step)
    if not rows then return nil, message end
    if #rows == 0 then
      local all = { { LOCK }, { "INSERT INTO chromux_schema (step) VALUES ($1)", step } }
      for _, sql in ipairs(statements) do all[#all + 1] = { sql } end
      local done, error_text, state = conn:transaction(all)
      -- 23505: another program has applied this step while we waited for the lock.
      if not done and state ~= "23505" then return nil, error_text end
    end
  end
  local rows, message = conn:query("SELECT max(step) AS newest FROM chromux_schema")
  if not rows then return nil, message end
  if rows[1].newest > #M.steps then
    return nil, "the database was made by a newer chromux (schema " .. rows[1].newest .. ", this one knows "
      .. #M.steps .. ")"
  end
  return true
end

return M
