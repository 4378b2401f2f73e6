/* pg.c: owns one libpq connection, what is needed to make it again, and the queue of statements.
 *
 * One `phase`, changed by the functions below only:
 *
 *   AWAY ─timer→ RESOLVING ─dns→ CONNECTING ─poll→ INTERNAL ─result→ READY ⇄ BUSY
 *
 * and from anywhere back to AWAY by conn_lost(). INTERNAL runs a statement of our own: the
 * session's settings, or ROLLBACK. A statement is done once it has a result or an error; it is told
 * to its owner from its own watcher (query_due) and from nowhere else, so that owners may call
 * anything, also pg_free().
 *
 * Nothing here may block the loop: names are resolved by dns.c and given to libpq as hostaddr; each
 * address is an attempt of its own with its own time-out, since libpq's connect_timeout counts only
 * in blocking calls; GSS encryption, whose handshake asks a KDC, is off unless the URL asks for it.
 * PQcancel() blocks and the key it sends isn't public: a statement that is out of time is ended by
 * closing the connection, which the server notices within CHECK_MS while it works
 * (client_connection_check_interval, PostgreSQL 14), and by statement_timeout in any case. */
#include "pg.h"

#include "dns.h"
#include "log.h"
#include <libpq-fe.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ATTEMPT_SECONDS 5.0
#define BACKOFF_LEAST   0.1
#define BACKOFF_MOST    5.0
#define CHECK_MS        1000
#define TARGETS_MAX     16
#define UNKNOWN         "connection lost, it is not known whether the statement took effect: "

enum phase { AWAY, RESOLVING, CONNECTING, INTERNAL, READY, BUSY };

struct target {
    const char *host, *addr, *port; /* NULL: not given */
};

struct query {
    struct query *next, *prev;
    struct pg *pg;
    char *sql;
    char **values; /* one block with the texts behind it */
    unsigned n;
    bool done;
    bool ended;    /* a result of success came: committed, or about to be */
    PGresult *res; /* when done: this, or error */
    char *error;
    ev_timer timer; /* deadline; fed by hand once done */
    void (*cb)(void *arg, const struct pg_result *r);
    void *arg;
};

struct pg {
    struct ev_loop *loop;
    struct dns *dns;
    char *url;
    PQconninfoOption *options; /* of the URL */
    const char *password;      /* inside options; NULL or "": none */
    struct target target[TARGETS_MAX];
    char *lists[3]; /* what the targets point into */
    unsigned targets;

    enum phase phase;
    bool was_ready; /* since it was told in the log */
    bool failed;    /* the last attempt or connection ended badly */
    PGconn *conn;
    bool flushing; /* PQflush has more to send */
    ev_io io;
    ev_timer timer; /* AWAY: next round; RESOLVING to INTERNAL: end of the attempt */
    struct dns_query *lookup;
    struct dns_answer addr; /* of the target at hand */
    unsigned at, addr_next;
    double backoff;
    bool internal_failed;
    char *last_error; /* never NULL */

    struct query *first, *last; /* in the order of the calls; done ones until they are told */
    struct query *flying;       /* sent; set when BUSY and only then */
    unsigned count, count_max;  /* of those not done */
};

static void attempt_next(struct pg *p);
static void start_next(struct pg *p);

static void query_unlink(struct query *q)
{
    *(q->prev ? &q->prev->next : &q->pg->first) = q->next;
    *(q->next ? &q->next->prev : &q->pg->last) = q->prev;
    ev_timer_stop(q->pg->loop, &q->timer); /* takes back a fed event, too */
}

static void query_free(struct query *q)
{
    PQclear(q->res);
    free(q->error);
    free(q->values);
    free(q->sql);
    free(q);
}

/* Consumes res and error, of which one is NULL. */
static void query_done(struct query *q, PGresult *res, char *error)
{
    struct pg *p = q->pg;
    must(!q->done && !res == !!error);
    p->count--;
    if (p->flying == q)
        p->flying = NULL;
    q->done = true;
    if (q->res != res)
        PQclear(q->res); /* of a statement that did not get to its end */
    q->res = res;
    q->error = error;
    ev_timer_stop(p->loop, &q->timer);
    ev_feed_event(p->loop, &q->timer, EV_TIMER);
}

