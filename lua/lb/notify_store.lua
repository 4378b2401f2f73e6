-- notify_store.lua: what notify_book.lua remembers, in PostgreSQL: its rows, and the lease of the one that tells.
--
-- The book in memory is what counts while its owner has the lease; rows are written after it, whole and as often as
-- one likes (they are known by their uid). Whoever takes the lease reads them and goes on.
--
--   Store.new(conn, name, clock)   conn: of lb.runtime's pg; name: this process (process.name); clock: seconds of a
--                                  clock that does not jump
--   take(dead) -> true | false, holder | nil, why          dead(holder): that process is known to have ended
--   left() -> seconds of the lease that are left by our clock
--   save(book) -> "done" | "away", why | "lost"            "away": not known to be written
--   load() | fresh() | mutes() | facts(book) | release() | trim(days)
local notices = require("lb.notices")
local Book = require("lb.notify_book")

local Store = {}
Store.__index = Store

Store.TTL = 30 -- seconds
local TIMEOUT, REST = 5, 3
local DIVISION_BY_ZERO, UNDEFINED_TABLE = "22012", "42P01"
local PAGE = 500

function Store.new(conn, name, clock)
  return setmetatable({ conn = conn, name = name, clock = clock, until_ = 0, last_ok = 0, last_error = "",
    again = 0 }, Store)
end

-- Every answer of PostgreSQL passes here: when it last gave one, and why not.
local function noted(self, rows, why, state, ...)
  if rows then
    self.last_ok, self.last_error = self.clock(), ""
  else
    self.last_error = tostring(why)
    if state == "" then self.again = self.clock() + REST end
  end
  return rows, why, state, ...
end

-- false: it is not asked now. One that does not answer in time is left alone for a while, so that what can be done
-- without it is not delayed by each question.
function Store:usable()
  local state, why = self.conn:state()
  if state == "ready" then return self.clock() >= self.again end
  self.last_error = why ~= "" and why or "PostgreSQL is not connected"
  return false
end

function Store:query(sql, ...)
  if not self:usable() then return nil, self.last_error, "" end
  return noted(self, self.conn:query({ sql, timeout = TIMEOUT }, ...))
end

-- ---- the lease -------------------------------------------------------------------------------------------

function Store:take(dead)
  local asked = self.clock()
  local rows, why, state = self:query("SELECT holder FROM notify_lease")
  if not rows then return nil, state == UNDEFINED_TABLE and "the tables are not made yet" or why end
  local holder = rows[1].holder
  rows, why = self:query([[UPDATE notify_lease SET holder = $1, until = now() + $2 * interval '1 second'
      WHERE holder = $1 OR until < now() OR (holder = $3 AND $4) RETURNING holder]],
    self.name, Store.TTL, holder, holder ~= "" and dead(holder))
  if not rows then return nil, why end
  if #rows == 0 then return false, holder end
  self.until_ = asked + Store.TTL
  return true
end

function Store:left() return self.until_ - self.clock() end

function Store:release()
  self.until_ = 0
  return self:query("UPDATE notify_lease SET holder = '', until = '-infinity' WHERE holder = $1", self.name)
end

-- ---- writing ---------------------------------------------------------------------------------------------

local function event_row(e)
  e.version = (e.version or 0) + 1
  return { [[INSERT INTO notify_events (uid, kind, key, urgency, title, text, fields, source, raised_at, state, reason,
        ask_at, open, since, known, told, told_at, repeats, version)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9), $10, $11, to_timestamp($12), $13, to_timestamp($14),
        $15, $16, to_timestamp($17), $18, $19)
      ON CONFLICT (uid) DO UPDATE SET state = EXCLUDED.state, reason = EXCLUDED.reason, ask_at = EXCLUDED.ask_at,
        open = EXCLUDED.open, since = EXCLUDED.since, known = EXCLUDED.known, told = EXCLUDED.told,
        told_at = EXCLUDED.told_at, repeats = EXCLUDED.repeats, version = EXCLUDED.version
      WHERE notify_events.version < EXCLUDED.version]],
    e.uid, e.kind, e.key, e.urgency, e.title, e.text, notices.fields_text(e), e.source, e.at,
    e.state, e.reason or "", e.ask_at, e.open or false, e.since, e.known or 0, e.told, e.told_at, e.repeats, e.version,
    n = 19 }
