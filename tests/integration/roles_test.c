/* `chromux run` with a database is a supervisor and its children: a child that dies is started
 * again and leaves the others alone, signals reach all, and no child outlives the supervisor. */
#include "fixture.h"
#include "load.h"
#include "stage.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* One of /status.processes. */
struct process {
    pid_t pid; /* 0: none */
    long restarts;
    bool up;
    char *last_exit;
};

/* All of what chromux run starts; PORT stays the same when the balancer is started again. */
static struct stage *supervised(const char *more, ...)
{
    struct stage *s = stage_new();
    const char *list[8] = {more};
    unsigned n = more ? 1 : 0;
    va_list args;
    va_start(args, more);
    while (n > 0 && n < COUNT_OF(list) - 1 && (list[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    while (n < COUNT_OF(list))
        list[n++] = NULL;
    stage_chromux(s, "--role", "all", keepf("PORT=%u", free_port()), list[0] ? list[0] : NULL,
                  list[1], list[2], list[3], list[4], list[5], NULL);
    check_soon(strstr(chromux_log(s->x), " supervising children=") != NULL, 10);
    return s;
}

/* The nth of a role, from 1; nothing in it while there is no /status. */
static struct process process_of(struct stage *s, const char *role, unsigned index)
{
    struct process p = {.last_exit = keepf("%s", "")};
    struct answer *a = http_get(s->x->port, "/status");
    const char *list = a ? json_field(a->body, "processes") : "";
    for (const char *at = list; (at = strchr(at, '{')) != NULL; at++) {
        char *one = keep_text(at, strcspn(at, "}"));
        if (!strstr(one, keepf("\"role\":\"%s\"", role)) ||
            !strstr(one, keepf("\"index\":%u", index)))
            continue;
        p.pid = atoi(json_field(one, "pid"));
        p.restarts = atol(json_field(one, "restarts"));
        p.up = strstr(one, "\"state\":\"up\"") != NULL;
        p.last_exit = json_field(one, "last_exit");
    }
    return p;
}

static bool is_new(struct stage *s, const char *role, unsigned index, pid_t old, long restarts)
{
    struct process p = process_of(s, role, index);
    return p.up && p.pid > 0 && p.pid != old && p.restarts == restarts;
}

/* Gone, or a zombie that whoever inherited it has not buried yet. */
static bool is_gone(pid_t pid)
{
    char *stat = read_file(keepf("/proc/%d/stat", (int)pid)), *end = strrchr(stat, ')');
    return !end || end[1] == 0 || end[2] == 'Z' || end[2] == 'X';
}

static bool journal_is_on(struct stage *s)
{
    struct answer *a = http_get(s->x->port, "/status");
    return a && strstr(json_field(a->body, "journal"), "\"state\":\"on\"") != NULL;
}

/* ---- crashes ---- */

static void crashed_children_come_back_alone(void **state)
{
    static const struct {
        const char *role;
        unsigned index;
    } all[] = {{"worker", 2}, {"monitor", 1}, {"balancer", 1}};
    struct stage *s = supervised("SYNC_DISTRIBUTED=true", "MAX_WORKERS=2", NULL);
    struct process first = process_of(s, "worker", 1), balancer = process_of(s, "balancer", 1);
    char *id = create(s, "things");
    struct load *load = load_start(s->x->port, 4, &load_heartbeats);
    pid_t was[COUNT_OF(all)];
    for (unsigned i = 0; i < COUNT_OF(all); i++) {
        was[i] = process_of(s, all[i].role, all[i].index).pid;
        check(was[i] > 0);
    }
    for (unsigned i = 0; i < COUNT_OF(all); i++) {
        bool serves = strcmp(all[i].role, "balancer") == 0;
        if (serves) { /* until here no client has noticed anything */
            unsigned good = load_good(load);
            check_soon(load_good(load) > good + 50, 10);
            check_int(load_bad(load), 0);
            check_int(process_of(s, "balancer", 1).pid, balancer.pid);
            check_status(post(s, of(id, "add"), records_body("r", 0, 5, "")), 201);
            load_stop(load);
        }
        check(kill(was[i], SIGKILL) == 0);
        check_soon(is_new(s, all[i].role, all[i].index, was[i], 1), 10);
        check_has(process_of(s, all[i].role, all[i].index).last_exit, "signal 9 (Killed)");
    }
    struct process now = process_of(s, "worker", 1);
    check_int(now.pid, first.pid);
    check_int(now.restarts, 0);
    check_int(metric(s, "chromux_process_restarts_total{role=\"worker\",index=\"2\"}"), 1);
    check_int(metric(s, "chromux_process_up{role=\"monitor\",index=\"1\"}"), 1);
    check_soon(journal_is_on(s), 15);
    check_status(post(s, of(id, "add"), records_body("s", 0, 5, "")), 201);
    check_equal(s, id, 10);
}

/* A start that fails again and again is tried after growing pauses, and works once it can. */
static void pauses_grow_while_a_child_cannot_start(void **state)
{
    char *folder = own_policies(), *file = keepf("%s/route.lua", folder);
    char *good = read_file(file);
    struct stage *s = supervised(keepf("POLICY_DIR=%s", folder), NULL);
    struct process worker = process_of(s, "worker", 1), balancer = process_of(s, "balancer", 1);
    write_file(file, "return {");
    kill(balancer.pid, SIGKILL);
    for (const char *pause = "0\0"
                             "0.1\0"
                             "0.2\0"
                             "0.4\0";
         *pause; pause += strlen(pause) + 1)
        check_soon(strstr(chromux_log(s->x), keepf(" restart_in=%s ", pause)) != NULL, 10);
    check_has(chromux_log(s->x), "route.lua");
    check_has(chromux_log(s->x), "how=\"exit code 1\"");
    check(!is_gone(worker.pid));
    write_file(file, good);
    check_soon(process_of(s, "balancer", 1).up, 10);
    check(process_of(s, "balancer", 1).restarts >= 4);
    check_int(process_of(s, "worker", 1).pid, worker.pid);
}

static void no_child_outlives_the_supervisor(void **state)
{
    static const char *const roles[] = {"balancer", "worker", "monitor"};
    struct stage *s = supervised(NULL);
    pid_t pid[COUNT_OF(roles)];
    for (unsigned i = 0; i < COUNT_OF(roles); i++) {
        pid[i] = process_of(s, roles[i], 1).pid;
        check(pid[i] > 0 && !is_gone(pid[i]));
    }
    kill(pid[1], SIGSTOP); /* not even one that can't run */
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 5));
    for (unsigned i = 0; i < COUNT_OF(roles); i++)
        check_soon(is_gone(pid[i]), 5);
    check(http_get(s->x->port, "/health") == NULL);
}

/* ---- a balancer that stands still ---- */

/* WRITE_HORIZON is long: only because the stopped one is known to be dead are writes on before it.
 */
static void stopped_holder_is_replaced(void **state)
{
    struct stage *s = supervised("LEASE_TIMEOUT=1", "WRITE_HORIZON=300", NULL);
    struct process balancer = process_of(s, "balancer", 1), worker = process_of(s, "worker", 1);
    char *id = create(s, "things");
    check_status(post(s, of(id, "add"), records_body("a", 0, 5, "")), 201);
    kill(balancer.pid, SIGSTOP);
    check_soon(is_gone(balancer.pid), 10);
    check_soon(is_new(s, "balancer", 1, balancer.pid, 1), 10);
    check_has(process_of(s, "balancer", 1).last_exit, "killed: its lease had run out");
    check_soon(journal_is_on(s), 20);
    check_status(post(s, of(id, "add"), records_body("b", 0, 5, "")), 201);
    check_equal(s, id, 20);
    check_int(process_of(s, "worker", 1).pid, worker.pid);
}

/* Without PostgreSQL no renewal succeeds, and the balancer reads on. */
static void holder_without_postgres_is_left_alone(void **state)
{
    struct stage *s = supervised("LEASE_TIMEOUT=0.5", NULL);
    struct process balancer = process_of(s, "balancer", 1);
    char *id = create(s, "things");
    check_status(post(s, of(id, "add"), records_body("a", 0, 5, "")), 201);
    stage_pg_kill(SIGQUIT);
    check(!wait_until(is_gone(balancer.pid), 3));
    check_has(post(s, of(id, "get"), "{\"ids\":[\"a3\"]}")->body, "a3");
    stage_pg_again();
    check_soon(ask(s, "POST", of(id, "add"), records_body("b", 0, 5, ""))->status == 201, 20);
    check_int(process_of(s, "balancer", 1).pid, balancer.pid);
}

/* ---- signals ---- */

static char *strategy(struct stage *s)
{
    struct answer *a = http_get(s->x->port, "/health");
    return a ? json_field(a->body, "strategy") : keepf("%s", "");
}

static void signals_reach_all(void **state)
{
    char *file = keepf("%s/chromux.lua", temp_folder()), *moved;
    write_file(file, "return {load_balance_strategy = \"write_primary\"}");
    struct stage *s = supervised("--config", file, NULL);
    struct process balancer = process_of(s, "balancer", 1);
    /* What was not reloaded does not come in by a crash either. */
    write_file(file, "return {load_balance_strategy = \"round_robin\"}");
    kill(balancer.pid, SIGKILL);
    check_soon(is_new(s, "balancer", 1, balancer.pid, 1), 10);
    check_str(strategy(s), "\"write_primary\"");
    chromux_reload(s->x);
    check_str(strategy(s), "\"round_robin\"");
    for (const char *name = "balancer\0"
                            "worker-1\0"
                            "monitor\0";
         *name; name += strlen(name) + 1)
        check_soon(count_lines(chromux_log(s->x),
                               keepf(" reloaded generation=2 instances=2 process=%s", name)) == 1,
                   5);
    balancer = process_of(s, "balancer", 1);
    kill(balancer.pid, SIGKILL);
    check_soon(is_new(s, "balancer", 1, balancer.pid, 2), 10);
    check_str(strategy(s), "\"round_robin\"");
    moved = keepf("%s.1", s->x->access);
    check_soon(rename(s->x->access, moved) == 0, 5);
    chromux_signal(s->x, SIGUSR1);
    check_soon(http_get(s->x->port, "/health") && *chromux_access(s->x), 5);
}

/* A write of which half is sent. */
static struct wire *half_a_write(struct stage *s, const char *id, const char *body)
{
    struct wire *w = wire_open(s->x->port);
    wire_sendf(w,
               "POST " CHROMA_DB "/collections/%s/add HTTP/1.1\r\nHost: h\r\n"
               "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%.10s",
               id, strlen(body), body);
    check_soon(metric(s, "chromux_requests_active") == 2, 5); /* and the one that asks */
    return w;
}

static void term_lets_all_end_what_is_under_way(void **state)
{
    static const char *const roles[] = {"balancer", "worker", "monitor"};
    struct stage *s = supervised(NULL);
    char *id = create(s, "things"), *body = records_body("r", 0, 5, "");
    pid_t pid[COUNT_OF(roles)];
    for (unsigned i = 0; i < COUNT_OF(roles); i++)
        pid[i] = process_of(s, roles[i], 1).pid;
    struct wire *w = half_a_write(s, id, body);
    chromux_signal(s->x, SIGTERM);
    /* As a service manager does that tells every process. */
    for (unsigned i = 0; i < COUNT_OF(roles); i++)
        kill(pid[i], SIGTERM);
    check_soon(is_gone(pid[1]) && is_gone(pid[2]), 10);
    check(http_get(s->x->port, "/health") == NULL);
    wire_sendf(w, "%s", body + 10);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 201);
    check(chromux_wait_exit(s->x, 10));
    check_int(s->x->status, 0);
    check(is_gone(pid[0]));
    check_int(sql_number(s, "SELECT count(*) FROM journal_lease WHERE closed"), 1);
}

