-- sync_work.lua: what a worker does: tasks, some at once, each claimed under a lease that the heartbeat renews.
--
--   copy      records by id from the source into the temporary collection of a rebuild
--   touched   the same for ids that entries of the journal have touched since: deleted there first
--   mend      both sides read by id, and what differs made as the source has it, in a collection that nobody reads
--   compare   both sides read by id; what still differs after two more looks is reported
--
-- A worker changes nothing that anybody reads. A change that ended without a definite answer ends the temporary
-- collection: the task fails for good and its job starts over. A read is simply repeated.
--
-- A task ends by error({how=, why=}): "again" (another try, counted), "back" (not its fault: it goes back), "over" (for
-- good), "lost" (another has it).
local Signal = require("lb.signal")
local Touched = require("lb.touched")
local courier = require("lb.courier")
local listing = require("lb.listing")
local Store = require("lb.sync_store")
local records = require("chromux.records")
local slice = require("chromux.slice")
local json = json

local Work = {}
Work.__index = Work

local SLOTS = 4                       -- tasks at once
-- Tasks of all workers at once, as the store takes them, by whether there are clients (sync_load.lua): each of their
-- requests may wait for one. A source takes more than one server that hangs can keep.
local MOST = {
  gone = { instance = 4, source = 6, all = 8 },
  away = { instance = 2, source = 6, all = 8 },
  here = { instance = 1, source = 6, all = 8 },
}
local READ_SECONDS, WRITE_SECONDS = 60, 120
local PLACE_KEPT = 5                  -- seconds for which a task keeps its place while a server does not answer it
local ONE_MOST = 128 * 1024 * 1024    -- bytes of an answer with one record
local TRIES, FIRST_PAUSE, LAST_PAUSE = 6, 0.1, 2
local REST_MOST = 5                   -- seconds between requests
local IDLE = 1                        -- seconds between looks for tasks when nobody tells of new ones
local LOOKS = 2                       -- more looks at what differs
local CATCH_UP = 10                   -- seconds that a copy gets to come to where the other was
local NAMED = 10                      -- ids that a report names
local REPORT_PAUSE, REPORT_PAUSE_MOST = 0.2, 2 -- seconds between tries to report what became of a task
local INCLUDE = '],"include":["embeddings","documents","metadatas","uris"]}'

-- w: {store=, settings=, id=, batch=, load= (sync_load.lua), lease= seconds, able() -> names of instances that can be
-- used, fault(name)}
function Work.new(w)
  return setmetatable({ store = w.store, settings = w.settings, id = w.id, batch = w.batch, load = w.load,
    lease = w.lease, able = w.able, fault = w.fault, own = {}, claims = 0, changing = 0,
    active = 0, in_flight = {}, latency = {}, sizes = {}, reading = {}, reading_at = 0,
    wake = Signal.new(), kicks = 0, done = 0, failures = 0, records = 0 }, Work)
end

local function stop(how, why) error({ how = how, why = why }, 0) end

-- For good, and for its job too.
local function hopeless(form, ...) stop("over", string.format(form, ...) .. ", " .. Store.HOPELESS) end

