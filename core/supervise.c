/* supervise.c: owns the children. One loop waits for a signal or for the next look; what a child
 * does is read from its row and from waitpid(). No event loop: a child inherits nothing but memory.
 */
#include "supervise.h"

#include "log.h"
#include "role.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Seconds. */
#define LOOK_BUSY   0.02 /* between two looks while somebody starts, waits or ends */
#define PAUSE_FIRST 0.1  /* before the second start in a row; doubled from start to start */
#define PAUSE_MOST  5.0
#define HEALTHY     10.0 /* so long up: the next end is not counted with those before */
#define DRAIN_GRACE 5.0  /* beyond DRAIN_TIMEOUT, in which a child ends by itself */
#define STOP_NOW    2.0  /* for a child to end after the second signal */

/* What is known of a child beside its row. */
struct child {
    struct roster_row *row;
    bool tried;          /* it was up once, or crashed: a refusal no longer ends the whole start */
    const char *killed;  /* why we killed it; NULL: we did not */
    unsigned failures;   /* ends in a row without having been healthy */
    double start_at;     /* when it is to be started; while it has no pid */
    double up_at;        /* 0: not up */
    unsigned long beats; /* as last seen */
    double moved_at;     /* when they were last seen to change */
};

static const struct settings_sources *sources;
static struct config *cfg;
static struct child children[ROSTER_MAX];
static pid_t own_pid;
static sigset_t ours; /* the signals that are waited for: always blocked */
static int stopped_by, code;
static bool stopping, at_once, ready; /* ready: systemd was told */
static double kill_at, looked_at;

