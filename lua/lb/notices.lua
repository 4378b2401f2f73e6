-- notices.lua: what happened, for people to be told: from whatever process it is noticed in, on its way to the balancer
-- that tells (notify.lua).
--
--   raise{kind=, key=, urgency="low"|"medium"|"high", title=, text=, fields={{name, value}, ...}, at=unix, source=}
--       -> uid
--       kind: one of KINDS below, or another, which is then news without an end; key: what it is about: "server/a",
--       "journal", "worker/7"; urgency: that of the kind when absent; title: one line; value: text or number; source:
--       who says so
--
-- An event is a row of notify_events. With PostgreSQL away it waits in memory, at most MOST of them, and is written
-- later; in the balancer that tells, notify.lua takes it from there at once.
local M = { CHANNEL = "chromux_notify" }

-- Kinds with a story have a beginning (opens) and an end (ends), which meet under the story's name and the event's key.
M.KINDS = {
  server_down = { urgency = "high", opens = "server" },
  server_up = { urgency = "low", ends = "server" },
  failover = { urgency = "medium" },
  failback = { urgency = "low" },
  copy_lost = { urgency = "medium", opens = "copies" },
  server_lost_data = { urgency = "high", opens = "copies" },
  no_source = { urgency = "high", opens = "copies" },
  copy_rebuilt = { urgency = "low", ends = "copies" },
  rebuild_slow = { urgency = "medium", opens = "rebuild" },
  rebuild_failed = { urgency = "medium", opens = "rebuild" },
  rebuild_done = { urgency = "low", ends = "rebuild" },
  lag_above = { urgency = "medium", opens = "lag" },
  lag_below = { urgency = "low", ends = "lag" },
  journal_unavailable = { urgency = "high", opens = "journal" },
  journal_back = { urgency = "low", ends = "journal" },
  journal_filling = { urgency = "medium", opens = "room" },
  journal_full = { urgency = "high", opens = "room" },
  journal_room = { urgency = "low", ends = "room" },
  postgres_restored = { urgency = "high", opens = "restored" },
  restore_accepted = { urgency = "low", ends = "restored" },
  disk_above = { urgency = "medium", opens = "disk" },
  disk_below = { urgency = "low", ends = "disk" },
  recommendation_opened = { urgency = "medium", opens = "recommendation" },
  recommendation_raised = { urgency = "high", opens = "recommendation" },
  recommendation_closed = { urgency = "low", ends = "recommendation" },
  policy_tripped = { urgency = "medium", opens = "policy" },
  policy_back = { urgency = "low", ends = "policy" },
  worker_dead = { urgency = "medium", opens = "worker" },
  worker_back = { urgency = "low", ends = "worker" },
  monitor_silent = { urgency = "medium", opens = "monitor" },
  monitor_back = { urgency = "low", ends = "monitor" },
  messages_failing = { urgency = "high", opens = "messages" },
  messages_delivered = { urgency = "low", ends = "messages" },
  repaired = { urgency = "low" },
  not_adopted = { urgency = "medium" },
  entry_skipped = { urgency = "low" },
  instance_retired = { urgency = "low" },
}

local MOST = 500
local KEY_MOST, TITLE_MOST, TEXT_MOST = 200, 200, 2000
local FIELDS_MOST, NAME_MOST, VALUE_MOST = 10, 80, 1000
local URGENCIES = { low = true, medium = true, high = true }

M.pending = {}
M.dropped = 0

-- ---- texts -----------------------------------------------------------------------------------------------

-- The length of the UTF-8 sequence at i, or nil when there is none (RFC 3629).
local function sequence(s, i)
  local a, b, c, d = s:byte(i, i + 3)
  local function tail(x) return x and x >= 0x80 and x < 0xC0 end
  if a < 0x80 then return 1 end
  if a >= 0xC2 and a < 0xE0 then return tail(b) and 2 or nil end
  if a >= 0xE0 and a < 0xF0 then
    if not (tail(b) and tail(c)) or (a == 0xE0 and b < 0xA0) or (a == 0xED and b >= 0xA0) then return nil end
    return 3
  end
  if a >= 0xF0 and a < 0xF5 then
    if not (tail(b) and tail(c) and tail(d)) then return nil end
    return not (a == 0xF0 and b < 0x90) and not (a == 0xF4 and b >= 0x90) and 4 or nil
  end
