/* api_records.h: answers of /get for our own Lua: local records = require("chromux.records").
 *
 * An answer is a Lua string of at most 256 MiB; it is checked once to be strict JSON. What is
 * wrong with one answers nil and why: not JSON, a column that is missing or no list, columns of
 * different length, a value of the wrong kind, an id that is there twice, more than a million
 * records to compare. Wrong use is an error. But for ids() answers need all four includes.
 *
 *   ids(answer) -> {id, ...} in the order of the answer
 *
 *   add_body(answer, {base64 = bool, only = {[id] = true}, skip = {[id] = true}})
 *       -> body, count, nulls: the body of an /add of these records; with base64 their vectors as
 *       base64 of 32-bit floats, all else the bytes it was. only: no others; skip: not these.
 *       count 0: nothing to add, and no body (""). nulls: ids whose vectors have components that
 *       are no numbers; they are left out, for no server takes them.
 *
 *   compare(a, b, {cosine = bool, ulps = 8})
 *       -> {equal = n, changed = {id, ...}, only_a = {id, ...}, only_b = {id, ...}, nan = {id,
 *       ...}}: vectors to the bit, with cosine each component within ulps floats, all else in value
 *       (records.h). nan: of the ids on both sides those that have vectors with components that are
 *       no numbers; they are in `equal` or `changed` as well.
 *
 *   hash(answer) -> {[id] = 16 hexadecimal digits}: equal when compare() without cosine finds
 *       the records equal; the same in every process */
#ifndef API_RECORDS_H
#define API_RECORDS_H

struct lua_State;

/* Makes require("chromux.records") answer on this VM. */
void api_records_open(struct lua_State *L);

#endif
