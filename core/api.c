/* api.c: owns the workflow VM and what its Lua may call.
 *
 * lua_State *vm runs no task: it is for calls from C (api_call) and for making the values that a
 * wait brings, under lua_cpcall, so that running out of memory ends a task and not the process. The
 * Lua half, which gives these functions their shape for programs, is lua/lb/runtime.lua. */
#include "api.h"

#include "log.h"
#include "pg_lua.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PG_QUEUE    1000
#define PG_BYTES    (512u << 20)
#define PG_MOST     4
#define MEMORY_MAX  (1u << 30)
#define EVENTS_MAX  64
#define SLEEP_MOST  1e7
#define ANSWER_MOST (1u << 30)

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
static char *events[EVENTS_MAX]; /* log_event() knows an event by its address */
/* ---- what Lua may call ---------------------------------------------------------------------- */

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
    task_tell(luaL_checkstring(L, 1));
    return 0;
}

/* In a program only: elsewhere Lua must not end the process. */
static int api_exit(lua_State *L)
{
    int code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : (int)luaL_optinteger(L, 1, 0);
    if (!task_in_program())
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
    task_wait_end(arg, push_fetched, a);
}

static void drop_fetch(void *call)
{
    fetch_cancel(call);
}

/* status, head, body = fetch(method, url, body, timeout, max_answer, header…); nil, error, status
 * when there is no whole answer, the status being 0 when not even that came */
static int api_fetch(lua_State *L)
{
    task_check(L);
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
    struct wait *w = task_wait(L, drop_fetch, NULL);
    task_wait_for(w, fetch_start(fetcher, &r, on_fetched, w));
    return task_yield(L);
}

static void on_rows(void *arg, const struct pg_rows *r)
{
    task_wait_end(arg, pg_lua_push_rows, r);
}

static void on_outcome(void *arg, const struct pg_outcome *o)
{
    task_wait_end(arg, pg_lua_push_outcome, o);
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
    task_check(L);
    struct pg *p = connection(L);
    double timeout = luaL_checknumber(L, 2);
    const char *sql = luaL_checkstring(L, 3);
    unsigned n = (unsigned)lua_gettop(L) - 3;
    const struct pg_value *params = pg_lua_params(L, 4, n);
    pg_query(p, sql, params, n, timeout, on_rows, task_wait(L, NULL, NULL));
    return task_yield(L);
}

/* lists of rows = transaction(connection, timeout, statements); nil, message, sqlstate, info */
static int api_transaction(lua_State *L)
{
    task_check(L);
    struct pg *p = connection(L);
    double timeout = luaL_checknumber(L, 2);
    unsigned n;
    luaL_checktype(L, 3, LUA_TTABLE);
    const struct pg_statement *s = pg_lua_statements(L, 3, &n);
    pg_transaction(p, s, n, timeout, on_outcome, task_wait(L, NULL, NULL));
    return task_yield(L);
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
    task_new(L, 1);
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
    static const luaL_Reg functions[] = {{"now", lua_now},
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
    luaL_register(L, NULL, task_functions);
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
    fetcher = fetch_new(loop);
    if (!fetcher) {
        buf_printf(error, "libcurl or c-ares can't be started\n");
        return false;
    }
    vm = script_new(MEMORY_MAX);
    task_start(vm, loop);
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

void api_stop(void)
{
    task_end_all();
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
    task_stop();
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
    task_new_main(L, p->argc > 1 ? p->argc - 1 : 0);
    return 0;
}

static bool run_program(struct program_start *p, int *exit_code)
{
    *exit_code = 1;
    if (lua_cpcall(vm, start_program, p) != 0) {
        const char *text = lua_tostring(vm, -1);
        fprintf(stderr, "chromux: %s\n", text ? text : "out of memory");
        lua_pop(vm, 1);
        return false;
    }
    if (!task_run(exit_code)) {
        fputs("chromux: every task waits, and nothing is left that could wake one\n", stderr);
        *exit_code = 1;
    }
    fflush(NULL);
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
