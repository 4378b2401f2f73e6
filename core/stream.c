/* stream.c: see stream.h. The shared block: at most one stream is inside its READABLE callback at a
 * time, and only there does its `in` borrow the block; on return the rest is moved to memory of its
 * own. */
#include "stream.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct ev_loop *loop;
static char block[STREAM_BLOCK];
static bool block_lent;

void stream_start(struct ev_loop *l)
{
    loop = l;
    signal(SIGPIPE, SIG_IGN);
}

struct ev_loop *stream_loop(void)
{
    return loop;
}

/* The one function that arms: what is watched follows from the state. */
static void arm(struct stream *s)
{
    int want = 0;
    if (s->connecting || s->blocked || buf_len(&s->out) > 0)
        want |= EV_WRITE;
    if (s->want_read && !s->connecting && !s->eof && buf_room(&s->in) > 0)
        want |= EV_READ;
    int have = ev_is_active(&s->io) ? s->io.events & (EV_READ | EV_WRITE) : 0;
    if (want == have)
        return;
    ev_io_stop(loop, &s->io);
    if (want) {
        ev_io_set(&s->io, s->fd, want);
        ev_io_start(loop, &s->io);
    }
}

/* After a callback: bytes left in the shared block get memory of their own. */
static void give_block_back(struct stream *s)
{
    if (s->in.mem != block)
        return;
    size_t left = buf_len(&s->in);
    const char *at = buf_data(&s->in);
    block_lent = false;
    s->in.mem = NULL;
    s->in.head = s->in.tail = s->in.size = 0;
    if (left)
        buf_put(&s->in, at, left);
}

/* Tells the owner; false when it closed the stream. */
static bool tell(struct stream *s, enum stream_event e)
{
    bool closed = false, *outer = s->closed;
    s->closed = &closed;
    s->event(s, e);
    if (closed) {
        if (outer)
            *outer = true;
        return false;
    }
    s->closed = outer;
    return true;
}

static void on_connected(struct stream *s)
{
    int err = 0;
    socklen_t len = sizeof err;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
        err = errno;
    if (err == EINPROGRESS || err == EALREADY)
        return;
    s->connecting = false;
    s->error = err;
    arm(s);
    tell(s, err ? STREAM_ERROR : STREAM_CONNECTED);
}

/* false when the owner closed the stream. */
static bool on_readable(struct stream *s)
{
    size_t want = buf_room(&s->in);
    if (want > STREAM_BLOCK)
        want = STREAM_BLOCK;
    char *at;
    if (!s->in.mem && !block_lent) {
        s->in.mem = at = block;
        s->in.size = STREAM_BLOCK;
        block_lent = true;
    } else {
        if (want > 16384 && buf_len(&s->in) < 16384)
            want = 16384; /* grow step by step */
        at = buf_reserve(&s->in, want);
        must(at != NULL);
    }
    ssize_t n;
    do
        n = recv(s->fd, at, want, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        buf_added(&s->in, (size_t)n);
        if (!tell(s, STREAM_READABLE))
            return false;
    } else if (n == 0) {
        s->eof = true;
        if (!tell(s, STREAM_EOF))
            return false;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK) {
        s->error = errno;
        s->eof = true;
        if (!tell(s, STREAM_ERROR))
            return false;
    }
    give_block_back(s);
    buf_rest(&s->in);
    arm(s);
    return true;
}

