/* Servers, and chromux itself, die under reads and writes: what was acknowledged is on both servers
 * afterwards, and clients notice no more than a pause.
 *
 * TEST_ROUNDS sets the number of rounds (3; 20 for a long run). */
#include "fixture.h"
#include "load.h"
#include "stage.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { CLIENTS = 8, EACH_MAX = 20000 };

/* Writers upsert records of their own, the odd request reads what the one before has written. */
struct traffic {
    char *id;
    struct load *load;
    _Atomic signed char said[CLIENTS][EACH_MAX]; /* by write: 1 acknowledged, 2 refused for certain,
                                                    -1 not known */
    bool refusals;                               /* 503 is no error */
};

static const char *request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[1024];
    struct traffic *t = arg;
    char body[300];
    if (n % 2)
        snprintf(body, sizeof body, "{\"ids\":[\"w%u-%u\"],\"include\":[\"embeddings\"]}", client,
                 n - 1);
    else
        snprintf(body, sizeof body,
                 "{\"ids\":[\"w%u-%u\"],\"embeddings\":[[%u,%u.25]],\"metadatas\":[{\"n\":%u}]}",
                 client, n, client, n, n);
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/%s HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             t->id, n % 2 ? "get" : "upsert", strlen(body), body);
    return text;
}

static bool right(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    struct traffic *t = arg;
    char part[64];
    if (n % 2 == 0) {
        bool kept = status == 503 && strstr(body, "kept as entry");
        if (client < CLIENTS && n < EACH_MAX)
            t->said[client][n] = status == 200 ? 1 : status == 503 && !kept ? 2 : -1;
        return status == 200 || (t->refusals && status == 503);
    }
    if (t->said[client][n - 1] != 1)
        return status == 200 || (t->refusals && status == 503);
    snprintf(part, sizeof part, "[[%u.0,%u.25]]", client, n - 1);
    return (status == 200 && strstr(body, part)) || (t->refusals && status == 503);
}

static struct traffic *traffic_start(struct stage *s, bool refusals)
{
    struct traffic *t = keep(sizeof *t);
    t->id = create(s, "traffic");
    t->refusals = refusals;
    struct load_plan plan = {request, right, t, 0.005};
    t->load = load_start(s->x->port, CLIENTS, &plan);
    return t;
}

static void check_goes_on(struct traffic *t, unsigned n)
{
    unsigned good = load_good(t->load);
    check_soon(load_good(t->load) >= good + n || load_bad(t->load) > 0, 20);
}

static void check_no_errors(struct traffic *t, double longest, const char *when)
{
    if (load_bad(t->load) > 0)
        harness_fail(__FILE__, __LINE__, "%s: %u wrong of %u; first: %s", when, load_bad(t->load),
                     load_bad(t->load) + load_good(t->load), load_complaint(t->load));
    if (load_longest(t->load) > slow(longest))
        harness_fail(__FILE__, __LINE__, "%s: a client waited %.2f s", when, load_longest(t->load));
}

/* Both hold the same: every acknowledged write, none that was refused for certain. */
static void check_kept(struct stage *s, struct traffic *t, double seconds)
{
    const char *all = check_equal(s, t->id, seconds);
    unsigned acknowledged = 0;
    for (unsigned c = 0; c < CLIENTS; c++)
        for (unsigned n = 0; n < EACH_MAX; n++) {
            char line[64];
            int said = t->said[c][n];
            if (said != 1 && said != 2)
                continue;
            snprintf(line, sizeof line, "[\"w%u-%u\", [%u.0, %u.25]", c, n, c, n);
            bool there = strstr(all, line) != NULL;
            if (there != (said == 1))
                harness_fail(__FILE__, __LINE__, "w%u-%u was %s and is %s", c, n,
                             said == 1 ? "acknowledged" : "refused", there ? "there" : "missing");
            acknowledged += said == 1;
        }
    check(acknowledged > 20);
}

static int rounds(int few)
{
    const char *wanted = getenv("TEST_ROUNDS");
    return wanted ? atoi(wanted) : few;
}

static void a_killed_server_costs_a_pause(void **state)
{
    struct stage *s = stage_raise();
    struct traffic *t = traffic_start(s, false);
    for (int round = 0; round < rounds(3); round++) {
        unsigned victim = round % 3 == 1; /* the primary twice as often */
        check_goes_on(t, 100);
        chroma_kill(s->server[victim]);
        check_goes_on(t, 200);
        chromux_wait_healthy(s->x, 1);
        check_goes_on(t, 100);
        chroma_again(s->server[victim]);
        chromux_wait_healthy(s->x, 2);
        double began = now_seconds();
        load_stop(t->load);
        check_no_errors(t, 2, keepf("round %d", round));
        check_kept(s, t, 5);
        print_message("round %d: %s killed, longest %.2f s, equal after %.2f s\n", round,
                      victim ? "replica" : "primary", load_longest(t->load), now_seconds() - began);
        struct load_plan plan = {request, right, t, 0.005};
        t->load = load_start(s->x->port, CLIENTS, &plan);
    }
    load_stop(t->load);
    check_no_errors(t, 2, "at the end");
}

