-- lanes.lua: the writes of one collection, in order, on every copy of it (PROTOCOL.md R3 to R8).
--
-- Each copy has a driver: it takes the entry behind the copy's position, sends it, and moves the position on. The
-- first copy to come to an entry that has no verdict yet decides it, the preferred one if that can; the others
-- follow. A driver runs while there is something to do and ends when it must wait for others; whoever changes
-- what it waits for calls lane:kick().
--
--   entry  {n=, token=, action=, rest=, type=, body=, resolved=, verdict=, status=, answer=, tickets={...}}
--   copy   {instance=, server=, physical=, incarnation=, p=, state=, doubt=, held=, over=}   doubt: the highest entry
--          that was sent and got no definite answer; 0 when none is above p. held: its driver stands still (hold.lua).
--          over: another collection has taken its place, and what is still under way for it changes nothing
--          lacking: {n=, since=}: as PostgreSQL said, how long the entry behind its position has been there
local Store = require("lb.store")
local answers = require("lb.answers")
local attempt = require("lb.attempt")
local groups = require("lb.groups")
local sound = require("lb.sound")

local Lane = {}
Lane.__index = Lane

local LOAD_ENTRIES = 128       -- read from PostgreSQL at a time
local FEED_PACE = 0.06         -- seconds that a busy lane's followers wait for more to share the request
local GATHER_MOST = 0.005      -- seconds that entries wait for others that are likely to come at once
local DIVERGED_AFTER = 8       -- 5xx in a row on an entry that another copy took
local FAILED_AFTER = 2         -- 5xx on every copy, alone, so often: the entry has failed

-- What a driver does after a step.
local STOP, GO, PAUSE = "stop", "go", "pause"

-- context: one stay in one role (journal.lua): {store=, servers=, copies=, settings=, answer(entry,
-- instance), holder=, drives= (may begin new steps), dead= (it is over), trusted= (what is known may be read by)}
function Lane.new(context, row)
  return setmetatable({
    context = context, id = row.id, logical = row.logical, tenant = row.tenant, database = row.database,
    name = row.name, head = row.head, floor = row.floor or 0, trimmed = row.trimmed or 0,
    entries = {}, oldest = row.oldest or 1, copies = {}, order = {}, decider = nil, open = true, failures = {},
    pins = {},                  -- who needs the entries behind a number: it is not trimmed
    under_way = 0, last_at = 0, -- appends that have no answer yet; when the last one came
    company = 1, free_at = 0,   -- entries that were decided or waited at the last verdict, and when that was
    decided = row.decided or row.head, waiting_since = now(),
  }, Lane)
end

-- ---- what is known ---------------------------------------------------------------------------------------

