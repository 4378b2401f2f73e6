/* api_slice.h: JSON text as bytes for our own Lua: local slice = require("chromux.slice").
 *
 * Texts are Lua strings. What may be wrong with a text of a user answers nil and why; wrong use is
 * an error. "raw" is the text of one JSON value as it stood in the other text. Texts a user sent
 * are checked to be strict JSON (slice.h) by every function that takes them apart.
 *
 *   members(text)   -> {name = raw, ...} of an object without duplicate names
 *   elements(text)  -> {raw, ...} of an array
 *   string(raw)     -> the text that a JSON string stands for
 *   quote(s)        -> s as a JSON string; bytes that are not UTF-8 become U+FFFD
 *   canonical(text) -> the text that every spelling of the same value has; at most 100 MiB
 *   hash(bytes)     -> 16 hexadecimal digits
 *
 *   records(text, max_bytes) -> info of a body of add, upsert or update whose members are known,
 * with as many of each as there are ids, the ids distinct, the embeddings of one length and
 * encoding: info.count      how many records info.ids        {id, ...} info.dimension  numbers in
 * each embedding; absent when there are none info.shape      equal for bodies of the same operation
 * that join() may put together; ids that are in several of them are the caller's to notice
 *   join({text, ...}) -> one body of the records of all, each element the bytes it was; members
 * that are null stay null. Bodies whose shapes differ are an error. delete(text)    -> {ids = {id,
 * ...}, where = raw, where_document = raw, limit = raw, other = true when there are members beside
 * these}; null counts as absent ids_body(ids)   -> {"ids":[...]}
 *
 *   collection(text) -> {id =, name =, tenant =, database =, dimension = number or absent,
 *       id_at = where the 36 bytes of the id start} of a collection as Chroma describes it
 *   replace_at(text, at, bytes) -> text with these bytes from `at` on */
#ifndef API_SLICE_H
#define API_SLICE_H

struct lua_State;

/* Makes require("chromux.slice") answer on this VM. */
void api_slice_open(struct lua_State *L);

#endif
