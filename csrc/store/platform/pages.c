/*
 * pages.c - range operations on a bitmap of pages; see pages.h.
 *
 * Algorithm  Bits are handled word by word under a mask. A write first checks whether any bit would change, so
 *            that marking pages that are already marked (the warm case) does not take the cache line from other
 *            CPUs.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "pages.h"

/* Return a mask of the bits of word `w` that are in [first, end). */
static inline uint64_t mask_of(uint64_t w, uint64_t first, uint64_t end)
{
    uint64_t mask = ~(uint64_t)0;
    if (w == first / 64)
        mask &= ~(uint64_t)0 << (first % 64);
    if (w == end / 64) /* true only if end % 64 != 0 */
        mask &= ((uint64_t)1 << (end % 64)) - 1;
    return mask;
}

/* Return the end of the `n` pages from `first`, clipped to the bitmap; return `first` if no page is left. */
static inline uint64_t clip(prs_pages p, uint64_t first, uint64_t n)
{
    if (first >= p.count)
        return first;
    return n > p.count - first ? p.count : first + n;
}

uint64_t prs_pages_set(prs_pages p, uint64_t first, uint64_t n)
{
    uint64_t end = clip(p, first, n), changed = 0;
    for (uint64_t w = first / 64; w * 64 < end && first < end; w++) {
        uint64_t mask = mask_of(w, first, end);
        if ((prs_load_relaxed(&p.words[w]) & mask) != mask) {
            uint64_t before = prs_fetch_or_acqrel(&p.words[w], mask);
            changed += (uint64_t)__builtin_popcountll(mask & ~before);
        }
    }
    return changed;
}

uint64_t prs_pages_clear(prs_pages p, uint64_t first, uint64_t n)
{
    uint64_t end = clip(p, first, n), changed = 0;
    for (uint64_t w = first / 64; w * 64 < end && first < end; w++) {
        uint64_t mask = mask_of(w, first, end);
        if ((prs_load_relaxed(&p.words[w]) & mask) != 0) {
            uint64_t before = prs_fetch_and_acqrel(&p.words[w], ~mask);
            changed += (uint64_t)__builtin_popcountll(mask & before);
        }
    }
    return changed;
}

uint64_t prs_pages_count(prs_pages p, uint64_t first, uint64_t n)
{
    uint64_t end = clip(p, first, n), count = 0;
    for (uint64_t w = first / 64; w * 64 < end && first < end; w++)
        count += (uint64_t)__builtin_popcountll(prs_load_acquire(&p.words[w]) & mask_of(w, first, end));
    return count;
}

static uint64_t next(prs_pages p, uint64_t first, uint64_t end, uint64_t flip)
{
    if (end > p.count)
        end = p.count;
    if (first >= end)
        return end;
    for (uint64_t w = first / 64; w * 64 < end; w++) {
        uint64_t found = (prs_load_acquire(&p.words[w]) ^ flip) & mask_of(w, first, end);
        if (found)
            return w * 64 + (uint64_t)__builtin_ctzll(found);
    }
    return end;
}

uint64_t prs_pages_next_set(prs_pages p, uint64_t first, uint64_t end)
{
    return next(p, first, end, 0);
}

uint64_t prs_pages_next_clear(prs_pages p, uint64_t first, uint64_t end)
{
    return next(p, first, end, ~(uint64_t)0);
}

bool prs_pages_all(prs_pages p, uint64_t first, uint64_t n)
{
    if (n == 0)
        return true;
    if (first >= p.count || n > p.count - first)
        return false;
    return next(p, first, first + n, ~(uint64_t)0) == first + n;
}
