-- route.lua: which instance takes this request? See README.md for the fields and the rules.
--
-- LOAD_BALANCE_STRATEGY names one of the strategies below; a new one is a new function here. Each
-- gets the request and the nodes that may serve it (never none) and returns a node and a reason.
local M = { strategies = {} }
local strategies = M.strategies

local swrr, random, hash = lb.swrr, lb.random, lb.hash

-- read_replica: of ten reads, so many go to replicas.
local READS_FOR_REPLICAS = 8

-- ---- words to build strategies from -----------------------------------------------------------

-- The node for which cost() is least; the first of equals.
local function cheapest(nodes, cost)
  local best, least
  for i = 1, #nodes do
    local c = cost(nodes[i])
    if not least or c < least then
      best, least = nodes[i], c
    end
  end
  return best
end

local function keep(nodes, wanted)
  local kept = {}
  for i = 1, #nodes do
    if wanted(nodes[i]) then
      kept[#kept + 1] = nodes[i]
    end
  end
  return kept
end

-- A server that sync fills answers late: it is spared while another one can answer.
local function spared(nodes)
  for i = 1, #nodes do
    if nodes[i].syncing > 0 then
      local others = keep(nodes, function(node)
        return node.syncing == 0
      end)
      return #others > 0 and others or nodes
    end
  end
  return nodes
end

local function primary_of(nodes)
  for i = 1, #nodes do
    if nodes[i].role == "primary" then
      return nodes[i]
    end
  end
end

local function is_replica(node)
  return node.role == "replica"
end

-- Requests on a node or waiting for it, per weight.
local function load_of(node)
  return (node.inflight + node.queued) / node.weight
end

-- Weighted rendezvous hashing: a key stays with its node while that node is there, and when it goes
-- only its own keys move. (Schindelhauer and Schomaker, "Weighted distributed hash tables".)
local function home_of(key, nodes)
  return cheapest(nodes, function(node)
    return -math.log((hash(key .. "\0" .. node.name) + 0.5) / 2 ^ 32) / node.weight
  end)
end

-- ---- strategies ---------------------------------------------------------------------------------

-- Writes go to the primary, reads go round over all.
function strategies.write_primary(req, nodes)
  if not req.reads then
    local primary = primary_of(nodes)
    if primary then
      return primary, "write to the primary"
    end
    return swrr(nodes), "write, the primary cannot serve"
  end
  return swrr(nodes), "next in turn"
end

-- In turn, each as often as its weight says, never in bursts.
function strategies.round_robin(_, nodes)
  return swrr(nodes), "next in turn"
end

function strategies.random(_, nodes)
  return nodes[random(#nodes)], "by chance"
end

-- The highest PRIORITY that can serve takes all.
function strategies.priority(_, nodes)
  return cheapest(nodes, function(node)
    return -node.priority
  end), "highest priority"
end

function strategies.least_connections(_, nodes)
  return cheapest(nodes, load_of), "least loaded"
end

-- The less loaded of two picked by chance: nearly as even as least_connections, and several
-- balancers don't all run to the same node.
function strategies.two_choices(_, nodes)
  if #nodes == 1 then
    return nodes[1], "the only one"
  end
  local i = random(#nodes)
  local j = random(#nodes - 1)
  if j >= i then
    j = j + 1
  end
  local a, b = nodes[i], nodes[j]
  return load_of(b) < load_of(a) and b or a, "less loaded of two"
end

-- By the time an answer may take: average time to first byte times the requests ahead. A node that
-- was not measured yet counts as fast, so it is soon measured.
function strategies.peak_ewma(_, nodes)
  return cheapest(nodes, function(node)
    return (node.ewma_ms + 0.01) * (node.inflight + node.queued + 1) / node.weight
  end), "soonest to answer"
end

-- Keeps the primary free for writes: READS_FOR_REPLICAS of ten reads go to replicas.
function strategies.read_replica(req, nodes)
  if not req.reads then
    return primary_of(nodes) or swrr(nodes), "write"
  end
  local replicas = keep(nodes, is_replica)
  local primary = primary_of(nodes)
  if #replicas > 0 and (not primary or random() * 10 < READS_FOR_REPLICAS) then
    return swrr(replicas), "read for a replica"
  end
  return primary or swrr(nodes), "read for the primary"
end

-- Each collection has a home, so that every server keeps few indexes in memory.
function strategies.collection_affinity(req, nodes)
  if req.collection == "" then
    return swrr(nodes), "no collection, next in turn"
  end
  return home_of(req.collection, nodes), "home of the collection"
end

-- Each client (or X-Chromux-Session) stays with one node.
function strategies.sticky(req, nodes)
  return home_of(req.session, nodes), "home of the session"
end

-- ---- the question -------------------------------------------------------------------------------

local strategy = strategies[lb.settings.LOAD_BALANCE_STRATEGY]

-- A retry goes where the request has not been yet, if there is such a node.
function M.route(req, nodes)
  if req.attempt > 1 then
    local fresh = keep(nodes, function(node)
      return not req.tried[node.name]
    end)
    if #fresh > 0 then
      nodes = fresh
    end
  end
  local node, reason = strategy(req, spared(nodes))
  return node.name, reason
end

return M
