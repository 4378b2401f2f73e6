-- world.lua: virtual time, and processes whose tasks run in it (the scheduler of core/api.c as Lua sees it).
--
-- Everything that happens is an event at a time; of events at one time any may come first. A process may be paused
-- (what happens to it waits, in its order), go on, or end (what waits is dropped). One seed gives one history.
local Rng = require("rng")

local World = {}
World.__index = World

local EPOCH = 1700000000 -- what now() says at virtual time 0

function World.new(seed, verbose)
  return setmetatable({ seed = seed, t = 0, rng = Rng.new(seed, "world"), heap = {}, count = 0, steps = 0,
    violations = {}, verbose = verbose, processes = {}, ending = {} }, World)
end

-- ---- telling ---------------------------------------------------------------------------------------------

function World:say(...)
  if not self.verbose then return end
  local parts = { string.format("%9.4f", self.t), ... }
  for i = 1, #parts do parts[i] = tostring(parts[i]) end
  io.write(table.concat(parts, " "):gsub("\n", " | "), "\n")
end

-- Something that must never be. The first of each kind counts.
function World:violation(kind, ...)
  local parts = { ... }
  for i = 1, #parts do parts[i] = tostring(parts[i]) end
  local text = kind .. ": " .. table.concat(parts, " ")
  self:say("VIOLATION", text)
  if not self.violations[kind] then
    self.violations[kind] = true
    table.insert(self.violations, text)
  end
end

-- ---- events ----------------------------------------------------------------------------------------------

local function push(heap, n, e)
  heap[n] = e
  while n > 1 do
    local up = (n - n % 2) / 2
    if heap[up].t <= e.t then break end
    heap[n], heap[up] = heap[up], e
    n = up
  end
end

local function pop(heap, n)
  local top, last = heap[1], heap[n]
  heap[n] = nil
  n = n - 1
  local at = 1
  while n > 0 do
    local down = 2 * at
    if down > n then break end
    if down < n and heap[down + 1].t < heap[down].t then down = down + 1 end
    if heap[down].t >= last.t then break end
    heap[at] = heap[down]
    at = down
  end
  if n > 0 then heap[at] = last end
  return top
end

local JITTER = 1e-5

-- Runs fn after `delay` seconds, in the process if one is given. The event can be moved with e.t before it is due
-- only by its owner cancelling it (e.off = true) and making another.
function World:after(delay, fn, process)
  local e = { t = self.t + delay + self.rng:unit() * JITTER, fn = fn, process = process }
  self.count = self.count + 1
  push(self.heap, self.count, e)
  return e
end

-- The same, but what is given to one queue (a table) keeps its order.
function World:in_order(queue, fn, process)
  local e = self:after(math.max(0, (queue.last or 0) - self.t), fn, process)
  queue.last = e.t
end

local STEPS_MOST = 400000

-- Runs until over() or the virtual time. false: neither came within the number of steps.
function World:run(over, until_)
  while self.count > 0 do
    if over() then return true end
    local e = pop(self.heap, self.count)
    self.count = self.count - 1
    if e.t > until_ then
      self.t = until_
      self.count = self.count + 1
      push(self.heap, self.count, e)
      return true
    end
    self.t = math.max(self.t, e.t)
    local p = e.process
    if e.off or (p and p.dead) then -- luacheck: ignore 542
    elseif p and p.paused then
      table.insert(p.backlog, e)
    else
      self.steps = self.steps + 1
      if self.steps > STEPS_MOST then return false end
      e.fn()
    end
  end
  return true
end

-- ---- processes -------------------------------------------------------------------------------------------

function World:process(name)
  local p = { name = name, world = self, backlog = {}, tasks = {}, serial = 0, on_end = {} }
  table.insert(self.processes, p)
  return p
end

function World:pause(p)
  self:say(p.name, "is stopped")
  p.paused, p.was_paused = true, self.t
end

function World:continue(p)
  self:say(p.name, "goes on")
  p.paused = false
  p.continued = self.t
  for i, e in ipairs(p.backlog) do
    e.t = self.t + i * 1e-6
    self.count = self.count + 1
    push(self.heap, self.count, e)
  end
  p.backlog = {}
end

function World:kill(p)
  self:say(p.name, "is killed")
  p.dead, p.paused = true, false
  for _, fn in ipairs(p.on_end) do fn() end
end

-- ---- tasks of a process: what require("chromux.api") gives -------------------------------------------------

local function resume(p, task, ...)
  local before = p.current
  p.current = task
  local ok, err = coroutine.resume(task.co, ...)
  p.current = before
  if not ok then p.world:violation("TASK-FAILED", debug.traceback(task.co, tostring(err))) end
  if coroutine.status(task.co) == "dead" then p.tasks[task.id] = nil end
end

local function new_wait(p, kind)
  local task = assert(p.current, "only a task can wait here")
  task.generation = task.generation + 1
  task.kind = kind
  return task, task.generation
end

-- Ends the wait with this generation if the task still has it.
local function over(p, task, generation, ...)
  if p.tasks[task.id] ~= task or task.generation ~= generation or not task.kind then return end
  task.kind = nil
  resume(p, task, ...)
end

-- A wait that something outside ends: done(...) brings its results.
function World.wait_begin(p)
  local task, generation = new_wait(p, "call")
  return function(...) over(p, task, generation, ...) end
end

function World:api(p)
  local api, spawned = {}, {}
  function api.spawn(fn)
    p.serial = p.serial + 1
    local task = { id = p.serial, generation = 0, co = coroutine.create(fn), kind = "start" }
    p.tasks[task.id] = task
    self:in_order(spawned, function() over(p, task, 0) end, p)
    return task.id
  end
  function api.cancel(id)
    local was = p.tasks[id]
    p.tasks[id] = nil
    return was ~= nil
  end
  function api.sleep(seconds)
    local task, generation = new_wait(p, "sleep")
    self:after(seconds, function() over(p, task, generation) end, p)
    coroutine.yield()
  end
  function api.token()
    local task = assert(p.current)
    return task.id, task.generation + 1
  end
  function api.park()
    new_wait(p, "park")
    coroutine.yield()
  end
  function api.wake(id, generation)
    local task = p.tasks[id]
    if task and task.kind == "park" and task.generation == generation then
      self:after(0, function() over(p, task, generation) end, p)
    end
  end
  function api.now() return EPOCH + self.t end
  function api.log(level, event, text)
    self:say(p.name, "log", level, event, text or "")
    if level == "error" and event:find("_failed$") then self:violation("STEP-FAILED", event, text) end
  end
  function api.failed(text) self:violation("TASK-FAILED", text) end
  function api.exit() error("exit") end
  return api
end

World.EPOCH = EPOCH

return World
