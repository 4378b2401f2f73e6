-- catalogue.lua: reads of the catalogue: an instance that has done all that was answered is asked, and its ids and
-- names are put right.
--
--   describe(names, lane, until_)   the collection as its clients know it: answer, instance | nil, why
--   existing(names, lane, body, until_)   the same for one who would have made it otherwise
--   read(names, req)                answers a request that reads (core/journal.h): answer, instance | nil, why
local slice = require("chromux.slice")
local words = require("lb.words")

local M = {}

local function has(lane, instance)
  local c = lane.copies[instance]
  return c ~= nil and c.state == "ready" and c.physical ~= ""
end

-- Instances that have done every catalogue operation that was answered, the least behind in `lane` first; lanes: those
-- that are to be listed, the instance that lacks the fewest of them first.
local function readers(self, lane, lanes)
  local out = {}
  for _, server in ipairs(self.context.servers.list) do
    local copy = self.copies[server.name]
    if copy and copy.state == "ready" and copy.doubt == 0 and copy.p >= self.floor and server:usable() then
      if not lane or has(lane, server.name) then
        local r = { copy = copy, p = lane and lane.copies[server.name].p or 0, well = server.health == "up", lacks = 0 }
        for _, listed in ipairs(lanes or {}) do
          if not has(listed, server.name) then r.lacks = r.lacks + 1 end
        end
        out[#out + 1] = r
      end
    end
  end
  for i, r in ipairs(out) do r.i = i end
  table.sort(out, function(a, b)
    if a.lacks ~= b.lacks then return a.lacks < b.lacks end
    if a.well ~= b.well then return a.well end
    if a.p ~= b.p then return a.p > b.p end
    return a.i < b.i
  end)
  return out
end

-- One of them answers the GET, or, with a body, the POST. Where none can yet, as after a start or while one catches up,
-- that is waited for as long as a try may take. o: {lane=, lanes=: as in readers(), fit(answer, instance) -> may it be
-- taken?, body=}. answer, instance | nil, why
local function ask_one(self, target, until_, o)
  local why = "no instance has the whole catalogue"
  local settings = self.context.settings
  local patience = math.min(until_, now() + settings.TRY_TIMEOUT)
  while true do
    for _, r in ipairs(readers(self, o.lane, o.lanes)) do
      local left = until_ - now()
      if left <= 0 then return nil, why end
      local a, kind, text = r.copy.server:ask(o.body and "POST" or "GET", target, o.body,
        math.min(left, settings.TRY_TIMEOUT))
      local fine = a and a.status < 500
      if fine and (not o.fit or o.fit(a, r.copy.instance)) then return a, r.copy.instance end
      why = r.copy.instance .. (fine and " has another collection of that name"
        or ": " .. (a and "answered " .. a.status or text or kind))
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
function M.describe(self, lane, until_)
  local text
  -- A collection that was made anew has its name a moment later than its records: another one has it, or none.
  local function fit(a, instance)
    text = a.body
    if a.status ~= 200 then return a.status ~= 404 or not lane.open or lane.leaving end
    local own, of = rewritten(self, instance, a.body)
    text = own
    return of == lane
  end
  local a, instance = ask_one(self, self:path(lane.tenant, lane.database, "/collections/"
    .. self.context.encode(lane.name)), until_, { lane = lane, fit = fit })
  if not a then return nil, instance end
  a.body = text
  return a, instance
end

-- Chroma checks the body before it looks for the name, or for the database: in one that does not exist anywhere the
-- body can make nothing. (Measured, 1.0.20 and 1.5.9.)
local NOWHERE = "nowhere"

-- What a create of a collection that is there is answered, which it is wanted to be then: it, or what is wrong with the
-- body. answer, instance | nil, why
function M.existing(self, lane, body, until_)
  local members, plain = slice.members(body), true
  for name, raw in pairs(members or {}) do
    plain = plain and (name == "name" or name == "get_or_create" or raw == "null")
  end
  if not members or not plain then
    local a, instance = ask_one(self, self:path("chromux", NOWHERE, "/collections"), until_, { body = body })
    if not a or not a.body:find("[" .. NOWHERE .. "]", 1, true) then return a, instance end
  end
  return M.describe(self, lane, until_)
end

local function decoded(text) return (text:gsub("%%(%x%x)", function(x) return string.char(tonumber(x, 16)) end)) end

local function page(query, name)
  for part in query:gmatch("[^&]+") do
    local key_, value = part:match("^([^=]*)=(.*)$")
    if key_ and decoded(key_) == name then return tonumber(decoded(value)) end
  end
end

local function has_any(lane)
  for _, copy in ipairs(lane.order) do
    if has(lane, copy.instance) then return true end
  end
  return false
end

-- What one instance lists, and what it has not because it is yet to be made anew there, from another.
local function list(self, req)
  local lanes = self:each_in(req.tenant, req.database)
  local target = self:path(req.tenant, req.database, "/collections")
  local a, instance = ask_one(self, target, req.deadline, { lanes = lanes })
  if not a then return nil, instance end
  if a.status ~= 200 then return a, instance end
  local all, listed = {}, {}
  for _, raw in ipairs(slice.elements(a.body) or {}) do
    local text, lane = rewritten(self, instance, raw)
    if text and (has(lane, instance) or not has_any(lane)) then
      all[#all + 1], listed[lane] = { lane.logical, text }, true
    end
  end
  for _, lane in ipairs(lanes) do
    if lane.open and not listed[lane] and has_any(lane) then
      local one, why = M.describe(self, lane, req.deadline)
      if not one then return nil, why end
      if one.status == 200 then all[#all + 1] = { lane.logical, one.body } end
    end
  end
  table.sort(all, function(x, y) return x[1] < y[1] end)
  local offset, limit = page(req.query, "offset") or 0, page(req.query, "limit") or #all
  local out = {}
  for i = offset + 1, math.min(#all, offset + limit) do out[#out + 1] = all[i][2] end
  a.body = "[" .. table.concat(out, ",") .. "]"
  return a, instance
end

-- Answers a catalogue read: answer, instance | nil, why
function M.read(self, req)
  if req.action == "get_collection" then
    local lane = self:lane_named(req)
    if not lane then
      return req.by_name and words.no_collection_of_name(req.collection) or words.no_collection_of_id(req.collection)
    end
    return M.describe(self, lane, req.deadline)
  elseif req.action == "list_collections" then
    -- What Chroma refuses in the query it refuses itself; its list would have its own ids.
    local other = (req.query .. "&"):gsub("limit=%d%d?%d?%d?%d?%d?&", ""):gsub("offset=%d%d?%d?%d?%d?%d?&", "")
    if other:find("[^&]") then
      local a, instance = ask_one(self, req.target, req.deadline, {})
      if not a or a.status ~= 200 then return a, instance end
    end
    return list(self, req)
  elseif req.action == "count_collections" then
    return { status = 200, type = "application/json", body = tostring(#self:each_in(req.tenant, req.database)) }
  end
  return ask_one(self, req.target, req.deadline, {})
end

return M
