/* The SQL that operators know from the guide, word for word, while sync and the monitor work: every
 * query runs at any moment and says what is so. */
#include "stage.h"

#include <stdio.h>
#include <string.h>

#define RECORDS 3000

/* "psql -c" of the guide; names of its columns in the order they have. */
#define TASKS   "SELECT * FROM sync_tasks ORDER BY created_at DESC LIMIT 5;"
#define WORKERS "SELECT worker_id, worker_status, last_heartbeat FROM sync_workers;"
#define ADVICE  "SELECT * FROM upgrade_recommendations ORDER BY created_at DESC LIMIT 5;"
#define METRICS                                                                                    \
    "SELECT metric_timestamp, memory_percent, cpu_percent FROM performance_metrics ORDER BY "      \
    "metric_timestamp DESC LIMIT 5;"

/* A condition on the rows that a query of the guide brings, as a number. */
static long of_rows(struct stage *s, const char *what, const char *query)
{
    return sql_number(s, "SELECT %s FROM (%.*s) q", what, (int)strlen(query) - 1, query);
}

static void check_columns(struct stage *s, const char *table, const char *const *names)
{
    for (; *names; names++)
        if (sql_number(s,
                       "SELECT count(*) FROM information_schema.columns WHERE table_name = '%s' "
                       "AND column_name = '%s'",
                       table, *names) != 1)
            harness_fail(__FILE__, __LINE__, "%s has no column %s", table, *names);
}

/* The page of metrics, with all that the processes have to say, is as Prometheus wants it. */
static void check_metrics(struct stage *s)
{
    char *path = keepf("%s/metrics", temp_folder());
    const char *const lint[] = {chromux_path(), "script", "tests/integration/metrics_lint.lua",
                                path, NULL};
    write_file(path, get(s, "/metrics")->body);
    struct run r = run_program(lint, NULL, 10);
    if (r.status != 0)
        harness_fail(__FILE__, __LINE__, "%s", r.output);
}

static void wipe(struct chroma *c)
{
    const char *const rm[] = {"rm", "-rf", c->folder, NULL};
    chroma_kill(c);
    run_program(rm, NULL, 10);
    chroma_again(c);
}

/* Each chunk takes a while, so that all of it can be seen under way: a heartbeat comes every 0.7 s,
 * and 30 chunks would take less. */
static void slow_chunks(struct stage *s)
{
    sql(s, "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
           "PERFORM pg_sleep(0.1); RETURN NEW; END $$");
    sql(s, "CREATE TRIGGER linger BEFORE UPDATE ON sync_tasks FOR EACH ROW "
           "WHEN (NEW.task_status = 'completed') EXECUTE FUNCTION linger()");
}

static bool rebuilt(struct stage *s)
{
    return sql_number(s, "SELECT count(*) FROM sync_jobs WHERE kind = 'rebuild' AND state = "
                         "'done'") == 1;
}

