/* exchange.c: up (head, body), down (interim answers, head, body), and the events that drive both.
 * What the client does not take stays in the server's stream, which then stops reading. */
#include "exchange.h"

#include "log.h"
#include "metrics.h"

#include <errno.h>
#include <stdio.h>

/* SMALL: a body of up to so many bytes goes out behind its head as one piece of memory, which costs
 * the kernel less than two pieces do. */
enum { CHUNK_MAX = 16384, SMALL = 4096, SHOWN_MAX = 16384 };

/* More than a head can grow to when it is written again: MAX_HEAD_BYTES is 1 MiB at the most, each
 * field gains at most two bytes, and what we add is under 4 kB. */
#define HEAD_CAP (4u << 20)

/* Asked at each use: a reload frees the old one while exchanges are under way. */
static const struct config *cfg(void)
{
    return session_shared.cfg;
}

static void on_conn(struct conn *c, enum stream_event e);

static double now(void)
{
    return base_clock();
}

static struct buf *upstream_in(struct exchange *x)
{
    return &x->conn->stream.in;
}

/* ---- endings ---- */

void exchange_cancel(struct exchange *x)
{
    if (x->conn)
        pool_drop(&x->conn);
}

void exchange_fail(struct exchange *x, enum end_reason why, const char *error)
{
    snprintf(x->error, sizeof x->error, "%s", error);
    exchange_cancel(x);
    x->ended(x, why);
}

/* The answer is out. The connection lives on only if both sides agree about where they stand. */
static void complete(struct exchange *x)
{
    bool clean = x->server_keeps && x->body_ended && !x->upload_dead &&
                 x->framing != HTTP1_UNTIL_CLOSE && buf_len(upstream_in(x)) == 0;
    if (clean)
        pool_give(&x->conn);
    else
        pool_drop(&x->conn);
    x->ended(x, x->early ? END_EARLY : END_DONE);
}

/* ---- the request's way up ---- */

/* Bytes of r->body that this try has not sent yet. */
static struct str unsent_body(const struct exchange *x)
{
    const struct buf *b = &x->r->body.bytes;
    size_t skip = (size_t)(x->sent - x->dropped);
    return (struct str){skip ? buf_data(b) + skip : buf_data(b), buf_len(b) - skip}; /* NULL + 0 */
}

/* What was sent goes, unless another try may need it. */
static void forget_sent(struct exchange *x)
{
    if (x->retain && buf_len(&x->r->body.bytes) > (size_t)cfg()->retry_buffer)
        x->retain = false;
    if (x->retain)
        return;
    buf_consume(&x->r->body.bytes, (size_t)(x->sent - x->dropped));
    x->dropped = x->sent;
}

/* The peer takes no more bytes. What it said before may still be on its way: reading tells the end.
 */
static void upload_died(struct exchange *x)
{
    x->upload_dead = true;
}

static bool offer(struct exchange *x, struct iovec *v, int n, size_t *taken)
{
    ssize_t w = stream_offer(&x->conn->stream, v, n);
    if (w < 0) {
        upload_died(x);
        return false;
    }
    *taken = (size_t)w;
    return true;
}

static bool send_all(struct exchange *x, const struct iovec *v, int n)
{
    if (stream_send(&x->conn->stream, v, n))
        return true;
    upload_died(x);
    return false;
}

/* One chunk of what is there, or the last one. false: stop for now. */
static bool send_chunk(struct exchange *x)
{
    struct request *r = x->r;
    struct str data = unsent_body(x);
    if (stream_unsent(&x->conn->stream) > 0 || (data.n == 0 && !r->body.done))
        return false;
    if (data.n == 0) {
        struct iovec end[3] = {{(void *)"0\r\n", 3},
                               {r->body.trailers.mem, buf_len(&r->body.trailers)},
                               {(void *)"\r\n", 2}};
        x->body_ended = true;
        (void)send_all(x, end, 3);
        return false;
    }
    if (data.n > CHUNK_MAX)
        data.n = CHUNK_MAX;
    char size[HTTP1_CHUNK_HEAD];
    size_t n = http1_chunk_head(size, data.n);
    struct iovec v[3] = {{size, n}, {(void *)data.p, data.n}, {(void *)"\r\n", 2}};
    if (!send_all(x, v, 3))
        return false;
    x->sent += data.n;
    forget_sent(x);
    return true;
}

