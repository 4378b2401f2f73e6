/* kit.c: lets specs run a policy file in a real policy VM, with nodes and requests that are plain
 * tables, and all else as plain values. A handle owns its VM and its nodes, which it keeps by name,
 * so that lb.swrr goes on from call to call. All functions here run inside the workflow VM's
 * protected calls and may throw. */
#include "kit.h"

#include "script.h"

#include <stdio.h>
#include <stdlib.h>

#define HANDLE "chromux.policy"

struct handle {
    struct verdict_vm *vm; /* NULL once collected */
    enum policy_id kind;   /* the first question of the file */
    struct node node[FLEET_MAX];
    unsigned count;
};

static struct handle *handle_of(lua_State *L)
{
    return luaL_checkudata(L, 1, HANDLE);
}

static struct handle *handle_for(lua_State *L, enum policy_id kind)
{
    struct handle *h = handle_of(L);
    if (!h->vm || h->kind != kind)
        luaL_error(L, "the policy that was opened is not %s", policy_file(kind));
    return h;
}

static int handle_gc(lua_State *L)
{
    struct handle *h = handle_of(L);
    verdict_vm_free(h->vm);
    h->vm = NULL;
    for (unsigned i = 0; i < h->count; i++)
        free(h->node[i].name);
    h->count = 0;
    return 0;
}

/* ---- tables to structs ----------------------------------------------------------------------- */

static double number_of(lua_State *L, int table, const char *field, double otherwise)
{
    lua_getfield(L, table, field);
    double v = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : otherwise;
    lua_pop(L, 1);
    return v;
}

/* The text lives as long as the table does. */
static const char *text_of(lua_State *L, int table, const char *field)
{
    lua_getfield(L, table, field);
    const char *s = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    lua_pop(L, 1);
    return s;
}

static bool flag_of(lua_State *L, int table, const char *field)
{
    lua_getfield(L, table, field);
    bool v = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return v;
}

static enum node_health health_of(lua_State *L, int table)
{
    const char *s = text_of(L, table, "state");
    for (unsigned h = NODE_UP; h <= NODE_DOWN; h++)
        if (strcmp(s, fleet_health_name((enum node_health)h)) == 0)
            return (enum node_health)h;
    return NODE_UP;
}

static struct node *node_named(lua_State *L, struct handle *h, const char *name)
{
    for (unsigned i = 0; i < h->count; i++)
        if (strcmp(h->node[i].name, name) == 0)
            return &h->node[i];
    if (h->count == FLEET_MAX || !*name || strlen(name) > CONFIG_NAME_MAX)
        luaL_error(L, "node '%s': a name of 1 to %d bytes, and at most %d of them", name,
                   CONFIG_NAME_MAX, FLEET_MAX);
    struct node *n = &h->node[h->count];
    *n = (struct node){.name = base_strdup(name), .id = h->count};
    h->count++;
    return n;
}

static struct node *read_node(lua_State *L, struct handle *h, int table, double now)
{
    luaL_checktype(L, table, LUA_TTABLE);
    struct node *n = node_named(L, h, text_of(L, table, "name"));
    n->role = strcmp(text_of(L, table, "role"), "primary") == 0 ? CONFIG_PRIMARY : CONFIG_REPLICA;
    n->priority = (long)number_of(L, table, "priority", 0);
    n->weight = (long)number_of(L, table, "weight", 1);
    n->maxconn = (long)number_of(L, table, "maxconn", 0);
    n->health = health_of(L, table);
    n->inflight = (unsigned)number_of(L, table, "inflight", 0);
    n->queued = (unsigned)number_of(L, table, "queued", 0);
    n->requests = (uint64_t)number_of(L, table, "requests", 0);
    n->syncing = (unsigned)number_of(L, table, "syncing", 0);
    n->history.fails = (unsigned)number_of(L, table, "fails", 0);
    n->ewma_ms = number_of(L, table, "ewma_ms", 0);
    n->ewma_at = now;
    return n;
}

static uint64_t read_tried(lua_State *L, struct handle *h, int req)
{
    uint64_t bits = 0;
    lua_getfield(L, req, "tried");
    if (lua_istable(L, -1))
        for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
            if (lua_type(L, -2) == LUA_TSTRING && lua_toboolean(L, -1))
                bits |= UINT64_C(1) << node_named(L, h, lua_tostring(L, -2))->id;
    lua_pop(L, 1);
    return bits;
}

