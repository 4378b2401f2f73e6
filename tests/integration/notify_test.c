/* What people are told: events become messages at a webhook that answers as webhooks do, whatever
 * dies meanwhile. */
#include "fixture.h"
#include "stage.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SECRET "T000/B000/keep-this-secret"

/* ---- webhooks -------------------------------------------------------------------------------- */

/* How a hook treats the requests to come, in order; then all are taken. */
enum how { TAKE, FAIL, LATER, REFUSE, RESET, HANG, HOLD };
static enum how plan[16];
static atomic_uint planned, done, answered;

static void treat(const enum how *list, unsigned n)
{
    memcpy(plan, list, n * sizeof *list);
    atomic_store(&done, 0);
    atomic_store(&planned, n);
}

static void hook(struct conn *c)
{
    while (conn_request(c)) {
        unsigned i = atomic_fetch_add(&done, 1);
        switch (i < atomic_load(&planned) ? plan[i] : TAKE) {
        case TAKE:
            break;
        case FAIL:
            conn_send(c, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
            continue;
        case LATER:
            conn_send(c, "HTTP/1.1 429 Slow\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n");
            continue;
        case REFUSE:
            conn_send(c, "HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\ninvalid_blocks");
            continue;
        case RESET:
            conn_reset(c);
            return;
        case HANG:
            conn_wait_gone(c);
            return;
        case HOLD:
            conn_wait(c);
            break;
        }
        if (!conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
            return;
        atomic_fetch_add(&answered, 1);
    }
}

static struct peer *hook_start(void)
{
    treat(NULL, 0);
    atomic_store(&answered, 0);
    return peer_start(hook);
}

static char *slack_at(struct peer *p)
{
    return keepf("SLACK_WEBHOOK_URL=%s/services/" SECRET, peer_url(p));
}

/* Messages that came whole and hold part. */
static unsigned told(struct peer *p, const char *part)
{
    unsigned n = 0;
    for (unsigned i = 0; i < peer_requests(p); i++) {
        struct request *r = peer_request(p, i);
        n += r->complete && strstr(r->body, part) != NULL;
    }
    return n;
}

static char *message(struct peer *p, const char *part)
{
    for (unsigned i = 0; i < peer_requests(p); i++)
        if (peer_request(p, i)->complete && strstr(peer_request(p, i)->body, part))
            return peer_request(p, i)->body;
    return keepf("%s", "");
}

/* Where the first message with part came, from 0; -1: none did. */
static int place(struct peer *p, const char *part)
{
    for (unsigned i = 0; i < peer_requests(p); i++)
        if (strstr(peer_request(p, i)->body, part))
            return (int)i;
    return -1;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* As another process raises one. */
static void event(struct stage *s, const char *kind, const char *key, const char *title)
{
    sql(s,
        "WITH e AS (INSERT INTO notify_events (uid, kind, key, urgency, title, fields, raised_at) "
        "VALUES (md5(random()::text), '%s', '%s', 'medium', '%s', "
        "'[[\"instance\",\"a\"],[\"collection\",\"docs\"]]', now()) RETURNING 1) "
        "SELECT pg_notify('chromux_notify', '') FROM e",
        kind, key, title);
}

static struct run notify(struct stage *s, ...)
{
    const char *argv[16] = {chromux_path(), "notify"};
    const char *environment[] = {keepf("DATABASE_URL=%s", s->url), NULL};
    va_list args;
    unsigned n = 2;
    va_start(args, s);
    while (n < COUNT_OF(argv) - 1 && (argv[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    return run_program(argv, environment, 30);
}

static char *messages(struct stage *s)
{
    return json_field(get(s, "/status")->body, "messages");
}

/* A message that is told after all that waits: when it is there, nothing else is to come. */
static void flush(struct stage *s, struct peer *p, const char *mark)
{
    event(s, "mark", keepf("mark/%s", mark), mark);
    check_soon(told(p, mark) >= 1, 20);
}

static void check_no_secret(struct stage *s)
{
    check_lacks(chromux_log(s->x), "keep-this-secret");
    check_lacks(get(s, "/status")->body, "keep-this-secret");
    check_lacks(get(s, "/metrics")->body, "keep-this-secret");
    check_int(sql_number(s, "SELECT count(*) FROM notify_messages WHERE error LIKE '%%secret%%'"),
              0);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void a_server_that_dies_and_comes_back_is_told(void **state)
{
    struct peer *slack = hook_start(), *other = peer_start(hook);
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(slack), keepf("WEBHOOK_URL=%s/any", peer_url(other)),
                  "DEPLOYMENT_NAME=berlin", "PUBLIC_URL=https://chromux.example", NULL);
    chroma_kill(s->server[1]);
    check_soon(told(slack, "Server replica is down") == 1, 20);
    char *m = message(slack, "Server replica is down");
    check_has(m, "berlin");
    check_has(m, "refused");
    check_has(m, "\"type\":\"header\"");
    check_has(m, "chromux.example\\/dashboard");
    check_soon(told(other, "\"kind\":\"server_down\"") == 1, 10);
    check_has(message(other, "server_down"), "\"deployment\":\"berlin\"");
    check_has(messages(s), "\"key\":\"server/replica\"");
    check(metric(s, "chromux_alerts_open") == 1);
    chroma_again(s->server[1]);
    check_soon(told(slack, "Server replica is up again") == 1, 30);
    check_has(message(slack, "is up again"), "Lasted");
    flush(s, slack, "that-was-all");
    check_int(told(slack, "is down"), 1);
    check_int(told(slack, "up again"), 1);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
    check_int(sql_number(s, "SELECT count(*) FROM notify_messages WHERE state <> 'sent'"), 0);
    check_int(sql_number(s, "SELECT times FROM notify_sent WHERE kind = 'server_down'"), 1);
    check(metric(s, "chromux_messages_sent_total") >= 4);
    check_no_secret(s);
}

static void a_hook_that_fails_gets_each_message_in_the_end(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    treat((const enum how[]){FAIL, LATER, RESET, HANG}, 4);
    event(s, "note", "some/x", "first-of-x");
    check_soon(peer_completed(p) == 2, 20);
    double at = now_seconds();
    check_soon(peer_completed(p) == 3, 20);
    check(now_seconds() - at > 1.9); /* Retry-After */
    event(s, "remark", "some/x", "second-of-x");
    event(s, "mark", "some/x", "third-of-x");
    check_has(messages(s), "\"failing\":true");
    check_soon(told(p, "third-of-x") == 1, 40);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_messages WHERE state = 'sent'") >= 2, 10);
    check_int(told(p, "first-of-x"), 5);
    check_int(told(p, "second-of-x"), 1);
    check(place(p, "first-of-x") < place(p, "second-of-x"));
    check(place(p, "second-of-x") <= place(p, "third-of-x"));
    check_int(sql_number(s, "SELECT max(attempts) FROM notify_messages"), 5);
    check_int(sql_number(s, "SELECT times FROM notify_sent WHERE kind = 'note'"), 1);
    check_soon(strstr(messages(s), "\"failing\":true") == NULL, 5);
    check(metric(s, "chromux_messages_retries_total") == 4);
    check_no_secret(s);
}

static void what_is_refused_is_not_sent_again(void **state)
{
    struct peer *slack = hook_start(), *other = peer_start(serve_ok);
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(slack), keepf("WEBHOOK_URL=%s/any", peer_url(other)),
                  NULL);
    treat((const enum how[]){REFUSE}, 1);
    event(s, "note", "some/x", "refused-one");
    check_soon(told(other, "messages_failing") == 1, 20);
    check_has(message(other, "messages_failing"), "invalid_blocks");
    check_has(chromux_log(s->x), "message_refused");
    flush(s, slack, "a-good-one");
    check_soon(told(other, "messages_delivered") == 1, 20);
    check_int(told(slack, "refused-one"), 1);
    check_int(told(slack, "are failing"), 0);
    check_str(sql(s, "SELECT state || status FROM notify_messages WHERE state = 'refused'"),
              "refused400");
    check_no_secret(s);
}

/* ---- whatever dies ----------------------------------------------------------------------------
 */

static long rows(struct stage *s, const char *state)
{
    return sql_number(s, "SELECT count(*) FROM notify_messages WHERE state = '%s'", state);
}

static void again(struct stage *s)
{
    chromux_signal(s->x, SIGKILL);
    stage_again(s);
}

static void a_killed_sender_loses_and_repeats_nothing_it_was_told_of(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    /* Before it is taken in, or just after. */
    event(s, "note", "some/a", "killed-early");
    again(s);
    check_soon(told(p, "killed-early") == 1, 20);
    check_soon(rows(s, "sent") == 1, 10);
    /* While it waits for others. */
    event(s, "note", "some/b", "killed-taken");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'taken'") == 1, 5);
    again(s);
    check_soon(told(p, "killed-taken") == 1, 20);
    check_soon(rows(s, "sent") == 2, 10);
    /* Between sending and the answer: this one may come twice. */
    treat((const enum how[]){HOLD}, 1);
    event(s, "note", "some/c", "killed-sending");
    check_soon(told(p, "killed-sending") == 1, 20);
    check_int(rows(s, "sending"), 1);
    again(s);
    peer_release(p);
    check_soon(told(p, "killed-sending") == 2, 20);
    check_has(chromux_log(s->x), "message_again");
    check_soon(rows(s, "sent") == 3, 10);
    /* After the answer. */
    event(s, "note", "some/d", "killed-after");
    check_soon(rows(s, "sent") == 4, 20);
    again(s);
    flush(s, p, "that-was-all");
    check_int(told(p, "killed-early"), 1);
    check_int(told(p, "killed-taken"), 1);
    check_int(told(p, "killed-sending"), 2);
    check_int(told(p, "killed-after"), 1);
    /* What goes on is not told again by the next one; its end is told, though nobody saw it. */
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    check_soon(rows(s, "queued") + rows(s, "sending") == 0, 10);
    again(s);
    flush(s, p, "after-the-restart");
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 10));
    chroma_again(s->server[1]);
    stage_again(s);
    check_soon(told(p, "Server replica is up again") == 1, 20);
    check_int(told(p, "Server replica is down"), 1);
}

/* Killed again and again at any moment, by a hook that fails now and then: each event is told, and
 * twice only what was under way when it was killed. */
static void many_kills_lose_nothing(void **state)
{
    enum { KILLS = 6, EVENTS = 24 };
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    treat((const enum how[]){TAKE, FAIL, TAKE, TAKE, RESET, TAKE, TAKE, FAIL}, 8);
    unsigned raised = 0, killed = 0, before = 0;
    while (raised < EVENTS || killed < KILLS) {
        for (unsigned i = 0; i < EVENTS / KILLS && raised < EVENTS; i++, raised++)
            event(s, "note", keepf("some/%u", raised), keepf("event-%02u.", raised));
        /* Right when the next request comes, or once it is answered. */
        check_soon(killed % 2 ? peer_requests(p) > before : atomic_load(&answered) > killed / 2,
                   30);
        chromux_signal(s->x, SIGKILL);
        stage_again(s);
        before = peer_requests(p);
        killed++;
    }
    flush(s, p, "that-was-all");
    check_soon(rows(s, "queued") + rows(s, "sending") == 0, 30);
    unsigned again = 0;
    for (unsigned i = 0; i < EVENTS; i++) {
        unsigned n = told(p, keepf("event-%02u.", i));
        check(n >= 1);
        again += n > 1;
    }
    /* A message holds up to the events between two kills; failed tries come again as well. */
    check(peer_requests(p) <= (unsigned)rows(s, "sent") + KILLS + 3);
    check(again < EVENTS);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE state <> 'told'"), 0);
}

static void without_postgresql_people_are_told_and_it_is_recorded_later(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    flush(s, p, "before");
    stage_pg_kill(SIGQUIT);
    check_soon(told(p, "The journal is unavailable") == 1, 30);
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 30);
    check_has(messages(s), "\"key\":\"journal\"");
    chroma_again(s->server[1]);
    check_soon(told(p, "Server replica is up again") == 1, 30);
    stage_pg_again();
    check_soon(told(p, "The journal is back") == 1, 30);
    flush(s, p, "after");
    check_int(told(p, "The journal is unavailable"), 1);
    check_int(told(p, "Server replica is down"), 1);
    check_int(told(p, "Server replica is up again"), 1);
    check_soon(
        sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'told' AND kind IN "
                      "('journal_unavailable', 'server_down', 'server_up', 'journal_back')") == 4,
        10);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
    check_int(sql_number(s, "SELECT times FROM notify_sent WHERE kind = 'server_down'"), 1);
    /* Nor does a restart tell it again. */
    again(s);
    flush(s, p, "at-last");
    check_int(told(p, "The journal is unavailable"), 1);
    check_int(told(p, "Server replica is down"), 1);
}

static void of_two_balancers_one_sends(void **state)
{
    struct peer *p = hook_start();
    struct stage *a = stage_new(), *b = keep(sizeof *b);
    *b = *a;
    stage_chromux(a, "POLICY_TIME=1", slack_at(p), NULL);
    stage_chromux(b, "POLICY_TIME=1", slack_at(p), NULL);
    chroma_kill(a->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    flush(a, p, "by-the-first");
    check_int(told(p, "Server replica is down"), 1);
    check(metric(a, "chromux_messages_teller") == 1);
    check(metric(b, "chromux_messages_teller") == 0);
    chromux_signal(a->x, SIGKILL);
    check(chromux_wait_exit(a->x, 10));
    event(b, "note", "some/a", "for-the-second");
    check_soon(told(p, "for-the-second") == 1, 30);
    chroma_again(a->server[1]);
    check_soon(told(p, "Server replica is up again") == 1, 30);
    flush(b, p, "by-the-second");
    check_int(told(p, "for-the-second"), 1);
    check_int(told(p, "Server replica is down"), 1);
}

/* ---- what operators say ------------------------------------------------------------------------
 */

/* Replaces the one place of a text in a file. */
static void edit(const char *path, const char *from, const char *to)
{
    char *text = read_file(path), *at = strstr(text, from);
    check(at != NULL);
    write_file(path, keepf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from)));
}

