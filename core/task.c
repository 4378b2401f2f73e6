/* task.c: the scheduler. Tasks and waits are ours and freed by task_stop(); Lua never owns C
 * memory. Tasks are resumed from the loop only, never from inside another one. */
#include "task.h"

#include "log.h"

#include <stdio.h>
#include <stdlib.h>

#define TASKS_MAX 65536 /* a power of two: the low bits of an id are its slot */

#define SLEEP_MOST 1e7

enum kind { SLEEP, PARK, CALL, KEPT };

struct wait {
    struct wait *next, **at;
    enum kind kind;
    uint64_t task, generation;
    ev_timer timer;          /* SLEEP; PARK when woken */
    void (*drop)(void *arg); /* CALL */
    void *arg;
};

struct task {
    uint64_t id, generation;
    lua_State *co;
    int ref; /* keeps co in the registry */
    struct wait *wait;
    bool main;
};

static lua_State *vm; /* runs no task: values that a wait brings are made on it */
static struct ev_loop *loop;
static struct task *tasks[TASKS_MAX];
static unsigned task_count;
static uint64_t next_serial;
static struct task *current;
static struct wait *waits;
static struct {
    bool on, over;
    int code;
} program;

static void task_resume(struct task *t, lua_CFunction push, const void *result);

static struct task *task_find(uint64_t id)
{
    struct task *t = tasks[id % TASKS_MAX];
    return t && t->id == id ? t : NULL;
}

static void wait_free(struct wait *w)
{
    ev_timer_stop(loop, &w->timer);
    *w->at = w->next;
    if (w->next)
        w->next->at = w->at;
    free(w);
}

/* The task does not wait for it any more. What can't be taken back stays until its event comes, and
 * is stale then. */
static void wait_drop(struct task *t)
{
    struct wait *w = t->wait;
    t->wait = NULL;
    t->generation++;
    if (!w || w->kind == KEPT)
        return;
    if (w->kind == CALL)
        w->drop(w->arg);
    wait_free(w);
}

/* The one way back into a task. `push` runs on the VM with a pointer to `result` as its argument
 * and returns how many values the wait brought. */
static void wait_over(struct wait *w, lua_CFunction push, const void *result)
{
    struct task *t = task_find(w->task);
    bool mine = t && t->generation == w->generation;
    must(!mine || t->wait == w);
    wait_free(w);
    if (!mine)
        return;
    t->wait = NULL;
    task_resume(t, push, result);
}

static void on_timer(struct ev_loop *l, ev_timer *w, int revents)
{
    wait_over(container_of(w, struct wait, timer), NULL, NULL);
}

static struct wait *wait_new(struct task *t, enum kind kind)
{
    struct wait *w = base_zalloc(sizeof *w);
    wait_drop(t); /* there is one when the yield of the last one was refused */
    w->kind = kind;
    w->task = t->id;
    w->generation = t->generation;
    ev_init(&w->timer, on_timer);
    w->next = waits;
    w->at = &waits;
    if (w->next)
        w->next->at = &w->next;
    waits = w;
    t->wait = w;
    return w;
}

static void wait_timer(struct wait *w, double seconds)
{
    ev_now_update(loop);
    ev_timer_stop(loop, &w->timer);
    ev_timer_set(&w->timer, seconds, 0.);
    ev_timer_start(loop, &w->timer);
}

/* Frees the task; its coroutine is collected without being run again. */
static void task_end(struct task *t)
{
    must(t != current);
    wait_drop(t);
    tasks[t->id % TASKS_MAX] = NULL;
    task_count--;
    luaL_unref(vm, LUA_REGISTRYINDEX, t->ref);
    free(t);
}

/* A task that runs the function under its nargs values on the top of L, which are consumed, in a
 * later turn of the loop. Called protected. */
static struct task *begin(lua_State *L, int nargs)
{
    if (task_count == TASKS_MAX)
        luaL_error(L, "more than %d tasks", TASKS_MAX);
    lua_State *co = lua_newthread(L);
    lua_insert(L, -nargs - 2);
    if (!lua_checkstack(co, nargs + LUA_MINSTACK))
        luaL_error(L, "too many arguments for a task");
    lua_xmove(L, co, nargs + 1);
    int ref = luaL_ref(L, LUA_REGISTRYINDEX);
    struct task *t = base_zalloc(sizeof *t);
    do
        t->id = ++next_serial;
    while (tasks[t->id % TASKS_MAX]);
    t->co = co;
    t->ref = ref;
    tasks[t->id % TASKS_MAX] = t;
    task_count++;
    wait_timer(wait_new(t, SLEEP), 0);
    return t;
}

struct delivery {
    lua_State *co;
    lua_CFunction push;
    const void *result;
    int n;
};

static int deliver(lua_State *L)
{
    struct delivery *d = lua_touserdata(L, 1);
    lua_pushcfunction(L, d->push);
    lua_pushlightuserdata(L, (void *)d->result);
    lua_call(L, 1, LUA_MULTRET);
    d->n = lua_gettop(L) - 1;
    lua_xmove(L, d->co, d->n);
    return 0;
}

/* The one place that tells of a task's error: the log gets the start, a program's user all of it.
 */
void task_tell(const char *text)
{
    log_error("task_failed", "error=%s", log_quote(text));
    if (program.on)
        fprintf(stderr, "chromux: %s\n", text);
}

/* What was thrown lies at the top of the coroutine; it is told with the coroutine's traceback. */
static int tell_trace(lua_State *L)
{
    lua_State *co = lua_touserdata(L, 1);
    const char *text = lua_tostring(co, -1);
    luaL_traceback(L, co, text ? text : "(the error is not a text)", 0);
    task_tell(lua_tostring(L, -1));
    return 0;
}

