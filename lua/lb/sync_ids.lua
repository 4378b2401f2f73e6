-- sync_ids.lua: the answers of get with include [] as they are: the ids of a whole collection, which may be millions.
-- They are never made into a table: what is needed is cut out of the text.
--
--   Ids.cut(answer, size) -> iterator of (JSON array text of up to `size` ids, first, last)    offsets count from 0
--   Ids.count(answer, rest) -> number
--   Ids.extras(a, b, most, rest) -> JSON texts of the ids that are in b but not in a | nil: more than `most`
--       rest: called again and again while it takes long; may be nil
local Ids = {}

local find, byte, sub = string.find, string.byte, string.sub

local QUOTE, BACKSLASH, COMMA, CLOSE = 34, 92, 44, 93
local PART = 4 * 1024 * 1024 -- bytes of ids that are looked up in one table
local RUN = 50000            -- ids between two rests

-- Where the string that begins at `at` ends.
local function string_end(text, at)
  local quote = at
  repeat
    quote = find(text, '"', quote + 1, true)
    if not quote then return nil end
    local before = quote - 1
    while byte(text, before) == BACKSLASH do before = before - 1 end
  until (quote - 1 - before) % 2 == 0
  return quote
end

-- Iterator of (from, to), the places of each id's text with its quotes. An answer that is none is an error.
local function each(text, rest)
  local _, open = find(text, '"ids":[', 1, true)
  if not open then error("no answer to get: " .. sub(text, 1, 100), 0) end
  local at, left = open + 1, RUN
  return function()
    if byte(text, at) == CLOSE then return nil end
    left = left - 1
    if left == 0 then
      left = RUN
      if rest then rest() end
    end
    local to = byte(text, at) == QUOTE and string_end(text, at)
    local following = to and byte(text, to + 1)
    if following ~= COMMA and following ~= CLOSE then
      error("ids that cannot be read: " .. sub(text, at, at + 100), 0)
    end
    local from = at
    at = following == COMMA and to + 2 or to + 1
    return from, to
  end
end

function Ids.count(text, rest)
  local n = 0
  for _ in each(text, rest) do n = n + 1 end
  return n
end

function Ids.cut(text, size)
  local next_id, first = each(text), 0
  return function()
    local from, to = next_id()
    if not from then return nil end
    local n, stop = 1, to
    while n < size do
      local more, till = next_id()
      if not more then break end
      n, stop = n + 1, till
    end
    first = first + n
    return "[" .. sub(text, from, stop) .. "]", first - n, first - 1
  end
end

-- Ids with the same remainder are in the same part.
local function part_of(text, from, to, parts)
  local h = 0
  for i = math.max(from, to - 8), to do h = (h * 31 + byte(text, i)) % 1048576 end
  return h % parts
end

function Ids.extras(a, b, most, rest)
  local out = {}
  local parts = math.ceil((#a + 1) / PART)
  for part = 0, parts - 1 do
    local known = {}
    for from, to in each(a, rest) do
      if parts == 1 or part_of(a, from, to, parts) == part then known[sub(a, from, to)] = true end
    end
    for from, to in each(b, rest) do
      if (parts == 1 or part_of(b, from, to, parts) == part) and not known[sub(b, from, to)] then
        if most and #out >= most then return nil end
        out[#out + 1] = sub(b, from, to)
      end
    end
  end
  return out
end

return Ids
