/* A server that says nothing in the middle of a rebuild or a comparison holds up nobody else,
 * leaves nothing stuck, and is equal when it goes on. Three servers: either the first or the second
 * may stand behind a peer that passes on everything but large gets. */
#include "peer.h"
#include "syncing.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { LISTS = 1, BATCHES = 2 };

static struct chroma *third;
static atomic_int hanging;    /* LISTS: lists of ids are not answered; BATCHES: gets by many ids */
static atomic_uint real_port; /* of the server behind the peer */

/* ---- the peer ---- */

static bool hangs(const struct request *r)
{
    if (!strstr(r->head, "/get HTTP/1.1\r\n"))
        return false;
    if (strcmp(r->body, "{\"include\":[]}") == 0)
        return atomic_load(&hanging) & LISTS;
    return r->body_len > 300 && (atomic_load(&hanging) & BATCHES);
}

/* One request a connection. */
static void relay(struct conn *c)
{
    struct request *r = conn_request(c);
    if (!r)
        return;
    if (hangs(r))
        conn_mark(c);
    while (hangs(r))
        if (!conn_pause(c, 0.05))
            return;
    conn_relay(c, r, atomic_load(&real_port));
}

/* ---- the stage ---- */

/* behind: which of the servers (0: primary, 1: replica) is behind the peer; -1: none. */
static struct stage *raise_three(int behind, struct peer **peer)
{
    struct stage *s = stage_new();
    const char *file = keepf("%s/chromux.lua", temp_folder());
    const char *url[] = {s->server[0]->url, s->server[1]->url};
    third = chroma_start(keepf("%s/third", temp_folder()));
    atomic_store(&hanging, 0);
    if (behind >= 0) {
        atomic_store(&real_port, s->server[behind]->port);
        *peer = peer_start(relay);
        url[behind] = peer_url(*peer);
    }
    write_file(
        file,
        keepf("return { CHECK_INTERVAL = 0.2, CONNECT_TIMEOUT = 0.5, PROBE_TIMEOUT = %g,\n"
              "  LEASE_TIMEOUT = 2, WRITE_HORIZON = 2, REQUEST_TIMEOUT = 10,\n"
              "  SYNC_INTERVAL = 86400, SYNC_CHUNK_SIZE = 100, DEFAULT_BATCH_SIZE = 100,\n"
              "  instances = { { name = \"primary\", url = \"%s\" },\n"
              "    { name = \"replica\", url = \"%s\" }, { name = \"third\", url = \"%s\" } } }\n",
              slow(1), url[0], url[1], third->url));
    s->settings = keep(sizeof *s->settings * 4);
    s->settings[0] = "--config";
    s->settings[1] = file;
    s->settings[2] = keepf("DATABASE_URL=%s", s->url);
    s->x = chromux_start_list(s->settings);
    check_soon(strstr(json_field(get(s, "/status")->body, "journal"), "\"state\":\"on\"") != NULL,
               20);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane = 0 AND "
                             "state = 'ready'") == 3,
               20);
    return s;
}

static char *fill(struct stage *s, const char *name, unsigned n)
{
    char *id = create(s, name);
    for (unsigned from = 0; from < n; from += 500)
        check_status(
            post(s, of(id, "add"), records_body("r", from, n - from < 500 ? n - from : 500, "")),
            201);
    return id;
}

static void check_third(struct stage *s, const char *id)
{
    char *there = sql(s,
                      "SELECT physical FROM journal_copies JOIN journal_collections USING (lane) "
                      "WHERE logical = '%s' AND instance = 'third'",
                      id);
    check_str(records_at(s, third, there), records_on(s, 0, id));
}

static long open_tasks(struct stage *s)
{
    return sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status IN ('pending', "
                         "'processing')");
}

static long jobs_on(struct stage *s, const char *instance, const char *kind, const char *state)
{
    return sql_number(s,
                      "SELECT count(*) FROM sync_jobs WHERE instance = '%s' AND kind = '%s' AND "
                      "state = '%s'",
                      instance, kind, state);
}

/* Asks for a job on the copies of collections with names like that. */
static void ask_job(struct stage *s, const char *kind, const char *instance, const char *name)
{
    sql(s,
        "INSERT INTO sync_jobs (kind, lane, collection_id, collection_name, tenant, database, "
        "instance, asked_by) SELECT '%s', lane, logical, name, tenant, database, '%s', 'a test' "
        "FROM journal_collections WHERE NOT deleted AND name LIKE '%s'",
        kind, instance, name);
    sql(s, "SELECT pg_notify('chromux_sync_work', 'jobs')::text");
}

/* Asks for comparisons of all copies on an instance. */
static void ask_verify(struct stage *s, const char *instance)
{
    ask_job(s, "verify", instance, "%");
}

/* ---- tests ---- */

static void a_source_that_hangs_on_large_reads_is_left_for_another(void **state)
{
    struct peer *peer;
    struct stage *s = raise_three(0, &peer);
    char *id = fill(s, "many", 2500);
    check_caught_up(s, 20);
    atomic_store(&hanging, LISTS | BATCHES);
    chroma_wipe(s->server[1]);
    sync_process(s, "worker", NULL);
    sync_check_jobs(s, "rebuild", "done", 1, 40);
    check(peer_marks(peer) > 0);
    check_str(sql(s, "SELECT source FROM sync_jobs WHERE state = 'done'"), "third");
    check_int(open_tasks(s), 0);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 2500);
}

