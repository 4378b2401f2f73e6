-- runtime.lua: what programs and our own modules find as globals: fetch, pg, sleep, now, spawn, json, log,
-- env. The waiting itself is core/api.c; here its functions get their shape, and whatever can fail answers
-- nil and a message. Wrong use (a missing url, a table as a parameter) is an error.
--
--   fetch{url=, method="GET", headers={Name=value}, body=, timeout=30, max=64 MiB}
--       -> {status=, headers={lower-case name=value}, body=} | nil, message, status (when at least that came)
--   pg.query(sql, ...)                  parameters: nil, boolean, number, string
--   pg.query({sql, timeout=30}, ...)
--       -> {{column=value, ...}, ..., affected=rows} | nil, message, sqlstate ("" when none)
--       NULL is an absent field; int8 and numeric are numbers when whole and below 2^53, else text;
--       bytea is a string of its bytes
--   pg.bytes(string) -> a parameter of type bytea; pg.null, a parameter that is NULL as nil is
--   pg.connection(name) -> connection | nil, "no DATABASE_URL"
--       made at first use, at most 4 with the "default" one, which pg.query uses; each runs one
--       transaction at a time, in the order of the calls
--   connection:query(sql, ...)          as pg.query
--   connection:transaction{{sql, p1, p2, n=count}, ..., timeout=30}
--       -> {rows of the first, ...}, each as of pg.query | nil, message, sqlstate, {unknown=, index=}
--       all statements or none, in one round trip; no BEGIN or COMMIT among them. n is needed when a
--       parameter is nil. index: of the statement that failed, nil when it was none of them. unknown:
--       the connection was lost or ran out of time when it may have been committed; if false, it
--       was not
--   connection:listen(channel, fn)      fn(payload) in a new task for each notification; fn(nil) when
--       listening has begun, the first time and after each reconnect: earlier ones may be missing
--   connection:observe(fn)              fn("ready"), fn("away") in a new task when the state changes
--   connection:state() -> "ready" | "connecting" | "away", last error ("" when none)
--   sleep(seconds); now() -> seconds since 1970, with a fraction; deadlines and durations may be told by it: when the
--       clock is set it follows slowly, a tenth faster or slower than time passes
--   spawn(fn, ...) -> task;  task:wait() -> true, results of fn | false, message;  task:cancel()
--       an error in fn is logged with its traceback and ends this task alone
--   json.encode(value), json.decode(text) -> result | nil, message; json.null
--   log.debug|info|warn|error(event, text)
--   env(name) -> text | nil; os.exit(code) ends a program
local api = require("chromux.api")
local cjson = require("cjson.safe").new()

local M = {}
local unpack = unpack

local FETCH_TIMEOUT, FETCH_MAX, QUERY_TIMEOUT = 30, 64 * 1024 * 1024, 30

-- A configuration of its own: what a module sets on the shared cjson does not change this one.
cjson.decode_max_depth(100)
cjson.encode_max_depth(100)
cjson.decode_invalid_numbers(false)
M.json = {
  null = cjson.null,
  encode = function(value) return cjson.encode(value) end,
  decode = function(text)
    if type(text) ~= "string" then return nil, "not a text but a " .. type(text) end
    return cjson.decode(text)
  end,
}

-- The field lines of a head; repeated names are joined (RFC 9110 5.3).
local function parse_head(head)
  local headers = {}
  for name, value in head:gmatch("\r?\n([^:\r\n]+):[ \t]*([^\r\n]*)") do
    name = name:lower()
    value = value:match("^(.-)[ \t]*$")
    headers[name] = headers[name] and headers[name] .. ", " .. value or value
  end
  return headers
end

function M.fetch(r)
  if type(r) ~= "table" or type(r.url) ~= "string" then error("fetch needs {url = ...}", 2) end
  local lines = {}
  for name, value in pairs(r.headers or {}) do
    lines[#lines + 1] = tostring(name) .. ": " .. tostring(value)
  end
  local status, head, body = api.fetch(r.method or "GET", r.url, r.body or "", r.timeout or FETCH_TIMEOUT,
    r.max or FETCH_MAX, unpack(lines))
  if not status then return nil, head, body ~= 0 and body or nil end
  return { status = status, headers = parse_head(head), body = body }
end

local Connection = {}
Connection.__index = Connection

function Connection:query(sql, ...)
  if type(sql) == "table" then return api.query(self.id, sql.timeout or QUERY_TIMEOUT, sql[1], ...) end
  return api.query(self.id, QUERY_TIMEOUT, sql, ...)
end

function Connection:transaction(statements)
  return api.transaction(self.id, statements.timeout or QUERY_TIMEOUT, statements)
end

function Connection:listen(channel, fn) api.listen(self.id, channel, fn) end
function Connection:observe(fn) api.observe(self.id, fn) end
function Connection:state() return api.pg_state(self.id) end

M.pg = { bytes = api.bytes, null = cjson.null }

function M.pg.connection(name)
  local id, err = api.connection(name)
  if not id then return nil, err end
  return setmetatable({ id = id }, Connection)
end

local default = M.pg.connection("default")
function M.pg.query(sql, ...)
  if not default then return nil, "no DATABASE_URL", "" end
  return default:query(sql, ...)
end

M.log = {}
for _, level in ipairs { "debug", "info", "warn", "error" } do
  M.log[level] = function(event, text) api.log(level, event, text ~= nil and tostring(text) or nil) end
end

local Task = {}
Task.__index = Task

local function finish(task, ...)
  if task.result then return end
  task.result = { n = select("#", ...), ... }
  for _, token in ipairs(task.waiting) do api.wake(token[1], token[2]) end
  task.waiting = nil
end

-- Until the task has ended: true and what its function returned, or false and a message.
function Task:wait()
  while not self.result do
    local id, generation = api.token()
    table.insert(self.waiting, { id, generation })
    api.park()
  end
  return unpack(self.result, 1, self.result.n)
end

-- Ends a task that waits. Statements on their way to PostgreSQL are not taken back.
function Task:cancel()
  if self.result then return end
  api.cancel(self.id)
  finish(self, false, "cancelled")
end

local function traced(err)
  return { text = tostring(err), trace = debug.traceback(tostring(err), 2) }
end

function M.spawn(fn, ...)
  if type(fn) ~= "function" then error("spawn needs a function", 2) end
  local task = setmetatable({ waiting = {} }, Task)
  local args, n = { ... }, select("#", ...)
  local function ended(ok, err, ...)
    if ok then return finish(task, true, err, ...) end
    -- Not a table when not even the handler could run, as after a stack overflow.
    api.failed(type(err) == "table" and err.trace or tostring(err))
    finish(task, false, type(err) == "table" and err.text or tostring(err))
  end
  task.id = api.spawn(function()
    ended(xpcall(function() return fn(unpack(args, 1, n)) end, traced))
  end)
  return task
end

M.sleep, M.now, M.env = api.sleep, api.now, os.getenv

for name, value in pairs(M) do _G[name] = value end
os.exit = api.exit -- luacheck: ignore

return M