/* false: stop for now. */
static bool send_plain(struct exchange *x)
{
    struct request *r = x->r;
    struct str data = unsent_body(x);
    if (data.n > 0) {
        if (stream_unsent(&x->conn->stream) > 0)
            return false;
        struct iovec v = {(void *)data.p, data.n};
        size_t taken = 0;
        if (!offer(x, &v, 1, &taken))
            return false;
        x->sent += taken;
        forget_sent(x);
        if (taken < data.n)
            return false;
    }
    x->body_ended = r->body.done && x->sent == r->body.seen;
    return !x->body_ended && unsent_body(x).n > 0;
}

static void upload(struct exchange *x)
{
    struct request *r = x->r;
    while (!x->upload_dead && !x->body_ended &&
           (r->body.framing == HTTP1_CHUNKED ? send_chunk(x) : send_plain(x)))
        ;
    if (!x->upload_dead && !x->body_ended)
        request_want_body(r); /* may end the request: nothing of x is touched after it */
}

/* The head and what is there of a plain body, in one write. */
static void send_head(struct exchange *x)
{
    if (!x->may_send(x)) {
        exchange_fail(x, END_NO_INSTANCE, "its copy may not be read any more");
        return;
    }
    struct request *r = x->r;
    struct str data = unsent_body(x);
    if (r->body.framing == HTTP1_CHUNKED)
        data.n = 0;
    struct iovec v[2] = {{(void *)x->head.p, x->head.n}, {(void *)data.p, data.n}};
    size_t taken = 0;
    x->touched = true;
    x->node->requests++;
    x->progress = now();
    if (!offer(x, v, data.n ? 2 : 1, &taken))
        return;
    if (taken < x->head.n) {
        struct iovec rest = {(char *)v[0].iov_base + taken, x->head.n - taken};
        if (!send_all(x, &rest, 1))
            return;
        taken = x->head.n;
    }
    x->sent += taken - x->head.n;
    forget_sent(x);
    x->body_ended = r->body.done && x->sent == r->body.seen && r->body.framing != HTTP1_CHUNKED;
    if (!x->body_ended)
        upload(x);
}

void exchange_more(struct exchange *x)
{
    if (x->upload_dead || x->relaying) {
        /* Nobody wants the rest: it is read and thrown away until the answer is out. */
        x->dropped = x->sent = x->r->body.seen;
        buf_clear(&x->r->body.bytes);
        return;
    }
    if (x->conn && !x->conn->stream.connecting)
        upload(x);
}

/* ---- the answer's way down ---- */

static void client_gone(struct exchange *x)
{
    struct request *r = x->r;
    r->handler->gone(r);
    request_gone(r);
}

/* 102 and 103 are the client's business; 100 was for us, who never ask for it. */
static bool relay_interim(struct exchange *x, const struct http1_head *h)
{
    struct request *r = x->r;
    if (h->status == 100 || r->minor == 0)
        return true;
    struct buf out;
    buf_init(&out, HEAD_CAP);
    buf_printf(&out, "HTTP/1.1 %d %.*s\r\n", h->status, (int)h->reason.n, h->reason.p);
    http1_put_fields(&out, h);
    buf_put(&out, "\r\n", 2);
    struct iovec v = {out.mem, buf_len(&out)};
    bool ok = request_send(r, &v, 1);
    buf_fini(&out);
    if (!ok)
        client_gone(x);
    return ok;
}

/* Fields that only chromux may say: the client must be able to trust them. */
static bool ours(const struct http1_field *f)
{
    static const struct str instance = {"X-Chromux-Instance", 18};
    return f->id == HTTP1_X_REQUEST_ID ||
           (f->name.n == instance.n && str_eq_nocase(f->name, instance));
}

/* Writes the head of the answer for the client, and with it as much of a plain body as came along.
 */
