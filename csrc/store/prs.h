/* prs.h - the store engine, as its callers see it.
 *
 * A store is one shared-memory file (a sealed memfd, or a file on tmpfs) that
 * holds immutable objects.  Every process that uses it is a client with its own
 * mappings; there is no daemon.  This header is the whole surface of the engine:
 * nothing here needs Python, and nothing outside csrc/store includes another
 * header of it but atomic.h and format.h.  Status codes and prs_error are in
 * platform/errors.h,
 * failpoints in platform/failpoint.h.
 *
 * Conventions
 *   - Functions return PRS_OK (0) or a negative PRS_E_* code; where a prs_error
 *     is passed, it is filled on failure with what the message to the user needs.
 *   - Every function may be called from any thread and without the GIL.  None of
 *     them calls back.  Those marked "fast" make no system call on their usual path.
 *   - Functions marked "never blocks" are for destructors: what cannot be done at
 *     once is queued and done by the next call that may block.
 *   - Offsets and sizes are bytes; times are nanoseconds; a negative timeout means
 *     "for ever".
 *   - A client that dies at any instruction of any of these leaves a store that
 *     the others can go on using; prs_check() proves it.
 */
#ifndef PRS_H
#define PRS_H

#include "errors.h"
#include "failpoint.h"
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct prs_store prs_store; /* one client's handle on one store */

/* ---- identity --------------------------------------------------------------- */

/* What names an object for ever.  24 bytes, no padding.  `serial` never repeats
 * in a store; slot and generation say where to look. */
typedef struct prs_oid {
    uint64_t store;
    uint64_t serial;
    uint32_t slot;
    uint32_t generation;
} prs_oid;

/* ---- opening and closing ----------------------------------------------------- */

typedef struct prs_options {
    const char *path;      /* NULL: anonymous (memfd); else a file to create      */
    uint64_t capacity;     /* 0: prs_default_capacity(), or less where limits (address
                            * space, size of files) leave no room for that         */
    uint32_t max_clients;  /* 0: 512 (at most 4096)                                */
    uint32_t max_objects;  /* 0: chosen from capacity (at least 1 << 20)           */
    int64_t lock_timeout;  /* 0: 1 s                                               */
    uint64_t warm_reserve; /* 0: 256 MiB; freed bytes kept backed by the kernel    */
    const char *spill_dir; /* creating: where objects go when the store is full, or NULL */
    uint32_t flags;        /* PRS_OPEN_*                                           */
} prs_options;

enum {
    PRS_OPEN_PID_LIVENESS = 1u << 0, /* refuse clients of other pid namespaces */
    PRS_OPEN_SPILL_DIGEST = 1u << 1, /* creating: see "spill files of the caller's form" */
    PRS_OPEN_SPILL_LZ4 = 1u << 2,
    PRS_OPEN_SPILL_ZSTD = 1u << 3,
    PRS_OPEN_SPILL_FORM = PRS_OPEN_SPILL_DIGEST | PRS_OPEN_SPILL_LZ4 | PRS_OPEN_SPILL_ZSTD
};

/* 30 % of the memory there is, rounded to pages; 0 when nothing tells. */
uint64_t prs_default_capacity(void);
/* Make a new store and become its first client. */
int prs_create(prs_store **out, const prs_options *options, prs_error *error);
/* Attach to the file at `path`. */
int prs_attach_path(prs_store **out, const char *path, const prs_options *options, prs_error *error);
/* Attach through /proc/<pid>/fd: `fd` is tried first (-1: none), then every descriptor of
 * that process; `store` (0: any) must match.  PRS_E_NOTFOUND when pid has no such store. */
int prs_attach_pid(prs_store **out, int32_t pid, int fd, uint64_t store, const prs_options *options, prs_error *error);
/* Stop being a client: refs and magazines of this handle are given back.  The mapping stays
 * until the last pin taken through it is dropped (prs_unpin may still be called); all other
 * calls return PRS_E_CLOSED.  Idempotent. */
