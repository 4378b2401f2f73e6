/* cage.c: a white list: every file gets copies of the library tables, so that one file that edits
 * them breaks only itself. Functions of the string library, which no hook interrupts, are wrapped:
 * their worst case is estimated and refused. */
#include "cage.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    TEXT_MAX = 65536,       /* bytes a pattern may run over, or string.rep may make */
    PATTERN_COST = 4000000, /* worst-case steps of one pattern call: some 50 ms */
    PATTERN_CHEAP = 20000,  /* from here on the clock is read after the call */
    FILE_MAX = 1048576
};

/* ---- capped functions: upvalue 1 is the original -------------------------------------------- */

static int pass_on(lua_State *L)
{
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

/* For what takes long only on much: it ends by itself, and then the clock is read. */
static int timed(lua_State *L)
{
    int results = pass_on(L);
    sandbox_look(L);
    return results;
}

static int capped_rep(lua_State *L)
{
    size_t n, sep = 0;
    luaL_checklstring(L, 1, &n);
    lua_Number times = luaL_checknumber(L, 2);
    luaL_optlstring(L, 3, "", &sep);
    if (times > 0 && times * (lua_Number)(n + sep) > TEXT_MAX)
        return luaL_error(L, "string.rep may make at most %d bytes here", TEXT_MAX);
    if (n + sep == 0 || !(times > 0)) {
        lua_pushliteral(L, "");
        return 1;
    }
    return pass_on(L);
}

/* The most steps a pattern can take on n bytes: each `?` doubles the ways to match, k open-ended
 * repetitions divide n bytes among them in (n+k over k) ways, and without an anchor the start is
 * one more choice. A step may compare a long run of letters or look through a long set: sixteen of
 * those count as one more. */
static double pattern_cost(const char *p, size_t m, size_t n)
{
    double cost = 1;
    unsigned open = m > 0 && p[0] == '^' ? 0 : 1;
    for (size_t i = 0; i < m; i++) {
        if (p[i] == '%') {
            i++;
            open += i < m && p[i] == 'b';
        } else if (p[i] == '[') {
            for (i += i + 1 < m && p[i + 1] == '^' ? 2 : 1; ++i < m && p[i] != ']';)
                i += p[i] == '%';
        } else if (p[i] == '?') {
            cost *= 2;
        } else if (p[i] == '*' || p[i] == '+' || p[i] == '-') {
            open++;
        }
    }
    for (unsigned k = 1; k <= open && cost < 1e15; k++)
        cost *= (double)(n + k) / k;
    return cost * (1 + (double)m / 16);
}

static int within(lua_State *L, const char *p, size_t m, size_t n, double cost)
{
    if (n > TEXT_MAX || m > TEXT_MAX || cost > PATTERN_COST)
        return luaL_error(L, "pattern '%s' could take too long on a text of %d bytes",
                          m < 80 ? p : "...", (int)n);
    int results = pass_on(L);
    if (cost > PATTERN_CHEAP)
        sandbox_look(L);
    return results;
}

static int capped_pattern(lua_State *L)
{
    size_t n, m;
    luaL_checklstring(L, 1, &n);
    const char *p = luaL_checklstring(L, 2, &m);
    return within(L, p, m, n, pattern_cost(p, m, n));
}

static int capped_find(lua_State *L)
{
    if (!lua_toboolean(L, 4))
        return capped_pattern(L);
    size_t n, m;
    luaL_checklstring(L, 1, &n);
    const char *p = luaL_checklstring(L, 2, &m);
    return within(L, p, m, n, (double)n * (1 + (double)m / 16));
}

/* The original moves elements one by one, from the end to any position it is given. */
static int capped_insert(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    if (lua_gettop(L) == 3) {
        lua_Number at = luaL_checknumber(L, 2);
        if (!(at >= 1 && at <= (lua_Number)lua_objlen(L, 1) + 1))
            return luaL_error(L, "position out of bounds");
        return timed(L);
    }
    return pass_on(L);
}

/* ---- read-only views ------------------------------------------------------------------------ */

static const char frozen_key; /* its address in a view's metatable leads to the table behind */

/* Pushes the table behind the view at index `at` and returns true; else pushes nothing. */
static bool push_behind(lua_State *L, int at)
{
    if (!lua_istable(L, at) || !lua_getmetatable(L, at))
        return false;
    lua_pushlightuserdata(L, (void *)&frozen_key);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    if (!lua_isnil(L, -1))
        return true;
    lua_pop(L, 1);
    return false;
}

static int refuse_change(lua_State *L)
{
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    return luaL_error(L, "field '%s' cannot be set: the table is read-only", key);
}

void cage_freeze(lua_State *L)
{
    lua_newtable(L);
    lua_createtable(L, 0, 4);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, refuse_change);
    lua_setfield(L, -2, "__newindex");
    lua_pushliteral(L, "read-only");
    lua_setfield(L, -2, "__metatable");
    lua_pushlightuserdata(L, (void *)&frozen_key);
    lua_pushvalue(L, -4);
    lua_rawset(L, -3);
    lua_setmetatable(L, -2);
    lua_remove(L, -2);
}

