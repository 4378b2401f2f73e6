-- sync_watch.lua: asks for jobs of sync and shows how they get on, until all are over (`chromux sync`, sync_cli.lua).
--
-- A target is one copy: {lane=, instance=, label=, known= records as last counted, or nil}. What is asked for is a row
-- of sync_jobs; a coordinator does the rest. On a terminal one line is rewritten, elsewhere a line is printed now and
-- then.
local Command = require("lb.command")
local ffi = require("ffi")

local Watch = {}
Watch.__index = Watch

local POLL = 0.5          -- seconds
local LINE_EVERY = 10     -- where there is no terminal
local RATE_OVER = 15      -- seconds that the rate is an average of
local NOBODY_AFTER = 10   -- without a worker
local AWAY_AFTER = 60     -- without PostgreSQL
local AT_ONCE = 500       -- targets a statement

local ASKED = "asked for" -- the reason of a job that nobody has found to be moot

-- Whoever waits here hears of it at once.
local CHANNEL = "chromux_sync_work"

ffi.cdef "int ioctl(int fd, unsigned long request, void *answer);"

local TIOCGWINSZ, USUAL_WIDTH = 0x5413, 80

-- Columns of the terminal: a line that is rewritten must not go on in a second one.
local function width()
  local size = ffi.new("unsigned short[4]") -- rows, columns, pixels
  return ffi.C.ioctl(1, TIOCGWINSZ, size) == 0 and size[1] > 0 and size[1] or USUAL_WIDTH
end

-- command: of lb.command. kind: rebuild | verify. o: {asked_by=, dry_run=, terminal=bool, one= an instance was named}
function Watch.new(command, kind, o)
  return setmetatable({ command = command, kind = kind, o = o, priority = kind == "rebuild" and 90 or 10,
    samples = {}, over = 0, bad = 0, proven = 0, records = 0 }, Watch)
end

-- ---- words -----------------------------------------------------------------------------------------------

local function number(n)
  local text = string.format("%.0f", n)
  local rest
  repeat text, rest = text:gsub("^(%-?%d+)(%d%d%d)", "%1,%2") until rest == 0
  return text
end
Watch.number = number

function Watch.duration(seconds)
  if seconds < 90 then return string.format("%.0f s", seconds) end
  if seconds < 90 * 60 then return string.format("%.0f min", seconds / 60) end
  if seconds < 48 * 3600 then return string.format("%.0f h", seconds / 3600) end
  return string.format("%.0f days", seconds / 86400)
end

-- The line that is rewritten: something else comes in its place.
function Watch:erase()
  if self.o.terminal then io.stdout:write("\r\27[K") end
end

-- A line that stays.
function Watch:say(...)
  self:erase()
  Command.out(...)
end

-- ---- PostgreSQL ------------------------------------------------------------------------------------------

-- Rows; while PostgreSQL restarts we wait.
function Watch:query(sql, ...)
  local since
  while true do
    local rows, why, state = pg.query({ sql, timeout = 15 }, ...)
    if rows then return rows end
    since = since or now()
    local lost = state == "" or state:find("^08") or state:find("^57P")
    if why == "no DATABASE_URL" or not lost or now() - since > AWAY_AFTER then
      self:erase()
      return self.command.query(sql, ...)
    end
    sleep(1)
  end
end

local function array(list, field)
  local words = {}
  for i, t in ipairs(list) do words[i] = '"' .. tostring(t[field]):gsub('[\\"]', "\\%0") .. '"' end
  return "{" .. table.concat(words, ",") .. "}"
end

