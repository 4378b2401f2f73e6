/* role.h: one process in one role: everything it needs is started, its signals are watched, it is
 * told of new settings, and it drains and ends.
 *
 * Every role has settings, log, policies, the workflow VM with its engine (engine.h), and the fleet
 * with probes, pool and courier. Only the balancer has listeners, sessions, the proxy, the pages
 * and the journal. */
#ifndef ROLE_H
#define ROLE_H

#include "roster.h"
#include "settings.h"

/* Adds to *errors what this role can't be with these settings, or only the start would notice. */
bool role_check(enum role role, const struct config *cfg, struct buf *errors) MUST_CHECK;

/* Is this role until a signal ends it: 0; 1: it can't be started, and stderr says why. Takes *cfg.
 * from: read again at each HUP. A supervised one (roster.h) leaves systemd to its supervisor, and
 * takes any number of TERM and INT as one: ROLE_STOP_NOW is what stops it at once. */
int role_run(enum role role, bool supervised, const struct settings_sources *from,
             struct config **cfg);
#define ROLE_STOP_NOW SIGUSR2

/* The signal that ended role_run(), or 0. */
int role_stopped_by(void);

/* LOG_LEVEL and LOG_FORMAT. */
void role_apply_log(const struct config *cfg);
/* Settings that only a restart changes get the value they had. */
void role_keep_unreloadable(struct config *next, const struct config *was);
/* systemd's readiness protocol (sd_notify(3)): "READY=1". Nothing where nobody listens. */
void role_tell_systemd(const char *state);

#endif
