/* api_courier.c: owns the calls that Lua has open, by id: Lua never owns C memory. A call is here
 * from send() until the first wait() that meets its ending, or close(). Its body is a Lua string
 * that the registry keeps while the courier refers to it. */
#include "api_courier.h"

#include "courier.h"
#include "log.h"
#include "roster.h"

#include <stdio.h>
#include <stdlib.h>

#define CALLS_MAX   4096 /* a power of two: the low bits of an id are its slot */
#define WAIT_MOST   1e7
#define ANSWER_MOST (1u << 30)
#define NEWS_MAX    1024

struct open_call {
    uint64_t id;
    struct courier_call *call; /* NULL: closed while somebody waited */
    struct wait *waiter;
    ev_timer timer; /* of the waiter */
    int body;       /* reference, LUA_NOREF when there is none */
    bool ended;
};

/* What happened to a node, until Lua is told. */
struct news {
    struct news *next;
    const char *kind;
    char *name;
    const char *text; /* health; NULL: number, or with kind "membership" a truth value */
    double number;
};

static lua_State *vm;
static struct open_call *calls[CALLS_MAX];
static unsigned call_count;
static uint64_t next_serial;
static struct news *news, **news_end = &news;
static unsigned news_count;
static ev_timer teller;
static bool listening;

/* ---- calls ---- */

static struct open_call *call_find(double id)
{
    struct open_call *o = id >= 1 && id < 1e15 ? calls[(uint64_t)id % CALLS_MAX] : NULL;
    return o && (double)o->id == id ? o : NULL;
}

static void let_body_go(struct open_call *o)
{
    luaL_unref(vm, LUA_REGISTRYINDEX, o->body);
    o->body = LUA_NOREF;
}

static void call_unlink(struct open_call *o)
{
    calls[o->id % CALLS_MAX] = NULL;
    call_count--;
    ev_timer_stop(stream_loop(), &o->timer);
}

/* Unlinked before. */
static void call_free(struct open_call *o)
{
    if (o->call)
        courier_close(&o->call);
    let_body_go(o);
    free(o);
}

static int push_ended(lua_State *L)
{
    const struct open_call *o = lua_touserdata(L, 1);
    const struct courier_result *r = courier_result(o->call);
    if (r->end == COURIER_ANSWER) {
        lua_pushinteger(L, r->status);
        lua_pushlstring(L, r->head.p, r->head.n);
        if (r->type.n)
            lua_pushlstring(L, r->type.p, r->type.n);
        else
            lua_pushnil(L);
        lua_pushlstring(L, r->body.n ? r->body.p : "", r->body.n);
    } else {
        lua_pushnil(L);
        lua_pushstring(L, courier_end_name(r->end));
        lua_pushstring(L, r->error);
        lua_pushnil(L);
    }
    lua_pushboolean(L, courier_touched(o->call));
    lua_pushboolean(L, courier_body_complete(o->call));
    return 6;
}

static int push_late(lua_State *L)
{
    lua_pushnil(L);
    lua_pushliteral(L, "late");
    lua_pushliteral(L, "no answer yet");
    return 3;
}

static int push_closed(lua_State *L)
{
    lua_pushnil(L);
    lua_pushliteral(L, "closed");
    lua_pushliteral(L, "closed by us");
    return 3;
}

/* Resumes the task that waits; it may do anything to other calls, and to this one by its id. */
static void wake(struct open_call *o, lua_CFunction push)
{
    struct wait *w = o->waiter;
    o->waiter = NULL;
    ev_timer_stop(stream_loop(), &o->timer);
    task_wait_end(w, push, o);
}

static void on_ended(void *arg, struct courier_call *c)
{
    struct open_call *o = arg;
    o->ended = true;
    let_body_go(o);
    if (!o->waiter)
        return;
    call_unlink(o);
    wake(o, push_ended);
    call_free(o);
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    struct open_call *o = container_of(w, struct open_call, timer);
    if (o->call) {
        wake(o, push_late);
        return;
    }
    call_unlink(o);
    wake(o, push_closed);
    call_free(o);
}

