/* descriptor.h - functions that keep our descriptors above 2.
 *
 * If a program was started without descriptors 0 to 2, or has closed them, the next file that it opens gets one of
 * these numbers.  Code that writes to standard error then writes to that file.  The engine opens every file, memfd,
 * pipe and directory through these functions; a test finds calls that bypass them.
 */
#ifndef PRS_DESCRIPTOR_H
#define PRS_DESCRIPTOR_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#ifndef F_DUPFD_CLOEXEC
#define F_DUPFD_CLOEXEC 1030
#endif

/* Move the result of open(), a descriptor or -1, above 2.  Returns -1 with errno on failure. */
static inline int prs_above_standard(int fd)
{
    if (fd < 0 || fd > 2)
        return fd;
    int above = fcntl(fd, F_DUPFD_CLOEXEC, 3), saved = errno;
    close(fd);
    errno = saved;
    return above;
}

/* Open a text file for reading. */
static inline FILE *prs_open_text(const char *path)
{
    int fd = prs_above_standard(open(path, O_RDONLY | O_CLOEXEC));
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (!file && fd >= 0)
        close(fd);
    return file;
}

static inline DIR *prs_open_listing(const char *path)
{
    int fd = prs_above_standard(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory && fd >= 0)
        close(fd);
    return directory;
}

#endif
