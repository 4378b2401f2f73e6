/* pg.c: owns one libpq connection, what is needed to make it again, and the queue of transactions.
 *
 * One `phase`, changed by the functions below only:
 *
 *   AWAY ─timer→ RESOLVING ─dns→ CONNECTING ─poll→ INTERNAL ─result→ READY ⇄ BUSY
 *
 * and from anywhere back to AWAY by conn_lost(). INTERNAL runs statements of our own: the session's
 * settings, LISTEN, or ROLLBACK. The connection is in pipeline mode while BUSY and only then. A
 * query is done once its work has ended; it is told to its owner from its own watcher (query_due)
 * and from nowhere else, so that owners may call anything, also pg_free().
 *
 * Nothing here may block the loop: names are resolved by dns.c and given to libpq as hostaddr; each
 * address is an attempt of its own with its own time-out, since libpq's connect_timeout counts only
 * in blocking calls; GSS encryption, whose handshake asks a KDC, is off unless the URL asks for it.
 * PQcancel() blocks and the key it sends isn't public: a query that is out of time is ended by
 * closing the connection, which the server notices within CHECK_MS while it works
 * (client_connection_check_interval, PostgreSQL 14), and by statement_timeout in any case. */
#include "pg.h"

#include "dns.h"
#include "log.h"
#include "pg_url.h"
#include <libpq-fe.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ATTEMPT_SECONDS 5.0
#define BACKOFF_LEAST   0.1
#define BACKOFF_MOST    5.0
#define CHECK_MS        1000
#define BYTES_MOST      (1u << 30) /* of a message of PostgreSQL's, which counts with int32 */

enum phase { AWAY, RESOLVING, CONNECTING, INTERNAL, READY, BUSY };

struct query {
    struct query *next, *prev;
    struct pg *pg;
    struct pg_work *work;
    bool done;
    ev_timer timer; /* deadline; fed by hand once done */
    void (*cb)(void *arg, const struct pg_outcome *o);
    void (*cb_rows)(void *arg, const struct pg_rows *r); /* or this */
    void *arg;
};

struct pg {
    struct ev_loop *loop;
    struct dns *dns;
    char *text; /* the URL */
    struct pg_url url;
    struct pg_news news;

    enum phase phase;
    bool was_ready; /* since it was told in the log */
    bool failed;    /* the last attempt or connection ended badly */
    PGconn *conn;
    struct pg_pipe *pipe;
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
    size_t bytes, bytes_max;    /* theirs */
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
    pg_work_free(q->work);
    free(q);
}

/* Its work has ended. */
static void query_done(struct query *q)
{
    struct pg *p = q->pg;
    must(!q->done);
    p->count--;
    p->bytes -= pg_work_bytes(q->work);
    if (p->flying == q)
        p->flying = NULL;
    q->done = true;
    ev_timer_stop(p->loop, &q->timer);
    ev_feed_event(p->loop, &q->timer, EV_TIMER);
}

static void set_error(struct pg *p, const char *text)
{
    char *s = pg_url_mask(&p->url, text);
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
    pg_pipe_forget(p->pipe);
    pg_news_lost(&p->news);
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

/* The connection is gone, because of last_error. */
static void tell_away(struct pg *p)
{
    log_warn("pg_away", "error=%s", log_quote(p->last_error));
    pg_news_state(&p->news, PG_AWAY);
    p->was_ready = false;
    p->failed = true;
}

/* The connection or the attempt to make it is over. What was in flight may or may not have been
 * done and is never sent again. */
static void conn_lost(struct pg *p, const char *why)
{
    bool attempt = p->phase != READY && p->phase != BUSY;
    struct query *q = p->flying;
    set_error(p, why);
    if (p->was_ready || !p->failed)
        tell_away(p);
    conn_close(p);
    if (q) {
        pg_work_lost(q->work, p->last_error);
        query_done(q);
    }
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
    if (p->flying && !p->flushing)
        pg_work_sent(p->flying->work);
    watch(p, p->flushing ? EV_READ | EV_WRITE : EV_READ);
    return true;
}

/* Statements of our own; READY follows. */
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
    /* What is answered must be on disk. Older servers don't know the check, and some systems can't
     * do it: not a reason to stay away. */
    char *listen = pg_news_sql(&p->news);
    char *sql = base_printf(
        "SET statement_timeout=%d;SET timezone='UTC';SET datestyle='ISO, YMD';"
        "SET bytea_output='hex';"
        "DO $$BEGIN IF current_setting('synchronous_commit') IN ('off', 'local') THEN "
        "SET synchronous_commit=on; END IF; END$$;"
        "DO $$BEGIN SET client_connection_check_interval=%d; EXCEPTION WHEN OTHERS THEN END$$;%s",
        (int)(PG_TIMEOUT_MAX * 1000), CHECK_MS, listen ? listen : "");
    if (PQsetnonblocking(p->conn, 1) == 0)
        internal_start(p, sql);
    else
        conn_lost(p, PQerrorMessage(p->conn));
    free(listen);
    free(sql);
}

