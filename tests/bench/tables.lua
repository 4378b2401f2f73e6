-- What the reports of writes.sh and reads.sh share.
local M = {}

-- The lines of a file as lists of their fields; numbers are numbers.
function M.rows(path)
  local out = {}
  for line in io.lines(path) do
    local row = {}
    for field in line:gmatch("[^\t]+") do row[#row + 1] = tonumber(field) or field end
    out[#out + 1] = row
  end
  return out
end

-- Sorts the list. nil: it is empty.
function M.median(list)
  table.sort(list)
  local n = #list
  if n == 0 then return nil end
  return n % 2 == 1 and list[(n + 1) / 2] or (list[n / 2] + list[n / 2 + 1]) / 2
end

function M.goal(text, measured, met)
  print(string.format("- %s: %s (%s)", met and "met" or "missed", text, measured))
end

return M
