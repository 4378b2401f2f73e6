/* sandbox.c: three limits on what code in a VM can use up. Lua instructions: a count hook, re-armed
 * to every instruction once over, so that a pcall gets no further than the next one. Wall time:
 * read in the same hook, and after library calls that may take long. Memory: the allocator says no.
 */
#include "sandbox.h"

#include <luajit.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    STEP = 250,           /* instructions between two looks at the limits */
    C_STACK_MAX = 1 << 20 /* bytes: LuaJIT bounds Lua's stack, but not C's, which callbacks and
                             coroutines inside one another use up */
};

struct sandbox {
    lua_State *L;
    struct sandbox_limits limits;
    unsigned times; /* the budget and the time, for one call */
    size_t used;
    bool refused;           /* the allocator said no during this call */
    enum sandbox_stop stop; /* why this call must end; OK while it may go on */
    long instructions;      /* of this call, in whole steps */
    const char *c_stack;    /* where this call's use of the C stack begins */
    double started;         /* monotonic time of the first look; 0: none yet */
    char why[SANDBOX_ERROR_MAX];
};

static struct sandbox *sandbox_of(lua_State *L)
{
    void *s;
    lua_getallocf(L, &s);
    return s;
}

static void *allocate(void *ud, void *p, size_t was, size_t want)
{
    struct sandbox *s = ud;
    was = p ? was : 0;
    if (want == 0) {
        free(p);
        s->used -= was;
        return NULL;
    }
    if (want > was && s->used - was + want > s->limits.memory) {
        s->refused = true;
        return NULL;
    }
    void *q = realloc(p, want);
    if (q)
        s->used += want - was;
    return q;
}

/* ---- the limits of a call ------------------------------------------------------------------- */

/* The processor's time, not the clock's: while others have the processor, or the machine sleeps, a
 * policy has done nothing wrong. It waits for nothing, so else they are the same. */
static double used_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void on_count(lua_State *L, lua_Debug *ar);

/* Ends the call from wherever it is. */
static void stop_now(lua_State *L, struct sandbox *s, lua_Debug *ar)
{
    lua_sethook(L, on_count, LUA_MASKCOUNT, 1);
    if (s->why[0] == 0) {
        lua_getinfo(L, "Sl", ar);
        int n = snprintf(s->why, sizeof s->why, "%s:%d: ", ar->short_src, ar->currentline);
        if (s->stop == SANDBOX_BUDGET)
            snprintf(s->why + n, sizeof s->why - (size_t)n, "used more than %ld instructions",
                     s->limits.budget * (long)s->times);
        else
            snprintf(s->why + n, sizeof s->why - (size_t)n, "used more than %g seconds",
                     s->limits.seconds * s->times);
    }
    lua_pushstring(L, s->why);
    lua_error(L);
}

/* The first look starts the clock: a call shorter than one step never reads it. */
static bool late(struct sandbox *s)
{
    double now = used_seconds();
    if (s->started == 0)
        s->started = now;
    return now - s->started > s->limits.seconds * s->times;
}

static void on_count(lua_State *L, lua_Debug *ar)
{
    struct sandbox *s = sandbox_of(L);
    if (s->stop == SANDBOX_OK) {
        s->instructions += STEP;
        /* The first step began before this call did: only whole ones count. */
        if (s->instructions - STEP >= s->limits.budget * (long)s->times)
            s->stop = SANDBOX_BUDGET;
        else if (late(s))
            s->stop = SANDBOX_TIME;
    }
    if (s->stop != SANDBOX_OK)
        stop_now(L, s, ar);
    if (s->c_stack - (const char *)__builtin_frame_address(0) > C_STACK_MAX) {
        lua_getinfo(L, "Sl", ar);
        lua_pushfstring(L, "%s:%d: C stack overflow", ar->short_src, ar->currentline);
        lua_error(L);
    }
}

void sandbox_look(lua_State *L)
{
    struct sandbox *s = sandbox_of(L);
    lua_Debug ar;
    if (s->stop == SANDBOX_OK && late(s) && lua_getstack(L, 1, &ar)) {
        s->stop = SANDBOX_TIME;
        stop_now(L, s, &ar);
    }
}

