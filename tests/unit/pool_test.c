/* pool_test.c: which connection is taken, which are kept and for how long; who gets a slot, and who
 * is sent elsewhere. Against listening sockets of the test's own. */
#include "pool.h"

#include "log.h"
#include "wires.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { PEERS_MAX = 32, TURNS_MAX = 32 };

static struct ev_loop *loop;
static struct dns *dns;
static struct config *cfg;
static int listener, port;
static ev_io acceptor;
static int peers[PEERS_MAX];
static unsigned peer_count;

static void on_accept(struct ev_loop *l, ev_io *w, int revents)
{
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0 && peer_count < PEERS_MAX);
    peers[peer_count++] = fd;
}

/* What a reload does: "NAME=value;…" on top of an instance on the test's listener and another. */
static void configure_instances(const char *instances, const char *settings)
{
    struct config_raws raws = {0};
    struct buf errors;
    char *copy = base_strdup(settings), *rest = copy;
    buf_init(&errors, 4096);
    config_raws_add(&raws, "CHROMA_INSTANCES", instances, CONFIG_TEXT, "--set");
    for (char *one; (one = strsep(&rest, ";")) && *one;) {
        char *value = strchr(one, '=');
        *value++ = 0;
        config_raws_add(&raws, one, value, CONFIG_TEXT, "--set");
    }
    struct config *was = cfg;
    cfg = config_build(&raws, &errors);
    if (!cfg)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    pool_reload(cfg);
    fleet_configure(cfg, base_clock());
    if (was)
        config_free(was);
    config_raws_fini(&raws);
    buf_fini(&errors);
    free(copy);
}

static void configure(const char *settings)
{
    char instances[128];
    snprintf(instances, sizeof instances, "a=http://127.0.0.1:%d;b=http://127.0.0.2:%d", port,
             port);
    configure_instances(instances, settings);
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
    pool_start(NULL, dns); /* the pool's observers stay for ever: once a process */
    return 0;
}

static int finish(void **state)
{
    pool_stop();
    dns_free(dns);
    ev_io_stop(loop, &acceptor);
    close(listener);
    ev_loop_destroy(loop);
    return 0;
}

static int start(void **state)
{
    configure("");
    return 0;
}

static int stop(void **state)
{
    for (unsigned i = 0; i < fleet_count; i++) {
        struct node *n = fleet_node[i];
        for (struct conn *c; (c = pool_take(n, NULL, NULL));)
            pool_drop(&c);
        if (pool_open(n) != 0 || n->inflight != 0 || n->queued != 0)
            return -1;
    }
    wires_settle(loop);
    fleet_free_all();
    config_free(cfg);
    cfg = NULL;
    while (peer_count > 0)
        close(peers[--peer_count]);
    return metrics_gauge[GAUGE_QUEUED] != 0 || metrics_gauge[GAUGE_UPSTREAM_IDLE] != 0;
}

/* ---- connections ------------------------------------------------------------------------------
 */

static struct {
    unsigned connected, failed, other;
    int error;
} told;

static void on_conn(struct conn *c, enum stream_event e)
{
    told.connected += e == STREAM_CONNECTED;
    told.failed += e == STREAM_ERROR;
    told.other += e != STREAM_CONNECTED && e != STREAM_ERROR;
    told.error = c->stream.error;
}

/* A new connection, and in peers[] its other end. */
static struct conn *connected(struct node *n)
{
    unsigned before = peer_count;
    memset(&told, 0, sizeof told);
    struct conn *c = pool_connect(n, on_conn, NULL);
    assert_non_null(c);
    assert_true(wires_until(loop, told.connected == 1 && peer_count == before + 1));
    assert_int_equal(c->requests, 1);
    return c;
}

static void give(struct conn *c)
{
    struct conn *given = c;
    pool_give(&given);
    assert_null(given);
}

static struct conn *take(struct node *n)
{
    return pool_take(n, on_conn, NULL);
}

