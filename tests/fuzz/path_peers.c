/* path_peers.c: see path_peers.h. Real sockets on the loopback address. Whatever closes, closes
 * with a reset, so that no port waits for late packets and inputs may follow each other fast. */
#include "path_peers.h"

#include "session.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BIG = 200000 };

static const char phrase[] = "thirty bytes of no importance.";

struct plan plan;
struct messages asked, answered;
unsigned moved;
struct client client = {.fd = -1};

struct origin_conn {
    ev_io io;
    struct origin_conn *next;
    struct reader reader;
    struct buf out;
    bool begun, served, probe, closes, dead;
    bool deaf;   /* closed its side: hears no more requests */
    size_t said; /* bytes of the script that went into out */
    unsigned pieces;
};

static struct ev_loop *loop;
static ev_io origins[ORIGINS];
static struct origin_conn *conns;

static int door; /* where the client's connections are accepted */
static struct sockaddr_in door_at;
static struct reader from_chromux;
static size_t client_sent;
static unsigned client_pieces;

/* What was said on both sides, for whoever must find out why. */
void tell(const char *why)
{
    const struct {
        const char *name;
        const struct messages *of;
    } both[] = {{"servers got", &asked}, {"client got", &answered}};
    fprintf(stderr, "%s (client: eof %d, reset %d; which %u, when %u, then %u, %s)\n", why,
            client.eof, client.reset, plan.which, plan.when, plan.then,
            plan.from_server ? "from the servers" : "from the client");
    for (unsigned b = 0; b < COUNT_OF(both); b++)
        for (unsigned i = 0; i < both[b].of->n; i++) {
            const struct message *m = both[b].of->v[i];
            fprintf(stderr, "%s %u: %.*s status %d, %s, %zu bytes of body\n%.*s", both[b].name, i,
                    (int)buf_len(&m->start), buf_data(&m->start), m->status,
                    m->complete ? "complete" : "not complete", buf_len(&m->body),
                    (int)buf_len(&m->fields), buf_data(&m->fields));
        }
    abort();
}

/* ---- the servers ------------------------------------------------------------------------------
 */

static int listen_on(struct sockaddr_in *at)
{
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(fd >= 0 && bind(fd, (struct sockaddr *)at, sizeof *at) == 0 && listen(fd, 64) == 0);
    must(getsockname(fd, (struct sockaddr *)at, &len) == 0);
    return fd;
}

static void close_hard(int fd)
{
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(fd);
}

static void origin_dead(struct origin_conn *c)
{
    if (c->dead)
        return;
    ev_io_stop(loop, &c->io);
    close_hard(c->io.fd);
    c->dead = true;
    moved++;
}

static void origin_watch(struct origin_conn *c)
{
    int want = EV_READ | (buf_len(&c->out) ? EV_WRITE : 0);
    if (c->dead || c->io.events == want)
        return;
    ev_io_stop(loop, &c->io);
    ev_io_set(&c->io, c->io.fd, want);
    ev_io_start(loop, &c->io);
}

static void origin_write(struct origin_conn *c)
{
    while (!c->dead && buf_len(&c->out) > 0) {
        ssize_t w = send(c->io.fd, buf_data(&c->out), buf_len(&c->out), MSG_NOSIGNAL);
        if (w < 0 && errno == EAGAIN)
            break;
        if (w < 0) {
            origin_dead(c);
            return;
        }
        buf_consume(&c->out, (size_t)w);
        moved++;
    }
    if (buf_len(&c->out) == 0 && c->closes) {
        shutdown(c->io.fd, SHUT_WR);
        c->closes = false;
        c->deaf = true;
    }
    origin_watch(c);
}

