-- notify_teller.lua: the one that tells people: it takes events in, asks what is to become of them, keeps book, and
-- hands messages to the sinks.
--
--   Teller.new{now=fn, book options…, store= (nil: no DATABASE_URL), sinks=, call=policy.call,
--              may=fn() -> true | "alone" | false      whether this process is to tell (notify.lua)
--              dead=fn(holder), watch=fn(teller)}      watch: looks for what nobody raises (notify_watch.lua)
--   turn()             one step of all but sending; some times a second
--   deliver(sink)      sends the next message, if there is one whose time has come; true when there was
--
-- With PostgreSQL each change is written before anything is done because of it: a message is `sending` in its row
-- before its first byte goes out, and `sent` after the answer. A sender that dies is followed by one that sends again
-- only what was under way. With PostgreSQL away events are told from memory and recorded later; what is recorded
-- already is sent only while the lease holds by our own clock: another one may tell it after that.
local Book = require("lb.notify_book")
local Sinks = require("lb.notify_sinks")
local notices = require("lb.notices")

local Teller = {}
Teller.__index = Teller

local HOUR, DAY = 3600, 86400
local LOOK = 1             -- seconds between looks at PostgreSQL
local RENEW = 5            -- seconds after which the lease is renewed though nothing is to be written
local AWAY = 5             -- seconds without PostgreSQL after which events are told from memory
local SURE = Sinks.TIMEOUT + Book.GATHER + 1 -- seconds of the lease within which an event can be told
local BACK_OFF_MOST = 300  -- seconds between tries of a message
local GIVE_UP = 7 * DAY    -- age at which a message is given up
local FAILING_AFTER = 300  -- seconds of failed tries after which other sinks are told
local TRIM, KEEP_DAYS = HOUR, 90

-- What decides when policies/notify.lua does not: at once, then at most hourly, and always the end.
function Teller.decide(event, sent)
  local quiet = math.max(sent.silent_until, sent.muted_until) - event.now
  if event.ends and sent.count == 0 then return "drop", "its beginning was not told" end
  if quiet > 0 then return "hold", "silence", quiet end
  if event.ends then return "send" end
  local again = event.kind:find("^recommendation") and DAY or HOUR
  local left = sent.same_at + again - event.now
  if left > 0 then return "hold", "told lately", left end
  return "send", "", again
end

local function new_book(self)
  local function decide(event, sent)
    local answer, reason, wait = self.call("notify.decide", event, sent)
    if answer == "send" or answer == "hold" or answer == "drop" then return answer, reason, wait end
    return Teller.decide(event, sent)
  end
  local function free(e) return not (self.store and e.recorded) or self.store:left() > SURE end
  return Book.new { now = self.now, counts = self.counts, decide = decide, free = free,
    sinks = function() return self.sinks:names() end }
end

function Teller.new(options)
  local self = setmetatable({ on = false, leased = false, tried = 0, looked = 0, saved = 0, trimmed = 0,
    trouble = {},
    counts = { accepted = 0, refused = 0, retries = 0, dropped = 0 },
    fault = function() end, watch = function() end }, Teller)
  for name, value in pairs(options) do self[name] = value end
  self.book = new_book(self)
  return self
end

-- ---- becoming and ceasing to be the one --------------------------------------------------------------------

local function consume(self) notices.consume(function(e) self.book:add(e) end) end

local function restore(self)
  local kept, why = self.store:load(self.now())
  if not kept then return nil, why end
  self.book:restore(kept.events, kept.messages, kept.sent, kept.recent, kept.begun)
  self.leased = true
  return true
end

-- true: the lease is ours and what was left is in the book; false: it is another's; nil: PostgreSQL is away.
local function take(self)
  local mine = self.store:take(self.dead)
  if not mine then return mine end
  return restore(self)
end

local function begin(self, may)
  if not self.store then
    self.on = true
    return consume(self)
  end
  local t, mine = self.store.clock(), nil
  if t < self.tried + LOOK then return end
  self.tried = t
  if may == true then mine = take(self) end
  if mine == false then return end
  if not mine and self.store.last_ok > 0 and t - self.store.last_ok < AWAY then return end
  self.on = true
  log.info("notify", mine and "tells people" or "tells people from memory: PostgreSQL is away")
  consume(self)
