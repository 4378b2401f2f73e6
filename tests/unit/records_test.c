/* records_test.c: answers of /get read at the end of a page, numbers as strtof() has them, vectors
 * and values compared. */
#include "guard.h"
#include "records.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct guard guard;

/* ---- walking -------------------------------------------------------------------------------- */

/* How many records; -1: refused, with *why and *at. */
static int walk(struct str text, bool whole, size_t *at, const char **why)
{
    struct records r;
    struct record record;
    struct str copy = {guard_put(&guard, text.p, text.n), text.n};
    int n = 0;
    if (!records_open(&r, copy, whole, at, why))
        return -1;
    while (records_next(&r, &record, why))
        n++;
    return *why ? -1 : n;
}

static const char whole_answer[] =
    " { \"include\":[\"uris\"], \"ids\":[\"a\",\"b\"],\"embeddings\":[[1,2],[ 3 , 4 ]],"
    "\"documents\":[null,\"x\\u0041\"],\"metadatas\":[{\"k\":1},null],\"uris\":[null,null] } ";

static void every_prefix_is_refused(void **state)
{
    size_t at;
    const char *why;
    struct str all = str_from(whole_answer);
    assert_int_equal(walk(all, true, &at, &why), 2);
    assert_int_equal(walk(all, false, &at, &why), 2);
    for (size_t n = 0; n < all.n - 2; n++) {
        assert_int_equal(walk((struct str){all.p, n}, true, &at, &why), -1);
        assert_true(at <= n);
    }
}

static void broken_answers_are_refused(void **state)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"[]", "not an object"},
        {"{}", "no ids"},
        {"{\"ids\":null}", "no ids"},
        {"{\"ids\":[],\"ids\":[]}", "a member is there twice"},
        {"{\"ids\":[],\"embeddings\":null,\"documents\":[],\"metadatas\":[],\"uris\":[]}",
         "no embeddings"},
        {"{\"ids\":[],\"embeddings\":[],\"documents\":\"x\",\"metadatas\":[],\"uris\":[]}",
         "no documents"},
        {"{\"ids\":[],\"embeddings\":[],\"documents\":[],\"uris\":[]}", "no metadatas"},
        {"{\"ids\":[],\"embeddings\":[],\"documents\":[],\"metadatas\":[]}", "no uris"},
        {"{\"ids\":[1],\"embeddings\":[[1]],\"documents\":[null],\"metadatas\":[null],\"uris\":["
         "null]}",
         "an id that is no text"},
        {"{\"ids\":[\"a\"],\"embeddings\":[null],\"documents\":[null],\"metadatas\":[null],"
         "\"uris\":[null]}",
         "an embedding that is no list"},
        {"{\"ids\":[\"a\"],\"embeddings\":[[1]],\"documents\":[1],\"metadatas\":[null],\"uris\":["
         "null]}",
         "a document that is neither text nor null"},
        {"{\"ids\":[\"a\"],\"embeddings\":[[1]],\"documents\":[null],\"metadatas\":[[]],\"uris\":["
         "null]}",
         "a metadata that is no object and not null"},
        {"{\"ids\":[\"a\"],\"embeddings\":[[1]],\"documents\":[null],\"metadatas\":[null],\"uris\":"
         "[true]}",
         "a uri that is neither text nor null"},
        {"{\"ids\":[\"a\"],\"embeddings\":[[1],[2]],\"documents\":[null],\"metadatas\":[null],"
         "\"uris\":[null]}",
         "lists of different length"},
        {"{\"ids\":[\"a\"],\"embeddings\":[[1]],\"documents\":[null],\"metadatas\":[null],\"uris\":"
         "[]}",
         "lists of different length"},
    };
    size_t at;
    const char *why;
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(walk(str_from(cases[i].text), true, &at, &why), -1);
        assert_string_equal(why, cases[i].why);
        assert_true(at == SIZE_MAX);
    }
}

static void a_huge_answer_is_not_even_read(void **state)
{
    struct records r;
    size_t at;
    const char *why;
    assert_false(records_open(&r, (struct str){"{}", RECORDS_BYTES_MOST + 1}, false, &at, &why));
    assert_string_equal(why, "too big");
}

/* ---- vectors -------------------------------------------------------------------------------- */

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* The only component of a vector with this text. */
static uint32_t read_one(const char *number)
{
    char text[400];
    struct buf out;
    uint32_t bits;
    int n = snprintf(text, sizeof text, "[ %s ]", number);
    buf_init(&out, 64);
    enum records_vector kind =
        records_put_floats(&out, (struct str){guard_put(&guard, text, (size_t)n), (size_t)n});
    assert_int_equal(kind, RECORDS_FINITE);
    assert_int_equal(buf_len(&out), 4);
    memcpy(&bits, buf_data(&out), 4);
    buf_fini(&out);
    return bits;
}

static void assert_read(const char *number)
{
    uint32_t got = read_one(number), due = bits_of(strtof(number, NULL));
    if (got != due)
        fail_msg("%s: %08x instead of %08x", number, got, due);
}

