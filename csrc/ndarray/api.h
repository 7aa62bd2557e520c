/* The functions of `pyray_ser._ndarray` for the other extensions. They describe, write and gather arrays, and build
 * arrays over foreign memory.
 *
 * `_ndarray` is the only extension that links against numpy's C API. The others must not import numpy when they are
 * imported, so they do not cimport `_ndarray`: they get this table from a capsule when they handle their first array
 * (prp_ndarray()). A process that has not imported numpy has no arrays, and a stream that does not name numpy creates
 * none.
 *
 * All functions need the GIL. -1 and NULL always come with a Python exception set, unless a function's comment says
 * otherwise.
 */
#ifndef PRP_NDARRAY_API_H
#define PRP_NDARRAY_API_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "array_template.h"

#define PRP_NDARRAY_CAPSULE "pyray_ser._ndarray._api"
#define PRP_NDARRAY_VERSION 7

/* How the bytes of an array are obtained. */
typedef enum {
    PRP_ARRAY_DIRECT, /* `nbytes` bytes at `data`, unchanged; the layout's shape and strides apply to them */
    PRP_ARRAY_GATHER, /* `nbytes` bytes that `gather` writes; the layout's shape and strides apply to those */
} prp_array_kind;

/* How an array is written to a stream and a buffer. The layout's dtype points to `dtype` of the same struct, so
 * pass it by pointer and do not copy it. */
typedef struct {
    prp_array_kind kind;
    const void *data; /* used only for DIRECT; borrowed from the array */
    size_t nbytes;
    prp_array_template layout;
    char dtype[PRP_ARRAY_MAX_DTYPE + 1];
} prp_array_source;

enum {
    PRP_ARRAY_WRITABLE = 1,    /* the memory is private and writable (mmap_mode "c"); default: read-only arrays */
    PRP_ARRAY_EXACT = 2,       /* for from_parts: the elements must fill the whole buffer */
    PRP_ARRAY_PLAIN_OWNER = 4, /* `owner` is known not to be an array */
};

