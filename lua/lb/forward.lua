-- forward.lua: a standby's writes, taken to the holder of the lease as HTTP requests.
--
-- Each carries the token by which its entry is known (X-Chromux-Token, or the client's own Idempotency-Key), so asking
-- again after a broken connection, or asking the next holder, is no second entry. X-Chromux-Forwarded says how many
-- seconds the client still waits, and keeps a balancer that is not the holder from passing it on.
--
--   Forward.send(req, wanted, where, on_sent) -> answer as of fetch, whether one that was asked before may have made
--       an entry | nil, "here" | nil, "given_up"
--       wanted() -> false when nobody waits any more; where() -> "here", or {address=, epoch=} or nil when not known
--       on_sent(yes): whether what was asked may have become an entry by now
--   Forward.changed()   where() may have another answer
local Signal = require("lb.signal")

local Forward = {}

local RETRY_LEAST, RETRY_MOST = 0.02, 0.2 -- seconds between tries
local MARGIN = 0.25                       -- seconds: the holder answers before we have to
local ANSWER_MOST = 64 * 1024 * 1024

local open = {} -- signals of those who wait for an answer

function Forward.changed()
  for signal in pairs(open) do signal:fire() end
end

local function headers_of(req, left)
  return {
    ["Content-Type"] = req.type ~= "" and req.type or nil,
    ["Idempotency-Key"] = req.key,
    ["X-Chromux-Token"] = not req.key and req.token or nil,
    ["X-Chromux-Forwarded"] = string.format("%.3f", math.max(left - MARGIN, left / 2)),
    ["X-Request-Id"] = req.id,
  }
end

-- Until the answer is there, or nobody wants it any more, or the holder is another one.
local function one_try(req, to, wanted, where)
  local over = Signal.new()
  local answer, why, ended
  local left = req.deadline - now()
  open[over] = true
  local task = spawn(function()
    answer, why = fetch { url = to.address .. req.target, method = req.method, body = req.body,
      headers = headers_of(req, left), timeout = math.max(left, 0.05), max = ANSWER_MOST }
    ended = true
    over:fire()
  end)
  while not ended and wanted() do
    local at = where()
    if at == "here" or (at and at.epoch ~= to.epoch) then break end
    over:wait()
  end
  open[over] = nil
  if not ended then task:cancel() end
  return answer, why or "another balancer has the lease"
end

function Forward.send(req, wanted, where, on_sent)
  local wait, sent = RETRY_LEAST, false
  while wanted() do
    local to = where()
    if to == "here" then return nil, "here" end
    if to and to.address ~= "" then
      on_sent(true)
      local answer, why = one_try(req, to, wanted, where)
      if answer and not answer.headers["x-chromux-not-holder"] then return answer, sent end
      -- "Failed to connect to", "Couldn't connect to"
      sent = sent or (answer and answer.headers["x-chromux-not-holder"] == "perhaps-kept")
        or not (answer or tostring(why):find("onnect to", 1, true))
      on_sent(sent)
      if not answer then
        log.debug("forward_failed", to.address .. ": " .. tostring(why))
      end
    end
    sleep(wait)
    wait = math.min(wait * 2, RETRY_MOST)
  end
  return nil, "given_up"
end

return Forward
