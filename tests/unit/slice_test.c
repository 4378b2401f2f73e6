/* slice_test.c: strict JSON, walking it, strings, the canonical form; every text is read at the end
 * of a page, and so is every prefix of it. */
#include "guard.h"
#include "slice.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct guard guard;

static struct str guarded(struct str s)
{
    return (struct str){guard_put(&guard, s.p, s.n), s.n};
}

static bool valid(struct str s)
{
    size_t at;
    const char *why;
    bool ok = slice_validate(guarded(s), &at, &why);
    assert_true(at <= s.n);
    assert_int_equal(ok, why == NULL);
    return ok;
}

static void assert_refused(struct str s, size_t where, const char *what)
{
    size_t at;
    const char *why;
    assert_false(slice_validate(guarded(s), &at, &why));
    assert_string_equal(why, what);
    assert_int_equal(at, where);
}

static const struct str good[] = {
    STR("1"),
    STR("0"),
    STR("-0"),
    STR("-0.0e-0"),
    STR("1.0"),
    STR("9223372036854775807"),
    STR("123456789012345678901234567890"),
    STR("1E+5"),
    STR("true"),
    STR(" null\r\n\t "),
    STR("\"\""),
    STR("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
    STR("\"\\u0000 \\u00e9 \\uD83D\\ude00\""),
    STR("\"\x7f \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xef\xbf\xbf \xed\x9f\xbf\""),
    STR("[]"),
    STR("[ ]"),
    STR("{ }"),
    STR("[1,[2,[]],{}]"),
    STR("{\"a\":1,\"a\":2}"),
    STR(" { \"a\" : [ 1 , 2 ] , \"b\" : { \"c\" : null } } "),
    STR("[\"a long text without anything to see in it, more than a word\", \"\\\\\", \"]\"]"),
};

static void takes_what_is_json(void **state)
{
    for (unsigned i = 0; i < COUNT_OF(good); i++)
        if (!valid(good[i]))
            fail_msg("refused: %s", good[i].p);
}

static void refuses_what_is_not(void **state)
{
    static const struct str bad[] = {
        STR("NaN"),
        STR("Infinity"),
        STR("-Infinity"),
        STR("-"),
        STR("+1"),
        STR("01"),
        STR("-01"),
        STR("1."),
        STR(".5"),
        STR("1e"),
        STR("1e+"),
        STR("0x1"),
        STR("1 2"),
        STR("tru"),
        STR("True"),
        STR("nulll"),
        STR("'a'"),
        STR("[1,]"),
        STR("[,1]"),
        STR("[1 2]"),
        STR("[1}"),
        STR("[1]]"),
        STR("{\"a\":1,}"),
        STR("{\"a\"}"),
        STR("{\"a\":}"),
        STR("{\"a\":1]"),
        STR("{a:1}"),
        STR("{1:1}"),
        STR("{\"a\":1 \"b\":2}"),
        STR("{\"a\" 1}"),
        STR("//\n1"),
        STR("1\v"),
        STR("[1]\0"),
        STR("\"a\nb\""),
        STR("\"\x1f\""),
        STR("\"\\x41\""),
        STR("\"\\u12g4\""),
        STR("\"\\U0041\""),
        STR("\"\\'\""),
        STR("\"\\ud800\""),
        STR("\"\\ude00\\ud83d\""),
        STR("\"\\ud83d\\u0041\""),
        STR("\"\\ud83dx\\ude00\""),
        STR("\"\x80\""),
        STR("\"\xc0\xaf\""),
        STR("\"\xc3\""),
        STR("\"\xed\xa0\x80\""),
        STR("\"\xf4\x90\x80\x80\""),
        STR("\"\xff\""),
        STR("\xc3\xa9"),
        STR("\"plain and long enough, then a control byte \x01 in it\""),
        STR("\"plain and long enough, then a bad byte \x9f in it\""),
    };
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        if (valid(bad[i]))
            fail_msg("taken: %s", bad[i].p);
}

static void says_where_and_why(void **state)
{
    assert_refused(STR("\xef\xbb\xbf{}"), 0, "a byte order mark");
    assert_refused(STR("{} x"), 3, "something follows the value");
    assert_refused(STR("[1, NaN]"), 4, "no JSON value starts so");
    assert_refused(STR("[1, \"\\ud800\"]"), 5, "half of a surrogate pair");
    assert_refused(STR(""), 0, "the text ends before the value does");
    assert_refused(STR("  "), 2, "the text ends before the value does");
    assert_refused(STR("{\"a\":1"), 6, "the text ends before the value does");
    assert_refused(STR("{\"a\":1]"), 6, "neither , nor } behind a member");
    assert_refused(STR("[007]"), 2, "a number that starts with 0");
}

static void nests_as_deep_as_it_says(void **state)
{
    enum { N = SLICE_DEPTH_MAX + 1 };
    char text[2 * N + 1];
    memset(text, '[', N);
    memset(text + N, ']', N);
    assert_true(valid((struct str){text + 1, 2 * N - 2}));
    assert_refused((struct str){text, 2 * N}, N - 1, "too many arrays and objects in each other");
    memset(text, '{', N);
    assert_refused((struct str){text, N}, 1, "a member without a name in quotes");
}

/* Whatever the text is: nothing outside of it is read, everything found lies in it. */
static void walk(struct str s)
{
    struct slice array = slice_start(s), object = slice_start(s);
    struct str key, value, text;
    struct buf mem;
    buf_init(&mem, 1 << 16);
    while (slice_array_next(&array, &value))
        assert_true(value.n > 0 && value.p >= s.p && value.p + value.n <= s.p + s.n);
    while (slice_object_next(&object, &key, &value)) {
        assert_true(key.p > s.p && key.p + key.n < value.p && value.p + value.n <= s.p + s.n);
        (void)!slice_string(key, &mem, &text);
    }
    (void)!slice_string(s, &mem, &text);
    (void)!slice_count_numbers(s);
    buf_fini(&mem);
}

static void prefixes_are_not_read_past(void **state)
{
    struct buf out;
    buf_init(&out, 1 << 16);
    for (unsigned i = 0; i < COUNT_OF(good); i++)
        for (size_t n = 0; n < good[i].n; n++) {
            struct str s = guarded((struct str){good[i].p, n});
            size_t at;
            const char *why;
            bool ok = slice_validate(s, &at, &why);
            walk(s);
            buf_clear(&out);
            assert_int_equal(slice_canonical(s, &out), ok);
            if (!ok) {
                assert_int_equal(buf_len(&out), 0);
                assert_true(at <= n);
            }
        }
    buf_fini(&out);
}

static void walks_members_as_they_are(void **state)
{
    struct str text = guarded(
        STR(" {\"a\":1.0 , \"b\\\"}\" : \"x\\\\\",\"c\":[1, {\"d\":\"]\"}] ,\"\":{}, \"a\":null}"));
    static const char *const expected[] = {
        "\"a\"", "1.0", "\"b\\\"}\"", "\"x\\\\\"", "\"c\"", "[1, {\"d\":\"]\"}]",
        "\"\"",  "{}",  "\"a\"",      "null"};
    struct slice s = slice_start(text);
    struct str key, value;
    unsigned i = 0;
    for (; slice_object_next(&s, &key, &value); i += 2) {
        assert_true(i < COUNT_OF(expected));
        assert_true(str_eq(key, str_from(expected[i])));
        assert_true(str_eq(value, str_from(expected[i + 1])));
        assert_true(value.p > text.p && value.p < text.p + text.n);
    }
    assert_int_equal(i, COUNT_OF(expected));
    assert_false(slice_object_next(&s, &key, &value));
}

static void walks_elements_as_they_are(void **state)
{
    static const char *const expected[] = {"1", "1.0", "\"a,]\"", "[[2 ],3]", "true", "{}"};
    struct slice s = slice_start(guarded(STR("[1, 1.0 ,\"a,]\",\n[[2 ],3] ,true,{}]")));
    struct str element;
    unsigned i = 0;
    while (slice_array_next(&s, &element)) {
        assert_true(i < COUNT_OF(expected));
        assert_true(str_eq(element, str_from(expected[i++])));
    }
    assert_int_equal(i, COUNT_OF(expected));
}

static void walks_nothing_of_the_wrong_kind(void **state)
{
    static const struct str none[] = {STR("[]"), STR("{}"),      STR("[ ]"),  STR("{ }"),
                                      STR("7"),  STR("\"[1]\""), STR("null"), STR("")};
    struct str key, value;
    for (unsigned i = 0; i < COUNT_OF(none); i++) {
        struct slice s = slice_start(guarded(none[i]));
        assert_false(slice_array_next(&s, &value));
        s = slice_start(none[i]);
        assert_false(slice_object_next(&s, &key, &value));
    }
    struct slice s = slice_start(guarded(STR("{\"a\":1}")));
    assert_false(slice_array_next(&s, &value));
    s = slice_start(guarded(STR("[1]")));
    assert_false(slice_object_next(&s, &key, &value));
}

static void decodes_strings(void **state)
{
    static const struct {
        struct str raw, text;
    } cases[] = {
        {STR("\"\""), STR("")},
        {STR("\"plain \xc3\xa9\""), STR("plain \xc3\xa9")},
        {STR("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), STR("\"\\/\b\f\n\r\t")},
        {STR("\"a\\u0000b\""), STR("a\0b")},
        {STR("\"\\u007F\\u0080\\u07ff\\u0800\\uffff\""),
         STR("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf")},
        {STR("\"\\ud83d\\ude00\\uD800\\uDC00\\udbff\\udfff\""),
         STR("\xf0\x9f\x98\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")},
    };
    static const struct str none[] = {
        STR("1"),        STR(""),       STR("\""),          STR("\"a"),     STR("\"a\" "),
        STR("\"a\"b\""), STR("\"\\\""), STR("\"\\ud800\""), STR("\"\xff\"")};
    struct buf mem;
    struct str text;
    buf_init(&mem, 64);
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        assert_true(slice_string(guarded(cases[i].raw), &mem, &text));
        assert_true(str_eq(text, cases[i].text));
    }
    for (unsigned i = 0; i < COUNT_OF(none); i++)
        assert_false(slice_string(guarded(none[i]), &mem, &text));
    assert_true(slice_string(guarded(STR("\"in place\"")), &mem, &text));
    assert_true(text.p > guard.map && text.p < guard.map + guard.size);
    char most[128] = "\"\\n";
    memset(most + 3, 'x', sizeof most - 4);
    most[sizeof most - 1] = '"';
    assert_false(slice_string(guarded((struct str){most, sizeof most}), &mem, &text));
    buf_fini(&mem);
}

