/* Origins that die, hang or talk nonsense at every stage of a request: what the client gets, what
 * is tried again and what never is. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One request on its own connection whose answer may be cut off: NULL when no head came. */
static struct answer *ask(struct chromux *x, const char *method, const char *target)
{
    bool post = strcmp(method, "POST") == 0;
    return http_send(x->port, method, target, "", post ? "{\"ids\":[\"a\"]}" : NULL);
}

static struct answer *read_one(struct chromux *x)
{
    return ask(x, "POST", COLL "/get");
}

static struct answer *write_one(struct chromux *x)
{
    return ask(x, "POST", COLL "/add");
}

static void check_502(struct answer *a, const char *what)
{
    if (!a || a->status != 502 || strncmp(a->body, "{\"error\":\"", 10) != 0)
        harness_fail(__FILE__, __LINE__, "%s: %s", what, a ? a->head : "no answer");
    check_str(head_field(a->head, "X-Chromux-Instance"), "-");
}

/* ---- broken off before an answer: reads go elsewhere, writes are told ---- */

static void reset_at_once(struct conn *c)
{
    conn_reset(c);
}

static void reset_after_head(struct conn *c)
{
    conn_head(c);
    conn_reset(c);
}

static void reset_after_request(struct conn *c)
{
    conn_request(c);
    conn_reset(c);
}

static void close_after_request(struct conn *c)
{
    conn_request(c);
}

static void half_a_head(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nContent-Le");
}

static void half_a_head_then_reset(struct conn *c)
{
    half_a_head(c);
    conn_reset(c);
}

static void interim_then_close(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 102 Processing\r\n\r\n");
}

#define GARBAGE(name, text)                                                                        \
    static void name(struct conn *c)                                                               \
    {                                                                                              \
        conn_request(c);                                                                           \
        conn_write(c, text, sizeof(text) - 1);                                                     \
        conn_wait_gone(c);                                                                         \
    }
GARBAGE(garbage_tls, "\x15\x03\x01\x00\x02\x02\x0a")
GARBAGE(garbage_http2, "HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_no_version, "200 OK\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_status, "HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_status_word, "HTTP/1.1 2OO OK\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_bare_lf, "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}")
GARBAGE(garbage_both,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}")
GARBAGE(garbage_lengths, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}")
GARBAGE(garbage_length, "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}")
GARBAGE(garbage_coding, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}")
GARBAGE(garbage_fold, "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_nul, "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}")
GARBAGE(garbage_colon, "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}")
GARBAGE(garbage_switch, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")

static void garbage_endless_head(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i < 100000; i++)
        if (!conn_send(c, "X-Field-%d: value\r\n", i))
            return;
    conn_wait_gone(c);
}

static const struct {
    const char *what;
    peer_script *script;
} failures[] = {
    {"reset at once", reset_at_once},
    {"reset after the head", reset_after_head},
    {"reset after the request", reset_after_request},
    {"closed without an answer", close_after_request},
    {"half a head", half_a_head},
    {"half a head, reset", half_a_head_then_reset},
    {"an interim answer, closed", interim_then_close},
    {"a TLS alert", garbage_tls},
    {"HTTP/2", garbage_http2},
    {"no version", garbage_no_version},
    {"status 99", garbage_status},
    {"status 2OO", garbage_status_word},
    {"bare LF", garbage_bare_lf},
    {"CL and TE", garbage_both},
    {"two lengths", garbage_lengths},
    {"negative length", garbage_length},
    {"TE gzip", garbage_coding},
    {"folded field", garbage_fold},
    {"NUL", garbage_nul},
    {"space before colon", garbage_colon},
    {"switching protocols", garbage_switch},
    {"an endless head", garbage_endless_head},
};

static void lonely_failures_are_502(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "FAILURE_THRESHOLD=1000", "UPSTREAM_MAX_IDLE=0", NULL);
    for (unsigned i = 0; i < COUNT_OF(failures); i++) {
        peer_set_script(p, failures[i].script);
        unsigned before = peer_requests(p);
        struct answer *a = write_one(x);
        check_502(a, failures[i].what);
        /* A write reaches the origin once, and what became of it nobody knows. */
        check_has(a->body, "not known");
        check(peer_requests(p) <= before + 1);
        check_502(read_one(x), failures[i].what);
    }
    peer_set_script(p, serve_ok);
    struct answer *a = write_one(x);
    check(a && a->status == 200);
}

