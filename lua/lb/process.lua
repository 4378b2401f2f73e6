-- process.lua: processes and their memory, as Linux tells of them.
--
--   name() -> "boot:namespace/pid/start": names this process for good
--   host() -> the name of this machine
--   host_of(id), pid_of(id) -> parts of a sync worker's id, "host-pid-start" (sync.lua); of another text all of it
--   dead(name) -> has it ended for certain? That can be said only of processes of this machine's present boot, and of
--       this process's own namespace of pids: containers share the boot, and each counts from 1
--   memory_mb() -> of this process, now; peak_mb() -> the most that it ever was
--   cpu_seconds() -> used by this process so far
--   room(root) -> {limit_mb=, free_mb=}: what the control group of this process allows and has left, v1 or v2, and no
--       more than the machine has; limit_mb is nil where nothing limits it. root: of a machine made of files, for specs
local ffi = require("ffi")

local M = {}

ffi.cdef [[
  int kill(int pid, int signal);
  ptrdiff_t readlink(const char *path, char *text, size_t most);
]]

local ESRCH = 3
local MB = 1024 * 1024
local HUGE = 2 ^ 50 -- bytes; a limit above it is none

local function read_line(path)
  local f = io.open(path)
  local line = f and f:read("*l")
  if f then f:close() end
  return line
end

local function read_all(path)
  local f = io.open(path)
  local text = f and f:read("*a")
  if f then f:close() end
  return text or ""
end

-- The fields of /proc/PID/stat behind the name, which may hold anything; the state is the first.
local function stat(pid)
  local line = read_line("/proc/" .. pid .. "/stat")
  if not line then return nil end
  local fields = {}
  for word in line:match("%)%s+(.*)$"):gmatch("%S+") do fields[#fields + 1] = word end
  return fields
end

-- Where pids count: the boot and the namespace. nil: it can't be told.
local function here()
  local boot, text = read_line("/proc/sys/kernel/random/boot_id"), ffi.new("char[64]")
  local n = tonumber(ffi.C.readlink("/proc/self/ns/pid", text, 64))
  return boot and n > 0 and boot .. ":" .. ffi.string(text, n) or nil
end

-- Field 20 behind the name: when the process began, in ticks since the boot.
function M.name()
  local pid, fields = read_line("/proc/self/stat"):match("^%d+"), stat("self")
  return table.concat({ here() or "?", pid, fields[20] }, "/")
end

function M.host() return read_line("/proc/sys/kernel/hostname") or "host" end

function M.host_of(id) return id:match("^(.+)%-%d+%-%d+$") or id end

function M.pid_of(id) return id:match("^.+%-(%d+)%-%d+$") or id end

-- /proc may hide processes of others: who can't be seen there may live.
function M.dead(name)
  local on, pid, began = name:match("^([^/]+)/(%d+)/(.+)$")
  if not on or on ~= here() then return false end
  if ffi.C.kill(tonumber(pid), 0) ~= 0 and ffi.errno() == ESRCH then return true end
  local fields = stat(pid)
  return fields ~= nil and (fields[20] ~= began or fields[1] == "Z" or fields[1] == "X")
end

local function status_mb(field)
  return (tonumber(read_all("/proc/self/status"):match(field .. ":%s*(%d+) kB")) or 0) / 1024
end

function M.memory_mb() return status_mb("VmRSS") end
function M.peak_mb() return status_mb("VmHWM") end

function M.cpu_seconds()
  local fields = stat("self")
  return fields and (tonumber(fields[12]) + tonumber(fields[13])) / 100 or 0 -- ticks are hundredths for programs
end

-- The memory controller's folder of this process: path, version. A container may show its own group as the root.
local function memory_group(root)
  local v1, v2
  for line in read_all(root .. "/proc/self/cgroup"):gmatch("[^\n]+") do
    local controllers, path = line:match("^%d+:([^:]*):(.*)$")
    if controllers == "" then v2 = path end
    if controllers and ("," .. controllers .. ","):find(",memory,", 1, true) then v1 = path end
  end
  local base = root .. "/sys/fs/cgroup" .. (v1 and "/memory" or "")
  local file = v1 and "/memory.limit_in_bytes" or "/memory.max"
  for _, path in ipairs { v1 or v2 or "", "" } do
    path = path == "/" and "" or path
    if read_line(base .. path .. file) then return base .. path, v1 and 1 or 2 end
  end
end

function M.room(root)
  root = root or ""
  local available = tonumber(read_all(root .. "/proc/meminfo"):match("MemAvailable:%s*(%d+) kB"))
  local out = { free_mb = available and available / 1024 or math.huge }
  local path, version = memory_group(root)
  if not path then return out end
  local one = version == 1
  local limit = tonumber(read_line(path .. (one and "/memory.limit_in_bytes" or "/memory.max")))
  if not limit or limit > HUGE then return out end
  local used = tonumber(read_line(path .. (one and "/memory.usage_in_bytes" or "/memory.current"))) or 0
  -- Pages of files that the kernel gives up when somebody needs them.
  local stat_text = "\n" .. read_all(path .. "/memory.stat")
  local spare = tonumber(stat_text:match(one and "\ntotal_inactive_file (%d+)" or "\ninactive_file (%d+)")) or 0
  out.limit_mb = limit / MB
  out.free_mb = math.min(out.free_mb, (limit - math.max(used - spare, 0)) / MB)
  return out
end

return M
