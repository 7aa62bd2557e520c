/* os.h - every system call the engine makes.
 *
 * Functions that return int return 0 (or a descriptor) or -errno, unless they take a prs_error.
 */
#ifndef PRS_OS_H
#define PRS_OS_H

#include "errors.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PRS_MS 1000000ll
#define PRS_SECOND 1000000000ll

/* The identity of a file.  Before we use a stored descriptor, we compare its file with this identity. */
typedef struct prs_file {
    dev_t dev;
    ino_t ino;
} prs_file;

/* How a descriptor or a mapping may be used. */
typedef enum { PRS_READ_ONLY, PRS_WRITABLE } prs_access;

int64_t prs_now(void);
uint64_t prs_uptime(void); /* seconds of CLOCK_MONOTONIC, cheaply */
int prs_os_memfd(uint64_t id, prs_error *error);
int prs_os_create_file(const char *path, prs_error *error);
int prs_os_publish_file(int fd, const char *path, prs_error *error);
int prs_os_open_file(const char *path, int *fd, prs_error *error);
int prs_os_reopen(int fd, prs_access access);
int prs_os_reopen_of(int32_t pid, int fd, prs_access access);
int prs_os_reopen_mapping(const void *at, prs_access access, const prs_file *file);
int prs_os_size(int fd, uint64_t size);
int prs_os_seal(int fd);
bool prs_os_same(int fd, const prs_file *file);
int prs_os_inspect(int fd, prs_file *file, uint64_t *size, prs_error *error);
void *prs_os_map(int fd, uint64_t off, size_t len, prs_access access);
int prs_os_map_fixed(void *at, int fd, uint64_t off, size_t len);
int prs_os_map_zero_fixed(void *at, size_t len);
int prs_os_map_nothing_fixed(void *at, size_t len);
void *prs_os_map_private(int fd, uint64_t off, size_t len);
/* Call `each` for every name in a directory except . and .., until it returns non-zero. */
int prs_os_each_name(int fd, int (*each)(void *, const char *), void *arg);
void *prs_os_reserve(size_t len);
bool prs_os_room(size_t len);
void *prs_os_memory(size_t len); /* as above, but excluded from core dumps */
void prs_os_unmap(void *at, size_t len);
int prs_os_populate(void *at, size_t len, int fd, uint64_t off);
int prs_os_pread(int fd, void *buffer, size_t n, uint64_t off);
uint64_t prs_os_blocks(int fd);
int prs_os_open_directory(int at, const char *path, prs_error *error);
bool prs_os_in_memory(int fd);
bool prs_os_has_room(int fd, uint64_t bytes);
int prs_os_make_directory(int at, const char *name);
int prs_os_open_at(int at, const char *name, int flags); /* O_RDONLY, O_RDWR, O_CREAT, O_EXCL */
int prs_os_remove_file(int at, const char *name);
int prs_os_remove_directory(int at, const char *name);
uint64_t prs_os_length(int fd);
void prs_os_protect(int fd); /* make the file read-only for later calls of open() */
int prs_os_identify(int fd, prs_file *file);
/* Lock byte 0 without waiting. */
int prs_os_lock_file_shared(int fd);
int prs_os_lock_file_exclusive(int fd);
int prs_os_lock_byte(int fd, uint64_t byte);
void prs_os_unlock_byte(int fd, uint64_t byte);
int prs_os_byte_held(int fd, uint64_t byte);
bool prs_os_process_gone(int32_t pid);
void *prs_os_anchor(int fd);
int prs_os_keep_from_children(void *anchor);
int prs_os_pipe(int fd[2]);
bool prs_os_await_end(int fd, int64_t timeout);
uint64_t prs_start_time(int32_t pid); /* in clock ticks since boot, 0 if there is no such process; in prs.h, too */
uint64_t prs_os_pid_ns(void);
int prs_os_random(void *buffer, size_t n);
void prs_os_close(int fd);
void prs_os_sleep(int64_t ns);

#endif
