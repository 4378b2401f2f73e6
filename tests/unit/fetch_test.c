/* fetch_test.c: fetch against the scripted server of webpeer.h, on the same loop. */
#include "fetch.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>

#include <cmocka.h>

#include "webpeer.h"

static struct ev_loop *loop;
static struct fetch *fetch;
static struct webpeer peer;

struct seen {
    unsigned calls;
    int status;
    char error[512], head[4096], body[8192];
    size_t body_n;
};

static void note(void *arg, const struct fetch_answer *a)
{
    struct seen *s = arg;
    s->calls++;
    s->status = a->status;
    snprintf(s->error, sizeof s->error, "%s", a->error ? a->error : "");
    snprintf(s->head, sizeof s->head, "%.*s", (int)a->head.n, a->head.p);
    s->body_n = a->body.n;
    snprintf(s->body, sizeof s->body, "%.*s", (int)a->body.n, a->body.p);
}

static void give_up(struct ev_loop *l, ev_timer *w, int revents)
{
    ev_break(l, EVBREAK_ALL);
}

/* Turns the loop until *count has reached `wanted`, at most so many seconds. */
static void run_until(const unsigned *count, unsigned wanted, double seconds)
{
    ev_timer t;
    ev_now_update(loop);
    ev_timer_init(&t, give_up, seconds, 0.);
    ev_timer_start(loop, &t);
    while (*count < wanted && ev_is_active(&t))
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &t);
}

static char url_text[256];

static const char *url(const char *path)
{
    snprintf(url_text, sizeof url_text, "http://127.0.0.1:%d%s", peer.port, path);
    return url_text;
}

static struct fetch_request get(const char *path)
{
    return (struct fetch_request){
        .method = "GET", .url = url(path), .timeout = 5, .max_answer = 1 << 20};
}

static struct seen *run(const struct fetch_request *r)
{
    static struct seen s;
    s = (struct seen){0};
    assert_non_null(fetch_start(fetch, r, note, &s));
    assert_int_equal(s.calls, 0);
    run_until(&s.calls, 1, 10);
    assert_int_equal(s.calls, 1);
    return &s;
}

static int start(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    loop = ev_loop_new(EVFLAG_AUTO);
    fetch = fetch_new(loop);
    return fetch && webpeer_start(&peer, loop) ? 0 : -1;
}

static int stop(void **state)
{
    fetch_free(fetch);
    webpeer_stop(&peer);
    ev_loop_destroy(loop);
    return 0;
}

static void get_brings_status_head_and_body(void **state)
{
    struct fetch_request r = get("/echo");
    struct seen *s = run(&r);
    assert_string_equal(s->error, "");
    assert_int_equal(s->status, 200);
    assert_memory_equal(s->head, "HTTP/1.1 200", 12);
    assert_non_null(strstr(s->head, "X-Peer: Yes\r\n"));
    assert_memory_equal(s->body, "GET /echo HTTP/1.1\r\n", 20);
}

static void post_sends_headers_and_bytes_as_they_are(void **state)
{
    static const char *const headers[] = {"X-One: 1", "X-Empty:", "Content-Type: text/x", NULL};
    struct fetch_request r = get("/echo");
    r.method = "POST";
    r.headers = headers;
    r.body = (struct str){"a\0b\r\n", 5};
    struct seen *s = run(&r);
    assert_int_equal(s->status, 200);
    assert_non_null(strstr(s->body, "\r\nX-One: 1\r\n"));
    assert_non_null(strstr(s->body, "\r\nX-Empty:\r\n"));
    assert_non_null(strstr(s->body, "\r\nContent-Type: text/x\r\n"));
    assert_non_null(strstr(s->body, "\r\nContent-Length: 5\r\n"));
    assert_null(strstr(s->body, "Expect:"));
    assert_memory_equal(peer.last + peer.last_n - 5, "a\0b\r\n", 5);
}

static void no_content_type_that_nobody_gave(void **state)
{
    struct fetch_request r = get("/echo");
    r.method = "POST";
    assert_int_equal(run(&r)->status, 200);
    assert_null(strstr(peer.last, "Content-Type"));
    assert_non_null(strstr(peer.last, "Content-Length: 0\r\n"));
}

