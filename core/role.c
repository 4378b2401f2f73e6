/* role.c: starts what a role needs, in the order of the modules, and takes it down again. */
#include "role.h"

#include "access.h"
#include "admin.h"
#include "api_copies.h"
#include "api_courier.h"
#include "api_policy.h"
#include "api_records.h"
#include "api_route.h"
#include "api_slice.h"
#include "api_usage.h"
#include "courier.h"
#include "engine.h"
#include "journal.h"
#include "listener.h"
#include "log.h"
#include "policy.h"
#include "pool.h"
#include "probe.h"
#include "proxy.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static enum role role;
static bool supervised;
static const struct settings_sources *sources; /* read again at each HUP */
static struct config *cfg;
static struct dns *dns;
static struct ev_loop *loop;
static ev_timer drain_poll;
static double drain_until;
static int stopped_by;

/* ---- reload ---- */

void role_apply_log(const struct config *c)
{
    enum log_level level = LOG_INFO;
    if (log_level_from(c->log_level, &level))
        log_set_level(level);
    access_set_json(strcmp(c->log_format, "json") == 0);
}

#define KEEP_INT(f)     next->f = was->f;
#define KEEP_BYTES(f)   KEEP_INT(f)
#define KEEP_SECONDS(f) KEEP_INT(f)
#define KEEP_BOOL(f)    KEEP_INT(f)
#define KEEP_TEXT(f)                                                                               \
    free(next->f);                                                                                 \
    next->f = base_strdup(was->f);
#define KEEP_SECRET(f) KEEP_TEXT(f)
#define KEEP(f, NAME, type, def, lo, hi, reloadable, doc)                                          \
    if (!(reloadable)) {                                                                           \
        KEEP_##type(f)                                                                             \
    }
void role_keep_unreloadable(struct config *next, const struct config *was)
{
    SETTINGS(KEEP)
}

/* Nodes that the new configuration lacks finish what they have and go. */
static void apply_instances(const struct config *c)
{
    struct node *was[FLEET_MAX];
    unsigned n = fleet_count;
    for (unsigned i = 0; i < n; i++) {
        was[i] = fleet_node[i];
        fleet_hold(was[i]);
    }
    fleet_configure(c, base_clock());
    for (unsigned i = 0; i < n; i++) {
        if (was[i]->removed) {
            pool_retire(was[i]);
            courier_retire(was[i]);
        }
        fleet_release(&was[i]);
    }
}

static void reload_failed(struct buf *errors)
{
    metrics_inc(RELOADS_FAILED);
    buf_put(errors, "", 1);
    char *text = errors->mem + errors->head;
    size_t n = strlen(text);
    while (n > 0 && text[n - 1] == '\n')
        text[--n] = 0;
    log_error("reload_failed", "kept=old error=%s", log_quote(text));
    admin_reload_error(text);
}

/* Everything new is made and tried beside the old; only when all of it is good is it swapped in. */
static void reload(void)
{
    struct buf errors, names;
    buf_init(&errors, 1u << 20);
    buf_init(&names, 65536);
    metrics_inc(RELOADS);
    struct config *next = settings_load(sources, &errors);
    if (next) {
        config_unreloadable(cfg, next, &names);
        role_keep_unreloadable(next, cfg);
    }
    if (!next || !policy_load(next, &errors)) {
        reload_failed(&errors);
        if (next)
            config_free(next);
    } else {
        struct config *old = cfg;
        cfg = next;
        session_shared.cfg = next;
        pool_reload(next);
        courier_reload(next);
        proxy_reload(next);
        probe_reload(next);
        admin_reload(next);
        role_apply_log(next);
        apply_instances(next);
        journal_reload(next);
        engine_reload(next);
        config_free(old);
        admin_reload_error("");
        if (buf_len(&names))
            log_warn("restart_needed", "settings=%s",
                     log_quote_str((struct str){buf_data(&names), buf_len(&names)}));
        log_info("reloaded", "generation=%u instances=%u", policy_generation(), fleet_count);
    }
    buf_fini(&errors);
    buf_fini(&names);
}

