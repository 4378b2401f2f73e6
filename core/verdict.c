/* verdict.c: owns a policy VM: loads the files, gives them `lb`, asks them and checks what they
 * answer. An answer is untrusted: nonsense is a fault with file and line, never a choice. */
#include "verdict.h"

#include "loader.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define TIMEOUT_LEAST 0.01
#define TIMEOUT_MOST  3600.0
#define CONTRACT      "lb/contract.lua" /* what plain answers must look like */

/* Upvalues of the entry functions: these, then route's (ask.h), judge's or those of plain ones. */
enum {
    UP_VM = 1,
    UP_FUNCTION,
    UP_LB,
    JUDGE_SUBJECT,
    JUDGE_HISTORY = 6,
    JUDGE_UPVALUES = 7,
    PLAIN_CHECK = UP_LB + 1,
    PLAIN_NAME,
    PLAIN_UPVALUES = PLAIN_NAME
};
_Static_assert(UP_LB + 1 == ASK_FIRST, "the owner's come first");

static const struct question {
    const char *name, *file, *function;
} questions[] = {
#define QUESTION(id, name, file, fn) {name, file, fn},
    POLICIES(QUESTION)};

struct verdict_vm {
    struct sandbox *box;
    lua_State *L;
    const struct config *config; /* only while the VM is made */
    int entry[POLICY_COUNT];     /* stack slots of the entry functions; 0: no such file */
    int contract;                /* stack slot of what CONTRACT returns; 0: not needed */
    struct lb lb;

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

static struct verdict_vm *vm_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(UP_VM));
}

/* ---- the tables are made once ---- */

static int route_entry(lua_State *L);
static int judge_entry(lua_State *L);
static int plain_entry(lua_State *L);

/* The make functions are called with the VM and the policy's function, and return the entry
 * function for it. */
static void push_own_upvalues(lua_State *L)
{
    lua_pushvalue(L, 1);
    lua_pushvalue(L, 2);
    lb_push(L);
}

