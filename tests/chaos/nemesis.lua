-- nemesis.lua: plays the faults of a round (faults.lua).
local damage = require("damage")
local process = require("process")

local M = {}

local PATIENCE = 6 -- seconds to wait for what a fault is to come in the middle of

-- ---- whom it hits ----------------------------------------------------------------------------------------

-- Waits for the first row of a query: row | nil
local function await_row(sql, ...)
  local till = now() + PATIENCE
  while now() < till do
    local rows = pg.query({ sql, timeout = 1 }, ...)
    if rows and rows[1] then return rows[1] end
    sleep(0.02)
  end
end

-- The name of the process of ours that calls itself so ("boot/pid/start").
local function named(stage, name)
  local pid = tonumber(name:match("/(%d+)/"))
  for _, candidate in ipairs(stage.ours) do
    if stage[candidate].pid == pid then return candidate end
  end
end

local REBUILDING = [[SELECT source, instance FROM sync_jobs WHERE kind <> 'verify'
  AND state IN ('copying', 'catching_up', 'finishing') ORDER BY id DESC LIMIT 1]]

-- who -> function(stage, f): name of a process | nil: it did not come to that
local Who = {}

function Who.coordinator(stage)
  local row = await_row("SELECT holder FROM sync_lease WHERE until > now()")
  return row and named(stage, row.holder)
end

local function during(choose)
  return function(stage, f)
    local row = await_row(REBUILDING)
    if not row then return nil end
    sleep(f.dice * 0.4)
    return choose(row, stage)
  end
end

Who.source = during(function(row) return row.source end)
Who.target = during(function(row) return row.instance end)
Who.postgres = during(function() return "postgres" end)

Who.balancer = during(function(_, stage)
  local row = await_row("SELECT holder FROM journal_lease")
  return row and named(stage, row.holder) or stage.balancers[1]
end)

function Who.worker(stage, f)
  local row = await_row([[SELECT process FROM sync_tasks JOIN sync_workers USING (worker_id)
    WHERE task_status = 'processing' AND kind <> 'compare' LIMIT 1]])
  if row then sleep(f.dice * 0.03) end
  return row and named(stage, row.process)
end

-- ---- what is done ----------------------------------------------------------------------------------------

local function start_again(p) if p:ended() then p:start() end end

local function folder(stage, p) return stage.dir .. "/" .. p.name end

-- kind -> function(stage, process, f, note)
local Begin, End = {}, {}

function Begin.kill(_, p) p:kill(process.KILL) end
function End.kill(_, p) start_again(p) end

function Begin.quit(_, p) p:kill(process.QUIT) end
End.quit = End.kill

function Begin.pause(_, p) p:pause() end
function End.pause(_, p) p:resume() end

Begin["break"] = function(stage, p, f, note)
  p:kill(process.KILL)
  local broken = stage.broken[p.name]
  local id = damage.inflict(folder(stage, p), f.how, f.dice, broken)
  if id then broken[id] = f.how end
  note(f, f.how .. " of " .. tostring(id))
end
End["break"] = End.kill

function Begin.wipe(stage, p)
  p:kill(process.KILL)
  os.execute("rm -rf " .. folder(stage, p))
end
End.wipe = End.kill

local function stamped(p)
  local rows = pg.query({ "SELECT witness FROM journal_servers WHERE instance = $1", timeout = 1 }, p.name)
  return rows and rows[1] and rows[1].witness
end

function Begin.old_backup(stage, p, f)
  p:kill(process.KILL)
  os.execute("cp -a " .. folder(stage, p) .. " " .. folder(stage, p) .. ".backup")
  f.stamped = stamped(p) -- the backup may hold the next one, but no later one
  start_again(p)
end

-- A backup younger than a stamp of the witness is not noticed: it is not put back before there were two.
function End.old_backup(stage, p, f, note)
  local till = now() + PATIENCE
  while now() < till and not (f.stamped and (stamped(p) or 0) >= f.stamped + 2) do sleep(0.05) end
  if now() >= till then
    f.missed = true
    return note(f, "not put back: no two stamps since " .. tostring(f.stamped))
  end
  p:kill(process.KILL)
  os.execute(string.format("rm -rf %s && mv %s.backup %s", folder(stage, p), folder(stage, p), folder(stage, p)))
  start_again(p)
end

-- ---- when ------------------------------------------------------------------------------------------------

-- Starts chromux again whenever it has died by itself, with the next of its steps; until over().
function M.watch(stage, over, note)
  while not over() do
    stage:revive(function(p)
      note({ name = "step" }, p.name .. " died: " .. tostring(p.env.FAULT_POINTS))
      stage.next_steps(p)
      sleep(0.05 * p.start_number)
      return not p.held and p:ended()
    end)
    sleep(0.02)
  end
end

local function play_one(stage, f, note)
  local name = f.target or Who[f.who](stage, f)
  local p = name and stage[name]
  if not p or (f.who and (p.held or p:ended())) then
    f.missed = true
    return note(f, "missed: " .. tostring(name))
  end
  note(f, "begins: " .. p.name)
  local till = now() + f.until_ - f.at
  p.held = true
  Begin[f.kind](stage, p, f, note)
  sleep(math.max(0, till - now()))
  End[f.kind](stage, p, f, note)
  p.held = false
  note(f, "ends")
end

-- Plays the plan from now on and returns when the last fault is undone.
function M.play(stage, plan, note)
  local began, tasks = now(), {}
  for i, f in ipairs(plan) do
    tasks[i] = spawn(function()
      sleep(math.max(0, began + f.at - now()))
      play_one(stage, f, note)
    end)
  end
  for _, t in ipairs(tasks) do assert(t:wait()) end
end

return M
