/* pg_pipe.h: one transaction on a libpq connection in pipeline mode: what is sent, what comes back,
 * and the statements that the server keeps prepared. No event loop, no connection of its own.
 *
 * All statements go out at once with one Sync behind them, which makes them one implicit
 * transaction: an error undoes all of them and leaves nothing open. So they must hold no BEGIN,
 * COMMIT or the like, and nothing that PostgreSQL refuses in a transaction. */
#ifndef PG_PIPE_H
#define PG_PIPE_H

#include "base.h"

/* libpq's PGconn and PGresult. */
struct pg_conn;
struct pg_result;

struct pg_value {
    const char *text; /* NULL is SQL NULL */
    size_t n;
    bool binary; /* in the type's binary form, which for bytea is the bytes; else text, without NUL
                  */
};
struct pg_statement {
    const char *sql;
    const struct pg_value *params;
    unsigned n; /* of params, at most 65535 */
};

struct pg_rows {
    bool ok;
    const char *error;    /* when not ok */
    const char *sqlstate; /* "" when the server gave none (connection lost, queue full, time-out) */
    int rows, cols;
    long affected; /* rows touched by INSERT, UPDATE, DELETE */
    const char *(*name)(const struct pg_rows *r, int col);
    /* The value's text with a NUL behind it; false: NULL. Of a bytea see pg_bytea(). */
    bool (*value)(const struct pg_rows *r, int row, int col, struct str *out);
    unsigned (*type)(const struct pg_rows *r, int col); /* the column's type oid */
    struct pg_result *raw;
};
struct pg_outcome {
    bool ok; /* committed */
    const char *error, *sqlstate;
    unsigned
        index;    /* of the statement that failed; n when it was none (commit, connection, queue) */
    bool unknown; /* not ok, and yet it may have been committed: the connection broke too early */
    unsigned n;
    const struct pg_rows *rows; /* when ok: n of them, in the order of the statements */
};

#define PG_BYTEA 17u /* its type oid */
/* The bytes of a bytea's text (\x and hex digits) to out, which has room for text.n / 2 bytes; how
 * many they are. */
size_t pg_bytea(struct str text, char *out);

/* A transaction: its own copy of the statements, then their outcome. */
struct pg_work;
/* room: the most bytes the copy may take. Never NULL; *why is NULL, or says (static text) why it
 * can't be sent: then end it with pg_work_fail(). */
struct pg_work *pg_work_new(const struct pg_statement *statements, unsigned n, size_t room,
                            const char **why) MUST_CHECK;
void pg_work_free(struct pg_work *w);
size_t pg_work_bytes(const struct pg_work *w); /* of the copy */
/* All of it has left the process: from now on a lost connection leaves the outcome unknown. */
void pg_work_sent(struct pg_work *w);
bool pg_work_was_sent(const struct pg_work *w);
/* Ends it. error is consumed. */
void pg_work_fail(struct pg_work *w, char *error, bool unknown);
/* Ends it because the connection is gone: with what the server had said before, when that leaves no
 * doubt, else with `why`. */
void pg_work_lost(struct pg_work *w, const char *why);
/* Of work that has ended; valid as long as w. */
void pg_work_outcome(struct pg_work *w, struct pg_outcome *o);

/* The prepared statements of a connection, by their text: the first 128 texts that succeed are kept
 * by the server under a name, others are parsed at each use. */
struct pg_pipe;
struct pg_pipe *pg_pipe_new(void) MUST_CHECK;
void pg_pipe_free(struct pg_pipe *p);
void pg_pipe_forget(struct pg_pipe *p); /* the connection is closed */

/* Puts w into the connection, which is idle and outside of pipeline mode, in non-blocking mode.
 * false: the connection is of no use any more. Follow with PQflush. */
bool pg_pipe_send(struct pg_pipe *p, struct pg_conn *conn, struct pg_work *w) MUST_CHECK;

enum pg_step { PG_MORE, PG_OVER, PG_BROKEN };
/* Takes what PQgetResult gave (consumed; also NULL, unless the connection is lost). PG_OVER: w has
 * ended, leave pipeline mode. PG_BROKEN: the server does what is not for here, close. */
enum pg_step pg_pipe_take(struct pg_pipe *p, struct pg_work *w, struct pg_result *res) MUST_CHECK;

#endif
