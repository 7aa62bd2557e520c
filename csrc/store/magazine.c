/* magazine.c - caches of slots with extents, so that small puts and frees take no lock.
 *
 * Purpose    A put or free of a small object accesses no cache line that other clients write.
 * Algorithm  Each client has one stack of RESERVED slots per size class, filled from the shared bins in
 *            batches (Bonwick and Adams, "Magazines and Vmem", 2001).  Slots that do not fit into a magazine, and all
 *            slots with large extents, are "pending": the client queues them, and returns them to the bins when the
 *            store lock is free.
 * Guarantee  An entry of a magazine does not guarantee that the slot is still reserved: a put claims
 *            the slot by a CAS on word and generation, because a full store reclaims reserved slots
 *            from all clients.  A process that dies leaves RESERVED slots under its client number; its
 *            reaper returns them.
 */
#include "store.h"

#define REFILL_BYTES (64u * 1024u)
#define REFILL_MAX 32u
#define FLUSH_BATCH 32u

/* Size classes grow in steps of 64 bytes up to 1 KiB, then in four steps per doubling up to PRS_SMALL_MAX. */
uint32_t prs_class_of(uint64_t size)
{
    if (size <= 1024)
        return size ? (uint32_t)((size - 1) / 64) : 0;
    uint32_t log = 63 - (uint32_t)__builtin_clzll(size - 1);
    return 16 + (log - 10) * 4 + (uint32_t)((size - 1) >> (log - 2)) - 4;
}

uint64_t prs_class_size(uint32_t cls)
{
    if (cls < 16)
        return (uint64_t)(cls + 1) * 64;
    uint32_t log = 10 + (cls - 16) / 4, step = (cls - 16) % 4;
    return (uint64_t)(step + 5) << (log - 2);
}

static uint32_t refill_count(uint32_t cls)
{
    uint64_t n = REFILL_BYTES / prs_class_size(cls);
    /* unreached by tests (impossible): REFILL_BYTES hold an extent of any class */
    return n < 1 ? 1 : n > REFILL_MAX ? REFILL_MAX : (uint32_t)n;
}

/* ---- under the store lock ------------------------------------------------------------------ */

/* Store an extent (PRS_NIL: none) and a state in an allocated slot. */
static void occupy(prs_store *s, uint32_t i, uint32_t extent, uint32_t state, prs_reserved *out)
{
    prs_slot *slot = prs_slot_at(s, i);
    prs_store_relaxed(&slot->extent, extent);
    prs_store_relaxed(&slot->off, extent != PRS_NIL ? s->extents[extent].off : 0);
    prs_store_relaxed(&slot->cap, extent != PRS_NIL ? s->extents[extent].size : 0);
    prs_store_relaxed(&slot->size, 0);
    prs_store_relaxed(&slot->edges, PRS_NIL);
    prs_store_relaxed(&slot->last_pin, 0);
    out->slot = i;
    out->generation = prs_word_generation(prs_load_relaxed(&slot->word)) + 1;
    prs_store_seqcst(&slot->word, prs_word(out->generation, s->me, state));
    PRS_POINT(slot_reserved);
}

/* Allocate a slot and an extent for it. Return PRS_E_OBJECTS if no slot is left, PRS_E_FULL if no extent is large
 * enough. */
static int attach(prs_store *s, uint64_t size, prs_packing packing, uint32_t state, prs_reserved *out)
{
    uint32_t i = prs_slot_take(s), e = PRS_NIL;
    if (i == PRS_NIL)
        return PRS_E_OBJECTS;
    if (!(state & PRS_WORD_FILE) && (e = prs_extent_alloc(s, size, packing, i)) == PRS_NIL) {
        prs_slot_give(s, i);
        return PRS_E_FULL;
    }
    occupy(s, i, e, state, out);
    return PRS_OK;
}

