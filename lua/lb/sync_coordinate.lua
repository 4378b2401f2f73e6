-- sync_coordinate.lua: the coordinator, while this process has its lease: takes tasks from workers that are lost, makes
-- jobs for what is to be healed or compared, and runs some of them at once (sync_job.lua).
local Job = require("lb.sync_job")
local Signal = require("lb.signal")
local Store = require("lb.sync_store")
local calls = require("lb.sync_calls")
local choose = require("lb.sync_choose")
local courier = require("lb.courier")
local json = json
local process = require("lb.process")

local Coordinator = {}
Coordinator.__index = Coordinator

local TICK = 0.5                -- seconds between looks when nobody tells of anything
local JOBS = 12                 -- at once, so that a server that hangs leaves room for others
local EACH, VERIFIES = 8, 4     -- of these on one instance, of them comparisons
local MB = 1024 * 1024
local SETTLE_DEAD = 1           -- R5, as in servers.lua
local AGAIN = 60                -- seconds before a copy that was not healed is tried again, doubled each time
local SHOWN_EVERY, REAP_EVERY, MAKE_EVERY, FORGET_EVERY = 1, 0.5, 1, 3600
local MEMBER_SECONDS = 60
local AWAY = 10                 -- seconds that the tasks of a job wait for an instance that cannot be used

-- c: {store= of its epoch, settings=, id= of this process's worker, steady() -> seconds since its lease was last in
-- question, fault(name): a named step of a test build}
function Coordinator.new(c)
  local self = setmetatable({ store = c.store, settings = c.settings, id = c.id, steady = c.steady, fault = c.fault,
    alive = true, running = {}, count = 0, jobs_on = {}, verifies_on = {}, progress = {}, members = {},
    sourceless = {}, failed_from = {}, at = {}, begun = 0, over = 0, kicks = 0, lists = 0,
    round = Signal.new(), kicked = Signal.new(), given_back = Signal.new(),
    nodes = courier.nodes, able = Coordinator.able, life = Coordinator.life }, Coordinator)
  function self.await(job) return self:await_tasks(job) end
  function self.room(bytes, fn) return self:with_room(bytes, fn) end
  return self
end

-- ---- instances ---------------------------------------------------------------------------------------------

local function node_of(instance)
  for _, node in ipairs(courier.nodes()) do
    if node.name == instance then return node end
  end
end

local function usable(node) return node.health ~= "down" and node.admin ~= "maint" and node.incarnation ~= 0 end

function Coordinator.able(instance)
  local node = node_of(instance)
  return node ~= nil and usable(node)
end

-- Which life of its server this is; 0: it cannot be said.
function Coordinator.life(instance)
  local node = node_of(instance)
  return node and node.incarnation or 0
end

