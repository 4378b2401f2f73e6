-- mutants.lua: build/chromux script tests/sim/mutants.lua [SEEDS]
--
-- Does the simulation see what it is there for? Each of these faults is planted into the engine, and must be caught
-- within 20 seeds, those of making copies anew within 100. The last line is that of a runner of scripts/test.sh.
local here = arg and arg[0] and arg[0]:match("^(.*)/[^/]*$") or "tests/sim"
package.path = here .. "/?.lua;" .. here .. "/../chaos/?.lua;" .. package.path
local Balancer = require("balancer")
local Postgres = require("postgres")
local Simulation = require("simulation")
local bugs = require("bugs")

-- What the stand-in for PostgreSQL is asked when the epoch is not checked.
for _, bug in ipairs(bugs) do
  if bug.name == "epoch not checked" then
    Postgres.define((bug.instead:gsub("%%s", " AND substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) = $3")),
      function(_, tx)
        tx.checked = true
        return { { mine = 1 } }
      end)
  end
end

local TASKS, NONE = "WHERE j.rebuild = b.id AND", "WHERE false AND"
local at, till = Postgres.SWAP:find(TASKS, 1, true)
Postgres.define(Postgres.SWAP:sub(1, at - 1) .. NONE .. Postgres.SWAP:sub(till + 1), Postgres.swap(true))

-- Seeds in which copies are made anew all the time, by workers that die.
local ANEW = { sync = true, anew = 1, workers = 0.3, nemesis = 2.5, slow = 0.02 }

-- what it is, module, text, what it becomes, faults of the seeds (nil: their own), seeds at most (nil: SEEDS); those of
-- bugs.lua are added
local MUTANTS = {
  { "swap without the last pass", "rebuild", "  if #last.ids == 0 then return true end",
    "  if #last.ids >= 0 then return true end", ANEW },
  { "hold not taken", "hold", "while not why and (copy.running or in_doubt(copy)) do", "while false do",
    ANEW, 200 },
  { "temporary collection readable before the swap", "rebuild", [[self.context.fault("rebuild.temp_created")]],
    [[self.context.copies.copy_set(r.lane.logical, r.instance, r.temp, r.lane.head, true)]], ANEW },
  { "old collection deleted before the swap", "rebuild", [[  self.context.fault("rebuild.copied_not_swapped")]],
    [[  deeds.send(self.context, r.server, "PUT", base_of(self, r.lane) .. "/" .. r.target.physical,
    '{"new_name":"chromux-tomb-rebuild-0"}', r.target.physical)
  if not r.adopt then
    deeds.send(self.context, r.server, "DELETE", base_of(self, r.lane) .. "/chromux-tomb-rebuild-0")
  end]], ANEW },
  { "swapped while workers write to it", "rebuild", TASKS, NONE, ANEW },
  { "names put right beside the catalogue", "leftovers", "if member then member.held = UNFINISHED end", "",
    ANEW },
}

for i, bug in ipairs(bugs) do table.insert(MUTANTS, i, { bug.name, bug.module, bug.text, bug.instead }) end

local seeds = tonumber(arg[1]) or 100
local missed, began = 0, os.clock()
for _, m in ipairs(MUTANTS) do
  Balancer.unpatch()
  Balancer.patch(m[2], m[3], m[4])
  local caught
  for seed = 0, (m[6] or m[5] and seeds or math.min(seeds, 20)) - 1 do
    local violations = Simulation.run(seed, nil, nil, m[5]) -- what does not even run is not caught
    if #violations > 0 then
      caught = string.format("by seed %d: %s", seed, violations[1]:match("^[%u-]+"))
      break
    end
  end
  if not caught then missed = missed + 1 end
  print((caught and "ok " or "MISSED ") .. m[1] .. ": " .. (caught or "by no seed"))
end
print(string.format("%.1f s", os.clock() - began))
print(string.format("%d success / %d failures / 0 errors / 0 pending", #MUTANTS - missed, missed))
return missed == 0 and 0 or 1
