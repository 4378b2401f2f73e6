/* path_model.c: see path_model.h. The rules of session.c and proxy.c that matter here, said again
 * in straight lines. */
#include "path_model.h"

#include "body.h"
#include "reply.h"
#include "route.h"

enum { PART_MAX = 4 << 20 };

static void put_field(struct buf *out, const struct http1_field *f)
{
    buf_put_str(out, f->name);
    buf_puts(out, "=");
    buf_put_str(out, f->value);
    buf_puts(out, "\n");
}

/* What proxy.c sends: the client's fields but for those of its own hop, then what chromux adds. */
static void expect_head(struct expected *e, struct http1_head *h, const struct route *route)
{
    bool proto = false, host = false;
    char id[REPLY_ID_MAX];
    reply_take_id(h, id);
    buf_put_str(&e->start, h->method_text);
    buf_puts(&e->start, " ");
    if (route->v1_alias) {
        buf_puts(&e->start, "/api/v2");
        buf_put(&e->start, h->target.p + 7, h->target.n - 7);
    } else {
        buf_put_str(&e->start, h->target);
    }
    if (!http1_find(h, HTTP1_HOST)) {
        buf_puts(&e->fields, "Host=chromux\n");
        e->field_count++;
    }
    for (unsigned i = 0; i < h->count; i++) {
        const struct http1_field *f = &h->field[i];
        proto = proto || f->id == HTTP1_X_FORWARDED_PROTO;
        host = host || f->id == HTTP1_X_FORWARDED_HOST;
        if (f->hop || f->id == HTTP1_EXPECT)
            continue;
        put_field(&e->fields, f);
        e->field_count++;
    }
    if (h->framing == HTTP1_CHUNKED)
        buf_puts(&e->fields, "Transfer-Encoding=chunked\n");
    else if (h->framing == HTTP1_LENGTH)
        buf_printf(&e->fields, "Content-Length=%llu\n", (unsigned long long)h->length);
    e->field_count += h->framing != HTTP1_NO_BODY;
    e->field_count += 3; /* Via, X-Request-Id, X-Forwarded-For */
    e->field_count += !proto;
    e->field_count += !host && h->host.n > 0;
    e->field_count += h->te_trailers ? 2 : 0; /* TE and Connection */
}

/* The trailers are there as lines; the model wants them as the reader tells them. */
static void expect_trailers(struct expected *e, const struct buf *lines)
{
    static struct http1_head fields;
    struct buf whole;
    size_t used;
    const char *rule;
    buf_init(&whole, PART_MAX);
    buf_put(&whole, buf_data(lines), buf_len(lines));
    buf_puts(&whole, "\r\n");
    enum http1_verdict v = http1_parse_trailers(buf_data(&whole), buf_len(&whole), buf_len(&whole),
                                                &fields, &used, &rule);
    must(v == HTTP1_OK);
    for (unsigned i = 0; i < fields.count; i++)
        put_field(&e->trailers, &fields.field[i]);
    e->field_count += fields.count;
    buf_fini(&whole);
}

static void expect_body(struct expected *e, const struct config *cfg, const struct http1_head *h,
                        struct buf *in)
{
    struct body body;
    struct body_limits limits = {(uint64_t)cfg->max_body, (size_t)cfg->max_head};
    const char *rule;
    body_init(&body, h->framing, h->length, (size_t)cfg->retry_buffer + 65536);
    e->has_body = !body.done;
    enum end_reason bad = body_take(&body, in, &limits, &rule);
    e->whole = body.done && bad == END_NONE;
    e->bad = bad != END_NONE;
    if (e->bad)
        e->status = e->fate == FATE_PROXIED ? end_status(bad) : 0;
    if (buf_len(&body.bytes) > 0)
        buf_put(&e->body, buf_data(&body.bytes), buf_len(&body.bytes));
    if (e->whole && buf_len(&body.trailers) > 0)
        expect_trailers(e, &body.trailers);
    body_fini(&body);
}

