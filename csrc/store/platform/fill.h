/*
 * fill.h - bytes into pages of a shared file, by the way that suits the state of the pages.
 *
 *   mapped    page table entries exist here    copy into the mapping            (copy.h)
 *   backed    the kernel holds the page, but   MADV_POPULATE_READ + copy, in pieces, on all threads: maps
 *             this process never touched it    16 pages per fault, writable ones, as shared memory tracks no dirt
 *   unbacked  never used, or given back        whole blocks of 2 MiB: a huge page each, where the kernel
 *                                              gives them quickly (huge.h). Else, and for the rest: the
 *                                              caller writes by pwrite from the front, helpers populate
 *                                              and copy pieces from the back, until they meet
 *
 * Every put of the same place is thus faster than the one before: from the third on all pages are mapped.
 *
 * Guarantee  A full file system is an error (-ENOSPC), never SIGBUS, as long as no page said to be mapped
 *            or backed is punched out meanwhile: that is, as long as the caller owns the range. Threads
 *            are joined before return. Limits of memory cgroups are not seen here: see headroom.h.
 */
#ifndef PRS_FILL_H
#define PRS_FILL_H

#include <stddef.h>
#include <stdint.h>

#include "pages.h"

enum prs_page_state { PRS_PAGES_MAPPED, PRS_PAGES_BACKED, PRS_PAGES_UNBACKED };

/*
 * Write `n` bytes from `src` to the file at `off`, all of whose pages are in `state`. `map` is where this
 * process has byte `off` mapped writable and shared, or NULL (then pwrite does it all). `max_threads` as
 * in copy.h; 1 means no helpers, 0 as many as pay.
 * Returns 0 or -errno (-ENOSPC, -EINVAL where map and off lie differently on their pages). After success
 * the pages of [*mapped_from, n) are mapped here and all pages are backed; `mapped_from` may be NULL.
 * After a failure any part may have been written and backed.
 */
int prs_fill(int fd, uint64_t off, void *map, const void *src, size_t n, enum prs_page_state state,
             unsigned max_threads, size_t *mapped_from);

/*
 * Make the pages under `n` mapped bytes backed and mapped, contents kept (new pages read as zero): for
 * windows handed out for filling and for tables. Returns 0 or -errno as prs_fill.
 */
int prs_populate(int fd, uint64_t off, void *map, size_t n, enum prs_page_state state, unsigned max_threads);

/* ---- the same for a range of mixed states, which two bitmaps remember ---------------------------- */

/* The data area as one process sees it. Private; copies are fine. */
typedef struct prs_area {
    int fd;           /* open for writing */
    uint64_t base;    /* where page 0 of the bitmaps lies in the file, a multiple of the page size */
    char *map;        /* writable shared mapping of the area in this process, or NULL */
    prs_pages backed; /* shared by all processes */
    prs_pages mapped; /* of this process alone; words NULL when map is */
} prs_area;

/* Bytes that a fill of this range would take from the system: pages not backed yet, whole. */
uint64_t prs_area_missing(const prs_area *area, uint64_t off, size_t n);

/*
 * Fill [off, off + n) of the area and mark its pages. `*grown` (may be NULL) gets the bytes newly backed,
 * each page counted for one process only. On failure the whole pages that were unbacked go back to the
 * system and stay unmarked.
 */
int prs_area_fill(const prs_area *area, uint64_t off, const void *src, size_t n, unsigned max_threads, uint64_t *grown);

/*
 * Back and map [off, off + n) without writing to it, then as prs_area_fill. Needs area->map. The range may hold
 * bytes of others: a failure leaves what was backed, unmarked; who owns it all may punch it.
 */
int prs_area_populate(const prs_area *area, uint64_t off, size_t n, unsigned max_threads, uint64_t *grown);

/*
 * Give the whole pages inside [off, off + n) back to the kernel; the caller owns the range, nobody reads it.
 * Returns 0 or -errno (-EOPNOTSUPP where the file system cannot); `*shrunk` (may be NULL) gets the bytes unmarked,
 * also on failure: pages still there but unmarked are merely written the slower way next time.
 */
int prs_area_punch(const prs_area *area, uint64_t off, size_t n, uint64_t *shrunk);

#endif /* PRS_FILL_H */
