/* proxy.c: what is tried where, and what a failed try means. One exchange (exchange.c) at a time.
 *
 * Reads go to another instance until the first byte of an answer has gone to the client, within
 * MAX_TRIES, the retry budget and the request's deadline. A write is sent at most once: only a try
 * of which no byte was written may be repeated.
 *
 * With the journal, the id in the path of a data read is a logical one: each try goes to an
 * instance whose copy may be read (copies.h), under the id that the collection has there. */
#include "proxy.h"

#include "exchange.h"
#include "health.h"
#include "mapped.h"
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>

enum { RETRIES_ALWAYS = 3, FREE_MAX = 512 };

/* Seconds until a read that found the retry budget used up asks again. */
#define BUDGET_WAIT 0.05
/* Seconds between two looks for a copy that is up to date. */
#define COPY_WAIT 0.01

struct proxied {
    struct exchange x;
    struct pool_place place;
    struct request *r;
    struct proxied *next; /* in the free list */
    struct node *node;    /* held while a try or a wait is under way */
    bool slot, budgeted, stale_used;
    uint64_t tried; /* bits of node ids */
    unsigned tries;
    double total_at, queue_at, queue_since, connect_at, try_at; /* deadlines; 0: not running */
    double copy_at;    /* the next look for a copy that is up to date; 0: not waiting for one */
    double copy_until; /* when that is given up */
    double try_span; /* seconds from a try's begin, or the client's last byte, to try_at; 0: any */
    enum end_reason last;
    struct mapped map;  /* the collection of the path */
    struct str session; /* inside r->text */
};

static const struct config *cfg;
static struct proxied *free_list;
static unsigned free_count, budgeted_now;

static double now(void)
{
    return base_clock();
}

void proxy_start(const struct config *c)
{
    cfg = c;
}

void proxy_reload(const struct config *c)
{
    cfg = c;
}

void proxy_stop(void)
{
    while (free_list) {
        struct proxied *p = free_list;
        free_list = p->next;
        free(p);
    }
    free_count = 0;
}

/* ---- life of a proxied request ---- */

static struct proxied *proxied_new(struct request *r)
{
    struct proxied *p = free_list;
    if (p) {
        free_list = p->next;
        free_count--;
        memset(p, 0, sizeof *p);
    } else {
        p = base_zalloc(sizeof *p);
    }
    p->r = r;
    r->state = p;
    return p;
}

static void leave_node(struct proxied *p)
{
    if (p->slot)
        pool_leave(p->node);
    p->slot = false;
    if (p->node)
        fleet_release(&p->node);
    p->connect_at = p->try_at = p->queue_at = 0;
}

/* After this only p->r is of use. */
static struct request *proxied_free(struct proxied *p)
{
    struct request *r = p->r;
    pool_quit(&p->place);
    mapped_forget(&p->map);
    leave_node(p);
    if (p->budgeted)
        budgeted_now--;
    r->state = NULL;
    if (free_count < FREE_MAX) {
        p->next = free_list;
        free_list = p;
        free_count++;
    } else {
        free(p);
    }
    return r;
}

/* ---- deadlines ---- */

static void arm(struct proxied *p)
{
    const double all[] = {p->queue_at, p->connect_at, p->try_at, p->copy_at};
    double at = p->total_at;
    for (unsigned i = 0; i < COUNT_OF(all); i++)
        if (all[i] != 0 && (at == 0 || all[i] < at))
            at = all[i];
    request_arm(p->r, at);
}

/* ---- whom to ask ---- */

/* Without the journal nobody feeds the replicas: what depends on data is the primary's
 * (CONTRACTS.md: "Without the journal"), unless the operator vouches for the others. */
static bool primary_only(const struct request *r)
{
    return r->route.data && !copies_on &&
           (!r->route.reads || strcmp(cfg->unreplicated_reads, "any") != 0);
}

/* Nodes that may serve, whose copy lacks at most so many entries, and that were not tried yet: the
 * well ones, or, when there is none, the doubtful. */
static unsigned candidates_within(const struct proxied *p, uint64_t max_behind, struct node **out)
{
    bool primary = primary_only(p->r);
    for (int last_resort = 0; last_resort < 2; last_resort++) {
        unsigned n = 0;
        for (unsigned i = 0; i < fleet_count; i++) {
            struct node *node = fleet_node[i];
            if (primary && node->role != CONFIG_PRIMARY)
                continue;
            if (!mapped_may_read(&p->map, node, max_behind))
                continue;
            if (!(p->tried >> node->id & 1) && fleet_can_serve(node, p->map.id, last_resort))
                out[n++] = node;
        }
        if (n)
            return n;
    }
    return 0;
}

