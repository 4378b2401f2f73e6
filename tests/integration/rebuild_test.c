/* Copies that are made anew, taken over and repaired, by the calls that sync makes
 * (sync_calls.lua): the test copies records itself, as plainly as can be, while clients write.
 *
 * Vectors here have two dimensions and the space l2: what is copied is equal to the last bit. */
#include "fixture.h"
#include "load.h"
#include "stage.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { WRITERS = 24, CHUNK = 200 };

/* ---- the calls ------------------------------------------------------------------------------- */

/* What the holder answers, as text; a call that fails ends the test unless it may. */
static char *call_may(struct stage *s, const char *kind, const char *lane, const char *instance,
                      const char *arguments)
{
    char *id = sql(s,
                   "INSERT INTO sync_calls (kind, lane, instance, arguments, until) VALUES "
                   "('%s', %s, '%s', '%s', now() + interval '20 seconds') RETURNING id",
                   kind, lane, instance, arguments);
    sql(s, "SELECT pg_notify('chromux_sync', '')");
    if (!wait_until(sql_number(s,
                               "SELECT count(*) FROM sync_calls WHERE id = %s AND answered_at IS "
                               "NOT NULL",
                               id),
                    25))
        harness_fail(__FILE__, __LINE__, "%s is not answered", kind);
    return sql(s, "SELECT done::text || ' ' || answer FROM sync_calls WHERE id = %s", id);
}

static char *call(struct stage *s, const char *kind, const char *lane, const char *instance,
                  const char *arguments)
{
    char *said = call_may(s, kind, lane, instance, arguments);
    if (strncmp(said, "true ", 5) != 0)
        harness_fail(__FILE__, __LINE__, "%s: %s", kind, said);
    return said + 5;
}

static char *unquoted(const char *json)
{
    return *json == '"' ? keep_text(json + 1, strlen(json) - 2) : keepf("%s", json);
}

static char *lane_of(struct stage *s, const char *logical)
{
    return sql(s, "SELECT lane FROM journal_collections WHERE logical = '%s'", logical);
}

/* ---- copying ----------------------------------------------------------------------------------
 */

struct job {
    struct stage *s;
    char *lane, *logical, *rebuild, *temp, *from;
    const char *instance;
    unsigned source, target; /* servers */
    long upto;
};

/* The i-th record to the n-th of a list of ids, as a list. */
static char *part_of(struct stage *s, const char *ids, unsigned i, unsigned n)
{
    return sql(s,
               "SELECT coalesce(jsonb_agg(e ORDER BY k), '[]') FROM jsonb_array_elements('%s') "
               "WITH ORDINALITY AS t(e, k) WHERE k > %u AND k <= %u",
               ids, i, i + n);
}

static void copy_records(struct job *j, const char *ids)
{
    struct answer *a = ask_server(
        j->s->server[j->source], "POST", of(j->from, "get"),
        keepf("{\"ids\":%s,\"include\":[\"documents\",\"metadatas\",\"embeddings\",\"uris\"]}",
              ids));
    check_status(a, 200);
    if (strcmp(json_field(a->body, "ids"), "[]") == 0)
        return;
    char *body =
        keepf("{\"ids\":%s,\"embeddings\":%s,\"documents\":%s,\"metadatas\":%s,\"uris\":%s}",
              json_field(a->body, "ids"), json_field(a->body, "embeddings"),
              json_field(a->body, "documents"), json_field(a->body, "metadatas"),
              json_field(a->body, "uris"));
    check_status(ask_server(j->s->server[j->target], "POST", of(j->temp, "add"), body), 201);
}

static void copy_list(struct job *j, const char *ids)
{
    for (unsigned i = 0;; i += CHUNK) {
        char *part = part_of(j->s, ids, i, CHUNK);
        if (strcmp(part, "[]") == 0)
            return;
        copy_records(j, part);
    }
}

static char *all_ids(struct stage *s, unsigned server, const char *collection)
{
    struct answer *a =
        ask_server(s->server[server], "POST", of(collection, "get"), "{\"include\":[]}");
    check_status(a, 200);
    return json_field(a->body, "ids");
}

