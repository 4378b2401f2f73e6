/* Many at once: an instance's maxconn and its queue, the retry budget, ten thousand idle clients,
 * no descriptors left. */
#include "fixture.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Reads at once, and how many of them may be retried at once. */
enum { CLIENTS = 40, BUDGET = CLIENTS * 20 / 100 };

static struct wire *send_read(struct chromux *x, int n)
{
    struct wire *w = wire_open(x->port);
    wire_sendf(w, "GET " COLL "/count?n=%d HTTP/1.1\r\nHost: h\r\n\r\n", n);
    return w;
}

static long metric(struct chromux *x, const char *name)
{
    struct answer *a = http_get(x->port, "/metrics");
    const char *at = a ? strstr(a->body, keepf("\n%s ", name)) : NULL;
    return at ? atol(at + strlen(name) + 2) : -1;
}

/* ---- maxconn and its queue ---- */

static void gated(struct conn *c)
{
    while (conn_request(c) && conn_wait(c))
        if (!conn_answer(c, "{}"))
            return;
}

static void check_busy(struct answer *a)
{
    check(a != NULL);
    check_int(a->status, 503);
    check(head_field(a->head, "Retry-After") != NULL);
    check_has(a->body, "\"error\":\"");
}

static void full_queue_is_503(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x = in_front_of(p, NULL, "MAXCONN=1", "MAX_QUEUE=2", "QUEUE_TIMEOUT=30",
                                    "TRY_TIMEOUT=30", NULL);
    struct wire *first = send_read(x, 0);
    check_soon(peer_requests(p) == 1, 5);
    struct wire *second = send_read(x, 1);
    check_soon(metric(x, "chromux_requests_queued") == 1, 5);
    struct wire *third = send_read(x, 2);
    check_soon(metric(x, "chromux_requests_queued") == 2, 5);
    check_busy(wire_answer(send_read(x, 3), false));
    check_str(kv(chromux_access_line(x, "n=3", 1), "end"), "queue_full");
    /* Who leaves the queue makes room, and never reaches the origin. */
    wire_close(second);
    check_soon(metric(x, "chromux_requests_queued") == 1, 5);
    struct wire *fourth = send_read(x, 4);
    check_soon(metric(x, "chromux_requests_queued") == 2, 5);
    check_soon(peer_requests(p) == 1, 5);
    peer_release(p);
    struct wire *waiting[] = {first, third, fourth};
    for (unsigned i = 0; i < COUNT_OF(waiting); i++) {
        struct answer *a = wire_answer(waiting[i], false);
        check(a != NULL);
        check_int(a->status, 200);
    }
    check_int(peer_requests(p), 3);
    check_has(peer_request(p, 1)->head, "n=2 ");
    check_has(peer_request(p, 2)->head, "n=4 ");
    check(atof(kv(chromux_access_line(x, "n=4", 1), "tq")) > 0);
}

static void waiting_too_long_in_the_queue_is_503(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x =
        in_front_of(p, NULL, "MAXCONN=1", "QUEUE_TIMEOUT=0.3", "TRY_TIMEOUT=30", NULL);
    struct wire *first = send_read(x, 0);
    check_soon(peer_requests(p) == 1, 5);
    double began = now_seconds();
    check_busy(wire_answer(send_read(x, 1), false));
    check(now_seconds() - began < slow(2));
    check_str(kv(chromux_access_line(x, "n=1", 1), "end"), "queue_timeout");
    check(atof(kv(chromux_access_line(x, "n=1", 1), "tq")) > 250);
    peer_release(p);
    struct answer *a = wire_answer(first, false);
    check(a && a->status == 200);
    check_int(peer_requests(p), 1);
}

