/* What a well-behaved client and a well-behaved origin see of each other through chromux: framing
 * both ways, fields, versions, order. Rules by RFC 9110 and 9112. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bodies ---------------------------------------------------------------------------------- */

static void content_length_bodies_pass_both_ways(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_post(x->port, COLL "/get", "{\"ids\":[\"a\"]}");
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "{\"ids\":[\"a\"]}");
    check(a->complete);
    struct request *r = peer_request(p, 0);
    check_has(r->head, "POST " COLL "/get HTTP/1.1\r\n");
    check_str(head_field(r->head, "Content-Length"), "13");
    check_str(head_field(r->head, "Content-Type"), "application/json");
    check(head_field(r->head, "Transfer-Encoding") == NULL);
}

static void chunked_request_is_coded_again(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                  "Trailer: X-Sum, Content-Length\r\n\r\n"
                  "5;name=\"v;w\"\r\nhello\r\n00006;e\r\n world\r\n0;last\r\n"
                  "X-Sum: 11\r\nContent-Length: 3\r\nHost: evil\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "hello world");
    struct request *r = peer_request(p, 0);
    check(r->complete);
    check_str(r->body, "hello world");
    check_lacks(r->chunk_lines, ";");
    check_int(head_count(r->head, "Content-Length"), 0);
    /* Trailers may not change framing or routing (RFC 9110 6.5.1). */
    check_has(r->trailers, "X-Sum: 11\n");
    check_lacks(r->trailers, "Content-Length");
    check_lacks(r->trailers, "evil");
}

static void chunks_in_single_bytes_pass(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    const char *text = "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                       "b\r\nhello world\r\n0\r\n\r\n";
    for (size_t i = 0; text[i]; i++)
        check(wire_send(w, text + i, 1));
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "hello world");
}

static void answer_chunks_with_trailer(struct conn *c)
{
    while (conn_request(c))
        conn_send(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                     "6;x=y\r\nfirst \r\n6\r\nsecond\r\n0\r\nX-Sum: 12\r\nTransfer-Encoding: gzip"
                     "\r\n\r\n");
}

static void chunked_answer_passes_with_trailers(void **state)
{
    struct peer *p = peer_start(answer_chunks_with_trailer);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    for (int i = 0; i < 2; i++) { /* twice: the connections on both sides are still in step */
        wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n");
        struct answer *a = wire_answer(w, false);
        check(a != NULL);
        check_int(a->status, 200);
        check(a->chunked && a->complete);
        check_str(a->body, "first second");
        check_has(a->trailers, "X-Sum: 12\r\n");
        check_lacks(a->trailers, "gzip");
    }
    check_int(peer_connections(p), 1);
}

static void answer_until_close(struct conn *c)
{
    if (conn_request(c))
        conn_send(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it");
}

static void close_delimited_answer_is_whole(void **state)
{
    struct peer *p = peer_start(answer_until_close);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "all of it");
    check(a->complete);
}

static void bodiless(struct conn *c)
{
    for (struct request *r; (r = conn_request(c)) != NULL;) {
        if (strncmp(r->head, "HEAD ", 5) == 0)
            conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
        else if (strstr(r->head, "/count"))
            conn_send(c, "HTTP/1.1 204 No Content\r\nX-Kind: none\r\n\r\n");
        else if (strstr(r->head, "If-None-Match"))
            conn_send(c, "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: \"e\"\r\n\r\n");
        else
            conn_answer(c, "body");
    }
}

static void head_204_and_304_have_no_body(void **state)
{
    struct peer *p = peer_start(bodiless);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "HEAD " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n"
                  "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n"
                  "GET /openapi.json HTTP/1.1\r\nHost: h\r\nIf-None-Match: \"e\"\r\n\r\n"
                  "GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, true);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(head_field(a->head, "Content-Length"), "5000");
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 204);
    check(head_field(a->head, "Content-Length") == NULL);
    check(head_field(a->head, "Transfer-Encoding") == NULL);
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 304);
    check_str(head_field(a->head, "ETag"), "\"e\"");
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "body");
    check_int(peer_connections(p), 1);
}

/* ---- interim answers ------------------------------------------------------------------------- */

static void client_is_told_to_continue(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n"
                  "Expect: 100-continue\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 100);
    wire_sendf(w, "{\"\"}");
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "{\"\"}");
}

