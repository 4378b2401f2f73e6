/* api_route.c: a write of the journal as the route policy sees a request. */
#include "api_route.h"

#include "policy.h"
#include "stream.h"

static unsigned check_nodes(lua_State *L, int at, struct node *nodes[FLEET_MAX])
{
    unsigned n = 0;
    luaL_checktype(L, at, LUA_TTABLE);
    for (int i = 1; n < FLEET_MAX; i++) {
        struct str name;
        lua_rawgeti(L, at, i);
        name.p = lua_tolstring(L, -1, &name.n);
        struct node *node = name.p ? fleet_find(name) : NULL;
        bool last = lua_isnil(L, -1);
        lua_pop(L, 1);
        if (last)
            break;
        if (node)
            nodes[n++] = node;
    }
    return n;
}

static int choose(lua_State *L)
{
    struct node *nodes[FLEET_MAX];
    struct route route;
    struct policy_verdict v;
    struct str path;
    char id[37] = "";
    path.p = luaL_checklstring(L, 1, &path.n);
    route_match(HTTP1_POST, path, &route);
    if (!route_uuid(route.collection, id))
        id[0] = 0;
    struct policy_request q = {
        .route = &route,
        .method = STR("POST"),
        .client = STR("journal"),
        .collection_id = id,
        .bytes = (uint64_t)luaL_checknumber(L, 2),
        .attempt = (unsigned)luaL_checknumber(L, 3),
        .last_error = "",
        .session = STR("journal"),
    };
    unsigned n = check_nodes(L, 4, nodes);
    policy_route(&q, nodes, n, base_clock(), &v);
    if (v.node)
        lua_pushstring(L, v.node->name);
    else
        lua_pushnil(L);
    lua_pushstring(L, v.reason);
    return 2;
}

void api_route_open(lua_State *L)
{
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    lua_pushcfunction(L, choose);
    lua_setfield(L, -2, "choose");
    lua_setfield(L, -2, "chromux.route");
    lua_pop(L, 1);
}
