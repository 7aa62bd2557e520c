/* holds.c - holds that do not belong to a process: tokens of messages, edges of objects.
 *
 * Purpose    An object whose pickled ref is in flight, and an object to which another object refers,
 *            stay alive even if no process holds them.
 * Algorithm  Such holds are records (links) in a separate table.  Clients make and end links under the store lock,
 *            and the slot of an object counts the links that hold it.  A receiver sets its own bit first and then
 *            ends the token.  The edges of an object form a chain that starts at its slot.  The client that retires
 *            the object turns these edges into its own DYING links, and ends them in a loop, not by recursion,
 *            because each ended link may free a further object.  An edge of kind BYTES is for a buffer whose bytes
 *            are in the other object: such an edge holds these bytes even after prs_free.
 * Guarantee  After a stolen lock prs_links_rebuild recounts the records; meanwhile every object counts
 *            as held.  An object refers only to older objects (with a smaller serial), so the
 *            references form no cycles.
 */
#include "store.h"

#define BURY_BATCH 32u
#define SWEEP 4096u /* links checked per acquisition of the lock */

static prs_arena *arena_of(const prs_store *s)
{
    return &s->super->arena;
}

static bool lives(const prs_slot *slot, const prs_link *link)
{
    uint64_t word = prs_load_seqcst(&slot->word);
    uint32_t state = prs_word_state(word);
    /* unreached by tests (impossible): the generation rises before the state does */
    return prs_word_generation(word) == link->generation && state != PRS_STATE_FREE && state != PRS_STATE_RESERVED;
}

/* ---- records; under the lock --------------------------------------------------------------------- */

/* Return the first free record; PRS_NIL if there is none, or if the stack of them is damaged. */
static uint32_t first_free(prs_store *s)
{
    prs_arena *a = arena_of(s);
    uint32_t i = a->link_free;
    /* unreached by tests (damaged tables, 2 branches) */
    if (i != PRS_NIL && (i >= prs_load_relaxed(&s->links_seen) || s->links[i].kind != PRS_LINK_FREE)) {
        prs_store_relaxed(&s->super->corrupt, 1);
        a->link_free = i = PRS_NIL; /* the caller publishes new records; a rebuild finds the lost ones */
    }
    return i;
}

static uint32_t record_take(prs_store *s)
{
    prs_arena *a = arena_of(s);
    uint32_t i = first_free(s);
    if (i != PRS_NIL) {
        a->link_free = s->links[i].next_free;
        return i;
    }
    /* unreached by tests (damaged tables) */
    return a->link_bump < prs_links_published(s) ? a->link_bump++ : PRS_NIL;
}

static void record_free(prs_store *s, uint32_t i)
{
    prs_arena *a = arena_of(s);
    prs_link *l = &s->links[i];
    if (l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY)
        a->tokens--;
    else if (prs_link_is_edge(l->kind) || prs_link_is_dying(l->kind))
        a->edges--;
    l->kind = PRS_LINK_FREE;
    l->serial = 0;
    l->next_free = a->link_free;
    a->link_free = i;
}

/* Count a link of this kind in its slot. */
static void count(prs_slot *slot, uint32_t kind)
{
    uint32_t links = prs_load_relaxed(&slot->links);
    bool more = prs_link_holds_bytes(kind) && (links & PRS_LINKS_BYTES) != PRS_LINKS_BYTES;
    prs_fetch_add_seqcst(&slot->links, 1 + (more ? PRS_LINKS_BYTES_ONE : 0));
}

/* Undo count(), and return whether the object may have lost its last hold. */
static bool uncount(prs_slot *slot, uint32_t kind)
{
    uint32_t links = prs_load_relaxed(&slot->links), bytes = links & PRS_LINKS_BYTES, gone = 1;
    if (prs_links_all(links) == 0)
        return false;
    if (prs_links_all(links) == 1)
        gone = links;
    else if (prs_link_holds_bytes(kind) && bytes && bytes != PRS_LINKS_BYTES)
        gone += PRS_LINKS_BYTES_ONE;
    prs_fetch_sub_seqcst(&slot->links, gone);
    return gone == links || (bytes && !((links - gone) & PRS_LINKS_BYTES));
}

