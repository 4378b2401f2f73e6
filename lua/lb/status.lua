-- status.lua: the documents /health and /status, made of one snapshot of plain figures (core/admin.c).
-- The fields that an earlier system's users read keep their names and shapes; more stand beside them.
local cjson = require("cjson.safe")

local M = {}

-- Seconds since 1970 as ISO 8601 in UTC with a zone; JSON null for "never" (0).
local function iso(seconds)
  if seconds <= 0 then return cjson.null end
  local whole = math.floor(seconds)
  return os.date("!%Y-%m-%dT%H:%M:%S", whole) .. string.format(".%03dZ", (seconds - whole) * 1000)
end

-- "" as JSON null.
local function text(s)
  if s == "" then return cjson.null end
  return s
end

-- lua-cjson 2.1.0 writes every empty table as {}: an empty list is marked here and written by encode().
local EMPTY_LIST = "\1[]"

local function list(t)
  if #t == 0 then return EMPTY_LIST end
  return t
end

local function encode(document)
  return (cjson.encode(document):gsub('"\\u0001%[%]"', "[]"):gsub("\\/", "/"))
end

local function round(x, digits)
  local scale = 10 ^ (digits or 3)
  return math.floor(x * scale + 0.5) / scale
end

local function collections_of(node)
  local out = {}
  for i, c in ipairs(node.collections) do
    out[i] = {
      id = c.id, state = c.state, since_seconds = round(c.for_seconds),
      last_error = text(c.history.last_error), errors_5xx = c.history.errors_5xx,
    }
  end
  return list(out)
end

-- The instance as /health gives it.
local function brief(node)
  return {
    name = node.name, url = node.url, healthy = node.state == "up", priority = node.priority,
    failure_count = node.history.fails, request_count = node.requests, last_check = iso(node.last_check),
  }
end

-- What the journal says of itself: {replication=, reason=, journal={…}, instances={[name]={…}}}.
local function journal_of(snap)
  if snap.journal then return snap.journal end
  if snap.database then
    return { replication = "degraded", reason = "the journal's state could not be read; see the error log" }
  end
  return {
    replication = "off",
    reason = "no DATABASE_URL, so no journal: data routes go to the primary, and replicas are not fed"
      .. (snap.unreplicated_reads == "any" and " (UNREPLICATED_READS=any: reads go to all)" or ""),
  }
end

-- The journal's lists, with their times in ISO 8601.
local function journal_document(j)
  for _, name in ipairs { "copies_not_ready", "entries_waiting", "collections_aside" } do
    local out = {}
    for i, item in ipairs(j[name] or {}) do
      out[i] = {}
      for key, value in pairs(item) do out[i][key] = key == "since" and iso(value) or value end
    end
    if j[name] then j[name] = list(out) end
  end
  return j
end

-- What sync says of itself, with its empty lists marked.
local function sync_document(s)
  local out = {}
  for key, value in pairs(s) do out[key] = value end
  for _, name in ipairs { "workers", "jobs" } do
    if s[name] then out[name] = list(s[name]) end
  end
  out.instances = nil -- shown with the instances
  return out
end

-- What people are told (lb.notify), with its times in ISO 8601.
local TIMES = { at = true, oldest = true, since = true, ["until"] = true }

local function messages_document(m)
  if not m or m.teller == nil then return nil end
  local out = {}
  for key, value in pairs(m) do
    if type(value) == "table" then
      local items = {}
      for i, item in ipairs(value) do
        items[i] = {}
        for name, v in pairs(item) do
          items[i][name] = TIMES[name] and iso(v) or type(v) == "string" and text(v) or v
        end
      end
      value = list(items)
    end
    out[key] = value
  end
  return out
end

local function full(node, all_requests)
  local out = brief(node)
  out.request_percentage = all_requests > 0 and round(100 * node.requests / all_requests, 1) or 0
  out.last_failure = iso(node.last_failure)
  out.role, out.state, out.admin = node.role, node.state, node.admin
  out.state_seconds = round(node.for_seconds)
  out.resolved = node.resolved
  out.weight, out.effective_weight = node.weight, round(node.effective_weight)
  out.last_error = text(node.history.last_error)
  out.history = {
    fails = node.history.fails, passes = node.history.passes, connect_fails = node.history.connect_fails,
    timeouts = node.history.timeouts, resets = node.history.resets, errors_5xx = node.history.errors_5xx,
    busy_seconds = round(node.history.busy_seconds),
  }
  out.collections_unhealthy = collections_of(node)
  out.requests_active, out.requests_queued, out.maxconn = node.inflight, node.queued, node.maxconn
  out.failed_tries = node.failures
  out.answers = node.answers
  out.connections = { open = node.connections_open, idle = node.connections_idle }
  out.probes = { total = node.probes, failed = node.probe_fails, last_ms = round(node.probe_ms) }
  out.latency_ms = {
    ewma = round(node.ewma_ms), p50 = round(node.p50_ms), p90 = round(node.p90_ms), p99 = round(node.p99_ms),
  }
  return out
