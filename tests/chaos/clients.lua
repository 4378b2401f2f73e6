-- clients.lua: what clients do: each sends one request after another, chosen by its own stream of random numbers,
-- and records what became of it (check.lua says in which form).
--
-- Ids and names are few, so that operations meet. Every write carries a mark of its own, "u<number>", in each
-- document and as the metadata field u (or as an id, or a part of a filter, that hits nothing), which finds its
-- entry in the journal whatever became of the answer.
local M = {}

local API = "/api/v2/tenants/default_tenant/databases/default_database/collections"
local IDS, GROUPS, NAMES = 9, 4, 3 -- ids of each collection, unless the workload says otherwise

-- {urls={one for each balancer}, ops={}: where operations are recorded, think=seconds at most between two,
--  sync=after so many writes Chroma keeps a collection's vectors in files, favour=share of operations on what stays
--  that go to the first of it, catalogue_share=that of operations of the catalogue, odd=that of writes with vectors of
--  another dimension, which are refused, and with them the group in which they go, most=number of ids,
--  plain=true: no update has a vector. (Chroma may give that of an update of nothing to a later record, see model.lua,
--  and that long after: copies that were equal differ then.)}
function M.new(w)
  w.known = {}       -- {logical=, name=}: collections that somebody was told of, to be renamed and deleted
  w.lasting = {}     -- those that stay
  w.counts = { marks = 0, ops = 0 }
  w.most = w.most or IDS
  w.via = 1
  return setmetatable(w, { __index = M })
end

-- The same clients, of whom this one asks the given balancer.
function M:at(via) return setmetatable({ via = via }, { __index = self }) end

function M:mark()
  self.counts.marks = self.counts.marks + 1
  return self.counts.marks
end

local function outcome(a, action)
  if not a then return "unknown" end
  local s = a.status
  if s >= 200 and s < 300 then return "ack" end
  if s == 503 then
    if a.headers["retry-after"] then return "not_kept" end
    return (a.body or ""):find("%d+/%d+") and "kept" or "unknown"
  end
  -- A rename to a taken name is 500 in Chroma's own words.
  if s >= 400 and s < 500 or s == 500 and action == "update_collection" and a.body:find("UNIQUE", 1, true) then
    return "reject"
  end
  return "unknown"
end

