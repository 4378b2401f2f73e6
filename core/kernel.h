/* kernel.h: what the kernel's own files about processes, sockets and control groups say. Pure: text
 * in, values out; text that is cut or garbage answers false and changes nothing. */
#ifndef KERNEL_H
#define KERNEL_H

#include "base.h"

/* No limit: "max" of cgroup v2, -1 of v1. */
#define KERNEL_NONE INT64_MAX

/* Cuts the next line, without its end, off *rest; false when nothing is left. */
bool kernel_line(struct str *rest, struct str *line);
/* The same with the next word, between blanks. */
bool kernel_word(struct str *rest, struct str *word);
/* Digits alone. */
bool kernel_uint(struct str text, uint64_t *out) MUST_CHECK;

/* /proc/PID/stat: time in user and kernel mode, and since boot until its start, in clock ticks. */
bool kernel_stat(struct str text, uint64_t *used, uint64_t *started) MUST_CHECK;
/* /proc/PID/statm: pages in memory, and those of them that a file or shared memory backs. */
bool kernel_statm(struct str text, uint64_t *resident, uint64_t *shared) MUST_CHECK;
/* A line "key value…" or "key: value…": what stands behind the key. */
bool kernel_field(struct str text, const char *key, struct str *rest) MUST_CHECK;
/* The first word behind the key as a number. */
bool kernel_figure(struct str text, const char *key, uint64_t *out) MUST_CHECK;
/* "0-2,5": how many numbers that names. 0: none, or no such list. */
unsigned kernel_list(struct str text);
/* The one value of a cgroup's file: a number, or KERNEL_NONE. */
bool kernel_limit(struct str text, int64_t *out) MUST_CHECK;
/* cgroup v2's cpu.max, "quota period": cores; 0: no limit. */
bool kernel_cpu_max(struct str text, double *cores) MUST_CHECK;

/* /proc/PID/cgroup: the process's path in the hierarchy of a controller: v1's where a line names
 * the controller, else v2's (*v2 is set then). */
bool kernel_cgroup(struct str text, const char *controller, struct str *path, bool *v2) MUST_CHECK;

/* A line of /proc/self/mountinfo: what of its file system is mounted where. root and point are
 * decoded in place of the caller's (PATH sized) memory. */
enum { KERNEL_PATH_MAX = 512 };
struct kernel_mount {
    char root[KERNEL_PATH_MAX], point[KERNEL_PATH_MAX];
    struct str type, options;
};
bool kernel_mount(struct str line, struct kernel_mount *out) MUST_CHECK;
/* Is word one of the comma-separated words? */
bool kernel_among(struct str words, const char *word);

/* A line of /proc/net/tcp or tcp6 of a socket that listens. IPv4 addresses are mapped to IPv6 ones.
 * false: another state, the table's head, or garbage. */
struct kernel_socket {
    uint8_t address[16];
    unsigned port;
    uint64_t inode;
};
bool kernel_listener(struct str line, struct kernel_socket *out) MUST_CHECK;

#endif
