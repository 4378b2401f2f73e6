/* verdict.c: owns a policy VM: loads the files, gives them `lb`, asks them and checks what they
 * answer. An answer is untrusted: nonsense is a fault with file and line, never a choice. */
#include "verdict.h"

#include "cage.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define TIMEOUT_LEAST 0.01
#define TIMEOUT_MOST  3600.0

/* Upvalues of the entry functions: these, then route's (ask.h) or judge's. */
enum { UP_VM = 1, UP_FUNCTION, UP_LB, JUDGE_SUBJECT, JUDGE_HISTORY = 6, JUDGE_UPVALUES = 7 };
_Static_assert(UP_LB + 1 == ASK_FIRST, "the owner's come first");

enum { HASH_MAX = 65536 }; /* bytes: more could take longer than a call may */

struct verdict_vm {
    struct sandbox *box;
    lua_State *L;
    const struct config *config; /* only while the VM is made */
    uint64_t random;
    int entry[POLICY_COUNT]; /* stack slots of the entry functions; 0: no such file */

    double now; /* what lb.now is */
    struct ask ask;

    /* The call that runs; NULL outside. */
    const struct policy_request *request;
    struct node *const *candidate;
    unsigned count;
    struct policy_verdict *verdict;
    const struct node *subject;
    const struct collection_state *collection;
    bool *up;
    char *reason;
    struct policy_fault *fault; /* set when an answer was wrong */
    bool wrong;
};

/* ---- lb ------------------------------------------------------------------------------------- */

static struct verdict_vm *vm_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(UP_VM));
}

/* xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
 */