static void expectation_with_body_at_once_is_served(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_send(x->port, "POST", COLL "/get", "Expect: 100-Continue\r\n", "{}");
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "{}");
}

static void hint_early(struct conn *c)
{
    while (conn_request(c)) {
        conn_send(c, "HTTP/1.1 103 Early Hints\r\nLink: </s>; rel=preload\r\n\r\n");
        conn_send(c, "HTTP/1.1 102 Processing\r\n\r\n");
        conn_answer(c, "final");
    }
}

static void interim_answers_reach_1_1_clients_only(void **state)
{
    struct peer *p = peer_start(hint_early);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 103);
    check_str(head_field(a->head, "Link"), "</s>; rel=preload");
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 102);
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "final");
    struct wire *old = wire_open(x->port);
    wire_sendf(old, "GET " COLL "/count HTTP/1.0\r\n\r\n");
    a = wire_answer(old, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "final");
}

/* ---- versions and connections ---------------------------------------------------------------- */

static void http_1_0_closes_unless_asked_to_keep(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.0\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check(wire_closed(w));

    w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    a = wire_answer(w, false);
    check(a != NULL);
    check_str(head_field(a->head, "Connection"), "keep-alive");
    check(a->complete);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.0\r\n\r\n");
    a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    check(wire_closed(w));
    check_has(peer_request(p, 0)->head, "HTTP/1.1\r\n");
    check(head_field(peer_request(p, 0)->head, "Host") != NULL);
    check_str(head_field(peer_request(p, 0)->head, "Via"), "1.0 chromux");
}

static void http_1_0_never_gets_chunks(void **state)
{
    struct peer *p = peer_start(answer_chunks_with_trailer);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check(!a->chunked);
    check_str(a->body, "first second");
    check(a->complete);
}

static void connection_close_is_honoured(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nConnection: foo, Close\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_str(head_field(a->head, "Connection"), "close");
    check(wire_closed(w));
}