end

-- The text as UTF-8 without control characters (newlines stay), cut to `most` bytes between two characters: a server's
-- error or a user's name goes into PostgreSQL, JSON and messages.
function M.clean(text, most)
  local s, out, i, n = tostring(text), {}, 1, 0
  if #s <= most and not s:find("[^\32-\126]") then return s end
  while i <= #s do
    local len = sequence(s, i)
    local piece = len and s:sub(i, i + len - 1) or "?"
    if len == 1 and piece:find("[%z\1-\9\11-\31\127]") then piece = " " end
    if n + #piece > most - 3 and #s - i + 1 > most - n then
      out[#out + 1] = "…"
      break
    end
    out[#out + 1], n, i = piece, n + #piece, i + (len or 1)
  end
  return table.concat(out)
end

-- ---- making ----------------------------------------------------------------------------------------------

local uid_base, uid_count = nil, 0

local function next_uid()
  if not uid_base then
    local f = assert(io.open("/dev/urandom", "rb"))
    uid_base = f:read(8):gsub(".", function(c) return string.format("%02x", c:byte()) end)
    f:close()
  end
  uid_count = uid_count + 1
  return string.format("%s-%x", uid_base, uid_count)
end
M.next_uid = next_uid

-- A title, a text and fields as they may be told, whatever they are.
function M.bounded(title, text, fields)
  local out = {}
  for i, f in ipairs(type(fields) == "table" and fields or {}) do
    local name, value = f, ""
    if type(f) == "table" then name, value = f[1], f[2] end
    if type(value) ~= "number" or value ~= value or math.abs(value) == math.huge then
      value = M.clean(value, VALUE_MOST)
    end
    if i <= FIELDS_MOST then out[i] = { M.clean(name, NAME_MOST), value } end
  end
  return M.clean(title, TITLE_MOST), M.clean(text, TEXT_MOST), out
end

-- An event of what the caller says, whole and within bounds.
function M.make(given)
  if type(given.kind) ~= "string" or not given.kind:find("^[a-z_]+$") then error("an event needs a kind", 3) end
  local kind = M.KINDS[given.kind] or {}
  local title, text, fields = M.bounded(given.title or given.kind, given.text or "", given.fields)
  return {
    uid = next_uid(), kind = given.kind, key = M.clean(given.key or given.kind, KEY_MOST),
    urgency = URGENCIES[given.urgency] and given.urgency or kind.urgency or "low",
    title = title, text = text, fields = fields, source = given.source or M.source or "", at = given.at or now(),
  }
end

-- The fields as JSON.
function M.fields_text(e) return #e.fields > 0 and json.encode(e.fields) or "[]" end

-- The statement that records a new event; once, however often it is run.
function M.insert(e)
  return { [[WITH made AS (INSERT INTO notify_events (uid, kind, key, urgency, title, text, fields, source, raised_at)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9)) ON CONFLICT (uid) DO NOTHING RETURNING uid)
      SELECT pg_notify('chromux_notify', uid)::text AS told FROM made]],
    e.uid, e.kind, e.key, e.urgency, e.title, e.text, M.fields_text(e), e.source, e.at }
end

-- ---- keeping until it is written -------------------------------------------------------------------------

local flushing = false

