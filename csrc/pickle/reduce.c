/* Checks and writes the result of a reduction: a name, or a tuple of two to six elements. */
#include "pickler.h"

#define BATCH 1000

int prp_save_reduce_value(prp_saver *s, PyObject *value, PyObject *obj)
{
    if (PyUnicode_Check(value))
        return prp_save_global(s, obj, value);
    if (!PyTuple_Check(value)) {
        PyErr_SetString(prp_g.pickling_error, "__reduce__ must return a string or tuple");
        return -1;
    }
    return prp_save_reduce(s, value, obj);
}

static int bad(const char *message)
{
    PyErr_SetString(prp_g.pickling_error, message);
    return -1;
}

static int bad_type(const char *message, PyObject *value)
{
    PyErr_Format(prp_g.pickling_error, message, Py_TYPE(value)->tp_name);
    return -1;
}

/* Save a part of the reduction of `obj`; `kind` is the name of the part in the path of an error. */
static int save_part(prp_saver *s, const char *kind, PyObject *obj, PyObject *part)
{
    int status = prp_save(s, part);
    if (PRP_UNLIKELY(status < 0))
        prp_note(s, kind, obj, NULL, part);
    return status;
}

static int save_item(prp_saver *s, PyObject *obj, PyObject *item, Py_ssize_t index)
{
    int status = prp_save(s, item);
    if (PRP_UNLIKELY(status < 0))
        prp_note_index(s, "listitem", obj, index, item);
    return status;
}

/* Write the items of an iterator in batches, with the same opcodes as the standard pickler. */
static int save_listitems(prp_saver *s, PyObject *obj, PyObject *iterator)
{
    Py_ssize_t index = 0;
    for (;;) {
        PyObject *first = PRP_FOREIGN(PyIter_Next(iterator));
        if (!first)
            return PyErr_Occurred() ? -1 : 0;
        if (s->proto == 0) {
            int status = save_item(s, obj, first, index++);
            Py_DECREF(first);
            if (status < 0 || prp_op(s, OP_APPEND) < 0)
                return -1;
            continue;
        }
        PyObject *item = PRP_FOREIGN(PyIter_Next(iterator));
        if (!item) {
            int status = PyErr_Occurred() ? -1 : save_item(s, obj, first, index);
            Py_DECREF(first);
            return status < 0 ? -1 : prp_op(s, OP_APPEND);
        }
        int status = prp_op(s, OP_MARK) < 0 ? -1 : save_item(s, obj, first, index++);
        Py_DECREF(first);
        int n = 1;
        while (item) {
            if (status == 0)
                status = save_item(s, obj, item, index++);
            Py_DECREF(item);
            if (status < 0)
                return -1;
            if (++n == BATCH)
                break;
            item = PRP_FOREIGN(PyIter_Next(iterator));
        }
        if (PyErr_Occurred() || prp_op(s, OP_APPENDS) < 0)
            return -1;
        if (n < BATCH)
            return 0;
    }
}

static PyObject *next_pair(PyObject *iterator)
{
    PyObject *pair = PRP_FOREIGN(PyIter_Next(iterator));
    if (pair && (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2)) {
        Py_DECREF(pair);
        PyErr_SetString(PyExc_TypeError, "dict items iterator must return 2-tuples");
        return NULL;
    }
    return pair;
}

static int save_pair(prp_saver *s, PyObject *obj, PyObject *pair)
{
    PyObject *key = PyTuple_GET_ITEM(pair, 0), *value = PyTuple_GET_ITEM(pair, 1);
    bool in_key = prp_save(s, key) < 0;
    if (!in_key && prp_save(s, value) == 0)
        return 0;
    prp_note(s, in_key ? "dictkey" : "dictvalue", obj, key, in_key ? key : value);
    return -1;
}