static void serve_one(struct conn *c)
{
    if (conn_request(c))
        conn_send(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
}

static void upstream_connections_are_kept_unless_closed(void **state)
{
    struct peer *keeps = peer_start(serve_ok), *closes = peer_start(serve_one);
    struct chromux *x = in_front_of(keeps, NULL, NULL), *y = in_front_of(closes, NULL, NULL);
    struct wire *w = wire_open(x->port), *v = wire_open(y->port);
    for (int i = 0; i < 10; i++) {
        wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
        wire_sendf(v, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
        struct answer *a = wire_answer(w, false), *b = wire_answer(v, false);
        check(a && b && a->status == 200 && b->status == 200);
        /* The origin's Connection: close is for that hop. */
        check(head_field(b->head, "Connection") == NULL);
    }
    check_int(peer_connections(keeps), 1);
    check_int(peer_connections(closes), 10);
}

static void wait_for_the_end(struct conn *c)
{
    if (conn_request(c) && conn_answer(c, "{}"))
        conn_wait_gone(c);
}

static void upstream_connections_are_retired(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(wait_for_the_end);
    struct chromux *x = in_front_of(p, NULL, "UPSTREAM_MAX_REQUESTS=2", NULL);
    for (int i = 0; i < 6; i++) {
        struct answer *a = http_get(x->port, HEARTBEAT);
        check(a && a->status == 200);
    }
    check_int(peer_connections(p), 3);
    x = in_front_of(q, NULL, "UPSTREAM_IDLE_TIMEOUT=0.3", NULL);
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a && a->status == 200);
    check_soon(peer_gone(q) == 1, 5);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    enum { N = 1000 };
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    size_t room = N * 160, n = 0;
    char *burst = keep(room);
    for (int i = 0; i < N; i++)
        if (i % 2) /* every other one with a body */
            n += (size_t)sprintf(burst + n,
                                 "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n"
                                 "\r\n%06d",
                                 i);
        else
            n +=
                (size_t)sprintf(burst + n, "GET " HEARTBEAT "?n=%d HTTP/1.1\r\nHost: h\r\n\r\n", i);
    check(n < room);
    check(wire_send(w, burst, n));
    for (int i = 0; i < N; i++) {
        struct answer *a = wire_answer(w, false);
        if (!a || a->status != 200)
            harness_fail(__FILE__, __LINE__, "answer %d: %s", i, a ? a->head : "none");
        check_str(a->body, i % 2 ? keepf("%06d", i) : keepf(HEARTBEAT "?n=%d", i));
    }
    check_int(peer_requests(p), N);
    check(!wire_has_input(w));
}

static void request_in_pieces_is_one_request(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    const char *text = "\r\nPOST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
    size_t n = strlen(text);
    for (size_t cut = 1; cut < n; cut += 7) {
        struct wire *w = wire_open(x->port);
        check(wire_send(w, text, cut));
        check(wire_send(w, text + cut, n - cut));
        struct answer *a = wire_answer(w, false);
        check(a != NULL);
        check_int(a->status, 200);
        check_str(a->body, "{}");
        wire_close(w);
    }
}

/* ---- fields ---------------------------------------------------------------------------------- */

static void hop_by_hop_request_fields_stay_behind(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Hop\r\n"
                  "Connection: x-other\r\nX-Hop: 1\r\nX-OTHER: 2\r\nKeep-Alive: timeout=5\r\n"
                  "Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\n"
                  "X-Stays: yes\r\nX-Chroma-Token: secret\r\nAccept: a\r\nAccept: b\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_int(a->status, 200);
    const char *head = peer_request(p, 0)->head;
    static const char *const gone[] = {"X-Hop", "X-Other", "Keep-Alive", "Proxy-Connection",
                                       "Upgrade"};
    for (unsigned i = 0; i < COUNT_OF(gone); i++)
        if (head_field(head, gone[i]))
            harness_fail(__FILE__, __LINE__, "%s was forwarded", gone[i]);
    const char *te = head_field(head, "TE");
    check(te == NULL || strcmp(te, "trailers") == 0);
    check_str(head_field(head, "X-Stays"), "yes");
    check_str(head_field(head, "X-Chroma-Token"), "secret");
    check_int(head_count(head, "Accept"), 2);
}

static void answer_hop_by_hop(struct conn *c)
{
    while (conn_request(c))
        conn_send(c, "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n"
                     "Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n"
                     "X-Stays: yes\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nVia: 1.0 inner\r\n"
                     "chroma-trace-id: 7\r\nX-CHROMUX-Instance: forged\r\nDate: then\r\n"
                     "Content-Length: 2\r\n\r\n{}");
}

static void hop_by_hop_answer_fields_stay_behind(void **state)
{
    struct peer *p = peer_start(answer_hop_by_hop);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    static const char *const gone[] = {"X-Hop", "Keep-Alive", "Proxy-Connection", "Upgrade"};
    for (unsigned i = 0; i < COUNT_OF(gone); i++)
        if (head_field(a->head, gone[i]))
            harness_fail(__FILE__, __LINE__, "%s was forwarded", gone[i]);
    check_str(head_field(a->head, "X-Stays"), "yes");
    check_str(head_field(a->head, "chroma-trace-id"), "7");
    check_int(head_count(a->head, "Set-Cookie"), 2);
    /* Via grows from hop to hop, in one field or in two (RFC 9110 7.6.3). */
    check_has(a->head, "1.0 inner");
    check_has(a->head, "1.1 chromux");
    /* Only chromux says which instance it was. */
    check_int(head_count(a->head, "X-Chromux-Instance"), 1);
    check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    check_int(head_count(a->head, "Date"), 1);
    check_str(head_field(a->head, "Date"), "then");
}

static void answer_without_a_date_gets_one(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a && a->status == 200);
    check_int(head_count(a->head, "Date"), 1);
    check_has(head_field(a->head, "Date"), " GMT");
}

static void forwarded_fields_tell_where_it_came_from(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_send(x->port, "GET", HEARTBEAT,
                                 "X-Forwarded-For: 10.1.2.3\r\nVia: 1.1 edge\r\n"
                                 "X-Request-Id: given-id-1\r\ntraceparent: 00-1-2-01\r\n",
                                 NULL);
    check(a != NULL);
    check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    check_str(head_field(a->head, "X-Request-Id"), "given-id-1");
    check_str(head_field(a->head, "Via"), "1.1 chromux");
    const char *head = peer_request(p, 0)->head;
    check_has(head, "10.1.2.3");
    check_has(head, "127.0.0.1");
    check_has(head, "1.1 edge");
    check_has(head, "1.1 chromux");
    check_str(head_field(head, "X-Request-Id"), "given-id-1");
    check_str(head_field(head, "X-Forwarded-Proto"), "http");
    check_str(head_field(head, "X-Forwarded-Host"), "chroma.test");
    check_str(head_field(head, "traceparent"), "00-1-2-01");
}

