/* dns.c: owns the c-ares channel, a watcher for each of its sockets and one timer for its
 * time-outs.
 *
 * A query is two lookups (A and AAAA), because one silent family must not cost the answer of the
 * other: the second family gets GRACE more seconds once the first has brought an address (in the
 * spirit of RFC 8305 3). c-ares calls back at moments of its own, also inside ares_getaddrinfo
 * (hosts file) and ares_destroy; so its callbacks only note what came and set the query's timer,
 * and callers hear of it from that timer alone.
 *
 * c-ares cannot cancel one lookup: a query without its caller (`cb` is NULL) lives on until both
 * lookups have come back, which they do in bounded time and at the latest in ares_destroy. */
#include "dns.h"

#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdlib.h>
#include <strings.h>

#define DEADLINE   5.0
#define GRACE      0.3
#define TRY_MS     1000 /* first try of a server; c-ares doubles it each round */
#define TRY_ROUNDS 3

enum { FAMILY_4, FAMILY_6, FAMILIES };

struct dns_socket {
    struct dns_socket *next;
    struct dns *dns;
    ev_io io;
};

struct dns {
    struct ev_loop *loop;
    ares_channel channel;
    ev_timer timer;
    struct dns_socket *sockets;
    struct dns_query *queries; /* all, also those without a caller */
};

struct dns_lookup {
    struct dns_query *query;
    bool out; /* c-ares will call back */
    int status;
    struct ares_addrinfo *info; /* NULL until it came */
};

struct dns_query {
    struct dns_query *next, *prev;
    struct dns *dns;
    ev_timer timer;
    struct dns_lookup lookup[FAMILIES];
    int port;
    void (*cb)(void *arg, const struct dns_answer *a); /* NULL: answered or cancelled */
    void *arg;
};

static bool query_out(const struct dns_query *q)
{
    return q->lookup[FAMILY_4].out || q->lookup[FAMILY_6].out;
}

/* Frees the query once nobody refers to it: neither its caller nor c-ares. */
static void query_release(struct dns_query *q)
{
    if (q->cb || query_out(q))
        return;
    must(!ev_is_active(&q->timer));
    for (unsigned i = 0; i < FAMILIES; i++)
        if (q->lookup[i].info)
            ares_freeaddrinfo(q->lookup[i].info);
    if (q->prev)
        q->prev->next = q->next;
    else
        q->dns->queries = q->next;
    if (q->next)
        q->next->prev = q->prev;
    free(q);
}

static void query_forget(struct dns_query *q)
{
    ev_timer_stop(q->dns->loop, &q->timer);
    q->cb = NULL;
    query_release(q);
}

static void answer_add(struct dns_answer *a, const struct sockaddr *sa, socklen_t len, int port)
{
    if (a->count == COUNT_OF(a->v) || len > sizeof a->v[0].addr)
        return;
    struct sockaddr_storage *to = &a->v[a->count].addr;
    memset(to, 0, sizeof *to);
    memcpy(to, sa, len);
    if (sa->sa_family == AF_INET)
        ((struct sockaddr_in *)to)->sin_port = htons((uint16_t)port);
    else if (sa->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)to)->sin6_port = htons((uint16_t)port);
    else
        return;
    a->v[a->count++].len = len;
}

static void answer_add_family(struct dns_answer *a, const struct dns_query *q, int family)
{
    for (unsigned i = 0; i < FAMILIES; i++)
        if (q->lookup[i].info)
            for (struct ares_addrinfo_node *n = q->lookup[i].info->nodes; n; n = n->ai_next)
                if (n->ai_family == family)
                    answer_add(a, n->ai_addr, n->ai_addrlen, q->port);
}

static const char *lookup_error(const struct dns_query *q)
{
    if (query_out(q))
        return "no DNS answer in time";
    /* A family without records says less than why the other one failed. */
    int status = q->lookup[FAMILY_4].status;
    if (status == ARES_ENODATA || status == ARES_SUCCESS)
        status = q->lookup[FAMILY_6].status;
    return status == ARES_SUCCESS ? "the name has no address" : ares_strerror(status);
}

