/* lock.c - the store lock, and stealing it from a dead owner.
 *
 * Purpose    The lock guards structures that have no lock-free protocol: bins of free extents, the
 *            stacks of free slots and links, counts of links.
 * Algorithm  The lock is one futex word of three fields: client index of the owner (12 bits), its
 *            incarnation (19 bits), waiters (1 bit).  The word is zero if the lock is free.  A private mutex
 *            serializes the threads of a process.  The thread that has the mutex spins, then sleeps in slices of 20
 *            ms, and after each slice checks whether the client in the lock word is dead.  If that client is proven
 *            dead, one waiter replaces the word by its own index and incarnation.  It does so by a compare-and-swap
 *            that expects the dead owner's word, so it cannot steal the lock from a later client of the same slot.
 *            Before this waiter unlocks, it rebuilds everything that the lock guards.
 * Guarantee  While we hold the lock, we make no system calls except futex and those of the proof of death.  We touch
 *            no page for the first time, and allocate no memory.
 */
#include "store.h"
#include <errno.h>

#define WAITERS 1u
#define SPINS 200

static uint32_t lock_word(uint32_t client, uint32_t incarnation)
{
    return client << 20 | (incarnation & 0x7FFFFu) << 1;
}

static bool try_word(prs_store *s)
{
    uint32_t expected = 0;
    return prs_cas_acquire(&s->super->lock, &expected, lock_word(s->me, s->incarnation));
}

/* ---- between the threads of this process: 0 free, 1 held, 2 held and waited for ------------------- */

bool prs_mutex_trylock(prs_atomic_u32 *m)
{
    uint32_t expected = 0;
    return prs_cas_acquire(m, &expected, 1);
}

bool prs_mutex_lock(prs_atomic_u32 *m, int64_t timeout)
{
    if (PRS_LIKELY(prs_mutex_trylock(m)))
        return true;
    int64_t deadline = timeout < 0 ? INT64_MAX : prs_now() + timeout;
    while (prs_exchange_acquire(m, 2) != 0) {
        int64_t left = timeout < 0 ? PRS_SECOND : deadline - prs_now();
        if (left <= 0)
            return false;
        (void)prs_futex_wait(m, 2, left);
    }
    return true;
}

void prs_mutex_unlock(prs_atomic_u32 *m)
{
    if (prs_exchange_release(m, 0) == 2)
        prs_futex_wake(m, 1);
}

/* ---- between processes --------------------------------------------------------------------------- */

static bool owner_dead(prs_store *s, uint32_t word)
{
    uint32_t client = word >> 20, incarnation = word >> 1 & 0x7FFFFu;
    if (client == s->me)
        return incarnation != (s->incarnation & 0x7FFFFu); /* true if the owner is an earlier client of our slot */
    if (client == 0 || client >= s->super->max_clients)
        return true; /* no client has this index: the word is damaged */
    prs_client *c = &s->clients[client];
    if ((prs_load_acquire(&c->incarnation) & 0x7FFFFu) != incarnation)
        return true; /* another client has claimed the slot, so the owner is dead */
    if ((prs_load_acquire(&c->state) & 0xFF) == PRS_CLIENT_FREE)
        return true; /* a leaving client unlocks first, so the owner died or the word is damaged */
    return prs_client_dead(s, client);
}

static int busy(prs_store *s, uint32_t word, prs_error *error)
{
    uint32_t client = word >> 20;
    int32_t pid = 0;
    if (client && client < s->super->max_clients)
        pid = (int32_t)prs_load_relaxed(&s->clients[client].pid);
    prs_fail(error, PRS_E_BUSY, 0, "process %d holds the store lock but is stopped", (int)pid);
    if (error)
        error->pid = pid;
    return PRS_E_BUSY;
}

