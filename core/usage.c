/* usage.c: reads small files of /proc and of the cgroup file systems; what they mean is kernel.c's.
 */
#include "usage.h"

#include "kernel.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { TEXT_MAX = 16384, WAY_MAX = 2 * PATH_MAX };

/* What bounds a process changes seldom and costs more to read than what it uses: it is read again
 * after this many seconds. */
enum { BOUNDS_KEEP = 10, BOUNDS_COUNT = 128, LEVELS_MAX = 4 };

/* A cgroup with a limit of memory. */
struct level {
    char *folder; /* owned */
    bool v2;
    int64_t limit;
};

struct bounds {
    pid_t pid;
    uint64_t started;
    double until; /* seconds since boot */
    int64_t max_files;
    double cores;
    unsigned level_count;
    struct level level[LEVELS_MAX]; /* from the process's own group upwards */
};

static struct bounds *known[BOUNDS_COUNT]; /* by pid, modulo; NULL: none */

static const char *root = "";
/* Of the mounted hierarchies: cgroup v1's of memory and cpu, and v2's. point "": not mounted. */
static struct kernel_mount memory_v1, cpu_v1, both_v2;
static int64_t machine_memory;
static bool prepared;

static void bounds_drop(struct bounds **b)
{
    for (unsigned i = 0; *b && i < (*b)->level_count; i++)
        free((*b)->level[i].folder);
    free(*b);
    *b = NULL;
}

void usage_root(const char *prefix)
{
    root = prefix;
    prepared = false;
    for (unsigned i = 0; i < BOUNDS_COUNT; i++)
        bounds_drop(&known[i]);
}

/* ---- files ---- */

/* All of a small file, or its first TEXT_MAX bytes. */
static bool slurp(const char *path, char text[TEXT_MAX], struct str *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t n = 0;
    ssize_t got = 1;
    while (n < TEXT_MAX && (got = read(fd, text + n, TEXT_MAX - n)) > 0)
        n += (size_t)got;
    int why = errno;
    close(fd);
    errno = why;
    *out = (struct str){text, n};
    return got >= 0;
}

static bool slurp_of(pid_t pid, const char *name, char text[TEXT_MAX], struct str *out)
{
    char path[WAY_MAX];
    snprintf(path, sizeof path, "%s/proc/%ld/%s", root, (long)pid, name);
    return slurp(path, text, out);
}

/* Visits the lines of a file of any size; longer ones than TEXT_MAX end it. */
static void each_line(const char *path, void (*visit)(struct str line, void *arg), void *arg)
{
    char text[TEXT_MAX];
    size_t n = 0;
    ssize_t got;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    while (n < sizeof text && (got = read(fd, text + n, sizeof text - n)) > 0) {
        struct str rest = {text, n + (size_t)got}, line;
        while (memchr(rest.p, '\n', rest.n) && kernel_line(&rest, &line))
            visit(line, arg);
        n = rest.n;
        memmove(text, rest.p, n);
    }
    close(fd);
}

