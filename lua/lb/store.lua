-- store.lua: what the journal keeps in PostgreSQL: lease, entries, verdicts, positions, and the group commit.
--
-- Every transaction that changes the journal begins with the lease check (PROTOCOL.md R2): it locks the lease's
-- row, so a takeover waits for it, and fails the whole transaction when the epoch is no longer ours.
--
--   local store = Store.new(append, reader)   two of lb.runtime's connections: one orders all writes
--   store:commit(statements, until_, effect) -> row lists | nil, why   why: "fenced", "away" or PostgreSQL's message
--   store:enqueue(statements, until_, done)              the same with a callback
--
-- A statement's field `lane` says which lane's state it changes; "*": any. Every commit tells the other balancers
-- with one notification on Store.CHANNEL: "3 7 0", "*" for anything, "lease" when that changes hands.
--
-- commit() joins what waits into one transaction. When its outcome is not known it is repeated until it is:
-- every statement says nothing new the second time (tokens, IS NULL, positions that only rise).
local schema = require("lb.schema")
local Signal = require("lb.signal")
local identity = require("lb.identity")

local Store = {}
Store.__index = Store

Store.CHANNEL = "chromux_journal"

local MOST_ITEMS, MOST_BYTES = 256, 32 * 1024 * 1024
local NEWS_MOST = 7900         -- bytes; PostgreSQL takes less than 8,000
local DIVISION_BY_ZERO = "22012" -- the lease check's way of failing

-- Ours, and not of a past that came back (identity.lua): renewals only ever become more.
local LEASE_CHECK = "SELECT 1 / (epoch = $1 AND renewed >= $2%s)::int AS mine FROM journal_lease FOR SHARE"
local RECENT = 512 -- commits whose times are kept
Store.ROW = 200    -- bytes of an entry beside its texts

function Store.new(append, reader)
  return setmetatable({
    append = append, reader = reader, epoch = 0, queue = {}, running = false,
    commits = 0, recent = {}, last_error = "", trying = false, renewed = 0, suspended = nil, refusals = {},
    on_fenced = function() end, on_restored = function() end, fault = function() end,
  }, Store)
end

function Store:migrate() return schema.migrate(self.append) end

-- ---- the group commit ------------------------------------------------------------------------------------

