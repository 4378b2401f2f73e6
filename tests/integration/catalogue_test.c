/* What becomes of operations on tenants, databases and collections when servers answer with errors
 * after they have done them. */
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
                  keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap[1])), NULL);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(an_error_after_the_deed_is_no_refusal),
    };
    return STAGE_RUN(tests);
}