/* Free a record and drop its hold; return the slot to try to free after unlocking, or PRS_NIL. */
uint32_t prs_link_end(prs_store *s, uint32_t i)
{
    prs_link *l = &s->links[i];
    uint32_t held = PRS_NIL;
    /* If the record is damaged, the object that it held is unknown and stays counted until a rebuild. */
    /* unreached by tests (damaged tables) */
    if (l->slot < prs_load_relaxed(&s->slots_seen)) {
        prs_slot *slot = prs_slot_at(s, l->slot);
        if (lives(slot, l)) {
            if (uncount(slot, l->kind))
                held = l->slot;
            PRS_POINT(bury_uncounted);
        }
    }
    record_free(s, i);
    PRS_POINT(bury_freed);
    return held;
}

/* Free the records of tokens whose object was freed before their message arrived: if a message never arrives, no other
 * call frees its record.  Return their number, or an error. */
static int64_t end_gone_tokens(prs_store *s, prs_error *error)
{
    int64_t ended = 0;
    for (uint32_t i = 0, limit = 1; i < limit;) {
        int rc = prs_lock_tables(s, error);
        /* unreached by tests (race): the lock was free a moment ago */
        if (rc < 0)
            return rc;
        uint32_t seen = prs_load_relaxed(&s->links_seen), bump = arena_of(s)->link_bump;
        limit = bump < seen ? bump : seen;
        for (uint32_t stop = i + SWEEP; i < limit && i < stop; i++) {
            const prs_link *l = &s->links[i];
            /* unreached by tests (damaged tables): a slot beyond the table */
            if ((l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY) &&
                l->slot < prs_load_relaxed(&s->slots_seen) && !lives(prs_slot_at(s, l->slot), l)) {
                (void)prs_link_end(s, i);
                ended++;
            }
        }
        prs_unlock(s);
    }
    return ended;
}

/* Take the store lock, and ensure that there is a free record.  If the length of the table is a power of two, or the
 * table cannot grow, we first search it for tokens whose object no longer exists, so the table is never more than twice
 * as long as needed.  If the search frees less than a quarter of the table, the table grows, so that many calls share
 * the cost of a search. */
int prs_link_lock(prs_store *s, prs_error *error)
{
    for (;;) {
        int rc = prs_lock_tables(s, error);
        if (rc < 0)
            return rc;
        uint32_t published = prs_links_published(s);
        if (first_free(s) != PRS_NIL || arena_of(s)->link_bump < published)
            return PRS_OK;
        prs_unlock(s);
        bool full = published >= s->max_links;
        /* unreached by tests (no test): a million tokens and edges */
        int64_t ended = full || (published & (published - 1)) == 0 ? end_gone_tokens(s, error) : 0;
        /* unreached by tests (race): the lock was free a moment ago */
        if (ended < 0)
            return (int)ended;
        /* unreached by tests (no test): a million tokens and edges */
        if (ended > (full ? 0 : published / 4))
            continue;
        rc = prs_links_grow(s, published, error);
        if (rc < 0)
            return rc;
    }
}

/* Make a record that holds `id`; return its index, or PRS_NIL if the object no longer exists.  If
 * *undone is set, we raised the count and lowered it again, so the caller must try to free the object
 * after unlocking.  A BYTES link may hold the bytes of a freed object, because the caller has pinned
 * them. */
