/* main.c: command line, wiring, signals. */
#include "access.h"
#include "admin.h"
#include "api_copies.h"
#include "api_courier.h"
#include "api_records.h"
#include "api_route.h"
#include "api_slice.h"
#include "courier.h"
#include "journal.h"
#include "kit.h"
#include "listener.h"
#include "log.h"
#include "policy.h"
#include "pool.h"
#include "probe.h"
#include "proxy.h"
#include "settings.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;

/* clang-format off */
static const char help[] =
    "chromux " CHROMUX_VERSION " - makes Chroma servers highly available\n"
    "\n"
    "  chromux run [--config FILE] [--set NAME=VALUE]...     run the load balancer\n"
    "  chromux check [--config FILE] [--set NAME=VALUE]...   try settings, policies\n"
    "  chromux check --explain                               what every setting means\n"
    "  chromux test [FILE]...                                run specs of policies\n"
    "  chromux script FILE [ARG]...                          run a Lua program\n"
    "  chromux journal COMMAND [ARG]...                      look into the journal\n"
    "  chromux version\n"
    "\n"
    "Settings: the file (Lua, returns a table), then the environment, then --set.\n"
    "Needed: PRIMARY_URL=http://host:port, and REPLICA_URL for a second server.\n"
    "\n"
    "  PORT (8000)  LISTEN_ADDRESS (127.0.0.1)  POLICY_DIR (policies)  ACCESS_LOG (-)\n"
    "\n"
    "Signals: HUP reloads settings and policies, USR1 reopens the access log,\n"
    "TERM finishes what is under way and stops; a second TERM stops at once.\n"
    "\n"
    "Pages: /health  /status  /metrics\n";
/* clang-format on */

/* What `run` and `check` were called with: read again at each HUP. */
static struct settings_sources sources;
static struct config *cfg;
static struct dns *dns;
static struct ev_loop *loop;
static ev_timer drain_poll;
static double drain_until;
static int stopped_by;

/* ---- command line ---- */

static int usage(const char *what, const char *arg)
{
    fprintf(stderr, "chromux: %s%s%s; see chromux --help\n", what, arg ? " " : "", arg ? arg : "");
    return 2;
}

/* Reads --config, --set, --role and, where explain is not NULL, --explain. 0: fine. */
static int read_options(int argc, char **argv, bool *explain)
{
    sources.environment = environ;
    sources.sets = base_zalloc(sizeof *sources.sets * (size_t)(argc + 1));
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        bool last = i + 1 >= argc;
        if (explain && strcmp(a, "--explain") == 0)
            *explain = true;
        else if (strcmp(a, "--role") == 0 && !last && strcmp(argv[i + 1], "balancer") == 0)
            i++; /* the one role there is */
        else if (strcmp(a, "--role") == 0)
            return usage("--role: expected balancer, not", last ? "nothing" : argv[i + 1]);
        else if (strncmp(a, "--config", 8) == 0 && sources.file && (!a[8] || a[8] == '='))
            return usage("only one file can be given:", a);
        else if (strcmp(a, "--config") == 0 && !last)
            sources.file = argv[++i];
        else if (strncmp(a, "--config=", 9) == 0)
            sources.file = a + 9;
        else if (strcmp(a, "--set") == 0 && !last)
            sources.sets[sources.set_count++] = argv[++i];
        else if (strncmp(a, "--set=", 6) == 0)
            sources.sets[sources.set_count++] = argv[i] + 6;
        else if (strcmp(a, "--config") == 0 || strcmp(a, "--set") == 0)
            return usage("a value must follow", a);
        else
            return usage("unknown option", a);
    }
    return 0;
}

static void print_mistakes(struct buf *errors)
{
    fprintf(stderr, "%.*s", (int)buf_len(errors), buf_data(errors));
}

/* ---- reload ---- */

static void apply_log(const struct config *c)
{
    enum log_level level = LOG_INFO;
    if (log_level_from(c->log_level, &level))
        log_set_level(level);
    access_set_json(strcmp(c->log_format, "json") == 0);
}

