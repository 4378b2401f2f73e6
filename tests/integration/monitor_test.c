/* The monitor beside real servers: what it writes to PostgreSQL, what it advises, and that its
 * tables stay quick. What a test needs of root (a control group, a mount) it is skipped without. */
#include "fixture.h"
#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define SELF "chromux:monitor"

/* A monitor of these instances that samples five times a second and looks at two seconds; further
 * settings as for chromux_start. */
static struct chromux *monitor_of(struct stage *s, const char *instances, const char *first, ...)
{
    const char *list[24] = {"--role",
                            "monitor",
                            keepf("DATABASE_URL=%s", s->url),
                            keepf("CHROMA_INSTANCES=%s", instances),
                            "CHECK_INTERVAL=0.2",
                            "MONITOR_WINDOW=2",
                            "POLICY_TIME=2"};
    unsigned n = 7;
    bool interval = false;
    va_list args;
    va_start(args, first);
    for (const char *one = first; one && n < COUNT_OF(list) - 2; one = va_arg(args, const char *)) {
        list[n++] = one;
        interval = interval || strncmp(one, "MONITOR_INTERVAL=", 17) == 0;
    }
    va_end(args);
    if (!interval)
        list[n] = "MONITOR_INTERVAL=0.2";
    return chromux_spawn(list);
}

static char *both(struct stage *s)
{
    return keepf("primary=%s;replica=%s", s->server[0]->url, s->server[1]->url);
}

#define monitor(s, ...) monitor_of(s, both(s), __VA_ARGS__)

/* Of the newest sample of an instance; SQL over its columns. NULL counts as -1. */
static double newest(struct stage *s, const char *instance, const char *what)
{
    return atof(sql(s,
                    "SELECT COALESCE((%s)::float8, -1) FROM performance_metrics WHERE instance = "
                    "'%s' ORDER BY metric_timestamp DESC LIMIT 1",
                    what, instance));
}

static long samples(struct stage *s, const char *instance)
{
    return sql_number(s, "SELECT count(*) FROM performance_metrics WHERE instance = '%s'",
                      instance);
}

/* The tables are there and it has begun. */
static void wait_for_samples(struct stage *s, const char *instance, long n)
{
    check_soon(sql_number(s, "SELECT count(*) FROM pg_class WHERE relname = 'notify_events'") == 1,
               15);
    check_soon(samples(s, instance) >= n, 15);
}

static long events(struct stage *s, const char *kind, const char *key)
{
    return sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = '%s' AND key = '%s'",
                      kind, key);
}

static long open_recommendations(struct stage *s, const char *type, const char *urgency)
{
    return sql_number(s,
                      "SELECT count(*) FROM upgrade_recommendations WHERE instance = 'primary' AND "
                      "recommendation_type = '%s' AND urgency = '%s' AND resolved_at IS NULL",
                      type, urgency);
}

static struct run advise(const char *url)
{
    const char *const argv[] = {chromux_path(), "advise", NULL};
    const char *environment[] = {keepf("DATABASE_URL=%s", url ? url : ""), NULL};
    return run_program(argv, url ? environment : environment + 1, 30);
}

/* ---- samples ----------------------------------------------------------------------------------
 */

