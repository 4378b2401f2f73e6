/* Sync makes copies anew while clients go on, by processes that run beside the balancer and die in
 * the middle of it. What they did is asked of the database and of both servers. */
#include "load.h"
#include "syncing.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { WRITERS = 2, READERS = 2, HELD_MOST_MS = 200 };

static void add_many(struct stage *s, const char *id, unsigned from, unsigned n)
{
    for (unsigned upto = from + n; from < upto; from += 1000) {
        unsigned some = upto - from < 1000 ? upto - from : 1000;
        check_status(post(s, of(id, "add"), records_body("r", from, some, "")), 201);
    }
}

static long tasks(struct stage *s, const char *status)
{
    return sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = '%s'", status);
}

/* Every chunk of the last rebuild was counted once, and nothing is stuck. */
static void check_counted(struct stage *s, long records)
{
    check_int(sql_number(s, "SELECT sum(records) FROM sync_tasks WHERE kind = 'copy'"), records);
    check_int(sql_number(s, "SELECT count(*) - count(DISTINCT chunk_start_offset) FROM sync_tasks "
                            "WHERE kind = 'copy'"),
              0);
    check_int(tasks(s, "completed"), sql_number(s, "SELECT count(*) FROM sync_tasks"));
    check_int(sql_number(s, "SELECT records FROM sync_jobs ORDER BY id DESC LIMIT 1"), records);
}

/* ---- traffic: each writer writes, changes and deletes records of its own; readers read ----------
 */

struct traffic {
    char *id;
    struct load *load;
};

static const char *request(unsigned client, unsigned n, void *arg)
{
    static __thread char text[1024];
    struct traffic *t = arg;
    char body[300];
    const char *verb = "get";
    if (client >= WRITERS) {
        snprintf(body, sizeof body, "{\"ids\":[\"r%u\"],\"include\":[\"embeddings\"]}", n % 500);
    } else if (n % 3 == 2) {
        verb = "delete";
        snprintf(body, sizeof body, "{\"ids\":[\"w%u-%u\",\"r%u\"]}", client, n - 2, 1000 + n);
    } else {
        verb = n % 3 ? "update" : "upsert";
        snprintf(body, sizeof body,
                 "{\"ids\":[\"w%u-%u\",\"r%u\"],\"embeddings\":[[%u,%u.25],[1,%u]],"
                 "\"metadatas\":[{\"n\":%u},{\"c\":true}]}",
                 client, n, 500 + (n % 2000 + client * 7) % 500, client, n, n, n);
    }
    snprintf(text, sizeof text,
             "POST " CHROMA_DB "/collections/%s/%s HTTP/1.1\r\nHost: h\r\n"
             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             t->id, verb, strlen(body), body);
    return text;
}

static bool right(unsigned client, unsigned n, int status, const char *body, void *arg)
{
    char part[64];
    (void)arg;
    if (client < WRITERS)
        return status == 200;
    snprintf(part, sizeof part, "[[%u.0,%u.5]]", n % 500, n % 500 % 7);
    return status == 200 && strstr(body, part);
}

static struct traffic *traffic_start(struct stage *s, const char *id)
{
    struct traffic *t = keep(sizeof *t);
    *t = (struct traffic){.id = keepf("%s", id)};
    struct load_plan plan = {request, right, t, 0.02};
    t->load = load_start(s->x->port, WRITERS + READERS, &plan);
    return t;
}

