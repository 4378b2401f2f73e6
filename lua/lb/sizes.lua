-- sizes.lua: how many vectors the servers of this host hold, and of how many dimensions: what Chroma needs memory for.
--
-- Copies of a collection are equal, so each is counted once, on the first server here that has it; one small request
-- after the other, since nothing waits for the result.
local courier = require("lb.courier")

local Sizes = {}
Sizes.__index = Sizes

local EVERY = 600   -- seconds between two counts of everything
local PAUSE = 0.25  -- seconds between two requests
local TIMEOUT = 10
local FLOAT = 4     -- bytes

local COPIES = [[
  SELECT c.instance, c.physical, k.logical, k.tenant, k.database, k.name
    FROM journal_copies c JOIN journal_collections k USING (lane)
    WHERE c.state = 'ready' AND NOT k.deleted AND c.instance = ANY ($1::text[]) ORDER BY k.logical, c.instance]]

function Sizes.new(conn)
  return setmetatable({ conn = conn, again = 0, dimensions = {}, counts = {}, totals = {} }, Sizes)
end

local function segment(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function ask(instance, target)
  sleep(PAUSE)
  local a = courier.request { node = instance, method = "GET", target = target, timeout = TIMEOUT }
  return a and a.status == 200 and json.decode(a.body) or nil
end

-- Of one collection; what is not learnt this time stays as it was.
local function count(self, copy)
  local base = "/api/v2/tenants/" .. segment(copy.tenant) .. "/databases/" .. segment(copy.database) .. "/collections/"
  local n = ask(copy.instance, base .. copy.physical .. "/count")
  if type(n) ~= "number" then return end
  self.counts[copy.logical] = n
  if n == 0 or self.dimensions[copy.logical] then return end
  local c = ask(copy.instance, base .. segment(copy.name))
  local d = type(c) == "table" and c.id == copy.physical and c.dimension
  if type(d) == "number" then self.dimensions[copy.logical] = d end
end

-- Counts, when it is time again, what the instances of this list hold.
function Sizes:look(instances)
  if courier.boottime() < self.again or #instances == 0 then return end
  local copies = self.conn:query(COPIES, "{" .. table.concat(instances, ",") .. "}")
  if not copies then return end
  local totals, last = {}, nil
  for _, name in ipairs(instances) do totals[name] = { vectors = 0, floats = 0 } end
  local dimensions, counts = {}, {}
  for _, copy in ipairs(copies) do
    if copy.logical ~= last then
      count(self, copy)
      last = copy.logical
    end
    local t, n, d = totals[copy.instance], self.counts[last] or 0, self.dimensions[last] or 0
    t.vectors, t.floats = t.vectors + n, t.floats + n * d
    counts[last], dimensions[last] = self.counts[last], self.dimensions[last]
  end
  self.counts, self.dimensions, self.totals = counts, dimensions, totals -- without those that are deleted
  self.again = courier.boottime() + EVERY
end

-- {vectors=, dimensions= (on average), mb= (of all vectors)}; empty: not counted yet
function Sizes:of(instance)
  local t = self.totals[instance]
  if not t then return {} end
  return { vectors = t.vectors, dimensions = t.vectors > 0 and t.floats / t.vectors or 0,
    mb = t.floats * FLOAT / (1024 * 1024) }
end

return Sizes
