/* buf.h: growable bytes with a hard cap.
 *
 * Bytes are appended at the tail and consumed from the head; the memory in between is contiguous.
 * An empty buf holds no memory once buf_rest() was called, so that idle connections cost nothing.
 */
#ifndef BUF_H
#define BUF_H

#include "base.h"

struct buf {
    char *mem;
    uint32_t head, tail, size,
        cap; /* [head, tail) is the content; size is allocated; cap allowed */
};

/* cap: the most bytes it may ever hold (at most 1 GiB). Allocates nothing. */
void buf_init(struct buf *b, size_t cap);
void buf_fini(struct buf *b);
/* Lets the memory go if nothing is in it. */
void buf_rest(struct buf *b);

static inline size_t buf_len(const struct buf *b)
{
    return b->tail - b->head;
}

static inline const char *buf_data(const struct buf *b)
{
    return b->head ? b->mem + b->head : b->mem; /* mem may be NULL */
}

static inline size_t buf_room(const struct buf *b)
{
    return b->cap - buf_len(b);
}

/* Makes room for n more bytes behind the tail and returns where they go; NULL when the cap would be
 * passed. Follow with buf_added(). */
char *buf_grow(struct buf *b, size_t n) MUST_CHECK; /* the slow part of buf_reserve() */
MUST_CHECK static inline char *buf_reserve(struct buf *b, size_t n)
{
    return LIKELY(b->mem && b->size - b->tail >= n) ? b->mem + b->tail : buf_grow(b, n);
}
static inline void buf_added(struct buf *b, size_t n)
{
    b->tail += (uint32_t)n;
}

/* Drops n bytes (at most buf_len) from the head. */
static inline void buf_consume(struct buf *b, size_t n)
{
    b->head += (uint32_t)n;
    if (b->head == b->tail)
        b->head = b->tail = 0;
}

static inline void buf_clear(struct buf *b)
{
    b->head = b->tail = 0;
}

/* Append; false when the cap would be passed (then nothing was appended). */
MUST_CHECK static inline bool buf_add(struct buf *b, const void *p, size_t n)
{
    if (n == 0)
        return true;
    char *at = buf_reserve(b, n);
    if (!at)
        return false;
    memcpy(at, p, n);
    buf_added(b, n);
    return true;
}
bool buf_addf(struct buf *b, const char *fmt, ...) PRINTF(2, 3) MUST_CHECK;

/* Appends for text whose size is bounded by what was parsed before: passing the cap is a bug. */
static inline void buf_put(struct buf *b, const void *p, size_t n)
{
    bool ok = buf_add(b, p, n);
    must(ok);
}
static inline void buf_puts(struct buf *b, const char *s)
{
    buf_put(b, s, strlen(s));
}
static inline void buf_put_str(struct buf *b, struct str s)
{
    buf_put(b, s.p, s.n);
}
void buf_put_uint(struct buf *b, uint64_t v);
void buf_printf(struct buf *b, const char *fmt, ...) PRINTF(2, 3);
/* Appends s as a JSON string with its quotes (RFC 8259 7); bytes that are not UTF-8 become U+FFFD.
 */
void buf_put_json(struct buf *b, struct str s);

/* Length of the sequence of several bytes at p that is UTF-8 (RFC 3629 4), 0 when it is none.
 * n: bytes there are, at least one. */
size_t buf_utf8_len(const char *p, size_t n);

/* Appends s as UTF-8: bytes that are not become U+FFFD. */
void buf_put_utf8(struct buf *b, struct str s);

#endif
