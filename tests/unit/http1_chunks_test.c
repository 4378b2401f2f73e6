/* http1_chunks_test.c: the chunked coding, cut at every byte, each piece against a guard page. */
#include "buf.h"
#include "guard.h"
#include "http1_chunks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct guard guard;

/* Decodes pieces that end at the given places: what was wrong, or NULL.
 * *read counts the consumed bytes. */
static const char *decode(const char *input, const size_t *cut, int cuts, struct buf *body,
                          size_t *read, enum http1_step *last)
{
    struct http1_chunks c;
    const char *rule = NULL;
    size_t from = 0;
    http1_chunks_init(&c);
    buf_clear(body);
    *last = HTTP1_MORE;
    for (int i = 0; i < cuts && *last == HTTP1_MORE; i++) {
        size_t n = cut[i] - from, at = 0;
        const char *p = guard_put(&guard, input + from, n);
        do {
            struct str data;
            size_t consumed;
            *last = http1_chunks_next(&c, p + at, n - at, &consumed, &data, &rule);
            assert_true(consumed <= n - at);
            at += consumed;
            if (*last == HTTP1_DATA) {
                assert_true(data.n > 0);
                buf_put_str(body, data);
            }
        } while (*last == HTTP1_DATA);
        if (*last == HTTP1_MORE)
            assert_int_equal(at, n);
        from += at;
    }
    *read = from;
    return rule;
}

static void decodes_chunks_split_anywhere(void **state)
{
    static const struct {
        const char *input, *body;
        size_t rest;
    } rows[] = {
        {"0\r\n\r\n", "", 2},
        {"5\r\nhello\r\n0\r\n\r\n", "hello", 2},
        {"5\r\nhello\r\nA\r\n, wonderfu\r\n00a\r\nl world!\r\n\r\n000\r\nX: y\r\n\r\n",
         "hello, wonderful world!\r\n", 8},
        {"1;a=b;c=\"d;\\\"\t\x80 \";e\r\ny\r\n0;z=1\r\n\r\n", "y", 2},
    };
    struct buf body;
    buf_init(&body, 1024);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        size_t n = strlen(rows[r].input);
        for (size_t a = 0; a <= n; a++)
            for (size_t b = a; b <= n; b++) {
                size_t cut[] = {a, b, n}, read;
                enum http1_step last;
                const char *rule = decode(rows[r].input, cut, 3, &body, &read, &last);
                assert_null(rule);
                assert_int_equal(last, HTTP1_LAST);
                assert_int_equal(read, n - rows[r].rest);
                assert_int_equal(buf_len(&body), strlen(rows[r].body));
                if (buf_len(&body) > 0)
                    assert_memory_equal(buf_data(&body), rows[r].body, buf_len(&body));
            }
    }
    buf_fini(&body);
}

