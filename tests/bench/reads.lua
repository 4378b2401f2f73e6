-- Reads what reads.sh wrote and prints medians as Markdown, then each goal with what was measured.
-- usage: luajit reads.lua reads.tsv
package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local tables = require("tables")
local median, goal = tables.median, tables.goal

local TEXT = { one = "one server", two = "two servers, chromux", direct = "one server",
  through = "one server, chromux" }
local cells, order = {}, {}
for _, r in ipairs(tables.rows(arg[1])) do
  local label, requests, us, p50, p99 = unpack(r)
  if not cells[label] then
    cells[label] = { label = label, rate = {}, p50 = {}, p99 = {} }
    order[#order + 1] = cells[label]
  end
  local c = cells[label]
  table.insert(c.rate, requests / (us / 1e6))
  table.insert(c.p50, p50 / 1000)
  table.insert(c.p99, p99 / 1000)
end

print("| queries | readers | queries/s | least–most | p50, ms | p99, ms |")
print("|---|---|---:|---:|---:|---:|")
for _, c in ipairs(order) do
  c.all = median(c.rate)
  c.half = median(c.p50)
  local many = c.label == "one" or c.label == "two"
  print(string.format("| %s | %s | %.0f | %.0f–%.0f | %.2f | %.2f |", TEXT[c.label], many and "many, quota" or "1",
    c.all, c.rate[1], c.rate[#c.rate], c.half, median(c.p99)))
end
print()
local one, two, direct, through = cells.one, cells.two, cells.direct, cells.through
goal("two servers ≥ 1.7 × one", string.format("%.2f ×", two.all / one.all), two.all >= 1.7 * one.all)
goal("added latency, p50 ≤ 0.3 ms", string.format("%.2f ms", through.half - direct.half),
  through.half - direct.half <= 0.3)
