/* prs.h - the public interface of the store engine.
 *
 * A store is one shared-memory file (a sealed memfd, or a file on tmpfs) that holds immutable objects.
 * Every process that uses it is a client with its own mappings; there is no daemon.  This header is the
 * engine's complete interface.  It does not need Python, and files outside csrc/store include only two
 * other headers of the engine, atomic.h and format.h.  Status codes and prs_error are in
 * platform/errors.h, failpoints in platform/failpoint.h.
 *
 * Conventions
 *   - Functions return PRS_OK (0) or a negative PRS_E_* code; on failure they fill the prs_error,
 *     if it is not NULL, with the details for an error message.
 *   - Every function may be called from any thread and without the GIL.  None of them calls back
 *     into the caller's code.  Those marked "fast" make no system call on their usual path.
 *   - Functions marked "never blocks" are for destructors: they queue work that they cannot do
 *     immediately, and the next call that may block does that work.
 *   - Offsets and sizes are bytes; times are nanoseconds; a negative timeout means
 *     "without limit".
 *   - If a client dies at any instruction of these functions, the other clients can continue to
 *     use the store; prs_check() verifies its state.
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

typedef struct prs_store prs_store; /* a client's handle of a store */

/* ---- identity --------------------------------------------------------------- */

/* The permanent identity of an object: 24 bytes without padding.  `serial` never repeats in a store; slot and
 * generation locate the object. */
typedef struct prs_oid {
    uint64_t store;
    uint64_t serial;
    uint32_t slot;
    uint32_t generation;
} prs_oid;

/* ---- opening and closing ----------------------------------------------------- */

typedef struct prs_options {
    const char *path;      /* the file to create; NULL: anonymous (memfd) */
    uint64_t capacity;     /* 0: prs_default_capacity(), or less if a limit (address space, file
                            * size) requires it */
    uint32_t max_clients;  /* 0 means 512; at most 4096 */
    uint32_t max_objects;  /* 0 means chosen from capacity, at least 1 << 20 */
    int64_t lock_timeout;  /* 0 means 1 s */
    uint64_t warm_reserve; /* freed bytes that stay backed; 0 means 256 MiB */
    const char *spill_dir; /* when creating: where a full store spills objects, or NULL */
    uint32_t flags;        /* PRS_OPEN_*                                           */
} prs_options;

enum {
    PRS_OPEN_PID_LIVENESS = 1u << 0, /* refuse clients of other pid namespaces */
    PRS_OPEN_SPILL_DIGEST = 1u << 1, /* when creating: see "spill files in the caller's format" */
    PRS_OPEN_SPILL_LZ4 = 1u << 2,
    PRS_OPEN_SPILL_ZSTD = 1u << 3,
    PRS_OPEN_VISITOR = 1u << 4, /* a client that only looks at the store: statistics do not count it */
    PRS_OPEN_SPILL_FORM = PRS_OPEN_SPILL_DIGEST | PRS_OPEN_SPILL_LZ4 | PRS_OPEN_SPILL_ZSTD
};

/* Return 30 % of the total memory or of the cgroup limit, whichever is less, in whole pages; return 0 if neither is
 * known. */
uint64_t prs_default_capacity(void);
/* Create a store and become its first client. */
int prs_create(prs_store **out, const prs_options *options, prs_error *error);
/* Attach to the file at `path`. */
int prs_attach_path(prs_store **out, const char *path, const prs_options *options, prs_error *error);
/* Attach through /proc/<pid>/fd: try `fd` first (-1: none), then every descriptor of that process. The
 * store's id must be `store` (0: any).  Return PRS_E_NOTFOUND if the process has no such store open. */
int prs_attach_pid(prs_store **out, int32_t pid, int fd, uint64_t store, const prs_options *options, prs_error *error);
/* Leave the store: release the refs and magazines of this handle. The mapping exists until the last pin of this handle
 * is dropped, so prs_unpin may still be called; all other calls return PRS_E_CLOSED. A second prs_close has no
 * effect. */
void prs_close(prs_store *store);
/* Functions for the lifetime of a handle.  They are for a caller, such as an interpreter, with a global lock that it
 * releases only to wait.  Call these functions with that lock held, but call prs_release without the lock.  A use is a
 * call or draft during which other threads may run. prs_end: from now on no use may begin; return true if no use is in
 * progress. prs_unuse: end a use; return true if it was the last one of an ended handle.  If either returns true, the
 * caller must call prs_release. */
