/* Many and large: clients that create at once, bodies of 40 MB, deletes of 90,000 ids, collections
 * by the hundred.
 *
 * TEST_ROUNDS=20 makes it a long run: ten times as many records and collections. */
#include "fixture.h"
#include "load.h"
#include "stage.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { CREATORS = 30, ADDERS = 8 };

static bool long_run(void)
{
    return getenv("TEST_ROUNDS") && atoi(getenv("TEST_ROUNDS")) >= 20;
}

/* ---- many clients ---------------------------------------------------------------------------- */

struct crowd {
    int port;
    atomic_uint next, statuses[6]; /* by hundreds; 0: no answer, or something else */
    atomic_uint conflicts;
    void (*act)(struct crowd *c, unsigned client);
};

static int send_catalogue(struct crowd *c, const char *method, const char *path, const char *body)
{
    char head[512];
    snprintf(head, sizeof head,
             "%s " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\nConnection: close\r\n\r\n",
             method, path, strlen(body));
    int status = load_once(c->port, head, body, strlen(body));
    atomic_fetch_add(&c->statuses[status / 100 < 6 ? status / 100 : 0], 1);
    if (status == 409 || status == 404)
        atomic_fetch_add(&c->conflicts, 1);
    return status;
}

static void *crowd_main(void *arg)
{
    struct crowd *c = arg;
    c->act(c, atomic_fetch_add(&c->next, 1));
    return NULL;
}

static struct crowd *crowd_run(struct stage *s, unsigned n,
                               void (*act)(struct crowd *c, unsigned client))
{
    struct crowd *c = keep(sizeof *c);
    pthread_t thread[CREATORS];
    c->port = s->x->port;
    c->act = act;
    for (unsigned i = 0; i < n; i++)
        check(pthread_create(&thread[i], NULL, crowd_main, c) == 0);
    for (unsigned i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
    return c;
}

static void check_fine(struct crowd *c, unsigned n)
{
    unsigned fine = atomic_load(&c->statuses[2]);
    if (fine != n)
        harness_fail(__FILE__, __LINE__, "%u of %u were answered 2xx, %u 4xx, %u 5xx, %u not", fine,
                     n, atomic_load(&c->statuses[4]), atomic_load(&c->statuses[5]),
                     atomic_load(&c->statuses[0]));
}

static void create_one(struct crowd *c, unsigned client)
{
    char body[64];
    snprintf(body, sizeof body, "{\"name\":\"crowd%u\"}", client);
    send_catalogue(c, "POST", "/collections", body);
}

static void thirty_creates_at_once_are_all_there(void **state)
{
    struct stage *s = stage_raise();
    struct crowd *c = crowd_run(s, CREATORS, create_one);
    check_fine(c, CREATORS);
    for (unsigned i = 0; i < CREATORS; i++) {
        struct answer *a = get(s, keepf("/collections/crowd%u", i));
        check_status(a, 200);
        check_status(get(s, of(keep_text(json_field(a->body, "id") + 1, 36), "count")), 200);
    }
    check_caught_up(s, 10);
    check_int(count_lines(collections_on(s, 0), "crowd"), CREATORS);
    check_str(collections_on(s, 0), collections_on(s, 1));
}

static void churn(struct crowd *c, unsigned client)
{
    for (unsigned n = 0; n < 10; n++)
        if ((client + n) % 3 == 0)
            send_catalogue(c, "DELETE", "/collections/same", "");
        else
            send_catalogue(c, "POST", "/collections", "{\"name\":\"same\"}");
}

static void one_name_made_and_deleted_by_many_stays_one(void **state)
{
    struct stage *s = stage_raise();
    struct crowd *c = crowd_run(s, 6, churn);
    check_int(atomic_load(&c->statuses[2]) + atomic_load(&c->conflicts), 60);
    check(atomic_load(&c->statuses[2]) > 1 && atomic_load(&c->conflicts) > 1);
    struct answer *a = get(s, "/collections/same");
    bool there = a->status == 200;
    check_caught_up(s, 10);
    for (unsigned i = 0; i < 2; i++)
        check_str(collections_on(s, i), there ? "same" : "");
    check_int(sql_number(s, "SELECT count(*) FROM journal_collections WHERE NOT deleted"), there);
    if (!there)
        create(s, "same");
    char *id = keep_text(json_field(get(s, "/collections/same")->body, "id") + 1, 36);
    check_status(post(s, of(id, "add"), records_body("r", 0, 3, "")), 201);
    check_equal(s, id, 5);
}

static const char *shared; /* the collection of these writers */

static void write_some(struct crowd *c, unsigned client)
{
    char path[128], body[256];
    snprintf(path, sizeof path, "/collections/%s/add", shared);
    for (unsigned n = 0; n < 10; n++) {
        snprintf(body, sizeof body,
                 "{\"ids\":[\"c%u-%u\"],\"embeddings\":[[%u,1%s]],\"metadatas\":[{\"big\":"
                 "9223372036854775807,\"one\":1,\"real\":1.0}]}",
                 client, n, client, (client + n) % 10 ? "" : ",2");
        send_catalogue(c, "POST", path, body);
    }
}

/* Writes that wait for each other go together; one that Chroma refuses is refused alone. */
static void writers_that_share_a_request_get_answers_of_their_own(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "shared");
    shared = id;
    check_status(post(s, of(id, "add"), records_body("r", 0, 1, "")), 201);
    struct crowd *c = crowd_run(s, CREATORS, write_some);
    check_int(atomic_load(&c->statuses[2]), CREATORS * 9);
    check_int(atomic_load(&c->statuses[4]), CREATORS);
    char *all = check_equal(s, id, 10);
    check_int(count_lines(all, "[\""), CREATORS * 9 + 1);
    check_int(count_lines(all, "{\"big\": 9223372036854775807, \"one\": 1, \"real\": 1.0}"),
              CREATORS * 9);
    for (unsigned i = 0; i < CREATORS; i++)
        check_lacks(all, keepf("\"c%u-%u\"", i, (10 - i % 10) % 10));
    check(journal_figure(s, "coalescing_ratio") > 1.2);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict = 'rejected'"),
              CREATORS);
}

