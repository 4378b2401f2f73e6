-- The client of `make bench-sync`, run by `chromux script`.
--
--   sync.lua fill PORT COLLECTIONS RECORDS    collections of 384 dimensions, in turn l2, cosine and ip, with three
--                                             kinds of metadata; prints the seconds it took
--   sync.lua plain FROM TO [SECONDS]          what a script without chromux does: get and add, 1,000 records at a time,
--                                             for so long at most; prints "records seconds"
--   sync.lua floor FROM TO RECORDS N          adds alone, N at once, of bodies that are ready; prints "records seconds"
--   sync.lua read PORT                        reads every record once; prints "records seconds"
--   sync.lua equal A B                        compares all records of both servers; prints "records differing"
--   sync.lua load PORT FILE                   50 writes a second and as many reads until FILE is gone; prints
--                                             "requests errors p50 p99 longest", then p99 of reads and of writes;
--                                             milliseconds
local records = require("chromux.records")

local DB = "/api/v2/tenants/default_tenant/databases/default_database/collections"
local DIMENSIONS, BATCH = 384, 500

local function call(port, method, path, body, seconds)
  local text = type(body) == "table" and json.encode(body) or body
  local a, why = fetch { url = "http://127.0.0.1:" .. port .. DB .. path, method = method, body = text,
    headers = text and { ["Content-Type"] = "application/json" } or nil, timeout = seconds or 60,
    max = 256 * 1024 * 1024 }
  if not a then return nil, why end
  if a.status >= 300 then
    return nil, method .. " " .. path .. " answered " .. a.status .. ": " .. a.body:sub(1, 200)
  end
  return a.body
end

local function must(value, why)
  if value == nil then error(why, 0) end
  return value
end

local function ask(...) return must(call(...)) end

local function vector()
  local t = {}
  for i = 1, DIMENSIONS do t[i] = string.format("%.7g", math.random() * 2 - 1) end
  return "[" .. table.concat(t, ",") .. "]"
end

local KINDS = {
  function(i) return { text = "passage " .. i, source = "a" .. i % 7 } end,
  function(i) return { page = i, whole = i % 2 == 0 } end,
  function(i) return { score = i / 3, language = "en", part = i % 11 } end,
}