static void traffic_stop(struct traffic *t)
{
    load_stop(t->load);
    check(load_good(t->load) > 50);
    if (load_bad(t->load) > 0)
        harness_fail(__FILE__, __LINE__, "%u of %u requests were answered wrongly; the first: %s",
                     load_bad(t->load), load_bad(t->load) + load_good(t->load),
                     load_complaint(t->load));
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void a_wiped_replica_heals_while_clients_go_on(void **state)
{
    struct stage *s = stage_raise();
    sync_process(s, "worker", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 2500);
    check_caught_up(s, 20);
    char *before = physical(s, 1, id);
    struct traffic *t = traffic_start(s, id);
    check_soon(load_good(t->load) > 40, 10);
    chroma_wipe(s->server[1]);
    sync_check_jobs(s, "rebuild", "done", 1, 30);
    unsigned good = load_good(t->load);
    check_soon(load_good(t->load) > good + 40, 10);
    traffic_stop(t);
    check_equal(s, id, 20);
    check(strcmp(before, physical(s, 1, id)) != 0);
    check(
        strcmp(sql(s, "SELECT max(hold_ms) < %d AND max(hold_ms) > 0 FROM sync_jobs", HELD_MOST_MS),
               "t") == 0);
    check_str(collections_on(s, 1), "many"); /* nothing temporary is left */
}

static void what_was_changed_or_deleted_is_on_both_after_it(void **state)
{
    struct stage *s = stage_raise();
    sync_process(s, "worker", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 2500);
    check_status(post(s, of(id, "update"), "{\"ids\":[\"r7\"],\"embeddings\":[[9,9]]}"), 200);
    check_status(post(s, of(id, "delete"), "{\"ids\":[\"r8\"]}"), 200);
    chroma_wipe(s->server[1]);
    sync_check_jobs(s, "rebuild", "done", 1, 30);
    char *all = check_equal(s, id, 20);
    check_int(count_lines(all, "\n"), 2499);
    check_has(all, "[\"r7\", [9.0, 9.0]");
    check_lacks(all, "\"r8\"");
    check_str(sql(s, "SELECT primary_document_count || ' ' || replica_document_count || ' ' || "
                     "sync_status FROM sync_collections WHERE instance = 'replica'"),
              "2499 2499 synced");
    check_status(post(s, of(id, "update"), "{\"ids\":[\"r9\"],\"embeddings\":[[9,9]]}"), 200);
    check_status(post(s, of(id, "delete"), "{\"ids\":[\"r10\"]}"), 200);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 2498);
}

/* A tenant and a database whose names need care in a path; newer servers take no such names. */
#define ODD_TENANT     "/api/v2/tenants/t%20%C3%A9%2F1"
#define ODD_DATABASE   ODD_TENANT "/databases/d%3F%23%252F"
#define PLAIN_TENANT   "/api/v2/tenants/te.nant"
#define PLAIN_DATABASE PLAIN_TENANT "/databases/data_base"

static const char *odd_place(struct stage *s)
{
    check_status(post(s, "/api/v2/tenants", "{\"name\":\"t \xc3\xa9/1\"}"), 200);
    if (post(s, ODD_TENANT "/databases", "{\"name\":\"d?#%2F\"}")->status == 200)
        return ODD_DATABASE "/collections";
    check_status(post(s, "/api/v2/tenants", "{\"name\":\"te.nant\"}"), 200);
    check_status(post(s, PLAIN_TENANT "/databases", "{\"name\":\"data_base\"}"), 200);
    return PLAIN_DATABASE "/collections";
}

/* Servers that know of schemas keep this one, others pass over it. */
#define SCHEMA                                                                                     \
    "\"schema\":{\"defaults\":{\"string\":{\"string_inverted_index\":{\"enabled\":false,"          \
    "\"config\":{}}}},\"keys\":{\"i\":{\"int\":{\"int_inverted_index\":{\"enabled\":false,"        \
    "\"config\":{}}}}}}"

static const char every_type[] =
    "{\"ids\":[\"\xc3\xa9\",\"q\\\"\\\\\",\"a/b\",\"\\ud83d\\ude00\",\"e\"],"
    "\"embeddings\":[[0.1,1e-30],[3,-4.25],[1e10,7],[0.3333333,-0.0],[5,6]],"
    "\"documents\":[\"a \\t b\",null,\"\",\"d\",null],"
    "\"uris\":[null,\"file:///x\",null,null,null],"
    "\"metadatas\":[{\"i\":9007199254740993,\"f\":1.0,\"g\":0.1,\"s\":\"\\n\",\"b\":true},"
    "{\"i\":1},null,{\"b\":false,\"m\":-9223372036854775807},null]}";