void prs_use(prs_store *store);
bool prs_unuse(prs_store *store);
bool prs_end(prs_store *store);
/* Close, and free the handle when its last pin is dropped and its last window is closed; prs_unpin and prs_window_close
 * are valid until then. If, in a forked child, uses remain that no thread of the child can end, close the handle, but
 * do not free it. */
void prs_release(prs_store *store);
/* At process exit: close every handle that is not in use. */
void prs_close_all(void);
/* Close and free the handle, which is invalid afterwards. If pins are left, close it, but do not free it. */
void prs_dispose(prs_store *store);

uint64_t prs_id(const prs_store *store);
uint64_t prs_capacity(const prs_store *store);
/* Get the options that the store was created with, and the lock_timeout and flags of this handle.  `path` and
 * `spill_dir` are NULL: see prs_spill_directory. */
void prs_chosen(const prs_store *store, prs_options *out);
/* Return the default capacity before limits of this process reduced it. Return 0 if no limit reduced it, or if another
 * process created the store. */
uint64_t prs_shrunk_from(const prs_store *store);
/* Get the pid of this process, its start time and a descriptor number. Other processes can attach with these. */
void prs_locator(prs_store *store, int32_t *pid, uint64_t *start_time, int32_t *fd);
/* Return the start time of a process in clock ticks, or 0 if it has ended. */
uint64_t prs_start_time(int32_t pid);
/* List the ids of the stores that process `pid` has open; return their number (at most cap). */
int prs_list_pid(int32_t pid, uint64_t *ids, int *fds, int cap);
/* List the pids of the living clients; return their number (at most cap). */
int prs_client_pids(prs_store *store, int32_t *pids, int cap);

/* Mark this client as leaving; the client may still use the store until prs_close.  Return whether all other living
 * clients are leaving, too, in which case the caller can remove the store's file.  Two clients that leave at the same
 * time do not wait for each other to close. */
bool prs_leave(prs_store *store);

/* ---- putting ------------------------------------------------------------------ */

/* An object being made.  Only one thread may use it at a time. */
typedef struct prs_draft {
    prs_oid id;       /* valid immediately, so other clients may wait for the object                    */
    uint64_t size;    /* size in bytes, as requested */
    uint64_t off;     /* offset of the object in the data area */
    void *dst;        /* writable, mapped and backed memory; if NULL, use prs_write */
    void *window;     /* PRS_ALLOC_WINDOW: a writable mapping of this object           */
    prs_store *store; /* the handle that allocated it */
} prs_draft;

enum {
    PRS_ALLOC_WINDOW = 1u << 0,  /* whole pages and a writable window: create(), empty() */
    PRS_ALLOC_ORDERED = 1u << 1, /* the object will refer to others, so allocate a serial above theirs */
    PRS_ALLOC_TRY = 1u << 2      /* for small sizes: return PRS_E_AGAIN instead of waiting */
};

/* Allocate `size` bytes.  The draft is CREATING: no process can read it, and it is freed if this process dies.  Fast
 * for small sizes.  `dst` is set for objects below PRS_SMALL_MAX. */
int prs_alloc(prs_store *store, uint64_t size, unsigned flags, prs_draft *draft, prs_error *error);
/* Copy `n` bytes to offset `at` of the draft, by the fastest method for the pages there. */
int prs_write(prs_store *store, prs_draft *draft, uint64_t at, const void *src, size_t n, prs_error *error);
/* Gather a strided array in C order to offset `at` of the draft. */
int prs_write_strided(prs_store *store, prs_draft *draft, uint64_t at, const void *src, int ndim,
                      const ptrdiff_t *shape, const ptrdiff_t *strides, size_t itemsize, prs_error *error);
/* Record that the draft refers to another object of this store, which must be alive and held
 * by the caller; the draft holds it from now on.  Needs PRS_ALLOC_ORDERED. */
int prs_add_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error);
/* Do the same for a draft that uses bytes of `inner`, which the caller has pinned. The bytes of `inner` stay allocated
 * until the draft's object is freed, even after prs_free of `inner`. */
int prs_add_bytes_edge(prs_store *store, prs_draft *draft, const prs_oid *inner, prs_error *error);
/* Publish the draft. The caller then owns one private reference (as after prs_ref).  Windows become read-only and stay
 * mapped until prs_window_close. */
