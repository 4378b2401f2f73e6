/* guard.h: bytes at the very end of a page, with a page behind them that nobody may read. A parser
 * that looks one byte too far dies at once, with or without a sanitizer. */
#ifndef GUARD_H
#define GUARD_H

#include "base.h"

#include <sys/mman.h>
#include <unistd.h>

struct guard {
    char *map;
    size_t size; /* of the readable part; the guard page follows */
};

/* Room for up to n bytes. */
static inline struct guard guard_new(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct guard g = {NULL, (n / page + 1) * page};
    g.map = mmap(NULL, g.size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(g.map != MAP_FAILED);
    int rc = mprotect(g.map + g.size, page, PROT_NONE);
    must(rc == 0);
    return g;
}

/* Copies n bytes so that they end where the guard page begins; valid until the next call. */
static inline const char *guard_put(struct guard *g, const void *p, size_t n)
{
    must(n <= g->size);
    char *at = g->map + g->size - n;
    if (n > 0)
        memcpy(at, p, n);
    return at;
}

static inline void guard_free(struct guard *g)
{
    munmap(g->map, g->size + (size_t)sysconf(_SC_PAGESIZE));
    g->map = NULL;
}

#endif