static void reads_move_on_writes_do_not(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "FAILURE_THRESHOLD=1000", "UPSTREAM_MAX_IDLE=0",
                                    "LOAD_BALANCE_STRATEGY=priority", NULL);
    for (unsigned i = 0; i < COUNT_OF(failures); i++) {
        peer_set_script(p, failures[i].script);
        unsigned before = peer_requests(q);
        struct answer *a = read_one(x);
        if (!a || a->status != 200 ||
            strcmp(head_field(a->head, "X-Chromux-Instance"), "replica") != 0)
            harness_fail(__FILE__, __LINE__, "%s: %s", failures[i].what, a ? a->head : "nothing");
        check_str(a->body, "{\"ok\":true}");
        check_int(peer_requests(q), before + 1);
        check_str(peer_request(q, before)->body, "{\"ids\":[\"a\"]}");
        /* Whether the primary is still up or not, a write never reaches the replica. */
        a = write_one(x);
        if (!a || (a->status != 502 && a->status != 503))
            harness_fail(__FILE__, __LINE__, "%s: %s", failures[i].what, a ? a->head : "nothing");
        check_int(peer_requests(q), before + 1);
        peer_set_script(p, serve_ok);
        check_soon((a = http_get(x->port, HEARTBEAT)) != NULL && a->status == 200 &&
                       strcmp(head_field(a->head, "X-Chromux-Instance"), "primary") == 0,
                   20);
    }
    check(count_lines(chromux_access(x), " attempts=2 ") >= COUNT_OF(failures));
}

/* ---- broken off within the body ---- */

static void half_a_length_body(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it");
}

static void half_a_length_body_reset(struct conn *c)
{
    half_a_length_body(c);
    conn_wait(c);
    conn_reset(c);
}

static void half_a_chunked_body(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe");
}

static void no_last_chunk(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
}

static void bad_chunk(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n");
    conn_wait_gone(c);
}

static void cut_answers_never_look_whole(void **state)
{
    static const struct {
        const char *what;
        peer_script *script;
    } cuts[] = {
        {"half a body", half_a_length_body},
        {"half a body, reset", half_a_length_body_reset},
        {"half a chunk", half_a_chunked_body},
        {"no last chunk", no_last_chunk},
        {"a bad chunk", bad_chunk},
    };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "FAILURE_THRESHOLD=1000", "UPSTREAM_MAX_IDLE=0", NULL);
    peer_release(p);
    for (unsigned i = 0; i < COUNT_OF(cuts); i++) {
        peer_set_script(p, cuts[i].script);
        struct wire *w = wire_open(x->port);
        wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
        struct answer *a = wire_answer(w, false);
        /* Seen as an error of our own, or as an answer that plainly ends too soon. */
        if (a && (a->status == 200 ? a->complete : a->status != 502))
            harness_fail(__FILE__, __LINE__, "%s: %s", cuts[i].what, a->head);
        if (a && a->status == 200)
            check(wire_closed(w));
        wire_close(w);
    }
    chromux_access_line(x, "/count", COUNT_OF(cuts));
    for (unsigned i = 1; i <= COUNT_OF(cuts); i++)
        check(strcmp(kv(chromux_access_line(x, "/count", i), "end"), "done") != 0);
}

/* ---- time ---- */

static void never(struct conn *c)
{
    conn_request(c);
    conn_wait_gone(c);
}

static void silence_is_504_within_the_time_out(void **state)
{
    struct peer *p = peer_start(never);
    struct chromux *x =
        in_front_of(p, NULL, "REQUEST_TIMEOUT=1", "TRY_TIMEOUT=0.5", "PROBE_TIMEOUT=5", NULL);
    double began = now_seconds();
    struct answer *a = write_one(x);
    double took = now_seconds() - began;
    check(a != NULL);
    check_int(a->status, 504);
    check(took >= 0.9 && took < 1 + slow(1));
    check_has(a->body, "\"error\":\"");
    began = now_seconds();
    a = read_one(x);
    took = now_seconds() - began;
    check(a != NULL);
    check_int(a->status, 504);
    check(took < 1 + slow(1));
    check_int(peer_requests(p), 2);
    check_soon(peer_gone(p) == 2, 5);
}

