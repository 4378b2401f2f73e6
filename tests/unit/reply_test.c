/* reply_test.c: request ids that may pass, dates, and error documents that any text leaves valid.
 */
#include "reply.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- ids --------------------------------------------------------------------------------------
 */

static bool fresh(const char *id)
{
    return strlen(id) == 32 && strspn(id, "0123456789abcdef") == 32;
}

/* What becomes of these X-Request-Id lines (NULL: none); all of them must be marked. */
static const char *id_of(const char *first, const char *second)
{
    static char out[REPLY_ID_MAX];
    static char text[512];
    static struct http1_head h;
    struct http1_limits limits = {512, 100};
    struct http1_fault fault;
    size_t used;
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\n%s%s%s%s%s%s\r\n",
             first ? "X-Request-Id: " : "", first ? first : "", first ? "\r\n" : "",
             second ? "x-request-ID: " : "", second ? second : "", second ? "\r\n" : "");
    enum http1_verdict v = http1_parse_request(text, strlen(text), &limits, &h, &used, &fault);
    assert_int_equal(v, HTTP1_OK);
    reply_take_id(&h, out);
    for (unsigned i = 0; i < h.count; i++)
        assert_int_equal(h.field[i].hop, h.field[i].id == HTTP1_X_REQUEST_ID);
    return out;
}

static void a_harmless_id_is_kept(void **state)
{
    static const char *const rows[] = {
        "a", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "AZaz09-_.:/+=",
        "1234567890123456789012345678901234567890123456789012345678901234", /* 64 */
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_string_equal(id_of(rows[i], NULL), rows[i]);
}

static void another_id_is_replaced(void **state)
{
    static const char *const rows[] = {
        "",
        "two words",
        "quo\"te",
        "back\\slash",
        "a;b",
        "a,b",
        "a\tb",
        "<b>",
        "\xc3\xa9",
        "a=b\x80",
        "12345678901234567890123456789012345678901234567890123456789012345", /* 65 */
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (!fresh(id_of(rows[i], NULL)))
            fail_msg("\"%s\" was taken", rows[i]);
    assert_true(fresh(id_of(NULL, NULL)));
}

static void the_first_good_id_counts(void **state)
{
    assert_string_equal(id_of("one", "two"), "one");
    assert_string_equal(id_of("not good", "two"), "two");
    assert_true(fresh(id_of("not good", "nor this")));
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void ids_are_all_different(void **state)
{
    enum { MANY = 50000 };
    char(*ids)[REPLY_ID_MAX] = base_zalloc(MANY * sizeof *ids);
    for (unsigned i = 0; i < MANY; i++) {
        reply_make_id(ids[i]);
        assert_true(fresh(ids[i]));
    }
    qsort(ids, MANY, sizeof *ids, by_text);
    for (unsigned i = 1; i < MANY; i++)
        assert_string_not_equal(ids[i - 1], ids[i]);
    free(ids);
}

/* ---- dates ------------------------------------------------------------------------------------
 */

static void date_is(time_t t, const char *text)
{
    struct buf out;
    buf_init(&out, 256);
    reply_put_date(&out, t);
    assert_int_equal(buf_len(&out), strlen(text));
    assert_memory_equal(buf_data(&out), text, strlen(text));
    buf_fini(&out);
}

static void dates_are_imf_fixdates(void **state)
{
    date_is(784111777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"); /* RFC 9110 5.6.7 */
    date_is(784111777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"); /* from memory */
    date_is(784111778, "Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n");
    date_is(1709164800, "Date: Thu, 29 Feb 2024 00:00:00 GMT\r\n");
}

/* ---- error documents --------------------------------------------------------------------------
 */

static void error_is(int status, const char *text, const char *want)
{
    struct buf out;
    buf_init(&out, 8192);
    reply_put_error(&out, status, text);
    if (buf_len(&out) != strlen(want) || memcmp(buf_data(&out), want, strlen(want)) != 0)
        fail_msg("%.*s instead of %s", (int)buf_len(&out), buf_data(&out), want);
    buf_fini(&out);
}

/* The Python client makes an exception of the class with that name; it must know it. */
static void errors_have_names_that_clients_know(void **state)
{
    static const struct {
        int status;
        const char *name;
    } rows[] = {
        {400, "InvalidArgumentError"}, {404, "NotFoundError"},        {405, "ChromaError"},
        {408, "InvalidArgumentError"}, {413, "InvalidArgumentError"}, {414, "InvalidArgumentError"},
        {415, "ChromaError"},          {417, "InvalidArgumentError"}, {431, "InvalidArgumentError"},
        {500, "InternalError"},        {501, "ChromaError"},          {502, "InternalError"},
        {503, "ChromaError"},          {504, "InternalError"},        {505, "ChromaError"},
    };
    char want[128];
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        snprintf(want, sizeof want, "{\"error\":\"%s\",\"message\":\"m\"}", rows[i].name);
        error_is(rows[i].status, "m", want);
    }
    /* And every ending that has an answer has one of these statuses. */
    for (int e = 0; e < END_COUNT; e++) {
        int status = end_status((enum end_reason)e);
        bool known = status == 0;
        for (size_t i = 0; i < COUNT_OF(rows); i++)
            known |= rows[i].status == status;
        if (!known)
            fail_msg("%s: %d", end_name((enum end_reason)e), status);
    }
}

#define IN(text) "{\"error\":\"NotFoundError\",\"message\":\"" text "\"}"

static void any_text_makes_valid_json(void **state)
{
    error_is(404, "", IN(""));
    error_is(404, "say \"hi\" \\o/", IN("say \\\"hi\\\" \\\\o/"));
    error_is(404, "a\nb\tc\x01\x1f\x7f", IN("a\\u000ab\\u0009c\\u0001\\u001f\\u007f"));
    error_is(404, "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x98", IN("café € 🐘"));
}

/* RFC 3629: overlong forms, surrogates, what is above U+10FFFF, and pieces. One U+FFFD a byte. */
static void bytes_that_are_no_utf8_are_replaced(void **state)
{
#define BAD "\xef\xbf\xbd"
    error_is(404, "\x80", IN(BAD));
    error_is(404, "a\xc3", IN("a" BAD));
    error_is(404, "\xc3(", IN(BAD "("));
    error_is(404, "\xc0\xaf", IN(BAD BAD));
    error_is(404, "\xc1\xbf", IN(BAD BAD));
    error_is(404, "\xe0\x80\xaf", IN(BAD BAD BAD));
    error_is(404, "\xed\xa0\x80", IN(BAD BAD BAD));
    error_is(404, "\xf4\x90\x80\x80", IN(BAD BAD BAD BAD));
    error_is(404, "\xf5\x80\x80\x80", IN(BAD BAD BAD BAD));
    error_is(404, "\xe2\x82", IN(BAD BAD));
    error_is(404, "\xe2\x82\"", IN(BAD BAD "\\\""));
    error_is(404, "\xff\xfe", IN(BAD BAD));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_harmless_id_is_kept),
        cmocka_unit_test(another_id_is_replaced),
        cmocka_unit_test(the_first_good_id_counts),
        cmocka_unit_test(ids_are_all_different),
        cmocka_unit_test(dates_are_imf_fixdates),
        cmocka_unit_test(errors_have_names_that_clients_know),
        cmocka_unit_test(any_text_makes_valid_json),
        cmocka_unit_test(bytes_that_are_no_utf8_are_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
