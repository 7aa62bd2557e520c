/* spill.c - moving objects to files when the store is full.
 *
 * Purpose    A put that does not fit moves other objects to files instead of failing; no live object is dropped.
 * Algorithm  A CLOCK search over the extents in address order finds the first run of neighbours that is large
 *            enough.  The extents of a run are free or contain sealed objects that are not pinned and were not
 *            pinned recently.  We write each object to <spill_dir>/<store id>/<slot>-<serial>; then, under the
 *            store lock, we set its word to SEALED+FILE and free its extent.  Readers map the file of a spilled
 *            object; the object never returns to the store.  An object larger than the whole store is created in
 *            its file.  If the files of a store are compressed or contain digests, the caller writes and reads
 *            them: see spill_external.c.
 * Guarantee  Changing the word commits the file. If a slot does not have the FILE flag, its file is garbage,
 *            and the process that reaps the spiller removes it.  Every client holds a shared lock on the
 *            directory's lock file; a directory whose lock is free belongs to a store that no longer exists.
 */
#include "spill.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define LOCK_NAME "lock"
#define WINDOW_MIN (1024u * 1024u)
#define NAME_LEN 32

static void file_name(char name[NAME_LEN], uint32_t slot, uint64_t serial)
{
    snprintf(name, NAME_LEN, "%08x-%016llx", slot, (unsigned long long)serial);
}

static void directory_name(char name[NAME_LEN], uint64_t id)
{
    snprintf(name, NAME_LEN, "%016llx", (unsigned long long)id);
}

/* ---- directories ---------------------------------------------------------------------------------- */

static int remove_one(void *arg, const char *name)
{
    (void)prs_os_remove_file(*(int *)arg, name);
    return 0;
}

struct cleaning {
    bool remove;
    int fd, found;
};

/* Count the directory of a store if no process holds its lock, and remove it if `remove` is set. */
static int clean_one(void *arg, const char *name)
{
    struct cleaning *c = arg;
    if (strlen(name) != 16 || strspn(name, "0123456789abcdef") != 16)
        return 0;
    int directory = prs_os_open_directory(c->fd, name, NULL);
    if (directory < 0)
        return 0;
    int lock = prs_os_open_at(directory, LOCK_NAME, O_RDWR | O_CREAT);
    /* unreached by tests (failing call) */
    if (lock >= 0 && prs_os_lock_file_exclusive(lock) == 0) {
        c->found++;
        if (c->remove) {
            prs_os_each_name(directory, remove_one, &directory);
            prs_os_remove_directory(c->fd, name);
        }
    }
    prs_os_close(lock);
    prs_os_close(directory);
    return 0;
}

static int clean_all(const char *directory, struct cleaning *c)
{
    prs_error error = {0};
    c->fd = prs_os_open_directory(-1, directory, &error);
    if (c->fd < 0)
        /* unreached by tests (impossible): the error always has an errno */
        return error.sys_errno ? -error.sys_errno : -EINVAL;
    int rc = prs_os_each_name(c->fd, clean_one, c);
    prs_os_close(c->fd);
    return rc < 0 ? rc : c->found;
}

int prs_spill_count_ended(const char *directory)
{
    return clean_all(directory, &(struct cleaning){.remove = false});
}

int prs_spill_clean(const char *directory)
{
    return clean_all(directory, &(struct cleaning){.remove = true});
}

/* Open the directory and take a shared lock on it. Return -EAGAIN if another process may have removed the directory
 * meanwhile, because it took the store for dead: the file that we locked may then have no name any more. */