static void silent_instance_costs_a_read_one_try(void **state)
{
    struct peer *p = peer_start(never), *q = peer_start(serve_ok);
    struct chromux *x =
        in_front_of(p, q, "TRY_TIMEOUT=0.5", "LOAD_BALANCE_STRATEGY=priority", NULL);
    double began = now_seconds();
    struct answer *a = read_one(x);
    double took = now_seconds() - began;
    check(a != NULL);
    check_int(a->status, 200);
    check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
    check(took >= 0.4 && took < 0.5 + slow(1));
    check_soon(peer_gone(p) == 1, 5);
}

/* Half of a body, no more of it for a while (which proves that nobody is blamed), and the rest. */
static struct wire *send_haltingly(struct chromux *x, struct peer *p, struct peer *q)
{
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n{\"ids\"");
    check_soon(peer_requests(p) == 1, 5);
    if (wait_until(peer_requests(q) > 0 || strstr(chromux_log(x), "instance_suspect"), 1))
        harness_fail(__FILE__, __LINE__, "the client is slow, and a server pays for it");
    wire_sendf(w, ":[\"a\"]}");
    return w;
}

static void slow_upload_is_not_the_servers_fault(void **state)
{
    struct peer *p = peer_start(serve_echo), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, keepf("TRY_TIMEOUT=%g", slow(0.3)),
                                    "LOAD_BALANCE_STRATEGY=priority", NULL);
    struct answer *a = wire_answer(send_haltingly(x, p, q), false);
    check(a != NULL);
    check_str(a->body, "{\"ids\":[\"a\"]}");
    check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    check_int(peer_requests(q), 0);
}

/* The clock of the try starts with the client's last byte; it is not stopped for good. */
static void silence_after_a_slow_upload_moves_a_read_on(void **state)
{
    struct peer *p = peer_start(never), *q = peer_start(serve_echo);
    struct chromux *x = in_front_of(p, q, keepf("TRY_TIMEOUT=%g", slow(0.3)),
                                    "LOAD_BALANCE_STRATEGY=priority", NULL);
    struct answer *a = wire_answer(send_haltingly(x, p, q), false);
    check(a != NULL);
    check_str(a->body, "{\"ids\":[\"a\"]}");
    check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
    check(strstr(chromux_log(x), "instance_suspect name=primary") != NULL);
}

static void upload_slower_than_the_request_may_be_is_408(void **state)
{
    static const char *const targets[] = {COLL "/get", COLL "/add"};
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "REQUEST_TIMEOUT=0.6", "TRY_TIMEOUT=0.2", NULL);
    for (unsigned i = 0; i < COUNT_OF(targets); i++) {
        struct wire *w = wire_open(x->port);
        wire_sendf(w, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc", targets[i]);
        struct answer *a = wire_answer(w, false);
        check(a != NULL);
        check_int(a->status, 408);
        check(wire_closed(w));
        check_str(kv(chromux_access_line(x, targets[i], 1), "end"), "client_slow_body");
    }
    check_int(peer_completed(p), 0);
    check_lacks(chromux_log(x), "instance_suspect");
}

static void stall_in_mid_answer(struct conn *c)
{
    conn_request(c);
    conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    conn_wait_gone(c);
}

