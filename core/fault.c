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

static void tell(const char *name)
{
    const char *path = getenv("FAULT_LOG");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        return;
    dprintf(fd, "%s\n", name);
    close(fd);
}

static void act(const char *what)
{
    if (strncmp(what, "kill", 4) == 0)
        kill(getpid(), SIGKILL);
    if (strncmp(what, "pause:", 6) == 0) {
        double s = strtod(what + 6, NULL);
        struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
        nanosleep(&t, NULL);
    }
}

int fault_hit(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1), *plan = getenv("FAULT_POINTS");
    unsigned hit = count(name);
    size_t n = strlen(name);
    tell(name);
    for (const char *p = plan; p && *p; p = strchr(p, ','), p = p ? p + 1 : NULL) {
        char *end;
        if (strncmp(p, name, n) != 0 || p[n] != '=')
            continue;
        unsigned long nth = strtoul(p + n + 1, &end, 10);
        if (*end == ':' && nth == hit)
            act(end + 1);
    }
    return 0;
}

#endif