static void second_term_ends_all_at_once(void **state)
{
    struct stage *s = supervised("DRAIN_TIMEOUT=600", NULL);
    pid_t pid = process_of(s, "balancer", 1).pid;
    (void)half_a_write(s, create(s, "things"), records_body("r", 0, 5, ""));
    chromux_signal(s->x, SIGTERM);
    check_soon(strstr(chromux_log(s->x), " draining connections=") != NULL, 5);
    chromux_signal(s->x, SIGTERM);
    check(chromux_wait_exit(s->x, 5));
    check_int(s->x->status, 0);
    check(is_gone(pid));
    check_has(chromux_log(s->x), " stopped_at_once ");
}

/* ---- refusals ---- */

static struct run chromux(const char *first, ...)
{
    const char *argv[16] = {chromux_path()}, *env[16] = {"PATH=/usr/bin:/bin"};
    unsigned words = 1, vars = 1;
    va_list args;
    va_start(args, first);
    for (const char *word = first; word; word = va_arg(args, const char *))
        if (words == 1 && strchr(word, '=') && word[0] != '-')
            env[vars++] = word;
        else
            argv[words++] = word;
    va_end(args);
    check(words < COUNT_OF(argv) && vars < COUNT_OF(env));
    return run_program(argv, env, 20);
}

