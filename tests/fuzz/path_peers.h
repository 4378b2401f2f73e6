/* path_peers.h: both ends of the way that path_fuzz.c looks at: servers that answer well or say
 * what they are told, and a client that sends what it is told. */
#ifndef PATH_PEERS_H
#define PATH_PEERS_H

#include "path_reader.h"

#include <ev.h>

enum { ORIGINS = 2, PIECES_MAX = 24 };

/* How the servers answer well. */
enum style {
    STYLE_LENGTH,
    STYLE_CHUNKED,
    STYLE_BIG,
    STYLE_CLOSE,
    STYLE_INTERIM,
    STYLE_EMPTY,
    STYLE_BIG_CHUNKED,
    STYLE_KEPT_ONCE, /* as LENGTH, and closes after it */
};

/* What the first three bytes of an input say, and the others. */
struct plan {
    bool from_server; /* the input is the servers' */
    bool local_only;  /* as a client of the admin port */
    bool lazy;        /* the client reads when nothing moves any more */
    bool half_close;  /* the client ends with FIN; else with RST */
    unsigned which;   /* the style of the servers, or what the client asks */
    unsigned when;    /* a server speaks 0: when the request is whole, 1: at its first byte, 2: at
                         once */
    unsigned then;    /* and then 0: FIN, 1: RST, 2: keeps the connection, 3: the client dies */
    enum { PATIENT, LEAVES, DIES } client; /* FIN or RST as soon as its last byte is out */
    size_t piece[PIECES_MAX];
    const char *p;
    size_t n;
};

extern struct plan plan;

extern struct messages asked, answered; /* what llhttp found at the servers, and at the client */
extern unsigned moved;                  /* counts whatever happened outside of chromux */

struct client {
    int fd; /* -1: closed */
    bool eof, reset;
    bool cut; /* the end came in order, but within an answer */
};
extern struct client client;

/* Servers on ports of their own, watched by the loop. */
void peers_start(struct ev_loop *loop, int ports[ORIGINS]);
/* Those whose turn it is say their next piece. */
void origins_speak(void);
void origins_close(void);
/* The requests of chromux's probes are taken out of what was asked. */
void forget_probes(void);

/* A new connection, handed to chromux. bodiless: see path_reader.h. */
void client_open(const bool *bodiless);
void client_read(void);
/* Sends the next piece of p. */
void client_write(const char *p, size_t n);
void client_leaves(void); /* with FIN */
void client_dies(void);   /* with RST */

/* Is it the body of the servers' good answer? */
bool is_good_body(const struct buf *body, bool to_head);

/* Says what is wrong and what was said on both sides, for whoever must find out why, and aborts. */
void tell(const char *why) __attribute__((noreturn));

#endif
