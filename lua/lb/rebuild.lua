-- rebuild.lua: a copy of a collection is made anew while its clients go on (PROTOCOL.md R11): the holder's part.
--
-- begin() pins the lane where the source stands and makes an empty collection that nobody reads; workers fill it
-- (sync.lua). finish() holds the source for one request, brings over what was written last, and makes the new
-- collection the copy, in one transaction. Whatever comes in between (another holder, a new life of either server, a
-- catalogue operation on the collection) ends the rebuild: what was made is thrown away (leftovers.lua), and it starts
-- over. What stood on an instance before it joined is not thrown away when a new collection takes its place: it gets
-- another name, and is shown (aside.lua).
--
-- The collection `unverified` on the instance may take the place of the new one ("adopt"): nobody reads it either.
--
--   Rebuilds.new(context, names, rows, settle)   rows of journal_rebuilds that have not ended; settle: for how long
--                                                what the holder before has sent may still be executed
--   begin{lane=, instance=, source=, adopt=, until_=} -> answer | nil, why
--   finish{lane=, instance=, rebuild=, upto=, settle=, until_=} -> answer | nil, why
--   abandon{rebuild=} -> answer | nil, why            answers as in sync_calls.lua
--   disturbed(lane_id)                                a catalogue operation on it begins
local Hold = require("lb.hold")
local Touched = require("lb.touched")
local Lane = require("lb.lanes")
local Leftovers = require("lb.leftovers")
local deeds = require("lb.deeds")
local exact = require("lb.exact")
local sound = require("lb.sound")
local records = require("chromux.records")
local slice = require("chromux.slice")
local words = require("lb.words")

local Rebuilds = {}
Rebuilds.__index = Rebuilds

local MOST_IDS, MOST_BYTES = 100, 2 * 1024 * 1024 -- that are brought over while the source is held
local HOLD_MOST = 0.2      -- seconds
local PATIENCE = 2         -- seconds for a driver to come to a stop, or for a source to be ready
local FIRST_PAUSE, LAST_PAUSE = 0.01, 0.5
local TRIES = 12           -- to take the hold, before the caller copies what has come meanwhile
local ANSWER_MOST = 64 * 1024 * 1024
local NAMED = 10           -- ids that a message names
local SLOW_TOLD = 10       -- holds that were not long enough
local KEPT = "30 days"     -- for which is known how a rebuild has ended, and which names were used for it

-- ---- statements ------------------------------------------------------------------------------------------

local INTERRUPTED = "another balancer took the lease"

local SQL = {}

function SQL.begin(r, copy)
  return { [[INSERT INTO journal_rebuilds (token, lane, instance, source, adopt, tenant, database, temp, temp_name, p0,
        state, keep) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
      ON CONFLICT (token) DO UPDATE SET token = EXCLUDED.token RETURNING id]],
    r.token, r.lane.id, r.instance, r.source, r.adopt, r.lane.tenant, r.lane.database, r.adopt and copy.physical or "",
    r.temp_name, r.p0, r.adopt and "copying" or "making", r.keep }
end

function SQL.made(r)
  return { [[UPDATE journal_rebuilds SET state = 'copying', temp = $2, changed_at = now()
      WHERE id = $1 AND state = 'making']], r.id, r.temp }
end

function SQL.thrown(r, why)
  return { [[UPDATE journal_rebuilds SET state = CASE WHEN adopt THEN 'dropped' ELSE 'dropping' END, why = $2,
      changed_at = now() WHERE id = $1 AND state IN ('making', 'copying')]], r.id, why }
end

function SQL.interrupted(upto)
  return { [[UPDATE journal_rebuilds SET state = CASE WHEN adopt THEN 'dropped' ELSE 'dropping' END,
      why = $2, changed_at = now() WHERE state IN ('making', 'copying') AND id <= $1]], upto, INTERRUPTED }
end

-- Who makes a task of sync for it holds its row too (sync_store.lua): the swap sees all of them.
function SQL.lock(r) return { "SELECT id FROM journal_rebuilds WHERE id = $1 FOR UPDATE", r.id } end

