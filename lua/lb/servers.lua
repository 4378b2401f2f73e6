-- servers.lua: the instances as the journal sees them: may it send to one, and what became of a request.
--
-- An incarnation is one life of a server's process, told apart by the sentinel connection (core/courier.h). A new
-- one is admitted after a look at its witness (PROTOCOL.md R9): a server that came back empty or from an old
-- backup knows a smaller counter than PostgreSQL does, and none of its copies may be used. Only the holder of the
-- lease stamps; a standby looks, and reads again what PostgreSQL says of the copies before it uses the server.
--
-- The set outlives the roles: what one role has seen of a server's life the next one need not see again.
local Signal = require("lb.signal")
local courier = require("lb.courier")
local json = json

local M = {}
local Server = {}
Server.__index = Server

local MOST_AT_ONCE = 16        -- requests of the journal to one server
local STAMP_EVERY = 1          -- seconds between stamps of a server that gets writes
local PULSE = 0.1              -- seconds between looks at a server that settles
local SETTLE_DEAD = 1          -- R5: whoever sent has closed its connections, so what it sent ends soon
local TENANT, DATABASE, COLLECTION = "chromux", "chromux", "witness"
local DB = "/api/v2/tenants/" .. TENANT .. "/databases/" .. DATABASE

-- set.context: {settings, store, events, journal_id, ready, drives, dead, calls, on_changed(server), on_usable(server),
-- on_lost(server, why), on_restored(why), look_again() -> true | nil, why}; it changes with the role.
function M.new()
  return setmetatable({ by_name = {}, list = {} }, { __index = M })
end

