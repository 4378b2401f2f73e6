/* fixture.h: the arrangement most tests begin with: one or two scripted peers and chromux in front
 * of them. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "harness.h"
#include "peer.h"
#include "wire.h"

#define DB        "/api/v2/tenants/t/databases/d"
#define COLL_ID   "01234567-89ab-4def-8123-456789abcdef"
#define COLL      DB "/collections/" COLL_ID
#define HEARTBEAT "/api/v2/heartbeat"

/* Starts chromux with a as the primary and b (or NULL) as the replica, reads going to both
 * (UNREPLICATED_READS=any), probes five times a second and patient ones; further settings win.
 * Waits until all are healthy. */
struct chromux *in_front_of(struct peer *a, struct peer *b, ...) __attribute__((sentinel));

/* A folder of policies of the test's own: the shipped ones, to be edited. */
char *own_policies(void);
/* Replaces the first place of a text in a file, which must be there. */
void edit_file(const char *path, const char *from, const char *to);

/* A whole answer for scripts: 200 with this body. */
bool conn_answer(struct conn *c, const char *body);

#endif