/* Return a RESERVED slot to the shared structures if its word is still `word`, except for the FILE flag. */
static bool give(prs_store *s, uint32_t i, uint64_t word)
{
    prs_slot *slot = prs_slot_at(s, i);
    word |= prs_load_relaxed(&slot->word) & PRS_WORD_FILE; /* the object was spilled, so it has no extent */
    if (!prs_cas_seqcst(&slot->word, &word, prs_word(prs_word_generation(word), 0, PRS_STATE_FREE)))
        return false;
    PRS_POINT(give_slot_free);
    prs_link_splice(s, i);
    prs_store_seqcst(&slot->links, 0);
    PRS_POINT(give_edges);
    if (prs_load_relaxed(&slot->extent) != PRS_NIL)
        prs_extent_free(s, prs_load_relaxed(&slot->extent), i);
    prs_store_relaxed(&slot->extent, PRS_NIL);
    prs_store_relaxed(&slot->cap, 0);
    PRS_POINT(give_extent);
    prs_slot_give(s, i);
    PRS_POINT(give_slot_pushed);
    return true;
}

/* ---- pending ---------------------------------------------------------------------------------- */

static __thread bool draining; /* freeing an object may free others that it refers to; this loop avoids recursion */

static uint32_t pending_pop(prs_store *s, prs_reserved *batch)
{
    prs_spin_lock(&s->pending_lock);
    uint32_t n = s->pending_count < FLUSH_BATCH ? s->pending_count : FLUSH_BATCH;
    s->pending_count -= n;
    memcpy(batch, s->pending + s->pending_count, n * sizeof *batch);
    prs_store_relaxed(&s->has_pending, s->pending_count != 0);
    prs_spin_unlock(&s->pending_lock);
    return n;
}

static void pending_push(prs_store *s, uint32_t slot, uint32_t generation)
{
    prs_spin_lock(&s->pending_lock);
    if (s->pending_count < PRS_PENDING_CAP) {
        s->pending[s->pending_count++] = (prs_reserved){slot, generation};
        prs_store_relaxed(&s->has_pending, 1);
    } else {
        prs_store_relaxed(&s->overflowed, 1); /* has_pending is set */
    }
    prs_spin_unlock(&s->pending_lock);
}

/* Return the size class whose magazine may contain the slot, which has an extent of `cap` bytes; return PRS_NIL if
 * there is none. */
static uint32_t magazine_of(const prs_slot *slot, uint64_t cap)
{
    if (!cap || cap > PRS_SMALL_MAX || prs_load_relaxed(&slot->edges) != PRS_NIL || prs_load_seqcst(&slot->links))
        return PRS_NIL;
    uint32_t cls = prs_class_of(cap);
    return prs_class_size(cls) == cap ? cls : PRS_NIL;
}

/* Call this under the lock: return the slots for which `pending` had no room. Skip a slot whose size fits a magazine,
 * because the slot may be in a magazine. A skipped slot that is in no magazine wastes a little memory until the store
 * is full. */
static void give_overflowed(prs_store *s)
{
    prs_store_relaxed(&s->overflowed, 0);
    uint32_t seen = prs_load_relaxed(&s->slots_seen);
    for (uint32_t i = 0; i < seen; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        uint64_t word = prs_load_seqcst(&slot->word);
        if (prs_word_state(word) == PRS_STATE_RESERVED && prs_word_client(word) == s->me &&
            magazine_of(slot, prs_load_relaxed(&slot->cap)) == PRS_NIL)
            give(s, i, word);
    }
}

static bool lock_as(prs_store *s, prs_patience patience)
{
    return patience == PRS_WAIT ? prs_lock_tables(s, NULL) == PRS_OK : prs_trylock_tables(s);
}

void prs_deferred_run(prs_store *s, prs_patience patience)
{
    if (draining || s->orphan)
        return;
    draining = true;
    while (prs_load_relaxed(&s->has_pending) || prs_load_relaxed(&s->has_dying)) {
        if (prs_load_relaxed(&s->has_pending)) {
            if (!lock_as(s, patience))
                break;
            prs_reserved batch[FLUSH_BATCH];
            uint32_t n = pending_pop(s, batch);
            for (uint32_t i = 0; i < n; i++)
                give(s, batch[i].slot, prs_word(batch[i].generation, s->me, PRS_STATE_RESERVED));
            if (PRS_UNLIKELY(prs_load_relaxed(&s->overflowed)))
                give_overflowed(s);
            prs_unlock(s);
            PRS_POINT(give_unlocked);
        }
        /* unreached by tests (race) */
        if (prs_load_relaxed(&s->has_dying) && !prs_edges_release(s, patience))
            break;
    }
    draining = false;
}

