/* PostgreSQL goes away under the journal: reads go on, writes are refused and leave nothing, and
 * all works again without a restart. Servers that forgot something, and those that knew something
 * before. */
#include "fixture.h"
#include "load.h"
#include "stage.h"

#include <libpq-fe.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static char *filled(struct stage *s, const char *name, unsigned n)
{
    char *id = create(s, name);
    check_status(post(s, of(id, "add"), records_body("r", 0, n, "")), 201);
    check_caught_up(s, 5);
    return id;
}

static void check_reads(struct stage *s, const char *id, const char *count)
{
    for (unsigned i = 0; i < 4; i++) {
        struct answer *a = get(s, of(id, "count"));
        check_status(a, 200);
        check_str(a->body, count);
        check_status(post(s, of(id, "query"), "{\"query_embeddings\":[[1,2]]}"), 200);
        check_status(get(s, "/collections/away"), 200);
    }
}

/* Refused for certain: nothing is kept. At first a write may be caught in the middle. */
static bool refused(struct stage *s, const char *id, unsigned n)
{
    struct answer *a = post(s, of(id, "add"), records_body("gone", n, 1, ""));
    if (a->status == 503) {
        check(head_field(a->head, "Retry-After") != NULL);
        check_has(a->body, "not kept");
        return true;
    }
    check_status(a, 504);
    return false;
}

static bool works_again(struct stage *s, const char *id, unsigned n)
{
    return post(s, of(id, "add"), records_body("back", n, 1, ""))->status == 201;
}

static void check_replication(struct stage *s, const char *state)
{
    check_soon(
        strcmp(json_field(get(s, "/status")->body, "replication"), keepf("\"%s\"", state)) == 0, 5);
}

static void writes_wait_for_postgresql_to_come_back(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=2", NULL);
    char *id = filled(s, "away", 3);
    static const int how[] = {SIGQUIT, SIGINT};
    for (unsigned i = 0; i < COUNT_OF(how); i++) {
        char *count = get(s, of(id, "count"))->body;
        long rows = sql_number(s, "SELECT count(*) FROM journal_entries");
        stage_pg_kill(how[i]);
        check_reads(s, id, count);
        for (unsigned n = 0; n < 3; n++)
            check(refused(s, id, n));
        check_status(post(s, "/collections", "{\"name\":\"away2\"}"), 503);
        check_reads(s, id, count);
        check_replication(s, "degraded");
        stage_pg_again();
        check_soon(works_again(s, id, i), 10);
        check_replication(s, "on");
        check_int(sql_number(s, "SELECT count(*) FROM journal_entries"), rows + 1);
        check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE body LIKE '%%gone%%'"),
                  0);
        check_lacks(check_equal(s, id, 5), "gone");
    }
}

static void read_only(struct stage *s, const char *value)
{
    sql(s, "ALTER SYSTEM SET default_transaction_read_only = %s", value);
    sql(s, "SELECT pg_reload_conf()");
    check_soon(strcmp(sql(s, "SHOW default_transaction_read_only"), value) == 0, 5);
}

/* As hosted ones do when their disk is nearly full. The answer to a write comes while the verdict
 * can't be recorded. */
static void a_verdict_waits_until_postgresql_may_be_written_again(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=2", "LEASE_TIMEOUT=20", NULL);
    char *id = filled(s, "away", 3), *there = physical(s, 0, id);
    chroma_signal(s->server[0], SIGSTOP);
    chroma_signal(s->server[1], SIGSTOP);
    struct answer *a = post(s, of(id, "add"), records_body("late", 0, 1, ""));
    check_status(a, 503);
    check_lacks(a->body, "not kept");
    read_only(s, "on");
    chroma_signal(s->server[0], SIGCONT);
    chroma_signal(s->server[1], SIGCONT);
    check_soon(strcmp(ask_server(s->server[0], "GET", of(there, "count"), NULL)->body, "4") == 0,
               10);
    check_replication(s, "degraded");
    check(refused(s, id, 0));
    read_only(s, "off");
    check_soon(works_again(s, id, 0), 10);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict IS NULL"), 0);
    check_has(check_equal(s, id, 10), "late");
}

