/* probe.c: each node has a prober: a timer, and up to three shots (one request on one connection)
 * in the air. A round ends when all its shots ended; what they mean together is told to health.c.
 *
 *   heartbeat  data probe      meaning
 *   answers    answers < 500   pass
 *   answers    silent          busy: a long write holds SQLite (2.5 s under a 37 MB add), not down
 *   answers    5xx             fail
 *   silent     answers < 500   pass (alive, the heartbeat only came late)
 *   silent     silent          fail: hung, dead or unreachable */
#include "probe.h"

#include "health.h"
#include "http1.h"
#include "log.h"
#include "stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANSWER_MAX = 16384 };

#define PAUSE_LEAST 0.02 /* seconds */

#define DATA_PATH "/api/v2/tenants/default_tenant/databases/default_database/collections_count"

struct shot {
    struct stream stream;
    struct prober *owner;
    bool flying;
    int status;          /* 0: no answer */
    const char *problem; /* static or strerror text, with status 0 */
    char request[512];
};

enum { BEAT, DATA, COLLECTION, SHOTS };

struct prober {
    struct node *node;
    ev_timer next, timeout;
    struct shot shot[SHOTS];
    double started;
    char collection[37]; /* the one asked about in this round, "" when none */
    unsigned turn;
    bool flying;
    bool hampered; /* we lack descriptors or the like: this round says nothing about the node */
};

static const struct config *cfg;

static double now(void)
{
    return base_clock();
}

/* ±10 %, so that many balancers and instances do not fall into step. */
static double jitter(double seconds)
{
    return seconds * (0.9 + 0.2 * drand48());
}

/* Seconds from the start of one round to the start of the next: fewer while something is about to
 * change. */
static double period_of(const struct node *n)
{
    const struct history *h = &n->history;
    double base = cfg->check_interval, quick = base / 4;
    bool changing = n->health == NODE_SUSPECT || (n->health == NODE_UP && h->fails > 0) ||
                    (n->health == NODE_DOWN && h->passes > 0);
    return changing ? quick : n->health == NODE_DOWN ? base / 2 : base;
}

static void round_over(struct prober *p);

static void land(struct shot *s, int status, const char *problem)
{
    struct prober *p = s->owner;
    s->status = status;
    s->problem = problem;
    s->flying = false;
    stream_close(&s->stream);
    for (unsigned i = 0; i < SHOTS; i++)
        if (p->shot[i].flying)
            return;
    round_over(p);
}

static void read_answer(struct shot *s)
{
    static struct http1_head head;
    struct http1_limits limits = {ANSWER_MAX / 2, 0};
    struct http1_fault fault;
    size_t used;
    struct buf *in = &s->stream.in;
    enum http1_verdict v =
        http1_parse_response(buf_data(in), buf_len(in), &limits, HTTP1_GET, &head, &used, &fault);
    if (v == HTTP1_OK && head.status >= 200)
        land(s, head.status, NULL);
    else if (v != HTTP1_PARTIAL)
        land(s, 0, v == HTTP1_OK ? "an interim answer" : fault.rule);
}

static void on_event(struct stream *st, enum stream_event e)
{
    struct shot *s = container_of(st, struct shot, stream);
    struct iovec v = {s->request, strlen(s->request)};
    switch (e) {
    case STREAM_CONNECTED:
        stream_read_on(st);
        if (!stream_send(st, &v, 1))
            land(s, 0, strerror(st->error));
        break;
    case STREAM_READABLE:
        read_answer(s);
        break;
    case STREAM_EOF:
        land(s, 0, "closed without an answer");
        break;
    case STREAM_ERROR:
        land(s, 0, strerror(st->error));
        break;
    case STREAM_WRITABLE:
        break;
    }
}

/* false: it could not even be started. */
static bool fire(struct prober *p, unsigned which)
{
    struct shot *s = &p->shot[which];
    s->owner = p;
    s->status = 0;
    s->problem = "no answer within PROBE_TIMEOUT";
    s->flying = stream_connect(&s->stream, (struct sockaddr *)&p->node->addr, p->node->addr_len,
                               ANSWER_MAX, on_event);
    if (!s->flying) {
        p->hampered = p->hampered || stream_own_limit(errno);
        s->problem = strerror(errno);
    }
    return s->flying;
}

static void write_request(struct prober *p, unsigned which, const char *method, const char *path,
                          const char *body)
{
    struct shot *s = &p->shot[which];
    snprintf(s->request, sizeof s->request,
             "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: chromux-probe\r\nConnection: close\r\n"
             "%s%s%zu\r\n\r\n%s",
             method, path, p->node->host, *body ? "Content-Type: application/json\r\n" : "",
             "Content-Length: ", strlen(body), body);
}

/* The next collection of this node that is not well, in turn. */
static struct collection_state *next_collection(struct prober *p)
{
    unsigned bad = 0;
    for (struct collection_state *c = p->node->collections; c; c = c->next)
        bad += c->health != NODE_UP;
    if (bad == 0)
        return NULL;
    unsigned want = p->turn++ % bad;
    for (struct collection_state *c = p->node->collections; c; c = c->next)
        if (c->health != NODE_UP && want-- == 0)
            return c;
    return NULL;
}

