/* plant.h: one bug put into the workflow, in test builds (make FAULTS=1) only: whether the history
 * checker sees it is tested with that. In other builds this module is empty.
 *
 * Environment: PLANT_FILE, such as "lb/groups.lua"; PLANT_TEXT, what stands in that file just once;
 * PLANT_INSTEAD, what is put in its place. */
#ifndef PLANT_H
#define PLANT_H

#include <lua.h>
#include <stddef.h>

#ifdef CHROMUX_FAULTS
/* The text that is to run as this embedded file: p and *n are its own. A changed one lies on top of
 * L's stack, and lives as long as it does there. Raises an error when PLANT_TEXT does not stand in
 * the file just once. */
const char *plant_text(lua_State *L, const char *name, const char *p, size_t *n);
#else
static inline const char *plant_text(lua_State *L, const char *name, const char *p, size_t *n)
{
    return p;
}
#endif

#endif
