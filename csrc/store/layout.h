/* layout.h - every struct that lives in shared memory.
 *
 * Purpose    The byte layout of a segment and the invariants of its parts.
 * Algorithm  The segment is one file: a superblock, then tables (clients, slots, extents, links, the
 *            bitmap of backed pages), then the data area.  All references are indices or offsets, never
 *            pointers; the tables are sparse and backed chunk by chunk.
 * Guarantee  The slot table is authoritative.  Free lists, bins, counts of links and the
 *            chains of edges follow from slots, links and extents of live slots;
 *            prs_rebuild() recomputes them from there.
 *
 *   0            superblock            page-aligned parts, see prs_super
 *   clients_off  prs_client[max_clients]
 *   names_off    prs_name[PRS_NAMES_MAX]
 *   buckets_off  uint32_t[PRS_NAMES_MAX]: 1 + index of the first name of each bucket
 *   slots_off    prs_slot[max_slots]   stride slot_stride, published in chunks
 *   extents_off  prs_extent[2 * max_slots + 8]
 *   links_off    prs_link[max_links]
 *   backed_off   one bit per page of the data area
 *   data_off     data area             capacity bytes
 */
#ifndef PRS_LAYOUT_H
#define PRS_LAYOUT_H

#include "atomic.h"
#include "pages.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "a store is read and written on little-endian machines alone");
_Static_assert(sizeof(void *) == 8,
               "a store needs a 64-bit machine: it maps all of a capacity, and words of 64 bits are atomic");

#define PRS_MAGIC 0x5245535941525950ull /* "PYRAYSER" */
#define PRS_LAYOUT_VERSION 2u
#define PRS_UNIT 64u /* granularity and alignment of extents              */
#define PRS_CLIENTS_DEFAULT 512u
#define PRS_CLIENTS_MAX 4096u /* the first slot is the sticky holder's, the last the janitor's */
#define PRS_SLOT_CHUNK 1024u  /* number of slots published at a time */
#define PRS_LINK_CHUNK 1024u
#define PRS_NIL UINT32_MAX   /* means "no slot", "no extent" or "no link" */
#define PRS_STICKY_CLIENT 0u /* client 0: holds the objects for which a fork got no client slot */

/* ---- the word of a slot ------------------------------------------------------------
 *
 *   63 ........ 32 31 ....... 16 15 .. 12 11 ..... 4 3 ... 0
 *   generation     client        -        flags      state
 *
 * The low half is the futex.  `client` is the client that last changed the state: it owns a RESERVED or
 * CREATING slot, frees a FREEING one, and created a SEALED one.  Transitions, each one compare-and-swap or
 * exchange:
 *
 *   FREE -> RESERVED                   under the store lock (an extent is attached)
 *   RESERVED -> CREATING               its owner
 *   CREATING -> SEALED                 its owner (seal)
 *   CREATING -> FREEING+FREED          its owner (abort) or its reaper
 *   SEALED -> FREEING -> SEALED        a client that found no holder, then found one
 *   FREEING -> FREEING+HELD            a client that becomes a holder meanwhile
 *   FREEING -> RESERVED, generation+1  a client that found no holder twice (reclaim_slot), unless HELD; via
 *                                      FREEING+FREED, generation+1, if it removes pages or a file first
 *   RESERVED -> FREE                   under the store lock (the extent is freed)
 *   SEALED -> SPILLING                 a client that needs space and saw no pin
 *   SPILLING -> SEALED+FILE            under the store lock (the extent is freed)
 *   SPILLING -> SEALED                 the spiller or its reaper, if spilling failed
 *
 * FREE -> RESERVED raises the generation too, so that a magazine entry whose slot was
 * reclaimed meanwhile never matches the slot's next use.
 */
