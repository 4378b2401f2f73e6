-- sync_job.lua: one job from its beginning to its end: what the coordinator asks of the holder of the journal, and
-- which tasks it makes. Every step is in the job's row before the next one begins: another coordinator goes on there.
--
--   Job.run(context, row)    returns when the job is over, waits for a later time, or is not ours any more
--
-- context: the coordinator (sync_coordinate.lua): store, settings, able(instance), nodes(), life(instance),
-- await(job) -> progress when none of its tasks is open, or when it is not to be waited for; nil: the lease is lost.
-- alone(fn): one at a time. fault(name): a named step of a test build
--
-- rebuild, adopt:  begin, copy the ids of a snapshot, catch up with what was touched since, finish. What is thrown away
--                  starts over, some times.
-- verify:          both id lists, compare in chunks, confirm what differs under a hold.
local Ids = require("lb.sync_ids")
local Store = require("lb.sync_store")
local choose = require("lb.sync_choose")
local calls = require("lb.sync_calls")
local courier = require("lb.courier")
local json = json

local Job = {}

local ATTEMPTS = 5             -- of a job
local FIRST_PAUSE, LAST_PAUSE = 1, 60
local CALL_SECONDS = 60
local NEAR = 50                -- entries that are left to finish
local ROUNDS = 40              -- of catching up
local MOST_IDS = 256 * 1024 * 1024
local LIST_SECONDS = 120
local TASK_BYTES = 8 * 1024 * 1024 -- of ids in one transaction
local SETTLE, PULSE = 1, 0.1   -- seconds, as in servers.lua
local CONFIRM = 100            -- ids at a time
local BUSY_LOOKS, BUSY_PAUSE = 8, 0.25 -- at records that are just being written
local REMADE_FROM, REMADE_SHARE = 100, 0.2 -- records that differ, from which a copy is made anew

-- A job stops with error({how=, why=}): "later" (again from its state, soon), "over" (from its beginning), "failed",
-- "moot" (there is nothing to do), "left" (somebody else has it, or changed it).
local function stop(how, why) error({ how = how, why = why }, 0) end

local function set(context, job, fields, more)
  local done, why = context.store:job_set(job.id, job.state, fields, more)
  if done == nil then stop(why == "not ours" and "left" or "later", why) end
  if not done then stop("left", "its state was changed") end
  for name, value in pairs(fields) do
    if value == pg.null then job[name] = nil else job[name] = value end
  end
end

local function ask(kind, job, arguments)
  local answer, why = calls.ask(kind, job.lane, job.instance, arguments, CALL_SECONDS)
  if not answer then stop("later", kind .. ": " .. tostring(why)) end
  if answer.gone then stop("over", kind .. ": " .. tostring(answer.gone)) end
  return answer
end

local function need(result, why)
  if result == nil then stop("later", why) end
  return result
end

