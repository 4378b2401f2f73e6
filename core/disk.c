/* disk.c: how full a file system is, and what a folder takes up on it. */
#include "disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

bool disk_space(const char *folder, struct disk *out)
{
    struct statvfs v;
    if (statvfs(folder, &v) != 0)
        return false;
    double used = (double)(v.f_blocks - v.f_bfree), open = (double)v.f_bavail;
    out->total = (int64_t)((double)v.f_blocks * (double)v.f_frsize);
    out->used = (int64_t)(used * (double)v.f_frsize);
    out->free = (int64_t)(open * (double)v.f_frsize);
    out->percent = used + open > 0 ? 100 * used / (used + open) : 0;
    return true;
}

enum { TREE_DEPTH = 8 };
struct disk_tree {
    DIR *open[TREE_DEPTH]; /* from the top down to the one being read */
    unsigned depth, seen;
    dev_t device;
    int64_t bytes, database;
};

struct disk_tree *disk_tree_new(const char *folder)
{
    struct stat st;
    DIR *d = opendir(folder);
    if (!d || fstat(dirfd(d), &st) != 0) {
        if (d)
            closedir(d);
        return NULL;
    }
    struct disk_tree *t = base_zalloc(sizeof *t);
    t->open[0] = d;
    t->depth = 1;
    t->device = st.st_dev;
    t->bytes = (int64_t)st.st_blocks * 512;
    return t;
}

static void enter(struct disk_tree *t, const char *name)
{
    if (t->depth == TREE_DEPTH)
        return;
    int fd =
        openat(dirfd(t->open[t->depth - 1]), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d)
        t->open[t->depth++] = d;
    else if (fd >= 0)
        close(fd);
}

static void see_entry(struct disk_tree *t, const char *name)
{
    struct stat st;
    t->seen++;
    if (fstatat(dirfd(t->open[t->depth - 1]), name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        st.st_dev != t->device)
        return; /* gone since, or elsewhere */
    int64_t bytes = (int64_t)st.st_blocks * 512;
    t->bytes += bytes;
    if (S_ISREG(st.st_mode) && strstr(name, ".sqlite3"))
        t->database += bytes;
    if (S_ISDIR(st.st_mode))
        enter(t, name);
}

bool disk_tree_step(struct disk_tree *t, unsigned entries, int64_t *bytes, int64_t *database)
{
    while (t->depth > 0 && entries > 0) {
        const struct dirent *e = readdir(t->open[t->depth - 1]);
        if (!e) {
            closedir(t->open[--t->depth]);
        } else if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            see_entry(t, e->d_name);
            entries--;
        }
    }
    if (t->depth > 0)
        return false;
    *bytes = t->bytes;
    *database = t->database;
    return true;
}

unsigned disk_tree_seen(const struct disk_tree *t)
{
    return t->seen;
}

void disk_tree_free(struct disk_tree *t)
{
    if (!t)
        return;
    while (t->depth > 0)
        closedir(t->open[--t->depth]);
    free(t);
}
