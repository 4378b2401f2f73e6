-- tripped.lua: policies that a worker, a monitor or a balancer that tells nobody has set aside, told to people. (Those
-- of the balancer that tells are notify_watch.lua's, which also ends what is told here when this process has ended:
-- `source` says which it was.)
--
--   look(role, except)   as often as one likes; role: as people know this process; except: a file that others tell of
--   leave()              others tell of them from now on
local notices = require("lb.notices")
local process = require("lb.process")

local M = {}

local told = {} -- [file] = its event, without kind and title

local function event_of(file, role)
  local name = process.name()
  local who = string.format("%s %s on %s", role, name:match("/(%d+)/"), process.host())
  return { key = "policy/" .. file .. " of " .. who, source = name, who = who }
end

local function tell_back(file)
  local e = told[file]
  told[file] = nil
  notices.raise { kind = "policy_back", key = e.key, source = e.source, title = "Policy " .. file
    .. " decides again in " .. e.who, fields = { { "file", file }, { "process", e.who } } }
end

function M.look(role, except)
  local there, policy = pcall(require, "chromux.policy") -- a simulated process has none
  local aside = {}
  for _, p in ipairs(there and policy.tripped() or {}) do
    aside[p.file] = true
    if not told[p.file] and p.file ~= except then
      local e = event_of(p.file, role)
      told[p.file] = e
      notices.raise { kind = "policy_tripped", key = e.key, source = e.source, title = "Policy " .. p.file
        .. " failed too often in " .. e.who .. " and is set aside there",
        fields = { { "file", p.file }, { "process", e.who }, { "cause", p.last_error } } }
    end
  end
  for file in pairs(told) do
    if not aside[file] then tell_back(file) end
  end
end

function M.leave()
  for file in pairs(told) do tell_back(file) end
end

return M
