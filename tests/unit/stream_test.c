/* stream_test.c: what a stream keeps, sends and tells, on real sockets; and that its owner may
 * close it, and free it, wherever it is told something. */
#include "stream.h"

#include "wires.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <cmocka.h>

enum { BIG = 8 << 20, TOLD_MAX = 64 };

static struct ev_loop *loop;

struct owner {
    struct stream s;
    enum stream_event told[TOLD_MAX];
    unsigned count;
    bool eats;     /* consumes what it reads */
    bool borrowed; /* read into the shared block, the last time */
    size_t eaten;
    int dies_at;         /* the event at which it closes and frees itself; -1: none */
    struct owner *kills; /* closed at the first event; that one may have news, too */
    bool *dead;          /* set when it has died */
};

static void on_event(struct stream *s, enum stream_event e)
{
    struct owner *o = container_of(s, struct owner, s);
    assert_true(o->count < TOLD_MAX);
    o->told[o->count++] = e;
    o->borrowed = e == STREAM_READABLE && s->in.size == STREAM_BLOCK;
    if (o->kills)
        stream_close(&o->kills->s);
    if (o->dies_at == (int)e) {
        bool *dead = o->dead;
        stream_close(s);
        memset(o, 0xee, sizeof *o); /* whoever looks at it now gets nonsense */
        free(o);
        *dead = true;
        return;
    }
    if (o->eats) {
        o->eaten += buf_len(&s->in);
        buf_consume(&s->in, buf_len(&s->in));
    }
}

/* A stream over one end of a TCP connection; returns the other end. */
static int wired(struct owner *o, size_t cap)
{
    int end[2];
    wires_tcp(end);
    *o = (struct owner){.dies_at = -1};
    stream_open(&o->s, end[0], cap, on_event);
    return end[1];
}

static bool was_told(const struct owner *o, enum stream_event e)
{
    for (unsigned i = 0; i < o->count; i++)
        if (o->told[i] == e)
            return true;
    return false;
}

static char *pattern(size_t n)
{
    char *p = base_alloc(n);
    for (size_t i = 0; i < n; i++)
        p[i] = (char)(i * 31 + i / 251);
    return p;
}

/* Reads what there is now; at most n bytes. */
static size_t take(int fd, char *p, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t r = recv(fd, p + got, n - got, MSG_DONTWAIT);
        if (r <= 0)
            break;
        got += (size_t)r;
    }
    return got;
}

/* Turns the loop and reads until n bytes have come. */
static bool take_all(int fd, char *p, size_t n)
{
    size_t got = 0;
    return wires_until(loop, (got += take(fd, p + got, n - got)) == n);
}

