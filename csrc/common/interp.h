/* Contains all uses of CPython's internals by the pickler and the unpickler, for 3.11 to 3.14.
 *
 * Each function has two forms with the same meaning. The fast form reads a structure that CPython may change. The
 * public form is used on an unknown version or with -DPRP_PUBLIC_API_ONLY; it may be slower, or return "unknown"
 * where the function's comment says so, but its results are never wrong. No code outside this header includes
 * internal/ headers, tests PY_VERSION_HEX because of an internal, or reads a structure of the interpreter.
 *
 * All functions need the GIL. On free-threaded builds the import of the extension fails.
 */
#ifndef PRP_INTERP_H
#define PRP_INTERP_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "foreign.h"

#if PY_VERSION_HEX < 0x030B0000
#error "pyray_ser needs Python 3.11 or later"
#endif

#if !defined(PRP_PUBLIC_API_ONLY) && !defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030F0000
#define PRP_INTERNALS 1
#else
#define PRP_INTERNALS 0
#endif

#if PRP_INTERNALS
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#define PRP_DEFINED_BUILD_CORE 1
#endif
/* Public names that the internal headers of some versions redeclare. */
#undef _PyObject_LookupSpecial
#undef _PyGC_FINALIZED
#include "internal/pycore_dict.h"
#include "internal/pycore_object.h"
#ifdef PRP_DEFINED_BUILD_CORE
#undef Py_BUILD_CORE
#endif
#endif

#define PRP_LIKELY(x) __builtin_expect(!!(x), 1)
#define PRP_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PRP_COLD __attribute__((cold, noinline))

/* ---- what is supported ------------------------------------------------------------------------------------------- */

/* Return 0, or -1 with ImportError, because the picklers' caches support only a single interpreter with a GIL. */
static inline int prp_check_interpreter(void)
{
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_ImportError, "pyray_ser does not support free-threaded builds of Python");
    return -1;
#else
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "pyray_ser does not support subinterpreters");
        return -1;
    }
    return 0;
#endif
}

/* ---- exceptions -----------------------------------------------------------------------------------------------------
 *
 * If foreign code may have run, clear only an exception that the caller expects as a result. KeyboardInterrupt,
 * SystemExit, MemoryError and similar exceptions must always reach the caller of the pickler. */

/* Return 0 if no exception is set, or if it is one of `expected`, which we then clear. Return -1 for any other
 * exception, which stays set. */
static inline int prp_forgive(PyObject *expected)
{
    if (!PyErr_Occurred())
        return 0;
    if (!PyErr_ExceptionMatches(expected))
        return -1;
    PyErr_Clear();
    return 0;
}

/* The same as prp_forgive, for code that may raise any exception: clear every Exception except MemoryError and
 * RecursionError. */
static inline int prp_forgive_refusal(void)
{
    if (PyErr_Occurred() && (PyErr_ExceptionMatches(PyExc_MemoryError) || PyErr_ExceptionMatches(PyExc_RecursionError)))
        return -1;
    return prp_forgive(PyExc_Exception);
}

/* Return repr(obj) for a message, as a new reference. If repr() raises, describe obj instead; return NULL if it was
 * interrupted. (PyErr_Format would call repr itself, and 3.11 clears the exceptions that repr raises.) */
static inline PyObject *prp_repr(PyObject *obj)
{
    PyObject *text = PyObject_Repr(obj);
    if (!text && prp_forgive_refusal() == 0)
        text = PyUnicode_FromFormat("<%.200s object whose repr() raises>", Py_TYPE(obj)->tp_name);
    return text;
}

/* Find an attribute of an imported module without calling __getattr__. Return 1 with a new reference in *value, 0 if
 * there is none, or -1 with an exception. */
