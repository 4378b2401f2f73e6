-- stage.lua: what a round is played on: PostgreSQL, two Chroma servers, chromux, once or twice, and workers of sync,
-- each with data of this round.
local process = require("process")

local M = {}

-- What chromux is told: short times, so that a round sees every one of them pass.
local SETTINGS = {
  CHECK_INTERVAL = "0.2", PROBE_TIMEOUT = "0.5", TRY_TIMEOUT = "1", REQUEST_TIMEOUT = "10", CONNECT_TIMEOUT = "0.5",
  LEASE_TIMEOUT = "2", WRITE_HORIZON = "2", ACCESS_LOG = "off", LOG_LEVEL = "debug", SLOW_START = "0",
}

-- And workers: chunks and requests small enough that few records are many of them.
local WORKER_SETTINGS = { SYNC_INTERVAL = "3", SYNC_CHUNK_SIZE = "20", DEFAULT_BATCH_SIZE = "10" }

-- A worker has said that it is there.
local function is_worker(p)
  return function()
    local rows = pg.query({ "SELECT 1 AS there FROM sync_workers WHERE process LIKE $1", timeout = 1 },
      "%/" .. tostring(p.pid) .. "/%")
    return rows ~= nil and #rows > 0
  end
end

local function answers(url)
  return function()
    local a = fetch { url = url, timeout = 1 }
    return a ~= nil and a.status == 200
  end
end

-- {dir=, rng=, chromux=path of the program, settings={...},
--  balancers=1 or 2: how many chromux; workers=how many; wraps={primary=plan, replica=plan}: what wrap.c does between
--  chromux and them; steps, worker_steps: of core/fault.h, for each start; stepped_workers=how many have these;
--  bug=of bugs.lua, which is planted into chromux}
function M.new(s)
  local ports = {}
  for _, name in ipairs { "primary", "replica", "chromux", "second" } do ports[name] = process.free_port(s.rng) end
  local stage = setmetatable({ dir = s.dir, ports = ports, servers = {},
    broken = { primary = {}, replica = {} }, -- ids, on that server, of the collections whose files were damaged -> how
  }, { __index = M })
  for _, name in ipairs { "primary", "replica" } do
    stage.servers[name] = "http://127.0.0.1:" .. ports[name]
  end
  local reached = {} -- as chromux knows them
  for _, name in ipairs { "primary", "replica" } do
    reached[name] = stage.servers[name]
    if s.wraps then
      local port, plan = process.free_port(s.rng), s.dir .. "/" .. name .. ".plan"
      local f = assert(io.open(plan, "w"))
      f:write(s.wraps[name])
      f:close()
      reached[name] = "http://127.0.0.1:" .. port
      stage["wrap_" .. name] = process.new { name = "wrap_" .. name, log = s.dir .. "/wrap.log",
        argv = { "build/chaos/wrap", tostring(port), tostring(ports[name]), plan, s.dir .. "/" .. name .. ".wire" },
        ready = answers(reached[name] .. "/api/v2/heartbeat") }
    end
  end
  stage.urls = {}
  local env_chromux = {
    LISTEN_ADDRESS = "127.0.0.1", ADMIN_PORT = false, CHROMA_INSTANCES = false,
    PRIMARY_URL = reached.primary, REPLICA_URL = reached.replica,
    DATABASE_URL = os.getenv("DATABASE_URL") }
  env_chromux.FAULT_LOG = os.getenv("CHAOS_DIR") .. "/hits"
  for k, v in pairs(SETTINGS) do env_chromux[k] = v end
  for k, v in pairs(s.settings or {}) do env_chromux[k] = v end
  if s.bug then
    env_chromux.PLANT_FILE = "lb/" .. s.bug.module .. ".lua"
    env_chromux.PLANT_TEXT, env_chromux.PLANT_INSTEAD = s.bug.text, s.bug.instead
  end
  stage.postgres = process.new { name = "postgres", argv = { "scripts/pg.sh", "run", os.getenv("CHAOS_PG") or "" },
    env = { PG_FSYNC = "off", DATABASE_URL = false }, log = os.getenv("CHAOS_DIR") .. "/postgres.log",
    ready = function() return pg.query { "SELECT 1", timeout = 1 } ~= nil end }
  for _, name in ipairs { "primary", "replica" } do
    stage[name] = process.new { name = name, log = s.dir .. "/" .. name .. ".log",
      argv = { "scripts/chroma.sh", "start", tostring(ports[name]), s.dir .. "/" .. name },
      ready = answers(stage.servers[name] .. "/api/v2/heartbeat") }
  end
  stage.balancers = s.balancers == 2 and { "chromux", "second" } or { "chromux" }
  for i, name in ipairs(stage.balancers) do
    local url = "http://127.0.0.1:" .. ports[name]
    local env = { PORT = ports[name], ADVERTISE_URL = #stage.balancers > 1 and url or false,
      FAULT_POINTS = s.steps and s.steps[1] or false }
    for k, v in pairs(env_chromux) do env[k] = v end
    stage.urls[i] = url
    stage[name] = process.new { name = name, argv = { s.chromux, "run", "--role", "balancer" }, env = env,
      log = s.dir .. "/" .. name .. ".log", ready = answers(url .. "/health"), steps = s.steps }
  end
  stage.workers = {}
  for i = 1, s.workers or 0 do
    local steps = i <= (s.stepped_workers or 0) and s.worker_steps or nil
    local name, env = "worker" .. i, { FAULT_POINTS = steps and steps[1] or false }
    for k, v in pairs(env_chromux) do env[k] = v end
    for k, v in pairs(WORKER_SETTINGS) do env[k] = v end
    stage.workers[i] = name
    stage[name] = process.new { name = name, argv = { s.chromux, "run", "--role", "worker" }, env = env,
      log = s.dir .. "/" .. name .. ".log", steps = steps }
    stage[name].ready = is_worker(stage[name])
  end
  stage.ours = {}
  for _, name in ipairs(stage.balancers) do table.insert(stage.ours, name) end
  for _, name in ipairs(stage.workers) do table.insert(stage.ours, name) end
  return stage