/* What sticky goes by: the header, or the address, which is one for all here. */
static void session_header_reaches_the_policy(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "LOAD_BALANCE_STRATEGY=sticky", NULL);
    unsigned on_primary = 0;
    enum { SESSIONS = 20 };
    for (int i = 0; i < SESSIONS; i++) {
        char *session = keepf("X-Chromux-Session: user %d\r\n", i), *first = NULL;
        for (int again = 0; again < 2; again++) {
            struct answer *a = http_send(x->port, "GET", COLL "/count", session, NULL);
            check(a && a->status == 200);
            char *by = head_field(a->head, "X-Chromux-Instance");
            check_str(by, first ? first : by);
            first = by;
        }
        on_primary += strcmp(first, "primary") == 0;
    }
    check(on_primary > 0 && on_primary < SESSIONS);
}

static void every_answer_has_its_own_request_id(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_get(x->port, HEARTBEAT), *b = http_get(x->port, "/api/v2/nothing");
    check(a && b);
    char *id = head_field(a->head, "X-Request-Id"), *other = head_field(b->head, "X-Request-Id");
    check(id && other && strlen(id) >= 8);
    check(strcmp(id, other) != 0);
    check_str(head_field(peer_request(p, 0)->head, "X-Request-Id"), id);
    check_str(kv(chromux_access_line(x, HEARTBEAT, 1), "id"), id);
}

static void target_bytes_pass_unchanged(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    const char *target = "/api/v2/tenants/a%2Fb/databases/%C3%A4%20x/collections/n%2e%2e?limit=1&"
                         "x=%00%zz&&=?/..//";
    struct answer *a = http_get(x->port, target);
    check(a != NULL);
    check_int(a->status, 200);
    check_has(peer_request(p, 0)->head, keepf("GET %s HTTP/1.1\r\n", target));
}

static void absolute_target_becomes_origin_form(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_get(x->port, "http://chroma.test" HEARTBEAT "?a=b");
    check(a != NULL);
    check_int(a->status, 200);
    check_has(peer_request(p, 0)->head, "GET " HEARTBEAT "?a=b HTTP/1.1\r\n");
}

static void options_and_cors_pass_through(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a =
        http_send(x->port, "OPTIONS", COLL "/add",
                  "Origin: http://a\r\nAccess-Control-Request-Method: POST\r\n", NULL);
    check(a != NULL);
    check_int(a->status, 200);
    check_has(peer_request(p, 0)->head, "OPTIONS " COLL "/add HTTP/1.1\r\n");
    check_str(head_field(peer_request(p, 0)->head, "Origin"), "http://a");
}

static void answer_codes(struct conn *c)
{
    for (struct request *r; (r = conn_request(c)) != NULL;)
        conn_send(c, "HTTP/1.1 %.3s Odd Reason\r\nContent-Length: 5\r\n\r\nhello",
                  strstr(r->head, "limit=") + 6);
}

static void statuses_and_bodies_of_the_origin_pass(void **state)
{
    struct peer *p = peer_start(answer_codes);
    struct chromux *x = in_front_of(p, NULL, NULL);
    static const int codes[] = {200, 201, 400, 401, 404, 409, 410, 413, 422, 429, 501};
    for (unsigned i = 0; i < COUNT_OF(codes); i++) {
        struct answer *a = http_get(x->port, keepf(DB "/collections?limit=%d", codes[i]));
        check(a != NULL);
        check_int(a->status, codes[i]);
        check_str(a->body, "hello");
        check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    }
    check_int(peer_requests(p), COUNT_OF(codes));
}

