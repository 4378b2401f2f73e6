-- adopt.lua: how an instance comes into the journal, and what stands on it already.
--
-- The first start of a journal takes over what stands on the primary: each of its collections becomes a lane whose
-- logical id is the id it has there. Chroma lists no tenants: the default one and those of ADOPT_TENANTS are looked
-- into. The latter are looked into again at each start, and when that setting changes: so an operator has taken over
-- what was found later.
--
-- Every other instance joins with nothing done. Of collections that stood before they were taken over it has a copy
-- only where a collection of the same tenant, database and name holds the very same records; otherwise that copy is
-- set aside (`unverified`) or missing (`rebuild`), and shown. Nothing is guessed.
local Store = require("lb.store")
local records = require("chromux.records")
local slice = require("chromux.slice")
local words = require("lb.words")
local json = json

local M = {}

local PAGE, COMPARED_MOST = 500, 50000
local AGAIN = 1 -- seconds until it is tried again

-- ---- what stands on a server -------------------------------------------------------------------------------

local function get(server, target)
  local a, kind, text = server:ask("GET", target, nil, 30)
  if not a then return nil, text or kind end
  if a.status ~= 200 then return nil, target .. " answered " .. a.status end
  return a.body
end

-- Neither taken over nor touched.
local function set_aside(context, server, what, name)
  local text = string.format("the %s %s of %s: %s", what, slice.quote(name):sub(1, 100), server.name, words.KEPT)
  log.warn("not_adopted", text)
  context.events:note("not_adopted", server.name, nil, text, false)
end