static void main_returned(lua_State *co)
{
    if (lua_gettop(co) > 0 && lua_type(co, 1) == LUA_TNUMBER)
        program.code = (int)lua_tointeger(co, 1) & 0xff;
    else
        program.code = lua_gettop(co) > 0 && lua_isboolean(co, 1) && !lua_toboolean(co, 1);
}

static void task_resume(struct task *t, lua_CFunction push, const void *result)
{
    struct delivery d = {t->co, push, result, 0};
    int status = 0, nargs;
    must(!current);
    program.code = t->main ? 1 : program.code; /* until it has returned */
    if (push && lua_cpcall(vm, deliver, &d) != 0) {
        lua_pop(vm, 1);
        task_tell("out of memory while taking in an answer");
        status = -1;
    } else {
        /* At its first turn the function and its arguments lie there. */
        nargs = push ? d.n : lua_status(t->co) == LUA_YIELD ? 0 : lua_gettop(t->co) - 1;
        current = t;
        status = lua_resume(t->co, nargs);
        current = NULL;
    }
    if (status == LUA_YIELD) {
        lua_settop(t->co, 0);
        if (!t->wait) /* coroutine.yield(): let the others run */
            wait_timer(wait_new(t, SLEEP), 0);
        return;
    }
    if (status > 0 && lua_cpcall(vm, tell_trace, t->co) != 0) {
        lua_pop(vm, 1);
        task_tell("out of memory");
    }
    if (status == 0 && t->main)
        main_returned(t->co);
    if (t->main) {
        program.over = true;
        ev_break(loop, EVBREAK_ONE);
    }
    task_end(t);
}

/* The task that runs L: only it can wait, since the yield must reach the scheduler. */
static struct task *waiter(lua_State *L)
{
    if (!current || current->co != L)
        luaL_error(L, "only a task can wait here, not a coroutine inside one nor a call from C");
    return current;
}

/* ---- what Lua may call ---------------------------------------------------------------------- */

static int lua_sleep(lua_State *L)
{
    double seconds = luaL_checknumber(L, 1);
    luaL_argcheck(L, seconds >= 0 && seconds <= SLEEP_MOST, 1, "seconds, at most 1e7");
    wait_timer(wait_new(waiter(L), SLEEP), seconds);
    return task_yield(L);
}

/* id, generation = token(): what wake() needs to end this task's next park(). */
static int lua_token(lua_State *L)
{
    struct task *t = waiter(L);
    lua_pushnumber(L, (double)t->id);
    lua_pushnumber(L, (double)(t->generation + 1));
    return 2;
}

static int lua_park(lua_State *L)
{
    (void)wait_new(waiter(L), PARK);
    return task_yield(L);
}

/* wake(id, generation): stale tokens do nothing. */
static int lua_wake(lua_State *L)
{
    struct task *t = task_find((uint64_t)luaL_checknumber(L, 1));
    uint64_t generation = (uint64_t)luaL_checknumber(L, 2);
    if (t && t->generation == generation && t->wait && t->wait->kind == PARK)
        wait_timer(t->wait, 0);
    return 0;
}

static int lua_spawn(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    struct task *t = begin(L, lua_gettop(L) - 1);
    lua_pushnumber(L, (double)t->id);
    return 1;
}

/* cancel(id): ends a task that waits; true if there was one. */
static int lua_cancel(lua_State *L)
{
    struct task *t = task_find((uint64_t)luaL_checknumber(L, 1));
    luaL_argcheck(L, !t || (t != current && !t->main), 1, "the main task or the one that runs");
    if (t)
        task_end(t);
    lua_pushboolean(L, t != NULL);
    return 1;
}

const luaL_Reg task_functions[] = {
    {"sleep", lua_sleep}, {"token", lua_token},   {"park", lua_park}, {"wake", lua_wake},
    {"spawn", lua_spawn}, {"cancel", lua_cancel}, {NULL, NULL}};

/* ---- for C ---------------------------------------------------------------------------------- */

void task_check(lua_State *L)
{
    (void)waiter(L);
}

struct wait *task_wait(lua_State *L, void (*drop)(void *arg), void *arg)
{
    struct wait *w = wait_new(waiter(L), drop ? CALL : KEPT);
    w->drop = drop;
    w->arg = arg;
    return w;
}

void task_wait_for(struct wait *w, void *arg)
{
    w->arg = arg;
}

void task_wait_end(struct wait *w, lua_CFunction push, const void *result)
{
    wait_over(w, push, result);
}

int task_yield(lua_State *L)
{
    lua_settop(L, 0);
    return lua_yield(L, 0);
}

void task_new(lua_State *L, int nargs)
{
    (void)begin(L, nargs);
}

void task_new_main(lua_State *L, int nargs)
{
    begin(L, nargs)->main = true;
}

bool task_run(int *code)
{
    must(vm && !program.on);
    program.on = true;
    program.over = false;
    while (!program.over && ev_run(loop, EVRUN_ONCE))
        ;
    bool over = program.over;
    task_end_all();
    program.on = false;
    *code = program.code;
    return over;
}

bool task_in_program(void)
{
    return program.on;
}

void task_start(lua_State *L, struct ev_loop *l)
{
    vm = L;
    loop = l;
    program.on = program.over = false;
    program.code = 0;
}

void task_end_all(void)
{
    for (unsigned i = 0; task_count > 0 && i < TASKS_MAX; i++)
        if (tasks[i])
            task_end(tasks[i]);
}

void task_stop(void)
{
    task_end_all();
    while (waits) /* of what could not be taken back, and whose task has gone */
        wait_free(waits);
    vm = NULL;
}
