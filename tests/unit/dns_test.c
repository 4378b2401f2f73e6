/* dns_test.c: dns against a name server in this file, on the same loop. The first label of a name
 * is what the server shall do with it. */
#include "dns.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

enum { T_A = 1, T_AAAA = 28 };

static struct {
    int fd;
    ev_io io;
    char address[32];
    unsigned asked;
} ns;

static struct ev_loop *loop;
static struct dns *dns;

static size_t put_record(unsigned char *at, int type, unsigned char last)
{
    unsigned char rr[28] = {0xc0, 12, 0, (unsigned char)type, 0, 1, 0, 0, 0, 60, 0};
    size_t n = type == T_A ? 4 : 16;
    rr[11] = (unsigned char)n;
    if (type == T_A)
        rr[12] = 10;
    else
        rr[12] = 0xfd;
    rr[12 + n - 1] = last;
    memcpy(at, rr, 12 + n);
    return 12 + n;
}

static void ns_answer(struct ev_loop *l, ev_io *w, int revents)
{
    unsigned char m[1500];
    struct sockaddr_storage from;
    socklen_t from_len = sizeof from;
    ssize_t got = recvfrom(ns.fd, m, 512, 0, (struct sockaddr *)&from, &from_len);
    if (got < 17)
        return;
    ns.asked++;
    char word[64] = "";
    size_t label = m[12], at = 12;
    memcpy(word, m + 13, label < 63 ? label : 63);
    while (m[at])
        at += m[at] + 1u;
    int type = m[at + 2];
    size_t n = at + 5;
    unsigned count = 0, rcode = 0;
    if (strcmp(word, "silent") == 0 || (strcmp(word, "half") == 0 && type == T_AAAA))
        return;
    if (strcmp(word, "nxdomain") == 0)
        rcode = 3;
    if (strcmp(word, "servfail") == 0)
        rcode = 2;
    if (strcmp(word, "both") == 0 || strcmp(word, "half") == 0 ||
        (strcmp(word, "v4") == 0 && type == T_A) || (strcmp(word, "v6") == 0 && type == T_AAAA))
        for (; count < 2; count++)
            n += put_record(m + n, type, (unsigned char)(count + 1));
    if (strcmp(word, "many") == 0 && type == T_A)
        for (; count < 20; count++)
            n += put_record(m + n, type, (unsigned char)(count + 1));
    m[2] = 0x81;
    m[3] = (unsigned char)(0x80 | rcode);
    m[6] = 0;
    m[7] = (unsigned char)count;
    m[8] = m[9] = m[10] = m[11] = 0;
    if (strcmp(word, "garbage") == 0) {
        m[7] = 9; /* nine answers promised, noise follows */
        memset(m + n, 0xee, 40);
        n += 40;
    }
    if (strcmp(word, "stump") == 0)
        n = 7;
    (void)!sendto(ns.fd, m, n, 0, (struct sockaddr *)&from, from_len);
}

struct seen {
    unsigned calls;
    struct dns_answer a;
    double took;
};

static double asked_at;

static void note(void *arg, const struct dns_answer *a)
{
    struct seen *s = arg;
    s->calls++;
    s->a = *a;
    s->took = ev_time() - asked_at;
}

static void give_up(struct ev_loop *l, ev_timer *w, int revents)
{
    ev_break(l, EVBREAK_ALL);
}

static void run_until_called(const struct seen *s, double seconds)
{
    ev_timer t;
    ev_now_update(loop);
    ev_timer_init(&t, give_up, seconds, 0.);
    ev_timer_start(loop, &t);
    while (s->calls == 0 && ev_is_active(&t))
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &t);
}

static struct seen ask(const char *name)
{
    struct seen s = {0};
    asked_at = ev_time();
    struct dns_query *q = dns_resolve(dns, name, 8000, note, &s);
    assert_non_null(q);
    assert_int_equal(s.calls, 0);
    run_until_called(&s, 8);
    assert_int_equal(s.calls, 1);
    return s;
}

static const char *text(const struct seen *s, unsigned i)
{
    static char out[80];
    char addr[64];
    const struct sockaddr_storage *sa = &s->a.v[i].addr;
    bool six = sa->ss_family == AF_INET6;
    assert_int_equal(s->a.v[i].len, six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in));
    inet_ntop(sa->ss_family,
              six ? (const void *)&((const struct sockaddr_in6 *)sa)->sin6_addr
                  : (const void *)&((const struct sockaddr_in *)sa)->sin_addr,
              addr, sizeof addr);
    int port = ntohs(six ? ((const struct sockaddr_in6 *)sa)->sin6_port
                         : ((const struct sockaddr_in *)sa)->sin_port);
    snprintf(out, sizeof out, "%s %d", addr, port);
    return out;
}

static int start(void **state)
{
    const char *error;
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    loop = ev_loop_new(EVFLAG_AUTO);
    ns.asked = 0;
    ns.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(ns.fd, (struct sockaddr *)&sa, len) ||
        getsockname(ns.fd, (struct sockaddr *)&sa, &len))
        return -1;
    snprintf(ns.address, sizeof ns.address, "127.0.0.1:%d", ntohs(sa.sin_port));
    ev_io_init(&ns.io, ns_answer, ns.fd, EV_READ);
    ev_io_start(loop, &ns.io);
    dns = dns_new(loop, ns.address, &error);
    return dns ? 0 : -1;
}

static int stop(void **state)
{
    dns_free(dns);
    ev_io_stop(loop, &ns.io);
    close(ns.fd);
    ev_loop_destroy(loop);
    return 0;
}

