-- sync.lua: how copies are made equal: how much at once, from whom, how fast? See README.md.
local M = {}

-- ---- batch: how many records are in the next request ------------------------------------------

-- Free memory, in MB, below which only a share of the full batch is taken, and at most so many records.
local TIGHT = {
  { free_mb = 50, share = 1 / 4, most = 100 },
  { free_mb = 100, share = 1 / 2, most = 500 },
}
local USED_SHARE = 0.9 -- of the memory: above, the batch is halved

local PAYLOAD_BYTES = 4 * 1024 * 1024 -- of one request: a server's limit is 40 MiB, and it stalls on far less
local SLOW_SECONDS = 5 -- a request that takes longer was too big
local CLIENTS_SECONDS = 0.05 -- the same while there are clients: one of theirs may have to wait for it
local GROWTH = 1.25 -- of a batch after which all went well

local function memory_bound(sample)
  for _, step in ipairs(TIGHT) do
    if sample.free_mb < step.free_mb then
      return math.min(sample.most * step.share, step.most)
    end
  end
  return sample.most
end

local function payload_bound(sample)
  if sample.records == 0 or sample.payload_bytes == 0 then
    return sample.most
  end
  return PAYLOAD_BYTES * sample.records / sample.payload_bytes
end

function M.batch(sample)
  local n = sample.batch
  if sample.refused == "413" then -- too big, whatever `least` says
    return math.max(math.floor(math.min(n, sample.records) / 2), 1)
  end
  if sample.refused or sample.errors > 0 or sample.used_share > USED_SHARE then
    n = n / 2
  elseif sample.latency > SLOW_SECONDS then
    n = n * 3 / 4
  elseif (sample.requests or 0) > 0 and sample.latency > CLIENTS_SECONDS then
    n = n * math.max(CLIENTS_SECONDS / sample.latency, 1 / 2)
  else
    n = math.max(n + 1, n * GROWTH)
  end
  n = math.max(n, math.min(sample.least, sample.batch))
  n = math.min(n, memory_bound(sample), payload_bound(sample), sample.most)
  return math.max(math.floor(n), 1)
end

-- ---- authority: which copy is right, and the source for the others ----------------------------

-- The first of these that tells two copies apart decides: larger is better.
local PREFERENCES = {
  function(copy) return copy.health == "up" and 1 or 0 end,
  function(copy) return copy.role == "primary" and 1 or 0 end,
  function(copy) return -copy.behind end,
  function(copy) return copy.priority end,
  function(copy) return copy.proven_at or 0 end,
}

local function better(a, b)
  for _, worth in ipairs(PREFERENCES) do
    if worth(a) ~= worth(b) then
      return worth(a) > worth(b)
    end
  end
  return false
end

function M.authority(copies)
  local best
  for _, copy in ipairs(copies) do
    if copy.state == "ready" and copy.health ~= "down" and (not best or better(copy, best)) then
      best = copy
    end
  end
  if not best then
    return nil, "no copy is ready on an instance that is up"
  end
  return best.instance
end

-- ---- pace: how long to wait before the next request to an instance ----------------------------

-- While there are clients, requests of sync take a share of the time. It is found as a congestion
-- window is: doubled until clients wait longer than they are used to, halved each time they do, and
-- raised step by step while they do not.
local SHARE_FIRST, SHARE_LEAST, SHARE_STEP = 0.125, 0.1, 0.1
local BEARABLE = 1.75 -- times as long as usual, for the slowest of a hundred requests,
local NOTICEABLE = 0.005 -- and at least so much longer, in seconds
local USUAL = 0.02 -- where it is not known, in seconds
local REST_MOST = 5 -- seconds

-- As long as it is not known how clients fare: a server that they read from rests so many times as
-- long as the last request took, at most so many seconds.
local UNKNOWN_REST, UNKNOWN_REST_MOST = 0.5, 0.25

local share, rising, told = SHARE_FIRST, true, nil

local function steer(load)
  if load.told == told then
    return
  end
  told = load.told
  local usual = load.usual or USUAL
  if load.waits > math.max(usual * BEARABLE, usual + NOTICEABLE) then
    share, rising = math.max(share / 2, SHARE_LEAST), false
  else
    share = math.min(rising and share * 2 or share + SHARE_STEP, 1)
  end
end

function M.pace(load)
  if load.requests == 0 then -- nobody waits
    share, rising = SHARE_FIRST, true
    return 0
  end
  if not load.waits then
    return load.reads and math.min(load.latency * UNKNOWN_REST, UNKNOWN_REST_MOST) or 0
  end
  steer(load)
  return math.min(load.latency * (1 / share - 1), REST_MOST)
end

return M
