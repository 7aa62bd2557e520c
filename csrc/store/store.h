/* store.h - one client's private side of a store, and the engine's internal functions.
 *
 * None of these structs is in shared memory.  The files, lowest first:
 *
 *   atomic.h layout.h failpoint.h   words, structs, injected deaths
 *   os          every system call the engine makes
 *   lock        the store lock and stealing it
 *   extent      two-level segregated fit over the data area
 *   slot        the slot table: publishing chunks, the stack of free slots
 *   backing     which pages exist; filling and returning them
 *   client      client slots, proof of death
 *   segment     create, attach, validate, close
 *   handle      lifetime of a handle
 *   magazine    caches of slots with extents, so that small puts take no lock
 *   holds       tokens and edges
 *   in_flight   listing tokens, ending lost ones
 *   name        the index of names
 *   object      alloc, seal, pin, ref, free: the protocol of the slot word
 *   spill       objects in files when the store is full
 *   spill_external  the same with files in the caller's format
 *   wait        futexes on slots and on the epoch
 *   window      writable windows and copy-on-write maps
 *   recover     rebuild, reap, check for dead clients
 *   atfork      handover to a forked child
 *   check       fsck, stats, list
 */
#ifndef PRS_STORE_H
#define PRS_STORE_H

#include "atomic.h"
#include "copy.h"
#include "failpoint.h"
#include "fill.h"
#include "headroom.h"
#include "layout.h"
#include "os.h"
#include "pages.h"
#include "prs.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define PRS_SHARDS 64u
#define PRS_CLASSES 40u
#define PRS_MAG_CAP 64u
#define PRS_PENDING_CAP 128u
#define PRS_SERIAL_BLOCK 1024u

#define PRS_PINS_COUNTED (1ull << 63) /* flag in pinned_slots: the handle is closed, and the last unpin tears it down */

#define PRS_LIKELY(x) __builtin_expect(!!(x), 1)
#define PRS_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The number of refs and pins of this process on the object in a slot.  `refs` is valid for the
 * object with `serial`; pins > 0 implies that the slot still has that object.  The slot's shard
 * guards it. */
typedef struct prs_private {
    uint64_t serial;
    prs_atomic_u32 refs; /* atomic, because some code reads it without the shard's lock */
    prs_atomic_u32 pins;
    struct prs_file_map *map; /* the mapped file of a pinned, spilled object */
} prs_private;

typedef struct prs_file_map {
    uint8_t *at;
    size_t len;
    bool restored; /* private memory with the file's contents, not a mapping */
} prs_file_map;

/* A slot that this process has reserved (state RESERVED). A put claims it by a CAS that compares
 * the generation, because a full store reclaims reserved slots. */
typedef struct prs_reserved {
    uint32_t slot, generation;
} prs_reserved;

typedef struct prs_magazine {
    prs_spin lock;
    uint32_t count;
    prs_reserved item[PRS_MAG_CAP];
} prs_magazine;

/* A mapping that create() or empty() returned; it exists until prs_window_close.
 *   OPEN       writable, over an unsealed object of this process
 *   INHERITED  read-only, over an unsealed object of the process that forked this one
 *   SEALED     read-only, with a pin
 *   FORSAKEN   private zeros: the object was aborted, or its store was closed */
enum prs_window_state { PRS_WINDOW_OPEN, PRS_WINDOW_INHERITED, PRS_WINDOW_SEALED, PRS_WINDOW_FORSAKEN };

typedef struct prs_window {
    struct prs_window *next;
    prs_oid id;
    uint8_t *addr;
    size_t len;
    uint64_t off;
    enum prs_window_state state;
} prs_window;

