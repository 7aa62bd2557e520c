/* object.c - alloc, seal, pin, ref and free: the protocol of the slot word.
 *
 * Purpose    An object exists exactly as long as a client holds it, even if other clients die
 *            meanwhile.
 * Algorithm  Each client has one bit per slot for refs and one for pins.  Setting or clearing a bit
 *            twice has no further effect, so a reaper can repeat a step of a dead client.  Repeated
 *            holds change only private counts, not shared memory.  To hold, a client sets its bit,
 *            then reads the word; to free, it moves the word from SEALED to FREEING, then reads the
 *            bits.  All four accesses are seq_cst, so at least one of the two clients sees the
 *            other's write (the store-buffering pattern).  But a scan of many bits is not atomic:
 *            it may miss a holder that replaces one bit by another (a ref by a pin, or the holder's own bit by that
 *            of its forked child).  So a new holder that reads FREEING marks the word (HELD); the freeing client ends
 *            its scan by a compare-and-swap that expects the word it began with, and scans again if the word is
 *            marked.  If the freeing client sees a bit, it sets the word back to SEALED and scans once more, because
 *            meanwhile the last holder may have released the object and relied on this client to free it.
 * Guarantee  The bytes of a pinned object do not move or change.  Holding and releasing never wait
 *            for another client, even if that is stopped or dead.
 */
#include "store.h"
#include <errno.h>

static bool matches(const prs_slot *slot, uint64_t word, const prs_oid *id)
{
    return prs_word_generation(word) == id->generation && prs_load_relaxed(&slot->serial) == id->serial;
}

/* Return the reason why the object of an id no longer exists. */
static int lost_status(const prs_slot *slot, const prs_oid *id)
{
    uint32_t ended = prs_load_relaxed(&slot->ended);
    return ended >> 2 == (id->generation & 0x3FFFFFFFu) && (ended & 3) == PRS_ENDED_FREED ? PRS_E_FREED : PRS_E_LOST;
}

/* Return the status of an id whose slot still contains its object, but is FREED: PRS_E_FREED after prs_free, PRS_E_LOST
 * after an abort. */
static int freed_status(const prs_slot *slot, const prs_oid *id)
{
    uint32_t how = prs_load_relaxed(&slot->ended);
    /* unreached by tests (race, 2 branches): between marking the object FREED and its end */
    return how >> 2 == (id->generation & 0x3FFFFFFFu) && (how & 3) == PRS_ENDED_UNSEALED ? PRS_E_LOST : PRS_E_FREED;
}

static int check_id(prs_store *s, const prs_oid *id)
{
    if (PRS_UNLIKELY(prs_load_relaxed(&s->closed)))
        return PRS_E_CLOSED;
    if (PRS_UNLIKELY(id->store != s->id))
        return PRS_E_FOREIGN;
    /* unreached by tests (race): another thread has closed the handle after the first check, so the tables are gone */
    if (PRS_UNLIKELY(id->slot >= prs_slots_published(s)))
        return prs_load_acquire(&s->closed) ? PRS_E_CLOSED : PRS_E_LOST;
    return PRS_OK;
}

/* ---- freeing ---------------------------------------------------------------------------------- */

bool prs_pinned(const prs_store *s, prs_slot *slot)
{
    uint32_t words = prs_words_in_use(s);
    const prs_atomic_u64 *pins = prs_pins(s, slot);
    for (uint32_t i = 0; i < words; i++)
        if (prs_load_seqcst(&pins[i]))
            return true;
    return false;
}

/* If the object was freed, only pins and BYTES links count.  Read links after the bits, because a sender counts its link
 * before it drops its ref. */
bool prs_held(prs_store *s, prs_slot *slot, uint64_t word)
{
    bool freed = word & PRS_WORD_FREED;
    if (prs_pinned(s, slot))
        return true;
    uint32_t words = prs_words_in_use(s);
    PRS_POINT(held_pins);
    for (uint32_t i = 0; i < words && !freed; i++)
        if (prs_load_seqcst(&slot->holders[i]))
            return true;
    uint32_t epoch = prs_load_seqcst(&s->super->recount);
    if (prs_load_seqcst(&slot->links) & (freed ? PRS_LINKS_BYTES : ~0u))
        return true;
    /* unreached by tests (race): a rebuild began meanwhile */
    return (epoch & 1) || prs_load_seqcst(&s->super->recount) != epoch;
}

void prs_wake(prs_store *s, prs_slot *slot, uint64_t old_word)
{
    if (PRS_LIKELY(!(old_word & PRS_WORD_WAITERS)))
        return;
    prs_futex_wake(prs_low_half(&slot->word), INT32_MAX);
    prs_fetch_add_seqcst(&s->super->epoch, 1);
    if (prs_load_seqcst(&s->super->epoch_waiters))
        prs_futex_wake(&s->super->epoch, INT32_MAX);
}

