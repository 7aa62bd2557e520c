/* check.c - inspecting a store: consistency check, statistics, list of objects.
 *
 * Guarantee  prs_check takes the store lock and verifies every invariant of layout.h, except those that
 *            other clients may be changing without the lock at that moment.  prs_check_in_slices
 *            releases the lock after each slice, so that a long table does not delay other clients.
 *            Statistics are counted by walking the table, because put and get maintain no counters.
 */
#include "store.h"

static int check_slot(prs_store *s, uint32_t i, prs_error *error)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t word = prs_load_seqcst(&slot->word);
    uint32_t state = prs_word_state(word), client = prs_word_client(word);
    if (state > PRS_STATE_SPILLING)
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u is in no known state", i);
    if (state == PRS_STATE_FREE)
        return PRS_OK;
    if (client >= s->super->max_clients)
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u belongs to no client", i);
    if (word & PRS_WORD_FILE) {
        /* unreached by tests (death, 2 branches): after the commit of a spill, with the object freed since */
        if (prs_load_relaxed(&slot->extent) != PRS_NIL && state != PRS_STATE_RESERVED && state != PRS_STATE_FREEING)
            return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u is spilled and has an extent", i);
        return PRS_OK;
    }
    uint64_t off = prs_load_relaxed(&slot->off), cap = prs_load_relaxed(&slot->cap);
    uint32_t extent = prs_load_relaxed(&slot->extent);
    if (off > s->capacity || cap > s->capacity - off || off % PRS_UNIT)
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u lies outside the data area", i);
    if (extent >= 2 * prs_load_relaxed(&s->super->published) + 8 || !prs_extent_used(&s->extents[extent]) ||
        s->extents[extent].slot != i)
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u and its extent disagree", i);
    if (state == PRS_STATE_SEALED && (prs_load_relaxed(&slot->size) > cap || prs_load_relaxed(&slot->serial) == 0 ||
                                      prs_load_relaxed(&slot->serial) >= prs_load_seqcst(&s->super->serial)))
        return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u: size or serial of a sealed object is wrong", i);
    return PRS_OK;
}

/* Reject bits of clients that never existed, because no process would clear these bits. */
static int check_holders(prs_store *s, uint32_t i, prs_error *error)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint32_t high = prs_load_seqcst(&s->super->client_high);
    for (uint32_t w = 0; w < 2 * s->holder_words; w++) {
        uint64_t bits = prs_load_seqcst(&slot->holders[w]);
        uint32_t first = w % s->holder_words * 64;
        uint64_t known = high <= first ? 0 : high - first >= 64 ? ~0ull : (1ull << (high - first)) - 1;
        if (bits & ~(known | (first == 0)))
            return prs_fail(error, PRS_E_CORRUPT, 0, "slot %u is held by a client that never existed", i);
    }
    return PRS_OK;
}

/* Check the lengths of the tables first, because all other checks rely on them. */
static int check_lengths(prs_store *s, prs_error *error)
{
    uint32_t published = prs_load_acquire(&s->super->published);
    if (published > s->max_slots || prs_load_relaxed(&s->super->links_published) > s->max_links ||
        prs_load_relaxed(&s->super->client_high) > s->super->max_clients)
        return prs_fail(error, PRS_E_CORRUPT, 0, "a table is longer than its room");
    if (prs_load_relaxed(&s->super->corrupt))
        return prs_fail(error, PRS_E_CORRUPT, 0, "damage was found in the tables earlier");
    if (s->super->arena.extent_bump > 2 * published + 8)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the table of extents is longer than its room");
    return PRS_OK;
}

