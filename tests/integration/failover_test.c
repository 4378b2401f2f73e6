/* What chromux is for: under a steady load of reads, servers are killed, stopped, told to end and
 * started again, and no client notices. Real servers with one data folder, copied; clients that
 * never try again.
 *
 * TEST_ROUNDS sets the number of rounds (20). */
#include "chroma.h"
#include "fixture.h"
#include "load.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RECORDS = 300, CLIENTS = 24 };

static char *collection;

static void fill(struct chroma *c)
{
    collection = chroma_create(c, "records", 100);
    for (unsigned n = 0; n < RECORDS; n += 100)
        chroma_add(c, collection, n, n + 100);
}

static unsigned wanted_record(unsigned client, unsigned n)
{
    return (client * 131 + n * 17) % RECORDS;
}

/* get and query in turn. The text is small and many: not keepf. */
static const char *request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[1024];
    unsigned record = wanted_record(client, n);
    char body[300];
    if (n % 2)
        snprintf(body, sizeof body, "{\"query_embeddings\":[%s],\"n_results\":1}",
                 (const char *)((char **)arg)[record]);
    else
        snprintf(body, sizeof body, "{\"ids\":[\"r%u\"]}", record);
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/%s HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             collection, n % 2 ? "query" : "get", strlen(body), body);
    return text;
}

static bool right(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    char ids[64];
    unsigned record = wanted_record(client, n);
    snprintf(ids, sizeof ids, n % 2 ? "\"ids\":[[\"r%u\"]]" : "\"ids\":[\"r%u\"]", record);
    return status == 200 && strstr(body, ids) != NULL;
}

/* Tries on another instance. */
static unsigned second_attempts(struct chromux *x)
{
    struct answer *a = http_get(x->port, "/metrics");
    const char *at = a ? strstr(a->body, "\nchromux_retries_total ") : NULL;
    return at ? (unsigned)atol(at + 23) : 0;
}

/* How a server goes. SIGTERM: an older server ends; a newer one still accepts and never answers. */
static const struct {
    int sig;
    const char *what;
} ways[] = {{SIGKILL, "killed"}, {SIGSTOP, "stopped"}, {SIGTERM, "told to end"}};

static void check_load(struct load *l, int round, const char *when)
{
    if (load_bad(l) > 0)
        harness_fail(__FILE__, __LINE__, "round %d, %s: %u wrong of %u; first: %s", round, when,
                     load_bad(l), load_bad(l) + load_good(l), load_complaint(l));
}

static void reads_never_notice_a_server_dying(void **state)
{
    const char *wanted = getenv("TEST_ROUNDS");
    int rounds = wanted ? atoi(wanted) : 20;
    struct chroma *pair[2];
    chroma_pair(&pair[0], &pair[1], fill);
    struct chromux *x = chromux_start(
        keepf("PRIMARY_URL=%s", pair[0]->url), keepf("REPLICA_URL=%s", pair[1]->url),
        "UNREPLICATED_READS=any", "CHECK_INTERVAL=0.3", keepf("PROBE_TIMEOUT=%g", slow(1)), NULL);
    chromux_wait_healthy(x, 2);
    char **vectors = keep(sizeof *vectors * RECORDS);
    for (unsigned n = 0; n < RECORDS; n++)
        vectors[n] = chroma_vector(n);
    struct load_plan plan = {request, right, vectors, 0.005};
    struct load *l = load_start(x->port, CLIENTS, &plan);
    for (int round = 0; round < rounds; round++) {
        struct chroma *victim = pair[round % 2];
        unsigned way = (unsigned)round / 2 % COUNT_OF(ways);
        unsigned good = load_good(l), retried = second_attempts(x);
        check_soon(load_good(l) > good + 50 || load_bad(l) > 0, 20);
        chroma_signal(victim, ways[way].sig);
        chromux_wait_healthy(x, 1);
        /* A request caught by a stopped server moves on when its try is over. */
        check_soon(second_attempts(x) > retried || load_bad(l) > 0, 10);
        good = load_good(l);
        check_soon(load_good(l) > good + 50 || load_bad(l) > 0, 20);
        check_load(l, round, ways[way].what);
        if (ways[way].sig == SIGSTOP) {
            chroma_signal(victim, SIGCONT);
        } else {
            chroma_kill(victim); /* what is left of it */
            chroma_again(victim);
        }
        chromux_wait_healthy(x, 2);
        check_load(l, round, "back");
        print_message("round %d: %s %s, %u requests so far, %u second attempts\n", round,
                      victim == pair[0] ? "primary" : "replica", ways[way].what, load_good(l),
                      second_attempts(x));
    }
    load_stop(l);
    check_load(l, rounds, "at the end");
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(reads_never_notice_a_server_dying)};
    return RUN(tests);
}
