/* base.h: the few words every module speaks. Includes nothing of ours. */
#ifndef BASE_H
#define BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MUST_CHECK            __attribute__((warn_unused_result))
#define PRINTF(fmt, args)     __attribute__((format(printf, fmt, args)))
#define NORETURN              __attribute__((noreturn))
#define LIKELY(x)             __builtin_expect(!!(x), 1)
#define UNLIKELY(x)           __builtin_expect(!!(x), 0)
#define COUNT_OF(array)       (sizeof(array) / sizeof((array)[0]))
#define container_of(p, T, m) ((T *)((char *)(p)-offsetof(T, m)))

/* must(): an always-on check of our own reasoning. Bugs abort here; input never does. */
#define must(cond) ((cond) ? (void)0 : base_must_failed(#cond, __FILE__, __LINE__))
void base_must_failed(const char *cond, const char *file, int line) NORETURN;

/* malloc, calloc, realloc and strdup that end the process instead of failing: what they are asked
 * for is bounded by configuration, so running out is the operator's limit and not an input. */
void *base_alloc(size_t n) MUST_CHECK;
void *base_zalloc(size_t n) MUST_CHECK;
void *base_realloc(void *p, size_t n) MUST_CHECK;
char *base_strdup(const char *s) MUST_CHECK;
/* Formats into fresh memory; the caller frees it. */
char *base_printf(const char *fmt, ...) PRINTF(1, 2) MUST_CHECK;

/* Seconds, for deadlines and durations: as many pass as pass, whatever happens to the clock on the
 * wall, of which it is what that said when the process began. */
double base_clock(void);

/* A range of bytes that somebody else owns. */
struct str {
    const char *p;
    size_t n;
};
#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})

static inline struct str str_from(const char *s)
{
    return (struct str){s, s ? strlen(s) : 0};
}

static inline bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* ASCII only, as HTTP field names and tokens compare (RFC 9110 5.1). */
bool str_eq_nocase(struct str a, struct str b);

#endif
