/* disk.h: room on a file system, and the size of a folder, without ever waiting for long. */
#ifndef DISK_H
#define DISK_H

#include "base.h"

/* The file system under a folder, in bytes: all, what is used, what may still be written by anybody
 * but root, and how much of used and free is used, in percent, as df counts. */
struct disk {
    int64_t total, used, free;
    double percent;
};
bool disk_space(const char *folder, struct disk *out) MUST_CHECK;

/* What a folder's files take up on disk, found in small steps; other file systems below it, and
 * what is deeper than 8 folders, don't count. */
struct disk_tree;
struct disk_tree *disk_tree_new(const char *folder) MUST_CHECK; /* NULL: errno says why */
/* Looks at this many entries more; true when all were seen: *bytes of all, *database of those that
 * SQLite keeps (*.sqlite3 and its journals). */
bool disk_tree_step(struct disk_tree *t, unsigned entries, int64_t *bytes,
                    int64_t *database) MUST_CHECK;
unsigned disk_tree_seen(const struct disk_tree *t); /* entries so far */
void disk_tree_free(struct disk_tree *t);

#endif
