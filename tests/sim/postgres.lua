-- postgres.lua: PostgreSQL as lua/lb/store.lua sees it: the statements of the journal, known by their text, in
-- transactions that happen whole or not at all, over connections that may be lost with any outcome.
--
-- A statement that is not known is an error at once: whoever adds one adds it here.
local World = require("world")
local json = require("lb.runtime").json

local Postgres = {}
Postgres.__index = Postgres

function Postgres.new(world, faults)
  return setmetatable({
    world = world, faults = faults, rng = world.rng, up = true, waiting = {},
    connections = {},
    db = { meta = {}, lease = {}, lanes = {}, entries = {}, tokens = {}, copies = {}, collections = {}, tenants = {},
      databases = {}, servers = {}, events = {}, steps = {}, rebuilds = {}, calls = {}, sync = {} },
    watch = {}, -- functions that are told of what was committed: watch.append(process, entry), ...
  }, Postgres)
end

-- ---- statements ------------------------------------------------------------------------------------------

local SQL = {}

local function squeeze(text) return (text:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", "")) end

local function define(text, fn) SQL[squeeze(text)] = fn end

-- A change that can be taken back.
local function set(tx, row, field, value)
  local was = row[field]
  table.insert(tx.undo, function() row[field] = was end)
  row[field] = value
end

local function tell(tx, ...) table.insert(tx.told, { ... }) end

local function sorted(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end

local function copy_of(row)
  local out = {}
  for k, v in pairs(row) do out[k] = v end
  return out
end

local function rows_where(t, fn)
  local out = {}
  for _, k in ipairs(sorted(t)) do
    if fn(t[k]) then out[#out + 1] = copy_of(t[k]) end
  end
  out.affected = #out
  return out
end

local function done(n) return { affected = n } end
local function all() return true end
local function fail(state, text) error({ state = state, text = text }, 0) end
local function copy_key(lane, instance) return string.format("%08d %s", lane, instance) end

-- The schema.
define("SELECT pg_advisory_xact_lock(7021951)", function() return done(1) end)
define("SELECT 1 AS there FROM chromux_schema WHERE step = $1", function(db, _, step)
  return db.steps[step] and { { there = 1 } } or {}
end)
define("INSERT INTO chromux_schema (step) VALUES ($1)", function(db, tx, step)
  if db.steps[step] then fail("23505", "duplicate key") end
  set(tx, db.steps, step, true)
  return done(1)
end)
define("SELECT max(step) AS newest FROM chromux_schema", function(db) return { { newest = #db.steps } } end)
define("INSERT INTO journal_meta (journal_id) VALUES (md5(random()::text || clock_timestamp()::text))",
  function(db, tx)
    set(tx, db.meta, 1, { journal_id = "journal-of-the-simulation", system_id = "", timeline = "", suspended = "" })
    return done(1)
  end)
define("INSERT INTO journal_lease DEFAULT VALUES", function(db, tx)
  set(tx, db.lease, 1, { holder = "", address = "", epoch = 0, renewed = 0, until_ = -math.huge, closed = true,
    paused_until = -math.huge })
  return done(1)
end)
define("INSERT INTO journal_lanes (lane) VALUES (0)", function(db, tx)
  set(tx, db.lanes, 0, { lane = 0, next = 1, trimmed = 0, open = true })
  set(tx, db.entries, 0, {})
  return done(1)
end)
define("INSERT INTO journal_tenants VALUES ('default_tenant')", function(db, tx)
  set(tx, db.tenants, "default_tenant", { name = "default_tenant" })
  return done(1)
end)
define("INSERT INTO journal_databases VALUES ('default_tenant', 'default_database')", function(db, tx)
  set(tx, db.databases, "default_tenant\0default_database", { tenant = "default_tenant", name = "default_database" })
  return done(1)
end)

-- Which server and which past of it this is.
local TIMELINE = "00000001"
define("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS v", function() return { { v = TIMELINE } } end)
define("SELECT system_identifier::text AS v FROM pg_control_system()", function() return { { v = "7" } } end)
define("SELECT system_id, timeline, suspended FROM journal_meta", function(db) return { copy_of(db.meta[1]) } end)
define("UPDATE journal_meta SET system_id = $1, timeline = $2", function(db, tx, system_id, timeline)
  set(tx, db.meta[1], "system_id", system_id)
  set(tx, db.meta[1], "timeline", timeline)
  return done(1)
end)
define([[WITH stopped AS (UPDATE journal_meta SET suspended = $1 WHERE suspended = ''
    AND EXISTS (SELECT 1 FROM journal_lease WHERE epoch <= $2) RETURNING 1)
    INSERT INTO failover_events (event_type, reason, success) SELECT 'postgres_restored', $1, false FROM stopped]],
  function(db, tx, reason, epoch)
    if db.meta[1].suspended ~= "" or db.lease[1].epoch > epoch then return done(0) end
    set(tx, db.meta[1], "suspended", reason)
    set(tx, db.events, #db.events + 1, { kind = "postgres_restored", reason = reason })
    return done(1)
  end)
define("SELECT suspended FROM journal_meta", function(db) return { { suspended = db.meta[1].suspended } } end)
define("SELECT * FROM journal_requests WHERE answered_at IS NULL ORDER BY id LIMIT 100", function() return {} end)

-- The lease.
define([[SELECT 1 / (epoch = $1 AND renewed >= $2 AND substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) = $3)::int
    AS mine FROM journal_lease FOR SHARE]], function(db, tx, epoch, renewed, timeline)
  local l = db.lease[1]
  if l.epoch ~= epoch or l.renewed < renewed or timeline ~= TIMELINE then fail("22012", "division by zero") end
  tx.checked = true
  return { { mine = 1 } }
end)
define("SELECT epoch, renewed FROM journal_lease", function(db)
  return { { epoch = db.lease[1].epoch, renewed = db.lease[1].renewed } }
end)
define("SELECT holder, address, epoch, closed, until < now() AS over FROM journal_lease", function(db, tx)
  local l = db.lease[1]
  return { { holder = l.holder, address = l.address, epoch = l.epoch, closed = l.closed, over = l.until_ < tx.now } }
end)
define([[WITH taken AS (UPDATE journal_lease SET holder = $1, address = $2,
    epoch = epoch + 1, until = now() + $3 * interval '1 second', closed = false, renewed = renewed + 1,
    paused_until = GREATEST(paused_until, CASE WHEN $5 THEN '-infinity' ELSE now() + $6 * interval '1 second' END)
    WHERE epoch = $4 RETURNING epoch, renewed,
    CASE WHEN paused_until > now() THEN extract(epoch FROM paused_until - now()) ELSE 0 END::float8 AS paused)
    SELECT epoch, renewed, paused, pg_notify($7, 'lease')::text AS told FROM taken]],
  function(db, tx, holder, address, ttl, epoch, gone, horizon, channel)
    local l = db.lease[1]
    if l.epoch ~= epoch then return {} end
    local paused = math.max(l.paused_until, gone and -math.huge or tx.now + horizon)
    set(tx, db.lease, 1, { holder = holder, address = address, epoch = epoch + 1, until_ = tx.now + ttl,
      closed = false, paused_until = paused, renewed = l.renewed + 1 })
    tell(tx, "lease", tx.process, epoch + 1)
    table.insert(tx.news, { channel, "lease" })
    return { { epoch = epoch + 1, renewed = l.renewed + 1, paused = math.max(0, paused - tx.now), told = "" } }
  end)
define([[UPDATE journal_lease SET until = now() + $1 * interval '1 second', renewed = renewed + 1
    WHERE epoch = $2 AND renewed >= $3 RETURNING renewed]], function(db, tx, ttl, epoch, renewed)
  local l = db.lease[1]
  if l.epoch ~= epoch or l.renewed < renewed then return {} end
  set(tx, l, "until_", tx.now + ttl)
  set(tx, l, "renewed", l.renewed + 1)
  return { { renewed = l.renewed } }
end)
define([[WITH given AS (UPDATE journal_lease SET until = now(), closed = true
    WHERE epoch = $1 RETURNING epoch) SELECT pg_notify($2, 'lease')::text AS told FROM given]],
  function(db, tx, epoch, channel)
    local l = db.lease[1]
    if l.epoch ~= epoch then return {} end
    set(tx, l, "until_", tx.now)
    set(tx, l, "closed", true)
    table.insert(tx.news, { channel, "lease" })
    return { { told = "" } }
  end)
define("SELECT pg_notify($1, $2)", function(_, tx, channel, payload)
  table.insert(tx.news, { channel, payload })
  return { {} }
end)

-- Loading.
define("SELECT journal_id FROM journal_meta", function(db) return { copy_of(db.meta[1]) } end)
local function among(list)
  local lanes = {}
  for word in list:gmatch("%d+") do lanes[tonumber(word)] = true end
  return lanes
end

local LANES = [[SELECT lane, next, trimmed, open,
    COALESCE((SELECT max(n) FROM journal_entries e WHERE e.lane = l.lane AND verdict = 'applied'), 0) AS floor,
    COALESCE((SELECT min(n) FROM journal_entries e WHERE e.lane = l.lane AND verdict IS NULL), next) AS undecided,
    (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM journal_entries e
      WHERE e.lane = l.lane AND verdict IS NULL) AS waiting
    FROM journal_lanes l WHERE open]]
local function open_lanes(db, some)
  local rows = rows_where(db.lanes, function(l) return l.open and (not some or some[l.lane]) end)
  for _, r in ipairs(rows) do
    r.floor, r.undecided = 0, r.next
    for _, n in ipairs(sorted(db.entries[r.lane])) do
      local e = db.entries[r.lane][n]
      if e.verdict == "applied" then r.floor = n end
      if not e.verdict then r.undecided = math.min(r.undecided, n) end
    end
  end
  return rows
end
local SOME = " AND lane = ANY($1::bigint[])"
define(LANES .. " ORDER BY lane", function(db) return open_lanes(db) end)
define(LANES .. SOME, function(db, _, list) return open_lanes(db, among(list)) end)
define("SELECT max(lane) AS lane FROM journal_lanes", function(db)
  local lanes = sorted(db.lanes)
  return { { lane = lanes[#lanes] } }
end)
local COLLECTIONS = "SELECT lane, logical, tenant, database, name, adopted FROM journal_collections WHERE NOT deleted"
define(COLLECTIONS, function(db) return rows_where(db.collections, function(c) return not c.deleted end) end)
define(COLLECTIONS .. SOME, function(db, _, list)
  local some = among(list)
  return rows_where(db.collections, function(c) return not c.deleted and some[c.lane] end)
end)
local COPIES = [[SELECT lane, instance, physical, incarnation, position, state, reason, doubt,
    extract(epoch FROM changed_at)::bigint AS changed,
    (SELECT extract(epoch FROM now() - created_at)::float8 FROM journal_entries e
      WHERE e.lane = c.lane AND e.n = c.position + 1) AS lacks
    FROM journal_copies c WHERE lane IN (SELECT lane FROM journal_lanes WHERE open)]]
define(COPIES, function(db) return rows_where(db.copies, function(c) return db.lanes[c.lane].open end) end)
define(COPIES .. SOME, function(db, _, list)
  local some = among(list)
  return rows_where(db.copies, function(c) return db.lanes[c.lane].open and some[c.lane] end)
end)
define("SELECT lane FROM journal_collections WHERE name = $1 AND tenant = $2 AND database = $3 AND NOT deleted",
  function(db, _, name, tenant, database)
    return rows_where(db.collections, function(c)
      return not c.deleted and c.name == name and c.tenant == tenant and c.database == database
    end)
  end)
define("SELECT lane FROM journal_collections WHERE logical = $1 AND NOT deleted", function(db, _, logical)
  return rows_where(db.collections, function(c) return not c.deleted and c.logical == logical end)
end)
define("SELECT witness FROM journal_servers WHERE instance = $1", function(db, _, instance)
  return { db.servers[instance] and copy_of(db.servers[instance]) }
end)
define("SELECT name FROM journal_tenants", function(db) return rows_where(db.tenants, all) end)
define("SELECT tenant, name FROM journal_databases", function(db) return rows_where(db.databases, all) end)
define("SELECT instance, witness, retired FROM journal_servers", function(db) return rows_where(db.servers, all) end)

local ENTRY = "lane, n, token, action, rest, type, body, resolved, verdict, authority, status, answer_type, answer, "
  .. "extract(epoch FROM now() - created_at)::float8 AS age"
define("SELECT " .. ENTRY .. [[ FROM (
    SELECT *, sum(length(body)) OVER (ORDER BY n) - length(body) AS before FROM journal_entries
    WHERE lane = $1 AND n >= $2 AND n < $2 + $3) e WHERE before < 16000000 ORDER BY n]],
  function(db, _, lane, from, most)
    return rows_where(db.entries[lane] or {}, function(e) return e.n >= from and e.n < from + most end)
  end)
define("SELECT " .. ENTRY .. " FROM journal_entries WHERE token = $1", function(db, _, token)
  return { db.tokens[token] and copy_of(db.tokens[token]) }
end)
define("SELECT physical FROM journal_copies WHERE lane = $1 AND instance = $2 AND physical <> ''",
  function(db, _, lane, instance)
    local c = db.copies[copy_key(lane, instance)]
    return c and c.physical ~= "" and { { physical = c.physical } } or {}
  end)

define([[SELECT rest FROM journal_entries WHERE lane = 0 AND action = 'create_collection'
    AND (verdict IN ('failed', 'skipped') OR (verdict = 'rejected' AND status <> 409)) AND strpos(rest, $1) > 0
    ORDER BY n DESC LIMIT 64]], function(db, _, name)
  local out = {}
  for n = db.lanes[0].next - 1, 1, -1 do
    local e = db.entries[0][n]
    if e and e.action == "create_collection" and e.rest:find(name, 1, true) and #out < 64
      and (e.verdict == "failed" or e.verdict == "skipped" or (e.verdict == "rejected" and e.status ~= 409)) then
      out[#out + 1] = { rest = e.rest }
    end
  end
  return out
end)

-- Entries.
define([[WITH l AS (UPDATE journal_lanes SET next = next + 1
      WHERE lane = $1 AND open AND NOT EXISTS (SELECT 1 FROM journal_entries WHERE token = $2)
      RETURNING next - 1 AS n)
    INSERT INTO journal_entries (lane, n, token, action, rest, type, body)
    SELECT $1, l.n, $2, $3, $4, $5, $6 FROM l RETURNING n]],
  function(db, tx, lane, token, action, rest, type_, body)
    local l = db.lanes[lane]
    if not l or not l.open or db.tokens[token] then return {} end
    local e = { lane = lane, n = l.next, token = token, action = action, rest = rest, type = type_, body = body }
    set(tx, l, "next", l.next + 1)
    set(tx, db.entries[lane], e.n, e)
    set(tx, db.tokens, token, e)
    tell(tx, "append", tx.process, e)
    return { { n = e.n } }
  end)
define("UPDATE journal_entries SET resolved = $3 WHERE lane = $1 AND n = $2 AND resolved IS NULL",
  function(db, tx, lane, n, resolved)
    local e = db.entries[lane][n]
    if not e or e.resolved then return done(0) end
    set(tx, e, "resolved", resolved)
    return done(1)
  end)
define([[UPDATE journal_entries SET verdict = $4, status = $5, answer_type = $6, answer = $7, authority = $8,
    note = $9, decided_at = now() WHERE lane = $1 AND n BETWEEN $2 AND $3 AND verdict IS NULL]],
  function(db, tx, lane, lo, hi, verdict, status, answer_type, answer, authority)
    local count = 0
    for n = lo, hi do
      local e = db.entries[lane][n]
      if e and not e.verdict then
        count = count + 1
        for name, v in pairs { verdict = verdict, status = status, answer_type = answer_type, answer = answer } do
          set(tx, e, name, v)
        end
        set(tx, e, "authority", authority)
        tell(tx, "verdict", tx.process, e)
      end
    end
    return done(count)
  end)
define("UPDATE journal_entries SET rest = $3 WHERE lane = $1 AND n = $2", function(db, tx, lane, n, rest)
  local e = db.entries[lane][n]
  if not e then return done(0) end
  set(tx, e, "rest", rest)
  return done(1)
end)

define([[UPDATE journal_entries SET authority = $4 WHERE lane = $1 AND n = $2
    AND authority IS NOT DISTINCT FROM $3]], function(db, tx, lane, n, from, to)
  local e = db.entries[lane][n]
  if not e or e.authority ~= from then return done(0) end
  set(tx, e, "authority", to)
  return done(1)
end)

-- Retention. Nothing is trimmed here: the checks need every entry.
local SIZE = [[(octet_length(body) + octet_length(rest) + COALESCE(octet_length(resolved), 0)
  + COALESCE(octet_length(answer), 0) + 200)]]
define("SELECT count(*) AS rows, COALESCE(sum(" .. SIZE .. "), 0)::bigint AS bytes FROM journal_entries",
  function() return { { rows = 0, bytes = 0 } } end)
define("SELECT pg_total_relation_size('journal_entries')::bigint AS bytes", function() return { { bytes = 0 } } end)
define([[SELECT lane, COALESCE((SELECT EXTRACT(EPOCH FROM now() - deleted_at)::float8
    FROM journal_collections c WHERE c.lane = l.lane), 0) AS age
    FROM journal_lanes l WHERE NOT open AND (
    EXISTS (SELECT 1 FROM journal_entries e WHERE e.lane = l.lane)
    OR EXISTS (SELECT 1 FROM journal_copies c WHERE c.lane = l.lane))]], function() return {} end)
define("SELECT next - 1 AS head, trimmed FROM journal_lanes WHERE lane = $1", function() return {} end)

-- Copies.
define([[UPDATE journal_copies SET position = $4 WHERE lane = $1 AND instance = $2 AND incarnation = $3
    AND position < $4]], function(db, tx, lane, instance, incarnation, p)
  local c = db.copies[copy_key(lane, instance)]
  if not c or c.incarnation ~= incarnation or c.position >= p then return done(0) end
  set(tx, c, "position", p)
  tell(tx, "position", tx.process, copy_of(c))
  return done(1)
end)
define([[INSERT INTO journal_copies (lane, instance, physical, position, state, reason)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (lane, instance) DO NOTHING]],
  function(db, tx, lane, instance, physical, position, state, reason)
    local key = copy_key(lane, instance)
    if db.copies[key] then return done(0) end
    set(tx, db.copies, key, { lane = lane, instance = instance, physical = physical, incarnation = 1,
      position = position, state = state, reason = reason, doubt = 0 })
    return done(1)
  end)
define([[UPDATE journal_copies SET state = $4, reason = $5, changed_at = now()
    WHERE lane = $1 AND instance = $2 AND incarnation = $3]],
  function(db, tx, lane, instance, incarnation, state, reason)
    local c = db.copies[copy_key(lane, instance)]
    if not c or c.incarnation ~= incarnation then return done(0) end
    set(tx, c, "state", state)
    set(tx, c, "reason", reason)
    return done(1)
  end)
define([[UPDATE journal_copies SET state = $4, reason = $5, incarnation = incarnation + 1, changed_at = now()
    WHERE lane = $1 AND instance = $2 AND incarnation = $3]],
  function(db, tx, lane, instance, incarnation, state, reason)
    local c = db.copies[copy_key(lane, instance)]
    if not c or c.incarnation ~= incarnation then return done(0) end
    for name, v in pairs { state = state, reason = reason, incarnation = incarnation + 1 } do set(tx, c, name, v) end
    return done(1)
  end)
define([[UPDATE journal_copies SET state = 'rebuild', reason = $2, changed_at = now()
    WHERE instance = $1 AND state = 'ready'
    AND COALESCE((SELECT witness FROM journal_servers s WHERE s.instance = $1), 0) <= $3]],
  function(db, tx, instance, reason, witness)
  local count = 0
  if db.servers[instance] and db.servers[instance].witness > witness then return done(0) end
  for _, c in pairs(db.copies) do
    if c.instance == instance and c.state == "ready" then
      set(tx, c, "state", "rebuild")
      set(tx, c, "reason", reason)
      count = count + 1
    end
  end
  return done(count)
end)

define([[UPDATE journal_copies SET doubt = $4 WHERE lane = $1 AND instance = $2 AND incarnation = $3
    AND doubt < $4]], function(db, tx, lane, instance, incarnation, hi)
  local c = db.copies[copy_key(lane, instance)]
  if not c or c.incarnation ~= incarnation or c.doubt >= hi then return done(0) end
  set(tx, c, "doubt", hi)
  return done(1)
end)
define([[UPDATE journal_copies c SET doubt = LEAST(position + $1, l.next - 1) FROM journal_lanes l
    WHERE l.lane = c.lane AND position < l.next - 1]], function(db, tx, most)
  for _, c in pairs(db.copies) do
    local head = db.lanes[c.lane].next - 1
    if c.position < head then set(tx, c, "doubt", math.min(c.position + most, head)) end
  end
  return done(1)
end)
define([[UPDATE journal_entries SET verdict = 'rejected', status = $2, answer_type = $3, answer = $4,
    decided_at = now() WHERE lane = $1 AND verdict IS NULL]], function(db, tx, lane, status, answer_type, answer)
  for _, n in ipairs(sorted(db.entries[lane])) do
    local e = db.entries[lane][n]
    if not e.verdict then
      for name, v in pairs { verdict = "rejected", status = status, answer_type = answer_type, answer = answer } do
        set(tx, e, name, v)
      end
      tell(tx, "verdict", tx.process, e)
    end
  end
  return done(1)
end)

-- The catalogue.
define("INSERT INTO journal_lanes (lane) VALUES ($1) ON CONFLICT DO NOTHING", function(db, tx, lane)
  if db.lanes[lane] then return done(0) end
  set(tx, db.lanes, lane, { lane = lane, next = 1, trimmed = 0, open = true })
  set(tx, db.entries, lane, {})
  return done(1)
end)
define("UPDATE journal_lanes SET open = false WHERE lane = $1", function(db, tx, lane)
  set(tx, db.lanes[lane], "open", false)
  return done(1)
end)
local function name_taken(db, c)
  for lane, o in pairs(db.collections) do
    if lane ~= c.lane and not o.deleted and o.tenant == c.tenant and o.database == c.database and o.name == c.name then
      return true
    end
  end
end
define([[INSERT INTO journal_collections (lane, logical, tenant, database, name, adopted)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (lane) DO NOTHING]],
  function(db, tx, lane, logical, tenant, database, name, adopted)
    if db.collections[lane] then return done(0) end
    local c = { lane = lane, logical = logical, tenant = tenant, database = database, name = name, adopted = adopted,
      deleted = false }
    if name_taken(db, c) then fail("23505", "duplicate key value violates journal_collections_name") end
    for _, o in pairs(db.collections) do
      if o.logical == logical then fail("23505", "duplicate key value violates journal_collections_logical_key") end
    end
    set(tx, db.collections, lane, c)
    return done(1)
  end)
local UNDECIDED = "EXISTS (SELECT 1 FROM journal_entries WHERE lane = 0 AND n = $3 AND verdict IS NULL)"
local function undecided(db, n) return db.entries[0][n] ~= nil and not db.entries[0][n].verdict end
define("UPDATE journal_collections SET name = $2 WHERE lane = $1 AND " .. UNDECIDED, function(db, tx, lane, name, n)
  if not undecided(db, n) then return done(0) end
  local c = db.collections[lane]
  set(tx, c, "name", name)
  if not c.deleted and name_taken(db, c) then
    fail("23505", "duplicate key value violates journal_collections_name")
  end
  return done(1)
end)
define("UPDATE journal_collections SET deleted = true, deleted_at = now() WHERE lane = $1 AND NOT deleted",
  function(db, tx, lane)
    local c = db.collections[lane]
    if c.deleted then return done(0) end
    set(tx, c, "deleted", true)
    return done(1)
  end)
define("INSERT INTO journal_tenants VALUES ($1) ON CONFLICT DO NOTHING", function(db, tx, name)
  if db.tenants[name] then return done(0) end
  set(tx, db.tenants, name, { name = name })
  return done(1)
end)
define("INSERT INTO journal_databases VALUES ($1, $2) ON CONFLICT DO NOTHING", function(db, tx, tenant, name)
  if db.databases[tenant .. "\0" .. name] then return done(0) end
  set(tx, db.databases, tenant .. "\0" .. name, { tenant = tenant, name = name })
  return done(1)
end)
define("INSERT INTO journal_databases SELECT $1::text, $2::text WHERE " .. UNDECIDED .. " ON CONFLICT DO NOTHING",
  function(db, tx, tenant, name, n)
    if db.databases[tenant .. "\0" .. name] or not undecided(db, n) then return done(0) end
    set(tx, db.databases, tenant .. "\0" .. name, { tenant = tenant, name = name })
    return done(1)
  end)
define("DELETE FROM journal_databases WHERE tenant = $1 AND name = $2 AND " .. UNDECIDED, function(db, tx, tenant, name,
    n)
  if not undecided(db, n) then return done(0) end
  set(tx, db.databases, tenant .. "\0" .. name, nil)
  return done(1)
end)

-- Servers and events.
define([[INSERT INTO journal_servers (instance, witness) VALUES ($1, $2)
    ON CONFLICT (instance) DO UPDATE SET witness = GREATEST(journal_servers.witness, $2)]],
  function(db, tx, instance, counter)
    local s = db.servers[instance]
    if s then
      set(tx, s, "witness", math.max(s.witness, counter))
    else
      set(tx, db.servers, instance, { instance = instance, witness = counter, retired = false })
    end
    return done(1)
  end)
define([[INSERT INTO failover_events (event_type, from_instance, to_instance, reason, success)
    VALUES ($1, $2, $3, $4, $5)]], function(db, tx, kind, from, _, reason)
  set(tx, db.events, #db.events + 1, { kind = kind, from = from, reason = reason })
  return done(1)
end)

-- Rebuilds, and what sync asks for.
define([[INSERT INTO journal_rebuilds (token, lane, instance, source, adopt, tenant, database, temp, temp_name, p0,
    state, keep) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (token) DO UPDATE SET token = EXCLUDED.token RETURNING id]],
  function(db, tx, token, lane, instance, source, adopt, tenant, database, temp, temp_name, p0, state, keep)
    for id, r in pairs(db.rebuilds) do
      if r.token == token then return { { id = id } } end
    end
    local id = #db.rebuilds + 1
    set(tx, db.rebuilds, id, { id = id, token = token, lane = lane, instance = instance, source = source, adopt = adopt,
      tenant = tenant, database = database, temp = temp, temp_name = temp_name, p0 = p0, state = state, keep = keep,
      old = "",
      why = "", created = tx.now })
    return { { id = id } }
  end)
local REBUILDS = [[SELECT id, lane, instance, adopt, tenant, database, temp, temp_name, old, keep, state
    FROM journal_rebuilds WHERE state NOT IN ('done', 'dropped') ORDER BY id]]
define(REBUILDS, function(db)
  return rows_where(db.rebuilds, function(r) return r.state ~= "done" and r.state ~= "dropped" end)
end)
define([[UPDATE journal_rebuilds SET state = 'copying', temp = $2, changed_at = now()
    WHERE id = $1 AND state = 'making']],
  function(db, tx, id, temp)
    local r = db.rebuilds[id]
    if r.state ~= "making" then return done(0) end
    set(tx, r, "state", "copying")
    set(tx, r, "temp", temp)
    return done(1)
  end)
local function give_up(tx, r, why)
  if r.state ~= "making" and r.state ~= "copying" then return 0 end
  set(tx, r, "state", r.adopt and "dropped" or "dropping")
  set(tx, r, "why", why)
  return 1
end
define([[UPDATE journal_rebuilds SET state = CASE WHEN adopt THEN 'dropped' ELSE 'dropping' END, why = $2,
    changed_at = now() WHERE id = $1 AND state IN ('making', 'copying')]], function(db, tx, id, why)
  return done(give_up(tx, db.rebuilds[id], why))
end)
define([[UPDATE journal_rebuilds SET state = CASE WHEN adopt THEN 'dropped' ELSE 'dropping' END,
    why = $2, changed_at = now() WHERE state IN ('making', 'copying') AND id <= $1]],
  function(db, tx, upto, why)
    for id, r in ipairs(db.rebuilds) do
      if id <= upto then give_up(tx, r, why) end
    end
    return done(1)
  end)
define("SELECT id FROM journal_rebuilds WHERE id = $1 FOR UPDATE", function(_, _, id) return { { id = id } } end)
Postgres.SWAP = [[WITH r AS (UPDATE journal_rebuilds b SET state = CASE WHEN adopt THEN 'done' ELSE 'swapped' END,
      position = $3, hold_ms = $4, old = $5, changed_at = now()
      WHERE id = $1 AND state = 'copying' AND EXISTS (SELECT 1 FROM journal_lanes l WHERE l.lane = b.lane AND open)
      AND EXISTS (SELECT 1 FROM journal_copies c WHERE c.lane = b.lane AND c.instance = b.instance
        AND c.incarnation = $2)
      AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.rebuild = b.id AND (j.settle_until > now()
        OR EXISTS (SELECT 1 FROM sync_tasks t WHERE t.job = j.id AND t.task_status IN ('pending', 'processing'))))
      RETURNING lane, instance, temp)
    UPDATE journal_copies c SET physical = r.temp, incarnation = c.incarnation + 1, position = $3, state = 'ready',
      reason = $6, doubt = 0, changed_at = now() FROM r WHERE c.lane = r.lane AND c.instance = r.instance]]
-- blind: does not see the tasks of sync.
function Postgres.swap(blind)
  return function(db, tx, id, incarnation, position, hold_ms, old, reason)
    local r = db.rebuilds[id]
    local c = db.copies[copy_key(r.lane, r.instance)]
    if r.state ~= "copying" or not db.lanes[r.lane].open or c.incarnation ~= incarnation then return done(0) end
    local work = db.sync[id]
    if not blind and work and (work.tasks > 0 or work.settle_until > tx.now) then return done(0) end
    for name, v in pairs { state = r.adopt and "done" or "swapped", position = position, hold_ms = hold_ms,
      old = old } do
      set(tx, r, name, v)
    end
    for name, v in pairs { physical = r.temp, incarnation = incarnation + 1, position = position, state = "ready",
      reason = reason, doubt = 0 } do
      set(tx, c, name, v)
    end
    tell(tx, "swap", tx.process, r, copy_of(c))
    return done(1)
  end
end
define(Postgres.SWAP, Postgres.swap())
define([[SELECT id FROM journal_rebuilds WHERE instance = $1 AND state NOT IN ('making', 'copying')
    AND (temp_name = $2 OR 'chromux-tomb-rebuild-' || id = $2 OR (temp = $3 AND NOT adopt) OR (old = $3 AND NOT keep))
    UNION ALL SELECT c.lane FROM journal_copies c JOIN journal_lanes l ON l.lane = c.lane
    WHERE c.instance = $1 AND c.physical = $3 AND NOT l.open LIMIT 1]], function(db, _, instance, name, id)
  for _, r in pairs(db.rebuilds) do
    if r.instance == instance and r.state ~= "making" and r.state ~= "copying" and (r.temp_name == name
      or "chromux-tomb-rebuild-" .. r.id == name or (r.temp == id and not r.adopt) or (r.old == id and not r.keep)) then
      return { { id = r.id } }
    end
  end
  for _, c in pairs(db.copies) do
    if c.instance == instance and c.physical == id and not db.lanes[c.lane].open then return { { id = c.lane } } end
  end
  return {}
end)
define("SELECT state, position, hold_ms, why FROM journal_rebuilds WHERE id = $1", function(db, _, id)
  return { db.rebuilds[id] and copy_of(db.rebuilds[id]) }
end)
define("UPDATE journal_rebuilds SET state = $2, changed_at = now() WHERE id = $1 AND state = $3",
  function(db, tx, id, state, was)
    if db.rebuilds[id].state ~= was then return done(0) end
    set(tx, db.rebuilds[id], "state", state)
    return done(1)
  end)
define([[SELECT id FROM journal_rebuilds WHERE state = 'copying' AND created_at < now() - interval '5 minutes'
    AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.rebuild = journal_rebuilds.id
    AND j.state NOT IN ('done', 'failed', 'cancelled'))]], function(db, tx)
  return rows_where(db.rebuilds, function(r)
    return r.state == "copying" and r.created < tx.now - 15 and not (db.wanted and db.wanted(r.id))
  end)
end)
define("DELETE FROM journal_rebuilds WHERE state IN ('done', 'dropped') AND changed_at < now() - interval '30 days'",
  function() return done(0) end)
define([[SELECT c.lane, c.physical FROM journal_copies c
    JOIN journal_lanes l ON l.lane = c.lane WHERE c.instance = $1 AND c.physical <> '' AND NOT l.open]],
  function(db, _, instance)
    return rows_where(db.copies, function(c)
      return c.instance == instance and c.physical ~= "" and not db.lanes[c.lane].open
    end)
  end)
define([[UPDATE journal_copies SET state = 'ready', reason = '', position = $3, doubt = 0,
    incarnation = incarnation + 1, changed_at = now() WHERE lane = 0 AND instance = $1 AND incarnation = $2
    AND state = 'rebuild']], function(db, tx, instance, incarnation, position)
  local c = db.copies[copy_key(0, instance)]
  if c.incarnation ~= incarnation or c.state ~= "rebuild" then return done(0) end
  for name, v in pairs { state = "ready", reason = "", position = position, doubt = 0,
    incarnation = incarnation + 1 } do
    set(tx, c, name, v)
  end
  tell(tx, "position", tx.process, copy_of(c))
  return done(1)
end)
define([[SELECT id, kind, lane, instance, arguments,
    extract(epoch FROM until - now())::float8 AS left FROM sync_calls WHERE answered_at IS NULL ORDER BY id LIMIT 500]],
  function(db, tx)
    local rows = rows_where(db.calls, function(c) return not c.answered end)
    for _, row in ipairs(rows) do row.left = row.until_ - tx.now end
    return rows
  end)
define("UPDATE sync_calls SET answered_at = now(), done = $2, answer = $3 WHERE id = $1 AND answered_at IS NULL",
  function(db, tx, id, is, answer)
    local c = db.calls[id]
    if c.answered then return done(0) end
    set(tx, c, "answered", true)
    set(tx, c, "done", is)
    set(tx, c, "answer", answer)
    return done(1)
  end)
define("DELETE FROM sync_calls WHERE created_at < now() - interval '1 hour'", function() return done(0) end)

-- What people are told of: nobody tells it here.
define("INSERT INTO notify_lease DEFAULT VALUES", function() return done(1) end)
define("INSERT INTO sync_lease DEFAULT VALUES", function() return done(1) end)
define([[WITH made AS (INSERT INTO notify_events (uid, kind, key, urgency, title, text, fields, source, raised_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9)) ON CONFLICT (uid) DO NOTHING RETURNING uid)
    SELECT pg_notify('chromux_notify', uid)::text AS told FROM made]], function() return done(1) end)

-- ---- transactions ----------------------------------------------------------------------------------------

local function known(text)
  local sql = squeeze(text)
  local fn = SQL[sql]
  if fn then return fn end
  if sql:find("^CREATE ") or sql:find("^ALTER TABLE ") then return function() return done(0) end end
  error("tests/sim/postgres.lua does not know this statement; define() it there:\n  " .. sql, 0)
end

-- All statements or none. rows | nil, message, state, index
function Postgres:execute(process, statements)
  local tx = { undo = {}, told = {}, news = {}, process = process, now = self.world.t }
  local out = {}
  for i, s in ipairs(statements) do
    local fn = known(s[1])
    local n = s.n or #s - 1
    local args = {}
    for k = 1, n do
      local v = s[k + 1]
      if v == json.null then v = nil end
      if type(v) == "table" then v = v.bytes end
      args[k] = v
    end
    local ok, result = pcall(fn, self.db, tx, unpack(args, 1, n))
    if not ok then
      for k = #tx.undo, 1, -1 do tx.undo[k]() end
      if type(result) ~= "table" then error(result, 0) end
      return nil, result.text, result.state, i
    end
    out[i] = result
  end
  self.on_commit(process, tx)
  for _, news in ipairs(tx.news) do
    for _, c in ipairs(self.connections) do
      local heard = c.heard[news[1]]
      if heard and not c.away then
        self.world:in_order(c, function()
          if not c.away then heard(news[2]) end
        end, c.process)
      end
    end
  end
  return out
end

-- What a connection of a process does with one piece of work after the other. fin(...) takes what Lua gets.
local function next_piece(self, c)
  local piece = c.queue[1]
  if c.busy or not piece then return end
  local world, rng, faults, process = self.world, self.rng, self.faults, c.process
  if not self.up then
    table.insert(self.waiting, c)
    return
  end
  c.busy = true
  table.remove(c.queue, 1)
  local lost, over = nil, false
  local function finish(delay, ...)
    local results = { n = select("#", ...), ... }
    world:after(delay, function()
      if over then return end
      over = true
      if lost then
        self:lose(c)
        world:after(0.005 + rng:unit() * 0.1, function()
          c.away, c.busy = false, false
          next_piece(self, c)
        end, process)
      else
        c.busy = false
        next_piece(self, c)
      end
      piece.done(unpack(results, 1, results.n))
    end, process)
  end
  local function loses(text, unknown)
    lost = true
    finish(rng:unit() * 0.002, nil, text, "", { unknown = unknown })
  end
  local function run(ends)
    local rows, message, state, index = self:execute(process, piece.statements)
    if not ends then return end
    if rows then return finish(rng:unit() * 0.0005, rows) end
    finish(rng:unit() * 0.0005, nil, message, state, { unknown = false, index = index })
  end
  local z = rng:unit()
  local delay = 0.0002 + rng:unit() * 0.001
  if rng:chance(faults.pgslow) then delay = delay + rng:unit() * 2 end
  if z < faults.pglost * 0.2 then return loses("could not connect", false) end
  if process.dead and rng:chance(0.5) then return end
  world:after(delay, function()
    if process.dead and rng:chance(0.3) then return end -- its connection went before the commit came
    if z < faults.pglost * 0.45 or not self.up then return loses("the connection was lost", true) end
    if z < faults.pglost * 0.7 then
      loses("the connection was lost", true)
      return world:after(rng:unit() ^ 2 * 1.5, function() run(false) end)
    end
    if z < faults.pglost then
      loses("the connection was lost", true)
      return run(false)
    end
    run(true)
  end)
  world:after(piece.timeout, function()
    if over then return end
    loses("timed out", true)
  end, process)
end

function Postgres:connection(process, name)
  local c = { process = process, name = name, queue = {}, busy = false, observers = {}, heard = {} }
  table.insert(self.connections, c)
  return c
end

-- The connection is gone, or there again: who watches it is told, and notifications are heard anew.
function Postgres:lose(c)
  if c.away then return end
  c.away = true
  for _, fn in ipairs(c.observers) do self.world:in_order(c, function() fn("away") end, c.process) end
end

function Postgres:back(c)
  if not self.up or not c.away then return end
  c.away = false
  for _, fn in ipairs(c.observers) do self.world:in_order(c, function() fn("ready") end, c.process) end
  for _, channel in ipairs(sorted(c.heard)) do
    self.world:in_order(c, function() c.heard[channel](nil) end, c.process)
  end
end

function Postgres:listen(c, channel, fn)
  c.heard[channel] = fn
  if self.up and not c.away then
    self.world:in_order(c, function() fn(nil) end, c.process)
  else
    self:lose(c)
  end
end

-- statements -> what the wait of a task gets.
function Postgres:work(c, timeout, statements)
  for _, s in ipairs(statements) do known(s[1]) end
  local finish = World.wait_begin(c.process)
  local piece = { statements = statements, timeout = timeout, done = finish }
  table.insert(c.queue, piece)
  self.world:after(0, function() next_piece(self, c) end, c.process)
  self.world:after(timeout, function()
    for i, p in ipairs(c.queue) do
      if p == piece then
        table.remove(c.queue, i)
        return finish(nil, "timed out", "", { unknown = false })
      end
    end
  end, c.process)
  return coroutine.yield()
end

function Postgres:state(c)
  if not self.up then return "away", "connection refused" end
  if c.away then return "connecting", "the connection was lost" end
  return "ready", ""
end

function Postgres:stop()
  self.world:say("postgres stops")
  self.up = false
  for _, c in ipairs(self.connections) do self:lose(c) end
end

function Postgres:start()
  self.world:say("postgres starts")
  self.up = true
  local waiting = self.waiting
  self.waiting = {}
  for _, c in ipairs(self.connections) do
    self.world:after(self.rng:unit() * 0.1, function() self:back(c) end, c.process)
  end
  for _, c in ipairs(waiting) do
    self.world:after(self.rng:unit() * 0.1, function() next_piece(self, c) end, c.process)
  end
end

Postgres.copy_key, Postgres.define, Postgres.sorted = copy_key, define, sorted

return Postgres
