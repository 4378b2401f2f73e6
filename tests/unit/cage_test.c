/* cage_test.c: what code in a sandbox can't do, whatever it tries. Each case is the body of a
 * function in a file of its own, its line 2; the same VM must serve the next call well. */
#include "cage.h"

#include "log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { MEMORY = 16 << 20, BUDGET = 200000 };
static char path[] = "/tmp/cage_test.XXXXXX";
static const struct sandbox_limits limits = {MEMORY, BUDGET, 10};

static void write_file(const char *text, size_t n)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static struct sandbox *sandbox(const struct sandbox_limits *l)
{
    struct sandbox *s = sandbox_new(l, cage_open);
    assert_non_null(s);
    return s;
}

/* Loads the file and leaves what it returns on the stack. */
static enum sandbox_stop run_file(struct sandbox *s, char *error)
{
    enum sandbox_stop stop = cage_load(s, path, error);
    return stop == SANDBOX_OK ? sandbox_call(s, 0, 1, error) : stop;
}

static enum sandbox_stop run(struct sandbox *s, const char *body, char *error)
{
    char *text = base_printf("return function()\n%s\nend", body);
    write_file(text, strlen(text));
    free(text);
    error[0] = 0;
    assert_int_equal(run_file(s, error), SANDBOX_OK);
    enum sandbox_stop stop = sandbox_call(s, 0, 0, error);
    assert_int_equal(lua_gettop(sandbox_lua(s)), 0);
    return stop;
}

static void stops_within(const struct sandbox_limits *l, const char *body, enum sandbox_stop want,
                         const char *part)
{
    char error[SANDBOX_ERROR_MAX];
    struct sandbox *s = sandbox(l);
    enum sandbox_stop stop = run(s, body, error);
    if (stop != want || !strstr(error, part))
        fail_msg("%s: ended with %d, not %d: \"%s\"", body, stop, want, error);
    assert_in_range(sandbox_memory(s), 1, l->memory);
    if (run(s, "local t = {} for i = 1, 500 do t[i] = ('x'):rep(i) end", error) != SANDBOX_OK)
        fail_msg("after %s: %s", body, error);
    sandbox_free(s);
}

static void stops(const char *body, enum sandbox_stop want, const char *part)
{
    stops_within(&limits, body, want, part);
}

static void works(const char *body)
{
    stops(body, SANDBOX_OK, "");
}

/* ---- instructions and time ---- */

static void an_endless_loop_ends(void **state)
{
    (void)state;
    stops("while true do end", SANDBOX_BUDGET, ":2: used more than 200000 instructions");
    stops("local x = 0 repeat x = x + 1 until false", SANDBOX_BUDGET, ":2: used more");
    stops("local function f() return f() end f()", SANDBOX_BUDGET, ":2: used more");
    stops("local t = {} for i = 1, 1e4 do t[i] = i end\n"
          "while true do table.sort(t, function(a, b) return b < a end) end",
          SANDBOX_BUDGET, "used more");
    stops("while true do ('xxx'):gsub('x', function() end) end", SANDBOX_BUDGET, "used more");
}

static void the_budget_is_what_was_said(void **state)
{
    (void)state;
    works("for i = 1, 150000 do end");
    stops("for i = 1, 250000 do end", SANDBOX_BUDGET, "used more");
    /* Each call has its own. */
    char error[SANDBOX_ERROR_MAX];
    struct sandbox *s = sandbox(&limits);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(run(s, "for i = 1, 150000 do end", error), SANDBOX_OK);
    sandbox_free(s);
}

static void pcall_cannot_swallow_the_end(void **state)
{
    (void)state;
    stops("while true do pcall(function() while true do end end) end", SANDBOX_BUDGET, "used more");
    stops("pcall(function() while true do end end) return 1", SANDBOX_BUDGET, "used more");
    stops("while true do pcall(pcall, function() while true do end end) end", SANDBOX_BUDGET,
          "used more");
    stops("while true do pcall(error) end", SANDBOX_BUDGET, "used more");
    stops("local function f() while true do end end while true do xpcall(f, f) end", SANDBOX_BUDGET,
          "used more");
    stops("xpcall(error, function() while true do end end)", SANDBOX_BUDGET, "used more");
    stops("local t = setmetatable({}, {__index = function() while true do end end})\n"
          "while true do pcall(function() return t.x end) end",
          SANDBOX_BUDGET, "used more");
    stops("local t = setmetatable({}, {__tostring = function() while true do end end})\n"
          "while true do pcall(tostring, t) end",
          SANDBOX_BUDGET, "used more");
}

