-- operations.lua: what each catalogue operation does to a server, and what it makes true (PROTOCOL.md R10).
--
-- Each has: check(names, e, p) -> an answer that refuses it, or nil (nothing is sent then); perform(names, copy, e, p,
-- late, again) -> kind, answer, found, where again says that this instance may have been sent it before; statements and
-- effect of the verdict "applied". names is the catalogue (names.lua), copy an instance's part in it, p the entry's
-- parameters.
--
-- An error may come after the deed. look(names, copy, e, p) asks the server: "done", answer, found | "undone" | "dark"
-- (it does not show) | nil: not known now, and the error when the server answers with one. undo(names, copy, e, p), of
-- an entry whose effect on this instance is not wanted: "applied" when it is away, anything else: to be asked again,
-- with the error likewise.
-- ends: collections may be gone on a server before all is done, so errors refuse it never: it is tried until it is
-- done, or skipped by hand.
local Store = require("lb.store")
local deeds = require("lb.deeds")
local slice = require("chromux.slice")
local words = require("lb.words")
local json = json

-- ---- requests to a server --------------------------------------------------------------------------------

-- One request that changes something: kind, answer, as in deeds.lua.
local function send(self, copy, method, target, body, physical, late)
  return deeds.send(self.context, copy.server, method, target, body, physical, late)
end

local function id_by_name(self, copy, tenant, database, name)
  return deeds.id_by_name(self.context, copy.server, self:path(tenant, database, "/collections"), name)
end

local function tomb_of(copy, lane_id) return "chromux-tomb-" .. lane_id .. "-" .. copy.incarnation end

-- The second half of kill(): there may be a collection of that name.
local function bury(self, copy, tenant, database, tomb, late)
  local kind, answer = send(self, copy, "DELETE", self:path(tenant, database, "/collections/" .. tomb), nil, nil, late)
  if type(answer) == "table" and answer.status == 404 then return "applied", words.EMPTY end
  -- An error may come after the deed: the server tells.
  if kind == "unsure" and id_by_name(self, copy, tenant, database, tomb) == false then return "applied", words.EMPTY end
  return kind, answer
end

-- Ends a collection by its id: under a name of its own first, so that nobody else's can be hit.
local function kill(self, copy, tenant, database, physical, lane_id, late)
  local tomb = tomb_of(copy, lane_id)
  local kind, answer = send(self, copy, "PUT", self:path(tenant, database, "/collections/" .. physical),
    json.encode { new_name = tomb }, physical, late)
  if kind == "lost" then return "applied", words.EMPTY end
  if kind ~= "applied" then return kind, answer end
  self.context.fault("delete.renamed_not_deleted")
  return bury(self, copy, tenant, database, tomb, late)
end

-- ---- the operations --------------------------------------------------------------------------------------

local Op = {}

-- A collection is about to go: that a server does not know it any more is no loss.
local function leaves(lane) lane.leaving = true end

