/* extent.c - two-level segregated fit over the data area.
 *
 * Purpose    Allocate runs of bytes of the data area in constant time, independent of their number.
 * Algorithm  TLSF (Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004):
 *            free extents are in bins by power of two and by 32 steps within each; two bit scans of two
 *            bitmaps find a suitable bin; free neighbours are merged immediately.  Unlike in the paper,
 *            descriptors are stored outside the memory that they describe, so that readers of the data
 *            area cannot see them.  A bin is last in, first out, because the extent freed last is warm.
 *            Small extents are cut from the low end of a free extent, and extents of whole pages from
 *            the high end.
 * Guarantee  Everything here runs under the store lock; if a client dies during a change,
 *            prs_extent_rebuild() recomputes the extents from the slots.
 */
#include "store.h"

static prs_arena *arena_of(const prs_store *s)
{
    return &s->super->arena;
}

#define FL_ALL ((1ull << PRS_FL_COUNT) - 1)

prs_extent *prs_extent_at(const prs_store *s, uint32_t i)
{
    static __thread prs_extent nowhere;
    /* unreached by tests (damaged tables) */
    if (PRS_LIKELY(i < prs_extents_max(s)))
        return &s->extents[i];
    prs_store_relaxed(&s->super->corrupt, 1);
    nowhere = (prs_extent){.prev = PRS_NIL, .next = PRS_NIL, .bin_next = PRS_NIL, .bin_prev = PRS_NIL};
    return &nowhere;
}

/* Compute the bin of an extent of this size: its power of two, and the step (of 32) within that. */
static void bin_of(uint64_t size, uint32_t *fl, uint32_t *sl)
{
    uint64_t units = size / PRS_UNIT;
    if (units < PRS_SL_COUNT) {
        *fl = 0;
        *sl = (uint32_t)units;
        return;
    }
    uint32_t log = 63 - (uint32_t)__builtin_clzll(units);
    *sl = (uint32_t)(units >> (log - PRS_SL_BITS)) ^ PRS_SL_COUNT;
    *fl = log - PRS_SL_BITS + 1;
    /* unreached by tests (impossible) */
    if (PRS_UNLIKELY(*fl >= PRS_FL_COUNT)) /* an extent cannot have this size */
        *fl = PRS_FL_COUNT - 1;
}

bool prs_extent_size_fits(uint64_t size)
{
    return size < (uint64_t)1 << 44;
}

static void bin_push(prs_store *s, uint32_t i)
{
    prs_arena *a = arena_of(s);
    prs_extent *e = prs_extent_at(s, i);
    uint32_t fl, sl;
    bin_of(e->size, &fl, &sl);
    uint32_t head = a->bins[fl][sl];
    e->bin_prev = PRS_NIL;
    e->bin_next = head;
    if (head != PRS_NIL)
        prs_extent_at(s, head)->bin_prev = i;
    a->bins[fl][sl] = i;
    a->sl_bitmap[fl] |= 1u << sl;
    a->fl_bitmap |= 1ull << fl;
}

static void bin_remove(prs_store *s, uint32_t i)
{
    prs_arena *a = arena_of(s);
    prs_extent *e = prs_extent_at(s, i);
    uint32_t fl, sl;
    bin_of(e->size, &fl, &sl);
    if (e->bin_prev != PRS_NIL)
        prs_extent_at(s, e->bin_prev)->bin_next = e->bin_next;
    else
        a->bins[fl][sl] = e->bin_next;
    if (e->bin_next != PRS_NIL)
        prs_extent_at(s, e->bin_next)->bin_prev = e->bin_prev;
    if (a->bins[fl][sl] == PRS_NIL) {
        a->sl_bitmap[fl] &= ~(1u << sl);
        if (!a->sl_bitmap[fl])
            a->fl_bitmap &= ~(1ull << fl);
    }
}

/* Free descriptors are those on the stack of returned descriptors and, after these, those that were
 * never used. A free one always exists: there are at most as many used extents as slots, and at most
 * one more free extent than used ones. */
