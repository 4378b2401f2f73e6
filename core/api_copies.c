/* api_copies.c: checks what Lua says and hands it to copies.c. */
#include "api_copies.h"

#include "copies.h"
#include "fault.h"
#include "route.h"

#include <math.h>

#define ENTRY_MOST 9007199254740992.0 /* 2^53: beyond it a number of Lua is not exact */

static const char *check_id(lua_State *L, int at)
{
    char canonical[37];
    struct str s;
    s.p = luaL_checklstring(L, at, &s.n);
    luaL_argcheck(L, route_uuid(s, canonical) && str_eq(s, str_from(canonical)), at,
                  "a UUID of 36 lower-case bytes");
    return s.p;
}

static struct str check_text(lua_State *L, int at)
{
    struct str s;
    s.p = luaL_checklstring(L, at, &s.n);
    luaL_argcheck(L, !memchr(s.p, 0, s.n), at, "a text without zero bytes");
    return s;
}

static uint64_t check_entry(lua_State *L, int at)
{
    double n = luaL_checknumber(L, at);
    luaL_argcheck(L, n >= 0 && n <= ENTRY_MOST && n == floor(n), at, "a whole number");
    return (uint64_t)n;
}

static int collection_set(lua_State *L)
{
    copies_collection_set(check_id(L, 1), check_text(L, 2), check_text(L, 3), check_entry(L, 4));
    return 0;
}

static int collection_drop(lua_State *L)
{
    copies_collection_drop(check_id(L, 1));
    return 0;
}

static int raise_floor(lua_State *L)
{
    lua_pushboolean(L, copies_floor(check_id(L, 1), check_entry(L, 2)));
    return 1;
}

static int copy_set(lua_State *L)
{
    struct str instance = check_text(L, 2);
    luaL_checktype(L, 5, LUA_TBOOLEAN);
    lua_pushboolean(L, copies_copy_set(check_id(L, 1), instance, check_id(L, 3), check_entry(L, 4),
                                       lua_toboolean(L, 5)));
    return 1;
}

static int copy_drop(lua_State *L)
{
    copies_copy_drop(check_id(L, 1), check_text(L, 2));
    return 0;
}

static int clear(lua_State *L)
{
    copies_clear();
    return 0;
}

static int count(lua_State *L)
{
    lua_pushnumber(L, copies_count());
    return 1;
}

static int on(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TBOOLEAN);
    copies_on = lua_toboolean(L, 1);
    copies_expected = copies_expected || copies_on;
    return 0;
}

static int looked(lua_State *L)
{
    const char *logical = check_id(L, 1);
    luaL_checktype(L, 2, LUA_TBOOLEAN);
    if (copies_looked)
        copies_looked(logical, lua_toboolean(L, 2));
    return 0;
}

static int get(lua_State *L)
{
    const struct collection *c = copies_find(check_id(L, 1));
    struct node n = {.name = (char *)luaL_checkstring(L, 2)};
    const char *physical = c ? copies_physical(c, &n) : NULL;
    if (!physical) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushstring(L, physical);
    lua_pushnumber(L, (double)copies_behind(c, &n));
    lua_pushboolean(L, copies_may_read(c, &n, 0));
    return 3;
}

/* syncing(instance, n): so many tasks of sync write to it now. */
static int syncing(lua_State *L)
{
    struct str name = str_from(luaL_checkstring(L, 1));
    lua_Number n = luaL_checknumber(L, 2);
    luaL_argcheck(L, n >= 0 && n <= 1e6, 2, "a number of tasks");
    struct node *node = fleet_find(name);
    if (node)
        node->syncing = (unsigned)n;
    return 0;
}

static int open_module(lua_State *L)
{
    static const luaL_Reg functions[] = {{"collection_set", collection_set},
                                         {"collection_drop", collection_drop},
                                         {"floor", raise_floor},
                                         {"copy_set", copy_set},
                                         {"copy_drop", copy_drop},
                                         {"clear", clear},
                                         {"count", count},
                                         {"on", on},
                                         {"looked", looked},
                                         {"get", get},
                                         {"syncing", syncing},
#ifdef CHROMUX_FAULTS
                                         {"fault", fault_hit},
#endif
                                         {NULL, NULL}};
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_setfield(L, -2, "chromux.copies");
    return 0;
}

void api_copies_open(lua_State *L)
{
    must(lua_cpcall(L, open_module, NULL) == 0);
}