static void a_stopped_postgresql_holds_nobody_for_ever(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=2", "LEASE_TIMEOUT=20", NULL);
    char *id = filled(s, "away", 3);
    static const char backends[] = "SELECT pid FROM pg_stat_activity WHERE datname = "
                                   "current_database() AND pid <> pg_backend_pid() ORDER BY pid "
                                   "OFFSET %u LIMIT 1";
    pid_t stopped[8] = {stage_pg_pid()};
    unsigned count = 1;
    while (count < COUNT_OF(stopped) &&
           (stopped[count] = (pid_t)sql_number(s, backends, count - 1)))
        count++;
    check(count > 2);
    for (unsigned i = 0; i < count; i++)
        check(kill(stopped[i], SIGSTOP) == 0);
    double began = now_seconds();
    struct answer *a = post(s, of(id, "add"), records_body("stopped", 0, 1, ""));
    double took = now_seconds() - began;
    bool unknown = a->status == 504; /* it lies in a socket: nobody knows */
    if (!unknown)
        check_status(a, 503);
    check(took < slow(4));
    check_reads(s, id, "3");
    for (unsigned i = 0; i < count; i++)
        check(kill(stopped[i], SIGCONT) == 0);
    check_soon(works_again(s, id, 0), 10);
    const char *all = check_equal(s, id, 10);
    bool kept = sql_number(s, "SELECT count(*) FROM journal_entries WHERE body LIKE "
                              "'%%stopped0%%'") == 1;
    check(!kept || unknown); /* "not kept" is the truth */
    check((strstr(all, "stopped0") != NULL) == kept);
}

/* A full disk: the database is in a small file system of its own. */
static void a_full_disk_refuses_and_recovers(void **state)
{
    struct stage *s = stage_new();
    char *folder = keepf("%s/small", stage_pg_folder()), *file = keepf("%s/fill", folder);
    struct passwd *u = getpwnam("postgres");
    check(mkdir(folder, 0700) == 0);
    if (mount("none", folder, "tmpfs", 0, "size=24m") != 0) {
        print_message("mount was refused: skipped\n");
        skip();
    }
    check(u && chown(folder, u->pw_uid, u->pw_gid) == 0 && chmod(folder, 0700) == 0);
    PGconn *c = PQconnectdb(stage_pg_url());
    PQclear(PQexec(c, keepf("CREATE TABLESPACE small LOCATION '%s'", folder)));
    PGresult *r = PQexec(c, "CREATE DATABASE small TABLESPACE small");
    check(PQresultStatus(r) == PGRES_COMMAND_OK);
    PQclear(r);
    PQfinish(c);
    s->url = keepf("postgresql://postgres@/small?host=%s", stage_pg_folder());
    stage_chromux(s, "REQUEST_TIMEOUT=3", NULL);
    char *id = filled(s, "away", 3);
    /* Fills what is left, and then the free room in the table's own pages. */
    FILE *f = fopen(file, "w");
    check(f != NULL);
    setbuf(f, NULL);
    while (fputc('x', f) != EOF && fwrite(s, 1, 1, f) == 1 &&
           fwrite(keep(65536), 1, 65536, f) == 65536)
        ;
    while (fputc('x', f) != EOF)
        ;
    fclose(f);
    char *more = keep(30001);
    memset(more, 'm', 30000);
    unsigned n = 0, full = 0;
    for (; n < 40 && full < 2; n++) {
        struct answer *a = post(s, of(id, "add"),
                                records_body("full", n, 1, keepf(",\"documents\":[\"%s\"]", more)));
        if (a->status == 503) {
            full++;
            check(head_field(a->head, "Retry-After") != NULL);
            check_int(sql_number(s,
                                 "SELECT count(*) FROM journal_entries WHERE body LIKE "
                                 "'%%\"full%u\"%%'",
                                 n),
                      0);
        } else if (a->status != 201) {
            check_status(a, 504);
        }
    }
    check(full > 0);
    check_status(get(s, of(id, "count")), 200);
    check(remove(file) == 0);
    check_soon(works_again(s, id, 0), 10);
    check_equal(s, id, 10);
    check_int(chromux_stop(s->x), 0);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE verdict IS NULL"), 0);
    stage_pg_kill(SIGQUIT);
    check(umount2(folder, MNT_DETACH) == 0);
}

