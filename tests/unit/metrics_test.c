/* metrics_test.c: the Prometheus text (format 0.0.4) and quantiles of histograms. */
#include "metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct buf page;

static int start(void **state)
{
    buf_init(&page, 1u << 20);
    memset(metrics_counter, 0, sizeof metrics_counter);
    memset(metrics_gauge, 0, sizeof metrics_gauge);
    memset(metrics_end, 0, sizeof metrics_end);
    return 0;
}

static int stop(void **state)
{
    buf_fini(&page);
    return 0;
}

static const char *text(void)
{
    if (buf_len(&page) == 0 || buf_data(&page)[buf_len(&page) - 1] != 0)
        buf_put(&page, "", 1);
    return buf_data(&page);
}

static void has(const char *piece)
{
    if (!strstr(text(), piece))
        fail_msg("no \"%s\" in:\n%s", piece, text());
}

static void counters_gauges_and_endings_are_on_the_page(void **state)
{
    metrics_inc(REQUESTS);
    metrics_add(REQUESTS, 41);
    gauge_set(CLIENTS, 5);
    gauge_add(CLIENTS, -7);
    metrics_counter[METRIC_BYTES_TO_CLIENTS] = UINT64_MAX;
    metrics_end[END_CLIENT_GONE] = 3;
    metrics_put_all(&page);
    has("# HELP chromux_requests_total Requests whose head was read.\n"
        "# TYPE chromux_requests_total counter\n"
        "chromux_requests_total 42\n");
    has("# TYPE chromux_client_connections gauge\nchromux_client_connections -2\n");
    has("\nchromux_client_sent_bytes_total 18446744073709551615\n");
    has("# TYPE chromux_requests_ended_total counter\n");
    has("\nchromux_requests_ended_total{reason=\"client_gone\"} 3\n");
    has("\nchromux_requests_ended_total{reason=\"done\"} 0\n");
    assert_null(strstr(text(), "reason=\"none\""));
}

/* Each line is a comment or "name[{labels}] value"; HELP and TYPE come once, before the samples. */
static void every_line_has_the_shape_of_the_format(void **state)
{
    char family[128] = "";
    unsigned families = 0;
    metrics_put_all(&page);
    text();
    char *copy = base_strdup(buf_data(&page)), *rest = copy;
    for (char *line; (line = strsep(&rest, "\n")) && rest;) {
        char name[128], kind[32], value[64];
        if (sscanf(line, "# TYPE %127s %31s", name, kind) == 2) {
            assert_string_equal(name, family);
            assert_true(strcmp(kind, "counter") == 0 || strcmp(kind, "gauge") == 0);
            size_t n = strlen(name);
            bool total = n > 6 && strcmp(name + n - 6, "_total") == 0;
            assert_true(total == (strcmp(kind, "counter") == 0));
        } else if (sscanf(line, "# HELP %127s", name) == 1) {
            assert_string_not_equal(name, family);
            snprintf(family, sizeof family, "%s", name);
            families++;
        } else {
            assert_int_equal(sscanf(line, "%127[a-z0-9_]%*[^ ] %63s", name, value) == 2 ||
                                 sscanf(line, "%127[a-z0-9_] %63s", name, value) == 2,
                             1);
            assert_string_equal(name, family);
            assert_int_equal(strspn(value, "0123456789-"), strlen(value));
        }
    }
    free(copy);
    assert_int_equal(families, METRIC_COUNT + GAUGE_COUNT + 1);
    assert_int_equal(buf_data(&page)[buf_len(&page) - 2], '\n');
}

static void histograms_are_cumulative_with_sum_and_count(void **state)
{
    struct histo h = {0};
    histo_add(&h, 0.0001); /* on a bound: within it */
    histo_add(&h, 0.00011);
    histo_add(&h, 0.05);
    histo_add(&h, 1000);
    metrics_put_histo(&page, "x_seconds", "instance=\"a\"", &h);
    has("x_seconds_bucket{instance=\"a\",le=\"0.0001\"} 1\n");
    has("x_seconds_bucket{instance=\"a\",le=\"0.0002\"} 2\n");
    has("x_seconds_bucket{instance=\"a\",le=\"0.03\"} 2\n");
    has("x_seconds_bucket{instance=\"a\",le=\"0.05\"} 3\n");
    has("x_seconds_bucket{instance=\"a\",le=\"60\"} 3\n");
    has("x_seconds_bucket{instance=\"a\",le=\"+Inf\"} 4\n");
    has("x_seconds_sum{instance=\"a\"} 1000.05021\n");
    has("x_seconds_count{instance=\"a\"} 4\n");
    buf_clear(&page);
    metrics_put_histo(&page, "x_seconds", "", &h);
    has("x_seconds_bucket{le=\"0.0001\"} 1\n");
    has("x_seconds_count{} 4\n");
}

static void labels_are_escaped(void **state)
{
    metrics_put_label(&page, STR("a\\b\"c\nd"));
    assert_string_equal(text(), "a\\\\b\\\"c\\nd");
}

static void close_to(double got, double want)
{
    if (got < want * 0.999999 - 1e-12 || got > want * 1.000001 + 1e-12)
        fail_msg("%g is not %g", got, want);
}

static void quantiles_are_interpolated_within_a_bucket(void **state)
{
    struct histo h = {0};
    close_to(histo_quantile(&h, 0.5), 0);
    for (int i = 0; i < 100; i++)
        histo_add(&h, 0.018); /* between 0.015 and 0.02 */
    close_to(histo_quantile(&h, 0), 0.015);
    close_to(histo_quantile(&h, 0.5), 0.0175);
    close_to(histo_quantile(&h, 1), 0.02);
    for (int i = 0; i < 100; i++)
        histo_add(&h, 0.2); /* between 0.15 and 0.25 */
    close_to(histo_quantile(&h, 0.5), 0.02);
    close_to(histo_quantile(&h, 0.75), 0.2);
    close_to(histo_quantile(&h, 0.99), 0.248);
}

static void quantiles_beyond_the_last_bound_are_that_bound(void **state)
{
    struct histo h = {0};
    histo_add(&h, 1e9);
    close_to(histo_quantile(&h, 0.5), 60);
    close_to(histo_quantile(&h, 1), 60);
    histo_add(&h, 0);
    assert_true(histo_quantile(&h, 0.25) <= 0.0001);
    assert_int_equal(h.count, 2);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(counters_gauges_and_endings_are_on_the_page),
        TEST(every_line_has_the_shape_of_the_format),
        TEST(histograms_are_cumulative_with_sum_and_count),
        TEST(labels_are_escaped),
        TEST(quantiles_are_interpolated_within_a_bucket),
        TEST(quantiles_beyond_the_last_bound_are_that_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