uint32_t prs_link_make(prs_store *s, const prs_oid *id, uint32_t kind, prs_link_owner owner, uint32_t note,
                       bool *undone)
{
    prs_slot *slot = prs_slot_at(s, id->slot);
    uint32_t i = record_take(s);
    *undone = i == PRS_NIL; /* the stack of records was damaged */
    /* unreached by tests (damaged tables) */
    if (*undone)
        return PRS_NIL;
    prs_link *l = &s->links[i];
    *l = (prs_link){.serial = ++arena_of(s)->link_serial,
                    .inner = id->serial,
                    .slot = id->slot,
                    .generation = id->generation,
                    .owner = owner,
                    .note = note,
                    .created = prs_age(s),
                    .pid = (uint32_t)s->pid};
    PRS_POINT(link_filled);
    /* First count, then read the word, because a client that retires the object first changes the word, then reads the
     * count. */
    count(slot, kind);
    uint64_t word = prs_load_seqcst(&slot->word);
    bool freed = (word & PRS_WORD_FREED) && !prs_link_holds_bytes(kind);
    *undone = !lives(slot, l) || freed || prs_load_relaxed(&slot->serial) != id->serial;
    if (*undone) {
        (void)uncount(slot, kind);
        l->serial = 0;
        l->next_free = arena_of(s)->link_free;
        arena_of(s)->link_free = i;
        return PRS_NIL;
    }
    l->kind = kind;
    if (kind == PRS_LINK_ONCE || kind == PRS_LINK_STICKY)
        arena_of(s)->tokens++;
    else if (kind != PRS_LINK_NAME)
        arena_of(s)->edges++;
    PRS_POINT(link_counted);
    return i;
}

/* ---- tokens ------------------------------------------------------------------------------------------ */

int prs_token_take(prs_store *s, const prs_oid *id, int kind, prs_token *token)
{
    return prs_token_take_noted(s, id, kind, 0, token);
}

int prs_token_take_noted(prs_store *s, const prs_oid *id, int kind, uint32_t note, prs_token *token)
{
    *token = (prs_token){0, 0, 0};
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return PRS_E_CLOSED;
    if (id->store != s->id || id->slot >= prs_slots_published(s))
        return PRS_E_LOST;
    int rc = prs_link_lock(s, NULL);
    if (rc < 0) {
        /* There is no free record, so the sticky holder keeps the object until the end of the store. */
        uint64_t sticky = 1ull << PRS_STICKY_CLIENT;
        if (!(prs_fetch_or_seqcst(&prs_slot_at(s, id->slot)->holders[0], sticky) & sticky))
            prs_fetch_add_relaxed(&s->super->orphaned, 1);
        (void)prs_hold_confirm(prs_slot_at(s, id->slot), id->serial);
        rc = prs_state(s, id);
        /* unreached by tests (no test): the object is a draft that the sticky holder owns */
        return rc == PRS_E_AGAIN ? PRS_OK : rc;
    }
    bool undone;
    uint32_t i =
        prs_link_make(s, id, (uint32_t)kind, (prs_link_owner){.client = {s->me, s->incarnation}}, note, &undone);
    if (i != PRS_NIL)
        *token = (prs_token){i + 1, 0, s->links[i].serial};
    prs_unlock(s);
    if (undone) {
        prs_try_free(s, id->slot);
        rc = prs_state(s, id);
        /* unreached by tests (race): prs_free ran meanwhile */
        return rc < 0 ? rc : PRS_E_LOST;
    }
    return PRS_OK;
}

static void end_token(prs_store *s, const prs_token *token)
{
    if (token->index == 0 || prs_load_relaxed(&s->closed) || s->orphan)
        return;
    uint32_t i = token->index - 1, held = PRS_NIL;
    if (prs_lock_tables(s, NULL) < 0)
        return;
    const prs_link *l = i < prs_load_relaxed(&s->links_seen) ? &s->links[i] : NULL;
    if (l && l->serial == token->serial && (l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY)) {
        PRS_POINT(link_claimed);
        held = prs_link_end(s, i);
    }
    PRS_POINT(link_dropped);
    prs_unlock(s);
    if (held != PRS_NIL)
        prs_try_free(s, held);
}

int prs_token_claim(prs_store *s, const prs_oid *id, const prs_token *token)
{
    int rc = prs_ref(s, id);
    if (rc == PRS_OK || rc == PRS_E_FREED || rc == PRS_E_LOST) /* end the token of a missing object, too */
        end_token(s, token);
    return rc;
}

void prs_token_drop(prs_store *s, const prs_oid *id, const prs_token *token)
{
    (void)id;
    end_token(s, token);
}

/* ---- edges -------------------------------------------------------------------------------------------- */