typedef struct {
    int version;

    /* Describe an exact ndarray with at most PRP_ARRAY_MAX_DIMS dimensions and a dtype that a string describes
     * completely (numbers, S, U, V, M8, m8; any byte order; no metadata, no fields, no subclass of a scalar type).
     * Return 1 after filling `source`. Return 0, and set nothing, for any other object: the caller then uses the
     * general pickler. Return -1 with an exception. No bytes of the array are copied. */
    int (*describe)(PyObject *obj, prp_array_source *source);

    /* Call describe and write the template of array_template.h to `out` (PRP_ARRAY_STREAM_MAX bytes of room). Return
     * its length, 0 as above, or -1 with an exception. */
    Py_ssize_t (*template_put)(PyObject *obj, uint8_t *out, prp_array_source *source);

    /* Write the `nbytes` bytes of a GATHER source to `dst`, each once, in the layout that `describe` returned. Return 0
     * or -1. */
    int (*gather)(PyObject *obj, const prp_array_source *source, void *dst, size_t dst_len);

    /* Build the array that a template stream describes, over `data`, with `owner` as its base. Return NULL without an
     * exception if the stream is not the template, or does not fit the buffer; the general unpickler then returns the
     * result or raises the error. The array is read-only unless PRP_ARRAY_WRITABLE is in `flags`; it cannot be made
     * writable, provided that `owner` exports no writable buffer. This fires the audit event pickle.find_class as the
     * general unpickler would. */
    PyObject *(*from_stream)(const uint8_t *stream, size_t len, const uint8_t *data, size_t data_len, PyObject *owner,
                             int flags);

    /* Execute numpy.ndarray(shape, dtype, <data>, offset, strides) for the general unpickler. `shape` and `strides` are
     * tuples (strides may be None), dtype is a str or a dtype. Results and conditions are those of from_stream. */
    PyObject *(*from_parts)(PyObject *shape, PyObject *dtype, int64_t offset, PyObject *strides, bool fortran,
                            const uint8_t *data, size_t data_len, PyObject *owner, int flags);

    /* Make any array, also of a subclass, permanently read-only: setflags(write=True) fails afterwards. Do nothing for
     * arrays of objects and for objects that are not arrays. Return 0 or -1. */
    int (*seal)(PyObject *obj);

    /* Return the dtype with this canonical name ('<f8') as a new reference if it is plain, else NULL without an
     * exception. The dtype is a separate object, so a stream may access it and set its state. */
    PyObject *(*plain_dtype)(const char *name, size_t len);

    /* Return numpy.dtype(name) through a small cache, as a new reference. */
    PyObject *(*dtype_from_name)(const char *name, size_t len);

    /* The classes numpy.ndarray and numpy.dtype, borrowed permanently. */
    PyObject *array_type, *dtype_type;

    /* The same as from_parts without strides and offset; the shape consists of C ints, and the dtype is a borrowed
     * object, which this function checks. */
    PyObject *(*from_ints)(int nd, const int64_t *shape, PyObject *dtype, bool fortran, const uint8_t *data,
                           size_t data_len, PyObject *owner, int flags);

    /* The same as plain_dtype, but return the object that arrays share. The caller must not put it on an unpickler's
     * stack or into its memo. */
    PyObject *(*shared_dtype)(const char *name, size_t len);

    /* Return whether a dtype of a built-in number type has exactly the pickle of numpy's own dtype of that type. */
    bool (*dtype_like_own)(PyObject *descr);

    /* Return whether arrays of objects own all references in the memory of an array. The result is false for an array
     * of objects over other bytes, and for any other kind of array over the memory of an array of objects. */
    bool (*owns_references)(PyObject *array);

    /* Return whether the array still uses the bytes that `describe` returned, because an array can be resized in place.
     * If `data` is NULL, return true. */
    bool (*lies_at)(PyObject *obj, const void *data, size_t nbytes);
} prp_ndarray_api;

/* Return whether `obj` is an exact numpy.ndarray, without importing numpy. (For a different class with that name,
 * `describe` fails.) */
static inline bool prp_ndarray_looks(PyObject *obj)
{
    return strcmp(Py_TYPE(obj)->tp_name, "numpy.ndarray") == 0;
}

/* Return the table; the first call imports `pyray_ser._ndarray`, and thereby numpy. Return NULL with an exception on
 * failure. */
static inline const prp_ndarray_api *prp_ndarray(void)
{
    static const char name[] = "pyray_ser._ndarray";
    static const prp_ndarray_api *api;
    static PyObject *loaded; /* the module, which we keep permanently */
    if (!api) {
        PyObject *module = PyImport_ImportModule(name);
        /* A signal handler or finalizer has interrupted this import and imported the module itself, so use that
         * module. */
        if (!module && loaded && PyErr_ExceptionMatches(PyExc_RuntimeError) &&
            !PyErr_ExceptionMatches(PyExc_RecursionError)) {
            PyErr_Clear();
            return PyDict_SetItemString(PyImport_GetModuleDict(), name, loaded) < 0 ? NULL : api;
        }
        PyObject *capsule = module ? PyObject_GetAttrString(module, "_api") : NULL;
        const prp_ndarray_api *found = capsule ? PyCapsule_GetPointer(capsule, PRP_NDARRAY_CAPSULE) : NULL;
        Py_XDECREF(capsule); /* the table is static, so it stays valid */
        if (found && found->version != PRP_NDARRAY_VERSION) {
            PyErr_SetString(PyExc_ImportError,
                            "pyray_ser._ndarray is of another build than the extension that uses it");
            found = NULL;
        }
        if (found && !loaded) {
            loaded = module;
            module = NULL;
        }
        Py_XDECREF(module);
        api = found;
    }
    return api;
}

#endif
