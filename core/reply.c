/* reply.c: text only; session.c sends it. */
#include "reply.h"

#include <sys/random.h>

/* Eight hexadecimal digits at once: each nibble gets a byte, and those over 9 the way to 'a'. */
static void put_hex(char out[8], uint32_t v)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t x = v;
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    x = (x | x << 8) & 0x00ff00ff00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
    uint64_t over = (x + ones * 6) >> 4 & ones;
    x = __builtin_bswap64(x + ones * '0' + over * ('a' - '0' - 10));
    memcpy(out, &x, sizeof x);
}

/* 128 bits by splitmix64 from a random start: unique, not secret. */
void reply_make_id(char out[REPLY_ID_MAX])
{
    static uint64_t state;
    if (!state && getrandom(&state, sizeof state, 0) != sizeof state)
        state = (uint64_t)time(NULL);
    for (int half = 0; half < 2; half++) {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        put_hex(out + 16 * half, (uint32_t)(z >> 32));
        put_hex(out + 16 * half + 8, (uint32_t)z);
    }
    out[32] = 0;
}

void reply_take_id(struct http1_head *h, char out[REPLY_ID_MAX])
{
    bool taken = false;
    for (unsigned i = 0; i < h->count; i++) {
        struct http1_field *f = &h->field[i];
        if (f->id != HTTP1_X_REQUEST_ID)
            continue;
        f->hop = true; /* written anew */
        bool good = !taken && f->value.n > 0 && f->value.n <= 64;
        for (size_t k = 0; good && k < f->value.n; k++) {
            char c = f->value.p[k];
            good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                   c == '-' || c == '_' || c == '.' || c == ':' || c == '/' || c == '+' || c == '=';
        }
        if (good) {
            memcpy(out, f->value.p, f->value.n);
            out[f->value.n] = 0;
            taken = true;
        }
    }
    if (!taken)
        reply_make_id(out);
}

void reply_put_date(struct buf *out, time_t t)
{
    static time_t at;
    static char text[48];
    if (t != at) {
        struct tm tm;
        at = t;
        gmtime_r(&t, &tm);
        strftime(text, sizeof text, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm);
    }
    buf_puts(out, text);
}

static const char *error_name(int status)
{
    switch (status) {
    case 400:
    case 408:
    case 413:
    case 414:
    case 417:
    case 431:
        return "InvalidArgumentError";
    case 404:
        return "NotFoundError";
    case 500:
    case 502:
    case 504:
        return "InternalError";
    default:
        return "ChromaError";
    }
}

void reply_put_error(struct buf *out, int status, const char *text)
{
    buf_puts(out, "{\"error\":\"");
    buf_puts(out, error_name(status));
    buf_puts(out, "\",\"message\":");
    buf_put_json(out, str_from(text));
    buf_put(out, "}", 1);
}