static void the_last_used_is_taken_first(void **state)
{
    struct node *n = node();
    struct conn *c[3];
    assert_null(take(n));
    for (unsigned i = 0; i < 3; i++)
        c[i] = connected(n);
    assert_int_equal(pool_open(n), 3);
    assert_int_equal(pool_idle(n), 0);
    give(c[1]);
    give(c[0]);
    give(c[2]);
    assert_int_equal(pool_idle(n), 3);
    assert_int_equal(metrics_gauge[GAUGE_UPSTREAM_IDLE], 3);
    assert_ptr_equal(take(n), c[2]);
    assert_ptr_equal(take(n), c[0]);
    assert_int_equal(c[0]->requests, 2);
    give(c[2]);
    assert_ptr_equal(take(n), c[2]);
    assert_int_equal(c[2]->requests, 3);
    assert_ptr_equal(take(n), c[1]);
    assert_null(take(n));
    for (unsigned i = 0; i < 3; i++)
        pool_drop(&c[i]);
    assert_null(c[0]);
    assert_int_equal(pool_open(n), 0);
}

static void nodes_share_no_connections(void **state)
{
    struct conn *c = connected(node());
    give(c);
    assert_null(take(fleet_find(STR("b"))));
    assert_int_equal(pool_idle(node()), 1);
}

static void a_connection_that_the_peer_closed_is_dropped(void **state)
{
    struct node *n = node();
    struct conn *kept = connected(n), *closed = connected(n);
    give(kept);
    give(closed);
    close(peers[--peer_count]);
    assert_true(wires_until(loop, pool_idle(n) == 1));
    assert_int_equal(pool_open(n), 1);
    assert_ptr_equal(take(n), kept);
    pool_drop(&kept);
}

static void a_connection_that_the_peer_reset_is_dropped(void **state)
{
    struct node *n = node();
    give(connected(n));
    wires_reset(peers[--peer_count]);
    assert_true(wires_until(loop, pool_open(n) == 0));
}

/* Bytes that nobody asked for: whatever they are, they are no answer to the next request. */
static void a_connection_that_speaks_unasked_is_dropped(void **state)
{
    struct node *n = node();
    give(connected(n));
    assert_int_equal(send(peers[0], "HTTP/1.1 408 Slow\r\n\r\n", 21, 0), 21);
    assert_true(wires_until(loop, pool_open(n) == 0));
    assert_int_equal(told.other, 0); /* the former borrower hears nothing of it */
}

static void what_has_bytes_left_is_not_kept(void **state)
{
    struct node *n = node();
    struct conn *c = connected(n);
    stream_read_on(&c->stream);
    assert_int_equal(send(peers[0], "x", 1, 0), 1);
    assert_true(wires_until(loop, buf_len(&c->stream.in) == 1));
    give(c);
    assert_int_equal(pool_open(n), 0);

    c = connected(n);
    stream_read_on(&c->stream);
    shutdown(peers[1], SHUT_WR);
    assert_true(wires_until(loop, c->stream.eof));
    give(c);
    assert_int_equal(pool_open(n), 0);

    char *big = base_zalloc(8 << 20);
    c = connected(n);
    assert_true(stream_send(&c->stream, &(struct iovec){big, 8 << 20}, 1));
    assert_true(stream_unsent(&c->stream) > 0);
    give(c);
    assert_int_equal(pool_open(n), 0);
    free(big);
}

static void no_more_are_kept_than_max_idle(void **state)
{
    configure("UPSTREAM_MAX_IDLE=2");
    struct node *n = node();
    struct conn *c[3];
    for (unsigned i = 0; i < 3; i++)
        c[i] = connected(n);
    for (unsigned i = 0; i < 3; i++)
        give(c[i]);
    assert_int_equal(pool_idle(n), 2);
    assert_int_equal(pool_open(n), 2);
    configure("UPSTREAM_MAX_IDLE=0"); /* a reload takes effect with the next that is given back */
    struct conn *one = take(n);
    give(one);
    assert_int_equal(pool_open(n), 1);
}

