/* Owns the test's client connections: plain blocking steps with a deadline on non-blocking sockets.
 * All connections are closed by the teardown. */
#include "wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WIRES_MAX = 4096 };
static struct wire *wires[WIRES_MAX];
static unsigned wire_count;

uint64_t fnv(uint64_t hash, const void *p, size_t n)
{
    for (const unsigned char *at = p; n > 0; n--)
        hash = (hash ^ *at++) * 1099511628211ULL;
    return hash;
}

struct wire *wire_open(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct wire *w = keep(sizeof *w);
    int on = 1;
    w->port = port;
    w->patience = 10;
    w->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(w->fd >= 0 && wire_count < WIRES_MAX);
    wires[wire_count++] = w;
    setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(w->fd, (struct sockaddr *)&a, sizeof a) != 0)
        wire_close(w);
    return w;
}

static bool ready(struct wire *w, short what, double until)
{
    struct pollfd p = {.fd = w->fd, .events = what};
    double left = until - now_seconds();
    return w->fd >= 0 && poll(&p, 1, left > 0 ? (int)(left * 1000) + 1 : 0) > 0;
}

bool wire_send(struct wire *w, const void *p, size_t n)
{
    double until = now_seconds() + slow(w->patience);
    for (size_t at = 0; at < n;) {
        ssize_t sent =
            w->fd < 0 ? -1 : send(w->fd, (const char *)p + at, n - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            at += (size_t)sent;
            until = now_seconds() + slow(w->patience);
        } else if (w->fd < 0 || (errno != EAGAIN && errno != EINTR) || !ready(w, POLLOUT, until)) {
            return false;
        }
    }
    return true;
}

bool wire_sendf(struct wire *w, const char *fmt, ...)
{
    va_list args;
    char *text;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    bool sent = n >= 0 && wire_send(w, text, (size_t)n);
    free(text);
    return sent;
}

/* Reads more into w->in; false at the end of the stream or the deadline. */
static bool more(struct wire *w, double until)
{
    if (w->room - w->len < 65536) {
        w->room = w->room * 2 + 131072;
        w->in = realloc(w->in, w->room);
        if (!w->in)
            abort();
    }
    while (ready(w, POLLIN, until)) {
        ssize_t got = recv(w->fd, w->in + w->len, w->room - w->len - 1, MSG_DONTWAIT);
        if (got > 0) {
            w->len += (size_t)got;
            w->in[w->len] = 0;
            return true;
        }
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            return false;
    }
    return false;
}

static void take(struct wire *w, size_t n)
{
    memmove(w->in, w->in + n, w->len - n);
    w->len -= n;
    w->in[w->len] = 0;
}

char *head_field(const char *head, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = strstr(head, "\r\n"); at && at[2] != '\r'; at = strstr(at + 2, "\r\n"))
        if (strncasecmp(at + 2, name, n) == 0 && at[2 + n] == ':') {
            at += 3 + n;
            at += strspn(at, " \t");
            return keep_text(at, strcspn(at, "\r"));
        }
    return NULL;
}

unsigned head_count(const char *head, const char *name)
{
    size_t n = strlen(name);
    unsigned count = 0;
    for (const char *at = strstr(head, "\r\n"); at && at[2] != '\r'; at = strstr(at + 2, "\r\n"))
        count += strncasecmp(at + 2, name, n) == 0 && at[2 + n] == ':';
    return count;
}

struct answer *wire_answer_head(struct wire *w)
{
    double until = now_seconds() + slow(w->patience);
    char *end;
    while (w->len == 0 || !(end = memmem(w->in, w->len, "\r\n\r\n", 4)))
        if (!more(w, until))
            return NULL;
    size_t n = (size_t)(end - w->in) + 4;
    struct answer *a = keep(sizeof *a);
    a->head = keep_text(w->in, n);
    a->body = keepf("%s", "");
    a->trailers = a->body;
    if (sscanf(a->head, "HTTP/1.%*d %d", &a->status) != 1)
        return NULL;
    take(w, n);
    const char *coding = head_field(a->head, "Transfer-Encoding");
    a->chunked = coding && strcasecmp(coding, "chunked") == 0;
    return a;
}