static void coroutines_are_covered(void **state)
{
    (void)state;
    stops("coroutine.wrap(function() while true do end end)()", SANDBOX_BUDGET, "used more");
    stops("while true do\n"
          "  coroutine.resume(coroutine.create(function() while true do end end))\n"
          "end",
          SANDBOX_BUDGET, "used more");
    stops("local co = coroutine.wrap(function() while true do coroutine.yield() end end)\n"
          "while true do co() end",
          SANDBOX_BUDGET, "used more");
    stops("local co = coroutine.wrap(function()\n"
          "  while true do pcall(function() while true do end end) end end)\n"
          "while true do pcall(co) end",
          SANDBOX_BUDGET, "used more");
    stops("local function nest() return coroutine.wrap(nest)() end return nest()", SANDBOX_ERROR,
          "C stack overflow");
    stops("coroutine.yield()", SANDBOX_ERROR, "yield");
    works(
        "local co = coroutine.wrap(function(a) local b = coroutine.yield(a + 1) return b * 2 end)\n"
        "assert(co(1) == 2 and co(5) == 10)");
}

static void wall_time_is_bounded(void **state)
{
    (void)state;
    const struct sandbox_limits quick = {MEMORY, 1000000000, 0.05};
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    stops_within(&quick, "while true do end", SANDBOX_TIME, ":2: used more than 0.05 seconds");
    stops_within(&quick, "local s = ('x'):rep(60000) while true do local t = s:upper() .. s end",
                 SANDBOX_TIME, ":2: used more than 0.05 seconds");
    stops_within(&quick, "local s = ('a'):rep(1500) while true do s:find('.-b') end", SANDBOX_TIME,
                 ":2: used more than 0.05 seconds");
    clock_gettime(CLOCK_MONOTONIC, &to);
    assert_true(to.tv_sec - from.tv_sec < 5);
}

/* Twenty calls, so few instructions that no step ends meanwhile. */
static void long_calls_are_noticed_when_they_end(void **state)
{
    (void)state;
    static const char *const calls[] = {"table.sort(t)", "os.date(d)"};
    const struct sandbox_limits quick = {MEMORY, 10000000, 0.05};
    for (unsigned i = 0; i < COUNT_OF(calls); i++) {
        char body[256];
        snprintf(body, sizeof body,
                 "local d, t = ('%%c'):rep(32000), {} d = d .. d d = d .. d\n"
                 "for i = 1, 1e5 do t[i] = i end "
                 "for i = 1, 20 do %s end",
                 calls[i]);
        stops_within(&quick, body, SANDBOX_TIME, ":3: used more than 0.05 seconds");
    }
}

/* ---- the library ---- */

static void slow_library_calls_are_refused(void **state)
{
    (void)state;
    stops("local s = ('x'):rep(1e9)", SANDBOX_ERROR, ":2: string.rep may make at most 65536 bytes");
    stops("local s = string.rep('x', 2, ('y'):rep(60000))", SANDBOX_ERROR, "string.rep may make");
    stops("local s = ('x'):rep(0/0) assert(s == '') s = ('x'):rep(1/0)", SANDBOX_ERROR,
          "string.rep may make");
    stops("local s = (('a'):rep(26)):match(('a?'):rep(26) .. ('a'):rep(26))", SANDBOX_ERROR,
          "could take too long on a text of 26 bytes");
    stops("local s = (('a'):rep(5000)):find('.-.-.-.-b')", SANDBOX_ERROR, "could take too long");
    stops("local s = (('a'):rep(5000)):find('[^x]*[]]*%b()*b')", SANDBOX_ERROR,
          "could take too long");
    stops("local s = (('a'):rep(5000)):gsub('(.*)(.*)(.*)b', '')", SANDBOX_ERROR,
          "could take too long");
    stops("for x in (('a'):rep(5000)):gmatch('(.*)(.*)(.*)b') do end", SANDBOX_ERROR,
          "could take too long");
    stops("table.insert({}, -2e9, 1)", SANDBOX_ERROR, "out of bounds");
    stops("table.insert({}, 2e9, 1)", SANDBOX_ERROR, "out of bounds");
    stops("local s = ('x'):rep(65536) s = s .. s local p = s:find('y', 1, true)", SANDBOX_ERROR,
          "could take too long");
    stops("local s = ('a'):rep(65000):find(('a'):rep(32000) .. 'b', 1, true)", SANDBOX_ERROR,
          "could take too long");
    stops("local s = ('x'):rep(60000):find('[' .. ('a'):rep(60000) .. ']')", SANDBOX_ERROR,
          "could take too long");
    stops("local n = select('#', unpack({}, 1, 1e7))", SANDBOX_ERROR, "too many");
}

