-- sync_cli.lua: `chromux sync`: what is proven equal, and what operators ask of sync.
--
-- Needs nothing but DATABASE_URL. What is to be done becomes rows of sync_jobs, which the coordinator takes up.
local Command = require("lb.command")
local Watch = require("lb.sync_watch")
local calls = require("lb.sync_calls")
local ffi = require("ffi")

local M = {}

local FINE, REFUSED, USAGE = Command.FINE, Command.REFUSED, Command.USAGE

local HELP = [[
chromux sync - proves that all servers hold the same, and makes them; DATABASE_URL says where the journal is

  chromux sync status        workers, what is under way, and for each collection when it was last proven equal
  chromux sync verify [--instance NAME] [--collection C] [--dry-run]
      compares records with those of another server and repairs what differs; --dry-run: repairs nothing
  chromux sync rebuild --instance NAME [--collection C] [--dry-run]
      makes copies anew from another server; the old ones serve until then; --dry-run: says what would be done
  chromux sync pause --who NAME --why TEXT      nothing new begins, until
  chromux sync resume
  chromux sync cancel JOB [--who NAME]          ends a job, by its number
  chromux sync aside [--instance NAME]          collections on servers that the journal does not know
  chromux sync discard --instance NAME --collection C --yes
      deletes one of these on that server, for good

C is TENANT/DATABASE/NAME, an id, or a NAME that only one collection has. verify and rebuild show how they get on; they
may be left with Ctrl-C, and what was asked for goes on.
Exit codes: 0 equal or done, 1 something differs, failed or was refused, 2 wrong use, 3 PostgreSQL cannot be used,
4 no worker is alive.
]]

local command = Command.new("sync", HELP)
local out, fail, query, parse = command.out, command.fail, command.query, command.parse
local number, duration = Watch.number, Watch.duration

local ASIDE_SECONDS, DISCARD_SECONDS = 3, 120 -- for the balancer to answer

ffi.cdef "int isatty(int fd);"

-- ---- which -----------------------------------------------------------------------------------------------

local function full_name(row) return row.tenant .. "/" .. row.database .. "/" .. row.name end

-- The lane that --collection means; nil: it was not given.
local function lane_of(text)
  if not text then return nil end
  local rows = query([[SELECT lane, tenant, database, name FROM journal_collections
    WHERE NOT deleted AND (logical = lower($1) OR name = $1 OR tenant || '/' || database || '/' || name = $1)
    ORDER BY tenant, database LIMIT 20]], text)
  if not rows[1] then fail(REFUSED, "there is no collection %s", text) end
  if rows[2] then
    local names = {}
    for i, row in ipairs(rows) do names[i] = full_name(row) end
    fail(REFUSED, "%s may be any of %s", text, table.concat(names, ", "))
  end
  return rows[1].lane
end

-- Names of instances that are configured and have never joined, without those that are retired.
local function strangers()
  local names = {}
  for i, row in ipairs(query([[SELECT name FROM sync_lease, json_array_elements_text(instances::json) AS name
      WHERE NOT EXISTS (SELECT 1 FROM journal_copies c WHERE c.lane = 0 AND c.instance = name)
        AND NOT EXISTS (SELECT 1 FROM journal_servers s WHERE s.instance = name AND s.retired) ORDER BY 1]])) do
    names[i] = row.name
  end
  return names
end

local NEVER_JOINED = "is configured and has never joined: what it holds is not known (/status says why)"

local function check_instance(name)
  if not name then return end
  local known, found = {}, false
  for i, row in ipairs(query([[SELECT c.instance FROM journal_copies c LEFT JOIN journal_servers s USING (instance)
      WHERE c.lane = 0 AND NOT COALESCE(s.retired, false) ORDER BY 1]])) do
    known[i] = row.instance
    found = found or row.instance == name
  end
  for _, stranger in ipairs(found and {} or strangers()) do
    if stranger == name then fail(REFUSED, "%s %s", name, NEVER_JOINED) end
  end
  if not found then fail(REFUSED, "there is no instance %s; the journal knows %s", name, table.concat(known, ", ")) end
end

