/* api_courier_test.c: programs that use the courier against a scripted server. A program checks
 * with assert(); its exit code says whether all held. */
#include "api_courier.h"

#include "courier.h"
#include "log.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "webpeer.h"
#include "wires.h"

static struct webpeer peer;
static struct ev_loop *loop;
static struct dns *dns;
static struct config *cfg;
static int dead_port;

/* An instance a on the peer, and one where nobody listens. */
static void configure(const char *second)
{
    struct config_raws raws = {0};
    struct buf errors;
    char instances[128];
    buf_init(&errors, 4096);
    snprintf(instances, sizeof instances, "a=http://127.0.0.1:%d;%s=http://127.0.0.1:%d", peer.port,
             second, dead_port);
    config_raws_add(&raws, "CHROMA_INSTANCES", instances, CONFIG_TEXT, "--set");
    struct config *was = cfg;
    cfg = config_build(&raws, &errors);
    if (!cfg)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    pool_reload(cfg);
    courier_reload(cfg);
    fleet_configure(cfg, base_clock());
    if (was)
        config_free(was);
    config_raws_fini(&raws);
    buf_fini(&errors);
}

static int once(void **state)
{
    const char *why;
    log_set_fd(-1);
    loop = ev_loop_new(EVFLAG_AUTO);
    stream_start(loop);
    dns = dns_new(loop, "127.0.0.1", &why);
    if (!dns)
        return -1;
    pool_start(NULL, dns);
    dead_port = wires_dead_port();
    return 0;
}

static int finish(void **state)
{
    pool_stop();
    dns_free(dns);
    ev_loop_destroy(loop);
    return 0;
}

static int start_off(void **state)
{
    struct buf error;
    buf_init(&error, 65536);
    if (!webpeer_start(&peer, loop) || !api_start(loop, "", &error))
        return -1;
    buf_fini(&error);
    configure("b");
    api_courier_open();
    return 0;
}

static int start(void **state)
{
    if (start_off(state))
        return -1;
    courier_start(cfg);
    return wires_until(loop, courier_incarnation(fleet_node[0]) > 0) ? 0 : -1;
}

static int stop(void **state)
{
    api_courier_stop();
    courier_stop();
    api_stop();
    for (unsigned i = 0; i < fleet_count; i++) {
        struct node *n = fleet_node[i];
        for (struct conn *c; (c = pool_take(n, NULL, NULL));)
            pool_drop(&c);
        if (pool_open(n) != 0 || n->inflight != 0)
            return -1;
    }
    fleet_free_all();
    config_free(cfg);
    cfg = NULL;
    webpeer_stop(&peer);
    return 0;
}

static const char common[] =
    "local courier = require('chromux.courier')\n"
    "local function ask(path, more)\n"
    "  local r = more or {}\n"
    "  r.node, r.method, r.target = r.node or 'a', r.method or 'POST', path\n"
    "  return assert(courier.send(r))\n"
    "end\n"
    "local function wait_for(fn)\n"
    "  local till = now() + 10\n"
    "  while not fn() do assert(now() < till, 'in vain') sleep(0.002) end\n"
    "end\n";

static void must_run(const char *text)
{
    char path[] = "/tmp/api_courier_test_XXXXXX";
    char *argv[] = {path, NULL};
    int code = -1, fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, common, strlen(common)), strlen(common));
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    bool ok = api_run_file(path, 1, argv, &code);
    unlink(path);
    assert_true(ok);
    assert_int_equal(code, 0);
}

static void an_answer(void **state)
{
    must_run("local c = ask('/echo', {fields = {'X-One: 1'}, type = 'text/x', body = 'hello',\n"
             "  request_id = 'r7'})\n"
             "local a = assert(c:wait(5))\n"
             "assert(a.status == 200 and a.head:find('X-Peer: Yes', 1, true) and a.type == nil)\n"
             "assert(a.body:find('X-One: 1\\r\\n', 1, true) and a.body:sub(-5) == 'hello')\n"
             "assert(a.body:find('Content-Type: text/x\\r\\n', 1, true))\n"
             "assert(a.body:find('X-Request-Id: r7\\r\\n', 1, true))\n"
             "assert(c:wait(0) == a)\n"
             "local touched, complete = c:touched()\n"
             "assert(touched and complete)\n"
             "a = courier.request{node = 'a', method = 'GET', target = '/json'}\n"
             "assert(a.type == 'application/json' and a.body == '{\"n\":[1,2.5,3]}')");
    assert_int_equal(peer.accepted, 2); /* the sentinel, and one that was kept */
}

static void an_answer_that_came_before_the_wait(void **state)
{
    must_run("local c = ask('/held')\n"
             "wait_for(function() return select(2, c:touched()) end)\n"
             "assert(select(2, c:wait(0.01)) == 'late')\n"
             "assert(courier.request{node = 'a', method = 'GET', target = '/release'})\n"
             "assert(courier.request{node = 'a', method = 'GET', target = '/json'})\n"
             "assert(c:wait(0).body == 'held' and c:touched())");
}

