/* slot.c - the slot table: publishing chunks of it, the stack of free slots, serials.
 *
 * Purpose    Slots have fixed indices. The table may have millions of slots, but uses memory only for
 *            those that were needed.
 * Algorithm  The table is a sparse range of the file.  A chunk of 1,024 slots, with the extent
 *            descriptors that go with it, is first backed without the lock (because backing can fail or fault), then
 *            published under the lock by raising `published`.
 * Guarantee  No client touches an unpublished entry, because even a read allocates the page of a
 *            hole in a shared mapping.
 */
#include "store.h"

static uint64_t extents_end(uint32_t slots)
{
    return ((uint64_t)2 * slots + 8) * sizeof(prs_extent);
}

/* Back and map [from, to) of a table at `off` in the file. */
static int touch(prs_store *s, uint64_t off, uint64_t from, uint64_t to)
{
    uint64_t begin = (off + from) & ~(uint64_t)(PRS_PAGE - 1);
    uint64_t end = prs_round_up(off + to, PRS_PAGE);
    /* unreached by tests (damaged tables) */
    if (end > s->control_len)
        end = s->control_len;
    return prs_os_populate((uint8_t *)s->super + begin, end - begin, s->fd_rw, begin);
}

static int touch_slots(prs_store *s, uint32_t from, uint32_t to)
{
    int rc = touch(s, s->super->slots_off, (uint64_t)from * s->slot_stride, (uint64_t)to * s->slot_stride);
    if (rc == 0)
        rc = touch(s, s->super->extents_off, from ? extents_end(from) : 0, extents_end(to));
    return rc;
}

static int touch_links(prs_store *s, uint32_t from, uint32_t to)
{
    return touch(s, s->super->links_off, (uint64_t)from * sizeof(prs_link), (uint64_t)to * sizeof(prs_link));
}

/* Raise a mark, but never lower it, because the thread that writes last may have read an older length. */
static void raise_mark(prs_atomic_u32 *mark, uint32_t to)
{
    uint32_t seen = prs_load_relaxed(mark);
    /* unreached by tests (race): another thread raised the mark meanwhile */
    while (seen < to && !prs_cas_weak_relaxed(mark, &seen, to))
        continue;
}

int prs_tables_prefault(prs_store *s)
{
    uint32_t published = prs_slots_published(s), seen = prs_load_relaxed(&s->slots_seen);
    if (PRS_UNLIKELY(seen < published)) {
        int rc = touch_slots(s, seen, published);
        if (rc < 0)
            return rc;
        raise_mark(&s->slots_seen, published);
    }
    published = prs_links_published(s);
    seen = prs_load_relaxed(&s->links_seen);
    if (PRS_UNLIKELY(seen < published)) {
        int rc = touch_links(s, seen, published);
        /* unreached by tests (failing call) */
        if (rc < 0)
            return rc;
        raise_mark(&s->links_seen, published);
    }
    return 0;
}

static int no_backing(int rc, prs_error *error)
{
    return prs_fail(error, PRS_E_BACKING, -rc, "no memory for the tables of the store");
}

/* Call this under the lock: return whether all published chunks are mapped in this process. */
static bool all_mapped(const prs_store *s)
{
    /* unreached by tests (race): another client published a chunk before we had the lock */
    return prs_load_relaxed(&s->slots_seen) >= prs_slots_published(s) &&
           prs_load_relaxed(&s->links_seen) >= prs_links_published(s);
}

int prs_lock_tables(prs_store *s, prs_error *error)
{
    for (;;) {
        int rc = prs_tables_prefault(s);
        if (rc < 0)
            return no_backing(rc, error);
        PRS_POINT(tables_looked);
        rc = prs_lock(s, s->lock_timeout, error);
        if (rc < 0 || PRS_LIKELY(all_mapped(s)))
            return rc;
        prs_unlock(s);
    }
}

bool prs_trylock_tables(prs_store *s)
{
    for (;;) {
        /* unreached by tests (no injected fault): backing the tables fails */
        if (prs_tables_prefault(s) < 0)
            return false;
        PRS_POINT(tables_looked);
        if (!prs_trylock(s))
            return false;
        /* unreached by tests (race): another client published a chunk before we had the lock */
        if (PRS_LIKELY(all_mapped(s)))
            return true;
        prs_unlock(s);
    }
}