static void what_servers_use_is_written_and_shown(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "MONITOR_INTERVAL=0.2", NULL);
    char *id = create(s, "ccc");
    check_status(post(s, of(id, "add"), records_body("r", 0, 50, "")), 201);
    check_equal(s, id, 10);
    struct chromux *m = monitor(s, NULL);
    wait_for_samples(s, "replica", 3);
    wait_for_samples(s, SELF, 3);
    double rss = (double)process_rss_kb(s->server[0]->pid) / 1024;
    check(newest(s, "primary", "rss_mb") > rss * 0.8 && newest(s, "primary", "rss_mb") < rss * 1.2);
    check(newest(s, "primary", "memory_percent") > 0);
    check(newest(s, "primary", "memory_limit_mb") > 100);
    check(newest(s, "primary", "cpu_percent") >= 0);
    check(newest(s, "primary", "open_files") > 10);
    check(newest(s, "primary", "disk_free_mb") > 0);
    check(newest(s, "primary", "disk_percent") > 0);
    check_soon(newest(s, "primary", "data_mb") > 0.1, 10);
    check(newest(s, "primary", "data_mb") > newest(s, "primary", "index_mb"));
    check(newest(s, SELF, "private_mb") > 1);
    check_soon(newest(s, "primary", "vectors") == 50, 20);
    check_soon(newest(s, "replica", "active_collections") == 1, 10);
    /* What the balancer knows. */
    for (unsigned i = 0; i < 20; i++)
        check_status(get(s, of(id, "count")), 200);
    check_soon(sql_number(s, "SELECT count(*) FROM performance_metrics WHERE p99_ms > 0 AND "
                             "requests_per_second > 0 AND errors_percent = 0") > 0,
               10);
    check_soon(newest(s, "replica", "lag_entries") == 0, 5);
    check_soon(newest(s, "replica", "in_flight") == 0, 5);
    /* The guide's query. */
    check_int(sql_number(s, "SELECT count(*) FROM (SELECT metric_timestamp, memory_percent, "
                            "cpu_percent FROM performance_metrics ORDER BY metric_timestamp DESC "
                            "LIMIT 5) g WHERE memory_percent IS NOT NULL AND cpu_percent >= 0"),
              5);
    /* The pages. */
    check_soon(strstr(get(s, "/status")->body, "\"resources\":{") != NULL, 5);
    char *resources = json_field(get(s, "/status")->body, "resources");
    check(atof(json_field(resources, "memory_usage_mb")) > 1);
    check_has(json_field(resources, "sampled_at"), "T");
    check(metric(s, "chromux_instance_memory_bytes{instance=\"primary\"}") > 1e6);
    check_soon(metric(s, "chromux_instance_vectors{instance=\"replica\"}") == 50, 5);
    check_str(json_field(get(s, "/status")->body, "recommendations"), "[]");
    check_int(chromux_stop(m), 0);
    check_int(sql_number(s, "SELECT count(*) FROM monitors"), 0);
}

static void a_server_that_dies_and_comes_back_is_found_again(void **state)
{
    struct stage *s = stage_new();
    struct chromux *m =
        monitor_of(s, keepf("%s;far=http://192.0.2.1:8000", both(s)), "PROBE_TIMEOUT=0.3", NULL);
    wait_for_samples(s, "replica", 1);
    check_soon(sql_number(s, "SELECT count(*) FROM health_metrics WHERE instance_name = 'replica' "
                             "AND is_healthy AND response_time_ms > 0") > 0,
               10);
    chroma_kill(s->server[1]);
    check_soon(sql_number(s, "SELECT count(*) FROM health_metrics WHERE instance_name = 'replica' "
                             "AND NOT is_healthy AND error_message <> ''") > 0,
               10);
    long n = samples(s, "replica");
    long own = samples(s, SELF);
    check_soon(samples(s, SELF) > own + 3, 10);
    check_int(samples(s, "replica"), n);
    chroma_again(s->server[1]);
    check_soon(samples(s, "replica") > n, 20);
    double rss = (double)process_rss_kb(s->server[1]->pid) / 1024;
    check_soon(newest(s, "replica", "rss_mb") > rss * 0.8 &&
                   newest(s, "replica", "rss_mb") < rss * 1.2,
               5);
    check(samples(s, "primary") > samples(s, "replica"));
    /* The other host's instance: said once, and its health all the same. */
    check_int(count_lines(chromux_log(m), "server_not_sampled"), 1);
    check_has(chromux_log(m), "far: it is another host's");
    check_int(samples(s, "far"), 0);
    check_soon(sql_number(s, "SELECT count(*) FROM health_metrics WHERE instance_name = 'far'") > 0,
               20);
}

