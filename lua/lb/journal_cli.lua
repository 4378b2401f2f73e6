-- journal_cli.lua: `chromux journal`: the journal as PostgreSQL has it, and what an operator may do to it.
--
-- Needs nothing but DATABASE_URL. What changes entries or instances is asked of the balancer that holds the lease
-- (operate.lua); accept-restore is done here, since no balancer writes before it.
local Command = require("lb.command")
local operate = require("lb.operate")
local identity = require("lb.identity")
local Store = require("lb.store")

local M = {}

local FINE, REFUSED, USAGE, AWAY, NOBODY = Command.FINE, Command.REFUSED, Command.USAGE, Command.AWAY, Command.NOBODY

local PATIENCE = 10 -- seconds for the holder's answer
local RENUMBER = 1000000 -- numbers that are passed over, since clients may know them from the time that is lost

local HELP = [[
chromux journal - looks at the journal and mends it; DATABASE_URL says where it is

  chromux journal status                     lease, lanes, copies, what happened lately
  chromux journal entry LANE/N               the fate of an entry, by its number
  chromux journal key KEY                    the same by its Idempotency-Key, or its token
  chromux journal skip LANE/N --who NAME --why TEXT
      ends an entry that no instance takes; its client is told 500
  chromux journal retire INSTANCE --who NAME --why TEXT
      an instance that will not come back: the journal waits for it no longer
  chromux journal accept-restore --from INSTANCE --who NAME --why TEXT
      PostgreSQL was restored from a backup, and the instance has what is right: the others are made anew from it
  chromux journal accept-restore --as-recorded --who NAME --why TEXT
      the same, and what PostgreSQL says is right: the instances were restored to the same moment

Who and why are recorded. Exit codes: 0 done, 1 refused or not found, 2 wrong use, 3 PostgreSQL cannot be used,
4 no balancer answered.
]]

local command = Command.new("journal", HELP)
local out, fail, query, parse, one, signed =
  command.out, command.fail, command.query, command.parse, command.one, command.signed

local function entry_number(text)
  local lane, n = text:match("^(%d+)/(%d+)$")
  lane, n = tonumber(lane), tonumber(n)
  if not lane or lane > 2 ^ 53 or n > 2 ^ 53 then
    fail(USAGE, "%s is no entry: expected LANE/N, as X-Chromux-Entry says", text)
  end
  return lane, n
end

-- ---- looking ---------------------------------------------------------------------------------------------

local MEANS = {
  applied = "applied: done on one instance, the others follow",
  rejected = "rejected: an instance refused it, none has it",
  failed = "failed: every instance answered 5xx; what it did is as its authority has it",
  skipped = "skipped by an operator",
  void = "void: nothing had to be done",
}

local function show(row)
  out("entry %s/%s", row.lane, row.n)
  if row.collection then
    out("  collection  %s (%s) in %s/%s%s", row.name, row.collection, row.tenant, row.database,
      row.deleted and ", deleted" or "")
  else
    out("  the catalogue")
  end
  out("  operation   %s, %s bytes", row.action, row.bytes)
  out("  token       %s", row.token)
  out("  kept        %s", row.created)
  out("  verdict     %s", row.verdict and MEANS[row.verdict] or "none yet: it is kept, and will be applied")
  if row.decided then out("  decided     %s", row.decided) end
  if row.status then out("  answer      %s %s", row.status, row.answer or "") end
  if row.authority then out("  authority   %s", row.authority) end
  if row.note then out("  note        %s", row.note) end
  for _, c in ipairs(query("SELECT instance, position, state, reason FROM journal_copies WHERE lane = $1 ORDER BY 1",
    row.lane)) do
    local has = c.position >= row.n and "is past it" or string.format("stands %d before it", row.n - c.position)
    if c.state ~= "ready" then has = c.state .. ": " .. c.reason end
    out("  on %-8s %s", c.instance, has)
  end
end

local ENTRY = [[SELECT e.lane, e.n, e.action, length(e.body) AS bytes, e.token, e.verdict, e.status, e.authority,
    e.note, left(convert_from(e.answer, 'UTF8'), 300) AS answer, e.created_at::text AS created,
    e.decided_at::text AS decided, c.logical AS collection, c.name, c.tenant, c.database, c.deleted
    FROM journal_entries e LEFT JOIN journal_collections c ON c.lane = e.lane WHERE ]]

local function entry(args)
  local lane, n = entry_number(one(parse(args, 2, {}), "LANE/N"))
  local rows = query(ENTRY .. "e.lane = $1 AND e.n = $2", lane, n)
  if rows[1] then
    show(rows[1])
    return FINE
  end
  local l = query("SELECT next, trimmed FROM journal_lanes WHERE lane = $1", lane)[1]
  if not l then fail(REFUSED, "there is no lane %d", lane) end
  if n < 1 or n >= l.next then
    fail(REFUSED, "there is no entry %d/%d; the newest is %d/%d", lane, n, lane, l.next - 1)
  end
  if n <= l.trimmed then
    out("entry %d/%d is trimmed: it had a verdict, and every instance is past it", lane, n)
    return FINE
  end
  fail(REFUSED, "entry %d/%d is not in the journal", lane, n)