-- Collections with their copies: {{lane=, label=, copies={row, ...}, ready= how many}, ...}
local function collections(lane)
  local list = {}
  for _, row in ipairs(query([[SELECT k.lane, k.tenant, k.database, k.name, c.instance, c.state, c.reason,
      s.replica_document_count AS known
    FROM journal_collections k JOIN journal_copies c USING (lane)
      LEFT JOIN journal_servers r ON r.instance = c.instance
      LEFT JOIN sync_collections s ON s.collection_id = k.logical AND s.instance = c.instance
    WHERE NOT k.deleted AND NOT COALESCE(r.retired, false) AND ($1::bigint IS NULL OR k.lane = $1)
    ORDER BY k.tenant, k.database, k.name, k.lane, c.instance]], lane)) do
    local c = list[#list]
    if not c or c.lane ~= row.lane then
      c = { lane = row.lane, label = full_name(row), copies = {}, ready = 0 }
      list[#list + 1] = c
    end
    row.label = c.label .. " on " .. row.instance
    c.copies[#c.copies + 1] = row
    if row.state == "ready" then c.ready = c.ready + 1 end
    c.counted = c.counted or row.known
  end
  return list
end

-- Collections of which an instance is to have a copy and has none yet, and instances that have nothing. How many; says
-- which.
local function show_missing(lane, instance)
  local missing = 0
  for _, name in ipairs(instance and {} or strangers()) do
    missing = missing + 1
    out("%-12s %s %s", "missing", name, NEVER_JOINED)
  end
  for _, row in ipairs(query([[SELECT m.instance, count(*) AS n FROM journal_collections k
      CROSS JOIN journal_copies m LEFT JOIN journal_servers i ON i.instance = m.instance
      LEFT JOIN journal_copies c ON c.lane = k.lane AND c.instance = m.instance
    WHERE m.lane = 0 AND NOT k.deleted AND c.lane IS NULL AND NOT COALESCE(i.retired, false)
      AND ($1::bigint IS NULL OR k.lane = $1) AND ($2::text IS NULL OR m.instance = $2)
    GROUP BY m.instance ORDER BY 1]], lane, instance)) do
    missing = missing + row.n
    out("%-12s %s: %s collections are not there yet", "missing", row.instance, number(row.n))
  end
  return missing
end

local function refuse_while_paused(consequence)
  local p = query([[SELECT paused_by, paused_why, date_trunc('second', paused_at)::text AS at FROM sync_lease
    WHERE paused_at IS NOT NULL]])[1]
  if p then
    fail(REFUSED, "sync is paused by %s since %s (%s): %s", p.paused_by, p.at, p.paused_why,
      consequence or "chromux sync resume comes first")
  end
end

local function who(options) return options.who or env("USER") or "an operator" end

local function watch(kind, options)
  return Watch.new(command, kind, { asked_by = who(options),
    dry_run = options["dry-run"] or false, one = options.instance ~= nil, terminal = ffi.C.isatty(1) == 1 })
end

-- ---- doing -----------------------------------------------------------------------------------------------

local WHICH = { instance = true, collection = true, who = true, ["dry-run"] = false }

-- A copy that cannot be compared: is that bad? And why. nil: it can be.
local function incomparable(c, copy)
  if copy.state ~= "ready" then return true, copy.state .. ": " .. copy.reason end
  if #c.copies == 1 then return false, "it is the only copy" end
  if c.ready == 1 then return true, "no other server has a whole copy" end
end

-- All copies are asked for: which one the others are compared with is the coordinator's to say.
local function verify(args)
  local words, options = parse(args, 2, WHICH)
  command.none(words)
  check_instance(options.instance)
  refuse_while_paused()
  local lane = lane_of(options.collection)
  local targets, bad = {}, show_missing(lane, options.instance)
  for _, c in ipairs(collections(lane)) do
    for _, copy in ipairs(c.copies) do
      if not options.instance or options.instance == copy.instance then
        local is_bad, why = incomparable(c, copy)
        if why then
          bad = bad + (is_bad and 1 or 0)
          out("%-12s %s: %s", "not compared", copy.label, why)
        else
          -- Of those that were ever compared, the one without a count is what the others are compared with.
          copy.known = copy.known or c.counted and 0
          targets[#targets + 1] = copy
        end
      end
    end
  end
  local w = watch("verify", options)
  w:follow(targets)
  bad = bad + w.bad
  if bad > 0 then
    out("%d copies are not proven equal, %d are", bad, w.proven)
  elseif targets[1] and w.proven == 0 then
    bad = 1
    out("nothing was compared: others are compared with %s, so leave --instance away", options.instance)
  else
    out("%d copies are proven equal to what they were compared with", w.proven)
  end
  return bad > 0 and REFUSED or FINE
end

-- MB free on the instance's disk, as the monitor last saw; nil: not known.
local function disk_free(instance)
  local rows = pg.query([[SELECT disk_free_mb::float8 AS mb FROM performance_metrics WHERE instance = $1
    AND disk_free_mb IS NOT NULL AND metric_timestamp > now() - interval '10 minutes'
    ORDER BY metric_timestamp DESC LIMIT 1]], instance)
  return rows and rows[1] and rows[1].mb
end

local function rebuild(args)
  local words, options = parse(args, 2, WHICH)
  command.none(words)
  if not options.instance then fail(USAGE, "--instance is missing: whose copies?") end
  check_instance(options.instance)
  refuse_while_paused()
  local targets, bad = {}, 0
  for _, c in ipairs(collections(lane_of(options.collection))) do
    for _, copy in ipairs(c.copies) do
      if copy.instance == options.instance then
        local others = c.ready - (copy.state == "ready" and 1 or 0)
        if others > 0 then
          copy.known = copy.known or c.counted
          targets[#targets + 1] = copy
          if options["dry-run"] then
            out("%-12s %s (now %s), %s", "would be", copy.label, copy.state,
              copy.known and number(copy.known) .. " records when last counted" or "never counted")
          end
        else
          bad = bad + 1
          out("%-12s %s: no other server has a whole copy, so nothing is overwritten", "refused", copy.label)
        end
      end
    end
  end
  local free = disk_free(options.instance)
  out("%d copies to make anew on %s, whose disk has %s", #targets, options.instance,
    free and number(free) .. " MB free" or "an unknown amount free")
  if not options["dry-run"] then
    local w = watch("rebuild", options)
    w:follow(targets)
    bad = bad + w.bad
  end
  if bad > 0 then out("%d of %d copies could not be made anew", bad, math.max(#targets, bad)) end
  return bad > 0 and REFUSED or FINE
end

local function tell(what) query("SELECT pg_notify('chromux_sync_work', $1)::text AS told", what) end

local function pause(args)
  local words, options = parse(args, 2, { who = true, why = true })
  command.none(words)
  command.signed(options)
  local done = query([[UPDATE sync_lease SET paused_by = $1, paused_why = $2, paused_at = COALESCE(paused_at, now())
    WHERE paused_at IS NULL OR paused_by = $1]], options.who, options.why)
  if done.affected == 0 then refuse_while_paused("that stays, and so will what they resume") end
  tell("jobs")
  out("paused: what is under way ends, and nothing new begins until chromux sync resume")
  return FINE
end

local function resume(args)
  command.none((parse(args, 2, {})))
  local done = query([[WITH was AS (SELECT paused_by FROM sync_lease FOR UPDATE)
    UPDATE sync_lease l SET paused_by = '', paused_why = '', paused_at = NULL FROM was WHERE paused_at IS NOT NULL
    RETURNING was.paused_by AS by]])
  tell("jobs")
  if done[1] then out("resumed; it was paused by %s", done[1].by) else out("sync was not paused") end
  return FINE
end

local function cancel(args)
  local words, options = parse(args, 2, { who = true })
  local id = tonumber(command.one(words, "the number of a job"):match("^%d+$"))
  if not id or id > 2 ^ 53 then fail(USAGE, "%s is no number of a job", words[1]) end
  -- The coordinator cleans up behind it and writes when it ended.
  local done = query([[UPDATE sync_jobs SET state = 'cancelled', error = $2 WHERE id = $1
    AND state NOT IN ('done', 'failed', 'cancelled')]], id, "cancelled by " .. who(options))
  if done.affected == 0 then
    local job = query("SELECT state FROM sync_jobs WHERE id = $1", id)[1]
    fail(REFUSED, "%s", job and string.format("job %d is %s already", id, job.state) or "there is no job " .. id)
  end
  tell("jobs")
  out("job %d is cancelled", id)
  return FINE
end

-- ---- what the journal does not know ------------------------------------------------------------------------

-- {list=, count=} | nil, why
local function aside_ones() return calls.ask("aside", 0, "", {}, ASIDE_SECONDS) end

local function aside_line(c)
  return string.format("%s on %s: %s, id %s", full_name(c), c.instance,
    c.records and number(c.records) .. " records" or "records not counted", c.id)
end

-- Those of one instance, or of all; how many there are.
local function show_aside(found, instance)
  for _, c in ipairs(found.list) do
    if not instance or c.instance == instance then out("%-12s %s", "aside", aside_line(c)) end
  end
  if found.count > #found.list then out("%-12s and %d more", "", found.count - #found.list) end
end

local function aside(args)
  local words, options = parse(args, 2, { instance = true })
  command.none(words)
  check_instance(options.instance)
  local found, why = aside_ones()
  if not found then fail(REFUSED, "no balancer says what there is: %s", why) end
  show_aside(found, options.instance)
  if found.count == 0 then out("the journal knows all that was found on the servers") end
  return FINE
end

local function discard(args)
  local words, options = parse(args, 2, { instance = true, collection = true, yes = false, who = true })
  command.none(words)
  if not options.instance then fail(USAGE, "--instance is missing: on which server?") end
  if not options.collection then fail(USAGE, "--collection is missing: an id or a name of chromux sync aside") end
  check_instance(options.instance)
  local found, why = aside_ones()
  if not found then fail(REFUSED, "no balancer says what there is: %s", why) end
  local one
  for _, c in ipairs(found.list) do
    local text = options.collection
    if c.instance == options.instance and (c.id == text or c.name == text or full_name(c) == text) then
      if one then fail(REFUSED, "%s may be any of %s, %s: name it by its id", text, full_name(one), full_name(c)) end
      one = c
    end
  end
  if not one then
    fail(REFUSED, "no collection %s that the journal does not know was found on %s; see chromux sync aside",
      options.collection, options.instance)
  end
  if not options.yes then fail(REFUSED, "add --yes to delete for good: %s", aside_line(one)) end
  local done
  done, why = calls.ask("discard", 0, one.instance, { id = one.id, by = who(options) }, DISCARD_SECONDS)
  if not done then fail(REFUSED, "it may still be there: %s", why) end
  out("deleted: %s", aside_line(one))
  return FINE
end

-- ---- looking ---------------------------------------------------------------------------------------------

-- A worker's id as people say it.
local function process_of(id)
  local host, pid = id:match("^(.+)%-(%d+)%-%d+$")
  return host and "process " .. pid .. " on " .. host or id
end

local function show_lease()
  local l = query([[SELECT COALESCE((SELECT worker_id FROM sync_workers WHERE process = holder), holder) AS holder,
      until > now() AS held, paused_by, paused_why, date_trunc('second', paused_at)::text AS paused
    FROM sync_lease]])[1]
  out("sync         coordinated by %s", l.held and process_of(l.holder) or "nobody")
  if l.paused then out("PAUSED       by %s since %s: %s", l.paused_by, l.paused, l.paused_why) end
end

local function show_workers()
  local rows = query([[SELECT worker_id, role, worker_status, current_task_id AS task, memory_usage_mb AS mb,
      cpu_percent AS cpu, lease_until > now() AS alive, extract(epoch FROM now() - last_heartbeat)::float8 AS age,
      policies_aside AS failing
    FROM sync_workers ORDER BY worker_id]])
  for _, w in ipairs(rows) do
    out("%-12s %s: %s%s, %.0f MB, %.0f %% of a CPU, last heard %.1f s ago%s", w.role, process_of(w.worker_id),
      w.alive and w.worker_status or "LATE", w.task and " with task " .. w.task or "", w.mb or 0, w.cpu or 0, w.age,
      w.failing ~= "" and "; set aside are its policies " .. w.failing or "")
  end
  if #rows == 0 then out("worker       none: nothing is compared or made anew") end
end

local JOB = [[SELECT id, kind, tenant, database, collection_name AS name, instance, source, state, records,
    done_records, attempts, error, asked_by, extract(epoch FROM now() - started_at)::float8 AS age,
    extract(epoch FROM now() - finished_at)::float8 AS ago FROM sync_jobs WHERE ]]

local function show_jobs()
  local OPEN = "state NOT IN ('done', 'failed', 'cancelled')"
  for _, j in ipairs(query(JOB .. OPEN .. " ORDER BY priority DESC, id LIMIT 50")) do
    local rate = j.age and j.age > 1 and j.done_records > 0 and j.done_records / j.age
    out("job %-8s %s of %s on %s%s: %s%s%s%s%s", j.id, j.kind, full_name(j), j.instance,
      j.source and " from " .. j.source or "", (j.state:gsub("_", " ")),
      j.records > 0 and string.format(", %s of %s records", number(j.done_records), number(j.records)) or "",
      rate and string.format(", %s/s, about %s left", number(rate),
        duration(math.max(0, j.records - j.done_records) / rate)) or "",
      j.asked_by ~= "" and ", asked for by " .. j.asked_by or "",
      j.error ~= "" and string.format("; try %d: %s", j.attempts + 1, j.error) or "")
  end
  local count = query("SELECT count(*) AS n FROM sync_jobs WHERE " .. OPEN)[1].n
  if count > 50 then out("             and %d more", count - 50) end
  for _, j in ipairs(query(JOB .. [[state = 'failed' AND finished_at > now() - interval '1 day'
      AND NOT EXISTS (SELECT 1 FROM sync_jobs n WHERE n.lane = sync_jobs.lane AND n.instance = sync_jobs.instance
        AND n.kind = sync_jobs.kind AND n.id > sync_jobs.id AND n.state IN ('done', 'failed'))
      ORDER BY finished_at DESC LIMIT 10]])) do
    out("failed       job %s, %s of %s on %s, %s ago: %s", j.id, j.kind, full_name(j), j.instance, duration(j.ago),
      j.error)
  end
end

-- How many copies are not as they should be.
local function show_collections()
  local bad, equal, unproven = show_missing(), 0, 0
  for _, r in ipairs(query([[SELECT k.tenant, k.database, k.name, c.instance, c.state, c.reason, s.differences,
      s.repaired, date_trunc('second', s.proven_equal_at)::text AS proven,
      extract(epoch FROM now() - s.proven_equal_at)::float8 AS age,
      s.primary_document_count AS here, s.replica_document_count AS there, s.consecutive_errors AS errors,
      s.last_error_message AS error, s.collection_id IS NOT NULL AS seen, count(s.collection_id) OVER w AS others
    FROM journal_collections k JOIN journal_copies c USING (lane)
      LEFT JOIN journal_servers i ON i.instance = c.instance
      LEFT JOIN sync_collections s ON s.collection_id = k.logical AND s.instance = c.instance
    WHERE NOT k.deleted AND NOT COALESCE(i.retired, false)
    WINDOW w AS (PARTITION BY k.lane)
    ORDER BY k.tenant, k.database, k.name, c.instance]])) do
    local label = full_name(r) .. " on " .. r.instance
    local left = (r.differences or 0) - (r.repaired or 0)
    if r.state ~= "ready" then
      bad = bad + 1
      out("%-12s %s: %s", r.state, label, r.reason)
    elseif left > 0 then
      bad = bad + 1
      out("%-12s %s: %s records%s", "DIFFERS", label, number(left),
        r.proven and ", last proven equal at " .. r.proven or "")
    elseif r.proven then
      equal = equal + 1
      out("%-12s %s: last proven equal at %s, %s ago; %s records", "equal", label, r.proven, duration(r.age),
        number(r.there))
    elseif r.seen or r.others == 0 then
      unproven = unproven + 1
      out("%-12s %s%s", "unproven", label, (r.errors or 0) > 0 and ": " .. (r.error or "") or "")
    end
  end
  out("copies       %d proven equal, %d not proven yet, %d not equal or not ready", equal, unproven, bad)
  return bad
end

local function status(args)
  command.none((parse(args, 2, {})))
  show_lease()
  show_workers()
  show_jobs()
  local bad = show_collections()
  local found = aside_ones()
  if found then show_aside(found) end
  if found and found.count > 0 then out("%-12s no more of these: chromux sync discard", "") end
  return bad > 0 and REFUSED or FINE
end

local COMMANDS = { status = status, verify = verify, rebuild = rebuild, pause = pause, resume = resume,
  cancel = cancel, aside = aside, discard = discard }

function M.main(...) return command.main({ ... }, COMMANDS) end

return M