static uint32_t descriptor_take(prs_store *s)
{
    prs_arena *a = arena_of(s);
    uint32_t i = a->extent_free;
    if (i != PRS_NIL) {
        a->extent_free = prs_extent_at(s, i)->bin_next;
        if (i < prs_extents_max(s))
            return i;
        a->extent_free = PRS_NIL; /* a rebuild finds the rest of the stack */
    }
    if (a->extent_bump >= 2 * prs_slots_published(s) + 8)
        return PRS_NIL;
    return a->extent_bump++;
}

static void descriptor_give(prs_store *s, uint32_t i)
{
    prs_arena *a = arena_of(s);
    prs_extent *e = prs_extent_at(s, i);
    if (a->clock == i)
        a->clock = PRS_NIL;
    e->size = 0;
    e->slot = PRS_NIL;
    e->bin_next = a->extent_free;
    a->extent_free = i;
}

static void arena_clear(prs_arena *a)
{
    prs_store_relaxed(&a->used, 0);
    a->extent_free = PRS_NIL;
    a->extent_first = PRS_NIL;
    a->clock = PRS_NIL;
    a->fl_bitmap = 0;
    memset(a->sl_bitmap, 0, sizeof a->sl_bitmap);
    memset(a->bins, 0xFF, sizeof a->bins);
}

void prs_extent_init(prs_store *s)
{
    prs_arena *a = arena_of(s);
    arena_clear(a);
    a->extent_bump = 1;
    a->extent_first = 0;
    *prs_extent_at(s, 0) = (prs_extent){
        .off = 0, .size = s->capacity, .prev = PRS_NIL, .next = PRS_NIL, .bin_prev = PRS_NIL, .bin_next = PRS_NIL};
    bin_push(s, 0);
}

/* Split extent i, which is in no bin, at `at` bytes. Extent i keeps the low part; return the high part. */
static uint32_t split(prs_store *s, uint32_t i, uint64_t at)
{
    uint32_t j = descriptor_take(s);
    /* unreached by tests (impossible): a free descriptor always exists */
    if (j == PRS_NIL)
        return PRS_NIL;
    prs_extent *low = prs_extent_at(s, i), *high = prs_extent_at(s, j);
    *high = (prs_extent){.off = low->off + at,
                         .size = low->size - at,
                         .prev = i,
                         .next = low->next,
                         .bin_prev = PRS_NIL,
                         .bin_next = PRS_NIL};
    if (low->next != PRS_NIL)
        prs_extent_at(s, low->next)->prev = j;
    low->next = j;
    low->size = at;
    PRS_POINT(extent_split);
    return j;
}

/* Compute where a paged run of `size` bytes at the high end of e would start; return false if it does not fit. */
static bool paged_start(const prs_extent *e, uint64_t size, uint64_t *start)
{
    uint64_t end = (e->off + e->size) & ~(uint64_t)(PRS_PAGE - 1);
    if (end < e->off + size)
        return false;
    *start = end - size;
    return true;
}

static bool fits(const prs_extent *e, uint64_t size, prs_packing packing)
{
    uint64_t start;
    return packing == PRS_PAGED ? paged_start(e, size, &start) : e->size >= size;
}

