/* slice_fuzz.c: any bytes as JSON text.
 *
 * It must hold that no byte outside of the text is read, JSON or not; that what is JSON is what a
 * second reader, written after the grammar of RFC 8259, takes; that walking it finds the same
 * values; that strings survive being decoded and quoted; and that the canonical text is JSON, its
 * own canonical text, and as long as its bound allows.
 *
 * needs: core/base.c core/end.c core/log.c core/buf.c core/slice.c
 */
#include "slice.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* ---- the second reader: recursive, one function for each rule of the grammar ---------------- */

struct reader {
    const unsigned char *p, *end;
    unsigned depth;
};

static int peek(const struct reader *r)
{
    return r->p < r->end ? *r->p : -1;
}

static bool eat(struct reader *r, int c)
{
    if (peek(r) != c)
        return false;
    r->p++;
    return true;
}

static void ws(struct reader *r)
{
    while (eat(r, ' ') || eat(r, '\t') || eat(r, '\n') || eat(r, '\r'))
        ;
}

static bool digits(struct reader *r)
{
    bool some = false;
    for (; peek(r) >= '0' && peek(r) <= '9'; some = true)
        r->p++;
    return some;
}

static bool number(struct reader *r)
{
    eat(r, '-');
    if (!eat(r, '0') && !digits(r))
        return false;
    if (eat(r, '.') && !digits(r))
        return false;
    if (eat(r, 'e') || eat(r, 'E')) {
        if (!eat(r, '+'))
            eat(r, '-');
        return digits(r);
    }
    return true;
}

static bool hex4(struct reader *r, unsigned *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        static const char all[] = "0123456789abcdef0123456789ABCDEF";
        const char *at = peek(r) > 0 ? strchr(all, peek(r)) : NULL;
        if (!at)
            return false;
        *unit = *unit * 16 + (unsigned)((at - all) % 16);
        r->p++;
    }
    return true;
}

static bool escape(struct reader *r)
{
    unsigned unit;
    if (!eat(r, 'u')) {
        bool known = peek(r) > 0 && strchr("\"\\/bfnrt", peek(r));
        r->p += known;
        return known;
    }
    if (!hex4(r, &unit) || (unit >= 0xdc00 && unit <= 0xdfff))
        return false;
    if (unit < 0xd800 || unit > 0xdbff)
        return true;
    return eat(r, '\\') && eat(r, 'u') && hex4(r, &unit) && unit >= 0xdc00 && unit <= 0xdfff;
}

/* A character outside of ASCII: the code it stands for has to need that many bytes. */
static bool wide(struct reader *r)
{
    int lead = peek(r);
    int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    static const unsigned least[] = {0, 0x80, 0x800, 0x10000};
    if (lead < 0xc0 || lead >= 0xf8)
        return false;
    unsigned code = (unsigned)lead & (0x3fu >> more);
    r->p++;
    for (int i = 0; i < more; i++) {
        if ((peek(r) & 0xc0) != 0x80 || peek(r) < 0)
            return false;
        code = code << 6 | (unsigned)(*r->p++ & 0x3f);
    }
    return code >= least[more] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
}

static bool string(struct reader *r)
{
    if (!eat(r, '"'))
        return false;
    while (!eat(r, '"')) {
        if (eat(r, '\\')) {
            if (!escape(r))
                return false;
        } else if (peek(r) >= 0x80) {
            if (!wide(r))
                return false;
        } else if (peek(r) >= 0x20) {
            r->p++;
        } else {
            return false;
        }
    }
    return true;
}

static bool word(struct reader *r, const char *w)
{
    while (*w)
        if (!eat(r, *w++))
            return false;
    return true;
}

static bool value(struct reader *r);

static bool list(struct reader *r, int close, bool named)
{
    bool ok = ++r->depth <= SLICE_DEPTH_MAX;
    ws(r);
    if (ok && eat(r, close)) {
        r->depth--;
        return true;
    }
    do {
        ws(r);
        if (named && ok) {
            ok = string(r);
            ws(r);
            ok = ok && eat(r, ':');
        }
        ok = ok && value(r);
    } while (ok && eat(r, ','));
    r->depth--;
    return ok && eat(r, close);
}

