/* in_flight.c - references in flight: list the tokens, and end those of lost messages.
 *
 * Purpose    A lost message leaves its token behind.  Only a caller can know that a message is lost (for example,
 *            because the caller has drained the pipe of a dead worker), so the caller needs a list of tokens and a
 *            call that ends the tokens of a dead sender.
 * Algorithm  Walk the table of links from a cursor, one batch per acquisition of the store lock, so that we
 *            hold the lock for a short time even if the table is long.  A sender is alive while its client
 *            slot has the incarnation of the link and the client is not proven dead.
 * Guarantee  No token of a living sender is ended while its object exists.  If a process dies between ending
 *            a record and freeing the object, its reaper frees the object, as it does in any other call.
 */
#include "store.h"

#define WALK 4096u /* links checked per acquisition of the lock */
#define BATCH 64u

static bool is_token(const prs_link *l)
{
    return l->kind == PRS_LINK_ONCE || l->kind == PRS_LINK_STICKY;
}

/* Return whether the token's object still exists.  A token of an object freed for all clients holds nothing. */
static bool holds(prs_store *s, const prs_link *l)
{
    /* unreached by tests (damaged tables) */
    if (l->slot >= prs_load_relaxed(&s->slots_seen))
        return false;
    const prs_slot *slot = prs_slot_at(s, l->slot);
    uint64_t word = prs_load_seqcst(&slot->word);
    uint32_t state = prs_word_state(word);
    /* unreached by tests (impossible, 2 branches): the generation rises before the state does */
    return prs_word_generation(word) == l->generation && state != PRS_STATE_FREE && state != PRS_STATE_RESERVED &&
           prs_load_relaxed(&slot->serial) == l->inner;
}

static uint64_t size_of(prs_store *s, const prs_link *l)
{
    return holds(s, l) ? prs_load_relaxed(&prs_slot_at(s, l->slot)->size) : 0;
}

/* Lock the store, if it is open, with all tables mapped. */
static int lock_open(prs_store *s, prs_error *error)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return prs_fail(error, PRS_E_CLOSED, 0, "the store is closed");
    return prs_lock_tables(s, error);
}

static uint32_t links_in_use(const prs_store *s)
{
    uint32_t seen = prs_load_relaxed(&s->links_seen), bump = s->super->arena.link_bump;
    return bump < seen ? bump : seen;
}

int prs_flights(prs_store *s, uint32_t *cursor, prs_flight *out, int cap, prs_error *error)
{
    int n = 0;
    for (bool more = true; more && n < cap;) {
        int rc = lock_open(s, error);
        if (rc < 0)
            return rc;
        uint32_t limit = links_in_use(s), stop = limit - *cursor > WALK ? *cursor + WALK : limit;
        if (*cursor > limit)
            stop = *cursor;
        uint32_t now = prs_age(s);
        for (; *cursor < stop && n < cap; ++*cursor) {
            const prs_link *l = &s->links[*cursor];
            if (!is_token(l))
                continue;
            out[n++] = (prs_flight){.id = {s->id, l->inner, l->slot, l->generation},
                                    .token = {*cursor + 1, 0, l->serial},
                                    .kind = (int)l->kind,
                                    .sender = l->owner.client.index,
                                    .incarnation = l->owner.client.incarnation,
                                    .sender_pid = (int32_t)l->pid,
                                    .note = l->note,
                                    .size = size_of(s, l),
                                    .object_gone = !holds(s, l),
                                    .age = now > l->created ? now - l->created : 0};
        }
        more = *cursor < limit;
        prs_unlock(s);
    }
    /* Do this without the lock, because a proof of death makes system calls. */
    for (int i = 0; i < n; i++)
        out[i].sender_alive = prs_client_is(s, out[i].sender, out[i].incarnation) &&
                              (out[i].sender == s->me || !prs_client_dead(s, out[i].sender));
    return n;
}

/* End the tokens of `flight[0..n)` that still exist; return their number. */
static int end_batch(prs_store *s, const prs_flight *flight, uint32_t n, prs_error *error)
{
    uint32_t held[BATCH], frees = 0;
    int ended = 0, rc = lock_open(s, error);
    /* unreached by tests (race): the lock was free a moment ago */
    if (rc < 0)
        return rc;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t i = flight[k].token.index - 1;
        const prs_link *l = &s->links[i];
        /* unreached by tests (race, 3 branches): the receiver claimed it meanwhile */
        if (i >= links_in_use(s) || !is_token(l) || l->serial != flight[k].token.serial)
            continue; /* the receiver has claimed the token meanwhile */
        uint32_t slot = prs_link_end(s, i);
        PRS_POINT(flight_ended);
        if (slot != PRS_NIL)
            held[frees++] = slot;
        ended++;
    }
    prs_unlock(s);
    for (uint32_t k = 0; k < frees; k++)
        prs_try_free(s, held[k]);
    return ended;
}

static bool is_lost(const prs_flight *f, int32_t pid, int64_t min_age)
{
    if (f->object_gone)
        return true; /* the object no longer exists, so a receiver could not get it */
    return f->kind == PRS_TOKEN_ONCE && !f->sender_alive && (pid == 0 || f->sender_pid == pid) && f->age >= min_age;
}

int prs_flights_end(prs_store *s, int32_t pid, int64_t min_age, prs_error *error)
{
    prs_flight flight[BATCH];
    uint32_t cursor = 0;
    int64_t seconds = (min_age + PRS_SECOND - 1) / PRS_SECOND;
    for (int n, total = 0;;) {
        if ((n = prs_flights(s, &cursor, flight, BATCH, error)) <= 0)
            return n < 0 ? n : total;
        uint32_t lost = 0;
        for (int k = 0; k < n; k++)
            if (is_lost(&flight[k], pid, seconds))
                flight[lost++] = flight[k];
        int rc = lost ? end_batch(s, flight, lost, error) : 0;
        /* unreached by tests (race) */
        if (rc < 0)
            return rc;
        total += rc;
    }
}
