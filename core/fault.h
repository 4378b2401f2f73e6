/* fault.h: named steps of the journal at which a test build (make FAULTS=1) may die or stand still.
 * In other builds this module is empty and there is no chromux.copies.fault.
 *
 * Environment: FAULT_POINTS="name=nth:what[:seconds],…": at the nth hit of that step since the
 * start, kill (SIGKILL) or pause (the whole process stands still for so long). FAULT_LOG=path: the
 * name of each step is appended to it when it is hit. */
#ifndef FAULT_H
#define FAULT_H

#include <lua.h>

/* fault(name) of chromux.copies. */
int fault_hit(lua_State *L);

#endif
