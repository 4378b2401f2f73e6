-- attempt.lua: one try of an entry, or of a group, on one copy.
local Store = require("lb.store")
local answers = require("lb.answers")
local groups = require("lb.groups")
local mend = require("lb.mend")
local slice = require("chromux.slice")
local json = json

local M = {}

-- Sends the group and says how it ended: a word of answers.meaning() with the answer, or "not_sent", "over" (the server
-- ended the connection: whatever it did is done), "unknown" (we ended it: the server may still be at it).
-- late() is called once when the time for a try has passed; the request is then waited for nevertheless (R4).
function M.transmit(lane, copy, group, late)
  local settings, e = lane.context.settings, group[1]
  local kind, answer = "applied", { status = 200, type = "application/json", body = "{}" }
  local deleted
  lane.context.counts.sent = lane.context.counts.sent + #group
  for i, body in ipairs(groups.bodies(group)) do
    if i > 1 then lane:doubt(copy, group[#group].n) end -- a part of it is done
    local call, why = copy.server:send({
      method = "POST", target = lane:target(copy, e.rest), type = e.type ~= "" and e.type or nil, body = body,
      max = 16 * 1024 * 1024 }, lane.context)
    if not call then return "not_sent", why end
    lane.context.counts.requests = lane.context.counts.requests + 1
    lane.context.fault(#group > 1 and "group.sent" or "send.sent", call)
    local got, ending, text = call:wait(settings.TRY_TIMEOUT)
    if not got and ending == "late" then
      lane:doubt(copy, group[#group].n)
      if late then late() end
      got, ending, text = call:wait(lane.context.fault("drain.begin") or settings.DRAIN_CAP)
      if got then lane.context.fault("drain.late_answer") end
    end
    if not got then
      if ending == "late" then
        lane.context.fault("drain.cap")
        call:close()
      end
      -- fenced: the last byte was never sent, so it can't be executed
      if ending == "not_sent" or ending == "fenced" then return "not_sent", text end
      lane:doubt(copy, group[#group].n)
      return ending == "peer_closed" and "over" or "unknown", ending
    end
    kind, answer = answers.meaning(got, copy.physical), got
    if kind ~= "applied" then return kind, answer end
    local n = e.resolved and tonumber(answer.body:match('^{"deleted":(%d+)}$'))
    if n then deleted = (deleted or 0) + n end
  end
  if e.resolved and deleted then answer.body = '{"deleted":' .. deleted .. "}" end
  return kind, answer
end

-- transmit(), and what a second time needs besides.
function M.try(lane, copy, group, late)
  local again = copy.doubt >= group[1].n
  local kind, answer = M.transmit(lane, copy, group, late)
  if kind ~= "applied" or not again or group[1].action ~= "add" then return kind, answer end
  for _, e in ipairs(group) do
    local lost
    local whole, why = mend.add(e.body, function(rest, body)
      local changes = rest ~= "/get"
      local a, ending, text = copy.server:ask("POST", lane:target(copy, rest), body,
        lane.context.settings.TRY_TIMEOUT, changes)
      if not a and changes and ending ~= "not_sent" and ending ~= "fenced" then lost = ending end
      return a, text or ending
    end)
    if lost then return lost == "peer_closed" and "over" or "unknown", lost end
    if not whole then return "later", why end
  end
  return kind, answer
end

-- Turns a filter into ids on the copy that is to decide (R: resolved before anything is sent). true | false, how
function M.resolve(lane, copy, e)
  local d = slice.delete(e.body)
  -- Ids only, or for Chroma to refuse: a limit without a filter too.
  if not d or not (d.where or d.where_document) then return true end
  local parts = { '"include":[]' }
  if d.ids then parts[#parts + 1] = slice.ids_body(d.ids):sub(2, -2) end
  for _, name in ipairs { "where", "where_document", "limit" } do
    if d[name] then parts[#parts + 1] = '"' .. name .. '":' .. d[name] end
  end
  local target = lane:target(copy, "/get")
  local got, kind, text = copy.server:ask("POST", target, "{" .. table.concat(parts, ",") .. "}",
    lane.context.settings.TRY_TIMEOUT)
  lane.context.fault("resolve.read")
  if not got then return false, kind == "not_sent" and "not_sent" or "again", text end
  local how = answers.meaning(got, copy.physical)
  if how ~= "applied" then return false, how, got end
  local ids = json.decode(got.body)
  if not ids or type(ids.ids) ~= "table" then return false, "again" end
  local quoted = {}
  for i, id in ipairs(ids.ids) do quoted[i] = slice.quote(id) end
  local text_ids = "[" .. table.concat(quoted, ",") .. "]"
  local rows, why = lane.context.store:commit { Store.resolve_entry(lane.id, e.n, text_ids) }
  if not rows then return false, "again", why end
  if rows[1].affected == 0 then -- it was resolved before: what is recorded counts
    local recorded = lane.context.store:entries(lane.id, e.n, 1)
    if not recorded or not recorded[1] then return false, "again" end
    text_ids = recorded[1].resolved
  end
  lane.context.fault("resolve.recorded")
  e.resolved = text_ids
  return true
end

return M