void prs_close(prs_store *store);
/* Until when a handle stays, for callers whose calls exclude each other but where they wait (an interpreter with its lock); these
 * functions are called under that lock, prs_release without it.  A call or draft that goes on while others run is a use.
 * prs_end: no further use begins; true when there is none: the caller must prs_release.  prs_unuse: true when that was the last
 * use of an ended handle: the same. */
void prs_use(prs_store *store);
bool prs_unuse(prs_store *store);
bool prs_end(prs_store *store);
/* Close, and free the handle as soon as its last pin is dropped and its last window closed; those two calls stay valid until
 * then.  Only closes when a fork has left uses behind that nobody can end. */
void prs_release(prs_store *store);
/* At the end of a process: close every handle that is not in use. */
void prs_close_all(void);
/* Free the handle itself: after it nothing may be called.  Closes first; does nothing more
 * while pins are left. */
void prs_dispose(prs_store *store);

uint64_t prs_id(const prs_store *store);
uint64_t prs_capacity(const prs_store *store);
/* The options that the store was made with, and the lock_timeout and flags of this handle. `path` and `spill_dir` are NULL:
 * see prs_spill_directory. */
void prs_chosen(const prs_store *store, prs_options *out);
/* What the default capacity was before limits made it less; 0 if they did not, or others made the store. */
uint64_t prs_shrunk_from(const prs_store *store);
/* Where others find this store: this process's pid, its start time, a descriptor number. */
void prs_locator(prs_store *store, int32_t *pid, uint64_t *start_time, int32_t *fd);
/* Start time of a process in clock ticks, 0 when it is gone. */
uint64_t prs_start_time(int32_t pid);
/* The stores that process `pid` has open, as ids; returns how many (at most cap). */
int prs_list_pid(int32_t pid, uint64_t *ids, int *fds, int cap);
/* Pids of the living clients; returns how many (at most cap). */
int prs_client_pids(prs_store *store, int32_t *pids, int cap);

/* Announce that this client ends soon, it may work until then; returns whether no living client stays that has not
 * announced the same.  For who removes the file of a store: two that end at once do not wait for each other's close. */
bool prs_leave(prs_store *store);

/* ---- putting ------------------------------------------------------------------ */

/* An object being made.  Belongs to one thread at a time. */
typedef struct prs_draft {
    prs_oid id;       /* valid at once; others may wait for it                        */
    uint64_t size;    /* bytes asked for                                              */
    uint64_t off;     /* where it lies in the data area                               */
    void *dst;        /* writable, mapped and backed, or NULL: then prs_write only     */
    void *window;     /* PRS_ALLOC_WINDOW: a writable mapping of this object alone     */
    prs_store *store; /* the handle that it was allocated by */
} prs_draft;

enum {
    PRS_ALLOC_WINDOW = 1u << 0,  /* whole pages and a writable window: create(), empty() */
    PRS_ALLOC_ORDERED = 1u << 1, /* the object will name others: take a serial above theirs */
    PRS_ALLOC_TRY = 1u << 2      /* a small size: PRS_E_AGAIN instead of a call that may wait */
};

/* Allocate `size` bytes.  The draft is CREATING: nobody can read it, its death with this
 * process frees it.  Small sizes: fast. `dst` is given for objects below PRS_SMALL_MAX. */
int prs_alloc(prs_store *store, uint64_t size, unsigned flags, prs_draft *draft, prs_error *error);
/* Copy `n` bytes to offset `at` of the draft, by the fastest way for the pages there. */
int prs_write(prs_store *store, prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error);
/* Gather a strided array (C order result) to offset `at` of the draft. */
int prs_write_strided(prs_store *store, prs_draft *draft, uint64_t at, const void *src, int ndim,
                      const ptrdiff_t *shape, const ptrdiff_t *strides, size_t itemsize, prs_error *error);
