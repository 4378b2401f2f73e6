/* peer.h: a scripted upstream. It listens on a free port and runs a script, a plain function, on
 * every connection; each connection has a thread. Health probes (User-Agent: chromux-probe) never
 * reach a script: they are answered by the probe mode, on whatever connection they come. All
 * requests are recorded in the order in which their heads came. */
#ifndef PEER_H
#define PEER_H

#include "harness.h"

struct peer;
struct conn;

enum { PEER_BODY_KEPT = 65536, PEER_HEAD_MAX = 131072 };

struct request {
    char *head;                   /* with the blank line */
    char *body;                   /* decoded, its first PEER_BODY_KEPT bytes, with a NUL */
    uint64_t body_len, body_hash; /* of the decoded body; FNV-1a */
    char *trailers, *chunk_lines; /* of a chunked body: trailer section; size lines, joined */
    unsigned connection;          /* 0 for the first one that is no probe's */
    bool complete;                /* the whole body came */
};

/* What a connection does from its first byte on. It ends with the script; the socket is then closed
 * in an orderly way. */
typedef void peer_script(struct conn *c);

struct peer *peer_start(peer_script *script);
/* As above on a given loopback address and port: an instance that comes back, or moves. */
struct peer *peer_start_at(peer_script *script, const char *address, unsigned port);
void peer_stop(struct peer *p); /* closes its listener and all connections */
void peer_stop_all(void);
unsigned peer_port(const struct peer *p);
const char *peer_url(const struct peer *p);
void peer_set_script(struct peer *p, peer_script *script); /* for connections to come */

enum probe_mode { PROBE_OK, PROBE_ERROR, PROBE_HANG, PROBE_CLOSE };
void peer_set_probes(struct peer *p, enum probe_mode mode);
unsigned peer_probes(struct peer *p); /* seen so far */

/* What it saw. Requests are complete or not; peer_request(i) may be asked for i < peer_requests. */
unsigned peer_requests(struct peer *p);
unsigned peer_completed(struct peer *p);
struct request *peer_request(struct peer *p, unsigned i);
unsigned peer_connections(struct peer *p); /* that carried something else than probes */
/* Connections whose script was told, by conn_wait_gone(), that the other side left. */
unsigned peer_gone(struct peer *p);
/* Opens the gate: every conn_wait(), now and later, goes on. */
void peer_release(struct peer *p);
/* Free for tests: a script counts with conn_mark(), the test reads. */
unsigned peer_marks(struct peer *p);

/* ---- for scripts; each returns false when the connection or the peer is at its end ---- */
/* Reads a head (and with conn_request the body). NULL: the other side closed first. */
struct request *conn_head(struct conn *c);
struct request *conn_request(struct conn *c);
bool conn_body(struct conn *c, struct request *r);
/* Reads n bytes of body at most, raw, without decoding; to play a slow or an early reader. */
uint64_t conn_read_raw(struct conn *c, uint64_t n);
bool conn_send(struct conn *c, const char *fmt, ...) PRINTF(2, 3);
bool conn_write(struct conn *c, const void *p, size_t n);
bool conn_drip(struct conn *c, const char *text, size_t piece, double every);
bool conn_pause(struct conn *c, double seconds); /* a delay that is part of the script */
bool conn_wait(struct conn *c);                  /* until peer_release() */
bool conn_wait_gone(struct conn *c);             /* until the other side closes */
void conn_reset(struct conn *c);                 /* RST */
void conn_mark(struct conn *c);
unsigned conn_nth(const struct conn *c); /* 0 for the first connection that is no probe's */
/* Passes a request, whose body is no larger than PEER_BODY_KEPT, on to a server at this port, and
 * what that answers back. The connection is at its end then. */
void conn_relay(struct conn *c, const struct request *r, unsigned port);

/* Scripts that many tests use. */
void serve_ok(struct conn *c);   /* 200 {"ok":true} to everything, kept alive */
void serve_echo(struct conn *c); /* 200 with the request's body; "target" where it has none */

#endif
