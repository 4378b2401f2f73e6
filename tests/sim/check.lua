-- check.lua: what must hold, at each step and at rest.
local Postgres = require("postgres")
local Records = require("records")
local json = require("lb.runtime").json

local M = {}

-- As lua/lb/journal.lua makes it.
local function token_of(r) return r.key and "key:" .. r.key or r.token and "token:" .. r.token end

local WRITES = { add = true, upsert = true, update = true, delete = true }

function M.new(sim)
  local world, db = sim.world, sim.db
  local check = { server = {}, balancer = {} }
  local entry_of = {}  -- operation number -> entry
  local sent = {}      -- server name .. physical -> {n -> true}: was there
  local executed = {}  -- the same: was executed there, whole
  local acked = {}     -- lane -> highest entry that was acknowledged
  local taken = {}     -- tokens that are in the journal
  local refused = {}   -- tokens of writes that were "not kept", as all who asked for them were told
  local asked = {}     -- request id -> how often it was asked for
  local born = {}      -- entry -> epoch in which it was appended
  local touched = {}   -- servers that lost what they had
  local base = {}      -- server name .. physical -> the entry up to which it was copied
  local used = {}      -- the same -> true: it was a copy that may be read
  local fold

  local function entry_name(e) return e.lane .. "/" .. e.n end

  -- ---- PostgreSQL ----

  local watch = {}
  function watch.lease(process, epoch) process.epoch = math.max(process.epoch or 0, epoch) end

  local function holder(process, what, name)
    if process.epoch ~= db.lease[1].epoch then world:violation("OLD-HOLDER", process.name, what, name) end
  end
  function watch.append(process, e)
    holder(process, "appends", entry_name(e))
    if taken[e.token] then world:violation("TOKEN-TWICE", e.token) end
    taken[e.token] = e
    born[e] = process.epoch
    if refused[e.token] then world:violation("NOT-KEPT-BUT-THERE", entry_name(e), e.action, e.body) end
    local number = tonumber(e.body:match('"o":(%d+)') or e.body:match('"op(%d+)"'))
    if number then entry_of[number] = e end
    world:say("entry", entry_name(e), e.action, e.token, e.body)
  end
  function watch.verdict(process, e)
    holder(process, "decides", entry_name(e))
    world:say("entry", entry_name(e), "is", e.verdict, e.status)
  end
  function watch.position(process, c)
    holder(process, "moves", c.lane .. " on " .. c.instance)
    world:say("position", c.lane, "on", c.instance, "is", c.position)
    if c.lane == 0 or c.state ~= "ready" or touched[c.instance] then return end
    local there = executed[c.instance .. c.physical] or {}
    for n, e in pairs(db.entries[c.lane]) do
      if n <= c.position and n > (base[c.instance .. c.physical] or 0) and e.verdict == "applied"
        and e.resolved ~= "[]" and not there[n] then
        world:violation("POSITION-BEFORE-ANSWER", entry_name(e), "on", c.instance, "at", c.position)
      end
    end
  end
  -- The new collection is what the entries make, and nothing is on its way to it.
  function watch.swap(process, r, c)
    holder(process, "swaps", c.lane .. " on " .. c.instance)
    sim.swaps = sim.swaps + 1
    world:say("swap", c.lane, "on", c.instance, "at", c.position, c.physical)
    base[c.instance .. c.physical] = c.position
    local server = sim.server_named(c.instance)
    local held, want = server.collections[r.temp], fold(c.lane)[c.position]
    if not held then return world:violation("SWAP-OF-NOTHING", c.lane, "on", c.instance) end
    if want and Records.text(held) ~= want then
      world:violation("SWAP-NOT-EQUAL", "lane", c.lane, "on", c.instance, "at", c.position, "has", Records.text(held),
        "not", want)
    end
    for _, q in pairs(server.requests) do
      if q.collection == r.temp and WRITES[q.action] and not q.executed then
        world:violation("SWAP-NOT-SETTLED", c.lane, "on", c.instance, q.body)
      end
    end
  end
  function check.commit(process, tx)
    for _, t in ipairs(tx.told) do watch[t[1]](unpack(t, 2)) end
    if #tx.told > 0 and not tx.checked and tx.told[1][1] ~= "lease" then
      world:violation("UNCHECKED", process.name, tx.told[1][1])
    end
  end

  -- ---- servers ----

  -- The copy that a request is for.
  local function copy_for(server, r)
    for _, c in pairs(db.copies) do
      if c.instance == server.name and c.physical == r.collection then return c end
    end
  end

  -- The entries that a body holds, lowest first.
  local function entries_in(c, r)
    local found, list = {}, {}
    local b = Records.decode(r.body)
    local function take(number)
      local e = number and entry_of[number]
      if e and e.lane == c.lane and not found[e.n] then
        found[e.n] = true
        list[#list + 1] = e
      end
    end
    for _, m in ipairs(b.metadatas or {}) do take(m.o) end
    if r.action == "delete" then
      for _, id in ipairs(b.ids or {}) do take(tonumber(id:match("^op(%d+)$"))) end
      if #list == 0 then
        for _, n in ipairs(Postgres.sorted(db.entries[c.lane])) do
          local e = db.entries[c.lane][n]
          if e.resolved and n > c.position and json.encode(b.ids) == json.encode(json.decode(e.resolved)) then
            return { e }
          end
        end
      end
    end
    table.sort(list, function(x, y) return x.n < y.n end)
    return list
  end

  function check.server.arrived(server, r)
    world:say(r.balancer.process.name, "sends", server.name, r.method, r.target, r.body or "")
    if not WRITES[r.action or ""] then return end
    local c = copy_for(server, r)
    if not c then return end -- the witness, or a copy whose making is not committed yet
    if r.sync then return end -- what stood there before is made equal: nobody reads it
    for _, o in pairs(server.requests) do
      if o ~= r and o.collection == r.collection and WRITES[o.action] and not o.executed then
        local ours = not o.closed and o.balancer == r.balancer
        world:violation(ours and "TWO-AT-ONCE" or "SENT-BEFORE-SETTLED", server.name, o.body, "then", r.body)
      end
    end
    if not r.written then return end -- the mending of records belongs to the entry before it
    local list = entries_in(c, r)
    if r.action == "delete" and not Records.decode(r.body).ids then
      world:violation("FILTER-SENT", server.name, r.body)
      return
    end
    r.entries, r.lane = list, c.lane
    if #list == 0 then return world:violation("NOT-DURABLE", server.name, r.action, r.body) end
    local key = server.name .. r.collection
    sent[key] = sent[key] or {}
    local expected = list[1].n
    for _, e in ipairs(list) do
      if e.n ~= expected then world:violation("OUT-OF-ORDER", server.name, entry_name(e), "not", expected) end
      expected = e.n + 1
      -- A life that found it in the journal can't know who was sent it.
      local ours = born[e] == r.balancer.process.epoch and db.lanes[c.lane].open
      if e.verdict and e.verdict ~= "applied" and ours and not sent[key][e.n] then
        world:violation("REJECTED-SENT", entry_name(e), e.verdict, "to", server.name)
      end
      sent[key][e.n] = true
    end
    if c.position ~= list[1].n - 1 and r.balancer.process.epoch == db.lease[1].epoch then
      world:violation("POSITION-NOT-DURABLE", entry_name(list[1]), "sent to", server.name, "which is at", c.position)
    end
  end

  function check.server.executed(server, r)
    local c = server.collections[r.collection or ""]
    local ended = r.method == "DELETE" and (r.path:match("/collections/(chromux%-tomb%-rebuild[%w-]+)$")
      or r.path:match("/collections/(chromux%-temp[%w-]+)$"))
    for id, x in pairs(server.collections) do
      local copy = ended and x.name == ended and copy_for(server, { collection = id })
      if copy and copy.state == "ready" and db.lanes[copy.lane].open then
        world:violation("DELETED-IN-USE", copy.lane, "on", server.name)
      end
    end
    if r.read and c then r.snapshot = Records.text(c) end
    if not r.entries then return end
    local key = server.name .. r.collection
    executed[key] = executed[key] or {}
    for _, e in ipairs(r.entries) do executed[key][e.n] = true end
  end

  -- A balancer does not read from a copy while it does not know what became of a write there.
  function check.balancer.ended(b, r, status, kind)
    local unsure
    if status then unsure = status >= 500 and status ~= 503 else unsure = kind ~= "not_sent" and kind ~= "fenced" end
    if not unsure or not r.entries or #r.entries == 0 then return end
    b.doubts = b.doubts or {}
    b.doubts[r.server.name .. r.collection] = { lane = r.lane, instance = r.server.name, n = r.entries[#r.entries].n }
    -- Readers come just then, and some time later.
    for _, most in ipairs { 0.01, 0.01, 1, 1 } do
      world:after(sim.rng:unit() * most, function()
        sim.read(sim, b, db.collections[r.lane], function() end)
      end, b.process)
    end
  end

  function check.balancer.read(b, key)
    if not used[key] then
      for _, c in pairs(db.copies) do used[c.instance .. c.physical] = c.state == "ready" or nil end
      for _, r in pairs(db.rebuilds) do used[r.instance .. r.old] = true end
    end
    if not used[key] then world:violation("READ-OF-NO-COPY", key) end
    local d = b.doubts and b.doubts[key]
    local copy = d and db.copies[Postgres.copy_key(d.lane, d.instance)]
    if copy and copy.state == "ready" and copy.position < d.n then
      world:violation("READ-IN-DOUBT", d.lane .. "/" .. d.n, "on", d.instance)
    end
  end

  -- ---- answers ----

  function check.balancer.on(b)
    b.acked = b.acked or {}
    if b.journal.state.role ~= "holder" then return end -- a standby knows what it was told itself
    for lane, n in pairs(acked) do b.acked[lane] = math.max(n, b.acked[lane] or 0) end
  end

  local function entry_for(r)
    local token = token_of(r)
    if token and db.tokens[token] then return db.tokens[token] end
    local number = tonumber(r.body:match('"o":(%d+)') or r.body:match('"op(%d+)"'))
    return entry_of[number]
  end

  function check.balancer.submitted(r)
    local token = token_of(r)
    if token then refused[token] = nil end
    if not r.forwarded then asked[r.id] = (asked[r.id] or 0) + 1 end
  end

  function check.balancer.answered(b, r, kind, status, text, body)
    if r.reads then return end
    local e = entry_for(r)
    if kind == "refuse" or status == 503 or status == 504 then
      local reason = kind == "refuse" and status or body:match('^{"error":"([^"]*)"')
      if kind ~= "refuse" then text = body end
      local token = token_of(r)
      if token and not r.forwarded and reason == "journal_away" and text:find("not kept", 1, true) then
        refused[token] = asked[r.id] == 1 or nil
        if e and asked[r.id] == 1 then world:violation("NOT-KEPT-BUT-THERE", entry_name(e), r.action, r.body) end
      end
      if reason == "not_applied" and not e then world:violation("KEPT-BUT-NOT-THERE", r.action, r.body) end
      return
    end
    if not e then
      if status < 300 and not r.body:find("get_or_create", 1, true) then
        world:violation("ACK-NOT-DURABLE", r.action, r.body)
      end
      return
    end
    if status < 300 and e.verdict ~= "applied" and e.verdict ~= "void" then
      world:violation("ACK-NOT-DURABLE", entry_name(e), tostring(e.verdict), r.body)
    elseif e.verdict and e.verdict ~= "void" and (e.status ~= status or e.answer ~= body)
      and not (status == 404 and e.lane ~= 0 and not db.lanes[e.lane].open) then
      world:violation("ANSWER-DIFFERS", entry_name(e), e.verdict, e.status, e.answer, "told", status, body)
    end
    if status < 300 and e.verdict == "applied" then
      acked[e.lane] = math.max(acked[e.lane] or 0, e.n)
      b.acked = b.acked or {}
      b.acked[e.lane] = math.max(b.acked[e.lane] or 0, e.n)
    end
  end

  -- ---- at rest ----

  local function ready_copies(lane)
    local out = {}
    for _, s in ipairs(sim.servers) do
      local c = db.copies[Postgres.copy_key(lane, s.name)]
      if c and c.state == "ready" then out[#out + 1] = c end
    end
    return out
  end

  local why = "not looked at"
  function check.why_not() return why end

  function check.at_rest()
    local b
    for _, x in ipairs(sim.balancers) do
      if not x.process.dead and x.process.epoch == db.lease[1].epoch and x.journal.state.phase == "on" then b = x end
    end
    if not b then
      why = "no balancer is on"
      return false
    end
    if sim.sync and not sim.sync:idle() then
      local parts = { "something is to be made anew" }
      for _, c in ipairs(sim.sync:wanted()) do
        parts[#parts + 1] = c.lane .. " on " .. c.instance .. ": " .. c.reason
      end
      for _, name in ipairs(sim.sync:members()) do parts[#parts + 1] = "the catalogue on " .. name end
      why = table.concat(parts, "; ")
      return false
    end
    for _, r in pairs(db.rebuilds) do
      if r.state ~= "done" and r.state ~= "dropped" then
        why = string.format("rebuild %d on %s is %s", r.id, r.instance, r.state)
        return false
      end
    end
    for _, s in ipairs(sim.servers) do
      for _, r in pairs(s.requests) do
        if not r.plain and not r.target:find("/tenants/chromux", 1, true) then
          why = "a request waits in " .. s.name
          return false
        end
      end
    end
    for _, lane in ipairs(Postgres.sorted(db.lanes)) do
      local l, copies = db.lanes[lane], ready_copies(lane)
      if l.open and #copies > 0 then
        for n, e in pairs(db.entries[lane]) do
          if not e.verdict then
            local held = b.journal.state.names
            if lane ~= 0 then held = held.by_lane[lane] end
            local parts = { "no verdict on " .. lane .. "/" .. n .. " in " .. b.process.name .. ", decider "
              .. tostring(held and held.decider and held.decider.instance) }
            for _, m in ipairs(held and held.order or {}) do
              parts[#parts + 1] = string.format(
                "%s p=%d doubt=%d %s settled=%s draining=%s tried=%d running=%s usable=%s", m.instance, m.p, m.doubt,
                m.state, tostring(m.settled), tostring(m.draining), m.tried, tostring(m.running),
                tostring(m.server:usable()))
            end
            why = table.concat(parts, "; ")
            return false
          end
        end
        local held = lane == 0 and b.journal.state.names or b.journal.state.names.by_lane[lane]
        for _, c in ipairs(copies) do
          local m = held and held.copies[c.instance]
          if c.position ~= l.next - 1 or not m or m.p ~= c.position or m.doubt ~= 0 or not m.settled then
            why = string.format("lane %d on %s is at %d of %d (memory: %s, doubt %s, settled %s)", lane, c.instance,
              c.position, l.next - 1, m and m.p or "-", m and m.doubt or "-", tostring(m and m.settled))
            return false
          end
        end
      end
    end
    return true
  end

  -- states[n]: the text after entry n; false from the first entry on whose effect is not known.
  function fold(lane)
    local c = db.collections[lane]
    local now_is = c and sim.before[c.logical] and Records.clone(sim.before[c.logical])
      or Records.collection("", "", "", "")
    local states = { [0] = Records.text(now_is) }
    for n = 1, db.lanes[lane].next - 1 do
      local e = db.entries[lane][n]
      if not e then
        world:violation("ENTRY-MISSING", lane, n)
        return states
      end
      local cut_off = not db.lanes[lane].open and e.verdict == "rejected" and e.status == 404
      if e.verdict == "failed" or cut_off then
        for k = n, db.lanes[lane].next - 1 do states[k] = false end
        return states
      end
      if e.verdict == "applied" then
        local body = e.resolved and '{"ids":' .. e.resolved .. "}" or e.body
        Records.apply(now_is, e.action, body)
        states[n] = Records.text(now_is)
      else
        states[n] = states[n - 1]
      end
    end
    return states
  end

  local function check_records(at_rest)
    for _, lane in ipairs(Postgres.sorted(db.collections)) do
      local c = db.collections[lane]
      local states = fold(lane)
      local reference, metadata
      for _, copy in ipairs(ready_copies(lane)) do
        local server
        for _, s in ipairs(sim.servers) do
          if s.name == copy.instance then server = s end
        end
        if not c.deleted then
          local held = server.collections[copy.physical]
          if not held then
            world:violation("COPY-MISSING", c.name, "on", server.name)
          else
            if held.name ~= c.name or held.tenant ~= c.tenant or held.database ~= c.database then
              world:violation("NAME-DIFFERS", c.name, "is", held.name, "on", server.name)
            end
            local text, want = Records.text(held), states[copy.position]
            if not at_rest then want = nil end
            if want and text ~= want then
              world:violation("NOT-THE-FOLD", "lane", lane, "on", server.name, "at", copy.position, "has", text, "not",
                want)
            end
            if at_rest and reference and text ~= reference then
              world:violation("COPIES-DIFFER", "lane", lane, text, reference)
            end
            reference = text
            if at_rest and metadata and metadata ~= (held.metadata or "null") then
              world:violation("METADATA-DIFFERS", "lane", lane, held.metadata, metadata)
            end
            metadata = held.metadata or "null"
          end
        end
      end
      for _, r in ipairs(sim.reads) do
        if r.lane == lane then
          -- What one instance takes and another refuses may be seen before it is refused: a write without an answer is
          -- visible on the copy that has it first.
          local fits, old = r.text:find(Records.SKEW, 1, true) ~= nil, false
          for n = 0, #states do
            if states[n] == false and n >= r.since then fits = true end
            if states[n] == r.text then
              if n >= r.since then fits = true else old = true end
            end
          end
          if not fits then
            world:violation(old and "STALE-READ" or "DIRTY-READ", "lane", lane, "on", r.instance, "by", r.balancer,
              "at", r.t, "since", r.since, r.text)
          end
        end
      end
    end
  end

  -- The catalogue as its lane's entries make it: "tenant/database/name" -> lane.
  local function check_catalogue()
    local names, databases = {}, { ["default_tenant/default_database"] = true }
    for _, c in pairs(db.collections) do
      if c.adopted then names[c.tenant .. "/" .. c.database .. "/old"] = c.lane end
    end
    local function where(lane)
      for k, l in pairs(names) do
        if l == lane then return k end
      end
    end
    for n = 1, db.lanes[0].next - 1 do
      local e = db.entries[0][n]
      local p = json.decode(e.rest)
      local key = (p.tenant or "") .. "/" .. (p.database or "") .. "/" .. tostring(p.name or p.collection)
      local function wrong(text)
        world:violation("WRONG-VERDICT", entry_name(e), e.action, e.verdict, e.status, text)
      end
      if e.action == "create_collection" then
        if e.verdict == "applied" then
          if names[key] then wrong("the name was taken") end
          if not databases[p.tenant .. "/" .. p.database] then wrong("there was no such database") end
          names[key] = p.lane
        elseif e.verdict == "rejected" and e.status == 409 and not names[key] then
          wrong("the name was free")
        end
      elseif e.action == "delete_collection" then
        if e.verdict == "applied" then
          if names[key] ~= p.lane then wrong("it was not there") end
          names[key] = nil
        elseif e.verdict == "rejected" and names[key] then
          wrong("it was there")
        end
      elseif e.action == "update_collection" and p.new_name then
        if e.verdict == "applied" then
          local at = where(p.lane)
          local to = p.tenant .. "/" .. p.database .. "/" .. p.new_name
          if not at then wrong("it was not there") else names[at] = nil end
          if names[to] then wrong("the name was taken") end
          names[to] = p.lane
        end
      elseif e.action == "create_database" and e.verdict == "applied" then
        if databases[p.tenant .. "/" .. p.name] then wrong("it was there") end
        databases[p.tenant .. "/" .. p.name] = true
      elseif e.verdict == "applied" and (e.action == "delete_database" or e.action == "reset") then
        for k in pairs(names) do
          if e.action == "reset" or k:find(p.tenant .. "/" .. p.database .. "/", 1, true) == 1 then names[k] = nil end
        end
        if e.action == "reset" then databases = { ["default_tenant/default_database"] = true }
        else databases[p.tenant .. "/" .. p.database] = nil end
      end
    end
    for _, c in pairs(db.collections) do
      local key = c.tenant .. "/" .. c.database .. "/" .. c.name
      if not c.deleted and names[key] ~= c.lane then world:violation("CATALOGUE-NOT-THE-FOLD", key, "too many") end
      if c.deleted and where(c.lane) then world:violation("CATALOGUE-NOT-THE-FOLD", where(c.lane), "is missing") end
      if not c.deleted then names[key] = nil end
    end
    for key in pairs(names) do world:violation("CATALOGUE-NOT-THE-FOLD", key, "is missing") end
    for key in pairs(db.databases) do
      if not databases[(key:gsub("%z", "/"))] then world:violation("CATALOGUE-NOT-THE-FOLD", "database", key) end
    end
    for key in pairs(databases) do
      if not db.databases[(key:gsub("/", "\0"))] then
        world:violation("CATALOGUE-NOT-THE-FOLD", "database", key, "is missing")
      end
    end
  end

  -- Servers hold nothing that the journal does not know of.
  local function check_servers()
    for _, s in ipairs(sim.servers) do
      local member = db.copies[Postgres.copy_key(0, s.name)]
      if member and member.state == "ready" and (not touched[s.name] or sim.sync) then
        for id, c in pairs(s.collections) do
          if c.tenant ~= "chromux" and c.name ~= "old" then
            local copy = copy_for(s, { collection = id })
            if c.name:find("^chromux%-") then
              world:violation("TOMB-LEFT", c.name, "on", s.name)
            elseif c.name:find("%-aside%-")
              and (touched[s.name] or c.name:find("^old")) then -- luacheck: ignore 542
            elseif not copy then
              world:violation("GHOST", c.name, id, "on", s.name)
            elseif db.collections[copy.lane].deleted and copy.state == "ready" then
              world:violation("NOT-DELETED", c.name, "on", s.name)
            end
          end
        end
        for key in pairs(db.databases) do
          if not s.databases[key] then world:violation("DATABASE-MISSING", key, "on", s.name) end
        end
        for key in pairs(s.databases) do
          if not db.databases[key] and not key:find("^chromux") and not touched[s.name] then
            world:violation("DATABASE-NOT-DELETED", key, "on", s.name)
          end
        end
      end
    end
  end

  -- What clients were told agrees with the journal.
  local function check_answers()
    for _, op in ipairs(sim.operations) do
      local r = op.request
      local token = token_of(op)
      local e = token and db.tokens[token] or not token and entry_of[op.number] or nil
      for _, a in ipairs(op.answers) do
        if a.kind == "send" and a[1] < 300 and e and e.verdict ~= "applied" and e.verdict ~= "void" then
          world:violation("ACK-LOST", entry_name(e), tostring(e.verdict))
        elseif a.kind == "send" and a[1] < 300 and not e and not r.body:find("get_or_create", 1, true) then
          world:violation("ACK-LOST", r.action, r.body)
        elseif a.kind == "send" and a[1] >= 400 and a[1] < 503 and e and e.verdict == "applied" and e.lane ~= 0
          and db.lanes[e.lane].open then
          world:violation("REFUSED-BUT-APPLIED", entry_name(e), a[1], a[3])
        end
      end
    end
  end

  -- Nothing happened that costs a copy.
  local function check_needless()
    local f = sim.start_faults
    if sim.wiped or f.skew > 0 or f.poison > 0 or f.e500 > 0 or f.errors > 0 or f.adopt then return end
    for _, c in pairs(db.copies) do
      local gone = c.lane ~= 0 and db.collections[c.lane] and db.collections[c.lane].deleted
      if c.state ~= "ready" and not gone then
        world:violation("COPY-LOST-FOR-NOTHING", c.lane, "on", c.instance, c.reason)
      end
    end
  end

  function check.lost(server) touched[server.name] = true end

  function check.finish()
    if #world.violations > 0 and world.violations[1]:find("^LIVELOCK") then return end
    if not db.lanes[0] then return end
    local at_rest = check.at_rest()
    check_answers()
    check_records(at_rest)
    check_needless()
    if not at_rest then return end
    check_catalogue()
    check_servers()
  end

  return check
end

return M
