-- check.lua: judges a recorded history. Pure; everything comes as plain tables (see history.lua for how they are
-- gathered):
--
--   h.ops          what clients did, {id=, action=, class="write"|"catalogue"|"read", start=, stop=, status=,
--                  outcome="ack"|"reject"|"not_kept"|"kept"|"unknown", token=, lane=, n=, logical=, name=, body=,
--                  raw=, seen=, via=which balancer was asked}
--   h.entries      the journal, by lane and number: {lane=, n=, token=, action=, verdict=, status=, raw=, body=,
--                  resolved=, logical=, name=, new_name=}
--   h.collections  {lane=, logical=, name=, deleted=}
--   h.copies       {lane=, instance=, physical=, position=, state=, reason=, head=}
--   h.appends      each entry as it was appended, in that order: {lane=, n=, epoch=, holder=: of the lease, backend=the
--                  process of PostgreSQL that served whoever did it}
--   h.wire         writes of records that servers were sent, where wrap.c saw them: {server=, action=, raw=,
--                  marks=tokens of its entries, body=of a delete, came=, answered=, done=: whatever was answered}
--   h.servers      instance -> physical id -> {name=, records=id -> {doc=, meta=, emb=} | error=why it can't be read}
--   h.broken       instance -> physical id -> how its files were damaged: such a copy is right, or set aside; nil: no
--                  files may be damaged
--   h.rebuild_most other copies to be made anew that are put up with
--   h.healed       there are workers: no copy may be set aside for any reason
--
-- Each check adds texts to v (violations). all() runs them and returns v and the copies set aside.
local Model = require("model")

local M = {}

local function complain(v, kind, ...) v[#v + 1] = kind .. ": " .. string.format(...) end

local function name_of(op)
  return string.format("op %s %s%s [%.3f..%.3f] status %s%s", op.id, op.action,
    op.token and " " .. op.token or "", op.start, op.stop, tostring(op.status),
    op.n and " entry " .. op.lane .. "/" .. op.n or "")
end

local function entry_name(e)
  return string.format("entry %d/%d %s %s (%s, status %s)", e.lane, e.n, e.action, e.token, tostring(e.verdict),
    tostring(e.status))
end

-- Looked up once for all checks.
local function index(h)
  local x = { by_number = {}, by_token = {}, lanes = {}, by_logical = {}, deleted_at = {}, created_at = {} }
  for _, e in ipairs(h.entries) do
    x.by_number[e.lane .. "/" .. e.n] = e
    x.by_token[e.token] = x.by_token[e.token] or {}
    table.insert(x.by_token[e.token], e)
  end
  for _, c in ipairs(h.collections) do
    x.lanes[c.lane] = { collection = c, model = Model.new() }
    x.by_logical[c.logical] = x.lanes[c.lane]
  end
  return x
end

-- ---- replay ----------------------------------------------------------------------------------------------

-- The catalogue's own history: names, as if they were records of lane 0, whose value is the logical id.
local function replay_names(h, x, v)
  local names = {} -- name -> {{n=, logical= | nil}, ...}
  local now_has = {}
  local function set(n, name, logical)
    names[name] = names[name] or {}
    table.insert(names[name], { n = n, logical = logical })
    now_has[name] = logical
  end
  for _, e in ipairs(h.entries) do
    if e.lane == 0 and e.verdict == "applied" then
      if e.action == "create_collection" then
        if now_has[e.name] then
          complain(v, "catalogue", "%s was applied though %s had the name", entry_name(e), now_has[e.name])
        end
        if not e.logical then complain(v, "catalogue", "%s has no id in its answer", entry_name(e)) end
        set(e.n, e.name, e.logical)
        if e.logical then x.created_at[e.logical] = e.n end
      elseif e.action == "delete_collection" then
        if not now_has[e.name] then
          complain(v, "catalogue", "%s was applied though nothing had the name", entry_name(e))
        else
          x.deleted_at[now_has[e.name]] = e
        end
        set(e.n, e.name, nil)
      elseif e.action == "update_collection" and e.new_name then
        for name, logical in pairs(now_has) do
          if logical == e.logical then
            set(e.n, name, nil)
            set(e.n, e.new_name, logical)
            break
          end
        end
      end
    end
  end
  x.names, x.now_has = names, now_has
  local listed = {}
  for _, c in ipairs(h.collections) do
    if not c.deleted then
      listed[c.name] = c.logical
      if now_has[c.name] ~= c.logical then
        complain(v, "catalogue", "journal_collections has %s as %s, the entries say %s", c.name, c.logical,
          tostring(now_has[c.name]))
      end
    end
  end
  for name, logical in pairs(now_has) do
    if not listed[name] then
      complain(v, "catalogue", "the entries leave %s as %s, journal_collections does not", name, logical)
    end
  end
end

local function replay_records(h, x)
  for _, e in ipairs(h.entries) do
    local lane = e.lane ~= 0 and x.lanes[e.lane]
    if lane and e.verdict == "applied" then
      Model.apply(lane.model, e.n, e.action, e.body, e.resolved)
    elseif lane and e.verdict == "failed" then
      Model.blur(lane.model, e.n, e.body)
    elseif lane and lane.collection.deleted and (e.verdict == nil or (e.verdict == "rejected" and e.status == 404)) then
      -- It waited when the collection was deleted, and may have been on a copy by then, where a read could see it: a
      -- write without an answer is visible on the copy that has it first.
      Model.blur(lane.model, e.n, e.body)
    end
  end
end

-- ---- the checks ------------------------------------------------------------------------------------------

-- Every answer agrees with what the journal says of the entry.
function M.fates(h, x, v)
  for token, list in pairs(x.by_token) do
    if #list > 1 then complain(v, "twice", "%s stands in the journal %d times", token, #list) end
  end
  for _, op in ipairs(h.ops) do
    if op.class ~= "read" then
      local e = op.n and x.by_number[op.lane .. "/" .. op.n]
      local mine = op.token and x.by_token[op.token] and x.by_token[op.token][1]
      if e and op.raw and e.raw and e.lane ~= 0 and e.raw ~= op.raw then
        complain(v, "bytes", "%s: the journal keeps another body: %s", name_of(op), e.raw:sub(1, 200))
      end
      if mine and op.n and (mine.lane ~= op.lane or mine.n ~= op.n) then
        complain(v, "number", "%s was given the number of another entry; its own is %s", name_of(op), entry_name(mine))
      end
      e = e or mine
      if op.outcome == "ack" and op.n then
        if not e then
          complain(v, "lost", "%s was acknowledged and is not in the journal", name_of(op))
        elseif e.verdict ~= "applied" and not (e.verdict == "void" and op.action == "create_collection") then
          complain(v, "lost", "%s was acknowledged; %s", name_of(op), entry_name(e))
        end
      elseif op.outcome == "ack" and not (op.action == "create_collection" and op.get_or_create) then
        complain(v, e and "unnamed" or "lost", "%s was acknowledged without an entry's number%s", name_of(op),
          e and "" or " and is not in the journal")
      elseif op.outcome == "reject" and e and e.verdict ~= "rejected" then
        local closed = e.verdict == nil and x.lanes[e.lane] and x.lanes[e.lane].collection.deleted
        if not closed then complain(v, "rejected", "%s was rejected; %s", name_of(op), entry_name(e)) end
      elseif op.outcome == "not_kept" and e and (e.verdict == "applied" or e.verdict == "failed") then
        complain(v, "not_kept", "%s was told that it was not kept; %s", name_of(op), entry_name(e))
      elseif op.outcome == "kept" and not e then
        complain(v, "lost", "%s was told that it is kept and is not in the journal", name_of(op))
      end
    end
  end
end

-- The highest number acknowledged before a moment, per lane; via: by this balancer, else by any.
local function floors(h, via)
  local acks = {}
  for _, op in ipairs(h.ops) do
    if op.class ~= "read" and op.outcome == "ack" and op.n and (not via or op.via == via) then
      acks[op.lane] = acks[op.lane] or {}
      table.insert(acks[op.lane], { at = op.stop, n = op.n, op = op })
    end
  end
  for _, list in pairs(acks) do
    table.sort(list, function(a, b) return a.at < b.at end)
    local most
    for _, a in ipairs(list) do
      if not most or a.n > most.n then most = { n = a.n, op = a.op } end
      a.most = most
    end
  end
  return function(lane, moment)
    local list, best = acks[lane] or {}, nil
    local low, high = 1, #list
    while low <= high do
      local mid = math.floor((low + high) / 2)
      if list[mid].at < moment then
        best, low = list[mid].most, mid + 1
      else
        high = mid - 1
      end
    end
    return best and best.n or 0, best and best.op
  end
end

-- What was acknowledged before another was sent comes before it.
function M.order(h, x, v)
  for _, op in ipairs(h.ops) do
    if op.class ~= "read" and op.n then
      local n, before = x.floor(op.lane, op.start)
      if n >= op.n then
        complain(v, "order", "%s began after %s was acknowledged, and comes before it", name_of(op), name_of(before))
      end
    end
  end
end

local function seen_or(list)
  local out = {}
  for i = 1, math.min(#list, 6) do out[i] = list[i].n .. ": " .. Model.text(list[i].record) end
  return table.concat(out, " | ")
end

-- One record as a read saw it (nil: not there) against what it may have seen.
local function judge_record(v, op, lane, id, record, floor)
  if Model.is_hazy(lane.model, id) then return end
  local may = Model.versions_from(lane.model, id, floor)
  local text, vector = Model.text(record), record and record.emb and Model.vector(record)
  local text_ok, vector_ok = false, vector == nil
  for _, version in ipairs(may) do
    text_ok = text_ok or Model.text(version.record) == text
    vector_ok = vector_ok or Model.may_have(version.record, vector)
  end
  if text_ok and vector_ok then return end
  local old, known
  for _, version in ipairs(lane.model.versions[id] or {}) do
    if Model.text(version.record) == text and (not vector or Model.vector(version.record) == vector) then
      old, known = version.n, true
    end
  end
  if text == "absent" and not known then old = 0 end
  complain(v, old and "stale" or "unknown state",
    "%s of %s/%d on %s began when %d was acknowledged and saw %s as %s%s%s; it may be %s", name_of(op),
    lane.collection.name, lane.collection.lane, tostring(op.instance), floor, id, text,
    vector and not vector_ok and " with vector " .. vector or "",
    old and " (as after " .. old .. ")" or "", seen_or(may))
end

local Read = {}

function Read.get_ids(v, op, lane, floor)
  for _, id in ipairs(op.body.ids) do judge_record(v, op, lane, id, op.seen[id], floor) end
end

function Read.get_where(v, op, lane, floor)
  for id, record in pairs(op.seen) do
    judge_record(v, op, lane, id, record, floor)
    if not Model.matches(record, op.body.where) then
      complain(v, "filter", "%s: %s does not match: %s", name_of(op), id, Model.text(record))
    end
  end
  for id in pairs(lane.model.versions) do
    if not op.seen[id] and not Model.is_hazy(lane.model, id) then
      local ok = false
      local may = Model.versions_from(lane.model, id, floor)
      for _, version in ipairs(may) do ok = ok or not Model.matches(version.record, op.body.where) end
      if not ok then
        complain(v, "stale", "%s on %s began when %d was acknowledged and did not see %s, which is %s", name_of(op),
          tostring(op.instance), floor, id, seen_or(may))
      end
    end
  end
end

-- A query finds as many as it was to, if there are so many (few records: the index is exact). It
-- looks up ids first and what belongs to them later: one that is deleted in between comes without
-- anything.
function Read.query(v, op, lane, floor)
  local found, least = 0, math.huge
  for _ in pairs(op.seen) do found = found + 1 end
  for i = #lane.model.counts, 1, -1 do
    least = math.min(least, lane.model.counts[i].count)
    if lane.model.counts[i].n <= floor then break end
  end
  if found < math.min(least, op.body.n_results) and not next(lane.model.hazy) and not lane.model.hazy_all then
    complain(v, "short", "%s of %s/%d on %s began when %d was acknowledged and found %d records; there were %d",
      name_of(op), lane.collection.name, lane.collection.lane, tostring(op.instance), floor, found, least)
  end
  for id, record in pairs(op.seen) do
    local torn = false
    if not record.doc and not next(record.meta) then
      for _, version in ipairs(Model.versions_from(lane.model, id, floor)) do torn = torn or not version.record end
    end
    if not torn then judge_record(v, op, lane, id, record, floor) end
  end
end

function Read.count(v, op, lane, floor)
  if next(lane.model.hazy) or lane.model.hazy_all then return end
  local last, may, ok = 0, {}, false
  for _, c in ipairs(lane.model.counts) do
    if c.n <= floor then last = c.count else
      ok = ok or c.count == op.seen
      may[#may + 1] = c.count
    end
  end
  if not ok and last ~= op.seen then
    complain(v, "stale", "%s on %s began when %d was acknowledged and counted %s; it may be %d %s", name_of(op),
      tostring(op.instance), floor, tostring(op.seen), last, table.concat(may, " ", 1, math.min(#may, 10)))
  end
end

local function judge_name(v, op, x, name, logical, floor)
  local last, ok
  for _, version in ipairs(x.names[name] or {}) do
    if version.n <= floor then last = version.logical else ok = ok or version.logical == logical end
  end
  if not ok and last ~= logical then
    complain(v, "stale", "%s on %s began when 0/%d was acknowledged and saw %s as %s; it was %s", name_of(op),
      tostring(op.instance), floor, name, tostring(logical), tostring(last))
  end
end

local KNOWN_AFTER = 0.3 -- seconds, until whoever sent it has taken the answer

-- Was the server doing something then that has not counted in the end? Who reads from it may see that as long as it is
-- not known to be in doubt.
local function beside_undone(h, x, op, lane)
  for _, q in ipairs(h.wire or {}) do
    if q.done and q.server == op.instance and q.came <= op.stop and op.start <= q.answered + KNOWN_AFTER then
      for _, token in ipairs(q.marks) do
        local e = x.by_token[token] and x.by_token[token][1]
        if e and e.lane == lane.collection.lane and e.verdict ~= "applied" then return true end
      end
    end
  end
  return false
end

-- No read saw an older state than the same balancer had acknowledged when it began, nor one that never was.
function M.reads(h, x, v)
  local began, by_balancer = {}, {}
  for _, op in ipairs(h.ops) do
    if op.token then began[op.token] = op end
    if op.via and not by_balancer[op.via] then by_balancer[op.via] = floors(h, op.via) end
  end
  for _, op in ipairs(h.ops) do
    local lane = op.class == "read" and op.logical and x.by_logical[op.logical]
    local floor_of = by_balancer[op.via] or x.floor
    if op.action == "get_name" and (op.status == 200 or op.status == 404) then
      judge_name(v, op, x, op.name, op.seen, (floor_of(0, op.start)))
    elseif op.action == "list" and op.status == 200 then
      local floor = floor_of(0, op.start)
      for name in pairs(x.names) do judge_name(v, op, x, name, op.seen[name], floor) end
      for name in pairs(op.seen) do if not x.names[name] then judge_name(v, op, x, name, op.seen[name], floor) end end
    elseif lane and (op.status == 200 or op.status == 404) then
      local gone = x.deleted_at[op.logical]
      local deleter = gone and began[gone.token]
      if op.status == 404 then
        local known = floor_of(0, op.start) >= (x.created_at[op.logical] or 0)
        if known and (not gone or (deleter and deleter.start > op.stop)) then
          complain(v, "missing", "%s on %s: collection %s exists", name_of(op), tostring(op.instance), op.logical)
        end
      elseif gone and deleter and deleter.outcome == "ack" and deleter.via == op.via and deleter.stop < op.start then
        complain(v, "stale", "%s on %s: collection %s was deleted by %s", name_of(op), tostring(op.instance),
          op.logical, name_of(deleter))
      elseif Read[op.action] and not (gone and (not deleter or deleter.start < op.stop)) then
        -- (While it deletes a collection Chroma takes the records away first: anything may be missing then.)
        local found = {}
        Read[op.action](found, op, lane, (floor_of(lane.collection.lane, op.start)))
        if #found > 0 and not beside_undone(h, x, op, lane) then
          for _, text in ipairs(found) do v[#v + 1] = text end
        end
      end
    end
  end
end

-- Whoever appends holds the lease. What a process of PostgreSQL is sent comes from one balancer: from the first whose
-- entry it wrote.
function M.holders(h, _, v)
  local whose = {}
  for _, a in ipairs(h.appends or {}) do
    whose[a.backend] = whose[a.backend] or a.holder
    if whose[a.backend] ~= a.holder then
      complain(v, "old holder", "entry %d/%d was appended by %s when %s had the lease, epoch %d", a.lane, a.n,
        whose[a.backend], a.holder, a.epoch)
    end
  end
end

-- A filter is resolved to ids before anything is sent, the same on every server.
function M.wire(h, _, v)
  for _, q in ipairs(h.wire or {}) do
    if q.action == "delete" and q.body.where then
      complain(v, "filter sent", "%s was sent a filter to delete by: %s", q.server, q.raw)
    end
  end
end

-- The journal has come to rest: nothing undecided, every ready copy at its lane's head.
function M.rest(h, x, v)
  for _, e in ipairs(h.entries) do
    local lane = x.lanes[e.lane]
    if not e.verdict and (e.lane == 0 or lane and not lane.collection.deleted) then
      complain(v, "undecided", "%s", entry_name(e))
    end
  end
  for _, c in ipairs(h.copies) do
    local lane = x.lanes[c.lane]
    if c.state == "ready" and c.position ~= c.head and (c.lane == 0 or lane and not lane.collection.deleted) then
      complain(v, "behind", "lane %d on %s is at %d of %d", c.lane, c.instance, c.position, c.head)
    end
  end
end

-- Is the record one of those that a copy with all entries up to p may have?
local function fits(lane, id, record, p)
  for _, version in ipairs(Model.versions_from(lane.model, id, p)) do
    if Model.text(version.record) == Model.text(record) and Model.may_have(version.record, Model.vector(record)) then
      return true
    end
  end
  return false
end

local function judge_copy(v, lane, c, held)
  local where = string.format("%s (lane %d) on %s", lane.collection.name, c.lane, c.instance)
  if not held then return complain(v, "diverged", "%s: its collection %s is not there", where, c.physical) end
  if held.name ~= lane.collection.name then
    complain(v, "diverged", "%s is called %s there", where, held.name)
  end
  if held.error then return complain(v, "diverged", "%s is ready but cannot be read: %s", where, held.error) end
  local ids = {}
  for id in pairs(lane.model.records) do ids[id] = true end
  for id in pairs(held.records) do ids[id] = true end
  for id in pairs(ids) do
    local want, have = lane.model.records[id], held.records[id]
    if not Model.is_hazy(lane.model, id) and not fits(lane, id, have, c.position) then
      local versions = lane.model.versions[id]
      complain(v, "diverged", "%s: %s is %s [%s], should be %s [%s]%s", where, id, Model.text(have),
        Model.vector(have), Model.text(want), Model.vector(want),
        versions and " since entry " .. versions[#versions].n or "")
    end
  end
end

-- What no verdict says anything of is at least the same everywhere.
local function judge_hazy(v, lane, helds)
  for _, a in ipairs(helds) do
    for _, b in ipairs(helds) do
      for id, record in pairs(a.held.records) do
        local other = b.held.records[id]
        if Model.is_hazy(lane.model, id)
          and (Model.text(record) ~= Model.text(other) or Model.vector(record) ~= Model.vector(other)) then
          complain(v, "diverged", "lane %d: %s is %s on %s and %s on %s", lane.collection.lane, id, Model.text(record),
            a.instance, Model.text(other), b.instance)
        end
      end
    end
  end
end

-- How the copy's files are damaged, if they are: by us, or by a kill in the middle of writing them.
local function files_of(h, c)
  local held = (h.servers[c.instance] or {})[c.physical]
  return h.broken[c.instance][c.physical]
    or held and held.error and held.error:find("deserializing pickle", 1, true) and "pickle"
end

-- Asked directly, every server holds what the journal's applied entries make, and nothing else. Returns the copies
-- that wait to be made anew.
--
-- An entry that every copy answered with an error has failed, and what it did is known only on the copy that recorded
-- that: the others have to be made anew (PROTOCOL.md R7).
function M.copies(h, x, v)
  local aside, unasked, members, by_lane, owned, failed = {}, {}, {}, {}, {}, {}
  for _, e in ipairs(h.entries) do failed[e.lane] = failed[e.lane] or e.verdict == "failed" end
  for _, c in ipairs(h.copies) do
    if c.lane == 0 then members[c.instance] = c end
    local lane = x.lanes[c.lane]
    if c.state ~= "ready" and (c.lane == 0 or lane and not lane.collection.deleted) then
      aside[#aside + 1] = c
      c.broken = h.broken and files_of(h, c)
      if h.healed or not c.broken and not (failed[c.lane] and tostring(c.reason):find("failed", 1, true)) then
        unasked[#unasked + 1] = c
      end
    end
    if lane and not lane.collection.deleted then
      by_lane[c.lane] = by_lane[c.lane] or {}
      by_lane[c.lane][c.instance] = c
      owned[c.instance .. "/" .. c.physical] = c
    end
  end
  for instance, held in pairs(h.servers) do
    local member = members[instance]
    if not member then complain(v, "diverged", "%s has no part in the catalogue", instance) end
    for physical, collection in pairs(held) do
      if not owned[instance .. "/" .. physical] and not (member and member.state ~= "ready") then
        complain(v, "ghost", "%s has a collection %s called %s that no copy owns", instance, physical, collection.name)
      end
    end
    for id, lane in pairs(x.lanes) do
      local c = (by_lane[id] or {})[instance]
      local holds = not (lane.collection.deleted or member and member.state ~= "ready")
      if holds and not c then
        complain(v, "diverged", "%s has no copy of %s (lane %d)", instance, lane.collection.name, id)
      elseif holds and c.state == "ready" then
        judge_copy(v, lane, c, held[c.physical])
      end
    end
  end
  for id, copies in pairs(by_lane) do
    local helds = {}
    for instance, c in pairs(copies) do
      local held = c.state == "ready" and h.servers[instance] and h.servers[instance][c.physical]
      if held and held.records then helds[#helds + 1] = { instance = instance, held = held } end
    end
    judge_hazy(v, x.lanes[id], helds)
  end
  if #unasked > (h.rebuild_most or 0) then
    for _, c in ipairs(unasked) do
      complain(v, "rebuild", "lane %d on %s is %s: %s", c.lane, c.instance, c.state, tostring(c.reason))
    end
  end
  return aside
end

function M.all(h)
  local v = {}
  table.sort(h.entries, function(a, b)
    if a.lane ~= b.lane then return a.lane < b.lane end
    return a.n < b.n
  end)
  local x = index(h)
  x.floor = floors(h)
  replay_names(h, x, v)
  replay_records(h, x)
  M.fates(h, x, v)
  M.order(h, x, v)
  M.holders(h, x, v)
  M.wire(h, x, v)
  M.rest(h, x, v)
  local aside = M.copies(h, x, v)
  M.reads(h, x, v)
  return v, aside
end

return M
