/* What limits a worker: servers that refuse what it sends, vectors that no server takes, its
 * memory; and what the tool that waits for it shows on a terminal. */
#include "fixture.h"
#include "syncing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

/* ---- a relay in front of the replica ------------------------------------------------------------
 * It passes on everything but adds that it was told to refuse. */

enum { ADDS_MAX = 2000, RECORDS = 2500, TOO_LARGE = 8192, AFTER_SECONDS = 1 };

struct add {
    double at;
    unsigned records;
    size_t bytes;
    int refused; /* status; 0: it was passed on */
};

static struct {
    pthread_mutex_t lock;
    unsigned port;                /* of the replica */
    int (*refuses)(struct add *); /* NULL: none */
    struct add add[ADDS_MAX];
    unsigned adds;
    bool busy;
} relay = {.lock = PTHREAD_MUTEX_INITIALIZER};

static unsigned commas(const char *text)
{
    unsigned n = 0;
    while ((text = strchr(text, ',')) != NULL)
        n++, text++;
    return n;
}

/* Notes an add; the status that it is refused with, or 0. */
static int judge(const struct request *r)
{
    struct add a = {.at = now_seconds(),
                    .records = commas(json_field(r->body, "ids")) + 1,
                    .bytes = (size_t)r->body_len};
    pthread_mutex_lock(&relay.lock);
    if (relay.refuses) {
        a.refused = relay.refuses(&a);
        if (relay.adds < ADDS_MAX)
            relay.add[relay.adds++] = a;
    }
    pthread_mutex_unlock(&relay.lock);
    return a.refused;
}

static void pass_or_refuse(struct conn *c)
{
    struct request *r = conn_request(c);
    int status = r && strstr(r->head, "/add HTTP/1.1\r\n") ? judge(r) : 0;
    if (r && status == 0)
        conn_relay(c, r, relay.port);
    else if (r)
        conn_send(c,
                  "HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: 16\r\n"
                  "%sConnection: close\r\n\r\n{\"error\":\"limit\"}",
                  status, status == 429 ? keepf("Retry-After: %d\r\n", AFTER_SECONDS) : "");
}

static int refuse_large(struct add *a)
{
    return a->bytes > TOO_LARGE ? 413 : 0;
}

/* The second one, three times. */
static int refuse_thrice(struct add *a)
{
    (void)a;
    return relay.adds >= 1 && relay.adds <= 3 ? 429 : 0;
}

static int refuse_while_busy(struct add *a)
{
    (void)a;
    return relay.busy && relay.adds >= 1 ? 503 : 0;
}

/* RECORDS records on both servers, the replica behind the relay, and a worker that is to make the
 * copy there anew. The collection. */
static char *begin_rebuild(struct stage *s, int (*refuses)(struct add *))
{
    relay.port = s->server[1]->port;
    relay.refuses = NULL;
    relay.adds = 0;
    relay.busy = true;
    stage_chromux(s, keepf("REPLICA_URL=%s", peer_url(peer_start(pass_or_refuse))),
                  "SYNC_INTERVAL=86400", "SYNC_CHUNK_SIZE=5000", NULL);
    char *id = create(s, "many");
    for (unsigned from = 0; from < RECORDS; from += 500)
        check_status(post(s, of(id, "add"), records_body("r", from, 500, "")), 201);
    check_caught_up(s, 20);
    pthread_mutex_lock(&relay.lock);
    relay.refuses = refuses;
    pthread_mutex_unlock(&relay.lock);
    sync_process(s, "worker", NULL);
    sql(s, "INSERT INTO sync_jobs (kind, lane, collection_id, collection_name, tenant, database, "
           "instance, asked_by) SELECT 'rebuild', lane, logical, name, tenant, database, "
           "'replica', 'a test' FROM journal_collections");
    return id;
}

/* The copy is made in the first try of the job, and is equal; each record was taken once. What was
 * passed on and what was refused is summed up. */
struct seen {
    unsigned passed, refused, records, most; /* records: of those passed on; most: in one of them */
};
static struct seen end_rebuild(struct stage *s, const char *id)
{
    struct seen seen = {0};
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check_int(sql_number(s, "SELECT attempts FROM sync_jobs"), 0);
    check_int(sql_number(s, "SELECT sum(records) FROM sync_tasks WHERE kind = 'copy'"), RECORDS);
    check_int(count_lines(check_equal(s, id, 20), "\n"), RECORDS);
    check_soon(strcmp(collections_on(s, 1), "many") == 0, 10); /* nothing temporary is left */
    pthread_mutex_lock(&relay.lock);
    for (unsigned i = 0; i < relay.adds; i++) {
        const struct add *a = &relay.add[i];
        seen.refused += a->refused != 0;
        seen.passed += a->refused == 0;
        seen.records += a->refused ? 0 : a->records;
        if (!a->refused && a->records > seen.most)
            seen.most = a->records;
    }
    pthread_mutex_unlock(&relay.lock);
    return seen;
}

