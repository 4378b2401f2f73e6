-- monitor_store.lua: samples on their way to PostgreSQL, and the rows of this monitor there.
--
-- A tick is what one moment gave. While PostgreSQL is away ticks wait here, within BYTES; when there are too many every
-- second one is let go, and from then on only every second one is kept (then every fourth …), so that what is written
-- later still covers all of the time evenly. A write whose answer was lost is
-- repeated: rows are unique by instance, time and host.
local Store = {}
Store.__index = Store

local BYTES = 1024 * 1024      -- of ticks that wait
local BATCH_BYTES = 256 * 1024 -- of a transaction
local DELETE_MOST = 5000       -- rows of one statement that deletes old ones

-- Fields of samples.lua's rows, and what monitor.lua adds, with the types of their columns.
local COLUMNS = {
  { "memory_usage_mb", "real" }, { "memory_limit_mb", "real" }, { "memory_percent", "real" }, { "rss_mb", "real" },
  { "private_mb", "real" }, { "cpu_percent", "real" }, { "cpu_cores", "real" }, { "open_files", "integer" },
  { "max_files", "bigint" }, { "disk_used_mb", "real" }, { "disk_free_mb", "real" }, { "disk_percent", "real" },
  { "data_mb", "real" }, { "index_mb", "real" }, { "vectors", "bigint" }, { "active_collections", "integer" },
  { "total_documents_synced", "bigint" }, { "avg_sync_time_seconds", "real" },
}

local function columns(fmt, by)
  local out = {}
  for i, c in ipairs(COLUMNS) do out[i] = fmt:gsub("NAME", c[1]):gsub("TYPE", c[2]) end
  return table.concat(out, by)
end

-- What balancers saw at that time is added: a tick that is written late finds none.
local INSERT_SAMPLES = [[
  WITH s AS (SELECT to_timestamp(r.at) AS t, r.* FROM json_to_recordset($1::json) AS r (at double precision,
      instance text, ]] .. columns("NAME TYPE", ", ") .. [[))
  INSERT INTO performance_metrics (metric_timestamp, host, instance, ]] .. columns("NAME", ", ") .. [[, lag_entries,
      lag_seconds, p50_ms, p99_ms, errors_percent, requests_per_second, in_flight)
    SELECT s.t, $2, s.instance, ]] .. columns("s.NAME", ", ") .. [[, f.*
      FROM s LEFT JOIN LATERAL (SELECT max(b.lag_entries), max(b.lag_seconds), max(b.p50_ms), max(b.p99_ms),
          100.0 * sum(b.errors) / nullif(sum(b.requests), 0), sum(b.requests / nullif(b.seconds, 0)), sum(b.in_flight)
        FROM balancer_figures b WHERE b.instance = s.instance AND b.at BETWEEN
          s.t - make_interval(secs => 2 * b.seconds + 1) AND s.t + make_interval(secs => b.seconds + 1)) f ON true
    ON CONFLICT DO NOTHING]]

local INSERT_HEALTH = [[
  INSERT INTO health_metrics (instance_name, instance_url, is_healthy, response_time_ms, error_message, checked_at,
      host)
    SELECT name, url, healthy, ms, error, to_timestamp(at), $2
      FROM json_to_recordset($1::json) AS r (name text, url text, healthy boolean, ms real, error text,
        at double precision)
    ON CONFLICT DO NOTHING]]

local BEAT = [[
  INSERT INTO monitors (monitor, host, last_seen, every_seconds, started_at)
    VALUES ($1, $2, now(), $3, to_timestamp($4))
    ON CONFLICT (monitor) DO UPDATE SET last_seen = now(), every_seconds = $3]]

-- host: of this machine; name: of this monitor; conn: a connection of lb.runtime's.
function Store.new(conn, name, host)
  return setmetatable({ conn = conn, name = name, host = host, started = now(), waiting = {}, bytes = 0, stride = 1,
    seen = 0, let_go = 0, away = nil }, Store)
end

-- ---- what waits ------------------------------------------------------------------------------------------

-- "a,b,c" of a list of tables as JSON
local function text_of(rows)
  if #rows == 0 then return "" end
  local text, why = json.encode(rows)
  if not text then
    log.error("sample_lost", why)
    return ""
  end
  return text:sub(2, -2)
end

