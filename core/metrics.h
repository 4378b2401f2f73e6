/* metrics.h: counters, gauges and histograms, and their Prometheus text. Static state: one set a
 * process, written from the loop only. */
#ifndef METRICS_H
#define METRICS_H

#include "buf.h"
#include "end.h"

/* X(id, name without the "chromux_" prefix, help) */
#define METRICS_COUNTERS(X)                                                                        \
    X(CONNECTIONS, "client_connections_total", "Client connections accepted.")                     \
    X(CONNECTIONS_REFUSED, "client_connections_refused_total",                                     \
      "Client connections closed at once because MAX_CLIENTS was reached.")                        \
    X(ACCEPT_ERRORS, "accept_errors_total", "accept() failures, such as no descriptors left.")     \
    X(REQUESTS, "requests_total", "Requests whose head was read.")                                 \
    X(PROXIED, "proxied_requests_total", "Requests handed to the route policy.")                   \
    X(RETRIES, "retries_total", "Second and later tries on another instance.")                     \
    X(RETRIES_DENIED, "retries_denied_total",                                                      \
      "Retries not made, or put off, because the budget was used up.")                             \
    X(STALE_RETRIES, "stale_connection_retries_total",                                             \
      "Requests sent again on a fresh connection because a kept one had died.")                    \
    X(BYTES_FROM_CLIENTS, "client_received_bytes_total", "Bytes of request bodies.")               \
    X(BYTES_TO_CLIENTS, "client_sent_bytes_total", "Bytes of answer bodies.")                      \
    X(UPSTREAM_CONNECTS, "upstream_connects_total", "Connections opened to instances.")            \
    X(UPSTREAM_REUSES, "upstream_reuses_total", "Requests sent on a kept connection.")             \
    X(RELOADS, "reloads_total", "HUPs handled.")                                                   \
    X(RELOADS_FAILED, "reloads_failed_total", "HUPs that left the old state serving.")             \
    X(PROBES, "probes_total", "Health probes ended.")                                              \
    X(PROBES_FAILED, "probes_failed_total", "Health probes that failed.")                          \
    X(LOG_LINES_LOST, "access_log_lines_lost_total",                                               \
      "Access log lines dropped because the log could not be written fast enough.")

#define METRICS_GAUGES(X)                                                                          \
    X(CLIENTS, "client_connections", "Client connections open.")                                   \
    X(ACTIVE, "requests_active", "Requests being handled.")                                        \
    X(QUEUED, "requests_queued", "Requests waiting for an instance's maxconn.")                    \
    X(UPSTREAM_IDLE, "upstream_connections_idle", "Kept connections to instances.")                \
    X(JOURNAL_BYTES, "journal_body_bytes",                                                         \
      "Of JOURNAL_MEMORY_BYTES: taken by bodies of requests.")                                     \
    X(JOURNAL_WAITING, "journal_bodies_waiting", "Bodies not read on for want of that memory.")    \
    X(POLICY_GENERATION, "policy_generation", "Generation of the policies that serve.")

#define METRICS_ENUM_C(id, name, help) METRIC_##id,
#define METRICS_ENUM_G(id, name, help) GAUGE_##id,
enum metric_counter { METRICS_COUNTERS(METRICS_ENUM_C) METRIC_COUNT };
enum metric_gauge { METRICS_GAUGES(METRICS_ENUM_G) GAUGE_COUNT };
#undef METRICS_ENUM_C
#undef METRICS_ENUM_G

extern uint64_t metrics_counter[METRIC_COUNT];
extern int64_t metrics_gauge[GAUGE_COUNT];
extern uint64_t metrics_end[END_COUNT]; /* requests by end reason */

#define metrics_inc(id)    (metrics_counter[METRIC_##id]++)
#define metrics_add(id, n) (metrics_counter[METRIC_##id] += (n))
#define gauge_add(id, n)   (metrics_gauge[GAUGE_##id] += (n))
#define gauge_set(id, n)   (metrics_gauge[GAUGE_##id] = (n))

/* A latency histogram: fixed bounds for Prometheus and for quantiles by interpolation. */
enum { HISTO_BUCKETS = 28 };
struct histo {
    uint64_t
        bucket[HISTO_BUCKETS]; /* each counts its own range, not cumulative; the last is +Inf */
    uint64_t count;
    double sum; /* seconds */
};
void histo_add(struct histo *h, double seconds);
/* q in [0, 1]; seconds, interpolated within a bucket; 0 when nothing was added. */
double histo_quantile(const struct histo *h, double q);

/* How long clients' requests took that were not for chromux itself: head to end. */
extern struct histo metrics_clients;

/* Prometheus text format 0.0.4. */
void metrics_put_header(struct buf *out, const char *name, const char *type, const char *help);
/* labels is "" or like `instance="a"` (already escaped). */
void metrics_put_histo(struct buf *out, const char *name, const char *labels,
                       const struct histo *h);
/* A label value with \\, \" and \n escaped. */
void metrics_put_label(struct buf *out, struct str value);
/* All counters, gauges and requests by end reason. */
void metrics_put_all(struct buf *out);

#endif
