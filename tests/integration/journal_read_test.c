/* What readers see while copies are not equal, what a repeated write is told, and the figures that
 * operators see. */
#include "fixture.h"
#include "load.h"
#include "stage.h"
#include "tap.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static void a_write_is_read_at_once(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    char *id = create(s, "own"), *upsert = of(id, "upsert"), *read = of(id, "get");
    unsigned from[2] = {0};
    for (unsigned n = 0; n < 500; n++) {
        check_status(
            post(s, upsert,
                 keepf("{\"ids\":[\"x\"],\"embeddings\":[[%u,1]],\"documents\":[\"v%u\"]}", n, n)),
            200);
        struct answer *a = post(s, read, "{\"ids\":[\"x\"]}");
        check_status(a, 200);
        check_has(a->body, keepf("\"v%u\"", n));
        from[strcmp(head_field(a->head, "X-Chromux-Instance"), "replica") == 0]++;
    }
    check_equal(s, id, 5);
    for (unsigned n = 0; n < 20; n++) {
        struct answer *a = post(s, read, "{\"ids\":[\"x\"]}");
        check_has(a->body, "\"v499\"");
        from[strcmp(head_field(a->head, "X-Chromux-Instance"), "replica") == 0]++;
    }
    check(from[0] >= 10 && from[1] >= 10);
}

/* Chromux with the replica behind a tap, which holds what is written to it. */
static struct tap *replica_behind_tap(struct stage *s, const char *setting)
{
    struct tap *tap = tap_start(s->server[1]->port);
    stage_chromux(s, keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap)), "TRY_TIMEOUT=60",
                  "REQUEST_TIMEOUT=60", setting, NULL);
    return tap;
}

static void check_read_by(struct stage *s, const char *id, const char *fields, const char *instance,
                          const char *count)
{
    struct answer *a = ask_with(s, "GET", of(id, "count"), fields, NULL);
    check_status(a, 200);
    check_str(head_field(a->head, "X-Chromux-Instance"), instance);
    check_str(a->body, count);
}

static void readers_say_how_old_an_answer_may_be(void **state)
{
    struct stage *s = stage_new();
    char *policies = keepf("%s/policies", temp_folder());
    const char *const copy[] = {"cp", "-r", "policies", policies, NULL};
    check_int(run_program(copy, NULL, 10).status, 0);
    write_file(keepf("%s/route.lua", policies),
               "return { route = function(req, nodes)\n"
               "  local most = nodes[1]\n"
               "  if req.class ~= 'read' then return 'primary' end\n"
               "  for _, n in ipairs(nodes) do if n.behind > most.behind or n.role == 'replica' "
               "then most = n end end\n"
               "  return most.name, 'behind=' .. most.behind\nend }\n");
    struct tap *tap = replica_behind_tap(s, keepf("POLICY_DIR=%s", policies));
    char *id = create(s, "old");
    check_status(post(s, of(id, "add"), records_body("r", 0, 1, "")), 201);
    check_caught_up(s, 5);
    check_read_by(s, id, "", "replica", "1");
    tap_hold_requests(tap, "/upsert");
    for (unsigned n = 1; n <= 3; n++)
        check_status(post(s, of(id, "upsert"), records_body("r", n, 1, "")), 200);
    check_soon(tap_held(tap) > 0, 5);
    check_read_by(s, id, "", "primary", "4");
    check_read_by(s, id, "X-Chromux-Max-Behind: 2\r\n", "primary", "4");
    check_read_by(s, id, "X-Chromux-Max-Behind: 3\r\n", "replica", "1");
    check_has(chromux_access_line(s->x, "action=count", 4), "behind=3");
    check_status(ask_with(s, "GET", of(id, "count"), "X-Chromux-Max-Behind: -1\r\n", NULL), 400);
    /* Held up for good, it is seen to be behind. */
    check_soon(instance_figure(s, "replica", "lag_entries") == 3, 5);
    check_soon(instance_figure(s, "replica", "lag_seconds") > 0.2, 5);
    check_int((long)instance_figure(s, "primary", "lag_entries"), 0);
    /* With the primary gone a reader waits for the replica, which has all that was acknowledged. */
    chroma_kill(s->server[0]);
    chromux_wait_healthy(s->x, 1);
    struct wire *w = wire_open(s->x->port);
    check(wire_sendf(w, "GET " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\n\r\n", of(id, "count")));
    check(ask_with(s, "GET", of(id, "count"), "X-Chromux-Max-Behind: 3\r\n", NULL)->status == 200);
    check(!wire_has_input(w));
    tap_hold_requests(tap, NULL);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 200);
    check_str(a->body, "4");
}

/* The replica has applied a write, and its answer is lost: until that is known it is not read. */
static void a_copy_in_doubt_is_not_read(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap = tap_start(s->server[1]->port);
    stage_chromux(s, keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap)), "TRY_TIMEOUT=0.5",
                  "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    char *id = create(s, "doubt");
    check_status(post(s, of(id, "add"), records_body("r", 0, 1, "")), 201);
    check_caught_up(s, 5);
    check_int((long)journal_figure(s, "in_doubt"), 0);
    tap_hold_answers(tap, "/upsert");
    check_status(post(s, of(id, "upsert"), records_body("r", 1, 1, "")), 200);
    check_soon(tap_held(tap) > 0, 5);
    check_soon(journal_figure(s, "in_doubt") == 1, 5);
    check(metric(s, "chromux_journal_in_doubt") == 1);
    for (unsigned n = 0; n < 6; n++)
        check_read_by(s, id, "", "primary", "2");
    check_soon(strcmp(ask_server(s->server[1], "GET", of(physical(s, 1, id), "count"), NULL)->body,
                      "2") == 0,
               5);
    tap_hold_answers(tap, NULL);
    check_soon(journal_figure(s, "in_doubt") == 0, 5);
    check_equal(s, id, 5);
}

