/* Owns the life of a test: its temp folder, its memory and its child processes, so that a failed
 * check (a longjmp out of the test) leaves nothing behind. */
#include "harness.h"
#include "load.h"
#include "peer.h"
#include "tap.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHROMUX_MAX = 32, CHILDREN_MAX = 32, ARGS_MAX = 96, PORTS_MAX = 256 };
#define WAIT_SHOWN 0.5 /* seconds */

static struct chromux *running[CHROMUX_MAX];
static unsigned running_count;
static pid_t children[CHILDREN_MAX];
static int port_locks[PORTS_MAX];
static unsigned port_count;
static double began; /* the test */
static char folder[64];
static struct kept {
    struct kept *next;
} * kept;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- time and memory ------------------------------------------------------------------------- */

double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double slow(double seconds)
{
    const char *factor = getenv("TEST_SLOW");
    return seconds * (factor && atof(factor) >= 1 ? atof(factor) : 1);
}

bool sanitized(void)
{
    return getenv("TEST_ASAN") != NULL;
}

void harness_nap(void)
{
    poll(NULL, 0, 5);
}

void harness_waited(const char *file, int line, double since)
{
    double took = now_seconds() - since;
    if (took >= WAIT_SHOWN)
        fprintf(stderr, "%5.1f s waited at %s:%d\n", took, file, line);
}

void *keep(size_t n)
{
    struct kept *k = calloc(1, sizeof *k + 16 + n);
    if (!k)
        abort();
    pthread_mutex_lock(&kept_lock);
    k->next = kept;
    kept = k;
    pthread_mutex_unlock(&kept_lock);
    return (char *)k + 16;
}

char *keepf(const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    char *text = keep((size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return text;
}

char *keep_text(const char *p, size_t n)
{
    char *text = keep(n + 1);
    memcpy(text, p, n);
    return text;
}

static void free_kept(void)
{
    while (kept) {
        struct kept *k = kept;
        kept = k->next;
        free(k);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

const char *temp_folder(void)
{
    return folder;
}

char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return keepf("%s", "");
    size_t n = 0, room = 65536;
    char *text = malloc(room);
    for (size_t got; text && (got = fread(text + n, 1, room - n, f)) > 0;) {
        n += got;
        if (n == room)
            text = realloc(text, room *= 2);
    }
    fclose(f);
    if (!text)
        abort();
    char *copy = keep_text(text, n);
    free(text);
    return copy;
}

void write_file(const char *path, const char *text)
{
    /* By rename, as an editor saves: a reader sees the old file or the new one. */
    char *fresh = keepf("%s.new", path);
    FILE *f = fopen(fresh, "w");
    check(f != NULL);
    check(fputs(text, f) >= 0);
    check(fclose(f) == 0);
    check(rename(fresh, path) == 0);
}

unsigned count_lines(const char *text, const char *part)
{
    unsigned n = 0;
    for (const char *at = text; *at && (at = strstr(at, part)) != NULL; at++, n++) {
        at = strchr(at, '\n');
        if (!at)
            return n + 1;
    }
    return n;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
    return remove(path);
}

/* ---- ports ----------------------------------------------------------------------------------- */

/* Below the ports that the kernel gives to sockets that don't ask for one (ip_local_port_range),
 * and above those of tests/chaos (process.lua). */
enum { PORTS_FROM = 28500, PORTS_TO = 32768 };

/* A name that one process of this machine can have at a time, until it is closed; -1: another has
 * it. */
static int port_lock(unsigned port)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int n = snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "chromux-test-port-%u", port);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(fd >= 0);
    if (bind(fd, (struct sockaddr *)&a,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (unsigned)n)) == 0)
        return fd;
    close(fd);
    return -1;
}

static bool port_is_free(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_ANY)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_free = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    return is_free;
}

unsigned free_port(void)
{
    enum { PORTS = PORTS_TO - PORTS_FROM };
    static unsigned next;
    check(port_count < PORTS_MAX);
    for (unsigned tries = PORTS; tries > 0; tries--) {
        /* Each process begins somewhere else. */
        next = next ? next + 1 : (unsigned)getpid() * 257;
        unsigned port = PORTS_FROM + next % PORTS;
        int lock = port_lock(port);
        if (lock >= 0 && port_is_free(port)) {
            port_locks[port_count++] = lock;
            return port;
        }
        if (lock >= 0)
            close(lock);
    }
    harness_fail(__FILE__, __LINE__, "no port is free");
}

