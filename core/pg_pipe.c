/* pg_pipe.c: owns copies of statements, their results, and the names of prepared statements.
 *
 * A name is FREE, SENT with the work in flight, MADE once the server has confirmed it, or SPENT:
 * the server still knows it but it is no good. Prepared statements outlive a transaction that
 * fails; only one whose Parse failed, or was skipped because something failed before it, isn't
 * there: its name is still SENT when the work ends, and FREE then.
 *
 * The results come in the order of what was sent: for each statement that of its Parse when it had
 * one, a NULL, that of its Execute, a NULL; then that of the Sync. An error skips the rest up to
 * the Sync. One may come for the Sync itself: the commit failed. */
#include "pg_pipe.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>

#define NAMES_MAX  128
#define PARAMS_MAX 65535

enum state { FREE, SENT, MADE, SPENT };

struct name {
    enum state state;
    char *sql; /* SENT and MADE */
};

struct pg_pipe {
    struct name name[NAMES_MAX];
};

/* sql and values point into one block, which begins at values. */
struct statement {
    const char **values, *sql;
    int *lengths, *formats;
    unsigned n;
    struct name *name; /* NULL: without one */
    bool parses;       /* makes the name */
    PGresult *res;
};

struct pg_work {
    unsigned n;
    size_t bytes;
    unsigned at; /* whose results are next; n: the Sync's */
    bool parsed; /* of `at`, the Parse is behind us */
    bool gap;    /* the last one was NULL */
    bool sent, ended, unknown;
    unsigned index;
    PGresult *refusal; /* the first error the server sent */
    char *error;       /* one of ours; takes precedence */
    char *text;        /* of the refusal, made by pg_work_outcome() */
    struct pg_rows *rows;
    struct statement statement[];
};

/* ---- statements ----------------------------------------------------------------------------- */

static size_t block_size(const struct pg_statement *s)
{
    size_t size = s->n * (sizeof(char *) + 2 * sizeof(int)) + strlen(s->sql) + 1;
    for (unsigned i = 0; i < s->n; i++)
        size += s->params[i].text ? s->params[i].n + 1 : 0;
    return size;
}

/* NULL, or what is wrong with it. */
static const char *copy(struct statement *to, const struct pg_statement *s)
{
    const char *why = NULL;
    to->n = s->n;
    to->values = base_alloc(block_size(s));
    to->lengths = (int *)(to->values + s->n);
    to->formats = to->lengths + s->n;
    char *at = (char *)(to->formats + s->n);
    to->sql = at;
    at = stpcpy(at, s->sql) + 1;
    for (unsigned i = 0; i < s->n; i++) {
        const struct pg_value *v = &s->params[i];
        to->values[i] = v->text ? at : NULL;
        to->lengths[i] = (int)v->n;
        to->formats[i] = v->binary;
        if (!v->text)
            continue;
        memcpy(at, v->text, v->n);
        at[v->n] = 0;
        if (!v->binary && strlen(at) != v->n)
            why = "a parameter holds a NUL byte"; /* PostgreSQL's text can't */
        at += v->n + 1;
    }
    return why;
}

struct pg_work *pg_work_new(const struct pg_statement *statements, unsigned n, size_t room,
                            const char **why)
{
    size_t bytes = 0;
    *why = n == 0 ? "no statement" : NULL;
    for (unsigned i = 0; i < n; i++) {
        if (statements[i].n > PARAMS_MAX)
            *why = "more than 65535 parameters";
        else
            bytes += sizeof(struct statement) + block_size(&statements[i]);
    }
    if (!*why && bytes > room)
        *why = "queue full";
    if (*why)
        n = 0;
    struct pg_work *w = base_zalloc(sizeof *w + n * sizeof *w->statement);
    w->n = w->index = n;
    w->bytes = n ? bytes : 0;
    for (unsigned i = 0; i < n; i++) {
        const char *wrong = copy(&w->statement[i], &statements[i]);
        *why = *why ? *why : wrong;
    }
    return w;
}

void pg_work_free(struct pg_work *w)
{
    if (!w)
        return;
    for (unsigned i = 0; i < w->n; i++) {
        PQclear(w->statement[i].res);
        free(w->statement[i].values);
    }
    PQclear(w->refusal);
    free(w->error);
    free(w->text);
    free(w->rows);
    free(w);
}

size_t pg_work_bytes(const struct pg_work *w)
{
    return w->bytes;
}

