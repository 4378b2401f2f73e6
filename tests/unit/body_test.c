/* body_test.c: bodies by length and by chunks, cut at every byte, through a buffer that is too
 * small for them, and past their limits. */
#include "body.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { IN_MAX = 1 << 16, KEEP = 1 << 16 };

static const struct body_limits limits = {1000, 300};

struct taken {
    struct body body;
    struct buf in, all; /* all: what was taken out of body.bytes */
    enum end_reason bad;
    const char *rule;
};

static void begin(struct taken *t, enum http1_framing framing, uint64_t length, size_t keep)
{
    *t = (struct taken){.bad = END_NONE};
    body_init(&t->body, framing, length, keep);
    buf_init(&t->in, IN_MAX);
    buf_init(&t->all, IN_MAX);
}

static void end(struct taken *t)
{
    body_fini(&t->body);
    buf_fini(&t->in);
    buf_fini(&t->all);
}

/* What a server that takes everything at once does. */
static void drain(struct taken *t)
{
    buf_put(&t->all, buf_data(&t->body.bytes), buf_len(&t->body.bytes));
    buf_clear(&t->body.bytes);
}

static void feed(struct taken *t, const char *p, size_t n)
{
    buf_put(&t->in, p, n);
    if (t->bad == END_NONE)
        t->bad = body_take(&t->body, &t->in, &limits, &t->rule);
    if (t->bad != END_NONE)
        assert_non_null(t->rule);
}

static void all_is(const struct buf *b, const char *text)
{
    if (buf_len(b) != strlen(text) || (*text && memcmp(buf_data(b), text, strlen(text)) != 0))
        fail_msg("\"%.*s\" instead of \"%s\"", (int)buf_len(b), buf_data(b), text);
}

/* ---- what comes -------------------------------------------------------------------------------
 */

static void no_body_takes_nothing(void **state)
{
    struct taken t;
    begin(&t, HTTP1_NO_BODY, 0, KEEP);
    assert_true(t.body.done);
    feed(&t, "GET /", 5);
    all_is(&t.in, "GET /");
    end(&t);
    begin(&t, HTTP1_LENGTH, 0, KEEP);
    assert_true(t.body.done);
    feed(&t, "GET /", 5);
    all_is(&t.in, "GET /");
    assert_null(t.body.bytes.mem); /* and holds no memory */
    end(&t);
}

/* At every cut the body is whole when its last byte is there, and what follows stays. */
static void by_length_at_every_cut(void **state)
{
    static const char text[] = "0123456789GET / HTTP/1.1\r\n";
    for (size_t cut = 0; cut <= strlen(text); cut++) {
        struct taken t;
        begin(&t, HTTP1_LENGTH, 10, KEEP);
        feed(&t, text, cut);
        assert_int_equal(t.body.done, cut >= 10);
        assert_int_equal(t.body.seen, cut < 10 ? cut : 10);
        feed(&t, text + cut, strlen(text) - cut);
        assert_true(t.body.done);
        assert_int_equal(t.body.seen, 10);
        drain(&t);
        all_is(&t.all, "0123456789");
        all_is(&t.in, "GET / HTTP/1.1\r\n");
        end(&t);
    }
}

static const char chunked[] = "5\r\nhello\r\n"
                              "1;name=\"va;lue\"\r\n \r\n"
                              "0005\r\nworld\r\n"
                              "0\r\n"
                              "X-Sum: 77\r\nContent-Length: 5\r\nX-Two:  b \r\n\r\n"
                              "GET /next";

static void chunks_are_right(struct taken *t)
{
    assert_int_equal(t->bad, END_NONE);
    assert_true(t->body.done);
    assert_int_equal(t->body.seen, 11);
    drain(t);
    all_is(&t->all, "hello world");
    all_is(&t->in, "GET /next");
    /* Only fields that may be trailers, written anew. */
    all_is(&t->body.trailers, "X-Sum: 77\r\nX-Two: b\r\n");
}

static void chunks_at_every_cut(void **state)
{
    size_t n = strlen(chunked), last = n - strlen("GET /next");
    for (size_t cut = 0; cut <= n; cut++) {
        struct taken t;
        begin(&t, HTTP1_CHUNKED, 0, KEEP);
        feed(&t, chunked, cut);
        assert_int_equal(t.body.done, cut >= last);
        feed(&t, chunked + cut, n - cut);
        chunks_are_right(&t);
        end(&t);
    }
}

static void chunks_byte_by_byte(void **state)
{
    struct taken t;
    begin(&t, HTTP1_CHUNKED, 0, KEEP);
    for (size_t i = 0; i < strlen(chunked); i++)
        feed(&t, chunked + i, 1);
    chunks_are_right(&t);
    end(&t);
}

static void chunks_without_trailers(void **state)
{
    struct taken t;
    begin(&t, HTTP1_CHUNKED, 0, KEEP);
    assert_false(t.body.done);
    feed(&t, "0\r\n\r\nGET", 8);
    assert_true(t.body.done);
    assert_int_equal(t.body.seen, 0);
    assert_int_equal(buf_len(&t.body.trailers), 0);
    all_is(&t.in, "GET");
    end(&t);
}

