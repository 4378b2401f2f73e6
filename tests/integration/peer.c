/* Owns scripted upstreams: a listener thread and one thread a connection. Scripts block, but never
 * for ever: every wait also watches `stop`, a pipe that peer_stop() closes. */
#include "peer.h"
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PEERS_MAX = 8, REQUESTS_MAX = 200000 };

struct peer {
    int listener, stop[2], gate[2]; /* stop and gate: readable once the write end is closed */
    unsigned port;
    pthread_t thread;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t idle;
    peer_script *script;
    enum probe_mode probe_mode;
    unsigned alive, connections, probes, completed, gone, marks, requests, room;
    struct request **request;
    bool released;
};

struct conn {
    struct peer *peer;
    int fd;
    unsigned nth;
    char in[PEER_HEAD_MAX];
    size_t len;
};

static struct peer *peers[PEERS_MAX];

/* ---- waiting --------------------------------------------------------------------------------- */

/* Waits for `what` on fd; false when the peer stops or after `seconds` (< 0: no limit). */
static bool await(struct conn *c, int fd, short what, double seconds)
{
    struct pollfd p[2] = {{.fd = fd, .events = what}, {.fd = c->peer->stop[0], .events = POLLIN}};
    int n = poll(p, 2, seconds < 0 ? -1 : (int)(seconds * 1000));
    return n > 0 && p[1].revents == 0 && p[0].revents != 0;
}

/* Reads into c->in; false at the end. */
static bool fill(struct conn *c)
{
    if (c->fd < 0 || c->len == sizeof c->in || !await(c, c->fd, POLLIN, -1))
        return false;
    ssize_t got = recv(c->fd, c->in + c->len, sizeof c->in - c->len, MSG_DONTWAIT);
    if (got <= 0)
        return got < 0 && (errno == EAGAIN || errno == EINTR);
    c->len += (size_t)got;
    return true;
}

static void take(struct conn *c, size_t n)
{
    memmove(c->in, c->in + n, c->len - n);
    c->len -= n;
}

bool conn_write(struct conn *c, const void *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        if (c->fd < 0)
            return false;
        ssize_t sent = send(c->fd, (const char *)p + at, n - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0)
            at += (size_t)sent;
        else if ((errno != EAGAIN && errno != EINTR) || !await(c, c->fd, POLLOUT, -1))
            return false;
    }
    return true;
}

bool conn_send(struct conn *c, const char *fmt, ...)
{
    va_list args;
    char *text;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    bool sent = n >= 0 && conn_write(c, text, (size_t)n);
    free(text);
    return sent;
}

bool conn_pause(struct conn *c, double seconds)
{
    struct pollfd stop = {.fd = c->peer->stop[0], .events = POLLIN};
    return poll(&stop, 1, (int)(seconds * 1000)) == 0;
}

bool conn_drip(struct conn *c, const char *text, size_t piece, double every)
{
    for (size_t left = strlen(text); left > 0;) {
        size_t n = piece < left ? piece : left;
        if (!conn_write(c, text, n) || !conn_pause(c, every))
            return false;
        text += n;
        left -= n;
    }
    return true;
}

bool conn_wait(struct conn *c)
{
    return await(c, c->peer->gate[0], POLLIN, -1);
}

bool conn_wait_gone(struct conn *c)
{
    char drop[4096];
    while (await(c, c->fd, POLLIN, -1)) {
        ssize_t got = recv(c->fd, drop, sizeof drop, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            pthread_mutex_lock(&c->peer->lock);
            c->peer->gone++;
            pthread_mutex_unlock(&c->peer->lock);
            return true;
        }
    }
    return false;
}

void conn_reset(struct conn *c)
{
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    if (c->fd < 0)
        return;
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    close(c->fd);
    c->fd = -1;
}

void conn_mark(struct conn *c)
{
    pthread_mutex_lock(&c->peer->lock);
    c->peer->marks++;
    pthread_mutex_unlock(&c->peer->lock);
}

