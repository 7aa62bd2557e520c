/* Contains the unpickler's uses of interpreter internals, which write to interpreter structures. The rules of interp.h
 * apply. Each function also has a public form, which has the same meaning or returns "not possible"; the caller must
 * handle that result. */
#ifndef PRP_LOAD_INTERP_H
#define PRP_LOAD_INTERP_H

#include <stddef.h>

#include "interp.h"

/* Return the version tag of a type, or 0 if it has none, without assigning a tag. */
static inline unsigned prp_type_version_now(PyTypeObject *type)
{
#if !PRP_INTERNALS
    return type->tp_flags & Py_TPFLAGS_HEAPTYPE ? 0 : 1; /* the same tag as prp_type_version() returns */
#elif PY_VERSION_HEX < 0x030C0000
    return type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG ? type->tp_version_tag : 0;
#else
    return type->tp_version_tag;
#endif
}

/* Return 1 with the attribute in *value (new reference), 0 without creating an exception object if there is none, or -1
 * with an exception. */
static inline int prp_optional_attr(PyObject *obj, PyObject *name, PyObject **value)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyObject_GetOptionalAttr(obj, name, value);
#elif PRP_INTERNALS
    return _PyObject_LookupAttr(obj, name, value);
#else
    *value = PyObject_GetAttr(obj, name);
    if (*value)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    PyErr_Clear();
    return 0;
#endif
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

/* Return the value table of an instance that has neither attributes nor a dict yet; NULL means that the caller must
 * write to its dict. `*keys` identifies the shared keys to which the indices of the table refer. */
#if PRP_INTERNALS
static inline PyDictValues *prp_values_fresh(PyObject *obj, PyTypeObject *type, void **keys)
{
    if (!(type->tp_flags & Py_TPFLAGS_MANAGED_DICT))
        return NULL;
#if PY_VERSION_HEX < 0x030C0000
    if (*_PyObject_ManagedDictPointer(obj))
        return NULL;
    PyDictValues *values = *_PyObject_ValuesPointer(obj);
    if (!values || ((uint8_t *)values)[-2] != 0)
        return NULL;
#elif PY_VERSION_HEX < 0x030D0000
    PyDictOrValues either = *_PyObject_DictOrValuesPointer(obj);
    if (!_PyDictOrValues_IsValues(either))
        return NULL;
    PyDictValues *values = _PyDictOrValues_GetValues(either);
    if (((uint8_t *)values)[-2] != 0)
        return NULL;
#else
    if (!(type->tp_flags & Py_TPFLAGS_INLINE_VALUES) || _PyObject_GetManagedDict(obj))
        return NULL;
    PyDictValues *values = _PyObject_InlineValues(obj);
    if (!values->valid || values->size != 0)
        return NULL;
#endif
    *keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    return values;
}

/* Return how many attributes the table has room for. */
static inline Py_ssize_t prp_values_room(PyDictValues *values)
{
#if PY_VERSION_HEX < 0x030D0000
    return ((uint8_t *)values)[-1] - 2; /* the prefix has two counters and at least one byte per attribute */
#else
    return values->capacity;
#endif
}

/* Return the index of an interned name in the shared keys, or -1. */
static inline Py_ssize_t prp_keys_index(void *keys_, PyObject *name)
{
    PyDictKeysObject *keys = keys_;
    if (!keys || !DK_IS_UNICODE(keys))
        return -1;
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++)
        if (DK_UNICODE_ENTRIES(keys)[i].me_key == name)
            return i;
    return -1;
}

/* Return whether attribute `index` of the shared keys still has the name `name`. */
static inline bool prp_keys_has(void *keys_, Py_ssize_t index, PyObject *name)
{
    PyDictKeysObject *keys = keys_;
    return index < keys->dk_nentries && DK_UNICODE_ENTRIES(keys)[index].me_key == name;
}

/* Set an attribute that was not set, and steal the value. The caller has checked index, name and room. */
static inline void prp_values_set(PyDictValues *values, Py_ssize_t index, PyObject *value)
{
    values->values[index] = value;
    _PyDictValues_AddToInsertionOrder(values, index);
}
#endif

/* ---- containers -------------------------------------------------------------------------------------------------- */

/* Return the first entry of a dict of exactly `n` str keys, or NULL if the dict has a different layout. The entries are
 * in insertion order. Each has a key and a value, and the caller may overwrite the values in place. */
#if PRP_INTERNALS
typedef PyDictUnicodeEntry prp_dict_entry;

static inline prp_dict_entry *prp_dict_entries(PyObject *dict, Py_ssize_t n)
{
    PyDictObject *d = (PyDictObject *)dict;
    if (d->ma_values || d->ma_used != n || !DK_IS_UNICODE(d->ma_keys) || d->ma_keys->dk_nentries != n)
        return NULL;
    return DK_UNICODE_ENTRIES(d->ma_keys);
}

