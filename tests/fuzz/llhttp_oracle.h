/* llhttp_oracle.h: what another parser reads in the bytes that we would send. llhttp is the parser
 * of Node.js; Debian ships its C sources in the package node-llhttp (used by tests only).
 *
 * needs: -DLLHTTP_STRICT_MODE=1 -I/usr/share/include/llhttp /usr/share/llhttp/{api,http,llhttp}.c
 */
#ifndef LLHTTP_ORACLE_H
#define LLHTTP_ORACLE_H

#include "buf.h"

struct oracle {
    unsigned messages; /* that are complete */
    const char *error; /* NULL while all is well */
    struct buf start;  /* "GET /x\n" of each message */
    struct buf fields; /* "Name=value\n" of each field, trailers too; a line "\n" ends a message */
    struct buf body;   /* of all messages */
    size_t heads;      /* that are complete */
    uint64_t length;   /* Content-Length of the last head */
    bool chunked;      /* of the last head */
};

void oracle_init(struct oracle *o);
void oracle_fini(struct oracle *o);
/* Parses p as requests that come one after the other. */
void oracle_requests(struct oracle *o, const char *p, size_t n);

#endif
