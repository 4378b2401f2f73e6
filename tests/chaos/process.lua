-- process.lua: real processes of a round: started, killed, paused, and waited for without stopping the event loop.
-- Each dies with this program. Ours alone are signalled, by the pid that we were given.
local ffi = require("ffi")
local bit = require("bit")

ffi.cdef [[
  int fork(void); int execvp(const char *file, char *const argv[]); void _exit(int status);
  int kill(int pid, int sig); int waitpid(int pid, int *status, int options);
  int setenv(const char *name, const char *value, int overwrite); int unsetenv(const char *name);
  int prctl(int option, ...); int setsid(void); int getpid(void); int chdir(const char *path);
  int open(const char *path, int flags, ...); int dup2(int from, int to);
  void (*signal(int sig, void (*handler)(int)))(int); char *mkdtemp(char *template);
]]
local C = ffi.C

local M = {}
local Process = {}
Process.__index = Process

M.KILL, M.QUIT, M.INT, M.TERM, M.CONT, M.STOP, M.USR1 = 9, 3, 2, 15, 18, 19, 10
local PR_SET_PDEATHSIG, WNOHANG, SIGPIPE = 1, 1, 13
local APPEND = 1 + 64 + 1024 -- O_WRONLY | O_CREAT | O_APPEND

-- {name=, argv={...}, env={NAME=value | false}, log=path, ready=function() -> true when it answers,
--  mortal=false: it watches its parent itself}
function M.new(p) return setmetatable(p, Process) end

local function to_argv(list)
  local argv = ffi.new("const char *[?]", #list + 1)
  for i, s in ipairs(list) do argv[i - 1] = s end
  argv[#list] = nil
  return ffi.cast("char *const *", argv), argv
end

function Process:start()
  assert(not self.pid, self.name .. " runs already")
  local argv, keep = to_argv(self.argv)
  local pid = C.fork()
  assert(pid >= 0, "fork")
  if pid == 0 then
    C.setsid()
    C.prctl(PR_SET_PDEATHSIG, ffi.cast("unsigned long", M.KILL))
    C.signal(SIGPIPE, nil)
    local fd = C.open(self.log, APPEND, ffi.cast("int", 384))
    C.dup2(C.open("/dev/null", 0), 0)
    C.dup2(fd, 1)
    C.dup2(fd, 2)
    for name, value in pairs(self.env or {}) do
      if value then C.setenv(name, tostring(value), 1) else C.unsetenv(name) end
    end
    C.execvp(self.argv[1], argv)
    C._exit(127)
  end
  self.pid, self.paused, self.keep = pid, false, keep
end

-- Has it ended? libev may have reaped it before us.
function Process:ended()
  if not self.pid then return true end
  local got = C.waitpid(self.pid, nil, WNOHANG)
  if got == 0 then return false end
  self.pid = nil
  return true
end

function Process:signal(sig)
  if self:ended() then return false end
  return C.kill(self.pid, sig) == 0
end

-- Ends it by this signal and waits until it is gone; KILL after `patience` seconds.
function Process:kill(sig, patience)
  if not self:signal(sig or M.KILL) then return end
  local till = now() + (patience or 20)
  while not self:ended() do
    if now() > till then
      self:signal(M.KILL)
      till = till + 10
    end
    sleep(0.005)
  end
end

function Process:pause() self.paused = self:signal(M.STOP) end

function Process:resume()
  self:signal(M.CONT)
  self.paused = false
end

-- Started if need be, and answering; started again when it ends instead. Errors after `patience` seconds.
function Process:await(patience)
  local till = now() + (patience or 30)
  local tries = 0
  while now() < till do
    if self:ended() then
      tries = tries + 1
      if tries > 5 then break end
      self:start()
    end
    if self.ready() then return end
    sleep(0.02)
  end
  error(self.name .. " does not answer; see " .. self.log, 0)
end

-- ---- small things of the system --------------------------------------------------------------------------

function M.output(command)
  local f = assert(io.popen(command))
  local text = f:read("*a")
  f:close()
  return (text:gsub("%s+$", ""))
end

function M.temporary()
  local name = ffi.new("char[64]", (os.getenv("TMPDIR") or "/tmp"):sub(1, 40) .. "/chromux-chaos-XXXXXX")
  assert(C.mkdtemp(name) ~= nil, "mkdtemp")
  return ffi.string(name)
end

function M.pid() return C.getpid() end

-- Becomes the same program again with these settings added to the environment.
function M.again(settings, list)
  for name, value in pairs(settings) do C.setenv(name, value, 1) end
  local argv = to_argv(list)
  C.execvp("/proc/self/exe", argv)
  error("cannot start again")
end

-- A port below the kernel's own that nobody listens on and that no other call has given.
local given = {}
function M.free_port(rng)
  local busy = {}
  for _, path in ipairs { "/proc/net/tcp", "/proc/net/tcp6" } do
    local f = io.open(path)
    for hex in (f and f:read("*a") or ""):gmatch(":(%x%x%x%x) ") do busy[tonumber(hex, 16)] = true end
    if f then f:close() end
  end
  while true do
    local port = 12000 + bit.bxor(rng:int(0, 16383), M.pid() % 16384)
    if not busy[port] and not given[port] then
      given[port] = true
      return port
    end
  end
end

return M
