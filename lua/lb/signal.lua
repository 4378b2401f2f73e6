-- signal.lua: tasks that wait for something to change. Who waits looks again after each wait():
--
--   while not ready() do signal:wait() end
local api = require("chromux.api")

local Signal = {}
Signal.__index = Signal

function Signal.new() return setmetatable({ waiting = {} }, Signal) end

-- Until the next fire().
function Signal:wait()
  local id, generation = api.token()
  table.insert(self.waiting, { id, generation })
  api.park()
end

-- Wakes all that wait now; they run in a later turn of the loop.
function Signal:fire()
  local waiting = self.waiting
  self.waiting = {}
  for _, token in ipairs(waiting) do api.wake(token[1], token[2]) end
end

return Signal