local function encode(s)
  return (s:gsub("[^%w%-%._~]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function collections_path(job)
  return "/api/v2/tenants/" .. encode(job.tenant) .. "/databases/" .. encode(job.database) .. "/collections/"
end

-- A read of a collection on a server: body | stops
local function read(job, instance, method, rest, body)
  local a, kind, text = courier.request { node = instance, method = method, target = collections_path(job) .. rest,
    body = body, type = body and "application/json" or nil, max = MOST_IDS, timeout = LIST_SECONDS }
  if not a then stop("later", instance .. ": " .. tostring(text or kind)) end
  if a.status == 404 then stop("over", instance .. " does not know the collection") end
  if a.status == 500 then stop("over", string.format("%s answered 500: %s", instance, a.body:sub(1, 200))) end
  if a.status ~= 200 then stop("later", string.format("%s answered %d: %s", instance, a.status, a.body:sub(1, 200))) end
  return a.body
end

local function ids_on(job, instance, physical)
  return read(job, instance, "POST", physical .. "/get", '{"include":[]}')
end

local function count_on(job, instance, physical) return tonumber(read(job, instance, "GET", physical .. "/count")) end

-- What the source says of the collection: is its space the cosine, how many numbers are in a vector?
local function look_at(job, instance)
  local c = json.decode(read(job, instance, "GET", encode(job.collection_name)))
  if type(c) ~= "table" then stop("later", instance .. ": not a collection") end
  local configuration = type(c.configuration_json) == "table" and c.configuration_json or {}
  local space
  for _, index in ipairs { "hnsw", "spann" } do
    if type(configuration[index]) == "table" then space = configuration[index].space or space end
  end
  if not space and type(c.metadata) == "table" then space = c.metadata["hnsw:space"] end
  return space == "cosine", tonumber(c.dimension) or 0
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

local function choose_source(context, job, copies)
  local list, any = whole(context, copies, job.instance)
  if #list == 0 and any then stop("later", "no instance with a whole copy of it can be used now") end
  if #list == 0 then stop("failed", "no_source: there is no whole copy of it to take it from") end
  return choose.authority(context.nodes(), list)
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

-- The ids of both sides as tasks: those of the source, and those that only the other has. One job at a time has lists
-- in memory.
local function chunk(context, job, kind)
  if job.chunked then return end
  context.alone(function()
    set(context, job, { chunked = false }, { Store.tasks_gone(job.id) }) -- of somebody who did not come to the end
    local ids = ids_on(job, job.source, job.source_physical)
    local extras = {}
    if kind ~= "copy" then
      local other = ids_on(job, job.instance, job.temp)
      job.target_records = Ids.count(other)
      if other ~= ids then extras = Ids.extras(ids, other) end
    end
    local size = context.settings.SYNC_CHUNK_SIZE
    local total = make_tasks(context, job, kind, Ids.cut(ids, size), 0, #extras == 0)
    job.source_records = total
    if #extras > 0 then make_tasks(context, job, kind, chunks_of(extras, size, total), total, true) end
  end)
  context.fault("sync.chunked")
end

-- Until the job's tasks are done: progress. A rebuild whose servers are not the ones they were is not waited for.
local function await(context, job)
  local p = context.await(job)
  if not p then stop("left", "the lease is lost") end
  if p.state ~= job.state then stop("left", "it is " .. p.state) end
  if p.again then stop("over", p.again) end
  if p.failed > 0 then stop("over", tostring(p.error)) end
  return p
end

-- ---- rebuild, adopt ------------------------------------------------------------------------------------------

-- Until the target has done a write of ours and then run for so many seconds: before that it may have stood still,
-- with what a lost worker sent (R5). Of the time between two answers PULSE at most is counted.
local function let_run(context, job, seconds)
  local written, ran, last = false, 0, nil
  while ran < seconds do
    if context.life(job.instance) ~= job.lives[job.instance] then stop("over", job.instance .. " began a new life") end
    local a
    if written then
      a = courier.request { node = job.instance, method = "GET", target = "/api/v2/heartbeat", timeout = 1 }
    else -- nothing has this id
      a = courier.request { node = job.instance, method = "POST", fenced = true, timeout = 30,
        target = collections_path(job) .. job.temp .. "/delete", body = '{"ids":["chromux-settled"]}',
        type = "application/json" }
    end
    local fine, at = a and a.status == 200, now()
    if not fine or not written then last = nil end
    if fine then
      if last then ran = ran + math.min(at - last, PULSE) end
      written, last = true, at
    end
    sleep(PULSE)
  end
end

-- Until nothing that a lost worker sent can be executed any more. Was one lost since the last call for this job?
local function settle(context, job)
  while true do
    local is = need(context.store:job(job.id))
    if not is or is.state ~= job.state then stop("left", "its state was changed") end
    if is.settle <= 0 then
      local lost = is.settle_until ~= (job.settled_until or is.created_at)
      if lost and job.temp then let_run(context, job, SETTLE) end
      job.settled_until = is.settle_until
      return lost
    end
    sleep(math.min(is.settle + 0.01, 1))
  end
end

-- Was no worker lost? What one of them sent last may have been done after another had done its work: in a collection
-- that was made for it that concerns only what was touched since the beginning, elsewhere anything.
local function settled(context, job)
  local lost = settle(context, job)
  if lost and job.kind == "adopt" then stop("over", "a worker was lost while it changed records") end
  return not lost
end

local MB = 1024 * 1024

-- Does the disk of the target have room for it, as far as that is known? Chroma keeps a vector in the queue of its
-- log and in the index, and texts with their words.
local function check_room(context, job, source, dimension)
  local free = context.store:disk_free_mb(job.instance)
  if not free then return end
  local records = count_on(job, source.instance, source.physical)
  local needed = records * (dimension * 4 * 3 + 2000) / MB
  if needed > free then
    stop("failed", string.format("%s needs about %.0f MB for it and has %.0f MB left", job.instance, needed, free))
  end
end

local function abandon(job)
  if job.rebuild then ask("abandon", job, { rebuild = job.rebuild }) end
end

local function begin(context, job)
  if job.rebuild and job.p0 then return set(context, job, { state = "copying" }) end -- it was paused
  local own, copies = situation(context, job)
  if job.asked_by == "" and own.state ~= (job.kind == "adopt" and "unverified" or "rebuild") then
    stop("moot", "the copy is " .. own.state)
  end
  if job.kind == "adopt" and own.state ~= "unverified" then stop("moot", "the copy is " .. own.state) end
  abandon(job)
  local source = choose_source(context, job, copies)
  local cosine, dimension = look_at(job, source.instance)
  if job.kind == "rebuild" then check_room(context, job, source, dimension) end
  job.temp = job.kind == "adopt" and own.physical or nil
  settle(context, job)
  local a = ask("begin", job, { source = source.instance, adopt = job.kind == "adopt", job = job.id })
  context.fault("sync.begun_not_recorded")
  job.lives = { [source.instance] = context.life(source.instance), [job.instance] = context.life(job.instance) }
  set(context, job, { state = "copying", source = source.instance, rebuild = a.rebuild, temp = a.temp,
    source_physical = a.source_physical, p0 = a.p0, upto = a.p0, cosine = cosine, chunked = false, started_at = "now",
    collection_id = job.collection_id, collection_name = job.collection_name, tenant = job.tenant,
    database = job.database }, { Store.collection_begins(job) })
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
  set(context, job, { upto = settled(context, job) and at or job.p0 })
end

-- Done: the answer. Asked again of what is done, the holder says that it is.
local function finish(context, job)
  local far = false
  for _ = 1, ROUNDS do
    if job.state == "catching_up" then
      catch_up(context, job, far)
      set(context, job, { state = "finishing" })
    end
    local a = ask("finish", job, { rebuild = job.rebuild, upto = job.upto, settle = 0 })
    if a.done then
      context.fault("sync.finished_not_recorded")
      return a
    end
    if a.more > 0 then -- else it was only not the time for it
      far = true
      set(context, job, { state = "catching_up" })
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

local function rebuilt(context, job, a)
  local p = context.progress[job.id] or {}
  local source_count = count_on(job, job.source, job.source_physical)
  local target_count = count_on(job, job.instance, job.temp)
  local primary, replica = counts(context, job, source_count, target_count)
  local mended = 0
  for _, text in ipairs(need(context.store:found(job.id))) do mended = mended + (json.decode(text).mended or 0) end
  need(context.store:job_ends(job, "done", { hold_ms = a.hold_ms or pg.null, upto = a.position or job.upto, error = "",
    done_records = job.records, target_records = target_count, differences = mended, repaired = mended,
    memory_peak_mb = p.memory_mb or pg.null },
    { status = "synced", fine = true, primary_count = primary, replica_count = replica, memory_mb = p.memory_mb,
      batch = p.requests and p.requests > 0 and p.carried / p.requests or nil }))
  log.info("sync_rebuilt", string.format("%s on %s from %s: %d records, held %.0f ms", job.collection_name,
    job.instance, job.source, target_count, a.hold_ms or 0))
end

function Job.rebuild(context, job)
  job.lives = { [job.instance] = context.life(job.instance) }
  if job.source then job.lives[job.source] = context.life(job.source) end
  if job.state == "waiting" then begin(context, job) end
  if job.state == "copying" then
    chunk(context, job, job.kind == "adopt" and "mend" or "copy")
    await(context, job)
    settled(context, job)
    set(context, job, { state = "catching_up" })
  elseif job.state == "catching_up" then -- what an earlier coordinator began
    await(context, job)
    if not settled(context, job) then set(context, job, { upto = job.p0 }) end
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

local function begin_verify(context, job)
  local own, copies = whole_own(context, job)
  if not context.able(job.instance) then stop("later", job.instance .. " cannot be used now") end
  local list = whole(context, copies)
  if #list < 2 then stop("moot", "there is no other whole copy to compare it with") end
  local source = choose.authority(context.nodes(), list)
  if source.instance == job.instance then
    stop("moot", "it is the authority: the others are compared with it")
  end
  set(context, job, { state = "comparing", source = source.instance, source_physical = source.physical,
    temp = own.physical, cosine = look_at(job, source.instance), chunked = false, started_at = "now",
    collection_id = job.collection_id, collection_name = job.collection_name, tenant = job.tenant,
    database = job.database }, { Store.collection_begins(job) })
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

local function confirm(job, ids, from, repair)
  local some = { unpack(ids, from, math.min(from + CONFIRM - 1, #ids)) }
  return ask("confirm", job, { authority = job.source, ids = some, repair = repair, job = job.id })
end

-- So much differs that it is made anew. A sample is looked at under a hold first: a copy that was only behind is not.
local function too_much(job, ids)
  if #ids <= math.max(REMADE_FROM, job.records * REMADE_SHARE) or job.dry_run then return false end
  return #confirm(job, ids, 1, false).differing > CONFIRM / 2
end

-- What was repaired is counted by the answers, also those that an earlier coordinator did not live to write down.
local function count_differing(context, job, differing)
  local repaired = job.dry_run and 0 or need(context.store:repaired(job))
  if not job.dry_run then differing = repaired end
  if differing ~= job.differences or repaired ~= job.repaired then
    set(context, job, { differences = differing, repaired = repaired })
  end
end

-- Looks at these ids, and repairs what differs; differing: how many did before. The ids that were being written to,
-- differing
local function confirm_once(context, job, ids, differing)
  local busy = {}
  for from = 1, #ids, CONFIRM do
    local a = confirm(job, ids, from, not job.dry_run)
    context.fault("sync.confirmed_not_recorded")
    for _, id in ipairs(a.busy or {}) do busy[#busy + 1] = id end
    differing = differing + #a.differing
    count_differing(context, job, differing)
  end
  return busy, differing
end

-- How many could not be looked at because clients wrote to them all the time.
local function confirm_all(context, job, ids)
  local differing = 0
  for _ = 1, BUSY_LOOKS do
    ids, differing = confirm_once(context, job, ids, differing)
    if #ids == 0 then return 0 end
    sleep(BUSY_PAUSE)
  end
  return #ids
end

local function verified(context, job, differences, repaired, error_text)
  local p = context.progress[job.id] or {}
  local target = count_on(job, job.instance, job.temp)
  local source = job.source_records or count_on(job, job.source, job.source_physical)
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
  if job.state == "waiting" then begin_verify(context, job) else whole_own(context, job) end
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
  if too_much(job, ids) then
    local text = string.format("%d of %d records differ from %s: it is made anew", #ids, job.records, job.source)
    ask("mark", job, { reason = text })
    return verified(context, job, #ids, 0, text)
  end
  local busy = confirm_all(context, job, ids)
  verified(context, job, job.differences, job.repaired,
    busy > 0 and busy .. " records were written to all the time and could not be compared" or "")
end

-- ---- endings -------------------------------------------------------------------------------------------------

local function pause_after(attempts) return math.min(FIRST_PAUSE * 2 ^ attempts, LAST_PAUSE) end

local function fail(context, job, why)
  if job.kind ~= "verify" then abandon(job) end
  need(context.store:job_ends(job, "failed", { error = why, rebuild = pg.null },
    { status = "failed", fine = false, error = why }))
end

-- There is nothing to do, or it is done in another way.
local function drop(context, job, why)
  if job.kind ~= "verify" then abandon(job) end
  if job.asked_by == "" then return need(context.store:job_dropped(job)) end
  need(context.store:job_ends(job, job.kind == "verify" and "done" or "cancelled", { reason = why, rebuild = pg.null }))
end

-- A copy that was found standing and cannot be read or mended is made anew, and so is one that answers with errors, or
-- whose collection somebody has deleted: each try begins with the id that the journal has of it then.
local function start_over(context, job, why)
  job.attempts = job.attempts + 1
  local errs = job.kind == "verify" and (why:find(job.instance .. " answered 500", 1, true)
    or why:find(job.instance .. " answered 404", 1, true) or why:find(job.instance .. " does not know", 1, true))
  local broken = job.kind == "adopt" or errs
  if broken and job.attempts >= 2 and not job.dry_run then
    ask("mark", job, { reason = why })
    return drop(context, job, "it is made anew: " .. why)
  end
  if job.attempts >= ATTEMPTS then return fail(context, job, why) end
  set(context, job, { state = "waiting", attempts = job.attempts, error = why, chunked = false, p0 = pg.null,
    upto = pg.null }, { Store.tasks_gone(job.id), Store.job_later(job.id, pause_after(job.attempts)) })
end

local function ended(context, job, e)
  local level = (e.how == "moot" or e.how == "left") and "info" or "warn"
  log[level]("sync_job", string.format("%s of %s on %s (job %d, %s): %s: %s", job.kind, job.collection_name,
    job.instance, job.id, job.state, e.how, tostring(e.why)))
  if e.how == "over" then return start_over(context, job, tostring(e.why)) end
  if e.how == "failed" then return fail(context, job, tostring(e.why)) end
  if e.how == "moot" then return drop(context, job, tostring(e.why)) end
  if e.how == "later" then
    set(context, job, { error = tostring(e.why) }, { Store.job_later(job.id, FIRST_PAUSE) })
  end
end

local function cancelled(context, job)
  if job.kind ~= "verify" then abandon(job) end
  need(context.store:job_set(job.id, "cancelled", { finished_at = "now", rebuild = pg.null },
    { Store.tasks_gone(job.id) }))
end

local function as_stop(err)
  if type(err) == "table" and err.how then return err end
  return { how = "over", why = tostring(err) }
end

function Job.run(context, job)
  local work = job.state == "cancelled" and cancelled or job.kind == "verify" and Job.verify or Job.rebuild
  local fine, err = pcall(work, context, job)
  if fine then return end
  fine, err = pcall(ended, context, job, as_stop(err))
  if fine or as_stop(err).how == "left" then return end
  log.warn("sync_job", "job " .. job.id .. ": " .. tostring(as_stop(err).why))
  context.store:job_set(job.id, job.state, {}, { Store.job_later(job.id, FIRST_PAUSE) })
end

return Job
