/* wires.h: connected sockets and a loop that turns until something has come true. */
#ifndef WIRES_H
#define WIRES_H

#include "base.h"

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

/* Seconds until a test that waits for something has failed. */
#define WIRES_PATIENCE 10.0

static inline void wires_limit(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    *(bool *)w->data = true;
}

/* Turns the loop for so long, or until *flag is true (NULL: never). Returns whether it is. */
static inline bool wires_turn(struct ev_loop *loop, double seconds, const bool *flag)
{
    bool over = false;
    ev_timer limit;
    ev_now_update(loop);
    ev_timer_init(&limit, wires_limit, seconds, 0);
    limit.data = &over;
    ev_timer_start(loop, &limit);
    while (!over && !(flag && *flag))
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &limit);
    return flag && *flag;
}

/* Turns until the condition holds; false when it takes longer than WIRES_PATIENCE. It may do
 * things: it is not asked again once it held. */
#define wires_until(loop, condition)                                                               \
    ({                                                                                             \
        double wires_end = ev_time() + WIRES_PATIENCE;                                             \
        bool wires_held;                                                                           \
        while (!(wires_held = (condition)) && ev_time() < wires_end)                               \
            (void)wires_turn(loop, 0.002, NULL);                                                   \
        wires_held;                                                                                \
    })

/* Some turns in which whatever is ready happens: for showing that something does not. */
static inline void wires_settle(struct ev_loop *loop)
{
    for (int i = 0; i < 20; i++)
        (void)wires_turn(loop, 0.001, NULL);
}

static inline void wires_nonblocking(int fd)
{
    int rc = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    must(rc == 0);
}

/* A listening socket on the loopback address; *port is the one it got. */
static inline int wires_listen(int *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0);
    int rc = bind(fd, (struct sockaddr *)&at, sizeof at);
    must(rc == 0);
    rc = listen(fd, 64);
    must(rc == 0);
    rc = getsockname(fd, (struct sockaddr *)&at, &len);
    must(rc == 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static inline struct sockaddr_in wires_at(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* Two ends of a TCP connection; both non-blocking. */
static inline void wires_tcp(int end[2])
{
    int port, listener = wires_listen(&port);
    struct sockaddr_in at = wires_at(port);
    end[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(end[0] >= 0);
    int rc = connect(end[0], (struct sockaddr *)&at, sizeof at);
    must(rc == 0);
    end[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    must(end[1] >= 0);
    close(listener);
    wires_nonblocking(end[0]);
    wires_nonblocking(end[1]);
}

/* A port on which nobody listens. */
static inline int wires_dead_port(void)
{
    int port, fd = wires_listen(&port);
    close(fd);
    return port;
}

static inline void wires_reset(int fd)
{
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(fd);
}

#endif