/* A time that the policy allows for a try holds for one that had to wait, too. */
static void policy_time_out_outlives_the_queue(void **state)
{
    struct peer *p = peer_start(gated), *q = peer_start(serve_ok);
    char *folder = own_policies();
    write_file(keepf("%s/route.lua", folder),
               "local M = {}\nfunction M.route(req, nodes)\n"
               "  return nodes[1].name, 'first', {timeout = req.action == 'get' and 0.3 or 60}\n"
               "end\nreturn M\n");
    struct chromux *x = in_front_of(p, q, "MAXCONN=1", "QUEUE_TIMEOUT=30", "TRY_TIMEOUT=60",
                                    "REQUEST_TIMEOUT=60", keepf("POLICY_DIR=%s", folder), NULL);
    struct wire *first = send_read(x, 0), *second = wire_open(x->port);
    check_soon(peer_requests(p) == 1, 5);
    wire_sendf(second, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(metric(x, "chromux_requests_queued") == 1, 5);
    wire_close(first);
    struct answer *a = wire_answer(second, false);
    check(a != NULL);
    check_int(a->status, 200);
    check_str(head_field(a->head, "X-Chromux-Instance"), "replica");
    check_int(peer_requests(p), 2);
}

static void maxconn_is_never_passed(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x =
        in_front_of(p, NULL, "MAXCONN=5", "QUEUE_TIMEOUT=30", "TRY_TIMEOUT=30", NULL);
    struct wire *w[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        w[i] = send_read(x, i);
    check_soon(metric(x, "chromux_requests_queued") == CLIENTS - 5, 5);
    check_soon(peer_requests(p) >= 5, 5); /* sent, and read by the peer a moment later */
    check_int(peer_requests(p), 5);
    peer_release(p);
    for (int i = 0; i < CLIENTS; i++) {
        struct answer *a = wire_answer(w[i], false);
        check(a && a->status == 200);
    }
    check(peer_connections(p) <= 5);
}

/* ---- the retry budget ---- */

static void answer_500_on_release(struct conn *c)
{
    if (conn_request(c) && conn_wait(c))
        conn_send(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}");
}

static void reset_on_release(struct conn *c)
{
    if (conn_request(c) && conn_wait(c))
        conn_reset(c);
}

static void never_answer(struct conn *c)
{
    if (conn_request(c))
        conn_wait_gone(c);
}

/* Reads that all went to p, which runs `script`; q is the gated one to retry on. */
static struct chromux *caught_reads(struct peer **p, struct peer **q, peer_script *script,
                                    const char *try_timeout, struct wire **w)
{
    *p = peer_start(script);
    *q = peer_start(gated);
    struct chromux *x =
        in_front_of(*p, *q, "LOAD_BALANCE_STRATEGY=priority", "RETRY_BUDGET=20", try_timeout, NULL);
    for (int i = 0; i < CLIENTS; i++)
        w[i] = send_read(x, i);
    check_soon(peer_requests(*p) == CLIENTS, 5);
    return x;
}

/* Of the answers, all of which are 200 or `status`: how many are `status`. */
static unsigned with_status(struct wire **w, int status)
{
    unsigned n = 0;
    for (int i = 0; i < CLIENTS; i++) {
        struct answer *a = wire_answer(w[i], false);
        check(a != NULL);
        check(a->status == 200 || a->status == status);
        n += a->status == status;
    }
    return n;
}

static void retries_of_errors_stay_within_their_budget(void **state)
{
    struct peer *p, *q;
    struct wire *w[CLIENTS];
    struct chromux *x = caught_reads(&p, &q, answer_500_on_release, "TRY_TIMEOUT=30", w);
    peer_release(p); /* all fail at once */
    check_soon(metric(x, "chromux_retries_denied_total") >= CLIENTS - BUDGET, 10);
    check_soon(peer_requests(q) >= 3, 5);
    check(peer_requests(q) <= BUDGET);
    peer_release(q);
    unsigned errors = with_status(w, 500);
    check_int(CLIENTS - errors, peer_requests(q));
    check_int(metric(x, "chromux_retries_total"), peer_requests(q));
}

static void reads_on_a_dying_server_all_move_on(void **state)
{
    struct peer *p, *q;
    struct wire *w[CLIENTS];
    caught_reads(&p, &q, reset_on_release, "TRY_TIMEOUT=30", w);
    peer_release(p);
    peer_release(q);
    check_int(with_status(w, 200), CLIENTS);
    check_int(peer_requests(q), CLIENTS);
}

static void reads_on_a_hung_server_move_on_in_turn(void **state)
{
    struct peer *p, *q;
    struct wire *w[CLIENTS];
    struct chromux *x = caught_reads(&p, &q, never_answer, "TRY_TIMEOUT=0.5", w);
    /* As many at once as the budget has places, and none is refused meanwhile. */
    check_soon(peer_requests(q) >= 3, 5);
    check_soon(metric(x, "chromux_retries_denied_total") >= CLIENTS, 5);
    check(peer_requests(q) <= BUDGET);
    peer_release(q);
    check_int(with_status(w, 200), CLIENTS);
    check_int(peer_requests(q), CLIENTS);
}

/* ---- ten thousand idle clients ---- */

/* In a process of its own: opens n connections, says so on `ready`, keeps them until killed. */
static pid_t crowd(int port, int n, int *ready)
{
    int pipes[2];
    check(pipe(pipes) == 0);
    pid_t parent = getpid(), pid = fork();
    check(pid >= 0);
    *ready = pipes[0];
    if (pid > 0) {
        close(pipes[1]);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (getppid() != parent)
        _exit(1);
    for (int i = 0; i < n; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
            dprintf(pipes[1], "connection %d: %s", i, strerror(errno));
            _exit(1);
        }
    }
    dprintf(pipes[1], "ready");
    for (;;)
        pause();
}

static void disperse(pid_t pid, int ready)
{
    close(ready);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void ten_thousand_idle_clients_do_not_matter(void **state)
{
    enum { CROWD = 10000 };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, "MAX_CLIENTS=11000", "IDLE_TIMEOUT=600",
                                    "HEAD_TIMEOUT=600", "CHECK_INTERVAL=1", NULL);
    long before = process_rss_kb(x->pid);
    int ready;
    char said[200] = "";
    pid_t pid = crowd(x->port, CROWD, &ready);
    bool told = read(ready, said, sizeof said - 1) > 0;
    bool all = told && wait_until(metric(x, "chromux_client_connections") > CROWD, 20);
    long grown = process_rss_kb(x->pid) - before;
    double began = now_seconds();
    unsigned good = 0;
    for (int i = 0; i < 200; i++) {
        struct answer *a = http_get(x->port, HEARTBEAT);
        good += a && a->status == 200;
    }
    double took = now_seconds() - began;
    disperse(pid, ready);
    check_str(said, "ready");
    check(all);
    check_int(good, 200);
    check(took < slow(5));
    print_message("an idle connection costs %ld bytes\n", grown * 1024 / CROWD);
    if (!sanitized())
        check(grown * 1024 / CROWD <= 1024);
    check_soon(metric(x, "chromux_client_connections") <= 2, 10);
}

/* ---- no descriptors left ---- */

static double cpu_seconds(pid_t pid)
{
    const char *text = read_file(keepf("/proc/%d/stat", (int)pid));
    long user = 0, system = 0;
    const char *at = strrchr(text, ')');
    check(at && sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user,
                       &system) == 2);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static void out_of_descriptors_and_back(void **state)
{
    enum { LIMIT = 64, EXTRA = 150 };
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    struct wire *kept = wire_open(x->port), *w[EXTRA];
    wire_sendf(kept, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
    struct answer *a = wire_answer(kept, false);
    check(a && a->status == 200);
    const struct rlimit low = {LIMIT, LIMIT};
    check(prlimit(x->pid, RLIMIT_NOFILE, &low, NULL) == 0);
    for (int i = 0; i < EXTRA; i++)
        w[i] = wire_open(x->port);
    check_soon(strstr(chromux_log(x), "accept") != NULL, 5);
    /* Who is in is served on the connections there are, and waiting costs no processor time. */
    double cpu = cpu_seconds(x->pid), began = now_seconds();
    for (double last = 0; now_seconds() < began + 1; harness_nap())
        if (now_seconds() > last + 0.05) {
            last = now_seconds();
            wire_sendf(kept, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
            a = wire_answer(kept, false);
            check(a && a->status == 200);
        }
    double share = (cpu_seconds(x->pid) - cpu) / (now_seconds() - began);
    if (share > 0.5)
        harness_fail(__FILE__, __LINE__, "%.0f %% of a core while out of descriptors", share * 100);
    for (int i = 0; i < EXTRA; i++)
        wire_close(w[i]);
    check_soon((a = http_get(x->port, HEARTBEAT)) != NULL && a->status == 200, 10);
    check_soon((a = http_get(x->port, "/health")) != NULL && a->status == 200, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(full_queue_is_503),
        TEST(waiting_too_long_in_the_queue_is_503),
        TEST(policy_time_out_outlives_the_queue),
        TEST(maxconn_is_never_passed),
        TEST(retries_of_errors_stay_within_their_budget),
        TEST(reads_on_a_dying_server_all_move_on),
        TEST(reads_on_a_hung_server_move_on_in_turn),
        TEST(ten_thousand_idle_clients_do_not_matter),
        TEST(out_of_descriptors_and_back),
    };
    return RUN(tests);
}
