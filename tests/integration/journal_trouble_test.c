/* PostgreSQL is there, but slow, locked, or refuses what it is asked: reads go on, writes get the
 * right answer within their time, nothing is lost, and /status says why. */
#include "stage.h"
#include "tap.h"

#include <stdio.h>
#include <string.h>

static char *filled(struct stage *s, unsigned n)
{
    char *id = create(s, "some");
    check_status(post(s, of(id, "add"), records_body("r", 0, n, "")), 201);
    check_caught_up(s, 5);
    return id;
}

static void check_reads(struct stage *s, const char *id)
{
    for (unsigned i = 0; i < 4; i++) {
        double began = now_seconds();
        check_status(get(s, of(id, "count")), 200);
        check_status(post(s, of(id, "query"), "{\"query_embeddings\":[[1,2]]}"), 200);
        check_status(get(s, "/collections/some"), 200);
        check(now_seconds() - began < slow(1));
    }
}

static struct answer *add(struct stage *s, const char *id, const char *prefix, unsigned n)
{
    return post(s, of(id, "add"), records_body(prefix, n, 1, ""));
}

static bool kept(struct stage *s, const char *record)
{
    return sql_number(s, "SELECT count(*) FROM journal_entries WHERE body LIKE '%%\"%s\"%%'",
                      record) > 0;
}

/* An answer is true: what was acknowledged is there, what was not kept is nowhere, and of what is
 * not known both servers say the same. */
static void check_answers(struct stage *s, const char *id, const char *prefix,
                          struct answer *const *a, unsigned n)
{
    char *all = check_equal(s, id, 15);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict IS NULL"), 0);
    for (unsigned i = 0; i < n; i++) {
        bool there = strstr(all, keepf("\"%s%u\"", prefix, i)) != NULL;
        bool refused = a[i]->status == 503 && strstr(a[i]->body, "not kept");
        check(a[i]->status == 201 || a[i]->status == 503 || a[i]->status == 504);
        check(a[i]->status != 201 || there);
        check(!refused || (!there && !kept(s, keepf("%s%u", prefix, i))));
        check(a[i]->status != 503 || refused || there); /* kept: applied by now */
        check(refused == (head_field(a[i]->head, "Retry-After") != NULL));
    }
}

static void a_slow_postgresql_makes_writes_slow_and_reads_not(void **state)
{
    enum { N = 3 };
    struct answer *a[N];
    struct stage *s = stage_new();
    struct tap *tap = tap_start_at(keepf("%s/.s.PGSQL.5432", stage_pg_folder()));
    char *name = strstr(s->url, "@/") + 2;
    stage_chromux(s,
                  keepf("DATABASE_URL=postgresql://postgres@127.0.0.1:%u/%.*s"
                        "?sslmode=disable&gssencmode=disable",
                        tap_port(tap), (int)strcspn(name, "?"), name),
                  "REQUEST_TIMEOUT=3", "LEASE_TIMEOUT=30", NULL);
    char *id = filled(s, 3);
    tap_delay(tap, 0.25);
    check_reads(s, id);
    double began = now_seconds();
    check_status(add(s, id, "slow", 0), 201);
    check(now_seconds() - began > 0.5);
    check(journal_figure(s, "head") > 0);
    /* Slower than the client waits. */
    tap_delay(tap, slow(1.8));
    for (unsigned i = 0; i < N; i++) {
        began = now_seconds();
        a[i] = add(s, id, "late", i);
        check(now_seconds() - began < slow(5));
        check(a[i]->status == 504 || a[i]->status == 503);
        check_reads(s, id);
    }
    tap_delay(tap, 0);
    check_soon(add(s, id, "after", 0)->status == 201, 20);
    check_answers(s, id, "late", a, N);
}

