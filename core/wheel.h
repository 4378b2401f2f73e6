/* wheel.h: coarse deadlines for many things at once: one sweep instead of a heap timer each.
 *
 * An entry costs nothing while its deadline only moves later: it stays in its slot, and when the
 * sweep meets it there it is put where it now belongs. Granularity 25 ms, never early. */
#ifndef WHEEL_H
#define WHEEL_H

#include "base.h"
#include <ev.h>

struct wheel_entry {
    struct wheel_entry *next, *prev; /* NULL when not in the wheel */
    double deadline;                 /* loop time (ev_now), 0 when unset */
    uint32_t tick;                   /* the tick of the slot it lies in */
    void (*fire)(struct wheel_entry *e);
};

/* One wheel a process, on this loop. */
void wheel_start(struct ev_loop *loop);
void wheel_stop(void);
void wheel_init(struct wheel_entry *e, void (*fire)(struct wheel_entry *e));
/* Sets or moves the deadline. When it passes, fire() is called once, with the entry unset; it may
 * set it again and may free what holds it. */
void wheel_set(struct wheel_entry *e, double deadline);
void wheel_clear(struct wheel_entry *e);

#endif
