-- notify_cli.lua: `chromux notify`: tries the way to people's messages, and silences them.
--
-- Exit codes: 0 done, 1 a sink refused or failed, 2 wrong use, 3 PostgreSQL cannot be used.
local Sinks = require("lb.notify_sinks")
local contract = require("lb.contract")
local notices = require("lb.notices")

local M = {}

local FINE, FAILED, USAGE, AWAY = 0, 1, 2, 3
local HELP = [[
chromux notify COMMAND

  test [KIND]... [--config FILE] [--set NAME=VALUE]...
                            sends a sample of each kind (or of these) to each sink, at once
  mute KEY --for TIME       tells nothing of it for so long: a key (server/a), a kind (lag_above) or KIND:KEY
  unmute KEY
  maintenance on --for TIME holds all messages back; what is over by then is never told
  maintenance off
  status                    what goes on, what waits, what was sent, and what is muted

TIME: 90s, 30m, 2h, 1d.
]]
local TRIES, WAIT_MOST = 5, 60
local UNITS = { s = 1, m = 60, h = 3600, d = 86400 }
local FOR_MOST = 30 * 86400

local function out(...) io.stdout:write(string.format(...), "\n") end

local function fail(code, ...)
  io.stdout:flush()
  io.stderr:write("chromux notify: ", string.format(...), "\n")
  error({ code = code }, 0)
end

local function query(sql, ...)
  local rows, why, state = pg.query({ sql, timeout = 15 }, ...)
  if rows then return rows end
  if state == "42P01" then fail(AWAY, "this database has no tables of this version: has chromux run with it?") end
  fail(AWAY, "%s", why == "no DATABASE_URL" and "DATABASE_URL is not set" or "PostgreSQL: " .. tostring(why))
end

-- ---- test ------------------------------------------------------------------------------------------------

