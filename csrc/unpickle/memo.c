/* The memo of an unpickler: an array, because picklers number their objects from zero without gaps.
 *
 * An index far beyond what the stream can have stored so far goes to a dict instead, so a hostile stream cannot ask for
 * gigabytes with five bytes. Entries are owned objects, or tagged numbers of objects that do not exist yet (pending.c).
 */
#include "unpickler.h"

#define FIRST_ENTRIES 64
#define KEEP_ENTRIES 16384

/* How far an index may lie beyond the entries in use. */
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

/* The entry of an index in the array, made if it is new. NULL without an exception: it belongs to the dict. */
static PyObject **entry_for(prp_load_memo *memo, size_t index)
{
    if (index >= (size_t)memo->capacity) {
        if (!plausible(memo, index) || grow(memo, index) < 0)
            return NULL;
    }
    while ((size_t)memo->top <= index)
        memo->entries[memo->top++] = NULL;
    PyObject **entry = &memo->entries[index];
    if (!*entry) {
        if (memo->sparse) {
            /* It may have gone to the dict when the array was shorter. */
            PyObject *key = PyLong_FromSize_t(index);
            int had = key ? PyDict_Contains(memo->sparse, key) : -1;
            if (had > 0)
                had = PyDict_DelItem(memo->sparse, key) < 0 ? -1 : 1;
            Py_XDECREF(key);
            if (had < 0)
                return NULL;
            memo->used -= had;
        }
        memo->used++;
    }
    return entry;
}

static int put_sparse(prp_load_memo *memo, size_t index, PyObject *value)
{
    if (PyErr_Occurred() || (!memo->sparse && !(memo->sparse = PyDict_New())))
        return -1;
    PyObject *key = PyLong_FromSize_t(index);
    int had = key ? PyDict_Contains(memo->sparse, key) : -1;
    if (had >= 0 && PyDict_SetItem(memo->sparse, key, value) < 0)
        had = -1;
    Py_XDECREF(key);
    if (had == 0)
        memo->used++;
    return had < 0 ? -1 : 0;
}

int prp_load_memo_put(prp_loader *L, size_t index, PyObject *value)
{
    PyObject **entry = entry_for(&L->memo, index);
    if (!entry)
        return put_sparse(&L->memo, index, value);
    PyObject *old = *entry;
    *entry = Py_NewRef(value);
    if (!prp_load_tagged(old))
        Py_XDECREF(old);
    return 0;
}

/* 1: done; 0: the index belongs to the dict, which holds no tags; -1. */
int prp_load_memo_put_tag(prp_loader *L, size_t index, uintptr_t tag)
{
    PyObject **entry = entry_for(&L->memo, index);
    if (!entry)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *old = *entry;
    *entry = (PyObject *)tag;
    if (!prp_load_tagged(old))
        Py_XDECREF(old);
    return 1;
}

PyObject *prp_load_memo_get_slow(prp_loader *L, size_t index)
{
    if (index < (size_t)L->memo.top) {
        PyObject *entry = L->memo.entries[index];
        if (prp_load_tagged(entry)) {
            Py_ssize_t number = (Py_ssize_t)((uintptr_t)entry >> 2);
            int made = ((uintptr_t)entry & PRP_MEMO_TAGS) == PRP_MEMO_TAG_PENDING ? prp_load_make_pending(L, number)
                                                                                  : prp_load_make_unmade(L, number);
            if (made < 0)
                return NULL;
            entry = L->memo.entries[index];
            assert(!prp_load_tagged(entry));
        }
        if (entry)
            return Py_NewRef(entry);
    }
    if (L->memo.sparse) {
        PyObject *key = PyLong_FromSize_t(index);
        PyObject *value = key ? PyDict_GetItemWithError(L->memo.sparse, key) : NULL;
        Py_XDECREF(key);
        if (value)
            return Py_NewRef(value);
        if (PyErr_Occurred())
            return NULL;
    }
    return prp_load_malformed("Memo value not found at index %zu", index);
}

void prp_load_memo_clear(prp_loader *L, bool keep_memory)
{
    /* Dropping an object may run code that asks for this memo: it must find it consistent at every step. */
    prp_load_memo *memo = &L->memo;
    memo->used = 0;
    while (memo->top > 0) {
        PyObject *entry = memo->entries[--memo->top];
        if (!prp_load_tagged(entry))
            Py_XDECREF(entry);
    }
    Py_CLEAR(memo->sparse);
    if (!keep_memory || memo->capacity > KEEP_ENTRIES) {
        PyMem_Free(memo->entries);
        memo->entries = NULL;
        memo->capacity = 0;
    }
}

/* All entries as a dict from index to object. */
PyObject *prp_load_memo_copy(prp_loader *L)
{
    PyObject *copy = L->memo.sparse ? PyDict_Copy(L->memo.sparse) : PyDict_New();
    for (Py_ssize_t i = 0; copy && i < L->memo.top; i++) {
        if (!L->memo.entries[i])
            continue;
        PyObject *key = PyLong_FromSsize_t(i), *value = prp_load_memo_get_slow(L, (size_t)i);
        if (!key || !value || PyDict_SetItem(copy, key, value) < 0)
            Py_CLEAR(copy);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return copy;
}

int prp_load_memo_replace(prp_loader *L, PyObject *dict)
{
    PyObject *key, *value;
    for (Py_ssize_t pos = 0; PyDict_Next(dict, &pos, &key, &value);) {
        if (!PyLong_Check(key)) {
            PyErr_SetString(PyExc_TypeError, "memo key must be integers");
            return -1;
        }
        Py_ssize_t index = PyLong_AsSsize_t(key);
        if (index < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "memo key must be positive integers.");
            return -1;
        }
    }
    /* A copy, so that nothing dropped below can change what is being read. */
    PyObject *kept = PyDict_Copy(dict);
    if (!kept)
        return -1;
    prp_load_memo_clear(L, false);
    int result = 0;
    for (Py_ssize_t pos = 0; result == 0 && PyDict_Next(kept, &pos, &key, &value);)
        result = prp_load_memo_put(L, (size_t)PyLong_AsSsize_t(key), value);
    Py_DECREF(kept);
    return result;
}
