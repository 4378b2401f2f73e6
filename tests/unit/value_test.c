/* value_test.c: what text says, and that text which says nothing is refused. */
#include "value.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void numbers_carry_the_units_of_their_type(void **state)
{
    static const struct {
        enum value_type type;
        const char *text;
        double is;
    } good[] = {{VALUE_INT, "8000", 8000},
                {VALUE_INT, "007", 7},
                {VALUE_SECONDS, "0.5", 0.5},
                {VALUE_SECONDS, "5s", 5},
                {VALUE_SECONDS, "250MS", 0.25},
                {VALUE_SECONDS, "1.", 1},
                {VALUE_BYTES, "1024", 1024},
                {VALUE_BYTES, "32k", 32768},
                {VALUE_BYTES, "8M", 8388608},
                {VALUE_BYTES, "1g", 1073741824},
                {VALUE_INT, "999999999999999", 999999999999999}};
    static const struct {
        enum value_type type;
        const char *text;
    } bad[] = {{VALUE_INT, ""},          {VALUE_INT, "5s"},     {VALUE_INT, "5k"},
               {VALUE_INT, "1.0"},       {VALUE_INT, "-1"},     {VALUE_INT, "0x5"},
               {VALUE_INT, "1e3"},       {VALUE_INT, " 1"},     {VALUE_INT, "9999999999999999"},
               {VALUE_SECONDS, "5k"},    {VALUE_SECONDS, "5m"}, {VALUE_SECONDS, "."},
               {VALUE_SECONDS, "1.2.3"}, {VALUE_SECONDS, "ms"}, {VALUE_SECONDS, "inf"},
               {VALUE_BYTES, "5s"},      {VALUE_BYTES, "1.5k"}, {VALUE_BYTES, "1kb"}};
    double d;
    for (unsigned i = 0; i < COUNT_OF(good); i++) {
        assert_true(value_read_number(good[i].text, good[i].type, &d));
        assert_true(d == good[i].is);
    }
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        assert_false(value_read_number(bad[i].text, bad[i].type, &d));
}

static void what_is_stored_is_spelled_in_base_units(void **state)
{
    char out[VALUE_SPELLED_MAX], *text = NULL;
    long number = 7;
    double seconds = 7;
    bool yes = false;
    assert_true(value_store(VALUE_BYTES, &number, "4k", 0, 4096));
    assert_string_equal(value_spell(VALUE_BYTES, &number, out), "4096");
    assert_false(value_store(VALUE_INT, &number, "4097", 0, 4096));
    assert_false(value_store(VALUE_INT, &number, "0", 1, 4096));
    assert_false(value_store(VALUE_INT, &number, "four", 0, 4096));
    assert_int_equal(number, 4096);
    assert_true(value_store(VALUE_SECONDS, &seconds, "200ms", 0.2, 1));
    assert_string_equal(value_spell(VALUE_SECONDS, &seconds, out), "0.2");
    assert_true(value_store(VALUE_BOOL, &yes, "on", 0, 1));
    assert_string_equal(value_spell(VALUE_BOOL, &yes, out), "true");
    assert_false(value_store(VALUE_BOOL, &yes, "off ", 0, 1));
    assert_true(yes);
    assert_true(value_store(VALUE_TEXT, &text, "one", 0, 0));
    assert_true(value_store(VALUE_SECRET, &text, "two", 0, 0)); /* frees the first */
    assert_ptr_equal(value_spell(VALUE_TEXT, &text, out), text);
    assert_string_equal(text, "two");
    free(text);
}

static void a_url_gives_host_and_port(void **state)
{
    static const struct {
        const char *url, *host;
        int port;
    } good[] = {{"http://a", "a", 8000},
                {"http://127.0.0.1:1/", "127.0.0.1", 1},
                {"http://[0:0:0::1]:65535", "::1", 65535},
                {"http://[::ffff:127.0.0.1]", "::ffff:127.0.0.1", 8000},
                {"http://[::ffff:ffff:255.255.255.255]:9", "::ffff:ffff:ffff:ffff", 9}};
    static const char *const bad[] = {"",
                                      "http://",
                                      "https://a",
                                      "http://a:0",
                                      "http://a/b",
                                      "http://a:1:2",
                                      "http://[1:2]",
                                      "http://u@a",
                                      "http://[::1]x",
                                      "http://a\n",
                                      "http://a?"};
    char *host;
    int port;
    for (unsigned i = 0; i < COUNT_OF(good); i++) {
        assert_null(value_read_url(good[i].url, &host, &port));
        assert_string_equal(host, good[i].host);
        assert_int_equal(port, good[i].port);
        free(host);
    }
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        host = NULL;
        assert_non_null(value_read_url(bad[i], &host, &port));
        assert_null(host);
    }
}

static void an_address_is_no_name_and_has_no_port(void **state)
{
    static const char *const good[] = {
        "127.0.0.1", "0.0.0.0", "::", "::1", "2001:DB8::a", "::ffff:1.2.3.4"};
    static const char *const bad[] = {"",      "localhost", "127.1",      "256.0.0.1", "1.2.3.4.",
                                      "[::1]", "1.2.3.4:5", "fe80::1%lo", " ::1",      "::1 "};
    for (unsigned i = 0; i < COUNT_OF(good); i++)
        assert_true(value_is_address(good[i]));
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        assert_false(value_is_address(bad[i]));
}

