/* How soon chromux sees that a server died, hung, came back or is merely busy, with the default
 * settings and real servers; and what its own pages say of it. */
#include "chroma.h"
#include "fixture.h"
#include "load.h"

#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *collection, *second;
static char *index_folder; /* where a server saves the index of `collection` */

/* The one folder under a server's that holds a saved index. */
static char *saved_index(struct chroma *c)
{
    glob_t found;
    check_int(glob(keepf("%s/*/index_metadata.pickle", c->folder), 0, NULL, &found), 0);
    check_int(found.gl_pathc, 1);
    char *name = keep_text(found.gl_pathv[0] + strlen(c->folder) + 1, 36);
    globfree(&found);
    return name;
}

static void fill(struct chroma *c)
{
    collection = chroma_create(c, "one", 50);
    chroma_add(c, collection, 0, 200);
    index_folder = saved_index(c);
    second = chroma_create(c, "two", 50);
    chroma_add(c, second, 0, 200);
}

static struct chromux *before_pair(struct chroma **a, struct chroma **b)
{
    chroma_pair(a, b, fill);
    struct chromux *x =
        chromux_start(keepf("PRIMARY_URL=%s", (*a)->url), keepf("REPLICA_URL=%s", (*b)->url),
                      "UNREPLICATED_READS=any", "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    chromux_wait_healthy(x, 2);
    return x;
}

/* The part of /status about one instance, as text. */
static const char *instance(struct chromux *x, const char *name)
{
    struct answer *a = http_get(x->port, "/status");
    check(a && a->status == 200);
    /* Objects hold no other object with a name, so one name ends where the next begins. */
    for (char *at = a->body; (at = strstr(at, "\"name\":\"")) != NULL; at++) {
        if (strncmp(at + 8, name, strlen(name)) != 0)
            continue;
        char *from = at;
        for (int depth = 0; from > a->body && !(depth == 0 && *from == '{'); from--)
            depth += (*from == '}') - (*from == '{');
        int depth = 0;
        size_t n = 0;
        do {
            depth += (from[n] == '{') - (from[n] == '}');
        } while (from[n++] && depth > 0);
        return keep_text(from, n);
    }
    harness_fail(__FILE__, __LINE__, "no %s on /status: %s", name, a->body);
}

static bool is(struct chromux *x, const char *name, const char *state)
{
    return strstr(instance(x, name), keepf("\"state\":\"%s\"", state)) != NULL;
}

static struct answer *count_records(struct chromux *x, const char *id)
{
    return http_get(x->port, keepf(CHROMA_DB "/collections/%s/count", id));
}

/* Waits for the state; fails when that took longer than `most`. */
static void check_within(struct chromux *x, const char *name, const char *state, double since,
                         double most)
{
    check_soon(is(x, name, state), most + 10);
    double took = now_seconds() - since;
    print_message("%s %s after %.2f s\n", name, state, took);
    if (took > slow(most))
        harness_fail(__FILE__, __LINE__, "%s was %s only after %.2f s", name, state, took);
}

static void killed_server_is_out_at_the_first_failed_request(void **state)
{
    struct chroma *a, *b;
    struct chromux *x = before_pair(&a, &b);
    chroma_kill(a);
    double killed = now_seconds();
    for (int i = 0; i < 50; i++) {
        struct answer *r = count_records(x, collection);
        check(r != NULL);
        check_int(r->status, 200);
        check_str(r->body, "200");
    }
    /* The first request that met the dead server was its last one. */
    check(count_lines(chromux_access(x), " attempts=2 ") <= 1);
    check(!is(x, "primary", "up"));
    check_within(x, "primary", "down", killed, 4);
    chroma_again(a);
    check_within(x, "primary", "up", now_seconds(), 3);
}

static void hung_server_is_down_and_comes_back(void **state)
{
    struct chroma *a, *b;
    struct chromux *x = before_pair(&a, &b);
    chroma_signal(b, SIGSTOP);
    check_within(x, "replica", "down", now_seconds(), 5);
    for (int i = 0; i < 20; i++) {
        struct answer *r = count_records(x, collection);
        check(r != NULL);
        check_int(r->status, 200);
        check_str(head_field(r->head, "X-Chromux-Instance"), "primary");
    }
    chroma_signal(b, SIGCONT);
    check_within(x, "replica", "up", now_seconds(), 3);
}

/* ---- busy is not down ---- */

struct big_add {
    int port;
    int status;
    size_t bytes;
};

/* Just under Chroma's limit of 40 MiB for a body. */
static void *add_much(void *arg)
{
    enum { DIMENSIONS = 1536, RECORDS = 2600 };
    struct big_add *big = arg;
    size_t room = (size_t)RECORDS * (DIMENSIONS * 10 + 40), n = 0;
    char *body = malloc(room);
    if (!body)
        abort();
    n += (size_t)sprintf(body + n, "{\"ids\":[");
    for (unsigned i = 0; i < RECORDS; i++)
        n += (size_t)sprintf(body + n, "%s\"b%u\"", i ? "," : "", i);
    n += (size_t)sprintf(body + n, "],\"embeddings\":[");
    for (unsigned i = 0; i < RECORDS; i++) {
        n += (size_t)sprintf(body + n, "%s[", i ? "," : "");
        for (unsigned d = 0; d < DIMENSIONS; d++)
            n +=
                (size_t)sprintf(body + n, "%s%.7f", d ? "," : "", (i * 31 + d * 17) % 9973 / 9973.);
        n += (size_t)sprintf(body + n, "]");
    }
    n += (size_t)sprintf(body + n, "]}");
    big->bytes = n;
    big->status = load_once(big->port,
                            keepf("POST " CHROMA_DB "/collections/%s/add HTTP/1.1\r\nHost: h\r\n"
                                  "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                                  collection, n),
                            body, n);
    free(body);
    return NULL;
}

static void fill_empty(struct chroma *c)
{
    collection = chroma_create(c, "big", 1000);
}

static void busy_server_is_not_declared_down(void **state)
{
    struct chroma *a, *b;
    chroma_pair(&a, &b, fill_empty);
    struct chromux *x = chromux_start(keepf("PRIMARY_URL=%s", a->url),
                                      keepf("REPLICA_URL=%s", b->url), "REQUEST_TIMEOUT=120", NULL);
    chromux_wait_healthy(x, 2);
    struct big_add big = {.port = x->port, .status = -1};
    pthread_t thread;
    check(pthread_create(&thread, NULL, add_much, &big) == 0);
    double began = now_seconds();
    bool ever_down = false;
    while (__atomic_load_n(&big.status, __ATOMIC_ACQUIRE) == -1 &&
           now_seconds() < began + slow(100)) {
        ever_down = ever_down || is(x, "primary", "down");
        harness_nap();
    }
    pthread_join(thread, NULL);
    print_message("%zu bytes in %.1f s\n", big.bytes, now_seconds() - began);
    check_int(big.status, 201);
    check(big.bytes > 35u << 20);
    check(!ever_down);
    check_lacks(chromux_log(x), "instance_down");
}

/* ---- one collection -------------------------------------------------------------------------- */

/* Cuts the saved index of `collection` short, as a kill in the middle of a save does. */
static void break_index(const struct chroma *c)
{
    check_int(truncate(keepf("%s/%s/index_metadata.pickle", c->folder, index_folder), 100), 0);
}

static void broken_collection_is_taken_out_alone(void **state)
{
    struct chroma *a, *b;
    chroma_pair(&a, &b, fill);
    chroma_kill(b);
    break_index(b);
    chroma_again(b);
    struct chromux *x =
        chromux_start(keepf("PRIMARY_URL=%s", a->url), keepf("REPLICA_URL=%s", b->url),
                      "UNREPLICATED_READS=any", "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    chromux_wait_healthy(x, 2);
    struct answer *direct =
        http_get((int)b->port, keepf(CHROMA_DB "/collections/%s/count", collection));
    check_int(direct->status, 500);
    unsigned on_replica = 0;
    for (int i = 0; i < 30; i++) {
        struct answer *r = count_records(x, collection);
        check(r != NULL);
        check_int(r->status, 200);
    }
    for (int i = 0; i < 30; i++) {
        struct answer *r = count_records(x, second);
        check(r != NULL);
        check_int(r->status, 200);
        on_replica += strcmp(head_field(r->head, "X-Chromux-Instance"), "replica") == 0;
    }
    check_soon(strstr(instance(x, "replica"), collection) != NULL, 5);
    /* Once it is out, nobody is sent there any more; the other collection is served by both. */
    unsigned retried = count_lines(chromux_access(x), " attempts=2 ");
    for (int i = 0; i < 20; i++) {
        struct answer *r = count_records(x, collection);
        check(r && r->status == 200);
        check_str(head_field(r->head, "X-Chromux-Instance"), "primary");
    }
    check_int(count_lines(chromux_access(x), " attempts=2 "), retried);
    check(on_replica >= 10);
    check(is(x, "replica", "up"));
    check_lacks(instance(x, "replica"), second);
    check_lacks(instance(x, "primary"), collection);
}

/* ---- pages ---- */

static void check_pages(struct chromux *x, unsigned healthy)
{
    const char *const argv[] = {"/usr/bin/env",
                                "node",
                                "tests/integration/js/pages.js",
                                keepf("http://127.0.0.1:%d", x->port),
                                keepf("%u", healthy),
                                "2",
                                NULL};
    struct run r = run_program(argv, NULL, 20);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
}

static void pages_keep_the_contract_of_the_earlier_system(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, NULL);
    check_pages(x, 2);
    for (int i = 0; i < 10; i++)
        check(http_get(x->port, HEARTBEAT)->status == 200);
    check_pages(x, 2);
    peer_stop(q);
    chromux_wait_healthy(x, 1);
    check_pages(x, 1);
    peer_stop(p);
    chromux_wait_healthy(x, 0);
    check_pages(x, 0);
    check_int(http_get(x->port, "/health")->status, 503);
    check_int(http_get(x->port, "/status")->status, 200);
    check_int(http_get(x->port, HEARTBEAT)->status, 503);
}

static long request_count(struct chromux *x, const char *name)
{
    const char *at = strstr(instance(x, name), "\"request_count\":");
    return at ? atol(at + 16) : -1;
}

static void request_counts_rise_by_what_was_sent(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    long before = request_count(x, "primary") + request_count(x, "replica");
    for (int i = 0; i < 30; i++)
        check(http_get(x->port, COLL "/count")->status == 200);
    check_int(request_count(x, "primary") + request_count(x, "replica") - before, 30);
    check_int(request_count(x, "primary"), peer_requests(p));
    check_int(request_count(x, "replica"), peer_requests(q));
    check(peer_requests(p) >= 10 && peer_requests(q) >= 10);
}

static void metrics_are_prometheus_text(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, NULL);
    for (int i = 0; i < 5; i++)
        check(http_get(x->port, HEARTBEAT)->status == 200);
    struct answer *a = http_get(x->port, "/metrics");
    check(a && a->status == 200);
    check_has(head_field(a->head, "Content-Type"), "text/plain; version=0.0.4");
    check_has(a->body, "_bucket{");
    check_has(a->body, "chromux_instance_up{instance=\"primary\"} 1");
    char *file = keepf("%s/metrics.txt", temp_folder());
    write_file(file, a->body);
    const char *const argv[] = {"sh", "-c", keepf("promtool check metrics < %s", file), NULL};
    struct run r = run_program(argv, NULL, 20);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "promtool: %s", r.output);
}