/* Everything that the servers say of the collection but its id. */
static void check_described_equally(struct stage *s, const char *path)
{
    static const char *const fields[] = {"configuration_json", "schema", "metadata", "dimension"};
    struct answer *a = ask_server(s->server[0], "GET", path, NULL),
                  *b = ask_server(s->server[1], "GET", path, NULL);
    check_status(a, 200);
    check_status(b, 200);
    for (unsigned i = 0; i < COUNT_OF(fields); i++) {
        char *left = json_field(a->body, fields[i]), *right = json_field(b->body, fields[i]);
        if (*left || *right)
            check_str(canonical(s, left), canonical(s, right));
    }
}

static void all_kinds_of_collections_and_records_survive(void **state)
{
    enum { L2, IP, COSINE, WITH_SCHEMA, EMPTIED, EMPTY, KINDS };
    static const char *const more[] = {
        ",\"configuration\":{\"hnsw\":{\"space\":\"l2\",\"ef_construction\":77}}",
        ",\"configuration\":{\"hnsw\":{\"space\":\"ip\"}}",
        ",\"configuration\":{\"hnsw\":{\"space\":\"cosine\"}}",
        "," SCHEMA,
        "",
        ""};
    struct stage *s = stage_raise();
    sync_process(s, "worker", "SYNC_INTERVAL=1");
    const char *odd = odd_place(s);
    char *ids[KINDS], *paths[KINDS];
    for (unsigned i = 0; i < KINDS; i++) {
        const char *place = i == COSINE ? odd : "/collections";
        struct answer *a =
            post(s, place,
                 keepf("{\"name\":\"Odd.%u-_name\",\"metadata\":{\"k\":%u,\"f\":1.0}%s}", i, i,
                       more[i]));
        check_status(a, 200);
        ids[i] = keep_text(json_field(a->body, "id") + 1, 36);
        paths[i] = keepf("%s/Odd.%u-_name", place, i);
        if (i != EMPTY)
            check_status(post(s, keepf("%s/%s/add", place, ids[i]), every_type), 201);
        if (i == EMPTIED)
            check_status(
                post(s, keepf("%s/%s/delete", place, ids[i]),
                     "{\"ids\":[\"\xc3\xa9\",\"q\\\"\\\\\",\"a/b\",\"\\ud83d\\ude00\",\"e\"]}"),
                200);
    }
    check_caught_up(s, 20);
    chroma_wipe(s->server[1]);
    sync_check_jobs(s, "rebuild", "done", KINDS, 40);
    check_caught_up(s, 20);
    for (unsigned i = 0; i < KINDS; i++) {
        check_described_equally(s, paths[i]);
        if (i != COSINE)
            check_equal(s, ids[i], 20);
    }
    /* Vectors of the cosine may differ in the last bits: a comparison says that they are equal. */
    check_soon(sql_number(s, "SELECT count(*) FROM sync_collections WHERE "
                             "proven_equal_at IS NOT NULL AND differences = 0") == KINDS,
               30);
    check_int(sql_number(s,
                         "SELECT replica_document_count FROM sync_collections "
                         "WHERE collection_id = '%s'",
                         ids[COSINE]),
              5);
}

static void two_workers_share_the_tasks_and_one_may_die(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_CHUNK_SIZE=100", "DEFAULT_BATCH_SIZE=50", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 12000);
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    struct chromux *w[2];
    for (unsigned i = 0; i < 2; i++)
        w[i] = sync_process(s, "worker", NULL);
    check_soon(sql_number(s, "SELECT count(DISTINCT worker_id) FROM sync_tasks WHERE "
                             "task_status = 'completed'") == 2,
               20);
    long coordinator = sql_number(s, "SELECT split_part(holder, '/', 2) FROM sync_lease");
    struct chromux *victim = w[0]->pid == coordinator ? w[1] : w[0];
    check_soon(sql_number(s,
                          "SELECT count(*) FROM sync_tasks WHERE task_status = 'processing' AND "
                          "worker_id LIKE '%%-%d-%%'",
                          (int)victim->pid) > 0,
               10);
    pid_t pid = victim->pid;
    chromux_signal(victim, SIGKILL);
    check(chromux_wait_exit(victim, 10));
    check(sync_jobs(s, "rebuild", "done") == 0);
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 12000);
    check_counted(s, 12000);
    check_int(sql_number(s, "SELECT count(*) FROM sync_workers WHERE worker_id LIKE '%%-%d-%%'",
                         (int)pid),
              0);
    check_int(sql_number(s, "SELECT count(*) FROM sync_workers WHERE last_heartbeat > now() - "
                            "interval '3 seconds'"),
              1);
    check(sql_number(s, "SELECT max(memory_peak_mb) FROM sync_collections") > 5);
    check(sql_number(s, "SELECT max(memory_peak_mb) FROM sync_collections") < 200);
}

