-- Reads what sync.sh wrote and prints medians as Markdown, then each goal with what was measured.
-- usage: luajit sync_report.lua sync.tsv
package.path = arg[0]:gsub("[^/]*$", "") .. "?.lua;" .. package.path
local tables = require("tables")
local median, goal = tables.median, tables.goal

local rates, cpu, load, memory = {}, { read = {}, verify = {} }, nil, nil
for _, r in ipairs(tables.rows(arg[1])) do
  local label = r[1]
  if label == "load" then
    load = { requests = r[2], p50 = r[3], p99 = r[4], longest = r[5], before = r[6], held = r[7], reads = r[8],
      writes = r[9], before_reads = r[10], before_writes = r[11], alone = r[12], verifying = r[13], rate = r[14] }
  elseif label == "memory" then
    memory = r[2] / 1024
  elseif cpu[label] then
    cpu[label][r[2]] = r[3] / 1e6
  else
    rates[label] = rates[label] or {}
    table.insert(rates[label], r[2] / r[3])
  end
end

local TEXT = { { "plain", "a script: get and add" }, { "rebuild", "chromux, one worker" },
  { "floor1", "adds alone, one at a time" }, { "floor4", "adds alone, four at once" },
  { "plain_quota", "a script with a quota" }, { "workers1", "one worker with a quota" },
  { "workers2", "two workers with a quota each" } }
local rate = {}
print("| copying | records/s | least–most |")
print("|---|---:|---:|")
for _, t in ipairs(TEXT) do
  local all = rates[t[1]]
  if all then
    rate[t[1]] = median(all)
    print(string.format("| %s | %.0f | %.0f–%.0f |", t[2], rate[t[1]], all[1], all[#all]))
  end
end
print()
if load then
  local l = load
  print(string.format("At 100 requests/s the p99 of clients is %.1f ms, %.1f ms with the primary alone, and %.1f ms",
    l.before, l.alone, l.p99))
  print(string.format("under a rebuild of %.0f records/s (p50 %.1f ms, longest of %d %.0f ms).", l.rate, l.p50,
    l.requests, l.longest))
  print(string.format("Reads: %.1f ms under the rebuild, %.1f ms before it; writes: %.1f ms, %.1f ms.", l.reads,
    l.before_reads, l.writes, l.before_writes))
  print()
end
local function ratio(text, a, b, least)
  if rate[a] and rate[b] then goal(text, string.format("%.2f ×", rate[a] / rate[b]), rate[a] >= least * rate[b]) end
end
ratio("rebuild ≥ 1.5 × a plain script", "rebuild", "plain", 1.5)
if rate.floor4 then
  print(string.format("  - adds alone are %.2f × and, four at once, %.2f × the script", rate.floor1 / rate.plain,
    rate.floor4 / rate.plain))
end
ratio("one worker ≥ 1.5 × a plain script, where who copies is what limits", "workers1", "plain_quota", 1.5)
ratio("two workers ≥ 1.5 × one, where workers are what limits", "workers2", "workers1", 1.5)
if load then
  goal("no lane held longer than 200 ms", string.format("%.0f ms", load.held), load.held >= 0 and load.held <= 200)
  goal("p99 of clients not doubled by a verification", string.format("%.1f ms against %.1f ms", load.verifying,
    load.before), load.verifying <= 2 * load.before)
  goal("p99 of clients not doubled by a rebuild", string.format("%.1f ms against %.1f ms", load.p99, load.before),
    load.p99 <= 2 * load.before)
end
if memory then
  for _, name in ipairs { "primary", "replica" } do
    goal("verification costs the " .. name .. " ≤ 1.5 × one full read", string.format("%.2f ×",
      cpu.verify[name] / cpu.read[name]), cpu.verify[name] <= 1.5 * cpu.read[name])
  end
  goal("memory of the worker ≤ 300 MB", string.format("%.0f MB", memory), memory <= 300)
end
