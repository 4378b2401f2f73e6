/* lb.c: owns what lb.random, lb.hash and lb.swrr answer. Round-robin state lies in the nodes, so
 * that it survives a reload; all else begins anew with the VM. */
#include "lb.h"

#include "cage.h"

#include <math.h>
#include <stdlib.h>

enum { HASH_MAX = 65536 }; /* bytes: more could take longer than a call may */

static struct lb *lb_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(1));
}

/* xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
 */
static double next_random(struct lb *lb)
{
    uint64_t x = lb->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    lb->random = x;
    return (double)((x * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

static int lb_random(lua_State *L)
{
    double r = next_random(lb_of(L));
    if (!lua_isnoneornil(L, 1)) {
        double n = floor(luaL_checknumber(L, 1));
        luaL_argcheck(L, n >= 1 && n <= 4294967296.0, 1, "a number from 1 to 2^32 is expected");
        r = 1 + floor(r * n);
    }
    lua_pushnumber(L, r);
    return 1;
}

/* Jenkins' one-at-a-time with four more rounds, since without them the last bytes, where policies
 * put the node's name, hardly reach the high bits. It takes no multiplication, so that lb.testkit
 * can do the same in Lua. */
static int lb_hash(lua_State *L)
{
    size_t n;
    const char *p = luaL_checklstring(L, 1, &n);
    uint32_t h = 0;
    if (n > HASH_MAX)
        return luaL_error(L, "lb.hash takes at most %d bytes", HASH_MAX);
    for (size_t i = 0; i < n + 4; i++) {
        h += i < n ? (unsigned char)p[i] : 0;
        h += h << 10;
        h ^= h >> 6;
    }
    h += h << 3;
    h ^= h >> 11;
    h += h << 15;
    lua_pushnumber(L, h);
    return 1;
}

/* Finds the candidate that the table on top of the stack means, and its weight: a view that was
 * given out, or any table with the name of one and a weight of its own. */
static struct node *node_at_top(lua_State *L, struct lb *lb, double *weight)
{
    const void *p = lua_topointer(L, -1);
    const struct ask *a = &lb->ask;
    for (unsigned i = 0; i < a->count; i++) {
        const struct ask_node *s = &a->node[a->candidate[i]->id];
        if (s->view == p) {
            *weight = s->weight;
            return a->candidate[i];
        }
    }
    if (!lua_istable(L, -1))
        return NULL;
    lua_getfield(L, -1, "weight");
    *weight = lua_tonumber(L, -1);
    lua_getfield(L, -2, "name");
    const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    lua_pop(L, 2);
    return name ? ask_named(a, name) : NULL;
}

/* Smooth weighted round robin, as nginx does it: everybody gains their weight, the highest is
 * taken and pays the sum of all. The current values are the nodes', so they survive a reload. */
static int lb_swrr(lua_State *L)
{
    struct lb *lb = lb_of(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t n = lua_objlen(L, 1);
    struct node *node[FLEET_MAX];
    double weight[FLEET_MAX], sum = 0;
    if (n > FLEET_MAX)
        return luaL_error(L, "lb.swrr: more than %d nodes", FLEET_MAX);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        node[i] = node_at_top(L, lb, &weight[i]);
        if (!node[i])
            return luaL_error(L, "lb.swrr: element %d is not one of the nodes", (int)i + 1);
        if (!(weight[i] > 0 && weight[i] < 1e9))
            return luaL_error(L, "lb.swrr: element %d has no weight over 0", (int)i + 1);
        lua_pop(L, 1);
        sum += weight[i];
    }
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        node[i]->swrr += weight[i];
        if (node[i]->swrr > node[best]->swrr)
            best = i;
    }
    if (n == 0)
        return 0;
    node[best]->swrr -= sum;
    lua_rawgeti(L, 1, (int)best + 1);
    return 1;
}

static void put_setting(void *arg, const char *name, enum config_kind kind, const char *text)
{
    lua_State *L = arg;
    if (kind == CONFIG_NUMBER)
        lua_pushnumber(L, strtod(text, NULL));
    else if (kind == CONFIG_BOOLEAN)
        lua_pushboolean(L, strcmp(text, "true") == 0);
    else
        lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

/* ---- life ---- */

void lb_seed(struct lb *lb, uint64_t seed)
{
    lb->random = seed ? seed : UINT64_C(0x9e3779b97f4a7c15); /* zero is xorshift's fixed point */
}

void lb_open(lua_State *L, struct lb *lb, const struct config *c)
{
    static const struct luaL_Reg functions[] = {
        {"random", lb_random}, {"hash", lb_hash}, {"swrr", lb_swrr}};
    lb->now = -1;
    lua_newtable(L);
    for (unsigned i = 0; i < COUNT_OF(functions); i++) {
        lua_pushlightuserdata(L, lb);
        lua_pushcclosure(L, functions[i].func, 1);
        lua_setfield(L, -2, functions[i].name);
    }
    lua_pushnumber(L, 0);
    lua_setfield(L, -2, "now");
    lua_newtable(L);
    config_each(c, put_setting, L);
    cage_freeze(L);
    lua_setfield(L, -2, "settings");
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, "lb");
    cage_freeze(L);
    cage_share(L, "lb");
}

void lb_push(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, "lb");
}

void lb_put_now(lua_State *L, struct lb *lb, int at, double now)
{
    if (lb->now == now)
        return;
    lua_pushnumber(L, now);
    lua_setfield(L, at, "now");
    lb->now = now;
}