#define PRS_STATE_MASK 0xFu
#define PRS_WORD_FREED 0x10u   /* only pins and links of kind BYTES count from here on */
#define PRS_WORD_WAITERS 0x20u /* a thread sleeps on the futex half                   */
#define PRS_WORD_WINDOW 0x40u  /* whole pages with a writable window (create, empty)  */
#define PRS_WORD_FILE 0x80u    /* the bytes are in a spill file; the slot has no extent */
#define PRS_WORD_HELD 0x100u   /* FREEING: a new holder has set its bit, so check again */
#define PRS_FLAGS_MASK 0xFF0u
#define PRS_WORD_CLIENT_SHIFT 16

static inline uint64_t prs_word(uint32_t generation, uint32_t client, uint32_t state_and_flags)
{
    return (uint64_t)generation << 32 | (uint64_t)client << PRS_WORD_CLIENT_SHIFT | state_and_flags;
}
static inline uint32_t prs_word_generation(uint64_t word)
{
    return (uint32_t)(word >> 32);
}
static inline uint32_t prs_word_client(uint64_t word)
{
    return (uint32_t)(word >> PRS_WORD_CLIENT_SHIFT) & 0xFFFFu;
}
static inline uint32_t prs_word_state(uint64_t word)
{
    return (uint32_t)word & PRS_STATE_MASK;
}

/* ---- slots ---------------------------------------------------------------------------- */

/* Invariant: state != FREE and not FILE  <=>  `extent` is the index of a used extent whose slot is this
 * one and whose off and size are `off` and `cap`.  Invariant: SEALED => serial != 0, size <= cap,
 * and every object it refers to through `edges` has a smaller serial.
 * off, cap and extent change under the store lock only; size before SEALED only.  They are atomic (relaxed)
 * because statistics and magazine claims read other clients' slots, and then check by the word whether the values
 * are valid. */
typedef struct prs_slot {
    prs_atomic_u64 word;
    prs_atomic_u64 serial; /* never repeats in a store; if it matches, the generation is right, too         */
    prs_atomic_u64 off;    /* offset of the extent from data_off                              */
    prs_atomic_u64 cap;    /* size of the extent in bytes */
    prs_atomic_u64 size;   /* size of the object in bytes */
    prs_atomic_u32 extent; /* index of its descriptor, or PRS_NIL                       */
    union {
        prs_atomic_u32 next_free; /* if FREE: the next slot on the stack of free slots */
        prs_atomic_u32 last_pin;  /* otherwise: time of the last pin, in ticks of prs_tick() */
    };
    prs_atomic_u32 links;     /* live links that hold this object, see prs_links_all(); written under the lock */
    prs_atomic_u32 edges;     /* first link by which this object holds others, or PRS_NIL  */
    prs_atomic_u32 created;   /* seconds since the store was made                          */
    prs_atomic_u32 ended;     /* generation << 2 | PRS_ENDED_* of the previous object        */
    prs_atomic_u64 holders[]; /* refs[W] then pins[W]: one bit per client                 */
} prs_slot;

_Static_assert(sizeof(prs_slot) == 64, "a slot's fixed part is one cache line");

enum { PRS_ENDED_DROPPED = 0, PRS_ENDED_FREED = 1, PRS_ENDED_UNSEALED = 2 };

/* ---- extents ----------------------------------------------------------------------------- */

/* A run of bytes of the data area. A slot uses the run, or the run is free.  Written under the store lock.  Invariant:
 * the chain of `next` from the first extent contains every byte of the data area once, in order, and no two free
 * extents are neighbours. */
typedef struct prs_extent {
    uint64_t off, size;
    uint32_t prev, next; /* neighbours by address                                        */
    uint32_t bin_next;   /* PRS_USED; free: next in its bin; unused descriptor: next      */
    union {
        uint32_t slot;     /* if used: the slot that owns it */
        uint32_t bin_prev; /* if free: previous extent in its bin */
    };
} prs_extent;

#define PRS_USED (PRS_NIL - 1u)

_Static_assert(sizeof(prs_extent) == 32, "two extents are one cache line");

