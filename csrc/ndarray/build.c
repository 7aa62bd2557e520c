/* Builds arrays over memory that another object owns.
 *
 * The numbers come from a stream, so they are untrusted. With overflow-safe arithmetic, we check that every element
 * of the array lies inside the buffer, before we pass numpy a pointer. If the array does not fit, we leave it to the
 * general unpickler, whose call of numpy.ndarray raises numpy's error.
 */
#include "ndarray.h"

/* Compute where the bytes of all elements end if the first element is at `offset`. Return false if the bytes begin
 * before 0 or are more than numpy accepts. */
bool prp_array_end(const npy_intp *shape, const npy_intp *strides, int nd, size_t itemsize, int64_t offset, size_t *end)
{
    if (offset < 0)
        return false;
    size_t total = itemsize;
    bool empty = false;
    for (int i = 0; i < nd; i++) {
        if (shape[i] < 0)
            return false;
        if (shape[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(total, (size_t)shape[i], &total) || total > PY_SSIZE_T_MAX)
            return false; /* numpy also rejects such a size, even for broadcast arrays */
    }
    *end = (size_t)offset;
    if (empty)
        return true;
    if (!strides)
        return !__builtin_add_overflow((size_t)offset, total, end);
    size_t low = (size_t)offset, high = (size_t)offset;
    for (int i = 0; i < nd; i++) {
        size_t stride = strides[i] < 0 ? 0 - (size_t)strides[i] : (size_t)strides[i], reach;
        if (__builtin_mul_overflow(stride, (size_t)shape[i] - 1, &reach))
            return false;
        if (strides[i] < 0 ? reach > low : __builtin_add_overflow(high, reach, &high))
            return false;
        if (strides[i] < 0)
            low -= reach;
    }
    return !__builtin_add_overflow(high, itemsize, end);
}

const uint64_t prp_array_nothing;

/* The caller owns the reference to `descr`. Return NULL without an exception if the array does not fit. */
PyObject *prp_array_build(PyArray_Descr *descr, int nd, const npy_intp *shape, const npy_intp *strides, int64_t offset,
                          const uint8_t *data, size_t data_len, PyObject *owner, int flags)
{
    size_t end;
    if (!prp_array_end(shape, strides, nd, (size_t)PyDataType_ELSIZE(descr), offset, &end) || end > data_len)
        return NULL;
    return prp_array_over(descr, nd, shape, strides, data ? data + offset : NULL, owner, flags);
}

/* Read the ints of an exact tuple. Return false without an exception if it is not an exact tuple, is too long, or
 * contains other objects. */
static bool read_tuple(PyObject *tuple, npy_intp *out, int *nd)
{
    if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) > PRP_ARRAY_MAX_DIMS)
        return false;
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (*nd >= 0 && *nd != n)
        return false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GET_ITEM(tuple, i);
        int overflow;
        if (!PyLong_CheckExact(item))
            return false;
        long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
        if (overflow)
            return false;
        out[i] = (npy_intp)value;
    }
    *nd = (int)n;
    return true;
}

/* A structured dtype is usable if it contains no references and needs no array subclass. */
static bool usable(PyArray_Descr *descr)
{
    return !PyDataType_REFCHK(descr) && !PyDataType_HASSUBARRAY(descr) && PyDataType_ELSIZE(descr) > 0 &&
           descr->type_num >= 0 && descr->type_num <= NPY_HALF;
}

/* The same as prp_array_build(), but without explicit strides use those of Fortran order if `fortran` is true, and
 * support PRP_ARRAY_EXACT. */
static PyObject *build_ordered(PyArray_Descr *descr, int nd, const npy_intp *shape, const npy_intp *strides,
                               bool fortran, int64_t offset, const uint8_t *data, size_t data_len, PyObject *owner,
                               int flags)
{
    npy_intp steps[PRP_ARRAY_MAX_DIMS];
    if (!strides && fortran && nd > 1) {
        size_t step = (size_t)PyDataType_ELSIZE(descr);
        for (int i = 0; i < nd; i++) {
            steps[i] = (npy_intp)step;
            if (shape[i] < 0 || __builtin_mul_overflow(step, shape[i] ? (size_t)shape[i] : 1, &step) ||
                step > PY_SSIZE_T_MAX)
                return NULL;
        }
        strides = steps;
    }
    if (flags & PRP_ARRAY_EXACT) {
        size_t total = (size_t)PyDataType_ELSIZE(descr);
        for (int i = 0; i < nd; i++)
            if (shape[i] < 0 || __builtin_mul_overflow(total, (size_t)shape[i], &total))
                return NULL;
        if (total != data_len)
            return NULL;
    }
    return prp_array_build(descr, nd, shape, strides, offset, data, data_len, owner, flags);
}

PyObject *prp_array_from_parts(PyObject *shape_tuple, PyObject *dtype, int64_t offset, PyObject *strides_tuple,
                               bool fortran, const uint8_t *data, size_t data_len, PyObject *owner, int flags)
{
    npy_intp shape[PRP_ARRAY_MAX_DIMS], strides[PRP_ARRAY_MAX_DIMS];
    int nd = -1;
    if (!read_tuple(shape_tuple, shape, &nd))
        return NULL;
    PyArray_Descr *descr;
    if (PyArray_DescrCheck(dtype)) {
        if (!usable((PyArray_Descr *)dtype))
            return NULL;
        descr = (PyArray_Descr *)Py_NewRef(dtype);
    } else if (PyUnicode_CheckExact(dtype) && PyUnicode_IS_READY(dtype) && PyUnicode_IS_ASCII(dtype)) {
        descr = prp_dtype_find(PyUnicode_DATA(dtype), (size_t)PyUnicode_GET_LENGTH(dtype));
        if (!descr)
            return NULL;
    } else {
        return NULL;
    }
    bool strided = strides_tuple && strides_tuple != Py_None;
    PyObject *array = NULL;
    if (!strided || read_tuple(strides_tuple, strides, &nd))
        array =
            build_ordered(descr, nd, shape, strided ? strides : NULL, fortran, offset, data, data_len, owner, flags);
    Py_DECREF(descr);
    return array;
}

PyObject *prp_array_from_ints(int nd, const int64_t *shape, PyObject *dtype, bool fortran, const uint8_t *data,
                              size_t data_len, PyObject *owner, int flags)
{
    if (nd < 0 || nd > PRP_ARRAY_MAX_DIMS || !PyArray_DescrCheck(dtype) || !usable((PyArray_Descr *)dtype))
        return NULL;
    return build_ordered((PyArray_Descr *)dtype, nd, (const npy_intp *)shape, NULL, fortran, 0, data, data_len, owner,
                         flags);
}
