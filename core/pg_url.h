/* pg_url.h: what a PostgreSQL URL says: the servers it names, and its password, which nobody may
 * see. */
#ifndef PG_URL_H
#define PG_URL_H

#include "base.h"

#define PG_TARGETS_MAX 16

struct pg_target {
    const char *host, *addr, *port; /* NULL: not given */
};

struct pg_url {
    struct pg_target target[PG_TARGETS_MAX];
    unsigned targets;
    const char *password; /* NULL: none */
    /* What the above points into. */
    void *options;
    char *lists[3];
};

/* Reads a URL or a "key=value" text; what is missing comes from the environment (PGHOST…). false:
 * *error (to be freed) says why without showing the password. Follow with pg_url_fini() in any
 * case; *u needn't be anything before. */
bool pg_url_read(struct pg_url *u, const char *text, char **error) MUST_CHECK;
void pg_url_fini(struct pg_url *u);

/* A copy of libpq's message in one line, the password blotted out; to be freed. */
char *pg_url_mask(const struct pg_url *u, const char *message) MUST_CHECK;

#endif
