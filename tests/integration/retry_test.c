/* Reads that are tried again: how often and until when; and their bodies: whole, whatever of them
 * had come or gone before, and never a part taken for the whole. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

#define KB 1024L

/* Text that tells where it was cut. */
static char *body_of(size_t n)
{
    char *text = keep(n + 1);
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('a' + (i * 7 + i / 997) % 26);
    return text;
}

static void reset_after_request(struct conn *c)
{
    conn_request(c);
    conn_reset(c);
}

static void reset_after_some(struct conn *c)
{
    conn_head(c);
    conn_read_raw(c, 10 * KB);
    conn_reset(c);
}

static struct chromux *failing_first(struct peer **p, struct peer **q, peer_script *script)
{
    *p = peer_start(script);
    *q = peer_start(serve_ok);
    return in_front_of(*p, *q, "LOAD_BALANCE_STRATEGY=priority", "RETRY_BUFFER_BYTES=256k", NULL);
}

/* ---- how often ---- */

enum { MANY = 5 };

static struct chromux *in_front_of_many(struct peer *all[MANY], peer_script *script,
                                        const char *setting, const char *other)
{
    char *instances = keepf("CHROMA_INSTANCES=");
    for (int i = 0; i < MANY; i++) {
        all[i] = peer_start(script);
        instances = keepf("%s%sn%d=%s%s", instances, i ? ";" : "", i, peer_url(all[i]),
                          i ? ",role=replica" : "");
    }
    struct chromux *x =
        chromux_start(instances, "UNREPLICATED_READS=any", "PROBE_TIMEOUT=5", setting, other, NULL);
    chromux_wait_healthy(x, MANY);
    return x;
}

static unsigned requests_of(struct peer *all[MANY])
{
    unsigned n = 0;
    for (int i = 0; i < MANY; i++)
        n += peer_requests(all[i]);
    return n;
}

static void tries_are_bounded(void **state)
{
    struct peer *all[MANY];
    struct chromux *x =
        in_front_of_many(all, reset_after_request, "MAX_TRIES=4", "FAILURE_THRESHOLD=1000");
    struct answer *a = http_post(x->port, COLL "/query", "{}");
    check(a != NULL);
    check_int(a->status, 502);
    check_int(requests_of(all), 4);
    check_str(kv(chromux_access_line(x, "/query", 1), "attempts"), "4");
}

static void hang(struct conn *c)
{
    conn_request(c);
    conn_wait_gone(c);
}

static void tries_end_with_the_time_of_the_request(void **state)
{
    struct peer *all[MANY];
    struct chromux *x = in_front_of_many(all, hang, "TRY_TIMEOUT=0.4", "REQUEST_TIMEOUT=1");
    double began = now_seconds();
    struct answer *a = http_post(x->port, COLL "/query", "{}");
    check(a != NULL);
    check_int(a->status, 504);
    check(now_seconds() - began < slow(2));
    check(requests_of(all) <= 3);
    check_str(kv(chromux_access_line(x, "/query", 1), "end"), "request_timeout");
}

/* A single Chroma server drops the connection at this route, however well it is. */
static void route_that_breaks_servers_is_tried_once(void **state)
{
    struct peer *p, *q;
    struct chromux *x = failing_first(&p, &q, reset_after_request);
    struct answer *a = http_get(x->port, "/api/v2/collections/t:d:c");
    check(a != NULL);
    check_int(a->status, 502);
    check_int(peer_requests(p), 1);
    check_int(peer_requests(q), 0);
    check_lacks(chromux_log(x), "instance_suspect");
}

/* ---- bodies ---- */

static void check_whole(struct peer *q, const char *body, size_t n)
{
    check_int(peer_completed(q), 1);
    struct request *r = peer_request(q, 0);
    check_int(r->body_len, n);
    check(r->body_hash == fnv(FNV_START, body, n));
}

