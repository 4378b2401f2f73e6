/* wrap.c: stands before a Chroma server and misbehaves as one may: for chosen writes it answers 500
 * after (or instead of) applying, answers late, or closes the connection after applying. Everything
 * else passes byte for byte; an end on either side ends the other.
 *
 *   wrap PORT SERVER_PORT PLAN LOG
 *
 * PLAN: lines "N WHAT [SECONDS [TEXT]]": the Nth write that comes by, counted from 1, or with a
 * TEXT, which lasts to the line's end, the first N in which that stands; WHAT: 500, refuse (500,
 * nothing passed on), reject (400 after so long, nothing passed on), late, cut. LOG: a line for
 * each request: when it came and was answered, what was done to it, its line, status and body. One
 * thread per connection. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, PLANS = 512, SHOWN = 4000 };

struct plan {
    unsigned n, met;
    char what[16], text[32];
    double seconds;
};
static struct plan plans[PLANS];
static unsigned planned, writes;
static volatile sig_atomic_t behaves;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *log_file;
static int server_port;

static double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* A whole message of a kept-open connection: head and body, grown as needed. */
struct message {
    char *p;
    size_t n, room, head; /* head: its length, 0 until it is whole */
};

static bool message_read(struct message *m, int fd)
{
    if (m->room - m->n < BUFFER) {
        m->room = m->room * 2 + BUFFER;
        m->p = realloc(m->p, m->room + 1);
        if (!m->p)
            abort();
    }
    ssize_t got = read(fd, m->p + m->n, m->room - m->n);
    if (got <= 0)
        return false;
    m->n += (size_t)got;
    m->p[m->n] = 0;
    return true;
}

static bool has_field(const struct message *m, const char *field, char *value, size_t room)
{
    for (const char *p = m->p; (p = memchr(p, '\n', m->head - (size_t)(p - m->p))) != NULL;) {
        p++;
        size_t n = strlen(field);
        if (strncasecmp(p, field, n) == 0 && p[n] == ':') {
            p += n + 1 + strspn(p + n + 1, " \t");
            snprintf(value, room, "%.*s", (int)strcspn(p, "\r\n"), p);
            return true;
        }
    }
    return false;
}

/* Its length once it is whole, else 0. Chunked bodies end with the zero chunk. */
static size_t message_whole(struct message *m)
{
    char *end = m->n ? strstr(m->p, "\r\n\r\n") : NULL, value[64];
    if (!end)
        return 0;
    m->head = (size_t)(end - m->p) + 4;
    if (has_field(m, "transfer-encoding", value, sizeof value)) {
        char *last = strstr(m->p + m->head - 2, "\r\n0\r\n\r\n");
        return last ? (size_t)(last - m->p) + 7 : 0;
    }
    size_t body =
        has_field(m, "content-length", value, sizeof value) ? strtoul(value, NULL, 10) : 0;
    return m->n >= m->head + body ? m->head + body : 0;
}

static void message_take(struct message *m, size_t n)
{
    memmove(m->p, m->p + n, m->n - n + 1);
    m->n -= n;
    m->head = 0;
}

static bool send_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        p += sent;
        n -= (size_t)sent;
    }
    return true;
}

static bool is_write(const char *line)
{
    if (strncmp(line, "PUT ", 4) == 0 || strncmp(line, "DELETE ", 7) == 0)
        return true;
    static const char *const ends[] = {"/add ", "/upsert ", "/update ", "/delete ",
                                       "/collections "};
    const char *eol = strchr(line, '\r');
    if (strncmp(line, "POST ", 5) != 0 || !eol || strstr(line, "/tenants/chromux") == line + 12)
        return false;
    for (unsigned i = 0; i < sizeof ends / sizeof *ends; i++) {
        const char *at = strstr(line, ends[i]);
        if (at && at < eol)
            return true;
    }
    return false;
}

static bool is_for(struct plan *p, const char *message)
{
    if (!*p->text)
        return p->n == writes;
    return p->met < p->n && strstr(message, p->text) && ++p->met;
}