local function bytes_of(statements)
  local n = 0
  for _, s in ipairs(statements) do
    for i = 2, (s.n or #s - 1) + 1 do
      local v = s[i]
      if type(v) == "string" then n = n + #v elseif type(v) == "table" and v.bytes then n = n + #v.bytes end
    end
  end
  return n
end

-- What is notified of these statements; nil: nothing that others need to know.
local function news_of(all)
  local seen, words, bytes = {}, {}, 0
  for _, s in ipairs(all) do
    if s.lane == "*" then return "*" end
    if s.lane and not seen[s.lane] then
      local word = string.format("%d", s.lane)
      seen[s.lane], words[#words + 1], bytes = true, word, bytes + #word + 1
    end
  end
  if bytes > NEWS_MOST then return "*" end
  return words[1] and table.concat(words, " ")
end

-- {epoch=, renewed=} as PostgreSQL has them now.
function Store:lease_look()
  local rows, why = self.reader:query("SELECT epoch, renewed FROM journal_lease")
  return rows and rows[1], why
end

local function lease_check(self)
  if not self.timeline then return { LEASE_CHECK:format(""), self.epoch, self.renewed } end
  return { LEASE_CHECK:format(" AND " .. identity.TIMELINE .. " = $3"), self.epoch, self.renewed, self.timeline }
end

-- The lease check failed: is it another's now, or has PostgreSQL's past come back? "fenced" | "restored" | "again"
local function why_not_ours(self)
  local is, why = self:lease_look()
  if not is then
    self.last_error = why
    return "again"
  end
  if is.epoch > self.epoch then return "fenced" end
  local reason = identity.moved(self.reader, self.timeline, self.system_id)
  if is.epoch < self.epoch or is.renewed < self.renewed then
    reason = string.format("the lease in it is at %d/%d, it was at %d/%d", is.epoch, is.renewed, self.epoch,
      self.renewed)
  end
  if not reason then return "again" end
  self.suspended = self.suspended or "PostgreSQL was restored from a backup or replaced: " .. reason
  return "restored"
end

-- One transaction of these items. "done"; "failed", message: one statement is at fault; "again": nothing is known.
local function attempt(self, items)
  if self.suspended then return "restored" end
  local all = { lease_check(self) }
  for _, item in ipairs(items) do
    for _, s in ipairs(item.statements) do all[#all + 1] = s end
  end
  local news = news_of(all)
  if news then all[#all + 1] = { "SELECT pg_notify($1, $2)", Store.CHANNEL, news } end
  if self.fault("pg.rolled_back") then all[#all + 1] = { "SELECT pg_terminate_backend(pg_backend_pid())" } end
  local began = now()
  for _, item in ipairs(items) do item.sent = true end
  local rows, message, state, info = self.append:transaction(all)
  for _, item in ipairs(items) do item.sent = false end
  if rows then
    self.commits = self.commits + 1
    self.recent[self.commits % RECENT + 1] = now() - began
    self.last_error = ""
    for _, s in ipairs(all) do self.refusals[s[1]] = nil end
    local at = 1
    for _, item in ipairs(items) do
      local mine = {}
      for i = 1, #item.statements do mine[i] = rows[at + i] end
      at = at + #item.statements
      item.finish(mine)
    end
    return "done"
  end
  self.last_error = message
  if state == DIVISION_BY_ZERO and info and info.index == 1 then return why_not_ours(self) end
  if info and info.unknown then
    for _, item in ipairs(items) do item.unknown = true end
    return "again"
  end
  -- 57P0x: PostgreSQL stops; 53xxx: it is full; 25006: it is read-only; 40xxx, 55P03: it asks to try again.
  if state == "" or state:match("^57P0") or state:match("^53") or state:match("^40")
    or (state:match("^08") and state ~= "08P01") or state == "55P03" or state == "57014"
    or state == "25006" then
    return "again"
  end
  -- 42: the statement itself, as of a user who may not do it any more.
  if state:match("^42") and info and info.index then self.refusals[all[info.index][1]] = message end
  return "failed", message
end

local function drop_late(items)
  local kept = {}
  for _, item in ipairs(items) do
    if not item.unknown and (item.cancelled or (item.until_ and now() >= item.until_)) then
      item.finish(nil, "away")
    else
      kept[#kept + 1] = item
    end
  end
  return kept
end

local function commit_group(self, items)
  local wait = 0.02
  items = drop_late(items)
  while #items > 0 do
    local outcome, message = attempt(self, items)
    if outcome == "done" then return end
    if outcome == "fenced" or outcome == "restored" then
      for _, item in ipairs(items) do item.finish(nil, outcome) end
      if outcome == "fenced" then self.on_fenced() else self.on_restored(self.suspended) end
      return
    end
    if outcome == "failed" then
      if #items == 1 then
        items[1].finish(nil, message)
        return
      end
      for _, item in ipairs(items) do commit_group(self, { item }) end
      return
    end
    self.trying = true
    self.queue = drop_late(self.queue)
    sleep(wait)
    items = drop_late(items)
    wait = math.min(wait * 2, 0.5)
  end
  self.trying = false
end

local function run(self)
  while #self.queue > 0 do
    local items, rest, bytes = {}, {}, 0
    for _, item in ipairs(self.queue) do
      if #rest == 0 and #items < MOST_ITEMS and (#items == 0 or bytes + item.bytes <= MOST_BYTES) then
        items[#items + 1], bytes = item, bytes + item.bytes
      else
        rest[#rest + 1] = item
      end
    end
    self.queue = rest
    commit_group(self, drop_late(items))
    self.trying = false
  end
  self.running = false
end

-- Queues the statements; done(rows) or done(nil, why) is called once, when they are committed or given up, in the
-- order of the calls. until_: unix time after which they are given up unless they may already have been committed;
-- nil: never. Returns a handle for Store.cancel.
function Store:enqueue(statements, until_, done)
  local item = { statements = statements, bytes = bytes_of(statements), until_ = until_, finish = done }
  self.queue[#self.queue + 1] = item
  if not self.running then
    self.running = true
    if not pcall(spawn, run, self) then self.running = false end -- too many tasks: the next one tries again
  end
  return item
end

-- Gives up what was queued. false: too late, it may be committed now or later without our knowing.
function Store.cancel(item)
  if item.sent or item.unknown then return false end
  item.cancelled = true
  return true
end

-- The same for a task that waits: the rows, or nil and why not. effect(rows): what is to be known in the order of the
-- commits, before anything that is committed later is.
function Store:commit(statements, until_, effect)
  local result
  local over = Signal.new()
  self:enqueue(statements, until_, function(rows, why)
    if rows and effect then effect(rows) end
    result = { rows = rows, why = why }
    over:fire()
  end)
  while not result do over:wait() end
  return result.rows, result.why
end

-- PostgreSQL is there, as far as we know.
function Store:healthy()
  return self.append:state() == "ready" and not self.trying
end

-- What keeps writes from being kept, for people; nil: nothing, as far as we know.
function Store:trouble()
  local state, why = self.append:state()
  if state ~= "ready" or self.trying then
    return "PostgreSQL does not answer: " .. (state ~= "ready" and why ~= "" and why or self.last_error)
  end
  local _, message = next(self.refusals)
  if message then return "PostgreSQL refuses what is to be written: " .. message end
  if self.lease_error then return "the lease cannot be renewed: " .. self.lease_error end
end

-- Mean and 99th percentile of the last commits, in milliseconds; 0 without any.
function Store:commit_ms()
  local times, sum = {}, 0
  for i, seconds in ipairs(self.recent) do times[i], sum = seconds, sum + seconds end
  if #times == 0 then
    for _, seconds in pairs(self.recent) do times[#times + 1], sum = seconds, sum + seconds end
  end
  if #times == 0 then return 0, 0 end
  table.sort(times)
  return sum / #times * 1000, times[math.ceil(#times * 0.99)] * 1000
end

-- ---- the lease -------------------------------------------------------------------------------------------

-- Takes the lease when it is free, has run out, or `dead(holder)` knows that its holder is gone; also when it is
-- ours from before. -> {epoch=, clean= (the holder before wrote that nothing is under way), dead= (it is known to have
-- ended), paused= (seconds for which one of the holders before may still be only paused), renewed=, prior= (epoch and
-- renewed as they were)} | nil, holder's row or message. ttl and horizon (how long what a paused holder sent may take)
-- in seconds.
function Store:lease_take(holder, address, ttl, horizon, dead)
  local rows, why = self.reader:query({
    "SELECT holder, address, epoch, closed, until < now() AS over FROM journal_lease", timeout = ttl })
  if not rows then return nil, why end
  local was = rows[1]
  local gone = was.closed or dead(was.holder)
  -- Our own name: we took it, and did not hear of it.
  if not (gone or was.over or was.holder == holder) then return nil, was end
  rows, why = self.reader:query({ [[WITH taken AS (UPDATE journal_lease SET holder = $1, address = $2,
      epoch = epoch + 1, until = now() + $3 * interval '1 second', closed = false, renewed = renewed + 1,
      paused_until = GREATEST(paused_until, CASE WHEN $5 THEN '-infinity' ELSE now() + $6 * interval '1 second' END)
      WHERE epoch = $4 RETURNING epoch, renewed,
      CASE WHEN paused_until > now() THEN extract(epoch FROM paused_until - now()) ELSE 0 END::float8 AS paused)
      SELECT epoch, renewed, paused, pg_notify($7, 'lease')::text AS told FROM taken]], timeout = ttl },
    holder, address, ttl, was.epoch, gone, horizon, Store.CHANNEL)
  if not rows then return nil, why end
  if #rows == 0 then return nil, "another took it" end
  self.epoch, self.renewed = rows[1].epoch, rows[1].renewed
  return { epoch = self.epoch, renewed = self.renewed, prior = { epoch = was.epoch, renewed = self.renewed - 1 },
    clean = was.closed, dead = gone, paused = rows[1].paused }
end

-- true; false: it is another's now, or PostgreSQL's past came back (suspended is set then); nil, message: not known.
function Store:lease_renew(ttl)
  local rows, why = self.reader:query({ [[UPDATE journal_lease SET until = now() + $1 * interval '1 second',
      renewed = renewed + 1 WHERE epoch = $2 AND renewed >= $3 RETURNING renewed]], timeout = ttl },
    ttl, self.epoch, self.renewed)
  if rows and self.fault("lease.renew_lost") then rows, why = nil, "the answer was lost" end
  self.lease_error = not rows and why or nil
  if not rows then return nil, why end
  if #rows == 1 then
    self.renewed = math.max(self.renewed, rows[1].renewed)
    return true
  end
  why = why_not_ours(self)
  if why == "again" then return nil, self.last_error end
  return false
end

-- Says that nothing of this epoch is under way any more.
function Store:lease_release()
  return self.reader:query({ [[WITH given AS (UPDATE journal_lease SET until = now(), closed = true
      WHERE epoch = $1 RETURNING epoch) SELECT pg_notify($2, 'lease')::text AS told FROM given]], timeout = 2 },
    self.epoch, Store.CHANNEL)
end

-- ---- loading ---------------------------------------------------------------------------------------------

local LANES = [[SELECT lane, next, trimmed, open,
    COALESCE((SELECT max(n) FROM journal_entries e WHERE e.lane = l.lane AND verdict = 'applied'), 0) AS floor,
    COALESCE((SELECT min(n) FROM journal_entries e WHERE e.lane = l.lane AND verdict IS NULL), next) AS undecided,
    (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM journal_entries e
      WHERE e.lane = l.lane AND verdict IS NULL) AS waiting
    FROM journal_lanes l WHERE open]]
local COLLECTIONS = "SELECT lane, logical, tenant, database, name, adopted FROM journal_collections WHERE NOT deleted"
local COPIES = [[SELECT lane, instance, physical, incarnation, position, state, reason, doubt,
    extract(epoch FROM changed_at)::bigint AS changed,
    (SELECT extract(epoch FROM now() - created_at)::float8 FROM journal_entries e
      WHERE e.lane = c.lane AND e.n = c.position + 1) AS lacks
    FROM journal_copies c WHERE lane IN (SELECT lane FROM journal_lanes WHERE open)]]
local REBUILDS = [[SELECT id, lane, instance, adopt, tenant, database, temp, temp_name, old, keep, state
    FROM journal_rebuilds WHERE state NOT IN ('done', 'dropped') ORDER BY id]]
local TENANTS, DATABASES = "SELECT name FROM journal_tenants", "SELECT tenant, name FROM journal_databases"

-- The names and statements of one reading. Floors are read before positions: what changes in between makes copies
-- look newer than the floor, never older.
local function read(self, names, statements)
  local rows, why = self.reader:transaction(statements)
  if not rows then return nil, why end
  local out = {}
  for i, name in ipairs(names) do out[name] = rows[i] end
  return out
end

-- Everything but the entries: {journal_id, lanes, collections, copies, tenants, databases, servers, newest, rebuilds};
-- newest: the highest lane, closed ones included: numbers are not used again.
function Store:load()
  return read(self, { "meta", "lanes", "collections", "copies", "tenants", "databases", "servers", "newest",
    "rebuilds" }, {
    { "SELECT journal_id FROM journal_meta" }, { LANES .. " ORDER BY lane" }, { COLLECTIONS }, { COPIES }, { TENANTS },
    { DATABASES }, { "SELECT instance, witness, retired FROM journal_servers" },
    { "SELECT max(lane) AS lane FROM journal_lanes" }, { REBUILDS } })
end

-- The same of some lanes, a list; tenants and databases with lane 0.
function Store:load_lanes(lanes)
  local words = {}
  for i, lane in ipairs(lanes) do words[i] = string.format("%d", lane) end
  local some = "{" .. table.concat(words, ",") .. "}"
  return read(self, { "lanes", "collections", "copies", "tenants", "databases" }, {
    { LANES .. " AND lane = ANY($1::bigint[])", some }, { COLLECTIONS .. " AND lane = ANY($1::bigint[])", some },
    { COPIES .. " AND lane = ANY($1::bigint[])", some }, { TENANTS }, { DATABASES } })
end

-- The lane of a collection that is there: by id (tenant and database nil), or by name. lane | false | nil, why
function Store:lane_of(id_or_name, tenant, database)
  local rows, why
  if tenant then
    rows, why = self.reader:query([[SELECT lane FROM journal_collections
        WHERE name = $1 AND tenant = $2 AND database = $3 AND NOT deleted]], id_or_name, tenant, database)
  else
    rows, why = self.reader:query("SELECT lane FROM journal_collections WHERE logical = $1 AND NOT deleted", id_or_name)
  end
  if not rows then return nil, why end
  return rows[1] and rows[1].lane or false
end

-- What was last stamped into an instance; 0: nothing yet. nil, why
function Store:witness_of(instance)
  local rows, why = self.reader:query("SELECT witness FROM journal_servers WHERE instance = $1", instance)
  if not rows then return nil, why end
  return rows[1] and rows[1].witness or 0
end

local ENTRY = "lane, n, token, action, rest, type, body, resolved, verdict, authority, status, answer_type, answer, "
  .. "extract(epoch FROM now() - created_at)::float8 AS age"

-- PostgreSQL's clock may be another than ours, and either may be set: how old an entry is says one clock alone. Its
-- field `created` is by now().
local function dated(rows, why)
  for _, row in ipairs(rows or {}) do row.created = now() - (row.age or 0) end
  return rows, why
end

-- Entries of a lane from n on, in order; at most `most` of them, and no more after the first megabytes.
function Store:entries(lane, from, most)
  return dated(self.reader:query([[SELECT ]] .. ENTRY .. [[ FROM (
      SELECT *, sum(length(body)) OVER (ORDER BY n) - length(body) AS before FROM journal_entries
      WHERE lane = $1 AND n >= $2 AND n < $2 + $3) e WHERE before < 16000000 ORDER BY n]], lane, from, most))
end

function Store:by_token(token)
  return dated(self.reader:query("SELECT " .. ENTRY .. " FROM journal_entries WHERE token = $1", token))
end

-- What an entry takes in PostgreSQL, about: its texts and a row's overhead.
local SIZE = [[(octet_length(body) + octet_length(rest) + COALESCE(octet_length(resolved), 0)
  + COALESCE(octet_length(answer), 0) + ]] .. Store.ROW .. ")"

-- {bytes=, rows=} of all entries together.
function Store:entries_size()
  local rows, why = self.reader:query("SELECT count(*) AS rows, COALESCE(sum(" .. SIZE
    .. "), 0)::bigint AS bytes FROM journal_entries")
  return rows and rows[1], why
end

-- Bytes on disk, with indexes and what deleted rows have left free.
function Store:table_size()
  local rows, why = self.reader:query("SELECT pg_total_relation_size('journal_entries')::bigint AS bytes")
  return rows and rows[1].bytes, why
end

-- Lanes of deleted collections of which entries or copies are left.
function Store:closed_lanes()
  return self.reader:query([[SELECT lane, COALESCE((SELECT EXTRACT(EPOCH FROM now() - deleted_at)::float8
        FROM journal_collections c WHERE c.lane = l.lane), 0) AS age
      FROM journal_lanes l WHERE NOT open AND (
      EXISTS (SELECT 1 FROM journal_entries e WHERE e.lane = l.lane)
      OR EXISTS (SELECT 1 FROM journal_copies c WHERE c.lane = l.lane))]])
end

-- {{head=, trimmed=}} of a lane, open or not.
function Store:lane_ends(lane)
  return self.reader:query("SELECT next - 1 AS head, trimmed FROM journal_lanes WHERE lane = $1", lane)
end

-- ---- statements ------------------------------------------------------------------------------------------

-- Gives the entry its number, once for each token: no row when the token is known or the lane is closed.
function Store.append_entry(lane, e)
  return { [[WITH l AS (UPDATE journal_lanes SET next = next + 1
        WHERE lane = $1 AND open AND NOT EXISTS (SELECT 1 FROM journal_entries WHERE token = $2)
        RETURNING next - 1 AS n)
      INSERT INTO journal_entries (lane, n, token, action, rest, type, body)
      SELECT $1, l.n, $2, $3, $4, $5, $6 FROM l RETURNING n]],
    lane, e.token, e.action, e.rest, e.type, pg.bytes(e.body) }
end

function Store.resolve_entry(lane, n, resolved)
  return { "UPDATE journal_entries SET resolved = $3 WHERE lane = $1 AND n = $2 AND resolved IS NULL",
    lane, n, pg.bytes(resolved) }
end

-- The verdict of the entries from n to hi, and what the client is told.
function Store.decide(lane, n, hi, verdict, answer, authority, note)
  local kind = (answer.type or ""):gsub("[^\32-\126]", "?") -- text for PostgreSQL, whatever the server said
  return { [[UPDATE journal_entries SET verdict = $4, status = $5, answer_type = $6, answer = $7, authority = $8,
      note = $9, decided_at = now() WHERE lane = $1 AND n BETWEEN $2 AND $3 AND verdict IS NULL]],
    lane, n, hi, verdict, answer.status, kind, pg.bytes(answer.body or ""), authority, note, n = 9,
    lane = lane }
end

function Store.skip_failed(lane, n, note)
  return { [[UPDATE journal_entries SET verdict = 'skipped', note = $3
      WHERE lane = $1 AND n = $2 AND verdict = 'failed']], lane, n, note, lane = lane }
end

-- Makes `to` the copy whose state is what the entry has done, if `from` (nil: none) still is.
function Store.adopt(lane, n, from, to)
  return { [[UPDATE journal_entries SET authority = $4 WHERE lane = $1 AND n = $2
      AND authority IS NOT DISTINCT FROM $3]], lane, n, from, to, n = 4, lane = lane }
end

function Store.position(lane, copy, p)
  return { [[UPDATE journal_copies SET position = $4 WHERE lane = $1 AND instance = $2 AND incarnation = $3
      AND position < $4]], lane, copy.instance, copy.incarnation, p, lane = lane }
end

function Store.copy_new(lane, instance, physical, position, state, reason)
  return { [[INSERT INTO journal_copies (lane, instance, physical, position, state, reason)
      VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (lane, instance) DO NOTHING]],
    lane, instance, physical, position, state or "ready", reason or "", lane = lane }
end

function Store.copy_state(lane, copy, state, reason)
  return { [[UPDATE journal_copies SET state = $4, reason = $5, changed_at = now()
      WHERE lane = $1 AND instance = $2 AND incarnation = $3]], lane, copy.instance, copy.incarnation, state, reason,
    lane = lane }
end

-- The same with a new incarnation: what was committed before it and comes late changes nothing any more.
function Store.copy_turn(lane, copy, state, reason)
  return { [[UPDATE journal_copies SET state = $4, reason = $5, incarnation = incarnation + 1, changed_at = now()
      WHERE lane = $1 AND instance = $2 AND incarnation = $3]], lane, copy.instance, copy.incarnation, state, reason,
    lane = lane }
end

-- All copies of an instance that are in use: it has lost what it had when its newest stamp was this one. Nothing on it
-- is made good again before there is a newer stamp, so a commit that comes late finds none of that.
function Store.copies_lost(instance, reason, witness)
  return { [[UPDATE journal_copies SET state = 'rebuild', reason = $2, changed_at = now()
      WHERE instance = $1 AND state = 'ready'
      AND COALESCE((SELECT witness FROM journal_servers s WHERE s.instance = $1), 0) <= $3]],
    instance, reason, witness, lane = "*" }
end

-- Entries up to hi were sent to the copy without a definite answer: nobody reads from it until it has passed them.
function Store.doubt(lane, copy, hi)
  return { [[UPDATE journal_copies SET doubt = $4 WHERE lane = $1 AND instance = $2 AND incarnation = $3
      AND doubt < $4]], lane, copy.instance, copy.incarnation, hi, lane = lane }
end

-- A holder ended without saying so: what it may have sent. most: entries in a group.
function Store.doubt_all(most)
  return { [[UPDATE journal_copies c SET doubt = LEAST(position + $1, l.next - 1) FROM journal_lanes l
      WHERE l.lane = c.lane AND position < l.next - 1]], most, lane = "*" }
end

function Store.lane_new(lane)
  return { "INSERT INTO journal_lanes (lane) VALUES ($1) ON CONFLICT DO NOTHING", lane, lane = lane }
end

function Store.lane_close(lane)
  return { "UPDATE journal_lanes SET open = false WHERE lane = $1", lane, lane = lane }
end

-- What has no verdict in a lane that closes never gets another.
function Store.reject_rest(lane, answer)
  return { [[UPDATE journal_entries SET verdict = 'rejected', status = $2, answer_type = $3, answer = $4,
      decided_at = now() WHERE lane = $1 AND verdict IS NULL]],
    lane, answer.status, answer.type, pg.bytes(answer.body) }
end

function Store.collection_new(lane, c, adopted)
  return { [[INSERT INTO journal_collections (lane, logical, tenant, database, name, adopted)
      VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (lane) DO NOTHING]],
    lane, c.logical, c.tenant, c.database, c.name, adopted or false, lane = lane }
end

-- A commit whose answer was lost may still come, after later ones: what a later entry may change again is done only
-- while entry n of the catalogue has no verdict, and stands before the verdict in its transaction.
local UNDECIDED = "EXISTS (SELECT 1 FROM journal_entries WHERE lane = 0 AND n = $3 AND verdict IS NULL)"

function Store.collection_renamed(lane, name, n)
  return { "UPDATE journal_collections SET name = $2 WHERE lane = $1 AND " .. UNDECIDED, lane, name, n, lane = lane }
end

function Store.collection_deleted(lane)
  return { "UPDATE journal_collections SET deleted = true, deleted_at = now() WHERE lane = $1 AND NOT deleted", lane,
    lane = lane }
end

function Store.tenant_new(name)
  return { "INSERT INTO journal_tenants VALUES ($1) ON CONFLICT DO NOTHING", name, lane = 0 }
end

function Store.database_new(tenant, name)
  return { "INSERT INTO journal_databases VALUES ($1, $2) ON CONFLICT DO NOTHING", tenant, name, lane = 0 }
end

function Store.database_made(tenant, name, n)
  return { "INSERT INTO journal_databases SELECT $1::text, $2::text WHERE " .. UNDECIDED .. " ON CONFLICT DO NOTHING",
    tenant, name, n, lane = 0 }
end

function Store.database_gone(tenant, name, n)
  return { "DELETE FROM journal_databases WHERE tenant = $1 AND name = $2 AND " .. UNDECIDED,
    tenant, name, n, lane = 0 }
end

-- Deletes entries of the lane behind `from`, up to `upto` at most: no more than some hundreds, and none once their
-- bodies have come to `most` bytes; at least one. Row: n (the lane is trimmed to here), rows, bytes.
function Store.trim(lane, from, upto, most)
  return { [[WITH part AS (
        SELECT n, sum(octet_length(body)) OVER (ORDER BY n) - octet_length(body) AS before FROM journal_entries
        WHERE lane = $1 AND n > $2 AND n <= $3 ORDER BY n LIMIT 500),
      till AS (SELECT COALESCE((SELECT max(n) FROM part WHERE before < $4), $3) AS n),
      gone AS (DELETE FROM journal_entries WHERE lane = $1 AND n > $2 AND n <= (SELECT n FROM till)
        AND verdict IS NOT NULL RETURNING ]] .. SIZE .. [[ AS bytes),
      moved AS (UPDATE journal_lanes SET trimmed = GREATEST(trimmed, (SELECT n FROM till)) WHERE lane = $1)
      SELECT (SELECT n FROM till) AS n, count(*) AS rows, COALESCE(sum(bytes), 0)::bigint AS bytes FROM gone]],
    lane, from, upto, math.floor(most) }
end

function Store.copies_gone(lane) return { "DELETE FROM journal_copies WHERE lane = $1", lane } end

function Store.witness(instance, counter)
  return { [[INSERT INTO journal_servers (instance, witness) VALUES ($1, $2)
      ON CONFLICT (instance) DO UPDATE SET witness = GREATEST(journal_servers.witness, $2)]], instance, counter }
end

function Store.request_answered(id, done, answer)
  return { "UPDATE journal_requests SET answered_at = now(), done = $2, answer = $3 WHERE id = $1", id, done, answer }
end

function Store.event(kind, from, to, reason, success)
  return { [[INSERT INTO failover_events (event_type, from_instance, to_instance, reason, success)
      VALUES ($1, $2, $3, $4, $5)]], kind, from, to, reason, success ~= false, n = 5 }
end

return Store
