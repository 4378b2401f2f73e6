/* pool.c: owns kept connections and queues. A slot that comes free is handed on once the turn of
 * the loop is over, so that no caller is re-entered. */
#include "pool.h"

#include "log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

/* What the pool knows of one node. */
struct pool {
    struct node *node;
    struct conn idle;          /* list head: next is the last used */
    struct pool_place waiting; /* list head: next is the first in line */
    unsigned idle_count, open_count;
    bool waking;
    struct pool *next_leaving;
    struct dns_query *query;
    ev_timer lookup;
};

static const struct config *cfg;
static struct dns *dns;
static ev_timer sweeper;
static ev_prepare waker; /* hands freed slots on once a turn of the loop is over */
static bool wake_due;

static struct pool *pool_of(const struct node *n)
{
    return n->pool;
}

static void conn_unlink(struct conn *c)
{
    c->prev->next = c->next;
    c->next->prev = c->prev;
    c->next = c->prev = NULL;
    pool_of(c->node)->idle_count--;
    gauge_add(UPSTREAM_IDLE, -1);
}

void pool_drop(struct conn **cp)
{
    struct conn *c = *cp;
    *cp = NULL;
    if (c->next)
        conn_unlink(c);
    pool_of(c->node)->open_count--;
    stream_close(&c->stream);
    fleet_release(&c->node);
    free(c);
}

/* A kept connection must stay silent: bytes or an end on it mean that it is of no more use. */
static void idle_event(struct conn *c, enum stream_event e)
{
    (void)e;
    pool_drop(&c);
}

static void conn_event(struct stream *s, enum stream_event e)
{
    struct conn *c = container_of(s, struct conn, stream);
    c->event(c, e);
}

/* A whole head must fit. */
static uint32_t unread_cap(void)
{
    return cfg->max_head > STREAM_BLOCK ? (uint32_t)cfg->max_head : STREAM_BLOCK;
}

struct conn *pool_take(struct node *n, void (*event)(struct conn *, enum stream_event), void *owner)
{
    struct pool *p = pool_of(n);
    struct conn *c = p->idle.next;
    if (c == &p->idle)
        return NULL;
    conn_unlink(c);
    c->event = event;
    c->owner = owner;
    c->requests++;
    if (c->stream.in.cap < unread_cap())
        c->stream.in.cap = unread_cap(); /* a reload raised it */
    metrics_inc(UPSTREAM_REUSES);
    return c;
}

struct conn *pool_connect(struct node *n, void (*event)(struct conn *, enum stream_event),
                          void *owner)
{
    must(n->addr_len > 0);
    struct conn *c = base_zalloc(sizeof *c);
    metrics_inc(UPSTREAM_CONNECTS);
    if (!stream_connect(&c->stream, (struct sockaddr *)&n->addr, n->addr_len, unread_cap(),
                        conn_event)) {
        int err = errno;
        free(c);
        errno = err;
        return NULL;
    }
    c->node = n;
    fleet_hold(n);
    pool_of(n)->open_count++;
    c->event = event;
    c->owner = owner;
    c->opened = base_clock();
    c->requests = 1;
    c->addr_changes = n->addr_changes;
    return c;
}

static bool keepable(const struct conn *c, double now)
{
    const struct pool *p = pool_of(c->node);
    return !c->stream.eof && !c->stream.connecting && buf_len(&c->stream.in) == 0 &&
           stream_unsent(&c->stream) == 0 && !c->node->removed &&
           c->addr_changes == c->node->addr_changes &&
           p->idle_count < (unsigned)cfg->upstream_max_idle &&
           (cfg->upstream_max_age == 0 || now - c->opened < cfg->upstream_max_age) &&
           (cfg->upstream_max_requests == 0 || c->requests < (unsigned)cfg->upstream_max_requests);
}

void pool_give(struct conn **cp)
{
    struct conn *c = *cp;
    double now = base_clock();
    if (!keepable(c, now)) {
        pool_drop(cp);
        return;
    }
    *cp = NULL;
    struct pool *p = pool_of(c->node);
    c->event = idle_event;
    c->owner = NULL;
    c->idle_until = now + cfg->upstream_idle_timeout;
    c->prev = &p->idle;
    c->next = p->idle.next;
    p->idle.next->prev = c;
    p->idle.next = c;
    p->idle_count++;
    gauge_add(UPSTREAM_IDLE, 1);
    stream_read_on(&c->stream);
}

