/* hook.h: a webhook, and what it was told. There is one plan for all hooks of a test. */
#ifndef HOOK_H
#define HOOK_H

#include "peer.h"
#include "stage.h"

#define HOOK_SECRET "T000/B000/keep-this-secret"

/* How hooks treat the requests to come, in order; then all are taken. HOLD answers after
 * peer_release(). */
enum how { TAKE, FAIL, LATER, REFUSE, RESET, HANG, HOLD };
void treat(const enum how *list, unsigned n); /* at most 16 */

struct peer *hook_start(void); /* forgets the plan */
unsigned hooks_answered(void); /* requests that got their 200 since then */
/* SLACK_WEBHOOK_URL=…, with a secret in it. */
char *slack_at(struct peer *p);

/* Messages that came whole and hold part. */
unsigned told(struct peer *p, const char *part);
/* The first of them, "" when there is none. */
char *message(struct peer *p, const char *part);
/* Where the first message with part came, from 0; -1: none did. */
int place(struct peer *p, const char *part);

/* An event, as another process raises one. A kind that slack.lua has no words for shows its title.
 */
void event(struct stage *s, const char *kind, const char *key, const char *title);
/* A message that is told after all that waits: when it is there, nothing else is to come. */
void flush(struct stage *s, struct peer *p, const char *mark);

#endif
