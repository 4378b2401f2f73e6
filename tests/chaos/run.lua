-- run.lua: the history checker. Each round plays a seeded schedule of faults on real servers under clients that
-- record everything, waits until the journal has come to rest, and judges what happened (check.lua).
--
--   build/chromux script tests/chaos/run.lua [--kind journal|sync] [--rounds N] [--seed S] [--faults a,b|none]
--       [--clients N] [--seconds N] [--balancers 1|2] [--workers N] [--chromux PATH] [--keep: folders of rounds]
--       [--rebuilds N: copies to be made anew that a round without workers may end with]
--       [--plant NAME|all: instead of rounds, is this bug of bugs.lua found? (plants.lua)]
--
-- Without --faults each round has those of its kind: of journal's every fifth damages a server's files, every tenth is
-- one of sync's, and in every tenth both servers misbehave for the same entries; of sync's nearly all wipe a server,
-- damage its files or give it an old backup. In those there are two workers unless --workers says otherwise. Without
-- --balancers every fourth round has two.
--
-- In the end it says how often each named step of the protocol (core/fault.h) was met; in a long run each must be.
--
-- A round with workers has to end with every copy whole; then records are changed behind chromux's back, and exactly
-- these must be repaired (heal.lua).
--
-- A round's seed is the first one's plus its number. A failing round's folder with all logs and the recorded
-- operations stays.
package.path = (arg[0]:match("^(.*)/[^/]*$") or ".") .. "/?.lua;" .. package.path
local process = require("process")

local options = { kind = "journal", rounds = 10, seed = nil, balancers = nil, workers = nil, faults = nil, clients = 6,
  seconds = nil, rebuilds = 0,
  chromux = "build/chromux", keep = false, shown = 12 }
do
  local i = 1
  while arg[i] do
    local name = arg[i]:match("^%-%-(%a+)$")
    if name == "keep" then
      options.keep = true
    elseif name and arg[i + 1] then
      options[name] = tonumber(arg[i + 1]) or arg[i + 1]
      i = i + 1
    else
      io.stderr:write("what does " .. arg[i] .. " mean?\n")
      os.exit(2)
    end
    i = i + 1
  end
end

