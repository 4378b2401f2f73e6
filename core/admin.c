/* admin.c: C takes the figures from their owners as one plain table; lua/lb/status.lua makes the
 * documents of it. Metrics are text and written here. */
#include "admin.h"

#include "api.h"
#include "engine.h"
#include "fleet.h"
#include "metrics.h"
#include "policy.h"
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

static const struct config *cfg;
static double started;
static char *reload_error;

void admin_start(const struct config *c, double at)
{
    cfg = c;
    started = at;
}

void admin_reload(const struct config *c)
{
    cfg = c;
}

void admin_reload_error(const char *text)
{
    free(reload_error);
    reload_error = *text ? base_strdup(text) : NULL;
}

/* ---- the snapshot ---- */

static void set_number(lua_State *L, const char *key, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, key);
}

/* Messages may quote a policy or a file in any encoding; JSON is UTF-8. */
static void set_text(lua_State *L, const char *key, const char *v)
{
    struct buf clean;
    buf_init(&clean, 4u << 20);
    buf_put_utf8(&clean, str_from(v));
    lua_pushlstring(L, buf_len(&clean) ? buf_data(&clean) : "", buf_len(&clean));
    buf_fini(&clean);
    lua_setfield(L, -2, key);
}

static void set_bool(lua_State *L, const char *key, bool v)
{
    lua_pushboolean(L, v);
    lua_setfield(L, -2, key);
}

static void push_history(lua_State *L, const struct history *h, double now)
{
    lua_newtable(L);
    set_number(L, "fails", h->fails);
    set_number(L, "passes", h->passes);
    set_number(L, "connect_fails", h->connect_fails);
    set_number(L, "timeouts", h->timeouts);
    set_number(L, "resets", h->resets);
    set_number(L, "errors_5xx", h->errors_5xx);
    set_number(L, "busy_seconds", h->busy_since > 0 ? now - h->busy_since : 0);
    set_text(L, "last_error", h->last_error);
}

static void push_collections(lua_State *L, const struct node *n, double now)
{
    int i = 0;
    lua_newtable(L);
    for (const struct collection_state *c = n->collections; c; c = c->next) {
        if (c->health == NODE_UP)
            continue;
        lua_newtable(L);
        set_text(L, "id", c->id);
        set_text(L, "path", c->path);
        set_text(L, "state", fleet_health_name(c->health));
        set_number(L, "for_seconds", now - c->since);
        push_history(L, &c->history, now);
        lua_setfield(L, -2, "history");
        lua_rawseti(L, -2, ++i);
    }
}

static void push_node(lua_State *L, const struct node *n, double now)
{
    static const char *const classes[] = {"other", "1xx", "2xx", "3xx", "4xx", "5xx"};
    lua_newtable(L);
    set_text(L, "name", n->name);
    set_text(L, "url", n->url);
    set_text(L, "role", n->role == CONFIG_PRIMARY ? "primary" : "replica");
    set_text(L, "state", fleet_health_name(n->health));
    set_text(L, "admin", fleet_admin_name(n->admin));
    set_bool(L, "resolved", n->addr_len > 0);
    set_number(L, "priority", (double)n->priority);
    set_number(L, "weight", (double)n->weight);
    set_number(L, "effective_weight", fleet_weight(n, now, cfg->slow_start));
    set_number(L, "maxconn", (double)n->maxconn);
    set_number(L, "for_seconds", now - n->since);
    set_number(L, "inflight", n->inflight);
    set_number(L, "queued", n->queued);
    set_number(L, "connections_open", pool_open(n));
    set_number(L, "connections_idle", pool_idle(n));
    set_number(L, "requests", (double)n->requests);
    set_number(L, "failures", (double)n->failures);
    set_number(L, "probes", (double)n->probes);
    set_number(L, "probe_fails", (double)n->probe_fails);
    set_number(L, "probe_ms", n->probe_ms);
    set_number(L, "ewma_ms", n->ewma_ms);
    set_number(L, "p50_ms", histo_quantile(&n->latency, 0.5) * 1000);
    set_number(L, "p90_ms", histo_quantile(&n->latency, 0.9) * 1000);
    set_number(L, "p99_ms", histo_quantile(&n->latency, 0.99) * 1000);
    set_number(L, "last_check", n->last_check);
    set_number(L, "last_failure", n->last_failure);
    push_history(L, &n->history, now);
    lua_setfield(L, -2, "history");
    push_collections(L, n, now);
    lua_setfield(L, -2, "collections");
    lua_newtable(L);
    for (unsigned i = 1; i < COUNT_OF(classes); i++)
        set_number(L, classes[i], (double)n->answers[i]);
    lua_setfield(L, -2, "answers");
}