static void ready(struct pg *p)
{
    ev_timer_stop(p->loop, &p->timer);
    p->phase = READY;
    if (!p->was_ready) {
        log_info("pg_ready", "server=%d", PQserverVersion(p->conn));
        pg_news_state(&p->news, PG_READY);
    }
    pg_news_began(&p->news);
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

static void connect_to(struct pg *p, const struct pg_target *t, const char *addr)
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
                                  {"dbname", p->text},
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
    snprintf(why, sizeof why, "can't resolve %.200s: %s", p->url.target[p->at - 1].host, a->error);
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
        connect_to(p, &p->url.target[p->at - 1], text);
        return;
    }
    if (p->at == p->url.targets) {
        round_later(p, false);
        return;
    }
    const struct pg_target *t = &p->url.target[p->at++];
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
    struct query *q = p->first;
    char *listen = pg_news_sql(&p->news);
    must(p->phase == READY);
    if (listen) {
        set_timer(p, ATTEMPT_SECONDS);
        internal_start(p, listen);
        free(listen);
        return;
    }
    while (q && q->done)
        q = q->next;
    if (!q)
        return;
    p->phase = BUSY;
    p->flying = q;
    if (pg_pipe_send(p->pipe, p->conn, q->work))
        (void)flush(p);
    else
        conn_lost(p, PQerrorMessage(p->conn));
}

/* What was sent is answered. Others share the connection, so a transaction left open would take in
 * what is not its own. */
static void flight_over(struct pg *p)
{
    struct query *q = p->flying;
    PGTransactionStatusType t = PQtransactionStatus(p->conn);
    bool open = t == PQTRANS_INTRANS || t == PQTRANS_INERROR;
    if (open)
        pg_work_fail(q->work, base_strdup("it left a transaction open, which was rolled back"),
                     false);
    query_done(q);
    if (!PQexitPipelineMode(p->conn)) {
        conn_lost(p, PQerrorMessage(p->conn));
    } else if (open) {
        set_timer(p, ATTEMPT_SECONDS);
        internal_start(p, "ROLLBACK");
    } else {
        p->phase = READY;
        start_next(p);
    }
}

static enum pg_step internal_take(struct pg *p, PGresult *res)
{
    if (!res)
        return PG_OVER;
    if (PQresultStatus(res) != PGRES_COMMAND_OK) {
        p->internal_failed = true;
        set_error(p, PQresultErrorMessage(res));
    }
    PQclear(res);
    return PG_MORE;
}

static void read_results(struct pg *p)
{
    while (!PQisBusy(p->conn)) {
        PGresult *res = PQgetResult(p->conn);
        if (!res && PQstatus(p->conn) == CONNECTION_BAD)
            break;
        bool internal = p->phase == INTERNAL;
        enum pg_step s =
            internal ? internal_take(p, res) : pg_pipe_take(p->pipe, p->flying->work, res);
        if (s == PG_MORE)
            continue;
        if (s == PG_BROKEN)
            conn_lost(p, "COPY, or an answer that was not expected");
        else if (internal && p->internal_failed)
            conn_lost(p, p->last_error);
        else if (internal)
            ready(p);
        else
            flight_over(p);
        return;
    }
    if (PQstatus(p->conn) == CONNECTION_BAD)
        conn_lost(p, PQerrorMessage(p->conn));
}