/* ---- functions that are ours ---- */

static int env_next(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 2);
    if (push_behind(L, 1))
        lua_replace(L, 1);
    if (lua_next(L, 1))
        return 2;
    lua_pushnil(L);
    return 1;
}

static int env_pairs(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    return 3;
}

static int env_rawset(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checkany(L, 3);
    lua_settop(L, 3);
    if (luaL_getmetafield(L, 1, "__metatable"))
        return luaL_error(L, "rawset: the table is read-only");
    lua_rawset(L, 1);
    return 1;
}

/* The library's xpcall runs its handler where the error was thrown, which for a budget error is
 * inside the hook, where no hook fires: it could loop for ever. This one calls it afterwards. */
static int env_xpcall(lua_State *L)
{
    luaL_checkany(L, 2);
    lua_pushvalue(L, 2);
    lua_insert(L, 1); /* handler, function, handler, arguments... */
    lua_remove(L, 3);
    lua_pushboolean(L, true);
    lua_insert(L, 2); /* handler, true, function, arguments... */
    if (lua_pcall(L, lua_gettop(L) - 3, LUA_MULTRET, 0) == 0)
        return lua_gettop(L) - 1;
    lua_settop(L, 3); /* handler, true, error */
    lua_pushboolean(L, false);
    lua_replace(L, 2);
    lua_pushvalue(L, 1);
    lua_insert(L, 3);
    lua_call(L, 1, LUA_MULTRET);
    return lua_gettop(L) - 1;
}

/* print goes to the log: standard output may be the access log. */
static int env_print(lua_State *L)
{
    lua_Debug ar = {.currentline = 0};
    if (lua_getstack(L, 1, &ar))
        lua_getinfo(L, "Sl", &ar);
    luaL_Buffer b;
    int n = lua_gettop(L);
    luaL_buffinit(L, &b);
    for (int i = 1; i <= n; i++) {
        if (i > 1)
            luaL_addchar(&b, ' ');
        int type = lua_type(L, i);
        if (type == LUA_TSTRING || type == LUA_TNUMBER)
            lua_pushvalue(L, i);
        else if (type == LUA_TBOOLEAN)
            lua_pushstring(L, lua_toboolean(L, i) ? "true" : "false");
        else
            lua_pushstring(L, luaL_typename(L, i));
        luaL_addvalue(&b);
    }
    luaL_pushresult(&b);
    size_t len;
    const char *text = lua_tolstring(L, -1, &len);
    log_info("policy_print", "at=%s:%d text=%s", ar.short_src, ar.currentline,
             log_quote_str((struct str){text, len}));
    return 0;
}

/* ---- environments --------------------------------------------------------------------------- */

