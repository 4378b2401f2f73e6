/* Owns the PostgreSQL of a test program and the database of a test. */
#include "stage.h"

#include "../pgserver.h"

enum { SETTINGS_MAX = 48, PAGE = 2000 };

static struct pgserver stage_pg;
static PGconn *db;
static unsigned serial;

static PGconn *connected(const char *url)
{
    PGconn *c = PQconnectdb(url);
    if (PQstatus(c) != CONNECTION_OK) {
        char *why = keepf("%s", PQerrorMessage(c));
        PQfinish(c);
        harness_fail(__FILE__, __LINE__, "PostgreSQL: %s", why);
    }
    return c;
}

int stage_setup(void **state)
{
    if (harness_setup(state) != 0)
        return -1;
    if (!stage_pg.dir[0])
        return pgserver_start(&stage_pg) ? 0 : -1;
    return stage_pg.pid != 0 || pgserver_run(&stage_pg) ? 0 : -1;
}

int stage_teardown(void **state)
{
    if (stage_pg.pid > 0)
        kill(stage_pg.pid, SIGCONT);
    int result = harness_teardown(state);
    PQfinish(db);
    db = NULL;
    return result;
}

int stage_end(void **state)
{
    pgserver_stop(&stage_pg);
    return 0;
}

pid_t stage_pg_pid(void)
{
    return stage_pg.pid;
}

const char *stage_pg_folder(void)
{
    return stage_pg.dir;
}

const char *stage_pg_url(void)
{
    return stage_pg.url;
}

void stage_pg_kill(int sig)
{
    pgserver_kill(&stage_pg, sig);
}

void stage_pg_again(void)
{
    check(pgserver_run(&stage_pg));
}

struct stage *stage_new(void)
{
    struct stage *s = keep(sizeof *s);
    PGconn *c = connected(stage_pg.url);
    PQclear(PQexec(c, keepf("CREATE DATABASE t%u", ++serial)));
    PQfinish(c);
    s->url = keepf("postgresql://postgres@/t%u?host=%s", serial, stage_pg.dir);
    for (unsigned i = 0; i < 2; i++) {
        s->server[i] = chroma_new(keepf("%s/server%u", temp_folder(), i));
        chroma_launch(s->server[i]);
    }
    chroma_wait(s->server[0]);
    chroma_wait(s->server[1]);
    return s;
}

static bool journal_is_on(struct stage *s)
{
    struct answer *a = http_get(s->x->port, "/status");
    return a && strstr(json_field(a->body, "journal"), "\"state\":\"on\"") != NULL;
}

static void start(struct stage *s)
{
    s->x = chromux_start_list(s->settings);
    if (!wait_until(journal_is_on(s), 20))
        harness_fail(__FILE__, __LINE__, "the journal does not start");
}

void stage_again(struct stage *s)
{
    check(chromux_wait_exit(s->x, 10));
    start(s);
}