/* Record that the draft names another object of this store, which must be alive and held
 * by the caller; the draft holds it from now on.  Needs PRS_ALLOC_ORDERED. */
int prs_add_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error);
/* The same for a draft that refers to bytes of `inner`, which the caller has pinned: they stay also after prs_free, until the
 * draft's object is gone. */
int prs_add_bytes_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error);
/* Publish.  The caller then owns one private reference (as after prs_ref).  Windows stay
 * mapped, read-only from now on, until prs_window_close. */
int prs_seal(prs_store *store, prs_draft *draft, prs_error *error);
/* Give the draft up: waiters get PRS_E_LOST.  Its window is unmapped unless `keep_window`
 * (then it turns into private zero pages: views stay valid). */
void prs_abort(prs_store *store, prs_draft *draft, bool keep_window);
/* Unmap a sealed object's window and drop the pin it kept. Never blocks. */
void prs_window_close(prs_store *store, const prs_draft *draft);

#define PRS_SMALL_MAX (64u * 1024u) /* largest object served from the magazines */

/* ---- holding and reading ------------------------------------------------------- */

typedef struct prs_view {
    const uint8_t *data; /* the object's bytes in the read-only mapping, 64-byte aligned */
    uint64_t size;
} prs_view;

/* Pin: the bytes stay until as many prs_unpin. Fast. PRS_E_AGAIN while not sealed. */
int prs_pin(prs_store *store, const prs_oid *id, prs_view *view);
/* The same for an object whose bytes another one refers to (prs_add_bytes_edge), which the caller has pinned: prs_free does not
 * end them. */
int prs_pin_named(prs_store *store, const prs_oid *id, prs_view *view);
/* Drop one pin.  Never blocks. */
void prs_unpin(prs_store *store, const prs_oid *id);
/* One more private reference to an object; the first sets this client's bit.  Fails with
 * PRS_E_LOST when the object is gone. Works for drafts of other clients too. */
int prs_ref(prs_store *store, const prs_oid *id);
/* Drop a reference.  Never blocks. */
void prs_unref(prs_store *store, const prs_oid *id);
/* PRS_OK sealed, PRS_E_AGAIN being made, PRS_E_FREED, PRS_E_LOST. Fast. */
int prs_state(prs_store *store, const prs_oid *id);
/* Wait until sealed; sees the creator's death.  At most `timeout` and at most one slice of
 * 100 ms: PRS_E_TIMEOUT after either, PRS_E_INTR on a signal, so that callers can look at
 * their own signals and deadline. */
int prs_wait(prs_store *store, const prs_oid *id, int64_t timeout);
/* A counter that changes whenever an object somebody waits for is sealed or lost.
 * prs_wait_any: mark the object waited for; prs_wait_epoch: sleep until it differs. */
uint32_t prs_epoch(prs_store *store);
int prs_wait_any(prs_store *store, const prs_oid *id);
int prs_wait_epoch(prs_store *store, uint32_t seen, int64_t timeout);
/* End the object for everyone: only views keep its bytes. PRS_OK also when already gone. */
int prs_free(prs_store *store, const prs_oid *id, prs_error *error);
/* Map the object's own pages copy-on-write at a new address; the caller keeps a pin on the
 * object until prs_cow_close.  `map` is what to unmap, `data` the first byte of the object. */
int prs_cow_open(prs_store *store, const prs_oid *id, const prs_view *view, void **map, size_t *map_len, uint8_t **data,
                 prs_error *error);
void prs_cow_close(void *map, size_t map_len);
/* Which object does this address lie in?  For re-put by reference: `ptr..ptr+n` must lie in
 * the read-only mapping within one sealed object this process has pinned. Fast. */
int prs_find(prs_store *store, const void *ptr, uint64_t n, prs_oid *id, uint64_t *at);

/* ---- references in flight -------------------------------------------------------- */

