/* records.c: walks the columns of an answer of /get side by side, reads vectors as the floats they
 * are, and compares.
 *
 * Nearly all numbers that Chroma prints are short, so reading one is a multiplication or division
 * of two exact doubles; strtof() has the rest. */
#include "records.h"

#include <endian.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

/* ---- walking -------------------------------------------------------------------------------- */

static const struct {
    struct str name;
    const char *kinds; /* how an element may start */
    const char *rule;  /* what one that starts otherwise breaks */
} columns[RECORDS_COLUMNS] = {
    [RECORDS_IDS] = {{"ids", 3}, "\"", "an id that is no text"},
    [RECORDS_EMBEDDINGS] = {{"embeddings", 10}, "[", "an embedding that is no list"},
    [RECORDS_DOCUMENTS] = {{"documents", 9}, "\"n", "a document that is neither text nor null"},
    [RECORDS_METADATAS] = {{"metadatas", 9}, "{n", "a metadata that is no object and not null"},
    [RECORDS_URIS] = {{"uris", 4}, "\"n", "a uri that is neither text nor null"},
};

static const char *find_columns(struct str object, struct str found[RECORDS_COLUMNS])
{
    struct slice s = slice_start(object);
    struct str key, value;
    while (slice_object_next(&s, &key, &value)) {
        struct str name = {key.p + 1, key.n - 2};
        for (unsigned i = 0; i < RECORDS_COLUMNS; i++) {
            if (!str_eq(name, columns[i].name))
                continue;
            if (found[i].n)
                return "a member is there twice";
            found[i] = value;
        }
    }
    return NULL;
}

bool records_open(struct records *r, struct str text, bool whole, size_t *at, const char **why)
{
    struct str found[RECORDS_COLUMNS] = {{NULL, 0}};
    *r = (struct records){.columns = whole ? RECORDS_COLUMNS : 1};
    if (text.n > RECORDS_BYTES_MOST) {
        *at = SIZE_MAX;
        *why = "too big";
        return false;
    }
    if (!slice_validate(text, at, why))
        return false;
    *at = SIZE_MAX;
    text = slice_trim(text);
    *why = text.p[0] == '{' ? find_columns(text, found) : "not an object";
    for (unsigned i = 0; i < r->columns && !*why; i++) {
        static const char *const missing[] = {"no ids", "no embeddings", "no documents",
                                              "no metadatas", "no uris"};
        if (found[i].n == 0 || found[i].p[0] != '[')
            *why = missing[i];
        else
            r->at[i] = slice_start(found[i]);
    }
    return !*why;
}

bool records_next(struct records *r, struct record *out, const char **why)
{
    unsigned got = 0;
    *why = NULL;
    for (unsigned i = 0; i < r->columns; i++) {
        if (!slice_array_next(&r->at[i], &out->value[i]))
            continue;
        got++;
        if (!strchr(columns[i].kinds, out->value[i].p[0]))
            *why = columns[i].rule;
    }
    if (got > 0 && got < r->columns)
        *why = "lists of different length";
    return got > 0 && !*why;
}

/* ---- vectors -------------------------------------------------------------------------------- */

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Is the float next to this double the one next to the number that the double was rounded from?
 * Not sure where the double lies in the middle between two floats, and where floats are short or
 * end. */
static inline bool rounds_once(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (v >= 2 * (double)FLT_MIN && v <= (double)FLT_MAX / 2 &&
            (bits & 0x1fffffff) != 0x10000000) ||
           v == 0;
}

/* Reads the JSON number at p, behind which at least one more byte is. Answers the place behind it.
 */
static const char *read_float(const char *p, float *out)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                    1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                    1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *from = p;
    uint64_t whole = 0;
    int digits = 0, scale = 0;
    bool minus = *p == '-';
    for (p += minus; is_digit(*p); p++, digits++)
        whole = whole * 10 + (uint64_t)(*p - '0');
    if (*p == '.')
        for (p++; is_digit(*p); p++, digits++, scale--)
            whole = whole * 10 + (uint64_t)(*p - '0');
    if (*p == 'e' || *p == 'E') {
        bool down = p[1] == '-';
        int e = 0;
        for (p += 1 + (down || p[1] == '+'); is_digit(*p); p++)
            e = e < 1000 ? e * 10 + (*p - '0') : e;
        scale += down ? -e : e;
    }
    if (digits <= 19 && whole <= UINT64_C(1) << DBL_MANT_DIG && scale >= -22 && scale <= 22) {
        double v = scale < 0 ? (double)whole / powers[-scale] : (double)whole * powers[scale];
        if (LIKELY(rounds_once(v))) {
            *out = (float)(minus ? -v : v);
            return p;
        }
    }
    *out = strtof(from, NULL);
    return p;
}

static inline const char *pass_space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')
        p++;
    return p;
}