static void put(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static int start(void **state)
{
    loop = ev_loop_new(EVFLAG_AUTO);
    stream_start(loop);
    return 0;
}

/* Nothing is watched any more: every stream took its watcher along. */
static int stop(void **state)
{
    int left = ev_run(loop, EVRUN_NOWAIT);
    ev_loop_destroy(loop);
    return left;
}

/* ---- sending ---- */

static void what_the_socket_does_not_take_is_kept_and_sent(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    char *all = pattern(BIG), *got = base_alloc(BIG);
    struct iovec v[3] = {{all, 5}, {all + 5, BIG / 2}, {all + 5 + BIG / 2, BIG / 2 - 5}};
    assert_true(stream_send(&o.s, v, 3));
    size_t unsent = stream_unsent(&o.s);
    assert_true(unsent > 0 && unsent < BIG);
    wires_settle(loop);
    assert_int_equal(o.count, 0); /* nobody read: nothing to tell */
    assert_true(take_all(peer, got, BIG));
    assert_memory_equal(got, all, BIG);
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(o.count, 1);
    assert_int_equal(o.told[0], STREAM_WRITABLE);
    assert_int_equal(stream_unsent(&o.s), 0);
    assert_null(o.s.out.mem); /* and the memory is given back */
    wires_settle(loop);
    assert_int_equal(o.count, 1);
    stream_close(&o.s);
    close(peer);
    free(all);
    free(got);
}

static void what_goes_at_once_is_not_told(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    char got[8];
    struct iovec v = {(void *)"hello", 5};
    assert_true(stream_send(&o.s, &v, 1));
    assert_int_equal(stream_offer(&o.s, &v, 1), 5);
    assert_int_equal(stream_unsent(&o.s), 0);
    assert_null(o.s.out.mem);
    wires_settle(loop);
    assert_int_equal(o.count, 0);
    assert_int_equal(take(peer, got, sizeof got), 8);
    stream_close(&o.s);
    close(peer);
}

static void an_offer_keeps_nothing_and_tells_when_to_go_on(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    char *all = pattern(BIG), *got = base_alloc(BIG);
    struct iovec v = {all, BIG};
    ssize_t w = stream_offer(&o.s, &v, 1);
    assert_true(w > 0 && w < BIG);
    assert_int_equal(stream_unsent(&o.s), 0);
    assert_true(o.s.blocked);
    assert_int_equal(stream_offer(&o.s, &(struct iovec){all + w, 1}, 1), 0);
    wires_settle(loop);
    assert_int_equal(o.count, 0);
    assert_true(take_all(peer, got, (size_t)w));
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(o.told[0], STREAM_WRITABLE);
    assert_false(o.s.blocked);
    assert_memory_equal(got, all, (size_t)w);
    assert_int_equal(stream_offer(&o.s, &(struct iovec){all, 10}, 1), 10);
    stream_close(&o.s);
    close(peer);
    free(all);
    free(got);
}

static void an_offer_never_overtakes_what_is_kept(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    char *all = pattern(BIG), *got = base_alloc(BIG + 3);
    assert_true(stream_send(&o.s, &(struct iovec){all, BIG}, 1));
    assert_true(stream_unsent(&o.s) > 0);
    assert_int_equal(stream_offer(&o.s, &(struct iovec){(void *)"end", 3}, 1), 0);
    assert_true(stream_send(&o.s, &(struct iovec){(void *)"end", 3}, 1)); /* but it may queue */
    assert_true(take_all(peer, got, BIG + 3));
    assert_memory_equal(got, all, BIG);
    assert_memory_equal(got + BIG, "end", 3);
    assert_true(wires_until(loop, o.count > 0));
    wires_settle(loop);
    assert_int_equal(o.count, 1);
    stream_close(&o.s);
    close(peer);
    free(all);
    free(got);
}

static void sending_to_a_peer_that_is_gone_fails(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    struct iovec v = {(void *)"x", 1};
    wires_reset(peer);
    wires_settle(loop);
    assert_false(stream_send(&o.s, &v, 1));
    assert_true(o.s.error == ECONNRESET || o.s.error == EPIPE);
    assert_int_equal(stream_offer(&o.s, &v, 1), -1);
    wires_settle(loop);
    assert_int_equal(o.count, 0); /* the caller knows: no event follows */
    stream_close(&o.s);
}

static void a_peer_that_goes_while_bytes_are_kept_is_an_error(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    char *all = pattern(BIG);
    assert_true(stream_send(&o.s, &(struct iovec){all, BIG}, 1));
    assert_true(stream_unsent(&o.s) > 0);
    wires_reset(peer);
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(o.told[0], STREAM_ERROR);
    assert_true(o.s.error == ECONNRESET || o.s.error == EPIPE);
    assert_int_equal(stream_unsent(&o.s), 0);
    wires_settle(loop);
    assert_int_equal(o.count, 1);
    stream_close(&o.s);
    free(all);
}

/* ---- reading ---- */

static void nothing_is_read_unasked(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    put(peer, "hello");
    wires_settle(loop);
    assert_int_equal(o.count, 0);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(buf_len(&o.s.in), 5);
    put(peer, "again"); /* asked once, it goes on */
    assert_true(wires_until(loop, buf_len(&o.s.in) == 10));
    assert_memory_equal(buf_data(&o.s.in), "helloagain", 10);
    stream_close(&o.s);
    close(peer);
}

static void the_end_comes_after_the_bytes_before_it(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    put(peer, "last words");
    close(peer);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, was_told(&o, STREAM_EOF)));
    wires_settle(loop);
    assert_int_equal(o.count, 2); /* and only once */
    assert_int_equal(o.told[0], STREAM_READABLE);
    assert_int_equal(o.told[1], STREAM_EOF);
    assert_true(o.s.eof);
    assert_int_equal(o.s.error, 0);
    assert_int_equal(buf_len(&o.s.in), 10);
    assert_memory_equal(buf_data(&o.s.in), "last words", 10);
    stream_close(&o.s);
}