static int add_edge(prs_store *s, prs_draft *draft, const prs_oid *inner, uint32_t kind, prs_error *error)
{
    if (inner->store != s->id || inner->serial >= draft->id.serial || inner->slot >= prs_slots_published(s))
        return prs_fail(error, PRS_E_INVAL, 0, "an object can name only older objects of its own store");
    int rc = prs_link_lock(s, error);
    if (rc < 0)
        return rc;
    prs_slot *outer = prs_slot_at(s, draft->id.slot);
    bool undone;
    uint32_t i = prs_link_make(s, inner, kind, (prs_link_owner){.outer = {draft->id.slot, draft->id.generation}},
                               PRS_NIL, &undone);
    if (i != PRS_NIL) {
        s->links[i].next_edge = prs_load_relaxed(&outer->edges);
        prs_store_relaxed(&outer->edges, i);
        PRS_POINT(edge_chained);
    }
    prs_unlock(s);
    if (undone) {
        prs_try_free(s, inner->slot);
        return prs_fail(error, PRS_E_LOST, 0, "an object that this one refers to no longer exists");
    }
    return PRS_OK;
}

int prs_add_edge(prs_store *s, prs_draft *draft, const prs_oid *inner, prs_error *error)
{
    return add_edge(s, draft, inner, PRS_LINK_EDGE, error);
}

int prs_add_bytes_edge(prs_store *s, prs_draft *draft, const prs_oid *inner, prs_error *error)
{
    return add_edge(s, draft, inner, PRS_LINK_BYTES, error);
}

/* Make this client the one that ends the link. The owner changes from an object or a client to this client, and its
 * first half is PRS_NIL in between, so that after a death a rebuild cannot confuse the two. */
static void adopt(prs_store *s, uint32_t i)
{
    prs_link *l = &s->links[i];
    *(volatile uint32_t *)&l->owner.outer.slot = PRS_NIL;
    *(volatile uint32_t *)&l->kind = prs_link_holds_bytes(l->kind) ? PRS_LINK_BYTES_DYING : PRS_LINK_DYING;
    *(volatile uint32_t *)&l->owner.client.incarnation = s->incarnation;
    *(volatile uint32_t *)&l->owner.client.index = s->me;
    l->next_edge = s->dying;
    s->dying = i;
}

void prs_link_splice(prs_store *s, uint32_t outer)
{
    prs_slot *slot = prs_slot_at(s, outer);
    uint32_t i = prs_load_relaxed(&slot->edges), limit = prs_load_relaxed(&s->links_seen);
    prs_store_relaxed(&slot->edges, PRS_NIL);
    /* unreached by tests (damaged tables) */
    while (i != PRS_NIL && i < limit) {
        prs_link *l = &s->links[i];
        uint32_t next = l->next_edge;
        if (!prs_link_is_edge(l->kind) || l->owner.outer.slot != outer)
            break; /* the chain is damaged: its other links hold their objects until a rebuild finds them */
        adopt(s, i);
        i = next;
    }
    if (s->dying != PRS_NIL)
        prs_store_relaxed(&s->has_dying, 1);
}

bool prs_edges_release(prs_store *s, prs_patience patience)
{
    uint32_t held[BURY_BATCH], n = 0;
    if (!(patience == PRS_WAIT ? prs_lock_tables(s, NULL) == PRS_OK : prs_trylock_tables(s)))
        return false;
    for (uint32_t k = 0; k < BURY_BATCH && s->dying != PRS_NIL; k++) {
        uint32_t i = s->dying;
        if (i >= prs_load_relaxed(&s->links_seen) || !prs_link_is_dying(s->links[i].kind) ||
            s->links[i].owner.client.index != s->me) {
            s->dying = PRS_NIL; /* the chain is damaged: a rebuild or a reaper finds the rest of it */
            break;
        }
        s->dying = s->links[i].next_edge;
        uint32_t slot = prs_link_end(s, i);
        if (slot != PRS_NIL)
            held[n++] = slot;
    }
    prs_store_relaxed(&s->has_dying, s->dying != PRS_NIL);
    prs_unlock(s);
    for (uint32_t k = 0; k < n; k++)
        prs_try_free(s, held[k]);
    return true;
}

/* ---- recovery ---------------------------------------------------------------------------------------------- */

