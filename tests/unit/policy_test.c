/* policy_test.c: whatever a policy does, a request gets a node: limits, wrong answers, tripping,
 * reloads. Policies are written to a fresh folder by each test. */
#include "policy.h"

#include "log.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];                 /* fresh for each test */
static const char *policy_dir = dir; /* what the settings name */
static struct node a = {.name = (char *)"a", .priority = 100, .weight = 5, .id = 3},
                   b = {.name = (char *)"b", .priority = 90, .weight = 1, .id = 9},
                   c = {.name = (char *)"c", .priority = 80, .weight = 1, .id = 63};
static struct node *const all[] = {&a, &b, &c};
static struct route query, add;

static const char good_failover[] =
    "return {judge = function(s) return s.up and 'up' or 'down' end}\n";

static void write_file(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

/* A route.lua around the body of route(req, nodes), which is its line 2. */
static void write_route(const char *body)
{
    char *text = base_printf("local M = {} local kept = {} function M.route(req, nodes)\n%s\nend\n"
                             "return M\n",
                             body);
    write_file("route.lua", text);
    free(text);
}

static struct config *settings(const char *more, ...)
{
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, 65536);
    config_raws_add(&raws, "POLICY_DIR", policy_dir, CONFIG_TEXT, "test");
    config_raws_add(&raws, "CHROMA_INSTANCES",
                    "a=http://127.0.0.1:1,priority=100,weight=5;b=http://127.0.0.1:2,priority=90;"
                    "c=http://127.0.0.1:3,priority=80",
                    CONFIG_TEXT, "test");
    config_raws_add(&raws, "POLICY_TIME", "10", CONFIG_TEXT, "--set"); /* machines are busy */
    va_list args;
    va_start(args, more);
    for (const char *name = more; name; name = va_arg(args, const char *))
        config_raws_add(&raws, name, va_arg(args, const char *), CONFIG_TEXT, "--set");
    va_end(args);
    struct config *cfg = config_build(&raws, &errors);
    if (!cfg)
        fail_msg("%.*s", (int)buf_len(&errors), buf_data(&errors));
    config_raws_fini(&raws);
    buf_fini(&errors);
    return cfg;
}

