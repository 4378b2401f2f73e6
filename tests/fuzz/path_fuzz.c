/* path_fuzz.c: the whole way of a request, from a client's socket to a server's and back, in one
 * process on one real loop, wired as main.c does it, with two servers of our own.
 *
 * Either the input is what a client sends, in pieces, and the servers answer well; or a client asks
 * well and the input is what the servers answer, in pieces, before they close. It must hold that
 * - llhttp (strict) finds in all that reaches a server exactly the requests, fields and bodies that
 *   chromux's own parsers find in the client's bytes, whole and in order, never two at once;
 * - llhttp finds in all that reaches the client answers, one for each request, each of them the
 *   server's or a refusal with the right status; what was cut off never looks whole;
 * - the connection is kept or closed as HTTP says;
 * - no session, request, slot, place in a queue or connection is left in the end.
 *
 * The first three bytes choose: see struct plan. Runs in the folder of the repository, whose
 * policies/ it loads. */
#include "path_model.h"
#include "path_reader.h"

#include "access.h"
#include "admin.h"
#include "api.h"
#include "log.h"
#include "policy.h"
#include "pool.h"
#include "probe.h"
#include "proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { INPUT_MAX = 4096, ORIGINS = 2, PIECES_MAX = 24, QUIET_TURNS = 8, BIG = 200000 };

#define PATIENCE 5.0 /* seconds for what must happen, on a machine that is busy */

/* How the servers answer well. */
enum style {
    STYLE_LENGTH,
    STYLE_CHUNKED,
    STYLE_BIG,
    STYLE_CLOSE,
    STYLE_INTERIM,
    STYLE_EMPTY,
    STYLE_BIG_CHUNKED,
    STYLE_KEPT_ONCE, /* as LENGTH, and closes after it */
};

struct plan {
    bool from_server; /* the input is the servers' */
    bool local_only;  /* as a client of the admin port */
    bool lazy;        /* the client reads when nothing moves any more */
    bool half_close;  /* the client ends with FIN; else with RST */
    unsigned which;   /* the style of the servers, or what the client asks */
    unsigned when;    /* a server speaks 0: when the request is whole, 1: at its first byte, 2: at
                         once */
    unsigned then;    /* and then 0: FIN, 1: RST, 2 and 3: keeps the connection */
    size_t piece[PIECES_MAX];
    const char *p;
    size_t n;
};

/* What the client asks while the input is the servers'. */
static const struct {
    enum http1_method method;
    int minor;
    const char *text;
} asks[] = {
    {HTTP1_GET, 1, "GET /api/v2/heartbeat HTTP/1.1\r\nHost: c\r\n\r\n"},
    {HTTP1_HEAD, 1, "HEAD /api/v2/version HTTP/1.1\r\nHost: c\r\n\r\n"},
    {HTTP1_POST, 1,
     "POST /api/v2/tenants/t/databases/d/collections/11111111-1111-1111-1111-111111111111/query "
     "HTTP/1.1\r\nHost: c\r\nContent-Length: 5\r\n\r\nhello"},
    {HTTP1_POST, 1,
     "POST /api/v2/tenants/t/databases/d/collections/11111111-1111-1111-1111-111111111111/add "
     "HTTP/1.1\r\nHost: c\r\nContent-Length: 5\r\n\r\nhello"},
    {HTTP1_GET, 0, "GET /api/v2/heartbeat HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"},
    {HTTP1_GET, 1,
     "GET /api/v2/heartbeat HTTP/1.1\r\nHost: c\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
     "GET /api/v2/version HTTP/1.1\r\nHost: c\r\n\r\n"},
    {HTTP1_POST, 1,
     "POST /api/v2/tenants/t/databases/d/collections/11111111-1111-1111-1111-111111111111/add "
     "HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
     "5\r\nhello\r\n0\r\n\r\n"},
    {HTTP1_GET, 1, "GET /api/v2/collections/a:b:c HTTP/1.1\r\nHost: c\r\n\r\n"},
};

