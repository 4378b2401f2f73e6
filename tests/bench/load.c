/* The client of the journal's benchmarks: single-record writes and queries of 384 dimensions, each
 * connection a thread that keeps its connection and has one request under way.
 *
 * usage: load add PORT COLLECTION CONNECTIONS seconds|records N
 *        load query PORT COLLECTION CONNECTIONS seconds|records N
 *        load lag PORT COLLECTION RATE SECONDS REPLICA_PORT REPLICA_COLLECTION
 *        load until PORT COLLECTION COUNT SECONDS
 *
 * COLLECTION is an id in the default tenant and database. Vectors go as base64, as Chroma's own
 * clients send them. add and query print "requests microseconds p50 p99 errors", latencies in
 * microseconds. lag adds RATE records a second on one connection, asks the replica for its count
 * all the while, and prints "requests p50 p99 errors" of the microseconds between an answer and the
 * first count that includes its record, 0 when that came before the answer. until prints the
 * microseconds until the count was reached. Exit code 1: it could not be done. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DIMENSIONS 384
#define VECTORS    1024
#define BASE       "/api/v2/tenants/default_tenant/databases/default_database/collections/"
#define ROOM       (64 * 1024)
#define THREADS    1024
#define SAMPLES    4000000

static char vector[VECTORS][DIMENSIONS * 4 / 3 * 4 + 4]; /* base64 */
static char numbers[64][DIMENSIONS * 12];                /* JSON, for queries */
static const char *collection;
static uint16_t port;
static double ends;           /* 0: after `records` */
static long records, started; /* started is counted atomically */
static uint32_t *sample;
static long samples, errors;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_for(double seconds)
{
    if (seconds <= 0)
        return;
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* ---- HTTP ------------------------------------------------------------------------------------ */

struct conn {
    int fd;
    char buf[ROOM];
};

static void conn_open(struct conn *c, uint16_t to)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(to)};
    int on = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a) != 0)
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void send_all(struct conn *c, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t k = send(c->fd, p, n, MSG_NOSIGNAL);
        if (k <= 0)
            fail("send");
        p += k;
        n -= (size_t)k;
    }
}

/* One request; the answer's status, its body in *body. Both sides send Content-Length. */
static int ask(struct conn *c, const char *method, const char *of, const char *verb,
               const char *content, size_t n, const char **body)
{
    char head[600];
    int h = snprintf(head, sizeof head,
                     "%s " BASE "%s/%s HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                     method, of, verb, n);
    char out[ROOM];
    if ((size_t)h + n > sizeof out)
        exit(1);
    memcpy(out, head, (size_t)h);
    memcpy(out + h, content, n);
    send_all(c, out, (size_t)h + n);
    size_t have = 0, whole = 0, begin = 0;
    while (!whole || have < whole) {
        if (have == ROOM - 1)
            exit(1);
        ssize_t k = recv(c->fd, c->buf + have, ROOM - 1 - have, 0);
        if (k <= 0)
            fail("recv");
        have += (size_t)k;
        c->buf[have] = 0;
        char *end = whole ? NULL : strstr(c->buf, "\r\n\r\n");
        if (end) {
            char *length = strcasestr(c->buf, "\r\ncontent-length:");
            begin = (size_t)(end + 4 - c->buf);
            whole = begin + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
        }
    }
    *body = c->buf + begin;
    return atoi(c->buf + 9);
}

static long count_of(struct conn *c, const char *of)
{
    const char *body;
    return ask(c, "GET", of, "count", "", 0, &body) == 200 ? atol(body) : -1;
}

/* ---- what is sent ---------------------------------------------------------------------------- */

static void make_vectors(void)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    srand48(1);
    for (unsigned v = 0; v < VECTORS; v++) {
        float f[DIMENSIONS];
        char *at = vector[v], *text = numbers[v % 64];
        for (unsigned i = 0; i < DIMENSIONS; i++)
            f[i] = (float)(drand48() * 2 - 1);
        const unsigned char *b = (const unsigned char *)f;
        for (size_t i = 0; i < sizeof f; i += 3) {
            unsigned x = (unsigned)b[i] << 16 | (unsigned)b[i + 1] << 8 | b[i + 2];
            for (int s = 18; s >= 0; s -= 6)
                *at++ = digit[x >> s & 63];
        }
        for (unsigned i = 0; i < DIMENSIONS; i++)
            text += sprintf(text, "%s%.6f", i ? "," : "", (double)f[i]);
    }
}

static size_t add_body(char *out, long n)
{
    return (size_t)sprintf(
        out,
        "{\"ids\":[\"r%ld\"],\"embeddings\":[\"%s\"],\"documents\":[\"passage %ld of "
        "a text\"],\"metadatas\":[{\"page\":%ld}]}",
        n, vector[n % VECTORS], n, n % 100);
}

static size_t query_body(char *out, long n)
{
    return (size_t)sprintf(
        out, "{\"query_embeddings\":[[%s]],\"n_results\":10,\"include\":[\"documents\"]}",
        numbers[n % 64]);
}

/* ---- add and query --------------------------------------------------------------------------- */

static bool querying;

static void record(uint32_t us)
{
    long at = __atomic_fetch_add(&samples, 1, __ATOMIC_RELAXED);
    if (at < SAMPLES)
        sample[at] = us;
}

