-- notify_sinks.lua: where messages go: Slack, any other webhook, or the log where neither is set.
--
--   Sinks.new{secrets={SLACK_WEBHOOK_URL=, WEBHOOK_URL=}, deployment=, public_url=, call=policy.call, fetch=}
--   sinks:names() -> {"slack", "webhook"} | {"log"}
--   sinks:send(sink, message, events) -> "accepted" | "refused" | "retry", status, why, seconds
--       events: as policies see them (Book:view). seconds: how long the sink wants to be left alone
--
-- A URL is a secret: it is in no text that leaves this file; what curl says of a failure is put into our own words.
local notices = require("lb.notices")

local Sinks = {}
Sinks.__index = Sinks

Sinks.TIMEOUT = 10         -- seconds for a request
local ANSWER_MOST = 65536  -- bytes of an answer
local SAID_MOST = 200      -- bytes of it that are kept
local SECRET_LEAST = 6     -- bytes of a part of the URL that is left out of that
local AFTER_MOST = 3600    -- seconds: a Retry-After beyond that is not believed
local TEXT_MOST = 12000    -- bytes of a plain text; Slack takes 40,000 characters
local URLS = { slack = "SLACK_WEBHOOK_URL", webhook = "WEBHOOK_URL" }
local OVER = "✅"
local ICONS = { high = "🚨", medium = "⚠️", low = "ℹ️" }

function Sinks.new(options)
  local self = setmetatable({ list = {}, fetch = options.fetch or fetch, call = options.call }, Sinks)
  self:configure(options)
  return self
end

-- Again, after a reload: secrets, deployment, public_url as in new().
function Sinks:configure(options)
  self.deployment, self.public_url = options.deployment or "chromux", options.public_url or ""
  self.urls, self.list = {}, {}
  for _, name in ipairs { "slack", "webhook" } do
    local url = (options.secrets or {})[URLS[name]]
    if url and url ~= "" then
      self.urls[name] = url
      self.list[#self.list + 1] = name
    end
  end
  if #self.list == 0 then self.list[1] = "log" end
end

function Sinks:names() return self.list end

-- ---- words -----------------------------------------------------------------------------------------------

local function iso(t) return os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(t)) end

-- Slack's three special characters, so that no text of a user becomes a mention or a link.
local function escaped(s) return (tostring(s):gsub("&", "&amp;"):gsub("<", "&lt;"):gsub(">", "&gt;")) end