static inline bool prs_extent_used(const prs_extent *e)
{
    return e->bin_next == PRS_USED;
}

/* ---- links: holds that do not belong to a process ------------------------------------------- */

enum {
    PRS_LINK_FREE = 0,
    PRS_LINK_ONCE = 1,        /* a message in flight, ended by its receiver                */
    PRS_LINK_STICKY = 2,      /* a message whose bytes may be loaded any number of times   */
    PRS_LINK_EDGE = 3,        /* the outer object refers to this object                    */
    PRS_LINK_DYING = 4,       /* an edge whose outer object was retired; a client ends it */
    PRS_LINK_NAME = 5,        /* an entry of the table of names                            */
    PRS_LINK_BYTES = 6,       /* an EDGE that keeps the object's bytes even after prs_free */
    PRS_LINK_BYTES_DYING = 7, /* a BYTES edge that is DYING */
    PRS_LINK_LAST = PRS_LINK_BYTES_DYING
};

/* `links` of a slot counts how many links hold the object (low 24 bits), and how many of those are of kind BYTES or
 * BYTES_DYING (high 8 bits). 255 means 255 or more: we do not decrement such a count, but set it to 0 when no link is
 * left. */
#define PRS_LINKS_ALL 0xFFFFFFu
#define PRS_LINKS_BYTES 0xFF000000u
#define PRS_LINKS_BYTES_ONE 0x1000000u
#define PRS_LINKS_MAX (PRS_LINKS_ALL & ~(PRS_LINK_CHUNK - 1)) /* maximum number of links in a store */

static inline uint32_t prs_links_all(uint32_t links)
{
    return links & PRS_LINKS_ALL;
}

static inline bool prs_link_is_edge(uint32_t kind)
{
    return kind == PRS_LINK_EDGE || kind == PRS_LINK_BYTES;
}

static inline bool prs_link_is_dying(uint32_t kind)
{
    return kind == PRS_LINK_DYING || kind == PRS_LINK_BYTES_DYING;
}

static inline bool prs_link_holds_bytes(uint32_t kind)
{
    return kind == PRS_LINK_BYTES || kind == PRS_LINK_BYTES_DYING;
}

/* What a link belongs to.  The kind of the link determines which member is valid. */
typedef union prs_link_owner {
    struct {
        uint32_t slot, generation;
    } outer; /* EDGE, BYTES: the slot of the object that refers to this one */
    struct {
        uint32_t entry, serial;
    } name; /* NAME: an entry of the table of names; low half of the serial of its object */
    struct {
        uint32_t index, incarnation;
    } client; /* ONCE, STICKY: the client that made the link; DYING, BYTES_DYING: the one that ends it */
} prs_link_owner;

/* Written under the store lock.  Invariant: slot[i].links counts the links != FREE with slot == i and
 * generation of the slot's word == generation. */
typedef struct prs_link {
    uint64_t serial;     /* serial of this link: never repeats, 0 when free                   */
    uint64_t inner;      /* serial of the object that the link holds */
    uint32_t slot;       /* slot of the object that the link holds */
    uint32_t generation; /* generation of that slot */
    uint32_t kind;       /* PRS_LINK_*                                                 */
    prs_link_owner owner;
    union {
        uint32_t next_edge; /* EDGE, DYING: next edge of the outer object or of the client */
        uint32_t next_free; /* FREE: the next link on the stack of free links */
        uint32_t note;      /* ONCE, STICKY: the sender's note about the message's route */
    };
    uint32_t created; /* seconds since the store was made                           */
    uint32_t pid;     /* pid of the process that made the link */
} prs_link;

