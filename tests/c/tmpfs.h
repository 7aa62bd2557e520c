/* tmpfs.h - a file on its own small file system, for tests of a full file system. */
#ifndef PRS_TEST_TMPFS_H
#define PRS_TEST_TMPFS_H

#include "harness.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

/* Return an empty file on a new tmpfs, or -1 if mounting is not possible. The kernel removes the file system when the
 * descriptor is closed. */
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
