-- history.lua: what is left of a round, in the form that check.lua judges: the journal's rows, and what each
-- server says when it is asked directly.
local clients = require("clients")
local records = require("chromux.records")

local M = {}

local function rows(sql, ...)
  local got, why = pg.query({ sql, timeout = 20 }, ...)
  return got or error("PostgreSQL: " .. tostring(why), 0)
end

-- ---- rest ------------------------------------------------------------------------------------------------

local OPEN = "lane IN (SELECT lane FROM journal_lanes WHERE open)"

-- nil when the journal has nothing left to do, else what it still has.
local function unrest()
  local undecided, why = pg.query("SELECT count(*) AS n FROM journal_entries WHERE verdict IS NULL AND " .. OPEN)
  if not undecided then return "PostgreSQL: " .. tostring(why) end
  if undecided[1].n > 0 then return undecided[1].n .. " undecided entries" end
  local behind, reason = pg.query([[SELECT c.lane, c.instance, c.position, l.next - 1 AS head FROM journal_copies c
    JOIN journal_lanes l USING (lane) WHERE l.open AND c.state = 'ready' AND c.position < l.next - 1
    ORDER BY c.lane LIMIT 1]])
  if not behind then return "PostgreSQL: " .. tostring(reason) end
  local b = behind[1]
  return b and string.format("lane %d on %s at %d of %d", b.lane, b.instance, b.position, b.head) or nil
end

-- Waits until it has come to rest: nil, or what it still has to do after that many seconds. each() is called now
-- and then meanwhile.
function M.await_rest(seconds, each)
  local till, why = now() + seconds
  repeat
    why = unrest()
    if not why then return nil end
    each()
    sleep(0.1)
  until now() > till
  return why
end

-- ---- the journal -----------------------------------------------------------------------------------------

local ACTIONS = { create_collection = true, delete_collection = true, update_collection = true }