/* Return whether the outer object of this edge still exists. */
static bool outer_lives(const prs_store *s, const prs_link *l)
{
    /* unreached by tests (damaged tables) */
    if (l->owner.outer.slot >= prs_slots_published(s))
        return false;
    uint64_t word = prs_load_seqcst(&prs_slot_at(s, l->owner.outer.slot)->word);
    uint32_t state = prs_word_state(word);
    /* A retired object does not count as existing, because its slot may be in a magazine by now, where no code searches
     * for edges. */
    return state != PRS_STATE_FREE && state != PRS_STATE_RESERVED &&
           prs_word_generation(word) == l->owner.outer.generation;
}

void prs_links_rebuild(prs_store *s)
{
    prs_arena *a = arena_of(s);
    uint32_t slots = prs_slots_published(s), links = prs_links_published(s);
    uint32_t epoch = prs_load_seqcst(&s->super->recount);
    prs_store_seqcst(&s->super->recount, epoch | 1); /* from here on every object counts as held */
    prs_names_settle(s);
    for (uint32_t i = 0; i < slots; i++) {
        prs_store_seqcst(&prs_slot_at(s, i)->links, 0);
        prs_store_relaxed(&prs_slot_at(s, i)->edges, PRS_NIL);
    }
    a->link_free = PRS_NIL;
    a->link_bump = links;
    a->tokens = a->edges = 0;
    s->dying = PRS_NIL;
    PRS_POINT(rebuild_counting);
    for (uint32_t i = links; i-- > 0;) {
        prs_link *l = &s->links[i];
        /* unreached by tests (damaged tables): a serial above its counter */
        if (l->serial > a->link_serial)
            a->link_serial = l->serial;
        /* unreached by tests (damaged tables, 3 branches) */
        bool known = l->kind != PRS_LINK_FREE && l->kind <= PRS_LINK_LAST && l->serial != 0 && l->slot < slots;
        bool holds = known && lives(prs_slot_at(s, l->slot), l);
        /* Keep a link that is in the dying chain of another client (alive or not yet reaped), even if its object was
         * freed, because that client still follows the chain. */
        bool others = known && prs_link_is_dying(l->kind) && l->owner.client.index != s->me &&
                      prs_client_is(s, l->owner.client.index, l->owner.client.incarnation);
        bool valid = others || (holds && (l->kind != PRS_LINK_NAME || prs_name_has(s, l->owner.name.entry, i)));
        if (!valid) {
            l->kind = PRS_LINK_FREE;
            l->serial = 0;
            l->next_free = a->link_free;
            a->link_free = i;
            continue;
        }
        if (holds)
            count(prs_slot_at(s, l->slot), l->kind);
        if (prs_link_is_edge(l->kind) && outer_lives(s, l)) {
            prs_slot *outer = prs_slot_at(s, l->owner.outer.slot);
            l->next_edge = prs_load_relaxed(&outer->edges);
            prs_store_relaxed(&outer->edges, i);
        } else if (prs_link_is_edge(l->kind) || (prs_link_is_dying(l->kind) && !others)) {
            adopt(s, i);
        }
        if (l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY)
            a->tokens++;
        else if (l->kind != PRS_LINK_NAME)
            a->edges++;
    }
    prs_names_rebuild(s);
    prs_store_relaxed(&s->has_dying, s->dying != PRS_NIL);
    prs_store_seqcst(&s->super->recount, (epoch | 1) + 1);
}

/* Adopt the dying edges of a dead client, but keep its tokens, because their messages may still arrive.  Return
 * false if the lock is not available: the caller must then keep the client's state. */
bool prs_links_reap(prs_store *s, uint32_t client, uint32_t incarnation)
{
    if (prs_lock_tables(s, NULL) < 0)
        return false;
    uint32_t links = prs_load_relaxed(&s->links_seen), bump = arena_of(s)->link_bump;
    for (uint32_t i = 0; i < links && i < bump; i++) {
        const prs_link *l = &s->links[i];
        if (prs_link_is_dying(l->kind) && l->owner.client.index == client && l->owner.client.incarnation == incarnation)
            adopt(s, i);
    }
    prs_store_relaxed(&s->has_dying, s->dying != PRS_NIL);
    prs_unlock(s);
    return true;
}

/* ---- checking ------------------------------------------------------------------------------------------------ */

