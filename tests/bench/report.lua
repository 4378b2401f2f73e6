-- Reads what run.sh wrote and prints medians as Markdown, then each goal with what was measured.
-- usage: luajit report.lua results.tsv memory.tsv TICKS_PER_SECOND
local results, memory, ticks = arg[1], arg[2], tonumber(arg[3])

local SIZE = { [44] = "44 B", [16384] = "16 KB", [1048576] = "1 MB" }

local function rows(path)
  local out = {}
  for line in io.lines(path) do
    local row = {}
    for field in line:gmatch("[^\t]+") do row[#row + 1] = tonumber(field) or field end
    out[#out + 1] = row
  end
  return out
end

local function median(list)
  local s = {}
  for i, v in ipairs(list) do s[i] = v end
  table.sort(s)
  local n = #s
  return n % 2 == 1 and s[(n + 1) / 2] or (s[n / 2] + s[n / 2 + 1]) / 2
end

-- Cells in the order they were first measured: one for each size, number of connections and proxy.
local cells, order, proxies = {}, {}, {}
local taken = {} -- percent of core 1 used by others, by measurement
local function key(proxy, conns, size) return proxy .. "/" .. conns .. "/" .. size end

for _, r in ipairs(rows(results)) do
  local _, proxy, conns, size, requests, us, cpu, p50, p99, others = unpack(r)
  local k = key(proxy, conns, size)
  local c = cells[k]
  if not c then
    c = { proxy = proxy, conns = conns, size = size,
      cost = {}, rate = {}, p50 = {}, p99 = {}, busy = {} }
    cells[k] = c
    order[#order + 1] = c
    if not proxies[proxy] then
      proxies[proxy] = true
      proxies[#proxies + 1] = proxy
    end
  end
  taken[#taken + 1] = math.max(0, 100 * (others / ticks) / (us / 1e6))
  if requests > 0 then
    c.cost[#c.cost + 1] = cpu / ticks * 1e6 / requests
    c.rate[#c.rate + 1] = requests / (us / 1e6)
    c.p50[#c.p50 + 1] = p50 / 1000
    c.p99[#c.p99 + 1] = p99 / 1000
    c.busy[#c.busy + 1] = 100 * (cpu / ticks) / (us / 1e6)
  end
end

local function range(list)
  local least, most = math.huge, -math.huge
  for _, v in ipairs(list) do least, most = math.min(least, v), math.max(most, v) end
  return string.format("%.1f–%.1f", least, most)
end

local function value(field, proxy, conns, size)
  local c = cells[key(proxy, conns, size)]
  return c and #c[field] > 0 and median(c[field]) or nil
end

local function thousands(n)
  local s = string.format("%.0f", n)
  repeat
    local k
    s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return s
end

print("| answer | connections | proxy | CPU per request, µs | least–most | × relay " ..
  "| requests/s | p50, ms | p99, ms | core busy |")
print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
for _, c in ipairs(order) do
  local cost = value("cost", c.proxy, c.conns, c.size)
  local floor = value("cost", "relay", c.conns, c.size)
  if cost then
    print(string.format("| %s | %d | %s | %.1f | %s | %s | %s | %.2f | %.2f | %.0f %% |",
      SIZE[c.size] or (c.size .. " B"), c.conns, c.proxy, cost, range(c.cost),
      floor and string.format("%.2f", cost / floor) or "–", thousands(median(c.rate)),
      median(c.p50), median(c.p99), median(c.busy)))
  end
end

table.sort(taken)
print(string.format("\nOthers used %.0f %% of the proxies' core (median; %.0f %% at worst).",
  median(taken), taken[#taken]))
if median(taken) > 5 then
  print("That is too much for figures to be quoted: repeat this on a quiet machine.")
end

local idle = {}
local held = rows(memory)
if #held > 0 then
  print("\n| proxy | idle connections | private before, kB | after, kB | bytes per connection |")
  print("|---|---:|---:|---:|---:|")
  for _, r in ipairs(held) do
    local proxy, n, before, after = unpack(r)
    idle[proxy] = (after - before) * 1024 / n
    print(string.format("| %s | %s | %s | %s | %.0f |", proxy, thousands(n), thousands(before),
      thousands(after), idle[proxy]))
  end
end

if not proxies.chromux then return end
print("\nGoals:")
local function goal(what, got, limit, at_least)
  if not got then return print("- " .. what .. ": not measured") end
  local met = at_least and got >= limit or not at_least and got <= limit
  print(string.format("- %s = %.2f (goal %s %.2f): %s", what, got, at_least and "≥" or "≤", limit,
    met and "met" or "missed"))
end
local function ratio(field, conns, size, peer)
  local ours, theirs = value(field, "chromux", conns, size), value(field, peer, conns, size)
  return ours and theirs and ours / theirs
end
for _, g in ipairs({ { "relay", 1.15 }, { "nginx", 0.85 }, { "haproxy", 0.75 } }) do
  goal("CPU per request at 64 connections, 44 B: chromux/" .. g[1],
    ratio("cost", 64, 44, g[1]), g[2])
end
goal("Memory per idle connection, kB", idle.chromux and idle.chromux / 1024, 1)
for _, conns in ipairs({ 1, 64, 512 }) do
  if value("rate", "chromux", conns, 1048576) then
    goal("Requests/s of 1 MB at " .. conns .. " connections: chromux/nginx",
      ratio("rate", conns, 1048576, "nginx"), 1, true)
  end
end