static int steal(prs_store *s, uint32_t word, prs_error *error)
{
    /* unreached by tests (race): another thief was quicker */
    if (!prs_cas_seqcst(&s->super->lock, &word, lock_word(s->me, s->incarnation) | WAITERS))
        return 1; /* another waiter was quicker */
    prs_fetch_add_relaxed(&s->super->stolen, 1);
    PRS_POINT(lock_stolen);
    int rc = prs_rebuild(s, error);
    if (rc < 0)
        prs_unlock(s);
    return rc;
}

int prs_lock(prs_store *s, int64_t timeout, prs_error *error)
{
    if (!prs_mutex_lock(&s->mutex, timeout))
        return busy(s, prs_load_relaxed(&s->super->lock), error);
    if (PRS_UNLIKELY(s->torn)) {
        prs_mutex_unlock(&s->mutex);
        return prs_fail(error, PRS_E_CLOSED, 0, "the store is closed");
    }
    for (int i = 0; i < SPINS; i++) {
        if (PRS_LIKELY(try_word(s)))
            goto taken;
        prs_pause();
    }
    int64_t deadline = timeout < 0 ? INT64_MAX : prs_now() + timeout;
    for (;;) {
        uint32_t word = prs_load_relaxed(&s->super->lock);
        if (word == 0) {
            /* Other waiters may be asleep, so keep the WAITERS bit. */
            uint32_t expected = 0;
            /* unreached by tests (race) */
            if (prs_cas_acquire(&s->super->lock, &expected, lock_word(s->me, s->incarnation) | WAITERS))
                goto taken;
            continue;
        }
        if (!(word & WAITERS)) {
            /* unreached by tests (race) */
            if (!prs_cas_relaxed(&s->super->lock, &word, word | WAITERS))
                continue;
            word |= WAITERS;
        }
        int64_t now = prs_now();
        if (now >= deadline) {
            if (owner_dead(s, word))
                goto dead;
            prs_mutex_unlock(&s->mutex);
            return busy(s, word, error);
        }
        int64_t slice = 20 * PRS_MS;
        if (deadline - now < slice)
            slice = deadline - now;
        if (prs_futex_wait(&s->super->lock, word, slice) != -ETIMEDOUT)
            continue;
        /* unreached by tests (race): the lock changed owners while we slept */
        if (prs_load_relaxed(&s->super->lock) != word || !owner_dead(s, word))
            continue;
    dead:;
        int rc = steal(s, word, error);
        if (rc == 0)
            return PRS_OK;
        /* unreached by tests (race): another thief was quicker */
        if (rc < 0)
            return rc;
    }
taken:
    PRS_POINT(lock_taken);
    if (PRS_UNLIKELY(s->super->arena.dirty)) { /* a thief died before it completed its rebuild */
        int rc = prs_rebuild(s, error);
        /* unreached by tests (no injected fault): no memory for the tables during a second rebuild */
        if (rc < 0) {
            prs_unlock(s);
            return rc;
        }
    }
    return PRS_OK;
}

bool prs_trylock(prs_store *s)
{
    if (!prs_mutex_trylock(&s->mutex))
        return false;
    if (s->torn) {
        prs_mutex_unlock(&s->mutex);
        return false;
    }
    for (int i = 0; i < SPINS; i++) {
        if (try_word(s)) {
            if (s->super->arena.dirty) {
                prs_unlock(s);
                return false;
            }
            PRS_POINT(lock_taken);
            return true;
        }
        prs_pause();
    }
    prs_mutex_unlock(&s->mutex);
    return false;
}

bool prs_lock_wanted(const prs_store *s)
{
    return prs_load_relaxed(&s->super->lock) & WAITERS;
}

void prs_unlock(prs_store *s)
{
    PRS_POINT(lock_released);
    uint32_t word = prs_exchange_release(&s->super->lock, 0);
    if (PRS_UNLIKELY(word & WAITERS))
        prs_futex_wake(&s->super->lock, 1);
    prs_mutex_unlock(&s->mutex);
}
