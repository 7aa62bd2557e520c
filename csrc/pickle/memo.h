/* The memo of a pickler maps each object to its memo index in the stream.
 *
 * It is a hash table keyed by identity, with open addressing and linear probing, and at most half full. The hash
 * function preserves the order of addresses within a page, and scatters different pages. Objects that were allocated
 * one after the other are usually pickled in this order too, and lie in neighbouring slots, so there are few cache
 * misses and no clustering between pages. A slot belongs to the current dump if it has the current generation;
 * incrementing the generation clears the table.
 *
 * Ownership: as long as only the pickler's own code has run, no object can have been freed, so entries are borrowed.
 * prp_memo_own() takes a reference to every object in the memo, and from then on each new entry is owned until
 * prp_memo_clear(). So no other object can get an address that the memo still contains.
 */
#ifndef PRP_MEMO_H
#define PRP_MEMO_H

#include "interp.h"

typedef struct {
    PyObject *key;
    uint32_t index;
    uint32_t generation;
} prp_memo_slot;

typedef struct {
    prp_memo_slot *slots;
    size_t mask;     /* slots - 1; a power of two */
    PyObject **keys; /* in insertion order; room for (mask + 1) / 2 */
    uint32_t count;
    uint32_t generation; /* generation of the slots; restarts with a new table, even in the middle of a dump */
    uint64_t lives;      /* number of times the memo was cleared: an index is valid only while this is unchanged */
    bool owned;
} prp_memo;

enum { PRP_MEMO_ABSENT = -1, PRP_MEMO_ERROR = -2 };

int prp_memo_init(prp_memo *memo);
void prp_memo_free(prp_memo *memo); /* clears the memo first */
void prp_memo_own(prp_memo *memo);
/* Remove all entries and release the owned references; shrink to `keep_slots` if larger. May run finalizers. */
void prp_memo_clear(prp_memo *memo, size_t keep_slots);
/* Return the current entries as a list of (index, object): new reference or NULL. May run code. */
PyObject *prp_memo_entries(const prp_memo *memo);
int prp_memo_grow(prp_memo *memo); /* -1: MemoryError, or 2**32 entries */

static inline size_t prp_memo_hash(const PyObject *key)
{
    uintptr_t unit = (uintptr_t)key >> 4, page = unit >> 8;
    return (size_t)(unit & 0xff) + (size_t)(page * 0x9E3779B97F4A7C15ull >> 24);
}

/* Return the index of `key`, or PRP_MEMO_ABSENT. */
static inline int64_t prp_memo_get(const prp_memo *memo, const PyObject *key)
{
    for (size_t i = prp_memo_hash(key) & memo->mask;; i = (i + 1) & memo->mask) {
        const prp_memo_slot *slot = &memo->slots[i];
        if (slot->generation != memo->generation)
            return PRP_MEMO_ABSENT;
        if (slot->key == key)
            return slot->index;
    }
}

/* Return the index of `key` if it has one; else assign `index` to it and return PRP_MEMO_ABSENT. */
static inline int64_t prp_memo_add_as(prp_memo *memo, PyObject *key, uint32_t index)
{
    if (PRP_UNLIKELY((size_t)memo->count * 2 > memo->mask) && prp_memo_grow(memo) < 0)
        return PRP_MEMO_ERROR;
    for (size_t i = prp_memo_hash(key) & memo->mask;; i = (i + 1) & memo->mask) {
        prp_memo_slot *slot = &memo->slots[i];
        if (slot->generation != memo->generation) {
            slot->key = key;
            slot->index = index;
            slot->generation = memo->generation;
            memo->keys[memo->count++] = key;
            if (memo->owned)
                Py_INCREF(key);
            return PRP_MEMO_ABSENT;
        }
        if (slot->key == key)
            return slot->index;
    }
}

static inline int64_t prp_memo_add(prp_memo *memo, PyObject *key)
{
    return prp_memo_add_as(memo, key, memo->count);
}

#endif
