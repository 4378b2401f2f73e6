/* Instances by name: looked up without stopping anything else, looked up again, and followed when
 * they move. The name server is a scripted one. */
#include "fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Answers every question for an A record with `address`, and `also` when that is not 0; an address
 * of 0 says that there is no such name, SILENT says nothing at all. */
#define SILENT 0xffffffffu
static struct {
    int fd;
    unsigned port;
    pthread_t thread;
    atomic_bool stop;
    atomic_uint address, also, asked;
} names;

static void answer(const unsigned char *q, size_t n, const struct sockaddr_in *to)
{
    unsigned char a[512];
    uint32_t address = atomic_load(&names.address);
    size_t end = 12;
    while (end < n && q[end])
        end += q[end] + 1u;
    end += 5; /* the root label, type and class */
    if (n > 400 || end > n || address == SILENT)
        return;
    bool wants_a = q[end - 3] == 1, found = address != 0;
    memcpy(a, q, end);
    a[2] = 0x85; /* an authoritative answer, as asked for */
    a[3] = found ? 0x80 : 0x83;
    memset(a + 4, 0, 8);
    a[5] = 1;
    if (found && wants_a) {
        static const unsigned char record[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4};
        const uint32_t all[] = {address, atomic_load(&names.also)};
        for (unsigned i = 0; i < 2 && all[i]; i++) {
            a[7]++;
            memcpy(a + end, record, sizeof record);
            memcpy(a + end + sizeof record, &all[i], 4);
            end += sizeof record + 4;
        }
    }
    sendto(names.fd, a, end, 0, (const struct sockaddr *)to, sizeof *to);
}

static void *serve_names(void *arg)
{
    while (!atomic_load(&names.stop)) {
        struct pollfd p = {.fd = names.fd, .events = POLLIN};
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        unsigned char q[512];
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t n = recvfrom(names.fd, q, sizeof q, 0, (struct sockaddr *)&from, &len);
        if (n > 16) {
            atomic_fetch_add(&names.asked, 1);
            answer(q, (size_t)n, &from);
        }
    }
    return NULL;
}

static void say(const char *address)
{
    atomic_store(&names.address, address ? inet_addr(address) : 0);
}

static int names_setup(void **state)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (harness_setup(state) != 0)
        return -1;
    names.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (names.fd < 0 || bind(names.fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        getsockname(names.fd, (struct sockaddr *)&a, &len) != 0)
        return -1;
    names.port = ntohs(a.sin_port);
    atomic_store(&names.stop, false);
    atomic_store(&names.asked, 0);
    atomic_store(&names.also, 0);
    say("127.0.0.1");
    return pthread_create(&names.thread, NULL, serve_names, NULL);
}

static int names_teardown(void **state)
{
    int well = harness_teardown(state);
    atomic_store(&names.stop, true);
    pthread_join(names.thread, NULL);
    close(names.fd);
    return well;
}

static struct chromux *by_name_every(double interval, unsigned port, const char *more)
{
    return chromux_start(
        keepf("CHROMA_INSTANCES=far=http://chroma.example:%u,priority=100%s", port, more),
        keepf("DNS_SERVERS=127.0.0.1:%u", names.port), keepf("DNS_INTERVAL=%g", interval),
        "CHECK_INTERVAL=0.2", "UNREPLICATED_READS=any", NULL);
}

static struct chromux *by_name(unsigned port, const char *more)
{
    return by_name_every(0.2, port, more);
}

static bool served_by(struct chromux *x, const char *name)
{
    struct answer *a = http_get(x->port, HEARTBEAT);
    const char *by = a ? head_field(a->head, "X-Chromux-Instance") : NULL;
    return by && a->status == 200 && strcmp(by, name) == 0;
}

static void named_instance_serves_and_keeps_its_host(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = by_name(peer_port(p), "");
    check_soon(served_by(x, "far"), 5);
    check_str(head_field(peer_request(p, 0)->head, "X-Forwarded-Host"), "chroma.test");
}

static void instance_that_moves_is_followed(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct peer *moved = peer_start_at(serve_ok, "127.0.0.2", peer_port(p));
    struct chromux *x = by_name(peer_port(p), "");
    check_soon(served_by(x, "far"), 5);
    check_int(peer_requests(moved), 0);
    say("127.0.0.2");
    check_soon(served_by(x, "far") && peer_requests(moved) > 0, 10);
    unsigned before = peer_requests(p);
    for (int i = 0; i < 5; i++)
        check(served_by(x, "far"));
    check_int(peer_requests(p), before);
}