static int check_locked(prs_store *s, prs_error *error)
{
    prs_arena *a = &s->super->arena;
    uint32_t published = prs_load_acquire(&s->super->published), limit = published;
    int rc = check_lengths(s, error);
    if (rc < 0)
        return rc;
    uint32_t free_slots = 0;
    for (uint32_t i = 0; i < published; i++) {
        rc = check_slot(s, i, error);
        if (rc == PRS_OK)
            rc = check_holders(s, i, error);
        if (rc < 0)
            return rc;
        free_slots += prs_word_state(prs_load_seqcst(&prs_slot_at(s, i)->word)) == PRS_STATE_FREE;
    }
    uint32_t stacked = 0;
    for (uint32_t i = a->slot_free; i != PRS_NIL; i = prs_load_relaxed(&prs_slot_at(s, i)->next_free)) {
        if (i >= published || limit-- == 0 ||
            prs_word_state(prs_load_seqcst(&prs_slot_at(s, i)->word)) != PRS_STATE_FREE)
            return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free slots is broken");
        stacked++;
    }
    if (stacked != free_slots || stacked != a->slot_free_count)
        return prs_fail(error, PRS_E_CORRUPT, 0, "%u slots are free, %u on the stack, %u counted", free_slots, stacked,
                        a->slot_free_count);
    rc = prs_extent_check(s, error);
    if (rc == PRS_OK)
        rc = prs_links_check(s, error);
    return rc < 0 ? rc : prs_names_check(s, error);
}

int prs_check(prs_store *s, prs_error *error)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return prs_fail(error, PRS_E_CLOSED, 0, "the store is closed");
    int rc = prs_lock_tables(s, error);
    if (rc < 0)
        return rc;
    rc = check_locked(s, error);
    prs_unlock(s);
    return rc;
}

/* ---- in slices ---------------------------------------------------------------------------------- */

#define SLICE 4096u /* entries checked per acquisition of the lock */
#define BREATH (50 * (PRS_MS / 1000))

/* Return whether an index may occur on the stack of free slots, that is, whether it is PRS_NIL or the index of a free
 * slot. */
static bool may_be_free(const prs_store *s, uint32_t i)
{
    return i == PRS_NIL ||
           (i < prs_slots_published(s) && prs_word_state(prs_load_seqcst(&prs_slot_at(s, i)->word)) == PRS_STATE_FREE);
}

static int check_one_slot(prs_store *s, uint32_t i, prs_error *error)
{
    const prs_slot *slot = prs_slot_at(s, i);
    uint32_t next = prs_load_relaxed(&slot->next_free);
    bool unused = prs_word_state(prs_load_seqcst(&slot->word)) == PRS_STATE_FREE;
    if (unused && (next == i || !may_be_free(s, next)))
        return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free slots is broken");
    int rc = check_slot(s, i, error);
    return rc < 0 ? rc : check_holders(s, i, error);
}

/* Check the heads of all chains, and the names. */
static int check_heads(prs_store *s, uint32_t i, prs_error *error)
{
    if (!may_be_free(s, s->super->arena.slot_free))
        return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free slots is broken");
    if (!prs_link_may_be_free(s, s->super->arena.link_free))
        return prs_fail(error, PRS_E_CORRUPT, 0, "the stack of free links is broken");
    int rc = prs_extent_check_heads(s, error);
    return rc < 0 ? rc : prs_names_check(s, error);
}

static uint32_t one(const prs_store *s)
{
    return 1;
}

int prs_check_in_slices(prs_store *s, prs_error *error)
{
    static const struct {
        uint32_t (*length)(const prs_store *s);
        int (*check)(prs_store *s, uint32_t i, prs_error *error);
    } tables[] = {{one, check_heads},
                  {prs_slots_published, check_one_slot},
                  {prs_extents_in_use, prs_extent_check_one},
                  {prs_links_in_use, prs_link_check_one}};
    if (prs_slots_published(s) <= SLICE && prs_links_published(s) <= SLICE)
        return prs_check(s, error);
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (uint32_t i = 0, length = 1; i < length;) {
            int rc = prs_lock_tables(s, error);
            if (rc < 0)
                return rc;
            rc = check_lengths(s, error);
            length = rc < 0 ? 0 : tables[t].length(s);
            uint32_t end = i + SLICE < length ? i + SLICE : length;
            for (; rc == PRS_OK && i < end; i++)
                rc = tables[t].check(s, i, error);
            bool wanted = prs_lock_wanted(s);
            prs_unlock(s);
            if (rc < 0)
                return rc;
            if (wanted)
                prs_os_sleep(BREATH); /* let the waiting client wake up first */
        }
    return PRS_OK;
}

