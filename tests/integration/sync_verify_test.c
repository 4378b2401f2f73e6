/* Sync compares copies, repairs single records, takes over what stands on a server, and makes anew
 * what differs too much. */
#include "load.h"
#include "syncing.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A comparison of the copy on the replica, asked for by hand, and its end. The job's number. */
static long verify(struct stage *s, const char *id, bool dry_run)
{
    long job =
        sql_number(s,
                   "INSERT INTO sync_jobs (kind, lane, instance, asked_by, dry_run) SELECT "
                   "'verify', lane, 'replica', 'a test', %s FROM journal_collections WHERE "
                   "logical = '%s' ON CONFLICT (lane, instance, kind) WHERE state NOT IN ('done', "
                   "'failed', 'cancelled') DO UPDATE SET asked_by = 'a test' RETURNING id",
                   dry_run ? "true" : "false", id);
    check_soon(
        sql_number(s, "SELECT count(*) FROM sync_jobs WHERE id = %ld AND state = 'done'", job) == 1,
        30);
    return job;
}

static char *outcome(struct stage *s, long job)
{
    return sql(s,
               "SELECT differences || ' differ, ' || repaired || ' repaired' FROM sync_jobs "
               "WHERE id = %ld",
               job);
}

/* Ids on the replica in the order in which it has them, but for those that were repaired. */
static char *order_on_replica(struct stage *s, const char *id, const char *but)
{
    struct answer *a =
        ask_server(s->server[1], "POST", of(physical(s, 1, id), "get"), "{\"include\":[]}");
    check_status(a, 200);
    return sql(s,
               "SELECT string_agg(i, ' ' ORDER BY n) FROM json_array_elements_text('%s'::json) "
               "WITH ORDINALITY AS t(i, n) WHERE i <> ALL (string_to_array('%s', ' '))",
               json_field(a->body, "ids"), but);
}

static void on_replica(struct stage *s, const char *id, const char *verb, const char *body)
{
    struct answer *a = ask_server(s->server[1], "POST", of(physical(s, 1, id), verb), body);
    check(a->status == 200 || a->status == 201);
}

static void equal_copies_are_proven_equal_again_and_again(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "same");
    check_status(post(s, of(id, "add"), records_body("r", 0, 1000, "")), 201);
    check_status(post(s, of(id, "add"), records_body("r", 1000, 500, "")), 201);
    /* An instance that is gone holds up nobody. */
    sql(s, "INSERT INTO sync_jobs (kind, lane, instance, source, state) SELECT 'rebuild', lane, "
           "'gone', 'primary', 'copying' FROM journal_collections");
    sync_process(s, "worker", "SYNC_INTERVAL=1");
    check_soon(
        sql_number(s, "SELECT count(*) FROM sync_collections WHERE proven_equal_at IS NOT NULL") ==
            1,
        20);
    check_int(sync_jobs(s, "rebuild", "cancelled"), 1);
    char *first = sql(s, "SELECT proven_equal_at FROM sync_collections");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_collections WHERE proven_equal_at > '%s'",
                          first) == 1,
               20);
    check_str(
        sql(s,
            "SELECT primary_document_count || ' ' || replica_document_count || ' ' || sync_status "
            "|| ' ' || differences FROM sync_collections"),
        "1500 1500 synced 0");
    /* One clean comparison is remembered, not each. */
    check(sync_jobs(s, "verify", "done") <= 1);
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE differences > 0"), 0);
}

