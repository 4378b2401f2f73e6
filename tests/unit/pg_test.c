/* pg_test.c: pg against a real PostgreSQL that this test starts and stops. */
#include "log.h"
#include "pg.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "../pgserver.h"

static struct pgserver server;
static struct ev_loop *loop;
static struct pg *pg;

struct seen {
    unsigned calls;
    bool ok;
    char error[512], sqlstate[8];
    int rows, cols;
    long affected;
    char cell[3][8][128]; /* "\1" is NULL */
    char name[8][64];
    unsigned type[8];
};

static void note(void *arg, const struct pg_rows *r)
{
    struct seen *s = arg;
    s->calls++;
    s->ok = r->ok;
    s->rows = r->rows;
    s->cols = r->cols;
    s->affected = r->affected;
    snprintf(s->error, sizeof s->error, "%s", r->error ? r->error : "");
    snprintf(s->sqlstate, sizeof s->sqlstate, "%s", r->sqlstate);
    for (int c = 0; c < r->cols && c < 8; c++) {
        snprintf(s->name[c], sizeof s->name[c], "%s", r->name(r, c));
        s->type[c] = r->type(r, c);
        for (int i = 0; i < r->rows && i < 3; i++) {
            struct str v;
            bool set = r->value(r, i, c, &v);
            snprintf(s->cell[i][c], sizeof s->cell[i][c], "%.*s", set ? (int)v.n : 1,
                     set ? v.p : "\1");
        }
    }
}

static void give_up(struct ev_loop *l, ev_timer *w, int revents)
{
    ev_break(l, EVBREAK_ALL);
}

/* Turns the loop until done(arg), at most so many seconds; whether it came about. */
static bool run_until(bool (*done)(const void *arg), const void *arg, double seconds)
{
    ev_timer t;
    ev_now_update(loop);
    ev_timer_init(&t, give_up, seconds, 0.);
    ev_timer_start(loop, &t);
    while (!done(arg) && ev_is_active(&t))
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &t);
    return done(arg);
}

static bool was_called(const void *arg)
{
    return ((const struct seen *)arg)->calls > 0;
}

static bool is_ready(const void *arg)
{
    return pg_state(arg) == PG_READY;
}

static bool is_away(const void *arg)
{
    return pg_state(arg) == PG_AWAY;
}

static bool never(const void *arg)
{
    return false;
}

static struct seen last;

static const struct seen *query_n(const char *sql, const struct pg_value *v, unsigned n,
                                  double timeout)
{
    memset(&last, 0, sizeof last);
    pg_query(pg, sql, v, n, timeout, note, &last);
    assert_int_equal(last.calls, 0);
    assert_true(run_until(was_called, &last, 20));
    assert_int_equal(last.calls, 1);
    return &last;
}

static const struct seen *query(const char *sql)
{
    return query_n(sql, NULL, 0, 10);
}

static const struct seen *must_query(const char *sql)
{
    const struct seen *s = query(sql);
    assert_string_equal(s->error, "");
    return s;
}

static int start_server(void **state)
{
    log_set_fd(-1);
    signal(SIGPIPE, SIG_IGN);
    return pgserver_start(&server) ? 0 : -1;
}

static int stop_server(void **state)
{
    pgserver_stop(&server);
    return 0;
}

static int start(void **state)
{
    char *error;
    if (server.pid == 0 && !pgserver_run(&server))
        return -1;
    loop = ev_loop_new(EVFLAG_AUTO);
    pg = pg_new(loop, server.url, 50, 64u << 20, &error);
    return pg ? 0 : -1;
}

static int stop(void **state)
{
    pg_free(pg);
    ev_loop_destroy(loop);
    return 0;
}

static void connects_in_the_background(void **state)
{
    assert_int_equal(pg_state(pg), PG_CONNECTING);
    assert_true(run_until(is_ready, pg, 5));
    assert_string_equal(pg_last_error(pg), "");
}

static void parameters_and_nulls(void **state)
{
    const struct pg_value v[] = {{"it's; -- \\ \"x\"", 14, false},
                                 {NULL, 0, false},
                                 {"", 0, false},
                                 {"42 and more", 2, false}};
    const struct seen *s =
        query_n("SELECT $1::text AS a, $2::text AS b, $3::text AS c, $4::int", v, 4, 5);
    assert_true(s->ok);
    assert_int_equal(s->rows, 1);
    assert_int_equal(s->cols, 4);
    assert_string_equal(s->cell[0][0], "it's; -- \\ \"x\"");
    assert_string_equal(s->cell[0][1], "\1");
    assert_string_equal(s->cell[0][2], "");
    assert_string_equal(s->cell[0][3], "42");
    assert_string_equal(s->name[0], "a");
    assert_int_equal(s->type[0], 25);
    assert_int_equal(s->type[3], 23);
}