static inline int prp_imported(PyObject *modules, const char *module, const char *name, PyObject **value)
{
    PyObject *texts[2] = {PyUnicode_FromString(module), PyUnicode_FromString(name)};
    *value = NULL;
    if (texts[0] && texts[1]) {
        PyObject *found = PyDict_GetItemWithError(modules, texts[0]);
        if (found && PyModule_Check(found))
            *value = Py_XNewRef(PyDict_GetItemWithError(PyModule_GetDict(found), texts[1]));
    }
    Py_XDECREF(texts[0]);
    Py_XDECREF(texts[1]);
    return *value ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* ---- recursion limit --------------------------------------------------------------------------------------------- */

/* Allow only this thread to make `calls` more recursive calls from here; return how many it could make before.
 * sys.setrecursionlimit() applies to all threads, so another thread that recurses through C would exhaust its stack.
 * The public form changes nothing. */
static inline int prp_allow_calls(int calls)
{
#if !PRP_INTERNALS
    return calls;
#else
    PyThreadState *thread = PyThreadState_Get();
#if PY_VERSION_HEX < 0x030C0000
    int *remaining = &thread->recursion_remaining;
#else
    int *remaining = &thread->py_recursion_remaining;
#endif
    int before = *remaining;
    *remaining = calls;
    return before;
#endif
}

/* ---- types ------------------------------------------------------------------------------------------------------- */

/* Return a number that identifies this type in its current state. It changes whenever the type or a base is modified,
 * and no other type ever has the same number. 0 means unknown: the caller must cache nothing about the type. */
static inline unsigned prp_type_version(PyTypeObject *type)
{
#if !PRP_INTERNALS
    return type->tp_flags & Py_TPFLAGS_HEAPTYPE ? 0 : 1; /* static types never change and are never freed */
#elif PY_VERSION_HEX < 0x030C0000
    if (!(type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG)) {
        static PyObject *name;
        if (!name && !(name = PyUnicode_InternFromString("__class__"))) {
            PyErr_Clear();
            return 0;
        }
        (void)_PyType_Lookup(type, name); /* this call assigns the tag */
    }
    return type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG ? type->tp_version_tag : 0;
#else
    return PyUnstable_Type_AssignVersionTag(type) ? type->tp_version_tag : 0;
#endif
}

/* Look up `name` in the type and its bases, without calling descriptors. Return a new reference, or NULL without an
 * exception if there is no such attribute (or, in the public form, if we cannot tell). */
static inline PyObject *prp_type_lookup(PyTypeObject *type, PyObject *name)
{
#if PRP_INTERNALS
    return Py_XNewRef(_PyType_Lookup(type, name));
#else
    /* Use the getter of `type` itself for __dict__, because a metaclass may override this name. */
    static PyObject *dict_getter;
    if (!dict_getter) {
        PyObject *own = PyObject_GetAttrString((PyObject *)&PyType_Type, "__dict__");
        dict_getter = own ? PyMapping_GetItemString(own, "__dict__") : NULL;
        Py_XDECREF(own);
    }
    PyObject *mro = type->tp_mro, *found = NULL;
    for (Py_ssize_t i = 0; mro && dict_getter && i < PyTuple_GET_SIZE(mro) && !found; i++) {
        PyObject *cls = PyTuple_GET_ITEM(mro, i), *dict = Py_TYPE(dict_getter)->tp_descr_get(dict_getter, cls, NULL);
        if (dict) {
            found = PyObject_GetItem(dict, name);
            Py_DECREF(dict);
        }
        if (!found)
            PyErr_Clear(); /* like _PyType_Lookup, ignore errors raised by keys other than exact strs */
    }
    return found;
#endif
}

/* ---- attribute storage of plain instances ---------------------------------------------------------------------------
 *
 * An ordinary instance stores its attributes in an array until code reads its __dict__. Results:
 *     PRP_ATTRS_INLINE   the view is filled: `count` attributes in order of insertion; `dict` is NULL, or the dict
 *                        that still shares its keys with the class (borrowed)
 *     PRP_ATTRS_DICT     the instance has another kind of dict: `dict`, borrowed
 *     PRP_ATTRS_NONE     no attribute is set
 *     PRP_ATTRS_UNKNOWN  use prp_attrs_dict(), which creates the dict
 * A view is valid until code runs that may change the instance. */
typedef struct {
    PyObject *const *values;
    const uint8_t *order;
    Py_ssize_t step; /* +1 or -1: the direction in which `order` grows */
    Py_ssize_t count;
    void *keys;
} prp_attrs;

enum { PRP_ATTRS_UNKNOWN, PRP_ATTRS_INLINE, PRP_ATTRS_DICT, PRP_ATTRS_NONE };

static inline int prp_attrs_view(PyObject *obj, PyTypeObject *type, prp_attrs *view, PyObject **dict)
{
#if !PRP_INTERNALS
    (void)obj, (void)type, (void)view, (void)dict;
    return PRP_ATTRS_UNKNOWN;
#else
    *dict = NULL;
    PyDictValues *values = NULL;
    if (!(type->tp_flags & Py_TPFLAGS_MANAGED_DICT)) {
        if (type->tp_dictoffset <= 0)
            return PRP_ATTRS_UNKNOWN;
        *dict = *(PyObject **)((char *)obj + type->tp_dictoffset);
        return *dict ? PRP_ATTRS_DICT : PRP_ATTRS_NONE;
    }
#if PY_VERSION_HEX < 0x030C0000
    *dict = *_PyObject_ManagedDictPointer(obj);
    if (!*dict)
        values = *_PyObject_ValuesPointer(obj);
#elif PY_VERSION_HEX < 0x030D0000
    PyDictOrValues either = *_PyObject_DictOrValuesPointer(obj);
    if (_PyDictOrValues_IsValues(either))
        values = _PyDictOrValues_GetValues(either);
    else
        *dict = _PyDictOrValues_GetDict(either);
#else
    *dict = (PyObject *)_PyObject_GetManagedDict(obj);
    if (!*dict && type->tp_flags & Py_TPFLAGS_INLINE_VALUES) {
        values = _PyObject_InlineValues(obj);
        if (!values->valid)
            return PRP_ATTRS_UNKNOWN;
    }
#endif
    if (*dict) {
        PyDictObject *d = (PyDictObject *)*dict;
        if (!PyDict_CheckExact(*dict) || !d->ma_values || d->ma_keys != ((PyHeapTypeObject *)type)->ht_cached_keys)
            return PRP_ATTRS_DICT;
        values = d->ma_values;
    }
    if (!values)
        return PRP_ATTRS_NONE;
    view->keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    view->values = values->values;
#if PY_VERSION_HEX < 0x030D0000
    const uint8_t *prefix =
        (const uint8_t *)values; /* [-1] length, [-2] number of attributes set, [-3], [-4].. their order */
    view->count = prefix[-2];
    view->order = prefix - 3;
    view->step = -1;
#else
    view->count = values->size;
    view->order = (const uint8_t *)&values->values[values->capacity];
    view->step = 1;
#endif
    return PRP_ATTRS_INLINE;
#endif
}

/* Return the name or the value of attribute `i` of a view; both are borrowed, and the value is NULL if it has been
 * deleted. */
static inline PyObject *prp_attrs_name(const prp_attrs *view, Py_ssize_t i)
{
#if PRP_INTERNALS
    Py_ssize_t index = view->order[i * view->step];
    return DK_UNICODE_ENTRIES(((PyDictKeysObject *)view->keys))[index].me_key;
#else
    (void)view, (void)i;
    return NULL;
#endif
}

static inline PyObject *prp_attrs_value(const prp_attrs *view, Py_ssize_t i)
{
    return view->values[view->order[i * view->step]];
}

/* Return the index of attribute `i` in the value array, which is the same for all instances that share `keys`. */
static inline Py_ssize_t prp_attrs_slot(const prp_attrs *view, Py_ssize_t i)
{
    return view->order[i * view->step];
}

/* Return the instance's dict as a new reference, and create it if necessary; NULL with an exception. */
static inline PyObject *prp_attrs_dict(PyObject *obj)
{
    return PyObject_GenericGetDict(obj, NULL);
}

/* ---- dicts: entry after entry, in order; the dict must not change between two calls ------------------------------ */

#if PRP_INTERNALS
static inline int prp_dict_next(PyObject *dict, Py_ssize_t *pos, PyObject **key, PyObject **value)
{
    PyDictObject *d = (PyDictObject *)dict;
    Py_ssize_t i = *pos;
    if (PRP_UNLIKELY(d->ma_values != NULL))
        return PyDict_Next(dict, pos, key, value);
    PyDictKeysObject *keys = d->ma_keys;
    Py_ssize_t n = keys->dk_nentries;
    if (PRP_LIKELY(DK_IS_UNICODE(keys))) {
        PyDictUnicodeEntry *entry = DK_UNICODE_ENTRIES(keys) + i;
        for (; i < n; i++, entry++)
            if (PRP_LIKELY(entry->me_value != NULL)) {
                *key = entry->me_key;
                *value = entry->me_value;
                *pos = i + 1;
                return 1;
            }
    } else {
        PyDictKeyEntry *entry = DK_ENTRIES(keys) + i;
        for (; i < n; i++, entry++)
            if (PRP_LIKELY(entry->me_value != NULL)) {
                *key = entry->me_key;
                *value = entry->me_value;
                *pos = i + 1;
                return 1;
            }
    }
    return 0;
}
#else
#define prp_dict_next PyDict_Next
#endif

/* Return a version number that changes whenever the dict changes, or 0 if this CPython version has no such number. */
static inline uint64_t prp_dict_version(PyObject *dict)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
    return ((PyDictObject *)dict)->ma_version_tag;
#else
    (void)dict;
    return 0;
#endif
}

