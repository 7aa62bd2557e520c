/* Writes exact ndarrays and numpy scalars in the standard form without calling __reduce_ex__.
 *
 *     ndarray    a call of numpy's _frombuffer(buffer, dtype, shape, order). The buffer is a PickleBuffer of the array,
 *                which goes to the callback or into the stream. Only for C or Fortran order and plain numbers; numpy
 *                reduces all other arrays.
 *     scalar     a call of numpy's scalar(dtype, bytes)
 *
 * We take the functions from numpy's own reduction of a sample, so we write the same stream as the installed numpy
 * would. This file never imports numpy; it reads the array struct through numpy's headers (ABI stable since 1.7) and
 * does not use its C API.
 */
#include "array_buffer.h"
#include "dtypes.h"
#include "atoms.h"

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#include <numpy/ndarraytypes.h>

PyObject *prp_numpy_attribute(const char *name)
{
    PyObject *found;
    (void)prp_imported(prp_g.sys_modules, "numpy", name, &found);
    return found;
}

bool prp_is_numpy(PyTypeObject *type, const char *name)
{
    PyObject *found = prp_numpy_attribute(name);
    Py_XDECREF(found);
    return found == (PyObject *)type;
}

bool prp_array_has_base(PyObject *array)
{
    return PyArray_BASE((PyArrayObject *)array) != NULL;
}

/* Return element 0 of `maker(argument).__reduce_ex__(5)`; NULL with or without an exception. */
static PyObject *reducer_of(const char *maker, PyObject *argument)
{
    PyObject *type = prp_numpy_attribute(maker),
             *sample = type ? PRP_FOREIGN(PyObject_CallOneArg(type, argument)) : NULL;
    PyObject *reduced = sample ? PRP_FOREIGN(PyObject_CallMethod(sample, "__reduce_ex__", "i", 5)) : NULL;
    PyObject *found = reduced && PyTuple_Check(reduced) && PyTuple_GET_SIZE(reduced) >= 2
                          ? Py_NewRef(PyTuple_GET_ITEM(reduced, 0))
                          : NULL;
    Py_XDECREF(reduced);
    Py_XDECREF(sample);
    Py_XDECREF(type);
    (void)prp_forgive_refusal();
    return found;
}

PyObject *prp_scalar_function(void)
{
    PyObject *zero = PyFloat_FromDouble(0.0), *found = zero ? reducer_of("float64", zero) : NULL;
    Py_XDECREF(zero);
    return found;
}

static PyObject *frombuffer_function(void)
{
    PyObject *one = PyLong_FromLong(1), *found = one ? reducer_of("ndarray", one) : NULL, *name = NULL;
    Py_XDECREF(one);
    if (found)
        name = PRP_FOREIGN(PyObject_GetAttr(found, prp_g.str_name));
    bool good = name && PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "_frombuffer") == 0;
    (void)prp_forgive_refusal();
    Py_XDECREF(name);
    if (!good)
        Py_CLEAR(found);
    return found;
}