static double next_random(struct verdict_vm *vm)
{
    uint64_t x = vm->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    vm->random = x;
    return (double)((x * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

static int lb_random(lua_State *L)
{
    double r = next_random(vm_of(L));
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
static struct node *node_at_top(lua_State *L, struct verdict_vm *vm, double *weight)
{
    const void *p = lua_topointer(L, -1);
    const struct ask *a = &vm->ask;
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
    struct verdict_vm *vm = vm_of(L);
    luaL_checktype(L, 1, LUA_TTABLE);
    size_t n = lua_objlen(L, 1);
    struct node *node[FLEET_MAX];
    double weight[FLEET_MAX], sum = 0;
    if (n > FLEET_MAX)
        return luaL_error(L, "lb.swrr: more than %d nodes", FLEET_MAX);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 1, (int)i + 1);
        node[i] = node_at_top(L, vm, &weight[i]);
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

/* ---- the tables are made once ---- */

static void push_lb_function(lua_State *L, struct verdict_vm *vm, lua_CFunction fn)
{
    lua_pushlightuserdata(L, vm);
    lua_pushcclosure(L, fn, 1);
}

/* Makes `lb` and shares it with every policy; the table behind it stays in the registry. */
static int make_lb(lua_State *L)
{
    static const struct luaL_Reg functions[] = {
        {"random", lb_random}, {"hash", lb_hash}, {"swrr", lb_swrr}};
    struct verdict_vm *vm = lua_touserdata(L, 1);
    lua_newtable(L);
    for (unsigned i = 0; i < COUNT_OF(functions); i++) {
        push_lb_function(L, vm, functions[i].func);
        lua_setfield(L, -2, functions[i].name);
    }
    lua_pushnumber(L, 0);
    lua_setfield(L, -2, "now");
    lua_newtable(L);
    config_each(vm->config, put_setting, L);
    cage_freeze(L);
    lua_setfield(L, -2, "settings");
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, "lb");
    cage_freeze(L);
    cage_share(L, "lb");
    return 0;
}

static int route_entry(lua_State *L);
static int judge_entry(lua_State *L);

/* Called with the VM and the policy's function; returns the entry function for it. */
static void push_own_upvalues(lua_State *L)
{
    lua_pushvalue(L, 1);
    lua_pushvalue(L, 2);
    lua_getfield(L, LUA_REGISTRYINDEX, "lb");
}

static int make_route(lua_State *L)
{
    struct verdict_vm *vm = lua_touserdata(L, 1);
    push_own_upvalues(L);
    ask_push_upvalues(L, &vm->ask);
    lua_pushcclosure(L, route_entry, ASK_FIRST - 1 + ASK_UPVALUES);
    return 1;
}

static int make_judge(lua_State *L)
{
    push_own_upvalues(L);
    for (int i = 0; i < 2; i++) {
        lua_newtable(L);
        lua_pushvalue(L, -1);
        cage_freeze(L);
    }
    lua_pushcclosure(L, judge_entry, JUDGE_UPVALUES);
    return 1;
}

void verdict_forget(struct verdict_vm *vm)
{
    ask_forget(&vm->ask);
}

/* ---- route ---- */

static void wrong(struct verdict_vm *vm, enum policy_failure kind, const char *fmt, ...)
    PRINTF(3, 4);
static void wrong(struct verdict_vm *vm, enum policy_failure kind, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vm->wrong = true;
    vm->fault->kind = kind;
    vsnprintf(vm->fault->error, sizeof vm->fault->error, fmt, args);
    va_end(args);
}

/* Reads the reason at `at`; too long is cut. */
static bool take_reason(lua_State *L, struct verdict_vm *vm, int at, char *reason)
{
    int type = lua_type(L, at);
    if (type == LUA_TNIL || type == LUA_TNONE) {
        reason[0] = 0;
        return true;
    }
    if (type != LUA_TSTRING) {
        wrong(vm, POLICY_FAIL_ANSWER, "the reason is a %s, not text", luaL_typename(L, at));
        return false;
    }
    size_t n;
    const char *p = lua_tolstring(L, at, &n);
    n = n < POLICY_REASON_MAX ? n : POLICY_REASON_MAX - 1;
    memcpy(reason, p, n);
    reason[n] = 0;
    return true;
}

/* The third result: {max_behind = entries, timeout = seconds}. */
static bool take_options(lua_State *L, struct verdict_vm *vm, int at)
{
    if (lua_isnil(L, at))
        return true;
    if (!lua_istable(L, at)) {
        wrong(vm, POLICY_FAIL_ANSWER, "the third answer is a %s, not a table",
              luaL_typename(L, at));
        return false;
    }
    lua_pushnil(L);
    while (lua_next(L, at)) {
        const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        bool number = lua_type(L, -1) == LUA_TNUMBER;
        double v = number ? lua_tonumber(L, -1) : 0;
        if (strcmp(key, "timeout") == 0 && number && v >= TIMEOUT_LEAST && v <= TIMEOUT_MOST) {
            vm->verdict->timeout = v;
        } else if (strcmp(key, "max_behind") == 0 && number && v >= 0 && v < 1e15) {
            vm->verdict->max_behind = v;
        } else {
            wrong(vm, POLICY_FAIL_ANSWER,
                  "'%s' of the third answer is not timeout (%g to %g seconds) or max_behind (0 or "
                  "more entries)",
                  key, TIMEOUT_LEAST, TIMEOUT_MOST);
            return false;
        }
        lua_pop(L, 1);
    }
    return true;
}

static void take_verdict(lua_State *L, struct verdict_vm *vm, int at)
{
    struct policy_verdict *v = vm->verdict;
    if (lua_isnil(L, at)) {
        /* A forgotten `return` must not look like a decision. */
        if (lua_isnil(L, at + 1))
            wrong(vm, POLICY_FAIL_ANSWER,
                  "answered nil without a reason: expected a node's name, or nil and a reason");
        else if (take_reason(L, vm, at + 1, v->reason))
            (void)take_options(L, vm, at + 2);
        return;
    }
    if (lua_type(L, at) != LUA_TSTRING) {
        wrong(vm, POLICY_FAIL_ANSWER, "answered a %s, not a node's name or nil",
              luaL_typename(L, at));
        return;
    }
    const char *name = lua_tostring(L, at);
    struct node *chosen = ask_named(&vm->ask, name);
    if (!chosen)
        wrong(vm, POLICY_FAIL_UNKNOWN_NODE, "answered '%.80s', which is not one of the nodes",
              name);
    else if (take_reason(L, vm, at + 1, v->reason) && take_options(L, vm, at + 2))
        v->node = chosen;
}

static void put_now(lua_State *L, struct verdict_vm *vm, double now)
{
    if (vm->now == now)
        return;
    lua_pushnumber(L, now);
    lua_setfield(L, lua_upvalueindex(UP_LB), "now");
    vm->now = now;
}

static int route_entry(lua_State *L)
{
    struct verdict_vm *vm = vm_of(L);
    double now = lua_tonumber(L, 1);
    put_now(L, vm, now);
    ask_refresh(L, &vm->ask, vm->request, vm->candidate, vm->count, now);
    lua_settop(L, 0);
    lua_pushvalue(L, lua_upvalueindex(UP_FUNCTION));
    lua_pushvalue(L, lua_upvalueindex(ASK_REQ));
    lua_pushvalue(L, lua_upvalueindex(ASK_NODES));
    lua_call(L, 2, 3);
    take_verdict(L, vm, 1);
    return 0;
}

/* Errors of the library, of memory or of an answer name no place: the function's own is put in
 * front of them. */
static void place_fault(struct verdict_vm *vm, enum policy_id id)
{
    lua_Debug ar;
    char text[POLICY_ERROR_MAX];
    if (!lua_getupvalue(vm->L, vm->entry[id], UP_FUNCTION))
        return;
    lua_getinfo(vm->L, ">S", &ar);
    if (strncmp(vm->fault->error, ar.short_src, strlen(ar.short_src)) == 0)
        return;
    snprintf(text, sizeof text, "%s:%d: %.400s", ar.short_src, ar.linedefined, vm->fault->error);
    memcpy(vm->fault->error, text, sizeof text);
}

static bool call(struct verdict_vm *vm, enum policy_id id, double now, struct policy_fault *fault)
{
    static const enum policy_failure kinds[] = {
        [SANDBOX_ERROR] = POLICY_FAIL_ERROR,
        [SANDBOX_BUDGET] = POLICY_FAIL_BUDGET,
        [SANDBOX_TIME] = POLICY_FAIL_TIME,
        [SANDBOX_MEMORY] = POLICY_FAIL_MEMORY,
    };
    vm->fault = fault;
    vm->wrong = false;
    lua_pushvalue(vm->L, vm->entry[id]);
    lua_pushnumber(vm->L, now);
    enum sandbox_stop stop = sandbox_call(vm->box, 1, 0, fault->error);
    vm->ask.count = 0; /* lb.swrr() knows no nodes outside route() */
    if (LIKELY(stop == SANDBOX_OK && !vm->wrong))
        return true;
    if (stop != SANDBOX_OK)
        fault->kind = kinds[stop];
    place_fault(vm, id);
    return false;
}

bool verdict_route(struct verdict_vm *vm, const struct policy_request *r,
                   struct node *const *candidates, unsigned count, double now,
                   struct policy_verdict *out, struct policy_fault *fault)
{
    must(vm->entry[POLICY_ROUTE] && count <= FLEET_MAX);
    out->node = NULL;
    out->reason[0] = 0;
    out->timeout = 0;
    out->max_behind = -1;
    out->by_fallback = false;
    vm->request = r;
    vm->candidate = candidates;
    vm->count = count;
    vm->verdict = out;
    return call(vm, POLICY_ROUTE, now, fault);
}

/* ---- judge ---- */

static void field_text(lua_State *L, int table, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, table, name);
}

static void field_number(lua_State *L, int table, const char *name, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, table, name);
}

/* Calls of judge() are rare: everything is written each time. */
static int judge_entry(lua_State *L)
{
    struct verdict_vm *vm = vm_of(L);
    const struct node *n = vm->subject;
    const struct collection_state *c = vm->collection;
    const struct history *h = c ? &c->history : &n->history;
    enum node_health health = c ? c->health : n->health;
    double now = lua_tonumber(L, 1);
    put_now(L, vm, now);

    int t = lua_upvalueindex(JUDGE_SUBJECT);
    field_text(L, t, "kind", c ? "collection" : "instance");
    field_text(L, t, "name", n->name);
    field_text(L, t, "collection", c ? c->id : "");
    field_text(L, t, "state", fleet_health_name(health));
    lua_pushboolean(L, health != NODE_DOWN);
    lua_setfield(L, t, "up");
    field_number(L, t, "since", now - (c ? c->since : n->since));

    t = lua_upvalueindex(JUDGE_HISTORY);
    field_number(L, t, "fails", h->fails);
    field_number(L, t, "passes", h->passes);
    field_number(L, t, "connect_fails", h->connect_fails);
    field_number(L, t, "timeouts", h->timeouts);
    field_number(L, t, "resets", h->resets);
    field_number(L, t, "errors_5xx", h->errors_5xx);
    field_number(L, t, "oks", h->oks);
    field_number(L, t, "busy", h->busy_since > 0 ? now - h->busy_since : 0);
    field_text(L, t, "last_error", h->last_error);

    lua_settop(L, 0);
    lua_pushvalue(L, lua_upvalueindex(UP_FUNCTION));
    lua_pushvalue(L, lua_upvalueindex(JUDGE_SUBJECT + 1));
    lua_pushvalue(L, lua_upvalueindex(JUDGE_HISTORY + 1));
    lua_call(L, 2, 2);
    const char *word = lua_type(L, 1) == LUA_TSTRING ? lua_tostring(L, 1) : luaL_typename(L, 1);
    bool up = strcmp(word, "up") == 0;
    if (lua_type(L, 1) != LUA_TSTRING || (!up && strcmp(word, "down") != 0))
        wrong(vm, POLICY_FAIL_ANSWER, "answered %.80s, not \"up\" or \"down\"", word);
    else if (take_reason(L, vm, 2, vm->reason))
        *vm->up = up;
    return 0;
}

bool verdict_judge(struct verdict_vm *vm, const struct node *n, const struct collection_state *c,
                   double now, bool *up, char reason[POLICY_REASON_MAX], struct policy_fault *fault)
{
    must(vm->entry[POLICY_FAILOVER]);
    vm->subject = n;
    vm->collection = c;
    vm->up = up;
    vm->reason = reason;
    return call(vm, POLICY_FAILOVER, now, fault);
}

/* ---- life ---- */

static void mistake(struct buf *errors, const char *fmt, ...) PRINTF(2, 3);
static void mistake(struct buf *errors, const char *fmt, ...)
{
    char line[POLICY_ERROR_MAX + 256];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    line[len++] = '\n';
    if (buf_room(errors) >= len)
        buf_put(errors, line, len);
}

struct finding {
    struct verdict_vm *vm;
    enum policy_id id;
    const char *path, *function;
    struct buf *errors;
};

/* The strategy setting must name one of M.strategies, where the file has that table. Pushed onto
 * the error: the ones it does know, sorted. */
static bool strategy_known(lua_State *L, const struct finding *f)
{
    const char *wanted = f->vm->config->strategy;
    lua_getfield(L, 2, "strategies");
    if (!lua_istable(L, -1))
        return true;
    lua_getfield(L, -1, wanted);
    if (lua_isfunction(L, -1))
        return true;
    lua_pop(L, 1);
    const char *name[64];
    unsigned n = 0;
    for (lua_pushnil(L); lua_next(L, -2) && n < COUNT_OF(name); lua_pop(L, 1))
        if (lua_type(L, -2) == LUA_TSTRING)
            name[n++] = lua_tostring(L, -2);
    char known[400] = "";
    for (unsigned i = 0; i < n; i++) {
        unsigned least = i;
        for (unsigned j = i + 1; j < n; j++)
            least = strcmp(name[j], name[least]) < 0 ? j : least;
        const char *t = name[i];
        name[i] = name[least];
        name[least] = t;
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", name[i]);
    }
    char text[POLICY_ERROR_MAX + 200];
    snprintf(text, sizeof text, "expected a strategy of %.200s: %s", f->path, known);
    config_complain(f->vm->config, "LOAD_BALANCE_STRATEGY", text, f->errors);
    return false;
}

/* Arguments: the finding, what the file returned. Result: the entry function, or nothing. */
static int find_function(lua_State *L)
{
    const struct finding *f = lua_touserdata(L, 1);
    if (!lua_istable(L, 2)) {
        mistake(f->errors, "%s: returns a %s, not a table of functions", f->path,
                luaL_typename(L, 2));
        return 0;
    }
    if (f->id == POLICY_ROUTE && !strategy_known(L, f))
        return 0;
    lua_getfield(L, 2, f->function);
    if (!lua_isfunction(L, -1)) {
        mistake(f->errors, "%s: has no function %s()", f->path, f->function);
        return 0;
    }
    lua_pushcfunction(L, f->id == POLICY_ROUTE ? make_route : make_judge);
    lua_pushlightuserdata(L, f->vm);
    lua_pushvalue(L, -3);
    lua_call(L, 2, 1);
    return 1;
}

static bool open_file(struct verdict_vm *vm, const struct finding *f)
{
    char error[SANDBOX_ERROR_MAX];
    lua_State *L = vm->L;
    if (cage_load(vm->box, f->path, error) != SANDBOX_OK ||
        sandbox_call(vm->box, 0, 1, error) != SANDBOX_OK) {
        bool placed = strncmp(error, f->path, strlen(f->path)) == 0 || strstr(error, ".lua:");
        mistake(f->errors, "%s%s%s", placed ? "" : f->path, placed ? "" : ": ", error);
        return false;
    }
    lua_pushlightuserdata(L, (void *)find_function);
    lua_rawget(L, LUA_REGISTRYINDEX);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, (void *)f);
    lua_insert(L, -2);
    if (sandbox_call(vm->box, 2, 1, error) != SANDBOX_OK) {
        mistake(f->errors, "%s: %s", f->path, error);
        return false;
    }
    if (lua_isnil(L, -1)) {
        lua_pop(L, 1);
        return false;
    }
    vm->entry[f->id] = lua_gettop(L);
    return true;
}