/* Retire our slot, which is FREEING and for which we saw no holder. If the slot's word has changed since we read the
 * word, store the current one in *word and return false. */
static bool reclaim_slot(prs_store *s, uint32_t i, uint64_t *word)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t file = *word & PRS_WORD_FILE;
    uint32_t generation = prs_word_generation(*word) + 1;
    if (*word & PRS_WORD_FREED) { /* refs no longer count, so we may clear them early */
        uint32_t words = prs_words_in_use(s);
        for (uint32_t w = 0; w < words; w++)
            if (prs_load_relaxed(&slot->holders[w]))
                prs_exchange_seqcst(&slot->holders[w], 0);
    }
    PRS_POINT(retire_cleared);
    uint64_t reserved = prs_word(generation, s->me, PRS_STATE_RESERVED) | file;
    uint64_t cap = prs_load_relaxed(&slot->cap);
    bool punch = !file && cap >= PRS_SMALL_MAX && prs_load_relaxed(&slot->size) && /* 0 for slots of prs_trim */
                 prs_beyond_reserve(s, cap);
    bool first = file || punch; /* do this work before other clients can reclaim the RESERVED slot */
    uint64_t next = first ? prs_word(generation, s->me, PRS_STATE_FREEING | PRS_WORD_FREED) | file : reserved;
    uint64_t old = *word;
    if (!prs_cas_seqcst(&slot->word, word, next))
        return false;
    if (PRS_UNLIKELY(first)) {
        PRS_POINT(retire_decided);
        if (punch)
            prs_pages_punch(s, prs_load_relaxed(&slot->off), cap);
        if (file)
            prs_spill_remove(s, slot, i);
        /* unreached by tests (race): this client was declared dead */
        if (!prs_cas_seqcst(&slot->word, &next, reserved))
            return true; /* another client declared us dead and took over */
    }
    PRS_POINT(retired);
    prs_wake(s, slot, old);
    prs_magazine_put(s, i, generation);
    return true;
}

static void mark_ended(prs_slot *slot, uint64_t word, uint32_t how)
{
    prs_store_relaxed(&slot->ended, (prs_word_generation(word) & 0x3FFFFFFFu) << 2 | how);
}

void prs_free_finish(prs_store *s, uint32_t i, uint64_t word)
{
    prs_slot *slot = prs_slot_at(s, i);
    for (;;) {
        /* unreached by tests (race, 2 branches): this client was declared dead */
        if (prs_word_state(word) != PRS_STATE_FREEING || prs_word_client(word) != s->me)
            return; /* another client declared us dead and took over */
        PRS_POINT(freeing);
        if (word & PRS_WORD_HELD) { /* clear HELD before the scan, so that a later holder sets HELD again */
            /* unreached by tests (race) */
            if (!prs_cas_seqcst(&slot->word, &word, word & ~(uint64_t)PRS_WORD_HELD))
                continue;
            word &= ~(uint64_t)PRS_WORD_HELD;
        }
        bool held = prs_held(s, slot, word);
        PRS_POINT(freeing_scanned);
        if (!held) {
            if (reclaim_slot(s, i, &word))
                return;
            continue; /* another client has set FREED, WAITERS or HELD meanwhile: decide again */
        }
        uint64_t sealed = (word & ~(uint64_t)PRS_STATE_MASK) | PRS_STATE_SEALED;
        if (!prs_cas_seqcst(&slot->word, &word, sealed))
            continue;
        PRS_POINT(freeing_rolled_back);
        /* A holder that released during FREEING has left the freeing to us. */
        if (prs_held(s, slot, sealed))
            return;
        word = (prs_word(prs_word_generation(sealed), s->me, PRS_STATE_FREEING)) | (sealed & PRS_FLAGS_MASK);
        /* unreached by tests (race) */
        if (!prs_cas_seqcst(&slot->word, &sealed, word))
            return; /* another client has changed the word, and so has taken over */
    }
}

void prs_try_free(prs_store *s, uint32_t i)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t word = prs_load_seqcst(&slot->word);
    while (prs_word_state(word) == PRS_STATE_SEALED) {
        if (prs_held(s, slot, word))
            return;
        uint64_t freeing = prs_word(prs_word_generation(word), s->me, PRS_STATE_FREEING) | (word & PRS_FLAGS_MASK);
        /* unreached by tests (race) */
        if (prs_cas_seqcst(&slot->word, &word, freeing)) {
            prs_free_finish(s, i, freeing);
            return;
        }
    }
}

