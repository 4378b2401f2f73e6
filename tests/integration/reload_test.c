/* HUP, USR1 and TERM under traffic: policies and instances change between two requests, mistakes
 * leave the old state serving, nothing is lost. */
#include "fixture.h"
#include "load.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROUTE_TO(name)                                                                             \
    "local M = {}\nfunction M.route(req, nodes)\n  for _, n in ipairs(nodes) do\n"                 \
    "    if n.name == \"" name "\" then return n.name, \"edited\" end\n  end\n"                    \
    "  return nil, \"" name " is away\"\nend\nreturn M\n"

static char *served_by(struct chromux *x)
{
    struct answer *a = http_get(x->port, HEARTBEAT);
    check(a != NULL);
    return head_field(a->head, "X-Chromux-Instance");
}

/* The text from `name` on in /status; NULL when it is not there. */
static const char *status_part(struct chromux *x, const char *name)
{
    struct answer *a = http_get(x->port, "/status");
    check(a && a->status == 200);
    return strstr(a->body, name);
}

/* ---- policies ---- */

static void good_edit_takes_effect(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    char *folder = own_policies(), *file = keepf("%s/route.lua", folder);
    write_file(file, ROUTE_TO("primary"));
    struct chromux *x = in_front_of(p, q, keepf("POLICY_DIR=%s", folder), NULL);
    check_str(served_by(x), "primary");
    write_file(file, ROUTE_TO("replica"));
    check_str(served_by(x), "primary"); /* not before the HUP */
    chromux_reload(x);
    check_str(served_by(x), "replica");
    check_has(status_part(x, "\"generation\""), "\"generation\":2");
}

static const struct {
    const char *what, *text, *told;
} bad_edits[] = {
    {"syntax", "local M = {}\nfunction M.route(req, nodes)\n  return nodes[1.name\nend\nreturn M\n",
     "route.lua:3"},
    {"missing function", "return {}\n", "route.lua"},
    {"no table", "return 7\n", "route.lua"},
    {"nothing returned", "local x = 1\n", "route.lua"},
    {"wrong return", "return {route = function() return {} end}\n", "route.lua"},
    {"unknown node", "return {route = function() return 'nobody' end}\n", "route.lua"},
    {"error at load", "error('broken here')\n", "route.lua:1"},
    {"error in the call",
     "local M = {}\nfunction M.route(req, nodes)\n  return req.no.such\nend\nreturn M\n",
     "route.lua:3"},
    {"endless loop at load", "while true do end\n", "route.lua"},
    {"endless loop", "return {route = function() while true do end end}\n", "route.lua"},
    {"endless loop behind pcall",
     "return {route = function() while true do pcall(function() while true do end end) end end}\n",
     "route.lua"},
    {"memory hog",
     "return {route = function() local t = {} for i = 1, 1e9 do t[i] = {i, i} end end}\n",
     "route.lua"},
    {"memory hog in one call", "return {route = function() return (string.rep('x', 1e9)) end}\n",
     "route.lua"},
    {"reaching for the system", "return {route = function() return os.getenv('HOME') end}\n",
     "route.lua"},
    {"byte code", "\033LJ\002\000", "route.lua"},
};