static void samples_of_a_time_without_postgresql_are_written_later(void **state)
{
    struct stage *s = stage_new();
    struct chromux *m = monitor(s, NULL);
    wait_for_samples(s, SELF, 3);
    stage_pg_kill(SIGKILL);
    double gone = now_seconds();
    check_soon(strstr(chromux_log(m), "samples_wait") != NULL, 20);
    check_soon(now_seconds() > gone + 4, 10);
    stage_pg_again();
    double away = now_seconds() - gone;
    check_soon(strstr(chromux_log(m), "samples_written") != NULL, 20);
    long had = samples(s, SELF);
    check_soon(samples(s, SELF) > had + 5, 10);
    /* No gap, and none twice. */
    check(atof(sql(s, "SELECT max(gap) FROM (SELECT extract(epoch FROM metric_timestamp - "
                      "lag(metric_timestamp) OVER (ORDER BY metric_timestamp)) AS gap FROM "
                      "performance_metrics WHERE instance = '" SELF "') g")) < slow(1));
    check(away > 4);
    check_int(sql_number(s, "SELECT count(*) - count(DISTINCT metric_timestamp) FROM "
                            "performance_metrics WHERE instance = '" SELF "'"),
              0);
}

/* ---- recommendations --------------------------------------------------------------------------
 */

/* Puts this process, and what it starts from now on, into a control group of memory. */
static bool enter_group(const char *folder)
{
    char *path = keepf("%s/cgroup.procs", folder), *pid = keepf("%d\n", (int)getpid());
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool in = fd >= 0 && write(fd, pid, strlen(pid)) > 0;
    if (fd >= 0)
        close(fd);
    return in;
}

/* The group of memory that this process is in; NULL: no cgroup v1. */
static char *own_group(void)
{
    char *line = strstr(read_file("/proc/self/cgroup"), ":memory:/");
    return line ? keepf("/sys/fs/cgroup/memory%.*s", (int)strcspn(line + 8, "\n"), line + 8) : NULL;
}

static double figure_in(const char *group, const char *name)
{
    return atof(read_file(keepf("%s/%s", group, name)));
}

static double used_in(const char *group)
{
    char *idle = strstr(read_file(keepf("%s/memory.stat", group)), "total_inactive_file ");
    return figure_in(group, "memory.usage_in_bytes") - (idle ? atof(idle + 20) : 0);
}

static void limit_group(const char *group, double bytes)
{
    char *path = keepf("%s/memory.limit_in_bytes", group), *text = keepf("%.0f\n", bytes);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd >= 0 && write(fd, text, strlen(text)) > 0);
    close(fd);
}

/* At its limit the server then stands still; otherwise the kernel would kill it. */
static void spare_group(const char *group)
{
    int fd = open(keepf("%s/memory.oom_control", group), O_WRONLY | O_CLOEXEC);
    check(fd >= 0 && write(fd, "1\n", 2) == 2);
    close(fd);
}

static char *group; /* made by the test that runs */

static int end_of_group(void **state)
{
    int result = stage_teardown(state);
    if (group)
        wait_until(rmdir(group) == 0 || errno == ENOENT, 5);
    group = NULL;
    return result;
}

/* Starts a stopped server so that its memory counts in the group. */
static void start_in_group(struct chroma *c)
{
    char *home = own_group();
    check(enter_group(group));
    chroma_again(c);
    check(enter_group(home));
}

