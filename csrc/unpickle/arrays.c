/* Executes the calls by which pickles create numpy arrays, without running Python code.
 *
 *     numpy.ndarray(shape, dtype, buffer, offset, strides)         written by this package
 *     numpy._core.numeric._frombuffer(buffer, dtype, shape, order)    written by numpy with protocol 5
 *
 * The array uses the buffer's memory. Its base is the object that keeps this memory alive: for foreign memory, the
 * owner. In store mode arrays are permanently read-only. Nothing here imports numpy: a numpy callable on the stack
 * implies that numpy is already imported. Calls with other arguments are executed normally.
 */
#include "unpickler.h"

static PyObject *from_buffer; /* numpy's _frombuffer: an owned reference that is never released */
PyObject *prp_load_array_callables[2];

bool prp_load_array_known(PyObject *callable)
{
    if (from_buffer)
        return callable == from_buffer;
    if (!PyFunction_Check(callable) ||
        PyUnicode_CompareWithASCIIString(((PyFunctionObject *)callable)->func_name, "_frombuffer") != 0)
        return false;
    PyObject *modules = PyImport_GetModuleDict(), *found;
    int known = prp_imported(modules, "numpy._core.numeric", "_frombuffer", &found);
    if (known == 0)
        (void)prp_imported(modules, "numpy.core.numeric", "_frombuffer", &found);
    if (found != callable) {
        Py_XDECREF(found);
        return false;
    }
    from_buffer = prp_load_array_callables[0] = found;
    return true;
}

static bool all_bytes(const Py_buffer *view)
{
    return view->len >= 0 && PyBuffer_IsContiguous(view, 'C');
}

int prp_load_array_memory(prp_loader *L, PyObject *buffer, prp_array_memory *memory)
{
    PyObject *owner;
    memory->flags = 0;
    if (prp_load_foreign_buffer(buffer, &memory->data, &memory->len, &owner)) {
        memory->base = Py_NewRef(owner);
        memory->flags = L->array_flags & PRP_ARRAY_WRITABLE;
        return 1;
    }
    if (PyBytes_CheckExact(buffer) && L->array_flags & PRP_ARRAY_WRITABLE) {
        /* In mode "c", arrays with in-band data are private and writable, like all other arrays in this mode. */
        memory->base = PyByteArray_FromObject(buffer);
        if (!memory->base)
            return -1;
        memory->data = (const uint8_t *)PyByteArray_AS_STRING(memory->base);
        memory->len = (size_t)PyByteArray_GET_SIZE(memory->base);
        memory->flags = PRP_ARRAY_WRITABLE;
        return 1;
    }
    if (PyBytes_CheckExact(buffer)) {
        memory->data = (const uint8_t *)PyBytes_AS_STRING(buffer);
        memory->len = (size_t)PyBytes_GET_SIZE(buffer);
        memory->base = Py_NewRef(buffer);
        return 1;
    }
    const Py_buffer *view;
    if (PyPickleBuffer_Check(buffer) && !L->owner) {
        view = PyPickleBuffer_GetBuffer(buffer);
        if (!view)
            return -1;
        /* If an exporter does not count its exports (ndarray, bytes), a reference to the exporter is enough to keep its
         * memory valid. */
        if (view->obj && all_bytes(view) && Py_TYPE(view->obj)->tp_as_buffer &&
            !Py_TYPE(view->obj)->tp_as_buffer->bf_releasebuffer) {
            memory->data = view->buf;
            memory->len = (size_t)view->len;
            memory->base = Py_NewRef(view->obj);
            memory->flags = view->readonly ? 0 : PRP_ARRAY_WRITABLE;
            return 1;
        }
    }
    if (!PyObject_CheckBuffer(buffer))
        return 0;
    /* Exporting a buffer may run foreign code. */
    bool paused = L->collector_paused;
    PyObject *base = prp_load_foreign(L) < 0 ? NULL : PRP_FOREIGN(PyMemoryView_FromObject(buffer));
    if (base && L->owner && !(L->array_flags & PRP_ARRAY_WRITABLE) && !PyMemoryView_GET_BUFFER(base)->readonly)
        Py_SETREF(base, PRP_FOREIGN(PyObject_CallMethod(base, "toreadonly", NULL)));
    if (paused)
        prp_load_own(L);
    if (!base)
        return -1;
    view = PyMemoryView_GET_BUFFER(base);
    if (!all_bytes(view)) {
        Py_DECREF(base);
        return 0;
    }
    memory->data = view->buf;
    memory->len = (size_t)view->len;
    memory->base = base;
    memory->flags = view->readonly ? 0 : PRP_ARRAY_WRITABLE;
    return 1;
}

static PyObject *build(prp_loader *L, PyObject *shape, PyObject *dtype, PyObject *buffer, int64_t offset,
                       PyObject *strides, char order, int flags)
{
    const prp_ndarray_api *numpy = PRP_FOREIGN(prp_ndarray());
    prp_array_memory memory;
    if (!numpy || prp_load_array_memory(L, buffer, &memory) <= 0)
        return NULL;
    PyObject *array = PRP_FOREIGN(numpy->from_parts(shape, dtype, offset, strides, order == 'F', memory.data,
                                                    memory.len, memory.base, memory.flags | flags));
    Py_DECREF(memory.base);
    return array;
}

