-- touched.lua: which records the entries of a lane may have changed.
--
--   ids_of(e) -> {id, ...}                  of one entry, whatever its verdict; nil: that can't be read from it
--   local t = Touched.new(lane, from)       of the entries behind `from`
--   t:extend(upto, ids, bytes)              those up to there as well. true | false: more than so many ids, or bytes of
--                                           entries | nil, why
--   t.list, t.set, t.bytes, t.to, t.unreadable (why it can never be known)
local slice = require("chromux.slice")
local json = json

local Touched = {}
Touched.__index = Touched

local FAR = 2000 -- entries: so many are too many without a look

function Touched.ids_of(e)
  if e.action == "delete" then
    local ids = e.resolved and json.decode(e.resolved)
    if ids then return ids end
    local d = slice.delete(e.body)
    return d and d.ids or (d and {}) or nil
  end
  local r = slice.records(e.body, #e.body)
  if r then return r.ids end
  local body = json.decode(e.body) -- a form that Chroma takes and slice does not
  return type(body) == "table" and type(body.ids) == "table" and body.ids or nil
end

function Touched.new(lane, from)
  return setmetatable({ lane = lane, to = from, list = {}, set = {}, bytes = 0 }, Touched)
end

-- Entries that were refused have changed nothing; what became of the others is not asked.
local function changes(e) return e.verdict ~= "rejected" and e.verdict ~= "void" end

function Touched:extend(upto, most, most_bytes)
  if upto - self.to > FAR then return false end
  while self.to < upto do
    local e, why = self.lane:entry(self.to + 1)
    if not e then return nil, why end
    if changes(e) then
      local ids = Touched.ids_of(e)
      if not ids then
        self.unreadable = "the ids of entry " .. self.lane.id .. "/" .. e.n .. " can't be read"
        return nil, self.unreadable
      end
      for _, id in ipairs(ids) do
        if not self.set[id] then self.set[id], self.list[#self.list + 1] = true, id end
      end
      self.bytes = self.bytes + #e.body
    end
    self.to = self.to + 1
    if #self.list > most or self.bytes > most_bytes then return false end
  end
  return true
end

return Touched
