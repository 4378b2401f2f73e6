/* Large bodies: back-pressure both ways with bounded memory, early answers in mid-upload, clients
 * that leave or never read. */
#include "fixture.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MB (1024L * 1024L)
enum { BIG = 40 };

/* One MB of text that differs from the next. */
static char *block(unsigned i)
{
    static char text[MB];
    for (long at = 0; at < MB; at++)
        text[at] = (char)('a' + (at * 7 + i * 13 + at / 251) % 26);
    return text;
}

static uint64_t big_hash(void)
{
    uint64_t h = FNV_START;
    for (unsigned i = 0; i < BIG; i++)
        h = fnv(h, block(i), MB);
    return h;
}

/* Memory that a slow peer may cost: the bound of the test, and the sanitizers' share. */
static void check_growth(struct chromux *x, long before)
{
    long growth = process_rss_kb(x->pid) - before, most = sanitized() ? 64 * 1024 : 8 * 1024;
    if (growth >= most)
        harness_fail(__FILE__, __LINE__, "memory grew by %ld kB", growth);
}

/* Sends until the socket has taken nothing for a while; returns the bytes taken of `from` on. */
static size_t send_until_stuck(struct wire *w, const char *p, size_t n)
{
    size_t at = 0;
    struct pollfd f = {.fd = w->fd, .events = POLLOUT};
    while (at < n && poll(&f, 1, (int)(slow(0.5) * 1000)) > 0) {
        ssize_t sent = send(w->fd, p + at, n - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            break;
        at += sent > 0 ? (size_t)sent : 0;
    }
    return at;
}

/* ---- uploads --------------------------------------------------------------------------------- */

static void read_slowly(struct conn *c)
{
    struct request *r = conn_head(c);
    if (r && conn_wait(c) && conn_body(c, r))
        conn_send(c, "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}");
}

static void upload(bool chunked)
{
    struct peer *p = peer_start(read_slowly);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    long before = process_rss_kb(x->pid);
    size_t n = 0;
    char *all = malloc(BIG * (MB + 32));
    check(all != NULL);
    for (unsigned i = 0; i < BIG; i++) {
        if (chunked)
            n += (size_t)sprintf(all + n, "%lx\r\n", (long)MB);
        memcpy(all + n, block(i), MB);
        n += MB;
        if (chunked)
            n += (size_t)sprintf(all + n, "\r\n");
    }
    if (chunked)
        n += (size_t)sprintf(all + n, "0\r\n\r\n");
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\n%s\r\n",
               chunked ? "Transfer-Encoding: chunked\r\n"
                       : keepf("Content-Length: %ld\r\n", BIG * MB));
    size_t sent = send_until_stuck(w, all, n);
    bool held_back = sent < n;
    check_growth(x, before);
    peer_release(p);
    bool rest = wire_send(w, all + sent, n - sent);
    free(all);
    check(held_back);
    check(rest);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 201);
    check_growth(x, before);
    struct request *r = peer_request(p, 0);
    check_int(r->body_len, BIG * MB);
    check(r->body_hash == big_hash());
}

static void big_add_to_a_stuck_origin_uses_bounded_memory(void **state)
{
    upload(false);
}

static void big_chunked_add_uses_bounded_memory(void **state)
{
    upload(true);
}

/* ---- downloads ------------------------------------------------------------------------------- */

