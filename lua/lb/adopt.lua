-- adopt.lua: how an instance comes into the journal.
--
-- The first start of a journal takes over what stands on the primary: each of its collections becomes a lane whose
-- logical id is the id it has there. Every other instance joins with nothing done. Of collections that stood before
-- the first entry it has a copy only where a collection of the same tenant, database and name holds the very same
-- records; otherwise that copy is set aside (`unverified`) or missing (`rebuild`), and shown. Nothing is guessed.
local Store = require("lb.store")
local slice = require("chromux.slice")
local json = json

local M = {}

local PAGE, COMPARED_MOST = 500, 50000

local function get(server, target)
  local a, kind, text = server:ask("GET", target, nil, 30)
  if not a then return nil, text or kind end
  if a.status ~= 200 then return nil, target .. " answered " .. a.status end
  return a.body
end

local function database_path(context, tenant, database)
  local base = "/api/v2/tenants/" .. context.encode(tenant) .. "/databases"
  return database and base .. "/" .. context.encode(database) or base
end

-- Collections of one database on a server: {{id=, name=}, ...} | nil, why
local function collections_of(context, server, tenant, database)
  local text, why = get(server, database_path(context, tenant, database) .. "/collections")
  if not text then return nil, why end
  local out = {}
  for _, raw in ipairs(slice.elements(text) or {}) do
    local c = slice.collection(raw)
    if c then out[#out + 1] = c end
  end
  return out
end

-- Takes over the primary's collections. true | nil, why
function M.primary(context, names, server)
  local statements, rows_of = {}, {}
  for tenant in pairs(names.tenants) do
    local text, why = get(server, database_path(context, tenant))
    if not text then return nil, why end
    for _, d in ipairs(json.decode(text) or {}) do
      statements[#statements + 1] = Store.database_new(tenant, d.name)
      rows_of[#rows_of + 1] = { database = { tenant, d.name } }
      local found, reason = collections_of(context, server, tenant, d.name)
      if not found then return nil, reason end
      for _, c in ipairs(found) do
        local row = { id = names.next_lane + #rows_of, logical = c.id, tenant = tenant, database = d.name,
          name = c.name, head = 0, floor = 0 }
        rows_of[#rows_of + 1] = { collection = row }
        statements[#statements + 1] = Store.lane_new(row.id)
        statements[#statements + 1] = Store.collection_new(row.id, row, true)
        statements[#statements + 1] = Store.copy_new(row.id, server.name, c.id, 0)
      end
    end
  end
  statements[#statements + 1] = Store.copy_new(0, server.name, "", 0)
  local done, why = context.store:commit(statements)
  if not done then return nil, why end
  local count = 0
  for _, r in ipairs(rows_of) do
    if r.database then
      names:database_set(r.database[1], r.database[2], true)
    else
      local lane = names:collection_add(r.collection)
      lane.adopted = true
      names:copy_of(lane, { instance = server.name, server = server, physical = r.collection.logical })
      count = count + 1
    end
  end
  names:member_add { instance = server.name, server = server }
  log.info("adopted", count .. " collections of " .. server.name)
  return true
end

-- ---- equal or not ----------------------------------------------------------------------------------------

local function post(server, target, body)
  local a, kind, text = server:ask("POST", target, body, 60)
  if not a then return nil, text or kind end
  if a.status ~= 200 then return nil, "answered " .. a.status end
  return a.body
end

-- id -> canonical record, of all records of a collection. nil, why
local function records_of(server, target)
  local out, offset = {}, 0
  while true do
    local text, why = post(server, target .. "/get", string.format(
      '{"limit":%d,"offset":%d,"include":["documents","metadatas","embeddings","uris"]}', PAGE, offset))
    if not text then return nil, why end
    local m = slice.members(text)
    if not m then return nil, "not an answer to get" end
    local columns, ids = {}, slice.elements(m.ids or "[]") or {}
    for _, name in ipairs { "embeddings", "documents", "metadatas", "uris" } do
      columns[#columns + 1] = m[name] and m[name] ~= "null" and slice.elements(m[name]) or false
    end
    for i, id in ipairs(ids) do
      local parts = {}
      for c, column in ipairs(columns) do parts[c] = column and slice.canonical(column[i]) or "null" end
      out[id] = table.concat(parts, "\0")
    end
    if #ids < PAGE then return out end
    offset = offset + PAGE
    if offset > COMPARED_MOST then return nil, "too many records to compare at a start" end
  end
end

-- Do both hold the same records? Nothing may be written meanwhile. true | false, why
local function same(context, lane, a, a_id, b, b_id)
  local base = database_path(context, lane.tenant, lane.database) .. "/collections/"
  local left, why = records_of(a, base .. a_id)
  if not left then return false, why end
  local right
  right, why = records_of(b, base .. b_id)
  if not right then return false, why end
  for id, record in pairs(left) do
    if right[id] ~= record then return false, "differs at " .. id end
  end
  for id in pairs(right) do
    if left[id] == nil then return false, "has " .. id .. " more" end
  end
  return true
end

-- ---- joining ---------------------------------------------------------------------------------------------

local function join(context, names, server, compare)
  local statements, made = { Store.copy_new(0, server.name, "", 0) }, {}
  for _, lane in ipairs(names:each_in()) do
    if lane.adopted then
      local c = { instance = server.name, server = server, physical = "", state = "rebuild",
        reason = "it had no collection of this name when it joined" }
      local a, kind = server:ask("GET", database_path(context, lane.tenant, lane.database) .. "/collections/"
        .. context.encode(lane.name))
      if not a then return nil, kind end
      local found = a.status == 200 and slice.collection(a.body)
      local first = lane.order[1]
      if found then
        c.physical, c.state, c.reason = found.id, "unverified", "not compared: it joined while writes went on"
        if compare and lane.head == 0 and first and first.state == "ready" then
          local equal, why = same(context, lane, first.server, first.physical, server, found.id)
          c.state = equal and "ready" or "unverified"
          c.reason = equal and "" or why
        end
      end
      statements[#statements + 1] = Store.copy_new(lane.id, server.name, c.physical, 0, c.state, c.reason)
      made[#made + 1] = { lane, c }
    end
  end
  local rows, why = context.store:commit(statements)
  if not rows then return nil, why end
  for _, m in ipairs(made) do
    names:copy_of(m[1], m[2])
    if m[2].state ~= "ready" then
      log.warn("copy_set_aside", m[1].name .. " on " .. server.name .. ": " .. m[2].state .. ": " .. m[2].reason)
    end
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