local function flush()
  local conn, wait = pg.connection("default"), 0.5
  while conn and not M.consumer and #M.pending > 0 do
    local batch = {}
    for i = 1, math.min(#M.pending, 50) do batch[i] = M.pending[i] end
    local statements = { timeout = 10 }
    for i, e in ipairs(batch) do statements[i] = M.insert(e) end
    if conn:transaction(statements) then
      local written = {}
      for _, e in ipairs(batch) do written[e] = true end
      local rest = {}
      for _, e in ipairs(M.pending) do
        if not written[e] then rest[#rest + 1] = e end
      end
      M.pending, wait = rest, 0.5
    else
      sleep(wait)
      wait = math.min(wait * 2, 10)
    end
  end
  flushing = false
end

local function begin_flush()
  if flushing or M.consumer then return end
  flushing = true
  spawn(flush)
end

-- Who takes events from now on, and those that wait; nil: they are written to PostgreSQL.
function M.consume(fn)
  M.consumer = fn
  local waiting = M.pending
  M.pending = {}
  for _, e in ipairs(waiting) do
    if fn then fn(e) else M.pending[#M.pending + 1] = e end
  end
  if not fn and #M.pending > 0 then begin_flush() end
end

-- Gives back what was taken and could not be told: it is written as soon as that is possible.
function M.give_back(list)
  for _, e in ipairs(list) do M.pending[#M.pending + 1] = e end
  begin_flush()
end

function M.raise(given)
  local e = M.make(given)
  if M.consumer then
    M.consumer(e)
  elseif #M.pending >= MOST then
    M.dropped = M.dropped + 1
    log.error("notice_dropped", e.kind .. " " .. e.key .. ": " .. e.title)
  else
    M.pending[#M.pending + 1] = e
    begin_flush()
  end
  return e.uid
end

-- ---- what the journal's events are to people ---------------------------------------------------------------

-- What is told of one collection begins with its id.
local COLLECTION = "^(%x+%-%x+%-%x+%-%x+%-%x+): (.*)$"

-- The text with names in place of ids of collections.
local function named(text, collection)
  return (text:gsub("%x+%-%x+%-%x+%-%x+%-%x+", function(id)
    local c = #id == 36 and collection(id)
    return c and c.name
  end))
end

local JOURNAL = {
  failover = function(from, to, reason)
    return { key = "writes/" .. from, title = "Writes go to " .. to .. " instead of " .. from,
      fields = { { "instance", to }, { "from", from }, { "cause", reason } } }
  end,
  failback = function(from, to, reason)
    return { key = "writes/" .. to, title = "Writes go to " .. to .. " again",
      fields = { { "instance", to }, { "from", from }, { "cause", reason } } }
  end,
  copy_lost = function(from, _, reason, of)
    return { key = "copies/" .. from, title = "A copy on " .. from .. " is out of use until it is made anew",
      fields = { { "instance", from }, { "collection", of and of.name or "several" }, { "cause", reason } } }
  end,
  rebuild_slow = function(from, _, reason, of)
    if not of then return nil end -- a count of them: the first was told
    return { key = "rebuild/" .. from .. "/" .. of.lane, title = "A copy on " .. from .. " takes long to make anew",
      text = reason:gsub("^%l", string.upper) .. ".", fields = { { "instance", from }, { "collection", of.name } } }
  end,
  not_adopted = function(from, _, reason)
    return { key = "server/" .. from, title = "Not all that is on " .. from .. " is taken over", text = reason,
      fields = { { "instance", from } } }
  end,
  server_lost_data = function(from, _, reason)
    return { key = "copies/" .. from, title = from .. " came back without what it had",
      text = "It is not read from until its collections are made anew.",
      fields = { { "instance", from }, { "cause", reason } } }
  end,
  journal_filling = function(_, _, reason)
    return { key = "journal/room", title = "The journal is filling up", text = reason }
  end,
  journal_full = function(_, _, reason)
    return { key = "journal/room", title = "The journal is full: writes are refused", text = reason }
  end,
  entry_skipped = function(_, _, reason)
    return { key = "journal/skipped", title = "An operator skipped a write of the journal", text = "Entry " .. reason }
  end,
  instance_retired = function(from, _, reason)
    return { key = "server/" .. from, title = from .. " is retired",
      text = reason:gsub("^%l", string.upper) .. ".", fields = { { "instance", from } } }
  end,
}

-- The statement that belongs into the transaction which records such an event in failover_events; nil: people are not
-- told of it, or notice it by other means (notify_watch.lua). collection(id) -> {name=, lane=}, or nil where it is not
-- known: of that collection people are told by its name.
function M.of_journal(kind, from, to, reason, collection)
  local make = JOURNAL[kind]
  if not make then return nil end
  collection = collection or function() end
  local id, cause = reason:match(COLLECTION)
  local e = make(from, to, named(cause or reason, collection), id and (collection(id) or { name = id, lane = id }))
  if not e then return nil end
  e.kind = e.kind or kind
  return M.insert(M.make(e))
end

return M
