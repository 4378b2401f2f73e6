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

-- A server that clients read from rests after each request: so many times as long as that took, but
-- no longer than this, in seconds.
local REST, REST_MOST = 0.5, 0.25
-- The same while its clients wait longer than this on average, in seconds.
local CROWDED = 0.25
local CROWDED_REST, CROWDED_REST_MOST = 4, 5

function M.pace(load)
  if not load.reads then
    return 0
  end
  if (load.usual or 0) > CROWDED then
    return math.min(load.latency * CROWDED_REST, CROWDED_REST_MOST)
  end
  return math.min(load.latency * REST, REST_MOST)
end

return M