-- Sends and records; op has class, action, token and what the check needs to know. Returns the answer.
function M:send(op, method, path, body, headers)
  headers = headers or {}
  if body then headers["Content-Type"] = "application/json" end
  local counts = self.counts
  counts.ops = counts.ops + 1
  op.id, op.via, op.start, op.raw = counts.ops, self.via, now(), op.class == "write" and body or nil
  self.ops[#self.ops + 1] = op
  local a, why = fetch { url = self.urls[self.via] .. path, method = method, body = body, headers = headers,
    timeout = 20 }
  op.stop, op.status, op.why = now(), a and a.status or nil, why
  op.outcome = outcome(a, op.action)
  -- Gone; others of us may go on with it for a while.
  if op.status == 404 and op.logical and #self.known > 0 and counts.ops % 3 == 0 then self:forget(op.logical) end
  if a then
    local lane, n = (a.headers["x-chromux-entry"] or ""):match("^(%d+)/(%d+)$")
    op.lane, op.n = tonumber(lane), tonumber(n)
    op.instance = a.headers["x-chromux-instance"]
    if op.outcome ~= "ack" then op.why = a.body:sub(1, 300) end
  end
  return a
end

-- ---- writes ----------------------------------------------------------------------------------------------

local function some_ids(rng, most, prefix)
  local out, used = {}, {}
  for _ = 1, rng:weighted { { 6, 1 }, { 2, 2 }, { 1, 5 } } do
    local id = (prefix or "r") .. rng:int(1, most)
    if not used[id] then
      used[id] = true
      out[#out + 1] = id
    end
  end
  return out
end

local function vector(rng, u, dimension)
  local out = { u }
  for i = 2, dimension do out[i] = rng:int(-64, 64) / 8 end
  return out
end

local function records_body(rng, u, action, most, prefix, plain, odd)
  local body = { ids = some_ids(rng, most, prefix) }
  local dimension = rng:chance(odd or 0.02) and 4 or 3
  local with_doc, with_meta = action == "add" or rng:chance(0.8), action == "add" or rng:chance(0.8)
  local with_emb = action ~= "update" or (rng:chance(0.5) and not plain)
  if not (with_doc or with_meta) then with_doc = true end
  if with_doc then body.documents = {} end
  if with_meta then body.metadatas = {} end
  if with_emb then body.embeddings = {} end
  for i in ipairs(body.ids) do
    if with_doc then body.documents[i] = "u" .. u .. " of " .. body.ids[i] end
    if with_meta then
      body.metadatas[i] = { u = u, g = rng:int(1, GROUPS), ["k" .. rng:int(1, 3)] = "v" .. u }
    end
    if with_emb then body.embeddings[i] = vector(rng, u, dimension) end
  end
  return body
end

local function some_where(rng)
  return rng:weighted {
    { 3, { g = rng:int(1, GROUPS) } },
    { 1, { g = { ["$in"] = { rng:int(1, GROUPS), rng:int(1, GROUPS) } } } },
    { 1, { u = { ["$gte"] = rng:int(1, 400) } } },
  }
end

local function delete_body(rng, u, most, prefix)
  if not prefix and rng:chance(0.45) then
    -- The second arm matches nothing; it is the mark.
    return { where = { ["$or"] = { some_where(rng), { mark = "u" .. u } } } }
  end
  local ids = some_ids(rng, most, prefix)
  ids[#ids + 1] = "u" .. u
  return { ids = ids }
end

-- prefix: of ids that this client alone writes; it deletes by id only then.
function M:write(rng, c, prefix)
  local action = rng:weighted { { 3, "upsert" }, { 2, "add" }, { 2, "update" }, { 2, "delete" } }
  local u = self:mark()
  local body = action == "delete" and delete_body(rng, u, self.most, prefix)
    or records_body(rng, u, action, self.most, prefix, self.plain, not prefix and self.odd or nil)
  self:send({ class = "write", action = action, token = "u" .. u, logical = c.logical, body = body }, "POST",
    API .. "/" .. c.logical .. "/" .. action, json.encode(body))
end

-- So many records of every kind that no other operation touches: what a rebuild has to bring over.
function M:fill(rng, c, n)
  local u = self:mark()
  local body = { ids = {}, documents = {}, metadatas = {}, embeddings = {}, uris = {} }
  for i = 1, n do
    body.ids[i] = "b" .. i
    body.documents[i] = i % 4 ~= 2 and "u" .. u .. " \206\177\n\"" .. i or json.null
    body.metadatas[i] = i % 5 ~= 2 and { s = "v" .. i, n = i, f = i / 3, t = i % 2 == 0 } or json.null
    body.embeddings[i] = vector(rng, -i, 3)
    body.uris[i] = i % 3 == 0 and "x://" .. i or json.null
  end
  self:send({ class = "write", action = "upsert", token = "u" .. u, logical = c.logical, body = body }, "POST",
    API .. "/" .. c.logical .. "/upsert", json.encode(body))
end

-- ---- the catalogue ---------------------------------------------------------------------------------------

function M:forget(logical)
  for i, c in ipairs(self.known) do
    if c.logical == logical then return table.remove(self.known, i) end
  end
end

function M:create(rng, name, lasting)
  local u = self:mark()
  local op = { class = "catalogue", action = "create_collection", token = "u" .. u, name = name,
    get_or_create = rng:chance(0.3) or nil }
  local body = json.encode { name = name, metadata = { u = "u" .. u }, get_or_create = op.get_or_create,
    configuration = self.sync and { hnsw = { sync_threshold = self.sync } } or nil }
  local a = self:send(op, "POST", API, body, { ["Idempotency-Key"] = op.token })
  local c = op.outcome == "ack" and json.decode(a.body)
  if c and type(c.id) == "string" then
    op.seen = c.id
    for _, k in ipairs(self.known) do
      if k.logical == c.id then return end
    end
    local list = lasting and self.lasting or self.known
    list[#list + 1] = { logical = c.id, name = name }
  end
end

-- The collections that stay; all but the last have `bulk` records from the beginning.
function M:found(rng, n, bulk)
  for i = 1, n do -- whatever comes in between
    local till = now() + 30
    repeat self:create(rng, "main" .. i, true) until #self.lasting == i or now() > till
  end
  for i = 1, bulk and n - 1 or 0 do self:fill(rng, self.lasting[i], bulk) end
end

function M:catalogue(rng)
  local name = "name" .. rng:int(1, NAMES)
  local what = rng:weighted { { 3, "create" }, { 2, "delete" }, { 2, "rename" } }
  if what == "create" or #self.known == 0 then return self:create(rng, name) end
  local u = self:mark()
  local key = { ["Idempotency-Key"] = "u" .. u }
  if what == "delete" then
    local op = { class = "catalogue", action = "delete_collection", token = "u" .. u, name = name }
    self:send(op, "DELETE", API .. "/" .. name, nil, key)
    return
  end
  local c = rng:pick(self.known)
  local op = { class = "catalogue", action = "update_collection", token = "u" .. u, logical = c.logical,
    new_name = name }
  self:send(op, "PUT", API .. "/" .. c.logical, json.encode { new_name = name, new_metadata = { u = "u" .. u } }, key)
end

-- ---- reads -----------------------------------------------------------------------------------------------

local function record_of(got, i)
  local function at(list)
    local x = type(list) == "table" and list[i]
    return type(x) ~= "userdata" and x or nil
  end
  return { doc = at(got.documents), meta = at(got.metadatas) or {}, emb = at(got.embeddings) }
end

-- The records of an answer to get, or of the first list of one to query.
local function records_of(got, nested)
  local out = {}
  local ids = nested and got.ids[1] or got.ids
  local flat = got
  if nested then
    flat = {}
    for _, name in ipairs { "documents", "metadatas", "embeddings" } do
      flat[name] = type(got[name]) == "table" and got[name][1] or nil
    end
  end
  for i, id in ipairs(ids) do out[id] = record_of(flat, i) end
  return out
end
M.records_of = records_of

function M:read(rng, c)
  local action = rng:weighted { { 4, "get_ids" }, { 2, "get_where" }, { 2, "query" }, { 2, "count" }, { 1, "get_name" },
    { 0.5, "list" } }
  local include = { "documents", "metadatas", "embeddings" }
  local path = API .. "/" .. c.logical
  local op = { class = "read", action = action, logical = c.logical }
  local a
  if action == "get_ids" then
    op.body = { ids = some_ids(rng, self.most), include = include }
    a = self:send(op, "POST", path .. "/get", json.encode(op.body))
  elseif action == "get_where" then
    op.body = { where = some_where(rng), include = include }
    a = self:send(op, "POST", path .. "/get", json.encode(op.body))
  elseif action == "query" then
    op.body = { query_embeddings = { vector(rng, rng:int(1, 400), 3) }, n_results = 5, include = include }
    a = self:send(op, "POST", path .. "/query", json.encode(op.body))
  elseif action == "count" then
    a = self:send(op, "GET", path .. "/count")
  elseif action == "get_name" then
    op.logical, op.name = nil, "name" .. rng:int(1, NAMES)
    a = self:send(op, "GET", API .. "/" .. op.name)
  else
    op.logical = nil
    a = self:send(op, "GET", API)
  end
  if not a or a.status ~= 200 then return end
  local got = json.decode(a.body)
  if action == "count" then op.seen = got
  elseif action == "get_name" then op.seen = got.id
  elseif action == "list" then
    op.seen = {}
    for _, k in ipairs(got) do op.seen[k.name] = k.id end
  else op.seen = records_of(got, action == "query") end
end

-- ---- a client --------------------------------------------------------------------------------------------

-- One client that only writes, and records that are its own, until over().
function M:run_apart(rng, prefix, over)
  while not over() do
    self:write(rng, rng:pick(self.lasting), prefix)
    sleep(rng:unit() * self.think)
  end
end

-- One client until the moment `till`.
function M:run(rng, till)
  while now() < till do
    local list = (#self.known == 0 or rng:chance(0.7)) and self.lasting or self.known
    local c = #list > 0 and (list == self.lasting and rng:chance(self.favour or 0) and list[1] or rng:pick(list))
    local dice = rng:unit()
    if not c or dice < (self.catalogue_share or 0.05) then self:catalogue(rng)
    elseif dice < 0.6 then self:write(rng, c)
    else self:read(rng, c) end
    sleep(rng:unit() * self.think)
  end
end

return M
