/*
 * pages.h - a bitmap with one bit per 4 KiB page.
 *
 * Purpose    Record which pages of the data area the kernel holds ("backed", in shared memory, one
 *            bitmap for all processes), and which of them have page table entries in this process
 *            ("mapped", private).
 * Guarantee  The shared part is an array of 64-bit words and nothing else, no pointer and no length:
 *            the caller says how many pages there are. Every function clips its range to that number,
 *            so a wild page number from shared memory touches nothing. Words are atomic; a range that
 *            spans several is not. Setting or clearing twice is harmless.
 *
 * Both bitmaps affect speed, never safety: a wrong bit makes a fill slower or makes it fail, but loses
 * no bytes (fill.h says how).
 */
#ifndef PRS_PAGES_H
#define PRS_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "atomic.h"

#define PRS_PAGE_SHIFT 12
#define PRS_PAGE ((uint64_t)1 << PRS_PAGE_SHIFT)

/* A view of a bitmap. Private to the process, passed by value. */
typedef struct prs_pages {
    prs_atomic_u64 *words;
    uint64_t count; /* pages, not words */
} prs_pages;

/* Return the bytes, a multiple of 8, that a bitmap of `count` pages takes; zero-filled is all clear. */
static inline uint64_t prs_pages_bytes(uint64_t count)
{
    return (count / 64 + (count % 64 != 0)) * 8;
}

/* `memory` is aligned to 8 and has prs_pages_bytes(count) bytes. */
static inline prs_pages prs_pages_at(void *memory, uint64_t count)
{
    prs_pages p = {(prs_atomic_u64 *)memory, count};
    return p;
}

static inline bool prs_pages_test(prs_pages p, uint64_t page)
{
    /* unreached: impossible: callers stay within the bitmap */
    return page < p.count && (prs_load_acquire(&p.words[page / 64]) >> (page % 64) & 1) != 0;
}

/* Both return how many bits changed, so that callers racing for the same page count it once. */
uint64_t prs_pages_set(prs_pages p, uint64_t first, uint64_t n);
uint64_t prs_pages_clear(prs_pages p, uint64_t first, uint64_t n);

/* Return the number of set bits among the `n` pages from `first`. */
uint64_t prs_pages_count(prs_pages p, uint64_t first, uint64_t n);

/* Return the first set (clear) page in [first, end), or the clipped end when there is none. */
uint64_t prs_pages_next_set(prs_pages p, uint64_t first, uint64_t end);
uint64_t prs_pages_next_clear(prs_pages p, uint64_t first, uint64_t end);

/* Return whether all `n` pages exist and are set; true for n = 0. */
bool prs_pages_all(prs_pages p, uint64_t first, uint64_t n);

/* First page and end of the pages that contain `n` bytes at byte `off`, partial ones included. */
static inline uint64_t prs_pages_first(uint64_t off)
{
    return off >> PRS_PAGE_SHIFT;
}

static inline uint64_t prs_pages_end(uint64_t off, uint64_t n)
{
    return n == 0 ? off >> PRS_PAGE_SHIFT : ((off + n - 1) >> PRS_PAGE_SHIFT) + 1;
}

#endif /* PRS_PAGES_H */
