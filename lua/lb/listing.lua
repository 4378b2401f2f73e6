-- listing.lua: many things in few lines of the log, of which one event has at most ten a second.
--
--   warn(event, head, texts)    lines "head: text, text, ..."
local M = {}

local LINE_MOST = 1500 -- bytes

function M.warn(event, head, texts)
  local parts, bytes = {}, 0
  local function flush()
    if #parts > 0 then log.warn(event, head .. ": " .. table.concat(parts, ", ")) end
    parts, bytes = {}, 0
  end
  for _, text in ipairs(texts) do
    if bytes + #text > LINE_MOST then flush() end
    parts[#parts + 1], bytes = text, bytes + #text + 2
  end
  flush()
end

return M