static int open_locked(int top, const char *name, prs_spill_opening how, int *fd, int *lock)
{
    int rc = how == PRS_SPILL_CREATE ? prs_os_make_directory(top, name) : 0;
    *fd = *lock = -1;
    if (rc < 0 && rc != -EEXIST)
        return rc;
    *fd = prs_os_open_at(top, name, O_RDONLY | O_DIRECTORY);
    if (*fd < 0)
        return *fd == -ENOENT && how == PRS_SPILL_CREATE ? -EAGAIN : *fd;
    rc = *lock = prs_os_open_at(*fd, LOCK_NAME, O_RDWR | O_CREAT);
    if (rc >= 0)
        rc = prs_os_lock_file_shared(*lock);
    if (rc == -ENOENT || rc == -EACCES)
        rc = -EAGAIN;
    prs_file directory, locked, named;
    if (rc == 0 && ((rc = prs_os_identify(*fd, &directory)) < 0 || (rc = prs_os_identify(*lock, &locked)) < 0))
        return rc;
    int again = rc == 0 ? prs_os_open_at(top, name, O_RDONLY | O_DIRECTORY) : -1;
    int other = again >= 0 ? prs_os_open_at(again, LOCK_NAME, O_RDWR) : -1;
    if (rc == 0 && (other < 0 || prs_os_identify(other, &named) < 0 || named.dev != locked.dev ||
                    named.ino != locked.ino || !prs_os_same(again, &directory)))
        rc = -EAGAIN;
    prs_os_close(other);
    prs_os_close(again);
    return rc;
}

#define ENTER_TRIES 500

static int enter_directory(prs_store *s, int top, prs_spill_opening how, prs_error *error)
{
    char name[NAME_LEN];
    directory_name(name, s->id);
    int fd = -1, lock = -1, rc = -EAGAIN;
    for (int i = 0; rc == -EAGAIN && i < ENTER_TRIES; i++) {
        if (i)
            prs_os_sleep(PRS_MS);
        rc = open_locked(top, name, how, &fd, &lock);
        if (rc < 0) {
            prs_os_close(lock);
            prs_os_close(fd);
        }
    }
    if (rc == 0) {
        prs_os_unmap(s->spill_anchor, PRS_PAGE); /* this anchor is left from an earlier opening of the directory */
        s->spill_anchor = prs_os_anchor(lock);
        if (!s->spill_anchor) {
            rc = -ENOMEM;
            prs_os_close(lock);
            prs_os_close(fd);
        }
    }
    if (rc == -ENOENT && how == PRS_SPILL_ATTACH)
        return prs_fail(error, PRS_E_SYS, ENOENT, "the store's own directory %s in %.150s was removed", name,
                        s->super->spill_dir);
    /* unreached by tests (no test): the spill directory is not writable */
    if (rc < 0)
        return prs_fail(error, PRS_E_SYS, -rc, "cannot make or lock the store's directory in %.150s",
                        s->super->spill_dir);
    if (!s->spill_dir)
        s->spill_dir = strdup(s->super->spill_dir);
    s->fd_spill = fd;
    s->fd_spill_lock = lock;
    prs_os_identify(fd, &s->spill_file);
    prs_os_identify(lock, &s->spill_lock_file);
    return PRS_OK;
}

int prs_spill_open(prs_store *s, prs_spill_opening how, prs_error *error)
{
    if (s->super->spill_dir[0] == 0 || s->fd_spill >= 0)
        return PRS_OK;
    int top = prs_os_open_directory(-1, s->super->spill_dir, error), rc;
    if (top < 0)
        return top;
    if (prs_os_in_memory(top)) {
        rc = prs_fail(error, PRS_E_INVAL, 0, "the spill directory %.150s lies in memory (tmpfs)", s->super->spill_dir);
    } else {
        if (how == PRS_SPILL_CREATE)
            prs_spill_clean(s->super->spill_dir);
        rc = enter_directory(s, top, how, error);
    }
    prs_os_close(top);
    return rc;
}

/* The last client removes the directory. It tests for other clients through a new descriptor, because our parent
 * process may share the open file description of the old descriptor, and a lock on a shared description would prove
 * nothing. */