int prs_slots_grow(prs_store *s, uint32_t had, prs_error *error)
{
    uint32_t to = had + PRS_SLOT_CHUNK;
    if (to > s->max_slots) {
        /* unreached by tests (impossible): the table is a whole number of chunks */
        if (had >= s->max_slots) {
            prs_fail(error, PRS_E_OBJECTS, 0, "the store holds as many objects as its table allows");
            /* unreached by tests (no test): the caller passes no error record */
            if (error)
                error->want = 1, error->capacity = error->used = s->max_slots;
            return PRS_E_OBJECTS;
        }
        to = s->max_slots;
    }
    int rc = prs_headroom_reserve(&s->headroom, (uint64_t)(to - had) * (s->slot_stride + 2 * sizeof(prs_extent)), NULL);
    if (rc == 0)
        rc = PRS_POINT_ERRNO(backing) ? -ENOMEM : touch_slots(s, had, to);
    if (rc < 0)
        return no_backing(rc, error);
    PRS_POINT(slots_backed);
    rc = prs_lock(s, s->lock_timeout, error);
    /* unreached by tests (race) */
    if (rc < 0)
        return rc;
    if (prs_slots_published(s) == had) {
        /* New slots consist of zero bytes, which means FREE and generation 0. Publish first, then push:
         * if this client dies in between, the following rebuild finds the slots that are not on the
         * stack. */
        prs_store_release(&s->super->published, to);
        PRS_POINT(slots_published);
        for (uint32_t i = to; i-- > had;) {
            prs_store_relaxed(&prs_slot_at(s, i)->extent, PRS_NIL);
            prs_slot_give(s, i);
        }
    }
    prs_unlock(s);
    return PRS_OK;
}

int prs_links_grow(prs_store *s, uint32_t had, prs_error *error)
{
    /* unreached by tests (no test): a million tokens and edges */
    if (had >= s->max_links) {
        prs_fail(error, PRS_E_OBJECTS, 0, "the table of references in flight and between objects is full");
        return PRS_E_OBJECTS;
    }
    uint32_t to = had + PRS_LINK_CHUNK < s->max_links ? had + PRS_LINK_CHUNK : s->max_links;
    int rc = prs_headroom_reserve(&s->headroom, (uint64_t)(to - had) * sizeof(prs_link), NULL);
    if (rc == 0)
        rc = touch_links(s, had, to);
    if (rc < 0)
        return no_backing(rc, error);
    rc = prs_lock(s, s->lock_timeout, error);
    /* unreached by tests (race) */
    if (rc < 0)
        return rc;
    if (prs_links_published(s) == had)
        prs_store_release(&s->super->links_published, to);
    prs_unlock(s);
    return PRS_OK;
}

uint32_t prs_slot_take(prs_store *s)
{
    prs_arena *a = &s->super->arena;
    uint32_t i = a->slot_free;
    if (i == PRS_NIL)
        return PRS_NIL;
    /* unreached by tests (damaged tables, 2 branches) */
    if (PRS_UNLIKELY(i >= prs_load_relaxed(&s->slots_seen) ||
                     prs_word_state(prs_load_relaxed(&prs_slot_at(s, i)->word)) != PRS_STATE_FREE)) {
        prs_store_relaxed(&s->super->corrupt, 1);
        a->slot_free = PRS_NIL; /* the caller publishes new slots; a rebuild finds the lost ones */
        return PRS_NIL;
    }
    a->slot_free = prs_load_relaxed(&prs_slot_at(s, i)->next_free);
    a->slot_free_count--;
    PRS_POINT(slot_taken);
    return i;
}

void prs_slot_give(prs_store *s, uint32_t i)
{
    prs_arena *a = &s->super->arena;
    prs_store_relaxed(&prs_slot_at(s, i)->next_free, a->slot_free);
    a->slot_free = i;
    a->slot_free_count++;
}

/* Each client allocates serials in blocks, so that small puts of different clients do not write to
 * the same cache line.  An object that refers to others gets a serial directly from the counter,
 * above all serials allocated so far. */
uint64_t prs_serial(prs_store *s, bool ordered)
{
    if (ordered)
        return prs_fetch_add_seqcst(&s->super->serial, 1);
    prs_spin_lock(&s->serial_lock);
    if (s->serial_next == s->serial_end) {
        s->serial_next = prs_fetch_add_seqcst(&s->super->serial, PRS_SERIAL_BLOCK);
        s->serial_end = s->serial_next + PRS_SERIAL_BLOCK;
    }
    uint64_t serial = s->serial_next++;
    prs_spin_unlock(&s->serial_lock);
    return serial;
}
