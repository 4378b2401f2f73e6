/* path_model.h: what must become of a client's bytes, and of a server's, read by chromux's own
 * parsers in one piece, without sockets, loop or state machines. */
#ifndef PATH_MODEL_H
#define PATH_MODEL_H

#include "config.h"
#include "http1.h"
#include "path_reader.h"

enum fate {
    FATE_BAD,     /* not a request: refused, and the connection ends */
    FATE_REFUSED, /* by its route or its length */
    FATE_LOCAL,   /* chromux answers it */
    FATE_PROXIED
};

struct expected {
    enum fate fate;
    int status;                /* of the answer; 0: several are right, by how the bytes were cut */
    bool head;                 /* HEAD: the answer has no body */
    bool has_body, whole, bad; /* the body: there is one; all of it came; it breaks a rule */
    bool ends;                 /* the answer, if there is one, closes the connection */
    /* with FATE_PROXIED */
    struct buf start;     /* "GET /x" */
    struct buf fields;    /* "Name=value\n", those of the client and the framing */
    struct buf trailers;  /* the same */
    struct buf body;      /* what was decoded */
    unsigned field_count; /* all that the server gets: chromux's own and trailers too */
};

struct model {
    struct expected v[MESSAGES_MAX];
    unsigned n;
};

/* streams: the server's answers have no length that is known before their end. */
void model_read(struct model *m, const struct config *cfg, bool local_only, bool streams,
                const char *p, size_t n);
void model_clear(struct model *m);

/* The answer in a server's bytes. */
struct told {
    bool head;  /* a final head is there */
    bool bad;   /* the head, or one before it, is refused */
    bool whole; /* the body, too; until_close: if the end that follows is an orderly one */
    bool until_close;
    int status;
    struct buf body;
};
void told_read(struct told *t, const struct config *cfg, enum http1_method to, const char *p,
               size_t n);

#endif
