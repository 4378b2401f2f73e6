/* session.h: the client side: one connection, its requests one after the other, their answers.
 *
 * A session reads a head, finds its route and hands the request to a handler; it feeds the body
 * into request->body, keeps the client's deadlines and writes the access log line. The handler
 * answers through the request_* calls below. */
#ifndef SESSION_H
#define SESSION_H

#include "access.h"
#include "body.h"
#include "config.h"
#include "reply.h"
#include "route.h"
#include "stream.h"
#include "wheel.h"

struct request;

struct handler {
    /* The head is complete; `head` lives only during the call. The body may follow. */
    void (*start)(struct request *r, struct http1_head *head);
    /* Body bytes, or its end (r->body.done), came. */
    void (*more)(struct request *r);
    /* The client took everything that was offered. */
    void (*drained)(struct request *r);
    /* r->deadline passed. */
    void (*late)(struct request *r);
    /* The client is gone, or too slow, or we stop: let go of everything. No answer is possible; the
     * request is freed when this returns. */
    void (*gone)(struct request *r);
};

struct request {
    struct session *s;
    struct request *next; /* in the free list */
    const struct handler *handler;
    void *state; /* the handler's */

    struct buf
        text; /* the target as sent; then what a handler appends: grown only by request_room() */
    struct str target, path;
    const char *method_text; /* static */
    enum http1_method method;
    struct route route; /* slices into text */
    int minor;
    bool keep_alive, expect_continue, te_trailers;

    struct body body;

    double deadline;                     /* loop time for handler->late; 0: none */
    double body_deadline, send_deadline; /* the session's own */
    size_t send_pending;                 /* stream_pending() when send_deadline was set */
    bool answered;                       /* a byte of the final answer has gone out */
    bool must_close;                     /* the connection ends after this request */

    struct access_record log;
    char instance[CONFIG_NAME_MAX + 1]; /* tried last, for the log */
    bool from_instance;                 /* our own answer is its: X-Chromux-Instance names it */
    char detail[128];                   /* why the policy chose as it did, or what went wrong */
    char id[REPLY_ID_MAX];              /* X-Request-Id, at most 64 bytes are taken over */
};

/* What all sessions share; the pointers may change at a reload. */
struct session_shared {
    const struct config *cfg;
    const struct handler *proxy, *local;
    const struct handler *journal; /* of what changes or reads the catalogue, and of writes; NULL:
                                      there is none, and they are the proxy's */
    bool stopping;                 /* draining: every answer closes its connection */
    unsigned count;                /* clients' connections */
    unsigned local_count;          /* connections to the admin port */
};
extern struct session_shared session_shared;

/* Takes over an accepted, non-blocking socket. local_only: the admin port. */
void session_start(int fd, const struct sockaddr *peer, bool local_only);
/* Begins the drain: idle connections close, active ones after their answer. */
void session_drain_all(void);
/* Ends everything now. */
void session_kill_all(void);

/* ---- for handlers ---- */

/* The client's address, without its port. */
struct str request_client(const struct request *r);
/* Makes sure that r->text can take n more bytes without moving. */
void request_room(struct request *r, size_t n);
/* When the handler will see `late`; replaces the one before. 0: never. */
void request_arm(struct request *r, double deadline);
/* The handler is ready for the body: sends 100 Continue if the client waits for it, and reads on
 * after bytes were consumed from r->body.bytes, or body_keep() allowed more. */
void request_want_body(struct request *r);
/* Will the connection live after this answer? Decided once, when the head of the answer is written.
 */
bool request_keeps(struct request *r);

/* Sends bytes of an answer; see stream_send and stream_offer. false, -1: the client is gone, and
 * request_gone() must be called next. */
bool request_send(struct request *r, const struct iovec *iov, int n) MUST_CHECK;
ssize_t request_offer(struct request *r, const struct iovec *iov, int n) MUST_CHECK;
/* The client has not taken all of it yet: wait for `drained`. */
bool request_blocked(const struct request *r);

/* The four ways a request ends. Each frees r after logging it. */
/* The answer was sent whole. */
void request_finish(struct request *r, enum end_reason why);
/* The answer can't be completed: the connection is reset so that the client can't take it for
 * whole. */
void request_break(struct request *r, enum end_reason why);
/* The client is gone. */
void request_gone(struct request *r);
/* A whole answer of our own. extra: further header lines ("Retry-After: 1\r\n") or NULL. */
void request_answer(struct request *r, int status, const char *type, struct str body,
                    const char *extra, enum end_reason why);

/* An error of our own in Chroma's shape, {"error": …, "message": …}; the status is end_status(why).
 */
void request_error(struct request *r, enum end_reason why, const char *fmt, ...) PRINTF(3, 4);
/* The same without a format, and with Retry-After when retry_after (seconds) is over 0. */
void request_refuse(struct request *r, enum end_reason why, unsigned retry_after, const char *text);

/* Header lines that every answer carries: Via, X-Request-Id, X-Chromux-Instance, Connection, Date
 * when `date`. Without the final blank line. */
void request_put_common(struct request *r, struct buf *out, const char *instance, bool date);

#endif