static int save_dictitems(prp_saver *s, PyObject *obj, PyObject *iterator)
{
    for (;;) {
        PyObject *first = next_pair(iterator);
        if (!first)
            return PyErr_Occurred() ? -1 : 0;
        if (s->proto == 0) {
            int status = save_pair(s, obj, first);
            Py_DECREF(first);
            if (status < 0 || prp_op(s, OP_SETITEM) < 0)
                return -1;
            continue;
        }
        PyObject *pair = next_pair(iterator);
        if (!pair) {
            int status = PyErr_Occurred() ? -1 : save_pair(s, obj, first);
            Py_DECREF(first);
            return status < 0 ? -1 : prp_op(s, OP_SETITEM);
        }
        int status = prp_op(s, OP_MARK) < 0 ? -1 : save_pair(s, obj, first);
        Py_DECREF(first);
        int n = 1;
        while (pair) {
            if (status == 0)
                status = save_pair(s, obj, pair);
            Py_DECREF(pair);
            if (status < 0)
                return -1;
            if (++n == BATCH)
                break;
            pair = next_pair(iterator);
        }
        if (PyErr_Occurred() || prp_op(s, OP_SETITEMS) < 0)
            return -1;
        if (n < BATCH)
            return 0;
    }
}

/* Write cls, args, kwargs and NEWOBJ_EX; below protocol 4, write a call of functools.partial(cls.__new__, cls, *args,
 * **kwargs). */
static int save_newobj_ex(prp_saver *s, PyObject *argtup, PyObject *obj)
{
    if (PyTuple_GET_SIZE(argtup) != 3) {
        PyErr_Format(prp_g.pickling_error, "length of the NEWOBJ_EX argument tuple must be exactly 3, not %zd",
                     PyTuple_GET_SIZE(argtup));
        return -1;
    }
    PyObject *cls = PyTuple_GET_ITEM(argtup, 0), *args = PyTuple_GET_ITEM(argtup, 1),
             *kwargs = PyTuple_GET_ITEM(argtup, 2);
    if (!PyType_Check(cls))
        return bad_type("first item from NEWOBJ_EX argument tuple must be a class, not %.200s", cls);
    if (!PyTuple_Check(args))
        return bad_type("second item from NEWOBJ_EX argument tuple must be a tuple, not %.200s", args);
    if (!PyDict_Check(kwargs))
        return bad_type("third item from NEWOBJ_EX argument tuple must be a dict, not %.200s", kwargs);
    if (s->proto >= 4)
        return save_part(s, "callable", obj, cls) < 0 || save_part(s, "args", obj, args) < 0 ||
                       save_part(s, "kwargs", obj, kwargs) < 0
                   ? -1
                   : prp_op(s, OP_NEWOBJ_EX);
    PyObject *new = PRP_FOREIGN(PyObject_GetAttrString(cls, "__new__")),
             *front = new ? PRP_FOREIGN(PyTuple_Pack(2, new, cls)) : NULL;
    PyObject *all = front ? PRP_FOREIGN(PySequence_Concat(front, args)) : NULL,
             *call = all ? PRP_FOREIGN(PyObject_Call(prp_g.partial, all, kwargs)) : NULL;
    PyObject *none = call ? PRP_FOREIGN(PyTuple_New(0)) : NULL;
    int status = none && save_part(s, "callable", obj, call) == 0 && prp_save(s, none) == 0 && prp_op(s, OP_REDUCE) == 0
                     ? 0
                     : -1;
    Py_XDECREF(new);
    Py_XDECREF(front);
    Py_XDECREF(all);
    Py_XDECREF(call);
    Py_XDECREF(none);
    return status;
}

static int save_newobj(prp_saver *s, PyObject *argtup, PyObject *obj)
{
    if (PyTuple_GET_SIZE(argtup) < 1)
        return bad("__newobj__ arglist is empty");
    PyObject *cls = PyTuple_GET_ITEM(argtup, 0);
    if (!PyType_Check(cls))
        return bad("args[0] from __newobj__ args is not a type");
    if (obj) {
        PyObject *own = PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_class));
        if (!own) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError))
                return -1;
            PyErr_Clear();
            own = Py_NewRef((PyObject *)Py_TYPE(obj));
        }
        Py_DECREF(own); /* we only compare the address */
        if (own != cls)
            return bad("args[0] from __newobj__ args has the wrong class");
    }
    if (save_part(s, "callable", obj, cls) < 0)
        return -1;
    PyObject *rest = PRP_FOREIGN(PyTuple_GetSlice(argtup, 1, PyTuple_GET_SIZE(argtup)));
    if (!rest)
        return -1;
    int status = save_part(s, "args", obj, rest);
    Py_DECREF(rest);
    return status < 0 ? -1 : prp_op(s, OP_NEWOBJ);
}

/* A callable named __newobj__ or __newobj_ex__ stands for an opcode. */
enum { NOT_NEWOBJ, NEWOBJ, NEWOBJ_EX };