int prs_seal(prs_store *store, prs_draft *draft, prs_error *error);
/* Discard the draft, and unmap its window: clients that wait for the draft get PRS_E_LOST. */
void prs_abort(prs_store *store, prs_draft *draft);
/* Do the same, but replace the window by private zero pages, so that views stay valid. */
void prs_abort_keep_window(prs_store *store, prs_draft *draft);
/* Unmap the window of an object and, if it is sealed, drop the window's pin. Never blocks. */
void prs_window_close(prs_store *store, const prs_draft *draft);

#define PRS_SMALL_MAX (64u * 1024u) /* maximum size of objects allocated from magazines */

/* ---- holding and reading ------------------------------------------------------- */

typedef struct prs_view {
    const uint8_t *data; /* the object's bytes in the read-only mapping, 64-byte aligned */
    uint64_t size;
} prs_view;

/* Pin an object: its bytes stay in place until prs_unpin has been called as often as prs_pin. Return PRS_E_AGAIN if the
 * object is not sealed. Fast. */
int prs_pin(prs_store *store, const prs_oid *id, prs_view *view);
/* Do the same for an object whose bytes another object uses (prs_add_bytes_edge), if the caller has pinned that other
 * object. This works even after prs_free. */
int prs_pin_named(prs_store *store, const prs_oid *id, prs_view *view);
typedef enum { PRS_PIN_PLAIN, PRS_PIN_NAMED } prs_pin_kind; /* the rules of prs_pin or of prs_pin_named */
/* Drop one pin.  Never blocks. */
void prs_unpin(prs_store *store, const prs_oid *id);
/* Add a private reference to an object; the first reference sets this client's bit.  Return
 * PRS_E_LOST if the object no longer exists.  This works for drafts of other clients, too. */
int prs_ref(prs_store *store, const prs_oid *id);
/* Drop a reference.  Never blocks. */
void prs_unref(prs_store *store, const prs_oid *id);
/* Return PRS_OK (sealed), PRS_E_AGAIN (unsealed), PRS_E_FREED or PRS_E_LOST. Fast. */
int prs_state(prs_store *store, const prs_oid *id);
/* Wait until the object is sealed, and detect the death of its creator. Wait for at most `timeout` or
 * 100 ms, whichever is shorter, then return PRS_E_TIMEOUT; return PRS_E_INTR after a signal. So callers
 * can check for signals and for their own deadline. */
int prs_wait(prs_store *store, const prs_oid *id, int64_t timeout);
/* prs_epoch returns a counter that changes whenever an object with waiters is sealed or lost.
 * prs_wait_any marks the object as having waiters; prs_wait_epoch sleeps until the counter is no
 * longer `seen`. */
uint32_t prs_epoch(prs_store *store);
int prs_wait_any(prs_store *store, const prs_oid *id);
int prs_wait_epoch(prs_store *store, uint32_t seen, int64_t timeout);
/* Free the object for all clients; its bytes stay allocated only while views exist. Return PRS_OK even if the object no
 * longer exists. */
int prs_free(prs_store *store, const prs_oid *id, prs_error *error);
/* Map the object's pages copy-on-write at a new address; the caller must keep the object pinned until
 * prs_cow_close.  `map` is the mapping to close, `data` the first byte of the object. */
int prs_cow_open(prs_store *store, const prs_oid *id, const prs_view *view, void **map, size_t *map_len, uint8_t **data,
                 prs_error *error);
void prs_cow_close(void *map, size_t map_len);
/* Find the object that contains an address, to put it by reference: `ptr..ptr+n` must lie in the
 * read-only mapping, within one sealed object that this process has pinned. Fast. */
int prs_find(prs_store *store, const void *ptr, uint64_t n, prs_oid *id, uint64_t *at);

/* ---- references in flight -------------------------------------------------------- */

typedef struct prs_token {
    uint32_t index; /* 0: none (the sticky holder keeps the object instead) */
    uint32_t unused;
    uint64_t serial;
} prs_token;

enum { PRS_TOKEN_ONCE = 1, PRS_TOKEN_STICKY = 2 };

/* Hold the object for a message. The receiver's prs_token_claim ends a token of kind ONCE;
 * prs_token_drop, prs_free or the end of the store ends one of kind STICKY. The caller must hold a
 * ref. */