static void lists_of_servers_are_as_c_ares_takes_them(void **state)
{
    static const char *const good[] = {"127.0.0.1",     "127.0.0.1:53",  "::1",
                                       "[::1]:5353",    "1.2.3.4:65535", "127.0.0.1,::1,[::2]:5",
                                       "::ffff:1.2.3.4"};
    static const char *const bad[] = {"",
                                      "foo",
                                      "1.2.3.4:0",
                                      "1.2.3.4:65536",
                                      "1.2.3.4:",
                                      "1.2.3.4:x",
                                      "1.2.3.4:99999",
                                      "[::1]",
                                      "[::1]:",
                                      "[::1",
                                      "::1]:53",
                                      "[1.2.3.4]:53",
                                      "1.2.3.4,",
                                      ",1.2.3.4",
                                      "1.2.3.4,,::1",
                                      "1.2.3.4, ::1",
                                      "[::1]:53:53",
                                      "1.2.3.4 5.6.7.8",
                                      "1.2.3.4:5;",
                                      "1.2.3.4:123456"};
    for (unsigned i = 0; i < COUNT_OF(good); i++)
        assert_true(value_is_address_list(good[i]));
    for (unsigned i = 0; i < COUNT_OF(bad); i++)
        assert_false(value_is_address_list(bad[i]));
}

static void hosts_lead_to_who_listens_there(void **state)
{
    static const struct {
        const char *host, *listening;
        bool leads;
    } is[] = {
        {"127.0.0.1", "127.0.0.1", true},
        {"::ffff:127.0.0.1", "127.0.0.1", true},
        {"localhost", "127.0.0.1", true},
        {"LOCALHOST.", "::1", true},
        {"0.0.0.0", "127.0.0.1", true},
        {"10.1.2.3", "10.1.2.3", true},
        {"2001:db8::1", "2001:DB8:0::1", true},
        {"127.0.0.1", "0.0.0.0", true},
        {"127.9.9.9", "0.0.0.0", true},
        {"127.9.9.9", "::", true},
        {"::1", "::", true},
        {"::1", "0.0.0.0", true},
        {"localhost", "0.0.0.0", true},
        {"localhost", "::", true},
        {"::", "0.0.0.0", true},
        {"127.0.0.2", "127.0.0.1", false},
        {"::1", "127.0.0.1", false},
        {"10.1.2.3", "0.0.0.0", false},
        {"2001:db8::1", "::", false},
        {"::1:0:0:1", "::", false},
        {"localhost", "10.1.2.3", false},
        {"localhost", "127.0.0.2", false},
        {"localhost.example", "127.0.0.1", false},
        {"notlocalhost", "0.0.0.0", false},
        {"chroma", "0.0.0.0", false},
    };
    for (unsigned i = 0; i < COUNT_OF(is); i++)
        if (value_leads_to(is[i].host, is[i].listening) != is[i].leads)
            fail_msg("%s, listening on %s: not %d", is[i].host, is[i].listening, is[i].leads);
}

static void words_are_as_far_apart_as_their_letters(void **state)
{
    static const struct {
        const char *a, *b;
        unsigned apart;
    } is[] = {{"", "", 0},         {"", "abc", 3},           {"PORT", "port", 0},
              {"PORT", "PROT", 2}, {"kitten", "sitting", 3}, {"PORTS", "PORT", 1}};
    char long_word[100];
    for (unsigned i = 0; i < COUNT_OF(is); i++) {
        assert_int_equal(value_distance(is[i].a, is[i].b), is[i].apart);
        assert_int_equal(value_distance(is[i].b, is[i].a), is[i].apart);
    }
    memset(long_word, 'x', sizeof long_word);
    long_word[99] = 0;
    assert_int_equal(value_distance(long_word, "x"), 48);
    assert_int_equal(value_distance("x", long_word), 48);
    long_word[48] = 0;
    assert_int_equal(value_distance(long_word, "x"), 47);
}

static void pieces_lose_their_blanks(void **state)
{
    char text[] = " a b ;; \t;c", *rest = text;
    assert_string_equal(value_next_piece(&rest, ";"), "a b");
    assert_string_equal(value_next_piece(&rest, ";"), "");
    assert_string_equal(value_next_piece(&rest, ";"), "");
    assert_string_equal(value_next_piece(&rest, ";"), "c");
    assert_null(rest);
}

static void shown_text_is_short_plain_and_without_passwords(void **state)
{
    char out[VALUE_SHOWN_MAX], long_text[1000];
    assert_string_equal(value_show("8000", false, out), "8000");
    assert_string_equal(value_show("a\nb\x7f", true, out), "\"a?b?\"");
    assert_string_equal(value_show("http://u:hunter2@h", true, out), "\"http://***\"");
    assert_string_equal(value_show("http://h", true, out), "\"http://h\"");
    assert_string_equal(value_show("", true, out), "\"\"");
    memset(long_text, 'x', sizeof long_text);
    long_text[999] = 0;
    assert_true(strlen(value_show(long_text, true, out)) < VALUE_SHOWN_MAX);
    assert_string_equal(out + strlen(out) - 5, "x...\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_carry_the_units_of_their_type),
        cmocka_unit_test(what_is_stored_is_spelled_in_base_units),
        cmocka_unit_test(a_url_gives_host_and_port),
        cmocka_unit_test(an_address_is_no_name_and_has_no_port),
        cmocka_unit_test(lists_of_servers_are_as_c_ares_takes_them),
        cmocka_unit_test(hosts_lead_to_who_listens_there),
        cmocka_unit_test(words_are_as_far_apart_as_their_letters),
        cmocka_unit_test(pieces_lose_their_blanks),
        cmocka_unit_test(shown_text_is_short_plain_and_without_passwords),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
