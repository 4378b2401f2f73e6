/* What clients see of the journal, and what both servers hold afterwards: against a plain Chroma
 * server that is asked the same. */
#include "stage.h"
#include "tap.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define BIG "9223372036854775807"

/* A collection behind chromux and one on a server that chromux does not know, asked alike. */
struct twin {
    struct stage *s;
    struct chroma *plain;
    char *id, *plain_id;
};

static struct twin *twin_raise(const char *body)
{
    struct twin *t = keep(sizeof *t);
    t->s = stage_raise();
    t->plain = chroma_start(keepf("%s/plain", temp_folder()));
    struct answer *a = post(t->s, "/collections", body);
    check_status(a, 200);
    t->id = keep_text(json_field(a->body, "id") + 1, 36);
    a = ask_server(t->plain, "POST", "/collections", body);
    check_status(a, 200);
    t->plain_id = keep_text(json_field(a->body, "id") + 1, 36);
    return t;
}

/* An error text names the collection by the id that was asked. */
static char *with_id(const char *text, const char *id, const char *as)
{
    char *copy = keepf("%s", text);
    for (char *at = copy; (at = strstr(at, id)) != NULL; at += 36)
        memcpy(at, as, 36);
    return copy;
}

/* The same of both: status and body. Returns chromux's answer. */
static struct answer *same(struct twin *t, const char *verb, const char *body)
{
    const char *method = body ? "POST" : "GET";
    struct answer *a = ask(t->s, method, of(t->id, verb), body);
    struct answer *b = ask_server(t->plain, method, of(t->plain_id, verb), body);
    if (a->status != b->status)
        harness_fail(__FILE__, __LINE__, "%s %.300s: %d %s, and Chroma says %d %s", verb, body,
                     a->status, a->body, b->status, b->body);
    const char *wanted = with_id(b->body, t->plain_id, t->id);
    if (*wanted == '{' || *wanted == '[')
        check_str(canonical(t->s, a->body), canonical(t->s, wanted));
    else
        check_str(a->body, wanted);
    check_int(a->body_len, strlen(a->body));
    return a;
}

static char *records_of_plain(struct twin *t)
{
    struct chroma *first = t->s->server[0];
    char *id = physical(t->s, 0, t->id);
    t->s->server[0] = t->plain;
    sql(t->s, "UPDATE journal_copies SET physical = '%s' WHERE physical = '%s'", t->plain_id, id);
    char *text = records_on(t->s, 0, t->id);
    sql(t->s, "UPDATE journal_copies SET physical = '%s' WHERE physical = '%s'", id, t->plain_id);
    t->s->server[0] = first;
    return text;
}

static void check_all_three(struct twin *t)
{
    check_str(check_equal(t->s, t->id, 5), records_of_plain(t));
}

