/* fleet.h: the instances: address, health, admin state, load. Sole writer of up and down. */
#ifndef FLEET_H
#define FLEET_H

#include "config.h"
#include "metrics.h"
#include <sys/socket.h>

enum node_health { NODE_UP, NODE_SUSPECT, NODE_DOWN };
enum node_admin { NODE_READY, NODE_DRAIN, NODE_MAINT };

/* What is known of a subject (an instance, or one collection on an instance) since it last was
 * well: the material of policies/failover.lua. Streaks: a good one of the kind resets them. */
struct history {
    unsigned fails, passes; /* probes in a row */
    unsigned connect_fails; /* requests in a row that found no connection */
    unsigned timeouts;      /* requests in a row without an answer in time */
    unsigned resets;        /* requests in a row broken off or answered with garbage */
    unsigned errors_5xx;    /* requests in a row answered 5xx (501 and 503 do not count) */
    unsigned oks;           /* requests in a row that were answered */
    double
        busy_since; /* loop time since when the heartbeat answers and the data probe does not; 0 */
    char last_error[96]; /* one line, "" when there was none */
};

/* One collection on one instance that has answered 5xx lately. */
struct collection_state {
    struct collection_state *next; /* of the same node */
    char id[37];
    char *path; /* "/api/v2/tenants/…/collections/<id>", for its probes */
    enum node_health health;
    double since;
    struct history history;
};

struct node {
    char *name, *url, *host;
    int port;
    enum config_role role;
    long priority, weight, maxconn;
    unsigned id; /* 0..63, unique among the living: bit in a request's set of tried nodes */

    struct sockaddr_storage addr;
    socklen_t addr_len;    /* 0: not resolved yet */
    unsigned addr_changes; /* how often its address became another one */

    enum node_health health;
    enum node_admin admin;
    bool removed;         /* not in the configuration any more: freed when its last user leaves */
    double since;         /* loop time of the last change of health */
    double slow_start_at; /* loop time since when its weight grows; 0: full weight */
    struct history history;
    struct collection_state *collections;
    unsigned collection_count;

    unsigned inflight, queued; /* requests on it, requests waiting for it */
    unsigned syncing;          /* tasks of sync that write to it (lua/lb/sync_clients.lua) */
    unsigned users;            /* requests, probes and connections that hold this node */
    double ewma_ms; /* time to first byte, peak-sensitive: rises at once, decays over 10 s */
    double ewma_at;
    double swrr;         /* current value of the smooth weighted round-robin */
    uint64_t requests;   /* tries sent to it */
    uint64_t failures;   /* tries that ended without an answer */
    uint64_t answers[6]; /* by class of status: 1xx … 5xx; [0] unused */
    uint64_t probes, probe_fails;
    double probe_ms;      /* of the last good probe */
    double last_check;    /* unix time; 0: never */
    double last_failure;  /* unix time of the last failed probe or try; 0: never */
    struct histo latency; /* time to first byte */

    void *pool;    /* pool.c's part */
    void *courier; /* courier.c's part; NULL while the journal is off */
    void *probe;   /* probe.c's part */
};

enum { FLEET_MAX = 64, FLEET_COLLECTIONS_MAX = 256 };

/* The living nodes, in the order of the configuration (priority first). */
extern struct node *fleet_node[FLEET_MAX];
extern unsigned fleet_count;

/* Makes the fleet what the configuration says, by name: known nodes keep health, load and averages
 * and take over new weights; a node whose host or port changed is a new node; one that is gone is
 * marked removed and drains. New nodes start NODE_SUSPECT (they may serve only when nothing else
 * can) until their first probe. `now` is loop time. */
void fleet_configure(const struct config *c, double now);
void fleet_free_all(void);

struct node *fleet_find(struct str name); /* NULL: no living node has it */
struct node *fleet_primary(void);         /* the node whose role is primary */
const char *fleet_health_name(enum node_health h);
const char *fleet_admin_name(enum node_admin a);

/* A holder of a node keeps it alive; the last one of a removed node frees it. */
void fleet_hold(struct node *n);
void fleet_release(struct node **n);

/* May n take a request now? `last_resort` admits suspects: used when nobody is up. The one place
 * that knows the rule. collection is "" or a UUID of 36 bytes. */
bool fleet_can_serve(const struct node *n, const char *collection, bool last_resort);

/* Health changes, told to observers after they are made. collection is NULL for the instance. */
void fleet_set_health(struct node *n, struct collection_state *c, enum node_health to,
                      const char *reason, double now);
typedef void fleet_observer(struct node *n, struct collection_state *c, enum node_health was,
                            const char *reason);
void fleet_observe(fleet_observer *fn); /* at most 8, for ever */
/* Told when a node joins (true) or is about to be freed (false). */
typedef void fleet_membership(struct node *n, bool joins);
void fleet_observe_membership(fleet_membership *fn);

struct collection_state *fleet_collection(struct node *n, const char *id); /* NULL: nothing known */
/* Finds or makes it; NULL when the node already has FLEET_COLLECTIONS_MAX of them. */
struct collection_state *fleet_collection_note(struct node *n, const char *id, struct str path);
void fleet_collection_forget(struct node *n, struct collection_state *c);

/* The weight that counts now: the configured one, less during slow start (never under 1 %). */
double fleet_weight(const struct node *n, double now, double slow_start);
/* A try was answered: time to first byte in seconds. */
void fleet_note_latency(struct node *n, double seconds, double now);

#endif