-- Collections of one database that are not known: their rows are added to `out`. true | nil, why
local function look_into(context, names, server, tenant, database, out)
  local text, why = get(server, names:path(tenant, database, "/collections"))
  if not text then return nil, why end
  local mine = names.physical[server.name] or {}
  for _, raw in ipairs(slice.elements(text) or {}) do
    local c = slice.collection(raw)
    local known = not c or mine[c.id] or names:find(tenant, database, c.name) or c.name:find("^chromux%-")
    if not known and not words.can_be_kept(c.name) then
      set_aside(context, server, "collection", c.name)
    elseif not known then
      out[#out + 1] = { logical = c.id, tenant = tenant, database = database, name = c.name, head = 0, floor = 0 }
    end
  end
  return true
end

-- What stands on the server in these tenants and is not known: {tenants = {name, ...}, databases = {{tenant, name},
-- ...}, collections = {row, ...}} | nil, why
local function standing(context, names, server, tenants)
  local out = { tenants = {}, databases = {}, collections = {} }
  for tenant in pairs(tenants) do
    local a, kind, text = server:ask("GET", names:path(tenant), nil, 30)
    if not a or (a.status ~= 200 and a.status ~= 404) then return nil, text or kind or "answered " .. a.status end
    if a.status == 404 then
      log.warn("not_adopted", "there is no tenant " .. tenant .. " on " .. server.name)
    else
      if not names.tenants[tenant] then out.tenants[#out.tenants + 1] = tenant end
      local list, why = get(server, names:path(tenant, nil, "/databases"))
      if not list then return nil, why end
      for _, d in ipairs(json.decode(list) or {}) do
        local fine = true
        if not words.can_be_kept(d.name) then
          set_aside(context, server, "database", d.name)
        else
          if not names:has_database(tenant, d.name) then out.databases[#out.databases + 1] = { tenant, d.name } end
          fine, why = look_into(context, names, server, tenant, d.name, out.collections)
        end
        if not fine then return nil, why end
      end
    end
  end
  return out
end

-- The tenants of the setting, as a set.
local function named(settings)
  local out = {}
  for name in (settings.ADOPT_TENANTS or ""):gmatch("[^,]+") do
    name = name:match("^%s*(.-)%s*$")
    if name ~= "" and name ~= "chromux" then out[name] = true end
  end
  return out
end

-- ---- equal or not ----------------------------------------------------------------------------------------

local function post(server, target, body)
  local a, kind, text = server:ask("POST", target, body, 60)
  if not a then return nil, text or kind end
  if a.status ~= 200 then return nil, "answered " .. a.status end
  return a.body
end

-- id -> hash, of all records of a collection. nil, why
local function hashes_of(server, target)
  local out, offset = {}, 0
  while true do
    local text, why = post(server, target .. "/get", string.format(
      '{"limit":%d,"offset":%d,"include":["documents","metadatas","embeddings","uris"]}', PAGE, offset))
    if not text then return nil, why end
    local page
    page, why = records.hash(text)
    if not page then return nil, why end
    local count = 0
    for id, hash in pairs(page) do
      out[id], count = hash, count + 1
    end
    if count < PAGE then return out end
    offset = offset + PAGE
    if offset > COMPARED_MOST then return nil, "too many records to compare at a start" end
  end
end

-- Do both hold the same records? Nothing may be written meanwhile. true | false, why
local function same(names, c, a, a_id, b, b_id)
  local left, why = hashes_of(a, names:path(c.tenant, c.database, "/collections/" .. a_id))
  if not left then return false, why end
  local right
  right, why = hashes_of(b, names:path(c.tenant, c.database, "/collections/" .. b_id))
  if not right then return false, why end
  for id, hash in pairs(left) do
    if right[id] ~= hash then return false, "differs at " .. id end
  end
  for id in pairs(right) do
    if left[id] == nil then return false, "has " .. id .. " more" end
  end
  return true
end

-- The server's part in a collection that was taken over from another: a copy, as names:copy_of takes it. from: {server,
-- physical} to compare with, nil: that can't be done any more. nil, why
local function part_in(names, c, server, from)
  local a, kind = server:ask("GET", names:path(c.tenant, c.database, "/collections/"
    .. names.context.encode(c.name)))
  if not a then return nil, kind end
  local part = { instance = server.name, server = server, physical = "", state = "rebuild",
    reason = "it had no collection of this name when it joined" }
  local found = a.status == 200 and slice.collection(a.body)
  if not found then return part end
  part.physical, part.state, part.reason = found.id, "unverified", "not compared: it joined while writes went on"
  if from then
    local equal, why = same(names, c, from[1], from[2], server, found.id)
    part.state, part.reason = equal and "ready" or "unverified", equal and "" or why
  end
  return part
end

local function tell(lane, part)
  if part.state == "ready" then return end
  log.warn("copy_set_aside", lane.name .. " on " .. part.instance .. ": " .. part.state .. ": " .. part.reason)
end

-- ---- taking over -----------------------------------------------------------------------------------------

-- Makes lanes of what was found on a server, in one transaction. parts: for each collection those of other instances;
-- more: statements that go with it. true | nil, why
local function take_over(context, names, server, found, parts, more)
  local statements = more
  local function add(s) statements[#statements + 1] = s end
  for _, tenant in ipairs(found.tenants) do add(Store.tenant_new(tenant)) end
  for _, d in ipairs(found.databases) do add(Store.database_new(d[1], d[2])) end
  for i, row in ipairs(found.collections) do
    row.id, names.next_lane = names.next_lane, names.next_lane + 1
    add(Store.lane_new(row.id))
    add(Store.collection_new(row.id, row, true))
    add(Store.copy_new(row.id, server.name, row.logical, 0))
    for _, part in ipairs(parts[i] or {}) do
      add(Store.copy_new(row.id, part.instance, part.physical, 0, part.state, part.reason))
    end
  end
  local done, why = context.store:commit(statements)
  if not done then return nil, why end
  for _, tenant in ipairs(found.tenants) do names.tenants[tenant] = true end
  for _, d in ipairs(found.databases) do names:database_set(d[1], d[2], true) end
  for i, row in ipairs(found.collections) do
    local lane = names:collection_add(row)
    lane.adopted = true
    names:copy_of(lane, { instance = server.name, server = server, physical = row.logical })
    for _, part in ipairs(parts[i] or {}) do
      names:copy_of(lane, part)
      tell(lane, part)
    end
  end
  log.info("adopted", #found.collections .. " collections of " .. server.name)
  return true
end

-- The first start: the primary's collections. true | nil, why
function M.primary(context, names, server)
  local tenants = named(context.settings)
  for tenant in pairs(names.tenants) do tenants[tenant] = true end
  local found, why = standing(context, names, server, tenants)
  if not found then return nil, why end
  local done
  done, why = take_over(context, names, server, found, {}, { Store.copy_new(0, server.name, "", 0) })
  if not done then return nil, why end
  names:member_add { instance = server.name, server = server }
  return true
end

-- The server gets the databases, without which it can't follow. true | nil, why
local function make_databases(names, server, databases)
  local made = {}
  local function make(target, name)
    local a, kind = server:ask("POST", target, json.encode { name = name }, nil, true)
    if not a then return nil, kind end
    return a.status == 200 or a.status == 409 or nil, target .. " answered " .. a.status
  end
  for _, d in ipairs(databases) do
    if not made[d[1]] then
      local fine, why = make(names:path(), d[1])
      if not fine then return nil, why end
      made[d[1]] = true
    end
    local fine, why = make(names:path(d[1], nil, "/databases"), d[2])
    if not fine then return nil, why end
  end
  return true
end

-- Nothing is under way in the catalogue, and every member has done all of it: what stands on one and is not known was
-- made by others. true | nil, why
local function quiet(names)
  if names.floor < names.head then return nil, "waiting for the catalogue to be at rest" end
  for _, copy in ipairs(names.order) do
    if not copy.server.retired and copy.state == "ready" and (copy.p < names.head or not copy.server:usable()) then
      return nil, "waiting for " .. copy.instance
    end
  end
  return true
end

-- What stands in the tenants of ADOPT_TENANTS and is not known. true | nil, why not now
local function take_over_named(context, names)
  local primary
  for _, copy in ipairs(names.order) do
    if copy.server.role == "primary" and copy.state == "ready" and copy.server:usable() then primary = copy.server end
  end
  if not primary then return nil, "waiting for the primary" end
  local fine, why = quiet(names)
  if not fine then return nil, why end
  local head, found = names.head
  found, why = standing(context, names, primary, named(context.settings))
  if not found then return nil, why end
  if #found.databases == 0 and #found.collections == 0 then return true end
  local parts = {}
  for i in ipairs(found.collections) do parts[i] = {} end
  for _, copy in ipairs(names.order) do
    local server = copy.server
    if server ~= primary and copy.state == "ready" and not server.retired then
      fine, why = make_databases(names, server, found.databases)
      if not fine then return nil, why end
      for i, c in ipairs(found.collections) do
        local part
        part, why = part_in(names, c, server, { primary, c.logical })
        if not part then return nil, why end
        parts[i][#parts[i] + 1] = part
      end
    end
  end
  fine, why = quiet(names)
  if not fine or names.head ~= head then return nil, why or "the catalogue changed meanwhile" end
  return take_over(context, names, primary, found, parts, {})
end

-- For as long as the stay lasts: once, and again whenever the setting is another one.
function M.watch(context, names)
  local done, told = "", ""
  while not context.dead do
    local wanted = context.settings.ADOPT_TENANTS or ""
    if wanted ~= done then
      local fine, why = take_over_named(context, names)
      if fine then
        done, told = wanted, ""
      elseif why ~= told then
        told = why
        log.warn("not_adopted_yet", tostring(why))
      end
    end
    sleep(AGAIN)
  end
end

-- ---- joining ---------------------------------------------------------------------------------------------

local function join(context, names, server, compare)
  local databases = {}
  for key in pairs(names.databases) do
    local tenant, name = key:match("^(.-)%z(.*)$")
    if not (tenant == "default_tenant" and name == "default_database") then
      databases[#databases + 1] = { tenant, name }
    end
  end
  local fine, why = make_databases(names, server, databases)
  if not fine then return nil, why end
  local statements, made = { Store.copy_new(0, server.name, "", 0) }, {}
  for _, lane in ipairs(names:each_in()) do
    if lane.adopted then
      local first = lane.order[1]
      local from = compare and lane.head == 0 and first and first.state == "ready" and { first.server, first.physical }
      local part
      part, why = part_in(names, lane, server, from)
      if not part then return nil, why end
      statements[#statements + 1] = Store.copy_new(lane.id, server.name, part.physical, 0, part.state, part.reason)
      made[#made + 1] = { lane, part }
    end
  end
  local rows
  rows, why = context.store:commit(statements)
  if not rows then return nil, why end
  for _, m in ipairs(made) do
    names:copy_of(m[1], m[2])
    tell(m[1], m[2])
  end
  names:member_add { instance = server.name, server = server }
  log.info("instance_joined", server.name)
  return true
end

-- Makes the server a member, once. compare: nothing is written yet, so collections that stood before may be compared.
-- true | nil, why
function M.join(context, names, server, compare)
  if names.copies[server.name] or server.retired then return true end
  if names.joining[server.name] then return nil, "it is joining" end
  names.joining[server.name] = true
  local ok, why = join(context, names, server, compare)
  names.joining[server.name] = nil
  return ok, why
end

return M
