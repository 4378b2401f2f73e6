-- journal.lua: the journal's life in one balancer, and the door through which C comes in (core/journal.c).
--
-- Each request that C hands over gets exactly one answer, at its deadline at the latest, whatever role the balancer
-- is in by then (roles.lua): the holder gives a write its entry, a standby takes it to the holder (forward.lua).
--
--   start(settings)   submit(request)   gone(ticket)   lost{logical=, instance=, physical=}
--   status()   metrics()   stop()
local Store = require("lb.store")
local Catalogue = require("lb.catalogue")
local words = require("lb.words")
local Roles = require("lb.roles")
local Forward = require("lb.forward")
local courier = require("lb.courier")
local copies = require("chromux.copies")
local answers = require("chromux.answer")
local figures = require("lb.figures")
local sound = require("lb.sound")
local json = json

local M = {}

local TICK = 0.05 -- seconds between looks at deadlines
local J = Roles.state
J.tickets = {}
M.state = J -- for tests

-- ---- small things ----------------------------------------------------------------------------------------

local function random_hex(n)
  local f = assert(io.open("/dev/urandom", "rb"))
  local bytes = f:read(n)
  f:close()
  return (bytes:gsub(".", function(c) return string.format("%02x", c:byte()) end))
end

local next_token = 0
local function fresh_token()
  next_token = next_token + 1
  return J.token_base .. string.format("%x", next_token)
end

-- ---- answering -------------------------------------------------------------------------------------------

-- Every ticket that is open: {ticket=, deadline=, req=, entry=, handle=, forwarding=, sent=}.
local function open_ticket(req)
  local left = tonumber(req.forwarded)
  if left and left >= 0 then req.deadline = math.min(req.deadline, now() + left) end
  local t = { ticket = req.ticket, deadline = req.deadline, read = req.reads, req = req }
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

-- This balancer could not keep it; another one that was asked before may have.
local function not_kept(t, why)
  if t.sent then
    refuse(t, "outcome_unknown", why .. "; whether the balancer that was asked before has kept it is not known")
  else
    refuse(t, "journal_away", why .. ": this write was not kept", 1)
  end
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
        if lane then a, who = Catalogue.existing(J.names, lane, e.body, t.deadline) end
        if a and a.status ~= 404 then
          send(t, a, who, "X-Chromux-Entry: " .. entry_name(e) .. "\r\n")
        else -- deleted since: a create is never told that
          refuse(t, "no_instance", "the collection existed, but cannot be described: " .. tostring(who), 1)
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
  if not e and t.sent then
    refuse(t, "outcome_unknown", "the balancer that holds the lease of the journal did not answer in time: whether"
      .. " this write was kept is not known")
  elseif not e then
    local why = "the request was not begun in time"
    if J.role == "standby" and not t.read then
      why = "the balancer that holds the lease of the journal "
        .. (J.holder and J.holder.address == "" and "has no ADVERTISE_URL" or "cannot be reached")
        .. ": this write was not kept"
    end
    refuse(t, t.read and "no_instance" or "journal_away", why, 1)
  elseif e.n then
    refuse(t, "not_applied", "this write is kept as entry " .. entry_name(e)
      .. " and will be applied, but no instance has confirmed it yet; do not send it again")
  elseif t.sent or (t.handle and not Store.cancel(t.handle)) then
    refuse(t, "outcome_unknown", "PostgreSQL does not answer: whether this write was kept is not known")
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

-- Fixed once for a request, so that the next holder knows it by the same. Clients' keys are apart from ours.
local function token_of(req)
  if req.key then return "key:" .. req.key end
  req.token = req.token or fresh_token()
  return "token:" .. req.token
end

-- Does a copy have it behind it already? Then it has been decided.
local function passed(home, n)
  for _, copy in ipairs(home.order) do
    if copy.p >= n then return true end
  end
  return false
end

-- Joins the ticket to the entry that has its token. false: it can't be said yet what became of it.
local function join(t, e, row)
  local home = row.lane == 0 and J.names or J.names.by_lane[row.lane]
  local known = home and home.entries[row.n]
  t.entry = known or row
  if row.verdict then -- in memory it may still be on its way
    row.tickets = { t }
    send_verdict(row)
  elseif known then
    table.insert(known.tickets, t)
    if known.verdict then send_verdict(known) end
  elseif not home then
    send(t, words.no_collection_of_id(e.logical or ""))
  elseif passed(home, row.n) then
    return false -- decided since it was read
  else
    row.tickets = { t }
    home:insert(row)
  end
  return true