void prs_spill_close(prs_store *s)
{
    bool entered = prs_os_same(s->fd_spill, &s->spill_file);
    int fresh = -1;
    if (prs_os_same(s->fd_spill_lock, &s->spill_lock_file)) {
        /* unreached by tests (no test): other code closed only the descriptor of the directory */
        if (entered && !s->orphan)
            fresh = prs_os_open_at(s->fd_spill, LOCK_NAME, O_RDWR | O_CREAT);
        prs_os_close(s->fd_spill_lock);
    }
    prs_os_unmap(s->spill_anchor, PRS_PAGE);
    s->spill_anchor = NULL;
    /* unreached by tests (no test): another process removed the lock file */
    if (fresh >= 0 && prs_os_same(fresh, &s->spill_lock_file) && prs_os_lock_file_exclusive(fresh) == 0) {
        char name[NAME_LEN];
        directory_name(name, s->id);
        /* unreached by tests (no injected fault): strdup */
        int top = s->spill_dir ? prs_os_open_directory(-1, s->spill_dir, NULL) : -1;
        /* unreached by tests (failing call) */
        if (top >= 0) {
            prs_os_each_name(s->fd_spill, remove_one, &s->fd_spill);
            prs_os_remove_directory(top, name);
        }
        prs_os_close(top);
    }
    prs_os_close(fresh);
    if (entered)
        prs_os_close(s->fd_spill);
    s->fd_spill = s->fd_spill_lock = -1;
}

/* Lock the file again after other code has closed only its descriptor. Without the lock, a process that cleans up would
 * remove the directory although the store is in use. */
static void lock_again(prs_store *s)
{
    int fd = prs_os_open_at(s->fd_spill, LOCK_NAME, O_RDWR);
    /* unreached by tests (no injected fault, 3 branches): no descriptor is left, or the file is another one */
    if (fd >= 0 && prs_os_same(fd, &s->spill_lock_file) && prs_os_lock_file_shared(fd) == 0)
        s->fd_spill_lock = fd;
    else
        prs_os_close(fd);
}

static int find_again(prs_store *s)
{
    bool locked = prs_os_same(s->fd_spill_lock, &s->spill_lock_file);
    if (prs_os_same(s->fd_spill, &s->spill_file)) {
        /* unreached by tests (race): another thread was quicker */
        if (!locked)
            lock_again(s);
        return s->fd_spill;
    }
    if (locked)
        prs_os_close(s->fd_spill_lock);
    s->fd_spill = s->fd_spill_lock = -1;
    prs_error ignored;
    /* unreached by tests (no test): no descriptor for the directory */
    return prs_spill_open(s, PRS_SPILL_ATTACH, &ignored) == PRS_OK ? s->fd_spill : -EBADF;
}

/* Return the directory's descriptor; if other code closed it, open the directory again, one thread at a time. */
static int directory(prs_store *s)
{
    if (PRS_LIKELY(prs_os_same(s->fd_spill, &s->spill_file) && prs_os_same(s->fd_spill_lock, &s->spill_lock_file)))
        return s->fd_spill;
    prs_spin_lock(&s->spill_again);
    int at = find_again(s);
    prs_spin_unlock(&s->spill_again);
    return at;
}

/* ---- one object ------------------------------------------------------------------------------------- */

int prs_spill_open_file(prs_store *s, uint32_t slot, uint64_t serial, int flags)
{
    char name[NAME_LEN];
    int at = directory(s);
    file_name(name, slot, serial);
    /* unreached by tests (no test): no descriptor for the directory */
    return at < 0 ? at : prs_os_open_at(at, name, flags);
}

static void remove_file(prs_store *s, uint32_t slot, uint64_t serial)
{
    char name[NAME_LEN];
    int at = directory(s);
    file_name(name, slot, serial);
    /* unreached by tests (failing call) */
    if (at >= 0)
        (void)prs_os_remove_file(at, name); /* if the file does not exist, its writer died before creating it */
    PRS_POINT(spill_removed);
}

/* Return whether the directory has been removed or renamed. */
static bool removed(prs_store *s)
{
    char name[NAME_LEN];
    directory_name(name, s->id);
    int top = prs_os_open_directory(-1, s->super->spill_dir, NULL);
    int fd = top < 0 ? -1 : prs_os_open_at(top, name, O_RDONLY | O_DIRECTORY);
    bool there = fd >= 0 && prs_os_same(fd, &s->spill_file);
    prs_os_close(fd);
    prs_os_close(top);
    return !there;
}

