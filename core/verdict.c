/* verdict.c: owns a policy VM: loads the files, gives them `lb`, asks them and checks what they
 * answer. An answer is untrusted: nonsense is a fault with file and line, never a choice. */
#include "verdict.h"

#include "cage.h"

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

/* Functions that are needed outside of protected calls are made before memory can have run out. */
static void pin(lua_State *L, lua_CFunction fn)
{
    lua_pushlightuserdata(L, (void *)fn);
    lua_pushcfunction(L, fn);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

static void push_pinned(lua_State *L, lua_CFunction fn)
{
    lua_pushlightuserdata(L, (void *)fn);
    lua_rawget(L, LUA_REGISTRYINDEX);
}

static struct verdict_vm *vm_of(lua_State *L)
{
    return lua_touserdata(L, lua_upvalueindex(UP_VM));
}

/* ---- the tables are made once ---- */

static int route_entry(lua_State *L);
static int judge_entry(lua_State *L);
static int plain_entry(lua_State *L);

/* Called with the VM and the policy's function; returns the entry function for it. */
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

/* Called with the contract and the question's name besides. */
static int make_plain(lua_State *L)
{
    push_own_upvalues(L);
    lua_getfield(L, 3, "check");
    lua_pushvalue(L, 4);
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
    push_pinned(L, push_sample);
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
    enum policy_id first, end; /* the questions of this file */
    const char *path;
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

/* Pushes the entry function for a question; nil: a mistake was told. */
static void push_entry(lua_State *L, const struct finding *f, enum policy_id id)
{
    static const lua_CFunction make[] = {
        [POLICY_ROUTE] = make_route, [POLICY_FAILOVER] = make_judge};
    lua_pushcfunction(L, id < POLICY_PLAIN ? make[id] : make_plain);
    lua_pushlightuserdata(L, f->vm);
    lua_getfield(L, 2, questions[id].function);
    if (lua_isfunction(L, -1)) {
        lua_pushvalue(L, 3);
        lua_pushstring(L, questions[id].name);
        lua_call(L, 4, 1);
    } else {
        mistake(f->errors, "%s: has no function %s()", f->path, questions[id].function);
        lua_settop(L, -4);
        lua_pushnil(L);
    }
}

/* Arguments: the finding, what the file returned, the contract. Results: an entry function for each
 * question of the file, nil where there was a mistake. */
static int find_functions(lua_State *L)
{
    const struct finding *f = lua_touserdata(L, 1);
    int count = (int)(f->end - f->first);
    lua_settop(L, 3);
    bool good = lua_istable(L, 2);
    if (!good)
        mistake(f->errors, "%s: returns a %s, not a table of functions", f->path,
                luaL_typename(L, 2));
    else if (f->first == POLICY_ROUTE)
        good = strategy_known(L, f);
    lua_settop(L, 3);
    if (!good) {
        lua_settop(L, 3 + count);
        return count;
    }
    for (enum policy_id id = f->first; id < f->end; id++)
        push_entry(L, f, id);
    return count;
}

static bool open_file(struct verdict_vm *vm, const struct finding *f)
{
    char error[SANDBOX_ERROR_MAX];
    lua_State *L = vm->L;
    int base = lua_gettop(L), count = (int)(f->end - f->first);
    push_pinned(L, find_functions);
    lua_pushlightuserdata(L, (void *)f);
    if (cage_load(vm->box, f->path, error) != SANDBOX_OK ||
        sandbox_call(vm->box, 0, 1, error) != SANDBOX_OK) {
        bool placed = strncmp(error, f->path, strlen(f->path)) == 0 || strstr(error, ".lua:");
        mistake(f->errors, "%s%s%s", placed ? "" : f->path, placed ? "" : ": ", error);
        lua_settop(L, base);
        return false;
    }
    if (vm->contract)
        lua_pushvalue(L, vm->contract);
    else
        lua_pushnil(L);
    if (sandbox_call(vm->box, 3, count, error) != SANDBOX_OK) {
        mistake(f->errors, "%s: %s", f->path, error);
        return false;
    }
    bool good = true;
    for (int i = 0; i < count; i++) {
        vm->entry[(int)f->first + i] = base + 1 + i;
        good = good && !lua_isnil(L, base + 1 + i);
    }
    return good;
}

/* Our own code, in the policies' VM: it looks at their answers where they lie. */
static bool open_contract(struct verdict_vm *vm, struct buf *errors)
{
    char error[SANDBOX_ERROR_MAX];
    const struct script_file *f = script_file_find(CONTRACT);
    must(f);
    if (cage_load_text(vm->box, "lua/" CONTRACT, f->p, (size_t)(f->end - f->p), error) !=
            SANDBOX_OK ||
        sandbox_call(vm->box, 0, 1, error) != SANDBOX_OK) {
        mistake(errors, "%s", error);
        return false;
    }
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
        struct finding f = {vm, id, end, path[id], errors};
        if (!path[id])
            continue;
        if (id >= POLICY_PLAIN && !vm->contract && !open_contract(vm, errors))
            return false;
        good = open_file(vm, &f) && good;
    }
    return good;
}

static int prepare(lua_State *L)
{
    struct verdict_vm *vm = lua_touserdata(L, 1);
    pin(L, find_functions);
    pin(L, push_sample);
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
        mistake(errors, "POLICY_MEMORY_BYTES = %ld: not enough for the libraries",
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
