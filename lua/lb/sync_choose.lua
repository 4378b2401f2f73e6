-- sync_choose.lua: who is right (policies/sync.lua: authority), and telling people.
local M = {}

local function better(a, b)
  if (a.role == "primary") ~= (b.role == "primary") then return a.role == "primary" end
  if a.priority ~= b.priority then return a.priority > b.priority end
  return a.instance < b.instance
end

-- The copy of the list that the others are measured by, or made from. nodes: of lb.courier; list: {{instance=,
-- position=, state=, behind=}, ...}, not empty. What the policy does not say: the primary, then by priority.
function M.authority(nodes, list)
  local by_name, copies, of, head = {}, {}, {}, 0
  for _, node in ipairs(nodes) do by_name[node.name] = node end
  for _, c in ipairs(list) do head = math.max(head, c.position) end
  for i, c in ipairs(list) do
    local node = by_name[c.instance] or {}
    copies[i] = { instance = c.instance, role = node.role or "replica", priority = node.priority or 0, state = c.state,
      position = c.position, behind = c.behind or head - c.position, health = node.health or "down",
      proven_at = c.proven_at or 0, records = c.records or 0 }
    of[c.instance] = c
  end
  local there, policy = pcall(require, "chromux.policy")
  local name = there and policy.call("sync.authority", copies)
  if name and of[name] then return of[name] end
  table.sort(copies, better)
  return of[copies[1].instance]
end

function M.notice(event)
  local there, notices = pcall(require, "lb.notices")
  if there then notices.raise(event) end
end

return M
