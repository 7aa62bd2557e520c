/* Internal to the extension `_ndarray`: all its files share one import of numpy's C API. */
#ifndef PRP_NDARRAY_H
#define PRP_NDARRAY_H

#include "api.h"
#include "foreign.h"

#define PY_ARRAY_UNIQUE_SYMBOL prp_ndarray_numpy
#ifndef PRP_NDARRAY_IMPORTS
#define NO_IMPORT_ARRAY
#endif
#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#include <numpy/arrayobject.h>

/* module.c: imports numpy, initializes the caches, and returns the capsule's table. */
const prp_ndarray_api *prp_ndarray_init(void);

/* dtype.c */
int prp_dtype_ready(void);
bool prp_dtype_is_plain(PyArray_Descr *descr);
/* The fields of a cached dtype when it was checked. Code that has an array can access the array's dtype and set its
 * state. */
typedef struct {
    npy_intp elsize, alignment;
    uint64_t flags;
    NPY_DATETIMEUNIT base;
    int num;
    char order;
    bool singleton; /* one of numpy's singletons, whose state numpy never changes */
} prp_dtype_marks;
void prp_dtype_mark(PyArray_Descr *descr, prp_dtype_marks *marks);
bool prp_dtype_unchanged(PyArray_Descr *descr, const prp_dtype_marks *marks);
static inline bool prp_dtype_intact(PyArray_Descr *descr, const prp_dtype_marks *marks)
{
    return marks->singleton || prp_dtype_unchanged(descr, marks);
}
bool prp_dtype_like_own(PyObject *descr);
size_t prp_dtype_name(PyArray_Descr *descr, char *out);
PyArray_Descr *prp_dtype_find(const char *name, size_t len);
PyObject *prp_plain_dtype(const char *name, size_t len);
PyObject *prp_shared_dtype(const char *name, size_t len);
PyObject *prp_dtype_from_name(const char *name, size_t len);

/* describe.c */
int prp_array_describe(PyObject *obj, prp_array_source *source);
Py_ssize_t prp_array_template_put(PyObject *obj, uint8_t *out, prp_array_source *source);
bool prp_array_lies_at(PyObject *obj, const void *data, size_t nbytes);
int prp_array_gather(PyObject *obj, const prp_array_source *source, void *dst, size_t dst_len);

/* seal.c */
int prp_array_seal(PyObject *obj);
bool prp_array_owns_references(PyObject *obj);

/* stream.c */
PyObject *prp_array_from_stream(const uint8_t *stream, size_t len, const uint8_t *data, size_t data_len,
                                PyObject *owner, int flags);

/* build.c */
bool prp_array_end(const npy_intp *shape, const npy_intp *strides, int nd, size_t itemsize, int64_t offset,
                   size_t *end);
/* The data address of arrays without elements, because numpy allocates memory if the address is NULL. */
extern const uint64_t prp_array_nothing;

/* Build an array over a checked range. `descr` is borrowed and must outlive the call. */
static inline PyObject *prp_array_over(PyArray_Descr *descr, int nd, const npy_intp *shape, const npy_intp *strides,
                                       const uint8_t *first, PyObject *owner, int flags)
{
    if (!first)
        first = (const uint8_t *)&prp_array_nothing;
    Py_INCREF(descr);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, nd, (npy_intp *)shape, (npy_intp *)strides,
                                           (void *)first, flags & PRP_ARRAY_WRITABLE ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (!array)
        return NULL;
    /* numpy checks explicit strides (and the order of an array without explicit strides), but some versions do not
     * check the alignment of the memory. */
    bool aligned = ((uintptr_t)first & ((size_t)PyDataType_ALIGNMENT(descr) - 1)) == 0;
    if (strides || !aligned || !PyArray_CHKFLAGS((PyArrayObject *)array, NPY_ARRAY_ALIGNED))
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    if (!owner)
        return array;
    Py_INCREF(owner);
    if (flags & PRP_ARRAY_PLAIN_OWNER || !PyArray_Check(owner)) { /* PyArray_SetBaseObject would do the same */
        ((PyArrayObject_fields *)array)->base = owner;
    } else if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}
PyObject *prp_array_build(PyArray_Descr *descr, int nd, const npy_intp *shape, const npy_intp *strides, int64_t offset,
                          const uint8_t *data, size_t data_len, PyObject *owner, int flags);
PyObject *prp_array_from_parts(PyObject *shape, PyObject *dtype, int64_t offset, PyObject *strides, bool fortran,
                               const uint8_t *data, size_t data_len, PyObject *owner, int flags);
PyObject *prp_array_from_ints(int nd, const int64_t *shape, PyObject *dtype, bool fortran, const uint8_t *data,
                              size_t data_len, PyObject *owner, int flags);

/* strings.c: functions for arrays of numpy's StringDType. They return 0, or -1 with an exception. */
typedef struct {
    size_t count;
    uint64_t bytes, longest; /* bytes of the text in UTF-8 */
    bool missing;            /* whether any element is the dtype's na_object */
} prp_strings;

int prp_strings_measure(PyObject *array, prp_strings *found);
/* Copy text and lengths (little endian, `width` bytes each: 1, 2, 4 or 8) of all elements in C or Fortran order;
 * `missing` may be NULL if there are none. Fail if the array has changed since we measured it. */
int prp_strings_copy(PyObject *array, bool fortran, const prp_strings *found, char *text, uint8_t *lengths, int width,
                     uint8_t *missing);
/* Set all elements of a contiguous array, in memory order, after checking the whole input. */
int prp_strings_fill(PyObject *array, const uint8_t *text, size_t bytes, const uint8_t *lengths, int width,
                     size_t count, const uint8_t *missing);

#endif
