/*
 * fill.h - writing bytes to pages of a shared file, by the method that suits their state.
 *
 *   mapped    This process has page table entries for the page. We copy into the mapping (copy.h).
 *   backed    The kernel has allocated the page, but this process has not touched it. All threads map pieces by
 *             MADV_POPULATE_READ and copy them. Each fault maps 16 pages writable, because the kernel does not track
 *             dirty pages of shared memory.
 *   unbacked  The page was never used, or was punched. If the kernel allocates huge pages quickly (huge.h), each whole
 *             block of 2 MiB gets one. For the other bytes the caller uses pwrite from the front, and helpers populate
 *             and copy pieces from the back, until they meet.
 *
 * So the second put to the same pages is faster than the first, and the third is even faster, because all pages are
 * mapped by then.
 *
 * Guarantee  A full file system causes an error (-ENOSPC), never SIGBUS, as long as no process punches a page that is
 *            marked as mapped or backed. This holds while the caller owns the range. Threads are joined before a
 *            function returns. This code does not check the limits of memory cgroups: see headroom.h.
 */
#ifndef PRS_FILL_H
#define PRS_FILL_H

#include <stddef.h>
#include <stdint.h>

#include "pages.h"

enum prs_page_state { PRS_PAGES_MAPPED, PRS_PAGES_BACKED, PRS_PAGES_UNBACKED };

/*
 * Write `n` bytes from `src` to the file at `off`, all of whose pages are in `state`. `map` is the address at which
 * this process has byte `off` mapped writable and shared, or NULL (pwrite then writes everything). `max_threads` is as
 * in copy.h: 1 means no helpers, 0 means as many as make the call faster. Returns 0 or -errno (-ENOSPC; -EINVAL if
 * `map` and `off` differ in their offset within a page). After success the pages of [*mapped_from, n) are mapped here
 * and all pages are backed; `mapped_from` may be NULL. After a failure, any part of the range may have been written and
 * backed.
 */
int prs_fill(int fd, uint64_t off, void *map, const void *src, size_t n, enum prs_page_state state,
             unsigned max_threads, size_t *mapped_from);

/*
 * Back and map the pages of `n` mapped bytes and keep their contents (new pages read as zero). Used for
 * windows and tables. Returns 0 or -errno as prs_fill.
 */
int prs_populate(int fd, uint64_t off, void *map, size_t n, enum prs_page_state state, unsigned max_threads);

/* ---- ranges of mixed states, tracked by two bitmaps ---------------------------------------------- */

/* The data area as one process sees it. It is private to the process and may be copied. */
typedef struct prs_area {
    int fd;           /* open for writing */
    uint64_t base;    /* file offset of page 0 of the bitmaps, a multiple of the page size */
    char *map;        /* writable shared mapping of the area in this process, or NULL */
    prs_pages backed; /* shared with all processes */
    prs_pages mapped; /* private to this process; `words` is NULL when `map` is */
} prs_area;

/* Return the number of bytes that a fill of this range would allocate, in whole pages that are not backed yet. */
uint64_t prs_area_missing(const prs_area *area, uint64_t off, size_t n);

/*
 * Fill [off, off + n) of the area and mark its pages. `*grown` (may be NULL) gets the number of newly
 * backed bytes; if several processes back a page, only one counts it. On failure, whole pages that
 * were unbacked before are punched and stay unmarked.
 */
int prs_area_fill(const prs_area *area, uint64_t off, const void *src, size_t n, unsigned max_threads, uint64_t *grown);

/*
 * Back and map [off, off + n) without writing to it; otherwise like prs_area_fill. This needs area->map. Other
 * processes may own bytes in the range, so a failure leaves new pages backed but unmarked; a caller that owns the whole
 * range may punch them.
 */
int prs_area_populate(const prs_area *area, uint64_t off, size_t n, unsigned max_threads, uint64_t *grown);

/*
 * Punch the whole pages in [off, off + n), which the caller must own and no process may read. Returns 0 or -errno
 * (-EOPNOTSUPP if the file system cannot); `*shrunk` (may be NULL) gets the number of bytes unmarked, also on failure.
 * If a page is unmarked but still backed, the next write to this page is slower, but correct.
 */
int prs_area_punch(const prs_area *area, uint64_t off, size_t n, uint64_t *shrunk);

#endif /* PRS_FILL_H */
