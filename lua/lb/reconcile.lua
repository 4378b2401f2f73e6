-- reconcile.lua: single records of one copy are compared with another's, and made equal (PROTOCOL.md R6).
--
-- Reading needs no hold: a record says nothing while an entry that touches it is not behind both copies, and everything
-- otherwise. What differs is looked at again for a repair, while the copy's driver stands still, and until the records
-- are there again the copy is durably `unverified`: a holder that dies in between leaves a copy that has to be
-- compared, not one that lacks records.
--
--   confirm(context, names, {lane=, authority=, instance=, ids={...}, repair=, until_=}) -> answer | nil, why
--       answer {position=, equal=, differing={{id=, how="missing"|"extra"|"changed"|"unrepairable", why=}, ...},
--       repaired=, busy={id, ...}}
--       unrepairable: whatever the copy has, the authority's record can't be put in its place, and why. busy: written
--       to all the time, or not to be read within the time for which a copy is held
local Hold = require("lb.hold")
local Touched = require("lb.touched")
local Store = require("lb.store")
local deeds = require("lb.deeds")
local exact = require("lb.exact")
local listing = require("lb.listing")
local mend = require("lb.mend")
local records = require("chromux.records")
local slice = require("chromux.slice")

local M = {}

M.MOST = 100               -- ids in a call
local PATIENCE = 2         -- seconds for a driver to come to a stop
local HOLD_MOST = 0.2      -- seconds
local HOLD_ONE = 2         -- for a single record
local HELD_BYTES = 2 * 1024 * 1024 -- of both copies' records that are read during a hold
local TRIES, PAUSE = 8, 0.05
local ANSWER_MOST = 64 * 1024 * 1024
local EMPTY = '{"ids":[],"embeddings":[],"documents":[],"metadatas":[],"uris":[]}'