/* n records of 1,536 dimensions, quick to index. */
static char *many_dimensions(unsigned from, unsigned n)
{
    enum { DIMENSIONS = 1536 };
    char *body = keep(n * (DIMENSIONS * 4 + 32) + 128), *at = body;
    unsigned seed = from * 2654435761u + 1;
    at += sprintf(at, "{\"ids\":[");
    for (unsigned i = 0; i < n; i++)
        at += sprintf(at, "%s\"r%u\"", i ? "," : "", from + i);
    at += sprintf(at, "],\"embeddings\":[");
    for (unsigned i = 0; i < n; i++) {
        at += sprintf(at, "%s[", i ? "," : "");
        for (unsigned k = 0; k < DIMENSIONS; k++) {
            seed = seed * 1664525u + 1013904223u;
            at += sprintf(at, "%s%u", k ? "," : "", seed >> 22);
        }
        at += sprintf(at, "]");
    }
    sprintf(at, "]}");
    return body;
}

static void insert(struct chroma *c, const char *id, unsigned from, unsigned n)
{
    check_status(ask_server(c, "POST", of(id, "add"), many_dimensions(from, n)), 201);
}

/* Real inserts until the group's memory is this share of its limit. */
static unsigned insert_until(struct chroma *c, const char *id, unsigned from, double share)
{
    double limit = figure_in(group, "memory.limit_in_bytes");
    for (unsigned i = 0; i < 2000 && used_in(group) < share * limit; i++, from += 20)
        insert(c, id, from, 20);
    check(used_in(group) >= share * limit);
    return from;
}

/* The same so near to the limit that the server may stand still before it answers. */
static unsigned crowd_in(struct chroma *c, const char *id, unsigned from, double share)
{
    double limit = figure_in(group, "memory.limit_in_bytes");
    char *path = keepf(CHROMA_DB "/collections/%s/add", id);
    for (unsigned i = 0; i < 2000 && used_in(group) < share * limit; i++, from += 10)
        if (!http_send((int)c->port, "POST", path, "", many_dimensions(from, 10)))
            break;
    return from;
}

static void hook(struct conn *c)
{
    while (conn_request(c) && conn_answer(c, "ok"))
        ;
}

/* Messages that hold both. */
static unsigned told(struct peer *p, const char *a, const char *b)
{
    unsigned n = 0;
    for (unsigned i = 0; i < peer_requests(p); i++) {
        struct request *r = peer_request(p, i);
        n += r->complete && strstr(r->body, a) && strstr(r->body, b);
    }
    return n;
}

#define MEMORY "recommendation/primary/memory"

