-- reconcile.lua: single records of one copy are compared with another's, and made equal (PROTOCOL.md R6).
--
-- Reading needs no hold: a record says nothing while an entry that touches it is not behind both copies, and everything
-- otherwise. For a repair the copy's driver stands still, and until the records are there again the copy is durably
-- `unverified`: a holder that dies in between leaves a copy that has to be compared, not one that lacks records.
--
--   confirm(context, names, {lane=, authority=, instance=, ids={...}, repair=, until_=}) -> answer | nil, why
--       answer {position=, equal=, differing={{id=, how="missing"|"extra"|"changed"}, ...}, repaired=, busy={id, ...}}
--       busy: written to all the time
local Hold = require("lb.hold")
local Touched = require("lb.touched")
local Store = require("lb.store")
local deeds = require("lb.deeds")
local exact = require("lb.exact")
local slice = require("chromux.slice")
local json = json

local M = {}

M.MOST = 100               -- ids in a call
local PATIENCE = 2         -- seconds for a driver to come to a stop
local HOLD_MOST = 0.2
local TRIES, PAUSE = 8, 0.05
local ULPS = 8 * 2 ^ -23   -- what copying a vector of a cosine collection may change of a component, in parts of it
local ANSWER_MOST = 64 * 1024 * 1024
local TORN = "Error finding id" -- what Chroma says when it has a record's document but not its vector

local function there(raw) return raw ~= nil and raw ~= "null" end

-- Adds the records that an answer holds to `out`: [id] = {rest=, vector=}.
local function take(answer, out)
  local m = slice.members(answer)
  local ids = m and slice.elements(m.ids or "[]") or {}
  local columns = {}
  for _, name in ipairs { "documents", "metadatas", "uris", "embeddings" } do
    columns[name] = there(m[name]) and slice.elements(m[name]) or {}
  end
  for i, id in ipairs(ids) do
    local parts = {}
    for k, name in ipairs { "documents", "metadatas", "uris" } do
      local raw = columns[name][i]
      parts[k] = there(raw) and slice.canonical(raw) or "null"
    end
    out[slice.string(id)] = { rest = table.concat(parts, "\0"), vector = columns.embeddings[i] or "null" }
  end
end