-- Makes rows for targets, or joins those that others have asked for: of a comparison only one that has not begun, for
-- it must see what was there when we asked. id 0: the collection is deleted.
local ASK = [[WITH asked AS (SELECT * FROM unnest($1::bigint[], $2::text[]) AS t (lane, instance)),
  made AS (INSERT INTO sync_jobs (kind, lane, collection_id, collection_name, tenant, database, instance, reason,
      asked_by, dry_run, priority)
    SELECT $3, lane, logical, name, tenant, database, instance, $7, $4, $5, $6
      FROM asked JOIN journal_collections k USING (lane) WHERE NOT k.deleted
    ON CONFLICT DO NOTHING RETURNING id, lane, instance)
  SELECT id, lane, instance, true AS ours FROM made
  UNION ALL SELECT j.id, j.lane, j.instance, false FROM sync_jobs j JOIN asked USING (lane, instance)
    WHERE j.kind = $3 AND j.state NOT IN ('done', 'failed', 'cancelled')
      AND ($3 = 'rebuild' OR (j.state = 'waiting' AND (NOT j.dry_run OR $5)))
  UNION ALL SELECT 0, lane, instance, false FROM asked
    WHERE NOT EXISTS (SELECT 1 FROM journal_collections k WHERE k.lane = asked.lane AND NOT k.deleted)]]

function Watch:ask(targets)
  local by = {}
  for _, t in ipairs(targets) do by[t.lane .. "/" .. t.instance] = t end
  local rows = self:query(ASK, array(targets, "lane"), array(targets, "instance"), self.kind, self.o.asked_by,
    self.o.dry_run, self.priority, ASKED)
  for _, row in ipairs(rows) do
    local t = by[row.lane .. "/" .. row.instance]
    t.job, t.ours = row.id, row.ours
  end
  self:query("SELECT pg_notify($1, 'jobs')::text AS told", CHANNEL)
end

local LOOK = [[SELECT j.id, j.state, j.source, j.records, j.done_records AS done, j.differences, j.repaired, j.error,
    j.reason, j.hold_ms, j.dry_run, extract(epoch FROM j.finished_at - j.started_at)::float8 AS took,
    CASE WHEN s.proven_equal_at >= j.created_at THEN date_trunc('second', s.proven_equal_at)::text END AS proven
  FROM sync_jobs j LEFT JOIN sync_collections s ON s.collection_id = j.collection_id AND s.instance = j.instance
  WHERE j.id = ANY($1::bigint[])]]

