/* harness.h: what every integration test needs: the real program as a child process, temp folders,
 * ports, waiting with a deadline, memory that lives until the test ends.
 *
 * Every test runs between harness_setup and harness_teardown. The teardown stops what the test left
 * running, and fails the test when a chromux did not end with 0 or wrote a sanitizer's report; it
 * prints how long the test took, and where it waited for long. Deadlines are scaled by the
 * environment's TEST_SLOW (1 when unset); TEST_ASAN=1 says that CHROMUX is built with sanitizers.
 * Nothing here sleeps to let something happen: it waits for a condition. */
#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

#include <cmocka.h>

#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define NORETURN          __attribute__((noreturn))
#define COUNT_OF(array)   (sizeof(array) / sizeof((array)[0]))

int harness_setup(void **state);
int harness_teardown(void **state);
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, harness_setup, harness_teardown)
/* TEST_ONLY in the environment picks tests by name (* and ? match as in a shell). */
#define RUN(tests)                                                                                 \
    (cmocka_set_test_filter(getenv("TEST_ONLY")), cmocka_run_group_tests(tests, NULL, NULL))

/* Checks: a failed one ends the test and prints the last lines that each chromux logged. */
#define check(cond)             ((cond) ? (void)0 : harness_fail(__FILE__, __LINE__, "%s", #cond))
#define check_int(got, want)    check_int_at(__FILE__, __LINE__, #got, (long)(got), (long)(want))
#define check_str(got, want)    check_str_at(__FILE__, __LINE__, #got, (got), (want))
#define check_has(text, part)   check_has_at(__FILE__, __LINE__, #text, (text), (part), true)
#define check_lacks(text, part) check_has_at(__FILE__, __LINE__, #text, (text), (part), false)
void harness_fail(const char *file, int line, const char *fmt, ...) PRINTF(3, 4) NORETURN;
void check_int_at(const char *file, int line, const char *what, long got, long want);
void check_str_at(const char *file, int line, const char *what, const char *got, const char *want);
void check_has_at(const char *file, int line, const char *what, const char *text, const char *part,
                  bool wanted);

/* Time: seconds of the monotonic clock; a deadline is a span times TEST_SLOW from now. */
double now_seconds(void);
double slow(double seconds);
bool sanitized(void);   /* chromux runs with sanitizers, which take memory and time */
void harness_nap(void); /* the pause between two looks at a condition */
void harness_waited(const char *file, int line, double since);
#define wait_until(cond, seconds)                                                                  \
    __extension__({                                                                                \
        double began_ = now_seconds(), end_ = began_ + slow(seconds);                              \
        bool met_;                                                                                 \
        while (!(met_ = (cond)) && now_seconds() < end_)                                           \
            harness_nap();                                                                         \
        harness_waited(__FILE__, __LINE__, began_);                                                \
        met_;                                                                                      \
    })
#define check_soon(cond, seconds) check(wait_until(cond, seconds))

/* Memory freed by the teardown; any thread. */
void *keep(size_t n);
char *keepf(const char *fmt, ...) PRINTF(1, 2);
char *keep_text(const char *p, size_t n); /* a copy with a NUL */

/* Files. The temp folder is fresh for every test and removed after it (TEST_KEEP=1 keeps it). */
const char *temp_folder(void);
char *read_file(const char *path); /* "" when there is none */
void write_file(const char *path, const char *text);
unsigned count_lines(const char *text, const char *part); /* lines that hold part */
/* A port of 127.0.0.1 that nothing else gets before this test ends: no other test program, and
 * neither a socket that binds to port 0 nor one that connects. */
unsigned free_port(void);

/* Runs argv to its end, killing it at the deadline; output is both streams, interleaved. */
struct run {
    int status; /* exit status; 128 + signal */
    char *output;
};
struct run run_program(const char *const *argv, const char *const *environment, double deadline);

/* ---- chromux --------------------------------------------------------------------------------- */
struct chromux {
    pid_t pid; /* 0 once it was seen to end */
    int port, admin_port;
    char *errors, *access; /* paths of what it writes */
    int status;            /* exit status once ended; 128 + signal */
};
const char *chromux_path(void);
/* Starts `chromux run` with settings "NAME=VALUE" in an otherwise empty environment, PORT=0 and the
 * access log in the temp folder unless given, and waits until it listens. An argument that begins
 * with "--" is for the command line: its value is the next one. It is a balancer alone, so that its
 * pid is the one that serves, unless there is "--role"; "--role", "all": a supervisor and its
 * children. Ends with NULL. */
struct chromux *chromux_start(const char *first, ...) __attribute__((sentinel));
struct chromux *chromux_start_list(const char *const *settings);
/* As chromux_start_list, but does not wait until it listens. */
struct chromux *chromux_spawn(const char *const *settings);
/* Waits until /health names n healthy instances. */
void chromux_wait_healthy(struct chromux *x, unsigned n);
/* TERM and the exit status; kills at the deadline (then 137). */
int chromux_stop(struct chromux *x);
void chromux_signal(struct chromux *x, int sig);
/* Waits for its end; false at the deadline. */
bool chromux_wait_exit(struct chromux *x, double seconds);
char *chromux_log(struct chromux *x);    /* stderr so far */
char *chromux_access(struct chromux *x); /* access log so far */
long process_rss_kb(pid_t pid);
/* HUPs and waits until /status shows another reload, good or bad. */
void chromux_reload(struct chromux *x);
/* Lines of the access log; waits until there are n that hold part, and returns the last of those.
 */
char *chromux_access_line(struct chromux *x, const char *part, unsigned n);
/* A field's value of a kv line, "" when it is absent. */
char *kv(const char *line, const char *name);

/* ---- children that are not chromux ----------------------------------------------------------- */
/* Starts argv in the folder of the test run with both streams into a log file; killed by the
 * teardown. */
pid_t child_start(const char *const *argv, const char *log_name);
void child_kill(pid_t *pid); /* SIGKILL and reaped; *pid = 0 */
/* Waits for its end: the exit status, 128 + signal, and *pid = 0; -1 at the deadline. */
int child_wait(pid_t *pid, double seconds);

#endif
