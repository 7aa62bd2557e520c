/*
 * one_address.c - lets the handles of one store in a process share the mapping of its tables.
 *
 * Purpose    ThreadSanitizer identifies memory by its virtual address, not by its physical page.  It does not see
 *            that one word (the store lock, a slot's word) orders accesses through two mappings.  So it misses
 *            races between handles.  It also reports a false race if one thread of a handle frees memory, another
 *            handle uses this memory, and a second thread of the first handle allocates it again.
 * Algorithm  Only in programs built for ThreadSanitizer, the linker replaces prs_os_map() and related functions by
 *            those in this file (--wrap).  All handles use the first handle's mapping of a store's tables, with a
 *            reference count.
 * Guarantee  Each handle maps the data at a separate address.  Mappings that cannot be shared are made as usual.
 */
#include "store.h"
#include <sys/mman.h>
#include <sys/stat.h>

enum { SHARED = 64 };

static struct {
    dev_t dev;
    ino_t ino;
    void *at;
    size_t len;
    uint32_t handles;
} shared[SHARED];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A handle that is torn down while other threads are in a call needs its own mapping. */
static bool apart;

void tables_apart(bool yes); /* engine.h */

void tables_apart(bool yes)
{
    apart = yes;
}

static void enter(void)
{
    pthread_mutex_lock(&lock);
}

static void leave(void)
{
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(enter, leave, leave);
}

static int find(const void *at)
{
    for (int i = 0; i < SHARED; i++)
        if (shared[i].handles && shared[i].at == at)
            return i;
    return -1;
}

/* Use the system call directly, because ThreadSanitizer treats mmap() as a write to the whole mapping. */
static int protect(void *at, size_t len, int prot, int fd, uint64_t off)
{
    return syscall(SYS_mmap, at, len, prot, MAP_SHARED | MAP_FIXED, fd, (off_t)off) == -1 ? -errno : 0;
}

void *__real_prs_os_map(int fd, uint64_t off, size_t len, prs_access access);
void *__wrap_prs_os_map(int fd, uint64_t off, size_t len, prs_access access);
int __real_prs_os_map_fixed(void *at, int fd, uint64_t off, size_t len);
int __wrap_prs_os_map_fixed(void *at, int fd, uint64_t off, size_t len);
int __real_prs_os_map_zero_fixed(void *at, size_t len);
int __wrap_prs_os_map_zero_fixed(void *at, size_t len);
void __real_prs_os_unmap(void *at, size_t len);
void __wrap_prs_os_unmap(void *at, size_t len);

/* Share a writable mapping of the beginning of a file: only a store's tables are mapped in this way. */
void *__wrap_prs_os_map(int fd, uint64_t off, size_t len, prs_access access)
{
    struct stat st;
    if (apart || off != 0 || access != PRS_WRITABLE || fstat(fd, &st) != 0)
        return __real_prs_os_map(fd, off, len, access);
    enter();
    void *at = NULL;
    int room = -1;
    for (int i = 0; i < SHARED && !at; i++) {
        if (!shared[i].handles) {
            room = i;
        } else if (shared[i].dev == st.st_dev && shared[i].ino == st.st_ino && shared[i].len == len) {
            shared[i].handles++;
            at = shared[i].at;
            protect(at, PRS_PAGE, PROT_READ | PROT_WRITE, fd, 0); /* a new handle writes to it once */
        }
    }
    if (!at) {
        at = __real_prs_os_map(fd, off, len, access);
        if (at && room >= 0) {
            shared[room].dev = st.st_dev;
            shared[room].ino = st.st_ino;
            shared[room].at = at;
            shared[room].len = len;
            shared[room].handles = 1;
        }
    }
    leave();
    return at;
}

/* Make the first page read-only, but not while another handle may still write to it. */
int __wrap_prs_os_map_fixed(void *at, int fd, uint64_t off, size_t len)
{
    enter();
    int i = find(at);
    int rc = i < 0                   ? __real_prs_os_map_fixed(at, fd, off, len)
             : shared[i].handles > 1 ? 0
                                     : protect(at, len, PROT_READ, fd, off);
    leave();
    return rc;
}

/* When a handle is torn down, the others continue to use the shared mapping. */
int __wrap_prs_os_map_zero_fixed(void *at, size_t len)
{
    int rc = 0;
    enter();
    int i = find(at);
    if (i < 0 || shared[i].handles == 1)
        rc = __real_prs_os_map_zero_fixed(at, len);
    if (i >= 0 && shared[i].handles == 1)
        shared[i].ino = 0; /* new handles must not share this mapping */
    leave();
    return rc;
}

void __wrap_prs_os_unmap(void *at, size_t len)
{
    enter();
    int i = at ? find(at) : -1;
    if (i < 0 || --shared[i].handles == 0)
        __real_prs_os_unmap(at, len);
    leave();
}