unsigned conn_nth(const struct conn *c)
{
    return c->nth;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void answer_probe(struct conn *c, const char *head)
{
    pthread_mutex_lock(&c->peer->lock);
    c->peer->probes++;
    enum probe_mode mode = c->peer->probe_mode;
    pthread_mutex_unlock(&c->peer->lock);
    const char *body = strstr(head, "collections_count") ? "1" : "{\"nanosecond heartbeat\":1}";
    switch (mode) {
    case PROBE_OK:
        conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        break;
    case PROBE_ERROR:
        conn_send(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}");
        break;
    case PROBE_HANG:
        conn_wait_gone(c);
        break;
    case PROBE_CLOSE:
        conn_reset(c);
        break;
    }
}

static void record(struct conn *c, struct request *r)
{
    struct peer *p = c->peer;
    pthread_mutex_lock(&p->lock);
    r->connection = c->nth;
    if (p->requests == p->room) {
        p->room = p->room * 2 + 64;
        p->request = realloc(p->request, p->room * sizeof(struct request *));
        if (!p->request || p->room > REQUESTS_MAX * 2)
            abort();
    }
    p->request[p->requests++] = r;
    pthread_mutex_unlock(&p->lock);
}

/* A head is in c->in, or the stream ends (NULL). Returns where it ends. */
static char *await_head(struct conn *c)
{
    char *end;
    while (!(end = memmem(c->in, c->len, "\r\n\r\n", 4)))
        if (!fill(c))
            return NULL;
    return end + 4;
}

/* Answers probes until something else comes; false at the end of the connection. */
static bool past_probes(struct conn *c)
{
    for (char *end; (end = await_head(c)) != NULL;) {
        char *head = keep_text(c->in, (size_t)(end - c->in));
        const char *agent = head_field(head, "User-Agent");
        if (!agent || strcmp(agent, "chromux-probe") != 0)
            return true;
        take(c, (size_t)(end - c->in));
        answer_probe(c, head);
    }
    return false;
}

/* How much of its body a request may keep. */
static size_t body_room(const char *head)
{
    const char *length = head_field(head, "Content-Length");
    size_t n = length ? strtoul(length, NULL, 10) : 0;
    bool chunked = head_field(head, "Transfer-Encoding") != NULL;
    return chunked || n > PEER_BODY_KEPT ? PEER_BODY_KEPT : n;
}

struct request *conn_head(struct conn *c)
{
    if (!past_probes(c))
        return NULL;
    struct request *r = keep(sizeof *r);
    char *end = await_head(c);
    r->head = keep_text(c->in, (size_t)(end - c->in));
    r->body = keep(body_room(r->head) + 1);
    r->trailers = r->chunk_lines = keepf("%s", "");
    r->body_hash = FNV_START;
    take(c, (size_t)(end - c->in));
    record(c, r);
    return r;
}

/* Moves n bytes of body from the connection into r. */
static bool body_bytes(struct conn *c, struct request *r, uint64_t n)
{
    while (n > 0) {
        if (c->len == 0 && !fill(c))
            return false;
        size_t part = c->len < n ? c->len : (size_t)n;
        if (r->body_len < PEER_BODY_KEPT) {
            size_t room = PEER_BODY_KEPT - (size_t)r->body_len;
            memcpy(r->body + r->body_len, c->in, part < room ? part : room);
        }
        r->body_hash = fnv(r->body_hash, c->in, part);
        r->body_len += part;
        n -= part;
        take(c, part);
    }
    return true;
}

/* A line without its CRLF, taken off the connection; NULL at the end. */
static char *line(struct conn *c)
{
    char *end;
    while (!(end = memmem(c->in, c->len, "\r\n", 2)))
        if (!fill(c))
            return NULL;
    char *text = keep_text(c->in, (size_t)(end - c->in));
    take(c, (size_t)(end - c->in) + 2);
    return text;
}

static bool chunked_body(struct conn *c, struct request *r)
{
    bool many = false;
    for (;;) {
        char *size = line(c);
        if (!size)
            return false;
        /* A large body would keep megabytes of joined lines: the first few tell enough. */
        if (!many)
            r->chunk_lines = keepf("%s%s\n", r->chunk_lines, size);
        many = strlen(r->chunk_lines) > 200;
        uint64_t n = strtoull(size, NULL, 16);
        if (n == 0)
            break;
        char *blank;
        if (!body_bytes(c, r, n) || !(blank = line(c)) || *blank)
            return false;
    }
    for (char *field; (field = line(c)) != NULL;) {
        if (!*field)
            return true;
        r->trailers = keepf("%s%s\n", r->trailers, field);
    }
    return false;
}

bool conn_body(struct conn *c, struct request *r)
{
    const char *length = head_field(r->head, "Content-Length");
    const char *coding = head_field(r->head, "Transfer-Encoding");
    bool whole = coding   ? chunked_body(c, r)
                 : length ? body_bytes(c, r, strtoull(length, NULL, 10))
                          : true;
    pthread_mutex_lock(&c->peer->lock);
    r->complete = whole;
    c->peer->completed += whole;
    pthread_mutex_unlock(&c->peer->lock);
    return whole;
}

struct request *conn_request(struct conn *c)
{
    struct request *r = conn_head(c);
    return r && conn_body(c, r) ? r : NULL;
}

uint64_t conn_read_raw(struct conn *c, uint64_t n)
{
    uint64_t got = 0;
    while (got < n && (c->len > 0 || fill(c))) {
        size_t part = c->len < n - got ? c->len : (size_t)(n - got);
        take(c, part);
        got += part;
    }
    return got;
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

/* As it came, but that the connection is for this request only. */
static bool pass_on(int fd, const struct request *r)
{
    const char *line_end = strstr(r->head, "\r\n") + 2;
    static const char more[] = "Connection: close\r\n";
    return send_all(fd, r->head, (size_t)(line_end - r->head)) &&
           send_all(fd, more, sizeof more - 1) && send_all(fd, line_end, strlen(line_end)) &&
           send_all(fd, r->body, (size_t)r->body_len);
}

void conn_relay(struct conn *c, const struct request *r, unsigned port)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char part[65536];
    ssize_t got;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (r->body_len <= PEER_BODY_KEPT && connect(fd, (struct sockaddr *)&to, sizeof to) == 0 &&
        pass_on(fd, r))
        while ((got = recv(fd, part, sizeof part, 0)) > 0 && conn_write(c, part, (size_t)got))
            ;
    close(fd);
}

void serve_ok(struct conn *c)
{
    while (conn_request(c))
        if (!conn_send(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                          "Content-Length: 11\r\n\r\n{\"ok\":true}"))
            return;
}

void serve_echo(struct conn *c)
{
    for (struct request *r; (r = conn_request(c)) != NULL;) {
        const char *target = strchr(r->head, ' ') + 1;
        const char *body = r->body_len > 0 ? r->body : keep_text(target, strcspn(target, " "));
        bool head = strncmp(r->head, "HEAD ", 5) == 0;
        if (!conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body),
                       head ? "" : body))
            return;
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

static void *conn_main(void *arg)
{
    struct conn *c = arg;
    struct peer *p = c->peer;
    if (past_probes(c)) {
        pthread_mutex_lock(&p->lock);
        peer_script *script = p->script;
        c->nth = p->connections++;
        pthread_mutex_unlock(&p->lock);
        script(c);
    }
    if (c->fd >= 0)
        close(c->fd);
    free(c);
    pthread_mutex_lock(&p->lock);
    if (--p->alive == 0)
        pthread_cond_signal(&p->idle);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void *listener_main(void *arg)
{
    struct peer *p = arg;
    for (;;) {
        struct pollfd f[2] = {{.fd = p->listener, .events = POLLIN},
                              {.fd = p->stop[0], .events = POLLIN}};
        if (poll(f, 2, -1) < 0 && errno != EINTR)
            abort();
        if (f[1].revents)
            return NULL;
        int fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC), on = 1;
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            abort();
        *c = (struct conn){.peer = p, .fd = fd};
        pthread_attr_t attr;
        pthread_t thread;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        pthread_mutex_lock(&p->lock);
        p->alive++;
        pthread_mutex_unlock(&p->lock);
        if (pthread_create(&thread, &attr, conn_main, c) != 0)
            abort();
        pthread_attr_destroy(&attr);
    }
}

struct peer *peer_start_at(peer_script *script, const char *address, unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = inet_addr(address)};
    socklen_t len = sizeof a;
    int on = 1;
    struct peer *p = keep(sizeof *p);
    p->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(p->listener >= 0);
    setsockopt(p->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    check(bind(p->listener, (struct sockaddr *)&a, sizeof a) == 0);
    check(listen(p->listener, 1024) == 0);
    check(getsockname(p->listener, (struct sockaddr *)&a, &len) == 0);
    check(pipe2(p->stop, O_CLOEXEC) == 0);
    check(pipe2(p->gate, O_CLOEXEC) == 0);
    p->port = ntohs(a.sin_port);
    p->script = script;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->idle, NULL);
    unsigned i = 0;
    while (i < PEERS_MAX && peers[i])
        i++;
    check(i < PEERS_MAX);
    check(pthread_create(&p->thread, NULL, listener_main, p) == 0);
    peers[i] = p;
    return p;
}

