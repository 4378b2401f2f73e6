/* api_policy_test.c: policies that our own Lua asks: whatever they do, the caller gets an answer of
 * the right shape, or nil and why; and what a load makes of their files. */
#include "api_policy.h"

#include "log.h"
#include "policy.h"
#include "stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64]; /* fresh for each test */
static const char *const files[] = {"route.lua",   "failover.lua", "sync.lua",
                                    "upgrade.lua", "notify.lua",   "slack.lua"};

static void write_file(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

/* Loads what `folder` holds; the text of the mistakes, or "". */
static const char *load_from(const char *folder)
{
    static char text[8192];
    struct config_raws raws = {0};
    struct buf errors;
    buf_init(&errors, sizeof text - 1);
    config_raws_add(&raws, "POLICY_DIR", folder, CONFIG_TEXT, "test");
    config_raws_add(&raws, "CHROMA_INSTANCES", "a=http://127.0.0.1:1", CONFIG_TEXT, "test");
    config_raws_add(&raws, "POLICY_TIME", "1", CONFIG_TEXT, "--set"); /* machines are busy */
    struct config *c = config_build(&raws, &errors);
    assert_non_null(c);
    bool good = policy_load(c, &errors);
    snprintf(text, sizeof text, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    assert_int_equal(good, text[0] == 0);
    config_free(c);
    config_raws_fini(&raws);
    buf_fini(&errors);
    return text;
}

static void load(void)
{
    assert_string_equal(load_from(dir), "");
}

static const char *lua(const char *chunk)
{
    static char out[1024];
    lua_State *L = api_vm();
    if (luaL_loadstring(L, chunk) != 0 || lua_pcall(L, 0, 1, 0) != 0)
        fail_msg("%s", lua_tostring(L, -1));
    snprintf(out, sizeof out, "%s", lua_tostring(L, -1) ? lua_tostring(L, -1) : "nil");
    lua_pop(L, 1);
    return out;
}

static void contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

/* sync.lua with this as the body of pace(load). */
static void write_pace(const char *body)
{
    char *text = base_printf("local M = {}\n"
                             "function M.batch(s) return s.least end\n"
                             "function M.authority(c) for _, x in ipairs(c) do\n"
                             "  if x.state == 'ready' then return x.instance end\n"
                             "end return nil, 'none' end\n"
                             "function M.pace(load)\n%s\nend\nreturn M\n",
                             body);
    write_file("sync.lua", text);
    free(text);
}

static int set_up(void **state)
{
    struct buf error;
    buf_init(&error, 4096);
    snprintf(dir, sizeof dir, "/tmp/api_policy_test.XXXXXX");
    assert_non_null(mkdtemp(dir));
    write_file("route.lua", "return {route = function(_, nodes) return nodes[1].name end}");
    write_file("failover.lua", "return {judge = function() return 'up' end}");
    stream_start(ev_default_loop(EVFLAG_AUTO));
    assert_true(api_start(ev_default_loop(EVFLAG_AUTO), "", &error));
    api_policy_open(api_vm());
    lua("policy = require('chromux.policy') contract = require('lb.contract')\n"
        "function pace(given)\n"
        "  local s, why = policy.call('sync.pace', contract.make('load', given))\n"
        "  return s or why\n"
        "end");
    buf_fini(&error);
    return 0;
}

static int tear_down(void **state)
{
    for (unsigned i = 0; i < COUNT_OF(files); i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        (void)unlink(path);
    }
    api_stop();
    policy_unload();
    return rmdir(dir);
}

static void a_missing_file_is_no_mistake(void **state)
{
    load();
    for (enum policy_id id = POLICY_PLAIN; id < POLICY_COUNT; id++)
        assert_true(policy_stats(id)->missing);
    assert_false(policy_stats(POLICY_ROUTE)->missing);
    uint64_t fallbacks = policy_stats(POLICY_SYNC_PACE)->fallbacks;
    assert_string_equal(lua("return pace()"), "sync.lua is missing");
    assert_int_equal(policy_stats(POLICY_SYNC_PACE)->fallbacks, fallbacks + 1);
    write_pace("return 1");
    load();
    assert_false(policy_stats(POLICY_SYNC_PACE)->missing);
    assert_true(policy_stats(POLICY_SLACK)->missing);
    assert_string_equal(lua("return pace()"), "1");
}

static void a_broken_file_is_refused_with_its_place(void **state)
{
    static const struct {
        const char *body, *error;
    } cases[] = {
        {"return load.x.y", "sync.lua:7: attempt to index"},
        {"return -1", "sync.lua:6: answered -1, not 0 to 60 seconds (wrong_answer, tried on a"},
        {"if load.waits == 0.02 then return 61 end return 1", "tried on a sample: a load 4)"},
        {"while true do end", "sync.lua:7: used more than 2000000 instructions"},
        {"return {", "sync.lua:8: unexpected symbol"},
        {"return 1 end M.batch = nil if false then", "sync.lua: has no function batch()"},
    };
    write_pace("return 0.25");
    load();
    unsigned generation = policy_generation();
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        write_pace(cases[i].body);
        contains(load_from(dir), cases[i].error);
        contains(policy_load_error(), cases[i].error);
        assert_int_equal(policy_generation(), generation);
        assert_string_equal(lua("return pace()"), "0.25");
    }
    /* All mistakes of all files. */
    write_file("notify.lua", "return {decide = function() return 'maybe' end}");
    write_file("slack.lua", "return {format = function(e) return {text = ('x'):rep(40001)} end}");
    write_pace("return 1");
    const char *why = load_from(dir);
    contains(why, "notify.lua:1: answered 'maybe', not \"send\", \"hold\" or \"drop\"");
    contains(why, "slack.lua:1: text is 40001 characters, not text of 1 to 40000 characters");
    assert_null(strstr(why, "sync.lua"));
}

static void failures_give_nil_and_why_and_are_counted(void **state)
{
    write_pace("if load.jobs == 1000 then return load.x.y end\n"
               "if load.jobs == 1001 then return 'soon' end\n"
               "return load.jobs / 100");
    load();
    const struct policy_stats *s = policy_stats(POLICY_SYNC_PACE);
    uint64_t calls = s->calls, errors = s->failures[POLICY_FAIL_ERROR],
             wrong = s->failures[POLICY_FAIL_ANSWER], fallbacks = s->fallbacks;
    assert_string_equal(lua("return pace{jobs = 50}"), "0.5");
    contains(lua("return pace{jobs = 1000}"), "sync.lua:7: attempt to index");
    contains(lua("return pace{jobs = 1001}"), "wrong_answer: ");
    assert_int_equal(s->calls, calls + 3);
    assert_int_equal(s->failures[POLICY_FAIL_ERROR], errors + 1);
    assert_int_equal(s->failures[POLICY_FAIL_ANSWER], wrong + 1);
    assert_int_equal(s->fallbacks, fallbacks + 2);
    contains(s->last_error, "answered 'soon'");
    contains(lua("local s, why, more = policy.call('sync.pace', print) return why .. tostring(s)"),
             "what it was asked: not a plain value");
}

static void failing_often_trips_that_question_alone(void **state)
{
    write_pace("if load.jobs > 99 then error('no') end return 1");
    load();
    for (unsigned i = 0; i < POLICY_TRIP; i++)
        lua("return pace{jobs = 100}");
    assert_true(policy_stats(POLICY_SYNC_PACE)->tripped);
    assert_string_equal(lua("return pace()"), "sync.lua is tripped until the next reload");
    assert_string_equal(lua("return policy.call('sync.batch', contract.make('sample'))"), "1");
    load();
    assert_string_equal(lua("return pace()"), "1");
}

static void what_fills_the_memory_does_not_stay(void **state)
{
    write_pace("return 1");
    load();
    lua("huge = contract.make('load', {instance = ('x'):rep(20e6)})");
    for (unsigned i = 0; i < 3; i++) {
        contains(lua("local _, why = policy.call('sync.pace', huge) return why"), "memory: ");
        assert_string_equal(lua("return pace()"), "1");
    }
    lua("big = contract.make('load', {instance = ('x'):rep(3e6)})");
    for (unsigned i = 0; i < 100; i++)
        assert_string_equal(lua("return policy.call('sync.pace', big)"), "1");
    contains(lua("local deep = {} for _ = 1, 20 do deep = {deep} end\n"
                 "local _, why = policy.call('sync.pace', deep) return why"),
             "nested too deep");
    contains(lua("local many = {} for i = 1, 20000 do many[i] = i end\n"
                 "local _, why = policy.call('sync.pace', many) return why"),
             "too many values");
}

static void names_and_generations(void **state)
{
    lua("g = policy.loaded()");
    load();
    assert_string_equal(lua("return policy.loaded() - g"), "1");
    for (const char *const *name = (const char *const[]){"route", "failover", "sync", "x", NULL};
         *name; name++) {
        lua_pushstring(api_vm(), *name);
        lua_setglobal(api_vm(), "name");
        contains(lua("return select(2, pcall(policy.call, name, 1))"), "no such question");
    }
    contains(lua("return select(2, pcall(policy.call, 'sync.pace', 1, 2, 3, 4, 5))"),
             "too many values");
}

/* Before the first load, as in a program that asks without policies. */
static void without_policies_there_is_no_answer(void **state)
{
    assert_string_equal(lua("return pace()"), "sync.lua is not loaded");
}

/* All that is shipped, on the samples, within the limits of the shipped settings. */
static void shipped_policies_answer(void **state)
{
    if (access("policies/sync.lua", R_OK) != 0)
        skip();
    assert_string_equal(load_from("policies"), "");
    for (enum policy_id id = POLICY_PLAIN; id < POLICY_COUNT; id++)
        assert_false(policy_stats(id)->missing);
    assert_string_equal(lua("local asked = 0\n"
                            "for _, name in ipairs(contract.questions) do\n"
                            "  for i = 1, 1000 do\n"
                            "    local sample = {contract.sample(name, i)}\n"
                            "    if not sample[1] then break end\n"
                            "    local a, b, c = policy.call(name, unpack(sample, 2))\n"
                            "    if a == nil and name ~= 'sync.authority' then error(b) end\n"
                            "    local wrong = contract.check(name, a, b, c, unpack(sample, 2))\n"
                            "    if wrong then error(wrong) end\n"
                            "    asked = asked + 1\n"
                            "  end\n"
                            "end\n"
                            "return asked > 150 and 'all' or asked"),
                        "all");
    print_message("memory of the policies: %zu kB\n", policy_memory() / 1024);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_policies_there_is_no_answer),
        TEST(a_missing_file_is_no_mistake),
        TEST(a_broken_file_is_refused_with_its_place),
        TEST(failures_give_nil_and_why_and_are_counted),
        TEST(failing_often_trips_that_question_alone),
        TEST(what_fills_the_memory_does_not_stay),
        TEST(names_and_generations),
        TEST(shipped_policies_answer),
    };
    log_set_fd(-1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
