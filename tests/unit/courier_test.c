/* courier_test.c: every ending of a call with what was sent by then, against a peer whose sockets
 * the test holds; the fence; sentinels. */
#include "courier.h"

#include "log.h"
#include "wires.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { PEERS_MAX = 64, CALLS_MAX = 8, BIG = 40 << 20, TOLD_MAX = 32 };

static struct ev_loop *loop;
static struct dns *dns;
static struct config *cfg;
static int listener, port;
static ev_io acceptor;
static int peers[PEERS_MAX]; /* in the order of their connects; peers[0] is the sentinel's */
static unsigned peer_count;
static bool slams; /* closes what it accepts */
static uint64_t told[TOLD_MAX];
static unsigned told_count;
static char *big;
static struct courier_call *calls[CALLS_MAX]; /* open: a failed test leaves some */

static void on_accept(struct ev_loop *l, ev_io *w, int revents)
{
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0 && peer_count < PEERS_MAX);
    if (slams) {
        close(fd);
        fd = -1;
    } else {
        wires_nonblocking(fd);
    }
    peers[peer_count++] = fd;
}

static void on_incarnation(struct node *n, uint64_t incarnation)
{
    if (told_count < TOLD_MAX)
        told[told_count++] = incarnation;
}

static void configure(const char *instances)
{
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 4096);
    config_raws_add(&raws, "CHROMA_INSTANCES", instances, CONFIG_TEXT, "--set");
    config_raws_add(&raws, "CONNECT_TIMEOUT", "0.2", CONFIG_TEXT, "--set");
    struct config *was = cfg;
    cfg = config_build(&raws, &errors);
    if (!cfg)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    pool_reload(cfg);
    courier_reload(cfg);
    fleet_configure(cfg, base_clock());
    if (was)
        config_free(was);
    config_raws_fini(&raws);
    buf_fini(&errors);
}

static void configure_port(const char *name, int to)
{
    char instances[64];
    snprintf(instances, sizeof instances, "%s=http://127.0.0.1:%d", name, to);
    configure(instances);
}

static struct node *node(void)
{
    struct node *n = fleet_find(STR("a"));
    assert_non_null(n);
    return n;
}

static int once(void **state)
{
    const char *why;
    log_set_fd(-1);
    loop = ev_loop_new(EVFLAG_AUTO);
    stream_start(loop);
    listener = wires_listen(&port);
    ev_io_init(&acceptor, on_accept, listener, EV_READ);
    ev_io_start(loop, &acceptor);
    dns = dns_new(loop, "127.0.0.1", &why);
    assert_non_null(dns);
    pool_start(NULL, dns); /* the observers stay for ever: once a process */
    courier_observe(on_incarnation);
    big = base_alloc(BIG);
    for (unsigned i = 0; i < BIG; i++)
        big[i] = (char)('a' + i % 23);
    return 0;
}

static int finish(void **state)
{
    pool_stop();
    dns_free(dns);
    ev_io_stop(loop, &acceptor);
    close(listener);
    ev_loop_destroy(loop);
    free(big);
    return 0;
}

static int start(void **state)
{
    told_count = 0;
    slams = false;
    configure_port("a", port);
    courier_start(cfg);
    if (!wires_until(loop, courier_incarnation(node()) == 1 && peer_count == 1 && told_count == 1))
        return -1;
    return 0;
}

static int stop(void **state)
{
    for (unsigned i = 0; i < CALLS_MAX; i++)
        if (calls[i])
            courier_close(&calls[i]);
    courier_stop();
    for (unsigned i = 0; i < fleet_count; i++) {
        struct node *n = fleet_node[i];
        for (struct conn *c; (c = pool_take(n, NULL, NULL));)
            pool_drop(&c);
        if (pool_open(n) != 0 || n->inflight != 0)
            return -1;
    }
    wires_settle(loop);
    fleet_free_all();
    config_free(cfg);
    cfg = NULL;
    while (peer_count > 0)
        if (peers[--peer_count] >= 0)
            close(peers[peer_count]);
    return 0;
}

/* ---- the peer's words ------------------------------------------------------------------------ */

static char heard[65536];
static size_t heard_n;

/* Reads what has come on peers[i] into heard. */
static ssize_t hear(unsigned i)
{
    ssize_t n = recv(peers[i], heard + heard_n, sizeof heard - 1 - heard_n, 0);
    if (n > 0)
        heard_n += (size_t)n;
    heard[heard_n] = 0;
    return n;
}