static int make_route(lua_State *L)
{
    struct verdict_vm *vm = lua_touserdata(L, 1);
    push_own_upvalues(L);
    ask_push_upvalues(L, &vm->lb.ask);
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

/* Called with the contract and the question besides. */
static int make_plain(lua_State *L)
{
    const struct question *q = lua_touserdata(L, 4);
    push_own_upvalues(L);
    lua_getfield(L, 3, "check");
    lua_pushstring(L, q->name);
    lua_pushcclosure(L, plain_entry, PLAIN_UPVALUES);
    return 1;
}

void verdict_forget(struct verdict_vm *vm)
{
    ask_forget(&vm->lb.ask);
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
    struct node *chosen = ask_named(&vm->lb.ask, name);
    if (!chosen)
        wrong(vm, POLICY_FAIL_UNKNOWN_NODE, "answered '%.80s', which is not one of the nodes",
              name);
    else if (take_reason(L, vm, at + 1, v->reason) && take_options(L, vm, at + 2))
        v->node = chosen;
}

static int route_entry(lua_State *L)
{
    struct verdict_vm *vm = vm_of(L);
    double now = lua_tonumber(L, 1);
    lb_put_now(L, &vm->lb, lua_upvalueindex(UP_LB), now);
    ask_refresh(L, &vm->lb.ask, vm->request, vm->candidate, vm->count, now);
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

/* The nargs values on top of the stack follow the time; nresults answers are left there. */
static bool call(struct verdict_vm *vm, enum policy_id id, int nargs, int nresults, double now,
                 struct policy_fault *fault)
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
    if (nargs) {
        lua_insert(vm->L, -nargs - 2);
        lua_insert(vm->L, -nargs - 2);
    }
    enum sandbox_stop stop = sandbox_call(vm->box, nargs + 1, nresults, fault->error);
    vm->lb.ask.count = 0; /* lb.swrr() knows no nodes outside route() */
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
    return call(vm, POLICY_ROUTE, 0, 0, now, fault);
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
    lb_put_now(L, &vm->lb, lua_upvalueindex(UP_LB), now);

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
    return call(vm, POLICY_FAILOVER, 0, 0, now, fault);
}

/* ---- plain values ---- */

static int plain_entry(lua_State *L)
{
    struct verdict_vm *vm = vm_of(L);
    lb_put_now(L, &vm->lb, lua_upvalueindex(UP_LB), lua_tonumber(L, 1));
    lua_remove(L, 1);
    int given = lua_gettop(L);
    lua_pushvalue(L, lua_upvalueindex(UP_FUNCTION));
    for (int i = 1; i <= given; i++)
        lua_pushvalue(L, i);
    lua_call(L, given, VERDICT_ANSWERS);
    lua_pushvalue(L, lua_upvalueindex(PLAIN_CHECK));
    lua_pushvalue(L, lua_upvalueindex(PLAIN_NAME));
    for (int i = 1; i <= VERDICT_ANSWERS; i++)
        lua_pushvalue(L, given + i);
    for (int i = 1; i <= given; i++)
        lua_pushvalue(L, i);
    lua_call(L, 1 + VERDICT_ANSWERS + given, 1);
    if (lua_isstring(L, -1))
        wrong(vm, POLICY_FAIL_ANSWER, "%.400s", lua_tostring(L, -1));
    lua_pop(L, 1);
    return VERDICT_ANSWERS;
}

/* These calls are seldom and may be long, but must not hold the loop for ever either. */
static bool call_plain(struct verdict_vm *vm, enum policy_id id, int nargs, double now,
                       struct policy_fault *fault)
{
    int base = lua_gettop(vm->L) - nargs;
    sandbox_scale(vm->box, VERDICT_PLAIN_SHARE);
    bool good = call(vm, id, nargs, VERDICT_ANSWERS, now, fault);
    sandbox_scale(vm->box, 1);
    if (!good)
        lua_settop(vm->L, base);
    return good;
}

/* What could not be copied, and why, as the fault of the call. */
static bool not_copied(struct verdict_vm *vm, enum policy_id id, int base, const char *what,
                       const char *why, struct policy_fault *fault)
{
    lua_settop(vm->L, base);
    sandbox_relieve(vm->box);
    vm->fault = fault;
    fault->kind = strcmp(why, SCRIPT_NO_MEMORY) == 0 ? POLICY_FAIL_MEMORY : POLICY_FAIL_ANSWER;
    snprintf(fault->error, sizeof fault->error, "%s: %s", what, why);
    place_fault(vm, id);
    return false;
}

bool verdict_call(struct verdict_vm *vm, enum policy_id id, lua_State *from, int nargs, double now,
                  struct policy_fault *fault)
{
    int base = lua_gettop(vm->L), first = lua_gettop(from) - nargs + 1;
    const char *why;
    must(vm->entry[id] && id >= POLICY_PLAIN && lua_checkstack(vm->L, nargs + LUA_MINSTACK));
    for (int i = 0; i < nargs; i++)
        if (!script_copy(from, first + i, vm->L, &why))
            return not_copied(vm, id, base, "what it was asked", why, fault);
    if (!call_plain(vm, id, nargs, now, fault))
        return false;
    int top = lua_gettop(from);
    for (int i = 1; i <= VERDICT_ANSWERS; i++)
        if (!script_copy(vm->L, base + i, from, &why)) {
            lua_settop(from, top);
            return not_copied(vm, id, base, "what it answered", why, fault);
        }
    lua_settop(vm->L, base);
    return true;
}

struct sample {
    const char *name; /* the question's */
    unsigned number;
};

/* Arguments: the contract, the sample. Results: a label and what is asked; none after the last. */
static int push_sample(lua_State *L)
{
    const struct sample *s = lua_touserdata(L, 2);
    lua_getfield(L, 1, "sample");
    lua_pushstring(L, s->name);
    lua_pushnumber(L, s->number);
    lua_call(L, 2, LUA_MULTRET);
    return lua_gettop(L) - 2;
}

bool verdict_try(struct verdict_vm *vm, enum policy_id id, unsigned number, double now, bool *more,
                 char label[VERDICT_LABEL_MAX], struct policy_fault *fault)
{
    lua_State *L = vm->L;
    int base = lua_gettop(L);
    struct sample s = {questions[id].name, number + 1};
    sandbox_push_pinned(L, push_sample);
    lua_pushvalue(L, vm->contract);
    lua_pushlightuserdata(L, &s);
    if (sandbox_call(vm->box, 2, LUA_MULTRET, fault->error) != SANDBOX_OK) {
        fault->kind = POLICY_FAIL_MEMORY; /* the code is ours, the memory is theirs */
        return false;
    }
    *more = lua_gettop(L) > base;
    if (!*more)
        return true;
    snprintf(label, VERDICT_LABEL_MAX, "%s", lua_tostring(L, base + 1));
    bool good = call_plain(vm, id, lua_gettop(L) - base - 1, now, fault);
    lua_settop(L, base);
    return good;
}

bool verdict_has(const struct verdict_vm *vm, enum policy_id id)
{
    return vm->entry[id] != 0;
}

/* ---- life ---- */

/* Turns the function on top of the stack into the entry function of a question. */
static bool make_entry(struct verdict_vm *vm, enum policy_id id, struct buf *errors)
{
    static const lua_CFunction make[] = {
        [POLICY_ROUTE] = make_route, [POLICY_FAILOVER] = make_judge};
    char error[SANDBOX_ERROR_MAX];
    lua_State *L = vm->L;
    sandbox_push_pinned(L, id < POLICY_PLAIN ? make[id] : make_plain);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, vm);
    lua_insert(L, -2);
    lua_pushvalue(L, vm->contract ? vm->contract : -1);
    lua_pushlightuserdata(L, (void *)&questions[id]);
    if (sandbox_call(vm->box, 4, 1, error) == SANDBOX_OK)
        return true;
    loader_mistake(errors, "%s", error);
    return false;
}

