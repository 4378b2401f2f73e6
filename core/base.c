/* base.c: memory that is there or ends the process, a clock that nobody sets, ASCII comparison. */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void base_must_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "chromux: bug: %s does not hold at %s:%d\n", cond, file, line);
    abort();
}

static void *kept(void *p)
{
    if (p)
        return p;
    fputs("chromux: out of memory\n", stderr);
    abort();
}

void *base_alloc(size_t n)
{
    return kept(malloc(n ? n : 1));
}

void *base_zalloc(size_t n)
{
    return kept(calloc(1, n ? n : 1));
}

void *base_realloc(void *p, size_t n)
{
    return kept(realloc(p, n ? n : 1));
}

char *base_strdup(const char *s)
{
    return kept(strdup(s));
}

char *base_printf(const char *fmt, ...)
{
    va_list args;
    char *out = NULL;
    va_start(args, fmt);
    int n = vasprintf(&out, fmt, args);
    va_end(args);
    return kept(n < 0 ? NULL : out);
}

static double read_clock(clockid_t which)
{
    struct timespec t;
    must(clock_gettime(which, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double base_clock(void)
{
    static double began; /* the wall's time when the other clock was at 0 */
    if (began == 0)
        began = read_clock(CLOCK_REALTIME) - read_clock(CLOCK_MONOTONIC);
    return began + read_clock(CLOCK_MONOTONIC);
}

static unsigned char lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c | 0x20) : c;
}

bool str_eq_nocase(struct str a, struct str b)
{
    if (a.n != b.n)
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (lower((unsigned char)a.p[i]) != lower((unsigned char)b.p[i]))
            return false;
    return true;
}