struct prs_store {
    /* constant after opening */
    prs_super *super; /* control area, mapped read-write, and its length            */
    size_t control_len;
    prs_client *clients;
    prs_name *names;
    uint32_t *name_buckets;
    uint8_t *slots;
    prs_extent *extents;
    prs_link *links;
    uint8_t *ro; /* the data area, mapped read-only from a read-only descriptor */
    uint64_t capacity, id, shrunk_from;
    uint32_t holder_words, slot_stride, max_slots, max_links;
    prs_private *priv; /* one per possible slot, zero pages until used           */
    size_t priv_len;
    int64_t lock_timeout;
    uint32_t flags;
    char *path; /* path of a named store; else NULL                                */
    prs_file file;

    /* identity of this client, changed only by a fork */
    uint32_t me, incarnation;
    int32_t pid;
    uint64_t start_time, pid_ns;
    uint32_t my_word; /* holder word and bit of this client                     */
    uint64_t my_bit;
    int fd_rw, fd_ro;
    int fd_lock;                 /* its open file description holds our lock; -1: that of fd_rw holds it          */
    void *anchor;                /* a mapping that keeps the lock when descriptors are closed                */
    prs_spin spill_again;        /* held while a thread reopens the two descriptors below */
    int fd_spill, fd_spill_lock; /* this store's spill directory, and its lock file with a shared lock */
    void *spill_anchor;          /* a mapping that keeps the lock when descriptors are closed */
    prs_file spill_file, spill_lock_file;
    char *spill_dir;        /* a copy, for use after the superblock is unmapped */
    bool orphan;            /* a forked child without a client slot                   */
    prs_atomic_u32 closed;  /* changed while all shards are locked                        */
    prs_atomic_u32 filling; /* number of calls that are using fd_rw */
    bool torn;              /* mappings are replaced by zero pages, descriptors closed     */

    /* the writable mapping of the data area, made at the first put */
    _Atomic(uint8_t *) wr;
    prs_area area;                         /* how to fill wr; valid once wr is set               */
    size_t mapped_len;                     /* size of area.mapped in bytes */
    prs_atomic_u32 slots_seen, links_seen; /* number of entries already mapped in this process */
    prs_headroom headroom;

    prs_atomic_u32 mutex; /* a thread takes this mutex before the store lock */
    prs_spin serial_lock;
    uint64_t serial_next, serial_end;
    prs_spin pending_lock;
    uint32_t pending_count;
    prs_reserved pending[PRS_PENDING_CAP]; /* slots to return as soon as the lock is free */
    prs_atomic_u32 has_pending, has_dying;
    prs_atomic_u32 overflowed; /* `pending` was full, so we have RESERVED slots that are in no list */
    uint32_t dying;            /* chain of our DYING links; guarded by the store lock */
    prs_spin window_lock;
    prs_window *windows;
    _Alignas(64) prs_spin shards[PRS_SHARDS];
    prs_magazine magazines[PRS_CLASSES];
    prs_atomic_u64 pinned_slots; /* unpins in progress; prs_close adds PRS_PINS_COUNTED and all pinned slots */

    /* lifetime of the handle, see handle.c */
    uint32_t users, users_forks; /* calls and drafts in progress; the fork count when the first began */
    bool ending, released;
    prs_atomic_u32 keeps; /* 1 until the handle is torn down, plus one for each window */

    /* for a fork: the client slot prepared for the child */
    uint32_t child, child_incarnation;
    int child_fd;       /* that slot's open file description; -1: shared with fd_rw           */
    int birth[2];       /* if it is shared: a pipe, closed when the child has become a client or fork has failed */
    void *child_anchor; /* holds the child's lock until the child has its own anchor                 */

    prs_store *next; /* links all handles of the process */
};

/* ---- small helpers --------------------------------------------------------------------- */

