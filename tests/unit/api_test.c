/* api_test.c: programs on the workflow VM: the scheduler, fetch against a scripted server, pg
 * against a real one. A program checks with assert(); its exit code says whether all held. */
#include "api.h"
#include "log.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "../pgserver.h"
#include "webpeer.h"

static struct pgserver server;
static struct webpeer peer;
static struct ev_loop *loop;
static char told[16384]; /* what the program wrote to stderr */

static int start_server(void **state)
{
    log_set_fd(-1);
    signal(SIGPIPE, SIG_IGN);
    return pgserver_start(&server) ? 0 : -1;
}

static int stop_server(void **state)
{
    pgserver_stop(&server);
    return 0;
}

static int start_with(const char *url)
{
    char number[16];
    struct buf error;
    buf_init(&error, 65536);
    loop = ev_loop_new(EVFLAG_AUTO);
    if (!webpeer_start(&peer, loop))
        return -1;
    snprintf(number, sizeof number, "%d", peer.port);
    setenv("PEER_PORT", number, 1);
    bool ok = api_start(loop, url, &error);
    if (!ok)
        fprintf(stderr, "%.*s\n", (int)buf_len(&error), buf_data(&error));
    buf_fini(&error);
    return ok ? 0 : -1;
}

static int start(void **state)
{
    return start_with("");
}

static int start_pg(void **state)
{
    if (server.pid == 0 && !pgserver_run(&server))
        return -1;
    return start_with(server.url);
}

static int stop(void **state)
{
    api_stop();
    webpeer_stop(&peer);
    ev_loop_destroy(loop);
    return 0;
}

