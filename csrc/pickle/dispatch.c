/* Saves objects that the walk does not write itself: bytes and buffers, and any other object by its reducer. The order
 * in which we search for a reducer is in docs/internals/pickler.md, "The walk".
 *
 * prp_save_other() returns SAVE_DONE; SAVE_RESUME if it has pushed frames and the walk continues with the topmost one;
 * or SAVE_NEXT if the walk saves the object in s->next first.
 */
#include "pickler.h"
#include "class_plan.h"
#include "atoms.h"

#include <string.h>

static int save_contiguous(prp_saver *s, const uint8_t *header, size_t header_len, PyObject *owner, const void *data,
                           size_t len)
{
    /* We may delay the copy of mutable data until the end of the dump only if no other code can run before that. */
    if (!PyBytes_CheckExact(owner) && !s->elide && !s->write)
        owner = NULL;
    return prp_out_large(s, header, header_len, data, len, owner);
}

static int save_as_bytearray(prp_saver *s, PyObject *owner, const void *data, size_t len)
{
    uint8_t header[9] = {OP_BYTEARRAY8};
    prp_put_u64(header + 1, len);
    return save_contiguous(s, header, sizeof header, owner, data, len);
}

static int save_as_bytes(prp_saver *s, PyObject *owner, const void *data, size_t len)
{
    uint8_t header[9], *h = header;
    if (len <= 0xff) {
        *h++ = OP_SHORT_BINBYTES;
        *h++ = (uint8_t)len;
    } else if (len <= 0xffffffff) {
        *h++ = OP_BINBYTES;
        h = prp_put_u32(h, (uint32_t)len);
    } else if (s->proto >= 4) {
        *h++ = OP_BINBYTES8;
        h = prp_put_u64(h, len);
    } else {
        PyErr_SetString(PyExc_OverflowError,
                        "serializing a bytes object larger than 4 GiB requires pickle protocol 4 or higher");
        return -1;
    }
    return save_contiguous(s, header, (size_t)(h - header), owner, data, len);
}

int prp_save_bytes(prp_saver *s, PyObject *obj)
{
    if (s->proto < 3)
        return prp_save_old_bytes(s, obj);
    bool elided = prp_elidable(s, obj);
    if (save_as_bytes(s, obj, PyBytes_AS_STRING(obj), (size_t)PyBytes_GET_SIZE(obj)) < 0)
        return -1;
    return elided ? 0 : prp_memoize(s, obj);
}

static int save_bytearray(prp_saver *s, PyObject *obj, bool elided)
{
    if (s->proto < 5)
        return prp_save_old_bytes(s, obj);
    if (save_as_bytearray(s, obj, PyByteArray_AS_STRING(obj), (size_t)PyByteArray_GET_SIZE(obj)) < 0)
        return -1;
    return elided ? 0 : prp_memoize(s, obj);
}

/* Return 1 if the buffer must be written to the stream, 0 if the callback has accepted it, -1 with an exception. */
static int offer_buffer(prp_saver *s, PyObject *buffer)
{
    if (!s->buffer_callback)
        return 1;
    if (s->append_to) {
        /* The callback is list.append, which runs no other code and returns None. */
        return PRP_FOREIGN(PyList_Append(s->append_to, buffer)) < 0 ? -1 : 0;
    }
    if (prp_before_foreign_code(s) < 0)
        return -1;
    PyObject *answer = PRP_FOREIGN(PyObject_CallOneArg(s->buffer_callback, buffer));
    if (!answer)
        return -1;
    int in_band = PRP_FOREIGN(PyObject_IsTrue(answer));
    Py_DECREF(answer);
    return in_band;
}