/* Settings that only a restart changes keep the value they had. */
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
static void keep_unreloadable(struct config *next, const struct config *was)
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
    fleet_configure(c, ev_now(loop));
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
    struct config *next = settings_load(&sources, &errors);
    if (next) {
        config_unreloadable(cfg, next, &names);
        keep_unreloadable(next, cfg);
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
        apply_log(next);
        apply_instances(next);
        journal_reload(next);
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

static void on_drain_poll(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)w;
    (void)revents;
    if (session_shared.count + session_shared.local_count == 0 && journal_finished())
        ev_break(l, EVBREAK_ALL);
    else if (ev_now(l) >= drain_until) {
        log_warn("drain_timeout", "connections=%u", session_shared.count);
        ev_break(l, EVBREAK_ALL);
    }
}

static void on_stop(struct ev_loop *l, ev_signal *w, int revents)
{
    (void)revents;
    if (stopped_by) {
        log_warn("stopped_at_once", "connections=%u", session_shared.count);
        ev_break(l, EVBREAK_ALL);
        return;
    }
    stopped_by = w->signum;
    drain_until = ev_now(l) + cfg->drain_timeout;
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
    static ev_signal term, intr, hup, usr1;
    ev_signal_init(&term, on_stop, SIGTERM);
    ev_signal_init(&intr, on_stop, SIGINT);
    ev_signal_init(&hup, on_hup, SIGHUP);
    ev_signal_init(&usr1, on_usr1, SIGUSR1);
    ev_signal_start(loop, &term);
    ev_signal_start(loop, &intr);
    ev_signal_start(loop, &hup);
    ev_signal_start(loop, &usr1);
}

/* ---- run ---- */

/* As many descriptors as we may have; a limit too low for the settings is said at the start. */
static void raise_descriptor_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) != 0)
        return;
    l.rlim_cur = l.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &l) != 0)
        (void)getrlimit(RLIMIT_NOFILE, &l);
    rlim_t want = (rlim_t)cfg->max_clients + 64;
    for (unsigned i = 0; i < cfg->instance_count; i++)
        want += (rlim_t)cfg->instance[i].maxconn + (rlim_t)cfg->upstream_max_idle;
    if (want > l.rlim_cur)
        log_warn("few_descriptors", "limit=%llu wanted=%llu advice=%s",
                 (unsigned long long)l.rlim_cur, (unsigned long long)want,
                 log_quote("raise ulimit -n or lower MAX_CLIENTS"));
}

/* systemd's readiness protocol (sd_notify(3)): one datagram to NOTIFY_SOCKET. */
static void tell_systemd(const char *state)
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

/* false: *errors says why. What was started is taken down by stop_all() either way. */
static bool start_all(struct buf *errors)
{
    const char *why = NULL;
    bool fine = check_access_log(cfg, errors);
    if (!policy_load(cfg, errors) || !fine)
        return false;
    if (!access_start(loop, cfg->access_log, strcmp(cfg->log_format, "json") == 0)) {
        config_complain(cfg, "ACCESS_LOG", strerror(errno), errors);
        return false;
    }
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
    api_courier_open();
    session_shared.cfg = cfg;
    session_shared.proxy = &proxy_handler;
    session_shared.journal = *cfg->database_url ? &journal_handler : NULL;
    session_shared.local = &admin_handler;
    pool_start(cfg, dns);
    proxy_start(cfg);
    probe_start(cfg);
    admin_start(cfg, ev_time());
    fleet_configure(cfg, ev_now(loop));
    api_copies_open(api_vm());
    if (session_shared.journal) {
        courier_start(cfg);
        if (!journal_start(cfg, errors))
            return false;
    }
    return open_listeners(errors);
}