static void endings_have_names_and_stay(void **state)
{
    must_run("for path, kind in pairs{['/reset'] = 'peer_closed', ['/half'] = 'peer_closed',\n"
             "    ['/garbage'] = 'garbage'} do\n"
             "  local c = ask(path, {fresh = true})\n"
             "  for i = 1, 2 do\n"
             "    local a, k, text = c:wait(5)\n"
             "    assert(a == nil and k == kind and #text > 0, k)\n"
             "    assert(c:touched())\n"
             "  end\n"
             "end\n"
             "local c = ask('/', {node = 'b'})\n"
             "assert(select(2, c:wait(5)) == 'not_sent' and not c:touched())\n"
             "local a, k = courier.request{node = 'a', method = 'GET', target = '/echo', max = 5}\n"
             "assert(not a and k == 'garbage')\n"
             "a, k = courier.request{node = 'a', method = 'GET', target = '/json',\n"
             "  incarnation = 1e6}\n"
             "assert(not a and k == 'not_sent')\n"
             "local none, why = courier.send{node = 'x', method = 'GET', target = '/'}\n"
             "assert(none == nil and why == 'no such node')");
}

static void a_late_answer_is_drained(void **state)
{
    must_run("local c = ask('/held')\n"
             "for i = 1, 2 do assert(select(2, c:wait(0.01)) == 'late') end\n"
             "assert(c:touched() and select(2, c:touched()))\n"
             "local got\n"
             "local t = spawn(function() got = c:wait(5) end)\n"
             "assert(courier.request{node = 'a', method = 'GET', target = '/release'})\n"
             "assert(t:wait() and got.body == 'held' and c:wait(0) == got)");
}

static void a_request_that_is_late_is_closed(void **state)
{
    must_run("local t = now()\n"
             "local a, kind = courier.request{node = 'a', method = 'GET', target = '/silent',\n"
             "  timeout = 0.05}\n"
             "assert(a == nil and kind == 'late' and now() - t < 5)");
    struct webpeer_conn *asked = peer.conns; /* the newest */
    assert_true(wires_until(loop, asked->fd == -1));
}

static void one_task_waits_at_a_time(void **state)
{
    must_run("local c = ask('/held')\n"
             "local t = spawn(function() return c:wait(5) end)\n"
             "sleep(0.01)\n"
             "local ok, err = pcall(c.wait, c, 1)\n"
             "assert(not ok and err:find('another task waits', 1, true))\n"
             "t:cancel()\n" /* the call goes on without it */
             "assert(select(2, c:wait(0.01)) == 'late')\n"
             "assert(courier.request{node = 'a', method = 'GET', target = '/release'})\n"
             "assert(c:wait(5).body == 'held')");
}

static void closing_tells_who_waits(void **state)
{
    must_run("local c = ask('/silent')\n"
             "local t = spawn(function() return c:wait(60) end)\n"
             "sleep(0.01)\n"
             "c:close()\n"
             "local ok, a, kind = t:wait()\n"
             "assert(ok and a == nil and kind == 'closed')\n"
             "assert(select(2, c:wait(1)) == 'closed' and c:touched())\n"
             "c:close()\n"
             "local d = ask('/json')\n"
             "d:close()\n"
             "assert(select(2, d:wait(1)) == 'closed')");
}

/* What is still open at the end is closed by api_courier_stop(), tasks that wait included. */
static void calls_may_be_left_open(void **state)
{
    must_run("for i = 1, 3 do ask('/silent', {body = 'x'}) end\n"
             "spawn(function() ask('/silent'):wait(60) end)\n"
             "spawn(function() ask('/silent'):wait(60) end)\n"
             "sleep(0.02)");
}

static void open_calls_are_bounded(void **state)
{
    must_run("local all = {}\n"
             "for i = 1, 4096 do all[i] = ask('/', {node = 'b', body = 'x'}) end\n"
             "local more, why = courier.send{node = 'a', method = 'GET', target = '/'}\n"
             "assert(more == nil and why == 'too many open calls')\n"
             "all[7]:close()\n"
             "ask('/json'):close()\n"
             "for i, c in ipairs(all) do\n"
             "  local _, kind = c:wait(5)\n"
             "  assert(kind == (i == 7 and 'closed' or 'not_sent'))\n"
             "end\n"
             "assert(ask('/json'):wait(5).status == 200)");
}

/* Its memory is the string's, which nobody else holds: AddressSanitizer sees a mistake. */
static void a_body_lives_as_long_as_it_is_sent(void **state)
{
    must_run("local c = ask('/json', {body = ('x'):rep(7 * 1024 * 1024)})\n"
             "for i = 1, 3 do collectgarbage() end\n"
             "assert(not select(2, c:touched()))\n"
             "assert(c:wait(5).status == 200)\n"
             "c = ask('/silent', {body = ('x'):rep(7 * 1024 * 1024)})\n"
             "c:close()\n"
             "collectgarbage()\n"
             "sleep(0.01)");
}