static void counts_numbers_only(void **state)
{
    assert_int_equal(slice_count_numbers(guarded(STR("[]"))), 0);
    assert_int_equal(slice_count_numbers(guarded(STR("[ -1.5e+3 ]"))), 1);
    assert_int_equal(slice_count_numbers(guarded(STR("[1,2 , 3E5]"))), 3);
    assert_int_equal(slice_count_numbers(guarded(STR("[1,null]"))), -1);
    assert_int_equal(slice_count_numbers(guarded(STR("[1,true]"))), -1);
    assert_int_equal(slice_count_numbers(guarded(STR("[1,[2]]"))), -1);
    assert_int_equal(slice_count_numbers(guarded(STR("[\"1\"]"))), -1);
    assert_int_equal(slice_count_numbers(guarded(STR("{}"))), -1);
    assert_int_equal(slice_count_numbers(guarded(STR("1"))), -1);
}

static void canonical_is(const char *text, const char *expected)
{
    struct buf out;
    buf_init(&out, 1 << 16);
    buf_puts(&out, "before"); /* stays */
    assert_true(slice_canonical(guarded(str_from(text)), &out));
    struct str got = {buf_data(&out) + 6, buf_len(&out) - 6};
    if (!str_eq(got, str_from(expected)))
        fail_msg("%s became %.*s", text, (int)got.n, got.p);
    buf_clear(&out);
    assert_true(slice_canonical(guarded(str_from(expected)), &out)); /* itself, again */
    assert_true(str_eq((struct str){buf_data(&out), buf_len(&out)}, str_from(expected)));
    buf_fini(&out);
}

