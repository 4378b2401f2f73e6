-- exact.lua: an empty collection that is exactly like another one, on another server (facts of Chroma 1.0 to 1.5).
--
--   read(server, base, name) -> {id=, members=, dimension=} | false (there is none) | nil, why
--       base: the target of the database's collections; members: the bytes of what the server says of it
--   cosine(d) -> is its distance the cosine, for which Chroma 1.0 keeps vectors of another length than it was given?
--   same(a, b) -> true | false, what differs    configuration, schema and metadata
--   bodies(d, name) -> create body, body of the PUT that completes it or nil
--   pin_bodies(d, token) -> add body, delete body    which give an empty collection its dimension
--   get_body(ids)                                    of the get that answers these records whole
--
-- `schema` is taken with metadata but without a configuration, which it holds: servers refuse both together, and a
-- schema beside the hnsw:* keys of old. So these are put there afterwards.
local slice = require("chromux.slice")

local json = json

local M = {}

function M.read(server, base, name)
  local a, kind = server:ask("GET", base .. "/" .. name)
  if not a then return nil, kind end
  if a.status == 404 then return false end
  local c, members = slice.collection(a.body), slice.members(a.body)
  if a.status ~= 200 or not c or not members then return nil, "answered " .. a.status end
  return { id = c.id, members = members, dimension = tonumber(members.dimension or "") }
end

local function there(raw) return raw ~= nil and raw ~= "null" end

local function object(raw)
  local t = there(raw) and json.decode(raw)
  return type(t) == "table" and t or {}
end

function M.cosine(d)
  local configuration = object(d.members.configuration_json)
  for _, index in ipairs { "hnsw", "spann" } do
    local is = configuration[index]
    if type(is) == "table" and type(is.space) == "string" then return is.space == "cosine" end
  end
  return object(d.members.metadata)["hnsw:space"] == "cosine"
end

local function canonical(raw) return there(raw) and slice.canonical(raw) or "null" end

function M.same(a, b)
  for _, what in ipairs { "configuration_json", "metadata", "dimension" } do
    if canonical(a.members[what]) ~= canonical(b.members[what]) then return false, what end
  end
  return there(a.members.schema) == there(b.members.schema), "schema"
end

local function without_hnsw(metadata)
  local parts = {}
  for key, raw in pairs(slice.members(metadata) or {}) do
    if key:sub(1, 5) ~= "hnsw:" then parts[#parts + 1] = slice.quote(key) .. ":" .. raw end
  end
  return #parts > 0 and "{" .. table.concat(parts, ",") .. "}" or nil
end

function M.bodies(d, name)
  local m, parts, later = d.members, { '"name":' .. slice.quote(name) }, nil
  local metadata = there(m.metadata) and m.metadata or nil
  if there(m.schema) then
    parts[2] = '"schema":' .. m.schema
    if metadata then
      local plain = without_hnsw(metadata)
      later = '{"new_metadata":' .. metadata .. "}"
      metadata = plain
    end
  else
    parts[2] = there(m.configuration_json) and '"configuration":' .. m.configuration_json or nil
  end
  if metadata then parts[#parts + 1] = '"metadata":' .. metadata end
  return "{" .. table.concat(parts, ",") .. "}", later
end

function M.pin_bodies(d, token)
  local id, ones = "chromux-dimension-" .. token, {}
  for i = 1, d.dimension do ones[i] = "1" end
  return '{"ids":[' .. slice.quote(id) .. '],"embeddings":[[' .. table.concat(ones, ",") .. "]]}",
    slice.ids_body { id }
end

function M.get_body(ids)
  return slice.ids_body(ids):sub(1, -2) .. ',"include":["documents","metadatas","embeddings","uris"]}'
end

return M
