/* api_policy.c: a policy that our own Lua asks. */
#include "api_policy.h"

#include "policy.h"
#include "stream.h"

enum { VALUES_MAX = 4 };

static int call(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1), *why;
    enum policy_id id = policy_find(name);
    int nargs = lua_gettop(L) - 1;
    luaL_argcheck(L, id < POLICY_COUNT, 1, "no such question");
    luaL_argcheck(L, nargs <= VALUES_MAX, VALUES_MAX + 2, "too many values");
    luaL_checkstack(L, VERDICT_ANSWERS, "answers");
    if (policy_call(id, L, nargs, base_clock(), &why))
        return VERDICT_ANSWERS;
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
}

/* A file once, however many of its functions are tripped. */
static int tripped(lua_State *L)
{
    const char *last = "";
    int n = 0;
    lua_newtable(L);
    for (unsigned id = 0; id < POLICY_COUNT; id++) {
        const struct policy_stats *s = policy_stats((enum policy_id)id);
        const char *file = policy_file((enum policy_id)id);
        if (!s->tripped || strcmp(file, last) == 0)
            continue;
        last = file;
        lua_createtable(L, 0, 2);
        lua_pushstring(L, file);
        lua_setfield(L, -2, "file");
        lua_pushstring(L, s->last_error);
        lua_setfield(L, -2, "last_error");
        lua_rawseti(L, -2, ++n);
    }
    return 1;
}

static int loaded(lua_State *L)
{
    lua_pushnumber(L, policy_generation());
    return 1;
}

void api_policy_open(lua_State *L)
{
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    lua_pushcfunction(L, call);
    lua_setfield(L, -2, "call");
    lua_pushcfunction(L, tripped);
    lua_setfield(L, -2, "tripped");
    lua_pushcfunction(L, loaded);
    lua_setfield(L, -2, "loaded");
    lua_setfield(L, -2, "chromux.policy");
    lua_pop(L, 1);
}