static inline prs_slot *prs_slot_at(const prs_store *s, uint32_t i)
{
    return (prs_slot *)(s->slots + (size_t)i * s->slot_stride);
}
static inline prs_atomic_u64 *prs_refs(prs_slot *slot)
{
    return slot->holders;
}
static inline prs_atomic_u64 *prs_pins(const prs_store *s, prs_slot *slot)
{
    return slot->holders + s->holder_words;
}
static inline prs_spin *prs_shard(prs_store *s, uint32_t slot)
{
    return &s->shards[slot % PRS_SHARDS];
}
static inline uint64_t prs_round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) & ~(to - 1);
}
/* Increment a private count with the shard locked, so that no locked instruction is needed; return the old value. */
static inline uint32_t prs_count_up(prs_atomic_u32 *count)
{
    uint32_t n = prs_load_relaxed(count);
    prs_store_relaxed(count, n + 1);
    return n;
}
/* Decrement a private count in the same way; return whether it is now 0. */
static inline bool prs_count_down(prs_atomic_u32 *count)
{
    uint32_t n = prs_load_relaxed(count);
    if (n)
        prs_store_relaxed(count, n - 1);
    return n == 1;
}
/* Return the length of a table, limited to its maximum in case the shared words are damaged. */
static inline uint32_t prs_slots_published(const prs_store *s)
{
    uint32_t n = prs_load_acquire(&s->super->published);
    return n < s->max_slots ? n : s->max_slots;
}
static inline uint32_t prs_links_published(const prs_store *s)
{
    uint32_t n = prs_load_acquire(&s->super->links_published);
    return n < s->max_links ? n : s->max_links;
}
static inline uint32_t prs_extents_max(const prs_store *s)
{
    return 2 * s->max_slots + 8;
}
/* Return whether a range of bytes is inside the data area. */
static inline bool prs_in_data(const prs_store *s, uint64_t off, uint64_t size)
{
    /* unreached by tests (damaged tables, 2 branches) */
    return off <= s->capacity && size <= s->capacity - off;
}
/* Return the number of words of the holder bitmaps that clients have ever used. */
static inline uint32_t prs_words_in_use(const prs_store *s)
{
    uint32_t words = (prs_load_seqcst(&s->super->client_high) + 63) / 64;
    return words < s->holder_words ? words : s->holder_words;
}

/* ---- lock.c ---------------------------------------------------------------------------------- */

/* Take a lock between the threads of this process; wait for at most `timeout` (negative: without limit). */
bool prs_mutex_trylock(prs_atomic_u32 *mutex);
bool prs_mutex_lock(prs_atomic_u32 *mutex, int64_t timeout);
void prs_mutex_unlock(prs_atomic_u32 *mutex);
/* Take the store lock.  Wait for at most `timeout` if its owner is alive; if it is dead, steal the lock
 * and rebuild.  Return PRS_E_BUSY after a timeout, PRS_E_CORRUPT if the rebuild failed. */
int prs_lock(prs_store *s, int64_t timeout, prs_error *error);
/* Try to take the lock once, with a short spin; for destructors. */
bool prs_trylock(prs_store *s);
void prs_unlock(prs_store *s);
/* Return whether other clients are waiting for the lock. */
bool prs_lock_wanted(const prs_store *s);

/* ---- extent.c: all under the store lock --------------------------------------------------------- */

void prs_extent_init(prs_store *s);
/* Return the extent at an index read from shared memory.  If the index is outside the table, mark the store as
 * corrupt and return a private, empty extent. */
prs_extent *prs_extent_at(const prs_store *s, uint32_t i);
/* Which unit an extent is made of: PRS_UNIT, or whole pages. */
typedef enum { PRS_PACKED, PRS_PAGED } prs_packing;
/* Return the index of a used extent of at least `size` bytes, or PRS_NIL. */
uint32_t prs_extent_alloc(prs_store *s, uint64_t size, prs_packing packing, uint32_t slot);
/* Free the extent of a slot.  If the extent does not belong to the slot, or is outside of the data area, the extent
 * stays allocated until a rebuild, because its bytes may belong to another object. */