static void a_reset_is_told_with_its_errno(void **state)
{
    struct owner o;
    int peer = wired(&o, 1000);
    put(peer, "last words");
    stream_read_on(&o.s);
    assert_true(wires_until(loop, o.count == 1));
    wires_reset(peer);
    assert_true(wires_until(loop, o.count == 2));
    assert_int_equal(o.told[1], STREAM_ERROR);
    assert_int_equal(o.s.error, ECONNRESET);
    assert_true(o.s.eof);
    assert_int_equal(buf_len(&o.s.in), 10); /* what came before is still there */
    wires_settle(loop);
    assert_int_equal(o.count, 2);
    stream_close(&o.s);
}

static void a_peer_may_send_on_after_our_end(void **state)
{
    struct owner o;
    char c;
    int peer = wired(&o, 1000);
    stream_read_on(&o.s);
    stream_finish(&o.s);
    assert_int_equal(recv(peer, &c, 1, 0), 0);
    put(peer, "answer");
    assert_true(wires_until(loop, buf_len(&o.s.in) == 6));
    stream_close(&o.s);
    close(peer);
}

static void an_abort_is_no_orderly_end(void **state)
{
    struct owner o;
    char c;
    int peer = wired(&o, 1000);
    stream_abort(&o.s);
    assert_false(stream_is_open(&o.s));
    assert_int_equal(recv(peer, &c, 1, 0), -1);
    assert_int_equal(errno, ECONNRESET);
    stream_abort(&o.s); /* twice is fine */
    stream_close(&o.s);
    close(peer);
}

static void a_full_buffer_pauses_reading_until_some_is_consumed(void **state)
{
    enum { CAP = 1000, ALL = 100000 };
    struct owner o;
    int peer = wired(&o, CAP);
    char *all = pattern(ALL);
    assert_int_equal(send(peer, all, ALL, 0), ALL);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, buf_len(&o.s.in) == CAP));
    unsigned told = o.count;
    wires_settle(loop);
    assert_int_equal(o.count, told);
    assert_int_equal(buf_len(&o.s.in), CAP);
    assert_true(o.s.in.size <= CAP);

    buf_consume(&o.s.in, 400);
    wires_settle(loop);
    assert_int_equal(buf_len(&o.s.in), CAP - 400); /* it takes a word to go on */
    stream_read_on(&o.s);
    assert_true(wires_until(loop, buf_len(&o.s.in) == CAP));
    assert_memory_equal(buf_data(&o.s.in), all + 400, CAP);

    for (size_t at = 400; at < ALL;) {
        o.count = 0;
        assert_true(wires_until(loop, buf_len(&o.s.in) > 0));
        size_t n = buf_len(&o.s.in);
        assert_true(n <= CAP);
        assert_memory_equal(buf_data(&o.s.in), all + at, n);
        buf_consume(&o.s.in, n);
        at += n;
        stream_read_on(&o.s);
    }
    stream_close(&o.s);
    close(peer);
    free(all);
}

/* The end of a paused stream waits with its bytes. */
static void a_paused_stream_does_not_miss_its_end(void **state)
{
    struct owner o;
    int peer = wired(&o, 4);
    put(peer, "12345678");
    close(peer);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, buf_len(&o.s.in) == 4));
    wires_settle(loop);
    assert_false(was_told(&o, STREAM_EOF));
    buf_consume(&o.s.in, 4);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, buf_len(&o.s.in) == 4));
    buf_consume(&o.s.in, 4);
    stream_read_on(&o.s);
    assert_true(wires_until(loop, was_told(&o, STREAM_EOF)));
    stream_close(&o.s);
}

/* ---- the shared block ---- */

static void an_idle_stream_holds_no_memory(void **state)
{
    struct owner o;
    int peer = wired(&o, STREAM_BLOCK);
    o.eats = true;
    stream_read_on(&o.s);
    for (int i = 0; i < 3; i++) {
        o.eaten = 0;
        put(peer, "a request");
        assert_true(wires_until(loop, o.eaten == 9));
        assert_true(o.borrowed);
        assert_null(o.s.in.mem);
        assert_int_equal(o.s.in.size, 0);
    }
    stream_close(&o.s);
    close(peer);
}

