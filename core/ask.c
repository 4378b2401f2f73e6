/* ask.c: owns the shadows of the tables that route() is given. */
#include "ask.h"

#include "cage.h"

#include <math.h>
#include <stdio.h>

#define EWMA_SECONDS 10.0 /* as fleet.c: what an idle node's average decays over */

#define REQ_TEXTS(X)                                                                               \
    X(CLASS, "class")                                                                              \
    X(ACTION, "action")                                                                            \
    X(METHOD, "method")                                                                            \
    X(ROUTE, "route")                                                                              \
    X(TENANT, "tenant")                                                                            \
    X(DATABASE, "database")                                                                        \
    X(COLLECTION, "collection")                                                                    \
    X(CLIENT, "client") X(SESSION, "session") X(LAST_ERROR, "last_error")
#define REQ_NUMBERS(X) X(BYTES, "bytes") X(ATTEMPT, "attempt")
#define NODE_NUMBERS(X)                                                                            \
    X(PRIORITY, "priority")                                                                        \
    X(WEIGHT, "weight")                                                                            \
    X(INFLIGHT, "inflight")                                                                        \
    X(QUEUED, "queued")                                                                            \
    X(MAXCONN, "maxconn")                                                                          \
    X(EWMA, "ewma_ms")                                                                             \
    X(FAILS, "fails") X(BEHIND, "behind") X(REQUESTS, "requests") X(SYNCING, "syncing")

#define REQ_ENUM(id, name)  REQ_##id,
#define NODE_ENUM(id, name) NODE_##id,
#define NAME(id, name)      name,
enum req_text { REQ_TEXTS(REQ_ENUM) REQ_TEXT_COUNT };
enum req_number { REQ_NUMBERS(REQ_ENUM) REQ_NUMBER_COUNT };
enum node_number { NODE_NUMBERS(NODE_ENUM) NODE_NUMBER_COUNT };

/* The fixed strings that entry functions use, and where each is among the upvalues. */
static const char *const words[] = {REQ_TEXTS(NAME) REQ_NUMBERS(NAME) NODE_NUMBERS(NAME) "reads",
                                    "name",
                                    "role",
                                    "state",
                                    "primary",
                                    "replica",
                                    "up",
                                    "suspect",
                                    "down"};
/* The upvalues of an entry function, from ASK_FIRST on. */
enum {
    UP_REQ = ASK_FIRST, /* the view */
    UP_REQ_TABLE,       /* what is behind it */
    UP_TRIED,           /* behind req.tried */
    UP_NODES,           /* the list given to route() */
    UP_VIEWS,           /* views of nodes by node id + 1 */
    UP_TABLES,          /* what is behind them */
    UP_WORDS,           /* the first of the words */
    UP_REQ_NUMBERS = UP_WORDS + REQ_TEXT_COUNT,
    UP_NODE_NUMBERS = UP_REQ_NUMBERS + REQ_NUMBER_COUNT,
    UP_READS = UP_NODE_NUMBERS + NODE_NUMBER_COUNT,
    UP_NAME,
    UP_ROLE,
    UP_STATE,
    UP_ROLE_WORDS,
    UP_STATE_WORDS = UP_ROLE_WORDS + 2,
    UP_END = UP_STATE_WORDS + 3
};
_Static_assert(UP_WORDS + COUNT_OF(words) == UP_END, "one upvalue a word");
_Static_assert(UP_END - (int)ASK_FIRST == ASK_UPVALUES, "the header's number");
_Static_assert((int)UP_NODES == (int)ASK_NODES, "the header's place");
_Static_assert((int)REQ_TEXT_COUNT == ASK_TEXTS, "a shadow for each");
_Static_assert((int)REQ_NUMBER_COUNT == ASK_NUMBERS, "a shadow for each");
_Static_assert((int)NODE_NUMBER_COUNT == ASK_NODE_NUMBERS, "a shadow for each");

/* ---- made once ------------------------------------------------------------------------------ */

static void push_views_of_nodes(lua_State *L, struct ask *a)
{
    lua_createtable(L, FLEET_MAX, 0);
    lua_createtable(L, FLEET_MAX, 0);
    for (int id = 0; id < FLEET_MAX; id++) {
        lua_createtable(L, 0, NODE_NUMBER_COUNT + 3);
        lua_pushvalue(L, -1);
        lua_rawseti(L, -3, id + 1);
        cage_freeze(L);
        a->node[id].view = lua_topointer(L, -1);
        lua_rawseti(L, -3, id + 1);
    }
}