static void a_reload_changes_words_and_limits_at_once(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    char *folder = own_policies();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), keepf("POLICY_DIR=%s", folder), NULL);
    event(s, "repaired", "repaired/a", "one");
    check_soon(told(p, "was repaired") == 1, 20);
    event(s, "repaired", "repaired/a", "two");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'held'") == 1, 10);
    edit(keepf("%s/slack.lua", folder), "was repaired", "was mended");
    edit(keepf("%s/notify.lua", folder), "local OTHERS = { every = HOUR }",
         "local OTHERS = { every = 1 }");
    chromux_reload(s->x);
    check_soon(told(p, "was mended") == 1, 10);
    /* An error at a message that no sample is like. */
    edit(keepf("%s/slack.lua", folder), "function M.format(event)",
         "function M.format(event)\n  if event.key == \"worker/7\" then error(\"no words\") end");
    chromux_reload(s->x);
    event(s, "worker_dead", "worker/7", "Worker seven has died");
    check_soon(told(p, "Worker seven has died") == 1, 20);
    check_has(message(p, "Worker seven"), "plain text, because slack.format failed");
    check_has(message(p, "Worker seven"), "no words");
    /* Without the files what is built in decides and words it. */
    check_int(unlink(keepf("%s/slack.lua", folder)), 0);
    check_int(unlink(keepf("%s/notify.lua", folder)), 0);
    chromux_reload(s->x);
    event(s, "disk_above", "disk/a", "A full disk");
    check_soon(told(p, "A full disk") == 1, 20);
    check_has(message(p, "A full disk"), "plain text");
}

