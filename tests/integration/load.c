/* Owns the clients of a load. They use nothing of wire.c, which is for the main thread. */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS_MAX = 64, LOADS_MAX = 4, ANSWER_MAX = 1 << 20 };

struct load {
    int port;
    unsigned clients;
    struct load_plan plan;
    pthread_t thread[CLIENTS_MAX];
    atomic_bool stop;
    atomic_uint next, good, bad;
    pthread_mutex_t lock;
    char complaint[600];
    double longest;
};

static struct load *loads[LOADS_MAX];

static int connect_to(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* Answers have a Content-Length or no body here: Chroma's do. Returns the status, 0 when the
 * connection ended or the answer did not come within a minute; *body points into `in`. */
static int read_answer(int fd, char *in, const char **body)
{
    size_t n = 0, want = 0;
    char *end = NULL;
    while (!end || n < want) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (n == ANSWER_MAX - 1 || poll(&p, 1, 60000) != 1)
            return 0;
        ssize_t got = recv(fd, in + n, ANSWER_MAX - 1 - n, 0);
        if (got <= 0)
            return 0;
        n += (size_t)got;
        in[n] = 0;
        if (!end && (end = strstr(in, "\r\n\r\n")) != NULL) {
            const char *length = strcasestr(in, "\r\nContent-Length:");
            want = (size_t)(end - in) + 4 +
                   (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
            *body = end + 4;
        }
    }
    return atoi(in + 9);
}

static bool send_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        p += sent;
        n -= (size_t)sent;
    }
    return true;
}

static int exchange(int fd, const char *request, char *in, const char **body)
{
    return send_all(fd, request, strlen(request)) ? read_answer(fd, in, body) : 0;
}

int load_once(int port, const char *head, const char *body, size_t n)
{
    const char *ignored;
    char *in = malloc(ANSWER_MAX);
    int fd = connect_to(port), status = 0;
    if (in && fd >= 0 && send_all(fd, head, strlen(head)) && send_all(fd, body, n))
        status = read_answer(fd, in, &ignored);
    if (fd >= 0)
        close(fd);
    free(in);
    return status;
}

static void complain(struct load *l, unsigned client, unsigned n, int status, const char *body)
{
    pthread_mutex_lock(&l->lock);
    if (!*l->complaint)
        snprintf(l->complaint, sizeof l->complaint, "client %u, request %u: status %d: %s", client,
                 n, status, body);
    pthread_mutex_unlock(&l->lock);
}

static void note_time(struct load *l, double seconds)
{
    pthread_mutex_lock(&l->lock);
    if (seconds > l->longest)
        l->longest = seconds;
    pthread_mutex_unlock(&l->lock);
}

static void *client_main(void *arg)
{
    struct load *l = arg;
    unsigned client = atomic_fetch_add(&l->next, 1);
    char *in = malloc(ANSWER_MAX);
    int fd = -1;
    if (!in)
        abort();
    for (unsigned n = 0; !atomic_load(&l->stop); n++) {
        const char *body = "(no answer)";
        double began = now_seconds();
        if (fd < 0)
            fd = connect_to(l->port);
        int status = fd < 0 ? 0 : exchange(fd, l->plan.request(client, n, l->plan.arg), in, &body);
        note_time(l, now_seconds() - began);
        bool right = status != 0 && l->plan.right(client, n, status, body, l->plan.arg);
        if (!right)
            complain(l, client, n, status, body);
        atomic_fetch_add(right ? &l->good : &l->bad, 1);
        if (status == 0 && fd >= 0) {
            close(fd);
            fd = -1;
        }
        if (l->plan.pace > 0)
            poll(NULL, 0, (int)(l->plan.pace * 1000));
    }
    if (fd >= 0)
        close(fd);
    free(in);
    return NULL;
}

struct load *load_start(int port, unsigned clients, const struct load_plan *plan)
{
    struct load *l = keep(sizeof *l);
    unsigned at = 0;
    while (at < LOADS_MAX && loads[at])
        at++;
    check(at < LOADS_MAX && clients <= CLIENTS_MAX);
    l->port = port;
    l->plan = *plan;
    pthread_mutex_init(&l->lock, NULL);
    loads[at] = l;
    for (; l->clients < clients; l->clients++)
        check(pthread_create(&l->thread[l->clients], NULL, client_main, l) == 0);
    return l;
}

unsigned load_good(struct load *l)
{
    return atomic_load(&l->good);
}

unsigned load_bad(struct load *l)
{
    return atomic_load(&l->bad);
}

double load_longest(struct load *l)
{
    pthread_mutex_lock(&l->lock);
    double seconds = l->longest;
    pthread_mutex_unlock(&l->lock);
    return seconds;
}

const char *load_complaint(struct load *l)
{
    pthread_mutex_lock(&l->lock);
    const char *text = keepf("%s", l->complaint);
    pthread_mutex_unlock(&l->lock);
    return text;
}

void load_stop(struct load *l)
{
    for (unsigned i = 0; i < LOADS_MAX; i++)
        if (loads[i] == l) {
            loads[i] = NULL;
            atomic_store(&l->stop, true);
            for (unsigned c = 0; c < l->clients; c++)
                pthread_join(l->thread[c], NULL);
        }
}

void load_stop_all(void)
{
    for (unsigned i = 0; i < LOADS_MAX; i++)
        if (loads[i])
            load_stop(loads[i]);
}

static const char *heartbeat(unsigned client, unsigned n, void *arg)
{
    return "GET /api/v2/heartbeat HTTP/1.1\r\nHost: h\r\n\r\n";
}

static bool is_200(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    return status == 200;
}

const struct load_plan load_heartbeats = {.request = heartbeat, .right = is_200};
