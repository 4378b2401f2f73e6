-- hold.lua: keeps a copy where it is for a moment: its driver stops between two steps, and nothing that was sent to it
-- is in doubt.
--
--   local hold, why = Hold.take(lane, copy, patience, bound)   lane: or the catalogue, with an instance's part in it
--       patience: seconds to wait for who holds it now, and for the driver to come to a stop, which costs nothing by
--       itself; bound: seconds after which the hold lets go by itself; nil: never. nil, why: it can't be held now
--   hold.position            where the copy stands
--   hold:mine()              it has not let go
--   hold:release() -> milliseconds for which it was held, or nil when it had let go by itself
local Hold = {}
Hold.__index = Hold

local PULSE = 0.001 -- seconds between looks at a driver that is to stop

-- Why the copy can't be held, apart from being busy; nil: it can.
local function unfit(lane, copy)
  if lane.context.dead or not lane.context.drives then return "the lease is lost" end
  if copy.state ~= "ready" then return "it is " .. copy.state end
  if not copy.server:usable() then return copy.instance .. " can't be used" end
end

local function in_doubt(copy) return not copy.settled or copy.doubt > copy.p or copy.draining end

function Hold.take(lane, copy, patience, bound)
  local till = now() + patience
  while copy.held and now() < till do sleep(PULSE) end
  if copy.held then return nil, "it is held already" end
  local hold = setmetatable({ lane = lane, copy = copy }, Hold)
  copy.held = hold
  local why = unfit(lane, copy)
  while not why and (copy.running or in_doubt(copy)) do
    -- Its doubt ends only when its driver goes on.
    if not copy.running then why = "a write to it is in doubt" else sleep(PULSE) end
    if not why and now() > till then why = "its driver does not come to an end" end
    why = why or unfit(lane, copy)
  end
  if why then
    copy.held = nil
    lane:kick_copy(copy)
    return nil, why
  end
  hold.position, hold.since = copy.p, now()
  if bound then
    spawn(function()
      sleep(bound)
      if hold:mine() then lane.context.fault("rebuild.hold_expired") end
      hold:release()
    end)
  end
  return hold
end

function Hold:mine() return self.copy.held == self and not self.lane.context.dead end

function Hold:release()
  local mine = self:mine()
  if self.copy.held == self then
    self.copy.held = nil
    self.lane:kick()
  end
  return mine and (now() - self.since) * 1000 or nil
end

return Hold
