/* records_fuzz.c: any bytes as an answer of /get.
 *
 * It must hold that no byte outside of the text is read; that each record's values are parts of the
 * text, of the kinds they must have; that a vector's floats are those that strtof() reads from its
 * elements; that base64 can be read back; that a record is the same as itself, and hashes alike
 * exactly when the same as the one before it.
 *
 * needs: core/base.c core/end.c core/log.c core/buf.c core/slice.c core/records.c
 */
#include "records.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct str content(const struct buf *b)
{
    return (struct str){buf_data(b), buf_len(b)};
}

/* A second reader of vectors. */
static enum records_vector slow_floats(struct buf *out, struct str embedding)
{
    struct slice s = slice_start(embedding);
    struct str element;
    enum records_vector kind = RECORDS_FINITE;
    while (slice_array_next(&s, &element)) {
        char *text = base_printf("%.*s", (int)element.n, element.p);
        float value = *text == 'n' ? NAN : strtof(text, NULL);
        bool number = *text == '-' || *text == 'n' || (*text >= '0' && *text <= '9');
        free(text);
        if (!number)
            return RECORDS_NO_VECTOR;
        if (!isfinite(value)) {
            kind = RECORDS_HOLES;
            value = NAN;
        }
        buf_put(out, &value, sizeof value);
    }
    return buf_len(out) ? kind : RECORDS_NO_VECTOR;
}

static void check_base64(struct str bytes)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    struct buf text, back;
    buf_init(&text, 1u << 26);
    buf_init(&back, 1u << 26);
    records_put_base64(&text, bytes);
    struct str t = content(&text);
    must(t.n == (bytes.n + 2) / 3 * 4 + 2 && t.p[0] == '"' && t.p[t.n - 1] == '"');
    for (size_t i = 1; i + 4 < t.n; i += 4) {
        uint32_t word = 0;
        for (size_t k = 0; k < 4; k++) {
            const char *at = strchr(letters, t.p[i + k]);
            must(at || t.p[i + k] == '=');
            word = word << 6 | (at ? (uint32_t)(at - letters) : 0);
        }
        char three[3] = {(char)(word >> 16), (char)(word >> 8), (char)word};
        buf_put(&back, three, 3);
    }
    must(buf_len(&back) >= bytes.n && buf_len(&back) < bytes.n + 3);
    must(bytes.n == 0 || !memcmp(buf_data(&back), bytes.p, bytes.n));
    buf_fini(&text);
    buf_fini(&back);
}

static bool check_vector(struct str embedding)
{
    struct buf fast, slow;
    buf_init(&fast, 1u << 26);
    buf_init(&slow, 1u << 26);
    enum records_vector one = records_put_floats(&fast, embedding);
    enum records_vector two = slow_floats(&slow, embedding);
    must(one == two);
    must(one == RECORDS_NO_VECTOR || str_eq(content(&fast), content(&slow)));
    check_base64(content(&fast));
    buf_fini(&fast);
    buf_fini(&slow);
    return one != RECORDS_NO_VECTOR;
}

static void check_pair(const struct record *a, const struct record *b)
{
    struct records_verdict v, w;
    uint64_t x, y;
    bool ok = records_compare(a, b, 0, &v);
    bool first = records_hash(a, &x), second = records_hash(b, &y);
    must(ok == (first && second));
    if (!ok)
        return;
    must(v.same == (x == y));
    ok = records_compare(b, a, 8, &w);
    must(ok && w.holes == v.holes && (w.same || !v.same));
}

static void check_record(struct str text, const struct record *r)
{
    static const char *const kinds[RECORDS_COLUMNS] = {"\"", "[", "\"n", "{n", "\"n"};
    struct records_verdict v;
    for (unsigned i = 0; i < RECORDS_COLUMNS; i++) {
        struct str value = r->value[i];
        size_t at;
        const char *why;
        must(value.n > 0 && value.p > text.p && value.p + value.n < text.p + text.n);
        bool json = slice_validate(value, &at, &why);
        must(json && strchr(kinds[i], value.p[0]));
    }
    bool vector = check_vector(r->value[RECORDS_EMBEDDINGS]);
    bool ok = records_compare(r, r, 0, &v);
    must(ok == vector && v.same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *p = malloc(n ? n : 1); /* of exactly this size, for the sanitizer to watch */
    must(p);
    memcpy(p, data, n);
    struct str text = {p, n};
    struct records r, ids;
    struct record record, before;
    const char *why;
    size_t at, whole = 0, count = 0;
    bool only_ids = records_open(&ids, text, false, &at, &why);
    must(only_ids == !why && (at == SIZE_MAX || at <= n));
    while (only_ids && records_next(&ids, &record, &why))
        count++;
    bool all = records_open(&r, text, true, &at, &why);
    must(only_ids || !all);
    for (; all && records_next(&r, &record, &why); before = record) {
        check_record(text, &record);
        check_pair(&record, whole++ ? &before : &record);
    }
    must(!all || why || whole == count);
    free(p);
    return 0;
}
