/* Tenants, databases and collections: operations that servers answer with errors after they have
 * done them, and what stands on servers before the journal begins. */
#include "stage.h"
#include "tap.h"

#include <stdio.h>
#include <string.h>

static struct tap *tap[2];

static struct stage *behind_taps(void)
{
    struct stage *s = stage_new();
    for (unsigned i = 0; i < 2; i++)
        tap[i] = tap_start(s->server[i]->port);
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap[0])),
                  keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap[1])), "SYNC_INTERVAL=1",
                  "REQUEST_TIMEOUT=30", NULL);
    return s;
}

static void spoil(const char *part)
{
    tap_spoil_answers(tap[0], part);
    tap_spoil_answers(tap[1], part);
}

static char *verdicts(struct stage *s)
{
    return sql(s, "SELECT string_agg(verdict || ' ' || status, ', ' ORDER BY n) FROM "
                  "journal_entries WHERE lane = 0");
}

static void check_answer(struct stage *s, const struct answer *a, int status)
{
    if (a->status != status)
        print_message("verdicts: %s\n", verdicts(s));
    check_status(a, status);
}

/* Every server does it, and says that it failed. */
static void an_error_after_the_deed_is_no_refusal(void **state)
{
    struct stage *s = behind_taps();
    char *id = create(s, "before");
    check_status(post(s, of(id, "add"), records_body("r", 0, 2, "")), 201);
    spoil("PUT ");
    char *path = keepf("/collections/%s", id);
    check_answer(s, ask(s, "PUT", path, "{\"new_name\":\"after\"}"), 200);
    check_answer(s, ask(s, "PUT", path, "{\"new_metadata\":{\"k\":1.5,\"l\":\"m\"}}"), 200);
    check_answer(s, ask(s, "PUT", path, "{\"new_configuration\":{\"hnsw\":{\"ef_search\":77}}}"),
                 200);
    spoil("POST /api/v2/tenants HTTP");
    check_answer(s, post(s, "/api/v2/tenants", "{\"name\":\"someone\"}"), 200);
    spoil("/databases HTTP");
    check_answer(s, post(s, "/api/v2/tenants/someone/databases", "{\"name\":\"some\"}"), 200);
    spoil("/collections HTTP");
    char *made = create(s, "made");
    spoil(NULL);
    check_status(get(s, "/collections/before"), 404);
    struct answer *a = get(s, "/collections/after");
    check_status(a, 200);
    check_str(canonical(s, json_field(a->body, "metadata")), "{\"k\": 1.5, \"l\": \"m\"}");
    check_status(post(s, of(made, "add"), records_body("r", 0, 1, "")), 201);
    check_caught_up(s, 5);
    for (unsigned i = 0; i < 2; i++) {
        check_str(collections_on(s, i), "after\nmade");
        a = ask_server(s->server[i], "GET", "/collections/after", NULL);
        check_str(canonical(s, json_field(a->body, "metadata")), "{\"k\": 1.5, \"l\": \"m\"}");
        check_has(a->body, "\"ef_search\":77");
        check_status(
            ask_server(s->server[i], "GET", "/api/v2/tenants/someone/databases/some", NULL), 200);
    }
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict <> 'applied'"), 0);
    check_int(sql_number(s, "SELECT count(*) FROM journal_copies WHERE state <> 'ready'"), 0);
    check_equal(s, id, 5);
}

/* Every server makes it, says that it failed, and answers with errors when it is asked what it has:
 * nobody will ever know, and what comes behind it does not wait for that. */
static void what_no_server_can_tell_holds_up_nobody(void **state)
{
    struct stage *s = behind_taps();
    create(s, "before");
    check_caught_up(s, 5);
    spoil("POST ");
    check_answer(s, post(s, "/collections", "{\"name\":\"dark\"}"), 500);
    spoil(NULL);
    check_str(sql(s, "SELECT verdict FROM journal_entries WHERE n = 2"), "failed");
    check_status(get(s, "/collections/dark"), 404);
    char *id = create(s, "after");
    check_status(post(s, of(id, "add"), records_body("r", 0, 2, "")), 201);
    check_equal(s, id, 5);
    /* It may hold what somebody else has written: it stays, and is shown. */
    check_soon(strstr(get(s, "/status")->body, "\"name\":\"dark\""), 10);
    /* But the name is free: what that create has left, which is empty, makes way. */
    id = create(s, "dark");
    check_status(post(s, of(id, "add"), records_body("r", 0, 2, "")), 201);
    check_status(get(s, "/collections/dark"), 200);
}

