/* policy.h: the disposable policy VM: load, validate, try, swap, last good; a verdict or the
 * fallback.
 *
 * A policy that errs, overruns its budget or answers nonsense costs nothing: the C fallback
 * answers, the failure is counted by kind, logged with file and line and shown on /status.
 * POLICY_TRIP failures within POLICY_TRIP_SECONDS trip that policy to its fallback until the next
 * reload. */
#ifndef POLICY_H
#define POLICY_H

#include "verdict.h" /* policy_request, policy_verdict and the lists of policies and failures */

enum { POLICY_TRIP = 20, POLICY_TRIP_SECONDS = 10 };

struct policy_stats {
    uint64_t calls, fallbacks, failures[POLICY_FAIL_COUNT];
    bool tripped, missing; /* missing: the folder that was loaded has no such file */
    char last_error[512];  /* "" when none since the last load */
    double last_error_at;  /* unix time */
};

/* Loads every policy of the folder into a new VM, validates them and tries each on samples; only
 * then swaps it in. false: the old VM serves on and *error says file:line and what is wrong, one
 * line a mistake. */
bool policy_load(const struct config *c, struct buf *error) MUST_CHECK;
/* As policy_load without the swap: what `chromux check` does. missing: files that are not there and
 * need not be, as "a.lua,b.lua". */
enum { POLICY_MISSING_MAX = 128 };
bool policy_check(const struct config *c, struct buf *error,
                  char missing[POLICY_MISSING_MAX]) MUST_CHECK;
void policy_unload(void);

/* candidates: only those that may serve (fleet_can_serve). Always answers; count 0 gives none. */
void policy_route(const struct policy_request *r, struct node *const *candidates, unsigned count,
                  double now, struct policy_verdict *out);

/* What failover.lua says of a subject: c is NULL for the instance itself. reason: at least 128
 * bytes. Returns true for "up". The fallback: down after failure_threshold failed probes (for a
 * collection: failed probes or 5xx answers), up after success_threshold good ones, else as it was.
 */
bool policy_judge_up(const struct node *n, const struct collection_state *c, double now,
                     char *reason);

/* Asks a question from POLICY_PLAIN on with the nargs plain values on top of L and pushes its
 * VERDICT_ANSWERS answers, nil for those not given. false: nothing pushed, *why says why until the
 * next call, and the caller does what it does without the policy. */
bool policy_call(enum policy_id id, struct lua_State *L, int nargs, double now,
                 const char **why) MUST_CHECK;
enum policy_id policy_find(const char *name); /* "sync.batch"; POLICY_COUNT: no such question */

unsigned policy_generation(void); /* 0 before the first load */
double policy_loaded_at(void);    /* unix time */
const struct policy_stats *policy_stats(enum policy_id id);
const char *policy_name(enum policy_id id); /* "route", "sync.batch" */
const char *policy_file(enum policy_id id);
const char *policy_failure_name(enum policy_failure f);
const char *
policy_load_error(void); /* of the last reload that failed since the last good one; "" */
size_t policy_memory(void);

#endif
