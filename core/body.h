/* body.h: a request's body on its way from the stream's bytes to whoever wants it: unwraps the
 * framing, within bounds. No I/O. */
#ifndef BODY_H
#define BODY_H

#include "http1.h"

struct body {
    struct buf bytes;    /* decoded, not yet taken; its cap is the back-pressure */
    struct buf trailers; /* of a chunked body: field lines that may be forwarded */
    enum http1_framing framing;
    uint64_t length; /* with HTTP1_LENGTH */
    uint64_t seen;   /* decoded bytes so far */
    bool done;
    bool in_trailers; /* private, as is `chunks` */
    struct http1_chunks chunks;
};

struct body_limits {
    uint64_t bytes; /* decoded, of the whole body */
    size_t head;    /* of the trailers */
};

/* keep: the most decoded bytes that wait to be taken. Allocates nothing. */
void body_init(struct body *b, enum http1_framing framing, uint64_t length, size_t keep);
void body_fini(struct body *b);
/* Another `keep`; what is there already stays. */
void body_keep(struct body *b, size_t keep);
/* Takes what it can from `in`. END_NONE: fine (see b->done). Otherwise END_BAD_REQUEST or
 * END_BODY_TOO_BIG, and *rule says what was broken. */
enum end_reason body_take(struct body *b, struct buf *in, const struct body_limits *limits,
                          const char **rule) MUST_CHECK;

#endif
