-- figures.lua: what /status and /metrics say of the journal.
--
-- Counts are kept where things happen (context.counts, Trim, Store); what is a property of all lanes together is taken
-- in a walk over them, which is not repeated before COST times its own duration has passed: with many lanes the pages
-- are that much older, and never cost more than a fixed part of the time.
local M = {}

local COST = 20
local LISTED = 50  -- copies, entries and collections that are listed; their numbers are whole
local OLD = 5      -- seconds after which an entry without a verdict is listed

local VERDICTS = { "applied", "rejected", "failed", "skipped", "void" }

-- The counts of one holder's life.
function M.counts()
  return { appended = 0, sent = 0, requests = 0, applied = 0, rejected = 0, failed = 0, skipped = 0, void = 0 }
end

local function listed(list, item)
  list.count = list.count + 1
  if list.count <= LISTED then list.items[list.count] = item end
end

local function instance_of(w, name)
  local i = w.instances[name]
  if not i then
    i = { lag_entries = 0, lag_seconds = 0, copies = 0, not_ready = 0, in_doubt = 0 }
    w.instances[name] = i
  end
  return i
end

local function look_at(w, lane, name, t)
  local undecided = lane.head - lane.decided
  if undecided > 0 then
    w.pending = w.pending + undecided
    local e = lane.entries[lane.decided + 1]
    local age = t - (e and e.created or lane.waiting_since)
    w.oldest = math.max(w.oldest, age)
    if age >= OLD then
      listed(w.waiting, { entry = lane.id .. "/" .. lane.decided + 1, collection = lane.logical, name = name,
        action = e and e.action, age_seconds = age })
    end
  end
  for _, copy in ipairs(lane.order) do
    local i = instance_of(w, copy.instance)
    i.copies = i.copies + 1
    if not copy.server.retired then
      local entries, seconds = lane:lag(copy)
      i.lag_entries, i.lag_seconds = i.lag_entries + entries, math.max(i.lag_seconds, seconds)
    end
    if copy.doubt > 0 then
      w.in_doubt = w.in_doubt + 1
      i.in_doubt = i.in_doubt + 1
    end
    if copy.state ~= "ready" then
      if not copy.server.retired then w.not_ready = w.not_ready + 1 end
      i.not_ready = i.not_ready + 1
      listed(w.copies, { lane = lane.id, collection = lane.logical, name = name, instance = copy.instance,
        state = copy.state, reason = copy.reason, since = copy.changed })
    end
  end
end

-- Sums over all lanes.
local function walk(names)
  local w = { pending = 0, oldest = 0, in_doubt = 0, not_ready = 0, lanes = 1, head = names.head, instances = {},
    copies = { count = 0, items = {} }, waiting = { count = 0, items = {} } }
  local t = now()
  names.decided = names.floor
  look_at(w, names, "the catalogue", t)
  for _, lane in pairs(names.by_logical) do
    w.lanes, w.head = w.lanes + 1, w.head + lane.head
    look_at(w, lane, lane.name, t)
  end
  return w
end

local function walked(names)
  local f, t = names.figures, now()
  if f and t < f.again then return f.walk end
  local began = os.clock()
  local w = walk(names)
  names.figures = { walk = w, again = t + COST * (os.clock() - began) }
  return w
end

-- J: the journal's state (journal.lua). {replication=, reason=, journal={...}, instances={[name]={...}}}
function M.status(J)
  local out = { replication = "on", journal = { state = J.phase, why = J.why, role = J.role } }
  if not J.names or (J.phase ~= "on" and J.phase ~= "restored") then
    out.replication, out.reason = "degraded", J.why
    return out
  end
  local context, store, j = J.context, J.store, out.journal
  local w, counts, trim = walked(J.names), context.counts, context.trim
  local waiting = 0
  for _ in pairs(J.tickets) do waiting = waiting + 1 end
  j.holder = J.role == "holder" and J.address or J.holder and J.holder.address or ""
  j.id, j.epoch = context.journal_id, J.role == "holder" and store.epoch or J.holder and J.holder.epoch or 0
  j.head, j.lanes, j.pending, j.in_doubt, j.waiting_clients = w.head, w.lanes, w.pending, w.in_doubt, waiting
  j.oldest_age_seconds = w.oldest
  j.appended = counts.appended
  for _, verdict in ipairs(VERDICTS) do j[verdict] = counts[verdict] end
  j.sent, j.requests = counts.sent, counts.requests
  j.coalescing_ratio = counts.requests > 0 and counts.sent / counts.requests or 0
  local mean, p99 = store:commit_ms()
  j.commits, j.commit_ms = store.commits, { mean = mean, p99 = p99 }
  j.bytes, j.table_bytes, j.entries, j.trimmed = trim.bytes, trim.table_bytes, trim.rows, trim.trimmed
  j.max_bytes, j.full = context.settings.JOURNAL_MAX_BYTES, trim.full
  j.memory_bytes = context.memory.used
  j.events = context.events.written
  j.copies_not_ready, j.copies_not_ready_count = w.copies.items, w.copies.count
  j.entries_waiting, j.entries_waiting_count = w.waiting.items, w.waiting.count
  j.collections_aside, j.collections_aside_count = context.aside.list, context.aside.count
  out.instances = {}
  for _, s in ipairs(context.servers.list) do
    local i = w.instances[s.name] or { lag_entries = 0, lag_seconds = 0, copies = 0, not_ready = 0, in_doubt = 0 }
    out.instances[s.name] = { lag_entries = i.lag_entries, lag_seconds = i.lag_seconds, copies = i.copies,
      copies_not_ready = i.not_ready, copies_in_doubt = i.in_doubt, collections_aside = context.aside:of(s.name),
      admitted = s:readable(), retired = s.retired, note = s.note }
  end
  if J.phase == "restored" then
    out.replication, out.reason = "degraded", J.why
  elseif not context.trusted then
    out.replication, out.reason = "degraded", "what the holder commits is not heard: nothing is read until it is"
  elseif store:trouble() then
    out.replication, out.reason = "degraded", store:trouble()
  elseif trim.full then
    out.replication, out.reason = "degraded", "the journal is full (JOURNAL_MAX_BYTES): writes are refused"
  elseif w.not_ready > 0 then
    out.replication, out.reason = "degraded", w.not_ready .. " copies wait to be made anew"
  end
  return out