static void read_notifications(struct pg *p)
{
    PGnotify *n;
    while ((n = PQnotifies(p->conn))) { /* this also reads parting words */
        pg_news_notified(&p->news, n->relname, n->extra);
        PQfreemem(n);
    }
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
        if (p->phase >= INTERNAL) /* it isn't another connection by now */
            read_notifications(p);
        return;
    }
    read_notifications(p);
    if (!alive || PQstatus(p->conn) == CONNECTION_BAD)
        conn_lost(p, PQerrorMessage(p->conn));
}

static void tell(struct query *q)
{
    struct pg_outcome o;
    pg_work_outcome(q->work, &o);
    if (q->cb) {
        q->cb(q->arg, &o);
    } else {
        struct pg_rows failed = {.error = o.error, .sqlstate = o.sqlstate};
        q->cb_rows(q->arg, o.ok ? o.rows : &failed);
    }
}

/* The one place that tells an owner; also the end of a statement's time. */
static void query_due(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct query *q = container_of(w, struct query, timer);
    struct pg *p = q->pg;
    bool late = !q->done, flying = q == p->flying;
    bool away = p->phase != READY && p->phase != BUSY && *p->last_error;
    if (late && flying && pg_work_was_sent(q->work)) {
        pg_work_fail(q->work, base_strdup("time-out: cancelled, its outcome is not known"), true);
    } else if (late) {
        pg_work_fail(q->work,
                     base_printf("time-out: not sent%s%s", away ? ", PostgreSQL is away: " : "",
                                 away ? p->last_error : ""),
                     false);
    }
    if (late)
        query_done(q);
    if (late && flying) {
        set_error(p, "a statement was out of time");
        tell_away(p);
        conn_close(p);
        round_later(p, true);
    }
    query_unlink(q);
    tell(q);
    /* p may be gone from here on; q was ours alone, and its watcher is at rest. */
    query_free(q);
}

/* The caller sets one of the callbacks; they are called from the loop. */
static struct query *query_new(struct pg *p, const struct pg_statement *statements, unsigned n,
                               double timeout, void *arg)
{
    struct query *q = base_zalloc(sizeof *q);
    const char *why;
    q->pg = p;
    q->arg = arg;
    q->work = pg_work_new(statements, n, p->bytes_max - p->bytes, &why);
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
    p->bytes += pg_work_bytes(q->work);
    if (why) {
        pg_work_fail(q->work, base_strdup(why), false);
        query_done(q);
    } else if (p->phase == READY) {
        start_next(p);
    }
    return q;
}

void pg_transaction(struct pg *p, const struct pg_statement *statements, unsigned n, double timeout,
                    void (*cb)(void *arg, const struct pg_outcome *o), void *arg)
{
    query_new(p, statements, n, timeout, arg)->cb = cb;
}

void pg_query(struct pg *p, const char *sql, const struct pg_value *params, unsigned n,
              double timeout, void (*cb)(void *arg, const struct pg_rows *r), void *arg)
{
    struct pg_statement s = {sql, params, n};
    query_new(p, &s, 1, timeout, arg)->cb_rows = cb;
}

void pg_listen(struct pg *p, const char *channel, pg_notify_fn *cb, void *arg)
{
    must(*channel && strlen(channel) <= PG_CHANNEL_MAX);
    pg_news_listen(&p->news, channel, cb, arg);
    if (p->phase == READY)
        start_next(p);
}

void pg_observe(struct pg *p, pg_state_fn *cb, void *arg)
{
    pg_news_observe(&p->news, cb, arg);
}

struct pg *pg_new(struct ev_loop *loop, const char *url, unsigned queue_max, size_t bytes_max,
                  char **error)
{
    struct pg *p = base_zalloc(sizeof *p);
    const char *why;
    must(bytes_max <= BYTES_MOST);
    p->loop = loop;
    p->count_max = queue_max;
    p->bytes_max = bytes_max;
    p->text = base_strdup(url);
    p->last_error = base_strdup("");
    p->pipe = pg_pipe_new();
    pg_news_init(&p->news, loop);
    ev_init(&p->io, on_io);
    ev_init(&p->timer, on_timer);
    if (pg_url_read(&p->url, url, error)) {
        p->dns = dns_new(loop, "", &why);
        if (p->dns) {
            round_later(p, true);
            return p;
        }
        *error = base_strdup(why);
    }
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
    pg_news_fini(&p->news);
    pg_pipe_free(p->pipe);
    pg_url_fini(&p->url);
    free(p->text);
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
