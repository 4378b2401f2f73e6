/* engine.h: what a process does of its own accord, beside answering requests: one module of
 * lua/lb/, which its role names. A worker and the coordinator run lb.sync, the monitor lb.monitor,
 * the balancer lb.notify. Called from outside of tasks, so each function may spawn but not wait:
 *
 *   start(settings)   all settings but secrets by name, instances = {{name=, url=, host=, port=,
 *                     role=, priority=, weight=}, …} and role = "worker" | "coordinator" |
 *                     "monitor" | "balancer"; the balancer's also have secrets =
 *                     {SLACK_WEBHOOK_URL=, WEBHOOK_URL=}, "" when unset. An error stops the start
 *   reload(settings)  the same, after a HUP; the fleet has changed already
 *   stop() -> true when all is ended and written; asked again until then, DRAIN_TIMEOUT at most
 *   status() -> table, for lua/lb/status.lua
 *   metrics() -> {{name=, help=, type=, value=, labels=}, …} */
#ifndef ENGINE_H
#define ENGINE_H

#include "api.h"
#include "config.h"
#include "roster.h"

/* cfg is read at each use. */
bool engine_start(enum role role, const struct config *cfg, struct buf *error) MUST_CHECK;
void engine_reload(const struct config *cfg);
/* Tells it to stop; true when it has. Fine when not started. */
bool engine_finished(void);
/* The module that runs, as "lb.sync"; NULL: none. */
const char *engine_module(void);
/* No stop is asked for any more. */
void engine_stop(void);

/* Pushes the table of settings and instances that every engine and the journal get. */
void engine_push_settings(lua_State *L, const struct config *cfg);

/* The same with the secrets of the balancer's, for a program's require("chromux.settings"). */
void engine_give_settings(lua_State *L, const struct config *cfg);

#endif
