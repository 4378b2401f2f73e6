-- balancer.lua: one life of chromux: the journal's engine, unmodified, on stand-ins for what C gives it
-- (chromux.api, chromux.courier.raw, chromux.copies, chromux.answer, chromux.route). slice, records and json are real.
local World = require("world")

local Balancer = {}
Balancer.__index = Balancer

local ENTRY_MOST = 16 * 1024 * 1024 -- bytes of an answer: so requests for an entry are told from looks and stamps

-- name -> source; changed by mutants.lua.
local sources = {}
local compiled = {}

function Balancer.source(name)
  if not sources[name] then
    local f = assert(io.open("lua/lb/" .. name .. ".lua"))
    sources[name] = f:read("*a")
    f:close()
  end
  return sources[name]
end

-- Replaces text in a module; it must be there once.
function Balancer.patch(name, from, to)
  local text = Balancer.source(name)
  local at, till = text:find(from, 1, true)
  assert(at, "the text to change is not in lua/lb/" .. name .. ".lua: " .. from)
  assert(not text:find(from, till + 1, true), "the text to change is twice in lua/lb/" .. name .. ".lua: " .. from)
  sources[name] = text:sub(1, at - 1) .. to .. text:sub(till + 1)
  compiled[name] = nil
end

function Balancer.unpatch()
  sources, compiled = {}, {}
end

-- Objects by when they were made.
local born = setmetatable({}, { __mode = "k" })
local births = 0
local function numbered(t, meta)
  births = births + 1
  born[t] = births
  return setmetatable(t, meta)
end

-- pairs() in an order that does not depend on where things lie in memory.
local function ordered_pairs(t)
  local keys, n = {}, 0
  for k in next, t do
    n = n + 1
    keys[n] = k
  end
  if n > 1 then
    table.sort(keys, function(a, b)
      if type(a) ~= type(b) then return type(a) < type(b) end
      if type(a) == "table" then return born[a] < born[b] end
      return a < b
    end)
  end
  local i = 0
  return function()
    local v
    repeat
      i = i + 1
      if i > n then return nil end
      v = t[keys[i]]
    until v ~= nil
    return keys[i], v
  end
end

-- ---- the courier -----------------------------------------------------------------------------------------

local function courier(b)
  local world, p = b.world, b.process
  local raw = {}
  local serial, calls = 0, {}
  b.calls = calls

  local function ended(call, status, ...)
    if call.over then return end
    if call.request and call.request.written then b.watch.ended(b, call.request, status, ...) end
    call.over, call.result = true, { status, n = 1 + select("#", ...), ... }
    local wake = call.waiter
    call.waiter = nil
    if wake then
      calls[call.id] = nil
      wake(unpack(call.result, 1, call.result.n))
    end
  end

  local function fails(call, kind, text) ended(call, nil, kind, text, nil, call.touched, call.complete) end

  -- The last byte leaves, now.
  local function transmit(call)
    local server, r = call.server, call.r
    if call.closed then return end
    if not server.up then return fails(call, "not_sent", "connection refused") end
    if r.incarnation and r.incarnation ~= b.incarnation[server.name] then
      return fails(call, "not_sent", "another life of the server")
    end
    if r.fenced and raw.boottime() > b.fence then return fails(call, "fenced", "the lease has run out") end
    call.touched, call.complete = true, true
    local q = { method = r.method, target = r.target, body = r.body, balancer = b, call = call,
      written = r.fenced and r.max == ENTRY_MOST }
    call.request = q
    local life = server.life
    function q.ended(answer)
      world:after(0.0002, function()
        if answer then
          ended(call, answer.status, "HTTP/1.1 " .. answer.status .. "\r\n\r\n", answer.type, answer.body, true, true)
        else
          b:look_at_sentinel(server)
          fails(call, "peer_closed", "the server closed the connection")
        end
      end, p)
    end
    if world.rng:chance(b.faults.broken) and not b.quiet() then
      -- The kernel gives the connection up; the server does not know.
      world:after(world.rng:unit() * 2, function()
        if call.over or q.executed or server.life ~= life then return end
        server:abandoned(q)
        fails(call, "broken", "the connection was given up")
      end, p)
    end
    server:arrive(q)
  end

  function raw.send(r)
    local server = b.servers[r.node]
    if not server then return nil, "no such node" end
    serial = serial + 1
    local call = { id = serial, r = r, server = server, touched = false, complete = false }
    calls[serial] = call
    if b.watch.send then b.watch.send(b, call) end
    world:after(0.0001, function() transmit(call) end, p)
    return serial
  end
  function raw.wait(id, seconds)
    local call = calls[id]
    if not call or call.closed then return nil, "closed", "closed by us" end
    assert(not call.waiter, "another task waits for this call")
    if call.over then
      calls[id] = nil
      return unpack(call.result, 1, call.result.n)
    end
    local wake = World.wait_begin(p)
    call.waiter = wake
    world:after(seconds, function()
      if call.waiter ~= wake then return end
      call.waiter = nil
      wake(nil, "late", "no answer yet")
    end, p)
    return coroutine.yield()
  end
  function raw.touched(id)
    local call = calls[id]
    if not call or call.closed then return nil end
    return call.touched, call.complete
  end
  function raw.close(id)
    local call = calls[id]
    if not call then return end
    call.closed, call.over = true, true
    calls[id] = nil
    if call.request then call.server:closed(call.request) end
  end
  function raw.nodes()
    local out = {}
    for i, s in ipairs(b.server_list) do
      out[i] = { name = s.name, role = i == 1 and "primary" or "replica", health = b.health[s.name], admin = "ready",
        priority = 10 - i, weight = 1, resolved = true, incarnation = b.incarnation[s.name] }
    end
    return out
  end
  function raw.fence(boottime) b.fence = boottime end
  function raw.boottime() return world.t + 1000 end
  function raw.listen() end
  return raw
