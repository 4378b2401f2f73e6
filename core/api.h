/* api.h: the workflow VM: what our own Lua may call (fetch, pg, sleep, json, log, env), as
 * coroutines.
 *
 * Every wait is a yield; a resumed coroutine proves that it is the one that waited (id plus
 * generation). A task that errs is logged with its traceback and ends alone. What programs find is
 * written down in lua/lb/runtime.lua. The VM is trusted: a task that never waits holds the loop. */
#ifndef API_H
#define API_H

#include "fetch.h"
#include "pg.h"
#include "script.h"
#include <ev.h>

/* Makes the VM on this loop. database_url may be "": then pg calls answer nil, "no DATABASE_URL".
 */
bool api_start(struct ev_loop *loop, const char *database_url, struct buf *error) MUST_CHECK;
void api_stop(void); /* ends every task; fine when not started */
lua_State *api_vm(void);

/* Runs a Lua program file as the main task, with the global `arg` (argv as it is: 0 is the file),
 * and the loop until that task has ended; the other tasks are cancelled then. *exit_code is 0, what
 * `return N` gave (false is 1), or 1 after an error, which is told on stderr with file:line and
 * traceback. os.exit(N) flushes and ends the process from any task. false: the file can't be read
 * or compiled (told on stderr, *exit_code is 1). */
bool api_run_file(const char *path, int argc, char **argv, int *exit_code) MUST_CHECK;

/* The same with the function `main` of one of our own modules, called with argv[1…]. */
bool api_run_module(const char *module, int argc, char **argv, int *exit_code) MUST_CHECK;

/* From C, outside of tasks: the function may spawn but not wait. Calls require(module)[function]
 * with the nargs values on top of the stack; the one result stays on the stack. false: nothing left
 * on the stack, logged. */
bool api_call(const char *module, const char *function, int nargs) MUST_CHECK;

/* For the files that give Lua other functions which wait. api_wait_begin, called by such a
 * function, raises where the caller is no task that can wait; the function then ends in `return
 * api_yield(L)`. api_wait_end, called once and from the loop, resumes the task with the values that
 * `push` makes (run protected on the VM, with a pointer to `result` as its argument, before the
 * task goes on and before this returns). drop(arg) is called instead when the task ends or waits
 * for something else: the wait is gone then. */
struct wait;
struct wait *api_wait_begin(lua_State *L, void (*drop)(void *arg), void *arg) MUST_CHECK;
void api_wait_end(struct wait *w, lua_CFunction push, const void *result);
int api_yield(lua_State *L);

/* The time that Lua goes by (runtime.lua's now()): unix time, but it goes neither backwards nor
 * more than a tenth faster or slower than time passes. When the clock on the wall is set it comes
 * to agree with it little by little. */
double api_now(void);
/* The same from two readings, for tests: *ahead is what the last one was ahead of clock, *at when
 * that was; 0 at first. */
double api_follow(double *ahead, double *at, double clock, double wall);

#endif