static void timer_set(struct open_call *o, double seconds)
{
    ev_now_update(stream_loop());
    ev_timer_stop(stream_loop(), &o->timer);
    ev_timer_set(&o->timer, seconds, 0);
    ev_timer_start(stream_loop(), &o->timer);
}

/* The task that waited is gone, or waits for something else: the call goes on. */
static void drop_waiter(void *arg)
{
    struct open_call *o = call_find((double)(uintptr_t)arg);
    if (!o)
        return;
    o->waiter = NULL;
    ev_timer_stop(stream_loop(), &o->timer);
    if (!o->call) {
        call_unlink(o);
        call_free(o);
    }
}

/* ---- what Lua may call ---- */

/* A field of the request table as text without control bytes; NULL when it is absent. With spaces
 * only where `spaces` says so. */
static const char *text_field(lua_State *L, const char *name, bool spaces)
{
    size_t n = 0;
    lua_getfield(L, 1, name);
    if (lua_isnil(L, -1))
        return NULL; /* stays on the stack, as the texts do, until the call is made */
    const char *p = lua_tolstring(L, -1, &n);
    if (!p)
        luaL_error(L, "%s is a %s", name, luaL_typename(L, -1));
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)p[i];
        if (b < 0x20 || b == 0x7f || (!spaces && (b == ' ' || b > 0x7f)))
            luaL_error(L, "%s has a byte that does not belong there", name);
    }
    return p;
}

static bool flag_field(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name);
    bool is = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return is;
}

static double number_field(lua_State *L, const char *name, double most)
{
    lua_getfield(L, 1, name);
    double x = lua_tonumber(L, -1);
    if (!(x >= 0 && x <= most))
        luaL_error(L, "%s is out of its range", name);
    lua_pop(L, 1);
    return x;
}

/* The list of head lines, checked and put together; the result lies on the stack. */
static struct str lines_field(lua_State *L)
{
    struct str all = {"", 0};
    luaL_Buffer b;
    lua_getfield(L, 1, "fields");
    if (lua_isnil(L, -1))
        return all;
    luaL_checktype(L, -1, LUA_TTABLE);
    int list = lua_gettop(L), count = (int)lua_objlen(L, list);
    luaL_buffinit(L, &b);
    for (int i = 1; i <= count; i++) {
        size_t n = 0;
        lua_rawgeti(L, list, i);
        const char *p = lua_tolstring(L, -1, &n);
        bool ok = p && n > 0 && *p != ':' && *p != ' ' && memchr(p, ':', n);
        for (size_t k = 0; ok && k < n; k++)
            ok = (unsigned char)p[k] >= 0x20 && p[k] != 0x7f;
        if (!ok)
            luaL_error(L, "fields[%d] is no line of a head", i);
        luaL_addvalue(&b);
        luaL_addlstring(&b, "\r\n", 2);
    }
    luaL_pushresult(&b);
    all.p = lua_tolstring(L, -1, &all.n);
    if (all.n > COURIER_FIELDS_MAX)
        luaL_error(L, "fields are larger than %d bytes", COURIER_FIELDS_MAX);
    return all;
}

static int fail(lua_State *L, const char *text)
{
    lua_pushnil(L);
    lua_pushstring(L, text);
    return 2;
}