-- All or nothing; a second time it changes nothing, and neither does it while something may still be written to the new
-- collection: one who only believes that it coordinates may ask for it.
function SQL.swap(r, position, hold_ms, reason)
  return { [[WITH r AS (UPDATE journal_rebuilds b SET state = CASE WHEN adopt THEN 'done' ELSE 'swapped' END,
        position = $3, hold_ms = $4, old = $5, changed_at = now()
        WHERE id = $1 AND state = 'copying' AND EXISTS (SELECT 1 FROM journal_lanes l WHERE l.lane = b.lane AND open)
        AND EXISTS (SELECT 1 FROM journal_copies c WHERE c.lane = b.lane AND c.instance = b.instance
          AND c.incarnation = $2)
        AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.rebuild = b.id AND (j.settle_until > now()
          OR EXISTS (SELECT 1 FROM sync_tasks t WHERE t.job = j.id AND t.task_status IN ('pending', 'processing'))))
        RETURNING lane, instance, temp)
      UPDATE journal_copies c SET physical = r.temp, incarnation = c.incarnation + 1, position = $3, state = 'ready',
        reason = $6, doubt = 0, changed_at = now() FROM r WHERE c.lane = r.lane AND c.instance = r.instance]],
    r.id, r.target.incarnation, position, hold_ms, r.target.physical, reason, lane = r.lane.id }
end

local LOOK = "SELECT state, position, hold_ms, why FROM journal_rebuilds WHERE id = $1"

function SQL.look(r) return { LOOK, r.id } end

-- ---- what there is ---------------------------------------------------------------------------------------

function Rebuilds.new(context, names, rows, settle)
  local self = setmetatable({ context = context, names = names, by_id = {}, by_copy = {}, serial = 0, active = 0,
    leftovers = Leftovers.new(context, names), finished = 0, thrown = 0, held_most = 0 }, Rebuilds)
  for _, row in ipairs(rows or {}) do
    if row.state == "making" or row.state == "copying" then
      local making = row.state == "making"
      self.interrupted, row.state = row.id, "dropping"
      if not row.adopt then self.leftovers:add(row, making and settle or nil) end
    else
      self.leftovers:add(row)
    end
  end
  return self
end

local function copy_key(lane_id, instance) return lane_id .. "/" .. instance end

local function base_of(self, lane) return self.names:path(lane.tenant, lane.database, "/collections") end

-- Nothing of it counts any more. Its row says so first; what it has made is deleted after that. One that is busy sees
-- it.
local function throw(self, r, why)
  r.gone = r.gone or why
  if r.over or r.busy then return end
  r.over = true
  self.by_copy[copy_key(r.lane.id, r.instance)] = nil
  if r.id then self.by_id[r.id] = nil end
  r.lane.pins[r.token] = nil
  if not r.id or self.context.dead then return end
  self.thrown = self.thrown + 1
  log.info("rebuild_given_up", r.lane.logical .. " on " .. r.instance .. ": " .. r.gone)
  spawn(function()
    local rows = self.context.store:commit { SQL.thrown(r, r.gone) }
    if not rows or r.adopt then return end
    self.leftovers:add({ id = r.id, lane = r.lane.id, instance = r.instance, tenant = r.lane.tenant,
      database = r.lane.database, temp = r.temp or "", temp_name = r.temp_name, old = "", state = "dropping" },
      r.settle)
  end)
end

-- fn(self, r, ...), during which nobody else ends r.
local function busily(self, r, fn, ...)
  r.busy = true
  local ok, answer, why = xpcall(fn, debug.traceback, self, r, ...)
  r.busy = nil
  if ok then return answer, why end
  log.error("rebuild_step_failed", answer)
  return nil, "an error of chromux; see its log"
end

local function living(server, life) return server.incarnation == life and server.admitted == life end

-- Why it can't go on; nil: it can.
local function ended(self, r)
  if r.gone then return r.gone end
  if self.context.dead or not self.context.drives then return INTERRUPTED end
  if not r.lane.open then return "the collection is gone" end
  if r.lane.copies[r.instance] ~= r.target then return "the copy was replaced" end
  if not living(r.server, r.life) then return r.instance .. " began a new life" end
  if r.lane.copies[r.source] ~= r.from or r.from.state ~= "ready" then
    return "the copy on " .. r.source .. " is not good any more"
  end
  if not living(r.from.server, r.from_life) then return r.source .. " began a new life" end
end

