/* syncing.h: what tests of sync need beside a stage. */
#ifndef SYNCING_H
#define SYNCING_H

#include "stage.h"

/* The server's data is gone: it is killed and comes back empty. */
void chroma_wipe(struct chroma *c);
/* A process of this role beside the balancer, with its settings and one more (NULL: none). */
struct chromux *sync_process(struct stage *s, const char *role, const char *more);
/* How many jobs of the kind are in this state. */
long sync_jobs(struct stage *s, const char *kind, const char *state);
/* Waits until it is n, or more; a failure shows jobs and tasks. */
void sync_check_jobs(struct stage *s, const char *kind, const char *state, long n, double seconds);

#endif