end

-- What is under way ends, all is left in PostgreSQL, and another one may take the lease. lost: it is another's already.
local function hand_over(self, book, lost)
  while book.sending > 0 and not self.over do sleep(0.05) end
  if not lost and self.store:save(book) == "done" then
    return not self.leased and self.store:release()
  end
  while not self.over and not self.store:facts(book) do sleep(1) end
  if not lost and not self.leased then self.store:release() end
end

-- Another one tells from now on.
local function leave(self, lost)
  local book = self.book
  notices.consume(nil)
  log.info("notify", "tells people no more" .. (lost and ": another one does" or ""))
  local had_lease = self.leased
  self.on, self.leased, self.trouble, self.book = false, false, {}, new_book(self)
  spawn(hand_over, self, book, lost or not had_lease)
end

-- ---- keeping in step with PostgreSQL -----------------------------------------------------------------------

local function save(self)
  if not self.store or not self.leased then return "away" end
  local outcome = self.store:save(self.book)
  if outcome == "done" then
    self.saved = self.store.clock()
    self.book:sweep()
  elseif outcome == "lost" then
    leave(self, true)
  end
  return outcome
end
Teller.save = save

local function unwritten(book)
  return next(book.dirty.events) or next(book.dirty.messages) or next(book.dirty.sent)
end

local function take_in(self)
  local rows = self.store:fresh()
  if not rows then return end
  for _, e in ipairs(rows) do
    if e.state == "new" then
      if not self.book:add(e) then break end
    elseif e.open then
      self.book:adopt(e)
    end
  end
  local mutes = self.store:mutes(self.now())
  if not mutes then return end
  local changed = false
  for what, till in pairs(mutes) do changed = changed or self.book.mutes[what] ~= till end
  for what in pairs(self.book.mutes) do changed = changed or not mutes[what] end
  self.book.mutes = mutes
  if changed then self.book:again() end
end

local function look(self)
  local t = self.store.clock()
  if not self.poked and t < self.looked + LOOK then return end
  self.poked, self.looked = false, t
  if self.leased then
    take_in(self)
    if t > self.trimmed + TRIM then
      self.trimmed = t
      self.store:trim(KEEP_DAYS)
    end
  elseif self.store:usable() and take(self) == false then
    leave(self, true)
  end
end

-- Waits are times of the clock on the wall, which other balancers go on with; nobody is to wait for the difference
-- when it is set back.
local function look_at_clock(self)
  local t = self.now()
  local back = (self.clock_was or t) - t
  self.clock_was = t
  if back < 1 then return end
  log.warn("clock_set_back", string.format("by %.0f s", back))
  self.book:set_back(back)
  for _, s in pairs(self.trouble) do
    s.not_before, s.since = s.not_before - back, s.since and s.since - back
  end
end

function Teller:turn()
  local may = self.may()
  look_at_clock(self)
  if not self.on then
    if not may or self.over then return end
    begin(self, may)
  elseif not may then
    return leave(self)
  end
  if not self.on then return end
  if self.store then look(self) end
  if self.on and self.leased and self.store.clock() > self.saved + RENEW then save(self) end
  if not self.on then return end
  self.watch(self)
  self.book:turn()
  if not self.store then
    self.book.dirty = { events = {}, messages = {}, sent = {} }
    self.book:sweep()
  elseif unwritten(self.book) then
    save(self)
  end
end

-- Policies, settings or sinks have changed.
function Teller:changed()
  self.trouble = {}
  self.book:configured()
  self.book:again()
end

-- ---- sending ---------------------------------------------------------------------------------------------

-- With PostgreSQL away: may it be sent though nobody can be told that we do?
local function alone_with(self, book, m)
  if not self.store then return true end
  local known = m.recorded
  for _, uid in ipairs(m.events) do known = known or (book.events[uid] and book.events[uid].recorded) end
  return not known or self.store:left() > Sinks.TIMEOUT + 1
end

local function raise_failing(self, sink, why, text)
  if self.book:story("messages", "messages/" .. sink) then return end
  log.error("messages_failing", sink .. ": " .. why)
  notices.raise { kind = "messages_failing", key = "messages/" .. sink, text = text,
    title = "Messages to " .. sink .. " are failing",
    fields = { { "sink", sink }, { "cause", why }, { "waiting", (self.book:waiting(sink)) } } }