/* libpq never puts the password into its messages; this makes sure of it. */
static void set_error(struct pg *p, const char *text)
{
    char *s = base_strdup(text), *guess = strstr(s, "\n\t");
    size_t secret = p->password ? strlen(p->password) : 0;
    if (guess) /* libpq's, about what it means */
        *guess = 0;
    for (char *at = s; secret >= 4 && (at = strstr(at, p->password)); at += secret)
        memset(at, '*', secret);
    for (char *at = s; (at = strchr(at, '\n'));)
        *at = at[1] ? ' ' : 0;
    free(p->last_error);
    p->last_error = s;
}

static void conn_close(struct pg *p)
{
    ev_io_stop(p->loop, &p->io);
    ev_timer_stop(p->loop, &p->timer);
    dns_cancel(p->lookup);
    p->lookup = NULL;
    if (p->conn)
        PQfinish(p->conn);
    p->conn = NULL;
    p->flushing = false;
    p->phase = AWAY;
}

static void set_timer(struct pg *p, double seconds)
{
    ev_now_update(p->loop);
    ev_timer_stop(p->loop, &p->timer);
    ev_timer_set(&p->timer, seconds, 0.);
    ev_timer_start(p->loop, &p->timer);
}

/* A round through all targets begins: at once, or after a back-off that doubles, half of it drawn
 * at random so that many clients of a server that comes back don't all knock at once. */
static void round_later(struct pg *p, bool at_once)
{
    double wait = 0;
    must(p->phase == AWAY);
    if (!at_once) {
        p->backoff = fmin(fmax(p->backoff * 2, BACKOFF_LEAST), BACKOFF_MOST);
        wait = p->backoff * (0.5 + arc4random_uniform(1000) / 2000.);
    }
    p->at = 0;
    p->addr_next = p->addr.count = 0;
    set_timer(p, wait);
}

/* The connection or the attempt to make it is over. What was in flight may or may not have been
 * done and is never sent again. When the server said why it ends the session, that is the answer:
 * then the statement was rolled back. */
static void conn_lost(struct pg *p, const char *why)
{
    bool attempt = p->phase != READY && p->phase != BUSY;
    struct query *q = p->flying;
    set_error(p, why);
    if (p->was_ready || !p->failed)
        log_warn("pg_away", "error=%s", log_quote(p->last_error));
    p->was_ready = false;
    p->failed = true;
    conn_close(p);
    if (q && q->res && !q->ended && PQresultErrorField(q->res, PG_DIAG_SQLSTATE))
        query_done(q, q->res, NULL);
    else if (q)
        query_done(q, NULL, base_printf(UNKNOWN "%s", p->last_error));
    if (attempt)
        attempt_next(p);
    else
        round_later(p, false);
}

static void watch(struct pg *p, int events)
{
    /* While connecting, libpq may have got another socket of the same number: poll_connection() has
     * stopped the watcher before, so that the kernel hears of it. */
    int fd = PQsocket(p->conn);
    if (ev_is_active(&p->io) && p->io.fd == fd && (p->io.events & (EV_READ | EV_WRITE)) == events)
        return;
    ev_io_stop(p->loop, &p->io);
    ev_io_set(&p->io, fd, events);
    ev_io_start(p->loop, &p->io);
}

/* Sends what libpq holds; false: the connection is lost (and dealt with). */
static bool flush(struct pg *p)
{
    int left = PQflush(p->conn);
    if (left < 0) {
        conn_lost(p, PQerrorMessage(p->conn));
        return false;
    }
    p->flushing = left > 0;
    watch(p, p->flushing ? EV_READ | EV_WRITE : EV_READ);
    return true;
}

/* A statement of our own; READY follows. */
static void internal_start(struct pg *p, const char *sql)
{
    p->phase = INTERNAL;
    p->internal_failed = false;
    if (PQsendQuery(p->conn, sql))
        (void)flush(p);
    else
        conn_lost(p, PQerrorMessage(p->conn));
}

static void connected(struct pg *p)
{
    /* Older servers don't know the check, and some systems can't do it: not a reason to stay away.
     */
    char *sql = base_printf(
        "SET statement_timeout=%d;SET timezone='UTC';SET datestyle='ISO, YMD';"
        "DO $$BEGIN SET client_connection_check_interval=%d; EXCEPTION WHEN OTHERS THEN END$$",
        (int)(PG_TIMEOUT_MAX * 1000), CHECK_MS);
    if (PQsetnonblocking(p->conn, 1) == 0)
        internal_start(p, sql);
    else
        conn_lost(p, PQerrorMessage(p->conn));
    free(sql);
}

