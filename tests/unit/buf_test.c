/* buf_test.c: growing bytes never pass their cap, and idle ones hold no memory. */
#include "buf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct buf b;

static int stop(void **state)
{
    buf_fini(&b);
    return 0;
}

static void holds(const char *text)
{
    assert_int_equal(buf_len(&b), strlen(text));
    assert_memory_equal(buf_data(&b), text, strlen(text));
}

static void an_empty_buf_holds_no_memory(void **state)
{
    buf_init(&b, 1000);
    assert_null(b.mem);
    assert_true(buf_add(&b, "abc", 3));
    assert_non_null(b.mem);
    buf_rest(&b);
    holds("abc"); /* not empty: kept */
    buf_consume(&b, 3);
    assert_non_null(b.mem);
    buf_rest(&b);
    assert_null(b.mem);
    assert_true(buf_add(&b, "again", 5));
    holds("again");
}

static void bytes_go_in_at_the_tail_and_out_at_the_head(void **state)
{
    char want[10000], got[10000];
    size_t in = 0, out = 0;
    buf_init(&b, 700);
    for (size_t i = 0; i < sizeof want; i++)
        want[i] = (char)(i * 31 + i / 256);
    /* Uneven steps, so that head and tail meet the end of the memory in many places. */
    for (unsigned turn = 1; out < sizeof want; turn++) {
        size_t n = turn * 37 % 300;
        if (n > sizeof want - in)
            n = sizeof want - in;
        if (buf_add(&b, want + in, n))
            in += n;
        else
            assert_true(n > buf_room(&b));
        size_t m = turn * 53 % 280;
        if (m > buf_len(&b))
            m = buf_len(&b);
        memcpy(got + out, m ? buf_data(&b) : "", m);
        buf_consume(&b, m);
        out += m;
        assert_true(b.size <= 700);
    }
    assert_memory_equal(got, want, sizeof want);
}

static void the_cap_is_exact_and_a_refusal_changes_nothing(void **state)
{
    char big[1001] = {0};
    memset(big, 'x', 1000);
    buf_init(&b, 1000);
    assert_false(buf_add(&b, big, 1001));
    assert_int_equal(buf_len(&b), 0);
    assert_true(buf_add(&b, big, 999));
    assert_int_equal(buf_room(&b), 1);
    assert_false(buf_add(&b, "yz", 2));
    assert_int_equal(buf_len(&b), 999);
    assert_true(buf_add(&b, "y", 1));
    assert_false(buf_add(&b, "z", 1));
    assert_null(buf_reserve(&b, 1));
    assert_false(buf_addf(&b, "%d", 5));
    assert_int_equal(buf_len(&b), 1000);
    assert_int_equal(buf_data(&b)[999], 'y');
    buf_consume(&b, 500); /* room is what is not used, wherever it lies */
    assert_true(buf_add(&b, big, 500));
    assert_int_equal(buf_len(&b), 1000);
    assert_int_equal(buf_data(&b)[499], 'y');
    assert_true(buf_add(&b, big, 0));
}

static void sizes_near_the_end_of_numbers_are_refused(void **state)
{
    buf_init(&b, 1000);
    assert_true(buf_add(&b, "abc", 3));
    assert_null(buf_reserve(&b, SIZE_MAX));
    assert_null(buf_reserve(&b, SIZE_MAX - 2));
    assert_null(buf_reserve(&b, (size_t)UINT32_MAX + 1));
    holds("abc");
}

static void reserved_bytes_count_once_added(void **state)
{
    buf_init(&b, 1000);
    char *at = buf_reserve(&b, 10);
    assert_non_null(at);
    memcpy(at, "0123456789", 10);
    assert_int_equal(buf_len(&b), 0);
    buf_added(&b, 4);
    holds("0123");
    buf_clear(&b);
    holds("");
}

static void formats_are_added_whole(void **state)
{
    buf_init(&b, 100);
    buf_printf(&b, "%s=%d;", "a", -7);
    assert_true(buf_addf(&b, "%05.1f", 2.25));
    holds("a=-7;002.2");
    assert_false(buf_addf(&b, "%200d", 1));
    holds("a=-7;002.2");
    buf_put_uint(&b, 0);
    buf_put_uint(&b, UINT64_MAX);
    holds("a=-7;002.2018446744073709551615");
    buf_puts(&b, "|");
    buf_put_str(&b, STR("xy"));
    holds("a=-7;002.2018446744073709551615|xy");
}

static void json(const char *text, size_t n, const char *want)
{
    buf_clear(&b);
    buf_put_json(&b, (struct str){text, n});
    holds(want);
}

static void json_strings_are_escaped_and_valid_utf8(void **state)
{
    buf_init(&b, 1000);
#define JSON(text, want) json(text, sizeof(text) - 1, want)
    JSON("", "\"\"");
    JSON("plain", "\"plain\"");
    JSON("a\"b\\c", "\"a\\\"b\\\\c\"");
    JSON("\0\n\x1f\x7f", "\"\\u0000\\u000a\\u001f\\u007f\"");
    JSON("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
    /* RFC 3629 3: cut short, overlong, surrogates, past U+10FFFF, a continuation alone */
    JSON("\xc3", "\"\xef\xbf\xbd\"");
    JSON("\xe2\x82", "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    JSON("\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    JSON("\xe0\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    JSON("\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    JSON("\xf4\x90\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    JSON("\x80z", "\"\xef\xbf\xbdz\"");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_teardown(f, stop)
    const struct CMUnitTest tests[] = {
        TEST(an_empty_buf_holds_no_memory),
        TEST(bytes_go_in_at_the_tail_and_out_at_the_head),
        TEST(the_cap_is_exact_and_a_refusal_changes_nothing),
        TEST(sizes_near_the_end_of_numbers_are_refused),
        TEST(reserved_bytes_count_once_added),
        TEST(formats_are_added_whole),
        TEST(json_strings_are_escaped_and_valid_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
