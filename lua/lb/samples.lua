-- samples.lua: what each Chroma server of this host uses, and this process itself, at one moment.
--
-- A server is found by who listens on its address (core/usage.h), which is dear, so only when it is not known or not
-- well; a sample asks the process that was found. Instances of other hosts are left to the monitors there.
local usage = require("chromux.usage")

local M = {}
local Samples = {}
Samples.__index = Samples

M.SELF = "chromux:monitor" -- no instance's name has a colon

local LOOK_FIRST, LOOK_MOST = 5, 60 -- seconds between two searches for a server that is not found
local TREE_STEP = 50                -- entries of a data folder that are looked at with each sample
local TREE_LEAST = 60               -- seconds between two looks at all of a folder, at least
local TREE_EACH = 0.02              -- seconds more for each entry that it has
local MB = 1024 * 1024

local ADVICE = {
  elsewhere = "it is another host's: run chromux run --role monitor there",
  denied = "who listens there may not be looked into: run the monitor as the same user, or as root",
}

function M.new()
  return setmetatable({ servers = {}, own = { pid = usage.self } }, Samples)
end

-- ---- finding ---------------------------------------------------------------------------------------------

local function forget(s)
  s.pid, s.before, s.folder, s.folder_again, s.tree, s.tree_again, s.data = nil, nil, nil, nil, nil, nil, nil
end

local function found(s, pid)
  s.why, s.wait = nil, nil
  if s.pid == pid then return end
  forget(s)
  s.pid = pid
  log.info("server_found", s.name .. " is process " .. pid)
end

local function not_found(s, why, t)
  forget(s)
  s.wait = math.min((s.wait or LOOK_FIRST / 2) * 2, LOOK_MOST)
  s.again = t + s.wait
  if s.why == why then return end
  s.why = why
  if ADVICE[why] then log.warn("server_not_sampled", s.name .. ": " .. ADVICE[why]) end
end

-- Looks for those that are due. One search finds them all.
local function search(self, t)
  local names = {}
  for name, s in pairs(self.servers) do
    if (not s.pid or s.doubted) and t >= (s.again or 0) then names[#names + 1] = name end
  end
  if #names == 0 then return end
  local pids, why = usage.find(names)
  for _, name in ipairs(names) do
    local s = self.servers[name]
    if pids[name] then
      found(s, pids[name])
      s.again = t + LOOK_MOST -- while it is in doubt
    else
      not_found(s, why[name], t)
    end
  end
end

-- What this process thinks of the instances: a server that is not well may be another process by now.
local function follow_nodes(self, nodes)
  local living = {}
  for _, n in ipairs(nodes) do
    local s = self.servers[n.name]
    if not s or s.url ~= n.url then
      s = { name = n.name, url = n.url }
      self.servers[n.name] = s
    end
    living[n.name] = true
    local doubted = n.health ~= "up"
    if doubted ~= (s.doubted or false) then s.again, s.wait = nil, nil end
    s.doubted = doubted
  end
  for name in pairs(self.servers) do
    if not living[name] then self.servers[name] = nil end
  end
end

-- ---- one process -----------------------------------------------------------------------------------------

local function percent(part, whole) return whole and whole > 0 and 100 * part / whole or nil end

-- nil: it is gone.
local function measure(s)
  local u = usage.of(s.pid)
  if not u or (s.before and s.before.started ~= u.started) then return nil end
  local before, row = s.before, {}
  s.before = u
  row.memory_usage_mb, row.memory_limit_mb = u.memory_used / MB, u.memory_limit and u.memory_limit / MB
  row.memory_percent = percent(u.memory_used, u.memory_limit)
  row.rss_mb, row.private_mb = u.rss / MB, u.private / MB
  row.cpu_cores = u.cores
  if before and u.at > before.at then
    row.cpu_percent = percent(math.max(u.cpu_seconds - before.cpu_seconds, 0), (u.at - before.at) * u.cores)
  end
  row.open_files, row.max_files = u.open_files, u.max_files
  return row
end

-- The size of the data, a step at a time; the figures are those of the last time that all was seen.
local function step_tree(s, t)
  if not s.tree then
    if t < (s.tree_again or 0) then return end
    s.tree = usage.tree(s.folder)
    s.tree_again = t + TREE_LEAST
    if not s.tree then return end
  end
  local bytes, database, entries = s.tree:step(TREE_STEP)
  if not bytes then return end
  s.tree, s.tree_again = nil, t + math.max(TREE_LEAST, entries * TREE_EACH)
  s.data = { data_mb = bytes / MB, index_mb = (bytes - database) / MB }
end

local function measure_disk(s, row, t)
  if not s.folder and t >= (s.folder_again or 0) then
    s.folder, s.shown = usage.folder(s.pid)
    s.folder_again = t + LOOK_MOST
  end
  if not s.folder then return end
  local total, used, free, share = usage.disk(s.folder)
  if not total then return end
  row.disk_total_mb, row.disk_used_mb, row.disk_free_mb, row.disk_percent = total / MB, used / MB, free / MB, share
  step_tree(s, t)
  if s.data then row.data_mb, row.index_mb = s.data.data_mb, s.data.index_mb end
end

-- t: seconds since boot; nodes: usage.nodes(). List of rows {instance=, fields of performance_metrics…, disk_total_mb=}
-- of this host's servers that run, and of this process.
function Samples:take(t, nodes)
  follow_nodes(self, nodes)
  search(self, t)
  local rows = {}
  for _, n in ipairs(nodes) do
    local s = self.servers[n.name]
    local row = s.pid and measure(s)
    if row then
      row.instance = s.name
      measure_disk(s, row, t)
      rows[#rows + 1] = row
    elseif s.pid then
      forget(s)
      s.again = nil
    end
  end
  local own = measure(self.own)
  if own then
    own.instance = M.SELF
    rows[#rows + 1] = own
  end
  return rows
end

-- The names of the servers that were found here.
function Samples:here()
  local names = {}
  for name, s in pairs(self.servers) do
    if s.pid then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

return M
