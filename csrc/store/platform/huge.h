/*
 * huge.h - backing whole blocks of a shared file that have no page yet, each by one huge page.
 *
 * Guarantee  As in fill.h, except that a full file system or a reached limit is not an error: the block is left
 *            unbacked. No byte beyond the given blocks is backed. System switches are honoured: shmem_enabled "deny",
 *            PR_SET_THP_DISABLE.
 */
#ifndef PRS_HUGE_H
#define PRS_HUGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRS_HUGE ((uint64_t)2 << 20)

/*
 * Find the whole blocks in [off, off + n) of a file whose byte `off` is mapped at `map`. Returns true, and sets their
 * start and their size in bytes. Returns false if there are none, if mapping and file differ in their offset within a
 * huge page, or for a while after the kernel was slow to find huge pages (huge.c).
 */
bool prs_huge_blocks(uint64_t off, const char *map, size_t n, size_t *skip, size_t *bytes);

/*
 * Back and map the `n` bytes at `map`, which must be whole blocks, and copy `src` there (if it is NULL, contents stay
 * and new pages read as zero). Returns the number of bytes from the front that are done, a multiple of PRS_HUGE; the
 * rest may be partly backed, and the caller must fill it by another method. `max_threads` as in copy.h.
 */
size_t prs_huge_fill(char *map, const char *src, size_t n, unsigned max_threads);

/* This is for tests, which must not depend on how fast this machine finds huge pages. */
extern struct prs_huge_limits {
    uint64_t cpu, real; /* ns; a block that takes longer ends the attempt */
} prs_huge_limits_;
void prs_huge_forget_(void); /* reset the history of attempts */

#endif /* PRS_HUGE_H */
