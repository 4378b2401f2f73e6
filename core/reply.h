/* reply.h: what chromux itself writes into answers: request ids, dates, error documents. No I/O. */
#ifndef REPLY_H
#define REPLY_H

#include "http1.h"
#include <time.h>

enum { REPLY_ID_MAX = 68 };

/* A fresh request id: 32 hexadecimal digits. */
void reply_make_id(char out[REPLY_ID_MAX]);
/* The client's own X-Request-Id when it has 1 to 64 harmless bytes, else a fresh one. Marks the
 * field as hop-by-hop, since it is written anew. */
void reply_take_id(struct http1_head *h, char out[REPLY_ID_MAX]);

/* "Date: …\r\n" (RFC 9110 6.6.1). */
void reply_put_date(struct buf *out, time_t t);
/* {"error": NAME, "message": text}, with the names that Chroma's clients know for this status
 * (rust/error/src/lib.rs at 1.3.7; the Python client maps by name). */
void reply_put_error(struct buf *out, int status, const char *text);

#endif