local function encode(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

-- Begins fn(...) now; what is returned gives its results, or its error, when they are there.
local function ahead(fn, ...)
  local args, n = { ... }, select("#", ...)
  local task = spawn(function() return pcall(fn, unpack(args, 1, n)) end)
  return function()
    local _, fine, a, b = task:wait()
    if not fine then error(a, 0) end
    return a, b
  end
end

-- ---- requests --------------------------------------------------------------------------------------------

local function check(self, task)
  if task.lost then stop("lost", "it is another's now, or its job has ended") end
  if self.stopping then stop("back", "the worker stops") end
end

-- What policies/sync.lua says where it does not answer: what serves reads gets a break between requests.
local function default_pace(load)
  return load.reads and load.requests ~= 0 and math.min(load.latency / 2, 0.25) or 0
end

local function pace(self, instance, role)
  if now() - self.reading_at > 5 then
    self.reading, self.reading_at = self.store:reading() or self.reading, now()
  end
  local clients = self.load:figures()
  local load = { instance = instance, role = role, in_flight = self.in_flight[instance] or 0,
    latency = self.latency[instance] or 0, reads = self.reading[instance] == true, requests = clients.requests,
    waits = clients.waits, usual = clients.usual, told = clients.told, jobs = self.active }
  local there, policy = pcall(require, "chromux.policy")
  local wait = there and policy.call("sync.pace", load)
  if type(wait) ~= "number" or wait ~= wait or wait < 0 then wait = default_pace(load) end
  if wait > 0 then sleep(math.min(wait, REST_MOST)) end
end

local slot

local function usable(self, instance)
  for _, name in ipairs(self.able()) do
    if name == instance then return true end
  end
  return false
end

-- Looked at each second while a request is not answered: is it not to be waited for any more? A task that waits longer
-- gives its place to another one: a server that hangs holds up what is for others no longer than that. What was read
-- ahead for a task that is over has no place to give, and nobody waits for it.
local function given_up(self, task, instance, changes, began)
  if task.over then return not changes end
  if not task.waits and now() - began > PLACE_KEPT then
    task.waits, self.active = true, self.active + 1
    spawn(slot, self)
  end
  return not changes and (self.stopping or not usable(self, instance))
end

local function send(self, task, side, verb, body, most)
  local source = side == "source"
  local instance = source and task.source or task.instance
  local changes = verb ~= "get"
  pace(self, instance, side)
  check(self, task)
  self.in_flight[instance] = (self.in_flight[instance] or 0) + 1
  if changes then self.changing = self.changing + 1 end
  local began = now()
  local answer, kind, text = courier.request { node = instance, method = "POST", fenced = changes,
    target = "/api/v2/tenants/" .. encode(task.tenant) .. "/databases/" .. encode(task.database) .. "/collections/"
      .. (source and task.source_physical or task.temp) .. "/" .. verb,
    type = "application/json", body = body, max = most, timeout = changes and WRITE_SECONDS or READ_SECONDS,
    unless = function() return given_up(self, task, instance, changes, began) end }
  self.in_flight[instance] = self.in_flight[instance] - 1
  if changes then self.changing = self.changing - 1 end
  self.latency[instance] = now() - began
  return answer, kind, text
end

-- What an answer was, in a line.
local function said(task, side, verb, answer)
  return string.format("%s answered %d to %s: %s", side == "source" and task.source or task.instance, answer.status,
    verb, answer.body:sub(1, 300))
end

-- How long (s) the server asks us to wait; 0: it does not say, or names a date.
local function wished(answer)
  return answer and tonumber(("\n" .. answer.head):lower():match("\nretry%-after:[ \t]*(%d+)[ \t]*\r?\n")) or 0
end

-- A request for `count` records (nil: their number is of no interest), repeated as far as that may be: the answer, of
-- status 200 or 201 | nil, "too big"
local function ask(self, task, side, verb, body, count)
  local pause, why = FIRST_PAUSE, ""
  for _ = 1, TRIES do
    local answer, kind, text = send(self, task, side, verb, body, count == 1 and ONE_MOST or self.batch:answer_most())
    local latency = self.latency[side == "source" and task.source or task.instance]
    local status = answer and answer.status
    local refused = (status == 413 or status == 429 or status == 503) and tostring(status) or nil
    if count then
      self.batch:note { records = count, bytes = math.max(#body, answer and #answer.body or 0), latency = latency,
        requests = self.load:figures().requests, refused = refused, error = status ~= 200 and status ~= 201 }
    end
    if status == 200 or status == 201 then return answer end
    if status == 413 or (kind == "garbage" and verb == "get" and text:find("larger than", 1, true)) then
      return nil, "too big"
    end
    if status == 404 then stop("over", said(task, side, verb, answer)) end
    if answer then
      why = said(task, side, verb, answer)
    else
      why = (side == "source" and task.source or task.instance) .. ": " .. tostring(text or kind)
    end
    if kind == "late" and verb == "get" then
      local instance = side == "source" and task.source or task.instance
      stop(usable(self, instance) and not self.stopping and "again" or "back", instance .. " does not answer")
    end
    local unharmed = verb == "get" or refused or kind == "not_sent" or kind == "fenced"
    if not unharmed or (status and status < 500 and not refused) then stop("over", why) end
    if verb == "get" and status == 500 then stop("again", why) end
    sleep(math.max(pause, math.min(wished(answer), REST_MOST)))
    pause = math.min(pause * 2, LAST_PAUSE)
  end
  stop("again", why)
end

-- What holds of the ids raws[from] and on (JSON texts), as many as fit in a request and at most `most`. body, count
local function get(self, task, side, raws, from, most)
  while true do
    local left = #raws - from + 1
    local n = math.min(self.batch:ids(self.sizes[task.job]), most, left)
    n = math.ceil(left / math.ceil(left / n)) -- no small one at the end
    local answer = ask(self, task, side, "get",
      '{"ids":[' .. table.concat(raws, ",", from, from + n - 1) .. INCLUDE, n)
    if answer then
      -- Ids that are gone made this one smaller than the next may be.
      self.sizes[task.job] = math.max(#answer.body / n, (self.sizes[task.job] or 0) / 2)
      task.requests = task.requests + 1
      return answer.body, n
    end
    if n == 1 then hopeless("the record %s is larger than a request may be", raws[from]) end
    most = math.floor(n / 2)
  end
end

local function delete(self, task, ids)
  if #ids > 0 and not ask(self, task, "target", "delete", slice.ids_body(ids)) then
    stop("over", "a delete of " .. #ids .. " ids is too big for " .. task.instance)
  end
end

-- Adds what an answer to get holds. options as for records.add_body. How many | nil: too big for one request
local function add(self, task, text, options)
  options.base64 = true
  local body, count, nulls = records.add_body(text, options)
  if not body then stop("over", task.source .. ": " .. tostring(count)) end
  if #nulls > 0 then
    hopeless("%d records have vectors that hold what is no number (NaN), which cannot be copied: %s", #nulls,
      table.concat(nulls, ", ", 1, math.min(#nulls, NAMED)))
  end
  if count == 0 then return 0 end
  if not ask(self, task, "target", "add", body, count) then
    if count == 1 then hopeless("a record of %d bytes is too big for %s", #body, task.instance) end
    return nil
  end
  return count
end

-- ---- copy, touched ---------------------------------------------------------------------------------------

-- Copies these; while one part is written the next one is read.
local function copy_all(self, task, raws)
  local from, total, most, reading = 1, 0, #raws, nil
  while from <= #raws do
    local text, n = (reading or ahead(get, self, task, "source", raws, from, most))()
    reading = from + n <= #raws and ahead(get, self, task, "source", raws, from + n, #raws) or nil
    self.fault("sync.read")
    local count = add(self, task, text, {})
    self.fault("sync.added")
    if count then
      total, from, most = total + count, from + n, #raws
    else -- again in smaller parts
      if reading then pcall(reading) end
      reading, most = nil, math.floor(n / 2)
    end
  end
  return total
end

local function copy(self, task)
  return copy_all(self, task, slice.elements(task.ids) or stop("over", "its ids cannot be read"))
end

-- The ids that an entry touches; those of a delete by filter as they were resolved. Of a body that Chroma cannot have
-- taken, none.
local function ids_of(e)
  local list = e.resolved
  if not list then
    local m = slice.members(e.body)
    if not m then return Touched.ids_of(e) or {} end -- Chroma passes over members that it does not know, even twice
    list = m.ids
  end
  local out = {}
  for i, raw in ipairs(list and list ~= "null" and slice.elements(list) or {}) do out[i] = slice.string(raw) end
  return out
end

local function touched(self, task)
  local at, total = task.first, 0
  while at < task.last do
    local rows, why = self.store:entries(task.lane, at, task.last)
    if not rows then stop("back", why) end
    if #rows == 0 then stop("over", "entries behind " .. at .. " are not there any more") end
    local seen, ids, raws = {}, {}, {}
    for _, e in ipairs(rows) do
      for _, id in ipairs(ids_of(e)) do
        if not seen[id] then
          seen[id] = true
          ids[#ids + 1], raws[#raws + 1] = id, slice.quote(id)
        end
      end
      at = e.n
    end
    for from = 1, #ids, 1000 do
      delete(self, task, { unpack(ids, from, math.min(from + 999, #ids)) })
    end
    self.fault("sync.deleted_not_added")
    total = total + copy_all(self, task, raws)
  end
  return total
end

-- ---- compare, mend ---------------------------------------------------------------------------------------

-- The same records of both sides, from `from` on: text of the source, text of the other, how many ids
local function both(self, task, raws, from)
  local most = #raws
  while true do
    local other = ahead(get, self, task, "target", raws, from, most)
    local text, n = get(self, task, "source", raws, from, most)
    local mine, m = other()
    if n == m then return text, mine, n end
    most = math.min(n, m)
  end
end

local function compared(task, text, mine)
  local r, why = records.compare(text, mine, { cosine = task.cosine })
  if not r then stop("again", "what was read cannot be compared: " .. tostring(why)) end
  return r
end

local function append(list, more)
  for _, v in ipairs(more) do list[#list + 1] = v end
end

-- Ids that differ, from a look at all of these; those with NaN are put into `nan`.
local function look(self, task, raws, nan)
  local suspects, from = {}, 1
  while from <= #raws do
    local text, mine, n = both(self, task, raws, from)
    local r = compared(task, text, mine)
    append(suspects, r.changed)
    append(suspects, r.only_a)
    append(suspects, r.only_b)
    append(nan, r.nan)
    from = from + n
  end
  return suspects
end

local function position(self, task, instance)
  local rows, why = self.store:copies(task.lane)
  if not rows then stop("back", why) end
  for _, c in ipairs(rows) do
    if c.instance == instance and c.state == "ready" then return c.position end
  end
  stop("over", "the copy on " .. instance .. " is not whole any more")
end

-- Until both have applied what one of them had when this began.
local function catch_up(self, task)
  local goal = math.max(position(self, task, task.source), position(self, task, task.instance))
  local till = now() + CATCH_UP
  while now() < till and (position(self, task, task.source) < goal or position(self, task, task.instance) < goal) do
    check(self, task)
    sleep(0.1)
  end
end

local function compare(self, task)
  local raws, nan = slice.elements(task.ids), {}
  local total = #raws
  local suspects = look(self, task, raws, nan)
  for _ = 1, task.adopts and 0 or LOOKS do -- what is to be adopted stands still
    if #suspects == 0 then break end
    catch_up(self, task)
    raws = {}
    for i, id in ipairs(suspects) do raws[i] = slice.quote(id) end
    suspects = look(self, task, raws, {})
  end
  local found
  if #suspects > 0 or #nan > 0 then
    found = json.encode { ids = #suspects > 0 and suspects or nil, nan = #nan > 0 and #nan or nil,
      nan_ids = #nan > 0 and { unpack(nan, 1, NAMED) } or nil }
  end
  return total, found
end

local function mend(self, task)
  local raws, from, mended = slice.elements(task.ids), 1, 0
  local total = #raws
  while from <= total do
    local text, mine, n = both(self, task, raws, from)
    local r = compared(task, text, mine)
    local old, only = {}, {}
    append(old, r.changed)
    append(old, r.only_b)
    local texts = {}
    for i, id in ipairs(old) do texts[i] = slice.quote(id) .. (i <= #r.changed and " was changed" or " was extra") end
    listing.warn("record_mended", task.name .. " on " .. task.instance, texts)
    delete(self, task, old)
    for _, list in ipairs { r.changed, r.only_a } do
      for _, id in ipairs(list) do only[id] = true end
    end
    if next(only) and not add(self, task, text, { only = only }) then
      stop("over", "what is to be mended is too big for one request")
    end
    mended = mended + #r.changed + #r.only_a + #r.only_b
    from = from + n
  end
  return total, mended > 0 and json.encode { mended = mended } or nil
end

-- ---- the slots -------------------------------------------------------------------------------------------

local KINDS = { copy = copy, touched = touched, compare = compare, mend = mend }

-- One of the store's reports on the task, until it is known to have been made, or to be another's to make: a task whose
-- end nobody hears of would never be anybody's again, and one that ended a temporary collection must not be repeated.
local function report(self, task, name, ...)
  local pause = REPORT_PAUSE
  while true do
    local done, why = self.store[name](self.store, task, ...)
    if done ~= nil or task.lost then return done end
    log.warn("sync_report_failed", string.format("task %d (%s): %s", task.id, name, tostring(why)))
    sleep(pause)
    pause = math.min(pause * 2, REPORT_PAUSE_MOST)
  end
end

local function finish(self, task, fine, count, found)
  if fine then
    self.fault("sync.done_not_reported")
    local mine = report(self, task, "completed", { records = count, requests = task.requests,
      memory_mb = self.batch.peak_mb, found = found })
    self.fault("sync.reported")
    if mine then self.done, self.records = self.done + 1, self.records + count end
    return
  end
  local e = type(count) == "table" and count.how and count or { how = "again", why = tostring(count) }
  log[e.how == "back" and "info" or "warn"]("sync_task_failed", string.format("task %d (%s of %s on %s): %s", task.id,
    task.kind, task.name, task.instance, tostring(e.why)))
  if e.how == "lost" then return end
  if e.how == "back" then return report(self, task, "give_back", self.stopping and 0 or 1) end
  self.failures = self.failures + 1
  report(self, task, "failed", tostring(e.why), e.how == "over")
end

local function run(self, task)
  task.since, task.requests = now(), 0
  if self.own[task.id] then self.own[task.id].lost = true end -- an earlier claim's
  self.own[task.id] = task
  if self.done % 1000 == 999 then self.sizes = {} end
  self.batch:look()
  self.fault("sync.claimed")
  finish(self, task, pcall(KINDS[task.kind], self, task))
  task.over = true
  if self.own[task.id] == task then self.own[task.id] = nil end
end

function slot(self)
  local waited = false
  while not self.stopping and not waited do
    local seen = self.kicks -- what comes while we ask is not missed
    self.claims = self.claims + 1
    local task = self.store:claim(self.id, self.lease, self.able(), MOST[self.load:clients()])
    self.claims = self.claims - 1
    if task then
      run(self, task)
      waited = task.waits -- another one has this place
    else
      while not self.stopping and self.kicks == seen do self.wake:wait() end
    end
  end
  self.active = self.active - 1
end

-- There may be tasks.
function Work:look()
  self.kicks = self.kicks + 1
  self.wake:fire()
end

-- Begins to take tasks.
function Work:start()
  spawn(function()
    while not self.stopping do
      sleep(IDLE)
      self:look()
    end
  end)
  for _ = 1, SLOTS do
    self.active = self.active + 1
    spawn(slot, self)
  end
end

-- No more tasks; what is begun goes back at its next step. True when all have ended; asked again until then.
function Work:stop()
  self.stopping = true
  self.wake:fire()
  return self.active == 0
end

local ACTIVE = { copying = true, catching_up = true, comparing = true }

-- What a heartbeat that was begun at `at` found: tasks that it did not renew are another's now. One that it renewed and
-- that is not under way here was claimed without our hearing of it.
function Work:renewed(own, at)
  for id, task in pairs(self.own) do
    local row = own[id]
    if task.since < at and (not row or row.epoch ~= task.epoch or not ACTIVE[row.state]) then task.lost = true end
  end
  if self.claims > 0 then return end -- that one may just be being told
  for id, row in pairs(own) do
    if not self.own[id] then
      log.warn("sync_task_unknown", "task " .. id .. " was claimed and not begun: it goes back")
      spawn(self.store.give_back, self.store, { id = id, epoch = row.epoch }, 0)
    end
  end
end

-- The first of the tasks under way; nil: none.
function Work:current() return (next(self.own)) end

return Work
