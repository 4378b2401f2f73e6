-- contract.lua: what the policies that Lua asks are given, and what they must answer (policies/README.md).
--
-- One place says it for all: the core runs this file inside the policy VM, to try policies on samples before they
-- serve and to check every answer; lb.testkit makes what specs give to policies from it. So it needs nothing but Lua.
local M = {}

M.questions = {
  "sync.batch", "sync.authority", "sync.pace", "upgrade.advise", "notify.decide", "slack.format",
}

-- ---- what is given: every field, with a typical value -----------------------------------------------------------

M.given = {
  sample = {
    batch = 1000, least = 1, most = 1000, memory_mb = 120, limit_mb = 400, free_mb = 280, used_share = 0.3,
    payload_bytes = 400000, records = 1000, latency = 0.2, requests = 100, refused = "413",
    errors = 0,
  },
  copy = {
    instance = "a", role = "primary", priority = 100, state = "ready", position = 10, behind = 0, health = "up",
    proven_at = 0, records = 1000,
  },
  load = {
    instance = "a", role = "source", in_flight = 0, latency = 0.05, reads = true, requests = 100, waits = 0.02,
    usual = 0.01, told = 1, jobs = 1,
  },
  window = {
    instance = "a", now = 1700000000, seconds = 600, samples = 20, trend_seconds = 21600, memory = {}, cpu = {},
    disk = {}, vectors = 10000, dimensions = 384, index_mb = 60, open = {},
  },
  memory = { mean = 40, p95 = 42, max = 45, last = 41, trend = 0, last_mb = 210, limit_mb = 512 },
  cpu = { mean = 20, p95 = 45, max = 70, last = 15, trend = 0, cores = 1 },
  disk = { mean = 30, p95 = 30, max = 30, last = 30, trend = 0, free_mb = 7000, total_mb = 10000 },
  open = { urgency = "medium", since = 1699990000, value = 90 },
  event = {
    kind = "server_down", key = "server/a", urgency = "high", at = 1700000000, now = 1700000000, since = 1700000000,
    ends = false, repeats = 0, openings = 1, title = "", text = "", fields = {}, group = {},
  },
  sent = {
    count = 0, last_at = 0, last_urgency = "", same_at = 0, in_last_minute = 0, in_last_hour = 0, muted_until = 0,
    silent_until = 0,
  },
}

-- Those that are absent where they are not known or do not apply.
M.optional = {
  sample = { refused = true, requests = true },
  copy = { proven_at = true, records = true },
  load = { requests = true, waits = true, usual = true },
  window = { memory = true, cpu = true, disk = true, vectors = true, dimensions = true, index_mb = true },
}