/* Loads what the folder holds; the text of the mistakes, or "". */
static const char *load_with(struct config *cfg)
{
    static char text[8192];
    struct buf errors;
    buf_init(&errors, sizeof text - 1);
    bool good = policy_load(cfg, &errors);
    snprintf(text, sizeof text, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    assert_int_equal(good, text[0] == 0);
    buf_fini(&errors);
    config_free(cfg);
    return text;
}

static const char *load(void)
{
    return load_with(settings(NULL));
}

static void load_route(const char *body)
{
    write_route(body);
    const char *why = load();
    if (*why)
        fail_msg("%s", why);
}

static void contains(const char *text, const char *part)
{
    assert_non_null(text);
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

static struct policy_request request(const struct route *route)
{
    return (struct policy_request){.route = route,
                                   .method = STR("POST"),
                                   .client = STR("192.0.2.7"),
                                   .collection_id = "11111111-2222-3333-4444-555555555555",
                                   .attempt = 1,
                                   .last_error = "",
                                   .bytes = 44,
                                   .session = STR("s1")};
}

static struct policy_verdict ask(const struct policy_request *r, double now)
{
    struct policy_verdict v;
    policy_route(r, all, 3, now, &v);
    return v;
}

static struct policy_verdict ask_query(void)
{
    struct policy_request r = request(&query);
    return ask(&r, 1000);
}

static uint64_t failures(enum policy_failure f)
{
    return policy_stats(POLICY_ROUTE)->failures[f];
}

/* ---- the set-up ---- */

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/policy_test.XXXXXX");
    assert_non_null(mkdtemp(dir));
    write_file("failover.lua", good_failover);
    a.swrr = b.swrr = c.swrr = 0;
    a.inflight = 2;
    b.inflight = 0;
    c.inflight = 1;
    a.weight = 5;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    static const char *const files[] = {"route.lua", "failover.lua"};
    for (unsigned i = 0; i < COUNT_OF(files); i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        (void)unlink(path);
    }
    policy_dir = dir;
    policy_unload();
    return rmdir(dir);
}

/* ---- limits ---- */

static void falls_back(const char *body, enum policy_failure kind, const char *error)
{
    char *guarded = base_printf("if req.bytes ~= 44 then return nodes[1].name end\n%s", body);
    load_route(guarded);
    free(guarded);
    uint64_t before = failures(kind), fallbacks = policy_stats(POLICY_ROUTE)->fallbacks;
    struct policy_verdict v = ask_query();
    contains(policy_stats(POLICY_ROUTE)->last_error, error);
    contains(policy_stats(POLICY_ROUTE)->last_error, "route.lua:");
    if (failures(kind) != before + 1)
        fail_msg("not counted as %s: %s", policy_failure_name(kind),
                 policy_stats(POLICY_ROUTE)->last_error);
    assert_int_equal(policy_stats(POLICY_ROUTE)->fallbacks, fallbacks + 1);
    assert_ptr_equal(v.node, &b);
    assert_true(v.by_fallback);
    /* The next call is none the worse. */
    struct policy_request r = request(&query);
    r.bytes = 7;
    v = ask(&r, 1000);
    assert_ptr_equal(v.node, &a);
    assert_false(v.by_fallback);
}

static void each_limit_ends_in_the_fallback(void **state)
{
    (void)state;
    falls_back("while true do pcall(function() while true do end end) end", POLICY_FAIL_BUDGET,
               "used more than 200000 instructions");
    falls_back("local t = {} while true do t[#t + 1] = ('x'):rep(6e4) .. #t end",
               POLICY_FAIL_MEMORY, "not enough memory");
    falls_back("return req.x.y", POLICY_FAIL_ERROR, "attempt to index");
    falls_back("return string.rep('x', 1e9)", POLICY_FAIL_ERROR, "string.rep may make at most");
}

static void time_is_a_limit(void **state)
{
    (void)state;
    write_route("if req.bytes ~= 44 then return nodes[1].name end\n"
                "while true do end");
    assert_string_equal(
        load_with(settings("POLICY_BUDGET", "100000000", "POLICY_TIME", "0.05", NULL)), "");
    uint64_t before = failures(POLICY_FAIL_TIME);
    assert_true(ask_query().by_fallback);
    assert_int_equal(failures(POLICY_FAIL_TIME), before + 1);
    contains(policy_stats(POLICY_ROUTE)->last_error, "route.lua:3: used more than 0.05 seconds");
}

static void a_leak_ends_in_the_fallback(void **state)
{
    (void)state;
    load_route("kept[#kept + 1] = ('x'):rep(60000) .. #kept return nodes[1].name");
    unsigned good = 0;
    struct policy_request r = request(&query);
    for (unsigned i = 0; i < 1000; i++) {
        struct policy_verdict v = ask(&r, 1000 + i);
        assert_non_null(v.node);
        good += !v.by_fallback;
    }
    assert_in_range(good, 100, 400);
    assert_true(failures(POLICY_FAIL_MEMORY) > 0);
}

/* ---- what is shared ---- */

static void shared_things_cannot_be_changed(void **state)
{
    (void)state;
    falls_back("getmetatable('').__index = nil", POLICY_FAIL_ERROR, "route.lua:3");
    falls_back("setmetatable(req, nil)", POLICY_FAIL_ERROR, "protected metatable");
    falls_back("rawset(nodes[1], 'name', 'x')", POLICY_FAIL_ERROR, "read-only");
    falls_back("nodes[1].weight = 0", POLICY_FAIL_ERROR, "'weight' cannot be set");
    falls_back("req.class = 'read'", POLICY_FAIL_ERROR, "'class' cannot be set");
    falls_back("req.tried.a = true", POLICY_FAIL_ERROR, "'a' cannot be set");
    falls_back("lb.now = 5", POLICY_FAIL_ERROR, "'now' cannot be set");
    falls_back("lb.settings.PORT = 5", POLICY_FAIL_ERROR, "'PORT' cannot be set");
    /* One file that ruins its own libraries ruins nobody else's, nor the methods of strings. */
    write_file("failover.lua", "return {judge = function() return ('x'):rep(1) == 'x' and\n"
                               "string.rep and 'up' end}");
    load_route("string.rep = nil table.sort = nil return nodes[1].name");
    assert_false(ask_query().by_fallback);
    char reason[POLICY_REASON_MAX];
    uint64_t before = policy_stats(POLICY_FAILOVER)->fallbacks;
    assert_true(policy_judge_up(&a, NULL, 1, reason));
    assert_int_equal(policy_stats(POLICY_FAILOVER)->fallbacks, before);
}

static void a_changed_list_does_not_outlive_the_call(void **state)
{
    (void)state;
    load_route("assert(#nodes <= 3, 'too many')\n"
               "for i = 1, #nodes do assert(nodes[i].name) end\n"
               "local first = nodes[1].name\n"
               "if req.bytes == 44 then\n"
               "  table.sort(nodes, function(x, y) return x.name > y.name end)\n"
               "  nodes[#nodes + 1] = {name = 'ghost'}\n"
               "  nodes[1] = {name = 'other'}\n"
               "  setmetatable(nodes, {__index = function() return {name = 'ghost'} end})\n"
               "end\n"
               "return first");
    struct policy_request r = request(&query);
    for (unsigned i = 0; i < 6; i++) {
        r.bytes = i % 2 ? 44 : 1;
        struct policy_verdict v = ask(&r, 1000);
        assert_ptr_equal(v.node, &a);
        assert_false(v.by_fallback);
        policy_route(&r, all + 1, 1, 1000, &v);
        assert_ptr_equal(v.node, &b);
        assert_false(v.by_fallback);
    }
}

/* ---- what a policy sees ---- */

static void fields_follow_what_they_tell(void **state)
{
    (void)state;
    load_route(
        "if req.method == 'GET' then return nodes[1].name end\n"
        "local out = {}\n"
        "for _, k in ipairs{'class','action','method','route','tenant','database','collection',\n"
        "  'client','session','last_error','bytes','attempt','reads'} do\n"
        "  out[#out + 1] = tostring(req[k])\n"
        "end\n"
        "local t = {} for name in pairs(req.tried) do t[#t + 1] = name end table.sort(t)\n"
        "out[#out + 1] = '{' .. table.concat(t, ' ') .. '}'\n"
        "local n = nodes[1]\n"
        "for _, k in ipairs{'name','role','priority','weight','state','inflight','queued',\n"
        "  'maxconn','ewma_ms','fails','behind','requests','syncing'} do\n"
        "  out[#out + 1] = tostring(n[k])\n"
        "end\n"
        "return nil, table.concat(out, ',', req.bytes == 1 and 14 or 1, \n"
        "  req.bytes == 1 and #out or 14) .. ',' .. lb.now");
    struct policy_request r = request(&query);
    struct policy_verdict v = ask(&r, 1000.5);
    contains(v.reason, "read,query,POST,/api/v2/tenants/");
    /* The reason is cut at 127 bytes; what is behind shows with a shorter start. */
    r.bytes = 1;
    a.role = CONFIG_PRIMARY;
    a.health = NODE_UP;
    v = ask(&r, 1000.5);
    assert_string_equal(v.reason, "{},a,primary,100,5,up,2,0,0,0,0,0,0,0,1000.5");
    a.role = CONFIG_REPLICA;
    a.health = NODE_SUSPECT;
    a.inflight = 7;
    a.queued = 1;
    a.maxconn = 8;
    a.ewma_ms = 2.5;
    a.ewma_at = 1001;
    a.history.fails = 4;
    a.requests = 12345;
    a.syncing = 3;
    a.priority = -1;
    r.tried = 1ull << b.id | 1ull << c.id;
    r.attempt = 3;
    v = ask(&r, 1001);
    assert_string_equal(v.reason, "{b c},a,replica,-1,5,suspect,7,1,8,2.5,4,0,12345,3,1001");
    a.weight = 10;
    a.slow_start_at = 1001;
    v = ask(&r, 1006);
    contains(v.reason, "{b c},a,replica,-1,5,suspect");
    r.tried = 0;
    v = ask(&r, 1012);
    contains(v.reason, "{},a,replica,-1,10,suspect");
    a.slow_start_at = 0;
    a.health = NODE_UP;
    a.priority = 100;
    a.queued = 0;
    a.maxconn = 0;
    a.ewma_ms = 0;
    a.history.fails = 0;
    a.requests = 0;
    a.syncing = 0;
}

static void a_node_that_takes_over_an_id_is_another(void **state)
{
    (void)state;
    load_route("return nodes[1].name, nodes[1].name");
    struct policy_request r = request(&query);
    struct node old = {.name = (char *)"old", .id = 5, .weight = 1};
    struct node *one[] = {&old};
    struct policy_verdict v;
    policy_route(&r, one, 1, 1, &v);
    assert_string_equal(v.reason, "old");
    old.name = (char *)"new"; /* the same memory, too */
    policy_route(&r, one, 1, 1, &v);
    assert_ptr_equal(v.node, &old);
    assert_string_equal(v.reason, "new");
}

static void swrr_is_exact(void **state)
{
    (void)state;
    load_route("return lb.swrr(nodes).name");
    char order[64] = "";
    for (unsigned i = 0; i < 14; i++)
        strcat(order, ask_query().node->name);
    assert_string_equal(order, "aabacaaaabacaa");
    /* A reload goes on where the last generation stopped. */
    char next[2][8] = {"", ""};
    for (unsigned i = 0; i < 3; i++)
        strcat(next[0], ask_query().node->name);
    load_route("return lb.swrr(nodes).name");
    for (unsigned i = 0; i < 4; i++)
        strcat(next[1], ask_query().node->name);
    assert_string_equal(next[0], "aab");
    assert_string_equal(next[1], "acaa");
}

static void swrr_takes_weights_of_the_policys_own(void **state)
{
    (void)state;
    load_route("return lb.swrr({{name = nodes[#nodes].name, weight = 3},\n"
               "                {name = nodes[1].name, weight = 1}}).name");
    unsigned of_a = 0, of_c = 0;
    for (unsigned i = 0; i < 400; i++) {
        struct node *n = ask_query().node;
        of_a += n == &a;
        of_c += n == &c;
    }
    assert_int_equal(of_c, 300);
    assert_int_equal(of_a, 100);
    falls_back("return lb.swrr({{name = 'ghost', weight = 1}}).name", POLICY_FAIL_ERROR,
               "element 1 is not one of the nodes");
    falls_back("return lb.swrr({{name = 'a', weight = 0}}).name", POLICY_FAIL_ERROR,
               "no weight over 0");
    falls_back("return lb.swrr({{name = 'a', weight = 0/0}}).name", POLICY_FAIL_ERROR,
               "no weight over 0");
    falls_back("return lb.swrr({}).name", POLICY_FAIL_ERROR, "index a nil value");
    falls_back("return lb.swrr({1, nil, 3}).name", POLICY_FAIL_ERROR, "element 1");
}

/* ---- answers ---- */

static void wrong_answers_fall_back(void **state)
{
    (void)state;
    falls_back("return 1", POLICY_FAIL_ANSWER, "answered a number");
    falls_back("return nodes[1]", POLICY_FAIL_ANSWER, "answered a table");
    falls_back("return true", POLICY_FAIL_ANSWER, "answered a boolean");
    falls_back("return 'a', 5", POLICY_FAIL_ANSWER, "the reason is a number");
    falls_back("return", POLICY_FAIL_ANSWER, "answered nil without a reason");
    falls_back("return nil", POLICY_FAIL_ANSWER, "answered nil without a reason");
    falls_back("return nil, {}", POLICY_FAIL_ANSWER, "the reason is a table");
    falls_back("return 'a', 'x', 5", POLICY_FAIL_ANSWER, "third answer is a number");
    falls_back("return 'a', 'x', {timeout = 0}", POLICY_FAIL_ANSWER, "'timeout'");
    falls_back("return 'a', 'x', {timeout = -1}", POLICY_FAIL_ANSWER, "'timeout'");
    falls_back("return 'a', 'x', {timeout = 0/0}", POLICY_FAIL_ANSWER, "'timeout'");
    falls_back("return 'a', 'x', {timeout = 1/0}", POLICY_FAIL_ANSWER, "'timeout'");
    falls_back("return 'a', 'x', {timeout = '1'}", POLICY_FAIL_ANSWER, "'timeout'");
    falls_back("return 'a', 'x', {max_behind = -1}", POLICY_FAIL_ANSWER, "'max_behind'");
    falls_back("return 'a', 'x', {timout = 1}", POLICY_FAIL_ANSWER, "'timout'");
    falls_back("return 'a', 'x', {1}", POLICY_FAIL_ANSWER, "'?'");
    falls_back("return 'ghost'", POLICY_FAIL_UNKNOWN_NODE, "answered 'ghost'");
    falls_back("return ''", POLICY_FAIL_UNKNOWN_NODE, "answered ''");
    falls_back("error({})", POLICY_FAIL_ERROR, "route.lua:");
}

static void right_answers_are_taken(void **state)
{
    (void)state;
    load_route(
        "if req.bytes == 44 then return nodes[2].name, 'why', {timeout = 1.5, max_behind = 3} "
        "end\n"
        "if req.bytes == 45 then return nil, 'closed for lunch' end\n"
        "return nodes[1].name, ('long '):rep(100)");
    struct policy_request r = request(&query);
    struct policy_verdict v = ask(&r, 1);
    assert_ptr_equal(v.node, &b);
    assert_string_equal(v.reason, "why");
    assert_true(v.timeout == 1.5 && v.max_behind == 3 && !v.by_fallback);
    r.bytes = 45;
    v = ask(&r, 1);
    assert_null(v.node);
    assert_string_equal(v.reason, "closed for lunch");
    assert_true(v.timeout == 0 && v.max_behind == -1 && !v.by_fallback);
    r.bytes = 47;
    v = ask(&r, 1);
    assert_ptr_equal(v.node, &a);
    assert_int_equal(strlen(v.reason), 127);
}

static void no_candidates_is_no_call(void **state)
{
    (void)state;
    load_route("return nodes[1].name");
    uint64_t calls = policy_stats(POLICY_ROUTE)->calls;
    struct policy_request r = request(&query);
    struct policy_verdict v;
    policy_route(&r, all, 0, 1, &v);
    assert_null(v.node);
    assert_int_equal(policy_stats(POLICY_ROUTE)->calls, calls);
}

static void the_fallback_avoids_nodes_tried(void **state)
{
    (void)state;
    policy_unload();
    struct policy_request r = request(&query);
    assert_ptr_equal(ask(&r, 1).node, &b);
    r.tried = 1ull << b.id;
    assert_ptr_equal(ask(&r, 1).node, &c);
    r.tried |= 1ull << c.id;
    assert_ptr_equal(ask(&r, 1).node, &a);
    r.tried |= 1ull << a.id;
    assert_ptr_equal(ask(&r, 1).node, &b);
    b.inflight = c.inflight = a.inflight = 4;
    r.tried = 0;
    assert_ptr_equal(ask(&r, 1).node, &a);
}

/* ---- tripping ---- */

static void failing_often_trips_until_the_next_load(void **state)
{
    (void)state;
    const char *body = "if req.bytes == 44 then error('no') end return nodes[1].name";
    load_route(body);
    struct policy_request bad = request(&query), fine = request(&query);
    fine.bytes = 1;
    for (unsigned i = 0; i < POLICY_TRIP - 1; i++)
        (void)ask(&bad, 100);
    assert_false(policy_stats(POLICY_ROUTE)->tripped);
    assert_ptr_equal(ask(&fine, 100).node, &a);
    uint64_t errors = failures(POLICY_FAIL_ERROR);
    (void)ask(&bad, 109);
    assert_true(policy_stats(POLICY_ROUTE)->tripped);
    struct policy_verdict v = ask(&fine, 109);
    assert_true(v.by_fallback);
    assert_int_equal(failures(POLICY_FAIL_ERROR), errors + 1);
    load_route(body);
    assert_false(policy_stats(POLICY_ROUTE)->tripped);
    assert_string_equal(policy_stats(POLICY_ROUTE)->last_error, "");
    assert_false(ask(&fine, 110).by_fallback);
}

static void failing_seldom_does_not_trip(void **state)
{
    (void)state;
    load_route("if req.bytes == 44 then error('no') end return nodes[1].name");
    struct policy_request bad = request(&query);
    for (unsigned i = 0; i < 100; i++)
        (void)ask(&bad, i);
    assert_false(policy_stats(POLICY_ROUTE)->tripped);
}

/* ---- loading ---- */

static void refused(const char *route_text, const char *error)
{
    load_route("return 'b', 'the good one'");
    unsigned generation = policy_generation();
    write_file("route.lua", route_text);
    const char *why = load();
    contains(why, error);
    contains(policy_load_error(), error);
    assert_int_equal(why[strlen(why) - 1], '\n');
    assert_int_equal(policy_generation(), generation);
    assert_string_equal(ask_query().reason, "the good one");
}

static void a_bad_file_leaves_the_old_one_serving(void **state)
{
    (void)state;
    refused("local M = {\nreturn M", "route.lua:2: unexpected symbol near 'return'");
    refused("return 5", "route.lua: returns a number, not a table");
    refused("", "route.lua: returns a nil, not a table");
    refused("return {}", "route.lua: has no function route()");
    refused("return {route = 5}", "route.lua: has no function route()");
    refused("\nwhile true do end", "route.lua:2: used more than 200000 instructions");
    refused("local t = {} while true do t[#t + 1] = ('x'):rep(6e4) .. #t end", "not enough memory");
    refused("return {route = function() while true do end end}", "route.lua:1: used more than");
    refused("\nreturn {route = function() return 5 end}", "route.lua:2: answered a number");
    refused("return {route = function() return 'elsewhere' end}", "answered 'elsewhere'");
    refused("return {route = function() end}", "answered nil without a reason");
    refused("return {route = function() return nil, 'no' end}", "chose no node for any request");
    refused("return {route = function(r) return r.x.y end}", "route.lua:1: attempt to index");
    refused("local x = y\nreturn {}", "route.lua:1: uses the global 'y'");
    refused("\x1bLJ\x02", "compiled code is not accepted");
    refused("return {strategies = {mine = function() end}, route = function() return 'b' end}",
            "LOAD_BALANCE_STRATEGY = \"write_primary\" (default): expected a strategy of ");
    assert_string_equal(load(), load());
}

static void missing_files_are_named(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/route.lua", dir);
    const char *why = load();
    contains(why, "route.lua: No such file or directory");
    assert_int_equal(mkdir(path, 0700), 0);
    contains(load(), "route.lua: not a regular file");
    assert_int_equal(rmdir(path), 0);
    write_file("failover.lua", "return {judge = function() return 'maybe' end}");
    write_route("return nodes[1].name");
    contains(load(), "failover.lua:1: answered maybe, not \"up\" or \"down\"");
    write_file("failover.lua", "syntax error");
    write_file("route.lua", "another one");
    why = load();
    contains(why, "route.lua:1:");
    contains(why, "failover.lua:1:"); /* all mistakes at once */
}

static void checking_changes_nothing(void **state)
{
    (void)state;
    load_route("return 'b', 'old'");
    unsigned generation = policy_generation();
    struct config *cfg = settings(NULL);
    struct buf errors;
    buf_init(&errors, 4096);
    write_route("return 'b', 'new'");
    char missing[POLICY_MISSING_MAX];
    assert_true(policy_check(cfg, &errors, missing));
    assert_string_equal(missing, "sync.lua,upgrade.lua,notify.lua,slack.lua");
    write_route("return 5");
    assert_false(policy_check(cfg, &errors, missing));
    assert_true(buf_len(&errors) > 0);
    assert_int_equal(policy_generation(), generation);
    assert_string_equal(ask_query().reason, "old");
    assert_string_equal(policy_load_error(), "");
    buf_fini(&errors);
    config_free(cfg);
}

static void a_configured_name_may_be_constant(void **state)
{
    (void)state;
    load_route("return 'c'");
    assert_ptr_equal(ask_query().node, &c);
}

static void settings_are_typed(void **state)
{
    (void)state;
    load_route("local s = lb.settings\n"
               "assert(s.PORT == 8000 and s.SYNC_DISTRIBUTED == false)\n"
               "assert(s.LOAD_BALANCE_STRATEGY == 'write_primary' and s.FAILURE_THRESHOLD == 3)\n"
               "assert(s.DATABASE_URL == nil and s.SLACK_WEBHOOK_URL == nil)\n"
               "local n = 0 for k in pairs(s) do n = n + 1 end assert(n > 20)\n"
               "return nodes[1].name");
}

/* ---- judge ---- */

static void judge_is_told_and_believed(void **state)
{
    (void)state;
    write_route("return nodes[1].name");
    write_file(
        "failover.lua",
        "return {judge = function(s, h)\n"
        "local up = h.passes > 0 and 'up' or 'down'\n"
        "return up, ('%s %s %s %s %s %g|%d %d %d %d %d %d %d %g %s'):format(s.kind, s.name,\n"
        "  s.collection, s.state, tostring(s.up), s.since, h.fails, h.passes,\n"
        "  h.connect_fails, h.timeouts, h.resets, h.errors_5xx, h.oks, h.busy, h.last_error)\n"
        "end}");
    assert_string_equal(load(), "");
    char reason[POLICY_REASON_MAX];
    struct node n = {.name = (char *)"n",
                     .health = NODE_SUSPECT,
                     .since = 90,
                     .history = {1, 2, 3, 4, 5, 6, 7, 95, "err"}};
    struct collection_state col = {.id = "uuid", .health = NODE_DOWN, .since = 99};
    assert_true(policy_judge_up(&n, NULL, 100, reason));
    assert_string_equal(reason, "instance n  suspect true 10|1 2 3 4 5 6 7 5 err");
    assert_false(policy_judge_up(&n, &col, 100, reason));
    assert_string_equal(reason, "collection n uuid down false 1|0 0 0 0 0 0 0 0 ");
}

static void judge_falls_back_to_thresholds(void **state)
{
    (void)state;
    char reason[POLICY_REASON_MAX];
    write_route("return nodes[1].name");
    write_file("failover.lua", "return {judge = function(s) if s.name == 'n' then error('no') end\n"
                               "return 'up' end}");
    assert_string_equal(load_with(settings("FAILURE_THRESHOLD", "4", NULL)), "");
    struct node n = {.name = (char *)"n", .health = NODE_UP, .history = {.fails = 3}};
    assert_true(policy_judge_up(&n, NULL, 1, reason));
    n.history.fails = 4;
    assert_false(policy_judge_up(&n, NULL, 1, reason));
    contains(reason, "fallback: 4 failures");
    n.health = NODE_DOWN;
    n.history = (struct history){.passes = 1};
    assert_false(policy_judge_up(&n, NULL, 1, reason));
    n.history.passes = 2;
    assert_true(policy_judge_up(&n, NULL, 1, reason));
    struct collection_state col = {.health = NODE_UP, .history = {.errors_5xx = 4}};
    assert_false(policy_judge_up(&n, &col, 1, reason));
}

/* A shipped policy on the shipped settings; printed for whoever measures (CHROMUX_BENCH=1). */
static void shipped_policies_load(void **state)
{
    (void)state;
    if (access("policies/route.lua", R_OK) != 0)
        skip();
    policy_dir = "policies";
    static const char *const strategies[] = {
        "write_primary",       "round_robin", "random",    "priority",
        "least_connections",   "two_choices", "peak_ewma", "read_replica",
        "collection_affinity", "sticky"};
    for (unsigned i = 0; i < COUNT_OF(strategies); i++) {
        const char *why = load_with(settings("LOAD_BALANCE_STRATEGY", strategies[i], NULL));
        if (*why)
            fail_msg("%s", why);
        struct policy_request r = request(&query);
        unsigned rounds = getenv("CHROMUX_BENCH") ? 1000000 : 100;
        struct timespec from, to;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
        for (unsigned k = 0; k < rounds; k++) {
            struct policy_verdict v;
            a.inflight = k & 3;
            b.requests = k;
            b.ewma_ms = k & 7;
            r.bytes = k & 255;
            policy_route(&r, all, 2 + (k & 1), 1000 + k / 1000, &v);
            assert_false(v.by_fallback);
        }
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
        double took = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
        if (rounds > 100)
            print_message("%-20s %6.0f ns\n", strategies[i], took / rounds);
    }
    const char *why = load_with(settings("LOAD_BALANCE_STRATEGY", "wite_primary", NULL));
    contains(why, "LOAD_BALANCE_STRATEGY = \"wite_primary\" (--set): expected a strategy of "
                  "policies/route.lua: collection_affinity, least_connections, peak_ewma,");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_limit_ends_in_the_fallback),
        TEST(time_is_a_limit),
        TEST(a_leak_ends_in_the_fallback),
        TEST(shared_things_cannot_be_changed),
        TEST(a_changed_list_does_not_outlive_the_call),
        TEST(fields_follow_what_they_tell),
        TEST(a_node_that_takes_over_an_id_is_another),
        TEST(swrr_is_exact),
        TEST(swrr_takes_weights_of_the_policys_own),
        TEST(wrong_answers_fall_back),
        TEST(right_answers_are_taken),
        TEST(no_candidates_is_no_call),
        TEST(the_fallback_avoids_nodes_tried),
        TEST(failing_often_trips_until_the_next_load),
        TEST(failing_seldom_does_not_trip),
        TEST(a_bad_file_leaves_the_old_one_serving),
        TEST(missing_files_are_named),
        TEST(checking_changes_nothing),
        TEST(a_configured_name_may_be_constant),
        TEST(settings_are_typed),
        TEST(judge_is_told_and_believed),
        TEST(judge_falls_back_to_thresholds),
        TEST(shipped_policies_load),
    };
    log_set_fd(-1);
    route_match(HTTP1_POST,
                str_from("/api/v2/tenants/t/databases/d/collections/"
                         "11111111-2222-3333-4444-555555555555/query"),
                &query);
    route_match(HTTP1_POST,
                str_from("/api/v2/tenants/t/databases/d/collections/"
                         "11111111-2222-3333-4444-555555555555/add"),
                &add);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
