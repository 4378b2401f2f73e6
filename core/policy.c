/* policy.c: owns the policies that serve: which VM is live, what it has failed at, whether it is
 * tripped, and the fallbacks. A load builds a whole new VM beside the live one and tries it on
 * samples; only then the pointer is swapped. */
#include "policy.h"

#include "log.h"
#include "script.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Room for what a load can complain about. */
enum { MISTAKES_MAX = 65536 };

static const struct {
    const char *name, *file;
} policies[] = {
#define NAME_ROW(id, name, file, fn) {name, file},
    POLICIES(NAME_ROW)};

static struct verdict_vm *live;
static unsigned generation;
static double loaded_at;
static char load_error[2048];
static long failure_threshold = 3, success_threshold = 2;

static struct {
    struct policy_stats stats;
    double failed_at[POLICY_TRIP]; /* loop times, a ring */
    unsigned failed;
} state[POLICY_COUNT];

static double unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- failures ---- */

static void note_failure(enum policy_id id, const struct policy_fault *fault, double now)
{
    struct policy_stats *s = &state[id].stats;
    s->failures[fault->kind]++;
    s->last_error_at = unix_time();
    snprintf(s->last_error, sizeof s->last_error, "%s", fault->error);
    log_warn("policy_failed", "file=%s kind=%s error=%s", policy_file(id),
             policy_failure_name(fault->kind), log_quote(fault->error));
    state[id].failed_at[state[id].failed++ % POLICY_TRIP] = now;
    double oldest = state[id].failed_at[state[id].failed % POLICY_TRIP];
    if (state[id].failed >= POLICY_TRIP && now - oldest <= POLICY_TRIP_SECONDS) {
        s->tripped = true;
        log_error("policy_tripped", "file=%s failures=%d seconds=%d until=reload error=%s",
                  policy_file(id), POLICY_TRIP, POLICY_TRIP_SECONDS, log_quote(fault->error));
    }
}

/* ---- route ---- */

/* Least in flight, those not tried before first; the first of equals, which is the one of higher
 * priority. */
static void route_fallback(const struct policy_request *r, struct node *const *candidates,
                           unsigned count, struct policy_verdict *out)
{
    struct node *best = NULL;
    bool best_tried = false;
    for (unsigned i = 0; i < count; i++) {
        struct node *n = candidates[i];
        bool tried = r->tried >> n->id & 1;
        if (!best || (best_tried && !tried) ||
            (best_tried == tried && n->inflight + n->queued < best->inflight + best->queued)) {
            best = n;
            best_tried = tried;
        }
    }
    *out = (struct policy_verdict){
        .node = best, .reason = "fallback: least in flight", .max_behind = -1, .by_fallback = true};
}

void policy_route(const struct policy_request *r, struct node *const *candidates, unsigned count,
                  double now, struct policy_verdict *out)
{
    struct policy_stats *s = &state[POLICY_ROUTE].stats;
    struct policy_fault fault;
    if (count == 0) {
        *out = (struct policy_verdict){.reason = "no instance can serve", .max_behind = -1};
        return;
    }
    if (LIKELY(live && !s->tripped)) {
        s->calls++;
        if (LIKELY(verdict_route(live, r, candidates, count, now, out, &fault)))
            return;
        note_failure(POLICY_ROUTE, &fault, now);
    }
    s->fallbacks++;
    route_fallback(r, candidates, count, out);
}

/* ---- judge ---- */

static bool judge_fallback(const struct node *n, const struct collection_state *c, char *reason)
{
    const struct history *h = c ? &c->history : &n->history;
    bool up = (c ? c->health : n->health) != NODE_DOWN;
    unsigned bad = c && h->errors_5xx > h->fails ? h->errors_5xx : h->fails;
    if (up && bad >= (unsigned long)failure_threshold) {
        snprintf(reason, POLICY_REASON_MAX, "fallback: %u failures in a row", bad);
        return false;
    }
    if (!up && h->passes >= (unsigned long)success_threshold) {
        snprintf(reason, POLICY_REASON_MAX, "fallback: %u probes passed", h->passes);
        return true;
    }
    snprintf(reason, POLICY_REASON_MAX, "fallback: no change");
    return up;
}

bool policy_judge_up(const struct node *n, const struct collection_state *c, double now,
                     char *reason)
{
    struct policy_stats *s = &state[POLICY_FAILOVER].stats;
    struct policy_fault fault;
    bool up = false;
    if (live && !s->tripped) {
        s->calls++;
        if (verdict_judge(live, n, c, now, &up, reason, &fault))
            return up;
        note_failure(POLICY_FAILOVER, &fault, now);
    }
    s->fallbacks++;
    return judge_fallback(n, c, reason);
}

