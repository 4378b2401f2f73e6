/* The command line: what a person types at it and reads from it. */
#include "fixture.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 16 };

/* Runs chromux with these words; "NAME=VALUE" words in front are its environment. */
static struct run chromux(const char *first, ...)
{
    const char *argv[WORDS_MAX] = {chromux_path()}, *env[WORDS_MAX] = {"PATH=/usr/bin:/bin"};
    unsigned words = 1, vars = 1;
    va_list args;
    va_start(args, first);
    for (const char *word = first; word; word = va_arg(args, const char *))
        if (words == 1 && strchr(word, '=') && word[0] != '-')
            env[vars++] = word;
        else
            argv[words++] = word;
    va_end(args);
    check(words < WORDS_MAX && vars < WORDS_MAX);
    return run_program(argv, env, 20);
}

static char *script(const char *name, const char *text)
{
    char *path = keepf("%s/%s", temp_folder(), name);
    write_file(path, text);
    return path;
}

static void help_fits_a_screen(void **state)
{
    struct run r = chromux("--help", NULL);
    check_int(r.status, 0);
    check_has(r.output, "chromux run");
    unsigned lines = 0;
    for (const char *at = r.output; *at; lines++) {
        size_t n = strcspn(at, "\n");
        if (n > 80)
            harness_fail(__FILE__, __LINE__, "%zu columns: %.*s", n, (int)n, at);
        at += n + (at[n] == '\n');
    }
    check(lines <= 24);
}

static void version_is_told(void **state)
{
    struct run r = chromux("version", NULL);
    check_int(r.status, 0);
    check(strncmp(r.output, "chromux ", 8) == 0);
    check_int(count_lines(r.output, ""), 1);
}

static void unknown_words_are_refused(void **state)
{
    check(chromux("frobnicate", NULL).status != 0);
    check(chromux("run", "--frobnicate", NULL).status != 0);
    check(chromux("run", "--config", NULL).status != 0);
    check_has(chromux("check", "--config", "a", "--config=b", NULL).output, "only one file");
    check(chromux(NULL).status != 0);
}

static void explain_tells_every_setting(void **state)
{
    static const char *const names[] = {
        "PORT",        "PRIMARY_URL",     "REPLICA_URL",           "CHROMA_INSTANCES",
        "TRY_TIMEOUT", "REQUEST_TIMEOUT", "CHECK_INTERVAL",        "FAILURE_THRESHOLD",
        "MAXCONN",     "RETRY_BUDGET",    "LOAD_BALANCE_STRATEGY", "DATABASE_URL",
        "POLICY_DIR",  "ACCESS_LOG",      "SLACK_WEBHOOK_URL",     "SYNC_INTERVAL",
    };
    struct run r = chromux("check", "--explain", NULL);
    check_int(r.status, 0);
    for (unsigned i = 0; i < COUNT_OF(names); i++)
        check_has(r.output, names[i]);
}

static void good_settings_pass_and_secrets_are_blanked(void **state)
{
    struct run r = chromux("PRIMARY_URL=http://127.0.0.1:8001", "REPLICA_URL=http://127.0.0.1:8002",
                           "DATABASE_URL=postgresql://user:hidden-word@h/d",
                           "SLACK_WEBHOOK_URL=https://hooks.example/hidden-hook", "check", "--set",
                           "TRY_TIMEOUT=2.5", NULL);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
    check_has(r.output, "TRY_TIMEOUT=2.5");
    check_has(r.output, "http://127.0.0.1:8002");
    check_lacks(r.output, "hidden");
}

static void all_mistakes_are_told_at_once(void **state)
{
    static const char *const commands[] = {"check", "run"};
    for (unsigned i = 0; i < COUNT_OF(commands); i++) {
        struct run r =
            chromux("PRIMARY_URL=http://127.0.0.1:8001", "PORT=99999", "CHECK_INTERVAL=soon",
                    "MAXCONN=0", "CHROMUX_NO_SUCH=1", "LOG_FORMAT=xml",
                    "UNREPLICATED_READS=perhaps", commands[i], "--set", "NOT_A_SETTING=1", NULL);
        check(r.status != 0 && r.status < 126);
        /* Name, value and source of each. */
        static const char *const told[] = {"PORT",
                                           "99999",
                                           "CHECK_INTERVAL",
                                           "soon",
                                           "MAXCONN",
                                           "CHROMUX_NO_SUCH",
                                           "NOT_A_SETTING",
                                           "LOG_FORMAT",
                                           "xml",
                                           "UNREPLICATED_READS",
                                           "perhaps",
                                           "environment",
                                           "--set"};
        for (unsigned k = 0; k < COUNT_OF(told); k++)
            check_has(r.output, told[k]);
    }
}

static void impossible_combinations_are_refused(void **state)
{
    struct run r = chromux("check", NULL);
    check(r.status != 0);
    check_has(r.output, "PRIMARY_URL");
    r = chromux("PRIMARY_URL=http://127.0.0.1:8001", "CHROMA_INSTANCES=a=http://127.0.0.1:8001",
                "check", NULL);
    check(r.status != 0);
    check_has(r.output, "CHROMA_INSTANCES");
    r = chromux("CHROMA_INSTANCES=a=http://127.0.0.1:8001;a=http://127.0.0.1:8002", "check", NULL);
    check(r.status != 0);
    r = chromux("PRIMARY_URL=ftp://127.0.0.1", "check", NULL);
    check(r.status != 0);
    r = chromux("PRIMARY_URL=http://127.0.0.1:8001", "LOAD_BALANCE_STRATEGY=no_such", "check",
                NULL);
    check(r.status != 0);
    check_has(r.output, "no_such");
}

