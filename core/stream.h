/* stream.h: one connected socket, its two buffers and its watcher.
 *
 * The only place that arms a connection's watcher. Reading stays armed while somebody wants bytes,
 * so that a request costs no epoll_ctl; writing is tried at once and armed only for what was left
 * over. An empty stream holds no buffer: bytes are first read into one block shared by all streams,
 * and only what its owner left unconsumed is kept. */
#ifndef STREAM_H
#define STREAM_H

#include "buf.h"
#include <ev.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct stream;
enum stream_event {
    STREAM_READABLE,  /* new bytes in `in` */
    STREAM_EOF,       /* the peer closed its side; `in` may still hold bytes */
    STREAM_ERROR,     /* reset or the like: errno in `error`; nothing more can be sent or read */
    STREAM_WRITABLE,  /* all that was kept in `out` has gone */
    STREAM_CONNECTED, /* stream_connect() is through */
};

struct stream {
    ev_io io;
    int fd;    /* -1 when closed */
    int error; /* errno of STREAM_ERROR */
    bool connecting, eof, want_read;
    bool blocked; /* an offer fell short: WRITABLE is due */
    bool *closed; /* where to note that the stream was closed in its own callback */
    void (*event)(struct stream *s, enum stream_event e);
    struct buf in, out;
};

enum { STREAM_BLOCK = 65536 };

/* One loop a process. stream_start also ignores SIGPIPE. */
void stream_start(struct ev_loop *loop);
struct ev_loop *stream_loop(void);

/* Takes over fd (made non-blocking by whoever opened it). in_cap: the most bytes kept unread, which
 * is where back-pressure begins. Reading is not wanted at first. The event callback may close the
 * stream and free what holds it. */
void stream_open(struct stream *s, int fd, size_t in_cap,
                 void (*event)(struct stream *, enum stream_event));
/* Opens a TCP connection without waiting; ends in CONNECTED or ERROR. false: at once, with errno.
 */
bool stream_connect(struct stream *s, const struct sockaddr *to, socklen_t len, size_t in_cap,
                    void (*event)(struct stream *, enum stream_event)) MUST_CHECK;
/* Is this errno of a failed stream_connect() our own lack of something, and no sign about the peer?
 */
bool stream_own_limit(int error);
static inline bool stream_is_open(const struct stream *s)
{
    return s->fd >= 0;
}

/* Whether READABLE and EOF are wanted. When `in` is at its cap, reading pauses by itself until the
 * owner consumed some and calls this again. */
void stream_read_on(struct stream *s);
void stream_read_off(struct stream *s);

/* Sends now as much as the socket takes and keeps the rest in `out` (the caller bounds it: see
 * stream_unsent). false: the peer is gone, errno in s->error; no event follows. */
bool stream_send(struct stream *s, const struct iovec *iov, int n) MUST_CHECK;
/* Sends what goes without keeping anything: returns the bytes taken (0 when the socket is full or
 * `out` still holds bytes; then STREAM_WRITABLE follows), or -1 when the peer is gone. */
ssize_t stream_offer(struct stream *s, const struct iovec *iov, int n) MUST_CHECK;
static inline size_t stream_unsent(const struct stream *s)
{
    return buf_len(&s->out);
}

/* Bytes on their way to the peer that it has not acknowledged yet, kept ones included: while it
 * falls, the peer reads. */
size_t stream_pending(const struct stream *s);

void stream_close(struct stream *s);
/* As stream_close, but with a reset (RST) instead of an orderly end. */
void stream_abort(struct stream *s);
/* Sends FIN and keeps reading. */
void stream_finish(struct stream *s);

#endif
