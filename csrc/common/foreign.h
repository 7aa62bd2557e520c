/* Macros that mark every call that can run foreign Python code: a hook, a finalizer, the garbage collector or another
 * thread.
 *
 *     PRP_FOREIGN(call)        evaluates `call`, which returns a pointer (NULL: exception) or an int (-1: exception)
 *     PRP_FOREIGN_VOID(call)   the same for a call that returns nothing or cannot fail
 *     PRP_FOREIGN_HERE()       a point inside one of our own helpers
 *
 * After such a point, look up all borrowed or cached values again.
 *
 * A build with PRP_INTRUDER (PYRAY_SER_INTRUDER=1) runs the "intruder" before each such call. The intruder is a Python
 * callable, or a C function in a capsule named PRP_INTRUDER_CAPSULE; `_set_intruder` of each extension sets it. The
 * intruder may do anything that Python code may do at this point. If `may_raise` is true, the intruder may also raise
 * an exception; the macro then skips the call and fails with that exception. In every other build the macros expand
 * to the call itself. tests/unit/pickling/test_foreign_calls.py finds calls that are not marked.
 */
#ifndef PRP_FOREIGN_H
#define PRP_FOREIGN_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#define PRP_INTRUDER_CAPSULE "pyray_ser.intruder"

/* Return 0 or, if `may_raise` is true, -1 with an exception. The caller holds the GIL, and no exception is set. */
typedef int (*prp_intruder_function)(const char *file, int line, int may_raise);

#ifdef PRP_INTRUDER

/* Each extension has one intruder: every object file defines it, and the linker keeps one of the definitions. */
typedef struct {
    prp_intruder_function function;
    PyObject *object; /* owned reference: the callable, or the capsule that keeps `function` valid */
} prp_intruder_state;
__attribute__((weak, visibility("hidden"))) prp_intruder_state prp_intruder;

static inline int prp_intrude(const char *file, int line, bool may_raise)
{
    if (!prp_intruder.object)
        return 0;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    may_raise = may_raise && !type;
    PyObject *object = Py_NewRef(prp_intruder.object);
    int status;
    if (prp_intruder.function) {
        status = prp_intruder.function(file, line, may_raise);
    } else {
        PyObject *result = PyObject_CallFunction(object, "siO", file, line, may_raise ? Py_True : Py_False);
        status = result ? 0 : -1;
        Py_XDECREF(result);
    }
    if (status < 0 && !may_raise)
        PyErr_WriteUnraisable(object);
    Py_DECREF(object);
    if (status < 0 && may_raise)
        return -1;
    PyErr_Restore(type, error, trace);
    return 0;
}

#define PRP_FOREIGN_FAILED(call) \
    ((__typeof__(call))(intptr_t)(__builtin_classify_type(call) == 5 /* pointer */ ? 0 : -1))
#define PRP_FOREIGN(call) \
    (prp_intrude(__FILE__, __LINE__, true) < 0 ? PRP_FOREIGN_FAILED(call) : (__typeof__(call))(call))
#define PRP_FOREIGN_VOID(call) (prp_intrude(__FILE__, __LINE__, false), (call))
#define PRP_FOREIGN_HERE() ((void)prp_intrude(__FILE__, __LINE__, false))

#else

#define PRP_FOREIGN(call) (call)
#define PRP_FOREIGN_VOID(call) (call)
#define PRP_FOREIGN_HERE() ((void)0)

#endif

/* Return whether this build supports an intruder. */
static inline int prp_has_intruder(void)
{
#ifdef PRP_INTRUDER
    return 1;
#else
    return 0;
#endif
}

/* Set the intruder of this extension: a callable `(file, line, may_raise)`, a capsule, or None. Return 0 or -1. */
static inline int prp_set_intruder(PyObject *object)
{
#ifdef PRP_INTRUDER
    prp_intruder_function function = NULL;
    if (PyCapsule_CheckExact(object)) {
        void *pointer = PyCapsule_GetPointer(object, PRP_INTRUDER_CAPSULE);
        if (!pointer)
            return -1;
        memcpy(&function, &pointer, sizeof function);
    } else if (object != Py_None && !PyCallable_Check(object)) {
        PyErr_Format(PyExc_TypeError, "the intruder must be a callable, a capsule or None, not %.200s",
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *old = prp_intruder.object;
    prp_intruder.function = function;
    prp_intruder.object = object == Py_None ? NULL : Py_NewRef(object);
    Py_XDECREF(old);
    return 0;
#else
    (void)object;
    PyErr_SetString(PyExc_NotImplementedError, "built without PYRAY_SER_INTRUDER=1");
    return -1;
#endif
}

#endif