/* Return whether the value may be part of a cycle, so that the collector must track a dict that contains it. */
static inline bool prp_may_be_tracked(PyObject *value)
{
    return PyObject_IS_GC(value) && (!PyTuple_CheckExact(value) || _PyObject_GC_IS_TRACKED(value));
}
#endif

/* Append n items to an exact list, and steal them, also on failure (-1). */
static inline int prp_list_extend_stealing(PyObject *list, PyObject **items, Py_ssize_t n)
{
#if !defined(Py_GIL_DISABLED) && !defined(Py_LIMITED_API)
    PyListObject *l = (PyListObject *)list;
    Py_ssize_t size = Py_SIZE(l), wanted;
    if (!__builtin_add_overflow(size, n, &wanted) && wanted <= PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(PyObject *) / 2) {
        if (wanted > l->allocated) {
            Py_ssize_t room = wanted + (size ? wanted >> 3 : 0);
            PyObject **larger = PyMem_Realloc(l->ob_item, (size_t)room * sizeof(PyObject *));
            if (!larger)
                goto failed;
            l->ob_item = larger;
            l->allocated = room;
        }
        memcpy(l->ob_item + size, items, (size_t)n * sizeof(PyObject *));
        Py_SET_SIZE(l, wanted);
        return 0;
    }
failed:
    PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++)
        Py_DECREF(items[i]);
    return -1;
#else
    int result = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (result == 0 && PyList_Append(list, items[i]) < 0)
            result = -1;
        Py_DECREF(items[i]);
    }
    return result;
#endif
}

/* ---- new objects of static types --------------------------------------------------------------------------------- */

#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
/* The same as PyObject_Init() for an object that PyObject_Malloc() just returned; debug builds call the original for
 * its bookkeeping. */
static inline void prp_init_new(PyObject *obj, PyTypeObject *type)
{
#if defined(Py_DEBUG) || defined(Py_TRACE_REFS) || defined(Py_REF_DEBUG)
    PyObject_Init(obj, type);
#else
    Py_SET_TYPE(obj, type);
    Py_SET_REFCNT(obj, 1);
#endif
}
#endif

/* ---- strings ----------------------------------------------------------------------------------------------------- */

/* Return a str of `n` ASCII characters for the caller to fill; n > 1. */
static inline PyObject *prp_ascii_new(Py_ssize_t n)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
    PyASCIIObject *text = PyObject_Malloc(sizeof(PyASCIIObject) + (size_t)n + 1);
    if (!text)
        return PyErr_NoMemory();
    prp_init_new((PyObject *)text, &PyUnicode_Type);
    text->length = n;
    text->hash = -1;
    memset(&text->state, 0, sizeof(text->state));
    text->state.kind = PyUnicode_1BYTE_KIND;
    text->state.compact = 1;
    text->state.ascii = 1;
    text->state.ready = 1;
    text->wstr = NULL;
    ((char *)(text + 1))[n] = 0;
    return (PyObject *)text;
#else
    return PyUnicode_New(n, 127);
#endif
}

/* ---- numbers: PyFloat_FromDouble() and PyLong_FromLong() for long runs of numbers -------------------------------- */

static inline PyObject *prp_float_new(double value)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
    PyFloatObject *number = PyObject_Malloc(sizeof(PyFloatObject));
    if (!number)
        return PyErr_NoMemory();
    prp_init_new((PyObject *)number, &PyFloat_Type);
    number->ob_fval = value;
    return (PyObject *)number;
#else
    return PyFloat_FromDouble(value);
#endif
}

static inline PyObject *prp_int32_new(int32_t value)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000 && PYLONG_BITS_IN_DIGIT == 30
    if (value >= -5 && value <= 256)
        return PyLong_FromLong(value); /* the interpreter caches these ints */
    uint32_t magnitude = value < 0 ? 0 - (uint32_t)value : (uint32_t)value, high = magnitude >> PyLong_SHIFT;
    PyLongObject *number = PyObject_Malloc(offsetof(PyLongObject, ob_digit) + 2 * sizeof(digit));
    if (!number)
        return PyErr_NoMemory();
    prp_init_new((PyObject *)number, &PyLong_Type);
    Py_ssize_t digits = 1 + (high != 0);
    Py_SET_SIZE(number, value < 0 ? -digits : digits);
    number->ob_digit[0] = magnitude & PyLong_MASK;
    number->ob_digit[1] = high;
    return (PyObject *)number;
#else
    return PyLong_FromLong(value);
#endif
}

/* ---- ints -------------------------------------------------------------------------------------------------------- */

static inline PyObject *prp_long_from_bytes(const uint8_t *data, size_t n)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyLong_FromNativeBytes(data, n, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
    return _PyLong_FromByteArray(data, n, 1, 1);
#endif
}

#endif
