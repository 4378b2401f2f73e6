-- sound.lua: does a copy still have what its server keeps in files besides its database?
--
-- Chroma keeps vectors in a folder for each collection. A server that comes back without that folder does not say so:
-- it answers 200, queries find only what was written lately, and an add to a record that exists gives it another
-- vector, for good. With a broken file in it everything about the collection is a 500. (Measured, 1.0.20 to 1.5.9.)
-- So in each life of a server every copy is looked at before it is read from or sent to.
local slice = require("chromux.slice")
local torn = require("lb.torn")
local json = json

local M = {}

local SAMPLE = 50              -- records at the beginning, in the middle and at the end
local BROKEN_AFTER = 5         -- looks in a row that found it broken; a delete that comes between looks so once
local FIRST_PAUSE, LAST_PAUSE = 0.05, 0.5

local IN_DOUBT = "in doubt"

-- Was it found whole in the server's present life? What was found while entries were in doubt holds no longer than
-- they are: an update that is sent again gives no record its vector back.
function M.known(copy)
  local sound = copy.server.sound
  local is = sound and sound.life == copy.server.admitted and sound[copy.physical]
  return is == true or (is == IN_DOUBT and copy.doubt > 0)
end

-- It is so: it is new, or was looked at. spared: but for records of entries in doubt.
function M.found(copy, life, spared)
  local sound = copy.server.sound
  if not sound or sound.life ~= life then sound = { life = life } end
  sound[copy.physical] = spared and IN_DOUBT or true
  copy.server.sound = sound
end

-- The answer's body | nil, "later" | nil, "broken", what it said | nil, "gone"
local function ask(server, method, target, body)
  local a = server:ask(method, target, body)
  if not a or a.status == 429 or a.status == 503 then return nil, "later" end
  if a.status == 500 then return nil, "broken", a.body:sub(1, 300) end
  local got = a.status == 200 and json.decode(a.body)
  if not got then return nil, "gone" end -- whoever sends to it sees that
  return got
end

local function vectors(server, base, ids)
  return ask(server, "POST", base .. "/get", slice.ids_body(ids):sub(1, -2) .. ',"include":["embeddings"]}')
end

-- The records from this number on. nil, nil, how many there are: those that are not half written have their vectors.
-- Those without one that entries in doubt add are noted in `bare`: {ids = {[id]=true}, said=}.
local function look_from(server, base, offset, half, bare)
  local got, how, said = ask(server, "POST", base .. "/get",
    string.format('{"limit":%d,"offset":%d,"include":[]}', SAMPLE, offset))
  if not got then return how, said end
  local ids = {}
  for _, id in ipairs(got.ids or {}) do
    if half.adds[id] and not half.upserts[id] then
      local whole
      whole, how, said = vectors(server, base, { id })
      if not whole and how ~= "broken" then return how, said end
      if not whole then bare.ids[id], bare.said = true, said end
    elseif not half.upserts[id] then
      ids[#ids + 1] = id
    end
  end
  if #ids > 0 then
    local whole
    whole, how, said = vectors(server, base, ids)
    if not whole then return how, said end
  end
  return nil, nil, #(got.ids or {})
end

-- "whole" | "broken", what it said | "later"
local function look(lane, copy, base)
  local server, half, bare = copy.server, torn.of(lane, copy), { ids = {} }
  if not half then return "whole" end
  local how, said, n = look_from(server, base, 0, half, bare)
  if not how and n == SAMPLE then
    local count
    count, how, said = ask(server, "GET", base .. "/count")
    if count and count > SAMPLE then
      how, said = look_from(server, base, math.max(math.floor(count / 2), SAMPLE), half, bare)
      if not how then how, said = look_from(server, base, math.max(count - SAMPLE, SAMPLE), half, bare) end
    end
  end
  if not how and next(bare.ids) then
    local made = torn.made(lane, copy, half, bare.ids)
    if not made then return made == nil and "later" or "broken", bare.said end
  end
  return (how == nil or how == "gone") and "whole" or how, said
end

local function stands_elsewhere(lane, copy)
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and not other.server.retired then return true end
  end
  return false
end

local function wanted(lane, copy)
  return not lane.context.dead and lane.open and copy.state == "ready" and copy.server:readable() and not M.known(copy)
end

local function follow(lane, copy, base)
  local life, bad, pause = copy.server.admitted, 0, FIRST_PAUSE
  while wanted(lane, copy) do
    if life ~= copy.server.admitted then life, bad, pause = copy.server.admitted, 0, FIRST_PAUSE end
    local doubtful = copy.doubt > 0
    local is, said = look(lane, copy, base())
    if is == "whole" and life == copy.server.admitted then return M.found(copy, life, doubtful) end
    bad = is == "broken" and bad + 1 or 0
    if bad >= BROKEN_AFTER then
      if not stands_elsewhere(lane, copy) then
        log.error("copy_broken", lane.logical .. " on " .. copy.instance .. ", and there is no other copy: " .. said)
        return M.found(copy, life)
      end
      if lane.context.holder then lane:mark(copy, "rebuild", "the server has lost vectors of it: " .. said) end
    end
    sleep(pause)
    pause = math.min(pause * 2, LAST_PAUSE)
  end
end

-- Looks at the copy, in a task of its own, unless it is known. base(): the path of the collection on its server.
-- urgent: somebody waits for it, so it does not wait for its turn behind those of all other collections.
function M.look(lane, copy, base, urgent)
  if copy.looking == "now" or (copy.looking and not urgent) or not wanted(lane, copy) then return end
  copy.looking = "soon"
  local function begin()
    if copy.looking ~= "soon" then return end -- it was urgent meanwhile
    copy.looking = "now"
    local ok, why = xpcall(follow, debug.traceback, lane, copy, base)
    if not ok then
      log.error("copy_look_failed", why)
      sleep(LAST_PAUSE)
    end
    copy.looking = nil
    if lane.context.dead or not lane.open then return end
    lane:publish(copy)
    lane:kick_copy(copy)
  end
  if urgent then spawn(begin) else copy.server:run(begin) end
end

return M
