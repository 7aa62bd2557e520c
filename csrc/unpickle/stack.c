/* The stack of values and the stack of marks. Both live on the heap and grow by half, so nesting in a stream is bounded by
 * memory and by the stream's own length, never by the C stack. */
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

void prp_load_clear_stack(prp_loader *L, Py_ssize_t height)
{
    while (L->sp - L->stack > height) {
        PyObject *value = *--L->sp;
        Py_XDECREF(value);
    }
}