_Static_assert(sizeof(prs_link) == 48, "a link is 48 bytes");
_Static_assert(offsetof(prs_link, owner.outer.slot) == 28 && offsetof(prs_link, owner.outer.generation) == 32 &&
                   offsetof(prs_link, owner.name.entry) == 28 && offsetof(prs_link, owner.name.serial) == 32 &&
                   offsetof(prs_link, owner.client.index) == 28 && offsetof(prs_link, owner.client.incarnation) == 32 &&
                   offsetof(prs_link, next_edge) == 36,
               "all owners of a link lie between its kind and its chain");

/* ---- names ------------------------------------------------------------------------------------------ */

#define PRS_NAMES_MAX 65536u   /* a power of two */
#define PRS_NAME_BUCKETS 1024u /* the initial number of buckets, one page; a power of two */
#define PRS_NAME_ROOM 216u

/* Written under the store lock.  Invariant: serial != 0 => link is PRS_NIL, or links[link] is a NAME link of
 * this entry, as long as the object lives; text[len] == 0; the entry is in the chain of its bucket, hash modulo the
 * number of buckets.  Unless the lock is held, replaces == 0. */
typedef struct prs_name {
    uint64_t serial; /* serial of the object, 0 when unused: written last                  */
    uint32_t slot, generation;
    uint32_t link, len;
    uint32_t hash;
    uint32_t replaces; /* 1 + index of the entry that this one replaces; a rebuild clears that entry */
    uint64_t version;  /* larger than those of all names that were bound earlier                     */
    uint32_t next;     /* 1 + index of the next entry of the bucket, 0 at the end                    */
    uint32_t uses;     /* number of uses, see prs_name_use                                           */
    uint64_t used;     /* the arena's name_uses at the last use or, before it, at the bind           */
    uint64_t note;     /* a counter for the caller, see prs_name_count                        */
    char text[PRS_NAME_ROOM];
} prs_name;

_Static_assert(sizeof(prs_name) == 280, "a name is 280 bytes");

/* ---- clients ------------------------------------------------------------------------------------ */

/* state: PRS_CLIENT_* | reaper << 8 | incarnation << 32. The incarnation is the client's or, while REAPING, the
 * reaper's, so that a process that found a client dead cannot confuse it with the next client of the slot. The state is
 * zero when FREE. */
enum {
    PRS_CLIENT_FREE = 0,
    PRS_CLIENT_UNBORN = 1, /* claimed, but the pid is not known yet (fork in progress) */
    PRS_CLIENT_LIVE = 2,
    PRS_CLIENT_REAPING = 3 /* dead; the reaper named in the word cleans up    */
};

/* Invariant: a living client that is not FREE holds an OFD lock on byte PRS_CLIENT_BYTE + its index,
 * and has a mapping that keeps the lock when descriptors are closed. */
typedef struct prs_client {
    prs_atomic_u64 state;
    prs_atomic_u32 incarnation;  /* increases whenever the slot is claimed               */
    prs_atomic_u32 pid;          /* 0 while UNBORN */
    prs_atomic_u64 pid_ns;       /* inode of its pid namespace, 0: unknown               */
    prs_atomic_u64 first_serial; /* objects with a smaller serial belong to earlier clients of the slot */
    prs_atomic_u32 fd;           /* its descriptor, through which other processes attach */
    prs_atomic_u32 leaving;      /* the incarnation that is leaving, see prs_leave             */
    prs_atomic_u32 visiting;     /* the incarnation that only looks at the store, see PRS_OPEN_VISITOR */
    uint32_t unused[21];
} prs_client;

_Static_assert(sizeof(prs_client) == 128, "a client is two cache lines");

#define PRS_CLIENT_BYTE ((uint64_t)1 << 62) /* past the end of any file: used for locks only */

/* ---- the superblock --------------------------------------------------------------------------------- */

#define PRS_SPILL_DIR 1024u
#define PRS_FL_COUNT 40u
#define PRS_SL_BITS 5u
#define PRS_SL_COUNT (1u << PRS_SL_BITS)