/* The one place that answers a query: its time is over, or all that can come has come. */
static void query_due(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct dns_query *q = container_of(w, struct dns_query, timer);
    must(q->cb);
    struct dns_answer a = {0};
    answer_add_family(&a, q, AF_INET);
    answer_add_family(&a, q, AF_INET6);
    if (a.count == 0)
        a.error = lookup_error(q);
    void (*cb)(void *, const struct dns_answer *) = q->cb;
    void *arg = q->arg;
    query_forget(q);
    cb(arg, &a);
}

static void lookup_came(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
    struct dns_lookup *l = arg;
    struct dns_query *q = l->query;
    must(l->out);
    l->out = false;
    l->status = status;
    l->info = info;
    if (!q->cb) {
        query_release(q);
        return;
    }
    bool address = info && info->nodes;
    if (query_out(q) && !address)
        return; /* the other family decides, or the deadline */
    double wait = query_out(q) ? GRACE : 0.0;
    if (ev_timer_remaining(q->dns->loop, &q->timer) <= wait)
        return;
    ev_timer_stop(q->dns->loop, &q->timer);
    ev_timer_set(&q->timer, wait, 0.);
    ev_timer_start(q->dns->loop, &q->timer);
}

/* To be called whenever c-ares was: its next time-out may have moved. */
static void arm_timer(struct dns *d)
{
    struct timeval tv;
    ev_timer_stop(d->loop, &d->timer);
    if (!ares_timeout(d->channel, NULL, &tv))
        return;
    /* c-ares counts in milliseconds: one more, so that we never wake up just before. */
    ev_timer_set(&d->timer, (double)tv.tv_sec + (double)tv.tv_usec / 1e6 + 0.001, 0.);
    ev_timer_start(d->loop, &d->timer);
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct dns *d = container_of(w, struct dns, timer);
    ares_process_fd(d->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    arm_timer(d);
}

static void on_socket(struct ev_loop *loop, ev_io *w, int revents)
{
    struct dns_socket *s = container_of(w, struct dns_socket, io);
    struct dns *d = s->dns;
    int fd = w->fd;
    /* From here on s may be gone: c-ares closes sockets as it likes. */
    ares_process_fd(d->channel, revents & EV_READ ? fd : ARES_SOCKET_BAD,
                    revents & EV_WRITE ? fd : ARES_SOCKET_BAD);
    arm_timer(d);
}

static void socket_state(void *arg, ares_socket_t fd, int readable, int writable)
{
    struct dns *d = arg;
    struct dns_socket **at = &d->sockets;
    while (*at && (*at)->io.fd != fd)
        at = &(*at)->next;
    struct dns_socket *s = *at;
    int events = (readable ? EV_READ : 0) | (writable ? EV_WRITE : 0);
    if (s) {
        ev_io_stop(d->loop, &s->io);
    } else if (events) {
        *at = s = base_zalloc(sizeof *s);
        s->dns = d;
        ev_init(&s->io, on_socket);
        s->io.fd = fd;
    }
    if (events) {
        ev_io_set(&s->io, fd, events);
        ev_io_start(d->loop, &s->io);
    } else if (s) {
        *at = s->next;
        free(s);
    }
}

struct dns *dns_new(struct ev_loop *loop, const char *servers, const char **error)
{
    struct dns *d = base_zalloc(sizeof *d);
    char lookups[] = "fb"; /* hosts file, then DNS, whatever nsswitch.conf says */
    struct ares_options o = {.timeout = TRY_MS,
                             .tries = TRY_ROUNDS,
                             .lookups = lookups,
                             .sock_state_cb = socket_state,
                             .sock_state_cb_data = d};
    int mask = ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB;
    d->loop = loop;
    ev_init(&d->timer, on_timer);
    int status = ares_library_init(ARES_LIB_INIT_ALL);
    if (status != ARES_SUCCESS) {
        free(d);
        *error = ares_strerror(status);
        return NULL;
    }
    status = ares_init_options(&d->channel, &o, mask);
    if (status == ARES_SUCCESS && *servers) {
        status = ares_set_servers_ports_csv(d->channel, servers);
        if (status != ARES_SUCCESS)
            ares_destroy(d->channel);
    }
    if (status != ARES_SUCCESS) {
        ares_library_cleanup();
        free(d);
        *error = ares_strerror(status);
        return NULL;
    }
    return d;
}

void dns_free(struct dns *d)
{
    if (!d)
        return;
    for (struct dns_query *q = d->queries, *next; q; q = next) {
        next = q->next;
        query_forget(q);
    }
    ares_destroy(d->channel); /* brings home every lookup that is still out */
    must(!d->queries && !d->sockets);
    ev_timer_stop(d->loop, &d->timer);
    ares_library_cleanup();
    free(d);
}

/* "127.0.0.1", "::1" or "[::1]": answered without a query. */
static bool resolve_literal(const char *host, int port, struct dns_answer *a)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    char bare[INET6_ADDRSTRLEN];
    size_t n = strlen(host);
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        answer_add(a, (struct sockaddr *)&v4, sizeof v4, port);
        return true;
    }
    if (n > 2 && n - 2 < sizeof bare && host[0] == '[' && host[n - 1] == ']') {
        memcpy(bare, host + 1, n - 2);
        bare[n - 2] = 0;
        host = bare;
    }
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1)
        return false;
    answer_add(a, (struct sockaddr *)&v6, sizeof v6, port);
    return true;
}

