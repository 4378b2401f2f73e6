/* fetch.c: owns one curl multi handle, a watcher for each socket that curl names, its one timer,
 * and the calls.
 *
 * Names are resolved by dns.c and handed to curl with CURLOPT_RESOLVE: libcurl's own resolver is a
 * thread for each name, and ending a call waits for it. curl's callbacks only move watchers and
 * collect bytes; a finished call is noted by check_done(), which sets the call's timer to now. That
 * timer, which is also the deadline, is the only place from where callers are called, so they may
 * start, cancel and free whatever they like.
 *
 * What is not GET or HEAD gets a fresh connection: libcurl silently sends a request again when a
 * kept connection turns out to be dead, and a webhook must not be told twice. */
#include "fetch.h"

#include "dns.h"
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

#define CALLS_MAX 1024
#define HEAD_MAX  65536
#define SOCKETS   64 /* open at once; what is more waits inside curl */
#define KEPT      8

struct fetch_socket {
    struct fetch_socket *next, **at; /* at: what points to this one */
    struct fetch *fetch;
    ev_io io;
};

struct fetch {
    struct ev_loop *loop;
    struct dns *dns;
    CURLM *multi;
    ev_timer timer;
    struct fetch_socket *sockets;
    struct fetch_call *calls;
    unsigned count;
};

struct fetch_call {
    struct fetch_call *next, **at;
    struct fetch *fetch;
    CURL *easy;
    struct dns_query *query; /* while the name is being resolved */
    struct curl_slist *headers, *resolve;
    char *host;
    int port;
    bool added; /* easy is in the multi handle */
    bool done;  /* the result stands: error, or a whole answer */
    bool head_done;
    char *error; /* ours to free */
    char curl_error[CURL_ERROR_SIZE];
    struct buf head, body;
    ev_timer timer; /* deadline; once done, the moment to tell */
    void (*cb)(void *arg, const struct fetch_answer *a);
    void *arg;
};

static void call_free(struct fetch_call *c)
{
    struct fetch *f = c->fetch;
    ev_timer_stop(f->loop, &c->timer);
    dns_cancel(c->query);
    if (c->added)
        curl_multi_remove_handle(f->multi, c->easy);
    curl_easy_cleanup(c->easy);
    curl_slist_free_all(c->headers);
    curl_slist_free_all(c->resolve);
    buf_fini(&c->head);
    buf_fini(&c->body);
    free(c->host);
    free(c->error);
    *c->at = c->next;
    if (c->next)
        c->next->at = c->at;
    f->count--;
    free(c);
}

/* The call has its result; `error` (consumed) is NULL for a whole answer. Told in the next turn. */
static void call_done(struct fetch_call *c, char *error)
{
    must(!c->done);
    c->done = true;
    c->error = error;
    ev_timer_stop(c->fetch->loop, &c->timer);
    ev_timer_set(&c->timer, 0., 0.);
    ev_timer_start(c->fetch->loop, &c->timer);
}

static struct str content(const struct buf *b)
{
    return buf_len(b) ? (struct str){buf_data(b), buf_len(b)} : STR("");
}

static void call_due(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct fetch_call *c = container_of(w, struct fetch_call, timer);
    if (!c->done) {
        c->done = true;
        c->error = base_strdup(c->query ? "time-out while resolving the name" : "time-out");
    }
    struct fetch_answer a = {.error = c->error};
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    a.status = (int)status;
    a.head = content(&c->head);
    a.body = content(&c->body);
    /* The call leaves the list before its owner hears of it: fetch_free() in cb is fine then. */
    struct fetch_call keep = *c;
    c->error = NULL;
    buf_init(&c->head, HEAD_MAX);
    buf_init(&c->body, 1);
    call_free(c);
    keep.cb(keep.arg, &a);
    free(keep.error);
    buf_fini(&keep.head);
    buf_fini(&keep.body);
}

/* After every call of curl_multi_socket_action. */
static void check_done(struct fetch *f)
{
    int left;
    CURLMsg *m;
    while ((m = curl_multi_info_read(f->multi, &left))) {
        char *p = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &p);
        struct fetch_call *c = (struct fetch_call *)(void *)p;
        CURLcode code = m->data.result;
        if (c->done) /* an answer too long: said already */
            continue;
        if (code == CURLE_OK)
            call_done(c, NULL);
        else
            call_done(c, base_strdup(*c->curl_error ? c->curl_error : curl_easy_strerror(code)));
    }
}

