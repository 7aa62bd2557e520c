/* atfork.c - handover to a forked child.
 *
 * Purpose    After fork, parent and child hold the same objects, as two clients.
 * Algorithm  pthread_atfork.  prepare: lock all shards, so that no thread pins or unpins meanwhile;
 *            claim a second client slot with a separate descriptor; set the second client's bit wherever
 *            ours is set. parent: close that descriptor (if fork failed, the second client is dead from
 *            then on), unlock. child: first close the parent's descriptor; then become the second
 *            client, clear the list of slots that the parent had reserved, make the parent's unsealed
 *            windows read-only, and unlock.
 * Guarantee  These handlers never wait for the store lock and never fail.  If no slot or descriptor is
 *            free, the sticky holder holds the objects of this process: views stay valid in both
 *            processes, and the child's handle can only release them.
 */
#include "store.h"

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static prs_store *handles;
static prs_atomic_u32 forks;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

uint32_t prs_fork_count(void)
{
    return prs_load_relaxed(&forks);
}

bool prs_is_orphan(const prs_store *s)
{
    return s->orphan;
}

/* Set another holder's bit in addition to ours; clear it again if the object was freed meanwhile. */
static void copy_hold(prs_store *s, uint32_t i, uint32_t word_index, uint64_t bit, bool sticky)
{
    prs_slot *slot = prs_slot_at(s, i);
    const prs_private *p = &s->priv[i];
    prs_atomic_u64 *refs = prs_refs(slot) + word_index, *pins = prs_pins(s, slot) + word_index;
    if (prs_load_relaxed(&slot->serial) != p->serial)
        return; /* these refs belong to an object that was freed */
    if (prs_load_relaxed(&p->pins))
        prs_fetch_or_seqcst(pins, bit);
    if (prs_load_relaxed(&p->refs))
        prs_fetch_or_seqcst(refs, bit);
    /* A process that frees the object may have read the child's bits before we set them, and may read ours after we
     * have cleared them. */
    /* unreached by tests (race): the object ended while its holds were copied */
    if (!prs_hold_confirm(slot, p->serial) || (prs_load_seqcst(&slot->word) & PRS_WORD_FREED))
        /* unreached by tests (race): the object ended while its holds were copied */
        if (prs_load_relaxed(&p->refs))
            prs_fetch_and_seqcst(refs, ~bit); /* the object was freed, so another object may be in the slot by now */
    if (sticky)
        prs_fetch_add_relaxed(&s->super->orphaned, 1);
}

static void prepare_one(prs_store *s)
{
    for (uint32_t i = 0; i < PRS_SHARDS; i++)
        prs_spin_lock(&s->shards[i]);
    prs_spin_lock(&s->window_lock);
    s->child = PRS_NIL;
    s->child_fd = -1;
    if (s->orphan)
        return;
    bool sticky = prs_client_claim_child(s) < 0;
    PRS_POINT(fork_claimed);
    uint32_t child = sticky ? PRS_STICKY_CLIENT : s->child;
    uint32_t published = prs_slots_published(s);
    for (uint32_t i = 0; i < published; i++)
        if (prs_load_relaxed(&s->priv[i].refs) || prs_load_relaxed(&s->priv[i].pins))
            copy_hold(s, i, child / 64, 1ull << child % 64, sticky);
    PRS_POINT(fork_copied);
}

static void release_one(prs_store *s)
{
    prs_spin_unlock(&s->window_lock);
    for (uint32_t i = 0; i < PRS_SHARDS; i++)
        prs_spin_unlock(&s->shards[i]);
}

static void child_one(prs_store *s)
{
    prs_client_inherited(s);
    s->start_time = prs_start_time(s->pid);
    prs_store_relaxed(&s->mutex, 0);
    prs_spin_init(&s->serial_lock);
    prs_spin_init(&s->spill_again);
    s->serial_next = s->serial_end = 0;
    prs_headroom_after_fork(&s->headroom);
    prs_store_relaxed(&s->filling, 0);
    if (!prs_load_relaxed(&s->closed))
        prs_store_relaxed(&s->pinned_slots, 0); /* the child does not have the threads that were unpinning */
    prs_magazines_forget(s);
    if (s->child == PRS_NIL) {
        s->orphan = true;
        s->me = PRS_STICKY_CLIENT;
    } else {
        s->me = s->child;
        s->incarnation = s->child_incarnation;
    }
    s->my_word = s->me / 64;
    s->my_bit = 1ull << s->me % 64;
    if (!s->orphan)
        prs_client_born(s);
    prs_client_tell_birth(s);
    PRS_POINT(fork_born);
    prs_spin_unlock(&s->window_lock);
    prs_windows_after_fork(s);
    for (uint32_t i = 0; i < PRS_SHARDS; i++)
        prs_spin_unlock(&s->shards[i]);
}

void prs_close_all(void)
{
    for (;;) {
        pthread_mutex_lock(&handles_lock);
        prs_store *s = handles;
        while (s && (s->users || prs_load_acquire(&s->closed)))
            s = s->next;
        pthread_mutex_unlock(&handles_lock);
        if (!s)
            return;
        prs_close(s);
    }
}

static void before_fork(void)
{
    pthread_mutex_lock(&handles_lock);
    for (prs_store *s = handles; s; s = s->next)
        prepare_one(s);
}

static void in_parent(void)
{
    for (prs_store *s = handles; s; s = s->next) {
        prs_client_forked(s);
        release_one(s);
    }
    pthread_mutex_unlock(&handles_lock);
}

static void in_child(void)
{
    prs_fetch_add_relaxed(&forks, 1);
    for (prs_store *s = handles; s; s = s->next)
        child_one(s);
    pthread_mutex_init(&handles_lock, NULL);
}

static void install(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

void prs_count_forks(void)
{
    pthread_once(&installed, install);
}

int prs_atfork_register(prs_store *s)
{
    prs_count_forks();
    pthread_mutex_lock(&handles_lock);
    s->next = handles;
    handles = s;
    pthread_mutex_unlock(&handles_lock);
    return 0;
}

void prs_atfork_unregister(prs_store *s)
{
    pthread_mutex_lock(&handles_lock);
    prs_store **at = &handles;
    /* unreached by tests (impossible): the list always contains a handle that leaves */
    while (*at && *at != s)
        at = &(*at)->next;
    /* unreached by tests (impossible): the list always contains a handle that leaves */
    if (*at)
        *at = s->next;
    pthread_mutex_unlock(&handles_lock);
}
