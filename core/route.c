/* route.c: the table of every route, and the lookup in it.
 *
 * The rows are those of Chroma's rust/frontend/src/server.rs from 1.0.10 to 1.5.9 and its next
 * release, including routes that only some versions have: a server that lacks one answers 404
 * itself. A row matches whole segments; literal rows stand before rows with a variable in the same
 * place, since the first match wins. */
#include "route.h"

enum { SEGMENTS_MAX = 11 };

enum {
    READS = 1,
    DATA = 2,
    V1 = 4,
    FRAGILE = 8,
};

#define ON(method) (1u << HTTP1_##method)
#define DB         "/api/v2/tenants/{tenant}/databases/{database}"
#define COLLECTION DB "/collections/{uuid}"

struct row {
    unsigned methods;
    const char *template;
    const char *action;
    uint8_t class, flags, local;
};

static const struct row rows[] = {
    {ON(GET), "/health", "health", ROUTE_LOCAL, READS, ROUTE_HEALTH},
    {ON(GET), "/status", "status", ROUTE_LOCAL, READS, ROUTE_STATUS},
    {ON(GET), "/metrics", "metrics", ROUTE_LOCAL, READS, ROUTE_METRICS},
    {ON(GET), "/openapi.json", "docs", ROUTE_READ, READS, 0},
    {ON(GET), "/docs", "docs", ROUTE_READ, READS, 0},

    {ON(GET), "/api/v1/heartbeat", "heartbeat", ROUTE_READ, READS | V1, 0},
    {ON(GET), "/api/v1/version", "version", ROUTE_READ, READS | V1, 0},

    {ON(GET), "/api/v2", "heartbeat", ROUTE_READ, READS, 0},
    {ON(GET), "/api/v2/heartbeat", "heartbeat", ROUTE_READ, READS, 0},
    {ON(GET), "/api/v2/healthcheck", "healthcheck", ROUTE_READ, READS, 0},
    {ON(GET), "/api/v2/pre-flight-checks", "pre_flight_checks", ROUTE_READ, READS, 0},
    {ON(GET), "/api/v2/version", "version", ROUTE_READ, READS, 0},
    {ON(GET), "/api/v2/auth/identity", "identity", ROUTE_READ, READS, 0},
    {ON(POST), "/api/v2/reset", "reset", ROUTE_CATALOG, DATA, 0},

    {ON(POST), "/api/v2/tenants", "create_tenant", ROUTE_CATALOG, DATA, 0},
    {ON(GET), "/api/v2/tenants/{tenant}", "get_tenant", ROUTE_CATALOG, READS | DATA, 0},
    {ON(PATCH), "/api/v2/tenants/{tenant}", "update_tenant", ROUTE_CATALOG, DATA, 0},
    {ON(GET), "/api/v2/tenants/{tenant}/databases", "list_databases", ROUTE_CATALOG, READS | DATA,
     0},
    {ON(POST), "/api/v2/tenants/{tenant}/databases", "create_database", ROUTE_CATALOG, DATA, 0},
    {ON(GET), DB, "get_database", ROUTE_CATALOG, READS | DATA, 0},
    {ON(DELETE), DB, "delete_database", ROUTE_CATALOG, DATA, 0},

    {ON(GET), DB "/collections", "list_collections", ROUTE_CATALOG, READS | DATA, 0},
    {ON(POST), DB "/collections", "create_collection", ROUTE_CATALOG, DATA, 0},
    {ON(GET), DB "/collections_count", "count_collections", ROUTE_CATALOG, READS | DATA, 0},
    {ON(GET), DB "/collections/{name}", "get_collection", ROUTE_CATALOG, READS | DATA, 0},
    {ON(DELETE), DB "/collections/{name}", "delete_collection", ROUTE_CATALOG, DATA, 0},
    {ON(PUT), COLLECTION, "update_collection", ROUTE_CATALOG, DATA, 0},
    {ON(GET), DB "/collections/by-id/{uuid}", "get_collection", ROUTE_CATALOG, READS | DATA, 0},
    {ON(GET), "/api/v2/collections/{crn}", "get_collection_crn", ROUTE_CATALOG,
     READS | DATA | FRAGILE, 0},

    {ON(POST), COLLECTION "/query", "query", ROUTE_READ, READS | DATA, 0},
    {ON(POST), COLLECTION "/get", "get", ROUTE_READ, READS | DATA, 0},
    {ON(GET), COLLECTION "/count", "count", ROUTE_READ, READS | DATA, 0},
    {ON(POST), COLLECTION "/add", "add", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/upsert", "upsert", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/update", "update", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/delete", "delete", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/search", "search", ROUTE_READ, READS | DATA, 0},
    {ON(GET), COLLECTION "/indexing_status", "indexing_status", ROUTE_READ, READS | DATA | FRAGILE,
     0},
    {ON(POST), COLLECTION "/fork", "fork", ROUTE_WRITE, DATA, 0},
    {ON(GET), COLLECTION "/fork_count", "fork_count", ROUTE_READ, READS | DATA, 0},
    {ON(POST), COLLECTION "/conditional/get", "conditional_get", ROUTE_READ, READS | DATA, 0},
    {ON(POST), COLLECTION "/conditional/commit", "conditional_commit", ROUTE_WRITE, DATA, 0},

    /* Attached functions: tasks in 1.2.2 to 1.3.0; 1.3.5 detaches below the database. */
    {ON(POST), COLLECTION "/functions/attach", "attach_function", ROUTE_WRITE, DATA, 0},
    {ON(GET), COLLECTION "/functions/{function}", "get_function", ROUTE_READ, READS | DATA, 0},
    {ON(POST), COLLECTION "/attached_functions/{function}/detach", "detach_function", ROUTE_WRITE,
     DATA, 0},
    {ON(POST), DB "/attached_functions/{function}/detach", "detach_function", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/tasks/create", "attach_function", ROUTE_WRITE, DATA, 0},
    {ON(POST), COLLECTION "/tasks/delete", "detach_function", ROUTE_WRITE, DATA, 0},
};

static const char *const why_unknown =
    "this path is not a route of the Chroma API that chromux knows";

static const char *const why_method = "this path does not take this method";

/* ---- paths and templates as segments ------------------------------------------------------ */

struct path {
    unsigned count; /* of all segments, also those beyond SEGMENTS_MAX */
    bool clean;     /* begins with '/', no segment is empty or means "here" or "up" */
    struct str segment[SEGMENTS_MAX];
};

/* "." and "..", also percent-encoded: who decodes before normalising sees another path. */
static bool dots(struct str s)
{
    unsigned count = 0;
    for (size_t i = 0; i < s.n; count++) {
        if (s.p[i] == '.')
            i += 1;
        else if (s.n - i >= 3 && s.p[i] == '%' && s.p[i + 1] == '2' && (s.p[i + 2] | 0x20) == 'e')
            i += 3;
        else
            return false;
    }
    return count == 1 || count == 2;
}

static void split(struct str s, struct path *out)
{
    const char *p = s.p, *end = s.p + s.n;
    out->count = 0;
    out->clean = s.n > 0 && *p == '/';
    while (out->clean && p < end) {
        const char *start = ++p;
        const char *slash = memchr(start, '/', (size_t)(end - start));
        p = slash ? slash : end;
        struct str segment = {start, (size_t)(p - start)};
        if (segment.n == 0 || dots(segment))
            out->clean = false;
        if (out->count < SEGMENTS_MAX)
            out->segment[out->count] = segment;
        out->count++;
    }
}

enum part { LITERAL, TENANT, DATABASE, UUID, NAME, ANY };

struct pattern {
    uint8_t parts[SEGMENTS_MAX];
    struct str literal[SEGMENTS_MAX];
};

/* The templates taken apart, and the rows of each segment count one after the other in table
 * order: by_count[first[n] .. first[n + 1]). Made at the first lookup. */
static struct pattern patterns[COUNT_OF(rows)];
static uint8_t by_count[COUNT_OF(rows)];
static uint8_t first[SEGMENTS_MAX + 2];

static enum part part_of(struct str s)
{
    return s.p[0] != '{'                                         ? LITERAL
           : str_eq(s, STR("{tenant}"))                          ? TENANT
           : str_eq(s, STR("{database}"))                        ? DATABASE
           : str_eq(s, STR("{uuid}"))                            ? UUID
           : str_eq(s, STR("{name}")) || str_eq(s, STR("{crn}")) ? NAME
                                                                 : ANY;
}

static void compile(void)
{
    unsigned counts[COUNT_OF(rows)], at = 0;
    for (unsigned r = 0; r < COUNT_OF(rows); r++) {
        struct path path;
        split(str_from(rows[r].template), &path);
        must(path.clean && path.count <= SEGMENTS_MAX);
        counts[r] = path.count;
        for (unsigned i = 0; i < path.count; i++) {
            patterns[r].parts[i] = (uint8_t)part_of(path.segment[i]);
            patterns[r].literal[i] = path.segment[i];
        }
    }
    for (unsigned n = 0; n <= SEGMENTS_MAX; n++) {
        first[n] = (uint8_t)at;
        for (unsigned r = 0; r < COUNT_OF(rows); r++)
            if (counts[r] == n)
                by_count[at++] = (uint8_t)r;
    }
    first[SEGMENTS_MAX + 1] = (uint8_t)at;
    must(at == COUNT_OF(rows));
}

/* From the last segment, which tells most rows of one count apart. */
static bool matches(const struct pattern *pattern, const struct path *path)
{
    for (unsigned i = path->count; i-- > 0;)
        if (pattern->parts[i] == LITERAL && !str_eq(pattern->literal[i], path->segment[i]))
            return false;
    return true;
}

/* ---- answers ------------------------------------------------------------------------------ */

static void refuse(struct route *out, enum end_reason end, const char *why)
{
    out->class = ROUTE_UNSUPPORTED;
    out->refusal = end;
    out->why = why;
}

static void pass(struct route *out, const char *name, const char *action)
{
    out->class = ROUTE_READ;
    out->reads = true;
    out->name = name;
    out->action = action;
}

/* The value of Allow for every set of methods that the rows of one path can add up to. */
static const char *allow_text(unsigned methods)
{
    static const struct {
        unsigned methods;
        const char *text;
    } sets[] = {
        {ON(GET), "GET, HEAD"},
        {ON(POST), "POST"},
        {ON(GET) | ON(POST), "GET, HEAD, POST"},
        {ON(GET) | ON(PATCH), "GET, HEAD, PATCH"},
        {ON(GET) | ON(DELETE), "GET, HEAD, DELETE"},
        {ON(GET) | ON(PUT) | ON(DELETE), "GET, HEAD, PUT, DELETE"},
    };
    for (size_t i = 0; i < COUNT_OF(sets); i++)
        if (sets[i].methods == methods)
            return sets[i].text;
    must(!"every set of methods in the table has its text");
    return NULL;
}

static void take_row(unsigned r, const struct path *path, struct route *out)
{
    const struct row *row = &rows[r];
    out->class = row->class;
    out->local = row->local;
    out->name = row->template;
    out->action = row->action;
    out->reads = row->flags & READS;
    out->data = row->flags & DATA;
    out->v1_alias = row->flags & V1;
    out->fragile = row->flags & FRAGILE;
    for (unsigned i = 0; i < path->count; i++) {
        switch (patterns[r].parts[i]) {
        case TENANT:
            out->tenant = path->segment[i];
            break;
        case DATABASE:
            out->database = path->segment[i];
            break;
        case NAME:
            out->by_name = true; /* fall through */
        case UUID:
            out->collection = path->segment[i];
            break;
        default:
            break;
        }
    }
}

static bool match_rows(enum http1_method method, const struct path *path, struct route *out)
{
    unsigned methods = 0;
    if (!path->clean || path->count > SEGMENTS_MAX)
        return false;
    for (unsigned i = first[path->count]; i < first[path->count + 1]; i++) {
        unsigned r = by_count[i];
        if (!matches(&patterns[r], path))
            continue;
        /* OPTIONS passes through, but nothing behind us knows our own paths. */
        if (method == HTTP1_OPTIONS && rows[r].class != ROUTE_LOCAL)
            return false;
        if (rows[r].methods & (1u << method)) {
            take_row(r, path, out);
            return true;
        }
        if (methods == 0)
            out->name = rows[r].template;
        methods |= rows[r].methods;
    }
    if (methods == 0)
        return false;
    refuse(out, END_METHOD, why_method);
    out->allow = allow_text(methods);
    return true;
}

/* Everything below /docs is one page with its parts. */
static void match_docs(enum http1_method method, struct route *out)
{
    if (method == HTTP1_GET) {
        pass(out, "/docs/…", "docs");
        return;
    }
    refuse(out, END_METHOD, why_method);
    out->name = "/docs/…";
    out->allow = allow_text(ON(GET));
}

void route_match(enum http1_method method, struct str path, struct route *out)
{
    struct path p;
    if (UNLIKELY(first[SEGMENTS_MAX + 1] == 0))
        compile();
    *out = (struct route){.name = "(none)", .action = "none"};
    split(path, &p);
    if (method == HTTP1_HEAD)
        method = HTTP1_GET;
    bool api = p.count > 0 && str_eq(p.segment[0], STR("api"));
    bool v1 = api && p.clean && p.count > 2 && str_eq(p.segment[1], STR("v1"));
    bool docs = p.count > 1 && str_eq(p.segment[0], STR("docs"));

    /* What Chroma answers below /api/v1 (410, or 405 for POST) is its own affair; but a method that
     * we do not know may change what its answer means (CONNECT, RFC 9112 6.3). */
    v1 = v1 && method != HTTP1_METHOD_OTHER;
    if (v1 && method != HTTP1_GET && method != HTTP1_OPTIONS)
        pass(out, "/api/v1/…", "v1");
    else if (match_rows(method, &p, out))
        return;
    else if (method == HTTP1_OPTIONS)
        pass(out, "*", "options");
    else if (v1)
        pass(out, "/api/v1/…", "v1");
    else if (docs && (p.clean || path.n == sizeof "/docs/" - 1))
        match_docs(method, out);
    else if (api)
        refuse(out, END_UNSUPPORTED, why_unknown);
    else
        refuse(out, END_NOT_FOUND, "there is nothing at this path");
}

const char *route_class_name(enum route_class c)
{
    static const char *const names[] = {"read", "write", "catalog", "local", "unsupported"};
    must((unsigned)c < COUNT_OF(names));
    return names[c];
}

bool route_uuid(struct str s, char out[37])
{
    bool hyphens = s.n == 36;
    size_t from = 0;
    if (s.n != 36 && s.n != 32)
        return false;
    for (unsigned i = 0; i < 36; i++) {
        bool hyphen = i == 8 || i == 13 || i == 18 || i == 23;
        char c = hyphen && !hyphens ? '-' : s.p[from++];
        if (c >= 'A' && c <= 'F')
            c |= 0x20;
        if (hyphen ? c != '-' : !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
            return false;
        out[i] = c;
    }
    out[36] = 0;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t route_decode(struct str s, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        int high = s.p[i] == '%' && s.n - i > 2 ? hex_digit(s.p[i + 1]) : -1;
        int low = high >= 0 ? hex_digit(s.p[i + 2]) : -1;
        out[n++] = low >= 0 ? (char)(high * 16 + low) : s.p[i];
        i += low >= 0 ? 2 : 0;
    }
    return n;
}

bool route_segment_uuid(struct str s, char out[37])
{
    static const char urn[] = "urn:uuid:";
    char text[3 * (sizeof urn + 36)];
    if (s.n > sizeof text)
        return false;
    struct str id = {text, route_decode(s, text)};
    if (id.n > 36 && memcmp(id.p, urn, sizeof urn - 1) == 0)
        id = (struct str){id.p + sizeof urn - 1, id.n - (sizeof urn - 1)};
    else if (id.n == 38 && id.p[0] == '{' && id.p[37] == '}')
        id = (struct str){id.p + 1, 36};
    return route_uuid(id, out);
}
