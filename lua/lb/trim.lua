-- trim.lua: how much of the journal is kept, and what happens when it grows too big.
--
-- An entry that every copy has behind it is kept for JOURNAL_KEEP seconds more (an Idempotency-Key is known so long),
-- and less when all entries together exceed JOURNAL_KEEP_BYTES. Copies that are to be made anew hold nothing back. At
-- JOURNAL_MAX_BYTES rebuilds end, and the copies that hold the journal back most are given up, to be made anew; while
-- that does not help, writes are refused. Lane 0, the catalogue, is kept whole: an instance that joins makes it again
-- from its beginning. Lanes of deleted collections are kept as long, and until every instance has deleted them; their
-- rows in journal_collections stay.
local Store = require("lb.store")

local Trim = {}
Trim.__index = Trim

local WARN_AT, CALM_AT = 0.8, 0.7
local BATCH_BYTES = 16000000
local STUCK = 30        -- seconds without progress after which a copy holds back rather than follows
local PAUSE = 0.01      -- seconds between batches: the entries of clients go through the same connection
local MEASURE_EVERY = 5 -- seconds between looks at the size on disk

function Trim.new(context, names)
  return setmetatable({ context = context, names = names, bytes = 0, rows = 0, table_bytes = 0, trimmed = 0,
    closed = {}, full = false, warned = false, measured = -math.huge }, Trim)
end

-- An entry was kept.
function Trim:appended(e)
  self.rows = self.rows + 1
  self.bytes = self.bytes + #e.body + #e.rest + Store.ROW
end