/* The primary's answer is lost after it has applied: the replica decides, both end equal. */
static void an_answer_that_is_lost_costs_no_write(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap = tap_start(s->server[0]->port);
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap)), "TRY_TIMEOUT=0.5",
                  NULL);
    char *id = create(s, "lost");
    check_status(post(s, of(id, "add"), records_body("r", 0, 4, "")), 201);
    check_caught_up(s, 5);
    static const char *const verbs[] = {"/upsert", "/delete", "/add"};
    for (unsigned i = 0; i < COUNT_OF(verbs); i++) {
        tap_hold_answers(tap, verbs[i]);
        struct answer *a = post(s, of(id, verbs[i] + 1),
                                i == 1 ? "{\"ids\":[\"r0\"]}" : records_body("n", i, 1, ""));
        check_status(a, i == 2 ? 201 : 200);
        check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
        check(tap_held(tap) > 0);
        tap_hold_answers(tap, NULL);
        check_caught_up(s, 10);
    }
    char *all = check_equal(s, id, 5);
    check_int(count_lines(all, "[\""), 5);
}

static void a_repeated_key_gets_the_recorded_answer(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "keys"), *body = records_body("r", 0, 2, "");
    static const char key[] = "Idempotency-Key: order-1\r\n";
    struct answer *first = ask_with(s, "POST", of(id, "add"), key, body);
    check_status(first, 201);
    check_status(post(s, of(id, "delete"), "{\"ids\":[\"r0\"]}"), 200);
    struct answer *again = ask_with(s, "POST", of(id, "add"), key, body);
    check_status(again, 201);
    check_str(again->body, first->body);
    check_str(head_field(again->head, "X-Chromux-Entry"),
              head_field(first->head, "X-Chromux-Entry"));
    check_str(get(s, of(id, "count"))->body, "1");
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE action = 'add'"), 1);
    /* It is for one request: another one would be told of a write that it is not. */
    check_status(ask_with(s, "POST", of(id, "delete"), key, "{\"ids\":[\"r1\"]}"), 422);
    check_status(ask_with(s, "POST", of(id, "add"), key, records_body("r", 2, 2, "")), 422);
    check_status(ask_with(s, "DELETE", "/collections/keys", key, NULL), 422);
    check_str(get(s, of(id, "count"))->body, "1");
    /* Refusals are recorded too. */
    for (unsigned i = 0; i < 2; i++)
        check_status(ask_with(s, "POST", of(id, "add"), "Idempotency-Key: bad-1\r\n",
                              "{\"ids\":[\"z\"],\"embeddings\":[[1,2,3]]}"),
                     400);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict = 'rejected'"), 1);
    /* A collection as well, also after a restart. */
    static const char make[] = "Idempotency-Key: make-1\r\n";
    first = ask_with(s, "POST", "/collections", make, "{\"name\":\"made\"}");
    check_status(first, 200);
    check_int(chromux_stop(s->x), 0);
    stage_again(s);
    again = ask_with(s, "POST", "/collections", make, "{\"name\":\"made\"}");
    check_status(again, 200);
    check_str(again->body, first->body);
    create(s, "keys2");
    static const char drop[] = "Idempotency-Key: drop-1\r\n";
    check_status(ask_with(s, "DELETE", "/collections/keys2", drop, NULL), 200);
    check_status(ask_with(s, "DELETE", "/collections/keys2", drop, NULL), 200);
    check_status(ask_with(s, "DELETE", "/collections/keys", drop, NULL), 422);
    static const char *const bad[] = {"", " ", "a b", "\xc3\xa9"};
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        check_status(
            ask_with(s, "POST", of(id, "add"), keepf("Idempotency-Key: %s\r\n", bad[i]), body),
            400);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0"), 3);
    check_equal(s, id, 5);
}

