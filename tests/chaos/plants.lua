-- plants.lua: is the history checker any good? Each bug of bugs.lua is planted into the real program, and must be
-- found within SEEDS rounds: by a finding that is this bug's, in a round that is clean without the bug.
--
--   find(name, s) -> passed, failed    name: of a bug, or "all"
--       s: {play(seed, {name=what its folder's name ends with, round=, bug=}) -> violations, say(format, ...), now()}
local Faults = require("faults")
local Rng = require("rng")
local bugs = require("bugs")

local M = {}

local SEEDS = 20

-- ---- what a bug needs to be met --------------------------------------------------------------------------

-- {name, from, to}: faults of faults.lua, each about then.
local function plan(rng, list)
  local out = {}
  for i, f in ipairs(list) do
    local fault, shift = Faults.faults[f[1]], 0.2 * rng:unit()
    out[i] = { name = f[1], target = fault.target, kind = fault.kind, at = f[2] + shift, until_ = f[3] + shift }
  end
  return out
end

-- A plan for wrap.c: of some of the first writes of records it does that to the first `times` requests. A seed's are
-- always the same ones.
local function marked(seed, times, what)
  local out, mark, rng = {}, 0, Rng.new(seed, "marks")
  for i = 1, 20 do
    mark = mark + rng:int(6, 14)
    out[i] = string.format("%d %s u%d of\n", times, what, mark)
  end
  return table.concat(out)
end

-- Another: many are answered with an error and not done, whatever they are.
local function refusals(rng)
  local out, at = {}, 0
  for i = 1, 80 do
    at = at + rng:int(2, 8)
    out[i] = at .. " refuse\n"
  end
  return table.concat(out)
end

-- name of the bug -> {finding=pattern of it, round=function(rng, seed) -> a round as round_of() of run.lua makes it;
--   besides clients=, think=, most=, seconds=: in place of what other rounds have, settings=of chromux, rebuilds=copies
--   that may be set aside, rest=seconds until what does not come to rest is judged nevertheless}
local NEEDS = {
  -- Many writes of which the commit is under way when chromux dies.
  ["answer before the append commits"] = { finding = "^lost: .* is not in the journal$", round = function(rng)
    return { clients = 14, think = 0.004, seconds = 3, plan = plan(rng, { { "kill_chromux", 0.7, 0.7 },
      { "kill_chromux", 1.5, 1.5 }, { "kill_chromux", 2.3, 2.3 } }) }
  end },
  -- A server dies under a request, and chromux before it is back.
  ["position before the answer"] = { finding = "^diverged: ", round = function(rng)
    return { clients = 10, think = 0.004, seconds = 3.5, plan = plan(rng, { { "kill_replica", 0.6, 1.5 },
      { "kill_chromux", 1.0, 1.0 }, { "kill_primary", 2.2, 3.1 }, { "kill_chromux", 2.6, 2.6 } }) }
  end },
  -- Any follower; wrap.c tells what it is sent.
  ["filter delete replayed as a filter"] = { finding = "^filter sent: ", round = function()
    return { seconds = 1.5, think = 0.01, plan = {}, wraps = { primary = "", replica = "" } }
  end },
  -- What the primary has done without saying so is refused by the replica, after a while in which it can be read.
  ["in-doubt copy readable"] = { finding = "^unknown state: ", round = function(_, seed)
    return { clients = 20, seconds = 4, rebuilds = 99, plan = {}, settings = { TRY_TIMEOUT = "3" },
      wraps = { primary = marked(seed, 1, "500 0"), replica = marked(seed, 9, "reject 1.2") } }
  end },
  -- What the primary refuses the replica would take.
  ["rejected entry replayed"] = { finding = "^rebuild: .* applied entry %d+, which is rej", round = function(_, seed)
    return { seconds = 1.5, think = 0.01, plan = {},
      wraps = { primary = marked(seed, 9, "reject 0"), replica = "" } }
  end },
  -- A replica that comes when others wait behind it.
  ["lane order swapped"] = { finding = "^diverged: ", round = function(rng)
    return { clients = 4, think = 0.01, seconds = 2, rest = 1, settings = { REQUEST_TIMEOUT = "2" },
      plan = plan(rng, { { "pause_replica", 0.2, 1.0 } }) }
  end },
  -- A holder that does not come to renew its lease until another has taken it. Each of its clients waits from its next
  -- write on: so they are many, and come slowly.
  ["epoch not checked"] = { finding = "^old holder: ", round = function(rng)
    return { balancers = 2, clients = 40, think = 1.5, seconds = 4, plan = {},
      steps = { string.format("lease.expired_unaware=3:delay:%.2f", 3.2 + 0.5 * rng:unit()) } }
  end },
  -- Requests of several entries, as ids that seldom meet allow, that get no definite answer.
  ["group resent out of order"] = { finding = "^diverged: ", round = function(rng)
    return { clients = 14, think = 0.002, favour = 0.9, most = 400, seconds = 2, rest = 1, plan = {},
      settings = { REQUEST_TIMEOUT = "2" }, wraps = { primary = refusals(rng), replica = refusals(rng) } }
  end },
}

local function round_for(bug, seed)
  local round = NEEDS[bug.name].round(Rng.new(seed, bug.name), seed)
  round.kind, round.balancers, round.workers = "journal", round.balancers or 1, 0
  return round
end

-- ---- finding them ----------------------------------------------------------------------------------------

local function folder(bug) return "-" .. bug.name:gsub("%W", "-") end

local function first_that(violations, pattern)
  for _, text in ipairs(violations) do
    if text:find(pattern) then return text end
  end
end

-- seed, finding | nil, what was found instead
local function find_one(bug, play)
  local instead
  for seed = 1, SEEDS do
    local violations = play(seed, { name = folder(bug), round = round_for(bug, seed), bug = bug })
    local finding = first_that(violations, NEEDS[bug.name].finding)
    if finding then return seed, finding end
    instead = violations[1] or instead
  end
  return nil, instead
end

-- Looks for the bug of this name, or for all of them.
function M.find(name, s)
  local passed, failed = 0, 0
  for _, bug in ipairs(bugs) do
    if name == "all" or name == bug.name then
      local began = s.now()
      local seed, what = find_one(bug, s.play)
      local took, problem = s.now() - began
      if not seed then
        problem = string.format("not found in %d rounds; %s", SEEDS, what or "nothing was")
      else
        local round = round_for(bug, seed)
        round.rest = nil
        problem = s.play(seed, { name = folder(bug) .. "-clean", round = round })[1]
        problem = problem and "seed " .. seed .. " is not clean without it: " .. problem
      end
      if problem then failed = failed + 1 else passed = passed + 1 end
      s.say("%s %s: %s", problem and "MISSED" or "ok", bug.name,
        problem or string.format("seed %d, %.1f s, clean without in %.1f s: %s", seed, took, s.now() - began - took,
          what:sub(1, 240)))
    end
  end
  return passed, failed
end

return M