static void rows_touched(void **state)
{
    must_query("DROP TABLE IF EXISTS t");
    must_query("CREATE TABLE t (i int PRIMARY KEY)");
    assert_int_equal(must_query("INSERT INTO t SELECT generate_series(1, 7)")->affected, 7);
    assert_int_equal(must_query("UPDATE t SET i = i + 10 WHERE i > 5")->affected, 2);
    const struct seen *s = must_query("DELETE FROM t WHERE i = 1 RETURNING i AS gone");
    assert_int_equal(s->affected, 1);
    assert_string_equal(s->cell[0][0], "1");
    assert_int_equal(must_query("SELECT * FROM t")->affected, 0);
}

static void errors_carry_their_sqlstate(void **state)
{
    const struct seen *s = query("SELECT 1/0");
    assert_false(s->ok);
    assert_string_equal(s->sqlstate, "22012");
    assert_string_equal(s->error, "division by zero");
    assert_string_equal(query("SELEC 1")->sqlstate, "42601");
    assert_string_equal(query("SELECT $1::int")->sqlstate, "08P01"); /* a parameter is missing */
    must_query("DROP TABLE IF EXISTS u");
    must_query("CREATE TABLE u (i int PRIMARY KEY)");
    must_query("INSERT INTO u VALUES (1)");
    s = query("INSERT INTO u VALUES (1)");
    assert_string_equal(s->sqlstate, "23505");
    assert_non_null(strstr(s->error, "(Key (i)=(1) already exists.)"));
    assert_int_equal(pg_state(pg), PG_READY);
}

static void odd_statements_do_no_harm(void **state)
{
    const struct pg_value nul = {"a\0b", 3, false};
    assert_false(query("")->ok);
    assert_false(query("SELECT 1; SELECT 2")->ok); /* with parameters: one statement only */
    assert_non_null(strstr(query_n("SELECT $1::text", &nul, 1, 5)->error, "NUL"));
    assert_non_null(strstr(query("COPY (SELECT 1) TO STDOUT")->error, "COPY"));
    assert_string_equal(must_query("SELECT 3")->cell[0][0], "3");
}

static void copy_from_the_client_is_refused(void **state)
{
    must_query("DROP TABLE IF EXISTS c");
    must_query("CREATE TABLE c (i int)");
    assert_false(query("COPY c FROM STDIN")->ok);
    assert_string_equal(must_query("SELECT count(*) FROM c")->cell[0][0], "0");
}

static void open_transactions_are_rolled_back(void **state)
{
    must_query("DROP TABLE IF EXISTS x");
    must_query("CREATE TABLE x (i int)");
    const struct seen *s = query("BEGIN");
    assert_false(s->ok);
    assert_non_null(strstr(s->error, "transaction"));
    must_query("INSERT INTO x VALUES (1)");
    assert_non_null(strstr(query("BEGIN ISOLATION LEVEL SERIALIZABLE")->error, "transaction"));
    assert_string_equal(must_query("SELECT count(*) FROM x")->cell[0][0], "1");
}

static void settings_of_the_session(void **state)
{
    assert_string_equal(must_query("SHOW timezone")->cell[0][0], "UTC");
    assert_string_equal(must_query("SHOW statement_timeout")->cell[0][0], "10min");
    assert_string_equal(must_query("SHOW client_connection_check_interval")->cell[0][0], "1s");
    assert_string_equal(must_query("SHOW application_name")->cell[0][0], "chromux");
    assert_string_equal(must_query("SELECT 0.1::float8 + 0.2")->cell[0][0], "0.30000000000000004");
}

/* 40 MB there and back: more than any socket buffer takes at once. */
static void large_parameters_are_flushed(void **state)
{
    size_t n = 40u << 20;
    char *text = base_alloc(n), expected[32];
    memset(text, 'x', n);
    struct pg_value v = {text, n, false};
    snprintf(expected, sizeof expected, "%zu", n);
    const struct seen *s = query_n("SELECT length($1::text), repeat($1, 1) AS b", &v, 1, 20);
    assert_string_equal(s->error, "");
    assert_string_equal(s->cell[0][0], expected);
    free(text);
}

static char order[64];

static void note_order(void *arg, const struct pg_rows *r)
{
    struct str v = {"?", 1};
    if (r->ok)
        (void)r->value(r, 0, 0, &v);
    strncat(order, v.p, v.n);
}

static bool is_ordered(const void *arg)
{
    return strlen(order) == 50;
}