void ask_push_upvalues(lua_State *L, struct ask *a)
{
    luaL_checkstack(L, ASK_UPVALUES + LUA_MINSTACK, "upvalues");
    int first = lua_gettop(L) + 1;
    lua_pushnil(L);
    lua_createtable(L, 0, REQ_TEXT_COUNT + REQ_NUMBER_COUNT + 2);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    cage_freeze(L);
    lua_setfield(L, first + 1, "tried");
    lua_pushvalue(L, first + 1);
    cage_freeze(L);
    lua_replace(L, first);
    lua_newtable(L);
    push_views_of_nodes(L, a);
    for (unsigned i = 0; i < COUNT_OF(words); i++)
        lua_pushstring(L, words[i]);
}

void ask_forget(struct ask *a)
{
    for (unsigned i = 0; i < FLEET_MAX; i++)
        a->node[i].known = false;
    for (unsigned i = 0; i < REQ_TEXT_COUNT; i++)
        a->text[i] = (struct ask_text){.n = SIZE_MAX};
    for (unsigned i = 0; i < REQ_NUMBER_COUNT; i++)
        a->number[i] = -1;
    a->reads = -1;
    a->tried = UINT64_MAX;
}

/* ---- the tables are brought up to date ------------------------------------------------------- */

/* A value is written as word, value, rawset; the shadow follows, since writing may run out of
 * memory. */
static inline void word(lua_State *L, int upvalue)
{
    lua_pushvalue(L, lua_upvalueindex(upvalue));
}

static inline void put_text(lua_State *L, struct ask *a, enum req_text id, struct str s)
{
    struct ask_text *was = &a->text[id];
    if (was->n == s.n && (s.n == 0 || memcmp(was->p, s.p, s.n) == 0))
        return;
    was->n = SIZE_MAX;
    word(L, UP_WORDS + (int)id);
    lua_pushlstring(L, s.p ? s.p : "", s.n);
    lua_rawset(L, lua_upvalueindex(UP_REQ_TABLE));
    if (s.n <= ASK_TEXT_MAX) {
        memcpy(was->p, s.p ? s.p : "", s.n);
        was->n = s.n;
    }
}

/* Static text: one address is one text. */
static inline void put_static(lua_State *L, struct ask *a, enum req_text id, const char *text)
{
    if (a->text[id].from == text)
        return;
    put_text(L, a, id, str_from(text));
    a->text[id].from = text;
}

static inline void put_number(lua_State *L, struct ask *a, enum req_number id, double v)
{
    if (a->number[id] == v)
        return;
    word(L, UP_REQ_NUMBERS + (int)id);
    lua_pushnumber(L, v);
    lua_rawset(L, lua_upvalueindex(UP_REQ_TABLE));
    a->number[id] = v;
}

static const char *name_of_id(const struct ask *a, unsigned id)
{
    for (unsigned i = 0; i < a->count; i++)
        if (a->candidate[i]->id == id)
            return a->candidate[i]->name;
    for (unsigned i = 0; i < fleet_count; i++)
        if (fleet_node[i]->id == id)
            return fleet_node[i]->name;
    return NULL; /* it has left the fleet since */
}

/* Retries are rare, and ids change their names over reloads: written whole. */
static void put_tried(lua_State *L, struct ask *a, uint64_t tried)
{
    if (tried == 0 && a->tried == 0)
        return;
    a->tried = UINT64_MAX;
    int table = lua_upvalueindex(UP_TRIED);
    lua_pushnil(L);
    while (lua_next(L, table)) {
        lua_pop(L, 1);
        lua_pushvalue(L, -1);
        lua_pushnil(L);
        lua_rawset(L, table);
    }
    for (unsigned id = 0; id < FLEET_MAX; id++) {
        const char *name = tried & (UINT64_C(1) << id) ? name_of_id(a, id) : NULL;
        if (!name)
            continue;
        lua_pushstring(L, name);
        lua_pushboolean(L, true);
        lua_rawset(L, table);
    }
    a->tried = tried;
}

static void put_request(lua_State *L, struct ask *a, const struct policy_request *r)
{
    const struct route *route = r->route;
    put_static(L, a, REQ_CLASS, route_class_name(route->class));
    put_static(L, a, REQ_ACTION, route->action);
    put_text(L, a, REQ_METHOD, r->method);
    put_static(L, a, REQ_ROUTE, route->name);
    put_text(L, a, REQ_TENANT, route->tenant);
    put_text(L, a, REQ_DATABASE, route->database);
    put_text(L, a, REQ_COLLECTION,
             *r->collection_id ? str_from(r->collection_id) : route->collection);
    put_text(L, a, REQ_CLIENT, r->client);
    put_text(L, a, REQ_SESSION, r->session);
    put_static(L, a, REQ_LAST_ERROR, r->last_error);
    put_number(L, a, REQ_BYTES, (double)r->bytes);
    put_number(L, a, REQ_ATTEMPT, r->attempt);
    if (a->reads != route->reads) {
        word(L, UP_READS);
        lua_pushboolean(L, route->reads);
        lua_rawset(L, lua_upvalueindex(UP_REQ_TABLE));
        a->reads = route->reads;
    }
    put_tried(L, a, r->tried);
}