/* ---- servers that forgot --------------------------------------------------------------------- */

static void copy_folder(const char *from, const char *to)
{
    const char *const argv[] = {"cp", "-a", from, to, NULL};
    check_int(run_program(argv, NULL, 30).status, 0);
}

static void remove_folder(const char *path)
{
    const char *const argv[] = {"rm", "-rf", path, NULL};
    check_int(run_program(argv, NULL, 30).status, 0);
}

/* The replica came back without what it had: nobody reads from it, and writes go on. */
static void check_set_aside(struct stage *s, const char *id)
{
    chromux_wait_healthy(s->x, 2);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE instance = 'replica' AND "
                             "state = 'rebuild' AND lane > 0") > 0,
               10);
    check_replication(s, "degraded");
    const char *status = get(s, "/status")->body;
    check_has(json_field(status, "replication_reason"), "copies wait to be made anew");
    check_has(sql(s, "SELECT reason FROM journal_copies WHERE state = 'rebuild' AND lane > 0"),
              "came back with older data");
    check_status(post(s, of(id, "add"), records_body("after", 0, 1, "")), 201);
    for (unsigned i = 0; i < 8; i++) {
        struct answer *a = get(s, of(id, "count"));
        check_status(a, 200);
        check_str(a->body, "6");
        check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
        a = post(s, of(id, "get"), "{}");
        check_status(a, 200);
        check_has(a->body, "after0");
    }
    check(sql_number(s, "SELECT count(*) FROM failover_events WHERE event_type = "
                        "'server_lost_data' AND from_instance = 'replica'") > 0);
    create(s, "later");
}

static void a_server_that_returns_empty_is_set_aside(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    char *id = filled(s, "some", 5);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_servers WHERE witness > 0") == 2, 10);
    chroma_kill(s->server[1]);
    remove_folder(s->server[1]->folder);
    chroma_again(s->server[1]);
    check_set_aside(s, id);
}

static void a_server_with_an_old_backup_is_set_aside(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    char *id = filled(s, "some", 3);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_servers WHERE witness > 0") == 2, 10);
    chroma_kill(s->server[1]);
    long before = sql_number(s, "SELECT witness FROM journal_servers WHERE instance = 'replica'");
    copy_folder(s->server[1]->folder, keepf("%s/backup", temp_folder()));
    chroma_again(s->server[1]);
    chromux_wait_healthy(s->x, 2);
    /* The backup may hold a stamp that PostgreSQL does not have yet. */
    for (unsigned n = 0; n < 2; n++) {
        check_status(post(s, of(id, "add"), records_body("new", n, 1, "")), 201);
        check_equal(s, id, 10);
        check_soon(sql_number(s, "SELECT witness FROM journal_servers WHERE instance = "
                                 "'replica'") > before + n,
                   10);
    }
    chroma_kill(s->server[1]);
    remove_folder(s->server[1]->folder);
    copy_folder(keepf("%s/backup", temp_folder()), s->server[1]->folder);
    chroma_again(s->server[1]);
    check_set_aside(s, id);
}

/* Reads lie in chromux's sockets while it stands still, and when it goes on they are the first that
 * it sees: before it has seen that the replica died and came back with older data. */