static uint32_t find(prs_store *s, uint64_t size, prs_packing packing)
{
    prs_arena *a = arena_of(s);
    uint32_t fl, sl;
    /* First try the head of the exact bin, because an extent of the same size that was just freed is warm. */
    bin_of(size, &fl, &sl);
    /* unreached by tests (impossible): bin_of() stays below the last power */
    uint32_t exact = fl < PRS_FL_COUNT ? a->bins[fl][sl] : PRS_NIL;
    if (exact != PRS_NIL && fits(prs_extent_at(s, exact), size, packing))
        return exact;
    /* Then try a good fit: every extent of a higher bin is large enough (even if whole pages need an extra page for
     * alignment). */
    uint64_t want = packing == PRS_PAGED ? size + PRS_PAGE - PRS_UNIT : size;
    bin_of(want, &fl, &sl);
    if (++sl == PRS_SL_COUNT) {
        sl = 0;
        fl++;
    }
    /* unreached by tests (impossible): every size is below the last power */
    if (fl < PRS_FL_COUNT) {
        uint32_t steps = a->sl_bitmap[fl] & (~0u << sl);
        if (!steps) {
            /* unreached by tests (impossible): 40 powers cover every size */
            uint64_t powers = fl + 1 < 64 ? a->fl_bitmap & FL_ALL & (~0ull << (fl + 1)) : 0;
            if (powers) {
                fl = (uint32_t)__builtin_ctzll(powers);
                steps = a->sl_bitmap[fl];
            }
        }
        if (steps) {
            uint32_t head = a->bins[fl][__builtin_ctz(steps)];
            if (fits(prs_extent_at(s, head), size, packing))
                return head;
        }
    }
    /* As a last resort, search the bins that may also have extents that are too small. */
    uint32_t last_fl, last_sl;
    bin_of(want, &last_fl, &last_sl);
    bin_of(size, &fl, &sl);
    /* unreached by tests (impossible): both bins are valid */
    /* unreached by tests (no test): the extra page makes the size cross a power of two */
    while (fl < PRS_FL_COUNT && (fl < last_fl || (fl == last_fl && sl <= last_sl))) {
        uint32_t left = prs_extents_max(s); /* a damaged chain may have no end */
        for (uint32_t i = a->bins[fl][sl]; i != PRS_NIL && left--; i = prs_extent_at(s, i)->bin_next)
            if (fits(prs_extent_at(s, i), size, packing))
                return i;
        if (++sl == PRS_SL_COUNT) {
            sl = 0;
            fl++;
        }
    }
    return PRS_NIL;
}

uint32_t prs_extent_alloc(prs_store *s, uint64_t size, prs_packing packing, uint32_t slot)
{
    size = prs_round_up(size ? size : 1, packing == PRS_PAGED ? PRS_PAGE : PRS_UNIT);
    uint32_t i = find(s, size, packing);
    if (i == PRS_NIL)
        return PRS_NIL;
    bin_remove(s, i);
    PRS_POINT(extent_unlinked);
    if (packing == PRS_PAGED) {
        uint64_t start = 0;
        (void)paged_start(prs_extent_at(s, i), size, &start);
        prs_extent *e = prs_extent_at(s, i);
        if (e->off + e->size > start + size) { /* a tail shorter than a page stays free */
            uint32_t tail = split(s, i, start + size - e->off);
            /* unreached by tests (impossible): a free descriptor always exists */
            if (tail == PRS_NIL)
                goto none;
            bin_push(s, tail);
        }
        if (start > prs_extent_at(s, i)->off) {
            uint32_t high = split(s, i, start - prs_extent_at(s, i)->off);
            /* unreached by tests (impossible): a free descriptor always exists */
            if (high == PRS_NIL)
                goto none;
            bin_push(s, i);
            i = high;
        }
    } else if (prs_extent_at(s, i)->size > size) {
        uint32_t rest = split(s, i, size);
        /* unreached by tests (impossible): a free descriptor always exists */
        if (rest == PRS_NIL)
            goto none;
        bin_push(s, rest);
    }
    prs_extent *e = prs_extent_at(s, i);
    e->bin_next = PRS_USED;
    e->slot = slot;
    prs_store_relaxed(&arena_of(s)->used, prs_load_relaxed(&arena_of(s)->used) + e->size);
    PRS_POINT(extent_used);
    return i;
none:
    bin_push(s, i);
    return PRS_NIL;
}

/* Merge the free extent j, which follows i, into i. */
static void merge(prs_store *s, uint32_t i, uint32_t j)
{
    prs_extent *low = prs_extent_at(s, i), *high = prs_extent_at(s, j);
    bin_remove(s, j);
    low->size += high->size;
    low->next = high->next;
    if (high->next != PRS_NIL)
        prs_extent_at(s, high->next)->prev = i;
    descriptor_give(s, j);
    PRS_POINT(extent_merged);
}