void prs_extent_free(prs_store *s, uint32_t extent, uint32_t slot);
#define PRS_WARM_MIN (64u * 1024u) /* smaller free extents stay backed */
#define PRS_WARM_LOOKS 4096u       /* free extents checked per acquisition of the lock */
uint32_t prs_extent_warm(const prs_store *s);
void prs_extent_take(prs_store *s, uint32_t extent, uint32_t slot);
/* Recompute bins, neighbours and free extents from the extents of live slots. */
int prs_extent_rebuild(prs_store *s);
uint64_t prs_extent_largest(const prs_store *s);
int prs_extent_check(prs_store *s, prs_error *error);
uint32_t prs_extents_in_use(const prs_store *s);            /* at most as many as the table has room for */
int prs_extent_check_heads(prs_store *s, prs_error *error); /* checks the heads of bins and chains */
int prs_extent_check_one(prs_store *s, uint32_t extent, prs_error *error); /* checks an extent and its neighbours */
bool prs_extent_size_fits(uint64_t size);

/* ---- slot.c --------------------------------------------------------------------------------------- */

/* Back one more chunk of slots, then publish it. The caller holds no lock. */
int prs_slots_grow(prs_store *s, uint32_t had, prs_error *error);
int prs_links_grow(prs_store *s, uint32_t had, prs_error *error);
/* Map the chunks that other clients published, to avoid page faults under the lock. */
int prs_tables_prefault(prs_store *s);
/* Take the store lock, and ensure that every published slot and link is mapped in this process. No other client can
 * publish more while we hold the lock. */
int prs_lock_tables(prs_store *s, prs_error *error);
bool prs_trylock_tables(prs_store *s);
uint32_t prs_slot_take(prs_store *s);            /* call under the lock; returns PRS_NIL if there is none */
void prs_slot_give(prs_store *s, uint32_t slot); /* call under the lock; the slot's word is FREE  */
uint64_t prs_serial(prs_store *s, bool ordered);

/* ---- backing.c -------------------------------------------------------------------------------------- */

int prs_map_writable(prs_store *s, prs_error *error); /* maps the data area for writing, once */
/* Back every page of the range and map it for writing through wr. */
int prs_back(prs_store *s, uint64_t off, uint64_t len, prs_error *error);
int prs_fill_range(prs_store *s, uint64_t off, const void *src, size_t n, prs_error *error);
void prs_pages_punch(prs_store *s, uint64_t off, uint64_t len);
bool prs_beyond_reserve(prs_store *s, uint64_t size);
void prs_trim_excess(prs_store *s);
int prs_reserve(prs_store *s, uint64_t bytes, prs_error *error); /* reserves headroom before backing */
int prs_fds_repair(prs_store *s, prs_error *error);              /* reopen descriptors that other code has closed */

/* ---- client.c ------------------------------------------------------------------------------------------ */

int prs_client_claim(prs_store *s, prs_error *error);
int prs_client_claim_child(prs_store *s);
void prs_client_forked(prs_store *s);
void prs_client_inherited(prs_store *s);
void prs_client_born(prs_store *s);
void prs_client_tell_birth(prs_store *s);
void prs_client_unanchor(prs_store *s);
void prs_client_forget(prs_store *s, uint32_t client);
void prs_client_release(prs_store *s);
bool prs_client_dead(prs_store *s, uint32_t client);
/* Do the same, and set *state to the state for which the proof is valid: prs_reap() changes a client only in this
 * state. */
bool prs_client_proven_dead(prs_store *s, uint32_t client, uint64_t *state);
bool prs_client_is(prs_store *s, uint32_t client, uint32_t incarnation); /* the same client, alive or not */

/* ---- magazine.c ------------------------------------------------------------------------------------------- */

uint32_t prs_class_of(uint64_t size);
uint64_t prs_class_size(uint32_t cls);
/* Allocate a slot in state CREATING with an extent of at least `size` bytes. */
/* `try`: return PRS_E_AGAIN instead of making a call that may wait. */
int prs_magazine_take(prs_store *s, uint64_t size, bool try, uint32_t *slot, uint64_t *word, prs_error *error);
/* Do the same with a whole free extent that has pages to return to the kernel. */
int prs_slot_alloc_warm(prs_store *s, uint32_t *slot, uint64_t *word);
/* Allocate a slot in state CREATING without an extent. */
int prs_slot_alloc_spilled(prs_store *s, uint32_t *slot, uint64_t *word, prs_error *error);
int prs_slot_alloc_large(prs_store *s, uint64_t size, prs_packing packing, uint32_t *slot, uint64_t *word,
                         prs_error *error);
