/* records.h: the answer of a collection's /get as records. What is copied stays the bytes it is;
 * only what must be compared is looked into.
 *
 * Pure: no I/O, nothing kept. Ranges point into the text of the answer. */
#ifndef RECORDS_H
#define RECORDS_H

#include "slice.h"

/* The largest answer that is taken apart. */
#define RECORDS_BYTES_MOST (256u << 20)

enum records_column {
    RECORDS_IDS,
    RECORDS_EMBEDDINGS,
    RECORDS_DOCUMENTS,
    RECORDS_METADATAS,
    RECORDS_URIS,
    RECORDS_COLUMNS
};

/* One record: each value as it stands in the answer; an id with its quotes. */
struct record {
    struct str value[RECORDS_COLUMNS];
};

/* A walk through the records of an answer. */
struct records {
    struct slice at[RECORDS_COLUMNS];
    unsigned columns; /* private: how many of them are walked */
};

/* Is text the answer of /get? whole: with embeddings, documents, metadatas and uris, as records to
 * be copied or compared must have; else only the ids are looked at. false: *why is static text;
 * *at is the offset where the text stops being JSON, or SIZE_MAX when it is JSON. */
bool records_open(struct records *r, struct str text, bool whole, size_t *at,
                  const char **why) MUST_CHECK;

/* The next record. false: there is no other (*why is NULL), or the answer is broken: lists of
 * different length, or a value of the wrong kind. Whether an id comes twice is for callers to see.
 */
bool records_next(struct records *r, struct record *out, const char **why) MUST_CHECK;

/* Appends an embedding as 32-bit floats, least byte first: each component the float next to its
 * decimal text, as strtof() has it. What no float is (null, as Chroma shows NaN and infinity, and
 * numbers beyond the largest float) becomes NaN. */
enum records_vector { RECORDS_FINITE, RECORDS_HOLES, RECORDS_NO_VECTOR };
enum records_vector records_put_floats(struct buf *out, struct str embedding) MUST_CHECK;

/* Appends bytes as base64 (RFC 4648 4), with padding and in quotes. */
void records_put_base64(struct buf *out, struct str bytes);

/* Do two records hold the same? Ids are not looked at. Vectors: the same bits, or, with ulps above
 * 0, no component farther than that many floats from the other's. All else: the same values,
 * however they are spelled; no metadata and empty metadata are the same, as Chroma has it. */
struct records_verdict {
    bool same, holes; /* holes: a vector has components that are no numbers */
};
/* false: an embedding is no list of numbers. */
bool records_compare(const struct record *a, const struct record *b, unsigned ulps,
                     struct records_verdict *verdict) MUST_CHECK;

/* A hash of all but the id, equal for records that are the same with ulps 0; the same in every
 * process. false: the embedding is no list of numbers. */
bool records_hash(const struct record *r, uint64_t *hash) MUST_CHECK;

#endif
