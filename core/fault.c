/* fault.c: owns the counts of hits; the plan is read from the environment at each hit. */
#include "fault.h"

#ifdef CHROMUX_FAULTS

#include "base.h"

#include <fcntl.h>
#include <lauxlib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { POINTS = 64 };

static struct {
    char *name;
    unsigned hits;
} points[POINTS];

static unsigned count(const char *name)
{
    for (unsigned i = 0; i < POINTS; i++) {
        if (!points[i].name)
            points[i].name = base_strdup(name);
        if (strcmp(points[i].name, name) == 0)
            return ++points[i].hits;
    }
    return 0;
}

static void tell(const char *name, const char *mark)
{
    const char *path = getenv("FAULT_LOG");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        return;
    dprintf(fd, "%s%s\n", name, mark);
    close(fd);
}

/* What is to be done at this hit of the step; NULL: nothing. */
static const char *due(const char *name, unsigned hit)
{
    size_t n = strlen(name);
    for (const char *p = getenv("FAULT_POINTS"); p && *p;
         p = strchr(p, ','), p = p ? p + 1 : NULL) {
        if (strncmp(p, name, n) != 0 || p[n] != '=')
            continue;
        char *end = (char *)p + n + 1;
        bool each = *end == '*';
        unsigned long nth = each ? 0 : strtoul(end, &end, 10);
        end += each;
        if (*end == ':' && (each || nth == hit))
            return end + 1;
    }
    return NULL;
}

static double seconds_of(const char *what)
{
    size_t word = strcspn(what, ":,");
    return what[word] == ':' ? strtod(what + word + 1, NULL) : 0;
}

/* Counts and tells it, and does what concerns the whole process. What the plan has for it. */
static const char *hit(const char *name)
{
    const char *what = due(name, count(name));
    tell(name, what ? "!" : "");
    if (what && strncmp(what, "kill", 4) == 0)
        kill(getpid(), SIGKILL);
    if (what && strncmp(what, "pause", 5) == 0) {
        double s = seconds_of(what);
        struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
        nanosleep(&t, NULL);
    }
    return what;
}

void fault_at(const char *name)
{
    hit(name);
}

int fault_hit(lua_State *L)
{
    const char *what = hit(luaL_checkstring(L, 1));
    if (!what || (strncmp(what, "delay", 5) != 0 && strncmp(what, "make", 4) != 0))
        return 0;
    lua_pushlstring(L, what, strcspn(what, ":,"));
    lua_pushnumber(L, seconds_of(what));
    return 2;
}

#endif
