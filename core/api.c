/* api.c: owns the workflow VM and the scheduler of its tasks.
 *
 * A task is a coroutine. It waits by yielding out of a C function of ours, which has made a `wait`
 * before; every wait has the task's id and the generation that this wait gave it. When the event
 * comes, the wait is freed and the task is resumed only if it still exists and still waits with
 * that generation: a task that was cancelled or whose yield was refused is left alone. Tasks are
 * resumed from the loop only, never from inside another one.
 *
 * lua_State *vm runs no task: it is for calls from C (api_call) and for making the values that a
 * wait brings, under lua_cpcall, so that running out of memory ends a task and not the process. Lua
 * never owns C memory: tasks and waits are ours and freed by api_stop(). The Lua half, which gives
 * these functions their shape for programs, is lua/lb/runtime.lua. */
#include "api.h"

#include "log.h"
#include "pg_lua.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define TASKS_MAX   4096 /* a power of two: the low bits of an id are its slot */
#define PG_QUEUE    1000
#define PG_BYTES    (512u << 20)
#define PG_MOST     4
#define MEMORY_MAX  (1u << 30)
#define EVENTS_MAX  64
#define SLEEP_MOST  1e7
#define ANSWER_MOST (1u << 30)

enum kind { SLEEP, PARK, CALL, QUERY };

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

static lua_State *vm;
static struct ev_loop *loop;
static struct fetch *fetcher;
static char *database_url; /* NULL: none */
/* Made at first use, the default one at the start; Lua knows them by their position. */
static struct {
    char *name;
    struct pg *pg;
} connections[PG_MOST];
static struct subscriber {
    struct subscriber *next;
    int ref; /* keeps the function in the registry */
} * subscribers;
static struct task *tasks[TASKS_MAX];
static unsigned task_count;
static uint64_t next_serial;
static struct task *current;
static struct wait *waits;
static char *events[EVENTS_MAX]; /* log_event() knows an event by its address */
static struct {
    bool on, over;
    int code;
} program;

/* ---- tasks and waits ----------------------------------------------------------------------- */

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

/* The task does not wait for it any more. A statement can't be taken back: its wait stays until
 * PostgreSQL has answered, and is stale then. */