static void writes_land_on_both_servers(void **state)
{
    struct twin *t = twin_raise("{\"name\":\"ccc\",\"metadata\":{\"a\":1,\"b\":\"x\"}}");
    check_caught_up(t->s, 5);
    char *one = physical(t->s, 0, t->id), *other = physical(t->s, 1, t->id);
    check_int(strlen(one), 36);
    check_int(strlen(other), 36);
    check(strcmp(one, other) != 0);
    check_str(t->id, one); /* the first to make it names it */

    same(t, "add",
         "{\"ids\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\"],\"embeddings\":[[1,2],[3,4],[5,6],[7,8],"
         "[9,10],[11,12]],\"documents\":[\"apple\",\"bread\",\"apple pie\",null,\"eel\",\"fig\"],"
         "\"metadatas\":[{\"k\":1},{\"k\":2},{\"k\":1},null,{\"k\":3},{\"k\":3}]}");
    same(t, "add", "{\"ids\":[\"a\",\"g\"],\"embeddings\":[[50,60],[70,80]]}");
    same(t, "upsert",
         "{\"ids\":[\"a\",\"h\"],\"embeddings\":[[0.1,1e-7],[3.25,4]],"
         "\"metadatas\":[{\"k\":9,\"l\":true},null]}");
    same(t, "update", "{\"ids\":[\"b\",\"none\"],\"documents\":[\"brioche\",\"nothing\"]}");
    same(t, "update", "{\"ids\":[\"c\"],\"metadatas\":[{\"k\":null,\"m\":\"x\"}]}");
    check_all_three(t);
    same(t, "delete", "{\"ids\":[\"h\",\"none\"]}");
    same(t, "delete", "{\"where\":{\"k\":3}}");
    same(t, "delete", "{\"where_document\":{\"$contains\":\"pie\"}}");
    same(t, "delete", "{\"where\":{\"k\":77}}");
    same(t, "delete", "{\"ids\":[\"a\",\"b\"],\"where\":{\"k\":2}}");
    same(t, "delete", "{}");
    check_lacks(check_equal(t->s, t->id, 5), "\"c\"");
    check_all_three(t);
    check_int(sql_number(t->s, "SELECT count(*) FROM journal_entries WHERE action = 'delete' AND "
                               "resolved IS NOT NULL"),
              4);
    /* What Chroma refuses is refused in its words, and reaches nobody. */
    same(t, "add", "{\"ids\":[\"z\"],\"embeddings\":[[1,2,3]]}");
    same(t, "add", "{\"ids\":[\"z\"]}");
    same(t, "add", "no json");
    same(t, "upsert", "{\"ids\":[\"y\",\"y\"],\"embeddings\":[[1,2],[3,4]]}");
    same(t, "delete", "{\"ids\":[]}");
    same(t, "delete", "{\"where\":{\"$bad\":1}}");
    same(t, "get", "{\"include\":[\"data\"]}");
    check_all_three(t);
    same(t, "get", "{}");
    same(t, "count", NULL);
    same(t, "query", "{\"query_embeddings\":[[3,4]],\"n_results\":3}");
}

/* Servers up to 1.5.2 do not know the limit; chromux keeps to it with them as well. */
static void a_limited_delete_deletes_the_same_on_both(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    char *body = records_body("r", 0, 9,
                              ",\"documents\":[\"a\",\"b\",\"a\",\"b\",\"a\",\"a\",\"a\","
                              "\"b\",\"a\"]");
    check_status(post(s, of(id, "add"), body), 201);
    check_status(
        post(s, of(id, "delete"), "{\"where_document\":{\"$contains\":\"a\"},\"limit\":3}"), 200);
    check_str(get(s, of(id, "count"))->body, "6");
    check_equal(s, id, 5);
}

/* Servers up to 1.5.2 do not look at such a limit, later ones refuse it; none deletes less. */
static void a_limit_without_a_filter_is_for_chroma_to_judge(void **state)
{
    struct twin *t = twin_raise("{\"name\":\"ccc\"}");
    check_status(same(t, "add", records_body("r", 0, 4, "")), 201);
    same(t, "delete", "{\"limit\":1}");
    same(t, "count", NULL);
    same(t, "delete", "{\"ids\":[\"r0\",\"r1\"],\"limit\":1}");
    same(t, "count", NULL);
    check_all_three(t);
}

static void every_type_of_value_arrives_unchanged(void **state)
{
    struct twin *t = twin_raise("{\"name\":\"ccc\",\"metadata\":{\"big\":" BIG "}}");
    check_status(
        same(t, "add",
             "{\"metadatas\":[{\"big\":" BIG
             ",\"odd\":9007199254740993,\"least\":-9223372036854775808,"
             "\"one\":1,\"real\":1.0,\"tiny\":1e-300,\"yes\":true,\"no\":false,\"text\":\"\"},"
             "{\"\\u00e9\\ud83d\\ude00\":\"\\u4e2d\xe4\xb8\xad\\\"\\\\\\n\"}],"
             "\"uris\":[\"file:///x\",null],\"documents\":[\"\xc3\xa9\\u0001\\t/\\/\",null],"
             "\"embeddings\":[[0.1,-0.0,3.4028234e38],[1e-45,16777217,0.30000001192092896]],"
             "\"ids\":[\"i \\u20ac\",\"\\\"quoted\\\"\"]}"),
        201);
    same(t, "upsert",
         "{\"ids\":[\"i \xe2\x82\xac\"],\"embeddings\":[[1,2,3]],"
         "\"metadatas\":[{\"yes\":null,\"real\":2.0}]}");
    /* 1.5, -2.25, 0.1 as little-endian floats */
    same(t, "add", "{\"ids\":[\"b64\"],\"embeddings\":[\"AADAPwAAEMDNzMw9\"]}");
    same(t, "update",
         "{\"ids\":[\"b64\",\"\\\"quoted\\\"\"],\"embeddings\":[null,[4,5,6]],"
         "\"metadatas\":[{\"n\":1.0},null]}");
    check_all_three(t);
    const char *all = check_equal(t->s, t->id, 5);
    check_has(all, "\"big\": " BIG);
    check_has(all, "\"odd\": 9007199254740993");
    check_has(all, "\"one\": 1,");
    check_has(all, "\"n\": 1.0");
    check_has(all, "\"b64\", [1.5, -2.25, 0.1");
    struct answer *a = get(t->s, "/collections/ccc");
    check_has(a->body, "\"big\":" BIG);
}

