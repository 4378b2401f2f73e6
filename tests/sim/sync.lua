-- sync.lua: one who coordinates rebuilds and does the copying, as lua/lb/sync.lua does: it asks the holder of the lease
-- through sync_calls, and sends its requests to the servers past the balancers. Its workers die with requests under
-- way, and so does it.
local Records = require("records")
local Postgres = require("postgres")
local World = require("world")
local json = require("lb.runtime").json

local M = {}

local CHUNK = 3
local DEAD = 1            -- seconds after a worker's end in which what it has sent may still be executed
local CALL_TIMEOUT = 12
local AT_ONCE = 3

local Sync = {}
Sync.__index = Sync

-- ---- asking the holder -----------------------------------------------------------------------------------

function Sync:ask(kind, lane, instance, arguments)
  local sim, db = self.sim, self.sim.db
  while not sim.postgres.up do self.api.sleep(0.1) end
  local id = #db.calls + 1
  db.calls[id] = { id = id, kind = kind, lane = lane, instance = instance, arguments = json.encode(arguments),
    until_ = sim.world.t + CALL_TIMEOUT }
  for _, c in ipairs(sim.postgres.connections) do
    local heard = c.heard["chromux_sync"]
    if heard and not c.away and not sim.rng:chance(0.1) then
      sim.world:in_order(c, function()
        if not c.away then heard("") end
      end, c.process)
    end
  end
  local call = db.calls[id]
  while not call.answered and sim.world.t < call.until_ do self.api.sleep(0.02) end
  if not call.answered then
    call.answered, call.done, call.answer = true, false, "withdrawn"
  end
  sim.world:say("sync", kind, lane, instance, json.encode(arguments), call.answer)
  if call.done then return json.decode(call.answer) end
  return nil, call.answer
end

-- ---- requests of a worker --------------------------------------------------------------------------------

-- The answer's body; nil: there is none, and what was sent may still be executed until job.settle_until.
function Sync:request(job, server, method, target, body)
  local sim = self.sim
  if not server.up then
    self.api.sleep(0.05)
    return nil
  end
  local wake, over = World.wait_begin(self.process), false
  -- The worker dies in the middle; another takes the task.
  local dies = not sim.calm and sim.rng:chance(sim.faults.workers)
  local r = { method = method, target = target, body = body, balancer = self, sync = true, slow = dies }
  self.requests[r] = server
  local function finish(answer)
    if over then return end
    over = true
    self.requests[r] = nil
    wake(answer)
  end
  function r.ended(answer) sim.world:after(0.0002, function() finish(answer) end, self.process) end
  server:arrive(r)
  local function lose()
    if over then return end
    server:closed(r)
    job.settle_until = sim.world.t + DEAD
    if job.row then job.row.settle_until = job.settle_until end
    finish(nil)
  end
  sim.world:after(dies and sim.rng:unit() * 0.01 or 5, lose, self.process)
  local answer = coroutine.yield()
  if answer and answer.status < 300 then return answer.body end
  if answer and answer.status >= 400 and answer.status < 500 and answer.status ~= 429 then job.over = true end
  return nil
end

local function base(answer)
  return "/api/v2/tenants/" .. answer.tenant .. "/databases/" .. answer.database .. "/collections/"
end

-- Again until it is done, as a task is; where what a lost worker has sent could undo that, only when it can't be
-- executed any more. nil: the job is over
function Sync:insist(job, server, target, body, again)
  for _ = 1, 40 do
    if job.over then return nil end
    local left = again and job.settle_until and job.settle_until - self.sim.world.t or 0
    if left > 0 then self.api.sleep(left) end
    local got = self:request(job, server, "POST", target, body)
    if got then return got end
    self.api.sleep(0.02 + self.sim.rng:unit() * 0.2)
  end
end

-- These records in the new collection as the source has them now.
function Sync:copy(job, ids, again)
  local list = json.encode(ids)
  local source, target = base(job.begun) .. job.begun.source_physical, base(job.begun) .. job.begun.temp
  if again and not self:insist(job, job.server, target .. "/delete", '{"ids":' .. list .. "}", true) then
    return false
  end
  local text = self:insist(job, job.from, source .. "/get", '{"ids":' .. list
    .. ',"include":["documents","metadatas","embeddings","uris"]}')
  if not text then return false end
  local got = json.decode(text)
  if #got.ids == 0 then return true end
  local body = string.format('{"ids":%s,"embeddings":%s,"documents":%s,"metadatas":%s}', json.encode(got.ids),
    json.encode(got.embeddings), json.encode(got.documents), json.encode(got.metadatas))
  return self:insist(job, job.server, target .. "/add", body, again) ~= nil
end

function Sync:ids_of(job, server, physical)
  local text = self:insist(job, server, base(job.begun) .. physical .. "/get", '{"include":[]}')
  return text and json.decode(text).ids
end