static unsigned candidates(const struct proxied *p, struct node **out)
{
    return candidates_within(p, p->map.max_behind, out);
}

/* Retries that add work to the servers are bounded by RETRY_BUDGET, in percent of the requests
 * under way, so that an overload is not multiplied. A try that found no server, or that a dying one
 * broke off, added none and needs no budget. */
static bool budget_left(const struct proxied *p)
{
    int64_t most = metrics_gauge[GAUGE_ACTIVE] * cfg->retry_budget / 100;
    if (most < RETRIES_ALWAYS)
        most = cfg->retry_budget ? RETRIES_ALWAYS : 0;
    return p->budgeted || (int64_t)budgeted_now < most;
}

static bool needs_budget(enum end_reason why)
{
    return why == END_TRY_TIMEOUT || why == END_SERVER_5XX || why == END_SERVER_GARBAGE;
}

/* After a try that did (sent) or did not reach the server: may there be another? */
static bool may_retry(const struct proxied *p, bool sent)
{
    if (p->r->answered || p->x.dropped > 0 || now() >= p->total_at)
        return false;
    if (sent && (!p->r->route.reads || p->r->route.fragile))
        return false;
    return p->tries < (unsigned)cfg->max_tries;
}

/* May there be another, and is there somebody to ask? */
static bool can_retry(const struct proxied *p, bool sent)
{
    struct node *any[FLEET_MAX];
    return may_retry(p, sent) && candidates(p, any) > 0;
}

/* As can_retry, and takes a part of the budget where `why` needs one. */
static bool take_retry(struct proxied *p, bool sent, enum end_reason why)
{
    if (!can_retry(p, sent))
        return false;
    if (!needs_budget(why))
        return true;
    if (!budget_left(p)) {
        metrics_inc(RETRIES_DENIED);
        return false;
    }
    if (!p->budgeted)
        budgeted_now++;
    p->budgeted = true;
    return true;
}

/* ---- endings ---- */

static void give_up(struct proxied *p, enum end_reason why, const char *text)
{
    struct request *r = p->r;
    bool unsure = !r->route.reads && p->x.touched;
    char message[512];
    snprintf(message, sizeof message, "%s%s", text,
             unsure ? "; whether this write was applied is not known" : "");
    snprintf(r->detail, sizeof r->detail, "%s", text);
    (void)proxied_free(p);
    if (r->answered)
        request_break(r, why);
    else
        request_error(r, why, "%s", message);
}

static void nobody(struct proxied *p)
{
    char states[400], text[480];
    if (p->map.on && !mapped_collection(&p->map)) {
        mapped_tell_unknown(&p->map, text);
        give_up(p, END_NOT_FOUND, text);
        return;
    }
    mapped_tell_states(&p->map, primary_only(p->r), p->tried, states, sizeof states);
    if (p->map.on) {
        snprintf(text, sizeof text, "no copy of this collection is up to date: %s", states);
        give_up(p, END_NO_INSTANCE, text);
        return;
    }
    snprintf(text, sizeof text, "no instance can take this request: %s", states);
    give_up(p, END_NO_INSTANCE, text);
}

/* The journal is about to bring a copy up to date: the one that was has just died, say. Looks again
 * soon, for as long as a try may take. false: there is none to wait for. */
static bool wait_for_copy(struct proxied *p)
{
    double t = now();
    if (p->copy_until == 0)
        p->copy_until = t + cfg->try_timeout;
    if (t >= p->copy_until || t >= p->total_at || !mapped_copy_is_coming(&p->map, p->tried))
        return false;
    mapped_want(&p->map);
    p->copy_at = t + COPY_WAIT;
    arm(p);
    return true;
}

/* ---- tries ---- */

static void choose(struct proxied *p);

static void begin_try(struct proxied *p)
{
    double t = now();
    if (p->map.on && !mapped_begin_try(&p->map, p->node, (char *)p->x.head.p)) {
        leave_node(p); /* it changed while we queued */
        choose(p);
        return;
    }
    p->tries++;
    p->tried |= 1ull << p->node->id;
    p->r->log.attempts = p->tries;
    p->x.node = p->node;
    memcpy(p->r->instance, p->node->name, strlen(p->node->name) + 1);
    p->connect_at = t + cfg->connect_timeout;
    p->try_at = p->try_span > 0 ? t + p->try_span : 0;
    if (p->tries > 1)
        metrics_inc(RETRIES);
    arm(p);
    exchange_start(&p->x, false); /* may end p */
}