int prs_token_take(prs_store *store, const prs_oid *id, int kind, prs_token *token);
/* Do the same, with a note for processes that find the token after the sender's death, see prs_flights. */
int prs_token_take_noted(prs_store *store, const prs_oid *id, int kind, uint32_t note, prs_token *token);
/* Take a reference like prs_ref, then end the token if it still exists. */
int prs_token_claim(prs_store *store, const prs_oid *id, const prs_token *token);
/* End a token that this caller took; this may free the object. A second call has no effect. */
void prs_token_drop(prs_store *store, const prs_oid *id, const prs_token *token);

/* A token and its sender, as listed by prs_flights. */
typedef struct prs_flight {
    prs_oid id; /* the object that the token holds */
    prs_token token;
    uint64_t size; /* size of the object in bytes, 0 if it no longer exists                             */
    int kind;      /* PRS_TOKEN_*                                                       */
    uint32_t sender, incarnation; /* the client that made the token                                     */
    int32_t sender_pid; /* the pid of that client in its own pid namespace, also after it has ended               */
    uint32_t note;      /* the sender's note about the message's route, 0: none               */
    bool sender_alive;  /* false if that client has left or is proven dead */
    bool object_gone;   /* the object was freed for all clients: the token holds nothing      */
    uint32_t age;       /* seconds, by the monotonic clock                                    */
} prs_flight;

/* List at most `cap` tokens from *cursor on; return their number (0: no more), or an error. */
int prs_flights(prs_store *store, uint32_t *cursor, prs_flight *out, int cap, prs_error *error);
/* End the tokens of lost messages: tokens of kind ONCE that are at least `min_age` ns old (to the second) and whose
 * sender is no longer a client.  If `pid` is not 0, end only those that process `pid` sent.  Also end all tokens whose
 * object no longer exists.  Return the number of ended tokens, or an error.  Call this only if those messages can no
 * longer be received. */
int prs_flights_end(prs_store *store, int32_t pid, int64_t min_age, prs_error *error);

/* ---- names --------------------------------------------------------------------------------- */

#define PRS_NAME_MAX 215 /* in bytes of UTF-8 */

typedef struct prs_name_info {
    uint64_t version; /* larger than those of all names that were bound earlier in this store */
    uint32_t age;     /* seconds since the name was bound or, for an ephemeral name, since its object was made */
    bool keeps;       /* false for an ephemeral name */
    uint32_t uses;    /* number of calls of prs_name_use */
    uint64_t used;    /* grows with each bind and use of any name: the name used last has the largest number */
    uint64_t note;    /* sum of the notes that prs_name_count added */
} prs_name_info;

enum {
    PRS_NAME_EPHEMERAL = 1, /* the name does not keep the object, and ends with the object's last holder */
    PRS_NAME_REPLACE = 2    /* if the name denotes another object, move it to this object in one step    */
};

/* Bind a name to a sealed object, which then exists until it is freed, the name is unbound, or the store ends.
 * Return PRS_E_EXISTS if a living object has the name, unless `flags` has PRS_NAME_REPLACE.  The caller must hold a
 * ref. */
int prs_name_bind(prs_store *store, const char *name, size_t len, const prs_oid *id, uint32_t flags, prs_error *error);
/* Unbind a name; if `id` is not NULL, only from that object.  The object exists as long as other holders keep it.
 * Return PRS_E_NOTFOUND if the name is unbound or belongs to another object.  `info` may be NULL; it receives the
 * former entry. */
int prs_name_unbind(prs_store *store, const char *name, size_t len, const prs_oid *id, prs_name_info *info,
                    prs_error *error);
/* Give an object a new name in place of the old one, in one step.  Return PRS_E_NOTFOUND if no object has the old name,
 * and PRS_E_EXISTS if an object has the new one. */
int prs_name_move(prs_store *store, const char *name, size_t len, const char *to, size_t to_len, prs_error *error);
/* Find the object of a name and take a reference as prs_ref does. Return PRS_E_NOTFOUND if no object has the name.
 * `info` may be NULL. */
int prs_name_find(prs_store *store, const char *name, size_t len, prs_oid *id, prs_name_info *info);
/* Do the same, and count it as a use of the name.  Return PRS_E_NOTFOUND, without counting, if the age of the name is
 * `max_age` or more. */
