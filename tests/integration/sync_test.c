/* Sync: copies are made anew, compared and repaired while clients go on, by the processes that
 * chromux supervises or that run alone. What it did is asked of the database and of both servers. */
#include "load.h"
#include "stage.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The server's data is gone: it is killed and comes back empty. */
static void wipe(struct chroma *c)
{
    const char *const rm[] = {"rm", "-rf", c->folder, NULL};
    chroma_kill(c);
    run_program(rm, NULL, 10);
    chroma_again(c);
}

/* A process of this role beside the balancer, with its settings. */
static struct chromux *process(struct stage *s, const char *role)
{
    const char *list[64];
    unsigned n = 0;
    for (; s->settings[n]; n++)
        list[n] = s->settings[n];
    list[n++] = "--role";
    list[n++] = role;
    list[n] = NULL;
    return chromux_spawn(list);
}

static void add_many(struct stage *s, const char *id, const char *prefix, unsigned n)
{
    for (unsigned from = 0; from < n; from += 500)
        check_status(post(s, of(id, "add"), records_body(prefix, from, n - from < 500 ? n - from : 500, "")),
                     201);
}

/* Waits until n jobs of the kind have come to this state. */
static void check_jobs(struct stage *s, const char *kind, const char *state, long n, double seconds)
{
    if (!wait_until(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE kind = '%s' AND state = '%s'",
                               kind, state) >= n,
                    seconds))
        harness_fail(__FILE__, __LINE__, "no %ld %s jobs that are %s: %s; tasks: %s", n, kind, state,
                     sql(s, "SELECT string_agg(j::text, ' ') FROM sync_jobs j"),
                     sql(s, "SELECT string_agg(t::text, ' ') FROM sync_tasks t"));
}

static void a_wiped_replica_heals_by_itself(void **state)
{
    struct stage *s = stage_raise();
    process(s, "worker");
    char *id = create(s, "many");
    add_many(s, id, "r", 2500);
    check_caught_up(s, 20);
    wipe(s->server[1]);
    check_jobs(s, "rebuild", "done", 1, 30);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 2500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_wiped_replica_heals_by_itself),
    };
    return STAGE_RUN(tests);
}
