/* os.c - every system call the engine makes.
 *
 * Purpose    This is the only file that depends on the operating system; the code above it uses
 *            offsets.
 * Guarantee  Functions that return int return 0 (or a descriptor) or -errno, and do not preserve
 *            errno.  Descriptors are closed by exec.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os.h"
#include "atomic.h"
#include "copy.h"
#include "failpoint.h"
#include "descriptor.h"
#include "huge.h"
#include "pages.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* The headers of manylinux images do not define this system call. Its number is the same on all but alpha. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

int prs_fail(prs_error *error, int code, int sys_errno, const char *format, ...)
{
    if (error) {
        error->code = code;
        error->sys_errno = sys_errno;
        error->pid = 0;
        error->want = error->capacity = error->used = 0;
        va_list args;
        va_start(args, format);
        vsnprintf(error->what, sizeof error->what, format, args);
        va_end(args);
    }
    return code;
}

/* ---- time, randomness ------------------------------------------------------------------- */

int64_t prs_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * PRS_SECOND + ts.tv_nsec;
}

uint64_t prs_uptime(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec;
}

void prs_os_sleep(int64_t ns)
{
    struct timespec ts = {(time_t)(ns / PRS_SECOND), (long)(ns % PRS_SECOND)};
    nanosleep(&ts, NULL);
}

int prs_os_random(void *buffer, size_t n)
{
    ssize_t got;
    do
        got = getrandom(buffer, n, 0);
    /* unreached by tests (no injected fault, 3 branches): getrandom */
    while (got < 0 && errno == EINTR);
    /* unreached by tests (no injected fault): getrandom */
    return got == (ssize_t)n ? 0 : -EIO;
}

/* ---- files ------------------------------------------------------------------------------- */

int prs_os_memfd(uint64_t id, prs_error *error)
{
    char name[48];
    snprintf(name, sizeof name, "pyray_ser:%016llx", (unsigned long long)id);
    int fd = prs_above_standard(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
    /* unreached by tests (other kernel): before Linux 6.3 */
    if (fd < 0 && errno == EINVAL) /* kernels before Linux 6.3 */
        fd = prs_above_standard(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return prs_fail(error, PRS_E_SYS, errno, "memfd_create failed");
    /* unreached by tests (no injected fault): fchmod */
    if (fchmod(fd, 0600) < 0) {
        int err = errno;
        close(fd);
        return prs_fail(error, PRS_E_SYS, err, "fchmod of the new store failed");
    }
    return fd;
}

static bool memory_type(const struct statfs *fs)
{
    /* unreached by tests (other kernel): ramfs */
    return fs->f_type == 0x01021994 || (uint32_t)fs->f_type == 0x858458f6u; /* tmpfs, ramfs */
}

/* Create a file without a name in the directory of `path`; prs_os_publish_file() names it once it is complete. */
int prs_os_create_file(const char *path, prs_error *error)
{
    char directory[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof directory)
        return prs_fail(error, PRS_E_INVAL, ENAMETOOLONG, "the path of the store is too long");
    memcpy(directory, path, n);
    /* unreached by tests (no test): a store in the root directory */
    strcpy(directory + n, slash ? (n ? "" : "/") : ".");
    struct statfs fs;
    if (statfs(directory, &fs) < 0)
        return prs_fail(error, PRS_E_SYS, errno, "cannot use directory %.150s", directory);
    if (!memory_type(&fs))
        return prs_fail(error, PRS_E_FOREIGN, 0, "%.150s is not on tmpfs", directory);
    int fd = prs_above_standard(open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600));
    if (fd < 0)
        return prs_fail(error, PRS_E_SYS, errno, "cannot create a file in %.150s", directory);
    if (fchmod(fd, 0600) < 0) { /* undo the effect of the umask, because we reopen the file before it has a name */
        int err = errno;
        close(fd);
        return prs_fail(error, PRS_E_SYS, err, "fchmod of the new store failed");
    }
    return fd;
}

int prs_os_publish_file(int fd, const char *path, prs_error *error)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    /* unreached by tests (no injected fault): fchmod */
    if (fchmod(fd, 0600) < 0 || linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0)
        /* unreached by tests (no test): the directory was removed after the file was created */
        return prs_fail(error, PRS_E_SYS, errno, errno == EEXIST ? "%.150s exists already" : "cannot name %.150s",
                        path);
    return PRS_OK;
}

