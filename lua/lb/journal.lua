-- journal.lua: the journal's life in one balancer, and the door through which C comes in (core/journal.c).
--
-- Starts (schema, lease, what PostgreSQL holds, the servers), keeps the lease, gives every write its entry, and
-- answers: each request that C hands over gets exactly one answer, at its deadline at the latest.
--
--   start(settings)   submit(request)   gone(ticket)   lost{logical=, instance=}   status()   metrics()   stop()
local Store = require("lb.store")
local Lane = require("lb.lanes")
local Names = require("lb.names")
local Servers = require("lb.servers")
local adopt = require("lb.adopt")
local courier = require("lb.courier")
local copies = require("chromux.copies")
local answers = require("chromux.answer")
local route = require("chromux.route")
local json = json

local M = {}

local TICK = 0.05 -- seconds between looks at deadlines
local J = { phase = "off", why = "", tickets = {}, settings = {} }
M.state = J -- for tests

-- ---- small things ----------------------------------------------------------------------------------------

-- A path segment from text (RFC 3986: unreserved characters stay).
local function encode(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function random_hex(n)
  local f = assert(io.open("/dev/urandom", "rb"))
  local bytes = f:read(n)
  f:close()
  return (bytes:gsub(".", function(c) return string.format("%02x", c:byte()) end))
end

local function read_line(path)
  local f = io.open(path)
  local line = f and f:read("*l")
  if f then f:close() end
  return line
end

-- When the process began, in ticks since the boot: with the pid it names a process for good.
local function started_at(pid)
  local stat = read_line("/proc/" .. pid .. "/stat")
  if not stat then return nil end
  local fields = {}
  for word in stat:match("%)%s+(.*)$"):gmatch("%S+") do fields[#fields + 1] = word end
  return fields[20]
end

local function own_name()
  local pid = read_line("/proc/self/stat"):match("^%d+")
  return table.concat({ read_line("/proc/sys/kernel/random/boot_id") or "?", pid, started_at(pid) or "?" }, "/")
end

-- Is this holder known to have ended? Only of processes of this machine's present boot can that be said.
local function known_dead(holder)
  local boot, pid, began = holder:match("^([^/]+)/(%d+)/(.+)$")
  return boot ~= nil and boot == read_line("/proc/sys/kernel/random/boot_id") and started_at(pid) ~= began
end

local next_token = 0
local function fresh_token()
  next_token = next_token + 1
  return J.token_base .. string.format("%x", next_token)
end

-- Fault points are compiled into test builds only.
local fault = copies.fault or function() end

-- ---- answering -------------------------------------------------------------------------------------------

-- Every ticket that is open: {ticket=, deadline=, entry=, lane=}.
local function open_ticket(req)
  local t = { ticket = req.ticket, deadline = req.deadline, read = req.reads }
  J.tickets[req.ticket] = t
  return t
end

local function close_ticket(t)
  if J.tickets[t.ticket] ~= t then return false end
  J.tickets[t.ticket] = nil
  return true
end

local function send(t, a, instance, fields)
  if close_ticket(t) then answers.send(t.ticket, a.status, a.type or "", a.body or "", fields, instance) end
end

local function refuse(t, reason, message, retry_after)
  if close_ticket(t) then answers.refuse(t.ticket, reason, message, retry_after) end
end

local function entry_name(e) return e.lane .. "/" .. e.n end

local function send_verdict(e, instance)
  local tickets = e.tickets or {}
  e.tickets = {}
  for _, t in ipairs(tickets) do
    if e.action == "create_collection" and e.verdict == "void" then
      spawn(function()
        local p = json.decode(e.rest) or {}
        local lane = J.names:find(p.tenant, p.database, p.name)
        local a, who = nil, "the collection is gone again"
        if lane then a, who = J.names:describe(lane, t.deadline) end
        if a then
          send(t, a, who, "X-Chromux-Entry: " .. entry_name(e) .. "\r\n")
        else
          refuse(t, "no_instance", "the collection exists, but cannot be described: " .. tostring(who))
        end
      end)
    else
      send(t, { status = e.status, type = e.answer_type, body = e.answer }, instance,
        "X-Chromux-Entry: " .. entry_name(e) .. "\r\n")
    end
  end
end

local function late(t)
  local e = t.entry
  if not e then
    refuse(t, t.read and "no_instance" or "journal_away", "the request was not begun in time", 1)
  elseif e.n then
    refuse(t, "not_applied", "this write is kept as entry " .. entry_name(e)
      .. " and will be applied, but no instance has confirmed it yet; do not send it again")
  elseif t.handle and not Store.cancel(t.handle) then
    refuse(t, "outcome_unknown", "PostgreSQL went away while this write was being kept: whether it was is not known")
  else
    refuse(t, "journal_away", "PostgreSQL does not answer: this write was not kept", 1)
  end
end

local function watch_deadlines(life)
  while J.life == life do
    local t_now = now()
    for _, t in pairs(J.tickets) do
      if t_now >= t.deadline then late(t) end
    end
    sleep(TICK)
  end
end

-- ---- taking a write --------------------------------------------------------------------------------------

local function token_of(req)
  if req.token then return req.token end
  if req.key then return "key:" .. req.key end
  return fresh_token()
end

-- A token that was used before: the recorded answer, or the same wait.
local function repeated(t, e)
  spawn(function()
    local rows, why = J.store:by_token(e.token)
    if not rows then return refuse(t, "outcome_unknown", "PostgreSQL went away: " .. why) end
    local row = rows[1]
    if not row then
      local a = e.logical and Names.no_collection_of_id(e.logical)
      return a and send(t, a) or refuse(t, "journal_away", "the entry could not be made", 1)
    end
    local home = row.lane == 0 and J.names or J.names.by_lane[row.lane]
    local known = home and home.entries[row.n]
    if row.verdict then
      row.tickets = { t }
      send_verdict(row)
    elseif known and not known.verdict then
      t.entry = known
      table.insert(known.tickets, t)
    else
      t.entry = row
    end
  end)
end

-- Appends the entry to a lane; over(e) puts it into memory, in the order of the numbers; over() when there is none.
local function append(t, lane_id, e, over)
  e.lane, e.tickets = lane_id, { t }
  t.entry = e
  fault("append.before_commit")
  t.handle = J.store:enqueue({ Store.append_entry(lane_id, e) }, t.deadline, function(rows, why)
    if rows and rows[1][1] then
      e.n = rows[1][1].n
      fault("append.committed_unanswered")
      return over(e)
    end
    over()
    if rows or tostring(why):find("duplicate key", 1, true) then
      e.tickets = {}
      repeated(t, e)
    elseif why == "fenced" then
      refuse(t, "journal_away", "another balancer has taken over; send it there", 1)
    elseif why == "away" then
      refuse(t, "journal_away", "PostgreSQL does not answer: this write was not kept", 1)
    else
      refuse(t, "journal_away", "PostgreSQL refused to keep this write: " .. tostring(why), 1)
    end
  end)
end

local REST = "^[^?]*/collections/[^/?]+(.*)$"
-- Not journalled: single-node Chroma has none of them, and each would make things that have no name here.
local UNSUPPORTED = { fork = "Collection forking is unsupported for local chroma",
  attach_function = "attached functions are unsupported", detach_function = "attached functions are unsupported",
  conditional_commit = "transactions are unsupported" }

local function write_records(t, req)
  local lane = J.names.by_logical[req.collection]
  if UNSUPPORTED[req.action] then
    return send(t, { status = 501, type = "application/json", body = json.encode {
      error = "ChromaError", message = UNSUPPORTED[req.action] } })
  end
  if not lane and not Names.is_id(req.collection) then return send(t, Names.no_id()) end
  if not lane or lane.tenant ~= req.tenant or lane.database ~= req.database then
    return send(t, Names.no_collection_of_id(req.collection))
  end
  lane:arriving()
  append(t, lane.id, { token = token_of(req), action = req.action, rest = req.target:match(REST) or "",
    type = req.type, body = req.body, logical = lane.logical }, function(e) lane:arrived(e) end)
end

local function write_catalogue(t, req)
  local p = { tenant = req.tenant, database = req.database, collection = req.collection, by_name = req.by_name }
  local body = req.body ~= "" and json.decode(req.body) or nil
  if type(body) == "table" then
    p.name = type(body.name) == "string" and body.name or nil
    p.new_name = type(body.new_name) == "string" and body.new_name or nil
    p.get_or_create = body.get_or_create == true or nil
  end
  if req.action == "reset" and not J.settings.ALLOW_RESET then
    return send(t, { status = 403, type = "application/json",
      body = '{"error":"ChromaError","message":"Reset is disabled by config"}' })
  end
  if req.tenant == "chromux" or (req.action == "create_tenant" and p.name == "chromux") then
    return send(t, { status = 403, type = "application/json",
      body = '{"error":"ChromaError","message":"The tenant chromux is chromux\'s own"}' })
  end
  -- What is there already needs no entry.
  local there = req.action == "create_collection" and p.get_or_create and p.name
    and J.names:find(p.tenant, p.database, p.name)
  if there and J.names.floor == J.names.head then
    spawn(function()
      local a, who = J.names:describe(there, t.deadline)
      if a then return send(t, a, who) end
      refuse(t, "no_instance", "the collection exists, but cannot be described: " .. tostring(who))
    end)
    return
  end
  append(t, 0, { token = token_of(req), action = req.action, rest = json.encode(p), type = req.type, body = req.body },
    function(e) if e then J.names:insert(e) end end)
end

-- A request that C handed over (core/journal.h).
function M.submit(req)
  local t = open_ticket(req)
  if J.phase ~= "on" then
    return refuse(t, "journal_away", "the journal is not ready: " .. J.why, 1)
  end
  if req.reads then
    spawn(function()
      local a, who = J.names:read(req)
      if a then return send(t, a, who) end
      refuse(t, "no_instance", "the catalogue cannot be read: " .. tostring(who))
    end)
    return
  end
  if not J.store:healthy() then
    return refuse(t, "journal_away", "PostgreSQL does not answer: this write was not kept", 1)
  end
  if req.class == "write" then return write_records(t, req) end
  write_catalogue(t, req)
end

-- The client is gone: its write goes on, but nobody is told.
function M.gone(ticket) J.tickets[ticket] = nil end

-- A read was answered "no such collection" by an instance that should have it.
function M.lost(what)
  local lane = J.names and J.names.by_logical[what.logical]
  local copy = lane and lane.copies[what.instance]
  if copy and copy.state == "ready" then
    spawn(function() lane:mark(copy, "rebuild", "a read was answered: no such collection") end)
  end
end

-- ---- starting --------------------------------------------------------------------------------------------

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

local function build(context, loaded)
  local names = Names.new(context)
  local lanes = {}
  for _, row in ipairs(loaded.lanes) do lanes[row.lane] = row end
  names.head = lanes[0].next - 1
  names.floor = lanes[0].undecided - 1
  for _, row in ipairs(loaded.tenants) do names.tenants[row.name] = true end
  for _, row in ipairs(loaded.databases) do names.databases[row.tenant .. "\0" .. row.name] = true end
  for _, row in ipairs(loaded.collections) do
    local l = lanes[row.lane]
    local head = l.next - 1
    names:collection_add({ id = row.lane, logical = row.logical, tenant = row.tenant, database = row.database,
      name = row.name, head = head, floor = l.floor, oldest = l.trimmed + 1 }).adopted = row.adopted
  end
  names.next_lane = loaded.newest[1].lane + 1
  return names
end

local function server_for(context, instance)
  local s = context.servers.by_name[instance]
  if not s then
    -- Known to the journal, not in the configuration.
    s = context.servers:absent(instance)
  end
  return s
end

local function attach_copies(context, names, loaded)
  for _, row in ipairs(loaded.copies) do
    local c = { instance = row.instance, server = server_for(context, row.instance), physical = row.physical,
      incarnation = row.incarnation, position = row.position, state = row.state, reason = row.reason }
    if row.lane == 0 then
      c.doubt = doubt_of(c.position, names.head)
      c.settled = c.doubt == 0
      names:member_add(c)
    else
      local lane = names.by_lane[row.lane]
      c.doubt = doubt_of(c.position, lane.head)
      c.settled = c.doubt == 0 or c.state ~= "ready"
      names:copy_of(lane, c)
    end
  end
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

local function adopt_first(context, names, life)
  local wait = 0.05
  while J.life == life and #names.order == 0 do
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
  until not waiting or now() > till or J.life ~= life
end

local function start_once(life)
  local settings = J.settings
  say("starting", "waiting for PostgreSQL")
  local store = Store.new(pg.connection("append"), pg.connection("reader"))
  J.store = store
  local wait = 0.05
  local function again(why)
    say("starting", why)
    sleep(wait)
    wait = math.min(wait * 2, 1)
    return J.life == life
  end
  while true do
    local ok, why = store:migrate()
    if ok then break end
    if not again("PostgreSQL: " .. tostring(why)) then return end
  end
  local ttl = settings.LEASE_TIMEOUT
  local epoch, dead, asked
  while true do
    asked = courier.boottime()
    epoch, dead = store:lease_take(J.name, settings.ADVERTISE_URL or "", ttl, known_dead)
    if epoch then break end
    local told = type(dead) == "table" and "another balancer holds the lease (" .. dead.holder .. ")"
    if not again(told or tostring(dead)) then return end
  end
  courier.fence(asked + ttl)
  local loaded, why
  while true do
    loaded, why = store:load()
    if loaded then break end
    if not again("PostgreSQL: " .. tostring(why)) then return end
  end

  local context = {
    settings = settings, store = store, copies = copies, encode = encode, fault = fault, dead = false, ready = false,
    journal_id = loaded.meta[1].journal_id, memory = { used = 0, most = settings.JOURNAL_MEMORY_BYTES / 2 },
    answer = send_verdict, choose = route.choose,
  }
  J.context = context
  context.servers = Servers.new(context)
  function context.lane_new(row)
    copies.collection_set(row.logical, row.tenant, row.database, row.floor or 0)
    return Lane.new(context, row)
  end
  function context.lane_over(lane)
    for _, e in ipairs(lane:undecided()) do
      local a = Names.no_collection_of_id(lane.logical)
      e.verdict, e.status, e.answer, e.answer_type = "rejected", a.status, a.body, a.type
      send_verdict(e)
    end
  end
  local names
  -- Whatever depends on whether a server can be used looks again.
  function context.on_changed(server)
    if not names then return end
    for _, lane in pairs(names.by_logical) do
      local copy = lane.copies[server.name]
      if copy then lane:publish(copy) end
    end
  end
  function context.on_usable(server)
    context.on_changed(server)
    spawn(function()
      while not context.dead and not names.copies[server.name] do
        if #names.order > 0 and J.phase == "on" then adopt.join(context, names, server, false) end
        if not names.copies[server.name] then sleep(0.2) end
      end
      names:kick()
      for _, lane in pairs(names.by_logical) do lane:kick() end
    end)
  end
  function context.on_lost(server, reason)
    local statements = { { [[UPDATE journal_copies SET state = 'rebuild', reason = $2, changed_at = now()
        WHERE instance = $1 AND state = 'ready']], server.name, reason },
      Store.event("server_lost_data", server.name, nil, reason) }
    local rows = store:commit(statements)
    if not rows then return false end
    log.error("server_lost_data", server.name .. ": " .. reason)
    local member = names.copies[server.name]
    if member then member.state, member.reason = "rebuild", reason end
    for _, lane in pairs(names.by_logical) do
      local copy = lane.copies[server.name]
      if copy and copy.state == "ready" then
        copy.state, copy.reason = "rebuild", reason
        lane:publish(copy)
      end
    end
    return true
  end
  function store.on_fenced()
    if context.dead then return end
    context.dead = true
    courier.fence(0)
    copies.clear()
    log.error("journal_fenced", "another balancer has the lease")
    spawn(M.restart)
  end

  copies.clear()
  context.servers:refresh()
  names = build(context, loaded)
  J.names = names
  for _, row in ipairs(loaded.servers) do
    local s = server_for(context, row.instance)
    s.witness, s.retired = row.witness, row.retired
  end
  attach_copies(context, names, loaded)
  context.ready = true
  for _, s in ipairs(context.servers.list) do s:admit() end
  courier.on_incarnation(function(name, n)
    local s = context.servers.by_name[name]
    if s and J.context == context then s:set_incarnation(n) end
  end)
  courier.on_health(function(name, health)
    local s = context.servers.by_name[name]
    if s and J.context == context then s:set_health(health) end
  end)
  courier.on_membership(function()
    if J.context == context then context.servers:refresh() end
  end)
  spawn(function() context.servers:keep_stamping() end)
  spawn(watch_deadlines, life)
  -- Renewed long before it runs out, counted from before it was asked for.
  spawn(function()
    while J.life == life and not context.dead do
      sleep(ttl / 4)
      local at = courier.boottime()
      local mine = store:lease_renew(ttl)
      if mine then
        courier.fence(at + ttl)
      elseif mine == false then
        store.on_fenced()
      end
    end
  end)
  settle_all(names, not dead and settings.WRITE_HORIZON or nil)
  if #names.order == 0 then adopt_first(context, names, life) end
  if J.life ~= life or context.dead then return end
  copies.on(true)
  say("on", "")
  names:kick()
  for _, lane in pairs(names.by_logical) do lane:kick() end
end

function M.start(settings)
  J.settings = settings
  settings.DRAIN_CAP = settings.DRAIN_CAP or 30
  J.name, J.token_base = own_name(), random_hex(12) .. "-"
  J.life = (J.life or 0) + 1
  say("starting", "")
  spawn(start_once, J.life)
  return true
end

-- Everything anew, after the lease was lost.
function M.restart()
  for _, t in pairs(J.tickets) do late(t) end
  J.life = J.life + 1
  start_once(J.life)
end

-- Settings that may change while it runs.
function M.reload(settings)
  for name, value in pairs(settings) do J.settings[name] = value end
end

function M.stop()
  J.life = (J.life or 0) + 1
  if J.context then J.context.dead = true end
  return true
end

-- ---- telling ---------------------------------------------------------------------------------------------

function M.status()
  local out = { replication = "on", journal = { state = J.phase, why = J.why } }
  if J.phase ~= "on" then
    out.replication, out.reason = "degraded", J.why
    return out
  end
  local names, store = J.names, J.store
  local pending, in_doubt, lanes, head, not_ready = 0, 0, 1, names.head, 0
  local lag, seconds = {}, {}
  local function count(lane)
    for _, copy in ipairs(lane.order) do
      local behind = lane.head - copy.p
      if copy.state ~= "ready" then not_ready = not_ready + 1 end
      lag[copy.instance] = (lag[copy.instance] or 0) + behind
      if behind > 0 then
        seconds[copy.instance] = math.max(seconds[copy.instance] or 0, now() - copy.since)
      end
      if copy.doubt > 0 then in_doubt = in_doubt + 1 end
    end
  end
  count(names)
  for _, lane in pairs(names.by_logical) do
    lanes, head = lanes + 1, head + lane.head
    count(lane)
  end
  for _ in pairs(J.tickets) do pending = pending + 1 end
  out.journal.id = J.context.journal_id
  out.journal.head, out.journal.pending, out.journal.in_doubt, out.journal.lanes = head, pending, in_doubt, lanes
  out.journal.epoch = store.epoch
  out.journal.commits = store.commits
  out.journal.commit_ms = store.commits > 0 and store.commit_seconds / store.commits * 1000 or 0
  out.journal.memory_bytes = J.context.memory.used
  out.instances = {}
  for _, s in ipairs(J.context.servers.list) do
    out.instances[s.name] = { lag_entries = lag[s.name] or 0, lag_seconds = seconds[s.name] or 0,
      admitted = s:readable(), note = s.note }
  end
  if not store:healthy() then
    out.replication, out.reason = "degraded", "PostgreSQL does not answer: " .. store.last_error
  elseif not_ready > 0 then
    out.replication, out.reason = "degraded", not_ready .. " copies wait to be made anew"
  end
  return out
end

function M.metrics()
  local s = M.status()
  if not s.instances then return {} end
  local j = s.journal
  local out = {}
  for _, m in ipairs {
    { "entries_total", "entries that were ever appended", "counter", j.head },
    { "pending", "requests that wait for a verdict", "gauge", j.pending },
    { "in_doubt", "copies with an entry whose outcome is not known", "gauge", j.in_doubt },
    { "lanes", "ordered sequences of writes", "gauge", j.lanes },
    { "commits_total", "transactions of the journal", "counter", j.commits },
    { "memory_bytes", "bytes of entries kept in memory", "gauge", j.memory_bytes },
  } do
    out[#out + 1] = { name = "chromux_journal_" .. m[1], help = m[2], type = m[3], value = m[4] }
  end
  return out
end

return M
