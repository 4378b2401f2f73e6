/* Two balancers before the same servers and the same PostgreSQL: one holds the lease of the
 * journal, the other follows it, forwards to it, and takes over. */
#include "load.h"
#include "stage.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { HOLDER, STANDBY, CLIENTS = 4 };

/* b[0] has the lease, b[1] follows; both see the same servers and database. */
struct pair {
    struct stage *b[2];
    int port[2];
    char *horizon;
};

static void start_one(struct pair *p, unsigned i)
{
    stage_chromux(p->b[i], keepf("PORT=%d", p->port[i]),
                  keepf("ADVERTISE_URL=http://127.0.0.1:%d/", p->port[i]), p->horizon,
                  "LEASE_TIMEOUT=1.5", NULL);
}

static struct pair *pair_raise(double horizon)
{
    struct pair *p = keep(sizeof *p);
    p->horizon = keepf("WRITE_HORIZON=%g", horizon);
    p->b[0] = stage_new();
    p->b[1] = keep(sizeof *p->b[1]);
    *p->b[1] = *p->b[0];
    for (unsigned i = 0; i < 2; i++) {
        p->port[i] = (int)free_port();
        start_one(p, i);
    }
    return p;
}

static char *status_text(struct stage *s, const char *name)
{
    return json_field(json_field(get(s, "/status")->body, "journal"), name);
}

static bool is_a(struct stage *s, const char *role)
{
    return strcmp(status_text(s, "role"), keepf("\"%s\"", role)) == 0;
}

static struct answer *upsert_with(struct stage *s, const char *id, const char *record, int value,
                                  const char *fields)
{
    return ask_with(s, "POST", of(id, "upsert"), fields,
                    keepf("{\"ids\":[\"%s\"],\"embeddings\":[[1,2]],\"metadatas\":[{\"v\":%d}]}",
                          record, value));
}

static void upsert(struct stage *s, const char *id, const char *record, int value)
{
    struct answer *a = upsert_with(s, id, record, value, "");
    check_status(a, 200);
}

static struct answer *read_record(struct stage *s, const char *id, const char *record)
{
    return post(s, of(id, "get"), keepf("{\"ids\":[\"%s\"],\"include\":[\"metadatas\"]}", record));
}

static void check_value(struct stage *s, const char *id, const char *record, int value)
{
    struct answer *a = read_record(s, id, record);
    check_status(a, 200);
    check_has(a->body, keepf("\"v\":%d}", value));
}

static void roles_are_shown(void **state)
{
    struct pair *p = pair_raise(2);
    check_str(status_text(p->b[HOLDER], "role"), "\"holder\"");
    check_str(status_text(p->b[STANDBY], "role"), "\"standby\"");
    char *address = keepf("\"http://127.0.0.1:%d\"", p->port[HOLDER]);
    for (unsigned i = 0; i < 2; i++) {
        check_str(json_field(get(p->b[i], "/status")->body, "replication"), "\"on\"");
        check_str(status_text(p->b[i], "holder"), address);
        check_str(status_text(p->b[i], "epoch"), "1");
    }
}

static void each_balancer_shows_what_was_written_through_it(void **state)
{
    struct pair *p = pair_raise(2);
    char *id = create(p->b[STANDBY], "through");
    check_status(get(p->b[STANDBY], "/collections/through"), 200);
    for (int n = 0; n < 60; n++) {
        struct stage *s = p->b[n % 2];
        char *record = keepf("r%d", n % 2);
        upsert(s, id, record, n);
        check_value(s, id, record, n);
    }
    check_equal(p->b[HOLDER], id, 5);
    check_int(sql_number(p->b[HOLDER], "SELECT count(*) FROM journal_entries WHERE lane > 0"), 60);
}

