/* http1_chunks.h: the chunked coding as bytes. Pure: no I/O, no malloc. */
#ifndef HTTP1_CHUNKS_H
#define HTTP1_CHUNKS_H

#include "base.h"

/* The chunked coding, decoded piece by piece (RFC 9112 7.1). Extensions are checked and dropped. */
struct http1_chunks {
    uint64_t left;  /* bytes still to come of the chunk that is open */
    uint8_t state;  /* private */
    uint8_t digits; /* private */
    uint16_t line;  /* private: bytes of the size line so far; at most 256 */
};
enum http1_step {
    HTTP1_DATA, /* *data is a piece of the body (never empty) */
    HTTP1_MORE, /* all of p was consumed: give more */
    HTTP1_LAST, /* the last chunk was read; what follows at p + *consumed is the trailer section */
    HTTP1_STEP_BAD /* refused: sign, 0x, overflow, stray ';', white space, missing CRLF */
};
void http1_chunks_init(struct http1_chunks *c);
/* Consumes from p; call again with the rest until MORE, LAST or BAD. *data points into p. */
enum http1_step http1_chunks_next(struct http1_chunks *c, const char *p, size_t n, size_t *consumed,
                                  struct str *data, const char **rule) MUST_CHECK;

#endif