static void the_queries_of_the_guide_say_what_is_so(void **state)
{
    static const char *const tasks[] = {"id",
                                        "collection_id",
                                        "collection_name",
                                        "chunk_start_offset",
                                        "chunk_end_offset",
                                        "task_status",
                                        "worker_id",
                                        "started_at",
                                        "completed_at",
                                        "retry_count",
                                        "error_message",
                                        "created_at",
                                        NULL};
    static const char *const workers[] = {"worker_id",
                                          "last_heartbeat",
                                          "worker_status",
                                          "current_task_id",
                                          "memory_usage_mb",
                                          "cpu_percent",
                                          NULL};
    static const char *const collections[] = {"collection_id",
                                              "collection_name",
                                              "primary_document_count",
                                              "replica_document_count",
                                              "last_successful_sync",
                                              "last_sync_attempt",
                                              "sync_status",
                                              "sync_duration_seconds",
                                              "avg_batch_size",
                                              "consecutive_errors",
                                              "last_error_message",
                                              "memory_peak_mb",
                                              "created_at",
                                              "updated_at",
                                              NULL};
    static const char *const advice[] = {"id",
                                         "recommendation_type",
                                         "current_usage",
                                         "recommended_tier",
                                         "estimated_monthly_cost",
                                         "reason",
                                         "urgency",
                                         "created_at",
                                         NULL};
    static const char *const metrics[] = {
        "id",          "metric_timestamp",   "memory_usage_mb",        "memory_percent",
        "cpu_percent", "active_collections", "total_documents_synced", "avg_sync_time_seconds",
        NULL};
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_CHUNK_SIZE=100", "SYNC_INTERVAL=86400", "MONITOR_INTERVAL=0.5",
                  "SYNC_DISTRIBUTED=true", "MAX_WORKERS=2", "--role", "all", NULL);
    char *id = create(s, "many");
    for (unsigned from = 0; from < RECORDS; from += 500)
        check_status(post(s, of(id, "add"), records_body("r", from, 500, "")), 201);
    check_caught_up(s, 20);
    check_columns(s, "sync_tasks", tasks);
    check_columns(s, "sync_workers", workers);
    check_columns(s, "sync_collections", collections);
    check_columns(s, "upgrade_recommendations", advice);
    check_columns(s, "performance_metrics", metrics);
    check_soon(of_rows(s, "count(*)", WORKERS) == 2, 10);
    slow_chunks(s);
    wipe(s->server[1]);
    bool processing = false, working = false, growing = false;
    long before = 0;
    check_soon(of_rows(s, "count(*)", TASKS) > 0, 30);
    double end = now_seconds() + slow(40);
    while (!rebuilt(s) && now_seconds() < end) {
        processing |= of_rows(s, "count(*) FILTER (WHERE task_status = 'processing')", TASKS) > 0 ||
                      sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = "
                                    "'processing' AND worker_id IS NOT NULL") > 0;
        working |= of_rows(s, "count(*) FILTER (WHERE worker_status = 'working')", WORKERS) > 0;
        long done = sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = "
                                  "'completed'");
        growing |= before > 0 && done > before;
        before = done;
        check_int(of_rows(s,
                          "count(*) FILTER (WHERE last_heartbeat < now() - interval '5 "
                          "seconds')",
                          WORKERS),
                  0);
        of_rows(s, "count(*)", ADVICE);
        of_rows(s, "count(*)", METRICS);
    }
    check(rebuilt(s));
    check(processing && working && growing);
    /* Chunks by real counts, each once. */
    check_int(sql_number(s, "SELECT sum(chunk_end_offset - chunk_start_offset + 1) FROM sync_tasks "
                            "WHERE kind = 'copy' AND collection_name = 'many'"),
              RECORDS);
    check_int(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status <> 'completed'"), 0);
    check_int(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE completed_at < started_at OR "
                            "worker_id IS NULL OR retry_count > 0"),
              0);
    check_int(sql_number(s,
                         "SELECT count(*) FROM sync_collections WHERE collection_id = '%s' AND "
                         "collection_name = 'many' AND primary_document_count = %d AND "
                         "replica_document_count = %d AND sync_status = 'synced' AND "
                         "sync_duration_seconds > 0 AND memory_peak_mb > 0 AND avg_batch_size > "
                         "0 AND last_successful_sync IS NOT NULL AND consecutive_errors = 0",
                         id, RECORDS, RECORDS),
              1);
    check_equal(s, id, 10);
    /* What the monitor saw meanwhile. */
    check_soon(of_rows(s, "count(memory_percent)", METRICS) > 0 &&
                   of_rows(s, "count(cpu_percent)", METRICS) > 0,
               10);
    check_int(of_rows(s, "count(*) FILTER (WHERE metric_timestamp < now() - interval '20 seconds')",
                      METRICS),
              0);
    check_soon(metric(s, "chromux_instance_memory_bytes{instance=\"primary\"}") > 0, 10);
    check_metrics(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(the_queries_of_the_guide_say_what_is_so),
    };
    return STAGE_RUN(tests);
}
