/* slice.h: JSON text (RFC 8259) as byte ranges. Records of users are never decoded and encoded
 * again: their numbers would change. Values are found in the text and travel as the bytes they are.
 *
 * Pure: no I/O, nothing kept. A range points into the text it was found in, without the white space
 * around it; its first byte tells what it is: { [ " t f n, else a number. */
#ifndef SLICE_H
#define SLICE_H

#include "buf.h"

enum { SLICE_DEPTH_MAX = 512 };

/* Is text one whole value, and nothing else but white space? Strict: UTF-8 without BOM, every
 * escape known, surrogates in pairs, at most SLICE_DEPTH_MAX arrays and objects deep. false: *at is
 * the offset of the byte that cannot be, *why static text. */
bool slice_validate(struct str text, size_t *at, const char **why) MUST_CHECK;

/* text without white space around it. */
struct str slice_trim(struct str text);

/* Walks what an object or array holds. The text must have been validated; of other text nothing
 * useful comes, but no byte outside of it is read. */
struct slice {
    const char *p, *end;
    bool later; /* private: not the first */
};
struct slice slice_start(struct str value);
/* The next member, its key with the quotes as it is in the text (slice_string() tells its name).
 * false: no more, or no object. Keys may come twice; it is up to callers to notice. */
bool slice_object_next(struct slice *s, struct str *key, struct str *value) MUST_CHECK;
bool slice_array_next(struct slice *s, struct str *element) MUST_CHECK;

/* Takes the text of a string, with its quotes, as UTF-8. *out points into raw when nothing in it is
 * escaped, else into *mem, which is emptied before. false: raw is no string, or *mem is too small.
 */
bool slice_string(struct str raw, struct buf *mem, struct str *out) MUST_CHECK;

/* How many numbers the array holds; -1: it is no array, or other things are in it. Validated text
 * only. */
long slice_count_numbers(struct str array) MUST_CHECK;

/* Appends the text that every spelling of the same value has: no white space, keys in the order of
 * their (escaped) bytes and of equal keys the last, strings as buf_put_json() writes them. Integers
 * that fit 64 bits stay as they are; other numbers are written as the double they are, with the
 * digits it takes to tell it from others, and never like an integer: 1.0 and 1 differ. false: not
 * JSON (as slice_validate() has it), or larger than SLICE_CANONICAL_MAX bytes; nothing was
 * appended. *out must have room for 8 times text. */
#define SLICE_CANONICAL_MAX (100u << 20)
bool slice_canonical(struct str text, struct buf *out) MUST_CHECK;

/* FNV-1a: the same in every process. */
uint64_t slice_hash(struct str bytes);

#endif
