-- sync_load.lua: how clients fare while sync works, as balancers tell it (sync_clients.lua).
--
--   local load = Load.new()
--   load:hear(payload)     of a notification on Load.CHANNEL
--   load:figures() -> {requests= a second | nil: nobody has told, waits= | nil, usual= | nil, told=}
--   load:clients() -> "gone": it is known that none has asked for anything for a while; "away": not since a balancer
--                     spoke before the last time; "here": they are, or it is not known
local json = json

local Load = { CHANNEL = "chromux_sync_clients" }
Load.__index = Load

local STALE = 15 -- seconds after which what a balancer said counts no more; it speaks every 3
local GONE = 60  -- seconds without a request after which clients are gone: some ask now and then

function Load.new() return setmetatable({ heard = {}, told = 0 }, Load) end

local function number(v) return type(v) == "number" and v >= 0 and v < math.huge and v or nil end

local function ratio(h) return h.waits / math.max(h.usual or h.waits, 0.0001) end

-- Of several balancers the one whose clients wait longest, compared with what they are used to, is the one that counts.
local function current(self)
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

function Load:hear(payload)
  local news = payload and json.decode(payload)
  if type(news) ~= "table" or not number(news.requests) then return end
  self.heard[tostring(news.balancer)] = { at = now(), requests = news.requests, waits = number(news.waits),
    usual = number(news.usual) }
  self.told = self.told + 1
  if news.requests > 0 then self.asked, self.asked_at = current(self).requests, now() end
end

-- Between the requests of clients that are not gone there are as many as there were last, and none waits.
function Load:figures()
  local figures = current(self)
  if figures.requests == 0 and self.asked and now() - self.asked_at < GONE then
    figures.requests, figures.waits = self.asked, 0
  end
  return figures
end

function Load:clients()
  if self:figures().requests == 0 then return "gone" end
  return current(self).requests == 0 and "away" or "here"
end

return Load
