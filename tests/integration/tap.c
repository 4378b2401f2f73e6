/* Owns the relays of a test. A connection is one thread: it ends with either side, or with the
 * tap. */
#include "tap.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { TAPS_MAX = 4, PIECE = 65536, PART_MAX = 64 };

struct leg {
    struct leg *next;
    struct tap *tap;
    pthread_t thread;
    int in, out; /* chromux, server */
    char *seen;
    size_t n, room;
    size_t sent;    /* of seen, to the server */
    size_t matched; /* of seen, searched for the part that holds answers */
    bool hold_answers, spoil;
};

struct tap {
    unsigned port, to_port; /* to_port 0: a Unix socket */
    struct sockaddr_un path;
    int listener;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below and of what the legs have seen */
    bool stop;
    char hold_requests[PART_MAX], hold_answers[PART_MAX], spoil[PART_MAX];
    double delay;
    unsigned held;
    struct leg *legs;
};

static struct tap *taps[TAPS_MAX];

static int reach(const struct tap *t)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)t->to_port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const void *to = t->to_port ? (const void *)&a : (const void *)&t->path;
    int fd = socket(t->to_port ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, to, t->to_port ? sizeof a : sizeof t->path) == 0)
        return fd;
    close(fd);
    return -1;
}

static void nap(double seconds)
{
    struct timespec s = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    if (seconds > 0)
        nanosleep(&s, NULL);
}

static bool pass(int fd, const char *p, size_t n)
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

static bool has(const char *p, size_t n, const char *part)
{
    return *part && memmem(p, n, part, strlen(part)) != NULL;
}

/* Takes what came from chromux; how much of what is not sent yet may go. Under the lock. */
static size_t admit(struct leg *l, const char *p, size_t n)
{
    struct tap *t = l->tap;
    if (l->n + n > l->room) {
        l->room = l->room * 2 + n;
        l->seen = realloc(l->seen, l->room);
        if (!l->seen)
            abort();
    }
    if (n > 0)
        memcpy(l->seen + l->n, p, n);
    l->n += n;
    if (has(l->seen + l->matched, l->n - l->matched, t->hold_answers))
        l->hold_answers = true;
    if (has(l->seen + l->matched, l->n - l->matched, t->spoil))
        l->spoil = true;
    l->matched = l->n;
    return has(l->seen + l->sent, l->n - l->sent, t->hold_requests) ? 0 : l->n - l->sent;
}

static void *leg_main(void *arg)
{
    struct leg *l = arg;
    struct tap *t = l->tap;
    char *piece = malloc(PIECE);
    if (!piece)
        abort();
    for (bool live = true, held = false; live;) {
        pthread_mutex_lock(&t->lock);
        size_t go = admit(l, NULL, 0);
        bool waits = go == 0 && l->n > l->sent;
        if (!*t->hold_answers)
            l->hold_answers = false;
        bool mute = l->hold_answers;
        double delay = t->delay;
        if (held != (waits || mute)) {
            held = waits || mute;
            t->held += held ? 1 : -1U;
        }
        const char *from = l->seen + l->sent;
        live = !t->stop;
        pthread_mutex_unlock(&t->lock);
        if (go > 0) {
            nap(delay);
            live = live && pass(l->out, from, go);
            l->sent += go;
        }
        struct pollfd p[2] = {{.fd = l->in, .events = POLLIN},
                              {.fd = mute ? -1 : l->out, .events = POLLIN}};
        poll(p, 2, 20);
        if (p[0].revents) {
            ssize_t n = recv(l->in, piece, PIECE, 0);
            pthread_mutex_lock(&t->lock);
            if (n > 0)
                (void)admit(l, piece, (size_t)n);
            pthread_mutex_unlock(&t->lock);
            live = live && n > 0;
        }
        if (p[1].revents) {
            ssize_t n = recv(l->out, piece, PIECE, 0);
            nap(n > 0 ? delay : 0);
            if (l->spoil && n > 12 && memcmp(piece, "HTTP/1.1 ", 9) == 0) {
                memcpy(piece + 9, "500", 3);
                l->spoil = false;
            }
            live = live && n > 0 && pass(l->in, piece, (size_t)n);
        }
        if (!live && held) {
            pthread_mutex_lock(&t->lock);
            t->held--;
            pthread_mutex_unlock(&t->lock);
        }
    }
    free(piece);
    close(l->in);
    close(l->out);
    return NULL;
}

