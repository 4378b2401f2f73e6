-- Reads what sync.sh wrote and prints medians as Markdown, then each goal with what was measured.
-- usage: luajit sync_report.lua sync.tsv
package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local tables = require("tables")
local median, goal = tables.median, tables.goal

local rates, cpu, load, memory = {}, { read = {}, verify = {} }, nil, nil
for _, r in ipairs(tables.rows(arg[1])) do
  local label = r[1]
  if label == "load" then
    load = { requests = r[2], p50 = r[3], p99 = r[4], longest = r[5], before = r[6], held = r[7] }
  elseif label == "memory" then
    memory = r[2] / 1024
  elseif cpu[label] then
    cpu[label][r[2]] = r[3] / 1e6
  else
    rates[label] = rates[label] or {}
    table.insert(rates[label], r[2] / (label == "plain" and r[3] or r[3] / 1e6))
  end
end

local TEXT = { { "plain", "a script: get and add" }, { "rebuild", "chromux, one worker" },
  { "workers1", "one worker with a quota" }, { "workers2", "two workers with a quota each" } }
print("| copying | records/s | least–most |")
print("|---|---:|---:|")
for _, t in ipairs(TEXT) do
  local all = rates[t[1]]
  rates[t[1] .. "_median"] = median(all)
  print(string.format("| %s | %.0f | %.0f–%.0f |", t[2], rates[t[1] .. "_median"], all[1], all[#all]))
end
print()
print(string.format("Under a rebuild %d requests at 100/s: p50 %.1f ms, p99 %.1f ms (%.1f ms before it), longest "
  .. "%.0f ms.", load.requests, load.p50, load.p99, load.before, load.longest))
print()
local plain, one, two = rates.rebuild_median / rates.plain_median, rates.workers1_median, rates.workers2_median
goal("rebuild ≥ 1.5 × a plain script", string.format("%.2f ×", plain), plain >= 1.5)
goal("two workers ≥ 1.5 × one", string.format("%.2f ×", two / one), two >= 1.5 * one)
goal("no lane held longer than 200 ms", string.format("%.0f ms", load.held), load.held >= 0 and load.held <= 200)
goal("p99 of clients not doubled by a rebuild", string.format("%.1f ms against %.1f ms", load.p99, load.before),
  load.p99 <= 2 * load.before)
for _, name in ipairs { "primary", "replica" } do
  goal("verification costs the " .. name .. " ≤ 1.5 × one full read", string.format("%.2f ×",
    cpu.verify[name] / cpu.read[name]), cpu.verify[name] <= 1.5 * cpu.read[name])
end
goal("memory of the worker ≤ 300 MB", string.format("%.0f MB", memory), memory <= 300)
