-- status_spec.lua: what /status shows of the journal.
local json = require("cjson.safe")
local status = require("lb.status")

local function node(name)
  return {
    name = name, url = "http://" .. name, role = "primary", state = "up", admin = "ready", resolved = true,
    priority = 1, weight = 1, effective_weight = 1, maxconn = 1, for_seconds = 1, inflight = 0, queued = 0,
    connections_open = 0, connections_idle = 0, requests = 0, failures = 0, probes = 0, probe_fails = 0,
    probe_ms = 0, ewma_ms = 0, p50_ms = 0, p90_ms = 0, p99_ms = 0, last_check = 0, last_failure = 0,
    history = { fails = 0, passes = 0, connect_fails = 0, timeouts = 0, resets = 0, errors_5xx = 0, busy_seconds = 0,
      last_error = "" },
    collections = {}, answers = {},
  }
end

local function snapshot(given)
  local policy = { file = "x.lua", calls = 0, fallbacks = 0, failures = {}, tripped = false, last_error = "",
    last_error_at = 0 }
  local snap = {
    now = 100, started = 1, version = "1", draining = false, reload_error = "", strategy = "s",
    unreplicated_reads = "primary", database = false, policy_loaded_at = 1, policy_load_error = "",
    nodes = { node("a"), node("b") }, policies = { route = policy, failover = policy }, ends = {},
    processes = { { role = "balancer", index = 1, pid = 7, state = "up", restarts = 0, started_at = 1, last_exit = "" },
      { role = "worker", index = 1, pid = 0, state = "waiting", restarts = 2, started_at = 9,
        last_exit = "exit code 1" } },
  }
  for key, value in pairs(given) do snap[key] = value end
  return assert(json.decode(status.status(snap)))
end

describe("/status without a journal", function()
  it("says that replication is off and why", function()
    local s = snapshot {}
    assert.equals("off", s.replication)
    assert.truthy(s.replication_reason:find("no DATABASE_URL", 1, true))
    assert.is_nil(s.journal)
    assert.is_nil(s.instances[1].lag_entries)
  end)
end)

describe("/status of the processes", function()
  it("shows each with how the one before it ended, and no pid where there is none", function()
    local s = snapshot {}
    assert.equals(7, s.processes[1].pid)
    assert.equals(json.null, s.processes[1].last_exit)
    assert.is_nil(s.processes[2].pid)
    assert.same({ "worker", "waiting", 2, "exit code 1" }, { s.processes[2].role, s.processes[2].state,
      s.processes[2].restarts, s.processes[2].last_exit })
  end)
end)

describe("/status with a journal", function()
  it("shows what the journal says, of itself and of each instance", function()
    local s = snapshot {
      database = true,
      journal = {
        replication = "on", reason = "", journal = { head = 7 },
        instances = { b = { lag_entries = 3, lag_seconds = 0.5 } },
      },
    }
    assert.equals("on", s.replication)
    assert.equals(json.null, s.replication_reason)
    assert.equals(7, s.journal.head)
    assert.is_nil(s.instances[1].lag_entries)
    assert.equals(3, s.instances[2].lag_entries)
    assert.equals("b", s.instances[2].name)
  end)

  it("is degraded while the journal can't be asked", function()
    assert.equals("degraded", snapshot { database = true }.replication)
  end)
end)
