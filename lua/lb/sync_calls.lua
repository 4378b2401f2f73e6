-- sync_calls.lua: what those who rebuild and compare copies (sync.lua, the CLI) ask of the holder of the lease,
-- wherever it is: rows of sync_calls, and a notification each way.
--
--   ask(kind, lane, instance, arguments, timeout, epoch) -> answer (a table) | nil, why
--       epoch: of the coordinator that asks (nil: somebody else does); "not ours" when there is another one by now
--
--   member   {}                             the instance is in the catalogue again -> {ok}
--   begin    {source=, adopt=}              -> {rebuild=, temp=, temp_name=, source_physical=, p0=, tenant=, database=,
--                                               name=}
--   finish   {rebuild=, upto=, settle=}     -> {done, position=, hold_ms=} | {gone= why} | {more=, position=, from=}
--       upto: the records that entries up to there touched are copied as they were since. settle: for how long (s) a
--       lost worker's requests may still be executed: they are waited for, and what was copied of entries behind p0
--       counts no more. more: so many records were touched by the entries behind `from` up to `position`; 0: ask again
--   abandon  {rebuild=}                     -> {ok}
--   confirm  {authority=, ids=, repair=}    -> {position=, equal=, differing={{id=, how=}}, repaired=, busy={id}}
--   mark     {reason=}                      the copy is to be made anew -> {ok}
--   aside    {}                             -> {list=, count=}: collections that the journal does not know (aside.lua)
--   discard  {id=, by=}                     one of these is deleted -> {ok}
--
-- Calls of one lane are done one after the other, those of different lanes at once. One that nobody waits for any more
-- is not begun; what a holder has not answered the next one does from the beginning.
local Signal = require("lb.signal")
local Member = require("lb.member")
local Reconcile = require("lb.reconcile")
local json = json

local M = { CHANNEL = "chromux_sync", DONE = "chromux_sync_done" }

local LOOK_EVERY = 1       -- seconds between looks when notifications may be missing
local SERVE_EVERY = 2
local KEPT = "1 hour"

-- Something has changed, or may have: a signal that is not lost on who is not waiting just then.
local News = {}
News.__index = News

function News.new() return setmetatable({ signal = Signal.new(), came = false }, News) end

function News:fire()
  self.came = true
  self.signal:fire()
end

function News:wait()
  while not self.came do self.signal:wait() end
  self.came = false
end

-- Fires again and again; ends with the task that it returns.
function News:every(seconds)
  return spawn(function()
    while true do
      sleep(seconds)
      self:fire()
    end
  end)
end

-- ---- asking ----------------------------------------------------------------------------------------------

local waiting, listening = {}, false

local function listen(connection)
  if listening then return end
  listening = true
  connection:listen(M.DONE, function(news)
    for id, w in pairs(waiting) do
      if news == nil or tonumber(news) == id then w:fire() end
    end
  end)
end

local function answer_of(row)
  if not row.done then return nil, row.answer or "" end
  local answer, why = json.decode(row.answer)
  if type(answer) ~= "table" then return nil, why or "not an answer" end
  return answer
end

-- Asks, and waits for at most so many seconds.
function M.ask(kind, lane, instance, arguments, timeout, epoch)
  local connection = pg.connection("default")
  if not connection then return nil, "no DATABASE_URL" end
  listen(connection)
  local rows, why = connection:query([[WITH mine AS (SELECT 1 FROM sync_lease WHERE epoch = $7 FOR SHARE),
    asked AS (INSERT INTO sync_calls (kind, lane, instance, arguments, until)
      SELECT $1, $2::bigint, $3, $4, now() + $5 * interval '1 second'
        WHERE $7::bigint IS NULL OR EXISTS (SELECT 1 FROM mine) RETURNING id)
      SELECT id, pg_notify($6, '')::text AS told FROM asked]], kind, lane, instance, json.encode(arguments or {}),
    timeout, M.CHANNEL, epoch or pg.null)
  if not rows then return nil, why end
  if not rows[1] then return nil, "not ours" end
  local id, till = rows[1].id, now() + timeout
  local news = News.new()
  waiting[id] = news
  local clock = news:every(LOOK_EVERY)
  local row
  repeat
    news:wait()
    rows, why = connection:query("SELECT done, answer FROM sync_calls WHERE id = $1 AND answered_at IS NOT NULL", id)
    row = rows and rows[1]
  until row or now() >= till
  waiting[id] = nil
  clock:cancel()
  if row then return answer_of(row) end
  -- Nobody is to begin it any more.
  rows = connection:query([[UPDATE sync_calls SET answered_at = now(), done = false, answer = 'withdrawn'
      WHERE id = $1 AND answered_at IS NULL RETURNING id]], id)
  if rows and not rows[1] then
    rows = connection:query("SELECT done, answer FROM sync_calls WHERE id = $1", id)
    if rows and rows[1] then return answer_of(rows[1]) end
  end
  return nil, why or "the holder of the journal's lease did not answer in time"