-- The lane's collection was deleted so many seconds ago: it goes when it is old enough and every instance has come past
-- what the catalogue is at now.
function Trim:lane_closed(id, age)
  self.closed[#self.closed + 1] = { id = id, n = self.names.head, at = now() - (age or 0) }
end

-- ---- deleting --------------------------------------------------------------------------------------------

-- Up to n, in batches; to_size: no more than that takes. false: not now.
local function cut(self, id, from, upto, moved, to_size)
  while from < upto and not (to_size and self.bytes <= to_size) do
    if self.context.dead then return false end
    local most = math.max(1, math.min(BATCH_BYTES, self.bytes - (to_size or -BATCH_BYTES)))
    self.context.fault("trim.before")
    local rows = self.context.store:commit { Store.trim(id, from, upto, most) }
    if not rows then return false end
    local r = rows[1][1]
    from = r.n
    moved(from)
    self.trimmed, self.rows = self.trimmed + r.rows, math.max(self.rows - r.rows, 0)
    self.bytes = math.max(self.bytes - r.bytes, 0)
    sleep(PAUSE)
  end
  return true
end

local function cut_lane(self, lane, upto, to_size)
  return cut(self, lane.id, lane.trimmed, upto, function(n) lane.trimmed = math.max(lane.trimmed, n) end, to_size)
end

-- Remembers when the lane's least position was reached, some times in `keep` seconds, and forgets what is trimmed.
local function mark(lane, least, t, keep)
  local marks = lane.marks or {}
  lane.marks = marks
  while marks[1] and marks[1].n <= lane.trimmed do table.remove(marks, 1) end
  local last = marks[#marks]
  if not last or (least > last.n and t >= last.t + keep / 8) then marks[#marks + 1] = { n = least, t = t } end
end

-- The lane's least position. An instance that has yet to make the collection will need all of its entries; once some
-- are gone, or the journal is full, that does not count, and its copy is to be made anew.
local function least_of(self, lane)
  local whole = lane.trimmed == 0 and not self.full
  for _, member in ipairs(whole and self.names.order or {}) do
    local comes = (member.state == "ready" or member.state == "unverified") and not member.server.retired
    if comes and member.p < self.names.head and not lane.copies[member.instance] then return 0 end
  end
  return lane:least()
end

-- Entries that were everywhere for long enough; then, while there are too many bytes, the oldest of the others.
local function trim_lanes(self)
  local settings, t = self.context.settings, now()
  local due, waiting = {}, {}
  for _, lane in pairs(self.names.by_logical) do
    local least = least_of(self, lane)
    if least and least > lane.trimmed then
      mark(lane, least, t, settings.JOURNAL_KEEP)
      for _, m in ipairs(lane.marks) do
        table.insert(m.t <= t - settings.JOURNAL_KEEP and due or waiting, { lane = lane, n = m.n, t = m.t })
      end
      waiting[#waiting + 1] = { lane = lane, n = least, t = t }
    end
  end
  for _, d in ipairs(due) do
    -- It may have been deleted, or pinned, meanwhile.
    if d.lane.open and not cut_lane(self, d.lane, math.min(d.n, least_of(self, d.lane) or 0)) then return end
  end
  if self.bytes <= settings.JOURNAL_KEEP_BYTES then return end
  table.sort(waiting, function(a, b) return a.t < b.t end)
  for _, w in ipairs(waiting) do
    local size = settings.JOURNAL_KEEP_BYTES
    if w.lane.open and not cut_lane(self, w.lane, math.min(w.n, least_of(self, w.lane) or 0), size) then return end
  end
end

local function trim_closed(self)
  local settings, least = self.context.settings, math.huge
  for _, member in ipairs(self.names.order) do
    if (member.state == "ready" or member.state == "unverified") and not member.server.retired then
      least = math.min(least, member.p)
    end
  end
  local left = {}
  for _, c in ipairs(self.closed) do
    local due = c.n <= least and (now() - c.at >= settings.JOURNAL_KEEP or self.bytes > settings.JOURNAL_KEEP_BYTES)
    if due and c.head == nil then
      local rows = self.context.store:lane_ends(c.id)
      if rows and rows[1] then c.head, c.from = rows[1].head, rows[1].trimmed end
    end
    local over = due and c.head and cut(self, c.id, c.from, c.head, function(n) c.from = n end)
      and self.context.store:commit { Store.copies_gone(c.id) }
    if not over then left[#left + 1] = c end
  end
  self.closed = left
end

-- ---- too big ---------------------------------------------------------------------------------------------

-- Gives up the copies of the instance that is furthest behind, where another copy has more and this one does not come
-- on.
local function shed(self)
  local behind, worst = {}, nil
  local function others_have_more(lane, copy)
    if copy.server:usable() and now() - copy.since < STUCK then return false end
    for _, other in ipairs(lane.order) do
      if other.state == "ready" and other.p > copy.p then return true end
    end
    return false
  end
  for _, lane in pairs(self.names.by_logical) do
    for _, copy in ipairs(lane.order) do
      if (copy.state == "ready" or copy.state == "unverified") and others_have_more(lane, copy) then
        behind[copy.instance] = (behind[copy.instance] or 0) + lane.head - copy.p
      end
    end
  end
  for instance, n in pairs(behind) do
    if not worst or n > behind[worst] then worst = instance end
  end
  if not worst then return end
  for _, lane in ipairs(self.names:each_in()) do
    local copy = lane.copies[worst]
    if copy and (copy.state == "ready" or copy.state == "unverified") and others_have_more(lane, copy) then
      lane:mark(copy, "rebuild", "it held the journal back beyond JOURNAL_MAX_BYTES")
    end
  end
end

local function watch_size(self)
  local most = self.context.settings.JOURNAL_MAX_BYTES
  local part = self.bytes / most
  local text = string.format("%.1f MB of entries are kept, JOURNAL_MAX_BYTES is %.1f MB", self.bytes / 1e6,
    most / 1e6)
  if part >= 1 and not self.full then
    self.full = true
    log.error("journal_full", text .. ": writes are refused")
    self.context.events:note("journal_full", nil, nil, text, false)
  elseif part < 1 and self.full then
    self.full = false
    log.warn("journal_not_full", text .. ": writes are taken again")
  elseif part >= WARN_AT and not self.warned then
    self.warned = true
    log.warn("journal_filling", text)
    self.context.events:note("journal_filling", nil, nil, text, false)
  elseif part < CALM_AT then
    self.warned = false
  end
end

-- One round of everything.
function Trim:step()
  trim_lanes(self)
  trim_closed(self)
  watch_size(self)
  if self.full then -- which may be all that it takes: nothing is kept for instances that lack a collection any more
    trim_lanes(self)
    watch_size(self)
  end
  if self.full then
    self.context.rebuilds:give_up("the journal is full, and it held back what could be deleted")
    shed(self)
    trim_lanes(self)
    watch_size(self)
  end
  if now() - self.measured >= MEASURE_EVERY then
    self.measured = now()
    self.table_bytes = self.context.store:table_size() or self.table_bytes
  end
end

-- For as long as this holder lives.
function Trim:run()
  local size, left
  while not self.context.dead do
    local before = self.bytes -- appended since
    size = self.context.store:entries_size()
    left = size and self.context.store:closed_lanes()
    if left then
      self.bytes, self.rows = self.bytes - before + size.bytes, size.rows
      break
    end
    sleep(1)
  end
  for _, row in ipairs(left or {}) do self:lane_closed(row.lane, row.age) end
  while not self.context.dead do
    sleep(math.max(0.25, math.min(5, self.context.settings.JOURNAL_KEEP / 8)))
    if not self.context.dead then self:step() end
  end
end

return Trim
