/* health.c: a sign is counted, the policy is asked, the fleet is told, in this order and only here.
 */
#include "health.h"

#include "log.h"
#include "policy.h"
#include "stream.h"

#include <stdio.h>

static void count(struct history *h, enum health_signal s, double now)
{
    switch (s) {
    case HEALTH_PROBE_PASS:
        h->passes++;
        h->fails = 0;
        h->busy_since = 0;
        h->connect_fails = h->timeouts = h->resets = 0;
        break;
    case HEALTH_PROBE_FAIL:
        h->fails++;
        h->passes = 0;
        h->busy_since = 0;
        break;
    case HEALTH_BUSY:
        h->fails = 0;
        if (h->busy_since == 0)
            h->busy_since = now;
        break;
    case HEALTH_CONNECT_FAIL:
        h->connect_fails++;
        h->oks = 0;
        break;
    case HEALTH_TIMEOUT:
        h->timeouts++;
        h->oks = 0;
        break;
    case HEALTH_RESET:
        h->resets++;
        h->oks = 0;
        break;
    case HEALTH_5XX:
        h->errors_5xx++;
        h->oks = 0;
        break;
    case HEALTH_OK:
        h->oks++;
        h->errors_5xx = h->connect_fails = h->timeouts = h->resets = 0;
        break;
    }
}

/* A sign that makes an instance that was up doubtful at once. */
static bool alarming(enum health_signal s)
{
    return s == HEALTH_PROBE_FAIL || s == HEALTH_CONNECT_FAIL || s == HEALTH_TIMEOUT ||
           s == HEALTH_RESET;
}

void health_note(struct node *n, struct collection_state *c, enum health_signal s, const char *text)
{
    struct history *h = c ? &c->history : &n->history;
    enum node_health was = c ? c->health : n->health;
    /* The common case costs nothing: a well node answers a request. */
    if (s == HEALTH_OK && was == NODE_UP && h->errors_5xx == 0 && h->connect_fails == 0 &&
        h->timeouts == 0 && h->resets == 0) {
        h->oks++;
        return;
    }
    double now = base_clock();
    count(h, s, now);
    if (text && *text)
        snprintf(h->last_error, sizeof h->last_error, "%s", text);
    if (s != HEALTH_PROBE_PASS && s != HEALTH_OK && s != HEALTH_BUSY)
        n->last_failure = ev_time();
    char reason[160] = "";
    bool up = policy_judge_up(n, c, now, reason);
    enum node_health to = was;
    if (!up)
        to = NODE_DOWN;
    else if (was == NODE_DOWN)
        to = NODE_UP;
    else if (was == NODE_UP && alarming(s))
        to = NODE_SUSPECT;
    else if (was == NODE_SUSPECT && (s == HEALTH_PROBE_PASS || s == HEALTH_BUSY))
        to = NODE_UP;
    if (to == was)
        return;
    /* What C decided alone is told in C's words. */
    const char *why = to == NODE_SUSPECT && text && *text    ? text
                      : to == NODE_UP && was == NODE_SUSPECT ? "a probe was answered"
                                                             : reason;
    fleet_set_health(n, c, to, why, now);
}