static void on_turn(struct pool_place *place, bool slot)
{
    struct proxied *p = container_of(place, struct proxied, place);
    p->queue_at = 0;
    p->r->log.queued += now() - p->queue_since;
    if (slot) {
        p->slot = true;
        begin_try(p);
        return;
    }
    struct node *any[FLEET_MAX];
    p->tried |= 1ull << p->node->id;
    leave_node(p);
    if (candidates(p, any) > 0)
        choose(p);
    else
        nobody(p);
}

static void ask_policy(struct proxied *p, struct node *const *nodes, unsigned n,
                       struct policy_verdict *v)
{
    static double behind[FLEET_MAX];
    struct request *r = p->r;
    const struct collection *c = mapped_collection(&p->map);
    for (unsigned i = 0; c && i < n; i++)
        behind[nodes[i]->id] = (double)copies_behind(c, nodes[i]);
    struct policy_request q = {
        .route = &r->route,
        .method = str_from(r->method_text),
        .client = request_client(r),
        .collection_id = p->map.id,
        .attempt = p->tries + 1,
        .tried = p->tried,
        .last_error = p->last == END_NONE ? "" : end_name(p->last),
        .bytes = r->body.length,
        .behind = c ? behind : NULL,
        .session = p->session.n ? p->session : request_client(r),
    };
    policy_route(&q, nodes, n, now(), v);
}

/* Copies that are behind are offered only when there is no other, and taken only within what the
 * policy then allows: one that says nothing of max_behind gives no stale read. When it allows more
 * than the request did and names no node within that, it is asked once more, with those that are.
 * false: nobody may serve, and the request has ended. */
static bool pick(struct proxied *p, struct policy_verdict *v)
{
    struct node *nodes[FLEET_MAX];
    unsigned n = candidates(p, nodes);
    bool stale = n == 0 && p->map.on;
    if (stale)
        n = candidates_within(p, UINT64_MAX, nodes);
    if (n > 0)
        ask_policy(p, nodes, n, v);
    if (n > 0 && p->map.on && (stale || !v->node) && v->max_behind > (double)p->map.max_behind) {
        p->map.max_behind = (uint64_t)v->max_behind;
        stale = false;
        if (!v->node || !mapped_may_read(&p->map, v->node, p->map.max_behind)) {
            n = candidates(p, nodes);
            if (n > 0)
                ask_policy(p, nodes, n, v);
        }
    }
    if (n > 0 && !stale)
        return true;
    if (!wait_for_copy(p))
        nobody(p);
    return false;
}

static void choose(struct proxied *p)
{
    struct request *r = p->r;
    struct node *nodes[FLEET_MAX];
    struct policy_verdict v;
    if (!pick(p, &v))
        return;
    _Static_assert(sizeof r->detail == sizeof v.reason, "one is copied to the other");
    memcpy(r->detail, v.reason, strlen(v.reason) + 1);
    if (!v.node) {
        char text[200];
        snprintf(text, sizeof text, "the route policy chose no instance: %s", v.reason);
        give_up(p, END_POLICY_REFUSED, text);
        return;
    }
    p->node = v.node;
    fleet_hold(p->node);
    p->try_span = v.timeout > 0 ? v.timeout : r->route.reads ? cfg->try_timeout : 0;
    switch (pool_enter(p->node, &p->place)) {
    case POOL_IN:
        p->slot = true;
        begin_try(p);
        break;
    case POOL_QUEUED:
        p->queue_since = now();
        p->queue_at = now() + cfg->queue_timeout;
        arm(p);
        break;
    case POOL_FULL:
        p->tried |= 1ull << p->node->id;
        leave_node(p);
        if (candidates(p, nodes) > 0)
            choose(p);
        else
            give_up(p, END_QUEUE_FULL, "the queue of the instance is full (MAX_QUEUE)");
        break;
    }
}

/* ---- what tries tell ---- */

