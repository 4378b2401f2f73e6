/* fault.h: named steps of the journal at which a test build (make FAULTS=1) may die or stand still.
 * In other builds this module is empty and there is no chromux.copies.fault.
 *
 * Environment: FAULT_POINTS="name=nth:what,…": at the nth hit of that step since the start, or at
 * each ("*"), what is one of
 *   kill         SIGKILL
 *   pause:S      the whole process stands still for so long
 *   delay:S      the task that came there does; steps of Lua alone
 *   make, make:S what the step's name says is made to happen by whoever calls; steps of Lua alone
 * FAULT_LOG=path: the name of each step is appended to it when it is hit, with "!" behind it when
 * something was done. */
#ifndef FAULT_H
#define FAULT_H

#include <lua.h>

/* fault(name) of chromux.copies -> "delay", seconds | "make", seconds (0: none said) | nothing */
int fault_hit(lua_State *L);

#ifdef CHROMUX_FAULTS
void fault_at(const char *name);
#else
static inline void fault_at(const char *name)
{
}
#endif

#endif