static void on_io(struct ev_loop *loop, ev_io *w, int revents)
{
    struct fetch_socket *s = container_of(w, struct fetch_socket, io);
    struct fetch *f = s->fetch;
    int running;
    int flags =
        (revents & EV_READ ? CURL_CSELECT_IN : 0) | (revents & EV_WRITE ? CURL_CSELECT_OUT : 0);
    curl_multi_socket_action(f->multi, w->fd, flags, &running); /* may free s */
    check_done(f);
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct fetch *f = container_of(w, struct fetch, timer);
    int running;
    curl_multi_socket_action(f->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    check_done(f);
}

/* CURLMOPT_TIMERFUNCTION: milliseconds, -1 for none. 0 means soon, not now: curl must not be called
 * from here. A fraction more than asked, since curl reads a clock that is ahead of the loop's. */
static int set_timer(CURLM *multi, long ms, void *arg)
{
    struct fetch *f = arg;
    ev_timer_stop(f->loop, &f->timer);
    if (ms >= 0) {
        ev_timer_set(&f->timer, ms > 0 ? (double)ms / 1000. + 0.001 : 0., 0.);
        ev_timer_start(f->loop, &f->timer);
    }
    return 0;
}

static void socket_free(struct fetch_socket *s)
{
    ev_io_stop(s->fetch->loop, &s->io);
    *s->at = s->next;
    if (s->next)
        s->next->at = s->at;
    free(s);
}

/* CURLMOPT_SOCKETFUNCTION; socketp is what curl_multi_assign() gave. */
static int set_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socketp)
{
    struct fetch *f = arg;
    struct fetch_socket *s = socketp;
    if (what == CURL_POLL_REMOVE) {
        if (s)
            socket_free(s);
        return 0;
    }
    if (!s) {
        s = base_zalloc(sizeof *s);
        s->fetch = f;
        s->next = f->sockets;
        s->at = &f->sockets;
        if (s->next)
            s->next->at = &s->next;
        f->sockets = s;
        ev_init(&s->io, on_io);
        curl_multi_assign(f->multi, fd, s);
    }
    ev_io_stop(f->loop, &s->io);
    ev_io_set(&s->io, fd,
              (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0));
    if (what & CURL_POLL_INOUT)
        ev_io_start(f->loop, &s->io);
    return 0;
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct fetch_call *c = arg;
    if (buf_add(&c->body, p, size * n))
        return size * n;
    if (!c->done)
        call_done(c, base_printf("the answer is longer than %u bytes", c->body.cap));
    return 0;
}

/* Interim heads (1xx) are dropped when the next one begins, trailers always. */
static size_t on_head(char *p, size_t size, size_t n, void *arg)
{
    struct fetch_call *c = arg;
    size_t len = size * n;
    if (len > 5 && memcmp(p, "HTTP/", 5) == 0 && !c->head_done)
        buf_clear(&c->head);
    if (c->head_done)
        return len;
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    if (len <= 2 && status >= 200)
        c->head_done = true;
    if (buf_add(&c->head, p, len))
        return len;
    if (!c->done)
        call_done(c, base_printf("the head of the answer is longer than %d bytes", HEAD_MAX));
    return 0;
}

static void call_begin(struct fetch_call *c)
{
    CURLMcode code = curl_multi_add_handle(c->fetch->multi, c->easy);
    c->added = code == CURLM_OK;
    if (!c->added)
        call_done(c, base_strdup(curl_multi_strerror(code)));
}

static void on_dns(void *arg, const struct dns_answer *a)
{
    struct fetch_call *c = arg;
    char line[1024];
    int n;
    bool literal = !c->query; /* answered before dns_resolve() returned */
    c->query = NULL;
    if (a->count == 0) {
        call_done(c, base_printf("can't resolve %.200s: %s", c->host, a->error));
        return;
    }
    if (literal) {
        call_begin(c);
        return;
    }
    /* "+": may age out of curl's cache. */
    n = snprintf(line, sizeof line, "+%.300s:%d:", c->host, c->port);
    for (unsigned i = 0; i < a->count; i++) {
        char addr[DNS_TEXT_MAX];
        dns_text(&a->v[i].addr, addr);
        n += snprintf(line + n, sizeof line - (size_t)n, strchr(addr, ':') ? "%s[%s]" : "%s%s",
                      i ? "," : "", addr);
    }
    c->resolve = curl_slist_append(NULL, line);
    curl_easy_setopt(c->easy, CURLOPT_RESOLVE, c->resolve);
    call_begin(c);
}

/* A field of a head may hold no control byte: it would end the line and begin another. */
static bool clean(const char *s)
{
    for (; *s; s++)
        if (((unsigned char)*s < ' ' && *s != '\t') || *s == 0x7f)
            return false;
    return true;
}

/* A token (RFC 9110 5.6.2). */
static bool token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!((s[i] >= '0' && s[i] <= '9') || ((s[i] | 0x20) >= 'a' && (s[i] | 0x20) <= 'z') ||
              (s[i] && strchr("!#$%&'*+-.^_`|~", s[i]))))
            return false;
    return n > 0;
}

static const char *add_headers(struct fetch_call *c, const char *const *h)
{
    bool type = false;
    for (; h && *h; h++) {
        const char *colon = strchr(*h, ':');
        if (!colon || !clean(*h) || !token(*h, (size_t)(colon - *h)))
            return "a header is not \"Name: value\"";
        struct str name = {*h, (size_t)(colon - *h)};
        type = type || str_eq_nocase(name, STR("content-type"));
        if (colon[1 + strspn(colon + 1, " \t")]) {
            c->headers = curl_slist_append(c->headers, *h);
        } else { /* curl spells an empty value "Name;" ("Name:" would drop the field) */
            char *line = base_printf("%.*s;", (int)name.n, name.p);
            c->headers = curl_slist_append(c->headers, line);
            free(line);
        }
    }
    if (!type) /* no form type that nobody asked for */
        c->headers = curl_slist_append(c->headers, "Content-Type:");
    c->headers = curl_slist_append(c->headers, "Expect:");
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    return NULL;
}

