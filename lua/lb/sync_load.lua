-- sync_load.lua: how clients fare while sync works, as balancers tell it (sync_clients.lua).
--
--   local load = Load.new()
--   load:hear(payload)     of a notification on Load.CHANNEL
--   load:figures() -> {requests= a second | nil: nobody has told, waits= | nil, usual= | nil, told=}
--   load:idle()            it is known that no client asks for anything
local json = json

local Load = { CHANNEL = "chromux_sync_clients" }
Load.__index = Load

local STALE = 15 -- seconds after which what a balancer said counts no more; it speaks every 3

function Load.new() return setmetatable({ heard = {}, told = 0 }, Load) end

local function number(v) return type(v) == "number" and v >= 0 and v < math.huge and v or nil end

function Load:hear(payload)
  local news = payload and json.decode(payload)
  if type(news) ~= "table" or not number(news.requests) then return end
  self.heard[tostring(news.balancer)] = { at = now(), requests = news.requests, waits = number(news.waits),
    usual = number(news.usual) }
  self.told = self.told + 1
end

local function ratio(h) return h.waits / math.max(h.usual or h.waits, 0.0001) end

-- Of several balancers the one whose clients wait longest, compared with what they are used to, is the one that counts.
function Load:figures()
  local requests, worst
  for name, h in pairs(self.heard) do
    if now() - h.at > STALE then
      self.heard[name] = nil
    else
      requests = (requests or 0) + h.requests
      if h.waits and (not worst or ratio(h) > ratio(worst)) then worst = h end
    end
  end
  return { requests = requests, waits = worst and worst.waits, usual = worst and worst.usual, told = self.told }
end

function Load:idle() return self:figures().requests == 0 end

return Load