static void what_was_changed_behind_its_back_is_repaired_exactly(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "tampered"), *other = create(s, "other");
    check_status(post(s, of(id, "add"), records_body("r", 0, 200, "")), 201);
    check_status(
        post(s, of(id, "add"),
             "{\"ids\":[\"m\",\"d\"],\"embeddings\":[[1,2],[3,4]],\"documents\":[null,\"text\"],"
             "\"metadatas\":[{\"x\":1},{\"y\":\"z\"}]}"),
        201);
    check_status(post(s, of(other, "add"), records_body("r", 0, 50, "")), 201);
    check_caught_up(s, 10);
    char *right = records_on(s, 0, id), *others = records_on(s, 1, other);
    sync_process(s, "worker", NULL);
    on_replica(s, id, "update", "{\"ids\":[\"r3\"],\"embeddings\":[[3,3.5000002]]}");
    on_replica(s, id, "update", "{\"ids\":[\"m\"],\"metadatas\":[{\"x\":1.0}]}");
    on_replica(s, id, "update", "{\"ids\":[\"d\"],\"documents\":[\"text \"]}");
    on_replica(s, id, "delete", "{\"ids\":[\"r5\",\"r6\"]}");
    on_replica(s, id, "add", "{\"ids\":[\"stranger\"],\"embeddings\":[[0,0]]}");
    const char *touched = "r3 m d r5 r6 stranger";
    char *tampered = records_on(s, 1, id), *order = order_on_replica(s, id, touched);
    check(strcmp(tampered, right) != 0);
    check_str(outcome(s, verify(s, id, true)), "6 differ, 0 repaired");
    check_str(records_on(s, 1, id), tampered);
    check_str(outcome(s, verify(s, id, false)), "6 differ, 6 repaired");
    check_str(records_on(s, 1, id), right);
    check_str(records_on(s, 0, id), right);
    check_str(order_on_replica(s, id, touched), order); /* nothing else was written anew */
    check_str(records_on(s, 1, other), others);
    check_str(outcome(s, verify(s, id, false)), "0 differ, 0 repaired");
    check_int(
        sql_number(s, "SELECT count(*) FROM sync_collections WHERE proven_equal_at IS NOT NULL"),
        1);
    check_int(sync_jobs(s, "rebuild", "done"), 0);
    check_int(sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'repaired'"), 1);
    /* What is said of the collection itself is compared, and that it differs is no proof. */
    check_status(ask_server(s->server[1], "PUT", keepf("/collections/%s", physical(s, 1, id)),
                            "{\"new_metadata\":{\"k\":2}}"),
                 200);
    long job = verify(s, id, false);
    check_str(outcome(s, job), "0 differ, 0 repaired");
    check_has(sql(s, "SELECT error FROM sync_jobs WHERE id = %ld", job), "its metadata are others");
    check_str(sql(s, "SELECT sync_status FROM sync_collections WHERE collection_id = '%s'", id),
              "different");
}

/* A record that no server takes (its vector holds NaN, as base64) is on the right one only. */
static void what_cannot_be_repaired_is_told_and_not_tried_for_ever(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "odd");
    check_status(post(s, of(id, "add"), records_body("r", 0, 50, "")), 201);
    check_caught_up(s, 10);
    sync_process(s, "worker", NULL);
    check_status(ask_server(s->server[0], "POST", of(physical(s, 0, id), "add"),
                            "{\"ids\":[\"nan\"],\"embeddings\":[\"AADAfwAAgD8=\"]}"),
                 201);
    on_replica(s, id, "delete", "{\"ids\":[\"r5\"]}");
    long job = verify(s, id, false);
    check_str(outcome(s, job), "2 differ, 1 repaired");
    check_has(sql(s, "SELECT error FROM sync_jobs WHERE id = %ld", job), "NaN");
    check_str(sql(s, "SELECT sync_status || ' ' || (proven_equal_at IS NULL) FROM "
                     "sync_collections"),
              "different true");
    check_int(count_lines(records_on(s, 1, id), "\n"), 50);
    /* Nor is the copy made anew without it: that fails at once, and people are told. */
    chroma_wipe(s->server[1]);
    sync_check_jobs(s, "rebuild", "failed", 1, 20);
    check_int(sql_number(s, "SELECT attempts FROM sync_jobs WHERE kind = 'rebuild'"), 0);
    check_soon(
        sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'rebuild_failed'") == 1, 10);
}