/* What a server says of a body with a name that is there, chromux says too, and nothing is made. */
static void a_create_of_what_is_there_is_checked_as_chroma_does(void **state)
{
    static const char *const more[] = {
        "",
        ",\"metadata\":null,\"configuration\":null",
        ",\"metadata\":{\"k\":1},\"configuration\":{\"hnsw\":{\"space\":\"cosine\"}}",
        ",\"metadata\":5",
        ",\"metadata\":{}",
        ",\"configuration\":{\"hnsw\":{\"space\":\"nope\"}}",
        ",\"configuration\":{\"hnsw\":{\"space\":\"l2\"},\"spann\":{\"space\":\"l2\"}}",
        ",\"metadata\":{\"hnsw:space\":\"nope\"}",
        ",\"unknown\":1",
    };
    struct stage *s = stage_raise();
    char *id = create(s, "there");
    unsigned refused = 0;
    check_caught_up(s, 5);
    for (unsigned i = 0; i < COUNT_OF(more); i++) {
        char *body = keepf("{\"name\":\"there\",\"get_or_create\":true%s}", more[i]);
        struct answer *said = ask_server(s->server[0], "POST", "/collections", body);
        struct answer *a = post(s, "/collections", body);
        check_int(a->status, said->status);
        if (a->status == 200) {
            check_str(json_field(a->body, "id"), keepf("\"%s\"", id));
            check_str(json_field(a->body, "metadata"), "null");
        } else {
            check_str(a->body, said->body);
            refused++;
        }
    }
    check_int(refused, 5);
    check_str(collections_on(s, 0), "there");
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = 0"), 1);
}

/* ---- what stands there already --------------------------------------------------------------- */

#define ACME "/api/v2/tenants/acme/databases"

static void make(struct stage *s, unsigned i, const char *path, const char *name)
{
    check_status(ask_server(s->server[i], "POST", path, keepf("{\"name\":\"%s\"}", name)), 200);
}

/* Two records in a collection, past chromux; its id. */
static char *stand(struct stage *s, unsigned i, const char *database, const char *name,
                   const char *more)
{
    char *path = keepf("%s/collections", database);
    struct answer *a = ask_server(s->server[i], "POST", path, keepf("{\"name\":\"%s\"}", name));
    check_status(a, 200);
    char *id = keep_text(json_field(a->body, "id") + 1, 36);
    check_status(ask_server(s->server[i], "POST", keepf("%s/%s/add", path, id),
                            records_body("r", 0, 2, more)),
                 201);
    return id;
}

static const char *state_of(struct stage *s, const char *name, const char *instance)
{
    return sql(s,
               "SELECT state FROM journal_copies JOIN journal_collections USING (lane) WHERE name "
               "= '%s' AND instance = '%s'",
               name, instance);
}

/* A tenant with one collection that is equal on both, one that is not, and a database that only the
 * primary has. */
static char *stand_tenant(struct stage *s)
{
    for (unsigned i = 0; i < 2; i++) {
        make(s, i, "/api/v2/tenants", "acme");
        make(s, i, ACME, "prod");
    }
    make(s, 0, ACME, "other");
    char *equal = stand(s, 0, ACME "/prod", "equal", "");
    stand(s, 0, ACME "/prod", "differs", "");
    stand(s, 1, ACME "/prod", "equal", "");
    stand(s, 1, ACME "/prod", "differs", ",\"documents\":[\"a\",\"b\"]");
    stand(s, 1, ACME "/prod", "stranger", "");
    return equal;
}