static void what_is_left_in_the_block_moves_before_another_reads(void **state)
{
    struct owner a, b;
    int to_a = wired(&a, STREAM_BLOCK), to_b = wired(&b, STREAM_BLOCK);
    stream_read_on(&a.s);
    stream_read_on(&b.s);
    put(to_a, "aaaaaaaa");
    assert_true(wires_until(loop, a.count == 1));
    put(to_b, "bbbbbbbb");
    assert_true(wires_until(loop, b.count == 1));
    assert_true(a.borrowed && b.borrowed);
    assert_ptr_not_equal(a.s.in.mem, b.s.in.mem);
    assert_true(a.s.in.size < STREAM_BLOCK); /* only what is left got memory */
    put(to_a, "AAAA");
    assert_true(wires_until(loop, a.count == 2));
    assert_false(a.borrowed); /* the rest comes behind what is there */
    assert_int_equal(buf_len(&a.s.in), 12);
    assert_memory_equal(buf_data(&a.s.in), "aaaaaaaaAAAA", 12);
    assert_memory_equal(buf_data(&b.s.in), "bbbbbbbb", 8);
    stream_close(&a.s);
    stream_close(&b.s);
    close(to_a);
    close(to_b);
}

static void a_stream_closed_while_it_has_the_block_gives_it_back(void **state)
{
    bool dead = false;
    struct owner *dying = base_alloc(sizeof *dying), next;
    int to_dying = wired(dying, STREAM_BLOCK), to_next = wired(&next, STREAM_BLOCK);
    dying->dies_at = STREAM_READABLE;
    dying->dead = &dead;
    stream_read_on(&dying->s);
    stream_read_on(&next.s);
    put(to_dying, "x");
    assert_true(wires_until(loop, dead));
    put(to_next, "y");
    assert_true(wires_until(loop, next.count == 1));
    assert_true(next.borrowed);
    stream_close(&next.s);
    close(to_dying);
    close(to_next);
}

/* ---- closing within callbacks ---- */

static void an_owner_may_die_at_any_event(void **state)
{
    static const enum stream_event events[] = {STREAM_READABLE, STREAM_EOF, STREAM_ERROR,
                                               STREAM_WRITABLE};
    char *all = pattern(BIG), *got = base_alloc(BIG);
    for (size_t i = 0; i < COUNT_OF(events); i++) {
        bool dead = false;
        struct owner *o = base_alloc(sizeof *o);
        int peer = wired(o, 1000);
        o->dies_at = (int)events[i];
        o->dead = &dead;
        if (events[i] == STREAM_WRITABLE) {
            ssize_t w = stream_offer(&o->s, &(struct iovec){all, BIG}, 1);
            assert_true(take_all(peer, got, (size_t)w));
        } else {
            stream_read_on(&o->s);
            put(peer, "x");
        }
        if (events[i] == STREAM_EOF)
            shutdown(peer, SHUT_WR);
        if (events[i] == STREAM_ERROR) {
            assert_true(wires_until(loop, o->count == 1));
            wires_reset(peer);
        }
        assert_true(wires_until(loop, dead));
        wires_settle(loop);
        if (events[i] != STREAM_ERROR)
            close(peer);
    }
    free(all);
    free(got);
}

/* Bytes to read and room to write come in one turn: an owner that dies at the first news gets no
 * second. */
static void an_owner_that_died_reading_is_not_told_to_write(void **state)
{
    bool dead = false;
    struct owner *o = base_alloc(sizeof *o);
    int peer = wired(o, 1000);
    char *all = pattern(BIG), *got = base_alloc(BIG);
    o->dies_at = STREAM_READABLE;
    o->dead = &dead;
    ssize_t w = stream_offer(&o->s, &(struct iovec){all, BIG}, 1);
    assert_true(w > 0 && w < BIG);
    stream_read_on(&o->s);
    put(peer, "x");
    size_t got_all = 0;
    while (got_all < (size_t)w) { /* no turn of the loop meanwhile */
        ssize_t n = recv(peer, got, BIG, 0);
        got_all += n > 0 ? (size_t)n : 0;
    }
    assert_true(wires_until(loop, dead));
    wires_settle(loop);
    close(peer);
    free(all);
    free(got);
}

/* Both have news in the same turn; the first to hear closes the other, which then hears nothing. */
static void a_stream_closed_by_another_hears_nothing_more(void **state)
{
    struct owner a, b;
    int to_a = wired(&a, 1000), to_b = wired(&b, 1000);
    a.kills = &b;
    b.kills = &a;
    stream_read_on(&a.s);
    stream_read_on(&b.s);
    put(to_a, "x");
    put(to_b, "x");
    assert_true(wires_until(loop, a.count + b.count > 0));
    wires_settle(loop);
    assert_int_equal(a.count + b.count, 1);
    a.kills = b.kills = NULL;
    stream_close(&a.s);
    stream_close(&b.s);
    close(to_a);
    close(to_b);
}

/* ---- connecting ---- */

