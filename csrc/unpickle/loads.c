/* Implements the module function loads(), which parses its arguments itself.
 *
 * A general parser of keyword arguments would take as long as loading a small object. So we first compare names by
 * identity (the compiler interns the names in a call), and omitted options cost nothing.
 */
#include "context.h"

enum { FIX_IMPORTS, ENCODING, ERRORS, BUFFERS, ALLOW, OPTIONS };

static PyObject *option_names[OPTIONS]; /* interned str objects */

/* Return the index of the option with this keyword, or -1 with an exception. */
static PRP_COLD int option_of(PyObject *name)
{
    for (int i = 0; i < OPTIONS; i++)
        if (name == option_names[i])
            return i;
    for (int i = 0; i < OPTIONS; i++) {
        int same = PyObject_RichCompareBool(name, option_names[i], Py_EQ);
        if (same)
            return same < 0 ? -1 : i;
    }
    PyErr_Format(PyExc_TypeError, "loads() got an unexpected keyword argument '%U'", name);
    return -1;
}

static bool given(PyObject *value)
{
    return value && value != Py_None;
}

static int set_text(prp_loader *L, PyObject *encoding, PyObject *errors)
{
    if ((given(encoding) && !PyUnicode_Check(encoding)) || (given(errors) && !PyUnicode_Check(errors))) {
        PyErr_SetString(PyExc_TypeError, "encoding and errors must be str");
        return -1;
    }
    return prp_loader_set_strings(L, given(encoding) ? encoding : NULL, given(errors) ? errors : NULL);
}

/* Set options from arbitrary keywords. Return 0 or -1. */
static PRP_COLD int set_options(prp_loader *L, PyObject *const *given_values, PyObject *kwnames)
{
    PyObject *values[OPTIONS] = {NULL};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        int which = option_of(PyTuple_GET_ITEM(kwnames, i));
        if (which < 0)
            return -1;
        values[which] = given_values[i];
    }
    if ((values[BUFFERS] && prp_loader_set_buffers(L, values[BUFFERS]) < 0) ||
        (values[ALLOW] && prp_loader_set_allow(L, values[ALLOW]) < 0))
        return -1;
    if (values[FIX_IMPORTS]) {
        int truth = PRP_FOREIGN(PyObject_IsTrue(values[FIX_IMPORTS]));
        if (truth < 0)
            return -1;
        L->fix_imports = truth;
    }
    return values[ENCODING] || values[ERRORS] ? set_text(L, values[ENCODING], values[ERRORS]) : 0;
}

/* Set options in the common case: `buffers` is a list or tuple, and `allow` is the set used last. The machine borrows
 * both, because the caller keeps its arguments alive during the call. For any other arguments, set nothing and return
 * false. */
static inline bool set_usual(prp_loader *L, PyObject *const *values, PyObject *kwnames)
{
    Py_ssize_t n = PyTuple_GET_SIZE(kwnames), i = 0;
    PyObject *buffers = NULL, *allow = NULL;
    if (i < n && PyTuple_GET_ITEM(kwnames, i) == option_names[BUFFERS]) {
        buffers = values[i++];
        if (!PyList_CheckExact(buffers) && !PyTuple_CheckExact(buffers))
            return false;
    }
    if (i < n && PyTuple_GET_ITEM(kwnames, i) == option_names[ALLOW]) {
        allow = values[i++];
        uint32_t place = L->context->last_set;
        const prp_kept_set *kept = &L->context->sets[place];
        L->allow_number = kept->number;
        L->allow_place = place;
        if (allow != kept->set) {
            if (allow != Py_None)
                return false;
            allow = NULL;
        }
    }
    if (i < n)
        return false;
    L->buffers = buffers;
    L->buffer_next = 0;
    L->allow = allow;
    return true;
}

PyObject *prp_load_data(prp_loader *L, PyObject *data)
{
    if (PRP_LIKELY(PyBytes_CheckExact(data))) {
        prp_loader_memory(L, (const uint8_t *)PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
        return prp_load(L);
    }
    Py_buffer view;
    if (PRP_FOREIGN(PyObject_GetBuffer(data, &view, PyBUF_CONTIG_RO)) < 0)
        return NULL;
    prp_loader_memory(L, view.buf, (size_t)view.len);
    PyObject *value = prp_load(L);
    PRP_FOREIGN_VOID(PyBuffer_Release(&view));
    return value;
}

static PyObject *loads(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    (void)module;
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError, "loads() takes exactly 1 positional argument (%zd given)", nargs);
        return NULL;
    }
    prp_loader *L = prp_loader_acquire();
    if (!L)
        return NULL;
    bool borrowed = kwnames && set_usual(L, args + 1, kwnames);
    PyObject *value = kwnames && !borrowed && set_options(L, args + 1, kwnames) < 0 ? NULL : prp_load_data(L, args[0]);
    if (borrowed)
        L->buffers = L->allow = NULL;
    prp_loader_release(L);
    return value;
}

PyDoc_STRVAR(loads_doc,
             "loads(data, /, *, fix_imports=True, encoding=None, errors=None, buffers=(), allow=None)\n"
             "--\n"
             "\n"
             "Read one object from a pickle in memory.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "data : bytes-like\n"
             "    A pickle of protocol 0 to 5; what follows its end is ignored.\n"
             "fix_imports : bool\n"
             "    Map names of Python 2 to those of Python 3 in pickles of protocol 0 to 2.\n"
             "encoding, errors : str\n"
             "    How 8-bit strings of Python 2 are decoded: ``\"ASCII\"`` and ``\"strict\"`` unless given; "
             "``encoding=\"bytes\"``\n"
             "    reads them as `bytes`.\n"
             "buffers : iterable of buffers, optional\n"
             "    The out-of-band buffers, in the order in which `dumps` handed them to its ``buffer_callback``.\n"
             "allow : collection of str or callable, optional\n"
             "    Safe mode. The globals that the pickle may name: ``\"module:qualname\"`` strings, or a predicate\n"
             "    ``(module, qualname) -> bool``. `pyray_ser.util.SAFE_NUMPY` is a ready set. A frozenset is used as "
             "it is, any\n"
             "    other collection is copied first. Allowed classes still run their own code.\n"
             "\n"
             "Returns\n"
             "-------\n"
             "object\n"
             "    The object.\n"
             "\n"
             "Raises\n"
             "------\n"
             "UnpicklingError\n"
             "    The data is no pickle, or names a global that `allow` does not.\n"
             "EOFError\n"
             "    The data ends before the pickle does.\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> pyray_ser.loads(pyray_ser.dumps({\"a\": 1}), allow=())\n"
             "{'a': 1}\n");

static PyMethodDef loads_method = {"loads", (PyCFunction)(void (*)(void))loads, METH_FASTCALL | METH_KEYWORDS,
                                   loads_doc};

PyObject *prp_loads_function(PyObject *module_name)
{
    static const char *const texts[OPTIONS] = {"fix_imports", "encoding", "errors", "buffers", "allow"};
    for (int i = 0; i < OPTIONS; i++)
        if (!option_names[i] && !(option_names[i] = PyUnicode_InternFromString(texts[i])))
            return NULL;
    return PyCFunction_NewEx(&loads_method, NULL, module_name);
}