static void note_failure(struct proxied *p, enum end_reason why)
{
    struct node *n = p->node;
    n->failures++;
    if (p->r->route.fragile)
        return; /* a request that makes the server drop the connection says nothing about its health
                 */
    switch (why) {
    case END_CONNECT_FAILED:
    case END_CONNECT_TIMEOUT:
        health_note(n, NULL, HEALTH_CONNECT_FAIL, p->x.error);
        break;
    case END_TRY_TIMEOUT:
    case END_REQUEST_TIMEOUT:
    case END_SERVER_SLOW:
        health_note(n, NULL, HEALTH_TIMEOUT, p->x.error);
        break;
    case END_SERVER_RESET:
    case END_SERVER_CLOSED:
    case END_SERVER_GARBAGE:
        health_note(n, NULL, HEALTH_RESET, p->x.error);
        break;
    default:
        break;
    }
}

/* An answer of the server: 5xx counts against the collection it is about, and only as a streak
 * against the instance. 501 and 503 say "not this" and "not now", no fault. Catalog routes do not
 * touch a collection's index (and a rename to a taken name is a 500): no sign of it, good or bad.
 */
static void note_answer(struct proxied *p, int status)
{
    struct request *r = p->r;
    struct node *n = p->node;
    bool bad = status >= 500 && status != 501 && status != 503 && !r->route.fragile;
    n->answers[status / 100 <= 5 ? status / 100 : 0]++;
    if (r->log.connected > 0 && r->log.first >= r->log.connected) {
        double took = r->log.first - r->log.connected;
        histo_add(&n->latency, took);
        fleet_note_latency(n, took, now());
    }
    bool telling = r->route.class != ROUTE_CATALOG && !r->route.fragile;
    if (p->map.id[0] && telling && (bad || n->collections)) {
        const char *end = r->route.collection.p + r->route.collection.n;
        struct str path = {r->path.p, (size_t)(end - r->path.p)};
        if (p->map.on) { /* as this server knows it */
            size_t skip = strlen(r->method_text) + 1;
            path = (struct str){p->x.head.p + skip, p->map.at + sizeof p->map.physical - 1 - skip};
        }
        struct collection_state *c =
            bad ? fleet_collection_note(n, p->map.id, path) : fleet_collection(n, p->map.id);
        if (c) {
            char text[64];
            snprintf(text, sizeof text, "%s answered %d", r->route.action, status);
            health_note(n, c, bad ? HEALTH_5XX : HEALTH_OK, bad ? text : NULL);
            if (!bad && c->health == NODE_UP)
                fleet_collection_forget(n, c);
        }
    }
    health_note(n, NULL, bad ? HEALTH_5XX : HEALTH_OK, NULL);
}

static bool may_send(struct exchange *x)
{
    const struct proxied *p = container_of(x, struct proxied, x);
    return mapped_may_send(&p->map, x->node);
}

static bool on_answer(struct exchange *x, int status)
{
    struct proxied *p = container_of(x, struct proxied, x);
    note_answer(p, status);
    if (p->map.on && status >= 400 && mapped_read_error(&p->map, status, x->shown, x->shown_n)) {
        if (!mapped_lose(&p->map, p->node))
            p->tried &= ~(1ull << p->node->id);
        return false;
    }
    /* A read that one server can't answer, another may: a broken index, an overload. */
    bool other = (status >= 500 && status != 501) || status == 429;
    if (other && take_retry(p, true, END_SERVER_5XX))
        return false;
    p->connect_at = p->try_at = 0;
    p->total_at = now() + cfg->body_timeout; /* from here on only progress counts */
    arm(p);
    return true;
}

static void on_ended(struct exchange *x, enum end_reason why)
{
    struct proxied *p = container_of(x, struct proxied, x);
    if (why == END_DONE || why == END_EARLY) {
        request_finish(proxied_free(p), why);
        return;
    }
    if (why == END_NO_INSTANCE) { /* nothing was sent: it was no try */
        p->tries--;
        p->tried &= ~(1ull << p->node->id);
        leave_node(p);
        choose(p);
        return;
    }
    bool sent = x->touched;
    bool stale =
        x->reused && sent && !x->heard && (why == END_SERVER_CLOSED || why == END_SERVER_RESET);
    if (stale && p->r->route.reads && x->dropped == 0 && !p->stale_used) {
        p->stale_used = true;
        metrics_inc(STALE_RETRIES);
        p->connect_at = now() + cfg->connect_timeout;
        arm(p);
        exchange_start(x, true);
        return;
    }
    p->last = why;
    if (why != END_SERVER_5XX)
        note_failure(p, why);
    char name[CONFIG_NAME_MAX + 1], text[256];
    snprintf(name, sizeof name, "%s", p->node->name);
    leave_node(p);
    bool paid =
        why == END_TRY_TIMEOUT || why == END_SERVER_5XX; /* taken before the try was ended */
    if (paid ? can_retry(p, sent) : take_retry(p, sent, why)) {
        choose(p);
        return;
    }
    if (may_retry(p, sent) && wait_for_copy(p))
        return;
    if (p->map.lost) {
        nobody(p);
        return;
    }
    snprintf(text, sizeof text, "%s: %s", name,
             why == END_SERVER_5XX ? "the server answered with an error" : x->error);
    give_up(p, why, text);
}

