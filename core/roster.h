/* roster.h: the roles that a process of chromux can have, and who has them: a row a process, in
 * memory that a supervisor and its children share.
 *
 * The supervisor writes what it does with a child, the child writes its signs of life; whoever
 * reads may see a row in the middle of a change, so a row is for showing and for the supervisor
 * only. A process that is alone has a roster of one row of its own. */
#ifndef ROSTER_H
#define ROSTER_H

#include "base.h"

#include <stdatomic.h>
#include <sys/types.h>

enum role { ROLE_BALANCER, ROLE_WORKER, ROLE_COORDINATOR, ROLE_MONITOR, ROLE_COUNT };

/* "balancer", "worker", "coordinator", "monitor" */
const char *role_name(enum role role);
bool role_from(const char *name, enum role *out) MUST_CHECK;

/* waiting: for its next start; ended: never started again. */
enum roster_state { ROSTER_STARTING, ROSTER_UP, ROSTER_WAITING, ROSTER_ENDED };
const char *roster_state_name(enum roster_state state);

enum { ROSTER_MAX = 80, ROSTER_HOW_MAX = 120 };

struct roster_row {
    /* The supervisor's. */
    enum role role;
    unsigned index; /* from 1 among those of its role */
    enum roster_state state;
    pid_t pid; /* 0: there is none now */
    unsigned restarts;
    double started_at;              /* unix time of its last start */
    char last_exit[ROSTER_HOW_MAX]; /* how the one before it ended; "" at first */
    /* The child's. */
    atomic_bool up;              /* it does its work */
    _Atomic unsigned long beats; /* its loop has turned */
    _Atomic double lease_until;  /* CLOCK_BOOTTIME; 0: it holds no lease */
};

extern unsigned roster_count;
struct roster_row *roster_row(unsigned i);

/* A supervisor's: room for ROSTER_MAX rows that its children will see. false: errno says why. */
bool roster_share(void) MUST_CHECK;
/* Adds one; the caller never adds more than ROSTER_MAX. */
struct roster_row *roster_add(enum role role, unsigned index);

/* This process has that row; alone: a roster of its own, of this role. */
void roster_sit(struct roster_row *row);
void roster_sit_alone(enum role role);
/* Of this process's row; before roster_sit nothing happens. */
void roster_up(void);
void roster_beat(void);
void roster_lease(double boottime);

#endif