static void a_balancer_that_slept_reads_nothing_of_a_servers_new_life(void **state)
{
    enum { READERS = 8 };
    struct stage *s = stage_new();
    struct wire *reader[READERS];
    stage_chromux(s, "LOAD_BALANCE_STRATEGY=round_robin", "LEASE_TIMEOUT=20", NULL);
    char *id = filled(s, "some", 3);
    chroma_kill(s->server[1]);
    copy_folder(s->server[1]->folder, keepf("%s/backup", temp_folder()));
    chroma_again(s->server[1]);
    chromux_wait_healthy(s->x, 2);
    check_status(post(s, of(id, "add"), records_body("new", 0, 2, "")), 201);
    check_equal(s, id, 10);
    for (unsigned i = 0; i < READERS; i++) {
        reader[i] = wire_open(s->x->port);
        check(wire_sendf(reader[i], "GET " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\n\r\n",
                         of(id, "count")));
        check_str(wire_answer(reader[i], false)->body, "5");
    }
    chromux_signal(s->x, SIGSTOP);
    for (unsigned i = 0; i < READERS; i++)
        check(wire_sendf(reader[i], "GET " CHROMA_DB "%s HTTP/1.1\r\nHost: h\r\n\r\n",
                         of(id, "count")));
    chroma_kill(s->server[1]);
    remove_folder(s->server[1]->folder);
    copy_folder(keepf("%s/backup", temp_folder()), s->server[1]->folder);
    chroma_again(s->server[1]);
    chromux_signal(s->x, SIGCONT);
    for (unsigned i = 0; i < READERS; i++) {
        struct answer *a = wire_answer(reader[i], false);
        check(a != NULL);
        check_status(a, 200);
        check_str(a->body, "5");
    }
}

/* The replica loses the vectors of its collections while it is down. What it then gets first are
 * entries that another holder may have sent already, of the same records: updates bring no vectors,
 * adds would bring others than there were. */
static void lost_vectors_are_seen_behind_entries_in_doubt(void **state)
{
    static const char *const again[] = {
        "{\"ids\":[\"r%u\"],\"metadatas\":[{\"k\":1}]}",
        "{\"ids\":[\"r%u\"],\"metadatas\":[{\"k\":1}],\"embeddings\":[[7,8]]}",
        "{\"ids\":[\"r%u\"],\"embeddings\":[[7,8]]}",
        /* as the third, but the record says the same already */
        "{\"ids\":[\"r%u\"],\"documents\":[\"same\"],\"embeddings\":[[7,8]]}",
        "{\"ids\":[\"r%u\"],\"documents\":[\"same\"],\"embeddings\":[\"AADgQAAAAEE=\"]}",
    };
    static const char texts[] = ",\"documents\":[\"same\",\"same\",\"same\",\"same\",\"same\","
                                "\"same\",\"same\",\"same\",\"same\",\"same\"]";
    enum { N = COUNT_OF(again) };
    struct stage *s = stage_new();
    char *id[N];
    stage_chromux(s, NULL);
    for (unsigned k = 0; k < N; k++) {
        struct answer *a = post(s, "/collections",
                                keepf("{\"name\":\"some%u\",\"configuration\":{\"hnsw\":{"
                                      "\"batch_size\":5,\"sync_threshold\":5}}}",
                                      k));
        check_status(a, 200);
        id[k] = keep_text(json_field(a->body, "id") + 1, 36);
        check_status(post(s, of(id[k], "add"), records_body("r", 0, 10, k > 2 ? texts : "")), 201);
        check_equal(s, id[k], 5);
    }
    chroma_kill(s->server[1]);
    const char *const argv[] = {"sh", "-c", "rm -r \"$0\"/*-*", s->server[1]->folder, NULL};
    check_int(run_program(argv, NULL, 30).status, 0);
    for (unsigned k = 0; k < N; k++)
        for (unsigned i = 0; i < 10; i++)
            check(post(s, of(id[k], k == 0 ? "update" : "add"), keepf(again[k], i))->status < 300);
    chromux_signal(s->x, SIGKILL);
    check(chromux_wait_exit(s->x, 10));
    chroma_again(s->server[1]);
    stage_again(s);
    check_soon(sql_number(s,
                          "SELECT count(*) FROM failover_events WHERE event_type = 'copy_lost' "
                          "AND from_instance = 'replica' AND reason LIKE '%%lost vectors%%'") > 0,
               15);
    for (unsigned k = 0; k < N; k++) {
        check_soon(sql_number(s,
                              "SELECT count(*) FROM journal_copies JOIN journal_collections USING "
                              "(lane) WHERE logical = '%s' AND instance = 'replica' AND "
                              "(state = 'rebuild' OR incarnation > 1)",
                              id[k]) == 1,
                   15);
        struct answer *a = post(s, of(id[k], "get"), "{\"include\":[\"embeddings\"]}");
        check_status(a, 200);
        check_lacks(a->body, "[7.0,8.0]");
    }
}

