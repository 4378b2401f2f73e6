/* wire.h: the client's end of a connection, byte by byte, and answers read from it. Main thread
 * only. Nothing here checks what a test wants to see; it reports. */
#ifndef WIRE_H
#define WIRE_H

#include "harness.h"

struct wire {
    int fd; /* -1 when closed */
    int port;
    char *in; /* bytes read and not yet taken */
    size_t len, room;
    double patience; /* seconds that a read or a stuck write may take; 10 at first */
};

struct answer {
    int status;
    char *head; /* with the blank line, as text */
    char *body; /* decoded, with a NUL behind it */
    size_t body_len;
    char *trailers;
    bool chunked, complete; /* complete: the body ended where its framing says */
};

struct wire *wire_open(int port);
/* false: the peer is gone or takes nothing within the patience. */
bool wire_send(struct wire *w, const void *p, size_t n);
bool wire_sendf(struct wire *w, const char *fmt, ...) PRINTF(2, 3);
/* Reads one answer, interim ones (1xx) included. NULL: none came whole with its head. to_head: it
 * answers HEAD and has no body. */
struct answer *wire_answer(struct wire *w, bool to_head);
/* Reads head only; the body's bytes stay in the wire. */
struct answer *wire_answer_head(struct wire *w);
/* Reads n raw bytes and drops them; returns how many came before the end or the deadline. The hash
 * (FNV-1a) of what was read goes on in *hash. */
uint64_t wire_skip(struct wire *w, uint64_t n, uint64_t *hash);
/* Whether the peer closes (FIN or reset) within the patience with nothing more to read. */
bool wire_closed(struct wire *w);
/* Whether bytes can be read right now. */
bool wire_has_input(struct wire *w);
void wire_close(struct wire *w);
void wire_reset(struct wire *w); /* RST */
void wire_close_all(void);       /* the teardown's */

/* A field of a head: its value as a copy, NULL when absent; name in any case. */
char *head_field(const char *head, const char *name);
unsigned head_count(const char *head, const char *name);

/* One request on a connection of its own. fields: whole lines with CRLF, or "". The body gets a
 * Content-Length. NULL when no answer came. */
struct answer *http_send(int port, const char *method, const char *target, const char *fields,
                         const char *body);
struct answer *http_get(int port, const char *target);
struct answer *http_post(int port, const char *target, const char *body);

/* Decodes a chunked body at p: returns its length in the coding, 0 when it is not whole; the
 * decoded bytes go to *body (kept) and the trailer section (with its blank line) to *trailers. */
size_t chunks_decode(const char *p, size_t n, char **body, size_t *len, char **trailers);

#define FNV_START 1469598103934665603ULL
uint64_t fnv(uint64_t hash, const void *p, size_t n);

#endif
