/* metrics.c: owns all counters and gauges; whoever knows an event counts it. */
#include "metrics.h"

uint64_t metrics_counter[METRIC_COUNT];
int64_t metrics_gauge[GAUGE_COUNT];
uint64_t metrics_end[END_COUNT];
struct histo metrics_clients;

#define ROW(id, name, help) {"chromux_" name, help},
static const struct {
    const char *name, *help;
} counters[METRIC_COUNT] = {METRICS_COUNTERS(ROW)}, gauges[GAUGE_COUNT] = {METRICS_GAUGES(ROW)};
#undef ROW

/* Upper bounds in seconds; the last bucket has none. */
static const double bounds[HISTO_BUCKETS - 1] = {
    .0001, .0002, .0003, .0005, .0007, .001, .0015, .002, .003, .005, .0075, .01, .015, .02,
    .03,   .05,   .075,  .1,    .15,   .25,  .5,    1,    2.5,  5,    10,    30,  60};

void histo_add(struct histo *h, double seconds)
{
    unsigned lo = 0, hi = HISTO_BUCKETS - 1;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (seconds <= bounds[mid])
            hi = mid;
        else
            lo = mid + 1;
    }
    h->bucket[lo]++;
    h->count++;
    h->sum += seconds;
}

double histo_quantile(const struct histo *h, double q)
{
    if (h->count == 0)
        return 0;
    double rank = q * (double)h->count, below = 0;
    for (unsigned i = 0; i < HISTO_BUCKETS; i++) {
        double in = (double)h->bucket[i];
        if (in > 0 && below + in >= rank) {
            double from = i ? bounds[i - 1] : 0;
            double to = i < HISTO_BUCKETS - 1 ? bounds[i] : from;
            return from + (to - from) * (rank - below) / in;
        }
        below += in;
    }
    return bounds[HISTO_BUCKETS - 2];
}

void metrics_put_header(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void metrics_put_histo(struct buf *out, const char *name, const char *labels, const struct histo *h)
{
    uint64_t sum = 0;
    const char *comma = *labels ? "," : "";
    for (unsigned i = 0; i < HISTO_BUCKETS; i++) {
        sum += h->bucket[i];
        if (i < HISTO_BUCKETS - 1)
            buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, bounds[i],
                       (unsigned long long)sum);
        else
            buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma,
                       (unsigned long long)sum);
    }
    buf_printf(out, "%s_sum{%s} %.9g\n%s_count{%s} %llu\n", name, labels, h->sum, name, labels,
               (unsigned long long)h->count);
}

void metrics_put_label(struct buf *out, struct str value)
{
    for (size_t i = 0; i < value.n; i++) {
        char c = value.p[i];
        if (c == '\\' || c == '"')
            buf_put(out, "\\", 1);
        if (c == '\n')
            buf_puts(out, "\\n");
        else
            buf_put(out, &c, 1);
    }
}

void metrics_put_all(struct buf *out)
{
    for (unsigned i = 0; i < METRIC_COUNT; i++) {
        metrics_put_header(out, counters[i].name, "counter", counters[i].help);
        buf_printf(out, "%s %llu\n", counters[i].name, (unsigned long long)metrics_counter[i]);
    }
    for (unsigned i = 0; i < GAUGE_COUNT; i++) {
        metrics_put_header(out, gauges[i].name, "gauge", gauges[i].help);
        buf_printf(out, "%s %lld\n", gauges[i].name, (long long)metrics_gauge[i]);
    }
    metrics_put_header(out, "chromux_requests_ended_total", "counter",
                       "Requests ended, by end reason.");
    for (unsigned i = END_NONE + 1; i < END_COUNT; i++)
        buf_printf(out, "chromux_requests_ended_total{reason=\"%s\"} %llu\n",
                   end_name((enum end_reason)i), (unsigned long long)metrics_end[i]);
}
