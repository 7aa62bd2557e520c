/* client.c - client slots and the proof that a client is dead.
 *
 * Purpose    A client slot represents one process.  The index of the slot determines the process's bit in the holders
 *            of each object, and identifies the process in locks and words.  Dead clients must be detected, and a
 *            living client must never be declared dead.
 * Algorithm  The owner of a slot holds an OFD lock on the slot's byte, past the end of the file.  A
 *            mapping, the anchor, holds the locked open file description: the kernel drops the lock
 *            when the address space ends (exit, exec), but not when other code closes the descriptors.
 *            A client is dead when its byte is free, or when the client and the observer are in the same pid
 *            namespace and the client's pid does not exist there.  Nothing else proves a death: /proc may hide a
 *            process, show another namespace, or be missing (docs/internals/liveness.md).  A process without
 *            permission to reopen the file (after setuid) shares its open file description with a forked child, and
 *            locks the child's byte through that description.  A reaper needs a client slot as well: if every slot is
 *            taken, an attaching process uses the last slot, the janitor's, while it checks for dead clients.
 * Guarantee  The proof never acquires the lock that it tests: F_OFD_SETLK is used on free slots only,
 *            so a process that is stopped during a proof cannot make a dead client look alive.  The proof tests the
 *            lock through fd_ro, whose open file description never holds a lock, because a test ignores the locks of
 *            the description through which it is made.
 */
#include "store.h"
#include <errno.h>
#include <unistd.h>

static uint64_t byte_of(uint32_t client)
{
    return PRS_CLIENT_BYTE + client;
}

static uint64_t in_state(uint32_t what, uint32_t incarnation)
{
    return what | (uint64_t)incarnation << 32;
}

static uint32_t janitor_of(const prs_store *s)
{
    return s->super->max_clients - 1;
}

/* Claim slot i, which should be in `state`, for the open file description of `fd`.  The byte lock does not exclude
 * processes that share the open file description of fd_rw.  Among these the compare-and-swap of the state decides, and
 * the byte stays locked for the process that succeeds. */
static bool claim_slot(prs_store *s, int fd, uint32_t i, uint64_t state, uint32_t *incarnation)
{
    prs_client *c = &s->clients[i];
    /* unreached by tests (race): another process locked the byte first */
    if (prs_os_lock_byte(fd, byte_of(i)) < 0)
        return false; /* another process is claiming the slot, or a child of its last client has not exited yet */
    PRS_POINT(client_locked);
    /* Raise client_high before we set our first holder bit, because scans of the bits end at this index. */
    uint32_t high = prs_load_seqcst(&s->super->client_high);
    /* unreached by tests (race) */
    while (high <= i && !prs_cas_seqcst(&s->super->client_high, &high, i + 1))
        ;
    uint32_t mine = prs_load_seqcst(&c->incarnation) + 1;
    uint64_t unborn = in_state(PRS_CLIENT_UNBORN, mine), was = state;
    bool claimed = prs_cas_seqcst(&c->state, &state, unborn);
    /* unreached by tests (race) */
    if (claimed && prs_load_seqcst(&c->incarnation) + 1 != mine) /* the slot was claimed and released meanwhile */
        claimed = !prs_cas_seqcst(&c->state, &unborn, was);
    /* unreached by tests (race) */
    if (!claimed) {
        /* unreached by tests (race) */
        if (fd != s->fd_rw)
            prs_os_unlock_byte(fd, byte_of(i));
        return false;
    }
    PRS_POINT(client_claimed);
    prs_store_relaxed(&c->pid, 0);
    prs_store_relaxed(&c->first_serial, prs_load_seqcst(&s->super->serial));
    prs_store_seqcst(&c->incarnation, mine);
    *incarnation = mine;
    return true;
}

