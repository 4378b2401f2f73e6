-- chroma.lua: a single-node Chroma server: catalogue and records, and the ways in which one fails.
--
-- A request is executed at one moment, whole, some time after it has arrived. Until then the server may be killed
-- (nothing, all or a part of it is done), stopped (everything waits), or the connection may be closed by the sender:
-- then it is cancelled, or still executed within CLOSED_MOST seconds of the server's running time.
local Records = require("records")
local json = require("lb.runtime").json

local Chroma = {}
Chroma.__index = Chroma

Chroma.CLOSED_MOST = 0.9 -- seconds that a request runs on at most after its connection was closed
Chroma.SLOW_MOST = 4.5   -- and one whose connection stays open

function Chroma.new(world, name, faults, skewed)
  local s = setmetatable({ world = world, rng = world.rng, name = name, faults = faults, skewed = skewed, up = true,
    paused = false, life = 1, requests = {}, serial = 0, listeners = {}, watch = {} }, Chroma)
  s:wipe()
  return s
end

function Chroma:wipe()
  self.tenants = { default_tenant = true, default_database = nil }
  self.databases = { ["default_tenant\0default_database"] = true }
  self.collections = {}
end

local function uuid(rng)
  local hex = {}
  for i = 1, 4 do hex[i] = string.format("%08x", rng:next()) end
  local s = table.concat(hex)
  return s:sub(1, 8) .. "-" .. s:sub(9, 12) .. "-4" .. s:sub(14, 16) .. "-8" .. s:sub(18, 20) .. "-" .. s:sub(21, 32)
end
Chroma.uuid = uuid

-- ---- answers ---------------------------------------------------------------------------------------------

local function quote(s) return json.encode(s) end

local function says(status, name, message)
  return { status = status, body = '{"error":"' .. name .. '","message":' .. quote(message) .. "}" }
end

local function ok(body, status) return { status = status or 200, body = body or "{}" } end

local function describe(c)
  return string.format('{"id":"%s","name":%s,"configuration_json":{},"metadata":%s,"dimension":null,"tenant":%s,'
    .. '"database":%s,"log_position":0,"version":0}', c.id, quote(c.name), c.metadata or "null", quote(c.tenant),
    quote(c.database))
end

local function list_of(texts) return "[" .. table.concat(texts, ",") .. "]" end

function Chroma:by_name(tenant, database, name)
  for _, c in pairs(self.collections) do
    if c.tenant == tenant and c.database == database and c.name == name then return c end
  end
end

local function unknown_id(id) return says(404, "NotFoundError", "Collection [" .. id .. "] does not exist.") end
local function unknown_name(n) return says(404, "NotFoundError", "Collection [" .. n .. "] does not exist.") end

-- ---- the catalogue ---------------------------------------------------------------------------------------

local function decode_name(s) return (s:gsub("%%(%x%x)", function(h) return string.char(tonumber(h, 16)) end)) end

function Chroma:create_collection(tenant, database, body)
  local b = json.decode(body)
  if type(b) ~= "table" or type(b.name) ~= "string" then return says(422, "ChromaError", "no name") end
  if not self.databases[tenant .. "\0" .. database] then
    return says(404, "NotFoundError", "Database [" .. database .. "] not found")
  end
  if #b.name < 3 then return says(400, "InvalidArgumentError", "Expected a name with 3-512 characters") end
  local there = self:by_name(tenant, database, b.name)
  if there then
    if b.get_or_create then return ok(describe(there)) end
    return says(409, "ChromaError", "Collection [" .. b.name .. "] already exists")
  end
  local c = Records.collection(uuid(self.rng), b.name, tenant, database)
  c.metadata = type(b.metadata) == "table" and json.encode(b.metadata) or nil
  self.collections[c.id] = c
  return ok(describe(c))
end