static void *tap_main(void *arg)
{
    struct tap *t = arg;
    for (;;) {
        int in = accept4(t->listener, NULL, NULL, SOCK_CLOEXEC), on = 1;
        if (in < 0)
            return NULL;
        int out = reach(t);
        if (out < 0) {
            struct linger reset = {.l_onoff = 1};
            setsockopt(in, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(in);
            continue;
        }
        setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct leg *l = keep(sizeof *l);
        l->tap = t;
        l->in = in;
        l->out = out;
        pthread_mutex_lock(&t->lock);
        l->next = t->legs;
        t->legs = l;
        pthread_mutex_unlock(&t->lock);
        if (pthread_create(&l->thread, NULL, leg_main, l) != 0)
            abort();
    }
}

static struct tap *start(struct tap *t)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    unsigned at = 0;
    while (at < TAPS_MAX && taps[at])
        at++;
    check(at < TAPS_MAX);
    t->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(bind(t->listener, (struct sockaddr *)&a, sizeof a) == 0 && listen(t->listener, 64) == 0);
    check(getsockname(t->listener, (struct sockaddr *)&a, &len) == 0);
    t->port = ntohs(a.sin_port);
    pthread_mutex_init(&t->lock, NULL);
    check(pthread_create(&t->thread, NULL, tap_main, t) == 0);
    taps[at] = t;
    return t;
}

struct tap *tap_start(unsigned to_port)
{
    struct tap *t = keep(sizeof *t);
    t->to_port = to_port;
    return start(t);
}

struct tap *tap_start_at(const char *path)
{
    struct tap *t = keep(sizeof *t);
    t->path.sun_family = AF_UNIX;
    check(strlen(path) < sizeof t->path.sun_path);
    strcpy(t->path.sun_path, path);
    return start(t);
}

unsigned tap_port(const struct tap *t)
{
    return t->port;
}

char *tap_seen(struct tap *t)
{
    pthread_mutex_lock(&t->lock);
    size_t n = 0, at = 0;
    for (struct leg *l = t->legs; l; l = l->next)
        n += l->n;
    char *all = keep(n + 1);
    for (struct leg *l = t->legs; l; at += l->n, l = l->next)
        if (l->n > 0)
            memcpy(all + at, l->seen, l->n);
    pthread_mutex_unlock(&t->lock);
    return all;
}

static void set(struct tap *t, char *where, const char *part)
{
    check(!part || strlen(part) < PART_MAX);
    pthread_mutex_lock(&t->lock);
    strcpy(where, part ? part : "");
    pthread_mutex_unlock(&t->lock);
}

void tap_hold_requests(struct tap *t, const char *part)
{
    set(t, t->hold_requests, part);
}

void tap_hold_answers(struct tap *t, const char *part)
{
    set(t, t->hold_answers, part);
}

void tap_spoil_answers(struct tap *t, const char *part)
{
    set(t, t->spoil, part);
}

void tap_delay(struct tap *t, double seconds)
{
    pthread_mutex_lock(&t->lock);
    t->delay = seconds;
    pthread_mutex_unlock(&t->lock);
}

unsigned tap_held(struct tap *t)
{
    pthread_mutex_lock(&t->lock);
    unsigned n = t->held;
    pthread_mutex_unlock(&t->lock);
    return n;
}

void tap_stop_all(void)
{
    for (unsigned i = 0; i < TAPS_MAX; i++) {
        struct tap *t = taps[i];
        if (!t)
            continue;
        taps[i] = NULL;
        shutdown(t->listener, SHUT_RDWR);
        pthread_join(t->thread, NULL);
        close(t->listener);
        pthread_mutex_lock(&t->lock);
        t->stop = true;
        pthread_mutex_unlock(&t->lock);
        for (struct leg *l = t->legs; l; l = l->next) {
            pthread_join(l->thread, NULL);
            free(l->seen);
        }
    }
}