static void methods_are_sent_as_given(void **state)
{
    struct fetch_request r = get("/echo");
    r.method = "DELETE";
    assert_int_equal(run(&r)->status, 200);
    assert_memory_equal(peer.last, "DELETE /echo ", 13);
    r.method = "HEAD";
    struct seen *s = run(&r);
    assert_string_equal(s->error, "");
    assert_int_equal(s->status, 200);
    assert_int_equal(s->body_n, 0);
    assert_memory_equal(peer.last, "HEAD /echo ", 11);
}

static void chunks_are_joined_and_interim_heads_dropped(void **state)
{
    struct fetch_request r = get("/chunked");
    struct seen *s = run(&r);
    assert_string_equal(s->error, "");
    assert_int_equal(s->status, 201);
    assert_string_equal(s->body, "abcdefg");
    assert_null(strstr(s->head, "X-Early"));
    assert_null(strstr(s->head, "X-Trailer"));
}

static void redirects_are_not_followed(void **state)
{
    struct fetch_request r = get("/redirect");
    assert_int_equal(run(&r)->status, 302);
    assert_int_equal(peer.requests, 1);
}

static void proxy_of_the_environment_is_not_used(void **state)
{
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
    struct fetch_request r = get("/echo");
    assert_int_equal(run(&r)->status, 200);
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
}

static void names_are_resolved(void **state)
{
    struct fetch_request r = get("/echo");
    snprintf(url_text, sizeof url_text, "http://localhost:%d/echo", peer.port);
    assert_int_equal(run(&r)->status, 200);
    snprintf(url_text, sizeof url_text, "http://a..b:%d/echo", peer.port);
    struct seen *s = run(&r);
    assert_int_equal(s->status, 0);
    assert_non_null(strstr(s->error, "can't resolve a..b"));
}

static void broken_answers_are_errors(void **state)
{
    static const char *const paths[] = {"/half", "/reset", "/garbage", "/bighead"};
    for (unsigned i = 0; i < COUNT_OF(paths); i++) {
        struct fetch_request r = get(paths[i]);
        r.method = "POST";
        peer.requests = 0;
        struct seen *s = run(&r);
        assert_string_not_equal(s->error, "");
        assert_int_equal(peer.requests, 1); /* never sent twice */
    }
}

static void nobody_there_is_an_error(void **state)
{
    struct fetch_request r = get("/");
    ev_io_stop(loop, &peer.io);
    close(peer.fd);
    struct seen *s = run(&r);
    peer.fd = dup(2);
    assert_int_equal(s->status, 0);
    assert_string_not_equal(s->error, "");
}

static void silence_ends_at_the_timeout(void **state)
{
    struct fetch_request r = get("/silent");
    r.timeout = 0.3;
    double t = ev_time();
    struct seen *s = run(&r);
    assert_string_equal(s->error, "time-out");
    t = ev_time() - t;
    assert_true(t > 0.25 && t < 2);
}

static void long_answers_are_cut_off(void **state)
{
    struct fetch_request r = get("/echo");
    r.max_answer = 10;
    struct seen *s = run(&r);
    assert_string_equal(s->error, "the answer is longer than 10 bytes");
    r.max_answer = 1 << 20;
    assert_int_equal(run(&r)->status, 200);
}

static void bad_input_is_refused_unsent(void **state)
{
    static const char *const bad_header[] = {"X-A: 1\r\nX-B: 2", NULL};
    static const char *const no_colon[] = {"X-A", NULL};
    struct fetch_request r[] = {get("/echo"), get("/echo"), get("/echo"), get("/echo"),
                                get("/echo"), get("/echo"), get("/echo")};
    r[0].method = "GET / HTTP/1.1\r\nX: ";
    r[1].method = "";
    r[2].headers = bad_header;
    r[3].headers = no_colon;
    r[4].url = "file:///etc/passwd";
    r[5].url = "127.0.0.1";
    r[6].url = "http://a\r\nb/";
    for (unsigned i = 0; i < COUNT_OF(r); i++) {
        struct seen *s = run(&r[i]);
        assert_int_equal(s->status, 0);
        assert_string_not_equal(s->error, "");
    }
    assert_int_equal(peer.requests, 0);
}