struct origin_conn {
    ev_io io;
    struct origin_conn *next;
    struct reader reader;
    struct buf out;
    bool begun, served, probe, closes, dead;
    bool deaf;   /* closed its side: hears no more requests */
    size_t said; /* bytes of the script that went into out */
    unsigned pieces;
};

static struct ev_loop *loop;
static struct config *cfg;
static struct origin {
    ev_io io;
    int port;
    unsigned index;
} origins[ORIGINS];
static struct origin_conn *conns;
static struct messages asked, answered;
static struct plan plan;
static unsigned moved; /* counts whatever happened outside of chromux */

static struct {
    int fd, door; /* -1: closed; door listens */
    struct sockaddr_in at;
    struct reader reader;
    size_t sent;
    unsigned pieces;
    bool eof, reset;
    bool cut; /* the end came in order, but within an answer */
} client;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* ---- the servers ------------------------------------------------------------------------------
 */

/* What was said on both sides, for whoever must find out why. */
static void tell(const char *why)
{
    const struct {
        const char *name;
        const struct messages *of;
    } both[] = {{"servers got", &asked}, {"client got", &answered}};
    fprintf(stderr, "%s (client: eof %d, reset %d; which %u, when %u, then %u, %s)\n", why,
            client.eof, client.reset, plan.which, plan.when, plan.then,
            plan.from_server ? "from the servers" : "from the client");
    for (unsigned b = 0; b < COUNT_OF(both); b++)
        for (unsigned i = 0; i < both[b].of->n; i++) {
            const struct message *m = both[b].of->v[i];
            fprintf(stderr, "%s %u: %.*s status %d, %s, %zu bytes of body\n%.*s", both[b].name, i,
                    (int)buf_len(&m->start), buf_data(&m->start), m->status,
                    m->complete ? "complete" : "not complete", buf_len(&m->body),
                    (int)buf_len(&m->fields), buf_data(&m->fields));
        }
    abort();
}

static int listen_on(struct sockaddr_in *at)
{
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(fd >= 0 && bind(fd, (struct sockaddr *)at, sizeof *at) == 0 && listen(fd, 64) == 0);
    must(getsockname(fd, (struct sockaddr *)at, &len) == 0);
    return fd;
}

/* With a reset, so that no port waits for late packets. */
static void close_hard(int fd)
{
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(fd);
}

static void origin_dead(struct origin_conn *c)
{
    if (c->dead)
        return;
    ev_io_stop(loop, &c->io);
    close_hard(c->io.fd);
    c->dead = true;
    moved++;
}

static void origin_watch(struct origin_conn *c)
{
    int want = EV_READ | (buf_len(&c->out) ? EV_WRITE : 0);
    if (c->dead || c->io.events == want)
        return;
    ev_io_stop(loop, &c->io);
    ev_io_set(&c->io, c->io.fd, want);
    ev_io_start(loop, &c->io);
}

static void origin_write(struct origin_conn *c)
{
    while (!c->dead && buf_len(&c->out) > 0) {
        ssize_t w = send(c->io.fd, buf_data(&c->out), buf_len(&c->out), MSG_NOSIGNAL);
        if (w < 0 && errno == EAGAIN)
            break;
        if (w < 0) {
            origin_dead(c);
            return;
        }
        buf_consume(&c->out, (size_t)w);
        moved++;
    }
    if (buf_len(&c->out) == 0 && c->closes) {
        shutdown(c->io.fd, SHUT_WR);
        c->closes = false;
        c->deaf = true;
    }
    origin_watch(c);
}

