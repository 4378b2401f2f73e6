/* chroma.h: real Chroma servers (scripts/chroma.sh) and data in them, written past chromux. */
#ifndef CHROMA_H
#define CHROMA_H

#include "harness.h"

struct chroma {
    pid_t pid; /* 0 while it is not running */
    unsigned port;
    char *folder, *url;
};

/* A server with its data in `folder` (made when missing); waits until it answers. */
struct chroma *chroma_start(const char *folder);
/* Two servers of which the second began as a copy of the first's folder while that was stopped:
 * the same collection ids answer on both. fill() writes the data. */
void chroma_pair(struct chroma **a, struct chroma **b, void (*fill)(struct chroma *c));
void chroma_kill(struct chroma *c); /* SIGKILL: SIGTERM leaves newer servers hanging */
void chroma_signal(struct chroma *c, int sig);
void chroma_again(struct chroma *c); /* starts it again on its port and folder */
/* chroma_start in its parts, for several at once: named, begun, answering. */
struct chroma *chroma_new(const char *folder);
void chroma_launch(struct chroma *c);
void chroma_wait(struct chroma *c);
/* Whether it answers a heartbeat, asked directly. */
bool chroma_answers(const struct chroma *c);

#define CHROMA_DB "/api/v2/tenants/default_tenant/databases/default_database"

/* Creates a collection that saves its index after `sync` records; returns its id. */
char *chroma_create(struct chroma *c, const char *name, unsigned sync);
/* Adds records r<from> … r<to-1>, each with a vector of its own (chroma_vector). */
void chroma_add(struct chroma *c, const char *id, unsigned from, unsigned to);
/* "[…]": eight numbers, different for every n, nearest to itself by far. */
char *chroma_vector(unsigned n);

#endif
