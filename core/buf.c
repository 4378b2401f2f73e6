/* buf.c: the slow parts of buf.h: growing, formatting, JSON text. */
#include "buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define BUF_LEAST 256u

void buf_init(struct buf *b, size_t cap)
{
    must(cap > 0 && cap <= (1u << 30));
    *b = (struct buf){.cap = (uint32_t)cap};
}

void buf_fini(struct buf *b)
{
    free(b->mem);
    b->mem = NULL;
    b->head = b->tail = b->size = 0;
}

void buf_rest(struct buf *b)
{
    if (b->mem && b->head == b->tail)
        buf_fini(b);
}

char *buf_grow(struct buf *b, size_t n)
{
    size_t len = buf_len(b);
    if (n > b->cap - len)
        return NULL;
    if (b->head > 0) {
        memmove(b->mem, b->mem + b->head, len);
        b->head = 0;
        b->tail = (uint32_t)len;
    }
    if (b->size - b->tail < n || !b->mem) {
        size_t size = b->size ? b->size : BUF_LEAST;
        while (size < len + n)
            size *= 2;
        if (size > b->cap)
            size = b->cap;
        b->mem = base_realloc(b->mem, size);
        b->size = (uint32_t)size;
    }
    return b->mem + b->tail;
}

static bool add_va(struct buf *b, const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    bool ok = false;
    if (n >= 0) {
        char *at = buf_reserve(b, (size_t)n + 1);
        if (at) {
            vsnprintf(at, (size_t)n + 1, fmt, again);
            buf_added(b, (size_t)n);
            ok = true;
        }
    }
    va_end(again);
    return ok;
}

bool buf_addf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    bool ok = add_va(b, fmt, args);
    va_end(args);
    return ok;
}

void buf_put_uint(struct buf *b, uint64_t v)
{
    char digits[20];
    unsigned at = sizeof digits;
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    buf_put(b, digits + at, sizeof digits - at);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    bool ok = add_va(b, fmt, args);
    va_end(args);
    must(ok);
}

size_t buf_utf8_len(const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t len = p[0] >= 0xc2 && p[0] <= 0xdf   ? 2
                 : p[0] >= 0xe0 && p[0] <= 0xef ? 3
                 : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4
                                                : 0;
    if (len == 0 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

/* Stands for itself in a JSON string, and is ASCII. */
static bool is_plain(char c)
{
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

void buf_put_json(struct buf *b, struct str s)
{
    buf_put(b, "\"", 1);
    for (size_t i = 0; i < s.n;) {
        size_t plain = i;
        while (plain < s.n && is_plain(s.p[plain]))
            plain++;
        buf_put(b, s.p + i, plain - i);
        if ((i = plain) == s.n)
            break;
        unsigned char c = (unsigned char)s.p[i];
        if (c == '"' || c == '\\') {
            char esc[2] = {'\\', (char)c};
            buf_put(b, esc, 2);
            i++;
        } else if (c < 0x20 || c == 0x7f) {
            buf_printf(b, "\\u%04x", c);
            i++;
        } else {
            size_t n = buf_utf8_len(s.p + i, s.n - i);
            if (n)
                buf_put(b, s.p + i, n);
            else
                buf_puts(b, "\xef\xbf\xbd");
            i += n ? n : 1;
        }
    }
    buf_put(b, "\"", 1);
}

void buf_put_utf8(struct buf *b, struct str s)
{
    for (size_t i = 0; i < s.n;) {
        size_t n = (unsigned char)s.p[i] < 0x80 ? 1 : buf_utf8_len(s.p + i, s.n - i);
        if (n)
            buf_put(b, s.p + i, n);
        else
            buf_puts(b, "\xef\xbf\xbd");
        i += n ? n : 1;
    }
}