/* ---- servers that knew something ------------------------------------------------------------- */

static char *fill(struct chroma *c, const char *name, unsigned n)
{
    char *id = chroma_create(c, name, 100);
    chroma_add(c, id, 0, n);
    return id;
}

static char *state_of(struct stage *s, const char *name, const char *instance)
{
    return sql(s,
               "SELECT state FROM journal_copies JOIN journal_collections USING (lane) WHERE name "
               "= '%s' AND instance = '%s'",
               name, instance);
}

static void what_servers_hold_already_is_taken_over(void **state)
{
    struct stage *s = stage_new();
    char *equal = fill(s->server[0], "equal", 20), *differs = fill(s->server[0], "differs", 20);
    char *alone = fill(s->server[0], "alone", 5);
    check(strcmp(fill(s->server[1], "equal", 20), equal) != 0);
    fill(s->server[1], "differs", 19);
    fill(s->server[1], "stranger", 4);
    stage_chromux(s, "LOAD_BALANCE_STRATEGY=round_robin", NULL);
    check_str(state_of(s, "equal", "primary"), "ready");
    check_str(state_of(s, "equal", "replica"), "ready");
    check_str(state_of(s, "differs", "primary"), "ready");
    check_str(state_of(s, "differs", "replica"), "unverified");
    check_str(state_of(s, "alone", "replica"), "rebuild");
    check_str(state_of(s, "stranger", "replica"), "");
    check_replication(s, "degraded");
    unsigned replica = 0;
    for (unsigned i = 0; i < 8; i++) {
        struct answer *a = get(s, of(equal, "count"));
        check_status(a, 200);
        check_str(a->body, "20");
        replica += strcmp(head_field(a->head, "X-Chromux-Instance"), "replica") == 0;
        a = get(s, of(differs, "count"));
        check_str(a->body, "20");
        check_str(head_field(a->head, "X-Chromux-Instance"), "primary");
        check_str(get(s, of(alone, "count"))->body, "5");
    }
    check(replica > 0);
    char *more = keepf("{\"ids\":[\"more\"],\"embeddings\":[%s]}", chroma_vector(1));
    check_status(post(s, of(equal, "add"), more), 201);
    check_status(post(s, of(differs, "add"), more), 201);
    check_status(post(s, of(alone, "add"), more), 201);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies JOIN journal_lanes USING (lane) "
                             "WHERE state = 'ready' AND position < next - 1") == 0,
               5);
    check_has(records_on(s, 0, equal), "\"more\"");
    check_str(records_on(s, 0, equal), records_on(s, 1, equal));
    /* Nothing was made, changed or deleted of what is not understood. */
    check_str(collections_on(s, 1), "differs\nequal\nstranger");
    check_lacks(records_on(s, 1, differs), "\"more\"");
    check_lacks(get(s, "/collections")->body, "stranger");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(writes_wait_for_postgresql_to_come_back),
        STAGE_TEST(a_verdict_waits_until_postgresql_may_be_written_again),
        STAGE_TEST(a_stopped_postgresql_holds_nobody_for_ever),
        STAGE_TEST(a_server_that_returns_empty_is_set_aside),
        STAGE_TEST(a_server_with_an_old_backup_is_set_aside),
        STAGE_TEST(a_balancer_that_slept_reads_nothing_of_a_servers_new_life),
        STAGE_TEST(lost_vectors_are_seen_behind_entries_in_doubt),
        STAGE_TEST(what_servers_hold_already_is_taken_over),
        STAGE_TEST(a_full_disk_refuses_and_recovers), /* the last: it takes PostgreSQL with it */
    };
    /* What is mounted here is gone with this program. */
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        print_message("mounts may outlive this program\n");
    return STAGE_RUN(tests);
}
