/* onward.h: the head with which a request goes on to a server. */
#ifndef ONWARD_H
#define ONWARD_H

#include "mapped.h"
#include "session.h"

/* Writes it into r->text, behind what is there; there must be room for it, as the request's slices
 * point into that memory. With a mapped collection m->at is where in the head each try writes its
 * id. *session: the value of X-Chromux-Session, kept in r->text; left alone without one. */
struct str onward_head(struct request *r, struct http1_head *h, struct mapped *m,
                       struct str *session) MUST_CHECK;

#endif