/* Asked for by family, c-ares 1.18 leaks a few bytes whenever the hosts file has no ::1 for
 * localhost; asked for both at once it doesn't. It answers this name without a name server
 * (RFC 6761 6.3), so no silent family can delay it. */
static bool is_localhost(const char *host)
{
    return strcasecmp(host, "localhost") == 0;
}

struct dns_query *dns_resolve(struct dns *d, const char *host, int port,
                              void (*cb)(void *arg, const struct dns_answer *a), void *arg)
{
    static const int family[FAMILIES] = {AF_INET, AF_INET6};
    struct dns_answer literal = {0};
    if (resolve_literal(host, port, &literal)) {
        cb(arg, &literal);
        return NULL;
    }
    struct dns_query *q = base_zalloc(sizeof *q);
    q->dns = d;
    q->port = port;
    q->cb = cb;
    q->arg = arg;
    q->next = d->queries;
    if (q->next)
        q->next->prev = q;
    d->queries = q;
    ev_now_update(d->loop);
    ev_timer_init(&q->timer, query_due, DEADLINE, 0.);
    ev_timer_start(d->loop, &q->timer);
    bool local = is_localhost(host);
    unsigned lookups = local ? 1 : FAMILIES;
    for (unsigned i = 0; i < lookups; i++)
        q->lookup[i] = (struct dns_lookup){.query = q, .out = true};
    for (unsigned i = 0; i < lookups; i++) {
        /* No sorting: that would open a socket for each address to see what route it takes. */
        struct ares_addrinfo_hints hints = {
            .ai_family = family[i], .ai_socktype = SOCK_STREAM, .ai_flags = ARES_AI_NOSORT};
        ares_getaddrinfo(d->channel, host, NULL, &hints, lookup_came, &q->lookup[i]);
    }
    arm_timer(d);
    return q;
}

void dns_cancel(struct dns_query *q)
{
    if (q && q->cb)
        query_forget(q);
}

void dns_text(const struct sockaddr_storage *addr, char out[DNS_TEXT_MAX])
{
    const void *from = addr->ss_family == AF_INET6
                           ? (const void *)&((const struct sockaddr_in6 *)addr)->sin6_addr
                           : (const void *)&((const struct sockaddr_in *)addr)->sin_addr;
    if (!inet_ntop(addr->ss_family, from, out, DNS_TEXT_MAX))
        out[0] = 0;
}
