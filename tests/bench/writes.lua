-- Reads what writes.sh wrote and prints medians as Markdown, then each goal with what was measured.
-- usage: luajit writes.lua writes.tsv
package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local tables = require("tables")
local median, goal = tables.median, tables.goal

local cells, order, lag, catchups = {}, {}, nil, {}
for _, r in ipairs(tables.rows(arg[1])) do
  if r[1] == "add" then
    local _, where, writers, requests, us, p50, p99, drain = unpack(r)
    local k = where .. writers
    if not cells[k] then
      cells[k] = { where = where, writers = writers, rate = {}, p50 = {}, p99 = {}, drain = {} }
      order[#order + 1] = cells[k]
    end
    local c = cells[k]
    table.insert(c.rate, requests / (us / 1e6))
    table.insert(c.p50, p50 / 1000)
    table.insert(c.p99, p99 / 1000)
    table.insert(c.drain, drain / 1000)
  elseif r[1] == "lag" then
    lag = { n = r[2], p50 = r[3] / 1000, p99 = r[4] / 1000 }
  elseif r[1] == "catchup" then
    table.insert(catchups, r[2] / (r[3] / 1e6))
  end
end

print("| single-record writes | writers | writes/s | least–most | p50, ms | p99, ms " ..
  "| both complete after, ms |")
print("|---|---:|---:|---:|---:|---:|---:|")
for _, c in ipairs(order) do
  c.all = median(c.rate)
  local drain = c.where == "direct" and "–" or string.format("%.0f", median(c.drain))
  print(string.format("| %s | %d | %.0f | %.0f–%.0f | %.2f | %.2f | %s |", c.where, c.writers, c.all, c.rate[1],
    c.rate[#c.rate], median(c.p50), median(c.p99), drain))
end
local caught = median(catchups)
if lag then
  print(string.format("\nLag at 50 writes/s, %d writes: p50 %.1f ms, p99 %.1f ms.", lag.n, lag.p50, lag.p99))
end
if caught then
  print(string.format("Catching up: %.0f records/s (%.0f–%.0f), from the start of the server's process.", caught,
    catchups[1], catchups[#catchups]))
end
print()

local d1, c1, d32, c32 = cells.direct1, cells.chromux1, cells.direct32, cells.chromux32
if d1 and c1 then
  goal("1 writer ≥ 0.8 × direct", string.format("%.2f ×", c1.all / d1.all), c1.all >= 0.8 * d1.all)
end
if d32 and c32 then
  goal("32 writers ≥ 5 × direct", string.format("%.1f ×", c32.all / d32.all), c32.all >= 5 * d32.all)
  local share = median(c32.p50) / median(d32.p50)
  goal("32 writers, p50 ≤ 0.3 × direct", string.format("%.2f ×", share), share <= 0.3)
end
if lag then goal("lag at 50 writes/s, p99 ≤ 100 ms", string.format("%.1f ms", lag.p99), lag.p99 <= 100) end
if caught and d1 then
  goal("catching up ≥ 5 × one direct writer", string.format("%.1f ×", caught / d1.all), caught >= 5 * d1.all)
end
