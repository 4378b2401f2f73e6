-- chromux.lua: an example config file. Start with: chromux run --config deploy/chromux.lua
--
-- It returns a table of settings. `chromux check --explain` lists all of them with their defaults;
-- names may be written in lower case too. What is not said here keeps its default, the environment
-- and --set override what is. Numbers are numbers and switches are true or false, without quotes;
-- seconds and bytes may also be text with a unit ("200ms", "5s"; "32k", "8m"). A mistake in this
-- file stops the start, and at a HUP it leaves the old settings serving.

return {
    LISTEN_ADDRESS = "127.0.0.1",
    PORT = 8000,
    -- ADMIN_PORT = 8090, -- an extra port for /health, /status and /metrics alone

    -- The Chroma servers, any number up to 64. `priority` (default 100) orders them, highest first;
    -- `weight` (default 1) is the share of a weighted strategy; `maxconn` (default MAXCONN) bounds
    -- the requests at once; one has the role primary: the first in order unless one says so.
    instances = {
        { name = "primary", url = "http://127.0.0.1:8001", priority = 100, role = "primary" },
        { name = "replica", url = "http://127.0.0.1:8002", priority = 80 },
        -- { name = "spare", url = "http://[::1]:8003", priority = 10, weight = 2, maxconn = 64 },
    },

    POLICY_DIR = "policies",
    LOAD_BALANCE_STRATEGY = "write_primary", -- a function in policies/route.lua
    UNREPLICATED_READS = "primary", -- "any": something else keeps the servers equal

    -- When an instance is down, and when it is up again (policies/failover.lua).
    CHECK_INTERVAL = 1,
    PROBE_TIMEOUT = 1,
    FAILURE_THRESHOLD = 3,
    SUCCESS_THRESHOLD = 2,
    SLOW_START = "10s",

    CONNECT_TIMEOUT = "1s",
    TRY_TIMEOUT = "5s", -- one try of a read, to the first byte of its answer
    REQUEST_TIMEOUT = "30s",
    MAX_BODY_BYTES = "256m",

    ACCESS_LOG = "-", -- standard output; "off" or a path
    LOG_FORMAT = "kv", -- or "json"
    LOG_LEVEL = "info",
}