int prs_spill_disk(prs_store *s, int rc, uint64_t want, prs_error *error)
{
    bool gone = (rc == -ENOENT || rc == -ENOTDIR || rc == -ESTALE || rc == -EBADF) && removed(s);
    bool barred = rc == -EACCES || rc == -EPERM || rc == -EROFS;
    int code = gone || barred || rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG ? PRS_E_FULL : PRS_E_SYS;
    prs_fail(error, code, -rc,
             gone     ? "the spill directory %.120s was removed"
             : barred ? "the spill directory %.120s cannot be written"
                      : "writing to the spill directory %.120s failed",
             s->super->spill_dir);
    /* unreached by tests (no test): the caller passes no error record */
    if (error) {
        error->want = want;
        error->capacity = s->capacity;
        error->used = prs_load_relaxed(&s->super->arena.used);
    }
    return code;
}

/* Reset the word to SEALED; free the object if its last holder released it meanwhile. */
static void roll_back(prs_store *s, uint32_t i, uint64_t word)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t sealed;
    do {
        /* unreached by tests (race): this client was declared dead */
        if (prs_word_state(word) != PRS_STATE_SPILLING)
            return;
        sealed = (word & ~(uint64_t)(PRS_STATE_MASK | PRS_WORD_WAITERS)) | PRS_STATE_SEALED;
        /* unreached by tests (race) */
    } while (!prs_cas_seqcst(&slot->word, &word, sealed));
    PRS_POINT(spill_rolled_back);
    prs_wake(s, slot, word);
    prs_try_free(s, i);
}

/* Change the word first: once it contains our client number, a spiller that was wrongly declared dead can no longer
 * commit the file. */
void prs_spill_undo(prs_store *s, uint32_t i, uint64_t word)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t who = ~(uint64_t)PRS_FLAGS_MASK, was = word & who, ours;
    do {
        /* unreached by tests (race, 2 branches): this client was declared dead */
        if ((word & who) != was || prs_word_state(word) != PRS_STATE_SPILLING)
            return;
        ours = prs_word(prs_word_generation(word), s->me, PRS_STATE_SPILLING) | (word & PRS_FLAGS_MASK);
        /* unreached by tests (race) */
    } while (!prs_cas_seqcst(&slot->word, &word, ours));
    PRS_POINT(spill_adopted);
    remove_file(s, i, prs_load_relaxed(&slot->serial));
    roll_back(s, i, ours);
}

void prs_spill_remove(prs_store *s, const prs_slot *slot, uint32_t i)
{
    remove_file(s, i, prs_load_relaxed(&slot->serial));
}

/* Objects that calls of this thread are writing to files, innermost first.  Code that runs during such a call (for
 * example the caller's file writer) may get one of these objects, and would wait forever for the end of the write. */
static __thread prs_spill_job *writing;

bool prs_spill_by_us(const prs_store *s, uint32_t slot)
{
    for (const prs_spill_job *job = writing; job; job = job->outer)
        /* unreached by tests (no test): a store spills while this thread spills from another store */
        if (job->id.store == s->id && job->id.slot == slot && prs_spill_job_ours(s, job)) /* false in a forked child */
            return true;
    return false;
}

static void leave(prs_spill_job *job)
{
    prs_os_close(job->fd);
    job->fd = -1;
    /* unreached by tests (impossible): the list always contains the job */
    for (prs_spill_job **at = &writing; *at; at = &(*at)->outer)
        /* unreached by tests (no test): an object is spilled while this thread spills another */
        if (*at == job) {
            *at = job->outer;
            break;
        }
}

bool prs_spill_job_ours(const prs_store *s, const prs_spill_job *job)
{
    return prs_word_client(job->word) == s->me;
}

/* Return whether we still own the slot. We do not if we were declared dead or are a forked child of the spiller. */
static bool still(const prs_store *s, const prs_spill_job *job, uint64_t word)
{
    uint64_t who = ~(uint64_t)PRS_FLAGS_MASK;
    return prs_spill_job_ours(s, job) && (word & who) == (job->word & who);
}

void prs_spill_cancel(prs_store *s, prs_spill_job *job)
{
    leave(job);
    uint64_t word = prs_load_seqcst(&prs_slot_at(s, job->id.slot)->word);
    if (still(s, job, word))
        prs_spill_undo(s, job->id.slot, word);
}

/* Always create a new file: a spiller that was declared dead may still have an older file of that name open, and must
 * not write to ours. */
