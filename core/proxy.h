/* proxy.h: the handler of Chroma's routes: candidates, policy, tries, retries, deadlines. */
#ifndef PROXY_H
#define PROXY_H

#include "session.h"

extern const struct handler proxy_handler;

/* cfg is read at each use. */
void proxy_start(const struct config *cfg);
void proxy_reload(const struct config *cfg);
void proxy_stop(void);

#endif
