/* chromux sync, and what /status and /metrics say of sync. Where a test needs a coordinator that
 * answers as it is told, a trigger on sync_jobs is one. */
#include "fixture.h"
#include "stage.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

/* chromux sync ARGS…, on this stage's database. */
static struct run cli(struct stage *s, ...)
{
    const char *argv[16] = {chromux_path(), "sync"};
    const char *environment[] = {keepf("DATABASE_URL=%s", s->url), "USER=anna", NULL};
    va_list args;
    unsigned n = 2;
    va_start(args, s);
    while (n < COUNT_OF(argv) - 1 && (argv[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    return run_program(argv, environment, 30);
}

static void check_run(struct run r, int status, const char *part)
{
    check_has(r.output, part);
    check_int(r.status, status);
}

/* A worker that lives as long as the test. */
static void put_worker(struct stage *s)
{
    sql(s, "INSERT INTO sync_workers (worker_id, role, process, memory_usage_mb, cpu_percent, "
           "lease_until) VALUES ('w1', 'worker', 'p', 12, 3, now() + interval '1 hour')");
}

/* What /status shows in its object `sync`, or in that of the name inside of it. */
static char *shown(struct stage *s, const char *name)
{
    char *sync = json_field(http_get(s->x->port, "/status")->body, "sync");
    return *name ? json_field(sync, name) : sync;
}

static void wrong_use_is_told(void **state)
{
    struct stage *s = stage_raise();
    const char *argv[] = {chromux_path(), "sync", "status", NULL};
    const char *none[] = {NULL}, *away[] = {"DATABASE_URL=postgresql://127.0.0.1:1/x", NULL};
    check_run(run_program(argv, none, 30), 3, "DATABASE_URL is not set");
    check_run(run_program(argv, away, 30), 3, "chromux sync: PostgreSQL: ");
    check_run(cli(s, NULL), 2, "a command must follow");
    check_run(cli(s, "verfy", NULL), 2, "unknown command verfy");
    check_run(cli(s, "verify", "now", NULL), 2, "what is now?");
    check_run(cli(s, "verify", "--dry-run=1", NULL), 2, "--dry-run takes no value");
    check_run(cli(s, "rebuild", NULL), 2, "--instance is missing");
    check_run(cli(s, "pause", "--who", "anna", NULL), 2, "--why is missing");
    check_run(cli(s, "cancel", "x1", NULL), 2, "x1 is no number of a job");
    check_run(cli(s, "discard", "--instance", "replica", NULL), 2, "--collection is missing");
    check_run(cli(s, "help", NULL), 0, "chromux sync rebuild --instance NAME");
    check_run(cli(s, "verify", "--instance", "third", NULL), 1,
              "there is no instance third; the journal knows primary, replica");
    check_run(cli(s, "cancel", "77", NULL), 1, "there is no job 77");
}

static void a_collection_may_be_named_in_three_ways(void **state)
{
    struct stage *s = stage_raise();
    check_status(ask(s, "POST", "/api/v2/tenants/default_tenant/databases", "{\"name\":\"other\"}"),
                 200);
    char *id = create(s, "twice");
    create(s, "once");
    check_status(ask(s, "POST", "/api/v2/tenants/default_tenant/databases/other/collections",
                     "{\"name\":\"twice\"}"),
                 200);
    const char *dry[] = {"once", "default_tenant/other/twice", id};
    const char *full[] = {"default_tenant/default_database/once on replica",
                          "default_tenant/other/twice on replica",
                          "default_tenant/default_database/twice on replica"};
    for (unsigned i = 0; i < COUNT_OF(dry); i++) {
        struct run r =
            cli(s, "rebuild", "--instance", "replica", "--dry-run", "--collection", dry[i], NULL);
        check_run(r, 0, full[i]);
        check_has(r.output, "1 copies to make anew on replica");
    }
    check_run(cli(s, "verify", "--collection", "twice", NULL), 1,
              "twice may be any of default_tenant/default_database/twice, "
              "default_tenant/other/twice");
    check_run(cli(s, "verify", "--collection", "none", NULL), 1, "there is no collection none");
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs"), 0);
}

static void what_nobody_takes_up_is_withdrawn(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    check_run(cli(s, "verify", NULL), 4, "no worker is alive");
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs"), 0);
}

/* From now on each new job has ended at once: as the name of its collection says. */
static void obey_names(struct stage *s)
{
    put_worker(s);
    sql(s, "CREATE FUNCTION obey() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
           "NEW.source := 'primary'; NEW.started_at := now() - interval '2 seconds'; "
           "NEW.finished_at := now(); NEW.records := 2500; NEW.done_records := 2500; "
           "NEW.state := CASE NEW.collection_name WHEN 'fails' THEN 'failed' "
           "WHEN 'stopped' THEN 'cancelled' ELSE 'done' END; "
           "NEW.error := CASE NEW.collection_name WHEN 'fails' THEN 'disk full' ELSE '' END; "
           "NEW.differences := CASE NEW.collection_name WHEN 'differs' THEN (NEW.instance = "
           "'replica')::int * 3 ELSE 0 END; "
           "NEW.repaired := CASE WHEN NEW.dry_run THEN 0 ELSE NEW.differences END; "
           "IF NEW.state = 'done' AND NEW.instance <> 'primary' THEN INSERT INTO sync_collections "
           "(collection_id, "
           "collection_name, instance, proven_equal_at, differences, repaired, "
           "replica_document_count) VALUES (NEW.collection_id, NEW.collection_name, NEW.instance, "
           "CASE WHEN NEW.repaired = NEW.differences THEN now() END, NEW.differences, "
           "NEW.repaired, 2500) ON CONFLICT (collection_id, instance) DO UPDATE SET "
           "proven_equal_at = EXCLUDED.proven_equal_at, differences = EXCLUDED.differences, "
           "repaired = EXCLUDED.repaired; END IF; "
           "IF NEW.kind = 'verify' AND NEW.instance = 'primary' THEN NEW.reason := "
           "'it is the authority: the others are compared with it'; END IF; RETURN NEW; END $$");
    sql(s, "CREATE TRIGGER obey BEFORE INSERT ON sync_jobs FOR EACH ROW EXECUTE FUNCTION obey()");
}

static void the_exit_code_says_whether_all_are_equal(void **state)
{
    struct stage *s = stage_raise();
    create(s, "fine");
    create(s, "differs");
    obey_names(s);
    struct run r = cli(s, "verify", "--dry-run", NULL);
    check_run(r, 1,
              "differs      default_tenant/default_database/differs on replica: 3 of 2,500 "
              "records differ, and nothing was done");
    check_has(r.output,
              "equal        default_tenant/default_database/fine on replica: 2,500 records; "
              "proven at 2");
    check_has(r.output, "1 copies are not proven equal, 1 are");
    check_run(cli(s, "status", NULL), 1,
              "DIFFERS      default_tenant/default_database/differs on "
              "replica: 3 records");
    r = cli(s, "verify", "--instance", "replica", NULL);
    check_run(r, 0, "of which 3 differed and were repaired");
    check_has(r.output, "2 copies are proven equal to what");
    check_run(
        cli(s, "status", NULL), 0,
        "equal        default_tenant/default_database/differs on replica: last proven equal at");
    check_str(sql(s, "SELECT DISTINCT asked_by FROM sync_jobs"), "anna");
    r = cli(s, "rebuild", "--instance", "replica", "--collection", "fine", "--who", "bob", NULL);
    check_run(r, 0,
              "rebuilt      default_tenant/default_database/fine on replica: 2,500 records from "
              "primary in 2.0 s");
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs WHERE asked_by = 'bob'"), 1);
    create(s, "fails");
    create(s, "stopped");
    r = cli(s, "verify", NULL);
    check_run(r, 1, "failed       default_tenant/default_database/fails on replica: disk full");
    check_has(r.output, "cancelled    default_tenant/default_database/stopped on replica");
    check_run(cli(s, "status", NULL), 0, "failed       job ");
}

static void what_an_instance_has_not_got_yet_is_no_proof(void **state)
{
    struct stage *s = stage_raise();
    create(s, "aaa");
    create(s, "bbb");
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane > 0") == 4, 10);
    obey_names(s);
    check_run(cli(s, "verify", NULL), 0, "2 copies are proven equal");
    sql(s, "DELETE FROM journal_copies WHERE lane > 0 AND instance = 'replica'");
    check_run(cli(s, "status", NULL), 1, "replica: 2 collections are not there yet");
    check_run(cli(s, "verify", "--collection", "aaa", NULL), 1,
              "replica: 1 collections are not there yet");
}

/* The third one is configured where sync is coordinated, and the journal has never seen it. */
static void what_has_never_joined_is_no_proof(void **state)
{
    struct stage *s = stage_raise();
    create(s, "aaa");
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane > 0") == 2, 10);
    obey_names(s);
    sql(s, "UPDATE sync_lease SET instances = '[\"primary\",\"replica\"]'");
    check_run(cli(s, "verify", NULL), 0, "1 copies are proven equal");
    check_soon(strcmp(json_field(shown(s, "collections"), "equal"), "1") == 0, 10);
    sql(s, "UPDATE sync_lease SET instances = '[\"primary\",\"replica\",\"third\"]'");
    check_run(cli(s, "status", NULL), 1, "missing      third is configured and has never joined");
    struct run r = cli(s, "verify", NULL);
    check_run(r, 1, "missing      third is configured and has never joined");
    check_has(r.output, "1 copies are not proven equal, 1 are");
    check_run(cli(s, "verify", "--instance", "third", NULL), 1,
              "third is configured and has never");
    check_run(cli(s, "verify", "--instance", "replica", NULL), 0, "1 copies are proven equal");
    check_soon(strcmp(json_field(shown(s, "collections"), "unproven"), "1") == 0, 10);
}

static void a_copy_that_is_not_whole_is_neither_compared_nor_a_source(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    check_caught_up(s, 10);
    obey_names(s);
    sql(s, "UPDATE journal_copies SET state = 'rebuild', reason = 'lost' "
           "WHERE instance = 'replica' AND lane <> 0");
    check_run(cli(s, "verify", NULL), 1,
              "not compared default_tenant/default_database/ccc on replica: rebuild: lost");
    check_run(cli(s, "rebuild", "--instance", "primary", NULL), 1,
              "no other server has a whole copy, so nothing is overwritten");
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs"), 0);
    check_run(cli(s, "rebuild", "--instance", "replica", NULL), 0, "rebuilt      ");
    check_run(cli(s, "status", NULL), 1,
              "rebuild      default_tenant/default_database/ccc on replica: lost");
}

static void sync_is_paused_and_goes_on(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    obey_names(s);
    check_run(cli(s, "pause", "--who", "anna", "--why", "a long night", NULL), 0, "paused: ");
    check_run(cli(s, "verify", NULL), 1, "sync is paused by anna since ");
    check_run(cli(s, "rebuild", "--instance", "replica", NULL), 1, "(a long night)");
    check_run(cli(s, "status", NULL), 0, "PAUSED       by anna since ");
    check_int(sql_number(s, "SELECT count(*) FROM sync_jobs"), 0);
    check_run(cli(s, "pause", "--who", "bob", "--why", "x", NULL), 1,
              "(a long night): that stays, and so will what they resume");
    check_run(cli(s, "pause", "--who", "anna", "--why", "a longer night", NULL), 0, "paused: ");
    check_run(cli(s, "status", NULL), 0, ": a longer night");
    check_run(cli(s, "resume", NULL), 0, "resumed; it was paused by anna");
    check_run(cli(s, "resume", NULL), 0, "sync was not paused");
    check_run(cli(s, "verify", NULL), 0, "1 copies are proven equal to what");
}

static void a_job_is_cancelled_once(void **state)
{
    struct stage *s = stage_raise();
    char *job = sql(s, "INSERT INTO sync_jobs (kind, lane, instance, state) "
                       "VALUES ('rebuild', 1, 'replica', 'copying') RETURNING id");
    check_run(cli(s, "cancel", job, "--who", "bob", NULL), 0, keepf("job %s is cancelled", job));
    check_str(sql(s, "SELECT state || ': ' || error FROM sync_jobs"),
              "cancelled: cancelled by bob");
    check_str(sql(s, "SELECT finished_at FROM sync_jobs"), ""); /* that is the coordinator's */
    check_run(cli(s, "cancel", job, NULL), 1, "is cancelled already");
}

/* The wait goes on while PostgreSQL restarts. */
static void the_wait_outlives_postgresql(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    check_caught_up(s, 10);
    put_worker(s);
    const char *argv[] = {"env",          keepf("DATABASE_URL=%s", s->url),
                          chromux_path(), "sync",
                          "verify",       "--instance",
                          "replica",      NULL};
    pid_t pid = child_start(argv, "verify.log");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_jobs") == 1, 10);
    stage_pg_kill(SIGKILL);
    check_int(child_wait(&pid, 0.5), -1);
    stage_pg_again();
    sql(s, "INSERT INTO sync_collections (collection_id, collection_name, instance, "
           "proven_equal_at) SELECT collection_id, 'ccc', 'replica', now() FROM sync_jobs");
    sql(s, "UPDATE sync_jobs SET state = 'done', records = 7, finished_at = now()");
    check_int(child_wait(&pid, 20), 0);
}

/* What somebody has put on a server past chromux is shown, and deleted only when that is said. */
static void what_the_journal_does_not_know_is_shown_and_can_be_deleted(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_INTERVAL=1", NULL);
    char *id = create(s, "known");
    check_run(cli(s, "aside", NULL), 0, "the journal knows all that was found");
    char *there = chroma_create(s->server[1], "stranger", 1000);
    chroma_add(s->server[1], there, 0, 20);
    const char *line = keepf("aside        default_tenant/default_database/stranger on replica: 20 "
                             "records, id %s",
                             there);
    check_soon(strstr(cli(s, "aside", NULL).output, line) != NULL, 20);
    check_run(cli(s, "status", NULL), 0, line);
    check_soon(
        strstr(json_field(json_field(get(s, "/status")->body, "journal"), "collections_aside"),
               "\"records\":20") != NULL,
        10);
    const char *const wrong[][4] = {{"--instance", "primary", "--collection", "stranger"},
                                    {"--instance", "replica", "--collection", "known"}};
    for (unsigned i = 0; i < COUNT_OF(wrong); i++)
        check_run(
            cli(s, "discard", wrong[i][0], wrong[i][1], wrong[i][2], wrong[i][3], "--yes", NULL), 1,
            "that the journal does not know was found on");
    check_run(cli(s, "discard", "--instance", "replica", "--collection", "stranger", NULL), 1,
              "add --yes to delete for good: default_tenant/default_database/stranger on replica");
    check_status(ask_server(s->server[1], "GET", "/collections/stranger", NULL), 200);
    check_run(cli(s, "discard", "--instance", "replica", "--collection", there, "--yes", NULL), 0,
              "deleted: default_tenant/default_database/stranger on replica: 20 records");
    check_str(collections_on(s, 1), "known");
    check_run(cli(s, "aside", NULL), 0, "the journal knows all that was found");
    check_status(post(s, of(id, "add"), records_body("r", 0, 3, "")), 201);
    check_equal(s, id, 5);
}

/* ---- with workers ---------------------------------------------------------------------------- */

/* A worker beside the balancer, that compares nothing of its own accord. */
static struct chromux *start_worker(struct stage *s)
{
    const char *list[64];
    unsigned n = 0;
    for (; s->settings[n]; n++)
        list[n] = s->settings[n];
    list[n++] = "SYNC_INTERVAL=86400";
    list[n++] = "--role";
    list[n++] = "worker";
    list[n] = NULL;
    struct chromux *x = chromux_spawn(list);
    check_soon(sql_number(s, "SELECT count(*) FROM sync_workers WHERE lease_until > now()") == 1,
               10);
    return x;
}

static char *directly(const char *physical_id, const char *verb)
{
    return keepf(CHROMA_DB "/collections/%s/%s", physical_id, verb);
}

static void verify_finds_and_repairs_what_was_done_behind_its_back(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc"), *other = create(s, "ddd");
    start_worker(s);
    check_status(post(s, of(id, "add"), records_body("r", 0, 300, "")), 201);
    check_status(post(s, of(other, "add"), records_body("o", 0, 3, "")), 201);
    check_caught_up(s, 10);
    check_run(cli(s, "verify", NULL), 0, "2 copies are proven equal to what they were compared");
    char *there = physical(s, 1, id);
    check_status(ask_server(s->server[1], "POST", directly(there, "delete"), "{\"ids\":[\"r7\"]}"),
                 200);
    check_status(
        ask_server(s->server[1], "POST", directly(there, "add"), records_body("x", 0, 1, "")), 201);
    check_status(ask_server(s->server[1], "POST", directly(there, "upsert"),
                            "{\"ids\":[\"r9\"],\"embeddings\":[[9,9]]}"),
                 200);
    struct run r = cli(s, "verify", "--dry-run", NULL);
    check_run(r, 1, "ccc on replica: 3 of ");
    check_has(r.output, "equal        default_tenant/default_database/ddd on replica: 3 records");
    check(strcmp(records_on(s, 0, id), records_on(s, 1, id)) != 0);
    check_run(cli(s, "status", NULL), 1, "DIFFERS      default_tenant/default_database/ccc");
    check_run(cli(s, "verify", "--collection", "ccc", NULL), 0,
              "of which 3 differed and were repaired; proven at 2");
    check_equal(s, id, 5);
    r = cli(s, "status", NULL);
    check_run(r, 0, "copies       2 proven equal, 0 not proven yet, 0 not equal");
    check_has(r.output, "sync         coordinated by ");
    check_has(r.output, "worker       ");
}

static void a_copy_is_made_anew_when_asked_for(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    start_worker(s);
    check_status(post(s, of(id, "add"), records_body("r", 0, 300, "")), 201);
    check_caught_up(s, 10);
    char *was = physical(s, 1, id);
    check_run(cli(s, "pause", "--who", "anna", "--why", "a test", NULL), 0, "paused");
    sql(s, "INSERT INTO sync_jobs (kind, lane, instance, collection_name) SELECT 'rebuild', lane, "
           "'replica', 'ccc' FROM journal_collections WHERE name = 'ccc'");
    sql(s, "SELECT pg_notify('chromux_sync_work', 'jobs')");
    check_run(cli(s, "status", NULL), 0, "on replica: waiting");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_workers WHERE last_heartbeat > "
                             "(SELECT paused_at FROM sync_lease) + interval '2 seconds'") == 1,
               10);
    check_str(sql(s, "SELECT state FROM sync_jobs"), "waiting");
    check_run(cli(s, "resume", NULL), 0, "resumed");
    check_run(cli(s, "rebuild", "--instance", "replica", NULL), 0,
              "ccc on replica: 300 records from primary in ");
    check(strcmp(physical(s, 1, id), was) != 0);
    check_equal(s, id, 5);
}

static void a_workers_policy_that_fails_is_shown(void **state)
{
    struct stage *s = stage_new();
    char *folder = own_policies();
    char *file = keepf("%s/sync.lua", folder);
    write_file(file, keepf("local M = (function(...)\n%s\nend)(...)\n"
                           "function M.pace(load)\n"
                           "  if load.instance == 'replica' then error('too fast') end\n"
                           "  return 0\n"
                           "end\n"
                           "return M\n",
                           read_file(file)));
    stage_chromux(s, keepf("POLICY_DIR=%s", folder), "DEFAULT_BATCH_SIZE=10", NULL);
    char *id = create(s, "ccc");
    check_status(post(s, of(id, "add"), records_body("r", 0, 300, "")), 201);
    check_caught_up(s, 10);
    start_worker(s);
    check_run(cli(s, "verify", NULL), 0, "1 copies are proven equal");
    check_soon(strstr(shown(s, "workers"), "too fast") != NULL, 10);
    check_run(cli(s, "status", NULL), 0, "set aside are its policies sync.lua: ");
}

/* ---- the pages ------------------------------------------------------------------------------- */

static void the_pages_show_sync(void **state)
{
    struct stage *s = stage_raise();
    char *id = create(s, "ccc");
    create(s, "ddd");
    check_soon(strcmp(json_field(shown(s, "collections"), "unproven"), "2") == 0, 10);
    check_str(shown(s, "workers"), "[]");
    check_str(shown(s, "jobs"), "[]");
    check_int(instance_figure(s, "replica", "copies_rebuilding"), 0);
    put_worker(s);
    sql(s,
        "INSERT INTO sync_collections (collection_id, collection_name, instance, "
        "proven_equal_at) VALUES ('%s', 'ccc', 'replica', now() - interval '100 seconds')",
        id);
    sql(s, "INSERT INTO sync_jobs (kind, lane, collection_name, instance, state, asked_by) "
           "VALUES ('rebuild', 2, 'ddd', 'replica', 'copying', 'anna')");
    sql(s, "INSERT INTO sync_jobs (kind, lane, collection_name, instance, state, started_at, "
           "finished_at) VALUES ('verify', 1, 'ccc', 'replica', 'done', now() - interval '2 "
           "seconds', now())");
    sql(s, "UPDATE journal_copies SET state = 'rebuild' WHERE instance = 'replica' AND lane = "
           "(SELECT lane FROM journal_collections WHERE name = 'ddd')");
    sql(s, "UPDATE sync_lease SET paused_by = 'bob', paused_why = 'w', paused_at = now()");
    check_soon(strcmp(json_field(shown(s, "collections"), "rebuilding"), "1") == 0, 10);
    check_str(json_field(shown(s, "collections"), "equal"), "1");
    check_str(json_field(shown(s, "collections"), "unproven"), "0");
    check_has(json_field(shown(s, "collections"), "oldest_proof"), "Z\"");
    check_has(shown(s, "workers"), "\"w1\"");
    check_has(shown(s, "jobs"), "\"asked_by\":\"anna\"");
    check_has(shown(s, "paused"), "\"bob\"");
    check_has(json_field(shown(s, "last"), "verify"), "\"seconds\":2");
    check_int(instance_figure(s, "replica", "copies_rebuilding"), 1);
    check_int(instance_figure(s, "primary", "copies_rebuilding"), 0);
    check_int(metric(s, "chromux_sync_workers"), 1);
    check_int(metric(s, "chromux_sync_jobs"), 1);
    check_int(metric(s, "chromux_sync_paused"), 1);
    check_int(metric(s, "chromux_sync_collections{state=\"rebuilding\"}"), 1);
    check_int(metric(s, "chromux_sync_collections{state=\"equal\"}"), 1);
    check(metric(s, "chromux_sync_oldest_proof_seconds") >= 100);
    check(metric(s, "chromux_sync_oldest_proof_seconds") < 200);
}

/* PostgreSQL goes away and comes back: the pages show what they knew, and then what is. */
static void the_pages_outlive_postgresql(void **state)
{
    struct stage *s = stage_raise();
    create(s, "ccc");
    check_soon(strcmp(json_field(shown(s, "collections"), "unproven"), "1") == 0, 10);
    stage_pg_kill(SIGKILL);
    check_soon(*shown(s, "error") != 0, 10);
    check_str(json_field(shown(s, "collections"), "unproven"), "1");
    stage_pg_again();
    check_soon(*shown(s, "error") == 0 && atof(shown(s, "age_seconds")) < 5, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(wrong_use_is_told),
        STAGE_TEST(a_collection_may_be_named_in_three_ways),
        STAGE_TEST(what_nobody_takes_up_is_withdrawn),
        STAGE_TEST(the_exit_code_says_whether_all_are_equal),
        STAGE_TEST(what_an_instance_has_not_got_yet_is_no_proof),
        STAGE_TEST(what_has_never_joined_is_no_proof),
        STAGE_TEST(a_copy_that_is_not_whole_is_neither_compared_nor_a_source),
        STAGE_TEST(sync_is_paused_and_goes_on),
        STAGE_TEST(a_job_is_cancelled_once),
        STAGE_TEST(the_wait_outlives_postgresql),
        STAGE_TEST(what_the_journal_does_not_know_is_shown_and_can_be_deleted),
        STAGE_TEST(verify_finds_and_repairs_what_was_done_behind_its_back),
        STAGE_TEST(a_copy_is_made_anew_when_asked_for),
        STAGE_TEST(a_workers_policy_that_fails_is_shown),
        STAGE_TEST(the_pages_show_sync),
        STAGE_TEST(the_pages_outlive_postgresql),
    };
    return STAGE_RUN(tests);
}
