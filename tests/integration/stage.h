/* stage.h: the whole arrangement of a test of the journal: PostgreSQL, two Chroma servers that hold
 * nothing, and chromux in front of them. What chromux did is asked of the database and of both
 * servers directly.
 *
 * One PostgreSQL serves all tests of a program; each has a database of its own in it. Paths of
 * requests are relative to the default database (CHROMA_DB) unless they begin with /api. */
#ifndef STAGE_H
#define STAGE_H

#include "chroma.h"
#include "wire.h"

struct stage {
    struct chroma *server[2]; /* primary, replica */
    struct chromux *x;
    const char **settings; /* of x */
    char *url;             /* of the database */
};

/* The PostgreSQL server: its postmaster, its folder (the socket lies there) and a superuser's
 * address. stage_pg_kill waits for its end, as pgserver_kill does; the next test has it back. */
pid_t stage_pg_pid(void);
const char *stage_pg_folder(void);
const char *stage_pg_url(void);
void stage_pg_kill(int sig);
void stage_pg_again(void);

int stage_setup(void **state);
int stage_teardown(void **state);
int stage_end(void **state);
#define STAGE_TEST(fn) cmocka_unit_test_setup_teardown(fn, stage_setup, stage_teardown)
#define STAGE_RUN(tests)                                                                           \
    (cmocka_set_test_filter(getenv("TEST_ONLY")), cmocka_run_group_tests(tests, NULL, stage_end))

/* An empty database and two empty servers; nothing in front of them yet. */
struct stage *stage_new(void);
/* Starts chromux with short times and these settings, which win; waits until the journal is on and
 * both servers are in it. */
void stage_chromux(struct stage *s, ...) __attribute__((sentinel));
/* The same chromux again, after its end. Waits until the journal is on. */
void stage_again(struct stage *s);
/* All three. */
struct stage *stage_raise(void);

/* ---- requests ---------------------------------------------------------------------------------
 */
/* A whole answer, or the test has failed. ask: through chromux. */
struct answer *ask(struct stage *s, const char *method, const char *path, const char *body);
struct answer *ask_with(struct stage *s, const char *method, const char *path, const char *fields,
                        const char *body);
struct answer *ask_server(struct chroma *c, const char *method, const char *path, const char *body);
#define post(s, path, body)          ask(s, "POST", path, body)
#define get(s, path)                 ask(s, "GET", path, NULL)
#define check_status(answer, wanted) check_status_at(__FILE__, __LINE__, answer, wanted)
void check_status_at(const char *file, int line, const struct answer *a, int wanted);
/* Creates a collection through chromux; its id. */
char *create(struct stage *s, const char *name);
/* "/collections/<id>/<verb>" */
char *of(const char *id, const char *verb);
/* {"ids":["<prefix><from>" …],"embeddings":[[…] …]}: n records of two dimensions, and what is
 * appended (",\"documents\":…"). */
char *records_body(const char *prefix, unsigned from, unsigned n, const char *more);

/* The text behind "name": in a JSON text, balanced when it is an object or a list; "" when absent.
 */
char *json_field(const char *text, const char *name);
/* A figure of /status: of the journal's object, or of the named instance. -1: absent. */
double journal_figure(struct stage *s, const char *name);
double instance_figure(struct stage *s, const char *instance, const char *name);
/* The value of a line of /metrics that begins with name; -1: absent. */
double metric(struct stage *s, const char *name);

/* ---- the database -----------------------------------------------------------------------------
 */
/* The first value of the first row as text, "" when there is none. */
char *sql(struct stage *s, const char *fmt, ...) PRINTF(2, 3);
long sql_number(struct stage *s, const char *fmt, ...) PRINTF(2, 3);

/* ---- both servers -----------------------------------------------------------------------------
 */
/* The id that a collection has on server i (0, 1); "" when it has no copy there. */
char *physical(struct stage *s, unsigned i, const char *logical);
/* All records of a collection on server i, asked directly, in one canonical text: a line for each,
 * ordered by id: [id, embedding, document, metadata, uri], keys of metadata in order, numbers as
 * they came. */
char *records_on(struct stage *s, unsigned i, const char *logical);
/* The same of any server, by the id that the collection has there. */
char *records_at(struct stage *s, struct chroma *c, const char *physical_id);
/* Waits until every copy has applied all of its lane. */
void check_caught_up(struct stage *s, double seconds);
/* Caught up within the time, and the same records on both; returns them. */
char *check_equal(struct stage *s, const char *logical, double seconds);
/* A JSON text in PostgreSQL's canonical form: keys in order, numbers with all their digits. */
char *canonical(struct stage *s, const char *json);
/* Names of the collections that a server holds, sorted, one a line; those of the default database.
 */
char *collections_on(struct stage *s, unsigned i);

#endif
