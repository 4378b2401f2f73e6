-- testkit.lua: fake nodes, clock and random numbers for specs of policies.
--
-- load() runs a policy file under plain busted with an `lb` in Lua; native() runs it in a real
-- policy VM with its limits, where there is one (under `chromux test`). Both give a table with the
-- policy's function, called as the core calls it. main() is `chromux test`.
local contract = require("lb.contract")

local M = {}

-- ---- what policies are given ------------------------------------------------------------------
-- Fields as policies/README.md lists them; a spec compares the two.

local function with(defaults, given)
  local t = {}
  for k, v in pairs(defaults) do
    t[k] = v
  end
  for k, v in pairs(given or {}) do
    assert(defaults[k] ~= nil, "no such field: " .. tostring(k))
    t[k] = v
  end
  return t
end

-- node("a", {weight = 2})
function M.node(name, given)
  local n = with({
    name = name,
    role = "replica",
    priority = 100,
    weight = 1,
    state = "up",
    inflight = 0,
    queued = 0,
    maxconn = 0,
    ewma_ms = 0,
    fails = 0,
    behind = 0,
    requests = 0,
    syncing = 0,
  }, given)
  return n
end

-- nodes("a", "b", "c"): the first is the primary, priorities fall.
function M.nodes(...)
  local list = {}
  for i, name in ipairs({ ... }) do
    list[i] = M.node(name, {
      role = i == 1 and "primary" or "replica",
      priority = 100 - 10 * (i - 1),
    })
  end
  return list
end

-- A read of records, unless told otherwise.
function M.request(given)
  local r = with({
    class = "read",
    action = "query",
    method = "POST",
    route = "/api/v2/tenants/{tenant}/databases/{database}/collections/{uuid}/query",
    reads = true,
    tenant = "default_tenant",
    database = "default_database",
    collection = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
    client = "192.0.2.1",
    session = "192.0.2.1",
    bytes = 0,
    attempt = 1,
    tried = {},
    last_error = "",
  }, given)
  return r
end

function M.write(given)
  local r = M.request(given)
  r.class, r.action, r.reads = "write", "add", false
  return r
end

function M.subject(given)
  local s = with({
    kind = "instance",
    name = "a",
    collection = "",
    state = "up",
    up = true,
    since = 60,
  }, given)
  s.up = s.state ~= "down"
  return s
end

function M.history(given)
  return with({
    fails = 0,
    passes = 0,
    connect_fails = 0,
    timeouts = 0,
    resets = 0,
    errors_5xx = 0,
    oks = 0,
    busy = 0,
    last_error = "",
  }, given)
end

-- make("sample", {batch = 10}): what sync.lua, upgrade.lua, notify.lua and slack.lua are given
-- (lb.contract): typical but for these fields; optional fields are there only if named.
M.make = contract.make
-- A window in which all was measured.
M.window = contract.window
-- event("server_down", {at = 5}): that kind, as it is raised first.
M.event = contract.event
-- fits("sample", t) -> true | nil, why: for specs of those who ask policies.
M.fits = contract.fits

-- ---- lb in Lua ----------------------------------------------------------------------------------

-- The settings that the shipped policies read; options.settings adds and overrides.
local SETTINGS = {
  LOAD_BALANCE_STRATEGY = "write_primary",
  FAILURE_THRESHOLD = 3,
  SUCCESS_THRESHOLD = 2,
  DEPLOYMENT_NAME = "chromux",
  PUBLIC_URL = "",
}

local function make_settings(given)
  local t = {}
  for k, v in pairs(SETTINGS) do
    t[k] = v
  end
  for k, v in pairs(given or {}) do
    t[k] = v
  end
  return setmetatable(t, {
    __index = function(_, name)
      error("the spec gives no setting " .. tostring(name) .. ": options.settings", 2)
    end,
  })
end

