/* Implements the value stack and the mark stack. Both are on the heap and grow by half. So memory and the stream's
 * length limit the nesting depth of a stream, but the C stack does not. */
#include "unpickler.h"

int prp_load_grow_stack(prp_loader *L)
{
    size_t used = (size_t)(L->sp - L->stack), room = (size_t)(L->limit - L->stack),
           fence = (size_t)(L->fence - L->stack);
    size_t larger = room + room / 2;
    if (larger > PY_SSIZE_T_MAX / sizeof(PyObject *)) {
        PyErr_NoMemory();
        return -1;
    }
    PyObject **stack = PyMem_Realloc(L->stack, larger * sizeof(PyObject *));
    if (!stack) {
        PyErr_NoMemory();
        return -1;
    }
    L->stack = stack;
    L->sp = stack + used;
    L->fence = stack + fence;
    L->limit = stack + larger;
    return 0;
}

PRP_COLD int prp_load_grow_marks(prp_loader *L)
{
    size_t larger = (size_t)L->mark_capacity * 3 / 2;
    prp_mark *marks =
        larger > PY_SSIZE_T_MAX / sizeof(prp_mark) ? NULL : PyMem_Realloc(L->marks, larger * sizeof(prp_mark));
    if (!marks) {
        PyErr_NoMemory();
        return -1;
    }
    L->marks = marks;
    L->mark_capacity = (Py_ssize_t)larger;
    return 0;
}

Py_ssize_t prp_load_pop_mark(prp_loader *L)
{
    if (L->mark_count == 0) {
        PyErr_SetString(prp_unpickling_error, "could not find MARK");
        return -1;
    }
    Py_ssize_t last = L->mark_count - 1;
    if (L->marks[last].kind != PRP_MARK_PLAIN && prp_load_make_pending(L, last) < 0)
        return -1;
    L->mark_count = last;
    L->fence = L->stack + (last ? L->marks[last - 1].at : 0);
    return L->marks[last].at;
}

int prp_load_clear_stack(prp_loader *L, Py_ssize_t height)
{
    int failed = 0;
    while (L->sp - L->stack > height) {
        PyObject *value = *--L->sp;
        if (value && prp_load_drop(L, value) < 0)
            failed = -1;
    }
    return failed;
}

void prp_load_discard_stack(prp_loader *L)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    while (L->sp > L->stack) {
        PyObject *object = *--L->sp;
        PRP_FOREIGN_VOID(Py_XDECREF(object));
    }
    L->mark_count = 0;
    L->fence = L->stack;
    PyErr_Restore(type, value, traceback);
}

/* Return whether the value can be freed without running foreign code. */
static inline bool inert(PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type || type == &PyBytes_Type ||
           type == &PyBool_Type;
}

static bool dies_quietly(PyObject *value)
{
    if (inert(value))
        return true;
    if (!PyTuple_CheckExact(value))
        return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); i++) {
        PyObject *item = PyTuple_GET_ITEM(value, i);
        if (item && Py_REFCNT(item) == 1 && !inert(item))
            return false;
    }
    return true;
}

int prp_load_drop_last(prp_loader *L, PyObject *value)
{
    if (dies_quietly(value)) {
        Py_DECREF(value);
        return 0;
    }
    bool paused = L->collector_paused;
    int failed = prp_load_foreign(L);
    PRP_FOREIGN_VOID(Py_DECREF(value));
    if (paused)
        prp_load_own(L);
    return failed;
}
