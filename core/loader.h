/* loader.h: a policy file: run, and its functions found; mistakes as lines that name the place. */
#ifndef LOADER_H
#define LOADER_H

#include "cage.h"
#include "config.h"

enum { LOADER_LINE_MAX = 768 };

/* Once a VM, before the memory can have run out. Runs protected. */
void loader_prepare(struct lua_State *L);

/* Runs the file and pushes the functions of the table that it returns. false: nothing pushed, one
 * line a mistake in *errors. strategies: NULL, or LOAD_BALANCE_STRATEGY of this must be one of
 * those that the file has, if it has any. */
bool loader_open(struct sandbox *box, const char *path, const char *const *functions,
                 unsigned count, const struct config *strategies, struct buf *errors) MUST_CHECK;

/* Runs a file of lua/, "lb/x.lua", in the cage and pushes what it returns; false as above. */
bool loader_open_own(struct sandbox *box, const char *name, struct buf *errors) MUST_CHECK;

/* Adds a line to *errors; what does not fit is left out. */
void PRINTF(2, 3) loader_mistake(struct buf *errors, const char *fmt, ...);

#endif
