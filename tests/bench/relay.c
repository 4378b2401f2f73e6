/* relay: the floor of the benchmark. A TCP relay that parses nothing: one upstream connection for
 * each client connection, bytes passed as they come. What a proxy costs beyond this is its own.
 *
 * A fair floor does what a good proxy does with its sockets and nothing else: one thread, edge
 * triggered epoll (no epoll_ctl after a connection is set up), accept in batches, read until short,
 * write at once into the other side, keep only what the other side did not take, TCP_NODELAY, no
 * memory held for a silent connection but its two small records.
 *
 * usage: relay PORT UPSTREAM_PORT...   (all on 127.0.0.1; upstreams take turns by connection) */
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

enum { EVENTS = 256, ACCEPT_BATCH = 64, BLOCK = 65536, UPSTREAMS_MAX = 16 };

/* Back-pressure: a side that did not take everything holds the rest in `left` (at most BLOCK), and
 * while it does its peer is not read. */
struct side {
    int fd;
    bool last;  /* the peer's FIN was announced: read to the end, a short read proves nothing */
    bool eof;   /* nothing more comes from here */
    bool drain; /* a FIN is owed to this side once `left` is gone */
    char *left;
    size_t off, len;
    struct side *peer;
    struct pair *pair;
};

struct pair {
    struct side client, upstream;
    bool closed;
    struct pair *next_dead;
};

static int epfd;
static char block[BLOCK];
static struct sockaddr_in upstream[UPSTREAMS_MAX];
static unsigned upstream_count, upstream_next;
static struct pair *dead; /* closed in this turn; later events of the turn may still name them */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void pair_close(struct pair *p)
{
    if (p->closed)
        return;
    p->closed = true;
    close(p->client.fd);
    close(p->upstream.fd);
    p->next_dead = dead;
    dead = p;
}

static void pairs_free_dead(void)
{
    while (dead) {
        struct pair *p = dead;
        dead = p->next_dead;
        free(p->client.left);
        free(p->upstream.left);
        free(p);
    }
}

/* Returns the bytes taken, -1 when the other end is gone. A socket still connecting takes none. */
static ssize_t side_send(struct side *to, const char *data, size_t len)
{
    size_t sent = 0;
    while (sent < len) {
        ssize_t n = send(to->fd, data + sent, len - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? (ssize_t)sent : -1;
        sent += (size_t)n;
    }
    return (ssize_t)sent;
}

static bool side_keep(struct side *to, const char *data, size_t len)
{
    to->left = malloc(len);
    if (!to->left)
        return false;
    memcpy(to->left, data, len);
    to->off = 0;
    to->len = len;
    return true;
}

static void side_finish(struct side *to)
{
    to->drain = true;
    if (!to->left)
        shutdown(to->fd, SHUT_WR);
}

/* Moves what `from` has into its peer. false: the pair is over. */
static bool side_pump(struct side *from)
{
    struct side *to = from->peer;
    while (!from->eof && !to->left) {
        ssize_t n = recv(from->fd, block, BLOCK, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN;
        if (n == 0) {
            from->eof = true;
            side_finish(to);
            return !to->eof || to->left || from->left;
        }
        ssize_t sent = side_send(to, block, (size_t)n);
        if (sent < 0)
            return false;
        if (sent < n && !side_keep(to, block + sent, (size_t)(n - sent)))
            return false;
        if (n < BLOCK && !from->last && !to->left)
            return true;
    }
    return true;
}

static bool side_flush(struct side *to)
{
    ssize_t sent = side_send(to, to->left + to->off, to->len - to->off);
    if (sent < 0)
        return false;
    to->off += (size_t)sent;
    if (to->off < to->len)
        return true;
    free(to->left);
    to->left = NULL;
    if (to->drain)
        shutdown(to->fd, SHUT_WR);
    if (to->drain && to->eof && !to->peer->left)
        return false;
    return side_pump(to->peer);
}

static void side_event(struct side *s, uint32_t events)
{
    struct pair *p = s->pair;
    if (p->closed)
        return;
    if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
        s->last = true;
    bool going = true;
    if (s->left && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        going = side_flush(s);
    if (going && (events & ~(uint32_t)EPOLLOUT))
        going = side_pump(s);
    if (!going)
        pair_close(p);
}

static bool watch(int fd, void *who)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = who};
    return epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e) == 0;
}

static void side_init(struct side *s, int fd, struct side *peer, struct pair *p)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    s->fd = fd;
    s->peer = peer;
    s->pair = p;
}

static void pair_open(int client)
{
    struct pair *p = calloc(1, sizeof *p);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (!p || fd < 0) {
        free(p);
        if (fd >= 0)
            close(fd);
        close(client);
        return;
    }
    side_init(&p->client, client, &p->upstream, p);
    side_init(&p->upstream, fd, &p->client, p);
    const struct sockaddr_in *to = &upstream[upstream_next++ % upstream_count];
    if ((connect(fd, (const struct sockaddr *)to, sizeof *to) < 0 && errno != EINPROGRESS) ||
        !watch(client, &p->client) || !watch(fd, &p->upstream))
        pair_close(p);
}

static void accept_batch(int lfd)
{
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            pair_open(fd);
        else if (errno != EINTR && errno != ECONNABORTED)
            return;
    }
}

static struct sockaddr_in loopback(const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(port));
    return a;
}

static int listen_on(const char *port)
{
    struct sockaddr_in a = loopback(port);
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
    if (argc < 3 || argc - 2 > UPSTREAMS_MAX) {
        fprintf(stderr, "usage: relay PORT UPSTREAM_PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    for (int i = 2; i < argc; i++)
        upstream[upstream_count++] = loopback(argv[i]);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    int lfd = listen_on(argv[1]);
    /* Level triggered, so that a full batch is simply continued in the next turn. */
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, lfd, &e) < 0)
        die("epoll");
    for (;;) {
        struct epoll_event ev[EVENTS];
        int n = epoll_wait(epfd, ev, EVENTS, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (ev[i].data.ptr)
                side_event(ev[i].data.ptr, ev[i].events);
            else
                accept_batch(lfd);
        }
        pairs_free_dead();
    }
}