/* Claim a free slot; return its index or PRS_NIL. */
static uint32_t claim(prs_store *s, int fd, uint32_t *incarnation)
{
    for (uint32_t i = 1; i < janitor_of(s); i++)
        /* unreached by tests (race) */
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

/* Publish this process as the client of the claimed slot. */
void prs_client_born(prs_store *s)
{
    prs_client *c = &s->clients[s->me];
    prs_store_relaxed(&c->pid_ns, s->pid_ns);
    prs_store_relaxed(&c->fd, (uint32_t)s->fd_rw);
    prs_store_relaxed(&c->visiting, s->flags & PRS_OPEN_VISITOR ? s->incarnation : 0);
    prs_store_release(&c->pid, (uint32_t)s->pid);
    prs_store_seqcst(&c->state, in_state(PRS_CLIENT_LIVE, s->incarnation));
    PRS_POINT(client_live);
}

static bool foreign_namespace(prs_store *s)
{
    uint32_t high = prs_load_acquire(&s->super->client_high);
    /* unreached by tests (damaged tables) */
    for (uint32_t i = 1; i < high && i < s->super->max_clients; i++)
        /* unreached by tests (no test): a slot between used ones became free again */
        if ((prs_load_acquire(&s->clients[i].state) & 0xFF) == PRS_CLIENT_LIVE &&
            prs_load_relaxed(&s->clients[i].pid_ns) != s->pid_ns)
            return true;
    return false;
}

/* Reap dead clients as the janitor, because every slot is taken. */
static bool clean_as_janitor(prs_store *s)
{
    uint32_t i = janitor_of(s), incarnation;
    uint64_t state = prs_load_acquire(&s->clients[i].state);
    /* unreached by tests (race): another janitor is at work */
    if (state != PRS_CLIENT_FREE && !prs_client_dead(s, i))
        return false; /* another janitor is at work */
    /* unreached by tests (race): another janitor was quicker */
    if (!claim_slot(s, s->fd_lock, i, state, &incarnation))
        return false;
    become(s, i, incarnation);
    prs_client_born(s);
    /* unreached by tests (no injected fault): backing the tables fails in a janitor that follows a dead one */
    if (state != PRS_CLIENT_FREE && prs_tables_prefault(s) == 0)
        prs_client_recover_slots(s, i); /* an earlier janitor died while reaping */
    prs_reap_dead(s, 0);
    prs_deferred_run(s, PRS_WAIT); /* do this now, because no client reaps the janitor after it has left */
    prs_client_release(s);
    return true;
}

int prs_client_claim(prs_store *s, prs_error *error)
{
    if (((s->flags | s->super->flags) & PRS_OPEN_PID_LIVENESS) && foreign_namespace(s))
        return prs_fail(error, PRS_E_FOREIGN, 0, "the store is used from another pid namespace and liveness is 'pid'");
    /* unreached by tests (failing call) */
    s->anchor = PRS_POINT_ERRNO(client_anchored) ? NULL : prs_os_anchor(s->fd_lock);
    /* unreached by tests (no injected fault, 2 branches): no mapping left; madvise refused */
    if (!s->anchor || prs_os_keep_from_children(s->anchor) < 0)
        return prs_fail(error, PRS_E_NOMEM, ENOMEM, "no address space for the mapping that keeps the client's lock");
    uint32_t incarnation;
    uint32_t i = claim(s, s->fd_lock, &incarnation);
    for (int64_t deadline = prs_now() + s->lock_timeout; i == PRS_NIL;) {
        bool cleaned = clean_as_janitor(s);
        i = claim(s, s->fd_lock, &incarnation);
        /* unreached by tests (race, 3 branches): another janitor is at work */
        if (cleaned || prs_now() > deadline)
            break;
        prs_os_sleep(PRS_MS); /* another process is the janitor, and may free a slot for us as well */
    }
    if (i == PRS_NIL) {
        prs_fail(error, PRS_E_CLIENTS, 0, "all %u client slots of the store are taken by living processes",
                 s->super->max_clients - 2);
        /* unreached by tests (no test): the caller passes no error record */
        if (error)
            error->want = 1, error->capacity = error->used = s->super->max_clients - 2;
        return PRS_E_CLIENTS;
    }
    become(s, i, incarnation);
    prs_client_born(s);
    return PRS_OK;
}

/* The kernel releases this client's lock no later than this mapping. */
void prs_client_unanchor(prs_store *s)
{
    prs_os_unmap(s->anchor, PRS_PAGE);
    s->anchor = NULL;
}

/* The child shares our open file description, so wait until it runs.  The pipe is closed when the child has become a
 * client, when it dies before that, or when fork fails.  Wait for at most a second, because a debugger may have stopped
 * the child. */
static void await_birth(prs_store *s)
{
    prs_os_close(s->birth[1]);
    PRS_POINT(fork_awaited);
    bool decided = prs_os_await_end(s->birth[0], PRS_SECOND);
    prs_os_close(s->birth[0]);
    s->birth[0] = s->birth[1] = -1;
    uint64_t unborn = in_state(PRS_CLIENT_UNBORN, s->child_incarnation);
    /* unreached by tests (race): a debugger holds the child back */
    if (decided && prs_load_acquire(&s->clients[s->child].state) == unborn)
        prs_os_unlock_byte(s->fd_rw, byte_of(s->child)); /* from now on any client may reap the child's slot */
}

/* Call this before a fork: claim a second client slot, whose lock the child inherits with a separate open file
 * description or, if we cannot open one, with ours. */
int prs_client_claim_child(prs_store *s)
{
    s->child = PRS_NIL;
    s->birth[0] = s->birth[1] = -1;
    /* unreached by tests (no test): other code closed the descriptor before a fork */
    if (!prs_os_same(s->fd_rw, &s->file))
        return -EBADF;
    int rc = s->child_fd = PRS_POINT_ERRNO(fork_reopened) ? -EACCES : prs_os_reopen(s->fd_rw, PRS_WRITABLE);
    if (rc < 0)
        rc = prs_os_pipe(s->birth);
    /* unreached by tests (no injected fault): no mapping left */
    if (rc >= 0 && !(s->child_anchor = prs_os_anchor(s->child_fd < 0 ? s->fd_rw : s->child_fd)))
        rc = -ENOMEM;
    if (rc >= 0) {
        s->child = claim(s, s->child_fd < 0 ? s->fd_rw : s->child_fd, &s->child_incarnation);
        rc = s->child == PRS_NIL ? -EUSERS : 0;
    }
    if (rc < 0)
        prs_client_forked(s);
    return rc < 0 ? rc : 0;
}

/* Call this in the parent after a fork: close the child's descriptors and unmap its anchor. */
void prs_client_forked(prs_store *s)
{
    if (s->child != PRS_NIL && s->birth[0] >= 0)
        await_birth(s);
    prs_os_close(s->birth[0]);
    prs_os_close(s->birth[1]);
    prs_os_close(s->child_fd);
    prs_os_unmap(s->child_anchor, PRS_PAGE);
    s->child_anchor = NULL;
    s->birth[0] = s->birth[1] = s->child_fd = -1;
}

/* Call this in the child: take over the client slot, descriptor and anchor that the parent prepared. */
void prs_client_inherited(prs_store *s)
{
    if (prs_os_same(s->fd_lock, &s->file))
        prs_os_close(s->fd_lock);
    s->fd_lock = s->child_fd;
    s->child_fd = -1;
    if (getppid() != s->pid) /* the parent is in another namespace (0), or has exited (another pid) */
        s->pid_ns = prs_os_pid_ns();
    s->pid = (int32_t)getpid();
    s->anchor = s->child_anchor; /* fork does not copy the parent's anchor mapping */
    s->child_anchor = NULL;
    if (s->anchor)
        (void)prs_os_keep_from_children(s->anchor); /* cannot fail, because a mapping of one page is not split */
}

/* Call this in the child once its slot is published: close the pipe on which the parent waits. */
void prs_client_tell_birth(prs_store *s)
{
    prs_os_close(s->birth[0]);
    prs_os_close(s->birth[1]);
    s->birth[0] = s->birth[1] = -1;
}

/* Leave the store after all our bits have been cleared. */
void prs_client_release(prs_store *s)
{
    PRS_POINT(client_releasing);
    /* Keep the pid, because without it a client that is leaving would look dead. */
    uint64_t live = in_state(PRS_CLIENT_LIVE, s->incarnation);
    /* If the store lock was busy and we could not release edges or return slots, keep the state, so that a reaper does
     * it. */
    /* unreached by tests (race, 2 branches): the client leaves while the lock is busy, with edges it could not end */
    if ((s->dying == PRS_NIL && !prs_load_relaxed(&s->has_pending)) || s->me == janitor_of(s))
        prs_cas_seqcst(&s->clients[s->me].state, &live, PRS_CLIENT_FREE);
    int fd = s->fd_lock >= 0 ? s->fd_lock : s->fd_rw; /* a forked child may have no separate descriptor for the lock */
    /* unreached by tests (no test): other code closed the descriptor before prs_close */
    if (prs_os_same(fd, &s->file))
        prs_os_unlock_byte(fd, byte_of(s->me));
}

/* Call this before the slot of a dead client becomes free: release its lock, which an open file description that we
 * shared with it may still hold. */
void prs_client_forget(prs_store *s, uint32_t client)
{
    /* unreached by tests (no test): other code closed the descriptor before a check for dead clients */
    if (prs_os_same(s->fd_rw, &s->file))
        prs_os_unlock_byte(s->fd_rw, byte_of(client));
}

bool prs_client_is(prs_store *s, uint32_t client, uint32_t incarnation)
{
    return client < s->super->max_clients && prs_load_acquire(&s->clients[client].incarnation) == incarnation &&
           (prs_load_acquire(&s->clients[client].state) & 0xFF) != PRS_CLIENT_FREE;
}

/* Return whether no living process holds the lock of this client; return false if that is unknown. */
static bool byte_free(prs_store *s, uint32_t client)
{
    return prs_os_same(s->fd_ro, &s->file) && prs_os_byte_held(s->fd_ro, byte_of(client)) == 0;
}

bool prs_client_dead(prs_store *s, uint32_t client)
{
    uint64_t state;
    return prs_client_proven_dead(s, client, &state);
}

bool prs_client_proven_dead(prs_store *s, uint32_t client, uint64_t *found)
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
    case PRS_CLIENT_UNBORN: /* fork or attach in progress: only the lock byte counts */
        /* unreached by tests (race): the client appeared while we checked */
        return byte_free(s, client) && prs_load_acquire(&c->state) == state;
    default:
        break;
    }
    /* unreached by tests (impossible): an orphan's own slot is the sticky holder's, which was excluded */
    if (client == s->me && !s->orphan)
        return false;
    /* A namespace that we could not read is 0 and never counts as equal. */
    bool neighbour = s->pid_ns != 0 && prs_load_relaxed(&c->pid_ns) == s->pid_ns;
    if (!(neighbour && prs_os_process_gone((int32_t)pid)) && !byte_free(s, client))
        return false;
    /* Meanwhile the client may have left and another client may have claimed its slot. */
    /* unreached by tests (race, 2 branches): the client left and another came while we checked */
    return prs_load_acquire(&c->state) == state && prs_load_acquire(&c->pid) == pid;
}

/* `leaving` contains the incarnation, so it becomes invalid when this incarnation ends for any reason. */
bool prs_leave(prs_store *s)
{
    if (s->orphan)
        return false;
    prs_store_seqcst(&s->clients[s->me].leaving, s->incarnation);
    uint32_t high = prs_load_acquire(&s->super->client_high);
    /* unreached by tests (damaged tables) */
    for (uint32_t i = 1; i < high && i < s->super->max_clients; i++) {
        uint64_t state = prs_load_seqcst(&s->clients[i].state); /* a child that is being forked counts, too */
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
    /* unreached by tests (damaged tables) */
    for (uint32_t i = 1; i < high && i < s->super->max_clients && n < cap; i++) {
        if ((prs_load_acquire(&s->clients[i].state) & 0xFF) != PRS_CLIENT_LIVE)
            continue;
        /* unreached by tests (death): a client dies while another reopens its descriptors */
        if (i == s->me || !prs_client_dead(s, i))
            pids[n++] = (int32_t)prs_load_acquire(&s->clients[i].pid);
    }
    return n;
}
