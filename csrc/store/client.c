/* client.c - client slots and the proof that a client is dead.
 *
 * Purpose    A client slot stands for one process: its bit in every object's holders, its name in
 *            locks and words.  Whoever dies without a word must be recognized, and nobody else.
 * Algorithm  The owner keeps an OFD lock on a byte of its own, past the end of the file, through a
 *            descriptor of its own open().  In the same pid namespace a process is dead when its pid
 *            is gone or belongs to another start time (a zombie: when its byte is free as well; its
 *            threads may live on), or when its byte is free and it maps the store no more (exec).  From another pid namespace it is dead when its byte was free at
 *            two looks at least 5 s apart and its heartbeat has not moved.
 *            Cleaning up needs a name, too: when every slot is taken, an attacher becomes the janitor (the
 *            last slot) for as long as it takes to look for corpses.
 * Guarantee  Proving never takes the lock it looks at: F_OFD_SETLK is used on free slots only, so a
 *            prover stopped half-way cannot make a corpse look alive.
 */
#include "store.h"
#include <errno.h>

#define SUSPICION (5 * PRS_SECOND)

static uint64_t byte_of(uint32_t client)
{
    return PRS_CLIENT_BYTE + client;
}

static uint64_t in_state(uint32_t what, uint32_t incarnation)
{
    return what | (uint64_t)incarnation << 32;
}

void prs_heartbeat(prs_store *s)
{
    if (!s->orphan)
        prs_store_relaxed(&s->clients[s->me].heartbeat, (uint64_t)prs_now());
}

static uint32_t janitor_of(const prs_store *s)
{
    return s->super->max_clients - 1;
}

/* Claim slot i, whose state is expected to be `state`, for the open file description `fd`. */
static bool claim_slot(prs_store *s, int fd, uint32_t i, uint64_t state, uint32_t *incarnation)
{
    prs_client *c = &s->clients[i];
    if (prs_os_lock_byte(fd, byte_of(i)) < 0)
        return false; /* another claimer is at it, or a child that has not gone yet */
    PRS_POINT(client_locked);
    /* Raise the mark before the first bit of ours can be set: scanners look up to it. */
    uint32_t high = prs_load_seqcst(&s->super->client_high);
    while (high <= i && !prs_cas_seqcst(&s->super->client_high, &high, i + 1))
        ;
    uint32_t mine = prs_load_seqcst(&c->incarnation) + 1; /* the byte is ours: nobody else counts it up */
    if (!prs_cas_seqcst(&c->state, &state, in_state(PRS_CLIENT_UNBORN, mine))) {
        prs_os_unlock_byte(fd, byte_of(i));
        return false;
    }
    PRS_POINT(client_claimed);
    prs_store_relaxed(&c->pid, 0);
    prs_store_relaxed(&c->suspect_at, 0);
    prs_store_seqcst(&c->incarnation, mine);
    *incarnation = mine;
    return true;
}

/* Claim a free slot; its index or PRS_NIL. */
static uint32_t claim(prs_store *s, int fd, uint32_t *incarnation)
{
    for (uint32_t i = 1; i < janitor_of(s); i++)
        if (prs_load_acquire(&s->clients[i].state) == PRS_CLIENT_FREE &&
            claim_slot(s, fd, i, PRS_CLIENT_FREE, incarnation))
            return i;
    return PRS_NIL;
}

static void become(prs_store *s, uint32_t client, uint32_t incarnation)
{
    s->me = client;
    s->incarnation = incarnation;
    s->my_word = client / 64;
    s->my_bit = 1ull << client % 64;
}

/* Say who lives in the claimed slot. */
void prs_client_born(prs_store *s)
{
    prs_client *c = &s->clients[s->me];
    prs_store_relaxed(&c->pid_ns, s->pid_ns);
    prs_store_relaxed(&c->start_time, s->start_time);
    prs_store_relaxed(&c->heartbeat, (uint64_t)prs_now());
    prs_store_relaxed(&c->fd, (uint32_t)s->fd_rw);
    prs_store_release(&c->pid, (uint32_t)s->pid);
    prs_store_seqcst(&c->state, in_state(PRS_CLIENT_LIVE, s->incarnation));
    PRS_POINT(client_live);
}