/* Give back a damaged slot in state CREATING whose id no other code knows yet. This function does not put the slot into
 * a magazine, where the next put would find it. It does not punch the slot's pages, because they may belong to another
 * object. */
void prs_slot_return(prs_store *s, uint32_t slot, uint64_t word);
/* Put a slot that this process has just retired (RESERVED) into a magazine or the pending list. Never blocks. */
void prs_magazine_put(prs_store *s, uint32_t slot, uint32_t generation);
/* Do the same, but never put it into a magazine. */
void prs_deferred_push(prs_store *s, uint32_t slot, uint32_t generation);
typedef enum { PRS_NO_WAIT, PRS_WAIT } prs_patience;
/* Return pending slots to the shared bins and end dying edges, until neither pending slots nor dying edges are left.
 * With PRS_NO_WAIT, give up if another client holds the store lock. */
void prs_deferred_run(prs_store *s, prs_patience patience);
/* Do the same, and also empty the magazines. */
void prs_magazines_flush(prs_store *s);
/* Reclaim the reserved slots of every client. Takes the lock; returns bytes gained. */
uint64_t prs_magazines_reclaim(prs_store *s);
void prs_magazines_forget(prs_store *s);

/* ---- holds.c --------------------------------------------------------------------------------------------------- */

void prs_link_splice(prs_store *s, uint32_t slot); /* call under the lock: edges of a retired slot become DYING links */
bool prs_edges_release(prs_store *s,
                       prs_patience patience); /* ends some of our DYING links; false if the lock is taken */
void prs_links_rebuild(prs_store *s);          /* call under the lock */
bool prs_links_reap(prs_store *s, uint32_t client, uint32_t incarnation); /* false: no lock */
int prs_links_check(prs_store *s, prs_error *error);
int prs_link_check_one(prs_store *s, uint32_t link, prs_error *error);
uint32_t prs_links_in_use(const prs_store *s);
bool prs_link_may_be_free(const prs_store *s, uint32_t link);

/* prs_link_lock takes the store lock and ensures that there is a free record. prs_link_make makes a record that holds
 * `id`, with a sender's note if it is a token, else PRS_NIL; it returns PRS_NIL if the object no longer exists. If
 * prs_link_make sets `undone`, the caller must try to free the object after unlocking. prs_link_end ends a record, and returns the slot to try to free after unlocking, or
 * PRS_NIL. */
int prs_link_lock(prs_store *s, prs_error *error);
uint32_t prs_link_make(prs_store *s, const prs_oid *id, uint32_t kind, prs_link_owner owner, uint32_t note,
                       bool *undone);
uint32_t prs_link_end(prs_store *s, uint32_t link);

/* ---- name.c: under the store lock ------------------------------------------------------------------------------- */

bool prs_name_has(const prs_store *s, uint32_t entry, uint32_t link);
void prs_names_settle(prs_store *s);
void prs_names_rebuild(prs_store *s);
int prs_names_check(prs_store *s, prs_error *error);

/* ---- object.c --------------------------------------------------------------------------------------------------- */

/* Free the object of a slot if it has no holder. This function is lock-free and never blocks. */
void prs_try_free(prs_store *s, uint32_t slot);
/* Finish a FREEING slot that this client owns: set it back to SEALED, or retire it. */
void prs_free_finish(prs_store *s, uint32_t slot, uint64_t word);
/* Take over a slot that a dead client was working on, and finish or undo that work. */
bool prs_slot_adopt(prs_store *s, uint32_t slot, uint64_t word);
void prs_wake(prs_store *s, prs_slot *slot, uint64_t old_word);
/* Return whether anything holds the object of a slot whose word is `word`. */
bool prs_held(prs_store *s, prs_slot *slot, uint64_t word);
bool prs_pinned(const prs_store *s, prs_slot *slot);
/* Pin an object; view->data is NULL if the object is in a file that is not mapped in this process. prs_pin_file then
 * sets the mapping and owns it, whether or not the slot needs it. */
