/* exchange.h: one try of a request on one connection: sends it, reads the answer's head, relays the
 * answer. Decides nothing: who tries what, and what a failure means, is proxy.c's. */
#ifndef EXCHANGE_H
#define EXCHANGE_H

#include "pool.h"
#include "session.h"

struct exchange {
    struct request *r;
    struct node *node;
    struct conn *conn; /* NULL before the start and after the end */
    struct str head;   /* the request head to send, inside r->text */
    /* There is a connection: send (true), or end with END_NO_INSTANCE (false)? */
    bool (*may_send)(struct exchange *x);
    /* The final head is parsed: relay it (true), or end with END_SERVER_5XX (false)? */
    bool (*wanted)(struct exchange *x, int status);
    /* Called once. DONE or EARLY: the answer went out whole; the owner finishes the request. Other
     * reasons: it failed; r->answered tells whether the client has seen part of the answer. The
     * connection is already given back. */
    void (*ended)(struct exchange *x, enum end_reason why);

    uint64_t sent;        /* body bytes given to this connection */
    uint64_t dropped;     /* body bytes that are gone from the front of r->body, over all tries */
    bool peek;            /* show wanted() the bodies of error answers */
    bool retain;          /* keep the body for another try, as long as it fits */
    bool reused, touched; /* on a kept connection; a byte was written to it */
    bool upload_dead;     /* the peer takes no more: only its answer still counts */
    bool body_ended;      /* the whole request is written */
    bool heard;           /* a byte of the answer came */
    bool relaying, early, server_keeps, client_chunked;
    enum http1_framing framing; /* of the answer */
    uint64_t left;
    struct http1_chunks chunks;
    bool in_trailers;
    double progress; /* loop time of the last byte from the server */
    int status;
    /* With peek, while wanted() is called for a status over 399: the whole body, which it may
     * change in place; NULL when it is too long, or its length is not known beforehand. */
    char *shown;
    size_t shown_n;
    char error[96]; /* what the failure was, one line */
};

/* Starts on a kept connection if there is one (for writes, and with fresh: never), else connects.
 * node has a slot. ended() may be called before this returns. */
void exchange_start(struct exchange *x, bool fresh);
/* Body bytes came, or its end. */
void exchange_more(struct exchange *x);
/* The client can take more of the answer. */
void exchange_drained(struct exchange *x);
/* Lets go of the connection without an ending (the client is gone). */
void exchange_cancel(struct exchange *x);
/* Ends it from outside: a deadline passed. */
void exchange_fail(struct exchange *x, enum end_reason why, const char *error);
bool exchange_connecting(const struct exchange *x);

#endif