typedef struct prs_token {
    uint32_t index; /* 0: none (the object was pinned for good instead) */
    uint32_t unused;
    uint64_t serial;
} prs_token;

enum { PRS_TOKEN_ONCE = 1, PRS_TOKEN_STICKY = 2 };

/* Hold the object on behalf of a message (ONCE: ended by the receiver's prs_token_claim;
 * STICKY: by prs_token_drop, prs_free or the end of the store). The caller holds a ref. */
int prs_token_take(prs_store *store, const prs_oid *id, int kind, prs_token *token);
/* The same with a note for whoever finds the token after the sender's death, see prs_flights. */
int prs_token_take_noted(prs_store *store, const prs_oid *id, int kind, uint32_t note, prs_token *token);
/* Take a reference like prs_ref, then end the token if it is still this one. */
int prs_token_claim(prs_store *store, const prs_oid *id, const prs_token *token);
/* End a token by whoever took it. Idempotent. May free the object. */
void prs_token_drop(prs_store *store, const prs_oid *id, const prs_token *token);

/* One token, as its sender left it. */
typedef struct prs_flight {
    prs_oid id; /* the object it holds                                               */
    prs_token token;
    uint64_t size;                /* bytes of the object, 0 when it is gone                              */
    int kind;                     /* PRS_TOKEN_*                                                       */
    uint32_t sender, incarnation; /* the client that took it                                           */
    int32_t sender_pid;           /* in its own pid namespace; known also when it is gone              */
    uint32_t note;                /* what the sender said of the message's way, 0: nothing             */
    bool sender_alive;            /* false: that client left or is proven dead                         */
    bool object_gone;             /* the object was ended for everyone: nothing is held any more       */
    int64_t created;              /* seconds since the epoch                                           */
} prs_flight;

/* List the tokens from *cursor on, at most `cap`; how many (0: no more), or an error. */
int prs_flights(prs_store *store, uint32_t *cursor, prs_flight *out, int cap, prs_error *error);
/* End what lost messages left: tokens of kind ONCE at least `min_age` ns old (to the second) whose sender is gone, of the
 * process `pid` alone unless that is 0; and any whose object is gone.  How many, or an error.  For a caller who knows that
 * those messages will not be received any more. */
int prs_flights_end(prs_store *store, int32_t pid, int64_t min_age, prs_error *error);

/* ---- names --------------------------------------------------------------------------------- */

#define PRS_NAME_MAX 215 /* bytes of UTF-8 */

/* Give a sealed object a name: it lives until it is freed or the store ends.  PRS_E_EXISTS when
 * a living object has the name. The caller holds a ref. */
int prs_name_bind(prs_store *store, const char *name, size_t len, const prs_oid *id, prs_error *error);
/* The object of a name; the caller gets a reference as from prs_ref.  PRS_E_NOTFOUND. */
int prs_name_find(prs_store *store, const char *name, size_t len, prs_oid *id);
/* The next name from *cursor on: 1 and its NUL-terminated text and object, or 0 at the end. */
int prs_name_next(prs_store *store, uint32_t *cursor, char text[PRS_NAME_MAX + 1], prs_oid *id);

/* ---- spill files of the caller's form --------------------------------------------------------- */

/* The engine has no compressor and no hash.  A store made with a PRS_OPEN_SPILL_* flag writes no spill file of its own
 * accord: prs_alloc returns PRS_E_FULL, prs_pin PRS_E_SPILLED, and the caller does the work between the calls below, none of
 * which keeps a lock when it returns.  Each file then ends with a prs_spill_trailer. */

#define PRS_SPILL_MAGIC 0x46535250u /* "PRSF" */
#define PRS_SPILL_VERSION 1

enum { PRS_SPILL_RAW = 0, PRS_SPILL_LZ4 = 1, PRS_SPILL_ZSTD = 2 }; /* codec */
enum { PRS_SPILL_UNDIGESTED = 0, PRS_SPILL_XXH3 = 1 };             /* algorithm */