-- The kinds of events: urgency, whether they end what others of the same key began, and what their fields are.
M.kinds = {
  { "server_down", "high", { instance = "a", cause = "3 probes failed: connection refused", servers_up = "1 of 2" } },
  { "server_up", "low", { instance = "a", cause = "3 probes failed: connection refused" }, ends = true },
  { "failover", "medium", { instance = "b", from = "a", cause = "the primary is down" } },
  { "failback", "low", { instance = "a", from = "b", cause = "the primary is up" } },
  { "copy_lost", "medium", { instance = "a", collection = "documents", cause = "500 three times in a row" } },
  { "server_lost_data", "high", { instance = "a", cause = "its witness is gone" } },
  { "copy_rebuilt", "low", { instance = "a", collection = "documents", source = "b", records = 1000 }, ends = true },
  { "no_source", "high", { instance = "a", collection = "documents" } },
  { "rebuild_slow", "medium", { instance = "a", collection = "documents" } },
  { "rebuild_failed", "medium", { instance = "a", collection = "documents" } },
  { "rebuild_done", "low", { instance = "a", collection = "documents" }, ends = true },
  { "repaired", "low", { instance = "a", collection = "documents", differences = 3, repaired = 3 } },
  { "lag_above", "medium", { instance = "b", entries = 1200, seconds = 90 } },
  { "lag_below", "low", { instance = "b", entries = 0 }, ends = true },
  { "journal_unavailable", "high", { cause = "connection refused" } },
  { "journal_back", "low", { cause = "connection refused" }, ends = true },
  { "journal_filling", "medium", { cause = "7.1 of 8 GB" } },
  { "journal_full", "high", { cause = "8 of 8 GB" } },
  { "journal_room", "low", {}, ends = true },
  { "postgres_restored", "high", { cause = "its timeline is another" } },
  { "restore_accepted", "low", {}, ends = true },
  { "entry_skipped", "low", { cause = "lane 4, entry 17, by jo: poison" } },
  { "not_adopted", "medium", { instance = "a", cause = "documents is there and holds other records" } },
  { "instance_retired", "low", { instance = "a" } },
  { "disk_above", "medium", { instance = "a", percent = 91.4, free_mb = 860 } },
  { "disk_below", "low", { instance = "a", percent = 70 }, ends = true },
  { "recommendation_opened", "medium", {
    instance = "a", type = "memory", current_usage = 88.2, recommended_tier = "standard",
    estimated_monthly_cost = 21, reason = "memory over 85 %",
  } },
  { "recommendation_raised", "high", {
    instance = "a", type = "memory", current_usage = 96.1, recommended_tier = "standard",
    estimated_monthly_cost = 21, reason = "memory over 95 %",
  } },
  { "recommendation_closed", "low", { instance = "a", type = "memory", current_usage = 60 }, ends = true },
  { "policy_tripped", "medium", { file = "route.lua", cause = "policies/route.lua:5: attempt to index" } },
  { "policy_back", "low", { file = "route.lua" }, ends = true },
  { "worker_dead", "medium", { host = "db1", process = "1234", worker = "db1-1234-5678", task = 17 } },
  { "worker_back", "low", { host = "db1", worker = "db1-1234-5678" }, ends = true },
  { "monitor_silent", "medium", { host = "db1", monitor = "db1", seconds = 120 } },
  { "monitor_back", "low", { host = "db1", monitor = "db1" }, ends = true },
  { "messages_failing", "high", { sink = "slack", cause = "500", waiting = 4 } },
  { "messages_delivered", "low", { sink = "slack" }, ends = true },
  { "test", "low", { instance = "a" } },
}

-- make("sample", {batch = 10}) -> the typical one with these fields instead; optional fields only if named.
-- An unknown field is an error.
function M.make(what, given)
  local t, optional = {}, M.optional[what] or {}
  for name, value in pairs(M.given[what]) do
    if not optional[name] then t[name] = value end
  end
  for name, value in pairs(given or {}) do
    if M.given[what][name] == nil then error("no such field of " .. what .. ": " .. tostring(name), 2) end
    t[name] = value
  end
  return t
end

-- A window in which all was measured.
function M.window(given)
  local w = M.make("window", { vectors = 10000, dimensions = 384, index_mb = 60 })
  for _, name in ipairs { "memory", "cpu", "disk" } do w[name] = M.make(name) end
  for name, value in pairs(given or {}) do w[name] = value end
  return w
end

-- The event of a kind, or of its name, as it is raised first.
function M.event(kind, given)
  for _, k in ipairs(M.kinds) do
    if k[1] == kind then kind = k end
  end
  if type(kind) == "string" then kind = { kind, "medium", {} } end
  local e = M.make("event", { kind = kind[1], urgency = kind[2], ends = kind.ends or false, fields = {} })
  local names = {}
  for name in pairs(kind[3]) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do e.fields[i] = { name, kind[3][name] } end
  for name, value in pairs(given or {}) do e[name] = value end
  return e
end

-- ---- samples: each {label, value, ...} ----------------------------------------------------------------------------

local samples = {}

local function each(label, what, variants)
  local out = {}
  for i, given in ipairs(variants) do out[i] = { label .. " " .. i, M.make(what, given) } end
  return out
end

samples["sync.batch"] = function()
  return each("a batch", "sample", {
    {}, { refused = "413" }, { refused = "429", batch = 1 }, { refused = "503", errors = 9 },
    { free_mb = 90 }, { free_mb = 10, used_share = 0.99 }, { free_mb = 0, used_share = 1, least = 100, batch = 100 },
    { latency = 100 }, { latency = 1, requests = 50 }, { records = 0, payload_bytes = 0, latency = 0 },
    { payload_bytes = 4e7, records = 1 },
    { batch = 1, most = 1 }, { batch = 32000, most = 32000 },
  })
end

samples["sync.authority"] = function()
  local function copies(...)
    local list = {}
    for i, given in ipairs { ... } do
      list[i] = M.make("copy", given)
      list[i].instance = ("abcdefgh"):sub(i, i)
    end
    return list
  end
  local replica, broken = { role = "replica", priority = 80 }, { state = "rebuild", health = "down" }
  return {
    { "one copy", copies({}) }, { "two copies", copies({}, replica) },
    { "a broken primary", copies(broken, replica, { role = "replica", behind = 3 }) },
    { "copies that are all broken", copies(broken, broken) }, { "no copies", {} },
  }
