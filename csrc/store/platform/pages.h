/*
 * pages.h - a bitmap with one bit per 4 KiB page.
 *
 * Purpose    Record which pages of the data area the kernel has allocated ("backed"; one bitmap in
 *            shared memory for all processes), and which of them have page table entries in this
 *            process ("mapped"; private).
 * Guarantee  The shared part is only an array of 64-bit words, without pointers or a length: the caller
 *            passes the number of pages. Every function clips its range to that number, so an invalid
 *            page number from shared memory has no effect. Accesses to one word are atomic; an
 *            operation on a range of several words is not. Setting or clearing a bit twice has no
 *            further effect.
 *
 * Both bitmaps affect speed, never safety: a wrong bit makes a fill slower or makes it fail, but loses
 * no bytes (fill.h explains why).
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
    uint64_t count; /* number of pages, not of words */
} prs_pages;

/* Return the size in bytes, a multiple of 8, of a bitmap of `count` pages; a zero-filled bitmap has no page set. */
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
    /* unreached by tests (impossible): callers stay within the bitmap */
    return page < p.count && (prs_load_acquire(&p.words[page / 64]) >> (page % 64) & 1) != 0;
}

/* Both return the number of bits that changed. If several threads change the same page, only one of them counts it. */
uint64_t prs_pages_set(prs_pages p, uint64_t first, uint64_t n);
uint64_t prs_pages_clear(prs_pages p, uint64_t first, uint64_t n);

/* Return the number of set bits among the `n` pages from `first`. */
uint64_t prs_pages_count(prs_pages p, uint64_t first, uint64_t n);

/* Return the first set (or clear) page in [first, end), or the clipped end if there is none. */
uint64_t prs_pages_next_set(prs_pages p, uint64_t first, uint64_t end);
uint64_t prs_pages_next_clear(prs_pages p, uint64_t first, uint64_t end);

/* Return whether all `n` pages exist and are set; true for n = 0. */
bool prs_pages_all(prs_pages p, uint64_t first, uint64_t n);

/* The first page, and the end, of the pages that contain the `n` bytes at `off`, including partial pages. */
static inline uint64_t prs_pages_first(uint64_t off)
{
    return off >> PRS_PAGE_SHIFT;
}

static inline uint64_t prs_pages_end(uint64_t off, uint64_t n)
{
    return n == 0 ? off >> PRS_PAGE_SHIFT : ((off + n - 1) >> PRS_PAGE_SHIFT) + 1;
}

#endif /* PRS_PAGES_H */
