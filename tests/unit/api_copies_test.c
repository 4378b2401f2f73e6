/* api_copies_test.c: what Lua may say about copies, and what is refused. */
#include "api_copies.h"

#include "copies.h"
#include "log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define ID   "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
#define ON_A "aaaaaaaa-8b86-4d01-b42d-00cf4fc964ff"

static const char *lua(const char *chunk)
{
    static char out[512];
    lua_State *L = api_vm();
    if (luaL_loadstring(L, chunk) != 0 || lua_pcall(L, 0, 1, 0) != 0)
        fail_msg("%s", lua_tostring(L, -1));
    snprintf(out, sizeof out, "%s", lua_tostring(L, -1) ? lua_tostring(L, -1) : "nil");
    lua_pop(L, 1);
    return out;
}

static int set_up(void **state)
{
    struct buf error;
    buf_init(&error, 4096);
    log_set_fd(-1);
    assert_true(api_start(ev_default_loop(EVFLAG_AUTO), "", &error));
    api_copies_open(api_vm());
    lua("copies = require('chromux.copies') id = '" ID "' on_a = '" ON_A "'");
    buf_fini(&error);
    return 0;
}

static int tear_down(void **state)
{
    api_stop();
    copies_clear();
    copies_expected = copies_on = false;
    return 0;
}

static void what_lua_says_is_found(void **state)
{
    struct node a = {.name = (char *)"a"};
    lua("copies.collection_set(id, 't', 'd', 10)");
    assert_string_equal(lua("return tostring(copies.copy_set(id, 'a', on_a, 8, true))"), "true");
    const struct collection *c = copies_find(ID);
    assert_string_equal(copies_physical(c, &a), ON_A);
    assert_int_equal(copies_behind(c, &a), 2);
    assert_true(copies_belongs(c, STR("t"), STR("d")));
    assert_string_equal(lua("local p, b, r = copies.get(id, 'a') return p .. b .. tostring(r)"),
                        ON_A "2false");
    assert_string_equal(lua("return tostring(copies.floor(id, 12))"), "true");
    assert_int_equal(copies_behind(copies_find(ID), &a), 4);
    lua("copies.copy_drop(id, 'a')");
    assert_string_equal(lua("return tostring(copies.get(id, 'a'))"), "nil");
    assert_string_equal(lua("return copies.count()"), "1");
    lua("copies.collection_drop(id)");
    assert_string_equal(lua("return copies.count()"), "0");
}

static void unknown_collections_are_told(void **state)
{
    assert_string_equal(lua("return tostring(copies.copy_set(id, 'a', on_a, 8, true))"), "false");
    assert_string_equal(lua("return tostring(copies.floor(id, 8))"), "false");
}

static void entries_up_to_2_to_the_53_are_exact(void **state)
{
    struct node a = {.name = (char *)"a"};
    lua("copies.collection_set(id, 't', 'd', 9007199254740991)");
    lua("copies.copy_set(id, 'a', on_a, 9007199254740990, true)");
    assert_int_equal(copies_behind(copies_find(ID), &a), 1);
}

static void turning_on_is_seen_in_c(void **state)
{
    lua("copies.on(true)");
    assert_true(copies_on && copies_expected);
    lua("copies.on(false)");
    assert_false(copies_on);
    assert_true(copies_expected);
}

static void nonsense_is_an_error(void **state)
{
    static const char *const wrong[] = {
        "copies.collection_set('x', 't', 'd', 1)",
        "copies.collection_set(id:upper(), 't', 'd', 1)",
        "copies.collection_set(id:gsub('-', ''), 't', 'd', 1)",
        "copies.collection_set(id, 't\\0', 'd', 1)",
        "copies.collection_set(id, 't', 'd', -1)",
        "copies.collection_set(id, 't', 'd', 1.5)",
        "copies.collection_set(id, 't', 'd', 2^54)",
        "copies.collection_set(id, 't', 'd', 0/0)",
        "copies.copy_set(id, 'a', 'x', 1, true)",
        "copies.copy_set(id, 'a', on_a, 1)",
        "copies.on()",
    };
    char chunk[256];
    for (unsigned i = 0; i < COUNT_OF(wrong); i++) {
        snprintf(chunk, sizeof chunk, "return tostring(pcall(function() %s end))", wrong[i]);
        if (strcmp(lua(chunk), "false") != 0)
            fail_msg("%s was taken", wrong[i]);
    }
    assert_int_equal(copies_count(), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {TEST(what_lua_says_is_found),
                                       TEST(unknown_collections_are_told),
                                       TEST(entries_up_to_2_to_the_53_are_exact),
                                       TEST(turning_on_is_seen_in_c), TEST(nonsense_is_an_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