static char **many;
static unsigned many_count;

static void add_one(struct crowd *c, unsigned client)
{
    static const char body[] = "{\"ids\":[\"r\"],\"embeddings\":[[1,2]]}";
    char path[128];
    for (unsigned i = client; i < many_count; i += ADDERS) {
        snprintf(path, sizeof path, "/collections/%s/add", many[i]);
        send_catalogue(c, "POST", path, body);
    }
}

static void many_collections_are_served(void **state)
{
    unsigned wanted = long_run() ? 10000 : 1000;
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=60", NULL);
    many = keep(sizeof *many * wanted);
    many_count = wanted;
    for (unsigned i = 0; i < wanted; i++)
        many[i] = create(s, keepf("many%u", i));
    check_fine(crowd_run(s, ADDERS, add_one), wanted);
    check_caught_up(s, 60);
    check_int(chromux_stop(s->x), 0);
    stage_again(s);
    check_str(get(s, CHROMA_DB "/collections_count")->body, keepf("%u", wanted));
    for (unsigned i = 0; i < wanted; i += 9)
        check_str(get(s, of(many[i], "count"))->body, "1");
    check_str(collections_on(s, 0), collections_on(s, 1));
}

/* ---- large bodies ---------------------------------------------------------------------------- */

static void add_of_forty_megabytes(void **state)
{
    enum { N = 1200, EACH = 32000 };
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=60", "TRY_TIMEOUT=30", NULL);
    char *id = create(s, "large"), *small = create(s, "small");
    size_t used = 0;
    char *documents = keep(N * (EACH + 16) + 64);
    used += (size_t)sprintf(documents, ",\"documents\":[");
    for (unsigned i = 0; i < N; i++) {
        used += (size_t)sprintf(documents + used, "%s\"%u ", i ? "," : "", i);
        memset(documents + used, 'a' + (int)(i % 26), EACH);
        used += EACH;
        documents[used++] = '"';
    }
    strcpy(documents + used, "]");
    char *body = records_body("r", 0, N, documents);
    check(strlen(body) > 38000000);
    struct wire *w = wire_open(s->x->port);
    w->patience = 60;
    check(wire_sendf(w,
                     "POST " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json"
                     "\r\nContent-Length: %zu\r\n\r\n",
                     of(id, "add"), strlen(body)));
    check(wire_send(w, body, strlen(body)));
    /* Another collection is written meanwhile. */
    check_status(post(s, of(small, "add"), records_body("s", 0, 3, "")), 201);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 201);
    check_str(get(s, of(id, "count"))->body, keepf("%u", N));
    check_caught_up(s, 60);
    for (unsigned i = 0; i < 2; i++) {
        check_str(ask_server(s->server[i], "GET", of(physical(s, i, id), "count"), NULL)->body,
                  keepf("%u", N));
        a = ask_server(s->server[i], "POST", of(physical(s, i, id), "get"),
                       "{\"ids\":[\"r777\"],\"include\":[\"documents\"]}");
        check_has(a->body, keepf("\"777 %c", 'a' + 777 % 26));
        check(a->body_len > EACH);
    }
    check_soon(journal_figure(s, "memory_bytes") == 0, 10);
    /* Chroma takes 40 MiB and no more; so much is refused in its words. */
    check_equal(s, small, 5);
}