/* Who is down may have moved, however long it is to the next look-up. */
static void instance_that_moves_is_sought_when_it_is_down(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct peer *moved = peer_start_at(serve_ok, "127.0.0.2", peer_port(p));
    struct chromux *x = by_name_every(3600, peer_port(p), "");
    check_soon(served_by(x, "far"), 5);
    say("127.0.0.2");
    peer_stop(p);
    check_soon(served_by(x, "far"), 10);
    check(peer_requests(moved) > 0);
}

/* As localhost has, where the server listens on ::1 only. */
static void second_address_serves_when_the_first_is_dead(void **state)
{
    struct peer *p = peer_start_at(serve_ok, "127.0.0.2", free_port());
    atomic_store(&names.also, inet_addr("127.0.0.2"));
    struct chromux *x = by_name_every(3600, peer_port(p), "");
    check_soon(served_by(x, "far"), 10);
}

/* The last good address counts while the name server is away. */
static void lost_name_server_changes_nothing(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = by_name(peer_port(p), "");
    check_soon(served_by(x, "far"), 5);
    atomic_store(&names.address, SILENT);
    unsigned asked = atomic_load(&names.asked);
    check_soon(atomic_load(&names.asked) > asked + 1, 10);
    for (int i = 0; i < 5; i++)
        check(served_by(x, "far"));
    say(NULL);
    asked = atomic_load(&names.asked);
    check_soon(atomic_load(&names.asked) > asked + 2, 10);
    check(served_by(x, "far"));
}

static void silent_name_server_stops_nobody_else(void **state)
{
    struct peer *p = peer_start(serve_ok);
    atomic_store(&names.address, SILENT);
    struct chromux *x = by_name(8000, keepf(";near=%s,priority=1,role=replica", peer_url(p)));
    check_soon(served_by(x, "near"), 5);
    double began = now_seconds();
    for (int i = 0; i < 50; i++)
        check(served_by(x, "near"));
    check(now_seconds() - began < slow(3));
    /* A write needs the primary, of which nothing is known: told at once. */
    struct answer *a = http_post(x->port, COLL "/add", "{}");
    check(a != NULL);
    check_int(a->status, 503);
}

static void name_that_appears_later_is_taken_up(void **state)
{
    struct peer *p = peer_start(serve_ok);
    say(NULL);
    struct chromux *x = by_name(peer_port(p), "");
    check_soon(atomic_load(&names.asked) >= 1, 5);
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a != NULL);
    check_int(a->status, 503);
    say("127.0.0.1");
    check_soon(served_by(x, "far"), 10);
}

static void shorter_interval_holds_at_once(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct peer *moved = peer_start_at(serve_ok, "127.0.0.2", peer_port(p));
    char *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, "return { DNS_INTERVAL = 1000 }\n");
    struct chromux *x = chromux_start(
        "--config", file, keepf("CHROMA_INSTANCES=far=http://chroma.example:%u", peer_port(p)),
        keepf("DNS_SERVERS=127.0.0.1:%u", names.port), NULL);
    check_soon(served_by(x, "far"), 5);
    say("127.0.0.2");
    write_file(file, "return { DNS_INTERVAL = 0.2 }\n");
    chromux_reload(x);
    check_soon(served_by(x, "far") && peer_requests(moved) > 0, 10);
}

#define NAMES_TEST(fn) cmocka_unit_test_setup_teardown(fn, names_setup, names_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        NAMES_TEST(named_instance_serves_and_keeps_its_host),
        NAMES_TEST(instance_that_moves_is_followed),
        NAMES_TEST(instance_that_moves_is_sought_when_it_is_down),
        NAMES_TEST(second_address_serves_when_the_first_is_dead),
        NAMES_TEST(lost_name_server_changes_nothing),
        NAMES_TEST(silent_name_server_stops_nobody_else),
        NAMES_TEST(shorter_interval_holds_at_once),
        NAMES_TEST(name_that_appears_later_is_taken_up),
    };
    return RUN(tests);
}