PyObject *prp_load_array_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n)
{
    if (callable != from_buffer || n != 4 || !PyUnicode_CheckExact(argv[3]) || PyUnicode_GET_LENGTH(argv[3]) != 1)
        return NULL;
    Py_UCS4 order = PyUnicode_READ_CHAR(argv[3], 0);
    if ((order != 'C' && order != 'F') || PyUnicode_Check(argv[1]))
        return NULL;
    return build(L, argv[2], argv[1], argv[0], 0, NULL, (char)order, PRP_ARRAY_EXACT);
}

PyObject *prp_load_array_new(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n)
{
    if (strcmp(((PyTypeObject *)callable)->tp_name, "numpy.ndarray") != 0 || n < 3 || n > 5 || argv[2] == Py_None)
        return NULL;
    prp_load_array_callables[1] = callable; /* a static type */
    int64_t offset = 0;
    if (n > 3) {
        int overflow = 0;
        if (!PyLong_CheckExact(argv[3]))
            return NULL;
        offset = PyLong_AsLongLongAndOverflow(argv[3], &overflow);
        if (overflow)
            return NULL;
    }
    return build(L, argv[0], argv[1], argv[2], offset, n > 4 ? argv[4] : NULL, 'C', 0);
}

/* Match the opcodes with which numpy sets the byte order of a numeric dtype, with or without memo opcodes: (3, order,
 * None, None, None, -1, -1, 0) and BUILD. Return the length of these opcodes, or 0 if other opcodes follow. */
static Py_ssize_t match_order(const uint8_t *p, const uint8_t *end, char *order, bool memo[3])
{
    static const uint8_t head[] = {0x28, 0x4b, 3, 0x8c, 1};
    static const uint8_t tail[] = {0x4e, 0x4e, 0x4e, 0x4a, 0xff, 0xff, 0xff, 0xff,
                                   0x4a, 0xff, 0xff, 0xff, 0xff, 0x4b, 0,    0x74};
    const uint8_t *start = p;
    if (end - p < (Py_ssize_t)(sizeof(head) + 1 + sizeof(tail) + 1 + 3))
        return 0; /* a complete pickle has more than three bytes after this */
    p += memo[0] = *p == 0x94;
    if (memcmp(p, head, sizeof(head)) != 0)
        return 0;
    p += sizeof(head);
    *order = (char)*p++;
    p += memo[1] = *p == 0x94;
    if (memcmp(p, tail, sizeof(tail)) != 0)
        return 0;
    p += sizeof(tail);
    p += memo[2] = *p == 0x94;
    return *p == 0x62 ? p + 1 - start : 0;
}

PyObject *prp_load_array_dtype(prp_loader *L, PyObject *const *argv, Py_ssize_t n)
{
    char name[8], order;
    bool memo[3];
    if (n != 3 || !PyUnicode_CheckExact(argv[0]) || !PyUnicode_IS_COMPACT_ASCII(argv[0]) || argv[1] != Py_False ||
        argv[2] != Py_True)
        return NULL;
    Py_ssize_t length = PyUnicode_GET_LENGTH(argv[0]);
    const char *kind = (const char *)PyUnicode_1BYTE_DATA(argv[0]);
    if (length < 2 || length > (Py_ssize_t)sizeof(name) - 1 || !strchr("biufc", kind[0]))
        return NULL;
    Py_ssize_t taken = match_order(L->p, L->end, &order, memo);
    if (!taken || (order != '<' && order != '>' && order != '|'))
        return NULL;
    const prp_ndarray_api *numpy = PRP_FOREIGN(prp_ndarray());
    if (!numpy)
        return NULL;
    name[0] = order;
    memcpy(name + 1, kind, (size_t)length);
    PyObject *dtype = numpy->plain_dtype(name, (size_t)length + 1);
    if (!dtype)
        return NULL;
    PyObject *text = NULL, *state = NULL;
    bool failed = false;
    if (memo[1] || memo[2])
        failed = !(text = PyUnicode_FromStringAndSize(&order, 1)) ||
                 !(state = Py_BuildValue("(iOOOOiii)", 3, text, Py_None, Py_None, Py_None, -1, -1, 0));
    PyObject *entries[3] = {dtype, text, state};
    for (int i = 0; i < 3 && !failed; i++)
        failed = memo[i] && prp_load_memoize(L, entries[i]) < 0;
    Py_XDECREF(text);
    Py_XDECREF(state);
    if (failed)
        Py_CLEAR(dtype);
    else
        L->p += taken;
    return dtype;
}

int prp_load_array_seal(prp_loader *L, PyObject *array)
{
    if (L->array_flags & PRP_ARRAY_WRITABLE)
        return 0;
    /* Only numpy has a type with this name whose instances export a buffer. */
    for (PyTypeObject *type = Py_TYPE(array); type; type = type->tp_base)
        if (strcmp(type->tp_name, "numpy.ndarray") == 0) {
            const prp_ndarray_api *numpy = PRP_FOREIGN(prp_ndarray());
            return numpy ? numpy->seal(array) : -1;
        }
    return 0;
}
