/* pg.h: PostgreSQL on libpq and libev: a bounded queue, bound parameters, reconnect with back-off.
 *
 * One connection, one statement at a time, in the order of the calls. A statement is a transaction:
 * one that leaves a transaction open is rolled back and answered with an error, since others share
 * the connection; so is COPY to or from the client. A result is held in memory as a whole: bound it
 * with LIMIT. The session runs in UTC with ISO dates and UTF-8. */
#ifndef PG_H
#define PG_H

#include "buf.h"
#include <ev.h>

#define PG_TIMEOUT_MAX 600.0 /* seconds; also the server's own limit for a statement */

struct pg;

struct pg_value {
    const char *text; /* NULL is SQL NULL */
    size_t n;
};
struct pg_result {
    bool ok;
    const char *error;    /* when not ok */
    const char *sqlstate; /* "" when the server gave none (connection lost, queue full, time-out) */
    int rows, cols;
    long affected; /* rows touched by INSERT, UPDATE, DELETE */
    const char *(*name)(const struct pg_result *r, int col);
    bool (*value)(const struct pg_result *r, int row, int col, struct str *out); /* false: NULL */
    unsigned (*type)(const struct pg_result *r, int col); /* the column's type oid */
    void *raw;
};
enum pg_state { PG_CONNECTING, PG_READY, PG_AWAY };

/* Connects in the background and for ever (back-off 0.1 to 5 s between rounds through all addresses
 * of all hosts of the URL, 5 s for each). NULL: url can't be read, *error (to be freed) says why
 * without showing the password. */
struct pg *pg_new(struct ev_loop *loop, const char *url, unsigned queue_max,
                  char **error) MUST_CHECK;
void pg_free(struct pg *p); /* open queries get no callback */
enum pg_state pg_state(const struct pg *p);
const char *pg_last_error(const struct pg *p); /* "" when there was none */

/* Runs one statement with parameters in text form. cb is called exactly once, from the loop.
 * timeout (seconds, at most PG_TIMEOUT_MAX) covers waiting and running; when it passes while the
 * query runs, the connection is closed, which makes the server cancel it within a second
 * (PostgreSQL 14 and newer), and made anew. A query that was sent when the connection broke is
 * never sent again: its outcome is not known. */
void pg_query(struct pg *p, const char *sql, const struct pg_value *params, unsigned n,
              double timeout, void (*cb)(void *arg, const struct pg_result *r), void *arg);

#endif
