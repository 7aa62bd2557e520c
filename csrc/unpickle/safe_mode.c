/* Safe mode restricts even a stream whose names are all allowed (docs/how-to/safe-loading.md).
 *
 * - Opcodes change only objects that this load created. We record the objects that names and persistent ids returned,
 *   and those results of calls that existed before the call; no opcode may change them.
 * - No array uses bytes as addresses: arrays of objects own their memory, and no other array shares it.
 * - A stream inside the stream is loaded under the same restrictions.
 * - We replace `_codecs.encode` by a function that supports one encoding.
 *
 * In every mode, pyray_ser.pickling.numpy_states rejects states of dtypes and arrays that would crash NumPy.
 */
#include "c_stack.h"
#include "context.h"

#define NESTED_RESERVE (256 * 1024) /* bytes of C stack that one nested load needs */

/* ---- objects that the load did not create ------------------------------------------------------------------------ */

static bool never_changes(PyObject *obj)
{
    return PyUnicode_CheckExact(obj) || PyLong_CheckExact(obj) || PyFloat_CheckExact(obj) || PyBytes_CheckExact(obj) ||
           PyTuple_CheckExact(obj) || PyBool_Check(obj) || PyPickleBuffer_Check(obj) || obj == Py_None;
}

/* No opcode may change code, even if this load created it. */
static bool is_code(PyObject *obj)
{
    return PyType_Check(obj) || PyFunction_Check(obj) || PyModule_Check(obj) || PyCFunction_Check(obj);
}

int prp_load_note_shared(prp_loader *L, PyObject *obj)
{
    if (is_code(obj) || never_changes(obj))
        return 0;
    if (!L->shared && !(L->shared = PRP_FOREIGN(PyDict_New())))
        return -1;
    PyObject *key = PyLong_FromVoidPtr(obj);
    int failed = key ? PyDict_SetItem(L->shared, key, obj) : -1; /* the keys are ints, so no foreign code runs */
    Py_XDECREF(key);
    return failed;
}

int prp_load_refuse_shared(prp_loader *L, PyObject *obj)
{
    int shared = is_code(obj);
    if (!shared && L->shared) {
        PyObject *key = PyLong_FromVoidPtr(obj);
        shared = key ? PyDict_Contains(L->shared, key) : -1;
        Py_XDECREF(key);
    }
    if (shared > 0)
        prp_load_malformed("a %.200s that the pickle did not make cannot be changed in safe mode",
                           Py_TYPE(obj)->tp_name);
    return shared ? -1 : 0;
}

/* ---- results of calls -------------------------------------------------------------------------------------------- */

/* Return whether `obj` is an instance of the static NumPy type with this name, or of a subclass. */
static bool is_numpy(PyObject *obj, const char *name)
{
    for (PyTypeObject *type = Py_TYPE(obj); type; type = type->tp_base)
        if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE) && strcmp(type->tp_name, name) == 0)
            return true;
    return false;
}

static int refuse_addresses(PyObject *value)
{
    if (!is_numpy(value, "numpy.ndarray"))
        return 0;
    const prp_ndarray_api *numpy = PRP_FOREIGN(prp_ndarray());
    if (!numpy)
        return -1;
    if (numpy->owns_references(value))
        return 0;
    prp_load_malformed(
        "an array of objects over a buffer, or an array over the memory of objects, is not allowed in safe mode");
    return -1;
}

PyObject *prp_load_guard(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value)
{
    if (!value)
        return NULL;
    bool shared = Py_REFCNT(value) > 1;
    /* If the call returns one of its arguments, do not record that object here. */
    for (Py_ssize_t i = 0; shared && i < n; i++)
        shared = argv[i] != value;
    if (refuse_addresses(value) < 0 || (shared && prp_load_note_shared(L, value) < 0))
        prp_load_clear(&value);
    return value;
}

/* ---- states of NumPy's objects ----------------------------------------------------------------------------------- */