/* Return whether a neighbour is free; return false if its index is damaged. */
static bool is_free(const prs_store *s, uint32_t i)
{
    const prs_extent *e = i != PRS_NIL ? prs_extent_at(s, i) : NULL;
    return e && !prs_extent_used(e) && e->size;
}

void prs_extent_free(prs_store *s, uint32_t i, uint32_t slot)
{
    prs_extent *e = prs_extent_at(s, i);
    if (PRS_UNLIKELY(!prs_extent_used(e) || e->slot != slot || !prs_in_data(s, e->off, e->size))) {
        prs_store_relaxed(&s->super->corrupt, 1);
        return;
    }
    prs_store_relaxed(&arena_of(s)->used, prs_load_relaxed(&arena_of(s)->used) - e->size);
    e->bin_next = PRS_NIL;
    if (is_free(s, e->next))
        merge(s, i, e->next);
    if (is_free(s, e->prev)) {
        uint32_t low = e->prev;
        bin_remove(s, low);
        bin_push(s, i); /* merge() removes the higher extent from its bin */
        merge(s, low, i);
        i = low;
    }
    bin_push(s, i);
    PRS_POINT(extent_freed);
}

/* Return the number of bytes in whole backed pages within a free extent. */
static uint64_t warm_bytes(const prs_store *s, const prs_extent *e)
{
    /* unreached by tests (damaged tables) */
    if (!prs_in_data(s, e->off, e->size))
        return 0;
    uint64_t first = prs_round_up(e->off, PRS_PAGE) / PRS_PAGE, end = (e->off + e->size) / PRS_PAGE;
    /* unreached by tests (impossible): called only for extents of at least 64 KiB */
    return first < end ? prs_pages_count(s->area.backed, first, end - first) * PRS_PAGE : 0;
}

/* Search the free extents, largest sizes first, for one with enough backed pages to return to the kernel; return
 * PRS_NIL if there is none. */
uint32_t prs_extent_warm(const prs_store *s)
{
    const prs_arena *a = arena_of(s);
    uint32_t looked = 0;
    for (uint32_t fl = PRS_FL_COUNT; fl-- > 0;)
        for (uint32_t sl = PRS_SL_COUNT; a->sl_bitmap[fl] && sl-- > 0;)
            for (uint32_t i = a->bins[fl][sl]; i != PRS_NIL; i = prs_extent_at(s, i)->bin_next) {
                if (prs_extent_at(s, i)->size < PRS_WARM_MIN || ++looked > PRS_WARM_LOOKS)
                    return PRS_NIL;
                if (warm_bytes(s, prs_extent_at(s, i)) >= PRS_WARM_MIN / 2)
                    return i;
            }
    return PRS_NIL;
}

/* Take a whole free extent. */
void prs_extent_take(prs_store *s, uint32_t i, uint32_t slot)
{
    prs_extent *e = prs_extent_at(s, i);
    bin_remove(s, i);
    PRS_POINT(extent_unlinked);
    e->bin_next = PRS_USED;
    e->slot = slot;
    prs_store_relaxed(&arena_of(s)->used, prs_load_relaxed(&arena_of(s)->used) + e->size);
    PRS_POINT(extent_used);
}

uint64_t prs_extent_largest(const prs_store *s)
{
    const prs_arena *a = arena_of(s);
    uint64_t powers = a->fl_bitmap & FL_ALL;
    if (!powers)
        return 0;
    uint32_t fl = 63 - (uint32_t)__builtin_clzll(powers);
    /* unreached by tests (damaged tables) */
    if (!a->sl_bitmap[fl])
        return 0;
    uint32_t sl = 31 - (uint32_t)__builtin_clz(a->sl_bitmap[fl]);
    uint64_t largest = 0;
    uint32_t left = prs_extents_max(s);
    for (uint32_t i = a->bins[fl][sl]; i != PRS_NIL && left--; i = prs_extent_at(s, i)->bin_next)
        if (prs_extent_at(s, i)->size > largest)
            largest = prs_extent_at(s, i)->size;
    return largest;
}