static void statements_run_in_order_and_the_queue_is_bounded(void **state)
{
    struct seen over = {0};
    order[0] = 0;
    for (unsigned i = 0; i < 50; i++) {
        char digit[2] = {(char)('a' + i % 26), 0};
        struct pg_value v = {digit, 1, false};
        pg_query(pg, "SELECT $1::text", &v, 1, 10, note_order, NULL);
    }
    pg_query(pg, "SELECT 1", NULL, 0, 10, note, &over);
    assert_int_equal(over.calls, 0);
    assert_true(run_until(was_called, &over, 5));
    assert_string_equal(over.error, "queue full");
    assert_string_equal(over.sqlstate, "");
    assert_true(run_until(is_ordered, NULL, 10));
    assert_string_equal(order, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwx");
    must_query("SELECT 1");
}

static void a_statement_out_of_time_is_cancelled_at_the_server(void **state)
{
    must_query("DROP TABLE IF EXISTS w");
    must_query("CREATE TABLE w (i int)");
    double t = ev_time();
    const struct seen *s =
        query_n("WITH a AS (SELECT pg_sleep(60)) INSERT INTO w SELECT 1 FROM a", NULL, 0, 0.3);
    assert_false(s->ok);
    assert_memory_equal(s->error, "time-out", 8);
    assert_string_equal(s->sqlstate, "");
    assert_true(ev_time() - t < 3);
    /* The connection is made anew at once, and the old backend goes away soon. */
    t = ev_time();
    do
        s = must_query("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'WITH a%'");
    while (strcmp(s->cell[0][0], "0") != 0 && ev_time() - t < 10);
    assert_string_equal(s->cell[0][0], "0");
    assert_string_equal(must_query("SELECT count(*) FROM w")->cell[0][0], "0");
}

static void a_waiting_statement_out_of_time_is_not_sent(void **state)
{
    struct seen slow = {0}, waiting = {0};
    must_query("DROP TABLE IF EXISTS v");
    must_query("CREATE TABLE v (i int)");
    pg_query(pg, "SELECT pg_sleep(1)", NULL, 0, 10, note, &slow);
    pg_query(pg, "INSERT INTO v VALUES (1)", NULL, 0, 0.2, note, &waiting);
    assert_true(run_until(was_called, &waiting, 5));
    assert_int_equal(slow.calls, 0);
    assert_string_equal(waiting.error, "time-out: not sent");
    assert_true(run_until(was_called, &slow, 5));
    assert_true(slow.ok);
    assert_string_equal(must_query("SELECT count(*) FROM v")->cell[0][0], "0");
    assert_int_equal(waiting.calls, 1);
}

static void server_restart_is_survived(void **state)
{
    must_query("SELECT 1");
    pgserver_kill(&server, SIGINT);
    assert_true(run_until(is_away, pg, 5));
    assert_string_not_equal(pg_last_error(pg), "");
    struct seen waits = {0}, impatient = {0};
    pg_query(pg, "SELECT 7", NULL, 0, 30, note, &waits);
    pg_query(pg, "SELECT 8", NULL, 0, 0.2, note, &impatient);
    assert_true(run_until(was_called, &impatient, 5));
    assert_memory_equal(impatient.error, "time-out: not sent, PostgreSQL is away: ", 40);
    assert_int_equal(pg_state(pg), PG_AWAY);
    assert_true(pgserver_run(&server));
    assert_true(run_until(was_called, &waits, 15));
    assert_true(waits.ok);
    assert_string_equal(waits.cell[0][0], "7");
    assert_int_equal(pg_state(pg), PG_READY);
}

static void in_flight_when_the_server_dies_errs_once(void **state)
{
    static const int how[] = {SIGQUIT, SIGINT};
    must_query("DROP TABLE IF EXISTS d");
    must_query("CREATE TABLE d (i int)");
    for (unsigned i = 0; i < COUNT_OF(how); i++) {
        struct seen flying = {0}, queued = {0}, beat = {0};
        must_query("SELECT 1");
        pg_query(pg, "WITH a AS (SELECT pg_sleep(30)) INSERT INTO d SELECT 1 FROM a", NULL, 0, 60,
                 note, &flying);
        pg_query(pg, "SELECT 5", NULL, 0, 30, note, &queued);
        run_until(was_called, &beat, 0.2); /* it is under way */
        assert_int_equal(flying.calls, 0);
        pgserver_kill(&server, how[i]);
        assert_true(run_until(was_called, &flying, 5));
        assert_false(flying.ok);
        if (how[i] == SIGINT)
            assert_string_equal(flying.sqlstate, "57P01");
        else
            assert_non_null(strstr(flying.error, "not known whether"));
        assert_int_equal(queued.calls, 0);
        assert_true(pgserver_run(&server));
        assert_true(run_until(was_called, &queued, 15)); /* was never sent: runs now */
        assert_string_equal(queued.cell[0][0], "5");
        assert_string_equal(must_query("SELECT count(*) FROM d")->cell[0][0], "0");
        assert_int_equal(flying.calls, 1);
    }
}

static void killed_backend_while_idle_is_noticed(void **state)
{
    char *error, before[32];
    struct pg *other = pg_new(loop, server.url, 5, 64u << 20, &error);
    strcpy(before, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    struct pg_value v = {before, strlen(before), false};
    struct seen s = {0};
    pg_query(other, "SELECT pg_terminate_backend($1::int)", &v, 1, 5, note, &s);
    assert_true(run_until(was_called, &s, 5));
    assert_true(run_until(is_away, pg, 5));
    assert_non_null(strstr(pg_last_error(pg), "closed the connection"));
    assert_true(run_until(is_ready, pg, 5));
    assert_string_not_equal(must_query("SELECT pg_backend_pid()")->cell[0][0], before);
    pg_free(other);
}

static void bad_urls_are_refused_without_the_password(void **state)
{
    static const char *const urls[] = {"postgresql://u:sec%zzret@h/d",
                                       "postgresql://u:se@secret@h/d",
                                       "postgresql://u:12/secret@h/d",
                                       "postgresql://u:se/secret@h/d",
                                       "host=h passwort=secret",
                                       "user=u password secret",
                                       "postgresql://u:secret@h/d?x=1",
                                       "postgresql://u:secret@a,,b/d",
                                       "host=a,b port=1,2,3"};
    for (unsigned i = 0; i < COUNT_OF(urls); i++) {
        char *error = NULL;
        assert_null(pg_new(loop, urls[i], 5, 64u << 20, &error));
        assert_non_null(error);
        assert_true(strlen(error) > 20);
        assert_null(strstr(error, "ret"));
        free(error);
    }
}

static void wrong_password_is_told_without_it(void **state)
{
    char url[256], hba[128], *error;
    must_query("DROP ROLE IF EXISTS guarded");
    must_query("CREATE ROLE guarded LOGIN PASSWORD 'right-one'");
    snprintf(hba, sizeof hba, "%s/data/pg_hba.conf", server.dir);
    FILE *f = fopen(hba, "w");
    assert_non_null(f);
    fputs("local all guarded scram-sha-256\nlocal all all trust\n", f);
    fclose(f);
    must_query("SELECT pg_reload_conf()");
    pg_free(pg);
    snprintf(url, sizeof url, "postgresql://guarded:wrong-one@/postgres?host=%s", server.dir);
    pg = pg_new(loop, url, 5, 64u << 20, &error);
    assert_non_null(pg);
    assert_true(run_until(is_away, pg, 5));
    assert_non_null(strstr(pg_last_error(pg), "authentication failed"));
    assert_null(strstr(pg_last_error(pg), "wrong-one"));
    pg_free(pg);
    snprintf(url, sizeof url, "postgresql://guarded:right-one@/postgres?host=%s", server.dir);
    pg = pg_new(loop, url, 5, 64u << 20, &error);
    assert_true(run_until(is_ready, pg, 5));
}

static void listen_on(int *fd, int *port, int backlog)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*fd, (struct sockaddr *)&sa, len), 0);
    assert_int_equal(listen(*fd, backlog), 0);
    assert_int_equal(getsockname(*fd, (struct sockaddr *)&sa, &len), 0);
    *port = ntohs(sa.sin_port);
}