/* ---- the handler ---- */

static void put_target(struct proxied *p)
{
    struct request *r = p->r;
    if (p->map.on) { /* each try writes its own id over this one */
        const char *id = r->route.collection.p, *rest = id + r->route.collection.n;
        buf_put(&r->text, r->target.p, (size_t)(id - r->target.p));
        p->map.at = r->text.tail;
        buf_puts(&r->text, p->map.id);
        buf_put(&r->text, rest, (size_t)(r->target.p + r->target.n - rest));
        return;
    }
    if (!r->route.v1_alias) {
        buf_put_str(&r->text, r->target);
        return;
    }
    /* "/api/v1/…" as "/api/v2/…" */
    buf_put_str(&r->text, STR("/api/v2"));
    buf_put(&r->text, r->target.p + 7, r->target.n - 7);
}

/* Writes the head for the server behind the target in r->text, which has room for it. */
static void put_head(struct proxied *p, struct http1_head *h)
{
    struct request *r = p->r;
    bool proto = false, host = false;
    size_t from = r->text.tail;
    const char *mem = r->text.mem;
    for (unsigned i = 0; i < h->count; i++) {
        struct http1_field *f = &h->field[i];
        if (f->id == HTTP1_EXPECT)
            f->hop = true; /* chromux answers it itself */
        proto = proto || f->id == HTTP1_X_FORWARDED_PROTO;
        host = host || f->id == HTTP1_X_FORWARDED_HOST;
    }
    buf_put_str(&r->text, h->method_text);
    buf_put(&r->text, " ", 1);
    put_target(p);
    p->map.at -= p->map.on ? from : 0;
    buf_put_str(&r->text, STR(" HTTP/1.1\r\n"));
    if (!http1_find(h, HTTP1_HOST))
        buf_put_str(&r->text, STR("Host: chromux\r\n"));
    http1_put_fields(&r->text, h);
    http1_put_framing(&r->text, r->body.framing, r->body.length);
    /* The version is the one that the client spoke (RFC 9110 7.6.3). */
    buf_put_str(&r->text, r->minor ? STR("Via: 1.1") : STR("Via: 1.0"));
    buf_put_str(&r->text, STR(" chromux\r\nX-Request-Id: "));
    buf_puts(&r->text, r->id);
    buf_put_str(&r->text, STR("\r\nX-Forwarded-For: "));
    buf_put_str(&r->text, request_client(r));
    if (!proto)
        buf_put_str(&r->text, STR("\r\nX-Forwarded-Proto: http"));
    if (!host && h->host.n) {
        buf_put_str(&r->text, STR("\r\nX-Forwarded-Host: "));
        buf_put_str(&r->text, h->host);
    }
    if (r->te_trailers)
        buf_put_str(&r->text, STR("\r\nTE: trailers\r\nConnection: TE"));
    buf_put_str(&r->text, STR("\r\n\r\n"));
    p->x.head = (struct str){r->text.mem + from, r->text.tail - from};
    for (unsigned i = 0; i < h->count; i++)
        if (h->field[i].id == HTTP1_OTHER && h->field[i].name.n == 17 &&
            str_eq_nocase(h->field[i].name, STR("X-Chromux-Session"))) {
            p->session.p = buf_data(&r->text) + buf_len(&r->text);
            p->session.n = h->field[i].value.n;
            buf_put_str(&r->text, h->field[i].value);
        }
    must(r->text.mem == mem); /* the request's slices point into it */
}

/* The engine has looked for the collection. */
static void on_looked(struct mapped *m)
{
    struct proxied *p = container_of(m, struct proxied, map);
    char text[MAPPED_TEXT_MAX];
    enum end_reason bad = mapped_found(m, &p->r->route, text);
    if (bad != END_NONE)
        give_up(p, bad, text);
    else
        choose(p);
}

