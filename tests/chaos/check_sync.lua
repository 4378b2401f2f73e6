-- check_sync.lua: judges what workers have done in a round. Pure, as check.lua:
--
--   s.jobs         {id=, kind=, lane=, instance=, state=, records=, done_records=, error=, hold_ms=, reason=,
--                  deleted= its collection}
--   s.tasks        of these jobs: {id=, job=, kind=, first=, last=, status=, records=, error=, ids={...} | nil}
--   s.completed    each time that a task was counted: {task=, job=, epoch=}
--   s.hashes       lane -> instance -> id -> canonical hash of the record, asked directly; h.copies say of which
--   s.hold_most    milliseconds for which a copy may be held; nil: any
--   s.names        instance -> names of its collections, of all tenants and databases
local M = {}

local function complain(v, kind, ...) v[#v + 1] = kind .. ": " .. string.format(...) end

local function name_of(job)
  return string.format("job %d (%s of lane %d on %s)", job.id, job.kind, job.lane, job.instance)
end

-- Nothing failed for good: a job that failed was done later, or there is nothing left to do it for.
function M.failures(s, v)
  local done = {} -- lane/instance -> highest id
  for _, job in ipairs(s.jobs) do
    local key = job.lane .. "/" .. job.instance
    if job.state == "done" then done[key] = math.max(done[key] or 0, job.id) end
  end
  local by_id = {}
  for _, job in ipairs(s.jobs) do
    by_id[job.id] = job
    if job.state == "failed" and not job.deleted and (done[job.lane .. "/" .. job.instance] or 0) < job.id then
      complain(v, "failed job", "%s: %s", name_of(job), job.error)
    end
  end
  for _, t in ipairs(s.tasks) do
    local job = by_id[t.job]
    if t.status == "failed" and job and job.state == "done" then
      complain(v, "failed task", "task %d of %s, which is done: %s", t.id, name_of(job), tostring(t.error))
    end
  end
end

local function check_chunks(v, job, tasks)
  local at, total, seen = 0, 0, {}
  table.sort(tasks, function(a, b) return a.first < b.first end)
  for _, t in ipairs(tasks) do
    if t.status ~= "completed" then
      complain(v, "chunks", "%s is done, its task %d is %s", name_of(job), t.id, t.status)
    end
    if t.first ~= at then
      complain(v, "chunks", "%s: task %d begins at %d, the one before ended at %d", name_of(job), t.id, t.first, at)
    end
    at, total = t.last + 1, total + t.records
    if t.ids and #t.ids ~= t.last - t.first + 1 then
      complain(v, "chunks", "%s: task %d is for %d to %d and has %d ids", name_of(job), t.id, t.first, t.last, #t.ids)
    end
    if t.records > t.last - t.first + 1 then
      complain(v, "chunks", "%s: task %d has counted %d records of %d", name_of(job), t.id, t.records,
        t.last - t.first + 1)
    end
    for _, id in ipairs(t.ids or {}) do
      if seen[id] then complain(v, "chunks", "%s: %s is in tasks %d and %d", name_of(job), id, seen[id], t.id) end
      seen[id] = t.id
    end
  end
  if at ~= job.records then
    complain(v, "chunks", "%s says it had %d records, its tasks %d", name_of(job), job.records, at)
  end
  -- Of a record that is gone by then none is copied.
  if job.kind == "verify" and total ~= job.done_records then
    complain(v, "chunks", "%s says that %d records were compared, its tasks %d", name_of(job), job.done_records, total)
  end
end

-- A comparison that was dropped says why.
local function was_dropped(job) return job.kind == "verify" and job.reason ~= "" and job.reason ~= "scheduled" end

-- The chunks of a job that is done are all ids, each once.
function M.chunks(s, v)
  local of = {}
  for _, t in ipairs(s.tasks) do
    if t.kind ~= "touched" then
      of[t.job] = of[t.job] or {}
      table.insert(of[t.job], t)
    end
  end
  for _, job in ipairs(s.jobs) do
    if job.state == "done" and of[job.id] and not was_dropped(job) then check_chunks(v, job, of[job.id]) end
  end
  local times = {}
  for _, c in ipairs(s.completed) do
    times[c.task] = (times[c.task] or 0) + 1
    if times[c.task] == 2 then complain(v, "counted twice", "task %d of job %d", c.task, c.job) end
  end
end

-- No copy was held longer than it may be.
function M.holds(s, v)
  for _, job in ipairs(s.jobs) do
    if s.hold_most and (job.hold_ms or 0) > s.hold_most then
      complain(v, "hold", "%s held the source for %.0f ms", name_of(job), job.hold_ms)
    end
  end
end

-- Every copy has the same records, by their hashes.
function M.equal(s, v)
  for lane, by_instance in pairs(s.hashes) do
    local first, other = next(by_instance)
    for instance, hashes in pairs(by_instance) do
      for id, hash in pairs(hashes) do
        if other[id] ~= hash then
          complain(v, "not equal", "lane %d: %s is %s on %s and %s on %s", lane, id, hash, instance,
            tostring(other[id]), first)
        end
      end
      for id in pairs(other) do
        if not hashes[id] then complain(v, "not equal", "lane %d: %s is missing on %s", lane, id, instance) end
      end
    end
  end
end

-- Nothing of ours is left on a server.
function M.leftovers(s, v)
  for instance, names in pairs(s.names) do
    for _, name in ipairs(names) do
      if name:find("^chromux%-") or name:find("%-aside%-%x+$") then
        complain(v, "left over", "%s on %s", name, instance)
      end
    end
  end
end

function M.all(s)
  local v = {}
  M.failures(s, v)
  M.chunks(s, v)
  M.holds(s, v)
  M.equal(s, v)
  M.leftovers(s, v)
  return v
end

return M