static void an_old_connection_is_not_reused(void **state)
{
    configure("UPSTREAM_MAX_AGE=0.05");
    struct node *n = node();
    struct conn *c = connected(n);
    give(c);
    assert_int_equal(pool_idle(n), 1);
    c = take(n);
    double until = c->opened + 0.05;
    assert_true(wires_until(loop, base_clock() >= until));
    give(c);
    assert_int_equal(pool_open(n), 0);
}

static void a_connection_ends_after_max_requests(void **state)
{
    configure("UPSTREAM_MAX_REQUESTS=2");
    struct node *n = node();
    struct conn *c = connected(n);
    give(c);
    c = take(n);
    assert_non_null(c);
    give(c);
    assert_int_equal(pool_open(n), 0);
}

/* The sweep comes once a second; the one used meanwhile stays. */
static void an_idle_connection_ends_after_its_time(void **state)
{
    configure("UPSTREAM_IDLE_TIMEOUT=0.3");
    struct node *n = node();
    struct conn *idle = connected(n), *used = connected(n);
    give(idle);
    double since = base_clock();
    double until = ev_time() + WIRES_PATIENCE;
    while (pool_open(n) == 2 && ev_time() < until)
        (void)wires_turn(loop, 0.01, NULL);
    assert_int_equal(pool_open(n), 1);
    assert_true(base_clock() >= since + 0.3);
    give(used);
    assert_ptr_equal(take(n), used);
    pool_drop(&used);
}

static void connecting_to_nobody_is_told(void **state)
{
    char instances[64];
    snprintf(instances, sizeof instances, "a=http://127.0.0.1:%d", wires_dead_port());
    configure_instances(instances, "");
    memset(&told, 0, sizeof told);
    struct conn *c = pool_connect(node(), on_conn, NULL);
    if (!c) {
        assert_int_equal(errno, ECONNREFUSED);
        return;
    }
    assert_true(wires_until(loop, told.failed == 1));
    assert_int_equal(told.error, ECONNREFUSED);
    pool_drop(&c);
}

static void a_name_is_looked_up(void **state)
{
    char instances[64];
    snprintf(instances, sizeof instances, "a=http://localhost:%d", port);
    configure_instances(instances, "");
    assert_true(wires_until(loop, node()->addr_len > 0));
    struct conn *c = connected(node());
    pool_drop(&c);
}

/* ---- slots and the queue ----------------------------------------------------------------------
 */

struct waiter {
    struct pool_place place;
    char name;
    struct waiter *quits; /* taken out of the queue in this one's turn */
    bool leaves;          /* gives the slot back within its turn */
    bool enters;          /* and then queues again, once */
};

static char turns[TURNS_MAX + 1]; /* "A" with a slot, "a" without, in order */

static void on_turn(struct pool_place *p, bool slot)
{
    struct waiter *w = container_of(p, struct waiter, place);
    size_t n = strlen(turns);
    assert_true(n < TURNS_MAX);
    assert_null(p->next); /* out of the queue already */
    turns[n] = slot ? w->name : (char)(w->name | 0x20);
    turns[n + 1] = 0;
    if (w->quits)
        pool_quit(&w->quits->place);
    if (slot && w->leaves)
        pool_leave(p->node);
    if (w->enters) {
        w->enters = false;
        assert_int_equal(pool_enter(p->node, p), POOL_QUEUED);
    }
}

static void waiters_init(struct waiter *w, unsigned n)
{
    memset(turns, 0, sizeof turns);
    for (unsigned i = 0; i < n; i++)
        w[i] = (struct waiter){.place.turn = on_turn, .name = (char)('A' + i)};
}

static void waits(struct node *n, struct waiter *w)
{
    assert_int_equal(pool_enter(n, &w->place), POOL_QUEUED);
}

