/* Chroma's own JavaScript client through chromux, against real servers: everything it can do with
 * collections and records, with results equal to those of a direct connection; and the routes that
 * the servers say they have. The programs are tests/integration/js/client.js and routes.js. And
 * that records are copied exactly (exact.lua). */
#include "chroma.h"
#include "fixture.h"

#include <stdio.h>
#include <string.h>

static void nothing(struct chroma *c)
{
}

static char *client_modules(void)
{
    const char *const argv[] = {"sh", "scripts/chroma.sh", "js", NULL};
    struct run r = run_program(argv, NULL, 120);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "no client: %s", r.output);
    r.output[strcspn(r.output, "\n")] = 0;
    return r.output;
}

static void run_client(const char *program, const char *through, const char *direct)
{
    const char *const argv[] = {"/usr/bin/env",
                                keepf("NODE_PATH=%s", client_modules()),
                                "node",
                                keepf("tests/integration/js/%s", program),
                                through,
                                direct,
                                NULL};
    struct run r = run_program(argv, NULL, 120);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s ended with %d:\n%s", program, r.status, r.output);
}

static void javascript_client_does_everything(void **state)
{
    struct chroma *a, *b;
    chroma_pair(&a, &b, nothing);
    struct chromux *x =
        chromux_start(keepf("PRIMARY_URL=%s", a->url), keepf("REPLICA_URL=%s", b->url), NULL);
    chromux_wait_healthy(x, 2);
    run_client("client.js", keepf("http://127.0.0.1:%d", x->port), a->url);
    /* It really went through, and nothing of it to the replica: nobody feeds that. */
    const char *log = chromux_access(x);
    static const char *const actions[] = {
        "create_collection", "add", "upsert", "update", "get", "query", "delete"};
    for (unsigned i = 0; i < COUNT_OF(actions); i++)
        if (!strstr(log, keepf(" action=%s ", actions[i])))
            harness_fail(__FILE__, __LINE__, "no %s in the access log", actions[i]);
    for (const char *at = log; (at = strstr(at, " class=write ")) != NULL; at++) {
        const char *line = keep_text(at, strcspn(at, "\n"));
        check_str(kv(line, "instance"), "primary");
    }
}

static void every_route_of_the_server_is_known(void **state)
{
    struct chroma *a = chroma_start(keepf("%s/only", temp_folder()));
    struct chromux *x = chromux_start(keepf("PRIMARY_URL=%s", a->url), NULL);
    chromux_wait_healthy(x, 1);
    run_client("routes.js", keepf("http://127.0.0.1:%d", x->port), a->url);
    check_lacks(chromux_access(x), " class=unsupported ");
    /* Nor did any of it look like trouble. */
    check_lacks(chromux_log(x), "_suspect");
    check_lacks(chromux_log(x), "_down");
}

static void records_are_copied_to_the_last_bit(void **state)
{
    struct chroma *a = chroma_start(keepf("%s/a", temp_folder()));
    struct chroma *b = chroma_start(keepf("%s/b", temp_folder()));
    const char *argv[] = {chromux_path(), "script", "tests/integration/exact.lua",
                          a->url,         b->url,   NULL};
    struct run r = run_program(argv, NULL, 60);
    check_has(r.output, "exact\n");
    check_int(r.status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(javascript_client_does_everything),
        TEST(every_route_of_the_server_is_known),
        TEST(records_are_copied_to_the_last_bit),
    };
    return RUN(tests);
}
