/* log.c: a line is formatted on the stack and written at once; bursts are counted by event. */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048
#define LOG_BURST    10
#define LOG_EVENTS   64

static enum log_level threshold = LOG_INFO;
static int log_fd = 2;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* One slot an event, found by the address of its static word. */
static struct {
    const char *event;
    long second;
    unsigned written, held;
} bursts[LOG_EVENTS];

void log_set_level(enum log_level level)
{
    threshold = level;
}

bool log_level_from(const char *name, enum log_level *out)
{
    for (unsigned i = 0; i < COUNT_OF(level_names); i++)
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    return false;
}

void log_set_fd(int fd)
{
    log_fd = fd;
}

void log_time(double t, char out[LOG_TIME_MAX])
{
    time_t s = (time_t)t;
    int ms = (int)((t - (double)s) * 1000);
    struct tm tm;
    gmtime_r(&s, &tm);
    size_t n = strftime(out, LOG_TIME_MAX, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, LOG_TIME_MAX - n, ".%03dZ", ms % 1000);
}

const char *log_quote_str(struct str text)
{
    static char ring[4][340];
    static unsigned turn;
    char *out = ring[turn++ % 4];
    size_t o = 0;
    bool plain = text.n > 0 && text.n <= 300;
    for (size_t i = 0; plain && i < text.n; i++) {
        unsigned char c = (unsigned char)text.p[i];
        plain = c > ' ' && c != '"' && c != '\\' && c != '=' && c < 0x7f;
    }
    if (plain) {
        memcpy(out, text.p, text.n);
        out[text.n] = 0;
        return out;
    }
    out[o++] = '"';
    for (size_t i = 0; i < text.n && o < 320; i++) {
        unsigned char c = (unsigned char)text.p[i];
        if (c == '"' || c == '\\') {
            out[o++] = '\\';
            out[o++] = (char)c;
        } else if (c < ' ' || c == 0x7f) {
            o += (size_t)snprintf(out + o, 5, "\\x%02x", c);
        } else {
            out[o++] = (char)c;
        }
        if (i >= 299 && i + 1 < text.n) {
            memcpy(out + o, "...", 3);
            o += 3;
            break;
        }
    }
    out[o++] = '"';
    out[o] = 0;
    return out;
}

const char *log_quote(const char *text)
{
    return log_quote_str(str_from(text ? text : ""));
}

/* How many lines of this event were held back, or -1 when this one must be too. */
static long admit(const char *event, long second)
{
    unsigned at = (unsigned)(((uintptr_t)event >> 3) % LOG_EVENTS);
    if (bursts[at].event != event || bursts[at].second != second) {
        long held = bursts[at].event == event ? (long)bursts[at].held : 0;
        bursts[at].event = event;
        bursts[at].second = second;
        bursts[at].written = 1;
        bursts[at].held = 0;
        return held;
    }
    if (bursts[at].written < LOG_BURST) {
        bursts[at].written++;
        return 0;
    }
    bursts[at].held++;
    return -1;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    if (level < threshold || log_fd < 0)
        return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long held = level == LOG_DEBUG ? 0 : admit(event, (long)now.tv_sec);
    if (held < 0)
        return;
    char line[LOG_LINE_MAX], when[LOG_TIME_MAX];
    log_time((double)now.tv_sec + (double)now.tv_nsec / 1e9, when);
    size_t n = (size_t)snprintf(line, sizeof line, "%s %s %s ", when, level_names[level], event);
    va_list args;
    va_start(args, fmt);
    int w = vsnprintf(line + n, sizeof line - n - 32, fmt, args);
    va_end(args);
    size_t room = sizeof line - n - 33;
    n += w < 0 ? 0 : (size_t)w < room ? (size_t)w : room;
    if (held > 0)
        n += (size_t)snprintf(line + n, 30, " suppressed=%ld", held);
    line[n++] = '\n';
    ssize_t r;
    do
        r = write(log_fd, line, n);
    while (r < 0 && errno == EINTR);
}
