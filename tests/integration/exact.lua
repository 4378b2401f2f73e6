-- exact.lua: records that go from one real server to another by chromux.records are the same to the last bit, or, with
-- the cosine, within a few floats. Arguments: the addresses of two servers.
local ffi = require("ffi")
local records = require("chromux.records")

local N, DIMENSION = 300, 16
local BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"
local ALL = '{"include":["embeddings","documents","metadatas","uris"]}'

local function post(server, path, body)
  local a = assert(fetch { url = server .. BASE .. path, method = "POST", body = body,
    headers = { ["Content-Type"] = "application/json" } })
  assert(a.status == 200 or a.status == 201, a.body)
  return a.body
end

local function create(server, name, space)
  return json.decode(post(server, "", string.format('{"name":"%s","configuration":{"hnsw":{"space":"%s"}}}', name,
    space))).id
end

math.randomseed(7)
local float = ffi.new("union { float f; uint32_t bits; }")

-- Any float whose square is one as well; denormal ones and both zeros among them.
local function any_number(space)
  local kind = math.random(20)
  if kind == 1 then return "-0" end
  if kind == 2 and space ~= "cosine" then return string.format("%de-45", math.random(9)) end
  float.bits = math.random(0, 2 ^ 23 - 1)
  float.bits = float.bits + math.random(space == "cosine" and 110 or 1, 160) * 2 ^ 23
  return string.format("%s%.9g", math.random(2) == 1 and "-" or "", float.f)
end

local VALUES = { '"\\u00e9\\n\\"\240\159\152\128"', "null", '""', '"text"' }
local METADATA = { "null", '{"i":9223372036854775807,"j":-9223372036854775808}', '{"f":1.0,"g":1e-7,"h":0.1}',
  '{"b":true,"c":false,"s":"x\\u0001y"}' }

-- The columns of a body that has all that an answer has.
local function made(space)
  local ids, vectors, docs, metas, uris = {}, {}, {}, {}, {}
  for i = 1, N do
    local v = {}
    for k = 1, DIMENSION do v[k] = any_number(space) end
    ids[i], vectors[i] = string.format('"id \\u00e9 %d"', i), "[" .. table.concat(v, ",") .. "]"
    docs[i], uris[i], metas[i] = VALUES[i % 4 + 1], VALUES[(i + 1) % 2 + 2 + (i % 2)], METADATA[i % 4 + 1]
  end
  return string.format('{"ids":[%s],"embeddings":[%s],"documents":[%s],"metadatas":[%s],"uris":[%s]}',
    table.concat(ids, ","), table.concat(vectors, ","), table.concat(docs, ","), table.concat(metas, ","),
    table.concat(uris, ","))
end

local function check_same(a, b, space, what)
  local r = assert(records.compare(a, b, { cosine = space == "cosine" }))
  assert(r.equal == N, string.format("%s, %s: %d of %d are equal; the first that differs: %s", space, what, r.equal, N,
    tostring(r.changed[1] or r.only_a[1])))
  if space == "cosine" then return end
  local hashes = assert(records.hash(b))
  for id, hash in pairs(assert(records.hash(a))) do assert(hashes[id] == hash, space .. ": the hash of " .. id) end
end

local first, second = ...
for _, space in ipairs { "l2", "ip", "cosine" } do
  local source, body = create(first, "copied-" .. space, space), made(space)
  post(first, "/" .. source .. "/add", body)
  local answer = post(first, "/" .. source .. "/get", ALL)
  check_same(body, answer, space, "what was added, and what is answered")
  for _, base64 in ipairs { true, false } do
    local copy = create(second, "copy-" .. space .. (base64 and "64" or "text"), space)
    local add, count, nulls = records.add_body(answer, { base64 = base64 })
    assert(count == N and #nulls == 0)
    post(second, "/" .. copy .. "/add", add)
    check_same(answer, post(second, "/" .. copy .. "/get", ALL), space, base64 and "base64" or "text")
  end
end
print("exact")
