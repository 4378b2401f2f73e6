/* What chromux refuses, and how: limits and slow clients with the right status, input that two
 * parsers could read differently, routes that are not Chroma's. Nothing refused may reach the
 * origin. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

static char *filler(size_t n)
{
    char *text = keep(n + 1);
    memset(text, 'a', n);
    return text;
}

/* An answer of our own has Chroma's shape, so that its clients can read it. */
static void check_own_error(const char *file, int line, struct answer *a, int status)
{
    if (!a)
        harness_fail(file, line, "no answer");
    if (a->status != status)
        harness_fail(file, line, "status %d, not %d: %s", a->status, status, a->body);
    if (strncmp(a->body, "{\"error\":\"", 10) != 0 || !strstr(a->body, "\"message\":\"") ||
        a->body[a->body_len - 1] != '}')
        harness_fail(file, line, "not Chroma's error shape: %s", a->body);
    check_has(head_field(a->head, "Content-Type"), "application/json");
    check_str(head_field(a->head, "X-Chromux-Instance"), "-");
    check(head_field(a->head, "X-Request-Id") != NULL);
    check_str(head_field(a->head, "Via"), "1.1 chromux");
}
#define check_error(a, status) check_own_error(__FILE__, __LINE__, a, status)

/* ---- sizes ----------------------------------------------------------------------------------- */

static void long_target_is_414(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_URI_BYTES=1k", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT "?%s HTTP/1.1\r\nHost: h\r\n\r\n", filler(1024));
    check_error(wire_answer(w, false), 414);
    check(wire_closed(w));
    struct answer *a = http_get(x->port, keepf(HEARTBEAT "?%s", filler(900)));
    check(a && a->status == 200);
    check_int(peer_requests(p), 1);
}

static void endless_target_is_414_before_its_end(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET /%s", filler(20000));
    check_error(wire_answer(w, false), 414);
}

static void big_head_is_431(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_HEAD_BYTES=4k", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nX-Big: %s\r\n\r\n", filler(4096));
    check_error(wire_answer(w, false), 431);
    check(wire_closed(w));
    struct answer *a =
        http_send(x->port, "GET", HEARTBEAT, keepf("X-Big: %s\r\n", filler(3500)), NULL);
    check(a && a->status == 200);
    check_int(peer_requests(p), 1);
}

static void too_many_fields_are_431(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    char *fields = keepf("%s", "");
    for (int i = 0; i < 120; i++)
        fields = keepf("%sF%d: v\r\n", fields, i);
    check_error(http_send(x->port, "GET", HEARTBEAT, fields, NULL), 431);
    check_int(peer_requests(p), 0);
}

static void declared_big_body_is_413_at_once(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_BODY_BYTES=10k", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: 10241\r\n\r\n");
    check_error(wire_answer(w, false), 413);
    check(wire_closed(w));
    struct answer *a = http_post(x->port, COLL "/add", filler(10240));
    check(a && a->status == 200);
    check_int(peer_requests(p), 1);
}

static void chunked_big_body_is_413(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_BODY_BYTES=10k", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 11; i++)
        wire_sendf(w, "400\r\n%s\r\n", filler(1024));
    check_error(wire_answer(w, false), 413);
    check(wire_closed(w));
    /* The origin must not take the part for the whole. */
    check_int(peer_completed(p), 0);
}

