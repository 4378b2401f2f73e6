/* roster.h: the roles that a process of chromux can have. */
#ifndef ROSTER_H
#define ROSTER_H

#include "base.h"

enum role { ROLE_BALANCER, ROLE_WORKER, ROLE_COORDINATOR, ROLE_MONITOR, ROLE_COUNT };

/* "balancer", "worker", "coordinator", "monitor" */
const char *role_name(enum role role);
bool role_from(const char *name, enum role *out) MUST_CHECK;

#endif