-- The same sums as the core's (Jenkins' one-at-a-time).
local function hash(text)
  local bit = require("bit")
  local h = 0
  assert(#text <= 65536, "lb.hash takes at most 65536 bytes")
  for i = 1, #text + 4 do
    h = bit.tobit(h + (text:byte(i) or 0))
    h = bit.tobit(h + bit.lshift(h, 10))
    h = bit.bxor(h, bit.rshift(h, 6))
  end
  h = bit.tobit(h + bit.lshift(h, 3))
  h = bit.bxor(h, bit.rshift(h, 11))
  h = bit.tobit(h + bit.lshift(h, 15))
  return h % 2 ^ 32
end

-- Park and Miller's minimal standard generator: repeatable, and good enough to pick nodes.
local function generator(seed)
  local state = seed % 2147483646 + 1
  return function()
    state = state * 16807 % 2147483647
    return (state - 1) / 2147483646
  end
end

-- lb for load(): `now` may be set; lb.advance(seconds) moves it; lb.chances, a list of numbers in
-- [0, 1), comes out of lb.random() before the generator's.
local function make_lb(options)
  local lb = {
    now = options.now or 1000,
    settings = make_settings(options.settings),
    chances = {},
    hash = hash,
  }
  local next_random = generator(options.seed or 1)
  local current = {}

  function lb.advance(seconds)
    lb.now = lb.now + seconds
  end

  function lb.random(n)
    local r = table.remove(lb.chances, 1) or next_random()
    return n and 1 + math.floor(r * n) or r
  end

  function lb.swrr(nodes)
    local best, sum = nil, 0
    for _, node in ipairs(nodes) do
      assert(node.weight > 0, "no weight over 0")
      current[node.name] = (current[node.name] or 0) + node.weight
      sum = sum + node.weight
      if not best or current[node.name] > current[best.name] then
        best = node
      end
    end
    if best then
      current[best.name] = current[best.name] - sum
    end
    return best
  end
  return lb
end

-- ---- running a policy ---------------------------------------------------------------------------

local ALLOWED = {
  "assert", "bit", "coroutine", "error", "getmetatable", "ipairs", "math", "next", "pairs", "pcall",
  "print", "rawequal", "rawget", "rawset", "select", "setmetatable", "string", "table", "tonumber",
  "tostring", "type", "unpack", "xpcall", "_VERSION",
}

-- As the core: these globals and no others.
local function environment(lb)
  local env = { lb = lb, os = { clock = os.clock, date = os.date, time = os.time } }
  for _, name in ipairs(ALLOWED) do
    env[name] = _G[name] or package.loaded[name]
  end
  env.bit = require("bit")
  return setmetatable(env, {
    __index = function(_, name)
      error("uses the global '" .. tostring(name) .. "', which policies do not have", 2)
    end,
    __newindex = function(_, name)
      error("sets the global '" .. tostring(name) .. "', which policies do not have", 2)
    end,
  })
end

-- The name by which the core knows the file; from options.as, or the name of a file that is called as
-- a shipped one.
local function name_of(path, options)
  return options.as or path:match("(%w+)%.lua$") or ""
end

-- The functions of a policy that the contract knows, by their name in the file.
local function questions(as)
  local list = {}
  for _, name in ipairs(contract.questions) do
    local file, fn = name:match("^(%w+)%.(%w+)$")
    if file == as then
      list[fn] = name
    end
  end
  return list
end

-- Answers are checked as the core does.
local function checked(name, fn)
  return function(...)
    local a, b, c = fn(...)
    local wrong = contract.check(name, a, b, c, ...)
    if wrong then
      error("wrong_answer: " .. wrong, 0)
    end
    return a, b, c
  end
end

-- load(path, {settings =, seed =, now =, as =}): the table that the file returns, and its lb.
function M.load(path, options)
  options = options or {}
  local lb = make_lb(options)
  local chunk = assert(loadfile(path))
  setfenv(chunk, environment(lb))
  local policy = chunk()
  assert(type(policy) == "table", path .. ": returns no table of functions")
  for fn, name in pairs(questions(name_of(path, options))) do
    policy[fn] = checked(name, assert(policy[fn], path .. ": has no function " .. fn .. "()"))
  end
  return policy, lb
end

-- The functions that run a file in a policy VM, or nil under plain busted.
function M.native_kit()
  local ok, native = pcall(require, "lb.testkit.native")
  return ok and native or nil
end

-- native(path, {settings =, seed =, as =}): a table with the policy's functions, which throw "kind:
-- error" when the core would take its fallback. nil, "reason" when there is no policy VM.
function M.native(path, options)
  options = options or {}
  local native = M.native_kit()
  if not native then
    return nil, "there is a policy VM only under `chromux test`"
  end
  local as = name_of(path, options)
  local handle = assert(native.open(path, as, options.settings, options.seed))
  local policy = { now = options.now or 1000 }
  local function answer(good, a, b, c)
    if not good then
      error(a .. ": " .. b, 0)
    end
    return a, b, c
  end
  if as == "route" then
    function policy.route(req, nodes)
      return answer(handle:route(req, nodes, policy.now))
    end
  elseif as == "failover" then
    function policy.judge(subject, history)
      return answer(handle:judge(subject, history, policy.now))
    end
  end
  for fn, name in pairs(questions(as)) do
    policy[fn] = function(...)
      return answer(handle:call(name, policy.now, ...))
    end
  end
  return policy
end

-- ---- chromux test -------------------------------------------------------------------------------

local function default_files()
  local lfs = require("lfs")
  if lfs.attributes("tests/spec", "mode") == "directory" then
    return { "tests/spec" }
  end
  return { os.getenv("POLICY_DIR") or "policies" }
end

-- Runs busted on these files, folders (their *_spec.lua) and options, and returns its exit code.
-- busted ends by os.exit(), which here must end only the run; where it thinks that a file called
-- it, a bare error() instead.
function M.main(args)
  local found, runner = pcall(require, "busted.runner")
  if not found then
    io.stderr:write("chromux test needs busted (Debian: lua-busted): ",
      tostring(runner):match("^[^\n]*"), "\n")
    return 1
  end
  local files = false
  for _, a in ipairs(args) do
    files = files or a:sub(1, 1) ~= "-"
    -- busted passes over what does not end in .lua, and would report success.
    if require("lfs").attributes(a, "mode") == "file" and not a:match("%.lua$") then
      io.stderr:write("chromux test: ", a, ": the name of a spec ends in .lua\n")
      return 1
    end
  end
  local list = { [0] = "chromux test", unpack(args) }
  if not files then
    for _, f in ipairs(default_files()) do
      list[#list + 1] = f
    end
  end

  local saved_arg, saved_exit, finished = rawget(_G, "arg"), os.exit, {}
  local code = 0
  rawset(_G, "arg", list)
  os.exit = function(status) -- luacheck: ignore 122
    code = status == true and 0 or tonumber(status) or 1
    error(finished, 0)
  end
  local ok, why = xpcall(function()
    runner({ standalone = false })
  end, function(e)
    return e == finished and e or e ~= nil and debug.traceback(tostring(e)) or nil
  end)
  os.exit = saved_exit -- luacheck: ignore 122
  rawset(_G, "arg", saved_arg)
  if not ok and why ~= finished then
    code = 1
    if why then
      io.stderr:write(why, "\n")
    end
  end
  return code
end

return M
