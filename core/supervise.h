/* supervise.h: the processes of `chromux run` with a database: a balancer, workers or a
 * coordinator, and a monitor, each a child that this process starts, watches and starts again.
 *
 * The children are forked from a process that has read its settings and made nothing else, and die
 * with it. The balancer is the first: the others follow once it listens. A child that ends is
 * started again, at once the first time and then after growing pauses. A child that refuses its
 * settings or policies at its first start ends the whole start with its exit code; at a later start
 * it is tried again, as an operator may be mending them. HUP and USR1 are passed on, and a child
 * that is started later gets the settings of the last good HUP. TERM and INT let all drain; a
 * second one ends them at once. A child that holds a lease that has run out, and whose loop does
 * not turn, is killed: the next holder then knows it to be dead, and need not wait for what it may
 * still send. */
#ifndef SUPERVISE_H
#define SUPERVISE_H

#include "settings.h"

/* Until a signal ends it; the exit code: 0 when all children ended well. Takes *cfg. In a child it
 * does not return. from: read again at each HUP. */
int supervise(const struct settings_sources *from, struct config **cfg);

/* The signal that ended it, or 0. */
int supervise_stopped_by(void);

#endif
