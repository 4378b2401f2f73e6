/* api_copies.h: what Lua may say about copies: require("chromux.copies").
 *
 *   collection_set(logical, tenant, database, floor)      collection_drop(logical)
 *   floor(logical, n) -> known
 *   copy_set(logical, instance, physical, position, readable) -> known
 *   copy_drop(logical, instance)
 *   clear(); count() -> collections
 *   on(true|false)         whether the table may be asked; reads get 503 until then
 *   looked(logical, sure)  answers lb.journal's look(); sure: what is not there does not exist
 *   get(logical, instance) -> physical, behind, may be read | nil
 *
 * Ids are UUIDs of 36 lower-case bytes, numbers whole from 0 to 2^53; anything else is an error. */
#ifndef API_COPIES_H
#define API_COPIES_H

#include "api.h"

/* Adds the module to the VM. */
void api_copies_open(lua_State *L);

#endif