end

samples["sync.pace"] = function()
  return each("a load", "load", {
    {}, { role = "target", reads = false }, { requests = 0 }, { requests = 1, waits = 0.02 },
    { requests = 1000, waits = 5, usual = 0.01, told = 2, latency = 60, in_flight = 8, jobs = 4 },
    { requests = 1, waits = 0, usual = 0, told = 3, latency = 0 },
  })
end

samples["upgrade.advise"] = function()
  local out = { { "all is well", M.window() }, { "nothing measured", M.make("window", { samples = 0, seconds = 0 }) } }
  for _, percent in ipairs { 86, 96, 100 } do
    local level = { mean = percent, p95 = percent, max = percent, last = percent, trend = 2 }
    local w = M.window { index_mb = 5 * percent }
    for name in pairs { memory = 1, cpu = 1, disk = 1 } do
      for field, value in pairs(level) do w[name][field] = value end
    end
    out[#out + 1] = { "all at " .. percent .. " percent", w }
    local types = {}
    for _, r in ipairs { "memory", "cpu", "disk" } do types[r] = M.make("open", { urgency = "high" }) end
    out[#out + 1] = { "recommendations open", M.window { open = types } }
  end
  for name in pairs { memory = 1, cpu = 1, disk = 1 } do
    out[#out + 1] = { name .. " alone", M.make("window", { [name] = M.make(name, { mean = 99, last = 99 }) }) }
  end
  return out
end

samples["notify.decide"] = function()
  local out, at = {}, M.given.event.at
  for _, kind in ipairs(M.kinds) do
    for i, given in ipairs {
      {}, { count = 1, last_at = at - 60, same_at = at - 60, last_urgency = "medium", in_last_minute = 50 },
      { count = 5, last_at = at - 90000, same_at = at - 90000, last_urgency = "high", in_last_hour = 500 },
      { muted_until = at + 60 }, { silent_until = at + 60 },
    } do
      local e = M.event(kind, { openings = i })
      out[#out + 1] = { kind[1] .. ", case " .. i, e, M.make("sent", given) }
    end
  end
  out[#out + 1] = { "an unknown kind", M.event("brand_new"), M.make("sent") }
  return out
end

samples["slack.format"] = function()
  local out, group = {}, {}
  for _, kind in ipairs(M.kinds) do
    local e = M.event(kind)
    out[#out + 1] = { kind[1], e }
    group[#group + 1] = e
  end
  local hostile = ("<!channel> & \195\164\226\130\172\240\159\154\168 \255\0\n"):rep(300)
  local fields = {}
  for i = 1, 40 do fields[i] = { "name " .. i .. hostile, i % 2 == 0 and hostile or i } end
  out[#out + 1] = { "an unknown kind, with long texts", M.event("brand_new", {
    key = hostile, title = hostile, text = hostile, fields = fields, urgency = "low",
  }) }
  out[#out + 1] = { "a repeated event", M.event("server_down", { repeats = 5, openings = 9, since = 1 }) }
  for _, n in ipairs { 2, 100 } do
    local many = {}
    for i = 1, n do many[i] = group[(i - 1) % #group + 1] end
    out[#out + 1] = { "a group of " .. n, M.event("group", { key = "", group = many }) }
  end
  return out
end

-- sample("sync.batch", 1) -> label, value, ...; nothing after the last. They are asked for in turn: the list of a name
-- is made once, and is not kept.
local kept = {}

function M.sample(name, number)
  if kept.name ~= name then kept = { name = name, list = samples[name]() } end
  local one = kept.list[number]
  if one then return unpack(one) end
  kept = {}
end

-- ---- answers ------------------------------------------------------------------------------------------------------

local VALUES_MAX, DEPTH_MAX = 10000, 16

local function show(v)
  if type(v) == "string" then return ("'%s'"):format(v:sub(1, 60)) end
  if type(v) == "number" then return tostring(v) end
  return "a " .. type(v)
end

-- What is wrong with v as a plain value: numbers that JSON has, no metatables (a view of the core's would seem empty).
local function not_plain(v, seen, depth)
  local kind = type(v)
  seen.values = seen.values + 1
  if seen.values > VALUES_MAX then return "more than 10,000 values" end
  if kind == "nil" or kind == "boolean" or kind == "string" then return end
  if kind == "number" then return not (v > -1 / 0 and v < 1 / 0) and "a number that is none" or nil end
  if kind ~= "table" then return "a " .. kind end
  if getmetatable(v) ~= nil then return "a table with a metatable" end
  if depth == DEPTH_MAX then return "tables more than 16 deep" end
  for key, value in pairs(v) do
    if type(key) ~= "string" and type(key) ~= "number" then return "a key that is a " .. type(key) end
    local why = not_plain(value, seen, depth + 1)
    if why then return why end
  end
end

local function is_number(v, least, most) return type(v) == "number" and v >= least and v <= most end

local function is_text(v, most) return type(v) == "string" and #v > 0 and #v <= most end

local function is_list(v, least, most)
  if type(v) ~= "table" then return false end
  local n = 0
  for _ in pairs(v) do n = n + 1 end
  return n == #v and n >= least and n <= most
end

local URGENCIES = { low = true, medium = true, high = true }

local checks = {}

checks["sync.batch"] = function(n, _, _, sample)
  if not is_number(n, 1, sample.most) or n % 1 ~= 0 then
    return ("answered %s, not a whole number from 1 to %d"):format(show(n), sample.most)
  end
end

checks["sync.authority"] = function(name, reason, _, copies)
  if name == nil and is_text(reason, 1000) then return end
  for _, copy in ipairs(copies) do
    if copy.instance == name and copy.state == "ready" then return end
  end
  return ("answered %s, not an instance whose copy is ready, nor nil and a reason"):format(show(name))
end

checks["sync.pace"] = function(seconds)
  if not is_number(seconds, 0, 60) then return ("answered %s, not 0 to 60 seconds"):format(show(seconds)) end
end

local ADVICE = {
  { "type", function(v) return is_text(v, 64) end, "text up to 64 bytes" },
  { "urgency", function(v) return URGENCIES[v] end, "low, medium or high" },
  { "current_usage", function(v) return is_number(v, 0, 1e9) end, "a number, in percent" },
  { "recommended_tier", function(v) return is_text(v, 64) end, "text up to 64 bytes" },
  { "estimated_monthly_cost", function(v) return is_number(v, 0, 1e9) end, "a number, 0 or more" },
  { "reason", function(v) return is_text(v, 1000) end, "text up to 1,000 bytes" },
  { "value", function(v) return is_number(v, -1e15, 1e15) end, "a number" },
}

checks["upgrade.advise"] = function(list)
  if not is_list(list, 0, 32) then
    return ("answered %s, not a list of at most 32 recommendations"):format(show(list))
  end
  local seen = {}
  for i, r in ipairs(list) do
    if type(r) ~= "table" then return ("recommendation %d is %s, not a table"):format(i, show(r)) end
    for _, field in ipairs(ADVICE) do
      local name, fits, expected = unpack(field)
      if not fits(r[name]) then
        return ("%s of recommendation %d is %s, not %s"):format(name, i, show(r[name]), expected)
      end
    end
    if seen[r.type] then return ("two recommendations of type '%s'"):format(r.type) end
    seen[r.type] = true
  end
end

local WAIT_MAX = 30 * 86400

checks["notify.decide"] = function(word, reason, wait)
  if word ~= "send" and word ~= "hold" and word ~= "drop" then
    return ('answered %s, not "send", "hold" or "drop"'):format(show(word))
  end
  if reason ~= nil and type(reason) ~= "string" then return ("the reason is %s, not text"):format(show(reason)) end
  if (word == "hold" or wait ~= nil) and not is_number(wait, 0.1, WAIT_MAX) then
    return ("the wait is %s, not 0.1 to %d seconds"):format(show(wait), WAIT_MAX)
  end
end

-- ---- Slack's limits (Block Kit reference) -------------------------------------------------------------------------

-- Slack counts characters; bytes that are no UTF-8 make it refuse the message.
local function characters(s)
  if not s:find("[\128-\255]") then return #s end
  local n, i = 0, 1
  while i <= #s do
    local b = s:byte(i)
    local more = b < 0x80 and 0 or b >= 0xf0 and b < 0xf5 and 3 or b >= 0xe0 and b < 0xf0 and 2
      or b >= 0xc2 and b < 0xe0 and 1
    local second = s:byte(i + 1)
    if not more or b == 0xe0 and second and second < 0xa0 or b == 0xed and second and second > 0x9f
      or b == 0xf0 and second and second < 0x90 or b == 0xf4 and second and second > 0x8f then return nil end
    for k = 1, more do
      local c = s:byte(i + k)
      if not c or c < 0x80 or c >= 0xc0 then return nil end
    end
    n, i = n + 1, i + 1 + more
  end
  return n
end

local function wrong_text(v, most, where)
  local n = type(v) == "string" and #v > 0 and characters(v)
  if type(v) == "string" and n == nil then return where .. " is not UTF-8" end
  if not n or n > most then
    return ("%s is %s, not text of 1 to %d characters"):format(where, n and n .. " characters" or show(v), most)
  end
end

local function wrong_object(v, most, where, plain)
  if type(v) ~= "table" then return ("%s is %s, not a text object"):format(where, show(v)) end
  if v.type ~= "plain_text" and (plain or v.type ~= "mrkdwn") then
    return ("%s.type is %s, not %s"):format(where, show(v.type), plain and "plain_text" or "plain_text or mrkdwn")
  end
  return wrong_text(v.text, most, where .. ".text")
end

local function wrong_items(list, most, where, check)
  if not is_list(list, 1, most) then return ("%s is not a list of 1 to %d"):format(where, most) end
  for i, item in ipairs(list) do
    local why = check(item, ("%s[%d]"):format(where, i))
    if why then return why end
  end
end

local blocks = {}

function blocks.divider() end

function blocks.header(b, where) return wrong_object(b.text, 150, where .. ".text", true) end

function blocks.section(b, where)
  if b.text == nil and b.fields == nil then return where .. " has neither text nor fields" end
  return b.text ~= nil and wrong_object(b.text, 3000, where .. ".text") or b.fields ~= nil
    and wrong_items(b.fields, 10, where .. ".fields", function(v, at) return wrong_object(v, 2000, at) end) or nil
end

function blocks.context(b, where)
  return wrong_items(b.elements, 10, where .. ".elements", function(v, at)
    return (type(v) ~= "table" or v.type ~= "image") and wrong_object(v, 3000, at) or nil
  end)
end

function blocks.actions(b, where)
  return wrong_items(b.elements, 25, where .. ".elements", function(v, at)
    if type(v) ~= "table" or type(v.type) ~= "string" then return at .. " has no type" end
    return v.type == "button" and (wrong_object(v.text, 75, at .. ".text", true)
      or v.url ~= nil and wrong_text(v.url, 3000, at .. ".url")) or nil
  end)
end

-- An empty table would be sent as {} where Slack wants [].
local function has_empty(v)
  if type(v) ~= "table" then return false end
  if next(v) == nil then return true end
  for _, value in pairs(v) do
    if has_empty(value) then return true end
  end
  return false
end

checks["slack.format"] = function(payload)
  if type(payload) ~= "table" then return ("answered %s, not a message"):format(show(payload)) end
  if has_empty(payload) then return "the message has an empty table in it" end
  local why = wrong_text(payload.text, 40000, "text")
  if why or payload.blocks == nil then return why end
  return wrong_items(payload.blocks, 50, "blocks", function(b, where)
    if type(b) ~= "table" or type(b.type) ~= "string" then return where .. " has no type" end
    return blocks[b.type] and blocks[b.type](b, where)
  end)
end

-- check("sync.batch", answer, answer, answer, what was given...) -> nil | what is wrong with the answers
function M.check(name, a, b, c, ...)
  local seen = { values = 0 }
  local why = not_plain(a, seen, 0) or not_plain(b, seen, 0) or not_plain(c, seen, 0)
  if why then return "the answer holds " .. why end
  return checks[name](a, b, c, ...) or nil
end

-- fits("sample", t) -> true | nil, what is wrong: for specs of those who ask.
function M.fits(what, t)
  local optional = M.optional[what] or {}
  for name, typical in pairs(M.given[what]) do
    local value = t[name]
    if type(value) ~= type(typical) and not (value == nil and optional[name]) then
      return nil, ("%s.%s is a %s, not a %s"):format(what, name, type(value), type(typical))
    end
  end
  for name in pairs(t) do
    if M.given[what][name] == nil then return nil, ("%s has no field %s"):format(what, tostring(name)) end
  end
  return true
end

return M