/* The last 64 bytes of the file, little endian. */
typedef struct prs_spill_trailer {
    uint32_t magic;
    uint16_t version;
    uint8_t codec, algorithm;
    uint64_t store, serial;
    uint64_t size;   /* bytes of the object             */
    uint64_t stored; /* bytes before this trailer        */
    uint64_t digest; /* of the object's bytes            */
    uint64_t unused[2];
} prs_spill_trailer;

/* An object on its way to a file. */
typedef struct prs_spill_job {
    prs_oid id;
    const uint8_t *data;
    uint64_t size;
    uint64_t stored; /* bytes appended so far */
    int fd;
    uint64_t word;
    struct prs_spill_job *outer;
} prs_spill_job;

#define PRS_SPILL_VICTIMS 256
#define PRS_SPILL_ROUNDS 3

/* Which PRS_OPEN_SPILL_* flags the store was made with; 0: the engine spills by itself. */
uint32_t prs_spill_form(const prs_store *store);
/* Objects whose going would make room for `size` bytes, in rounds of growing urgency; how many, or an error. */
int prs_spill_choose(prs_store *store, uint64_t size, int round, prs_oid victims[PRS_SPILL_VICTIMS], prs_error *error);
/* PRS_E_AGAIN: somebody uses it.  Once begun, a job is ended by this thread, by one of the other two. */
int prs_spill_begin(prs_store *store, const prs_oid *victim, prs_spill_job *job, prs_error *error);
int prs_spill_append(prs_store *store, prs_spill_job *job, const void *src, size_t n, prs_error *error);
/* Write the trailer and hand the object over to its file; on failure the job is cancelled. */
int prs_spill_finish(prs_store *store, prs_spill_job *job, int codec, int algorithm, uint64_t digest, prs_error *error);
void prs_spill_cancel(prs_store *store, prs_spill_job *job);

/* An object larger than the store is made in its file: before the seal its bytes can be read, and must get a trailer. */
bool prs_draft_in_file(const prs_store *store, const prs_draft *draft);
int prs_draft_map(prs_store *store, const prs_draft *draft, const uint8_t **bytes, prs_error *error);
void prs_draft_unmap(const uint8_t *bytes, uint64_t size);
int prs_draft_finish(prs_store *store, const prs_draft *draft, int algorithm, uint64_t digest, prs_error *error);

/* A spilled object on its way back: pinned. */
typedef struct prs_restore {
    prs_oid id;
    prs_spill_trailer trailer; /* checked: what it says fits the object and the file      */
    uint8_t *at;               /* RAW: the object's bytes, read-only; else room for them  */
    uint64_t len;
    int fd; /* unless RAW: for prs_restore_read */
} prs_restore;

/* PRS_E_EXISTS: it is there already, pin it again.  PRS_E_LOST, PRS_E_CORRUPT with error->what: what is wrong with its file. */
/* `named` as for prs_pin_named. */
int prs_restore_begin(prs_store *store, const prs_oid *id, bool named, prs_restore *restore, prs_error *error);
/* Copy stored bytes; PRS_E_CORRUPT when the file has become shorter. */
int prs_restore_read(const prs_restore *restore, uint64_t at, void *to, size_t n);
/* The bytes are good: they serve the object as long as this process has it pinned. */
int prs_restore_end(prs_store *store, prs_restore *restore, prs_view *view);
void prs_restore_cancel(prs_store *store, prs_restore *restore);

/* ---- looking after it --------------------------------------------------------------- */