-- {[job]=row} of these targets.
function Watch:look(targets)
  local out = {}
  for first = 1, #targets, AT_ONCE do
    local rows = self:query(LOOK, array({ unpack(targets, first, math.min(first + AT_ONCE - 1, #targets)) }, "job"))
    for _, row in ipairs(rows) do out[row.id] = row end
  end
  return out
end

-- ---- how it ended ----------------------------------------------------------------------------------------

-- Is it well? And what is said of it. A comparison is believed only when it left a proof.
local function compared(row)
  local left = row.differences - row.repaired
  if row.proven then
    return true, "equal", number(row.records) .. " records"
      .. (row.repaired > 0 and ", of which " .. number(row.repaired) .. " differed and were repaired" or "")
      .. "; proven at " .. row.proven
  end
  if left > 0 then
    return false, "differs", string.format("%s of %s records differ%s%s", number(left), number(row.records),
      row.repaired > 0 and ", " .. number(row.repaired) .. " more were repaired" or "",
      row.error ~= "" and ": " .. row.error or row.dry_run and ", and nothing was done" or "")
  end
  if row.error ~= "" then return false, "unproven", row.error end
  if row.reason:find("^it is the authority") then return true, "authority", "the others are compared with it" end
  return false, "not compared", row.reason
end

local function rebuilt(row)
  return true, "rebuilt", string.format("%s records from %s%s%s", number(row.done), row.source or "?",
    row.took and string.format(" in %.1f s", row.took) or "",
    row.hold_ms and string.format(", writes were held for %.1f ms", row.hold_ms) or "")
end

local function verdict(kind, row)
  if not row then return false, "gone", "the collection is deleted, or somebody took the job away" end
  if row.state == "failed" then return false, "failed", row.error end
  if row.state == "cancelled" then return false, "cancelled", row.reason ~= ASKED and row.reason or row.error end
  if kind == "rebuild" then return rebuilt(row) end
  return compared(row)
end

function Watch:ended(t, row)
  local well, word, text = verdict(self.kind, row)
  self.over, self.bad = self.over + 1, self.bad + (well and 0 or 1)
  self.proven = self.proven + (word == "equal" and 1 or 0)
  self.records = self.records + (row and row.done or 0)
  if word ~= "authority" or self.o.one then self:say("%-12s %s: %s", word, t.label, text) end
end

-- ---- how it gets on --------------------------------------------------------------------------------------

-- Records a second over the last seconds; nil: not known yet.
function Watch:rate(t, done)
  local s = self.samples
  s[#s + 1] = { t = t, done = done }
  while s[2] and t - s[2].t > RATE_OVER do table.remove(s, 1) end
  local span = t - s[1].t
  if span < 2 or done <= s[1].done then return nil end
  return (done - s[1].done) / span
end

-- open: targets that are not over; rows: what look() said of them.
function Watch:progress(open, rows, paused)
  local done, all, states = self.records, self.records, {}
  for _, t in ipairs(open) do
    local row = rows[t.job]
    local expected = row and row.records > 0 and row.records or t.known
    done = done + (row and row.done or 0)
    all = all and expected and all + math.max(expected, row and row.done or 0)
    local state = row and row.state:gsub("_", " ") or "waiting"
    states[state] = (states[state] or 0) + 1
  end
  local rate = self:rate(now(), done)
  local parts = {}
  for _, state in ipairs { "waiting", "copying", "catching up", "finishing", "comparing", "confirming", "paused" } do
    if states[state] then parts[#parts + 1] = states[state] .. " " .. state end
  end
  return string.format("%s: %d of %d copies, %s%s records%s%s; %s%s", self.kind, self.over, self.over + #open,
    number(done), all and all > 0 and " of " .. number(all) or "", rate and ", " .. number(rate) .. "/s" or "",
    rate and all and all > done and ", about " .. Watch.duration((all - done) / rate) .. " left" or "",
    table.concat(parts, ", "), paused and "; sync is paused" or "")
end

function Watch:show(line)
  local t = now()
  if self.o.terminal then
    self:erase()
    io.stdout:write(line:sub(1, width() - 1))
    io.stdout:flush()
  elseif t >= (self.next_line or t) then
    if self.next_line then self:say("%s", line) end
    self.next_line = t + LINE_EVERY
    io.stdout:flush()
  end
end

-- Nobody works: our rows that nothing was done about are taken back.
function Watch:withdraw(open)
  local ours = {}
  for _, t in ipairs(open) do
    if t.ours then ours[#ours + 1] = t end
  end
  self:query("DELETE FROM sync_jobs WHERE id = ANY($1::bigint[]) AND state = 'waiting' AND started_at IS NULL",
    array(ours, "job"))
  self:say("%d of %d copies were not looked at", #open, self.over + #open)
  self.command.fail(Command.NOBODY, "no worker is alive: does chromux run with this DATABASE_URL? "
    .. "What nobody has begun is withdrawn")
end

-- Asks for all of them and waits until they are over: then `bad` are not well and `proven` are equal.
function Watch:follow(targets)
  local open, alone = targets, now()
  while #open > 0 do
    local asking = {}
    for _, t in ipairs(open) do
      if not t.job and #asking < AT_ONCE then asking[#asking + 1] = t end
    end
    if #asking > 0 then self:ask(asking) end
    local watched, left = {}, {}
    for _, t in ipairs(open) do
      if t.job then watched[#watched + 1] = t end
    end
    local rows = self:look(watched)
    for _, t in ipairs(open) do
      local row = t.job and rows[t.job]
      if t.job and (not row or row.state == "done" or row.state == "failed" or row.state == "cancelled") then
        self:ended(t, row)
      else
        left[#left + 1] = t
      end
    end
    open = left
    local who = self:query([[SELECT (SELECT count(*) FROM sync_workers WHERE lease_until > now()) AS alive,
      (SELECT paused_at IS NOT NULL FROM sync_lease) AS paused]])[1]
    if who.alive > 0 then alone = now() end
    if #open > 0 then
      if now() - alone > NOBODY_AFTER then self:withdraw(open) end
      self:show(self:progress(open, rows, who.paused))
      sleep(POLL)
    end
  end
  self:erase() -- the last one may have ended without a word
end

return Watch
