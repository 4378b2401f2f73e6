-- identity.lua: is PostgreSQL's journal the one that we know, with all that it was told? (PROTOCOL.md R12)
--
-- A backup that is restored, or a standby that lacked the last commits and was promoted, takes back what clients were
-- promised. It is noticed by what it forgets: the server's system identifier or timeline is another one; the lease was
-- renewed less often than we know (in every transaction of the journal, Store's lease check); a server's witness is
-- ahead (servers.lua). Then nothing is written until an operator has said which side is right (operator.lua): the
-- reason stands in journal_meta.suspended, whoever is started.
local M = {}

-- The timeline of the WAL that is written now.
M.TIMELINE = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"

-- {system_id=, timeline=}; what the user may not ask for is "". nil, why
function M.now(conn)
  local out = {}
  for name, sql in pairs {
    timeline = "SELECT " .. M.TIMELINE .. " AS v",
    system_id = "SELECT system_identifier::text AS v FROM pg_control_system()",
  } do
    local rows, why, state = conn:query(sql)
    -- 42501: not permitted; 42883: no such function here.
    if not rows and state ~= "42501" and state ~= "42883" then return nil, why end
    out[name] = rows and rows[1] and rows[1].v or ""
  end
  return out
end

-- Why this is not the server that it was, by what is known of that ("" or nil: not known); nil when it may be.
function M.moved(conn, timeline, system_id)
  local is = M.now(conn)
  if not is then return nil end
  for name, was in pairs { timeline = timeline or "", ["system identifier"] = system_id or "" } do
    local v = name == "timeline" and is.timeline or is.system_id
    if was ~= "" and v ~= "" and v ~= was then return string.format("its %s is %s, it was %s", name, v, was) end
  end
end

-- Compares with what the journal recorded of its server, and records it the first time. "fine" | "suspended", reason |
-- nil, why it can't be known now. Fills store.timeline and store.system_id.
function M.check(store)
  local conn = store.append
  local is, why = M.now(conn)
  if not is then return nil, why end
  local rows
  rows, why = conn:query("SELECT system_id, timeline, suspended FROM journal_meta")
  if not rows then return nil, why end
  local was = rows[1]
  if was.suspended ~= "" then return "suspended", was.suspended end
  local reason
  if was.system_id ~= "" and is.system_id ~= "" and was.system_id ~= is.system_id then
    reason = string.format("its system identifier is %s, it was %s", is.system_id, was.system_id)
  elseif was.timeline ~= "" and is.timeline ~= "" and was.timeline ~= is.timeline then
    reason = string.format("its timeline is %s, it was %s", is.timeline, was.timeline)
  end
  if reason then return "suspended", "PostgreSQL was restored from a backup or replaced: " .. reason end
  if was.system_id == "" or was.timeline == "" then
    rows, why = conn:query("UPDATE journal_meta SET system_id = $1, timeline = $2", is.system_id, is.timeline)
    if not rows then return nil, why end
  end
  store.timeline = is.timeline ~= "" and is.timeline or nil
  store.system_id = is.system_id
  return "fine"
end

-- Records that writes are stopped, for whoever holds the lease next; not when that is another's by now. true | nil, why
function M.suspend(store, reason)
  local done, why = store.append:query([[WITH stopped AS (UPDATE journal_meta SET suspended = $1 WHERE suspended = ''
      AND EXISTS (SELECT 1 FROM journal_lease WHERE epoch <= $2) RETURNING 1)
      INSERT INTO failover_events (event_type, reason, success) SELECT 'postgres_restored', $1, false FROM stopped]],
    reason, store.epoch)
  return done ~= nil, why
end

-- An operator has said which side is right.
function M.accepted(store)
  local rows = store.append:query("SELECT suspended FROM journal_meta")
  return rows and rows[1].suspended == ""
end

return M