static void admin_port_serves_pages_only(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "ADMIN_PORT=0", NULL);
    check(x->admin_port > 0 && x->admin_port != x->port);
    check_int(http_get(x->admin_port, "/health")->status, 200);
    check_int(http_get(x->admin_port, "/status")->status, 200);
    check_int(http_get(x->admin_port, "/metrics")->status, 200);
    check_int(http_get(x->admin_port, HEARTBEAT)->status, 404);
    check_int(peer_requests(p), 0);
}

/* A server that accepts and never answers, and one that answers probes with errors. */
static void probes_see_silence_and_errors(void **state)
{
    static const enum probe_mode modes[] = {PROBE_HANG, PROBE_ERROR, PROBE_CLOSE};
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "PROBE_TIMEOUT=0.3", NULL);
    for (unsigned i = 0; i < COUNT_OF(modes); i++) {
        peer_set_probes(p, modes[i]);
        check_soon(is(x, "primary", "down"), 5);
        check(is(x, "replica", "up"));
        peer_set_probes(p, PROBE_OK);
        check_soon(is(x, "primary", "up"), 5);
    }
    /* Probes never show up where requests are counted. */
    check_int(request_count(x, "primary"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(killed_server_is_out_at_the_first_failed_request),
        TEST(hung_server_is_down_and_comes_back),
        TEST(busy_server_is_not_declared_down),
        TEST(broken_collection_is_taken_out_alone),
        TEST(pages_keep_the_contract_of_the_earlier_system),
        TEST(request_counts_rise_by_what_was_sent),
        TEST(metrics_are_prometheus_text),
        TEST(admin_port_serves_pages_only),
        TEST(probes_see_silence_and_errors),
    };
    return RUN(tests);
}
