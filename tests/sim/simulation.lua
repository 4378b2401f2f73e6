-- simulation.lua: one seed: servers, PostgreSQL, balancers, clients and faults until all is at rest.
local Balancer = require("balancer")
local Check = require("check")
local Chroma = require("chroma")
local Clients = require("clients")
local Postgres = require("postgres")
local Records = require("records")
local Sync = require("sync")
local World = require("world")

local M = {}

local QUIET = 120 -- seconds of virtual time in which everything must come to rest

-- Which faults a seed has, and how often: most seeds have some, few have all.
local function faults_of(rng)
  return {
    pglost = rng:pick { 0, 0, 0.02, 0.06 }, pgslow = rng:pick { 0, 0, 0.01, 0.03 },
    slow = rng:pick { 0, 0, 0.02, 0.08 }, e500 = rng:pick { 0, 0, 0, 0.05 }, busy = rng:pick { 0, 0, 0.03 },
    broken = rng:pick { 0, 0, 0.01 }, crash_at = rng:pick { 0, 0, 0.002, 0.01 },
    poison = rng:pick { 0, 0, 0, 0.03 }, skew = rng:pick { 0, 0, 0, 0.04 },
    nemesis = rng:pick { 0.3, 1, 2.5 }, wipe = rng:chance(0.2), adopt = rng:chance(0.15),
    errors = rng:pick { 0, 0, 0, 0, 0.8 }, -- of the catalogue
    -- Copies are made anew: because they must be, or for nothing; by workers that die.
    sync = rng:chance(0.6), anew = rng:pick { 0, 0.3, 1 }, workers = rng:pick { 0, 0.03, 0.15 },
  }
end

local NONE = { pglost = 0, pgslow = 0, slow = 0, e500 = 0, busy = 0, broken = 0, crash_at = 0, poison = 0, skew = 0,
  errors = 0 }

local function balancer(sim, host)
  local b = Balancer.new(sim.context(host))
  table.insert(sim.balancers, b)
  return b
end