/* A long statement of somebody else holds the table. */
static void a_locked_table_holds_writes_until_their_deadline(void **state)
{
    enum { N = 3 };
    struct answer *a[N];
    struct stage *s = stage_new();
    stage_chromux(s, keepf("REQUEST_TIMEOUT=%g", slow(1.5)), "LEASE_TIMEOUT=20", NULL);
    char *id = filled(s, 3);
    sql(s, "BEGIN");
    sql(s, "LOCK TABLE journal_entries IN ACCESS EXCLUSIVE MODE");
    for (unsigned i = 0; i < N; i++) {
        double began = now_seconds();
        a[i] = add(s, id, "held", i);
        check(a[i]->status == 503 || a[i]->status == 504);
        check(now_seconds() - began < slow(3));
        check_reads(s, id);
    }
    /* What lies in a transaction is not known, what waits behind it is not kept. */
    check_status(a[0], 504);
    check_status(a[N - 1], 503);
    sql(s, "COMMIT");
    check_soon(add(s, id, "after", 0)->status == 201, 10);
    check_answers(s, id, "held", a, N);
}

static void check_trouble(struct stage *s, const char *why)
{
    if (!wait_until(strstr(json_field(get(s, "/status")->body, "replication_reason"), why), 10))
        check_str(json_field(get(s, "/status")->body, "replication_reason"), why);
    check_str(json_field(get(s, "/status")->body, "replication"), "\"degraded\"");
}

/* The database's address for a user of its own, who owns no more than its schema. */
static char *limited_url(struct stage *s)
{
    char *name = strstr(s->url, "@/") + 2;
    sql(s, "DO $$ BEGIN CREATE ROLE limited LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; "
           "END $$");
    sql(s, "ALTER ROLE limited LOGIN");
    sql(s, "CREATE SCHEMA limited AUTHORIZATION limited");
    sql(s, "REVOKE ALL ON SCHEMA public FROM PUBLIC");
    sql(s, "SET search_path = limited");
    return keepf("postgresql://limited@/%s", name);
}

static void stage_limited(struct stage *s)
{
    stage_chromux(s, keepf("DATABASE_URL=%s", limited_url(s)),
                  keepf("REQUEST_TIMEOUT=%g", slow(1.5)), "LEASE_TIMEOUT=20", NULL);
}