-- A catalogue operation on the collection begins: what was made of it may not be what it will be.
function Rebuilds:disturbed(lane_id)
  for _, r in pairs(self.by_copy) do
    if r.lane.id == lane_id and not r.swapping then throw(self, r, "a catalogue operation on the collection") end
  end
end

-- The journal is full: what pins it is given up.
function Rebuilds:give_up(why)
  for _, r in pairs(self.by_copy) do
    if not r.swapping then throw(self, r, why) end
  end
end

-- ---- begin -----------------------------------------------------------------------------------------------

-- The copy from which it may be made: given by name. copy | nil, why
local function source_copy(self, lane, instance, source)
  local any = false
  for _, copy in ipairs(lane.order) do
    any = any or (copy.instance ~= instance and copy.state == "ready" and not copy.server.retired)
  end
  if not any then
    self.context.events:note("no_source", instance, nil, lane.logical .. ": there is no other good copy", false)
    return nil, "no_source: there is no other good copy of " .. lane.name .. " (" .. lane.logical .. ")"
  end
  local copy = source and lane.copies[source]
  if not copy or copy.instance == instance then return nil, tostring(source) .. " has no copy to make this from" end
  if copy.state ~= "ready" then return nil, "the copy on " .. source .. " is " .. copy.state end
  if copy.server.health ~= "up" or not copy.server:usable() then return nil, source .. " can't be used now" end
  if not lane:is_sound(copy) then return nil, "the copy on " .. source .. " is not looked at yet" end
  return copy
end

-- Until the catalogue has nothing to do on this collection, there or on the source, and that can be read from.
-- the source's copy | nil, why
local function await_source(self, a, lane)
  local till = math.min(a.until_, now() + PATIENCE)
  while true do
    local from, why = source_copy(self, lane, a.instance, a.source)
    if not from and (why:find("^no_source") or now() > till) then return nil, why end
    if from then
      local busy
      busy, why = self.names:at_work_on(lane, { a.instance, a.source })
      if not busy then return from end
    end
    if not lane.open or self.context.dead then return nil, "the collection is gone" end
    if now() > till then return nil, why end
    sleep(0.05)
  end
end

local function said(kind, answer)
  return type(answer) == "table" and "answered " .. answer.status .. ": " .. answer.body:sub(1, 300)
    or kind .. (answer and ": " .. tostring(answer) or "")
end

-- Makes the empty collection. true | nil, why
local function make(self, r, description)
  local base = base_of(self, r.lane)
  local body, later = exact.bodies(description, r.temp_name)
  local kind, answer = deeds.send(self.context, r.server, "POST", base, body)
  if kind == "unknown" then r.settle = r.server:horizon_after(answer) end
  local made = kind == "applied" and slice.collection(answer.body)
  if not made then return nil, "no temporary collection can be made on " .. r.instance .. ": " .. said(kind, answer) end
  r.temp = made.id
  self.context.fault("rebuild.temp_created")
  if later then
    kind, answer = deeds.send(self.context, r.server, "PUT", base .. "/" .. r.temp, later, r.temp)
    if kind ~= "applied" then return nil, "it takes no metadata on " .. r.instance .. ": " .. said(kind, answer) end
  end
  return true
end

-- What stands on the target may be taken over when it is what the source is, but for its records. true | nil, why
local function may_adopt(self, r, description)
  local there, why = exact.read(r.server, base_of(self, r.lane), self.context.encode(r.lane.name))
  if there == nil then return nil, r.instance .. ": " .. tostring(why) end
  local equal, what = false, "is not there"
  if there and there.id == r.target.physical then
    equal, what = exact.same(description, there)
    what = "differs in its " .. tostring(what)
  end
  if equal then return true end
  r.lane:mark(r.target, "rebuild", "what stood there can't be taken over: it " .. what)
  return nil, "what stands on " .. r.instance .. " can't be taken over: it " .. what
end

