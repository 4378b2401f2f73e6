/* health.h: the one place where signs of life meet: counts them, asks the failover policy, tells
 * the fleet. Probes and requests both report here; nobody else changes a node's health. */
#ifndef HEALTH_H
#define HEALTH_H

#include "fleet.h"

enum health_signal {
    HEALTH_PROBE_PASS,
    HEALTH_PROBE_FAIL,
    HEALTH_BUSY, /* the heartbeat answered, the data probe did not: neither pass nor fail */
    HEALTH_CONNECT_FAIL,
    HEALTH_TIMEOUT,
    HEALTH_RESET, /* broken off, or garbage */
    HEALTH_5XX,
    HEALTH_OK /* a request was answered */
};

/* c: the collection on n it is about, or NULL for the instance itself. text: one line for a
 * failure. */
void health_note(struct node *n, struct collection_state *c, enum health_signal s,
                 const char *text);

#endif