static void ready(struct pg *p)
{
    ev_timer_stop(p->loop, &p->timer);
    p->phase = READY;
    if (!p->was_ready)
        log_info("pg_ready", "server=%d", PQserverVersion(p->conn));
    p->was_ready = true;
    p->failed = false;
    p->backoff = 0;
    start_next(p);
}

static void poll_connection(struct pg *p)
{
    ev_io_stop(p->loop, &p->io); /* the socket may go away under it */
    PostgresPollingStatusType s = PQconnectPoll(p->conn);
    if (s == PGRES_POLLING_READING || s == PGRES_POLLING_WRITING)
        watch(p, s == PGRES_POLLING_READING ? EV_READ : EV_WRITE);
    else if (s == PGRES_POLLING_OK)
        connected(p);
    else
        conn_lost(p, PQerrorMessage(p->conn));
}

static void on_notice(void *arg, const char *message)
{
    /* The parting words of a server to a session that has nothing to do come as a notice. */
    bool fatal = strncmp(message, "FATAL", 5) == 0;
    log_event(fatal ? LOG_WARN : LOG_DEBUG, "pg_notice", "text=%s", log_quote(message));
}

static void connect_to(struct pg *p, const struct target *t, const char *addr)
{
    /* Of two values for a keyword libpq takes the later one; "dbname" stands for the whole URL.
     * Keep-alive finds a dead host, tcp_user_timeout one that takes no bytes. */
    const char *const all[][2] = {{"fallback_application_name", "chromux"},
                                  {"client_encoding", "UTF8"},
                                  {"gssencmode", "disable"},
                                  {"keepalives_idle", "10"},
                                  {"keepalives_interval", "5"},
                                  {"keepalives_count", "3"},
                                  {"tcp_user_timeout", "15000"},
                                  {"dbname", p->url},
                                  {"host", t->host},
                                  {"hostaddr", addr},
                                  {"port", t->port}};
    const char *key[COUNT_OF(all) + 1] = {NULL}, *value[COUNT_OF(all) + 1] = {NULL};
    for (unsigned i = 0; i < COUNT_OF(all); i++) {
        key[i] = all[i][0];
        value[i] = all[i][1];
    }
    p->phase = CONNECTING;
    p->conn = PQconnectStartParams(key, value, 1);
    must(p->conn);
    PQsetNoticeProcessor(p->conn, on_notice, p);
    set_timer(p, ATTEMPT_SECONDS);
    if (PQstatus(p->conn) == CONNECTION_BAD)
        conn_lost(p, PQerrorMessage(p->conn));
    else
        watch(p, EV_WRITE); /* as libpq wants it: as if PQconnectPoll had said WRITING */
}

static void on_dns(void *arg, const struct dns_answer *a)
{
    struct pg *p = arg;
    p->lookup = NULL;
    p->addr = *a;
    p->addr_next = 0;
    if (a->count > 0) {
        p->phase = AWAY;
        attempt_next(p);
        return;
    }
    char why[320];
    snprintf(why, sizeof why, "can't resolve %.200s: %s", p->target[p->at - 1].host, a->error);
    conn_lost(p, why);
}

/* The next address of the target at hand, else the next target, else the next round. Calls itself
 * through failing attempts, at most once for each address. */
static void attempt_next(struct pg *p)
{
    must(p->phase == AWAY && !p->conn);
    if (p->addr_next < p->addr.count) {
        char text[DNS_TEXT_MAX];
        dns_text(&p->addr.v[p->addr_next++].addr, text);
        connect_to(p, &p->target[p->at - 1], text);
        return;
    }
    if (p->at == p->targets) {
        round_later(p, false);
        return;
    }
    const struct target *t = &p->target[p->at++];
    p->addr.count = p->addr_next = 0;
    if (t->addr || !t->host || strchr("/@", t->host[0])) {
        connect_to(p, t, t->addr);
        return;
    }
    p->phase = RESOLVING; /* dns.c has its own time-out; a literal is answered within the call */
    struct dns_query *lookup = dns_resolve(p->dns, t->host, 0, on_dns, p);
    if (lookup) /* else p may be at another target by now */
        p->lookup = lookup;
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg *p = container_of(w, struct pg, timer);
    if (p->phase == AWAY)
        attempt_next(p);
    else
        conn_lost(p, "no connection in time");
}