end

local function went_well(self, sink)
  local s = self.trouble[sink]
  s.failures, s.since, s.error, s.not_before = 0, nil, "", 0
  if not self.book:story("messages", "messages/" .. sink) then return end
  log.info("messages_delivered", sink)
  notices.raise { kind = "messages_delivered", key = "messages/" .. sink, title = "Messages to " .. sink
    .. " go out again", fields = { { "sink", sink } } }
end

local function went_badly(self, book, m, s, status, why, seconds)
  local t = self.now()
  s.failures, s.since, s.error = s.failures + 1, s.since or t, why
  log.warn("message_retry", m.sink .. ": " .. why)
  if t - m.at > GIVE_UP then
    book:refused(m, "given_up", status, why)
    return raise_failing(self, m.sink, why, "What is older than 7 days is given up.")
  end
  local own = math.min(2 ^ math.min(m.attempts - 1, 20), BACK_OFF_MOST)
  s.not_before = t + (seconds or math.min(2 ^ math.min(s.failures - 1, 20), 60))
  book:retry(m, math.max(own, seconds or 0), status, why)
  if t - s.since >= FAILING_AFTER then raise_failing(self, m.sink, why, "They are kept and sent later.") end
end

local function result(self, book, m, outcome, status, why, seconds)
  local s = self.trouble[m.sink]
  if outcome == "accepted" then
    log.info("message_sent", m.sink .. ": " .. m.title)
    book:accepted(m, status)
    went_well(self, m.sink)
  elseif not book:has(m.sink) then -- it was taken out of the configuration meanwhile
    book:retry(m, 0, status, why)
  elseif outcome == "refused" then
    book:refused(m, "refused", status, why)
    s.error = why
    log.error("message_refused", m.sink .. ": " .. why .. ": " .. m.title)
    raise_failing(self, m.sink, why, "What it refuses is not sent to it again: " .. m.title)
  else
    went_badly(self, book, m, s, status, why, seconds)
  end
end

local function views(book, m)
  local list = {}
  for _, uid in ipairs(m.events) do
    if book.events[uid] then list[#list + 1] = book:view(book.events[uid]) end
  end
  return list
end

-- How a sink fares: {failures=, since=, error=, not_before=, told=}
local function fares(self, sink)
  self.trouble[sink] = self.trouble[sink] or { failures = 0, error = "", not_before = 0 }
  return self.trouble[sink]
end

local function send(self, sink, book, m)
  self.fault("notify.before_send")
  local events = views(book, m)
  if #events == 0 then return result(self, book, m, "refused", nil, "its events are not known any more") end
  book.sending = book.sending + 1
  local outcome, status, why, seconds = self.sinks:send(sink, m, events)
  book.sending = book.sending - 1
  self.fault("notify.answered")
  fares(self, sink)
  result(self, book, m, outcome, status, why, seconds)
end

function Teller:deliver(sink)
  local book, s = self.book, fares(self, sink)
  if not self.on or self.now() < s.not_before then return false end
  local m = book:next_message(sink)
  if not m then return false end
  book:begun(m)
  self.fault("notify.before_claim")
  -- The lease is looked at even after it was renewed: this process may have stood still since.
  local written = save(self) == "done" and self.store:left() > Sinks.TIMEOUT
  if not written and (self.book ~= book or not alone_with(self, book, m)) then
    if self.book == book then book:postpone(m, RENEW) end
    return false
  end
  send(self, sink, book, m)
  if self.book == book then save(self) end
  self.fault("notify.recorded")
  return true
end

-- ---- the end ---------------------------------------------------------------------------------------------

-- What is ready goes out at once, the rest is left in PostgreSQL and the lease given back. For a task; turn() and
-- deliver() are not called meanwhile, nor after it.
function Teller:stop()
  if self.on then
    if #self.book.ready > 0 then self.book:gather() end
    for _, sink in ipairs(self.sinks:names()) do
      while self:deliver(sink) do self.fault("notify.stopping") end
    end
  end
  if self.on and self.leased then
    self.store:save(self.book)
    self.store:release()
  end
  self.over, self.on = true, false
end

return Teller
