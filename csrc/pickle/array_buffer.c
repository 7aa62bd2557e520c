/* Creates the PickleBuffer of an exact ndarray without the cost of numpy's own buffer export.
 *
 * For each buffer request, numpy builds the format string again in new memory and compares it with the previous one.
 * This takes half of the time needed to write a small array. For plain numbers in native order the format is one of 18,
 * and the strides of a contiguous array follow from its shape. So an exporter of our own replaces numpy's: it holds the
 * array, and the shape and strides that views point to (numpy may replace the array's own shape and strides while a
 * view exists).
 *
 * Guarantee: a view has the same bytes, format, shape, strides and flags as numpy's view; only its `obj` differs. If
 * code has since changed the array in place (its shape, dtype or memory), the array itself handles the requests. An
 * exporter of the transpose handles its requests itself even then, because numpy's transpose would not have changed
 * with the array.
 *
 * The protocol is PEP 3118.
 */
#include "array_buffer.h"

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#include <numpy/ndarraytypes.h>

#include <stddef.h>
#include <string.h>

typedef struct {
    PyObject_VAR_HEAD     /* ob_size: 2 * nd */
    PyArrayObject *array; /* owned */
    const char *format;   /* static */
    void *data;           /* the array's values when this exporter was created */
    Py_ssize_t len, itemsize;
    int nd;
    bool readonly;
    bool transposed;   /* exports the transpose of an array in Fortran order, as it was at creation */
    Py_ssize_t dims[]; /* shape, then strides in C order */
} array_buffer;

/* Indexed by numpy's type number. */
static const struct {
    const char *format;
    size_t size;
} elements[] = {
    [NPY_BOOL] = {"?", sizeof(npy_bool)},
    [NPY_BYTE] = {"b", sizeof(npy_byte)},
    [NPY_UBYTE] = {"B", sizeof(npy_ubyte)},
    [NPY_SHORT] = {"h", sizeof(npy_short)},
    [NPY_USHORT] = {"H", sizeof(npy_ushort)},
    [NPY_INT] = {"i", sizeof(npy_int)},
    [NPY_UINT] = {"I", sizeof(npy_uint)},
    [NPY_LONG] = {"l", sizeof(npy_long)},
    [NPY_ULONG] = {"L", sizeof(npy_ulong)},
    [NPY_LONGLONG] = {"q", sizeof(npy_longlong)},
    [NPY_ULONGLONG] = {"Q", sizeof(npy_ulonglong)},
    [NPY_HALF] = {"e", sizeof(npy_half)},
    [NPY_FLOAT] = {"f", sizeof(npy_float)},
    [NPY_DOUBLE] = {"d", sizeof(npy_double)},
    [NPY_LONGDOUBLE] = {"g", sizeof(npy_longdouble)},
    [NPY_CFLOAT] = {"Zf", sizeof(npy_cfloat)},
    [NPY_CDOUBLE] = {"Zd", sizeof(npy_cdouble)},
    [NPY_CLONGDOUBLE] = {"Zg", sizeof(npy_clongdouble)},
};

enum { ELEMENTS = sizeof elements / sizeof elements[0] };

/* A private numpy flag that no header declares. Arrays from broadcast_arrays have it, and numpy warns when code writes
 * to them. */
#define WARN_ON_WRITE ((int)(1u << 31))

/* Return the format that numpy would export, or NULL if only numpy can determine it. */
static const char *format_of(PyArrayObject *array)
{
    const PyArray_Descr *descr = PyArray_DESCR(array);
    if (descr->type_num < 0 || descr->type_num >= ELEMENTS || (descr->byteorder != '=' && descr->byteorder != '|') ||
        !(PyArray_FLAGS(array) & NPY_ARRAY_ALIGNED) || PyArray_FLAGS(array) & WARN_ON_WRITE)
        return NULL;
    return elements[descr->type_num].format;
}

static bool is_fortran(PyArrayObject *array)
{
    return !(PyArray_FLAGS(array) & NPY_ARRAY_C_CONTIGUOUS);
}

static bool is_writable(PyArrayObject *array)
{
    return PyArray_FLAGS(array) & NPY_ARRAY_WRITEABLE;
}

static bool unchanged(const array_buffer *self)
{
    PyArrayObject *array = self->array;
    if (PyArray_DATA(array) != self->data || PyArray_NDIM(array) != self->nd || is_fortran(array) ||
        format_of(array) != self->format || is_writable(array) == self->readonly)
        return false;
    return self->nd == 0 || memcmp(PyArray_DIMS(array), self->dims, (size_t)self->nd * sizeof *self->dims) == 0;
}