size_t chunks_decode(const char *p, size_t n, char **body, size_t *len, char **trailers)
{
    size_t at = 0;
    char *out = keep(n + 1);
    *len = 0;
    for (;;) {
        const char *eol = memmem(p + at, n - at, "\r\n", 2);
        if (!eol)
            return 0;
        size_t size = strtoul(p + at, NULL, 16);
        at = (size_t)(eol - p) + 2;
        if (size == 0)
            break;
        if (size > n || n - at < size + 2)
            return 0;
        memcpy(out + *len, p + at, size);
        *len += size;
        at += size + 2;
    }
    size_t from = at;
    for (const char *eol; (eol = memmem(p + at, n - at, "\r\n", 2)) != NULL;) {
        bool blank = eol == p + at;
        at = (size_t)(eol - p) + 2;
        if (blank) {
            *body = out;
            *trailers = keep_text(p + from, at - from);
            return at;
        }
    }
    return 0;
}

static void read_chunked(struct wire *w, struct answer *a, double until)
{
    size_t used = 0, looked = 0;
    bool last = false;
    /* Decoding starts once a last chunk seems to be there: a big body is not decoded over and over.
     */
    do {
        last = last || (w->len >= 3 && memcmp(w->in, "0\r\n", 3) == 0) ||
               memmem(w->in + looked, w->len - looked, "\r\n0\r\n", 5);
        looked = w->len > 4 ? w->len - 4 : 0;
        if (last)
            used = chunks_decode(w->in, w->len, &a->body, &a->body_len, &a->trailers);
    } while (used == 0 && more(w, until));
    a->complete = used > 0;
    if (used > 0)
        take(w, used);
}

struct answer *wire_answer(struct wire *w, bool to_head)
{
    struct answer *a = wire_answer_head(w);
    double until = now_seconds() + slow(w->patience);
    if (!a)
        return NULL;
    const char *length = head_field(a->head, "Content-Length");
    if (to_head || a->status < 200 || a->status == 204 || a->status == 304) {
        a->complete = true;
    } else if (a->chunked) {
        read_chunked(w, a, until);
    } else {
        size_t n = length ? strtoul(length, NULL, 10) : SIZE_MAX;
        while (w->len < n && more(w, until))
            ;
        a->complete = length ? w->len >= n : wire_closed(w);
        a->body_len = w->len < n ? w->len : n;
        a->body = keep_text(w->in ? w->in : "", a->body_len);
        if (a->body_len > 0)
            take(w, a->body_len);
    }
    return a;
}

uint64_t wire_skip(struct wire *w, uint64_t n, uint64_t *hash)
{
    uint64_t got = 0;
    while (got < n) {
        if (w->len == 0 && !more(w, now_seconds() + slow(w->patience)))
            break;
        size_t part = w->len < n - got ? w->len : (size_t)(n - got);
        *hash = fnv(*hash, w->in, part);
        take(w, part);
        got += part;
    }
    return got;
}

bool wire_closed(struct wire *w)
{
    double until = now_seconds() + slow(w->patience);
    char c;
    while (ready(w, POLLIN, until)) {
        ssize_t got = recv(w->fd, &c, 1, MSG_DONTWAIT | MSG_PEEK);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return true;
        if (got > 0)
            return false;
    }
    return w->fd < 0;
}

bool wire_has_input(struct wire *w)
{
    return w->len > 0 || ready(w, POLLIN, 0);
}

void wire_close(struct wire *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    free(w->in);
    w->in = NULL;
    w->len = w->room = 0;
    for (unsigned i = 0; i < wire_count; i++)
        if (wires[i] == w)
            wires[i] = wires[--wire_count];
}

void wire_reset(struct wire *w)
{
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    setsockopt(w->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    wire_close(w);
}

void wire_close_all(void)
{
    while (wire_count > 0)
        wire_close(wires[wire_count - 1]);
}

struct answer *http_send(int port, const char *method, const char *target, const char *fields,
                         const char *body)
{
    struct wire *w = wire_open(port);
    struct answer *a = NULL;
    wire_sendf(w, "%s %s HTTP/1.1\r\nHost: chroma.test\r\nConnection: close\r\n%s", method, target,
               fields);
    if (body)
        wire_sendf(w, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                   strlen(body), body);
    else
        wire_sendf(w, "\r\n");
    do
        a = wire_answer(w, strcmp(method, "HEAD") == 0);
    while (a && a->status < 200);
    wire_close(w);
    return a;
}

struct answer *http_get(int port, const char *target)
{
    return http_send(port, "GET", target, "", NULL);
}

struct answer *http_post(int port, const char *target, const char *body)
{
    return http_send(port, "POST", target, "", body);
}