static void what_is_too_large_for_a_server_comes_in_smaller_parts(void **state)
{
    struct stage *s = stage_new();
    char *id = begin_rebuild(s, refuse_large);
    struct seen seen = end_rebuild(s, id);
    check(seen.refused > 0);
    check(seen.refused < 2 * seen.passed);
    check_int(seen.records, RECORDS);
    check(seen.most > 50);
    check(sql_number(s, "SELECT avg_batch_size FROM sync_collections WHERE instance = 'replica'") <
          500);
    check_int(sql_number(s, "SELECT sum(retry_count) FROM sync_tasks"), 0);
}

static void a_server_that_asks_for_a_pause_gets_it(void **state)
{
    struct stage *s = stage_new();
    char *id = begin_rebuild(s, refuse_thrice);
    struct seen seen = end_rebuild(s, id);
    check_int(seen.refused, 3);
    check_int(seen.records, RECORDS);
    unsigned least = RECORDS;
    for (unsigned i = 1; i < relay.adds; i++) {
        if (relay.add[i - 1].refused) {
            check(relay.add[i].at - relay.add[i - 1].at > AFTER_SECONDS - 0.05);
            check_int(relay.add[i].bytes, relay.add[i - 1].bytes); /* it is the same one */
        }
        if (!relay.add[i].refused && i > 4 && relay.add[i].records < least)
            least = relay.add[i].records;
    }
    check(least <= relay.add[1].records / 2);
    check_int(sql_number(s, "SELECT sum(retry_count) FROM sync_tasks"), 0);
}

