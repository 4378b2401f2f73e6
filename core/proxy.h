/* proxy.h: the handler of Chroma's routes: candidates, policy, tries, retries, deadlines. */
#ifndef PROXY_H
#define PROXY_H

#include "session.h"

extern const struct handler proxy_handler;

/* cfg is read at each use. */
void proxy_start(const struct config *cfg);
void proxy_reload(const struct config *cfg);
void proxy_stop(void);

/* X-Chromux-Max-Behind: N, the entries of the journal that a copy may lack of what this balancer
 * knows to be applied. false: it is no whole number below 10^15, or is there twice; the sentence
 * for the client is proxy_bad_max_behind. Without the field *bounded is false and *n is 0. */
bool proxy_read_max_behind(const struct http1_head *h, bool *bounded, uint64_t *n) MUST_CHECK;
extern const char proxy_bad_max_behind[];

#endif