static void *worker(void *arg)
{
    struct conn *c = malloc(sizeof *c);
    char *body = malloc(ROOM);
    const char *answer;
    conn_open(c, port);
    for (;;) {
        double begin = now();
        if (ends > 0 && begin >= ends)
            break;
        long n = __atomic_fetch_add(&started, 1, __ATOMIC_RELAXED);
        if (ends <= 0 && n >= records)
            break;
        size_t size = querying ? query_body(body, n) : add_body(body, n);
        int status = ask(c, "POST", collection, querying ? "query" : "add", body, size, &answer);
        if (status != (querying ? 200 : 201)) {
            if (__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED) == 0)
                fprintf(stderr, "load: answered %d: %.300s\n", status, answer);
            pause_for(0.01);
            continue;
        }
        record((uint32_t)((now() - begin) * 1e6));
    }
    close(c->fd);
    free(body);
    free(c);
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t quantile(double q)
{
    return samples ? sample[(long)((double)(samples - 1) * q)] : 0;
}

static void run_workers(unsigned connections, bool by_time, double n)
{
    pthread_t thread[THREADS];
    double begin = now();
    if (by_time)
        ends = begin + n;
    else
        records = (long)n;
    for (unsigned i = 0; i < connections; i++)
        if (pthread_create(&thread[i], NULL, worker, NULL) != 0)
            exit(1);
    for (unsigned i = 0; i < connections; i++)
        pthread_join(thread[i], NULL);
    double took = now() - begin;
    qsort(sample, (size_t)samples, sizeof *sample, by_value);
    printf("%ld %.0f %u %u %ld\n", samples, took * 1e6, quantile(0.5), quantile(0.99), errors);
}

/* ---- lag ------------------------------------------------------------------------------------- */

static double *answered, *seen; /* of the nth record */
static long lag_total;

struct watched {
    uint16_t port;
    const char *collection;
    long before;
};

static void *watch_count(void *arg)
{
    struct watched *w = arg;
    struct conn *c = malloc(sizeof *c);
    long have = 0;
    conn_open(c, w->port);
    double till = now() + 120;
    while (have < lag_total && now() < till) {
        long n = count_of(c, w->collection) - w->before;
        double at = now();
        for (; have < n && have < lag_total; have++)
            seen[have] = at;
        pause_for(0.001);
    }
    close(c->fd);
    free(c);
    return NULL;
}

static int run_lag(double rate, double seconds, struct watched *replica)
{
    struct conn *c = malloc(sizeof *c);
    char *body = malloc(ROOM);
    const char *answer;
    pthread_t watcher;
    lag_total = (long)(rate * seconds);
    answered = calloc((size_t)lag_total, sizeof *answered);
    seen = calloc((size_t)lag_total, sizeof *seen);
    conn_open(c, replica->port);
    replica->before = count_of(c, replica->collection);
    close(c->fd);
    conn_open(c, port);
    if (pthread_create(&watcher, NULL, watch_count, replica) != 0)
        return 1;
    double begin = now();
    for (long n = 0; n < lag_total; n++) {
        pause_for(begin + (double)n / rate - now());
        int status = ask(c, "POST", collection, "add", body, add_body(body, n), &answer);
        answered[n] = now();
        if (status != 201 && errors++ == 0)
            fprintf(stderr, "load: answered %d: %.300s\n", status, answer);
    }
    pthread_join(watcher, NULL);
    for (long n = 0; n < lag_total; n++) {
        if (seen[n] <= 0)
            return fprintf(stderr, "load: the replica never had record %ld\n", n), 1;
        double lag = seen[n] - answered[n];
        record(lag > 0 ? (uint32_t)(lag * 1e6) : 0);
    }
    qsort(sample, (size_t)samples, sizeof *sample, by_value);
    printf("%ld %u %u %ld\n", samples, quantile(0.5), quantile(0.99), errors);
    return 0;
}

static int run_until(long wanted, double seconds)
{
    struct conn *c = malloc(sizeof *c);
    double begin = now();
    conn_open(c, port);
    long have;
    while ((have = count_of(c, collection)) < wanted) {
        if (now() - begin > seconds)
            return fprintf(stderr, "load: %ld of %ld records\n", have, wanted), 1;
        pause_for(0.02);
    }
    printf("%.0f\n", (now() - begin) * 1e6);
    return have == wanted ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc < 6)
        return fprintf(stderr, "usage: see the head of load.c\n"), 2;
    sample = malloc(SAMPLES * sizeof *sample);
    port = (uint16_t)atoi(argv[2]);
    collection = argv[3];
    make_vectors();
    if (strcmp(argv[1], "until") == 0)
        return run_until(atol(argv[4]), atof(argv[5]));
    if (strcmp(argv[1], "lag") == 0 && argc == 8)
        return run_lag(atof(argv[4]), atof(argv[5]),
                       &(struct watched){(uint16_t)atoi(argv[6]), argv[7], 0});
    unsigned connections = (unsigned)atoi(argv[4]);
    querying = strcmp(argv[1], "query") == 0;
    if (argc != 7 || connections < 1 || connections > THREADS)
        return 2;
    run_workers(connections, strcmp(argv[5], "seconds") == 0, atof(argv[6]));
    return 0;
}
