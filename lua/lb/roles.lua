-- roles.lua: the two roles of a balancer, and how it comes from one into the other.
--
-- The holder of the lease gives every write its entry and feeds the servers. A standby follows what the holder commits
-- (follow.lua), and takes the lease over when that is free. A context is one stay in one role: what was begun in it
-- ends with it. The read side (core/copies.h) always shows the present context, and is replaced in one turn.
--
--   start(settings, hooks)    hooks: answer(entry, instance) when an entry has its verdict; left() when the lease is
--                             lost: who waits is to be taken to the next holder
--   stop() -> true when nothing is under way and the lease is given back; asked again until then
--   state                     {phase= "starting" | "on", why=, role=, context=, names=, store=, follow= (a standby's),
--                             holder={address=, epoch=} as last seen, servers=, settings=, life=}
local Store = require("lb.store")
local Lane = require("lb.lanes")
local Names = require("lb.names")
local words = require("lb.words")
local Servers = require("lb.servers")
local View = require("lb.view")
local Follow = require("lb.follow")
local Forward = require("lb.forward")
local Signal = require("lb.signal")
local Events = require("lb.events")
local Trim = require("lb.trim")
local Aside = require("lb.aside")
local notices = require("lb.notices")
local Rebuilds = require("lb.rebuild")
local Calls = require("lb.sync_calls")
local figures = require("lb.figures")
local identity = require("lb.identity")
local operate = require("lb.operate")
local adopt = require("lb.adopt")
local courier = require("lb.courier")
local process = require("lb.process")
local copies = require("chromux.copies")
local route = require("chromux.route")

local M = {}

local J = { phase = "off", why = "", role = "standby", settings = {} }
local hooks
M.state = J

-- Fault points are compiled into test builds only: fault(name, call) -> what is to be made to happen, if the name says
-- something that can be: seconds, or 0 (core/fault.h). call: the step is that all of that request was sent.
function M.fault() end
if copies.fault then
  function M.fault(name, call)
    while call and not select(2, call:touched()) and select(2, call:wait(0.001)) == "late" do end
    local what, seconds = copies.fault(name)
    if what == "delay" then sleep(seconds) end
    return what == "make" and seconds or nil
  end
end

-- ---- small things ----------------------------------------------------------------------------------------

-- A path segment from text (RFC 3986: unreserved characters stay).
local function encode(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

-- ---- the first start ---------------------------------------------------------------------------------------

local function say(phase, why)
  if J.phase ~= phase or J.why ~= why then
    log[phase == "on" and "info" or "warn"]("journal", phase .. (why ~= "" and ": " .. why or ""))
  end
  J.phase, J.why = phase, why
end

-- Every server's part in the catalogue and in every lane: sent again from its position; what may have been sent
-- before this life began is in doubt, and nothing is sent until that can't be executed any more.
local GROUP_MOST = 128

local function doubt_of(position, head)
  return position < head and math.min(position + GROUP_MOST, head) or 0
end

-- Copies in doubt settle once their server can be used.
local function settle_all(names, horizon)
  for _, copy in ipairs(names.order) do
    if not copy.settled and not copy.settling then
      copy.settling = true
      spawn(function()
        copy.server:settle(horizon)
        copy.settled, copy.settling = true, false
        names:kick()
      end)
    end
  end
  for _, lane in pairs(names.by_logical) do
    for _, copy in ipairs(lane.order) do
      if not copy.settled then lane:settle(copy, horizon) end
    end
  end
end

-- The first start takes over what is on the primary; whoever can be reached then joins before anything is written.
-- Seconds that the others get to be reached.
local ADOPT_WAIT = 5
-- Seconds that servers get to show their witnesses before anything is written: one may know more than PostgreSQL does.
local FIRST_LOOK = 1

local function adopt_first(context, names, life)
  local wait = 0.05
  while J.life == life and not context.dead and #names.order == 0 do
    local primary
    for _, s in ipairs(context.servers.list) do
      if s.role == "primary" and s:usable() then primary = s end
    end
    local ok, why = nil, "waiting for the primary, whose collections are taken over first"
    if primary then ok, why = adopt.primary(context, names, primary) end
    if not ok then
      say("starting", tostring(why))
      sleep(wait)
      wait = math.min(wait * 2, 1)
    end
  end
  local till = now() + ADOPT_WAIT
  local waiting
  repeat
    waiting = false
    for _, s in ipairs(context.servers.list) do
      if s.present and not names.copies[s.name] and s.health ~= "down" then
        waiting = not (s:usable() and adopt.join(context, names, s, true)) or waiting
      end
    end
    if waiting then sleep(0.05) end
  until not waiting or now() > till or J.life ~= life or context.dead
end

-- ---- a stay in a role ------------------------------------------------------------------------------------

local connections = {}

local function new_store(epoch)
  local store = Store.new(connections.append, connections.reader)
  store.epoch, store.fault = epoch or 0, M.fault
  return store
end

-- What both roles have: the read side by what `loaded` says. One turn: nobody sees half of it.
local function enter(role, store, loaded, more)
  local before, old = J.context, J.names
  local context = {
    settings = J.settings, store = store, copies = copies, encode = encode, fault = M.fault, servers = J.servers,
    journal_id = loaded.meta[1].journal_id, memory = { used = 0, most = J.settings.JOURNAL_MEMORY_BYTES / 2 },
    answer = hooks.answer, choose = route.choose, calls = setmetatable({}, { __mode = "k" }), over = Signal.new(),
    dead = false, ready = true, holder = role == "holder", drives = false, trusted = true, counts = figures.counts(),
    horizon = function() return J.settings.WRITE_HORIZON end,
  }
  context.events = Events.new(context)
  for name, value in pairs(more) do context[name] = value end
  function context.lane_new(row)
    copies.collection_set(row.logical, row.tenant, row.database, row.floor or 0)
    return Lane.new(context, row)
  end
  -- Whatever depends on whether a server can be used looks again.
  function context.on_changed(server)
    if context.dead or not context.names then return end
    for _, lane in pairs(context.names.by_logical) do
      local copy = lane.copies[server.name]
      if copy then lane:publish(copy) end
    end
  end
  context.on_usable = context.on_usable or context.on_changed
  if before then before.dead, before.drives = true, false end
  if J.follow then J.follow:stop() end
  copies.clear()
  J.servers.context = context
  J.servers:refresh()
  local names = Names.new(context)
  context.names, context.trim, context.aside = names, Trim.new(context, names), Aside.new(context, names)
  View.apply(context, names, loaded)
  context.rebuilds = Rebuilds.new(context, names, context.holder and loaded.rebuilds, context.settle)
  if old then -- answered here, and newer than what was loaded
    for logical, lane in pairs(names.by_logical) do
      local was = old.by_logical[logical]
      if was and was.floor > lane.floor then
        lane.floor = was.floor
        lane:publish_floor()
      end
    end
  end
  J.context, J.names, J.store, J.role, J.follow = context, names, store, role, nil
  for _, s in ipairs(J.servers.list) do s:admit() end
  return context, names
end

-- The lane's entries without a verdict, oldest first.
local function undecided(lane)
  local out = {}
  for n = lane.oldest, lane.head do
    local e = lane.entries[n]
    if e and not e.verdict then out[#out + 1] = e end
  end
  return out
end

-- The holder's, besides what enter() makes.
local function holder_context(store, lease, horizon)
  local context = { settle = horizon }
  -- After a holder that wrote that nothing is under way only what it noted is in doubt.
  function context.doubt_of(row, head)
    if lease.clean then return row.doubt > row.position and row.doubt or 0 end
    return doubt_of(row.position, head)
  end
  function context.lane_over(lane)
    for _, e in ipairs(undecided(lane)) do
      local a = words.no_collection_of_id(lane.logical)
      e.verdict, e.status, e.answer, e.answer_type = "rejected", a.status, a.body, a.type
      J.context.counts.rejected = J.context.counts.rejected + 1
      hooks.answer(e)
    end
    J.context.trim:lane_closed(lane.id)
  end
  local joining = {}
  function context.on_usable(server)
    local own = J.context
    local names = own.names
    own.on_changed(server)
    if joining[server.name] then return end
    joining[server.name] = true
    spawn(function()
      while not own.dead and not names.copies[server.name] do
        if #names.order > 0 and J.phase == "on" then adopt.join(own, names, server, false) end
        if not names.copies[server.name] then sleep(0.2) end
      end
      joining[server.name] = nil
      if own.dead then return end
      names:kick()
      for _, lane in pairs(names.by_logical) do lane:kick() end
    end)
  end
  function context.on_lost(server, reason)
    local names = J.names
    local rows = store:commit { Store.copies_lost(server.name, reason, server:newest_stamp()),
      Store.event("server_lost_data", server.name, nil, reason),
      notices.of_journal("server_lost_data", server.name, nil, reason) }
    if not rows then return false end
    log.error("server_lost_data", server.name .. ": " .. reason)
    local member = names.copies[server.name]
    if member then member.state, member.reason = "rebuild", reason end
    for _, lane in pairs(names.by_logical) do
      local copy = lane.copies[server.name]
      if copy and copy.state == "ready" then
        copy.state, copy.reason, copy.changed = "rebuild", reason, now()
        lane:publish(copy)
      end
    end
    return true
  end
  return context
end

-- The lease is ours until then, by the clock of courier.boottime().
local function lease_until(context, at)
  context.lease_until = at
  courier.fence(at)
end

-- The lease is another's: nothing of this stay may reach a server any more, and who waits is taken to the next holder.
local function leave(context)
  if context.dead then return end
  context.trusted = false
  View.each_copy(context.names, function(lane, copy) lane:publish(copy) end)
  context.dead, context.drives = true, false
  courier.fence(0)
  for call in pairs(context.calls) do call:close() end
  J.role = "standby"
  M.fault("fenced.answering")
  log.error("journal_fenced", "another balancer has the lease")
  hooks.left()
  context.over:fire()
end

-- PostgreSQL is not what it was: nothing is written any more, and what is known is read on.
local function stop_writes(context, reason)
  if context.dead then return end
  context.store.suspended = reason
  context.dead, context.drives = true, false
  courier.fence(0)
  say("restored", reason)
  hooks.left()
  for call in pairs(context.calls) do call:close() end
  context.over:fire()
end

-- Until an operator has said which side is right (operate.lua).
local function await_operator(life, store, reason)
  say("restored", reason)
  log.error("postgres_restored", reason .. "; writes are stopped: see chromux journal accept-restore")
  local noted = false
  while J.life == life do
    noted = noted or identity.suspend(store, reason)
    if noted and identity.accepted(store) then
      log.warn("postgres_accepted", "an operator has said which side is right: starting anew")
      return
    end
    sleep(0.5)
  end
end

local function keep_lease(life, context, store, ttl)
  while J.life == life and not context.dead do
    sleep(ttl / 4)
    if context.dead then break end
    M.fault("lease.expired_unaware")
    local at = courier.boottime()
    local mine = store:lease_renew(ttl)
    if mine and not context.dead then
      lease_until(context, at + ttl)
    elseif mine == false and store.suspended then
      stop_writes(context, store.suspended)
    elseif mine == false then
      leave(context)
    end
  end
end

-- Loads, or nil when the life is over meanwhile.
local function load(life, store)
  local wait = 0.05
  while J.life == life do
    local loaded, why = store:load()
    if loaded then return loaded end
    say("starting", "PostgreSQL: " .. tostring(why))
    sleep(wait)
    wait = math.min(wait * 2, 1)
  end
end

-- From the lease to its loss.
local function hold(life, lease)
  local ttl = J.settings.LEASE_TIMEOUT
  local store = new_store(lease.epoch)
  store.renewed, store.prior = lease.renewed, lease.prior
  if J.role ~= "standby" or not J.context then say("starting", "the lease is ours") end
  M.fault("takeover.before_load")
  local loaded
  repeat
    local is, why = identity.check(store)
    if is == "suspended" then return await_operator(life, store, why) end
    loaded = is and store:load()
    if not loaded then
      sleep(0.05)
      local at = courier.boottime()
      local mine = store:lease_renew(ttl)
      if mine == false then return end
      if mine then lease.asked = at end
    end
  until loaded or J.life ~= life
  if J.life ~= life then return end
  local horizon = math.max(lease.dead and Servers.SETTLE_DEAD or J.settings.WRITE_HORIZON, lease.paused)
  local context, names = enter("holder", store, loaded, holder_context(store, lease, horizon))
  J.servers:hold_stamps(horizon)
  context.drives = true
  lease_until(context, lease.asked + ttl)
  J.holder = { address = "", epoch = lease.epoch }
  function store.on_fenced() leave(context) end
  function context.on_restored(reason) stop_writes(context, reason) end
  store.on_restored = context.on_restored
  spawn(keep_lease, life, context, store, ttl)
  if not lease.clean then store:enqueue({ Store.doubt_all(GROUP_MOST) }, nil, function() end) end
  settle_all(names, horizon)
  if #names.order == 0 then
    say("starting", "the primary's collections are taken over")
    adopt_first(context, names, life)
  end
  if not context.dead then J.servers:await_look(FIRST_LOOK) end
  if context.dead and store.suspended then return await_operator(life, store, store.suspended) end
  if J.life ~= life or context.dead then return end
  copies.on(true)
  say("on", "")
  log.info("lease_taken", "epoch " .. lease.epoch)
  context.events:note("lease_taken", nil, nil, "epoch " .. lease.epoch .. " by " .. J.name .. (J.address ~= ""
    and " at " .. J.address or ""))
  spawn(adopt.watch, context, names)
  spawn(function() context.trim:run() end)
  spawn(function() context.aside:run() end)
  spawn(function() context.rebuilds:run() end)
  Calls.serve(J)
  operate.listen(J)
  names:kick()
  for _, lane in pairs(names.by_logical) do lane:kick() end
  -- Those that were looked at as a standby are not looked at again.
  for _, s in ipairs(J.servers.list) do
    if s:usable() and not names.copies[s.name] then context.on_usable(s) end
  end
  Forward.changed()
  while J.life == life and not context.dead do context.over:wait() end
  if store.suspended and J.life == life then await_operator(life, store, store.suspended) end
end

-- Follows the holder. loaded while notifications arrive, or read again when they begin to.
local function begin_to_follow(store, loaded)
  local context, names = enter("standby", store, loaded, {
    trusted = false,
    doubt_of = function(row) return row.doubt > row.position and row.doubt or 0 end,
    look_again = function()
      local f = J.follow
      if not f then return nil, "not following yet" end
      f:touch("*")
      if f:caught_up(now() + 5) then return true end
      return nil, "PostgreSQL does not answer"
    end,
  })
  local f = Follow.new(context, names)
  J.follow = f
  f:touch("*")
  spawn(function() f:run() end)
  f:caught_up(now() + 1)
  copies.on(true)
  say("on", "")
  return f
end

-- Until the lease is ours: what Store:lease_take says of it. nil: the life is over.
local function stand_by(life)
  local settings = J.settings
  local ttl, store, follow = settings.LEASE_TIMEOUT, new_store(), nil
  while J.life == life and not J.stopping do
    local asked = courier.boottime()
    J.taking = true
    local lease, other = store:lease_take(J.name, J.address, ttl, settings.WRITE_HORIZON, process.dead)
    if lease and J.stopping then store:lease_release() end
    J.taking = false
    if lease and not J.stopping then
      lease.asked = asked
      return lease
    end
    if type(other) == "table" then
      if not J.holder or J.holder.epoch ~= other.epoch then
        J.holder = { name = other.holder, address = other.address, epoch = other.epoch }
        log.info("standby", "the lease is held by " .. other.holder .. " at " .. (other.address ~= ""
          and other.address or "no ADVERTISE_URL: writes that come here can't be taken there"))
        Forward.changed()
      end
      if not follow then
        if not connections.followed then
          connections.followed = true
          Follow.listen(connections.reader, function() return J.follow end, function() J.poked = true end)
        end
        local loaded = load(life, store)
        if not loaded then return nil end
        follow = begin_to_follow(store, loaded)
      end
    elseif not follow then
      say("starting", "PostgreSQL: " .. tostring(other))
    end
    local till = now() + math.min(ttl / 4, 0.25)
    while now() < till and not J.poked and J.life == life do sleep(0.02) end
    J.poked = false
  end
end

local function live(life)
  say("starting", "waiting for PostgreSQL")
  connections.append, connections.reader = pg.connection("append"), pg.connection("reader")
  J.store = new_store()
  local wait = 0.05
  while J.life == life do
    local ok, why = J.store:migrate()
    if ok then break end
    say("starting", "PostgreSQL: " .. tostring(why))
    sleep(wait)
    wait = math.min(wait * 2, 1)
  end
  while J.life == life and not J.stopping do
    local lease = stand_by(life)
    -- A holder that fails must not keep the lease.
    local fine, why = true, nil
    if lease then fine, why = xpcall(hold, debug.traceback, life, lease) end
    if not fine then
      log.error("journal_failed", why)
      if J.context and J.context.holder then leave(J.context) end
      sleep(1)
    end
  end
end

local function watch_servers()
  J.servers = Servers.new()
  J.servers.context = { ready = false, on_changed = function() end,
    horizon = function() return J.settings.WRITE_HORIZON end }
  courier.on_incarnation(function(name, n)
    local s = J.servers.by_name[name]
    if s then s:set_incarnation(n) end
  end)
  courier.on_health(function(name, health)
    local s = J.servers.by_name[name]
    if s then s:set_health(health) end
  end)
  courier.on_membership(function() J.servers:refresh() end)
  spawn(function() J.servers:keep_stamping() end)
end

function M.start(settings, given)
  J.settings, hooks = settings, given
  settings.DRAIN_CAP = settings.DRAIN_CAP or 30
  J.name = process.name()
  J.address = (settings.ADVERTISE_URL or ""):gsub("/+$", "")
  J.life = (J.life or 0) + 1
  say("starting", "")
  watch_servers()
  spawn(live, J.life)
end

-- ---- stopping --------------------------------------------------------------------------------------------

-- Nothing is under way to any server, and what is known of it is written.
local function drained(context)
  if #context.store.queue > 0 or context.store.running or not context.rebuilds:idle() then return false end
  local idle = true
  for _, copy in ipairs(context.names.order) do idle = idle and not copy.running end
  View.each_copy(context.names, function(_, copy) idle = idle and not copy.running end)
  return idle
end

-- Seconds for PostgreSQL to come back in, when there is a lease to give back.
local STOP_PATIENCE = 2

local function wind_up()
  local context = J.context
  if J.role == "holder" and context and not context.dead then
    context.drives = false
    local healthy_at = now()
    while not drained(context) and not context.dead and now() - healthy_at < STOP_PATIENCE do
      if context.store:healthy() then healthy_at = now() end
      sleep(0.01)
    end
    if drained(context) and not context.dead then context.store:lease_release() end
  end
  local till = now() + STOP_PATIENCE
  while J.taking and now() < till do sleep(0.01) end
  J.life = J.life + 1
  if context then context.dead, context.drives = true, false end
  courier.fence(0)
  J.over = true
end

-- The clients are gone. Ends what is under way, and gives the lease back so that another takes it at once.
function M.stop()
  if J.phase == "off" or J.over then return true end
  if not J.stopping then
    J.stopping = true
    spawn(wind_up)
  end
  return false
end

return M
