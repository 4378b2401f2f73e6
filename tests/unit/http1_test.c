/* http1_test.c: what is read, what is refused and by which rule, and that no byte behind the given
 * ones is ever looked at: every input is parsed against a guard page, and so is every prefix. */
#include "guard.h"
#include "http1.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const struct http1_limits wide = {16384, 8192};
static struct guard guard;

/* ---- a head as one line of text, so that a table row can say all that is expected ---------- */

static void put_common(struct buf *out, const struct http1_head *h)
{
    static const char *const framing[] = {"none", "length", "chunked", "until_close"};
    buf_printf(out, " %s", framing[h->framing]);
    if (h->framing == HTTP1_LENGTH)
        buf_printf(out, "=%llu", (unsigned long long)h->length);
    buf_puts(out, h->keep_alive ? " keep" : " close");
    if (h->expect_continue)
        buf_puts(out, " expect");
    if (h->te_trailers)
        buf_puts(out, " trailers");
    for (unsigned i = 0; i < h->count; i++) {
        const struct http1_field *f = &h->field[i];
        buf_printf(out, " %s%.*s=[%.*s]", f->hop ? "-" : "+", (int)f->name.n, f->name.p,
                   (int)f->value.n, f->value.p);
    }
}

static const char *request_text(struct buf *out, const struct http1_head *h)
{
    buf_clear(out);
    buf_printf(out, "%d:%.*s %.*s path=%.*s query=%.*s host=%.*s 1.%d", h->method,
               (int)h->method_text.n, h->method_text.p, (int)h->target.n, h->target.p,
               (int)h->path.n, h->path.p, (int)h->query.n, h->query.p, (int)h->host.n, h->host.p,
               h->minor);
    put_common(out, h);
    buf_put(out, "", 1);
    return buf_data(out);
}

static const char *response_text(struct buf *out, const struct http1_head *h)
{
    buf_clear(out);
    buf_printf(out, "1.%d %d [%.*s]", h->minor, h->status, (int)h->reason.n, h->reason.p);
    put_common(out, h);
    buf_put(out, "", 1);
    return buf_data(out);
}

/* to < 0: a request; otherwise the answer to a request with that method. */
static enum http1_verdict parse(int to, const char *p, size_t n, const struct http1_limits *limits,
                                struct http1_head *h, size_t *consumed, struct http1_fault *fault)
{
    const char *at = guard_put(&guard, p, n);
    if (to < 0)
        return http1_parse_request(at, n, limits, h, consumed, fault);
    return http1_parse_response(at, n, limits, (enum http1_method)to, h, consumed, fault);
}

static void expect_good(int to, const char *input, const char *want)
{
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed, n = strlen(input);
    struct buf text, longer;
    buf_init(&text, 1 << 16);
    buf_init(&longer, 1 << 16);

    for (size_t i = 0; i < n; i++) {
        enum http1_verdict v = parse(to, input, i, &wide, &h, &consumed, &fault);
        if (v != HTTP1_PARTIAL)
            fail_msg("verdict %d at %zu of %s", v, i, input);
    }
    enum http1_verdict v = parse(to, input, n, &wide, &h, &consumed, &fault);
    if (v != HTTP1_OK)
        fail_msg("%s: %s", v == HTTP1_BAD ? fault.rule : "partial", input);
    assert_int_equal(consumed, n);
    assert_string_equal(to < 0 ? request_text(&text, &h) : response_text(&text, &h), want);

    /* What follows a head is not its business. */
    buf_puts(&longer, input);
    buf_put(&longer, "\0\r GET", 6);
    v = parse(to, buf_data(&longer), buf_len(&longer), &wide, &h, &consumed, &fault);
    assert_int_equal(v, HTTP1_OK);
    assert_int_equal(consumed, n);
    assert_string_equal(to < 0 ? request_text(&text, &h) : response_text(&text, &h), want);
    buf_fini(&text);
    buf_fini(&longer);
}

static void expect_bad_bytes(int to, const char *input, size_t n, enum end_reason end,
                             const char *rule)
{
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;
    enum http1_verdict v = parse(to, input, n, &wide, &h, &consumed, &fault);
    if (v != HTTP1_BAD)
        fail_msg("verdict %d instead of \"%s\": %s", v, rule, input);
    assert_string_equal(fault.rule, rule);
    assert_int_equal(fault.end, to < 0 ? end : END_SERVER_GARBAGE);
    /* Once refused, always refused: nothing that comes later changes the verdict. */
    bool refused = false;
    for (size_t i = 0; i < n; i++) {
        v = parse(to, input, i, &wide, &h, &consumed, &fault);
        if (v == HTTP1_OK || (refused && v != HTTP1_BAD))
            fail_msg("verdict %d at %zu of %s", v, i, input);
        if (v == HTTP1_BAD) {
            refused = true;
            assert_string_equal(fault.rule, rule);
        }
    }
}

