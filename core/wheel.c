/* wheel.c: a ring of slots, each a list; the sweep visits those whose tick has passed. */
#include "wheel.h"

/* Slots of TICK seconds; an entry further away than a round stays in the last slot of the round and
 * is moved on when the sweep meets it. */
#define TICK  0.025
#define SLOTS 2048u
#define FAR   1e9

static struct ev_loop *loop;
static ev_timer timer;
static double origin;
static uint32_t now_tick; /* the last tick that was swept */
static unsigned entries;
static struct wheel_entry slot[SLOTS];

/* Ticks wrap after 3.4 years: they are compared by their difference, and no deadline counts as more
 * than FAR ahead. */
static uint32_t tick_of(double t)
{
    double ticks = (t - origin) / TICK, most = (base_clock() - origin) / TICK + FAR;
    if (ticks > most)
        ticks = most;
    return ticks <= 0 ? 0 : (uint32_t)(uint64_t)ticks + 1;
}

static void unlink_entry(struct wheel_entry *e)
{
    e->prev->next = e->next;
    e->next->prev = e->prev;
    e->next = e->prev = NULL;
    if (--entries == 0)
        ev_timer_stop(loop, &timer);
}

static void link_entry(struct wheel_entry *e)
{
    if (entries++ == 0) {
        /* Asleep until now: nothing lies in any slot, so the sweep may start from here. */
        now_tick = tick_of(base_clock()) - 1;
        ev_timer_again(loop, &timer);
    }
    uint32_t t = tick_of(e->deadline);
    if ((int32_t)(t - now_tick) <= 0)
        t = now_tick + 1;
    if (t - now_tick >= SLOTS)
        t = now_tick + SLOTS - 1;
    e->tick = t;
    struct wheel_entry *head = &slot[t % SLOTS];
    e->next = head;
    e->prev = head->prev;
    head->prev->next = e;
    head->prev = e;
}

static void sweep(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)w;
    (void)revents;
    double now = base_clock();
    uint32_t until = tick_of(now) - 1;
    while ((int32_t)(until - now_tick) > 0 && entries > 0) {
        now_tick++;
        /* What fires may link and unlink, also in this slot: take from the front of a list of our
         * own until it is empty. Entries not yet due go to a later slot, so this ends. */
        struct wheel_entry *head = &slot[now_tick % SLOTS], due;
        if (head->next == head)
            continue;
        due.next = head->next;
        due.prev = head->prev;
        due.next->prev = due.prev->next = &due;
        head->next = head->prev = head;
        while (due.next != &due) {
            struct wheel_entry *e = due.next;
            unlink_entry(e);
            if (e->deadline > now) {
                link_entry(e);
            } else {
                e->deadline = 0;
                e->fire(e);
            }
        }
    }
    if (entries == 0)
        now_tick = until;
}

void wheel_start(struct ev_loop *l)
{
    loop = l;
    origin = base_clock() - TICK;
    now_tick = 0;
    entries = 0;
    for (unsigned i = 0; i < SLOTS; i++)
        slot[i].next = slot[i].prev = &slot[i];
    ev_timer_init(&timer, sweep, TICK, TICK);
}

void wheel_stop(void)
{
    if (loop)
        ev_timer_stop(loop, &timer);
    loop = NULL;
}

void wheel_init(struct wheel_entry *e, void (*fire)(struct wheel_entry *))
{
    *e = (struct wheel_entry){.fire = fire};
}

void wheel_set(struct wheel_entry *e, double deadline)
{
    e->deadline = deadline;
    if (e->next) {
        if ((int32_t)(tick_of(deadline) - e->tick) >= 0)
            return; /* later: found in its old slot and moved on then */
        unlink_entry(e);
    }
    link_entry(e);
}

void wheel_clear(struct wheel_entry *e)
{
    e->deadline = 0;
    if (e->next)
        unlink_entry(e);
}