local function prepare(self, r)
  local base = base_of(self, r.lane)
  local description, why = exact.read(r.from.server, base, self.context.encode(r.lane.name))
  if not description then return nil, "it can't be read on " .. r.source .. ": " .. tostring(why or "404") end
  if description.id ~= r.from.physical then return nil, r.source .. " has another collection of that name" end
  if r.adopt then
    local fine
    fine, why = may_adopt(self, r, description)
    if not fine then return nil, why end
  end
  local rows
  rows, why = self.context.store:commit { SQL.begin(r, r.target) }
  if not rows then return nil, "it can't be recorded: " .. tostring(why) end
  r.id = rows[1][1].id
  self.by_id[r.id] = r
  self.context.fault("rebuild.recorded")
  if r.adopt then
    r.temp = r.target.physical
    return true
  end
  local made
  made, why = make(self, r, description)
  if not made then return nil, why end
  rows, why = self.context.store:commit { SQL.made(r) }
  if not rows then return nil, "it can't be recorded: " .. tostring(why) end
  return true
end

-- Is what the copy has not ours? It stood on the instance when that joined, and was never found to be what others have.
-- A copy that was made anew or repaired has another incarnation than its first.
local function foreign(lane, copy)
  return lane.adopted == true and copy.state ~= "ready" and copy.p == 0 and copy.incarnation <= 1
    and copy.physical ~= ""
end

function Rebuilds:begin(a)
  local lane = self.names.by_lane[a.lane]
  if not lane then return nil, "there is no such collection (any more)" end
  local target, member = lane.copies[a.instance], self.names.copies[a.instance]
  if not target then return nil, a.instance .. " is to have no copy of it yet" end
  if not member or member.state ~= "ready" then return nil, "the catalogue of " .. a.instance .. " is lost (member)" end
  if not target.server:usable() then return nil, a.instance .. " can't be used now" end
  if a.adopt and (target.state ~= "unverified" or target.physical == "") then
    return nil, "only a copy that is unverified can be taken over; it is " .. target.state
  end
  local from, why = await_source(self, a, lane)
  if not from then return nil, why end
  target = lane.copies[a.instance]
  local before = self.by_copy[copy_key(lane.id, a.instance)]
  if before then throw(self, before, "it was begun again") end
  if before and not before.over then return nil, "another one is under way" end
  self.serial = self.serial + 1
  local token = string.format("%d-%d", self.context.store.epoch, self.serial)
  local r = { lane = lane, instance = a.instance, source = a.source, adopt = a.adopt == true, server = target.server,
    target = target, from = from, life = target.server.admitted, from_life = from.server.admitted, p0 = from.p,
    token = token, temp_name = "", most = MOST_IDS }
  r.keep = not r.adopt and foreign(lane, target)
  if not r.adopt then
    r.temp_name = "chromux-temp-" .. lane.id .. "-" .. a.instance:gsub("[^%w._-]", "_"):sub(1, 100) .. "-" .. token
  end
  self.by_copy[copy_key(lane.id, a.instance)] = r
  lane.pins[token] = r.p0
  local fine
  fine, why = busily(self, r, prepare)
  why = ended(self, r) or why
  if not fine or why then
    throw(self, r, why)
    return nil, why
  end
  log.info("rebuild_begun", lane.logical .. " on " .. r.instance .. " from " .. r.source .. " at " .. r.p0)
  return { rebuild = r.id, temp = r.temp, temp_name = r.temp_name, source_physical = from.physical, p0 = r.p0,
    tenant = lane.tenant, database = lane.database, name = lane.name }
end

-- ---- finish ----------------------------------------------------------------------------------------------

-- Until nothing that a worker has sent to the target can still be executed. false: not in time
local function settled(r, seconds, until_)
  if (seconds or 0) <= 0 then return true end
  local batch = r.server:settle_begin(seconds)
  while not batch.done do
    if now() > until_ then return false end
    sleep(0.02)
  end
  return true
end

-- An entry between there and where the old copy stands, of which only that copy knows what it has done.
local function only_there(r, position)
  if r.target.state ~= "ready" then return false end
  for n = position + 1, r.target.p do
    local e = r.lane:entry(n)
    if not e or e.verdict == "failed" or e.verdict == "skipped" then return true end
  end
  return false
end

-- So many records could not be read while the source was held: they are copied without a hold, and fewer are left to
-- the next one.
local function too_slow(self, r, count)
  r.most, r.slow = math.max(1, math.floor(count / 2)), (r.slow or 0) + 1
  if r.slow ~= SLOW_TOLD then return end
  local text = string.format("%s: %d times what clients had written last could not be read on %s within %d ms",
    r.lane.logical, r.slow, r.source, HOLD_MOST * 1000)
  log.warn("rebuild_slow", text)
  self.context.events:note("rebuild_slow", r.instance, nil, text, false)