static void read_request(lua_State *L, struct handle *h, int t, struct route *route,
                         struct policy_request *r)
{
    const char *class = text_of(L, t, "class");
    *route = (struct route){.class = ROUTE_READ};
    for (unsigned c = ROUTE_READ; c <= ROUTE_UNSUPPORTED; c++)
        if (strcmp(class, route_class_name((enum route_class)c)) == 0)
            route->class = (enum route_class)c;
    route->name = text_of(L, t, "route");
    route->action = text_of(L, t, "action");
    route->reads = flag_of(L, t, "reads");
    route->tenant = str_from(text_of(L, t, "tenant"));
    route->database = str_from(text_of(L, t, "database"));
    route->collection = str_from(text_of(L, t, "collection"));
    *r = (struct policy_request){
        .route = route,
        .method = str_from(text_of(L, t, "method")),
        .client = str_from(text_of(L, t, "client")),
        .session = str_from(text_of(L, t, "session")),
        .collection_id = "",
        .attempt = (unsigned)number_of(L, t, "attempt", 1),
        .last_error = text_of(L, t, "last_error"),
        .bytes = (uint64_t)number_of(L, t, "bytes", 0),
    };
    r->tried = read_tried(L, h, t);
}

/* ---- calls ---- */

static int push_fault(lua_State *L, const struct policy_fault *fault)
{
    lua_pushnil(L);
    lua_pushstring(L, policy_failure_name(fault->kind));
    lua_pushstring(L, fault->error);
    return 3;
}

/* handle:route(req, nodes, now) gives true, name or nil, reason, {timeout=, max_behind=}; or nil,
 * the kind of failure, the error. */
static int handle_route(lua_State *L)
{
    struct handle *h = handle_for(L, POLICY_ROUTE);
    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    double now = luaL_optnumber(L, 4, 1000);
    struct node *candidate[FLEET_MAX];
    unsigned count = 0;
    for (; count < FLEET_MAX; count++) {
        lua_rawgeti(L, 3, (int)count + 1);
        if (lua_isnil(L, -1))
            break;
        candidate[count] = read_node(L, h, lua_gettop(L), now);
        lua_pop(L, 1);
    }
    struct route route;
    struct policy_request r;
    struct policy_verdict v;
    struct policy_fault fault;
    read_request(L, h, 2, &route, &r);
    verdict_forget(h->vm); /* static texts lie at other addresses each time */
    if (!verdict_route(h->vm, &r, candidate, count, now, &v, &fault))
        return push_fault(L, &fault);
    lua_pushboolean(L, true);
    if (v.node)
        lua_pushstring(L, v.node->name);
    else
        lua_pushnil(L);
    lua_pushstring(L, v.reason);
    lua_newtable(L);
    if (v.timeout > 0) {
        lua_pushnumber(L, v.timeout);
        lua_setfield(L, -2, "timeout");
    }
    if (v.max_behind >= 0) {
        lua_pushnumber(L, v.max_behind);
        lua_setfield(L, -2, "max_behind");
    }
    return 4;
}

static void read_history(lua_State *L, int t, double now, struct history *h)
{
    double busy = number_of(L, t, "busy", 0);
    *h = (struct history){
        .fails = (unsigned)number_of(L, t, "fails", 0),
        .passes = (unsigned)number_of(L, t, "passes", 0),
        .connect_fails = (unsigned)number_of(L, t, "connect_fails", 0),
        .timeouts = (unsigned)number_of(L, t, "timeouts", 0),
        .resets = (unsigned)number_of(L, t, "resets", 0),
        .errors_5xx = (unsigned)number_of(L, t, "errors_5xx", 0),
        .oks = (unsigned)number_of(L, t, "oks", 0),
        .busy_since = busy > 0 ? now - busy : 0,
    };
    snprintf(h->last_error, sizeof h->last_error, "%s", text_of(L, t, "last_error"));
}

/* handle:judge(subject, history, now) gives true, "up" or "down", reason; or as route() fails. */
static int handle_judge(lua_State *L)
{
    struct handle *h = handle_for(L, POLICY_FAILOVER);
    luaL_checktype(L, 2, LUA_TTABLE);
    luaL_checktype(L, 3, LUA_TTABLE);
    double now = luaL_optnumber(L, 4, 1000), since = number_of(L, 2, "since", 0);
    bool of_collection = strcmp(text_of(L, 2, "kind"), "collection") == 0, up;
    struct node n = {
        .name = (char *)text_of(L, 2, "name"), .health = health_of(L, 2), .since = now - since};
    struct collection_state c = {.health = n.health, .since = n.since};
    struct policy_fault fault;
    char reason[POLICY_REASON_MAX];
    snprintf(c.id, sizeof c.id, "%s", text_of(L, 2, "collection"));
    read_history(L, 3, now, of_collection ? &c.history : &n.history);
    if (!verdict_judge(h->vm, &n, of_collection ? &c : NULL, now, &up, reason, &fault))
        return push_fault(L, &fault);
    lua_pushboolean(L, true);
    lua_pushstring(L, up ? "up" : "down");
    lua_pushstring(L, reason);
    return 3;
}

