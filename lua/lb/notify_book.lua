-- notify_book.lua: what is to be told, what was told, and what waits: the memory of the one that tells, without I/O.
--
-- An event is asked about (decide: "send", "hold" or "drop"), waits GATHER seconds for others, becomes part of a
-- message to each sink, and is told when one has taken it. Held ones are asked about again when their time has come.
-- A story (an alert and its end, lb.notices) is told as people see it: an alert that ended before it was told is
-- dropped together with its end; an end of what was told always has its turn; an alert that goes on is asked about
-- again, which makes a reminder. Limits count what was sent: sent[kind, key, urgency].
--
--   Book.new{now=fn, decide=fn(event, sent) -> answer, reason, wait, sinks=fn() -> {name, ...},
--            counts={accepted=, refused=, retries=, dropped=}, free=fn(event)}
--       what decide is given: policies/README.md; free: false while another one may be telling that event
--   add(event)  turn()  again()  next_at()             events as of notices.make
--   next_message(sink)  begun(m)  accepted(m, status)  refused(m, status, why)  retry(m, seconds, status, why)
--   dirty = {events={}, messages={}, sent={}}           what changed since it was last written (notify_store.lua)
local notices = require("lb.notices")

local Book = {}
Book.__index = Book

Book.GATHER = 2            -- seconds
Book.REMEMBER = 40 * 86400 -- seconds for which limits know what was sent
local GROUP_MOST = 30      -- events of a message
local ASK_LEAST, ASK_MOST, ASK_SOON = 1, 7 * 86400, 30
local LIVE_MOST = 1000
local LAST = 10 -- messages that /status shows
local NO_SINK = "its sink is not configured any more"
local MINUTE, HOUR = 60, 3600

function Book.new(options)
  return setmetatable({
    now = options.now, decide = options.decide, free = options.free, sinks = options.sinks,
    events = {}, messages = {}, stories = {},
    sent = {}, mutes = {}, ready = {}, ready_at = 0, quiet = {}, beginnings = {}, recent = {}, last = {}, live = 0,
    overflowed = 0, sequence = 0, sending = 0, counts = options.counts,
    dirty = { events = {}, messages = {}, sent = {} },
  }, Book)
end

-- ---- small things ----------------------------------------------------------------------------------------

local function story_id(family, key) return family .. "\0" .. key end
local function limit_id(e) return e.kind .. "\0" .. e.key .. "\0" .. e.urgency end

function Book:touch(e) self.dirty.events[e.uid] = e end

local function undecided(e) return e.state == "taken" or e.state == "held" end

function Book:drop(e, why)
  e.state, e.reason, e.ask_at = "dropped", why, nil
  self.counts.dropped = self.counts.dropped + 1
  self:touch(e)
  log.info("notice_dropped", e.kind .. " " .. e.key .. ": " .. why)
end

-- The story of an alert; nil: nothing of that kind goes on.
function Book:story(family, key) return self.stories[story_id(family, key)] end

local function close_story(self, e)
  local id = story_id(e.opens or e.ends, e.key)
  local s = self.stories[id]
  if not s then return end
  self.stories[id] = nil
  s.event.open, s.event.ask_at = false, nil
  self:touch(s.event)
end

-- What this limit knows: times and last (unix time) of what was sent, pending of what is on its way.
local function sent_of(self, e)
  local id = limit_id(e)
  local s = self.sent[id]
  if not s then
    s = { kind = e.kind, key = e.key, urgency = e.urgency, times = 0, pending = 0 }
    self.sent[id] = s
  end
  return s
end

-- ---- what decide is given --------------------------------------------------------------------------------

-- Until when an operator wants to hear nothing of this; 0: no such wish.
local function muted_until(self, ...)
  local till = 0
  for _, what in ipairs { ... } do till = math.max(till, self.mutes[what] or 0) end
  return till > self.now() and till or 0
end

-- How many of these times are within the last `seconds`; older ones than an hour are forgotten.
local function within(times, t, seconds)
  local n = 0
  while times[1] and times[1] <= t - HOUR do table.remove(times, 1) end
  for _, at in ipairs(times) do
    if at > t - seconds then n = n + 1 end
  end
  return n
end

-- The event as policies see it.
function Book:view(e)
  local story = (e.opens or e.ends) and story_id(e.opens or e.ends, e.key)
  return { kind = e.kind, key = e.key, urgency = e.urgency, at = e.at, now = self.now(), since = e.since or e.at,
    ends = e.ends ~= nil, repeats = e.repeats, title = e.title, text = e.text, fields = e.fields, group = {},
    openings = story and self.beginnings[story] and within(self.beginnings[story], self.now(), HOUR) or 1 }
