/* wheel_test.c: deadlines on a real loop: never early, not much late, and safe to change and free
 * from within. */
#include "wheel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define GRAIN 0.025

static struct ev_loop *loop;

struct thing {
    struct wheel_entry entry;
    double wanted, fired; /* loop time; 0: not yet */
    unsigned times;
    struct thing *other; /* what its firing clears, frees or sets */
    double again;        /* seconds until it fires again; 0: no more */
};

static unsigned firings, early;
static double latest; /* the most that any came after its deadline */

static int start(void **state)
{
    loop = ev_loop_new(EVFLAG_AUTO);
    wheel_start(loop);
    firings = early = 0;
    latest = 0;
    return 0;
}

static int stop(void **state)
{
    wheel_stop();
    ev_loop_destroy(loop);
    return 0;
}

static void note(struct thing *t)
{
    assert_true(t->entry.deadline == 0); /* unset when it fires */
    assert_null(t->entry.next);
    t->fired = base_clock();
    t->times++;
    firings++;
    early += t->fired < t->wanted;
    if (t->fired - t->wanted > latest)
        latest = t->fired - t->wanted;
}

static void on_fire(struct wheel_entry *e)
{
    note(container_of(e, struct thing, entry));
}

static void on_limit(struct ev_loop *l, ev_timer *w, int revents)
{
    *(bool *)w->data = true;
}

/* Turns the loop until so many have fired; false when that takes longer than `seconds`. */
static bool run_until(unsigned count, double seconds)
{
    bool over = false;
    ev_timer limit;
    ev_now_update(loop);
    ev_timer_init(&limit, on_limit, seconds, 0);
    limit.data = &over;
    ev_timer_start(loop, &limit);
    while (firings < count && !over)
        ev_run(loop, EVRUN_ONCE);
    ev_timer_stop(loop, &limit);
    return firings >= count;
}

/* Turns the loop for so long, whatever fires. */
static void run_for(double seconds)
{
    bool never = run_until(~0u, seconds);
    assert_false(never);
}

static void set_in(struct thing *t, double seconds)
{
    t->wanted = base_clock() + seconds;
    wheel_set(&t->entry, t->wanted);
}

static void many_deadlines_fire_once_each_and_never_early(void **state)
{
    enum { MANY = 20000 };
    struct thing *t = base_zalloc(MANY * sizeof *t);
    ev_now_update(loop);
    for (unsigned i = 0; i < MANY; i++) {
        wheel_init(&t[i].entry, on_fire);
        set_in(&t[i], (double)(i * 7919u % MANY) / MANY * 0.6);
    }
    assert_true(run_until(MANY, 10));
    for (unsigned i = 0; i < MANY; i++)
        assert_int_equal(t[i].times, 1);
    assert_int_equal(early, 0);
    run_for(2 * GRAIN); /* nothing fires twice */
    assert_int_equal(firings, MANY);
    free(t);
}

/* Against a timer of libev's own that is due two grains later: the wheel must have come first. */
static void a_deadline_is_met_within_two_grains(void **state)
{
    struct thing t = {.times = 0};
    wheel_init(&t.entry, on_fire);
    for (int i = 1; i <= 20; i++) {
        ev_now_update(loop);
        set_in(&t, 0.003 * i);
        run_for(0.003 * i + 2.5 * GRAIN);
        assert_int_equal(t.times, i);
    }
    assert_int_equal(early, 0);
}

static void a_deadline_moved_later_fires_then_only(void **state)
{
    struct thing t = {.times = 0};
    wheel_init(&t.entry, on_fire);
    ev_now_update(loop);
    set_in(&t, 0.05);
    const struct wheel_entry *neighbour = t.entry.next;
    uint32_t slot = t.entry.tick;
    set_in(&t, 0.3);
    assert_ptr_equal(t.entry.next, neighbour); /* it cost nothing: not moved yet */
    assert_int_equal(t.entry.tick, slot);
    assert_true(run_until(1, 5));
    assert_int_equal(early, 0);
    run_for(4 * GRAIN);
    assert_int_equal(t.times, 1);
}

static void a_deadline_moved_earlier_fires_then(void **state)
{
    struct thing t = {.times = 0};
    wheel_init(&t.entry, on_fire);
    ev_now_update(loop);
    set_in(&t, 1000);
    set_in(&t, 0.1);
    assert_true(run_until(1, 5));
    assert_int_equal(early, 0);
    assert_true(t.fired < t.wanted + 5);
}

static void deadlines_in_the_past_and_at_once_fire_soon(void **state)
{
    struct thing past = {.times = 0}, now = {.times = 0};
    wheel_init(&past.entry, on_fire);
    wheel_init(&now.entry, on_fire);
    run_for(0.1); /* so that there is a past */
    set_in(&past, -50);
    set_in(&now, 0);
    assert_int_equal(firings, 0); /* never from within wheel_set */
    assert_true(run_until(2, 5));
}

