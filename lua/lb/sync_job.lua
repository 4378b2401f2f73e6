-- sync_job.lua: one job from its beginning to its end: what the coordinator asks of the holder of the journal, and
-- which tasks it makes. Every step is in the job's row before the next one begins: another coordinator goes on there.
--
--   Job.run(context, row)    returns when the job is over, waits for a later time, or is not ours any more
--
-- context: the coordinator (sync_coordinate.lua): store, settings, able(instance), nodes(), life(instance),
-- await(job) -> progress when none of its tasks is open, or when it is not to be waited for; nil: the lease is lost.
-- room(bytes, fn): as in sync_read.lua. failed_from: {[copy's key] = the source from which it could not be made last}.
-- fault(name): a named step of a test build
--
-- rebuild, adopt:  begin, copy the ids of a snapshot, catch up with what was touched since, finish. What is thrown away
--                  starts over, some times.
-- verify:          both id lists, compare in chunks, confirm what differs under a hold.
local Ids = require("lb.sync_ids")
local Read = require("lb.sync_read")
local Stop = require("lb.sync_stop")
local Store = require("lb.sync_store")
local choose = require("lb.sync_choose")
local calls = require("lb.sync_calls")
local slice = require("chromux.slice")
local json = json

local Job = {}

local ATTEMPTS = 5             -- of a job
local LATERS = 10              -- times in a row that it cannot go on, then it starts over
local FIRST_PAUSE, LAST_PAUSE = 1, 60
local CALL_SECONDS = 60
local NEAR = 50                -- entries that are left to finish
local ROUNDS = 40              -- of catching up
local MOST_EXTRAS = 200000     -- ids that only the other side has
local TASK_BYTES = 8 * 1024 * 1024 -- of ids in one transaction
local CONFIRM = 100            -- ids at a time
local BUSY_LOOKS, BUSY_PAUSE = 8, 0.25 -- at records that are just being written
local REMADE_FROM, REMADE_SHARE = 100, 0.2 -- records that differ, from which a copy is made anew
local LOOKS, LOOK_PAUSE = 10, 0.5          -- at what the servers say of the collection itself
local MB = 1024 * 1024

local stop = Stop.stop

local function set(context, job, fields, more)
  if fields.state and fields.state ~= job.state then fields.laters = 0 end
  local done, why = context.store:job_set(job.id, job.state, fields, more)
  if done == nil then stop(why == "not ours" and "left" or "later", why) end
  if not done then stop("left", "its state was changed") end
  for name, value in pairs(fields) do
    if value == pg.null then job[name] = nil else job[name] = value end
  end
end

-- seconds: that it may take longer than usual.
local function ask(context, kind, job, arguments, seconds)
  local answer, why = calls.ask(kind, job.lane, job.instance, arguments, CALL_SECONDS + (seconds or 0),
    context.store.epoch)
  if not answer then stop(why == "not ours" and "left" or "later", kind .. ": " .. tostring(why)) end
  if answer.gone then
    stop(answer.gone:find(Store.HOPELESS, 1, true) and "failed" or "over", kind .. ": " .. answer.gone)
  end
  return answer
end

local function need(result, why)
  if result == nil then stop("later", why) end
  return result
end

-- ---- who is compared, and from whom --------------------------------------------------------------------------

-- The job's collection and its copies, as the journal has them now.
local function situation(context, job)
  local c = need(context.store:collection(job.lane))
  if not c then stop("moot", "the collection is deleted") end
  job.collection_id, job.collection_name, job.tenant, job.database = c.logical, c.name, c.tenant, c.database
  local copies, own = need(context.store:copies(job.lane)), nil
  for _, copy in ipairs(copies) do
    if copy.instance == job.instance then own = copy end
  end
  if not own then stop("moot", job.instance .. " has no copy of it") end
  return own, copies
end

-- Whole copies on instances that can be used, but for that of `but`.
local function whole(context, copies, but)
  local out, any = {}, false
  for _, copy in ipairs(copies) do
    if copy.state == "ready" and copy.instance ~= but then
      any = true
      if context.able(copy.instance) then out[#out + 1] = copy end
    end
  end
  return out, any
end

-- After a try that came to nothing another one's, if there is one.
local function choose_source(context, job, copies)
  local list, any = whole(context, copies, job.instance)
  if #list == 0 and any then stop("waits", "no instance with a whole copy of it can be used now") end
  if #list == 0 then stop("failed", "no_source: there is no whole copy of it to take it from") end
  local others, failed = {}, context.failed_from[Store.copy_key(job)]
  for _, copy in ipairs(list) do
    if copy.instance ~= failed then others[#others + 1] = copy end
  end
  return choose.authority(context.nodes(), #others > 0 and others or list)
end

-- ---- tasks -------------------------------------------------------------------------------------------------

-- Makes the tasks of a chunked job: chunks is an iterator as Ids.cut gives it. The number of ids.
local function make_tasks(context, job, kind, chunks, total, last)
  local statements, bytes = {}, 0
  local function flush(fields)
    statements[#statements + 1] = Store.TASKS_TOLD
    set(context, job, fields, statements)
    statements, bytes = {}, 0
  end
  for text, first, till in chunks do
    if bytes > 0 and bytes + #text > TASK_BYTES then flush { records = total } end
    statements[#statements + 1] = Store.task_new(job.id, { kind = kind, first = first, last = till, ids = text })
    bytes, total = bytes + #text, math.max(total, till + 1)
  end
  if last then
    flush { records = total, chunked = true, target_records = job.target_records }
  elseif #statements > 0 then
    flush { records = total }
  end
  return total
end

-- Chunks of a list of JSON texts, with offsets from `base` on.
local function chunks_of(raws, size, base)
  local at = 0
  return function()
    if at >= #raws then return nil end
    local from, to = at + 1, math.min(at + size, #raws)
    at = to
    return "[" .. table.concat(raws, ",", from, to) .. "]", base + from - 1, base + to - 1
  end
end

local function wait_for_instances(context, job)
  for _, instance in ipairs { job.source, job.instance } do
    if not context.able(instance) then stop("waits", instance .. " cannot be used now") end
  end
end

-- Lets others work while a long list is looked at.
local function breathe() sleep(0) end

-- The ids of both sides as tasks: those of the source, and those that only the other has.
local function chunk(context, job, kind)
  if job.chunked then return end
  wait_for_instances(context, job)
  Read.lists(context, job, kind ~= "copy", function(ids, other)
    set(context, job, { chunked = false }, { Store.tasks_gone(job.id) }) -- of somebody who did not come to the end
    local extras = {}
    if other then
      job.target_records = Ids.count(other, breathe)
      if other ~= ids then extras = Ids.extras(ids, other, MOST_EXTRAS, breathe) end
      if not extras then
        stop("broken", string.format("more than %d records are only on %s", MOST_EXTRAS, job.instance))
      end
    end
    local size = context.settings.SYNC_CHUNK_SIZE
    local total = make_tasks(context, job, kind, Ids.cut(ids, size), 0, #extras == 0)
    job.source_records = total
    if #extras > 0 then make_tasks(context, job, kind, chunks_of(extras, size, total), total, true) end
  end)
  context.fault("sync.chunked")
end

-- Until the job's tasks are done: progress. A rebuild whose servers are not the ones they were is not waited for, and
-- no job waits here for an instance that cannot be used.
local function await(context, job)
  local p = context.await(job)
  if not p then stop("left", "the lease is lost") end
  if p.state ~= job.state then stop("left", "it is " .. p.state) end
  if p.again then stop("over", p.again) end
  if p.failed > 0 then
    local why = tostring(p.error)
    stop(why:find(Store.HOPELESS, 1, true) and "failed" or "over", why)
  end
  if p.away then
    stop(job.kind == "verify" and "over" or "waits", p.away .. " cannot be used now, and what is left is work for it")
  end
  return p
end

-- ---- rebuild, adopt ------------------------------------------------------------------------------------------

-- For how long (s) what a worker that was lost sent may yet be executed; 0: none was lost. And how many were lost.
local function to_settle(context, job)
  local is = need(context.store:job(job.id))
  if not is or is.state ~= job.state then stop("left", "its state was changed") end
  return is.settle, is.losses
end

-- MB that other jobs have yet to write there.
local function promised(context, job)
  local sum = 0
  for _, other in pairs(context.running) do
    if other ~= job and other.instance == job.instance and other.needed_mb then
      local p = context.progress[other.id]
      local done = p and other.records > 0 and math.min(1, p.records / other.records) or 0
      sum = sum + other.needed_mb * (1 - done)
    end
  end
  return sum
end

local function megabytes(n) return n < 1 and "less than 1 MB" or string.format("about %.0f MB", n) end

-- Does the disk of the target have room for it, as far as that is known? Chroma keeps a vector in the queue of its
-- log and in the index, and texts there and with their words.
local function check_room(context, job, source, dimension)
  local free = context.store:disk_free_mb(job.instance)
  if not free then return end
  local records = Read.count(job, source.instance, source.physical)
  job.needed_mb = records * (dimension * 4 * 3 + Read.text_bytes(job, source.instance, source.physical) * 3 + 500) / MB
  local others = promised(context, job)
  if job.needed_mb + others > free then
    stop("failed", string.format("%s needs %s for it%s and has %.0f MB left", job.instance, megabytes(job.needed_mb),
      others > 0 and ", and " .. megabytes(others) .. " for others" or "", free))
  end
end

local function abandon(context, job)
  if job.rebuild then ask(context, "abandon", job, { rebuild = job.rebuild }) end
end

local function begin(context, job)
  local state = job.kind == "adopt" and "comparing" or "copying"
  if job.rebuild and job.p0 then return set(context, job, { state = state }) end -- it was paused
  local own, copies = situation(context, job)
  if job.asked_by == "" and own.state ~= (job.kind == "adopt" and "unverified" or "rebuild") then
    stop("moot", "the copy is " .. own.state)
  end
  if job.kind == "adopt" and own.state ~= "unverified" then stop("moot", "the copy is " .. own.state) end
  abandon(context, job)
  local source = choose_source(context, job, copies)
  job.source = source.instance -- what ends this step may be its fault
  local cosine, dimension = Read.look(job, source.instance)
  if job.kind == "rebuild" then check_room(context, job, source, dimension) end
  local _, losses = to_settle(context, job) -- of what was made before
  local a = ask(context, "begin", job, { source = source.instance, adopt = job.kind == "adopt", job = job.id })
  context.fault("sync.begun_not_recorded")
  job.lives = { [source.instance] = context.life(source.instance), [job.instance] = context.life(job.instance) }
  set(context, job, { state = state, source = source.instance, rebuild = a.rebuild, temp = a.temp,
    source_physical = a.source_physical, p0 = a.p0, upto = a.p0, cosine = cosine, chunked = false, started_at = "now",
    collection_id = job.collection_id, collection_name = job.collection_name, tenant = job.tenant,
    database = job.database }, { Store.collection_begins(job), Store.job_settled(job.id, losses) })
end

local function position_of_source(context, job)
  for _, copy in ipairs(need(context.store:copies(job.lane))) do
    if copy.instance == job.source then
      if copy.state ~= "ready" then stop("over", "the copy on " .. job.source .. " is " .. copy.state) end
      return copy.position
    end
  end
  stop("over", "there is no copy on " .. tostring(job.source) .. " any more")
end

-- Brings what was written up to now into the temporary collection.
local function catch_up(context, job, far)
  local at = position_of_source(context, job)
  if at <= job.upto or (at - job.upto <= NEAR and not far) then return end
  set(context, job, {}, { Store.task_new(job.id, { kind = "touched", first = job.upto, last = at, ids = "[]" }),
    Store.TASKS_TOLD })
  await(context, job)
  set(context, job, { upto = at })
end

-- Done: the answer. Asked again of what is done, the holder says that it is. After a worker was lost the holder waits
-- until nothing of it can be executed any more, which it measures where the target runs; then what was touched since
-- the beginning is brought over again.
local function finish(context, job)
  local far = false
  for _ = 1, ROUNDS do
    local seconds, losses = to_settle(context, job)
    if job.state == "catching_up" then
      if seconds == 0 then catch_up(context, job, far) end
      set(context, job, { state = "finishing" })
      seconds, losses = to_settle(context, job)
    end
    local a = ask(context, "finish", job, { rebuild = job.rebuild, upto = seconds > 0 and job.p0 or job.upto,
      settle = seconds }, 2 * seconds)
    if a.done then
      context.fault("sync.finished_not_recorded")
      return a
    end
    if a.more > 0 then -- else it was only not the time for it
      far = true
      set(context, job, { state = "catching_up", upto = seconds > 0 and job.p0 or job.upto },
        { Store.job_settled(job.id, losses) })
    end
  end
  stop("later", "clients write faster than it is caught up with")
end

-- The counts of both sides under the names that people know: of the primary, if it is one of the two, and the other's.
local function counts(context, job, source_count, target_count)
  local roles = {}
  for _, node in ipairs(context.nodes()) do roles[node.name] = node.role end
  if roles[job.instance] == "primary" then return target_count, source_count end
  return source_count, target_count
end

-- How many records there are now; nil: that cannot be said now.
local function count_now(job, instance, physical)
  local fine, n = pcall(Read.count, job, instance, physical)
  return fine and n or nil
end

local function rebuilt(context, job, a)
  context.failed_from[Store.copy_key(job)] = nil
  local p = context.progress[job.id] or {}
  local source_count = count_now(job, job.source, job.source_physical)
  local target_count = count_now(job, job.instance, job.temp)
  local primary, replica = counts(context, job, source_count, target_count)
  local mended = 0
  for _, text in ipairs(need(context.store:found(job.id))) do mended = mended + (json.decode(text).mended or 0) end
  need(context.store:job_ends(job, "done", { hold_ms = a.hold_ms or pg.null, upto = a.position or job.upto, error = "",
    done_records = job.records, target_records = target_count or job.records, differences = mended, repaired = mended,
    memory_peak_mb = p.memory_mb or pg.null },
    { status = "synced", fine = true, primary_count = primary, replica_count = replica, memory_mb = p.memory_mb,
      differences = 0, repaired = 0, batch = p.requests and p.requests > 0 and p.carried / p.requests or nil }))
  log.info("sync_rebuilt", string.format("%s on %s from %s: %d records, held %.0f ms", job.collection_name,
    job.instance, job.source, target_count or job.records, a.hold_ms or 0))
end

-- ids that still differ, and how many records hold NaN.
local function suspects(context, job)
  local ids, nan, names = {}, 0, {}
  for _, text in ipairs(need(context.store:found(job.id))) do
    local found = json.decode(text)
    for _, id in ipairs(found.ids or {}) do ids[#ids + 1] = id end
    for _, id in ipairs(found.nan_ids or {}) do names[#names + 1] = id end
    nan = nan + (found.nan or 0)
  end
  return ids, nan, names
end

-- What stands there is mended only when that changes little of it: otherwise it may well be somebody's, and stays as it
-- is, under another name, while the copy is made anew (leftovers.lua).
local function look_before(context, job)
  chunk(context, job, "compare")
  await(context, job)
  local count = #suspects(context, job)
  if count > job.records * REMADE_SHARE then
    stop("broken", string.format("%d of %d records are not as %s has them", count, job.records, job.source))
  end
  set(context, job, { state = "copying", chunked = false })
end

function Job.rebuild(context, job)
  job.lives = { [job.instance] = context.life(job.instance) }
  if job.source then job.lives[job.source] = context.life(job.source) end
  if job.state == "waiting" then begin(context, job) end
  if job.state == "comparing" then look_before(context, job) end
  if job.state == "copying" then
    chunk(context, job, job.kind == "adopt" and "mend" or "copy")
    await(context, job)
    context.fault("rebuild.pass1")
    set(context, job, { state = "catching_up" })
  elseif job.state == "catching_up" then -- what an earlier coordinator began
    await(context, job)
  end
  rebuilt(context, job, finish(context, job))
end

-- ---- verify ------------------------------------------------------------------------------------------------

-- The job's copy while there is something to compare: one that is to be made anew is that first. copy, all copies
local function whole_own(context, job)
  local own, copies = situation(context, job)
  if own.state ~= "ready" then stop("moot", "the copy is " .. own.state .. " and is made anew") end
  return own, copies
end

-- The same for what goes on.
local function still_whole(context, job)
  local _, copies = whole_own(context, job)
  for _, copy in ipairs(copies) do
    if copy.instance == job.source and copy.state == "ready" then return end
  end
  stop("over", "the copy on " .. tostring(job.source) .. " is not whole any more")
end

-- Who it was made for, while that is whole; else who is right now.
local function right_one(context, job, list)
  for _, copy in ipairs(list) do
    if copy.instance == job.source then return copy end
  end
  return choose.authority(context.nodes(), list)
end

local function begin_verify(context, job)
  local own, copies = whole_own(context, job)
  if not context.able(job.instance) then stop("waits", job.instance .. " cannot be used now") end
  local list = whole(context, copies)
  if #list < 2 then stop("moot", "there is no other whole copy to compare it with") end
  local source = right_one(context, job, list)
  if source.instance == job.instance then
    stop("moot", "it is the authority: the others are compared with it")
  end
  set(context, job, { state = "comparing", source = source.instance, source_physical = source.physical,
    temp = own.physical, cosine = Read.look(job, source.instance), chunked = false, started_at = "now",
    collection_id = job.collection_id, collection_name = job.collection_name, tenant = job.tenant,
    database = job.database }, { Store.collection_begins(job) })
end

local function confirm(context, job, ids, from, repair)
  local some = { unpack(ids, from, math.min(from + CONFIRM - 1, #ids)) }
  return ask(context, "confirm", job, { authority = job.source, ids = some, repair = repair, job = job.id })
end

-- So much differs that it is made anew. A sample is looked at under a hold first: a copy that was only behind is not.
local function too_much(context, job, ids)
  if #ids <= math.max(REMADE_FROM, job.records * REMADE_SHARE) or job.dry_run then return false end
  local differing = 0
  for _, d in ipairs(confirm(context, job, ids, 1, false).differing) do
    if d.how ~= "unrepairable" then differing = differing + 1 end
  end
  return differing > CONFIRM / 2
end

-- Looks at these ids, and repairs what differs. sums: {repaired=, left= that were not, why=}, which grow. The ids that
-- were being written to
local function confirm_once(context, job, ids, sums)
  local busy = {}
  for from = 1, #ids, CONFIRM do
    local a = confirm(context, job, ids, from, not job.dry_run)
    context.fault("sync.confirmed_not_recorded")
    for _, id in ipairs(a.busy or {}) do busy[#busy + 1] = id end
    sums.repaired = sums.repaired + a.repaired
    for _, d in ipairs(a.differing) do
      if job.dry_run or d.how == "unrepairable" then sums.left = sums.left + 1 end
      if d.how == "unrepairable" then
        sums.why = "record " .. slice.quote(d.id) .. " cannot be repaired" .. (d.why and ": " .. d.why or "")
      end
    end
    local differing = sums.repaired + sums.left
    if differing ~= job.differences or sums.repaired ~= job.repaired then
      set(context, job, { differences = differing, repaired = sums.repaired })
    end
  end
  return busy
end

-- Why it is not proven after that; nil: it is. Repaired is also what was for an earlier coordinator, which may not have
-- lived to write it down: the answers say so.
local function confirm_all(context, job, ids)
  local sums = { repaired = #ids > 0 and not job.dry_run and need(context.store:repaired(job)) or 0, left = 0 }
  for _ = 1, BUSY_LOOKS do
    ids = confirm_once(context, job, ids, sums)
    if #ids == 0 then return sums.why end
    sleep(BUSY_PAUSE)
  end
  return sums.why or #ids .. " records were written to all the time and could not be compared"
end

-- What differs in each of some looks, all between operations on the catalogue | nil: nothing, or it cannot be said
local function itself(context, job)
  local what
  for _ = 1, LOOKS do
    local before = need(context.store:catalogue(job))
    what = before and Read.difference(job)
    local same = before and before == need(context.store:catalogue(job))
    if same and not what then return nil end
    if not same then what = nil end
    sleep(LOOK_PAUSE)
  end
  return what and string.format("the collection on %s is not what it is on %s: %s", job.instance, job.source, what)
end

local function verified(context, job, differences, repaired, error_text)
  local p = context.progress[job.id] or {}
  local target = Read.count(job, job.instance, job.temp)
  local source = job.source_records or Read.count(job, job.source, job.source_physical)
  local primary, replica = counts(context, job, source, target)
  local proven = differences == repaired and error_text == ""
  need(context.store:job_ends(job, "done", { differences = differences, repaired = repaired, error = error_text,
    done_records = job.records, target_records = target, memory_peak_mb = p.memory_mb or pg.null },
    { status = proven and "synced" or "different", fine = proven, error = error_text ~= "" and error_text or nil,
      primary_count = primary, replica_count = replica, memory_mb = p.memory_mb, proven = proven,
      differences = differences, repaired = repaired,
      batch = p.requests and p.requests > 0 and 2 * p.carried / p.requests or nil }))
  if repaired > 0 then
    choose.notice { kind = "repaired", key = "repaired/" .. job.instance, title = "Records repaired",
      text = string.format("%d records of %s on %s were not as %s has them and were repaired", repaired,
        job.collection_name, job.instance, job.source),
      fields = { { "instance", job.instance }, { "collection", job.collection_name }, { "differences", differences },
        { "repaired", repaired } } }
  end
end

function Job.verify(context, job)
  if job.state == "waiting" then begin_verify(context, job) else still_whole(context, job) end
  if job.state == "comparing" then
    chunk(context, job, "compare")
    await(context, job)
    set(context, job, { state = "confirming" })
  end
  local ids, nan, names = suspects(context, job)
  if nan > 0 then
    log.warn("sync_nan", string.format("%d records of %s hold vectors with what is no number (NaN): %s", nan,
      job.collection_name, table.concat(names, ", ", 1, math.min(#names, 10))))
  end
  if too_much(context, job, ids) then
    local text = string.format("%d of %d records differ from %s: it is made anew", #ids, job.records, job.source)
    ask(context, "mark", job, { reason = text })
    return verified(context, job, #ids, 0, text)
  end
  local unproven = confirm_all(context, job, ids)
  verified(context, job, job.differences, job.repaired, unproven or itself(context, job) or "")
end

-- ---- endings -------------------------------------------------------------------------------------------------

local function pause_after(attempts) return math.min(FIRST_PAUSE * 2 ^ attempts, LAST_PAUSE) end

local function fail(context, job, why)
  if job.kind ~= "verify" then abandon(context, job) end
  need(context.store:job_ends(job, "failed", { error = why, rebuild = pg.null },
    { status = "failed", fine = false, error = why }))
  if job.kind ~= "verify" then
    choose.notice { kind = "rebuild_failed", key = "rebuild/" .. job.instance .. "/" .. job.lane, urgency = "medium",
      title = job.collection_name .. " cannot be made anew on " .. job.instance, text = why,
      fields = { { "instance", job.instance }, { "collection", job.collection_name } } }
  end
end

-- There is nothing to do, or it is done in another way.
local function drop(context, job, why)
  if job.kind ~= "verify" then abandon(context, job) end
  if job.asked_by == "" then return need(context.store:job_dropped(job)) end
  need(context.store:job_ends(job, job.kind == "verify" and "done" or "cancelled", { reason = why, rebuild = pg.null }))
end

local function make_anew(context, job, why)
  ask(context, "mark", job, { reason = why })
  drop(context, job, "it is made anew: " .. why)
end

local BAD_ANSWERS = { " answered 500", " answered 404", " does not know" }

-- The instance because of whose copy a comparison has ended: that answers with errors, or is not there. nil: none
local function answers_badly(context, job, why)
  for _, copy in ipairs(job.kind == "verify" and context.store:copies(job.lane) or {}) do
    for _, words in ipairs(BAD_ANSWERS) do
      if why:find(copy.instance .. words, 1, true) then return copy.instance end
    end
  end
end

-- Does this speak of the job's source, and not of what its target did?
local function source_failed(job, why)
  local source = job.source and job.source:gsub("%p", "%%%0")
  return source and why:match("^[^%s:]*") ~= job.instance and why:find("%f[%w_-]" .. source .. "%f[^%w_-]")
end

-- A copy that was found standing and cannot be read or mended is made anew, and so is one that answers with errors, or
-- whose collection somebody has deleted, on either side of a comparison: a try begins with the id that it has then.
local function start_over(context, job, why)
  job.attempts = job.attempts + 1
  if job.kind ~= "verify" and source_failed(job, why) then context.failed_from[Store.copy_key(job)] = job.source end
  local bad = answers_badly(context, job, why)
  if bad and bad ~= job.instance and job.attempts >= 2 and not job.dry_run then
    calls.ask("mark", job.lane, bad, { reason = why }, CALL_SECONDS, context.store.epoch)
    return drop(context, job, "the copy on " .. bad .. ", which it is compared with, is made anew: " .. why)
  end
  -- What earlier tasks of an adoption have sent would end in the same collection.
  local begun = job.kind == "adopt" and job.state ~= "waiting" and job.state ~= "comparing"
  if (begun or job.attempts >= 2 and (job.kind == "adopt" or bad)) and not job.dry_run then
    return make_anew(context, job, why)
  end
  if job.attempts >= ATTEMPTS then return fail(context, job, why) end
  set(context, job, { state = "waiting", attempts = job.attempts, error = why, chunked = false, p0 = pg.null,
    upto = pg.null }, { Store.tasks_gone(job.id), Store.job_later(job.id, pause_after(job.attempts)) })
end

-- Can it be made from somebody else's copy than that of its source?
local function has_another_source(context, job)
  for _, copy in ipairs(job.kind == "rebuild" and context.store:copies(job.lane) or {}) do
    if copy.state == "ready" and copy.instance ~= job.instance and copy.instance ~= job.source
      and context.able(copy.instance) then return true end
  end
  return false
end

local function ended(context, job, e)
  local level = (e.how == "moot" or e.how == "left") and "info" or "warn"
  log[level]("sync_job", string.format("%s of %s on %s (job %d, %s) %s: %s", job.kind, job.collection_name,
    job.instance, job.id, job.state, Stop.WORDS[e.how], tostring(e.why)))
  if e.how == "silent" then
    e.how = source_failed(job, e.why) and has_another_source(context, job) and "over" or "later"
  end
  if job.state == "cancelled" and e.how ~= "left" then -- it is cleaned up behind until that is done
    return set(context, job, {}, { Store.job_waits(job.id) })
  end
  if e.how == "over" then return start_over(context, job, tostring(e.why)) end
  if e.how == "failed" then return fail(context, job, tostring(e.why)) end
  if e.how == "moot" then return drop(context, job, tostring(e.why)) end
  if e.how == "broken" then
    return (job.dry_run and fail or make_anew)(context, job, tostring(e.why))
  end
  if e.how == "later" and job.laters + 1 >= LATERS then return start_over(context, job, tostring(e.why)) end
  if e.how == "later" then set(context, job, { error = tostring(e.why) }, { Store.job_waits(job.id) }) end
  if e.how == "waits" then
    set(context, job, { error = tostring(e.why) }, { Store.job_later(job.id, FIRST_PAUSE) })
  end
end

local function cancelled(context, job)
  if job.kind ~= "verify" then abandon(context, job) end
  need(context.store:job_set(job.id, "cancelled", { finished_at = "now", rebuild = pg.null },
    { Store.tasks_gone(job.id), Store.collection_left(job) }))
end

function Job.run(context, job)
  local work = job.state == "cancelled" and cancelled or job.kind == "verify" and Job.verify or Job.rebuild
  local fine, err = pcall(work, context, job)
  if fine then return end
  fine, err = pcall(ended, context, job, Stop.of(err))
  if fine or Stop.of(err).how == "left" then return end
  log.warn("sync_job", "job " .. job.id .. ": " .. tostring(Stop.of(err).why))
  context.store:job_set(job.id, job.state, {}, { Store.job_waits(job.id) })
end

return Job