/* ---- signals ---- */

/* Each is told, however long another takes. */
static bool all_finished(void)
{
    bool journal = journal_finished(), engine = engine_finished();
    return journal && engine;
}

static void on_drain_poll(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)w;
    (void)revents;
    if (session_shared.count + session_shared.local_count == 0 && all_finished())
        ev_break(l, EVBREAK_ALL);
    else if (base_clock() >= drain_until) {
        log_warn("drain_timeout", "connections=%u", session_shared.count);
        ev_break(l, EVBREAK_ALL);
    }
}

/* A signal for all of a terminal's or a cgroup's processes reaches a supervised one twice. */
static void on_stop(struct ev_loop *l, ev_signal *w, int revents)
{
    (void)revents;
    if (stopped_by && supervised && w->signum != ROLE_STOP_NOW)
        return;
    if (stopped_by || w->signum == ROLE_STOP_NOW) {
        log_warn("stopped_at_once", "connections=%u", session_shared.count);
        ev_break(l, EVBREAK_ALL);
        return;
    }
    stopped_by = w->signum;
    drain_until = base_clock() + cfg->drain_timeout;
    log_info("draining", "connections=%u timeout=%g", session_shared.count, cfg->drain_timeout);
    listener_close_all();
    session_drain_all();
    ev_timer_init(&drain_poll, on_drain_poll, 0, 0.02);
    ev_timer_start(l, &drain_poll);
}

static void on_hup(struct ev_loop *l, ev_signal *w, int revents)
{
    (void)l;
    (void)w;
    (void)revents;
    reload();
}

static void on_usr1(struct ev_loop *l, ev_signal *w, int revents)
{
    (void)l;
    (void)w;
    (void)revents;
    access_reopen();
}

static void watch_signals(void)
{
    static ev_signal term, intr, hup, usr1, now;
    sigset_t taken;
    sigemptyset(&taken);
    ev_signal_init(&term, on_stop, SIGTERM);
    ev_signal_init(&intr, on_stop, SIGINT);
    ev_signal_init(&hup, on_hup, SIGHUP);
    ev_signal_init(&usr1, on_usr1, SIGUSR1);
    ev_signal_start(loop, &term);
    ev_signal_start(loop, &intr);
    ev_signal_start(loop, &hup);
    ev_signal_start(loop, &usr1);
    ev_signal_init(&now, on_stop, ROLE_STOP_NOW);
    if (supervised)
        ev_signal_start(loop, &now);
    static const int blocked[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1}; /* by a supervisor */
    for (unsigned i = 0; i < COUNT_OF(blocked); i++)
        sigaddset(&taken, blocked[i]);
    sigprocmask(SIG_UNBLOCK, &taken, NULL);
}

/* ---- start and stop ---- */

static void on_beat(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)l;
    (void)w;
    (void)revents;
    roster_beat();
}

/* What a supervisor tells a loop that turns from one that stands still by. */
static void keep_beating(void)
{
    static ev_timer beat;
    double every = cfg->lease_timeout / 8;
    ev_timer_init(&beat, on_beat, 0, every > 0.25 ? 0.25 : every);
    if (supervised)
        ev_timer_start(loop, &beat);
}

/* As many descriptors as we may have; a limit too low for the settings is said at the start. */
static void raise_descriptor_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) != 0)
        return;
    l.rlim_cur = l.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &l) != 0)
        (void)getrlimit(RLIMIT_NOFILE, &l);
    rlim_t want = (role == ROLE_BALANCER ? (rlim_t)cfg->max_clients : 0) + 64;
    for (unsigned i = 0; i < cfg->instance_count; i++)
        want += (rlim_t)cfg->instance[i].maxconn + (rlim_t)cfg->upstream_max_idle;
    if (want > l.rlim_cur)
        log_warn("few_descriptors", "limit=%llu wanted=%llu advice=%s",
                 (unsigned long long)l.rlim_cur, (unsigned long long)want,
                 log_quote("raise ulimit -n or lower MAX_CLIENTS"));
}

