/* access.c: lines gather in one buffer, written once a turn of the loop. A file takes them at once;
 * a pipe or terminal only what it has room for, so that a stuck reader costs log lines and not
 * requests. */
#include "access.h"

#include "log.h"
#include "metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINES_MAX = 1 << 20, PIPE_PIECE = 4096 };

static int fd = -1;
static char *path;
static bool as_json, patient;
static struct buf lines;
static ev_prepare flusher;
static ev_timer retry;
static struct ev_loop *loop;

/* Never waits for the reader of a pipe: without one the opening fails. */
static bool open_path(void)
{
    int got = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0640);
    if (got < 0)
        return false;
    if (fd >= 0)
        close(fd);
    fd = got;
    return true;
}

static bool room_now(void)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT);
}

static void flush(void)
{
    while (buf_len(&lines) > 0) {
        size_t n = buf_len(&lines);
        if (patient) {
            if (!room_now())
                break;
            if (n > PIPE_PIECE)
                n = PIPE_PIECE;
        }
        ssize_t w = write(fd, buf_data(&lines), n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0) {
            if (errno != EAGAIN)
                log_error("access_log_failed", "error=%s", log_quote(strerror(errno)));
            break;
        }
        buf_consume(&lines, (size_t)w);
    }
    if (buf_len(&lines) == 0) {
        ev_prepare_stop(loop, &flusher);
        ev_timer_stop(loop, &retry);
    }
}

static void on_prepare(struct ev_loop *l, ev_prepare *w, int revents)
{
    (void)revents;
    flush();
    ev_prepare_stop(l, w);
    if (buf_len(&lines) > 0 && !ev_is_active(&retry))
        ev_timer_again(l, &retry);
}

static void on_retry(struct ev_loop *l, ev_timer *w, int revents)
{
    (void)l;
    (void)w;
    (void)revents;
    flush();
}

bool access_start(struct ev_loop *l, const char *target, bool json)
{
    loop = l;
    as_json = json;
    buf_init(&lines, LINES_MAX);
    ev_prepare_init(&flusher, on_prepare);
    ev_timer_init(&retry, on_retry, 0.05, 0.05);
    if (strcmp(target, "off") == 0 || !*target)
        return true;
    if (strcmp(target, "-") == 0) {
        fd = STDOUT_FILENO;
    } else {
        path = base_strdup(target);
        if (!open_path())
            return false;
    }
    struct stat st;
    patient = fstat(fd, &st) != 0 || !S_ISREG(st.st_mode);
    return true;
}

void access_set_json(bool json)
{
    as_json = json;
}

bool access_on(void)
{
    return fd >= 0;
}

void access_reopen(void)
{
    if (!path)
        return;
    flush();
    if (!open_path())
        log_error("access_log_reopen_failed", "path=%s error=%s", log_quote(path),
                  log_quote(strerror(errno)));
}

void access_stop(void)
{
    if (fd >= 0) {
        flush();
        ev_prepare_stop(loop, &flusher);
        ev_timer_stop(loop, &retry);
    }
    if (path && fd >= 0)
        close(fd);
    fd = -1;
    free(path);
    path = NULL;
    buf_fini(&lines);
}

/* Milliseconds from a to b; -1 when either was never reached. */
static double ms(double a, double b)
{
    return a > 0 && b > 0 && b >= a ? (b - a) * 1000 : -1;
}

static void put_text(const char *key, struct str v)
{
    if (as_json) {
        buf_printf(&lines, ",\"%s\":", key);
        buf_put_json(&lines, v.n > 2048 ? (struct str){v.p, 2048} : v);
        return;
    }
    buf_printf(&lines, " %s=%s", key, v.n ? log_quote_str(v) : "-");
}

static void put_ms(const char *key, double v)
{
    if (v < 0)
        buf_printf(&lines, as_json ? ",\"%s\":null" : " %s=-", key);
    else
        buf_printf(&lines, as_json ? ",\"%s\":%.3f" : " %s=%.3f", key, v);
}

static void put_count(const char *key, uint64_t v)
{
    buf_printf(&lines, as_json ? ",\"%s\":%llu" : " %s=%llu", key, (unsigned long long)v);
}

void access_log(const struct access_record *r)
{
    if (fd < 0)
        return;
    if (buf_room(&lines) < 16384) {
        metrics_inc(LOG_LINES_LOST);
        return;
    }
    char when[LOG_TIME_MAX];
    log_time(ev_time(), when);
    buf_printf(&lines, as_json ? "{\"time\":\"%s\"" : "time=%s", when);
    put_text("id", r->id);
    put_text("client", r->client);
    put_text("method", r->method);
    put_text("path", r->path);
    put_count("status", (uint64_t)r->status);
    put_text("class", str_from(r->class_name));
    put_text("action", r->action);
    put_text("instance", r->instance);
    put_count("attempts", r->attempts);
    put_count("bytes_in", r->bytes_in);
    put_count("bytes_out", r->bytes_out);
    put_ms("tr", ms(r->start, r->head));
    put_ms("tq", r->attempts || r->queued > 0 ? r->queued * 1000 : -1);
    put_ms("tc", ms(r->picked, r->connected));
    put_ms("tf", ms(r->connected, r->first));
    put_ms("ta", ms(r->start, r->end));
    buf_printf(&lines, as_json ? ",\"reused\":%s" : " reused=%s",
               as_json ? (r->reused ? "true" : "false") : (r->reused ? "yes" : "no"));
    put_text("end", str_from(end_name(r->reason)));
    put_text("reason", str_from(r->detail));
    buf_puts(&lines, as_json ? "}\n" : "\n");
    if (!ev_is_active(&flusher))
        ev_prepare_start(loop, &flusher);
}