function Lane:copy_add(c)
  local copy = {
    instance = c.instance, server = c.server, physical = c.physical, incarnation = c.incarnation or 1,
    p = c.position or 0, state = c.state or "ready", reason = c.reason or "", doubt = c.doubt or 0,
    tried = 0, settled = c.settled ~= false, since = now(), changed = c.changed or now(),
  }
  self.copies[c.instance] = copy
  self.order[#self.order + 1] = copy
  self:publish(copy)
  return copy
end

-- The path of the collection on the copy's server.
function Lane:target(copy, rest)
  return "/api/v2/tenants/" .. self.context.encode(self.tenant) .. "/databases/" .. self.context.encode(self.database)
    .. "/collections/" .. copy.physical .. rest
end

-- May it be used in its server's present life? If that is not known yet it is found out, and the copy looks again.
function Lane:is_sound(copy)
  if sound.known(copy) then return true end
  sound.look(self, copy, function() return self:target(copy, "") end)
  return false
end

-- Tells the read side what this copy may answer. Reads wait for copies that are not readable yet, so one that only a
-- rebuild can help is not shown.
function Lane:publish(copy)
  local context = self.context
  if copy.physical == "" or copy.over or context.dead then return end
  if copy.state ~= "ready" or copy.lost == copy.physical then
    return context.copies.copy_drop(self.logical, copy.instance)
  end
  local readable = context.trusted and copy.doubt == 0 and copy.server:readable()
  readable = readable and self:is_sound(copy)
  self.context.copies.copy_set(self.logical, copy.instance, copy.physical, copy.p, readable)
end

function Lane:publish_floor()
  if not self.context.dead then self.context.copies.floor(self.logical, self.floor) end
end

local function reached(lane, copy, p)
  copy.p = math.max(copy.p, p)
  if copy.p >= copy.doubt then copy.doubt = 0 end
  copy.since = now()
  lane:publish(copy)
end

-- Entries up to hi were sent to the copy, and have no definite answer.
function Lane:doubt(copy, hi)
  if hi <= copy.doubt then return end
  copy.doubt = hi
  self:publish(copy)
  self.context.store:enqueue({ Store.doubt(self.id, copy, hi) }, nil, function() end) -- the standbys are to know
end

-- A new entry, the one behind the head, or one that was kept before.
local function noted(lane, e)
  local t = now()
  if lane.decided >= lane.head then lane.waiting_since = t end
  for _, copy in ipairs(lane.order) do
    if copy.p >= lane.head then copy.since = t end
  end
  e.created = e.created or t
  lane:remember(e)
  lane.head, lane.oldest = math.max(lane.head, e.n), math.min(lane.oldest, e.n)
end

function Lane:insert(e)
  noted(self, e)
  self:kick()
end

-- One append more is on its way to PostgreSQL; it ends with arrived(e), or arrived() when there is no entry.
function Lane:arriving() self.under_way = self.under_way + 1 end

function Lane:arrived(e)
  self.under_way = self.under_way - 1
  if e then
    e.at, e.busy = now(), now() - self.last_at < FEED_PACE
    self.last_at = e.at
    noted(self, e)
  end
  self:kick()
end

-- All entries up to n have a verdict.
local function decided_to(lane, n)
  if n <= lane.decided then return end
  lane.decided, lane.waiting_since = n, now()
end

-- Keeps the entry in memory until all copies have it, as far as there is room; in place of what was read of it before.
function Lane:remember(e)
  local memory, before = self.context.memory, self.entries[e.n]
  self.entries[e.n] = e
  if self.open then memory.used = memory.used + #e.body - (before and #before.body or 0) end
end

-- Decided entries only: the others have somebody waiting.
function Lane:forget(upto)
  while self.open and self.oldest <= upto do
    local e = self.entries[self.oldest]
    if e and not e.verdict then return end
    if e then self.context.memory.used = self.context.memory.used - #e.body end
    self.entries[self.oldest] = nil
    self.oldest = self.oldest + 1
  end
end

-- What every copy that is not to be rebuilt has behind it need not be kept. Over the memory's bound whatever is
-- decided goes, and is read again when it is needed.
local function tidy(lane)
  local least = lane.head
  for _, copy in ipairs(lane.order) do
    if copy.state == "ready" then least = math.min(least, copy.p) end
  end
  if lane.context.memory.used > lane.context.memory.most then
    least = lane.head
  end
  lane:forget(least)
end

-- The entry n, from memory or from PostgreSQL. nil, why
function Lane:entry(n)
  local e = self.entries[n]
  if e then return e end
  local rows, why = self.context.store:entries(self.id, n, LOAD_ENTRIES)
  if not rows then return nil, why end
  for _, row in ipairs(rows) do
    if not self.entries[row.n] then
      row.tickets = {}
      self:remember(row)
      self.oldest = math.min(self.oldest, row.n)
    end
  end
  e = self.entries[n]
  if not e then return nil, "entry " .. n .. " is not in the journal" end
  return e
end

Lane.REFUSES = "it refuses entry " -- the beginning of the reason why a copy is made anew, which its next self keeps

-- ---- states of copies ------------------------------------------------------------------------------------

-- Durably out of use until it is made anew.
function Lane:mark(copy, state, reason)
  if (copy.state ~= "ready" and copy.state ~= "unverified") or copy.over or self.leaving or not self.open then
    return true
  end
  if not self.context.holder then return false end
  copy.state, copy.reason, copy.changed = state, reason, now()
  self:publish(copy)
  local rows, why = self.context.store:commit { Store.copy_state(self.id, copy, state, reason) }
  self.context.events:note("copy_lost", copy.instance, nil, self.logical .. ": " .. reason, false)
  log.warn("copy_lost", self.logical .. " on " .. copy.instance .. ": " .. reason)
  if self.decider == copy then self.decider = nil end
  self:kick()
  return rows ~= nil, why
end

-- ---- verdicts --------------------------------------------------------------------------------------------

-- Records the verdict of n..hi together with the position of the copy that gave it, then answers. false: the
-- lease is lost.
local function record(lane, copy, group, verdict, answer)
  local n, hi = group[1].n, group[#group].n
  for _, e in ipairs(group) do e.deciding = verdict end
  answer = answers.under(answer, copy.physical, lane.logical)
  lane.context.fault("decision.before_commit")
  local rows = lane.context.store:commit {
    Store.decide(lane.id, n, hi, verdict, answer, verdict == "failed" and copy.instance or nil),
    Store.position(lane.id, copy, hi) }
  if rows and rows[1].affected == 0 then -- recorded before: by ourselves, or refused as the lane closed
    local there
    repeat
      there = lane.context.store:entries(lane.id, n, 1)
      if not there then sleep(0.1) end
    until there or lane.context.dead
    if not there or not there[1] or there[1].verdict ~= verdict then return false end
  end
  if not rows then
    for _, e in ipairs(group) do e.deciding = nil end
    return false
  end
  if not lane.open then return false end -- closed before this: all that waited was refused
  lane.context.fault(verdict == "failed" and "failed.recorded" or "verdict.committed_unanswered")
  for _, e in ipairs(group) do
    e.verdict, e.status, e.answer, e.answer_type = verdict, answer.status, answer.body, answer.type
    e.authority = verdict == "failed" and copy.instance or nil
  end
  lane.context.counts[verdict] = lane.context.counts[verdict] + #group
  lane.context.events:decided(lane, copy.server)
  decided_to(lane, hi)
  if verdict == "applied" then
    lane.floor = math.max(lane.floor, hi)
    lane:publish_floor()
  end
  reached(lane, copy, hi)
  lane.company, lane.free_at = lane.head - n + 1, now()
  lane.context.fault("answer.before")
  for _, e in ipairs(group) do lane.context.answer(e, copy.instance) end
  return true
end

local function advance(lane, copy, p)
  local statement = Store.position(lane.id, copy, p)
  lane.context.fault("position.delayed_update")
  lane.context.fault("position.before")
  local rows = lane.context.store:commit { statement }
  if not rows then return false end
  lane.context.fault("position.after")
  reached(lane, copy, p)
  return true
end

-- ---- the driver ------------------------------------------------------------------------------------------

-- The copy that is to decide n: of those that have all before it and can be reached, on servers that are well if
-- there are such, the one that the route policy wants. It is asked once for each try.
local function choose_decider(lane, n)
  local well, doubtful = {}, {}
  for _, server in ipairs(lane.context.servers.list) do
    local copy = lane.copies[server.name]
    if copy and copy.state == "ready" and copy.p == n - 1 and copy.settled and not copy.draining and not copy.held
      and server:usable() and copy.tried ~= n and sound.known(copy) then
      table.insert(server.health == "up" and well or doubtful, copy)
    end
  end
  local able = #well > 0 and well or doubtful
  if #able < 2 then return able[1] end
  local names = {}
  for i, copy in ipairs(able) do
    if lane.chosen_for == n and lane.chosen == copy then return copy end
    names[i] = copy.instance
  end
  local e = lane.entries[n]
  local name = lane.context.choose(lane:target({ physical = lane.logical }, e.rest), #e.body, 1, names)
  lane.chosen_for, lane.chosen = n, lane.copies[name] or able[1]
  return lane.chosen
end

-- All have tried it in vain: from the start, after a pause.
local function try_all_again(lane, n)
  local any = false
  for _, copy in ipairs(lane.order) do
    if copy.tried == n then
      copy.tried = 0
      any = true
    end
  end
  return any
end

local function release(lane, copy, n)
  if lane.decider ~= copy then return end
  copy.tried = n
  lane.decider = nil
  lane:kick()
end

-- Has every copy that counts answered 5xx to n alone, often enough (R7)? Those that are down count too.
local function failed_everywhere(lane, n)
  local f = lane.failures[n] or {}
  for _, copy in ipairs(lane.order) do
    if copy.state == "ready" and (f[copy.instance] or 0) < FAILED_AFTER then return false end
  end
  return true
end

-- Another copy's verdict on this entry may be on its way to PostgreSQL.
local function await_verdict(lane, e)
  while e.deciding and not e.verdict and not lane.context.dead do sleep(0.002) end
end

local function decided(lane, copy, ok)
  if lane.decider == copy then lane.decider = nil end
  lane:kick()
  return ok and GO or PAUSE
end

-- The copy has applied the group: those entries of it that have no verdict yet. nil: it should not have.
local function took(lane, copy, group)
  local waited
  repeat -- until all are still at once
    waited = false
    for _, e in ipairs(group) do
      if e.deciding and not e.verdict and not lane.context.dead then
        await_verdict(lane, e)
        waited = true
      end
    end
  until not waited
  for _, e in ipairs(group) do
    if e.verdict and e.verdict ~= "applied" then
      lane:mark(copy, "rebuild", "it applied entry " .. e.n .. ", which is " .. e.verdict)
      return nil
    end
  end
  local open = {}
  for _, e in ipairs(group) do
    if not e.verdict then open[#open + 1] = e end
  end
  return open
end

-- What the end of a request for this group means for the copy, and for entries without a verdict.
local function digest(lane, copy, group, kind, answer)
  local e, hi = group[1], group[#group].n
  if kind == "not_sent" or kind == "later" then
    release(lane, copy, e.n)
    return PAUSE
  elseif kind == "lost" then
    lane:mark(copy, "rebuild", "the server does not know its collection any more")
    return STOP
  elseif kind == "applied" then
    lane.context.fault("recv.2xx_before_decision")
    local open = took(lane, copy, group)
    if not open then return STOP end
    if #open == 0 then return decided(lane, copy, advance(lane, copy, hi)) end
    return decided(lane, copy, record(lane, copy, open, "applied", answer))
  elseif kind == "refused" then
    if #group > 1 then -- nothing of a refused group was applied: one by one
      lane.context.fault("group.refused_unwinding")
      copy.alone_until = hi
      if lane.decider == copy then lane.decider = nil end
      return GO
    end
    lane.context.fault("recv.4xx_before_decision")
    await_verdict(lane, e)
    if e.verdict == "applied" then
      -- One that was made anew because of that and does it again will never be equal.
      local again = copy.reason:find(Lane.REFUSES, 1, true) == 1
      lane:mark(copy, again and "incompatible" or "rebuild", Lane.REFUSES .. e.n .. ", which another copy applied: "
        .. answer.status)
      return STOP
    end
    -- What an earlier try of one that failed or was skipped has done here is not what this one was refused for.
    if e.verdict == "failed" or e.verdict == "skipped" then return decided(lane, copy, true) end
    if e.verdict then return decided(lane, copy, advance(lane, copy, e.n)) end
    return decided(lane, copy, record(lane, copy, group, "rejected", answer))
  end
  -- "unsure", "over", "unknown"
  lane:doubt(copy, hi)
  if kind == "unknown" then
    copy.settled = false
    lane:settle(copy, copy.server:horizon_after(answer))
  elseif kind == "unsure" and #group > 1 then
    copy.alone_until = hi
  elseif kind == "unsure" then
    local f = lane.failures[e.n] or {}
    lane.failures[e.n] = f
    f[copy.instance] = (f[copy.instance] or 0) + 1
    await_verdict(lane, e)
    if e.verdict and f[copy.instance] >= DIVERGED_AFTER then
      lane:mark(copy, "rebuild", "answers " .. answer.status .. " to entry " .. e.n .. ", which is " .. e.verdict)
      return STOP
    end
    if not e.verdict and failed_everywhere(lane, e.n) then
      lane.failures[e.n] = nil
      return decided(lane, copy, record(lane, copy, group, "failed", answers.failure(answer)))
    end
    if not e.verdict and f[copy.instance] == FAILED_AFTER then lane.context.fault("failed.first_copy") end
  end
  release(lane, copy, e.n)
  return PAUSE
end

-- Is there another copy that stands at the entry or beyond and holds nothing that is not known of it?
local function clean_elsewhere(lane, copy, n)
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and (other.p >= n or other.doubt < n) then return true end
  end
  return false
end

-- What a failed or skipped entry has done is known only on its authority, which every other copy that may have been
-- sent it follows by being made anew. While there is no such copy the first one to arrive becomes it, by
-- compare-and-set (R7). true: this copy may go on; false: it waits; nil: it is to be made anew.
local function follow_authority(lane, copy, e)
  if e.authority == copy.instance then return true end
  if e.verdict == "skipped" and not e.authority and copy.doubt < e.n then return true end -- it was never sent here
  local held = e.authority and lane.copies[e.authority]
  local there = held and held.state == "ready"
  if not there and e.verdict == "skipped" then there = clean_elsewhere(lane, copy, e.n) end
  if there then
    lane:mark(copy, "rebuild", "what it did of entry " .. e.n .. ", which " .. (e.verdict == "failed" and "failed"
      or "was skipped") .. ", is not known")
    return nil
  end
  local rows = lane.context.store:commit { Store.adopt(lane.id, e.n, e.authority, copy.instance) }
  if not rows then return false end
  if rows[1].affected == 0 then -- another was first: look again
    local now_there = lane.context.store:entries(lane.id, e.n, 1)
    if now_there and now_there[1] then e.authority = now_there[1].authority end
    return false
  end
  log.warn("authority_adopted", lane.logical .. ": entry " .. e.n .. " is as " .. copy.instance .. " has it")
  e.authority = copy.instance
  return true
end

-- Entries that were rejected are passed over, in one go. One that this copy may have been sent is sent again: its
-- state before it is the same as the other copy's was, so it answers the same, and if it does not it is not equal.
local function pass_over(lane, copy, e)
  if e.verdict == "failed" or e.verdict == "skipped" then
    local may = follow_authority(lane, copy, e)
    if not may then return may == nil and STOP or PAUSE end
    decided_to(lane, e.n)
    return advance(lane, copy, e.n) and GO or PAUSE
  end
  if copy.doubt >= e.n and e.verdict ~= "skipped" and e.verdict ~= "void" then
    local kind, answer = attempt.transmit(lane, copy, { e })
    return digest(lane, copy, { e }, kind, answer)
  end
  local p = e.n
  while lane.entries[p + 1] and copy.doubt <= p
    and (lane.entries[p + 1].verdict == "rejected" or lane.entries[p + 1].verdict == "void") do
    p = p + 1
  end
  return advance(lane, copy, p) and GO or PAUSE
end

-- Others are likely to join: their commits are under way, or as many clients as last time have yet to come back.
-- Waiting for them is short beside a request of their own.
local function gathering(lane, copy, e)
  local waiting = lane.head - e.n + 1
  if not groups.joins(e.action) or waiting >= groups.MOST or (copy.alone_until or 0) >= e.n then return false end
  if lane.under_way == 0 and waiting >= lane.company then return false end
  local left = math.max(e.at or 0, lane.free_at) + GATHER_MOST - now()
  if left <= 0 then return false end
  if not lane.gathers then
    lane.gathers = true
    spawn(function()
      sleep(left)
      lane.gathers = false
      lane:kick_copy(copy)
    end)
  end
  return true
end

-- A follower's requests compete with those that decide: where writes come fast, it takes several at once.
local function paced(lane, copy, e)
  local wait = e.busy and lane.head - e.n < groups.MOST and e.at + FEED_PACE - now() or 0
  if wait <= 0 then return false end
  copy.pacing = true
  spawn(function()
    sleep(wait)
    copy.pacing = false
    lane:kick_copy(copy)
  end)
  return true
end

-- May another copy have entry n, without a word about it?
local function doubted_elsewhere(lane, copy, n)
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.doubt >= n then return true end
  end
end

local function step(lane, copy)
  local n = copy.p + 1
  if not lane.context.drives or not lane.open then return STOP end
  if n > lane.head or copy.state ~= "ready" or not copy.settled or not copy.server:usable() then
    return STOP
  end
  if copy.held or copy.over then return STOP end
  if not lane:is_sound(copy) then return STOP end
  if n <= lane.trimmed then
    lane:mark(copy, "rebuild", "the entries behind " .. copy.p .. " that it needs are trimmed")
    return STOP
  end
  local e = lane:entry(n)
  if not e then return PAUSE end
  if e.verdict and e.verdict ~= "applied" then return pass_over(lane, copy, e) end
  if e.verdict == "applied" then
    if paced(lane, copy, e) then return STOP end
    local group = groups.from(lane, copy, e)
    return digest(lane, copy, group, attempt.try(lane, copy, group))
  end
  if lane.decider then return STOP end
  local first = choose_decider(lane, n)
  if not first then return try_all_again(lane, n) and PAUSE or STOP end
  if first ~= copy then
    lane:kick_copy(first)
    return STOP
  end
  if gathering(lane, copy, e) then return STOP end
  lane.decider = copy
  if doubted_elsewhere(lane, copy, n) then lane.context.fault("doubt.next_copy_chosen") end
  if e.action == "delete" and not e.resolved then
    local fine, how, answer = attempt.resolve(lane, copy, e)
    if not fine then
      if how == "again" or how == "unsure" then how, answer = "later", nil end
      return digest(lane, copy, { e }, how, answer)
    end
  end
  local group = groups.from(lane, copy, e)
  local kind, answer
  if e.resolved == "[]" then -- nothing to delete
    kind, answer = "applied", { status = 200, type = "application/json",
      body = copy.server.counts_deleted and '{"deleted":0}' or "{}" }
  else
    kind, answer = attempt.try(lane, copy, group, function()
      copy.draining = true
      release(lane, copy, n)
    end)
    copy.draining = nil
  end
  return digest(lane, copy, group, kind, answer)
end

local function drive(lane, copy)
  local wait = 0.01
  repeat
    copy.again = false
    local ok, what = xpcall(step, debug.traceback, lane, copy)
    if not ok then
      log.error("journal_step_failed", what)
      release(lane, copy, copy.p + 1)
      what, wait = PAUSE, 1
    end
    tidy(lane)
    if what == GO then
      wait, copy.again = 0.01, true
    elseif what == PAUSE then
      sleep(wait)
      wait, copy.again = math.min(wait * 2, 0.5), true
    end
  until not copy.again or #copy.server.queue > 0 -- others wait for a place: they come first
  copy.running = false
  if copy.again then lane:kick_copy(copy) end
end

function Lane:kick_copy(copy)
  copy.again = true
  if copy.running or copy.pacing or copy.held or copy.p >= self.head or not self.context.drives then return end
  if copy.state ~= "ready" or copy.over or not copy.server:usable() then return end
  copy.running = true
  copy.server:run(function() drive(self, copy) end)
end

-- Something changed: every copy that has something to do looks again.
function Lane:kick()
  for _, copy in ipairs(self.order) do self:kick_copy(copy) end
end

-- Nothing is sent to the copy until what was sent to it before can't be executed any more; horizon as for
-- Server:settle.
function Lane:settle(copy, horizon)
  if copy.settling or self.context.dead then return end
  copy.settling = true
  spawn(function()
    self.context.fault("settle.begin")
    copy.server:settle(horizon)
    self.context.fault("settle.end")
    copy.settling, copy.settled = false, true
    self:kick_copy(copy)
  end)
end

local function leave(lane, copy)
  for i, c in ipairs(lane.order) do
    if c == copy then table.remove(lane.order, i) break end
  end
end

-- The copy is not in PostgreSQL any more.
function Lane:copy_drop(copy)
  self.copies[copy.instance] = nil
  leave(self, copy)
  if not self.context.dead then self.context.copies.copy_drop(self.logical, copy.instance) end
end

-- Another collection takes the place of the copy.
function Lane:copy_swap(copy, c)
  copy.over = true
  leave(self, copy)
  self:copy_add(c)
  self:kick()
end

-- The collection is gone: what waits in its lane is answered, and nothing is sent any more.
function Lane:close()
  if self.open then
    for _, e in pairs(self.entries) do self.context.memory.used = self.context.memory.used - #e.body end
  end
  self.open = false
  if not self.context.dead then self.context.copies.collection_drop(self.logical) end
end

-- Ends an entry that has no verdict by hand: nobody is sent it any more, and whoever applies it nevertheless, because
-- it was on its way, is made anew. answer: what its client is told. true | nil, why not
function Lane:skip(n, answer, note)
  if n <= self.trimmed then return nil, "it is trimmed: every copy has it behind it" end
  if n < 1 or n > self.head then return nil, "there is no such entry; the newest of this lane is " .. self.head end
  local e, why = self:entry(n)
  if not e then return nil, why end
  await_verdict(self, e)
  local rows
  if e.verdict == "failed" then -- it is behind us; its authority stays
    rows, why = self.context.store:commit { Store.skip_failed(self.id, n, note) }
    if rows then e.verdict = "skipped" end
    return rows ~= nil, why
  end
  if e.verdict then return nil, "it is " .. e.verdict .. " already" end
  e.deciding = "skipped"
  rows, why = self.context.store:commit { Store.decide(self.id, n, n, "skipped", answer, nil, note) }
  if not rows then
    e.deciding = nil
    return nil, why
  end
  e.verdict, e.status, e.answer, e.answer_type = "skipped", answer.status, answer.body, answer.type
  self.context.counts.skipped = self.context.counts.skipped + 1
  self.failures[n] = nil
  if self.decider and self.decider.p + 1 == n then self.decider = nil end -- what it sends decides nothing any more
  if n == self.decided + 1 then decided_to(self, n) end
  self.context.answer(e)
  self:kick()
  return true
end

-- The least position of the copies that hold the journal back, nil when there is none; copies that are to be made
-- anew do not, nor those of a retired instance.
function Lane:least()
  local least
  for _, copy in ipairs(self.order) do
    if (copy.state == "ready" or copy.state == "unverified") and not copy.server.retired then
      least = math.min(least or copy.p, copy.p)
    end
  end
  for _, pin in pairs(self.pins) do least = math.min(least or pin, pin) end
  return least
end

-- Entries and seconds that the copy is behind: how long the first one that it lacks has been there.
function Lane:lag(copy)
  local entries = self.head - copy.p
  if entries <= 0 then return 0, 0 end
  local e, lacking = self.entries[copy.p + 1], copy.lacking
  local since = e and e.created or lacking and lacking.n == copy.p + 1 and lacking.since or copy.since
  return entries, math.max(now() - since, 0)
end

return Lane