-- These records as the copy has them: the answer of a get, and the set of those that have no vector, which are not in
-- it. nil, why. Only of the life of the server in which the copy is known to be good. timeout: of a request; nil: the
-- usual one
local function read(copy, base, ids, timeout)
  local life = copy.server.admitted
  local function ask(rest, body)
    local a, kind, text = copy.server:ask("POST", base .. "/" .. copy.physical .. rest, body, timeout, false, life)
    return a, copy.instance .. ": " .. tostring(text or kind)
  end
  local a, why = ask("/get", exact.get_body(ids))
  local torn = {}
  if a and a.status == 500 then
    torn, why = mend.torn(ids, ask)
    if not torn then return nil, why end
    local whole = {}
    for _, id in ipairs(ids) do
      if not torn[id] then whole[#whole + 1] = id end
    end
    if #whole == 0 then return EMPTY, torn end
    a, why = ask("/get", exact.get_body(whole))
  end
  if not a then return nil, why end
  if a.status ~= 200 then return nil, copy.instance .. " answered " .. a.status end
  return a.body, torn
end

-- {[id] = "missing" | "extra" | "changed"} of what `mine` has otherwise than `right`; torn: what of it has no vector
-- there. nil, why
local function differences(right, mine, torn, cosine)
  local d, why = records.compare(right, mine, { cosine = cosine })
  if not d then return nil, why end
  local out = {}
  for id in pairs(torn) do out[id] = "extra" end
  for how, list in pairs { changed = d.changed, missing = d.only_a, extra = d.only_b } do
    for _, id in ipairs(list) do out[id] = torn[id] and "changed" or how end
  end
  return out
end

-- ---- the repair ------------------------------------------------------------------------------------------

-- It is so durably, and in memory before that when it is bad, after it when it is good. nil: the lease is lost
local function state(lane, copy, is, reason)
  local function known()
    copy.state, copy.reason, copy.changed = is, reason, now()
    lane:publish(copy)
  end
  if is ~= "ready" then known() end
  return lane.context.store:commit({ Store.copy_turn(lane.id, copy, is, reason) }, nil, function()
    copy.incarnation = copy.incarnation + 1
    if copy.state == "unverified" then known() end
  end)
end

-- "applied", or how it ended otherwise; what is definitely not done is sent again.
local function insist(lane, copy, target, body, until_)
  while true do
    local kind, answer = deeds.send(lane.context, copy.server, "POST", target, body, copy.physical, nil, ANSWER_MOST)
    if (kind ~= "later" and kind ~= "not_sent") or now() > until_ or lane.context.dead then return kind, answer end
    sleep(PAUSE)
  end
end

-- These records become those of the body of an add, or go. The copy is held. true | nil, why
local function replace(lane, copy, base, ids, body, until_)
  local life, was = copy.server.admitted, copy.reason
  if not state(lane, copy, "unverified", "records of it are being repaired") then return nil, "the lease is lost" end
  local at = base .. "/" .. copy.physical
  local kind = insist(lane, copy, at .. "/delete", slice.ids_body(ids), until_)
  local begun = kind ~= "later" and kind ~= "not_sent"
  lane.context.fault("reconcile.deleted_not_added")
  if kind == "applied" and body then kind = insist(lane, copy, at .. "/add", body, until_) end
  local same = copy.server.admitted == life and copy.server.incarnation == life
  if same and (kind == "applied" or not begun) then
    if not state(lane, copy, "ready", was) then return nil, "the lease is lost" end
    return begun or nil, copy.instance .. " did not take the repair: " .. kind
  end
  kind = same and kind or "the server began a new life"
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

-- What the authority has of these can't be put into another copy: {[id] = why}. nil, why
local function unfit(right, theirs, torn, how)
  local _, count, nulls = records.add_body(theirs, { only = how })
  if not nulls then return nil, count end
  local out = {}
  for id in pairs(torn) do out[id] = right.instance .. " has no vector of it" end
  for _, id in ipairs(nulls) do out[id] = "its vector on " .. right.instance .. " holds what is no number (NaN)" end
  return out
end

-- One look: {differing={{id=, how=, why=}, ...}, equal=, busy=, position=, answer= (the authority's), bytes= read}
-- nil, why. timeout: of a request
local function look(lane, right, mine, base, ids, cosine, timeout)
  local low = math.min(right.p, mine.p)
  local theirs, torn_there = read(right, base, ids, timeout)
  if not theirs then return nil, torn_there end
  local have, torn = read(mine, base, ids, timeout)
  if not have then return nil, torn end
  local touched = Touched.new(lane, low)
  if not touched:extend(lane.head, math.huge, math.huge) then return nil, mine.instance .. " is too far behind" end
  local how, why = differences(theirs, have, torn, cosine)
  if not how then return nil, why end
  local not_fit
  not_fit, why = unfit(right, theirs, torn_there, how)
  if not not_fit then return nil, why end
  local out = { differing = {}, equal = 0, busy = {}, position = low, answer = theirs, bytes = #theirs + #have }
  for _, id in ipairs(ids) do
    if touched.set[id] then
      out.busy[#out.busy + 1] = id
    elseif not_fit[id] then
      out.differing[#out.differing + 1] = { id = id, how = "unrepairable", why = not_fit[id] }
    elseif how[id] then
      out.differing[#out.differing + 1] = { id = id, how = how[id] }
    else
      out.equal = out.equal + 1
    end
  end
  return out
end

local function tell(event, lane, mine, differing)
  local texts = {}
  for i, d in ipairs(differing) do
    texts[i] = slice.quote(d.id) .. " was " .. d.how .. (d.why and " (" .. d.why .. ")" or "")
  end
  listing.warn(event, lane.logical .. " on " .. mine.instance, texts)
end

-- Looks at so few, and makes equal what differs, while the copy is held. what look() says | nil, why, the hold was too
-- short for so many
local function held_repair(lane, right, mine, base, ids, cosine, until_)
  local bound = #ids > 1 and HOLD_MOST or HOLD_ONE
  local hold, why = Hold.take(lane, mine, PATIENCE, bound)
  if not hold then return nil, why end
  local seen
  seen, why = look(lane, right, mine, base, ids, cosine, bound)
  local short = now() > hold.since + 0.9 * bound
  local list, wanted = {}, {}
  for _, d in ipairs(seen and seen.differing or {}) do
    if d.how ~= "unrepairable" then list[#list + 1], wanted[d.id] = d.id, true end
  end
  if not seen or #list == 0 then
    hold:release()
    return seen, why, short
  end
  local body, count = records.add_body(seen.answer, { only = wanted })
  -- Without a hold entries may have come to it by now.
  local fine = body and hold:mine() and right.state == "ready"
  if fine then fine, why = replace(lane, mine, base, list, count > 0 and body, until_) else why = not body and count end
  hold:release()
  lane:kick_copy(mine)
  if not fine then return nil, why or "it could not be held", short end
  tell("record_repaired", lane, mine, seen.differing)
  lane.context.events:note("repaired", mine.instance, nil, #list .. " records of " .. lane.logical)
  seen.repaired = #list
  return seen
end

-- What a look has found, in the answer.
local function count(out, seen, differing)
  out.position, out.equal, out.repaired = seen.position, out.equal + seen.equal, out.repaired + (seen.repaired or 0)
  for _, d in ipairs(differing) do out.differing[#out.differing + 1] = d end
  for _, id in ipairs(seen.busy) do out.busy[#out.busy + 1] = id end
end

-- Repairs these in parts of at most so many; those that are left are put into out.busy. nil, why: not now
local function repair_all(lane, right, mine, base, ids, most, out, until_)
  local from = 1
  local function rest()
    for i = from, #ids do out.busy[#out.busy + 1] = ids[i] end
  end
  while from <= #ids do
    local part = { unpack(ids, from, math.min(from + most - 1, #ids)) }
    local seen, why, short = held_repair(lane, right, mine, base, part, out.cosine, until_)
    if seen then
      count(out, seen, seen.differing)
      from = from + #part
    elseif short and #part > 1 then
      most = math.floor(#part / 2)
    elseif short then
      out.busy[#out.busy + 1], from = part[1], from + 1
    else
      rest()
      return nil, why
    end
    if now() > until_ then return rest() end
  end
  return true
end

-- One round: all are looked at, and of what differs that is repaired which can be. true | nil, why
local function round(lane, right, mine, base, ids, out, a)
  local seen, why = look(lane, right, mine, base, ids, out.cosine)
  if not seen then
    out.busy = ids
    return nil, why
  end
  if not a.repair then
    count(out, seen, seen.differing)
    return true
  end
  local left, todo = {}, {}
  for _, d in ipairs(seen.differing) do
    if d.how == "unrepairable" then left[#left + 1] = d else todo[#todo + 1] = d.id end
  end
  count(out, seen, left)
  tell("record_unrepairable", lane, mine, left)
  local most = math.max(1, math.floor(#ids * math.min(1, HELD_BYTES / seen.bytes)))
  return repair_all(lane, right, mine, base, todo, most, out, a.until_)
end

function M.confirm(context, names, a)
  local lane = names.by_lane[a.lane]
  if not lane then return nil, "there is no such collection (any more)" end
  if type(a.ids) ~= "table" or #a.ids > M.MOST then return nil, "at most " .. M.MOST .. " ids at a time" end
  if a.authority == a.instance then return nil, "a copy is not compared with itself" end
  local base = names:path(lane.tenant, lane.database, "/collections")
  local out, why = { position = 0, equal = 0, differing = {}, repaired = 0, busy = a.ids }, nil
  for try = 1, TRIES do
    local right, mine
    right, why = fit(lane, a.authority)
    if right then mine, why = fit(lane, a.instance) end
    if mine and out.cosine == nil then
      local d = exact.read(right.server, base, context.encode(lane.name))
      if d then out.cosine = exact.cosine(d) else why = right.instance .. " does not say how it measures distances" end
    end
    if mine and out.cosine ~= nil then
      local ids = out.busy
      out.busy, why = {}, nil
      if #ids > 0 then why = select(2, round(lane, right, mine, base, ids, out, a)) end
    end
    if #out.busy == 0 or now() > a.until_ or context.dead or try == TRIES then break end
    sleep(PAUSE)
  end
  if why and out.repaired == 0 then return nil, why end
  out.cosine = nil
  return out
end

return M