static void answer_that_stalls_is_cut_off(void **state)
{
    struct peer *p = peer_start(stall_in_mid_answer);
    struct chromux *x = in_front_of(p, NULL, "BODY_TIMEOUT=0.5", NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check(!a->complete);
    check(wire_closed(w));
    check_soon(peer_gone(p) == 1, 5);
}

static void drip(struct conn *c)
{
    conn_request(c);
    conn_drip(c, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", 1, 0.01);
    conn_drip(c, "twenty bytes of text", 1, 0.1);
}

static void answer_byte_by_byte_is_whole(void **state)
{
    struct peer *p = peer_start(drip);
    /* Slower in total than any of these: what moves is not late. */
    struct chromux *x =
        in_front_of(p, NULL, keepf("BODY_TIMEOUT=%g", slow(1)), keepf("TRY_TIMEOUT=%g", slow(1)),
                    keepf("REQUEST_TIMEOUT=%g", slow(1.5)), NULL);
    struct answer *a = read_one(x);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "twenty bytes of text");
}

/* 192.0.2.0/24 is for documentation and leads nowhere: silence, or a route that says so at once. */
static void connect_time_out_moves_a_read_on(void **state)
{
    struct peer *q = peer_start(serve_ok);
    struct chromux *x = chromux_start(
        keepf("CHROMA_INSTANCES=far=http://192.0.2.1:8000,priority=9;near=%s,priority=1",
              peer_url(q)),
        "UNREPLICATED_READS=any", "CONNECT_TIMEOUT=0.3", "LOAD_BALANCE_STRATEGY=priority", NULL);
    struct answer *a;
    check_soon((a = read_one(x)) != NULL && a->status == 200, 10);
    check_str(head_field(a->head, "X-Chromux-Instance"), "near");
    double began = now_seconds();
    a = write_one(x);
    check(a != NULL);
    check_int(a->status, 503);
    check(head_field(a->head, "Retry-After") != NULL);
    check(now_seconds() - began < slow(2));
}

/* An origin that never comes to its answer, to a client that never reads. */
static void flood_interim(struct conn *c)
{
    conn_request(c);
    while (conn_send(c, "HTTP/1.1 103 Early Hints\r\nLink: </%0500d>\r\n\r\n", 0))
        ;
    conn_mark(c);
}

static void endless_interim_answers_use_bounded_memory(void **state)
{
    struct peer *p = peer_start(flood_interim);
    struct chromux *x = in_front_of(p, NULL, "REQUEST_TIMEOUT=2", "TRY_TIMEOUT=2", NULL);
    long before = process_rss_kb(x->pid), most = 0;
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    while (peer_marks(p) == 0 && most < 1024 * 1024) {
        long grown = process_rss_kb(x->pid) - before;
        most = grown > most ? grown : most;
        harness_nap();
    }
    if (most > (sanitized() ? 64 : 16) * 1024)
        harness_fail(__FILE__, __LINE__, "memory grew by %ld kB", most);
    check_soon(count_lines(chromux_access(x), "/add") == 1, 5);
}

/* ---- kept connections ---- */

/* The first connection is good for one request; the next request on it is met with a reset. */
static void go_stale(struct conn *c)
{
    if (conn_nth(c) > 0) {
        serve_ok(c);
    } else if (conn_request(c)) {
        conn_answer(c, "first");
        conn_head(c);
        conn_reset(c);
    }
}

static void stale_connection_is_not_seen_by_a_read(void **state)
{
    struct peer *p = peer_start(go_stale);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = read_one(x);
    check(a != NULL);
    check_str(a->body, "first");
    a = read_one(x);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(a->body, "{\"ok\":true}");
    check_int(peer_connections(p), 2);
}

static void write_never_meets_a_stale_connection(void **state)
{
    struct peer *p = peer_start(go_stale);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = read_one(x);
    check(a != NULL);
    a = write_one(x);
    check(a != NULL);
    check_int(a->status, 200);
    check_int(peer_connections(p), 2);
    check_int(peer_requests(p), 2);
}

static void close_idle(struct conn *c)
{
    if (conn_request(c))
        conn_answer(c, "{}");
}

static void connections_closed_while_idle_cost_nothing(void **state)
{
    struct peer *p = peer_start(close_idle);
    struct chromux *x = in_front_of(p, NULL, NULL);
    for (int i = 0; i < 40; i++) {
        struct answer *a = i % 2 ? write_one(x) : read_one(x);
        check(a != NULL);
        check_int(a->status, 200);
    }
}

static void split_answer(struct conn *c)
{
    if (conn_nth(c) > 0) {
        serve_ok(c);
    } else if (conn_request(c)) {
        conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
                     "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
        conn_wait_gone(c);
    }
}

static void unasked_answer_reaches_nobody(void **state)
{
    struct peer *p = peer_start(split_answer);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct answer *a = read_one(x);
    check(a != NULL);
    check_str(a->body, "first");
    for (int i = 0; i < 3; i++) {
        a = read_one(x);
        check(a != NULL);
        check_int(a->status, 200);
        check_str(a->body, "{\"ok\":true}");
    }
}

static void answer_before_the_body(struct conn *c)
{
    struct request *r = conn_head(c);
    if (!r)
        return;
    conn_answer(c, "early");
    conn_body(c, r);
    serve_ok(c);
}

static void early_200_keeps_everything_in_step(void **state)
{
    struct peer *p = peer_start(answer_before_the_body);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "POST " COLL "/add HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\nGET ");
    struct answer *a = wire_answer(w, false);
    check(a && a->status == 200);
    check_str(a->body, "early");
    w->patience = 1;
    wire_sendf(w, "/api/v2/version HTTP/1.1\r\nHost: h\r\n\r\n          ");
    /* Closed, or the rest was taken for the body it is; never a second answer to it. */
    check(!wire_answer(w, false));
    check_lacks(chromux_access(x), "path=/api/v2/version");
}