static void start_next(struct pg *p)
{
    for (struct query *q = p->first; q && p->phase == READY; q = q->next) {
        if (q->done)
            continue;
        p->phase = BUSY;
        p->flying = q;
        if (PQsendQueryParams(p->conn, q->sql, (int)q->n, NULL, (const char *const *)q->values,
                              NULL, NULL, 0)) {
            (void)flush(p);
        } else if (PQstatus(p->conn) == CONNECTION_BAD) {
            conn_lost(p, PQerrorMessage(p->conn));
        } else {
            query_done(q, NULL, base_strdup(PQerrorMessage(p->conn)));
            p->phase = READY;
        }
    }
}

/* A statement that is over. One statement is one transaction here: others share the connection, so
 * a transaction left open would take in what is not its own. */
static void statement_over(struct pg *p)
{
    struct query *q = p->flying;
    PGTransactionStatusType t = PQtransactionStatus(p->conn);
    if (p->phase == INTERNAL && p->internal_failed) {
        conn_lost(p, p->last_error);
    } else if (p->phase == INTERNAL) {
        ready(p);
    } else if (t == PQTRANS_INTRANS || t == PQTRANS_INERROR) {
        query_done(q, NULL,
                   base_strdup("the statement left a transaction open; it was rolled back"));
        set_timer(p, ATTEMPT_SECONDS);
        internal_start(p, "ROLLBACK");
    } else if (!q->res) {
        conn_lost(p, "the server sent no result");
    } else {
        query_done(q, q->res, NULL);
        p->phase = READY;
        start_next(p);
    }
}

/* Takes one result. false: the connection was given up. */
static bool take_result(struct pg *p, PGresult *res)
{
    ExecStatusType s = PQresultStatus(res);
    if (s == PGRES_COPY_IN || s == PGRES_COPY_OUT || s == PGRES_COPY_BOTH) {
        PQclear(res);
        conn_lost(p, "COPY is not for here");
        return false;
    }
    if (p->phase == INTERNAL) {
        if (s != PGRES_COMMAND_OK) {
            p->internal_failed = true;
            set_error(p, PQresultErrorMessage(res));
        }
        PQclear(res);
        return true;
    }
    struct query *q = p->flying;
    must(p->phase == BUSY && q);
    bool failed = s != PGRES_COMMAND_OK && s != PGRES_TUPLES_OK;
    q->ended = q->ended || !failed;
    /* The first error says why; later ones that the connection is gone. */
    bool keep = failed && q->res && !q->ended;
    PQclear(keep ? res : q->res);
    q->res = keep ? q->res : res;
    return true;
}

static void read_results(struct pg *p)
{
    while (!PQisBusy(p->conn)) {
        PGresult *res = PQgetResult(p->conn);
        if (!res) {
            if (PQstatus(p->conn) == CONNECTION_BAD)
                break;
            statement_over(p);
            return;
        }
        if (!take_result(p, res))
            return;
    }
    if (PQstatus(p->conn) == CONNECTION_BAD)
        conn_lost(p, PQerrorMessage(p->conn));
}

static void on_io(struct ev_loop *loop, ev_io *w, int revents)
{
    struct pg *p = container_of(w, struct pg, io);
    if (p->phase == CONNECTING) {
        poll_connection(p);
        return;
    }
    must(p->phase == INTERNAL || p->phase == READY || p->phase == BUSY);
    bool alive = !(revents & EV_READ) || PQconsumeInput(p->conn);
    if (alive && p->flushing && !flush(p))
        return;
    if (p->phase != READY) {
        read_results(p); /* also of a broken connection: the reason may have come before the end */
        return;
    }
    PGnotify *n;
    while ((n = PQnotifies(p->conn))) /* nobody listens; this also reads parting words */
        PQfreemem(n);
    if (!alive || PQstatus(p->conn) == CONNECTION_BAD)
        conn_lost(p, PQerrorMessage(p->conn));
}

static const char *result_name(const struct pg_result *r, int col)
{
    return PQfname(r->raw, col);
}

static bool result_value(const struct pg_result *r, int row, int col, struct str *out)
{
    if (PQgetisnull(r->raw, row, col))
        return false;
    *out = (struct str){PQgetvalue(r->raw, row, col), (size_t)PQgetlength(r->raw, row, col)};
    return true;
}