static int prepare(lua_State *L)
{
    lua_pushlightuserdata(L, (void *)find_function);
    lua_pushcfunction(L, find_function);
    lua_rawset(L, LUA_REGISTRYINDEX);
    return make_lb(L);
}

struct verdict_vm *verdict_vm_new(const struct config *c, const char *const path[POLICY_COUNT],
                                  struct buf *errors)
{
#define FUNCTION(id, file, fn) fn,
    static const char *const functions[] = {POLICIES(FUNCTION)};
    struct verdict_vm *vm = base_zalloc(sizeof *vm);
    const struct sandbox_limits limits = {(size_t)c->policy_memory, c->policy_budget,
                                          c->policy_time};
    vm->box = sandbox_new(&limits, cage_open);
    vm->config = c;
    vm->ask.slow_start = c->slow_start;
    vm->now = -1;
    verdict_forget(vm);
    if (getrandom(&vm->random, sizeof vm->random, 0) != (ssize_t)sizeof vm->random)
        vm->random = 0;
    verdict_seed(vm, vm->random);
    bool good = vm->box != NULL;
    if (good) {
        vm->L = sandbox_lua(vm->box);
        good = lua_cpcall(vm->L, prepare, vm) == 0;
        lua_settop(vm->L, 0);
    }
    if (!good)
        mistake(errors, "POLICY_MEMORY_BYTES = %ld: not enough for the libraries",
                c->policy_memory);
    bool open = good;
    for (int id = 0; open && id < POLICY_COUNT; id++) {
        struct finding f = {vm, (enum policy_id)id, path[id], functions[id], errors};
        if (path[id] && !open_file(vm, &f))
            good = false;
    }
    vm->config = NULL;
    if (good)
        return vm;
    verdict_vm_free(vm);
    return NULL;
}

void verdict_vm_free(struct verdict_vm *vm)
{
    if (!vm)
        return;
    sandbox_free(vm->box);
    free(vm);
}

size_t verdict_vm_memory(const struct verdict_vm *vm)
{
    return sandbox_memory(vm->box);
}

void verdict_seed(struct verdict_vm *vm, uint64_t seed)
{
    vm->random = seed ? seed : UINT64_C(0x9e3779b97f4a7c15); /* zero is xorshift's fixed point */
}
