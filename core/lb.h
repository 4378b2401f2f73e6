/* lb.h: the one global of policies besides Lua's own: the time, chance, hashing, turns, settings.
 */
#ifndef LB_H
#define LB_H

#include "ask.h"

/* Embedded in the VM's owner, at an address that does not change. */
struct lb {
    struct ask ask; /* lb.swrr() knows the candidates of the call that runs */
    uint64_t random;
    double now; /* what lb.now is */
};

/* lb.random() from a known start. */
void lb_seed(struct lb *lb, uint64_t seed);
/* Makes `lb` and shares it with every policy that is loaded later. Runs protected. */
void lb_open(struct lua_State *L, struct lb *lb, const struct config *c);
/* Pushes the table behind the view that policies have; lb_put_now() wants to find it. */
void lb_push(struct lua_State *L);
/* Sets lb.now; `at` is where the table behind is. */
void lb_put_now(struct lua_State *L, struct lb *lb, int at, double now);

#endif