static const char *add_url(struct fetch_call *c, const char *url)
{
    const char *why = "not an http or https URL";
    char *scheme = NULL, *host = NULL, *port = NULL;
    CURLU *u = curl_url();
    if (clean(url) && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
        (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0) && strlen(host) < 256) {
        c->host = base_strdup(host);
        c->port = atoi(port);
        why = NULL;
        for (const char *p = host; *p; p++)
            if ((unsigned char)*p >= 0x80)
                why = "the host name is not ASCII";
        curl_easy_setopt(c->easy, CURLOPT_URL, url);
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return why;
}

static const char *add_method(struct fetch_call *c, const struct fetch_request *r)
{
    const char *m = r->method;
    if (!token(m, strlen(m)))
        return "the method is not a token";
    bool head = strcmp(m, "HEAD") == 0, get = strcmp(m, "GET") == 0;
    bool with_body = strcmp(m, "POST") == 0 || strcmp(m, "PUT") == 0 || strcmp(m, "PATCH") == 0;
    if (head) {
        curl_easy_setopt(c->easy, CURLOPT_NOBODY, 1L);
    } else if (r->body.n > 0 || with_body) {
        curl_easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body.n);
        curl_easy_setopt(c->easy, CURLOPT_COPYPOSTFIELDS, r->body.n ? r->body.p : "");
    }
    if (!head)
        curl_easy_setopt(c->easy, CURLOPT_CUSTOMREQUEST, m);
    if (!get && !head)
        curl_easy_setopt(c->easy, CURLOPT_FRESH_CONNECT, 1L);
    return NULL;
}

static void add_options(struct fetch_call *c)
{
    CURL *e = c->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, (char *)(void *)c);
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(e, CURLOPT_PROXY, ""); /* nor one from the environment */
    curl_easy_setopt(e, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L); /* wait for no thread, should one be used */
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->curl_error);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_head);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, c);
}

struct fetch *fetch_new(struct ev_loop *loop)
{
    const char *error;
    struct fetch *f = base_zalloc(sizeof *f);
    f->loop = loop;
    ev_init(&f->timer, on_timer);
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(f);
        return NULL;
    }
    f->dns = dns_new(loop, "", &error);
    f->multi = f->dns ? curl_multi_init() : NULL;
    if (!f->multi) {
        dns_free(f->dns);
        curl_global_cleanup();
        free(f);
        return NULL;
    }
    curl_multi_setopt(f->multi, CURLMOPT_SOCKETFUNCTION, set_socket);
    curl_multi_setopt(f->multi, CURLMOPT_SOCKETDATA, f);
    curl_multi_setopt(f->multi, CURLMOPT_TIMERFUNCTION, set_timer);
    curl_multi_setopt(f->multi, CURLMOPT_TIMERDATA, f);
    curl_multi_setopt(f->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)SOCKETS);
    curl_multi_setopt(f->multi, CURLMOPT_MAXCONNECTS, (long)KEPT);
    return f;
}

void fetch_free(struct fetch *f)
{
    if (!f)
        return;
    while (f->calls)
        call_free(f->calls);
    curl_multi_cleanup(f->multi);
    while (f->sockets)
        socket_free(f->sockets);
    ev_timer_stop(f->loop, &f->timer);
    dns_free(f->dns);
    curl_global_cleanup();
    free(f);
}

struct fetch_call *fetch_start(struct fetch *f, const struct fetch_request *r,
                               void (*cb)(void *arg, const struct fetch_answer *a), void *arg)
{
    must(r->max_answer > 0 && r->timeout > 0);
    struct fetch_call *c = base_zalloc(sizeof *c);
    c->fetch = f;
    c->cb = cb;
    c->arg = arg;
    buf_init(&c->head, HEAD_MAX);
    buf_init(&c->body, r->max_answer);
    c->next = f->calls;
    c->at = &f->calls;
    if (c->next)
        c->next->at = &c->next;
    f->calls = c;
    f->count++;
    ev_now_update(f->loop);
    ev_timer_init(&c->timer, call_due, r->timeout, 0.);
    ev_timer_start(f->loop, &c->timer);
    c->easy = curl_easy_init();
    if (!c->easy || f->count > CALLS_MAX) {
        call_done(c, base_strdup(c->easy ? "too many requests at once" : "out of memory"));
        return c;
    }
    add_options(c);
    const char *why = add_url(c, r->url);
    if (!why)
        why = add_method(c, r);
    if (!why)
        why = add_headers(c, r->headers);
    if (why)
        call_done(c, base_strdup(why));
    else
        c->query = dns_resolve(f->dns, c->host, c->port, on_dns, c);
    return c;
}

void fetch_cancel(struct fetch_call *c)
{
    if (c)
        call_free(c);
}