/* More jobs and tasks for the one that hangs than there are at once on one server. */
static void what_hangs_on_one_server_holds_up_no_other(void **state)
{
    enum { COLLECTIONS = 10 };
    static const int on[] = {LISTS, BATCHES};
    struct peer *peer;
    struct stage *s = raise_three(1, &peer);
    char *ids[COLLECTIONS];
    for (unsigned i = 0; i < COLLECTIONS; i++)
        ids[i] = fill(s, keepf("coll%u", i), 300);
    check_caught_up(s, 20);
    sync_process(s, "worker", NULL);
    for (unsigned k = 0; k < COUNT_OF(on); k++) {
        unsigned marks = peer_marks(peer);
        long before = jobs_on(s, "replica", "verify", "done");
        atomic_store(&hanging, on[k]);
        ask_verify(s, "replica");
        check_soon(peer_marks(peer) >= marks + 2, 20);
        chroma_wipe(third);
        if (!wait_until(jobs_on(s, "third", "rebuild", "done") == COLLECTIONS * (k + 1), 30))
            sync_check_jobs(s, "rebuild", "done", COLLECTIONS * (k + 1), 0);
        check_int(jobs_on(s, "replica", "verify", "done"), before);
        atomic_store(&hanging, 0);
        check_soon(jobs_on(s, "replica", "verify", "done") == before + COLLECTIONS, 90);
    }
    check_int(open_tasks(s), 0);
    check_int(sql_number(s, "SELECT count(*) FROM sync_collections WHERE instance = 'replica' AND "
                            "proven_equal_at IS NOT NULL"),
              COLLECTIONS);
    for (unsigned i = 0; i < COLLECTIONS; i++)
        check_third(s, ids[i]);
}

static bool counted(struct stage *s, const char *id)
{
    return ask_with(s, "GET", of(id, "count"), "", NULL)->status == 200;
}

/* The primary is the source of a comparison that does not end. */
static void a_source_of_others_is_made_anew_while_there_are_clients(void **state)
{
    struct peer *peer;
    struct stage *s = raise_three(1, &peer);
    char *few = fill(s, "few", 5);
    fill(s, "many", 1000);
    check_caught_up(s, 20);
    sync_process(s, "worker", NULL);
    atomic_store(&hanging, BATCHES);
    ask_job(s, "verify", "replica", "many");
    check_soon(counted(s, few) && peer_marks(peer) > 0, 20);
    ask_job(s, "rebuild", "primary", "few");
    check_soon(counted(s, few) && jobs_on(s, "primary", "rebuild", "done") == 1, 20);
    check_int(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = 'processing' AND "
                            "instance = 'replica'"),
              1);
    atomic_store(&hanging, 0);
    check_soon(jobs_on(s, "replica", "verify", "done") == 1, 90);
}

static void a_server_that_stands_still_is_equal_when_it_goes_on(void **state)
{
    struct stage *s = raise_three(-1, NULL);
    char *id = fill(s, "many", 6000), *small = fill(s, "small", 300);
    check_caught_up(s, 30);
    chroma_wipe(s->server[1]);
    sync_process(s, "worker", NULL);
    /* In the middle of a rebuild: */
    check_soon(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = 'completed' AND "
                             "collection_name = 'many'") > 3,
               20);
    chroma_signal(s->server[1], SIGSTOP);
    chroma_wipe(third);
    check_soon(jobs_on(s, "third", "rebuild", "done") == 2, 40);
    check_int(sql_number(s, "SELECT count(*) FROM journal_copies WHERE instance = 'replica' AND "
                            "state <> 'ready' AND lane = (SELECT lane FROM journal_collections "
                            "WHERE name = 'many')"),
              1);
    check_status(post(s, of(id, "delete"), "{\"ids\":[\"r1\"]}"), 200);
    chroma_signal(s->server[1], SIGCONT);
    check_soon(jobs_on(s, "replica", "rebuild", "done") == 2, 60);
    check_int(count_lines(check_equal(s, id, 20), "\n"), 5999);
    check_equal(s, small, 20);
    check_third(s, id);
    /* In the middle of a comparison: */
    sql(s, "DELETE FROM sync_tasks");
    ask_verify(s, "replica");
    check_soon(sql_number(s, "SELECT count(*) FROM sync_tasks WHERE task_status = 'completed'") > 3,
               20);
    chroma_signal(s->server[1], SIGSTOP);
    ask_verify(s, "third");
    check_soon(jobs_on(s, "third", "verify", "done") == 2, 40);
    chroma_signal(s->server[1], SIGCONT);
    check_soon(jobs_on(s, "replica", "verify", "done") == 2, 60);
    check_int(sql_number(s, "SELECT count(*) FROM sync_collections WHERE proven_equal_at "
                            "IS NOT NULL AND differences = 0"),
              4);
    check_int(open_tasks(s), 0);
    check_int(sync_jobs(s, "verify", "failed") + sync_jobs(s, "rebuild", "failed"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(a_source_that_hangs_on_large_reads_is_left_for_another),
        STAGE_TEST(what_hangs_on_one_server_holds_up_no_other),
        STAGE_TEST(a_source_of_others_is_made_anew_while_there_are_clients),
        STAGE_TEST(a_server_that_stands_still_is_equal_when_it_goes_on),
    };
    return STAGE_RUN(tests);
}
