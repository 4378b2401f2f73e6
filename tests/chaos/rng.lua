-- rng.lua: random numbers that a seed and a name reproduce, each stream for itself (math.random is one for all
-- tasks, whose order no seed decides).
local bit = require("bit")

local Rng = {}
Rng.__index = Rng

-- A stream for (seed, name).
local function new(seed, name)
  local h = bit.tobit(seed * 2654435761 % 2 ^ 32)
  for i = 1, #name do h = bit.bxor(bit.rol(h, 5), name:byte(i) * 40503) end
  local r = setmetatable({ x = h == 0 and 1 or h }, Rng)
  for _ = 1, 8 do r:next() end
  return r
end

-- xorshift32: 0 <= result < 2^32
function Rng:next()
  local x = self.x
  x = bit.bxor(x, bit.lshift(x, 13))
  x = bit.bxor(x, bit.rshift(x, 17))
  x = bit.bxor(x, bit.lshift(x, 5))
  self.x = x
  return x % 2 ^ 32
end

-- 0 <= result < 1
function Rng:unit() return self:next() / 2 ^ 32 end

function Rng:int(low, high) return low + math.floor(self:unit() * (high - low + 1)) end

function Rng:chance(p) return self:unit() < p end

function Rng:pick(list) return list[self:int(1, #list)] end

-- One of {{weight, value}, ...}.
function Rng:weighted(choices)
  local sum = 0
  for _, c in ipairs(choices) do sum = sum + c[1] end
  local at = self:unit() * sum
  for _, c in ipairs(choices) do
    at = at - c[1]
    if at < 0 then return c[2] end
  end
  return choices[#choices][2]
end

return { new = new }
