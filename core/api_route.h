/* api_route.h: the route policy for our own Lua: require("chromux.route").
 *
 *   choose(path, bytes, attempt, {instance, ...}) -> instance, reason | nil, reason
 *
 * Which of these instances, all of which can take it, is to take the write with this path? nil: the
 * policy wants none of them. bytes: of the body; attempt: 1 for the first. */
#ifndef API_ROUTE_H
#define API_ROUTE_H

#include "api.h"

/* Adds the module to the VM. */
void api_route_open(lua_State *L);

#endif