static void push_policy(lua_State *L, enum policy_id id)
{
    const struct policy_stats *s = policy_stats(id);
    lua_newtable(L);
    set_text(L, "file", policy_file(id));
    set_number(L, "calls", (double)s->calls);
    set_number(L, "fallbacks", (double)s->fallbacks);
    set_bool(L, "tripped", s->tripped);
    set_bool(L, "missing", s->missing);
    set_text(L, "last_error", s->last_error);
    set_number(L, "last_error_at", s->last_error_at);
    lua_newtable(L);
    for (unsigned f = 0; f < POLICY_FAIL_COUNT; f++)
        set_number(L, policy_failure_name((enum policy_failure)f), (double)s->failures[f]);
    lua_setfield(L, -2, "failures");
}

static void push_processes(lua_State *L)
{
    lua_newtable(L);
    for (unsigned i = 0; i < roster_count; i++) {
        const struct roster_row *p = roster_row(i);
        lua_newtable(L);
        set_text(L, "role", role_name(p->role));
        set_number(L, "index", p->index);
        set_number(L, "pid", p->pid);
        set_text(L, "state", roster_state_name(p->state));
        set_number(L, "restarts", p->restarts);
        set_number(L, "started_at", p->started_at);
        set_text(L, "last_exit", p->last_exit);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static void push_snapshot(lua_State *L)
{
    double now = base_clock();
    lua_newtable(L);
    set_number(L, "now", ev_time());
    set_number(L, "started", started);
    set_text(L, "version", CHROMUX_VERSION);
    set_bool(L, "draining", session_shared.stopping);
    set_text(L, "reload_error", reload_error ? reload_error : "");
    set_text(L, "strategy", cfg->strategy);
    set_text(L, "unreplicated_reads", cfg->unreplicated_reads);
    set_bool(L, "database", *cfg->database_url != 0);
    set_number(L, "check_interval", cfg->check_interval);
    set_number(L, "failure_threshold", (double)cfg->failure_threshold);
    set_number(L, "request_timeout", cfg->request_timeout);
    set_number(L, "total_requests", (double)metrics_counter[METRIC_REQUESTS]);
    set_number(L, "proxied_requests", (double)metrics_counter[METRIC_PROXIED]);
    set_number(L, "retries", (double)metrics_counter[METRIC_RETRIES]);
    set_number(L, "retries_denied", (double)metrics_counter[METRIC_RETRIES_DENIED]);
    set_number(L, "stale_retries", (double)metrics_counter[METRIC_STALE_RETRIES]);
    set_number(L, "reloads", (double)metrics_counter[METRIC_RELOADS]);
    set_number(L, "reloads_failed", (double)metrics_counter[METRIC_RELOADS_FAILED]);
    set_number(L, "clients", (double)metrics_gauge[GAUGE_CLIENTS]);
    set_number(L, "active", (double)metrics_gauge[GAUGE_ACTIVE]);
    set_number(L, "queued", (double)metrics_gauge[GAUGE_QUEUED]);
    set_number(L, "policy_generation", policy_generation());
    set_number(L, "policy_loaded_at", policy_loaded_at());
    set_text(L, "policy_load_error", policy_load_error());
    set_number(L, "policy_memory", (double)policy_memory());
    lua_newtable(L);
    for (unsigned i = 0; i < fleet_count; i++) {
        push_node(L, fleet_node[i], now);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "nodes");
    lua_newtable(L);
    for (enum policy_id id = 0; id < POLICY_COUNT; id++) {
        push_policy(L, id);
        lua_setfield(L, -2, policy_name(id));
    }
    lua_setfield(L, -2, "policies");
    push_processes(L);
    lua_setfield(L, -2, "processes");
    lua_newtable(L);
    for (unsigned i = END_NONE + 1; i < END_COUNT; i++)
        set_number(L, end_name((enum end_reason)i), (double)metrics_end[i]);
    lua_setfield(L, -2, "ends");
}

/* What a module says of itself, where it runs: a field of the snapshot. */
static void push_module(lua_State *L, const char *module, const char *field)
{
    if (module && api_call(module, "status", 0))
        lua_setfield(L, -2, field);
}

static void answer_document(struct request *r, const char *function, int status)
{
    lua_State *L = api_vm();
    push_snapshot(L);
    push_module(L, session_shared.journal ? "lb.journal" : NULL, "journal");
    push_module(L, session_shared.journal ? "lb.sync_view" : NULL, "sync");
    push_module(L, session_shared.journal ? "lb.resources" : NULL, "resources");
    push_module(L, engine_module(), "notify");
    if (!api_call("lb.status", function, 1)) {
        request_error(r, END_INTERNAL, "this page could not be made; see the error log");
        return;
    }
    struct str text = {NULL, 0};
    text.p = lua_tolstring(L, -1, &text.n);
    /* request_answer copies what the socket does not take, so the string may go afterwards. */
    request_answer(r, status, "application/json", text, "Cache-Control: no-store\r\n", END_LOCAL);
    lua_pop(L, 1);
}

/* ---- metrics ---- */

typedef double node_figure(const struct node *n);
static double f_up(const struct node *n)
{
    return n->health == NODE_UP;
}
static double f_inflight(const struct node *n)
{
    return n->inflight;
}
static double f_queued(const struct node *n)
{
    return n->queued;
}
static double f_idle(const struct node *n)
{
    return pool_idle(n);
}
static double f_open(const struct node *n)
{
    return pool_open(n);
}
static double f_requests(const struct node *n)
{
    return (double)n->requests;
}
static double f_failures(const struct node *n)
{
    return (double)n->failures;
}
static double f_probes(const struct node *n)
{
    return (double)n->probes;
}
static double f_probe_fails(const struct node *n)
{
    return (double)n->probe_fails;
}
static double f_probe_seconds(const struct node *n)
{
    return n->probe_ms / 1000;
}
static double f_bad_collections(const struct node *n)
{
    double bad = 0;
    for (const struct collection_state *c = n->collections; c; c = c->next)
        bad += c->health != NODE_UP;
    return bad;
}

static const struct {
    const char *name, *type, *help;
    node_figure *figure;
} node_figures[] = {
    {"chromux_instance_up", "gauge", "1 while the instance is up.", f_up},
    {"chromux_instance_requests_active", "gauge", "Requests on the instance.", f_inflight},
    {"chromux_instance_requests_queued", "gauge", "Requests waiting for the instance.", f_queued},
    {"chromux_instance_connections_idle", "gauge", "Kept connections.", f_idle},
    {"chromux_instance_connections_open", "gauge", "Open connections, kept ones included.", f_open},
    {"chromux_instance_requests_total", "counter", "Requests sent to the instance.", f_requests},
    {"chromux_instance_failures_total", "counter", "Tries that ended without an answer.",
     f_failures},
    {"chromux_instance_probes_total", "counter", "Health probes ended.", f_probes},
    {"chromux_instance_probe_failures_total", "counter", "Health probes that failed.",
     f_probe_fails},
    {"chromux_instance_probe_seconds", "gauge", "Duration of the last good probe.",
     f_probe_seconds},
    {"chromux_instance_collections_unhealthy", "gauge", "Collections that are not up on it.",
     f_bad_collections},
};

static void put_label(struct buf *out, const struct node *n, const char *more)
{
    buf_puts(out, "instance=\"");
    metrics_put_label(out, str_from(n->name));
    buf_printf(out, "\"%s", more);
}

static void put_nodes(struct buf *out)
{
    char value[64];
    for (unsigned f = 0; f < COUNT_OF(node_figures); f++) {
        metrics_put_header(out, node_figures[f].name, node_figures[f].type, node_figures[f].help);
        for (unsigned i = 0; i < fleet_count; i++) {
            buf_printf(out, "%s{", node_figures[f].name);
            put_label(out, fleet_node[i], "");
            snprintf(value, sizeof value, "} %.15g\n", node_figures[f].figure(fleet_node[i]));
            buf_puts(out, value);
        }
    }
    metrics_put_header(out, "chromux_instance_answers_total", "counter",
                       "Answers by status class.");
    for (unsigned i = 0; i < fleet_count; i++)
        for (unsigned k = 1; k <= 5; k++) {
            char more[32];
            snprintf(more, sizeof more, ",class=\"%uxx\"", k);
            buf_puts(out, "chromux_instance_answers_total{");
            put_label(out, fleet_node[i], more);
            buf_printf(out, "} %llu\n", (unsigned long long)fleet_node[i]->answers[k]);
        }
    const char *name = "chromux_instance_first_byte_seconds";
    metrics_put_header(out, name, "histogram",
                       "Time from sending a request to its first answer byte.");
    for (unsigned i = 0; i < fleet_count; i++) {
        struct buf label;
        buf_init(&label, 4096);
        put_label(&label, fleet_node[i], "");
        buf_put(&label, "", 1);
        metrics_put_histo(out, name, label.mem, &fleet_node[i]->latency);
        buf_fini(&label);
    }
}

static void put_policies(struct buf *out)
{
    metrics_put_header(out, "chromux_policy_calls_total", "counter", "Calls of a Lua policy.");
    for (unsigned p = 0; p < POLICY_COUNT; p++)
        buf_printf(out, "chromux_policy_calls_total{policy=\"%s\"} %llu\n",
                   policy_name((enum policy_id)p),
                   (unsigned long long)policy_stats((enum policy_id)p)->calls);
    metrics_put_header(out, "chromux_policy_fallbacks_total", "counter",
                       "Decisions made by what is built in.");
    for (unsigned p = 0; p < POLICY_COUNT; p++)
        buf_printf(out, "chromux_policy_fallbacks_total{policy=\"%s\"} %llu\n",
                   policy_name((enum policy_id)p),
                   (unsigned long long)policy_stats((enum policy_id)p)->fallbacks);
    metrics_put_header(out, "chromux_policy_failures_total", "counter", "Failed calls by kind.");
    for (unsigned p = 0; p < POLICY_COUNT; p++)
        for (unsigned f = 0; f < POLICY_FAIL_COUNT; f++)
            buf_printf(out, "chromux_policy_failures_total{policy=\"%s\",kind=\"%s\"} %llu\n",
                       policy_name((enum policy_id)p), policy_failure_name((enum policy_failure)f),
                       (unsigned long long)policy_stats((enum policy_id)p)->failures[f]);
    metrics_put_header(out, "chromux_policy_tripped", "gauge",
                       "1 while the policy is replaced by its fallback.");
    for (unsigned p = 0; p < POLICY_COUNT; p++)
        buf_printf(out, "chromux_policy_tripped{policy=\"%s\"} %d\n",
                   policy_name((enum policy_id)p), policy_stats((enum policy_id)p)->tripped);
}

/* A text of a row, in the VM's memory; "" when it has none. */
static const char *row_text(lua_State *L, const char *key)
{
    lua_getfield(L, -1, key);
    const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
    lua_pop(L, 1); /* the row holds it */
    return text;
}

static void put_processes(struct buf *out)
{
    static const char *const names[] = {"chromux_process_up", "chromux_process_restarts_total"};
    static const char *const help[] = {"1 while the process does its work.",
                                       "Starts of the process after its first."};
    for (unsigned k = 0; k < COUNT_OF(names); k++) {
        metrics_put_header(out, names[k], k ? "counter" : "gauge", help[k]);
        for (unsigned i = 0; i < roster_count; i++) {
            const struct roster_row *p = roster_row(i);
            buf_printf(out, "%s{role=\"%s\",index=\"%u\"} %u\n", names[k], role_name(p->role),
                       p->index, k ? p->restarts : p->state == ROSTER_UP);
        }
    }
}

/* Of a module: {{name=, help=, type=, value=, labels=}, …}: rows of one name follow each other, and
 * the first has the help. labels: as `instance="a"`, or nil. */
static void put_module(struct buf *out, const char *module)
{
    lua_State *L = api_vm();
    char value[64];
    if (!module || !api_call(module, "metrics", 0))
        return;
    for (int i = 1; lua_istable(L, -1); i++) {
        lua_rawgeti(L, -1, i);
        if (!lua_istable(L, -1)) {
            lua_pop(L, 1);
            break;
        }
        const char *name = row_text(L, "name"), *help = row_text(L, "help");
        const char *type = row_text(L, "type"), *labels = row_text(L, "labels");
        if (*help)
            metrics_put_header(out, name, *type ? type : "gauge", help);
        lua_getfield(L, -1, "value");
        snprintf(value, sizeof value, "%.15g", lua_tonumber(L, -1));
        buf_printf(out, *labels ? "%s{%s} %s\n" : "%s%s %s\n", name, labels, value);
        lua_pop(L, 2);
    }
    lua_pop(L, 1);
}

static void answer_metrics(struct request *r)
{
    struct buf out;
    struct rusage use;
    buf_init(&out, 16u << 20);
    gauge_set(POLICY_GENERATION, policy_generation());
    metrics_put_all(&out);
    put_nodes(&out);
    put_policies(&out);
    put_processes(&out);
    put_module(&out, session_shared.journal ? "lb.journal" : NULL);
    put_module(&out, session_shared.journal ? "lb.sync_view" : NULL);
    put_module(&out, session_shared.journal ? "lb.resources" : NULL);
    put_module(&out, engine_module());
    metrics_put_header(&out, "chromux_info", "gauge", "The version that runs.");
    buf_printf(&out, "chromux_info{version=\"%s\"} 1\n", CHROMUX_VERSION);
    metrics_put_header(&out, "process_start_time_seconds", "gauge",
                       "Start of the process, unix time.");
    buf_printf(&out, "process_start_time_seconds %.3f\n", started);
    if (getrusage(RUSAGE_SELF, &use) == 0) {
        metrics_put_header(&out, "process_cpu_seconds_total", "counter", "CPU time used.");
        buf_printf(&out, "process_cpu_seconds_total %.6f\n",
                   (double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec +
                       (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
    }
    request_answer(r, 200, "text/plain; version=0.0.4; charset=utf-8",
                   (struct str){buf_data(&out), buf_len(&out)}, NULL, END_LOCAL);
    buf_fini(&out);
}

/* ---- the handler ---- */

static bool any_up(void)
{
    for (unsigned i = 0; i < fleet_count; i++)
        if (fleet_node[i]->health == NODE_UP)
            return true;
    return false;
}

static void start(struct request *r, struct http1_head *head)
{
    (void)head;
    switch (r->route.local) {
    case ROUTE_HEALTH:
        answer_document(r, "health", any_up() && !session_shared.stopping ? 200 : 503);
        break;
    case ROUTE_STATUS:
        answer_document(r, "status", 200);
        break;
    case ROUTE_METRICS:
        answer_metrics(r);
        break;
    case ROUTE_NOT_LOCAL:
        must(r->route.local != ROUTE_NOT_LOCAL);
    }
}

static void nothing(struct request *r)
{
    (void)r;
}

const struct handler admin_handler = {start, nothing, nothing, nothing, nothing};