/* ---- rebuilding ------------------------------------------------------------------------------- */

static void sift_down(prs_extent *e, uint32_t root, uint32_t n)
{
    for (;;) {
        uint32_t child = 2 * root + 1;
        if (child >= n)
            return;
        if (child + 1 < n && e[child + 1].off > e[child].off)
            child++;
        if (e[root].off >= e[child].off)
            return;
        prs_extent swap = e[root];
        e[root] = e[child];
        e[child] = swap;
        root = child;
    }
}

/* Sort in place with heap sort, because we cannot allocate memory under the lock. */
static void sort_by_offset(prs_extent *e, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(e, i, n);
    for (uint32_t end = n; end > 1;) {
        end--;
        prs_extent swap = e[0];
        e[0] = e[end];
        e[end] = swap;
        sift_down(e, 0, end);
    }
}

int prs_extent_rebuild(prs_store *s)
{
    prs_arena *a = arena_of(s);
    uint32_t published = prs_slots_published(s), n = 0;
    arena_clear(a);
    for (uint32_t i = 0; i < published; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        uint64_t word = prs_load_seqcst(&slot->word);
        if (prs_word_state(word) == PRS_STATE_FREE || (word & PRS_WORD_FILE)) {
            prs_store_relaxed(&slot->extent, PRS_NIL);
            prs_store_relaxed(&slot->cap, 0);
            continue;
        }
        uint64_t off = prs_load_relaxed(&slot->off), cap = prs_load_relaxed(&slot->cap);
        /* unreached by tests (damaged tables, 4 branches) */
        if (cap == 0 || cap % PRS_UNIT || off % PRS_UNIT || off > s->capacity || cap > s->capacity - off)
            return PRS_E_CORRUPT;
        *prs_extent_at(s, n++) = (prs_extent){.off = off, .size = cap, .slot = i, .bin_next = PRS_USED};
    }
    sort_by_offset(s->extents, n);
    /* Turn the gaps into free extents, with descriptors above the used ones. */
    uint32_t next = n, last = PRS_NIL;
    uint64_t at = 0;
    /* unreached by tests (impossible): the loop breaks after the last gap */
    for (uint32_t i = 0; i <= n; i++) {
        uint64_t start = i < n ? prs_extent_at(s, i)->off : s->capacity;
        if (start < at)
            return PRS_E_CORRUPT;
        if (start > at) {
            *prs_extent_at(s, next) = (prs_extent){.off = at, .size = start - at, .prev = last, .bin_next = PRS_NIL};
            prs_extent_at(s, next)->next = i < n ? i : PRS_NIL;
            if (last != PRS_NIL)
                prs_extent_at(s, last)->next = next;
            else
                a->extent_first = next;
            last = next++;
        }
        if (i == n)
            break;
        prs_extent *e = prs_extent_at(s, i);
        e->prev = last;
        e->next = PRS_NIL;
        if (last != PRS_NIL)
            prs_extent_at(s, last)->next = i;
        else
            a->extent_first = i;
        last = i;
        prs_store_relaxed(&prs_slot_at(s, e->slot)->extent, i);
        prs_store_relaxed(&a->used, prs_load_relaxed(&a->used) + e->size);
        at = e->off + e->size;
    }
    a->extent_bump = next;
    for (uint32_t i = n; i < next; i++)
        bin_push(s, i);
    return PRS_OK;
}

/* ---- checking ---------------------------------------------------------------------------------- */