static int create_file(prs_store *s, prs_spill_job *job, prs_error *error)
{
    uint32_t i = job->id.slot;
    for (int tries = 0;; tries++) {
        job->fd = prs_spill_open_file(s, i, job->id.serial, O_RDWR | O_CREAT | O_EXCL);
        /* unreached by tests (race): another process created a file of this name */
        if (job->fd != -EEXIST || tries)
            break;
        if (!still(s, job, prs_load_seqcst(&prs_slot_at(s, i)->word)))
            return PRS_E_AGAIN;
        remove_file(s, i, job->id.serial);
    }
    /* unreached by tests (failing call) */
    int failed = job->fd < 0 ? job->fd : PRS_POINT_ERRNO(spill_created) ? -ENOSPC : 0;
    /* unreached by tests (race): another process created a file of this name */
    if (failed == -EEXIST) /* this spiller or another one was wrongly declared dead */
        return PRS_E_AGAIN;
    return failed < 0 ? prs_spill_disk(s, failed, job->size, error) : PRS_OK;
}

int prs_spill_begin(prs_store *s, const prs_oid *id, prs_spill_job *job, prs_error *error)
{
    uint32_t i = id->slot;
    if (i >= prs_slots_published(s))
        return PRS_E_AGAIN;
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t word = prs_load_seqcst(&slot->word);
    uint32_t never = PRS_WORD_FILE | PRS_WORD_WINDOW;
    /* unreached by tests (race): freed after it was chosen and before the job began */
    if (prs_word_state(word) != PRS_STATE_SEALED || prs_word_generation(word) != id->generation || (word & never))
        return PRS_E_AGAIN;
    uint64_t ours = prs_word(id->generation, s->me, PRS_STATE_SPILLING) | (word & PRS_FLAGS_MASK);
    /* unreached by tests (race) */
    if (!prs_cas_seqcst(&slot->word, &word, ours))
        return PRS_E_AGAIN;
    PRS_POINT(spill_marked);
    uint64_t off = prs_load_relaxed(&slot->off), size = prs_load_relaxed(&slot->size);
    *job = (prs_spill_job){.id = {s->id, prs_load_relaxed(&slot->serial), i, id->generation},
                           .data = s->ro + off,
                           .size = size,
                           .fd = -1,
                           .word = ours,
                           .outer = writing};
    writing = job;
    int rc = PRS_E_AGAIN;
    /* unreached by tests (damaged tables, 2 branches) */
    if (off > s->capacity || size > s->capacity - off)
        rc = prs_fail(error, PRS_E_CORRUPT, 0, "an object lies outside of the store");
    else if (!prs_pinned(s, slot))
        rc = create_file(s, job, error);
    if (rc != PRS_OK)
        prs_spill_cancel(s, job);
    return rc;
}

int prs_spill_append(prs_store *s, prs_spill_job *job, const void *src, size_t n, prs_error *error)
{
    int rc = prs_spill_job_ours(s, job) ? prs_copy_to_file(job->fd, job->stored, src, n, NULL) : 0;
    /* unreached by tests (failing call) */
    if (rc < 0)
        return prs_spill_disk(s, rc, job->size, error);
    job->stored += n;
    return PRS_OK;
}

int prs_spill_commit(prs_store *s, prs_spill_job *job, prs_error *error)
{
    uint32_t i = job->id.slot;
    prs_slot *slot = prs_slot_at(s, i);
    prs_os_protect(job->fd); /* prevents accidental truncation while other processes map the file */
    PRS_POINT(spill_written);
    int rc = PRS_E_AGAIN;
    if (prs_pinned(s, slot))
        goto undo;
    rc = prs_lock_tables(s, error);
    if (rc < 0)
        goto undo;
    uint64_t filed, word = job->word;
    do {
        if (!still(s, job, word)) {
            prs_unlock(s);
            leave(job);
            return PRS_E_AGAIN;
        }
        filed = (word & ~(uint64_t)(PRS_STATE_MASK | PRS_WORD_WAITERS)) | PRS_STATE_SEALED | PRS_WORD_FILE;
    } while (!prs_cas_seqcst(&slot->word, &word, filed));
    PRS_POINT(spill_committed);
    prs_extent_free(s, prs_load_relaxed(&slot->extent), i);
    prs_store_relaxed(&slot->extent, PRS_NIL);
    prs_store_relaxed(&slot->cap, 0);
    PRS_POINT(spill_extent);
    prs_unlock(s);
    leave(job);
    prs_wake(s, slot, word);
    prs_try_free(s, i);
    return PRS_OK;
undo:
    prs_spill_cancel(s, job);
    return rc;
}