static void a_server_near_its_limit_is_told_of_once_for_each_step(void **state)
{
    struct peer *webhook = peer_start(hook);
    struct stage *s = stage_new();
    char *made = keepf("/sys/fs/cgroup/memory/chromux-test-%d", (int)getpid());
    if (!own_group() || mkdir(made, 0700) != 0) {
        print_message("skipped: a limit of memory takes a control group (v1), which only root can "
                      "make: %s\n",
                      strerror(errno));
        skip();
    }
    group = made;
    spare_group(group);
    chroma_kill(s->server[0]);
    start_in_group(s->server[0]);
    stage_chromux(s, "MONITOR_INTERVAL=0.2", keepf("WEBHOOK_URL=%s/hook", peer_url(webhook)), NULL);
    monitor(s, NULL);
    /* Filled until it is worth a limit: of that, it is at 70 % then. */
    struct answer *a = ask_server(s->server[0], "POST", "/collections",
                                  "{\"name\":\"big\",\"configuration\":{\"hnsw\":{\"space\":\"l2\","
                                  "\"ef_construction\":5,\"max_neighbors\":2,\"sync_threshold\":"
                                  "100000,\"batch_size\":50000}}}");
    check_status(a, 200);
    char *id = keep_text(json_field(a->body, "id") + 1, 36);
    unsigned n = 0;
    for (unsigned i = 0; i < 200 && used_in(group) < 80e6; i++, n += 100)
        insert(s->server[0], id, n, 100);
    /* A limit makes the kernel look which pages of files are in use: then more of them count. */
    check_soon((limit_group(group, used_in(group) / 0.7),
                used_in(group) < 0.75 * figure_in(group, "memory.limit_in_bytes")),
               10);
    check_soon(newest(s, "primary", "memory_limit_mb") < 1000, 20);
    check_int(open_recommendations(s, "memory", "medium"), 0);
    /* Again and again, since the kernel takes pages back from a group that is nearly full. */
    check_soon((n = insert_until(s->server[0], id, n, 0.88),
                open_recommendations(s, "memory", "medium") == 1),
               20);
    check_int(events(s, "recommendation_opened", MEMORY), 1);
    check(sql_number(s, "SELECT max(memory_percent)::bigint FROM performance_metrics WHERE "
                        "instance = 'primary'") > 85);
    check_soon(
        (n = crowd_in(s->server[0], id, n, 0.97), open_recommendations(s, "memory", "high") == 1),
        20);
    check_int(events(s, "recommendation_raised", MEMORY), 1);
    check_int(sql_number(s, "SELECT count(*) FROM upgrade_recommendations WHERE instance = "
                            "'primary' AND recommendation_type = 'memory'"),
              1);
    struct run r = advise(s->url);
    check_int(r.status, 1);
    check_has(r.output, "high    memory: memory at 9");
    check_has(r.output, "plan standard, 21 $ a month");
    check_soon(strstr(json_field(get(s, "/status")->body, "recommendations"),
                      "\"recommended_tier\":\"standard\"") != NULL,
               5);
    check_soon(metric(s, "chromux_recommendation{instance=\"primary\",type=\"memory\",urgency="
                         "\"high\"}") == 1,
               5);
    /* It begins anew and takes what it needs. */
    chroma_kill(s->server[0]);
    start_in_group(s->server[0]);
    check_soon(sql_number(s,
                          "SELECT count(*) FROM upgrade_recommendations WHERE resolved_at IS NOT "
                          "NULL AND instance = 'primary' AND recommendation_type = 'memory'") == 1,
               20);
    check_int(events(s, "recommendation_opened", MEMORY), 1);
    check_int(events(s, "recommendation_raised", MEMORY), 1);
    check_int(events(s, "recommendation_closed", MEMORY), 1);
    check_soon(told(webhook, "recommendation_closed", "memory") == 1, 20);
    check_int(told(webhook, "recommendation_opened", "memory"), 1);
    check_int(told(webhook, "recommendation_raised", "memory"), 1);
    check_int(advise(s->url).status, 0);
}

static char *mounted; /* by the test that runs */

static int end_of_mount(void **state)
{
    if (mounted)
        umount2(mounted, MNT_DETACH);
    mounted = NULL;
    return stage_teardown(state);
}

static void fill(const char *path, size_t mb)
{
    static char block[1 << 20];
    FILE *f = fopen(path, "w");
    check(f != NULL);
    memset(block, 'x', sizeof block);
    while (mb-- > 0)
        check(fwrite(block, sizeof block, 1, f) == 1);
    check(fclose(f) == 0);
}

static void a_full_disk_is_told_of_and_its_end_too(void **state)
{
    struct stage *s = stage_new();
    char *disk = keepf("%s/disk", temp_folder()), *junk = keepf("%s/junk", disk);
    check(mkdir(disk, 0700) == 0);
    if (mount("none", disk, "tmpfs", 0, "size=100m") != 0) {
        print_message("skipped: a disk that can be filled takes a mount, which is root's: %s\n",
                      strerror(errno));
        skip();
    }
    mounted = disk;
    s->server[0] = chroma_start(keepf("%s/data", disk));
    monitor(s, NULL);
    wait_for_samples(s, "primary", 3);
    check(newest(s, "primary", "disk_used_mb + disk_free_mb") < 101);
    check(newest(s, "primary", "disk_percent") < 20);
    check_int(open_recommendations(s, "disk", "low"), 0);
    fill(junk, 85);
    check_soon(open_recommendations(s, "disk", "low") == 1, 20);
    check_int(events(s, "disk_above", "disk/primary"), 0);
    fill(junk, 93);
    check_soon(events(s, "disk_above", "disk/primary") == 1, 20);
    check(unlink(junk) == 0);
    check_soon(events(s, "disk_below", "disk/primary") == 1, 20);
    check_soon(open_recommendations(s, "disk", "low") == 0, 20);
    check_int(events(s, "recommendation_opened", "recommendation/primary/disk"), 1);
    check_int(events(s, "recommendation_closed", "recommendation/primary/disk"), 1);
    check_int(events(s, "disk_above", "disk/primary"), 1);
    /* What the server itself has there: a count of its files. */
    check_soon(newest(s, "primary", "data_mb") > 0.1 && newest(s, "primary", "data_mb") < 20, 20);
}