/* Check that a used extent and the slot that it belongs to agree. */
static int check_owner(const prs_store *s, uint32_t i, const prs_extent *e, prs_error *error)
{
    if (e->slot >= prs_slots_published(s))
        return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u belongs to no slot", i);
    const prs_slot *slot = prs_slot_at(s, e->slot);
    if (prs_load_relaxed(&slot->extent) != i || prs_load_relaxed(&slot->off) != e->off ||
        prs_load_relaxed(&slot->cap) != e->size)
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u and extent %u disagree", e->slot, i);
    return PRS_OK;
}

int prs_extent_check(prs_store *s, prs_error *error)
{
    const prs_arena *a = arena_of(s);
    uint32_t limit = 2 * prs_slots_published(s) + 8;
    uint64_t at = 0, used = 0, free_bytes = 0;
    uint32_t free_count = 0, steps = 0, prev = PRS_NIL;
    bool before_free = false;
    for (uint32_t i = a->extent_first; i != PRS_NIL; prev = i, i = prs_extent_at(s, i)->next) {
        /* unreached by tests (impossible): an extent in a ring fails the check of its neighbours first */
        if (i >= limit || ++steps > limit)
            return prs_fail(error, PRS_E_CORRUPT, 0, "the chain of extents leaves its table");
        const prs_extent *e = prs_extent_at(s, i);
        if (e->off != at || e->size == 0 || e->size % PRS_UNIT || e->prev != prev)
            return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u does not follow its neighbour", i);
        if (prs_extent_used(e)) {
            used += e->size;
            int rc = check_owner(s, i, e, error);
            if (rc < 0)
                return rc;
        } else {
            if (before_free)
                return prs_fail(error, PRS_E_CORRUPT, 0, "extents %u and %u are free neighbours", prev, i);
            free_bytes += e->size;
            free_count++;
        }
        before_free = !prs_extent_used(e);
        at += e->size;
    }
    if (at != s->capacity)
        return prs_fail(error, PRS_E_CORRUPT, 0, "extents cover %llu of %llu bytes", (unsigned long long)at,
                        (unsigned long long)s->capacity);
    if (used != prs_load_relaxed(&a->used))
        return prs_fail(error, PRS_E_CORRUPT, 0, "used bytes are %llu, counted %llu", (unsigned long long)used,
                        (unsigned long long)prs_load_relaxed(&a->used));
    for (uint32_t fl = 0; fl < PRS_FL_COUNT; fl++) {
        if (!!(a->fl_bitmap >> fl & 1) != !!a->sl_bitmap[fl])
            return prs_fail(error, PRS_E_CORRUPT, 0, "bitmap of power %u is wrong", fl);
        for (uint32_t sl = 0; sl < PRS_SL_COUNT; sl++) {
            uint32_t back = PRS_NIL;
            if ((a->bins[fl][sl] != PRS_NIL) != !!(a->sl_bitmap[fl] >> sl & 1))
                return prs_fail(error, PRS_E_CORRUPT, 0, "bitmap of bin %u.%u is wrong", fl, sl);
            for (uint32_t i = a->bins[fl][sl]; i != PRS_NIL; back = i, i = prs_extent_at(s, i)->bin_next) {
                uint32_t f, l;
                if (i >= limit || prs_extent_used(prs_extent_at(s, i)) || prs_extent_at(s, i)->bin_prev != back ||
                    free_count-- == 0)
                    return prs_fail(error, PRS_E_CORRUPT, 0, "bin %u.%u contains an extent that is not free", fl, sl);
                bin_of(prs_extent_at(s, i)->size, &f, &l);
                if (f != fl || l != sl)
                    return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u is in the wrong bin", i);
                free_bytes -= prs_extent_at(s, i)->size;
            }
        }
    }
    if (free_count || free_bytes)
        return prs_fail(error, PRS_E_CORRUPT, 0, "%u free extents are in no bin", free_count);
    return PRS_OK;
}

/* Damaged tables may claim more descriptors than there is room for. */
uint32_t prs_extents_in_use(const prs_store *s)
{
    uint32_t bump = arena_of(s)->extent_bump, room = prs_extents_max(s);
    return bump < room ? bump : room;
}