static void canonical_sorts_keys(void **state)
{
    canonical_is(" { \"b\" : 1 , \"a\" : [ 2 , { \"d\" : null , \"c\" : true } ] } ",
                 "{\"a\":[2,{\"c\":true,\"d\":null}],\"b\":1}");
    canonical_is("{\"z\":{},\"aa\":[],\"a\":[[ ]],\"\":\"x\"}",
                 "{\"\":\"x\",\"a\":[[]],\"aa\":[],\"z\":{}}");
    canonical_is("[{\"b\":{\"y\":1,\"x\":2},\"a\":0},{\"a\":0}]",
                 "[{\"a\":0,\"b\":{\"x\":2,\"y\":1}},{\"a\":0}]");
    canonical_is("{\"k\":1,\"j\":[9],\"\\u006b\":{\"n\":0},\"k\":3}", "{\"j\":[9],\"k\":3}");
    canonical_is("{\"k\":1,\"k\":2}", "{\"k\":2}");
    canonical_is("[]", "[]");
    canonical_is("null", "null");
}

static void canonical_keeps_numbers(void **state)
{
    canonical_is("[1,1.0,-0,-0.0,0.0,10e-1,1e0]", "[1,1.0,-0,-0.0,0.0,1.0,1.0]");
    canonical_is("[9007199254740993,9223372036854775807,-9223372036854775808]",
                 "[9007199254740993,9223372036854775807,-9223372036854775808]");
    canonical_is("9223372036854775808", "9.223372036854776e+18");
    canonical_is("9.223372036854775808e18", "9.223372036854776e+18");
    canonical_is("[0.1,0.10000000000000001,1e-1,0.100,0.1000000000000000000000]",
                 "[0.1,0.1,0.1,0.1,0.1]");
    canonical_is("[0.10000000000000002,123456789012345678.0,12345678901234568.0]",
                 "[0.10000000000000002,1.2345678901234568e+17,12345678901234568.0]");
    canonical_is("[0.0001,0.00001,12.50,100000000000000.0,1e14,1e15,1.25E-7,0e5,-0.000]",
                 "[0.0001,1e-05,12.5,100000000000000.0,100000000000000.0,1e+15,1.25e-07,0.0,-0.0]");
    canonical_is("[1e300,1e-300,5e-324,1e00000000000000000001]",
                 "[1e+300,1e-300,4.94065645841247e-324,10.0]");
    canonical_is("[1e999,-1E999]", "[1e999,-1e999]");
    canonical_is("1e-999", "0.0");
}

