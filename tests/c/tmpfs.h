/* tmpfs.h - a file on a small file system of its own, for tests of what happens when that is full. */
#ifndef PRS_TEST_TMPFS_H
#define PRS_TEST_TMPFS_H

#include "harness.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

/* The file, empty. Its file system lives behind the descriptor and ends with it, whatever fails. -1 where none can be
 * mounted. */
static inline int file_on_tmpfs(const char *options)
{
    char dir[] = "/tmp/prs-test-tmpfs-XXXXXX", path[64];
    CHECK(mkdtemp(dir) != NULL);
    if (mount("none", dir, "tmpfs", 0, options) != 0) {
        rmdir(dir);
        return -1;
    }
    snprintf(path, sizeof path, "%s/f", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    CHECK(fd >= 0);
    return fd;
}

#endif