/* The text was validated and starts with [, so what ends it is met before its end. */
enum records_vector records_put_floats(struct buf *out, struct str embedding)
{
    enum records_vector kind = RECORDS_FINITE;
    const char *p = pass_space(embedding.p + 1);
    if (*p == ']')
        return RECORDS_NO_VECTOR;
    for (;; p = pass_space(p + 1)) {
        float value;
        if (*p == 'n') {
            value = NAN;
            p += 4;
        } else if (*p == '-' || is_digit(*p)) {
            p = read_float(p, &value);
        } else {
            return RECORDS_NO_VECTOR;
        }
        if (UNLIKELY(!isfinite(value))) {
            value = NAN;
            kind = RECORDS_HOLES;
        }
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits = htole32(bits);
        buf_put(out, &bits, sizeof bits);
        p = pass_space(p);
        if (*p == ']')
            return kind;
    }
}

void records_put_base64(struct buf *out, struct str bytes)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = (const unsigned char *)bytes.p;
    size_t n = (bytes.n + 2) / 3 * 4 + 2, left = bytes.n;
    char *to = buf_reserve(out, n);
    must(to);
    *to++ = '"';
    for (; left >= 3; left -= 3, in += 3) {
        *to++ = letters[in[0] >> 2];
        *to++ = letters[(in[0] & 3) << 4 | in[1] >> 4];
        *to++ = letters[(in[1] & 15) << 2 | in[2] >> 6];
        *to++ = letters[in[2] & 63];
    }
    if (left > 0) {
        unsigned second = left == 2 ? in[1] : 0;
        *to++ = letters[in[0] >> 2];
        *to++ = letters[(in[0] & 3) << 4 | second >> 4];
        *to++ = left == 2 ? letters[(second & 15) << 2] : '=';
        *to++ = '=';
    }
    *to = '"';
    buf_added(out, n);
}

/* ---- comparing ------------------------------------------------------------------------------ */

/* Where a float stands in the row of all floats; both zeros at 0. */
static inline int64_t place(uint32_t bits)
{
    int64_t n = bits & 0x7fffffff;
    return bits >> 31 ? -n : n;
}

static bool near(struct str a, struct str b, unsigned ulps)
{
    if (a.n != b.n)
        return false;
    for (size_t i = 0; i < a.n; i += 4) {
        uint32_t x, y;
        memcpy(&x, a.p + i, 4);
        memcpy(&y, b.p + i, 4);
        if (llabs(place(le32toh(x)) - place(le32toh(y))) > ulps)
            return false;
    }
    return true;
}

static struct str content(const struct buf *b)
{
    return (struct str){buf_data(b), buf_len(b)};
}

/* What is spelled alike is read once: most vectors that are compared are. */
static bool compare_vectors(struct str a, struct str b, unsigned ulps,
                            struct records_verdict *verdict)
{
    struct buf x, y;
    bool alike = str_eq(a, b);
    buf_init(&x, 1u << 30);
    buf_init(&y, 1u << 30);
    enum records_vector left = records_put_floats(&x, a);
    enum records_vector right = alike ? left : records_put_floats(&y, b);
    verdict->holes = left == RECORDS_HOLES || right == RECORDS_HOLES;
    verdict->same =
        alike || (ulps ? near(content(&x), content(&y), ulps) : str_eq(content(&x), content(&y)));
    buf_fini(&x);
    buf_fini(&y);
    return left != RECORDS_NO_VECTOR && right != RECORDS_NO_VECTOR;
}

/* The text that all spellings of a value share. One beyond the bound of slice_canonical() has only
 * its own; Chroma takes none of that size. */
static struct str canonical(struct buf *mem, struct str raw)
{
    buf_clear(mem);
    if (!slice_canonical(raw, mem))
        return raw;
    struct str text = content(mem);
    return str_eq(text, STR("{}")) ? STR("null") : text;
}

bool records_compare(const struct record *a, const struct record *b, unsigned ulps,
                     struct records_verdict *verdict)
{
    struct buf x, y;
    if (!compare_vectors(a->value[RECORDS_EMBEDDINGS], b->value[RECORDS_EMBEDDINGS], ulps, verdict))
        return false;
    buf_init(&x, 1u << 30);
    buf_init(&y, 1u << 30);
    for (unsigned i = RECORDS_DOCUMENTS; i < RECORDS_COLUMNS && verdict->same; i++)
        verdict->same = str_eq(a->value[i], b->value[i]) ||
                        str_eq(canonical(&x, a->value[i]), canonical(&y, b->value[i]));
    buf_fini(&x);
    buf_fini(&y);
    return true;
}

bool records_hash(const struct record *r, uint64_t *hash)
{
    uint64_t parts[RECORDS_COLUMNS] = {0};
    struct buf mem;
    buf_init(&mem, 1u << 30);
    bool ok = records_put_floats(&mem, r->value[RECORDS_EMBEDDINGS]) != RECORDS_NO_VECTOR;
    parts[RECORDS_EMBEDDINGS] = htole64(slice_hash(content(&mem)));
    for (unsigned i = RECORDS_DOCUMENTS; i < RECORDS_COLUMNS; i++)
        parts[i] = htole64(slice_hash(canonical(&mem, r->value[i])));
    buf_fini(&mem);
    *hash = slice_hash((struct str){(const char *)parts, sizeof parts});
    return ok;
}