function Sync:copy_all(job, ids, again)
  job.row.tasks = job.row.tasks + 1
  for from = 1, #ids, CHUNK do
    local part = {}
    for i = from, math.min(#ids, from + CHUNK - 1) do part[#part + 1] = ids[i] end
    if not self:copy(job, part, again) then return false end
  end
  job.row.tasks = job.row.tasks - 1
  return true
end

-- One who coordinated before, and does not know that it does so no more, takes it for copied.
function Sync:too_early(job)
  if self.sim.calm or job.adopt or not self.sim.rng:chance(0.2) then return end
  local begun = job.begun
  self.api.spawn(function()
    self.api.sleep(self.sim.rng:unit() * 0.1)
    self:ask("finish", job.lane, job.instance, { rebuild = begun.rebuild, upto = begun.p0, settle = 0 })
  end)
end

-- The ids of records that entries in (from, upto] may have changed.
function Sync:touched(lane, from, upto)
  local set, out = {}, {}
  for n = from + 1, upto do
    local e = self.sim.db.entries[lane][n]
    local ids = e.resolved and json.decode(e.resolved) or Records.decode(e.body).ids or {}
    for _, id in ipairs(ids) do
      if not set[id] then set[id], out[#out + 1] = true, id end
    end
  end
  return out
end

-- ---- a job -----------------------------------------------------------------------------------------------

function Sync:rebuild(job)
  local begun = self:ask("begin", job.lane, job.instance, { source = job.source, adopt = job.adopt or nil })
  if not begun then return end
  job.begun = begun
  job.row = { tasks = 1, settle_until = 0 } -- of PostgreSQL: what of sync_jobs and sync_tasks the holder looks at
  self.sim.db.sync[begun.rebuild] = job.row
  self:too_early(job)
  local ids = self:ids_of(job, job.from, begun.source_physical)
  if ids and job.adopt then -- what stands there is made equal, record by record
    local there = self:ids_of(job, job.server, begun.temp)
    if not there then return end
    for _, id in ipairs(there) do ids[#ids + 1] = id end
  end
  if not ids or not self:copy_all(job, ids, job.adopt) then return end
  job.row.tasks = job.row.tasks - 1
  local upto = begun.p0
  for _ = 1, 30 do
    local settle = job.settle_until and DEAD or 0
    local answer = self:ask("finish", job.lane, job.instance, { rebuild = begun.rebuild, upto = upto, settle = settle })
    if not answer then return end
    if answer.done then return true end
    if answer.gone then
      job.begun = nil
      return
    end
    if answer.more > 0 then
      if settle > 0 then job.settle_until = nil end
      local ids_touched = self:touched(job.lane, answer.from, answer.position)
      if not self:copy_all(job, ids_touched, true) then return end
      upto = answer.position
    end
    self.api.sleep(self.sim.rng:unit() * 0.3)
  end
end

local function key_of(lane, instance) return lane .. "/" .. instance end

function Sync:start(lane, c, ready)
  local sim, key = self.sim, key_of(lane, c.instance)
  local source = sim.rng:pick(ready)
  local job = { lane = lane, instance = c.instance, source = source.instance, adopt = c.state == "unverified",
    server = sim.server_named(c.instance), from = sim.server_named(source.instance) }
  self.jobs[key], self.count = job, self.count + 1
  self.api.spawn(function()
    -- What an earlier worker has sent to the standing collection is over first.
    if job.adopt then self.api.sleep(DEAD) end
    local fine = self:rebuild(job)
    if not fine and job.begun and sim.rng:chance(0.5) then
      self:ask("abandon", lane, c.instance, { rebuild = job.begun.rebuild })
    end
    self.api.sleep(fine and 0 or 0.3)
    self.jobs[key], self.count = nil, self.count - 1
  end)
end

-- Copies of an open lane that are ready, but for those on one instance.
local function ready_elsewhere(sim, lane, instance)
  local out = {}
  for _, s in ipairs(sim.servers) do
    local c = sim.db.copies[Postgres.copy_key(lane, s.name)]
    if c and c.state == "ready" and s.name ~= instance and s.up then out[#out + 1] = c end
  end
  return out
end

-- Is there something to do? Looks at all that is not as it should be.
function Sync:wanted()
  local sim, list = self.sim, {}
  for _, key in ipairs(Postgres.sorted(sim.db.copies)) do
    local c = sim.db.copies[key]
    if c.lane ~= 0 and sim.db.lanes[c.lane].open and (c.state == "rebuild" or c.state == "unverified")
      and #ready_elsewhere(sim, c.lane, c.instance) > 0 then
      list[#list + 1] = c
    end
  end
  return list
end

function Sync:members()
  local out = {}
  for _, s in ipairs(self.sim.servers) do
    local member = self.sim.db.copies[Postgres.copy_key(0, s.name)]
    if member and member.state == "rebuild" then out[#out + 1] = s.name end
  end
  return out
end

function Sync:idle() return self.count == 0 and #self:wanted() == 0 and #self:members() == 0 end

function Sync:round()
  local sim = self.sim
  for _, name in ipairs(self:members()) do
    if sim.server_named(name).up then self:ask("member", 0, name, {}) end
  end
  for _, c in ipairs(self:wanted()) do
    if self.count < AT_ONCE and not self.jobs[key_of(c.lane, c.instance)] then
      self:start(c.lane, c, ready_elsewhere(sim, c.lane, c.instance))
    end
  end
  -- Copies are compared while clients write: nothing differs.
  if not sim.calm and sim.rng:chance(0.2) and self.count < AT_ONCE then
    self.count = self.count + 1
    self.api.spawn(function()
      self:compare()
      self.count = self.count - 1
    end)
  end
  -- Somebody wants a copy anew that is as good as the others.
  if sim.faults.anew > 0 and sim.rng:chance(sim.faults.anew) and self.count < AT_ONCE then
    local able = {}
    for _, key in ipairs(Postgres.sorted(sim.db.copies)) do
      local c = sim.db.copies[key]
      if c.lane ~= 0 and c.state == "ready" and sim.db.lanes[c.lane].open
        and not self.jobs[key_of(c.lane, c.instance)] and #ready_elsewhere(sim, c.lane, c.instance) > 0 then
        able[#able + 1] = c
      end
    end
    if #able > 0 then
      local c = sim.rng:pick(able)
      self:start(c.lane, c, ready_elsewhere(sim, c.lane, c.instance))
    end
  end
end

-- ---- comparing and repairing -----------------------------------------------------------------------------

local IDS = { "a", "b", "c", "d", "e", "f" }

-- Two good copies of a collection: copy, other | nil
local function two_copies(sim)
  local able = {}
  for _, key in ipairs(Postgres.sorted(sim.db.copies)) do
    local c = sim.db.copies[key]
    if c.lane ~= 0 and c.state == "ready" and sim.db.lanes[c.lane].open
      and #ready_elsewhere(sim, c.lane, c.instance) > 0 then
      able[#able + 1] = c
    end
  end
  if #able == 0 then return nil end
  local mine = sim.rng:pick(able)
  return mine, ready_elsewhere(sim, mine.lane, mine.instance)[1]
end

function Sync:compare()
  local mine, right = two_copies(self.sim)
  if not mine then return end
  local answer = self:ask("confirm", mine.lane, mine.instance,
    { authority = right.instance, ids = IDS, repair = self.sim.rng:chance(0.5) or nil })
  if answer and #answer.differing > 0 then
    self.sim.world:violation("FALSE-ALARM", "lane", mine.lane, mine.instance, "and", right.instance,
      json.encode(answer))
  end
end

-- Changes records of a copy behind everybody's back, and has them repaired: those and no others.
function Sync:repair()
  local sim, rng = self.sim, self.sim.rng
  local mine, right = two_copies(sim)
  if not mine then return end
  local have = sim.server_named(mine.instance).collections[mine.physical]
  local want = sim.server_named(right.instance).collections[right.physical]
  local ids, differing = IDS, 0
  for _, id in ipairs(ids) do
    local is = have.records[id]
    if rng:chance(0.4) then
      have.records[id] = (not is or rng:chance(0.6)) and { vector = rng:pick { "7,7", "1,2" }, meta = { q = 1 } } or nil
    end
    local a, b = have.records[id], want.records[id]
    if (a and Records.record_text(a)) ~= (b and Records.record_text(b)) then differing = differing + 1 end
  end
  local answer, why
  repeat
    answer, why = self:ask("confirm", mine.lane, mine.instance,
      { authority = right.instance, ids = ids, repair = true })
  until answer or not why:find("can't be used", 1, true)
  if not answer or answer.repaired ~= differing or answer.equal ~= #ids - differing then
    sim.world:violation("NOT-REPAIRED", differing, "differed:", answer and json.encode(answer) or why)
  elseif Records.text(have) ~= Records.text(want) then
    sim.world:violation("REPAIRED-WRONG", Records.text(have), "is not", Records.text(want))
  end
end

local function life(sim)
  local world = sim.world
  local self = setmetatable({ sim = sim, jobs = {}, count = 0, requests = {}, process = world:process("sync") }, Sync)
  self.process.balancer = { address = "" }
  self.api = world:api(self.process)
  sim.sync = self
  function sim.db.wanted(rebuild)
    for _, job in pairs(self.jobs) do
      if job.begun and job.begun.rebuild == rebuild then return true end
    end
  end
  table.insert(self.process.on_end, function()
    local list = {}
    for r, server in pairs(self.requests) do list[#list + 1] = { r, server } end
    table.sort(list, function(a, b) return a[1].serial < b[1].serial end)
    for _, l in ipairs(list) do l[2]:closed(l[1]) end
  end)
  world:after(0.3, function()
    self.api.spawn(function()
      while true do
        self:round()
        self.api.sleep(0.05 + sim.rng:unit() * 0.4)
      end
    end)
  end, self.process)
end

function M.start(sim) life(sim) end

-- done() when a copy was damaged and repaired.
function M.repair(sim, done)
  sim.sync.api.spawn(function()
    sim.sync:repair()
    done()
  end)
end

function M.crash(sim)
  sim.world:kill(sim.sync.process)
  life(sim)
end

return M