/* Spill one object.  Return PRS_E_AGAIN if the object is in use, or an error of the disk. */
static int spill_one(prs_store *s, const prs_oid *id, prs_error *error)
{
    prs_spill_job job;
    int rc = prs_spill_begin(s, id, &job, error);
    if (rc < 0)
        return rc;
    rc = prs_spill_append(s, &job, job.data, job.size, error);
    /* unreached by tests (failing call) */
    if (rc == PRS_OK)
        return prs_spill_commit(s, &job, error);
    prs_spill_cancel(s, &job);
    return rc;
}

/* ---- choosing ------------------------------------------------------------------------------------------ */

static bool spillable(prs_store *s, uint32_t i, bool idle_only)
{
    prs_slot *slot = prs_slot_at(s, i);
    uint64_t word = prs_load_seqcst(&slot->word);
    if (prs_word_state(word) != PRS_STATE_SEALED || (word & PRS_WORD_WINDOW) || prs_load_relaxed(&slot->size) == 0)
        return false;
    if (idle_only && prs_load_relaxed(&slot->last_pin) == prs_tick(s))
        return false;
    const prs_atomic_u64 *pins = prs_pins(s, slot);
    for (uint32_t w = 0; w < s->holder_words; w++)
        if (prs_load_relaxed(&pins[w]))
            return false;
    return true;
}

/* Call this under the lock: find the next adjacent extents that could become one free run of `size` bytes. */
static uint32_t choose(prs_store *s, uint64_t size, bool idle_only, prs_oid *victims)
{
    prs_arena *a = &s->super->arena;
    uint32_t n = 0, start = a->clock != PRS_NIL ? a->clock : a->extent_first, i = start;
    uint64_t run = 0;
    bool wrapped = false;
    uint32_t left = 2 * prs_extents_max(s); /* a damaged chain may be endless */
    do {
        const prs_extent *e = prs_extent_at(s, i);
        /* unreached by tests (damaged tables) */
        bool lost = prs_extent_used(e) && e->slot >= prs_load_relaxed(&s->slots_seen);
        /* unreached by tests (damaged tables) */
        if (lost || (prs_extent_used(e) && !spillable(s, e->slot, idle_only))) {
            n = 0;
            run = 0;
        } else {
            run += e->size;
            if (prs_extent_used(e))
                victims[n++] =
                    (prs_oid){s->id, 0, e->slot, prs_word_generation(prs_load_relaxed(&prs_slot_at(s, e->slot)->word))};
        }
        i = e->next;
        /* unreached by tests (no test): 256 small victims for one large object */
        if ((n && run >= size) || n == PRS_SPILL_VICTIMS) {
            a->clock = i;
            return n;
        }
        if (i == PRS_NIL) { /* a run also ends at the end of the data area */
            if (wrapped)
                break;
            wrapped = true;
            n = 0;
            run = 0;
            i = a->extent_first;
        }
        /* unreached by tests (damaged tables, 2 branches) */
    } while (left-- && i != PRS_NIL && (!wrapped || prs_extent_at(s, i)->off <= prs_extent_at(s, start)->off + size));
    a->clock = PRS_NIL;
    return 0;
}

/* First try only idle objects, then all. First try a run larger than needed, then one that is just large enough. */
int prs_spill_choose(prs_store *s, uint64_t size, int round, prs_oid victims[PRS_SPILL_VICTIMS], prs_error *error)
{
    uint64_t want = size + 2 * PRS_PAGE;
    /* unreached by tests (no test): a small object needs room; only longer runs reach this */
    if (want < WINDOW_MIN)
        want = WINDOW_MIN;
    int rc = prs_lock_tables(s, error);
    if (rc < 0)
        return rc;
    uint32_t n = choose(s, round < 2 ? want : size, round == 0, victims);
    prs_unlock(s);
    return (int)n;
}