/* Return whether the client lives and is not a visitor. */
static bool counts(const prs_client *c)
{
    uint64_t state = prs_load_acquire(&c->state);
    return (state & 0xFF) == PRS_CLIENT_LIVE && prs_load_relaxed(&c->visiting) != state >> 32;
}

int prs_get_stats(prs_store *s, prs_stats *out)
{
    memset(out, 0, sizeof *out);
    if (prs_load_relaxed(&s->closed))
        return PRS_E_CLOSED;
    prs_deferred_run(s, PRS_WAIT);
    prs_reap_dead(s, PRS_SECOND);
    prs_super *super = s->super;
    uint64_t reserved = 0, used = 0, overhead = 0;
    uint32_t published = prs_slots_published(s);
    for (uint32_t i = 0; i < published; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        switch (prs_word_state(prs_load_relaxed(&slot->word))) {
        case PRS_STATE_RESERVED:
            reserved += prs_load_relaxed(&slot->cap);
            break;
        case PRS_STATE_CREATING:
            out->unsealed++;
            used += prs_load_relaxed(&slot->cap);
            break;
        case PRS_STATE_SEALED:
        case PRS_STATE_FREEING:
        case PRS_STATE_SPILLING:
            out->objects++;
            used += prs_load_relaxed(&slot->cap);
            if (prs_load_relaxed(&slot->word) & PRS_WORD_FILE) {
                out->spilled++;
                out->spilled_bytes += prs_load_relaxed(&slot->size);
            }
            break;
        default:
            break;
        }
    }
    overhead = (uint64_t)published * (s->slot_stride + 2 * sizeof(prs_extent)) +
               (uint64_t)prs_links_published(s) * sizeof(prs_link) +
               (uint64_t)prs_load_relaxed(&super->client_high) * sizeof(prs_client) + sizeof(prs_super);
    out->capacity = s->capacity;
    out->used = used;
    out->reserved = reserved;
    out->overhead = overhead;
    /* unreached by tests (no test): other code closed the descriptor */
    out->backed = prs_os_same(s->fd_rw, &s->file)
                      ? prs_os_blocks(s->fd_rw)
                      : prs_pages_count(s->area.backed, 0, s->capacity / PRS_PAGE) * PRS_PAGE;
    out->slots = published;
    out->max_clients = super->max_clients;
    out->serial = prs_load_relaxed(&super->serial);
    out->reaped = prs_load_relaxed(&super->reaped);
    out->stolen = prs_load_relaxed(&super->stolen);
    out->pulls = prs_load_relaxed(&super->pulls);
    out->pulled_bytes = prs_load_relaxed(&super->pulled_bytes);
    out->failed_pulls = prs_load_relaxed(&super->failed_pulls);
    out->orphaned = prs_load_relaxed(&super->orphaned);
    for (uint32_t i = 1; i < prs_load_relaxed(&super->client_high) && i < super->max_clients; i++)
        out->clients += counts(&s->clients[i]);
    if (!s->orphan && prs_lock_tables(s, NULL) == PRS_OK) {
        out->largest_free = prs_extent_largest(s);
        out->in_flight = super->arena.tokens;
        out->edges = super->arena.edges;
        prs_unlock(s);
    }
    return PRS_OK;
}

