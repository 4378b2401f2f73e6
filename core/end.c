/* end.c: the list of end.h as a table. */
#include "end.h"

static const struct {
    const char *name;
    int status;
} ends[END_COUNT] = {
#define END_ROW(id, name, status) {name, status},
    END_REASONS(END_ROW)
#undef END_ROW
};

const char *end_name(enum end_reason r)
{
    return ends[r].name;
}

int end_status(enum end_reason r)
{
    return ends[r].status;
}
