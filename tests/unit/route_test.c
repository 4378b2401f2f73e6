/* route_test.c: every route of the table, and what is near to one but is none. */
#include "guard.h"
#include "route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define P  "/api/v2/tenants/t-1/databases/d%2F1"
#define T  "/api/v2/tenants/{tenant}"
#define D  T "/databases/{database}"
#define ID "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"
#define C  P "/collections/" ID
#define U  D "/collections/{uuid}"

static const char *const method_names[] = {"GET",   "HEAD",   "POST",    "PUT",
                                           "PATCH", "DELETE", "OPTIONS", "OTHER"};

static struct guard guard;

static struct route match(enum http1_method method, const char *path)
{
    struct route r;
    size_t n = strlen(path);
    route_match(method, (struct str){guard_put(&guard, path, n), n}, &r);
    return r;
}

/* class action reads data v1 tenant database collection by_name, the parts that apply */
static void describe(const struct route *r, char *out, size_t size)
{
    snprintf(out, size, "%s %s%s%s%s t=%.*s d=%.*s c=%.*s%s", route_class_name(r->class), r->action,
             r->reads ? " reads" : "", r->data ? " data" : "", r->v1_alias ? " v1" : "",
             (int)r->tenant.n, r->tenant.p, (int)r->database.n, r->database.p, (int)r->collection.n,
             r->collection.p, r->by_name ? " by_name" : "");
}

