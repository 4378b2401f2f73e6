/* end.h: why a request, a try of one, or a probe ended. Logs, counters, /status and /metrics all
 * read this one list, so that an ending has the same name everywhere.
 *
 * X(id, name, status of the answer when the ending is ours to tell (0: none is sent)) */
#ifndef END_H
#define END_H

#define END_REASONS(X)                                                                             \
    X(NONE, "none", 0)                                                                             \
    X(DONE, "done", 0)                                                                             \
    X(LOCAL, "local", 0)                                                                           \
    X(EARLY, "early_answer", 0)                                                                    \
    X(CLIENT_GONE, "client_gone", 0)                                                               \
    X(CLIENT_SLOW_HEAD, "client_slow_head", 408)                                                   \
    X(CLIENT_SLOW_BODY, "client_slow_body", 408)                                                   \
    X(CLIENT_SLOW_READ, "client_slow_read", 0)                                                     \
    X(BAD_REQUEST, "bad_request", 400)                                                             \
    X(URI_TOO_LONG, "uri_too_long", 414)                                                           \
    X(HEAD_TOO_BIG, "head_too_big", 431)                                                           \
    X(BODY_TOO_BIG, "body_too_big", 413)                                                           \
    X(NOT_FOUND, "not_found", 404)                                                                 \
    X(METHOD, "method_not_allowed", 405)                                                           \
    X(UNSUPPORTED, "unsupported", 501)                                                             \
    X(VERSION, "http_version", 505)                                                                \
    X(EXPECTATION, "expectation", 417)                                                             \
    X(NO_INSTANCE, "no_instance", 503)                                                             \
    X(POLICY_REFUSED, "policy_refused", 503)                                                       \
    X(QUEUE_FULL, "queue_full", 503)                                                               \
    X(QUEUE_TIMEOUT, "queue_timeout", 503)                                                         \
    X(DNS_FAILED, "dns_failed", 503)                                                               \
    X(OWN_LIMIT, "own_limit", 503)                                                                 \
    X(CONNECT_FAILED, "connect_failed", 503)                                                       \
    X(CONNECT_TIMEOUT, "connect_timeout", 503)                                                     \
    X(SERVER_RESET, "server_reset", 502)                                                           \
    X(SERVER_CLOSED, "server_closed", 502)                                                         \
    X(SERVER_GARBAGE, "server_garbage", 502)                                                       \
    X(SERVER_SLOW, "server_slow", 504)                                                             \
    X(SERVER_5XX, "server_5xx", 502)                                                               \
    X(TRY_TIMEOUT, "try_timeout", 504)                                                             \
    X(REQUEST_TIMEOUT, "request_timeout", 504)                                                     \
    X(CONTENT_CODING, "content_coding", 415)                                                       \
    X(JOURNAL_AWAY, "journal_away", 503)                                                           \
    X(NOT_APPLIED, "not_applied", 503)                                                             \
    X(OUTCOME_UNKNOWN, "outcome_unknown", 504)                                                     \
    X(STOPPED, "stopped", 503)                                                                     \
    X(INTERNAL, "internal", 500)

#define END_ENUM(id, name, status) END_##id,
enum end_reason { END_REASONS(END_ENUM) END_COUNT };
#undef END_ENUM

/* The name that logs and metrics use: static text. */
const char *end_name(enum end_reason r);
/* The HTTP status of our own answer for this ending; 0 when none is sent. */
int end_status(enum end_reason r);

#endif