static void bad_edit_leaves_the_old_one_serving(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    char *folder = own_policies(), *file = keepf("%s/route.lua", folder);
    write_file(file, ROUTE_TO("replica"));
    struct chromux *x = in_front_of(p, q, keepf("POLICY_DIR=%s", folder), NULL);
    struct wire *w = wire_open(x->port);
    for (unsigned i = 0; i < COUNT_OF(bad_edits); i++) {
        write_file(file, bad_edits[i].text);
        double began = now_seconds();
        chromux_reload(x);
        if (now_seconds() - began > slow(2))
            harness_fail(__FILE__, __LINE__, "%s: the reload took too long", bad_edits[i].what);
        wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
        struct answer *a = wire_answer(w, false);
        if (!a || a->status != 200 || strcmp(head_field(a->head, "X-Chromux-Instance"), "replica"))
            harness_fail(__FILE__, __LINE__, "%s: %s", bad_edits[i].what, a ? a->head : "nothing");
        if (!status_part(x, bad_edits[i].told))
            harness_fail(__FILE__, __LINE__, "%s: /status lacks %s: %s", bad_edits[i].what,
                         bad_edits[i].told, status_part(x, "polic"));
        check_has(status_part(x, "\"generation\""), "\"generation\":1");
        const char *const argv[] = {chromux_path(), "check", NULL};
        const char *const env[] = {keepf("POLICY_DIR=%s", folder),
                                   keepf("PRIMARY_URL=%s", peer_url(p)), NULL};
        struct run r = run_program(argv, env, 10);
        if (r.status == 0 || !strstr(r.output, bad_edits[i].told))
            harness_fail(__FILE__, __LINE__, "%s: check said %d: %s", bad_edits[i].what, r.status,
                         r.output);
    }
    write_file(file, ROUTE_TO("primary"));
    chromux_reload(x);
    check_str(served_by(x), "primary");
    check_lacks(status_part(x, "polic"), "route.lua:");
}

/* What validation cannot see: a policy that goes wrong only now and then. */
static void policy_that_fails_at_run_time_costs_nothing(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    char *folder = own_policies();
    write_file(keepf("%s/route.lua", folder),
               "local M = {}\nfunction M.route(req, nodes)\n"
               "  if req.action == 'count' then return req.no.such end\n"
               "  if req.action == 'version' then while true do end end\n"
               "  return nodes[1].name, 'fine'\nend\nreturn M\n");
    struct chromux *x = in_front_of(p, q, keepf("POLICY_DIR=%s", folder), NULL);
    for (int i = 0; i < 10; i++) {
        struct answer *a = http_get(x->port, COLL "/count"), *b = http_get(x->port, HEARTBEAT);
        struct answer *c = http_get(x->port, "/api/v2/version");
        check(a && b && c);
        check_int(a->status, 200);
        check_int(b->status, 200);
        check_int(c->status, 200);
    }
    check(status_part(x, "route.lua:") != NULL);
    check_has(chromux_log(x), "route.lua:3");
    check(status_part(x, "\"tripped\":true") != NULL);
}

/* Of those that Lua asks: one that is not there is said and no mistake, one that is broken is one.
 */
static void files_that_may_be_missing(void **state)
{
    struct peer *p = peer_start(serve_ok);
    char *folder = own_policies(), *file = keepf("%s/slack.lua", folder);
    check_int(unlink(file), 0);
    struct chromux *x = in_front_of(p, NULL, keepf("POLICY_DIR=%s", folder), NULL);
    const char *const argv[] = {chromux_path(), "check", NULL};
    const char *const env[] = {keepf("POLICY_DIR=%s", folder), keepf("PRIMARY_URL=%s", peer_url(p)),
                               NULL};
    struct run r = run_program(argv, env, 10);
    check_int(r.status, 0);
    check_has(r.output, "POLICY_DIR lacks slack.lua: what is built in answers instead");
    check_has(chromux_log(x), "policy_missing");
    check_has(chromux_log(x), "files=slack.lua instead=fallback");
    check_has(status_part(x, "\"policies\""), "\"missing\":true");
    write_file(file, "return {format = function() return {text = ''} end}\n");
    chromux_reload(x);
    check_has(status_part(x, "\"last_load_error\""), "slack.lua:1: text is ''");
    check_has(status_part(x, "\"generation\""), "\"generation\":1");
    write_file(file, "return {format = function() return {text = 'x'} end}\n");
    chromux_reload(x);
    check_has(status_part(x, "\"generation\""), "\"generation\":2");
    check_lacks(status_part(x, "\"policies\""), "\"missing\":true");
}

/* ---- configuration file ---- */