end

-- What was sent, as policies see it.
local function history(self, e)
  local t = self.now()
  local s = self:story(e.opens or e.ends or "", e.key)
  local h = { count = sent_of(self, e).times, last_at = 0, last_urgency = "", same_at = sent_of(self, e).last or 0,
    in_last_minute = within(self.recent, t, MINUTE), in_last_hour = within(self.recent, t, HOUR),
    muted_until = muted_until(self, e.key, e.kind, e.kind .. ":" .. e.key), silent_until = muted_until(self, "*") }
  if s then h.count = s.known elseif e.opens or e.ends then h.count = 0 end
  for _, other in pairs(self.sent) do
    if other.key == e.key and (other.last or 0) > h.last_at then
      h.last_at, h.last_urgency = other.last, other.urgency
    end
  end
  return h
end

-- ---- what is to become of an event -----------------------------------------------------------------------

local function hold(self, e, till, why)
  e.ask_at, e.reason = till, why
  if e.told == 0 then e.state = "held" end
  self:touch(e)
end

-- It waits for others that go into the same message. What people know of its story is written with the message.
local function join_ready(self, e)
  if #self.ready == 0 then self.ready_at = self.now() end
  self.ready[#self.ready + 1] = e
  local s = e.opens and self:story(e.opens, e.key)
  if s and s.event == e then s.known = s.known + 1 end
end

local function make_ready(self, e, wait)
  local t = self.now()
  e.ask_at = e.opens and wait and t + math.max(ASK_LEAST, math.min(wait, ASK_MOST)) or nil
  e.state, e.reason = "ready", ""
  local quiet = self.quiet[e.key]
  if quiet and e.opens then e.repeats, self.quiet[e.key] = e.repeats + quiet, nil end
  join_ready(self, e)
  if e.ends then close_story(self, e) end
  self:touch(e)
end

local function ask(self, e)
  local t, s = self.now(), sent_of(self, e)
  if not self.free(e) then return hold(self, e, t + ASK_SOON, "PostgreSQL is away: another one may tell it") end
  if s.pending > 0 and not e.ends then return hold(self, e, t + ASK_SOON, "an equal message waits to be sent") end
  local answer, reason, wait = self.decide(self:view(e), history(self, e))
  if answer == "send" then return make_ready(self, e, wait) end
  if answer == "hold" then
    return hold(self, e, t + math.max(ASK_LEAST, math.min(wait or 60, ASK_MOST)), reason or "")
  end
  if e.told > 0 then -- no more reminders
    e.ask_at = nil
    return self:touch(e)
  end
  self:drop(e, reason or "")
  if e.ends then close_story(self, e) end
end

-- e comes instead of one that was not told yet.
local function replace(self, was, e)
  for i, other in ipairs(self.ready) do
    if other == was then table.remove(self.ready, i) break end
  end
  e.repeats = e.repeats + was.repeats + 1
  self:drop(was, "overtaken by a newer one")
end

-- Equal ones that still wait make place for e, which counts them.
local function overtake(self, e)
  for _, was in pairs(self.events) do
    if was ~= e and (undecided(was) or was.state == "ready") and limit_id(was) == limit_id(e) then
      replace(self, was, e)
    end
  end
end

local function open_story(self, e)
  local id = story_id(e.opens, e.key)
  local s = self.stories[id]
  if s then
    local was = s.event
    if s.ending then self:drop(s.ending, "it began again before this was told") end
    if undecided(was) then
      replace(self, was, e)
    elseif was.state == "ready" and was.told == 0 and limit_id(was) == limit_id(e) then
      s.known = s.known - 1
      replace(self, was, e)
    end
    was.open, was.ask_at, s.ending = false, nil, nil
    self:touch(was)
  else
    s = { since = e.at, known = 0 }
    self.stories[id] = s
    self.beginnings[id] = self.beginnings[id] or {}
    table.insert(self.beginnings[id], e.at)
  end
  s.event = e
  e.open, e.since, e.known = true, s.since, s.known
end

-- false: there is nothing to tell.
local function end_story(self, e)
  local s = self:story(e.ends, e.key)
  if not s then
    overtake(self, e)
    return true
  end
  local was = s.event
  if s.ending then
    self:drop(e, "its end waits to be told already")
    return false
  end
  if undecided(was) then
    self:drop(was, "over before it was told")
    self.quiet[e.key] = (self.quiet[e.key] or 0) + was.repeats + 1
  end
  e.lasted, e.since = math.max(0, e.at - s.since), s.since
  if s.known == 0 then
    close_story(self, e)
    self:drop(e, "what it ends was not told")
    return false
  end
  was.ask_at, s.ending = nil, e
  self:touch(was)
  return true
end

local function equip(self, e)
  local kind = notices.KINDS[e.kind] or {}
  e.opens, e.ends = kind.opens, kind.ends
  e.told, e.repeats, e.parts = e.told or 0, e.repeats or 0, 0
  self.sequence = self.sequence + 1
  e.sequence = self.sequence
  self.events[e.uid] = e
  self.live = self.live + 1
end

local FINAL = { told = true, dropped = true, refused = true }

-- With PostgreSQL away for long: what is over is forgotten though it is not written.
local function make_room(self)
  for uid, e in pairs(self.events) do
    if FINAL[e.state] and not e.open then
      self.events[uid], self.dirty.events[uid] = nil, nil
      self.live = self.live - 1
    end
  end
  for uid, m in pairs(self.dirty.messages) do
    if m.state ~= "queued" and m.state ~= "sending" then self.dirty.messages[uid] = nil end
  end
end

-- A new event. false: there is no room for it.
function Book:add(e)
  if self.events[e.uid] then return true end
  if self.live >= LIVE_MOST then make_room(self) end
  if self.live >= LIVE_MOST then
    self.overflowed = self.overflowed + 1
    log.error("notice_dropped", e.kind .. " " .. e.key .. ": " .. LIVE_MOST .. " events wait already")
    return false
  end
  equip(self, e)
  e.state, e.reason = "taken", ""
  self:touch(e)
  if e.opens then
    open_story(self, e)
  elseif e.ends then
    if not end_story(self, e) then return true end
  else
    overtake(self, e)
  end
  ask(self, e)
  return true
end

local function in_order(events)
  local list = {}
  for _, e in pairs(events) do list[#list + 1] = e end
  table.sort(list, function(a, b) return a.sequence < b.sequence end)
  return list
end

-- Asks about all that wait, whatever was said before: policies or silences have changed.
function Book:again()
  for _, e in ipairs(in_order(self.events)) do
    if e.ask_at then e.ask_at = math.min(e.ask_at, self.now()) end
  end
end

-- Those whose time has come, and those that were gathered.
function Book:turn()
  local t, due = self.now(), {}
  for uid, e in pairs(self.events) do
    if e.ask_at and e.ask_at <= t and e.state ~= "ready" and e.state ~= "queued" then due[uid] = e end
  end
  for _, e in ipairs(in_order(due)) do
    if e.ask_at then -- asking about another may have ended it
      e.ask_at = nil
      ask(self, e)
    end
  end
  if #self.ready > 0 and t >= self.ready_at + Book.GATHER then self:gather() end
end

-- ---- messages --------------------------------------------------------------------------------------------

-- Trouble with one sink is not told through it.
local function avoids(e, sink) return (e.opens or e.ends) == "messages" and e.key == "messages/" .. sink end

local function message(self, sink, list)
  local m = { uid = notices.next_uid(), sink = sink, events = {}, keys = {}, state = "queued", attempts = 0,
    at = self.now(), next_at = self.now(), error = "" }
  for i, e in ipairs(list) do
    m.events[i], m.keys[e.key] = e.uid, true
    e.parts = e.parts + 1
  end
  m.title = #list == 1 and list[1].title or list[1].title .. " (and " .. #list - 1 .. " more)"
  self.messages[#self.messages + 1] = m
  self.dirty.messages[m.uid] = m
end

function Book:gather()
  local ready = self.ready
  self.ready = {}
  for first = 1, #ready, GROUP_MOST do
    for _, sink in ipairs(self.sinks()) do
      local list = {}
      for i = first, math.min(first + GROUP_MOST - 1, #ready) do
        if not avoids(ready[i], sink) then list[#list + 1] = ready[i] end
      end
      if #list > 0 then message(self, sink, list) end
    end
  end
  for _, e in ipairs(ready) do
    e.counted = false
    if e.parts > 0 then
      e.state = "queued"
      local story = e.opens and self:story(e.opens, e.key)
      if story and story.event == e then e.known = story.known end
      local s = sent_of(self, e)
      s.pending = s.pending + 1
    else
      e.told, e.state, e.reason = e.told + 1, "told", "in the log only"
      log.warn("notice", e.title)
    end
    self:touch(e)
  end
end

-- The message that this sink gets next: the first whose time has come and that overtakes none about the same. nil: none
function Book:next_message(sink)
  local t, blocked = self.now(), {}
  for _, m in ipairs(self.messages) do
    if m.sink == sink then
      local free = m.state == "queued" and m.next_at <= t
      for key in pairs(m.keys) do free = free and not blocked[key] end
      if free then return m end
      for key in pairs(m.keys) do blocked[key] = true end
    end
  end
end

-- What was ready was not taken by anybody: people know that much less of its story.
local function untold(self, e)
  local story = e.opens and self:story(e.opens, e.key)
  if story and story.event == e then
    story.known = math.max(0, story.known - 1)
    e.known = story.known
  end
end

-- Is it configured?
function Book:has(sink)
  for _, name in ipairs(self.sinks()) do
    if name == sink then return true end
  end
  return false
end

-- A sink was taken out of the configuration: the message has its end, and what no other sink got or gets goes to those
-- that are there now.
local function orphaned(self, m)
  local lost = {}
  for _, uid in ipairs(m.events) do
    local e = self.events[uid]
    if e and e.parts == 1 and not e.counted then lost[#lost + 1] = e end
  end
  self:refused(m, "given_up", nil, NO_SINK)
  log.warn("message_given_up", m.sink .. " is not configured any more: " .. m.title)
  for _, e in ipairs(lost) do
    e.state, e.reason = "ready", ""
    self:touch(e)
    join_ready(self, e)
  end
end

-- The sinks may be others now: messages to those that are no more have their end, the others are tried at once.
function Book:configured()
  local waiting = {}
  for i, m in ipairs(self.messages) do waiting[i] = m end
  for _, m in ipairs(waiting) do
    if m.state == "queued" and self:has(m.sink) then
      m.next_at = math.min(m.next_at, self.now())
    elseif m.state == "queued" then
      orphaned(self, m)
    end
  end
end

-- Messages of this sink that wait, and when the oldest of them was made.
function Book:waiting(sink)
  local n, oldest = 0, nil
  for _, m in ipairs(self.messages) do
    if m.sink == sink then n, oldest = n + 1, oldest or m.at end
  end
  return n, oldest
end

function Book:begun(m)
  m.state, m.attempts = "sending", m.attempts + 1
  self.dirty.messages[m.uid] = m
end

local function forget_message(self, m)
  for i, other in ipairs(self.messages) do
    if other == m then table.remove(self.messages, i) break end
  end
  table.insert(self.last, 1, { at = self.now(), sink = m.sink, title = m.title, state = m.state,
    attempts = m.attempts, status = m.status, error = m.error })
  self.last[LAST + 1] = nil
end

local function count_sent(self, e)
  local s = sent_of(self, e)
  if not e.counted then
    e.counted, e.told, e.told_at = true, e.told + 1, self.now()
    s.times, s.last = s.times + 1, self.now()
    s.pending = math.max(0, s.pending - 1)
    self.dirty.sent[limit_id(e)] = s
    return true
  end
end

-- One of its messages has its end.
local function part_over(self, m, taken)
  local first = false
  for _, uid in ipairs(m.events) do
    local e = self.events[uid]
    if e then
      first = taken and count_sent(self, e) or first
      e.parts = e.parts - 1
      if e.parts == 0 and not e.counted then
        local s = sent_of(self, e)
        s.pending = math.max(0, s.pending - 1)
        e.state, e.reason = "refused", "no sink took it"
        untold(self, e)
      elseif e.parts == 0 then
        e.state = "told"
      end
      self:touch(e)
    end
  end
  if first then table.insert(self.recent, self.now()) end
end

function Book:accepted(m, status)
  m.state, m.status, m.error, m.sent_at = "sent", status, "", self.now()
  self.dirty.messages[m.uid] = m
  self.counts.accepted = self.counts.accepted + 1
  forget_message(self, m)
  part_over(self, m, true)
end

-- For good: it is not tried again. state: "refused" by the sink, or "given_up" by us.
function Book:refused(m, state, status, why)
  m.state, m.status, m.error = state, status, why
  self.counts.refused = self.counts.refused + 1
  self.dirty.messages[m.uid] = m
  forget_message(self, m)
  part_over(self, m, false)
end

function Book:retry(m, seconds, status, why)
  m.state, m.status, m.error, m.next_at = "queued", status, why, self.now() + seconds
  self.counts.retries = self.counts.retries + 1
  self.dirty.messages[m.uid] = m
  if not self:has(m.sink) then orphaned(self, m) end
end

-- It was not sent, and may be later.
function Book:postpone(m, seconds)
  m.state, m.attempts, m.next_at = "queued", m.attempts - 1, self.now() + seconds
  self.dirty.messages[m.uid] = m
  if not self:has(m.sink) then orphaned(self, m) end
end

-- ---- time and memory -------------------------------------------------------------------------------------

-- When turn() has something to do, messages left aside; nil: nothing waits.
function Book:next_at()
  local at
  for _, e in pairs(self.events) do
    if e.ask_at and e.state ~= "ready" and e.state ~= "queued" then at = math.min(at or e.ask_at, e.ask_at) end
  end
  if #self.ready > 0 then at = math.min(at or math.huge, self.ready_at + Book.GATHER) end
  return at
end

-- The clock was set back by so many seconds: what waits, and what limits remember, does not wait that much longer.
function Book:set_back(seconds)
  for _, e in pairs(self.events) do e.ask_at = e.ask_at and e.ask_at - seconds end
  for _, m in ipairs(self.messages) do m.next_at = m.next_at - seconds end
  for _, s in pairs(self.sent) do s.last = s.last and s.last - seconds end
  local function all(times)
    for i, at in ipairs(times) do times[i] = at - seconds end
  end
  all(self.recent)
  for _, times in pairs(self.beginnings) do all(times) end
  self.ready_at = self.ready_at - seconds
end

-- Forgets what is over and written, and limits that nothing was sent under for long.
function Book:sweep()
  local old = self.now() - Book.REMEMBER
  for id, s in pairs(self.sent) do
    if s.pending == 0 and (s.last or 0) < old and not self.dirty.sent[id] then self.sent[id] = nil end
  end
  for uid, e in pairs(self.events) do
    if FINAL[e.state] and not e.open and not self.dirty.events[uid] then
      self.events[uid] = nil
      self.live = self.live - 1
    end
  end
end

-- What an earlier sender left (notify_store.lua): events, messages, sent, and the times of the last hour: of messages,
-- and of events that began a story. Its clock may have been ahead of ours, and its policies others.
function Book:restore(events, messages, sent, recent, begun)
  for _, s in ipairs(sent) do
    local own = sent_of(self, s)
    own.times, own.last = own.times + s.times, math.max(own.last or 0, math.min(s.last, self.now()))
  end
  for _, r in ipairs(recent) do table.insert(self.recent, math.min(r.at, self.now())) end
  table.sort(self.recent)
  for _, b in ipairs(begun) do
    local kind = notices.KINDS[b.kind]
    local id = kind and kind.opens and story_id(kind.opens, b.key)
    if id then
      self.beginnings[id] = self.beginnings[id] or {}
      table.insert(self.beginnings[id], math.min(b.at, self.now()))
      table.sort(self.beginnings[id])
    end
  end
  for _, e in ipairs(events) do self:adopt(e) end
  for _, m in ipairs(messages) do
    m.keys = {}
    if m.state == "sending" then
      m.state, m.next_at = "queued", math.min(m.next_at, self.now())
      log.warn("message_again", m.title .. ": whether " .. m.sink .. " has it already is not known")
    end
    for _, uid in ipairs(m.events) do
      local e = self.events[uid]
      if e then
        m.keys[e.key], e.parts = true, e.parts + 1
        if e.parts == 1 then
          e.state = "queued"
          e.counted = e.told_at ~= nil and e.told_at >= m.at -- another sink took it before
          local s = sent_of(self, e)
          s.pending = s.pending + (e.counted and 0 or 1)
        end
      end
    end
    self.messages[#self.messages + 1] = m
  end
  for _, e in ipairs(in_order(self.events)) do
    if e.state == "queued" and e.parts == 0 then e.state = e.told > 0 and "told" or "taken" end
    if e.state == "taken" and not e.ask_at then e.ask_at = self.now() end
  end
  self:configured()
  self:again()
end

-- An event that is in another's hand, or was: as it stands.
function Book:adopt(e)
  if self.events[e.uid] then return end
  local state = e.state
  equip(self, e)
  e.counted = false
  e.state = state
  if e.open and e.opens then
    local id = story_id(e.opens, e.key)
    local s = self.stories[id]
    if s then -- two tell of the same: the newer one goes on
      s.since, s.known = math.min(s.since, e.since), s.known + e.known
      s.event.since, s.event.known = s.since, s.known
      e.open, e.ask_at = false, nil
      self:touch(s.event)
      self:touch(e)
      if undecided(e) or e.state == "ready" then self:drop(e, "overtaken by a newer one") end
    else
      self.stories[id] = { since = e.since, known = e.known, event = e }
    end
  elseif e.ends and undecided(e) then
    local s = self:story(e.ends, e.key)
    if s then
      s.ending, e.lasted = e, math.max(0, e.at - s.since)
    end
  end
  if e.state == "ready" then join_ready(self, e) end
end

return Book
