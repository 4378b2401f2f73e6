/* fetch.h: an HTTP request as a client, on libcurl multi and libev: one request, one callback.
 * For webhooks and Lua scripts; the proxy and the probes use their own connections. Proxies named
 * in the environment are not used. The process must ignore SIGPIPE. */
#ifndef FETCH_H
#define FETCH_H

#include "buf.h"
#include <ev.h>

struct fetch;
struct fetch_call;

struct fetch_request {
    const char *method;         /* "GET" */
    const char *url;            /* http or https only; redirects are not followed */
    const char *const *headers; /* "Name: value", NULL-terminated; may be NULL */
    struct str body;            /* sent as it is; copied */
    double timeout;             /* seconds for the whole call */
    size_t max_answer;          /* bytes; a longer answer is an error */
};
struct fetch_answer {
    int status;            /* 0 when there was none; may be set beside an error */
    const char *error;     /* NULL when there was a whole answer */
    struct str head, body; /* raw head lines; both valid during the callback only */
};

struct fetch *fetch_new(struct ev_loop *loop) MUST_CHECK; /* NULL: curl or c-ares can't start */
void fetch_free(struct fetch *f); /* open calls are dropped without a callback */
/* cb is called exactly once, from the loop, never before this returns; the call is gone then. At
 * most 1,024 calls are open at once: the next one ends with an error. Nothing is ever sent twice,
 * except GET and HEAD on a kept connection that turned out to be dead. */
struct fetch_call *fetch_start(struct fetch *f, const struct fetch_request *r,
                               void (*cb)(void *arg, const struct fetch_answer *a), void *arg);
void fetch_cancel(struct fetch_call *c);

#endif