end

-- A key that comes again with another request is a mistake: its answer would be that of a write which it is not.
local function same_request(row, e)
  if row.lane ~= e.lane or row.action ~= e.action or row.body ~= e.body then return false end
  if e.lane ~= 0 then return row.rest == e.rest end
  local a, b = json.decode(row.rest) or {}, json.decode(e.rest) or {} -- a decided one says more
  return a.tenant == b.tenant and a.database == b.database and a.collection == b.collection
end

-- A token that was used before, by another request or by ourselves when the answer to the append was lost: the
-- recorded answer, or the same wait. The entry has to be found even if nobody waits any more: it is in no lane yet.
local function repeated(t, e)
  local context, store = J.context, J.store
  t.handle.unknown = true
  spawn(function()
    while not context.dead do
      local rows = store:by_token(e.token)
      if context.dead then return end
      if rows and not rows[1] then
        local a = e.logical and words.no_collection_of_id(e.logical)
        return a and send(t, a) or refuse(t, "journal_away", "the entry could not be made", 1)
      end
      if rows and not same_request(rows[1], e) then
        return send(t, { status = 422, type = "application/json", body = json.encode { error = "ChromaError",
          message = "this Idempotency-Key was used for another request, entry " .. entry_name(rows[1]) } })
      end
      if rows and join(t, e, rows[1]) then return end
      sleep(TICK)
    end
  end)
end

-- Appends the entry to a lane, or to the catalogue's, and puts it into memory in the order of the numbers.
local function append(t, home, e)
  local lane = home ~= J.names and home or nil
  local lane_id = lane and lane.id or 0
  if lane then lane:arriving() end
  e.lane, e.tickets = lane_id, { t }
  t.entry = e
  Roles.fault("append.before_commit")
  local held = Roles.fault("append.delayed_commit")
  local handle
  handle = J.store:enqueue({ Store.append_entry(lane_id, e), held and { "SELECT pg_sleep($1::float8)", held } },
    t.deadline, function(rows, why)
    if rows and rows[1][1] then
      e.n = rows[1][1].n
      Roles.fault("append.committed_unanswered")
      J.context.counts.appended = J.context.counts.appended + 1
      J.context.trim:appended(e)
      if lane then lane:arrived(e) else home:insert(e) end
      return
    end
    if lane then lane:arrived() end
    if t.handle ~= handle then return end -- the request was taken to the next holder
    if rows or tostring(why):find("duplicate key", 1, true) then
      e.tickets = {}
      repeated(t, e)
    elseif why == "fenced" then
      return -- the request will be
    elseif why == "away" then
      not_kept(t, "PostgreSQL does not answer")
    else
      not_kept(t, "PostgreSQL refused it: " .. tostring(why))
    end
  end)
  t.handle = handle
end

local REST = "^[^?]*/collections/[^/?]+(.*)$"
-- Not journalled: single-node Chroma has none of them, and each would make things that have no name here.
local UNSUPPORTED = { fork = "Collection forking is unsupported for local chroma",
  attach_function = "attached functions are unsupported", detach_function = "attached functions are unsupported",
  conditional_commit = "transactions are unsupported" }

-- What is not known here may have been made by another holder, unless the lease is still ours. What the balancer does
-- next is to be done once that is known, or never: then the lease was another's, and whoever waits was taken there.
local function when_alone(t, next_fn)
  local context = J.context
  if courier.boottime() < context.lease_until then return next_fn() end
  spawn(function()
    repeat
      sleep(TICK)
      if context.dead or J.tickets[t.ticket] ~= t then return end
    until courier.boottime() < context.lease_until
    next_fn()
  end)
end