end

-- {{name=, help=, type=, labels=, value=}, ...} for core/admin.c
function M.metrics(J)
  local s = M.status(J)
  local j, out = s.journal, {}
  local function add(name, type, help, value, labels)
    out[#out + 1] = { name = "chromux_" .. name, type = type, help = help, value = value, labels = labels }
  end
  add("journal_replicating", "gauge", "1 while replication is on, 0 while it is degraded.",
    s.replication == "on" and 1 or 0)
  if not s.instances then return out end
  for _, m in ipairs {
    { "head", "gauge", "Entries that were ever appended, of lanes that are there.", j.head },
    { "appended_total", "counter", "Entries that this balancer has appended.", j.appended },
    { "pending", "gauge", "Entries without a verdict.", j.pending },
    { "waiting_clients", "gauge", "Requests that wait for an answer.", j.waiting_clients },
    { "oldest_seconds", "gauge", "Age of the oldest entry without a verdict.", j.oldest_age_seconds },
    { "in_doubt", "gauge", "Copies with an entry whose outcome on them is not known.", j.in_doubt },
    { "lanes", "gauge", "Ordered sequences of writes.", j.lanes },
    { "sent_total", "counter", "Entries that were sent to an instance.", j.sent },
    { "requests_total", "counter", "Requests that they were sent in.", j.requests },
    { "commits_total", "counter", "Transactions of the journal.", j.commits },
    { "commit_seconds_mean", "gauge", "Mean time of the last commits.", j.commit_ms.mean / 1000 },
    { "commit_seconds_p99", "gauge", "99th percentile of the last commits.", j.commit_ms.p99 / 1000 },
    { "bytes", "gauge", "Size of the entries that are kept.", j.bytes },
    { "table_bytes", "gauge", "Size of their table on disk.", j.table_bytes },
    { "max_bytes", "gauge", "JOURNAL_MAX_BYTES.", j.max_bytes },
    { "full", "gauge", "1 while writes are refused because the journal is too big.", j.full and 1 or 0 },
    { "entries", "gauge", "Entries that are kept.", j.entries },
    { "trimmed_total", "counter", "Entries that were deleted.", j.trimmed },
    { "memory_bytes", "gauge", "Entries kept in memory.", j.memory_bytes },
    { "epoch", "gauge", "Epoch of the lease.", j.epoch },
    { "events_total", "counter", "Rows written to failover_events.", j.events },
  } do add("journal_" .. m[1], m[2], m[3], m[4]) end
  for i, verdict in ipairs(VERDICTS) do
    add("journal_verdicts_total", "counter", i == 1 and "Entries by verdict." or nil, j[verdict],
      'verdict="' .. verdict .. '"')
  end
  local names = {}
  for name in pairs(s.instances) do names[#names + 1] = name end
  table.sort(names)
  for _, m in ipairs {
    { "lag_entries", "Entries that the instance lacks." },
    { "lag_seconds", "Age of the oldest entry that it lacks." },
    { "copies", "Copies of lanes on it." },
    { "copies_not_ready", "Copies on it that are out of use." },
    { "copies_in_doubt", "Copies on it with an entry whose outcome is not known." },
    { "collections_aside", "Collections on it that the journal does not know." },
  } do
    for i, name in ipairs(names) do
      add("instance_" .. m[1], "gauge", i == 1 and m[2] or nil, s.instances[name][m[1]],
        'instance="' .. name .. '"')
    end
  end
  return out
end

return M
