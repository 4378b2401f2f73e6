-- torn.lua: records that entries in doubt may have left without a vector, which sending those again mends.
--
-- An upsert gives a record its vector whatever was there, an add only to a record that it has made itself. So of a
-- record without a vector that an add in doubt names it is to be found out whether that add has made it.
--
--   of(lane, copy) -> half: {upserts = {[id]=true}, adds = {[id]={n, ...}}}, the entries in doubt that name a record
--                     | nil: too many, or they can't be had
--   made(lane, copy, half, {[id]=true}) -> was each of these, which have no vector, made by one of its adds? nil: not
--                     known now
local Touched = require("lb.touched")
local records = require("chromux.records")
local slice = require("chromux.slice")

local M = {}

local DOUBTED = 1000 -- entries in doubt whose ids are looked up; and of those that came later
local LARGE = 1e6    -- bytes of an entry: others have their turn after it

local function breathe(e)
  if #e.body > LARGE then sleep(0) end
end

function M.of(lane, copy)
  local half = { upserts = {}, adds = {}, over = {}, from = copy.p, over_to = copy.p }
  if copy.doubt - copy.p > DOUBTED then return nil end
  for n = copy.p + 1, math.min(copy.doubt, lane.head) do
    local e = lane:entry(n)
    if not e then return nil end
    if e.action == "add" or e.action == "upsert" then
      for _, id in ipairs((slice.records(e.body, #e.body) or {}).ids or {}) do
        if e.action == "upsert" then
          half.upserts[id] = true
        else
          half.adds[id] = half.adds[id] or {}
          table.insert(half.adds[id], n)
        end
      end
      breathe(e)
    end
  end
  return half
end

-- ---- records ---------------------------------------------------------------------------------------------

-- The wanted ({[id]=true}) records of an object like {"ids":[...],"documents":[...],"metadatas":[...],"embeddings":
-- [...]}, in its order: {{id=, documents=, metadatas=, embeddings=}, ...}, values as they stand there.
local function rows_of(object, wanted)
  local m, lists, out = slice.members(object) or {}, {}, {}
  for _, name in ipairs { "documents", "metadatas", "embeddings" } do
    lists[name] = (m[name] or "null") ~= "null" and slice.elements(m[name]) or {}
  end
  for i, raw in ipairs(slice.elements(m.ids or "[]") or {}) do
    local id = slice.string(raw)
    if id and wanted[id] then
      local row = { id = id }
      for name, list in pairs(lists) do row[name] = list[i] or "null" end
      out[#out + 1] = row
    end
  end
  return out
end

-- What the record has besides its vector; nil: nothing.
local function texts_of(row)
  local out, any = {}, false
  for i, name in ipairs { "documents", "metadatas" } do
    out[i] = slice.canonical(row[name])
    if out[i] == "{}" then out[i] = "null" end
    any = any or out[i] ~= "null"
  end
  return any and table.concat(out, "\0") or nil
end

-- What the server shows of one record. nil: the record is not there | nil, "broken": no record can be had | nil,
-- "later"
local function shown_of(lane, copy, id, include)
  local a = copy.server:ask("POST", lane:target(copy, "/get"),
    slice.ids_body { id }:sub(1, -2) .. ',"include":[' .. include .. "]}")
  if not a or a.status == 429 or a.status == 503 then return nil, "later" end
  if a.status ~= 200 then return nil, "broken" end
  return rows_of(a.body, { [id] = true })[1]
end

-- ---- vectors ---------------------------------------------------------------------------------------------

local VALUE = {}
for i, letter in ipairs { ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"):byte(1, -1) } do
  VALUE[letter] = i - 1
end

-- The decimal number that is the same float as these four bytes, the least one first; null, as Chroma shows it, for
-- what is no number.
local function decimal(a, b, c, d)
  local exponent, fraction = d % 128 * 2 + math.floor(c / 128), c % 128 * 65536 + b * 256 + a
  if exponent == 255 then return "null" end
  local x = math.ldexp(exponent == 0 and fraction or fraction + 2 ^ 23, math.max(exponent, 1) - 150)
  return string.format("%.9g", d < 128 and x or -x)
end

-- A vector of a request as a list; it may be the base64 of 32-bit floats.
local function listed(vector)
  if vector:sub(1, 1) ~= '"' then return vector end
  local text, bytes, out = slice.string(vector), {}, {}
  for i = 1, #text, 4 do
    local v, at = 0, #bytes
    for k = i, i + 3 do v = v * 64 + (VALUE[text:byte(k)] or 0) end
    bytes[at + 1], bytes[at + 2], bytes[at + 3] = math.floor(v / 65536), math.floor(v / 256) % 256, v % 256
  end
  for i = 1, #bytes - #text:match("=*$"), 4 do
    out[#out + 1] = decimal(bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3])
  end
  return "[" .. table.concat(out, ",") .. "]"
end

-- A vector of a request, and one that a server shows: the same, but for how far one of a cosine collection drifts?
local function same_vector(sent, shown)
  local function whole(vector)
    return '{"ids":["x"],"embeddings":[' .. vector .. '],"documents":[null],"metadatas":[null],"uris":[null]}'
  end
  local found = records.compare(whole(listed(sent)), whole(shown), { cosine = true })
  return found ~= nil and found.equal == 1
end

-- ---- what came later -------------------------------------------------------------------------------------

-- The records that have the entry's vector after it, or are gone.
local function replaced_by(e)
  if e.action == "delete" or e.action == "upsert" then return Touched.ids_of(e) or {} end
  local r = e.action == "update" and slice.records(e.body, #e.body)
  if not r or not r.dimension then return {} end
  if not r.shape:find(":holes", 1, true) then return r.ids end
  local out, list = {}, slice.elements(slice.members(e.body).embeddings)
  for i, id in ipairs(r.ids) do
    if list[i] ~= "null" then out[#out + 1] = id end
  end
  return out
end

-- Is what the add n gives the record replaced by a later entry, of those up to `upto`? Then it matters to nobody.
local function replaced(lane, half, id, n, upto)
  upto = math.min(upto, half.from + DOUBTED)
  while half.over_to < upto do
    local e = lane:entry(half.over_to + 1)
    if not e then break end
    for _, its in ipairs(e.verdict == "applied" and replaced_by(e) or {}) do
      if half.adds[its] then half.over[its] = e.n end
    end
    half.over_to = e.n
    breathe(e)
  end
  return (half.over[id] or 0) > n
end

-- ---- the question ----------------------------------------------------------------------------------------

-- Did the record stand there before this add, which then left it alone? Another copy tells that has it with another
-- vector, which nothing has given it since; one that stands right before the add and lacks it tells the contrary. nil:
-- none can be asked
local function stood_before(lane, copy, half, row, n)
  local told
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and other.server:usable() then
      local at = other.p
      local there, why = shown_of(lane, other, row.id, '"embeddings"')
      if not why then
        local new = not there and at >= copy.p and math.max(other.p, other.doubt) < n
        if new or (there and same_vector(row.embeddings, there.embeddings))
          or replaced(lane, half, row.id, n, other.p) then
          return false
        end
        told = true
      end
    end
  end
  return told
end

-- Who can't tell by what the record says must take it for lost: the add would give it the new vector and leave the
-- rest as it was. The same text may have stood there before.
function M.made(lane, copy, half, ids)
  local left, entries, seen = {}, {}, {}
  for id in pairs(ids) do
    left[id] = true
    for _, n in ipairs(half.adds[id]) do
      if not seen[n] then seen[n], entries[#entries + 1] = true, n end
    end
  end
  table.sort(entries)
  for _, n in ipairs(entries) do -- each is taken apart once: it may be large
    local e = lane:entry(n)
    if not e then return nil end
    for _, row in ipairs(rows_of(e.body, left)) do
      local there, why = shown_of(lane, copy, row.id, '"documents","metadatas"')
      if why == "later" then return nil end
      local is = there and texts_of(there)
      if is and texts_of(row) == is and not stood_before(lane, copy, half, row, n) then
        left[row.id] = nil
      elseif n == half.adds[row.id][#half.adds[row.id]] then
        return false
      end
    end
    breathe(e)
  end
  return next(left) == nil
end

return M
