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
 * The first three bytes choose: see struct plan (path_peers.h). Runs in the folder of the
 * repository, whose policies/ it loads. */
#include "path_model.h"
#include "path_peers.h"

#include "access.h"
#include "admin.h"
#include "api.h"
#include "log.h"
#include "policy.h"
#include "pool.h"
#include "probe.h"
#include "proxy.h"

#include <stdio.h>

enum { INPUT_MAX = 4096, QUIET_TURNS = 8 };

#define PATIENCE 5.0 /* seconds for what must happen, on a machine that is busy */

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

static struct ev_loop *loop;
static struct config *cfg;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

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
        origins_speak();
        if (client.fd >= 0)
            client_write(p, n);
        if (client.fd >= 0) {
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

static const char *judge_request(const struct expected *e, const struct message *m)
{
    if (!same(&m->start, &e->start))
        return "a server got another start line";
    if (!begins(&m->fields, &e->fields))
        return "a server got other fields";
    if (m->complete && !e->whole)
        return "a body that is not whole looks so to a server";
    if (!begins(&e->body, &m->body))
        return "a server got another body";
    if (!m->complete && plan.client != PATIENT)
        return NULL;
    if (m->complete != e->whole)
        return "a server did not get a body to its end";
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
    if (e->fate == FATE_PROXIED && !e->bad && !is_good_body(&a->body, e->head))
        return "an answer has another body";
    return NULL;
}

/* The client's bytes are all sent and nothing moves. Requests whose handling hangs on the moment in
 * which bytes came (a refused one with a body closes the connection, unless the body was there
 * already) make what follows uncertain, but never wrong. */
static const char *judge_client(void)
{
    unsigned reached = 0, got = 0;
    bool maybe = plan.client != PATIENT, ended = false, open_end = false;
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
            if (why && (a->complete || plan.client == PATIENT))
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
    if (client.reset && plan.client == PATIENT)
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
    if (plan.then == 3)
        return NULL;
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
        .client = !(data[0] & 1) && (data[1] & 3) < 3 ? data[1] & 3 : PATIENT,
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
    client_open(bodiless);
    settle(p, size, plan.from_server ? judge_server : judge_client);

    if (plan.half_close && client.fd >= 0) {
        client_leaves();
        settle(p, size, judge_end);
    }
    client_dies();
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

static void configure(const int ports[ORIGINS])
{
    char url[ORIGINS][64];
    for (unsigned i = 0; i < ORIGINS; i++)
        snprintf(url[i], sizeof url[i], "http://127.0.0.1:%d", ports[i]);
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
    int ports[ORIGINS];
    loop = ev_default_loop(EVFLAG_AUTO);
    log_set_fd(-1);
    stream_start(loop);
    wheel_start(loop);
    peers_start(loop, ports);
    configure(ports);
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
