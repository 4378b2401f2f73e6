/* script.c: what every trusted Lua VM shares. A VM is single-owner: whoever called script_new()
 * frees it. The allocator's account is the VM's userdata and dies after it. */
#include "script.h"

#include "plant.h"

#include <stdlib.h>

enum { COPY_DEPTH = 16, COPY_VALUES = 10000 };

struct account {
    size_t used, cap; /* cap 0: none */
};

const struct script_file *script_file_find(const char *name)
{
    for (const struct script_file *f = script_files; f->name; f++)
        if (strcmp(f->name, name) == 0)
            return f;
    return NULL;
}

static void *allocate(void *ud, void *p, size_t was, size_t want)
{
    struct account *a = ud;
    if (want == 0) {
        free(p);
        a->used -= p ? was : 0;
        return NULL;
    }
    size_t held = a->used - (p ? was : 0);
    if (a->cap && want > was && held + want > a->cap)
        return NULL;
    void *q = realloc(p, want);
    if (q)
        a->used = held + want;
    return q;
}

/* The searcher for the embedded files: "lb.status" is lb/status.lua or lb/status/init.lua. It goes
 * in front of the file system's, so that a stray ./lb folder cannot replace what was built. */
static int search_embedded(lua_State *L)
{
    const char *module = luaL_checkstring(L, 1);
    const char *path = luaL_gsub(L, module, ".", "/");
    const struct script_file *f = script_file_find(lua_pushfstring(L, "%s.lua", path));
    if (!f)
        f = script_file_find(lua_pushfstring(L, "%s/init.lua", path));
    if (!f) {
        lua_pushfstring(L, "\n\tno embedded file 'lua/%s.lua'", path);
        return 1;
    }
    const char *chunk = lua_pushfstring(L, "=lua/%s", f->name);
    size_t n = (size_t)(f->end - f->p);
    const char *text = plant_text(L, f->name, f->p, &n);
    if (luaL_loadbuffer(L, text, n, chunk) != 0)
        return luaL_error(L, "error loading module '%s': %s", module, lua_tostring(L, -1));
    return 1;
}

/* Message handlers: what was thrown becomes text, so that a table or nil is told as well. */
static int as_text(lua_State *L)
{
    if (lua_type(L, 1) != LUA_TSTRING && !luaL_callmeta(L, 1, "__tostring"))
        lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
    else
        lua_pushvalue(L, -1);
    return 1;
}

static int with_trace(lua_State *L)
{
    as_text(L);
    luaL_traceback(L, L, lua_tostring(L, -1), 1);
    return 1;
}

/* Both handlers lie in the registry from the start, since a call into a VM that has used up its
 * memory must not have to make one. */
static int open_all(lua_State *L)
{
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "loaders");
    for (int i = (int)lua_objlen(L, -1); i >= 2; i--) {
        lua_rawgeti(L, -1, i);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushcfunction(L, search_embedded);
    lua_rawseti(L, -2, 2);
    const lua_CFunction handlers[] = {as_text, with_trace};
    for (unsigned i = 0; i < COUNT_OF(handlers); i++) {
        lua_pushlightuserdata(L, (void *)handlers[i]);
        lua_pushcfunction(L, handlers[i]);
        lua_rawset(L, LUA_REGISTRYINDEX);
    }
    return 0;
}

lua_State *script_new(size_t memory_cap)
{
    struct account *a = base_zalloc(sizeof *a);
    lua_State *L = lua_newstate(allocate, a);
    must(L); /* without a cap yet: only no memory at all can refuse a VM */
    int status = lua_cpcall(L, open_all, NULL);
    must(status == 0);
    a->cap = memory_cap;
    return L;
}

void script_free(lua_State *L)
{
    void *account;
    lua_getallocf(L, &account);
    lua_close(L);
    free(account);
}

size_t script_memory(lua_State *L)
{
    void *account;
    lua_getallocf(L, &account);
    return ((struct account *)account)->used;
}

static void tell(lua_State *L, struct buf *error)
{
    size_t n = 0;
    const char *text = lua_tolstring(L, -1, &n);
    if (!text) {
        text = "(no error text)";
        n = strlen(text);
    }
    if (n > buf_room(error))
        n = buf_room(error);
    buf_put(error, text, n);
}

