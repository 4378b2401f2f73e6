/* api.h: the workflow VM: what our own Lua may call (fetch, pg, sleep, json, log, env), as
 * coroutines.
 *
 * Every wait is a yield; a resumed coroutine proves that it is the one that waited (id plus
 * generation). A task that errs is logged with its traceback and ends alone. */
#ifndef API_H
#define API_H

#include "fetch.h"
#include "pg.h"
#include "script.h"
#include <ev.h>

/* Makes the VM on this loop. database_url may be "": then pg calls answer nil, "no DATABASE_URL".
 */
bool api_start(struct ev_loop *loop, const char *database_url, struct buf *error) MUST_CHECK;
void api_stop(void);
lua_State *api_vm(void);

/* Runs a Lua program file as a task with the global `arg`; *exit_code is its result when the loop
 * ends: 0, what os.exit or `return N` gave, or 1 after an error (told on stderr with file:line). */
bool api_run_file(const char *path, int argc, char **argv, int *exit_code) MUST_CHECK;

/* Calls require(module)[function] with the nargs values on top of the stack; the one result stays
 * on the stack. false: nothing left on the stack, logged. */
bool api_call(const char *module, const char *function, int nargs) MUST_CHECK;

#endif