void pg_work_sent(struct pg_work *w)
{
    w->sent = true;
}

bool pg_work_was_sent(const struct pg_work *w)
{
    return w->sent;
}

void pg_work_fail(struct pg_work *w, char *error, bool unknown)
{
    free(w->error);
    w->error = error;
    w->index = w->n;
    w->unknown = unknown;
    w->ended = true;
}

/* A session that the server ends before it has done every statement takes nothing of them with it;
 * one that it ends at the commit may have committed. */
void pg_work_lost(struct pg_work *w, const char *why)
{
    bool told = w->refusal && w->index < w->n && PQresultErrorField(w->refusal, PG_DIAG_SQLSTATE);
    if (told)
        w->ended = true;
    else if (w->sent)
        pg_work_fail(
            w, base_printf("connection lost, it is not known whether it took effect: %s", why),
            true);
    else
        pg_work_fail(w, base_printf("connection lost before all was sent: %s", why), false);
}

/* ---- results -------------------------------------------------------------------------------- */

static const char *rows_name(const struct pg_rows *r, int col)
{
    return PQfname(r->raw, col);
}

static bool rows_value(const struct pg_rows *r, int row, int col, struct str *out)
{
    if (PQgetisnull(r->raw, row, col))
        return false;
    *out = (struct str){PQgetvalue(r->raw, row, col), (size_t)PQgetlength(r->raw, row, col)};
    return true;
}

static unsigned rows_type(const struct pg_rows *r, int col)
{
    return PQftype(r->raw, col);
}

static void describe(PGresult *res, struct pg_rows *r)
{
    const char *cmd = PQcmdStatus(res);
    bool select = strncmp(cmd, "SELECT", 6) == 0 || strncmp(cmd, "FETCH", 5) == 0;
    *r = (struct pg_rows){.ok = true, .sqlstate = "", .raw = res};
    r->name = rows_name;
    r->value = rows_value;
    r->type = rows_type;
    r->rows = PQntuples(res);
    r->cols = PQnfields(res);
    r->affected = select ? 0 : atol(PQcmdTuples(res));
}

