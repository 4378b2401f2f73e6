-- sync_batch.lua: how many records one request of a worker carries.
--
-- policies/sync.lua says it after each request, by the memory that is left and by how the server answered; without it
-- the rules of the earlier system hold (decide()). What a request carries is also bounded by bytes: no answer should
-- be larger than ANSWER_BYTES, whatever the records are.
--
--   local batch = Batch.new(settings)
--   batch:ids(each) -> how many records to ask for, when each took `each` bytes so far (nil: not known)
--   batch:answer_most() -> bytes of an answer with several records
--   batch:note{records=, bytes= of the body, latency=, requests= of clients a second | nil,
--              refused="413"|"429"|"503"|nil, error=bool}
--   batch.peak_mb, batch.memory_mb     of this process, as last looked at
local process = require("lb.process")

local Batch = {}
Batch.__index = Batch

local LEAST = 100
local FIRST = 100                   -- records that are asked for before their size is known
-- Bytes of an answer with several records: as many as are asked for, and those from which it is not read. Some are
-- there at once, as text and as what is sent on, so each is a share of the memory that is allowed.
local MB = 1024 * 1024
local ANSWER_BYTES, ANSWER_SHARE = 4 * MB, 1 / 100
local ANSWER_MOST, MOST_SHARE = 24 * MB, 1 / 16
local SLOW = 5                      -- seconds for one request
local TIGHT_MB, SHORT_MB = 50, 100  -- free memory
local FULL = 0.9                    -- of the memory that is allowed

-- room: as process.room, for specs.
function Batch.new(settings, room)
  return setmetatable({ settings = settings, room = room or process.room, batch = settings.DEFAULT_BATCH_SIZE,
    errors = 0, peak_mb = 0, memory_mb = 0 }, Batch)
end

local function share(self, most, part) return math.min(most, math.floor(self.settings.MAX_MEMORY_MB * MB * part)) end

function Batch:answer_most() return share(self, ANSWER_MOST, MOST_SHARE) end

function Batch:ids(each)
  if not each or each <= 0 then return math.min(FIRST, self.batch) end
  return math.max(1, math.min(self.batch, math.floor(share(self, ANSWER_BYTES, ANSWER_SHARE) / each)))
end

-- What policies/sync.lua says where it does not answer. -> records
function Batch.decide(s)
  if s.refused == "413" then return math.max(1, math.floor(s.records / 2)) end
  local n = s.batch
  if s.refused or s.latency > SLOW then
    n = math.max(s.least, math.floor(n / 2))
  elseif s.used_share <= FULL then
    n = n + math.max(1, math.floor(n / 4))
  end
  if s.free_mb < TIGHT_MB then n = math.min(n, LEAST, math.floor(s.most / 4))
  elseif s.free_mb < SHORT_MB then n = math.min(n, 500, math.floor(s.most / 2)) end
  if s.used_share > FULL then n = math.min(n, math.max(s.least, math.floor(s.batch / 2))) end
  return math.max(1, math.min(n, s.most))
end

local function policy_says(sample)
  local there, policy = pcall(require, "chromux.policy")
  local n = there and policy.call("sync.batch", sample)
  return type(n) == "number" and n == n and n
end

-- How it stands with the memory: now, allowed, left.
function Batch:look()
  local room = self.room()
  self.memory_mb = process.memory_mb()
  self.peak_mb = process.peak_mb()
  local limit = math.min(self.settings.MAX_MEMORY_MB, room.limit_mb or math.huge)
  return self.memory_mb, limit, math.max(0, math.min(limit - self.memory_mb, room.free_mb))
end

function Batch:note(r)
  self.errors = r.error and self.errors + 1 or 0
  local memory, limit, free = self:look()
  local most = self.settings.DEFAULT_BATCH_SIZE
  local sample = { batch = self.batch, least = math.min(LEAST, most), most = most, memory_mb = memory, limit_mb = limit,
    free_mb = free, used_share = memory / limit, payload_bytes = r.bytes, records = r.records, latency = r.latency,
    requests = r.requests, refused = r.refused, errors = self.errors }
  local n = math.floor(policy_says(sample) or Batch.decide(sample))
  -- A server that finds it too large finds so whatever the policy thinks.
  if r.refused == "413" then n = math.min(n, math.floor(r.records / 2)) end
  self.batch = math.max(1, math.min(n, most))
  if sample.used_share > 0.5 then collectgarbage() end
end

return Batch