int prp_save_picklebuffer(prp_saver *s, PyObject *obj, bool elided)
{
    if (s->proto < 5) {
        PyErr_SetString(prp_g.pickling_error, "PickleBuffer can only be pickled with protocol >= 5");
        return -1;
    }
    const Py_buffer *view = PyPickleBuffer_GetBuffer(obj);
    if (!view)
        return -1;
    if (view->suboffsets || !PyBuffer_IsContiguous(view, 'A')) {
        PyErr_SetString(prp_g.pickling_error,
                        "PickleBuffer can not be pickled when pointing to a non-contiguous buffer");
        return -1;
    }
    if (s->put)
        return prp_put_picklebuffer(s, obj, view);
    Py_INCREF(obj);
    /* The callback may release the PickleBuffer and still request in-band data: our own view keeps the bytes alive. */
    Py_buffer own = {0};
    bool foreign = s->buffer_callback && !s->append_to;
    if (foreign && PRP_FOREIGN(PyObject_GetBuffer(obj, &own, PyBUF_FULL_RO)) < 0) {
        Py_DECREF(obj);
        return -1;
    }
    if (foreign)
        view = &own;
    int in_band = offer_buffer(s, obj), status = -1;
    if (in_band == 0) {
        bool readonly = view->readonly;
        status = prp_op(s, OP_NEXT_BUFFER);
        if (status == 0 && readonly)
            status = prp_op(s, OP_READONLY_BUFFER);
    } else if (in_band > 0) {
        size_t len = (size_t)view->len;
        if ((view->readonly ? save_as_bytes(s, obj, view->buf, len) : save_as_bytearray(s, obj, view->buf, len)) == 0)
            status = elided ? 0 : prp_memoize(s, obj);
    }
    if (foreign)
        PyBuffer_Release(&own);
    Py_DECREF(obj);
    return status;
}

/* Call obj.__reduce_ex__(protocol), or __reduce__() if obj has only the latter. `trusted` means that the type
 * implements these methods in C, so the caller has not called prp_before_foreign_code. This function calls
 * prp_before_foreign_code if the instance itself has attributes of these names. */
static PyObject *ask(prp_saver *s, PyObject *obj, PyTypeObject *type, bool trusted)
{
    PyObject *method = PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_reduce_ex)), *value;
    if (method && trusted) {
        PyObject *state =
            type->tp_flags & Py_TPFLAGS_HEAPTYPE ? PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_getstate)) : NULL;
        bool unknown = type->tp_flags & Py_TPFLAGS_HEAPTYPE && !state;
        if (unknown && prp_forgive(PyExc_AttributeError) < 0)
            Py_CLEAR(method);
        else if ((!PyCFunction_Check(method) || unknown || (state && !PyCFunction_Check(state))) &&
                 prp_before_foreign_code(s) < 0)
            Py_CLEAR(method);
        Py_XDECREF(state);
        if (!method)
            return NULL;
    }
    if (method) {
        value = PRP_FOREIGN(PyObject_CallOneArg(method, prp_g.int_proto[s->proto]));
        Py_DECREF(method);
        return value;
    }
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return NULL;
    PyErr_Clear();
    method = PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_reduce));
    if (method) {
        value = PRP_FOREIGN(PyObject_CallNoArgs(method));
        Py_DECREF(method);
        return value;
    }
    if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        PyObject *shown = prp_repr(obj);
        if (shown)
            PyErr_Format(prp_g.pickling_error, "can't pickle '%.200s' object: %U", type->tp_name, shown);
        Py_XDECREF(shown);
    }
    return NULL;
}

/* Return the reducer in the Pickler's own dispatch_table as a new reference, or NULL without an exception if there is
 * none. */
static PyObject *private_reducer(prp_saver *s, PyTypeObject *type)
{
    PyObject *reducer = PRP_FOREIGN(PyObject_GetItem(s->dispatch_table, (PyObject *)type));
    if (!reducer && PyErr_ExceptionMatches(PyExc_KeyError))
        PyErr_Clear();
    return reducer;
}

static PyObject *call_reducer(prp_saver *s, PyObject *reducer, PyObject *obj)
{
    if (prp_before_foreign_code(s) < 0)
        return NULL;
    Py_INCREF(reducer);
    PyObject *value = PRP_FOREIGN(PyObject_CallOneArg(reducer, obj));
    Py_DECREF(reducer);
    return value;
}

/* Call `reducer` on obj and save the result. */
static int reduce_with(prp_saver *s, PyObject *reducer, PyObject *obj)
{
    PyObject *value = call_reducer(s, reducer, obj);
    if (!value)
        return SAVE_ERROR;
    int status = prp_save_reduce_value(s, value, obj);
    Py_DECREF(value);
    return status;
}