#define URL      "PRIMARY_URL=http://127.0.0.1:1"
#define DATABASE "DATABASE_URL=host=/nowhere"

static void contradictions_stop_the_start(void **state)
{
    static const char *const commands[] = {"run", "check"};
    for (unsigned i = 0; i < 2; i++) {
        const char *c = commands[i];
        struct run r = chromux(URL, "MAX_WORKERS=3", c, "--role", "worker", NULL);
        check(r.status == 1 || r.status == 2);
        check_str(r.output, "DATABASE_URL = \"\" (default): expected the address of PostgreSQL, "
                            "without which a worker has nothing to do\n");
        r = chromux(URL, DATABASE, "SYNC_COORDINATOR=true", c, NULL);
        check(r.status == 1 || r.status == 2);
        check_str(r.output, "SYNC_COORDINATOR = \"true\" (environment): expected "
                            "SYNC_DISTRIBUTED=true beside it\n");
        r = chromux(URL, "SYNC_DISTRIBUTED=true", c, NULL);
        check(r.status == 1 || r.status == 2);
        check_str(r.output, "SYNC_DISTRIBUTED = true (environment): expected DATABASE_URL beside "
                            "it: without one nothing is replicated\n");
        r = chromux(URL, DATABASE, "SYNC_DISTRIBUTED=true", "SYNC_COORDINATOR=true", c, "--role",
                    "worker", NULL);
        check(r.status == 1 || r.status == 2);
        check_str(r.output, "SYNC_COORDINATOR = true (environment): expected --role coordinator, "
                            "not --role worker: a coordinator takes no tasks\n");
    }
    check_int(chromux(URL, DATABASE, "MAX_WORKERS=3", "check", NULL).status, 0);
    check_int(chromux(URL, "check", "--role", "nobody", NULL).status, 2);
    check_int(chromux(URL, "run", "--role", "worker", "--role", "monitor", NULL).status, 2);
}

