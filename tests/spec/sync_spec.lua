-- Sync's parts that need no server: lists of ids as text (lua/lb/sync_ids.lua), batch sizes (sync_batch.lua),
-- processes, memory and control groups (process.lua).
package.path = "lua/?.lua;" .. package.path

local SETTINGS = { DEFAULT_BATCH_SIZE = 1000, MAX_MEMORY_MB = 400 }
local function room() return { free_mb = 1000 } end

describe("lists of ids", function()
  local Ids = require("lb.sync_ids")

  local function answer(...)
    return '{"ids":[' .. table.concat({ ... }, ",") .. '],"embeddings":null,"documents":null,"include":[]}'
  end

  local function chunks(text, size)
    local out = {}
    for part, first, last in Ids.cut(text, size) do out[#out + 1] = { part, first, last } end
    return out
  end

  it("are cut where ids end, whatever the ids are", function()
    local odd = { '"a"', '"b,\\"]"', '"c\\\\"', '"\\\\\\""', '""' }
    local text = answer(unpack(odd))
    assert.same({ { '["a","b,\\"]"]', 0, 1 }, { '["c\\\\","\\\\\\""]', 2, 3 }, { '[""]', 4, 4 } }, chunks(text, 2))
    assert.equal(5, Ids.count(text))
    assert.equal(1, #chunks(text, 100))
  end)

  it("may be empty", function()
    assert.same({}, chunks(answer(), 10))
    assert.equal(0, Ids.count(answer()))
  end)

  it("are refused when they are no such answer", function()
    local wrong = { "", "{}", '{"ids":null}', '{"ids":[1]}', '{"ids":["a"', '{"ids":["a" ,"b"]}', '{"ids":["a\\"' }
    for _, text in ipairs(wrong) do
      assert.has_error(function() Ids.count(text) end, nil, text)
    end
  end)

  it("tell what only the second has", function()
    assert.same({}, Ids.extras(answer('"a"', '"b"'), answer('"b"')))
    assert.same({ '"c"', '"d"' }, Ids.extras(answer('"a"', '"b"'), answer('"c"', '"b"', '"d"')))
  end)

  it("are compared in parts when they are long", function()
    local a, b, each = {}, {}, string.rep("x", 1000)
    for i = 1, 20000 do
      a[i] = '"' .. each .. i .. '"'
      b[i] = a[i]
    end
    table.insert(b, 1, '"more"')
    table.insert(b, '"' .. each .. '0"')
    a, b = '{"ids":[' .. table.concat(a, ",") .. "]}", '{"ids":[' .. table.concat(b, ",") .. "]}"
    assert.is_true(#a > 16 * 1024 * 1024)
    local extras = Ids.extras(a, b)
    table.sort(extras)
    assert.same({ '"more"', '"' .. each .. '0"' }, extras)
  end)
end)

describe("a process", function()
  local process = require("lb.process")
  local NOBODY = 4194303 -- no machine gives so high a pid

  local function named(pid, began)
    return (process.name():gsub("/%d+/%d+$", "/" .. pid .. "/" .. (began or 1)))
  end

  it("lives, and one of its pid that began at another time is dead", function()
    assert.is_false(process.dead(process.name()))
    local pid = process.name():match("/(%d+)/%d+$")
    assert.is_true(process.dead(named(pid)))
    assert.is_true(process.dead(named(NOBODY)))
  end)

  it("of another boot or another namespace of pids is never said to be dead", function()
    local name = named(NOBODY)
    assert.is_truthy(name:find(":pid:%[%d+%]/"))
    assert.is_false(process.dead((name:gsub("pid:%[%d+%]", "pid:[1]"))))
    assert.is_false(process.dead("00000000-0000-0000-0000-000000000000" .. name:match(":.*$")))
    assert.is_false(process.dead(name:match("^[^:]+") .. name:match("/.*$")))
    assert.is_false(process.dead("?/1/1"))
  end)

  it("that has ended and was not waited for is dead", function()
    local child = io.popen("echo $$; exec true")
    local pid, till, line = child:read("*l"), os.time() + 10, nil
    while not (line and line:find("%) Z ")) and os.time() < till do
      local f = assert(io.open("/proc/" .. pid .. "/stat"))
      line = f:read("*l")
      f:close()
    end
    local dead = process.dead(named(pid, line:match("%) " .. ("%S+ "):rep(19) .. "(%d+)")))
    child:close()
    assert.is_true(dead)
  end)
end)

describe("a machine's memory", function()
  local process = require("lb.process")
  local root

  local function file(path, text)
    os.execute("mkdir -p '" .. (root .. path):match("^(.*)/") .. "'")
    local f = assert(io.open(root .. path, "w"))
    f:write(text)
    f:close()
  end

  before_each(function()
    root = os.tmpname()
    os.remove(root)
    file("/proc/meminfo", "MemTotal:  4096000 kB\nMemAvailable:  2048000 kB\n")
  end)

  after_each(function() os.execute("rm -rf '" .. root .. "'") end)

  it("is limited by a group of version 2, of which file pages are not counted", function()
    file("/proc/self/cgroup", "0::/a/b\n")
    file("/sys/fs/cgroup/a/b/memory.max", "419430400\n")
    file("/sys/fs/cgroup/a/b/memory.current", "314572800\n")
    file("/sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 104857600\n")
    assert.same({ limit_mb = 400, free_mb = 200 }, process.room(root))
  end)

  it("is limited by a group of version 1", function()
    file("/proc/self/cgroup", "5:cpu:/x\n3:hugetlb,memory:/m\n0::/\n")
    file("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "104857600\n")
    file("/sys/fs/cgroup/memory/m/memory.usage_in_bytes", "52428800\n")
    file("/sys/fs/cgroup/memory/m/memory.stat", "inactive_file 1\ntotal_inactive_file 10485760\n")
    assert.same({ limit_mb = 100, free_mb = 60 }, process.room(root))
  end)

  it("is limited by the root that a container shows of its group", function()
    file("/proc/self/cgroup", "0::/not/shown\n")
    file("/sys/fs/cgroup/memory.max", "104857600\n")
    file("/sys/fs/cgroup/memory.current", "0\n")
    file("/sys/fs/cgroup/memory.stat", "")
    assert.equal(100, process.room(root).limit_mb)
  end)

  it("is not limited where nothing says so", function()
    assert.same({ free_mb = 2000 }, process.room(root))
    file("/proc/self/cgroup", "0::/\n")
    file("/sys/fs/cgroup/memory.max", "max\n")
    assert.same({ free_mb = 2000 }, process.room(root))
  end)
end)

describe("batches without a policy", function()
  local Batch = require("lb.sync_batch")

  local function sample(t)
    return setmetatable(t, { __index = { batch = 1000, least = 100, most = 1000, records = 1000, latency = 0.5,
      free_mb = 300, used_share = 0.2 } })
  end

  it("are a quarter, at most 100, below 50 MB of free memory, and half, at most 500, below 100", function()
    assert.equal(100, Batch.decide(sample { free_mb = 49 }))
    assert.equal(50, Batch.decide(sample { free_mb = 49, most = 200, batch = 200 }))
    assert.equal(500, Batch.decide(sample { free_mb = 99 }))
    assert.equal(1000, Batch.decide(sample { free_mb = 100 }))
  end)

  it("are halved down to 100 while more than 90 % are used", function()
    assert.equal(500, Batch.decide(sample { used_share = 0.95 }))
    assert.equal(100, Batch.decide(sample { used_share = 0.95, batch = 150 }))
  end)

  it("are halved when they are refused or slow, and grow back", function()
    assert.equal(500, Batch.decide(sample { refused = "429" }))
    assert.equal(500, Batch.decide(sample { refused = "503" }))
    assert.equal(50, Batch.decide(sample { refused = "413", records = 100 }))
    assert.equal(500, Batch.decide(sample { latency = 9 }))
    assert.equal(625, Batch.decide(sample { batch = 500 }))
    assert.equal(1000, Batch.decide(sample { batch = 900 }))
  end)

  it("are bounded by bytes, whatever the records are", function()
    local batch = Batch.new(SETTINGS, room)
    assert.equal(100, batch:ids(nil))
    assert.equal(1000, batch:ids(100))
    assert.equal(4, batch:ids(1024 * 1024))
    assert.equal(1, batch:ids(1e9))
    assert.equal(24 * 1024 * 1024, batch:answer_most())
  end)

  it("are bounded by a share of the memory that is allowed", function()
    local batch = Batch.new({ DEFAULT_BATCH_SIZE = 1000, MAX_MEMORY_MB = 64 }, room)
    assert.equal(67, batch:ids(10000))
    assert.equal(4 * 1024 * 1024, batch:answer_most())
  end)

  it("shrink below what the server found too large, whatever the policy says", function()
    local batch = Batch.new(SETTINGS, room)
    package.loaded["chromux.policy"] = { call = function() return 1000 end }
    batch:note { records = 80, bytes = 1e6, latency = 1, refused = "413" }
    package.loaded["chromux.policy"] = nil
    assert.equal(40, batch.batch)
    assert.is_true(batch.peak_mb > 0)
  end)
end)

describe("how clients fare", function()
  local saved, t = {}, 1000
  local GLOBALS = { "now", "json", "pg", "spawn", "sleep", "log" }
  local STAND_INS = { "chromux.copies", "chromux.usage", "lb.journal", "lb.sync_clients" }

  before_each(function()
    for _, name in ipairs(GLOBALS) do saved[name] = rawget(_G, name) end
    for _, name in ipairs(STAND_INS) do saved[name] = package.loaded[name] or false end
    t = 1000
    rawset(_G, "now", function() return t end)
    rawset(_G, "json", require("cjson.safe"))
    package.loaded["lb.sync_load"] = nil
  end)
  after_each(function()
    for _, name in ipairs(GLOBALS) do rawset(_G, name, saved[name]) end
    for _, name in ipairs(STAND_INS) do package.loaded[name] = saved[name] or nil end
    package.loaded["lb.sync_load"] = nil
  end)

  it("is as the balancer says whose clients wait longest, compared with what they are used to", function()
    local load = require("lb.sync_load").new()
    assert.same({ told = 0 }, load:figures())
    assert.equals("here", load:clients())
    load:hear('{"balancer":"a","requests":10,"waits":0.02,"usual":0.01}')
    load:hear('{"balancer":"b","requests":5,"waits":0.03,"usual":0.02}')
    assert.same({ requests = 15, waits = 0.02, usual = 0.01, told = 2 }, load:figures())
    load:hear('{"balancer":"a","requests":0}')
    assert.same({ requests = 5, waits = 0.03, usual = 0.02, told = 3 }, load:figures())
    t = t + 16
    assert.same({ told = 3 }, load:figures())
    assert.equals("here", load:clients())
  end)

  it("is not that they are gone before none has asked for a minute", function()
    local load = require("lb.sync_load").new()
    load:hear('{"balancer":"a","requests":0}')
    assert.equals("gone", load:clients())
    load:hear('{"balancer":"a","requests":0.5,"waits":0.02}')
    assert.equals("here", load:clients())
    for told = 3, 21 do -- 57 s
      t = t + 3
      load:hear('{"balancer":"a","requests":0}')
      assert.same({ requests = 0.5, waits = 0, told = told }, load:figures())
      assert.equals("away", load:clients())
    end
    t = t + 3
    assert.equals("gone", load:clients())
  end)

  it("is not read from what is no such message", function()
    local load = require("lb.sync_load").new()
    for _, text in ipairs { "", "x", "[]", "{}", '{"requests":"1"}', '{"requests":-1}' } do load:hear(text) end
    load:hear(nil)
    assert.same({ told = 0 }, load:figures())
    load:hear('{"requests":1,"waits":"long"}')
    assert.same({ requests = 1, told = 1 }, load:figures())
  end)

  -- A balancer: a look at the tasks of `rows` each second, with so many requests of so many seconds before it.
  local function balancer()
    local b = { counted = { 0, 0, 0 }, syncing = {}, told = {}, servers = { a = {}, b = {} } }
    local routine, rows
    package.loaded["chromux.copies"] = { syncing = function(name, n) b.syncing[name] = n end }
    package.loaded["chromux.usage"] = {
      clients = function() return { unpack(b.counted) } end,
      quantiles = function(counted, before) -- three bounds: 0.01, 0.1 and 1 s
        for i = 3, 1, -1 do
          if counted[i] > before[i] then return 10 ^ (i - 3) end
        end
      end,
    }
    package.loaded["lb.journal"] = { state = { phase = "on", name = "me",
      servers = { by_name = b.servers } } }
    package.loaded["lb.sync_clients"] = nil
    rawset(_G, "log", { error = error })
    rawset(_G, "spawn", function(fn) routine = coroutine.create(fn) end)
    rawset(_G, "sleep", function(seconds)
      t = t + seconds
      coroutine.yield()
    end)
    rawset(_G, "pg", { connection = function()
      return { query = function(_, statement, _, payload)
        if statement[1]:find("pg_notify", 1, true) then
          b.told[#b.told + 1] = require("cjson.safe").decode(payload)
          return {}
        end
        return rows
      end }
    end })
    require("lb.sync_clients").start()
    function b.look(seen, bucket, requests)
      rows = seen
      if bucket then b.counted[bucket] = b.counted[bucket] + requests end
      assert(coroutine.resume(routine))
    end
    return b
  end

  it("is told to workers while there are tasks, with how it was before", function()
    local b = balancer()
    for _ = 1, 20 do b.look({}, 1, 10) end
    assert.same({}, b.told)
    for _ = 1, 7 do b.look({ { instance = "b", writing = 2 } }, 2, 10) end
    assert.equal(3, #b.told)
    assert.same({ balancer = "me", requests = 10, waits = 0.1, usual = 0.01 }, b.told[1])
    assert.same({ balancer = "me", requests = 10, waits = 0.1, usual = 0.01 }, b.told[3])
    for _ = 1, 9 do b.look({ { instance = "b", writing = 2 } }) end
    assert.same({ balancer = "me", requests = 0, usual = 0.01 }, b.told[#b.told])
    local n = #b.told
    b.look({})
    b.look({})
    b.look({})
    assert.equal(n, #b.told)
  end)

  it("is not known when nobody asked for anything before", function()
    local b = balancer()
    for _ = 1, 20 do b.look({}, 1, 1) end -- too few
    b.look({ { instance = "b", writing = 0 } }, 2, 1)
    assert.is_nil(b.told[1].usual)
    assert.equal(0.1, b.told[1].waits)
  end)

  it("is not measured anew while sync works, or just after", function()
    local b = balancer()
    for _ = 1, 20 do b.look({}, 1, 10) end
    for _ = 1, 3 do
      for _ = 1, 5 do b.look({ { instance = "b", writing = 0 } }, 3, 10) end
      for _ = 1, 9 do b.look({}, 3, 10) end
    end
    b.look({ { instance = "b", writing = 0 } })
    assert.equal(0.01, b.told[#b.told].usual)
  end)

  it("was as in the best seconds before, whatever was loaded then", function()
    local b = balancer()
    for _ = 1, 30 do b.look({}, 3, 10) end
    for _ = 1, 21 do b.look({}, 1, 10) end
    for _ = 1, 200 do b.look({}, 3, 10) end
    b.look({ { instance = "b", writing = 0 } })
    assert.equal(0.01, b.told[1].usual)
  end)

  it("comes with the figure of who is written to, which outlasts a pause between two tasks", function()
    local b = balancer()
    b.look({ { instance = "a", writing = 0 }, { instance = "b", writing = 2 } })
    assert.same({ b = 2 }, b.syncing)
    assert.is_nil(b.servers.a.filled_at)
    for _ = 1, 3 do b.look({}) end
    assert.same({ b = 2 }, b.syncing)
    assert.equal(t - 1, b.servers.b.filled_at) -- as the journal knows it
    b.look(nil) -- PostgreSQL is away
    assert.same({ b = 0 }, b.syncing)
  end)
end)
