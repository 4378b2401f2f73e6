/* api_policy.h: policies for our own Lua: require("chromux.policy").
 *
 *   call(name, value, ...) -> answer, answer, answer | nil, why
 *   loaded() -> generation
 *   tripped() -> {{file=, last_error=}, ...} of those that are set aside until the next reload
 *
 * call asks "sync.batch", "sync.authority", "sync.pace", "upgrade.advise", "notify.decide" or
 * "slack.format" (policies/README.md; another name is an error) with up to 4 plain values, which
 * are copied, as are the answers: nil, booleans, numbers, strings and tables of these, at most 16
 * deep and 10,000 in all. An answer has the shape that lua/lb/contract.lua asks for. Whatever goes
 * wrong (no such file, an error, a limit, a wrong answer, tripped) gives nil and why, counted and
 * logged: the caller has what is to be done then. An answer that is nil itself comes with a reason
 * too, as "sync.authority" may give: both mean that the policy names none.
 *
 * loaded: how often policies were loaded; 0: never. It changes when answers may. */
#ifndef API_POLICY_H
#define API_POLICY_H

#include "api.h"

/* Adds the module to the VM. */
void api_policy_open(lua_State *L);

#endif