static void useful_library_calls_are_not(void **state)
{
    (void)state;
    works("local id = '6f9619ff-8b86-4d01-b42d-00cf4fc964ff'\n"
          "assert(id:match('^(%x+)%-(%x+)%-(%x+)%-(%x+)%-(%x+)$') == '6f9619ff')");
    works("local p = '/api/v2/tenants/default_tenant/databases/d/collections/x'\n"
          "local t, d = p:match('^/api/v2/tenants/([^/]+)/databases/([^/]+)/collections')\n"
          "assert(t == 'default_tenant' and d == 'd')");
    works("assert(('a,b,c'):gsub(',', ';') == 'a;b;c')\n"
          "assert(('[x]'):find('[', 1, true) == 1 and ('x]'):find('[]]') == 2)\n"
          "local n = 0 for w in ('one two'):gmatch('%a+') do n = n + 1 end assert(n == 2)\n"
          "assert(('%d ms'):format(3) == '3 ms' and ('ab'):rep(3) == 'ababab')\n"
          "assert((''):rep(1e300) == '' and ('x'):rep(-1) == '')");
    works("local t = {1, 2} table.insert(t, 3) table.insert(t, 1, 0) table.insert(t, 5, 4)\n"
          "assert(table.concat(t) == '01234' and table.remove(t, 1) == 0 and #t == 4)\n"
          "table.sort(t, function(a, b) return b < a end) assert(t[1] == 4)");
    works("assert(bit.band(6, 3) == 2 and math.max(1, 2) == 2 and math.floor(2.5) == 2)\n"
          "assert(os.time() > 0 and os.clock() >= 0 and os.date('%Y') + 0 > 2000)");
    works("assert(select(2, pcall(error, 'x')) == 'x')\n"
          "local ok, a, b = xpcall(function(...) return ... end, error, 1, 2)\n"
          "assert(ok and a == 1 and b == 2)\n"
          "local bad, told = xpcall(error, function(e) return e .. '!' end, 'x')\n"
          "assert(not bad and told == 'x!')");
    works("for k, v in pairs({a = 1}) do assert(k == 'a' and v == 1 and next({a = 1}) == 'a') end\n"
          "local t = setmetatable({}, {__index = function(_, k) return k end})\n"
          "assert(t.x == 'x' and rawget(t, 'x') == nil and rawset(t, 'x', 1).x == 1)");
}

/* ---- memory ---- */

static void memory_is_capped(void **state)
{
    (void)state;
    stops("local t = {} while true do t[#t + 1] = ('x'):rep(6e4) .. #t end", SANDBOX_MEMORY,
          "not enough memory (16777216 bytes for everything in this VM)");
    stops("local s = 'x' while true do s = s .. s end", SANDBOX_MEMORY, "not enough memory");
    stops("local s = ('x'):rep(6e4) local r = s:gsub('x', s)", SANDBOX_MEMORY, "not enough memory");
    stops("local t = {} for i = 1, 1e3 do t[i] = ('x'):rep(6e4) end local s = table.concat(t)",
          SANDBOX_MEMORY, "not enough memory");
    works("local s = 'x' local ok, why = pcall(function() while true do s = s .. s end end)\n"
          "assert(not ok and why == 'not enough memory')");
}