static void refuses_chunks_split_anywhere(void **state)
{
#define NOT_HEX "a chunk size that is not plain hexadecimal digits"
    static const struct {
        const char *input, *rule;
    } rows[] = {
        {"+5\r\n", NOT_HEX},
        {"-5\r\n", NOT_HEX},
        {"0x5\r\n", NOT_HEX},
        {" 5\r\n", NOT_HEX},
        {"5 \r\n", NOT_HEX},
        {"5\t;a\r\n", NOT_HEX},
        {"\r\n", NOT_HEX},
        {"g\r\n", NOT_HEX},
        {";a\r\n", NOT_HEX},
        {"5\n", NOT_HEX},
        {"8000000000000000\r\n", "a chunk size of 2^63 or more"},
        {"10000000000000005\r\n", "a chunk size of 2^63 or more"},
        {"5;\r\n", "a chunk extension without a proper name"},
        {"5;;\r\n", "a chunk extension without a proper name"},
        {"5; a\r\n", "a chunk extension without a proper name"},
        {"5;a;\r\n", "a chunk extension without a proper name"},
        {"5;a =b\r\n", "a chunk extension without a proper name"},
        {"5;a\n", "a chunk extension without a proper name"},
        {"5;a=\r\n", "a chunk extension without a proper value"},
        {"5;a= b\r\n", "a chunk extension without a proper value"},
        {"5;a=b c\r\n", "a chunk extension without a proper value"},
        {"5;a=\"b\"c\r\n", "a chunk extension without a proper value"},
        {"5;a=\"b\r\n", "a control byte in a chunk extension"},
        {"5;a=\"\\\r\n", "a control byte in a chunk extension"},
        {"5;a=\"\x01\"\r\n", "a control byte in a chunk extension"},
        {"5\rx", "a CR without LF behind a chunk size"},
        {"5\r\nhelloX", "chunk data is not followed by CRLF"},
        {"5\r\nhello\n", "chunk data is not followed by CRLF"},
        {"5\r\nhello\rX", "chunk data is not followed by CRLF"},
    };
    struct buf body;
    buf_init(&body, 1024);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        size_t n = strlen(rows[r].input), read;
        for (size_t a = 0; a <= n; a++) {
            size_t cut[] = {a, n};
            enum http1_step last;
            const char *rule = decode(rows[r].input, cut, 2, &body, &read, &last);
            if (last != HTTP1_STEP_BAD)
                fail_msg("step %d: %s", last, rows[r].input);
            assert_string_equal(rule, rows[r].rule);
        }
    }
    buf_fini(&body);
}

static void bounds_the_chunk_line(void **state)
{
    char line[300];
    for (int n = 255; n <= 257; n++) {
        struct http1_chunks c;
        struct str data;
        const char *rule;
        size_t consumed;
        memset(line, 'a', sizeof line);
        memcpy(line, "0;", 2);
        memcpy(line + n, "\r\n", 2);
        http1_chunks_init(&c);
        enum http1_step s = http1_chunks_next(&c, line, (size_t)n + 2, &consumed, &data, &rule);
        assert_int_equal(s, n <= 256 ? HTTP1_LAST : HTTP1_STEP_BAD);
        if (n > 256)
            assert_string_equal(rule, "the line of a chunk size is too long");
    }
    /* The largest chunk there can be. */
    struct http1_chunks c;
    struct str data;
    const char *rule;
    size_t consumed;
    http1_chunks_init(&c);
    struct str big = STR("7fffffffffffffff\r\nab");
    assert_int_equal(http1_chunks_next(&c, big.p, big.n, &consumed, &data, &rule), HTTP1_DATA);
    assert_int_equal(data.n, 2);
    assert_int_equal(c.left, INT64_MAX - 2);
}

static void a_refused_or_ended_coding_stays_so(void **state)
{
    struct http1_chunks c;
    struct str data, bad = STR("x"), end = STR("0\r\nX");
    const char *rule;
    size_t consumed;
    http1_chunks_init(&c);
    assert_int_equal(http1_chunks_next(&c, bad.p, bad.n, &consumed, &data, &rule), HTTP1_STEP_BAD);
    assert_int_equal(http1_chunks_next(&c, end.p, end.n, &consumed, &data, &rule), HTTP1_STEP_BAD);
    assert_non_null(rule);
    http1_chunks_init(&c);
    assert_int_equal(http1_chunks_next(&c, end.p, end.n, &consumed, &data, &rule), HTTP1_LAST);
    assert_int_equal(consumed, 3);
    assert_int_equal(http1_chunks_next(&c, end.p, end.n, &consumed, &data, &rule), HTTP1_LAST);
    assert_int_equal(consumed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_chunks_split_anywhere),
        cmocka_unit_test(refuses_chunks_split_anywhere),
        cmocka_unit_test(bounds_the_chunk_line),
        cmocka_unit_test(a_refused_or_ended_coding_stays_so),
    };
    guard = guard_new(1 << 12);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&guard);
    return failed;
}