/* One datagram to NOTIFY_SOCKET. */
void role_tell_systemd(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof to.sun_path)
        return;
    memcpy(to.sun_path, path, strlen(path));
    if (path[0] == '@')
        to.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (sendto(fd, state, strlen(state), 0, (struct sockaddr *)&to, len) < 0)
        log_warn("notify_failed", "error=%s", log_quote(strerror(errno)));
    close(fd);
}

/* Why this path can't be opened for appending, or NULL; nothing is opened and nothing made. */
static const char *not_appendable(const char *path)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    char *folder = slash ? base_printf("%.*s/", (int)(slash - path), path) : base_strdup(".");
    bool there = stat(path, &st) == 0, ok = there || errno == ENOENT;
    if (there && S_ISDIR(st.st_mode)) {
        errno = EISDIR;
        ok = false;
    } else if (ok) {
        ok = there ? faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0
                   : (!slash || slash[1]) &&
                         faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0;
    }
    const char *why = ok ? NULL : strerror(errno);
    free(folder);
    return why;
}

/* What only the start would notice otherwise. */
static bool check_access_log(const struct config *c, struct buf *errors)
{
    const char *path = c->access_log, *why;
    if (!*path || strcmp(path, "off") == 0 || strcmp(path, "-") == 0 ||
        !(why = not_appendable(path)))
        return true;
    char *text = base_printf("expected off, - or a file that can be written (%s)", why);
    config_complain(c, "ACCESS_LOG", text, errors);
    free(text);
    return false;
}

static bool open_listeners(struct buf *errors)
{
    if (!listener_open(cfg->listen_address, (int)cfg->port, false, errors))
        return false;
    return !*cfg->admin_port ||
           listener_open(cfg->listen_address, atoi(cfg->admin_port), true, errors);
}

bool role_check(enum role r, const struct config *c, struct buf *errors)
{
    bool fine = r != ROLE_BALANCER || check_access_log(c, errors);
    char text[160];
    if (r == ROLE_BALANCER && c->sync_distributed && !*c->database_url) {
        config_complain(c, "SYNC_DISTRIBUTED",
                        "expected DATABASE_URL beside it: without one nothing is replicated",
                        errors);
        fine = false;
    }
    if (r != ROLE_BALANCER && !*c->database_url) {
        snprintf(text, sizeof text,
                 "expected the address of PostgreSQL, without which a %s has nothing to do",
                 role_name(r));
        config_complain(c, "DATABASE_URL", text, errors);
        fine = false;
    }
    if (r == ROLE_WORKER && c->sync_coordinator) {
        config_complain(
            c, "SYNC_COORDINATOR",
            "expected --role coordinator, not --role worker: a coordinator takes no tasks", errors);
        fine = false;
    }
    return fine;
}

static bool start_access_log(struct buf *errors)
{
    if (access_start(loop, cfg->access_log, strcmp(cfg->log_format, "json") == 0))
        return true;
    config_complain(cfg, "ACCESS_LOG", strerror(errno), errors);
    return false;
}

/* What every role has. */
static bool start_common(struct buf *errors)
{
    const char *why = NULL;
    dns = dns_new(loop, cfg->dns_servers, &why);
    if (!dns) {
        config_complain(cfg, "DNS_SERVERS", why, errors);
        return false;
    }
    if (!api_start(loop, cfg->database_url, errors))
        return false;
    api_slice_open(api_vm());
    api_records_open(api_vm());
    api_route_open(api_vm());
    api_policy_open(api_vm());
    api_courier_open();
    session_shared.cfg = cfg;
    pool_start(cfg, dns);
    proxy_start(cfg);
    probe_start(cfg);
    admin_start(cfg, ev_time());
    fleet_configure(cfg, base_clock());
    api_copies_open(api_vm());
    api_usage_open(api_vm());
    if (*cfg->database_url)
        courier_start(cfg);
    return true;
}