end

-- The newest sample of an instance (lb/resources.lua), or null.
local function resources(snap, name)
  local sample = snap.resources and snap.resources.samples[name]
  if not sample then return cjson.null end
  local out = {}
  for key, value in pairs(sample) do
    if key ~= "at" then out[key] = type(value) == "number" and round(value) or value end
  end
  out.sampled_at = iso(sample.at)
  return out
end

local function recommendations(snap)
  local out = {}
  for i, r in ipairs(snap.resources and snap.resources.recommendations or {}) do
    out[i] = {}
    for key, value in pairs(r) do out[i][key] = value end
    out[i].created_at, out[i].updated_at = iso(r.created_at), iso(r.updated_at)
  end
  return list(out)
end

local function process(p)
  return {
    role = p.role, index = p.index, pid = p.pid > 0 and p.pid or nil, state = p.state, restarts = p.restarts,
    started_at = iso(p.started_at), last_exit = text(p.last_exit),
  }
end

local function policy(p)
  return {
    file = p.file, calls = p.calls, fallbacks = p.fallbacks, failures = p.failures, tripped = p.tripped,
    missing = p.missing, last_error = text(p.last_error), last_error_at = iso(p.last_error_at),
  }
end

local function policies(snap)
  local out = {
    generation = snap.policy_generation, loaded_at = iso(snap.policy_loaded_at),
    last_load_error = text(snap.policy_load_error), memory_bytes = snap.policy_memory,
  }
  for name, p in pairs(snap.policies) do out[name] = policy(p) end
  return out
end

-- health(snapshot) -> JSON text of /health.
function M.health(snap)
  local instances, up = {}, false
  for i, node in ipairs(snap.nodes) do
    instances[i] = brief(node)
    up = up or node.state == "up"
  end
  return encode {
    status = up and not snap.draining and "healthy" or "unhealthy", strategy = snap.strategy,
    instances = list(instances), timestamp = iso(snap.now),
  }
end

-- status(snapshot) -> JSON text of /status.
function M.status(snap)
  local sent, up = 0, 0
  for _, node in ipairs(snap.nodes) do
    sent = sent + node.requests
    if node.state == "up" then up = up + 1 end
  end
  local instances, processes = {}, {}
  local journal = journal_of(snap)
  for i, p in ipairs(snap.processes) do processes[i] = process(p) end
  for i, node in ipairs(snap.nodes) do
    instances[i] = full(node, sent)
    instances[i].resources = resources(snap, node.name)
    for key, value in pairs(journal.instances and journal.instances[node.name] or {}) do
      instances[i][key] = value
    end
    if snap.sync and snap.sync.instances then
      instances[i].copies_rebuilding = snap.sync.instances[node.name] or 0
    end
  end
  return encode {
    version = snap.version,
    started = iso(snap.started),
    uptime_seconds = round(snap.now - snap.started),
    draining = snap.draining,
    replication = journal.replication,
    replication_reason = text(journal.reason or ""),
    journal = journal.journal and journal_document(journal.journal),
    sync = snap.sync and sync_document(snap.sync),
    processes = list(processes),
    load_balancer = {
      strategy = snap.strategy, check_interval = snap.check_interval, failure_threshold = snap.failure_threshold,
      request_timeout = snap.request_timeout, total_requests = snap.total_requests,
    },
    instances = list(instances),
    recommendations = recommendations(snap),
    summary = { healthy_instances = up, total_instances = #snap.nodes, current_strategy = snap.strategy },
    requests = {
      proxied = snap.proxied_requests, active = snap.active, queued = snap.queued, retries = snap.retries,
      retries_denied = snap.retries_denied, stale_connection_retries = snap.stale_retries,
      ended = snap.ends,
    },
    clients = { connected = snap.clients },
    messages = messages_document(snap.notify),
    policies = policies(snap),
    reloads = {
      total = snap.reloads, failed = snap.reloads_failed, last_error = text(snap.reload_error),
    },
    timestamp = iso(snap.now),
  }
end

return M
