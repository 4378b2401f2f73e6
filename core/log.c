/* log.c: a line is formatted on the stack and written at once; bursts are counted by event. */
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 2048
#define LOG_BURST    10
#define LOG_TAIL     80 /* for what follows the event's own fields */
#define LOG_EVENTS   64

static enum log_level threshold = LOG_INFO;
static int log_fd = 2;
static const char *process; /* NULL: not said */
static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* One slot an event, which the address of its static word stands for. */
static struct burst {
    const char *event;
    long second;
    unsigned written; /* in that second */
    long held;        /* since the last line of this event */
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

void log_set_process(const char *name)
{
    process = name;
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

/* The slot of an event: its own, else a free one, else the one that was quiet for longest. */
static unsigned slot_of(const char *event)
{
    unsigned first = (unsigned)(((uintptr_t)event >> 3) % LOG_EVENTS), best = first;
    for (unsigned i = 0; i < LOG_EVENTS; i++) {
        unsigned at = (first + i) % LOG_EVENTS;
        if (bursts[at].event == event)
            return at;
        if (!bursts[at].event) { /* events never leave, so it stands nowhere behind this */
            best = at;
            break;
        }
        if (bursts[at].second < bursts[best].second)
            best = at;
    }
    bursts[best] = (struct burst){.event = event};
    return best;
}

/* False: too many of this event in this second. */
static bool admit(struct burst *b, long second)
{
    if (b->second != second) {
        b->second = second;
        b->written = 0;
    }
    return b->written++ < LOG_BURST;
}

/* A pipe has room for a line or is not writable: it never takes a part and then waits. */
static bool has_room(void)
{
    struct pollfd p = {.fd = log_fd, .events = POLLOUT};
    return poll(&p, 1, 0) == 1;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    if (level < threshold || log_fd < 0)
        return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct burst *b = &bursts[slot_of(event)];
    if ((level != LOG_DEBUG && !admit(b, (long)now.tv_sec)) || !has_room()) {
        b->held++;
        return;
    }
    char line[LOG_LINE_MAX], when[LOG_TIME_MAX];
    log_time((double)now.tv_sec + (double)now.tv_nsec / 1e9, when);
    size_t n = (size_t)snprintf(line, sizeof line, "%s %s %s ", when, level_names[level], event);
    va_list args;
    va_start(args, fmt);
    int w = vsnprintf(line + n, sizeof line - n - LOG_TAIL, fmt, args);
    va_end(args);
    size_t room = sizeof line - n - LOG_TAIL - 1;
    n += w < 0 ? 0 : (size_t)w < room ? (size_t)w : room;
    if (b->held > 0)
        n += (size_t)snprintf(line + n, 30, " suppressed=%ld", b->held);
    b->held = 0;
    if (process)
        n += (size_t)snprintf(line + n, 40, " process=%.28s", process);
    line[n++] = '\n';
    ssize_t r;
    do
        r = write(log_fd, line, n);
    while (r < 0 && errno == EINTR);
}
