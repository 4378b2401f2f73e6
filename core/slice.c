/* slice.c: a strict scanner of JSON text, a loose one that walks text which the strict one has
 * passed, and the canonical form. None of them recurses: what is open is kept in arrays of
 * SLICE_DEPTH_MAX. */
#include "slice.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ONES (~UINT64_C(0) / 255) /* 0x01 in every byte */

/* ---- strict -------------------------------------------------------------------------------- */

struct scan {
    const char *p, *end; /* p: the byte that is looked at; where it stands after a refusal */
    const char *why;     /* what it was refused for */
};

static bool refuse(struct scan *s, const char *why)
{
    s->why = s->p == s->end ? "the text ends before the value does" : why;
    return false;
}

static inline bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static inline void skip_space(struct scan *s)
{
    while (s->p < s->end && is_space(*s->p))
        s->p++;
}

static inline bool at(const struct scan *s, char c)
{
    return s->p < s->end && *s->p == c;
}

/* The four digits behind \u; false when they are not there. */
static bool read_hex(const char *p, const char *end, uint32_t *unit)
{
    *unit = 0;
    if (end - p < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        char low = (char)(p[i] | 0x20);
        if (is_digit(p[i]))
            *unit = *unit << 4 | (uint32_t)(p[i] - '0');
        else if (low >= 'a' && low <= 'f')
            *unit = *unit << 4 | (uint32_t)(low - 'a' + 10);
        else
            return false;
    }
    return true;
}

