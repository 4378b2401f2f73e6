-- heal.lua: the end of a round with workers: everything is whole again, and they find and repair exactly what was
-- changed behind chromux's back, while clients go on writing.
local History = require("history")
local process = require("process")

local M = {}

local function rows(sql, ...)
  local got, why = pg.query({ sql, timeout = 10 }, ...)
  return got or error("PostgreSQL: " .. tostring(why), 0)
end

-- ---- everything is whole again ---------------------------------------------------------------------------

-- What must be empty: { what it is, query of a row with a text as `what` }.
local OPEN = {
  { "a copy that is not whole", [[SELECT format('lane %s on %s is %s: %s', c.lane, c.instance, c.state,
      c.reason) AS what
    FROM journal_copies c JOIN journal_lanes l USING (lane) WHERE l.open AND c.state <> 'ready' LIMIT 1]] },
  { "an instance without a copy", [[SELECT format('lane %s has %s copies', l.lane, count(c.instance)) AS what
    FROM journal_lanes l LEFT JOIN journal_copies c USING (lane) WHERE l.open GROUP BY l.lane
    HAVING count(c.instance) < 2 LIMIT 1]] },
  { "an open job", [[SELECT format('job %s: %s of lane %s on %s is %s, attempt %s: %s', id, kind, lane, instance, state,
      attempts, error) AS what FROM sync_jobs
    WHERE state NOT IN ('done', 'failed', 'cancelled') OR (state = 'cancelled' AND finished_at IS NULL) LIMIT 1]] },
  { "an open task", [[SELECT format('task %s: %s of job %s is %s, retry %s: %s', id, kind, job, task_status,
      retry_count, error_message) AS what FROM sync_tasks WHERE task_status IN ('pending', 'processing') LIMIT 1]] },
  { "an open rebuild", [[SELECT format('rebuild %s of lane %s on %s is %s: %s', id, lane, instance, state, why) AS what
    FROM journal_rebuilds WHERE state NOT IN ('done', 'dropped') LIMIT 1]] },
}

-- Every worker that is listed runs, and every one that runs is listed. nil | what is wrong
local function dead_workers(stage)
  local alive, count = {}, 0
  for _, name in ipairs(stage.workers) do alive[stage[name].pid or 0] = true end
  for _, row in ipairs(rows("SELECT worker_id, process FROM sync_workers")) do
    count = count + 1
    if not alive[tonumber(row.process:match("/(%d+)/"))] then return "worker " .. row.worker_id .. " is dead" end
  end
  if count ~= #stage.workers then return count .. " workers are listed of " .. #stage.workers end
end

local function unhealed(stage)
  for _, q in ipairs(OPEN) do
    local row = rows(q[2])[1]
    if row then return q[1] .. ": " .. row.what end
  end
  return dead_workers(stage)
end

-- Waits until nothing is left to heal: nil, or what is after that many seconds.
function M.await(stage, seconds)
  local till = now() + seconds
  while true do
    stage:revive()
    local fine, why = pcall(unhealed, stage)
    if fine and not why then return nil end
    if now() > till then return tostring(why) end
    sleep(0.1)
  end
end

-- ---- comparing -------------------------------------------------------------------------------------------

-- Done, or there was nothing to compare the copy with because others are compared with it.
local COMPARED = "j.state = 'done' AND (j.reason = '' OR j.reason LIKE 'it is the authority%')"

-- A comparison of each collection with every copy of it, as somebody asks for it.
local ASK = [[INSERT INTO sync_jobs (kind, lane, instance, asked_by)
  SELECT 'verify', c.lane, c.instance, 'round' FROM journal_copies c JOIN journal_collections k USING (lane)
  WHERE NOT k.deleted AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.lane = c.lane AND j.instance = c.instance
    AND j.kind = 'verify' AND (j.finished_at IS NULL OR (j.asked_by = 'round' AND j.id > $1 AND ]] .. COMPARED .. [[)))
  ON CONFLICT DO NOTHING]]
local LACKING = [[SELECT format('lane %s on %s', c.lane, c.instance) AS what
  FROM journal_copies c JOIN journal_collections k USING (lane)
  WHERE NOT k.deleted AND NOT EXISTS (SELECT 1 FROM sync_jobs j WHERE j.lane = c.lane AND j.instance = c.instance
    AND j.kind = 'verify' AND j.asked_by = 'round' AND j.id > $1 AND ]] .. COMPARED .. [[) LIMIT 1]]