/* Take over a slot that a dead client was working on; finish or undo that work. */
bool prs_slot_adopt(prs_store *s, uint32_t i, uint64_t word)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint32_t generation = prs_word_generation(word);
    uint64_t flags = word & PRS_FLAGS_MASK, ours;
    /* unreached by tests (impossible): callers have checked the state */
    switch (prs_word_state(word)) {
    case PRS_STATE_RESERVED:
        /* unreached by tests (race): another reaper was quicker */
        if (!prs_cas_seqcst(&slot->word, &word,
                            prs_word(generation + 1, s->me, PRS_STATE_RESERVED | (uint32_t)(flags & PRS_WORD_FILE))))
            return false;
        prs_deferred_push(s, i, generation + 1);
        return true;
    case PRS_STATE_CREATING:
        mark_ended(slot, word, PRS_ENDED_UNSEALED);
        flags |= PRS_WORD_FREED;
        /* fall through */
    case PRS_STATE_FREEING:
        ours = prs_word(generation, s->me, PRS_STATE_FREEING) | flags;
        /* unreached by tests (race): another reaper was quicker */
        if (!prs_cas_seqcst(&slot->word, &word, ours))
            return false;
        prs_free_finish(s, i, ours);
        return true;
    case PRS_STATE_SPILLING:
        prs_spill_undo(s, i, word);
        return true;
    default:
        return false;
    }
}

/* ---- holding ------------------------------------------------------------------------------------ */

/* Call this after setting a bit in a slot: if another client is freeing the slot, make it scan the bits again. Return
 * true if the object exists; no client can then free it without seeing the bit. Set *word to the latest word of the
 * slot. */
static bool mark_held(prs_slot *slot, uint64_t *word)
{
    /* unreached by tests (race): another client is freeing it */
    while (prs_word_state(*word) == PRS_STATE_FREEING)
        /* unreached by tests (race, 4 branches): another client is freeing it */
        if ((*word & PRS_WORD_HELD) || prs_cas_seqcst(&slot->word, word, *word | PRS_WORD_HELD))
            return true;
    /* unreached by tests (race): the object ended before */
    return prs_word_state(*word) != PRS_STATE_FREE && prs_word_state(*word) != PRS_STATE_RESERVED;
}

/* Do the same after setting a bit for another holder, while we hold the object `serial`. */
bool prs_hold_confirm(prs_slot *slot, uint64_t serial)
{
    uint64_t word = prs_load_seqcst(&slot->word);
    /* unreached by tests (race): the slot has another object by now */
    return mark_held(slot, &word) && prs_load_relaxed(&slot->serial) == serial;
}

/* In a store with many objects each access is a cache miss, and the first locked instruction makes later accesses wait.
 * So prefetch all lines. */
static inline void prefetch_slot(const prs_slot *slot, const prs_private *p, const prs_atomic_u64 *bits)
{
    __builtin_prefetch(p, 1);
    __builtin_prefetch(slot);
    __builtin_prefetch(bits, 1);
}

typedef enum { HOLD_REF, HOLD_PIN, HOLD_NAMED_PIN } hold_kind;

/* Set this client's bit in `bits` and check that the object still exists. A ref may be to a draft, and a named pin may
 * be of a freed object. The caller has locked the shard. */
static inline __attribute__((always_inline)) int hold(prs_store *s, prs_slot *slot, prs_atomic_u64 *bits,
                                                      const prs_oid *id, hold_kind kind, uint64_t *seen)
{
    uint64_t freed = kind == HOLD_NAMED_PIN ? 0 : PRS_WORD_FREED;
    uint64_t word = prs_load_seqcst(&slot->word);
    *seen = word;
    if (!matches(slot, word, id))
        return lost_status(slot, id);
    if (word & freed)
        return freed_status(slot, id);
    /* unreached by tests (compiler, 2 branches): the result is known for refs */
    if (prs_word_state(word) == PRS_STATE_CREATING && kind != HOLD_REF)
        return PRS_E_AGAIN;
    prs_fetch_or_seqcst(&bits[s->my_word], s->my_bit);
    PRS_POINT(pin_set);
    word = prs_load_seqcst(&slot->word);
    while (PRS_LIKELY(matches(slot, word, id) && !(word & freed))) {
        *seen = word;
        /* unreached by tests (race, 3 branches): ended or being freed at the second read */
        switch (prs_word_state(word)) {
        case PRS_STATE_SEALED:
            return PRS_OK;
        case PRS_STATE_CREATING:
            /* unreached by tests (compiler): the result is known for pins or for refs */
            /* unreached by tests (race, 2 branches) */
            return kind == HOLD_REF ? PRS_OK : PRS_E_AGAIN;
        case PRS_STATE_FREEING:
            /* unreached by tests (race, 3 branches): another client is freeing it */
            if ((word & PRS_WORD_HELD) || prs_cas_seqcst(&slot->word, &word, word | PRS_WORD_HELD))
                return PRS_OK; /* the freeing client must scan again, and then sees our bit */
            break;
        case PRS_STATE_SPILLING: /* allow refs, and pins of the spilling thread */
            /* unreached by tests (compiler, 2 branches): the result is known for pins or for refs */
            /* unreached by tests (race, 3 branches): being spilled at the second read */
            return kind == HOLD_REF || prs_spill_by_us(s, id->slot) ? PRS_OK : PRS_E_AGAIN;
        default:
            return lost_status(slot, id);
        }
    }
    *seen = word;
    /* unreached by tests (race, 3 branches): ended between the two reads */
    return matches(slot, word, id) ? freed_status(slot, id) : lost_status(slot, id);
}