static unsigned result_type(const struct pg_result *r, int col)
{
    return PQftype(r->raw, col);
}

/* Fills r; returns text to be freed after its use, or NULL. */
static char *describe(const struct query *q, struct pg_result *r)
{
    *r = (struct pg_result){.sqlstate = "", .name = result_name, .value = result_value};
    r->type = result_type;
    r->raw = q->res;
    if (!q->res) {
        r->error = q->error;
        return NULL;
    }
    ExecStatusType s = PQresultStatus(q->res);
    r->ok = s == PGRES_TUPLES_OK || s == PGRES_COMMAND_OK;
    if (r->ok) {
        const char *cmd = PQcmdStatus(q->res);
        bool select = strncmp(cmd, "SELECT", 6) == 0 || strncmp(cmd, "FETCH", 5) == 0;
        r->rows = PQntuples(q->res);
        r->cols = PQnfields(q->res);
        r->affected = select ? 0 : atol(PQcmdTuples(q->res));
        return NULL;
    }
    const char *state = PQresultErrorField(q->res, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(q->res, PG_DIAG_MESSAGE_PRIMARY);
    const char *detail = PQresultErrorField(q->res, PG_DIAG_MESSAGE_DETAIL);
    if (!text)
        text = s == PGRES_EMPTY_QUERY ? "the statement is empty" : PQresultErrorMessage(q->res);
    char *all = detail ? base_printf("%s (%s)", text, detail) : base_strdup(text);
    r->sqlstate = state ? state : "";
    r->error = all;
    return all;
}

/* The one place that tells an owner; also the end of a statement's time. */
static void query_due(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct query *q = container_of(w, struct query, timer);
    struct pg *p = q->pg;
    bool late = !q->done, away = p->phase != READY && p->phase != BUSY && *p->last_error;
    if (late && q == p->flying) {
        set_error(p, "a statement was out of time");
        query_done(q, NULL, base_strdup("time-out: cancelled, its outcome is not known"));
        conn_close(p);
        round_later(p, true);
    } else if (late) {
        query_done(q, NULL,
                   base_printf("time-out: not sent%s%s", away ? ", PostgreSQL is away: " : "",
                               away ? p->last_error : ""));
    }
    query_unlink(q);
    struct pg_result r;
    char *text = describe(q, &r);
    q->cb(q->arg, &r);
    /* p may be gone from here on; q was ours alone, and its watcher is at rest. */
    free(text);
    query_free(q);
}

void pg_query(struct pg *p, const char *sql, const struct pg_value *params, unsigned n,
              double timeout, void (*cb)(void *arg, const struct pg_result *r), void *arg)
{
    struct query *q = base_zalloc(sizeof *q);
    size_t bytes = n * sizeof(char *);
    const char *why = NULL;
    for (unsigned i = 0; i < n; i++)
        bytes += params[i].text ? params[i].n + 1 : 0;
    q->pg = p;
    q->sql = base_strdup(sql);
    q->values = base_alloc(bytes);
    q->n = n;
    q->cb = cb;
    q->arg = arg;
    char *to = (char *)(q->values + n);
    for (unsigned i = 0; i < n; i++) {
        q->values[i] = params[i].text ? to : NULL;
        if (!params[i].text)
            continue;
        memcpy(to, params[i].text, params[i].n);
        to[params[i].n] = 0;
        if (strlen(to) != params[i].n)
            why = "a parameter holds a NUL byte"; /* PostgreSQL's text can't */
        to += params[i].n + 1;
    }
    if (n > 65535)
        why = "more than 65535 parameters";
    if (p->count >= p->count_max)
        why = "queue full";
    if (!(timeout > 0 && timeout <= PG_TIMEOUT_MAX))
        timeout = PG_TIMEOUT_MAX;
    ev_now_update(p->loop);
    ev_timer_init(&q->timer, query_due, timeout, 0.);
    ev_timer_start(p->loop, &q->timer);
    q->prev = p->last;
    *(p->last ? &p->last->next : &p->first) = q;
    p->last = q;
    p->count++;
    if (why)
        query_done(q, NULL, base_strdup(why));
    else
        start_next(p);
}

static unsigned elements(const char *list)
{
    unsigned n = list ? 1 : 0;
    while (list && (list = strchr(list, ',')))
        n++, list++;
    return n;
}

/* An empty element: in a list, libpq would not let the one at hand stand for the whole of it. */
static bool holes(const char *list)
{
    return list && (*list == ',' || strstr(list, ",,") || list[strlen(list) - 1] == ',');
}

static const char *option(const struct pg *p, const char *keyword, const char *environment)
{
    for (PQconninfoOption *o = p->options; o->keyword; o++)
        if (strcmp(o->keyword, keyword) == 0 && o->val && *o->val)
            return o->val;
    const char *e = environment ? getenv(environment) : NULL;
    return e && *e ? e : NULL;
}

/* host, hostaddr and port are lists in parallel. NULL, or what is wrong (static text). A password
 * with an unescaped @ or / is read as part of host, port or database by libpq, which would then
 * name it in its messages: refused here. */
static const char *read_targets(struct pg *p, bool uri)
{
    const char *host = option(p, "host", "PGHOST"), *addr = option(p, "hostaddr", "PGHOSTADDR");
    const char *port = option(p, "port", "PGPORT"), *db = option(p, "dbname", NULL);
    unsigned n = addr ? elements(addr) : host ? elements(host) : 1;
    if (n > TARGETS_MAX)
        return "too many hosts";
    if ((addr && host && elements(host) != n) || (elements(port) > 1 && elements(port) != n))
        return "as many ports and addresses as hosts, please";
    char *hosts = p->lists[0] = host ? base_strdup(host) : NULL;
    char *addrs = p->lists[1] = addr ? base_strdup(addr) : NULL;
    char *ports = p->lists[2] = port ? base_strdup(port) : NULL;
    bool one_port = elements(port) < 2;
    if (n > 1 && (holes(host) || holes(addr) || holes(port)))
        return "an empty element in the list of hosts or ports";
    for (p->targets = 0; p->targets < n; p->targets++) {
        struct target *t = &p->target[p->targets];
        t->host = strsep(&hosts, ",");
        t->addr = strsep(&addrs, ",");
        t->port = one_port ? ports : strsep(&ports, ",");
        if (t->host && t->host[0] != '/' && strchr(t->host + 1, '@'))
            return "the host holds an @ (in a password, write it as %40)";
        if (t->port && t->port[strspn(t->port, "0123456789")])
            return "the port is not a number (in a password, write / as %2F and @ as %40)";
    }
    if (uri && db && strchr(db, '@'))
        return "the database name holds an @ (in a password, write / as %2F and @ as %40)";
    return NULL;
}

struct pg *pg_new(struct ev_loop *loop, const char *url, unsigned queue_max, char **error)
{
    struct pg *p = base_zalloc(sizeof *p);
    const char *why = NULL;
    char *message = NULL;
    bool uri = strncmp(url, "postgres", 8) == 0;
    p->loop = loop;
    p->count_max = queue_max;
    p->url = base_strdup(url);
    p->last_error = base_strdup("");
    ev_init(&p->io, on_io);
    ev_init(&p->timer, on_timer);
    p->options = PQconninfoParse(url, &message);
    if (!p->options) {
        /* What libpq quotes may be a part of the password. */
        must(message); /* else out of memory */
        message[strcspn(message, "\":\n")] = 0;
        *error = base_printf("not a PostgreSQL URL: %s", message);
    } else if ((why = read_targets(p, uri)) || !(p->dns = dns_new(loop, "", &why))) {
        *error = base_printf("not a usable PostgreSQL URL: %s", why);
    } else {
        p->password = option(p, "password", "PGPASSWORD");
        round_later(p, true);
        return p;
    }
    PQfreemem(message);
    pg_free(p);
    return NULL;
}

void pg_free(struct pg *p)
{
    if (!p)
        return;
    conn_close(p);
    for (struct query *q; (q = p->first);) {
        query_unlink(q);
        query_free(q);
    }
    for (unsigned i = 0; i < COUNT_OF(p->lists); i++)
        free(p->lists[i]);
    PQconninfoFree(p->options);
    free(p->url);
    dns_free(p->dns);
    free(p->last_error);
    free(p);
}

enum pg_state pg_state(const struct pg *p)
{
    bool up = p->phase == READY || p->phase == BUSY;
    return up ? PG_READY : p->failed ? PG_AWAY : PG_CONNECTING;
}

const char *pg_last_error(const struct pg *p)
{
    return p->last_error;
}
