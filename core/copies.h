/* copies.h: where the collections are: a collection's logical id to, for each instance, the id that
 * the collection has there and how much of the journal that copy has applied.
 *
 * The journal's engine (lua/lb/journal.lua) is the only writer; readers are the request path. Holds
 * what the catalogue holds and no more. */
#ifndef COPIES_H
#define COPIES_H

#include "fleet.h"

/* A journal is configured: ids that clients see are logical ones. */
extern bool copies_expected;
/* The table may be asked. Implies copies_expected. It may lack a collection: other balancers make
 * them too. */
extern bool copies_on;
/* Called when the engine has looked for a collection (mapped.c); NULL: nobody asked. sure: if it is
 * not in the table now, there is none. */
extern void (*copies_looked)(const char *logical, bool sure);

struct collection;

/* logical, physical: 36 lower-case bytes (route_uuid). tenant and database: decoded text, copied.
 * floor: the entry that a copy must have applied before it may be read; raised, never lowered, for
 * a collection that is known already, whose copies stay. */
void copies_collection_set(const char *logical, struct str tenant, struct str database,
                           uint64_t floor);
void copies_collection_drop(const char *logical);
/* Raises the floor. false: there is no such collection. */
bool copies_floor(const char *logical, uint64_t n);
/* Replaces what is known of this copy. false: there is no such collection. */
bool copies_copy_set(const char *logical, struct str instance, const char *physical,
                     uint64_t position, bool readable);
void copies_copy_drop(const char *logical, struct str instance);
void copies_clear(void);
unsigned copies_count(void); /* collections */

/* What is found lives until the next call above. NULL: there is no such collection. */
const struct collection *copies_find(const char *logical);
bool copies_belongs(const struct collection *c, struct str tenant, struct str database);
/* The one place that knows when a copy may be read: readable, and at most max_behind entries behind
 * the floor. */
bool copies_may_read(const struct collection *c, const struct node *n, uint64_t max_behind);
/* Entries that the copy still lacks of the floor; all of them where there is no copy. */
uint64_t copies_behind(const struct collection *c, const struct node *n);
/* The collection's id on this instance, 36 bytes and a NUL; NULL: it has no copy. */
const char *copies_physical(const struct collection *c, const struct node *n);

#endif