static void a_refused_login_is_said_and_ends(void **state)
{
    struct stage *s = stage_new();
    stage_limited(s);
    char *id = filled(s, 3);
    sql(s, "ALTER ROLE limited NOLOGIN");
    sql(s, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'limited'");
    check_trouble(s, "is not permitted to log in");
    check_reads(s, id);
    struct answer *a = add(s, id, "refused", 0);
    check_status(a, 503);
    check(head_field(a->head, "Retry-After") != NULL);
    sql(s, "ALTER ROLE limited LOGIN");
    check_soon(add(s, id, "after", 0)->status == 201, 20);
    check_lacks(check_equal(s, id, 10), "refused0");
}

static void lost_rights_are_said_and_end(void **state)
{
    struct stage *s = stage_new();
    stage_limited(s);
    char *id = filled(s, 3);
    sql(s, "REVOKE INSERT ON journal_entries FROM limited");
    struct answer *a = add(s, id, "refused", 0);
    check_status(a, 503);
    check_has(a->body, "permission denied for table journal_entries");
    check_has(a->body, "not kept");
    check_trouble(s, "permission denied for table journal_entries");
    check_reads(s, id);
    sql(s, "GRANT INSERT ON journal_entries TO limited");
    check_status(add(s, id, "after", 0), 201);
    check_str(json_field(get(s, "/status")->body, "replication"), "\"on\"");
    /* The verdict can't be recorded: kept, and applied later. */
    sql(s, "REVOKE UPDATE ON journal_entries FROM limited");
    a = add(s, id, "kept", 0);
    check_status(a, 503);
    check_lacks(a->body, "not kept");
    check_trouble(s, "permission denied for table journal_entries");
    check_reads(s, id);
    sql(s, "GRANT UPDATE ON journal_entries TO limited");
    check_soon(strstr(records_on(s, 0, id), "kept0") != NULL, 10);
    check_status(add(s, id, "after", 1), 201);
    check_answers(s, id, "kept", &a, 1);
    check_str(json_field(get(s, "/status")->body, "replication"), "\"on\"");
}

/* ---- the schema ------------------------------------------------------------------------------ */

static char *applied_steps(struct stage *s)
{
    return sql(s, "SELECT string_agg(step::text, ' ' ORDER BY step) FROM chromux_schema");
}

/* All programs of two deployments, on an empty database, as a user who owns no more than its
 * schema. */
static void a_schema_is_made_once_by_all_who_start_at_once(void **state)
{
    struct stage *s = stage_new();
    const char *settings[] = {keepf("PRIMARY_URL=%s", s->server[0]->url),
                              keepf("REPLICA_URL=%s", s->server[1]->url),
                              keepf("DATABASE_URL=%s", limited_url(s)),
                              "--role",
                              "all",
                              "SYNC_DISTRIBUTED=true",
                              "MAX_WORKERS=2",
                              NULL};
    struct chromux *x[2];
    for (unsigned i = 0; i < COUNT_OF(x); i++)
        x[i] = chromux_spawn(settings);
    for (unsigned i = 0; i < COUNT_OF(x); i++)
        check_soon(strstr(chromux_log(x[i]), " listening ") != NULL, 10);
    check_soon(sql_number(s, "SELECT count(*) FROM pg_tables WHERE tablename = 'notify_lease' AND "
                             "tableowner = 'limited' AND schemaname = 'limited'") == 1,
               20);
    check_soon(sql_number(s, "SELECT epoch FROM journal_lease") == 1, 20);
    check_soon(sql_number(s, "SELECT count(*) FROM sync_workers") == 4, 20);
    check_int(sql_number(s, "SELECT count(*) - max(step) FROM chromux_schema"), 0);
    for (unsigned i = 0; i < COUNT_OF(x); i++)
        check_lacks(chromux_log(x[i]), "already exists");
}

/* A step that an older chromux has not made is made at the start; what a newer one has made is left
 * alone. */
static void a_database_of_another_version_is_brought_up_or_refused(void **state)
{
    struct stage *s = stage_raise();
    char *id = filled(s, 3), *steps = applied_steps(s);
    check_int(chromux_stop(s->x), 0);
    long newest = sql_number(s, "SELECT max(step) FROM chromux_schema");
    sql(s, "DROP TABLE notify_events, notify_messages, notify_sent, notify_mutes, notify_lease");
    sql(s, "DELETE FROM chromux_schema WHERE step = 6");
    stage_again(s);
    check_str(applied_steps(s), steps);
    check_int(sql_number(s, "SELECT count(*) FROM notify_lease"), 1);
    check_status(add(s, id, "more", 0), 201);
    check_int(chromux_stop(s->x), 0);
    sql(s, "INSERT INTO chromux_schema (step) VALUES (%ld)", newest + 1);
    s->x = chromux_start_list(s->settings);
    check_soon(strstr(get(s, "/status")->body, "made by a newer chromux") != NULL, 10);
    check_status(add(s, id, "refused", 0), 503);
    sql(s, "DELETE FROM chromux_schema WHERE step = %ld", newest + 1);
    check_soon(add(s, id, "after", 0)->status == 201, 20);
    check_lacks(check_equal(s, id, 10), "refused0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_slow_postgresql_makes_writes_slow_and_reads_not),
        STAGE_TEST(a_locked_table_holds_writes_until_their_deadline),
        STAGE_TEST(a_refused_login_is_said_and_ends),
        STAGE_TEST(lost_rights_are_said_and_end),
        STAGE_TEST(a_schema_is_made_once_by_all_who_start_at_once),
        STAGE_TEST(a_database_of_another_version_is_brought_up_or_refused),
    };
    return STAGE_RUN(tests);
}