static double clock_of(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double now(void)
{
    return clock_of(CLOCK_MONOTONIC);
}

/* "worker-2"; there is one of the other roles. */
static const char *name_of(const struct roster_row *r)
{
    static char name[32];
    if (r->role == ROLE_WORKER)
        snprintf(name, sizeof name, "%s-%u", role_name(r->role), r->index);
    else
        snprintf(name, sizeof name, "%s", role_name(r->role));
    return name;
}

/* ---- starting ---- */

/* The child's side of the fork: it is that role until its end. */
static void NORETURN become(struct child *c)
{
    char title[40];
    /* Sent when our parent ends, whatever ends it; it may have ended before we asked. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != own_pid)
        _exit(1);
    snprintf(title, sizeof title, "cx-%s", name_of(c->row));
    (void)prctl(PR_SET_NAME, title);
    log_set_process(base_strdup(name_of(c->row)));
    c->row->pid = getpid();
    roster_sit(c->row);
    /* The others stay blocked until role_run() takes them, so that none ends us unheard. */
    sigset_t not_ours;
    sigemptyset(&not_ours);
    sigaddset(&not_ours, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &not_ours, NULL);
    exit(role_run(c->row->role, true, sources, &cfg));
}

/* When it is to be started next, after an end or a fork that failed. */
static void schedule(struct child *c, double t)
{
    double pause = c->failures ? PAUSE_FIRST : 0;
    for (unsigned i = 1; i < c->failures && pause < PAUSE_MOST; i++)
        pause *= 2;
    if (pause > PAUSE_MOST)
        pause = PAUSE_MOST;
    c->failures++;
    c->start_at = t + pause;
    c->row->state = ROSTER_WAITING;
}

static void start(struct child *c, double t)
{
    struct roster_row *r = c->row;
    atomic_store(&r->up, false);
    atomic_store(&r->lease_until, 0);
    r->state = ROSTER_STARTING;
    r->started_at = clock_of(CLOCK_REALTIME);
    c->up_at = 0;
    c->moved_at = t;
    c->killed = NULL;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        become(c);
    if (pid < 0) {
        log_error("child_not_started", "child=%s error=%s", name_of(r), log_quote(strerror(errno)));
        schedule(c, t);
        return;
    }
    r->pid = pid;
    log_info("child_started", "child=%s child_pid=%d restarts=%u", name_of(r), (int)pid,
             r->restarts);
}

/* ---- stopping ---- */

/* The balancer is the first of them. */
static void tell_all(int sig)
{
    for (unsigned i = 0; i < roster_count; i++)
        if (children[i].row->pid)
            kill(children[i].row->pid, sig);
}

static void stop(void)
{
    stopping = true;
    kill_at = now() + cfg->drain_timeout + DRAIN_GRACE;
    role_tell_systemd("STOPPING=1");
    tell_all(SIGTERM);
}

static void stop_by(int sig)
{
    log_info("stopping", "signal=%s", sig == SIGINT ? "INT" : "TERM");
    if (!stopping) {
        stopped_by = sig;
        stop();
    } else if (!at_once) {
        at_once = true;
        kill_at = now() + STOP_NOW;
        tell_all(ROLE_STOP_NOW);
    }
}

/* ---- watching ---- */

static void describe(const struct child *c, int status, char out[ROSTER_HOW_MAX])
{
    if (c->killed)
        snprintf(out, ROSTER_HOW_MAX, "killed: %s", c->killed);
    else if (WIFSIGNALED(status))
        snprintf(out, ROSTER_HOW_MAX, "signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, ROSTER_HOW_MAX, "exit code %d", WEXITSTATUS(status));
}

static void ended(struct child *c, int status, double t)
{
    struct roster_row *r = c->row;
    char how[ROSTER_HOW_MAX];
    bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    describe(c, status, how);
    int pid = (int)r->pid;
    r->pid = 0;
    r->state = ROSTER_ENDED;
    atomic_store(&r->lease_until, 0);
    memcpy(r->last_exit, how, sizeof how);
    if (stopping) {
        if (!well && !at_once && code == 0)
            code = 1;
        log_event(well ? LOG_INFO : LOG_WARN, "child_ended", "child=%s child_pid=%d how=%s",
                  name_of(r), pid, log_quote(how));
    } else if (!c->tried && WIFEXITED(status) && !well) {
        code = WEXITSTATUS(status);
        log_error("start_refused", "child=%s how=%s", name_of(r), log_quote(how));
        stop();
    } else {
        if (c->up_at > 0 && t - c->up_at >= HEALTHY)
            c->failures = 0;
        c->tried = true;
        r->restarts++;
        schedule(c, t);
        log_error("child_ended", "child=%s child_pid=%d how=%s restart_in=%g", name_of(r), pid,
                  log_quote(how), c->start_at - t);
    }
}

/* A loop that stands still while its lease has run out: what it sent may still be executed, and
 * only its end says that nothing more comes. `slept`: we stood still ourselves, and can't say. */
static void look_at_lease(struct child *c, double t, bool slept)
{
    struct roster_row *r = c->row;
    unsigned long beats = atomic_load(&r->beats);
    double until = atomic_load(&r->lease_until);
    if (beats != c->beats || slept) {
        c->beats = beats;
        c->moved_at = t;
    } else if (until > 0 && t - c->moved_at > cfg->lease_timeout &&
               clock_of(CLOCK_BOOTTIME) > until && !c->killed) {
        c->killed = "its lease had run out, and it stood still";
        log_error("child_killed", "child=%s child_pid=%d still_for=%.1f reason=%s", name_of(r),
                  (int)r->pid, t - c->moved_at, log_quote(c->killed));
        kill(r->pid, SIGKILL);
    }
}

static void look(struct child *c, double t, bool slept)
{
    int status;
    struct roster_row *r = c->row;
    if (r->pid && !c->up_at && atomic_load(&r->up)) {
        c->up_at = t;
        c->tried = true;
        r->state = ROSTER_UP;
    }
    if (r->pid && waitpid(r->pid, &status, WNOHANG) == r->pid)
        ended(c, status, t);
    else if (r->pid)
        look_at_lease(c, t, slept);
    if (r->pid && stopping && t > kill_at && !c->killed) {
        c->killed = "it did not end in time";
        kill(r->pid, SIGKILL);
    }
    if (!r->pid && !stopping && t >= c->start_at && (c == children || children[0].tried))
        start(c, t);
}

/* Looks at all; returns whether one has to be looked at again soon. */
static bool look_at_all(bool *alive)
{
    double t = now();
    bool slept = t - looked_at > cfg->lease_timeout / 2, busy = stopping, tried = true;
    looked_at = t;
    *alive = false;
    for (unsigned i = 0; i < roster_count; i++) {
        struct child *c = &children[i];
        look(c, t, slept);
        *alive = *alive || c->row->pid;
        busy = busy || !c->up_at || !c->row->pid;
        tried = tried && c->tried;
    }
    if (tried && !ready && !stopping) {
        ready = true;
        role_tell_systemd("READY=1");
        log_info("supervising", "children=%u", roster_count);
    }
    return busy;
}

/* ---- life ---- */

/* Children that are started from now on get the new settings, if they are good; the children
 * themselves say what is wrong with them. */
static void reload(void)
{
    struct buf errors;
    buf_init(&errors, 1u << 20);
    struct config *next = settings_load(sources, &errors);
    if (next) {
        role_keep_unreloadable(next, cfg);
        config_free(cfg);
        cfg = next;
        role_apply_log(cfg);
    }
    buf_fini(&errors);
}

static void take_signal(int sig)
{
    if (sig == SIGTERM || sig == SIGINT) {
        stop_by(sig);
    } else if (sig == SIGHUP || sig == SIGUSR1) {
        if (sig == SIGHUP)
            reload();
        tell_all(sig);
    }
}

static void add(enum role role, unsigned index)
{
    struct child *c = &children[roster_count];
    c->row = roster_add(role, index);
}

static void plan(void)
{
    unsigned workers = cfg->sync_coordinator   ? 0
                       : cfg->sync_distributed ? (unsigned)cfg->max_workers
                                               : 1;
    add(ROLE_BALANCER, 1);
    if (cfg->sync_coordinator)
        add(ROLE_COORDINATOR, 1);
    for (unsigned i = 1; i <= workers; i++)
        add(ROLE_WORKER, i);
    add(ROLE_MONITOR, 1);
}

static void block_signals(void)
{
    static const int taken[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD};
    sigemptyset(&ours);
    for (unsigned i = 0; i < COUNT_OF(taken); i++)
        sigaddset(&ours, taken[i]);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would take their exit codes from us */
    sigprocmask(SIG_BLOCK, &ours, NULL);
}

static struct timespec span(double seconds)
{
    return (struct timespec){(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
}

int supervise(const struct settings_sources *from, struct config **first)
{
    bool alive;
    sources = from;
    cfg = *first;
    *first = NULL;
    own_pid = getpid();
    role_apply_log(cfg);
    log_set_process("supervisor");
    if (!roster_share()) {
        fprintf(stderr, "chromux: no memory for the roster: %s\n", strerror(errno));
        config_free(cfg);
        return 1;
    }
    plan();
    block_signals();
    looked_at = now();
    double quiet = cfg->lease_timeout / 10;
    quiet = quiet > 0.25 ? 0.25 : quiet;
    for (bool busy = look_at_all(&alive); alive || !stopping; busy = look_at_all(&alive)) {
        struct timespec tick = span(busy ? LOOK_BUSY : quiet);
        int sig = sigtimedwait(&ours, NULL, &tick);
        if (sig > 0)
            take_signal(sig);
    }
    log_info("stopped", "code=%d", code);
    config_free(cfg);
    return code;
}

int supervise_stopped_by(void)
{
    return stopped_by;
}