static struct job *begin(struct stage *s, const char *logical, unsigned target, const char *more)
{
    static const char *const names[] = {"primary", "replica"};
    struct job *j = keep(sizeof *j);
    *j = (struct job){.s = s, .logical = keepf("%s", logical), .lane = lane_of(s, logical)};
    j->instance = names[target];
    j->target = target;
    j->source = !target;
    char *said = call(s, "begin", j->lane, j->instance,
                      keepf("{\"source\":\"%s\"%s}", names[!target], more));
    j->rebuild = json_field(said, "rebuild");
    j->temp = unquoted(json_field(said, "temp"));
    j->from = unquoted(json_field(said, "source_physical"));
    j->upto = atol(json_field(said, "p0"));
    return j;
}

/* The records that entries of the writers (upserts and deletes by id) have touched. */
static void copy_touched(struct job *j, long upto)
{
    char *ids = sql(j->s,
                    "SELECT coalesce(jsonb_agg(DISTINCT id), '[]') FROM journal_entries, "
                    "jsonb_array_elements(convert_from(body, 'UTF8')::jsonb -> 'ids') AS id "
                    "WHERE lane = %s AND n > %ld AND n <= %ld",
                    j->lane, j->upto, upto);
    if (strcmp(ids, "[]") != 0) {
        check_status(ask_server(j->s->server[j->target], "POST", of(j->temp, "delete"),
                                keepf("{\"ids\":%s}", ids)),
                     200);
        copy_list(j, ids);
    }
    j->upto = upto;
}

static char *finish_call(struct job *j)
{
    return call(j->s, "finish", j->lane, j->instance,
                keepf("{\"rebuild\":%s,\"upto\":%ld,\"settle\":0}", j->rebuild, j->upto));
}

/* Until it is done; what the last call said. */
static char *finish(struct job *j)
{
    for (unsigned i = 0; i < 50; i++) {
        char *said = finish_call(j);
        if (strstr(said, "\"done\":true"))
            return said;
        if (strstr(said, "\"gone\""))
            harness_fail(__FILE__, __LINE__, "%s", said);
        copy_touched(j, atol(json_field(said, "position")));
    }
    harness_fail(__FILE__, __LINE__, "it does not come to an end");
}

static char *rebuild(struct stage *s, const char *logical, unsigned target)
{
    struct job *j = begin(s, logical, target, "");
    copy_list(j, all_ids(s, j->source, j->from));
    return finish(j);
}

static long state_count(struct stage *s, const char *states)
{
    return sql_number(s, "SELECT count(*) FROM journal_rebuilds WHERE state IN (%s)", states);
}

/* ---- writers --------------------------------------------------------------------------------- */

static const char *write_request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[1024];
    char body[300];
    bool deletes = n % 7 == 6;
    if (deletes)
        snprintf(body, sizeof body, "{\"ids\":[\"r%u\"]}", (client * 37 + n * 11) % 1000);
    else
        snprintf(body, sizeof body,
                 "{\"ids\":[\"r%u\"],\"embeddings\":[[%u,%u.25]],\"documents\":[\"d%u\"],"
                 "\"metadatas\":[{\"n\":%u,\"k%u\":true}]}",
                 (client * 37 + n * 11) % 1000, client, n, n, n, n % 3);
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/%s HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             (const char *)arg, deletes ? "delete" : "upsert", strlen(body), body);
    return text;
}

static bool write_right(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    return status == 200;
}

static const char *read_request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[512];
    static const char body[] = "{\"ids\":[\"stays\"],\"include\":[\"documents\"]}";
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/get HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             (const char *)arg, sizeof body - 1, body);
    return text;
}

static bool read_right(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    return status == 200 && strstr(body, "[\"stays\"]") != NULL;
}

static char *filled(struct stage *s, const char *name)
{
    char *id = create(s, name);
    for (unsigned i = 0; i < 1000; i += 250)
        check_status(post(s, of(id, "add"), records_body("r", i, 250, "")), 201);
    check_status(post(s, of(id, "add"), "{\"ids\":[\"stays\"],\"embeddings\":[[1,2]]}"), 201);
    check_caught_up(s, 10);
    return id;
}

