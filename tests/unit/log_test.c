/* log_test.c: one line an event, whatever is in it and however many there are. */
#include "log.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static int ends[2];
static char lines[1u << 17];

static int start(void **state)
{
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    log_set_fd(ends[1]);
    log_set_level(LOG_INFO);
    return 0;
}

static int stop(void **state)
{
    log_set_fd(-1);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* What was written since the last call. */
static const char *written(void)
{
    size_t n = 0;
    for (ssize_t r; (r = read(ends[0], lines + n, sizeof lines - 1 - n)) > 0;)
        n += (size_t)r;
    lines[n] = 0;
    return lines;
}

static unsigned count_lines(const char *text)
{
    unsigned n = 0;
    for (; (text = strchr(text, '\n')); text++)
        n++;
    return n;
}

/* Turns to the beginning of a second of the wall clock, which the limit counts by, so that what
 * follows lies within one. */
static long next_second(void)
{
    time_t now = time(NULL), began = now;
    while (now == began) {
        struct timespec nap = {0, 1000000};
        nanosleep(&nap, NULL);
        now = time(NULL);
    }
    return (long)now;
}

static void a_line_is_time_level_event_and_pairs(void **state)
{
    int y, mo, d, h, mi, s, ms, end = 0;
    log_warn("shape", "name=%s n=%d", "a", 7);
    const char *line = written();
    assert_int_equal(
        sscanf(line, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ%n", &y, &mo, &d, &h, &mi, &s, &ms, &end), 7);
    assert_int_equal(end, 24);
    assert_string_equal(line + 24, " warn shape name=a n=7\n");
}

static void levels_below_the_threshold_are_dropped(void **state)
{
    enum log_level level = LOG_ERROR;
    log_debug("level_a", "x=%d", 1);
    log_info("level_b", "x=%d", 1);
    assert_int_equal(count_lines(written()), 1);
    log_set_level(LOG_ERROR);
    log_warn("level_c", "x=%d", 1);
    assert_string_equal(written(), "");
    assert_true(log_level_from("debug", &level));
    assert_int_equal(level, LOG_DEBUG);
    assert_false(log_level_from("loud", &level));
    assert_false(log_level_from("", &level));
    assert_int_equal(level, LOG_DEBUG);
}

static void a_storm_of_one_event_is_ten_lines_a_second(void **state)
{
    long second;
    char held[64];
    do { /* again, should the machine have stood still for longer than the storm may last */
        second = next_second();
        written();
        for (int i = 0; i < 1000; i++)
            log_error("storm", "i=%d", i);
    } while (time(NULL) != second);
    assert_int_equal(count_lines(written()), 10);
    next_second();
    log_error("storm", "i=%d", 1000);
    log_error("storm", "i=%d", 1001);
    snprintf(held, sizeof held, "i=1000 suppressed=%d\n", 990);
    assert_non_null(strstr(written(), held));
    assert_int_equal(count_lines(lines), 2);
    assert_null(strstr(strchr(lines, '\n'), "suppressed"));
}

static void lines_say_which_process_they_are_of(void **state)
{
    log_set_process("worker-1");
    log_info("started_x", "x=%d", 1);
    assert_non_null(strstr(written(), " info started_x x=1 process=worker-1\n"));
    log_set_process(NULL);
    log_info("started_x", "x=%d", 2);
    assert_non_null(strstr(written(), " x=2\n"));
}

static void a_storm_does_not_hold_back_another_event(void **state)
{
    next_second();
    for (int i = 0; i < 100; i++)
        log_warn("loud_event", "i=%d", i);
    log_warn("quiet_event", "i=%d", 0);
    assert_non_null(strstr(written(), " warn quiet_event i=0\n"));
}

/* However the words of two events lie in memory. */
static void two_storms_at_once_are_both_held_back(void **state)
{
    enum { TURNS = 200, WORDS = 20 };
    static char words[WORDS][512];
    long second;
    do {
        second = next_second();
        written();
        for (int i = 0; i < WORDS; i++)
            snprintf(words[i], sizeof words[i], "storm_%d", i);
        for (int i = 0; i < TURNS; i++)
            for (int w = 0; w < WORDS; w++)
                log_event(LOG_WARN, words[w], "i=%d", i);
    } while (time(NULL) != second);
    assert_int_equal(count_lines(written()), WORDS * 10);
}

/* A full pipe that nobody reads: the program goes on, and the next line says what is missing. */
static void a_reader_that_stands_still_costs_lines_and_no_time(void **state)
{
    log_set_level(LOG_DEBUG);
    assert_int_equal(fcntl(ends[1], F_SETFL, 0), 0); /* writes block */
    char text[1000];
    memset(text, 'x', sizeof text);
    for (int i = 0; i < 200; i++)
        log_debug("unread", "i=%d x=%.*s", i, (int)sizeof text, text);
    unsigned got = count_lines(written());
    assert_in_range(got, 20, 199);
    log_debug("unread", "i=%d", 200);
    snprintf(text, sizeof text, "i=200 suppressed=%u\n", 200 - got);
    assert_non_null(strstr(written(), text));
}

static void debug_lines_are_not_limited(void **state)
{
    log_set_level(LOG_DEBUG);
    for (int i = 0; i < 50; i++)
        log_debug("chatter", "i=%d", i);
    assert_int_equal(count_lines(written()), 50);
}

static void quoting_keeps_a_value_on_its_line(void **state)
{
    assert_string_equal(log_quote("plain-value_1/x:2"), "plain-value_1/x:2");
    assert_string_equal(log_quote(""), "\"\"");
    assert_string_equal(log_quote(NULL), "\"\"");
    assert_string_equal(log_quote("two words"), "\"two words\"");
    assert_string_equal(log_quote("a=b"), "\"a=b\"");
    assert_string_equal(log_quote("say \"x\" \\"), "\"say \\\"x\\\" \\\\\"");
    assert_string_equal(log_quote("a\nlevel=error\r\t\x1b\x7f"),
                        "\"a\\x0alevel=error\\x0d\\x09\\x1b\\x7f\"");
    assert_string_equal(log_quote_str((struct str){"a\0b", 3}), "\"a\\x00b\"");
}

static void four_quoted_values_fit_into_one_line(void **state)
{
    log_info("four", "a=%s b=%s c=%s d=%s", log_quote("1 1"), log_quote("2 2"), log_quote("3 3"),
             log_quote("4 4"));
    assert_non_null(strstr(written(), " a=\"1 1\" b=\"2 2\" c=\"3 3\" d=\"4 4\"\n"));
}

/* Every length around the cut and every kind of byte: bounded, closed, and on one line. */
static void long_values_are_cut(void **state)
{
    static const char kinds[] = {'x', ' ', '"', '\n', (char)0xc3};
    char text[400];
    for (unsigned k = 0; k < sizeof kinds; k++)
        for (size_t n = 290; n < sizeof text; n++) {
            memset(text, kinds[k], n);
            const char *q = log_quote_str((struct str){text, n});
            size_t len = strlen(q);
            assert_true(len < 340);
            assert_null(strchr(q, '\n'));
            if (n > 300 || kinds[k] != 'x') {
                assert_int_equal(q[0], '"');
                assert_int_equal(q[len - 1], '"');
            }
            if (n > 301 && (kinds[k] == 'x' || kinds[k] == ' '))
                assert_non_null(strstr(q, "...\""));
        }
}

static void an_overlong_line_is_cut_and_still_ends(void **state)
{
    char *big = base_alloc(10001);
    memset(big, 'y', 10000);
    big[10000] = 0;
    log_info("overlong", "x=%s", big);
    const char *line = written();
    assert_int_equal(count_lines(line), 1);
    assert_true(strlen(line) > 1000 && strlen(line) <= 2048);
    assert_int_equal(line[strlen(line) - 1], '\n');
    free(big);
}

static void times_are_iso_8601_in_utc(void **state)
{
    char t[LOG_TIME_MAX];
    log_time(0, t);
    assert_string_equal(t, "1970-01-01T00:00:00.000Z");
    log_time(1767323045.5, t);
    assert_string_equal(t, "2026-01-02T03:04:05.500Z");
    log_time(4102444799.9990, t);
    assert_int_equal(strlen(t), 24);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(a_line_is_time_level_event_and_pairs),
        TEST(levels_below_the_threshold_are_dropped),
        TEST(a_storm_of_one_event_is_ten_lines_a_second),
        TEST(lines_say_which_process_they_are_of),
        TEST(a_storm_does_not_hold_back_another_event),
        TEST(two_storms_at_once_are_both_held_back),
        TEST(a_reader_that_stands_still_costs_lines_and_no_time),
        TEST(debug_lines_are_not_limited),
        TEST(quoting_keeps_a_value_on_its_line),
        TEST(four_quoted_values_fit_into_one_line),
        TEST(long_values_are_cut),
        TEST(an_overlong_line_is_cut_and_still_ends),
        TEST(times_are_iso_8601_in_utc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