static void a_copy_that_differs_too_much_is_made_anew(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ruined");
    check_status(post(s, of(id, "add"), records_body("r", 0, 400, "")), 201);
    check_caught_up(s, 10);
    char *right = records_on(s, 0, id);
    sync_process(s, "worker", NULL);
    on_replica(s, id, "upsert", records_body("r", 50, 200, ",\"documents\":null"));
    for (unsigned from = 0; from < 200; from += 100)
        on_replica(s, id, "add", records_body("x", from, 100, ""));
    verify(s, id, false);
    sync_check_jobs(s, "rebuild", "done", 1, 20);
    check_equal(s, id, 10);
    check_str(records_on(s, 1, id), right);
}

/* On either side of the comparison, and whichever is the one that the other is compared with. */
static void a_collection_that_somebody_deleted_is_made_anew(void **state)
{
    struct stage *s = stage_raise();
    static const char *const name[] = {"of_primary", "of_replica"};
    for (unsigned on = 0; on < 2; on++) {
        char *id = create(s, name[on]);
        check_status(post(s, of(id, "add"), records_body("r", 0, 50, "")), 201);
        check_caught_up(s, 10);
        char *right = records_on(s, !on, id);
        char path[200];
        snprintf(path, sizeof path, CHROMA_DB "/collections/%s", name[on]);
        check_status(ask_server(s->server[on], "DELETE", path, NULL), 200);
        if (on == 0)
            sync_process(s, "worker", NULL);
        verify(s, id, false);
        sync_check_jobs(s, "rebuild", "done", on + 1, 30);
        check_equal(s, id, 10);
        check_str(records_on(s, on, id), right);
    }
}

/* Each writer changes the same few records over and over. */
static const char *request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[1024];
    char body[300];
    snprintf(body, sizeof body, "{\"ids\":[\"r%u\",\"n%u-%u\"],\"embeddings\":[[%u,1],[1,%u]]}",
             (n * 17 + client) % 1000, client, n % 50, n, n);
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/upsert HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             (const char *)arg, strlen(body), body);
    return text;
}

static bool right_answer(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    (void)client, (void)n, (void)body, (void)arg;
    return status == 200;
}

static void writes_in_flight_are_no_difference(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "busy");
    check_status(post(s, of(id, "add"), records_body("r", 0, 1000, "")), 201);
    struct load_plan plan = {request, right_answer, id, 0.005};
    struct load *l = load_start(s->x->port, 4, &plan);
    sync_process(s, "worker", "SYNC_INTERVAL=1");
    check_soon(load_good(l) > 100, 20);
    for (int i = 0; i < 4; i++)
        check_str(outcome(s, verify(s, id, false)), "0 differ, 0 repaired");
    load_stop(l);
    check_int(load_bad(l), 0);
    check_int(sql_number(s, "SELECT COALESCE(sum(differences), 0) FROM sync_jobs"), 0);
    check_int(sync_jobs(s, "rebuild", "done"), 0);
    check_equal(s, id, 20);
}

static void what_stood_on_a_server_is_mended_and_taken_over(void **state)
{
    struct stage *s = stage_new();
    char *ids[2];
    for (unsigned i = 0; i < 2; i++) {
        ids[i] = chroma_create(s->server[i], "standing", 1000);
        chroma_add(s->server[i], ids[i], 0, 300);
    }
    /* The second one lacks some, has others, and has one that is not the same. */
    struct answer *a =
        ask_server(s->server[1], "POST", of(ids[1], "delete"), "{\"ids\":[\"r3\",\"r4\"]}");
    check_status(a, 200);
    chroma_add(s->server[1], ids[1], 300, 310);
    a = ask_server(s->server[1], "POST", of(ids[1], "update"),
                   "{\"ids\":[\"r9\"],\"documents\":[\"other\"]}");
    check_status(a, 200);
    stage_chromux(s, NULL);
    sync_process(s, "worker", NULL);
    check_soon(sync_jobs(s, "adopt", "done") == 1, 20);
    check_str(sql(s, "SELECT repaired::text FROM sync_jobs"), "13");
    check_equal(s, ids[0], 20);
    check_str(physical(s, 1, ids[0]), ids[1]);
    check_status(post(s, of(ids[0], "delete"), "{\"ids\":[\"r1\"]}"), 200);
    check_int(count_lines(check_equal(s, ids[0], 20), "\n"), 299);
}