static void write_program(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static char program[32];

static void remove_program(void)
{
    unlink(program);
}

/* Runs the program with two arguments; its stderr is in `told` afterwards. */
static int run(const char *text)
{
    char one[] = "one", two[] = "two";
    char *argv[] = {program, one, two, NULL};
    strcpy(program, "/tmp/api_test_XXXXXX");
    int code = -1, fd = mkstemp(program), kept = dup(2);
    FILE *out = tmpfile();
    assert_true(fd >= 0 && kept >= 0 && out);
    close(fd);
    write_program(program, text);
    fflush(NULL);
    dup2(fileno(out), 2);
    bool ok = api_run_file(program, 3, argv, &code);
    fflush(NULL);
    dup2(kept, 2);
    close(kept);
    remove_program();
    rewind(out);
    told[fread(told, 1, sizeof told - 1, out)] = 0;
    fclose(out);
    assert_true(ok || code == 1);
    return code;
}

static void must_run(const char *text)
{
    int code = run(text);
    if (code != 0)
        print_message("exit code %d: … %s\n", code,
                      told + (strlen(told) > 600 ? strlen(told) - 600 : 0));
    assert_int_equal(code, 0);
}

static void exit_codes(void **state)
{
    assert_int_equal(run(""), 0);
    assert_int_equal(run("return 7"), 7);
    assert_int_equal(run("return true"), 0);
    assert_int_equal(run("return false"), 1);
    assert_int_equal(run("return 'text'"), 0);
    assert_int_equal(run("sleep(0.01) return 3"), 3);
}

static void arguments(void **state)
{
    must_run("assert(arg[1] == 'one' and arg[2] == 'two' and #arg == 2 and arg[0])\n"
             "local a, b, c = ... assert(a == 'one' and b == 'two' and c == nil)");
}

static void errors_are_told_with_file_line_and_traceback(void **state)
{
    assert_int_equal(run("local function inner()\n  error('oh no')\nend\nsleep(0.01)\ninner()"), 1);
    assert_non_null(strstr(told, ":2: oh no"));
    assert_non_null(strstr(told, "stack traceback"));
    assert_non_null(strstr(told, ":5:"));
    assert_int_equal(run("x = = 1"), 1);
    assert_non_null(strstr(told, ":1: unexpected symbol"));
    assert_int_equal(run("error({})"), 1);
    assert_non_null(strstr(told, "not a text"));
}

static void missing_program_is_told(void **state)
{
    char path[] = "/nowhere/at/all.lua";
    char *argv[] = {path, NULL};
    int code = 0;
    assert_false(api_run_file(path, 1, argv, &code));
    assert_int_equal(code, 1);
}

static void sleepers_wake_in_order(void **state)
{
    must_run("local seen, start = {}, now()\n"
             "for _, s in ipairs{0.15, 0.05, 0.1, 0} do\n"
             "  spawn(function(t) sleep(t) seen[#seen + 1] = t end, s)\n"
             "end\n"
             "assert(#seen == 0)\n" /* spawned, not started */
             "sleep(0.3)\n"
             "assert(table.concat(seen, ' ') == '0 0.05 0.1 0.15', table.concat(seen, ' '))\n"
             "assert(now() - start >= 0.29 and now() - start < 3)\n");
}

static void spawn_passes_values_both_ways(void **state)
{
    must_run("local t = spawn(function(a, b, c) sleep(0.01) return a, b, c, nil end, 1, nil, 'x')\n"
             "local n = select('#', t:wait())\n"
             "local ok, a, b, c = t:wait()\n"
             "assert(n == 5 and ok and a == 1 and b == nil and c == 'x')\n"
             "local done = 0\n"
             "local slow = spawn(function() sleep(0.05) return 5 end)\n"
             "local w = {}\n"
             "for i = 1, 3 do w[i] = spawn(function() assert(select(2, slow:wait()) == 5)\n"
             "  done = done + 1 end) end\n"
             "for i = 1, 3 do assert(w[i]:wait()) end\n"
             "assert(done == 3)");
}

static void a_failing_task_ends_alone(void **state)
{
    must_run("local bad = spawn(function() error('just me') end)\n"
             "local ok, err = bad:wait()\n"
             "assert(ok == false and err:find('just me'), err)\n"
             "local function deep() return 1 + deep() end\n"
             "ok, err = spawn(deep):wait()\n"
             "assert(ok == false and err:find('overflow') or err:find('error'), err)\n"
             "ok, err = spawn(function() return ('x'):rep(2e9) end):wait()\n"
             "assert(ok == false, err)\n"
             "local t = {}\n"
             "ok, err = spawn(function() while true do t[#t + 1] = ('x'):rep(1e7) .. #t end "
             "end):wait()\n"
             "t = nil\n"
             "assert(ok == false and err:find('not enough memory'), err)\n"
             "ok, err = spawn(function() error({}) end):wait()\n"
             "assert(ok == false)\n"
             "sleep(0.01)");
    assert_non_null(strstr(told, "just me"));
    assert_non_null(strstr(told, "stack traceback"));
}

static void main_with_endless_recursion_is_an_error(void **state)
{
    assert_int_equal(run("local function deep() return 1 + deep() end deep()"), 1);
    assert_non_null(strstr(told, "overflow"));
}

static void tasks_end_with_the_main_task(void **state)
{
    double t = ev_time();
    assert_int_equal(run("spawn(function() while true do sleep(0.01) end end)\n"
                         "spawn(function() sleep(1000) end)\n"
                         "spawn(function() fetch{url = 'http://127.0.0.1:' .. env('PEER_PORT')\n"
                         "  .. '/silent'} end)\n"
                         "sleep(0.1) return 4"),
                     4);
    assert_true(ev_time() - t < 3);
    assert_int_equal(peer.requests, 1);
}

static void waiting_is_for_tasks_only(void **state)
{
    must_run(
        "local co = coroutine.create(function() sleep(0) end)\n"
        "local ok, err = coroutine.resume(co)\n"
        "assert(not ok and err:find('only a task'), err)\n"
        "for _, f in ipairs{function() sleep(0.01) end, function() pg.query('SELECT 1') end} do\n"
        "  ok, err = pcall(table.sort, {3, 2, 1}, function(a, b) f() return a < b end)\n"
        "end\n" /* a refused yield: the task goes on, and what it began is stale */
        "sleep(0.05)\n"
        "local gen = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end)\n"
        "assert(gen() == 1 and gen() == 2)\n"
        "assert(pcall(function() sleep(0.01) end))\n" /* pcall may be waited in */
        "coroutine.yield() coroutine.yield('x')\n"    /* a turn for the others */
        "assert(not pcall(sleep, -1) and not pcall(sleep, 0/0) and not pcall(sleep, 'x'))");
}

static void cancelled_tasks_are_never_resumed(void **state)
{
    must_run("local ran = 0\n"
             "local t = {\n"
             "  spawn(function() sleep(0.05) ran = ran + 1 end),\n"
             "  spawn(function() fetch{url = 'http://127.0.0.1:' .. env('PEER_PORT') .. '/echo'}\n"
             "    ran = ran + 1 end),\n"
             "  spawn(function() ran = ran + 1 end),\n"
             "}\n"
             "local other = spawn(function() return t[1]:wait() end)\n"
             "t[3]:cancel()\n"
             "sleep(0)\n"
             "t[1]:cancel() t[2]:cancel() t[2]:cancel()\n"
             "local ok, first, err = other:wait()\n"
             "assert(ok and first == false and err == 'cancelled')\n"
             "sleep(0.15)\n"
             "assert(ran == 0, ran)\n"
             "local fine = spawn(function() return 1 end)\n"
             "fine:wait() fine:cancel() assert(fine:wait() == true)");
}

static void stale_wake_is_ignored(void **state)
{
    must_run("local api = require('chromux.api')\n"
             "local id, gen, woken\n"
             "local t = spawn(function()\n"
             "  id, gen = api.token() api.park() woken = now()\n"
             "  sleep(0.2) return now() end)\n"
             "sleep(0) sleep(0)\n"
             "api.wake(id, gen - 1) sleep(0.02) assert(not woken)\n"
             "api.wake(id, gen) api.wake(id, gen) sleep(0.02) assert(woken)\n"
             "api.wake(id, gen) api.wake(id + 65536, gen)\n" /* it sleeps now */
             "local _, ended = t:wait()\n"
             "assert(ended - woken > 0.19)\n");
}

static void waiting_for_nothing_is_noticed(void **state)
{
    ev_io_stop(loop, &peer.io);
    assert_int_equal(run("local t t = spawn(function() sleep(0.01) t:wait() end) t:wait()"), 1);
    ev_io_start(loop, &peer.io);
    assert_non_null(strstr(told, "every task waits"));
}

static void too_many_tasks_is_an_error(void **state)
{
    must_run(
        "local n, over = 0, 0\n"
        "local ok, err = pcall(function()\n"
        "  for i = 1, 66000 do spawn(function() sleep(0.01) over = over + 1 end)\n"
        "    n = n + 1 end end)\n"
        "assert(not ok and err:find('tasks') and n == 65535, n)\n"
        "while over < n do sleep(0.01) end\n"
        "for i = 1, 5000 do spawn(function() end) if i % 100 == 0 then sleep(0) sleep(0) end end");
}

static void fetch_brings_status_headers_body(void **state)
{
    must_run("local base = 'http://127.0.0.1:' .. env('PEER_PORT')\n"
             "local a = assert(fetch{url = base .. '/json'})\n"
             "assert(a.status == 200 and a.headers['content-type'] == 'application/json')\n"
             "local v = assert(json.decode(a.body))\n"
             "assert(v.n[1] == 1 and v.n[2] == 2.5 and v.n[3] == 3)\n"
             "a = assert(fetch{url = base .. '/echo', method = 'PUT', body = 'b\\0dy',\n"
             "  headers = {['X-Test'] = 1, ['Content-Type'] = 'text/plain'}})\n"
             "assert(a.body:find('^PUT /echo') and a.body:find('X%-Test: 1\\r\\n'))\n"
             "assert(a.body:sub(-4) == 'b\\0dy' and a.headers['x-peer'] == 'Yes')\n"
             "assert(assert(fetch{url = base .. '/missing'}).status == 404)\n");
}

static void fetch_errors_are_answers(void **state)
{
    must_run("local base = 'http://127.0.0.1:' .. env('PEER_PORT')\n"
             "local function fails(r, what, said)\n"
             "  local a, err, status = fetch(r)\n"
             "  assert(a == nil and type(err) == 'string' and err:find(what), tostring(err))\n"
             "  assert(status == said, tostring(status))\n"
             "end\n"
             "fails({url = base .. '/silent', timeout = 0.1}, 'time%-out')\n"
             "fails({url = base .. '/reset'}, '.')\n"
             "fails({url = base .. '/half'}, '.', 200)\n"
             "fails({url = base .. '/echo', max = 10}, 'longer than 10', 200)\n"
             "fails({url = 'ftp://x/'}, 'URL')\n"
             "fails({url = base, headers = {A = 'b\\r\\nc: d'}}, 'header')\n"
             "assert(not pcall(fetch, {}) and not pcall(fetch, 'x'))\n"
             "assert(not pcall(fetch, {url = base, timeout = -1}))");
}

static void fetches_run_side_by_side(void **state)
{
    must_run("local base, t, start = 'http://127.0.0.1:' .. env('PEER_PORT'), {}, now()\n"
             "for i = 1, 20 do t[i] = spawn(function()\n"
             "  return fetch{url = base .. '/silent', timeout = 0.3} end) end\n"
             "for i = 1, 20 do t[i]:wait() end\n"
             "assert(now() - start < 2)");
}

static void json_errors_are_answers(void **state)
{
    must_run("assert(json.encode({a = 1}) == '{\"a\":1}')\n"
             "local v, err = json.decode('{') assert(v == nil and err)\n"
             "v, err = json.decode(nil) assert(v == nil and err)\n"
             "v, err = json.encode(print) assert(v == nil and err)\n"
             "v, err = json.decode(('['):rep(1000) .. (']'):rep(1000)) assert(v == nil and err)\n"
             "local loop = {} loop[1] = loop v, err = json.encode(loop) assert(v == nil and err)\n"
             "assert(json.decode('[null]')[1] == json.null)");
}

static void log_takes_anything(void **state)
{
    must_run("log.info('made_up', 'text') log.error('no event!', nil) log.warn('x', {})\n"
             "for i = 1, 200 do log.debug('event_' .. i, i) end\n"
             "assert(not pcall(log.info))");
}

static void without_database_url_pg_says_so(void **state)
{
    must_run("local rows, err, state = pg.query('SELECT 1')\n"
             "assert(rows == nil and err == 'no DATABASE_URL' and state == '')\n"
             "local c\n"
             "c, err = pg.connection('x') assert(c == nil and err == 'no DATABASE_URL')");
}

static void pg_brings_rows(void **state)
{
    must_run(
        "local rows = assert(pg.query([[SELECT 1 AS i, 9007199254740991::int8 AS most,\n"
        "  9007199254740993::int8 AS big, 0.5::float8 AS f, 'NaN'::float8 AS nan,\n"
        "  12::numeric AS whole, 1.10::numeric AS price, true AS yes, false AS no,\n"
        "  NULL::int AS nothing, 'x''y' AS text, '\\x00ff'::bytea AS bytes]]))\n"
        "local r = rows[1]\n"
        "assert(#rows == 1 and r.i == 1 and r.most == 2^53 - 1 and r.f == 0.5)\n"
        "assert(r.big == '9007199254740993' and r.nan ~= r.nan and r.whole == 12)\n"
        "assert(r.price == '1.10' and r.yes == true and r.no == false)\n"
        "assert(r.nothing == nil and r.text == \"x'y\" and r.bytes == '\\0\\255')\n"
        "rows = assert(pg.query('SELECT $1::text a, $2::int8 b, $3::bool c, $4::float8 d,\\n'\n"
        "  .. '$5::text e', 'q', 2^53 - 1, true, 0.1, nil))\n"
        "r = rows[1]\n"
        "assert(r.a == 'q' and r.b == 2^53 - 1 and r.c == true and r.d == 0.1 and r.e == nil)\n"
        "assert(pg.query('DROP TABLE IF EXISTS api'))\n"
        "assert(pg.query('CREATE TABLE api (i int)'))\n"
        "rows = assert(pg.query('INSERT INTO api SELECT generate_series(1, 3)'))\n"
        "assert(rows.affected == 3 and #rows == 0)\n"
        "assert(#assert(pg.query('SELECT * FROM api')) == 3)");
}

static void pg_errors_are_answers(void **state)
{
    must_run("local rows, err, state = pg.query('SELECT 1/$1::int', 0)\n"
             "assert(rows == nil and err == 'division by zero' and state == '22012')\n"
             "rows, err, state = pg.query({'SELECT pg_sleep(20)', timeout = 0.2})\n"
             "assert(rows == nil and err:find('time%-out') and state == '')\n"
             "assert(not pcall(pg.query, 'SELECT $1', {}) and not pcall(pg.query))\n"
             "assert(assert(pg.query('SELECT 2 AS n'))[1].n == 2)\n"
             "local t = {}\n"
             "for i = 1, 1100 do t[i] = spawn(function() return pg.query('SELECT 1') end) end\n"
             "local full, fine = 0, 0\n"
             "for i = 1, 1100 do local _, r, e = t[i]:wait()\n"
             "  if r then fine = fine + 1 elseif e == 'queue full' then full = full + 1 end end\n"
             "assert(full > 0 and fine >= 1000 and full + fine == 1100, full)");
}

/* As messages are that were cut in the middle of a character, or quote a server's answer. */
static void what_is_no_text_is_made_one(void **state)
{
    must_run(
        "local wrong = '\xef\xbf\xbd'\n"
        "for given, kept in pairs{['a\\0b'] = 'a' .. wrong .. 'b', ['x\xc3'] = 'x' .. wrong,\n"
        "    ['\xf0\x9f\x98'] = wrong:rep(3), ['\xc3\xa9\xff'] = '\xc3\xa9' .. wrong, [''] = '',\n"
        "    ['\xf0\x9f\x98\x80'] = '\xf0\x9f\x98\x80'} do\n"
        "  assert(assert(pg.query('SELECT $1::text AS t', given))[1].t == kept)\n"
        "  local r = assert(pg.connection('x'):transaction{{'SELECT $1::text AS t, $2::int AS i',\n"
        "    given, 7}})\n"
        "  assert(r[1][1].t == kept and r[1][1].i == 7)\n"
        "end");
}

static void stale_rows_find_nobody(void **state)
{
    must_run("assert(pg.query('SELECT 1'))\n"
             "local ran = false\n"
             "local t = spawn(function() pg.query('SELECT pg_sleep(0.2)') ran = true end)\n"
             "sleep(0.05) t:cancel()\n"
             "assert(pg.query('SELECT 2')) assert(not ran)\n"
             "spawn(function() pg.query('SELECT pg_sleep(0.2)') ran = true end)\n"
             "sleep(0.05)"); /* ends while that one flies */
    double until = ev_time() + 0.5;
    while (ev_time() < until)
        ev_run(loop, EVRUN_NOWAIT);
    must_run("assert(pg.query('SELECT 3'))"); /* a second program on the same VM */
}

static void transactions_are_all_or_nothing(void **state)
{
    must_run(
        "local c = assert(pg.connection('journal'))\n"
        "assert(pg.query('DROP TABLE IF EXISTS tx'))\n"
        "assert(pg.query('CREATE TABLE tx (i int PRIMARY KEY, b bytea, t text)'))\n"
        "local all = {} for i = 0, 255 do all[i + 1] = string.char(i) end\n"
        "all = table.concat(all)\n"
        "local r = assert(c:transaction{\n"
        "  {'INSERT INTO tx VALUES ($1, $2, $3)', 1, pg.bytes(all), nil, n = 3},\n"
        "  {'INSERT INTO tx VALUES ($1, $2, $3)', 2, pg.null, 'x'},\n"
        "  {'SELECT i, b, t FROM tx ORDER BY i'}, {'DELETE FROM tx WHERE i = $1', 2}, timeout = "
        "5})\n"
        "assert(#r == 4 and r[1].affected == 1 and #r[1] == 0 and #r[3] == 2)\n"
        "assert(r[3][1].i == 1 and r[3][1].b == all and r[3][1].t == nil)\n"
        "assert(r[3][2].b == nil and r[3][2].t == 'x' and r[4].affected == 1)\n"
        "assert(c:query('SELECT b FROM tx WHERE b = $1', pg.bytes(all))[1].b == all)\n"
        "local no, err, sqlstate, info = c:transaction{{'INSERT INTO tx VALUES (7)'},\n"
        "  {'INSERT INTO tx VALUES ($1)', 1}, {'SELECT 1'}}\n"
        "assert(no == nil and err:find('duplicate key') and sqlstate == '23505')\n"
        "assert(info.index == 2 and info.unknown == false)\n"
        "assert(c:query({'SELECT count(*) AS n FROM tx', timeout = 5})[1].n == 1)\n"
        "no, err, sqlstate, info = c:transaction{{'SELECT pg_sleep(20)'}, timeout = 0.2}\n"
        "assert(no == nil and err:find('time%-out') and sqlstate == '' and info.unknown == true)\n"
        "assert(info.index == nil)\n"
        "no, err = c:transaction{} assert(no == nil and err == 'no statement')\n"
        "for _, bad in ipairs{{1}, {{}}, {{'SELECT $1', {}}}, {{'SELECT 1', n = -1}},\n"
        "  {{'SELECT 1', n = 70000}}, {{'SELECT $1', setmetatable({}, {})}}} do\n"
        "  assert(not pcall(c.transaction, c, bad))\n"
        "end\n"
        "assert(not pcall(c.transaction, c) and not pcall(pg.bytes) and not pcall(pg.bytes, 1))\n"
        "local many = {} for i = 1, 5000 do many[i] = {'SELECT $1::int AS i', i} end\n"
        "r = assert(c:transaction(many)) assert(#r == 5000 and r[5000][1].i == 5000)");
}

static void connections_are_named(void **state)
{
    must_run("local pid = 'SELECT pg_backend_pid() AS pid'\n"
             "local a, b = assert(pg.connection('a')), assert(pg.connection('b'))\n"
             "local before = a:state() assert(before == 'connecting', before)\n"
             "local pa, pb = a:query(pid)[1].pid, b:query(pid)[1].pid\n"
             "assert(pa ~= pb and pg.connection('a'):query(pid)[1].pid == pa)\n"
             "assert(pg.query(pid)[1].pid == pg.connection('default'):query(pid)[1].pid)\n"
             "local state, err = a:state() assert(state == 'ready' and err == '')\n"
             "assert(pg.connection('c')) assert(not pcall(pg.connection, 'd'))\n"
             "b:query('SELECT pg_terminate_backend($1)', pa)\n"
             "for i = 1, 500 do state, err = a:state() if state ~= 'ready' then break end "
             "sleep(0.01) end\n"
             "assert(state == 'away' and err ~= '', state)\n"
             "assert(a:query(pid)[1].pid ~= pa)");
}

static void notifications_run_tasks(void **state)
{
    must_run("local c, seen = assert(pg.connection('ear')), {}\n"
             "local function await(text)\n"
             "  for i = 1, 500 do\n"
             "    if table.concat(seen, ' ') == text then seen = {} return end\n"
             "    sleep(0.01)\n"
             "  end\n"
             "  error(table.concat(seen, ' '))\n"
             "end\n"
             "c:listen('news', function(payload)\n"
             "  pg.query('SELECT 1')\n" /* it may wait */
             "  seen[#seen + 1] = payload or 'nil'\n"
             "end)\n"
             "await('nil')\n"
             "assert(pg.query('SELECT pg_notify($1, $2)', 'news', 'hello')) await('hello')\n"
             "local pid = c:query('SELECT pg_backend_pid() AS pid')[1].pid\n"
             "assert(pg.query('SELECT pg_terminate_backend($1)', pid)) await('nil')\n"
             "assert(pg.query('SELECT pg_notify($1, $2)', 'news', 'again')) await('again')\n"
             "for _, bad in ipairs{'', ('x'):rep(64), 'a\\0b'} do\n"
             "  assert(not pcall(c.listen, c, bad, print))\n"
             "end\n"
             "assert(not pcall(c.listen, c, 'x')) assert(not pcall(c.observe, c))\n"
             "c:observe(function(state) seen[#seen + 1] = state end)\n"
             "pid = c:query('SELECT pg_backend_pid() AS pid')[1].pid\n"
             "assert(pg.query('SELECT pg_terminate_backend($1)', pid)) await('away ready nil')\n"
             "local called\n"
             "c:listen('deaf', function() called = true error('deaf ears') end)\n"
             "for i = 1, 500 do if called then break end sleep(0.01) end assert(called)");
    assert_non_null(strstr(told, "deaf ears"));
}

static void exit_flushes_and_ends_at_once(void **state)
{
    int pipefd[2], status = 0;
    char got[64] = "";
    assert_int_equal(pipe(pipefd), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipefd[1], 1);
        atexit(remove_program);
        run("spawn(function() sleep(0.01) io.write('half a line') os.exit(9) end) sleep(100)");
        _exit(99);
    }
    close(pipefd[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(read(pipefd[0], got, sizeof got - 1) > 0);
    close(pipefd[0]);
    assert_non_null(strstr(got, "half a line"));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 9);
}

static void calls_from_c(void **state)
{
    lua_State *L = api_vm();
    int top = lua_gettop(L);
    static const char module[] =
        "package.loaded.probe = {add = function(a, b) return a + b end, none = function() end,\n"
        "  bad = function() error('bad day') end, wait = function() sleep(1) end, x = 1,\n"
        "  exit = function() os.exit(3) end,\n"
        "  start = function() spawn(function() sleep(0) probe_ran = true end) end}";
    assert_int_equal(luaL_dostring(L, module), 0);
    lua_pushinteger(L, 2);
    lua_pushinteger(L, 3);
    assert_true(api_call("probe", "add", 2));
    assert_int_equal(lua_tointeger(L, -1), 5);
    lua_pop(L, 1);
    assert_true(api_call("probe", "none", 0));
    assert_true(lua_isnil(L, -1));
    lua_pop(L, 1);
    static const char *const failing[] = {"bad", "wait", "x", "missing", "exit"};
    for (unsigned i = 0; i < COUNT_OF(failing); i++) {
        lua_pushinteger(L, 1);
        assert_false(api_call("probe", failing[i], 1));
        assert_int_equal(lua_gettop(L), top);
    }
    assert_false(api_call("no.such.module", "f", 0));
    assert_true(api_call("probe", "start", 0));
    lua_pop(L, 1);
    ev_run(loop, EVRUN_NOWAIT);
    ev_run(loop, EVRUN_NOWAIT);
    ev_run(loop, EVRUN_NOWAIT);
    lua_getglobal(L, "probe_ran");
    assert_true(lua_toboolean(L, -1));
    lua_pop(L, 1);
    assert_int_equal(lua_gettop(L), top);
}

static void bad_database_url_stops_the_start(void **state)
{
    struct buf error;
    struct ev_loop *l = ev_loop_new(EVFLAG_AUTO);
    buf_init(&error, 4096);
    assert_false(api_start(l, "postgresql://u:secret%zz@h/", &error));
    assert_true(buf_len(&error) > 0);
    assert_null(memmem(buf_data(&error), buf_len(&error), "secret", 6));
    api_stop();
    api_stop();
    buf_fini(&error);
    ev_loop_destroy(l);
}

/* An hour forward or back on the wall is a tenth of a second in a second here, until they agree. */
static void time_follows_the_wall_slowly(void **state)
{
    double ahead = 0, at = 0, last = api_follow(&ahead, &at, 1000, 5000);
    assert_true(last == 5000);
    for (double t = 1; t <= 100; t++) {
        double is = api_follow(&ahead, &at, 1000 + t, 5000 + t + 3600);
        assert_true(is > last && fabs(is - (5000 + t * 1.1)) < 1e-6);
        last = is;
    }
    for (double t = 101; t <= 200; t++) {
        double is = api_follow(&ahead, &at, 1000 + t, 5000 + t - 3600);
        assert_true(is > last && fabs(is - last - 0.9) < 1e-6);
        last = is;
    }
    for (double t = 201; t <= 300; t++)
        last = api_follow(&ahead, &at, 1000 + t, 5000 + t + 2);
    assert_true(fabs(last - 5302) < 1e-6);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
#define P(name) cmocka_unit_test_setup_teardown(name, start_pg, stop)
    const struct CMUnitTest tests[] = {
        T(time_follows_the_wall_slowly),
        T(exit_codes),
        T(arguments),
        T(errors_are_told_with_file_line_and_traceback),
        T(missing_program_is_told),
        T(sleepers_wake_in_order),
        T(spawn_passes_values_both_ways),
        T(a_failing_task_ends_alone),
        T(main_with_endless_recursion_is_an_error),
        T(tasks_end_with_the_main_task),
        T(waiting_is_for_tasks_only),
        T(cancelled_tasks_are_never_resumed),
        T(stale_wake_is_ignored),
        T(waiting_for_nothing_is_noticed),
        T(too_many_tasks_is_an_error),
        T(fetch_brings_status_headers_body),
        T(fetch_errors_are_answers),
        T(fetches_run_side_by_side),
        T(json_errors_are_answers),
        T(log_takes_anything),
        T(without_database_url_pg_says_so),
        P(pg_brings_rows),
        P(pg_errors_are_answers),
        P(what_is_no_text_is_made_one),
        P(stale_rows_find_nobody),
        P(transactions_are_all_or_nothing),
        P(connections_are_named),
        P(notifications_run_tasks),
        P(waiting_is_for_tasks_only),
        T(exit_flushes_and_ends_at_once),
        T(calls_from_c),
        cmocka_unit_test(bad_database_url_stops_the_start),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER")); /* NULL: all */
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