/* ---- too small a buffer -----------------------------------------------------------------------
 */

/* Nothing is lost and nothing is taken beyond the room: what waits, waits in the stream. */
static void a_full_buffer_resumes_where_it_stopped(void **state)
{
    static const char plain[] = "hello world";
    for (size_t keep = 1; keep <= 12; keep++) {
        for (int by_chunks = 0; by_chunks < 2; by_chunks++) {
            struct taken t;
            begin(&t, by_chunks ? HTTP1_CHUNKED : HTTP1_LENGTH, strlen(plain), keep);
            const char *text = by_chunks ? chunked : "hello worldGET /next";
            feed(&t, text, strlen(text));
            for (unsigned turns = 0; !t.body.done; turns++) {
                assert_true(turns < 200);
                assert_int_equal(t.bad, END_NONE);
                assert_true(buf_len(&t.body.bytes) <= keep);
                size_t was = buf_len(&t.in);
                if (buf_room(&t.body.bytes) == 0) {
                    feed(&t, "", 0);
                    assert_int_equal(buf_len(&t.in), was); /* full: not a byte is touched */
                }
                drain(&t);
                feed(&t, "", 0);
            }
            drain(&t);
            all_is(&t.all, plain);
            all_is(&t.in, "GET /next");
            end(&t);
        }
    }
}

/* ---- limits and rules -------------------------------------------------------------------------
 */

static enum end_reason fate_of(const char *text, size_t n)
{
    struct taken t;
    begin(&t, HTTP1_CHUNKED, 0, KEEP);
    feed(&t, text, n);
    enum end_reason bad = t.bad;
    if (bad == END_NONE)
        assert_true(t.body.done);
    end(&t);
    return bad;
}

static void chunks_may_reach_the_limit_but_not_pass_it(void **state)
{
    char text[2048], data[1002];
    memset(data, 'x', sizeof data);
    for (int size = 998; size <= 1001; size++) {
        int n = snprintf(text, sizeof text, "2\r\nab\r\n%x\r\n%.*s\r\n0\r\n\r\n", size - 2,
                         size - 2, data);
        assert_int_equal(fate_of(text, (size_t)n), size > 1000 ? END_BODY_TOO_BIG : END_NONE);
    }
    /* A size that is never sent costs nothing; it is refused once more came than may. */
    struct taken t;
    begin(&t, HTTP1_CHUNKED, 0, KEEP);
    feed(&t, "7fffffff\r\n", 10);
    assert_int_equal(t.bad, END_NONE);
    feed(&t, data, 1000);
    assert_int_equal(t.bad, END_NONE);
    feed(&t, data, 1);
    assert_int_equal(t.bad, END_BODY_TOO_BIG);
    assert_string_equal(t.rule, "the request body is larger than MAX_BODY_BYTES");
    end(&t);
}

static void bad_chunks_are_refused(void **state)
{
    static const char *const rows[] = {
        "x\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX",
        "5\r\nhello\n",
        "5;\r\nhello\r\n",
        "\r\n",
        "ffffffffffffffffff\r\n",
        "+5\r\nhello\r\n",
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (fate_of(rows[i], strlen(rows[i])) != END_BAD_REQUEST)
            fail_msg("\"%s\" was taken", rows[i]);
}

static void bad_trailers_are_refused(void **state)
{
    static const char *const rows[] = {
        "0\r\nno colon\r\n\r\n", "0\r\n X: folded\r\n\r\n", "0\r\nX : 1\r\n\r\n",
        "0\r\nX: 1\n\r\n",       "0\r\n\nX: 1\r\n\r\n",
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (fate_of(rows[i], strlen(rows[i])) != END_BAD_REQUEST)
            fail_msg("\"%s\" was taken", rows[i]);
}

/* The section counts with its blank line. */
static void trailers_may_reach_the_limit_but_not_pass_it(void **state)
{
    char text[512], value[400];
    memset(value, 'v', sizeof value);
    for (int size = 299; size <= 301; size++) {
        int n = snprintf(text, sizeof text, "0\r\nX: %.*s\r\n\r\n", size - 7, value);
        assert_int_equal(fate_of(text, (size_t)n), size > 300 ? END_BAD_REQUEST : END_NONE);
    }
    /* Without an end, too: they are not gathered for ever. */
    struct taken t;
    begin(&t, HTTP1_CHUNKED, 0, KEEP);
    feed(&t, "0\r\nX: ", 6);
    for (int i = 0; i < 400 && t.bad == END_NONE; i++)
        feed(&t, "v", 1);
    assert_int_equal(t.bad, END_BAD_REQUEST);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_body_takes_nothing),
        cmocka_unit_test(by_length_at_every_cut),
        cmocka_unit_test(chunks_at_every_cut),
        cmocka_unit_test(chunks_byte_by_byte),
        cmocka_unit_test(chunks_without_trailers),
        cmocka_unit_test(a_full_buffer_resumes_where_it_stopped),
        cmocka_unit_test(chunks_may_reach_the_limit_but_not_pass_it),
        cmocka_unit_test(bad_chunks_are_refused),
        cmocka_unit_test(bad_trailers_are_refused),
        cmocka_unit_test(trailers_may_reach_the_limit_but_not_pass_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
