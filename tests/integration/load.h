/* load.h: clients in threads, for tests that need traffic while something happens. A client keeps
 * its connection, sends one request after the other and never tries again. */
#ifndef LOAD_H
#define LOAD_H

#include "harness.h"

/* What the next request of a client is, and whether its answer is right. `n` counts the requests of
 * the client. Called from its thread: keep() and plain C only. */
struct load_plan {
    const char *(*request)(unsigned client, unsigned n, void *arg);
    bool (*right)(unsigned client, unsigned n, int status, const char *body, void *arg);
    void *arg;
    double pace; /* seconds between two requests of a client; 0: none */
};

struct load;
struct load *load_start(int port, unsigned clients, const struct load_plan *plan);
unsigned load_good(struct load *l);
unsigned load_bad(struct load *l);
/* Seconds that the slowest request so far took, from before it was sent. */
double load_longest(struct load *l);
/* The first wrong answer, for the message of a failed test; "" when there is none. */
const char *load_complaint(struct load *l);
/* Ends the clients between two requests. */
void load_stop(struct load *l);
void load_stop_all(void); /* the teardown's */

/* One request with a body of any size from any thread, outside of a load: the status, or 0. */
int load_once(int port, const char *head, const char *body, size_t n);

/* A plan of nothing but heartbeats that must be answered 200. */
extern const struct load_plan load_heartbeats;

#endif
