/* wait.c - waiting for objects that are not sealed yet.
 *
 * Purpose    A get of an unsealed object sleeps until the object is sealed or lost.
 * Algorithm  The waiter marks the word (WAITERS) and sleeps on the word's low half in slices.  A
 *            process that seals or retires the object sees the mark in the value that it replaces, and
 *            wakes the waiters.  A wait for many objects uses another futex, the epoch, which changes
 *            whenever such waiters are woken.
 * Guarantee  No wake-up is lost: the CAS sets the mark in the same word that the futex compares.  If
 *            the creator dies, the wait ends after the current slice.
 */
#include "store.h"
#include <errno.h>

#define SLICE (100 * PRS_MS)

static bool pending(uint64_t word)
{
    /* unreached by tests (race): the object is being spilled */
    return prs_word_state(word) == PRS_STATE_CREATING || prs_word_state(word) == PRS_STATE_SPILLING;
}

/* Mark the word of an object that cannot be read yet (unsealed, or being spilled).  Return PRS_E_AGAIN if it is
 * marked; the caller then sleeps while the low half of the word is *low. */
static int mark(prs_store *s, const prs_oid *id, uint32_t *low)
{
    int rc = prs_state(s, id);
    if (rc < 0 && rc != PRS_E_AGAIN)
        return rc;
    prs_slot *slot = prs_slot_at(s, id->slot);
    uint64_t word = prs_load_seqcst(&slot->word);
    for (;;) {
        /* unreached by tests (race): retired between the two reads of the word */
        if (prs_word_generation(word) != id->generation || !pending(word))
            return prs_state(s, id);
        /* unreached by tests (race) */
        if ((word & PRS_WORD_WAITERS) || prs_cas_seqcst(&slot->word, &word, word | PRS_WORD_WAITERS)) {
            *low = (uint32_t)(word | PRS_WORD_WAITERS);
            PRS_POINT(wait_marked);
            return PRS_E_AGAIN;
        }
    }
}

/* Reap the creator of an object that we wait for, if it is dead. */
static void look_at_creator(prs_store *s, uint32_t slot)
{
    uint64_t word = prs_load_seqcst(&prs_slot_at(s, slot)->word);
    /* unreached by tests (damaged tables) */
    if (pending(word) && prs_word_client(word) < s->super->max_clients && prs_client_dead(s, prs_word_client(word)))
        prs_reap_dead(s, 0);
}

int prs_wait(prs_store *s, const prs_oid *id, int64_t timeout)
{
    uint32_t low = 0;
    int rc = mark(s, id, &low);
    if (rc != PRS_E_AGAIN)
        return rc;
    int64_t slice = timeout >= 0 && timeout < SLICE ? timeout : SLICE;
    int err = prs_futex_wait(prs_low_half(&prs_slot_at(s, id->slot)->word), low, slice);
    if (err == -ETIMEDOUT)
        look_at_creator(s, id->slot);
    rc = prs_state(s, id);
    if (rc != PRS_E_AGAIN)
        return rc;
    return err == -EINTR ? PRS_E_INTR : PRS_E_TIMEOUT;
}

uint32_t prs_epoch(prs_store *s)
{
    return prs_load_seqcst(&s->super->epoch);
}

int prs_wait_any(prs_store *s, const prs_oid *id)
{
    uint32_t low = 0;
    int rc = mark(s, id, &low);
    if (rc == PRS_E_AGAIN)
        look_at_creator(s, id->slot);
    return rc;
}

int prs_wait_epoch(prs_store *s, uint32_t seen, int64_t timeout)
{
    int64_t slice = timeout >= 0 && timeout < SLICE ? timeout : SLICE;
    prs_fetch_add_seqcst(&s->super->epoch_waiters, 1);
    int err = prs_load_seqcst(&s->super->epoch) == seen ? prs_futex_wait(&s->super->epoch, seen, slice) : 0;
    prs_fetch_sub_seqcst(&s->super->epoch_waiters, 1);
    if (prs_load_seqcst(&s->super->epoch) != seen)
        return PRS_OK;
    return err == -EINTR ? PRS_E_INTR : PRS_E_TIMEOUT;
}
