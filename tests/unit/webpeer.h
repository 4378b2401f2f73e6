/* webpeer.h: a scripted HTTP server on the test's own loop: the path of a request says how it shall
 * be answered. Header-only, for the unit tests of fetch and api. */
#ifndef WEBPEER_H
#define WEBPEER_H

#include "buf.h"

#include <errno.h>
#include <ev.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct webpeer_conn {
    struct webpeer_conn *next;
    struct webpeer *peer;
    int fd; /* -1 once closed */
    ev_io io;
    struct buf in;
};

struct webpeer {
    struct ev_loop *loop;
    int fd, port;
    ev_io io;
    struct webpeer_conn *conns, *held; /* held: asked for /held last */
    unsigned accepted, requests;
    char last[4096]; /* the last request, head and body */
    size_t last_n;
};

static void webpeer_close(struct webpeer_conn *c, bool reset)
{
    struct linger now = {1, 0};
    if (c->fd < 0)
        return;
    if (reset)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    ev_io_stop(c->peer->loop, &c->io);
    close(c->fd);
    c->fd = -1;
}

static void webpeer_send(struct webpeer_conn *c, const void *p, size_t n)
{
    (void)!send(c->fd, p, n, MSG_NOSIGNAL); /* answers fit into the socket's buffer */
}

static void webpeer_say(struct webpeer_conn *c, const char *s)
{
    webpeer_send(c, s, strlen(s));
}

static void webpeer_answer(struct webpeer_conn *c, const char *path, const char *all, size_t n)
{
    char head[128];
    if (strcmp(path, "/echo") == 0) {
        snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nX-Peer: Yes\r\nContent-Length: %zu\r\n\r\n",
                 n);
        webpeer_say(c, head);
        webpeer_send(c, all, n);
    } else if (strcmp(path, "/chunked") == 0) {
        webpeer_say(c, "HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
                       "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
                       "3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n");
    } else if (strcmp(path, "/json") == 0) {
        webpeer_say(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                       "Content-Length: 15\r\n\r\n{\"n\":[1,2.5,3]}");
    } else if (strcmp(path, "/redirect") == 0) {
        webpeer_say(c, "HTTP/1.1 302 Found\r\nLocation: /echo\r\nContent-Length: 0\r\n\r\n");
    } else if (strcmp(path, "/missing") == 0) {
        webpeer_say(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone");
    } else if (strcmp(path, "/kept-then-dead") == 0) {
        webpeer_say(c, "HTTP/1.1 204 No Content\r\n\r\n");
        shutdown(c->fd, SHUT_RD);
        webpeer_close(c, false);
    } else if (strcmp(path, "/half") == 0) {
        webpeer_say(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
        webpeer_close(c, false);
    } else if (strcmp(path, "/reset") == 0) {
        webpeer_close(c, true);
    } else if (strcmp(path, "/garbage") == 0) {
        webpeer_say(c, "\x16\x03 what is this\r\n\r\n");
        webpeer_close(c, false);
    } else if (strcmp(path, "/bighead") == 0) {
        webpeer_say(c, "HTTP/1.1 200 OK\r\n");
        for (unsigned i = 0; i < 1000; i++)
            webpeer_say(c, "X-Fill: 01234567890123456789012345678901234567890123456789"
                           "01234567890123456789012345678901234567890123456789\r\n");
        webpeer_say(c, "\r\n");
    }
    if (strcmp(path, "/held") == 0)
        c->peer->held = c;
    if (strcmp(path, "/release") == 0) { /* answers /held, and this */
        webpeer_say(c->peer->held, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld");
        webpeer_say(c, "HTTP/1.1 204 No Content\r\n\r\n");
    }
    if (strcmp(path, "/alone") == 0) { /* ends all connections but this */
        for (struct webpeer_conn *o = c->peer->conns; o; o = o->next)
            if (o != c)
                webpeer_close(o, true);
        webpeer_say(c, "HTTP/1.1 204 No Content\r\n\r\n");
    }
    /* anything else ("/silent"): no answer, ever */
}

static void webpeer_read(struct ev_loop *loop, ev_io *w, int revents)
{
    struct webpeer_conn *c = container_of(w, struct webpeer_conn, io);
    char *at = buf_reserve(&c->in, 65536);
    ssize_t n = at ? recv(c->fd, at, 65536, 0) : 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        webpeer_close(c, false);
        return;
    }
    buf_added(&c->in, (size_t)n);
    for (;;) {
        char path[256] = "", method[32] = "";
        const char *p = buf_data(&c->in);
        size_t len = buf_len(&c->in);
        const char *end = memmem(p, len, "\r\n\r\n", 4);
        if (!end)
            return;
        size_t head = (size_t)(end - p) + 4, body = 0;
        for (const char *l = p; l < end; l = (const char *)memmem(l, head, "\r\n", 2) + 2)
            if (strncasecmp(l, "content-length:", 15) == 0)
                body = strtoul(l + 15, NULL, 10);
        if (len < head + body)
            return;
        struct webpeer *peer = c->peer;
        peer->requests++;
        peer->last_n = head + body < sizeof peer->last - 1 ? head + body : sizeof peer->last - 1;
        memcpy(peer->last, p, peer->last_n);
        peer->last[peer->last_n] = 0;
        sscanf(peer->last, "%31s %255s", method, path);
        webpeer_answer(c, path, p, head + body);
        if (c->fd < 0)
            return;
        buf_consume(&c->in, head + body);
        if (buf_len(&c->in) == 0)
            return;
    }
}

static void webpeer_accept(struct ev_loop *loop, ev_io *w, int revents)
{
    struct webpeer *p = container_of(w, struct webpeer, io);
    int fd = accept4(p->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    int size = 1 << 20;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    struct webpeer_conn *c = base_zalloc(sizeof *c);
    c->peer = p;
    c->fd = fd;
    c->next = p->conns;
    p->conns = c;
    p->accepted++;
    buf_init(&c->in, 8u << 20);
    ev_io_init(&c->io, webpeer_read, fd, EV_READ);
    ev_io_start(p->loop, &c->io);
}

/* Serves on a fresh port of 127.0.0.1. */
static bool webpeer_start(struct webpeer *p, struct ev_loop *loop)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    memset(p, 0, sizeof *p);
    p->loop = loop;
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(p->fd, (struct sockaddr *)&sa, len) || listen(p->fd, 64) ||
        getsockname(p->fd, (struct sockaddr *)&sa, &len))
        return false;
    p->port = ntohs(sa.sin_port);
    ev_io_init(&p->io, webpeer_accept, p->fd, EV_READ);
    ev_io_start(loop, &p->io);
    return true;
}

static void webpeer_stop(struct webpeer *p)
{
    ev_io_stop(p->loop, &p->io);
    close(p->fd);
    while (p->conns) {
        struct webpeer_conn *c = p->conns;
        p->conns = c->next;
        webpeer_close(c, false);
        buf_fini(&c->in);
        free(c);
    }
}

#endif