/* id = send(request); nil, message */
static int raw_send(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    struct courier_request r = {.type = NULL};
    const char *name = text_field(L, "node", true);
    r.method = text_field(L, "method", false);
    const char *target = text_field(L, "target", false);
    r.type = text_field(L, "type", true);
    r.request_id = text_field(L, "request_id", false);
    r.fields = lines_field(L);
    r.fenced = flag_field(L, "fenced");
    r.fresh = flag_field(L, "fresh");
    r.incarnation = (uint64_t)number_field(L, "incarnation", 9e15);
    r.max_answer = (size_t)number_field(L, "max", ANSWER_MOST);
    if (!name || !r.method || !*r.method || !target || *target != '/' || r.max_answer == 0)
        luaL_error(L, "send needs node, method, target (\"/...\") and max");
    r.target = str_from(target);
    if (!courier_started())
        return fail(L, "the journal is off");
    r.node = fleet_find(str_from(name));
    if (!r.node)
        return fail(L, "no such node");
    if (call_count == CALLS_MAX)
        return fail(L, "too many open calls");

    int body = LUA_NOREF;
    lua_getfield(L, 1, "body");
    if (!lua_isnil(L, -1)) {
        luaL_checktype(L, -1, LUA_TSTRING);
        r.body.p = lua_tolstring(L, -1, &r.body.n);
        body = luaL_ref(L, LUA_REGISTRYINDEX);
    }
    struct open_call *o = base_zalloc(sizeof *o);
    do
        o->id = ++next_serial;
    while (calls[o->id % CALLS_MAX]);
    o->body = body;
    ev_init(&o->timer, on_timer);
    calls[o->id % CALLS_MAX] = o;
    call_count++;
    o->call = courier_send(&r, on_ended, o);
    lua_pushnumber(L, (double)o->id);
    return 1;
}

/* wait(id, seconds) -> status, head, type, body, touched, complete | nil, kind, text[, nil,
 * touched, complete]; an ending is told once */
static int raw_wait(lua_State *L)
{
    double id = luaL_checknumber(L, 1), seconds = luaL_checknumber(L, 2);
    struct open_call *o = call_find(id);
    luaL_argcheck(L, seconds >= 0 && seconds <= WAIT_MOST, 2, "seconds, at most 1e7");
    if (!o || !o->call)
        return push_closed(L);
    if (o->waiter)
        return luaL_error(L, "another task waits for this call");
    if (o->ended) {
        lua_settop(L, 0);
        lua_pushlightuserdata(L, o);
        int n = push_ended(L);
        call_unlink(o);
        call_free(o);
        return n;
    }
    o->waiter = task_wait(L, drop_waiter, (void *)(uintptr_t)o->id);
    timer_set(o, seconds);
    return task_yield(L);
}

/* touched(id) -> touched, complete; nothing when it is not open */
static int raw_touched(lua_State *L)
{
    struct open_call *o = call_find(luaL_checknumber(L, 1));
    if (!o || !o->call)
        return 0;
    lua_pushboolean(L, courier_touched(o->call));
    lua_pushboolean(L, courier_body_complete(o->call));
    return 2;
}

static int raw_close(lua_State *L)
{
    struct open_call *o = call_find(luaL_checknumber(L, 1));
    if (!o || !o->call)
        return 0;
    if (o->waiter) { /* it is told later: no task is resumed inside another */
        courier_close(&o->call);
        timer_set(o, 0);
        return 0;
    }
    call_unlink(o);
    call_free(o);
    return 0;
}

static void set_text(lua_State *L, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

static void set_number(lua_State *L, const char *name, double x)
{
    lua_pushnumber(L, x);
    lua_setfield(L, -2, name);
}

static int raw_nodes(lua_State *L)
{
    lua_createtable(L, (int)fleet_count, 0);
    for (unsigned i = 0; i < fleet_count; i++) {
        const struct node *n = fleet_node[i];
        lua_createtable(L, 0, 9);
        set_text(L, "name", n->name);
        set_text(L, "role", n->role == CONFIG_PRIMARY ? "primary" : "replica");
        set_text(L, "health", fleet_health_name(n->health));
        set_text(L, "admin", fleet_admin_name(n->admin));
        set_text(L, "last_error", n->history.last_error);
        set_number(L, "priority", (double)n->priority);
        set_number(L, "weight", (double)n->weight);
        set_number(L, "incarnation", (double)courier_incarnation(n));
        lua_pushboolean(L, n->addr_len > 0);
        lua_setfield(L, -2, "resolved");
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

static int raw_fence(lua_State *L)
{
    double until = luaL_checknumber(L, 1);
    courier_fence_set(until);
    roster_lease(until);
    return 0;
}

static int raw_boottime(lua_State *L)
{
    lua_pushnumber(L, courier_boottime());
    return 1;
}

/* From now on lb.courier.told() is called. */
static int raw_listen(lua_State *L)
{
    listening = true;
    return 0;
}

/* ---- news ---- */

static void news_free(struct news *one)
{
    free(one->name);
    free(one);
}

static int tell(lua_State *L)
{
    const struct news *one = lua_touserdata(L, 1);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "lb.courier");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "told");
    lua_pushstring(L, one->kind);
    lua_pushstring(L, one->name);
    if (one->text)
        lua_pushstring(L, one->text);
    else if (strcmp(one->kind, "membership") == 0)
        lua_pushboolean(L, one->number != 0);
    else
        lua_pushnumber(L, one->number);
    lua_call(L, 3, 0);
    return 0;
}

static void on_teller(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)w;
    (void)revents;
    while (news) {
        struct news *one = news;
        news = one->next;
        news_count--;
        if (!news)
            news_end = &news;
        if (lua_cpcall(vm, tell, one) != 0) {
            const char *text = lua_tostring(vm, -1);
            log_error("lua_failed", "module=lb.courier function=told error=%s",
                      log_quote(text ? text : "out of memory"));
            lua_pop(vm, 1);
        }
        news_free(one);
    }
}

