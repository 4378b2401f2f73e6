-- deeds.lua: requests by which the holder of the lease changes something on a server, beside the entries of lanes.
--
--   send(context, server, method, target, body, physical, late, max) -> kind, answer
--       kind: a word of answers.meaning() with the answer, "not_sent", "over" (the server ended the connection), or
--       "unknown", how it ended (it may yet be executed). physical: the collection that a 404 may name as lost.
--       late(): called once when the time for a try has passed. max: bytes of the answer
--   id_by_name(context, server, base, name) -> id, answer | false (there is none) | nil, why, answer
--       base: the target of the database's collections
local answers = require("lb.answers")
local slice = require("chromux.slice")

local M = {}

local ANSWER_MOST = 16 * 1024 * 1024

function M.send(context, server, method, target, body, physical, late, max)
  local settings = context.settings
  local call, why = server:send({ method = method, target = target, body = body,
    type = body and "application/json" or nil, max = max or ANSWER_MOST }, context)
  if not call then return "not_sent", why end
  local got, ending, text = call:wait(settings.TRY_TIMEOUT)
  if not got and ending == "late" then
    if late then late() end
    got, ending, text = call:wait(context.fault("drain.begin") or settings.DRAIN_CAP)
    if got then context.fault("drain.late_answer") end
  end
  if got then return answers.meaning(got, physical), got end
  if ending == "late" then
    context.fault("drain.cap")
    call:close()
  end
  if ending == "not_sent" or ending == "fenced" then return "not_sent", text end
  return ending == "peer_closed" and "over" or "unknown", ending
end

function M.id_by_name(context, server, base, name)
  local a, kind = server:ask("GET", base .. "/" .. context.encode(name))
  if not a then return nil, kind end
  if a.status == 404 then return false end
  local c = a.status == 200 and slice.collection(a.body)
  if not c then return nil, "answered " .. a.status, a end
  return c.id, a
end

return M