bool script_call(lua_State *L, int nargs, int nresults, bool trace, struct buf *error)
{
    int base = lua_gettop(L) - nargs; /* where the function is */
    must(base >= 1);
    lua_CFunction handler = trace ? with_trace : as_text;
    int status = 0;
    if (lua_checkstack(L, LUA_MINSTACK)) {
        lua_pushlightuserdata(L, (void *)handler);
        lua_rawget(L, LUA_REGISTRYINDEX);
        lua_insert(L, base);
        status = lua_pcall(L, nargs, nresults, base);
        lua_remove(L, base);
    } else {
        lua_settop(L, base - 1);
        lua_pushliteral(L, "stack overflow");
        status = LUA_ERRRUN;
    }
    if (status == 0)
        return true;
    tell(L, error);
    lua_settop(L, base - 1);
    return false;
}

/* ---- plain values from one VM to another ---------------------------------------------------- */

struct copying {
    lua_State *from;
    int at;
    unsigned left;
    const char *why;
};

static bool copy_value(struct copying *c, int at, lua_State *to, int depth);

/* Reads with lua_next and by type only, so that no key or value is converted in the source. */
static bool copy_table(struct copying *c, int at, lua_State *to, int depth)
{
    if (depth == COPY_DEPTH || !lua_checkstack(c->from, 4)) {
        c->why = "tables nested too deep";
        return false;
    }
    luaL_checkstack(to, 4, "copied value");
    lua_createtable(to, (int)lua_objlen(c->from, at), 0);
    lua_pushnil(c->from);
    while (lua_next(c->from, at)) {
        int value = lua_gettop(c->from);
        if (!copy_value(c, value - 1, to, depth + 1) || !copy_value(c, value, to, depth + 1)) {
            lua_settop(c->from, value - 2);
            return false;
        }
        lua_rawset(to, -3);
        lua_settop(c->from, value - 1);
    }
    return true;
}

static bool copy_value(struct copying *c, int at, lua_State *to, int depth)
{
    size_t n;
    if (c->left-- == 0) {
        c->why = "too many values";
        return false;
    }
    switch (lua_type(c->from, at)) {
    case LUA_TNIL:
        lua_pushnil(to);
        return true;
    case LUA_TBOOLEAN:
        lua_pushboolean(to, lua_toboolean(c->from, at));
        return true;
    case LUA_TNUMBER:
        lua_pushnumber(to, lua_tonumber(c->from, at));
        return true;
    case LUA_TSTRING: {
        const char *s = lua_tolstring(c->from, at, &n);
        lua_pushlstring(to, s, n);
        return true;
    }
    case LUA_TTABLE:
        return copy_table(c, at, to, depth);
    default:
        c->why = "not a plain value (nil, boolean, number, string or a table of these)";
        return false;
    }
}

/* Runs protected in the target; the result waits in the registry under this function's address,
 * since lua_cpcall gives nothing back. */
static int copy_protected(lua_State *to)
{
    struct copying *c = lua_touserdata(to, 1);
    if (!copy_value(c, c->at, to, 0))
        return 0;
    lua_pushlightuserdata(to, (void *)copy_protected);
    lua_insert(to, -2);
    lua_rawset(to, LUA_REGISTRYINDEX);
    return 0;
}

bool script_copy(lua_State *from, int at, lua_State *to, const char **why)
{
    int top = lua_gettop(from);
    struct copying c = {from, at < 0 ? top + at + 1 : at, COPY_VALUES, NULL};
    must(c.at >= 1 && c.at <= top && from != to);
    bool room = lua_checkstack(to, 3);
    if (!room || lua_cpcall(to, copy_protected, &c) != 0) {
        if (room)
            lua_pop(to, 1);
        lua_settop(from, top);
        c.why = SCRIPT_NO_MEMORY;
    }
    *why = c.why;
    if (c.why)
        return false;
    lua_pushlightuserdata(to, (void *)copy_protected);
    lua_rawget(to, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(to, (void *)copy_protected);
    lua_pushnil(to);
    lua_rawset(to, LUA_REGISTRYINDEX);
    return true;
}
