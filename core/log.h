/* log.h: the error log: one line an event, key=value, to stderr.
 *
 * A line is `time level event key=value …`. Values with spaces or quotes are quoted. The same event
 * is written at most LOG_BURST times in a second; what was held back is counted and said in the
 * next line of that event (`suppressed=N`), so that a storm costs neither the disk nor the loop. A
 * pipe or terminal that has no room costs the line, which counts as held back. */
#ifndef LOG_H
#define LOG_H

#include "base.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Lines below `level` are dropped. Static state: one log a process. */
void log_set_level(enum log_level level);
bool log_level_from(const char *name, enum log_level *out) MUST_CHECK;
/* What every line ends with from now on, process=NAME: several processes write into one log. name
 * stays the caller's and must stay; NULL: nothing. */
void log_set_process(const char *name);
/* Where lines go; -1 is silence (for tests). Default 2. */
void log_set_fd(int fd);

/* `event` is a static, lower-case word such as "instance_down"; `fmt` gives "key=value …" pairs, in
 * which log_quote() wraps what came from outside. */
void log_event(enum log_level level, const char *event, const char *fmt, ...) PRINTF(3, 4);
/* Quotes text for a value: escapes control bytes, quotes and back-slashes, cuts at 300 bytes.
 * Returns one of four rotating static buffers. */
const char *log_quote(const char *text);
const char *log_quote_str(struct str text);

#define log_debug(event, ...) log_event(LOG_DEBUG, event, __VA_ARGS__)
#define log_info(event, ...)  log_event(LOG_INFO, event, __VA_ARGS__)
#define log_warn(event, ...)  log_event(LOG_WARN, event, __VA_ARGS__)
#define log_error(event, ...) log_event(LOG_ERROR, event, __VA_ARGS__)

/* ISO 8601 in UTC with milliseconds, "2026-01-02T03:04:05.678Z" (24 bytes and a NUL). */
#define LOG_TIME_MAX 32
void log_time(double unix_seconds, char out[LOG_TIME_MAX]);

#endif
