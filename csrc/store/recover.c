/* recover.c - recovery from dead clients: rebuild, reap, detect.
 *
 * Purpose    Any client may die at any instruction.  The first client that detects the death cleans
 *            up, while all others continue.
 * Algorithm  rebuild: the client that stole the store lock reconstructs everything that the lock guards
 *            from slots and links. reap: for each slot, a client finishes or undoes the dead client's
 *            work, clears its bits, and tries to free the object if it has no other holder; only the
 *            return of extents takes the lock. prs_reap_dead: any client that calls it checks for dead
 *            clients, at most once a second for the whole store.
 * Guarantee  If a client dies during a rebuild or a reap, another client repeats it: a rebuild first
 *            marks the arena dirty; a reaper records itself in the dead client's state, and can itself
 *            be reaped.
 */
#include "store.h"

static uint64_t reaping(const prs_store *s)
{
    return PRS_CLIENT_REAPING | (uint64_t)s->me << 8 | (uint64_t)s->incarnation << 32;
}

int prs_rebuild(prs_store *s, prs_error *error)
{
    prs_arena *a = &s->super->arena;
    uint32_t published = prs_slots_published(s);
    a->dirty = 1;
    PRS_POINT(rebuild_begun);
    if (prs_tables_prefault(s) < 0)
        return prs_fail(error, PRS_E_BACKING, 0, "no memory for the tables of the store");
    a->slot_free = PRS_NIL;
    a->slot_free_count = 0;
    for (uint32_t i = published; i-- > 0;)
        if (prs_word_state(prs_load_seqcst(&prs_slot_at(s, i)->word)) == PRS_STATE_FREE)
            prs_slot_give(s, i);
    if (prs_extent_rebuild(s) < 0) {
        prs_store_seqcst(&s->super->corrupt, 1);
        return prs_fail(error, PRS_E_CORRUPT, 0, "extents of live objects overlap");
    }
    PRS_POINT(rebuild_extents);
    prs_links_rebuild(s);
    PRS_POINT(rebuild_links);
    a->dirty = 0;
    PRS_POINT(rebuild_done);
    return PRS_OK;
}

/* Call this after a rebuild: free sealed objects whose last holder released them while all objects counted as held. */
static void sweep(prs_store *s)
{
    uint32_t epoch = prs_load_seqcst(&s->super->recount), swept = prs_load_relaxed(&s->super->swept);
    /* unreached by tests (death): a rebuild is in progress */
    /* unreached by tests (no injected fault): backing the tables fails */
    if (swept == epoch || (epoch & 1) || prs_tables_prefault(s) < 0)
        return;
    uint32_t seen = prs_load_relaxed(&s->slots_seen);
    for (uint32_t i = 0; i < seen; i++)
        prs_try_free(s, i);
    prs_cas_seqcst(&s->super->swept, &swept, epoch); /* a later rebuild changes `recount` again */
}

void prs_client_recover_slots(prs_store *s, uint32_t client)
{
    uint32_t seen = prs_load_relaxed(&s->slots_seen), word_index = client / 64;
    uint64_t bit = 1ull << client % 64;
    for (uint32_t i = 0; i < seen; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        uint64_t word = prs_load_seqcst(&slot->word);
        uint32_t kind = prs_word_state(word);
        if (prs_word_client(word) == client && (kind == PRS_STATE_RESERVED || kind == PRS_STATE_CREATING ||
                                                kind == PRS_STATE_FREEING || kind == PRS_STATE_SPILLING))
            prs_slot_adopt(s, i, word);
        PRS_POINT(reap_slot);
        prs_atomic_u64 *refs = prs_refs(slot) + word_index, *pins = prs_pins(s, slot) + word_index;
        if ((prs_load_seqcst(refs) | prs_load_seqcst(pins)) & bit) {
            prs_fetch_and_seqcst(refs, ~bit);
            prs_fetch_and_seqcst(pins, ~bit);
            PRS_POINT(reap_bits);
        }
        prs_try_free(s, i); /* also if the bit is clear: the client may have died before freeing */
    }
}

int prs_reap(prs_store *s, uint32_t client, uint64_t state)
{
    prs_client *c = &s->clients[client];
    uint64_t ours = reaping(s);
    uint32_t incarnation = prs_load_seqcst(&c->incarnation);
    /* unreached by tests (impossible): callers have proven that it is dead */
    switch (state & 0xFF) {
    case PRS_CLIENT_FREE:
        return PRS_OK;
    case PRS_CLIENT_REAPING: {
        uint32_t reaper = (uint32_t)(state >> 8) & 0xFFFFu;
        /* unreached by tests (race): another thread is reaping it */
        if (reaper == s->me && state == ours)
            return PRS_OK; /* another thread of ours is reaping the client */
        /* unreached by tests (race): another client is reaping it */
        if (prs_client_is(s, reaper, (uint32_t)(state >> 32)) && !prs_client_dead(s, reaper))
            return PRS_OK;
        break;
    }
    default:
        break;
    }
    /* unreached by tests (race): another client was quicker */
    if (!prs_cas_seqcst(&c->state, &state, ours))
        return PRS_OK;
    PRS_POINT(reap_begun);
    /* unreached by tests (no injected fault): backing the tables fails */
    if (prs_tables_prefault(s) < 0) {
        prs_cas_seqcst(&c->state, &ours, state); /* the next prs_reap_dead() tries again */
        return PRS_E_BACKING;
    }
    prs_client_recover_slots(s, client);
    if (!prs_links_reap(s, client, incarnation)) {
        prs_cas_seqcst(&c->state, &ours, state);
        return PRS_E_BUSY;
    }
    PRS_POINT(reap_links);
    prs_deferred_run(s, PRS_WAIT);
    prs_client_forget(s, client);
    /* unreached by tests (race): this client was declared dead */
    if (prs_cas_seqcst(&c->state, &ours, PRS_CLIENT_FREE))
        prs_fetch_add_relaxed(&s->super->reaped, 1);
    PRS_POINT(reap_done);
    return PRS_OK;
}

int prs_reap_dead(prs_store *s, int64_t min_age)
{
    uint64_t now = (uint64_t)prs_now(), last = prs_load_relaxed(&s->super->last_look);
    if (min_age > 0) {
        /* unreached by tests (damaged tables): a time in the future */
        if (last <= now && now - last < (uint64_t)min_age)
            return PRS_OK;
        /* unreached by tests (race): another client is checking */
        if (!prs_cas_relaxed(&s->super->last_look, &last, now))
            return PRS_OK; /* another client is checking */
    } else {
        prs_store_relaxed(&s->super->last_look, now);
    }
    if (s->orphan || prs_load_relaxed(&s->closed))
        return PRS_OK;
    uint32_t high = prs_load_acquire(&s->super->client_high);
    uint64_t state;
    /* unreached by tests (damaged tables) */
    for (uint32_t i = 1; i < high && i < s->super->max_clients; i++)
        if (i != s->me && prs_client_proven_dead(s, i, &state) && prs_reap(s, i, state) == PRS_E_BUSY)
            break; /* wait for the lock only once; the next call reaps the rest */
    sweep(s);
    if (min_age > 0)
        prs_trim_excess(s);
    return PRS_OK;
}