/* Do the same, but return SAVE_GENERIC if the result is NotImplemented. */
static int reduce_unless_declined(prp_saver *s, PyObject *reducer, PyObject *obj)
{
    PyObject *value = call_reducer(s, reducer, obj);
    if (!value)
        return SAVE_ERROR;
    int status = value == Py_NotImplemented ? SAVE_GENERIC : prp_save_reduce_value(s, value, obj);
    Py_DECREF(value);
    return status;
}

/* cloudpickle can reduce some types whose own __reduce_ex__ raises: code, cells, modules, dict views. If it refuses,
 * the error of __reduce_ex__ is raised. Any other error is not an answer, and is raised itself: for example, that of a
 * signal handler, or of an import of cloudpickle that fails. */
static int reduce_by_value(prp_saver *s, PyObject *obj)
{
    PyObject *type, *error, *trace, *value = NULL;
    PyErr_Fetch(&type, &error, &trace);
    int found = prp_by_value(s, obj, &value), status = SAVE_ERROR;
    if (found < 0 && s->by_value && (prp_forgive(prp_g.pickling_error) == 0 || prp_forgive(PyExc_TypeError) == 0))
        found = 0;
    if (found == 0) {
        PyErr_Restore(type, error, trace);
        return SAVE_ERROR;
    }
    if (found > 0) {
        status = prp_save_reduce_value(s, value, obj);
        Py_DECREF(value);
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return status;
}

static bool from_numpy(PyObject *function)
{
    PyObject *module = PyFunction_Check(function) ? ((PyFunctionObject *)function)->func_module : NULL;
    return module && PyUnicode_Check(module) && PyUnicode_IS_COMPACT_ASCII(module) &&
           strncmp((const char *)PyUnicode_DATA(module), "numpy", 5) == 0;
}

/* Look up the plan again; return NULL with an exception on failure. The caller keeps `type` alive. */
static prp_plan *renew(prp_saver *s, prp_plan **held, PyObject *obj, PyTypeObject *type)
{
    if (PRP_UNLIKELY(Py_TYPE(obj) != type)) {
        PyErr_SetString(PyExc_RuntimeError, "the class of an object was replaced while it was pickled");
        return NULL;
    }
    prp_plan *plan = prp_plan_for(s, type, obj);
    if (plan) {
        prp_plan_drop(*held);
        *held = plan;
    }
    return plan;
}

/* The owner of *held releases the plan. If the plan is stale, we replace it in *held. */
static int save_reduced(prp_saver *s, prp_plan **held, PyObject *obj, PyTypeObject *type, bool elided)
{
    prp_plan *plan = *held;
    if (plan && plan->registered)
        return reduce_with(s, plan->registered, obj);
    if (s->reducer_override) {
        int status = reduce_unless_declined(s, s->reducer_override, obj);
        if (status != SAVE_GENERIC)
            return status;
    }
    if (type == &PyType_Type)
        return prp_save_type(s, obj);
    if (type == &PyFunction_Type)
        return prp_save_named(s, obj);
    if (plan->epoch != prp_epoch && !(plan = renew(s, held, obj, type))) /* reducer_override has run */
        return SAVE_ERROR;
    if (s->dispatch_table) {
        if (prp_before_foreign_code(s) < 0)
            return SAVE_ERROR;
        PyObject *reducer = private_reducer(s, type);
        if (reducer) {
            int status = reduce_with(s, reducer, obj);
            Py_DECREF(reducer);
            return status;
        }
        if (PyErr_Occurred())
            return SAVE_ERROR;
    } else if (plan->table && !(plan->kind == PLAN_COMPLEX && plan->table == prp_g.pickle_complex && !s->exact)) {
        if (plan->extra == obj && !s->exact && from_numpy(plan->table))
            return prp_save_global(s, obj, NULL); /* numpy.dtype, which numpy's reducer for dtype classes uses */
        return reduce_with(s, plan->table, obj);
    }
    if (plan->kind == PLAN_CLASS)
        return prp_save_named(s, obj);
    if (s->put && plan->kind == PLAN_NDARRAY) {
        int status = prp_plan_save(s, plan, obj, elided);
        if (status != SAVE_GENERIC)
            return status;
    }
    if (s->put && plan->put_reducer) {
        int status = reduce_unless_declined(s, plan->put_reducer, obj);
        if (status != SAVE_GENERIC)
            return status;
    }
    if (plan->kind != PLAN_GENERIC && !(s->put && plan->kind == PLAN_NDARRAY) && s->proto >= 2 && !s->persistent_id &&
        !s->fast) {
        if (plan->epoch != prp_epoch && !(plan = renew(s, held, obj, type)))
            return SAVE_ERROR;
        int status = prp_plan_save(s, plan, obj, elided);
        if (status != SAVE_GENERIC)
            return status;
    }
    bool by_table = plan->by_table;
    if (type == &PyMethod_Type && !s->by_value) {
        int named = prp_method_has_name(s, obj);
        if (named < 0)
            return SAVE_ERROR;
        by_table = !named;
    }
    /* Either cloudpickle has reduced an object that contains obj, so that cloudpickle's tables apply to obj too, or
     * only these tables can reduce obj. */
    if (s->by_value || by_table) {
        if (by_table && prp_before_foreign_code(s) < 0)
            return SAVE_ERROR;
        PyObject *value;
        int found = prp_by_value(s, obj, &value);
        if (found < 0)
            return SAVE_ERROR;
        if (found) {
            int status = prp_save_reduce_value(s, value, obj);
            Py_DECREF(value);
            return status;
        }
    }
    bool trusted = plan->trusted && !s->exact;
    if (trusted)
        prp_memo_own_all(s);
    else if (prp_before_foreign_code(s) < 0)
        return SAVE_ERROR;
    PyObject *value = ask(s, obj, type, trusted);
    if (!value) {
        if (s->restart)
            return SAVE_ERROR;
        /* Since 3.13 the type of the standard streams is a heap type. */
        if ((!(type->tp_flags & Py_TPFLAGS_HEAPTYPE) || prp_is_standard_stream(obj)) &&
            PyErr_ExceptionMatches(PyExc_TypeError)) {
            if (trusted && s->elide)
                return SAVE_ERROR;
            return reduce_by_value(s, obj);
        }
        return SAVE_ERROR;
    }
    int status = prp_save_reduce_value(s, value, obj);
    Py_DECREF(value);
    return status;
}

int prp_save_other(prp_saver *s, PyObject *obj, PyTypeObject *type)
{
    bool elided = prp_elidable(s, obj);
    if (!elided) {
        int written = prp_write_memoized(s, obj);
        if (written)
            return written < 0 ? SAVE_ERROR : SAVE_DONE;
    }
    if (type == &PyBytes_Type)
        return s->put && PyBytes_GET_SIZE(obj) >= PRP_PUT_THRESHOLD ? prp_put_bytes(s, obj, elided)
                                                                    : prp_save_bytes(s, obj);
    if (type == &PyByteArray_Type)
        return s->put && PyByteArray_GET_SIZE(obj) >= PRP_PUT_THRESHOLD ? prp_put_bytes(s, obj, elided)
                                                                        : save_bytearray(s, obj, elided);
    if (type == &PyPickleBuffer_Type)
        return prp_save_picklebuffer(s, obj, elided);
    Py_INCREF(obj);
    Py_INCREF(type); /* code that runs in the meantime may replace obj's class */
    int status;
    if ((type == &PySet_Type || type == &PyFrozenSet_Type) && s->proto < 4) {
        status = prp_save_old_set(s, obj);
    } else {
        prp_plan *plan = NULL;
        status = SAVE_DONE;
        if (type != &PyType_Type && type != &PyFunction_Type) {
            plan = prp_plan_for(s, type, obj);
            if (!plan)
                status = SAVE_ERROR;
        }
        if (status == SAVE_DONE)
            status = save_reduced(s, &plan, obj, type, elided);
        prp_plan_drop(plan);
    }
    Py_DECREF(type);
    Py_DECREF(obj);
    return status;
}