/* What a policy may use of the standard libraries; "" is the base library. */
static const struct {
    const char *library, *name;
    lua_CFunction capped;
} allowed[] = {
    {"", "assert", NULL},
    {"", "error", NULL},
    {"", "getmetatable", NULL},
    {"", "ipairs", NULL},
    {"", "pcall", NULL},
    {"", "rawequal", NULL},
    {"", "rawget", NULL},
    {"", "select", NULL},
    {"", "setmetatable", NULL},
    {"", "tonumber", NULL},
    {"", "tostring", NULL},
    {"", "type", NULL},
    {"", "unpack", NULL},
    {"", "_VERSION", NULL},
    {"coroutine", "create", NULL},
    {"coroutine", "resume", NULL},
    {"coroutine", "running", NULL},
    {"coroutine", "status", NULL},
    {"coroutine", "wrap", NULL},
    {"coroutine", "yield", NULL},
    {"string", "byte", NULL},
    {"string", "char", NULL},
    {"string", "find", capped_find},
    {"string", "format", NULL},
    {"string", "gmatch", capped_pattern},
    {"string", "gsub", capped_pattern},
    {"string", "len", NULL},
    {"string", "lower", timed},
    {"string", "match", capped_pattern},
    {"string", "rep", capped_rep},
    {"string", "reverse", timed},
    {"string", "sub", NULL},
    {"string", "upper", timed},
    {"table", "concat", timed},
    {"table", "insert", capped_insert},
    {"table", "maxn", NULL},
    {"table", "remove", NULL},
    {"table", "sort", timed},
    {"os", "clock", NULL},
    {"os", "date", timed},
    {"os", "time", NULL},
};

/* Taken over whole, but for math.random: no spec could repeat what it gave. */
static const char *const whole[] = {"math", "bit"};

static int refuse_random(lua_State *L)
{
    return luaL_error(L, "policies have lb.random() instead of math.random()");
}

static int refuse_global(lua_State *L)
{
    const char *verb = lua_toboolean(L, lua_upvalueindex(1)) ? "sets" : "uses";
    const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    return luaL_error(L, "%s the global '%s', which policies do not have", verb, name);
}

static void put_allowed(lua_State *L, int env)
{
    for (unsigned i = 0; i < COUNT_OF(allowed); i++) {
        const char *library = allowed[i].library;
        int from = LUA_GLOBALSINDEX, to = env, top = lua_gettop(L);
        if (*library) {
            lua_getglobal(L, library);
            from = lua_gettop(L);
            lua_getfield(L, env, library);
            if (lua_isnil(L, -1)) {
                lua_newtable(L);
                lua_pushvalue(L, -1);
                lua_setfield(L, env, library);
            }
            to = lua_gettop(L);
        }
        lua_getfield(L, from, allowed[i].name);
        if (allowed[i].capped)
            lua_pushcclosure(L, allowed[i].capped, 1);
        lua_setfield(L, to, allowed[i].name);
        lua_settop(L, top);
    }
}

static void copy_fields(lua_State *L, int from, int to)
{
    lua_pushnil(L);
    while (lua_next(L, from)) {
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_settable(L, to);
    }
}

/* Pushes a fresh environment; the registry's "shared" table adds what cage_share() was given. */
static void push_environment(lua_State *L)
{
    lua_newtable(L);
    int env = lua_gettop(L);
    put_allowed(L, env);
    for (unsigned i = 0; i < COUNT_OF(whole); i++) {
        lua_newtable(L);
        lua_getglobal(L, whole[i]);
        copy_fields(L, env + 2, env + 1);
        lua_settop(L, env + 1);
        if (i == 0) {
            lua_pushcfunction(L, refuse_random);
            lua_pushvalue(L, -1);
            lua_setfield(L, -3, "randomseed");
            lua_setfield(L, -2, "random");
        }
        lua_setfield(L, env, whole[i]);
    }
    lua_pushcfunction(L, env_next);
    lua_pushvalue(L, -1);
    lua_setfield(L, env, "next");
    lua_pushcclosure(L, env_pairs, 1);
    lua_setfield(L, env, "pairs");
    lua_pushcfunction(L, env_rawset);
    lua_setfield(L, env, "rawset");
    lua_pushcfunction(L, env_xpcall);
    lua_setfield(L, env, "xpcall");
    lua_pushcfunction(L, env_print);
    lua_setfield(L, env, "print");
    lua_getfield(L, LUA_REGISTRYINDEX, "shared");
    copy_fields(L, env + 1, env);
    lua_settop(L, env);
    lua_createtable(L, 0, 3);
    lua_pushboolean(L, false);
    lua_pushcclosure(L, refuse_global, 1);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, true);
    lua_pushcclosure(L, refuse_global, 1);
    lua_setfield(L, -2, "__newindex");
    lua_pushliteral(L, "read-only");
    lua_setfield(L, -2, "__metatable");
    lua_setmetatable(L, env);
}

