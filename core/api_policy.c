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
    if (policy_call(id, L, nargs, ev_now(stream_loop()), &why))
        return VERDICT_ANSWERS;
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
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
    lua_pushcfunction(L, loaded);
    lua_setfield(L, -2, "loaded");
    lua_setfield(L, -2, "chromux.policy");
    lua_pop(L, 1);
}
