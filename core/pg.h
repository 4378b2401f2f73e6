/* pg.h: PostgreSQL on libpq and libev: a bounded queue, pipelined transactions, bound parameters,
 * prepared statements, notifications, reconnect with back-off.
 *
 * One connection, one transaction at a time, in the order of the calls; each goes out as a whole
 * (pg_pipe.h). A statement is prepared at its first use on a connection and found by its text after
 * that, so texts should be few and constant. A transaction that leaves one open is rolled back and
 * answered with an error, since others share the connection; so is COPY to or from the client. A
 * result is held in memory as a whole: bound it with LIMIT. The session runs in UTC with ISO dates
 * and UTF-8. */
#ifndef PG_H
#define PG_H

#include "pg_news.h"
#include "pg_pipe.h"

#define PG_TIMEOUT_MAX 600.0 /* seconds; also the server's own limit for a statement */
#define PG_CHANNEL_MAX 63    /* bytes of a channel's name */

struct pg;

/* Connects in the background and for ever (back-off 0.1 to 5 s between rounds through all addresses
 * of all hosts of the URL, 5 s for each). queue_max transactions of bytes_max bytes in all (at most
 * 2^30) may wait or run. NULL: url can't be read, *error (to be freed) says why without showing the
 * password. */
struct pg *pg_new(struct ev_loop *loop, const char *url, unsigned queue_max, size_t bytes_max,
                  char **error) MUST_CHECK;
void pg_free(struct pg *p); /* open transactions and listeners get no callback */
enum pg_state pg_state(const struct pg *p);
const char *pg_last_error(const struct pg *p); /* "" when there was none */

/* Runs n statements as one transaction: all or nothing. They are copied. cb is called exactly once,
 * from the loop. timeout (seconds, at most PG_TIMEOUT_MAX) covers waiting and running; when it
 * passes while the statements run, the connection is closed, which makes the server cancel them
 * within a second (PostgreSQL 14 and newer), and made anew. What was sent when the connection broke
 * is never sent again: its outcome is unknown. */
void pg_transaction(struct pg *p, const struct pg_statement *statements, unsigned n, double timeout,
                    void (*cb)(void *arg, const struct pg_outcome *o), void *arg);
/* The same with one statement. */
void pg_query(struct pg *p, const char *sql, const struct pg_value *params, unsigned n,
              double timeout, void (*cb)(void *arg, const struct pg_rows *r), void *arg);

/* Listens to a channel for as long as p lives, over reconnects. cb(arg, payload) for each
 * notification; cb(arg, NULL) whenever listening has begun, the first time and after each
 * reconnect: whatever happened before may have been missed, so read the tables now. */
void pg_listen(struct pg *p, const char *channel, pg_notify_fn *cb, void *arg);
/* cb(arg, PG_READY) when a connection stands, cb(arg, PG_AWAY) when it is lost or the first attempt
 * failed; nothing about the state there is already. */
void pg_observe(struct pg *p, pg_state_fn *cb, void *arg);

#endif