static void slots_go_in_the_order_of_the_queue(void **state)
{
    configure("MAXCONN=2");
    struct node *n = node();
    struct waiter in[2], w[3];
    waiters_init(in, 2);
    assert_int_equal(pool_enter(n, &in[0].place), POOL_IN);
    assert_int_equal(pool_enter(n, &in[1].place), POOL_IN);
    assert_int_equal(n->inflight, 2);
    waiters_init(w, 3);
    for (unsigned i = 0; i < 3; i++)
        waits(n, &w[i]);
    assert_int_equal(n->queued, 3);
    assert_int_equal(metrics_gauge[GAUGE_QUEUED], 3);
    wires_settle(loop);
    assert_string_equal(turns, "");

    pool_leave(n);
    assert_string_equal(turns, ""); /* never from within pool_leave */
    assert_true(wires_until(loop, turns[0]));
    wires_settle(loop);
    assert_string_equal(turns, "A");
    assert_int_equal(n->inflight, 2);
    pool_leave(n);
    pool_leave(n);
    assert_true(wires_until(loop, strlen(turns) == 3));
    assert_string_equal(turns, "ABC");
    assert_int_equal(n->queued, 0);
    pool_leave(n);
    pool_leave(n);
    assert_int_equal(n->inflight, 0);
}

static void a_newcomer_does_not_overtake_the_queue(void **state)
{
    configure("MAXCONN=1");
    struct node *n = node();
    struct waiter w[3];
    waiters_init(w, 3);
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    waits(n, &w[1]);
    pool_leave(n);
    assert_int_equal(n->inflight, 0); /* a slot is free, but it is not for everybody */
    waits(n, &w[2]);
    assert_true(wires_until(loop, turns[0]));
    assert_string_equal(turns, "B");
    pool_leave(n);
    assert_true(wires_until(loop, turns[1]));
    assert_string_equal(turns, "BC");
    pool_leave(n);
}

static void a_full_queue_takes_nobody(void **state)
{
    configure("MAXCONN=1;MAX_QUEUE=2");
    struct node *n = node();
    struct waiter w[4];
    waiters_init(w, 4);
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    waits(n, &w[1]);
    waits(n, &w[2]);
    assert_int_equal(pool_enter(n, &w[3].place), POOL_FULL);
    assert_null(w[3].place.next);
    pool_quit(&w[3].place); /* harmless */
    pool_quit(&w[1].place);
    waits(n, &w[3]);
    pool_quit(&w[2].place);
    pool_leave(n);
    assert_true(wires_until(loop, turns[0]));
    wires_settle(loop);
    assert_string_equal(turns, "D");
    pool_leave(n);
}

static void a_queue_of_length_zero_takes_nobody(void **state)
{
    configure("MAXCONN=1;MAX_QUEUE=0");
    struct node *n = node();
    struct waiter w[2];
    waiters_init(w, 2);
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    assert_int_equal(pool_enter(n, &w[1].place), POOL_FULL);
    pool_leave(n);
    assert_int_equal(pool_enter(n, &w[1].place), POOL_IN);
    pool_leave(n);
}

static void a_turn_may_end_at_once_or_take_others_along(void **state)
{
    configure("MAXCONN=1");
    struct node *n = node();
    struct waiter in, w[5];
    waiters_init(&in, 1);
    assert_int_equal(pool_enter(n, &in.place), POOL_IN);
    waiters_init(w, 5);
    for (unsigned i = 0; i < 5; i++)
        waits(n, &w[i]);
    w[0].leaves = true; /* its slot goes to the next */
    w[1].leaves = true;
    w[1].quits = &w[2]; /* the next one gives up meanwhile */
    w[3].leaves = w[3].enters = true;
    w[4].leaves = true;
    pool_leave(n);
    assert_true(wires_until(loop, strlen(turns) == 5));
    wires_settle(loop);
    assert_string_equal(turns, "ABDED");
    assert_int_equal(n->inflight, 0);
    assert_int_equal(n->queued, 0);
}