enum pool_entry pool_enter(struct node *n, struct pool_place *place)
{
    struct pool *p = pool_of(n);
    if (n->inflight < (unsigned)n->maxconn && p->waiting.next == &p->waiting) {
        n->inflight++;
        return POOL_IN;
    }
    if (n->queued >= (unsigned)cfg->max_queue)
        return POOL_FULL;
    place->node = n;
    place->next = &p->waiting;
    place->prev = p->waiting.prev;
    p->waiting.prev->next = place;
    p->waiting.prev = place;
    n->queued++;
    gauge_add(QUEUED, 1);
    return POOL_QUEUED;
}

void pool_quit(struct pool_place *place)
{
    if (!place->next)
        return;
    place->prev->next = place->next;
    place->next->prev = place->prev;
    place->next = place->prev = NULL;
    place->node->queued--;
    gauge_add(QUEUED, -1);
}

static void wake_later(struct pool *p)
{
    p->waking = wake_due = true;
}

void pool_leave(struct node *n)
{
    must(n->inflight > 0);
    n->inflight--;
    if (n->queued > 0)
        wake_later(pool_of(n));
}

/* Slots that came free go to those who wait; all of them leave a node that can't serve any more. A
 * turn may start and end requests at once, which sets waking again: hence the bound. */
static void wake(struct node *n)
{
    struct pool *p = pool_of(n);
    if (!p->waking)
        return;
    p->waking = false;
    bool gone = n->removed || n->health == NODE_DOWN || n->admin != NODE_READY;
    fleet_hold(n);
    for (unsigned todo = n->queued; todo > 0 && n->queued > 0; todo--) {
        if (!gone && n->inflight >= (unsigned)n->maxconn)
            break;
        struct pool_place *place = p->waiting.next;
        pool_quit(place);
        if (!gone)
            n->inflight++;
        place->turn(place, !gone);
    }
    fleet_release(&n);
}

/* Nodes that left the fleet may still have waiters: they are met through this list. */
static struct pool *leaving;

static void wake_all(struct ev_loop *loop, ev_prepare *w, int revents)
{
    (void)loop;
    (void)w;
    (void)revents;
    for (int rounds = 0; wake_due && rounds < 4; rounds++) {
        wake_due = false;
        struct node *all[FLEET_MAX];
        unsigned n = fleet_count;
        memcpy(all, fleet_node, n * sizeof *all);
        for (unsigned i = 0; i < n; i++)
            wake(all[i]);
        while (leaving) { /* each is met once: all its waiters leave it */
            struct pool *p = leaving;
            leaving = p->next_leaving;
            struct node *node = p->node;
            wake(node);
            fleet_release(&node);
        }
    }
    if (wake_due)
        ev_feed_event(loop, &sweeper, EV_TIMER); /* come round again without sleeping */
}

static void look_up_in(struct pool *p, double seconds)
{
    ev_timer_stop(stream_loop(), &p->lookup);
    ev_timer_set(&p->lookup, seconds, 0);
    ev_timer_start(stream_loop(), &p->lookup);
}

/* An instance that is down may have moved: its name is asked for at once. */
static void on_health(struct node *n, struct collection_state *c, enum node_health was,
                      const char *reason)
{
    (void)was;
    (void)reason;
    if (c || n->health != NODE_DOWN)
        return;
    look_up_in(pool_of(n), 0);
    if (n->queued > 0)
        wake_later(pool_of(n));
}

/* The address in use as long as the name has it; where the instance is down there, the next one. */
static unsigned pick_address(const struct node *n, const struct dns_answer *a)
{
    for (unsigned i = 0; i < a->count; i++)
        if (a->v[i].len == n->addr_len && memcmp(&a->v[i].addr, &n->addr, n->addr_len) == 0)
            return n->health == NODE_DOWN ? (i + 1) % a->count : i;
    return 0;
}