static void canonical_number(const char *text, char out[64])
{
    struct buf b;
    buf_init(&b, 1024);
    assert_true(slice_canonical(guarded(str_from(text)), &b));
    assert_true(buf_len(&b) < 64);
    memcpy(out, buf_data(&b), buf_len(&b));
    out[buf_len(&b)] = '\0';
    buf_fini(&b);
}

/* Zeros that the exponent makes good again, and an exponent of more digits than we look at. */
static void canonical_reads_all_of_an_exponent(void **state)
{
    char text[2100], zeros[1201], out[64];
    memset(zeros, '0', sizeof zeros - 1);
    zeros[sizeof zeros - 1] = '\0';
    snprintf(text, sizeof text, "0.%s1e1201", zeros);
    canonical_number(text, out);
    assert_string_equal(out, "1.0");
    snprintf(text, sizeof text, "0.%s1e12011", zeros);
    canonical_number(text, out);
    assert_string_equal(out, "1e999");
    snprintf(text, sizeof text, "-1%s.0e-01200", zeros);
    canonical_number(text, out);
    assert_string_equal(out, "-1.0");
}

/* Short numbers are not read as doubles; written with all the digits of a double they are. */
static void canonical_numbers_differ_as_doubles_do(void **state)
{
    srand(1);
    for (int i = 0; i < 20000; i++) {
        char text[128], all[400], a[64], b[64];
        int digits = 1 + rand() % 15;
        double v = (rand() / (double)RAND_MAX - 0.5) * pow(10, rand() % 40 - 20);
        snprintf(text, sizeof text, "%.*e", digits - 1, v);
        v = strtod(text, NULL);
        canonical_number(text, a);
        assert_true(strtod(a, NULL) == v);
        snprintf(all, sizeof all, "%.17e", v);
        canonical_number(all, b);
        assert_string_equal(a, b);
        snprintf(all, sizeof all, "%.40f", v);
        if (strtod(all, NULL) == v) {
            canonical_number(all, b);
            assert_string_equal(a, b);
        }
        snprintf(all, sizeof all, "%.17e", nextafter(v, 1e300));
        canonical_number(all, b);
        assert_string_not_equal(a, b);
    }
}