static void hard_numbers(void **state)
{
    static const char *const numbers[] = {
        "0",
        "-0",
        "0.0",
        "-0.0e5",
        "0e999999999999",
        "1",
        "-1",
        "16777217",
        "16777219",
        "9007199254740993",
        "1e22",
        "1e23",
        "1E+5",
        "1.17549435e-38",
        "1.17549429e-38",
        "1e-45",
        "1.4e-45",
        "7.0e-46",
        "7.1e-46",
        "-1e-60",
        "3.4028235e38",
        "340282346638528859811704183484516925440",
        "1.00000005960464477539062500", /* in the middle of two floats */
        "1.00000005960464477539062501",
        "1.00000005960464477539062499",
        "0.1",
        "0.30000000000000004",
        "8.589973e9",
        "33554431.99999999999999999999",
        "0.000000000000000000000000000001",
        "123456789012345678901234567890e-20",
        "5e-324",
        "1.1754944e-38",
        "2.3509887e-38",
        /* a double in the middle that the number itself is not */
        "1.000000178813934326171875000000000001",
        "1.00000017881393432617187499999999999",
        "16777217.000000001",
        "16777216.999999999",
    };
    for (unsigned i = 0; i < COUNT_OF(numbers); i++)
        assert_read(numbers[i]);
    assert_int_equal(read_one("-0"), 0x80000000);
    assert_int_equal(read_one("1e-45"), 1);
}

static uint64_t seed = 1;

