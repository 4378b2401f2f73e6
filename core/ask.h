/* ask.h: what route() is asked: req and nodes as Lua tables that are made once and kept up to date.
 *
 * Only what changed since the last call is written: C keeps a shadow of every value that a table
 * holds. The tables lie behind read-only views, out of every policy's reach, so a shadow cannot be
 * wrong. The functions here run inside an entry function (a C closure), whose upvalues hold all
 * they need: looking things up by name would cost more than the policy itself. */
#ifndef ASK_H
#define ASK_H

#include "fleet.h"
#include "route.h"

struct lua_State;

struct policy_request {
    const struct route *route;
    struct str method, client; /* client: address without port */
    const char *collection_id; /* normalised UUID, "" when the path has none */
    unsigned attempt;          /* 1 for the first try */
    uint64_t tried;            /* bits of node ids tried before */
    const char *last_error;    /* end reason of the last try, "" at the first */
    uint64_t bytes;            /* of the body, 0 when not known */
    const double *behind; /* by node id: entries that its copy of this collection lacks; NULL: 0 */
    struct str session;   /* what `sticky` keeps together: X-Chromux-Session, else client */
};

enum { ASK_TEXTS = 10, ASK_NUMBERS = 2, ASK_NODE_NUMBERS = 10, ASK_TEXT_MAX = 80 };

/* What a node's table holds. `name` is the VM's own string: equal names have equal addresses. */
struct ask_node {
    bool known; /* false: the table is to be filled whole */
    char text[CONFIG_NAME_MAX + 1];
    const char *name;
    const void *view;
    int role, state;
    double weight, number[ASK_NODE_NUMBERS];
};

struct ask_text {
    size_t n;         /* SIZE_MAX: to be written anew, as are texts longer than p */
    const char *from; /* static texts: the address they were written from */
    char p[ASK_TEXT_MAX];
};

struct ask {
    double slow_start; /* seconds, for the nodes' weights */
    struct ask_node node[FLEET_MAX];
    struct ask_text text[ASK_TEXTS];
    double number[ASK_NUMBERS];
    int reads; /* -1: to be written */
    uint64_t tried;
    unsigned listed; /* how many nodes the list held */

    struct node *const *candidate; /* of the call that runs */
    unsigned count;
};

/* Where an entry function has what it needs; the owner pushes the first ASK_FIRST - 1. */
enum { ASK_FIRST = 4, ASK_REQ = ASK_FIRST, ASK_NODES = ASK_FIRST + 3, ASK_UPVALUES = 37 };

/* Pushes the ASK_UPVALUES values that follow the owner's. Runs protected. */
void ask_push_upvalues(struct lua_State *L, struct ask *a);
/* Brings everything up to date. */
void ask_refresh(struct lua_State *L, struct ask *a, const struct policy_request *r,
                 struct node *const *candidates, unsigned count, double now);
/* Forgets what the tables hold, so that the next call fills them whole. */
void ask_forget(struct ask *a);
/* The candidate with the VM's string `name`, or NULL. */
struct node *ask_named(const struct ask *a, const char *name);

#endif
