/* courier.h: the journal's own way to the servers: one whole request, its answer collected whole,
 * and an ending that says what the server may have made of it (PROTOCOL.md R4, R5); beside it the
 * sentinels, which tell one life of a server from the next (R9). */
#ifndef COURIER_H
#define COURIER_H

#include "pool.h"

/* E1, E2, E3: what the protocol calls the ways in which a request that was sent is over. */
#define COURIER_ENDS(X)                                                                            \
    X(ANSWER, answer)           /* a complete answer, early ones included (E1) */                  \
    X(NOT_SENT, not_sent)       /* nothing of the request was written to a socket */               \
    X(PEER_CLOSED, peer_closed) /* FIN or RST of the server before a complete answer (E2) */       \
    X(BROKEN, broken)   /* the kernel gave the connection up, no word of the server (E3) */        \
    X(GARBAGE, garbage) /* an unreadable answer, other protocol, too big; we closed (E3) */        \
    X(FENCED, fenced)   /* the fence had passed: reset, the last byte was never sent */
enum courier_end {
#define X(upper, lower) COURIER_##upper,
    COURIER_ENDS(X)
#undef X
};
const char *courier_end_name(enum courier_end e); /* "peer_closed" */

enum { COURIER_FIELDS_MAX = 65536 };

/* All but the body is copied. */
struct courier_request {
    struct node *node;
    const char *method;     /* "POST" */
    struct str target;      /* "/api/v2/…": no white space nor control bytes, the caller's part */
    struct str fields;      /* whole lines with their CRLF, at most COURIER_FIELDS_MAX, or n = 0 */
    const char *type;       /* Content-Type; NULL: none */
    const char *request_id; /* X-Request-Id; NULL: none */
    struct str body;        /* referenced until the call has ended or is closed */
    size_t max_answer;      /* bytes of the answer's body; a longer one is GARBAGE */
    uint64_t incarnation;   /* only to this life of the server, else NOT_SENT; 0: any */
    bool fenced;            /* under courier_fence_set() */
    bool fresh;             /* on a new connection */
};

struct courier_call;

struct courier_result {
    enum courier_end end;
    const char *error;           /* one line; "" for ANSWER */
    int status;                  /* 0: no final head was read */
    struct str head, type, body; /* raw lines of the final head; its Content-Type; decoded */
};

/* cfg: read at each use. The sentinels of all nodes and of those that join connect from now on. */
void courier_start(const struct config *cfg);
void courier_reload(const struct config *cfg); /* fine when not started, as courier_stop is */
/* Every call must be closed. The sentinels go; incarnations are 0. */
void courier_stop(void);
bool courier_started(void);

/* Sends. ended is called exactly once, from the loop and never before this returns, unless the call
 * is closed first. The call and its result live until courier_close. The node is held as long;
 * its inflight counts the call until it ends, but nobody queues here. Nothing waits with a time-out
 * but the connect (CONNECT_TIMEOUT): how long an answer is awaited is the caller's matter. */
struct courier_call *courier_send(const struct courier_request *r,
                                  void (*ended)(void *arg, struct courier_call *c),
                                  void *arg) MUST_CHECK;
/* A byte was written. */
bool courier_touched(const struct courier_call *c);
/* The kernel has the last byte. */
bool courier_body_complete(const struct courier_call *c);
/* Of a call that has ended; valid until it is closed. */
const struct courier_result *courier_result(const struct courier_call *c);
/* Frees the call. One that is under way ends without a callback, closed by us (E3): with a reset
 * while bytes of the request are on their way, so that no more of them arrive. Nulls *c. */
void courier_close(struct courier_call **c);

/* Until when this process may complete fenced requests: seconds of CLOCK_BOOTTIME. At first none
 * may. The clock is read immediately before each write, and so before the one that holds the last
 * byte. */
void courier_fence_set(double boottime);
double courier_boottime(void);

/* A node that left the fleet: its sentinel goes, calls without a byte written end NOT_SENT. Others
 * go on until the server or their owner ends them: our close would leave the outcome open. */
void courier_retire(struct node *n);

/* The life of the server as its sentinel sees it: 0 when that is not connected, else a number that
 * rises with each new connection of it. Whoever sends has looked at the sentinel right before the
 * first byte, and a PEER_CLOSED has before its callback; the number is 0 from that look on.
 * A sentinel ends by FIN or RST of the server, by a change of the node's address, or after about 20
 * minutes without a sign of the server's kernel. */
uint64_t courier_incarnation(const struct node *n);
/* The same after a look at the socket itself, as one who is about to send takes it. */
uint64_t courier_look(struct node *n);
/* Told of each change, from the loop and never inside another call of this module: the change is
 * made by then, in this or an earlier turn. At most 4, for ever. */
typedef void courier_observer(struct node *n, uint64_t incarnation);
void courier_observe(courier_observer *fn);

#endif