static void expect_bad(int to, const char *input, enum end_reason end, const char *rule)
{
    expect_bad_bytes(to, input, strlen(input), end, rule);
}

/* ---- requests ----------------------------------------------------------------------------- */

#define H     "Host: a\r\n"
#define START "GET / HTTP/1.1\r\n" H

static void reads_requests(void **state)
{
    static const struct {
        const char *input, *want;
    } rows[] = {
        {"GET / HTTP/1.1\r\nHost: localhost:8000\r\n\r\n",
         "0:GET / path=/ query= host=localhost:8000 1.1 none keep +Host=[localhost:8000]"},
        {"POST /a/b?c=d&e HTTP/1.1\r\nhOST:a\r\nContent-Length: 12\r\n\r\n",
         "2:POST /a/b?c=d&e path=/a/b query=c=d&e host=a 1.1 length=12 keep +hOST=[a] "
         "-Content-Length=[12]"},
        {"PUT /? HTTP/1.1\r\nHost:\t a \t\r\nTransfer-Encoding: Chunked\r\nX:\r\nY: \r\n\r\n",
         "3:PUT /? path=/ query= host=a 1.1 chunked keep +Host=[a] -Transfer-Encoding=[Chunked] "
         "+X=[] +Y=[]"},
        {"HEAD /?a?b HTTP/1.1\r\n" H "\r\n",
         "1:HEAD /?a?b path=/ query=a?b host=a 1.1 none keep +Host=[a]"},
        {"PATCH / HTTP/1.1\r\n" H "\r\n", "4:PATCH / path=/ query= host=a 1.1 none keep +Host=[a]"},
        {"DELETE / HTTP/1.1\r\n" H "\r\n",
         "5:DELETE / path=/ query= host=a 1.1 none keep +Host=[a]"},
        {"OPTIONS * HTTP/1.1\r\n" H "\r\n",
         "6:OPTIONS * path=* query= host=a 1.1 none keep +Host=[a]"},
        {"get / HTTP/1.1\r\n" H "\r\n", "7:get / path=/ query= host=a 1.1 none keep +Host=[a]"},
        {"TRACE //x HTTP/1.1\r\n" H "\r\n",
         "7:TRACE //x path=//x query= host=a 1.1 none keep +Host=[a]"},
        /* versions */
        {"GET / HTTP/1.0\r\n\r\n", "0:GET / path=/ query= host= 1.0 none close"},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
         "0:GET / path=/ query= host= 1.0 none keep -Connection=[Keep-Alive]"},
        {"GET / HTTP/1.7\r\n" H "\r\n", "0:GET / path=/ query= host=a 1.1 none keep +Host=[a]"},
        /* empty lines before */
        {"\r\n\r\nGET / HTTP/1.1\r\n" H "\r\n",
         "0:GET / path=/ query= host=a 1.1 none keep +Host=[a]"},
        /* absolute form */
        {"GET http://H:1/x?y HTTP/1.1\r\nHost: h:1\r\n\r\n",
         "0:GET /x?y path=/x query=y host=H:1 1.1 none keep +Host=[h:1]"},
        {"GET HTTPS://h HTTP/1.1\r\nHost: h\r\n\r\n",
         "0:GET / path=/ query= host=h 1.1 none keep +Host=[h]"},
        {"OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n",
         "6:OPTIONS * path=* query= host=h 1.1 none keep +Host=[h]"},
        {"GET http://h/ HTTP/1.0\r\n\r\n", "0:GET / path=/ query= host=h 1.0 none close"},
        /* hosts */
        {"GET / HTTP/1.1\r\nHost: [::1]:65535\r\n\r\n",
         "0:GET / path=/ query= host=[::1]:65535 1.1 none keep +Host=[[::1]:65535]"},
        {"GET / HTTP/1.1\r\nHost: a%2D_b.c:\r\n\r\n",
         "0:GET / path=/ query= host=a%2D_b.c: 1.1 none keep +Host=[a%2D_b.c:]"},
        /* Content-Length */
        {START "Content-Length: 0\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 length=0 keep +Host=[a] -Content-Length=[0]"},
        {START "Content-Length: 7\r\ncontent-length: 07\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 length=7 keep +Host=[a] -Content-Length=[7] "
         "-content-length=[07]"},
        {START "Content-Length: 9223372036854775807\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 length=9223372036854775807 keep +Host=[a] "
         "-Content-Length=[9223372036854775807]"},
        /* hop-by-hop */
        {START "Connection: close, x-a ,,Te\r\nX-A: 1\r\nX-B: 2\r\nKeep-Alive: 3\r\n"
               "Proxy-Connection: 4\r\nUpgrade: 5\r\nTE: gzip;q=0.5, Trailers\r\nx-a: 6\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 none close trailers +Host=[a] "
         "-Connection=[close, x-a ,,Te] -X-A=[1] +X-B=[2] -Keep-Alive=[3] -Proxy-Connection=[4] "
         "-Upgrade=[5] -TE=[gzip;q=0.5, Trailers] -x-a=[6]"},
        {"GET / HTTP/1.1\r\nX: 1\r\nHost: a\r\nConnection: x\r\nConnection: host, CLOSE\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 none close -X=[1] +Host=[a] -Connection=[x] "
         "-Connection=[host, CLOSE]"},
        /* Expect */
        {START "Expect: 100-Continue\r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 none keep expect +Host=[a] +Expect=[100-Continue]"},
        {"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n",
         "0:GET / path=/ query= host= 1.0 none close +Expect=[100-continue]"},
        /* what a value may hold, at every place of the eight-byte steps */
        {START "X: a\tb \x80\xff~ 0123456789\t0123456789 \r\n\r\n",
         "0:GET / path=/ query= host=a 1.1 none keep +Host=[a] "
         "+X=[a\tb \x80\xff~ 0123456789\t0123456789]"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_good(-1, rows[i].input, rows[i].want);
}

static void refuses_requests(void **state)
{
    static const struct {
        const char *input, *rule;
    } rows[] = {
        {START "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
         "Content-Length together with Transfer-Encoding"},
        {START "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
         "Content-Length together with Transfer-Encoding"},
        {START "Content-Length: 1\r\nContent-Length: 2\r\n",
         "two Content-Length fields that differ"},
#define NOT_A_LENGTH "Content-Length is not one decimal number below 2^63"
        {START "Content-Length: 1, 1\r\n", NOT_A_LENGTH},
        {START "Content-Length:\r\n", NOT_A_LENGTH},
        {START "Content-Length: +1\r\n", NOT_A_LENGTH},
        {START "Content-Length: -1\r\n", NOT_A_LENGTH},
        {START "Content-Length: 0x1\r\n", NOT_A_LENGTH},
        {START "Content-Length: 1 1\r\n", NOT_A_LENGTH},
        {START "Content-Length: 9223372036854775808\r\n", NOT_A_LENGTH},
        {START "Content-Length: 18446744073709551617\r\n", NOT_A_LENGTH},
#define NOT_CHUNKED "Transfer-Encoding is not a single `chunked`"
        {START "Transfer-Encoding: gzip, chunked\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: chunked, gzip\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: chunked, chunked\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: identity\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding:\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: chunked;a=b\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: \"chunked\"\r\n", NOT_CHUNKED},
        {START "Transfer-Encoding: ,chunked\r\n", NOT_CHUNKED},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding with HTTP/1.0"},
        {"GET / HTTP/1.1\n", "a line ends with a bare LF"},
        {START "X: a\n", "a line ends with a bare LF"},
        {START "\n", "a line ends with a bare LF"},
        {"\nGET / HTTP/1.1\r\n", "a line ends with a bare LF"},
        {"GET / HTTP/1.1\rX", "a CR without LF"},
        {START "X: a\rb\r\n", "a CR without LF"},
        {START "\rX", "a CR without LF"},
        {START "X: a\r\n b\r\n", "a folded field (obs-fold)"},
        {START "X: a\r\n\tb\r\n", "a folded field (obs-fold)"},
        {START "X : a\r\n", "white space before the colon of a field"},
        {START "X\t: a\r\n", "white space before the colon of a field"},
        {"GET / HTTP/1.1\r\n Host: a\r\n", "white space before the first field"},
        {START ": a\r\n", "a field without a name"},
        {START "X\r\n", "a field without a colon"},
        {START "X(y): a\r\n", "a byte in a field name that is not allowed there"},
        {START "\x80: a\r\n", "a byte in a field name that is not allowed there"},
        {START "X: a\x01\r\n", "a control byte in a field value"},
        {START "X: 0123456789abcde\x7f\r\n", "a control byte in a field value"},
        {START "X: 01234567\x1f\r\n", "a control byte in a field value"},
        {"GET /\x01 HTTP/1.1\r\n", "a byte in the request target that a URI may not have"},
        {"GET /\t HTTP/1.1\r\n", "a byte in the request target that a URI may not have"},
        {"GET /\x7f HTTP/1.1\r\n", "a byte in the request target that a URI may not have"},
        {"GET /\xc3\xa4 HTTP/1.1\r\n", "a byte in the request target that a URI may not have"},
        {"GET /#a HTTP/1.1\r\n", "a byte in the request target that a URI may not have"},
#define NO_VERSION "the HTTP version is missing or malformed"
        {"GET /a b HTTP/1.1\r\n", NO_VERSION},
        {"GET /\r\n", NO_VERSION},
        {"GET / \r\n", NO_VERSION},
        {"GET / http/1.1\r\n", NO_VERSION},
        {"GET / HTTP/x.1\r\n", NO_VERSION},
        {"GET / HTTP/10.1\r\n", NO_VERSION},
        {"GET / HTTP/1.x\r\n", NO_VERSION},
        {"GET / HTTP/1.10\r\n", "the request line does not end with the HTTP version"},
        {"GET / HTTP/1.1 \r\n", "the request line does not end with the HTTP version"},
        {"GET  / HTTP/1.1\r\n", "two spaces in the request line"},
#define NO_METHOD "the request line does not begin with a method and one space"
        {" GET / HTTP/1.1\r\n", NO_METHOD},
        {"GET\t/ HTTP/1.1\r\n", NO_METHOD},
        {"GET\r\n", NO_METHOD},
        {"G(T / HTTP/1.1\r\n", NO_METHOD},
        {"\x16\x03\x01", NO_METHOD},
        {"\r\n\r\n\r\n", "more than two empty lines before the request"},
        {"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 without Host"},
        {START H, "more than one Host field"},
        {"GET / HTTP/1.0\r\n" H H, "more than one Host field"},
#define NOT_A_HOST "Host is not host[:port]"
        {"GET / HTTP/1.1\r\nHost:\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: u@a\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: u:p@a\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a b\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a/b\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: http://a\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a:b\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a:65536\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a:1:2\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: :80\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: [::1\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: []\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: [::1]a\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a%2\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a%zz\r\n", NOT_A_HOST},
        {"GET / HTTP/1.1\r\nHost: a\x80\r\n", NOT_A_HOST},
        {"GET http://b/ HTTP/1.1\r\n" H "\r\n",
         "the URL in the request line and Host name different hosts"},
        {"GET http://a:80/ HTTP/1.1\r\n" H "\r\n",
         "the URL in the request line and Host name different hosts"},
        {"GET http://u@a/ HTTP/1.1\r\n", "the URL in the request line has no plain host[:port]"},
        {"GET http:/// HTTP/1.1\r\n", "the URL in the request line has no plain host[:port]"},
        {"GET http://a?b HTTP/1.1\r\n", "the URL in the request line has a query without a path"},
        {"GET * HTTP/1.1\r\n", "the request target * is for OPTIONS only"},
#define NO_FORM "the request target is neither a path nor an http URL"
        {"CONNECT a:80 HTTP/1.1\r\n", NO_FORM},
        {"OPTIONS ** HTTP/1.1\r\n", NO_FORM},
        {"GET ftp://a/ HTTP/1.1\r\n", NO_FORM},
        {"GET a HTTP/1.1\r\n", NO_FORM},
        {"GET http:/a HTTP/1.1\r\n", NO_FORM},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_bad(-1, rows[i].input, END_BAD_REQUEST, rows[i].rule);

    static const char *const versions[] = {"GET / HTTP/2.0\r\n", "GET / HTTP/0.9\r\n",
                                           "GET / HTTP/9", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"};
    for (size_t i = 0; i < COUNT_OF(versions); i++)
        expect_bad(-1, versions[i], END_VERSION, "only HTTP/1.0 and HTTP/1.1 are spoken here");

    static const char *const expects[] = {START "Expect: 200-ok\r\n", START "Expect:\r\n",
                                          START "Expect: 100-continue, 100-continue\r\n"};
    for (size_t i = 0; i < COUNT_OF(expects); i++)
        expect_bad(-1, expects[i], END_EXPECTATION, "Expect is not 100-continue");
}

/* NUL and its kind at every place of a head, where no other byte hides them. */
static void refuses_control_bytes_anywhere(void **state)
{
    static const char good[] = "GET /abc HTTP/1.1\r\nHost: abc\r\nX-Y: 0123456789\r\n\r\n";
    char bytes[sizeof good];
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;
    for (size_t i = 0; i < sizeof good - 1; i++)
        for (int c = 0; c < 256; c++) {
            if ((c >= 0x20 && c != 0x7f) || c == '\t')
                continue;
            memcpy(bytes, good, sizeof good);
            bytes[i] = (char)c;
            if (bytes[i] == good[i] || (i == 0 && (c == '\r' || c == '\n')))
                continue;
            enum http1_verdict v = parse(-1, bytes, sizeof good - 1, &wide, &h, &consumed, &fault);
            if (v != HTTP1_BAD)
                fail_msg("byte %d at %zu: verdict %d", c, i, v);
        }
}

static void keeps_the_limits_exactly(void **state)
{
    static const char input[] = "GET /12345 HTTP/1.1\r\nHost: a\r\n\r\n";
    const size_t n = sizeof input - 1;
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;

    struct http1_limits limits = {n, 6};
    assert_int_equal(parse(-1, input, n, &limits, &h, &consumed, &fault), HTTP1_OK);
    assert_int_equal(parse(-1, input, n - 1, &limits, &h, &consumed, &fault), HTTP1_PARTIAL);

    static const char longer[] = "GET /12345 HTTP/1.1\r\nHost: a\r\n\r\nGET /";
    assert_int_equal(parse(-1, longer, sizeof longer - 1, &limits, &h, &consumed, &fault),
                     HTTP1_OK);
    assert_int_equal(consumed, n);

    limits.head = n - 1;
    assert_int_equal(parse(-1, input, n, &limits, &h, &consumed, &fault), HTTP1_BAD);
    assert_int_equal(fault.end, END_HEAD_TOO_BIG);
    assert_int_equal(parse(-1, input, n - 1, &limits, &h, &consumed, &fault), HTTP1_BAD);
    assert_int_equal(fault.end, END_HEAD_TOO_BIG);
    assert_int_equal(parse(-1, input, n - 2, &limits, &h, &consumed, &fault), HTTP1_PARTIAL);

    limits = (struct http1_limits){n, 5};
    assert_int_equal(parse(-1, input, n, &limits, &h, &consumed, &fault), HTTP1_BAD);
    assert_int_equal(fault.end, END_URI_TOO_LONG);
    assert_int_equal(parse(-1, input, 10, &limits, &h, &consumed, &fault), HTTP1_BAD);
    assert_int_equal(fault.end, END_URI_TOO_LONG);
    assert_int_equal(parse(-1, input, 9, &limits, &h, &consumed, &fault), HTTP1_PARTIAL);
}

static void takes_a_hundred_fields_and_no_more(void **state)
{
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;
    struct buf b;
    buf_init(&b, 1 << 16);
    buf_puts(&b, START);
    for (int i = 1; i < HTTP1_FIELDS_MAX; i++)
        buf_printf(&b, "X%d: y\r\n", i);
    size_t n = buf_len(&b);
    buf_puts(&b, "\r\n");
    assert_int_equal(parse(-1, buf_data(&b), n + 2, &wide, &h, &consumed, &fault), HTTP1_OK);
    assert_int_equal(h.count, HTTP1_FIELDS_MAX);
    b.tail -= 2;
    buf_puts(&b, "Z");
    assert_int_equal(parse(-1, buf_data(&b), n, &wide, &h, &consumed, &fault), HTTP1_PARTIAL);
    assert_int_equal(parse(-1, buf_data(&b), n + 1, &wide, &h, &consumed, &fault), HTTP1_BAD);
    assert_int_equal(fault.end, END_HEAD_TOO_BIG);
    assert_string_equal(fault.rule, "too many fields");
    buf_fini(&b);
}

static void takes_as_many_connection_options_and_no_more(void **state)
{
    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;
    struct buf b;
    buf_init(&b, 1 << 16);
    for (int options = HTTP1_OPTIONS_MAX; options <= HTTP1_OPTIONS_MAX + 1; options++) {
        buf_clear(&b);
        buf_puts(&b, START "Connection: ,, close");
        for (int i = 2; i < options; i++)
            buf_printf(&b, ", x%d", i);
        buf_puts(&b, "\r\nConnection: last,\r\nLast: 1\r\n\r\n");
        enum http1_verdict v = parse(-1, buf_data(&b), buf_len(&b), &wide, &h, &consumed, &fault);
        if (options == HTTP1_OPTIONS_MAX) {
            assert_int_equal(v, HTTP1_OK);
            assert_true(h.field[3].hop);
        } else {
            assert_int_equal(v, HTTP1_BAD);
            assert_int_equal(fault.end, END_BAD_REQUEST);
            assert_string_equal(fault.rule, "too many options in Connection");
        }
    }
    buf_fini(&b);
}

static void knows_its_names_in_any_case(void **state)
{
    static const struct {
        const char *name;
        enum http1_name id;
    } rows[] = {{"host", HTTP1_HOST},
                {"content-length", HTTP1_CONTENT_LENGTH},
                {"transfer-encoding", HTTP1_TRANSFER_ENCODING},
                {"connection", HTTP1_CONNECTION},
                {"keep-alive", HTTP1_KEEP_ALIVE},
                {"proxy-connection", HTTP1_PROXY_CONNECTION},
                {"te", HTTP1_TE},
                {"trailer", HTTP1_TRAILER},
                {"upgrade", HTTP1_UPGRADE},
                {"expect", HTTP1_EXPECT},
                {"via", HTTP1_VIA},
                {"x-forwarded-for", HTTP1_X_FORWARDED_FOR},
                {"x-forwarded-proto", HTTP1_X_FORWARDED_PROTO},
                {"x-forwarded-host", HTTP1_X_FORWARDED_HOST},
                {"x-request-id", HTTP1_X_REQUEST_ID},
                {"content-type", HTTP1_CONTENT_TYPE},
                {"retry-after", HTTP1_RETRY_AFTER},
                {"date", HTTP1_DATE}};
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (int spelling = 0; spelling < 3; spelling++) {
            struct http1_head h;
            const char *rule;
            size_t consumed;
            char text[128], name[32];
            strcpy(name, rows[i].name);
            for (size_t j = 0; name[j]; j++)
                if (name[j] >= 'a' && (spelling == 1 || (spelling == 2 && j % 2)))
                    name[j] -= 0x20;
            /* One letter off, or one more, is another name. */
            int n = snprintf(text, sizeof text, "%s: 1\r\n%.*sq: 1\r\n%ss: 1\r\n\r\n", name,
                             (int)strlen(name) - 1, name, name);
            const char *at = guard_put(&guard, text, (size_t)n);
            assert_int_equal(http1_parse_trailers(at, (size_t)n, 1000, &h, &consumed, &rule),
                             HTTP1_OK);
            assert_int_equal(h.field[0].id, rows[i].id);
            assert_int_equal(h.field[1].id, HTTP1_OTHER);
            assert_int_equal(h.field[2].id, HTTP1_OTHER);
            assert_ptr_equal(http1_find(&h, rows[i].id), &h.field[0]);
            assert_null(http1_find(&h, rows[i].id == HTTP1_DATE ? HTTP1_VIA : HTTP1_DATE));
        }
}

/* ---- responses ---------------------------------------------------------------------------- */

static void reads_responses(void **state)
{
    static const struct {
        enum http1_method to;
        const char *input, *want;
    } rows[] = {
        {HTTP1_GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nHost: a\r\nHost: a b\r\n\r\n",
         "1.1 200 [OK] length=5 keep -Content-Length=[5] +Host=[a] +Host=[a b]"},
        {HTTP1_GET, "HTTP/1.1 201 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
         "1.1 201 [] chunked close -Transfer-Encoding=[chunked] -Connection=[close]"},
        {HTTP1_GET, "HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n",
         "1.1 503 [] length=0 keep -Content-Length=[0]"},
        {HTTP1_GET, "HTTP/1.1 200 O\tK \xe4\r\n\r\n", "1.1 200 [O\tK \xe4] until_close close"},
        {HTTP1_GET, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n",
         "1.0 200 [OK] length=1 keep -Content-Length=[1] -Connection=[keep-alive]"},
        {HTTP1_GET, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
         "1.0 200 [OK] until_close close -Connection=[keep-alive]"},
        {HTTP1_POST, "HTTP/1.1 100 Continue\r\n\r\n", "1.1 100 [Continue] none keep"},
        {HTTP1_POST, "HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n",
         "1.1 103 [Early Hints] none keep -Content-Length=[9]"},
        {HTTP1_GET, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
         "1.1 204 [No Content] none keep -Transfer-Encoding=[chunked]"},
        /* no body, whatever the fields say */
        {HTTP1_GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nContent-Length: 9\r\n\r\n",
         "1.1 304 [Not Modified] none keep -Content-Length=[9] -Content-Length=[9]"},
        {HTTP1_HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
         "1.1 200 [OK] none keep -Content-Length=[9]"},
        {HTTP1_HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
         "1.1 200 [OK] none keep -Transfer-Encoding=[chunked]"},
        {HTTP1_HEAD, "HTTP/1.1 200 OK\r\n\r\n", "1.1 200 [OK] none keep"},
        {HTTP1_GET, "HTTP/1.1 200 OK\r\nX: 1\r\nConnection: x\r\nExpect: y\r\nTE: z\r\n\r\n",
         "1.1 200 [OK] until_close close -X=[1] -Connection=[x] +Expect=[y] -TE=[z]"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_good((int)rows[i].to, rows[i].input, rows[i].want);
}

static void refuses_responses(void **state)
{
#define OK200 "HTTP/1.1 200 OK\r\n"
    static const struct {
        const char *input, *rule;
    } rows[] = {
        {"\r\n" OK200, NO_VERSION},
        {"HTTP/2.0 200 OK\r\n", "only HTTP/1.0 and HTTP/1.1 are spoken here"},
        {"ICY 200 OK\r\n", NO_VERSION},
        {"HTTP/1.1  200 OK\r\n", "the status line has no three-digit status"},
        {"HTTP/1.1 20 OK\r\n", "the status line has no three-digit status"},
        {"HTTP/1.1 2000 OK\r\n", "the status line has no three-digit status"},
        {"HTTP/1.1\r\n", "the status line has no three-digit status"},
        {"HTTP/1.1 099 X\r\n", "the status is not in 100 to 599"},
        {"HTTP/1.1 600 X\r\n", "the status is not in 100 to 599"},
        {"HTTP/1.1 200 O\x01K\r\n", "a control byte in the reason phrase"},
        {"HTTP/1.1 200 OK\n", "a line ends with a bare LF"},
        {"HTTP/1.1 200\n", "a line ends with a bare LF"},
        {"HTTP/1.1 200 OK\rX", "a CR without LF"},
        {OK200 "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
         "Content-Length together with Transfer-Encoding"},
        {OK200 "Content-Length: 1\r\nContent-Length: 2\r\n",
         "two Content-Length fields that differ"},
        {OK200 "Content-Length: 1,1\r\n", NOT_A_LENGTH},
        {OK200 "Transfer-Encoding: gzip\r\n", NOT_CHUNKED},
        {"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding with HTTP/1.0"},
        {OK200 "X: a\r\n b\r\n", "a folded field (obs-fold)"},
        {OK200 "X : a\r\n", "white space before the colon of a field"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_bad(HTTP1_GET, rows[i].input, END_SERVER_GARBAGE, rows[i].rule);

    struct http1_head h;
    struct http1_fault fault;
    size_t consumed;
    struct http1_limits limits = {sizeof OK200 - 1, 0};
    assert_int_equal(parse(HTTP1_GET, OK200, limits.head, &limits, &h, &consumed, &fault),
                     HTTP1_BAD);
    assert_int_equal(fault.end, END_SERVER_GARBAGE);
}

/* ---- trailers ----------------------------------------------------------------------------- */

static void reads_trailers_and_drops_what_may_not_be_one(void **state)
{
    static const char input[] =
        "X-Sum: abc\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        "Host: a\r\nAuthorization: b\r\nCONTENT-encoding: c\r\nIf-Match: d\r\n"
        "Set-Cookie: e\r\nX-Forwarded-For: f\r\nServer-Timing: g\r\n\r\n";
    static const bool hop[] = {false, true, true, true, true, true, true, true, true, false};
    const size_t n = sizeof input - 1;
    struct http1_head h = {.status = 7};
    const char *rule;
    size_t consumed;
    for (size_t i = 0; i < n; i++)
        assert_int_equal(
            http1_parse_trailers(guard_put(&guard, input, i), i, n, &h, &consumed, &rule),
            HTTP1_PARTIAL);
    const char *at = guard_put(&guard, input, n);
    assert_int_equal(http1_parse_trailers(at, n, n, &h, &consumed, &rule), HTTP1_OK);
    assert_int_equal(consumed, n);
    assert_int_equal(h.count, COUNT_OF(hop));
    for (unsigned i = 0; i < h.count; i++)
        assert_int_equal(h.field[i].hop, hop[i]);
    assert_int_equal(h.status, 7);
    assert_int_equal(http1_parse_trailers(at, n, n - 1, &h, &consumed, &rule), HTTP1_BAD);
    assert_string_equal(rule, "the trailers are too big");
    assert_int_equal(http1_parse_trailers("\r\nX", 3, 10, &h, &consumed, &rule), HTTP1_OK);
    assert_int_equal(consumed, 2);
    assert_int_equal(h.count, 0);
    assert_int_equal(http1_parse_trailers("X: a\n", 5, 10, &h, &consumed, &rule), HTTP1_BAD);
    assert_string_equal(rule, "a line ends with a bare LF");
}

/* ---- writing ------------------------------------------------------------------------------ */

static void writes_fields_anew(void **state)
{
    static const struct {
        const char *fields, *want;
    } rows[] = {
        {"A: 1\r\nB: 2\r\nC: 3\r\n", "A: 1\r\nB: 2\r\nC: 3\r\n"},
        {"A:1\r\nB:  2\r\nC:\t3\r\nD: 4\t\r\nE: 5\r\nF:\r\n",
         "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: \r\n"},
        {"A: 1\r\nTE: x\r\nB: 2\r\nConnection: c\r\nC: 3\r\nD: 4\r\nContent-Length: 7\r\n",
         "A: 1\r\nB: 2\r\nD: 4\r\n"},
        {"Upgrade: x\r\n", ""},
    };
    struct buf out, in;
    buf_init(&out, 4096);
    buf_init(&in, 4096);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http1_head h;
        struct http1_fault fault;
        size_t consumed;
        buf_clear(&in);
        buf_clear(&out);
        buf_printf(&in, "GET / HTTP/1.0\r\n%s\r\n", rows[i].fields);
        assert_int_equal(parse(-1, buf_data(&in), buf_len(&in), &wide, &h, &consumed, &fault),
                         HTTP1_OK);
        http1_put_fields(&out, &h);
        buf_put(&out, "", 1);
        assert_string_equal(buf_data(&out), rows[i].want);
    }
    /* A head put together by hand: nothing lies behind anything. */
    struct http1_head h = {
        .count = 2,
        .field = {{.name = STR("X"), .value = STR("1")}, {.name = STR("Y"), .value = STR("")}}};
    buf_clear(&out);
    http1_put_fields(&out, &h);
    buf_put(&out, "", 1);
    assert_string_equal(buf_data(&out), "X: 1\r\nY: \r\n");
    buf_fini(&out);
    buf_fini(&in);
}

static void writes_framing_and_chunks(void **state)
{
    struct buf out;
    buf_init(&out, 4096);
    http1_put_framing(&out, HTTP1_NO_BODY, 5);
    http1_put_framing(&out, HTTP1_UNTIL_CLOSE, 5);
    assert_int_equal(buf_len(&out), 0);
    http1_put_framing(&out, HTTP1_LENGTH, 0);
    http1_put_framing(&out, HTTP1_LENGTH, INT64_MAX);
    http1_put_framing(&out, HTTP1_CHUNKED, 5);
    static const uint64_t lengths[] = {0, 0x1a2b, UINT64_MAX};
    for (unsigned i = 0; i < COUNT_OF(lengths); i++) {
        char head[HTTP1_CHUNK_HEAD];
        buf_put(&out, head, http1_chunk_head(head, lengths[i]));
    }
    buf_put(&out, "", 1);
    assert_string_equal(buf_data(&out),
                        "Content-Length: 0\r\nContent-Length: 9223372036854775807\r\n"
                        "Transfer-Encoding: chunked\r\n0\r\n1a2b\r\nffffffffffffffff\r\n");
    buf_fini(&out);
}

static void names_statuses(void **state)
{
    assert_string_equal(http1_reason(100), "Continue");
    assert_string_equal(http1_reason(200), "OK");
    assert_string_equal(http1_reason(207), "");
    assert_string_equal(http1_reason(304), "Not Modified");
    assert_string_equal(http1_reason(417), "Expectation Failed");
    assert_string_equal(http1_reason(431), "Request Header Fields Too Large");
    assert_string_equal(http1_reason(505), "HTTP Version Not Supported");
    for (int status = -1; status < 1100; status++)
        assert_non_null(http1_reason(status));
    /* Every ending that we answer ourselves has a phrase. */
    for (int r = 0; r < END_COUNT; r++)
        if (end_status((enum end_reason)r) != 0)
            assert_string_not_equal(http1_reason(end_status((enum end_reason)r)), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_requests),
        cmocka_unit_test(refuses_requests),
        cmocka_unit_test(refuses_control_bytes_anywhere),
        cmocka_unit_test(keeps_the_limits_exactly),
        cmocka_unit_test(takes_a_hundred_fields_and_no_more),
        cmocka_unit_test(takes_as_many_connection_options_and_no_more),
        cmocka_unit_test(knows_its_names_in_any_case),
        cmocka_unit_test(reads_responses),
        cmocka_unit_test(refuses_responses),
        cmocka_unit_test(reads_trailers_and_drops_what_may_not_be_one),
        cmocka_unit_test(writes_fields_anew),
        cmocka_unit_test(writes_framing_and_chunks),
        cmocka_unit_test(names_statuses),
    };
    guard = guard_new(1 << 15);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&guard);
    return failed;
}