int prs_os_open_file(const char *path, int *fd, prs_error *error)
{
    *fd = prs_above_standard(open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC));
    if (*fd < 0) {
        if (errno == ENOENT)
            return prs_fail(error, PRS_E_NOTFOUND, ENOENT, "there is no store at %.150s", path);
        if (errno == ELOOP)
            return prs_fail(error, PRS_E_FOREIGN, ELOOP, "%.150s is a symbolic link", path);
        return prs_fail(error, PRS_E_SYS, errno, "cannot open %.150s", path);
    }
    return PRS_OK;
}

static int open_flags(prs_access access)
{
    return (access == PRS_WRITABLE ? O_RDWR : O_RDONLY) | O_CLOEXEC;
}

int prs_os_reopen(int fd, prs_access access)
{
    return prs_os_reopen_of(0, fd, access);
}

/* Open the file behind another descriptor again, with its own open file description (OFD locks) and its own access mode
 * (read-only mappings). A reference from another machine may name a descriptor of an unrelated process. Opening a pipe
 * or a device of that process would have side effects, so we open only regular files. */
int prs_os_reopen_of(int32_t pid, int fd, prs_access access)
{
    char path[64];
    if (pid != 0) {
        /* O_PATH opens nothing, and keeps the file that is examined: the process may reuse the number meanwhile. */
        snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
        int seen = prs_above_standard(open(path, O_PATH | O_CLOEXEC));
        if (seen < 0)
            return -errno;
        struct stat found;
        int rc = fstat(seen, &found) == 0 && S_ISREG(found.st_mode) ? prs_os_reopen(seen, access) : -EBADF;
        close(seen);
        return rc;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int out = prs_above_standard(open(path, open_flags(access) | O_NONBLOCK | O_NOCTTY));
    return out < 0 ? -errno : out;
}

/* Open the file behind one of our mappings after every descriptor of it was closed.  On most systems this needs a
 * capability; return -errno if the kernel refuses. */
int prs_os_reopen_mapping(const void *at, prs_access access, const prs_file *file)
{
    FILE *maps = prs_open_text("/proc/self/maps");
    if (!maps)
        return -errno;
    char line[512], path[96] = "";
    /* unreached by tests (impossible): the list always contains the mapping */
    while (!path[0] && fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        /* unreached by tests (no test): a line longer than the buffer */
        /* unreached by tests (impossible): the list is sorted */
        if (sscanf(line, "%lx-%lx", &begin, &end) == 2 && (uintptr_t)at >= begin && (uintptr_t)at < end)
            snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", begin, end);
    }
    fclose(maps);
    /* unreached by tests (impossible): the list always contains the mapping */
    if (!path[0])
        return -ENOENT;
    int fd = prs_above_standard(open(path, open_flags(access)));
    /* unreached by tests (other kernel): without a capability that only root has */
    if (fd < 0)
        return -errno;
    /* unreached by tests (other kernel): another file behind the mapping */
    if (prs_os_same(fd, file))
        return fd;
    close(fd);
    return -ESTALE;
}

int prs_os_size(int fd, uint64_t size)
{
    if (size > prs_file_limit())
        return -EFBIG;
    /* unreached by tests (failing call) */
    while (ftruncate(fd, (off_t)size) < 0)
        /* unreached by tests (failing call) */
        /* unreached by tests (no injected fault): ftruncate interrupted */
        if (errno != EINTR)
            return -errno;
    return 0;
}

int prs_os_seal(int fd)
{
    /* unreached by tests (failing call) */
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

bool prs_os_same(int fd, const prs_file *file)
{
    struct stat st;
    /* unreached by tests (no test): another file of the same file system */
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == file->dev && st.st_ino == file->ino;
}

/* Before we read a file, refuse it if it cannot be a store: it belongs to another user, has other modes, or is not a
 * regular file in memory. */
int prs_os_inspect(int fd, prs_file *file, uint64_t *size, prs_error *error)
{
    struct stat st;
    /* unreached by tests (no injected fault): fstat */
    if (fstat(fd, &st) < 0)
        return prs_fail(error, PRS_E_SYS, errno, "fstat of the store failed");
    if (!S_ISREG(st.st_mode))
        return prs_fail(error, PRS_E_FOREIGN, 0, "the store is not a regular file");
    if (st.st_uid != geteuid())
        return prs_fail(error, PRS_E_FOREIGN, 0, "the store belongs to user %u, not to %u", (unsigned)st.st_uid,
                        (unsigned)geteuid());
    /* unreached by tests (no test): a file without any permission */
    if ((st.st_mode & 07777) != 0600 && (st.st_mode & 07777) != 0)
        return prs_fail(error, PRS_E_FOREIGN, 0, "the store has mode %04o, not 0600", (unsigned)(st.st_mode & 07777));
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    *size = (uint64_t)st.st_size;
    return PRS_OK;
}

int prs_os_pread(int fd, void *buffer, size_t n, uint64_t off)
{
    uint8_t *at = buffer;
    while (n) {
        ssize_t got = pread(fd, at, n, (off_t)off);
        /* unreached by tests (failing call, 2 branches) */
        /* unreached by tests (no injected fault): pread interrupted */
        if (got < 0 && errno == EINTR)
            continue;
        /* unreached by tests (failing call) */
        if (got <= 0)
            /* unreached by tests (failing call) */
            /* unreached by tests (no test): the file was truncated */
            return got < 0 ? -errno : -ENODATA;
        at += got;
        off += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

uint64_t prs_os_blocks(int fd)
{
    struct stat st;
    /* unreached by tests (no injected fault): fstat */
    return fstat(fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

void prs_os_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* ---- directories ----------------------------------------------------------------------------- */

int prs_os_open_directory(int at, const char *path, prs_error *error)
{
    int fd = prs_above_standard(
        openat(at < 0 ? AT_FDCWD : at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (at < 0 ? 0 : O_NOFOLLOW)));
    return fd < 0 ? prs_fail(error, PRS_E_SYS, errno, "cannot open directory %.150s", path) : fd;
}

bool prs_os_in_memory(int fd)
{
    struct statfs fs;
    /* unreached by tests (no injected fault): fstatfs */
    return fstatfs(fd, &fs) == 0 && memory_type(&fs);
}

/* Return whether the file system of `fd` has `bytes` left; return true if it has no limit or does not report one. */
bool prs_os_has_room(int fd, uint64_t bytes)
{
    struct statfs fs;
    /* unreached by tests (no injected fault): fstatfs */
    return fstatfs(fd, &fs) != 0 || fs.f_blocks == 0 || (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize >= bytes;
}

int prs_os_make_directory(int at, const char *name)
{
    if (mkdirat(at, name, 0700) < 0)
        return -errno;
    (void)fchmodat(at, name, 0700, 0); /* undo the umask; a file system without modes may refuse this */
    return 0;
}

int prs_os_open_at(int at, const char *name, int flags)
{
    int fd = prs_above_standard(openat(at, name, O_NOFOLLOW | O_CLOEXEC | flags, 0600));
    if (fd >= 0 && (flags & O_CREAT))
        (void)fchmod(fd, 0600); /* undo the effect of the umask here, too */
    return fd < 0 ? -errno : fd;
}

int prs_os_remove_file(int at, const char *name)
{
    return unlinkat(at, name, 0) < 0 ? -errno : 0;
}

int prs_os_remove_directory(int at, const char *name)
{
    return unlinkat(at, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

uint64_t prs_os_length(int fd)
{
    struct stat st;
    /* unreached by tests (no injected fault): fstat */
    return fstat(fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

void prs_os_protect(int fd)
{
    (void)fchmod(fd, 0400); /* a file system without modes may refuse this; the mode only guards against mistakes */
}

int prs_os_identify(int fd, prs_file *file)
{
    struct stat st;
    /* unreached by tests (no injected fault): fstat */
    if (fstat(fd, &st) < 0)
        return -errno;
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    return 0;
}

int prs_os_each_name(int fd, int (*each)(void *, const char *), void *arg)
{
    int copy = prs_above_standard(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), rc = 0;
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    if (!directory) {
        rc = -errno;
        prs_os_close(copy);
        return rc;
    }
    /* unreached by tests (impossible): the function called for each name returns 0 */
    for (struct dirent *entry; rc == 0 && (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = each(arg, entry->d_name);
    closedir(directory);
    return rc;
}

/* ---- mappings ------------------------------------------------------------------------------- */

static void *no_dump(void *at, size_t len)
{
    if (at == MAP_FAILED)
        return NULL;
    madvise(at, len, MADV_DONTDUMP); /* keeps core files small and free of stored data */
    return at;
}

/* Map at an address congruent to the file offset modulo PRS_HUGE: otherwise the kernel cannot map a huge page as a
 * whole.  We reserve a range, unmap it and pass its address as a hint: if another thread maps this range meanwhile, we
 * lose speed, but do not replace its mapping. */
static void *map_congruent(int fd, uint64_t off, size_t len, int prot, int flags)
{
    char *place = NULL;
    /* unreached by tests (impossible): no mapping is that long */
    if (len >= PRS_HUGE && len <= SIZE_MAX - 2 * PRS_HUGE) {
        size_t room = len + 2 * PRS_HUGE;
        char *found = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found != MAP_FAILED) { /* otherwise use any other address */
            munmap(found, room);
            place = found + ((off - (uintptr_t)found) & (PRS_HUGE - 1));
        }
    }
    return mmap(place, len, prot, flags, fd, (off_t)off);
}

void *prs_os_map(int fd, uint64_t off, size_t len, prs_access access)
{
    int prot = access == PRS_WRITABLE ? PROT_READ | PROT_WRITE : PROT_READ;
    return no_dump(map_congruent(fd, off, len, prot, MAP_SHARED | MAP_NORESERVE), len);
}

/* Replace the mapping at `at` by a read-only mapping of the file in one step. */
int prs_os_map_fixed(void *at, int fd, uint64_t off, size_t len)
{
    void *got = mmap(at, len, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)off);
    /* unreached by tests (failing call) */
    return got == MAP_FAILED ? -errno : (no_dump(got, len), 0);
}

int prs_os_map_zero_fixed(void *at, size_t len)
{
    void *got = mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    /* unreached by tests (failing call) */
    return got == MAP_FAILED ? -errno : 0;
}

/* Do the same read-only, so that the mapping counts against no memory limit. */
int prs_os_map_nothing_fixed(void *at, size_t len)
{
    void *got = mmap(at, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return got == MAP_FAILED ? -errno : 0;
}

/* Each get() makes and drops such a mapping, so caching the address of the last mapping that needed a search saves
 * system calls. */
void *prs_os_map_private(int fd, uint64_t off, size_t len)
{
    static prs_atomic_u64 last;
    int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_NORESERVE;
    uint64_t place = prs_load_relaxed(&last);
    if (len >= PRS_HUGE && place) {
        place = (place & ~(PRS_HUGE - 1)) + (off & (PRS_HUGE - 1));
        void *at = mmap((void *)(uintptr_t)place, len, prot, flags, fd, (off_t)off);
        /* unreached by tests (no injected fault): mmap of a private copy */
        /* unreached by tests (no test): the address of the last mapping is in use */
        if (at == MAP_FAILED || (((uintptr_t)at ^ off) & (PRS_HUGE - 1)) == 0)
            return no_dump(at, len);
        munmap(at, len); /* another mapping uses the address */
    }
    void *at = no_dump(map_congruent(fd, off, len, prot, flags), len);
    /* unreached by tests (no injected fault): mmap of a private copy */
    if (at && len >= PRS_HUGE)
        prs_store_relaxed(&last, (uintptr_t)at);
    return at;
}

/* Map private zero pages, which the kernel backs at the first access. */
void *prs_os_reserve(size_t len)
{
    void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    /* unreached by tests (failing call) */
    return at == MAP_FAILED ? NULL : at;
}

/* Return whether `len` bytes of address space are left. The test mapping is PROT_NONE, because writable memory counts
 * against other limits, too. */
bool prs_os_room(size_t len)
{
    void *at = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return false;
    munmap(at, len);
    return true;
}

void *prs_os_memory(size_t len)
{
    return no_dump(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), len);
}

void prs_os_unmap(void *at, size_t len)
{
    if (at)
        munmap(at, len);
}

/* Back and map the pages of a shared mapping, or return an error, so that a missing page does not raise SIGBUS
 * later. */
int prs_os_populate(void *at, size_t len, int fd, uint64_t off)
{
    while (madvise(at, len, MADV_POPULATE_WRITE) < 0) {
        /* unreached by tests (no injected fault, 2 branches): madvise interrupted */
        if (errno == EINTR || errno == EAGAIN)
            continue;
        /* unreached by tests (no test): the file system is full when a table grows */
        if (errno == EFAULT)
            return -ENOSPC; /* the page fault failed because the file system is full */
        /* unreached by tests (other kernel): before Linux 5.14 */
        if (errno != EINVAL)
            return -errno;
        /* Before Linux 5.14, allocate the pages through the file, then touch them. */
        /* unreached by tests (other kernel, 2 branches): before Linux 5.14 */
        if (off + len > prs_file_limit())
            return -EFBIG;
        /* unreached by tests (other kernel, 2 branches): before Linux 5.14 */
        while (fallocate(fd, 0, (off_t)off, (off_t)len) < 0)
            /* unreached by tests (other kernel, 2 branches): before Linux 5.14 */
            if (errno != EINTR)
                return -errno;
        /* unreached by tests (other kernel, 2 branches): before Linux 5.14 */
        for (size_t i = 0; i < len; i += PRS_PAGE)
            prs_fetch_or_relaxed((_Atomic(uint8_t) *)at + i, 0);
        return 0;
    }
    return 0;
}

/* ---- OFD locks --------------------------------------------------------------------------------- */

static struct flock byte_lock(uint64_t byte, short type)
{
    struct flock lk;
    memset(&lk, 0, sizeof lk);
    lk.l_type = type;
    lk.l_whence = SEEK_SET;
    lk.l_start = (off_t)byte;
    lk.l_len = 1;
    return lk;
}

/* Lock a byte without waiting. Return -EAGAIN or -EACCES if another open file description holds the lock. */
static int set_lock(int fd, uint64_t byte, short type)
{
    struct flock lk = byte_lock(byte, type);
    while (fcntl(fd, F_OFD_SETLK, &lk) < 0)
        /* unreached by tests (no injected fault): fcntl interrupted */
        if (errno != EINTR)
            return -errno;
    return 0;
}

int prs_os_lock_byte(int fd, uint64_t byte)
{
    return set_lock(fd, byte, F_WRLCK);
}

int prs_os_lock_file_shared(int fd)
{
    return set_lock(fd, 0, F_RDLCK);
}

int prs_os_lock_file_exclusive(int fd)
{
    return set_lock(fd, 0, F_WRLCK);
}

void prs_os_unlock_byte(int fd, uint64_t byte)
{
    struct flock lk = byte_lock(byte, F_UNLCK);
    (void)fcntl(fd, F_OFD_SETLK, &lk);
}

/* Return 1 if another open file description holds the lock, 0 if it is free, or -errno. */
int prs_os_byte_held(int fd, uint64_t byte)
{
    struct flock lk = byte_lock(byte, F_WRLCK);
    /* unreached by tests (failing call) */
    if (fcntl(fd, F_OFD_GETLK, &lk) < 0)
        return -errno;
    return lk.l_type != F_UNLCK;
}

/* ---- processes ------------------------------------------------------------------------------------ */

/* Return field 22 of /proc/<pid>/stat; the name in field 2 may contain any character, so we count fields from its last
 * parenthesis. The value is in clock ticks since boot in the reader's time namespace, so it can distinguish processes
 * of our own namespace, but proves nothing. */
uint64_t prs_start_time(int32_t pid)
{
    char path[48], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = prs_above_standard(open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *at = strrchr(text, ')');
    /* unreached by tests (other kernel): /proc in an unknown format */
    for (int field = 2; at && field < 22; field++) {
        at = strchr(at, ' ');
        /* unreached by tests (other kernel): /proc in an unknown format */
        at = at ? at + 1 : NULL;
    }
    /* unreached by tests (other kernel): /proc in an unknown format */
    return at ? strtoull(at, NULL, 10) : 0;
}

/* Return whether our pid namespace has no such process, or only one that ended and was not waited for.  ESRCH proves
 * the former; EPERM means that the process exists.  A pidfd proves the latter: it becomes readable when all threads of
 * the process have ended. */
bool prs_os_process_gone(int32_t pid)
{
    if (pid <= 0)
        return false;
    if (kill(pid, 0) < 0 && errno == ESRCH)
        return true;
    int fd = prs_above_standard((int)syscall(SYS_pidfd_open, pid, 0));
    /* unreached by tests (other kernel): no pidfds */
    bool ended = fd >= 0 && prs_os_await_end(fd, 0);
    prs_os_close(fd);
    return ended;
}

/* Map a page that no code touches. The mapping keeps the open file description and its locks as long as this address
 * space exists. Closing descriptors does not remove the mapping; exit and exec do. */
void *prs_os_anchor(int fd)
{
    void *at = mmap(NULL, PRS_PAGE, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    return no_dump(at, PRS_PAGE);
}

int prs_os_keep_from_children(void *anchor)
{
    /* unreached by tests (no injected fault): madvise refused */
    return madvise(anchor, PRS_PAGE, MADV_DONTFORK) < 0 ? -errno : 0;
}

int prs_os_pipe(int fd[2])
{
    if (pipe2(fd, O_CLOEXEC) < 0)
        return -errno;
    for (int i = 0; i < 2; i++)
        if ((fd[i] = prs_above_standard(fd[i])) < 0) {
            int err = errno;
            prs_os_close(fd[!i]);
            return -err;
        }
    return 0;
}

/* Wait until no process has the other end of a pipe open; return false after `timeout`. No process writes to this
 * pipe. */
bool prs_os_await_end(int fd, int64_t timeout)
{
    struct pollfd p = {fd, POLLIN, 0};
    for (int64_t deadline = prs_now() + timeout;;) {
        int64_t left = deadline - prs_now();
        int rc = poll(&p, 1, left > 0 ? (int)((left + PRS_MS - 1) / PRS_MS) : 0);
        if (rc > 0)
            return true;
        /* unreached by tests (no injected fault, 3 branches): poll interrupted, or timed out */
        if (rc == 0 || errno != EINTR || left <= 0)
            return false;
    }
}

uint64_t prs_os_pid_ns(void)
{
    struct stat st;
    /* unreached by tests (other kernel): no /proc */
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}
