/* path_reader.h: the messages that llhttp finds in a stream of bytes, as they come, one by one. */
#ifndef PATH_READER_H
#define PATH_READER_H

#include "buf.h"
#include <llhttp.h>

enum { MESSAGES_MAX = 256 };

struct message {
    struct buf start;  /* "GET /x"; "" of a response */
    struct buf fields; /* "Name=value\n" of each field, those of trailers last */
    struct buf body;
    unsigned field_count;
    int status; /* of a response */
    unsigned source;
    bool complete;
};

struct messages {
    struct message *v[MESSAGES_MAX];
    unsigned n;
};
void messages_clear(struct messages *m);

struct reader {
    llhttp_t parser;
    llhttp_settings_t settings;
    struct messages *into; /* may be shared by several readers: the order is that of the heads */
    struct message *open;
    unsigned source; /* copied into each message */
    bool waits;      /* requests only: one is complete and not answered yet */
    const char *error;
    const bool *bodiless; /* responses only: is the n-th final one an answer to HEAD? */
    unsigned finals;
};

void reader_init(struct reader *r, bool responses, struct messages *into, unsigned source);
/* What cannot be read is told by r->error. */
void reader_take(struct reader *r, const char *p, size_t n);
/* The stream has ended in order: was that a whole number of messages? */
bool reader_end(struct reader *r);

#endif