int prp_save_array(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    if (s->put)
        return prp_put_array(s, plan, obj, elided);
    PyArrayObject *array = (PyArrayObject *)obj;
    int number = PyArray_DESCR(array)->type_num;
    bool fortran = !(PyArray_FLAGS(array) & NPY_ARRAY_C_CONTIGUOUS);
    if (s->proto < 5 || (fortran && !(PyArray_FLAGS(array) & NPY_ARRAY_F_CONTIGUOUS)) ||
        !((number >= NPY_BOOL && number <= NPY_CLONGDOUBLE) || number == NPY_HALF))
        return SAVE_GENERIC;
    prp_memo_own_all(s);
    if (!plan->extra) {
        PyObject *found = frombuffer_function();
        if (!found)
            return PyErr_Occurred() ? SAVE_ERROR : SAVE_GENERIC;
        if (plan->extra) /* another thread has set it in the meantime */
            Py_DECREF(found);
        else
            plan->extra = found;
    }
    PyObject *buffer = prp_array_picklebuffer(obj);
    if (!buffer) /* numpy reduces such arrays in a different way */
        return prp_forgive_refusal() < 0 ? SAVE_ERROR : SAVE_GENERIC;
    int status = SAVE_ERROR;
    bool again = false;
    const bool unshared = true; /* only we refer to the PickleBuffer, so it needs no memo entry */
    /* Other code that runs meanwhile may change the array's shape or dtype, so write the old values, which match the
     * bytes. */
    PyArray_Descr *descr = PyArray_DESCR(array);
    int nd = PyArray_NDIM(array);
    npy_intp dims[NPY_MAXDIMS];
    if (nd > 0) /* the shape pointer of a zero-dimensional array may be NULL */
        memcpy(dims, PyArray_DIMS(array), (size_t)nd * sizeof *dims);
    Py_INCREF(descr);
    if (prp_save(s, plan->extra) < 0 || prp_op(s, OP_MARK) < 0 || prp_save_picklebuffer(s, buffer, unshared) < 0 ||
        prp_save_dtype(s, (PyObject *)descr) < 0)
        goto end;
    if (prp_room(s, (size_t)nd * 10 + PRP_ROOM) < 0)
        goto end;
    if (nd == 0) {
        *s->p++ = OP_EMPTY_TUPLE;
    } else {
        if (nd > 3)
            *s->p++ = OP_MARK;
        for (int i = 0; i < nd; i++)
            s->p = prp_append_int64(s->p, dims[i]);
        *s->p++ = nd > 3 ? OP_TUPLE : (uint8_t)(OP_TUPLE1 - 1 + nd);
    }
    /* As in numpy's own reduction, this is the str of one letter that the interpreter shares. No hook receives it,
     * because arrays reach this code only if there are no hooks. */
    static PyObject *orders[2];
    if (!orders[fortran] && !(orders[fortran] = PyUnicode_FromStringAndSize(fortran ? "F" : "C", 1)))
        goto end;
    const uint8_t order[] = {OP_SHORT_BINUNICODE, 1, fortran ? 'F' : 'C'};
    if (prp_put_shared(s, orders[fortran], order, sizeof order) < 0)
        goto end;
    *s->p++ = OP_TUPLE;
    *s->p++ = OP_REDUCE;
    if (!elided) {
        int64_t index = prp_memo_get(&s->memo, obj); /* a callback may have added entries to this saver's memo */
        again = index >= 0;
        if (!again && prp_memoize(s, obj) < 0)
            goto end;
    }
    status = SAVE_DONE;
end:
    Py_DECREF(descr);
    Py_DECREF(buffer);
    return status;
}

/* Write at most 255 bytes as a new object without a memo entry. Empty and single bytes are shared objects, to which
 * other code may refer, so prp_save() writes them. */
static int save_short_bytes(prp_saver *s, const void *data, Py_ssize_t len)
{
    if (len <= 1) {
        PyObject *bytes = PyBytes_FromStringAndSize(data, len);
        int status = bytes ? prp_save(s, bytes) : -1;
        Py_XDECREF(bytes);
        return status;
    }
    if (prp_room(s, (size_t)len + PRP_ROOM) < 0)
        return -1;
    *s->p++ = OP_SHORT_BINBYTES;
    *s->p++ = (uint8_t)len;
    memcpy(s->p, data, (size_t)len);
    s->p += len;
    return 0;
}

int prp_save_scalar(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    prp_memo_own_all(s);
    Py_buffer view;
    if (PRP_FOREIGN(PyObject_GetBuffer(obj, &view, PyBUF_SIMPLE)) < 0)
        return prp_forgive_refusal() < 0 ? SAVE_ERROR : SAVE_GENERIC;
    int status = SAVE_ERROR;
    PyObject *descr = PRP_FOREIGN(PyObject_GetAttrString(obj, "dtype"));
    if (descr && view.len <= 255) {
        if (prp_save(s, plan->extra) == 0 && prp_save_dtype(s, descr) == 0 &&
            save_short_bytes(s, view.buf, view.len) == 0 && prp_room(s, PRP_ROOM) == 0) {
            *s->p++ = OP_TUPLE2;
            *s->p++ = OP_REDUCE;
            status = elided || prp_memoize(s, obj) == 0 ? SAVE_DONE : SAVE_ERROR;
        }
    } else if (descr) {
        status = SAVE_GENERIC;
    }
    Py_XDECREF(descr);
    PyBuffer_Release(&view);
    return status;
}
