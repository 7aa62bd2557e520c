/*
 * copy.h - copy kernels: one thread, several threads, into a file, out of a strided array.
 *
 * This code does not depend on stores or bitmaps; fill.h explains which kernel suits which pages.
 * All functions may be called without a lock and from any thread, also while other threads fork.
 */
#ifndef PRS_COPY_H
#define PRS_COPY_H

#include <stddef.h>
#include <stdint.h>

/* The maximum number of threads of one call, including the caller's. */
#define PRS_COPY_MAX_THREADS 8u

/* From this size on, copies use non-temporal stores, which bypass the cache. Measured, see
 * docs/internals/copying.md. */
#define PRS_COPY_NT_MIN ((size_t)2 << 20)

/* From this size on, a second thread saves more time than its creation costs. Measured, see
 * docs/internals/copying.md. */
#define PRS_COPY_PARALLEL_MIN ((size_t)16 << 20)

/* Return the number of CPUs this process may run on (its affinity mask), at least 1. */
unsigned prs_cpu_count(void);

/* Copy by the fastest kernel for `n`; non-temporal stores are complete (sfence) on return. */
void prs_copy(void *dst, const void *src, size_t n);

/* Do the same with non-temporal stores for any `n`. Used for pieces of a big copy. */
void prs_copy_nt(void *dst, const void *src, size_t n);

/*
 * Do the same on up to `max_threads` threads (0: as many as size and idle CPUs justify). The helper threads block all
 * signals and are joined before this call returns. If some threads cannot be created, the others copy everything; if
 * none can, the caller does.
 */
void prs_copy_parallel(void *dst, const void *src, size_t n, unsigned max_threads);

/* Return the file size limit of this process (RLIMIT_FSIZE). A write beyond the limit raises SIGXFSZ, which kills a
 * program that does not handle this signal, so check the limit first. */
uint64_t prs_file_limit(void);

/*
 * Write `n` bytes at `offset`, continuing after short writes and signals. Return 0 or -errno: -ENOSPC if the file
 * system is full, -EFBIG beyond the file size limit. The call never causes SIGXFSZ, or SIGBUS on pages of the file, and
 * preserves errno. `written` (may be NULL) gets the number of bytes written, also on failure.
 */
int prs_copy_to_file(int fd, uint64_t offset, const void *src, size_t n, size_t *written);

/* numpy's own limit is 64. */
#define PRS_STRIDED_MAX_DIMS 64

/*
 * Gather a strided array into contiguous C order at `dst`. Strides are in bytes and may be negative or
 * zero; `src` is the address of element (0, ..., 0). No alignment is assumed. Returns 0, or -EINVAL if
 * ndim is outside 0..64, an extent is negative or the size overflows; nothing is copied then.
 */
int prs_copy_strided(void *dst, const void *src, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides,
                     size_t itemsize);

/* Do the same on several threads, like prs_copy_parallel. */
int prs_copy_strided_parallel(void *dst, const void *src, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides,
                              size_t itemsize, unsigned max_threads);

#endif /* PRS_COPY_H */
