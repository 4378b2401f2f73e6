/* What operators see of the journal and do to it: its size, its figures, its events, and the
 * command line tool. */
#include "stage.h"
#include "tap.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

/* chromux journal ARGS…, on this stage's database. */
static struct run journal(struct stage *s, ...)
{
    const char *argv[16] = {chromux_path(), "journal"};
    const char *environment[] = {keepf("DATABASE_URL=%s", s->url), NULL};
    va_list args;
    unsigned n = 2;
    va_start(args, s);
    while (n < COUNT_OF(argv) - 1 && (argv[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    return run_program(argv, environment, 30);
}

#define BY "--who", "anna", "--why", "a test"

static void add(struct stage *s, const char *id, const char *record)
{
    check_status(post(s, of(id, "add"), records_body(record, 0, 1, "")), 201);
}

/* {"ids":["<record>"],…} with a document of n bytes. */
static char *big_body(const char *record, unsigned n)
{
    char *text = keep(n + 1);
    memset(text, 'x', n);
    text[n] = 0;
    return keepf("{\"ids\":[\"%s\"],\"embeddings\":[[1,2]],\"documents\":[\"%s\"]}", record, text);
}

static long lane_of(struct stage *s, const char *id)
{
    return sql_number(s, "SELECT lane FROM journal_collections WHERE logical = '%s'", id);
}

static char *state_of(struct stage *s, const char *id, const char *instance)
{
    return sql(s, "SELECT state FROM journal_copies WHERE lane = %ld AND instance = '%s'",
               lane_of(s, id), instance);
}

static long events(struct stage *s, const char *type)
{
    return sql_number(s, "SELECT count(*) FROM failover_events WHERE event_type = '%s'", type);
}

/* A list that /status shows of the journal. */
static char *shown(struct stage *s, const char *list)
{
    return json_field(json_field(http_get(s->x->port, "/status")->body, "journal"), list);
}

/* ---- retention ------------------------------------------------------------------------------- */

static void what_all_have_is_kept_no_longer_than_wanted(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=0.5", NULL);
    char *id = create(s, "ccc");
    for (unsigned i = 0; i < 5; i++)
        add(s, id, keepf("r%u-", i));
    long lane = lane_of(s, id);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = %ld", lane) == 0,
               10);
    check_int(sql_number(s, "SELECT trimmed FROM journal_lanes WHERE lane = %ld", lane), 5);
    check_soon(journal_figure(s, "trimmed") == 5, 5);
    check_soon(metric(s, "chromux_journal_trimmed_total") == 5, 5);
    /* Numbers go on, and so does the lane after a restart. */
    struct answer *a = post(s, of(id, "add"), records_body("s", 0, 1, ""));
    check_status(a, 201);
    check_str(head_field(a->head, "X-Chromux-Entry"), keepf("%ld/6", lane));
    check_equal(s, id, 5);
    chromux_signal(s->x, SIGTERM);
    stage_again(s);
    a = post(s, of(id, "add"), records_body("t", 0, 1, ""));
    check_str(head_field(a->head, "X-Chromux-Entry"), keepf("%ld/7", lane));
    check_equal(s, id, 5);
    struct run r = journal(s, "entry", keepf("%ld/1", lane), NULL);
    check_int(r.status, 0);
    check_has(r.output, "trimmed");
}

static void size_trims_before_age_does(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=3600", "JOURNAL_KEEP_BYTES=20k", NULL);
    char *id = create(s, "ccc");
    for (unsigned i = 0; i < 8; i++)
        check_status(post(s, of(id, "add"), big_body(keepf("r%u", i), 5000)), 201);
    check_soon(sql_number(s, "SELECT COALESCE(sum(length(body)), 0) FROM journal_entries") < 20480,
               15);
    check(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane > 0") > 0);
    double bytes = journal_figure(s, "bytes");
    check(bytes > 0 && bytes <= 20480);
    check(metric(s, "chromux_journal_bytes") > 0);
}

static void a_deleted_collections_lane_goes_when_all_have_deleted_it(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=0.5", NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_caught_up(s, 5);
    long lane = lane_of(s, id);
    chroma_kill(s->server[1]);
    check_status(ask(s, "DELETE", "/collections/ccc", NULL), 200);
    struct answer *a = post(s, "/collections", "{\"name\":\"other\"}");
    check_status(a, 200);
    /* The replica still has it: what it needs to delete it stays. */
    char *other = keep_text(json_field(a->body, "id") + 1, 36);
    add(s, other, "r");
    check_int(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane = %ld", lane), 2);
    chroma_again(s->server[1]);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane = %ld", lane) == 0,
               20);
    check_int(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = %ld", lane), 0);
    check_int(sql_number(s, "SELECT count(*) FROM journal_collections WHERE lane = %ld AND deleted",
                         lane),
              1);
    check_str(collections_on(s, 1), collections_on(s, 0));
}

static void a_copy_that_holds_back_too_much_is_given_up(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=1", "JOURNAL_KEEP_BYTES=20k", "JOURNAL_MAX_BYTES=64k", NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_caught_up(s, 5);
    chroma_kill(s->server[1]);
    for (unsigned i = 0; i < 9; i++)
        check_status(post(s, of(id, "add"), big_body(keepf("b%u", i), 6000)), 201);
    check_soon(events(s, "journal_filling") == 1, 10);
    check_str(state_of(s, id, "replica"), "ready");
    check(instance_figure(s, "replica", "lag_entries") >= 9);
    for (unsigned i = 0; i < 3; i++)
        check_status(post(s, of(id, "add"), big_body(keepf("c%u", i), 6000)), 201);
    check_soon(strcmp(state_of(s, id, "replica"), "rebuild") == 0, 10);
    check_soon(sql_number(s, "SELECT COALESCE(sum(length(body)), 0) FROM journal_entries") < 20480,
               10);
    check_int(events(s, "journal_full"), 1);
    check_soon(journal_figure(s, "copies_not_ready_count") == 1, 5);
    check_has(shown(s, "copies_not_ready"), "held the journal back");
    check_str(json_field(http_get(s->x->port, "/status")->body, "replication"), "\"degraded\"");
    check_soon(post(s, of(id, "add"), records_body("d", 0, 1, ""))->status == 201, 10);
}

static void a_full_journal_refuses_writes_and_recovers(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=1", "JOURNAL_KEEP_BYTES=20k", "JOURNAL_MAX_BYTES=64k",
                  "REQUEST_TIMEOUT=0.7", NULL);
    char *id = create(s, "ccc");
    check_caught_up(s, 5);
    chroma_kill(s->server[0]);
    chroma_kill(s->server[1]);
    for (unsigned i = 0; i < 6; i++) {
        struct answer *a = post(s, of(id, "add"), big_body(keepf("b%u", i), 15000));
        check_status(a, 503);
        if (strstr(a->body, "JOURNAL_MAX_BYTES"))
            break;
        check_has(a->body, "is kept as entry");
    }
    check_soon(journal_figure(s, "full") == 0 ||
                   strstr(http_get(s->x->port, "/status")->body, "\"full\":true") != NULL,
               1);
    check_soon(metric(s, "chromux_journal_full") == 1, 10);
    struct answer *a = post(s, of(id, "add"), records_body("no", 0, 1, ""));
    check_status(a, 503);
    check_has(a->body, "JOURNAL_MAX_BYTES");
    check(head_field(a->head, "Retry-After") != NULL);
    check(journal_figure(s, "pending") >= 4);
    check_soon(journal_figure(s, "oldest_age_seconds") > 5, 20);
    check_soon(journal_figure(s, "entries_waiting_count") == 1, 5);
    check_has(shown(s, "entries_waiting"), "\"add\"");
    check(instance_figure(s, "primary", "lag_seconds") > 1);
    check(metric(s, "chromux_instance_lag_entries{instance=\"replica\"}") >= 4);
    check_has(journal(s, "status", NULL).output, "waiting    ");
    chroma_again(s->server[0]);
    chroma_again(s->server[1]);
    check_soon(metric(s, "chromux_journal_full") == 0, 30);
    check_soon(post(s, of(id, "add"), records_body("yes", 0, 1, ""))->status == 201, 20);
    check_has(records_on(s, 0, id), "yes0");
    check_lacks(records_on(s, 0, id), "no0");
}

/* ---- figures and events ---------------------------------------------------------------------- */

static void figures_of_the_journal_are_seen(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap = tap_start(s->server[1]->port);
    stage_chromux(s, keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap)), "SYNC_INTERVAL=1",
                  NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_status(post(s, of(id, "add"), "{\"ids\":[\"bad\"],\"embeddings\":[[1,2,3]]}"), 400);
    check_caught_up(s, 5);
    check_int((long)journal_figure(s, "appended"), 3);
    check_int((long)journal_figure(s, "applied"), 2);
    check_int((long)journal_figure(s, "rejected"), 1);
    check_int((long)journal_figure(s, "lanes"), 2);
    check_int((long)journal_figure(s, "head"), 3);
    check_int((long)journal_figure(s, "entries"), 3);
    check(journal_figure(s, "epoch") >= 1);
    check(journal_figure(s, "coalescing_ratio") > 0);
    check(journal_figure(s, "events") > 0);
    check(metric(s, "chromux_journal_commits_total") > 0);
    check(metric(s, "chromux_journal_commit_seconds_mean") > 0);
    check(metric(s, "chromux_journal_commit_seconds_p99") > 0);
    check(metric(s, "chromux_journal_verdicts_total{verdict=\"rejected\"}") == 1);
    check_soon(metric(s, "chromux_journal_table_bytes") > 0, 10);
    /* An answer that is late: the copy is in doubt, and behind. */
    tap_hold_answers(tap, "late0");
    check_status(post(s, of(id, "add"), records_body("late", 0, 1, "")), 201);
    check_soon(instance_figure(s, "replica", "lag_entries") == 1, 5);
    check_soon(journal_figure(s, "in_doubt") == 1, 15);
    check_soon(metric(s, "chromux_instance_copies_in_doubt{instance=\"replica\"}") == 1, 5);
    check_soon(instance_figure(s, "replica", "lag_seconds") > 0.5, 10);
    tap_hold_answers(tap, NULL);
    check_soon(journal_figure(s, "in_doubt") == 0, 40);
    check_soon(instance_figure(s, "replica", "lag_entries") == 0, 10);
    /* A collection that somebody makes past chromux is shown, and stays. */
    check_status(ask_server(s->server[0], "POST", CHROMA_DB "/collections", "{\"name\":\"mine\"}"),
                 200);
    check_soon(journal_figure(s, "collections_aside_count") == 1, 15);
    check_int((long)metric(s, "chromux_instance_collections_aside{instance=\"primary\"}"), 1);
    check_has(shown(s, "collections_aside"), "\"mine\"");
    check_has(collections_on(s, 0), "mine");
}

/* Lines of /metrics that the journal owns, by name and without the instance, in the order in which
 * they were first seen; and which of them were ever more than 0. */
static struct {
    char *name[64];
    bool moved[64];
    unsigned count;
} figures;

static bool is_figure(const char *line)
{
    static const char *const own[] = {"chromux_journal_", "chromux_instance_lag_",
                                      "chromux_instance_copies",
                                      "chromux_instance_collections_aside"};
    bool is = false;
    for (unsigned i = 0; i < COUNT_OF(own); i++)
        is = is || strncmp(line, own[i], strlen(own[i])) == 0;
    return is;
}

static void note_figure(const char *line)
{
    size_t n = strcspn(line, " ");
    if (strncmp(line + strcspn(line, "{ "), "{instance=", 10) == 0)
        n = strcspn(line, "{");
    char *name = keep_text(line, n);
    unsigned i = 0;
    while (i < figures.count && strcmp(figures.name[i], name) != 0)
        i++;
    check(i < COUNT_OF(figures.name));
    if (i == figures.count)
        figures.name[figures.count++] = name;
    figures.moved[i] = figures.moved[i] || strtod(strchr(line, ' '), NULL) > 0;
}

/* Looks at all of them; true once this one was ever more than 0. */
static bool has_moved(struct stage *s, const char *name)
{
    const char *line = get(s, "/metrics")->body;
    for (; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (is_figure(line))
            note_figure(line);
    for (unsigned i = 0; i < figures.count; i++)
        if (strcmp(figures.name[i], name) == 0)
            return figures.moved[i];
    return false;
}

static struct wire *send_upsert(struct stage *s, const char *id, const char *body)
{
    struct wire *w = wire_open(s->x->port);
    check(wire_sendf(w,
                     "POST %s%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     CHROMA_DB, of(id, "upsert"), strlen(body), body));
    return w;
}

static void no_figure_stands_at_zero_whatever_happens(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap[2] = {tap_start(s->server[0]->port), tap_start(s->server[1]->port)};
    memset(&figures, 0, sizeof figures);
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap[0])),
                  keepf("REPLICA_URL=http://127.0.0.1:%u", tap_port(tap[1])), "JOURNAL_KEEP=1",
                  "JOURNAL_KEEP_BYTES=20k", "JOURNAL_MAX_BYTES=64k", "JOURNAL_MEMORY_BYTES=128k",
                  "DRAIN_TIMEOUT=1", "SYNC_INTERVAL=1", "REQUEST_TIMEOUT=60", "TRY_TIMEOUT=1",
                  NULL);
    char *id = create(s, "ccc"), *other = create(s, "other");
    add(s, id, "r");
    add(s, other, "r");
    check_status(post(s, of(id, "add"), "{\"ids\":[\"bad\"],\"embeddings\":[[1,2,3]]}"), 400);
    check_status(ask_with(s, "POST", "/collections", "Idempotency-Key: k\r\n",
                          "{\"name\":\"ccc\",\"get_or_create\":true}"),
                 200);
    check_caught_up(s, 5);
    check_status(ask_server(s->server[0], "POST", "/collections", "{\"name\":\"mine\"}"), 200);
    check_soon(has_moved(s, "chromux_instance_collections_aside"), 10);
    /* The replica has it and does not say so. */
    tap_hold_answers(tap[1], "late0");
    add(s, id, "late");
    check_soon(has_moved(s, "chromux_instance_lag_seconds"), 5);
    tap_hold_answers(tap[1], NULL);
    check_caught_up(s, 10);
    tap_hold_answers(tap[0], "held");
    tap_hold_answers(tap[1], "held");
    struct wire *w = send_upsert(s, id, records_body("held", 0, 1, ""));
    check_soon(tap_held(tap[0]) > 0 && has_moved(s, "chromux_journal_oldest_seconds"), 5);
    check_int(journal(s, "skip", keepf("%ld/4", lane_of(s, id)), BY, NULL).status, 0);
    check_status(wire_answer(w, false), 500);
    check_soon(has_moved(s, "chromux_journal_verdicts_total{verdict=\"skipped\"}"), 5);
    tap_hold_answers(tap[0], NULL);
    tap_hold_answers(tap[1], NULL);
    /* Both say that they can't; the second one is as the first has it. */
    tap_spoil_answers(tap[0], "/upsert");
    tap_spoil_answers(tap[1], "/upsert");
    check_status(post(s, of(other, "upsert"), records_body("failed", 0, 1, "")), 500);
    tap_spoil_answers(tap[0], NULL);
    tap_spoil_answers(tap[1], NULL);
    check_soon(has_moved(s, "chromux_instance_copies_not_ready"), 10);
    check_soon(has_moved(s, "chromux_journal_trimmed_total"), 10);
    tap_hold_requests(tap[0], "/upsert");
    tap_hold_requests(tap[1], "/upsert");
    for (unsigned i = 0; i < 6; i++)
        send_upsert(s, other, big_body(keepf("full%u", i), 15000));
    check_soon(has_moved(s, "chromux_journal_full"), 10);
    /* Those that were taken are held, and leave too little memory for this one. */
    send_upsert(s, other, big_body("more", 100000));
    check_soon(has_moved(s, "chromux_journal_bodies_waiting"), 10);
    check_soon(has_moved(s, "chromux_journal_table_bytes"), 10);
    tap_hold_requests(tap[0], NULL);
    tap_hold_requests(tap[1], NULL);
    check(figures.count > 30);
    for (unsigned i = 0; i < figures.count; i++)
        if (!figures.moved[i])
            harness_fail(__FILE__, __LINE__, "%s was never more than 0", figures.name[i]);
}

static void one_failover_is_one_event_however_many_lanes(void **state)
{
    enum { LANES = 20 };
    struct stage *s = stage_raise();
    char *id[LANES];
    for (unsigned i = 0; i < LANES; i++) {
        id[i] = create(s, keepf("c%02u", i));
        add(s, id[i], "r");
    }
    check_caught_up(s, 10);
    check_int(events(s, "lease_taken"), 1);
    check_int(events(s, "failover"), 0);
    chroma_kill(s->server[0]);
    for (unsigned i = 0; i < LANES; i++)
        add(s, id[i], "s");
    check_soon(events(s, "instance_down") == 1, 10);
    check_int(events(s, "failover"), 1);
    check_str(sql(s, "SELECT from_instance || to_instance FROM failover_events WHERE event_type = "
                     "'failover'"),
              "primaryreplica");
    check(sql_number(s, "SELECT length(reason) FROM failover_events WHERE event_type = "
                        "'instance_down' AND from_instance = 'primary' AND NOT success") > 0);
    chroma_again(s->server[0]);
    check_soon(events(s, "instance_up") == 1, 10);
    check_caught_up(s, 20);
    for (unsigned i = 0; i < LANES; i++)
        add(s, id[i], "t");
    check_soon(events(s, "failback") == 1, 10);
    check_int(events(s, "failover"), 1);
}

/* ---- the tool -------------------------------------------------------------------------------- */

static void a_poison_entry_is_skipped_by_hand(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "REQUEST_TIMEOUT=20", NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_caught_up(s, 5);
    long lane = lane_of(s, id);
    char *entry = keepf("%ld/2", lane);
    chroma_kill(s->server[0]);
    chroma_kill(s->server[1]);
    struct wire *w = wire_open(s->x->port);
    char *body = records_body("poison", 0, 1, "");
    check(wire_sendf(w,
                     "POST %s%s HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k-1\r\nContent-Type: "
                     "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     CHROMA_DB, of(id, "add"), strlen(body), body));
    check_soon(journal_figure(s, "pending") == 1, 5);
    struct run r = journal(s, "entry", entry, NULL);
    check_int(r.status, 0);
    check_has(r.output, "none yet");
    check_int(journal(s, "skip", entry, NULL).status, 2); /* by whom? */
    r = journal(s, "skip", keepf("%ld/1", lane), BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "applied already");
    r = journal(s, "skip", keepf("%ld/9", lane), BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "no such entry");
    r = journal(s, "skip", "77/1", BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "no lane 77");
    r = journal(s, "skip", entry, BY, NULL);
    check_int(r.status, 0);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 500);
    check_has(a->body, "skipped by anna: a test");
    check_str(sql(s, "SELECT verdict FROM journal_entries WHERE lane = %ld AND n = 2", lane),
              "skipped");
    check_str(sql(s, "SELECT who || '/' || why || '/' || done FROM journal_requests WHERE n = 2"),
              "anna/a test/true");
    check_soon(journal_figure(s, "skipped") == 1, 5);
    r = journal(s, "key", "k-1", NULL);
    check_int(r.status, 0);
    check_has(r.output, "skipped by an operator");
    check_has(r.output, "anna");
    check_int(journal(s, "key", "k-2", NULL).status, 1);
    chroma_again(s->server[0]);
    chroma_again(s->server[1]);
    check_soon(post(s, of(id, "add"), records_body("s", 0, 1, ""))->status == 201, 20);
    check_lacks(check_equal(s, id, 20), "poison");
    check_str(state_of(s, id, "primary"), "ready");
    check_str(state_of(s, id, "replica"), "ready");
}

/* An instance got the entry and never said what became of it. */
static void skipping_makes_a_copy_anew_that_may_have_it(void **state)
{
    struct stage *s = stage_new();
    struct tap *tap = tap_start(s->server[0]->port);
    stage_chromux(s, keepf("PRIMARY_URL=http://127.0.0.1:%u", tap_port(tap)), "TRY_TIMEOUT=20",
                  "REQUEST_TIMEOUT=20", NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_caught_up(s, 5);
    tap_hold_answers(tap, "poison0");
    struct wire *w = wire_open(s->x->port);
    char *body = records_body("poison", 0, 1, "");
    check(wire_sendf(w,
                     "POST %s%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     CHROMA_DB, of(id, "add"), strlen(body), body));
    check_soon(tap_held(tap) == 1, 10);
    check_int(journal(s, "skip", keepf("%ld/2", lane_of(s, id)), BY, NULL).status, 0);
    struct answer *a = wire_answer(w, false);
    check(a != NULL);
    check_status(a, 500);
    add(s, id, "s"); /* the replica takes it, without waiting for the primary */
    tap_hold_answers(tap, NULL);
    check_soon(strcmp(state_of(s, id, "primary"), "ready") != 0, 20);
    check_lacks(records_on(s, 1, id), "poison");
    check_has(records_on(s, 1, id), "s0");
}

static void a_retired_instance_holds_nothing_back(void **state)
{
    struct stage *s = stage_new();
    stage_chromux(s, "JOURNAL_KEEP=0.5", NULL);
    char *id = create(s, "ccc");
    check_caught_up(s, 5);
    struct run r = journal(s, "retire", "nobody", BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "the journal knows");
    chroma_kill(s->server[1]);
    add(s, id, "r");
    long lane = lane_of(s, id);
    r = journal(s, "retire", "replica", BY, NULL);
    check_int(r.status, 0);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_entries WHERE lane = %ld", lane) == 0,
               10);
    check_soon(instance_figure(s, "replica", "lag_entries") == 0, 5);
    check_int(sql_number(s, "SELECT count(*) FROM journal_servers WHERE retired"), 1);
    check_int(events(s, "instance_retired"), 1);
    r = journal(s, "retire", "primary", BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "only good copy");
    /* It is not used when it comes back. */
    chroma_again(s->server[1]);
    add(s, id, "s");
    chromux_signal(s->x, SIGTERM);
    stage_again(s);
    add(s, id, "t");
    check_str(state_of(s, id, "replica"), "rebuild");
    check_lacks(records_on(s, 1, id), "t0");
}

static void the_tool_says_what_is_wrong(void **state)
{
    struct stage *s = stage_new();
    check_int(journal(s, NULL).status, 2);
    check_has(journal(s, "help", NULL).output, "accept-restore");
    struct run r = journal(s, "status", NULL);
    check_int(r.status, 3);
    check_has(r.output, "has no journal");
    stage_chromux(s, NULL);
    char *id = create(s, "ccc");
    add(s, id, "r");
    check_caught_up(s, 5);
    r = journal(s, "status", NULL);
    check_int(r.status, 0);
    check_has(r.output, "held by");
    check_has(r.output, "instance   replica: 2 copies, 0 of them out of use, lacks 0 entries");
    check_int(journal(s, "entry", "x", NULL).status, 2);
    check_int(journal(s, "entry", "1/77", NULL).status, 1);
    check_int(journal(s, "status", "--what", NULL).status, 2);
    r = journal(s, "accept-restore", "--as-recorded", BY, NULL);
    check_int(r.status, 1);
    check_has(r.output, "not stopped");
    chromux_signal(s->x, SIGTERM);
    check(chromux_wait_exit(s->x, 10));
    r = journal(s, "skip", "1/1", BY, NULL);
    check_int(r.status, 4);
    check_has(r.output, "withdrawn");
    check_int(sql_number(s, "SELECT count(*) FROM journal_requests"), 0);
    s->url = keepf("postgresql://nobody@/x?host=%s/nowhere", temp_folder());
    check_int(journal(s, "status", NULL).status, 3);
}

/* ---- PostgreSQL restored -----------------------------------------------------------------------
 */

static void copy_cluster(const char *from, const char *to)
{
    const char *none[] = {"PATH=/usr/bin:/bin", NULL};
    const char *rm[] = {"/bin/rm", "-rf", keepf("%s/%s", stage_pg_folder(), to), NULL};
    const char *cp[] = {"/bin/cp", "-a", keepf("%s/%s", stage_pg_folder(), from),
                        keepf("%s/%s", stage_pg_folder(), to), NULL};
    check_int(run_program(rm, none, 60).status, 0);
    check_int(run_program(cp, none, 60).status, 0);
}

/* A backup of the stopped cluster is taken, and brought back by restore(). */
static void back_up(void)
{
    stage_pg_kill(SIGINT);
    copy_cluster("data", "backup");
    stage_pg_again();
}

static void restore(void)
{
    stage_pg_kill(SIGINT);
    copy_cluster("backup", "data");
    stage_pg_again();
}

/* The balancer says it, and every other program can know it. */
static bool stopped(struct stage *s)
{
    return strstr(http_get(s->x->port, "/status")->body, "restored from a backup") != NULL &&
           sql_number(s, "SELECT count(*) FROM journal_meta WHERE suspended <> ''") == 1;
}

static bool is_on(struct stage *s)
{
    return strstr(http_get(s->x->port, "/status")->body, "\"state\":\"on\"") != NULL;
}

static char *stage_with_backup(struct stage *s)
{
    stage_chromux(s, NULL);
    char *id = create(s, "ccc");
    add(s, id, "old");
    check_caught_up(s, 5);
    back_up();
    long stamps = sql_number(s, "SELECT sum(witness) FROM journal_servers");
    check_soon(post(s, of(id, "add"), records_body("new", 0, 1, ""))->status == 201, 15);
    /* Servers are stamped while there are writes. */
    check_soon(post(s, of(id, "upsert"), records_body("more", 0, 1, ""))->status == 200 &&
                   sql_number(s, "SELECT sum(witness) FROM journal_servers") > stamps + 1,
               20);
    check_caught_up(s, 5);
    return id;
}

static void a_backup_that_comes_back_under_a_running_balancer_stops_writes(void **state)
{
    struct stage *s = stage_new();
    char *id = stage_with_backup(s);
    long renewed = sql_number(s, "SELECT renewed FROM journal_lease");
    check_soon(sql_number(s, "SELECT renewed FROM journal_lease") > renewed, 5);
    restore();
    check_soon(stopped(s), 15);
    struct answer *a = post(s, of(id, "add"), records_body("more", 0, 1, ""));
    check_status(a, 503);
    check_has(a->body, "restored from a backup");
    check_int((long)metric(s, "chromux_journal_replicating"), 0);
    check_soon(events(s, "postgres_restored") == 1, 5);
    check_has(journal(s, "status", NULL).output, "STOPPED");
    /* What was acknowledged can be read. */
    check_has(post(s, of(id, "get"), "{\"include\":[]}")->body, "\"new0\"");
}

static void the_instance_that_is_right_wins(void **state)
{
    struct stage *s = stage_new();
    char *id = stage_with_backup(s);
    chromux_signal(s->x, SIGTERM);
    check(chromux_wait_exit(s->x, 10));
    restore();
    s->x = chromux_start_list(s->settings);
    check_soon(stopped(s), 15);
    check_int(journal(s, "accept-restore", BY, NULL).status, 2);
    struct run r = journal(s, "accept-restore", "--from", "nobody", BY, NULL);
    check_int(r.status, 1);
    r = journal(s, "accept-restore", "--from", "primary", BY, NULL);
    check_int(r.status, 0);
    check_soon(is_on(s), 15);
    struct answer *a = post(s, of(id, "add"), records_body("more", 0, 1, ""));
    check_status(a, 201);
    check_has(head_field(a->head, "X-Chromux-Entry"), "/10000");
    check_has(records_on(s, 0, id), "new0");
    check_has(records_on(s, 0, id), "more0");
    check_str(state_of(s, id, "replica"), "rebuild");
    check_int(events(s, "restore_accepted"), 1);
}

static void what_is_recorded_can_be_right(void **state)
{
    struct stage *s = stage_new();
    char *id = stage_with_backup(s);
    chromux_signal(s->x, SIGTERM);
    check(chromux_wait_exit(s->x, 10));
    restore();
    s->x = chromux_start_list(s->settings);
    check_soon(stopped(s), 15);
    check_int(journal(s, "accept-restore", "--as-recorded", BY, NULL).status, 0);
    check_soon(is_on(s), 15);
    check_soon(post(s, of(id, "add"), records_body("more", 0, 1, ""))->status == 201, 10);
    check_str(state_of(s, id, "replica"), "ready");
    check_has(check_equal(s, id, 10), "more0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(what_all_have_is_kept_no_longer_than_wanted),
        STAGE_TEST(size_trims_before_age_does),
        STAGE_TEST(a_deleted_collections_lane_goes_when_all_have_deleted_it),
        STAGE_TEST(a_copy_that_holds_back_too_much_is_given_up),
        STAGE_TEST(a_full_journal_refuses_writes_and_recovers),
        STAGE_TEST(figures_of_the_journal_are_seen),
        STAGE_TEST(no_figure_stands_at_zero_whatever_happens),
        STAGE_TEST(one_failover_is_one_event_however_many_lanes),
        STAGE_TEST(a_poison_entry_is_skipped_by_hand),
        STAGE_TEST(skipping_makes_a_copy_anew_that_may_have_it),
        STAGE_TEST(a_retired_instance_holds_nothing_back),
        STAGE_TEST(the_tool_says_what_is_wrong),
        STAGE_TEST(a_backup_that_comes_back_under_a_running_balancer_stops_writes),
        STAGE_TEST(the_instance_that_is_right_wins),
        STAGE_TEST(what_is_recorded_can_be_right),
    };
    return STAGE_RUN(tests);
}
