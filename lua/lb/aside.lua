-- aside.lua: collections on the instances that the journal does not know: shown, never touched (PROTOCOL.md R10), but
-- for those that have names of chromux's own and that chromux has made, as PostgreSQL says: these are left over, and
-- deleted.
--
-- Somebody made them past chromux, or they were there when the instance joined, or an old backup brought them. Looked
-- for every SYNC_INTERVAL. An operator may have one deleted (`chromux sync discard`).
local Hold = require("lb.hold")
local deeds = require("lb.deeds")
local json = json
local slice = require("chromux.slice")
local words = require("lb.words")

local Aside = {}
Aside.__index = Aside

local LISTED = 50
local PATIENCE = 5 -- seconds for the catalogue to be at rest on an instance

function Aside.new(context, names)
  return setmetatable({ context = context, names = names, list = {}, count = 0, by_instance = {}, seen = {} }, Aside)
end

function Aside:of(instance) return self.by_instance[instance] or 0 end

-- Those on one server: {{instance=, tenant=, database=, name=, id=}, ...} | nil when it can't be asked now, or has
-- things to do in the catalogue.
local function unknown_on(self, server)
  local names, encode = self.names, self.context.encode
  local member = names.copies[server.name]
  if not member or member.p < names.head or not server:usable() then return nil end
  local known, out = names.physical[server.name] or {}, {}
  for key in pairs(names.databases) do
    local tenant, database = key:match("^(.-)%z(.*)$")
    local a = server:ask("GET", "/api/v2/tenants/" .. encode(tenant) .. "/databases/" .. encode(database)
      .. "/collections", nil, 30)
    if not a or (a.status ~= 200 and a.status ~= 404) then return nil end
    for _, raw in ipairs(a.status == 200 and slice.elements(a.body) or {}) do
      local c = slice.collection(raw)
      if c and not known[c.id] and not self.context.rebuilds:knows(server.name, c.name) then
        out[#out + 1] = { instance = server.name, tenant = tenant, database = database, name = c.name, id = c.id,
          own = words.own(tostring(c.name)) }
      end
    end
  end
  if member.p < names.head then return nil end
  return out
end

local function base_of(self, c) return self.names:path(c.tenant, c.database, "/collections") end

-- How many records it holds; nil: it does not say.
local function records_of(self, c)
  local server = self.context.servers.by_name[c.instance]
  local a = server and server:usable() and server:ask("GET", base_of(self, c) .. "/" .. c.id .. "/count")
  return a and a.status == 200 and tonumber(a.body) or nil
end

-- One round over all servers. A collection counts when it was there in the round before too: one that is just being
-- made is known by then.
function Aside:look()
  local list, count, by_instance, seen, silent = {}, 0, {}, {}, {}
  for _, server in ipairs(self.context.servers.list) do
    local found = unknown_on(self, server)
    if not found then
      found = {}
      for _, c in pairs(self.seen) do
        if c.instance == server.name then found[#found + 1] = c end
      end
    end
    for _, c in ipairs(found) do
      local key = server.name .. "\0" .. c.id
      local before = self.seen[key]
      seen[key] = before or c
      if before and not (before.own and self.context.rebuilds:sweep(before)) then
        count = count + 1
        by_instance[server.name] = (by_instance[server.name] or 0) + 1
        if not before.told then
          before.told, before.since = true, now()
          log.warn("collection_aside", c.name .. " (" .. c.id .. ") on " .. server.name .. " is unknown to the journal")
        end
        if #list < LISTED then
          list[#list + 1] = { instance = c.instance, tenant = c.tenant, database = c.database, name = c.name, id = c.id,
            since = before.since, records = not silent[server] and records_of(self, c) or nil }
          silent[server] = list[#list].records == nil -- so is asked no more in this round
        end
      end
    end
  end
  self.list, self.count, self.by_instance, self.seen = list, count, by_instance, seen
end

-- The collection gets this name of ours, if nothing is to be done in the catalogue there. A word of deeds.lua | nil
local function entomb(self, c, server, member, tomb)
  if member.p < self.names.head or (self.names.physical[c.instance] or {})[c.id]
    or self.context.rebuilds:knows(c.instance, c.name) then
    return nil
  end
  local kind, answer = deeds.send(self.context, server, "PUT", base_of(self, c) .. "/" .. c.id,
    json.encode { new_name = tomb }, c.id)
  if kind == "unknown" then server:settle(server:horizon_after(answer)) end -- it may yet be executed
  return kind
end

-- Deletes one for good. a: {instance=, id=, by= who asks}. It gets a name of ours first, while nothing is done in the
-- catalogue there: what has the name when it is deleted is this one, and no copy. true | nil, why
function Aside:discard(a)
  local key = a.instance .. "\0" .. tostring(a.id)
  local c, server = self.seen[key], self.context.servers.by_name[a.instance]
  local member = self.names.copies[a.instance]
  if not c or not c.told or not server or not member then
    return nil, "there is no such collection on " .. a.instance .. ", or it has not been found yet"
  end
  local hold, why = Hold.take(self.names, member, PATIENCE)
  if not hold then return nil, a.instance .. ": " .. why end
  local tomb = "chromux-tomb-0-" .. c.id:sub(1, 8)
  local ok, kind = pcall(entomb, self, c, server, member, tomb)
  hold:release()
  if not ok then error(kind, 0) end
  if not kind then return nil, a.instance .. " has things to do in the catalogue; try again" end
  if kind ~= "applied" and kind ~= "lost" then return nil, a.instance .. " does not give it another name: " .. kind end
  if kind == "applied" then
    local answer
    kind, answer = deeds.send(self.context, server, "DELETE", base_of(self, c) .. "/" .. tomb)
    if kind ~= "applied" and not (type(answer) == "table" and answer.status == 404) then
      return nil, a.instance .. " does not delete it: " .. kind .. "; it is " .. tomb .. " there now"
    end
  end
  log.warn("collection_discarded", string.format("%s (%s) on %s is deleted; %s asked for it", c.name, c.id, a.instance,
    tostring(a.by)))
  self.seen[key] = nil
  for i, item in ipairs(self.list) do
    if item.instance == a.instance and item.id == c.id then
      table.remove(self.list, i)
      self.count, self.by_instance[a.instance] = self.count - 1, self.by_instance[a.instance] - 1
      break
    end
  end
  return true
end

function Aside:run()
  while not self.context.dead do
    sleep(math.min(10, self.context.settings.SYNC_INTERVAL)) -- the first look is soon, and so is the second
    if not self.context.dead then self:look() end
    if next(self.seen) == nil or self.count > 0 then
      local till = now() + self.context.settings.SYNC_INTERVAL
      while not self.context.dead and now() < till do sleep(math.min(1, self.context.settings.SYNC_INTERVAL)) end
    end
  end
end

return Aside