/* Takes an escape, with the second one of a surrogate pair; s->p stays on it when it is refused. */
static bool scan_escape(struct scan *s, uint32_t *code)
{
    static const char letters[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    const char *p = s->p, *letter;
    uint32_t low;
    if (s->end - p < 2)
        return refuse(s, "an escape without its letter");
    if (p[1] != 'u') {
        letter = memchr(letters, p[1], sizeof letters - 1);
        if (!letter)
            return refuse(s, "an escape that JSON does not know");
        *code = (uint32_t)means[letter - letters];
        s->p += 2;
        return true;
    }
    if (!read_hex(p + 2, s->end, code))
        return refuse(s, "\\u without four hexadecimal digits");
    s->p += 6;
    if (*code < 0xd800 || *code > 0xdfff)
        return true;
    if (*code <= 0xdbff && s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u' &&
        read_hex(s->p + 2, s->end, &low) && low >= 0xdc00 && low <= 0xdfff) {
        *code = 0x10000 + ((*code - 0xd800) << 10) + (low - 0xdc00);
        s->p += 6;
        return true;
    }
    s->p = p;
    return refuse(s, "half of a surrogate pair");
}

/* Eight bytes of a string that stand for themselves: no control byte, quote, backslash or byte
 * above ASCII. May say no wrongly, never yes. */
static inline bool are_plain(const char *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    uint64_t quote = w ^ ONES * '"', escape = w ^ ONES * '\\';
    return !((w | (w - ONES * ' ') | (quote - ONES) | (escape - ONES)) & ONES * 0x80);
}

static bool scan_string(struct scan *s)
{
    uint32_t code;
    must(at(s, '"'));
    s->p++;
    while (s->p < s->end) {
        if (s->end - s->p >= 8 && are_plain(s->p)) {
            s->p += 8;
            continue;
        }
        unsigned char c = (unsigned char)*s->p;
        if (c == '"') {
            s->p++;
            return true;
        }
        if (c == '\\') {
            if (!scan_escape(s, &code))
                return false;
        } else if (c < 0x20) {
            return refuse(s, "a control byte in a string");
        } else {
            size_t n = c < 0x80 ? 1 : buf_utf8_len(s->p, (size_t)(s->end - s->p));
            if (n == 0)
                return refuse(s, "not UTF-8");
            s->p += n;
        }
    }
    return refuse(s, NULL);
}

static inline bool scan_digits(struct scan *s)
{
    const char *from = s->p;
    while (s->p < s->end && is_digit(*s->p))
        s->p++;
    return s->p > from || refuse(s, "a number without the digits it needs");
}

static inline bool scan_number(struct scan *s)
{
    if (*s->p == '-')
        s->p++;
    if (at(s, '0')) {
        s->p++;
        if (s->p < s->end && is_digit(*s->p))
            return refuse(s, "a number that starts with 0");
    } else if (!scan_digits(s)) {
        return false;
    }
    if (at(s, '.')) {
        s->p++;
        if (!scan_digits(s))
            return false;
    }
    if (at(s, 'e') || at(s, 'E')) {
        s->p++;
        if (at(s, '+') || at(s, '-'))
            s->p++;
        return scan_digits(s);
    }
    return true;
}

static bool scan_scalar(struct scan *s)
{
    static const struct str words[] = {{"true", 4}, {"false", 5}, {"null", 4}};
    if (s->p == s->end)
        return refuse(s, NULL);
    if (*s->p == '"')
        return scan_string(s);
    if (*s->p == '-' || is_digit(*s->p))
        return scan_number(s);
    for (unsigned i = 0; i < COUNT_OF(words); i++)
        if ((size_t)(s->end - s->p) >= words[i].n && !memcmp(s->p, words[i].p, words[i].n)) {
            s->p += words[i].n;
            return true;
        }
    return refuse(s, "no JSON value starts so");
}

static bool scan_key(struct scan *s)
{
    skip_space(s);
    if (!at(s, '"'))
        return refuse(s, "a member without a name in quotes");
    if (!scan_string(s))
        return false;
    skip_space(s);
    if (!at(s, ':'))
        return refuse(s, "a name without : behind it");
    s->p++;
    return true;
}

static inline char closing(char opening)
{
    return opening == '{' ? '}' : ']';
}

/* From where a value is due to behind the whole of it. */
static bool scan_value(struct scan *s)
{
    char open[SLICE_DEPTH_MAX];
    unsigned depth = 0;
    do {
        bool due = false; /* a value follows in what is open */
        skip_space(s);
        if (at(s, '{') || at(s, '[')) {
            if (depth == SLICE_DEPTH_MAX)
                return refuse(s, "too many arrays and objects in each other");
            open[depth++] = *s->p++;
            skip_space(s);
            due = !at(s, closing(open[depth - 1]));
        } else if (!scan_scalar(s)) {
            return false;
        }
        while (!due && depth > 0) {
            skip_space(s);
            due = at(s, ',');
            if (!due && !at(s, closing(open[depth - 1])))
                return refuse(s, open[depth - 1] == '{' ? "neither , nor } behind a member"
                                                        : "neither , nor ] behind an element");
            s->p++;
            depth -= !due;
        }
        if (due && open[depth - 1] == '{' && !scan_key(s))
            return false;
    } while (depth > 0);
    return true;
}

bool slice_validate(struct str text, size_t *offset, const char **why)
{
    struct scan s = {text.p, text.p + text.n, NULL};
    if (text.n >= 3 && !memcmp(text.p, "\xef\xbb\xbf", 3)) {
        s.why = "a byte order mark";
    } else if (scan_value(&s)) {
        skip_space(&s);
        if (s.p < s.end)
            s.why = "something follows the value";
    }
    *offset = (size_t)(s.p - text.p);
    *why = s.why;
    return !s.why;
}

/* ---- loose: for text that was validated ----------------------------------------------------- */

struct str slice_trim(struct str text)
{
    while (text.n > 0 && is_space(text.p[0]))
        text = (struct str){text.p + 1, text.n - 1};
    while (text.n > 0 && is_space(text.p[text.n - 1]))
        text.n--;
    return text;
}

/* Behind the string that starts at p; end when it does not end. */
static const char *pass_string(const char *p, const char *end)
{
    const char *start = p + 1;
    for (p = start; p < end; p++) {
        const char *slash;
        p = memchr(p, '"', (size_t)(end - p));
        if (!p)
            return end;
        for (slash = p; slash > start && slash[-1] == '\\';)
            slash--;
        if ((p - slash) % 2 == 0)
            return p + 1;
    }
    return end;
}

static const char *pass_scalar(const char *p, const char *end)
{
    while (p < end && *p != ',' && *p != ']' && *p != '}' && *p != ':' && !is_space(*p))
        p++;
    return p;
}

static const char *pass_value(const char *p, const char *end)
{
    /* What may change how deep we are. */
    static const bool marks[256] = {
        ['"'] = true, ['['] = true, [']'] = true, ['{'] = true, ['}'] = true};
    size_t depth = 0;
    if (p == end)
        return end;
    if (*p == '"')
        return pass_string(p, end);
    if (*p != '{' && *p != '[')
        return pass_scalar(p, end);
    while (p < end) {
        if (!marks[(unsigned char)*p]) {
            p++;
        } else if (*p == '"') {
            p = pass_string(p, end);
        } else {
            depth = *p == '{' || *p == '[' ? depth + 1 : depth - 1;
            p++;
            if (depth == 0)
                break;
        }
    }
    return p;
}

struct slice slice_start(struct str value)
{
    value = slice_trim(value);
    return (struct slice){value.p, value.p + value.n, false};
}

/* Goes to the next thing inside; false when there is none. */
static bool slice_step(struct slice *s, char opening)
{
    struct scan scan = {s->p, s->end, NULL};
    char due = s->later ? ',' : opening;
    skip_space(&scan);
    if (at(&scan, due)) {
        scan.p++;
        skip_space(&scan);
        s->later = true;
        s->p = scan.p;
        if (s->p < s->end && *s->p != closing(opening))
            return true;
    }
    s->p = s->end;
    return false;
}

bool slice_array_next(struct slice *s, struct str *element)
{
    if (!slice_step(s, '['))
        return false;
    const char *behind = pass_value(s->p, s->end);
    *element = (struct str){s->p, (size_t)(behind - s->p)};
    s->p = behind;
    return element->n > 0;
}

bool slice_object_next(struct slice *s, struct str *key, struct str *value)
{
    if (!slice_step(s, '{') || *s->p != '"')
        return false;
    struct scan scan = {pass_string(s->p, s->end), s->end, NULL};
    *key = (struct str){s->p, (size_t)(scan.p - s->p)};
    s->p = s->end;
    skip_space(&scan);
    if (!at(&scan, ':'))
        return false;
    scan.p++;
    skip_space(&scan);
    s->p = pass_value(scan.p, s->end);
    *value = (struct str){scan.p, (size_t)(s->p - scan.p)};
    return value->n > 0;
}

static size_t put_code(char out[4], uint32_t code)
{
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(lead[n] | code);
    return n;
}

bool slice_string(struct str raw, struct buf *mem, struct str *out)
{
    struct scan s = {raw.p, raw.p + raw.n, NULL};
    if (!at(&s, '"') || !scan_string(&s) || s.p != s.end)
        return false;
    *out = (struct str){raw.p + 1, raw.n - 2};
    if (!memchr(out->p, '\\', out->n))
        return true;
    buf_clear(mem);
    char *from = buf_reserve(mem, out->n), *to = from; /* an escape is longer than what it means */
    if (!from)
        return false;
    s = (struct scan){out->p, out->p + out->n, NULL};
    while (s.p < s.end) {
        const char *escape = memchr(s.p, '\\', (size_t)(s.end - s.p));
        size_t n = (size_t)((escape ? escape : s.end) - s.p);
        uint32_t code;
        memcpy(to, s.p, n);
        to += n;
        s.p += n;
        if (escape) {
            bool ok = scan_escape(&s, &code);
            must(ok);
            to += put_code(to, code);
        }
    }
    buf_added(mem, (size_t)(to - from));
    *out = (struct str){from, (size_t)(to - from)};
    return true;
}

long slice_count_numbers(struct str array)
{
    enum { OTHER, PART, COMMA };
    static const unsigned char kinds[256] = {
        ['0' ... '9'] = PART, ['-'] = PART,  ['+'] = PART, ['.'] = PART,
        ['e'] = PART,         ['E'] = PART,  [' '] = PART, ['\t'] = PART,
        ['\n'] = PART,        ['\r'] = PART, [','] = COMMA};
    long commas = 0;
    array = slice_trim(array);
    if (array.n < 2 || array.p[0] != '[' || array.p[array.n - 1] != ']')
        return -1;
    struct str inside = slice_trim((struct str){array.p + 1, array.n - 2});
    if (inside.n == 0)
        return 0;
    for (size_t i = 0; i < inside.n; i++) {
        unsigned char kind = kinds[(unsigned char)inside.p[i]];
        if (kind == OTHER)
            return -1;
        commas += kind == COMMA;
    }
    return commas + 1;
}

/* ---- canonical ------------------------------------------------------------------------------ */

/* A member as it was written to *out; offsets from its data. */
struct member {
    uint32_t at, key_n, end;
};

struct canon {
    struct buf *out, members, text;
    bool object[SLICE_DEPTH_MAX];
    uint32_t first[SLICE_DEPTH_MAX]; /* of its members: where they start in `members` */
    unsigned depth;
};

/* By key, and equal keys as they came. */
static int member_order(const void *a, const void *b, void *base)
{
    const struct member *x = a, *y = b;
    const char *text = base;
    size_t n = x->key_n < y->key_n ? x->key_n : y->key_n;
    int order = memcmp(text + x->at, text + y->at, n);
    if (order == 0 && x->key_n != y->key_n)
        order = x->key_n < y->key_n ? -1 : 1;
    return order ? order : x->at < y->at ? -1 : 1;
}

static bool same_key(const struct member *x, const struct member *y, const char *text)
{
    return x->key_n == y->key_n && !memcmp(text + x->at, text + y->at, x->key_n);
}

/* Sorts the members of the object that ends here. */
static void canon_sort(struct canon *c)
{
    uint32_t first = c->first[c->depth - 1];
    size_t count = (buf_len(&c->members) - first) / sizeof(struct member);
    if (count == 0)
        return;
    struct member *m = (struct member *)(void *)(c->members.mem + first);
    char *base = c->out->mem + c->out->head;
    bool sorted = true;
    uint32_t start = m[0].at;
    m[count - 1].end = (uint32_t)buf_len(c->out);
    for (size_t i = 1; i < count && sorted; i++)
        sorted = member_order(&m[i - 1], &m[i], base) < 0 && !same_key(&m[i - 1], &m[i], base);
    if (!sorted) {
        qsort_r(m, count, sizeof *m, member_order, base);
        buf_clear(&c->text);
        for (size_t i = 0; i < count; i++) {
            if (i + 1 < count && same_key(&m[i], &m[i + 1], base))
                continue;
            if (buf_len(&c->text))
                buf_put(&c->text, ",", 1);
            buf_put(&c->text, base + m[i].at, m[i].end - m[i].at);
        }
        memcpy(base + start, buf_data(&c->text), buf_len(&c->text));
        c->out->tail = c->out->head + start + (uint32_t)buf_len(&c->text);
    }
    c->members.tail = c->members.head + first;
}

static void canon_string(struct canon *c, struct str raw)
{
    struct str text;
    bool ok = slice_string(raw, &c->text, &text);
    must(ok);
    buf_put_json(c->out, text);
}

static bool is_int64(struct str raw)
{
    static const char most[] = "9223372036854775808";
    bool minus = raw.p[0] == '-';
    struct str digits = {raw.p + minus, raw.n - minus};
    for (size_t i = 0; i < digits.n; i++)
        if (!is_digit(digits.p[i]))
            return false;
    if (digits.n != sizeof most - 1)
        return digits.n < sizeof most - 1;
    int order = memcmp(digits.p, most, digits.n);
    return order < 0 || (order == 0 && minus);
}

/* d.ddd times 10 to the power of `exponent`, no zeros at the end; no digits: 0. */
struct decimal {
    char digits[DBL_DIG];
    int n, exponent;
    bool minus;
};

/* Takes a number of so few digits that every double is at most one such number; false for others.
 */
static bool read_decimal(struct str raw, struct decimal *d)
{
    const char *p = raw.p, *end = raw.p + raw.n;
    bool fraction = false;
    *d = (struct decimal){.exponent = -1, .minus = *p == '-'};
    for (p += d->minus; p < end && (is_digit(*p) || *p == '.'); p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        if (d->n == 0 && *p == '0') {
            d->exponent -= fraction;
            continue;
        }
        if (d->n == DBL_DIG)
            return false;
        d->digits[d->n++] = *p;
        d->exponent += !fraction;
    }
    while (d->n > 0 && d->digits[d->n - 1] == '0')
        d->n--;
    if (p < end) { /* e */
        bool minus = p[1] == '-';
        int e = 0;
        for (p += 1 + (p[1] == '-' || p[1] == '+'); p < end && e < 1000; p++)
            e = e * 10 + (*p - '0');
        if (p < end)
            return false;
        d->exponent += minus ? -e : e;
    }
    return d->exponent > -290 && d->exponent < 290;
}

/* As printf's %.15g does, with .0 where that would look like an integer. */
static void write_decimal(struct buf *b, const struct decimal *d)
{
    int n = d->n, whole = d->exponent + 1; /* digits before the point */
    if (d->minus)
        buf_put(b, "-", 1);
    if (n == 0) {
        buf_puts(b, "0.0");
    } else if (whole < -3 || whole > DBL_DIG) {
        buf_put(b, d->digits, 1);
        buf_put(b, ".", n > 1);
        buf_put(b, d->digits + 1, (size_t)n - 1);
        buf_printf(b, "e%+03d", d->exponent);
    } else if (whole <= 0) {
        buf_puts(b, "0.");
        buf_put(b, "000", (size_t)-whole);
        buf_put(b, d->digits, (size_t)n);
    } else if (whole >= n) {
        buf_put(b, d->digits, (size_t)n);
        buf_put(b, "000000000000000", (size_t)(whole - n));
        buf_puts(b, ".0");
    } else {
        buf_put(b, d->digits, (size_t)whole);
        buf_put(b, ".", 1);
        buf_put(b, d->digits + whole, (size_t)(n - whole));
    }
}

static void canon_number(struct canon *c, struct str raw)
{
    struct decimal d;
    char text[40];
    if (is_int64(raw)) {
        buf_put_str(c->out, raw);
        return;
    }
    if (read_decimal(raw, &d)) {
        write_decimal(c->out, &d);
        return;
    }
    buf_clear(&c->text);
    buf_put_str(&c->text, raw);
    buf_put(&c->text, "", 1);
    double v = strtod(buf_data(&c->text), NULL);
    if (isinf(v)) {
        buf_puts(c->out, v < 0 ? "-1e999" : "1e999");
        return;
    }
    int digits = DBL_DIG;
    do
        snprintf(text, sizeof text, "%.*g", digits, v);
    while (digits++ < 17 && strtod(text, NULL) != v);
    buf_puts(c->out, text);
    if (!strpbrk(text, ".e"))
        buf_puts(c->out, ".0");
}

/* Text that was validated. */
static void canon_write(struct canon *c, const char *p, const char *end)
{
    bool key = false; /* a string here is the name of a member */
    while (p < end) {
        bool inside = c->depth > 0 && c->object[c->depth - 1];
        const char *from = p++;
        switch (*from) {
        case ' ':
        case '\t':
        case '\n':
        case '\r':
            break;
        case '{':
        case '[':
            key = c->object[c->depth] = *from == '{';
            c->first[c->depth++] = (uint32_t)buf_len(&c->members);
            buf_put(c->out, from, 1);
            break;
        case ',':
            if (inside) {
                struct member *m =
                    (struct member *)(void *)(c->members.mem + c->members.tail - sizeof *m);
                m->end = (uint32_t)buf_len(c->out);
            }
            key = inside;
            buf_put(c->out, from, 1);
            break;
        case '}':
        case ']':
            if (inside)
                canon_sort(c);
            c->depth--;
            key = false;
            buf_put(c->out, from, 1);
            break;
        case '"': {
            struct member m = {.at = (uint32_t)buf_len(c->out)};
            p = pass_string(from, end);
            canon_string(c, (struct str){from, (size_t)(p - from)});
            m.key_n = (uint32_t)buf_len(c->out) - m.at;
            if (key)
                buf_put(&c->members, &m, sizeof m);
            key = false;
            break;
        }
        case ':':
            buf_put(c->out, from, 1);
            break;
        default:
            p = pass_scalar(from, end);
            if (*from == '-' || is_digit(*from))
                canon_number(c, (struct str){from, (size_t)(p - from)});
            else
                buf_put(c->out, from, (size_t)(p - from));
        }
    }
}

bool slice_canonical(struct str text, struct buf *out)
{
    struct canon c = {.out = out};
    size_t offset;
    const char *why;
    if (text.n > SLICE_CANONICAL_MAX || !slice_validate(text, &offset, &why))
        return false;
    buf_init(&c.members, 1u << 30);
    buf_init(&c.text, 1u << 30);
    canon_write(&c, text.p, text.p + text.n);
    buf_fini(&c.members);
    buf_fini(&c.text);
    return true;
}

uint64_t slice_hash(struct str bytes)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes.n; i++)
        h = (h ^ (unsigned char)bytes.p[i]) * 0x100000001b3u;
    return h;
}