/* Of another's data nothing is deleted or overwritten. */
static void what_stood_on_a_server_and_is_another_is_kept(void **state)
{
    struct stage *s = stage_new();
    char *id = chroma_create(s->server[0], "standing", 1000);
    chroma_add(s->server[0], id, 0, 100);
    char *others = chroma_create(s->server[1], "standing", 1000);
    chroma_add(s->server[1], others, 60, 200);
    char *before = ask_server(s->server[1], "POST", of(others, "get"), "{}")->body;
    stage_chromux(s, "SYNC_INTERVAL=1", NULL);
    sync_process(s, "worker", NULL);
    check_soon(sync_jobs(s, "rebuild", "done") == 1, 20);
    check_equal(s, id, 20);
    check(strcmp(physical(s, 1, id), others) != 0);
    check_str(ask_server(s->server[1], "POST", of(others, "get"), "{}")->body, before);
    char *name = keepf("standing-aside-%.8s", others);
    struct answer *a = ask_server(s->server[1], "GET", keepf("/collections/%s", name), NULL);
    check_status(a, 200);
    check_has(a->body, others);
    check_soon(strstr(json_field(get(s, "/status")->body, "journal"), name) != NULL, 20);
    check_int(sql_number(s, "SELECT count(*) FROM failover_events WHERE event_type = "
                            "'not_adopted' AND from_instance = 'replica'"),
              1);
}

static char *configuration(struct stage *s, unsigned n)
{
    char *text = keepf("return { CHECK_INTERVAL = 0.2, LEASE_TIMEOUT = 2, WRITE_HORIZON = 2,\n"
                       "  JOURNAL_KEEP = 0, instances = {\n");
    for (unsigned i = 0; i < n; i++)
        text = keepf("%s  { name = \"%s\", url = \"%s\" },\n", text, i ? "replica" : "primary",
                     s->server[i]->url);
    return keepf("%s} }\n", text);
}

static void an_instance_that_is_added_by_a_reload_gets_everything(void **state)
{
    struct stage *s = stage_new();
    const char *file = keepf("%s/chromux.lua", temp_folder());
    const char *database = keepf("DATABASE_URL=%s", s->url);
    write_file(file, configuration(s, 1));
    s->x = chromux_start("--config", file, database, NULL);
    const char *const list[] = {"--config", file, database, "--role", "worker", NULL};
    struct chromux *worker = chromux_spawn(list);
    check_soon(strstr(json_field(get(s, "/status")->body, "journal"), "\"state\":\"on\"") != NULL,
               20);
    char *id = create(s, "early");
    check_status(post(s, of(id, "add"), records_body("r", 0, 700, "")), 201);
    /* What it would be fed is not in the journal any more. */
    check_soon(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0") == 0, 20);
    write_file(file, configuration(s, 2));
    chromux_reload(s->x);
    chromux_signal(worker, SIGHUP);
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 700);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(equal_copies_are_proven_equal_again_and_again),
        STAGE_TEST(what_was_changed_behind_its_back_is_repaired_exactly),
        STAGE_TEST(what_cannot_be_repaired_is_told_and_not_tried_for_ever),
        STAGE_TEST(a_copy_that_differs_too_much_is_made_anew),
        STAGE_TEST(a_collection_that_somebody_deleted_is_made_anew),
        STAGE_TEST(writes_in_flight_are_no_difference),
        STAGE_TEST(what_stood_on_a_server_is_mended_and_taken_over),
        STAGE_TEST(what_stood_on_a_server_and_is_another_is_kept),
        STAGE_TEST(an_instance_that_is_added_by_a_reload_gets_everything),
    };
    return STAGE_RUN(tests);
}
