/* What people are told of processes that end and of policies that fail, when they are not to be
 * disturbed, and when much happens at once: real processes, up to the webhook. */
#include "fixture.h"
#include "hook.h"
#include "syncing.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 6 };

static char *host(void)
{
    char *name = keep(256);
    check_int(gethostname(name, 255), 0);
    return name;
}

static void kill_at_once(struct chromux *x)
{
    chromux_signal(x, SIGKILL);
    check(chromux_wait_exit(x, 5));
}

/* MANY events at once, entitled WORD-0, WORD-1 …, of these two urgencies by turns. */
static void many_events(struct stage *s, const char *word, const char *even, const char *odd)
{
    sql(s,
        "INSERT INTO notify_events (uid, kind, key, urgency, title, raised_at) SELECT "
        "md5('%s' || i), 'note', '%s/' || i, (ARRAY['%s', '%s'])[1 + i %% 2], '%s-' || i, "
        "now() FROM generate_series(0, %d) i",
        word, word, even, odd, word, MANY - 1);
}

static void check_one_message(struct peer *p, const char *word)
{
    check_soon(told(p, keepf("%s-", word)) > 0, 20);
    for (unsigned i = 0; i < MANY; i++)
        check_has(message(p, keepf("%s-", word)), keepf("%s-%u", word, i));
    check_int(told(p, keepf("%s-", word)), 1);
}

/* ---- processes ------------------------------------------------------------------------------- */

/* The coordinator misses a worker that is killed; the balancer a monitor that says nothing any
 * more, which takes a minute: an hour passes in its row. Nobody tells while it happens: the
 * balancer that comes looks at once. */
static void a_worker_and_a_monitor_that_are_gone_are_missed(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), "MONITOR_INTERVAL=0.5", NULL);
    sync_process(s, "coordinator", NULL);
    struct chromux *worker = sync_process(s, "worker", NULL);
    struct chromux *monitor = sync_process(s, "monitor", NULL);
    check_soon(sql_number(s, "SELECT count(*) FROM sync_workers") == 2, 10);
    check_soon(sql_number(s, "SELECT count(*) FROM monitors") == 1, 10);
    check_int(chromux_stop(s->x), 0);
    kill_at_once(worker);
    kill_at_once(monitor);
    sql(s, "UPDATE monitors SET last_seen = last_seen - interval '1 hour'");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_workers") == 1, 10);
    stage_again(s);
    check_soon(told(p, keepf("A sync worker on %s is gone", host())) == 1, 20);
    check_soon(told(p, keepf("The monitor on %s is silent", host())) == 1, 20);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 2);
    check_int(told(p, "is at work") + told(p, "is back"), 0);
    sync_process(s, "worker", NULL);
    sync_process(s, "monitor", NULL);
    check_soon(told(p, keepf("A sync worker on %s is at work", host())) == 1, 20);
    check_soon(told(p, keepf("The monitor on %s is back", host())) == 1, 20);
    check_int(told(p, "is gone"), 1);
    check_int(told(p, "is silent"), 1);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
}

/* ---- policies -------------------------------------------------------------------------------- */

static void check_compared_again(struct stage *s)
{
    char *first = sql(s, "SELECT max(proven_equal_at) FROM sync_collections");
    check_soon(sql_number(s,
                          "SELECT count(*) FROM sync_collections WHERE proven_equal_at > "
                          "coalesce(nullif('%s', '')::timestamptz, '-infinity')",
                          first) == 1,
               20);
}

/* No sample is an instance of this name, so the file loads. */
static void a_policy_that_fails_in_a_worker_is_told_with_its_place(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    char *folder = own_policies(), *file = keepf("%s/sync.lua", folder), *good = read_file(file);
    edit_file(
        file, "function M.pace(load)",
        "function M.pace(load)\n  if load.instance == 'replica' then error('no such pace') end");
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), keepf("POLICY_DIR=%s", folder), "--role", "all",
                  "SYNC_INTERVAL=1", "SYNC_CHUNK_SIZE=5", "DEFAULT_BATCH_SIZE=5", NULL);
    char *id = create(s, "docs");
    check_status(post(s, of(id, "add"), records_body("r", 0, 200, "")), 201);
    check_soon(told(p, "Policy sync.lua") == 1, 30);
    char *worker = sql(s, "SELECT substring(worker_id FROM '-(\\d+)-\\d+$') FROM sync_workers");
    char *m = message(p, "Policy sync.lua");
    check_has(m, keepf("Policy sync.lua failed too often in sync worker %s on %s and is set aside",
                       worker, host()));
    check_has(m, "no such pace");
    check_has(m, "sync.lua:");
    check_compared_again(s);
    write_file(file, good);
    chromux_reload(s->x);
    check_soon(told(p, keepf("Policy sync.lua decides again in sync worker %s on %s", worker,
                             host())) == 1,
               20);
    check_compared_again(s);
    check_int(told(p, "Policy sync.lua"), 2);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
}

/* ---- when ------------------------------------------------------------------------------------ */

/* { from = now, to = in two hours }, by the clock that chromux has: it gets no TZ from us. */
static char *quiet_now(void)
{
    struct tm t;
    time_t at = time(NULL);
    unsetenv("TZ");
    tzset();
    check(localtime_r(&at, &t) != NULL);
    return keepf("local QUIET = { from = %d, to = %d }", t.tm_hour, (t.tm_hour + 2) % 24);
}

static void quiet_hours_hold_back_and_a_burst_is_one_message(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    char *folder = own_policies(), *file = keepf("%s/notify.lua", folder), *good = read_file(file);
    edit_file(file, "local QUIET = {}", quiet_now());
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), keepf("POLICY_DIR=%s", folder), NULL);
    many_events(s, "later", "low", "medium");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'held' AND reason = "
                             "'quiet hours'") == MANY,
               10);
    /* An outage is told, and that it is over, though that is not urgent. */
    many_events(s, "urgent", "high", "high");
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    chroma_again(s->server[1]);
    check_soon(told(p, "Server replica is up again") == 1, 30);
    check_one_message(p, "urgent");
    check_int(told(p, "later-"), 0);
    /* What waited is told when they are over. */
    write_file(file, good);
    chromux_reload(s->x);
    check_one_message(p, "later");
    flush(s, p, "that-was-all");
    check_int(told(p, "later-"), 1);
    check_int(told(p, "urgent-"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_worker_and_a_monitor_that_are_gone_are_missed),
        STAGE_TEST(a_policy_that_fails_in_a_worker_is_told_with_its_place),
        STAGE_TEST(quiet_hours_hold_back_and_a_burst_is_one_message),
    };
    return STAGE_RUN(tests);
}
