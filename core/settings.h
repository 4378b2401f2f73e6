/* settings.h: where settings come from: the config file (Lua), the environment, --set. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "config.h"

struct settings_sources {
    const char *file; /* NULL: none */
    char **environment;
    char **sets; /* NAME=VALUE, as given with --set */
    unsigned set_count;
};

/* Gathers, checks, builds. NULL: *errors has one line a mistake. */
struct config *settings_load(const struct settings_sources *from, struct buf *errors) MUST_CHECK;

#endif