end

-- What the journal throws away the check still needs.
local KEEP = { "CREATE TABLE chaos_entries (LIKE journal_entries)",
  [[CREATE FUNCTION chaos_keep() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO chaos_entries VALUES (OLD.*); RETURN OLD; END']],
  "CREATE TRIGGER chaos_keep BEFORE DELETE ON journal_entries FOR EACH ROW EXECUTE FUNCTION chaos_keep()",
  -- Who had the lease when an entry was appended, and which connection it came by.
  "CREATE TABLE chaos_appends (at bigserial, lane bigint, n bigint, epoch bigint, holder text, backend int)",
  [[CREATE FUNCTION chaos_append() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO chaos_appends (lane, n, epoch, holder, backend)
      SELECT NEW.lane, NEW.n, epoch, holder, pg_backend_pid() FROM journal_lease; RETURN NULL; END']],
  "CREATE TRIGGER chaos_append AFTER INSERT ON journal_entries FOR EACH ROW EXECUTE FUNCTION chaos_append()",
  "CREATE TABLE chaos_chunks (LIKE sync_chunks)",
  [[CREATE FUNCTION chaos_keep_chunk() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO chaos_chunks VALUES (OLD.*); RETURN OLD; END']],
  "CREATE TRIGGER chaos_keep BEFORE DELETE ON sync_chunks FOR EACH ROW EXECUTE FUNCTION chaos_keep_chunk()",
  -- Each time that a task was counted.
  "CREATE TABLE chaos_completed (task bigint, job bigint, epoch bigint, worker text)",
  [[CREATE FUNCTION chaos_count() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO chaos_completed VALUES (NEW.id, NEW.job, NEW.epoch, NEW.worker_id); RETURN NULL; END']],
  [[CREATE TRIGGER chaos_count AFTER UPDATE ON sync_tasks FOR EACH ROW
    WHEN (NEW.task_status = 'completed') EXECUTE FUNCTION chaos_count()]] }

-- A database without anything, and everything up.
function M:raise()
  self.primary:start()
  self.replica:start()
  self.postgres:await()
  assert(pg.query("DROP SCHEMA public CASCADE"))
  assert(pg.query("CREATE SCHEMA public"))
  self.primary:await()
  self.replica:await()
  for _, name in ipairs { "wrap_primary", "wrap_replica" } do
    if self[name] then self[name]:await() end
  end
  for _, name in ipairs(self.balancers) do self[name]:await() end
  self:await_journal(30)
  for _, sql in ipairs(KEEP) do assert(pg.query(sql)) end
  for _, name in ipairs(self.workers) do self[name]:await() end
end

-- Until the journal takes writes.
function M:await_journal(patience)
  for _, name in ipairs(self.balancers) do self:await_journal_of(name, patience) end
end

function M:await_journal_of(name, patience)
  local till = now() + patience
  local last
  while now() < till do
    if self[name]:ended() then -- it died at a step before it came so far
      M.next_steps(self[name])
      self[name]:start()
    end
    local a = fetch { url = "http://127.0.0.1:" .. self.ports[name] .. "/status", timeout = 2 }
    local s = a and a.status == 200 and json.decode(a.body)
    last = s and (s.journal and tostring(s.journal.state) .. " " .. tostring(s.journal.why) or s.replication)
      or "no /status"
    if s and type(s.journal) == "table" and s.journal.state == "on" then return end
    sleep(0.05)
  end
  error("the journal does not start: " .. tostring(last) .. "; see " .. self[name].log, 0)
end

-- Whatever was done to them, all run and answer; where workers are to make good what was done, wrappers behave, so that
-- it can come to an end.
function M:mend()
  for _, name in ipairs(#self.workers > 0 and { "wrap_primary", "wrap_replica" } or {}) do
    if self[name] then self[name]:signal(process.USR1) end
  end
  for _, name in ipairs { "postgres", "primary", "replica", unpack(self.ours) } do
    self[name]:resume()
    self[name]:await()
  end
end

-- All but PostgreSQL, which the next round uses again.
function M:strike()
  for _, name in ipairs { "wrap_primary", "wrap_replica", "primary", "replica", unpack(self.ours) } do
    if self[name] then
      self[name]:resume()
      self[name]:kill(process.KILL)
    end
  end
end

-- Before a process of ours that has died starts again: with the next of its steps.
function M.next_steps(p)
  p.start_number = (p.start_number or 1) + 1
  p.env.FAULT_POINTS = p.steps and p.steps[p.start_number] or false
  return true
end

-- Those of chromux that have ended run again; before(process) is called first.
function M:revive(before)
  for _, name in ipairs(self.ours) do
    local p = self[name]
    if not p.held and p:ended() and (not before or before(p)) then p:start() end
  end
end

function M:stop_postgres() self.postgres:kill(process.QUIT) end

return M
