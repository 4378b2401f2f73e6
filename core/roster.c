/* roster.c: owns the rows: in shared memory below a supervisor, else one of the process itself. */
#include "roster.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

unsigned roster_count;
static struct roster_row alone, *rows = &alone, *own;

static const char *const names[ROLE_COUNT] = {"balancer", "worker", "coordinator", "monitor"};
static const char *const states[] = {"starting", "up", "waiting", "ended"};

const char *role_name(enum role role)
{
    return names[role];
}

bool role_from(const char *name, enum role *out)
{
    for (unsigned i = 0; i < ROLE_COUNT; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (enum role)i;
            return true;
        }
    return false;
}

const char *roster_state_name(enum roster_state state)
{
    return states[state];
}

struct roster_row *roster_row(unsigned i)
{
    must(i < roster_count);
    return &rows[i];
}

bool roster_share(void)
{
    void *p = mmap(NULL, ROSTER_MAX * sizeof *rows, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return false;
    rows = p;
    roster_count = 0;
    return true;
}

struct roster_row *roster_add(enum role role, unsigned index)
{
    must(rows != &alone && roster_count < ROSTER_MAX);
    struct roster_row *r = &rows[roster_count++];
    r->role = role;
    r->index = index;
    r->state = ROSTER_WAITING;
    return r;
}

void roster_sit(struct roster_row *row)
{
    own = row;
}

void roster_sit_alone(enum role role)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    alone.role = role;
    alone.index = 1;
    alone.state = ROSTER_STARTING;
    alone.pid = getpid();
    alone.started_at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    own = rows = &alone;
    roster_count = 1;
}

void roster_up(void)
{
    if (own)
        atomic_store(&own->up, true);
    if (own == &alone)
        alone.state = ROSTER_UP;
}

void roster_beat(void)
{
    if (own)
        atomic_fetch_add(&own->beats, 1);
}

void roster_lease(double boottime)
{
    if (own)
        atomic_store(&own->lease_until, boottime);
}