/* Until a whole small request has come on peers[i], which `end` ends. */
static void hear_until(unsigned i, const char *end)
{
    heard_n = heard[0] = 0;
    assert_true(wires_until(loop, peer_count > i));
    assert_true(wires_until(loop, (hear(i), strstr(heard, end))));
}

static void say(unsigned i, const char *text)
{
    assert_int_equal(send(peers[i], text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Ends peers[i]. */
static void hang_up(unsigned i, bool reset)
{
    if (reset)
        wires_reset(peers[i]);
    else
        close(peers[i]);
    peers[i] = -1;
}

/* Reads all there is on peers[i] until its end: how much, and the errno of the end (0: FIN). */
static size_t drain(unsigned i, int *error)
{
    static char block[1 << 20];
    size_t all = 0;
    *error = -1;
    double until = ev_time() + WIRES_PATIENCE;
    while (*error == -1 && ev_time() < until) {
        ssize_t n = recv(peers[i], block, sizeof block, 0);
        if (n > 0)
            all += (size_t)n;
        else if (n == 0)
            *error = 0;
        else if (errno != EAGAIN)
            *error = errno;
        else
            (void)wires_turn(loop, 0.002, NULL);
    }
    return all;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static unsigned ended;
static uint64_t incarnation_at_end;

static void on_ended(void *arg, struct courier_call *c)
{
    ended++;
    incarnation_at_end = courier_incarnation(arg);
}

static struct courier_request request(struct str body)
{
    return (struct courier_request){.node = node(),
                                    .method = "POST",
                                    .target = STR("/api/v2/x?y=1"),
                                    .type = "application/json",
                                    .body = body,
                                    .max_answer = 4096};
}

static void closes(struct courier_call **c)
{
    for (unsigned i = 0; i < CALLS_MAX; i++)
        if (calls[i] == *c)
            calls[i] = NULL;
    courier_close(c);
    assert_null(*c);
}

static struct courier_call *sends(const struct courier_request *r)
{
    ended = 0;
    struct courier_call *c = courier_send(r, on_ended, r->node);
    assert_non_null(c);
    for (unsigned i = 0; i < CALLS_MAX; i++)
        if (!calls[i]) {
            calls[i] = c;
            break;
        }
    assert_int_equal(ended, 0); /* never before courier_send has returned */
    return c;
}

static struct courier_call *sends_small(void)
{
    struct courier_request r = request(STR("{\"a\":1}"));
    return sends(&r);
}

/* Waits for the ending, checks it and leaves the call open. */
static const struct courier_result *ends(struct courier_call *c, enum courier_end end)
{
    assert_true(wires_until(loop, ended == 1));
    const struct courier_result *r = courier_result(c);
    if (r->end != end)
        fail_msg("ended %s, not %s: %s", courier_end_name(r->end), courier_end_name(end), r->error);
    assert_true((r->error[0] == 0) == (end == COURIER_ANSWER));
    return r;
}

static void text_is(struct str s, const char *text)
{
    if (!str_eq(s, str_from(text)))
        fail_msg("\"%.*s\" is not \"%s\"", (int)s.n, s.p, text);
}

/* A small request on a connection of its own, whole at the peer, is told `answer`, and then the
 * peer hangs up (0), resets (1) or stays (-1). */
static struct courier_call *asks(const char *answer, int then, enum courier_end end)
{
    unsigned i = peer_count;
    struct courier_request r = request(STR("{\"a\":1}"));
    r.fresh = true;
    struct courier_call *c = sends(&r);
    hear_until(i, "{\"a\":1}");
    say(i, answer);
    if (then == 1) /* what was said must be read before a reset throws it away */
        wires_settle(loop);
    if (then >= 0)
        hang_up(i, then == 1);
    (void)ends(c, end);
    assert_true(courier_touched(c));
    assert_true(courier_body_complete(c));
    return c;
}

static void ask(const char *answer, int then, enum courier_end end)
{
    struct courier_call *c = asks(answer, then, end);
    closes(&c);
}

static void an_answer_with_a_length(void **state)
{
    struct courier_request r = request(STR("{\"a\":1}"));
    char host[32];
    r.fields = STR("X-One: 1\r\nX-Two: 2\r\n");
    r.request_id = "abc";
    struct courier_call *c = sends(&r);
    assert_int_equal(node()->inflight, 1);
    hear_until(1, "{\"a\":1}");
    assert_ptr_equal(strstr(heard, "POST /api/v2/x?y=1 HTTP/1.1\r\n"), heard);
    snprintf(host, sizeof host, "\r\nHost: 127.0.0.1:%d\r\n", port);
    assert_non_null(strstr(heard, host));
    assert_non_null(strstr(heard, "\r\nUser-Agent: chromux-journal\r\n"));
    assert_non_null(strstr(heard, "\r\nContent-Length: 7\r\n"));
    assert_non_null(strstr(heard, "\r\nContent-Type: application/json\r\n"));
    assert_non_null(strstr(heard, "\r\nX-Request-Id: abc\r\n"));
    assert_non_null(strstr(heard, "\r\nX-One: 1\r\nX-Two: 2\r\n\r\n{\"a\":1}"));
    say(1, "HTTP/1.1 201 Created\r\nContent-Ty");
    wires_settle(loop);
    say(1, "pe: text/x\r\nContent-Length: 5\r\n\r\nab");
    wires_settle(loop);
    assert_int_equal(ended, 0);
    say(1, "cde");
    const struct courier_result *a = ends(c, COURIER_ANSWER);
    assert_int_equal(a->status, 201);
    text_is(a->type, "text/x");
    text_is(a->body, "abcde");
    text_is(a->head, "HTTP/1.1 201 Created\r\nContent-Type: text/x\r\nContent-Length: 5\r\n\r\n");
    assert_int_equal(node()->inflight, 0);
    assert_int_equal(node()->answers[2], 1);
    closes(&c);
}

static void connections_are_kept_unless_fresh_is_wanted(void **state)
{
    for (unsigned i = 0; i < 3; i++) {
        struct courier_request r = request(STR("{\"a\":1}"));
        r.fresh = i == 2;
        struct courier_call *c = sends(&r);
        hear_until(i == 2 ? 2 : 1, "{\"a\":1}");
        say(i == 2 ? 2 : 1, "HTTP/1.1 204 No Content\r\n\r\n");
        assert_int_equal(ends(c, COURIER_ANSWER)->status, 204);
        closes(&c);
        assert_int_equal(peer_count, i == 2 ? 3 : 2);
    }
}

static void a_kept_connection_that_was_closed_is_not_used(void **state)
{
    ask("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", -1, COURIER_ANSWER);
    assert_int_equal(pool_idle(node()), 1);
    hang_up(1, false); /* and the loop has not turned since */
    struct courier_call *c = sends_small();
    hear_until(2, "{\"a\":1}");
    say(2, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    (void)ends(c, COURIER_ANSWER);
    closes(&c);
}

static void a_chunked_answer(void **state)
{
    static const char answer[] = "HTTP/1.1 100 Continue\r\n\r\n"
                                 "HTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n"
                                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                 "3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n";
    struct courier_call *c = sends_small();
    hear_until(1, "{\"a\":1}");
    for (const char *p = answer; *p; p++) {
        assert_int_equal(ended, 0);
        assert_int_equal(send(peers[1], p, 1, MSG_NOSIGNAL), 1);
        (void)wires_turn(loop, 0.001, NULL);
    }
    const struct courier_result *a = ends(c, COURIER_ANSWER);
    assert_int_equal(a->status, 200);
    text_is(a->body, "abcdefg");
    assert_int_equal(pool_idle(node()), 1);
    closes(&c);
}

static void an_answer_until_the_end(void **state)
{
    struct courier_call *c = asks("HTTP/1.1 200 OK\r\n\r\nabc", 0, COURIER_ANSWER);
    text_is(courier_result(c)->body, "abc");
    closes(&c);
    assert_int_equal(pool_open(node()), 0);
    ask("HTTP/1.1 200 OK\r\n\r\nabc", 1, COURIER_PEER_CLOSED); /* a reset is no such end */
}

static void head_has_no_body(void **state)
{
    struct courier_request r = request((struct str){NULL, 0});
    r.method = "HEAD";
    struct courier_call *c = sends(&r);
    hear_until(1, "\r\n\r\n");
    say(1, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert_int_equal(ends(c, COURIER_ANSWER)->body.n, 0);
    closes(&c);
}

static void an_early_answer(void **state)
{
    struct courier_request r = request((struct str){big, BIG});
    struct courier_call *c = sends(&r);
    assert_true(wires_until(loop, peer_count == 2));
    wires_settle(loop);
    say(1, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
    text_is(ends(c, COURIER_ANSWER)->body, "big");
    assert_true(courier_touched(c));
    assert_false(courier_body_complete(c));
    assert_int_equal(pool_open(node()), 0);
    closes(&c);
}

static void nobody_listens(void **state)
{
    configure_port("a", wires_dead_port());
    struct courier_call *c = sends_small();
    (void)ends(c, COURIER_NOT_SENT);
    assert_false(courier_touched(c));
    assert_false(courier_body_complete(c));
    closes(&c);
}

/* A listening socket whose queue is full, so that connecting to it hangs. */
static int full_port(int *fd, int fill[4])
{
    int to;
    *fd = wires_listen(&to);
    assert_int_equal(listen(*fd, 0), 0);
    struct sockaddr_in at = wires_at(to);
    for (unsigned i = 0; i < 4; i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)!connect(fill[i], (struct sockaddr *)&at, sizeof at);
    }
    return to;
}

static void connecting_takes_too_long(void **state)
{
    int fd, fill[4];
    configure_port("a", full_port(&fd, fill));
    struct courier_call *c = sends_small();
    assert_non_null(strstr(ends(c, COURIER_NOT_SENT)->error, "CONNECT_TIMEOUT"));
    assert_false(courier_touched(c));
    closes(&c);
    close(fd);
    for (unsigned i = 0; i < 4; i++)
        close(fill[i]);
}

static void the_server_closes_at_each_stage(void **state)
{
    static const char *const stages[] = {"",
                                         "HTTP/1.1 100 Continue\r\n\r\n",
                                         "HTTP/1.1 200 O",
                                         "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                                         "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd",
                                         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                                         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                         "3\r\nab",
                                         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                         "3\r\nabc\r\n0\r\n"};
    for (unsigned i = 0; i < COUNT_OF(stages); i++)
        for (int reset = 0; reset < 2; reset++)
            ask(stages[i], reset, COURIER_PEER_CLOSED);
    assert_int_equal(node()->failures, 2 * COUNT_OF(stages));
}

static void the_server_closes_within_the_body(void **state)
{
    for (int reset = 0; reset < 2; reset++) {
        unsigned i = peer_count;
        struct courier_request r = request((struct str){big, BIG});
        struct courier_call *c = sends(&r);
        assert_true(wires_until(loop, peer_count == i + 1 && courier_touched(c)));
        hang_up(i, reset); /* with unread bytes closing is a reset as well */
        (void)ends(c, COURIER_PEER_CLOSED);
        assert_false(courier_body_complete(c));
        closes(&c);
    }
}

static void what_is_no_answer_is_garbage(void **state)
{
    ask("\x16\x03 what is this\r\n\r\n", -1, COURIER_GARBAGE);
    ask("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", -1, COURIER_GARBAGE);
    ask("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", -1, COURIER_GARBAGE);
    assert_int_equal(pool_open(node()), 0);
}

static void answers_are_bounded(void **state)
{
    struct courier_call *c =
        asks("HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n", -1, COURIER_GARBAGE);
    assert_non_null(strstr(courier_result(c)->error, "larger"));
    closes(&c);
    char text[5000] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1001\r\n";
    size_t n = strlen(text);
    memset(text + n, 'x', 4097);
    c = asks(text, -1, COURIER_GARBAGE);
    assert_non_null(strstr(courier_result(c)->error, "larger"));
    assert_int_equal(courier_result(c)->status, 200);
    closes(&c);
    snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n%04096d", 7);
    c = asks(text, -1, COURIER_ANSWER);
    assert_int_equal(courier_result(c)->body.n, 4096);
    closes(&c);
}

/* R4: the caller has long given up waiting, the call has not. */
static void a_late_answer_is_still_an_answer(void **state)
{
    struct courier_call *c = sends_small();
    hear_until(1, "{\"a\":1}");
    (void)wires_turn(loop, 0.5, NULL); /* more than CONNECT_TIMEOUT */
    assert_int_equal(ended, 0);
    say(1, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate");
    text_is(ends(c, COURIER_ANSWER)->body, "late");
    closes(&c);
}

static void a_big_body_for_a_slow_reader(void **state)
{
    struct courier_request r = request((struct str){big, BIG});
    char *got = base_alloc(BIG + 1024);
    size_t n = 0;
    courier_fence_set(courier_boottime() + 60);
    r.fenced = true;
    struct courier_call *c = sends(&r);
    assert_true(wires_until(loop, peer_count == 2 && courier_touched(c)));
    wires_settle(loop);
    assert_false(courier_body_complete(c));
    const char *body = NULL;
    assert_true(wires_until(loop, ({
                                ssize_t one;
                                size_t most = n + (4u << 20);
                                if (most > BIG + 1024)
                                    most = BIG + 1024;
                                while (n < most && (one = recv(peers[1], got + n, most - n, 0)) > 0)
                                    n += (size_t)one;
                                if (!body && n > 4 && (body = memmem(got, n, "\r\n\r\n", 4)))
                                    body += 4;
                                body &&n - (size_t)(body - got) >= BIG;
                            })));
    assert_true(courier_body_complete(c));
    assert_int_equal(n - (size_t)(body - got), BIG);
    assert_memory_equal(body, big, BIG);
    assert_int_equal(ended, 0);
    say(1, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    (void)ends(c, COURIER_ANSWER);
    closes(&c);
    free(got);
}

/* ---- the fence ------------------------------------------------------------------------------- */

static void without_a_lease_nothing_fenced_is_sent(void **state)
{
    struct courier_request r = request(STR("{\"a\":1}"));
    int error;
    r.fenced = true;
    struct courier_call *c = sends(&r);
    (void)ends(c, COURIER_FENCED);
    assert_false(courier_touched(c));
    closes(&c);
    assert_true(wires_until(loop, peer_count == 2));
    assert_int_equal(drain(1, &error), 0);
    c = sends_small(); /* what is not fenced goes */
    hear_until(2, "{\"a\":1}");
    closes(&c);
}

static void a_lease_that_runs_out_holds_the_last_byte_back(void **state)
{
    struct courier_request r = request((struct str){big, BIG});
    int error;
    double until = courier_boottime() + 0.3;
    courier_fence_set(until);
    r.fenced = true;
    struct courier_call *c = sends(&r);
    assert_true(wires_until(loop, peer_count == 2 && courier_touched(c)));
    assert_true(wires_until(loop, courier_boottime() > until));
    assert_int_equal(ended, 0); /* the socket is full: nothing to do until it takes more */
    size_t n = drain(1, &error);
    assert_true(n > 0 && n < BIG);
    assert_int_equal(error, ECONNRESET);
    (void)ends(c, COURIER_FENCED);
    assert_true(courier_touched(c));
    assert_false(courier_body_complete(c));
    closes(&c);
}

/* ---- closing --------------------------------------------------------------------------------- */

static void closing_ends_without_a_word(void **state)
{
    int error;
    struct courier_call *c = sends_small();
    hear_until(1, "{\"a\":1}");
    closes(&c);
    assert_int_equal(drain(1, &error), 0);
    assert_int_equal(error, 0);
    assert_int_equal(node()->inflight, 0);
    struct courier_request r = request((struct str){big, BIG});
    c = sends(&r);
    assert_true(wires_until(loop, peer_count == 3 && courier_touched(c)));
    closes(&c);
    assert_true(drain(2, &error) < BIG);
    assert_int_equal(error, ECONNRESET);
    c = sends_small();
    closes(&c); /* while it connects */
    wires_settle(loop);
    assert_int_equal(ended, 0);
}

/* ---- a node that leaves ---------------------------------------------------------------------- */

static void retire_a(void)
{
    struct node *n = node();
    fleet_hold(n);
    configure_port("b", wires_dead_port());
    assert_true(n->removed);
    pool_retire(n);
    courier_retire(n);
    fleet_release(&n);
}

static void a_node_that_leaves_lets_calls_end(void **state)
{
    struct courier_call *c = sends_small();
    hear_until(1, "{\"a\":1}");
    retire_a();
    int error;
    (void)drain(0, &error); /* the sentinel goes */
    assert_int_equal(error, 0);
    assert_int_equal(ended, 0);
    say(1, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    (void)ends(c, COURIER_ANSWER);
    closes(&c);
}

static void a_node_that_leaves_ends_calls_that_connect(void **state)
{
    int fd, fill[4];
    configure_port("a", full_port(&fd, fill));
    struct courier_call *c = sends_small();
    retire_a();
    assert_int_equal(ended, 0);
    assert_non_null(strstr(ends(c, COURIER_NOT_SENT)->error, "removed"));
    closes(&c);
    close(fd);
    for (unsigned i = 0; i < 4; i++)
        close(fill[i]);
}

/* ---- sentinels ------------------------------------------------------------------------------- */

static void the_end_of_the_sentinel_ends_the_incarnation(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t was = courier_incarnation(node());
        told_count = 0;
        hang_up(peer_count - 1, i == 1);
        assert_true(wires_until(loop, told_count == 2));
        assert_int_equal(told[0], 0);
        assert_int_equal(told[1], was + 1);
        assert_int_equal(courier_incarnation(node()), was + 1);
        assert_true(wires_until(loop, peer_count == i + 2));
    }
}

static void words_to_the_sentinel_are_ignored(void **state)
{
    say(0, "HTTP/1.1 408 Request Timeout\r\n\r\n");
    wires_settle(loop);
    assert_int_equal(courier_incarnation(node()), 1);
    hang_up(0, false);
    assert_true(wires_until(loop, courier_incarnation(node()) == 2));
}

static void a_server_that_slams_is_not_hammered(void **state)
{
    slams = true;
    hang_up(0, false);
    unsigned before = peer_count;
    (void)wires_turn(loop, 1, NULL);
    assert_in_range(peer_count - before, 2, 8); /* after 0.05, 0.1, 0.2, 0.4 seconds */
}

static void nobody_is_there_any_more(void **state)
{
    configure_port("a", wires_dead_port()); /* another node of the same name */
    (void)wires_turn(loop, 0.2, NULL);
    assert_int_equal(courier_incarnation(node()), 0);
}

static void a_call_that_the_server_ended_looks_at_the_sentinel(void **state)
{
    struct courier_call *c = sends_small();
    hear_until(1, "{\"a\":1}");
    hang_up(0, true); /* the loop comes to the call's end first: the last that became ready */
    hang_up(1, true);
    (void)ends(c, COURIER_PEER_CLOSED);
    assert_int_equal(incarnation_at_end, 0);
    closes(&c);
}

static void a_request_for_another_life_is_not_sent(void **state)
{
    struct courier_request r = request(STR("{\"a\":1}"));
    int error;
    r.incarnation = 1;
    struct courier_call *c = sends(&r);
    hear_until(1, "{\"a\":1}");
    say(1, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    (void)ends(c, COURIER_ANSWER);
    closes(&c);
    r.fresh = true;
    hang_up(0, true); /* not yet seen by the loop when the call connects */
    c = sends(&r);
    (void)ends(c, COURIER_NOT_SENT);
    assert_false(courier_touched(c));
    closes(&c);
    assert_true(wires_until(loop, courier_incarnation(node()) == 2 && peer_count == 4));
    for (unsigned i = 2; i < 4; i++) /* one of them is the new sentinel */
        if (recv(peers[i], &error, 1, MSG_DONTWAIT) < 0)
            assert_int_equal(errno, EAGAIN);
    r.incarnation = 2;
    c = sends(&r);
    hear_until(4, "{\"a\":1}");
    closes(&c);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(an_answer_with_a_length),
        TEST(connections_are_kept_unless_fresh_is_wanted),
        TEST(a_kept_connection_that_was_closed_is_not_used),
        TEST(a_chunked_answer),
        TEST(an_answer_until_the_end),
        TEST(head_has_no_body),
        TEST(an_early_answer),
        TEST(nobody_listens),
        TEST(connecting_takes_too_long),
        TEST(the_server_closes_at_each_stage),
        TEST(the_server_closes_within_the_body),
        TEST(what_is_no_answer_is_garbage),
        TEST(answers_are_bounded),
        TEST(a_late_answer_is_still_an_answer),
        TEST(a_big_body_for_a_slow_reader),
        TEST(without_a_lease_nothing_fenced_is_sent),
        TEST(a_lease_that_runs_out_holds_the_last_byte_back),
        TEST(closing_ends_without_a_word),
        TEST(a_node_that_leaves_lets_calls_end),
        TEST(a_node_that_leaves_ends_calls_that_connect),
        TEST(the_end_of_the_sentinel_ends_the_incarnation),
        TEST(words_to_the_sentinel_are_ignored),
        TEST(a_server_that_slams_is_not_hammered),
        TEST(nobody_is_there_any_more),
        TEST(a_call_that_the_server_ended_looks_at_the_sentinel),
        TEST(a_request_for_another_life_is_not_sent),
    };
    return cmocka_run_group_tests(tests, once, finish);
}
