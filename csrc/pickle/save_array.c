/* Exact ndarrays and numpy scalars in the standard form, without the detour through __reduce_ex__.
 *
 *     ndarray    numpy's _frombuffer(buffer, dtype, shape, order), the buffer being what a PickleBuffer of the array is to this
 *                pickler: handed to the callback, or bytes in the stream. C and Fortran order, plain numbers; the rest is numpy's.
 *     scalar     numpy's scalar(dtype, bytes)
 *
 * The functions are those that numpy's own reduction names, taken from a sample, so the stream is what this numpy would write.
 * A dtype of numpy's own is the same bytes in every stream: they are made once, by pickling it with nothing memoized, and cut
 * where an object lies that the rest of the stream may share: the module's name, the class, the dtype itself, the sign of the
 * byte order. So the stream is the standard pickler's but for memo entries that nobody uses.
 *
 * numpy is never imported from here; its array struct is read through its headers (ABI stable since 1.7), its C API is not used.
 */
#include "plan.h"
#include "write.h"

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#include <numpy/ndarraytypes.h>

#include <stdlib.h>

#define DTYPES 32

typedef struct {
    PyObject *descr;                /* owned */
    PyObject *module, *cls, *order; /* owned: numpy's name, the class dtype, '<' or '|' */
    size_t name, called, made, sign,
        rest; /* where in the bytes: name of the class; arguments; state; byte order; what follows it */
    uint8_t *bytes;
    size_t len;
} kept_dtype;

static kept_dtype dtypes[DTYPES];

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

/* First element of what `maker(argument).__reduce_ex__(5)` returns; NULL with or without an exception. */
static PyObject *reducer_of(const char *maker, PyObject *argument)
{
    PyObject *type = prp_numpy_attribute(maker), *sample = type ? PyObject_CallOneArg(type, argument) : NULL;
    PyObject *reduced = sample ? PyObject_CallMethod(sample, "__reduce_ex__", "i", 5) : NULL;
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
        name = PyObject_GetAttr(found, prp_g.str_name);
    bool good = name && PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "_frombuffer") == 0;
    (void)prp_forgive_refusal();
    Py_XDECREF(name);
    if (!good)
        Py_CLEAR(found);
    return found;
}

/* Pickles `obj` with nothing memoized; the opcodes without PROTO and STOP, to be freed. */
static uint8_t *pickled(PyObject *obj, size_t *len)
{
    prp_saver *other = prp_acquire();
    if (!other)
        return NULL;
    prp_saver_protocol(other, 5);
    other->framing = false;
    other->fast = true;
    uint8_t *bytes = NULL;
    if (prp_dump(other, obj) == 0) {
        *len = prp_out_len(other) - 3;
        if ((bytes = malloc(*len)))
            memcpy(bytes, other->base + 2, *len);
        else
            PyErr_NoMemory();
    }
    prp_release(other);
    return bytes;
}

/* SHORT_BINUNICODE at `at`: where it ends; 0 if there is none. */
static size_t behind_string(const uint8_t *bytes, size_t len, size_t at)
{
    if (at + 2 > len || bytes[at] != OP_SHORT_BINUNICODE || bytes[at + 1] > len - at - 2)
        return 0;
    return at + 2 + bytes[at + 1];
}

/* Finds the places where it is cut: `numpy` `dtype` STACK_GLOBAL, `f8` False True TUPLE3 REDUCE, MARK 3 `<` ... */
static bool cut(kept_dtype *kept)
{
    const uint8_t *bytes = kept->bytes;
    size_t len = kept->len;
    kept->name = behind_string(bytes, len, 0);
    size_t global = kept->name ? behind_string(bytes, len, kept->name) : 0;
    if (!global || global + 1 > len || bytes[global] != OP_STACK_GLOBAL)
        return false;
    kept->called = global + 1;
    size_t arguments = behind_string(bytes, len, kept->called);
    const uint8_t call[] = {OP_NEWFALSE, OP_NEWTRUE, OP_TUPLE3, OP_REDUCE, OP_MARK, OP_BININT1, 3};
    if (!arguments || arguments + sizeof call > len || memcmp(bytes + arguments, call, sizeof call) != 0)
        return false;
    kept->made = arguments + 4;
    kept->sign = arguments + sizeof call;
    kept->rest = behind_string(bytes, len, kept->sign);
    if (kept->rest != kept->sign + 3)
        return false;
    kept->module = PyUnicode_DecodeUTF8((const char *)bytes + 2, bytes[1], NULL);
    if (kept->module)
        PyUnicode_InternInPlace(&kept->module);
    kept->cls = prp_numpy_attribute("dtype");
    kept->order =
        PyUnicode_FromStringAndSize((const char *)bytes + kept->sign + 2, 1); /* the one object of that letter */
    return kept->module && kept->cls && kept->order;
}

/* The kept form of `descr`; without bytes if it has another form than is known here. NULL: exception. */
static kept_dtype *kept_for(PyObject *descr, int number)
{
    kept_dtype *kept = &dtypes[number];
    if (kept->descr == descr)
        return kept;
    size_t len = 0;
    uint8_t *bytes = pickled(descr, &len);
    if (!bytes)
        return NULL;
    free(kept->bytes);
    Py_CLEAR(kept->module);
    Py_CLEAR(kept->cls);
    Py_CLEAR(kept->order);
    Py_XSETREF(kept->descr, Py_NewRef(descr));
    kept->bytes = bytes;
    kept->len = len;
    if (!cut(kept)) {
        PyErr_Clear();
        free(kept->bytes);
        kept->bytes = NULL;
    }
    return kept;
}