end

-- ---- answering -------------------------------------------------------------------------------------------

local Kind = {}

function Kind.member(context, a)
  local fine, why = Member.renew(context, context.names, a.instance, a.until_)
  return fine and { ok = true } or nil, why
end

function Kind.begin(context, a) return context.rebuilds:begin(a) end
function Kind.finish(context, a) return context.rebuilds:finish(a) end
function Kind.abandon(context, a) return context.rebuilds:abandon(a) end
function Kind.confirm(context, a) return Reconcile.confirm(context, context.names, a) end

function Kind.mark(context, a)
  local lane = context.names.by_lane[a.lane]
  local copy, elsewhere = lane and lane.copies[a.instance], false
  if not copy then return nil, "there is no such copy" end
  for _, other in ipairs(lane.order) do
    elsewhere = elsewhere or (other ~= copy and other.state == "ready" and not other.server.retired)
  end
  if not elsewhere then return nil, "no_source: there is no other good copy" end
  local fine, why = lane:mark(copy, "rebuild", tostring(a.reason or "asked for"))
  return fine and { ok = true } or nil, why
end

function Kind.aside(context) return { list = context.aside.list, count = context.aside.count } end

function Kind.discard(context, a)
  local fine, why = context.aside:discard(a)
  return fine and { ok = true } or nil, why
end

local function arguments_of(row)
  local a = json.decode(row.arguments)
  if type(a) ~= "table" then a = {} end
  a.lane, a.instance, a.until_ = row.lane, row.instance, now() + row.left
  return a
end

local function answer(context, row)
  local kind = Kind[row.kind]
  local got, why
  if row.left <= 0 then
    why = "nobody waits for it any more"
  elseif not kind then
    why = "what is " .. tostring(row.kind) .. "?"
  else
    local ok
    context.rebuilds.active = context.rebuilds.active + 1
    ok, got, why = xpcall(kind, debug.traceback, context, arguments_of(row))
    context.rebuilds.active = context.rebuilds.active - 1
    if not ok then
      log.error("sync_call_failed", got)
      got, why = nil, "an error of chromux; see its log"
    end
  end
  if context.dead or not context.drives then return end -- the next holder does it
  context.store:commit { { "UPDATE sync_calls SET answered_at = now(), done = $2, answer = $3 WHERE id = $1 "
    .. "AND answered_at IS NULL", row.id, got ~= nil, got and json.encode(got) or tostring(why) },
    { "SELECT pg_notify($1, $2)", M.DONE, string.format("%d", row.id) } }
end

-- What waits, each lane in a task of its own. calls: {taken={[id]=true}, lanes={[lane]={row, ...}}} of one holder.
local function look(context, calls)
  local rows = context.store.reader:query([[SELECT id, kind, lane, instance, arguments,
      extract(epoch FROM until - now())::float8 AS left FROM sync_calls
      WHERE answered_at IS NULL ORDER BY id LIMIT 500]])
  for _, row in ipairs(rows or {}) do
    if not calls.taken[row.id] then
      calls.taken[row.id] = true
      -- Of the catalogue each instance's part stands alone: one that hangs is waited for by nobody else.
      local key = row.lane == 0 and "0/" .. row.instance or row.lane
      local queue = calls.lanes[key]
      row.left = row.left + now() -- as a time, until it is its turn
      if queue then
        queue[#queue + 1] = row
      else
        queue = { row }
        calls.lanes[key] = queue
        spawn(function()
          while queue[1] and not context.dead do
            local next_row = table.remove(queue, 1)
            next_row.left = next_row.left - now()
            answer(context, next_row)
            calls.taken[next_row.id] = nil
          end
          calls.lanes[key] = nil
        end)
      end
    end
  end
end

-- As the holder, for as long as it is. J: the journal's state.
function M.serve(J)
  local context, calls, wanted = J.context, { taken = {}, lanes = {} }, News.new()
  if not J.sync_listening then
    J.sync_listening = true
    J.store.reader:listen(M.CHANNEL, function()
      if J.sync_wanted then J.sync_wanted:fire() end
    end)
  end
  J.sync_wanted = wanted
  spawn(function()
    local tidied, clock = now(), wanted:every(SERVE_EVERY)
    while not context.dead do
      if context.drives then look(context, calls) end
      if now() > tidied + 60 then
        tidied = now()
        context.store:commit { { "DELETE FROM sync_calls WHERE created_at < now() - interval '" .. KEPT .. "'" } }
      end
      wanted:wait()
    end
    clock:cancel()
  end)
end

return M
