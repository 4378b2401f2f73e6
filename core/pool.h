/* pool.h: how to reach a node: its address, its slots, its connections.
 *
 * A request first enters (a slot under the node's maxconn, or a place in its queue), then takes a
 * kept connection or opens one, gives or drops that, and leaves. */
#ifndef POOL_H
#define POOL_H

#include "dns.h"
#include "fleet.h"
#include "stream.h"
#include "wheel.h"

/* One connection to a node. While lent, `event` and `owner` are the borrower's. */
struct conn {
    struct stream stream;
    struct node *node; /* held */
    struct conn *next, *prev;
    void (*event)(struct conn *c, enum stream_event e);
    void *owner;
    double opened, idle_until; /* loop time */
    unsigned requests;         /* sent on it, the present one included */
    unsigned addr_changes;     /* of the node when it was opened: to an old address it isn't kept */
};

/* A request's place in a node's queue. */
struct pool_place {
    struct pool_place *next, *prev; /* NULL when not queued */
    struct node *node;
    /* Called once, out of the queue: with a slot taken (true), or because the node went down or
     * away and the request must look for another (false). */
    void (*turn)(struct pool_place *p, bool slot);
};

enum pool_entry { POOL_IN, POOL_QUEUED, POOL_FULL };

/* cfg: read at each use, so a reload takes effect at once. Starts address look-ups of all nodes
 * that join the fleet. */
void pool_start(const struct config *cfg, struct dns *dns);
void pool_reload(const struct config *cfg);
void pool_stop(void);

/* Takes a slot (node->inflight rises), or queues p, or says that the queue is full. */
enum pool_entry pool_enter(struct node *n, struct pool_place *p) MUST_CHECK;
/* Gives the slot back; the next in the queue gets it, later in this turn of the loop. */
void pool_leave(struct node *n);
/* Out of the queue without a turn. */
void pool_quit(struct pool_place *p);

/* A kept connection, last used first, or NULL. */
struct conn *pool_take(struct node *n, void (*event)(struct conn *, enum stream_event),
                       void *owner);
/* A new one: STREAM_CONNECTED or STREAM_ERROR follows. NULL: at once, errno says why. */
struct conn *pool_connect(struct node *n, void (*event)(struct conn *, enum stream_event),
                          void *owner);
/* Gives it back for reuse (or closes it when a limit says so). Nulls *c. */
void pool_give(struct conn **c);
/* Closes it. Nulls *c. */
void pool_drop(struct conn **c);

/* A node that fleet_configure removed: its kept connections close, who waits for it looks
 * elsewhere. */
void pool_retire(struct node *n);

unsigned pool_idle(const struct node *n);
unsigned pool_open(const struct node *n);

#endif