static void the_coordinator_dies_and_another_goes_on(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_CHUNK_SIZE=100", "DEFAULT_BATCH_SIZE=50", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 8000);
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    struct chromux *c = sync_process(s, "coordinator", NULL);
    check_soon(sql_number(s, "SELECT count(*) FROM sync_lease WHERE until > now()") == 1, 10);
    check_int(sql_number(s, "SELECT split_part(holder, '/', 2) FROM sync_lease"), c->pid);
    sync_process(s, "worker", NULL);
    check_soon(tasks(s, "completed") > 3, 20);
    chromux_signal(c, SIGKILL);
    check(chromux_wait_exit(c, 10));
    check(sync_jobs(s, "rebuild", "done") == 0);
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 8000);
    check_counted(s, 8000);
    check_int(sql_number(s, "SELECT attempts FROM sync_jobs"), 0);
}

/* A task is claimed and the worker does not hear of it; the coordinator's lease runs out and is
 * taken again by the same process: that is another coordinator. */
static void what_was_not_heard_of_is_made_good(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_CHUNK_SIZE=100", "DEFAULT_BATCH_SIZE=50", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 6000);
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    sync_process(s, "worker", NULL);
    check_soon(tasks(s, "completed") > 3, 20);
    long epoch = sql_number(s, "SELECT epoch FROM sync_lease");
    char *task = sql(s, "UPDATE sync_tasks SET task_status = 'processing', epoch = epoch + 1, "
                        "worker_id = (SELECT worker_id FROM sync_workers) WHERE id = (SELECT "
                        "max(id) FROM sync_tasks WHERE task_status = 'pending') RETURNING id");
    check(*task != 0);
    sql(s, "UPDATE sync_lease SET until = now() - interval '1 minute'");
    check_soon(sql_number(s, "SELECT epoch FROM sync_lease") == epoch + 1, 10);
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 6000);
    check_counted(s, 6000);
    check_int(sql_number(s, "SELECT epoch FROM sync_tasks WHERE id = %s", task), 2);
    check_int(sql_number(s, "SELECT attempts FROM sync_jobs"), 0);
}

static void servers_and_the_database_fail_in_the_middle(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "SYNC_CHUNK_SIZE=100", "DEFAULT_BATCH_SIZE=50", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 6000);
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    sync_process(s, "worker", NULL);
    check_soon(tasks(s, "completed") > 3, 20);
    chroma_kill(s->server[1]);
    chroma_again(s->server[1]);
    check_soon(sql_number(s, "SELECT max(attempts) FROM sync_jobs") >= 1, 20);
    check_soon(tasks(s, "completed") > 3, 20);
    chroma_kill(s->server[0]);
    chroma_again(s->server[0]);
    check_soon(sql_number(s, "SELECT max(attempts) FROM sync_jobs") >= 2, 20);
    check_soon(tasks(s, "completed") > 3, 20);
    stage_pg_kill(SIGINT);
    stage_pg_again();
    sync_check_jobs(s, "rebuild", "done", 1, 60);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 6000);
    check_counted(s, 6000);
    check_soon(strcmp(collections_on(s, 1), "many") == 0, 10);
}