/* Cosine vectors are stored normalised: the same input gives the same bits on every server. */
static void cosine_vectors_are_the_same_bits(void **state)
{
    struct twin *t =
        twin_raise("{\"name\":\"ccc\",\"configuration\":{\"hnsw\":{\"space\":\"cosine\"}}}");
    char *vectors = keepf("%s", "");
    for (unsigned i = 0; i < 64; i++)
        vectors = keepf("%s%s[%.7g,%.7g,%.7g]", vectors, i ? "," : "", i / 7.0, 1.0 / (i + 1),
                        i * i / 13.0 - 7);
    char *ids = json_field(records_body("r", 0, 64, ""), "ids");
    same(t, "add", keepf("{\"ids\":%s,\"embeddings\":[%s]}", ids, vectors));
    check_all_three(t);
}

static void bodies_arrive_byte_for_byte(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap[2] = {tap_start(s->server[0]->port), tap_start(s->server[1]->port)};
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap[0])),
                  keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap[1])), NULL);
    char *id = create(s, "ccc");
    static const char *const bodies[] = {
        "{ \"metadatas\" : [ {\"b\":1.0, \"a\":1,\"a2\":" BIG "} ],\n\t\"ids\":[\"x\\u00e9\"] ,"
        "\"unknown\":{\"z\":[1,2.50,null]},\"embeddings\":[[1.50,2e0]]  }",
        "{\"embeddings\":[\"AADAPwAAEMA=\"],\"ids\":[\"\xc3\xa9\"],\"documents\":[\"\\/\"]}",
    };
    for (unsigned i = 0; i < COUNT_OF(bodies); i++)
        check_status(post(s, of(id, "add?odd=%20%2F"), bodies[i]), 201);
    check_equal(s, id, 5);
    for (unsigned k = 0; k < 2; k++)
        for (unsigned i = 0; i < COUNT_OF(bodies); i++) {
            char *seen = tap_seen(tap[k]);
            check_has(seen, keepf("\r\n\r\n%s", bodies[i]));
            check_has(seen, keepf("POST %s HTTP/1.1\r\n",
                                  keepf(CHROMA_DB "%s", of(physical(s, k, id), "add?odd=%20%2F"))));
        }
}

/* ---- ids ------------------------------------------------------------------------------------- */

static char *upper(const char *id)
{
    char *out = keepf("%s", id);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
    return out;
}

static char *bare(const char *id)
{
    char *out = keep(37), *to = out;
    for (; *id; id++)
        if (*id != '-')
            *to++ = *id;
    return out;
}