static const struct {
    enum http1_method method;
    const char *path, *name, *want;
} routes[] = {
    {HTTP1_GET, "/health", "/health", "local health reads t= d= c="},
    {HTTP1_GET, "/status", "/status", "local status reads t= d= c="},
    {HTTP1_GET, "/metrics", "/metrics", "local metrics reads t= d= c="},
    {HTTP1_GET, "/openapi.json", "/openapi.json", "read docs reads t= d= c="},
    {HTTP1_GET, "/docs", "/docs", "read docs reads t= d= c="},
    {HTTP1_GET, "/docs/", "/docs/…", "read docs reads t= d= c="},
    {HTTP1_GET, "/docs/a/b.css", "/docs/…", "read docs reads t= d= c="},
    {HTTP1_GET, "/api/v1/heartbeat", "/api/v1/heartbeat", "read heartbeat reads v1 t= d= c="},
    {HTTP1_GET, "/api/v1/version", "/api/v1/version", "read version reads v1 t= d= c="},
    {HTTP1_GET, "/api/v1/collections", "/api/v1/…", "read v1 reads t= d= c="},
    {HTTP1_POST, "/api/v1/heartbeat", "/api/v1/…", "read v1 reads t= d= c="},
    {HTTP1_PATCH, "/api/v1/a/b/c/d/e/f/g/h/i/j/k/l", "/api/v1/…", "read v1 reads t= d= c="},
    {HTTP1_GET, "/api/v2", "/api/v2", "read heartbeat reads t= d= c="},
    {HTTP1_GET, "/api/v2/heartbeat", "/api/v2/heartbeat", "read heartbeat reads t= d= c="},
    {HTTP1_GET, "/api/v2/healthcheck", "/api/v2/healthcheck", "read healthcheck reads t= d= c="},
    {HTTP1_GET, "/api/v2/pre-flight-checks", "/api/v2/pre-flight-checks",
     "read pre_flight_checks reads t= d= c="},
    {HTTP1_GET, "/api/v2/version", "/api/v2/version", "read version reads t= d= c="},
    {HTTP1_GET, "/api/v2/auth/identity", "/api/v2/auth/identity", "read identity reads t= d= c="},
    {HTTP1_POST, "/api/v2/reset", "/api/v2/reset", "catalog reset data t= d= c="},
    {HTTP1_POST, "/api/v2/tenants", "/api/v2/tenants", "catalog create_tenant data t= d= c="},
    {HTTP1_GET, "/api/v2/tenants/x", T, "catalog get_tenant reads data t=x d= c="},
    {HTTP1_PATCH, "/api/v2/tenants/x", T, "catalog update_tenant data t=x d= c="},
    {HTTP1_GET, "/api/v2/tenants/x/databases", T "/databases",
     "catalog list_databases reads data t=x d= c="},
    {HTTP1_POST, "/api/v2/tenants/x/databases", T "/databases",
     "catalog create_database data t=x d= c="},
    {HTTP1_GET, P, D, "catalog get_database reads data t=t-1 d=d%2F1 c="},
    {HTTP1_DELETE, P, D, "catalog delete_database data t=t-1 d=d%2F1 c="},
    {HTTP1_GET, P "/collections", D "/collections",
     "catalog list_collections reads data t=t-1 d=d%2F1 c="},
    {HTTP1_POST, P "/collections", D "/collections",
     "catalog create_collection data t=t-1 d=d%2F1 c="},
    {HTTP1_GET, P "/collections_count", D "/collections_count",
     "catalog count_collections reads data t=t-1 d=d%2F1 c="},
    {HTTP1_GET, P "/collections/my", D "/collections/{name}",
     "catalog get_collection reads data t=t-1 d=d%2F1 c=my by_name"},
    {HTTP1_DELETE, P "/collections/my", D "/collections/{name}",
     "catalog delete_collection data t=t-1 d=d%2F1 c=my by_name"},
    {HTTP1_PUT, C, U, "catalog update_collection data t=t-1 d=d%2F1 c=" ID},
    {HTTP1_GET, P "/collections/by-id/" ID, D "/collections/by-id/{uuid}",
     "catalog get_collection reads data t=t-1 d=d%2F1 c=" ID},
    {HTTP1_GET, "/api/v2/collections/a:b:c", "/api/v2/collections/{crn}",
     "catalog get_collection_crn reads data t= d= c=a:b:c by_name"},
#define RECORDS " data t=t-1 d=d%2F1 c=" ID
    {HTTP1_POST, C "/add", U "/add", "write add" RECORDS},
    {HTTP1_POST, C "/update", U "/update", "write update" RECORDS},
    {HTTP1_POST, C "/upsert", U "/upsert", "write upsert" RECORDS},
    {HTTP1_POST, C "/delete", U "/delete", "write delete" RECORDS},
    {HTTP1_GET, C "/count", U "/count", "read count reads" RECORDS},
    {HTTP1_POST, C "/get", U "/get", "read get reads" RECORDS},
    {HTTP1_POST, C "/query", U "/query", "read query reads" RECORDS},
    {HTTP1_POST, C "/search", U "/search", "read search reads" RECORDS},
    {HTTP1_GET, C "/indexing_status", U "/indexing_status", "read indexing_status reads" RECORDS},
    {HTTP1_POST, C "/fork", U "/fork", "write fork" RECORDS},
    {HTTP1_GET, C "/fork_count", U "/fork_count", "read fork_count reads" RECORDS},
    {HTTP1_POST, C "/functions/attach", U "/functions/attach", "write attach_function" RECORDS},
    {HTTP1_GET, C "/functions/f", U "/functions/{function}", "read get_function reads" RECORDS},
    {HTTP1_POST, C "/attached_functions/f/detach", U "/attached_functions/{function}/detach",
     "write detach_function" RECORDS},
    {HTTP1_POST, P "/attached_functions/f/detach", D "/attached_functions/{function}/detach",
     "write detach_function data t=t-1 d=d%2F1 c="},
    {HTTP1_POST, C "/tasks/create", U "/tasks/create", "write attach_function" RECORDS},
    {HTTP1_POST, C "/tasks/delete", U "/tasks/delete", "write detach_function" RECORDS},
    {HTTP1_POST, C "/conditional/get", U "/conditional/get", "read conditional_get reads" RECORDS},
    {HTTP1_POST, C "/conditional/commit", U "/conditional/commit",
     "write conditional_commit" RECORDS},
};

