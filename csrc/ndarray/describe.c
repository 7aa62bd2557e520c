/* Determines how an array is written to a stream: which bytes are sent, and with which shape and strides.
 *
 * C-contiguous arrays are sent as they are. For other arrays, we omit axes of stride 0, because they add no data. We
 * visit the other axes in order of increasing stride: if each stride is at most the extent covered so far, the array
 * uses every byte of one span, so we send that span with the array's own strides. This single rule covers Fortran
 * order, permuted axes, broadcast arrays and overlapping sliding windows, and it never sends a byte outside the array.
 * All remaining arrays (with holes or negative strides) are gathered into C order once by numpy's copy loops, without
 * the axes of stride 0.
 */
#include "ndarray.h"

/* Compute the product of the shape and itemsize; return false on overflow. */
static bool total_bytes(const npy_intp *shape, int nd, size_t itemsize, size_t *total)
{
    size_t product = itemsize;
    for (int i = 0; i < nd; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(product, (size_t)shape[i], &product))
            return false;
    *total = product;
    return true;
}

static bool covers_one_span(const npy_intp *shape, const npy_intp *strides, int nd, size_t itemsize, size_t *span)
{
    int order[PRP_ARRAY_MAX_DIMS], n = 0;
    for (int i = 0; i < nd; i++) {
        if (shape[i] == 1 || strides[i] == 0)
            continue;
        if (strides[i] < 0)
            return false;
        int at = n++;
        for (; at > 0 && strides[order[at - 1]] > strides[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    size_t extent = itemsize;
    for (int i = 0; i < n; i++) {
        size_t stride = (size_t)strides[order[i]], step;
        if (stride > extent || __builtin_mul_overflow(stride, (size_t)shape[order[i]] - 1, &step) ||
            __builtin_add_overflow(extent, step, &extent))
            return false;
    }
    *span = extent;
    return true;
}

int prp_array_describe(PyObject *obj, prp_array_source *source)
{
    if (!PyArray_CheckExact(obj))
        return 0;
    PyArrayObject *array = (PyArrayObject *)obj;
    PyArray_Descr *descr = PyArray_DESCR(array);
    int nd = PyArray_NDIM(array);
    if (nd > PRP_ARRAY_MAX_DIMS || !prp_dtype_is_plain(descr))
        return 0;
    prp_array_template *layout = &source->layout;
    size_t name_len = prp_dtype_name(descr, source->dtype);
    if (name_len == 0)
        return 0;
    const npy_intp *shape = PyArray_DIMS(array), *strides = PyArray_STRIDES(array);
    size_t itemsize = (size_t)PyDataType_ELSIZE(descr);
    size_t nbytes;
    if (!total_bytes(shape, nd, itemsize, &nbytes))
        nbytes = SIZE_MAX; /* a broadcast array can have more bytes than the address space */

    layout->nd = nd;
    layout->readonly = !PyArray_ISWRITEABLE(array);
    layout->dtype = source->dtype;
    layout->dtype_len = (uint8_t)name_len;
    for (int i = 0; i < nd; i++)
        layout->shape[i] = shape[i];

    if (nbytes == 0 || PyArray_IS_C_CONTIGUOUS(array)) {
        layout->has_strides =
            nbytes == 0 && nd > 1 && PyArray_IS_F_CONTIGUOUS(array) && !PyArray_IS_C_CONTIGUOUS(array);
        source->kind = PRP_ARRAY_DIRECT;
        source->data = PyArray_DATA(array);
        source->nbytes = nbytes;
        return 1;
    }
    layout->has_strides = true;
    if (covers_one_span(shape, strides, nd, itemsize, &source->nbytes)) {
        for (int i = 0; i < nd; i++)
            layout->strides[i] = shape[i] == 1 && strides[i] < 0 ? 0 : strides[i];
        source->kind = PRP_ARRAY_DIRECT;
        source->data = PyArray_DATA(array);
    } else {
        size_t step = itemsize;
        bool repeated = false;
        for (int i = nd - 1; i >= 0; i--) {
            bool set_aside = strides[i] == 0 && shape[i] > 1;
            repeated |= set_aside;
            layout->strides[i] = set_aside ? 0 : (int64_t)step;
            if (!set_aside)
                step *= (size_t)shape[i]; /* cannot overflow: it is at most the size of the array's memory */
        }
        layout->has_strides = repeated;
        source->kind = PRP_ARRAY_GATHER;
        source->data = NULL;
        source->nbytes = step;
    }
    /* Readers check that the strides stay inside the buffer, but the stride of an axis of length 1 may be far
     * larger. */
    for (int i = 0; layout->has_strides && i < nd; i++)
        if (shape[i] == 1)
            layout->strides[i] = (int64_t)itemsize;
    return 1;
}

Py_ssize_t prp_array_template_put(PyObject *obj, uint8_t *out, prp_array_source *source)
{
    int described = prp_array_describe(obj, source);
    return described == 1 ? (Py_ssize_t)prp_array_template_write(out, &source->layout) : described;
}

int prp_array_gather(PyObject *obj, const prp_array_source *source, void *dst, size_t dst_len)
{
    PyArrayObject *array = (PyArrayObject *)obj;
    int nd = source->layout.nd;
    if (!PyArray_CheckExact(obj) || PyArray_NDIM(array) != nd || source->kind != PRP_ARRAY_GATHER ||
        dst_len < source->nbytes) {
        PyErr_SetString(PyExc_ValueError, "the array is not the one that was described, or the buffer is too small");
        return -1;
    }
    /* Both views omit the axes of stride 0; only the source view keeps the array's strides. If another thread has
     * changed dtype or shape, the shapes of the two views differ, and CopyInto then fails or broadcasts inside dst. */
    npy_intp dims[PRP_ARRAY_MAX_DIMS];
    size_t product = (size_t)PyArray_ITEMSIZE(array);
    for (int i = 0; i < nd; i++) {
        bool set_aside = PyArray_STRIDE(array, i) == 0 && PyArray_DIM(array, i) > 1;
        dims[i] = set_aside ? 1 : PyArray_DIM(array, i);
        if (__builtin_mul_overflow(product, (size_t)dims[i], &product))
            product = SIZE_MAX;
    }
    if (product != source->nbytes) {
        PyErr_SetString(PyExc_ValueError, "the array changed while it was written");
        return -1;
    }
    PyArray_Descr *descr = PyArray_DESCR(array);
    Py_INCREF(descr);
    PyObject *from =
        PyArray_NewFromDescr(&PyArray_Type, descr, nd, dims, PyArray_STRIDES(array), PyArray_DATA(array), 0, NULL);
    Py_INCREF(descr);
    PyObject *to =
        PyArray_NewFromDescr(&PyArray_Type, descr, nd, dims, NULL, dst, NPY_ARRAY_CARRAY & ~NPY_ARRAY_ALIGNED, NULL);
    int failed = -1;
    if (from && to) {
        PyArray_UpdateFlags((PyArrayObject *)to, NPY_ARRAY_ALIGNED);
        failed = PyArray_CopyInto((PyArrayObject *)to, (PyArrayObject *)from);
    }
    Py_XDECREF(from);
    Py_XDECREF(to);
    return failed;
}

bool prp_array_lies_at(PyObject *obj, const void *data, size_t nbytes)
{
    if (!data || !nbytes || !PyArray_CheckExact(obj))
        return true;
    PyArrayObject *array = (PyArrayObject *)obj;
    return PyArray_DATA(array) == data &&
           (!PyArray_CHKFLAGS(array, NPY_ARRAY_OWNDATA) || (size_t)PyArray_NBYTES(array) >= nbytes);
}