static void silences_hold_back_what_goes_on(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    check_int(notify(s, "mute", "server/replica", "--for", "1h", NULL).status, 0);
    check_soon(strstr(messages(s), "\"what\":\"server/replica\"") != NULL, 10);
    chroma_kill(s->server[1]);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'held'") == 1, 20);
    flush(s, p, "others-are-told");
    check_int(told(p, "Server replica"), 0);
    check_has(notify(s, "status", NULL).output, "server/replica");
    check_int(notify(s, "unmute", "server/replica", NULL).status, 0);
    check_soon(told(p, "Server replica is down") == 1, 20);
    check_int(notify(s, "unmute", "server/replica", NULL).status, 1);
    /* What came and went in a silence is not told. */
    check_int(notify(s, "maintenance", "on", "--for", "1h", NULL).status, 0);
    check_soon(strstr(messages(s), "\"what\":\"*\"") != NULL, 10);
    event(s, "worker_dead", "monitor/a", "never told");
    event(s, "monitor_silent", "monitor/b", "never told");
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE state = 'held'") == 2, 20);
    event(s, "worker_back", "monitor/a", "never told");
    event(s, "monitor_back", "monitor/b", "never told");
    chroma_again(s->server[1]);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'server_up' AND "
                             "state = 'held'") == 1,
               30);
    check_int(notify(s, "maintenance", "off", NULL).status, 0);
    check_soon(told(p, "Server replica is up again") == 1, 20);
    flush(s, p, "that-was-all");
    check_int(told(p, "never told"), 0);
    check_int(notify(s, "mute", "server/replica", "--for", "soon", NULL).status, 2);
}

