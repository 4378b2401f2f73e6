/* fleet.c: owns the nodes from the configuration that names them until their last user leaves.
 * Nobody else writes health, since, slow_start_at or the list of the living. */
#include "fleet.h"

#include "log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define EWMA_SECONDS  10.0
#define OBSERVERS_MAX 8

struct node *fleet_node[FLEET_MAX];
unsigned fleet_count;

/* How many nodes carry each id: a removed node keeps its id while somebody holds it, since requests
 * remember by id where they have been. */
static unsigned id_nodes[FLEET_MAX];

static fleet_observer *observers[OBSERVERS_MAX];
static fleet_membership *memberships[OBSERVERS_MAX];
static unsigned observer_count, membership_count;

static const char *const health_names[] = {"up", "suspect", "down"};
static const char *const admin_names[] = {"ready", "drain", "maint"};

const char *fleet_health_name(enum node_health h)
{
    return health_names[h];
}

const char *fleet_admin_name(enum node_admin a)
{
    return admin_names[a];
}

void fleet_observe(fleet_observer *fn)
{
    must(observer_count < OBSERVERS_MAX);
    observers[observer_count++] = fn;
}

void fleet_observe_membership(fleet_membership *fn)
{
    must(membership_count < OBSERVERS_MAX);
    memberships[membership_count++] = fn;
}

static void tell_membership(struct node *n, bool joins)
{
    for (unsigned i = 0; i < membership_count; i++)
        memberships[i](n, joins);
}

/* ---- life of a node -------------------------------------------------------------------------- */

/* The lowest id that no node carries. When removed nodes hold so many that none is left, the lowest
 * that no living node carries: a request that met the old one may then pass the new one by, once.
 */
static unsigned free_id(void)
{
    for (unsigned id = 0; id < FLEET_MAX; id++)
        if (id_nodes[id] == 0)
            return id;
    uint64_t living = 0;
    for (unsigned i = 0; i < fleet_count; i++)
        living |= UINT64_C(1) << fleet_node[i]->id;
    must(~living != 0);
    return (unsigned)__builtin_ctzll(~living);
}

static struct node *node_new(const struct config_instance *in, double now)
{
    struct node *n = base_zalloc(sizeof *n);
    n->name = base_strdup(in->name);
    n->url = base_strdup(in->url);
    n->host = base_strdup(in->host);
    n->port = in->port;
    n->health = NODE_SUSPECT;
    n->since = now;
    n->id = free_id();
    id_nodes[n->id]++;
    return n;
}

static void node_free(struct node *n)
{
    must(n->removed && n->users == 0);
    tell_membership(n, false);
    must(n->users == 0);
    id_nodes[n->id]--;
    while (n->collections)
        fleet_collection_forget(n, n->collections);
    free(n->name);
    free(n->url);
    free(n->host);
    free(n);
}

static void take_settings(struct node *n, const struct config_instance *in)
{
    if (strcmp(n->url, in->url) != 0) {
        free(n->url);
        n->url = base_strdup(in->url);
    }
    n->role = in->role;
    n->priority = in->priority;
    n->weight = in->weight;
    n->maxconn = in->maxconn;
}

static bool same_place(const struct node *n, const struct config_instance *in)
{
    return n->port == in->port && strcasecmp(n->host, in->host) == 0 &&
           strcmp(n->name, in->name) == 0;
}

/* Takes the node that `in` describes out of `was`, or gives NULL. */
static struct node *claim(struct node **was, unsigned count, const struct config_instance *in)
{
    for (unsigned i = 0; i < count; i++)
        if (was[i] && same_place(was[i], in)) {
            struct node *n = was[i];
            was[i] = NULL;
            return n;
        }
    return NULL;
}

/* Order: known nodes are claimed and the rest leaves the list, then new nodes get ids and join,
 * then observers hear of them, and only then what nobody holds is freed. So an observer always sees
 * the list as the new configuration wants it. */
static void change_to(const struct config_instance *in, unsigned count, double now)
{
    must(count <= FLEET_MAX);
    struct node *was[FLEET_MAX], *joined[FLEET_MAX];
    unsigned was_count = fleet_count, joined_count = 0;
    memcpy(was, fleet_node, sizeof was);
    struct node *known[FLEET_MAX] = {NULL};
    fleet_count = 0;
    for (unsigned i = 0; i < count; i++) {
        known[i] = claim(was, was_count, &in[i]);
        if (known[i])
            fleet_node[fleet_count++] = known[i];
    }
    for (unsigned i = 0; i < was_count; i++)
        if (was[i])
            was[i]->removed = true;
    /* free_id() reads the list, so each newcomer is in it before the next one asks. */
    for (unsigned i = 0; i < count; i++)
        if (!known[i]) {
            known[i] = joined[joined_count++] = node_new(&in[i], now);
            fleet_node[fleet_count++] = known[i];
        }
    for (unsigned i = 0; i < count; i++) {
        fleet_node[i] = known[i];
        take_settings(known[i], &in[i]);
    }
    for (unsigned i = 0; i < joined_count; i++) {
        log_info("instance_joined", "name=%s url=%s", joined[i]->name, log_quote(joined[i]->url));
        tell_membership(joined[i], true);
    }
    for (unsigned i = 0; i < was_count; i++)
        if (was[i]) {
            if (count > 0) /* else it is the end of the process */
                log_info("instance_removed", "name=%s url=%s users=%u", was[i]->name,
                         log_quote(was[i]->url), was[i]->users);
            if (was[i]->users == 0)
                node_free(was[i]);
        }
}

void fleet_configure(const struct config *c, double now)
{
    change_to(c->instance, c->instance_count, now);
}

void fleet_free_all(void)
{
    change_to(NULL, 0, 0);
}