static void ids_are_taken_in_any_spelling(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    const char *const spelled[] = {id, upper(id), bare(id), bare(upper(id))};
    for (unsigned i = 0; i < COUNT_OF(spelled); i++) {
        const char *as = spelled[i];
        check_status(post(s, of(as, "add"), records_body("r", 4 * i, 4, "")), 201);
        check_status(post(s, of(as, "upsert"), records_body("r", 4 * i, 1, "")), 200);
        check_status(post(s, of(as, "update"), records_body("r", 4 * i, 1, "")), 200);
        check_status(post(s, of(as, "delete"), keepf("{\"ids\":[\"r%u\"]}", 4 * i)), 200);
        struct answer *a = get(s, of(as, "count"));
        check_status(a, 200);
        check_str(a->body, keepf("%u", 3 * (i + 1)));
        check_status(post(s, of(as, "get"), "{}"), 200);
        check_status(post(s, of(as, "query"), "{\"query_embeddings\":[[1,2]]}"), 200);
        check_status(ask(s, "PUT", keepf("/collections/%s", as), "{\"new_metadata\":{\"n\":1}}"),
                     200);
        struct answer *by_id = get(s, keepf("/collections/by-id/%s", as));
        check_status(by_id, 200);
        check_str(json_field(by_id->body, "id"), keepf("\"%s\"", id));
        check_status(post(s, of(as, "fork"), "{\"new_name\":\"forked\"}"), 501);
        /* What a server says of them depends on its age, and never on the spelling. */
        static const char *const others[] = {"search", "indexing_status", "fork_count"};
        for (unsigned k = 0; k < COUNT_OF(others); k++) {
            const char *method = k ? "GET" : "POST", *body = k ? NULL : "{\"searches\":[]}";
            char *on = physical(s, 0, id);
            a = ask(s, method, of(as, others[k]), body);
            check_status(a, ask_server(s->server[0], method, of(on, others[k]), body)->status);
            check_lacks(a->body, physical(s, 1, id));
        }
    }
    check_equal(s, id, 5);
    check_str(collections_on(s, 0), "ccc");
}

static void errors_name_the_logical_id(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    static const char unknown[] = "01234567-89ab-4def-8123-456789abcdef";
    check_status(get(s, keepf("/collections/by-id/%s", upper(unknown))), 404);
    check_status(ask(s, "PUT", keepf("/collections/%s", upper(unknown)), "{}"), 404);
    check_status(post(s, "/api/v2/tenants", "{\"name\":\"other\"}"), 200);
    check_status(post(s, "/api/v2/tenants/other/databases", "{\"name\":\"ddd\"}"), 200);
    check_status(post(s, "/api/v2/tenants/default_tenant/databases", "{\"name\":\"ddd\"}"), 200);
    static const char *const verbs[] = {"add", "upsert", "update", "delete", "get", "query"};
    static const char *const places[] = {"other/databases/ddd", "default_tenant/databases/ddd",
                                         "other/databases/default_database",
                                         "nobody/databases/default_database"};
    for (unsigned i = 0; i < COUNT_OF(verbs); i++) {
        const char *body = i < 3    ? records_body("r", 0, 1, "")
                           : i == 5 ? "{\"query_embeddings\":[[1,2]]}"
                                    : "{\"ids\":[\"r0\"]}";
        for (unsigned k = 0; k < COUNT_OF(places); k++) {
            struct answer *a =
                post(s, keepf("/api/v2/tenants/%s%s", places[k], of(id, verbs[i])), body);
            check_status(a, 404);
            check_has(a->body, "NotFoundError");
            check_has(a->body, id);
        }
        struct answer *a = post(s, of(unknown, verbs[i]), body);
        check_status(a, 404);
        check_has(a->body, unknown);
        /* Whatever its spelling, it is named as Chroma does. */
        a = post(s, of(bare(upper(unknown)), verbs[i]), body);
        check_status(a, 404);
        check_has(a->body,
                  keepf("Collection [%s] does not exist", unknown)); /* "exists" to 1.5.2 */
        check_has(ask_server(s->server[0], "POST", of(bare(upper(unknown)), verbs[i]), body)->body,
                  keepf("Collection [%s] does not exist", unknown));
        a = post(s, of("no-uuid", verbs[i]), body);
        struct answer *b = ask_server(s->server[0], "POST", of("no-uuid", verbs[i]), body);
        check_status(a, b->status);
        check_str(json_field(a->body, "message"), json_field(b->body, "message"));
    }
    check_status(ask(s, "PUT", "/collections/no-uuid", "{\"new_name\":\"ddd\"}"), 400);
    check_status(get(s, keepf("/api/v2/tenants/other/databases/ddd%s", of(id, "count"))), 404);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0"), 0);
    /* Deleted past chromux: what the server says names its own id, and the client sees its own. */
    check_caught_up(s, 5);
    char *other = physical(s, 1, id);
    check_status(ask_server(s->server[0], "DELETE", "/collections/ccc", NULL), 200);
    check_status(ask_server(s->server[1], "DELETE", "/collections/ccc", NULL), 200);
    struct answer *a = post(s, of(id, "get"), "{}");
    check(a->status >= 400);
    check_lacks(a->body, other);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE state = 'rebuild'") > 0, 5);
}

