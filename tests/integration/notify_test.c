/* What people are told: events become messages at a webhook that answers as webhooks do, whatever
 * dies meanwhile. */
#include "fixture.h"
#include "hook.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
    struct peer *slack = hook_start(), *other = peer_start(serve_ok);
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
    /* Writes go elsewhere: recorded in one transaction with the journal's own event. */
    char *id = create(s, "docs");
    check_status(post(s, of(id, "add"), records_body("a", 0, 1, "")), 201);
    chroma_kill(s->server[0]);
    check_status(post(s, of(id, "add"), records_body("b", 0, 1, "")), 201);
    check_soon(told(other, "\"kind\":\"failover\"") == 1, 20);
    check_has(message(other, "failover"), "writes\\/primary");
    check_int(sql_number(s, "SELECT count(*) FROM failover_events WHERE event_type = 'failover'"),
              1);
    chroma_again(s->server[0]);
    check_soon(told(slack, "Server primary is up again") == 1, 30);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE open"), 0);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_messages WHERE state <> 'sent'") == 0,
               10);
    check_int(sql_number(s, "SELECT sum(times) FROM notify_sent WHERE kind = 'server_down'"), 2);
    check(metric(s, "chromux_messages_sent_total") >= 4);
    check_no_secret(s);
}

static void a_hook_that_fails_gets_each_message_in_the_end(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), NULL);
    treat((const enum how[]){LATER, RESET, HANG}, 3);
    event(s, "note", "some/x", "first-of-x");
    check_soon(peer_completed(p) == 1, 20);
    double at = now_seconds();
    check_soon(peer_completed(p) == 2, 20);
    check(now_seconds() - at > 1.9); /* Retry-After */
    event(s, "remark", "some/x", "second-of-x");
    event(s, "mark", "some/x", "third-of-x");
    check_has(messages(s), "\"failing\":true");
    check_soon(told(p, "third-of-x") == 1, 40);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_messages WHERE state = 'sent'") >= 2, 10);
    check_int(told(p, "first-of-x"), 4);
    check_int(told(p, "second-of-x"), 1);
    check(place(p, "first-of-x") < place(p, "second-of-x"));
    check(place(p, "second-of-x") <= place(p, "third-of-x"));
    check_int(sql_number(s, "SELECT max(attempts) FROM notify_messages"), 4);
    check_int(sql_number(s, "SELECT times FROM notify_sent WHERE kind = 'note'"), 1);
    check_soon(strstr(messages(s), "\"failing\":true") == NULL, 5);
    check(metric(s, "chromux_messages_retries_total") == 3);
    check_no_secret(s);
}

static void a_server_that_lost_its_data_is_told_until_it_is_whole(void **state)
{
    struct peer *p = hook_start();
    struct stage *s = stage_new();
    stage_chromux(s, "POLICY_TIME=1", slack_at(p), "--role", "all", NULL);
    char *id = create(s, "docs");
    check_status(post(s, of(id, "add"), records_body("r", 0, 5, "")), 201);
    check_caught_up(s, 10);
    chroma_kill(s->server[1]);
    check_soon(told(p, "Server replica is down") == 1, 20);
    const char *const empty[] = {"rm", "-rf", s->server[1]->folder, NULL};
    check_int(run_program(empty, NULL, 10).status, 0);
    chroma_again(s->server[1]);
    check_soon(told(p, "replica came back without what it had") == 1, 30);
    check_soon(told(p, "copies on replica are whole again") == 1, 60);
    check(place(p, "came back without") <= place(p, "whole again"));
    check_equal(s, id, 10);
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

static void a_webhook_that_is_taken_out_leaves_nothing_waiting(void **state)
{
    struct peer *slack = hook_start(), *other = peer_start(serve_ok);
    struct stage *s = stage_new();
    char *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, keepf("return { SLACK_WEBHOOK_URL = \"%s/services/" HOOK_SECRET "\" }",
                           peer_url(slack)));
    stage_chromux(s, "POLICY_TIME=1", "--config", file, NULL);
    treat((const enum how[16]){FAIL, FAIL, FAIL, FAIL, FAIL, FAIL, FAIL, FAIL}, 8);
    event(s, "messages_failing", "messages/slack", "as after some minutes");
    event(s, "note", "some/x", "waits-for-slack");
    check_soon(peer_completed(slack) >= 2, 20);
    write_file(file, keepf("return { WEBHOOK_URL = \"%s/any\" }", peer_url(other)));
    chromux_reload(s->x);
    check_soon(told(other, "waits-for-slack") == 1, 20);
    check_soon(told(other, "The sink slack is not configured any more") == 1, 20);
    check_str(sql(s, "SELECT string_agg(state || ': ' || error, ', ') FROM notify_messages WHERE "
                     "sink = 'slack'"),
              "given_up: its sink is not configured any more");
    check_has(chromux_log(s->x), "message_given_up");
    check_soon(
        sql_number(s, "SELECT count(*) FROM notify_events WHERE open OR state <> 'told'") == 0, 5);
    check_no_secret(s);
}

/* ---- what operators say ------------------------------------------------------------------------
 */

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
    edit_file(keepf("%s/slack.lua", folder), "was repaired", "was mended");
    edit_file(keepf("%s/notify.lua", folder), "local OTHERS = { every = HOUR }",
              "local OTHERS = { every = 1 }");
    chromux_reload(s->x);
    check_soon(told(p, "was mended") == 1, 10);
    /* An error at a message that no sample is like. */
    edit_file(
        keepf("%s/slack.lua", folder), "function M.format(event)",
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
    char *folder = own_policies();
    struct chromux *x =
        in_front_of(a, b, "POLICY_TIME=1", slack_at(p), keepf("POLICY_DIR=%s", folder), NULL);
    peer_set_probes(b, PROBE_ERROR);
    check_soon(told(p, "Server replica is down") == 1, 20);
    peer_set_probes(b, PROBE_OK);
    check_soon(told(p, "Server replica is up again") == 1, 20);
    check_int(peer_completed(p), 2);
    /* A policy that fails where no sample does is set aside until it is loaded anew. */
    char *route = keepf("%s/route.lua", folder), *was = read_file(route);
    edit_file(
        route, "function M.route(req, nodes)",
        "function M.route(req, nodes)\n  if req.action == \"version\" then error(\"oops\") end");
    chromux_reload(x);
    for (unsigned i = 0; i < 20; i++)
        check(http_get(x->port, "/api/v2/version") != NULL);
    check_soon(told(p, "Policy route.lua failed too often") == 1, 20);
    check_has(message(p, "Policy route.lua failed"), "oops");
    write_file(route, was);
    chromux_reload(x);
    check_soon(told(p, "Policy route.lua decides again") == 1, 20);
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
    struct run r = run_program(argv, environment, slow(240));
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_server_that_dies_and_comes_back_is_told),
        STAGE_TEST(a_hook_that_fails_gets_each_message_in_the_end),
        STAGE_TEST(a_server_that_lost_its_data_is_told_until_it_is_whole),
        STAGE_TEST(what_is_refused_is_not_sent_again),
        STAGE_TEST(a_webhook_that_is_taken_out_leaves_nothing_waiting),
        STAGE_TEST(a_reload_changes_words_and_limits_at_once),
        STAGE_TEST(silences_hold_back_what_goes_on),
        STAGE_TEST(a_sample_of_each_kind_can_be_sent),
        STAGE_TEST(without_a_database_the_one_balancer_tells),
        STAGE_TEST(hours_are_as_the_contract_says),
    };
    return STAGE_RUN(tests);
}