end

function Balancer:told(kind, name, value)
  local module = self.loaded["lb.courier"]
  if module then module.told(kind, name, value) end
end

function Balancer:set_incarnation(server, n)
  if self.incarnation[server.name] == n then return end
  self.incarnation[server.name] = n
  self.world:in_order(self.news, function() self:told("incarnation", server.name, n) end, self.process)
end

-- What the sentinel connection says: it is of another life of the server.
function Balancer:look_at_sentinel(server)
  if self.sentinel[server.name] ~= server.life then
    self.sentinel[server.name] = nil
    self:set_incarnation(server, 0)
  end
end

-- Sentinels connect, and probes make health known.
function Balancer:keep_looking()
  local world, rng, p = self.world, self.world.rng, self.process
  for _, server in ipairs(self.server_list) do
    local fails, serial = 0, 0
    local function sentinel()
      local lost = not self.sentinel[server.name]
      self:look_at_sentinel(server)
      if server.up and lost then -- the end of one is told before another connects
        local life = server.life
        world:after(0.0005, function()
          if not server.up or server.life ~= life or self.sentinel[server.name] then return end
          serial = serial + 1
          self.sentinel[server.name] = life
          self:set_incarnation(server, serial)
        end, p)
      end
      world:after(0.05 + rng:unit() * 0.1, sentinel, p)
    end
    local function probe()
      fails = server.up and not server.paused and 0 or fails + 1
      local health = fails == 0 and "up" or fails == 1 and "suspect" or "down"
      if self.health[server.name] ~= health then
        self.health[server.name] = health
        self:told("health", server.name, health)
      end
      world:after(0.2 + rng:unit() * 0.1, probe, p)
    end
    table.insert(server.listeners, function()
      if p.dead then return end
      world:after(rng:unit() * 0.001, function() self:look_at_sentinel(server) end, p)
    end)
    world:after(rng:unit() * 0.05, sentinel, p)
    world:after(rng:unit() * 0.05, probe, p)
  end
end

-- ---- what reads are allowed (core/copies.c) ----------------------------------------------------------------