static void retried_read_carries_its_whole_body(void **state)
{
    static peer_script *const scripts[] = {reset_after_request, reset_after_some};
    for (unsigned i = 0; i < COUNT_OF(scripts); i++) {
        struct peer *p, *q;
        struct chromux *x = failing_first(&p, &q, scripts[i]);
        char *body = body_of(200 * KB);
        struct answer *a = http_post(x->port, COLL "/query", body);
        check(a != NULL);
        check_int(a->status, 200);
        check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
        check_whole(q, body, 200 * KB);
        check_str(kv(chromux_access_line(x, "/query", 1), "attempts"), "2");
    }
}

static void retried_chunked_read_carries_its_whole_body(void **state)
{
    struct peer *p, *q;
    struct chromux *x = failing_first(&p, &q, reset_after_request);
    char *body = body_of(100 * KB);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/query HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 100; i++)
        wire_sendf(w, "400\r\n%.1024s\r\n", body + i * KB);
    wire_sendf(w, "0\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_whole(q, body, 100 * KB);
}

/* The first server dies while the client is still sending. */
static void retry_in_mid_upload_carries_the_whole_body(void **state)
{
    struct peer *p, *q;
    struct chromux *x = failing_first(&p, &q, reset_after_some);
    char *body = body_of(100 * KB);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: %ld\r\n\r\n", 100 * KB);
    wire_send(w, body, 50 * KB);
    check_soon(peer_requests(q) == 1, 5); /* the retry has begun with half of the body */
    wire_send(w, body + 50 * KB, 50 * KB);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_whole(q, body, 100 * KB);
}

static void body_too_big_to_keep_is_not_tried_again(void **state)
{
    struct peer *p, *q;
    struct chromux *x = failing_first(&p, &q, reset_after_request);
    struct answer *a = http_post(x->port, COLL "/query", body_of(600 * KB));
    check(a != NULL);
    check_int(a->status, 502);
    check_int(peer_requests(q), 0);
}

/* Many tiny chunks are one body; and cost no more than their bytes. */
static void body_in_single_byte_chunks_passes(void **state)
{
    enum { N = 200000 };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    char *text = keep(N * 6 + 8), *body = body_of(N);
    for (size_t i = 0; i < N; i++)
        memcpy(text + i * 6, "1\r\n.\r\n", 6), text[i * 6 + 3] = body[i];
    memcpy(text + N * 6, "0\r\n\r\n", 5);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    double began = now_seconds();
    check(wire_send(w, text, N * 6 + 5));
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check(now_seconds() - began < slow(5));
    check_whole(p, body, N);
}

/* An answer of our own to a request whose body still comes. */
static void refusal_in_mid_upload_reaches_the_client(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    peer_stop(p);
    static const struct {
        const char *target;
        int status;
    } cases[] = {{COLL "/frobnicate", 501}, {"/elsewhere", 404}, {COLL "/add", 503}};
    char *body = body_of(8 * KB * KB);
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        struct wire *w = wire_open(x->port);
        w->patience = 3;
        wire_sendf(w, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %ld\r\n\r\n", cases[i].target,
                   8 * KB * KB);
        wire_send(w, body, 8 * KB * KB); /* may be cut short: the answer counts */
        struct answer *a = wire_answer(w, false);
        if (!a)
            harness_fail(__FILE__, __LINE__, "%s: no answer", cases[i].target);
        check_int(a->status, cases[i].status);
        check_has(a->body, "\"error\":\"");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tries_are_bounded),
        TEST(tries_end_with_the_time_of_the_request),
        TEST(route_that_breaks_servers_is_tried_once),
        TEST(retried_read_carries_its_whole_body),
        TEST(retried_chunked_read_carries_its_whole_body),
        TEST(retry_in_mid_upload_carries_the_whole_body),
        TEST(body_too_big_to_keep_is_not_tried_again),
        TEST(body_in_single_byte_chunks_passes),
        TEST(refusal_in_mid_upload_reaches_the_client),
    };
    return RUN(tests);
}
