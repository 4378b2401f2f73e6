/* config.h: the settings table, and plain values checked against it.
 *
 * Sources in order, later ones win: defaults < config file < environment < --set. config never
 * reads a file and never runs Lua: main evaluates the file and hands plain values in. All mistakes
 * are collected, none stops the check of the others. A loaded config is immutable. */
#ifndef CONFIG_H
#define CONFIG_H

#include "buf.h"

/* X(field, NAME, type, default, least, most, reloadable, doc)
 * types: INT (long), SECONDS (double), BYTES (long; k, m, g suffixes), BOOL, TEXT (char *, "" when
 * unset), SECRET (as TEXT, blanked when printed). least and most are ignored for TEXT and SECRET;
 * a TEXT setting that takes only certain words or a certain shape is checked in config.c. */
#define SETTINGS(X)                                                                                \
    X(listen_address, LISTEN_ADDRESS, TEXT, "127.0.0.1", 0, 0, false,                              \
      "address that clients connect to")                                                           \
    X(port, PORT, INT, "8000", 0, 65535, false,                                                    \
      "port that clients connect to; 0 takes a free one")                                          \
    X(admin_port, ADMIN_PORT, TEXT, "", 0, 0, false,                                               \
      "extra port that serves only /health, /status and /metrics; 0 takes a free one")             \
    X(primary_url, PRIMARY_URL, TEXT, "", 0, 0, true, "the instance named primary, priority 100")  \
    X(replica_url, REPLICA_URL, TEXT, "", 0, 0, true, "the instance named replica, priority 80")   \
    X(chroma_instances, CHROMA_INSTANCES, TEXT, "", 0, 0, true,                                    \
      "name=url[,priority=N][,weight=N][,maxconn=N][,role=primary|replica];... (any number)")      \
    X(policy_dir, POLICY_DIR, TEXT, "policies", 0, 0, false,                                       \
      "folder of the Lua policies; where ./policies is missing, the installed ones")               \
    X(strategy, LOAD_BALANCE_STRATEGY, TEXT, "write_primary", 0, 0, true,                          \
      "strategy in policies/route.lua")                                                            \
    X(unreplicated_reads, UNREPLICATED_READS, TEXT, "primary", 0, 0, true,                         \
      "without the journal: primary sends all data routes to the primary; any says that "          \
      "something "                                                                                 \
      "else keeps the instances equal and lets reads go to all")                                   \
    X(check_interval, CHECK_INTERVAL, SECONDS, "1", 0.05, 3600, true,                              \
      "time between health probes")                                                                \
    X(probe_timeout, PROBE_TIMEOUT, SECONDS, "1", 0.05, 600, true,                                 \
      "time within which a probe must be answered")                                                \
    X(failure_threshold, FAILURE_THRESHOLD, INT, "3", 1, 1000, true,                               \
      "failed probes in a row that make an instance down (policies/failover.lua)")                 \
    X(success_threshold, SUCCESS_THRESHOLD, INT, "2", 1, 1000, true,                               \
      "good probes in a row that bring an instance up again (policies/failover.lua)")              \
    X(slow_start, SLOW_START, SECONDS, "10", 0, 3600, true,                                        \
      "time over which a recovered instance's weight grows to its full value")                     \
    X(connect_timeout, CONNECT_TIMEOUT, SECONDS, "1", 0.01, 600, true,                             \
      "time to connect to an instance")                                                            \
    X(try_timeout, TRY_TIMEOUT, SECONDS, "5", 0.01, 3600, true,                                    \
      "time to the first byte of an answer to one try of a read")                                  \
    X(request_timeout, REQUEST_TIMEOUT, SECONDS, "30", 0.01, 86400, true,                          \
      "time for a whole request, from its head to the end of the answer's head")                   \
    X(queue_timeout, QUEUE_TIMEOUT, SECONDS, "5", 0.01, 3600, true,                                \
      "time a request may wait for an instance's maxconn")                                         \
    X(head_timeout, HEAD_TIMEOUT, SECONDS, "10", 0.01, 3600, true,                                 \
      "time for a client to send a request head")                                                  \
    X(body_timeout, BODY_TIMEOUT, SECONDS, "30", 0.01, 3600, true,                                 \
      "time between two pieces of a body, either way")                                             \
    X(idle_timeout, IDLE_TIMEOUT, SECONDS, "75", 0.01, 86400, true,                                \
      "time an idle client connection is kept")                                                    \
    X(upstream_idle_timeout, UPSTREAM_IDLE_TIMEOUT, SECONDS, "60", 0.01, 86400, true,              \
      "time an idle connection to an instance is kept")                                            \
    X(upstream_max_idle, UPSTREAM_MAX_IDLE, INT, "128", 0, 100000, true,                           \
      "idle connections kept to each instance")                                                    \
    X(upstream_max_age, UPSTREAM_MAX_AGE, SECONDS, "3600", 0, 864000, true,                        \
      "age at which a connection to an instance is no longer reused; 0 is no limit")               \
    X(upstream_max_requests, UPSTREAM_MAX_REQUESTS, INT, "0", 0, 1000000000, true,                 \
      "requests after which a connection to an instance is no longer reused; 0 is no limit")       \
    X(maxconn, MAXCONN, INT, "256", 1, 100000, true,                                               \
      "requests at once to an instance that names no maxconn of its own")                          \
    X(max_queue, MAX_QUEUE, INT, "1024", 0, 1000000, true,                                         \
      "requests that may wait for each instance")                                                  \
    X(max_clients, MAX_CLIENTS, INT, "10000", 1, 1000000, true, "client connections at once")      \
    X(max_head, MAX_HEAD_BYTES, BYTES, "32k", 1024, 1048576, true,                                 \
      "size of a request or answer head")                                                          \
    X(max_uri, MAX_URI_BYTES, BYTES, "8k", 256, 1048576, true, "size of a request target")         \
    X(max_body, MAX_BODY_BYTES, BYTES, "256m", 1024, 1073741824, true, "size of a request body")   \
    X(journal_memory, JOURNAL_MEMORY_BYTES, BYTES, "512m", 65536, 1073741824, true,                \
      "memory of all bodies of writes on their way through the journal")                           \
    X(journal_keep, JOURNAL_KEEP, SECONDS, "3600", 0, 8640000, true,                               \
      "time that a write is kept in the journal once every instance has it")                       \
    X(journal_keep_bytes, JOURNAL_KEEP_BYTES, BYTES, "1g", 0, 1099511627776, true,                 \
      "size of the journal above which such writes are kept no longer")                            \
    X(journal_max_bytes, JOURNAL_MAX_BYTES, BYTES, "8g", 65536, 1099511627776, true,               \
      "size of the journal above which instances that lack writes are given up, to be made "       \
      "anew, and writes are refused")                                                              \
    X(lease_timeout, LEASE_TIMEOUT, SECONDS, "5", 0.5, 600, false,                                 \
      "time after which a balancer that stopped renewing may be replaced as the writer")           \
    X(write_horizon, WRITE_HORIZON, SECONDS, "30", 1, 3600, false,                                 \
      "time within which a server ends whatever a paused or lost balancer sent it")                \
    X(advertise_url, ADVERTISE_URL, TEXT, "", 0, 0, false,                                         \
      "how other balancers reach this one: http://host:port")                                      \
    X(adopt_tenants, ADOPT_TENANTS, TEXT, "", 0, 0, true,                                          \
      "tenants besides default_tenant, comma-separated, whose collections on the primary the "     \
      "journal takes over")                                                                        \
    X(allow_reset, ALLOW_RESET, BOOL, "false", 0, 1, true,                                         \
      "whether POST /api/v2/reset may delete everything")                                          \
    X(max_tries, MAX_TRIES, INT, "3", 1, 100, true, "tries of a read, the first included")         \
    X(retry_budget, RETRY_BUDGET, INT, "20", 0, 100, true,                                         \
      "retries after a time-out or an error answer at once, in percent of the requests under way " \
      "(never fewer than 3)")                                                                      \
    X(retry_buffer, RETRY_BUFFER_BYTES, BYTES, "2m", 0, 67108864, true,                            \
      "size up to which a read's body is kept so that it can be tried again")                      \
    X(drain_timeout, DRAIN_TIMEOUT, SECONDS, "30", 0, 3600, true,                                  \
      "time that requests get to finish after TERM")                                               \
    X(dns_interval, DNS_INTERVAL, SECONDS, "30", 0.05, 86400, true,                                \
      "time between look-ups of an instance's name")                                               \
    X(dns_servers, DNS_SERVERS, TEXT, "", 0, 0, false,                                             \
      "name servers as address[:port],... instead of the system's")                                \
    X(policy_budget, POLICY_BUDGET, INT, "200000", 1000, 100000000, true,                          \
      "Lua instructions one policy call may use")                                                  \
    X(policy_time, POLICY_TIME, SECONDS, "0.02", 0.001, 10, true,                                  \
      "wall time one policy call may use")                                                         \
    X(policy_memory, POLICY_MEMORY_BYTES, BYTES, "16m", 1048576, 1073741824, true,                 \
      "memory all policies may use")                                                               \
    X(access_log, ACCESS_LOG, TEXT, "-", 0, 0, false, "off, - (standard output) or a path")        \
    X(log_format, LOG_FORMAT, TEXT, "kv", 0, 0, true, "access log as kv or json")                  \
    X(log_level, LOG_LEVEL, TEXT, "info", 0, 0, true, "debug, info, warn or error")                \
    X(database_url, DATABASE_URL, SECRET, "", 0, 0, false,                                         \
      "PostgreSQL, as a libpq URI or key=value")                                                   \
    X(slack_webhook_url, SLACK_WEBHOOK_URL, SECRET, "", 0, 0, true, "Slack incoming webhook")      \
    X(webhook_url, WEBHOOK_URL, SECRET, "", 0, 0, true,                                            \
      "any other webhook that takes the same messages as JSON")                                    \
    X(deployment_name, DEPLOYMENT_NAME, TEXT, "chromux", 0, 0, true,                               \
      "what this deployment is called in every message")                                           \
    X(public_url, PUBLIC_URL, TEXT, "", 0, 0, true,                                                \
      "how people reach this chromux, for links in messages: http(s)://host[:port]")               \
    X(lag_alert, LAG_ALERT, SECONDS, "60", 0, 86400, true,                                         \
      "age of the oldest write that an instance lacks above which people are told; 0: never")      \
    X(monitor_interval, MONITOR_INTERVAL, SECONDS, "30", 0.1, 86400, true,                         \
      "time between samples of how much is used")                                                  \
    X(monitor_window, MONITOR_WINDOW, SECONDS, "600", 1, 864000, true,                             \
      "time over which samples are looked at for recommendations")                                 \
    X(monitor_keep_days, MONITOR_KEEP_DAYS, INT, "14", 1, 3650, true,                              \
      "days that samples are kept")                                                                \
    X(advice_keep_days, ADVICE_KEEP_DAYS, INT, "365", 1, 3650, true,                               \
      "days that resolved recommendations are kept")                                               \
    X(sync_interval, SYNC_INTERVAL, SECONDS, "300", 1, 864000, true, "time between verifications") \
    X(sync_distributed, SYNC_DISTRIBUTED, BOOL, "false", 0, 1, false, "several sync workers")      \
    X(sync_coordinator, SYNC_COORDINATOR, BOOL, "false", 0, 1, false, "coordinate, take no tasks") \
    X(sync_chunk_size, SYNC_CHUNK_SIZE, INT, "1000", 1, 1000000, true, "records in a sync task")   \
    X(default_batch_size, DEFAULT_BATCH_SIZE, INT, "1000", 1, 32000, true,                         \
      "records in a sync request")                                                                 \
    X(max_memory_mb, MAX_MEMORY_MB, INT, "400", 32, 1048576, true,                                 \
      "memory of a sync worker, in MB")                                                            \
    X(max_workers, MAX_WORKERS, INT, "2", 1, 64, false, "sync workers")