void prs_deferred_run_all(prs_store *s)
{
    prs_deferred_run(s, PRS_WAIT);
}

void prs_deferred_push(prs_store *s, uint32_t slot, uint32_t generation)
{
    pending_push(s, slot, generation);
    prs_deferred_run(s, PRS_NO_WAIT);
}

void prs_magazine_put(prs_store *s, uint32_t i, uint32_t generation)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t cap = prs_load_relaxed(&slot->cap); /* read once: a full store may reclaim the slot at any time */
    uint32_t cls = magazine_of(slot, cap);
    /* A put writes to the slots of a magazine without checking `wr`, so put no slot there before the store is mapped
     * for writing. */
    if (cls == PRS_NIL || !prs_load_acquire(&s->wr)) {
        prs_deferred_push(s, i, generation);
        return;
    }
    uint32_t limit = 2 * refill_count(cls);
    prs_magazine *m = &s->magazines[cls];
    prs_spin_lock(&m->lock);
    if (m->count < limit) {
        m->item[m->count++] = (prs_reserved){i, generation};
        prs_spin_unlock(&m->lock);
        return;
    }
    /* The magazine is full: return its older half in one batch, so that only some frees have to take the lock. */
    prs_reserved old[PRS_MAG_CAP];
    uint32_t half = m->count / 2;
    memcpy(old, m->item, half * sizeof *old);
    memmove(m->item, m->item + half, (m->count - half) * sizeof *old);
    m->count -= half;
    m->item[m->count++] = (prs_reserved){i, generation};
    prs_spin_unlock(&m->lock);
    for (uint32_t k = 0; k < half; k++)
        pending_push(s, old[k].slot, old[k].generation);
    prs_deferred_run(s, PRS_NO_WAIT);
}

/* ---- taking --------------------------------------------------------------------------------------- */

static int full(prs_store *s, uint64_t size, prs_error *error)
{
    prs_fail(error, PRS_E_FULL, 0, "no free extent of %llu bytes", (unsigned long long)size);
    /* unreached by tests (no test): the caller passes no error record */
    if (error) {
        error->want = size;
        error->capacity = s->capacity;
        error->used = prs_load_relaxed(&s->super->arena.used);
    }
    return PRS_E_FULL;
}

/* Take the next step to make space; return whether another attempt to allocate makes sense. */
static bool relieve(prs_store *s, uint64_t size, int *stage, prs_error *error)
{
    switch ((*stage)++) {
    case 0:
        prs_magazines_flush(s);
        return true;
    case 1:
        prs_reap_dead(s, 0);
        prs_deferred_run(s, PRS_WAIT);
        return true;
    case 2:
        prs_magazines_reclaim(s);
        prs_deferred_run(s, PRS_WAIT);
        return true;
    default:
        /* unreached by tests (no test): one put needs sixty rounds of spilling */
        return *stage < 64 && prs_spill_for(s, size, error) == PRS_OK;
    }
}

/* Allocate up to `want` slots of `size` bytes each; return an error if there is not even one. */
static int take(prs_store *s, uint64_t size, prs_packing packing, uint32_t state, prs_reserved *out, uint32_t want,
                uint32_t *got, prs_error *error)
{
    /* unreached by tests (impossible): an object in a file needs no extent */
    if (size > s->capacity && !(state & PRS_WORD_FILE))
        return full(s, size, error);
    for (int stage = 0;;) {
        int rc = prs_lock_tables(s, error);
        if (rc < 0)
            return rc;
        uint32_t n = 0, published = prs_slots_published(s);
        while (n < want && (rc = attach(s, size, packing, state, &out[n])) == PRS_OK)
            n++;
        prs_unlock(s);
        PRS_POINT(refill_unlocked);
        if (n) {
            *got = n;
            return PRS_OK;
        }
        if (rc == PRS_E_OBJECTS) {
            rc = prs_slots_grow(s, published, error);
            /* unreached by tests (impossible): after each of the first three stages we try again */
            if (rc < 0 && (rc != PRS_E_OBJECTS || stage > 2 || !relieve(s, size, &stage, error)))
                return rc;
        } else {
            prs_error why = {0};
            if (!relieve(s, size, &stage, &why))
                /* unreached by tests (failing call, 2 branches): the disk */
                /* unreached by tests (no test): the caller passes no error record */
                return why.code ? (error ? *error = why : why).code : full(s, size, error);
        }
    }
}