/* For longer than a task goes on trying: it is tried again from its beginning. */
static void what_is_refused_for_long_is_neither_lost_nor_counted_twice(void **state)
{
    struct stage *s = stage_new();
    char *id = begin_rebuild(s, refuse_while_busy);
    check_soon(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE retry_count > 0") == 1, 30);
    check_has(sql(s, "SELECT error_message FROM sync_tasks"), "replica answered 503 to add");
    pthread_mutex_lock(&relay.lock);
    relay.busy = false;
    pthread_mutex_unlock(&relay.lock);
    struct seen seen = end_rebuild(s, id);
    check(seen.refused >= 3);
    check_int(seen.records, RECORDS + relay.add[0].records); /* the first one again */
}

/* ---- what is no number -------------------------------------------------------------------------
 */

static struct run cli(struct stage *s, const char *arguments)
{
    const char *argv[] = {"/bin/sh", "-c", keepf("exec %s sync %s", chromux_path(), arguments),
                          NULL};
    const char *environment[] = {keepf("DATABASE_URL=%s", s->url), "USER=anna", NULL};
    return run_program(argv, environment, 30);
}

/* Two looks at the other collection later. */
static void check_compared_again(struct stage *s)
{
    char *at = sql(s, "SELECT now()");
    check_soon(sql_number(s,
                          "SELECT count(*) FROM sync_collections WHERE collection_name = 'even' "
                          "AND proven_equal_at > '%s'::timestamptz + interval '2 seconds'",
                          at) == 1,
               20);
}

/* NaN as base64, and what is too large for a float: servers that took them show null. */
static void vectors_with_what_is_no_number_are_named_and_nothing_goes_round(void **state)
{
    static const char bad[] = "{\"ids\":[\"the-nan\",\"the-inf\"],"
                              "\"embeddings\":[\"AADAfwAAgD8=\",\"AACAfwAAgD8=\"]}";
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_INTERVAL=1", NULL);
    char *id = create(s, "odd"), *even = create(s, "even");
    check_status(post(s, of(even, "add"), records_body("r", 0, 10, "")), 201);
    check_status(post(s, of(id, "add"), records_body("r", 0, 50, "")), 201);
    if (post(s, of(id, "add"), bad)->status != 201) {
        print_message("this server takes no such vectors\n");
        skip();
    }
    check_caught_up(s, 10);
    struct chromux *worker = sync_process(s, "worker", NULL);
    /* Both have them: that is equal, and told. */
    check_soon(sql_number(s, "SELECT count(*) FROM sync_collections WHERE proven_equal_at IS NOT "
                             "NULL AND differences = 0") == 2,
               20);
    check_has(chromux_log(worker), "2 records of odd hold vectors with what is no number (NaN): "
                                   "the-nan, the-inf");
    /* They differ otherwise: that cannot be repaired, and is not made anew for it. */
    check_status(ask_server(s->server[1], "POST", of(physical(s, 1, id), "update"),
                            "{\"ids\":[\"the-nan\"],\"embeddings\":[[1,2]]}"),
                 200);
    char *right = records_on(s, 0, id), *wrong = records_on(s, 1, id);
    struct run r = cli(s, "verify --collection odd");
    check_has(r.output, "differs      default_tenant/default_database/odd on replica: 1 of 52 "
                        "records differ");
    check_has(r.output,
              "record \"the-nan\" cannot be repaired: its vector on primary holds what is "
              "no number (NaN)");
    check_int(r.status, 1);
    check_compared_again(s);
    check_str(records_on(s, 0, id), right);
    check_str(records_on(s, 1, id), wrong);
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE kind <> 'verify'"), 0);
    /* Nor can a copy be made from it: that fails at once, by name, and the old one stays. */
    r = cli(s, "rebuild --instance replica --collection odd");
    check_has(r.output, "failed       default_tenant/default_database/odd on replica: ");
    check_has(r.output, "NaN");
    check_has(r.output, "the-nan, the-inf");
    check_int(r.status, 1);
    check_soon(
        sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'rebuild_failed'") == 1, 10);
    check_has(cli(s, "status").output, "the-nan, the-inf");
    check_compared_again(s);
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE kind <> 'verify'"), 1);
    check_int(sql_number(s, "SELECT attempts FROM sync_jobs WHERE kind = 'rebuild'"), 0);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'rebuild_failed'"), 1);
    check_str(records_on(s, 1, id), wrong);
    check_str(collections_on(s, 1), "even\nodd");
}

/* ---- memory ------------------------------------------------------------------------------------
 */

enum { MEMORY_MB = 48, COLLECTIONS = 4, LARGE = 50, TEXT_BYTES = 200000 };

static long peak_kb(const struct chromux *x)
{
    const char *at = strstr(read_file(keepf("/proc/%d/status", (int)x->pid)), "VmHWM:");
    check(at != NULL);
    return atol(at + 6);
}

/* Records whose documents are of this size. */
static void add_large(struct stage *s, const char *id, unsigned from, unsigned n)
{
    char *more = keep(n * (TEXT_BYTES + 8) + 32), *to = more;
    to += sprintf(to, ",\"documents\":[");
    for (unsigned i = 0; i < n; i++) {
        to += sprintf(to, "%s\"%06u", i ? "," : "", from + i);
        memset(to, 'x', TEXT_BYTES - 6);
        to += TEXT_BYTES - 6;
        *to++ = '"';
    }
    sprintf(to, "]");
    check_status(post(s, of(id, "add"), records_body("r", from, n, more)), 201);
}

/* Several tasks are under way at once. */
static void large_records_stay_within_a_workers_memory(void **state)
{
    struct stage *s = stage_new();
    char *ids[COLLECTIONS];
    stage_chromux(s, "SYNC_INTERVAL=86400", keepf("MAX_MEMORY_MB=%d", MEMORY_MB), NULL);
    for (unsigned i = 0; i < COLLECTIONS; i++) {
        ids[i] = create(s, keepf("large%u", i));
        for (unsigned from = 0; from < LARGE; from += 25)
            add_large(s, ids[i], from, 25);
    }
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    struct chromux *worker = sync_process(s, "worker", NULL);
    sync_check_jobs(s, "rebuild", "done", COLLECTIONS, 60);
    long rebuilt = peak_kb(worker);
    for (unsigned i = 0; i < COLLECTIONS; i++)
        check_int(count_lines(check_equal(s, ids[i], 20), "\n"), LARGE);
    check_int(cli(s, "verify").status, 0);
    long compared = peak_kb(worker);
    print_message("most memory: %ld MB to rebuild, %ld MB with a comparison\n", rebuilt / 1024,
                  compared / 1024);
    if (!sanitized())
        check(compared < MEMORY_MB * 1024L);
    check_int(sql_number(s, "SELECT sum(retry_count) FROM sync_tasks"), 0);
}

/* ---- on a terminal -----------------------------------------------------------------------------
 */

#define REWRITES "\r\33[K"

/* A terminal without manners: what is written to it is what we read. */
struct screen {
    int ours, theirs;
    const char *path;
    char text[1 << 16];
    size_t len;
};

static void set_columns(struct screen *t, unsigned columns)
{
    struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    check(ioctl(t->theirs, TIOCSWINSZ, &size) == 0);
}

static struct screen *screen_new(unsigned columns)
{
    struct screen *t = keep(sizeof *t);
    struct termios raw;
    t->ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    check(t->ours >= 0 && grantpt(t->ours) == 0 && unlockpt(t->ours) == 0);
    t->path = keepf("%s", ptsname(t->ours));
    t->theirs = open(t->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    check(t->theirs >= 0 && tcgetattr(t->theirs, &raw) == 0);
    cfmakeraw(&raw);
    check(tcsetattr(t->theirs, TCSANOW, &raw) == 0);
    set_columns(t, columns);
    return t;
}

/* chromux sync with these arguments, on that terminal. */
static pid_t screen_run(struct stage *s, struct screen *t, const char *arguments)
{
    const char *argv[] = {"/bin/sh", "-c",
                          keepf("DATABASE_URL='%s' exec %s sync %s <%s >%s 2>&1", s->url,
                                chromux_path(), arguments, t->path, t->path),
                          NULL};
    return child_start(argv, "screen.log");
}

static const char *screen_text(struct screen *t)
{
    ssize_t got;
    while ((got = read(t->ours, t->text + t->len, sizeof t->text - 1 - t->len)) > 0)
        t->len += (size_t)got;
    check(t->len < sizeof t->text - 1);
    return t->text;
}

static void screen_close(struct screen *t)
{
    close(t->ours);
    close(t->theirs);
}

/* How often a line was begun anew. */
static unsigned rewrites(struct screen *t)
{
    unsigned n = 0;
    for (const char *at = screen_text(t); (at = strstr(at, REWRITES)) != NULL; at++)
        n++;
    return n;
}

/* The text of the nth rewrite, up to the next one. */
static char *rewrite(struct screen *t, unsigned n)
{
    const char *at = screen_text(t);
    for (unsigned i = 0; (at = strstr(at, REWRITES)) != NULL && i < n; i++)
        at++;
    check(at != NULL);
    at += strlen(REWRITES);
    const char *end = strstr(at, REWRITES);
    return keep_text(at, end ? (size_t)(end - at) : strlen(at));
}

static bool is_progress(const char *line)
{
    return strncmp(line, "verify: ", 8) == 0;
}

/* How it gets on is on the last row alone: whatever comes is written in its place, and nothing of
 * it is left. */
static void check_rewritten(struct screen *t)
{
    check(strncmp(screen_text(t), REWRITES, strlen(REWRITES)) == 0);
    for (unsigned i = 0, n = rewrites(t); i < n; i++) {
        char *line = rewrite(t, i);
        if (is_progress(line))
            check_lacks(line, "\n");
        else
            check(!*line || line[strlen(line) - 1] == '\n');
        if (i == n - 1)
            check(!is_progress(line));
    }
}

/* Requests that wait: a comparison of RECORDS records takes some 7 s, by four tasks at once or, as
 * long as there may be clients, by one. */
static void start_slow_worker(struct stage *s)
{
    char *folder = own_policies(), *file = keepf("%s/sync.lua", folder);
    write_file(file, keepf("local M = (function(...)\n%s\nend)(...)\n"
                           "function M.pace(load) return load.requests == 0 and 0.25 or 0.06 end\n"
                           "return M\n",
                           read_file(file)));
    stage_chromux(s, keepf("POLICY_DIR=%s", folder), "SYNC_INTERVAL=86400", "SYNC_CHUNK_SIZE=100",
                  "DEFAULT_BATCH_SIZE=25", NULL);
}

static void a_terminal_shows_one_line_and_a_pipe_gets_several(void **state)
{
    enum { WIDE = 120, NARROW = 40 };
    struct stage *s = stage_new();
    start_slow_worker(s);
    char *id = create(s, "many"), *few = create(s, "few");
    for (unsigned from = 0; from < RECORDS; from += 500)
        check_status(post(s, of(id, "add"), records_body("r", from, 500, "")), 201);
    check_status(post(s, of(few, "add"), records_body("r", 0, 10, "")), 201);
    check_caught_up(s, 20);
    sync_process(s, "worker", NULL);
    struct screen *t = screen_new(WIDE);
    pid_t watcher = screen_run(s, t, "verify --collection many");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE state = 'comparing'") == 1, 20);
    const char *argv[] = {"env",          keepf("DATABASE_URL=%s", s->url),
                          chromux_path(), "sync",
                          "verify",       "--collection",
                          "many",         NULL};
    pid_t other = child_start(argv, "plain.log"); /* it waits, and compares once more */
    check_soon(strstr(screen_text(t), "/s, about ") != NULL, 20);
    set_columns(t, NARROW);
    unsigned from = rewrites(t) + 1;
    check_soon(rewrites(t) >= from + 3, 20);
    check_int(child_wait(&watcher, 60), 0);
    check_rewritten(t);
    unsigned widest = 0;
    for (unsigned i = 0; i < rewrites(t); i++) {
        char *line = rewrite(t, i);
        unsigned length = (unsigned)strlen(line);
        if (is_progress(line) && i >= from)
            check(length == NARROW - 1);
        else if (is_progress(line) && length > widest)
            widest = length;
    }
    check(widest > 2 * NARROW - 20 && widest < WIDE);
    check_has(screen_text(t), " of 2,500 records, ");
    check_has(screen_text(t), " left; 1 comparing");
    check_has(screen_text(t), REWRITES "equal        default_tenant/default_database/many on "
                                       "replica: 2,500 records; proven at 2");
    screen_close(t);
    check_int(child_wait(&other, 60), 0);
    char *plain = read_file(keepf("%s/plain.log", temp_folder()));
    check_lacks(plain, "\r");
    check_lacks(plain, "\33");
    check_has(plain, "verify: ");
    check_int(count_lines(plain, "") - count_lines(plain, "verify: "), 2);
    check_has(plain, "\nequal        default_tenant/default_database/many on replica: 2,500");
    check_has(plain, "\n1 copies are proven equal to what they were compared with\n");
    /* What differs, and what is only looked at. */
    check_status(
        ask_server(s->server[1], "POST", of(physical(s, 1, few), "delete"), "{\"ids\":[\"r7\"]}"),
        200);
    t = screen_new(WIDE);
    watcher = screen_run(s, t, "verify --collection few --dry-run");
    check_int(child_wait(&watcher, 30), 1);
    check_rewritten(t);
    check_has(screen_text(t), "few on replica: 1 of 10 records differ, and nothing was done\n");
    screen_close(t);
    t = screen_new(WIDE);
    watcher = screen_run(s, t, "status");
    check_int(child_wait(&watcher, 30), 1);
    check_lacks(screen_text(t), "\33");
    check_has(screen_text(t), "\nDIFFERS      default_tenant/default_database/few on replica");
    screen_close(t);
}

/* Of the copy that the others are compared with nothing is said, even when it comes last. */
static void nothing_is_left_of_the_line(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    check_caught_up(s, 10);
    sql(s, "INSERT INTO sync_workers (worker_id, role, process, worker_status, lease_until) VALUES "
           "('w1', 'worker', 'p', 'idle', now() + interval '1 hour')");
    struct screen *t = screen_new(80);
    pid_t watcher = screen_run(s, t, "verify");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_jobs") == 2, 10);
    sql(s, "INSERT INTO sync_collections (collection_id, collection_name, instance, "
           "proven_equal_at) SELECT collection_id, 'ccc', instance, now() FROM sync_jobs WHERE "
           "instance = 'replica'");
    sql(s, "UPDATE sync_jobs SET state = 'done', records = 7, finished_at = now() WHERE instance = "
           "'replica'");
    check_soon(strstr(screen_text(t), "verify: 1 of 2 copies") != NULL, 10);
    sql(s, "UPDATE sync_jobs SET state = 'done', finished_at = now(), reason = 'it is the "
           "authority: the others are compared with it' WHERE instance = 'primary'");
    check_int(child_wait(&watcher, 20), 0);
    check_rewritten(t);
    check_has(screen_text(t), REWRITES "1 copies are proven equal to what");
    screen_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(what_is_too_large_for_a_server_comes_in_smaller_parts),
        STAGE_TEST(a_server_that_asks_for_a_pause_gets_it),
        STAGE_TEST(what_is_refused_for_long_is_neither_lost_nor_counted_twice),
        STAGE_TEST(vectors_with_what_is_no_number_are_named_and_nothing_goes_round),
        STAGE_TEST(large_records_stay_within_a_workers_memory),
        STAGE_TEST(a_terminal_shows_one_line_and_a_pipe_gets_several),
        STAGE_TEST(nothing_is_left_of_the_line),
    };
    return STAGE_RUN(tests);
}