enum config_role { CONFIG_PRIMARY, CONFIG_REPLICA };

enum { CONFIG_NAME_MAX = 63, CONFIG_INSTANCES_MAX = 64 };

struct config_instance {
    char *name; /* 1..63 of [A-Za-z0-9._-] */
    char *url;  /* http://host[:port], as given */
    char *host; /* IPv6 without brackets */
    int port;   /* default 8000, Chroma's */
    long priority, weight, maxconn;
    enum config_role
        role; /* exactly one primary: the first in order of priority unless one says so */
};

#define CONFIG_FIELD_INT(f)                                   long f;
#define CONFIG_FIELD_BYTES(f)                                 long f;
#define CONFIG_FIELD_SECONDS(f)                               double f;
#define CONFIG_FIELD_BOOL(f)                                  bool f;
#define CONFIG_FIELD_TEXT(f)                                  char *f;
#define CONFIG_FIELD_SECRET(f)                                char *f;
#define CONFIG_FIELD(f, NAME, type, def, lo, hi, reload, doc) CONFIG_FIELD_##type(f)
struct config {
    SETTINGS(CONFIG_FIELD)
    unsigned instance_count;
    struct config_instance *instance; /* sorted by priority, highest first, then by order given */
    char **source; /* who said each setting, in the order of SETTINGS; NULL: nobody */
};