/* Where a link of /proc/PID leads to; "" when that can't be read. */
static const char *link_of(pid_t pid, const char *name, char out[PATH_MAX])
{
    char path[WAY_MAX];
    snprintf(path, sizeof path, "%s/proc/%ld/%s", root, (long)pid, name);
    ssize_t n = readlink(path, out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = 0;
    return out;
}

/* ---- limits ---- */

static void see_mount(struct str line, void *arg)
{
    static struct kernel_mount m;
    (void)arg;
    if (!kernel_mount(line, &m))
        return;
    struct kernel_mount *to = NULL;
    if (str_eq(m.type, STR("cgroup2")))
        to = &both_v2;
    else if (str_eq(m.type, STR("cgroup")))
        to = kernel_among(m.options, "memory") ? &memory_v1
             : kernel_among(m.options, "cpu")  ? &cpu_v1
                                               : NULL;
    if (to && !*to->point) /* a second mount of the same says nothing new */
        *to = m;
}

static void prepare(void)
{
    char path[WAY_MAX], text[TEXT_MAX];
    struct str s;
    uint64_t kb;
    if (prepared)
        return;
    prepared = true;
    *memory_v1.point = *cpu_v1.point = *both_v2.point = 0;
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    each_line(path, see_mount, NULL);
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    machine_memory = 0;
    if (slurp(path, text, &s) && kernel_figure(s, "MemTotal", &kb))
        machine_memory = (int64_t)(kb * 1024);
}

/* A file of the cgroup in this folder as one limit. */
static bool limit_in(const char *folder, const char *name, int64_t *out)
{
    char path[WAY_MAX + 64], text[TEXT_MAX];
    struct str s;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return slurp(path, text, &s) && kernel_limit(s, out);
}

static void memory_level(const char *folder, bool v2, struct bounds *b)
{
    int64_t limit;
    if (b->level_count == LEVELS_MAX ||
        !limit_in(folder, v2 ? "memory.max" : "memory.limit_in_bytes", &limit) || limit <= 0 ||
        limit == KERNEL_NONE || (machine_memory && limit >= machine_memory))
        return;
    b->level[b->level_count++] = (struct level){base_strdup(folder), v2, limit};
}

static void cpu_level(const char *folder, bool v2, struct bounds *b)
{
    char path[WAY_MAX + 64], text[TEXT_MAX];
    struct str s;
    int64_t quota, period;
    double cores = 0;
    if (v2) {
        snprintf(path, sizeof path, "%s/cpu.max", folder);
        if (!slurp(path, text, &s) || !kernel_cpu_max(s, &cores))
            return;
    } else if (limit_in(folder, "cpu.cfs_quota_us", &quota) && quota != KERNEL_NONE &&
               limit_in(folder, "cpu.cfs_period_us", &period) && period > 0) {
        cores = (double)quota / (double)period;
    }
    if (cores > 0 && cores < b->cores)
        b->cores = cores;
}

/* The folder of a process's cgroup: its path, less the part above what is mounted here. A path that
 * is not below it (another cgroup namespace) can't be seen: the mount's own top is the nearest. */
static void group_folder(const struct kernel_mount *m, struct str path, char out[WAY_MAX])
{
    size_t n = strcmp(m->root, "/") == 0 ? 0 : strlen(m->root);
    bool below = path.n >= n && memcmp(path.p, m->root, n) == 0 &&
                 (path.n == n || path.p[n] == '/') && !memmem(path.p, path.n, "/..", 3);
    int len = below && path.n - n > 1 ? (int)(path.n - n) : 0;
    snprintf(out, WAY_MAX, "%s%s%.*s", root, m->point, len, path.p + n);
}

/* Visits the process's own cgroup and all above it. */
static void each_level(struct str groups, const char *controller, const struct kernel_mount *v1,
                       void (*level)(const char *folder, bool v2, struct bounds *b),
                       struct bounds *b)
{
    char folder[WAY_MAX];
    struct str path;
    bool v2;
    if (!kernel_cgroup(groups, controller, &path, &v2))
        return;
    const struct kernel_mount *m = v2 ? &both_v2 : v1;
    if (!*m->point)
        return;
    group_folder(m, path, folder);
    size_t top = strlen(root) + strlen(m->point);
    for (;;) {
        level(folder, v2, b);
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= top || !slash || (size_t)(slash - folder) < top)
            break;
        *slash = 0;
    }
}

static int64_t max_files(pid_t pid)
{
    char text[TEXT_MAX];
    struct str s;
    uint64_t n;
    return slurp_of(pid, "limits", text, &s) && kernel_figure(s, "Max open files", &n) &&
                   n <= INT64_MAX
               ? (int64_t)n
               : -1;
}

static const struct bounds *bounds_of(pid_t pid, uint64_t started, double now)
{
    char text[TEXT_MAX];
    struct str s, list;
    struct bounds **place = &known[(unsigned)pid % BOUNDS_COUNT], *b = *place;
    if (b && b->pid == pid && b->started == started && now < b->until)
        return b;
    bounds_drop(place);
    *place = b = base_zalloc(sizeof *b);
    prepare();
    b->pid = pid;
    b->started = started;
    b->until = now + BOUNDS_KEEP;
    b->max_files = max_files(pid);
    long machine = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned allowed =
        slurp_of(pid, "status", text, &s) && kernel_field(s, "Cpus_allowed_list", &list)
            ? kernel_list(list)
            : 0;
    b->cores = allowed ? allowed : machine > 0 ? (double)machine : 1;
    if (slurp_of(pid, "cgroup", text, &s)) {
        each_level(s, "memory", &memory_v1, memory_level, b);
        each_level(s, "cpu", &cpu_v1, cpu_level, b);
    }
    return b;
}

/* The share of a limit counts, not the limit: a wide group that is nearly full ends its members as
 * surely as a narrow one. */