static void canonical_spells_strings_one_way(void **state)
{
    canonical_is("\"\\u0041\\/\\u00e9\xc3\xa9\"", "\"A/\xc3\xa9\xc3\xa9\"");
    canonical_is("[\"\\n\",\"\\u000A\",\"\x7f\",\"\\u007f\"]",
                 "[\"\\u000a\",\"\\u000a\",\"\\u007f\",\"\\u007f\"]");
    canonical_is("\"\\uD83D\\uDE00\\\\\\\"\"", "\"\xf0\x9f\x98\x80\\\\\\\"\"");
}

/* 8 times is what the header asks callers to have room for. */
static void canonical_grows_within_its_bound(void **state)
{
    static const char *const worst[] = {
        "[0.1,0.2,0.3]",   "[5e-9,7e-9]", "[9e16,9e15]", "\"\x7f\x7f\x7f\x7f\"",
        "{\"\":1,\"\":2}", "-1e9",        "1e9"};
    for (unsigned i = 0; i < COUNT_OF(worst); i++) {
        struct buf out;
        buf_init(&out, 8 * strlen(worst[i]));
        assert_true(slice_canonical(str_from(worst[i]), &out));
        buf_fini(&out);
    }
}

static void canonical_takes_all_that_is_nested(void **state)
{
    struct buf text, out;
    buf_init(&text, 1 << 16);
    buf_init(&out, 1 << 16);
    for (int i = 0; i < SLICE_DEPTH_MAX; i++)
        buf_puts(&text, "{\"b\":1,\"a\":");
    buf_puts(&text, "0");
    for (int i = 0; i < SLICE_DEPTH_MAX; i++)
        buf_puts(&text, "}");
    assert_true(slice_canonical((struct str){buf_data(&text), buf_len(&text)}, &out));
    assert_int_equal(buf_len(&out), buf_len(&text));
    assert_memory_equal(buf_data(&out), "{\"a\":{\"a\":{\"a\":", 15);
    assert_memory_equal(buf_data(&out) + buf_len(&out) - 14, ",\"b\":1},\"b\":1}", 14);
    buf_fini(&text);
    buf_fini(&out);
}

static void hashes_as_everybody_does(void **state)
{
    assert_true(slice_hash(STR("")) == 0xcbf29ce484222325u);
    assert_true(slice_hash(STR("a")) == 0xaf63dc4c8601ec8cu);
    assert_true(slice_hash(STR("foobar")) == 0x85944171f73967e8u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_what_is_json),
        cmocka_unit_test(refuses_what_is_not),
        cmocka_unit_test(says_where_and_why),
        cmocka_unit_test(nests_as_deep_as_it_says),
        cmocka_unit_test(prefixes_are_not_read_past),
        cmocka_unit_test(walks_members_as_they_are),
        cmocka_unit_test(walks_elements_as_they_are),
        cmocka_unit_test(walks_nothing_of_the_wrong_kind),
        cmocka_unit_test(decodes_strings),
        cmocka_unit_test(counts_numbers_only),
        cmocka_unit_test(canonical_sorts_keys),
        cmocka_unit_test(canonical_keeps_numbers),
        cmocka_unit_test(canonical_numbers_differ_as_doubles_do),
        cmocka_unit_test(canonical_reads_all_of_an_exponent),
        cmocka_unit_test(canonical_spells_strings_one_way),
        cmocka_unit_test(canonical_grows_within_its_bound),
        cmocka_unit_test(canonical_takes_all_that_is_nested),
        cmocka_unit_test(hashes_as_everybody_does),
    };
    guard = guard_new(1 << 13);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&guard);
    return failed;
}