/* handle:call("sync.batch", now, value, ...) gives true and the answers; or as route() fails. */
static int handle_call(lua_State *L)
{
    struct handle *h = handle_of(L);
    enum policy_id id = policy_find(luaL_checkstring(L, 2));
    double now = luaL_checknumber(L, 3);
    struct policy_fault fault;
    luaL_argcheck(L, h->vm && id < POLICY_COUNT && verdict_has(h->vm, id), 2,
                  "the policy that was opened does not answer this");
    if (!verdict_call(h->vm, id, L, lua_gettop(L) - 3, now, &fault))
        return push_fault(L, &fault);
    lua_pushboolean(L, true);
    lua_insert(L, -VERDICT_ANSWERS - 1);
    return VERDICT_ANSWERS + 1;
}

/* Sets path for all questions of the file `as`.lua; POLICY_COUNT: there are none. */
static enum policy_id give_path(const char *paths[POLICY_COUNT], const char *as, const char *path)
{
    char file[CONFIG_NAME_MAX];
    enum policy_id first = POLICY_COUNT;
    snprintf(file, sizeof file, "%s.lua", as);
    for (enum policy_id id = POLICY_COUNT; id-- > 0;)
        if (strcmp(policy_file(id), file) == 0) {
            paths[id] = path;
            first = id;
        }
    return first;
}

/* ---- opening a file ---- */

/* Settings as --set would give them; any instance will do. */
static void read_settings(lua_State *L, int table, struct config_raws *raws)
{
    config_raws_add(raws, "CHROMA_INSTANCES", "a=http://127.0.0.1:1", CONFIG_TEXT, "environment");
    if (!lua_istable(L, table))
        return;
    for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
        char number[64];
        const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : number;
        if (lua_type(L, -1) == LUA_TNUMBER)
            snprintf(number, sizeof number, "%.14g", lua_tonumber(L, -1));
        else if (text == number)
            snprintf(number, sizeof number, "%s", lua_toboolean(L, -1) ? "true" : "false");
        config_raws_add(raws, name, text, CONFIG_TEXT, "--set");
    }
}

/* native.open(path, as, settings, seed) gives a handle; or nil, the mistakes. `as` is the name of a
 * shipped policy: "route", "sync". */
static int native_open(lua_State *L)
{
    const char *path = luaL_checkstring(L, 1);
    const char *paths[POLICY_COUNT] = {NULL};
    enum policy_id kind = give_path(paths, luaL_checkstring(L, 2), path);
    luaL_argcheck(L, kind < POLICY_COUNT, 2, "not the name of a policy");
    double seed = luaL_optnumber(L, 4, 1);
    struct handle *h = lua_newuserdata(L, sizeof *h);
    memset(h, 0, sizeof *h);
    luaL_getmetatable(L, HANDLE);
    lua_setmetatable(L, -2);

    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 65536);
    read_settings(L, 3, &raws);
    struct config *c = config_build(&raws, &errors);
    config_raws_fini(&raws);
    if (c) {
        h->kind = kind;
        h->vm = verdict_vm_new(c, paths, &errors);
        config_free(c);
    }
    if (h->vm) {
        verdict_seed(h->vm, (uint64_t)seed);
        buf_fini(&errors);
        return 1;
    }
    lua_pushnil(L);
    lua_pushlstring(L, buf_data(&errors), buf_len(&errors));
    buf_fini(&errors);
    return 2;
}

static int open_native(lua_State *L)
{
    static const struct luaL_Reg methods[] = {{"route", handle_route},
                                              {"judge", handle_judge},
                                              {"call", handle_call},
                                              {"__gc", handle_gc},
                                              {NULL, NULL}};
    luaL_newmetatable(L, HANDLE);
    luaL_register(L, NULL, methods);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_newtable(L);
    lua_pushcfunction(L, native_open);
    lua_setfield(L, -2, "open");
    return 1;
}

void kit_open(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_native);
    lua_setfield(L, -2, "lb.testkit.native");
    lua_pop(L, 2);
}

int kit_main(lua_State *L, int argc, char **argv)
{
    struct buf error;
    int code = 1;
    buf_init(&error, 65536);
    kit_open(L);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "lb.testkit");
    if (script_call(L, 1, 1, true, &error)) {
        lua_getfield(L, -1, "main");
        lua_createtable(L, argc, 0);
        for (int i = 0; i < argc; i++) {
            lua_pushstring(L, argv[i]);
            lua_rawseti(L, -2, i + 1);
        }
        if (script_call(L, 1, 1, true, &error)) {
            code = (int)lua_tointeger(L, -1);
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
    }
    if (buf_len(&error))
        fprintf(stderr, "%.*s\n", (int)buf_len(&error), buf_data(&error));
    buf_fini(&error);
    return code;
}
