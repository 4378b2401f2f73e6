/* courier.c: a call owns its connection from the first byte to its ending; what it sends and what
 * it has read lie in it. A sentinel owns a stream of its own, which the pool does not know. */
#include "courier.h"

#include "fault.h"
#include "http1.h"
#include "log.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { OBSERVERS_MAX = 4, SENTINEL_CAP = 4096 };

/* Seconds. A sentinel that lived less than SHORT_LIFE counts as another failed attempt. */
#define PAUSE_LEAST 0.05
#define PAUSE_MOST  1.0
#define SHORT_LIFE  1.0
/* Seconds between the kernel's probes of a silent sentinel, and how many may be lost: a server
 * whose machine died is noticed when the machine is back, one that is cut off keeps its life. */
#define PROBE_EVERY 10
#define PROBES_LOST 127

struct courier_call {
    struct courier_call *next, *prev;
    void (*ended)(void *arg, struct courier_call *c);
    void *arg;
    struct node *node; /* held */
    struct conn *conn;
    ev_timer timer; /* the connect's end; an ending that is due in the next turn */
    struct buf request;
    struct str body;
    size_t sent; /* of request and body */
    uint64_t incarnation;
    double began; /* loop time of the first write */
    int write_error;
    bool fenced, starting, over;
    bool touched, body_complete, upload_dead, answering, in_trailers, server_keeps;
    enum http1_method method;
    enum http1_framing framing;
    uint64_t left;
    struct http1_chunks chunks;
    struct buf head, answer;
    char error[96];
    struct courier_result result;
};

struct sentinel {
    struct node *node;
    struct stream stream;
    ev_timer timer; /* telling and connecting again; while connecting: its end */
    uint64_t incarnation, last, told;
    unsigned addr_changes;
    double pause, since;
};

static const struct config *cfg;
static double fence;
static struct courier_call calls = {.next = &calls, .prev = &calls};
static courier_observer *observers[OBSERVERS_MAX];
static unsigned observer_count;

static const char *const end_names[] = {
#define X(upper, lower) #lower,
    COURIER_ENDS(X)
#undef X
};

const char *courier_end_name(enum courier_end e)
{
    return end_names[e];
}

static double now(void)
{
    return base_clock();
}

void courier_fence_set(double boottime)
{
    fence = boottime;
}