/* A string or class that the stream may share, by its opcodes or from the memo. The caller has made room. */
static int put_shared(prp_saver *s, PyObject *obj, const uint8_t *bytes, size_t len)
{
    int64_t index = prp_memo_add(&s->memo, obj);
    if (index >= 0) {
        s->p = prp_put_get(s->p, (uint32_t)index);
        return 0;
    }
    if (index == PRP_MEMO_ERROR)
        return -1;
    memcpy(s->p, bytes, len);
    s->p += len;
    *s->p++ = OP_MEMOIZE;
    return 0;
}

static void put(prp_saver *s, const uint8_t *bytes, size_t len)
{
    memcpy(s->p, bytes, len);
    s->p += len;
}

/* The caller has checked that it is one of numpy's own number types, and that nobody is to be asked. */
static int write_kept_dtype(prp_saver *s, PyObject *descr, int number)
{
    const kept_dtype *kept = kept_for(descr, number);
    if (!kept)
        return -1;
    const uint8_t *bytes = kept->bytes;
    if (!bytes)
        return prp_save(s, descr);
    if (prp_room(s, kept->len + PRP_ROOM) < 0)
        return -1;
    int64_t index = prp_memo_get(&s->memo, kept->cls);
    if (index >= 0)
        s->p = prp_put_get(s->p, (uint32_t)index);
    else if (put_shared(s, kept->module, bytes, kept->name) < 0 ||
             put_shared(s, kept->cls, bytes + kept->name, kept->called - kept->name) < 0)
        return -1;
    if (put_shared(s, descr, bytes + kept->called, kept->made - kept->called) < 0)
        return -1;
    put(s, bytes + kept->made, kept->sign - kept->made);
    if (put_shared(s, kept->order, bytes + kept->sign, kept->rest - kept->sign) < 0)
        return -1;
    put(s, bytes + kept->rest, kept->len - kept->rest);
    return 0;
}

static int save_dtype(prp_saver *s, PyObject *descr)
{
    int64_t index = prp_memo_get(&s->memo, descr);
    if (index >= 0)
        return prp_write_get(s, (uint32_t)index);
    int number = ((PyArray_Descr *)descr)->type_num;
    char order = ((PyArray_Descr *)descr)->byteorder;
    if (!s->letter && !s->persistent_id && !s->reducer_override && !s->dispatch_table && number >= 0 &&
        number < DTYPES && PyTypeNum_ISNUMBER(number) && (order == '=' || order == '|')) {
        prp_plan *plan = prp_plan_for(s, Py_TYPE(descr), descr);
        if (!plan)
            return -1;
        if (!plan->registered && !plan->table && plan->kind == PLAN_GENERIC)
            return write_kept_dtype(s, descr, number);
    }
    return prp_save(s, descr);
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
    prp_own(s);
    if (!plan->extra && !(plan->extra = frombuffer_function()))
        return PyErr_Occurred() ? SAVE_ERROR : SAVE_GENERIC;
    PyObject *transposed = fortran ? PyObject_GetAttrString(obj, "T") : NULL;
    PyObject *buffer = fortran && !transposed ? NULL : PyPickleBuffer_FromObject(fortran ? transposed : obj);
    Py_XDECREF(transposed);
    if (!buffer) /* numpy has another way for these */
        return prp_forgive_refusal() < 0 ? SAVE_ERROR : SAVE_GENERIC;
    int status = SAVE_ERROR;
    bool again = false;
    if (prp_save(s, plan->extra) < 0 || prp_op(s, OP_MARK) < 0 || prp_save_picklebuffer(s, buffer, true) < 0 ||
        save_dtype(s, (PyObject *)PyArray_DESCR(array)) < 0)
        goto end;
    int nd = PyArray_NDIM(array);
    if (prp_room(s, (size_t)nd * 10 + PRP_ROOM) < 0)
        goto end;
    if (nd == 0) {
        *s->p++ = OP_EMPTY_TUPLE;
    } else {
        if (nd > 3)
            *s->p++ = OP_MARK;
        for (int i = 0; i < nd; i++)
            s->p = prp_put_int64(s->p, PyArray_DIM(array, i));
        *s->p++ = nd > 3 ? OP_TUPLE : (uint8_t)(OP_TUPLE1 - 1 + nd);
    }
    /* As numpy makes them: the one object of that letter. No hook is to be asked about it: arrays come here without any. */
    static PyObject *orders[2];
    if (!orders[fortran] && !(orders[fortran] = PyUnicode_FromStringAndSize(fortran ? "F" : "C", 1)))
        goto end;
    const uint8_t order[] = {OP_SHORT_BINUNICODE, 1, fortran ? 'F' : 'C'};
    if (put_shared(s, orders[fortran], order, sizeof order) < 0)
        goto end;
    *s->p++ = OP_TUPLE;
    *s->p++ = OP_REDUCE;
    if (!elided) {
        int64_t index = prp_memo_get(&s->memo, obj); /* a callback may have pickled with this very saver's memo */
        again = index >= 0;
        if (!again && prp_memoize(s, obj) < 0)
            goto end;
    }
    status = SAVE_DONE;
end:
    Py_DECREF(buffer);
    return status;
}

/* At most 255 bytes that nobody else holds; of a single byte there is one object, which others may hold. */
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
    prp_own(s);
    Py_buffer view;
    if (PyObject_GetBuffer(obj, &view, PyBUF_SIMPLE) < 0)
        return prp_forgive_refusal() < 0 ? SAVE_ERROR : SAVE_GENERIC;
    int status = SAVE_ERROR;
    PyObject *descr = PyObject_GetAttrString(obj, "dtype");
    if (descr && view.len <= 255) {
        if (prp_save(s, plan->extra) == 0 && save_dtype(s, descr) == 0 &&
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