/* Written by the owner of the store lock; rebuilt by a process that steals the lock. */
typedef struct prs_arena {
    prs_atomic_u64 used; /* total bytes of used extents */
    uint32_t slot_free;  /* stack of FREE slots                                       */
    uint32_t slot_free_count;
    uint32_t extent_free;  /* stack of unused descriptors                               */
    uint32_t extent_bump;  /* descriptors from this index on have never been used            */
    uint32_t extent_first; /* the extent at offset 0                                    */
    uint32_t link_free;    /* stack of free links                                       */
    uint32_t link_bump;
    uint32_t tokens; /* number of links of kind ONCE and STICKY */
    uint32_t edges;  /* number of links of kind EDGE and DYING */
    uint32_t clock;  /* extent at which the search for spill victims resumes      */
    uint32_t dirty;  /* 1 during a rebuild; if it is 1, the next thief starts over            */
    uint64_t link_serial;
    uint64_t name_version; /* version of the name that was bound last */
    uint64_t name_uses;    /* increases with each bind and use of a name */
    uint32_t name_buckets; /* number of buckets in use, a power of two; 0 before the first name */
    uint32_t name_hand;    /* the entry at which the search for a reusable entry resumes        */
    uint64_t fl_bitmap;
    uint32_t sl_bitmap[PRS_FL_COUNT];
    uint32_t bins[PRS_FL_COUNT][PRS_SL_COUNT];
} prs_arena;

/* Invariant: everything above `lock` is constant once `ready` is PRS_MAGIC, and that page is
 * mapped read-only from then on. */
typedef struct prs_super {
    prs_atomic_u64 ready; /* PRS_MAGIC when the segment is complete */
    uint32_t version;
    uint32_t page;
    uint64_t layout_hash; /* hash of sizes and offsets, to detect differences that the version misses   */
    uint64_t store_id;    /* a random number, never 0 */
    uint64_t file_size, capacity;
    uint64_t clients_off, names_off, buckets_off, slots_off, extents_off, links_off, backed_off, data_off;
    uint32_t max_clients, holder_words, max_slots, slot_stride, max_extents, max_links;
    uint64_t born_ns;      /* CLOCK_MONOTONIC ns, for ages                                */
    uint64_t warm_reserve; /* freed bytes that stay backed                                */
    uint32_t flags, uid;
    char spill_dir[PRS_SPILL_DIR]; /* absolute path, NUL-terminated; empty: no spilling           */

    /* The pages from here on are writable in every client, the first page is not. */
    _Alignas(4096) prs_atomic_u32 lock; /* owner << 20 ... see lock.c                      */
    prs_atomic_u32 corrupt;             /* set when damage is found in the tables, never reset */
    prs_atomic_u64 stolen, reaped;
    prs_atomic_u64 pulls, pulled_bytes, failed_pulls; /* see prs_count_pull */

    _Alignas(64) prs_atomic_u64 serial; /* next serial to allocate */

    _Alignas(64) prs_atomic_u32 published; /* number of slots that exist */
    prs_atomic_u32 links_published;
    prs_atomic_u32 client_high; /* clients from this index on were never claimed */
    prs_atomic_u32 recount;     /* odd while a rebuild recounts the links; meanwhile all objects count as held */
    prs_atomic_u32 swept;       /* value of recount at the last sweep for objects without holders */
    prs_atomic_u32 names_high;  /* names from this index on were never used      */

    _Alignas(64) prs_atomic_u32 epoch; /* futex: an object that a client waits for has changed      */
    prs_atomic_u32 epoch_waiters;
    prs_atomic_u64 last_look;  /* CLOCK_MONOTONIC ns                           */
    prs_atomic_u64 warm_floor; /* size of the largest piece freed recently             */
    prs_atomic_u64 warm_until; /* CLOCK_MONOTONIC ns                            */
    prs_atomic_u64 orphaned;   /* number of objects that the sticky holder keeps */

    _Alignas(64) prs_arena arena;
} prs_super;

#endif