static uint32_t any(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float any_float(void)
{
    float f;
    do {
        uint32_t bits = any();
        memcpy(&f, &bits, sizeof f);
    } while (!isfinite(f));
    return f;
}

/* Every float survives its shortest text, and what lies around the middle of two is as strtof()
 * has it. */
static void any_number(void **state)
{
    char text[400];
    for (int i = 0; i < 200000; i++) {
        float f = any_float();
        snprintf(text, sizeof text, "%.9g", (double)f);
        assert_int_equal(read_one(text), bits_of(f));
        if (fabsf(f) > 1e-5f && fabsf(f) < 1e9f) {
            snprintf(text, sizeof text, "%.*f", (int)(any() % 20), (double)f);
            assert_read(text);
        }
        double middle = ((double)f + (double)nextafterf(f, INFINITY)) / 2;
        if (!isfinite(middle) || fabs(middle) > FLT_MAX)
            continue;
        snprintf(text, sizeof text, "%.*g", 8 + (int)(any() % 20), middle);
        assert_read(text);
    }
}

static enum records_vector kind_of(const char *text)
{
    struct buf out;
    buf_init(&out, 64);
    size_t n = strlen(text);
    enum records_vector kind =
        records_put_floats(&out, (struct str){guard_put(&guard, text, n), n});
    buf_fini(&out);
    return kind;
}

static void holes_and_other_things(void **state)
{
    assert_int_equal(kind_of("[1,2]"), RECORDS_FINITE);
    assert_int_equal(kind_of("[1,null]"), RECORDS_HOLES);
    assert_int_equal(kind_of("[ null ]"), RECORDS_HOLES);
    assert_int_equal(kind_of("[1e39]"), RECORDS_HOLES);
    assert_int_equal(kind_of("[-1e999999999999999999999]"), RECORDS_HOLES);
    assert_int_equal(kind_of("[ ]"), RECORDS_NO_VECTOR);
    assert_int_equal(kind_of("[\"a\"]"), RECORDS_NO_VECTOR);
    assert_int_equal(kind_of("[1,[2]]"), RECORDS_NO_VECTOR);
    assert_int_equal(kind_of("[true]"), RECORDS_NO_VECTOR);
    assert_int_equal(kind_of("[1,{}]"), RECORDS_NO_VECTOR);
}

static void base64(void **state)
{
    static const char *const cases[][2] = {{"", "\"\""},
                                           {"f", "\"Zg==\""},
                                           {"fo", "\"Zm8=\""},
                                           {"foo", "\"Zm9v\""},
                                           {"foob", "\"Zm9vYg==\""},
                                           {"fooba", "\"Zm9vYmE=\""},
                                           {"foobar", "\"Zm9vYmFy\""},
                                           {"\xff\xfe\xfb", "\"//77\""}};
    struct buf out;
    buf_init(&out, 1000);
    for (unsigned i = 0; i < COUNT_OF(cases); i++) {
        struct str in = str_from(cases[i][0]);
        buf_clear(&out);
        records_put_base64(&out, (struct str){guard_put(&guard, in.p, in.n), in.n});
        assert_true(str_eq((struct str){buf_data(&out), buf_len(&out)}, str_from(cases[i][1])));
    }
    buf_fini(&out);
}

/* ---- comparing ------------------------------------------------------------------------------ */

static struct record record_of(const char *embedding, const char *document, const char *metadata,
                               const char *uri)
{
    return (struct record){
        {STR("\"a\""), str_from(embedding), str_from(document), str_from(metadata), str_from(uri)}};
}

static uint64_t hash_of(struct record r)
{
    uint64_t hash;
    assert_true(records_hash(&r, &hash));
    return hash;
}

/* Compares both ways, and the hashes. */
static struct records_verdict verdict(struct record a, struct record b, unsigned ulps)
{
    struct records_verdict one, other;
    assert_true(records_compare(&a, &b, ulps, &one));
    assert_true(records_compare(&b, &a, ulps, &other));
    assert_int_equal(one.same, other.same);
    assert_int_equal(one.holes, other.holes);
    if (ulps == 0)
        assert_int_equal(one.same, hash_of(a) == hash_of(b));
    return one;
}

static bool same_vector(const char *a, const char *b, unsigned ulps)
{
    return verdict(record_of(a, "null", "null", "null"), record_of(b, "null", "null", "null"), ulps)
        .same;
}

static void vectors(void **state)
{
    assert_true(same_vector("[1,2.50]", "[1.0, 25e-1]", 0));
    assert_false(same_vector("[1,2]", "[1,2,3]", 0));
    assert_false(same_vector("[1,2]", "[1,2,3]", 8));
    assert_false(same_vector("[4]", "[3.9999998]", 0));
    assert_true(same_vector("[4]", "[3.9999998]", 1));
    assert_true(same_vector("[1]", "[0.99999952316284]", 8));
    assert_false(same_vector("[1]", "[0.99999946355820]", 8)); /* 9 below 1 */
    assert_false(same_vector("[0]", "[-0]", 0));
    assert_true(same_vector("[0]", "[-0]", 1));
    assert_true(same_vector("[5.6e-45]", "[-5.6e-45]", 8)); /* four below, four above zero */
    assert_false(same_vector("[5.6e-45]", "[-7e-45]", 8));
    assert_false(same_vector("[1]", "[-1]", 8));
    assert_false(same_vector("[null]", "[3.4028235e38]", 8));
}

static void holes(void **state)
{
    struct record a = record_of("[1,null]", "null", "null", "null"), b = a;
    assert_true(verdict(a, b, 0).holes && verdict(a, b, 0).same);
    b.value[RECORDS_EMBEDDINGS] = STR("[1, null]");
    assert_true(verdict(a, b, 0).holes && verdict(a, b, 8).same);
    b.value[RECORDS_EMBEDDINGS] = STR("[1,1]");
    assert_true(verdict(a, b, 0).holes && !verdict(a, b, 8).same);
    b.value[RECORDS_EMBEDDINGS] = STR("[null,1]");
    assert_false(verdict(a, b, 8).same);
}

static bool same_values(const char *document, const char *metadata, const char *uri,
                        const char *document2, const char *metadata2, const char *uri2)
{
    return verdict(record_of("[1]", document, metadata, uri),
                   record_of("[1]", document2, metadata2, uri2), 0)
        .same;
}

static void values(void **state)
{
    assert_true(same_values("\"\\u0041\"", "{\"a\":1,\"b\":[true, 2.5]}", "null", "\"A\"",
                            "{ \"b\" : [true,2.50], \"a\":1 }", "null"));
    assert_true(same_values("null", "{ }", "null", "null", "null", "null"));
    assert_false(same_values("null", "{\"a\":1}", "null", "null", "{\"a\":1.0}", "null"));
    assert_false(same_values("null", "{\"a\":9223372036854775807}", "null", "null",
                             "{\"a\":9223372036854775806}", "null"));
    assert_false(same_values("\"\"", "null", "null", "null", "null", "null"));
    assert_false(same_values("\"x\"", "null", "null", "null", "null", "\"x\""));
    assert_false(same_values("null", "null", "\"a\"", "null", "null", "\"b\""));
    assert_false(same_values("\"null\"", "null", "null", "null", "null", "null"));
}

static void no_list_of_numbers(void **state)
{
    struct record a = record_of("[1]", "null", "null", "null");
    struct record b = record_of("[\"1\"]", "null", "null", "null");
    struct records_verdict v;
    uint64_t hash;
    assert_false(records_compare(&a, &b, 0, &v));
    assert_false(records_compare(&b, &a, 8, &v));
    assert_false(records_compare(&b, &b, 0, &v));
    assert_false(records_hash(&b, &hash));
}

static void a_hash_is_the_same_everywhere(void **state)
{
    struct record r = record_of("[1,-0,1e-45]", "\"d\"", "{\"b\":1,\"a\":\"\\u00e9\"}", "null");
    assert_true(hash_of(r) == 0x8cd278d0be881e6a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(broken_answers_are_refused),
        cmocka_unit_test(a_huge_answer_is_not_even_read),
        cmocka_unit_test(hard_numbers),
        cmocka_unit_test(any_number),
        cmocka_unit_test(holes_and_other_things),
        cmocka_unit_test(base64),
        cmocka_unit_test(vectors),
        cmocka_unit_test(holes),
        cmocka_unit_test(values),
        cmocka_unit_test(no_list_of_numbers),
        cmocka_unit_test(a_hash_is_the_same_everywhere),
    };
    guard = guard_new(1 << 16);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    guard_free(&guard);
    return failed;
}