/* ---- the catalogue --------------------------------------------------------------------------- */

static unsigned list(struct stage *s, const char *query, char *ids[], unsigned most)
{
    struct answer *a = get(s, keepf("/collections%s", query));
    unsigned n = 0;
    check_status(a, 200);
    for (const char *at = a->body; n < most && (at = strstr(at, "\"id\":\"")) != NULL; at += 6)
        ids[n++] = keep_text(at + 6, 36);
    return n;
}

static void collections_are_listed_in_one_order(void **state)
{
    enum { N = 12 };
    struct stage *s = stage_raise();
    char *made[N], *all[N + 1], *again[N + 1];
    for (unsigned i = 0; i < N; i++)
        made[i] = create(s, keepf("col%u", i));
    check_str(get(s, CHROMA_DB "/collections_count")->body, "12");
    check_int(list(s, "", all, N + 1), N);
    for (unsigned i = 0; i < N; i++) {
        bool found = false;
        for (unsigned k = 0; k < N; k++)
            found = found || strcmp(made[i], all[k]) == 0;
        check(found);
    }
    /* Pages of the other server as well: in the same order, whole, each once. */
    for (unsigned round = 0; round < 2; round++) {
        unsigned n = 0;
        for (unsigned offset = 0; offset < N + 5; offset += 5)
            n += list(s, keepf("?limit=5&offset=%u", offset), again + n, N + 1 - n);
        check_int(n, N);
        for (unsigned i = 0; i < N; i++)
            check_str(again[i], all[i]);
        check_int(list(s, "?offset=10", again, N + 1), 2);
        check_int(list(s, "?limit=0", again, N + 1), 0);
        /* Whatever else the query says, their ids are those that clients know. */
        check_int(list(s, "?other=1&l%69mit=%31&offset=3", again, N + 1), 1);
        check_str(again[0], all[3]);
        check_status(get(s, "/collections?limit=99999999999"), 400);
        check_status(get(s, "/collections?limit="), 400);
        check_caught_up(s, 5);
        chroma_kill(s->server[0]);
        chromux_wait_healthy(s->x, 1);
    }
}

/* Chroma takes any up to 1.5.2, later ones limit those of databases; the catalogue would stand
 * still for everybody behind one that can't be kept. */
static void a_name_that_cannot_be_kept_is_refused(void **state)
{
    struct stage *s = stage_raise();
    char name[9001];
    for (unsigned i = 0; i < sizeof name - 1; i++) /* nothing that could be compressed */
        name[i] = (char)('a' + (i * 2654435761u >> 13) % 26);
    name[sizeof name - 1] = 0;
    const char *bad[] = {keepf("{\"name\":\"%s\"}", name), "{\"name\":\"a\\u0000b\"}"};
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        check_status(post(s, "/api/v2/tenants", bad[i]), 400);
        check_status(post(s, "/api/v2/tenants/default_tenant/databases", bad[i]), 400);
    }
    name[801] = 0;
    check_status(post(s, keepf("/api/v2/tenants/%s/databases", name), "{\"name\":\"ddd\"}"), 400);
    name[800] = 0;
    check_status(post(s, "/api/v2/tenants", keepf("{\"name\":\"%s\"}", name)), 200);
    const char *databases = keepf("/api/v2/tenants/%s/databases", name);
    struct answer *a = post(s, databases, keepf("{\"name\":\"%s\"}", name));
    check_status(
        a,
        ask_server(s->server[0], "POST", databases, keepf("{\"name\":\"%s\"}", name))->status == 400
            ? 400
            : 200);
    char collection[513];
    memcpy(collection, name, 512);
    collection[512] = 0;
    if (a->status == 200)
        check_status(post(s, keepf("%s/%s/collections", databases, name),
                          keepf("{\"name\":\"%s\"}", collection)),
                     200);
    /* Text that is no UTF-8, and names that collections have while they are deleted. */
    check_status(post(s, "/api/v2/tenants/%ff/databases", "{\"name\":\"ddd\"}"), 400);
    check_status(post(s, "/collections", "{\"name\":\"chromux-tomb-1\"}"), 400);
}