static void describe_refusal(struct pg_work *w, struct pg_outcome *o)
{
    const char *state = PQresultErrorField(w->refusal, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(w->refusal, PG_DIAG_MESSAGE_PRIMARY);
    const char *detail = PQresultErrorField(w->refusal, PG_DIAG_MESSAGE_DETAIL);
    if (!text)
        text = PQresultStatus(w->refusal) == PGRES_EMPTY_QUERY ? "the statement is empty"
                                                               : PQresultErrorMessage(w->refusal);
    free(w->text);
    w->text = detail ? base_printf("%s (%s)", text, detail) : base_strdup(text);
    o->error = w->text;
    o->sqlstate = state ? state : "";
}

void pg_work_outcome(struct pg_work *w, struct pg_outcome *o)
{
    must(w->ended);
    *o = (struct pg_outcome){.sqlstate = "", .index = w->index, .unknown = w->unknown, .n = w->n};
    if (w->error) {
        o->error = w->error;
        return;
    }
    if (w->refusal) {
        describe_refusal(w, o);
        return;
    }
    o->ok = true;
    if (!w->rows)
        w->rows = base_alloc(w->n * sizeof *w->rows);
    for (unsigned i = 0; i < w->n; i++)
        describe(w->statement[i].res, &w->rows[i]);
    o->rows = w->rows;
}

static unsigned digit(char c)
{
    return ((unsigned)c & 15) + ((unsigned)c >> 6) * 9; /* ASCII; without a branch */
}

size_t pg_bytea(struct str text, char *out)
{
    size_t n = text.n > 2 ? (text.n - 2) / 2 : 0;
    const char *from = text.p + 2;
    for (size_t i = 0; i < n; i++, from += 2)
        out[i] = (char)(digit(from[0]) << 4 | digit(from[1]));
    return n;
}

/* ---- the pipe ------------------------------------------------------------------------------- */

struct pg_pipe *pg_pipe_new(void)
{
    return base_zalloc(sizeof(struct pg_pipe));
}

static void name_set(struct name *n, enum state state)
{
    if (state == FREE || state == SPENT) {
        free(n->sql);
        n->sql = NULL;
    }
    n->state = state;
}

void pg_pipe_forget(struct pg_pipe *p)
{
    for (unsigned i = 0; i < NAMES_MAX; i++)
        name_set(&p->name[i], FREE);
}

void pg_pipe_free(struct pg_pipe *p)
{
    if (p)
        pg_pipe_forget(p);
    free(p);
}

/* The name of a text: MADE or SENT when there is one, else FREE; NULL when all are taken. */
static struct name *name_find(struct pg_pipe *p, const char *sql)
{
    struct name *room = NULL;
    for (unsigned i = 0; i < NAMES_MAX; i++) {
        struct name *n = &p->name[i];
        if (n->sql && strcmp(n->sql, sql) == 0)
            return n;
        if (n->state == FREE && !room)
            room = n;
    }
    return room;
}

static bool send_statement(struct pg_pipe *p, PGconn *conn, struct statement *s)
{
    char name[16];
    s->name = name_find(p, s->sql);
    if (!s->name)
        return PQsendQueryParams(conn, s->sql, (int)s->n, NULL, s->values, s->lengths, s->formats,
                                 0);
    snprintf(name, sizeof name, "s%d", (int)(s->name - p->name));
    s->parses = s->name->state == FREE;
    if (s->parses) {
        if (!PQsendPrepare(conn, name, s->sql, 0, NULL))
            return false;
        s->name->sql = base_strdup(s->sql);
        name_set(s->name, SENT);
    }
    return PQsendQueryPrepared(conn, name, (int)s->n, s->values, s->lengths, s->formats, 0);
}

bool pg_pipe_send(struct pg_pipe *p, PGconn *conn, struct pg_work *w)
{
    must(!w->ended && w->n > 0);
    if (!PQenterPipelineMode(conn))
        return false;
    for (unsigned i = 0; i < w->n; i++)
        if (!send_statement(p, conn, &w->statement[i]))
            return false;
    /* It also sends: should that fail, nobody can say how far it got. */
    if (PQpipelineSync(conn))
        return true;
    w->sent = true;
    return false;
}

/* A statement whose tables have changed since it was prepared fails until it is prepared anew, and
 * so does one that somebody deallocated. */
static bool is_stale(const PGresult *refusal)
{
    const char *state = PQresultErrorField(refusal, PG_DIAG_SQLSTATE);
    const char *where = PQresultErrorField(refusal, PG_DIAG_SOURCE_FUNCTION);
    return state &&
           (strcmp(state, "26000") == 0 || (where && strcmp(where, "RevalidateCachedQuery") == 0));
}

static void refuse(struct pg_work *w, PGresult *res)
{
    if (w->refusal) { /* the first one says why */
        PQclear(res);
        return;
    }
    w->refusal = res;
    w->index = w->at;
    struct name *name = w->at < w->n ? w->statement[w->at].name : NULL;
    if (name && name->state == MADE && is_stale(res))
        name_set(name, SPENT);
}

static enum pg_step end(struct pg_pipe *p, struct pg_work *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        struct statement *s = &w->statement[i];
        if (s->name && s->name->state == SENT)
            name_set(s->name, FREE);
        if (!w->refusal && !s->res)
            return PG_BROKEN;
    }
    w->ended = true;
    return PG_OVER;
}

static enum pg_step next(struct pg_work *w)
{
    if (w->gap)
        return PG_BROKEN;
    w->gap = true;
    if (w->at == w->n)
        return PG_MORE;
    if (w->statement[w->at].parses && !w->parsed) {
        w->parsed = true;
    } else {
        w->at++;
        w->parsed = false;
    }
    return PG_MORE;
}

enum pg_step pg_pipe_take(struct pg_pipe *p, struct pg_work *w, PGresult *res)
{
    if (!res)
        return next(w);
    struct statement *s = w->at < w->n ? &w->statement[w->at] : NULL;
    w->gap = false;
    switch (PQresultStatus(res)) {
    case PGRES_PIPELINE_SYNC:
        PQclear(res);
        return end(p, w);
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
        if (s && s->parses && !w->parsed) {
            name_set(s->name, MADE);
            PQclear(res);
            return PG_MORE;
        }
        if (s && !s->res) {
            s->res = res;
            return PG_MORE;
        }
        /* fall through */
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        PQclear(res);
        return PG_BROKEN;
    case PGRES_PIPELINE_ABORTED:
        PQclear(res);
        return PG_MORE;
    default:
        refuse(w, res);
        return PG_MORE;
    }
}