/* Back the extents of newly reserved slots, adjacent ones in one call. */
static int back_all(prs_store *s, const prs_reserved *batch, uint32_t n, prs_error *error)
{
    for (uint32_t i = 0; i < n;) {
        uint64_t off = prs_load_relaxed(&prs_slot_at(s, batch[i].slot)->off), end = off;
        while (i < n && prs_load_relaxed(&prs_slot_at(s, batch[i].slot)->off) == end)
            end += prs_load_relaxed(&prs_slot_at(s, batch[i++].slot)->cap);
        int rc = prs_back(s, off, end - off, error);
        if (rc < 0)
            return rc;
    }
    return PRS_OK;
}

static int refill(prs_store *s, uint32_t cls, prs_error *error)
{
    prs_reserved batch[REFILL_MAX];
    uint32_t n = 0;
    int rc = prs_map_writable(s, error);
    /* unreached by tests (failing call) */
    if (rc < 0)
        return rc;
    prs_reap_dead(s, PRS_SECOND);
    rc = take(s, prs_class_size(cls), PRS_PACKED, PRS_STATE_RESERVED, batch, refill_count(cls), &n, error);
    if (rc < 0)
        return rc;
    rc = back_all(s, batch, n, error);
    PRS_POINT(refill_backed);
    if (rc < 0) {
        for (uint32_t i = 0; i < n; i++)
            pending_push(s, batch[i].slot, batch[i].generation);
        prs_deferred_run(s, PRS_WAIT);
        return rc;
    }
    prs_magazine *m = &s->magazines[cls];
    uint32_t kept = 0;
    prs_spin_lock(&m->lock);
    /* The slot with the lowest address is on top. */
    /* unreached by tests (race): other threads filled it meanwhile */
    for (uint32_t i = n; i-- > 0 && m->count < PRS_MAG_CAP;) {
        m->item[m->count++] = batch[i];
        kept++;
    }
    prs_spin_unlock(&m->lock);
    /* unreached by tests (race): other threads filled it meanwhile */
    for (uint32_t i = 0; i < n - kept; i++)
        prs_deferred_push(s, batch[i].slot, batch[i].generation);
    return PRS_OK;
}

int prs_magazine_take(prs_store *s, uint64_t size, bool try, uint32_t *out, uint64_t *word, prs_error *error)
{
    uint32_t cls = prs_class_of(size);
    prs_magazine *m = &s->magazines[cls];
    for (;;) {
        prs_reserved top;
        prs_spin_lock(&m->lock);
        bool some = m->count != 0;
        if (PRS_LIKELY(some))
            top = m->item[--m->count];
        prs_spin_unlock(&m->lock);
        if (PRS_UNLIKELY(!some)) {
            if (try)
                return PRS_E_AGAIN;
            int rc = refill(s, cls, error);
            if (rc < 0)
                return rc;
            continue;
        }
        uint64_t expected = prs_word(top.generation, s->me, PRS_STATE_RESERVED);
        uint64_t creating = prs_word(top.generation, s->me, PRS_STATE_CREATING);
        if (PRS_LIKELY(prs_cas_seqcst(&prs_slot_at(s, top.slot)->word, &expected, creating))) {
            *out = top.slot;
            *word = creating;
            return PRS_OK;
        }
    }
}