local function copies(b)
  local function id(text)
    assert(type(text) == "string" and text:find("^%x+%-%x+%-%x+%-%x+%-%x+$") and #text == 36, "a UUID")
    return text
  end
  local function whole(n)
    assert(type(n) == "number" and n >= 0 and n == math.floor(n), "a whole number")
    return n
  end
  local M = {}
  function M.collection_set(logical, tenant, database, floor)
    local c = b.table[id(logical)] or { copies = {}, floor = 0 }
    b.table[logical] = c
    c.tenant, c.database, c.floor = tenant, database, math.max(c.floor, whole(floor))
  end
  function M.collection_drop(logical) b.table[id(logical)] = nil end
  function M.floor(logical, n)
    local c = b.table[id(logical)]
    if c then c.floor = math.max(c.floor, whole(n)) end
    return c ~= nil
  end
  function M.copy_set(logical, instance, physical, position, readable)
    assert(type(readable) == "boolean", "readable is true or false")
    local c = b.table[id(logical)]
    if not c then return false end
    c.copies[instance] = { physical = id(physical), position = whole(position), readable = readable }
    return true
  end
  function M.copy_drop(logical, instance)
    local c = b.table[id(logical)]
    if c then c.copies[instance] = nil end
  end
  function M.clear() b.table = {} end
  function M.count()
    local n = 0
    for _ in pairs(b.table) do n = n + 1 end
    return n
  end
  function M.on(is)
    b.reads_on = is
    if is then b.watch.on(b) end
  end
  function M.get(logical, instance)
    local c = b.table[id(logical)]
    local copy = c and c.copies[instance]
    if not copy then return nil end
    local behind = math.max(0, c.floor - copy.position)
    return copy.physical, behind, copy.readable and behind == 0
  end
  function M.looked(logical, sure)
    id(logical)
    assert(type(sure) == "boolean")
  end
  function M.fault(name) b:at_fault_point(name) end
  return M
end

-- ---- a life ----------------------------------------------------------------------------------------------

local pid = 100

-- context: {world, postgres, servers = {Chroma, ...}, faults, settings, host, watch, quiet()}
function Balancer.new(context)
  pid = pid + 1
  local world = context.world
  local b = setmetatable({ world = world, postgres = context.postgres, faults = context.faults,
    server_list = context.servers, servers = {}, host = context.host, pid = pid, watch = context.watch,
    quiet = context.quiet, context = context, tickets = {}, table = {}, incarnation = {}, health = {}, sentinel = {},
    fence = -math.huge, loaded = {}, ticket = 0, news = {} }, Balancer)
  b.process = world:process("chromux/" .. pid)
  b.process.host, b.process.balancer, b.process.pid = context.host, b, pid
  for _, s in ipairs(context.servers) do
    b.servers[s.name], b.incarnation[s.name], b.health[s.name] = s, 0, "suspect"
  end
  b:load()
  b:keep_looking()
  local settings = {}
  for k, v in pairs(context.settings) do settings[k] = v end
  b.address = "http://balancer-" .. pid .. ":8000"
  settings.ADVERTISE_URL = b.address
  world:after(0.001, function() b.journal.start(settings) end, b.process)
  return b
end

function Balancer.reset_pids() pid = 100 end

-- /proc and /dev/urandom as this process finds them.
local function files(b)
  local function text(path)
    if path == "/proc/sys/kernel/random/boot_id" then return b.host end
    local who = path:match("^/proc/([^/]+)/stat$")
    local n = who == "self" and b.pid or tonumber(who)
    for _, p in ipairs(b.world.processes) do
      if p.pid == n and not p.dead and p.host == b.host then
        return n .. " (chromux) S" .. (" 0"):rep(18) .. " " .. n * 10
      end
    end
  end
  return { open = function(path)
    if path == "/dev/urandom" then
      return { close = function() end, read = function(_, n)
        local out = {}
        for i = 1, n do out[i] = string.char(b.world.rng:int(0, 255)) end
        return table.concat(out)
      end }
    end
    local line = text(path)
    return line and { close = function() end, read = function() return line end }
  end }
end

-- What C says of processes.
local function system(b)
  local C = {}
  function C.readlink() return 1 end
  function C.kill(whom)
    for _, p in ipairs(b.world.processes) do
      if p.pid == whom and not p.dead and p.host == b.host then return 0 end
    end
    return -1
  end
  return { C = C, cdef = function() end, new = function() end, string = function() return "n" end,
    errno = function() return 3 end }
end

function Balancer:load()
  local world, p = self.world, self.process
  local api = world:api(p)
  local connections = {}
  function api.connection(name)
    for i, c in ipairs(connections) do
      if c.name == name then return i end
    end
    connections[#connections + 1] = self.postgres:connection(p, name)
    return #connections
  end
  function api.query(id, timeout, sql, ...)
    local statement = { sql, n = select("#", ...), ... }
    local rows, message, state = self.postgres:work(connections[id], timeout, { statement })
    if rows then return rows[1] end
    return nil, message, state
  end
  function api.transaction(id, timeout, statements)
    return self.postgres:work(connections[id], timeout, statements)
  end
  function api.listen(id, channel, fn)
    self.postgres:listen(connections[id], channel, function(news) api.spawn(function() fn(news) end) end)
  end
  function api.observe(id, fn)
    table.insert(connections[id].observers, function(state) api.spawn(function() fn(state) end) end)
  end
  function api.fetch(method, url, body, timeout, _, ...)
    return self:forward(method, url, body, timeout, ...)
  end
  function api.pg_state(id) return self.postgres:state(connections[id]) end
  function api.bytes(s) return { bytes = s } end
  local rng = world.rng
  local loaded = self.loaded
  loaded["chromux.api"], loaded["ffi"] = api, system(self)
  loaded["chromux.slice"] = require("chromux.slice")
  loaded["chromux.records"] = require("chromux.records")
  loaded["cjson.safe"] = require("cjson.safe")
  loaded["chromux.courier.raw"] = courier(self)
  loaded["chromux.copies"] = copies(self)
  loaded["chromux.answer"] = {
    send = function(...) return self:answered("send", ...) end,
    refuse = function(...) return self:answered("refuse", ...) end,
  }
  loaded["chromux.route"] = { choose = function(_, _, _, names)
    if rng:chance(0.05) then return nil, "none" end
    return rng:pick(names), "chosen"
  end }
  local env = setmetatable({ pairs = ordered_pairs, setmetatable = numbered, io = files(self),
    os = { getenv = function() end, exit = function() end, date = os.date,
      time = function() return math.floor(World.EPOCH + world.t) end } }, { __index = _G })
  env._G = env
  function env.require(name)
    if loaded[name] then return loaded[name] end
    local short = assert(name:match("^lb%.([%w_]+)$"), "the engine asks for " .. name)
    if not compiled[short] then
      compiled[short] = string.dump(assert(loadstring(Balancer.source(short), "=lua/lb/" .. short .. ".lua")))
    end
    loaded[name] = setfenv(assert(loadstring(compiled[short], "=lua/lb/" .. short .. ".lua")), env)()
    return loaded[name]
  end
  env.require("lb.runtime")
  self.journal = env.require("lb.journal")
  table.insert(p.on_end, function()
    for _, call in pairs(self.calls) do
      if call.request and not call.over then self.ends[#self.ends + 1] = call end
    end
    -- Those that the kernel had given up as well: what they need to settle was known to this life alone.
    for _, s in ipairs(self.server_list) do
      for _, r in pairs(s.requests) do
        if r.balancer == self and r.closed and r.call and r.call.over then
          r.closed = false
          self.ends[#self.ends + 1] = r.call
        end
      end
    end
    table.sort(self.ends, function(x, y) return x.id < y.id end)
    for _, call in ipairs(self.ends) do
      -- The kernel says so to the server, or the machine is gone and nobody does.
      if self.silent then call.server:abandoned(call.request) else call.server:closed(call.request) end
    end
  end)
  self.ends = {}
end

-- Passed all the time; what they are named for is made to happen in other ways here (postgres.lua).
local MADE = { ["append.delayed_commit"] = true, ["lease.renew_lost"] = true, ["notify.lost"] = true,
  ["pg.rolled_back"] = true, ["position.delayed_update"] = true, ["drain.begin"] = true }

-- May end this life, at a named step of the protocol.
function Balancer:at_fault_point(name)
  if MADE[name] then return end
  self.context.points[name] = (self.context.points[name] or 0) + 1
  if self.quiet() or not self.world.rng:chance(self.faults.crash_at) or self.process.dead then return end
  self.world:say(self.process.name, "ends at", name)
  self.context.crash(self)
  if coroutine.running() and self.process.current then coroutine.yield() end
end

-- ---- requests --------------------------------------------------------------------------------------------

-- Hands a request to the journal; done(kind, ...) is called with what it answers, "gone" when this life ends.
function Balancer:submit(request, done)
  self.ticket = self.ticket + 1
  local ticket = self.ticket
  request.ticket = ticket
  self.tickets[ticket] = { request = request, done = done, since = self.world.t }
  self.watch.submitted(request)
  self.journal.submit(request)
  -- No answer by the deadline and a little: the process would have answered 504 itself.
  local wait = request.deadline - World.EPOCH - self.world.t + 0.3
  self.world:after(wait, function()
    local t = self.tickets[ticket]
    local late = self.process.continued and self.process.continued > t.since
    if not t.answered and not t.gone and not late then
      self.world:violation("NO-ANSWER", request.action, request.body or "")
    end
  end, self.process)
end

function Balancer:answered(kind, ticket, ...)
  local t = self.tickets[ticket]
  if not t then
    self.world:violation("UNKNOWN-TICKET", kind, ticket)
    return false
  end
  if t.answered then
    self.world:violation("TWO-ANSWERS", t.request.action, t.request.body or "")
    return false
  end
  if t.gone or self.process.dead then return false end
  t.answered = true
  self.watch.answered(self, t.request, kind, ...)
  t.done(kind, ...)
  return true
end

-- A request to another balancer: status, head, body | nil, why. Its line and its fields name it by its id.
function Balancer:forward(_, url, _, timeout, ...)
  local address = url:match("^(http://[^/]+)")
  local world, wake, fields, over = self.world, World.wait_begin(self.process), {}, false
  for _, line in ipairs { ... } do
    local name, value = line:match("^([^:]+): (.*)$")
    fields[name:lower()] = value
  end
  local function finish(...)
    local results = { n = select("#", ...), ... }
    world:after(0.0003, function()
      if over then return end
      over = true
      wake(unpack(results, 1, results.n))
    end, self.process)
  end
  local other
  for _, p in ipairs(world.processes) do
    if p.balancer.address == address then other = p.balancer end
  end
  if not other or other.process.dead then
    finish(nil, "Failed to connect to " .. address)
    return coroutine.yield()
  end
  world:after(timeout, function() finish(nil, "Operation timed out") end, self.process)
  table.insert(other.process.on_end, function() finish(nil, "Recv failure: Connection reset by peer") end)
  world:after(0.0003, function()
    local r = {}
    for k, v in pairs(self.context.request_of(fields["x-request-id"])) do r[k] = v end
    r.query, r.id = r.query or "", fields["x-request-id"]
    r.key, r.token, r.forwarded = fields["idempotency-key"], fields["x-chromux-token"], fields["x-chromux-forwarded"]
    r.deadline = World.EPOCH + world.t + 30
    other:submit(r, function(kind, a, b, c, more, instance)
      if kind == "gone" then return end
      local head = "HTTP/1.1 X\r\nContent-Type: application/json\r\n"
      if kind == "send" then
        if instance then head = head .. "X-Chromux-Instance: " .. instance .. "\r\n" end
        return finish(a, head .. (more or ""), c)
      end
      if c then head = head .. "Retry-After: " .. c .. "\r\n" end
      finish(a == "outcome_unknown" and 504 or 503, head, '{"error":"' .. a .. '","message":"' .. b .. '"}')
    end)
  end, other.process)
  return coroutine.yield()
end

-- The client goes.
function Balancer:leave(ticket)
  local t = self.tickets[ticket]
  if t.answered then return end
  t.gone = true
  self.journal.gone(ticket)
end

-- One read of all records of a collection, as core/mapped.c sends it: done(status, body, instance) or done(nil, why).
function Balancer:read(logical, done)
  local c = self.reads_on and self.table[logical]
  if not c then return done(nil, "unknown") end
  local able = {}
  for _, s in ipairs(self.server_list) do
    self:look_at_sentinel(s)
    local copy = c.copies[s.name]
    local lives = self.incarnation[s.name] ~= 0
    if copy and lives and copy.readable and copy.position >= c.floor and self.health[s.name] ~= "down" and s.up then
      able[#able + 1] = s
    end
  end
  if #able == 0 then return done(nil, "no copy may be read") end
  local server = self.world.rng:pick(able)
  local physical = c.copies[server.name].physical
  self.watch.read(self, server.name .. physical)
  local request = { method = "POST", plain = true, balancer = self, read = true,
    target = "/api/v2/tenants/" .. c.tenant .. "/databases/" .. c.database .. "/collections/" .. physical .. "/get",
    body = '{"include":["documents","metadatas","embeddings"]}' }
  function request.ended(answer)
    self.world:after(0.0002, function()
      if not answer then return done(nil, "the server closed the connection") end
      if answer.status == 404 and answer.body:find(physical, 1, true) then
        local now_held = self.table[logical] and self.table[logical].copies[server.name]
        if now_held and now_held.physical == physical then
          self.table[logical].copies[server.name] = nil
          self.journal.lost { logical = logical, instance = server.name, physical = physical }
        end
      end
      done(answer.status, answer.body, server.name, request.snapshot)
    end, self.process)
  end
  server:arrive(request)
end

return Balancer