/* An average that nothing refreshes fades, or a node that was slow once would never be asked again.
 */
static double faded_ewma(const struct node *n, double now)
{
    double idle = now - n->ewma_at;
    return idle < 1 || n->ewma_ms == 0 ? n->ewma_ms : n->ewma_ms * exp(-idle / EWMA_SECONDS);
}

/* The name, role and state, and then every number is to be written. */
static void put_identity(lua_State *L, const struct node *n, struct ask_node *s, int table)
{
    s->known = false;
    word(L, UP_NAME);
    lua_pushstring(L, n->name);
    s->name = lua_tostring(L, -1);
    lua_rawset(L, table);
    word(L, UP_ROLE);
    word(L, UP_ROLE_WORDS + (int)n->role);
    lua_rawset(L, table);
    word(L, UP_STATE);
    word(L, UP_STATE_WORDS + (int)n->health);
    lua_rawset(L, table);
    snprintf(s->text, sizeof s->text, "%s", n->name);
    s->role = (int)n->role;
    s->state = (int)n->health;
    for (unsigned i = 0; i < NODE_NUMBER_COUNT; i++)
        s->number[i] = NAN;
}

/* Most calls change few nodes: a node's table is fetched for the first value that changed. */
static void put_node(lua_State *L, struct ask *a, const struct node *n, double behind, double now)
{
    struct ask_node *s = &a->node[n->id];
    s->weight = fleet_weight(n, now, a->slow_start);
    const double number[NODE_NUMBER_COUNT] = {
        [NODE_PRIORITY] = (double)n->priority, [NODE_WEIGHT] = s->weight,
        [NODE_INFLIGHT] = n->inflight,         [NODE_QUEUED] = n->queued,
        [NODE_MAXCONN] = (double)n->maxconn,   [NODE_EWMA] = faded_ewma(n, now),
        [NODE_FAILS] = n->history.fails,       [NODE_BEHIND] = behind,
        [NODE_REQUESTS] = (double)n->requests, [NODE_SYNCING] = n->syncing,
    };
    bool same = s->known && s->role == (int)n->role && s->state == (int)n->health &&
                strcmp(s->text, n->name) == 0;
    if (same && memcmp(s->number, number, sizeof number) == 0)
        return;
    lua_rawgeti(L, lua_upvalueindex(UP_TABLES), (int)n->id + 1);
    int table = lua_gettop(L);
    if (!same)
        put_identity(L, n, s, table);
    for (int i = 0; i < NODE_NUMBER_COUNT; i++)
        if (s->number[i] != number[i]) {
            word(L, UP_NODE_NUMBERS + i);
            lua_pushnumber(L, number[i]);
            lua_rawset(L, table);
            s->number[i] = number[i];
        }
    s->known = true;
    lua_settop(L, table - 1);
}

/* The list is the policy's to sort or shorten, so it is filled anew; one that was given a metatable
 * or more elements is replaced. */
static void put_list(lua_State *L, struct ask *a)
{
    int list = lua_upvalueindex(UP_NODES);
    bool odd = lua_getmetatable(L, list);
    for (unsigned pass = 0; pass < 2; pass++) {
        if (odd) {
            lua_newtable(L);
            lua_replace(L, list);
            a->listed = 0;
        }
        for (unsigned i = 0; i < a->count; i++) {
            lua_rawgeti(L, lua_upvalueindex(UP_VIEWS), (int)a->candidate[i]->id + 1);
            lua_rawseti(L, list, (int)i + 1);
        }
        for (unsigned i = a->count; i < a->listed; i++) {
            lua_pushnil(L);
            lua_rawseti(L, list, (int)i + 1);
        }
        a->listed = a->count;
        if (lua_objlen(L, list) == a->count)
            break;
        odd = true;
    }
}

void ask_refresh(lua_State *L, struct ask *a, const struct policy_request *r,
                 struct node *const *candidates, unsigned count, double now)
{
    a->candidate = candidates;
    a->count = count;
    put_request(L, a, r);
    for (unsigned i = 0; i < count; i++)
        put_node(L, a, candidates[i], r->behind ? r->behind[candidates[i]->id] : 0, now);
    put_list(L, a);
}

struct node *ask_named(const struct ask *a, const char *name)
{
    for (unsigned i = 0; i < a->count; i++)
        if (a->node[a->candidate[i]->id].name == name)
            return a->candidate[i];
    return NULL;
}