static void without_a_whole_copy_nothing_is_overwritten(void **state)
{
    struct stage *s = stage_raise();
    sync_process(s, "worker", NULL);
    char *id = create(s, "lost");
    add_many(s, id, 0, 10);
    check_caught_up(s, 10);
    chroma_kill(s->server[0]);
    chroma_wipe(s->server[1]);
    check_soon(
        sql_number(s, "SELECT count(*) FROM journal_copies WHERE state = 'rebuild' AND lane > 0 "
                      "AND instance = 'replica'") == 1,
        10);
    /* The other one is whole, though it is down: that is waited for. */
    check_soon(
        sql_number(s, "SELECT count(*) FROM sync_jobs WHERE state = 'waiting' AND error <> ''") ==
            1,
        10);
    chroma_wipe(s->server[0]);
    check_soon(sql_number(s, "SELECT count(*) FROM notify_events WHERE kind = 'no_source' AND "
                             "key = 'copies/replica' AND fields::text LIKE '%%lost%%'") >= 1,
               20);
    check_soon(sync_jobs(s, "rebuild", "done") == 0 && sync_jobs(s, "rebuild", "waiting") == 0, 10);
}

/* Who answered a read. */
static const char *reader(struct stage *s, const char *id)
{
    struct answer *a = ask_with(s, "GET", of(id, "count"), "", NULL);
    check_status(a, 200);
    return head_field(a->head, "X-Chromux-Instance");
}

static bool read_by_the_primary(struct stage *s, const char *id, unsigned times)
{
    while (times > 0 && strcmp(reader(s, id), "primary") == 0)
        times--;
    return times == 0;
}

/* The copy that is made anew is whole, so it might be read. sync.lua takes its time, and says what
 * it knows of clients. */
static void reads_spare_a_server_that_is_filled_and_workers_hear_of_clients(void **state)
{
    struct stage *s = stage_new();
    char *policies = keepf("%s/policies", temp_folder());
    const char *const copy[] = {"cp", "-r", "policies", policies, NULL};
    check_int(run_program(copy, NULL, 10).status, 0);
    write_file(
        keepf("%s/sync.lua", policies),
        "return {\n"
        "  batch = function(sample) return math.min(50, sample.most) end,\n"
        "  authority = function(copies)\n"
        "    for _, c in ipairs(copies) do if c.state == 'ready' then return c.instance end end\n"
        "    return nil, 'none'\n"
        "  end,\n"
        "  pace = function(load)\n"
        "    if load.waits then print('clients wait ' .. load.waits) end\n"
        "    return 0.3\n"
        "  end }\n");
    stage_chromux(s, keepf("POLICY_DIR=%s", policies), NULL);
    struct chromux *worker = sync_process(s, "worker", NULL);
    char *id = create(s, "many");
    add_many(s, id, 0, 1000);
    check_caught_up(s, 10);
    check_soon(strcmp(reader(s, id), "replica") == 0, 10);
    sql(s, "INSERT INTO sync_jobs (kind, lane, instance, collection_name, asked_by) SELECT "
           "'rebuild', lane, 'replica', 'many', 'ann' FROM journal_collections");
    check_soon(tasks(s, "processing") == 1, 20);
    check_soon(read_by_the_primary(s, id, 10), 10);
    while (tasks(s, "processing") == 1)
        check(read_by_the_primary(s, id, 2));
    check(strstr(chromux_log(worker), "clients wait ") != NULL);
    sync_check_jobs(s, "rebuild", "done", 1, 30);
    check_soon(strcmp(reader(s, id), "replica") == 0, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_wiped_replica_heals_while_clients_go_on),
        STAGE_TEST(what_was_changed_or_deleted_is_on_both_after_it),
        STAGE_TEST(all_kinds_of_collections_and_records_survive),
        STAGE_TEST(two_workers_share_the_tasks_and_one_may_die),
        STAGE_TEST(the_coordinator_dies_and_another_goes_on),
        STAGE_TEST(what_was_not_heard_of_is_made_good),
        STAGE_TEST(servers_and_the_database_fail_in_the_middle),
        STAGE_TEST(without_a_whole_copy_nothing_is_overwritten),
        STAGE_TEST(reads_spare_a_server_that_is_filled_and_workers_hear_of_clients),
    };
    return STAGE_RUN(tests);
}