static void answers_of_the_holder_pass_unchanged(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *s = p->b[STANDBY];
    char *id = create(s, "answers");
    upsert(s, id, "a", 1);
    struct answer *a = post(s, of(id, "add"), "{\"ids\":[\"x\"],\"embeddings\":[[1,2,3]]}");
    struct answer *b =
        post(p->b[HOLDER], of(id, "add"), "{\"ids\":[\"x\"],\"embeddings\":[[1,2,3]]}");
    check_status(a, 400);
    check_str(a->body, b->body);
    check_str(head_field(a->head, "Content-Type"), head_field(b->head, "Content-Type"));
    check_str(head_field(a->head, "X-Chromux-Entry"), "1/2");
    check_str(head_field(b->head, "X-Chromux-Entry"), "1/3");
    check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    a = ask(s, "DELETE", "/collections/nothing", NULL);
    check_status(a, 404);
    check_has(a->body, "nothing");
    /* A body of some megabytes, and a name with escapes. */
    upsert(s, id, "b", 2);
    check_status(post(s, of(id, "add"), records_body("m", 0, 20000, "")), 201);
    a = get(s, of(id, "count"));
    check_str(a->body, "20002");
}

/* Whoever got the id from one balancer may use it at the other, before that has heard of it. */
static void a_collection_is_known_to_the_other_balancer_at_once(void **state)
{
    struct pair *p = pair_raise(2);
    for (int n = 0; n < 40; n++) {
        char *id = create(p->b[HOLDER], keepf("made%d", n));
        struct answer *a = get(p->b[STANDBY], of(id, "count"));
        check_status(a, 200);
        check_str(a->body, "0");
        check_status(get(p->b[STANDBY], keepf("/collections/made%d", n)), 200);
    }
    check_status(get(p->b[STANDBY], of("01234567-89ab-4def-8123-456789abcdef", "count")), 404);
    check_status(ask(p->b[HOLDER], "DELETE", "/collections/made0", NULL), 200);
    check_soon(get(p->b[STANDBY], "/collections/made0")->status == 404, 5);
}

/* Connections to this database, but for the test's own. */
static char *backends(struct stage *s)
{
    return sql(s, "SELECT COALESCE(string_agg(pid::text, ','), '0') FROM pg_stat_activity "
                  "WHERE datname = current_database() AND pid <> pg_backend_pid()");
}

/* ---- the holder ends ------------------------------------------------------------------------- */

struct book {
    const char *id;
    unsigned round;                /* a key is used once in a test */
    atomic_uint answered[CLIENTS]; /* writes that were acknowledged, in order */
};

static const char *next_write(unsigned client, unsigned n, void *arg)
{
    const struct book *b = arg;
    const char *body =
        keepf("{\"ids\":[\"c%u-%u\"],\"embeddings\":[[%u,%u]]}", client, n, client, n);
    return keepf("POST " CHROMA_DB "/collections/%s/add HTTP/1.1\r\nHost: h\r\n"
                 "Content-Type: application/json\r\nIdempotency-Key: %u-%u-%u\r\n"
                 "Content-Length: %zu\r\n\r\n%s",
                 b->id, b->round, client, n, strlen(body), body);
}

static bool was_written(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    struct book *b = arg;
    if (status == 201)
        atomic_store(&b->answered[client], n + 1);
    return status == 201;
}

static void check_book(struct book *b, struct stage *s)
{
    char *all = check_equal(s, b->id, 20);
    unsigned sum = 0;
    for (unsigned c = 0; c < CLIENTS; c++)
        for (unsigned n = 0; n < atomic_load(&b->answered[c]); n++, sum++)
            check_has(all, keepf("\"c%u-%u\"", c, n));
    check(sum > 20);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0") -
                  sql_number(s, "SELECT count(DISTINCT token) FROM journal_entries WHERE lane > 0"),
              0);
}

static void a_killed_holder_costs_a_pause_and_no_write(void **state)
{
    struct pair *p = pair_raise(2);
    for (unsigned round = 0; round < 2; round++) {
        struct stage *holder = p->b[round % 2], *other = p->b[1 - round % 2];
        struct book b = {.id = create(holder, keepf("kill%u", round)), .round = round};
        struct load_plan plan = {next_write, was_written, &b, 0.002};
        struct load *l = load_start(other->x->port, CLIENTS, &plan);
        check_soon(load_good(l) > 40 || load_bad(l) > 0, 20);
        chromux_signal(holder->x, SIGKILL);
        check(chromux_wait_exit(holder->x, 10));
        unsigned good = load_good(l);
        check_soon(load_good(l) > good + 40 || load_bad(l) > 0, 20);
        load_stop(l);
        check_str(load_complaint(l), "");
        check(is_a(other, "holder"));
        start_one(p, round % 2);
        check_book(&b, other);
    }
}