int prs_spill_for(prs_store *s, uint64_t size, prs_error *error)
{
    if (s->super->spill_dir[0] == 0 || prs_spill_form(s))
        return PRS_E_FULL;
    prs_oid victims[PRS_SPILL_VICTIMS];
    for (int round = 0; round < PRS_SPILL_ROUNDS; round++) {
        int n = prs_spill_choose(s, size, round, victims, error);
        if (n < 0)
            return n;
        bool progress = false;
        for (int k = 0; k < n; k++) {
            int rc = spill_one(s, &victims[k], error);
            if (rc == PRS_OK)
                progress = true;
            /* unreached by tests (failing call) */
            else if (rc != PRS_E_AGAIN)
                return rc;
        }
        if (progress)
            return PRS_OK;
    }
    return PRS_E_FULL;
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

int prs_spill_map(prs_store *s, const prs_oid *id, uint64_t size, prs_spill_mapping mapping, prs_file_map **out)
{
    *out = NULL;
    int fd = prs_spill_open_file(s, id->slot, id->serial, O_RDONLY);
    if (fd < 0)
        /* unreached by tests (no injected fault): the file exists and cannot be opened */
        return fd == -ENOENT ? PRS_E_LOST : PRS_E_SYS;
    prs_file_map *map = malloc(sizeof *map);
    /* unreached by tests (no injected fault): malloc */
    int rc = map ? PRS_OK : PRS_E_NOMEM;
    /* unreached by tests (no injected fault): malloc */
    if (rc == PRS_OK && prs_os_length(fd) < size)
        rc = PRS_E_CORRUPT; /* the file is truncated: reading its pages would raise SIGBUS */
    if (rc == PRS_OK) {
        map->restored = false;
        /* unreached by tests (impossible): an object without bytes is never spilled */
        map->len = size ? size : 1;
        map->at = mapping == PRS_SPILL_COPY_ON_WRITE ? prs_os_map_private(fd, 0, map->len)
                                                     : prs_os_map(fd, 0, map->len, PRS_READ_ONLY);
        /* unreached by tests (no injected fault): mmap of a spilled object */
        if (!map->at)
            rc = PRS_E_NOMEM;
    }
    prs_os_close(fd);
    if (rc < 0) {
        free(map);
        return rc;
    }
    *out = map;
    return PRS_OK;
}

void prs_spill_unmap(prs_file_map *map)
{
    if (!map)
        return;
    prs_os_unmap(map->at, map->len);
    free(map);
}

/* ---- objects larger than the store ----------------------------------------------------------------------------- */

int prs_spill_create(prs_store *s, const prs_draft *draft, prs_error *error)
{
    int fd = prs_spill_open_file(s, draft->id.slot, draft->id.serial, O_RDWR | O_CREAT);
    /* unreached by tests (no injected fault): openat for an object larger than the store */
    int rc = fd < 0 ? fd : prs_os_size(fd, draft->size);
    prs_os_close(fd);
    /* unreached by tests (no injected fault): openat or ftruncate for an object larger than the store */
    return rc < 0 ? prs_spill_disk(s, rc, draft->size, error) : PRS_OK;
}

int prs_spill_write(prs_store *s, const prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error)
{
    int fd = prs_spill_open_file(s, draft->id.slot, draft->id.serial, O_RDWR);
    int rc = fd < 0 ? fd : prs_copy_to_file(fd, at, src, n, NULL);
    prs_os_close(fd);
    return rc < 0 ? prs_spill_disk(s, rc, n, error) : PRS_OK;
}

int prs_spill_seal(prs_store *s, const prs_draft *draft, prs_error *error)
{
    int fd = prs_spill_open_file(s, draft->id.slot, draft->id.serial, O_RDONLY);
    if (fd < 0)
        return prs_spill_disk(s, fd, draft->size, error);
    uint64_t whole = draft->size + (prs_spill_form(s) ? sizeof(prs_spill_trailer) : 0), length = prs_os_length(fd);
    prs_os_protect(fd);
    prs_os_close(fd);
    if (length != whole)
        return prs_fail(error, PRS_E_INVAL, 0, "the spill file of the object was not finished");
    return PRS_OK;
}
