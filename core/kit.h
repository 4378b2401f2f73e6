/* kit.h: `chromux test`: policy specs, and policies run in a real policy VM by them. */
#ifndef KIT_H
#define KIT_H

#include "policy.h"

struct lua_State;

/* Runs busted on the (workflow) VM with these files and options; without any, tests/spec or else
 * the specs beside the policies. Returns the exit code: 0 when all passed. */
int kit_main(struct lua_State *L, int argc, char **argv);
/* Makes require("lb.testkit.native") give functions that run a policy file in a policy VM. */
void kit_open(struct lua_State *L);

#endif