static void rules_change_with_the_policy_and_one_monitor_decides(void **state)
{
    struct stage *s = stage_new();
    char *folder = own_policies(), *policy = keepf("%s/upgrade.lua", folder);
    char *setting = keepf("POLICY_DIR=%s", folder);
    struct chromux *m[2] = {monitor(s, setting, NULL), monitor(s, setting, NULL)};
    wait_for_samples(s, "primary", 30);
    check_soon(sql_number(s, "SELECT count(*) FROM monitors") == 2, 10);
    check_int(sql_number(s, "SELECT count(*) FROM upgrade_recommendations WHERE "
                            "recommendation_type = 'memory'"),
              0);
    edit_file(policy, "{ above = 85, urgency = \"medium\" }",
              "{ above = -1, urgency = \"medium\" }");
    for (unsigned i = 0; i < 2; i++)
        chromux_signal(m[i], SIGHUP);
    check_soon(open_recommendations(s, "memory", "medium") == 1, 10);
    /* A broken one changes nothing. */
    edit_file(policy, "function M.advise", "function M.advice");
    for (unsigned i = 0; i < 2; i++)
        chromux_signal(m[i], SIGHUP);
    check_soon(strstr(chromux_log(m[0]), "reload_failed") != NULL, 10);
    edit_file(policy, "function M.advice", "function M.advise");
    /* The one that decides goes, and the other has its place. */
    char *first = sql(s, "SELECT monitor FROM monitor_instances WHERE instance = 'primary'");
    unsigned who = strstr(first, keepf("/%d", (int)m[0]->pid)) ? 0 : 1;
    check_int(chromux_stop(m[who]), 0);
    check_soon(sql_number(s,
                          "SELECT count(*) FROM monitor_instances WHERE instance = 'primary' "
                          "AND monitor <> '%s' AND until > now()",
                          first) == 1,
               10);
    check_int(sql_number(s, "SELECT count(*) FROM monitors"), 1);
    edit_file(policy, "{ above = -1, urgency = \"medium\" }",
              "{ above = 85, urgency = \"medium\" }");
    chromux_signal(m[1 - who], SIGHUP);
    check_soon(open_recommendations(s, "memory", "medium") == 0, 10);
    check_int(events(s, "recommendation_opened", MEMORY), 1);
    check_int(events(s, "recommendation_closed", MEMORY), 1);
    check_int(sql_number(s, "SELECT count(*) FROM upgrade_recommendations WHERE instance = "
                            "'primary' AND recommendation_type = 'memory'"),
              1);
}