local function thin_out(self)
  local kept, bytes = {}, 0
  for i, tick in ipairs(self.waiting) do
    if i % 2 == 1 then
      kept[#kept + 1] = tick
      bytes = bytes + #tick.samples + #tick.health
    end
  end
  self.let_go = self.let_go + #self.waiting - #kept
  self.waiting, self.bytes, self.stride = kept, bytes, self.stride * 2
end

-- at: unix time of all of it; samples: rows of samples.lua; health: {{name=, url=, healthy=, ms=, error=, at=}, …}
function Store:keep(at, samples, health)
  for _, row in ipairs(samples) do row.at = at end
  self.seen = self.seen + 1
  if self.seen % self.stride ~= 0 then
    self.let_go = self.let_go + 1
    return
  end
  local tick = { samples = text_of(samples), health = text_of(health) }
  self.waiting[#self.waiting + 1] = tick
  self.bytes = self.bytes + #tick.samples + #tick.health
  if self.bytes > BYTES then thin_out(self) end
end

-- ---- writing ---------------------------------------------------------------------------------------------

local function said(self, why)
  if (self.away ~= nil) == (why ~= nil) then
    self.away = why
    return
  end
  self.away = why
  if why then
    log.warn("samples_wait", "PostgreSQL does not take them: " .. why)
  else
    log.info("samples_written", string.format("PostgreSQL takes them again; %d times waited, %d were let go",
      #self.waiting, self.let_go))
  end
end

-- PostgreSQL looked at the statement and will say the same again.
local function is_refused(state)
  local class = (state or ""):sub(1, 2)
  return class == "22" or class == "23" or class == "42"
end

local function join(ticks, field)
  local out = {}
  for _, tick in ipairs(ticks) do
    if tick[field] ~= "" then out[#out + 1] = tick[field] end
  end
  return "[" .. table.concat(out, ",") .. "]"
end

-- Writes the first of what waits. true, or nil when PostgreSQL is away; every: seconds between ticks.
local function write_some(self, every)
  local batch, bytes = {}, 0
  for i, tick in ipairs(self.waiting) do
    if i > 1 and bytes + #tick.samples + #tick.health > BATCH_BYTES then break end
    batch[i], bytes = tick, bytes + #tick.samples + #tick.health
  end
  local ok, why, state = self.conn:transaction { timeout = 10,
    { BEAT, self.name, self.host, every, self.started },
    { INSERT_SAMPLES, join(batch, "samples"), self.host },
    { INSERT_HEALTH, join(batch, "health"), self.host } }
  if not ok and not is_refused(state) then
    said(self, why)
    return nil
  end
  if not ok then
    log.error("samples_refused", #batch .. " times are lost: " .. why)
    self.let_go = self.let_go + #batch
  else
    said(self, nil)
  end
  local taken, rest = {}, {}
  for _, tick in ipairs(batch) do taken[tick] = true end
  self.bytes = 0
  for _, tick in ipairs(self.waiting) do -- some of the batch may have been thinned out meanwhile
    if not taken[tick] then
      rest[#rest + 1] = tick
      self.bytes = self.bytes + #tick.samples + #tick.health
    end
  end
  self.waiting = rest
  return true
end

-- Writes all that waits. true, or nil when PostgreSQL is away.
function Store:flush(every)
  repeat
    if not write_some(self, every) then return nil end
  until #self.waiting == 0
  self.stride = 1
  return true
end

-- ---- chores ----------------------------------------------------------------------------------------------

local OLD = {
  { "performance_metrics", "metric_timestamp", "MONITOR_KEEP_DAYS" },
  { "health_metrics", "checked_at", "MONITOR_KEEP_DAYS" },
  { "upgrade_recommendations", "resolved_at", "ADVICE_KEEP_DAYS" },
  { "balancer_figures", "at", 1 },
  { "monitors", "last_seen", 1 },
}

-- Deletes what is older than it is kept, in small pieces.
function Store:forget_old(settings)
  for _, what in ipairs(OLD) do
    local name, column, days = what[1], what[2], settings[what[3]] or what[3]
    repeat
      local done = self.conn:query(string.format([[DELETE FROM %s WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM %s WHERE %s < now() - make_interval(days => $1) LIMIT %d))]], name, name, column,
        DELETE_MOST), days)
      if not done then return end
      if done.affected > 0 then sleep(0.2) end
    until done.affected < DELETE_MOST
  end
end

-- What the journal and sync say of all instances and of each, for the guide's columns.
-- {collections=, seconds=, documents={[instance]=}} | nil
function Store:totals()
  local rows = self.conn:query [[
    SELECT (SELECT count(*) FROM journal_collections WHERE NOT deleted) AS collections,
      (SELECT avg(sync_duration_seconds)::double precision FROM sync_collections
        WHERE last_successful_sync > now() - interval '1 day') AS seconds]]
  local documents = rows and self.conn:query [[SELECT instance, sum(replica_document_count)::bigint AS n
    FROM sync_collections WHERE last_successful_sync IS NOT NULL GROUP BY instance]]
  if not documents then return nil end
  local out = { collections = rows[1].collections, seconds = rows[1].seconds or 0, documents = {} }
  for _, row in ipairs(documents) do out.documents[row.instance] = row.n end
  return out
end

-- This monitor ends of its own accord: nobody is to miss it, and others may decide at once.
function Store:farewell()
  self.conn:transaction { timeout = 2, { "DELETE FROM monitors WHERE monitor = $1", self.name },
    { "UPDATE monitor_instances SET until = '-infinity' WHERE monitor = $1", self.name } }
end

return Store
