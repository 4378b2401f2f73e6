/* task.h: coroutines of the workflow VM, resumed by the loop.
 *
 * A task waits by yielding out of a C function, which has made a `wait` before; every wait has the
 * task's id and the generation that this wait gave it. When the event comes, the wait is freed and
 * the task is resumed only if it still exists and still waits with that generation: a task that was
 * cancelled or whose yield was refused is left alone. */
#ifndef TASK_H
#define TASK_H

#include "base.h"

#include <ev.h>
#include <lauxlib.h>
#include <lua.h>

struct wait;

/* vm runs no task itself; it is the caller's. */
void task_start(lua_State *vm, struct ev_loop *loop);
/* Ends all tasks and forgets what could not be taken back: nothing may tell of it any more. Fine
 * when not started. */
void task_stop(void);
void task_end_all(void);

/* sleep(seconds), id, generation = token(), park(), wake(id, generation), id = spawn(function,
 * argument...), cancel(id) -> was there one. */
extern const luaL_Reg task_functions[];

/* A task that runs the function under its nargs values on the top of L, which are consumed, in a
 * later turn of the loop. Called protected. */
void task_new(lua_State *L, int nargs);
/* The same for the one that task_run() waits for. */
void task_new_main(lua_State *L, int nargs);
/* Runs the loop until the main task has ended, and ends the others. *code: 0, what it returned
 * (false is 1), or 1 after an error. false: it had not, every task waits and nothing could wake
 * one. */
bool task_run(int *code) MUST_CHECK;
bool task_in_program(void);
/* The one place that tells of a task's error: the log gets the start, a program's user all of it.
 */
void task_tell(const char *text);

/* For functions of Lua that wait. task_wait raises where the caller is no task that can wait; the
 * function then ends in `return task_yield(L)`. task_wait_end, called once and from the loop,
 * resumes the task with the values that `push` makes (run protected on the VM, with a pointer to
 * `result` as its argument, before the task goes on and before this returns). drop(arg) is called
 * instead when the task ends or waits for something else: the wait is gone then. drop NULL: what is
 * waited for can't be taken back, and the wait stays until task_wait_end. */
struct wait *task_wait(lua_State *L, void (*drop)(void *arg), void *arg) MUST_CHECK;
/* Another arg for drop. */
void task_wait_for(struct wait *w, void *arg);
void task_wait_end(struct wait *w, lua_CFunction push, const void *result);
int task_yield(lua_State *L);
/* Raises as task_wait does, and does nothing else. */
void task_check(lua_State *L);

#endif