static void advice_is_read_without_a_balancer(void **state)
{
    struct stage *s = stage_new();
    struct run r = advise(s->url);
    check_int(r.status, 3);
    check_has(r.output, "no samples of this version");
    check_int(advise(NULL).status, 3);
    struct chromux *m = monitor(s, NULL);
    wait_for_samples(s, "replica", 3);
    check_soon(sql_number(s, "SELECT count(*) FROM monitor_instances") == 2, 10);
    check_int(chromux_stop(m), 0);
    r = advise(s->url);
    check_int(r.status, 0);
    check_has(r.output, "replica, sampled ");
    check_has(r.output, "needs nothing");
    sql(s, "INSERT INTO upgrade_recommendations (recommendation_type, current_usage, "
           "recommended_tier, estimated_monthly_cost, reason, urgency, instance, host, value) "
           "VALUES ('cpu', 91, 'pro', 85, 'cpu at 91', 'medium', 'gone', 'h', 91)");
    r = advise(s->url);
    check_int(r.status, 0);
    check_has(r.output, "gone, not sampled any more");
    check_has(r.output, "medium  cpu: cpu at 91");
    /* It is nobody's any more: whichever monitor runs ends what is said of it. */
    sql(s, "INSERT INTO monitor_instances (instance, monitor, until, disk_above) "
           "VALUES ('gone', 'another', now() - interval '1 second', true)");
    monitor(s, NULL);
    check_soon(sql_number(s, "SELECT count(*) FROM upgrade_recommendations WHERE instance = "
                             "'gone' AND resolved_at IS NULL") == 0,
               20);
    check_int(events(s, "recommendation_closed", "recommendation/gone/cpu"), 1);
    check_int(events(s, "disk_below", "disk/gone"), 1);
    check_int(sql_number(s, "SELECT count(*) FROM monitor_instances WHERE instance = 'gone'"), 0);
    /* One that is retired needs nothing either. */
    sql(s, "INSERT INTO upgrade_recommendations (recommendation_type, current_usage, "
           "recommended_tier, estimated_monthly_cost, reason, urgency, instance, host, value) "
           "VALUES ('licence', 91, 'pro', 85, 'r', 'medium', 'replica', 'h', 91)");
    sql(s, "INSERT INTO journal_servers (instance, retired) VALUES ('replica', true)");
    check_soon(events(s, "recommendation_closed", "recommendation/replica/licence") == 1, 20);
    check_soon(sql_number(s, "SELECT count(*) FROM monitor_instances WHERE instance = 'replica'") ==
                   0,
               10);
}

/* ---- many samples ------------------------------------------------------------------------------
 */

/* Runs the query three times; the quickest in milliseconds, of PostgreSQL's own account. */
static double quickest(struct stage *s, const char *query, bool *index)
{
    double best = 1e9;
    for (unsigned i = 0; i < 3; i++) {
        char *plan =
            sql(s, "SELECT string_agg(line, E'\\n') FROM explained($q$%s$q$) AS e (line)", query);
        char *at = strstr(plan, "Execution Time: ");
        check(at != NULL);
        best = atof(at + 16) < best ? atof(at + 16) : best;
        *index = strstr(plan, "Index") != NULL;
    }
    return best;
}