static void too_little_for_the_libraries_is_told(void **state)
{
    (void)state;
    size_t memory = 1000;
    struct sandbox *s = NULL;
    while (!s && memory < MEMORY) {
        const struct sandbox_limits poor = {memory, BUDGET, 1};
        s = sandbox_new(&poor, cage_open);
        memory += 500;
    }
    assert_in_range(memory, 10000, 200000);
    sandbox_free(s);
}

static void deep_recursion_is_an_error(void **state)
{
    (void)state;
    stops("local function f() return 1 + f() end return f()", SANDBOX_ERROR, "stack overflow");
    stops("local t = setmetatable({}, {__index = function(t, k) local v = t[k] return v end})\n"
          "return t.x",
          SANDBOX_ERROR, "overflow");
    stops("local function f() return (('x'):gsub('x', f)) end return f()", SANDBOX_ERROR,
          "overflow");
    stops("local function f() pcall(f) end f() while true do f() end", SANDBOX_BUDGET, "used more");
    const struct sandbox_limits roomy = {256 << 20, 20000000, 10};
    stops_within(&roomy, "local function nest() return coroutine.wrap(nest)() end return nest()",
                 SANDBOX_ERROR, "C stack overflow");
    stops_within(&roomy, "local function f() table.sort({1, 2, 3}, f) end f()", SANDBOX_ERROR,
                 "overflow");
    stops_within(&roomy,
                 "local t t = setmetatable({}, {__tostring = function() return tostring(t) end})\n"
                 "return tostring(t)",
                 SANDBOX_BUDGET, "used more");
    const struct sandbox_limits small = {MEMORY, 5000, 10};
    stops_within(&small, "local function f() xpcall(f, f) end f()", SANDBOX_BUDGET, "used more");
}

/* ---- the environment ---- */

static void only_the_white_list_is_there(void **state)
{
    (void)state;
    static const char *const absent[] = {
        "debug",    "jit",        "ffi",      "io",     "package", "load",
        "require",  "loadstring", "loadfile", "dofile", "module",  "collectgarbage",
        "newproxy", "setfenv",    "getfenv",  "_G",     "gcinfo",  "undefined_name"};
    for (unsigned i = 0; i < COUNT_OF(absent); i++) {
        char body[64], error[96];
        snprintf(body, sizeof body, "return %s", absent[i]);
        snprintf(error, sizeof error, ":2: uses the global '%s'", absent[i]);
        stops(body, SANDBOX_ERROR, error);
    }
    stops("counter = 1", SANDBOX_ERROR, ":2: sets the global 'counter'");
    stops("math.random()", SANDBOX_ERROR, "lb.random()");
    works("assert(not os.execute and not os.exit and not os.getenv and not os.remove)\n"
          "assert(not os.rename and not os.tmpname and not os.setlocale)\n"
          "assert(not string.dump and not coroutine.isyieldable)");
}

/* The environments reach the libraries of the VM by no way: metatables, strings, functions. */
static void the_cage_has_no_holes(void **state)
{
    (void)state;
    works("assert(getmetatable('') == 'read-only')");
    stops("setmetatable('', {})", SANDBOX_ERROR, "bad argument");
    works("assert(not pcall(rawset, getmetatable(''), 'x', 1))");
    stops("string.rep = function() end string.rep(); ('x'):rep(1e9)", SANDBOX_ERROR,
          "string.rep may make");
    char error[SANDBOX_ERROR_MAX];
    struct sandbox *s = sandbox(&limits);
    assert_int_equal(
        run(s, "string.rep, table.sort, math.floor, ipairs = nil, nil, nil, nil", error),
        SANDBOX_OK);
    assert_int_equal(run(s, "assert(string.rep and table.sort and math.floor and ipairs)", error),
                     SANDBOX_OK);
    sandbox_free(s);
}

static int push_frozen(lua_State *L)
{
    lua_newtable(L);
    lua_pushnumber(L, 5);
    lua_setfield(L, -2, "five");
    cage_freeze(L);
    cage_share(L, "frozen");
    return 0;
}

