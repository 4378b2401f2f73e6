/* usage.h: what processes of this machine use, what they may use, and which of them listens where.
 * Asks the kernel each time; remembers only where cgroups are mounted and how much memory there is.
 */
#ifndef USAGE_H
#define USAGE_H

#include "base.h"
#include <sys/socket.h>
#include <sys/types.h>

/* Where /proc and /sys are: "" for the machine's own, or a folder that holds both, for tests. The
 * text is kept by reference. */
void usage_root(const char *prefix);

/* A process at one moment. Memory in bytes. */
struct usage {
    double at;                     /* seconds since boot, when it was asked */
    uint64_t started;              /* clock ticks since boot: with the pid, which process it is */
    double cpu_seconds;            /* used since its start */
    int64_t rss, private;          /* resident; of that, not backed by files or shared memory */
    int64_t open_files, max_files; /* -1: not known */

    /* The cgroup around it that is nearest to its limit; without a limit, the machine. used is
     * without what could be dropped at once (inactive pages of files); of the machine, it is the
     * process's rss. */
    int64_t memory_used, memory_limit;
    bool limited;
    double cores; /* that it may use: quotas of its cgroups, its affinity, the machine */
};

/* false: there is none, or it can't be read (errno says why). */
bool usage_of(pid_t pid, struct usage *out) MUST_CHECK;

/* Is this address one of this machine's own? */
bool usage_is_here(const struct sockaddr *address);

/* Finds who listens where: fills in pid for each place, 0 where nobody does or where the process
 * may not be looked into (then *denied is set). Walks through all processes: for seldom use. */
struct usage_place {
    struct sockaddr_storage address; /* with its port */
    pid_t pid;
    uint64_t inode; /* of the socket; 0: nobody listens there */
};
void usage_find(struct usage_place *places, unsigned n, bool *denied);

/* The folder of a Chroma server's data: where its database is open, else what its --path says, else
 * ./chroma. Fresh memory, or NULL. It is reached through /proc/PID/root, so that a container's is
 * found too: *shown is the path as the process itself calls it, fresh memory as well. */
char *usage_folder(pid_t pid, char **shown) MUST_CHECK;

#endif
