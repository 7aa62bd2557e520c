/* Implements the opcodes that add elements to containers: APPENDS, SETITEMS, ADDITEMS and their single-item forms.
 *
 * We move elements directly from the stack into exact built-in containers. For other objects we call the methods that
 * PEP 307 requires: extend or append, __setitem__, add.
 */
#include "unpickler.h"

static PyObject *text_extend, *text_append; /* interned */
static bool bytes_warn; /* with python -b, comparing bytes with str emits a warning, which may run foreign code */

int prp_load_items_init(void)
{
    PyObject *flags = PySys_GetObject("flags"); /* borrowed */
    PyObject *flag = flags ? PyObject_GetAttrString(flags, "bytes_warning") : NULL;
    bytes_warn = !flag || PyObject_IsTrue(flag) != 0;
    Py_XDECREF(flag);
    if (PyErr_Occurred())
        return -1;
    text_extend = PyUnicode_InternFromString("extend");
    text_append = PyUnicode_InternFromString("append");
    return text_extend && text_append ? 0 : -1;
}

/* Return whether this key can be hashed and compared without running foreign code. */
static inline bool inert_key(PyObject *key)
{
    PyTypeObject *type = Py_TYPE(key);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type ||
           (type == &PyBytes_Type && !bytes_warn) || key == Py_None || type == &PyBool_Type;
}

bool prp_load_inert_keys(PyObject *const *pairs, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < 2 * n; i += 2)
        if (!inert_key(pairs[i]))
            return false;
    return true;
}

int prp_load_dict_fill(prp_loader *L, PyObject *dict, PyObject **pairs, Py_ssize_t n)
{
    /* Replacing the value of an existing key may free the old value. The stack keeps the new values alive. */
    bool foreign = PyDict_GET_SIZE(dict) > 0;
    if (foreign && prp_load_foreign(L) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < 2 * n; i += 2) {
        if (!foreign && !inert_key(pairs[i])) {
            foreign = true;
            if (prp_load_foreign(L) < 0)
                return -1;
        }
        if (PRP_FOREIGN(PyDict_SetItem(dict, pairs[i], pairs[i + 1])) < 0)
            return -1;
    }
    if (foreign)
        prp_load_own(L);
    return 0;
}

/* Call append() for each element from `at` on. */
static int append_each(prp_loader *L, PyObject *list, Py_ssize_t at, Py_ssize_t n)
{
    PyObject *method = PRP_FOREIGN(PyObject_GetAttr(list, text_append));
    int failed = method ? 0 : -1;
    for (Py_ssize_t i = 0; i < n && !failed; i++) {
        PyObject *result = PRP_FOREIGN(PyObject_CallOneArg(method, L->stack[at + i]));
        failed = result ? 0 : -1;
        PRP_FOREIGN_VOID(Py_XDECREF(result));
    }
    PRP_FOREIGN_VOID(Py_XDECREF(method));
    return failed ? -1 : prp_load_clear_stack(L, at);
}

/* Add the n elements from `at` on to an object that is not an exact list, with extend() if it exists, else with
 * append(). */
static int extend_other(prp_loader *L, PyObject *list, Py_ssize_t at, Py_ssize_t n)
{
    PyTypeObject *type = Py_TYPE(list);
    PyObject *method = NULL, *result;
    /* If attribute lookup is the standard one, we can call the type's method without binding it. */
    PyObject *known = type->tp_getattro == PyObject_GenericGetAttr ? prp_type_lookup(type, text_extend) : NULL;
    if (!known) {
        int has = PRP_FOREIGN(prp_optional_attr(list, text_extend, &method));
        if (has <= 0)
            return has < 0 ? -1 : append_each(L, list, at, n);
    }
    PyObject *items = PRP_FOREIGN(prp_load_list_of(L->stack + at, n));
    if (!items) {
        Py_XDECREF(method);
        Py_XDECREF(known);
        return -1;
    }
    L->sp = L->stack + at;
    if (known)
        result = PRP_FOREIGN(PyObject_CallMethodOneArg(list, text_extend, items));
    else
        result = PRP_FOREIGN(PyObject_CallOneArg(method, items));
    PRP_FOREIGN_VOID(Py_DECREF(items));
    PRP_FOREIGN_VOID(Py_XDECREF(method));
    PRP_FOREIGN_VOID(Py_XDECREF(known));
    PRP_FOREIGN_VOID(Py_XDECREF(result));
    return result ? 0 : -1;
}

int prp_load_appends(prp_loader *L, Py_ssize_t at)
{
    PyObject **first = L->stack + at;
    if (first > L->sp || first <= L->fence)
        return prp_load_underflow(L);
    Py_ssize_t n = L->sp - first;
    if (n == 0)
        return 0;
    PyObject *list = first[-1];
    if (prp_load_may_change(L, list) < 0)
        return -1;
    if (PyList_CheckExact(list)) {
        L->sp = first;
        return prp_list_extend_stealing(list, first, n);
    }
    if (prp_load_foreign(L) < 0 || extend_other(L, list, at, n) < 0)
        return -1;
    prp_load_own(L);
    return 0;
}

int prp_load_setitems(prp_loader *L, Py_ssize_t at)
{
    PyObject **first = L->stack + at;
    if (first > L->sp || first <= L->fence)
        return prp_load_underflow(L);
    Py_ssize_t n = L->sp - first;
    if (n == 0)
        return 0;
    if (n % 2) {
        prp_load_malformed("odd number of items for SETITEMS");
        return -1;
    }
    PyObject *dict = first[-1];
    if (prp_load_may_change(L, dict) < 0)
        return -1;
    int failed = 0;
    if (PyDict_CheckExact(dict)) {
        failed = prp_load_dict_fill(L, dict, first, n / 2);
    } else {
        failed = prp_load_foreign(L);
        for (Py_ssize_t i = 0; i < n && !failed; i += 2)
            failed = PRP_FOREIGN(PyObject_SetItem(dict, L->stack[at + i], L->stack[at + i + 1]));
        prp_load_own(L);
    }
    return failed ? -1 : prp_load_clear_stack(L, at);
}

int prp_load_additems(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    if (at < 0)
        return -1;
    PyObject **first = L->stack + at;
    if (first > L->sp || first <= L->fence)
        return prp_load_underflow(L);
    Py_ssize_t n = L->sp - first;
    if (n == 0)
        return 0;
    PyObject *set = first[-1];
    if (prp_load_may_change(L, set) < 0)
        return -1;
    int failed = 0;
    if (PySet_CheckExact(set)) {
        bool foreign = false;
        for (Py_ssize_t i = 0; i < n && !failed; i++) {
            if (!foreign && !inert_key(L->stack[at + i])) {
                foreign = true;
                failed = prp_load_foreign(L);
            }
            if (!failed)
                failed = PRP_FOREIGN(PySet_Add(set, L->stack[at + i]));
        }
    } else {
        PyObject *method = prp_load_foreign(L) < 0 ? NULL : PRP_FOREIGN(PyObject_GetAttrString(set, "add"));
        failed = method ? 0 : -1;
        for (Py_ssize_t i = 0; i < n && !failed; i++) {
            PyObject *result = PRP_FOREIGN(PyObject_CallOneArg(method, L->stack[at + i]));
            failed = result ? 0 : -1;
            PRP_FOREIGN_VOID(Py_XDECREF(result));
        }
        PRP_FOREIGN_VOID(Py_XDECREF(method));
    }
    prp_load_own(L);
    return failed ? -1 : prp_load_clear_stack(L, at);
}