static void access_log_tells_the_whole_story(void **state)
{
    struct peer *p = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_post(x->port, COLL "/query?limit=3", "{\"query_embeddings\":[[1]]}");
    check(a != NULL);
    const char *line = chromux_access_line(x, COLL "/query", 1);
    static const char *const fields[] = {"id", "client", "tr",       "tq",       "tc",
                                         "tf", "ta",     "bytes_in", "bytes_out"};
    for (unsigned i = 0; i < COUNT_OF(fields); i++)
        if (!*kv(line, fields[i]))
            harness_fail(__FILE__, __LINE__, "no %s in %s", fields[i], line);
    check_str(kv(line, "method"), "POST");
    check_str(kv(line, "status"), "200");
    check_str(kv(line, "class"), "read");
    check_str(kv(line, "action"), "query");
    check_str(kv(line, "instance"), "primary");
    check_str(kv(line, "attempts"), "1");
    check_str(kv(line, "end"), "done");
    check(atol(kv(line, "bytes_in")) >= 26);
    check(atol(kv(line, "bytes_out")) >= 26);
}

/* One JSON object a line, whatever a client puts into its request. */
static void json_access_log_is_json(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "LOG_FORMAT=json", NULL);
    struct answer *a = http_send(x->port, "GET", HEARTBEAT "?q=\"x\\y\"&end=fake",
                                 "X-Request-Id: a\"b\\c end=fake\r\n", NULL);
    check(a && a->status == 200);
    check_lacks(head_field(a->head, "X-Request-Id"), "\"");
    chromux_access_line(x, HEARTBEAT, 1);
    const char *const argv[] = {
        "node", "-e",
        "const fs = require('fs');"
        "const lines = fs.readFileSync(process.argv[1], "
        "'utf8').trim().split('\\n').map(JSON.parse);"
        "const l = lines.find((o) => o.path.startsWith('" HEARTBEAT "'));"
        "process.exit(l && l.end === 'done' && l.status === 200 && l.instance === 'primary' &&"
        "  l.path.includes('q=\"x\\\\y\"') ? 0 : 1);",
        x->access, NULL};
    struct run r = run_program(argv, NULL, 20);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s\n%s", r.output, chromux_access(x));
}

static void client_cannot_forge_log_fields(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_send(x->port, "GET", HEARTBEAT "?x=\"",
                                 "X-Request-Id: me status=999 end=fake\r\n", NULL);
    check(a && a->status == 200);
    const char *line = chromux_access_line(x, HEARTBEAT, 1);
    check_str(kv(line, "status"), "200");
    check_str(kv(line, "end"), "done");
    check_lacks(line, " end=fake");
}

/* What follows a request that closes is nobody's. */
static void request_after_connection_close_is_ignored(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
                  "GET /api/v2/version HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check(wire_closed(w));
    check_int(peer_requests(p), 1);
}

static void full_disk_under_the_access_log_stops_nothing(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "ACCESS_LOG=/dev/full", NULL);
    for (int i = 0; i < 50; i++) {
        struct answer *a = http_get(x->port, HEARTBEAT);
        check(a && a->status == 200);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(content_length_bodies_pass_both_ways),
        TEST(chunked_request_is_coded_again),
        TEST(chunks_in_single_bytes_pass),
        TEST(chunked_answer_passes_with_trailers),
        TEST(close_delimited_answer_is_whole),
        TEST(head_204_and_304_have_no_body),
        TEST(client_is_told_to_continue),
        TEST(expectation_with_body_at_once_is_served),
        TEST(interim_answers_reach_1_1_clients_only),
        TEST(http_1_0_closes_unless_asked_to_keep),
        TEST(http_1_0_never_gets_chunks),
        TEST(connection_close_is_honoured),
        TEST(upstream_connections_are_kept_unless_closed),
        TEST(upstream_connections_are_retired),
        TEST(pipelined_requests_are_answered_in_order),
        TEST(request_in_pieces_is_one_request),
        TEST(hop_by_hop_request_fields_stay_behind),
        TEST(hop_by_hop_answer_fields_stay_behind),
        TEST(answer_without_a_date_gets_one),
        TEST(forwarded_fields_tell_where_it_came_from),
        TEST(session_header_reaches_the_policy),
        TEST(every_answer_has_its_own_request_id),
        TEST(target_bytes_pass_unchanged),
        TEST(absolute_target_becomes_origin_form),
        TEST(options_and_cors_pass_through),
        TEST(statuses_and_bodies_of_the_origin_pass),
        TEST(access_log_tells_the_whole_story),
        TEST(json_access_log_is_json),
        TEST(client_cannot_forge_log_fields),
        TEST(request_after_connection_close_is_ignored),
        TEST(full_disk_under_the_access_log_stops_nothing),
    };
    return RUN(tests);
}
