/* session.c: owns client connections and requests. Nobody else changes a session's state; a dead
 * one is parked until the turn of the loop ends. */
#include "session.h"

#include "log.h"
#include "metrics.h"
#include "reply.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { LINGER_SECONDS = 2, FREE_MAX = 512, FREE_TEXT_MAX = 4096 };
enum { BODY_PIECE = 65536, UPLOAD_MAX = 262144 };

enum session_state {
    IDLE,   /* between requests: not a byte of the next one */
    HEAD,   /* part of a head is there */
    BUSY,   /* a request is being handled */
    LINGER, /* the last answer is out: FIN sent, what still comes is thrown away */
    DEAD    /* closed and parked until the turn of the loop ends */
};

struct session {
    struct stream stream;
    struct wheel_entry timer;
    struct session *next, *prev; /* all sessions */
    struct request *request;     /* in BUSY */
    double deadline;             /* of IDLE, HEAD, LINGER */
    double head_start;
    size_t lingering; /* in LINGER: stream_pending() when the deadline was set */
    enum session_state state;
    bool local_only, running, feeding;
    char peer[INET6_ADDRSTRLEN];
};

struct session_shared session_shared;

static struct session all = {.next = &all, .prev = &all};
static struct session *parked; /* DEAD ones, by next */
static ev_prepare reaper;
static struct request *free_requests;
static unsigned free_count;

static const struct config *cfg(void)
{
    return session_shared.cfg;
}

static double now(void)
{
    return base_clock();
}

/* ---- requests: taken and given back ---- */

static struct request *request_new(struct session *s)
{
    struct request *r = free_requests;
    if (r) {
        free_requests = r->next;
        free_count--;
        struct buf text = r->text;
        memset(r, 0, sizeof *r);
        r->text = text;
        buf_clear(&r->text);
    } else {
        r = base_zalloc(sizeof *r);
        buf_init(&r->text, 4u << 20);
    }
    r->s = s;
    gauge_add(ACTIVE, 1);
    return r;
}

static void request_free(struct request *r)
{
    gauge_add(ACTIVE, -1);
    body_fini(&r->body);
    if (r->text.size > FREE_TEXT_MAX)
        buf_fini(&r->text);
    if (free_count >= FREE_MAX) {
        buf_fini(&r->text);
        free(r);
        return;
    }
    r->next = free_requests;
    free_requests = r;
    free_count++;
}

struct str request_client(const struct request *r)
{
    return str_from(r->s->peer);
}

void request_room(struct request *r, size_t n)
{
    must(buf_reserve(&r->text, n) != NULL);
}

/* ---- deadlines: one wheel entry a session, at the nearest of what is waited for ---- */