local function write_records(t, req)
  local lane = J.names.by_logical[req.collection]
  if UNSUPPORTED[req.action] then
    return send(t, { status = 501, type = "application/json", body = json.encode {
      error = "ChromaError", message = UNSUPPORTED[req.action] } })
  end
  if not lane and not words.is_id(req.collection) then return send(t, words.no_id()) end
  if not lane or lane.tenant ~= req.tenant or lane.database ~= req.database then
    return when_alone(t, function() send(t, words.no_collection_of_id(req.collection)) end)
  end
  append(t, lane, { token = token_of(req), action = req.action, rest = req.target:match(REST) or "", type = req.type,
    body = req.body, logical = lane.logical })
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
  for _, name in pairs { p.name or "", p.new_name or "", p.tenant or "", p.database or "", p.collection or "" } do
    if not words.can_be_kept(name) then
      return send(t, words.says(400, "InvalidArgumentError", words.KEPT:gsub("^t", "T")))
    end
  end
  if req.action:find("collection", 1, true) and words.own(p.new_name or p.name or "") then
    return send(t, { status = 400, type = "application/json", body = '{"error":"InvalidArgumentError","message":'
      .. '"Names that begin with chromux-tomb-, -temp- or -old- are chromux\'s own"}' })
  end
  -- What is there already needs no entry; but what was asked before may have one.
  local there = req.action == "create_collection" and p.get_or_create and p.name and not req.key and not req.token
    and J.names:find(p.tenant, p.database, p.name)
  if there and J.names.floor == J.names.head then
    spawn(function()
      local a, who = Catalogue.existing(J.names, there, req.body, t.deadline)
      if a then return send(t, a, who) end
      refuse(t, "no_instance", "the collection exists, but cannot be described: " .. tostring(who))
    end)
    return
  end
  append(t, J.names, { token = token_of(req), action = req.action, rest = json.encode(p), type = req.type,
    body = req.body })
end

-- ---- either role -----------------------------------------------------------------------------------------

local dispatch

-- Answers as the holder did, when a read here would see what the answer says.
local function pass_on(t, answer)
  local h = answer.headers
  local entry = h["x-chromux-entry"]
  local lane, n = (entry or ""):match("^(%d+)/(%d+)$")
  if lane and answer.status < 300 and J.follow then J.follow:saw(tonumber(lane), tonumber(n), t.deadline) end
  local fields = ""
  for name, field in pairs { ["X-Chromux-Entry"] = entry, ["Retry-After"] = h["retry-after"] } do
    fields = fields .. name .. ": " .. field .. "\r\n"
  end
  send(t, { status = answer.status, type = h["content-type"], body = answer.body }, h["x-chromux-instance"], fields)
end

local function forward(t)
  local before = t.sent
  t.forwarding = true
  spawn(function()
    token_of(t.req)
    local answer, why = Forward.send(t.req, function()
      return J.tickets[t.ticket] == t and now() < t.deadline
    end, function()
      if J.role == "holder" then return J.phase == "on" and "here" or nil end
      return J.holder
    end, function(sent) t.sent = sent or before end)
    t.forwarding = false
    -- Not kept, says this holder; the one before may have.
    if answer and (why or before) and answer.status == 503 and answer.headers["retry-after"] then
      return not_kept(t, "PostgreSQL does not answer")
    end
    if answer then return pass_on(t, answer) end
    if why == "here" then dispatch(t) end
  end)
end

-- A request from another balancer that took us for the holder: it looks again.
local function not_holder(t)
  send(t, { status = 503, type = "application/json",
    body = '{"error":"ChromaError","message":"this balancer does not hold the lease of the journal"}' }, nil,
    "X-Chromux-Not-Holder: " .. (t.sent and "perhaps-kept" or "true") .. "\r\n")
end

-- Gives a write to who is to do it now.
function dispatch(t)
  local req = t.req
  if J.phase == "restored" then
    if t.entry or t.handle then
      return refuse(t, "outcome_unknown", J.why .. "; whether this write is still kept is not known")
    end
    return not_kept(t, J.why)
  end
  -- Begun as the holder: it may be kept, or is.
  if t.entry then
    t.sent = t.sent or t.entry.n ~= nil or (t.handle ~= nil and not Store.cancel(t.handle))
    if not t.entry.n then t.entry, t.handle = nil, nil end
  end
  if J.role ~= "holder" or J.phase ~= "on" then
    if req.forwarded then return not_holder(t) end
    return forward(t)
  end
  if not J.store:healthy() then
    return not_kept(t, "PostgreSQL does not answer")
  end
  if J.context.trim.full then return not_kept(t, "the journal is full (JOURNAL_MAX_BYTES)") end
  if req.class == "write" then return write_records(t, req) end
  write_catalogue(t, req)