typedef struct prs_stats {
    uint64_t capacity;               /* bytes of the data area                                  */
    uint64_t used;                   /* bytes in extents of objects, reserves not counted       */
    uint64_t reserved;               /* bytes in clients' magazines                             */
    uint64_t backed;                 /* bytes the kernel holds for the whole file               */
    uint64_t overhead;               /* bytes of control area backed                            */
    uint64_t objects;                /* sealed                                                  */
    uint64_t unsealed;               /* being made                                              */
    uint64_t largest_free;           /* bytes of the largest free extent                        */
    uint64_t slots;                  /* published                                               */
    uint64_t in_flight;              /* tokens                                                  */
    uint64_t edges;                  /* objects held by objects                                 */
    uint64_t spilled, spilled_bytes; /* objects in spill files                           */
    uint64_t orphaned;               /* objects with the sticky holder "orphaned by fork"       */
    uint64_t serial;                 /* next serial                                             */
    uint32_t clients;                /* living                                                  */
    uint32_t max_clients;
    uint64_t reaped; /* clients cleaned up after since the store began          */
    uint64_t stolen; /* times the lock was taken from a dead owner              */
} prs_stats;

int prs_get_stats(prs_store *store, prs_stats *out);

typedef struct prs_record {
    prs_oid id;
    uint64_t size, extent;             /* bytes of the object, of its extent (0: spilled)     */
    uint64_t off;                      /* where the extent lies in the data area              */
    uint32_t state;                    /* PRS_STATE_*                                         */
    uint32_t ref_holders, pin_holders; /* clients                                     */
    uint32_t tokens_and_edges;         /* messages and objects that hold it                   */
    int32_t creator_pid;               /* 0 when the creator is gone                          */
    int64_t created;                   /* seconds since the epoch                             */
    bool freed, orphaned, spilled;
} prs_record;

enum {
    PRS_STATE_FREE = 0,
    PRS_STATE_RESERVED = 1,
    PRS_STATE_CREATING = 2,
    PRS_STATE_SEALED = 3,
    PRS_STATE_FREEING = 4,
    PRS_STATE_SPILLING = 5
};

/* Walk the table: fills up to `cap` records of objects from slot *cursor on, advances it. */
int prs_list(prs_store *store, uint32_t *cursor, prs_record *out, int cap);

/* Clean up after dead clients if nobody has looked for `min_age` ns (0: look now). */
int prs_reap_dead(prs_store *store, int64_t min_age);
/* Return freed pages beyond `keep` bytes to the kernel; returns the bytes given back. */
uint64_t prs_trim(prs_store *store, uint64_t keep);
/* Remove what stores that are provably gone left in a spill directory; how many there were
 * (`dry`: only count), or -errno. */
int prs_spill_clean(const char *directory, bool dry);
#define PRS_SPILL_DIR_MAX 4096 /* bytes, with the NUL */
/* The store's spill directory, "" if it has none. Valid until prs_dispose. */
const char *prs_spill_directory(const prs_store *store);
/* Become the client of a copy of the tables of the store at `path`, which is not changed: to look at one whose clients are
 * all gone.  The copy has no data and no spill directory (`spill_dir` gets the original's); only prs_get_stats, prs_list,
 * prs_name_next and prs_check mean anything on it. */
int prs_snapshot(prs_store **out, const char *path, char spill_dir[PRS_SPILL_DIR_MAX], prs_error *error);
/* Verify every invariant (takes the store lock). PRS_E_CORRUPT with error->what. */
int prs_check(prs_store *store, prs_error *error);
/* Do what destructors had to leave. */
void prs_deferred_run_all(prs_store *store);

/* ---- fork ----------------------------------------------------------------------------- */

/* All open handles of the process take part; installed by the first open.  After a fork
 * the child's handle is a client of its own, with every bit its parent had, unless no slot
 * or descriptor was to be had: then prs_is_orphan() is true, views stay valid, and the
 * handle only serves prs_unpin and prs_unref. */
bool prs_is_orphan(const prs_store *store);
/* A number that differs in every forked child. */
uint32_t prs_fork_count(void);

#ifdef __cplusplus
}
#endif
#endif
