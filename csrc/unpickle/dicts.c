/* Creates dicts whose sequence of keys has occurred before.
 *
 * Document records, rows and configurations repeat the same few keys in the same order. When a sequence of str keys
 * occurs the second time, we keep a template dict, the "pattern", with these keys and with None as each value. Each
 * further dict begins as a copy of the pattern. To make this copy, we copy the hash table as one block of memory, and
 * then overwrite the Nones. Keys are compared by identity; thanks to the memo and the key cache, equal keys are
 * usually identical. The table has at most PRP_PATTERNS patterns of at most PATTERN_KEYS keys.
 */
#include "context.h"

#define PATTERN_KEYS 48

#if PRP_INTERNALS

#define MANY_STRIKES 4
#define PARDON 256

static prp_dict_pattern *pattern_for(prp_loader *L, PyObject *const *pairs, Py_ssize_t n)
{
    uintptr_t mixed = ((uintptr_t)pairs[0] >> 4) * 31 + ((uintptr_t)pairs[2 * n - 2] >> 4) + (uintptr_t)n;
    return &L->context->patterns[(mixed ^ mixed >> 8 ^ mixed >> 16) % PRP_PATTERNS];
}

/* Create a dict of the pattern's keys and the pairs' values, and steal the values; return NULL without an exception if
 * the keys differ. */
static PyObject *from_pattern(const prp_dict_pattern *known, PyObject *const *pairs, Py_ssize_t n)
{
    const prp_dict_entry *model = prp_dict_entries(known->dict, n);
    if (!model)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        if (model[i].me_key != pairs[2 * i])
            return NULL;
    PyObject *dict = PRP_FOREIGN(PyDict_Copy(known->dict));
    prp_dict_entry *entries = dict ? prp_dict_entries(dict, n) : NULL;
    if (!entries) {
        Py_XDECREF(dict);
        return NULL;
    }
    bool track = false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = pairs[2 * i + 1];
        track = track || prp_may_be_tracked(value);
        entries[i].me_value = value;
        Py_DECREF(Py_None);
    }
    if (track && !PyObject_GC_IsTracked(dict)) /* Python 3.14 and later track every dict from the start */
        PyObject_GC_Track(dict);
    return dict;
}

/* Record a sequence of keys; when it occurs the second time, create its pattern. `dict` was just filled with the pairs.
 * Return 0 or -1. */
static int remember(prp_dict_pattern *known, PyObject *const *pairs, PyObject *dict, Py_ssize_t n)
{
    if (known->first != pairs[0] || known->last != pairs[2 * n - 2] || known->n != n) {
        PyObject *old = known->dict;
        *known = (prp_dict_pattern){NULL, pairs[0], pairs[2 * n - 2], n, known->strikes};
        Py_XDECREF(old);
        return 0;
    }
    if (known->dict)
        known->strikes++;
    if (known->strikes >= MANY_STRIKES) {
        Py_CLEAR(known->dict);
        if (++known->strikes > PARDON)
            known->strikes = 0;
        return 0;
    }
    if (!prp_dict_entries(dict, n))
        return 0;
    PyObject *model = PRP_FOREIGN(PyDict_New());
    for (Py_ssize_t i = 0; model && i < n; i++)
        if (PyDict_SetItem(model, pairs[2 * i], Py_None) < 0)
            Py_CLEAR(model);
    if (!model)
        return -1;
    Py_XSETREF(known->dict, model);
    return 0;
}

#endif

PyObject *prp_load_dict_of(prp_loader *L, PyObject *const *pairs, Py_ssize_t n, bool *moved)
{
#if PRP_INTERNALS
    bool patterned = n >= 2 && n <= PATTERN_KEYS && PyUnicode_CheckExact(pairs[0]);
    prp_dict_pattern *known = patterned ? pattern_for(L, pairs, n) : NULL;
    if (known && known->dict) {
        PyObject *dict = from_pattern(known, pairs, n);
        *moved = dict != NULL;
        if (dict || PyErr_Occurred())
            return dict;
    }
#else
    *moved = false;
#endif
    if (!prp_load_inert_keys(pairs, n))
        return NULL;
    PyObject *dict = PRP_FOREIGN(PyDict_New());
    if (!dict)
        return NULL;
    /* Hashing these keys runs no foreign code, and the pairs keep every value alive. */
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyDict_SetItem(dict, pairs[2 * i], pairs[2 * i + 1]) < 0) {
            Py_DECREF(dict);
            return NULL;
        }
#if PRP_INTERNALS
    if (known && remember(known, pairs, dict, n) < 0)
        Py_CLEAR(dict);
#endif
    return dict;
}