local function read_entries()
  local out = {}
  for _, r in ipairs(rows([[SELECT lane, n, token, action, rest, verdict, status, convert_from(body, 'UTF8') AS body,
      convert_from(resolved, 'UTF8') AS resolved, convert_from(answer, 'UTF8') AS answer
      FROM (SELECT * FROM journal_entries UNION ALL SELECT * FROM chaos_entries) AS e ORDER BY lane, n]])) do
    local e = { lane = r.lane, n = r.n, action = r.action, verdict = r.verdict, status = r.status, raw = r.body }
    e.body = json.decode(r.body) or {}
    e.resolved = r.resolved and json.decode(r.resolved) or nil
    e.token = r.lane == 0 and r.token:match("^key:(u%d+)$") or r.body:match('"(u%d+)[ "]')
    if not e.token then
      local u = r.body:match('"u":(%d+)')
      e.token = u and "u" .. u or r.token
    end
    if ACTIONS[r.action] then
      local p = json.decode(r.rest) or {}
      local answer = r.answer and json.decode(r.answer)
      e.name = p.name or p.collection
      e.new_name = p.new_name
      e.logical = r.action == "create_collection" and answer and answer.id or p.collection
    end
    out[#out + 1] = e
  end
  return out
end

-- ---- the servers -----------------------------------------------------------------------------------------

local function ask_text(url, body)
  local a, why = fetch { url = url, method = body and "POST" or "GET", body = body, timeout = 20,
    headers = body and { ["Content-Type"] = "application/json" } or nil }
  if not a or a.status ~= 200 then
    error(url .. ": " .. (a and a.status .. " " .. a.body:sub(1, 200) or tostring(why)), 0)
  end
  return a.body
end

local function ask(url, body) return json.decode(ask_text(url, body)) end

M.BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"

-- physical id -> {name=, records= | error=why it can't be read} of one server.
function M.read_server(url)
  local base = url .. M.BASE
  local out = {}
  for _, c in ipairs(ask(base)) do
    local held = { name = c.name }
    local ok, got = pcall(ask, base .. "/" .. c.id .. "/get", '{"include":["documents","metadatas","embeddings"]}')
    if ok then held.records = clients.records_of(got) else held.error = got end
    out[c.id] = held
  end
  return out
end

local WRITES = { add = true, upsert = true, update = true, delete = true }

-- What wrap.c saw of writes of records, below the folder of a round.
function M.read_wire(dir)
  local out = {}
  for _, server in ipairs { "primary", "replica" } do
    local f = io.open(dir .. "/" .. server .. ".wire")
    for line in f and f:lines() or function() end do
      local came, answered, path, status, raw = line:match("^(%S+) (%S+) %S+ POST (%S+) %S+ %-> (%S+) (.*)$")
      local action = path and path:match("/collections/[^/]+/(%a+)$")
      if WRITES[action] then
        local q = { server = server, action = action, raw = raw, marks = {}, came = tonumber(came),
          answered = tonumber(answered), done = status:sub(1, 1) == "2" }
        for u in raw:gmatch('"u":(%d+)') do table.insert(q.marks, "u" .. u) end
        for u in raw:gmatch('"(u%d+) of') do table.insert(q.marks, u) end
        q.body = action == "delete" and json.decode(raw) or {}
        out[#out + 1] = q
      end
    end
    if f then f:close() end
  end
  return out
end

-- Everything, for check.all. servers: name -> url; broken: name -> physical id -> how its files were damaged, nil where
-- none may be.
function M.gather(ops, servers, rebuild_most, broken)
  local h = { ops = ops, rebuild_most = rebuild_most, broken = broken, servers = {}, entries = read_entries() }
  h.collections = rows("SELECT lane, logical, name, deleted FROM journal_collections")
  h.appends = rows("SELECT lane, n, epoch, holder, backend FROM chaos_appends ORDER BY at")
  h.copies = rows([[SELECT c.lane, c.instance, c.physical, c.position, c.state, c.reason, l.next - 1 AS head
    FROM journal_copies c JOIN journal_lanes l USING (lane)]])
  for name, url in pairs(servers) do h.servers[name] = M.read_server(url) end
  return h
end

-- ---- workers ---------------------------------------------------------------------------------------------

local INCLUDE = '{"include":["documents","metadatas","embeddings","uris"]}'

local function hashes_of(servers)
  local out = {}
  for _, c in ipairs(rows([[SELECT c.lane, c.instance, c.physical FROM journal_copies c
      JOIN journal_collections k USING (lane) WHERE NOT k.deleted AND c.state = 'ready']])) do
    out[c.lane] = out[c.lane] or {}
    local text = ask_text(servers[c.instance] .. M.BASE .. "/" .. c.physical .. "/get", INCLUDE)
    out[c.lane][c.instance] = assert(records.hash(text))
  end
  return out
end

-- Everything that workers did, for check_sync.all.
function M.gather_sync(servers)
  local s = { names = {}, hashes = hashes_of(servers) }
  s.jobs = rows([[SELECT j.id, j.kind, j.lane, j.instance, j.state, j.reason, j.records, j.done_records, j.error,
    j.hold_ms, COALESCE(k.deleted, true) AS deleted
    FROM sync_jobs j LEFT JOIN journal_collections k USING (lane) ORDER BY j.id]])
  s.tasks = rows([[SELECT t.id, t.job, t.kind, t.chunk_start_offset AS first, t.chunk_end_offset AS last,
    t.task_status AS status, t.records, t.error_message AS error, convert_from(c.ids, 'UTF8') AS ids
    FROM sync_tasks t LEFT JOIN (SELECT * FROM chaos_chunks UNION ALL SELECT * FROM sync_chunks) c ON c.task = t.id
    ORDER BY t.id]])
  for _, t in ipairs(s.tasks) do t.ids = t.ids and json.decode(t.ids) end
  s.completed = rows("SELECT task, job, epoch FROM chaos_completed")
  for instance, url in pairs(servers) do
    s.names[instance] = {}
    for _, c in ipairs(ask(url .. M.BASE)) do table.insert(s.names[instance], c.name) end
  end
  return s
end

-- Does a copy that may be read have errors instead of records?
function M.unreadable(h)
  local gone = {}
  for _, c in ipairs(h.collections) do gone[c.lane] = c.deleted end
  for _, c in ipairs(h.copies) do
    local held = h.servers[c.instance][c.physical]
    if c.state == "ready" and not gone[c.lane] and held and held.error then return true end
  end
  return false
end

return M