static void collections_are_named_renamed_and_deleted(void **state)
{
    struct twin *t = twin_raise("{\"name\":\"ccc\",\"metadata\":{\"m\":1}}");
    struct stage *s = t->s;
    char *body = keepf("%s", "{\"name\":\"ccc\",\"get_or_create\":true,\"metadata\":{\"m\":2}}");
    struct answer *a = post(s, "/collections", body);
    check_status(a, 200);
    check_has(a->body, t->id);
    check_has(a->body, "\"m\":1");
    a = post(s, "/collections", "{\"name\":\"ccc\"}");
    struct answer *b = ask_server(t->plain, "POST", "/collections", "{\"name\":\"ccc\"}");
    check_status(a, b->status);
    check_str(a->body, b->body);
    a = get(s, "/collections/none");
    b = ask_server(t->plain, "GET", "/collections/none", NULL);
    check_status(a, b->status);
    check_str(json_field(a->body, "error"), json_field(b->body, "error"));
    check_has(a->body, "Collection [none] does not exist"); /* "exists" up to 1.5.2 */
    a = get(s, "/collections/ccc");
    check_status(a, 200);
    check_has(a->body, t->id);
    check_caught_up(s, 5);
    check_lacks(a->body, physical(s, 1, t->id));
    create(s, "taken");
    check_status(ask_server(t->plain, "POST", "/collections", "{\"name\":\"taken\"}"), 200);
    a = ask(s, "PUT", keepf("/collections/%s", t->id), "{\"new_name\":\"taken\"}");
    b = ask_server(t->plain, "PUT", keepf("/collections/%s", t->plain_id),
                   "{\"new_name\":\"taken\"}");
    check_status(a, b->status);
    check_str(a->body, b->body);
    check_status(ask(s, "PUT", keepf("/collections/%s", t->id), "{\"new_name\":\"ddd\"}"), 200);
    check_status(get(s, "/collections/ccc"), 404);
    check_has(get(s, "/collections/ddd")->body, t->id);
    check_status(post(s, of(t->id, "add"), records_body("r", 0, 2, "")), 201);
    a = ask(s, "PUT", keepf("/collections/%s", t->id), "{\"new_metadata\":{}}");
    b = ask_server(t->plain, "PUT", keepf("/collections/%s", t->plain_id), "{\"new_metadata\":{}}");
    check_status(a, b->status);
    check_str(a->body, b->body);
    check_caught_up(s, 5);
    check_str(collections_on(s, 0), "ddd\ntaken");
    check_str(collections_on(s, 1), "ddd\ntaken");
    /* The name is free again, and what the old id says is 404. */
    check_status(ask(s, "DELETE", "/collections/none", NULL), 404);
    check_status(ask(s, "DELETE", "/collections/ddd", NULL), 200);
    check_status(ask(s, "DELETE", "/collections/ddd", NULL), 404);
    check_status(post(s, of(t->id, "add"), records_body("r", 0, 2, "")), 404);
    check_status(get(s, of(t->id, "count")), 404);
    char *fresh = create(s, "ddd");
    check(strcmp(fresh, t->id) != 0);
    check_str(get(s, of(fresh, "count"))->body, "0");
    check_caught_up(s, 5);
    check_str(collections_on(s, 0), "ddd\ntaken");
    check_str(collections_on(s, 1), "ddd\ntaken");
}

