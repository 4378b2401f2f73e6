/* origin: a server of fixed answers, as fast as one core allows, so that the proxy in front of it
 * is what a benchmark measures. HTTP/1.1 with keep-alive and pipelining, on one or more ports.
 *
 * The target chooses the body: `bytes=N` in the query gives N bytes, a path that ends in `_count`
 * (what health probes ask for) gives "1", anything else the 44 bytes of a Chroma heartbeat. Bodies
 * are JSON. Only requests without a body are understood; any other ends its connection, loudly.
 *
 * Answers of one size are made once and kept for ever; at most SIZES_MAX sizes.
 *
 * usage: origin PORT...   (on 127.0.0.1) */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, ACCEPT_BATCH = 64, HEAD_MAX = 8192, SIZES_MAX = 32, PORTS_MAX = 16 };
static const size_t body_max = 64u << 20;

struct answer {
    size_t body, len;
    char *bytes; /* head and body */
};

struct conn {
    int fd;
    bool last;                /* the peer closed its side */
    const struct answer *now; /* being sent, NULL when none */
    size_t sent;
    size_t len; /* bytes of `head` that hold requests not answered yet */
    char head[HEAD_MAX];
};

static int epfd;
static struct answer sized[SIZES_MAX], heartbeat, one;
static unsigned sized_count;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void answer_make(struct answer *a, const char *body, size_t n)
{
    char head[160];
    int h = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n",
                     n);
    a->body = n;
    a->len = (size_t)h + n;
    a->bytes = malloc(a->len);
    if (!a->bytes)
        die("malloc");
    memcpy(a->bytes, head, (size_t)h);
    if (body) {
        memcpy(a->bytes + h, body, n);
    } else {
        memset(a->bytes + h, 'x', n);
        if (n >= 2)
            a->bytes[h] = a->bytes[a->len - 1] = '"';
    }
}

static const struct answer *answer_sized(size_t n)
{
    for (unsigned i = 0; i < sized_count; i++)
        if (sized[i].body == n)
            return &sized[i];
    if (sized_count == SIZES_MAX || n > body_max)
        return NULL;
    answer_make(&sized[sized_count], NULL, n);
    return &sized[sized_count++];
}

/* head: one whole request head, its blank line included. NULL: not for this server. */
static const struct answer *answer_for(const char *head, size_t len)
{
    if (len < 16 || memcmp(head, "GET ", 4) != 0)
        return NULL;
    const char *target = head + 4, *line = memchr(target, '\r', len - 4);
    const char *end = memchr(target, ' ', (size_t)(line - target));
    if (!end)
        return NULL;
    const char *query = memchr(target, '?', (size_t)(end - target));
    const char *bytes = query ? memmem(query, (size_t)(end - query), "bytes=", 6) : NULL;
    if (bytes)
        return answer_sized(strtoul(bytes + 6, NULL, 10));
    const char *path_end = query ? query : end;
    if (path_end - target > 6 && memcmp(path_end - 6, "_count", 6) == 0)
        return &one;
    return &heartbeat;
}

static void conn_close(struct conn *c)
{
    close(c->fd);
    free(c);
}

/* Answers whole requests until the peer takes no more or none is left. false: closed is due. */
static bool conn_answer(struct conn *c)
{
    size_t used = 0;
    for (;;) {
        if (!c->now) {
            const char *from = c->head + used;
            const char *blank = memmem(from, c->len - used, "\r\n\r\n", 4);
            if (!blank)
                break;
            size_t n = (size_t)(blank - from) + 4;
            c->now = answer_for(from, n);
            if (!c->now) {
                fprintf(stderr, "origin: cannot answer: %.*s\n", (int)strcspn(from, "\r"), from);
                return false;
            }
            c->sent = 0;
            used += n;
        }
        ssize_t n = send(c->fd, c->now->bytes + c->sent, c->now->len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return false;
        if (n < 0)
            break;
        c->sent += (size_t)n;
        if (c->sent == c->now->len)
            c->now = NULL;
    }
    c->len -= used;
    if (used && c->len)
        memmove(c->head, c->head + used, c->len);
    return true;
}

static bool conn_step(struct conn *c)
{
    for (;;) {
        if (!conn_answer(c))
            return false;
        if (c->now)
            return true; /* EPOLLOUT comes back here */
        size_t room = HEAD_MAX - c->len;
        if (!room)
            return false;
        ssize_t n = recv(c->fd, c->head + c->len, room, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
        c->len += (size_t)n;
        if ((size_t)n < room && !c->last)
            return conn_answer(c);
    }
}

static void accept_batch(int lfd)
{
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int on = 1, fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            return;
        }
        struct conn *c = malloc(sizeof *c);
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
        if (!c || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e) < 0) {
            free(c);
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->fd = fd;
        c->last = false;
        c->now = NULL;
        c->sent = c->len = 0;
    }
}

static int listen_on(const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(port));
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 4096) < 0)
        die("bind");
    return fd;
}

int main(int argc, char **argv)
{
    static int lfd[PORTS_MAX]; /* their addresses mark listening sockets among the events */
    if (argc < 2 || argc - 1 > PORTS_MAX) {
        fprintf(stderr, "usage: origin PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    answer_make(&heartbeat, "{\"nanosecond heartbeat\":1735689600000000000}", 44);
    answer_make(&one, "1", 1);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0)
        die("epoll_create1");
    for (int i = 0; i < argc - 1; i++) {
        lfd[i] = listen_on(argv[i + 1]);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &lfd[i]};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, lfd[i], &e) < 0)
            die("epoll_ctl");
    }
    for (;;) {
        struct epoll_event ev[EVENTS];
        int n = epoll_wait(epfd, ev, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            int *l = ev[i].data.ptr;
            if (l >= lfd && l < lfd + PORTS_MAX) {
                accept_batch(*l);
                continue;
            }
            struct conn *c = ev[i].data.ptr;
            if (ev[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                c->last = true;
            if ((ev[i].events & EPOLLERR) || !conn_step(c))
                conn_close(c);
        }
    }
}