static int stands_for_opcode(PyObject *callable)
{
    if (PyCFunction_CheckExact(callable))
        return NOT_NEWOBJ; /* the name was set by C code */
    if (PyType_Check(callable) && Py_TYPE(callable)->tp_getattro == PyType_Type.tp_getattro &&
        strncmp(((PyTypeObject *)callable)->tp_name, "__newobj", 8) != 0)
        return NOT_NEWOBJ;
    PyObject *name = PyFunction_Check(callable) ? Py_NewRef(((PyFunctionObject *)callable)->func_name)
                                                : PRP_FOREIGN(PyObject_GetAttr(callable, prp_g.str_name));
    if (!name) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
        return NOT_NEWOBJ;
    }
    int what = NOT_NEWOBJ;
    if (PyUnicode_Check(name))
        what = PyUnicode_CompareWithASCIIString(name, "__newobj__") == 0      ? NEWOBJ
               : PyUnicode_CompareWithASCIIString(name, "__newobj_ex__") == 0 ? NEWOBJ_EX
                                                                              : NOT_NEWOBJ;
    Py_DECREF(name);
    return what;
}

int prp_save_reduce(prp_saver *s, PyObject *value, PyObject *obj)
{
    Py_ssize_t size = PyTuple_GET_SIZE(value);
    if (size < 2 || size > 6)
        return bad("tuple returned by __reduce__ must contain 2 through 6 elements");
    PyObject *part[6] = {NULL};
    for (Py_ssize_t i = 0; i < size; i++)
        part[i] = PyTuple_GET_ITEM(value, i) == Py_None && i >= 2 ? NULL : PyTuple_GET_ITEM(value, i);
    PyObject *callable = part[0], *argtup = part[1], *state = part[2], *listitems = part[3], *dictitems = part[4],
             *state_setter = part[5];
    if (!PyCallable_Check(callable))
        return bad("first item of the tuple returned by __reduce__ must be callable");
    if (!PyTuple_Check(argtup))
        return bad("second item of the tuple returned by __reduce__ must be a tuple");
    if (listitems && !PyIter_Check(listitems))
        return bad_type("fourth element of the tuple returned by __reduce__ must be an iterator, not %s", listitems);
    if (dictitems && !PyIter_Check(dictitems))
        return bad_type("fifth element of the tuple returned by __reduce__ must be an iterator, not %s", dictitems);
    if (state_setter && !PyCallable_Check(state_setter))
        return bad_type("sixth element of the tuple returned by __reduce__ must be a function, not %s", state_setter);

    int newobj = s->proto >= 2 ? stands_for_opcode(callable) : NOT_NEWOBJ;
    if (newobj < 0)
        return -1;
    int status;
    if (newobj == NEWOBJ_EX)
        status = save_newobj_ex(s, argtup, obj);
    else if (newobj == NEWOBJ)
        status = save_newobj(s, argtup, obj);
    else
        status = save_part(s, "callable", obj, callable) < 0 || save_part(s, "args", obj, argtup) < 0
                     ? -1
                     : prp_op(s, OP_REDUCE);
    if (status < 0)
        return -1;

    if (obj) {
        /* Saving the arguments has already saved obj: discard this copy and use the earlier one. */
        int64_t index = prp_memo_get(&s->memo, obj);
        if (index >= 0)
            return prp_op(s, OP_POP) < 0 ? -1 : prp_write_get(s, (uint32_t)index);
        if (s->elide && Py_REFCNT(obj) <= 2) /* 2: our reference and its only holder's */
            s->elided = true;
        else if (prp_memoize(s, obj) < 0)
            return -1;
    }
    if (listitems && save_listitems(s, obj, listitems) < 0)
        return -1;
    if (dictitems && save_dictitems(s, obj, dictitems) < 0)
        return -1;
    if (!state)
        return 0;
    if (!state_setter)
        return save_part(s, "state", obj, state) < 0 ? -1 : prp_op(s, OP_BUILD);
    /* Write the call state_setter(obj, state), whose result is discarded. */
    if (save_part(s, "setter", obj, state_setter) < 0 || prp_save(s, obj) < 0 ||
        save_part(s, "state", obj, state) < 0 || prp_op(s, OP_TUPLE2) < 0 || prp_op(s, OP_REDUCE) < 0)
        return -1;
    return prp_op(s, OP_POP);
}