static void wait_drop(struct task *t)
{
    struct wait *w = t->wait;
    t->wait = NULL;
    t->generation++;
    if (!w || w->kind == QUERY)
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
static struct task *task_new(lua_State *L, int nargs)
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
static void tell(const char *text)
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
    tell(lua_tostring(L, -1));
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
        tell("out of memory while taking in an answer");
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
        tell("out of memory");
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

static int yield(lua_State *L)
{
    lua_settop(L, 0);
    return lua_yield(L, 0);
}

/* ---- for other bindings --------------------------------------------------------------------- */

struct wait *api_wait_begin(lua_State *L, void (*drop)(void *arg), void *arg)
{
    struct wait *w = wait_new(waiter(L), CALL);
    w->drop = drop;
    w->arg = arg;
    return w;
}

void api_wait_end(struct wait *w, lua_CFunction push, const void *result)
{
    wait_over(w, push, result);
}

int api_yield(lua_State *L)
{
    return yield(L);
}

/* ---- what Lua may call ---------------------------------------------------------------------- */

static int api_sleep(lua_State *L)
{
    double seconds = luaL_checknumber(L, 1);
    luaL_argcheck(L, seconds >= 0 && seconds <= SLEEP_MOST, 1, "seconds, at most 1e7");
    wait_timer(wait_new(waiter(L), SLEEP), seconds);
    return yield(L);
}

/* id, generation = token(): what wake() needs to end this task's next park(). */
static int api_token(lua_State *L)
{
    struct task *t = waiter(L);
    lua_pushnumber(L, (double)t->id);
    lua_pushnumber(L, (double)(t->generation + 1));
    return 2;
}

static int api_park(lua_State *L)
{
    (void)wait_new(waiter(L), PARK);
    return yield(L);
}

/* wake(id, generation): stale tokens do nothing. */
static int api_wake(lua_State *L)
{
    struct task *t = task_find((uint64_t)luaL_checknumber(L, 1));
    uint64_t generation = (uint64_t)luaL_checknumber(L, 2);
    if (t && t->generation == generation && t->wait && t->wait->kind == PARK)
        wait_timer(t->wait, 0);
    return 0;
}

static int api_spawn(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    struct task *t = task_new(L, lua_gettop(L) - 1);
    lua_pushnumber(L, (double)t->id);
    return 1;
}

/* cancel(id): ends a task that waits; true if there was one. */
static int api_cancel(lua_State *L)
{
    struct task *t = task_find((uint64_t)luaL_checknumber(L, 1));
    luaL_argcheck(L, !t || (t != current && !t->main), 1, "the main task or the one that runs");
    if (t)
        task_end(t);
    lua_pushboolean(L, t != NULL);
    return 1;
}

double api_follow(double *ahead, double *at, double clock, double wall)
{
    double most = *at == 0 ? fabs(wall - clock) : (clock - *at) * 0.1;
    double want = wall - clock - *ahead;
    *ahead += want > most ? most : want < -most ? -most : want;
    *at = clock;
    return clock + *ahead;
}

double api_now(void)
{
    static double ahead, at;
    return api_follow(&ahead, &at, base_clock(), ev_time());
}

static int lua_now(lua_State *L)
{
    lua_pushnumber(L, api_now());
    return 1;
}

/* Event names from Lua live as long as the VM; what is not a name, or one too many, is "lua". */
static const char *event_name(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_");
    if (n == 0 || n > 40 || name[n])
        return "lua";
    for (unsigned i = 0; i < EVENTS_MAX; i++) {
        if (!events[i])
            events[i] = base_strdup(name);
        if (strcmp(events[i], name) == 0)
            return events[i];
    }
    return "lua";
}

static int api_log(lua_State *L)
{
    static const char *const levels[] = {"debug", "info", "warn", "error", NULL};
    enum log_level level = (enum log_level)luaL_checkoption(L, 1, "info", levels);
    const char *event = event_name(luaL_checkstring(L, 2));
    log_event(level, event, "text=%s", log_quote(luaL_optstring(L, 3, "")));
    return 0;
}

/* Tells of an error that the Lua half caught in a task. */
static int api_failed(lua_State *L)
{
    tell(luaL_checkstring(L, 1));
    return 0;
}

/* In a program only: elsewhere Lua must not end the process. */
static int api_exit(lua_State *L)
{
    int code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : (int)luaL_optinteger(L, 1, 0);
    if (!program.on)
        return luaL_error(L, "os.exit is for programs");
    fflush(NULL);
    exit(code & 0xff);
}

static int push_fetched(lua_State *L)
{
    const struct fetch_answer *a = lua_touserdata(L, 1);
    if (a->error) {
        lua_pushnil(L);
        lua_pushstring(L, a->error);
        lua_pushinteger(L, a->status);
        return 3;
    }
    lua_pushinteger(L, a->status);
    lua_pushlstring(L, a->head.p, a->head.n);
    lua_pushlstring(L, a->body.p, a->body.n);
    return 3;
}

static void on_fetched(void *arg, const struct fetch_answer *a)
{
    wait_over(arg, push_fetched, a);
}

static void drop_fetch(void *call)
{
    fetch_cancel(call);
}

/* status, head, body = fetch(method, url, body, timeout, max_answer, header…); nil, error, status
 * when there is no whole answer, the status being 0 when not even that came */
static int api_fetch(lua_State *L)
{
    (void)waiter(L);
    struct fetch_request r = {.method = luaL_checkstring(L, 1), .url = luaL_checkstring(L, 2)};
    int headers = lua_gettop(L) - 5;
    r.body.p = luaL_checklstring(L, 3, &r.body.n);
    r.timeout = luaL_checknumber(L, 4);
    double most = luaL_checknumber(L, 5);
    luaL_argcheck(L, r.timeout > 0 && r.timeout <= SLEEP_MOST, 4, "seconds above 0");
    luaL_argcheck(L, most >= 1 && most <= ANSWER_MOST, 5, "bytes, 1 to 2^30");
    r.max_answer = (size_t)most;
    const char **list = lua_newuserdata(L, (size_t)(headers + 1) * sizeof *list);
    for (int i = 0; i < headers; i++)
        list[i] = luaL_checkstring(L, 6 + i);
    list[headers] = NULL;
    r.headers = list;
    struct wait *w = api_wait_begin(L, drop_fetch, NULL);
    w->arg = fetch_start(fetcher, &r, on_fetched, w);
    return yield(L);
}

static void on_rows(void *arg, const struct pg_rows *r)
{
    wait_over(arg, pg_lua_push_rows, r);
}

static void on_outcome(void *arg, const struct pg_outcome *o)
{
    wait_over(arg, pg_lua_push_outcome, o);
}

static struct pg *connection(lua_State *L)
{
    int i = luaL_checkint(L, 1);
    luaL_argcheck(L, i >= 0 && i < PG_MOST && connections[i].pg, 1, "a connection");
    return connections[i].pg;
}

/* connection(name) -> its number, the default one being 0; nil, error */
static int api_connection(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    int i = 0;
    char *error = NULL;
    if (!database_url) {
        lua_pushnil(L);
        lua_pushliteral(L, "no DATABASE_URL");
        return 2;
    }
    while (i < PG_MOST && connections[i].pg && strcmp(connections[i].name, name) != 0)
        i++;
    if (i == PG_MOST)
        return luaL_error(L, "more than %d connections", PG_MOST);
    if (!connections[i].pg) {
        connections[i].pg = pg_new(loop, database_url, PG_QUEUE, PG_BYTES, &error);
        must(connections[i].pg); /* the default one could read the URL */
        connections[i].name = base_strdup(name);
    }
    lua_pushinteger(L, i);
    return 1;
}

/* rows = query(connection, timeout, sql, param…); nil, message, sqlstate */
static int api_query(lua_State *L)
{
    struct task *t = waiter(L);
    struct pg *p = connection(L);
    double timeout = luaL_checknumber(L, 2);
    const char *sql = luaL_checkstring(L, 3);
    unsigned n = (unsigned)lua_gettop(L) - 3;
    const struct pg_value *params = pg_lua_params(L, 4, n);
    pg_query(p, sql, params, n, timeout, on_rows, wait_new(t, QUERY));
    return yield(L);
}

/* lists of rows = transaction(connection, timeout, statements); nil, message, sqlstate, info */
static int api_transaction(lua_State *L)
{
    struct task *t = waiter(L);
    struct pg *p = connection(L);
    double timeout = luaL_checknumber(L, 2);
    unsigned n;
    luaL_checktype(L, 3, LUA_TTABLE);
    const struct pg_statement *s = pg_lua_statements(L, 3, &n);
    pg_transaction(p, s, n, timeout, on_outcome, wait_new(t, QUERY));
    return yield(L);
}

struct news {
    const struct subscriber *to;
    const char *payload;
};

static int start_subscriber(lua_State *L)
{
    const struct news *n = lua_touserdata(L, 1);
    lua_rawgeti(L, LUA_REGISTRYINDEX, n->to->ref);
    if (n->payload)
        lua_pushstring(L, n->payload);
    else
        lua_pushnil(L);
    (void)task_new(L, 1);
    return 0;
}

static void on_notify(void *arg, const char *payload)
{
    struct news n = {arg, payload};
    if (lua_cpcall(vm, start_subscriber, &n) == 0)
        return;
    log_error("notify_dropped", "error=%s", log_quote(lua_tostring(vm, -1)));
    lua_pop(vm, 1);
}

/* The function on top of the stack, which is popped. */
static struct subscriber *subscriber_new(lua_State *L)
{
    int ref = luaL_ref(L, LUA_REGISTRYINDEX);
    struct subscriber *s = base_zalloc(sizeof *s);
    s->ref = ref;
    s->next = subscribers;
    subscribers = s;
    return s;
}

/* listen(connection, channel, function): for as long as the VM lives */
static int api_listen(lua_State *L)
{
    struct pg *p = connection(L);
    size_t n;
    const char *channel = luaL_checklstring(L, 2, &n);
    luaL_argcheck(L, n > 0 && n <= PG_CHANNEL_MAX && strlen(channel) == n, 2, "1 to 63 bytes");
    luaL_checktype(L, 3, LUA_TFUNCTION);
    lua_settop(L, 3);
    pg_listen(p, channel, on_notify, subscriber_new(L));
    return 0;
}

static const char *const pg_state_name[] = {
    [PG_CONNECTING] = "connecting", [PG_READY] = "ready", [PG_AWAY] = "away"};

static void on_pg_state(void *arg, enum pg_state s)
{
    on_notify(arg, pg_state_name[s]);
}

/* observe(connection, function): for as long as the VM lives */
static int api_observe(lua_State *L)
{
    struct pg *p = connection(L);
    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_settop(L, 2);
    pg_observe(p, on_pg_state, subscriber_new(L));
    return 0;
}

/* state, last error = pg_state(connection) */
static int api_pg_state(lua_State *L)
{
    struct pg *p = connection(L);
    lua_pushstring(L, pg_state_name[pg_state(p)]);
    lua_pushstring(L, pg_last_error(p));
    return 2;
}

/* ---- life of the VM ------------------------------------------------------------------------- */

/* Its address is the registry's key of the function itself: made at the start, so that a call from
 * C into a VM without memory has nothing to make. */
static int call_module(lua_State *L)
{
    const char *module = lua_touserdata(L, 1), *function = lua_touserdata(L, 2);
    lua_getglobal(L, "require");
    lua_pushstring(L, module);
    lua_call(L, 1, 1);
    if (!lua_istable(L, -1))
        return luaL_error(L, "module '%s' is not a table", module);
    lua_getfield(L, -1, function);
    lua_replace(L, 2);
    lua_pop(L, 1);
    lua_call(L, lua_gettop(L) - 2, 1);
    return 1;
}

static int open_api(lua_State *L)
{
    static const luaL_Reg functions[] = {{"sleep", api_sleep},
                                         {"token", api_token},
                                         {"park", api_park},
                                         {"wake", api_wake},
                                         {"spawn", api_spawn},
                                         {"cancel", api_cancel},
                                         {"now", lua_now},
                                         {"log", api_log},
                                         {"exit", api_exit},
                                         {"failed", api_failed},
                                         {"fetch", api_fetch},
                                         {"connection", api_connection},
                                         {"query", api_query},
                                         {"transaction", api_transaction},
                                         {"listen", api_listen},
                                         {"observe", api_observe},
                                         {"pg_state", api_pg_state},
                                         {"bytes", pg_lua_bytes},
                                         {NULL, NULL}};
    lua_pushlightuserdata(L, (void *)call_module);
    lua_pushcfunction(L, call_module);
    lua_rawset(L, LUA_REGISTRYINDEX);
    luaL_findtable(L, LUA_REGISTRYINDEX, "_LOADED", 8);
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_setfield(L, -2, "chromux.api");
    lua_getglobal(L, "require");
    lua_pushliteral(L, "lb.runtime");
    lua_call(L, 1, 0);
    return 0;
}

bool api_start(struct ev_loop *l, const char *url, struct buf *error)
{
    char *why = NULL;
    must(!vm);
    loop = l;
    program.on = program.over = false;
    program.code = 0;
    fetcher = fetch_new(loop);
    if (!fetcher) {
        buf_printf(error, "libcurl or c-ares can't be started\n");
        return false;
    }
    vm = script_new(MEMORY_MAX);
    if (*url) {
        connections[0].pg = pg_new(loop, url, PG_QUEUE, PG_BYTES, &why);
        if (!connections[0].pg) {
            buf_printf(error, "DATABASE_URL: %s\n", why);
            free(why);
            api_stop();
            return false;
        }
        connections[0].name = base_strdup("default");
        database_url = base_strdup(url);
    }
    lua_pushcfunction(vm, open_api);
    if (!script_call(vm, 0, 0, true, error)) {
        api_stop();
        return false;
    }
    return true;
}

static void cancel_tasks(void)
{
    for (unsigned i = 0; task_count > 0 && i < TASKS_MAX; i++)
        if (tasks[i])
            task_end(tasks[i]);
}

void api_stop(void)
{
    if (vm)
        cancel_tasks();
    fetch_free(fetcher);
    fetcher = NULL;
    for (unsigned i = 0; i < PG_MOST; i++) {
        pg_free(connections[i].pg);
        free(connections[i].name);
        connections[i].pg = NULL;
        connections[i].name = NULL;
    }
    free(database_url);
    database_url = NULL;
    for (struct subscriber *s; (s = subscribers); free(s))
        subscribers = s->next;
    while (waits) /* statements whose task has gone */
        wait_free(waits);
    if (vm)
        script_free(vm);
    vm = NULL;
    for (unsigned i = 0; i < EVENTS_MAX; i++) {
        free(events[i]);
        events[i] = NULL;
    }
}

lua_State *api_vm(void)
{
    return vm;
}

struct program_start {
    const char *path, *module; /* one of them */
    int argc;
    char **argv;
};

static int start_program(lua_State *L)
{
    const struct program_start *p = lua_touserdata(L, 1);
    lua_createtable(L, p->argc, 1);
    for (int i = 0; i < p->argc; i++) {
        lua_pushstring(L, p->argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_setglobal(L, "arg");
    if (p->module) {
        lua_getglobal(L, "require");
        lua_pushstring(L, p->module);
        lua_call(L, 1, 1);
        lua_getfield(L, -1, "main");
        lua_remove(L, -2);
    } else if (luaL_loadfile(L, p->path) != 0) {
        return lua_error(L);
    }
    for (int i = 1; i < p->argc; i++) {
        luaL_checkstack(L, 1, "arguments");
        lua_pushstring(L, p->argv[i]);
    }
    task_new(L, p->argc > 1 ? p->argc - 1 : 0)->main = true;
    return 0;
}

static bool run_program(struct program_start *p, int *exit_code)
{
    must(vm && !program.on);
    *exit_code = 1;
    if (lua_cpcall(vm, start_program, p) != 0) {
        const char *text = lua_tostring(vm, -1);
        fprintf(stderr, "chromux: %s\n", text ? text : "out of memory");
        lua_pop(vm, 1);
        return false;
    }
    program.on = true;
    program.over = false;
    while (!program.over && ev_run(loop, EVRUN_ONCE))
        ;
    if (!program.over) {
        fputs("chromux: every task waits, and nothing is left that could wake one\n", stderr);
        program.code = 1;
    }
    cancel_tasks();
    program.on = false;
    fflush(NULL);
    *exit_code = program.code;
    return true;
}

bool api_run_file(const char *path, int argc, char **argv, int *exit_code)
{
    struct program_start p = {path, NULL, argc, argv};
    return run_program(&p, exit_code);
}

bool api_run_module(const char *module, int argc, char **argv, int *exit_code)
{
    struct program_start p = {NULL, module, argc, argv};
    return run_program(&p, exit_code);
}

bool api_call(const char *module, const char *function, int nargs)
{
    struct buf error;
    int base = lua_gettop(vm) - nargs + 1;
    must(nargs >= 0 && base >= 1);
    buf_init(&error, 4096);
    lua_pushlightuserdata(vm, (void *)call_module);
    lua_rawget(vm, LUA_REGISTRYINDEX);
    lua_insert(vm, base);
    lua_pushlightuserdata(vm, (void *)module);
    lua_insert(vm, base + 1);
    lua_pushlightuserdata(vm, (void *)function);
    lua_insert(vm, base + 2);
    bool ok = script_call(vm, nargs + 2, 1, true, &error);
    if (!ok)
        log_error("lua_failed", "module=%s function=%s error=%s", module, function,
                  log_quote_str((struct str){buf_data(&error), buf_len(&error)}));
    buf_fini(&error);
    return ok;
}