static void figures_show_what_happens(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap[2] = {tap_start(s->server[0]->port), tap_start(s->server[1]->port)};
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap[0])),
                  keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap[1])), "TRY_TIMEOUT=30",
                  "REQUEST_TIMEOUT=30", NULL);
    char *id = create(s, "figures");
    check_status(post(s, of(id, "add"), records_body("r", 0, 1, "")), 201);
    check_caught_up(s, 5);
    check_int((long)journal_figure(s, "pending"), 0);
    check_int((long)journal_figure(s, "head"), 2);
    check_int((long)journal_figure(s, "lanes"), 2);
    check(journal_figure(s, "mean") > 0 && journal_figure(s, "p99") > 0); /* commit_ms */
    check(journal_figure(s, "commits") > 0);
    check(journal_figure(s, "epoch") == 1);
    tap_hold_requests(tap[0], "/upsert");
    struct wire *w = wire_open(s->x->port);
    char *body = records_body("r", 1, 100, "");
    check(wire_sendf(w,
                     "POST " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json"
                     "\r\nContent-Length: %zu\r\n\r\n%s",
                     of(id, "upsert"), strlen(body), body));
    check_soon(tap_held(tap[0]) > 0, 5);
    check_soon(journal_figure(s, "pending") == 1, 5);
    check_int((long)journal_figure(s, "waiting_clients"), 1);
    check_int((long)journal_figure(s, "head"), 3);
    check(journal_figure(s, "memory_bytes") >= (double)strlen(body));
    check_soon(journal_figure(s, "oldest_age_seconds") > 0.1, 5);
    check_soon(instance_figure(s, "primary", "lag_entries") == 1, 5);
    check_soon(instance_figure(s, "primary", "lag_seconds") > 0.1, 5);
    check(metric(s, "chromux_journal_pending ") == 1);
    check(metric(s, "chromux_journal_head ") == 3);
    check(metric(s, "chromux_journal_lanes ") == 2);
    check(metric(s, "chromux_journal_memory_bytes ") >= (double)strlen(body));
    check(metric(s, "chromux_journal_commits_total ") > 3);
    check(metric(s, "chromux_journal_commit_seconds_mean ") > 0);
    check(metric(s, "chromux_instance_lag_entries{instance=\"primary\"}") == 1);
    check(metric(s, "chromux_instance_lag_seconds{instance=\"primary\"}") > 0.1);
    tap_hold_requests(tap[0], NULL);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 200);
    check_has(a->head, "X-Chromux-Entry: 1/2");
    check_equal(s, id, 5);
    check_soon(journal_figure(s, "pending") == 0, 5);
    check_soon(journal_figure(s, "memory_bytes") == 0, 5);
    check_soon(instance_figure(s, "primary", "lag_entries") == 0, 5);
    check_status(post(s, of(id, "add"), "{\"ids\":[\"z\"],\"embeddings\":[[1,2,3]]}"), 400);
    check_soon(journal_figure(s, "rejected") == 1, 5);
    check_int((long)journal_figure(s, "applied"), 3);
    check(metric(s, "chromux_journal_verdicts_total{verdict=\"applied\"}") == 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_write_is_read_at_once),
        STAGE_TEST(readers_say_how_old_an_answer_may_be),
        STAGE_TEST(a_copy_in_doubt_is_not_read),
        STAGE_TEST(an_answer_that_is_lost_costs_no_write),
        STAGE_TEST(a_repeated_key_gets_the_recorded_answer),
        STAGE_TEST(figures_show_what_happens),
    };
    return STAGE_RUN(tests);
}