/* The journal, and what is seen of servers' resources beside it. */
static bool start_keeping(struct buf *errors)
{
    if (!journal_start(cfg, errors))
        return false;
    static const char *const views[] = {"lb.sync_view", "lb.sync_clients", "lb.resources"};
    for (unsigned i = 0; i < COUNT_OF(views); i++) {
        if (!api_call(views[i], "start", 0)) {
            buf_printf(errors, "%s can't be started; see the error log\n", views[i]);
            return false;
        }
        lua_pop(api_vm(), 1);
    }
    return true;
}

static bool start_serving(struct buf *errors)
{
    session_shared.proxy = &proxy_handler;
    session_shared.journal = *cfg->database_url ? &journal_handler : NULL;
    session_shared.local = &admin_handler;
    return (!session_shared.journal || start_keeping(errors)) && engine_start(role, cfg, errors) &&
           open_listeners(errors);
}

/* false: *errors says why. What was started is taken down by stop_all() either way. */
static bool start_all(struct buf *errors)
{
    bool fine = role_check(role, cfg, errors);
    if (!policy_load(cfg, errors) || !fine)
        return false;
    if (role != ROLE_BALANCER)
        return start_common(errors) && engine_start(role, cfg, errors);
    return start_access_log(errors) && start_common(errors) && start_serving(errors);
}

static void stop_all(void)
{
    listener_close_all();
    session_kill_all();
    (void)all_finished();
    journal_stop();
    engine_stop();
    proxy_stop();
    api_courier_stop();
    if (fleet_count) {
        courier_stop();
        probe_stop();
        pool_stop();
        fleet_free_all();
    }
    api_stop();
    if (dns)
        dns_free(dns);
    access_stop();
    policy_unload();
    admin_reload_error("");
    wheel_stop();
}

static void say_started(void)
{
    if (role == ROLE_BALANCER && !session_shared.journal)
        log_warn("replication_off", "reason=%s",
                 log_quote(strcmp(cfg->unreplicated_reads, "any") == 0
                               ? "no DATABASE_URL, so no journal: writes go to the primary, "
                                 "reads to all (UNREPLICATED_READS=any); replicas are not fed"
                               : "no DATABASE_URL, so no journal: data routes go to the "
                                 "primary, and replicas are not fed"));
    log_info("started", "version=%s pid=%d role=%s instances=%u policies=%s", CHROMUX_VERSION,
             (int)getpid(), role_name(role), fleet_count, log_quote(cfg->policy_dir));
    roster_up();
    if (!supervised)
        role_tell_systemd("READY=1");
}

int role_run(enum role r, bool is_supervised, const struct settings_sources *from,
             struct config **first)
{
    struct buf errors;
    role = r;
    supervised = is_supervised;
    sources = from;
    cfg = *first;
    *first = NULL;
    role_apply_log(cfg);
    if (!supervised)
        roster_sit_alone(role);
    loop = ev_default_loop(EVFLAG_AUTO);
    stream_start(loop);
    wheel_start(loop);
    raise_descriptor_limit();
    buf_init(&errors, 1u << 20);
    bool ok = start_all(&errors);
    if (ok) {
        watch_signals();
        keep_beating();
        say_started();
        ev_run(loop, 0);
        if (!supervised)
            role_tell_systemd("STOPPING=1");
        log_info("stopped", "requests=%llu", (unsigned long long)metrics_counter[METRIC_REQUESTS]);
    } else {
        fprintf(stderr, "%.*s", (int)buf_len(&errors), buf_data(&errors));
    }
    stop_all();
    config_free(cfg);
    buf_fini(&errors);
    ev_loop_destroy(loop);
    return ok ? 0 : 1;
}

int role_stopped_by(void)
{
    return stopped_by;
}