/* Clear a bit that we set for an object that no longer exists. Like the clearing of any bit, this may end
 * the last hold on the slot's current object. */
static void undo(prs_store *s, prs_slot *slot, prs_atomic_u64 *bits)
{
    (void)slot;
    prs_fetch_and_seqcst(&bits[s->my_word], ~s->my_bit);
    PRS_POINT(pin_undo);
}

static int view_of(prs_store *s, const prs_slot *slot, const prs_private *p, uint64_t word, prs_view *view)
{
    uint64_t off = prs_load_relaxed(&slot->off), size = prs_load_relaxed(&slot->size);
    if (PRS_UNLIKELY(word & PRS_WORD_FILE)) {
        view->data = p->map ? p->map->at : NULL; /* NULL if the caller must map the file */
        view->size = size;
        return PRS_OK;
    }
    if (PRS_UNLIKELY(off > s->capacity || size > s->capacity - off || size > prs_load_relaxed(&slot->cap)))
        return PRS_E_CORRUPT;
    view->data = s->ro + off;
    view->size = size;
    return PRS_OK;
}

void prs_pin_file(prs_store *s, const prs_oid *id, prs_file_map *map, prs_view *view)
{
    prs_spin *shard = prs_shard(s, id->slot);
    prs_private *p = &s->priv[id->slot];
    prs_file_map *twice = NULL;
    prs_spin_lock(shard);
    /* unreached by tests (race): two threads map the file at the same time */
    if (p->map)
        twice = map; /* another thread was quicker */
    else
        p->map = map;
    view->data = p->map->at;
    prs_spin_unlock(shard);
    prs_spill_unmap(twice);
}

/* Map the file of a pinned, spilled object. */
static int map_file(prs_store *s, const prs_oid *id, prs_view *view)
{
    prs_file_map *map;
    int rc = prs_spill_form(s) ? PRS_E_SPILLED : prs_spill_map(s, id, view->size, PRS_SPILL_READ_ONLY, &map);
    if (rc < 0) {
        prs_unpin(s, id);
        return rc;
    }
    prs_pin_file(s, id, map, view);
    return PRS_OK;
}

static inline __attribute__((always_inline)) int pin(prs_store *s, const prs_oid *id, prs_pin_kind kind, prs_view *view)
{
    int rc = check_id(s, id);
    if (rc < 0)
        return rc;
    prs_slot *slot = prs_slot_at(s, id->slot);
    prs_spin *shard = prs_shard(s, id->slot);
    prs_private *p = &s->priv[id->slot];
    uint64_t word;
    prefetch_slot(slot, p, prs_pins(s, slot));
    prs_spin_lock(shard);
    /* unreached by tests (race): closed between the two checks */
    if (PRS_UNLIKELY(prs_load_relaxed(&s->closed))) {
        prs_spin_unlock(shard);
        return PRS_E_CLOSED;
    }
    if (prs_load_relaxed(&p->pins)) {
        word = prs_load_acquire(&slot->word);
        rc = p->serial != id->serial                            ? lost_status(slot, id)
             : (word & PRS_WORD_FREED) && kind != PRS_PIN_NAMED ? PRS_E_FREED
                                                                : view_of(s, slot, p, word, view);
        if (rc == PRS_OK)
            prs_count_up(&p->pins);
        prs_spin_unlock(shard);
        return rc;
    }
    if (PRS_UNLIKELY(s->orphan)) { /* an orphan has no bit to set */
        prs_spin_unlock(shard);
        return PRS_E_CLOSED;
    }
    prs_atomic_u64 *pins = prs_pins(s, slot);
    rc = hold(s, slot, pins, id, kind == PRS_PIN_NAMED ? HOLD_NAMED_PIN : HOLD_PIN, &word);
    if (PRS_LIKELY(rc == PRS_OK))
        rc = view_of(s, slot, p, word, view);
    if (PRS_LIKELY(rc == PRS_OK)) {
        /* unreached by tests (no test): refs to an earlier object of the slot */
        if (!(prs_load_relaxed(&p->refs) && p->serial == id->serial)) {
            p->serial = id->serial; /* refs to an earlier object of the slot are invalid */
            prs_store_relaxed(&p->refs, 0);
        }
        prs_store_relaxed(&p->pins, 1);
        uint32_t tick = prs_tick(s);
        if (PRS_UNLIKELY(prs_load_relaxed(&slot->last_pin) != tick))
            prs_store_relaxed(&slot->last_pin, tick);
        prs_spin_unlock(shard);
        return PRS_OK;
    }
    bool touched = prs_load_relaxed(&pins[s->my_word]) & s->my_bit;
    if (touched)
        undo(s, slot, pins);
    prs_spin_unlock(shard);
    if (touched)
        prs_try_free(s, id->slot);
    return rc;
}