void cage_share(lua_State *L, const char *name)
{
    lua_getfield(L, LUA_REGISTRYINDEX, "shared");
    lua_insert(L, -2);
    lua_setfield(L, -2, name);
    lua_pop(L, 1);
}

/* Methods of strings ("x"):rep() are one more copy, out of every policy's reach. */
static void swap_string_methods(lua_State *L)
{
    push_environment(L);
    lua_pushliteral(L, "");
    must(lua_getmetatable(L, -1));
    lua_getfield(L, -3, "string");
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "read-only");
    lua_setfield(L, -2, "__metatable");
    lua_settop(L, 0);
}

struct source {
    const char *p, *path;
    size_t n;
};

static int compile(lua_State *L)
{
    const struct source *src = lua_touserdata(L, 1);
    const char *name = lua_pushfstring(L, "@%s", src->path);
    if (src->n > 0 && src->p[0] == LUA_SIGNATURE[0])
        return luaL_error(L, "%s: compiled code is not accepted", src->path);
    if (luaL_loadbuffer(L, src->p, src->n, name) != 0)
        return lua_error(L);
    push_environment(L);
    lua_setfenv(L, -2);
    return 1;
}

int cage_open(lua_State *L)
{
    static const struct luaL_Reg libraries[] = {
        {"", luaopen_base},
        {LUA_STRLIBNAME, luaopen_string},
        {LUA_TABLIBNAME, luaopen_table},
        {LUA_OSLIBNAME, luaopen_os},
        {LUA_MATHLIBNAME, luaopen_math},
        {LUA_BITLIBNAME, luaopen_bit},
    };
    for (unsigned i = 0; i < COUNT_OF(libraries); i++) {
        lua_pushcfunction(L, libraries[i].func);
        lua_pushstring(L, libraries[i].name);
        lua_call(L, 1, 0);
    }
    sandbox_pin(L, compile);
    lua_newtable(L);
    lua_setfield(L, LUA_REGISTRYINDEX, "shared");
    lua_settop(L, 0);
    swap_string_methods(L);
    return 0;
}

/* ---- files ---------------------------------------------------------------------------------- */

/* Returns the whole file in fresh memory, or NULL with the reason. */
static char *read_file(const char *path, size_t *n, const char **why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        *why = strerror(errno);
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    *why = !S_ISREG(st.st_mode)    ? "not a regular file"
           : st.st_size > FILE_MAX ? "larger than 1 MiB"
                                   : NULL;
    char *p = *why ? NULL : base_alloc(FILE_MAX + 1);
    size_t have = 0;
    while (p && have <= FILE_MAX) {
        ssize_t r = read(fd, p + have, FILE_MAX + 1 - have);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            *why = r < 0 ? strerror(errno) : NULL;
            break;
        }
        have += (size_t)r;
    }
    close(fd);
    if (p && have > FILE_MAX)
        *why = "larger than 1 MiB";
    if (*why) {
        free(p);
        return NULL;
    }
    *n = have;
    return p;
}

enum sandbox_stop cage_load_text(struct sandbox *s, const char *name, const char *text, size_t n,
                                 char error[SANDBOX_ERROR_MAX])
{
    struct source src = {.p = text, .path = name, .n = n};
    lua_State *L = sandbox_lua(s);
    sandbox_push_pinned(L, compile);
    lua_pushlightuserdata(L, &src);
    return sandbox_call(s, 1, 1, error);
}

enum sandbox_stop cage_load(struct sandbox *s, const char *path, char error[SANDBOX_ERROR_MAX])
{
    const char *why;
    size_t n;
    char *text = read_file(path, &n, &why);
    if (!text) {
        snprintf(error, SANDBOX_ERROR_MAX, "%s: %s", path, why);
        return SANDBOX_ERROR;
    }
    enum sandbox_stop stop = cage_load_text(s, path, text, n, error);
    free(text);
    return stop;
}
