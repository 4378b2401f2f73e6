-- bugs.lua: the bugs that a checker of the journal has to see, as a text of a module of lua/lb and what is put in its
-- place: {name=, module=, text=, instead=}. tests/sim/mutants.lua plants them into the simulated engine, plants.lua
-- into the real program (core/plant.h).

local LEASE = "SELECT 1 / (epoch = $1 AND renewed >= $2%s)::int AS mine FROM journal_lease FOR SHARE"

return {
  { name = "answer before the append commits", module = "journal", text = [[  Roles.fault("append.before_commit")]],
    instead = [[  send(t, { status = 200, type = "application/json", body = "{}" })]] },
  { name = "position before the answer", module = "attempt",
    text = "function M.transmit(lane, copy, group, late)",
    instead = [[function M.transmit(lane, copy, group, late)
      lane.context.store:commit { Store.position(lane.id, copy, group[#group].n) }]] },
  { name = "filter delete replayed as a filter", module = "groups",
    text = "if not e.resolved then return { e.body } end",
    instead = "if not e.resolved or e.verdict then return { e.body } end" },
  { name = "in-doubt copy readable", module = "lanes",
    text = "context.trusted and copy.doubt == 0 and copy.server:readable()",
    instead = "context.trusted and copy.server:readable()" },
  { name = "rejected entry replayed", module = "lanes", text = [[if copy.doubt >= e.n and e.verdict ~= "skipped"]],
    instead = [[if e.verdict ~= "skipped"]] },
  { name = "lane order swapped", module = "lanes", text = [[local n = copy.p + 1
  if not lane.context.drives or not lane.open]],
    instead = [[local n = copy.p + (lane.entries[copy.p + 2] and 2 or 1)
  if not lane.context.drives or not lane.open]] },
  { name = "epoch not checked", module = "store", text = LEASE,
    instead = (LEASE:gsub("epoch = %$1 AND renewed >= %$2", "$1::bigint + $2::bigint > 0")) },
  { name = "group resent out of order", module = "groups",
    text = "if not first or (copy.alone_until or 0) >= e.n then return group end",
    instead = [[if (copy.alone_until or 0) >= e.n then return { lane.entries[copy.alone_until] or e } end
    if not first then return group end]] },
}