/* Return whether anything except the stack, the memo and the caller refers to the object. */
static bool is_in_use(prp_loader *L, PyObject *obj)
{
    Py_ssize_t others = Py_REFCNT(obj) - 2;
    for (Py_ssize_t i = L->memo.top; others > 0 && i-- > 0;)
        others -= L->memo.entries[i] == obj;
    return others > 0;
}

int prp_load_check_state(prp_loader *L, PyObject *obj, PyObject *state)
{
    bool dtype = is_numpy(obj, "numpy.dtype");
    if (!dtype && !is_numpy(obj, "numpy.ndarray"))
        return 0;
    bool in_use = is_in_use(L, obj);
    PyObject *module = PRP_FOREIGN(PyImport_ImportModule("pyray_ser.pickling.numpy_states"));
    PyObject *result = NULL;
    if (module)
        result = PRP_FOREIGN(PyObject_CallMethod(module, dtype ? "check_dtype" : "check_array", "OOOO", obj, state,
                                                 in_use ? Py_True : Py_False, L->allow ? Py_True : Py_False));
    Py_XDECREF(module);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* ---- names with a special meaning -------------------------------------------------------------------------------- */

static PyObject *latin1_encode(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2 || !PyUnicode_CheckExact(args[0]) || !PyUnicode_CheckExact(args[1]) ||
        (PyUnicode_CompareWithASCIIString(args[1], "latin1") != 0 &&
         PyUnicode_CompareWithASCIIString(args[1], "latin-1") != 0))
        return prp_load_malformed("_codecs.encode is allowed only for a str and \"latin1\" in safe mode");
    return PyUnicode_AsLatin1String(args[0]);
}

static PyMethodDef latin1_method = {"encode", (PyCFunction)(void (*)(void))latin1_encode, METH_FASTCALL,
                                    PyDoc_STR("Encode a str as latin-1: the only use of _codecs.encode in safe mode.")};

/* Execute load_stream(stream, *buffers) under the restrictions of `allow`. */
static PyObject *load_nested(PyObject *allow, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "load_stream() takes a stream and its buffers");
        return NULL;
    }
    if (prp_stack_low(NESTED_RESERVE)) {
        PyErr_SetString(PyExc_RecursionError, "streams are nested too deeply inside each other");
        return NULL;
    }
    if (Py_EnterRecursiveCall(" while loading a stream inside a stream"))
        return NULL;
    PyObject *value = NULL, *buffers = PRP_FOREIGN(PyTuple_New(nargs - 1));
    for (Py_ssize_t i = 1; buffers && i < nargs; i++)
        PyTuple_SET_ITEM(buffers, i - 1, Py_NewRef(args[i]));
    prp_loader *L = buffers ? prp_loader_acquire() : NULL;
    if (L) {
        if (prp_loader_set_buffers(L, buffers) == 0 && prp_loader_set_allow(L, allow) == 0)
            value = prp_load_data(L, args[0]);
        prp_loader_release(L);
    }
    PRP_FOREIGN_VOID(Py_XDECREF(buffers));
    Py_LeaveRecursiveCall();
    return value;
}

static PyMethodDef nested_method = {
    "load_stream", (PyCFunction)(void (*)(void))load_nested, METH_FASTCALL,
    PyDoc_STR("Load a stream inside a stream, under the restrictions of the outer one.")};

static bool is_name(PyObject *module, PyObject *name, const char *wanted_module, const char *wanted_name)
{
    return PyUnicode_CompareWithASCIIString(name, wanted_name) == 0 &&
           PyUnicode_CompareWithASCIIString(module, wanted_module) == 0;
}

bool prp_load_is_nested_stream(PyObject *module, PyObject *name)
{
    return is_name(module, name, "pyray_ser.reconstruct", "load_stream");
}

PyObject *prp_load_nested_stream(prp_loader *L)
{
    return PRP_FOREIGN(PyCFunction_NewEx(&nested_method, L->allow, NULL));
}

PyObject *prp_load_safe_codec(PyObject *module, PyObject *name)
{
    return is_name(module, name, "_codecs", "encode") ? PRP_FOREIGN(PyCFunction_NewEx(&latin1_method, NULL, NULL))
                                                      : NULL;
}
