/* copies_test.c: which copy may be read, under which id; and that the table holds as many
 * collections as it is told. */
#include "copies.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define ID    "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
#define OTHER "6f9619ff-8b86-4d01-b42d-00cf4fc964f0"
#define ON_A  "aaaaaaaa-8b86-4d01-b42d-00cf4fc964ff"
#define ON_B  "bbbbbbbb-8b86-4d01-b42d-00cf4fc964ff"

static struct node a = {.name = (char *)"a"}, b = {.name = (char *)"b"};

static int fresh(void **state)
{
    copies_clear();
    copies_collection_set(ID, STR("t"), STR("d"), 10);
    assert_true(copies_copy_set(ID, STR("a"), ON_A, 10, true));
    assert_true(copies_copy_set(ID, STR("b"), ON_B, 7, true));
    return 0;
}

static int done(void **state)
{
    copies_clear();
    return 0;
}

static void test_each_instance_has_its_own_id(void **state)
{
    const struct collection *c = copies_find(ID);
    struct node stranger = {.name = (char *)"c"};
    assert_string_equal(copies_physical(c, &a), ON_A);
    assert_string_equal(copies_physical(c, &b), ON_B);
    assert_null(copies_physical(c, &stranger));
    assert_false(copies_may_read(c, &stranger, UINT64_MAX));
    assert_int_equal(copies_behind(c, &stranger), 10);
}

static void test_a_copy_behind_the_floor_is_not_read(void **state)
{
    const struct collection *c = copies_find(ID);
    assert_true(copies_may_read(c, &a, 0));
    assert_false(copies_may_read(c, &b, 0));
    assert_false(copies_may_read(c, &b, 2));
    assert_true(copies_may_read(c, &b, 3));
    assert_int_equal(copies_behind(c, &b), 3);
    assert_true(copies_copy_set(ID, STR("b"), ON_B, 10, true));
    assert_true(copies_may_read(copies_find(ID), &b, 0));
}

static void test_a_copy_ahead_of_the_floor_is_not_behind(void **state)
{
    assert_true(copies_copy_set(ID, STR("a"), ON_A, 12, true));
    assert_int_equal(copies_behind(copies_find(ID), &a), 0);
    assert_true(copies_may_read(copies_find(ID), &a, 0));
}

static void test_the_floor_never_goes_down(void **state)
{
    assert_true(copies_floor(ID, 20));
    assert_true(copies_floor(ID, 11));
    copies_collection_set(ID, STR("t"), STR("d"), 3);
    assert_int_equal(copies_behind(copies_find(ID), &a), 10);
    assert_false(copies_floor(OTHER, 1));
}

static void test_a_copy_that_is_not_readable_is_never_read(void **state)
{
    assert_true(copies_copy_set(ID, STR("a"), ON_A, 10, false));
    assert_false(copies_may_read(copies_find(ID), &a, UINT64_MAX));
}

static void test_a_dropped_copy_leaves_the_others(void **state)
{
    copies_copy_drop(ID, STR("a"));
    copies_copy_drop(ID, STR("a"));
    assert_null(copies_physical(copies_find(ID), &a));
    assert_string_equal(copies_physical(copies_find(ID), &b), ON_B);
}

static void test_a_collection_belongs_to_its_tenant_and_database(void **state)
{
    copies_collection_set(OTHER, STR("ab"), STR("c"), 0);
    const struct collection *c = copies_find(OTHER);
    assert_true(copies_belongs(c, STR("ab"), STR("c")));
    assert_false(copies_belongs(c, STR("a"), STR("bc"))); /* the same bytes, cut elsewhere */
    assert_false(copies_belongs(c, STR("ab"), STR("d")));
    copies_collection_set(OTHER, STR("x"), STR(""), 0);
    assert_true(copies_belongs(copies_find(OTHER), STR("x"), STR("")));
}

static void test_tells_that_a_collection_is_unknown(void **state)
{
    assert_null(copies_find(OTHER));
    assert_false(copies_copy_set(OTHER, STR("a"), ON_A, 1, true));
    copies_copy_drop(OTHER, STR("a"));
    copies_collection_drop(OTHER);
    assert_int_equal(copies_count(), 1);
    copies_collection_drop(ID);
    assert_null(copies_find(ID));
    assert_int_equal(copies_count(), 0);
}

static void test_holds_fifty_thousand_collections(void **state)
{
    enum { MANY = 50000 };
    char id[40];
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(id, sizeof id, "%08x-0000-4000-8000-000000000000", i);
        copies_collection_set(id, STR("t"), STR("d"), i);
        assert_true(copies_copy_set(id, STR("a"), id, i, true));
    }
    for (unsigned i = 0; i < MANY; i += 2) {
        snprintf(id, sizeof id, "%08x-0000-4000-8000-000000000000", i);
        copies_collection_drop(id);
    }
    assert_int_equal(copies_count(), MANY / 2 + 1);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(id, sizeof id, "%08x-0000-4000-8000-000000000000", i);
        const struct collection *c = copies_find(id);
        assert_int_equal(c != NULL, i % 2);
        if (c)
            assert_string_equal(copies_physical(c, &a), id);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, fresh, done)
    const struct CMUnitTest tests[] = {
        TEST(each_instance_has_its_own_id),
        TEST(a_copy_behind_the_floor_is_not_read),
        TEST(a_copy_ahead_of_the_floor_is_not_behind),
        TEST(the_floor_never_goes_down),
        TEST(a_copy_that_is_not_readable_is_never_read),
        TEST(a_dropped_copy_leaves_the_others),
        TEST(a_collection_belongs_to_its_tenant_and_database),
        TEST(tells_that_a_collection_is_unknown),
        TEST(holds_fifty_thousand_collections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