/* ---- plain values ---- */

bool policy_call(enum policy_id id, lua_State *L, int nargs, double now, const char **why)
{
    static char text[POLICY_ERROR_MAX + 64];
    struct policy_stats *s = &state[id].stats;
    struct policy_fault fault;
    *why = text;
    if (live && verdict_has(live, id) && !s->tripped) {
        s->calls++;
        if (verdict_call(live, id, L, nargs, now, &fault))
            return true;
        note_failure(id, &fault, now);
        snprintf(text, sizeof text, "%s: %s", policy_failure_name(fault.kind), fault.error);
    } else {
        snprintf(text, sizeof text, "%s is %s", policy_file(id),
                 !live        ? "not loaded"
                 : s->tripped ? "tripped until the next reload"
                              : "missing");
    }
    s->fallbacks++;
    return false;
}

enum policy_id policy_find(const char *name)
{
    enum policy_id id = POLICY_PLAIN;
    while (id < POLICY_COUNT && strcmp(policies[id].name, name) != 0)
        id++;
    return id;
}

/* ---- samples: a policy is tried before it serves ---- */

enum { SAMPLE_NODES = 3 };

struct samples {
    struct node node[FLEET_MAX];
    unsigned count;
    double now;
    struct verdict_vm *vm;
    struct buf *errors;
    unsigned chosen; /* answers of route() that were not `nil, reason` */
};

/* The sample nodes have the names, roles and weights of the instances that are configured, filled
 * up to three, so that a policy that knows them by name meets them. */
static void fill_nodes(struct samples *s, const struct config *c)
{
    static const char *const spare[SAMPLE_NODES] = {"sample-1", "sample-2", "sample-3"};
    for (unsigned i = 0; i < c->instance_count && i < FLEET_MAX; i++) {
        const struct config_instance *in = &c->instance[i];
        s->node[s->count++] = (struct node){.name = in->name,
                                            .role = in->role,
                                            .priority = in->priority,
                                            .weight = in->weight,
                                            .maxconn = in->maxconn};
    }
    for (; s->count < SAMPLE_NODES; s->count++)
        s->node[s->count] = (struct node){.name = (char *)spare[s->count],
                                          .role = s->count ? CONFIG_REPLICA : CONFIG_PRIMARY,
                                          .priority = 100 - (long)s->count,
                                          .weight = 1};
    for (unsigned i = 0; i < s->count; i++) {
        struct node *n = &s->node[i];
        n->id = i;
        n->health = NODE_UP;
        n->ewma_ms = i * 1.5;
        n->ewma_at = s->now;
        n->inflight = i;
        n->syncing = i == 1;
    }
}

static bool complain(struct samples *s, const char *what, const struct policy_fault *fault)
{
    char line[POLICY_ERROR_MAX + 200];
    int n = snprintf(line, sizeof line, "%s (%s, tried on a sample: %s)\n", fault->error,
                     policy_failure_name(fault->kind), what);
    if (n > 0 && buf_room(s->errors) >= (size_t)n)
        buf_put(s->errors, line, (size_t)n);
    return false;
}

/* A policy may name any configured instance although it is not a candidate just then: at run time
 * that costs a fallback, not the service. */
static bool names_configured(const struct samples *s, const char *error)
{
    for (unsigned i = 0; i < s->count; i++) {
        char quoted[CONFIG_NAME_MAX + 4];
        snprintf(quoted, sizeof quoted, "'%s'", s->node[i].name);
        if (strstr(error, quoted))
            return true;
    }
    return false;
}

static bool try_route(struct samples *s, const struct policy_request *r, struct node *const *nodes,
                      unsigned count)
{
    struct policy_verdict v;
    struct policy_fault fault;
    if (verdict_route(s->vm, r, nodes, count, s->now, &v, &fault)) {
        s->chosen += v.node != NULL;
        return true;
    }
    s->chosen++;
    if (fault.kind == POLICY_FAIL_UNKNOWN_NODE && names_configured(s, fault.error))
        return true;
    char what[160];
    snprintf(what, sizeof what, "%s, try %u, %u candidates", r->route->action, r->attempt, count);
    return complain(s, what, &fault);
}

static bool try_request(struct samples *s, const struct policy_request *r)
{
    struct node *nodes[FLEET_MAX];
    for (unsigned i = 0; i < s->count; i++)
        nodes[i] = &s->node[i];
    if (!try_route(s, r, nodes, s->count))
        return false;
    for (unsigned count = 1; count < SAMPLE_NODES; count++)
        for (unsigned from = 0; from + count <= SAMPLE_NODES; from++)
            if (!try_route(s, r, nodes + from, count))
                return false;
    return true;
}

