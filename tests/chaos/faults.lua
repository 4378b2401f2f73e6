-- faults.lua: the faults of a round: which, when and for how long, all of it decided by the seed beforehand. Pure;
-- nemesis.lua plays it.
local damage = require("damage")

local M = {}

-- name -> {target=, kind=, least=, most=: seconds until it is undone; who=: of whom it depends on the moment, see
-- nemesis.lua}
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

local function sorted_names(faults)
  local out = {}
  for name in pairs(faults) do out[#out + 1] = name end
  table.sort(out)
  return out
end

M.names = sorted_names(M.faults)
M.names[#M.names + 1] = "wrap" -- in some rounds the servers are reached through wrap.c
M.names[#M.names + 1] = "step" -- in some rounds chromux dies or stands still at a named step (core/fault.h)

-- Where there are workers.
local SYNC = {
  -- The data of a server: deleted, or replaced by what it was when the fault began.
  wipe_primary = { target = "primary", kind = "wipe", least = 0.05, most = 1.5 },
  wipe_replica = { target = "replica", kind = "wipe", least = 0.05, most = 1.5 },
  old_backup_primary = { target = "primary", kind = "old_backup", least = 2, most = 3 },
  old_backup_replica = { target = "replica", kind = "old_backup", least = 2, most = 3 },
  worker_kill_1 = { target = "worker1", kind = "kill", least = 0, most = 1 },
  worker_kill_2 = { target = "worker2", kind = "kill", least = 0, most = 1 },
  -- Past its lease, and past the time for which others wait because of what it may yet send.
  worker_stop_1 = { target = "worker1", kind = "pause", least = 2.2, most = 6 },
  worker_stop_2 = { target = "worker2", kind = "pause", least = 2.2, most = 6 },
  coordinator_kill = { who = "coordinator", kind = "kill", least = 0, most = 1 },
  -- While something is made anew.
  source_kill = { who = "source", kind = "kill", least = 0.05, most = 1.5 },
  target_kill = { who = "target", kind = "kill", least = 0.05, most = 1.5 },
  busy_worker_kill = { who = "worker", kind = "kill", least = 0, most = 1 },
  busy_worker_stop = { who = "worker", kind = "pause", least = 2.2, most = 6 },
  rebuild_balancer_kill = { who = "balancer", kind = "kill", least = 0, most = 0.5 },
  rebuild_postgres_kill = { who = "postgres", kind = "quit", least = 0, most = 1.5 },
}
M.sync_names = sorted_names(SYNC)
for name, fault in pairs(SYNC) do M.faults[name] = fault end
for _, name in ipairs { "kill_chromux", "kill_second", "pause_chromux", "pause_second", "break_primary",
  "break_replica", "kill_postgres", "kill_primary", "kill_replica", "step" } do
  M.sync_names[#M.sync_names + 1] = name
end

-- ---- named steps (core/fault.h) ---------------------------------------------------------------------------

-- The fault points that PROTOCOL.md names: each is met in a long run. A group passes `group.sent` where a single entry
-- passes `send.sent`, and a verdict `failed` passes `failed.recorded` where others pass `verdict.committed_unanswered`.
M.protocol = {
  "append.before_commit", "append.committed_unanswered", "append.delayed_commit", "resolve.read", "resolve.recorded",
  "send.after_lease_check", "send.before_last_byte", "send.sent", "recv.2xx_before_decision",
  "recv.4xx_before_decision", "decision.before_commit", "verdict.committed_unanswered", "answer.before",
  "position.before", "position.after", "position.delayed_update", "group.sent", "group.refused_unwinding",
  "doubt.next_copy_chosen", "drain.late_answer", "drain.cap", "settle.begin", "settle.end", "failed.first_copy",
  "failed.recorded", "reconcile.deleted_not_added", "lease.renew_lost", "lease.expired_unaware",
  "takeover.before_load", "fenced.answering", "create.sent", "create.answered_unmapped", "create.by_name_found",
  "delete.renamed_not_deleted", "ghost.found", "rebuild.temp_created", "rebuild.pass1", "rebuild.hold_taken",
  "rebuild.hold_expired", "rebuild.copied_not_swapped", "rebuild.swapped_old_alive", "admit.witness_old",
  "admit.marked_not_stamped", "trim.before", "notify.lost", "pg.rolled_back",
}

-- What these say happens only when it is made to: passing by is no hit of them. seconds: of what is late or stands
-- still; again: so many hits in a row; two: there must be two balancers.
M.made = {
  ["append.delayed_commit"] = { one_of = 20, what = "make", seconds = 3 },
  ["position.delayed_update"] = { one_of = 20, what = "delay", seconds = 3 },
  ["lease.renew_lost"] = { one_of = 6, what = "make", again = 6 },
  ["notify.lost"] = { one_of = 20, what = "make", again = 2, two = true },
  ["pg.rolled_back"] = { one_of = 40, what = "make", again = 3 },
  ["drain.begin"] = { one_of = 1, what = "make", seconds = 0.6, again = 6 }, -- how long a drain may be: drain.cap
}
local MADE = sorted_names(M.made)

-- Where chromux is killed or stands still, in any round: name -> one of so many hits.
local STEPS = {
  ["append.before_commit"] = 60, ["append.committed_unanswered"] = 60, ["resolve.read"] = 6,
  ["resolve.recorded"] = 6, ["send.after_lease_check"] = 100, ["send.before_last_byte"] = 100, ["send.sent"] = 60,
  ["recv.2xx_before_decision"] = 60, ["recv.4xx_before_decision"] = 3, ["decision.before_commit"] = 60,
  ["verdict.committed_unanswered"] = 60, ["answer.before"] = 60, ["position.before"] = 60, ["position.after"] = 60,
  ["group.sent"] = 6, ["group.refused_unwinding"] = 1, ["doubt.next_copy_chosen"] = 1, ["drain.late_answer"] = 1,
  ["drain.cap"] = 1, ["settle.begin"] = 3, ["settle.end"] = 3, ["lease.expired_unaware"] = 10,
  ["takeover.before_load"] = 2, ["fenced.answering"] = 1, ["create.sent"] = 6, ["create.answered_unmapped"] = 6,
  ["create.by_name_found"] = 1, ["delete.renamed_not_deleted"] = 3, ["trim.before"] = 3,
}
M.steps = sorted_names(STEPS)
-- What else has to happen for these to be met.
local BEFORE = { ["drain.cap"] = "drain.begin=*:make:0.3," }
-- Between the look at the clock and send() nothing protects (PROTOCOL.md, what cannot be guaranteed): no longer than
-- what is left of a lease, and a successor's settling, make up for.
local LONGEST = { ["send.after_lease_check"] = 1.2 }

-- Those of a round in which both servers refuse chosen entries (poison_plans()).
M.poison_steps = { "failed.first_copy", "failed.recorded", "ghost.found", "group.refused_unwinding",
  "create.by_name_found" }

-- Those of making copies anew: of the holder of the journal's lease, and of workers. {step, one of so many hits, what
-- else has to happen for it to be met: so much is written meanwhile that workers have to catch up}
local SLOWLY = "sync.added=1:pause:1.2,sync.added=2:pause:1.2,sync.added=3:pause:1.2,sync.added=4:pause:1.2,"
M.holder_steps = {
  { "rebuild.recorded", 4 }, { "rebuild.temp_created", 4 }, { "rebuild.hold_taken", 4 },
  { "rebuild.copied_not_swapped", 4 }, { "rebuild.swapped_old_alive", 4 }, { "reconcile.deleted_not_added", 2 },
  { "rebuild.hold_expired", 1, "rebuild.hold_taken=1:delay:0.3,rebuild.hold_taken=3:delay:0.3," },
  { "admit.witness_old", 1 }, { "admit.marked_not_stamped", 1 },
}
M.pass1 = { "rebuild.pass1", 3 } -- the only one of PROTOCOL.md that is a worker's
M.worker_steps = {
  { "sync.claimed", 12 }, { "sync.read", 8 }, { "sync.added", 8 }, { "sync.done_not_reported", 12 },
  { "sync.reported", 12 }, { "sync.begun_not_recorded", 3 }, { "sync.chunked", 5 }, M.pass1,
  { "sync.finished_not_recorded", 2 }, { "sync.deleted_not_added", 1, SLOWLY }, { "sync.confirmed_not_recorded", 1 },
}

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

local LOSSES = { "^break_", "^wipe_", "^old_backup_" }

local function loses_data(name)
  for _, pattern in ipairs(LOSSES) do
    if name:find(pattern) then return true end
  end
  return false
end

-- Puts a fault into the plan if its target is free then.
local function place(rng, plan, busy, name, at)
  local f = M.faults[name] or error("unknown fault " .. name)
  local until_ = at + f.least + rng:unit() ^ 2 * (f.most - f.least)
  local whom = f.target or f.who
  for _, b in ipairs(busy[whom] or {}) do
    if until_ + 0.3 >= b.at and at <= b.until_ + 0.3 then return end
  end
  local one = { at = at, until_ = until_, name = name, target = f.target, who = f.who, kind = f.kind }
  if f.kind == "break" then one.how, one.dice = rng:pick(damage.kinds), rng:unit() end
  if f.who then one.dice = rng:unit() end
  plan[#plan + 1] = one
  busy[whom] = busy[whom] or {}
  table.insert(busy[whom], one)
end

local function in_order(plan)
  table.sort(plan, function(a, b) return a.at < b.at end)
  return plan
end

-- Without kills of the server from which the broken one is to be healed: where files are written often, a kill breaks
-- files as well, and what is broken on both is lost.
local function spare_source(names, broken)
  local other = broken:find("primary") and "replica" or "primary"
  return M.without(M.without(names, "kill_" .. other), "source_kill")
end

-- {{at=, until_=, name=, target=, who=, kind=}, ...} in the order of their beginnings; at most one at a time per
-- target. healing: what is broken has to be whole in the end.
function M.schedule(rng, names, seconds, healing)
  local plan, busy, broken = {}, {}, nil
  names = M.without(M.without(names, "wrap"), "step")
  local breaks = M.only(names, "break")
  if #breaks > 0 then
    -- One server's files at most: what is broken on both is lost.
    broken = rng:pick(breaks)
    names = M.without(names, "break")
    if healing then names = spare_source(names, broken) end
    names[#names + 1] = broken
  end
  for i = 1, #names > 0 and rng:int(2, 6) or 0 do
    local name = i == 1 and broken or rng:pick(names)
    local at = rng:unit() * seconds
    if name:find("break") then at = seconds * (0.3 + 0.5 * rng:unit()) end -- once there are files
    -- Often close to another: overlaps are what breaks protocols.
    if #plan > 0 and rng:chance(0.5) then at = math.max(0, rng:pick(plan).at + (rng:unit() - 0.3) * 0.8) end
    place(rng, plan, busy, name, at)
  end
  return in_order(plan)
end

-- The same where there are workers: first one server loses data, which the workers are to make good, then others come,
-- most of them while they do.
function M.schedule_sync(rng, names, seconds)
  local plan, busy, losses, others = {}, {}, {}, {}
  for _, name in ipairs(M.without(M.without(names, "wrap"), "step")) do
    table.insert(loses_data(name) and losses or others, name)
  end
  if #losses > 0 then place(rng, plan, busy, rng:pick(losses), seconds * (0.1 + 0.25 * rng:unit())) end
  if plan[1] and plan[1].kind == "break" then others = spare_source(others, plan[1].name) end
  local lost = plan[1] and plan[1].until_ or 0
  -- Once more, perhaps while it is made good.
  if plan[1] and plan[1].kind == "wipe" and rng:chance(0.4) then
    place(rng, plan, busy, plan[1].name, lost + 0.5 + 2.5 * rng:unit())
  end
  for _ = 1, #others > 0 and rng:int(1, 4) or 0 do
    local name = rng:pick(others)
    local at = M.faults[name].who and lost + rng:unit() or rng:unit() * seconds
    place(rng, plan, busy, name, at)
  end
  return in_order(plan)
end

local function what_happens(rng, longest)
  return rng:chance(0.7) and "kill" or string.format("pause:%.2f", 0.2 + rng:unit() * longest)
end

-- One thing that is made to happen: part of FAULT_POINTS.
local function made_part(rng, name)
  local m, parts = M.made[name], {}
  local first = rng:int(1, m.one_of)
  local what = m.seconds and string.format("%s:%.2f", m.what, 0.1 + rng:unit() * m.seconds) or m.what
  for i = 1, rng:int(1, m.again or 1) do parts[i] = string.format("%s=%d:%s", name, first + i - 1, what) end
  return table.concat(parts, ",")
end

local function step_part(rng, name)
  return string.format("%s%s=%d:%s", BEFORE[name] or "", name, rng:int(1, STEPS[name] or 1),
    what_happens(rng, LONGEST[name] or 3.5))
end

-- FAULT_POINTS for each start of chromux in turn: it dies or stands still, first at the one of `first` whose turn it
-- is.
function M.step_plan(rng, first, turn)
  local out = {}
  for i = 1, rng:int(1, 3) do
    local parts = {}
    for j = 1, rng:int(1, 2) do
      parts[j] = step_part(rng, i + j == 2 and first[turn % #first + 1] or rng:pick(M.steps))
    end
    out[i] = table.concat(parts, ",")
  end
  return out
end

-- FAULT_POINTS for each start, or nil: with this part in each, or in the only one.
function M.with(steps, part)
  local out = {}
  for i, points in ipairs(steps or { false }) do out[i] = points and points .. "," .. part or part end
  return out
end

-- What else is made to happen in all these starts, or in the only one, in turn. steps: FAULT_POINTS for each, or nil
function M.make_things_happen(rng, steps, balancers, turn)
  local out, names = steps or { false }, {}
  for _, name in ipairs(MADE) do
    if balancers > 1 or not M.made[name].two then names[#names + 1] = name end
  end
  for i, points in ipairs(out) do
    local part = made_part(rng, names[(turn + i) % #names + 1])
    out[i] = points and points .. "," .. part or part
  end
  return out
end

-- Does a plan have the step?
function M.has_step(plan, name) return plan ~= nil and table.concat(plan, ","):find(name, 1, true) ~= nil end

-- One of these steps in turn, at the first start; and whether nothing else may come in its way.
function M.sync_step_plan(rng, steps, turn)
  local step = steps[turn % #steps + 1]
  return { string.format("%s%s=%d:%s", step[3] or "", step[1], rng:int(1, step[2]),
    what_happens(rng, 5.5)) }, step[3] == SLOWLY
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

-- Two plans, in which entries of some marks are the ones that misbehave: both servers answer 5xx to the same record
-- entry, again and again, having applied it or not; and one ends the connection after an operation of the catalogue
-- that the other refuses. Late answers make others wait, who then go as groups.
function M.poison_plans(rng)
  local one, other = {}, {}
  for u = 12, 250 do
    if rng:chance(0.1) then
      for _, plan in ipairs { one, other } do
        plan[#plan + 1] = string.format("4 %s 0 u%d of", rng:chance(0.7) and "refuse" or "500", u)
      end
    elseif rng:chance(0.6) then
      local cut, reject = '1 cut 0 "u":"u' .. u .. '"', '1 reject 0 "u":"u' .. u .. '"'
      if rng:chance(0.2) then cut, reject = reject, cut end
      one[#one + 1], other[#other + 1] = cut, reject
    end
  end
  for n = 10, 400, 10 do
    for _, plan in ipairs { one, other } do
      local seconds = rng:chance(0.25) and 1.5 + rng:unit() or 0.1 + rng:unit() * 0.7
      plan[#plan + 1] = string.format("%d late %.2f", n + rng:int(1, 9), seconds)
    end
  end
  return table.concat(one, "\n") .. "\n", table.concat(other, "\n") .. "\n"
end

function M.describe(plan)
  local out = {}
  for i, f in ipairs(plan) do
    out[i] = f.missed and f.name .. " (missed)" or string.format("%s@%.2f-%.2f", f.name, f.at, f.until_)
  end
  return table.concat(out, " ")
end

return M
