-- names.lua: tenants, databases and collections: which there are, and the one lane in which they change
-- (PROTOCOL.md R10).
--
-- Names live in PostgreSQL and here, not on the servers: whether a name is free is decided here, at the head of the
-- lane (operations.lua). What an instance has done of it is its position in lane 0. An operation whose outcome on a
-- server is not known is settled by looking at the server.
local Store = require("lb.store")
local Lane = require("lb.lanes")
local answers = require("lb.answers")
local Op = require("lb.operations")
local words = require("lb.words")
local sound = require("lb.sound")
local json = json

local Names = {}
Names.__index = Names

local LANE = 0
local FAILED_AFTER = 2   -- errors on every instance so often: nobody does it
local DIVERGED_AFTER = 8 -- errors of one on what another has done
local BLIND_AFTER = 8    -- errors of one that is asked what it has done,
local BLIND_FOR = 10     -- which span so many seconds: one that is merely ill for a moment answers after that
local STOP, GO, PAUSE = "stop", "go", "pause"

-- context: as for lanes, with lane_new(row) -> lane
function Names.new(context)
  return setmetatable({
    context = context, tenants = {}, databases = {}, by_name = {}, by_logical = {}, by_lane = {}, physical = {},
    id = LANE, head = 0, floor = 0, waiting_since = now(), entries = {}, copies = {}, order = {}, decider = nil,
    next_lane = 1, failures = {}, joining = {},
  }, Names)
end

local function key(...) return table.concat({ ... }, "\0") end

-- ---- what there is ---------------------------------------------------------------------------------------

function Names:collection_add(row)
  local lane = self.context.lane_new(row)
  self.by_logical[lane.logical] = lane
  self.by_name[key(lane.tenant, lane.database, lane.name)] = lane
  self.by_lane[lane.id] = lane
  self.next_lane = math.max(self.next_lane, lane.id + 1)
  return lane
end

-- The lane's copy on an instance, and that its id on that server is ours.
function Names:copy_of(lane, c)
  if c.physical ~= "" then
    self.physical[c.instance] = self.physical[c.instance] or {}
    self.physical[c.instance][c.physical] = lane
  end
  return lane:copy_add(c)
end

-- One that was made now.
function Names:copy_new(lane, copy, physical)
  sound.found({ server = copy.server, physical = physical }, copy.server.admitted)
  self:copy_of(lane, { instance = copy.instance, server = copy.server, physical = physical, position = 0 })
end

-- One that was made anew: another collection on the same instance.
function Names:copy_swap(lane, copy, c)
  local of = self.physical[c.instance] or {}
  self.physical[c.instance] = of
  if of[copy.physical] == lane then of[copy.physical] = nil end
  of[c.physical] = lane
  lane:copy_swap(copy, c)
end

function Names:collection_gone(lane)
  self.by_logical[lane.logical] = nil
  if self.by_name[key(lane.tenant, lane.database, lane.name)] == lane then
    self.by_name[key(lane.tenant, lane.database, lane.name)] = nil
  end
  self.by_lane[lane.id] = nil
  lane:close()
end

function Names:collection_rename(lane, name)
  if lane.name == name then return end
  if self.by_name[key(lane.tenant, lane.database, lane.name)] == lane then
    self.by_name[key(lane.tenant, lane.database, lane.name)] = nil
  end
  lane.name = name
  self.by_name[key(lane.tenant, lane.database, name)] = lane
end

