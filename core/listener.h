/* listener.h: bind and accept. */
#ifndef LISTENER_H
#define LISTENER_H

#include "session.h"

/* Binds and listens; port 0 takes a free one; the log says which ("listening port=N"). false:
 * *error has a sentence with what to do. */
bool listener_open(const char *address, int port, bool local_only, struct buf *error) MUST_CHECK;
/* No new connections from here on: what waits in the backlog is still taken. */
void listener_close_all(void);

#endif