end

local function message_row(m)
  m.version = (m.version or 0) + 1
  return { [[INSERT INTO notify_messages (uid, sink, events, title, state, attempts, next_at, status, error, created_at,
        sent_at, version)
      VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7), $8, $9, to_timestamp($10), to_timestamp($11), $12)
      ON CONFLICT (uid) DO UPDATE SET state = EXCLUDED.state, attempts = EXCLUDED.attempts,
        next_at = EXCLUDED.next_at, status = EXCLUDED.status, error = EXCLUDED.error, sent_at = EXCLUDED.sent_at,
        version = EXCLUDED.version WHERE notify_messages.version < EXCLUDED.version]],
    m.uid, m.sink, json.encode(m.events), m.title, m.state, m.attempts, m.next_at, m.status, m.error, m.at, m.sent_at,
    m.version, n = 12 }
end

local function sent_row(s)
  return { [[INSERT INTO notify_sent (kind, key, urgency, times, last_at) VALUES ($1, $2, $3, $4, to_timestamp($5))
      ON CONFLICT (kind, key, urgency) DO UPDATE SET times = GREATEST(notify_sent.times, EXCLUDED.times),
        last_at = GREATEST(notify_sent.last_at, EXCLUDED.last_at)]], s.kind, s.key, s.urgency, s.times, s.last }
end