static bool foreign_namespace(prs_store *s)
{
    uint32_t high = prs_load_acquire(&s->super->client_high);
    for (uint32_t i = 1; i < high && i < s->super->max_clients; i++)
        if ((prs_load_acquire(&s->clients[i].state) & 0xFF) == PRS_CLIENT_LIVE &&
            prs_load_relaxed(&s->clients[i].pid_ns) != s->pid_ns)
            return true;
    return false;
}

/* Every slot is taken: look for corpses under the janitor's name. */
static bool clean_as_janitor(prs_store *s)
{
    uint32_t i = janitor_of(s), incarnation;
    uint64_t state = prs_load_acquire(&s->clients[i].state);
    if (state != PRS_CLIENT_FREE && !prs_client_dead(s, i))
        return false; /* somebody is cleaning already */
    if (!claim_slot(s, s->fd_lock, i, state, &incarnation))
        return false;
    become(s, i, incarnation);
    prs_client_born(s);
    if (state != PRS_CLIENT_FREE && prs_tables_touch(s) == 0)
        prs_inherit(s, i); /* an earlier janitor died at work */
    prs_look(s, 0);
    prs_settle_pending(s, true); /* the janitor's name is given up without a corpse */
    prs_client_release(s);
    return true;
}

int prs_client_claim(prs_store *s, prs_error *error)
{
    if (((s->flags | s->super->flags) & PRS_OPEN_PID_LIVENESS) && foreign_namespace(s))
        return prs_fail(error, PRS_E_FOREIGN, 0, "the store is used from another pid namespace and liveness is 'pid'");
    uint32_t incarnation;
    uint32_t i = claim(s, s->fd_lock, &incarnation);
    for (int64_t deadline = prs_now() + s->lock_timeout; i == PRS_NIL;) {
        bool cleaned = clean_as_janitor(s);
        i = claim(s, s->fd_lock, &incarnation);
        if (cleaned || prs_now() > deadline)
            break;
        prs_os_sleep(PRS_MS); /* somebody else is cleaning: there may be room for us as well */
    }
    if (i == PRS_NIL) {
        prs_fail(error, PRS_E_CLIENTS, 0, "all %u client slots of the store are taken by living processes",
                 s->super->max_clients - 2);
        if (error)
            error->want = 1, error->capacity = error->used = s->super->max_clients - 2;
        return PRS_E_CLIENTS;
    }
    become(s, i, incarnation);
    prs_client_born(s);
    return PRS_OK;
}

/* Before a fork: a second slot, on a descriptor the child will inherit. */
int prs_client_claim_child(prs_store *s)
{
    s->child = PRS_NIL;
    s->child_fd = prs_os_same(s->fd_rw, &s->file) ? prs_os_reopen(s->fd_rw, true) : -EBADF;
    if (s->child_fd < 0)
        return s->child_fd;
    uint32_t i = claim(s, s->child_fd, &s->child_incarnation);
    if (i == PRS_NIL) {
        prs_os_close(s->child_fd);
        s->child_fd = -1;
        return -EUSERS;
    }
    s->child = i;
    return 0;
}

/* Leave: every bit of ours is clear by now. */
void prs_client_release(prs_store *s)
{
    PRS_POINT(client_releasing);
    /* The pid stays: without it a client that is just leaving would look dead. */
    uint64_t live = in_state(PRS_CLIENT_LIVE, s->incarnation);
    /* Edges that a busy lock kept us from burying, slots it kept us from giving back: whoever meets the corpse has them. */
    if ((s->dying == PRS_NIL && !prs_load_relaxed(&s->has_pending)) || s->me == janitor_of(s))
        prs_cas_seqcst(&s->clients[s->me].state, &live, PRS_CLIENT_FREE);
    if (prs_os_same(s->fd_lock, &s->file))
        prs_os_unlock_byte(s->fd_lock, byte_of(s->me));
}

bool prs_client_is(prs_store *s, uint32_t client, uint32_t incarnation)
{
    return client < s->super->max_clients && prs_load_acquire(&s->clients[client].incarnation) == incarnation &&
           (prs_load_acquire(&s->clients[client].state) & 0xFF) != PRS_CLIENT_FREE;
}