static void a_sample_of_each_kind_can_be_sent(void **state)
{
    struct peer *p = hook_start();
    const char *environment[] = {slack_at(p), "PRIMARY_URL=http://127.0.0.1:1", "POLICY_TIME=1",
                                 NULL};
    const char *argv[] = {chromux_path(), "notify", "test", NULL};
    treat((const enum how[]){LATER, TAKE, REFUSE}, 3);
    struct run r = run_program(argv, environment, 60);
    check_int(r.status, 1);
    check_has(r.output, "invalid_blocks");
    check_lacks(r.output, "keep-this-secret");
    check(count_lines(r.output, "sent 200, by slack.lua") >= 20);
    check_int(count_lines(r.output, "plain text"), 0);
    check_has(message(p, "ChromaDB Upgrade Needed"), "Recommended plan");
    check_has(message(p, "ChromaDB Upgrade Needed"), "Monthly cost");
    check_has(message(p, "ChromaDB Upgrade Needed"), "Current usage");
    check_has(message(p, "ChromaDB Upgrade Needed"), "Urgency");
}

/* ---- without DATABASE_URL -----------------------------------------------------------------------
 */

static void without_a_database_the_one_balancer_tells(void **state)
{
    struct peer *p = hook_start(), *a = peer_start(serve_ok), *b = peer_start(serve_ok);
    struct chromux *x = in_front_of(a, b, "POLICY_TIME=1", slack_at(p), NULL);
    peer_set_probes(b, PROBE_ERROR);
    check_soon(told(p, "Server replica is down") == 1, 20);
    peer_set_probes(b, PROBE_OK);
    check_soon(told(p, "Server replica is up again") == 1, 20);
    check_int(peer_completed(p), 2);
    /* Without a URL the log has it. */
    struct chromux *y = in_front_of(a, b, "POLICY_TIME=1", NULL);
    peer_set_probes(b, PROBE_ERROR);
    check_soon(strstr(chromux_log(y), "notice text=\"server_down") != NULL, 20);
    check_soon(told(p, "Server replica is down") == 2, 20);
    check_int(chromux_stop(x), 0);
}

static void hours_are_as_the_contract_says(void **state)
{
    struct stage *s = stage_new();
    const char *environment[] = {keepf("DATABASE_URL=%s", s->url), NULL};
    const char *argv[] = {chromux_path(), "script", "tests/integration/notify_hours.lua", NULL};
    struct run r = run_program(argv, environment, 120);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_server_that_dies_and_comes_back_is_told),
        STAGE_TEST(a_hook_that_fails_gets_each_message_in_the_end),
        STAGE_TEST(what_is_refused_is_not_sent_again),
        STAGE_TEST(a_killed_sender_loses_and_repeats_nothing_it_was_told_of),
        STAGE_TEST(many_kills_lose_nothing),
        STAGE_TEST(without_postgresql_people_are_told_and_it_is_recorded_later),
        STAGE_TEST(of_two_balancers_one_sends),
        STAGE_TEST(a_reload_changes_words_and_limits_at_once),
        STAGE_TEST(silences_hold_back_what_goes_on),
        STAGE_TEST(a_sample_of_each_kind_can_be_sent),
        STAGE_TEST(without_a_database_the_one_balancer_tells),
        STAGE_TEST(hours_are_as_the_contract_says),
    };
    return STAGE_RUN(tests);
}