/* ---- sets -------------------------------------------------------------------------------------------------------- */

/* Return the next element at or after *pos (borrowed), or NULL at the end. The public headers declare PySetObject, but
 * do not document that a deleted entry has hash -1. The set may change between two calls. */
static inline PyObject *prp_set_next(PyObject *set, Py_ssize_t *pos)
{
    PySetObject *s = (PySetObject *)set;
    for (Py_ssize_t i = *pos; i <= s->mask; i++)
        if (s->table[i].key && s->table[i].hash != -1) {
            *pos = i + 1;
            return s->table[i].key;
        }
    *pos = s->mask + 1;
    return NULL;
}

/* ---- ints -------------------------------------------------------------------------------------------------------- */

/* Return whether the int has at most two digits (60 bits); if so, set *value to it. */
static inline bool prp_long_small(PyObject *obj, int64_t *value)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
    /* Use no branches, because the sizes of the ints in a list are often nearly random. */
    int64_t size = Py_SIZE(obj), sign = size >> 63;
    uint64_t n = (uint64_t)((size ^ sign) - sign), two = n >> 1;
    const digit *digits = ((PyLongObject *)obj)->ob_digit;
    if (PRP_UNLIKELY(n > 2))
        return false;
    uint64_t magnitude = ((uint64_t)digits[0] & -(uint64_t)(n != 0)) | ((uint64_t)digits[two] & -two) << PyLong_SHIFT;
    *value = (int64_t)((magnitude ^ (uint64_t)sign) - (uint64_t)sign);
    return true;