static void too_many_clients_are_turned_away_and_let_in_again(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_CLIENTS=3", NULL);
    struct wire *w[3];
    for (int i = 0; i < 3; i++) {
        w[i] = wire_open(x->port);
        wire_sendf(w[i], "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
        struct answer *a = wire_answer(w[i], false);
        check(a && a->status == 200);
    }
    struct wire *extra = wire_open(x->port);
    wire_sendf(extra, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(extra, false);
    check(a != NULL);
    check_int(a->status, 503);
    check_has(a->body, "MAX_CLIENTS");
    check(head_field(a->head, "Retry-After") != NULL);
    check_str(head_field(a->head, "X-Chromux-Instance"), "-");
    check(wire_closed(extra));
    check_int(peer_requests(p), 3);
    wire_close(w[0]);
    check_soon((a = http_get(x->port, HEARTBEAT)) != NULL && a->status == 200, 5);
}

/* ---- slow clients ---------------------------------------------------------------------------- */

static void slow_head_is_408(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "HEAD_TIMEOUT=0.4", NULL);
    struct wire *w = wire_open(x->port);
    double began = now_seconds();
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nX-Slow: ");
    /* A byte now and then does not buy more time: the limit is for the whole head. */
    check_soon((wire_has_input(w) || (wire_send(w, "a", 1), false)), 5);
    check(now_seconds() - began < slow(3));
    check_error(wire_answer(w, false), 408);
    check(wire_closed(w));
    check_int(peer_requests(p), 0);
}

static void slow_body_is_408(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "BODY_TIMEOUT=0.4", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
    check_error(wire_answer(w, false), 408);
    check(wire_closed(w));
    check_int(peer_completed(p), 0);
    check_str(kv(chromux_access_line(x, "/add", 1), "end"), "client_slow_body");
}

static void idle_client_is_closed_without_a_word(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "IDLE_TIMEOUT=0.4", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check(wire_closed(w));
}

/* ---- ambiguous input ------------------------------------------------------------------------- */

#define GOOD  "POST " COLL "/get HTTP/1.1\r\nHost: h\r\n"
#define SNEAK "GET /api/v2/version?sneaked HTTP/1.1\r\nHost: h\r\n\r\n"

static const struct {
    const char *what, *text;
    int status;
} refused[] = {
    {"CL and TE", GOOD "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"differing CL", GOOD "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello", 400},
    {"listed CL", GOOD "Content-Length: 5, 5\r\n\r\nhello", 400},
    {"CL with plus", GOOD "Content-Length: +5\r\n\r\nhello", 400},
    {"negative CL", GOOD "Content-Length: -1\r\n\r\n", 400},
    {"hexadecimal CL", GOOD "Content-Length: 0x5\r\n\r\nhello", 400},
    {"CL with a space", GOOD "Content-Length: 5 0\r\n\r\nhello", 400},
    {"empty CL", GOOD "Content-Length:\r\n\r\n", 400},
    {"overflowing CL", GOOD "Content-Length: 18446744073709551621\r\n\r\nhello", 400},
    {"TE gzip, chunked", GOOD "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
    {"TE chunked twice", GOOD "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
    {"TE in two fields",
     GOOD "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
    {"TE identity", GOOD "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
    {"TE xchunked", GOOD "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
    {"TE with vertical tab", GOOD "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
    {"TE on HTTP/1.0",
     "POST " COLL "/get HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
    {"bare LF", "GET " HEARTBEAT " HTTP/1.1\nHost: h\n\n", 400},
    {"one bare LF", GOOD "X: a\nContent-Length: 5\r\n\r\nhello", 400},
    {"bare CR", GOOD "X: a\rContent-Length: 5\r\n\r\n", 400},
    {"folded field", GOOD "X: a\r\n Content-Length: 5\r\n\r\n", 400},
    {"space before colon", GOOD "Content-Length : 5\r\n\r\nhello", 400},
    {"space before first field", "GET " HEARTBEAT " HTTP/1.1\r\n Host: h\r\n\r\n", 400},
    {"control byte in value", GOOD "X: a\001b\r\n\r\n", 400},
    {"empty name", GOOD ": v\r\n\r\n", 400},
    {"name that is no token", GOOD "X(y): v\r\n\r\n", 400},
    {"line without colon", GOOD "Nothing\r\n\r\n", 400},
    {"no Host", "GET " HEARTBEAT " HTTP/1.1\r\n\r\n", 400},
    {"two Hosts", "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400},
    {"Host with userinfo", "GET " HEARTBEAT " HTTP/1.1\r\nHost: a@h\r\n\r\n", 400},
    {"Host with a space", "GET " HEARTBEAT " HTTP/1.1\r\nHost: a h\r\n\r\n", 400},
    {"Host with a slash", "GET " HEARTBEAT " HTTP/1.1\r\nHost: h/x\r\n\r\n", 400},
    {"other authority", "GET http://evil" HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"space in target", "GET " HEARTBEAT " x HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"fragment in target", "GET " HEARTBEAT "#f HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"byte over 0x7e in target", "GET " HEARTBEAT "?\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"two spaces", "GET  " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"asterisk", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"authority form", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", 400},
    {"lower-case protocol", "GET " HEARTBEAT " http/1.1\r\nHost: h\r\n\r\n", 400},
    {"no version", "GET " HEARTBEAT "\r\nHost: h\r\n\r\n", 400},
    {"HTTP/2.0", "GET " HEARTBEAT " HTTP/2.0\r\nHost: h\r\n\r\n", 505},
    {"HTTP/9.9", "GET " HEARTBEAT " HTTP/9.9\r\nHost: h\r\n\r\n", 505},
    {"h2c preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
    {"TLS hello", "\x16\x03\x01\x02", 400},
    {"other expectation", GOOD "Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}", 417},
};

static void ambiguous_heads_reach_no_origin(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    for (unsigned i = 0; i < COUNT_OF(refused); i++) {
        struct wire *w = wire_open(x->port);
        wire_sendf(w, "%s" SNEAK, refused[i].text);
        struct answer *a = wire_answer(w, false);
        if (!a || a->status != refused[i].status)
            harness_fail(__FILE__, __LINE__, "%s: %s, not %d", refused[i].what,
                         a ? a->head : "no answer", refused[i].status);
        check_error(a, refused[i].status);
        if (!wire_closed(w))
            harness_fail(__FILE__, __LINE__, "%s: not closed", refused[i].what);
        wire_close(w);
    }
    struct wire *w = wire_open(x->port);
    static const char nul[] = GOOD "X: a\0b\r\nContent-Length: 0\r\n\r\n" SNEAK;
    wire_send(w, nul, sizeof nul - 1);
    check_error(wire_answer(w, false), 400);
    check(wire_closed(w));
    check_int(peer_requests(p), 0);
}

static const char *const bad_chunks[] = {
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-1\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5;a b\r\nhello\r\n0\r\n\r\n",
    "5;a=\001\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nBad Field: x\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: a\r\n folded\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: a\n\r\n",
};

static void bad_chunks_never_become_a_request(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    for (unsigned i = 0; i < COUNT_OF(bad_chunks); i++) {
        struct wire *w = wire_open(x->port);
        wire_sendf(w, GOOD "Transfer-Encoding: chunked\r\n\r\n%s" SNEAK, bad_chunks[i]);
        struct answer *a = wire_answer(w, false);
        if (!a || a->status != 400)
            harness_fail(__FILE__, __LINE__, "%s: %s", bad_chunks[i], a ? a->head : "no answer");
        check_error(a, 400);
        if (!wire_closed(w))
            harness_fail(__FILE__, __LINE__, "%s: not closed", bad_chunks[i]);
        wire_close(w);
    }
    check_int(peer_completed(p), 0);
    for (unsigned i = 0; i < peer_requests(p); i++)
        check_lacks(peer_request(p, i)->head, "sneaked");
    /* And it still serves. */
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a && a->status == 200);
}

/* ---- routes ---------------------------------------------------------------------------------- */

static void unknown_api_routes_are_501(void **state)
{
    static const char *const unknown[] = {
        "/api/v2/nope",
        "/api/v2/heartbeat/",
        "/api/v3/heartbeat",
        "/api/v2/tenants/t/databases/d/collections/c/add/more",
        "/api/v2//heartbeat",
        "/api/v2/./heartbeat",
        "/api/v2/tenants/../heartbeat",
        COLL "/frobnicate",
    };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    for (unsigned i = 0; i < COUNT_OF(unknown); i++) {
        wire_sendf(w, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", unknown[i]);
        struct answer *a = wire_answer(w, false);
        if (!a || a->status != 501)
            harness_fail(__FILE__, __LINE__, "%s: %s", unknown[i], a ? a->head : "no answer");
        check_error(a, 501);
    }
    /* With a body: it is read past, or the connection ends; it is never taken for a request. */
    struct answer *a = http_post(x->port, COLL "/frobnicate", SNEAK);
    check_error(a, 501);
    a = http_get(x->port, "/elsewhere");
    check_error(a, 404);
    check_int(peer_requests(p), 0);
}

static void wrong_method_is_405_with_allow(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_send(x->port, "DELETE", HEARTBEAT, "", NULL);
    check_error(a, 405);
    check_has(head_field(a->head, "Allow"), "GET");
    a = http_send(x->port, "POST", "/health", "", "{}");
    check_error(a, 405);
    check_int(peer_requests(p), 0);
}

static void v1_heartbeat_and_version_answer_from_v2(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = http_get(x->port, "/api/v1/heartbeat");
    check(a && a->status == 200);
    a = http_get(x->port, "/api/v1/version");
    check(a && a->status == 200);
    check_has(peer_request(p, 0)->head, "GET /api/v2/heartbeat HTTP/1.1\r\n");
    check_has(peer_request(p, 1)->head, "GET /api/v2/version HTTP/1.1\r\n");
    /* What Chroma says of the rest of v1 (410 and why) is for Chroma to say. */
    a = http_get(x->port, "/api/v1/collections");
    check(a && a->status == 200);
    check_has(peer_request(p, 2)->head, "GET /api/v1/collections HTTP/1.1\r\n");
}

static void classes_go_by_segment_never_by_substring(void **state)
{
    static const struct {
        const char *method, *target, *class;
    } cases[] = {
        {"GET", DB "/collections/addresses", "catalog"},
        {"GET", DB "/collections/delete", "catalog"},
        {"POST", COLL "/add", "write"},
        {"POST", COLL "/get", "read"},
        {"POST", COLL "/query", "read"},
        {"GET", COLL "/count", "read"},
        {"POST", DB "/collections", "catalog"},
        {"GET", "/api/v2/tenants/query", "catalog"},
    };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        struct answer *a = http_send(x->port, cases[i].method, keepf("%s?c=%u", cases[i].target, i),
                                     "", strcmp(cases[i].method, "POST") == 0 ? "{}" : NULL);
        check(a && a->status == 200);
        check_str(kv(chromux_access_line(x, keepf("?c=%u", i), 1), "class"), cases[i].class);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(long_target_is_414),
        TEST(endless_target_is_414_before_its_end),
        TEST(big_head_is_431),
        TEST(too_many_fields_are_431),
        TEST(declared_big_body_is_413_at_once),
        TEST(chunked_big_body_is_413),
        TEST(too_many_clients_are_turned_away_and_let_in_again),
        TEST(slow_head_is_408),
        TEST(slow_body_is_408),
        TEST(idle_client_is_closed_without_a_word),
        TEST(ambiguous_heads_reach_no_origin),
        TEST(bad_chunks_never_become_a_request),
        TEST(unknown_api_routes_are_501),
        TEST(wrong_method_is_405_with_allow),
        TEST(v1_heartbeat_and_version_answer_from_v2),
        TEST(classes_go_by_segment_never_by_substring),
    };
    return RUN(tests);
}
