-- member.lua: an instance whose catalogue is lost comes back into it: a server that lost its disk, or was given an old
-- backup. Its tenants and databases are made again, and its part in lane 0 goes on from where the catalogue is now.
--
-- Collections are not made here: what it is to have and has not is a copy to be made anew (rebuild.lua). Of what it has
-- brought along, collections that the journal knows to be deleted are deleted, and those that chromux has made for a
-- while (Rebuilds:ours); those that are a copy's old self stay until that is made anew; and what nobody knows keeps all
-- that is in it. These get names that are in nobody's way.
--
--   Member.renew(context, names, instance, until_) -> true | nil, why
local Store = require("lb.store")
local deeds = require("lb.deeds")
local words = require("lb.words")
local slice = require("chromux.slice")
local json = json

local M = {}

local PATIENCE = 5 -- seconds for the server to be admitted

local function ok(a) return a ~= nil and a.status >= 200 and a.status < 300 end

-- Makes it if it is missing. true | nil, why
local function ensure(self, server, there, target, name)
  local a, kind = server:ask("GET", there)
  if not a then return nil, kind end
  if ok(a) then return true end
  local answer
  kind, answer = deeds.send(self.context, server, "POST", target, json.encode { name = name })
  if kind == "applied" or (type(answer) == "table" and answer.status == 409) then return true end
  return nil, target .. ": " .. kind
end

-- Tenants and databases, as they are now. true | nil, why
local function make_all(self, server)
  for tenant in pairs(self.tenants) do
    local fine, why = ensure(self, server, self:path(tenant), self:path(), tenant)
    if not fine then return nil, why end
  end
  for key in pairs(self.databases) do
    local tenant, name = key:match("^(.-)%z(.*)$")
    local fine, why = ensure(self, server, self:path(tenant, name), self:path(tenant, nil, "/databases"), name)
    if not fine then return nil, why end
  end
  return true
end

-- Collections of deleted lanes that this instance had: {[id] = lane}. nil, why
local function deleted_ones(self, instance)
  local rows, why = self.context.store.reader:query([[SELECT c.lane, c.physical FROM journal_copies c
      JOIN journal_lanes l ON l.lane = c.lane WHERE c.instance = $1 AND c.physical <> '' AND NOT l.open]], instance)
  if not rows then return nil, why end
  local out = {}
  for _, row in ipairs(rows) do out[row.physical] = row.lane end
  return out
end

local function rename(self, server, base, id, name)
  local kind, answer = deeds.send(self.context, server, "PUT", base .. "/" .. id, json.encode { new_name = name }, id)
  if kind == "applied" or kind == "lost" then return true end
  return nil, "a collection can't be renamed to " .. name .. ": " .. kind
    .. (type(answer) == "table" and " " .. answer.body:sub(1, 200) or "")
end

local function delete(self, server, base, id, lane)
  local tomb = "chromux-tomb-" .. lane .. "-" .. id:sub(1, 8)
  local fine, why = rename(self, server, base, id, tomb)
  if not fine then return nil, why end
  local kind, answer = deeds.send(self.context, server, "DELETE", base .. "/" .. tomb)
  if kind == "applied" or (type(answer) == "table" and answer.status == 404) then return true end
  return nil, "a deleted collection can't be deleted: " .. kind
end

-- What it has brought along, in one database. true | nil, why
local function sort_out(self, server, base, dead)
  local a, kind = server:ask("GET", base, nil, 30)
  if not a then return nil, kind end
  if a.status == 404 then return true end
  if not ok(a) then return nil, "answered " .. a.status end
  local mine = self.physical[server.name] or {}
  for _, raw in ipairs(slice.elements(a.body) or {}) do
    local c = slice.collection(raw)
    local name = c and tostring(c.name)
    local fine, why, ours = true, nil, false
    if c and words.own(name) and not dead[c.id] and not mine[c.id] then
      ours, why = self.context.rebuilds:ours(server.name, name, c.id)
      if ours == nil then return nil, why end
    end
    if c and dead[c.id] then
      fine, why = delete(self, server, base, c.id, dead[c.id])
    elseif c and mine[c.id] then
      fine, why = rename(self, server, base, c.id, "chromux-old-" .. mine[c.id].id .. "-" .. c.id:sub(1, 8))
    elseif c and ours then
      fine, why = delete(self, server, base, c.id, 0)
    elseif c and not name:find("%-aside%-%x+$") then
      fine, why = rename(self, server, base, c.id, name:sub(1, 400) .. "-aside-" .. c.id:sub(1, 8))
      log.warn("collection_moved_aside", name .. " (" .. c.id .. ") on " .. server.name)
    end
    if not fine then return nil, why end
  end
  return true
end

-- In one transaction: the instance is where the catalogue is, and has a copy of each collection, to be made anew.
local function record(self, member)
  local floor, statements = self.floor, {}
  statements[1] = { [[UPDATE journal_copies SET state = 'ready', reason = '', position = $3, doubt = 0,
      incarnation = incarnation + 1, changed_at = now() WHERE lane = 0 AND instance = $1 AND incarnation = $2
      AND state = 'rebuild']], member.instance, member.incarnation, floor, lane = 0 }
  local missing = {}
  for _, lane in ipairs(self:each_in()) do
    if not lane.copies[member.instance] then
      local c = { instance = member.instance, server = member.server, physical = "", state = "rebuild",
        reason = "the server lost what it had" }
      missing[#missing + 1] = { lane, c }
      statements[#statements + 1] = Store.copy_new(lane.id, c.instance, "", 0, c.state, c.reason)
    end
  end
  local rows, why = self.context.store:commit(statements, nil, function()
    for _, m in ipairs(missing) do
      if m[1].open and not m[1].copies[member.instance] then self:copy_of(m[1], m[2]) end
    end
    member.incarnation, member.state, member.reason, member.changed = member.incarnation + 1, "ready", "", now()
    member.p, member.doubt, member.settled, member.attempted, member.tried = floor, 0, true, {}, 0
  end)
  self:kick()
  return rows ~= nil, why
end

local function living(server, life) return server.admitted == life and server.incarnation == life end

function M.renew(context, names, instance, until_)
  local member = names.copies[instance]
  if not member then return nil, instance .. " has not joined" end
  if member.state == "ready" then return true end
  local server = member.server
  -- It is marked lost a moment before it is admitted.
  local till = math.min(until_, now() + PATIENCE)
  while not server:usable() and now() < till and not context.dead do sleep(0.05) end
  if not server:usable() then return nil, instance .. " can't be used now" end
  local life = server.admitted
  local dead, why = deleted_ones(names, instance)
  if not dead then return nil, why end
  while now() < until_ and not context.dead do
    local floor = names.floor
    local fine
    fine, why = make_all(names, server)
    for key in pairs(names.databases) do
      local tenant, name = key:match("^(.-)%z(.*)$")
      if fine then fine, why = sort_out(names, server, names:path(tenant, name, "/collections"), dead) end
    end
    if not fine then return nil, why end
    if not living(server, life) then return nil, instance .. " began a new life" end
    local stamped, fresh = server:stamp_after_now() -- before anything on it is good again (Store.copies_lost)
    -- What was decided meanwhile may want another database.
    if names.floor == floor and stamped and fresh and living(server, life) then
      fine, why = record(names, member)
      if not fine then return nil, why end
      log.info("member_renewed", instance .. " at 0/" .. floor)
      context.events:note("member_renewed", instance, nil, "its catalogue is made again")
      return true
    end
  end
  return nil, why or "the catalogue changes all the time"
end

return M