/* With one message, not one from each child, and nobody left. */
static void refused_start_ends_all(void **state)
{
    char *folder = own_policies();
    write_file(keepf("%s/route.lua", folder), "return {");
    struct run r = chromux(URL, DATABASE, "PORT=0", keepf("POLICY_DIR=%s", folder), "run", NULL);
    check_int(r.status, 1);
    check_int(count_lines(r.output, "route.lua:1:"), 1);
    check_has(r.output, " start_refused child=balancer how=\"exit code 1\"");
    check_lacks(r.output, " started ");
    r = chromux(URL, DATABASE, "PORT=no", "run", NULL);
    check_int(r.status, 2);
    check_int(count_lines(r.output, ""), 1);
    struct peer *taken = peer_start(NULL);
    r = chromux(URL, DATABASE, keepf("PORT=%u", peer_port(taken)), "run", NULL);
    check_int(r.status, 1);
    check_has(r.output, keepf("%u", peer_port(taken)));
    check_lacks(r.output, "child=worker");
}

/* ---- shapes ---- */

static void coordinator_takes_the_workers_place(void **state)
{
    struct stage *s = supervised("SYNC_DISTRIBUTED=true", "SYNC_COORDINATOR=true", NULL);
    check(process_of(s, "coordinator", 1).up);
    check_int(process_of(s, "worker", 1).pid, 0);
    check(process_of(s, "monitor", 1).up);
}

static void role_runs_alone(void **state)
{
    struct stage *s = stage_raise();
    check(process_of(s, "balancer", 1).up);
    check_int(process_of(s, "balancer", 1).pid, s->x->pid);
    check_int(process_of(s, "worker", 1).pid, 0);
    for (const char *role = "worker\0"
                            "coordinator\0"
                            "monitor\0";
         *role; role += strlen(role) + 1) {
        const char *settings[16] = {"--role", role, "ACCESS_LOG=off"};
        unsigned n = 3;
        for (unsigned i = 0; s->settings[i]; i++)
            settings[n++] = s->settings[i];
        struct chromux *x = chromux_spawn(settings);
        check_soon(strstr(chromux_log(x), keepf(" role=%s ", role)) != NULL, 10);
        check_int(chromux_stop(x), 0);
        check_lacks(chromux_log(x), " listening ");
        check_has(chromux_log(x), " stopped ");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(crashed_children_come_back_alone),
        STAGE_TEST(pauses_grow_while_a_child_cannot_start),
        STAGE_TEST(no_child_outlives_the_supervisor),
        STAGE_TEST(stopped_holder_is_replaced),
        STAGE_TEST(holder_without_postgres_is_left_alone),
        STAGE_TEST(signals_reach_all),
        STAGE_TEST(term_lets_all_end_what_is_under_way),
        STAGE_TEST(second_term_ends_all_at_once),
        STAGE_TEST(contradictions_stop_the_start),
        STAGE_TEST(refused_start_ends_all),
        STAGE_TEST(coordinator_takes_the_workers_place),
        STAGE_TEST(role_runs_alone),
    };
    return STAGE_RUN(tests);
}