local function batch(kind, from, to)
  local ids, vectors, documents, metadatas = {}, {}, {}, {}
  for i = from, to do
    ids[#ids + 1] = string.format("%q", "r" .. i)
    vectors[#vectors + 1] = vector()
    documents[#documents + 1] = i % 5 == 0 and json.null or "document " .. i
    metadatas[#metadatas + 1] = KINDS[kind](i)
  end
  return string.format('{"ids":[%s],"embeddings":[%s],"documents":%s,"metadatas":%s}', table.concat(ids, ","),
    table.concat(vectors, ","), json.encode(documents), json.encode(metadatas))
end

-- Runs task(1) to task(count), `parallel` at once.
local function all_of(count, parallel, task)
  local workers = {}
  for w = 1, parallel do
    workers[w] = spawn(function()
      for i = w, count, parallel do task(i) end
    end)
  end
  for _, w in ipairs(workers) do must(w:wait() or nil, "a request failed") end
end

local SPACES = { "l2", "cosine", "ip" }

local function fill(port, collections, count)
  local began, tasks = now(), {}
  for c = 1, collections do
    local space = SPACES[(c - 1) % 3 + 1]
    local made = must(json.decode(ask(port, "POST", "", { name = "bench" .. c, configuration = {
      hnsw = { space = space } } })))
    for from = 1, count, BATCH do
      tasks[#tasks + 1] = { made.id, (c - 1) % 3 + 1, from, math.min(count, from + BATCH - 1) }
    end
  end
  all_of(#tasks, 4, function(i)
    local t = tasks[i]
    ask(port, "POST", "/" .. t[1] .. "/add", batch(t[2], t[3], t[4]), 120)
  end)
  print(string.format("%.2f", now() - began))
end

local function listed(port) return must(json.decode(ask(port, "GET", "?limit=10000"))) end

local ALL = '"include":["documents","metadatas","embeddings","uris"]'

local function page(port, id, offset, most)
  return ask(port, "POST", "/" .. id .. "/get", string.format('{"limit":%d,"offset":%d,%s}', most, offset, ALL))
end

local function made_there(to, c)
  return must(json.decode(ask(to, "POST", "", { name = c.name, metadata = c.metadata,
    configuration = c.configuration_json }))).id
end

local function plain(from, to, seconds)
  local began, n = now(), 0
  local till = began + (tonumber(seconds) or math.huge)
  for _, c in ipairs(listed(from)) do
    local there, offset = made_there(to, c), 0
    repeat
      local got = must(json.decode(page(from, c.id, offset, 1000)))
      if #got.ids > 0 then
        ask(to, "POST", "/" .. there .. "/add", { ids = got.ids, embeddings = got.embeddings,
          documents = got.documents, metadatas = got.metadatas, uris = got.uris })
      end
      offset, n = offset + 1000, n + #got.ids
    until #got.ids < 1000 or now() > till
    if now() > till then break end
  end
  print(string.format("%d %.2f", n, now() - began))
end

local function floor_of(from, to, count, parallel)
  local bodies, n = {}, 0
  for _, c in ipairs(listed(from)) do
    local there, offset = n < count and made_there(to, c), 0
    while n < count do
      local body, got = records.add_body(page(from, c.id, offset, 1000), { base64 = true })
      if not body or got == 0 then break end
      bodies[#bodies + 1] = { there, body }
      offset, n = offset + 1000, n + got
    end
  end
  local began = now()
  all_of(#bodies, parallel, function(i) ask(to, "POST", "/" .. bodies[i][1] .. "/add", bodies[i][2], 120) end)
  print(string.format("%d %.2f", n, now() - began))
end

local function read(port)
  local began, n = now(), 0
  for _, c in ipairs(listed(port)) do
    local offset, got = 0
    repeat
      got = #records.ids(page(port, c.id, offset, 1000))
      offset, n = offset + 1000, n + got
    until got < 1000
  end
  print(string.format("%d %.2f", n, now() - began))
end

local function ids_of(port, id) return records.ids(ask(port, "POST", "/" .. id .. "/get", '{"include":[]}')) end

local function equal(a, b)
  local n, bad, there = 0, 0, {}
  for _, c in ipairs(listed(b)) do there[c.name] = c end
  for _, c in ipairs(listed(a)) do
    local other = there[c.name]
    there[c.name] = nil
    if not other then
      bad = bad + 1
      io.stderr:write("no collection ", c.name, "\n")
    else
      local ids = ids_of(a, c.id)
      if #ids ~= #ids_of(b, other.id) then bad = bad + 1 end
      for from = 1, #ids, 1000 do
        local part = {}
        for i = from, math.min(#ids, from + 999) do part[#part + 1] = ids[i] end
        local body = '{"ids":' .. json.encode(part) .. "," .. ALL .. "}"
        local cosine = (c.configuration_json.hnsw or {}).space == "cosine"
        local r = must(records.compare(ask(a, "POST", "/" .. c.id .. "/get", body), ask(b, "POST", "/" .. other.id
          .. "/get", body), { cosine = cosine, ulps = 8 }))
        n, bad = n + #part, bad + #r.changed + #r.only_a + #r.only_b + #r.nan
      end
    end
  end
  for name in pairs(there) do
    if not name:find("^chromux%-") then
      bad = bad + 1
      io.stderr:write("one collection more: ", name, "\n")
    end
  end
  print(n, bad)
  return bad == 0 and 0 or 1
end

local RATE = 50

local function load(port, file)
  local all, errors, times, reads, writes, n = listed(port), 0, {}, {}, {}, 0
  local function timed(kind, ...)
    local sent = now()
    local fine, why = call(...)
    local took = (now() - sent) * 1000
    times[#times + 1] = took
    table.insert(kind, took)
    if not fine then
      errors = errors + 1
      io.stderr:write(tostring(why), "\n")
    end
  end
  local open, flying = io.open(file), 0
  local began = now()
  while open do
    open:close()
    n = n + 1
    local c = all[n % #all + 1]
    flying = flying + 2
    local kind = n % 3
    spawn(function()
      local id = "w" .. n % 2000
      if kind == 2 then
        timed(writes, port, "POST", "/" .. c.id .. "/delete", { ids = { id } }, 30)
      else
        timed(writes, port, "POST", "/" .. c.id .. "/upsert", '{"ids":["' .. id .. '"],"embeddings":[' .. vector()
          .. '],"documents":["written ' .. n .. '"]}', 30)
      end
      flying = flying - 1
    end)
    spawn(function()
      timed(reads, port, "POST", "/" .. c.id .. "/query", '{"query_embeddings":[' .. vector()
        .. '],"n_results":5}', 30)
      flying = flying - 1
    end)
    sleep(math.max(0, began + n / RATE - now()))
    open = io.open(file)
  end
  while flying > 0 do sleep(0.05) end
  local function quantile(list, q)
    table.sort(list)
    return list[math.ceil(#list * q)] or 0
  end
  print(string.format("%d %d %.1f %.1f %.1f %.1f %.1f", #times, errors, quantile(times, 0.5), quantile(times, 0.99),
    quantile(times, 1), quantile(reads, 0.99), quantile(writes, 0.99)))
end

local what = table.remove(arg, 1)
local run = ({ fill = function(p, c, n) fill(p, tonumber(c), tonumber(n)) end, plain = plain, read = read,
  floor = function(a, b, n, parallel) floor_of(a, b, tonumber(n), tonumber(parallel)) end, equal = equal,
  load = load })[what]
if not run then
  io.stderr:write("usage: sync.lua fill|plain|floor|read|equal|load ...\n")
  os.exit(2)
end
local ok, code = pcall(run, unpack(arg))
if not ok then
  io.stderr:write(tostring(code), "\n")
  os.exit(1)
end
os.exit(code or 0)
