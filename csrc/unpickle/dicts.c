/* Dicts with keys that came before.
 *
 * Records of a document, rows, configurations: the same few keys in the same order, again and again. The second time a sequence of
 * str keys is met, a dict with these keys and None for values is kept as a pattern. From then on such a dict is a copy of the
 * pattern, whose hash table is copied as memory, and the values are written over the Nones. Keys are compared by identity,
 * which the memo and the key cache make the rule. The table holds at most PATTERNS patterns of at most PATTERN_KEYS keys.
 */
#include "unpickler.h"

#define PATTERNS 256
#define PATTERN_KEYS 48

#if PRP_INTERNALS

typedef struct {
    PyObject *dict;           /* owned, NULL until the sequence was met twice */
    const void *first, *last; /* addresses of keys, only ever compared */
    Py_ssize_t n;
    unsigned strikes; /* how often it was kept and then did not fit: not worth keeping again for a while */
} pattern;

#define MANY_STRIKES 4
#define PARDON 256

static pattern patterns[PATTERNS];

static pattern *pattern_for(PyObject *const *pairs, Py_ssize_t n)
{
    uintptr_t mixed = ((uintptr_t)pairs[0] >> 4) * 31 + ((uintptr_t)pairs[2 * n - 2] >> 4) + (uintptr_t)n;
    return &patterns[(mixed ^ mixed >> 8 ^ mixed >> 16) % PATTERNS];
}

/* A dict of the pattern's keys and the pairs' values, taking over both; NULL if they are not of this pattern. */
static PyObject *from_pattern(const pattern *known, PyObject **pairs, Py_ssize_t n)
{
    const prp_dict_entry *model = prp_dict_entries(known->dict, n);
    if (!model)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        if (model[i].me_key != pairs[2 * i])
            return NULL;
    PyObject *dict = PyDict_Copy(known->dict);
    prp_dict_entry *entries = dict ? prp_dict_entries(dict, n) : NULL;
    if (!entries) {
        PyErr_Clear();
        Py_XDECREF(dict);
        return NULL;
    }
    bool track = false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = pairs[2 * i + 1];
        track = track || prp_may_be_tracked(value);
        entries[i].me_value = value;
        Py_DECREF(Py_None);
        Py_DECREF(pairs[2 * i]);
    }
    if (track && !PyObject_GC_IsTracked(dict)) /* from 3.14 on every dict is tracked from the start */
        PyObject_GC_Track(dict);
    return dict;
}

/* Remembers a sequence; the second time, keeps it. `dict` has just been filled with the pairs. */
static void remember(pattern *known, PyObject *const *pairs, PyObject *dict, Py_ssize_t n)
{
    if (known->first != pairs[0] || known->last != pairs[2 * n - 2] || known->n != n) {
        PyObject *old = known->dict;
        *known = (pattern){NULL, pairs[0], pairs[2 * n - 2], n, known->strikes};
        Py_XDECREF(old);
        return;
    }
    if (known->dict)
        known->strikes++;
    if (known->strikes >= MANY_STRIKES) {
        Py_CLEAR(known->dict);
        if (++known->strikes > PARDON)
            known->strikes = 0;
        return;
    }
    if (!prp_dict_entries(dict, n))
        return;
    PyObject *model = PyDict_New();
    for (Py_ssize_t i = 0; model && i < n; i++)
        if (PyDict_SetItem(model, pairs[2 * i], Py_None) < 0)
            Py_CLEAR(model);
    if (!model)
        PyErr_Clear();
    PyObject *old = known->dict;
    known->dict = model;
    Py_XDECREF(old);
}

#endif

PyObject *prp_load_dict_of(prp_loader *L, PyObject **pairs, Py_ssize_t n)
{
#if PRP_INTERNALS
    bool patterned = n >= 2 && n <= PATTERN_KEYS && PyUnicode_CheckExact(pairs[0]);
    pattern *known = patterned ? pattern_for(pairs, n) : NULL;
    if (known && known->dict) {
        PyObject *dict = from_pattern(known, pairs, n);
        if (dict) {
            L->sp = pairs;
            return dict;
        }
    }
#endif
    if (!prp_load_inert_keys(pairs, n))
        return NULL;
    PyObject *dict = PyDict_New();
    if (!dict)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyDict_SetItem(dict, pairs[2 * i], pairs[2 * i + 1]) < 0) {
            Py_DECREF(dict);
            return NULL;
        }
#if PRP_INTERNALS
    if (known)
        remember(known, pairs, dict, n);
#endif
    L->sp = pairs;
    for (Py_ssize_t i = 0; i < 2 * n; i++)
        Py_DECREF(pairs[i]);
    return dict;
}