static int get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    array_buffer *self = (array_buffer *)object;
    bool fortran = self->nd > 1 && (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS;
    bool refused = fortran || (self->readonly && flags & PyBUF_WRITABLE);
    if (!self->transposed && (refused || !unchanged(self))) {
        view->obj = NULL;
        return PRP_FOREIGN(PyObject_GetBuffer((PyObject *)self->array, view, flags));
    }
    if (refused) {
        PyErr_SetString(fortran ? PyExc_ValueError : PyExc_BufferError,
                        fortran ? "the transposed array is not Fortran contiguous" : "the array is read-only");
        view->obj = NULL;
        return -1;
    }
    bool shaped = (flags & PyBUF_ND) == PyBUF_ND;
    bool strided = (flags & PyBUF_STRIDES) == PyBUF_STRIDES;
    *view = (Py_buffer){
        .buf = self->data,
        .obj = Py_NewRef(object),
        .len = self->len,
        .itemsize = self->itemsize,
        .readonly = self->readonly,
        .ndim = shaped ? self->nd : 0, /* this is what numpy does */
        .format = flags & PyBUF_FORMAT ? (char *)self->format : NULL,
        .shape = shaped && self->nd ? self->dims : NULL,
        .strides = strided && self->nd ? self->dims + self->nd : NULL,
    };
    return 0;
}

static void dealloc(PyObject *object)
{
    Py_DECREF(((array_buffer *)object)->array);
    PyObject_Free(object);
}

static PyObject *array_of(PyObject *object, void *closure)
{
    return Py_NewRef((PyObject *)((array_buffer *)object)->array);
}

static PyGetSetDef getset[] = {
    {"array", array_of, NULL, PyDoc_STR("The ndarray whose bytes these are."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyBufferProcs procs = {.bf_getbuffer = get_buffer};

static PyTypeObject array_buffer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyray_ser.ArrayBuffer",
    .tp_doc = PyDoc_STR("Bytes of an ndarray. Use it through memoryview()."),
    .tp_basicsize = offsetof(array_buffer, dims),
    .tp_itemsize = sizeof(Py_ssize_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = dealloc,
    .tp_as_buffer = &procs,
    .tp_getset = getset,
};

bool prp_array_buffer_moved(PyObject *object)
{
    if (!Py_IS_TYPE(object, &array_buffer_type))
        return false;
    const array_buffer *self = (array_buffer *)object;
    Py_ssize_t size = self->itemsize;
    for (int i = 0; i < PyArray_NDIM(self->array); i++)
        size *= PyArray_DIM(self->array, i);
    return PyArray_DATA(self->array) != self->data || size < self->len;
}

int prp_array_buffer_setup(void)
{
    return PyType_Ready(&array_buffer_type);
}

static PyObject *exporter(PyArrayObject *array, const char *format)
{
    int nd = PyArray_NDIM(array);
    array_buffer *self = PyObject_NewVar(array_buffer, &array_buffer_type, 2 * nd);
    if (!self)
        return NULL;
    self->array = (PyArrayObject *)Py_NewRef((PyObject *)array);
    self->format = format;
    self->data = PyArray_DATA(array);
    self->itemsize = (Py_ssize_t)elements[PyArray_DESCR(array)->type_num].size;
    self->nd = nd;
    self->readonly = !is_writable(array);
    self->transposed = is_fortran(array);
    const npy_intp *shape = PyArray_DIMS(array);
    Py_ssize_t step = self->itemsize;
    for (int i = nd; i-- > 0;) {
        self->dims[i] = shape[self->transposed ? nd - 1 - i : i];
        self->dims[nd + i] = step;
        step *= self->dims[i]; /* cannot overflow: a contiguous array fits into memory, or an axis is 0 */
    }
    self->len = step;
    return (PyObject *)self;
}

PyObject *prp_array_picklebuffer(PyObject *object)
{
    PyArrayObject *array = (PyArrayObject *)object;
    const char *format = format_of(array);
    PyObject *shown = format              ? exporter(array, format)
                      : is_fortran(array) ? PRP_FOREIGN(PyObject_GetAttrString(object, "T"))
                                          : Py_NewRef(object);
    PyObject *buffer = shown ? PRP_FOREIGN(PyPickleBuffer_FromObject(shown)) : NULL;
    Py_XDECREF(shown);
    return buffer;
}