function Chroma:catalogue(method, path, body)
  local tenant, database, rest
  if path == "/openapi.json" then
    return ok('{"components":{"schemas":{"DeleteCollectionRecordsResponse":{"properties":{"deleted":{}}}}}}')
  end
  if path == "/api/v2/heartbeat" then return ok('{"nanosecond heartbeat":1}') end
  if path == "/api/v2/tenants" then
    local b = json.decode(body)
    if self.tenants[b.name] then return says(409, "ChromaError", "Tenant [" .. b.name .. "] already exists") end
    self.tenants[b.name] = true
    return ok()
  end
  tenant, rest = path:match("^/api/v2/tenants/([^/]+)(.*)$")
  tenant = tenant and decode_name(tenant)
  if not tenant then return { status = 404, body = "" } end
  if rest == "" then
    if not self.tenants[tenant] then return says(404, "NotFoundError", "Tenant [" .. tenant .. "] not found") end
    return ok(method == "GET" and '{"name":' .. quote(tenant) .. "}")
  end
  if rest == "/databases" then
    if method == "GET" then
      local out = {}
      for k in pairs(self.databases) do
        local t, d = k:match("^(.-)%z(.*)$")
        if t == tenant then out[#out + 1] = '{"name":' .. quote(d) .. "}" end
      end
      table.sort(out)
      return ok(list_of(out))
    end
    local b = json.decode(body)
    if not self.tenants[tenant] then return says(404, "NotFoundError", "Tenant [" .. tenant .. "] not found") end
    if self.databases[tenant .. "\0" .. b.name] then
      return says(409, "ChromaError", "Database [" .. b.name .. "] already exists")
    end
    self.databases[tenant .. "\0" .. b.name] = true
    return ok()
  end
  database, rest = rest:match("^/databases/([^/]+)(.*)$")
  database = decode_name(database)
  local key = tenant .. "\0" .. database
  if rest == "" then
    if not self.databases[key] then return says(404, "NotFoundError", "Database [" .. database .. "] not found") end
    if method == "DELETE" then
      self.databases[key] = nil
      for id, c in pairs(self.collections) do
        if c.tenant == tenant and c.database == database then self.collections[id] = nil end
      end
    end
    return ok()
  end
  if rest == "/collections" then
    if method == "POST" then return self:create_collection(tenant, database, body) end
    local out = {}
    for _, c in pairs(self.collections) do
      if c.tenant == tenant and c.database == database then out[#out + 1] = describe(c) end
    end
    table.sort(out)
    return ok(list_of(out))
  end
  local name = decode_name(rest:match("^/collections/([^/]+)$"))
  if method == "PUT" then
    local c, b = self.collections[name], json.decode(body)
    if not c then return unknown_id(name) end
    if b.new_name then
      local other = self:by_name(c.tenant, c.database, b.new_name)
      if other and other ~= c then
        return says(500, "InternalError", "error returned from database: (code: 2067) UNIQUE constraint failed: "
          .. "collections.name, collections.database_id")
      end
      if #b.new_name < 3 then return says(400, "InvalidArgumentError", "Expected a name with 3-512 characters") end
      c.name = b.new_name
    end
    if b.new_metadata then c.metadata = json.encode(b.new_metadata) end
    return ok()
  end
  local c = self:by_name(tenant, database, name)
  if not c then return unknown_name(name) end
  if method == "GET" then return ok(describe(c)) end
  self.collections[c.id] = nil
  return ok()
end

-- ---- records ---------------------------------------------------------------------------------------------

local function get(c, body)
  local b = json.decode(body)
  local wanted
  if b.ids then
    wanted = {}
    for _, id in ipairs(b.ids) do wanted[id] = true end
  end
  local with = {}
  for _, name in ipairs(b.include or { "documents", "metadatas" }) do with[name] = true end
  local ids, vectors, docs, metas, uris = {}, {}, {}, {}, {}
  for _, id in ipairs(Records.matching(c, b.where or {})) do
    if (not wanted or wanted[id]) and (not b.limit or #ids < b.limit) then
      local r = c.records[id]
      ids[#ids + 1] = quote(id)
      if with.embeddings and not r.vector then return says(500, "InternalError", "Error finding id") end
      vectors[#ids], docs[#ids] = "[" .. (r.vector or "") .. "]", r.doc and quote(r.doc) or "null"
      uris[#ids] = "null"
      metas[#ids] = next(r.meta) and json.encode(r.meta) or "null"
    end
  end
  local function column(name, list) return with[name] and list_of(list) or "null" end
  return ok('{"ids":' .. list_of(ids) .. ',"embeddings":' .. column("embeddings", vectors) .. ',"documents":'
    .. column("documents", docs) .. ',"uris":' .. column("uris", uris) .. ',"metadatas":' .. column("metadatas", metas)
    .. ',"include":[]}')
end

function Chroma:record_operation(c, action, body, copied)
  if action == "get" then return get(c, body) end
  local flag = not copied and Records.flag(body) or nil -- a copy of what is there is taken
  if flag == Records.BAD or (flag == Records.SKEW and self.skewed) then
    return says(400, "InvalidArgumentError", "Validation error")
  end
  local b = Records.decode(body)
  if action == "delete" and not b.ids then
    return ok('{"deleted":0}')
  end
  if action == "delete" and #b.ids == 0 then return says(400, "InvalidArgumentError", "Expected IDs") end
  if flag == Records.POISON then
    if self.rng:chance(0.5) then Records.apply(c, action, body) end
    return says(500, "InternalError", "poison")
  end
  Records.apply(c, action, body)
  if action == "delete" then return ok('{"deleted":' .. #b.ids .. "}") end
  return ok("{}", action == "add" and 201 or 200)
end

-- ---- requests --------------------------------------------------------------------------------------------

local function split(r)
  r.path = r.target:match("^[^?]*")
  r.collection, r.action = r.path:match("/collections/([^/]+)/(%a+)$")
end

-- Does it, now.
local function execute(self, r)
  r.executed = true
  if self.watch.executed then self.watch.executed(self, r) end
  local f, rng = self.faults, self.rng
  if not r.plain then
    if rng:chance(f.busy) then
      return rng:chance(0.5) and { status = 429, body = "You have been rate limited.", type = "text/plain" }
        or { status = 503, body = "" }
    end
    if rng:chance(f.e500 / 2) or (not r.collection and rng:chance(f.errors / 2)) then
      return says(500, "InternalError", "not done")
    end
  end
  local answer
  if r.collection then
    local c = self.collections[r.collection]
    answer = c and self:record_operation(c, r.action, r.body or "", r.sync or not r.written) or unknown_id(r.collection)
  else
    answer = self:catalogue(r.method, r.path, r.body or "")
  end
  if not r.plain and (rng:chance(f.e500 / 2) or (not r.collection and rng:chance(f.errors / 2))) then
    answer = says(500, "InternalError", "done nevertheless")
  end
  answer.type = answer.type or "application/json"
  return answer
end

local function forget(self, r) self.requests[r.serial] = nil end

local function due(self, r, delay)
  r.at = self.world.t + delay
  r.event = self.world:after(delay, function()
    forget(self, r)
    local answer = execute(self, r)
    self.world:say(self.name, r.closed and "executes late" or "executes", r.method, r.target, r.body or "",
      answer.status)
    if not r.closed then r.ended(answer) end
  end)
end

-- A request has arrived whole. r: {method=, target=, body=, owner=, plain=}; r.ended(answer | nil) is called once when
-- it is over for the sender, with nil when the server closed the connection.
function Chroma:arrive(r)
  split(r)
  self.serial = self.serial + 1
  r.serial, r.server = self.serial, self
  self.requests[r.serial] = r
  if self.watch.arrived then self.watch.arrived(self, r) end
  local delay = 0.001 + self.rng:unit() * 0.006
  local slow = r.slow or (not r.plain and self.rng:chance(self.faults.slow))
  if slow then delay = 0.5 + self.rng:unit() * (Chroma.SLOW_MOST - 0.5) end
  if self.paused then
    r.at = self.world.t + delay
    r.left = delay
  else
    due(self, r, delay)
  end
end

-- The sender closed the connection (or its kernel did, for it).
function Chroma:closed(r)
  if r.executed or r.closed or not self.requests[r.serial] then return end
  r.closed = true
  if self.rng:chance(0.6) then
    if r.event then r.event.off = true end
    return forget(self, r)
  end
  local left = math.min(self.rng:unit() * Chroma.CLOSED_MOST, r.left or r.at - self.world.t)
  if r.event then r.event.off = true end
  if self.paused then r.left = left else due(self, r, left) end
end

-- Nobody waits for the answer any more, but the server does not know: it runs its time.
function Chroma.abandoned(_, r) r.closed = true end

local function in_order(self)
  local list = {}
  for _, r in pairs(self.requests) do list[#list + 1] = r end
  table.sort(list, function(a, b) return a.serial < b.serial end)
  return list
end

function Chroma:pause()
  self.world:say(self.name, "is stopped")
  self.paused = true
  for _, r in ipairs(in_order(self)) do
    if r.event then
      r.event.off, r.event = true, nil
      r.left = math.max(0, r.at - self.world.t)
    end
  end
end

function Chroma:continue()
  self.world:say(self.name, "goes on")
  self.paused = false
  for _, r in ipairs(in_order(self)) do
    local left = r.left
    r.left = nil
    due(self, r, left)
  end
end

-- SIGKILL: of each request nothing, all or a part is done.
function Chroma:kill()
  local rng = self.rng
  self.world:say(self.name, "is killed")
  local list = in_order(self)
  self.requests = {}
  self.up, self.paused = false, false
  self.life = self.life + 1
  for _, r in ipairs(list) do
    if r.event then r.event.off = true end
    local z = rng:unit()
    local c = r.collection and self.collections[r.collection]
    if z < 0.3 then
      execute(self, r)
      self.world:say(self.name, "did", r.target, r.body or "")
    elseif z < 0.65 and c and r.action ~= "get" and not Records.flag(r.body) then
      local part = rng:chance(0.7) and function() return rng:chance(0.6) end or nil
      local torn = rng:chance(0.6) and function() return rng:chance(0.5) end or nil
      local without_filter = Records.decode(r.body).ids
      if without_filter then Records.apply(c, r.action, r.body, part, torn) end
      self.world:say(self.name, "did a part of", r.target, r.body)
    end
    r.executed = true
    if not r.closed then r.ended(nil) end
  end
  for _, fn in ipairs(self.listeners) do fn() end
end

function Chroma:start()
  self.world:say(self.name, "starts")
  self.up = true
  for _, fn in ipairs(self.listeners) do fn() end
end

function Chroma:backup()
  local b = { tenants = {}, databases = {}, collections = {} }
  for k in pairs(self.tenants) do b.tenants[k] = true end
  for k in pairs(self.databases) do b.databases[k] = true end
  for id, c in pairs(self.collections) do b.collections[id] = Records.clone(c) end
  return b
end

function Chroma:restore(b)
  self.tenants, self.databases, self.collections = b.tenants, b.databases, b.collections
end

return Chroma