static void literal_is_answered_at_once(void **state)
{
    static const char *const in[] = {"127.0.0.1", "::1", "[fe80::2]"};
    static const char *const out[] = {"127.0.0.1 8000", "::1 8000", "fe80::2 8000"};
    for (unsigned i = 0; i < COUNT_OF(in); i++) {
        struct seen s = {0};
        assert_null(dns_resolve(dns, in[i], 8000, note, &s));
        assert_int_equal(s.calls, 1);
        assert_int_equal(s.a.count, 1);
        assert_string_equal(text(&s, 0), out[i]);
    }
    assert_int_equal(ns.asked, 0);
}

static void both_families_v4_first(void **state)
{
    struct seen s = ask("both.test");
    assert_int_equal(s.a.count, 4);
    assert_string_equal(text(&s, 0), "10.0.0.1 8000");
    assert_string_equal(text(&s, 1), "10.0.0.2 8000");
    assert_string_equal(text(&s, 2), "fd00::1 8000");
    assert_string_equal(text(&s, 3), "fd00::2 8000");
    assert_true(s.took < 0.25);
}

static void one_family_is_enough(void **state)
{
    struct seen s = ask("v4.test");
    assert_int_equal(s.a.count, 2);
    assert_string_equal(text(&s, 1), "10.0.0.2 8000");
    s = ask("v6.test");
    assert_int_equal(s.a.count, 2);
    assert_string_equal(text(&s, 0), "fd00::1 8000");
}

static void at_most_eight_addresses(void **state)
{
    struct seen s = ask("many.test");
    assert_int_equal(s.a.count, 8);
    assert_string_equal(text(&s, 7), "10.0.0.8 8000");
}

static void a_silent_family_costs_little(void **state)
{
    struct seen s = ask("half.test");
    assert_int_equal(s.a.count, 2);
    assert_true(s.took < 1.0);
}

static void unknown_name_fails_at_once(void **state)
{
    struct seen s = ask("nxdomain.test");
    assert_int_equal(s.a.count, 0);
    assert_non_null(s.a.error);
    assert_non_null(strstr(s.a.error, "not found"));
    assert_true(s.took < 1.0);
}

static void impossible_names_fail(void **state)
{
    char longest[600];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    const char *const names[] = {"", "a..b", longest, "[::1", "servfail.test"};
    for (unsigned i = 0; i < COUNT_OF(names); i++) {
        struct seen s = ask(names[i]);
        assert_int_equal(s.a.count, 0);
        assert_non_null(s.a.error);
    }
}

static void garbage_is_an_error(void **state)
{
    struct seen s = ask("garbage.test");
    assert_int_equal(s.a.count, 0);
    assert_non_null(s.a.error);
}

static void silence_ends_after_five_seconds(void **state)
{
    struct seen s = ask("silent.test");
    assert_int_equal(s.a.count, 0);
    assert_non_null(s.a.error);
    assert_in_range((unsigned)(s.took * 10), 40, 60);
    assert_true(ns.asked >= 4); /* it asked more than once for each family */
}

static void localhost_is_in_the_hosts_file(void **state)
{
    struct seen s = ask("localhost");
    assert_true(s.a.count >= 1);
    assert_string_equal(text(&s, 0), "127.0.0.1 8000");
    assert_int_equal(ns.asked, 0);
    s = ask("both.notlocalhost");
    assert_int_equal(s.a.count, 4);
}

static void cancelled_queries_are_never_heard_of(void **state)
{
    struct seen gone = {0}, s;
    struct dns_query *q = dns_resolve(dns, "both.test", 1, note, &gone);
    dns_cancel(q);
    q = dns_resolve(dns, "localhost", 1, note, &gone); /* its answer is there already */
    dns_cancel(q);
    s = ask("half.test");
    assert_int_equal(s.a.count, 2);
    assert_int_equal(gone.calls, 0);
}

static void free_drops_open_queries(void **state)
{
    struct seen gone = {0};
    assert_non_null(dns_resolve(dns, "silent.test", 1, note, &gone));
    assert_non_null(dns_resolve(dns, "localhost", 1, note, &gone));
    dns_cancel(dns_resolve(dns, "silent2.test", 1, note, &gone));
    /* stop() frees them; what matters is that nobody is called and no memory is left. */
    ev_run(loop, EVRUN_NOWAIT);
    gone.calls = 0;
}

static void free_inside(void *arg, const struct dns_answer *a)
{
    const char *error;
    note(arg, a);
    dns_free(dns);
    dns = dns_new(loop, ns.address, &error);
}

static void may_be_freed_from_its_callback(void **state)
{
    struct seen s = {0}, other = {0};
    assert_non_null(dns_resolve(dns, "silent.test", 1, note, &other));
    assert_non_null(dns_resolve(dns, "both.test", 1, free_inside, &s));
    run_until_called(&s, 3);
    assert_int_equal(s.calls, 1);
    assert_non_null(dns);
    assert_int_equal(other.calls, 0);
}

static void bad_server_list_is_refused(void **state)
{
    const char *error = NULL;
    assert_null(dns_new(loop, "no.such:thing", &error));
    assert_non_null(error);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        T(literal_is_answered_at_once),
        T(both_families_v4_first),
        T(one_family_is_enough),
        T(at_most_eight_addresses),
        T(a_silent_family_costs_little),
        T(unknown_name_fails_at_once),
        T(impossible_names_fail),
        T(garbage_is_an_error),
        T(silence_ends_after_five_seconds),
        T(localhost_is_in_the_hosts_file),
        T(cancelled_queries_are_never_heard_of),
        T(free_drops_open_queries),
        T(may_be_freed_from_its_callback),
        T(bad_server_list_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