-- These records as the copy has them: {[id] = record}, answers | nil, why. One without a vector is {torn=true}.
local function read(copy, base, ids, out, answers)
  local a, kind = copy.server:ask("POST", base .. "/" .. copy.physical .. "/get", exact.get_body(ids))
  if not a then return nil, copy.instance .. ": " .. tostring(kind) end
  if a.status == 200 then
    take(a.body, out)
    answers[#answers + 1] = a.body
    return out, answers
  end
  if not (a.status == 500 and a.body:find(TORN, 1, true)) then return nil, copy.instance .. " answered " .. a.status end
  if #ids == 1 then
    out[ids[1]] = { torn = true }
    return out, answers
  end
  local middle = math.floor(#ids / 2)
  local first, second = {}, {}
  for i, id in ipairs(ids) do table.insert(i <= middle and first or second, id) end
  local fine, why = read(copy, base, first, out, answers)
  if fine then fine, why = read(copy, base, second, out, answers) end
  return fine, fine and answers or why
end

local function close(x, y)
  local a, b = json.decode(x), json.decode(y)
  if type(a) ~= "table" or type(b) ~= "table" or #a ~= #b then return false end
  for i = 1, #a do
    local p, q = a[i], b[i]
    if type(p) ~= "number" or type(q) ~= "number" then
      if p ~= q then return false end
    elseif math.abs(p - q) > ULPS * math.max(math.abs(p), math.abs(q)) then
      return false
    end
  end
  return true
end

local function equal(a, b, cosine)
  if a.torn or b.torn or a.rest ~= b.rest then return false end
  return a.vector == b.vector or slice.canonical(a.vector) == slice.canonical(b.vector)
    or (cosine and close(a.vector, b.vector))
end

-- How a record differs; nil: it does not.
local function difference(mine, right, cosine)
  if not mine and not right then return nil end
  if not mine then return "missing" end
  if not right then return "extra" end
  return not equal(mine, right, cosine) and "changed" or nil
end

-- A body of add of those records of the answers that are asked for; nil: there are none.
local function add_bodies(answers, wanted)
  local out = {}
  for _, answer in ipairs(answers) do
    local body, left_out = exact.add_body(answer, wanted)
    if left_out > 0 then return nil, "a vector holds no number" end
    out[#out + 1] = body
  end
  return out
end

-- ---- the repair ------------------------------------------------------------------------------------------

local function state(lane, copy, is, reason)
  copy.state, copy.reason, copy.changed = is, reason, now()
  lane:publish(copy)
  return lane.context.store:commit { Store.copy_state(lane.id, copy, is, reason) }
end

-- "applied", or how it ended otherwise; what is definitely not done is sent again.
local function insist(lane, copy, target, body, until_)
  while true do
    local kind, answer = deeds.send(lane.context, copy.server, "POST", target, body, copy.physical, nil, ANSWER_MOST)
    if (kind ~= "later" and kind ~= "not_sent") or now() > until_ or lane.context.dead then return kind, answer end
    sleep(PAUSE)
  end
end

-- ids become what the bodies say. The copy is held. true | nil, why
local function replace(lane, copy, base, ids, bodies, until_)
  if not state(lane, copy, "unverified", "records of it are being repaired") then return nil, "the lease is lost" end
  local at = base .. "/" .. copy.physical
  local kind = insist(lane, copy, at .. "/delete", slice.ids_body(ids), until_)
  local begun = kind ~= "later" and kind ~= "not_sent"
  lane.context.fault("reconcile.deleted_not_added")
  for _, body in ipairs(bodies) do
    if kind == "applied" then kind = insist(lane, copy, at .. "/add", body, until_) end
  end
  if kind == "applied" or not begun then
    if not state(lane, copy, "ready", "") then return nil, "the lease is lost" end
    return begun or nil, copy.instance .. " did not take the repair: " .. kind
  end
  lane:mark(copy, "rebuild", "a repair of records of it was not finished: " .. kind)
  return nil, "the repair was not finished: " .. kind
end

-- ---- confirm ---------------------------------------------------------------------------------------------

local function fit(lane, name)
  local copy = lane.copies[name]
  if not copy then return nil, tostring(name) .. " has no copy of it" end
  if copy.state ~= "ready" then return nil, "the copy on " .. name .. " is " .. copy.state end
  if not copy.server:usable() or not lane:is_sound(copy) then return nil, name .. " can't be used now" end
  return copy
end

-- One look: {differing=, equal=, busy=, position=, answers= (the authority's)} | nil, why
local function look(lane, right, mine, base, ids, cosine)
  local low = math.min(right.p, mine.p)
  local theirs, answers = read(right, base, ids, {}, {})
  if not theirs then return nil, answers end
  local have, why = read(mine, base, ids, {}, {})
  if not have then return nil, why end
  local touched = Touched.new(lane, low)
  if not touched:extend(lane.head, math.huge, math.huge) then return nil, mine.instance .. " is too far behind" end
  local out = { differing = {}, equal = 0, busy = {}, position = low, answers = answers }
  for _, id in ipairs(ids) do
    local how = difference(have[id], theirs[id], cosine)
    if touched.set[id] then
      out.busy[#out.busy + 1] = id
    elseif not how then
      out.equal = out.equal + 1
    elseif theirs[id] and theirs[id].torn then
      return nil, "record " .. id .. " on " .. right.instance .. " has no vector"
    else
      out.differing[#out.differing + 1] = { id = id, how = how }
    end
  end
  return out
end

-- Looks, and makes equal what differs, while the copy is held. what look() says | nil, why
local function look_and_repair(lane, right, mine, base, ids, cosine, until_)
  local hold, why = Hold.take(lane, mine, PATIENCE, HOLD_MOST)
  if not hold then return nil, why end
  local seen
  seen, why = look(lane, right, mine, base, ids, cosine)
  if not seen or #seen.differing == 0 then
    hold:release()
    return seen, why
  end
  local list, wanted, bodies = {}, {}, nil
  for i, d in ipairs(seen.differing) do list[i], wanted[d.id] = d.id, true end
  bodies, why = add_bodies(seen.answers, wanted)
  -- Without a hold entries may have come to it by now.
  local fine = bodies and hold:mine() and right.state == "ready"
  if fine then fine, why = replace(lane, mine, base, list, bodies, until_) end
  hold:release()
  lane:kick_copy(mine)
  if not fine then return nil, why or "it could not be held" end
  for _, d in ipairs(seen.differing) do
    log.warn("record_repaired", lane.logical .. " on " .. mine.instance .. ": " .. slice.quote(d.id) .. " was " .. d.how)
  end
  lane.context.events:note("record_repaired", mine.instance, nil, #list .. " records of " .. lane.logical)
  seen.repaired = #list
  return seen
end

function M.confirm(context, names, a)
  local lane = names.by_lane[a.lane]
  if not lane then return nil, "there is no such collection (any more)" end
  if type(a.ids) ~= "table" or #a.ids > M.MOST then return nil, "at most " .. M.MOST .. " ids at a time" end
  local base = names:path(lane.tenant, lane.database, "/collections")
  local out, ids, why = { position = 0, equal = 0, differing = {}, repaired = 0 }, a.ids, nil
  for try = 1, TRIES do
    local right, mine
    right, why = fit(lane, a.authority)
    if right then mine, why = fit(lane, a.instance) end
    local seen
    if mine and right ~= mine and not out.cosine_known then
      local d = exact.read(right.server, base, context.encode(lane.name))
      local configuration = d and json.decode(d.members.configuration_json or "null")
      local hnsw = type(configuration) == "table" and configuration.hnsw
      out.cosine, out.cosine_known = type(hnsw) == "table" and hnsw.space == "cosine", d ~= nil and d ~= false
    end
    if mine and #ids > 0 then
      if a.repair then
        seen, why = look_and_repair(lane, right, mine, base, ids, out.cosine, a.until_)
      else
        seen, why = look(lane, right, mine, base, ids, out.cosine)
      end
    end
    if seen then
      out.position, out.equal, out.repaired = seen.position, out.equal + seen.equal, out.repaired + (seen.repaired or 0)
      for _, d in ipairs(seen.differing) do out.differing[#out.differing + 1] = d end
      ids, why = seen.busy, nil
    end
    if #ids == 0 or now() > a.until_ or context.dead or try == TRIES then break end
    sleep(PAUSE)
  end
  if why then return nil, why end
  return { position = out.position, equal = out.equal, differing = out.differing, repaired = out.repaired, busy = ids }
end

return M