static bool answer_head(struct exchange *x, struct http1_head *h)
{
    static struct buf out; /* never given back: one head at a time */
    struct request *r = x->r;
    if (!out.cap)
        buf_init(&out, HEAD_CAP);
    buf_clear(&out);
    bool dated = false;
    for (unsigned i = 0; i < h->count; i++) {
        struct http1_field *f = &h->field[i];
        f->hop = f->hop || ours(f);
        dated = dated || f->id == HTTP1_DATE;
    }
    x->framing = h->framing;
    x->left = h->framing == HTTP1_LENGTH ? h->length : 0;
    bool stream = h->framing == HTTP1_CHUNKED || h->framing == HTTP1_UNTIL_CLOSE;
    x->client_chunked = stream && r->minor >= 1;
    if (stream && r->minor == 0)
        r->must_close = true;
    if (x->early)
        r->must_close = true;
    buf_put_str(&out, STR("HTTP/1.1 "));
    buf_put_uint(&out, (uint64_t)h->status);
    buf_put(&out, " ", 1);
    buf_put_str(&out, h->reason);
    buf_put(&out, "\r\n", 2);
    http1_put_fields(&out, h);
    if (x->client_chunked)
        http1_put_framing(&out, HTTP1_CHUNKED, 0);
    else if (h->framing == HTTP1_LENGTH)
        http1_put_framing(&out, HTTP1_LENGTH, h->length);
    else if (h->framing == HTTP1_NO_BODY) {
        /* An answer to HEAD and a 304 tell the length of what they don't carry (RFC 9110 8.6). */
        const struct http1_field *f = http1_find(h, HTTP1_CONTENT_LENGTH);
        if (f && h->status >= 200 && h->status != 204)
            buf_printf(&out, "Content-Length: %.*s\r\n", (int)f->value.n, f->value.p);
    }
    request_put_common(r, &out, x->node->name, !dated);
    buf_put(&out, "\r\n", 2);

    struct buf *in = upstream_in(x);
    size_t head_len = buf_len(&out), body = 0;
    if (x->framing == HTTP1_LENGTH)
        body = buf_len(in) < x->left ? buf_len(in) : (size_t)x->left;
    bool joined = body <= SMALL;
    if (joined)
        buf_put(&out, buf_data(in), body);
    struct iovec v[2] = {{out.mem, buf_len(&out)}, {(void *)buf_data(in), body}};
    ssize_t w = request_offer(r, v, joined ? 1 : 2);
    if (w < 0) {
        client_gone(x);
        return false;
    }
    r->answered = true;
    if ((size_t)w < head_len) {
        struct iovec rest = {out.mem + w, head_len - (size_t)w};
        if (!request_send(r, &rest, 1)) {
            client_gone(x);
            return false;
        }
        w = (ssize_t)head_len;
    }
    size_t taken = (size_t)w - head_len;
    buf_consume(in, taken);
    x->left -= taken;
    r->log.bytes_out += taken;
    return true;
}

/* Sends pieces of a body whose length the client learns as it comes. false: x is gone. */
static bool relay_piece(struct exchange *x, struct str data)
{
    char size[HTTP1_CHUNK_HEAD];
    size_t n = x->client_chunked ? http1_chunk_head(size, data.n) : 0;
    struct iovec v[3] = {{size, n}, {(void *)data.p, data.n}, {(void *)"\r\n", 2}};
    bool ok = x->client_chunked ? request_send(x->r, v, 3) : request_send(x->r, v + 1, 1);
    x->r->log.bytes_out += data.n;
    if (!ok)
        client_gone(x);
    return ok;
}

/* The end of such a body; trailers may be NULL. */
static void relay_last(struct exchange *x, const struct http1_head *trailers)
{
    if (x->client_chunked) {
        struct buf out;
        buf_init(&out, HEAD_CAP);
        buf_puts(&out, "0\r\n");
        if (trailers && x->r->te_trailers)
            http1_put_fields(&out, trailers);
        buf_puts(&out, "\r\n");
        struct iovec v = {out.mem, buf_len(&out)};
        bool ok = request_send(x->r, &v, 1);
        buf_fini(&out);
        if (!ok) {
            client_gone(x);
            return;
        }
    }
    complete(x);
}