int prs_pin(prs_store *s, const prs_oid *id, prs_view *view)
{
    int rc = pin(s, id, PRS_PIN_PLAIN, view);
    return PRS_LIKELY(rc < 0 || view->data != NULL) ? rc : map_file(s, id, view);
}

int prs_pin_named(prs_store *s, const prs_oid *id, prs_view *view)
{
    int rc = pin(s, id, PRS_PIN_NAMED, view);
    return rc < 0 || view->data != NULL ? rc : map_file(s, id, view);
}

int prs_pin_bare(prs_store *s, const prs_oid *id, prs_pin_kind kind, prs_view *view)
{
    return pin(s, id, kind, view);
}

void prs_unpin(prs_store *s, const prs_oid *id)
{
    prs_slot *slot = prs_slot_at(s, id->slot);
    prs_spin *shard = prs_shard(s, id->slot);
    prs_private *p = &s->priv[id->slot];
    prefetch_slot(slot, p, prs_pins(s, slot));
    prs_spin_lock(shard);
    bool last = p->serial == id->serial && prs_count_down(&p->pins);
    if (last && !s->orphan)
        prs_fetch_and_seqcst(&prs_pins(s, slot)[s->my_word], ~s->my_bit);
    bool closed = prs_load_relaxed(&s->closed);
    /* While this process has a ref, the thread that drops the ref frees the object. But once the word is FREED, refs no
     * longer hold it. */
    bool ours = last && prs_load_relaxed(&p->refs) && !(prs_load_seqcst(&slot->word) & PRS_WORD_FREED);
    prs_file_map *map = last ? p->map : NULL;
    if (map)
        p->map = NULL;
    /* If another thread calls prs_close now, it does not count this pin any more. So count the rest of this call as a
     * pin. */
    bool counted = last && (closed || map || (!s->orphan && !ours));
    if (counted && !closed)
        prs_fetch_add_seqcst(&s->pinned_slots, 1);
    prs_spin_unlock(shard);
    if (!last)
        return;
    prs_spill_unmap(map);
    PRS_POINT(unpin_cleared);
    if (counted && !s->orphan && !ours)
        prs_try_free(s, id->slot);
    if (counted && prs_fetch_sub_acqrel(&s->pinned_slots, 1) == (PRS_PINS_COUNTED | 1))
        prs_tear_down(s);
}

int prs_ref(prs_store *s, const prs_oid *id)
{
    int rc = check_id(s, id);
    if (rc < 0)
        return rc;
    prs_slot *slot = prs_slot_at(s, id->slot);
    prs_spin *shard = prs_shard(s, id->slot);
    prs_private *p = &s->priv[id->slot];
    uint64_t word;
    prefetch_slot(slot, p, slot->holders);
    prs_spin_lock(shard);
    /* unreached by tests (race): closed between the two checks */
    if (PRS_UNLIKELY(prs_load_relaxed(&s->closed))) {
        prs_spin_unlock(shard);
        return PRS_E_CLOSED;
    }
    if (prs_load_relaxed(&p->refs) && p->serial == id->serial) {
        prs_count_up(&p->refs);
        prs_spin_unlock(shard);
        return PRS_OK;
    }
    if (s->orphan) {
        prs_spin_unlock(shard);
        return PRS_E_CLOSED;
    }
    rc = hold(s, slot, slot->holders, id, HOLD_REF, &word);
    if (rc == PRS_OK) {
        PRS_POINT(ref_set);
        p->serial = id->serial; /* refs to an earlier object of the slot are invalid */
        prs_store_relaxed(&p->refs, 1);
        prs_spin_unlock(shard);
        return PRS_OK;
    }
    /* The bit may be valid for the object that is in the slot now. */
    /* unreached by tests (race, 4 branches): the ref was set after the object ended */
    bool ours = prs_load_relaxed(&p->refs) && p->serial == prs_load_relaxed(&slot->serial) &&
                !(word & PRS_WORD_FREED) && prs_word_state(word) != PRS_STATE_FREE &&
                prs_word_state(word) != PRS_STATE_RESERVED;
    /* unreached by tests (race): the ref was set after the object ended */
    bool touched = !ours && (prs_load_relaxed(&slot->holders[s->my_word]) & s->my_bit);
    /* unreached by tests (race): the ref was set after the object ended */
    if (touched)
        undo(s, slot, slot->holders);
    prs_spin_unlock(shard);
    PRS_POINT(ref_undo);
    /* unreached by tests (race): the ref was set after the object ended */
    if (touched)
        prs_try_free(s, id->slot);
    return rc;
}

