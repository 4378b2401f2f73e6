/* http1_bytes.h: what each byte may be in a head, and how runs of them are skipped. For http1.c and
 * http1_chunks.c. No function here looks at *end. */
#ifndef HTTP1_BYTES_H
#define HTTP1_BYTES_H

#include "base.h"

enum {
    TOKEN = 1,   /* tchar, RFC 9110 5.6.2 */
    VALUE = 2,   /* HTAB, SP, VCHAR, obs-text, RFC 9110 5.5 */
    TARGET = 4,  /* VCHAR but '#': more than RFC 3986 allows, as clients send '|' or '"' raw */
    REGNAME = 8, /* unreserved and sub-delims, RFC 3986 3.2.2 */
    DIGIT = 16,
    HEX = 32,
    VT = VALUE | TARGET,
    TVT = TOKEN | VT,
    RVT = REGNAME | VT,
    ALL = TOKEN | RVT
};

/* clang-format off */
static const uint8_t class_of[256] = {
    ['\t'] = VALUE,  [' '] = VALUE,   ['!'] = ALL,     ['"'] = VT,      ['#'] = TOKEN | VALUE,
    ['$'] = ALL,     ['%'] = TVT,     ['&'] = ALL,     ['\''] = ALL,    ['('] = RVT,
    [')'] = RVT,     ['*'] = ALL,     ['+'] = ALL,     [','] = RVT,     ['-'] = ALL,
    ['.'] = ALL,     ['/'] = VT,      ['0' ... '9'] = ALL | DIGIT | HEX,
    [':'] = VT,      [';'] = RVT,     ['<'] = VT,      ['='] = RVT,     ['>' ... '@'] = VT,
    ['A' ... 'F'] = ALL | HEX,        ['G' ... 'Z'] = ALL,              ['[' ... ']'] = VT,
    ['^'] = TVT,     ['_'] = ALL,     ['`'] = TVT,
    ['a' ... 'f'] = ALL | HEX,        ['g' ... 'z'] = ALL,
    ['{'] = VT,      ['|'] = TVT,     ['}'] = VT,      ['~'] = ALL,     [0x80 ... 0xff] = VALUE,
};
/* clang-format on */

static inline bool is(char c, unsigned class)
{
    return (class_of[(unsigned char)c] & class) != 0;
}

static inline const char *skip(const char *p, const char *end, unsigned class)
{
    while (p < end && is(*p, class))
        p++;
    return p;
}

static inline const char *skip_blank(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    return p;
}

/* skip(VALUE), eight bytes at a time while none of them is a control byte. */
static inline const char *skip_value(const char *p, const char *end)
{
    const uint64_t ones = 0x0101010101010101u;
    while (end - p >= 8) {
        uint64_t x;
        memcpy(&x, p, sizeof x);
        uint64_t del = x ^ (ones * 0x7f);
        uint64_t low = (x - ones * 0x20) & ~x;
        if ((low | ((del - ones) & ~del)) & (ones * 0x80))
            break;
        p += 8;
    }
    return skip(p, end, VALUE);
}

static inline struct str trim(const char *p, const char *end)
{
    p = skip_blank(p, end);
    while (p < end && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    return (struct str){p, (size_t)(end - p)};
}

#endif
