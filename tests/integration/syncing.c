#include "syncing.h"

enum { SETTINGS_MAX = 64 };

void chroma_wipe(struct chroma *c)
{
    const char *const rm[] = {"rm", "-rf", c->folder, NULL};
    chroma_kill(c);
    run_program(rm, NULL, 10);
    chroma_again(c);
}

struct chromux *sync_process(struct stage *s, const char *role, const char *more)
{
    const char *list[SETTINGS_MAX];
    unsigned n = 0;
    for (; s->settings[n] && n < SETTINGS_MAX - 4; n++)
        list[n] = s->settings[n];
    if (more)
        list[n++] = more;
    list[n++] = "--role";
    list[n++] = role;
    list[n] = NULL;
    return chromux_spawn(list);
}

long sync_jobs(struct stage *s, const char *kind, const char *state)
{
    return sql_number(s, "SELECT count(*) FROM sync_jobs WHERE kind = '%s' AND state = '%s'", kind,
                      state);
}

void sync_check_jobs(struct stage *s, const char *kind, const char *state, long n, double seconds)
{
    if (!wait_until(sync_jobs(s, kind, state) >= n, seconds))
        harness_fail(__FILE__, __LINE__, "no %ld %s jobs that are %s: %s; tasks: %s", n, kind,
                     state, sql(s, "SELECT string_agg(j::text, ' ') FROM sync_jobs j"),
                     sql(s, "SELECT string_agg(t::text, ' ') FROM sync_tasks t"));
}