static const struct plan *plan_for(const struct message *m)
{
    if (behaves || !is_write(m->p))
        return NULL;
    const struct plan *found = NULL;
    pthread_mutex_lock(&lock);
    writes++;
    for (unsigned i = 0; i < planned && !found; i++)
        if (is_for(&plans[i], m->p))
            found = &plans[i];
    pthread_mutex_unlock(&lock);
    return found;
}

static void note(double came, const char *what, const struct message *q, size_t n,
                 const char *answer)
{
    size_t body = n - q->head;
    pthread_mutex_lock(&lock);
    fprintf(log_file, "%.4f %.4f %s %.*s -> %.3s %.*s\n", came, clock_now(), what,
            (int)strcspn(q->p, "\r"), q->p, answer, (int)(body < SHOWN ? body : SHOWN),
            q->p + q->head);
    fflush(log_file);
    pthread_mutex_unlock(&lock);
}

#define SAYS(status, error)                                                                        \
    "HTTP/1.1 " status "\r\ncontent-type: application/json\r\ncontent-length: 57\r\n\r\n"          \
    "{\"error\":\"" error "\",\"message\":\"the wrapper says so\"}"
static const char broken[] = SAYS("500 Internal Server Error", "InternalError");
static const char rejected[] = SAYS("400 Bad Request", "ArgumentError");

/* One request and its answer. false: the connection is over. */
static bool exchange(int client, int server, struct message *q, size_t n)
{
    const struct plan *plan = plan_for(q);
    const char *what = plan ? plan->what : "-";
    double came = clock_now();
    const char *at_once = strcmp(what, "refuse") == 0   ? broken
                          : strcmp(what, "reject") == 0 ? rejected
                                                        : NULL;
    if (at_once) {
        nap(plan->seconds);
        note(came, what, q, n, at_once + 9);
        return send_all(client, at_once, strlen(at_once));
    }
    if (!send_all(server, q->p, n))
        return false;
    struct message a = {0};
    size_t whole = 0;
    bool there = true;
    while (there && !whole) {
        there = message_read(&a, server);
        whole = there ? message_whole(&a) : 0;
    }
    note(came, what, q, n, there ? a.p + 9 : "no answer");
    if (strcmp(what, "cut") == 0)
        there = false;
    if (strcmp(what, "late") == 0)
        nap(plan->seconds);
    if (there && strcmp(what, "500") == 0)
        there = send_all(client, broken, sizeof broken - 1);
    else
        there = there && send_all(client, a.p, whole);
    free(a.p);
    return there;
}

static void *serve(void *arg)
{
    int client = (int)(intptr_t)arg, server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port)};
    struct message q = {0};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bool open = connect(server, (struct sockaddr *)&to, sizeof to) == 0;
    while (open) {
        size_t n = message_whole(&q);
        if (n) {
            open = exchange(client, server, &q, n);
            message_take(&q, n);
            continue;
        }
        struct pollfd fds[2] = {{.fd = client, .events = POLLIN}, {.fd = server, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        if (fds[1].revents) /* nothing was asked: its end */
            break;
        if (fds[0].revents)
            open = message_read(&q, client);
    }
    free(q.p);
    close(server);
    close(client);
    return NULL;
}

static void read_plan(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return;
    char line[128];
    while (planned < PLANS && fgets(line, sizeof line, f)) {
        struct plan *p = &plans[planned];
        *p = (struct plan){0};
        if (sscanf(line, "%u %15s %lf %31[^\n]", &p->n, p->what, &p->seconds, p->text) >= 2)
            planned++;
    }
    fclose(f);
}

static void behave(int sig)
{
    behaves = sig;
}

int main(int argc, char **argv)
{
    if (argc != 5 || !(log_file = fopen(argv[4], "a"))) {
        fprintf(stderr, "usage: wrap PORT SERVER_PORT PLAN LOG\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, behave);
    server_port = atoi(argv[2]);
    read_plan(argv[3]);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 128)) {
        perror("wrap");
        return 1;
    }
    for (;;) {
        int client = accept(fd, NULL, NULL);
        pthread_t thread;
        if (client < 0)
            continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)client))
            close(client);
        else
            pthread_detach(thread);
    }
}
