/* value.h: the types of values, and what a piece of text says: a number with its unit, an address,
 * a URL; and how close two words are. Pure: no settings, no errors to collect, no look-ups. */
#ifndef VALUE_H
#define VALUE_H

#include "base.h"

/* Does text have this shape, a POSIX extended expression? */
bool value_fits(const char *shape, const char *text);

/* What a value is kept as: long, double (seconds), long, bool, and char * (owned) for both texts.
 */
enum value_type { VALUE_INT, VALUE_SECONDS, VALUE_BYTES, VALUE_BOOL, VALUE_TEXT, VALUE_SECRET };

/* What people read of a type, and what may say it where the source knows types itself (the config
 * file): text carries a unit for some. */
extern const struct value_words {
    const char *name, *expected;
    bool numbers, texts, booleans;
} value_types[];

/* Digits and perhaps a unit. INT: "8000"; SECONDS: "0.5", "5s", "200ms"; BYTES: "1024", "32k",
 * "8m", "1g". No sign, blanks or exponent. */
bool value_read_number(const char *text, enum value_type type, double *out) MUST_CHECK;
bool value_read_bool(const char *text, bool *out) MUST_CHECK;

/* Reads text into field; false, and field is as it was, when text is no such value or a number out
 * of bounds. Any text will do for the texts, and replaces what was there. */
bool value_store(enum value_type type, void *field, const char *text, double least,
                 double most) MUST_CHECK;
/* The other way, in base units. Text is the field's own memory. */
enum { VALUE_SPELLED_MAX = 40 };
const char *value_spell(enum value_type type, const void *field, char out[VALUE_SPELLED_MAX]);

/* Takes http://host[:port] apart: *host is fresh memory (IPv6 without brackets, in its one
 * spelling), *port is Chroma's 8000 where none is said. Answers what is wrong, static text, or
 * NULL; *host is left alone when something is. */
const char *value_read_url(const char *url, char **host, int *port) MUST_CHECK;

/* An IPv4 or IPv6 address, without port and brackets. */
bool value_is_address(const char *text);
/* address[:port],...: IPv6 with a port in [brackets], without one bare, as c-ares takes them. */
bool value_is_address_list(const char *text);
/* Would a connection to host (a name or an address) come to who listens on this address, as far as
 * can be said without a look-up? A wildcard listens on every loopback address. */
bool value_leads_to(const char *host, const char *listening);

/* How many letters to insert, drop or change (Levenshtein), whatever their case; for words of up to
 * 48 letters, longer ones are 48 apart. */
unsigned value_distance(const char *a, const char *b);

/* Cuts the next piece before one of `by` off *rest (NULL after the last), without the blanks around
 * it. */
char *value_next_piece(char **rest, const char *by);

/* text as a line repeats it: in quotes, control bytes as ?, cut; a user and password in a URL
 * (RFC 3986 3.2.1) are a secret and not repeated. */
enum { VALUE_SHOWN_MAX = 160 };
const char *value_show(const char *text, bool quoted, char out[VALUE_SHOWN_MAX]);

#endif