/* One value as it was found, before it is checked. The table-valued `instances` of the config file
 * arrives as rows: name "instances[2].url" and so on. */
enum config_kind { CONFIG_TEXT, CONFIG_NUMBER, CONFIG_BOOLEAN };
struct config_raw {
    char *name, *text;     /* owned by the list */
    enum config_kind kind; /* environment and --set give CONFIG_TEXT, which is read as any type */
    char *source;          /* "config/chromux.lua", "environment", "--set"; owned */
};
struct config_raws {
    struct config_raw *v;
    unsigned n, room;
};
void config_raws_add(struct config_raws *r, const char *name, const char *text,
                     enum config_kind kind, const char *source);
/* Adds what the environment says: every documented name (bare, or with the prefix CHROMUX_); an
 * unknown CHROMUX_* name is added too, so that the check refuses it. */
void config_raws_add_environment(struct config_raws *r, char **environment);
void config_raws_fini(struct config_raws *r);

/* Checks everything and returns a new config, or NULL with one line a mistake in *errors: name,
 * value (secrets blanked), what was expected, source. Raws come in order of rising precedence. */
struct config *config_build(const struct config_raws *raws, struct buf *errors) MUST_CHECK;
void config_free(struct config *c);

/* A line more in *errors of a setting that can't be used as it is: name, value, source, and text,
 * which says what was expected. For what only the machine tells, such as a file's place. */
void config_complain(const struct config *c, const char *name, const char *text,
                     struct buf *errors);

/* The names of settings that differ and are not reloadable, comma-separated, into *names; the
 * caller keeps their old values. */
void config_unreloadable(const struct config *was, const struct config *now, struct buf *names);

/* `chromux check --explain`: one block a setting: name, type, unit, default, reloadable, doc. */
void config_explain(struct buf *out);
/* The effective configuration, NAME=value a line, secrets blanked, then the instances. */
void config_print(const struct config *c, struct buf *out);

/* Visits every setting that policies may see (all but secrets). */
typedef void config_visit(void *arg, const char *name, enum config_kind kind, const char *text);
void config_each(const struct config *c, config_visit *visit, void *arg);

#endif
