/* api_usage.c: checks what Lua says, hands it to usage.c and the fleet, and makes tables of the
 * answers. */
#include "api_usage.h"

#include "disk.h"
#include "fleet.h"
#include "usage.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define TREE_TYPE "chromux.usage.tree"

static void set_number(lua_State *L, const char *key, double n)
{
    lua_pushnumber(L, n);
    lua_setfield(L, -2, key);
}

static void set_text(lua_State *L, const char *key, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, key);
}

static int refuse(lua_State *L)
{
    const char *why = strerror(errno);
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
}

static pid_t check_pid(lua_State *L, int at)
{
    double n = luaL_checknumber(L, at);
    luaL_argcheck(L, n >= 1 && n <= INT32_MAX && n == floor(n), at, "a pid");
    return (pid_t)n;
}

/* ---- processes ---- */

static int of(lua_State *L)
{
    struct usage u;
    if (!usage_of(check_pid(L, 1), &u))
        return refuse(L);
    lua_createtable(L, 0, 12);
    set_number(L, "at", u.at);
    set_number(L, "started", (double)u.started);
    set_number(L, "cpu_seconds", u.cpu_seconds);
    set_number(L, "rss", (double)u.rss);
    set_number(L, "private", (double)u.private);
    if (u.open_files >= 0)
        set_number(L, "open_files", (double)u.open_files);
    if (u.max_files >= 0)
        set_number(L, "max_files", (double)u.max_files);
    set_number(L, "memory_used", (double)u.memory_used);
    if (u.memory_limit > 0)
        set_number(L, "memory_limit", (double)u.memory_limit);
    lua_pushboolean(L, u.limited);
    lua_setfield(L, -2, "limited");
    set_number(L, "cores", u.cores);
    return 1;
}

/* Where the named instance listens, into *place; or why that is no use. */
static const char *place_of(struct str name, struct usage_place *place)
{
    const struct node *n = fleet_find(name);
    if (!n)
        return "unknown";
    if (n->addr_len == 0)
        return "unresolved";
    if (!usage_is_here((const struct sockaddr *)&n->addr))
        return "elsewhere";
    place->address = n->addr;
    return NULL;
}

static int find(lua_State *L)
{
    struct usage_place places[FLEET_MAX];
    int at[FLEET_MAX]; /* of its name in the list */
    unsigned n = 0;
    bool denied;
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_newtable(L);
    lua_newtable(L);
    for (int i = 1; i <= (int)lua_objlen(L, 1) && n < FLEET_MAX; i++) {
        struct str name;
        lua_rawgeti(L, 1, i);
        luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 1, "a list of names");
        name.p = lua_tolstring(L, -1, &name.n);
        const char *why = place_of(name, &places[n]);
        if (why) {
            lua_pushstring(L, why);
            lua_settable(L, 3);
        } else {
            at[n++] = i;
            lua_pop(L, 1);
        }
    }
    if (n)
        usage_find(places, n, &denied);
    for (unsigned i = 0; i < n; i++) {
        lua_rawgeti(L, 1, at[i]);
        if (places[i].pid)
            lua_pushnumber(L, (double)places[i].pid);
        else
            lua_pushstring(L, places[i].inode && denied ? "denied" : "silent");
        lua_settable(L, places[i].pid ? 2 : 3);
    }
    return 2;
}

/* ---- folders ---- */

static int folder(lua_State *L)
{
    char *shown, *path = usage_folder(check_pid(L, 1), &shown);
    if (!path)
        return 0;
    lua_pushstring(L, path);
    lua_pushstring(L, shown);
    free(path);
    free(shown);
    return 2;
}

static int disk(lua_State *L)
{
    struct disk d;
    if (!disk_space(luaL_checkstring(L, 1), &d))
        return refuse(L);
    lua_pushnumber(L, (double)d.total);
    lua_pushnumber(L, (double)d.used);
    lua_pushnumber(L, (double)d.free);
    lua_pushnumber(L, d.percent);
    return 4;
}

static int tree(lua_State *L)
{
    const char *path = luaL_checkstring(L, 1);
    struct disk_tree **t = lua_newuserdata(L, sizeof *t);
    *t = NULL;
    luaL_getmetatable(L, TREE_TYPE);
    lua_setmetatable(L, -2);
    *t = disk_tree_new(path);
    return *t ? 1 : refuse(L);
}