/* ---- the tests ------------------------------------------------------------------------------- */

static void a_copy_is_made_anew_under_writes(void **state)
{
    struct stage *s = stage_raise();
    char *id = filled(s, "traffic");
    char *old = physical(s, 1, id);
    struct load *writers =
        load_start(s->x->port, WRITERS, &(struct load_plan){write_request, write_right, id, 0.04});
    struct load *readers =
        load_start(s->x->port, 2, &(struct load_plan){read_request, read_right, id, 0.005});
    check_soon(load_good(writers) > 100, 10);
    struct job *j = begin(s, id, 1, "");
    check(strcmp(j->temp, old) != 0);
    check_str(physical(s, 1, id), old); /* which serves on */
    copy_list(j, all_ids(s, 0, j->from));
    char *said = finish(j);
    check_soon(strcmp(physical(s, 1, id), j->temp) == 0, 1);
    unsigned before = load_good(writers);
    check_soon(load_good(writers) > before + 100, 10);
    check_int(load_bad(writers), 0);
    check_int(load_bad(readers), 0);
    load_stop(writers);
    load_stop(readers);
    double held = atof(json_field(said, "hold_ms"));
    if (held > 200)
        harness_fail(__FILE__, __LINE__, "the source was held for %.1f ms", held);
    check_equal(s, id, 10);
    /* The old one goes, the new one gets the name, and nothing is left. */
    check_soon(state_count(s, "'done'") == 1, 10);
    check_str(collections_on(s, 1), "traffic");
    check_status(ask_server(s->server[1], "POST", of(old, "get"), "{}"), 404);
    check_status(get(s, "/collections/traffic"), 200);
    /* Asked again, it says what is. */
    check_has(finish_call(j), "\"done\":true");
}

/* All that a server says of a collection beside its id and records. */
static char *shape(struct stage *s, unsigned server, const char *name)
{
    struct answer *a = ask_server(s->server[server], "GET", keepf("/collections/%s", name), NULL);
    check_status(a, 200);
    const char *schema = json_field(a->body, "schema");
    return canonical(
        s, keepf("[%s,%s,%s,%s]", json_field(a->body, "dimension"), json_field(a->body, "metadata"),
                 json_field(a->body, "configuration_json"), *schema ? schema : "null"));
}

/* A collection with rules of its own for what is indexed, and metadata; NULL: an older server. */
static char *make_ruled(struct stage *s)
{
    const char *schema = json_field(get(s, "/collections/shaped")->body, "schema");
    if (!*schema)
        return NULL;
    schema =
        sql(s, "SELECT jsonb_set('%s', '{defaults,string,string_inverted_index,enabled}', 'false')",
            schema);
    struct answer *a =
        post(s, "/collections",
             keepf("{\"name\":\"ruled\",\"metadata\":{\"b\":2},\"schema\":%s}", schema));
    check_status(a, 200);
    char *id = keep_text(json_field(a->body, "id") + 1, 36);
    check_status(post(s, of(id, "add"), records_body("x", 0, 3, "")), 201);
    check_caught_up(s, 10);
    check_has(shape(s, 1, "ruled"),
              "\"string_inverted_index\": {\"config\": {}, \"enabled\": false}");
    return id;
}