static void read_memory(const struct bounds *b, struct usage *u)
{
    char path[WAY_MAX + 64], text[TEXT_MAX];
    struct str s;
    u->memory_used = u->rss;
    u->memory_limit = machine_memory;
    u->limited = false;
    for (unsigned i = 0; i < b->level_count; i++) {
        const struct level *l = &b->level[i];
        int64_t used;
        uint64_t idle;
        if (!limit_in(l->folder, l->v2 ? "memory.current" : "memory.usage_in_bytes", &used))
            continue;
        snprintf(path, sizeof path, "%s/memory.stat", l->folder);
        if (!slurp(path, text, &s) ||
            !kernel_figure(s, l->v2 ? "inactive_file" : "total_inactive_file", &idle))
            idle = 0;
        used = (uint64_t)used > idle ? used - (int64_t)idle : 0;
        if (u->limited &&
            (double)used * (double)u->memory_limit <= (double)u->memory_used * (double)l->limit)
            continue;
        u->limited = true;
        u->memory_used = used;
        u->memory_limit = l->limit;
    }
}

/* ---- a process ---- */

/* Newer kernels say the number of descriptors as the folder's size; older ones have them counted.
 */
static int64_t count_files(pid_t pid)
{
    char path[WAY_MAX];
    struct stat st;
    int64_t n = -2; /* . and .. */
    snprintf(path, sizeof path, "%s/proc/%ld/fd", root, (long)pid);
    if (!*root && stat(path, &st) == 0 && st.st_size > 0)
        return st.st_size;
    DIR *d = opendir(path);
    if (!d)
        return -1;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

bool usage_of(pid_t pid, struct usage *out)
{
    char text[TEXT_MAX];
    struct str s;
    struct usage u;
    struct timespec now;
    uint64_t ticks, resident, shared;
    int64_t page = sysconf(_SC_PAGESIZE);
    memset(&u, 0, sizeof u);
    if (!slurp_of(pid, "stat", text, &s))
        return false;
    clock_gettime(CLOCK_BOOTTIME, &now);
    errno = ESRCH;
    if (!kernel_stat(s, &ticks, &u.started))
        return false;
    if (!slurp_of(pid, "statm", text, &s) || !kernel_statm(s, &resident, &shared))
        return false;
    u.at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    u.cpu_seconds = (double)ticks / (double)sysconf(_SC_CLK_TCK);
    u.rss = (int64_t)resident * page;
    u.private = (int64_t)(resident - shared) * page;
    u.open_files = count_files(pid);
    const struct bounds *b = bounds_of(pid, u.started, u.at);
    u.max_files = b->max_files;
    u.cores = b->cores;
    read_memory(b, &u);
    *out = u;
    return true;
}

/* ---- who listens ---- */

/* Both families as one: IPv4 addresses are mapped. */
static bool plain_address(const struct sockaddr *a, uint8_t out[16], unsigned *port)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (a->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a;
        memcpy(out, mapped, sizeof mapped);
        memcpy(out + 12, &in->sin_addr, 4);
        *port = ntohs(in->sin_port);
    } else if (a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)a;
        memcpy(out, &in6->sin6_addr, 16);
        *port = ntohs(in6->sin6_port);
    } else {
        return false;
    }
    return true;
}

static bool is_v4(const uint8_t a[16])
{
    return IN6_IS_ADDR_V4MAPPED((const struct in6_addr *)(const void *)a);
}

bool usage_is_here(const struct sockaddr *address)
{
    static const uint8_t loopback6[16] = {[15] = 1};
    uint8_t wanted[16], own[16];
    unsigned port;
    struct ifaddrs *list;
    bool here = false;
    if (!plain_address(address, wanted, &port))
        return false;
    if ((is_v4(wanted) && wanted[12] == 127) || memcmp(wanted, loopback6, 16) == 0)
        return true;
    if (getifaddrs(&list) != 0)
        return false;
    for (const struct ifaddrs *i = list; i && !here; i = i->ifa_next)
        here =
            i->ifa_addr && plain_address(i->ifa_addr, own, &port) && memcmp(own, wanted, 16) == 0;
    freeifaddrs(list);
    return here;
}

/* How well a socket's address fits: 3 the same, 2 all of its family, 1 all of both, 0 not. */
static int fit(const uint8_t socket[16], const uint8_t wanted[16])
{
    static const uint8_t any6[16], any4[16] = {[10] = 0xff, [11] = 0xff};
    if (memcmp(socket, wanted, 16) == 0)
        return 3;
    if (memcmp(socket, any4, 16) == 0)
        return is_v4(wanted) ? 2 : 0;
    if (memcmp(socket, any6, 16) == 0)
        return is_v4(wanted) ? 1 : 2;
    return 0;
}

struct search {
    struct usage_place *places;
    int *fits; /* of the best socket so far, for each place */
    unsigned n;
};

static void see_socket(struct str line, void *arg)
{
    struct search *search = arg;
    struct kernel_socket socket;
    if (!kernel_listener(line, &socket))
        return;
    for (unsigned i = 0; i < search->n; i++) {
        struct usage_place *p = &search->places[i];
        uint8_t wanted[16];
        unsigned port;
        int how = plain_address((const struct sockaddr *)&p->address, wanted, &port) &&
                          port == socket.port
                      ? fit(socket.address, wanted)
                      : 0;
        if (how > search->fits[i]) {
            search->fits[i] = how;
            p->inode = socket.inode;
        }
    }
}