static bool try_requests(struct samples *s)
{
    static const struct {
        enum http1_method method;
        const char *verb, *path;
    } requests[] = {
        {HTTP1_GET, "GET", "/api/v2/heartbeat"},
        {HTTP1_GET, "GET", "/api/v2/tenants/t/databases/d/collections"},
        {HTTP1_POST, "POST", "/api/v2/tenants/t/databases/d/collections"},
        {HTTP1_GET, "GET", "/api/v2/tenants/t/databases/d/collections/by-name"},
        {HTTP1_POST, "POST",
         "/api/v2/tenants/t/databases/d/collections/6f9619ff-8b86-4d01-b42d-00cf4fc964ff/query"},
        {HTTP1_POST, "POST",
         "/api/v2/tenants/t/databases/d/collections/6f9619ff-8b86-4d01-b42d-00cf4fc964ff/add"},
    };
    for (unsigned i = 0; i < COUNT_OF(requests); i++) {
        struct route route;
        char uuid[37] = "";
        route_match(requests[i].method, str_from(requests[i].path), &route);
        if (route.collection.n && !route.by_name && !route_uuid(route.collection, uuid))
            uuid[0] = 0;
        struct policy_request r = {
            .route = &route,
            .method = str_from(requests[i].verb),
            .client = STR("192.0.2.1"),
            .collection_id = uuid,
            .attempt = 1,
            .last_error = "",
            .bytes = 1000 * i,
            .session = STR("192.0.2.1"),
        };
        if (!try_request(s, &r))
            return false;
        r.attempt = 2;
        r.tried = 1;
        r.last_error = end_name(END_CONNECT_FAILED);
        if (!try_request(s, &r))
            return false;
    }
    return true;
}

static bool try_histories(struct samples *s)
{
    static const struct history histories[] = {
        {.passes = 1},
        {.fails = 1, .last_error = "connection refused"},
        {.fails = 100, .connect_fails = 100, .last_error = "connection refused"},
        {.passes = 100, .oks = 1000},
        {.timeouts = 3, .resets = 2, .errors_5xx = 7, .passes = 1},
        {.passes = 1, .busy_since = 1},
    };
    for (unsigned i = 0; i < COUNT_OF(histories); i++)
        for (unsigned health = NODE_UP; health <= NODE_DOWN; health++) {
            struct node *n = &s->node[0];
            struct collection_state c = {.id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
                                         .health = (enum node_health)health,
                                         .history = histories[i]};
            struct policy_fault fault;
            char reason[POLICY_REASON_MAX];
            bool up;
            n->history = histories[i];
            n->health = (enum node_health)health;
            if (!verdict_judge(s->vm, n, NULL, s->now, &up, reason, &fault))
                return complain(s, "an instance", &fault);
            if (!verdict_judge(s->vm, n, &c, s->now, &up, reason, &fault))
                return complain(s, "a collection", &fault);
        }
    return true;
}

static bool try_plain(struct samples *s, enum policy_id id)
{
    char label[VERDICT_LABEL_MAX] = "";
    struct policy_fault fault;
    bool more = true;
    for (unsigned i = 0; more; i++)
        if (!verdict_try(s->vm, id, i, s->now, &more, label, &fault))
            return complain(s, label, &fault);
    return true;
}

/* ---- loading ---- */

static bool try_samples(struct verdict_vm *vm, const struct config *c, struct buf *errors)
{
    struct samples *s = base_zalloc(sizeof *s);
    s->now = 1000;
    s->vm = vm;
    s->errors = errors;
    fill_nodes(s, c);
    bool good = try_requests(s);
    if (good && s->chosen == 0) {
        struct policy_fault none = {.kind = POLICY_FAIL_ANSWER};
        snprintf(none.error, sizeof none.error,
                 "%s/route.lua: chose no node for any request: all would be refused",
                 c->policy_dir);
        good = complain(s, "all of them", &none);
    }
    good = try_histories(s) && good;
    for (enum policy_id id = POLICY_PLAIN; id < POLICY_COUNT; id++)
        good = (!verdict_has(vm, id) || try_plain(s, id)) && good;
    verdict_forget(vm); /* the sample nodes are gone */
    free(s);
    return good;
}

/* The path of a question's file; NULL for a file that is allowed to be missing and is. */
static char *path_of(const struct config *c, enum policy_id id)
{
    char *path = base_printf("%s/%s", c->policy_dir, policies[id].file);
    if (id < POLICY_PLAIN || access(path, F_OK) == 0 || errno != ENOENT)
        return path;
    free(path);
    return NULL;
}

