/* listener.c: at most two sockets, the clients' and the operator's. */
#include "listener.h"

#include "log.h"
#include "metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* RESERVE: descriptors that clients may not take, so that instances can still be reached. */
enum { LISTENERS = 2, BATCH = 64, BACKLOG = 4096, RESERVE = 64, LOCAL_MAX = 16 };

static int client_descriptors; /* clients get those below this number */

static struct listener {
    ev_io io;
    ev_timer pause; /* after a failed accept, so that a full descriptor table is no busy loop */
    int fd;
    bool local_only, used;
} listeners[LISTENERS];

#define NO_ROOM                                                                                    \
    "{\"error\":\"ChromaError\",\"message\":\"chromux has no room for another client "             \
    "(MAX_CLIENTS)\"}"
_Static_assert(sizeof NO_ROOM - 1 == 88, "the Content-Length below");

static void refuse(int fd)
{
    static const char text[] =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        "Content-Length: 88\r\nVia: 1.1 chromux\r\nX-Chromux-Instance: -\r\nConnection: "
        "close\r\n\r\n" NO_ROOM;
    char unread[4096];
    metrics_inc(CONNECTIONS_REFUSED);
    if (send(fd, text, sizeof text - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        log_debug("refuse_failed", "error=%s", log_quote(strerror(errno)));
    /* Closing with unread input resets the connection, and the answer with it. */
    shutdown(fd, SHUT_WR);
    while (recv(fd, unread, sizeof unread, MSG_DONTWAIT) > 0)
        ;
    close(fd);
}

/* The operator's port has places of its own: it is wanted most when the clients' are taken. */
static bool clients_full(int fd)
{
    return session_shared.count >= (unsigned)session_shared.cfg->max_clients ||
           fd >= client_descriptors;
}

static void accept_some(struct listener *l, unsigned most)
{
    struct ev_loop *loop = stream_loop();
    for (unsigned i = 0; i < most; i++) {
        struct sockaddr_storage peer;
        socklen_t len = sizeof peer;
        int fd = accept4(l->fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                return;
            metrics_inc(ACCEPT_ERRORS);
            log_error("accept_failed", "error=%s", log_quote(strerror(errno)));
            ev_io_stop(loop, &l->io);
            ev_timer_again(loop, &l->pause);
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (l->local_only ? session_shared.local_count >= LOCAL_MAX : clients_full(fd))
            refuse(fd);
        else
            session_start(fd, (struct sockaddr *)&peer, l->local_only);
    }
}

static void on_accept(struct ev_loop *loop, ev_io *w, int revents)
{
    (void)loop;
    (void)revents;
    accept_some(container_of(w, struct listener, io), BATCH);
}

static void on_pause_over(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)revents;
    struct listener *l = container_of(w, struct listener, pause);
    ev_timer_stop(loop, w);
    ev_io_start(loop, &l->io);
}

static bool parse_address(const char *address, int port, struct sockaddr_storage *out,
                          socklen_t *len)
{
    memset(out, 0, sizeof *out);
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        *len = sizeof *v4;
        return true;
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        *len = sizeof *v6;
        return true;
    }
    return false;
}

static void complain(bool local_only, const char *address, int why, struct buf *error)
{
    const char *name = why == EADDRNOTAVAIL ? "LISTEN_ADDRESS" : local_only ? "ADMIN_PORT" : "PORT";
    char *text =
        why == EADDRNOTAVAIL
            ? base_printf("expected an address of this machine (%s)", strerror(why))
            : base_printf("expected a port that %s can listen on (%s)%s", address, strerror(why),
                          why == EADDRINUSE ? ": stop what uses it, or set another" : "");
    config_complain(session_shared.cfg, name, text, error);
    free(text);
}

bool listener_open(const char *address, int port, bool local_only, struct buf *error)
{
    struct sockaddr_storage at;
    socklen_t len = 0;
    struct rlimit fds;
    client_descriptors = INT_MAX;
    if (getrlimit(RLIMIT_NOFILE, &fds) == 0 && fds.rlim_cur < INT_MAX) {
        int all = (int)fds.rlim_cur;
        client_descriptors = all - (all / 4 < RESERVE ? all / 4 : RESERVE);
    }
    struct listener *l = !listeners[0].used ? &listeners[0] : &listeners[1];
    must(!l->used);
    if (!parse_address(address, port, &at, &len)) {
        buf_printf(error, "LISTEN_ADDRESS = %s: expected an IPv4 or IPv6 address\n", address);
        return false;
    }
    l->fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd >= 0)
        setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&at, len) != 0 || listen(l->fd, BACKLOG) != 0) {
        complain(local_only, address, errno, error);
        if (l->fd >= 0)
            close(l->fd);
        return false;
    }
    getsockname(l->fd, (struct sockaddr *)&at, &len);
    l->local_only = local_only;
    l->used = true;
    ev_io_init(&l->io, on_accept, l->fd, EV_READ);
    ev_timer_init(&l->pause, on_pause_over, 0.1, 0.1);
    ev_io_start(stream_loop(), &l->io);
    log_info("listening", "address=%s port=%d admin=%s", address,
             ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
                                            : ((struct sockaddr_in *)&at)->sin_port),
             local_only ? "true" : "false");
    return true;
}

void listener_close_all(void)
{
    for (unsigned i = 0; i < LISTENERS; i++) {
        struct listener *l = &listeners[i];
        if (!l->used)
            continue;
        accept_some(l, BACKLOG);
        ev_io_stop(stream_loop(), &l->io);
        ev_timer_stop(stream_loop(), &l->pause);
        close(l->fd);
        l->used = false;
    }
}