static bool value(struct reader *r)
{
    bool ok;
    ws(r);
    switch (peek(r)) {
    case '{':
    case '[':
        r->p++;
        ok = list(r, r->p[-1] == '{' ? '}' : ']', r->p[-1] == '{');
        break;
    case '"':
        ok = string(r);
        break;
    case 't':
        ok = word(r, "true");
        break;
    case 'f':
        ok = word(r, "false");
        break;
    case 'n':
        ok = word(r, "null");
        break;
    default:
        ok = number(r);
    }
    ws(r);
    return ok;
}

/* ---- properties ----------------------------------------------------------------------------- */

static bool is_json(struct str s)
{
    size_t at;
    const char *why;
    bool ok = slice_validate(s, &at, &why);
    must(at <= s.n && ok == !why && (!ok || at == s.n));
    return ok;
}

static void check_string(struct str raw)
{
    struct buf mem, quoted, again;
    struct str text, twice;
    buf_init(&mem, 1 << 20);
    buf_init(&quoted, 1 << 24);
    buf_init(&again, 1 << 20);
    if (slice_string(raw, &mem, &text)) {
        must(is_json(raw) && text.n <= raw.n - 2);
        buf_put_json(&quoted, text);
        struct str q = {buf_data(&quoted), buf_len(&quoted)};
        bool ok = slice_string(q, &again, &twice);
        must(ok && str_eq(text, twice));
    }
    buf_fini(&mem);
    buf_fini(&quoted);
    buf_fini(&again);
}

static void check_inside(struct str part, struct str all, bool json)
{
    must(part.n > 0 && part.p > all.p && part.p + part.n <= all.p + all.n);
    must(!json || is_json(part));
    check_string(part);
}

static void check_walk(struct str text, bool json)
{
    struct slice s = slice_start(text);
    struct str key, part, trimmed = slice_trim(text);
    size_t elements = 0, members = 0, numbers = 0;
    while (slice_array_next(&s, &part)) {
        check_inside(part, text, json);
        numbers += part.p[0] == '-' || (part.p[0] >= '0' && part.p[0] <= '9');
        elements++;
    }
    for (s = slice_start(text); slice_object_next(&s, &key, &part); members++) {
        check_inside(key, text, json);
        check_inside(part, text, json);
        must(key.p + key.n < part.p && (!json || key.p[0] == '"'));
    }
    must(elements == 0 || members == 0);
    long count = slice_count_numbers(text);
    if (!json)
        return;
    must(trimmed.n > 0);
    must((count >= 0) == (trimmed.p[0] == '[' && numbers == elements));
    must(count < 0 || (size_t)count == elements);
}

/* A number stays the double it is, and its kind. */
static void check_number(struct str raw, struct str canonical)
{
    char *a = base_printf("%.*s", (int)raw.n, raw.p);
    char *b = base_printf("%.*s", (int)canonical.n, canonical.p);
    must(strtod(a, NULL) == strtod(b, NULL));
    must(!!strpbrk(a, ".eE") <= !!strpbrk(b, ".e"));
    free(a);
    free(b);
}

static void check_canonical(struct str text, bool json)
{
    struct buf once, twice;
    buf_init(&once, 8 * text.n + 8);
    bool ok = slice_canonical(text, &once);
    must(ok == json && (json || buf_len(&once) == 0));
    if (json) {
        struct str a = {buf_data(&once), buf_len(&once)};
        buf_init(&twice, 8 * a.n);
        must(a.n <= 8 * text.n);
        if (a.p[0] == '-' || (a.p[0] >= '0' && a.p[0] <= '9'))
            check_number(slice_trim(text), a);
        ok = slice_canonical(a, &twice);
        must(ok && str_eq(a, (struct str){buf_data(&twice), buf_len(&twice)}));
        buf_fini(&twice);
    }
    buf_fini(&once);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *p = malloc(n ? n : 1); /* of exactly this size, for the sanitizer to watch */
    must(p);
    memcpy(p, data, n);
    struct str text = {p, n};
    struct reader r = {data, data + n, 0};
    bool json = is_json(text), expected = value(&r) && r.p == r.end;
    must(json == expected);
    check_string(text);
    check_walk(text, json);
    check_canonical(text, json);
    free(p);
    return 0;
}