local function server_new(set, name)
  local s = setmetatable({
    set = set, name = name, incarnation = 0, admitted = 0, witness = 0, seen = 0, writes = 0, stamped = 0,
    stamping = 0,
    life = 0, active = 0, queue = {}, health = "suspect", admin = "ready", role = "replica", priority = 0,
    retired = false, admitting = false, note = "not admitted yet",
  }, Server)
  set.by_name[name] = s
  set.list[#set.list + 1] = s
  return s
end

-- Takes over who is there now; a server that is not in the configuration any more stays known but unusable.
function M:refresh()
  local seen = {}
  for _, node in ipairs(courier.nodes()) do
    local s = self.by_name[node.name] or server_new(self, node.name)
    seen[node.name] = true
    s.health, s.admin, s.role, s.priority = node.health, node.admin, node.role, node.priority
    s.present = true
    s:set_incarnation(node.incarnation)
  end
  for _, s in ipairs(self.list) do
    if not seen[s.name] then s.present = false end
  end
  -- The primary first, then by priority: the order in which copies are asked to take a write.
  table.sort(self.list, function(a, b)
    if (a.role == "primary") ~= (b.role == "primary") then return a.role == "primary" end
    if a.priority ~= b.priority then return a.priority > b.priority end
    return a.name < b.name
  end)
end

-- Until each that may answer was admitted, for some seconds at most.
function M:await_look(seconds)
  local till = now() + seconds
  while not self.context.dead and now() < till do
    local waiting = false
    for _, s in ipairs(self.list) do
      waiting = waiting or (s.present and not s.retired and s.health ~= "down" and not s:readable())
    end
    if not waiting then return end
    sleep(0.02)
  end
end

-- One that only PostgreSQL knows.
function M:absent(name)
  local s = server_new(self, name)
  s.note = "not in the configuration"
  return s
end

-- May the journal send to it?
function Server:usable()
  return self.present and not self.retired and self.health ~= "down" and self.admin ~= "maint"
    and self.incarnation ~= 0 and self.admitted == self.incarnation
end

-- May it be read from, as far as the journal is concerned?
function Server:readable()
  return self.present and not self.retired and self.admitted ~= 0 and self.admitted == self.incarnation
end

function Server:set_incarnation(n)
  if n == self.incarnation then return end
  self.incarnation = n
  if n ~= 0 then self.life = n end
  if n ~= self.admitted then
    self.set.context.on_changed(self)
    self:admit()
  end
end

function Server:set_health(health)
  if health == self.health then return end
  local was = self.health
  self.health = health
  if self.set.context.events then self:tell_health(was) end
  if was == "down" or health == "up" then
    self:admit()
    if self:usable() then self.set.context.on_usable(self) end
  end
end

-- An event for each change between up and down.
function Server:tell_health(was)
  if self.health == "down" and was ~= "down" then
    self.told_down = true
    local reason = ""
    for _, node in ipairs(courier.nodes()) do
      if node.name == self.name then reason = node.last_error end
    end
    self.set.context.events:note("instance_down", self.name, nil, reason ~= "" and reason or "no answer", false)
  elseif self.health == "up" and self.told_down then
    self.told_down = false
    self.set.context.events:note("instance_up", self.name, nil, "answering again")
  end
end

-- ---- sending ---------------------------------------------------------------------------------------------

-- courier.send to this server, of what changes it; r as there, without node. context: on whose behalf.
function Server:send(r, context)
  if context.dead then return nil, "the lease is lost" end
  r.node, r.fenced = self.name, true
  local call, why = courier.send(r)
  if call then
    context.calls[call] = true
    self.writes = self.writes + 1
  end
  return call, why
end

-- A whole request with a time-out: answer | nil, kind, text. For what may be repeated. fenced: it changes something.
-- life: only this incarnation is asked; nil: any.
function Server:ask(method, target, body, seconds, fenced, life)
  return courier.request { node = self.name, method = method, target = target, body = body, fenced = fenced,
    incarnation = life, type = body and "application/json" or nil, max = 256 * 1024 * 1024, timeout = seconds or 5 }
end

-- A place among the requests at once: run(fn) when there is one, now or later.
function Server:run(fn)
  if self.active >= MOST_AT_ONCE then
    self.queue[#self.queue + 1] = fn
    return
  end
  self.active = self.active + 1
  local begun, message = pcall(spawn, function()
    local ok, why = xpcall(fn, debug.traceback)
    if not ok then log.error("journal_task_failed", why) end
    self.active = self.active - 1
    local next_fn = table.remove(self.queue, 1)
    if next_fn then self:run(next_fn) end
  end)
  if begun then return end
  self.active = self.active - 1 -- too many tasks
  error(message, 0)
end

-- ---- the witness -----------------------------------------------------------------------------------------

local function ok(answer) return answer and answer.status >= 200 and answer.status < 300 end

-- The collection's id on this server. -> id | false (there is none) | nil, why
function Server:witness_find()
  local a, kind = self:ask("GET", DB .. "/collections/" .. COLLECTION)
  if not a then return nil, kind end
  if a.status == 404 then return false end
  local c = ok(a) and json.decode(a.body)
  if not c then return nil, "answered " .. a.status end
  return c.id
end

-- counter, journal id, {epoch=, renewed= (the lease when it was stamped)}; 0 when there is none. nil, why
function Server:witness_read()
  local id, why = self:witness_find()
  if id == nil then return nil, why end
  if not id then return 0 end
  self.witness_id = id
  local a, kind = self:ask("POST", DB .. "/collections/" .. id .. "/get", '{"ids":["w"],"include":["metadatas"]}')
  if not a then return nil, kind end
  local got = ok(a) and json.decode(a.body)
  if not got then return nil, "answered " .. a.status end
  local m = got.metadatas and got.metadatas[1]
  if type(m) ~= "table" then return 0 end
  return tonumber(m.counter) or 0, m.journal, { epoch = tonumber(m.epoch) or 0, renewed = tonumber(m.renewed) or 0 }
end

-- Makes what the witness needs, as far as it is missing.
function Server:witness_make()
  local steps = {
    { "/api/v2/tenants", json.encode { name = TENANT } },
    { "/api/v2/tenants/" .. TENANT .. "/databases", json.encode { name = DATABASE } },
    { DB .. "/collections", json.encode { name = COLLECTION, get_or_create = true } },
  }
  for _, step in ipairs(steps) do
    local a, kind = self:ask("POST", step[1], step[2])
    if not a then return nil, kind end
    if not ok(a) and a.status ~= 409 then return nil, step[1] .. " answered " .. a.status end
    local c = ok(a) and json.decode(a.body)
    if c and c.id then self.witness_id = c.id end
  end
  return self.witness_id ~= nil
end

-- Server first, PostgreSQL second: a counter that the server has and PostgreSQL lacks only says "newer". A stamp whose
-- outcome is not known may yet be carried out: until it can't be, the same number is stamped again, or it would set
-- the counter back and the server would seem to have lost data. The same holds for the stamps of a life before ours.
-- witness is what PostgreSQL has; what was only seen on the server another holder may set back to that.
-- -> true, whether the number is a new one: only then does it cover the writes before it | nil, why
function Server:stamp()
  local context = self.set.context
  if not self.witness_id then
    local made, why = self:witness_make()
    if not made then return nil, why end
  end
  local counter, fresh = math.max(self.witness, self.seen) + 1, true
  if self.stamping > 0 or self.holding then
    counter, fresh = math.max(self.held or 0, self.witness, 1), false -- 0 is what an empty server has
  end
  self.held, self.stamping = counter, self.stamping + 1
  local a, kind = self:ask("POST", DB .. "/collections/" .. self.witness_id .. "/upsert",
    string.format('{"ids":["w"],"embeddings":[[0]],"metadatas":[{"journal":%s,"counter":%d,"epoch":%d,"renewed":%d}]}',
      json.encode(context.journal_id), counter, context.store.epoch, context.store.renewed), nil, true)
  self.stamping = self.stamping - 1
  if not a and kind ~= "not_sent" then self:hold_stamps(context.settings.WRITE_HORIZON) end
  if not a then return nil, kind end
  if a.status == 404 then self.witness_id = nil end
  if not ok(a) then return nil, "the witness answered " .. a.status end
  local rows, why = context.store:commit({ context.store.witness(self.name, counter) }, now() + 5)
  if not rows then return nil, why end
  self.witness = math.max(self.witness, counter)
  return true, fresh
end

-- The highest number that it may have been stamped with.
function Server:newest_stamp() return math.max(self.witness, self.seen, self.held or 0) end

-- A stamp of what was written before now; who waits for one shares it, for only one at a time says anything.
-- true, fresh | nil, why
function Server:stamp_after_now()
  local batch = self.stamp_next
  if not batch then
    batch = { over = Signal.new() }
    self.stamp_next = batch
    spawn(function()
      while self.stamping > 0 do sleep(0.002) end
      self.stamp_next = nil -- who comes from here on needs the next one
      local fine, done, fresh = pcall(self.stamp, self)
      batch.result = { fine and done or nil, fine and fresh or done }
      batch.over:fire()
    end)
  end
  while not batch.result do batch.over:wait() end
  return batch.result[1], batch.result[2]
end

-- A stamp may yet be carried out, for so many seconds of the server's own time: it may stand still meanwhile.
function Server:hold_stamps(horizon)
  local batch = self:settle_begin(horizon)
  if self.holding == batch then return end
  self.holding = batch
  spawn(function()
    while not batch.done do batch.over:wait() end
    if self.holding == batch then self.holding = nil end
  end)
end

-- One of another holder, on any server. As the holder.
function M:hold_stamps(horizon)
  for _, s in ipairs(self.list) do
    s.held = nil
    s:hold_stamps(horizon)
  end
end

-- Since 1.5.3 Chroma says how many records a delete was for. Its version number does not tell. true | nil, why
function Server:look_at_generation()
  local a, kind = self:ask("GET", "/openapi.json")
  if not a then return nil, kind end
  local d = ok(a) and json.decode(a.body)
  local schemas = d and d.components and d.components.schemas or {}
  local answer = schemas.DeleteCollectionRecordsResponse
  self.counts_deleted = answer and answer.properties and answer.properties.deleted ~= nil
  return true
end

-- May a standby use it? Copy states are read after the witness: whoever stamped it had marked them before.
function Server:looked(context, counter, journal_id)
  if journal_id ~= context.journal_id then
    self.note = "its witness is not of this journal"
    return false
  end
  local stamped, why = context.store:witness_of(self.name)
  if not stamped or counter < stamped then
    self.note = stamped and string.format("has older data (witness %d, stamped %d)", counter, stamped)
      or "PostgreSQL does not answer: " .. tostring(why)
    return false
  end
  self.witness, self.seen = math.max(self.witness, stamped), math.max(self.seen, counter)
  local fresh, reason = self:look_at_generation()
  if fresh then fresh, reason = context.look_again() end
  if not fresh then self.note = tostring(reason) end
  return fresh and self.set.context == context
end

-- Was the server stamped under a lease that PostgreSQL has forgotten? (R12) What a stamp says of the lease was durable
-- before. A later lease than ours is another's, unless PostgreSQL does not know of it. nil: it can't be said now.
local function ahead(store, lease)
  local prior = store.prior
  if not lease or not prior then return false end
  if lease.epoch < store.epoch then
    return lease.epoch > prior.epoch or (lease.epoch == prior.epoch and lease.renewed > prior.renewed)
  end
  if lease.epoch == store.epoch and lease.renewed <= store.renewed then return false end
  local is = store:lease_look()
  return is and (is.epoch < lease.epoch or (is.epoch == lease.epoch and is.renewed < lease.renewed))
end

-- Looks at the witness of the present incarnation, until that is known or gone.
function Server:admit()
  if self.admitting or self.incarnation == 0 or self.admitted == self.incarnation or not self.present
    or self.retired or not self.set.context.ready then
    return
  end
  self.admitting = true
  spawn(function()
    local wait = 0.05
    while self.present and self.incarnation ~= 0 and self.admitted ~= self.incarnation and self.health ~= "down"
      and not self.set.context.dead do
      local life = self.incarnation
      local counter, journal_or_why, lease = self:witness_read()
      local context = self.set.context
      if counter and life == self.incarnation and not context.holder then
        if self:looked(context, counter, journal_or_why) and life == self.incarnation then
          self.admitted, self.note = life, ""
          context.on_usable(self)
          break
        end
      elseif counter and life == self.incarnation then
        local fine = true
        local forgotten = ahead(context.store, lease)
        if journal_or_why and journal_or_why ~= context.journal_id then
          self.note = "its witness belongs to another journal"
          fine = self.witness <= 0 -- never seen by this journal: its past is another's
        elseif counter < self.witness then
          self.note = string.format("came back with older data (witness %d, stamped %d)", counter, self.witness)
          context.fault("admit.witness_old")
          fine = false
        elseif forgotten == nil then
          fine = nil -- look again
        elseif forgotten then
          self.note = string.format("its witness knows of lease %d/%d, which PostgreSQL does not", lease.epoch,
            lease.renewed)
          context.on_restored("PostgreSQL was restored from a backup: " .. self.name .. ": " .. self.note)
          break
        end
        -- Marked durably before it is stamped anew.
        if fine or (fine == false and context.on_lost(self, self.note)) then
          self.seen = math.max(self.seen, counter)
          if fine == false then context.fault("admit.marked_not_stamped") end
          local stamped, why = self:look_at_generation()
          if stamped then stamped, why = self:stamp() end
          if stamped and life == self.incarnation then
            self.admitted, self.note = life, ""
            context.on_usable(self)
            break
          end
          self.note = tostring(why)
        end
      elseif not counter then
        self.note = "its witness cannot be read: " .. tostring(journal_or_why)
      end
      sleep(wait)
      wait = math.min(wait * 2, 1)
    end
    self.admitting = false
  end)
end

-- Stamps servers that got writes, while the context is the holder's; runs for ever.
function M:keep_stamping()
  while true do
    sleep(STAMP_EVERY)
    for _, s in ipairs(self.list) do
      if self.context.drives and s.writes > s.stamped and s:usable() then
        local upto = s.writes
        local done, fresh = s:stamp()
        if done and fresh then s.stamped = upto end
      end
    end
  end
end

-- ---- settling (R5) ---------------------------------------------------------------------------------------

-- How long a request of ours may run on that ended without the server's word. Closed by us, it is cancelled or ends
-- soon; when the connection was lost the server may not know of it.
function Server:horizon_after(ending)
  return ending == "broken" and self.set.context.settings.WRITE_HORIZON or SETTLE_DEAD
end

-- Until nothing that was sent to this server before now can still be executed: it has begun a new life, or it has
-- done a write of ours and then run for a while. Of the time between two answers PULSE at most is counted: in the
-- rest it may have stood still. Ends early when the lease is lost.
local function settle_once(self, horizon)
  local life, stamped, ran, last = self.life, false, 0, nil
  while self.set.context.holder and not self.set.context.dead do
    if life == 0 then life = self.life end -- the first that we see is no new one
    if self.life ~= life and self.incarnation == self.life and self.admitted == self.life then return end
    local before, answered = self.incarnation, nil
    if self:usable() and stamped then
      answered = self:ask("GET", "/api/v2/heartbeat", nil, 1)
    elseif self:usable() then
      stamped = self:stamp()
      answered = stamped
    end
    local at = now()
    if not answered or before ~= self.incarnation then
      last = nil
    else
      if last then ran = ran + math.min(at - last, PULSE) end
      last = at
      if ran >= horizon then return end
    end
    sleep(PULSE)
  end
end

-- A wait for that; horizon in seconds, by default that of a sender who has closed its connections. Who comes while
-- one is under way shares the next one: what they sent may have come after the present one began.
function Server:settle_begin(horizon)
  if not self.settle_next then
    local batch = { over = Signal.new(), after = self.settle_now, horizon = 0 }
    self.settle_next = batch
    spawn(function()
      while batch.after and not batch.after.done do batch.after.over:wait() end
      self.settle_now, self.settle_next = batch, nil
      settle_once(self, batch.horizon)
      batch.done = true
      if self.settle_now == batch then self.settle_now = nil end
      batch.over:fire()
    end)
  end
  local batch = self.settle_next
  batch.horizon = math.max(batch.horizon, horizon or SETTLE_DEAD)
  return batch
end

function Server:settle(horizon)
  local batch = self:settle_begin(horizon)
  while not batch.done do batch.over:wait() end
end

M.SETTLE_DEAD = SETTLE_DEAD

return M