local function last_job() return rows("SELECT COALESCE(max(id), 0) AS id FROM sync_jobs")[1].id end

-- Has everything compared that is there now. nil | what was not in that many seconds
local function compare(stage, seconds)
  local from, till = last_job(), now() + seconds
  while true do
    stage:revive()
    local fine, got = pcall(function()
      rows(ASK, from)
      rows("SELECT pg_notify('chromux_sync_work', 'jobs')")
      return rows(LACKING, from)[1]
    end)
    if fine and not got then return nil end
    if now() > till then return "not compared: " .. (fine and got.what or tostring(got)) end
    sleep(0.1)
  end
end

-- ---- behind its back -------------------------------------------------------------------------------------

local function ask(url, body)
  local a, why = fetch { url = url, method = "POST", body = json.encode(body), timeout = 20,
    headers = { ["Content-Type"] = "application/json" } }
  if not a or a.status >= 300 then
    error(url .. ": " .. (a and a.status .. " " .. a.body:sub(1, 200) or tostring(why)), 0)
  end
end

local CHANGES = {
  function(url, id) ask(url .. "/update", { ids = { id }, documents = { "changed" } }) end,
  function(url, id, vector) ask(url .. "/update", { ids = { id }, embeddings = { vector } }) end,
  function(url, id) ask(url .. "/update", { ids = { id }, metadatas = { { changed = 1 } } }) end,
  function(url, id) ask(url .. "/delete", { ids = { id } }) end,
}

-- Another vector of as many numbers.
local function another(vector)
  local out = { unpack(vector) }
  out[1] = out[1] + 1000
  return out
end