void prs_unref(prs_store *s, const prs_oid *id)
{
    prs_slot *slot = prs_slot_at(s, id->slot);
    prs_spin *shard = prs_shard(s, id->slot);
    prs_private *p = &s->priv[id->slot];
    prefetch_slot(slot, p, slot->holders);
    __builtin_prefetch(prs_pins(s, slot)); /* used if this is the last ref */
    prs_spin_lock(shard);
    if (PRS_UNLIKELY(prs_load_relaxed(&s->closed))) { /* prs_close has dropped all refs */
        prs_spin_unlock(shard);
        return;
    }
    bool last = p->serial == id->serial && prs_count_down(&p->refs);
    if (last && !s->orphan)
        prs_fetch_and_seqcst(&slot->holders[s->my_word], ~s->my_bit);
    prs_spin_unlock(shard);
    if (last && !s->orphan) {
        PRS_POINT(unref_cleared);
        prs_try_free(s, id->slot);
    }
}

int prs_state(prs_store *s, const prs_oid *id)
{
    int rc = check_id(s, id);
    if (rc < 0)
        return rc;
    prs_slot *slot = prs_slot_at(s, id->slot);
    uint64_t word = prs_load_acquire(&slot->word);
    if (!matches(slot, word, id))
        return lost_status(slot, id);
    if (word & PRS_WORD_FREED)
        return freed_status(slot, id);
    switch (prs_word_state(word)) {
    case PRS_STATE_CREATING:
        return PRS_E_AGAIN;
    case PRS_STATE_SEALED:
    case PRS_STATE_FREEING:
    case PRS_STATE_SPILLING:
        return PRS_OK;
    default:
        return lost_status(slot, id);
    }
}

/* ---- making --------------------------------------------------------------------------------------- */

int prs_alloc(prs_store *s, uint64_t size, unsigned flags, prs_draft *draft, prs_error *error)
{
    if (PRS_UNLIKELY(prs_load_relaxed(&s->closed) || s->orphan))
        return prs_fail(error, PRS_E_CLOSED, 0,
                        s->orphan ? "no client slot was free when this process was forked" : "the store is closed");
    /* unreached by tests (race) */
    if (PRS_UNLIKELY(prs_load_relaxed(&s->has_pending) || prs_load_relaxed(&s->has_dying)))
        prs_deferred_run(s, PRS_NO_WAIT);
    uint32_t i;
    uint64_t word;
    bool window = flags & PRS_ALLOC_WINDOW, small = size <= PRS_SMALL_MAX && !window;
    if (!prs_extent_size_fits(size))
        size = INT64_MAX; /* too large for any store: the calls below report this */
    bool file = PRS_UNLIKELY(size > s->capacity) && !window && s->super->spill_dir[0];
    prs_packing packing = window || size >= 256 * 1024 ? PRS_PAGED : PRS_PACKED;
    int rc = PRS_LIKELY(small) ? prs_magazine_take(s, size, flags & PRS_ALLOC_TRY, &i, &word, error)
             : file            ? prs_slot_alloc_spilled(s, &i, &word, error)
                               : prs_slot_alloc_large(s, size, packing, &i, &word, error);
    if (PRS_UNLIKELY(rc < 0))
        return rc;
    PRS_POINT(alloc_creating);
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t off = prs_load_relaxed(&slot->off), cap = prs_load_relaxed(&slot->cap);
    if (PRS_UNLIKELY(!file && (!prs_in_data(s, off, cap) || size > cap))) {
        prs_slot_return(s, i, word);
        return prs_fail(error, PRS_E_CORRUPT, 0, "the extent of slot %u lies outside of the store", i);
    }
    uint64_t serial = prs_serial(s, flags & PRS_ALLOC_ORDERED);
    prs_store_relaxed(&slot->serial, serial);
    prs_store_relaxed(&slot->created, prs_age(s));
    prs_store_relaxed(&slot->size, size);
    draft->store = s;
    draft->id = (prs_oid){s->id, serial, i, prs_word_generation(word)};
    draft->size = size;
    draft->off = off;
    draft->dst = small ? prs_load_acquire(&s->wr) + draft->off : NULL;
    draft->window = NULL;

    prs_spin *shard = prs_shard(s, i);
    prs_spin_lock(shard);
    prs_private *p = &s->priv[i];
    p->serial = serial;
    p->map = NULL;
    prs_store_relaxed(&p->refs, 1);
    prs_store_relaxed(&p->pins, 0);
    prs_fetch_or_seqcst(&slot->holders[s->my_word], s->my_bit);
    prs_spin_unlock(shard);
    PRS_POINT(alloc_referenced);
    if (window || file) {
        rc = window ? prs_window_open(s, draft, error) : prs_spill_create(s, draft, error);
        if (rc < 0)
            prs_abort(s, draft);
    }
    return rc;
}

