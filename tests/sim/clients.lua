-- clients.lua: clients that write, read and change the catalogue, and remember what they were told.
local Records = require("records")
local World = require("world")
local json = require("lb.runtime").json

local M = {}

local NAMES = { "red", "blue", "green", "xy" } -- the last one is too short for Chroma
local DATABASES = { "default_database", "default_database", "default_database", "other" }

-- ---- what is asked ---------------------------------------------------------------------------------------

local function some_collection(sim)
  local open, closed = {}, {}
  for _, lane in ipairs(sim.sorted(sim.db.collections)) do
    local c = sim.db.collections[lane]
    table.insert(c.deleted and closed or open, c)
  end
  if #closed > 0 and sim.rng:chance(0.05) then return sim.rng:pick(closed) end
  return #open > 0 and sim.rng:pick(open) or nil
end

local function ids(rng)
  local left, out = { "a", "b", "c", "d", "e", "f" }, {}
  for i = 1, rng:pick { 1, 1, 2, 3 } do out[i] = table.remove(left, rng:int(1, #left)) end
  return out
end

-- Every body carries the operation's number: as metadata "o", or as an id that no record has.
local function record_body(sim, action, number, given)
  local rng, f = sim.rng, sim.faults
  if action == "delete" then
    local list = ids(rng)
    table.insert(list, "op" .. number)
    return '{"ids":' .. json.encode(list) .. "}"
  end
  if action == "delete_where" then
    return string.format('{"where":{"k":%d}%s}', rng:int(0, 2), rng:chance(0.2) and ',"limit":2' or "")
  end
  local list = given or ids(rng)
  local vectors, docs, metas = {}, {}, {}
  for i in ipairs(list) do
    vectors[i] = action == "update" and rng:chance(0.3) and "null" or "[" .. number .. "," .. i .. "]"
    docs[i] = rng:chance(0.3) and "null" or '"d' .. number .. '"'
    metas[i] = string.format('{"o":%d,"%s":%s}', number, rng:pick { "k", "k", "z" },
      action ~= "add" and rng:chance(0.2) and "null" or rng:int(0, 2))
  end
  local flag = rng:chance(0.04) and Records.BAD or rng:chance(f.skew) and Records.SKEW
    or rng:chance(f.poison) and Records.POISON
  if flag then docs[1] = '"' .. flag .. number .. '"' end
  return '{"ids":' .. json.encode(list) .. ',"embeddings":[' .. table.concat(vectors, ",") .. '],"documents":['
    .. table.concat(docs, ",") .. '],"metadatas":[' .. table.concat(metas, ",") .. "]}"
end

local function base(tenant, database) return "/api/v2/tenants/" .. tenant .. "/databases/" .. database end

local function record_write(sim, number, c, given)
  local kind = given and "upsert" or sim.rng:pick { "add", "upsert", "upsert", "update", "delete", "delete_where" }
  local action = kind == "delete_where" and "delete" or kind
  return { method = "POST", action = action, class = "write", tenant = c.tenant, database = c.database,
    collection = c.logical, by_name = false, target = base(c.tenant, c.database) .. "/collections/" .. c.logical
      .. "/" .. action, type = "application/json", body = record_body(sim, kind, number, given) }
end

local function catalogue_write(sim, number)
  local rng = sim.rng
  local database, name = rng:pick(DATABASES), rng:pick(NAMES)
  local r = { class = "catalog", tenant = "default_tenant", database = database, by_name = false, body = "",
    type = "application/json" }
  local path = base("default_tenant", database)
  local z = rng:unit()
  if z < 0.45 then
    r.method, r.action, r.target = "POST", "create_collection", path .. "/collections"
    r.body = string.format('{"name":"%s"%s,"metadata":{"o":%d}}', name,
      rng:chance(0.3) and ',"get_or_create":true' or "", number)
  elseif z < 0.65 then
    r.method, r.action, r.target = "DELETE", "delete_collection", path .. "/collections/" .. name
    r.collection, r.by_name = name, true
  elseif z < 0.82 then
    local c = some_collection(sim)
    if not c then return catalogue_write(sim, number) end
    r.method, r.action, r.tenant, r.database, r.collection = "PUT", "update_collection", c.tenant, c.database, c.logical
    r.target = base(c.tenant, c.database) .. "/collections/" .. c.logical
    r.body = string.format('{"new_name":"%s","new_metadata":{"o":%d}}', name, number)
    if rng:chance(0.2) then r.body = string.format('{"new_metadata":{"o":%d}}', number) end
  elseif z < 0.92 then
    r.method, r.action, r.target = "POST", "create_database", "/api/v2/tenants/default_tenant/databases"
    r.database, r.body = nil, '{"name":"other"}'
  elseif z < 0.95 then
    r.method, r.action, r.database, r.target = "DELETE", "delete_database", "other", base("default_tenant", "other")
  elseif z < 0.99 then
    r.method, r.action, r.tenant, r.database, r.target = "POST", "create_tenant", nil, nil, "/api/v2/tenants"
    r.body = '{"name":"' .. rng:pick { "tea", "coffee" } .. '"}'
  else
    r.method, r.action, r.tenant, r.database, r.target = "POST", "reset", nil, nil, "/api/v2/reset"
  end
  return r
end

local function catalogue_read(sim)
  local rng = sim.rng
  local database = rng:pick(DATABASES)
  local path = base("default_tenant", database)
  local r = { class = "catalog", reads = true, method = "GET", tenant = "default_tenant", database = database,
    by_name = false, body = "", query = "", type = "" }
  local z = rng:unit()
  if z < 0.5 then
    r.action, r.collection, r.by_name = "get_collection", rng:pick(NAMES), true
    r.target = path .. "/collections/" .. r.collection
  elseif z < 0.8 then
    r.action, r.target = "list_collections", path .. "/collections"
  else
    r.action, r.target = "count_collections", path .. "/collections_count"
  end
  return r
end

-- ---- a client --------------------------------------------------------------------------------------------

local function choose_balancer(sim)
  local able, any = {}, {}
  for _, b in ipairs(sim.balancers) do
    if not b.process.dead and not b.process.paused then
      any[#any + 1] = b
      if b.journal.state.phase == "on" then able[#able + 1] = b end
    end
  end
  if #any > 0 and (#able == 0 or sim.rng:chance(0.03)) then return sim.rng:pick(any) end
  return #able > 0 and sim.rng:pick(able) or nil
end

-- Sends the operation; told(kind, ...) is called once, with "gone" when the balancer has ended.
local function submit(sim, b, op, told)
  local world, r = sim.world, {}
  for k, v in pairs(op.request) do r[k] = v end
  r.query, r.id = r.query or "", "id-" .. op.number
  sim.by_id[r.id] = op.request
  r.deadline = World.EPOCH + world.t + 1 + sim.rng:unit() * 6
  if op.key then r.key = op.key end
  if op.token then r.token = op.token end
  local over = false
  local function once(...)
    if over then return end
    over = true
    told(...)
  end
  table.insert(b.process.on_end, function() once("gone") end)
  b:submit(r, once)
  if sim.rng:chance(0.03) then
    local ticket = b.ticket
    world:after(sim.rng:unit(), function()
      if over then return end
      b:leave(ticket)
      once("gone")
    end, b.process)
  end
end

local function read(sim, b, c, told)
  local lane, since = c.lane, (b.acked or {})[c.lane] or 0
  b:read(c.logical, function(status, _, instance, text)
    if status == 200 then
      table.insert(sim.reads, { lane = lane, since = since, text = text, instance = instance, t = sim.world.t,
        balancer = b.process.name })
    end
    told()
  end)
end

M.read = read

local function client(sim, left)
  local world, rng = sim.world, sim.rng
  local step
  local function pause(most) world:after(rng:unit() * most, step) end
  local function write(op, tries)
    local b = choose_balancer(sim)
    if not b then return world:after(0.1, function() write(op, tries) end) end
    submit(sim, b, op, function(kind, ...)
      local told = { kind = kind, ... }
      op.answers[#op.answers + 1] = told
      world:say("client", op.number, op.request.action, kind, ...)
      -- With a key of its own a client may ask again.
      if op.key and tries > 0 and kind ~= "send" then
        return world:after(rng:unit(), function() write(op, tries - 1) end)
      end
      pause(sim.pace)
    end)
  end
  function step()
    if left == 0 then
      sim.clients = sim.clients - 1
      return
    end
    left = left - 1
    local z = rng:unit()
    local c = some_collection(sim)
    if c and z < 0.25 then
      local b = choose_balancer(sim)
      if not b then return pause(0.2) end
      local over = false
      local function once()
        if over then return end
        over = true
        pause(sim.pace)
      end
      table.insert(b.process.on_end, once)
      world:after(2, once)
      return read(sim, b, c, once)
    end
    if c and rng:chance(0.1) then -- writes that may share a request, all at once
      for _, id in ipairs { "a", "b", "c", "d" } do
        sim.number = sim.number + 1
        local b = choose_balancer(sim)
        local op = { number = sim.number, answers = {}, request = record_write(sim, sim.number, c, { id }) }
        if b then
          world:say("client", op.number, "asks at once", op.request.action, op.request.body)
          table.insert(sim.operations, op)
          submit(sim, b, op, function(kind, ...) op.answers[#op.answers + 1] = { kind = kind, ... } end)
        end
      end
    end
    sim.number = sim.number + 1
    local op = { number = sim.number, answers = {} }
    if z > 0.97 then
      op.request = catalogue_read(sim)
    elseif not c or z > 0.97 - sim.catalogue then
      op.request = catalogue_write(sim, op.number)
    else
      op.request = record_write(sim, op.number, c)
    end
    if rng:chance(0.4) then op.key = "k" .. op.number
    elseif op.request.body == "" or not op.request.body:find('"o":', 1, true) or rng:chance(0.5) then
      op.token = "t" .. op.number
    end
    world:say("client", op.number, "asks", op.request.action, op.request.target, op.request.body)
    if not op.request.reads then table.insert(sim.operations, op) end
    write(op, 4)
  end
  pause(sim.pace)
end

function M.start(sim, count, each)
  sim.clients = count
  for _ = 1, count do client(sim, each) end
end

return M