static void connecting_ends_in_connected(void **state)
{
    struct owner o = {.dies_at = -1};
    int port, listener = wires_listen(&port);
    struct sockaddr_in at = wires_at(port);
    assert_true(stream_connect(&o.s, (struct sockaddr *)&at, sizeof at, 1000, on_event));
    assert_true(o.s.connecting);
    stream_read_on(&o.s);
    /* What is said too early waits. */
    assert_true(stream_send(&o.s, &(struct iovec){(void *)"early", 5}, 1));
    assert_int_equal(stream_offer(&o.s, &(struct iovec){(void *)"none", 4}, 1), 0);
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(o.told[0], STREAM_CONNECTED);
    assert_false(o.s.connecting);
    int peer = accept(listener, NULL, NULL);
    char got[8];
    wires_nonblocking(peer);
    assert_true(take_all(peer, got, 5));
    assert_memory_equal(got, "early", 5);
    assert_true(wires_until(loop, was_told(&o, STREAM_WRITABLE)));
    stream_close(&o.s);
    close(peer);
    close(listener);
}

static void connecting_to_nobody_ends_in_an_error(void **state)
{
    struct owner o = {.dies_at = -1};
    struct sockaddr_in at = wires_at(wires_dead_port());
    if (!stream_connect(&o.s, (struct sockaddr *)&at, sizeof at, 1000, on_event)) {
        assert_int_equal(errno, ECONNREFUSED);
        assert_false(stream_is_open(&o.s));
        return;
    }
    assert_true(wires_until(loop, o.count > 0));
    assert_int_equal(o.told[0], STREAM_ERROR);
    assert_int_equal(o.s.error, ECONNREFUSED);
    wires_settle(loop);
    assert_int_equal(o.count, 1);
    stream_close(&o.s);
}

static void an_owner_may_die_when_it_is_connected(void **state)
{
    bool dead = false;
    struct owner *o = base_zalloc(sizeof *o);
    int port, listener = wires_listen(&port);
    struct sockaddr_in at = wires_at(port);
    o->dies_at = STREAM_CONNECTED;
    o->dead = &dead;
    assert_true(stream_connect(&o->s, (struct sockaddr *)&at, sizeof at, 1000, on_event));
    assert_true(wires_until(loop, dead));
    close(listener);
}

/* Without descriptors there is no stream, and the reason is ours and not the peer's. */
static void no_descriptor_is_our_own_lack(void **state)
{
    struct owner o = {.dies_at = -1};
    struct rlimit was, none;
    struct sockaddr_in at = wires_at(1);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
    none = was;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    bool connected = stream_connect(&o.s, (struct sockaddr *)&at, sizeof at, 1000, on_event);
    int err = errno;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
    assert_false(connected);
    assert_int_equal(err, EMFILE);
    assert_false(stream_is_open(&o.s));
    assert_true(stream_own_limit(err));
    assert_false(stream_own_limit(ECONNREFUSED));
    assert_false(stream_own_limit(ETIMEDOUT));
    assert_false(stream_own_limit(EHOSTUNREACH));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(what_the_socket_does_not_take_is_kept_and_sent),
        TEST(what_goes_at_once_is_not_told),
        TEST(an_offer_keeps_nothing_and_tells_when_to_go_on),
        TEST(an_offer_never_overtakes_what_is_kept),
        TEST(sending_to_a_peer_that_is_gone_fails),
        TEST(a_peer_that_goes_while_bytes_are_kept_is_an_error),
        TEST(nothing_is_read_unasked),
        TEST(the_end_comes_after_the_bytes_before_it),
        TEST(a_reset_is_told_with_its_errno),
        TEST(a_peer_may_send_on_after_our_end),
        TEST(an_abort_is_no_orderly_end),
        TEST(a_full_buffer_pauses_reading_until_some_is_consumed),
        TEST(a_paused_stream_does_not_miss_its_end),
        TEST(an_idle_stream_holds_no_memory),
        TEST(what_is_left_in_the_block_moves_before_another_reads),
        TEST(a_stream_closed_while_it_has_the_block_gives_it_back),
        TEST(an_owner_may_die_at_any_event),
        TEST(an_owner_that_died_reading_is_not_told_to_write),
        TEST(a_stream_closed_by_another_hears_nothing_more),
        TEST(connecting_ends_in_connected),
        TEST(connecting_to_nobody_ends_in_an_error),
        TEST(an_owner_may_die_when_it_is_connected),
        TEST(no_descriptor_is_our_own_lack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