int prs_pin_bare(prs_store *s, const prs_oid *id, prs_pin_kind kind, prs_view *view);
void prs_pin_file(prs_store *s, const prs_oid *id, prs_file_map *map, prs_view *view);
/* Call this after setting a bit for another holder, while this client holds the object, so that a concurrent free sees
 * the bit. */
bool prs_hold_confirm(prs_slot *slot, uint64_t serial);

static inline uint32_t prs_tick(const prs_store *s) /* in about seconds; advances at each check for dead clients */
{
    return (uint32_t)(prs_load_relaxed(&s->super->last_look) >> 30) | 1;
}

/* ---- spill.c ----------------------------------------------------------------------------------------------------- */

typedef enum { PRS_SPILL_ATTACH, PRS_SPILL_CREATE } prs_spill_opening;
int prs_spill_open(prs_store *s, prs_spill_opening how, prs_error *error);
void prs_spill_close(prs_store *s);
/* Spill objects until `size` contiguous bytes may be free. After PRS_OK the caller tries to allocate again. */
int prs_spill_for(prs_store *s, uint64_t size, prs_error *error);
void prs_spill_undo(prs_store *s, uint32_t slot, uint64_t word); /* undo the SPILLING of a dead client */
void prs_spill_remove(prs_store *s, const prs_slot *slot, uint32_t i);
typedef enum { PRS_SPILL_READ_ONLY, PRS_SPILL_COPY_ON_WRITE } prs_spill_mapping;
int prs_spill_map(prs_store *s, const prs_oid *id, uint64_t size, prs_spill_mapping mapping, prs_file_map **out);
void prs_spill_unmap(prs_file_map *map);
bool prs_spill_by_us(const prs_store *s, uint32_t slot); /* returns whether this thread is spilling the object */
/* An object that is too large for the store is written directly to a file. */
int prs_spill_write(prs_store *s, const prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error);
int prs_spill_create(prs_store *s, const prs_draft *draft, prs_error *error);
int prs_spill_seal(prs_store *s, const prs_draft *draft, prs_error *error);

/* ---- check.c ---- */

/* Check the tables of a store that we attach to, in slices, each under the store lock.  A slice checks each of its
 * entries together with the entries that it refers to.  Sums and whole chains are checked only in a small store. */
int prs_check_in_slices(prs_store *s, prs_error *error);

/* ---- recover.c --------------------------------------------------------------------------------------------------- */

int prs_rebuild(prs_store *s, prs_error *error); /* call it after stealing the lock */
int prs_reap(prs_store *s, uint32_t client, uint64_t state);
/* Finish or undo a dead client's work on slots, and clear its bits. */
void prs_client_recover_slots(prs_store *s, uint32_t client);

/* ---- window.c ---------------------------------------------------------------------------------------------------- */

int prs_window_open(prs_store *s, prs_draft *draft, prs_error *error);
int prs_window_seal(prs_store *s, const prs_draft *draft, prs_error *error);
/* Call this for an aborted draft whose views stay valid: replace its window by zero pages.  Return false if that is not
 * possible. */
bool prs_window_forsake(prs_store *s, const prs_draft *draft);
void prs_windows_after_fork(prs_store *s);
void prs_windows_detach(prs_store *s);

/* ---- atfork.c ---------------------------------------------------------------------------------------------------- */

/* ---- segment.c --------------------------------------------------------------------------------------------------- */

uint32_t prs_age(const prs_store *s); /* seconds since the store was made */
void prs_tear_down(prs_store *s);
void prs_discard(prs_store *s);  /* undoes a partial initialization, and frees the handle */
void prs_keep_end(prs_store *s); /* the last of these calls frees a released handle */

int prs_atfork_register(prs_store *s);
void prs_atfork_unregister(prs_store *s);

#endif