-- Changes, deletes and adds some records of these copies on one server, each record once and in one way.
-- copies: {{lane=, physical=, logical=}, ...}; {[lane]=how many}, {[logical.."/"..id]=true}
local function tamper(rng, url, copies)
  local count, touched = {}, {}
  local held = History.read_server(url)
  for _, c in ipairs(copies) do
    local ids = {}
    for id in pairs(held[c.physical].records) do
      if not id:find("^w") then ids[#ids + 1] = id end -- others write those meanwhile
    end
    table.sort(ids)
    local base = url .. History.BASE .. "/" .. c.physical
    local n = 0
    for _ = 1, math.min(rng:int(1, 8), #ids) do
      local id = table.remove(ids, rng:int(1, #ids))
      rng:pick(CHANGES)(base, id, another(held[c.physical].records[id].emb))
      n, touched[c.logical .. "/" .. id] = n + 1, true
    end
    for i = 1, #ids > 0 and rng:int(0, 2) or 0 do -- (without records the dimension is not known)
      local vector = another(held[c.physical].records[ids[1]].emb)
      ask(base .. "/add", { ids = { "x" .. i }, documents = { "extra" }, embeddings = { vector } })
      n, touched[c.logical .. "/x" .. i] = n + 1, true
    end
    count[c.lane] = n
  end
  return count, touched
end

-- What comparisons that ended after that moment have found, by lane.
local function found_since(moment)
  local out = {}
  for _, row in ipairs(rows([[SELECT lane, sum(differences)::bigint AS differences, sum(repaired)::bigint AS repaired
      FROM sync_jobs WHERE kind = 'verify' AND finished_at > $1::timestamptz GROUP BY lane]], moment)) do
    out[row.lane] = row
  end
  return out
end

-- {[logical.."/"..id]=how often} of the repairs that logs of this round's balancers tell of.
local function logged(stage)
  local out = {}
  for _, name in ipairs(stage.balancers) do
    local f = io.open(stage[name].log)
    for line in f and f:lines() or function() end do
      local logical, list = line:match('record_repaired text="([%x%-]+) on %w+: (.*)$')
      for id in (list or ""):gmatch('\\"(%w+)\\" was ') do
        out[logical .. "/" .. id] = (out[logical .. "/" .. id] or 0) + 1
      end
    end
    if f then f:close() end
  end
  return out
end

-- Exactly these records were repaired: complaints are added to v. exact: the holder of the journal was not killed
-- meanwhile: else a repair under way is neither in the log nor in a job.
local function judge(v, stage, before, from, count, touched, exact)
  local repaired = logged(stage)
  for key, n in pairs(repaired) do
    n = n - (before[key] or 0)
    if n > 0 and not touched[key] then v[#v + 1] = "repair: " .. key .. " was repaired and nobody had touched it" end
    if n > 1 and exact then v[#v + 1] = string.format("repair: %s was repaired %d times", key, n) end
  end
  for key in pairs(touched) do
    if exact and (repaired[key] or 0) <= (before[key] or 0) then
      v[#v + 1] = "repair: " .. key .. " was touched and no repair of it is in the log"
    end
  end
  if not exact then return end
  local found = found_since(from)
  for lane, n in pairs(count) do
    local f = found[lane] or { differences = 0, repaired = 0 }
    if f.differences ~= n or f.repaired ~= n then
      v[#v + 1] = string.format("repair: lane %d: %d records were touched, %d found to differ, %d repaired", lane, n,
        f.differences, f.repaired)
    end
    found[lane] = nil
  end
  for lane, f in pairs(found) do
    if f.differences > 0 then
      v[#v + 1] = string.format("repair: lane %d: nobody touched it, %d found to differ", lane, f.differences)
    end
  end
end

-- ---- the end of a round ----------------------------------------------------------------------------------

local DISTURBANCES = { "worker1", "chromux", "coordinator" }

-- Kills somebody in the middle of it, in every other round.
local function disturb(rng, stage)
  if rng:chance(0.5) then return nil end
  local what, after = rng:pick(DISTURBANCES), rng:unit() * 0.8
  return what, spawn(function()
    sleep(after)
    local name = what
    if what == "coordinator" then
      local pid = tonumber(rows("SELECT holder FROM sync_lease")[1].holder:match("/(%d+)/"))
      for _, worker in ipairs(stage.workers) do if stage[worker].pid == pid then name = worker end end
    end
    if stage[name] then stage[name]:kill(process.KILL) end
  end)
end

-- Heals, compares, changes records behind chromux's back, and has that repaired. workload: of the round's clients.
-- What is wrong: {text, ...}, and what was done, as text.
function M.prove(stage, workload, rng, seconds)
  local v = {}
  local why = M.await(stage, seconds)
  if why then return { "unhealed: " .. seconds .. " s after the last fault: " .. why }, "unhealed" end
  why = compare(stage, seconds)
  if why then return { "unhealed: " .. why }, "not compared" end
  -- Up to here nobody has touched anything: what has differed was made wrong by us.
  for _, row in ipairs(rows([[SELECT lane, instance, differences AS n FROM sync_jobs
      WHERE kind = 'verify' AND differences > 0]])) do
    v[#v + 1] = string.format("made wrong: lane %d: %d records on %s had to be repaired", row.lane, row.n, row.instance)
  end
  -- Whose copies are compared with the authority's.
  local copies = rows([[SELECT DISTINCT ON (c.lane) c.lane, c.instance, c.physical, k.logical FROM journal_copies c
    JOIN journal_collections k USING (lane)
    JOIN sync_jobs j ON j.lane = c.lane AND j.instance = c.instance AND j.kind = 'verify' AND j.asked_by = 'round'
      AND j.source IS NOT NULL WHERE NOT k.deleted ORDER BY c.lane, j.id DESC]])
  local before, by_server, from = logged(stage), {}, rows("SELECT now()::text AS at")[1].at
  for _, c in ipairs(copies) do
    by_server[c.instance] = by_server[c.instance] or {}
    table.insert(by_server[c.instance], c)
  end
  local count, touched, total = {}, {}, 0
  local over = false
  local writer = spawn(function() workload:run_apart(rng, "w", function() return over end) end)
  for instance, list in pairs(by_server) do
    local n, keys = tamper(rng, stage.servers[instance], list)
    for lane, k in pairs(n) do count[lane], total = k, total + k end
    for key in pairs(keys) do touched[key] = true end
  end
  local disturbed, task = disturb(rng, stage)
  why = compare(stage, seconds)
  if task then assert(task:wait()) end
  over = true
  assert(writer:wait())
  stage:mend()
  stage:await_journal(30)
  why = why or M.await(stage, seconds)
  if why then v[#v + 1] = "unhealed: after the repairs: " .. why end
  judge(v, stage, before, from, count, touched, disturbed ~= "chromux")
  return v, string.format("%d records touched directly%s", total,
    disturbed and " (" .. disturbed .. " killed)" or "")
end

return M