static void free_ports(void)
{
    while (port_count > 0)
        close(port_locks[--port_count]);
}

/* ---- processes ------------------------------------------------------------------------------- */

static int exit_status(int wait_status)
{
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

/* environment NULL: ours. The child dies with us, even if we are killed. */
static pid_t spawn(const char *const *argv, const char *const *environment, int out, int err)
{
    pid_t parent = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127);
    dup2(out, 1);
    dup2(err, 2);
    signal(SIGPIPE, SIG_DFL);
    if (environment)
        execve(argv[0], (char *const *)argv, (char *const *)environment);
    else
        execvp(argv[0], (char *const *)argv);
    dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

/* Whether pid has ended; *status is set when it has. */
static bool reaped(pid_t pid, int *status)
{
    int w;
    if (waitpid(pid, &w, WNOHANG) != pid)
        return false;
    *status = exit_status(w);
    return true;
}

struct run run_program(const char *const *argv, const char *const *environment, double deadline)
{
    char *path = keepf("%s/run.XXXXXX", folder);
    int fd = mkstemp(path);
    check(fd >= 0);
    pid_t pid = spawn(argv, environment, fd, fd);
    close(fd);
    struct run r = {.status = -1};
    if (!wait_until(reaped(pid, &r.status), deadline)) {
        int w;
        kill(pid, SIGKILL);
        waitpid(pid, &w, 0);
        r.status = 137;
    }
    r.output = read_file(path);
    return r;
}

pid_t child_start(const char *const *argv, const char *log_name)
{
    char *path = keepf("%s/%s", folder, log_name);
    int fd = open(path, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
    check(fd >= 0);
    pid_t pid = spawn(argv, NULL, fd, fd);
    close(fd);
    for (unsigned i = 0; i < CHILDREN_MAX; i++)
        if (children[i] == 0) {
            children[i] = pid;
            return pid;
        }
    kill(pid, SIGKILL);
    harness_fail(__FILE__, __LINE__, "more than %d children", CHILDREN_MAX);
}

void child_kill(pid_t *pid)
{
    for (unsigned i = 0; i < CHILDREN_MAX; i++)
        if (*pid > 0 && children[i] == *pid) {
            kill(*pid, SIGKILL);
            waitpid(*pid, NULL, 0);
            children[i] = 0;
        }
    *pid = 0;
}

int child_wait(pid_t *pid, double seconds)
{
    int status = -1;
    if (wait_until(reaped(*pid, &status), seconds)) {
        for (unsigned i = 0; i < CHILDREN_MAX; i++)
            if (children[i] == *pid)
                children[i] = 0;
        *pid = 0;
    }
    return status;
}

/* ---- chromux --------------------------------------------------------------------------------- */

const char *chromux_path(void)
{
    const char *path = getenv("CHROMUX");
    return path ? path : "build/chromux";
}

static bool has_role(const char *const *settings)
{
    while (*settings && strcmp(*settings, "--role") != 0)
        settings++;
    return *settings != NULL;
}

static bool names(const char *const *settings, const char *name)
{
    for (size_t n = strlen(name); *settings; settings++)
        if (strncmp(*settings, name, n) == 0 && (*settings)[n] == '=')
            return true;
    return false;
}

/* "listening … port=N" of the main port or of the admin port; 0 while it is not there. */
static int listening_port(const char *log, bool admin)
{
    for (const char *at = log; (at = strstr(at, " listening ")) != NULL;) {
        const char *end = strchr(at, '\n');
        if (!end)
            return 0;
        char *line = keep_text(at, (size_t)(end - at));
        if ((strstr(line, "admin=true") != NULL) == admin && strstr(line, " port="))
            return atoi(strstr(line, " port=") + 6);
        at = end;
    }
    return 0;
}

struct chromux *chromux_spawn(const char *const *settings)
{
    static unsigned serial;
    const char *argv[ARGS_MAX] = {chromux_path(), "run"}, *env[ARGS_MAX] = {0};
    unsigned args = 2, vars = 0;
    struct chromux *x = keep(sizeof *x);
    serial++;
    x->errors = keepf("%s/chromux%u.err", folder, serial);
    x->access = keepf("%s/access%u.log", folder, serial);
    env[vars++] = "PATH=/usr/bin:/bin";
    env[vars++] = "ASAN_OPTIONS=quarantine_size_mb=4:detect_leaks=1";
    env[vars++] = "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=0";
    if (!names(settings, "PORT"))
        env[vars++] = "PORT=0";
    if (!names(settings, "ACCESS_LOG"))
        env[vars++] = keepf("ACCESS_LOG=%s", x->access);
    if (!has_role(settings)) {
        argv[args++] = "--role";
        argv[args++] = "balancer";
    }
    for (; *settings && args < ARGS_MAX - 3 && vars < ARGS_MAX - 2; settings++)
        if (strcmp(*settings, "--role") == 0 && strcmp(settings[1], "all") == 0) {
            settings++;
        } else if (strncmp(*settings, "--", 2) == 0) {
            argv[args++] = *settings++;
            argv[args++] = *settings;
        } else {
            env[vars++] = *settings;
        }
    check(running_count < CHROMUX_MAX);
    int fd = open(x->errors, O_CREAT | O_TRUNC | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
    check(fd >= 0);
    x->pid = spawn(argv, env, fd, fd);
    close(fd);
    running[running_count++] = x;
    return x;
}

struct chromux *chromux_start_list(const char *const *settings)
{
    struct chromux *x = chromux_spawn(settings);
    bool up = wait_until(
        (x->port = listening_port(chromux_log(x), false)) > 0 || chromux_wait_exit(x, 0), 10);
    if (!up || x->pid == 0)
        harness_fail(__FILE__, __LINE__, "%s did not listen", chromux_path());
    if (names(settings, "ADMIN_PORT"))
        check_soon((x->admin_port = listening_port(chromux_log(x), true)) > 0, 5);
    return x;
}

struct chromux *chromux_start(const char *first, ...)
{
    const char *list[ARGS_MAX] = {first};
    unsigned n = first ? 1 : 0;
    va_list args;
    va_start(args, first);
    while (n > 0 && n < ARGS_MAX - 1 && (list[n] = va_arg(args, const char *)) != NULL)
        n++;
    va_end(args);
    return chromux_start_list(list);
}

static unsigned healthy_instances(struct chromux *x)
{
    struct answer *a = http_get(x->port, "/health");
    unsigned n = 0;
    for (const char *at = a ? a->body : ""; (at = strstr(at, "\"healthy\":true")) != NULL; at++)
        n++;
    return n;
}

void chromux_wait_healthy(struct chromux *x, unsigned n)
{
    if (!wait_until(chromux_wait_exit(x, 0) || healthy_instances(x) == n, 10) || x->pid == 0)
        harness_fail(__FILE__, __LINE__, "not %u healthy instances", n);
}

bool chromux_wait_exit(struct chromux *x, double seconds)
{
    if (x->pid > 0 && wait_until(reaped(x->pid, &x->status), seconds))
        x->pid = 0;
    return x->pid == 0;
}

int chromux_stop(struct chromux *x)
{
    if (x->pid > 0) {
        kill(x->pid, SIGTERM);
        if (!chromux_wait_exit(x, 10)) {
            kill(x->pid, SIGKILL);
            chromux_wait_exit(x, 10);
        }
    }
    return x->status;
}

void chromux_signal(struct chromux *x, int sig)
{
    check(x->pid > 0 && kill(x->pid, sig) == 0);
}

char *chromux_log(struct chromux *x)
{
    return read_file(x->errors);
}

char *chromux_access(struct chromux *x)
{
    return read_file(x->access);
}

/* The HUPs that chromux has handled, from /metrics. */
static long reloads(struct chromux *x)
{
    struct answer *a = http_get(x->port, "/metrics");
    const char *at = a ? strstr(a->body, "\nchromux_reloads_total ") : NULL;
    return at ? atol(at + 23) : -1;
}

void chromux_reload(struct chromux *x)
{
    long before = reloads(x);
    chromux_signal(x, SIGHUP);
    check_soon(reloads(x) > before, 10);
}

char *chromux_access_line(struct chromux *x, const char *part, unsigned n)
{
    if (!wait_until(count_lines(chromux_access(x), part) >= n, 5))
        harness_fail(__FILE__, __LINE__, "the access log has not %u lines with %s", n, part);
    const char *text = chromux_access(x), *at = text;
    for (; n > 1; n--)
        at = strchr(strstr(at, part), '\n');
    at = strstr(at, part);
    const char *end = strchr(at, '\n');
    while (at > text && at[-1] != '\n')
        at--;
    return keep_text(at, end ? (size_t)(end - at) : strlen(at));
}

char *kv(const char *line, const char *name)
{
    const char *at = strstr(line, keepf(" %s=", name));
    if (!at)
        return keepf("%s", "");
    at += strlen(name) + 2;
    return keep_text(at, strcspn(at, " \n"));
}

long process_rss_kb(pid_t pid)
{
    const char *at = strstr(read_file(keepf("/proc/%d/status", (int)pid)), "VmRSS:");
    check(at != NULL);
    return atol(at + 6);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static void print_tail(const char *title, const char *text)
{
    size_t n = strlen(text);
    const char *from = n > 3000 ? text + n - 3000 : text;
    fprintf(stderr, "---- %s\n%s", title, from);
}

static void print_logs(void)
{
    for (unsigned i = 0; i < running_count; i++) {
        print_tail(running[i]->errors, chromux_log(running[i]));
        print_tail(running[i]->access, chromux_access(running[i]));
    }
    fprintf(stderr, "----\n");
}

void harness_fail(const char *file, int line, const char *fmt, ...)
{
    va_list args;
    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    print_logs();
    _fail(file, line);
    abort();
}

void check_int_at(const char *file, int line, const char *what, long got, long want)
{
    if (got != want)
        harness_fail(file, line, "%s is %ld, not %ld", what, got, want);
}

void check_str_at(const char *file, int line, const char *what, const char *got, const char *want)
{
    if (!got || strcmp(got, want) != 0)
        harness_fail(file, line, "%s is \"%s\", not \"%s\"", what, got ? got : "(absent)", want);
}

void check_has_at(const char *file, int line, const char *what, const char *text, const char *part,
                  bool wanted)
{
    if (!text || (strstr(text, part) != NULL) != wanted)
        harness_fail(file, line, "%s %s \"%s\":\n%.2000s", what, wanted ? "lacks" : "has", part,
                     text ? text : "(absent)");
}

/* ---- setup and teardown ---------------------------------------------------------------------- */

int harness_setup(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    snprintf(folder, sizeof folder, "/tmp/chromux-test.XXXXXX");
    running_count = 0;
    began = now_seconds();
    return mkdtemp(folder) ? 0 : -1;
}

/* The reasons why a chromux that was used in a test makes it fail, after the fact. */
static bool ended_well(struct chromux *x, bool was_running)
{
    static const char *const reports[] = {"ERROR: AddressSanitizer",
                                          "runtime error:", "LeakSanitizer", "chromux: bug:"};
    const char *log = chromux_log(x);
    for (unsigned i = 0; i < COUNT_OF(reports); i++)
        if (strstr(log, reports[i])) {
            fprintf(stderr, "chromux reported %s\n%s\n", reports[i], log);
            return false;
        }
    if (was_running && x->status != 0) {
        fprintf(stderr, "chromux ended with %d on TERM\n", x->status);
        print_tail(x->errors, log);
        return false;
    }
    return true;
}

int harness_teardown(void **state)
{
    bool well = true;
    wire_close_all();
    load_stop_all();
    for (unsigned i = 0; i < running_count; i++) {
        bool was_running = !chromux_wait_exit(running[i], 0);
        chromux_stop(running[i]);
        well = ended_well(running[i], was_running) && well;
    }
    peer_stop_all();
    tap_stop_all();
    for (unsigned i = 0; i < CHILDREN_MAX; i++) {
        pid_t pid = children[i];
        child_kill(&pid);
    }
    running_count = 0;
    free_ports();
    free_kept();
    if (!getenv("TEST_KEEP"))
        nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    print_message("%.1f s\n", now_seconds() - began);
    return well ? 0 : -1;
}