/* The first host accepts and says nothing, the second name doesn't exist, the third is the server.
 */
static void hanging_and_unknown_hosts_are_passed_over(void **state)
{
    char url[256], *error;
    int fd, port;
    listen_on(&fd, &port, 5);
    pg_free(pg);
    snprintf(url, sizeof url,
             "host=localhost,a..b,%s port=%d,5432,5432 user=postgres dbname=postgres", server.dir,
             port);
    pg = pg_new(loop, url, 5, 64u << 20, &error);
    assert_non_null(pg);
    assert_false(run_until(is_ready, pg, 1)); /* still at the first one, and the loop turns */
    assert_true(run_until(is_ready, pg, 15));
    assert_string_equal(must_query("SELECT 1")->cell[0][0], "1");
    close(fd);
}

static unsigned accepted;

static void count_and_drop(struct ev_loop *l, ev_io *w, int revents)
{
    int fd = accept(w->fd, NULL, NULL);
    if (fd >= 0)
        close(fd);
    accepted++;
}

static void back_off_grows(void **state)
{
    char url[256], *error;
    int fd, port;
    ev_io io;
    listen_on(&fd, &port, 50);
    ev_io_init(&io, count_and_drop, fd, EV_READ);
    ev_io_start(loop, &io);
    pg_free(pg);
    snprintf(url, sizeof url, "postgresql://postgres@127.0.0.1:%d/postgres?sslmode=disable", port);
    pg = pg_new(loop, url, 5, 64u << 20, &error);
    accepted = 0;
    run_until(never, NULL, 3);
    /* At most 0.05+0.1+0.2+0.4+0.8+1.6 s of waiting, at least half of that. */
    assert_in_range(accepted, 4, 7);
    ev_io_stop(loop, &io);
    close(fd);
}

static void free_inside(void *arg, const struct pg_rows *r)
{
    char *error;
    pg_free(pg);
    pg = pg_new(loop, server.url, 5, 64u << 20, &error);
    note(arg, r);
}