static void begin_round(struct prober *p)
{
    struct node *n = p->node;
    p->flying = true;
    p->hampered = false;
    p->started = now();
    p->collection[0] = 0;
    fleet_hold(n);
    for (unsigned i = 0; i < SHOTS; i++) {
        p->shot[i].status = 0;
        p->shot[i].problem = "its name is not resolved";
    }
    if (n->addr_len == 0) {
        round_over(p);
        return;
    }
    write_request(p, BEAT, "GET", "/api/v2/heartbeat", "");
    write_request(p, DATA, "GET", DATA_PATH, "");
    bool any = fire(p, BEAT);
    any = fire(p, DATA) || any;
    struct collection_state *c = next_collection(p);
    if (c && strlen(c->path) < 300) {
        char path[340];
        snprintf(path, sizeof path, "%s/get", c->path);
        memcpy(p->collection, c->id, sizeof p->collection);
        write_request(p, COLLECTION, "POST", path, "{\"limit\":1,\"include\":[\"embeddings\"]}");
        any = fire(p, COLLECTION) || any;
    }
    if (!any) {
        round_over(p);
        return;
    }
    ev_timer_set(&p->timeout, cfg->probe_timeout, 0);
    ev_timer_start(stream_loop(), &p->timeout);
}

static bool answered(const struct shot *s)
{
    return s->status > 0 && s->status < 500;
}

static void judge_collection(struct prober *p)
{
    struct collection_state *c = fleet_collection(p->node, p->collection);
    const struct shot *s = &p->shot[COLLECTION];
    if (!c || s->status == 0)
        return; /* silence is the instance's matter */
    char text[64];
    snprintf(text, sizeof text, "probe answered %d", s->status);
    if (s->status == 404) {
        fleet_collection_forget(p->node, c);
        return;
    }
    health_note(p->node, c, s->status < 500 ? HEALTH_PROBE_PASS : HEALTH_PROBE_FAIL, text);
    if (c->health == NODE_UP)
        fleet_collection_forget(p->node, c);
}

static void judge(struct prober *p)
{
    struct node *n = p->node;
    const struct shot *beat = &p->shot[BEAT], *data = &p->shot[DATA];
    char text[96];
    n->probes++;
    metrics_inc(PROBES);
    n->last_check = ev_time();
    if (answered(data)) {
        n->probe_ms = (now() - p->started) * 1000;
        health_note(n, NULL, HEALTH_PROBE_PASS, NULL);
    } else if (answered(beat) && data->status == 0) {
        health_note(n, NULL, HEALTH_BUSY, NULL);
    } else {
        const struct shot *s = answered(beat) ? data : beat;
        if (s->status)
            snprintf(text, sizeof text, "%s answered %d", s == data ? "data probe" : "heartbeat",
                     s->status);
        else
            snprintf(text, sizeof text, "probe: %s", s->problem);
        n->probe_fails++;
        metrics_inc(PROBES_FAILED);
        health_note(n, NULL, HEALTH_PROBE_FAIL, text);
    }
    if (p->collection[0])
        judge_collection(p);
}

static void plan(struct prober *p, double after)
{
    ev_timer_stop(stream_loop(), &p->next);
    ev_timer_set(&p->next, after, 0);
    ev_timer_start(stream_loop(), &p->next);
}

static void round_over(struct prober *p)
{
    struct node *n = p->node;
    ev_timer_stop(stream_loop(), &p->timeout);
    p->flying = false;
    if (!n->removed) {
        if (!p->hampered)
            judge(p);
        double pause = jitter(period_of(n)) - (now() - p->started);
        plan(p, pause > PAUSE_LEAST ? pause : PAUSE_LEAST);
    }
    fleet_release(&n); /* may free the node, and with it p */
}

static void on_timeout(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    struct prober *p = container_of(w, struct prober, timeout);
    for (unsigned i = 0; i < SHOTS; i++) {
        if (p->shot[i].flying)
            stream_close(&p->shot[i].stream);
        p->shot[i].flying = false;
    }
    round_over(p);
}

static void on_next(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    struct prober *p = container_of(w, struct prober, next);
    if (!p->flying && !p->node->removed)
        begin_round(p);
}

/* A request found trouble: ask now. */
static void on_health(struct node *n, struct collection_state *c, enum node_health was,
                      const char *reason)
{
    (void)was;
    (void)reason;
    struct prober *p = n->probe;
    if (p && !p->flying && !n->removed && (c || n->health == NODE_SUSPECT))
        plan(p, 0);
}

static void on_membership(struct node *n, bool joins)
{
    if (joins) {
        struct prober *p = base_zalloc(sizeof *p);
        p->node = n;
        n->probe = p;
        for (unsigned i = 0; i < SHOTS; i++)
            p->shot[i].stream.fd = -1;
        ev_timer_init(&p->next, on_next, 0, 0);
        ev_timer_init(&p->timeout, on_timeout, 1, 0);
        plan(p, 0.005);
        return;
    }
    struct prober *p = n->probe;
    ev_timer_stop(stream_loop(), &p->next);
    ev_timer_stop(stream_loop(), &p->timeout);
    free(p);
    n->probe = NULL;
}

void probe_start(const struct config *c)
{
    cfg = c;
    srand48((long)(ev_time() * 1e6));
    fleet_observe(on_health);
    fleet_observe_membership(on_membership);
}

/* A shorter interval holds from now on; nothing is put off, or frequent reloads would stop probing.
 */
void probe_reload(const struct config *c)
{
    cfg = c;
    for (unsigned i = 0; i < fleet_count; i++) {
        struct prober *p = fleet_node[i]->probe;
        double period = jitter(period_of(fleet_node[i]));
        if (!p->flying && period < ev_timer_remaining(stream_loop(), &p->next))
            plan(p, period);
    }
}

void probe_stop(void)
{
    for (unsigned i = 0; i < fleet_count; i++) {
        struct node *n = fleet_node[i];
        struct prober *p = n->probe;
        ev_timer_stop(stream_loop(), &p->next);
        ev_timer_stop(stream_loop(), &p->timeout);
        for (unsigned k = 0; k < SHOTS; k++)
            if (p->shot[k].flying)
                stream_close(&p->shot[k].stream);
        if (p->flying) {
            p->flying = false;
            fleet_release(&n);
        }
    }
}
