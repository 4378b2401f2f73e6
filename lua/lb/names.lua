-- names.lua: tenants, databases and collections: which there are, and the one lane in which they change
-- (PROTOCOL.md R10).
--
-- Names live in PostgreSQL and here, not on the servers: whether a name is free is decided here, at the head of the
-- lane. What an instance has done of it is its position in lane 0. An operation whose outcome on a server is not
-- known is settled by looking at the server.
local Store = require("lb.store")
local Lane = require("lb.lanes")
local slice = require("chromux.slice")
local sound = require("lb.sound")
local json = json

local Names = {}
Names.__index = Names

local LANE = 0
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
  e.created = t
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

-- ---- answers of our own, in Chroma's words (1.0.20) -------------------------------------------------------

local function says(status, name, message)
  return { status = status, type = "application/json", body = string.format('{"error":"%s","message":%s}', name,
    slice.quote(message)) }
end

local EMPTY = { status = 200, type = "application/json", body = "{}" }

local function no_collection_of_id(id)
  return says(404, "NotFoundError", "Collection [" .. id .. "] does not exists.")
end
Names.no_collection_of_id = no_collection_of_id

function Names.is_id(text) return #text == 36 and text:find("^%x+%-%x+%-%x+%-%x+%-%x+$") ~= nil end

function Names.no_id() return says(400, "InvalidArgumentError", "Collection ID is not a valid UUIDv4") end

local function no_collection_of_name(name)
  return says(404, "NotFoundError", "Collection [" .. name .. "] does not exists")
end

local function taken(what, name) return says(409, "ChromaError", what .. " [" .. name .. "] already exists") end

-- ---- requests to a server --------------------------------------------------------------------------------

local function path(self, tenant, database, rest)
  local out = "/api/v2/tenants"
  if tenant then out = out .. "/" .. self.context.encode(tenant) end
  if database then out = out .. "/databases/" .. self.context.encode(database) end
  return out .. (rest or "")
end

-- One request that changes something: kind, answer, as in lanes.lua.
local function send(self, copy, method, target, body, physical, late)
  local settings = self.context.settings
  local call, why = copy.server:send({ method = method, target = target, body = body,
    type = body and "application/json" or nil, max = 16 * 1024 * 1024 }, self.context)
  if not call then return "not_sent", why end
  local got, ending, text = call:wait(settings.TRY_TIMEOUT)
  if not got and ending == "late" then
    if late then late() end
    got, ending, text = call:wait(settings.DRAIN_CAP)
  end
  if got then return Lane.meaning(got, physical), got end
  if ending == "late" then call:close() end
  if ending == "not_sent" or ending == "fenced" then return "not_sent", text end
  return ending == "peer_closed" and "over" or "unknown", ending
end

-- The id that a name has on this server; false: none. nil, why: not known.
local function id_by_name(self, copy, tenant, database, name)
  local a, kind = copy.server:ask("GET", path(self, tenant, database, "/collections/" .. self.context.encode(name)))
  if not a then return nil, kind end
  if a.status == 404 then return false end
  local c = a.status == 200 and slice.collection(a.body)
  if not c then return nil, "answered " .. a.status end
  return c.id, a
end

-- Ends a collection by its id: under a name of its own first, so that nobody else's can be hit.
local function kill(self, copy, tenant, database, physical, lane_id, late)
  local tomb = "chromux-tomb-" .. lane_id .. "-" .. copy.incarnation
  local kind, answer = send(self, copy, "PUT", path(self, tenant, database, "/collections/" .. physical),
    json.encode { new_name = tomb }, physical, late)
  if kind == "lost" then return "applied", EMPTY end
  if kind ~= "applied" then return kind, answer end
  kind, answer = send(self, copy, "DELETE", path(self, tenant, database, "/collections/" .. tomb), nil, nil, late)
  if type(answer) == "table" and answer.status == 404 then return "applied", EMPTY end
  -- An error may come after the deed: the server tells.
  if kind == "unsure" and id_by_name(self, copy, tenant, database, tomb) == false then return "applied", EMPTY end
  return kind, answer
end

-- ---- the operations --------------------------------------------------------------------------------------
--
-- Each has: check(self, e, p) -> an answer that refuses it, or nil (nothing is sent then); perform(self, copy, e, p,
-- late) -> kind, answer, found; statements and effect of the verdict "applied". ends: collections may be gone on a
-- server before all is done, so errors refuse it never: it is tried until it is done, or skipped by hand.