static char *instance_list(struct peer *const *peers, unsigned n)
{
    char *text = keepf("%s", "return { UNREPLICATED_READS = \"any\", CHECK_INTERVAL = 0.2,\n"
                             "  LOAD_BALANCE_STRATEGY = \"round_robin\", instances = {\n");
    for (unsigned i = 0; i < n; i++)
        text = keepf("%s  { name = \"n%u\", url = \"%s\" },\n", text, i, peer_url(peers[i]));
    return keepf("%s} }\n", text);
}

static void gated(struct conn *c)
{
    while (conn_request(c) && conn_wait(c))
        if (!conn_answer(c, "{}"))
            return;
}

static void instances_come_and_go_with_requests_in_flight(void **state)
{
    struct peer *peers[] = {peer_start(serve_ok), peer_start(gated), peer_start(serve_ok)};
    char *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, instance_list(peers, 2));
    struct chromux *x =
        chromux_start("--config", file, "TRY_TIMEOUT=60", "REQUEST_TIMEOUT=60", NULL);
    chromux_wait_healthy(x, 2);
    struct wire *w[10];
    for (int i = 0; i < 10; i++) {
        w[i] = wire_open(x->port);
        wire_sendf(w[i], "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    check_soon(peer_requests(peers[0]) + peer_requests(peers[1]) == 10, 5);
    check(peer_requests(peers[1]) >= 3);
    unsigned in_flight = peer_requests(peers[1]);
    /* n1 leaves with requests in flight, another n2 joins. */
    struct peer *after[] = {peers[0], peers[2]};
    char *text = instance_list(after, 2);
    char *second = strstr(text, "\"n1\"");
    second[2] = '2';
    write_file(file, text);
    chromux_reload(x);
    chromux_wait_healthy(x, 2);
    check(status_part(x, "\"n2\"") != NULL);
    for (int i = 0; i < 20; i++) {
        struct answer *a = http_get(x->port, COLL "/count");
        check(a && a->status == 200);
        check(strcmp(head_field(a->head, "X-Chromux-Instance"), "n1") != 0);
    }
    check(peer_requests(peers[2]) >= 5);
    peer_release(peers[1]);
    for (int i = 0; i < 10; i++) {
        struct answer *a = wire_answer(w[i], false);
        check(a && a->status == 200);
    }
    check_int(peer_requests(peers[1]), in_flight);
    /* And gone for good. */
    unsigned probes = peer_probes(peers[1]), other = peer_probes(peers[0]);
    check_soon(peer_probes(peers[0]) > other + 5, 10);
    check(peer_probes(peers[1]) <= probes + 1);
}

/* Same name, another server behind it: a new instance. */
static void instance_moves_to_another_port(void **state)
{
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    char *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, instance_list(&p, 1));
    struct chromux *x = chromux_start("--config", file, NULL);
    chromux_wait_healthy(x, 1);
    check(http_get(x->port, HEARTBEAT)->status == 200);
    write_file(file, instance_list(&q, 1));
    struct wire *w = wire_open(x->port);
    chromux_reload(x);
    /* Served from the first moment on, though no probe has come back yet. */
    for (int i = 0; i < 10; i++) {
        wire_sendf(w, "GET " HEARTBEAT " HTTP/1.1\r\nHost: h\r\n\r\n");
        struct answer *a = wire_answer(w, false);
        check(a != NULL);
        check_int(a->status, 200);
    }
    check_int(peer_requests(p), 1);
    check_int(peer_requests(q), 10);
}

/* A setting that a timer already counts by. */
static void shorter_interval_holds_at_once(void **state)
{
    struct peer *p = peer_start(serve_ok);
    char *file = keepf("%s/chromux.lua", temp_folder());
    char *quick = instance_list(&p, 1), *lazy = keepf("%s", quick);
    memcpy(strstr(lazy, "0.2"), "1e3", 3);
    write_file(file, lazy);
    struct chromux *x = chromux_start("--config", file, NULL);
    chromux_wait_healthy(x, 1);
    unsigned before = peer_probes(p);
    write_file(file, quick);
    chromux_reload(x);
    check_soon(peer_probes(p) > before + 3, 10);
}