void prs_count_pull(prs_store *s, uint64_t bytes)
{
    if (prs_load_relaxed(&s->closed))
        return;
    prs_fetch_add_relaxed(&s->super->pulls, 1);
    prs_fetch_add_relaxed(&s->super->pulled_bytes, bytes);
}

void prs_count_failed_pull(prs_store *s)
{
    if (!prs_load_relaxed(&s->closed))
        prs_fetch_add_relaxed(&s->super->failed_pulls, 1);
}

static uint32_t count_bits(const prs_atomic_u64 *words, uint32_t n)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < n; i++)
        bits += (uint32_t)__builtin_popcountll(prs_load_relaxed(&words[i]));
    return bits;
}

/* A cache of a client slot and its process, so that we do not repeat the proof of its death for each of its objects. */
struct maker {
    uint32_t client;
    uint64_t first_serial;
    int32_t pid; /* 0 if it is not alive */
};

/* Return the pid of the client that created an object. Return 0 if that client has left or died, even if it has not
 * been reaped yet, because another process may have its pid by now. */
static int32_t creator_pid(prs_store *s, uint32_t client, uint64_t serial, struct maker *known)
{
    if (client >= s->super->max_clients)
        return 0;
    if (client != known->client) {
        prs_client *c = &s->clients[client];
        bool live = (prs_load_acquire(&c->state) & 0xFF) == PRS_CLIENT_LIVE && !prs_client_dead(s, client);
        *known =
            (struct maker){client, prs_load_relaxed(&c->first_serial), live ? (int32_t)prs_load_relaxed(&c->pid) : 0};
    }
    return serial >= known->first_serial ? known->pid : 0; /* this client, not an earlier one in its slot */
}

int32_t prs_creator(prs_store *s, const prs_oid *id)
{
    struct maker known = {.client = PRS_NIL};
    if (prs_state(s, id) != PRS_OK)
        return 0;
    uint64_t word = prs_load_acquire(&prs_slot_at(s, id->slot)->word);
    /* unreached by tests (race): the object was freed after the check */
    if (prs_word_generation(word) != id->generation)
        return 0;
    return creator_pid(s, prs_word_client(word), id->serial, &known);
}

int prs_list(prs_store *s, uint32_t *cursor, prs_record *out, int cap)
{
    int n = 0;
    struct maker known = {.client = PRS_NIL};
    uint32_t published = prs_slots_published(s);
    for (; *cursor < published && n < cap; ++*cursor) {
        prs_slot *slot = prs_slot_at(s, *cursor);
        uint64_t word = prs_load_acquire(&slot->word);
        uint32_t state = prs_word_state(word);
        if (state == PRS_STATE_FREE || state == PRS_STATE_RESERVED)
            continue;
        prs_record *r = &out[n];
        memset(r, 0, sizeof *r);
        r->id = (prs_oid){s->id, prs_load_relaxed(&slot->serial), *cursor, prs_word_generation(word)};
        r->size = prs_load_relaxed(&slot->size);
        r->extent = prs_load_relaxed(&slot->cap);
        r->off = prs_load_relaxed(&slot->off);
        r->state = state;
        r->ref_holders = count_bits(prs_refs(slot), s->holder_words);
        r->pin_holders = count_bits(prs_pins(s, slot), s->holder_words);
        r->tokens_and_edges = prs_links_all(prs_load_relaxed(&slot->links));
        r->creator_pid = creator_pid(s, prs_word_client(word), r->id.serial, &known);
        uint32_t now = prs_age(s), created = prs_load_relaxed(&slot->created);
        r->age = now > created ? now - created : 0;
        r->freed = word & PRS_WORD_FREED;
        r->spilled = word & PRS_WORD_FILE;
        r->orphaned = (prs_load_relaxed(prs_refs(slot)) | prs_load_relaxed(prs_pins(s, slot))) & 1;
        if (prs_load_acquire(&slot->word) == word) /* skip objects that change while we read them */
            n++;
    }
    return n;
}