/* The places that this process holds the sockets of. false: it may not be looked into. */
static bool see_process(pid_t pid, struct search *search)
{
    char path[WAY_MAX], name[64], to[PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/%ld/fd", root, (long)pid);
    DIR *d = opendir(path);
    const struct dirent *e;
    uint64_t inode;
    if (!d)
        return errno != EACCES && errno != EPERM;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' ||
            snprintf(name, sizeof name, "fd/%s", e->d_name) >= (int)sizeof name)
            continue;
        size_t n = strlen(link_of(pid, name, to));
        if (n < 10 || memcmp(to, "socket:[", 8) != 0 || to[n - 1] != ']' ||
            !kernel_uint((struct str){to + 8, n - 9}, &inode))
            continue;
        for (unsigned i = 0; i < search->n; i++)
            if (search->places[i].inode == inode && !search->places[i].pid)
                search->places[i].pid = pid;
    }
    closedir(d);
    return true;
}

void usage_find(struct usage_place *places, unsigned n, bool *denied)
{
    char path[WAY_MAX];
    struct search search = {places, base_zalloc((n + 1) * sizeof(int)), n};
    unsigned missing = 0;
    bool refused = false;
    *denied = false;
    for (unsigned i = 0; i < n; i++) {
        places[i].pid = 0;
        places[i].inode = 0;
    }
    snprintf(path, sizeof path, "%s/proc/net/tcp", root);
    each_line(path, see_socket, &search);
    snprintf(path, sizeof path, "%s/proc/net/tcp6", root);
    each_line(path, see_socket, &search);
    free(search.fits);
    for (unsigned i = 0; i < n; i++)
        missing += places[i].inode != 0;
    snprintf(path, sizeof path, "%s/proc", root);
    DIR *d = missing ? opendir(path) : NULL;
    const struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        uint64_t pid;
        if (kernel_uint(str_from(e->d_name), &pid) && pid > 0 && pid <= INT_MAX &&
            !see_process((pid_t)pid, &search))
            refused = true;
    }
    if (d)
        closedir(d);
    for (unsigned i = 0; i < n; i++)
        if (places[i].inode && !places[i].pid && refused)
            *denied = true;
}

/* ---- folders ---- */

/* The folder in which the process has a database of SQLite open, "" when it has none. */
static const char *open_database(pid_t pid, char out[PATH_MAX])
{
    static const char name[] = "/chroma.sqlite3";
    char path[WAY_MAX], link[64];
    snprintf(path, sizeof path, "%s/proc/%ld/fd", root, (long)pid);
    DIR *d = opendir(path);
    const struct dirent *e;
    bool found = false;
    while (d && !found && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' ||
            snprintf(link, sizeof link, "fd/%s", e->d_name) >= (int)sizeof link)
            continue;
        size_t n = strlen(link_of(pid, link, out));
        found = n >= sizeof name && strcmp(out + n - (sizeof name - 1), name) == 0;
        if (found)
            out[n - (sizeof name - 1)] = 0;
    }
    if (d)
        closedir(d);
    if (!found)
        *out = 0;
    return out;
}

/* What follows --path among the arguments (each ends with a zero byte), NULL when nothing does. */
static const char *path_argument(struct str arguments)
{
    const char *last = NULL;
    for (size_t i = 0; i < arguments.n;) {
        const char *word = arguments.p + i;
        size_t n = strnlen(word, arguments.n - i);
        if (i + n == arguments.n)
            return NULL; /* cut off */
        if (last && strcmp(last, "--path") == 0)
            return word;
        if (strncmp(word, "--path=", 7) == 0)
            return word + 7;
        last = word;
        i += n + 1;
    }
    return NULL;
}

char *usage_folder(pid_t pid, char **shown)
{
    char text[TEXT_MAX], at[PATH_MAX], place[WAY_MAX];
    struct str s = {NULL, 0};
    if (*open_database(pid, at)) {
        snprintf(place, sizeof place, "%s", at);
    } else {
        const char *path = slurp_of(pid, "cmdline", text, &s) ? path_argument(s) : NULL;
        if (path && *path == '/')
            snprintf(place, sizeof place, "%s", path);
        else if (*link_of(pid, "cwd", at))
            snprintf(place, sizeof place, "%s/%s", at, path && *path ? path : "chroma");
        else
            return NULL;
    }
    *shown = base_strdup(place);
    return base_printf("%s/proc/%ld/root%s", root, (long)pid, place);
}