static void check_tenant(struct stage *s, const char *equal)
{
    check_str(state_of(s, "equal", "primary"), "ready");
    check_str(state_of(s, "equal", "replica"), "ready");
    check_str(state_of(s, "differs", "primary"), "ready");
    check_lacks("ready", state_of(s, "differs", "replica"));
    char *of_equal = keepf(ACME "/prod/collections/%s", equal);
    struct answer *a = get(s, ACME "/prod/collections");
    check_has(a->body, equal);
    check_int(count_lines(canonical(s, a->body), "stranger"), 0);
    check_status(post(s, keepf("%s/add", of_equal), records_body("n", 0, 1, "")), 201);
    check_str(get(s, keepf("%s/count", of_equal))->body, "3");
    check_status(post(s, ACME "/other/collections", "{\"name\":\"made\"}"), 200);
    check_soon(strcmp(state_of(s, "made", "replica"), "ready") == 0, 5);
    check_status(ask_server(s->server[1], "GET", ACME "/other/collections/made", NULL), 200);
    /* What nobody named is shown and stays. */
    check_soon(strstr(get(s, "/status")->body, "\"name\":\"stranger\""), 10);
    check_status(ask_server(s->server[1], "GET", ACME "/prod/collections/stranger", NULL), 200);
}

static void tenants_that_are_named_are_taken_over(void **state)
{
    struct stage *s = stage_new();
    char *equal = stand_tenant(s), *mine = stand(s, 0, CHROMA_DB, "mine", "");
    stage_chromux(s, "ADOPT_TENANTS=nobody, acme", "SYNC_INTERVAL=1", NULL);
    check_status(get(s, of(mine, "count")), 200);
    check_tenant(s, equal);
    check_has(chromux_log(s->x), "there is no tenant nobody");
}

/* Nobody knows of it until an operator says so. */
static void a_tenant_is_taken_over_later(void **state)
{
    struct stage *s = stage_new();
    char *equal = stand_tenant(s), *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, "return {}\n");
    stage_chromux(s, "--config", file, "SYNC_INTERVAL=1", NULL);
    char *count = keepf(ACME "/prod/collections/%s/count", equal);
    check_status(get(s, count), 404);
    check_str(get(s, ACME "/prod/collections")->body, "[]");
    create(s, "own");
    write_file(file, "return { ADOPT_TENANTS = \"acme\" }\n");
    chromux_reload(s->x);
    check_soon(get(s, count)->status == 200, 10);
    check_tenant(s, equal);
    /* What was made there since by others, at the next start. */
    char *late = stand(s, 0, ACME "/prod", "late", "");
    check_int(chromux_stop(s->x), 0);
    stage_again(s);
    check_soon(get(s, keepf(ACME "/prod/collections/%s/count", late))->status == 200, 10);
    check_soon(strcmp(state_of(s, "late", "replica"), "rebuild") == 0, 5);
    check_int(sql_number(s, "SELECT count(*) FROM journal_collections WHERE name = 'equal'"), 1);
}

/* PostgreSQL could not hold it: said, and the rest is there. */
static void a_name_that_cannot_be_kept_stops_no_start(void **state)
{
    struct stage *s = stage_new();
    char *mine = stand(s, 0, CHROMA_DB, "mine", ""), *large = keep(3001);
    memset(large, 'n', 3000);
    if (ask_server(s->server[0], "POST", "/api/v2/tenants/default_tenant/databases",
                   "{\"name\":\"nul\\u0000nul\"}")
            ->status == 400) {
        print_message("this Chroma takes no such names: skipped\n");
        skip();
    }
    make(s, 0, "/api/v2/tenants/default_tenant/databases", large);
    make(s, 0, "/api/v2/tenants/default_tenant/databases", "fine");
    stage_chromux(s, NULL);
    check_str(get(s, of(mine, "count"))->body, "2");
    check_status(
        post(s, "/api/v2/tenants/default_tenant/databases/fine/collections", "{\"name\":\"some\"}"),
        200);
    check_soon(sql_number(s, "SELECT count(*) FROM failover_events WHERE event_type = "
                             "'not_adopted' AND from_instance = 'primary'") > 0,
               5);
    check_has(chromux_log(s->x), "the database \\\"nnnnn");
    check_has(chromux_log(s->x), "nul\\\\u0000nul");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(an_error_after_the_deed_is_no_refusal),
        STAGE_TEST(what_no_server_can_tell_holds_up_nobody),
        STAGE_TEST(a_create_of_what_is_there_is_checked_as_chroma_does),
        STAGE_TEST(tenants_that_are_named_are_taken_over),
        STAGE_TEST(a_tenant_is_taken_over_later),
        STAGE_TEST(a_name_that_cannot_be_kept_stops_no_start),
    };
    return STAGE_RUN(tests);
}