static void tenants_and_databases_are_made_on_both(void **state)
{
    struct stage *s = stage_raise();
    check_status(post(s, "/api/v2/tenants", "{\"name\":\"t \xc3\xa9\"}"), 200);
    check_status(post(s, "/api/v2/tenants", "{\"name\":\"t \xc3\xa9\"}"), 409);
    check_status(get(s, "/api/v2/tenants/t%20%c3%A9"), 200);
    check_status(get(s, "/api/v2/tenants/nobody"), 404);
    check_status(post(s, "/api/v2/tenants/t%20%C3%A9/databases", "{\"name\":\"d.d\"}"), 200);
    check_status(post(s, "/api/v2/tenants/t%20%C3%A9/databases", "{\"name\":\"d.d\"}"), 409);
    check_has(get(s, "/api/v2/tenants/t%20%C3%A9/databases")->body, "\"d.d\"");
    static const char there[] = "/api/v2/tenants/t%20%C3%A9/databases/d%2Ed";
    check_status(get(s, there), 200);
    struct answer *a = post(s, keepf("%s/collections", there), "{\"name\":\"ccc\"}");
    check_status(a, 200);
    char *id = keep_text(json_field(a->body, "id") + 1, 36);
    check_status(post(s, keepf("%s%s", there, of(id, "add")), records_body("r", 0, 3, "")), 201);
    check_str(get(s, keepf("%s%s", there, of(id, "count")))->body, "3");
    check_caught_up(s, 5);
    for (unsigned i = 0; i < 2; i++) {
        check_status(ask_server(s->server[i], "GET", there, NULL), 200);
        check_str(ask_server(s->server[i], "GET",
                             keepf("%s%s", there, of(physical(s, i, id), "count")), NULL)
                      ->body,
                  "3");
    }
    check_status(ask(s, "DELETE", there, NULL), 200);
    check_status(ask(s, "DELETE", there, NULL), 404);
    check_status(get(s, keepf("%s%s", there, of(id, "count"))), 404);
    check_caught_up(s, 5);
    for (unsigned i = 0; i < 2; i++)
        check_status(ask_server(s->server[i], "GET", there, NULL), 404);
    check_int(sql_number(s, "SELECT count(*) FROM journal_collections WHERE NOT deleted"), 0);
}

static void reset_needs_leave(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    struct answer *a = post(s, "/api/v2/reset", "");
    check_status(a, 403);
    check_has(a->body, "Reset is disabled by config");
    check_status(get(s, of(id, "count")), 200);
    check_int(chromux_stop(s->x), 0);
    stage_chromux(s, "ALLOW_RESET=true", NULL);
    check_status(post(s, "/api/v2/tenants/default_tenant/databases", "{\"name\":\"ddd\"}"), 200);
    check_status(post(s, of(id, "add"), records_body("r", 0, 3, "")), 201);
    a = post(s, "/api/v2/reset", "");
    check_status(a, 200);
    check_str(a->body, "true");
    check_status(get(s, of(id, "count")), 404);
    check_str(get(s, "/collections")->body, "[]");
    check_caught_up(s, 5);
    for (unsigned i = 0; i < 2; i++) {
        check_str(collections_on(s, i), "");
        check_status(
            ask_server(s->server[i], "GET", "/api/v2/tenants/default_tenant/databases/ddd", NULL),
            404);
    }
    id = create(s, "ccc");
    check_status(post(s, of(id, "add"), records_body("r", 0, 3, "")), 201);
    check_equal(s, id, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(writes_land_on_both_servers),
        STAGE_TEST(a_limited_delete_deletes_the_same_on_both),
        STAGE_TEST(a_limit_without_a_filter_is_for_chroma_to_judge),
        STAGE_TEST(every_type_of_value_arrives_unchanged),
        STAGE_TEST(cosine_vectors_are_the_same_bits),
        STAGE_TEST(bodies_arrive_byte_for_byte),
        STAGE_TEST(ids_are_taken_in_any_spelling),
        STAGE_TEST(errors_name_the_logical_id),
        STAGE_TEST(collections_are_listed_in_one_order),
        STAGE_TEST(collections_are_named_renamed_and_deleted),
        STAGE_TEST(a_name_that_cannot_be_kept_is_refused),
        STAGE_TEST(tenants_and_databases_are_made_on_both),
        STAGE_TEST(reset_needs_leave),
    };
    return STAGE_RUN(tests);
}
