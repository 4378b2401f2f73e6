/* admin.h: the handler of chromux's own endpoints: /health, /status, /metrics. */
#ifndef ADMIN_H
#define ADMIN_H

#include "session.h"

extern const struct handler admin_handler;

/* cfg is read at each use. started: unix time. */
void admin_start(const struct config *cfg, double started);
void admin_reload(const struct config *cfg);
/* What the last reload said; "" when it was good. Shown on /status. */
void admin_reload_error(const char *text);

#endif