end

-- The records that entries behind `upto` may have changed, as they are on the source where it stands.
-- {position=, ids=, answer=, hold_ms=} | nil, count, position: too many, or not now | nil, nil, why: it has ended
local function last_records(self, r, upto, until_)
  local lane, from, pause = r.lane, r.from, FIRST_PAUSE
  local touched = Touched.new(lane, upto)
  for _ = 1, TRIES do
    local why = ended(self, r) or touched.unreadable
    if why then return nil, nil, why end
    local fits = touched:extend(from.p, r.most, MOST_BYTES)
    if fits == false then return nil, math.max(#touched.list, from.p - touched.to), from.p end
    local hold = fits and Hold.take(lane, from, PATIENCE, HOLD_MOST)
    if hold then
      local position, a, asked = hold.position, nil, false
      self.context.fault("rebuild.hold_taken")
      fits = touched:extend(position, r.most, MOST_BYTES)
      if fits and #touched.list > 0 and not only_there(r, position) then
        asked = true
        a = from.server:ask("POST", base_of(self, lane) .. "/" .. from.physical .. "/get", exact.get_body(touched.list),
          HOLD_MOST, false, r.from_life)
      elseif fits and not only_there(r, position) then
        a = { status = 200 }
      end
      local ms = hold:release()
      if fits == false then return nil, #touched.list, from.p end
      if ms and a and a.status == 200 then
        self.held_most = math.max(self.held_most, ms)
        return { position = position, ids = touched.list, answer = a.body, hold_ms = ms }
      end
      if asked and not (ms and a) and #touched.list > 1 then
        too_slow(self, r, #touched.list)
        return nil, #touched.list, from.p
      end
    end
    if now() > until_ then break end
    sleep(pause)
    pause = math.min(pause * 2, LAST_PAUSE)
  end
  return nil, #touched.list, from.p
end

-- Sends it until it is done; a definite "not now" only costs time. what: it is, for messages. true | nil, why
local function insist(self, r, rest, body, until_, what)
  local pause = FIRST_PAUSE
  while true do
    local why = ended(self, r)
    if why then return nil, why end
    local kind, answer = deeds.send(self.context, r.server, "POST", base_of(self, r.lane) .. "/" .. r.temp .. rest,
      body, r.temp, nil, ANSWER_MOST)
    if kind == "applied" then return true end
    if (kind ~= "later" and kind ~= "not_sent") or now() > until_ then
      -- What stands there will be written to again.
      if kind == "unknown" and r.adopt then r.server:settle(r.server:horizon_after(answer)) end
      return nil, r.instance .. " did not take " .. what .. ": " .. said(kind, answer)
    end
    sleep(pause)
    pause = math.min(pause * 2, LAST_PAUSE)
  end
end

-- These records are in the new collection as they were on the source. true | nil, why
local function bring(self, r, last, until_)
  if #last.ids == 0 then return true end
  local body, count, nulls = records.add_body(last.answer, {})
  if not body then return nil, "the last records can't be read: " .. tostring(count) end
  if #nulls > 0 then
    local named = table.concat(nulls, ", ", 1, math.min(#nulls, NAMED))
    return nil, string.format("%d records have vectors that hold what is no number (NaN), which cannot be copied: "
      .. "%s, %s", #nulls, named, words.HOPELESS)
  end
  local fine, why = insist(self, r, "/delete", slice.ids_body(last.ids), until_, "the last records")
  if not fine then return nil, why end
  self.context.fault("reconcile.deleted_not_added")
  if count == 0 then return true end
  return insist(self, r, "/add", body, until_, "the last records")
end

-- Records bring their dimension along; the source may have one by records that are gone. false: not now | nil, why
local function give_dimension(self, r, until_)
  if r.adopt or r.pinned then return true end
  local base, encode = base_of(self, r.lane), self.context.encode
  local mine = exact.read(r.server, base, encode(r.temp_name))
  if not mine then return false end
  if mine.dimension then return true end
  local d = exact.read(r.from.server, base, encode(r.lane.name))
  if not d then return false end
  if d.id ~= r.from.physical then return nil, r.source .. " has another collection of that name" end
  if not d.dimension then return true end
  local add, delete = exact.pin_bodies(d, r.token)
  local fine, why = insist(self, r, "/add", add, until_, "its dimension")
  if fine then fine, why = insist(self, r, "/delete", delete, until_, "its dimension") end
  r.pinned = fine
  return fine, why
end

-- A stamp that says: what was written before it is on the server (R9). false: not in time
local function stamp(self, r, until_)
  while now() < until_ and not ended(self, r) do
    local done, fresh = r.server:stamp_after_now()
    if done and fresh then return true end
    sleep(0.05)
  end
  return false
end

-- In the turn in which the commit is known: the copy is the new collection.
local function swapped(self, r, last, reason)
  local lane, target = r.lane, r.target
  r.over = true
  self.by_id[r.id], self.by_copy[copy_key(lane.id, r.instance)], lane.pins[r.token] = nil, nil, nil
  self.finished = self.finished + 1
  local c = { instance = r.instance, server = r.server, physical = r.temp, incarnation = target.incarnation + 1,
    position = last.position, state = "ready", reason = reason }
  sound.found({ server = r.server, physical = r.temp }, r.life)
  if lane.open then self.names:copy_swap(lane, target, c) end
  if r.adopt then return end
  return self.leftovers:add { id = r.id, lane = lane.id, instance = r.instance, tenant = lane.tenant,
    database = lane.database, temp = r.temp, temp_name = r.temp_name, old = target.physical, keep = r.keep,
    state = "swapped" }
end

-- What stays to be known of why it was made anew: a server that refuses what others take is not made anew for ever.
local function remembered(target) return target.reason:find(Lane.REFUSES, 1, true) == 1 and target.reason or "" end

-- true, leftover | false, why; nil: not while tasks for it are open
local function commit(self, r, last)
  local reason, state, item = remembered(r.target), nil, nil
  local done = false
  r.swapping = true
  local rows, why = self.context.store:commit({ SQL.lock(r), SQL.swap(r, last.position, last.hold_ms, reason),
    SQL.look(r) }, nil, function(rows)
    state = rows[3][1] and rows[3][1].state
    done = state == "swapped" or state == "done"
    if done then item = swapped(self, r, last, reason) end
  end)
  r.swapping = nil
  if done then return true, item end
  return false, rows and state ~= "copying" and "it was given up" or why
end

local function finish(self, r, a)
  -- What a lost worker has sent may have brought back any record that was changed since the beginning.
  local from = (a.settle or 0) > 0 and r.p0 or a.upto
  if not settled(r, a.settle, a.until_) then return { more = 0, position = r.from.p, from = a.upto } end
  -- There it may have deleted any record, after another worker had made it equal.
  if r.adopt and from == r.p0 and (a.settle or 0) > 0 then return nil, "a worker was lost while it changed records" end
  local last, more, at_or_why = last_records(self, r, from, a.until_)
  if not last and not more then return nil, at_or_why end
  if not last then return { more = more, position = at_or_why, from = from } end
  local fine, why = bring(self, r, last, a.until_)
  if not fine then return nil, why end
  self.context.fault("rebuild.copied_not_swapped")
  fine, why = give_dimension(self, r, a.until_)
  if fine == nil then return nil, why end
  if not fine or not stamp(self, r, a.until_) then
    why = ended(self, r)
    if why then return nil, why end
    return { more = 0, position = last.position, from = from }
  end
  local member = self.names.copies[r.instance]
  local hold = Hold.take(self.names, member, PATIENCE)
  if not hold then return { more = 0, position = last.position, from = from } end
  why = ended(self, r)
  local done, item
  if not why then done, item = commit(self, r, last) end
  if done and item then
    spawn(function() self.leftovers:work(item) end)
  else
    hold:release()
  end
  if not done then
    why = why or item or ended(self, r)
    if why then return nil, why end
    return { more = 0, position = last.position, from = from }
  end
  log.info("rebuilt", string.format("%s on %s from %s at %d, held %.1f ms", r.lane.logical, r.instance, r.source,
    last.position, last.hold_ms))
  self.context.events:note("copy_rebuilt", r.instance, nil, r.lane.logical .. " from " .. r.source)
  return { done = true, position = last.position, hold_ms = last.hold_ms }
end

-- How one that is not under way has ended.
local function look_back(self, id)
  local rows, why = self.context.store.reader:query(LOOK, id)
  if not rows then return nil, why end
  local row = rows[1]
  if row and row.position then return { done = true, position = row.position, hold_ms = row.hold_ms } end
  if not row then return { gone = "there is no such rebuild" } end
  return { gone = row.why ~= "" and row.why or INTERRUPTED }
end

function Rebuilds:finish(a)
  local r = self.by_id[a.rebuild]
  if not r then return look_back(self, a.rebuild) end
  local answer, why = busily(self, r, finish, a)
  if answer and (answer.done or not r.gone) then return answer end
  if self.context.dead then return nil, why end
  throw(self, r, r.gone or why)
  return { gone = tostring(r.gone) }
end

function Rebuilds:abandon(a)
  local r = self.by_id[a.rebuild]
  if r and r.swapping then return nil, "it is being finished" end
  if r then throw(self, r, "it was abandoned") end
  return { ok = true }
end

-- ---- for as long as this holder lives --------------------------------------------------------------------

-- Ended by something that nobody tells: what it pins and has made goes without being asked for.
local function look(self)
  for _, r in pairs(self.by_id) do
    local why = ended(self, r)
    if why then throw(self, r, why) end
  end
end

-- Those of which no job of sync knows any more: who asked was gone before the answer came.
local ORPHANS = [[SELECT id FROM journal_rebuilds WHERE state = 'copying' AND created_at < now() - interval '5 minutes'
  AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.rebuild = journal_rebuilds.id
    AND j.state NOT IN ('done', 'failed', 'cancelled'))]]

local function tidy(self)
  for _, row in ipairs(self.context.store.reader:query(ORPHANS) or {}) do
    local r = self.by_id[row.id]
    if r then throw(self, r, "no job of sync knows of it") end
  end
  self.context.store:commit { { "DELETE FROM journal_rebuilds WHERE state IN ('done', 'dropped') "
    .. "AND changed_at < now() - interval '" .. KEPT .. "'" } }
end

function Rebuilds:run()
  if self.interrupted then self.context.store:enqueue({ SQL.interrupted(self.interrupted) }, nil, function() end) end
  spawn(function() self.leftovers:run() end)
  local tidied = now()
  while not self.context.dead do
    if self.context.drives then look(self) end
    if self.context.drives and now() > tidied + 60 then
      tidied = now()
      tidy(self)
    end
    sleep(0.25)
  end
end

-- Nothing of it is on its way to a server.
function Rebuilds:idle() return self.active == 0 and self.leftovers.active == 0 end

-- Is a collection of that name or id recorded as one that chromux has made on the instance, or was to delete there?
-- true | false | nil, why
local OURS = [[SELECT id FROM journal_rebuilds WHERE instance = $1 AND state NOT IN ('making', 'copying')
    AND (temp_name = $2 OR 'chromux-tomb-rebuild-' || id = $2 OR (temp = $3 AND NOT adopt) OR (old = $3 AND NOT keep))
  UNION ALL SELECT c.lane FROM journal_copies c JOIN journal_lanes l ON l.lane = c.lane
    WHERE c.instance = $1 AND c.physical = $3 AND NOT l.open LIMIT 1]]

function Rebuilds:ours(instance, name, id)
  local rows, why = self.context.store.reader:query(OURS, instance, name, id)
  if not rows then return nil, why end
  return rows[1] ~= nil
end

-- A collection with a name of ours that nobody needs, {instance=, tenant=, database=, name=, id=}: an old backup may
-- have brought it back. It goes when it is recorded that it is ours, which it was before it was made; if not now, it
-- will be found again. Is it ours, as far as is known now?
function Rebuilds:sweep(c)
  local server = self.context.servers.by_name[c.instance]
  if not server or self:knows(c.instance, c.name) then return true end
  local ours = self:ours(c.instance, c.name, c.id)
  if ours then
    log.warn("collection_left_over", c.name .. " on " .. c.instance .. " is deleted")
    deeds.send(self.context, server, "DELETE", self.names:path(c.tenant, c.database, "/collections/" .. c.name))
  end
  return ours ~= false
end

-- Is this temporary collection needed, or known to be left over?
function Rebuilds:knows(instance, name)
  for _, r in pairs(self.by_copy) do
    if r.instance == instance and r.temp_name == name then return true end
  end
  return self.leftovers:knows(instance, name)
end

return Rebuilds