void stage_chromux(struct stage *s, ...)
{
    const char *const ours[] = {
        keepf("PRIMARY_URL=%s", s->server[0]->url),
        keepf("REPLICA_URL=%s", s->server[1]->url),
        keepf("DATABASE_URL=%s", s->url),
        "CHECK_INTERVAL=0.2",
        "CONNECT_TIMEOUT=0.5",
        keepf("PROBE_TIMEOUT=%g", slow(1)),
        "LEASE_TIMEOUT=2",
        "WRITE_HORIZON=2",
        "REQUEST_TIMEOUT=10",
    };
    va_list args;
    unsigned n = 0;
    s->settings = keep(sizeof *s->settings * SETTINGS_MAX);
    va_start(args, s);
    while (n < SETTINGS_MAX - COUNT_OF(ours) - 1 &&
           (s->settings[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    for (unsigned i = 0, given = n; i < COUNT_OF(ours); i++) {
        size_t name = strcspn(ours[i], "=") + 1;
        bool own = true;
        for (unsigned k = 0; k < given; k++)
            own = own && strncmp(s->settings[k], ours[i], name) != 0;
        if (own)
            s->settings[n++] = ours[i];
    }
    start(s);
    check_soon(sql_number(s, "SELECT count(*) FROM journal_copies WHERE lane = 0") == 2, 10);
}

struct stage *stage_raise(void)
{
    struct stage *s = stage_new();
    stage_chromux(s, NULL);
    return s;
}

/* ---- requests -------------------------------------------------------------------------------- */

static const char *whole(const char *path)
{
    return strncmp(path, "/collections", 12) == 0 ? keepf(CHROMA_DB "%s", path) : path;
}

static struct answer *send_to(int port, const char *method, const char *path, const char *fields,
                              const char *body)
{
    struct answer *a = http_send(port, method, whole(path), fields, body);
    if (!a)
        harness_fail(__FILE__, __LINE__, "no answer to %s %s", method, path);
    return a;
}

struct answer *ask_with(struct stage *s, const char *method, const char *path, const char *fields,
                        const char *body)
{
    return send_to(s->x->port, method, path, fields, body);
}

struct answer *ask(struct stage *s, const char *method, const char *path, const char *body)
{
    return ask_with(s, method, path, "", body);
}

struct answer *ask_server(struct chroma *c, const char *method, const char *path, const char *body)
{
    return send_to((int)c->port, method, path, "", body);
}

void check_status_at(const char *file, int line, const struct answer *a, int wanted)
{
    if (a->status != wanted)
        harness_fail(file, line, "answered %d, not %d: %s%.1000s", a->status, wanted, a->head,
                     a->body);
}

char *create(struct stage *s, const char *name)
{
    struct answer *a = post(s, "/collections", keepf("{\"name\":\"%s\"}", name));
    check_status(a, 200);
    char *id = json_field(a->body, "id");
    check_int(strlen(id), 38);
    return keep_text(id + 1, 36);
}

char *of(const char *id, const char *verb)
{
    return keepf("/collections/%s/%s", id, verb);
}

char *records_body(const char *prefix, unsigned from, unsigned n, const char *more)
{
    size_t each = strlen(prefix) + 64, used = 0;
    char *text = keep(n * each + strlen(more) + 64);
    used += (size_t)sprintf(text, "{\"ids\":[");
    for (unsigned i = 0; i < n; i++)
        used += (size_t)sprintf(text + used, "%s\"%s%u\"", i ? "," : "", prefix, from + i);
    used += (size_t)sprintf(text + used, "],\"embeddings\":[");
    for (unsigned i = 0; i < n; i++)
        used += (size_t)sprintf(text + used, "%s[%u,%u.5]", i ? "," : "", from + i, i % 7);
    sprintf(text + used, "]%s}", more);
    return text;
}

/* The end of the JSON value at p. */
static const char *value_end(const char *p)
{
    int depth = 0;
    for (bool quoted = false; *p; p++) {
        if (quoted) {
            if (*p == '\\' && p[1])
                p++;
            else if (*p == '"')
                quoted = false;
        } else if (*p == '"') {
            quoted = true;
        } else if (*p == '{' || *p == '[') {
            depth++;
        } else if ((*p == '}' || *p == ']') && --depth <= 0) {
            return depth < 0 ? p : p + 1;
        } else if (*p == ',' && depth == 0) {
            return p;
        }
    }
    return p;
}

char *json_field(const char *text, const char *name)
{
    const char *at = strstr(text, keepf("\"%s\":", name));
    if (!at)
        return keepf("%s", "");
    at += strlen(name) + 3;
    return keep_text(at, (size_t)(value_end(at) - at));
}

static double number_in(const char *text)
{
    return *text ? strtod(text, NULL) : -1;
}

double journal_figure(struct stage *s, const char *name)
{
    return number_in(json_field(json_field(get(s, "/status")->body, "journal"), name));
}

double instance_figure(struct stage *s, const char *instance, const char *name)
{
    const char *at = json_field(get(s, "/status")->body, "instances");
    for (at++; *at == '{'; at += *at == ',') {
        const char *end = value_end(at);
        char *one = keep_text(at, (size_t)(end - at));
        if (strstr(one, keepf("\"name\":\"%s\"", instance)))
            return number_in(json_field(one, name));
        at = end;
    }
    return -1;
}

double metric(struct stage *s, const char *name)
{
    struct answer *a = get(s, "/metrics");
    const char *at = strstr(a->body, keepf("\n%s", name));
    return at ? strtod(strchr(at + 1, ' '), NULL) : -1;
}

/* ---- the database ---------------------------------------------------------------------------- */

static PGresult *execute(struct stage *s, const char *text, unsigned n, const char *const *values)
{
    if (!db)
        db = connected(s->url);
    return PQexecParams(db, text, (int)n, NULL, values, NULL, NULL, 0);
}

static char *first_value(struct stage *s, const char *text, unsigned n, const char *const *values)
{
    PGresult *r = execute(s, text, n, values);
    if (PQresultStatus(r) == PGRES_FATAL_ERROR && !PQresultErrorField(r, PG_DIAG_SQLSTATE)) {
        /* It has been away since we asked last. */
        PQclear(r);
        PQfinish(db);
        db = NULL;
        r = execute(s, text, n, values);
    }
    if (PQresultStatus(r) != PGRES_TUPLES_OK && PQresultStatus(r) != PGRES_COMMAND_OK) {
        char *why = keepf("%s", PQerrorMessage(db));
        PQclear(r);
        harness_fail(__FILE__, __LINE__, "%s: %s", text, why);
    }
    char *value = keepf("%s", PQntuples(r) > 0 ? PQgetvalue(r, 0, 0) : "");
    PQclear(r);
    return value;
}

char *sql(struct stage *s, const char *fmt, ...)
{
    va_list args;
    char *text;
    va_start(args, fmt);
    check(vasprintf(&text, fmt, args) >= 0);
    va_end(args);
    char *kept = keepf("%s", text);
    free(text);
    return first_value(s, kept, 0, NULL);
}

long sql_number(struct stage *s, const char *fmt, ...)
{
    va_list args;
    char *text;
    va_start(args, fmt);
    check(vasprintf(&text, fmt, args) >= 0);
    va_end(args);
    char *kept = keepf("%s", text);
    free(text);
    return atol(first_value(s, kept, 0, NULL));
}

/* ---- both servers ---------------------------------------------------------------------------- */

char *physical(struct stage *s, unsigned i, const char *logical)
{
    return sql(s,
               "SELECT physical FROM journal_copies JOIN journal_collections USING (lane) "
               "WHERE logical = '%s' AND instance = '%s'",
               logical, i ? "replica" : "primary");
}

char *canonical(struct stage *s, const char *json)
{
    const char *values[] = {json};
    return first_value(s, "SELECT $1::jsonb::text", 1, values);
}

static const char lines[] =
    "SELECT coalesce(string_agg(jsonb_build_array(id, e, d, m, u)::text, E'\\n' ORDER BY id), '') "
    "FROM (SELECT $1::jsonb AS j) t, ROWS FROM (jsonb_array_elements_text(j->'ids'), "
    "jsonb_array_elements(j->'embeddings'), jsonb_array_elements(j->'documents'), "
    "jsonb_array_elements(j->'metadatas'), jsonb_array_elements(j->'uris')) AS r(id, e, d, m, u)";

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The lines of text in order: pages are those of the order in which records came to the server. */
static char *sorted(char *text)
{
    unsigned n = count_lines(text, ""), k = 0;
    char **line = keep(sizeof *line * (n + 1)), *out = keep(strlen(text) + 2), *to = out;
    for (char *rest = text, *l; (l = strsep(&rest, "\n")) != NULL;)
        if (*l)
            line[k++] = l;
    qsort(line, k, sizeof *line, by_text);
    for (unsigned i = 0; i < k; i++)
        to += sprintf(to, "%s\n", line[i]);
    *to = 0;
    return out;
}

char *records_at(struct stage *s, struct chroma *c, const char *physical_id)
{
    char *all = keepf("%s", "");
    for (unsigned offset = 0;; offset += PAGE) {
        struct answer *a = ask_server(
            c, "POST", of(physical_id, "get"),
            keepf("{\"limit\":%u,\"offset\":%u,\"include\":[\"embeddings\",\"documents\","
                  "\"metadatas\",\"uris\"]}",
                  PAGE, offset));
        check_status(a, 200);
        const char *values[] = {a->body};
        char *page = first_value(s, lines, 1, values);
        if (!*page)
            return sorted(all);
        all = keepf("%s%s\n", all, page);
    }
}

char *records_on(struct stage *s, unsigned i, const char *logical)
{
    return records_at(s, s->server[i], physical(s, i, logical));
}

static bool caught_up(struct stage *s)
{
    return sql_number(s, "SELECT count(*) FROM journal_copies JOIN journal_lanes USING (lane) "
                         "WHERE open AND (state <> 'ready' OR position < next - 1)") == 0 &&
           sql_number(s, "SELECT count(*) FROM journal_collections c WHERE NOT deleted AND "
                         "(SELECT count(*) FROM journal_copies p WHERE p.lane = c.lane) < 2") == 0;
}

void check_caught_up(struct stage *s, double seconds)
{
    if (!wait_until(caught_up(s), seconds))
        harness_fail(__FILE__, __LINE__, "not caught up: %s",
                     sql(s, "SELECT string_agg(row(lane, instance, state, reason, position, "
                            "next)::text, ' ') FROM journal_copies JOIN journal_lanes USING (lane) "
                            "WHERE open AND (state <> 'ready' OR position < next - 1)"));
}

char *check_equal(struct stage *s, const char *logical, double seconds)
{
    check_caught_up(s, seconds);
    char *left = records_on(s, 0, logical), *right = records_on(s, 1, logical);
    if (strcmp(left, right) != 0) {
        size_t at = 0;
        while (left[at] && left[at] == right[at])
            at++;
        at -= at < 200 ? at : 200;
        harness_fail(__FILE__, __LINE__, "%s differs:\n%.600s\n---- and\n%.600s", logical,
                     left + at, right + at);
    }
    return left;
}

char *collections_on(struct stage *s, unsigned i)
{
    struct answer *a = ask_server(s->server[i], "GET", "/collections", NULL);
    check_status(a, 200);
    const char *values[] = {a->body};
    return first_value(s,
                       "SELECT coalesce(string_agg(e->>'name', E'\\n' ORDER BY e->>'name'), '') "
                       "FROM jsonb_array_elements($1::jsonb) e",
                       1, values);
}
