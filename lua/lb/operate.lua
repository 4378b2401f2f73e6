-- operate.lua: what operators ask of the holder of the lease (chromux journal, lb/journal_cli.lua).
--
-- A request is a row of journal_requests; a notification says that there is one. The holder does it, since only it
-- knows what is on its way to the servers, and answers in the row, which stays: who asked for what, why and when.
local Store = require("lb.store")
local json = json

local M = { CHANNEL = "chromux_operator" }

local function words(row) return row.who .. ": " .. row.why end

-- Ends an entry that no instance takes. true, what was done | nil, why not
function M.skip(J, row)
  local home
  if row.lane == 0 then home = J.names else home = J.names.by_lane[row.lane] end
  if not home then return nil, "there is no lane " .. row.lane .. ", or its collection is deleted" end
  local name = string.format("%d/%d", row.lane, row.n)
  local note = "skipped by " .. words(row)
  local body = json.encode { error = "InternalError", message = "entry " .. name .. " was " .. note }
  local ok, why = home:skip(row.n, { status = 500, type = "application/json", body = body }, note)
  if not ok then return nil, why end
  log.warn("entry_skipped", name .. " by " .. words(row))
  J.context.events:note("entry_skipped", nil, nil, name .. " by " .. words(row))
  return true, "entry " .. name .. " is skipped"
end

-- An instance that will not come back: it holds nothing back any more.
function M.retire(J, row)
  local context, names = J.context, J.names
  local server = context.servers.by_name[row.instance]
  if not server then
    local known = {}
    for i, s in ipairs(context.servers.list) do known[i] = s.name end
    return nil, "there is no instance " .. row.instance .. "; the journal knows " .. table.concat(known, ", ")
  end
  if server.retired then return true, row.instance .. " is retired already" end
  local alone, first = 0, nil
  local function look(lane, name)
    local mine, other = lane.copies[row.instance], false
    for _, copy in ipairs(lane.order) do
      other = other or (copy ~= mine and copy.state == "ready" and not copy.server.retired)
    end
    if mine and mine.state == "ready" and not other then alone, first = alone + 1, first or name end
  end
  look(names, "the catalogue")
  for _, lane in ipairs(names:each_in()) do look(lane, lane.name .. " (" .. lane.logical .. ")") end
  if alone > 0 then
    return nil, string.format("it has the only good copy of %d collections, the first is %s", alone, first)
  end
  local reason = "retired by " .. words(row)
  local done, why = context.store:commit {
    { [[INSERT INTO journal_servers (instance, retired) VALUES ($1, true)
        ON CONFLICT (instance) DO UPDATE SET retired = true]], row.instance },
    { "UPDATE journal_copies SET state = 'rebuild', reason = $2, changed_at = now() WHERE instance = $1",
      row.instance, reason, lane = "*" } }
  if not done then return nil, why end
  server.retired, server.note = true, reason
  context.events:note("instance_retired", row.instance, nil, reason)
  log.warn("instance_retired", row.instance .. " by " .. words(row))
  local function give_up(lane)
    local copy = lane.copies[row.instance]
    if copy then
      copy.state, copy.reason, copy.changed = "rebuild", reason, now()
      if lane.decider == copy then lane.decider = nil end
      if lane.publish then lane:publish(copy) end
      lane:kick()
    end
  end
  give_up(names)
  for _, lane in pairs(names.by_logical) do give_up(lane) end
  return true, row.instance .. " is retired: take it out of the configuration, and do not use its name again"
end

local ACTIONS = { skip = M.skip, retire = M.retire }

local function answer_all(J)
  local rows = J.store.reader:query("SELECT * FROM journal_requests WHERE answered_at IS NULL ORDER BY id LIMIT 100")
  for _, row in ipairs(rows or {}) do
    local action = ACTIONS[row.kind]
    local fine, ok, text = pcall(action or function() return nil, "what is " .. row.kind .. "?" end, J, row)
    if not fine then
      log.error("operator_request_failed", ok)
      ok, text = nil, "it failed; see the error log"
    end
    J.store:commit { Store.request_answered(row.id, ok == true, tostring(text)),
      { "SELECT pg_notify($1, $2)", M.CHANNEL .. "_done", tostring(row.id) } }
  end
end

-- All requests that wait, in order.
function M.handle(J)
  if M.busy then
    M.again = true
    return
  end
  M.busy = true
  repeat
    M.again = false
    local ok, why = pcall(answer_all, J)
    if not ok then log.error("operator_requests_failed", why) end
  until not M.again
  M.busy = false
end

-- From now on requests are done, by whichever life of the journal is the holder's.
function M.listen(J)
  local function look()
    if J.role == "holder" and J.context and J.context.drives then M.handle(J) end
  end
  if not J.operated then
    J.operated = true
    J.store.reader:listen(M.CHANNEL, look)
  end
  spawn(look)
end

return M
