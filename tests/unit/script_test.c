/* script_test.c: VMs: embedded modules, guarded calls, memory caps, plain values across VMs. */
#include "script.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static bool run(lua_State *L, const char *code, int nresults, struct buf *error)
{
    assert_int_equal(luaL_loadbuffer(L, code, strlen(code), "=test.lua"), 0);
    return script_call(L, 0, nresults, false, error);
}

static void error_is(struct buf *error, const char *part)
{
    buf_put(error, "", 1);
    if (!strstr(buf_data(error), part))
        fail_msg("\"%s\" does not contain \"%s\"", buf_data(error), part);
    buf_clear(error);
}

static void require_finds_embedded_files(void **state)
{
    (void)state;
    struct buf error;
    buf_init(&error, 4096);
    lua_State *L = script_new(0);
    assert_non_null(script_file_find("lb/testkit.lua"));
    assert_null(script_file_find("lb/none.lua"));
    assert_true(run(L,
                    "local kit = require 'lb.testkit'\n"
                    "local info = debug.getinfo(kit.load, 'S')\n"
                    "return info.source",
                    1, &error));
    assert_string_equal(lua_tostring(L, -1), "=lua/lb/testkit.lua");
    lua_pop(L, 1);
    assert_false(run(L, "require 'lb.none'", 0, &error));
    error_is(&error, "no embedded file 'lua/lb/none.lua'");
    assert_true(run(L, "return require('cjson').encode({1})", 1, &error));
    assert_string_equal(lua_tostring(L, -1), "[1]");
    buf_fini(&error);
    script_free(L);
}

static void errors_have_file_and_line(void **state)
{
    (void)state;
    struct buf error;
    buf_init(&error, 4096);
    lua_State *L = script_new(0);
    assert_false(run(L, "\nlocal x = nil\nreturn x.y", 1, &error));
    error_is(&error, "test.lua:3: attempt to index local 'x'");
    assert_int_equal(lua_gettop(L), 0);
    assert_false(run(L, "error({})", 1, &error));
    error_is(&error, "(error object is a table value)");
    assert_false(
        run(L, "error(setmetatable({}, {__tostring = function() return 'told' end}))", 1, &error));
    error_is(&error, "told");
    assert_false(run(L, "error()", 1, &error));
    error_is(&error, "nil value");
    const char *deep = "local function inner() error('deep') end inner() return 1";
    assert_int_equal(luaL_loadbuffer(L, deep, strlen(deep), "=test.lua"), 0);
    assert_false(script_call(L, 0, 0, true, &error));
    error_is(&error, "stack traceback:");
    buf_fini(&error);
    script_free(L);
}

static void a_long_error_is_cut_to_the_buffer(void **state)
{
    (void)state;
    struct buf error;
    buf_init(&error, 64);
    lua_State *L = script_new(0);
    assert_false(run(L, "error(('x'):rep(1000), 0)", 0, &error));
    assert_int_equal(buf_len(&error), 64);
    buf_fini(&error);
    script_free(L);
}

static void arguments_and_results_pass(void **state)
{
    (void)state;
    struct buf error;
    buf_init(&error, 4096);
    lua_State *L = script_new(0);
    lua_pushstring(L, "below");
    luaL_loadstring(L, "local a, b = ... return a + b, a * b");
    lua_pushnumber(L, 3);
    lua_pushnumber(L, 4);
    assert_true(script_call(L, 2, LUA_MULTRET, true, &error));
    assert_int_equal(lua_gettop(L), 3);
    assert_int_equal(lua_tointeger(L, 2), 7);
    assert_int_equal(lua_tointeger(L, 3), 12);
    assert_string_equal(lua_tostring(L, 1), "below");
    buf_fini(&error);
    script_free(L);
}

static void the_memory_cap_holds(void **state)
{
    (void)state;
    struct buf error;
    buf_init(&error, 4096);
    lua_State *L = script_new(4 << 20);
    assert_in_range(script_memory(L), 10000, 4 << 20);
    assert_false(
        run(L, "local t = {} while true do t[#t + 1] = ('x'):rep(1000) .. #t end", 0, &error));
    error_is(&error, "not enough memory");
    assert_in_range(script_memory(L), 10000, 4 << 20);
    lua_gc(L, LUA_GCCOLLECT, 0);
    assert_true(run(L, "return 1", 1, &error));
    buf_fini(&error);
    script_free(L);
}

static bool copied(lua_State *a, lua_State *b, const char *code, const char *check)
{
    struct buf error;
    buf_init(&error, 4096);
    const char *why = NULL;
    assert_true(run(a, code, 1, &error));
    bool ok = script_copy(a, -1, b, &why);
    assert_int_equal(lua_gettop(a), 1);
    lua_settop(a, 0);
    if (!ok) {
        assert_non_null(why);
        assert_non_null(strstr(why, check));
        assert_int_equal(lua_gettop(b), 0);
        buf_fini(&error);
        return false;
    }
    assert_int_equal(lua_gettop(b), 1);
    assert_int_equal(luaL_loadstring(b, check), 0);
    lua_insert(b, 1);
    assert_true(script_call(b, 1, 1, false, &error));
    bool right = lua_toboolean(b, -1);
    lua_settop(b, 0);
    buf_fini(&error);
    return right;
}

static void plain_values_are_copied(void **state)
{
    (void)state;
    lua_State *a = script_new(0), *b = script_new(0);
    assert_true(copied(a, b, "return nil", "return ... == nil"));
    assert_true(copied(a, b, "return 1.5", "return ... == 1.5"));
    assert_true(copied(a, b, "return 'a\\0b'", "return ... == 'a\\0b'"));
    assert_true(copied(a, b, "return {1, 2, {x = {true, false}}, [7.5] = 'y'}",
                       "local t = ... return t[1] == 1 and t[3].x[2] == false and t[7.5] == 'y' "
                       "and #t == 3 and #t[3].x == 2"));
    script_free(a);
    script_free(b);
}

static void other_values_are_refused(void **state)
{
    (void)state;
    lua_State *a = script_new(0), *b = script_new(1 << 20);
    assert_false(copied(a, b, "return print", "not a plain value"));
    assert_false(copied(a, b, "return {x = {y = function() end}}", "not a plain value"));
    assert_false(copied(a, b, "return {[{}] = coroutine.create(print)}", "not a plain value"));
    assert_false(copied(a, b, "local t = {} t.t = t return t", "nested too deep"));
    assert_false(
        copied(a, b, "local t = {} for i = 1, 10001 do t[i] = i end return t", "too many values"));
    assert_false(copied(a, b, "return {('x'):rep(2 ^ 21)}", "out of memory"));
    assert_true(copied(a, b, "return {1}", "return (...)[1] == 1"));
    script_free(a);
    script_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(require_finds_embedded_files),
        cmocka_unit_test(errors_have_file_and_line),
        cmocka_unit_test(a_long_error_is_cut_to_the_buffer),
        cmocka_unit_test(arguments_and_results_pass),
        cmocka_unit_test(the_memory_cap_holds),
        cmocka_unit_test(plain_values_are_copied),
        cmocka_unit_test(other_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