static double nearest(double a, double b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

static void rearm(struct session *s)
{
    double at = s->deadline;
    if (s->request) {
        const struct request *r = s->request;
        at = nearest(nearest(r->deadline, r->body_deadline), r->send_deadline);
    }
    if (at == 0)
        wheel_clear(&s->timer);
    else
        wheel_set(&s->timer, at);
}

void request_arm(struct request *r, double deadline)
{
    r->deadline = deadline;
    rearm(r->s);
}

/* ---- the end of a session ---- */

static void session_free(struct session *s)
{
    must(!s->request);
    wheel_clear(&s->timer);
    stream_close(&s->stream);
    s->prev->next = s->next;
    s->next->prev = s->prev;
    *(s->local_only ? &session_shared.local_count : &session_shared.count) -= 1;
    gauge_add(CLIENTS, -1);
    s->state = DEAD;
    s->prev = NULL;
    s->next = parked;
    parked = s;
    if (!ev_is_active(&reaper))
        ev_prepare_start(stream_loop(), &reaper);
}

/* Whoever is still in a callback of a dead session may look at its state until here. */
static void reap(struct ev_loop *loop, ev_prepare *w, int revents)
{
    (void)revents;
    while (parked) {
        struct session *s = parked;
        parked = s->next;
        free(s);
    }
    ev_prepare_stop(loop, w);
}

static void linger(struct session *s)
{
    s->state = LINGER;
    s->lingering = stream_pending(&s->stream);
    s->deadline = now() + LINGER_SECONDS;
    if (stream_unsent(&s->stream) == 0)
        stream_finish(&s->stream);
    else
        s->deadline = now() + cfg()->body_timeout;
    buf_clear(&s->stream.in);
    if (s->stream.eof && stream_unsent(&s->stream) == 0) {
        session_free(s);
        return;
    }
    stream_read_on(&s->stream);
    rearm(s);
}

static void session_run(struct session *s);
static bool pump(struct session *s);

static void log_end(struct request *r, enum end_reason why)
{
    metrics_end[why]++;
    metrics_add(BYTES_FROM_CLIENTS, r->body.seen);
    metrics_add(BYTES_TO_CLIENTS, r->log.bytes_out);
    if (r->handler && r->handler != session_shared.local)
        histo_add(&metrics_clients, now() - r->log.head);
    if (!access_on())
        return;
    struct access_record *a = &r->log;
    a->reason = why;
    a->end = now();
    a->client = str_from(r->s->peer);
    a->method = str_from(r->method_text ? r->method_text : "-");
    a->path = r->target;
    a->id = str_from(r->id);
    a->class_name = r->route.name ? route_class_name(r->route.class) : "-";
    a->action = str_from(r->route.action ? r->route.action : "-");
    a->bytes_in = r->body.seen;
    a->detail = r->detail;
    a->instance = str_from(r->instance[0] ? r->instance : "-");
    access_log(a);
}

/* Takes the request off its session and frees it. */
static struct session *detach(struct request *r, enum end_reason why)
{
    struct session *s = r->s;
    log_end(r, why);
    s->request = NULL;
    request_free(r);
    return s;
}

void request_finish(struct request *r, enum end_reason why)
{
    bool keep = !r->must_close && r->body.done && !r->s->stream.eof;
    struct session *s = detach(r, why);
    if (!keep) {
        linger(s);
        return;
    }
    s->state = IDLE;
    s->deadline = now() + cfg()->idle_timeout;
    stream_read_on(&s->stream);
    rearm(s);
    /* Pipelined requests: the loop in session_run goes on if it is what called us. */
    if (!s->running && buf_len(&s->stream.in) > 0)
        session_run(s);
}

void request_break(struct request *r, enum end_reason why)
{
    struct session *s = detach(r, why);
    stream_abort(&s->stream);
    session_free(s);
}

void request_gone(struct request *r)
{
    request_break(r, END_CLIENT_GONE);
}

/* The client's side ended the request: the handler lets go first. */
static void drop_request(struct session *s, enum end_reason why)
{
    struct request *r = s->request;
    r->handler->gone(r);
    request_break(r, why);
}

/* ---- answers ---- */

bool request_keeps(struct request *r)
{
    if (!r->keep_alive || session_shared.stopping || r->s->stream.eof)
        r->must_close = true;
    return !r->must_close;
}

void request_put_common(struct request *r, struct buf *out, const char *instance, bool date)
{
    buf_put_str(out, STR("Via: 1.1 chromux\r\nX-Request-Id: "));
    buf_puts(out, r->id[0] ? r->id : "-");
    buf_put_str(out, STR("\r\nX-Chromux-Instance: "));
    buf_puts(out, instance);
    buf_put(out, "\r\n", 2);
    if (!request_keeps(r))
        buf_put_str(out, STR("Connection: close\r\n"));
    else if (r->minor == 0)
        buf_put_str(out, STR("Connection: keep-alive\r\n"));
    if (date)
        reply_put_date(out, time(NULL)); /* the wall's, whatever is done to it */
}

static void note_sent(struct request *r, bool blocked)
{
    double was = r->send_deadline;
    r->send_deadline = blocked ? now() + cfg()->body_timeout : 0;
    if (blocked)
        r->send_pending = stream_pending(&r->s->stream);
    if (was != 0 || blocked)
        rearm(r->s);
}

bool request_send(struct request *r, const struct iovec *iov, int n)
{
    if (!stream_send(&r->s->stream, iov, n))
        return false;
    note_sent(r, stream_unsent(&r->s->stream) > 0);
    return true;
}

ssize_t request_offer(struct request *r, const struct iovec *iov, int n)
{
    ssize_t w = stream_offer(&r->s->stream, iov, n);
    if (w >= 0)
        note_sent(r, r->s->stream.blocked);
    return w;
}

bool request_blocked(const struct request *r)
{
    return r->s->stream.blocked || stream_unsent(&r->s->stream) > 0;
}

void request_answer(struct request *r, int status, const char *type, struct str body,
                    const char *extra, enum end_reason why)
{
    struct buf head;
    buf_init(&head, 65536);
    /* A body that is still coming can't be told from the next request: the connection ends. */
    if (!r->body.done)
        r->must_close = true;
    buf_printf(&head, "HTTP/1.1 %d %s\r\n", status, http1_reason(status));
    if (body.n || *type)
        buf_printf(&head, "Content-Type: %s\r\n", type);
    buf_printf(&head, "Content-Length: %zu\r\n", body.n);
    if (extra)
        buf_puts(&head, extra);
    request_put_common(r, &head, r->from_instance ? r->instance : "-", true);
    buf_put(&head, "\r\n", 2);
    r->log.status = status;
    bool bodiless = r->method == HTTP1_HEAD;
    r->log.bytes_out = bodiless ? 0 : body.n;
    struct iovec v[2] = {{head.mem, buf_len(&head)}, {(void *)body.p, bodiless ? 0 : body.n}};
    r->answered = true;
    bool ok = request_send(r, v, bodiless || !body.n ? 1 : 2);
    buf_fini(&head);
    if (ok)
        request_finish(r, why);
    else
        request_gone(r);
}

void request_error(struct request *r, enum end_reason why, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    request_refuse(r, why, end_status(why) == 503 ? 1 : 0, text);
}

void request_refuse(struct request *r, enum end_reason why, unsigned retry_after, const char *text)
{
    int status = end_status(why);
    must(status != 0);
    struct buf body;
    buf_init(&body, 16384 + 6 * strlen(text)); /* a byte is at most six of JSON */
    reply_put_error(&body, status, text);
    char extra[256] = "";
    if (retry_after)
        snprintf(extra, sizeof extra, "Retry-After: %u\r\n", retry_after);
    else if (status == 405 && r->route.allow)
        snprintf(extra, sizeof extra, "Allow: %s\r\n", r->route.allow);
    request_answer(r, status, "application/json", (struct str){buf_data(&body), buf_len(&body)},
                   extra, why);
    buf_fini(&body);
}

/* ---- reading: heads ---- */

static void nothing(struct request *r)
{
}
/* For answers that the session gives itself, in the moment between their start and end. */
static const struct handler no_handler = {NULL, nothing, nothing, nothing, nothing};

static void refuse(struct session *s, enum end_reason why, const char *rule)
{
    struct request *r = s->request;
    if (!r) {
        r = s->request = request_new(s);
        r->handler = &no_handler;
        r->minor = 1;
        r->log.start = s->head_start;
        reply_make_id(r->id);
        s->state = BUSY;
        metrics_inc(REQUESTS);
    }
    r->must_close = true;
    request_error(r, why, "%s", rule);
}

static void dispatch(struct session *s, struct request *r, struct http1_head *h)
{
    const struct route *t = &r->route;
    if (r->body.framing == HTTP1_LENGTH && r->body.length > (uint64_t)cfg()->max_body) {
        request_error(r, END_BODY_TOO_BIG,
                      "the request body has %llu bytes, more than MAX_BODY_BYTES (%ld)",
                      (unsigned long long)r->body.length, cfg()->max_body);
        return;
    }
    if (t->class == ROUTE_UNSUPPORTED) {
        request_error(r, t->refusal, "%s", t->why);
        return;
    }
    if (t->class == ROUTE_LOCAL)
        r->handler = session_shared.local;
    else if (s->local_only)
        request_error(r, END_NOT_FOUND, "this port serves only /health, /status and /metrics");
    else
        r->handler = session_shared.journal && t->data && t->class != ROUTE_READ
                         ? session_shared.journal
                         : session_shared.proxy;
    if (s->request == r && r->handler != &no_handler)
        r->handler->start(r, h);
}

/* The head is parsed: makes the request of it. The slices of *h die with this call. */
static void begin(struct session *s, struct http1_head *h, size_t consumed)
{
    struct request *r = request_new(s);
    s->request = r;
    s->state = BUSY;
    s->deadline = 0;
    r->handler = &no_handler;
    r->log.start = s->head_start;
    r->log.head = now();
    metrics_inc(REQUESTS);
    request_room(r, h->target.n + 2 * consumed + 2048);
    const char *at = r->text.mem + r->text.tail;
    buf_put_str(&r->text, h->target);
    r->target = (struct str){at, h->target.n};
    r->path = (struct str){at, h->path.n};
    r->method = h->method;
    r->method_text = http1_method_name(h->method);
    r->minor = h->minor;
    r->keep_alive = h->keep_alive;
    r->expect_continue = h->expect_continue;
    r->te_trailers = h->te_trailers;
    reply_take_id(h, r->id);
    route_match(r->method, r->path, &r->route);
    size_t keep = r->route.reads ? (size_t)cfg()->retry_buffer + BODY_PIECE : UPLOAD_MAX;
    body_init(&r->body, h->framing, h->length, keep);
    buf_consume(&s->stream.in, consumed); /* moves nothing: the slices of *h stay good */
    rearm(s);
    if (!r->body.done) {
        if (buf_len(&s->stream.in) > 0)
            r->expect_continue = false;
        if (!pump(s))
            return;
    }
    dispatch(s, r, h);
}

/* ---- reading: bodies ---- */

/* The body breaks a rule: the handler lets go, and the client is told if that is still possible. */
static void bad_body(struct session *s, enum end_reason why, const char *rule)
{
    struct request *r = s->request;
    r->handler->gone(r);
    if (r->answered)
        request_break(r, why);
    else
        refuse(s, why, rule);
}

/* Moves what is there from the stream into r->body. false: refused, and the request is gone. */
static bool pump(struct session *s)
{
    struct request *r = s->request;
    struct body_limits limits = {(uint64_t)cfg()->max_body, (size_t)cfg()->max_head};
    const char *rule = "";
    enum end_reason bad = body_take(&r->body, &s->stream.in, &limits, &rule);
    if (bad != END_NONE)
        bad_body(s, bad, rule);
    return bad == END_NONE;
}

/* Gives body bytes to the handler as long as there are some and there is room. */
static void feed(struct session *s)
{
    if (s->feeding)
        return;
    s->feeding = true;
    while (s->state == BUSY && !s->request->body.done) {
        struct request *r = s->request;
        uint64_t seen = r->body.seen;
        if (!pump(s))
            break;
        bool waits = buf_room(&r->body.bytes) > 0 && !r->expect_continue;
        if (!r->body.done && r->body.seen == seen) {
            r->body_deadline = !waits             ? 0
                               : r->body_deadline ? r->body_deadline
                                                  : now() + cfg()->body_timeout;
            rearm(s);
            break;
        }
        r->expect_continue = false; /* the client did not wait */
        r->body_deadline = r->body.done || !waits ? 0 : now() + cfg()->body_timeout;
        rearm(s);
        r->handler->more(r);
    }
    s->feeding = false;
}

void request_want_body(struct request *r)
{
    struct session *s = r->s;
    if (r->body.done)
        return;
    if (r->expect_continue && !r->answered) {
        static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
        struct iovec v = {(void *)text, sizeof text - 1};
        if (!stream_send(&s->stream, &v, 1))
            return; /* reading says how it ended */
    }
    r->expect_continue = false;
    stream_read_on(&s->stream);
    feed(s);
}

/* ---- the loop over what is in the buffer ---- */

/* A whole head must fit. */
static uint32_t unread_cap(void)
{
    uint32_t head = (uint32_t)cfg()->max_head + 4096;
    return head > STREAM_BLOCK ? head : STREAM_BLOCK;
}

static void session_run(struct session *s)
{
    static struct http1_head head; /* big; only between parse and start */
    s->running = true;
    while (buf_len(&s->stream.in) > 0) {
        if (s->state == BUSY) {
            feed(s);
            if (s->state == BUSY)
                break;
            continue;
        }
        if (s->state == LINGER) {
            buf_clear(&s->stream.in);
            break;
        }
        if (stream_unsent(&s->stream) > STREAM_BLOCK)
            break; /* answers first: WRITABLE comes back here */
        if (s->state == IDLE) {
            s->state = HEAD;
            if (s->stream.in.cap < unread_cap())
                s->stream.in.cap = unread_cap(); /* a reload raised it */
            s->head_start = now();
            s->deadline = now() + cfg()->head_timeout;
        }
        struct http1_limits limits = {(size_t)cfg()->max_head, (size_t)cfg()->max_uri};
        struct http1_fault fault = {END_BAD_REQUEST, ""};
        size_t used = 0;
        enum http1_verdict v = http1_parse_request(buf_data(&s->stream.in), buf_len(&s->stream.in),
                                                   &limits, &head, &used, &fault);
        if (v == HTTP1_PARTIAL) {
            rearm(s);
            break;
        }
        if (v == HTTP1_BAD) {
            refuse(s, fault.end, fault.rule);
            break;
        }
        begin(s, &head, used);
    }
    s->running = false;
    if (s->state != DEAD && s->state != LINGER)
        stream_read_on(&s->stream);
}

/* ---- events ---- */

static void on_event(struct stream *st, enum stream_event e)
{
    struct session *s = container_of(st, struct session, stream);
    switch (e) {
    case STREAM_READABLE:
        session_run(s);
        break;
    case STREAM_WRITABLE:
        if (s->state == BUSY) {
            s->request->send_deadline = 0;
            s->request->handler->drained(s->request);
        } else if (s->state == LINGER) {
            linger(s);
        } else {
            session_run(s);
        }
        break;
    case STREAM_EOF:
    case STREAM_ERROR:
        if (s->state == BUSY)
            drop_request(s, END_CLIENT_GONE);
        else if (e == STREAM_EOF && stream_unsent(st) > 0)
            linger(s); /* it may still read the end of its answer */
        else
            session_free(s);
        break;
    case STREAM_CONNECTED:
        break;
    }
}

static void on_deadline(struct wheel_entry *w)
{
    struct session *s = container_of(w, struct session, timer);
    struct request *r = s->request;
    double t = now();
    if (!r) {
        if (s->state == HEAD) {
            refuse(s, END_CLIENT_SLOW_HEAD, "the request head did not arrive within HEAD_TIMEOUT");
        } else if (s->state == IDLE && stream_unsent(&s->stream) > 0) {
            linger(s); /* the end of an answer still waits for a slow reader */
        } else if (s->state == LINGER && stream_pending(&s->stream) < s->lingering) {
            s->lingering = stream_pending(&s->stream);
            s->deadline = t + cfg()->body_timeout; /* slow, but it reads its answer */
            rearm(s);
        } else {
            if (s->state == LINGER)
                stream_abort(&s->stream);
            session_free(s);
        }
    } else if (r->send_deadline != 0 && t >= r->send_deadline) {
        /* Writable again means a third of the socket's buffer: a slow client reads long before. */
        if (stream_pending(&s->stream) < r->send_pending)
            note_sent(r, true);
        else
            drop_request(s, END_CLIENT_SLOW_READ);
    } else if (r->body_deadline != 0 && t >= r->body_deadline) {
        bad_body(s, END_CLIENT_SLOW_BODY, "the request body did not arrive within BODY_TIMEOUT");
    } else if (r->deadline != 0 && t >= r->deadline) {
        r->deadline = 0;
        rearm(s);
        r->handler->late(r);
    } else {
        rearm(s);
    }
}

void session_start(int fd, const struct sockaddr *peer, bool local_only)
{
    struct session *s = base_zalloc(sizeof *s);
    stream_open(&s->stream, fd, unread_cap(), on_event);
    const void *ip = &((const struct sockaddr_in *)peer)->sin_addr;
    if (peer->sa_family == AF_INET6)
        ip = &((const struct sockaddr_in6 *)peer)->sin6_addr;
    inet_ntop(peer->sa_family == AF_INET6 ? AF_INET6 : AF_INET, ip, s->peer, sizeof s->peer);
    s->local_only = local_only;
    s->next = all.next;
    s->prev = &all;
    all.next->prev = s;
    all.next = s;
    if (!reaper.cb)
        ev_prepare_init(&reaper, reap);
    *(local_only ? &session_shared.local_count : &session_shared.count) += 1;
    metrics_inc(CONNECTIONS);
    gauge_add(CLIENTS, 1);
    wheel_init(&s->timer, on_deadline);
    s->deadline = now() + cfg()->idle_timeout;
    rearm(s);
    stream_read_on(&s->stream);
}

/* A request that is already in the socket is still served. */
static bool has_input(const struct session *s)
{
    char c;
    return recv(s->stream.fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

void session_drain_all(void)
{
    session_shared.stopping = true;
    for (struct session *s = all.next, *next; s != &all; s = next) {
        next = s->next;
        if (s->state == IDLE && !has_input(s))
            session_free(s);
    }
}

void session_kill_all(void)
{
    while (all.next != &all) {
        struct session *s = all.next;
        if (s->state == BUSY)
            drop_request(s, END_STOPPED);
        else
            session_free(s);
    }
    if (reaper.cb)
        reap(stream_loop(), &reaper, 0);
    while (free_requests) {
        struct request *r = free_requests;
        free_requests = r->next;
        buf_fini(&r->text);
        free(r);
    }
    free_count = 0;
}
