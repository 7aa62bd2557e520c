/*
 * huge.h - blocks of a shared file that have no page yet, each backed by one huge page.
 *
 * Guarantee  As fill.h: a full file system or a reached limit is no error here, the block is merely not done. No byte beyond the
 *            blocks given is backed. Switches of the system are honoured: shmem_enabled "deny", PR_SET_THP_DISABLE.
 */
#ifndef PRS_HUGE_H
#define PRS_HUGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRS_HUGE ((uint64_t)2 << 20)

/*
 * The whole blocks in [off, off + n) of a file mapped at `map` (for byte `off`): true, and where they begin and how many
 * bytes they are. False when there are none, when the mapping lies differently on huge pages than the file, or while huge pages are
 * hard to get (huge.c).
 */
bool prs_huge_blocks(uint64_t off, const char *map, size_t n, size_t *skip, size_t *bytes);

/*
 * Back and map `n` bytes at `map`, whole blocks, and copy `src` there (NULL: they read as zero, or what they were). Returns
 * how many bytes from the front are done, a multiple of PRS_HUGE; the rest may be backed in part and is to be done
 * another way. `max_threads` as in copy.h.
 */
size_t prs_huge_fill(char *map, const char *src, size_t n, unsigned max_threads);

/* For tests, which must not depend on how fast this machine finds huge pages. */
extern struct prs_huge_limits {
    uint64_t cpu, real; /* ns; a block that takes longer ends the attempt */
} prs_huge_limits_;
void prs_huge_forget_(void); /* as if no attempt had been made yet */

#endif /* PRS_HUGE_H */
