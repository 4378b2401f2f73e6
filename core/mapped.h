/* mapped.h: the collection of a read while there is a journal: a logical id in the path, and for
 * each try the id that the collection has on the server that is asked. */
#ifndef MAPPED_H
#define MAPPED_H

#include "copies.h"
#include "http1.h"
#include "route.h"

struct mapped {
    bool on;     /* false: ids mean what the servers mean by them, and candidates are not limited */
    char id[37]; /* of the path, canonical; also when off; "" when it has none */
    uint64_t max_behind; /* entries that a copy may lack */
    char physical[37];   /* of the try under way */
    size_t at;           /* where the id is in the request's head */
    bool lost;           /* the server of the try says that it has no such collection */
    bool unknown;        /* the engine is to be asked for it */
    bool due, sure;      /* it has looked */
    struct mapped *next; /* of those that wait for it; mapped_forget() takes one off */
    void (*looked)(struct mapped *m);
};

/* X-Chromux-Max-Behind: N, the entries of the journal that a copy may lack of what this balancer
 * knows to be applied. false: it is no whole number below 10^15, or is there twice; the sentence
 * for the client is mapped_bad_bound. Without the field *bounded is false and *n is 0. */
bool mapped_read_bound(const struct http1_head *h, bool *bounded, uint64_t *n) MUST_CHECK;
extern const char mapped_bad_bound[];

enum { MAPPED_TEXT_MAX = 96 };
/* Turns it on for a route with `data` and the id of a collection. END_NONE, or why not; text is
 * what the client is told. */
enum end_reason mapped_start(struct mapped *m, const struct route *t, const struct http1_head *h,
                             char text[MAPPED_TEXT_MAX]) MUST_CHECK;
/* NULL: it is off, or the collection was deleted meanwhile. */
const struct collection *mapped_collection(const struct mapped *m);
/* After mapped_start: false when all is known. Else the engine looks for the collection, and
 * looked(m) is called once, from the loop. */
bool mapped_ask(struct mapped *m, void (*looked)(struct mapped *m)) MUST_CHECK;
/* Then: as mapped_start. */
enum end_reason mapped_found(struct mapped *m, const struct route *t,
                             char text[MAPPED_TEXT_MAX]) MUST_CHECK;
/* looked is not called any more. */
void mapped_forget(struct mapped *m);

/* "Collection [id] does not exist.", as Chroma says it. */
void mapped_tell_unknown(const struct mapped *m, char text[MAPPED_TEXT_MAX]);
/* "primary is down (connection refused), replica is drained": why nobody can serve. tried: bits of
 * node ids. */
void mapped_tell_states(const struct mapped *m, bool primary_only, uint64_t tried, char *out,
                        size_t size);
/* Does a node that could serve, and was not tried, have a copy? The engine drops those that nothing
 * but a rebuild brings up to date. */
bool mapped_copy_is_coming(const struct mapped *m, uint64_t tried);

/* May the copy on this node be read, if it lacks at most max_behind entries? True where ids mean
 * what the servers mean by them. */
bool mapped_may_read(const struct mapped *m, const struct node *n, uint64_t max_behind) MUST_CHECK;
/* The engine is told that a read waits for a copy of it. */
void mapped_want(const struct mapped *m);
/* Before a try: writes the id that the collection has on this node to head + m->at. false: its copy
 * may not be read any more. */
bool mapped_begin_try(struct mapped *m, const struct node *n, char *head) MUST_CHECK;
/* Right before the first byte, on a connection that is there: is it still so? Looks at the server's
 * sentinel: a connection that was opened a moment ago may lead to a new life of the server, of
 * which nothing is known yet (R9). */
bool mapped_may_send(const struct mapped *m, struct node *n) MUST_CHECK;
/* The body of an error answer to the try: the logical id replaces the physical one. True, and
 * m->lost, when the server says that it has no such collection. */
bool mapped_read_error(struct mapped *m, int status, char *body, size_t size);
/* After m->lost: nobody asks this copy again before the journal has looked. false: the copy is
 * another one since the try began, and may be asked again. */
bool mapped_lose(const struct mapped *m, const struct node *n);

#endif