int prs_write(prs_store *s, prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error)
{
    if (at > draft->size || n > draft->size - at)
        return prs_fail(error, PRS_E_INVAL, 0, "write past the end of the object");
    PRS_POINT(fill_begun);
    int rc = PRS_OK;
    if (draft->dst)
        prs_copy((uint8_t *)draft->dst + at, src, n);
    else if (draft->window)
        prs_copy_parallel((uint8_t *)draft->window + at, src, n, 0);
    else if (draft->size > s->capacity)
        rc = prs_spill_write(s, draft, at, src, n, error);
    else
        rc = prs_fill_range(s, draft->off + at, src, n, error);
    PRS_POINT(fill_done);
    return rc;
}

int prs_write_strided(prs_store *s, prs_draft *draft, uint64_t at, const void *src, int ndim, const ptrdiff_t *shape,
                      const ptrdiff_t *strides, size_t itemsize, prs_error *error)
{
    uint64_t n = itemsize;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(n, (uint64_t)shape[i], &n))
            return prs_fail(error, PRS_E_INVAL, 0, "the shape is too large");
    }
    if (at > draft->size || n > draft->size - at)
        return prs_fail(error, PRS_E_INVAL, 0, "write past the end of the object");
    uint8_t *to = draft->dst ? draft->dst : draft->window;
    if (!to && draft->size > s->capacity) { /* the draft is in a file, so gather in memory first */
        /* unreached by tests (no test): a write of no bytes to a draft in a file */
        to = malloc(n ? n : 1);
        /* unreached by tests (no injected fault): malloc */
        if (!to)
            return prs_fail(error, PRS_E_NOMEM, ENOMEM, "no memory to gather %zu bytes", (size_t)n);
        prs_copy_strided_parallel(to, src, ndim, shape, strides, itemsize, 0);
        int rc = prs_spill_write(s, draft, at, to, n, error);
        free(to);
        return rc;
    }
    if (!to) {
        int rc = prs_back(s, draft->off + at, n, error);
        if (rc < 0)
            return rc;
        to = prs_load_acquire(&s->wr) + draft->off;
    }
    PRS_POINT(fill_begun);
    prs_copy_strided_parallel(to + at, src, ndim, shape, strides, itemsize, 0);
    PRS_POINT(fill_done);
    return PRS_OK;
}

int prs_seal(prs_store *s, prs_draft *draft, prs_error *error)
{
    prs_slot *slot = prs_slot_at(s, draft->id.slot);
    uint64_t word = prs_load_relaxed(&slot->word);
    if (prs_word_generation(word) != draft->id.generation || prs_word_state(word) != PRS_STATE_CREATING ||
        prs_word_client(word) != s->me)
        return prs_fail(error, PRS_E_INVAL, 0, "this object is not being made by this process");
    uint64_t window = 0;
    if (draft->window) {
        int rc = prs_window_seal(s, draft, error);
        if (rc < 0)
            return rc;
        window = PRS_WORD_WINDOW;
    }
    if (PRS_UNLIKELY(word & PRS_WORD_FILE)) {
        int rc = prs_spill_seal(s, draft, error);
        if (rc < 0)
            return rc;
    }
    PRS_POINT(seal_ready);
    uint64_t sealed;
    do {
        /* unreached by tests (race, 2 branches): this client was declared dead */
        if (PRS_UNLIKELY(prs_word_state(word) != PRS_STATE_CREATING || prs_word_client(word) != s->me))
            return prs_fail(error, PRS_E_LOST, 0, "another process declared this client dead and reclaimed the object");
        sealed = (word & ~(uint64_t)(PRS_STATE_MASK | PRS_WORD_WAITERS)) | PRS_STATE_SEALED | window;
        /* unreached by tests (race) */
    } while (PRS_UNLIKELY(!prs_cas_weak_seqcst(&slot->word, &word, sealed)));
    PRS_POINT(seal_done);
    prs_wake(s, slot, word);
    if (PRS_UNLIKELY(sealed & PRS_WORD_FREED))
        prs_try_free(s, draft->id.slot);
    return PRS_OK;
}