-- A sample of each kind, as policies see events.
local function samples(wanted)
  local list, known = {}, {}
  local function add(kind)
    if known[kind] then return end
    known[kind] = true
    local e = contract.event(kind, { at = now(), now = now(), since = now(), group = {} })
    e.urgency = notices.KINDS[kind] and notices.KINDS[kind].urgency or e.urgency
    e.ends = notices.KINDS[kind] ~= nil and notices.KINDS[kind].ends ~= nil
    e.title = e.title ~= "" and e.title or kind:gsub("_", " ")
    e.text = "This is a sample, sent by chromux notify test."
    list[#list + 1] = e
  end
  for _, k in ipairs(contract.kinds) do add(k[1]) end
  local others = {}
  for kind in pairs(notices.KINDS) do others[#others + 1] = kind end
  table.sort(others)
  for _, kind in ipairs(others) do add(kind) end
  if #wanted == 0 then return list end
  local some = {}
  for _, kind in ipairs(wanted) do
    if not known[kind] then fail(USAGE, "there is no kind %s", kind) end
    for _, e in ipairs(list) do
      if e.kind == kind then some[#some + 1] = e end
    end
  end
  return some
end

-- true: it was taken; nil: the sink takes nothing, as far as one can see.
local function send(sinks, sink, e)
  local m = { uid = notices.next_uid(), attempts = 0 }
  local outcome, status, why, seconds
  repeat
    m.attempts = m.attempts + 1
    outcome, status, why, seconds = sinks:send(sink, m, { e })
    if outcome ~= "retry" or m.attempts == TRIES then break end
    sleep(math.min(seconds or 2 ^ (m.attempts - 1), WAIT_MOST))
  until false
  local how = sink == "slack" and (sinks.plain_why and "plain text: " .. sinks.plain_why or "by slack.lua") or ""
  out("%-24s %-8s %s%s%s", e.kind, sink, outcome == "accepted" and "sent " .. (status or "") or "failed: " .. why,
    how ~= "" and ", " or "", how)
  if outcome ~= "retry" then return outcome == "accepted" end
end

local function test(words)
  local settings, policy = require("chromux.settings"), require("chromux.policy")
  local sinks = Sinks.new { secrets = settings.secrets, deployment = settings.DEPLOYMENT_NAME,
    public_url = settings.PUBLIC_URL, call = policy.call }
  if sinks:names()[1] == "log" then
    fail(FAILED, "neither SLACK_WEBHOOK_URL nor WEBHOOK_URL is set: events go to the log alone")
  end
  local fine, list = true, samples(words)
  for _, sink in ipairs(sinks:names()) do
    for i, e in ipairs(list) do
      local taken = send(sinks, sink, e)
      fine = fine and taken
      if taken == nil then -- the other kinds would only take as long to fail
        if i < #list then out("%-24s %-8s not tried", #list - i .. " others", sink) end
        break
      end
    end
  end
  return fine and FINE or FAILED
end

-- ---- silences --------------------------------------------------------------------------------------------

local function seconds_of(text)
  local n, unit = (text or ""):match("^(%d+)([smhd])$")
  local seconds = n and tonumber(n) * UNITS[unit]
  if not seconds or seconds < 1 or seconds > FOR_MOST then
    fail(USAGE, "--for must be followed by a time of 1s to 30d, such as 90s, 30m, 2h or 1d")
  end
  return seconds
end

local function silence(what, seconds)
  local till = query([[INSERT INTO notify_mutes (what, until, who)
      VALUES ($1, now() + $2 * interval '1 second', $3) ON CONFLICT (what) DO UPDATE
      SET until = EXCLUDED.until, who = EXCLUDED.who, created_at = now()
      RETURNING to_char(until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS at,
        pg_notify('chromux_notify', '')::text AS told]],
    what, seconds, env("USER") or "")[1].at
  return till .. " UTC"
end

local function end_silence(what)
  return query([[WITH gone AS (DELETE FROM notify_mutes WHERE what = $1 AND until > now() RETURNING what)
      SELECT pg_notify('chromux_notify', '')::text AS told FROM gone]], what)[1] ~= nil
end

-- Has anything of that name been told of, or may it be? Other programs have keys and kinds of their own.
local function is_known(what)
  if notices.KINDS[what] or notices.KINDS[what:match("^([a-z_]+):") or ""] then return true end
  return #query("SELECT 1 FROM notify_events WHERE $1 IN (key, kind, kind || ':' || key) LIMIT 1", what) > 0
end

local function mute(words, options)
  local what = words[1]
  if #words ~= 1 or what == "*" then fail(USAGE, "expected one KEY, and --for TIME") end
  local till = silence(what, seconds_of(options["for"]))
  out("%s is muted until %s", what, till)
  if not is_known(what) then
    out("(nothing of that name was told of so far; a key is like server/NAME, a kind like lag_above)")
  end
  return FINE
end

local function unmute(words)
  if #words ~= 1 then fail(USAGE, "expected one KEY") end
  if not end_silence(words[1]) then fail(FAILED, "%s is not muted", words[1]) end
  out("%s is muted no longer", words[1])
  return FINE
end

local function maintenance(words, options)
  if words[1] == "on" and #words == 1 then
    out("all messages are held back until %s", silence("*", seconds_of(options["for"])))
  elseif words[1] == "off" and #words == 1 then
    if not end_silence("*") then fail(FAILED, "there is no maintenance") end
    out("messages are sent again")
  else
    fail(USAGE, "expected maintenance on --for TIME, or maintenance off")
  end
  return FINE
end

-- ---- status ----------------------------------------------------------------------------------------------

local function at(column)
  return "to_char(" .. column .. " AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'"
end

local function teller()
  local lease = query("SELECT holder, until > now() AS held FROM notify_lease")[1]
  if not lease or not lease.held then return "nobody: no balancer runs with this DATABASE_URL" end
  local pid = lease.holder:match("/(%d+)/")
  return pid and "the balancer that is process " .. pid or lease.holder
end

local function status(words)
  if #words > 0 then fail(USAGE, "status takes no arguments") end
  out("teller     %s", teller())
  for _, m in ipairs(query("SELECT what, " .. at("until") .. [[ AS at, who FROM notify_mutes WHERE until > now()
      ORDER BY what]])) do
    out("%-10s %s until %s%s", m.what == "*" and "silence" or "muted", m.what == "*" and "all" or m.what, m.at,
      m.who ~= "" and " by " .. m.who or "")
  end
  for _, e in ipairs(query("SELECT kind, key, urgency, title, " .. at("since") .. [[ AS since, known
      FROM notify_events WHERE open ORDER BY notify_events.since]])) do
    local told = e.known == 0 and "not told yet" or e.known == 1 and "told once" or "told " .. e.known .. " times"
    out("goes on    %s %s (%s) since %s: %s, %s", e.kind, e.key, e.urgency, e.since, e.title, told)
  end
  for _, e in ipairs(query("SELECT kind, key, title, reason, " .. at("ask_at") .. [[ AS at FROM notify_events
      WHERE state = 'held' ORDER BY id]])) do
    out("held       %s %s until %s (%s): %s", e.kind, e.key, e.at or "?", e.reason, e.title)
  end
  for _, m in ipairs(query("SELECT sink, title, attempts, error, " .. at("created_at") .. [[ AS at FROM notify_messages
      WHERE state IN ('queued', 'sending') ORDER BY id LIMIT 50]])) do
    out("waits      %s since %s, %d tries%s: %s", m.sink, m.at, m.attempts,
      m.error ~= "" and " (" .. m.error .. ")" or "", m.title)
  end
  for _, m in ipairs(query("SELECT * FROM (SELECT id, sink, title, state, status, error, "
      .. at("COALESCE(sent_at, created_at)") .. [[ AS at FROM notify_messages WHERE state NOT IN ('queued', 'sending')
      ORDER BY id DESC LIMIT 10) m ORDER BY id]])) do
    out("%-10s %s %s%s: %s", m.state, m.sink, m.at, m.error ~= "" and " (" .. m.error .. ")" or "", m.title)
  end
  return FINE
end

-- ---- the door --------------------------------------------------------------------------------------------

local COMMANDS = { test = test, mute = mute, unmute = unmute, maintenance = maintenance, status = status }

local function parse(args)
  local words, options = {}, {}
  local i = 2
  while args[i] do
    local name, value = args[i]:match("^%-%-([a-z]+)=?(.*)$")
    if name == "for" then
      if value == "" then
        i = i + 1
        value = args[i]
      end
      options[name] = value or ""
    elseif name then
      fail(USAGE, "unknown option --%s; see chromux notify help", name)
    else
      words[#words + 1] = args[i]
    end
    i = i + 1
  end
  return words, options
end

function M.main(...)
  local args = { ... }
  if args[1] == "help" or args[1] == "--help" or args[1] == "-h" then
    io.stdout:write(HELP)
    return FINE
  end
  local command = COMMANDS[args[1] or ""]
  if not command then
    io.stderr:write("chromux notify: ", args[1] and "unknown command " .. args[1] or "a command must follow",
      "; see chromux notify help\n")
    return USAGE
  end
  local ok, code = pcall(function() return command(parse(args)) end)
  if ok then return code end
  if type(code) == "table" then return code.code end
  error(code, 0)
end

return M