static void a_reload_that_raises_maxconn_lets_them_in(void **state)
{
    configure("MAXCONN=1");
    struct node *n = node();
    struct waiter w[3];
    waiters_init(w, 3);
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    waits(n, &w[1]);
    waits(n, &w[2]);
    configure("MAXCONN=3");
    assert_ptr_equal(node(), n);
    pool_leave(n); /* the first sign after the reload wakes as many as fit */
    assert_true(wires_until(loop, strlen(turns) == 2));
    assert_string_equal(turns, "BC");
    pool_leave(n);
    pool_leave(n);
}

static void all_leave_a_node_that_went_down(void **state)
{
    configure("MAXCONN=1");
    struct node *n = node();
    struct waiter w[3];
    waiters_init(w, 3);
    fleet_set_health(n, NULL, NODE_UP, "test", base_clock());
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    waits(n, &w[1]);
    waits(n, &w[2]);
    fleet_set_health(n, NULL, NODE_SUSPECT, "test", base_clock());
    wires_settle(loop);
    assert_string_equal(turns, ""); /* it may still answer them */
    fleet_set_health(n, NULL, NODE_DOWN, "test", base_clock());
    assert_true(wires_until(loop, strlen(turns) == 2));
    assert_string_equal(turns, "bc");
    assert_int_equal(n->inflight, 1);
    pool_leave(n);
}

static void all_leave_a_node_that_is_retired(void **state)
{
    configure("MAXCONN=1");
    char only_b[64];
    struct node *n = node();
    struct waiter w[3];
    waiters_init(w, 3);
    assert_int_equal(pool_enter(n, &w[0].place), POOL_IN);
    waits(n, &w[1]);
    waits(n, &w[2]);
    struct conn *lent = connected(n), *idle = connected(n);
    give(idle);
    assert_int_equal(pool_open(n), 2);

    fleet_hold(n);
    snprintf(only_b, sizeof only_b, "b=http://127.0.0.2:%d", port);
    configure_instances(only_b, "MAXCONN=1");
    assert_true(n->removed);
    pool_retire(n);
    assert_int_equal(pool_idle(n), 0); /* at once */
    assert_int_equal(pool_open(n), 1);
    assert_true(wires_until(loop, strlen(turns) == 2));
    assert_string_equal(turns, "bc");
    pool_leave(n);
    give(lent); /* finished: nothing of a removed node is kept */
    assert_int_equal(pool_open(n), 0);
    fleet_release(&n); /* the last one: it is freed, which AddressSanitizer confirms */
    assert_null(fleet_find(STR("a")));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(the_last_used_is_taken_first),
        TEST(nodes_share_no_connections),
        TEST(a_connection_that_the_peer_closed_is_dropped),
        TEST(a_connection_that_the_peer_reset_is_dropped),
        TEST(a_connection_that_speaks_unasked_is_dropped),
        TEST(what_has_bytes_left_is_not_kept),
        TEST(no_more_are_kept_than_max_idle),
        TEST(an_old_connection_is_not_reused),
        TEST(a_connection_ends_after_max_requests),
        TEST(an_idle_connection_ends_after_its_time),
        TEST(connecting_to_nobody_is_told),
        TEST(a_name_is_looked_up),
        TEST(slots_go_in_the_order_of_the_queue),
        TEST(a_newcomer_does_not_overtake_the_queue),
        TEST(a_full_queue_takes_nobody),
        TEST(a_queue_of_length_zero_takes_nobody),
        TEST(a_turn_may_end_at_once_or_take_others_along),
        TEST(a_reload_that_raises_maxconn_lets_them_in),
        TEST(all_leave_a_node_that_went_down),
        TEST(all_leave_a_node_that_is_retired),
    };
    return cmocka_run_group_tests(tests, once, finish);
}