double courier_boottime(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void timer_set(ev_timer *t, double seconds)
{
    ev_timer_stop(stream_loop(), t);
    ev_timer_set(t, seconds, 0);
    ev_timer_start(stream_loop(), t);
}

/* ---- sentinels ---- */

/* Its connection is over: the rest, telling included, is the next turn's. */
static void sentinel_end(struct sentinel *s)
{
    bool lived = s->incarnation != 0;
    stream_close(&s->stream);
    s->incarnation = 0;
    if (lived && now() - s->since >= SHORT_LIFE)
        s->pause = 0;
    else
        s->pause = s->pause == 0               ? PAUSE_LEAST
                   : s->pause * 2 < PAUSE_MOST ? s->pause * 2
                                               : PAUSE_MOST;
    timer_set(&s->timer, s->told ? 0 : s->pause);
}

/* Asks the socket itself, as the loop may not have come to it yet. What the server said unasked is
 * thrown away: it must not hide the end behind it. */
static void sentinel_look(struct node *n)
{
    struct sentinel *s = n->courier;
    char bytes[SENTINEL_CAP];
    if (!s || s->incarnation == 0)
        return;
    ssize_t got;
    do
        got = recv(s->stream.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    while (got > 0 || (got < 0 && errno == EINTR));
    if (s->addr_changes != n->addr_changes || got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        sentinel_end(s);
}

static void sentinel_event(struct stream *st, enum stream_event e)
{
    struct sentinel *s = container_of(st, struct sentinel, stream);
    int on = 1, every = PROBE_EVERY, lost = PROBES_LOST;
    switch (e) {
    case STREAM_CONNECTED:
        setsockopt(st->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        setsockopt(st->fd, IPPROTO_TCP, TCP_KEEPIDLE, &every, sizeof every);
        setsockopt(st->fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
        setsockopt(st->fd, IPPROTO_TCP, TCP_KEEPCNT, &lost, sizeof lost);
        stream_read_on(st);
        s->incarnation = ++s->last;
        s->since = now();
        timer_set(&s->timer, 0);
        break;
    case STREAM_READABLE:
        buf_clear(&st->in);
        break;
    case STREAM_EOF:
    case STREAM_ERROR:
        sentinel_end(s);
        break;
    case STREAM_WRITABLE:
        break;
    }
}

static void sentinel_connect(struct sentinel *s)
{
    struct node *n = s->node;
    s->addr_changes = n->addr_changes;
    if (n->addr_len == 0 || !stream_connect(&s->stream, (struct sockaddr *)&n->addr, n->addr_len,
                                            SENTINEL_CAP, sentinel_event))
        sentinel_end(s);
    else
        timer_set(&s->timer, cfg->connect_timeout);
}

static void sentinel_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    struct sentinel *s = container_of(w, struct sentinel, timer);
    struct node *n = s->node;
    if (s->told != s->incarnation) {
        s->told = s->incarnation;
        log_info("incarnation", "instance=%s number=%llu", n->name,
                 (unsigned long long)s->incarnation);
        if (s->incarnation == 0 && !n->removed)
            timer_set(&s->timer, s->pause);
        for (unsigned i = 0; i < observer_count; i++)
            observers[i](n, s->told);
        return;
    }
    if (stream_is_open(&s->stream)) {
        if (s->stream.connecting)
            sentinel_end(s);
        return;
    }
    if (!n->removed)
        sentinel_connect(s);
}

static void sentinel_new(struct node *n)
{
    struct sentinel *s = base_zalloc(sizeof *s);
    s->node = n;
    s->stream.fd = -1;
    ev_init(&s->timer, sentinel_timer);
    n->courier = s;
    timer_set(&s->timer, 0);
}

static void sentinel_free(struct node *n)
{
    struct sentinel *s = n->courier;
    if (!s)
        return;
    stream_close(&s->stream);
    ev_timer_stop(stream_loop(), &s->timer);
    free(s);
    n->courier = NULL;
}

uint64_t courier_incarnation(const struct node *n)
{
    const struct sentinel *s = n->courier;
    return s ? s->incarnation : 0;
}

uint64_t courier_look(struct node *n)
{
    sentinel_look(n);
    return courier_incarnation(n);
}

void courier_observe(courier_observer *fn)
{
    must(observer_count < OBSERVERS_MAX);
    observers[observer_count++] = fn;
}

/* ---- endings ---- */

/* What a call holds while it is under way. */
static void let_go(struct courier_call *c)
{
    ev_timer_stop(stream_loop(), &c->timer);
    if (c->conn)
        pool_drop(&c->conn);
    pool_leave(c->node);
    buf_fini(&c->request);
    c->body = (struct str){NULL, 0};
    c->over = true;
}

static void finish_how(struct courier_call *c, enum courier_end end, const char *error, bool later)
{
    must(!c->over);
    if (end != COURIER_ANSWER && end != COURIER_FENCED)
        c->node->failures++;
    snprintf(c->error, sizeof c->error, "%s", error);
    c->result.end = end;
    c->result.body = (struct str){buf_data(&c->answer), buf_len(&c->answer)};
    let_go(c);
    if (later)
        timer_set(&c->timer, 0);
    else
        c->ended(c->arg, c);
}

/* Nothing of c is touched after it. */
static void finish(struct courier_call *c, enum courier_end end, const char *error)
{
    finish_how(c, end, error, c->starting);
}

static void garbage(struct courier_call *c, const char *rule)
{
    finish(c, COURIER_GARBAGE, rule);
}

/* The connection is at its end. error: an errno, 0 for FIN. A reset that writing met is FIN to
 * reading. */
static void lost(struct courier_call *c, int error)
{
    if (error == 0)
        error = c->write_error;
    bool by_peer = error == 0 || error == ECONNRESET || error == EPIPE;
    const char *text = error ? strerror(error) : "the server closed the connection";
    if (!c->touched) {
        finish(c, COURIER_NOT_SENT, text);
        return;
    }
    if (by_peer)
        sentinel_look(c->node);
    finish(c, by_peer ? COURIER_PEER_CLOSED : COURIER_BROKEN, text);
}

static void complete(struct courier_call *c)
{
    if (c->server_keeps && c->body_complete && c->framing != HTTP1_UNTIL_CLOSE &&
        buf_len(&c->conn->stream.in) == 0)
        pool_give(&c->conn);
    finish(c, COURIER_ANSWER, "");
}

/* ---- the request's way up ---- */

/* The socket takes no more. What the server said before may still be on its way. */
static void upload_died(struct courier_call *c)
{
    c->write_error = c->conn->stream.error;
    c->upload_dead = true;
    if (!c->touched)
        finish(c, COURIER_NOT_SENT, strerror(c->write_error));
}

/* Gives the socket what is to be sent up to there. true: it took all of that; false: it takes no
 * more now, or the call is over, and may be gone. */
static bool upload_to(struct courier_call *c, size_t end)
{
    size_t head = buf_len(&c->request), at = c->sent;
    struct iovec v[2] = {{NULL, 0}, {NULL, 0}};
    int n = 0;
    if (at < head) {
        size_t till = end < head ? end : head;
        v[n++] = (struct iovec){(void *)(buf_data(&c->request) + at), till - at};
        at = till;
    }
    if (at < end)
        v[n++] = (struct iovec){(void *)(c->body.p + (at - head)), end - at};
    if (c->fenced && courier_boottime() >= fence) {
        stream_abort(&c->conn->stream);
        finish(c, COURIER_FENCED, "the lease has run out");
        return false;
    }
    if (c->fenced)
        fault_at("send.after_lease_check");
    ssize_t w = stream_offer(&c->conn->stream, v, n);
    if (w < 0) {
        upload_died(c);
        return false;
    }
    c->touched = c->touched || w > 0;
    c->sent += (size_t)w;
    c->body_complete = c->sent == head + c->body.n;
    return c->sent == end;
}

static void upload(struct courier_call *c)
{
    size_t all = buf_len(&c->request) + c->body.n;
    if (c->upload_dead || c->body_complete)
        return;
#ifdef CHROMUX_FAULTS /* the last byte goes alone, after a look at the clock of its own */
    if (c->fenced && c->sent + 1 < all && !upload_to(c, all - 1))
        return;
    if (c->fenced)
        fault_at("send.before_last_byte");
#endif
    upload_to(c, all);
}

static void start_upload(struct courier_call *c)
{
    sentinel_look(c->node);
    if (c->incarnation && c->incarnation != courier_incarnation(c->node)) {
        finish(c, COURIER_NOT_SENT, "the server is not the one it was");
        return;
    }
    c->node->requests++;
    c->began = now();
    upload(c);
}

/* ---- the answer's way down ---- */

static void note_answer(struct courier_call *c, int status)
{
    struct node *n = c->node;
    n->answers[status / 100 <= 5 ? status / 100 : 0]++;
    histo_add(&n->latency, now() - c->began);
    fleet_note_latency(n, now() - c->began, now());
}

/* false: the call has ended, or there is no final head yet. */
static bool read_head(struct courier_call *c)
{
    static struct http1_head head;
    struct buf *in = &c->conn->stream.in;
    struct http1_limits limits = {(size_t)cfg->max_head, 0};
    struct http1_fault fault = {END_SERVER_GARBAGE, ""};
    const char *raw;
    size_t used = 0;
    do {
        raw = buf_data(in);
        if (buf_len(in) == 0)
            return false;
        enum http1_verdict v =
            http1_parse_response(raw, buf_len(in), &limits, c->method, &head, &used, &fault);
        if (v == HTTP1_PARTIAL)
            return false;
        if (v == HTTP1_BAD) {
            garbage(c, fault.rule);
            return false;
        }
        buf_consume(in, used); /* moves nothing: head's slices stay good */
        if (head.status == 101) {
            garbage(c, "the server switched protocols without being asked");
            return false;
        }
    } while (head.status < 200);
    buf_init(&c->head, used);
    buf_put(&c->head, raw, used);
    c->result.head = (struct str){buf_data(&c->head), used};
    c->result.status = head.status;
    const struct http1_field *type = http1_find(&head, HTTP1_CONTENT_TYPE);
    if (type)
        c->result.type = (struct str){buf_data(&c->head) + (type->value.p - raw), type->value.n};
    c->framing = head.framing;
    c->left = head.framing == HTTP1_LENGTH ? head.length : 0;
    c->server_keeps = head.keep_alive;
    c->answering = true;
    http1_chunks_init(&c->chunks);
    note_answer(c, head.status);
    if (c->left > c->answer.cap) {
        garbage(c, "the answer is larger than allowed");
        return false;
    }
    return true;
}

/* false: the call has ended. */
static bool collect(struct courier_call *c, struct str data)
{
    if (buf_add(&c->answer, data.p, data.n))
        return true;
    garbage(c, "the answer is larger than allowed");
    return false;
}

/* One step of a chunked answer. false: stop, c may be gone. */
static bool read_chunked(struct courier_call *c)
{
    static struct http1_head trailers;
    struct buf *in = &c->conn->stream.in;
    size_t used = 0;
    struct str data = {NULL, 0};
    const char *rule = NULL;
    if (c->in_trailers) {
        enum http1_verdict v = http1_parse_trailers(buf_data(in), buf_len(in),
                                                    (size_t)cfg->max_head, &trailers, &used, &rule);
        if (v == HTTP1_BAD)
            garbage(c, rule);
        else if (v == HTTP1_OK) {
            buf_consume(in, used);
            complete(c);
        }
        return false;
    }
    enum http1_step step =
        http1_chunks_next(&c->chunks, buf_data(in), buf_len(in), &used, &data, &rule);
    if (step == HTTP1_STEP_BAD) {
        garbage(c, rule);
        return false;
    }
    if (step == HTTP1_DATA && !collect(c, data))
        return false;
    buf_consume(in, used);
    c->in_trailers = step == HTTP1_LAST;
    return step != HTTP1_MORE;
}

static void read_answer(struct courier_call *c)
{
    if (!c->answering && !read_head(c))
        return;
    for (;;) {
        struct buf *in = &c->conn->stream.in;
        if (c->framing == HTTP1_NO_BODY || (c->framing == HTTP1_LENGTH && c->left == 0)) {
            complete(c);
            return;
        }
        if (buf_len(in) == 0)
            break;
        if (c->framing == HTTP1_CHUNKED) {
            if (!read_chunked(c))
                break;
            continue;
        }
        struct str data = {buf_data(in), buf_len(in)};
        if (c->framing == HTTP1_LENGTH && data.n > c->left)
            data.n = (size_t)c->left;
        if (!collect(c, data))
            return;
        buf_consume(in, data.n);
        if (c->framing == HTTP1_LENGTH)
            c->left -= data.n;
    }
}

/* ---- events ---- */

static void on_conn(struct conn *conn, enum stream_event e)
{
    struct courier_call *c = conn->owner;
    must(c->conn == conn);
    switch (e) {
    case STREAM_CONNECTED:
        ev_timer_stop(stream_loop(), &c->timer);
        stream_read_on(&conn->stream);
        start_upload(c);
        break;
    case STREAM_READABLE:
        read_answer(c);
        break;
    case STREAM_WRITABLE:
        upload(c);
        break;
    case STREAM_EOF:
        if (c->answering && c->framing == HTTP1_UNTIL_CLOSE && c->write_error == 0)
            complete(c);
        else
            lost(c, 0);
        break;
    case STREAM_ERROR:
        lost(c, conn->stream.error);
        break;
    }
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    (void)loop;
    (void)revents;
    struct courier_call *c = container_of(w, struct courier_call, timer);
    if (c->over)
        c->ended(c->arg, c);
    else
        finish(c, COURIER_NOT_SENT, "no connection within CONNECT_TIMEOUT");
}

/* A kept connection that the server has not closed as far as the kernel knows, or NULL. */
static struct conn *take_kept(struct courier_call *c)
{
    char byte;
    for (;;) {
        struct conn *conn = pool_take(c->node, on_conn, c);
        if (!conn || (recv(conn->stream.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
                      (errno == EAGAIN || errno == EWOULDBLOCK)))
            return conn;
        pool_drop(&conn);
    }
}

static void write_head(struct courier_call *c, const struct courier_request *r)
{
    const char *host = r->node->host;
    bool v6 = strchr(host, ':') != NULL;
    struct buf *b = &c->request;
    must(r->fields.n <= COURIER_FIELDS_MAX);
    buf_init(b, 4096 + strlen(r->method) + r->target.n + strlen(host) + r->fields.n +
                    (r->type ? strlen(r->type) : 0) + (r->request_id ? strlen(r->request_id) : 0));
    buf_printf(b, "%s ", r->method);
    buf_put_str(b, r->target);
    buf_printf(b,
               " HTTP/1.1\r\nHost: %s%s%s:%d\r\nUser-Agent: chromux-journal\r\n"
               "Content-Length: %zu\r\n",
               v6 ? "[" : "", host, v6 ? "]" : "", r->node->port, r->body.n);
    if (r->type)
        buf_printf(b, "Content-Type: %s\r\n", r->type);
    if (r->request_id)
        buf_printf(b, "X-Request-Id: %s\r\n", r->request_id);
    buf_put_str(b, r->fields);
    buf_puts(b, "\r\n");
}

struct courier_call *courier_send(const struct courier_request *r,
                                  void (*ended)(void *arg, struct courier_call *c), void *arg)
{
    must(cfg);
    struct courier_call *c = base_zalloc(sizeof *c);
    c->ended = ended;
    c->arg = arg;
    c->node = r->node;
    fleet_hold(c->node);
    c->node->inflight++;
    c->next = &calls;
    c->prev = calls.prev;
    c->prev->next = c->next->prev = c;
    ev_init(&c->timer, on_timer);
    write_head(c, r);
    c->body = r->body;
    c->incarnation = r->incarnation;
    c->fenced = r->fenced;
    c->method = strcmp(r->method, "HEAD") == 0 ? HTTP1_HEAD : HTTP1_METHOD_OTHER;
    buf_init(&c->answer, r->max_answer);
    c->result.error = c->error;

    c->starting = true;
    if (!r->fresh && !r->node->removed)
        c->conn = take_kept(c);
    if (c->conn) {
        start_upload(c);
    } else if (r->node->removed || r->node->addr_len == 0) {
        finish(c, COURIER_NOT_SENT,
               r->node->removed ? "the instance was removed" : "its name is not resolved");
    } else if (!(c->conn = pool_connect(r->node, on_conn, c))) {
        finish(c, COURIER_NOT_SENT, strerror(errno));
    } else {
        timer_set(&c->timer, cfg->connect_timeout);
    }
    c->starting = false;
    return c;
}

bool courier_touched(const struct courier_call *c)
{
    return c->touched;
}

bool courier_body_complete(const struct courier_call *c)
{
    return c->body_complete;
}

const struct courier_result *courier_result(const struct courier_call *c)
{
    must(c->over);
    return &c->result;
}

void courier_close(struct courier_call **cp)
{
    struct courier_call *c = *cp;
    *cp = NULL;
    c->prev->next = c->next;
    c->next->prev = c->prev;
    if (!c->over) {
        struct stream *s = c->conn ? &c->conn->stream : NULL;
        if (s && c->touched && (!c->body_complete || stream_pending(s) > 0))
            stream_abort(s);
        let_go(c);
    }
    ev_timer_stop(stream_loop(), &c->timer);
    fleet_release(&c->node);
    buf_fini(&c->head);
    buf_fini(&c->answer);
    free(c);
}

void courier_retire(struct node *n)
{
    struct sentinel *s = n->courier;
    must(n->removed);
    if (s)
        sentinel_end(s);
    for (struct courier_call *c = calls.next; c != &calls; c = c->next)
        if (!c->over && c->node == n && !c->touched)
            finish_how(c, COURIER_NOT_SENT, "the instance was removed", true);
}

static void on_membership(struct node *n, bool joins)
{
    if (!joins)
        sentinel_free(n);
    else if (cfg)
        sentinel_new(n);
}

void courier_start(const struct config *c)
{
    static bool watching;
    must(!cfg);
    cfg = c;
    fence = 0;
    if (!watching)
        fleet_observe_membership(on_membership);
    watching = true;
    for (unsigned i = 0; i < fleet_count; i++)
        sentinel_new(fleet_node[i]);
}

void courier_reload(const struct config *c)
{
    if (cfg)
        cfg = c;
}

void courier_stop(void)
{
    if (!cfg)
        return;
    must(calls.next == &calls);
    for (unsigned i = 0; i < fleet_count; i++)
        sentinel_free(fleet_node[i]);
    cfg = NULL;
}

bool courier_started(void)
{
    return cfg != NULL;
}
