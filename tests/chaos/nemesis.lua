-- nemesis.lua: the faults of a round: which, when and for how long, all of it decided by the seed beforehand.
local damage = require("damage")
local process = require("process")

local M = {}

-- name -> {target=, kind=, least=, most=: seconds until it is undone}
M.faults = {
  kill_primary = { target = "primary", kind = "kill", least = 0.05, most = 2.5 },
  kill_replica = { target = "replica", kind = "kill", least = 0.05, most = 2.5 },
  pause_primary = { target = "primary", kind = "pause", least = 0.1, most = 3.5 },
  pause_replica = { target = "replica", kind = "pause", least = 0.1, most = 3.5 },
  kill_chromux = { target = "chromux", kind = "kill", least = 0, most = 0.5 },
  pause_chromux = { target = "chromux", kind = "pause", least = 0.1, most = 4 },
  -- The second balancer, where there are two. LEASE_TIMEOUT is 2 s.
  kill_second = { target = "second", kind = "kill", least = 0, most = 3 },
  pause_second = { target = "second", kind = "pause", least = 0.5, most = 5 },
  kill_postgres = { target = "postgres", kind = "quit", least = 0, most = 1.5 },
  -- Killed, and the files of a collection are damaged before it starts again.
  break_primary = { target = "primary", kind = "break", least = 0.05, most = 2 },
  break_replica = { target = "replica", kind = "break", least = 0.05, most = 2 },
}
M.names = {}
for name in pairs(M.faults) do M.names[#M.names + 1] = name end
table.sort(M.names)
M.names[#M.names + 1] = "wrap" -- in some rounds the servers are reached through wrap.c
M.names[#M.names + 1] = "step" -- in some rounds chromux dies or stands still at a named step (core/fault.h)

-- The steps that the journal has now; each must be met in a long run.
M.steps = {
  "append.before_commit", "append.committed_unanswered", "send.sent", "resolve.read", "resolve.recorded",
  "decision.before_commit", "verdict.committed_unanswered", "answer.before", "recv.2xx_before_decision",
  "recv.4xx_before_decision", "settle.begin", "settle.end", "create.sent", "create.answered_unmapped",
  "create.by_name_found", "delete.renamed_not_deleted", "lease.expired_unaware", "takeover.before_load",
  "fenced.answering",
}
local RARE = { ["resolve.read"] = 12, ["resolve.recorded"] = 12, ["recv.4xx_before_decision"] = 8, ["settle.begin"] = 3,
  ["settle.end"] = 3, ["create.sent"] = 6, ["create.answered_unmapped"] = 6, ["create.by_name_found"] = 1,
  ["delete.renamed_not_deleted"] = 3, ["lease.expired_unaware"] = 10, ["takeover.before_load"] = 2,
  ["fenced.answering"] = 1 }

function M.without(names, pattern)
  local out = {}
  for _, name in ipairs(names) do if not name:find(pattern) then out[#out + 1] = name end end
  return out
end

function M.only(names, pattern)
  local out = {}
  for _, name in ipairs(names) do if name:find(pattern) then out[#out + 1] = name end end
  return out
end

-- {{at=, until_=, name=, target=, kind=}, ...} in the order of their beginnings; at most one at a time per target.
function M.schedule(rng, names, seconds)
  local plan, busy, broken = {}, {}, nil
  names = M.without(M.without(names, "wrap"), "step")
  local breaks = M.only(names, "break")
  if #breaks > 0 then
    -- One server's files at most: what is broken on both is lost.
    broken = rng:pick(breaks)
    names = M.without(names, "break")
    names[#names + 1] = broken
  end
  for i = 1, #names > 0 and rng:int(2, 6) or 0 do
    local name = i == 1 and broken or rng:pick(names)
    local f = M.faults[name] or error("unknown fault " .. name)
    local at = rng:unit() * seconds
    if f.kind == "break" then at = seconds * (0.3 + 0.5 * rng:unit()) end -- once there are files
    -- Often close to another: overlaps are what breaks protocols.
    if #plan > 0 and rng:chance(0.5) then at = math.max(0, rng:pick(plan).at + (rng:unit() - 0.3) * 0.8) end
    local until_ = at + f.least + rng:unit() ^ 2 * (f.most - f.least)
    local free = true
    for _, b in ipairs(busy[f.target] or {}) do free = free and (until_ + 0.3 < b.at or at > b.until_ + 0.3) end
    if free then
      local one = { at = at, until_ = until_, name = name, target = f.target, kind = f.kind }
      if f.kind == "break" then one.how, one.dice = rng:pick(damage.kinds), rng:unit() end
      plan[#plan + 1] = one
      busy[f.target] = busy[f.target] or {}
      table.insert(busy[f.target], one)
    end
  end
  table.sort(plan, function(a, b) return a.at < b.at end)
  return plan
end

-- FAULT_POINTS for each start of chromux in turn.
function M.step_plan(rng)
  local out = {}
  for i = 1, rng:int(1, 3) do
    local parts = {}
    for j = 1, rng:int(1, 2) do
      local name = rng:pick(M.steps)
      parts[j] = string.format("%s=%d:%s", name, rng:int(1, RARE[name] or 150),
        rng:chance(0.7) and "kill" or string.format("pause:%.2f", 0.2 + rng:unit() * 3.5))
    end
    out[i] = table.concat(parts, ",")
  end
  return out
end

-- The lines of a plan for wrap.c: now and then a write, in bursts.
function M.wrap_plan(rng)
  local out, n = {}, 0
  while n < 600 do
    n = n + (rng:chance(0.3) and 1 or rng:int(2, 80))
    local what = rng:pick { "500", "500", "refuse", "late", "cut" }
    out[#out + 1] = string.format("%d %s %.2f", n, what, what == "late" and 0.2 + rng:unit() * 2.5 or 0)
  end
  return table.concat(out, "\n") .. "\n"
end

function M.describe(plan)
  local out = {}
  for i, f in ipairs(plan) do out[i] = string.format("%s@%.2f-%.2f", f.name, f.at, f.until_) end
  return table.concat(out, " ")
end

local function apply(stage, f, note)
  local p = stage[f.target]
  p.held = true
  if f.kind == "pause" then p:pause()
  elseif f.kind == "quit" then p:kill(process.QUIT)
  else p:kill(process.KILL) end
  if f.kind ~= "break" then return end
  local broken = stage.broken[f.target]
  local id = damage.inflict(stage.dir .. "/" .. f.target, f.how, f.dice, broken)
  if id then broken[id] = f.how end
  note(f, f.how .. " of " .. tostring(id))
end

local function undo(stage, f)
  local p = stage[f.target]
  if f.kind == "pause" then p:resume() elseif p:ended() then p:start() end
  p.held = false
end

-- Starts chromux again whenever it has died by itself, with the next of the steps; until over().
function M.watch(stage, steps, over, note)
  local at = {}
  while not over() do
    stage:revive(function(p)
      note({ name = "step" }, p.name .. " died")
      at[p] = (at[p] or 1) + 1
      p.env.FAULT_POINTS = steps[at[p]] or false
      sleep(0.05 * at[p])
      return not p.held and p:ended()
    end)
    sleep(0.02)
  end
end

-- Plays the plan from now on and returns when the last fault is undone.
function M.play(stage, plan, note)
  local began, tasks = now(), {}
  for i, f in ipairs(plan) do
    tasks[i] = spawn(function()
      sleep(math.max(0, began + f.at - now()))
      note(f, "begins")
      apply(stage, f, note)
      sleep(math.max(0, began + f.until_ - now()))
      undo(stage, f)
      note(f, "ends")
    end)
  end
  for _, t in ipairs(tasks) do assert(t:wait()) end
end

return M