function Names:each_in(tenant, database)
  local out = {}
  for _, lane in pairs(self.by_logical) do
    if (not tenant or lane.tenant == tenant) and (not database or lane.database == database) then
      out[#out + 1] = lane
    end
  end
  table.sort(out, function(a, b) return a.id < b.id end)
  return out
end

function Names:find(tenant, database, name) return self.by_name[key(tenant, database, name)] end

-- An instance's own position in this lane.
function Names:member_add(c)
  local copy = { instance = c.instance, server = c.server, incarnation = c.incarnation or 1, p = c.position or 0,
    state = c.state or "ready", reason = c.reason or "", doubt = c.doubt or 0, tried = 0,
    settled = c.settled ~= false, attempted = {}, since = now(), changed = c.changed or now() }
  self.copies[c.instance] = copy
  self.order[#self.order + 1] = copy
  return copy
end

function Names:entry(n)
  if self.entries[n] then return self.entries[n] end
  local rows, why = self.context.store:entries(LANE, n, 64)
  if not rows then return nil, why end
  for _, row in ipairs(rows) do
    if not self.entries[row.n] then
      row.tickets = {}
      self.entries[row.n] = row
    end
  end
  return self.entries[n], "entry 0/" .. n .. " is not in the journal"
end

function Names:insert(e)
  local t = now()
  if self.floor >= self.head then self.waiting_since = t end
  for _, copy in ipairs(self.order) do
    if copy.p >= self.head then copy.since = t end
  end
  e.created = e.created or t
  self.entries[e.n] = e
  self.head = math.max(self.head, e.n)
  self:kick()
end

local function tidy(self)
  local least = self.head
  for _, copy in ipairs(self.order) do
    if copy.state == "ready" then least = math.min(least, copy.p) end
  end
  for n in pairs(self.entries) do
    if n <= least and self.entries[n].verdict then self.entries[n] = nil end
  end
end

-- The collection that a request or an entry's parameters name; nil: there is none.
function Names:lane_named(p)
  if p.by_name then return self:find(p.tenant, p.database, p.collection) end
  local lane = self.by_logical[p.collection]
  return lane and lane.tenant == p.tenant and lane.database == p.database and lane or nil
end

function Names:has_database(tenant, name) return self.databases[key(tenant, name)] == true end

function Names:database_set(tenant, name, there) self.databases[key(tenant, name)] = there or nil end

-- The target of requests about a tenant (nil: all), a database of it, and what is in that.
function Names:path(tenant, database, rest)
  local out = "/api/v2/tenants"
  if tenant then out = out .. "/" .. self.context.encode(tenant) end
  if database then out = out .. "/databases/" .. self.context.encode(database) end
  return out .. (rest or "")
end

-- ---- the driver of an instance ---------------------------------------------------------------------------

-- The entry's parameters: what C took from the path and the body's names, and what prepare() fixed when it was
-- decided, which is durable with the verdict.
local function parameters(e)
  if not e.parameters then e.parameters = json.decode(e.rest) or {} end
  return e.parameters
end

local function reached(self, copy, n)
  copy.p = math.max(copy.p, n)
  copy.attempted[n] = nil
  copy.since = now()
  if copy.p >= copy.doubt then copy.doubt = 0 end
  self:kick()
end

-- Its verdict may be on its way to PostgreSQL.
local function await_verdict(self, e)
  while e.deciding and not e.verdict and not self.context.dead do sleep(0.002) end
end

-- The operation that was to end collections has not: a server that misses one now has lost it.
local function stay(self, p)
  for _, id in ipairs(p.lanes or { p.lane }) do
    local lane = self.by_lane[type(id) == "table" and id.id or id]
    if lane then lane.leaving = nil end
  end
end

local function record(self, copy, e, verdict, answer, statements, effect, note)
  local p = parameters(e)
  e.deciding = verdict
  self.context.fault("decision.before_commit")
  local all = {}
  for i, s in ipairs(statements or {}) do all[i] = s end
  local authority = verdict == "failed" and copy.instance or nil
  all[#all + 1] = Store.decide(LANE, e.n, e.n, verdict, answer, authority, note)
  all[#all + 1] = { "UPDATE journal_entries SET rest = $3 WHERE lane = $1 AND n = $2", LANE, e.n, json.encode(p) }
  if copy then all[#all + 1] = Store.position(LANE, copy, e.n) end
  local rows, why = self.context.store:commit(all)
  if not rows then
    e.deciding = nil
    log.warn("catalogue_not_recorded", "entry 0/" .. e.n .. ": " .. tostring(why))
    return false
  end
  e.verdict, e.status, e.answer, e.answer_type = verdict, answer.status, answer.body, answer.type
  e.authority = authority
  if verdict ~= "applied" then stay(self, p) end
  if effect then effect() end
  self.context.counts[verdict] = self.context.counts[verdict] + 1
  if copy then self.context.events:decided(self, copy.server) end
  self.floor, self.waiting_since = math.max(self.floor, e.n), now()
  if copy then reached(self, copy, e.n) else self:kick() end
  self.context.answer(e, copy and copy.instance)
  return true
end

local function first_decider(self, n)
  local doubtful
  for _, server in ipairs(self.context.servers.list) do
    local copy = self.copies[server.name]
    if copy and copy.state == "ready" and copy.p == n - 1 and copy.settled and not copy.draining and not copy.held
      and server:usable() and copy.tried ~= n then
      if server.health == "up" then return copy end
      doubtful = doubtful or copy
    end
  end
  return doubtful
end

local function release(self, copy, n)
  if self.decider ~= copy then return end
  copy.tried = n
  self.decider = nil
  self:kick()
end

local function doubt(self, copy, n)
  if n <= copy.doubt then return end
  copy.doubt = n
  self.context.store:enqueue({ Store.doubt(LANE, copy, n) }, nil, function() end) -- the standbys are to know
end

local function give_up_on(self, copy, e, kind, answer)
  if kind == "over" or kind == "unknown" or kind == "unsure" or kind == "dark" then doubt(self, copy, e.n) end
  if kind == "unknown" and not copy.settling and not self.context.dead then
    copy.settled, copy.settling = false, true
    spawn(function()
      copy.server:settle(copy.server:horizon_after(answer))
      copy.settled, copy.settling = true, false
      self:kick()
    end)
  end
  release(self, copy, e.n)
  return PAUSE
end

-- Counts an error after which the server was looked at. How often there was one here
local function count_failure(self, copy, e)
  local f = self.failures[e.n] or {}
  self.failures[e.n] = f
  f[copy.instance] = (f[copy.instance] or 0) + 1
  return f[copy.instance]
end

-- Has every member, up or down, answered so to it twice? One that is set aside may yet come back.
local function failed_everywhere(self, e)
  for _, other in ipairs(self.order) do
    if (other.state == "ready" or other.state == "unverified") and not other.server.retired
      and ((self.failures[e.n] or {})[other.instance] or 0) < FAILED_AFTER then
      return false
    end
  end
  self.failures[e.n] = nil
  return true
end

-- The instance answers with an error when it is asked what it has done of the entry (why: "perform" or "undo"): is that
-- no passing one, in this life of the server, with no look between that told?
local function is_blind(copy, e, why)
  local whose = why .. " " .. copy.instance
  e.blind = e.blind or {}
  local b = e.blind[whose]
  if not b or b.life ~= copy.server.incarnation then
    b = { count = 0, since = now(), life = copy.server.incarnation }
    e.blind[whose] = b
  end
  b.count = b.count + 1
  return b.count >= BLIND_AFTER and now() - b.since >= BLIND_FOR
end

local function has_seen(copy, e, why)
  if e.blind then e.blind[why .. " " .. copy.instance] = nil end
end

-- An answer that says neither that it is done nor that it is to be asked later.
local function is_error(answer)
  return type(answer) == "table" and answer.status >= 400 and answer.status ~= 503 and answer.status ~= 429
end

-- Not done, whatever the status: an error in Chroma's words; "": a route that this Chroma does not have.
local function refuses(answer)
  return answer.status >= 400 and answer.status < 500 and (answers.shape(answer) or answer.body == "")
end

-- Does it on the instance. "applied", answer, found | "refused", answer | "undone" or "dark", answer: an error, and the
-- server shows that nothing was done, or does not show it | "conflict", "absent" and the endings of a request
local function perform(self, copy, e, p, late)
  local op, again = Op[e.action], copy.attempted[e.n] or copy.doubt >= e.n
  copy.attempted[e.n] = true
  local kind, answer, found = op.perform(self, copy, e, p, late, again)
  if kind == "unsure" and refuses(answer) then kind = "refused" end
  if kind == "unsure" and not op.ends then
    local is, shown, id = op.look(self, copy, e, p)
    if is == "done" then return "applied", shown, id end
    if is then has_seen(copy, e, "perform") end
    if not is and shown and is_blind(copy, e, "perform") then is = "dark" end
    kind = is or kind
    if is == "dark" then e.dark = true end
  end
  if kind == "refused" or kind == "undone" then
    copy.attempted[e.n] = nil
  elseif kind == "not_sent" or kind == "later" then
    copy.attempted[e.n] = again or nil
  end
  return kind, answer, found
end

-- Does any copy of the lane's collection stand?
local function anywhere(self, id)
  local lane = self.by_lane[id]
  for _, copy in ipairs(lane and lane.order or {}) do
    if copy.state == "ready" or copy.state == "unverified" then return true end
  end
  return false
end

local function decide(self, copy, e)
  local p, op = parameters(e), Op[e.action]
  local refusal = op.check and op.check(self, e, p)
  if refusal then
    local ok = record(self, copy, e, e.existing and "void" or "rejected", refusal)
    self.decider = nil
    return ok and GO or PAUSE
  end
  if op.prepare and not e.prepared then
    op.prepare(self, p)
    e.prepared = true
  end
  for _, id in ipairs(p.lanes or { p.lane }) do
    self.context.rebuilds:disturbed(type(id) == "table" and id.id or id)
  end
  local kind, answer, found = perform(self, copy, e, p, function()
    copy.draining = true
    doubt(self, copy, e.n)
    release(self, copy, e.n)
  end)
  copy.draining = nil
  await_verdict(self, e)
  if e.verdict then -- decided elsewhere meanwhile: what was done here is found again by looking
    if kind == "unknown" then return give_up_on(self, copy, e, kind, answer) end
    if self.decider == copy then self.decider = nil end
    return GO
  end
  if kind == "absent" and not anywhere(self, p.lane) then -- lost everywhere: nobody can ever do it
    kind, answer = "refused", words.no_collection_of_id(p.collection)
  end
  local fails = kind == "undone" or kind == "dark" or kind == "absent"
  if fails then count_failure(self, copy, e) end
  if fails and kind ~= "absent" then e.failure = answer end
  local ok
  if kind == "applied" then
    ok = record(self, copy, e, "applied", answer, op.statements and op.statements(self, p, e.n, copy, found), function()
      if op.effect then op.effect(self, p, copy, found) end
    end)
  elseif kind == "refused" then
    ok = record(self, copy, e, "rejected", answers.failure(answer))
  elseif fails and failed_everywhere(self, e) then
    -- What does not show is as this instance has it.
    ok = record(self, copy, e, e.dark and "failed" or "rejected", answers.failure(e.failure or answer))
  else
    return give_up_on(self, copy, e, kind, answer)
  end
  if self.decider == copy then self.decider = nil end
  self:kick()
  return ok and GO or PAUSE
end

local function follow(self, copy, e)
  local p, op = parameters(e), Op[e.action]
  local kind, answer, found = perform(self, copy, e, p)
  local statements, effect = {}, nil
  local fails = (kind == "undone" or kind == "dark") and p.lane and count_failure(self, copy, e) >= DIVERGED_AFTER
  if kind == "applied" and op.follow then
    statements, effect = op.follow(self, p, copy, found)
  elseif kind == "conflict" or kind == "refused" or fails then
    -- This server can't have what the others have: its copy waits to be made anew.
    local reason = "answers " .. tostring(answer.status) .. " to entry 0/" .. e.n .. ", which another instance applied"
    log.warn("catalogue_conflict", copy.instance .. ": " .. reason)
    if p.lane then
      statements = { Store.copy_new(p.lane, copy.instance, "", 0, "rebuild", reason) }
      effect = function()
        local lane = self.by_lane[p.lane]
        if lane and not lane.copies[copy.instance] then
          self:copy_of(lane, { instance = copy.instance, server = copy.server, physical = "", state = "rebuild",
            reason = reason })
        elseif lane then
          spawn(function() lane:mark(lane.copies[copy.instance], "rebuild", reason) end)
        end
      end
    end
  elseif kind ~= "applied" then
    return give_up_on(self, copy, e, kind, answer)
  end
  statements[#statements + 1] = Store.position(LANE, copy, e.n)
  local rows = self.context.store:commit(statements)
  if not rows then return PAUSE end
  if effect then effect() end
  reached(self, copy, e.n)
  return GO
end

-- Is there another good copy, from which this instance's can be made anew now?
local function good_elsewhere(lane, copy)
  for _, other in ipairs(lane.order) do
    if other.instance ~= copy.instance and other.state == "ready" and not other.server.retired
      and other.server:usable() then
      return true
    end
  end
  return false
end

-- What the instance has of an entry that is not to have an effect will never be known: a collection that it may have
-- changed is made anew there, unless it is the only good copy, which is worth more than that; and one that it may have
-- made stays, and is shown as one that stands aside.
local function not_undone(self, copy, e)
  local lane = self.by_lane[parameters(e).lane or 0]
  local held = lane and lane.copies[copy.instance]
  local anew = held and good_elsewhere(lane, copy)
  log.warn("catalogue_not_undone", copy.instance .. ": entry 0/" .. e.n .. ", which is " .. e.verdict
    .. (held and not anew and "; its copy of " .. lane.name .. " stays, as there is no other good one" or ""))
  if anew then lane:mark(held, "rebuild", "what it did of entry 0/" .. e.n .. " can't be seen") end
end

local function step(self, copy)
  local n = copy.p + 1
  if not self.context.drives then return STOP end
  if n > self.head or copy.state ~= "ready" or not copy.settled or copy.held or not copy.server:usable() then
    return STOP
  end
  local e = self:entry(n)
  if not e then return PAUSE end
  if e.verdict == "applied" then return follow(self, copy, e) end
  if e.verdict then
    local op = Op[e.action]
    if op.undo and e.verdict ~= "void" and e.authority ~= copy.instance and (copy.attempted[n] or copy.doubt >= n) then
      local kind, said = op.undo(self, copy, e, parameters(e))
      if kind ~= "applied" and not (is_error(said) and is_blind(copy, e, "undo")) then return PAUSE end
      if kind ~= "applied" then not_undone(self, copy, e) end
    end
    local rows = self.context.store:commit { Store.position(LANE, copy, n) }
    if not rows then return PAUSE end
    reached(self, copy, n)
    return GO
  end
  if self.decider then return STOP end
  local first = first_decider(self, n)
  if not first then
    local any = false
    for _, other in ipairs(self.order) do
      any = any or other.tried == n
      if other.tried == n then other.tried = 0 end
    end
    return any and PAUSE or STOP
  end
  if first ~= copy then
    self:kick_copy(first)
    return STOP
  end
  self.decider = copy
  return decide(self, copy, e)
end

-- Instances that take turns at an entry nobody can do wait longer and longer too.
local function drive(self, copy)
  local wait = copy.stuck == copy.p and copy.pause or 0.01
  repeat
    copy.again = false
    local ok, what = xpcall(step, debug.traceback, self, copy)
    if not ok then
      log.error("catalogue_step_failed", what)
      release(self, copy, copy.p + 1)
      what, wait = PAUSE, 1
    end
    tidy(self)
    if what == GO then
      wait, copy.again = 0.01, true
    elseif what == PAUSE then
      sleep(wait)
      wait, copy.again = math.min(wait * 2, 0.5), true
      copy.stuck, copy.pause = copy.p, wait
    end
  until not copy.again
  copy.running = false
end

function Names:kick_copy(copy)
  copy.again = true
  if copy.running or copy.held or copy.p >= self.head or copy.state ~= "ready" then return end
  if not self.context.drives then return end
  copy.running = true
  copy.server:run(function() drive(self, copy) end)
end

-- May operations on this collection be under way, or yet to be done by one of these instances? true, what | false
function Names:at_work_on(lane, instances)
  local from = self.floor
  for _, instance in ipairs(instances) do
    local member = self.copies[instance]
    if not member or member.state ~= "ready" then return true, "the catalogue of " .. instance .. " is lost" end
    from = math.min(from, member.p)
  end
  local n = from
  while n < self.head do
    n = n + 1
    local e = self:entry(n)
    local p, ends = e and parameters(e), e and (e.action == "reset" or e.action == "delete_database")
    if not e then return true, "entry 0/" .. n .. " can't be read" end
    if (ends or e.action == "delete_collection" or e.action == "update_collection")
      and (e.action == "reset" or (p.tenant == lane.tenant and p.database == lane.database)) then
      return true, "entry 0/" .. n .. " comes first"
    end
  end
  return false
end

Names.lag = Lane.lag

-- As lanes.lua's: ends an entry that has no verdict by hand. What it may have done on a server is looked for where
-- looking settles it (create), and is a copy to be made anew elsewhere.
function Names:skip(n, answer, note)
  if n < 1 or n > self.head then return nil, "there is no such entry; the newest of this lane is " .. self.head end
  local e, why = self:entry(n)
  if not e then return nil, why end
  await_verdict(self, e)
  if e.verdict then return nil, "it is " .. e.verdict .. " already" end
  if n ~= self.floor + 1 then return nil, "entry 0/" .. self.floor + 1 .. " comes first" end
  local fine = record(self, nil, e, "skipped", answer, nil, nil, note)
  if self.decider and self.decider.p + 1 == n then self.decider = nil end -- what it sends decides nothing any more
  self:kick()
  return fine or nil, "PostgreSQL or the lease went away"
end

function Names:kick()
  for _, copy in ipairs(self.order) do self:kick_copy(copy) end
end

return Names
