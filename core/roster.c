/* roster.c: names of roles. */
#include "roster.h"

static const char *const names[ROLE_COUNT] = {"balancer", "worker", "coordinator", "monitor"};

const char *role_name(enum role role)
{
    return names[role];
}

bool role_from(const char *name, enum role *out)
{
    for (unsigned i = 0; i < ROLE_COUNT; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (enum role)i;
            return true;
        }
    return false;
}