static void knows_every_route(void **state)
{
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        char text[512];
        struct route r = match(routes[i].method, routes[i].path);
        describe(&r, text, sizeof text);
        if (strcmp(text, routes[i].want) != 0 || strcmp(r.name, routes[i].name) != 0)
            fail_msg("%s %s is %s (%s)", method_names[routes[i].method], routes[i].path, text,
                     r.name);
        assert_int_equal(r.refusal, END_NONE);
        assert_null(r.why);
        assert_null(r.allow);
        assert_int_equal(r.fragile, strcmp(r.action, "get_collection_crn") == 0 ||
                                        strcmp(r.action, "indexing_status") == 0);
    }
    assert_int_equal(match(HTTP1_GET, "/health").local, ROUTE_HEALTH);
    assert_int_equal(match(HTTP1_GET, "/status").local, ROUTE_STATUS);
    assert_int_equal(match(HTTP1_GET, "/metrics").local, ROUTE_METRICS);
    assert_int_equal(match(HTTP1_GET, C "/count").local, ROUTE_NOT_LOCAL);
}

static void head_is_get(void **state)
{
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        char head[512], get[512];
        struct route r = match(HTTP1_HEAD, routes[i].path), g = match(HTTP1_GET, routes[i].path);
        describe(&r, head, sizeof head);
        describe(&g, get, sizeof get);
        assert_string_equal(head, get);
        assert_string_equal(r.name, g.name);
    }
}

static void options_passes_but_not_to_our_own_paths(void **state)
{
    static const char *const paths[] = {
        "*", "/", "/api/v2/nothing", "/api/v2/heartbeat", C "/add", "/api/v1/heartbeat", "/docs/x"};
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        char text[512];
        struct route r = match(HTTP1_OPTIONS, paths[i]);
        describe(&r, text, sizeof text);
        assert_string_equal(text, "read options reads t= d= c=");
        assert_string_equal(r.name, "*");
    }
    struct route r = match(HTTP1_OPTIONS, "/health");
    assert_int_equal(r.refusal, END_METHOD);
    assert_string_equal(r.allow, "GET, HEAD");
}