static void a_wiped_server_is_made_whole(void **state)
{
    struct stage *s = stage_raise();
    check_status(ask(s, "POST", "/api/v2/tenants", "{\"name\":\"tea\"}"), 200);
    check_status(ask(s, "POST", "/api/v2/tenants/tea/databases", "{\"name\":\"green\"}"), 200);
    struct answer *a = post(s, "/collections",
                            "{\"name\":\"shaped\",\"metadata\":{\"a\":1,\"hnsw:space\":\"ip\"}}");
    check_status(a, 200);
    char *shaped = keep_text(json_field(a->body, "id") + 1, 36), *id = filled(s, "one");
    check_status(post(s, of(shaped, "add"), records_body("x", 0, 3, "")), 201);
    check_status(post(s, of(shaped, "delete"), "{\"ids\":[\"x0\",\"x1\",\"x2\"]}"), 200);
    check_caught_up(s, 10);
    char *was = shape(s, 1, "shaped"), *ruled = make_ruled(s), *ruled_was = NULL;
    if (ruled)
        ruled_was = shape(s, 1, "ruled");
    chroma_kill(s->server[1]);
    check(run_program((const char *const[]){"rm", "-rf", s->server[1]->folder, NULL}, NULL, 10)
              .status == 0);
    chroma_again(s->server[1]);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE instance = 'replica' AND "
                             "state = 'rebuild'") == 3 + (ruled != NULL),
               10);
    /* Not before its catalogue is there again. */
    check_has(call_may(s, "begin", lane_of(s, id), "replica", "{\"source\":\"primary\"}"),
              "false ");
    check_has(call(s, "member", "0", "replica", "{}"), "\"ok\":true");
    check_status(ask_server(s->server[1], "GET", "/api/v2/tenants/tea/databases/green", NULL), 200);
    char *later = create(s, "later"); /* goes its usual way again */
    check_soon(strstr(collections_on(s, 1), "later") != NULL, 10);
    rebuild(s, id, 1);
    rebuild(s, shaped, 1);
    if (ruled) {
        rebuild(s, ruled, 1);
        check_str(shape(s, 1, "ruled"), ruled_was);
    }
    check_soon(state_count(s, "'done'") == 2 + (ruled != NULL), 10);
    check_str(collections_on(s, 1), collections_on(s, 0));
    check_str(shape(s, 1, "shaped"), was);
    check_has(was,
              "[2, {\"a\": 1, \"hnsw:space\": \"ip\"}"); /* the dimension, though it is empty */
    check_status(post(s, of(later, "add"), records_body("r", 0, 3, "")), 201);
    for (unsigned i = 0; i < 3; i++)
        check_equal(s, ((char *[]){id, shaped, later})[i], 10);
}

static void what_interrupts_a_rebuild_leaves_nothing_behind(void **state)
{
    struct stage *s = stage_raise();
    char *id = filled(s, "one");
    /* The holder dies. */
    struct job *j = begin(s, id, 1, "");
    check_has(collections_on(s, 1), "chromux-temp-");
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 10));
    stage_again(s);
    check_has(finish_call(j), "another balancer took the lease");
    check_soon(strcmp(collections_on(s, 1), "one") == 0, 10);
    /* The collection is renamed. */
    j = begin(s, id, 1, "");
    check_status(ask(s, "PUT", keepf("/collections/%s", id), "{\"new_name\":\"two\"}"), 200);
    check_has(finish_call(j), "\"gone\":\"a catalogue operation");
    check_soon(strcmp(collections_on(s, 1), "two") == 0, 10);
    /* The target begins a new life. */
    j = begin(s, id, 1, "");
    chroma_kill(s->server[1]);
    chroma_again(s->server[1]);
    check_soon(strstr(finish_call(j), "replica began a new life") != NULL, 10);
    check_soon(strcmp(collections_on(s, 1), "two") == 0, 10);
    /* It is given up, and then it succeeds. */
    j = begin(s, id, 1, "");
    check_has(call(s, "abandon", j->lane, "replica", keepf("{\"rebuild\":%s}", j->rebuild)),
              "\"ok\":true");
    check_soon(strcmp(collections_on(s, 1), "two") == 0, 10);
    rebuild(s, id, 1);
    check_equal(s, id, 10);
    /* Without another good copy nothing is begun. */
    call(s, "mark", lane_of(s, id), "replica", "{\"reason\":\"a test\"}");
    check_has(call_may(s, "begin", lane_of(s, id), "primary", "{\"source\":\"replica\"}"),
              "no_source");
    check_has(call_may(s, "mark", lane_of(s, id), "primary", "{\"reason\":\"a test\"}"),
              "no_source");
}