local Op = {}

-- A collection is about to go: that a server does not know it any more is no loss.
local function leaves(lane) lane.leaving = true end

-- The operation that was to end collections has not: a server that misses one now has lost it.
local function stay(self, p)
  for _, id in ipairs(p.lanes or { p.lane }) do
    local lane = self.by_lane[type(id) == "table" and id.id or id]
    if lane then lane.leaving = nil end
  end
end

-- What makes its end durable, added to `out`. Writes that wait in its lane are refused in the same transaction: one
-- that was applied meanwhile keeps its verdict, one that was not gets none but this.
local function ends(self, out, lane_id)
  local lane = self.by_lane[lane_id]
  out[#out + 1] = Store.collection_deleted(lane_id)
  out[#out + 1] = Store.lane_close(lane_id)
  if lane then out[#out + 1] = Store.reject_rest(lane_id, no_collection_of_id(lane.logical)) end
end

local function copy_on(self, lane_id, instance)
  local lane = self.by_lane[lane_id]
  local copy = lane and lane.copies[instance]
  if copy then return copy.physical ~= "" and copy.physical or nil end
  local rows = self.context.store.reader:query(
    "SELECT physical FROM journal_copies WHERE lane = $1 AND instance = $2 AND physical <> ''", lane_id, instance)
  if not rows then return nil, "away" end
  return rows[1] and rows[1].physical
end

Op.create_tenant = {
  check = function(self, _, p)
    if p.name and self.tenants[p.name] then return taken("Tenant", p.name) end
  end,
  perform = function(self, copy, e, _, late)
    local kind, a = send(self, copy, "POST", path(self), e.body, nil, late)
    if kind == "refused" and a.status == 409 then return "applied", e.verdict and a or a end
    return kind, a
  end,
  statements = function(_, p) return { Store.tenant_new(p.name) } end,
  effect = function(self, p) self.tenants[p.name] = true end,
}

Op.update_tenant = {
  perform = function(self, copy, e, p, late)
    return send(self, copy, "PATCH", path(self, p.tenant), e.body, nil, late)
  end,
}

Op.create_database = {
  check = function(self, _, p)
    if p.name and self.databases[key(p.tenant, p.name)] then return taken("Database", p.name) end
  end,
  perform = function(self, copy, e, p, late)
    local kind, a = send(self, copy, "POST", path(self, p.tenant, nil, "/databases"), e.body, nil, late)
    if kind == "refused" and a.status == 409 then return "applied", a end
    return kind, a
  end,
  statements = function(_, p, n) return { Store.database_made(p.tenant, p.name, n) } end,
  effect = function(self, p) self.databases[key(p.tenant, p.name)] = true end,
}

-- Deletes an empty database. An error may come after the deed: then the server is asked.
local function drop_database(self, copy, tenant, database, late)
  local kind, a = send(self, copy, "DELETE", path(self, tenant, database), nil, nil, late)
  if type(a) == "table" and a.status == 404 then return "applied", EMPTY end
  if kind == "unsure" then
    local there = copy.server:ask("GET", path(self, tenant, database))
    if not there or there.status >= 500 then return "later", a end
    if there.status == 404 then return "applied", EMPTY end
  end
  return kind, a
end

Op.delete_database = {
  ends = true,
  check = function(self, _, p)
    if not self.databases[key(p.tenant, p.database)] then
      return says(404, "NotFoundError", "Database [" .. p.database .. "] not found")
    end
  end,
  perform = function(self, copy, _, p, late)
    for _, id in ipairs(p.lanes or {}) do
      local physical, away = copy_on(self, id, copy.instance)
      if away then return "later" end
      if physical then
        local kind, a = kill(self, copy, p.tenant, p.database, physical, id, late)
        if kind ~= "applied" then return kind, a end
      end
    end
    return drop_database(self, copy, p.tenant, p.database, late)
  end,
  -- Refused elsewhere, and this instance may have done it.
  undo = function(self, copy, _, p)
    if not self.databases[key(p.tenant, p.database)] then return "applied" end
    local there = copy.server:ask("GET", path(self, p.tenant, p.database))
    if not there then return "later" end
    if there.status ~= 404 then return "applied" end
    return (send(self, copy, "POST", path(self, p.tenant, nil, "/databases"), json.encode { name = p.database }))
  end,
  -- The collections it takes with it are those of the moment when it is decided.
  prepare = function(self, p)
    p.lanes = {}
    for i, lane in ipairs(self:each_in(p.tenant, p.database)) do
      p.lanes[i] = lane.id
      leaves(lane)
    end
  end,
  statements = function(self, p, n)
    local out = { Store.database_gone(p.tenant, p.database, n) }
    for _, id in ipairs(p.lanes) do ends(self, out, id) end
    return out
  end,
  effect = function(self, p)
    self.databases[key(p.tenant, p.database)] = nil
    for _, id in ipairs(p.lanes) do
      local lane = self.by_lane[id]
      if lane then
        self:collection_gone(lane)
        self.context.lane_over(lane)
      end
    end
  end,
}

-- The body without get_or_create, whose meaning ("or else the one there is") was decided here.
local function plain_create(body)
  local members = slice.members(body)
  if not members or not members.get_or_create then return body end
  members.get_or_create = nil
  local parts = {}
  for name, raw in pairs(members) do parts[#parts + 1] = slice.quote(name) .. ":" .. raw end
  return "{" .. table.concat(parts, ",") .. "}"
end

Op.create_collection = {
  check = function(self, e, p)
    local lane = p.name and self:find(p.tenant, p.database, p.name)
    if not lane then return nil end
    if p.get_or_create then
      e.existing = lane -- answered as the collection it is
      return EMPTY
    end
    return taken("Collection", p.name)
  end,
  perform = function(self, copy, e, p, late)
    local mine = self.physical[copy.instance] or {}
    if copy.attempted[e.n] or copy.doubt >= e.n then
      local id, answer = id_by_name(self, copy, p.tenant, p.database, p.name)
      if id == nil then return "later" end
      if id and not mine[id] then return "applied", answer, id end
    end
    copy.attempted[e.n] = true
    local target = path(self, p.tenant, p.database, "/collections")
    local kind, a = send(self, copy, "POST", target, plain_create(e.body), nil, late)
    self.context.fault("create.sent")
    if kind == "applied" then
      local c = slice.collection(a.body)
      if not c then return "unsure", a end
      return kind, a, c.id
    end
    if kind == "refused" and a.status == 409 and e.verdict == "applied" then
      return "conflict", a -- a name that the catalogue says is free: somebody made it past chromux
    end
    if kind ~= "unsure" and kind ~= "over" and kind ~= "unknown" then copy.attempted[e.n] = nil end
    return kind, a
  end,
  prepare = function(self, p)
    p.lane = self.next_lane
    self.next_lane = self.next_lane + 1
  end,
  statements = function(_, p, _, copy, found)
    p.logical = found
    return { Store.lane_new(p.lane), Store.collection_new(p.lane, p), Store.copy_new(p.lane, copy.instance, found, 0) }
  end,
  effect = function(self, p, copy, found)
    local lane = self:collection_add { id = p.lane, logical = found, tenant = p.tenant, database = p.database,
      name = p.name, head = 0, floor = 0 }
    self:copy_new(lane, copy, found)
  end,
  -- On an instance that follows: the copy it has made.
  follow = function(self, p, copy, found)
    return { Store.copy_new(p.lane, copy.instance, found, 0) }, function()
      local lane = self.by_lane[p.lane]
      if lane then
        self:copy_new(lane, copy, found)
        lane:kick()
      end
    end
  end,
  -- Refused elsewhere, and this instance may have made it.
  undo = function(self, copy, e, p)
    local id = id_by_name(self, copy, p.tenant, p.database, p.name)
    if id == nil then return "later" end
    if not id or (self.physical[copy.instance] or {})[id] then return "applied" end
    return (kill(self, copy, p.tenant, p.database, id, "undone-" .. e.n))
  end,
}

local function lane_of(self, p)
  if p.by_name then return self:find(p.tenant, p.database, p.collection) end
  local lane = self.by_logical[p.collection]
  return lane and lane.tenant == p.tenant and lane.database == p.database and lane or nil
end

Op.delete_collection = {
  ends = true,
  check = function(self, _, p)
    if not lane_of(self, p) then return no_collection_of_name(p.collection) end
  end,
  prepare = function(self, p)
    local lane = lane_of(self, p)
    p.lane = lane.id
    leaves(lane)
  end,
  perform = function(self, copy, _, p, late)
    local physical, away = copy_on(self, p.lane, copy.instance)
    if away then return "later" end
    if not physical then return "applied", EMPTY end
    return kill(self, copy, p.tenant, p.database, physical, p.lane, late)
  end,
  statements = function(self, p)
    local out = {}
    ends(self, out, p.lane)
    return out
  end,
  effect = function(self, p)
    local lane = self.by_lane[p.lane]
    if lane then
      self:collection_gone(lane)
      self.context.lane_over(lane)
    end
  end,
}

Op.update_collection = {
  check = function(self, _, p)
    local lane = lane_of(self, p)
    if not lane and not Names.is_id(p.collection) then return Names.no_id() end
    if not lane then return no_collection_of_id(p.collection) end
    local other = p.new_name and self:find(p.tenant, p.database, p.new_name)
    if other and other ~= lane then
      return says(500, "InternalError", "Database error: error returned from database: (code: 2067) UNIQUE constraint "
        .. "failed: collections.name, collections.database_id")
    end
  end,
  prepare = function(self, p) p.lane = lane_of(self, p).id end,
  perform = function(self, copy, e, p, late)
    local physical, away = copy_on(self, p.lane, copy.instance)
    if away then return "later" end
    if not physical then return e.verdict and "applied" or "absent", EMPTY end
    local kind, a = send(self, copy, "PUT", path(self, p.tenant, p.database, "/collections/" .. physical), e.body,
      physical, late)
    if kind == "lost" then
      local lane = self.by_lane[p.lane]
      local held = lane and lane.copies[copy.instance]
      if held then lane:mark(held, "rebuild", "the server does not know its collection any more") end
      return e.verdict and "applied" or "absent", EMPTY
    end
    return kind, a
  end,
  statements = function(_, p, n)
    return p.new_name and { Store.collection_renamed(p.lane, p.new_name, n) } or {}
  end,
  effect = function(self, p)
    local lane = self.by_lane[p.lane]
    if lane and p.new_name then self:collection_rename(lane, p.new_name) end
  end,
}

Op.reset = {
  ends = true,
  prepare = function(self, p)
    p.lanes = {}
    for i, lane in ipairs(self:each_in()) do
      p.lanes[i] = { id = lane.id, tenant = lane.tenant, database = lane.database }
      leaves(lane)
    end
    p.databases = {}
    for k in pairs(self.databases) do
      local tenant, name = k:match("^(.-)%z(.*)$")
      if not (tenant == "default_tenant" and name == "default_database") then
        p.databases[#p.databases + 1] = { tenant = tenant, name = name }
      end
    end
  end,
  perform = function(self, copy, _, p, late)
    for _, c in ipairs(p.lanes or {}) do
      local physical, away = copy_on(self, c.id, copy.instance)
      if away then return "later" end
      if physical then
        local kind, a = kill(self, copy, c.tenant, c.database, physical, c.id, late)
        if kind ~= "applied" then return kind, a end
      end
    end
    for _, d in ipairs(p.databases or {}) do
      local kind, a = drop_database(self, copy, d.tenant, d.name, late)
      if kind ~= "applied" then return kind, a end
    end
    return "applied", { status = 200, type = "application/json", body = "true" }
  end,
  statements = function(self, p, n)
    local out = {}
    for _, d in ipairs(p.databases) do out[#out + 1] = Store.database_gone(d.tenant, d.name, n) end
    for _, c in ipairs(p.lanes) do ends(self, out, c.id) end
    return out
  end,
  effect = function(self, p)
    for _, d in ipairs(p.databases) do self.databases[key(d.tenant, d.name)] = nil end
    for _, c in ipairs(p.lanes) do
      local lane = self.by_lane[c.id]
      if lane then
        self:collection_gone(lane)
        self.context.lane_over(lane)
      end
    end
  end,
}

Names.operations = Op

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

local function record(self, copy, e, verdict, answer, statements, effect, note)
  local p = parameters(e)
  e.deciding = verdict
  self.context.fault("decision.before_commit")
  local all = {}
  for i, s in ipairs(statements or {}) do all[i] = s end
  all[#all + 1] = Store.decide(LANE, e.n, e.n, verdict, answer, nil, note)
  all[#all + 1] = { "UPDATE journal_entries SET rest = $3 WHERE lane = $1 AND n = $2", LANE, e.n, json.encode(p) }
  if copy then all[#all + 1] = Store.position(LANE, copy, e.n) end
  local rows, why = self.context.store:commit(all)
  if not rows then
    e.deciding = nil
    log.warn("catalogue_not_recorded", "entry 0/" .. e.n .. ": " .. tostring(why))
    return false
  end
  e.verdict, e.status, e.answer, e.answer_type = verdict, answer.status, answer.body, answer.type
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
    if copy and copy.state == "ready" and copy.p == n - 1 and copy.settled and not copy.draining and server:usable()
      and copy.tried ~= n then
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
  if kind == "over" or kind == "unknown" or kind == "unsure" then doubt(self, copy, e.n) end
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

-- Has every member answered 5xx to it twice?
local function failed_everywhere(self, copy, e)
  local f = self.failures[e.n] or {}
  self.failures[e.n] = f
  f[copy.instance] = (f[copy.instance] or 0) + 1
  for _, other in ipairs(self.order) do
    if other.state == "ready" and (f[other.instance] or 0) < 2 then return false end
  end
  self.failures[e.n] = nil
  return true
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
  local kind, answer, found = op.perform(self, copy, e, p, function()
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
    kind, answer = "refused", no_collection_of_id(p.collection)
  elseif kind == "absent" then
    release(self, copy, e.n)
    return PAUSE
  end
  local ok
  if kind == "applied" then
    ok = record(self, copy, e, "applied", answer, op.statements and op.statements(self, p, e.n, copy, found), function()
      if op.effect then op.effect(self, p, copy, found) end
    end)
  elseif kind == "refused" or (kind == "unsure" and not op.ends and failed_everywhere(self, copy, e)) or
    (kind == "unsure" and answer.status >= 400 and answer.status < 500
      and (Lane.chroma_shape(answer) or answer.body == "")) then -- "": a route that this Chroma does not have
    ok = record(self, copy, e, "rejected", Lane.failure(answer))
  else
    return give_up_on(self, copy, e, kind, answer)
  end
  if self.decider == copy then self.decider = nil end
  self:kick()
  return ok and GO or PAUSE
end

local function follow(self, copy, e)
  local p, op = parameters(e), Op[e.action]
  local kind, answer, found = op.perform(self, copy, e, p)
  local statements, effect = {}, nil
  if kind == "applied" and op.follow then
    statements, effect = op.follow(self, p, copy, found)
  elseif kind == "conflict" or kind == "refused" then
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

local function step(self, copy)
  local n = copy.p + 1
  if not self.context.drives then return STOP end
  if n > self.head or copy.state ~= "ready" or not copy.settled or not copy.server:usable() then
    return STOP
  end
  local e = self:entry(n)
  if not e then return PAUSE end
  if e.verdict == "applied" then return follow(self, copy, e) end
  if e.verdict then
    local op = Op[e.action]
    if op.undo and (e.verdict == "rejected" or e.verdict == "skipped") and (copy.attempted[n] or copy.doubt >= n) then
      local kind = op.undo(self, copy, e, parameters(e))
      if kind ~= "applied" then return PAUSE end
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

local function drive(self, copy)
  local wait = 0.01
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
    end
  until not copy.again
  copy.running = false
end

function Names:kick_copy(copy)
  copy.again = true
  if copy.running or copy.p >= self.head or copy.state ~= "ready" or not self.context.drives then return end
  copy.running = true
  copy.server:run(function() drive(self, copy) end)
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

-- ---- reads -----------------------------------------------------------------------------------------------

-- Instances that have done every catalogue operation that was answered, the least behind in `lane` first.
local function readers(self, lane)
  local out = {}
  for _, server in ipairs(self.context.servers.list) do
    local copy = self.copies[server.name]
    if copy and copy.state == "ready" and copy.doubt == 0 and copy.p >= self.floor and server:usable() then
      local c = lane and lane.copies[server.name]
      if not lane or (c and c.state == "ready" and c.physical ~= "") then
        out[#out + 1] = { copy = copy, p = c and c.p or 0, well = server.health == "up" }
      end
    end
  end
  for i, r in ipairs(out) do r.i = i end
  table.sort(out, function(a, b)
    if a.well ~= b.well then return a.well end
    if a.p ~= b.p then return a.p > b.p end
    return a.i < b.i
  end)
  return out
end

-- One of them answers the GET. Where none can yet, as after a start or while one catches up, that is waited for as long
-- as a try may take. answer, instance | nil, why
local function ask_one(self, lane, target, until_)
  local why = "no instance has the whole catalogue"
  local settings = self.context.settings
  local patience = math.min(until_, now() + settings.TRY_TIMEOUT)
  while true do
    for _, r in ipairs(readers(self, lane)) do
      local left = until_ - now()
      if left <= 0 then return nil, why end
      local a, kind, text = r.copy.server:ask("GET", target, nil, math.min(left, settings.TRY_TIMEOUT))
      if a and a.status < 500 then return a, r.copy.instance end
      why = r.copy.instance .. ": " .. (a and "answered " .. a.status or text or kind)
    end
    if now() + 0.02 >= patience or self.context.dead then return nil, why end
    sleep(0.02)
  end
end

local function rewritten(self, instance, text)
  local c = slice.collection(text)
  local lane = c and (self.physical[instance] or {})[c.id]
  if not lane or self.by_logical[lane.logical] ~= lane then return nil end
  text = slice.replace_at(text, c.id_at, lane.logical)
  if c.name ~= lane.name then -- while it is renamed or deleted there
    local at, last = text:find('"name":' .. slice.quote(c.name), 1, true)
    if at then text = text:sub(1, at) .. 'name":' .. slice.quote(lane.name) .. text:sub(last + 1) end
  end
  return text, lane, c
end

-- The collection as its clients know it: answer, instance | nil, why
function Names:describe(lane, until_)
  local a, instance = ask_one(self, lane, path(self, lane.tenant, lane.database, "/collections/"
    .. self.context.encode(lane.name)), until_)
  if not a then return nil, instance end
  if a.status ~= 200 then return a, instance end
  local text = rewritten(self, instance, a.body)
  if not text then return nil, instance .. " has another collection of that name" end
  a.body = text
  return a, instance
end

local function decoded(text) return (text:gsub("%%(%x%x)", function(x) return string.char(tonumber(x, 16)) end)) end

local function page(query, name)
  for part in query:gmatch("[^&]+") do
    local key_, value = part:match("^([^=]*)=(.*)$")
    if key_ and decoded(key_) == name then return tonumber(decoded(value)) end
  end
end

local function list(self, req)
  local a, instance = ask_one(self, nil, path(self, req.tenant, req.database, "/collections"), req.deadline)
  if not a then return nil, instance end
  if a.status ~= 200 then return a, instance end
  local all = {}
  for _, raw in ipairs(slice.elements(a.body) or {}) do
    local text, lane = rewritten(self, instance, raw)
    if text then all[#all + 1] = { lane.logical, text } end
  end
  table.sort(all, function(x, y) return x[1] < y[1] end)
  local offset, limit = page(req.query, "offset") or 0, page(req.query, "limit") or #all
  local out = {}
  for i = offset + 1, math.min(#all, offset + limit) do out[#out + 1] = all[i][2] end
  a.body = "[" .. table.concat(out, ",") .. "]"
  return a, instance
end

-- Is the collection that a request names known?
function Names:has(req) return lane_of(self, req) ~= nil end

-- Answers a catalogue read: answer, instance | nil, why
function Names:read(req)
  if req.action == "get_collection" then
    local lane = lane_of(self, req)
    if not lane then
      return req.by_name and no_collection_of_name(req.collection) or no_collection_of_id(req.collection)
    end
    return self:describe(lane, req.deadline)
  elseif req.action == "list_collections" then
    -- What Chroma refuses in the query it refuses itself; its list would have its own ids.
    local other = (req.query .. "&"):gsub("limit=%d%d?%d?%d?%d?%d?&", ""):gsub("offset=%d%d?%d?%d?%d?%d?&", "")
    if other:find("[^&]") then
      local a, instance = ask_one(self, nil, req.target, req.deadline)
      if not a or a.status ~= 200 then return a, instance end
    end
    return list(self, req)
  elseif req.action == "count_collections" then
    return { status = 200, type = "application/json", body = tostring(#self:each_in(req.tenant, req.database)) }
  end
  return ask_one(self, nil, req.target, req.deadline)
end

return Names