int prs_slot_alloc_large(prs_store *s, uint64_t size, prs_packing packing, uint32_t *out, uint64_t *word,
                         prs_error *error)
{
    prs_reserved one;
    uint32_t n = 0;
    int rc = prs_map_writable(s, error);
    /* unreached by tests (no injected fault): no address space for the first writable mapping */
    if (rc < 0)
        return rc;
    prs_reap_dead(s, PRS_SECOND);
    rc = take(s, size, packing, PRS_STATE_CREATING, &one, 1, &n, error);
    if (rc < 0)
        return rc;
    *out = one.slot;
    *word = prs_word(one.generation, s->me, PRS_STATE_CREATING);
    return PRS_OK;
}

int prs_slot_alloc_warm(prs_store *s, uint32_t *out, uint64_t *word)
{
    int rc = prs_lock_tables(s, NULL);
    if (rc < 0)
        return rc;
    uint32_t e = prs_extent_warm(s), i = e != PRS_NIL ? prs_slot_take(s) : PRS_NIL;
    if (i != PRS_NIL) {
        prs_reserved one;
        prs_extent_take(s, e, i);
        occupy(s, i, e, PRS_STATE_CREATING, &one);
        *out = i;
        *word = prs_word(one.generation, s->me, PRS_STATE_CREATING);
    }
    prs_unlock(s);
    return i == PRS_NIL ? PRS_E_FULL : PRS_OK;
}

int prs_slot_alloc_spilled(prs_store *s, uint32_t *out, uint64_t *word, prs_error *error)
{
    prs_reserved one;
    uint32_t n = 0;
    int rc = take(s, 0, PRS_PACKED, PRS_STATE_CREATING | PRS_WORD_FILE, &one, 1, &n, error);
    if (rc < 0)
        return rc;
    *out = one.slot;
    *word = prs_word(one.generation, s->me, PRS_STATE_CREATING | PRS_WORD_FILE);
    return PRS_OK;
}

void prs_magazines_flush(prs_store *s)
{
    for (uint32_t cls = 0; cls < PRS_CLASSES; cls++) {
        prs_magazine *m = &s->magazines[cls];
        prs_reserved items[PRS_MAG_CAP];
        prs_spin_lock(&m->lock);
        uint32_t n = m->count;
        memcpy(items, m->item, n * sizeof *items);
        m->count = 0;
        prs_spin_unlock(&m->lock);
        for (uint32_t i = 0; i < n; i++)
            pending_push(s, items[i].slot, items[i].generation);
        prs_deferred_run(s, PRS_WAIT);
    }
}

void prs_slot_return(prs_store *s, uint32_t i, uint64_t word)
{
    prs_store_relaxed(&s->super->corrupt, 1);
    uint32_t generation = prs_word_generation(word) + 1;
    /* unreached by tests (race): taken for dead */
    if (prs_cas_seqcst(&prs_slot_at(s, i)->word, &word, prs_word(generation, s->me, PRS_STATE_RESERVED)))
        prs_deferred_push(s, i, generation);
}

/* Call this in a forked child: clear the lists of slots that the parent has reserved, because these slots still belong
 * to the parent. */
void prs_magazines_forget(prs_store *s)
{
    for (uint32_t cls = 0; cls < PRS_CLASSES; cls++) {
        prs_spin_init(&s->magazines[cls].lock);
        s->magazines[cls].count = 0;
    }
    prs_spin_init(&s->pending_lock);
    s->pending_count = 0;
    prs_store_relaxed(&s->has_pending, 0);
    prs_store_relaxed(&s->overflowed, 0);
    prs_store_relaxed(&s->has_dying, 0);
    s->dying = PRS_NIL;
    draining = false;
}

uint64_t prs_magazines_reclaim(prs_store *s)
{
    uint64_t gained = 0;
    if (prs_lock_tables(s, NULL) < 0)
        return 0;
    uint32_t seen = prs_load_relaxed(&s->slots_seen);
    for (uint32_t i = 0; i < seen; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        uint64_t word = prs_load_seqcst(&slot->word), cap = prs_load_relaxed(&slot->cap);
        /* unreached by tests (race): its owner took it from the magazine */
        if (prs_word_state(word) == PRS_STATE_RESERVED && give(s, i, word)) {
            gained += cap;
            PRS_POINT(take_back_taken);
        }
    }
    prs_unlock(s);
    return gained;
}