static void garbage(struct exchange *x, const char *rule)
{
    exchange_fail(x, END_SERVER_GARBAGE, rule);
}

/* The server has no more bytes now. False when that ended the exchange. */
static bool wait_for_server(struct exchange *x)
{
    if (!x->conn->stream.eof) {
        stream_read_on(&x->conn->stream);
        return true;
    }
    if (x->framing == HTTP1_UNTIL_CLOSE && x->conn->stream.error == 0)
        relay_last(x, NULL);
    else
        exchange_fail(x, END_SERVER_CLOSED, "the server closed the connection within its answer");
    return false;
}

/* One step of a chunked answer. false: stop, x may be gone. */
static bool relay_chunked(struct exchange *x)
{
    static struct http1_head trailers;
    struct buf *in = upstream_in(x);
    size_t used = 0;
    struct str data = {NULL, 0};
    const char *rule = NULL;
    if (x->in_trailers) {
        enum http1_verdict v = http1_parse_trailers(
            buf_data(in), buf_len(in), (size_t)cfg()->max_head, &trailers, &used, &rule);
        if (v == HTTP1_PARTIAL)
            (void)wait_for_server(x);
        else if (v == HTTP1_BAD)
            garbage(x, rule);
        else {
            buf_consume(in, used);
            relay_last(x, &trailers);
        }
        return false;
    }
    enum http1_step step =
        http1_chunks_next(&x->chunks, buf_data(in), buf_len(in), &used, &data, &rule);
    if (step == HTTP1_STEP_BAD) {
        garbage(x, rule);
        return false;
    }
    if (step == HTTP1_DATA && !relay_piece(x, data))
        return false;
    buf_consume(in, used);
    x->in_trailers = step == HTTP1_LAST;
    return step != HTTP1_MORE || wait_for_server(x);
}

/* Moves the answer's body on until the client is full, the server has no more, or it is done. */
static void relay(struct exchange *x)
{
    while (!request_blocked(x->r)) {
        struct buf *in = upstream_in(x);
        if (x->framing == HTTP1_NO_BODY || (x->framing == HTTP1_LENGTH && x->left == 0)) {
            complete(x);
            return;
        }
        if (buf_len(in) == 0) {
            (void)wait_for_server(x);
            return;
        }
        if (x->framing == HTTP1_CHUNKED) {
            if (!relay_chunked(x))
                return;
            continue;
        }
        struct str data = {buf_data(in), buf_len(in)};
        if (x->framing == HTTP1_UNTIL_CLOSE) {
            if (!relay_piece(x, data))
                return;
            buf_consume(in, data.n);
            continue;
        }
        if (data.n > x->left)
            data.n = (size_t)x->left;
        struct iovec v = {(void *)data.p, data.n};
        ssize_t w = request_offer(x->r, &v, 1);
        if (w < 0) {
            client_gone(x);
            return;
        }
        buf_consume(in, (size_t)w);
        x->left -= (uint64_t)w;
        x->r->log.bytes_out += (uint64_t)w;
    }
    /* More would only be copied aside: the server waits until the client has taken what there is.
     */
    stream_read_off(&x->conn->stream);
}

/* Is the body of this answer one to show? Its head takes `used` bytes of `in`. */
static bool shows(const struct exchange *x, const struct http1_head *h, size_t used)
{
    return x->peek && h->status >= 400 && h->framing == HTTP1_LENGTH && h->length <= SHOWN_MAX &&
           used + h->length <= x->conn->stream.in.cap;
}