static ssize_t write_some(struct stream *s, const struct iovec *iov, int n)
{
    ssize_t w;
    do
        w = n == 1 ? send(s->fd, iov[0].iov_base, iov[0].iov_len, MSG_NOSIGNAL)
                   : writev(s->fd, iov, n);
    while (w < 0 && errno == EINTR);
    if (w < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (w < 0)
        s->error = errno;
    return w;
}

static void on_writable(struct stream *s)
{
    if (buf_len(&s->out) > 0) {
        struct iovec v = {s->out.mem + s->out.head, buf_len(&s->out)};
        ssize_t n = write_some(s, &v, 1);
        if (n < 0) {
            /* What the peer sent before it went may still be readable: reading says how it ended.
             */
            buf_fini(&s->out);
            s->blocked = false;
            arm(s);
            tell(s, STREAM_ERROR);
            return;
        }
        buf_consume(&s->out, (size_t)n);
        if (buf_len(&s->out) > 0)
            return;
        buf_rest(&s->out);
    }
    s->blocked = false;
    if (tell(s, STREAM_WRITABLE))
        arm(s);
}

static void on_io(struct ev_loop *l, ev_io *w, int revents)
{
    (void)l;
    struct stream *s = container_of(w, struct stream, io);
    if (s->connecting) {
        on_connected(s);
        return;
    }
    if ((revents & EV_READ) && !on_readable(s))
        return;
    if ((revents & EV_WRITE) && (s->blocked || buf_len(&s->out) > 0))
        on_writable(s);
}

void stream_open(struct stream *s, int fd, size_t in_cap,
                 void (*event)(struct stream *, enum stream_event))
{
    memset(s, 0, sizeof *s);
    s->fd = fd;
    s->event = event;
    buf_init(&s->in, in_cap);
    buf_init(&s->out, 64u << 20);
    ev_io_init(&s->io, on_io, fd, 0);
}

bool stream_connect(struct stream *s, const struct sockaddr *to, socklen_t len, size_t in_cap,
                    void (*event)(struct stream *, enum stream_event))
{
    int fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    s->fd = -1;
    if (fd < 0)
        return false;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, to, len) != 0 && errno != EINPROGRESS) {
        int err = errno;
        close(fd);
        errno = err;
        return false;
    }
    stream_open(s, fd, in_cap, event);
    s->connecting = true;
    arm(s);
    return true;
}

bool stream_own_limit(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
           error == EADDRNOTAVAIL;
}

void stream_read_on(struct stream *s)
{
    s->want_read = true;
    arm(s);
}

void stream_read_off(struct stream *s)
{
    s->want_read = false;
    arm(s);
}

bool stream_send(struct stream *s, const struct iovec *iov, int n)
{
    size_t skip = 0;
    if (buf_len(&s->out) == 0 && !s->connecting) {
        ssize_t w = write_some(s, iov, n);
        if (w < 0)
            return false;
        skip = (size_t)w;
    }
    for (int i = 0; i < n; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        buf_put(&s->out, (const char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
        skip = 0;
    }
    if (buf_len(&s->out) > 0)
        arm(s);
    return true;
}

ssize_t stream_offer(struct stream *s, const struct iovec *iov, int n)
{
    size_t total = 0;
    for (int i = 0; i < n; i++)
        total += iov[i].iov_len;
    ssize_t w = 0;
    if (buf_len(&s->out) == 0 && !s->connecting) {
        w = write_some(s, iov, n);
        if (w < 0)
            return -1;
    }
    if ((size_t)w < total) {
        s->blocked = true;
        arm(s);
    }
    return w;
}

size_t stream_pending(const struct stream *s)
{
    int queued = 0; /* SIOCOUTQ, tcp(7) */
    if (ioctl(s->fd, SIOCOUTQ, &queued) != 0)
        queued = 0;
    return buf_len(&s->out) + (size_t)queued;
}

void stream_close(struct stream *s)
{
    if (s->fd < 0)
        return;
    ev_io_stop(loop, &s->io);
    close(s->fd);
    s->fd = -1;
    if (s->in.mem == block) {
        s->in.mem = NULL;
        block_lent = false;
    }
    buf_fini(&s->in);
    buf_fini(&s->out);
    if (s->closed)
        *s->closed = true;
    s->closed = NULL;
}

void stream_abort(struct stream *s)
{
    if (s->fd < 0)
        return;
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    stream_close(s);
}

void stream_finish(struct stream *s)
{
    if (s->fd >= 0)
        shutdown(s->fd, SHUT_WR);
}