void sandbox_pin(lua_State *L, lua_CFunction fn)
{
    lua_pushlightuserdata(L, (void *)fn);
    lua_pushcfunction(L, fn);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

void sandbox_push_pinned(lua_State *L, lua_CFunction fn)
{
    lua_pushlightuserdata(L, (void *)fn);
    lua_rawget(L, LUA_REGISTRYINDEX);
}

static int collect(lua_State *L)
{
    lua_gc(L, LUA_GCCOLLECT, 0);
    return 0;
}

/* Garbage of a failed call must not fail the next one. */
void sandbox_relieve(struct sandbox *s)
{
    lua_State *L = s->L;
    int base = lua_gettop(L);
    if (!s->refused)
        return;
    s->refused = false;
    sandbox_push_pinned(L, collect);
    if (lua_pcall(L, 0, 0, 0) != 0)
        lua_settop(L, base);
}

static enum sandbox_stop call_ended(struct sandbox *s, int base, int status, char *error)
{
    lua_State *L = s->L;
    enum sandbox_stop stop = s->stop;
    if (stop != SANDBOX_OK) {
        snprintf(error, SANDBOX_ERROR_MAX, "%s", s->why);
        lua_sethook(L, on_count, LUA_MASKCOUNT, STEP);
    } else {
        /* A refusal caught inside the policy (or rethrown as text) is a matter of memory too. */
        stop = status == LUA_ERRMEM || s->refused ? SANDBOX_MEMORY : SANDBOX_ERROR;
        const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
        if (text)
            snprintf(error, SANDBOX_ERROR_MAX, "%s", text);
        else
            snprintf(error, SANDBOX_ERROR_MAX, "error object is a %s value", luaL_typename(L, -1));
        if (stop == SANDBOX_MEMORY)
            snprintf(error + strlen(error), SANDBOX_ERROR_MAX - strlen(error),
                     " (%zu bytes for everything in this VM)", s->limits.memory);
    }
    lua_settop(L, base);
    sandbox_relieve(s);
    return stop;
}

enum sandbox_stop sandbox_call(struct sandbox *s, int nargs, int nresults,
                               char error[SANDBOX_ERROR_MAX])
{
    int base = lua_gettop(s->L) - nargs - 1;
    s->stop = SANDBOX_OK;
    s->instructions = 0;
    s->started = 0;
    s->c_stack = __builtin_frame_address(0);
    s->refused = false;
    s->why[0] = 0;
    int status = lua_pcall(s->L, nargs, nresults, 0);
    if (LIKELY(status == 0 && s->stop == SANDBOX_OK))
        return SANDBOX_OK;
    return call_ended(s, base, status, error);
}

static int prepare(lua_State *L)
{
    lua_CFunction open = *(lua_CFunction *)lua_touserdata(L, 1);
    sandbox_pin(L, collect);
    lua_pushcfunction(L, open);
    lua_call(L, 0, 0);
    return 0;
}

/* The cap holds from the end on: LuaJIT does not survive being refused memory while it makes a VM.
 */
struct sandbox *sandbox_new(const struct sandbox_limits *limits, lua_CFunction open)
{
    struct sandbox *s = base_zalloc(sizeof *s);
    s->limits = *limits;
    s->times = 1;
    s->limits.memory = SIZE_MAX;
    s->c_stack = __builtin_frame_address(0);
    s->L = lua_newstate(allocate, s);
    must(s->L);
    int status = lua_cpcall(s->L, prepare, &open);
    must(status == 0);
    luaJIT_setmode(s->L, 0, LUAJIT_MODE_ENGINE | LUAJIT_MODE_OFF);
    lua_sethook(s->L, on_count, LUA_MASKCOUNT, STEP);
    s->limits.memory = limits->memory;
    if (s->used <= limits->memory)
        return s;
    sandbox_free(s);
    return NULL;
}

void sandbox_scale(struct sandbox *s, unsigned times)
{
    s->times = times;
}

void sandbox_free(struct sandbox *s)
{
    if (s && s->L)
        lua_close(s->L);
    free(s);
}

lua_State *sandbox_lua(const struct sandbox *s)
{
    return s->L;
}

size_t sandbox_memory(const struct sandbox *s)
{
    return s->used;
}