-- Names of the instances that can be used.
function Coordinator.usable_names()
  local out = {}
  for _, node in ipairs(courier.nodes()) do
    if usable(node) then out[#out + 1] = node.name end
  end
  return out
end

-- ---- waiting -----------------------------------------------------------------------------------------------

-- What a job of a rebuild stands on has changed: why | nil
local function unsettled(self, job)
  for instance, life in pairs(job.lives or {}) do
    local present = self.life(instance)
    if life == 0 then job.lives[instance] = present
    elseif present ~= life then return instance .. " is not the server that it was" end
  end
end

-- The instance of the job's two that could not be used for a while: its name | nil
local function away(self, job)
  job.away = job.away or {} -- since when
  for _, instance in ipairs { job.source, job.instance } do
    job.away[instance] = not self.able(instance) and (job.away[instance] or now()) or nil
    if job.away[instance] and now() - job.away[instance] > AWAY then return instance end
  end
end

-- Until no task of the job is open, or one has failed, or the job is not what it was, or it waits for an instance: its
-- progress. nil: lease lost.
function Coordinator:await_tasks(job)
  local round = self.begun
  self:look()
  while true do
    while self.alive and self.over <= round do self.round:wait() end
    if not self.alive then return nil end
    local p = self.progress[job.id]
    if p then
      p.again, p.away = unsettled(self, job), away(self, job)
      if p.again or p.away or p.failed > 0 or p.open == 0 or p.state ~= job.state then return p end
    end
    round = self.over
  end
end

-- One query for all jobs that run; those that wait look at what it brought.
local function look_at_progress(self)
  local ids = {}
  for id in pairs(self.running) do ids[#ids + 1] = id end
  self.begun = self.begun + 1
  local turn = self.begun
  if #ids > 0 then
    local rows, why = self.store:progress(ids)
    if not rows then return log.warn("sync_progress", tostring(why)) end
    self.progress = rows
    if now() - (self.at.shown or 0) >= SHOWN_EVERY then
      self.at.shown = now()
      self.store:show_progress(ids)
    end
  end
  self.over = turn
  self.round:fire()
end

-- fn() while so many bytes of lists are there at most, beside those of others: in all half of MAX_MEMORY_MB, or one.
function Coordinator:with_room(bytes, fn)
  local most = self.settings.MAX_MEMORY_MB * MB / 2
  while self.lists > 0 and self.lists + bytes > most do self.given_back:wait() end
  self.lists = self.lists + bytes
  local fine, err = pcall(fn)
  self.lists = self.lists - bytes
  self.given_back:fire()
  if not fine then error(err, 0) end
end

-- ---- workers that are lost ---------------------------------------------------------------------------------

local function reap(self)
  local workers = self.store:workers()
  for _, w in ipairs(workers or {}) do
    local dead = w.process ~= "" and process.dead(w.process)
    -- After a pause of our own, or of PostgreSQL, all look late: they get the time to say that they are not.
    local late = w.late and w.worker_id ~= self.id and self.steady() > self.settings.LEASE_TIMEOUT
    if dead or late then
      local settle = dead and SETTLE_DEAD or math.max(SETTLE_DEAD, self.settings.WRITE_HORIZON)
      local text = dead and "its worker ended" or "its worker was silent beyond its lease"
      local n = self.store:worker_lost(w, dead, settle, text)
      if n then
        log.warn("sync_worker_lost", string.format("%s: %s; %d tasks go to others", w.worker_id, text, n))
        -- One that dies again and again is another process each time: it is told of by where it runs.
        local host, pid = process.host_of(w.worker_id), process.pid_of(w.worker_id)
        choose.notice { kind = "worker_dead", key = "worker/" .. host,
          title = "A sync worker on " .. host .. " is gone",
          text = (dead and "It ended" or "It was silent beyond its lease") .. (n > 0 and "; " .. n
            .. " tasks go to others." or ", without a task."),
          fields = { { "host", host }, { "process", pid }, { "worker", w.worker_id },
            w.task and { "task", w.task } or nil } }
      end
    end
  end
end

-- ---- making jobs -------------------------------------------------------------------------------------------

-- Instances whose catalogue is lost become members again, each in a task of its own.
local function make_members(self, able)
  for _, row in ipairs(self.store:members_lost(able) or {}) do
    local instance = row.instance
    if not self.members[instance] then
      self.members[instance] = true
      spawn(function()
        local answer, why = calls.ask("member", 0, instance, {}, MEMBER_SECONDS, self.store.epoch)
        if answer then log.info("sync_member", instance .. " has tenants and databases again")
        else
          log.warn("sync_member", instance .. ": " .. tostring(why))
          sleep(1)
        end
        self.members[instance] = nil
        self:look()
      end)
    end
  end
end

-- Collections of which no copy is whole: people are told once of each instance. When all copies of it are whole again
-- is seen by others (notify_watch.lua).
local function tell_sourceless(self)
  local rows = self.store:without_source()
  if not rows then return end
  local seen = {}
  for _, row in ipairs(rows) do
    local first = not seen[row.instance]
    seen[row.instance] = true
    if first and not self.sourceless[row.instance] then
      log.error("no_source", row.name .. " on " .. row.instance .. ": no copy of it is whole; nothing is overwritten")
      choose.notice { kind = "no_source", key = "copies/" .. row.instance, title = "No whole copy of " .. row.name,
        text = "Every copy of it is to be made anew, and there is none to take it from. Nothing is overwritten.",
        fields = { { "instance", row.instance }, { "collection", row.name }, { "cause", row.reason } } }
    end
  end
  self.sourceless = seen
end

local function make_verifies(self, able)
  local due = self.store:verifies_due(able, self.settings.SYNC_INTERVAL)
  local list = {}
  for _, row in ipairs(due or {}) do
    local copies = json.decode(row.copies)
    local source = choose.authority(courier.nodes(), copies)
    for _, copy in ipairs(copies) do
      if copy.instance ~= source.instance then
        list[#list + 1] = { lane = row.lane, logical = row.logical, name = row.name, tenant = row.tenant,
          database = row.database, instance = copy.instance, source = source.instance }
      end
    end
  end
  if #list > 0 then self.store:make_verifies(list) end
end

-- Is it time again? Notes that it was done.
local function due(self, what, every)
  if now() - (self.at[what] or -math.huge) < every then return false end
  self.at[what] = now()
  return true
end

local function make_jobs(self)
  local able = Coordinator.usable_names()
  if due(self, "reaped", REAP_EVERY) then reap(self) end
  if due(self, "made", MAKE_EVERY) then
    make_members(self, able)
    local made, why = self.store:make_rebuilds(able, AGAIN)
    if not made and why ~= "not ours" then log.warn("sync_jobs", tostring(why)) end
  end
  if due(self, "sourceless", 5 * MAKE_EVERY) then tell_sourceless(self) end
  local looks = math.max(0.2, math.min(5, self.settings.SYNC_INTERVAL / 5))
  if due(self, "compared", looks) then make_verifies(self, able) end
  if due(self, "forgot", FORGET_EVERY) then self.store:forget() end
end

-- ---- running them ------------------------------------------------------------------------------------------

local function change(counts, key, by) counts[key] = (counts[key] or 0) + by end

local function counted(self, job, by)
  self.count = self.count + by
  change(self.jobs_on, job.instance, by)
  if job.kind == "verify" then change(self.verifies_on, job.instance, by) end
end

local function run(self, job)
  self.running[job.id] = job
  counted(self, job, 1)
  spawn(function()
    local fine, why = xpcall(Job.run, debug.traceback, self, job)
    if not fine then log.error("sync_job_failed", why) end
    self.running[job.id], self.progress[job.id] = nil, nil
    counted(self, job, -1)
    self:look()
  end)
end

-- Names of the instances on which there are so many.
local function full(counts, most)
  local out = {}
  for instance, n in pairs(counts) do
    if n >= most then out[#out + 1] = instance end
  end
  return out
end

local function room_for(self, job)
  return self.count < JOBS and (self.jobs_on[job.instance] or 0) < EACH
    and (job.kind ~= "verify" or (self.verifies_on[job.instance] or 0) < VERIFIES)
end

-- Is another one under way on its copy, or is what one of the two begins from the other's to change? All others of a
-- collection may run at once: one on a server that hangs holds up none.
local function in_the_way(self, job)
  for _, other in pairs(self.running) do
    if other.lane == job.lane and (other.instance == job.instance or other.instance == job.source
      or other.source == job.instance) then return true end
  end
  return false
end

local function run_jobs(self)
  if self.count >= JOBS then return end
  local busy = {}
  for _, job in pairs(self.running) do busy[#busy + 1] = Store.copy_key(job) end
  for _, job in ipairs(self.store:jobs_due(Coordinator.usable_names(), busy, full(self.jobs_on, EACH),
    full(self.verifies_on, VERIFIES)) or {}) do
    if room_for(self, job) and not self.running[job.id] and not in_the_way(self, job) then run(self, job) end
  end
end

-- ---- life --------------------------------------------------------------------------------------------------

-- A step after each kick; what comes during one is not missed.
local function loop(self, step)
  while self.alive do
    local seen = self.kicks
    local fine, why = xpcall(step, debug.traceback, self)
    if not fine then
      log.error("sync_coordinator_failed", why)
      sleep(1)
    end
    while self.alive and self.kicks == seen do self.kicked:wait() end
  end
end

-- Begins to coordinate.
function Coordinator:start()
  log.info("sync_coordinates", self.id)
  spawn(loop, self, look_at_progress)
  spawn(loop, self, function()
    make_jobs(self)
    run_jobs(self)
  end)
  spawn(function()
    while self.alive do
      sleep(TICK)
      self:look()
    end
  end)
end

-- There is something for the coordinator.
function Coordinator:look()
  self.kicks = self.kicks + 1
  self.kicked:fire()
end

-- The lease is lost or given back: what runs ends at its next step and changes nothing any more.
function Coordinator:stop()
  self.alive = false
  self.kicked:fire()
  self.round:fire()
end

return Coordinator