static void bad_configuration_leaves_the_old_one_serving(void **state)
{
    struct peer *p = peer_start(serve_ok);
    char *file = keepf("%s/chromux.lua", temp_folder());
    write_file(file, instance_list(&p, 1));
    struct chromux *x = chromux_start("--config", file, NULL);
    chromux_wait_healthy(x, 1);
    static const char *const bad[] = {
        "return {",
        "return { NO_SUCH_SETTING = 1 }",
        "return { CHECK_INTERVAL = \"soon\", instances = {{name=\"a\",url=\"http://127.0.0.1:1\"}} "
        "}",
        "return { instances = {} }",
        "return { instances = {{name=\"a\"}} }",
        "while true do end",
        "while true do pcall(function() while true do end end) end",
    };
    for (unsigned i = 0; i < COUNT_OF(bad); i++) {
        write_file(file, bad[i]);
        chromux_reload(x);
        struct answer *a = http_get(x->port, HEARTBEAT);
        check(a && a->status == 200);
        check_str(head_field(a->head, "X-Chromux-Instance"), "n0");
    }
    check_has(chromux_log(x), "NO_SUCH_SETTING");
    check(status_part(x, "chromux.lua") != NULL);
}

/* ---- HUP at each stage ---- */

static void in_stages(struct conn *c)
{
    struct request *r;
    while ((r = conn_request(c)) != NULL && conn_wait(c))
        if (!conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello") || !conn_wait(c) ||
            !conn_send(c, "world"))
            return;
}

static void half_then_rest(struct conn *c)
{
    if (conn_request(c))
        conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    if (conn_wait(c))
        conn_send(c, "world");
}