struct peer *peer_start(peer_script *script)
{
    return peer_start_at(script, "127.0.0.1", free_port());
}

void peer_stop(struct peer *p)
{
    for (unsigned i = 0; i < PEERS_MAX; i++)
        if (peers[i] == p) {
            peers[i] = NULL;
            close(p->stop[1]);
            pthread_join(p->thread, NULL);
            close(p->listener);
            pthread_mutex_lock(&p->lock);
            while (p->alive > 0)
                pthread_cond_wait(&p->idle, &p->lock);
            pthread_mutex_unlock(&p->lock);
            close(p->stop[0]);
            close(p->gate[0]);
            if (!p->released)
                close(p->gate[1]);
            free(p->request);
            p->request = NULL;
        }
}

void peer_stop_all(void)
{
    for (unsigned i = 0; i < PEERS_MAX; i++)
        if (peers[i])
            peer_stop(peers[i]);
}

unsigned peer_port(const struct peer *p)
{
    return p->port;
}

const char *peer_url(const struct peer *p)
{
    return keepf("http://127.0.0.1:%u", p->port);
}

void peer_set_script(struct peer *p, peer_script *script)
{
    pthread_mutex_lock(&p->lock);
    p->script = script;
    pthread_mutex_unlock(&p->lock);
}

void peer_set_probes(struct peer *p, enum probe_mode mode)
{
    pthread_mutex_lock(&p->lock);
    p->probe_mode = mode;
    pthread_mutex_unlock(&p->lock);
}

void peer_release(struct peer *p)
{
    if (!p->released)
        close(p->gate[1]);
    p->released = true;
}

#define PEER_GETTER(name, field)                                                                   \
    unsigned name(struct peer *p)                                                                  \
    {                                                                                              \
        pthread_mutex_lock(&p->lock);                                                              \
        unsigned n = p->field;                                                                     \
        pthread_mutex_unlock(&p->lock);                                                            \
        return n;                                                                                  \
    }
PEER_GETTER(peer_requests, requests)
PEER_GETTER(peer_completed, completed)
PEER_GETTER(peer_connections, connections)
PEER_GETTER(peer_gone, gone)
PEER_GETTER(peer_probes, probes)
PEER_GETTER(peer_marks, marks)

struct request *peer_request(struct peer *p, unsigned i)
{
    pthread_mutex_lock(&p->lock);
    struct request *r = i < p->requests ? p->request[i] : NULL;
    pthread_mutex_unlock(&p->lock);
    check(r != NULL);
    return r;
}