static void post_never_uses_a_kept_connection(void **state)
{
    struct fetch_request r = get("/echo");
    run(&r);
    run(&r);
    assert_int_equal(peer.accepted, 1);
    r.method = "POST";
    run(&r);
    assert_int_equal(peer.accepted, 2);
}

static void get_survives_a_dead_kept_connection(void **state)
{
    struct fetch_request r = get("/kept-then-dead");
    assert_int_equal(run(&r)->status, 204);
    r = get("/echo");
    assert_int_equal(run(&r)->status, 200);
}

static void count_call(void *arg, const struct fetch_answer *a)
{
    unsigned *n = arg;
    if (!a->error && a->status == 200)
        n[0]++;
    n[1]++;
}

static void many_at_once(void **state)
{
    unsigned n[2] = {0, 0};
    struct fetch_request r = get("/echo");
    r.timeout = 20;
    for (unsigned i = 0; i < 300; i++)
        assert_non_null(fetch_start(fetch, &r, count_call, n));
    run_until(&n[1], 300, 20);
    assert_int_equal(n[0], 300);
}

static void too_many_at_once_are_refused(void **state)
{
    unsigned n[2] = {0, 0};
    struct fetch_request r = get("/silent");
    for (unsigned i = 0; i < 1030; i++)
        assert_non_null(fetch_start(fetch, &r, count_call, n));
    run_until(&n[1], 6, 3);
    assert_int_equal(n[1], 6);
}

static void cancelled_calls_are_never_heard_of(void **state)
{
    struct seen gone = {0};
    struct fetch_request r = get("/silent");
    fetch_cancel(fetch_start(fetch, &r, note, &gone));
    struct fetch_call *c = fetch_start(fetch, &r, note, &gone);
    run_until(&peer.requests, 1, 5);
    assert_int_equal(peer.requests, 1);
    fetch_cancel(c);
    snprintf(url_text, sizeof url_text, "http://localhost:%d/silent", peer.port);
    fetch_cancel(fetch_start(fetch, &r, note, &gone));
    assert_non_null(fetch_start(fetch, &r, note, &gone)); /* dropped by fetch_free in stop() */
    r = get("/echo");
    assert_int_equal(run(&r)->status, 200);
    assert_int_equal(gone.calls, 0);
}

static void free_inside(void *arg, const struct fetch_answer *a)
{
    fetch_free(fetch);
    fetch = fetch_new(loop);
    note(arg, a); /* the answer outlives the fetch during its callback */
}

static void may_be_freed_from_its_callback(void **state)
{
    struct seen s = {0}, other = {0};
    struct fetch_request r = get("/silent");
    assert_non_null(fetch_start(fetch, &r, note, &other));
    r = get("/echo");
    assert_non_null(fetch_start(fetch, &r, free_inside, &s));
    run_until(&s.calls, 1, 5);
    assert_int_equal(s.calls, 1);
    assert_int_equal(s.status, 200);
    assert_string_equal(s.error, "");
    assert_non_null(fetch);
    assert_int_equal(other.calls, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        T(get_brings_status_head_and_body),
        T(post_sends_headers_and_bytes_as_they_are),
        T(no_content_type_that_nobody_gave),
        T(methods_are_sent_as_given),
        T(chunks_are_joined_and_interim_heads_dropped),
        T(redirects_are_not_followed),
        T(proxy_of_the_environment_is_not_used),
        T(names_are_resolved),
        T(broken_answers_are_errors),
        T(nobody_there_is_an_error),
        T(silence_ends_at_the_timeout),
        T(long_answers_are_cut_off),
        T(bad_input_is_refused_unsent),
        T(post_never_uses_a_kept_connection),
        T(get_survives_a_dead_kept_connection),
        T(many_at_once),
        T(too_many_at_once_are_refused),
        T(cancelled_calls_are_never_heard_of),
        T(may_be_freed_from_its_callback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