/* An answer that keeps every rule, in the style of the plan. */
static void answer_well(struct origin_conn *c, bool head)
{
    struct buf *b = &c->out;
    enum style style = c->probe ? STYLE_LENGTH : (enum style)plan.which;
    size_t length = style == STYLE_BIG ? BIG : style == STYLE_EMPTY ? 0 : 2;
    bool chunked = style == STYLE_CHUNKED || style == STYLE_BIG_CHUNKED || style == STYLE_INTERIM;
    if (style == STYLE_INTERIM)
        buf_puts(b, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    buf_puts(b, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n");
    if (chunked)
        buf_puts(b, "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    else if (style == STYLE_CLOSE)
        buf_puts(b, "Connection: close\r\n\r\n");
    else
        buf_printf(b, "Content-Length: %zu\r\n\r\n", length);
    c->closes = style == STYLE_CLOSE || style == STYLE_KEPT_ONCE;
    if (head)
        return;
    for (unsigned i = 0; chunked && i < (style == STYLE_BIG_CHUNKED ? 3000 : 3); i++)
        buf_printf(b, "1e;a=\"b\"\r\n%s\r\n", phrase);
    if (chunked) {
        buf_puts(b, "0\r\nX-Sum: 1\r\n\r\n");
        return;
    }
    for (size_t i = 0; i < length; i++)
        buf_put(b, "x", 1);
}

bool is_good_body(const struct buf *body, bool to_head)
{
    size_t n = 2;
    switch ((enum style)plan.which) {
    case STYLE_BIG:
        n = BIG;
        break;
    case STYLE_EMPTY:
        n = 0;
        break;
    case STYLE_CHUNKED:
    case STYLE_INTERIM:
        n = 3 * 30;
        break;
    case STYLE_BIG_CHUNKED:
        n = 3000 * 30;
        break;
    default:
        break;
    }
    if (buf_len(body) != (to_head ? 0 : n))
        return false;
    for (size_t i = 0; i < buf_len(body); i++)
        if (buf_data(body)[i] != (n % 30 ? 'x' : phrase[i % 30]))
            return false;
    return true;
}

/* The next piece of what the input says; false when all of it is out. */
static bool speak(struct origin_conn *c)
{
    if (c->said >= plan.n)
        return false;
    size_t n = c->pieces < PIECES_MAX ? plan.piece[c->pieces++] : plan.n;
    if (n == 0 || n > plan.n - c->said)
        n = plan.n - c->said;
    buf_put(&c->out, plan.p + c->said, n);
    c->said += n;
    if (c->said == plan.n && plan.then == 0)
        c->closes = true;
    origin_write(c);
    if (c->said == plan.n && plan.then == 1)
        origin_dead(c);
    moved++;
    return true;
}

void origins_speak(void)
{
    for (struct origin_conn *c = conns; c; c = c->next)
        if (c->begun && !c->dead && speak(c) && plan.then == 3)
            client_dies();
}

static void begin_to_speak(struct origin_conn *c)
{
    c->begun = true;
    if (plan.n == 0 && plan.then == 0) {
        c->closes = true;
        origin_write(c);
    } else if (plan.n == 0 && plan.then == 1) {
        origin_dead(c);
    }
}

/* Probes are no client's request: they are answered well and forgotten. */
static bool is_probe(const struct message *m)
{
    static const char mark[] = "User-Agent=chromux-probe\nConnection=close\n";
    const char *end = "\nX-Request-Id="; /* on every request of a client's */
    return memmem(buf_data(&m->fields), buf_len(&m->fields), mark, sizeof mark - 1) &&
           !memmem(buf_data(&m->fields), buf_len(&m->fields), end, strlen(end));
}

void forget_probes(void)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < asked.n; i++) {
        struct messages one = {{asked.v[i]}, 1};
        if (asked.v[i]->complete && is_probe(asked.v[i]))
            messages_clear(&one);
        else
            asked.v[kept++] = asked.v[i];
    }
    asked.n = kept;
}

static void origin_answer(struct origin_conn *c)
{
    const struct message *last = NULL;
    for (unsigned i = asked.n; i > 0 && !last; i--)
        if (asked.v[i - 1]->source == c->reader.source)
            last = asked.v[i - 1];
    must(last && last->complete);
    c->probe = is_probe(last);
    c->reader.waits = false;
    if (c->probe || !plan.from_server) {
        answer_well(c, memcmp(buf_data(&last->start), "HEAD ", 5) == 0);
        origin_write(c);
    } else if (plan.when == 0 || c->served || !c->begun) {
        c->said = 0;
        c->pieces = 0;
        begin_to_speak(c);
    }
    c->served = true;
}

static void on_origin_io(struct ev_loop *l, ev_io *w, int revents)
{
    struct origin_conn *c = container_of(w, struct origin_conn, io);
    char block[16384];
    if (revents & EV_WRITE)
        origin_write(c);
    if (c->dead)
        return;
    ssize_t n = recv(c->io.fd, block, sizeof block, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    moved++;
    if (n <= 0) {
        origin_dead(c);
        return;
    }
    if (c->deaf)
        return;
    reader_take(&c->reader, block, (size_t)n);
    if (c->reader.error) {
        fprintf(stderr, "a server got: %.*s\n", (int)n, block);
        tell(c->reader.error);
    }
    if (plan.from_server && plan.when == 1 && !c->begun &&
        !memmem(block, (size_t)n, "chromux-probe", 13))
        begin_to_speak(c);
    if (c->reader.waits)
        origin_answer(c);
}

static void on_accept(struct ev_loop *l, ev_io *w, int revents)
{
    static unsigned serial;
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct origin_conn *c = base_zalloc(sizeof *c);
    c->next = conns;
    conns = c;
    reader_init(&c->reader, false, &asked, ++serial);
    buf_init(&c->out, 4 << 20);
    ev_io_init(&c->io, on_origin_io, fd, EV_READ);
    ev_io_start(loop, &c->io);
    if (plan.from_server && plan.when >= 2)
        begin_to_speak(c);
    moved++;
}

void origins_close(void)
{
    while (conns) {
        struct origin_conn *c = conns;
        conns = c->next;
        origin_dead(c);
        buf_fini(&c->out);
        free(c);
    }
}

/* ---- the client -------------------------------------------------------------------------------
 */

void client_open(const bool *bodiless)
{
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    client.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(client.fd >= 0);
    /* Others on the machine may use up all ports for a while. */
    unsigned tries = 0;
    while (connect(client.fd, (struct sockaddr *)&door_at, sizeof door_at) != 0) {
        must((errno == EADDRNOTAVAIL || errno == EINTR) && ++tries < 200);
        ev_sleep(0.05);
    }
    int fd = -1;
    while (fd < 0) {
        fd = accept4(door, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        must(fd >= 0 || errno == EAGAIN);
    }
    reader_init(&from_chromux, true, &answered, 0);
    from_chromux.bodiless = bodiless;
    client_sent = client_pieces = 0;
    client.eof = client.reset = client.cut = false;
    session_start(fd, (struct sockaddr *)&peer, plan.local_only);
}

void client_read(void)
{
    char block[65536];
    ssize_t n = 1;
    while (!client.eof && !client.reset && n > 0) {
        n = recv(client.fd, block, sizeof block, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        moved++;
        client.eof = n == 0;
        client.reset = n < 0;
        if (client.eof)
            client.cut = !reader_end(&from_chromux);
        if (n > 0)
            reader_take(&from_chromux, block, (size_t)n);
        if (from_chromux.error) {
            fprintf(stderr, "the client got: %.*s\n", (int)n, block);
            tell(from_chromux.error);
        }
    }
}

void client_dies(void)
{
    if (client.fd >= 0)
        close_hard(client.fd);
    client.fd = -1;
    moved++;
}

void client_leaves(void)
{
    shutdown(client.fd, SHUT_WR);
    moved++;
}

void client_write(const char *p, size_t n)
{
    if (client_sent >= n || client.eof || client.reset)
        return;
    size_t piece =
        plan.from_server || client_pieces >= PIECES_MAX ? 0 : plan.piece[client_pieces++];
    if (piece == 0 || piece > n - client_sent)
        piece = n - client_sent;
    ssize_t w = send(client.fd, p + client_sent, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
    client_sent = w > 0 ? client_sent + (size_t)w : n;
    moved++;
    if (client_sent == n && plan.client == LEAVES)
        client_leaves();
    else if (client_sent == n && plan.client == DIES)
        client_dies();
}

void peers_start(struct ev_loop *l, int ports[ORIGINS])
{
    loop = l;
    door = listen_on(&door_at);
    for (unsigned i = 0; i < ORIGINS; i++) {
        struct sockaddr_in at;
        ev_io_init(&origins[i], on_accept, listen_on(&at), EV_READ);
        ev_io_start(loop, &origins[i]);
        ports[i] = ntohs(at.sin_port);
    }
}