#elif PRP_INTERNALS
    const struct _PyLongValue *v = &((PyLongObject *)obj)->long_value;
    uint64_t n = v->lv_tag >> 3, two = n >> 1;
    int64_t sign = 1 - (int64_t)(v->lv_tag & 3); /* the sign of 0 is 1 - 1 */
    if (PRP_UNLIKELY(n > 2))
        return false;
    *value = sign * (int64_t)((uint64_t)v->ob_digit[0] | ((uint64_t)v->ob_digit[two] & -two) << PyLong_SHIFT);
    return true;
#else
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(obj, &overflow);
    if (overflow || number >= 1LL << 60 || number <= -(1LL << 60))
        return false;
    *value = number;
    return true;
#endif
}

/* Return whether a fast check shows that the int has at most one digit (30 bits); if so, set *value to it. */
static inline bool prp_long_tiny(PyObject *obj, int32_t *value)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030C0000
    Py_ssize_t size = Py_SIZE(obj);
    if ((size_t)(size + 1) > 2)
        return false;
    *value = size ? (int32_t)((int32_t)((PyLongObject *)obj)->ob_digit[0] * size) : 0;
    return true;
#elif PRP_INTERNALS
    const struct _PyLongValue *v = &((PyLongObject *)obj)->long_value;
    if (v->lv_tag >> 3 > 1)
        return false;
    *value = (1 - (int32_t)(v->lv_tag & 3)) * (int32_t)v->ob_digit[0];
    return true;
#else
    (void)obj, (void)value;
    return false;
#endif
}

/* Return how many bytes the int needs in two's complement; the result may be one too large. Return 0 with an exception
 * on failure. */
static inline size_t prp_long_size(PyObject *obj)
{
    size_t bits;
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030D0000
    bits = _PyLong_NumBits(obj);
#else
    PyObject *length = PyObject_CallMethod(obj, "bit_length", NULL);
    if (!length)
        return 0;
    bits = PyLong_AsSize_t(length);
    Py_DECREF(length);
#endif
    if (bits == (size_t)-1 && PyErr_Occurred())
        return 0;
    if (bits / 8 + 1 > 0x7fffffff) {
        PyErr_SetString(PyExc_OverflowError, "int too large to pickle");
        return 0;
    }
    return bits / 8 + 1;
}

/* Write the int as `n` bytes, little-endian. Return 0 or -1. */
static inline int prp_long_write(PyObject *obj, unsigned char *to, size_t n)
{
#if PRP_INTERNALS && PY_VERSION_HEX < 0x030D0000
    return _PyLong_AsByteArray((PyLongObject *)obj, to, n, 1, 1);
#elif PY_VERSION_HEX >= 0x030D0000
    return PyLong_AsNativeBytes(obj, to, (Py_ssize_t)n, Py_ASNATIVEBYTES_LITTLE_ENDIAN) < 0 ? -1 : 0;
#else
    PyObject *method = PyObject_GetAttrString(obj, "to_bytes");
    PyObject *args = method ? Py_BuildValue("(ns)", (Py_ssize_t)n, "little") : NULL;
    PyObject *options = args ? Py_BuildValue("{sO}", "signed", Py_True) : NULL;
    PyObject *bytes = options ? PyObject_Call(method, args, options) : NULL;
    if (bytes)
        memcpy(to, PyBytes_AS_STRING(bytes), n);
    int status = bytes ? 0 : -1;
    Py_XDECREF(method);
    Py_XDECREF(args);
    Py_XDECREF(options);
    Py_XDECREF(bytes);
    return status;
#endif
}

#endif