/* Heads, interim ones first. */
static void read_head(struct exchange *x)
{
    static struct http1_head head;
    struct request *r = x->r;
    struct http1_limits limits = {(size_t)cfg()->max_head, 0};
    for (;;) {
        struct buf *in = upstream_in(x);
        struct http1_fault fault = {END_SERVER_GARBAGE, ""};
        size_t used = 0;
        if (buf_len(in) == 0 || request_blocked(r))
            return; /* a client that takes no interim answers gets no further ones: see drained */
        if (!x->heard) {
            x->heard = true;
            r->log.first = now();
        }
        enum http1_verdict v = http1_parse_response(buf_data(in), buf_len(in), &limits, r->method,
                                                    &head, &used, &fault);
        if (v == HTTP1_PARTIAL)
            return;
        if (v == HTTP1_BAD) {
            garbage(x, fault.rule);
            return;
        }
        bool show = shows(x, &head, used);
        if (show && buf_len(in) - used < head.length)
            return; /* parsed again when more has come */
        x->shown = show ? in->mem + in->head + used : NULL;
        x->shown_n = show ? (size_t)head.length : 0;
        buf_consume(in, used); /* moves nothing: head's slices stay good */
        if (head.status >= 200)
            break;
        if (head.status == 101) {
            garbage(x, "the server switched protocols without being asked");
            return;
        }
        if (!relay_interim(x, &head))
            return;
    }
    x->status = head.status;
    if (!x->wanted(x, head.status)) {
        exchange_cancel(x);
        x->ended(x, END_SERVER_5XX);
        return;
    }
    x->early = !x->body_ended;
    x->server_keeps = head.keep_alive;
    x->relaying = true;
    r->log.status = head.status;
    if (head.framing == HTTP1_CHUNKED)
        http1_chunks_init(&x->chunks);
    if (answer_head(x, &head))
        relay(x);
}

void exchange_drained(struct exchange *x)
{
    if (!x->conn)
        return;
    x->progress = now(); /* the server was waiting for us */
    if (x->relaying)
        relay(x);
    else if (x->heard) {
        stream_read_on(&x->conn->stream);
        read_head(x);
    }
}

/* ---- events ---- */

static void on_conn(struct conn *c, enum stream_event e)
{
    struct exchange *x = c->owner;
    must(x->conn == c);
    switch (e) {
    case STREAM_CONNECTED:
        x->r->log.connected = now();
        stream_read_on(&c->stream);
        send_head(x);
        break;
    case STREAM_READABLE:
        x->progress = now();
        if (x->relaying)
            relay(x);
        else
            read_head(x);
        break;
    case STREAM_WRITABLE:
        if (!x->relaying)
            upload(x);
        break;
    case STREAM_EOF:
        if (x->relaying)
            relay(x);
        else
            exchange_fail(x, END_SERVER_CLOSED,
                          x->heard ? "the server closed the connection within its answer's head"
                                   : "the server closed the connection without an answer");
        break;
    case STREAM_ERROR:
        if (!x->touched)
            exchange_fail(x, END_CONNECT_FAILED, strerror(c->stream.error));
        else if (!c->stream.eof)
            x->upload_dead = true; /* writing failed: reading will say how it ended */
        else if (x->relaying && buf_len(&c->stream.in) > 0)
            relay(x);
        else
            exchange_fail(x, END_SERVER_RESET, strerror(c->stream.error));
        break;
    }
}

void exchange_start(struct exchange *x, bool fresh)
{
    x->sent = x->dropped;
    x->reused = x->touched = x->upload_dead = x->body_ended = x->heard = false;
    x->relaying = x->early = false;
    x->progress = now();
    x->r->log.picked = now();
    x->r->log.first = x->r->log.connected = 0;
    /* A kept connection may be closing just now. A read is then sent again; a write can be sent
     * only once, so it opens its own, which costs 0.1 ms of the 5 ms that Chroma needs for it. */
    if (!fresh && x->r->route.reads)
        x->conn = pool_take(x->node, on_conn, x);
    x->r->log.reused = x->reused = x->conn != NULL;
    if (x->conn) {
        x->r->log.connected = now();
        send_head(x);
        return;
    }
    x->conn = pool_connect(x->node, on_conn, x);
    if (!x->conn)
        exchange_fail(x, stream_own_limit(errno) ? END_OWN_LIMIT : END_CONNECT_FAILED,
                      strerror(errno));
}

bool exchange_connecting(const struct exchange *x)
{
    return x->conn && x->conn->stream.connecting;
}