/* Free the slot of a draft that has no window any more. */
static void abandon(prs_store *s, prs_draft *draft)
{
    prs_slot *slot = prs_slot_at(s, draft->id.slot);
    uint64_t word = prs_load_relaxed(&slot->word), ours;
    draft->window = NULL;
    do {
        /* unreached by tests (impossible): an orphan's drafts are its parent's */
        if (prs_word_generation(word) == draft->id.generation && (prs_word_client(word) != s->me || s->orphan)) {
            prs_unref(s, &draft->id); /* this draft belongs to our parent: drop only the ref that we inherited */
            return;
        }
        if (prs_word_generation(word) != draft->id.generation || prs_word_state(word) != PRS_STATE_CREATING)
            return;
        ours = prs_word(draft->id.generation, s->me, PRS_STATE_FREEING) | (word & PRS_FLAGS_MASK) | PRS_WORD_FREED;
        mark_ended(slot, word, PRS_ENDED_UNSEALED);
        /* unreached by tests (race) */
    } while (!prs_cas_seqcst(&slot->word, &word, ours));
    PRS_POINT(abort_marked);
    prs_spin *shard = prs_shard(s, draft->id.slot);
    prs_spin_lock(shard);
    prs_private *p = &s->priv[draft->id.slot];
    /* unreached by tests (impossible): the caller has a ref to it */
    if (p->serial == draft->id.serial)
        (void)prs_count_down(&p->refs);
    prs_spin_unlock(shard);
    prs_free_finish(s, draft->id.slot, ours);
}

void prs_abort(prs_store *s, prs_draft *draft)
{
    if (draft->window)
        prs_window_close(s, draft);
    abandon(s, draft);
}

void prs_abort_keep_window(prs_store *s, prs_draft *draft)
{
    if (draft->window && !prs_window_forsake(s, draft))
        return; /* the window is still writable, so the object stays unsealed until this process ends */
    abandon(s, draft);
}

/* ---- ending ------------------------------------------------------------------------------------------ */

int prs_free(prs_store *s, const prs_oid *id, prs_error *error)
{
    int rc = check_id(s, id);
    if (rc == PRS_E_LOST)
        return PRS_OK;
    if (rc < 0 || s->orphan)
        return prs_fail(error, rc < 0 ? rc : PRS_E_CLOSED, 0, "the object belongs to another or a closed store");
    prs_slot *slot = prs_slot_at(s, id->slot);
    uint64_t word = prs_load_seqcst(&slot->word);
    do {
        uint32_t state = prs_word_state(word);
        if (!matches(slot, word, id) || state == PRS_STATE_FREE || state == PRS_STATE_RESERVED)
            return PRS_OK;
        if (word & PRS_WORD_FREED)
            break;
        mark_ended(slot, word, PRS_ENDED_FREED);
        /* unreached by tests (race) */
    } while (!prs_cas_seqcst(&slot->word, &word, word | PRS_WORD_FREED));
    PRS_POINT(free_marked);
    prs_try_free(s, id->slot);
    return PRS_OK;
}

/* ---- finding --------------------------------------------------------------------------------------------- */

int prs_find(prs_store *s, const void *ptr, uint64_t n, prs_oid *id, uint64_t *at)
{
    uintptr_t base = (uintptr_t)s->ro, p = (uintptr_t)ptr;
    if (p < base || p - base > s->capacity || n > s->capacity - (p - base))
        return PRS_E_NOTFOUND;
    uint64_t off = p - base;
    uint32_t published = prs_slots_published(s);
    for (uint32_t i = 0; i < published; i++) {
        if (prs_load_relaxed(&s->priv[i].pins) == 0) /* we check this again with the shard locked */
            continue;
        prs_spin *shard = prs_shard(s, i);
        prs_spin_lock(shard);
        prs_slot *slot = prs_slot_at(s, i);
        uint64_t first = prs_load_relaxed(&slot->off), size = prs_load_relaxed(&slot->size);
        uint64_t word = prs_load_seqcst(&slot->word);
        /* An object that is being restored has pins, but no extent and no mapping yet. */
        /* unreached by tests (no test, 2 branches): other objects of the store are spilled */
        /* unreached by tests (race): the last holder released it meanwhile */
        if (prs_load_relaxed(&s->priv[i].pins) && !s->priv[i].map && !(word & PRS_WORD_FILE) && first <= off &&
            off - first <= size && n <= size - (off - first)) {
            bool live = !(word & PRS_WORD_FREED);
            *id = (prs_oid){s->id, s->priv[i].serial, i, prs_word_generation(word)};
            *at = off - first;
            prs_spin_unlock(shard);
            return live ? PRS_OK : PRS_E_FREED;
        }
        prs_spin_unlock(shard);
    }
    return PRS_E_NOTFOUND;
}
