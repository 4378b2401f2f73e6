/* onward.c: writes heads anew from the parsed form; nothing of a client is passed on as it came. */
#include "onward.h"

static void put_target(struct request *r, struct mapped *m)
{
    if (m->on) { /* each try writes its own id over this one */
        const char *id = r->route.collection.p, *rest = id + r->route.collection.n;
        buf_put(&r->text, r->target.p, (size_t)(id - r->target.p));
        m->at = r->text.tail;
        buf_puts(&r->text, m->id);
        buf_put(&r->text, rest, (size_t)(r->target.p + r->target.n - rest));
        return;
    }
    if (!r->route.v1_alias) {
        buf_put_str(&r->text, r->target);
        return;
    }
    /* "/api/v1/…" as "/api/v2/…" */
    buf_put_str(&r->text, STR("/api/v2"));
    buf_put(&r->text, r->target.p + 7, r->target.n - 7);
}

struct str onward_head(struct request *r, struct http1_head *h, struct mapped *m,
                       struct str *session)
{
    bool proto = false, host = false;
    size_t from = r->text.tail;
    const char *mem = r->text.mem;
    for (unsigned i = 0; i < h->count; i++) {
        struct http1_field *f = &h->field[i];
        if (f->id == HTTP1_EXPECT)
            f->hop = true; /* chromux answers it itself */
        proto = proto || f->id == HTTP1_X_FORWARDED_PROTO;
        host = host || f->id == HTTP1_X_FORWARDED_HOST;
    }
    buf_put_str(&r->text, h->method_text);
    buf_put(&r->text, " ", 1);
    put_target(r, m);
    m->at -= m->on ? from : 0;
    buf_put_str(&r->text, STR(" HTTP/1.1\r\n"));
    if (!http1_find(h, HTTP1_HOST))
        buf_put_str(&r->text, STR("Host: chromux\r\n"));
    http1_put_fields(&r->text, h);
    http1_put_framing(&r->text, r->body.framing, r->body.length);
    /* The version is the one that the client spoke (RFC 9110 7.6.3). */
    buf_put_str(&r->text, r->minor ? STR("Via: 1.1") : STR("Via: 1.0"));
    buf_put_str(&r->text, STR(" chromux\r\nX-Request-Id: "));
    buf_puts(&r->text, r->id);
    buf_put_str(&r->text, STR("\r\nX-Forwarded-For: "));
    buf_put_str(&r->text, request_client(r));
    if (!proto)
        buf_put_str(&r->text, STR("\r\nX-Forwarded-Proto: http"));
    if (!host && h->host.n) {
        buf_put_str(&r->text, STR("\r\nX-Forwarded-Host: "));
        buf_put_str(&r->text, h->host);
    }
    if (r->te_trailers)
        buf_put_str(&r->text, STR("\r\nTE: trailers\r\nConnection: TE"));
    buf_put_str(&r->text, STR("\r\n\r\n"));
    struct str head = {r->text.mem + from, r->text.tail - from};
    for (unsigned i = 0; i < h->count; i++)
        if (h->field[i].id == HTTP1_OTHER && h->field[i].name.n == 17 &&
            str_eq_nocase(h->field[i].name, STR("X-Chromux-Session"))) {
            session->p = buf_data(&r->text) + buf_len(&r->text);
            session->n = h->field[i].value.n;
            buf_put_str(&r->text, h->field[i].value);
        }
    must(r->text.mem == mem); /* the request's slices point into it */
    return head;
}
