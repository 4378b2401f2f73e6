/* scripts/dev.sh, which is `make run` after set-up and build: in a copy of the checkout, so that
 * data and a run of the real one are not touched. */
#include "chroma.h"
#include "fixture.h"
#include "wire.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *top; /* of the copy */
static unsigned port, primary, replica;

static void copy_checkout(void)
{
    top = keepf("%s/a clone", temp_folder());
    check(mkdir(top, 0755) == 0);
    check(chmod(temp_folder(), 0755) == 0); /* root's PostgreSQL runs as somebody else */
    const char *const argv[] = {"cp", "-r", "scripts", "policies", top, NULL};
    check_int(run_program(argv, NULL, 10).status, 0);
    port = free_port();
    primary = free_port();
    replica = free_port();
}

static char *absolute(const char *path)
{
    char *found = realpath(path, NULL);
    check(found != NULL);
    char *kept = keepf("%s", found);
    free(found);
    return kept;
}

/* dev.sh with these ports, or a word for it. */
static const char *const *command(const char *word)
{
    const char **argv = keep(8 * sizeof *argv);
    unsigned n = 0;
    argv[n++] = "/usr/bin/env";
    argv[n++] = keepf("CHROMUX=%s", absolute(chromux_path()));
    argv[n++] = keepf("PORT=%u", port);
    argv[n++] = keepf("CHROMA_PORTS=%u %u", primary, replica);
    argv[n++] = "RESTART_AFTER=1";
    argv[n++] = keepf("%s/scripts/dev.sh", top);
    if (word)
        argv[n++] = word;
    argv[n] = NULL;
    return argv;
}

static pid_t start(const char *log)
{
    pid_t pid = child_start(command(NULL), log);
    char *path = keepf("%s/%s", temp_folder(), log);
    if (!wait_until(strstr(read_file(path), "make reload"), 90))
        harness_fail(__FILE__, __LINE__, "no start: %s", read_file(path));
    check_has(read_file(path), keepf("\n  curl http://127.0.0.1:%u/status\n  python3 -c ", port));
    return pid;
}

static void stop(pid_t *pid, int sig)
{
    check(kill(*pid, sig) == 0);
    check_int(child_wait(pid, 40), 128 + sig);
    unsigned ports[] = {port, primary, replica};
    for (unsigned i = 0; i < COUNT_OF(ports); i++)
        check(wire_open((int)ports[i])->fd < 0);
    check(access(keepf("%s/var/pg/data/postmaster.pid", top), F_OK) != 0);
    check(access(keepf("%s/var/chromux.pid", top), F_OK) != 0);
}

static bool are_well(unsigned instances)
{
    struct answer *a = http_get((int)port, "/health");
    unsigned well = 0;
    for (const char *at = a ? a->body : NULL; at && (at = strstr(at, "\"healthy\":true")); at++)
        well++;
    return well == instances;
}

static pid_t replica_pid(pid_t dev)
{
    const char *const argv[] = {
        "pgrep", "-P", keepf("%d", (int)dev), "-f", keepf("port %u$", replica), NULL};
    return (pid_t)atol(run_program(argv, NULL, 10).output);
}

static void everything_starts_is_found_again_and_stops(void **state)
{
    copy_checkout();
    pid_t dev = start("first.log");
    check(are_well(2));
    struct answer *a = http_post((int)port, CHROMA_DB "/collections", "{\"name\":\"kept\"}");
    check(a && a->status == 200);

    /* A policy that was edited. */
    write_file(keepf("%s/policies/route.lua", top),
               "return {route = function(_, nodes) return nodes[#nodes].name, 'edited' end}\n");
    struct run r = run_program(command("reload"), NULL, 10);
    check_int(r.status, 0);
    check_soon((a = http_get((int)port, "/api/v2/version")) != NULL && a->status == 200 &&
                   strcmp(head_field(a->head, "X-Chromux-Instance"), "replica") == 0,
               5);

    /* One run a checkout, and one server a port. */
    r = run_program(command(NULL), NULL, 20);
    check_int(r.status, 1);
    check_has(r.output, "make run is at work in this checkout already");
    check(rename(keepf("%s/var/run.lock", top), keepf("%s/var/lock.away", top)) == 0);
    r = run_program(command(NULL), NULL, 20);
    check_int(r.status, 1);
    check_has(r.output, keepf("port %u: in use", port));
    check_has(r.output, keepf("port %u: in use", replica));
    check_has(r.output, "make run PORT=8010 CHROMA_PORTS='8011 8012'");

    /* A server that dies is started again. */
    pid_t dies = replica_pid(dev);
    check(dies > 1 && kill(dies, SIGKILL) == 0);
    check_soon(are_well(1), 10);
    check_soon(are_well(2), 30);

    stop(&dev, SIGINT);
    check_int(run_program(command("reload"), NULL, 10).status, 1);
    dev = start("second.log");
    a = http_get((int)primary, CHROMA_DB "/collections/kept");
    check(a && a->status == 200);
    stop(&dev, SIGTERM);
}

/* Killed, it takes what it started with it. */
static void nothing_outlives_it(void **state)
{
    copy_checkout();
    pid_t dev = start("killed.log");
    child_kill(&dev);
    unsigned ports[] = {port, primary, replica};
    for (unsigned i = 0; i < COUNT_OF(ports); i++)
        check_soon(wire_open((int)ports[i])->fd < 0, 20);
    check_soon(access(keepf("%s/var/pg/data/postmaster.pid", top), F_OK) != 0, 20);
}

int main(void)
{
    signal(SIGINT, SIG_DFL); /* which a shell may have ignored for us, and dev.sh would inherit */
    const struct CMUnitTest tests[] = {
        TEST(everything_starts_is_found_again_and_stops),
        TEST(nothing_outlives_it),
    };
    return RUN(tests);
}