static void a_key_that_is_repeated_elsewhere_is_one_entry(void **state)
{
    struct pair *p = pair_raise(2);
    char *id = create(p->b[HOLDER], "keys");
    const char *key = "Idempotency-Key: once\r\n";
    struct answer *first = upsert_with(p->b[HOLDER], id, "a", 1, key);
    check_status(first, 200);
    struct answer *again = upsert_with(p->b[STANDBY], id, "a", 1, key);
    check_status(again, 200);
    check_str(head_field(again->head, "X-Chromux-Entry"),
              head_field(first->head, "X-Chromux-Entry"));
    /* The name that one balancer gives another for a write is none of a client's keys. */
    struct answer *token = upsert_with(p->b[HOLDER], id, "a", 1, "X-Chromux-Token: once\r\n");
    check_str(head_field(token->head, "X-Chromux-Entry"), "1/2");
    chromux_signal(p->b[HOLDER]->x, SIGKILL);
    check(chromux_wait_exit(p->b[HOLDER]->x, 10));
    again = upsert_with(p->b[STANDBY], id, "a", 1, key);
    check_status(again, 200);
    check_str(head_field(again->head, "X-Chromux-Entry"),
              head_field(first->head, "X-Chromux-Entry"));
}

/* The holder has appended a write, and dies before it can answer: it is the same entry with the
 * next holder, which the client's balancer has become. */