local function one_plain(e)
  local lines = { (e.ends and OVER or ICONS[e.urgency] or "") .. " " .. e.title }
  if e.text ~= "" then lines[#lines + 1] = e.text end
  for _, f in ipairs(e.fields) do lines[#lines + 1] = string.format("• %s: %s", f[1], tostring(f[2])) end
  if e.repeats > 0 then lines[#lines + 1] = string.format("• %d more of these were not told", e.repeats) end
  lines[#lines + 1] = iso(e.at) .. (e.ends and string.format(", after %d s", math.max(0, e.at - e.since)) or "")
  return table.concat(lines, "\n")
end

-- All events as text, without any policy. why: why slack.lua did not do it.
function Sinks:plain(events, why)
  local parts = { "[" .. self.deployment .. "]" }
  for _, e in ipairs(events) do parts[#parts + 1] = one_plain(e) end
  if why then parts[#parts + 1] = "(plain text, because slack.format failed: " .. why .. ")" end
  return escaped(notices.clean(table.concat(parts, "\n"), TEXT_MOST))
end

local RANK = { low = 1, medium = 2, high = 3 }

-- What slack.format is asked about: the event, or a group of them.
local function asked(events)
  if #events == 1 then return events[1] end
  local urgency, at, since = "low", events[1].at, events[1].since
  for _, e in ipairs(events) do
    if RANK[e.urgency] > RANK[urgency] then urgency = e.urgency end
    at, since = math.max(at, e.at), math.min(since, e.since)
  end
  return { kind = "group", key = "", urgency = urgency, at = at, now = events[1].now, since = since, ends = false,
    repeats = 0, openings = 1, title = #events .. " events", text = "", fields = {}, group = events }
end

-- The payload for Slack; the policy's when there is one that can be used.
function Sinks:slack(events)
  local payload, why = self.call("slack.format", asked(events))
  local body = type(payload) == "table" and type(payload.text) == "string" and json.encode(payload)
  self.plain_why = not body and notices.clean(why or "no message with a text", 500) or nil
  if not body then return { text = self:plain(events, self.plain_why) } end
  -- The deployment's name is in every message, whatever the policy writes.
  local name = escaped(self.deployment)
  if not body:find(json.encode(name):sub(2, -2), 1, true) then payload.text = "[" .. name .. "] " .. payload.text end
  return payload
end

-- The payload for any other webhook.
function Sinks:generic(m, events)
  local list = {}
  for i, e in ipairs(events) do
    local fields = {}
    for _, f in ipairs(e.fields) do fields[f[1]] = f[2] end
    list[i] = { kind = e.kind, key = e.key, urgency = e.urgency, title = e.title, text = e.text, at = iso(e.at),
      since = iso(e.since), ends = e.ends, repeats = e.repeats, fields = next(fields) and fields or nil }
  end
  return { message = m.uid, attempt = m.attempts, deployment = self.deployment,
    url = self.public_url ~= "" and self.public_url or nil, text = self:plain(events), events = list }
end

-- ---- sending ---------------------------------------------------------------------------------------------

-- A failure in our own words: curl's name hosts and ports.
local function failure(text)
  text = text:lower()
  if text:find("time%-out") or text:find("timed out") then return "no answer in time" end
  if text:find("resolve") then return "its name cannot be resolved" end
  if text:find("connect") then return "it cannot be reached" end
  if text:find("ssl") or text:find("tls") or text:find("certificate") then return "TLS failed" end
  if text:find("longer than") then return "its answer is too long" end
  if text:find("url") then return "its URL cannot be used" end
  return "the connection was lost"
end

local MONTHS = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6, Jul = 7, Aug = 8, Sep = 9, Oct = 10, Nov = 11,
  Dec = 12 }

-- Days from 1970 (proleptic Gregorian).
local function days(y, m, d)
  if m <= 2 then y, m = y - 1, m + 12 end
  return 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400) + math.floor((153 * m - 457) / 5) + d
    - 719469
end

-- Seconds that Retry-After asks for: a number or a date (RFC 9110 10.2.3); nil: nothing that can be used.
function Sinks.retry_after(field, t)
  if not field then return nil end
  local seconds = tonumber(field:match("^%s*(%d+)%s*$"))
  local d, month, y, h, min, s = field:match("(%d%d) (%a%a%a) (%d%d%d%d) (%d%d):(%d%d):(%d%d) GMT")
  if MONTHS[month or ""] then
    seconds = days(tonumber(y), MONTHS[month], tonumber(d)) * 86400 + h * 3600 + min * 60 + s - t
  end
  return seconds and math.max(0, math.min(seconds, AFTER_MOST))
end

-- What the sink answered, without what in the URL may be the secret.
local function said(body, url)
  local user, rest = url:match("^%a+://([^/?#]*@)"), url:match("^%a+://[^/?#]*(.*)$")
  for word in ((user or "") .. "/" .. (rest or "")):gmatch("[^/?#&=:@]+") do
    if #word >= SECRET_LEAST then body = body:gsub((word:gsub("%p", "%%%0")), "…") end
  end
  return notices.clean(body, SAID_MOST)
end

local function meaning(answer, url)
  local status = answer.status
  if status >= 200 and status < 300 then return "accepted", status, "" end
  local why = string.format("answered %d: %s", status, said(answer.body, url))
  if status == 429 or status >= 500 then
    return "retry", status, why, Sinks.retry_after(answer.headers["retry-after"], now())
  end
  return "refused", status, why
end

function Sinks:send(sink, m, events)
  if sink == "log" then
    for _, e in ipairs(events) do log.warn("notice", e.kind .. " " .. e.key .. ": " .. one_plain(e)) end
    return "accepted"
  end
  local url = self.urls[sink]
  if not url then return "refused", nil, "it is not configured any more" end
  local body = json.encode(sink == "slack" and self:slack(events) or self:generic(m, events))
  if not body then return "refused", nil, "the message is no JSON" end
  local answer, why, status = self.fetch { url = url, method = "POST", body = body, timeout = Sinks.TIMEOUT,
    max = ANSWER_MOST, headers = { ["Content-Type"] = "application/json; charset=utf-8",
      ["User-Agent"] = "chromux", ["X-Chromux-Message"] = m.uid } }
  -- The status says whether it was taken, whatever became of the rest of the answer.
  if not answer and status and status >= 200 then answer = { status = status, headers = {}, body = failure(why) } end
  if not answer then return "retry", nil, failure(why) end
  return meaning(answer, url)
end

return Sinks