/* A descriptor to look at lock bytes through: ours, unless somebody closed it. */
static int probe(prs_store *s)
{
    return prs_os_same(s->fd_lock, &s->file) ? s->fd_lock : -1;
}

static bool byte_free(prs_store *s, uint32_t client)
{
    int fd = probe(s);
    return fd >= 0 && prs_os_byte_held(fd, byte_of(client)) == 0;
}

static bool dead_by_silence(prs_store *s, uint32_t client)
{
    prs_client *c = &s->clients[client];
    uint64_t now = (uint64_t)prs_now(), beat = prs_load_relaxed(&c->heartbeat);
    if (!byte_free(s, client)) {
        prs_store_relaxed(&c->suspect_at, 0);
        return false;
    }
    uint64_t since = prs_load_relaxed(&c->suspect_at);
    if (since == 0 || prs_load_relaxed(&c->suspect_heartbeat) != beat || since > now) {
        prs_store_relaxed(&c->suspect_heartbeat, beat);
        prs_store_relaxed(&c->suspect_at, now);
        return false;
    }
    return now - since >= (uint64_t)SUSPICION;
}

bool prs_client_dead(prs_store *s, uint32_t client)
{
    uint64_t state;
    return prs_client_corpse(s, client, &state);
}

bool prs_client_corpse(prs_store *s, uint32_t client, uint64_t *found)
{
    *found = PRS_CLIENT_FREE;
    if (client == PRS_STICKY_CLIENT || client >= s->super->max_clients)
        return false;
    prs_client *c = &s->clients[client];
    uint64_t state = *found = prs_load_acquire(&c->state);
    uint32_t pid = prs_load_acquire(&c->pid);
    switch (state & 0xFF) {
    case PRS_CLIENT_FREE:
        return false;
    case PRS_CLIENT_REAPING:
        return true;
    case PRS_CLIENT_UNBORN: /* a fork or an attach under way: only its byte speaks for it */
        return byte_free(s, client) && prs_load_acquire(&c->state) == state;
    default:
        break;
    }
    if (client == s->me && !s->orphan)
        return false;
    if (prs_load_relaxed(&c->pid_ns) != s->pid_ns)
        return dead_by_silence(s, client);
    switch (prs_os_process((int32_t)pid, prs_load_relaxed(&c->start_time))) {
    case PRS_ALIVE:
        /* Without its lock: other code closed its descriptors, or, its mappings gone as well, it was forked and
         * runs another program now. */
        return byte_free(s, client) && prs_os_process_maps((int32_t)pid, &s->file) == 0 &&
               prs_load_acquire(&c->state) == state;
    case PRS_GONE:
        /* Unless it left and another came while we looked. */
        return prs_load_acquire(&c->state) == state && prs_load_acquire(&c->pid) == pid;
    case PRS_ZOMBIE:
        return byte_free(s, client) && prs_load_acquire(&c->state) == state;
    default:
        return dead_by_silence(s, client);
    }
}

/* The mark names the incarnation, so it means nothing once that is over, however it ended. */
bool prs_leave(prs_store *s)
{
    if (s->orphan)
        return false;
    prs_store_seqcst(&s->clients[s->me].leaving, s->incarnation);
    uint32_t high = prs_load_acquire(&s->super->client_high);
    for (uint32_t i = 1; i < high && i < s->super->max_clients; i++) {
        uint64_t state = prs_load_seqcst(&s->clients[i].state); /* a child that is being forked stays, too */
        if (i == s->me || (state & 0xFF) == PRS_CLIENT_FREE || prs_load_seqcst(&s->clients[i].leaving) == state >> 32)
            continue;
        if (!prs_client_dead(s, i))
            return false;
    }
    return true;
}

int prs_client_pids(prs_store *s, int32_t *pids, int cap)
{
    int n = 0;
    uint32_t high = prs_load_acquire(&s->super->client_high);
    for (uint32_t i = 1; i < high && i < s->super->max_clients && n < cap; i++) {
        if ((prs_load_acquire(&s->clients[i].state) & 0xFF) != PRS_CLIENT_LIVE)
            continue;
        if (i == s->me || !prs_client_dead(s, i))
            pids[n++] = (int32_t)prs_load_acquire(&s->clients[i].pid);
    }
    return n;
}
