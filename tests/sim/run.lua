-- run.lua: build/chromux script tests/sim/run.lua FROM TO [-v]
--
-- Simulates the seeds from FROM to TO - 1. A violation prints its seed; -v prints what happens. The last lines are
-- those of a runner of scripts/test.sh.
local here = arg and arg[0] and arg[0]:match("^(.*)/[^/]*$") or "tests/sim"
package.path = here .. "/?.lua;" .. here .. "/../chaos/?.lua;" .. package.path
local Simulation = require("simulation")

local from, to = tonumber(arg[1]), tonumber(arg[2])
local verbose = arg[3] == "-v"
if not (from and to) then
  io.stderr:write("usage: chromux script tests/sim/run.lua FROM TO [-v]\n")
  return 2
end

local bad, points, entries, began, steps, virtual = 0, {}, 0, os.clock(), 0, 0
for seed = from, to - 1 do
  local ok, violations, sim = pcall(Simulation.run, seed, verbose, points)
  if not ok then violations = { "BROKEN: " .. tostring(violations) } end
  if sim then
    steps, virtual = steps + sim.world.steps, virtual + sim.world.t
    for _, list in pairs(sim.db.entries) do
      for _ in pairs(list) do entries = entries + 1 end
    end
  end
  if #violations > 0 then
    bad = bad + 1
    print("seed " .. seed .. ": " .. table.concat(violations, "\n    "))
  end
end
local names = {}
for name, n in pairs(points) do names[#names + 1] = name .. "=" .. n end
table.sort(names)
print(string.format("%d entries, %d steps, %.0f s of virtual time in %.1f s", entries, steps, virtual,
  os.clock() - began))
print("fault points: " .. table.concat(names, " "))
print(string.format("%d success / %d failures / 0 errors / 0 pending", to - from - bad, bad))
return bad == 0 and 0 or 1
