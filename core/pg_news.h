/* pg_news.h: who listens to channels of PostgreSQL and who watches the connection's state; tells
 * them from the loop, never from inside a call of pg.c, in the order in which things happened. */
#ifndef PG_NEWS_H
#define PG_NEWS_H

#include "base.h"
#include <ev.h>

enum pg_state { PG_CONNECTING, PG_READY, PG_AWAY };
/* payload NULL: from now on notifications arrive; earlier ones may have been missed. */
typedef void pg_notify_fn(void *arg, const char *payload);
typedef void pg_state_fn(void *arg, enum pg_state s);

struct pg_listener;
struct pg_item;
struct pg_news {
    struct ev_loop *loop;
    struct pg_listener *listeners;
    struct pg_item *first, **end; /* not told yet */
    ev_timer due;                 /* never started: fed by hand */
};

void pg_news_init(struct pg_news *n, struct ev_loop *loop);
void pg_news_fini(struct pg_news *n);
void pg_news_listen(struct pg_news *n, const char *channel, pg_notify_fn *cb, void *arg);
void pg_news_observe(struct pg_news *n, pg_state_fn *cb, void *arg);

/* The LISTEN statements still to be run on this connection, to be freed; NULL: none. */
char *pg_news_sql(struct pg_news *n) MUST_CHECK;
void pg_news_began(struct pg_news *n); /* those were run */
void pg_news_lost(struct pg_news *n);  /* the connection is gone: all are to be run again */
void pg_news_notified(struct pg_news *n, const char *channel, const char *payload);
void pg_news_state(struct pg_news *n, enum pg_state s);

#endif