static void start(struct request *r, struct http1_head *h)
{
    struct proxied *p = proxied_new(r);
    metrics_inc(PROXIED);
    char text[MAPPED_TEXT_MAX];
    enum end_reason bad =
        r->route.data && copies_expected ? mapped_start(&p->map, &r->route, h, text) : END_NONE;
    if (bad != END_NONE) {
        give_up(p, bad, text);
        return;
    }
    if (!p->map.on && !r->route.by_name && r->route.collection.n &&
        !route_uuid(r->route.collection, p->map.id))
        p->map.id[0] = 0;
    p->x.peek = p->map.on;
    p->x.r = r;
    p->x.retain = r->route.reads;
    p->x.may_send = may_send;
    p->x.wanted = on_answer;
    p->x.ended = on_ended;
    p->place.turn = on_turn;
    p->total_at = now() + cfg->request_timeout;
    put_head(p, h);
    if (mapped_ask(&p->map, on_looked))
        arm(p);
    else
        choose(p);
}

static void more(struct request *r)
{
    struct proxied *p = r->state;
    if (p->try_at != 0)
        p->try_at = now() + p->try_span; /* the answer can't be due before its request is there */
    exchange_more(&p->x);
}

/* The server has all that came of the body, and the client owes the rest: who is late is not the
 * server. */
static bool client_owes(const struct proxied *p)
{
    const struct exchange *x = &p->x;
    return x->conn && !x->conn->stream.connecting && !x->upload_dead && !p->r->body.done &&
           x->sent == p->r->body.seen && stream_unsent(&x->conn->stream) == 0;
}

static void drained(struct request *r)
{
    struct proxied *p = r->state;
    exchange_drained(&p->x);
}

static void gone(struct request *r)
{
    struct proxied *p = r->state;
    exchange_cancel(&p->x);
    (void)proxied_free(p);
}

/* The answer has begun: it may take any time as long as it moves. */
static void late_answer(struct proxied *p)
{
    double quiet = now() - p->x.progress;
    if (request_blocked(p->r) || quiet < cfg->body_timeout) {
        p->total_at =
            now() + (quiet < cfg->body_timeout ? cfg->body_timeout - quiet : cfg->body_timeout);
        arm(p);
        return;
    }
    exchange_fail(&p->x, END_SERVER_SLOW, "the server stopped in the middle of its answer");
}

/* TRY_TIMEOUT passed without an answer. */
static void late_try(struct proxied *p)
{
    if (client_owes(p)) {
        p->try_at = now() + p->try_span;
    } else if (take_retry(p, true, END_TRY_TIMEOUT)) {
        exchange_fail(&p->x, END_TRY_TIMEOUT, "no answer within TRY_TIMEOUT");
        return;
    } else if (can_retry(p, true)) {
        p->try_at = now() + BUDGET_WAIT; /* the budget is used up: wait for a place in it */
    } else {
        /* Nobody else can be asked: wait on, up to REQUEST_TIMEOUT. */
        p->try_at = 0;
        snprintf(p->x.error, sizeof p->x.error, "no answer within TRY_TIMEOUT");
        health_note(p->node, NULL, HEALTH_TIMEOUT, p->x.error);
    }
    arm(p);
}

static void late(struct request *r)
{
    struct proxied *p = r->state;
    double t = now();
    if (p->x.relaying) {
        late_answer(p);
    } else if (t >= p->total_at && client_owes(p)) {
        exchange_cancel(&p->x);
        leave_node(p);
        give_up(p, END_CLIENT_SLOW_BODY, "the request body did not arrive within REQUEST_TIMEOUT");
    } else if (t >= p->total_at && p->x.conn) {
        exchange_fail(&p->x, END_REQUEST_TIMEOUT, "no answer within REQUEST_TIMEOUT");
    } else if (p->copy_at != 0 && t >= p->copy_at) {
        p->copy_at = 0;
        choose(p);
    } else if (t >= p->total_at || (p->queue_at != 0 && t >= p->queue_at)) {
        r->log.queued += t - p->queue_since;
        give_up(p, END_QUEUE_TIMEOUT, "no slot on the instance came free in time (MAXCONN)");
    } else if (exchange_connecting(&p->x) && t >= p->connect_at) {
        exchange_fail(&p->x, END_CONNECT_TIMEOUT, "no connection within CONNECT_TIMEOUT");
    } else if (p->try_at != 0 && t >= p->try_at && p->x.conn) {
        late_try(p);
    } else {
        if (t >= p->connect_at)
            p->connect_at = 0;
        arm(p);
    }
}

const struct handler proxy_handler = {start, more, drained, late, gone};