static void may_be_freed_from_its_callback(void **state)
{
    struct seen s = {0}, never_told = {0}, flying = {0};
    pg_query(pg, "SELECT 1", NULL, 0, 5, free_inside, &s);
    pg_query(pg, "SELECT pg_sleep(30)", NULL, 0, 50, note, &never_told);
    pg_query(pg, "SELECT 1", NULL, 0, 5, note, &never_told);
    assert_true(run_until(was_called, &s, 5));
    assert_true(s.ok);
    assert_string_equal(must_query("SELECT 2")->cell[0][0], "2");
    assert_int_equal(never_told.calls, 0);
    pg_query(pg, "SELECT pg_sleep(30)", NULL, 0, 50, note, &flying);
    run_until(was_called, &flying, 0.1); /* stop() frees it while it flies */
    assert_int_equal(flying.calls, 0);
}

/* ---- transactions --------------------------------------------------------------------------- */

struct whole {
    unsigned calls, index, n;
    bool ok, unknown;
    char error[512], sqlstate[8];
    struct seen of[5];
};

static void note_whole(void *arg, const struct pg_outcome *o)
{
    struct whole *w = arg;
    w->calls++;
    w->ok = o->ok;
    w->index = o->index;
    w->n = o->n;
    w->unknown = o->unknown;
    snprintf(w->error, sizeof w->error, "%s", o->error ? o->error : "");
    snprintf(w->sqlstate, sizeof w->sqlstate, "%s", o->sqlstate);
    for (unsigned i = 0; o->ok && i < o->n && i < COUNT_OF(w->of); i++)
        note(&w->of[i], &o->rows[i]);
}

static bool is_whole(const void *arg)
{
    return ((const struct whole *)arg)->calls > 0;
}

static struct whole whole;

/* Statements without parameters, up to NULL. */
static void begin(struct whole *w, const char *const *sql, double timeout)
{
    struct pg_statement s[8] = {{NULL, NULL, 0}};
    unsigned n = 0;
    for (; sql[n]; n++)
        s[n].sql = sql[n];
    memset(w, 0, sizeof *w);
    pg_transaction(pg, s, n, timeout, note_whole, w);
    assert_int_equal(w->calls, 0);
}

static const struct whole *transaction(const char *const *sql)
{
    begin(&whole, sql, 10);
    assert_true(run_until(is_whole, &whole, 20));
    assert_int_equal(whole.calls, 1);
    return &whole;
}
#define TRANSACTION(...) transaction((const char *const[]){__VA_ARGS__, NULL})

static const char *count_of(const char *table)
{
    char sql[64];
    snprintf(sql, sizeof sql, "SELECT count(*) FROM %s", table);
    return must_query(sql)->cell[0][0];
}

static void make_table(const char *name, const char *columns)
{
    char sql[128];
    snprintf(sql, sizeof sql, "DROP TABLE IF EXISTS %s", name);
    must_query(sql);
    snprintf(sql, sizeof sql, "CREATE TABLE %s (%s)", name, columns);
    must_query(sql);
}

/* Runs sql with one text parameter on a connection of its own. */
static void query_elsewhere(const char *sql, const char *text)
{
    char *error;
    struct seen s = {0};
    struct pg *other = pg_new(loop, server.url, 5, 1 << 20, &error);
    struct pg_value v = {text, strlen(text), false};
    pg_query(other, sql, &v, 1, 10, note, &s);
    assert_true(run_until(was_called, &s, 10));
    assert_string_equal(s.error, "");
    assert_int_equal(s.rows, 1);
    assert_string_equal(s.cell[0][0], "t");
    pg_free(other);
}

/* Until the backend with this id runs pg_sleep. */
static void await_sleep(const char *pid)
{
    char *error;
    struct seen s;
    struct pg *other = pg_new(loop, server.url, 5, 1 << 20, &error);
    struct pg_value v = {pid, strlen(pid), false};
    double until = ev_time() + 10;
    do {
        memset(&s, 0, sizeof s);
        pg_query(other,
                 "SELECT count(*) FROM pg_stat_activity WHERE pid=$1::int AND wait_event='PgSleep'",
                 &v, 1, 10, note, &s);
        assert_true(run_until(was_called, &s, 10));
    } while (strcmp(s.cell[0][0], "1") != 0 && ev_time() < until);
    assert_string_equal(s.cell[0][0], "1");
    pg_free(other);
}