/* Lua hears of it in a later turn: the event may come from inside a task. */
static void note(const struct node *n, const char *kind, const char *text, double number)
{
    if (!vm || !listening)
        return;
    if (news_count == NEWS_MAX) {
        log_error("news_lost", "kind=%s instance=%s", kind, n->name);
        return;
    }
    struct news *one = base_zalloc(sizeof *one);
    *one =
        (struct news){.kind = kind, .name = base_strdup(n->name), .text = text, .number = number};
    *news_end = one;
    news_end = &one->next;
    news_count++;
    if (!ev_is_active(&teller)) {
        ev_timer_set(&teller, 0, 0);
        ev_timer_start(stream_loop(), &teller);
    }
}

static void on_incarnation(struct node *n, uint64_t incarnation)
{
    note(n, "incarnation", NULL, (double)incarnation);
}

static void on_health(struct node *n, struct collection_state *c, enum node_health was,
                      const char *reason)
{
    (void)was;
    (void)reason;
    if (!c)
        note(n, "health", fleet_health_name(n->health), 0);
}

static void on_membership(struct node *n, bool joins)
{
    note(n, "membership", NULL, joins);
}

/* ---- life ---- */

static int load_raw(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"send", raw_send},         {"wait", raw_wait},     {"touched", raw_touched},
        {"close", raw_close},       {"nodes", raw_nodes},   {"fence", raw_fence},
        {"boottime", raw_boottime}, {"listen", raw_listen}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}

static int load_shape(lua_State *L)
{
    lua_getglobal(L, "require");
    lua_pushliteral(L, "lb.courier");
    lua_call(L, 1, 1);
    return 1;
}

void api_courier_open(void)
{
    static bool watching;
    must(!vm);
    vm = api_vm();
    listening = false;
    ev_init(&teller, on_teller);
    if (!watching) {
        courier_observe(on_incarnation);
        fleet_observe(on_health);
        fleet_observe_membership(on_membership);
    }
    watching = true;
    lua_getglobal(vm, "package");
    lua_getfield(vm, -1, "preload");
    lua_pushcfunction(vm, load_raw);
    lua_setfield(vm, -2, "chromux.courier.raw");
    lua_pushcfunction(vm, load_shape);
    lua_setfield(vm, -2, "chromux.courier");
    lua_pop(vm, 2);
}

void api_courier_stop(void)
{
    if (!vm)
        return;
    for (unsigned i = 0; call_count > 0 && i < CALLS_MAX; i++) {
        struct open_call *o = calls[i];
        if (!o)
            continue;
        call_unlink(o);
        call_free(o);
    }
    ev_timer_stop(stream_loop(), &teller);
    while (news) {
        struct news *one = news;
        news = one->next;
        news_free(one);
    }
    news_end = &news;
    news_count = 0;
    vm = NULL;
}