end

-- A holder that has not renewed its lease in time, as after a pause, may be none any more: waits until it knows.
-- false: PostgreSQL does not say
local function role_is_clear(until_)
  while not J.follow and J.phase ~= "restored" do
    local context = J.context
    if not context.dead and courier.boottime() < context.lease_until then break end
    if now() >= until_ or not context.store:healthy() then return false end
    sleep(TICK)
  end
  return true
end

-- A collection that is not known here may have been made by another balancer. Whoever does not know it after this may
-- say that there is none. true; nil, why: that can't be said now
local function look_again(id_or_name, tenant, database, until_)
  while true do
    if not role_is_clear(until_) then return nil, "PostgreSQL does not answer" end
    local f = J.follow
    if not f then return true end
    local there, why = f:look(id_or_name, tenant, database, until_)
    if there ~= nil then return true end
    if f == J.follow then return nil, why end
  end
end

local function read_catalogue(t, req)
  spawn(function()
    role_is_clear(t.deadline)
    if not J.context.trusted then
      return refuse(t, "no_instance", "notifications of PostgreSQL may be missing: the catalogue is read again", 1)
    end
    if req.action == "get_collection" and not J.names:lane_named(req) then
      local sure, why = look_again(req.collection, req.by_name and req.tenant or nil, req.database, t.deadline)
      if not sure then return refuse(t, "no_instance", "the catalogue cannot be read: " .. tostring(why)) end
    end
    local a, who = Catalogue.read(J.names, req)
    if a then return send(t, a, who) end
    refuse(t, "no_instance", "the catalogue cannot be read: " .. tostring(who))
  end)
end

-- A request that C handed over (core/journal.h).
function M.submit(req)
  local t = open_ticket(req)
  if J.phase == "restored" and J.names and req.reads then return read_catalogue(t, req) end
  if J.phase ~= "on" then
    if req.forwarded then return not_holder(t) end
    return refuse(t, "journal_away", "the journal is not ready: " .. J.why, 1)
  end
  if req.reads then return read_catalogue(t, req) end
  dispatch(t)
end

-- The client is gone: its write goes on, but nobody is told.
function M.gone(ticket) J.tickets[ticket] = nil end

-- A read names a collection that is not known here (core/mapped.c).
function M.look(logical)
  spawn(function()
    copies.looked(logical, look_again(logical, nil, nil, now() + J.settings.REQUEST_TIMEOUT) == true)
  end)
end

-- A read of this collection waits for a copy that may be read: those that were not looked at yet are looked at next.
function M.wanted(logical)
  local names = J.names
  local lane = names and names.by_logical[logical]
  for _, copy in ipairs(lane and lane.order or {}) do
    if copy.physical ~= "" then
      sound.look(lane, copy, function()
        return names:path(lane.tenant, lane.database, "/collections/" .. copy.physical)
      end, true)
    end
  end
end

-- A read was answered "no such collection" by an instance that should have it.
function M.lost(what)
  local lane = J.names and J.names.by_logical[what.logical]
  local copy = lane and lane.copies[what.instance]
  -- A read that was sent to what a rebuild has replaced says nothing of the copy.
  if not copy or copy.physical ~= what.physical then return end
  if J.follow then
    copy.lost = copy.physical -- until PostgreSQL names another one
    J.follow:touch { lane.id }
  elseif copy.state == "ready" then
    spawn(function() lane:mark(copy, "rebuild", "a read was answered: no such collection") end)
  end
end

-- ---- life ------------------------------------------------------------------------------------------------

function M.start(settings)
  J.token_base = random_hex(12) .. "-"
  Roles.start(settings, { answer = send_verdict, left = function()
    for _, t in pairs(J.tickets) do
      if not t.read and not t.forwarding then dispatch(t) end
    end
  end })
  spawn(watch_deadlines, J.life)
  return true
end

-- Settings that may change while it runs.
function M.reload(settings)
  for name, value in pairs(settings) do J.settings[name] = value end
end

-- The clients are gone. Ends what is under way, and gives the lease back so that another takes it at once.
function M.stop() return Roles.stop() end

-- ---- telling ---------------------------------------------------------------------------------------------

function M.status() return figures.status(J) end

function M.metrics() return figures.metrics(J) end

return M