static int tree_step(lua_State *L)
{
    struct disk_tree **t = luaL_checkudata(L, 1, TREE_TYPE);
    double entries = luaL_checknumber(L, 2);
    int64_t bytes, database;
    luaL_argcheck(L, entries >= 1 && entries <= 1e6, 2, "a number of entries");
    luaL_argcheck(L, *t, 1, "a tree that has not ended");
    if (!disk_tree_step(*t, (unsigned)entries, &bytes, &database))
        return 0;
    lua_pushnumber(L, (double)bytes);
    lua_pushnumber(L, (double)database);
    lua_pushnumber(L, disk_tree_seen(*t));
    disk_tree_free(*t);
    *t = NULL;
    return 3;
}

static int tree_gc(lua_State *L)
{
    struct disk_tree **t = luaL_checkudata(L, 1, TREE_TYPE);
    disk_tree_free(*t);
    *t = NULL;
    return 0;
}

/* ---- instances ---- */

static void push_histo(lua_State *L, const struct histo *h)
{
    lua_createtable(L, HISTO_BUCKETS, 0);
    for (int i = 0; i < HISTO_BUCKETS; i++) {
        lua_pushnumber(L, (double)h->bucket[i]);
        lua_rawseti(L, -2, i + 1);
    }
}

static void push_node(lua_State *L, const struct node *n)
{
    lua_createtable(L, 0, 13);
    set_text(L, "name", n->name);
    set_text(L, "url", n->url);
    set_text(L, "health", fleet_health_name(n->health));
    set_text(L, "last_error", n->history.last_error);
    set_number(L, "probe_ms", n->probe_ms);
    set_number(L, "last_check", n->last_check);
    set_number(L, "active", n->inflight);
    set_number(L, "queued", n->queued);
    set_number(L, "requests", (double)n->requests);
    set_number(L, "failures", (double)n->failures);
    set_number(L, "errors", (double)n->answers[5]);
    push_histo(L, &n->latency);
    lua_setfield(L, -2, "latency");
}

static int nodes(lua_State *L)
{
    lua_createtable(L, (int)fleet_count, 0);
    for (unsigned i = 0; i < fleet_count; i++) {
        push_node(L, fleet_node[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* As nodes()' latency, of clients' requests. */
static int clients(lua_State *L)
{
    push_histo(L, &metrics_clients);
    return 1;
}

static double bucket_of(lua_State *L, int table, int i)
{
    if (!lua_istable(L, table))
        return 0;
    lua_rawgeti(L, table, i);
    double n = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return n;
}

static int quantiles(lua_State *L)
{
    struct histo since;
    int top = lua_gettop(L);
    memset(&since, 0, sizeof since);
    luaL_checktype(L, 1, LUA_TTABLE);
    for (int i = 0; i < HISTO_BUCKETS; i++) {
        double n = bucket_of(L, 1, i + 1) - bucket_of(L, 2, i + 1);
        since.bucket[i] = n > 0 ? (uint64_t)n : 0;
        since.count += since.bucket[i];
    }
    for (int i = 3; i <= top; i++)
        if (since.count)
            lua_pushnumber(L, histo_quantile(&since, luaL_checknumber(L, i)));
        else
            lua_pushnil(L);
    return top > 2 ? top - 2 : 0;
}

static int open_module(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"of", of},           {"find", find},           {"folder", folder},
        {"disk", disk},       {"tree", tree},           {"nodes", nodes},
        {"clients", clients}, {"quantiles", quantiles}, {NULL, NULL}};
    luaL_newmetatable(L, TREE_TYPE);
    lua_newtable(L);
    lua_pushcfunction(L, tree_step);
    lua_setfield(L, -2, "step");
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, tree_gc);
    lua_setfield(L, -2, "__gc");
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    set_number(L, "self", (double)getpid());
    lua_setfield(L, -2, "chromux.usage");
    return 0;
}

void api_usage_open(lua_State *L)
{
    must(lua_cpcall(L, open_module, NULL) == 0);
}