int prs_name_use(prs_store *store, const char *name, size_t len, uint32_t max_age, prs_oid *id, prs_name_info *info);
/* Add `uses` to the use count of a name, and `note` to its note. Return PRS_E_NOTFOUND if no object has the name. */
int prs_name_count(prs_store *store, const char *name, size_t len, uint32_t uses, uint64_t note);
/* Get the next name from *cursor on that starts with a prefix, NUL-terminated, and its object; return 1, or 0 at the
 * end.  `info` may be NULL. */
int prs_name_next(prs_store *store, uint32_t *cursor, const char *prefix, size_t prefix_len,
                  char text[PRS_NAME_MAX + 1], prs_oid *id, prs_name_info *info);

/* ---- spill files in the caller's format ------------------------------------------------------- */

/* The engine contains no compressor and no hash function.  In a store created with a PRS_OPEN_SPILL_* flag the caller
 * spills and restores objects: when prs_alloc returns PRS_E_FULL or prs_pin returns PRS_E_SPILLED, the caller writes or
 * reads the bytes between the calls below.  None of these calls holds a lock after its return.  In such a store each
 * file ends with a prs_spill_trailer. */

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
    uint64_t stored; /* number of bytes before this trailer */
    uint64_t digest; /* digest of the object's bytes            */
    uint64_t unused[2];
} prs_spill_trailer;

/* An object that is being spilled. */
typedef struct prs_spill_job {
    prs_oid id;
    const uint8_t *data;
    uint64_t size;
    uint64_t stored; /* number of bytes appended so far */
    int fd;
    uint64_t word;
    struct prs_spill_job *outer;
} prs_spill_job;

#define PRS_SPILL_VICTIMS 256
#define PRS_SPILL_ROUNDS 3

/* Return the PRS_OPEN_SPILL_* flags that the store was created with; 0: the engine itself writes spill files. */
uint32_t prs_spill_form(const prs_store *store);
/* Choose objects to spill, so that `size` bytes become free; later rounds also accept objects in recent use. Return the
 * number of objects, or an error. */
int prs_spill_choose(prs_store *store, uint64_t size, int round, prs_oid victims[PRS_SPILL_VICTIMS], prs_error *error);
/* Begin to spill an object; return PRS_E_AGAIN if it is in use. The same thread must finish or cancel the job. */
int prs_spill_begin(prs_store *store, const prs_oid *victim, prs_spill_job *job, prs_error *error);
int prs_spill_append(prs_store *store, prs_spill_job *job, const void *src, size_t n, prs_error *error);
/* Write the trailer and mark the object as stored in its file; on failure the job is cancelled. */
int prs_spill_finish(prs_store *store, prs_spill_job *job, int codec, int algorithm, uint64_t digest, prs_error *error);
void prs_spill_cancel(prs_store *store, prs_spill_job *job);

/* A draft larger than the store is written to a file. Before sealing, the caller can map the file, and must add a
 * trailer. */
bool prs_draft_in_file(const prs_store *store, const prs_draft *draft);
int prs_draft_map(prs_store *store, const prs_draft *draft, const uint8_t **bytes, prs_error *error);
void prs_draft_unmap(const uint8_t *bytes, uint64_t size);
int prs_draft_finish(prs_store *store, const prs_draft *draft, int algorithm, uint64_t digest, prs_error *error);

/* A spilled object that is being restored; it is pinned. */
typedef struct prs_restore {
    prs_oid id;
    prs_spill_trailer trailer; /* already checked against the object and the file                 */
    uint8_t *at;               /* RAW: the object's bytes, read-only; else space for them */
    uint64_t len;
    int fd; /* the file to read by prs_restore_read, unless RAW */
} prs_restore;

/* Begin to restore an object, and pin it by the rules of `kind`. Return PRS_E_EXISTS if it is restored
 * already; the caller then pins it again.  For PRS_E_LOST and PRS_E_CORRUPT, error->what describes the error. */
int prs_restore_begin(prs_store *store, const prs_oid *id, prs_pin_kind kind, prs_restore *restore, prs_error *error);
/* Read stored bytes; return PRS_E_CORRUPT if the file was truncated. */
int prs_restore_read(const prs_restore *restore, uint64_t at, void *to, size_t n);
/* Use the restored bytes as the bytes of the object while this process has it pinned. */
int prs_restore_end(prs_store *store, prs_restore *restore, prs_view *view);
void prs_restore_cancel(prs_store *store, prs_restore *restore);

/* ---- maintenance -------------------------------------------------------------------- */

