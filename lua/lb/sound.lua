-- sound.lua: does a copy still have what its server keeps in files besides its database?
--
-- Chroma keeps vectors in a folder for each collection. A server that comes back without that folder does not say so:
-- it answers 200, queries find only what was written lately, and an add to a record that exists replaces its vector.
-- With a broken file in it everything about the collection is a 500. (Measured, 1.0.20 to 1.5.9.) So in each life of a
-- server every copy is looked at before it is read from, once nothing of it is in doubt: until then a record may be
-- half written, which sending the write again mends. What is sent to a copy meanwhile does no harm: what it answers
-- about records does not depend on vectors.
local json = json

local M = {}

local SAMPLE = 50              -- records at the beginning, in the middle and at the end
local BROKEN_AFTER = 8         -- looks in a row that found it broken; a delete that came between looks so once
local FIRST_PAUSE, LAST_PAUSE = 0.05, 0.5

-- Was it found whole in the server's present life?
function M.known(copy)
  local sound = copy.server.sound
  return sound ~= nil and sound.life == copy.server.admitted and sound[copy.physical] == true
end

local function found(copy, life)
  local sound = copy.server.sound
  if not sound or sound.life ~= life then sound = { life = life } end
  sound[copy.physical] = true
  copy.server.sound = sound
end

-- Takes it for whole in the server's present life: a collection that was just made.
function M.assume(copy) found(copy, copy.server.admitted) end

-- "whole" | "broken", what it said | nil: ask again
local function look(server, base)
  local from = { 0 }
  for i = 1, 3 do
    if not from[i] then break end
    local a = server:ask("POST", base .. "/get",
      string.format('{"limit":%d,"offset":%d,"include":["embeddings"]}', SAMPLE, from[i]))
    if not a or a.status == 429 or a.status == 503 then return nil end
    if a.status == 500 then return "broken", a.body:sub(1, 300) end
    local got = a.status == 200 and json.decode(a.body)
    if not got then return "whole" end -- not there, most likely: whoever sends to it sees that
    if i == 1 and #(got.ids or {}) == SAMPLE then
      local c = server:ask("GET", base .. "/count")
      local count = c and c.status == 200 and tonumber(c.body)
      if not count then return nil end
      from[2], from[3] = math.max(math.floor(count / 2), SAMPLE), math.max(count - SAMPLE, SAMPLE)
    end
  end
  return "whole"
end

local function stands_elsewhere(lane, copy)
  for _, other in ipairs(lane.order) do
    if other ~= copy and other.state == "ready" and not other.server.retired then return true end
  end
  return false
end

-- base(): the path of the collection on the server. The lane publishes the copy when it is over.
local function follow(lane, copy, base)
  local server, context = copy.server, lane.context
  local life, bad, pause = server.admitted, 0, FIRST_PAUSE
  while not context.dead and context.trusted and lane.open and copy.state == "ready" and server:readable()
    and server.admitted == life do
    local is, said = look(server, base())
    if is == "whole" then return found(copy, life) end
    bad = is == "broken" and copy.doubt == 0 and bad + 1 or 0
    if bad >= BROKEN_AFTER then
      if not stands_elsewhere(lane, copy) then
        log.error("copy_broken", lane.logical .. " on " .. copy.instance .. ", and there is no other copy: " .. said)
        return found(copy, life)
      end
      if context.holder then lane:mark(copy, "rebuild", "the server has lost vectors of it: " .. said) end
    end
    sleep(pause)
    pause = math.min(pause * 2, LAST_PAUSE)
  end
end

-- Looks at the copy, in a task of its own.
function M.look(lane, copy, base)
  if copy.looking then return end
  copy.looking = true
  copy.server:run(function()
    local ok, why = xpcall(follow, debug.traceback, lane, copy, base)
    copy.looking = false
    if not ok then error(why, 0) end
    if lane.open and not lane.context.dead then lane:publish(copy) end
  end)
end

return M