/* The VM that c describes, tried; or NULL and one line a mistake. */
static struct verdict_vm *build(const struct config *c, struct buf *errors)
{
    char *path[POLICY_COUNT];
    for (enum policy_id id = 0; id < POLICY_COUNT; id++)
        path[id] = path_of(c, id);
    struct verdict_vm *vm = verdict_vm_new(c, (const char *const *)path, errors);
    for (int id = 0; id < POLICY_COUNT; id++)
        free(path[id]);
    if (vm && !try_samples(vm, c, errors)) {
        verdict_vm_free(vm);
        return NULL;
    }
    return vm;
}

/* The files that vm lacks, as "a.lua,b.lua" in out; "" for none. */
static const char *list_missing(const struct verdict_vm *vm, char out[POLICY_MISSING_MAX])
{
    size_t at = 0, room = POLICY_MISSING_MAX;
    out[0] = 0;
    for (enum policy_id id = POLICY_PLAIN; id < POLICY_COUNT; id++) {
        bool seen = strcmp(policies[id].file, policies[id - 1].file) == 0;
        if (!seen && !verdict_has(vm, id))
            at += (size_t)snprintf(out + at, room - at, "%s%s", at ? "," : "", policies[id].file);
        must(at < room);
    }
    return out;
}

/* Files that nobody asks anything: said, since the operator may think otherwise. */
static void tell_ignored(const char *dir)
{
    DIR *d = opendir(dir);
    char names[512] = "";
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t n = strlen(e->d_name), at = strlen(names);
        bool ours = n < 4 || strcmp(e->d_name + n - 4, ".lua") != 0;
        for (int id = 0; id < POLICY_COUNT; id++)
            ours = ours || strcmp(e->d_name, policies[id].file) == 0;
        if (!ours)
            snprintf(names + at, sizeof names - at, "%s%s", at ? "," : "", e->d_name);
    }
    if (d)
        closedir(d);
    if (names[0])
        log_info("policy_ignored", "folder=%s files=%s", log_quote(dir), log_quote(names));
}

static void tell_missing(const char *dir)
{
    char names[POLICY_MISSING_MAX];
    if (*list_missing(live, names))
        log_warn("policy_missing", "folder=%s files=%s instead=fallback", log_quote(dir), names);
}

static void swap_in(struct verdict_vm *vm, const struct config *c)
{
    verdict_vm_free(live);
    live = vm;
    generation++;
    loaded_at = unix_time();
    load_error[0] = 0;
    failure_threshold = c->failure_threshold;
    success_threshold = c->success_threshold;
    for (enum policy_id id = 0; id < POLICY_COUNT; id++) {
        state[id].stats.missing = !verdict_has(vm, id);
        state[id].stats.tripped = false;
        state[id].stats.last_error[0] = 0;
        state[id].stats.last_error_at = 0;
        state[id].failed = 0;
    }
    gauge_set(POLICY_GENERATION, generation);
}

bool policy_load(const struct config *c, struct buf *error)
{
    struct buf mistakes;
    buf_init(&mistakes, MISTAKES_MAX);
    struct verdict_vm *vm = build(c, &mistakes);
    if (vm) {
        swap_in(vm, c);
        tell_ignored(c->policy_dir);
        tell_missing(c->policy_dir);
    } else {
        size_t n = buf_len(&mistakes) < buf_room(error) ? buf_len(&mistakes) : buf_room(error);
        buf_put(error, buf_data(&mistakes), n);
        while (n > 0 && buf_data(&mistakes)[n - 1] == '\n')
            n--;
        snprintf(load_error, sizeof load_error, "%.*s", (int)n, buf_data(&mistakes));
    }
    buf_fini(&mistakes);
    return vm != NULL;
}

bool policy_check(const struct config *c, struct buf *error, char missing[POLICY_MISSING_MAX])
{
    struct verdict_vm *vm = build(c, error);
    if (vm)
        (void)list_missing(vm, missing);
    verdict_vm_free(vm);
    return vm != NULL;
}

void policy_unload(void)
{
    verdict_vm_free(live);
    live = NULL;
}

/* ---- what others read ---- */

unsigned policy_generation(void)
{
    return generation;
}

double policy_loaded_at(void)
{
    return loaded_at;
}

const struct policy_stats *policy_stats(enum policy_id id)
{
    return &state[id].stats;
}

const char *policy_name(enum policy_id id)
{
    return policies[id].name;
}

const char *policy_file(enum policy_id id)
{
    return policies[id].file;
}

const char *policy_failure_name(enum policy_failure f)
{
#define FAILURE_NAME(id, name) name,
    static const char *const names[] = {POLICY_FAILURES(FAILURE_NAME)};
    return names[f];
}

const char *policy_load_error(void)
{
    return load_error;
}

size_t policy_memory(void)
{
    return live ? verdict_vm_memory(live) : 0;
}