static void a_forwarded_write_that_was_kept_is_not_kept_twice(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *s = p->b[STANDBY];
    char *id = create(s, "twice");
    check_caught_up(s, 10);
    for (unsigned i = 0; i < 2; i++)
        chroma_signal(s->server[i], SIGSTOP);
    struct wire *w = wire_open(p->port[STANDBY]);
    const char *body = "{\"ids\":[\"b\"],\"embeddings\":[[5,6]]}";
    check(wire_sendf(w,
                     "POST " CHROMA_DB "/collections/%s/add HTTP/1.1\r\nHost: h\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     id, strlen(body), body));
    check_soon(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = 1") == 1, 10);
    chromux_signal(p->b[HOLDER]->x, SIGKILL);
    check(chromux_wait_exit(p->b[HOLDER]->x, 10));
    for (unsigned i = 0; i < 2; i++)
        chroma_signal(s->server[i], SIGCONT);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 201);
    check_str(head_field(a->head, "X-Chromux-Entry"), "1/1");
    check_has(check_equal(s, id, 10), "\"b\"");
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = 1"), 1);
}

/* ---- the holder pauses ----------------------------------------------------------------------- */

static void a_holder_that_slept_past_its_lease_appends_nothing(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *sleeper = p->b[HOLDER], *other = p->b[STANDBY];
    check_int(chromux_stop(other->x), 0);
    char *sleepers = backends(sleeper);
    start_one(p, STANDBY);
    sql(sleeper, "CREATE TABLE appended (n bigint, pid integer)");
    sql(sleeper, "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO "
                 "appended VALUES (NEW.n, pg_backend_pid()); RETURN NEW; END $$");
    sql(sleeper, "CREATE TRIGGER note AFTER INSERT ON journal_entries FOR EACH ROW EXECUTE "
                 "FUNCTION note()");
    char *id = create(sleeper, "sleep");
    upsert(sleeper, id, "a", 1);
    chromux_signal(sleeper->x, SIGSTOP);
    /* It is in the sleeper's socket when that wakes up. */
    struct wire *w = wire_open(p->port[HOLDER]);
    const char *body = "{\"ids\":[\"b\"],\"embeddings\":[[5,6]]}";
    check(wire_sendf(w,
                     "POST " CHROMA_DB "/collections/%s/add HTTP/1.1\r\nHost: h\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     id, strlen(body), body));
    upsert(other, id, "a", 2);
    check(is_a(other, "holder"));
    upsert(other, id, "a", 3);
    chromux_signal(sleeper->x, SIGCONT);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 201);
    check_soon(is_a(sleeper, "standby"), 5);
    char *entry = head_field(a->head, "X-Chromux-Entry");
    check_str(entry, "1/4");
    check_status(read_record(sleeper, id, "b"), 200);
    check_value(sleeper, id, "a", 3);
    char *all = check_equal(other, id, 10);
    check_has(all, "\"b\"");
    check_int(sql_number(other, "SELECT count(*) FROM journal_entries WHERE lane = 1"), 4);
    check_int(sql_number(other, "SELECT epoch FROM journal_lease"), 2);
    /* The collection and the first record. */
    check_int(sql_number(other, "SELECT count(*) FROM appended WHERE pid IN (%s)", sleepers), 2);
    check_int(sql_number(other, "SELECT count(*) FROM appended"), 5);
}

/* The requests are the first that it sees when it wakes up. */
static void a_holder_that_slept_knows_what_was_made_meanwhile(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *sleeper = p->b[HOLDER], *other = p->b[STANDBY];
    create(sleeper, "before");
    chromux_signal(sleeper->x, SIGSTOP);
    char *id = create(other, "meanwhile");
    check(is_a(other, "holder"));
    const char *const paths[] = {"/collections/meanwhile", of(id, "count"), "/collections"};
    struct wire *w[COUNT_OF(paths)];
    for (unsigned i = 0; i < COUNT_OF(paths); i++) {
        w[i] = wire_open(p->port[HOLDER]);
        check(wire_sendf(w[i], "GET " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\n\r\n", paths[i]));
    }
    chromux_signal(sleeper->x, SIGCONT);
    for (unsigned i = 0; i < COUNT_OF(paths); i++) {
        struct answer *a = wire_answer(w[i], false);
        check(a != NULL);
        check_status(a, 200);
        check(i == 1 || strstr(a->body, id) != NULL);
    }
    check_soon(is_a(sleeper, "standby"), 5);
}

/* ---- the holder stops ------------------------------------------------------------------------ */

/* The horizon is far longer than what is allowed: nobody settles. */
static void a_clean_stop_hands_over_within_a_second(void **state)
{
    struct pair *p = pair_raise(60);
    char *id = create(p->b[0], "stop");
    for (int round = 0; round < 4; round++) {
        unsigned holder = (unsigned)round % 2;
        struct stage *other = p->b[1 - holder];
        upsert(p->b[holder], id, "a", round);
        double began = now_seconds();
        chromux_signal(p->b[holder]->x, SIGTERM);
        upsert(other, id, "b", round);
        double took = now_seconds() - began;
        if (took > slow(1))
            harness_fail(__FILE__, __LINE__, "%g s until a write was answered again", took);
        check_soon(is_a(other, "holder"), 1);
        check(chromux_wait_exit(p->b[holder]->x, 10));
        check_int(p->b[holder]->x->status, 0);
        check_value(other, id, "a", round);
        start_one(p, holder);
        check(is_a(p->b[holder], "standby"));
    }
    check_equal(p->b[0], id, 5);
}

/* A server is away, so that its copies are behind: what was written down as done is not in doubt.
 */
static void after_a_clean_stop_nothing_is_in_doubt(void **state)
{
    struct pair *p = pair_raise(60);
    struct stage *s = p->b[HOLDER];
    check_int(chromux_stop(p->b[STANDBY]->x), 0);
    char *id = create(s, "doubt");
    upsert(s, id, "a", 0);
    check_caught_up(s, 10);
    chroma_kill(s->server[1]);
    for (int n = 1; n < 5; n++)
        upsert(s, id, "a", n);
    check_int(chromux_stop(s->x), 0);
    start_one(p, HOLDER);
    check_int(journal_figure(s, "in_doubt"), 0);
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 10));
    start_one(p, HOLDER);
    check_int(journal_figure(s, "in_doubt"), 1);
    chroma_again(s->server[1]);
    check_equal(s, id, 20);
}

/* ---- what a standby may not trust ------------------------------------------------------------ */

static void a_standby_that_hears_nothing_reads_nothing(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *standby = p->b[STANDBY], *holder = p->b[HOLDER];
    char *id = create(holder, "deaf");
    upsert(standby, id, "a", 1);
    check_value(standby, id, "a", 1);
    check_int(chromux_stop(standby->x), 0);
    char *holders = backends(holder);
    start_one(p, STANDBY);
    check_value(standby, id, "a", 1);
    char *database = sql(holder, "SELECT current_database()");
    sql(holder, "UPDATE pg_database SET datallowconn = false WHERE datname = '%s'", database);
    sql(holder,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = "
        "current_database() AND pid <> pg_backend_pid() AND pid NOT IN (%s)",
        holders);
    check_soon(
        strcmp(json_field(get(standby, "/status")->body, "replication"), "\"degraded\"") == 0, 5);
    upsert(holder, id, "a", 2);
    check_status(read_record(standby, id, "a"), 503);
    check_status(get(standby, "/collections/deaf"), 503);
    check_value(holder, id, "a", 2);
    sql(holder, "UPDATE pg_database SET datallowconn = true WHERE datname = '%s'", database);
    check_soon(read_record(standby, id, "a")->status == 200, 10);
    check_value(standby, id, "a", 2);
}

/* Broken again and again, under writes: what comes back is never older than what was seen. */
static void broken_connections_bring_nothing_old_back(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *standby = p->b[STANDBY];
    char *id = create(standby, "broken");
    for (int n = 0; n < 12; n++) {
        sql(standby,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = "
            "current_database() AND pid <> pg_backend_pid()");
        char *key = keepf("Idempotency-Key: k%d\r\n", n);
        check_soon(upsert_with(standby, id, "a", n, key)->status == 200, 10);
        check_soon(read_record(standby, id, "a")->status == 200, 10);
        check_value(standby, id, "a", n);
    }
    check_equal(standby, id, 10);
}

/* The holder sees that a server came back empty; so must the standby, which stamps nothing. */
static void a_standby_does_not_read_from_a_server_that_came_back_empty(void **state)
{
    struct pair *p = pair_raise(2);
    struct stage *s = p->b[STANDBY];
    char *id = create(s, "empty");
    upsert(s, id, "a", 7);
    check_caught_up(s, 10);
    /* Its life has been stamped. */
    check_soon(sql_number(s, "SELECT min(witness) FROM journal_servers") >= 1, 10);
    struct chroma *c = s->server[1];
    chroma_kill(c);
    const char *const wipe[] = {"rm", "-rf", c->folder, NULL};
    check_int(run_program(wipe, NULL, 30).status, 0);
    chroma_again(c);
    double until = now_seconds() + slow(3);
    while (now_seconds() < until) {
        check_value(s, id, "a", 7);
        check_value(p->b[HOLDER], id, "a", 7);
    }
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE instance = 'replica' AND "
                             "state = 'rebuild'") == 2,
               10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(roles_are_shown),
        STAGE_TEST(each_balancer_shows_what_was_written_through_it),
        STAGE_TEST(answers_of_the_holder_pass_unchanged),
        STAGE_TEST(a_collection_is_known_to_the_other_balancer_at_once),
        STAGE_TEST(a_killed_holder_costs_a_pause_and_no_write),
        STAGE_TEST(a_key_that_is_repeated_elsewhere_is_one_entry),
        STAGE_TEST(a_forwarded_write_that_was_kept_is_not_kept_twice),
        STAGE_TEST(a_holder_that_slept_past_its_lease_appends_nothing),
        STAGE_TEST(a_holder_that_slept_knows_what_was_made_meanwhile),
        STAGE_TEST(a_clean_stop_hands_over_within_a_second),
        STAGE_TEST(after_a_clean_stop_nothing_is_in_doubt),
        STAGE_TEST(a_standby_that_hears_nothing_reads_nothing),
        STAGE_TEST(broken_connections_bring_nothing_old_back),
        STAGE_TEST(a_standby_does_not_read_from_a_server_that_came_back_empty),
    };
    return STAGE_RUN(tests);
}