static void a_cleared_deadline_does_not_fire(void **state)
{
    struct thing t = {.times = 0}, never = {.times = 0}, last = {.times = 0};
    wheel_init(&t.entry, on_fire);
    wheel_init(&never.entry, on_fire);
    wheel_init(&last.entry, on_fire);
    wheel_clear(&never.entry); /* it was not set */
    ev_now_update(loop);
    set_in(&t, 0.05);
    set_in(&last, 0.1);
    wheel_clear(&t.entry);
    wheel_clear(&t.entry);
    assert_true(run_until(1, 5));
    assert_int_equal(t.times, 0);
    assert_int_equal(last.times, 1);
    set_in(&t, 0.05);
    assert_true(run_until(2, 5));
    assert_int_equal(t.times, 1);
}

/* An empty wheel asks nothing of the loop. */
static void an_empty_wheel_sleeps(void **state)
{
    struct thing t = {.times = 0};
    wheel_init(&t.entry, on_fire);
    assert_int_equal(ev_run(loop, 0), 0); /* returns: no watcher is active */
    ev_now_update(loop);
    set_in(&t, 0.05);
    ev_run(loop, 0); /* returns once it fired */
    assert_int_equal(t.times, 1);
    set_in(&t, 100);
    wheel_clear(&t.entry);
    assert_int_equal(ev_run(loop, 0), 0);
    assert_int_equal(t.times, 1);
}

/* Further away than a round of the wheel (51 s): the entry is met in its slot and moved on. Time is
 * not waited for: the loop's clock can't be turned, so only that it does not fire early shows. */
static void a_far_deadline_does_not_fire_early(void **state)
{
    struct thing far = {.times = 0}, near = {.times = 0};
    wheel_init(&far.entry, on_fire);
    wheel_init(&near.entry, on_fire);
    ev_now_update(loop);
    set_in(&far, 86400);
    set_in(&near, 0.2);
    assert_true(run_until(1, 5));
    assert_int_equal(near.times, 1);
    assert_int_equal(far.times, 0);
    set_in(&far, 0.05);
    assert_true(run_until(2, 5));
    assert_int_equal(early, 0);
}

/* A sweep that comes late, after the loop stood still, still meets every slot between. */
static void a_loop_that_stood_still_catches_up(void **state)
{
    struct thing t[40];
    ev_now_update(loop);
    for (unsigned i = 0; i < COUNT_OF(t); i++) {
        t[i] = (struct thing){.times = 0};
        wheel_init(&t[i].entry, on_fire);
        set_in(&t[i], 0.01 * (i + 1));
    }
    ev_sleep(0.5);
    assert_true(run_until(COUNT_OF(t), 5));
    assert_int_equal(early, 0);
    for (unsigned i = 0; i < COUNT_OF(t); i++)
        assert_int_equal(t[i].times, 1);
}

/* ---- from within fire() ---------------------------------------------------------------------- */

static void fire_and_free(struct wheel_entry *e)
{
    struct thing *t = container_of(e, struct thing, entry);
    note(t);
    if (t->other) {
        wheel_clear(&t->other->entry);
        free(t->other);
    }
    free(t);
}

static void entries_may_be_freed_in_fire(void **state)
{
    enum { PAIRS = 500 };
    ev_now_update(loop);
    for (unsigned i = 0; i < PAIRS; i++) {
        /* Both lie in one slot; the first to fire frees both, so the other must not fire. */
        struct thing *first = base_zalloc(sizeof *first), *second = base_zalloc(sizeof *second);
        wheel_init(&first->entry, fire_and_free);
        wheel_init(&second->entry, on_fire);
        first->other = second;
        set_in(first, 0.05);
        set_in(second, 0.05);
    }
    assert_true(run_until(PAIRS, 5));
    run_for(3 * GRAIN);
    assert_int_equal(firings, PAIRS);
}

static void fire_and_set(struct wheel_entry *e)
{
    struct thing *t = container_of(e, struct thing, entry);
    note(t);
    if (t->again > 0 && t->times < 5)
        set_in(t, t->again);
    else if (t->times < 5)
        set_in(t, 0); /* at once, but not for ever within one sweep */
    if (t->other)
        set_in(t->other, 0.03);
}

static void entries_may_be_set_in_fire(void **state)
{
    struct thing other = {.times = 0}, later = {.again = 0.04}, at_once = {.other = &other};
    wheel_init(&other.entry, on_fire);
    wheel_init(&later.entry, fire_and_set);
    wheel_init(&at_once.entry, fire_and_set);
    ev_now_update(loop);
    set_in(&later, 0.03);
    set_in(&at_once, 0.03);
    assert_true(run_until(11, 5));
    assert_int_equal(later.times, 5);
    assert_int_equal(at_once.times, 5);
    assert_int_equal(other.times, 1);
    assert_int_equal(early, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(many_deadlines_fire_once_each_and_never_early),
        TEST(a_deadline_is_met_within_two_grains),
        TEST(a_deadline_moved_later_fires_then_only),
        TEST(a_deadline_moved_earlier_fires_then),
        TEST(deadlines_in_the_past_and_at_once_fire_soon),
        TEST(a_cleared_deadline_does_not_fire),
        TEST(an_empty_wheel_sleeps),
        TEST(a_far_deadline_does_not_fire_early),
        TEST(a_loop_that_stood_still_catches_up),
        TEST(entries_may_be_freed_in_fire),
        TEST(entries_may_be_set_in_fire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