-- What makes its end durable, added to `out`. Writes that wait in its lane are refused in the same transaction: one
-- that was applied meanwhile keeps its verdict, one that was not gets none but this.
local function ends(self, out, lane_id)
  local lane = self.by_lane[lane_id]
  out[#out + 1] = Store.collection_deleted(lane_id)
  out[#out + 1] = Store.lane_close(lane_id)
  if lane then out[#out + 1] = Store.reject_rest(lane_id, words.no_collection_of_id(lane.logical)) end
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

-- The answer when it is an error of the server's own, which it may say for ever.
local function failing(a) return a and a.status >= 500 and a.status ~= 503 and a or nil end

-- Whether the server has what the GET names.
local function is_there(copy, target)
  local a = copy.server:ask("GET", target)
  if not a or a.status >= 500 then return nil, failing(a) end
  if a.status == 200 then return "done", words.EMPTY end
  return a.status == 404 and "undone" or "dark"
end

Op.create_tenant = {
  check = function(self, _, p)
    if p.name and self.tenants[p.name] then return words.taken("Tenant", p.name) end
  end,
  perform = function(self, copy, e, _, late)
    local kind, a = send(self, copy, "POST", self:path(), e.body, nil, late)
    if kind == "refused" and a.status == 409 then return "applied", a end
    return kind, a
  end,
  look = function(self, copy, _, p) return is_there(copy, self:path(p.name or "")) end,
  statements = function(_, p) return { Store.tenant_new(p.name) } end,
  effect = function(self, p) self.tenants[p.name] = true end,
}

Op.update_tenant = {
  perform = function(self, copy, e, p, late)
    return send(self, copy, "PATCH", self:path(p.tenant), e.body, nil, late)
  end,
  look = function(self, copy, e, p)
    local a = copy.server:ask("GET", self:path(p.tenant))
    local is = a and a.status == 200 and slice.members(a.body)
    if not is then return nil, failing(a) end
    local wanted = (slice.members(e.body) or {}).resource_name
    return wanted and is.resource_name == wanted and "done" or "undone", words.EMPTY
  end,
}

Op.create_database = {
  check = function(self, _, p)
    if p.name and self:has_database(p.tenant, p.name) then return words.taken("Database", p.name) end
  end,
  perform = function(self, copy, e, p, late)
    local kind, a = send(self, copy, "POST", self:path(p.tenant, nil, "/databases"), e.body, nil, late)
    if kind == "refused" and a.status == 409 then return "applied", a end
    return kind, a
  end,
  look = function(self, copy, _, p) return is_there(copy, self:path(p.tenant, p.name or "")) end,
  statements = function(_, p, n) return { Store.database_made(p.tenant, p.name, n) } end,
  effect = function(self, p) self:database_set(p.tenant, p.name, true) end,
}

-- Deletes an empty database. An error may come after the deed: then the server is asked.
local function drop_database(self, copy, tenant, database, late)
  local kind, a = send(self, copy, "DELETE", self:path(tenant, database), nil, nil, late)
  if type(a) == "table" and a.status == 404 then return "applied", words.EMPTY end
  if kind == "unsure" then
    local there = copy.server:ask("GET", self:path(tenant, database))
    if not there or there.status >= 500 then return "later", a end
    if there.status == 404 then return "applied", words.EMPTY end
  end
  return kind, a
end

Op.delete_database = {
  ends = true,
  check = function(self, _, p)
    if not self:has_database(p.tenant, p.database) then
      return words.says(404, "NotFoundError", "Database [" .. p.database .. "] not found")
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
  undo = function(self, copy, _, p)
    if not self:has_database(p.tenant, p.database) then return "applied" end
    local there = copy.server:ask("GET", self:path(p.tenant, p.database))
    if not there then return "later" end
    if there.status ~= 404 then return "applied" end
    return (send(self, copy, "POST", self:path(p.tenant, nil, "/databases"), json.encode { name = p.database }))
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
    self:database_set(p.tenant, p.database, false)
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

-- true | false | nil: that is not known now, and the error
local function is_empty(self, copy, p, id)
  local a = copy.server:ask("POST", self:path(p.tenant, p.database, "/collections/" .. id .. "/get"),
    '{"limit":1,"include":[]}')
  local got = a and a.status == 200 and slice.members(a.body)
  local ids = got and got.ids and slice.elements(got.ids)
  if not ids then return nil, failing(a) end
  return #ids == 0
end

-- Creates of a name that may have left a collection on a server though they have none in the catalogue. A refusal
-- because the name was taken, there or here, has left none. Lane 0 is kept whole.
local REMAINS = [[SELECT rest FROM journal_entries WHERE lane = 0 AND action = 'create_collection'
  AND (verdict IN ('failed', 'skipped') OR (verdict = 'rejected' AND status <> 409)) AND strpos(rest, $1) > 0
  ORDER BY n DESC LIMIT 64]]

local function may_have_left(self, p)
  for _, row in ipairs(self.context.store.reader:query(REMAINS, json.encode(p.name)) or {}) do
    local of = json.decode(row.rest) or {}
    if of.name == p.name and of.tenant == p.tenant and of.database == p.database then return true end
  end
  return false
end

-- The server has a collection of a name that is free in the catalogue. An empty one that no lane owns makes way when
-- an earlier create of ours may have left it there. nil: it is not such a one; otherwise kill()'s word.
local function make_way(self, copy, e, p, late)
  local is, _, id = Op.create_collection.look(self, copy, e, p)
  if is ~= "done" or not p.name or not may_have_left(self, p) then return nil end
  log.warn("ghost_found", copy.instance .. " has " .. p.name .. " (" .. id .. "), which an earlier create has left")
  self.context.fault("ghost.found")
  return (kill(self, copy, p.tenant, p.database, id, "ghost-" .. e.n, late))
end

-- Words of a kill that is to be tried again. One that is executed late does no harm: it can hit nothing else.
local PASSING = { not_sent = true, later = true, over = true, unknown = true }

local function send_create(self, copy, e, p, late)
  local target = self:path(p.tenant, p.database, "/collections")
  local kind, a = send(self, copy, "POST", target, plain_create(e.body), nil, late)
  self.context.fault("create.sent")
  if kind ~= "applied" then return kind, a end
  local c = slice.collection(a.body)
  if not c then return "unsure", a end
  self.context.fault("create.answered_unmapped")
  return kind, a, c.id
end

Op.create_collection = {
  check = function(self, e, p)
    local lane = p.name and self:find(p.tenant, p.database, p.name)
    if not lane then return nil end
    if p.get_or_create then
      e.existing = lane -- answered as the collection it is
      return words.EMPTY
    end
    return words.taken("Collection", p.name)
  end,
  perform = function(self, copy, e, p, late, again)
    if again then
      local is, answer, id = Op.create_collection.look(self, copy, e, p)
      if not is then return answer and "unsure" or "later", answer end
      if is == "done" then
        self.context.fault("create.by_name_found")
        return "applied", answer, id
      end
    end
    local kind, a, id = send_create(self, copy, e, p, late)
    if kind == "refused" and a.status == 409 and not e.verdict then
      local gone = make_way(self, copy, e, p, late)
      if PASSING[gone] then return "later", a end
      if gone == "applied" then kind, a, id = send_create(self, copy, e, p, late) end
    end
    if kind == "refused" and a.status == 409 and e.verdict == "applied" then
      return "conflict", a -- a name that the catalogue says is free: somebody made it past chromux
    end
    return kind, a, id
  end,
  -- An empty collection of that name which no lane owns is ours: the name was free. One with records was made past
  -- chromux: nobody has written to ours yet.
  look = function(self, copy, _, p)
    local id, answer, said = id_by_name(self, copy, p.tenant, p.database, p.name or "")
    if id == nil then return nil, failing(said) end
    if not id or (self.physical[copy.instance] or {})[id] then return "undone" end
    local empty
    empty, said = is_empty(self, copy, p, id)
    if empty == nil then return nil, said end
    if not empty then return "undone" end
    return "done", answer, id
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
  undo = function(self, copy, e, p)
    local is, said, id = Op.create_collection.look(self, copy, e, p)
    if not is then return "later", said end
    local as = "undone-" .. e.n
    if is == "undone" then return (bury(self, copy, p.tenant, p.database, tomb_of(copy, as))) end -- half of it was done
    self.context.fault("ghost.found")
    return (kill(self, copy, p.tenant, p.database, id, as))
  end,
}

Op.delete_collection = {
  ends = true,
  check = function(self, _, p)
    if not self:lane_named(p) then return words.no_collection_of_name(p.collection) end
  end,
  prepare = function(self, p)
    local lane = self:lane_named(p)
    p.lane = lane.id
    leaves(lane)
  end,
  perform = function(self, copy, _, p, late)
    local physical, away = copy_on(self, p.lane, copy.instance)
    if away then return "later" end
    if not physical then return "applied", words.EMPTY end
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

-- What the server says of one of its collections. raw | false (there is none) | nil, the error
local function described(self, copy, tenant, database, physical)
  local a = copy.server:ask("GET", self:path(tenant, database, "/collections"), nil, 30)
  local all = a and a.status == 200 and slice.elements(a.body)
  if not all then return nil, failing(a) end
  for _, raw in ipairs(all) do
    if (slice.collection(raw) or {}).id == physical then return raw end
  end
  return false
end

local function object(raw) return raw and raw ~= "null" and slice.members(raw) or {} end

-- Is the map what a replacement by `wanted` makes of it? Entries that are null drop. Other spellings of a number are
-- not told from another number: then it does not show.
local function replaced(is, wanted)
  local same = "done"
  for name, raw in pairs(wanted) do
    if raw ~= "null" and not is[name] then return "undone" end
    if raw ~= "null" and slice.canonical(is[name]) ~= slice.canonical(raw) then same = "dark" end
  end
  for name in pairs(is) do
    if (wanted[name] or "null") == "null" then return "undone" end
  end
  return same
end

-- Does the configuration show all that is wanted? A part that it does not show, or spells otherwise, leaves that open.
local function shows(is, wanted)
  for name, raw in pairs(wanted) do
    local inner = slice.members(raw)
    if inner and is[name] then
      if not shows(object(is[name]), inner) then return false end
    elseif raw ~= "null" and (not is[name] or slice.canonical(is[name]) ~= slice.canonical(raw)) then
      return false
    end
  end
  return true
end

local function lose(self, p, copy, reason)
  local lane = self.by_lane[p.lane]
  local held = lane and lane.copies[copy.instance]
  if held then lane:mark(held, "rebuild", reason) end
end

Op.update_collection = {
  check = function(self, _, p)
    local lane = self:lane_named(p)
    if not lane and not words.is_id(p.collection) then return words.no_id() end
    if not lane then return words.no_collection_of_id(p.collection) end
    local other = p.new_name and self:find(p.tenant, p.database, p.new_name)
    if other and other ~= lane then
      return words.says(500, "InternalError", "Database error: error returned from database: (code: 2067) UNIQUE "
        .. "constraint failed: collections.name, collections.database_id")
    end
  end,
  prepare = function(self, p) p.lane = self:lane_named(p).id end,
  perform = function(self, copy, e, p, late)
    local physical, away = copy_on(self, p.lane, copy.instance)
    if away then return "later" end
    if not physical then return e.verdict and "applied" or "absent", words.EMPTY end
    local kind, a = send(self, copy, "PUT", self:path(p.tenant, p.database, "/collections/" .. physical), e.body,
      physical, late)
    if kind == "lost" then
      lose(self, p, copy, "the server does not know its collection any more")
      return e.verdict and "applied" or "absent", words.EMPTY
    end
    return kind, a
  end,
  -- Chroma changes all of it in one transaction (up to 1.5.9): one part tells of the others.
  look = function(self, copy, e, p)
    local physical = copy_on(self, p.lane, copy.instance)
    local raw, said
    if physical then raw, said = described(self, copy, p.tenant, p.database, physical) end
    if raw == false then return "undone" end -- lost: whoever sends to it sees that
    local is, wanted = raw and slice.members(raw), slice.members(e.body)
    local lane = self.by_lane[p.lane]
    if not is or not wanted then return nil, said end
    if p.new_name then
      if slice.string(is.name) ~= p.new_name then return "undone" end
      if lane and lane.name ~= p.new_name then return "done", words.EMPTY end -- it had another one before
    end
    local metadata = (wanted.new_metadata or "null") ~= "null" and replaced(object(is.metadata),
      object(wanted.new_metadata)) or "done"
    if metadata ~= "done" then return metadata end
    return shows(object(is.configuration_json), object(wanted.new_configuration)) and "done" or "dark", words.EMPTY
  end,
  -- What else it was before than its name is known to the other copies only.
  undo = function(self, copy, e, p)
    local lane = self.by_lane[p.lane or 0]
    local held = lane and lane.copies[copy.instance]
    if not held or held.physical == "" or held.state == "rebuild" then return "applied" end
    local is, said = Op.update_collection.look(self, copy, e, p)
    if is == "undone" or not is then return is and "applied" or "later", said end
    if p.new_name and p.new_name ~= lane.name then
      local physical = copy_on(self, lane.id, copy.instance)
      local kind = send(self, copy, "PUT", self:path(p.tenant, p.database, "/collections/" .. physical),
        json.encode { new_name = lane.name }, physical)
      if kind ~= "applied" then return kind end
    end
    local wanted, other = slice.members(e.body) or {}, false
    for _, c in ipairs(lane.order) do other = other or (c.instance ~= copy.instance and c.state == "ready") end
    if other and (wanted.new_metadata or wanted.new_configuration) then
      lose(self, p, copy, "what it did of entry 0/" .. e.n .. ", which is " .. e.verdict .. ", is not known")
    end
    return "applied"
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
    for _, d in ipairs(p.databases) do self:database_set(d.tenant, d.name, false) end
    for _, c in ipairs(p.lanes) do
      local lane = self.by_lane[c.id]
      if lane then
        self:collection_gone(lane)
        self.context.lane_over(lane)
      end
    end
  end,
}

return Op