static void on_address(void *arg, const struct dns_answer *a)
{
    struct pool *p = arg;
    struct node *n = p->node;
    p->query = NULL;
    if (a->count == 0) {
        log_warn("dns_failed", "instance=%s host=%s error=%s kept=%s", n->name, n->host,
                 log_quote(a->error), n->addr_len ? "yes" : "no");
        look_up_in(p, n->addr_len ? cfg->dns_interval : 1);
        return;
    }
    unsigned i = pick_address(n, a);
    if (a->v[i].len != n->addr_len || memcmp(&a->v[i].addr, &n->addr, n->addr_len) != 0) {
        if (n->addr_len)
            log_info("dns_changed", "instance=%s host=%s", n->name, n->host);
        n->addr = a->v[i].addr;
        n->addr_len = a->v[i].len;
        n->addr_changes++;
        while (p->idle.next != &p->idle) {
            struct conn *c = p->idle.next;
            pool_drop(&c);
        }
    }
    look_up_in(p, cfg->dns_interval);
}

static void look_up(struct pool *p)
{
    if (p->query)
        return;
    bool literal = false;
    struct in6_addr any;
    if (inet_pton(AF_INET, p->node->host, &any) == 1 ||
        inet_pton(AF_INET6, p->node->host, &any) == 1)
        literal = true;
    if (literal && p->node->addr_len)
        return;
    p->query = dns_resolve(dns, p->node->host, p->node->port, on_address, p);
    if (literal)
        ev_timer_stop(stream_loop(), &p->lookup);
}

static void on_lookup(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    look_up(w->data);
}

static void on_membership(struct node *n, bool joins)
{
    if (joins) {
        struct pool *p = base_zalloc(sizeof *p);
        p->node = n;
        p->idle.next = p->idle.prev = &p->idle;
        p->waiting.next = p->waiting.prev = &p->waiting;
        ev_timer_init(&p->lookup, on_lookup, 1, 0);
        p->lookup.data = p;
        n->pool = p;
        look_up(p);
        return;
    }
    struct pool *p = n->pool;
    must(p->open_count == 0 && p->waiting.next == &p->waiting);
    ev_timer_stop(stream_loop(), &p->lookup);
    if (p->query)
        dns_cancel(p->query);
    free(p);
    n->pool = NULL;
}

static void drop_idle(struct pool *p, double now, bool all)
{
    for (struct conn *c = p->idle.prev; c != &p->idle;) {
        struct conn *newer = c->prev;
        if (!all && c->idle_until > now)
            break; /* oldest first: the others are younger */
        pool_drop(&c);
        c = newer;
    }
}

static void sweep(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)w;
    (void)revents;
    for (unsigned i = 0; i < fleet_count; i++)
        drop_idle(pool_of(fleet_node[i]), base_clock(), false);
}

void pool_retire(struct node *n)
{
    must(n->removed);
    fleet_hold(n);
    drop_idle(pool_of(n), 0, true);
    if (n->queued > 0) {
        struct pool *p = pool_of(n);
        fleet_hold(n); /* the list's */
        p->next_leaving = leaving;
        leaving = p;
        wake_later(p);
    }
    fleet_release(&n);
}

void pool_start(const struct config *c, struct dns *d)
{
    cfg = c;
    dns = d;
    fleet_observe(on_health);
    fleet_observe_membership(on_membership);
    ev_timer_init(&sweeper, sweep, 1, 1);
    ev_timer_start(stream_loop(), &sweeper);
    ev_prepare_init(&waker, wake_all);
    ev_prepare_start(stream_loop(), &waker);
}

/* A shorter interval of look-ups holds from now on; nothing is put off. */
void pool_reload(const struct config *c)
{
    cfg = c;
    for (unsigned i = 0; i < fleet_count; i++) {
        ev_timer *lookup = &pool_of(fleet_node[i])->lookup;
        if (ev_is_active(lookup) && ev_timer_remaining(stream_loop(), lookup) > cfg->dns_interval) {
            ev_timer_stop(stream_loop(), lookup);
            ev_timer_set(lookup, cfg->dns_interval, 0);
            ev_timer_start(stream_loop(), lookup);
        }
    }
}

void pool_stop(void)
{
    while (leaving) {
        struct node *n = leaving->node;
        leaving = leaving->next_leaving;
        fleet_release(&n);
    }
    for (unsigned i = 0; i < fleet_count; i++)
        drop_idle(pool_of(fleet_node[i]), 0, true);
    ev_timer_stop(stream_loop(), &sweeper);
    ev_prepare_stop(stream_loop(), &waker);
}

unsigned pool_idle(const struct node *n)
{
    return pool_of(n)->idle_count;
}

unsigned pool_open(const struct node *n)
{
    return pool_of(n)->open_count;
}