local function of(set, row, statements, items)
  for _, item in pairs(set) do
    statements[#statements + 1] = row(item)
    items[#items + 1] = item
  end
end

-- All that changed and the lease renewed, in one transaction. What changes meanwhile stays to be written.
function Store:save(book)
  local statements = { timeout = TIMEOUT, { [[UPDATE notify_lease SET until = now() + $2 * interval '1 second'
      WHERE one AND 1 / (holder = $1)::int = 1]], self.name, Store.TTL } }
  local dirty = book.dirty
  book.dirty = { events = {}, messages = {}, sent = {} }
  local items = {}
  of(dirty.events, event_row, statements, items)
  of(dirty.messages, message_row, statements, items)
  of(dirty.sent, sent_row, statements, items)
  local asked = self.clock()
  local rows, why, state, info
  if self:usable() then
    rows, why, state, info = noted(self, self.conn:transaction(statements))
  else
    why = self.last_error
  end
  if rows then
    self.until_ = asked + Store.TTL
    for _, item in ipairs(items) do item.recorded = true end
    return "done"
  end
  if state == DIVISION_BY_ZERO and info and info.index == 1 then return "lost" end
  local at_fault = state and state:find("^[24][23]") and info and info.index and items[info.index - 1]
  if at_fault then log.error("notice_not_written", (at_fault.title or at_fault.key) .. ": " .. tostring(why)) end
  for name, set in pairs(dirty) do
    for id, item in pairs(set) do
      if item ~= at_fault then book.dirty[name][id] = item end
      -- It may be written: from now on only the lease says that nobody else tells it.
      if info and info.unknown then item.recorded = true end
    end
  end
  if at_fault then return self:save(book) end
  return "away", why
end

local NOT_TOLD = { taken = true, held = true, ready = true, queued = true }

-- The lease is another's: what nobody else knows is written, so that all is told, and once. true when it is.
function Store:facts(book)
  local statements = { timeout = TIMEOUT }
  for _, e in pairs(book.dirty.events) do
    if not e.recorded and e.told == 0 and NOT_TOLD[e.state] then
      statements[#statements + 1] = notices.insert(e)
    elseif not e.recorded then
      statements[#statements + 1] = event_row(e)
    end
  end
  for _, m in pairs(book.dirty.messages) do
    if not m.recorded and m.state ~= "queued" and m.state ~= "sending" then
      statements[#statements + 1] = message_row(m)
    elseif m.state == "sent" then
      statements[#statements + 1] = { [[UPDATE notify_messages SET state = 'sent', status = $2,
          sent_at = to_timestamp($3), attempts = $4, version = version + 1 WHERE uid = $1 AND state <> 'sent']],
        m.uid, m.status, m.sent_at, m.attempts }
    end
  end
  for _, s in pairs(book.dirty.sent) do statements[#statements + 1] = sent_row(s) end
  if #statements == 0 then return true end
  if not self:usable() then return false end
  return noted(self, self.conn:transaction(statements)) ~= nil
end

-- ---- reading ---------------------------------------------------------------------------------------------

local EVENT = [[SELECT uid, kind, key, urgency, title, text, fields, source,
    extract(epoch FROM raised_at)::float8 AS at, state, reason, extract(epoch FROM ask_at)::float8 AS ask_at, open,
    extract(epoch FROM since)::float8 AS since, known, told, extract(epoch FROM told_at)::float8 AS told_at, repeats,
    version FROM notify_events ]]

-- Whoever wrote it: other programs insert rows as well.
local function event_of(row)
  row.title, row.text, row.fields = notices.bounded(row.title, row.text, json.decode(row.fields))
  row.recorded = true
  return row
end

-- {events=, messages=, sent=, recent=, begun=} as Book:restore takes them | nil, why
function Store:load(t)
  if not self:usable() then return nil, self.last_error end
  local rows, why = noted(self, self.conn:transaction { timeout = TIMEOUT,
    { EVENT .. [[WHERE open OR state IN ('taken', 'held', 'ready', 'queued') OR uid IN (
        SELECT json_array_elements_text(events::json) FROM notify_messages WHERE state IN ('queued', 'sending'))
        ORDER BY id]] },
    { [[SELECT uid, sink, events, title, state, attempts, extract(epoch FROM next_at)::float8 AS next_at, status, error,
        version, extract(epoch FROM created_at)::float8 AS at FROM notify_messages WHERE state IN ('queued', 'sending')
        ORDER BY id]] },
    { [[SELECT kind, key, urgency, times, extract(epoch FROM last_at)::float8 AS last FROM notify_sent
        WHERE last_at > to_timestamp($1)]], t - Book.REMEMBER },
    { [[SELECT DISTINCT extract(epoch FROM sent_at)::float8 AS at, events FROM notify_messages
        WHERE sent_at > to_timestamp($1)]], t - 3600 },
    { [[SELECT kind, key, extract(epoch FROM raised_at)::float8 AS at FROM notify_events
        WHERE raised_at > to_timestamp($1) AND since = raised_at]], t - 3600 } })
  if not rows then return nil, why end
  for _, row in ipairs(rows[1]) do event_of(row) end
  for _, m in ipairs(rows[2]) do m.events, m.recorded = json.decode(m.events), true end
  return { events = rows[1], messages = rows[2], sent = rows[3], recent = rows[4], begun = rows[5] }
end

-- Events that nobody has in hand yet, and open ones: those of others who tell with PostgreSQL away are among them.
function Store:fresh()
  local rows, why = self:query(EVENT .. "WHERE state = 'new' OR open ORDER BY id LIMIT " .. PAGE)
  if not rows then return nil, why end
  for _, row in ipairs(rows) do event_of(row) end
  return rows
end

-- {[what]= until} of those that reach beyond t
function Store:mutes(t)
  local rows, why = self:query([[SELECT what, extract(epoch FROM until)::float8 AS until FROM notify_mutes
      WHERE until > to_timestamp($1)]], t)
  if not rows then return nil, why end
  local mutes = {}
  for _, row in ipairs(rows) do mutes[row.what] = row["until"] end
  return mutes
end

-- Deletes what is over and older than so many days.
function Store:trim(days)
  self:query([[DELETE FROM notify_events WHERE id IN (SELECT id FROM notify_events
      WHERE raised_at < now() - $1 * interval '1 day' AND NOT open AND state IN ('told', 'dropped', 'refused')
      LIMIT 1000)]], days)
  self:query([[DELETE FROM notify_messages WHERE id IN (SELECT id FROM notify_messages
      WHERE created_at < now() - $1 * interval '1 day' AND state IN ('sent', 'refused', 'given_up') LIMIT 1000)]], days)
  self:query("DELETE FROM notify_mutes WHERE until < now()")
end

return Store
