/* dns.h: host names to addresses, on c-ares and libev; never blocks. */
#ifndef DNS_H
#define DNS_H

#include "base.h"
#include <ev.h>
#include <sys/socket.h>

struct dns;
struct dns_query;

struct dns_answer {
    unsigned count; /* 0 when it failed */
    struct {
        struct sockaddr_storage addr; /* with the port set */
        socklen_t len;
    } v[8];            /* IPv4 before IPv6, otherwise in the order of the answer */
    const char *error; /* static text when count is 0 */
};

/* servers: "" for the system's (resolv.conf, hosts), else "address[:port],…". NULL: *error says
 * why. */
struct dns *dns_new(struct ev_loop *loop, const char *servers, const char **error) MUST_CHECK;
void dns_free(struct dns *d); /* open queries are cancelled without a callback */

/* Looks a name up (hosts file first, then DNS, A and AAAA); cb is called exactly once, from the
 * loop or, for an address literal, before this returns (then NULL is returned). Times out after 5
 * s; when one family stays silent, the addresses of the other are answered 0.3 s after they came.
 * The query is gone when cb is called. */
struct dns_query *dns_resolve(struct dns *d, const char *host, int port,
                              void (*cb)(void *arg, const struct dns_answer *a), void *arg);
/* No callback follows. NULL is fine. */
void dns_cancel(struct dns_query *q);

/* An IPv4 or IPv6 address as text, without port and brackets; "" for anything else. */
enum { DNS_TEXT_MAX = 48 };
void dns_text(const struct sockaddr_storage *addr, char out[DNS_TEXT_MAX]);

#endif
