/* verdict.h: one policy VM: what a policy is asked, as tables; what it answers, checked.
 *
 * Nothing a policy does to the tables it is given outlives the call or changes which node is
 * chosen: req, nodes' elements and lb are read-only views, the list of nodes is filled anew for
 * each call, and an answer is a name that is looked up among the candidates. */
#ifndef VERDICT_H
#define VERDICT_H

#include "lb.h"

/* X(id, name, file, function): the questions; those of one file stand together. C asks the first
 * two, of files that must be there. Lua asks the others, from POLICY_PLAIN on, with plain values
 * (lua/lb/contract.lua says which); their files may be missing. */
#define POLICIES(X)                                                                                \
    X(ROUTE, "route", "route.lua", "route")                                                        \
    X(FAILOVER, "failover", "failover.lua", "judge")                                               \
    X(SYNC_BATCH, "sync.batch", "sync.lua", "batch")                                               \
    X(SYNC_AUTHORITY, "sync.authority", "sync.lua", "authority")                                   \
    X(SYNC_PACE, "sync.pace", "sync.lua", "pace")                                                  \
    X(UPGRADE, "upgrade.advise", "upgrade.lua", "advise")                                          \
    X(NOTIFY, "notify.decide", "notify.lua", "decide")                                             \
    X(SLACK, "slack.format", "slack.lua", "format")
#define POLICY_ENUM(id, name, file, fn) POLICY_##id,
enum policy_id { POLICIES(POLICY_ENUM) POLICY_COUNT, POLICY_PLAIN = POLICY_SYNC_BATCH };
#undef POLICY_ENUM

/* X(id, name): how a call can fail */
#define POLICY_FAILURES(X)                                                                         \
    X(ERROR, "error")                                                                              \
    X(BUDGET, "instructions")                                                                      \
    X(TIME, "time") X(MEMORY, "memory") X(ANSWER, "wrong_answer") X(UNKNOWN_NODE, "unknown_node")
#define POLICY_FAIL_ENUM(id, name) POLICY_FAIL_##id,
enum policy_failure { POLICY_FAILURES(POLICY_FAIL_ENUM) POLICY_FAIL_COUNT };
#undef POLICY_FAIL_ENUM

struct policy_verdict {
    struct node *node; /* NULL: none may serve */
    char reason[128];
    double timeout;    /* seconds for this try; 0: the setting's */
    double max_behind; /* entries that a copy may lack; -1: nothing said */
    bool by_fallback;
};

enum { POLICY_REASON_MAX = 128, POLICY_ERROR_MAX = 512 };

/* Why a call failed; error has file:line where there is one. */
struct policy_fault {
    enum policy_failure kind;
    char error[POLICY_ERROR_MAX];
};

/* Answers of a call with plain values; and of what such a call may use, this many times
 * POLICY_BUDGET and POLICY_TIME: it is seldom, and a message is longer than a choice. */
enum { VERDICT_ANSWERS = 3, VERDICT_PLAIN_SHARE = 10, VERDICT_LABEL_MAX = 80 };

struct verdict_vm;

/* Compiles and runs the files (NULL: leave that one out; questions of one file have one path) and
 * finds their functions. NULL: one line a mistake in *errors. */
struct verdict_vm *verdict_vm_new(const struct config *c, const char *const path[POLICY_COUNT],
                                  struct buf *errors) MUST_CHECK;
void verdict_vm_free(struct verdict_vm *vm);
size_t verdict_vm_memory(const struct verdict_vm *vm);
/* lb.random() from a known start. */
void verdict_seed(struct verdict_vm *vm, uint64_t seed);
/* Forgets what the tables hold, so that the next call fills them whole: needed where nodes were
 * freed or text was changed in place. */
void verdict_forget(struct verdict_vm *vm);

/* Both: false when the call failed; *fault says how. */
bool verdict_route(struct verdict_vm *vm, const struct policy_request *r,
                   struct node *const *candidates, unsigned count, double now,
                   struct policy_verdict *out, struct policy_fault *fault) MUST_CHECK;
bool verdict_judge(struct verdict_vm *vm, const struct node *n, const struct collection_state *c,
                   double now, bool *up, char reason[POLICY_REASON_MAX],
                   struct policy_fault *fault) MUST_CHECK;

/* The others: asks with copies of the nargs plain values on top of `from` and pushes copies of the
 * VERDICT_ANSWERS answers onto it, nil for those not given. false: nothing pushed. */
bool verdict_call(struct verdict_vm *vm, enum policy_id id, struct lua_State *from, int nargs,
                  double now, struct policy_fault *fault) MUST_CHECK;
/* Asks what the contract has as sample `number`, from 0 on; *more is false where there is none. */
bool verdict_try(struct verdict_vm *vm, enum policy_id id, unsigned number, double now, bool *more,
                 char label[VERDICT_LABEL_MAX], struct policy_fault *fault) MUST_CHECK;
/* Was its file there? */
bool verdict_has(const struct verdict_vm *vm, enum policy_id id);

#endif