end

local function key(args)
  local k = one(parse(args, 2, {}), "a key or token")
  local rows = query(ENTRY .. "e.token = $1 OR e.token = $2", "key:" .. k, k)
  if not rows[1] then
    fail(REFUSED, "no entry has the key %s: it was not kept, or is trimmed", k)
  end
  for _, row in ipairs(rows) do show(row) end
  return FINE
end

local function status(args)
  if #parse(args, 2, {}) > 0 then fail(USAGE, "status takes no arguments") end
  local meta = query("SELECT journal_id, suspended FROM journal_meta")[1]
  local lease = query([[SELECT holder, address, epoch, closed, until > now() AS held,
      round(extract(epoch FROM until - now())::numeric, 1)::text AS left FROM journal_lease]])[1]
  out("journal    %s", meta.journal_id)
  out("lease      epoch %s, %s", lease.epoch, lease.held and not lease.closed
    and "held by " .. lease.holder .. (lease.address ~= "" and " at " .. lease.address or "") .. " for " .. lease.left
      .. " s more" or "held by nobody")
  if meta.suspended ~= "" then
    out("STOPPED    %s", meta.suspended)
    out("           nothing is written until: chromux journal accept-restore")
  end
  local sums = query([[SELECT count(*) AS lanes, COALESCE(sum(next - 1), 0)::bigint AS head,
      (SELECT count(*) FROM journal_entries WHERE verdict IS NULL) AS undecided,
      pg_total_relation_size('journal_entries')::bigint AS bytes FROM journal_lanes WHERE open]])[1]
  out("entries    %s in %s lanes, %s without a verdict, %.1f MB on disk", sums.head, sums.lanes, sums.undecided,
    sums.bytes / 1e6)
  for _, row in ipairs(query([[SELECT c.instance, count(*) AS copies, count(*) FILTER (WHERE state <> 'ready') AS bad,
      COALESCE(sum(l.next - 1 - c.position), 0)::bigint AS lag, bool_or(COALESCE(s.retired, false)) AS retired
      FROM journal_copies c JOIN journal_lanes l USING (lane) LEFT JOIN journal_servers s ON s.instance = c.instance
      WHERE l.open GROUP BY 1 ORDER BY 1]])) do
    out("instance   %s: %s copies, %s of them out of use, lacks %s entries%s", row.instance, row.copies, row.bad,
      row.lag, row.retired and "; retired" or "")
  end
  for _, row in ipairs(query([[SELECT lane, n, action, round(extract(epoch FROM now() - created_at))::bigint AS age
      FROM journal_entries WHERE verdict IS NULL AND created_at < now() - interval '5 seconds'
      ORDER BY created_at LIMIT 20]])) do
    out("waiting    %s/%s %s for %s s", row.lane, row.n, row.action, row.age)
  end
  for _, row in ipairs(query([[SELECT c.lane, c.instance, c.state, c.reason, c.changed_at::text AS since, n.name
      FROM journal_copies c JOIN journal_lanes l USING (lane) LEFT JOIN journal_collections n USING (lane)
      WHERE l.open AND c.state <> 'ready' ORDER BY c.changed_at LIMIT 20]])) do
    out("copy       %s (lane %s) on %s is %s since %s: %s", row.name or "the catalogue", row.lane, row.instance,
      row.state, row.since, row.reason)
  end
  for _, row in ipairs(query([[SELECT id, kind, who FROM journal_requests WHERE answered_at IS NULL ORDER BY id
      LIMIT 20]])) do
    out("asked      %s by %s (request %s), not answered yet", row.kind, row.who, row.id)
  end
  for _, row in ipairs(query([[SELECT * FROM (SELECT id, event_type, from_instance, to_instance, reason,
      occurred_at::text AS at FROM failover_events ORDER BY id DESC LIMIT 10) e ORDER BY id]])) do
    out("event      %s %s%s%s: %s", row.at, row.event_type, row.from_instance and " " .. row.from_instance or "",
      row.to_instance and " -> " .. row.to_instance or "", row.reason or "")
  end
  return FINE
end

-- ---- doing -----------------------------------------------------------------------------------------------

