/* The memo of an unpickler is an array, because picklers assign consecutive indices from zero.
 *
 * An entry with an index far beyond the number of objects stored so far goes to a dict instead, so that an opcode of
 * five bytes in a hostile stream cannot make us allocate gigabytes. Entries are owned objects, or tagged integers for
 * objects that do not exist yet (pending.c).
 */
#include "unpickler.h"

#define FIRST_ENTRIES 64
#define KEEP_ENTRIES 16384

/* Return whether an index is close enough to the entries in use to belong to the array. */
static bool plausible(const prp_load_memo *memo, size_t index)
{
    return index < FIRST_ENTRIES || index / 4 <= (size_t)memo->used;
}

static int grow(prp_load_memo *memo, size_t index)
{
    size_t larger = memo->capacity ? (size_t)memo->capacity * 2 : FIRST_ENTRIES;
    while (larger <= index)
        larger *= 2;
    PyObject **entries =
        larger > PY_SSIZE_T_MAX / sizeof(PyObject *) ? NULL : PyMem_Realloc(memo->entries, larger * sizeof(PyObject *));
    if (!entries) {
        PyErr_NoMemory();
        return -1;
    }
    memo->entries = entries;
    memo->capacity = (Py_ssize_t)larger;
    return 0;
}

bool prp_load_memo_reserve(prp_load_memo *memo, size_t index)
{
    if (memo->sparse)
        return false; /* the dict may have an entry with this index */
    if (index >= (size_t)memo->capacity) {
        if (!plausible(memo, index))
            return false;
        if (grow(memo, index) < 0) {
            PyErr_Clear(); /* prp_load_memo_put() reports the error if it fails as well */
            return false;
        }
    }
    while ((size_t)memo->top <= index)
        memo->entries[memo->top++] = NULL;
    return !memo->entries[index];
}

/* Remove the object with this index from the dict. Return 1 with the object in *value, 0 if there is none, or -1. */
static int take_sparse(prp_load_memo *memo, PyObject *key, PyObject **value)
{
    *value = Py_XNewRef(PyDict_GetItemWithError(memo->sparse, key));
    if (!*value)
        return PyErr_Occurred() ? -1 : 0;
    if (PyDict_DelItem(memo->sparse, key) < 0) {
        Py_CLEAR(*value);
        return -1;
    }
    return 1;
}

/* Set an entry, and return 0 or -1. *old is the previous object or NULL; the caller drops it once the memo is
 * consistent. */
static int replace(prp_load_memo *memo, size_t index, PyObject *value, PyObject **old)
{
    PyObject *key = NULL;
    *old = NULL;
    bool array = index < (size_t)memo->capacity || plausible(memo, index);
    if (array) {
        if (index >= (size_t)memo->capacity && grow(memo, index) < 0)
            return -1;
        while ((size_t)memo->top <= index)
            memo->entries[memo->top++] = NULL;
        PyObject *entry = memo->entries[index];
        if (entry || !memo->sparse) {
            memo->used += !entry;
            memo->entries[index] = Py_NewRef(value);
            *old = prp_load_tagged(entry) ? NULL : entry;
            return 0;
        }
    } else if (!memo->sparse && !(memo->sparse = PRP_FOREIGN(PyDict_New()))) {
        return -1;
    }
    /* The entry may be in the dict, if it was set when the array was shorter. Keys are ints, so no foreign code
     * runs. */
    int had = (key = PyLong_FromSize_t(index)) ? take_sparse(memo, key, old) : -1;
    int failed = had < 0 || (!array && PyDict_SetItem(memo->sparse, key, value) < 0);
    Py_XDECREF(key);
    if (had > 0)
        memo->used--;
    if (failed)
        return -1;
    memo->used++;
    if (array)
        memo->entries[index] = Py_NewRef(value);
    return 0;
}

int prp_load_memo_put(prp_loader *L, size_t index, PyObject *value)
{
    PyObject *old;
    int failed = replace(&L->memo, index, value, &old);
    if (old && prp_load_drop(L, old) < 0)
        failed = -1;
    return failed;
}