static void the_fence(void **state)
{
    must_run(
        "local function fenced()\n"
        "  return courier.request{node = 'a', method = 'GET', target = '/json', fenced = true}\n"
        "end\n"
        "assert(select(2, fenced()) == 'fenced')\n"
        "courier.fence(courier.boottime() + 60)\n"
        "assert(fenced().status == 200)\n"
        "courier.fence(courier.boottime() - 0.001)\n"
        "assert(select(2, fenced()) == 'fenced')");
}

static void wrong_use_is_an_error(void **state)
{
    must_run("local function bad(more, what)\n"
             "  local r = {node = 'a', method = 'GET', target = '/'}\n"
             "  for k, v in pairs(more) do r[k] = v end\n"
             "  local ok, err = pcall(courier.send, r)\n"
             "  assert(not ok and err:find(what, 1, true), err)\n"
             "end\n"
             "bad({target = '/a b'}, 'target')\n"
             "bad({target = 'x'}, 'target')\n"
             "bad({method = 'GET /x'}, 'method')\n"
             "bad({method = ''}, 'method')\n"
             "bad({fields = {'X: 1', 'no colon'}}, 'fields[2]')\n"
             "bad({fields = {'X: 1\\r\\nY: 2'}}, 'fields[1]')\n"
             "bad({fields = {('X: %s'):format(('x'):rep(70000))}}, 'fields')\n"
             "bad({type = 'a\\nb'}, 'type')\n"
             "bad({request_id = {}}, 'request_id')\n"
             "bad({body = {}}, 'string expected')\n"
             "bad({max = 0}, 'max')\n"
             "bad({max = -1}, 'max')\n"
             "assert(not pcall(courier.send))");
}

static void nodes(void **state)
{
    must_run("local n = courier.nodes()\n"
             "assert(#n == 2 and n[1].name == 'a' and n[1].role == 'primary')\n"
             "assert(n[1].health == 'suspect' and n[1].admin == 'ready' and n[1].resolved)\n"
             "assert(n[1].weight > 0 and n[1].priority and n[1].incarnation > 0)\n"
             "assert(n[2].name == 'b' and n[2].role == 'replica' and n[2].incarnation == 0)");
}

static void the_end_of_an_incarnation_is_told(void **state)
{
    must_run("local was, seen = courier.nodes()[1].incarnation, {}\n"
             "courier.on_incarnation(function(name, value)\n"
             "  sleep(0)\n" /* it is a task and may wait */
             "  seen[#seen + 1] = name .. value\n"
             "end)\n"
             "assert(courier.request{node = 'a', method = 'GET', target = '/alone'})\n"
             "wait_for(function() return #seen == 2 end)\n"
             "assert(seen[1] == 'a0' and seen[2] == 'a' .. was + 1)\n"
             "assert(courier.nodes()[1].incarnation == was + 1)");
}

static void on_change(struct ev_loop *l, ev_timer *w, int revents)
{
    fleet_set_health(fleet_node[0], NULL, NODE_UP, "test", base_clock());
    configure("c");
}

static void health_and_membership_are_told(void **state)
{
    ev_timer change;
    ev_timer_init(&change, on_change, 0.05, 0);
    ev_timer_start(loop, &change);
    must_run("local seen = {}\n"
             "local function note(name, value) seen[name .. tostring(value)] = true end\n"
             "courier.on_health(note)\n"
             "courier.on_membership(note)\n"
             "wait_for(function() return seen.aup and seen.ctrue and seen.bfalse end)\n"
             "assert(courier.nodes()[1].health == 'up' and courier.nodes()[2].name == 'c')");
}

static void without_a_journal_nothing_is_sent(void **state)
{
    must_run("local none, why = courier.send{node = 'a', method = 'GET', target = '/json'}\n"
             "assert(none == nil and why == 'the journal is off')\n"
             "assert(courier.nodes()[1].incarnation == 0)");
    assert_int_equal(peer.accepted, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(an_answer),
        TEST(an_answer_that_came_before_the_wait),
        TEST(endings_have_names_and_stay),
        TEST(a_late_answer_is_drained),
        TEST(a_request_that_is_late_is_closed),
        TEST(one_task_waits_at_a_time),
        TEST(closing_tells_who_waits),
        TEST(calls_may_be_left_open),
        TEST(open_calls_are_bounded),
        TEST(a_body_lives_as_long_as_it_is_sent),
        TEST(the_fence),
        TEST(wrong_use_is_an_error),
        TEST(nodes),
        TEST(the_end_of_an_incarnation_is_told),
        TEST(health_and_membership_are_told),
        cmocka_unit_test_setup_teardown(without_a_journal_nothing_is_sent, start_off, stop),
    };
    return cmocka_run_group_tests(tests, once, finish);
}