static void results_come_in_the_order_of_the_statements(void **state)
{
    make_table("o", "i int");
    const struct pg_value five = {"5", 1, false};
    const struct pg_statement s[] = {{"INSERT INTO o SELECT generate_series(1, $1::int)", &five, 1},
                                     {"SELECT count(*) FROM o", NULL, 0},
                                     {"DELETE FROM o WHERE i > 3", NULL, 0},
                                     {"SELECT max(i), txid_current() FROM o", NULL, 0},
                                     {"SELECT 'x', txid_current()", NULL, 0}};
    memset(&whole, 0, sizeof whole);
    pg_transaction(pg, s, COUNT_OF(s), 10, note_whole, &whole);
    assert_true(run_until(is_whole, &whole, 20));
    assert_string_equal(whole.error, "");
    assert_true(whole.ok);
    assert_int_equal(whole.n, 5);
    assert_int_equal(whole.of[0].affected, 5);
    assert_string_equal(whole.of[1].cell[0][0], "5");
    assert_int_equal(whole.of[2].affected, 2);
    assert_string_equal(whole.of[3].cell[0][0], "3");
    assert_string_equal(whole.of[4].cell[0][0], "x");
    assert_string_equal(whole.of[3].cell[0][1], whole.of[4].cell[0][1]); /* one transaction */
}

static void an_error_undoes_all_and_names_its_statement(void **state)
{
    make_table("a", "i int PRIMARY KEY");
    const struct whole *w = TRANSACTION("INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (1)",
                                        "INSERT INTO a VALUES (2)");
    assert_false(w->ok);
    assert_string_equal(w->sqlstate, "23505");
    assert_int_equal(w->index, 1);
    assert_false(w->unknown);
    assert_string_equal(count_of("a"), "0");
    w = TRANSACTION("INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)", "SELEC 3");
    assert_int_equal(w->index, 2);
    assert_string_equal(w->sqlstate, "42601");
    assert_string_equal(count_of("a"), "0");
    assert_true(TRANSACTION("INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)")->ok);
    assert_string_equal(count_of("a"), "2");
    begin(&whole, (const char *const[]){NULL}, 1);
    assert_true(run_until(is_whole, &whole, 5));
    assert_string_equal(whole.error, "no statement");
}

static void an_error_at_the_commit_undoes_all(void **state)
{
    make_table("b", "i int UNIQUE DEFERRABLE INITIALLY DEFERRED");
    const struct whole *w =
        TRANSACTION("INSERT INTO b VALUES (1)", "INSERT INTO b VALUES (1)", "SELECT 1");
    assert_false(w->ok);
    assert_string_equal(w->sqlstate, "23505");
    assert_int_equal(w->index, 3);
    assert_false(w->unknown);
    assert_string_equal(count_of("b"), "0");
}

static void bytes_go_both_ways(void **state)
{
    char bytes[256], back[300];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)i;
    struct pg_value v[] = {{bytes, sizeof bytes, true}, {"", 0, true}, {NULL, 0, true}};
    make_table("y", "b bytea, e bytea, n bytea");
    assert_true(query_n("INSERT INTO y VALUES ($1, $2, $3)", v, 3, 10)->ok);
    const struct seen *s = must_query(
        "SELECT octet_length(b), octet_length(e), n IS NULL, get_byte(b, 0), get_byte(b, 255) "
        "FROM y");
    assert_string_equal(s->cell[0][0], "256");
    assert_string_equal(s->cell[0][1], "0");
    assert_string_equal(s->cell[0][2], "t");
    assert_string_equal(s->cell[0][3], "0");
    assert_string_equal(s->cell[0][4], "255");
    /* Pieces of 32 bytes, as their texts fit into `seen`. */
    for (unsigned i = 0; i < sizeof bytes; i += 32) {
        char sql[80];
        snprintf(sql, sizeof sql, "SELECT substr(b, %u, 32), e FROM y", i + 1);
        s = must_query(sql);
        assert_int_equal(s->type[0], PG_BYTEA);
        assert_int_equal(pg_bytea(str_from(s->cell[0][0]), back), 32);
        assert_memory_equal(back, bytes + i, 32);
        assert_int_equal(pg_bytea(str_from(s->cell[0][1]), back), 0);
    }
}

static const char *prepared(void)
{
    return must_query("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%kept%'")
        ->cell[0][0];
}

