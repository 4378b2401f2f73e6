/* http1_fuzz.c: any bytes, read as a request, a response, chunks and trailers.
 *
 * It must hold that nothing is read behind the end, that the verdict does not depend on where the
 * bytes were cut, and that what we would forward is read by llhttp exactly as we read it: the same
 * method, target, fields and body, and the next request begins where we think it does.
 *
 * needs: core/base.c core/end.c core/log.c core/buf.c core/http1_chunks.c core/http1.c
 * tests/fuzz/llhttp_oracle.c needs: -DLLHTTP_STRICT_MODE=1 -I/usr/share/include/llhttp needs:
 * /usr/share/llhttp/api.c /usr/share/llhttp/http.c /usr/share/llhttp/llhttp.c */
#include "http1.h"
#include "llhttp_oracle.h"

#include <stdlib.h>

enum { INPUT_MAX = 8192, CUTS_MAX = 64, PAD_MAX = 1 << 16 };

static const struct http1_limits limits[] = {{16384, 8192}, {160, 40}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Bytes in memory of exactly their size, so that AddressSanitizer sees one byte too many. */
static char *exact(const char *p, size_t n)
{
    char *copy = malloc(n ? n : 1);
    must(copy);
    if (n)
        memcpy(copy, p, n);
    return copy;
}

/* ---- cutting ------------------------------------------------------------------------------ */

enum reader { REQUEST, RESPONSE, RESPONSE_TO_HEAD, TRAILERS, READERS };

struct reading {
    enum http1_verdict verdict;
    size_t consumed;
    struct http1_fault fault;
};

static struct reading read_as(enum reader reader, const char *p, size_t n,
                              const struct http1_limits *limit, struct http1_head *head)
{
    struct reading r = {.consumed = 0};
    switch (reader) {
    case REQUEST:
        r.verdict = http1_parse_request(p, n, limit, head, &r.consumed, &r.fault);
        break;
    case RESPONSE:
    case RESPONSE_TO_HEAD:
        r.verdict = http1_parse_response(p, n, limit, reader == RESPONSE ? HTTP1_GET : HTTP1_HEAD,
                                         head, &r.consumed, &r.fault);
        break;
    default:
        r.verdict = http1_parse_trailers(p, n, limit->head, head, &r.consumed, &r.fault.rule);
        break;
    }
    must(r.consumed <= n);
    must(r.verdict != HTTP1_BAD || r.fault.rule);
    must(r.verdict != HTTP1_OK || head->count <= HTTP1_FIELDS_MAX);
    return r;
}

static void check_cuts(enum reader reader, const char *p, size_t n,
                       const struct http1_limits *limit)
{
    static struct http1_head head;
    struct reading whole = read_as(reader, p, n, limit, &head);
    size_t step = n / CUTS_MAX + 1;
    bool refused = false;
    for (size_t i = 0; i < n; i += step) {
        char *part = exact(p, i);
        struct reading r = read_as(reader, part, i, limit, &head);
        free(part);
        must(!refused || r.verdict == HTTP1_BAD);
        if (r.verdict == HTTP1_BAD) {
            refused = true;
            must(whole.verdict == HTTP1_BAD && r.fault.rule == whole.fault.rule &&
                 r.fault.end == whole.fault.end);
        }
        if (r.verdict == HTTP1_OK)
            must(whole.verdict == HTTP1_OK && r.consumed == whole.consumed);
        if (r.verdict == HTTP1_PARTIAL)
            must(whole.verdict != HTTP1_OK || i < whole.consumed);
    }
}

/* A head passes with exactly the room that it needs, whatever follows it, and with no byte less. */
static void check_limits(enum reader reader, const char *p, size_t n)
{
    static struct http1_head head;
    struct reading r = read_as(reader, p, n, &limits[0], &head);
    if (r.verdict != HTTP1_OK)
        return;
    struct http1_limits tight = {r.consumed, limits[0].uri};
    struct reading t = read_as(reader, p, n, &tight, &head);
    must(t.verdict == HTTP1_OK && t.consumed == r.consumed);
    tight.head--;
    t = read_as(reader, p, n, &tight, &head);
    must(t.verdict == HTTP1_BAD);
    must(reader != REQUEST || t.fault.end == END_HEAD_TOO_BIG);
}

/* ---- chunks ------------------------------------------------------------------------------- */

struct decoded {
    enum http1_step end; /* MORE, LAST or BAD */
    size_t consumed;
    const char *rule;
};

/* Decodes p in two pieces, [0, cut) and [cut, n), into body. */
static struct decoded decode(const char *p, size_t n, size_t cut, struct buf *body)
{
    struct decoded d = {.end = HTTP1_MORE};
    struct http1_chunks c;
    http1_chunks_init(&c);
    buf_clear(body);
    while (d.end == HTTP1_MORE && d.consumed < n) {
        size_t to = d.consumed < cut ? cut : n;
        char *part = exact(p + d.consumed, to - d.consumed);
        size_t at = 0, size = to - d.consumed;
        do {
            size_t used;
            struct str data;
            d.end = http1_chunks_next(&c, part + at, size - at, &used, &data, &d.rule);
            must(used <= size - at);
            at += used;
            if (d.end == HTTP1_DATA) {
                must(data.n > 0 && data.p >= part && data.p + data.n <= part + size);
                buf_put_str(body, data);
            }
        } while (d.end == HTTP1_DATA);
        must(d.end != HTTP1_MORE || at == size);
        must((d.end == HTTP1_STEP_BAD) == (d.rule != NULL));
        d.consumed += at;
        free(part);
    }
    return d;
}

static void check_chunk_cuts(const char *p, size_t n)
{
    struct buf whole, cut;
    buf_init(&whole, 1 << 20);
    buf_init(&cut, 1 << 20);
    struct decoded w = decode(p, n, n, &whole);
    size_t step = n / CUTS_MAX + 1;
    for (size_t i = 0; i < n; i += step) {
        struct decoded d = decode(p, n, i, &cut);
        must(d.end == w.end && d.consumed == w.consumed && d.rule == w.rule);
        must(buf_len(&cut) == buf_len(&whole));
        must(buf_len(&cut) == 0 || memcmp(buf_data(&cut), buf_data(&whole), buf_len(&cut)) == 0);
    }
    buf_fini(&whole);
    buf_fini(&cut);
}

/* ---- forwarding --------------------------------------------------------------------------- */

struct forward {
    struct buf wire;   /* what goes to the next hop */
    struct buf fields; /* what llhttp should then say, in its oracle's form */
    struct buf body;
    bool complete; /* the body is whole: the wire holds one request */
};

static void expect_fields(struct buf *out, const struct http1_head *head)
{
    for (unsigned i = 0; i < head->count; i++) {
        if (head->field[i].hop)
            continue;
        buf_put_str(out, head->field[i].name);
        buf_puts(out, "=");
        buf_put_str(out, head->field[i].value);
        buf_puts(out, "\n");
    }
}

static const char *forwarded_method(const struct http1_head *head)
{
    static const char *const names[] = {"GET",   "HEAD",   "POST",    "PUT",
                                        "PATCH", "DELETE", "OPTIONS", "PATCH"};
    return names[head->method];
}

static void forward_chunks(struct forward *f, const char *p, size_t n)
{
    static struct http1_head trailers;
    struct decoded d = decode(p, n, n, &f->body);
    size_t consumed;
    const char *rule;
    if (d.end != HTTP1_LAST)
        return;
    if (buf_len(&f->body) > 0) {
        char head[HTTP1_CHUNK_HEAD];
        buf_put(&f->wire, head, http1_chunk_head(head, buf_len(&f->body)));
        buf_put(&f->wire, buf_data(&f->body), buf_len(&f->body));
        buf_puts(&f->wire, "\r\n");
    }
    buf_puts(&f->wire, "0\r\n");
    if (http1_parse_trailers(p + d.consumed, n - d.consumed, 4096, &trailers, &consumed, &rule) !=
        HTTP1_OK)
        return;
    http1_put_fields(&f->wire, &trailers);
    expect_fields(&f->fields, &trailers);
    buf_puts(&f->wire, "\r\n");
    f->complete = true;
}

static void forward(struct forward *f, const struct http1_head *head, const char *p, size_t n)
{
    buf_printf(&f->wire, "%s %.*s HTTP/1.1\r\n", forwarded_method(head), (int)head->target.n,
               head->target.p);
    http1_put_fields(&f->wire, head);
    http1_put_framing(&f->wire, head->framing, head->length);
    buf_puts(&f->wire, "\r\n");
    expect_fields(&f->fields, head);
    if (head->framing == HTTP1_CHUNKED) {
        buf_puts(&f->fields, "Transfer-Encoding=chunked\n");
        forward_chunks(f, p, n);
    } else if (head->framing == HTTP1_LENGTH) {
        buf_printf(&f->fields, "Content-Length=%llu\n", (unsigned long long)head->length);
        f->complete = head->length <= PAD_MAX;
        for (uint64_t i = 0; f->complete && i < head->length; i++)
            buf_put(&f->body, i < n ? p + i : "G", 1);
        if (buf_len(&f->body) > 0)
            buf_put(&f->wire, buf_data(&f->body), buf_len(&f->body));
    } else {
        f->complete = true;
    }
}

/* buf_data() of a buf that never held anything is no pointer to compare. */
static bool same(const struct buf *a, const struct buf *b)
{
    size_t n = buf_len(a);
    return n == buf_len(b) && (n == 0 || memcmp(buf_data(a), buf_data(b), n) == 0);
}

/* llhttp 8.1 refuses two things that RFC 9112 7.1.1 allows: a quoted pair in an extension's value,
 * and an extension after one with a value. */
static bool beyond_llhttp(const char *p, size_t n)
{
    const char *first = memchr(p, ';', n);
    return memchr(p, '\\', n) || (first && memchr(first + 1, ';', n - (size_t)(first + 1 - p)));
}

/* A chunked body as it came, extensions and all, is the same body to llhttp. */
static void check_chunks_raw(const char *p, size_t n)
{
    struct buf wire, body;
    struct oracle o;
    buf_init(&wire, 1 << 20);
    buf_init(&body, 1 << 20);
    oracle_init(&o);
    struct decoded d = decode(p, n, n, &body);
    if (d.end == HTTP1_LAST && !beyond_llhttp(p, d.consumed)) {
        buf_puts(&wire, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        buf_put(&wire, p, d.consumed);
        buf_puts(&wire, "\r\nGET /next HTTP/1.1\r\n\r\n");
        oracle_requests(&o, buf_data(&wire), buf_len(&wire));
        must(o.error == NULL);
        must(o.messages == 2);
        must(same(&o.body, &body));
    }
    oracle_fini(&o);
    buf_fini(&body);
    buf_fini(&wire);
}

static void check_forward(const char *p, size_t n)
{
    static struct http1_head head;
    struct reading r = read_as(REQUEST, p, n, &limits[0], &head);
    if (r.verdict != HTTP1_OK)
        return;
    must(head.framing != HTTP1_UNTIL_CLOSE);
    must(head.minor == 0 || head.host.n > 0);
    must(head.path.n > 0 && (head.path.p[0] == '/' || head.path.p[0] == '*'));

    struct forward f = {.complete = false};
    struct buf start;
    struct oracle o;
    buf_init(&f.wire, 1 << 20);
    buf_init(&f.fields, 1 << 20);
    buf_init(&f.body, 1 << 20);
    buf_init(&start, 1 << 20);
    oracle_init(&o);
    forward(&f, &head, p + r.consumed, n - r.consumed);
    buf_printf(&start, "%s %.*s\n", forwarded_method(&head), (int)head.target.n, head.target.p);
    if (f.complete) {
        /* A second request shows that both see the end of the first in the same place. */
        buf_puts(&f.wire, "GET /next HTTP/1.1\r\nHost: next\r\n\r\n");
        buf_puts(&f.fields, "\nHost=next\n\n");
        buf_puts(&start, "GET /next\n");
    }
    oracle_requests(&o, buf_data(&f.wire), buf_len(&f.wire));
    must(o.error == NULL);
    must(same(&o.start, &start));
    if (f.complete) {
        must(o.messages == 2);
        must(same(&o.fields, &f.fields));
        must(same(&o.body, &f.body));
    } else {
        must(o.heads == 1 && o.messages == 0);
        must(o.chunked == (head.framing == HTTP1_CHUNKED));
        must(o.chunked || o.length == head.length);
    }
    oracle_fini(&o);
    buf_fini(&start);
    buf_fini(&f.body);
    buf_fini(&f.fields);
    buf_fini(&f.wire);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n > INPUT_MAX)
        return 0;
    char *p = exact((const char *)data, n);
    for (int reader = 0; reader < READERS; reader++) {
        check_limits((enum reader)reader, p, n);
        for (size_t i = 0; i < COUNT_OF(limits); i++)
            check_cuts((enum reader)reader, p, n, &limits[i]);
    }
    check_chunk_cuts(p, n);
    check_chunks_raw(p, n);
    check_forward(p, n);
    free(p);
    return 0;
}