static void stop_all(void)
{
    listener_close_all();
    session_kill_all();
    (void)journal_finished();
    journal_stop();
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

static int run(int argc, char **argv)
{
    int bad = read_options(argc, argv, NULL);
    if (bad)
        return bad;
    struct buf errors;
    buf_init(&errors, 1u << 20);
    cfg = settings_load(&sources, &errors);
    if (!cfg) {
        print_mistakes(&errors);
        buf_fini(&errors);
        return 2;
    }
    apply_log(cfg);
    loop = ev_default_loop(EVFLAG_AUTO);
    stream_start(loop);
    wheel_start(loop);
    raise_descriptor_limit();
    bool ok = start_all(&errors);
    if (ok) {
        watch_signals();
        if (!session_shared.journal)
            log_warn("replication_off", "reason=%s",
                     log_quote(strcmp(cfg->unreplicated_reads, "any") == 0
                                   ? "no DATABASE_URL, so no journal: writes go to the primary, "
                                     "reads to all (UNREPLICATED_READS=any); replicas are not fed"
                                   : "no DATABASE_URL, so no journal: data routes go to the "
                                     "primary, and replicas are not fed"));
        log_info("started", "version=%s pid=%d instances=%u policies=%s", CHROMUX_VERSION,
                 (int)getpid(), fleet_count, log_quote(cfg->policy_dir));
        tell_systemd("READY=1");
        ev_run(loop, 0);
        tell_systemd("STOPPING=1");
        log_info("stopped", "requests=%llu", (unsigned long long)metrics_counter[METRIC_REQUESTS]);
    } else {
        print_mistakes(&errors);
    }
    stop_all();
    config_free(cfg);
    buf_fini(&errors);
    ev_loop_destroy(loop);
    return ok ? 0 : 1;
}

/* ---- the other commands ---- */

static int check(int argc, char **argv)
{
    bool explain = false;
    int bad = read_options(argc, argv, &explain);
    if (bad)
        return bad;
    struct buf out;
    buf_init(&out, 4u << 20);
    int code = 0;
    if (explain) {
        config_explain(&out);
        printf("%.*s", (int)buf_len(&out), buf_data(&out));
        buf_fini(&out);
        return 0;
    }
    struct config *c = settings_load(&sources, &out);
    bool fine = c && check_access_log(c, &out);
    if (c && policy_check(c, &out) && fine) {
        buf_clear(&out);
        config_print(c, &out);
        printf("%.*sfine: settings and policies can be used\n", (int)buf_len(&out), buf_data(&out));
    } else {
        print_mistakes(&out);
        code = 1;
    }
    if (c)
        config_free(c);
    policy_unload();
    buf_fini(&out);
    return code;
}

enum program { PROGRAM_FILE, PROGRAM_SPECS, PROGRAM_JOURNAL };

/* script, test and journal: our own runtime around a Lua program. */
static int with_runtime(int argc, char **argv, enum program which)
{
    struct buf errors;
    int code = 1;
    buf_init(&errors, 1u << 20);
    const char *url = getenv("DATABASE_URL");
    loop = ev_default_loop(EVFLAG_AUTO);
    stream_start(loop);
    if (which == PROGRAM_JOURNAL)
        log_set_level(LOG_ERROR); /* it says itself what failed */
    if (!api_start(loop, url ? url : "", &errors)) {
        print_mistakes(&errors);
    } else {
        api_slice_open(api_vm());
        api_records_open(api_vm());
        if (which == PROGRAM_SPECS)
            code = kit_main(api_vm(), argc, argv);
        else if (which == PROGRAM_JOURNAL ? !api_run_module("lb.journal_cli", argc, argv, &code)
                                          : !api_run_file(argv[0], argc, argv, &code))
            code = code ? code : 1;
    }
    api_stop();
    buf_fini(&errors);
    return code;
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "--help";
    int code;
    if (strcmp(command, "run") == 0) {
        code = run(argc - 2, argv + 2);
    } else if (strcmp(command, "check") == 0) {
        code = check(argc - 2, argv + 2);
    } else if (strcmp(command, "test") == 0) {
        code = with_runtime(argc - 2, argv + 2, PROGRAM_SPECS);
    } else if (strcmp(command, "script") == 0) {
        code = argc > 2 ? with_runtime(argc - 2, argv + 2, PROGRAM_FILE)
                        : usage("script: a FILE must follow", NULL);
    } else if (strcmp(command, "journal") == 0) {
        code = with_runtime(argc - 1, argv + 1, PROGRAM_JOURNAL);
    } else if (strcmp(command, "version") == 0 || strcmp(command, "--version") == 0) {
        puts("chromux " CHROMUX_VERSION);
        code = 0;
    } else if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0 ||
               strcmp(command, "help") == 0) {
        fputs(help, stdout);
        code = argc > 1 ? 0 : 2;
    } else {
        code = usage("unknown command", command);
    }
    free(sources.sets);
    fflush(stdout);
    if (stopped_by == SIGINT) { /* as a shell expects: the caller sees that the signal ended us */
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    return code;
}