static void hup_at_each_stage_drops_nothing(void **state)
{
    struct peer *p = peer_start(in_stages);
    struct chromux *x = in_front_of(p, NULL, "TRY_TIMEOUT=60", NULL);
    struct wire *idle = wire_open(x->port), *head = wire_open(x->port), *body = wire_open(x->port),
                *waits = wire_open(x->port);
    wire_sendf(head, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nConte");
    wire_sendf(body, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nhalf");
    wire_sendf(waits, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    check_soon(peer_completed(p) == 1 && peer_requests(p) == 2, 5);
    struct peer *relays = peer_start(half_then_rest);
    struct chromux *y = in_front_of(relays, NULL, NULL);
    struct wire *relaying = wire_open(y->port);
    wire_sendf(relaying, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check_soon(wire_has_input(relaying), 5);
    for (int i = 0; i < 3; i++) {
        chromux_reload(x);
        chromux_reload(y);
    }
    wire_sendf(idle, "POST " COLL "/get HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    wire_sendf(head, "nt-Length: 2\r\n\r\n{}");
    wire_sendf(body, "rest");
    peer_release(p);
    peer_release(relays);
    struct wire *all[] = {idle, head, body, waits, relaying};
    for (unsigned i = 0; i < COUNT_OF(all); i++) {
        struct answer *a = wire_answer(all[i], false);
        if (!a || a->status != 200 || strcmp(a->body, "helloworld") != 0)
            harness_fail(__FILE__, __LINE__, "connection %u: %s", i, a ? a->head : "nothing");
    }
}

/* ---- load
 * ---------------------------------------------------------------------------------------- */

static void thousand_hups_under_load_lose_nothing(void **state)
{
    enum { CLIENTS = 4, HUPS = 1000 };
    struct peer *p = peer_start(serve_ok), *q = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, q, "CHECK_INTERVAL=1", NULL);
    struct load *l = load_start(x->port, CLIENTS, &load_heartbeats);
    check_soon(load_good(l) > 100, 10);
    for (int i = 0; i < HUPS; i++) {
        unsigned before = load_good(l);
        chromux_signal(x, SIGHUP);
        /* A request between two HUPs, so that they do not merge into one. */
        check_soon(load_good(l) > before, 5);
    }
    load_stop(l);
    check_str(load_complaint(l), "");
    check_int(load_bad(l), 0);
    check(load_good(l) >= HUPS);
    struct answer *a = http_get(x->port, "/metrics");
    check(a != NULL);
    long reloads = atol(strstr(a->body, "\nchromux_reloads_total ") + 23);
    print_message("%u requests, %ld reloads\n", load_good(l), reloads);
    check(reloads > HUPS / 4);
    check_has(a->body, "\nchromux_reloads_failed_total 0\n");
    check_int(load_good(l), count_lines(chromux_access(x), "path=" HEARTBEAT));
}

/* ---- other signals ---- */

static void usr1_reopens_the_access_log(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    http_get(x->port, HEARTBEAT "?before");
    chromux_access_line(x, "before", 1);
    char *old = keepf("%s.1", x->access);
    check(rename(x->access, old) == 0);
    http_get(x->port, HEARTBEAT "?between");
    chromux_signal(x, SIGUSR1);
    check_soon(access(x->access, F_OK) == 0, 5);
    http_get(x->port, HEARTBEAT "?after");
    chromux_access_line(x, "after", 1);
    check_has(read_file(old), "between");
    check_lacks(read_file(old), "after");
    check_lacks(chromux_access(x), "between");
}

static void term_lets_requests_finish(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x = in_front_of(p, NULL, "TRY_TIMEOUT=60", NULL);
    struct wire *idle = wire_open(x->port), *busy = wire_open(x->port);
    wire_sendf(busy, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check_soon(peer_requests(p) == 1, 5);
    chromux_signal(x, SIGTERM);
    check(wire_closed(idle));
    check_soon(wire_open(x->port)->fd < 0, 5); /* nobody new */
    check(!chromux_wait_exit(x, 0));
    peer_release(p);
    struct answer *a = wire_answer(busy, false);
    check(a && a->status == 200);
    check_str(head_field(a->head, "Connection"), "close");
    check(chromux_wait_exit(x, 5));
    check_int(x->status, 0);
    check_has(chromux_access(x), "/count");
}

static void drain_has_a_deadline(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x = in_front_of(p, NULL, "TRY_TIMEOUT=60", "DRAIN_TIMEOUT=0.5", NULL);
    struct wire *busy = wire_open(x->port);
    wire_sendf(busy, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check_soon(peer_requests(p) == 1, 5);
    double began = now_seconds();
    chromux_signal(x, SIGTERM);
    check(chromux_wait_exit(x, 5));
    check(now_seconds() - began >= 0.4);
}

static void second_term_stops_at_once(void **state)
{
    struct peer *p = peer_start(gated);
    struct chromux *x = in_front_of(p, NULL, "TRY_TIMEOUT=60", "DRAIN_TIMEOUT=60", NULL);
    struct wire *idle = wire_open(x->port), *busy = wire_open(x->port);
    wire_sendf(busy, "GET " COLL "/count HTTP/1.1\r\nHost: h\r\n\r\n");
    check_soon(peer_requests(p) == 1, 5);
    chromux_signal(x, SIGTERM);
    check(wire_closed(idle)); /* the first one is in effect */
    chromux_signal(x, SIGTERM);
    check(chromux_wait_exit(x, 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(good_edit_takes_effect),
        TEST(bad_edit_leaves_the_old_one_serving),
        TEST(policy_that_fails_at_run_time_costs_nothing),
        TEST(files_that_may_be_missing),
        TEST(instances_come_and_go_with_requests_in_flight),
        TEST(instance_moves_to_another_port),
        TEST(shorter_interval_holds_at_once),
        TEST(bad_configuration_leaves_the_old_one_serving),
        TEST(hup_at_each_stage_drops_nothing),
        TEST(thousand_hups_under_load_lose_nothing),
        TEST(usr1_reopens_the_access_log),
        TEST(term_lets_requests_finish),
        TEST(drain_has_a_deadline),
        TEST(second_term_stops_at_once),
    };
    return RUN(tests);
}