/* Reads one request. false: nothing can follow it, or more bytes would be needed. */
static bool expect_one(struct model *m, const struct config *cfg, bool local_only, bool streams,
                       struct buf *in)
{
    static struct http1_head h;
    struct http1_limits limits = {(size_t)cfg->max_head, (size_t)cfg->max_uri};
    struct http1_fault fault = {END_BAD_REQUEST, ""};
    size_t used = 0;
    struct route route;
    enum http1_verdict v =
        http1_parse_request(buf_data(in), buf_len(in), &limits, &h, &used, &fault);
    if (v == HTTP1_PARTIAL)
        return false;
    must(m->n < MESSAGES_MAX);
    struct expected *e = &m->v[m->n++];
    *e = (struct expected){.fate = FATE_BAD};
    buf_init(&e->start, PART_MAX);
    buf_init(&e->fields, PART_MAX);
    buf_init(&e->trailers, PART_MAX);
    buf_init(&e->body, PART_MAX);
    if (v == HTTP1_BAD) {
        e->status = end_status(fault.end);
        e->ends = true;
        return false;
    }
    e->head = h.method == HTTP1_HEAD;
    e->ends = !h.keep_alive;
    route_match(h.method, h.path, &route);
    e->fate = FATE_REFUSED;
    if (h.framing == HTTP1_LENGTH && h.length > (uint64_t)cfg->max_body)
        e->status = end_status(END_BODY_TOO_BIG);
    else if (route.class == ROUTE_UNSUPPORTED)
        e->status = end_status(route.refusal);
    else if (route.class == ROUTE_LOCAL)
        e->fate = FATE_LOCAL;
    else if (local_only)
        e->status = end_status(END_NOT_FOUND);
    else
        e->fate = FATE_PROXIED;
    if (e->fate == FATE_PROXIED) {
        expect_head(e, &h, &route);
        if (streams && h.minor == 0)
            e->ends = true;
    }
    buf_consume(in, used); /* moves nothing */
    expect_body(e, cfg, &h, in);
    e->ends = e->ends || e->bad;
    return !e->ends && e->whole;
}

void model_read(struct model *m, const struct config *cfg, bool local_only, bool streams,
                const char *p, size_t n)
{
    struct buf in;
    m->n = 0;
    buf_init(&in, PART_MAX);
    buf_put(&in, p, n);
    while (buf_len(&in) > 0 && expect_one(m, cfg, local_only, streams, &in))
        ;
    buf_fini(&in);
}

void model_clear(struct model *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        buf_fini(&m->v[i].start);
        buf_fini(&m->v[i].fields);
        buf_fini(&m->v[i].trailers);
        buf_fini(&m->v[i].body);
    }
    m->n = 0;
}

/* ---- a server's answer ------------------------------------------------------------------------
 */

static void told_chunks(struct told *t, const struct config *cfg, const char *p, size_t n)
{
    static struct http1_head trailers;
    struct http1_chunks c;
    http1_chunks_init(&c);
    for (size_t at = 0;;) {
        size_t used = 0;
        struct str data = {NULL, 0};
        const char *rule;
        enum http1_step step = http1_chunks_next(&c, p + at, n - at, &used, &data, &rule);
        at += used;
        if (step == HTTP1_DATA) {
            buf_put_str(&t->body, data);
            continue;
        }
        if (step == HTTP1_LAST)
            t->whole = http1_parse_trailers(p + at, n - at, (size_t)cfg->max_head, &trailers, &used,
                                            &rule) == HTTP1_OK;
        return;
    }
}

void told_read(struct told *t, const struct config *cfg, enum http1_method to, const char *p,
               size_t n)
{
    static struct http1_head h;
    struct http1_limits limits = {(size_t)cfg->max_head, 0};
    *t = (struct told){.head = false};
    buf_init(&t->body, PART_MAX);
    do {
        struct http1_fault fault;
        size_t used = 0;
        enum http1_verdict v = http1_parse_response(p, n, &limits, to, &h, &used, &fault);
        t->bad = v == HTTP1_BAD || (v == HTTP1_OK && h.status == 101);
        if (v != HTTP1_OK || t->bad)
            return;
        p += used;
        n -= used;
    } while (h.status < 200);
    t->head = true;
    t->status = h.status;
    if (h.framing == HTTP1_NO_BODY) {
        t->whole = true;
    } else if (h.framing == HTTP1_CHUNKED) {
        told_chunks(t, cfg, p, n);
    } else {
        t->until_close = h.framing == HTTP1_UNTIL_CLOSE;
        t->whole = t->until_close || n >= h.length;
        buf_put(&t->body, p, t->until_close || n < h.length ? n : (size_t)h.length);
    }
}