typedef struct prs_stats {
    uint64_t capacity;               /* size of the data area in bytes */
    uint64_t used;                   /* bytes in extents of objects, without reserved slots       */
    uint64_t reserved;               /* bytes reserved in clients' magazines */
    uint64_t backed;                 /* bytes that the kernel has allocated for the file        */
    uint64_t overhead;               /* backed bytes of the control area */
    uint64_t objects;                /* number of sealed objects */
    uint64_t unsealed;               /* number of drafts */
    uint64_t largest_free;           /* size of the largest free extent in bytes */
    uint64_t slots;                  /* number of published slots */
    uint64_t in_flight;              /* number of tokens */
    uint64_t edges;                  /* number of links by which objects hold other objects */
    uint64_t spilled, spilled_bytes; /* number and bytes of objects in spill files */
    uint64_t orphaned;               /* number of objects that the sticky holder keeps */
    uint64_t serial;                 /* the next serial */
    uint32_t clients;                /* number of living clients that are not visitors */
    uint32_t max_clients;
    uint64_t reaped;                            /* number of dead clients reaped since the store was created */
    uint64_t stolen;                            /* number of times that the lock was stolen                */
    uint64_t pulls, pulled_bytes, failed_pulls; /* see prs_count_pull */
} prs_stats;

int prs_get_stats(prs_store *store, prs_stats *out);
/* Count a transfer from another host into this store. The engine makes no transfers; its clients report them. */
void prs_count_pull(prs_store *store, uint64_t bytes);
void prs_count_failed_pull(prs_store *store);

typedef struct prs_record {
    prs_oid id;
    uint64_t size, extent;             /* bytes of the object and of its extent (0: spilled)  */
    uint64_t off;                      /* offset of the extent in the data area               */
    uint32_t state;                    /* PRS_STATE_*                                         */
    uint32_t ref_holders, pin_holders; /* clients                                     */
    uint32_t tokens_and_edges;         /* number of messages and objects that hold this object */
    int32_t creator_pid;               /* pid of the creator, 0 if it has left or is dead */
    uint32_t age;                      /* seconds, by the monotonic clock                     */
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

/* Return the pid of the client that created a sealed object; 0 if the object is gone, or that client has left or is
 * dead. */
int32_t prs_creator(prs_store *store, const prs_oid *id);
/* List objects from slot *cursor on: fill at most `cap` records, and advance *cursor. */
int prs_list(prs_store *store, uint32_t *cursor, prs_record *out, int cap);

/* Reap dead clients unless a client has checked within `min_age` ns (0: check now). */
int prs_reap_dead(prs_store *store, int64_t min_age);
/* Return freed pages beyond `keep` bytes to the kernel; return the number of bytes. */
uint64_t prs_trim(prs_store *store, uint64_t keep);
/* Return the number of stores that have files in a spill directory, but provably no longer exist, or -errno. */
int prs_spill_count_ended(const char *directory);
/* Do the same, and remove the files of these stores. */
int prs_spill_clean(const char *directory);
#define PRS_SPILL_DIR_MAX 4096 /* in bytes, including the NUL */
/* The store's spill directory, "" if it has none. Valid until prs_dispose. */
const char *prs_spill_directory(const prs_store *store);
/* Copy the tables of the store at `path` and become a client of the copy, to inspect a store without changing it.
 * The copy has no data and no spill directory (`spill_dir` gets the original's); only prs_get_stats, prs_list,
 * prs_name_next and prs_check are meaningful on it. */
int prs_snapshot(prs_store **out, const char *path, char spill_dir[PRS_SPILL_DIR_MAX], prs_error *error);
/* Verify every invariant under the store lock. Return PRS_E_CORRUPT and set error->what if an invariant is violated. */
int prs_check(prs_store *store, prs_error *error);
/* Do the work that destructors deferred. */
void prs_deferred_run_all(prs_store *store);

/* ---- fork ----------------------------------------------------------------------------- */

/* The first open installs the fork handlers, which serve all open handles of the process.  After a fork the child's
 * handle is a separate client that holds every object that its parent held.  But if no slot or descriptor was free,
 * prs_is_orphan() returns true: views stay valid, but the handle supports only prs_unpin and prs_unref. */
bool prs_is_orphan(const prs_store *store);
/* Start to count forks; the first open does this, too. */
void prs_count_forks(void);
/* Return a counter that every fork increments in the child. */
uint32_t prs_fork_count(void);

#ifdef __cplusplus
}
#endif
#endif