/* ---- away ---- */

static void refused_connections_are_not_seen_by_reads(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "CHECK_INTERVAL=60", NULL);
    peer_stop(p);
    for (int i = 0; i < 20; i++) {
        struct answer *a = read_one(x);
        check(a != NULL);
        check_int(a->status, 200);
        check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
    }
    check(count_lines(chromux_access(x), " attempts=2 ") >= 1);
    struct answer *a = write_one(x);
    check(a != NULL);
    check_int(a->status, 503);
    check(head_field(a->head, "Retry-After") != NULL);
    check_int(peer_requests(q), 20);
}

static void everybody_away_is_503(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, NULL);
    peer_stop(p);
    peer_stop(q);
    for (int i = 0; i < 5; i++) {
        struct answer *a = read_one(x), *b = write_one(x);
        check(a && b);
        check_int(a->status, 503);
        check_int(b->status, 503);
        check_has(a->body, "\"error\":\"");
    }
}

static void fail_500(struct conn *c)
{
    while (conn_request(c))
        conn_send(
            c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 12\r\n\r\n{\"error\":1}\n");
}

static void a_500_is_passed_on_for_writes_and_avoided_for_reads(void **state)
{
    struct peer *p = peer_start(fail_500), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "LOAD_BALANCE_STRATEGY=priority", NULL);
    struct answer *a = write_one(x);
    check(a != NULL);
    check_int(a->status, 500);
    check_str(a->body, "{\"error\":1}\n");
    check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
    a = read_one(x);
    check(a != NULL);
    check_int(a->status, 200);
}

/* A single Chroma server answers 500 to indexing_status, and to a rename to a name that is taken,
 * however well it is. */
static void errors_of_healthy_servers_are_no_bad_sign(void **state)
{
    struct peer *p = peer_start(fail_500), *q = peer_start(fail_500);
    struct chromux *x = in_front_of(p, q, "LOAD_BALANCE_STRATEGY=priority", NULL);
    for (int i = 0; i < 10; i++) {
        struct answer *a = ask(x, "GET", COLL "/indexing_status"), *b = ask(x, "PUT", COLL);
        check(a && b);
        check_int(a->status, 500);
        check_int(b->status, 500);
    }
    check_int(peer_requests(p), 20);
    check_int(peer_requests(q), 0);
    check_lacks(chromux_log(x), "collection_down");
    for (int i = 0; i < 10; i++) /* other routes still take it out */
        check(read_one(x) != NULL);
    check_soon(strstr(chromux_log(x), "collection_down name=primary") != NULL, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(lonely_failures_are_502),
        TEST(reads_move_on_writes_do_not),
        TEST(cut_answers_never_look_whole),
        TEST(silence_is_504_within_the_time_out),
        TEST(silent_instance_costs_a_read_one_try),
        TEST(slow_upload_is_not_the_servers_fault),
        TEST(silence_after_a_slow_upload_moves_a_read_on),
        TEST(upload_slower_than_the_request_may_be_is_408),
        TEST(answer_that_stalls_is_cut_off),
        TEST(answer_byte_by_byte_is_whole),
        TEST(connect_time_out_moves_a_read_on),
        TEST(endless_interim_answers_use_bounded_memory),
        TEST(stale_connection_is_not_seen_by_a_read),
        TEST(write_never_meets_a_stale_connection),
        TEST(connections_closed_while_idle_cost_nothing),
        TEST(unasked_answer_reaches_nobody),
        TEST(early_200_keeps_everything_in_step),
        TEST(refused_connections_are_not_seen_by_reads),
        TEST(everybody_away_is_503),
        TEST(a_500_is_passed_on_for_writes_and_avoided_for_reads),
        TEST(errors_of_healthy_servers_are_no_bad_sign),
    };
    return RUN(tests);
}