void fleet_hold(struct node *n)
{
    n->users++;
}

void fleet_release(struct node **np)
{
    struct node *n = *np;
    *np = NULL;
    must(n->users > 0);
    if (--n->users == 0 && n->removed)
        node_free(n);
}

struct node *fleet_find(struct str name)
{
    for (unsigned i = 0; i < fleet_count; i++)
        if (str_eq(str_from(fleet_node[i]->name), name))
            return fleet_node[i];
    return NULL;
}

struct node *fleet_primary(void)
{
    for (unsigned i = 0; i < fleet_count; i++)
        if (fleet_node[i]->role == CONFIG_PRIMARY)
            return fleet_node[i];
    return NULL;
}

/* ---- health ---------------------------------------------------------------------------------- */

bool fleet_can_serve(const struct node *n, const char *collection, bool last_resort)
{
    if (n->removed || n->admin != NODE_READY || n->addr_len == 0 || n->health == NODE_DOWN)
        return false;
    if (last_resort)
        return true;
    if (n->health != NODE_UP)
        return false;
    if (!*collection)
        return true;
    for (const struct collection_state *c = n->collections; c; c = c->next)
        if (c->health == NODE_DOWN && strcmp(c->id, collection) == 0)
            return false;
    return true;
}

/* A subject that is well again starts with a clean sheet; one that is down has to earn its passes
 * anew. busy_since stays: a busy server is busy whatever we think of it. */
static void turn_page(struct history *h, enum node_health to)
{
    if (to == NODE_UP) {
        h->fails = h->connect_fails = h->timeouts = h->resets = h->errors_5xx = 0;
        h->last_error[0] = 0;
    } else if (to == NODE_DOWN) {
        h->passes = h->oks = 0;
    }
}

/* slow_start_at is set when a node leaves down, and again when it goes on from there to up: a
 * suspect whose slow start began as it became suspect comes from down. */
static void mark_slow_start(struct node *n, enum node_health to, double now)
{
    bool from_down = n->health == NODE_DOWN || (n->health == NODE_SUSPECT && n->slow_start_at > 0 &&
                                                n->slow_start_at == n->since);
    if (to == NODE_DOWN)
        n->slow_start_at = 0;
    else if (from_down)
        n->slow_start_at = now;
}

static void tell_health(const struct node *n, const struct collection_state *c,
                        enum node_health was, enum node_health to, const char *reason)
{
    static const char *const instance_events[] = {"instance_up", "instance_suspect",
                                                  "instance_down"};
    static const char *const collection_events[] = {"collection_up", "collection_suspect",
                                                    "collection_down"};
    enum log_level level = to == NODE_UP ? LOG_INFO : LOG_WARN;
    if (c)
        log_event(level, collection_events[to], "name=%s collection=%s was=%s reason=%s", n->name,
                  c->id, health_names[was], log_quote(reason));
    else
        log_event(level, instance_events[to], "name=%s was=%s reason=%s", n->name,
                  health_names[was], log_quote(reason));
}

void fleet_set_health(struct node *n, struct collection_state *c, enum node_health to,
                      const char *reason, double now)
{
    enum node_health was = c ? c->health : n->health;
    /* Requests that a removed node still answers say nothing about the fleet, where another node
     * may have its name by now. */
    if (to == was || n->removed)
        return;
    char why[256]; /* reason may be the last_error that the new page wipes */
    snprintf(why, sizeof why, "%s", reason ? reason : "");
    if (c) {
        c->health = to;
        c->since = now;
    } else {
        mark_slow_start(n, to, now);
        n->health = to;
        n->since = now;
    }
    turn_page(c ? &c->history : &n->history, to);
    tell_health(n, c, was, to, why);
    for (unsigned i = 0; i < observer_count; i++)
        observers[i](n, c, was, why);
}

/* ---- collections ----------------------------------------------------------------------------- */

struct collection_state *fleet_collection(struct node *n, const char *id)
{
    for (struct collection_state *c = n->collections; c; c = c->next)
        if (strcmp(c->id, id) == 0)
            return c;
    return NULL;
}

struct collection_state *fleet_collection_note(struct node *n, const char *id, struct str path)
{
    struct collection_state *c = fleet_collection(n, id);
    if (c || n->collection_count == FLEET_COLLECTIONS_MAX)
        return c;
    must(strlen(id) < sizeof c->id);
    c = base_zalloc(sizeof *c);
    memcpy(c->id, id, strlen(id));
    c->path = base_printf("%.*s", (int)path.n, path.p ? path.p : "");
    c->next = n->collections;
    n->collections = c;
    n->collection_count++;
    return c;
}

void fleet_collection_forget(struct node *n, struct collection_state *c)
{
    struct collection_state **at = &n->collections;
    while (*at && *at != c)
        at = &(*at)->next;
    must(*at == c);
    *at = c->next;
    n->collection_count--;
    free(c->path);
    free(c);
}

/* ---- load ------------------------------------------------------------------------------------ */

double fleet_weight(const struct node *n, double now, double slow_start)
{
    double full = (double)n->weight;
    if (n->slow_start_at <= 0 || slow_start <= 0)
        return full;
    double share = (now - n->slow_start_at) / slow_start;
    return full * (share >= 1 ? 1 : share < 0.01 ? 0.01 : share);
}

void fleet_note_latency(struct node *n, double seconds, double now)
{
    double ms = seconds * 1000;
    if (ms > n->ewma_ms) {
        n->ewma_ms = ms;
    } else {
        double kept = exp(-(now > n->ewma_at ? now - n->ewma_at : 0) / EWMA_SECONDS);
        n->ewma_ms = n->ewma_ms * kept + ms * (1 - kept);
    }
    n->ewma_at = now;
}