static void a_month_of_samples_is_forgotten_in_time_and_asked_quickly(void **state)
{
    struct stage *s = stage_new();
    struct chromux *m = monitor(s, "MONITOR_INTERVAL=30", NULL);
    wait_for_samples(s, "replica", 1);
    check_int(chromux_stop(m), 0);
    /* 30 days of 10 servers every 30 seconds. */
    sql(s, "INSERT INTO performance_metrics (metric_timestamp, host, instance, memory_usage_mb, "
           "memory_limit_mb, memory_percent, rss_mb, cpu_percent, cpu_cores, disk_free_mb, "
           "disk_percent, open_files) SELECT now() - make_interval(secs => i * 30), 'h', "
           "'server' || k, 300, 512, 40 + i %% 50, 310, i %% 90, 2, 5000, 30, 60 "
           "FROM generate_series(1, 86400) i, generate_series(1, 10) k");
    sql(s, "INSERT INTO health_metrics (instance_name, instance_url, is_healthy, checked_at, host) "
           "SELECT 'server1', 'u', true, now() - make_interval(mins => i), 'h' FROM "
           "generate_series(1, 43200) i");
    sql(s, "VACUUM ANALYZE"); /* as PostgreSQL does of itself */
    sql(s, "CREATE FUNCTION explained(q text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN "
           "RETURN QUERY EXECUTE 'EXPLAIN ANALYZE ' || q; END $$");
    static const char *const queries[] = {
        "SELECT metric_timestamp, memory_percent, cpu_percent FROM performance_metrics ORDER BY "
        "metric_timestamp DESC LIMIT 5",
        "SELECT * FROM performance_metrics WHERE instance = 'server7' ORDER BY metric_timestamp "
        "DESC LIMIT 1",
        "SELECT date_trunc('minute', metric_timestamp), avg(memory_percent), max(cpu_percent) FROM "
        "performance_metrics WHERE instance = 'server7' AND metric_timestamp > now() - interval '1 "
        "day' GROUP BY 1",
        "SELECT date_trunc('hour', metric_timestamp), avg(memory_percent), max(cpu_percent) FROM "
        "performance_metrics WHERE instance = 'server7' GROUP BY 1",
        "SELECT instance, count(*), avg(memory_percent), percentile_cont(0.95) WITHIN GROUP (ORDER "
        "BY memory_percent) FROM performance_metrics WHERE host = 'h' AND metric_timestamp > now() "
        "- interval '10 minutes' GROUP BY instance",
        "SELECT instance, regr_slope(memory_percent, extract(epoch FROM metric_timestamp)) FROM "
        "performance_metrics WHERE host = 'h' AND metric_timestamp > now() - interval '6 hours' "
        "GROUP BY instance",
        "SELECT * FROM upgrade_recommendations ORDER BY created_at DESC LIMIT 5",
        "SELECT * FROM health_metrics WHERE instance_name = 'server1' ORDER BY checked_at DESC "
        "LIMIT 5",
        "SELECT count(*) FROM performance_metrics WHERE metric_timestamp < now() - interval '30 "
        "days'"};
    for (unsigned i = 0; i < COUNT_OF(queries); i++) {
        bool index;
        double ms = quickest(s, queries[i], &index);
        print_message("%.2f ms%s: %.60s...\n", ms, index ? "" : " (no index)", queries[i]);
        if (!(ms < slow(100)) || (!index && !strstr(queries[i], "upgrade_recommendations")))
            harness_fail(__FILE__, __LINE__, "%.1f ms, index %d: %s", ms, index, queries[i]);
    }
    /* Twenty days of them are kept, when that is said. */
    m = monitor(s, "MONITOR_KEEP_DAYS=20", NULL);
    check_soon(sql_number(s, "SELECT count(*) FROM performance_metrics WHERE host = 'h' AND "
                             "metric_timestamp < now() - interval '20 days 1 minute'") == 0,
               40);
    check_soon(sql_number(s,
                          "SELECT count(*) FROM health_metrics WHERE host = 'h' AND checked_at < "
                          "now() - interval '20 days 1 minute'") == 0,
               20);
    check(sql_number(s, "SELECT count(*) FROM performance_metrics WHERE host = 'h'") >=
          20 * 86400 / 30 * 10 - 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(what_servers_use_is_written_and_shown),
        STAGE_TEST(a_server_that_dies_and_comes_back_is_found_again),
        STAGE_TEST(samples_of_a_time_without_postgresql_are_written_later),
        cmocka_unit_test_setup_teardown(a_server_near_its_limit_is_told_of_once_for_each_step,
                                        stage_setup, end_of_group),
        cmocka_unit_test_setup_teardown(a_full_disk_is_told_of_and_its_end_too, stage_setup,
                                        end_of_mount),
        STAGE_TEST(rules_change_with_the_policy_and_one_monitor_decides),
        STAGE_TEST(advice_is_read_without_a_balancer),
        STAGE_TEST(a_month_of_samples_is_forgotten_in_time_and_asked_quickly),
    };
    return STAGE_RUN(tests);
}