int prs_extent_check_heads(prs_store *s, prs_error *error)
{
    const prs_arena *a = arena_of(s);
    uint32_t limit = prs_extents_in_use(s);
    if (a->extent_first >= limit)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the chain of extents leaves its table");
    if (a->extent_free != PRS_NIL && (a->extent_free >= limit || s->extents[a->extent_free].size))
        return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of unused extents is broken");
    for (uint32_t fl = 0; fl < PRS_FL_COUNT; fl++) {
        if (!!(a->fl_bitmap >> fl & 1) != !!a->sl_bitmap[fl])
            return prs_fail(error, PRS_E_CORRUPT, 0, "bitmap of power %u is wrong", fl);
        for (uint32_t sl = 0; sl < PRS_SL_COUNT; sl++) {
            uint32_t head = a->bins[fl][sl], f, l;
            if ((head != PRS_NIL) != !!(a->sl_bitmap[fl] >> sl & 1))
                return prs_fail(error, PRS_E_CORRUPT, 0, "bitmap of bin %u.%u is wrong", fl, sl);
            if (head == PRS_NIL)
                continue;
            if (head >= limit || prs_extent_used(&s->extents[head]) || s->extents[head].bin_prev != PRS_NIL)
                return prs_fail(error, PRS_E_CORRUPT, 0, "bin %u.%u contains an extent that is not free", fl, sl);
            bin_of(s->extents[head].size, &f, &l);
            if (f != fl || l != sl)
                return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u is in the wrong bin", head);
        }
    }
    return PRS_OK;
}

/* Return whether a free extent is correctly linked in the chain of its bin. */
static bool in_its_bin(const prs_store *s, uint32_t i, const prs_extent *e)
{
    const prs_arena *a = arena_of(s);
    uint32_t limit = prs_extents_in_use(s), fl, sl, next = e->bin_next, prev = e->bin_prev;
    bin_of(e->size, &fl, &sl);
    if (next != PRS_NIL && (next >= limit || prs_extent_used(&s->extents[next]) || s->extents[next].bin_prev != i))
        return false;
    if (prev == PRS_NIL)
        return a->bins[fl][sl] == i;
    return prev < limit && !prs_extent_used(&s->extents[prev]) && s->extents[prev].bin_next == i;
}

/* Check that the extent begins where its neighbour ends: if all do, the chain contains every byte once. */
int prs_extent_check_one(prs_store *s, uint32_t i, prs_error *error)
{
    const prs_arena *a = arena_of(s);
    const prs_extent copy = *prs_extent_at(s, i), *e = &copy; /* a copy, so that we use the same values that we check */
    uint32_t limit = prs_extents_in_use(s);
    bool used = prs_extent_used(e);
    if (e->size == 0 && !used) {
        if (e->bin_next != PRS_NIL && (e->bin_next >= limit || s->extents[e->bin_next].size))
            return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of unused extents is broken");
        return PRS_OK;
    }
    const prs_extent *prev = e->prev < limit ? &s->extents[e->prev] : NULL;
    const prs_extent *next = e->next < limit ? &s->extents[e->next] : NULL;
    bool follows = prev ? prev->next == i && prev->off + prev->size == e->off
                        : e->prev == PRS_NIL && e->off == 0 && a->extent_first == i;
    bool leads =
        next ? next->prev == i && next->off == e->off + e->size : e->next == PRS_NIL && e->off + e->size == s->capacity;
    if (e->size == 0 || e->size % PRS_UNIT || !prs_in_data(s, e->off, e->size) || !follows || !leads)
        return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u does not follow its neighbour", i);
    if (used)
        return check_owner(s, i, e, error);
    if (next && !prs_extent_used(next))
        return prs_fail(error, PRS_E_CORRUPT, 0, "extents %u and %u are free neighbours", i, e->next);
    if (!in_its_bin(s, i, e))
        return prs_fail(error, PRS_E_CORRUPT, 0, "extent %u is not in the chain of its bin", i);
    return PRS_OK;
}