-- The runtime's PostgreSQL is the one of its environment: this program starts itself again with that.
if not os.getenv("CHAOS_DIR") then
  local dir = process.temporary()
  local pg_dir = dir .. "/pg"
  os.execute("chmod 711 " .. dir)
  local url = process.output("scripts/pg.sh url " .. pg_dir)
  local argv = { "chromux", "script", arg[0] }
  for _, a in ipairs(arg) do argv[#argv + 1] = a end
  process.again({ CHAOS_DIR = dir, CHAOS_PG = pg_dir, DATABASE_URL = url, LC_ALL = "C.UTF-8" }, argv)
end

local Rng = require("rng")
local Stage = require("stage")
local Clients = require("clients")
local Faults = require("faults")
local Nemesis = require("nemesis")
local History = require("history")
local Check = require("check")
local CheckSync = require("check_sync")
local Heal = require("heal")
local Plants = require("plants")

local root = os.getenv("CHAOS_DIR")
local postgres -- one for all rounds
options.seconds = options.seconds or options.kind == "sync" and 7 or 5
local first_seed = options.seed or os.time() % 1000000
local function say(...)
  io.stdout:write(string.format(...), "\n")
  io.stdout:flush()
end

-- What kind of round a seed is: "journal", "sync" (a server loses what it has, and workers make it good) or "poison"
-- (both servers misbehave for the same entries: what that leaves is made good by workers).
local function kind_of(seed)
  if options.kind == "sync" or options.faults then return options.kind end
  return seed % 10 == 1 and "sync" or seed % 10 == 6 and "poison" or "journal"
end

local function fault_names(seed, kind)
  if not options.faults and kind == "sync" then return Faults.sync_names end
  if not options.faults and kind == "poison" then
    return Faults.without(Faults.without(Faults.without(Faults.names, "break"), "primary"), "replica")
  end
  if not options.faults then
    return seed % 5 == 4 and Faults.without(Faults.names, "wrap") or Faults.without(Faults.names, "break")
  end
  local out = {}
  for name in tostring(options.faults):gmatch("[^,]+") do out[#out + 1] = name ~= "none" and name or nil end
  return out
end

local function has(names, pattern) return #Faults.only(names, pattern) > 0 end

-- The steps of a round with workers that make copies anew.
local function sync_steps(round, rng, seed, stepped)
  if options.kind ~= "sync" then -- few such rounds among others: steps of PROTOCOL.md in turn
    local turn = math.floor(seed / 10)
    round.favour, round.stepped_workers, round.longer = 0.5, 2, 0
    if turn % 10 == 0 then
      round.worker_steps = Faults.sync_step_plan(rng, { Faults.pass1 }, 0)
    else
      round.steps = Faults.sync_step_plan(rng, Faults.holder_steps, turn)
    end
    return false
  end
  local calm
  round.worker_steps, calm = Faults.sync_step_plan(rng, Faults.worker_steps, seed)
  round.favour = calm and 0.9 or 0.5
  round.stepped_workers = calm and round.workers or rng:int(1, round.workers)
  round.longer = calm and 6 or 0
  if stepped and not calm then round.steps = Faults.sync_step_plan(rng, Faults.holder_steps, seed) end
  if not (stepped or calm) and rng:chance(0.5) then round.worker_steps = nil end
  return calm
end

-- What a round is, all by its seed: {kind=, balancers=, workers=, plan=, wraps=, steps=, worker_steps=,
-- stepped_workers=, favour=: of Clients, longer=: seconds for which clients go on, threshold=: after so many writes
-- Chroma keeps vectors in files, settings=: of chromux}
local function round_of(seed)
  local kind = kind_of(seed)
  local names, rng = fault_names(seed, kind), Rng.new(seed, "wraps")
  local round = { kind = kind, balancers = options.balancers or seed % 4 == 3 and 2 or 1, settings = {} }
  if round.balancers == 1 then names = Faults.without(names, "second") end
  if kind == "poison" then
    round.wraps, round.favour = {}, 0.7
    round.wraps.primary, round.wraps.replica = Faults.poison_plans(rng)
  elseif has(names, "wrap") and (#names == 1 or rng:chance(0.4)) then
    round.wraps = { primary = Faults.wrap_plan(rng), replica = Faults.wrap_plan(rng) }
    -- Behind a wrapper an end of the server looks like an end of its connections.
    names = Faults.without(Faults.without(names, "primary"), "replica")
  end
  round.workers = options.workers or (kind ~= "journal" or has(names, "break")) and 2 or 0
  if round.workers < 2 then names = Faults.without(names, "_2$") end
  local stepped = has(names, "step") and (#names == 1 or rng:chance(0.5))
  if kind == "sync" then
    local calm = sync_steps(round, rng, seed, stepped)
    if calm then names = { "wipe_primary", "wipe_replica" } end
  elseif stepped then
    round.steps = Faults.step_plan(rng, kind == "poison" and Faults.poison_steps or Faults.steps,
      kind == "poison" and math.floor(seed / 10) or seed)
  end
  if options.kind == "journal" and has(names, "step") and rng:chance(0.4 * round.balancers) then
    round.steps = Faults.make_things_happen(rng, round.steps, round.balancers,
      math.floor(seed / 4))
  end
  if kind == "poison" then round.steps = Faults.with(round.steps, "drain.begin=*:make:0.3") end
  if options.kind == "journal" and (rng:chance(0.2) or Faults.has_step(round.steps, "trim.before")) then
    round.settings.JOURNAL_KEEP = "1"
  end
  local schedule = kind == "sync" and Faults.schedule_sync or Faults.schedule
  round.plan = schedule(Rng.new(seed, "faults"), names, options.seconds, round.workers > 0)
  for _, f in ipairs(round.plan) do
    if f.kind == "break" then round.threshold = 5 end
  end
  return round
end

local function tally(ops)
  local t = { ack = 0, reject = 0, not_kept = 0, kept = 0, unknown = 0, reads = 0, failed_reads = 0 }
  for _, op in ipairs(ops) do
    if op.class ~= "read" then
      local outcome = op.outcome or "unknown" -- the round broke off before the answer
      t[outcome] = t[outcome] + 1
    else
      t.reads = t.reads + 1
      if not op.status or op.status >= 500 then t.failed_reads = t.failed_reads + 1 end
    end
  end
  return t
end

-- What was done and what was found, for whoever looks into it later.
local function write_down(path, history, events, violations)
  local f = assert(io.open(path, "w"))
  for _, text in ipairs(violations) do f:write("violation ", text, "\n") end
  for _, e in ipairs(events) do f:write("event ", json.encode(e), "\n") end
  for _, op in ipairs(history.ops) do f:write("op ", json.encode(op) or tostring(op.id), "\n") end
  for _, e in ipairs(history.entries or {}) do f:write("entry ", json.encode(e), "\n") end
  for _, c in ipairs(history.copies or {}) do f:write("copy ", json.encode(c), "\n") end
  for _, c in ipairs(history.collections or {}) do f:write("collection ", json.encode(c), "\n") end
  for name, held in pairs(history.servers or {}) do f:write("server ", name, " ", json.encode(held), "\n") end
  f:close()
end

local LONG = { journal = 200, sync = 20 } -- rounds in which everything is to be met
local BULK = 50 -- records that a collection has from the beginning, where there are workers
local broken = { segment = 0, pickle = 0 } -- collections whose files were damaged

-- Clients and faults, until both are over.
local function trouble(stage, round, seed, workload, events)
  local plan = round.plan
  local began, tasks, over = now(), {}, false
  local function note(f, what) events[#events + 1] = { at = now() - began, fault = f.name, what = what } end
  local watcher = spawn(Nemesis.watch, stage, function() return over end, note)
  local found, why = pcall(workload.found, workload, Rng.new(seed, "found"), 3, round.workers > 0 and BULK or nil)
  if not found then
    over = true
    error(why, 0)
  end
  began = now()
  local till = began + (round.seconds or options.seconds) + (round.longer or 0)
  for _, f in ipairs(plan) do till = math.max(till, began + f.until_ + 0.5) end
  for i = 1, round.clients or options.clients do
    tasks[i] = spawn(function()
      workload:at((i - 1) % round.balancers + 1):run(Rng.new(seed, "client" .. i), till)
    end)
  end
  Nemesis.play(stage, plan, note)
  for _, t in ipairs(tasks) do assert(t:wait()) end
  over = true
  watcher:wait()
  -- Who may still die at a step ends in peace, and is started again without.
  for _, name in ipairs(stage.ours) do
    local p = stage[name]
    if p.env.FAULT_POINTS then
      p.env.FAULT_POINTS = false
      p:kill(process.TERM)
    end
  end
end

local HOLD_MOST = 250 -- milliseconds; chromux lets go after 200

-- Does a process that holds copies stand still in it? Its holds last until it goes on.
local function pauses_holder(round)
  for _, f in ipairs(round.plan) do
    if f.kind == "pause" and (f.target == "chromux" or f.target == "second") then return true end
  end
  return round.steps ~= nil and table.concat(round.steps):find("pause") ~= nil
end

-- What is found when it is all over: history, violations.
local function judge(stage, round, ops)
  local violations, history = {}, nil
  local rest = round.rest or 40
  local unrest = History.await_rest(rest, function() stage:revive() end)
  if unrest then violations[1] = "unrest: " .. rest .. " s after the last fault: " .. unrest end
  local broken_files = round.workers == 0 and round.threshold and stage.broken
  local patience = now() + 15
  repeat -- until damage is found
    if history then sleep(0.2) end
    history = History.gather(ops, stage.servers, round.rebuilds or options.rebuilds, broken_files or nil)
  until not (broken_files and History.unreadable(history)) or now() > patience
  history.healed = round.workers > 0
  history.wire = round.wraps and History.read_wire(stage.dir)
  local found, aside = Check.all(history)
  if history.healed then
    local fine, sync = pcall(History.gather_sync, stage.servers)
    if fine then sync.hold_most = not pauses_holder(round) and HOLD_MOST or nil end
    for _, text in ipairs(fine and CheckSync.all(sync) or { "round: " .. sync }) do found[#found + 1] = text end
  end
  for _, text in ipairs(found) do violations[#violations + 1] = text end
  history.aside = aside
  return history, violations
end

local HEAL_SECONDS = 60
-- Of the clients, by the kind of round.
local HABITS = { journal = { think = 0.03 }, sync = { think = 0.01, most = 100 },
  poison = { think = 0.03, most = 40, catalogue_share = 0.15, odd = 0.1 } }

local function describe(round, proved)
  return (round.balancers > 1 and "two balancers " or "") .. (round.wraps and "wrap " or "")
    .. (round.steps and table.concat(round.steps, " ") .. " " or "")
    .. (round.worker_steps and table.concat(round.worker_steps, " ") .. " " or "")
    .. Faults.describe(round.plan) .. (proved and "; " .. proved or "")
end

-- planted: of plants.lua, {name=, round=, bug=}: the violations are returned. Otherwise they are told; was it clean?
local function play(seed, planted)
  local dir = root .. "/" .. seed .. (planted and planted.name or "")
  os.execute("mkdir " .. dir)
  local round = planted and planted.round or round_of(seed)
  local stage = Stage.new { dir = dir, steps = round.steps, worker_steps = round.worker_steps,
    stepped_workers = round.stepped_workers, balancers = round.balancers, workers = round.workers,
    settings = round.settings, rng = Rng.new(seed, "ports" .. process.pid()), chromux = options.chromux,
    wraps = round.wraps, bug = planted and planted.bug }
  stage.postgres = postgres or stage.postgres
  postgres = stage.postgres
  local ops, events, violations, history, proved = {}, { plan = round.plan }, {}, nil, nil
  local began, habits = now(), HABITS[round.kind or "journal"]
  local ok, why = xpcall(function()
    stage:raise()
    local workload = Clients.new { urls = stage.urls, ops = ops, sync = round.threshold,
      favour = round.favour, plain = round.workers > 0, think = round.think or habits.think,
      most = round.most or habits.most, catalogue_share = habits.catalogue_share, odd = habits.odd }
    trouble(stage, round, seed, workload, events)
    stage:mend()
    stage:await_journal(30)
    local unproved = {}
    if round.workers > 0 then
      unproved, proved = Heal.prove(stage, workload, Rng.new(seed, "proof"), HEAL_SECONDS)
    end
    history, violations = judge(stage, round, ops)
    for i, text in ipairs(unproved) do table.insert(violations, i, text) end
  end, function(e) return debug.traceback(tostring(e), 2) end)
  if not ok then violations[#violations + 1] = "round: " .. why end
  if planted then
    stage:strike()
    if not options.keep then os.execute("rm -rf " .. dir)
    else write_down(dir .. "/history", history or { ops = ops }, events, violations) end
    return violations
  end
  local t = tally(ops)
  say("seed %d: %.0f s, %d operations: %d acknowledged, %d rejected, %d not kept, %d kept, %d unknown; %d reads, %d of "
    .. "them failed; %d copies set aside; faults: %s; %s", seed, now() - began, #ops, t.ack, t.reject,
    t.not_kept, t.kept, t.unknown, t.reads, t.failed_reads, history and history.aside and #history.aside or 0,
    describe(round, proved), #violations == 0 and "clean" or #violations .. " VIOLATIONS")
  for i = 1, math.min(#violations, options.shown) do say("    %s", violations[i]) end
  for _, c in ipairs(history and history.aside or {}) do
    say("    set aside: lane %d on %s is %s: %s%s", c.lane, c.instance, c.state, tostring(c.reason),
      c.broken and " (its " .. c.broken .. " was broken)" or "")
  end
  if #violations > 0 or options.keep then
    write_down(dir .. "/history", history or { ops = ops }, events, violations)
    say("    all of it: %s", dir)
  end
  for _, server in pairs(stage.broken) do
    for _, how in pairs(server) do broken[how] = broken[how] + 1 end
  end
  stage:strike()
  if #violations == 0 and not options.keep then os.execute("rm -rf " .. dir) end
  return #violations == 0
end

-- How often each named step was met and each kind of file damaged, and in how many of these times something was done
-- there; false: in so many rounds all should have been met.
local function say_hits()
  local f, hits = io.open(root .. "/hits"), {}
  for name in f and f:lines() or function() end do
    local plain = name:match("^[^!]+")
    hits[plain] = (hits[plain] or 0) + (Faults.made[plain] and 0 or 1)
    if plain ~= name then
      hits[name] = (hits[name] or 0) + 1
      if Faults.made[plain] then hits[plain] = hits[plain] + 1 end
    end
  end
  if f then f:close() end
  local out, never = {}, {}
  local function count(name, n, done)
    out[#out + 1] = string.format("  %-32s %8d%s", name, n, done and string.format(" %8d", done) or "")
    if n == 0 then never[#never + 1] = name end
  end
  if options.kind == "sync" then
    for _, list in ipairs { Faults.holder_steps, Faults.worker_steps } do
      for _, step in ipairs(list) do count(step[1], hits[step[1]] or 0, hits[step[1] .. "!"] or 0) end
    end
  else
    for _, name in ipairs(Faults.protocol) do count(name, hits[name] or 0, hits[name .. "!"] or 0) end
    for _, how in ipairs { "segment", "pickle" } do count("damaged " .. how, broken[how]) end
  end
  say("named steps: how often they were met, and how often that was the end, a pause or what the name says:\n%s",
    table.concat(out, "\n"))
  if #never == 0 or options.rounds < LONG[options.kind] or options.faults then return true end
  say("never met in %d rounds: %s", options.rounds, table.concat(never, ", "))
  return false
end

local passed, failed = 0, 0
if options.plant then
  passed, failed = Plants.find(options.plant, { play = play, say = say, now = now })
else
  say("%d rounds of %s from seed %d, %d clients, faults: %s", options.rounds, options.kind, first_seed,
    options.clients, options.faults or "of its kind in each round")
  for i = 0, options.rounds - 1 do
    if play(first_seed + i) then passed = passed + 1 else failed = failed + 1 end
  end
end
if postgres then postgres:kill(process.QUIT) end
os.execute("scripts/pg.sh drop " .. os.getenv("CHAOS_PG") .. " 2>/dev/null")
if not (options.plant or say_hits()) then failed = failed + 1 end
if failed == 0 and not options.keep then os.execute("rm -rf " .. root) end
say("%d passed, %d failed, 0 skipped", passed, failed)
os.exit(failed == 0 and 0 or 1)