PyObject *prp_load_memo_get_slow(prp_loader *L, size_t index)
{
    /* Creating an object may run foreign code, and another thread may continue the load: reread the entry each time. */
    while (index < (size_t)L->memo.top) {
        PyObject *entry = L->memo.entries[index];
        if (!entry)
            break;
        if (!prp_load_tagged(entry))
            return Py_NewRef(entry);
        Py_ssize_t number = (Py_ssize_t)((uintptr_t)entry >> 2);
        int made = ((uintptr_t)entry & PRP_MEMO_TAGS) == PRP_MEMO_TAG_PENDING ? prp_load_make_pending(L, number)
                                                                              : prp_load_make_unmade(L, number);
        if (made < 0)
            return NULL;
    }
    if (L->memo.sparse) {
        PyObject *key = PyLong_FromSize_t(index);
        PyObject *value = key ? Py_XNewRef(PyDict_GetItemWithError(L->memo.sparse, key)) : NULL;
        Py_XDECREF(key);
        if (value || PyErr_Occurred())
            return value;
    }
    return prp_load_malformed("Memo value not found at index %zu", index);
}

/* Drop all entries of a memo that no machine uses any more. */
static void drop_entries(prp_load_memo *memo)
{
    PyObject **entries = memo->entries;
    for (Py_ssize_t i = memo->top; i-- > 0;) {
        PyObject *entry = entries[i];
        if (!prp_load_tagged(entry))
            PRP_FOREIGN_VOID(Py_XDECREF(entry));
    }
    if (memo->sparse)
        PRP_FOREIGN_VOID(Py_DECREF(memo->sparse));
}

/* Empty the memo, and return the old one without its entries; the caller owns its table. */
static prp_load_memo detach(prp_loader *L)
{
    /* Releasing an object may run code that uses this memo, and that code must find the memo empty. */
    prp_load_memo old = L->memo;
    L->memo = (prp_load_memo){0};
    PyObject *type = NULL, *value, *traceback;
    if (PyErr_Occurred())
        PyErr_Fetch(&type, &value, &traceback);
    drop_entries(&old);
    if (type)
        PyErr_Restore(type, value, traceback);
    return old;
}

void prp_load_memo_clear(prp_loader *L)
{
    prp_load_memo old = detach(L);
    PyMem_Free(old.entries);
}

void prp_load_memo_empty(prp_loader *L)
{
    prp_load_memo old = detach(L);
    if (!L->memo.entries && old.capacity <= KEEP_ENTRIES) {
        L->memo.entries = old.entries;
        L->memo.capacity = old.capacity;
    } else {
        PyMem_Free(old.entries);
    }
}

/* Return all entries as a dict from index to object. */
PyObject *prp_load_memo_copy(prp_loader *L)
{
    PyObject *copy = L->memo.sparse ? PRP_FOREIGN(PyDict_Copy(L->memo.sparse)) : PRP_FOREIGN(PyDict_New());
    for (Py_ssize_t i = 0; copy && i < L->memo.top; i++) {
        if (!L->memo.entries[i])
            continue;
        PyObject *key = PyLong_FromSsize_t(i), *value = key ? prp_load_memo_get_slow(L, (size_t)i) : NULL;
        if (!value || PyDict_SetItem(copy, key, value) < 0)
            Py_CLEAR(copy);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return copy;
}

int prp_load_memo_replace(prp_loader *L, PyObject *dict)
{
    prp_load_memo made = {0};
    PyObject *key, *value, *old,
        *kept = PRP_FOREIGN(PyDict_Copy(dict)); /* no other code can change a copy while we read it */
    if (!kept)
        return -1;
    int failed = 0;
    for (Py_ssize_t pos = 0; !failed && PyDict_Next(kept, &pos, &key, &value);) {
        Py_ssize_t index = -1;
        if (!PyLong_Check(key))
            PyErr_SetString(PyExc_TypeError, "memo key must be integers");
        else if ((index = PyLong_AsSsize_t(key)) < 0 && !PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "memo key must be positive integers.");
        failed = index < 0 ? -1 : replace(&made, (size_t)index, value, &old);
        if (!failed && L->allow)
            failed = prp_load_note_shared(L, value); /* another load created the object */
        if (!failed)
            Py_XDECREF(old);
    }
    Py_DECREF(kept);
    if (failed) {
        drop_entries(&made);
        PyMem_Free(made.entries);
        return -1;
    }
    prp_load_memo before = L->memo;
    L->memo = made;
    drop_entries(&before);
    PyMem_Free(before.entries);
    return 0;
}