static void statements_are_prepared_once(void **state)
{
    must_query("SELECT 'kept 1'");
    must_query("SELECT 'kept 1'");
    assert_true(TRANSACTION("SELECT 'kept 1'", "SELECT 'kept 2'", "SELECT 'kept 2'")->ok);
    assert_string_equal(prepared(), "3"); /* and the one that asks */
    assert_string_equal(prepared(), "3");
    char pid[32];
    strcpy(pid, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    query_elsewhere("SELECT pg_terminate_backend($1::int)", pid);
    assert_true(run_until(is_away, pg, 5));
    assert_string_equal(must_query("SELECT 'kept 1'")->cell[0][0], "kept 1");
    assert_string_not_equal(must_query("SELECT pg_backend_pid()")->cell[0][0], pid);
    assert_string_equal(prepared(), "2");
}

static void failures_leave_prepared_statements_right(void **state)
{
    must_query("DROP TABLE IF EXISTS late");
    /* The second one's Parse is skipped, the third's refused, so neither is there. */
    assert_int_equal(TRANSACTION("SELECT 1/0", "SELECT 'kept 3'")->index, 0);
    assert_string_equal(query("SELECT * FROM late")->sqlstate, "42P01");
    assert_string_equal(must_query("SELECT 'kept 3'")->cell[0][0], "kept 3");
    make_table("late", "i int");
    assert_int_equal(must_query("SELECT * FROM late")->cols, 1);
    /* A plan that does not fit any more is refused once. */
    must_query("ALTER TABLE late ADD j int");
    assert_string_equal(query("SELECT * FROM late")->sqlstate, "0A000");
    assert_int_equal(must_query("SELECT * FROM late")->cols, 2);
    must_query("DEALLOCATE ALL");
    assert_string_equal(query("SELECT 'kept 3'")->sqlstate, "26000");
    must_query("SELECT 'kept 3'");
}

static void more_texts_than_names_still_run(void **state)
{
    char sql[64];
    for (unsigned i = 0; i < 150; i++) {
        snprintf(sql, sizeof sql, "SELECT %u, 'kept'", i);
        assert_string_equal(must_query(sql)->cell[0][1], "kept");
    }
    assert_string_equal(must_query("SELECT 149, 'kept'")->cell[0][0], "149");
    assert_string_equal(must_query("SELECT count(*) FROM pg_prepared_statements")->cell[0][0],
                        "128");
}

static const char *const slow[] = {"INSERT INTO m VALUES (1)", "SELECT pg_sleep(30)",
                                   "INSERT INTO m VALUES (2)", NULL};

static void a_crash_in_mid_transaction_leaves_it_unknown(void **state)
{
    struct seen queued = {0};
    char pid[32];
    make_table("m", "i int");
    strcpy(pid, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    begin(&whole, slow, 60);
    pg_query(pg, "SELECT 'after'", NULL, 0, 30, note, &queued);
    await_sleep(pid);
    pgserver_kill(&server, SIGQUIT);
    assert_true(run_until(is_whole, &whole, 5));
    assert_false(whole.ok);
    assert_true(whole.unknown);
    assert_int_equal(whole.index, 3);
    assert_string_equal(whole.sqlstate, "");
    assert_non_null(strstr(whole.error, "not known whether"));
    assert_true(pgserver_run(&server));
    assert_true(run_until(was_called, &queued, 15));
    assert_string_equal(queued.cell[0][0], "after");
    assert_string_equal(count_of("m"), "0"); /* it was not sent again */
    assert_int_equal(whole.calls, 1);
}

static void a_session_ended_in_mid_transaction_says_so(void **state)
{
    char pid[32];
    make_table("m", "i int");
    strcpy(pid, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    begin(&whole, slow, 60);
    await_sleep(pid);
    query_elsewhere("SELECT pg_terminate_backend($1::int)", pid);
    assert_true(run_until(is_whole, &whole, 5));
    assert_string_equal(whole.sqlstate, "57P01");
    assert_int_equal(whole.index, 1);
    assert_false(whole.unknown); /* ended before its end: undone for sure */
    assert_string_equal(count_of("m"), "0");
}

static void a_transaction_out_of_time_is_unknown_only_when_sent(void **state)
{
    struct whole waiting;
    make_table("m", "i int");
    begin(&whole, slow, 0.5);
    begin(&waiting, (const char *const[]){"INSERT INTO m VALUES (3)", NULL}, 0.2);
    assert_true(run_until(is_whole, &waiting, 5));
    assert_int_equal(whole.calls, 0);
    assert_string_equal(waiting.error, "time-out: not sent");
    assert_false(waiting.unknown);
    assert_true(run_until(is_whole, &whole, 5));
    assert_memory_equal(whole.error, "time-out: cancelled", 19);
    assert_true(whole.unknown);
    assert_int_equal(whole.index, 3);
    assert_string_equal(count_of("m"), "0");
}

static void the_queue_is_bounded_in_bytes(void **state)
{
    size_t n = 40u << 20;
    char *text = base_alloc(n);
    memset(text, 'x', n);
    struct pg_value v = {text, n, false};
    struct seen first = {0}, over = {0};
    must_query("SELECT 1");
    pg_query(pg, "SELECT length($1::text)", &v, 1, 20, note, &first);
    pg_query(pg, "SELECT length($1::text)", &v, 1, 20, note, &over);
    free(text);
    assert_true(run_until(was_called, &over, 10));
    assert_string_equal(over.error, "queue full");
    assert_true(run_until(was_called, &first, 20));
    assert_true(first.ok);
    v.text = "abc", v.n = 3; /* and there is room again */
    assert_string_equal(query_n("SELECT length($1::text)", &v, 1, 20)->cell[0][0], "3");
}

/* ---- notifications -------------------------------------------------------------------------- */

static char heard[512];

static void hear(void *arg, const char *payload)
{
    strcat(strcat(strcat(heard, arg), payload ? payload : "-"), " ");
}

static void hear_state(void *arg, enum pg_state s)
{
    strcat(heard, s == PG_READY ? "READY " : s == PG_AWAY ? "AWAY " : "? ");
}

static bool has_heard(const void *text)
{
    return strcmp(heard, text) == 0;
}

static void must_hear(const char *text)
{
    if (!run_until(has_heard, text, 10))
        assert_string_equal(heard, text);
    heard[0] = 0;
}

static void notifications_arrive_and_reconnects_are_told(void **state)
{
    char one[] = "1:", two[] = "2:", pid[32];
    heard[0] = 0;
    pg_observe(pg, hear_state, NULL);
    pg_listen(pg, "Chan\"nel", hear, one);
    must_hear("READY 1:- ");
    must_query("NOTIFY \"Chan\"\"nel\", 'own'");
    must_hear("1:own ");
    query_elsewhere("SELECT pg_notify('Chan\"nel', $1) IS NOT NULL", "a");
    query_elsewhere("SELECT pg_notify('other', $1) IS NOT NULL", "b");
    query_elsewhere("SELECT pg_notify('Chan\"nel', $1) IS NOT NULL", "");
    must_hear("1:a 1: ");
    pg_listen(pg, "other", hear, two); /* while it is connected */
    must_hear("2:- ");
    query_elsewhere("SELECT pg_notify('other', $1) IS NOT NULL", "c");
    must_hear("2:c ");
    strcpy(pid, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    query_elsewhere("SELECT pg_terminate_backend($1::int)", pid);
    must_hear("AWAY READY 2:- 1:- ");
    query_elsewhere("SELECT pg_notify('other', $1) IS NOT NULL", "d");
    must_hear("2:d ");
}

static void notifications_arrive_while_statements_run(void **state)
{
    char one[] = "1:", pid[32];
    struct seen s = {0};
    strcpy(pid, must_query("SELECT pg_backend_pid()")->cell[0][0]);
    heard[0] = 0;
    pg_query(pg, "SELECT pg_sleep(0.3)", NULL, 0, 10, note, &s);
    pg_listen(pg, "busy", hear, one); /* waits for that one */
    await_sleep(pid);
    assert_string_equal(heard, "");
    must_hear("1:- ");
    assert_int_equal(s.calls, 1);
    memset(&s, 0, sizeof s);
    pg_query(pg, "SELECT pg_sleep(1)", NULL, 0, 10, note, &s);
    await_sleep(pid);
    query_elsewhere("SELECT pg_notify('busy', $1) IS NOT NULL", "e");
    must_hear("1:e ");
    assert_true(run_until(was_called, &s, 5));
    assert_true(s.ok);
}

static void free_when_heard(void *arg, const char *payload)
{
    char *error;
    pg_free(pg);
    pg = pg_new(loop, server.url, 5, 1 << 20, &error);
    hear(arg, payload);
}

static void may_be_freed_by_a_listener(void **state)
{
    char one[] = "1:", two[] = "2:";
    heard[0] = 0;
    pg_listen(pg, "f", hear, two);
    pg_listen(pg, "f", free_when_heard, one); /* the later one is told first */
    must_hear("1:- ");
    must_query("SELECT 1");
    assert_string_equal(heard, "");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        T(connects_in_the_background),
        T(parameters_and_nulls),
        T(rows_touched),
        T(errors_carry_their_sqlstate),
        T(odd_statements_do_no_harm),
        T(copy_from_the_client_is_refused),
        T(open_transactions_are_rolled_back),
        T(settings_of_the_session),
        T(large_parameters_are_flushed),
        T(statements_run_in_order_and_the_queue_is_bounded),
        T(a_statement_out_of_time_is_cancelled_at_the_server),
        T(a_waiting_statement_out_of_time_is_not_sent),
        T(server_restart_is_survived),
        T(in_flight_when_the_server_dies_errs_once),
        T(killed_backend_while_idle_is_noticed),
        T(bad_urls_are_refused_without_the_password),
        T(wrong_password_is_told_without_it),
        T(hanging_and_unknown_hosts_are_passed_over),
        T(back_off_grows),
        T(may_be_freed_from_its_callback),
        T(results_come_in_the_order_of_the_statements),
        T(an_error_undoes_all_and_names_its_statement),
        T(an_error_at_the_commit_undoes_all),
        T(bytes_go_both_ways),
        T(statements_are_prepared_once),
        T(failures_leave_prepared_statements_right),
        T(more_texts_than_names_still_run),
        T(a_crash_in_mid_transaction_leaves_it_unknown),
        T(a_session_ended_in_mid_transaction_says_so),
        T(a_transaction_out_of_time_is_unknown_only_when_sent),
        T(the_queue_is_bounded_in_bytes),
        T(notifications_arrive_and_reconnects_are_told),
        T(notifications_arrive_while_statements_run),
        T(may_be_freed_by_a_listener),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER")); /* NULL: all */
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