/* Check the slot and the owner that a record refers to. */
static int check_record(prs_store *s, uint32_t i, prs_error *error)
{
    uint32_t slots = prs_slots_published(s);
    const prs_link *l = &s->links[i];
    if (l->kind == PRS_LINK_FREE)
        return PRS_OK;
    if (l->kind > PRS_LINK_LAST || l->slot >= slots)
        return prs_fail(error, PRS_E_CORRUPT, 0, "link %u is of no known kind or holds no slot", i);
    if (prs_link_is_edge(l->kind)) {
        if (l->owner.outer.slot >= slots)
            return prs_fail(error, PRS_E_CORRUPT, 0, "link %u belongs to no object", i);
        const prs_slot *outer = prs_slot_at(s, l->owner.outer.slot);
        /* unreached by tests (race): an object that lost its last holder a moment ago */
        if (outer_lives(s, l) && prs_word_state(prs_load_seqcst(&outer->word)) == PRS_STATE_SEALED &&
            l->inner >= prs_load_relaxed(&outer->serial))
            return prs_fail(error, PRS_E_CORRUPT, 0, "object of slot %u names a younger object", l->owner.outer.slot);
    }
    return PRS_OK;
}

/* Check that a record is counted in its slot. */
static int check_counted(prs_store *s, uint32_t i, prs_error *error)
{
    const prs_link *l = &s->links[i];
    if (l->kind == PRS_LINK_FREE || !lives(prs_slot_at(s, l->slot), l))
        return PRS_OK;
    uint32_t count = prs_load_seqcst(&prs_slot_at(s, l->slot)->links);
    if (prs_links_all(count) == 0 || (prs_link_holds_bytes(l->kind) && !(count & PRS_LINKS_BYTES)))
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u is held by link %u and counts none", l->slot, i);
    return PRS_OK;
}

uint32_t prs_links_in_use(const prs_store *s)
{
    uint32_t links = prs_links_published(s), bump = arena_of(s)->link_bump;
    return bump < links ? bump : links;
}

/* Return whether an index may occur on the stack of free records, that is, whether it is PRS_NIL or the index of a free
 * record. */
bool prs_link_may_be_free(const prs_store *s, uint32_t i)
{
    return i == PRS_NIL || (i < prs_links_in_use(s) && s->links[i].kind == PRS_LINK_FREE);
}

int prs_link_check_one(prs_store *s, uint32_t i, prs_error *error)
{
    const prs_link *l = &s->links[i];
    if (l->kind == PRS_LINK_FREE && (l->next_free == i || !prs_link_may_be_free(s, l->next_free)))
        return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free links is broken");
    int rc = check_record(s, i, error);
    return rc < 0 ? rc : check_counted(s, i, error);
}

int prs_links_check(prs_store *s, prs_error *error)
{
    prs_arena *a = arena_of(s);
    uint32_t tokens = 0, edges = 0, unused = 0, limit = prs_links_in_use(s);
    for (uint32_t i = 0; i < limit; i++) {
        const prs_link *l = &s->links[i];
        int rc = check_record(s, i, error);
        if (rc < 0)
            return rc;
        if (l->kind == PRS_LINK_FREE)
            unused++;
        else if (l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY)
            tokens++;
        else if (l->kind != PRS_LINK_NAME)
            edges++;
    }
    if (tokens != a->tokens || edges != a->edges)
        return prs_fail(error, PRS_E_CORRUPT, 0, "%u tokens and %u edges are counted as %u and %u", tokens, edges,
                        a->tokens, a->edges);
    for (uint32_t i = a->link_free; i != PRS_NIL; i = s->links[i].next_free) {
        if (i >= limit || s->links[i].kind != PRS_LINK_FREE || unused-- == 0)
            return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free links is broken");
    }
    if (unused)
        return prs_fail(error, PRS_E_CORRUPT, 0, "%u free links are not on the stack", unused);
    /* Check the counts by visiting each link once, because we have no memory for a full recount. */
    for (uint32_t i = 0; i < limit; i++) {
        int rc = check_counted(s, i, error);
        if (rc < 0)
            return rc;
    }
    return PRS_OK;
}
