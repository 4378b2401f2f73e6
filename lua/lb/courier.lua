-- courier.lua: require("chromux.courier"): requests of the journal to the instances, each on a connection of
-- its own, with an ending that says what the server may have made of it (core/courier.h).
--
--   send{node="name", method="POST", target="/api/v2/...", fields={"Name: value"}, type="application/json",
--        body=, request_id=, max=64 MiB, fenced=false, fresh=false, incarnation=}
--       -> call | nil, message                 node: a living one; incarnation: only to that life of the server
--   call:wait(seconds) -> {status=, type=, head=raw head, body=} | nil, kind, text
--       kind "late": the call goes on and can be waited for again, by one task at a time; else how it ended,
--       and every further wait says the same: not_sent, peer_closed (by the server: it is over), broken,
--       garbage, fenced, closed (by us; after these the server may still act on what was sent)
--   call:touched() -> a byte was sent, all was sent
--   call:close()     every call must be closed or waited for until it has ended
--   request{..., timeout=30, unless=fn} -> as wait; a late call is closed: nil, "late", text. unless: asked each
--       second; true ends it at once
--   nodes() -> {{name=, role=, health=, last_error=, admin=, priority=, weight=, resolved=, incarnation=}, ...}
--   fence(boottime), boottime()               until when fenced requests may be completed; at first none may
--   on_incarnation(fn), on_health(fn), on_membership(fn): each change runs fn(name, value) as a task of its
--       own; value: 0 or the new incarnation; up, suspect or down; true joined, false gone (nobody uses it)
local raw = require("chromux.courier.raw")
local runtime = require("lb.runtime")

local M = { nodes = raw.nodes, fence = raw.fence, boottime = raw.boottime }

local ANSWER_MAX, TIMEOUT = 64 * 1024 * 1024, 30

local Call = {}
Call.__index = Call

function M.send(r)
  if type(r) ~= "table" then error("send needs a table", 2) end
  if not r.max then r = setmetatable({ max = ANSWER_MAX }, { __index = r }) end
  local id, why = raw.send(r)
  if not id then return nil, why end
  return setmetatable({ id = id }, Call)
end

function Call:wait(seconds)
  if not self.ended then
    local status, kind, text, body, touched, complete = raw.wait(self.id, seconds)
    if not status and kind == "late" then return nil, kind, text end
    if not self.ended then
      self.ended = true
      if status then
        self.answer = { status = status, head = kind, type = text, body = body }
      else
        self.kind, self.text = kind, text
      end
      if touched ~= nil then self.was_touched, self.was_complete = touched, complete end
    end
  end
  if self.answer then return self.answer end
  return nil, self.kind, self.text
end

function Call:touched()
  local touched, complete = raw.touched(self.id)
  if touched == nil then return self.was_touched or false, self.was_complete or false end
  return touched, complete
end

function Call:close()
  if self.ended then return end
  self.was_touched, self.was_complete = self:touched()
  raw.close(self.id)
  self.ended, self.kind, self.text = true, "closed", "closed by us"
end

function M.request(r)
  local call, why = M.send(r)
  if not call then return nil, "not_sent", why end
  local left = r.timeout or TIMEOUT
  local answer, kind, text
  repeat
    local part = r.unless and math.min(left, 1) or left
    answer, kind, text = call:wait(part)
    left = left - part
  until answer or kind ~= "late" or left <= 0 or r.unless()
  if answer or kind ~= "late" then return answer, kind, text end
  call:close()
  return nil, kind, text
end

local listeners = { incarnation = {}, health = {}, membership = {} }

-- Called from C, in no task.
function M.told(kind, name, value)
  for _, fn in ipairs(listeners[kind]) do runtime.spawn(fn, name, value) end
end

for kind, list in pairs(listeners) do
  M["on_" .. kind] = function(fn)
    raw.listen()
    list[#list + 1] = fn
  end
end

return M