-- Asks the holder and waits for its answer.
local function ask(kind, lane, n, instance, options)
  signed(options)
  local id = query([[WITH asked AS (INSERT INTO journal_requests (kind, lane, n, instance, who, why)
      VALUES ($1, $2, $3, $4, $5, $6) RETURNING id)
      SELECT id, pg_notify($7, id::text)::text AS told FROM asked]],
    kind, lane, n, instance, options.who, options.why, operate.CHANNEL)[1].id
  local till = now() + PATIENCE
  repeat
    local row = query("SELECT done, answer FROM journal_requests WHERE id = $1 AND answered_at IS NOT NULL", id)[1]
    if row and row.done then
      out("%s", row.answer)
      return FINE
    end
    if row then fail(REFUSED, "refused: %s", row.answer) end
    sleep(0.1)
  until now() > till
  if query("DELETE FROM journal_requests WHERE id = $1 AND answered_at IS NULL", id).affected == 1 then
    fail(NOBODY, "no balancer answered within %d s, and the request is withdrawn: does one run with this DATABASE_URL?",
      PATIENCE)
  end
  local row = query("SELECT done, answer FROM journal_requests WHERE id = $1", id)[1]
  out("%s", row.answer)
  return row.done and FINE or REFUSED
end

local SIGNED = { who = true, why = true }

local function skip(args)
  local words, options = parse(args, 2, SIGNED)
  local lane, n = entry_number(one(words, "LANE/N"))
  return ask("skip", lane, n, nil, options)
end

local function retire(args)
  local words, options = parse(args, 2, SIGNED)
  return ask("retire", nil, nil, one(words, "the name of an instance"), options)
end

-- Statements that make one instance's copies the truth.
local function trust(instance, note)
  return {
    { "UPDATE journal_entries SET verdict = 'skipped', status = 500, answer_type = 'application/json', note = $1, "
      .. [[answer = '{"error":"InternalError","message":"PostgreSQL was restored from a backup"}',
      decided_at = now() WHERE verdict IS NULL]], note },
    { "UPDATE journal_lanes SET next = next + $1 WHERE open", RENUMBER },
    { [[UPDATE journal_copies c SET position = l.next - 1, state = 'ready', reason = '', changed_at = now(),
        incarnation = incarnation + 1 FROM journal_lanes l
        WHERE l.lane = c.lane AND l.open AND c.instance = $1 AND (c.physical <> '' OR c.lane = 0)]], instance },
    { [[UPDATE journal_copies SET state = 'rebuild', reason = $2, changed_at = now(), incarnation = incarnation + 1
        WHERE instance <> $1]], instance, "PostgreSQL was restored; " .. instance .. " has what is right" },
  }
end

local function accept_restore(args)
  local words, options = parse(args, 2, { who = true, why = true, from = true, ["as-recorded"] = false })
  command.none(words)
  if (options.from ~= nil) == (options["as-recorded"] ~= nil) then
    fail(USAGE, "say which side is right: --from INSTANCE, or --as-recorded")
  end
  signed(options)
  local suspended = query("SELECT suspended FROM journal_meta")[1].suspended
  if suspended == "" then fail(REFUSED, "writes are not stopped: there is nothing to accept") end
  if options.from then
    local known, found = {}, false
    for i, row in ipairs(query("SELECT instance FROM journal_copies WHERE lane = 0 ORDER BY 1")) do
      known[i] = row.instance
      found = found or row.instance == options.from
    end
    if not found then
      fail(REFUSED, "there is no instance %s; the journal knows %s", options.from, table.concat(known, ", "))
    end
  end
  local is, why = identity.now(pg.connection("default"))
  if not is then fail(AWAY, "PostgreSQL: %s", why) end
  local note = string.format("%s (%s by %s: %s)", suspended,
    options.from and "from " .. options.from or "as recorded", options.who, options.why)
  -- A new epoch, higher than any that a balancer may remember from the time that is lost.
  local all = {
    { "UPDATE journal_lease SET epoch = epoch + 1000, until = now()" },
    { "UPDATE journal_meta SET suspended = '', system_id = $1, timeline = $2", is.system_id, is.timeline },
    { "UPDATE journal_servers SET witness = -1" }, -- what they say is taken
    { [[INSERT INTO journal_requests (kind, instance, who, why, answered_at, done, answer)
        VALUES ('accept-restore', $1, $2, $3, now(), true, $4)]], options.from, options.who, options.why, note, n = 4 },
    Store.event("restore_accepted", nil, options.from, note) }
  for _, s in ipairs(options.from and trust(options.from, note) or {}) do all[#all + 1] = s end
  local done, reason = pg.connection("default"):transaction(all)
  if not done then fail(AWAY, "PostgreSQL: %s", reason) end
  out("accepted: balancers start anew")
  return FINE
end

-- ---- the door --------------------------------------------------------------------------------------------

local COMMANDS = { status = status, entry = entry, key = key, skip = skip, retire = retire,
  ["accept-restore"] = accept_restore }

function M.main(...) return command.main({ ... }, COMMANDS) end

return M