static void five_thousand_records_a_call(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=60", "TRY_TIMEOUT=30", NULL);
    char *id = create(s, "batch");
    check_status(post(s, of(id, "add"), records_body("r", 0, 5461, "")), 201);
    check_status(post(s, of(id, "upsert"), records_body("r", 1, 5461, "")), 200);
    check_str(get(s, of(id, "count"))->body, "5462");
    char *all = check_equal(s, id, 60);
    check_int(count_lines(all, "[\"r"), 5462);
}

/* A whole answer to a request that may take its time. */
static struct answer *post_long(struct stage *s, const char *path, const char *body)
{
    struct wire *w = wire_open(s->x->port);
    w->patience = 120;
    check(wire_sendf(w,
                     "POST " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json"
                     "\r\nContent-Length: %zu\r\n\r\n",
                     path, strlen(body)) &&
          wire_send(w, body, strlen(body)));
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    wire_close(w);
    return a;
}

/* Records with a number k of 0 to 9 each. A filter deletes all but a tenth: more ids than Chroma
 * takes in a call. */
static void a_filter_deletes_most_of_a_large_collection(void **state)
{
    enum { STEP = 5000 };
    const unsigned n = long_run() ? 1000000 : 100000;
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=120", "TRY_TIMEOUT=60", NULL);
    char *id = create(s, "large"), *metadatas = keep(STEP * 16 + 64);
    size_t used = (size_t)sprintf(metadatas, ",\"metadatas\":[");
    for (unsigned i = 0; i < STEP; i++)
        used += (size_t)sprintf(metadatas + used, "%s{\"k\":%u}", i ? "," : "", i % 10);
    strcpy(metadatas + used, "]");
    for (unsigned from = 0; from < n; from += STEP)
        check_status(post_long(s, of(id, "add"), records_body("r", from, STEP, metadatas)), 201);
    check_str(get(s, of(id, "count"))->body, keepf("%u", n));
    check_caught_up(s, 120);
    struct answer *a = post_long(s, of(id, "delete"), "{\"where\":{\"k\":{\"$ne\":0}}}");
    check_status(a, 200);
    if (strstr(a->body, "deleted")) /* since Chroma 1.5.3 */
        check_str(a->body, keepf("{\"deleted\":%u}", n - n / 10));
    check_str(get(s, of(id, "count"))->body, keepf("%u", n / 10));
    char *all = check_equal(s, id, 120);
    check_int(count_lines(all, "[\"r"), n / 10);
    check_int(count_lines(all, "{\"k\": 0}") + count_lines(all, "{\"k\":0}"), n / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(thirty_creates_at_once_are_all_there),
        STAGE_TEST(one_name_made_and_deleted_by_many_stays_one),
        STAGE_TEST(writers_that_share_a_request_get_answers_of_their_own),
        STAGE_TEST(many_collections_are_served),
        STAGE_TEST(add_of_forty_megabytes),
        STAGE_TEST(five_thousand_records_a_call),
        STAGE_TEST(a_filter_deletes_most_of_a_large_collection),
    };
    return STAGE_RUN(tests);
}