static void just_the_records_that_differ_are_repaired(void **state)
{
    struct stage *s = stage_raise();
    char *id = filled(s, "one"), *copy = physical(s, 1, id);
    struct chroma *replica = s->server[1];
    check_status(post(s, of(id, "add"), records_body("q", 0, 50, "")), 201);
    check_caught_up(s, 10);
    check_status(ask_server(replica, "POST", of(copy, "delete"), "{\"ids\":[\"q1\"]}"), 200);
    check_status(ask_server(replica, "POST", of(copy, "update"),
                            "{\"ids\":[\"q2\"],\"metadatas\":[{\"behind\":\"back\"}]}"),
                 200);
    check_status(ask_server(replica, "POST", of(copy, "add"),
                            "{\"ids\":[\"extra\"],\"embeddings\":[[7,7]]}"),
                 201);
    struct load *writers =
        load_start(s->x->port, WRITERS, &(struct load_plan){write_request, write_right, id, 0.04});
    check_soon(load_good(writers) > 100, 10);
    const char *ids = "\"ids\":[\"q0\",\"q1\",\"q2\",\"extra\",\"q3\",\"stays\",\"nobody\"]";
    char *said =
        call(s, "confirm", lane_of(s, id), "replica", keepf("{\"authority\":\"primary\",%s}", ids));
    check_str(json_field(said, "equal"), "4");
    check_str(json_field(said, "repaired"), "0");
    check_str(sql(s,
                  "SELECT string_agg(e ->> 'id' || ' ' || (e ->> 'how'), ', ' ORDER BY e ->> 'id') "
                  "FROM jsonb_array_elements('%s') AS e",
                  json_field(said, "differing")),
              "extra extra, q1 missing, q2 changed");
    said = call(s, "confirm", lane_of(s, id), "replica",
                keepf("{\"authority\":\"primary\",\"repair\":true,%s}", ids));
    check_str(json_field(said, "repaired"), "3");
    said = call(s, "confirm", lane_of(s, id), "replica",
                keepf("{\"authority\":\"primary\",\"repair\":true,%s}", ids));
    check_str(json_field(said, "equal"), "7");
    check_str(json_field(said, "repaired"), "0");
    check_int(load_bad(writers), 0);
    load_stop(writers);
    check_equal(s, id, 10);
    check_str(physical(s, 1, id), copy);
}

static void fill_before(struct chroma *c)
{
    char *id = chroma_create(c, "stood", 1000);
    chroma_add(c, id, 0, 20);
}

/* What stood on the replica before is made equal where it stands. */
static void a_copy_that_stood_before_is_taken_over(void **state)
{
    struct stage *s = stage_new();
    fill_before(s->server[0]);
    fill_before(s->server[1]);
    char *name = keepf("%s", "stood");
    char *there = keep_text(
        json_field(ask_server(s->server[1], "GET", "/collections/stood", NULL)->body, "id") + 1,
        36);
    check_status(ask_server(s->server[1], "POST", of(there, "delete"), "{\"ids\":[\"r3\"]}"), 200);
    stage_chromux(s, NULL);
    char *id = keep_text(json_field(get(s, keepf("/collections/%s", name))->body, "id") + 1, 36);
    check_str(sql(s, "SELECT state FROM journal_copies WHERE instance = 'replica' AND lane = %s",
                  lane_of(s, id)),
              "unverified");
    struct job *j = begin(s, id, 1, ",\"adopt\":true");
    check_str(j->temp, there);
    copy_records(j, "[\"r3\"]");
    finish(j);
    check_equal(s, id, 10);
    check_str(physical(s, 1, id), there);
    check_status(ask_server(s->server[1], "GET", "/collections/stood", NULL), 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_copy_is_made_anew_under_writes),
        STAGE_TEST(a_wiped_server_is_made_whole),
        STAGE_TEST(what_interrupts_a_rebuild_leaves_nothing_behind),
        STAGE_TEST(just_the_records_that_differ_are_repaired),
        STAGE_TEST(a_copy_that_stood_before_is_taken_over),
    };
    return STAGE_RUN(tests);
}