static void says_which_methods_a_path_takes(void **state)
{
    static const struct {
        enum http1_method method;
        const char *path, *allow;
    } rows[] = {
        {HTTP1_POST, "/health", "GET, HEAD"},
        {HTTP1_DELETE, "/status", "GET, HEAD"},
        {HTTP1_METHOD_OTHER, "/metrics", "GET, HEAD"},
        {HTTP1_POST, "/docs", "GET, HEAD"},
        {HTTP1_POST, "/docs/x", "GET, HEAD"},
        {HTTP1_POST, "/api/v2", "GET, HEAD"},
        {HTTP1_GET, "/api/v2/reset", "POST"},
        {HTTP1_GET, "/api/v2/tenants", "POST"},
        {HTTP1_DELETE, "/api/v2/tenants/x", "GET, HEAD, PATCH"},
        {HTTP1_PUT, "/api/v2/tenants/x/databases", "GET, HEAD, POST"},
        {HTTP1_PUT, P, "GET, HEAD, DELETE"},
        {HTTP1_DELETE, P "/collections", "GET, HEAD, POST"},
        {HTTP1_POST, C, "GET, HEAD, PUT, DELETE"},
        {HTTP1_METHOD_OTHER, C, "GET, HEAD, PUT, DELETE"},
        {HTTP1_GET, C "/query", "POST"},
        {HTTP1_HEAD, C "/get", "POST"},
        {HTTP1_POST, C "/count", "GET, HEAD"},
        {HTTP1_PUT, C "/functions/attach", "GET, HEAD, POST"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct route r = match(rows[i].method, rows[i].path);
        if (r.class != ROUTE_UNSUPPORTED || r.refusal != END_METHOD || !r.why || !r.allow ||
            strcmp(r.allow, rows[i].allow) != 0 || r.reads || r.data)
            fail_msg("%s %s: %s, allow %s", method_names[rows[i].method], rows[i].path,
                     end_name(r.refusal), r.allow ? r.allow : "none");
    }
}

/* CONNECT among them, whose answer would be read differently by others (RFC 9112 6.3). */
static void passes_no_unknown_method(void **state)
{
    struct route r = match(HTTP1_METHOD_OTHER, "/api/v1/collections");
    assert_int_equal(r.class, ROUTE_UNSUPPORTED);
    assert_int_equal(r.refusal, END_UNSUPPORTED);
    r = match(HTTP1_METHOD_OTHER, "/api/v1/heartbeat");
    assert_int_equal(r.class, ROUTE_UNSUPPORTED);
    assert_int_equal(r.refusal, END_METHOD);
}

static void refuses_what_only_looks_like_a_route(void **state)
{
    static const struct {
        const char *path;
        enum end_reason refusal;
    } rows[] = {
        {"/api", END_UNSUPPORTED},
        {"/api/", END_UNSUPPORTED},
        {"/api/v1", END_UNSUPPORTED},
        {"/api/v1/", END_UNSUPPORTED},
        {"/api/v1//x", END_UNSUPPORTED},
        {"/api/v1/../v2/reset", END_UNSUPPORTED},
        {"/api/v2/", END_UNSUPPORTED},
        {"/api/v3/heartbeat", END_UNSUPPORTED},
        {"/api/v2/heartbeat/", END_UNSUPPORTED},
        {"/api/v2//heartbeat", END_UNSUPPORTED},
        {"/api/v2/./heartbeat", END_UNSUPPORTED},
        {"/api/v2/Heartbeat", END_UNSUPPORTED},
        {"/api/v2/heartbea", END_UNSUPPORTED},
        {"/api/v2/heartbeatx", END_UNSUPPORTED},
        {"/api/v2/%68eartbeat", END_UNSUPPORTED},
        {"/api/v2/tenants/", END_UNSUPPORTED},
        {"/api/v2/tenants/.", END_UNSUPPORTED},
        {"/api/v2/tenants/..", END_UNSUPPORTED},
        {"/api/v2/tenants/%2e%2E", END_UNSUPPORTED},
        {"/api/v2/tenants/.%2e", END_UNSUPPORTED},
        {P "/collections/", END_UNSUPPORTED},
        {P "/collections/by-id/", END_UNSUPPORTED},
        {C "/get/", END_UNSUPPORTED},
        {C "/explain", END_UNSUPPORTED},
        {C "/get/x", END_UNSUPPORTED},
        {C "/a/b/c/d/e/f/g", END_UNSUPPORTED},
        {"/x" C "/get", END_NOT_FOUND},
        {"", END_NOT_FOUND},
        {"/", END_NOT_FOUND},
        {"//", END_NOT_FOUND},
        {"*", END_NOT_FOUND},
        {"//api/v2/heartbeat", END_NOT_FOUND},
        {"/apix/v2/heartbeat", END_NOT_FOUND},
        {"/health/", END_NOT_FOUND},
        {"/Health", END_NOT_FOUND},
        {"/healthz", END_NOT_FOUND},
        {"/docs//", END_NOT_FOUND},
        {"/docs/../api/v2/reset", END_NOT_FOUND},
        {"/docs/%2E%2E/x", END_NOT_FOUND},
        {"/docsx", END_NOT_FOUND},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (int post = 0; post < 2; post++) {
            struct route r = match(post ? HTTP1_POST : HTTP1_GET, rows[i].path);
            if (r.class != ROUTE_UNSUPPORTED || r.refusal != rows[i].refusal || !r.why)
                fail_msg("%s: %s %s", rows[i].path, route_class_name(r.class), end_name(r.refusal));
        }
    assert_string_equal(match(HTTP1_GET, "/api/v9").why,
                        "this path is not a route of the Chroma API that chromux knows");
    /* Three dots, and a dot with something, are names. */
    assert_string_equal(match(HTTP1_GET, "/api/v2/tenants/...").action, "get_tenant");
    assert_string_equal(match(HTTP1_GET, "/api/v2/tenants/.a").action, "get_tenant");
    assert_string_equal(match(HTTP1_GET, "/api/v2/tenants/%2").action, "get_tenant");
}

/* Every path cut short is another route or none, and is never read beyond its end. */
static void looks_at_no_byte_behind_a_path(void **state)
{
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        char path[256];
        strcpy(path, routes[i].path);
        for (size_t n = strlen(path); n-- > 0;) {
            path[n] = 0;
            struct route r = match(routes[i].method, path);
            assert_non_null(r.name);
            assert_non_null(r.action);
        }
    }
}

static void reads_uuids_in_every_spelling(void **state)
{
    static const struct {
        const char *text, *want;
    } rows[] = {
        {"0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11", "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"},
        {"0B1F3C1E-5AD5-4A7B-9D0C-5A8F6C2F1B11", "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"},
        {"0b1f3c1e5ad54a7b9d0c5a8f6c2f1b11", "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"},
        {"0B1F3C1E5AD54A7B9D0C5A8F6C2F1B11", "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"},
        {"", NULL},
        {"my-collection", NULL},
        {"0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b1", NULL},
        {"0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b111", NULL},
        {"0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b1g", NULL},
        {"0b1f3c1e5ad54a7b9d0c5a8f6c2f1b1", NULL},
        {"0b1f3c1e-5ad54a7b9d0c5a8f6c2f1b1", NULL},
        {"0b1f3c1e5-ad5-4a7b-9d0c-5a8f6c2f1b11", NULL},
        {"0b1f3c1e-5ad5-4a7b-9d0c--a8f6c2f1b11", NULL},
        {"0b1f3c1ea5ad5-4a7b-9d0c-5a8f6c2f1b11", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char out[37];
        size_t n = strlen(rows[i].text);
        bool ok = route_uuid((struct str){guard_put(&guard, rows[i].text, n), n}, out);
        assert_int_equal(ok, rows[i].want != NULL);
        if (ok)
            assert_string_equal(out, rows[i].want);
    }
}

static void undoes_percent_encoding(void **state)
{
    static const struct {
        const char *text, *want;
    } rows[] = {{"", ""},         {"plain", "plain"}, {"a%20b", "a b"}, {"%C3%a9", "\xc3\xa9"},
                {"a+b", "a+b"},   {"%", "%"},         {"%2", "%2"},     {"%zz", "%zz"},
                {"%2%20", "%2 "}, {"%%41", "%A"},     {"a%2Fb", "a/b"}, {"%2520", "%20"}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char out[16];
        size_t n = strlen(rows[i].text);
        size_t got = route_decode((struct str){guard_put(&guard, rows[i].text, n), n}, out);
        assert_int_equal(got, strlen(rows[i].want));
        assert_memory_equal(out, rows[i].want, got);
    }
}

static void reads_uuids_of_segments(void **state)
{
    static const char want[] = "0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11";
    static const char *const good[] = {"0B1F3C1E-5AD5-4A7B-9D0C-5A8F6C2F1B11",
                                       "0b1f3c1e5ad54a7b9d0c5a8f6c2f1b11",
                                       "%30b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11",
                                       "{0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11}",
                                       "%7b0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11%7D",
                                       "urn:uuid:0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11"};
    static const char *const bad[] = {"",
                                      "{",
                                      "name",
                                      "{0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11",
                                      "urn:uuid:",
                                      "%%30b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11",
                                      "urn:uuid:{0b1f3c1e-5ad5-4a7b-9d0c-5a8f6c2f1b11}"};
    char out[37], all[4 * 36 + 1] = "";
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        assert_true(route_segment_uuid(str_from(good[i]), out));
        assert_string_equal(out, want);
    }
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_false(route_segment_uuid(str_from(bad[i]), out));
    for (unsigned i = 0; i < 36; i++) /* every byte encoded */
        snprintf(all + 3 * i, 4, "%%%02x", want[i]);
    assert_true(route_segment_uuid(str_from(all), out));
    assert_string_equal(out, want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knows_every_route),
        cmocka_unit_test(head_is_get),
        cmocka_unit_test(options_passes_but_not_to_our_own_paths),
        cmocka_unit_test(says_which_methods_a_path_takes),
        cmocka_unit_test(passes_no_unknown_method),
        cmocka_unit_test(refuses_what_only_looks_like_a_route),
        cmocka_unit_test(looks_at_no_byte_behind_a_path),
        cmocka_unit_test(reads_uuids_in_every_spelling),
        cmocka_unit_test(undoes_percent_encoding),
        cmocka_unit_test(reads_uuids_of_segments),
    };
    guard = guard_new(1 << 12);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&guard);
    return failed;
}
