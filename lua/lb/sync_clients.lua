-- sync_clients.lua: what sync and clients learn of each other, in every balancer that has a journal.
--
-- Each second it looks which instances sync writes to: the route policy sees it (node.syncing), and events.lua when it
-- was last so (server.filled_at). While tasks are under way it tells workers how long clients wait, and how long they
-- waited when there were none: policies/sync.lua makes room for them (sync_load.lua).
local Load = require("lb.sync_load")
local journal = require("lb.journal")
local copies = require("chromux.copies")
local usage = require("chromux.usage")
local json = json

local M = {}

local EVERY = 1        -- seconds between looks
local LINGERS = 3      -- seconds that an instance counts as written to after its last task
local WINDOW = 3       -- seconds over which is said how long clients wait
local QUIET_AFTER = 10 -- seconds without tasks after which clients count as undisturbed
local SPAN = 10        -- seconds of each of the spans by which is said how long they wait then,
local QUIET = 300      -- and for how long one of them counts
local ENOUGH = 50      -- requests that tell something

local TASKS = [[SELECT instance, count(*) FILTER (WHERE kind <> 'compare')::int AS writing FROM sync_tasks
  WHERE task_status = 'processing' AND lease_until > now() GROUP BY instance]]

-- What was seen: recent= {{at=, counted=}, ...} of the last WINDOW; span= {at=, counted=} at the beginning of an
-- undisturbed one; spans= {{at=, waits=}, ...} those before.
local seen

-- p99 (s) of the requests between two counts, and how many they were; nil, n: too few to tell.
function M.between(counted, before, least)
  local n = 0
  for i, now_there in ipairs(counted) do n = n + now_there - before[i] end
  if n < least then return nil, n end
  return usage.quantiles(counted, before, 0.99), n
end

-- Keeps counts of the last WINDOW seconds; the oldest comes first.
local function remember(at, counted)
  local recent = seen.recent
  recent[#recent + 1] = { at = at, counted = counted }
  while recent[2] and recent[2].at <= at - WINDOW do table.remove(recent, 1) end
end

-- Nothing of sync was under way for a while: what clients wait now is what they usually wait. The best of some spans
-- counts, so that a bulk load does not make others' long waits usual.
local function undisturbed(at, counted)
  local span, spans = seen.span, seen.spans
  if not span then
    seen.span = { at = at, counted = counted }
  elseif at - span.at >= SPAN then
    local waits = M.between(counted, span.counted, ENOUGH)
    if waits then spans[#spans + 1] = { at = at, waits = waits } end
    while spans[2] and spans[1].at < at - QUIET do table.remove(spans, 1) end
    seen.span = { at = at, counted = counted }
  end
end

local function usual()
  local least
  for _, span in ipairs(seen.spans) do least = math.min(least or span.waits, span.waits) end
  return least
end

local function tell(conn, at, counted)
  local first = seen.recent[1]
  local waits, n = M.between(counted, first.counted, 1)
  seen.told_at = at
  conn:query({ "SELECT pg_notify($1, $2)", timeout = 5 }, Load.CHANNEL, json.encode { balancer = journal.state.name,
    requests = at > first.at and n / (at - first.at) or 0, waits = waits, usual = usual() })
end

-- One look. rows: {{instance=, writing=}, ...}
local function heed(conn, rows)
  local at, counted = now(), usage.clients()
  remember(at, counted)
  for _, row in ipairs(rows) do
    seen.busy_at = at
    if row.writing > 0 then seen.written[row.instance] = { at = at, tasks = row.writing } end
  end
  for instance, w in pairs(seen.written) do
    local over, servers = at - w.at > LINGERS, journal.state.servers
    copies.syncing(instance, over and 0 or w.tasks)
    if servers and servers.by_name[instance] then servers.by_name[instance].filled_at = at end
    if over then seen.written[instance] = nil end
  end
  if #rows > 0 then
    seen.span = nil
    if at - seen.told_at >= WINDOW then tell(conn, at, counted) end
  elseif at - seen.busy_at > QUIET_AFTER then
    undisturbed(at, counted)
  end
end

-- Runs beside the journal for as long as the process. While PostgreSQL is away nothing is known to be under way.
function M.start()
  seen = { recent = {}, spans = {}, written = {}, busy_at = now() - QUIET_AFTER, told_at = 0 }
  spawn(function()
    while true do
      if journal.state.phase ~= "starting" then
        local conn = pg.connection("default")
        local fine, why = pcall(heed, conn, conn:query({ TASKS, timeout = 5 }) or {})
        if not fine then log.error("sync_clients_failed", tostring(why)) end
      end
      sleep(EVERY)
    end
  end)
  return true
end

return M