/* The questions from first up to end are those of this file. */
static bool open_file(struct verdict_vm *vm, enum policy_id first, enum policy_id end,
                      const char *path, struct buf *errors)
{
    const char *functions[POLICY_COUNT];
    const struct config *strategies = first == POLICY_ROUTE ? vm->config : NULL;
    int base = lua_gettop(vm->L);
    for (enum policy_id id = first; id < end; id++)
        functions[id - first] = questions[id].function;
    if (!loader_open(vm->box, path, functions, end - first, strategies, errors))
        return false;
    for (enum policy_id id = first; id < end; id++) {
        vm->entry[id] = base + 1 + (int)(id - first);
        lua_pushvalue(vm->L, vm->entry[id]);
        if (!make_entry(vm, id, errors))
            return false;
        lua_replace(vm->L, vm->entry[id]);
    }
    return true;
}

/* Our own code, in the policies' VM: it looks at their answers where they lie. */
static bool open_contract(struct verdict_vm *vm, struct buf *errors)
{
    if (!loader_open_own(vm->box, CONTRACT, errors))
        return false;
    vm->contract = lua_gettop(vm->L);
    return true;
}

/* All mistakes of all files are told. */
static bool open_files(struct verdict_vm *vm, const char *const path[POLICY_COUNT],
                       struct buf *errors)
{
    bool good = true;
    for (enum policy_id id = 0, end; id < POLICY_COUNT; id = end) {
        for (end = id + 1; end < POLICY_COUNT; end++)
            if (strcmp(questions[end].file, questions[id].file) != 0)
                break;
        if (!path[id])
            continue;
        if (id >= POLICY_PLAIN && !vm->contract && !open_contract(vm, errors))
            return false;
        good = open_file(vm, id, end, path[id], errors) && good;
    }
    return good;
}

static int prepare(lua_State *L)
{
    struct verdict_vm *vm = lua_touserdata(L, 1);
    const lua_CFunction pinned[] = {make_route, make_judge, make_plain, push_sample};
    for (unsigned i = 0; i < COUNT_OF(pinned); i++)
        sandbox_pin(L, pinned[i]);
    loader_prepare(L);
    lb_open(L, &vm->lb, vm->config);
    return 0;
}

struct verdict_vm *verdict_vm_new(const struct config *c, const char *const path[POLICY_COUNT],
                                  struct buf *errors)
{
    struct verdict_vm *vm = base_zalloc(sizeof *vm);
    const struct sandbox_limits limits = {(size_t)c->policy_memory, c->policy_budget,
                                          c->policy_time};
    uint64_t seed;
    vm->box = sandbox_new(&limits, cage_open);
    vm->config = c;
    vm->lb.ask.slow_start = c->slow_start;
    verdict_forget(vm);
    verdict_seed(vm, getrandom(&seed, sizeof seed, 0) == (ssize_t)sizeof seed ? seed : 0);
    bool good = vm->box != NULL;
    if (good) {
        vm->L = sandbox_lua(vm->box);
        good = lua_cpcall(vm->L, prepare, vm) == 0;
        lua_settop(vm->L, 0);
    }
    if (good)
        good = open_files(vm, path, errors);
    else
        loader_mistake(errors, "POLICY_MEMORY_BYTES = %ld: not enough for the libraries",
                       c->policy_memory);
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
    lb_seed(&vm->lb, seed);
}