/* Defaults < file < environment < --set. */
static void later_sources_win(void **state)
{
    char *file = script("chromux.lua", "return { PRIMARY_URL = 'http://127.0.0.1:8001',\n"
                                       "  TRY_TIMEOUT = 2, MAX_TRIES = 2, MAXCONN = 2 }\n");
    struct run r = chromux("TRY_TIMEOUT=3", "MAX_TRIES=3", "check", "--config", file, "--set",
                           "TRY_TIMEOUT=4", NULL);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
    check_has(r.output, "TRY_TIMEOUT=4");
    check_has(r.output, "MAX_TRIES=3");
    check_has(r.output, "MAXCONN=2");
    r = chromux("check", "--config", "/nowhere/chromux.lua", NULL);
    check(r.status != 0);
    check_has(r.output, "/nowhere/chromux.lua");
}

static void busy_port_is_told(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct run r =
        chromux("PRIMARY_URL=http://127.0.0.1:8001", keepf("PORT=%u", peer_port(p)), "run", NULL);
    check(r.status != 0 && r.status < 126);
    check_has(r.output, keepf("\nPORT = %u (environment): expected", peer_port(p)));
    r = chromux("PRIMARY_URL=http://127.0.0.1:8001", "PORT=0", "run", "--set",
                keepf("ADMIN_PORT=%u", peer_port(p)), NULL);
    check(r.status != 0 && r.status < 126);
    check_has(r.output, keepf("\nADMIN_PORT = \"%u\" (--set): expected", peer_port(p)));
    r = chromux("PRIMARY_URL=http://127.0.0.1:8001", "PORT=0", "LISTEN_ADDRESS=192.0.2.1", "run",
                NULL);
    check(r.status != 0 && r.status < 126);
    check_has(r.output, "\nLISTEN_ADDRESS = \"192.0.2.1\" (environment): expected");
}

/* What only the machine and the policies tell, of one start at once. */
static void what_cannot_be_used_is_told_at_once(void **state)
{
    static const char *const commands[] = {"check", "run"};
    for (unsigned i = 0; i < COUNT_OF(commands); i++) {
        struct run r =
            chromux("PRIMARY_URL=http://127.0.0.1:8001", "PORT=0", "LOAD_BALANCE_STRATEGY=no_such",
                    "ACCESS_LOG=/nowhere/log", commands[i], NULL);
        check(r.status != 0 && r.status < 126);
        check_has(r.output, "LOAD_BALANCE_STRATEGY = \"no_such\" (environment): expected");
        check_has(r.output, "ACCESS_LOG = \"/nowhere/log\" (environment): expected");
    }
}

static void interrupt_ends_as_a_shell_expects(void **state)
{
    struct peer *p = peer_start(serve_ok);
    struct chromux *x = in_front_of(p, NULL, NULL);
    chromux_signal(x, SIGINT);
    check(chromux_wait_exit(x, 10));
    check_int(x->status, 128 + SIGINT);
}

static void scripts_run_on_our_own_runtime(void **state)
{
    struct peer *p = peer_start(serve_ok);
    char *file =
        script("probe.lua", "local answer = fetch { url = arg[1] .. '/api/v2/heartbeat' }\n"
                            "sleep(0.01)\n"
                            "print(answer.status, json.decode(answer.body).ok, arg[2])\n"
                            "os.exit(7)\n");
    struct run r = chromux("script", file, peer_url(p), "second word", NULL);
    if (r.status != 7)
        harness_fail(__FILE__, __LINE__, "%d: %s", r.status, r.output);
    check_has(r.output, "200\ttrue\tsecond word");
    check_int(peer_requests(p), 1);
    r = chromux("script", script("bad.lua", "local t = nil\nreturn t.x\n"), NULL);
    check_int(r.status, 1);
    check_has(r.output, "bad.lua:2");
    check_int(chromux("script", script("fine.lua", "return\n"), NULL).status, 0);
    check(chromux("script", "/nowhere.lua", NULL).status != 0);
}

static void specs_of_policies_run_and_can_fail(void **state)
{
    struct run r = chromux("test", NULL);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "the shipped specs: %d: %s", r.status, r.output);
    r = chromux("test",
                script("wrong_spec.lua", "describe('numbers', function()\n"
                                         "  it('are not all one', function() assert(1 == 2) end)\n"
                                         "end)\n"),
                NULL);
    check(r.status != 0 && r.status < 126);
    check_has(r.output, "are not all one");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(help_fits_a_screen),
        TEST(version_is_told),
        TEST(unknown_words_are_refused),
        TEST(explain_tells_every_setting),
        TEST(good_settings_pass_and_secrets_are_blanked),
        TEST(all_mistakes_are_told_at_once),
        TEST(impossible_combinations_are_refused),
        TEST(later_sources_win),
        TEST(busy_port_is_told),
        TEST(what_cannot_be_used_is_told_at_once),
        TEST(interrupt_ends_as_a_shell_expects),
        TEST(scripts_run_on_our_own_runtime),
        TEST(specs_of_policies_run_and_can_fail),
    };
    return RUN(tests);
}
