/* Implements growth, clearing and ownership of the memo; see memo.h for the design. */
#include "memo.h"

#include <stdlib.h>
#include <string.h>

#define INITIAL_SLOTS 64

static int allocate(prp_memo *memo, size_t slots)
{
    prp_memo_slot *table = calloc(slots, sizeof *table);
    PyObject **keys = malloc((slots / 2 + 1) * sizeof *keys);
    if (!table || !keys) {
        free(table);
        free(keys);
        PyErr_NoMemory();
        return -1;
    }
    memo->slots = table;
    memo->keys = keys;
    memo->mask = slots - 1;
    memo->generation = 1;
    return 0;
}

int prp_memo_init(prp_memo *memo)
{
    memset(memo, 0, sizeof *memo);
    return allocate(memo, INITIAL_SLOTS);
}

int prp_memo_grow(prp_memo *memo)
{
    if (memo->count > UINT32_MAX / 2) {
        PyErr_SetString(PyExc_OverflowError, "too many objects in one pickle");
        return -1;
    }
    prp_memo old = *memo;
    size_t slots = (old.mask + 1) * (old.mask < (1u << 20) ? 4 : 2);
    if (allocate(memo, slots) < 0) {
        *memo = old;
        return -1;
    }
    memcpy(memo->keys, old.keys, old.count * sizeof *old.keys);
    for (size_t i = 0; i <= old.mask; i++) {
        if (old.slots[i].generation != old.generation)
            continue;
        size_t at = prp_memo_hash(old.slots[i].key) & memo->mask;
        while (memo->slots[at].generation == memo->generation)
            at = (at + 1) & memo->mask;
        memo->slots[at] = old.slots[i];
        memo->slots[at].generation = memo->generation;
    }
    free(old.slots);
    free(old.keys);
    return 0;
}

void prp_memo_own(prp_memo *memo)
{
    if (memo->owned)
        return;
    memo->owned = true;
    for (uint32_t i = 0; i < memo->count; i++)
        Py_INCREF(memo->keys[i]);
}

static void release(PyObject **keys, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        Py_DECREF(keys[i]);
}

void prp_memo_clear(prp_memo *memo, size_t keep_slots)
{
    /* Empty the memo before releasing anything: a finalizer may use the same pickler. */
    memo->lives++;
    uint32_t count = memo->count;
    PyObject **dying = NULL, *few[32];
    if (memo->owned && count) {
        dying = count <= 32 ? few : malloc(count * sizeof *dying);
        if (dying)
            memcpy(dying, memo->keys, count * sizeof *dying);
    }
    memo->count = 0;
    if (memo->mask + 1 > keep_slots) {
        prp_memo old = *memo;
        if (allocate(memo, INITIAL_SLOTS) < 0) {
            PyErr_Clear();
            *memo = old;
        } else {
            free(old.slots);
            if (old.owned && count && !dying)
                dying = old.keys; /* no memory for a copy: use the array itself, which we free in any case */
            else
                free(old.keys);
        }
    }
    if (++memo->generation == 0) {
        memset(memo->slots, 0, (memo->mask + 1) * sizeof *memo->slots);
        memo->generation = 1;
    }
    bool owned = memo->owned;
    memo->owned = false;
    if (!owned || !count)
        return;
    if (dying) {
        release(dying, count);
        if (dying != few)
            free(dying);
        return;
    }
    /* There is no memory for a copy of the keys: replace the memo by an empty one while we release them, so that
     * finalizers cannot find them. */
    prp_memo old = *memo;
    if (allocate(memo, INITIAL_SLOTS) == 0) {
        release(old.keys, count);
        free(old.slots);
        free(old.keys);
    } else {
        PyErr_Clear();
        *memo = old;
        while (count)
            Py_DECREF(memo->keys[--count]);
    }
}

void prp_memo_free(prp_memo *memo)
{
    if (!memo->slots)
        return;
    prp_memo_clear(memo, SIZE_MAX);
    free(memo->slots);
    free(memo->keys);
    memset(memo, 0, sizeof *memo);
}

PyObject *prp_memo_entries(const prp_memo *memo)
{
    /* Copy all entries before any step that may run code, because that code may clear the memo. */
    uint32_t count = memo->count;
    struct {
        PyObject *key;
        uint32_t index;
    } *taken = malloc((count + (size_t)1) * sizeof *taken);
    if (!taken)
        return PyErr_NoMemory();
    for (uint32_t i = 0; i < count; i++) {
        taken[i].key = Py_NewRef(memo->keys[i]);
        taken[i].index = (uint32_t)prp_memo_get(memo, memo->keys[i]);
    }
    PyObject *list = PRP_FOREIGN(PyList_New(count));
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *pair = PRP_FOREIGN(Py_BuildValue("(kO)", (unsigned long)taken[i].index, taken[i].key));
        if (pair)
            PyList_SET_ITEM(list, i, pair);
        else
            Py_CLEAR(list);
    }
    for (uint32_t i = 0; i < count; i++)
        Py_DECREF(taken[i].key);
    free(taken);
    return list;
}
