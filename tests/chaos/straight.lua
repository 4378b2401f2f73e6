-- straight.lua: is the model right about Chroma? One client, one real server, no chromux: what the client was told
-- is taken for a journal, and the whole check must find nothing.
--
--   build/chromux script tests/chaos/straight.lua [--seed S] [--seconds N]
package.path = (arg[0]:match("^(.*)/[^/]*$") or ".") .. "/?.lua;" .. package.path
local process = require("process")
local Rng = require("rng")
local Clients = require("clients")
local History = require("history")
local Check = require("check")

local options = { seed = os.time() % 1000000, seconds = 5 }
for i = 1, #arg, 2 do options[arg[i]:match("^%-%-(%a+)$")] = tonumber(arg[i + 1]) end

local dir = process.temporary()
local rng = Rng.new(options.seed, "straight")
local port = process.free_port(Rng.new(process.pid(), "port"))
local url = "http://127.0.0.1:" .. port
local server = process.new { name = "server", log = dir .. "/log", argv = { "scripts/chroma.sh", "start",
  tostring(port), dir .. "/data" }, ready = function()
    local a = fetch { url = url .. "/api/v2/heartbeat", timeout = 1 }
    return a and a.status == 200
  end }

-- The journal that this client's answers would make.
local function journal_of(ops)
  local entries, collections, copies, heads, lanes, names = {}, {}, {}, { [0] = 0 }, {}, {}
  for _, op in ipairs(ops) do
    local lane = op.class == "catalogue" and 0 or op.class == "write" and lanes[op.logical]
    local existing = op.action == "create_collection" and op.seen and lanes[op.seen]
    if lane and op.outcome == "ack" and not existing then
      heads[lane] = heads[lane] + 1
      op.lane, op.n = lane, heads[lane]
      entries[#entries + 1] = { lane = lane, n = op.n, action = op.action, verdict = "applied", token = op.token,
        status = op.status, raw = op.raw, body = op.body, name = op.name, new_name = op.new_name,
        logical = op.seen or op.logical }
      if op.action == "create_collection" then
        local id = #collections + 1
        collections[id] = { lane = id, logical = op.seen, name = op.name }
        lanes[op.seen], heads[id], names[op.name] = id, 0, collections[id]
      elseif op.action == "delete_collection" then
        names[op.name].deleted, names[op.name] = true, nil
      elseif op.action == "update_collection" then
        local c = collections[lanes[op.logical]]
        if names[c.name] == c then names[c.name] = nil end
        c.name, names[op.new_name] = op.new_name, c
      end
    end
  end
  for id, head in pairs(heads) do
    copies[#copies + 1] = { lane = id, instance = "server", position = head, head = head, state = "ready",
      physical = id == 0 and "" or collections[id].logical }
  end
  return entries, collections, copies
end

server:start()
server:await()
local ops = {}
local workload = Clients.new { urls = { url }, ops = ops, think = 0 }
workload:found(rng, 3)
workload:run(rng, now() + options.seconds)
local entries, collections, copies = journal_of(ops)
local violations = Check.all { ops = ops, entries = entries, collections = collections, copies = copies,
  servers = { server = History.read_server(url) } }
server:kill()
os.execute("rm -rf " .. dir)
local told = {}
for _, op in ipairs(ops) do
  local k = op.action .. " " .. tostring(op.status)
  told[k] = (told[k] or 0) + 1
end
for k, n in pairs(told) do print(k, n) end
for _, text in ipairs(violations) do print("    " .. text) end
print(string.format("seed %d: %d operations, %d violations", options.seed, #ops, #violations))
os.exit(#violations == 0 and 0 or 1)