local function living(sim, fn)
  local out = {}
  for _, b in ipairs(sim.balancers) do
    if not b.process.dead and (not fn or fn(b)) then out[#out + 1] = b end
  end
  return out
end

local function second_host(sim) return "host-2-" .. sim.boots end

local function new_life(sim, delay)
  sim.world:after(delay, function()
    if #living(sim, function(b) return not b.process.paused end) == 0 then
      balancer(sim, sim.rng:pick { "host-1", "host-1", "host-1", second_host(sim) })
    end
  end)
end

local function crash(sim, b)
  local alone = #living(sim, function(o) return o.host == b.host end) == 1
  b.silent = b.host ~= "host-1" and alone and sim.rng:chance(0.5)
  if b.silent then sim.boots = sim.boots + 1 end -- the machine went, and comes back as another
  sim.world:kill(b.process)
  new_life(sim, 0.05 + sim.rng:unit())
end

-- ---- faults ----------------------------------------------------------------------------------------------

local function ready_elsewhere(sim, server)
  for _, lane in ipairs(sim.sorted(sim.db.lanes)) do
    local others = 0
    for _, s in ipairs(sim.servers) do
      local c = sim.db.copies[Postgres.copy_key(lane, s.name)]
      if s ~= server and c and c.state == "ready" then others = others + 1 end
    end
    if sim.db.lanes[lane].open and others == 0 then return false end
  end
  return true
end

local function stamped(sim, server)
  local row = sim.db.servers[server.name]
  return row and row.witness or 0
end

-- How often the server came into the catalogue; 0: not yet.
local function membership(sim, server)
  local member = sim.db.copies[Postgres.copy_key(0, server.name)]
  return member and member.incarnation or 0
end

-- Nothing is lost at present: what a server lost was noticed, and is there again.
local function healed(sim)
  if not sim.wiped then return true end
  return sim.sync ~= nil and membership(sim, sim.wiped) > sim.wiped_at and sim.sync:idle()
end

local Nemesis = {}

function Nemesis.kill(sim, server)
  if not server.up then return end
  server:kill()
  local wiped = false
  if sim.faults.wipe and healed(sim) and sim.rng:chance(0.3) and ready_elsewhere(sim, server) then
    sim.wiped, wiped = server, true
    sim.wiped_at = membership(sim, server)
    sim.check.lost(server)
    if sim.backup and sim.backup.server == server and stamped(sim, server) > sim.backup.stamped
      and sim.rng:chance(0.6) then -- a younger one can't be told
      sim.world:say(server.name, "gets an old backup")
      server:restore(sim.backup)
    else
      sim.world:say(server.name, "loses everything")
      server:wipe()
    end
  end
  sim.world:after(0.1 + sim.rng:unit() ^ 2 * (wiped and 1 or 4), function() server:start() end)
end

function Nemesis.stop(sim, server)
  if not server.up or server.paused then return end
  server:pause()
  local life = server.life
  sim.world:after(0.2 + sim.rng:unit() ^ 2 * 8, function()
    if server.paused and server.life == life then server:continue() end
  end)
end

function Nemesis.backup(sim, server)
  if not server.up or sim.backup then return end
  sim.backup = server:backup()
  sim.backup.server, sim.backup.stamped = server, stamped(sim, server)
end

function Nemesis.crash(sim, _, b)
  if b and not b.process.paused then crash(sim, b) end
end

function Nemesis.pause(sim, _, b)
  if not b or b.process.paused then return end
  local p = b.process
  sim.world:pause(p)
  sim.world:after(0.2 + sim.rng:unit() ^ 2 * 9, function()
    if p.paused and not p.dead then sim.world:continue(p) end
  end)
  if sim.rng:chance(0.6) then new_life(sim, sim.rng:unit()) end
end

function Nemesis.second(sim)
  if #living(sim) < 2 then balancer(sim, sim.rng:pick { "host-1", second_host(sim) }) end
end

function Nemesis.sync(sim)
  if sim.sync then Sync.crash(sim) end
end

function Nemesis.postgres(sim)
  if not sim.postgres.up then return end
  sim.postgres:stop()
  sim.world:after(0.05 + sim.rng:unit() ^ 2 * 4, function() sim.postgres:start() end)
end

local FAULTS = { { 5, "kill" }, { 3, "stop" }, { 1, "backup" }, { 3, "crash" }, { 3, "pause" }, { 1, "second" },
  { 1, "postgres" }, { 1, "sync" } }

local function nemesis(sim)
  local rng = sim.rng
  local function strike()
    if sim.clients == 0 then return end
    local lives = living(sim)
    Nemesis[rng:weighted(FAULTS)](sim, rng:pick(sim.servers), #lives > 0 and rng:pick(lives) or nil)
    sim.world:after(0.02 + rng:unit() * sim.faults.nemesis * 2, strike)
  end
  sim.world:after(1 + rng:unit() * sim.faults.nemesis, strike)
end

-- ---- a seed ----------------------------------------------------------------------------------------------

-- Collections that stand before the first start, on the first server and perhaps on others.
local function before_the_journal(sim)
  local rng = sim.rng
  local first = sim.servers[1]
  local c = Records.collection(Chroma.uuid(rng), "old", "default_tenant", "default_database")
  first.collections[c.id] = c
  local bodies = {}
  for i = 1, 3 do
    bodies[i] = string.format('{"ids":["%s"],"embeddings":[[%d,0]],"documents":["old%d"],"metadatas":[{"k":%d}]}',
      ("abc"):sub(i, i), i, i, i % 3)
    Records.apply(c, "add", bodies[i])
  end
  sim.before = { [c.id] = Records.clone(c) }
  for i = 2, #sim.servers do
    if rng:chance(0.7) then
      local o = Records.collection(Chroma.uuid(rng), "old", "default_tenant", "default_database")
      for k = 1, rng:chance(0.8) and 3 or 2 do Records.apply(o, "add", bodies[k]) end
      sim.servers[i].collections[o.id] = o
    end
  end
end

local function calm(sim)
  sim.calm = true
  for k, v in pairs(NONE) do sim.faults[k] = v end
  for _, s in ipairs(sim.servers) do
    if s.paused then s:continue() end
    if not s.up then sim.world:after(1, function() if not s.up then s:start() end end) end
  end
  if not sim.postgres.up then sim.postgres:start() end
  if sim.sync then sim.faults.anew = 0 end
  for _, b in ipairs(living(sim)) do
    if b.process.paused then sim.world:continue(b.process) end
  end
  if #living(sim) == 0 then new_life(sim, 0.1) end
end

-- verbose: tells what happens. given: faults in place of those that the seed has. -> violations, sim
function M.run(seed, verbose, fault_points, given)
  local world = World.new(seed, verbose)
  local rng = world.rng
  Balancer.reset_pids()
  local faults = faults_of(rng)
  for k, v in pairs(given or {}) do faults[k] = v end
  local sim = { world = world, rng = rng, faults = faults, servers = {}, balancers = {}, operations = {}, reads = {},
    boots = 0, by_id = {}, read = Clients.read, swaps = 0,
    number = 0, sorted = Postgres.sorted, before = {}, pace = rng:pick { 0.01, 0.05, 0.3 },
    catalogue = rng:pick { 0.03, 0.1, 0.4 }, start_faults = {} }
  for k, v in pairs(faults) do sim.start_faults[k] = v end
  local count = rng:pick { 2, 2, 3 }
  for i = 1, count do
    sim.servers[i] = Chroma.new(world, ("abc"):sub(i, i), faults, i == 2)
  end
  function sim.server_named(name)
    for _, s in ipairs(sim.servers) do
      if s.name == name then return s end
    end
  end
  sim.postgres = Postgres.new(world, faults)
  sim.db = sim.postgres.db
  local check = Check.new(sim)
  sim.check = check
  for _, s in ipairs(sim.servers) do s.watch = check.server end
  sim.postgres.on_commit = check.commit
  local settings = { JOURNAL_KEEP = 1e6, JOURNAL_KEEP_BYTES = 1e12, JOURNAL_MAX_BYTES = 1e12, SYNC_INTERVAL = 300,
    LEASE_TIMEOUT = 3, TRY_TIMEOUT = 1, DRAIN_CAP = 3, WRITE_HORIZON = 5, ALLOW_RESET = rng:chance(0.3),
    JOURNAL_MEMORY_BYTES = rng:pick { 64e6, 64e6, 2000 }, REQUEST_TIMEOUT = 30 }
  function sim.context(host)
    return { world = world, postgres = sim.postgres, servers = sim.servers, faults = faults, settings = settings,
      host = host, watch = check.balancer, points = fault_points or {},
      request_of = function(id) return sim.by_id[id] end, quiet = function() return sim.calm end,
      crash = function(b) crash(sim, b) end }
  end
  if faults.adopt then before_the_journal(sim) end
  if verbose then
    local told = {}
    for _, k in ipairs(sim.sorted(sim.start_faults)) do told[#told + 1] = k .. "=" .. tostring(faults[k]) end
    world:say("seed", seed, count .. " servers", table.concat(told, " "))
  end
  balancer(sim, "host-1")
  if rng:chance(0.4) then world:after(0.1, function() balancer(sim, rng:pick { "host-1", second_host(sim) }) end) end
  if faults.sync then Sync.start(sim) end
  world:after(0.3, function()
    Clients.start(sim, rng:int(2, 5), rng:int(6, 20))
    nemesis(sim)
  end)
  sim.clients = 1
  local ended = world:run(function() return sim.clients == 0 end, 400)
  if ended and sim.clients == 0 then
    calm(sim)
    local at_rest
    local function look()
      at_rest = check.at_rest()
      if not at_rest then world:after(0.25, look) end
    end
    look()
    local most = world.t + QUIET
    ended = world:run(function() return at_rest end, most)
    if at_rest and sim.sync then
      local repaired
      Sync.repair(sim, function() repaired = true end)
      ended = world:run(function() return repaired end, most)
    end
    if at_rest then ended = world:run(function() return false end, world.t + Chroma.SLOW_MOST) end
    if not at_rest then world:violation("NO-REST", check.why_not()) end
  elseif ended then
    world:violation("CLIENTS-STUCK", sim.clients .. " clients")
  end
  if not ended then world:violation("LIVELOCK", "more than the steps allowed, at " .. world.t) end
  check.finish()
  return world.violations, sim
end

return M
