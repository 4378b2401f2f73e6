/* loader.c: owns what is wrong with a policy file before it was ever asked. */
#include "loader.h"

#include <stdarg.h>
#include <stdio.h>

struct wanted {
    const char *path;
    const char *const *functions;
    unsigned count;
    const struct config *strategies;
    struct buf *errors;
};

void loader_mistake(struct buf *errors, const char *fmt, ...)
{
    char line[LOADER_LINE_MAX];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    line[len++] = '\n';
    if (buf_room(errors) >= len)
        buf_put(errors, line, len);
}

/* The strategy setting must name one of M.strategies, where the file has that table. Pushed onto
 * the error: the ones it does know, sorted. */
static bool strategy_known(lua_State *L, const struct wanted *f)
{
    const char *wanted = f->strategies->strategy;
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
    char text[LOADER_LINE_MAX];
    snprintf(text, sizeof text, "expected a strategy of %.200s: %s", f->path, known);
    config_complain(f->strategies, "LOAD_BALANCE_STRATEGY", text, f->errors);
    return false;
}

/* Arguments: what is wanted, what the file returned. Results: the functions, or none. */
static int find_functions(lua_State *L)
{
    const struct wanted *w = lua_touserdata(L, 1);
    bool good = true;
    if (!lua_istable(L, 2)) {
        loader_mistake(w->errors, "%s: returns a %s, not a table of functions", w->path,
                       luaL_typename(L, 2));
        return 0;
    }
    if (w->strategies && !strategy_known(L, w))
        return 0;
    for (unsigned i = 0; i < w->count; i++) {
        lua_getfield(L, 2, w->functions[i]);
        if (!lua_isfunction(L, -1)) {
            loader_mistake(w->errors, "%s: has no function %s()", w->path, w->functions[i]);
            good = false;
        }
    }
    return good ? (int)w->count : 0;
}

void loader_prepare(lua_State *L)
{
    sandbox_pin(L, find_functions);
}

bool loader_open(struct sandbox *box, const char *path, const char *const *functions,
                 unsigned count, const struct config *strategies, struct buf *errors)
{
    char error[SANDBOX_ERROR_MAX];
    struct wanted w = {path, functions, count, strategies, errors};
    lua_State *L = sandbox_lua(box);
    int base = lua_gettop(L);
    sandbox_push_pinned(L, find_functions);
    lua_pushlightuserdata(L, &w);
    if (cage_load(box, path, error) != SANDBOX_OK || sandbox_call(box, 0, 1, error) != SANDBOX_OK) {
        bool placed = strncmp(error, path, strlen(path)) == 0 || strstr(error, ".lua:");
        loader_mistake(errors, "%s%s%s", placed ? "" : path, placed ? "" : ": ", error);
        lua_settop(L, base);
    } else if (sandbox_call(box, 2, LUA_MULTRET, error) != SANDBOX_OK) {
        loader_mistake(errors, "%s: %s", path, error);
    }
    return lua_gettop(L) > base;
}

bool loader_open_own(struct sandbox *box, const char *name, struct buf *errors)
{
    char error[SANDBOX_ERROR_MAX], shown[80];
    const struct script_file *f = script_file_find(name);
    must(f);
    snprintf(shown, sizeof shown, "lua/%s", name);
    if (cage_load_text(box, shown, f->p, (size_t)(f->end - f->p), error) == SANDBOX_OK &&
        sandbox_call(box, 0, 1, error) == SANDBOX_OK)
        return true;
    loader_mistake(errors, "%s", error);
    return false;
}