static void views_are_read_only(void **state)
{
    (void)state;
    char error[SANDBOX_ERROR_MAX] = "";
    struct sandbox *s = sandbox(&limits);
    lua_State *L = sandbox_lua(s);
    lua_pushcfunction(L, push_frozen);
    assert_int_equal(sandbox_call(s, 0, 0, error), SANDBOX_OK);
    static const char *const refused[] = {"frozen.five = 6",           "frozen.six = 6",
                                          "rawset(frozen, 'five', 6)", "setmetatable(frozen, nil)",
                                          "frozen = 1 + {}",           "setmetatable(frozen, {})"};
    for (unsigned i = 0; i < COUNT_OF(refused); i++)
        assert_int_equal(run(s, refused[i], error), SANDBOX_ERROR);
    assert_int_equal(run(s,
                         "assert(frozen.five == 5 and frozen.six == nil)\n"
                         "local n = 0 for k, v in pairs(frozen) do\n"
                         "  n = n + 1 assert(k == 'five' and v == 5) end\n"
                         "assert(n == 1 and next(frozen) == 'five' and type(frozen) == 'table')\n"
                         "local _, t = pairs(frozen) assert(t == frozen)",
                         error),
                     SANDBOX_OK);
    sandbox_free(s);
}

/* ---- files
 * --------------------------------------------------------------------------------------- */

static void file_is(const char *text, size_t n, enum sandbox_stop want, const char *part)
{
    char error[SANDBOX_ERROR_MAX] = "";
    struct sandbox *s = sandbox(&limits);
    write_file(text, n);
    enum sandbox_stop stop = run_file(s, error);
    if (stop != want || !strstr(error, part))
        fail_msg("ended with %d, not %d: \"%s\"", stop, want, error);
    sandbox_free(s);
}

static void files_are_checked(void **state)
{
    (void)state;
    file_is("return 1", 8, SANDBOX_OK, "");
    file_is("", 0, SANDBOX_OK, "");
    file_is("return {\n1 2}", 13, SANDBOX_ERROR, ":2: '}' expected");
    file_is("\x1bLJ\x02", 4, SANDBOX_ERROR, "compiled code is not accepted");
    file_is("a\0b", 3, SANDBOX_ERROR, ":1: ");
    file_is("while true do end", 17, SANDBOX_BUDGET, ":1: used more");
    size_t n = (1 << 20) + 1;
    char *big = base_alloc(n);
    memset(big, ' ', n);
    file_is(big, n - 1, SANDBOX_OK, "");
    file_is(big, n, SANDBOX_ERROR, "larger than 1 MiB");
    free(big);
}

static void what_is_no_file_is_told(void **state)
{
    (void)state;
    static const char *const paths[] = {"/tmp/cage_test.none", "/tmp", "/dev/null"};
    static const char *const parts[] = {"No such file", "not a regular file", "not a regular file"};
    for (unsigned i = 0; i < COUNT_OF(paths); i++) {
        char error[SANDBOX_ERROR_MAX] = "";
        struct sandbox *s = sandbox(&limits);
        assert_int_equal(cage_load(s, paths[i], error), SANDBOX_ERROR);
        assert_non_null(strstr(error, paths[i]));
        assert_non_null(strstr(error, parts[i]));
        sandbox_free(s);
    }
    /* A pipe that nobody writes to must not hang the load. */
    char error[SANDBOX_ERROR_MAX] = "";
    struct sandbox *s = sandbox(&limits);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cage_load(s, path, error), SANDBOX_ERROR);
    assert_non_null(strstr(error, "not a regular file"));
    assert_int_equal(unlink(path), 0);
    sandbox_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_endless_loop_ends),
        cmocka_unit_test(the_budget_is_what_was_said),
        cmocka_unit_test(pcall_cannot_swallow_the_end),
        cmocka_unit_test(coroutines_are_covered),
        cmocka_unit_test(wall_time_is_bounded),
        cmocka_unit_test(long_calls_are_noticed_when_they_end),
        cmocka_unit_test(slow_library_calls_are_refused),
        cmocka_unit_test(useful_library_calls_are_not),
        cmocka_unit_test(memory_is_capped),
        cmocka_unit_test(too_little_for_the_libraries_is_told),
        cmocka_unit_test(deep_recursion_is_an_error),
        cmocka_unit_test(only_the_white_list_is_there),
        cmocka_unit_test(the_cage_has_no_holes),
        cmocka_unit_test(views_are_read_only),
        cmocka_unit_test(files_are_checked),
        cmocka_unit_test(what_is_no_file_is_told),
    };
    log_set_fd(-1);
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)unlink(path);
    return failed;
}
