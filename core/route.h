/* route.h: what a request is, by method and path segments, from one table. Pure.
 *
 * The table holds every route of the Chroma API v2 from 1.0 to 1.5 and chromux's own. Policies
 * never classify, so a broken edit cannot lose a write; unknown routes under /api are refused. */
#ifndef ROUTE_H
#define ROUTE_H

#include "http1.h"

enum route_class {
    ROUTE_READ,    /* records of a collection, or facts about the server: never changes anything */
    ROUTE_WRITE,   /* records of a collection */
    ROUTE_CATALOG, /* tenants, databases, collections: read or written, see `reads` */
    ROUTE_LOCAL,   /* answered by chromux itself */
    ROUTE_UNSUPPORTED /* clear 501, 405 or 404: see `refusal` */
};

enum route_local {
    ROUTE_NOT_LOCAL,
    ROUTE_HEALTH,
    ROUTE_STATUS,
    ROUTE_METRICS,
};

struct route {
    enum route_class class;
    enum route_local local;
    const char
        *name; /* template, static: "/api/v2/tenants/{tenant}/databases/{database}/…"; "*" for
                  OPTIONS, "(none)" when nothing matches the path. Never NULL, nor action */
    const char
        *action;   /* one static word for policies and logs: "query", "add", "create_collection" */
    bool reads;    /* changes nothing: may be retried on another instance */
    bool data;     /* depends on what the server holds (tenants, databases, collections, records);
                      false for heartbeat, version, pre-flight checks, identity, documentation, OPTIONS
                    */
    bool fragile;  /* fails on healthy servers (…/collections/{crn} drops the connection,
                      indexing_status is a 500): not tried again, and no sign of bad health */
    bool v1_alias; /* GET /api/v1/heartbeat and /version: sent upstream as /api/v2/… */
    enum end_reason
        refusal;       /* with ROUTE_UNSUPPORTED: END_UNSUPPORTED, END_METHOD or END_NOT_FOUND */
    const char *why;   /* with ROUTE_UNSUPPORTED: a sentence for the client */
    const char *allow; /* with END_METHOD: the value of Allow */
    /* Path segments as sent (percent-encoding kept), pointing into path; n = 0 when absent. */
    struct str tenant, database;
    struct str collection; /* {uuid} or {name} or {crn} segment */
    bool by_name;          /* the collection segment is a name (or a crn), not a UUID */
};

const char *route_class_name(enum route_class c);

/* Fills *out for any method and path; never fails. HEAD is looked up as GET; OPTIONS on any path is
 * a read without data (CORS pre-flight passes through), but on chromux's own. Segments are split at
 * '/', never matched by substring; a trailing slash, an empty or a dot segment matches no route. */
void route_match(enum http1_method method, struct str path, struct route *out);

/* A path segment with its percent-encoding undone, as axum does: what is no encoding stays. out has
 * room for s.n bytes; returns how many there are. */
size_t route_decode(struct str s, char *out);

/* The UUID that a path segment means to Chroma, as 36 lower-case bytes: percent-encoded, in braces
 * and as urn:uuid: too. false when it is none. */
bool route_segment_uuid(struct str s, char out[37]) MUST_CHECK;

/* Writes a UUID in any spelling Chroma accepts (upper case, no hyphens) as 36 lower-case bytes and
 * a NUL; false when s is not one. */
bool route_uuid(struct str s, char out[37]) MUST_CHECK;

#endif