static void a_hung_server_costs_a_try(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "TRY_TIMEOUT=1", NULL);
    struct traffic *t = traffic_start(s, false);
    for (int round = 0; round < rounds(2); round++) {
        unsigned victim = round % 2;
        check_goes_on(t, 100);
        chroma_signal(s->server[victim], SIGSTOP);
        check_goes_on(t, 200);
        chromux_wait_healthy(s->x, 1);
        check_goes_on(t, 100);
        chroma_signal(s->server[victim], SIGCONT);
        chromux_wait_healthy(s->x, 2);
        double began = now_seconds();
        load_stop(t->load);
        check_no_errors(t, 3, keepf("round %d", round));
        check_kept(s, t, 5);
        print_message("round %d: %s stopped, longest %.2f s, equal after %.2f s\n", round,
                      victim ? "replica" : "primary", load_longest(t->load), now_seconds() - began);
        struct load_plan plan = {request, right, t, 0.005};
        t->load = load_start(s->x->port, CLIENTS, &plan);
    }
    load_stop(t->load);
    check_no_errors(t, 3, "at the end");
}

/* What an operator did by hand: everything goes on with one server, and the other is equal again.
 */
static void one_server_serves_all(struct stage *s, unsigned victim)
{
    char *old = create(s, "old"), *doomed = create(s, "doomed");
    check_status(post(s, of(old, "add"), records_body("r", 0, 5, "")), 201);
    check_caught_up(s, 5);
    chroma_kill(s->server[victim]);
    char *fresh = create(s, "fresh");
    check_status(post(s, of(fresh, "add"), records_body("f", 0, 5, "")), 201);
    check_status(post(s, of(old, "add"), records_body("r", 5, 5, "")), 201);
    check_status(post(s, of(old, "delete"), "{\"ids\":[\"r1\"]}"), 200);
    check_str(get(s, of(old, "count"))->body, "9");
    check_status(post(s, of(fresh, "query"), "{\"query_embeddings\":[[1,2]]}"), 200);
    check_status(ask(s, "DELETE", "/collections/doomed", NULL), 200);
    create(s, "brief");
    check_status(ask(s, "DELETE", "/collections/brief", NULL), 200);
    check_status(ask(s, "PUT", keepf("/collections/%s", old), "{\"new_name\":\"older\"}"), 200);
    check_status(get(s, of(doomed, "count")), 404);
    chroma_again(s->server[victim]);
    chromux_wait_healthy(s->x, 2);
    check_equal(s, old, 5);
    check_equal(s, fresh, 5);
    check_str(collections_on(s, 0), "fresh\nolder");
    check_str(collections_on(s, 1), "fresh\nolder");
}

static void all_goes_on_without_the_primary(void **state)
{
    one_server_serves_all(stage_raise(), 0);
}

static void all_goes_on_without_the_replica(void **state)
{
    one_server_serves_all(stage_raise(), 1);
}

static void nothing_is_half_kept_while_both_are_down(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=1.5", NULL);
    char *id = create(s, "down");
    check_status(post(s, of(id, "add"), records_body("r", 0, 3, "")), 201);
    check_caught_up(s, 5);
    chroma_kill(s->server[0]);
    chroma_kill(s->server[1]);
    unsigned kept = 0;
    for (unsigned i = 0; i < 4; i++) {
        struct answer *a = post(s, of(id, "add"), records_body("down", i, 1, ""));
        check_status(a, 503);
        long rows = sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0 AND n > 1");
        if (strstr(a->body, "kept as entry")) {
            kept++;
            check(!head_field(a->head, "Retry-After"));
        } else {
            check(head_field(a->head, "Retry-After") != NULL);
        }
        check_int(rows, kept);
    }
    check_status(get(s, of(id, "count")), 503);
    struct answer *a = post(s, "/collections", "{\"name\":\"downtoo\"}");
    check_status(a, 503);
    bool made = strstr(a->body, "kept as entry") != NULL;
    chroma_again(s->server[1]);
    chroma_again(s->server[0]);
    chromux_wait_healthy(s->x, 2);
    check_equal(s, id, 10);
    check_str(get(s, of(id, "count"))->body, keepf("%u", 3 + kept));
    check_str(collections_on(s, 0), made ? "down\ndowntoo" : "down");
    check_str(collections_on(s, 1), made ? "down\ndowntoo" : "down");
}

/* Acknowledged writes survive chromux; what it left undecided is settled by the next life. */
static void a_killed_chromux_loses_nothing(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, keepf("PORT=%u", free_port()), NULL);
    struct traffic *t = traffic_start(s, true);
    for (int round = 0; round < rounds(3); round++) {
        check_goes_on(t, 150);
        chromux_signal(s->x, SIGKILL);
        check(chromux_wait_exit(s->x, 10));
        load_stop(t->load);
        stage_again(s);
        check_soon(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict IS NULL") == 0,
                   10);
        check_kept(s, t, 10);
        struct load_plan plan = {request, right, t, 0.002};
        memset(t->said, 0, sizeof t->said);
        t->id = create(s, keepf("traffic%d", round));
        t->load = load_start(s->x->port, CLIENTS, &plan);
    }
    check_goes_on(t, 50);
    load_stop(t->load);
    check_no_errors(t, 5, "after the last round");
    check_kept(s, t, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_killed_server_costs_a_pause),
        STAGE_TEST(a_hung_server_costs_a_try),
        STAGE_TEST(all_goes_on_without_the_primary),
        STAGE_TEST(all_goes_on_without_the_replica),
        STAGE_TEST(nothing_is_half_kept_while_both_are_down),
        STAGE_TEST(a_killed_chromux_loses_nothing),
    };
    return STAGE_RUN(tests);
}