static void answer_big_length(struct conn *c)
{
    if (!conn_request(c) ||
        !conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: %ld\r\n\r\n", BIG * MB))
        return;
    char *mine = malloc(MB);
    for (unsigned i = 0; i < BIG; i++) {
        memcpy(mine, block(i), MB);
        if (!conn_write(c, mine, MB))
            break;
        conn_mark(c);
    }
    free(mine);
}

/* Odd sizes, so that chunks and reads never fall together. */
static void answer_big_chunks(struct conn *c)
{
    if (!conn_request(c) || !conn_send(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
        return;
    for (unsigned i = 0; i < BIG; i++) {
        const char *text = block(i);
        for (long at = 0; at < MB;) {
            long part = MB - at < 9973 ? MB - at : 9973;
            if (!conn_send(c, "%lx\r\n", part) || !conn_write(c, text + at, (size_t)part) ||
                !conn_send(c, "\r\n"))
                return;
            at += part;
        }
        conn_mark(c);
    }
    conn_send(c, "0\r\n\r\n");
    conn_wait_gone(c);
}

/* Until the origin has written nothing for half a second. */
static bool origin_is_stuck(struct peer *p)
{
    static unsigned seen;
    static double since;
    unsigned marks = peer_marks(p);
    if (marks != seen || marks == 0) {
        seen = marks;
        since = now_seconds();
    }
    return now_seconds() - since > slow(0.5);
}

static void slow_reader_holds_the_origin_back(void **state)
{
    struct peer *p = peer_start(answer_big_length);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    long before = process_rss_kb(x->pid);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(origin_is_stuck(p), 20);
    check(peer_marks(p) < BIG);
    check_growth(x, before);
    struct answer *a = wire_answer_head(w);
    check(a && a->status == 200);
    uint64_t hash = FNV_START;
    check_int(wire_skip(w, BIG * MB, &hash), BIG * MB);
    check(hash == big_hash());
    check_growth(x, before);
}

static void big_chunked_answer_is_whole(void **state)
{
    struct peer *p = peer_start(answer_big_chunks);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    long before = process_rss_kb(x->pid);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(origin_is_stuck(p), 20);
    check_growth(x, before);
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check(a->complete);
    check_int(a->body_len, BIG * MB);
    check(fnv(FNV_START, a->body, a->body_len) == big_hash());
}

static void client_that_never_reads_is_cut_off(void **state)
{
    struct peer *p = peer_start(answer_big_length);
    struct chromux *x = in_front_of(p, NULL, "BODY_TIMEOUT=1", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check_str(kv(chromux_access_line(x, "/count", 1), "end"), "client_slow_read");
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check(!a->complete);
}

/* Requests upon requests from a client that reads none of the answers. */
static void unread_answers(const char *target)
{
    enum { MANY = 400000 };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    char *one = keepf("GET %s HTTP/1.1\r\nHost: h\r\n\r\n", target);
    size_t n = strlen(one);
    char *all = keep(n * MANY);
    for (size_t i = 0; i < MANY; i++)
        memcpy(all + i * n, one, n);
    long before = process_rss_kb(x->pid);
    check(send_until_stuck(w, all, n * MANY) < n * MANY);
    check_growth(x, before);
    /* Everybody else is served meanwhile. */
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a && a->status == 200);
}

static void pipelining_without_reading_uses_bounded_memory(void **state)
{
    unread_answers(HEARTBEAT);
}

static void pages_nobody_reads_use_bounded_memory(void **state)
{
    unread_answers("/metrics");
}

/* ---- early answers --------------------------------------------------------------------------- */

static void refuse_and_close(struct conn *c)
{
    if (conn_head(c) && conn_read_raw(c, 200000) > 0)
        conn_send(c, "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 17\r\n\r\n"
                     "Payload too large");
}

static void refuse_and_reset(struct conn *c)
{
    refuse_and_close(c);
    conn_reset(c);
}

static void refuse_and_read_on(struct conn *c)
{
    struct request *r = conn_head(c);
    conn_send(c, "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 17\r\n\r\nPayload too large");
    if (r && conn_body(c, r))
        serve_ok(c);
}

static void early_answer(peer_script *script)
{
    struct peer *p = peer_start(script);
    struct chromux *x = in_front_of(p, NULL, NULL);
    for (int round = 0; round < 10; round++) {
        struct wire *w = wire_open(x->port);
        wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: %ld\r\n\r\n",
                   8 * MB);
        /* A client that only reads once it has sent all, or can send no more. */
        w->patience = 3;
        for (unsigned i = 0; i < 8 && wire_send(w, block(i), MB); i++)
            ;
        struct answer *a = wire_answer(w, false);
        check(a != NULL);
        check_int(a->status, 413);
        check_str(a->body, "Payload too large");
        wire_close(w);
    }
    struct answer *a = http_get(x->port, "/status");
    check(a != NULL);
    check_int(a->status, 200);
}

static void early_413_then_close_reaches_the_client(void **state)
{
    early_answer(refuse_and_close);
}

static void early_413_then_reset_reaches_the_client(void **state)
{
    early_answer(refuse_and_reset);
}

static void early_413_from_a_reading_origin_reaches_the_client(void **state)
{
    early_answer(refuse_and_read_on);
}

/* ---- clients that leave ---------------------------------------------------------------------- */

static void answer_never(struct conn *c)
{
    if (conn_request(c))
        conn_wait_gone(c);
}

static void leaving_client_cancels_upstream(void **state)
{
    struct peer *p = peer_start(answer_never);
    struct chromux *x = in_front_of(p, NULL, "TRY_TIMEOUT=30", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/query HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(peer_completed(p) == 1, 5);
    wire_close(w);
    check_soon(peer_gone(p) == 1, 5);
    check_str(kv(chromux_access_line(x, "/query", 1), "end"), "client_gone");
    w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/query HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(peer_completed(p) == 2, 5);
    wire_reset(w);
    check_soon(peer_gone(p) == 2, 5);
}

static void read_all(struct conn *c)
{
    struct request *r = conn_head(c);
    if (r && !conn_body(c, r))
        conn_mark(c);
}

static void client_leaving_in_mid_upload_cancels_upstream(void **state)
{
    struct peer *p = peer_start(read_all);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: %ld\r\n\r\n", 2 * MB);
    wire_send(w, block(0), MB);
    check_soon(peer_requests(p) == 1, 5);
    wire_close(w);
    check_soon(peer_marks(p) == 1, 5);
    check_int(peer_completed(p), 0);
    /* Chunked: the origin must not see a last chunk that the client never sent. */
    w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "5\r\nhello\r\n");
    check_soon(peer_requests(p) == 2, 5);
    wire_close(w);
    check_soon(peer_marks(p) == 2, 5);
    check_int(peer_completed(p), 0);
}

static void client_leaving_in_mid_answer_cancels_upstream(void **state)
{
    struct peer *p = peer_start(answer_big_length);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check(wire_answer_head(w) != NULL);
    wire_reset(w);
    check_str(kv(chromux_access_line(x, "/count", 1), "end"), "client_gone");
    check(peer_marks(p) < BIG);
    /* The slot is free again. */
    struct answer *a = http_get(x->port, "/status");
    check(a != NULL);
    check_has(a->body, "\"requests_active\":0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(big_add_to_a_stuck_origin_uses_bounded_memory),
        TEST(big_chunked_add_uses_bounded_memory),
        TEST(slow_reader_holds_the_origin_back),
        TEST(big_chunked_answer_is_whole),
        TEST(client_that_never_reads_is_cut_off),
        TEST(pipelining_without_reading_uses_bounded_memory),
        TEST(pages_nobody_reads_use_bounded_memory),
        TEST(early_413_then_close_reaches_the_client),
        TEST(early_413_then_reset_reaches_the_client),
        TEST(early_413_from_a_reading_origin_reaches_the_client),
        TEST(leaving_client_cancels_upstream),
        TEST(client_leaving_in_mid_upload_cancels_upstream),
        TEST(client_leaving_in_mid_answer_cancels_upstream),
    };
    return RUN(tests);
}
