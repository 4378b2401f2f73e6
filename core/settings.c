/* settings.c: the config file runs in a sandbox of its own (no I/O, no libraries but string, table
 * and math) and must return a table of plain values. The limits matter at a HUP: a file that never
 * ends must not end the service. */
#include "settings.h"

#include "sandbox.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const struct sandbox_limits file_limits = {64u << 20, 10000000, 5};

/* One line more, unless there are far too many already. */
static void PRINTF(2, 3) mistake(struct buf *errors, const char *fmt, ...)
{
    char line[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    size_t len = n < 0 ? 0 : (size_t)n < sizeof line ? (size_t)n : sizeof line - 1;
    if (buf_room(errors) > len)
        buf_put(errors, line, len);
}

static int open_libraries(lua_State *L)
{
    static const char *const gone[] = {"dofile", "loadfile", "load", "loadstring",
                                       "collectgarbage"};
    static const lua_CFunction libs[] = {luaopen_base, luaopen_string, luaopen_table, luaopen_math};
    for (unsigned i = 0; i < COUNT_OF(libs); i++) {
        lua_pushcfunction(L, libs[i]);
        lua_call(L, 0, 0);
    }
    for (unsigned i = 0; i < COUNT_OF(gone); i++) {
        lua_pushnil(L);
        lua_setglobal(L, gone[i]);
    }
    return 0;
}

/* Adds the plain value on top of the stack under this name; false when it is not plain. */
static bool add_value(lua_State *L, const char *name, const char *source, struct config_raws *raws)
{
    char number[64];
    switch (lua_type(L, -1)) {
    case LUA_TSTRING:
        config_raws_add(raws, name, lua_tostring(L, -1), CONFIG_TEXT, source);
        return true;
    case LUA_TNUMBER:
        snprintf(number, sizeof number, "%.15g", lua_tonumber(L, -1));
        config_raws_add(raws, name, number, CONFIG_NUMBER, source);
        return true;
    case LUA_TBOOLEAN:
        config_raws_add(raws, name, lua_toboolean(L, -1) ? "true" : "false", CONFIG_BOOLEAN,
                        source);
        return true;
    default:
        return false;
    }
}

static void add_instances(lua_State *L, const char *source, struct config_raws *raws,
                          struct buf *errors)
{
    size_t rows = lua_objlen(L, -1);
    if (rows == 0)
        mistake(errors,
                "instances (%s): expected a list of tables, such as {{name=\"a\", url="
                "\"http://127.0.0.1:8001\"}}\n",
                source);
    for (size_t i = 1; i <= rows; i++) {
        lua_rawgeti(L, -1, (int)i);
        if (!lua_istable(L, -1))
            mistake(errors, "instances[%zu] (%s): expected a table, found a %s\n", i, source,
                    luaL_typename(L, -1));
        else
            for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
                char name[160];
                const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
                snprintf(name, sizeof name, "instances[%zu].%s", i, key);
                if (!add_value(L, name, source, raws))
                    mistake(errors, "%s (%s): expected a plain value, found a %s\n", name, source,
                            luaL_typename(L, -1));
            }
        lua_pop(L, 1);
    }
}

/* false: the file can't be run at all. */
static bool read_file(const char *path, struct config_raws *raws, struct buf *errors)
{
    struct sandbox *box = sandbox_new(&file_limits, open_libraries);
    must(box);
    lua_State *L = sandbox_lua(box);
    char error[SANDBOX_ERROR_MAX];
    bool ran = false;
    if (luaL_loadfile(L, path) != 0) {
        mistake(errors, "%s\n", lua_tostring(L, -1));
    } else if (sandbox_call(box, 0, 1, error) != SANDBOX_OK) {
        mistake(errors, "%s%s%s\n", strstr(error, path) ? "" : path,
                strstr(error, path) ? "" : ": ", error);
    } else if (!lua_istable(L, -1)) {
        mistake(errors, "%s: expected it to return a table of settings, found a %s\n", path,
                luaL_typename(L, -1));
    } else {
        ran = true;
        for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
            if (lua_type(L, -2) != LUA_TSTRING) {
                mistake(errors, "%s: expected NAME = value, found a %s as a name\n", path,
                        luaL_typename(L, -2));
                continue;
            }
            const char *name = lua_tostring(L, -2);
            if (strcmp(name, "instances") == 0 && lua_istable(L, -1))
                add_instances(L, path, raws, errors);
            else if (!add_value(L, name, path, raws))
                mistake(errors, "%s (%s): expected a plain value, found a %s\n", name, path,
                        luaL_typename(L, -1));
        }
    }
    sandbox_free(box);
    return ran;
}

/* An installed program that is not told POLICY_DIR, and finds no such folder where it was started,
 * uses the policies that were installed with it: PREFIX/share/chromux/policies. */
static void find_policies(struct config *c)
{
    char program[PATH_MAX];
    if (strcmp(c->policy_dir, "policies") != 0 || access("policies", F_OK) == 0)
        return;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0)
        return;
    program[n] = 0;
    for (int up = 0; up < 2; up++) { /* PREFIX/bin/chromux */
        char *slash = strrchr(program, '/');
        if (!slash)
            return;
        *slash = 0;
    }
    char *installed = base_printf("%s/share/chromux/policies", program);
    if (access(installed, F_OK) == 0) {
        free(c->policy_dir);
        c->policy_dir = installed;
    } else {
        free(installed);
    }
}

struct config *settings_load(const struct settings_sources *from, struct buf *errors)
{
    struct config_raws raws = {0};
    size_t before = buf_len(errors);
    /* Without the file nothing sure can be said of the whole: "no instances" would mislead. */
    if (from->file && !read_file(from->file, &raws, errors)) {
        config_raws_fini(&raws);
        return NULL;
    }
    config_raws_add_environment(&raws, from->environment);
    for (unsigned i = 0; i < from->set_count; i++) {
        const char *set = from->sets[i], *eq = strchr(set, '=');
        if (!eq || eq == set) {
            mistake(errors, "--set %s: expected NAME=VALUE\n", set);
            continue;
        }
        char *name = base_strdup(set);
        name[eq - set] = 0;
        config_raws_add(&raws, name, eq + 1, CONFIG_TEXT, "--set");
        free(name);
    }
    bool broken = buf_len(errors) > before;
    struct config *c = config_build(&raws, errors); /* also when broken: all mistakes at once */
    config_raws_fini(&raws);
    if (broken && c) {
        config_free(c);
        c = NULL;
    }
    if (c)
        find_policies(c);
    return c;
}