/* An answer that keeps every rule, in the style of the plan. */
static void answer_well(struct origin_conn *c, bool head)
{
    struct buf *b = &c->out;
    enum style style = c->probe ? STYLE_LENGTH : (enum style)plan.which;
    size_t length = style == STYLE_BIG ? BIG : style == STYLE_EMPTY ? 0 : 2;
    bool chunked = style == STYLE_CHUNKED || style == STYLE_BIG_CHUNKED || style == STYLE_INTERIM;
    if (style == STYLE_INTERIM)
        buf_puts(b, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    buf_puts(b, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
    if (chunked)
        buf_puts(b, "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    else if (style == STYLE_CLOSE)
        buf_puts(b, "Connection: close\r\n\r\n");
    else
        buf_printf(b, "Content-Length: %zu\r\n\r\n", length);
    c->closes = style == STYLE_CLOSE || style == STYLE_KEPT_ONCE;
    if (head)
        return;
    for (unsigned i = 0; chunked && i < (style == STYLE_BIG_CHUNKED ? 3000 : 3); i++)
        buf_puts(b, "1e;a=\"b\"\r\nthirty bytes of no importance.\r\n");
    if (chunked) {
        buf_puts(b, "0\r\nX-Sum: 1\r\n\r\n");
        return;
    }
    for (size_t i = 0; i < length; i++)
        buf_put(b, "x", 1);
}

/* The next piece of what the input says; false when all of it is out. */
static bool speak(struct origin_conn *c)
{
    if (c->said >= plan.n)
        return false;
    size_t n = c->pieces < PIECES_MAX ? plan.piece[c->pieces++] : plan.n;
    if (n == 0 || n > plan.n - c->said)
        n = plan.n - c->said;
    buf_put(&c->out, plan.p + c->said, n);
    c->said += n;
    if (c->said == plan.n && plan.then == 0)
        c->closes = true;
    origin_write(c);
    if (c->said == plan.n && plan.then == 1)
        origin_dead(c);
    moved++;
    return true;
}

static void begin_to_speak(struct origin_conn *c)
{
    c->begun = true;
    if (plan.n == 0 && plan.then == 0) {
        c->closes = true;
        origin_write(c);
    } else if (plan.n == 0 && plan.then == 1) {
        origin_dead(c);
    }
}

/* Probes are no client's request: they are answered well and forgotten. */
static bool is_probe(const struct message *m)
{
    static const char mark[] = "User-Agent=chromux-probe\nConnection=close\n";
    const char *end = "\nX-Request-Id="; /* on every request of a client's */
    return memmem(buf_data(&m->fields), buf_len(&m->fields), mark, sizeof mark - 1) &&
           !memmem(buf_data(&m->fields), buf_len(&m->fields), end, strlen(end));
}

static void origin_answer(struct origin_conn *c)
{
    const struct message *last = NULL;
    for (unsigned i = asked.n; i > 0 && !last; i--)
        if (asked.v[i - 1]->source == c->reader.source)
            last = asked.v[i - 1];
    must(last && last->complete);
    c->probe = is_probe(last);
    c->reader.waits = false;
    if (c->probe || !plan.from_server) {
        answer_well(c, memcmp(buf_data(&last->start), "HEAD ", 5) == 0);
        origin_write(c);
    } else if (plan.when == 0 || c->served || !c->begun) {
        c->said = 0;
        c->pieces = 0;
        begin_to_speak(c);
    }
    c->served = true;
}

static void on_origin_io(struct ev_loop *l, ev_io *w, int revents)
{
    struct origin_conn *c = container_of(w, struct origin_conn, io);
    char block[16384];
    if (revents & EV_WRITE)
        origin_write(c);
    if (c->dead)
        return;
    ssize_t n = recv(c->io.fd, block, sizeof block, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    moved++;
    if (n <= 0) {
        origin_dead(c);
        return;
    }
    if (c->deaf)
        return;
    reader_take(&c->reader, block, (size_t)n);
    if (c->reader.error) {
        fprintf(stderr, "a server got: %.*s\n", (int)n, block);
        tell(c->reader.error);
    }
    if (plan.from_server && plan.when == 1 && !c->begun &&
        !memmem(block, (size_t)n, "chromux-probe", 13))
        begin_to_speak(c);
    if (c->reader.waits)
        origin_answer(c);
}

static void on_accept(struct ev_loop *l, ev_io *w, int revents)
{
    struct origin *o = container_of(w, struct origin, io);
    static unsigned serial;
    int fd = accept4(o->io.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct origin_conn *c = base_zalloc(sizeof *c);
    c->next = conns;
    conns = c;
    reader_init(&c->reader, false, &asked, ++serial);
    buf_init(&c->out, 4 << 20);
    ev_io_init(&c->io, on_origin_io, fd, EV_READ);
    ev_io_start(loop, &c->io);
    if (plan.from_server && plan.when >= 2)
        begin_to_speak(c);
    moved++;
}

static void origins_close(void)
{
    while (conns) {
        struct origin_conn *c = conns;
        conns = c->next;
        origin_dead(c);
        buf_fini(&c->out);
        free(c);
    }
}

/* ---- the client -------------------------------------------------------------------------------
 */

static void client_open(void)
{
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    client.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(client.fd >= 0);
    must(connect(client.fd, (struct sockaddr *)&client.at, sizeof client.at) == 0);
    int fd = -1;
    while (fd < 0) {
        fd = accept4(client.door, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        must(fd >= 0 || errno == EAGAIN);
    }
    client.sent = 0;
    client.pieces = 0;
    client.eof = client.reset = client.cut = false;
    session_start(fd, (struct sockaddr *)&peer, plan.local_only);
}

static void client_read(void)
{
    char block[65536];
    ssize_t n = 1;
    while (!client.eof && !client.reset && n > 0) {
        n = recv(client.fd, block, sizeof block, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        moved++;
        client.eof = n == 0;
        client.reset = n < 0;
        if (client.eof)
            client.cut = !reader_end(&client.reader);
        if (n > 0)
            reader_take(&client.reader, block, (size_t)n);
        if (client.reader.error) {
            fprintf(stderr, "the client got: %.*s\n", (int)n, block);
            tell(client.reader.error);
        }
    }
}

static void client_write(const char *p, size_t n)
{
    if (client.sent >= n || client.eof || client.reset)
        return;
    size_t piece =
        plan.from_server || client.pieces >= PIECES_MAX ? 0 : plan.piece[client.pieces++];
    if (piece == 0 || piece > n - client.sent)
        piece = n - client.sent;
    ssize_t w = send(client.fd, p + client.sent, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
    client.sent = w > 0 ? client.sent + (size_t)w : n;
    moved++;
}

/* ---- turning the loop -------------------------------------------------------------------------
 */

static void on_limit(struct ev_loop *l, ev_timer *w, int revents)
{
}

/* Turns until nothing moves any more and `fine` says NULL; what it says after PATIENCE is a bug. */
static void settle(const char *p, size_t n, const char *(*fine)(void))
{
    ev_timer limit;
    ev_timer_init(&limit, on_limit, 0.005, 0.005);
    double until = ev_time() + PATIENCE;
    for (unsigned quiet = 0;;) {
        unsigned before = moved;
        ev_run(loop, EVRUN_NOWAIT);
        for (struct origin_conn *c = conns; c; c = c->next)
            if (c->begun && !c->dead)
                (void)speak(c);
        if (client.fd >= 0) {
            client_write(p, n);
            if (!plan.lazy || quiet == QUIET_TURNS / 2)
                client_read();
        }
        quiet = moved == before ? quiet + 1 : 0;
        if (quiet < QUIET_TURNS)
            continue;
        const char *why = fine ? fine() : NULL;
        if (!why)
            return;
        if (ev_time() > until)
            tell(why);
        ev_now_update(loop);
        ev_timer_again(loop, &limit);
        ev_run(loop, EVRUN_ONCE);
        ev_timer_stop(loop, &limit);
        quiet = QUIET_TURNS / 2 - 1;
    }
}

/* ---- what must hold ---------------------------------------------------------------------------
 */

static struct model model;
static struct told told;

static bool same(const struct buf *a, const struct buf *b)
{
    size_t n = buf_len(a);
    return n == buf_len(b) && (n == 0 || memcmp(buf_data(a), buf_data(b), n) == 0);
}

static bool begins(const struct buf *a, const struct buf *with)
{
    size_t n = buf_len(with);
    return n <= buf_len(a) && (n == 0 || memcmp(buf_data(a), buf_data(with), n) == 0);
}

static bool ends(const struct buf *a, const struct buf *with)
{
    size_t n = buf_len(with);
    return n <= buf_len(a) &&
           (n == 0 || memcmp(buf_data(a) + buf_len(a) - n, buf_data(with), n) == 0);
}

static void forget_probes(void)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < asked.n; i++) {
        struct messages one = {{asked.v[i]}, 1};
        if (asked.v[i]->complete && is_probe(asked.v[i]))
            messages_clear(&one);
        else
            asked.v[kept++] = asked.v[i];
    }
    asked.n = kept;
}

static const char *judge_request(const struct expected *e, const struct message *m)
{
    if (!same(&m->start, &e->start))
        return "a server got another start line";
    if (!begins(&m->fields, &e->fields))
        return "a server got other fields";
    if (m->complete != e->whole)
        return m->complete ? "a body that is not whole looks so to a server"
                           : "a server did not get a body to its end";
    if (!begins(&e->body, &m->body))
        return "a server got another body";
    if (e->whole && !same(&e->body, &m->body))
        return "a server got less of a body";
    if (e->whole && (m->field_count != e->field_count || !ends(&m->fields, &e->trailers)))
        return "a server got more or fewer fields";
    return NULL;
}

/* The n-th final answer. */
static const struct message *final_answer(unsigned n)
{
    for (unsigned i = 0; i < answered.n; i++)
        if ((answered.v[i]->status >= 200 || answered.v[i]->status == 0) && n-- == 0)
            return answered.v[i];
    return NULL;
}

static const char *judge_answer(const struct expected *e, const struct message *a)
{
    if (!a->complete)
        return "an answer did not come to its end";
    int status = e->fate == FATE_PROXIED && !e->bad ? 200 : e->status;
    if (status != 0 && a->status != status)
        return "an answer has another status";
    return NULL;
}

/* The client's bytes are all sent and nothing moves. Requests whose handling hangs on the moment in
 * which bytes came (a refused one with a body closes the connection, unless the body was there
 * already) make what follows uncertain, but never wrong. */
static const char *judge_client(void)
{
    unsigned reached = 0, got = 0;
    bool maybe = false, ended = false, open_end = false;
    forget_probes();
    for (unsigned i = 0; i < model.n; i++) {
        const struct expected *e = &model.v[i];
        bool must_reach = e->fate == FATE_PROXIED && !maybe && !e->bad;
        if (e->fate == FATE_PROXIED && reached < asked.n) {
            const char *why = judge_request(e, asked.v[reached++]);
            if (why)
                return why;
        } else if (must_reach) {
            return "a request reached no server";
        }
        open_end = e->fate == FATE_PROXIED && !e->whole && !e->bad;
        const struct message *a = final_answer(got);
        if (a && open_end)
            return "an answer came before its request was whole";
        if (a) {
            const char *why = judge_answer(e, a);
            if (why)
                return why;
            got++;
        } else if (!maybe && !open_end) {
            return "a request was not answered";
        }
        maybe = maybe || (e->fate != FATE_PROXIED && e->has_body);
        ended = e->ends;
    }
    if (reached < asked.n)
        return "a server got a request that nobody sent";
    if (final_answer(got))
        return "an answer too many";
    if (client.cut)
        return "an answer that was cut off ends in order";
    if (client.reset)
        return "the client's connection was reset";
    if (!maybe && !open_end && client.eof != ended)
        return client.eof ? "the connection was closed" : "the connection was kept";
    return NULL;
}

/* What came of the first request, when the servers have said it all. */
static const char *judge_server(void)
{
    const struct message *a = final_answer(0);
    bool closed = plan.then == 0;
    bool whole = told.whole && (!told.until_close || closed);
    if (client.cut)
        return "an answer that was cut off ends in order";
    if (plan.then == 1)
        return NULL; /* a reset may overtake what was said before it */
    if (told.bad || (!told.head && closed))
        return !a                                    ? "no answer came"
               : !a->complete                        ? "an answer did not come to its end"
               : a->status < 500 || a->status == 501 ? "garbage was relayed"
                                                     : NULL;
    if (!told.head)
        return a ? "an answer out of nothing" : NULL;
    if (!whole)
        return a && a->complete ? "a cut off answer looks whole" : NULL;
    if (!a || !a->complete)
        return "an answer was not relayed to its end";
    if (a->status != told.status)
        return "another status was relayed";
    return same(&a->body, &told.body) ? NULL : "another body was relayed";
}

static const char *judge_end(void)
{
    if (session_shared.count != 0)
        return "a session is left";
    if (metrics_gauge[GAUGE_ACTIVE] != 0 || metrics_gauge[GAUGE_CLIENTS] != 0)
        return "a request is left";
    if (metrics_gauge[GAUGE_QUEUED] != 0)
        return "a place in a queue is left";
    for (unsigned i = 0; i < fleet_count; i++)
        if (fleet_node[i]->inflight != 0 || fleet_node[i]->queued != 0)
            return "a slot is left";
    return NULL;
}

static const char *judge_conns(void)
{
    for (unsigned i = 0; i < fleet_count; i++) {
        if (pool_open(fleet_node[i]) != 0)
            return "a connection to a server is left";
        if (fleet_node[i]->users != 0)
            return "somebody holds a node";
    }
    return metrics_gauge[GAUGE_UPSTREAM_IDLE] == 0 ? NULL : "an idle connection is left";
}

/* LuaJIT keeps type bits in the upper part of its pointers, where LeakSanitizer can't see them. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libluajit\n";
}

/* ---- one input --------------------------------------------------------------------------------
 */

static void make_plan(const uint8_t *data, size_t n)
{
    plan = (struct plan){
        .from_server = data[0] & 1,
        .local_only = (data[0] & 3) == 2,
        .lazy = data[0] & 4,
        .half_close = data[0] & 8,
        .which = data[0] >> 4 & 7,
        .when = data[1] & 3,
        .then = data[1] >> 2 & 3,
        .p = (const char *)data + 3,
        .n = n - 3,
    };
    /* All at once, or in pieces whose sizes follow from one byte. */
    uint32_t x = data[2];
    for (unsigned i = 0; x != 0 && i < PIECES_MAX; i++) {
        x = x * 1664525u + 1013904223u;
        plan.piece[i] = 1 + (x >> 16) % (data[2] < 64 ? 4 : data[2] < 160 ? 40 : 400);
    }
}

/* As if the input before had never been. */
static void make_well(void)
{
    for (unsigned i = 0; i < fleet_count; i++) {
        struct node *n = fleet_node[i];
        while (n->collections)
            fleet_collection_forget(n, n->collections);
        memset(&n->history, 0, sizeof n->history);
        if (n->health != NODE_UP)
            fleet_set_health(n, NULL, NODE_UP, "a new input", ev_now(loop));
    }
}

static void start(void);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static bool bodiless[MESSAGES_MAX];
    if (n < 3 || n > INPUT_MAX)
        return 0;
    if (!loop)
        start();
    make_plan(data, n);
    make_well();
    const char *ask = asks[plan.which].text;
    const char *p = plan.from_server ? ask : plan.p;
    size_t size = plan.from_server ? strlen(ask) : plan.n;
    memset(bodiless, 0, sizeof bodiless);
    if (plan.from_server) {
        told_read(&told, cfg, asks[plan.which].method, plan.p, plan.n);
        bodiless[0] = asks[plan.which].method == HTTP1_HEAD;
    } else {
        bool streams = plan.which == STYLE_CHUNKED || plan.which == STYLE_CLOSE ||
                       plan.which == STYLE_INTERIM || plan.which == STYLE_BIG_CHUNKED;
        model_read(&model, cfg, plan.local_only, streams, p, size);
        for (unsigned i = 0; i < model.n; i++)
            bodiless[i] = model.v[i].head;
    }
    reader_init(&client.reader, true, &answered, 0);
    client.reader.bodiless = bodiless;
    client_open();
    settle(p, size, plan.from_server ? judge_server : judge_client);

    if (plan.half_close && !client.reset) {
        shutdown(client.fd, SHUT_WR);
        settle(p, size, judge_end);
    }
    close_hard(client.fd);
    client.fd = -1;
    settle(NULL, 0, judge_end);
    origins_close();
    settle(NULL, 0, judge_conns);
    origins_close(); /* probes that began meanwhile */
    model_clear(&model);
    if (plan.from_server)
        buf_fini(&told.body);
    messages_clear(&asked);
    messages_clear(&answered);
    return 0;
}

/* ---- once -------------------------------------------------------------------------------------
 */

static void configure(void)
{
    char url[ORIGINS][64];
    for (unsigned i = 0; i < ORIGINS; i++)
        snprintf(url[i], sizeof url[i], "http://127.0.0.1:%d", origins[i].port);
    const char *const settings[][2] = {
        {"PRIMARY_URL", url[0]},       {"REPLICA_URL", url[1]},       {"UNREPLICATED_READS", "any"},
        {"CHECK_INTERVAL", "3600"},    {"FAILURE_THRESHOLD", "1000"}, {"PROBE_TIMEOUT", "600"},
        {"CONNECT_TIMEOUT", "600"},    {"TRY_TIMEOUT", "600"},        {"REQUEST_TIMEOUT", "600"},
        {"HEAD_TIMEOUT", "600"},       {"BODY_TIMEOUT", "600"},       {"POLICY_TIME", "10"},
        {"MAX_HEAD_BYTES", "1024"},    {"MAX_URI_BYTES", "256"},      {"MAX_BODY_BYTES", "1024"},
        {"RETRY_BUFFER_BYTES", "100"}, {"ACCESS_LOG", "off"},
    };
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 65536);
    for (unsigned i = 0; i < COUNT_OF(settings); i++)
        config_raws_add(&raws, settings[i][0], settings[i][1], CONFIG_TEXT, "--set");
    cfg = config_build(&raws, &errors);
    must(cfg);
    config_raws_fini(&raws);
    bool loaded = policy_load(cfg, &errors);
    if (!loaded)
        fprintf(stderr, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    must(loaded);
    must(api_start(loop, "", &errors));
    buf_fini(&errors);
}

static const char *all_up(void)
{
    for (unsigned i = 0; i < fleet_count; i++)
        if (fleet_node[i]->health != NODE_UP)
            return "a server of the test's own does not pass its probe";
    return NULL;
}

/* As start_all() of main.c, but for what listens. */
static void start(void)
{
    const char *why;
    loop = ev_default_loop(EVFLAG_AUTO);
    log_set_fd(-1);
    stream_start(loop);
    wheel_start(loop);
    client.fd = -1;
    client.door = listen_on(&client.at);
    for (unsigned i = 0; i < ORIGINS; i++) {
        struct sockaddr_in at;
        ev_io_init(&origins[i].io, on_accept, listen_on(&at), EV_READ);
        ev_io_start(loop, &origins[i].io);
        origins[i].port = ntohs(at.sin_port);
    }
    configure();
    struct dns *dns = dns_new(loop, "127.0.0.1", &why);
    must(dns);
    must(access_start(loop, "off", false));
    session_shared.cfg = cfg;
    session_shared.proxy = &proxy_handler;
    session_shared.local = &admin_handler;
    pool_start(cfg, dns);
    proxy_start(cfg);
    probe_start(cfg);
    admin_start(cfg, ev_time());
    fleet_configure(cfg, ev_now(loop));
    settle(NULL, 0, all_up);
    origins_close();
    settle(NULL, 0, judge_conns);
    messages_clear(&asked);
}
