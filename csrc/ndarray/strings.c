/* Converts arrays of numpy's StringDType to text and lengths, and back, without intermediate Python strings.
 *
 * numpy keeps short strings inside the 16 bytes of an element and the others in an arena of the array, in a private
 * format. Its public functions load and pack one string at a time, under a lock of the array. So these arrays cannot
 * use foreign memory: we copy their text once to write it and once to read it.
 *
 * No Python code runs under the lock. We check that each string from a stream is UTF-8, because numpy does not. We
 * check numpy's copy, because the stream may be in shared memory and change.
 */
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION /* called only if StringDType exists, that is, with numpy 2 */
#include "ndarray.h"

/* Iterate over all elements in C or Fortran order, for arrays with any strides. */
typedef struct {
    char *at;
    int nd;
    npy_intp size;
    npy_intp index[NPY_MAXDIMS], shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
} elements;

static void elements_of(elements *e, PyArrayObject *array, NPY_ORDER order)
{
    int nd = PyArray_NDIM(array);
    e->at = PyArray_BYTES(array);
    e->nd = nd;
    e->size = PyArray_SIZE(array);
    for (int i = 0; i < nd; i++) {
        int axis = order == NPY_FORTRANORDER ? nd - 1 - i : i;
        e->index[i] = 0;
        e->shape[i] = PyArray_DIM(array, axis);
        e->strides[i] = PyArray_STRIDE(array, axis);
    }
}

static inline char *next_element(elements *e)
{
    char *now = e->at;
    for (int i = e->nd - 1; i >= 0; i--) {
        if (++e->index[i] < e->shape[i]) {
            e->at += e->strides[i];
            break;
        }
        e->at -= e->strides[i] * (e->shape[i] - 1);
        e->index[i] = 0;
    }
    return now;
}

static PyArray_StringDTypeObject *string_dtype(PyObject *array)
{
    if (!PyArray_Check(array) || PyArray_DESCR((PyArrayObject *)array)->type_num != NPY_VSTRING) {
        PyErr_SetString(PyExc_TypeError, "an array of StringDType is needed");
        return NULL;
    }
    return (PyArray_StringDTypeObject *)PyArray_DESCR((PyArrayObject *)array);
}

int prp_strings_measure(PyObject *array, prp_strings *found)
{
    PyArray_StringDTypeObject *dtype = string_dtype(array);
    if (!dtype)
        return -1;
    elements e;
    elements_of(&e, (PyArrayObject *)array, NPY_CORDER);
    *found = (prp_strings){.count = (size_t)e.size};
    npy_string_allocator *allocator = NpyString_acquire_allocator(dtype);
    int status = 0;
    for (npy_intp i = 0; i < e.size && status >= 0; i++) {
        npy_static_string string = {0, NULL};
        status = NpyString_load(allocator, (npy_packed_static_string *)next_element(&e), &string);
        if (status > 0)
            found->missing = true;
        else if (status == 0) {
            found->bytes += string.size;
            found->longest = string.size > found->longest ? string.size : found->longest;
        }
    }
    NpyString_release_allocator(allocator);
    if (status < 0)
        PyErr_SetString(PyExc_MemoryError, "numpy could not load a string of a StringDType array");
    return status < 0 ? -1 : 0;
}

int prp_strings_copy(PyObject *array, bool fortran, const prp_strings *found, char *text, uint8_t *lengths, int width,
                     uint8_t *missing)
{
    PyArray_StringDTypeObject *dtype = string_dtype(array);
    if (!dtype)
        return -1;
    elements e;
    elements_of(&e, (PyArrayObject *)array, fortran ? NPY_FORTRANORDER : NPY_CORDER);
    size_t at = 0;
    /* Code without the GIL may have written to the array since we measured it. */
    bool same = (size_t)e.size == found->count;
    npy_string_allocator *allocator = NpyString_acquire_allocator(dtype);
    for (npy_intp i = 0; i < e.size && same; i++) {
        npy_static_string string = {0, NULL};
        int status = NpyString_load(allocator, (npy_packed_static_string *)next_element(&e), &string);
        same = status >= 0 && (!status || missing) && string.size <= found->longest && string.size <= found->bytes - at;
        if (!same)
            break;
        uint64_t size = status ? 0 : string.size;
        if (size)
            memcpy(text + at, string.buf, size);
        memcpy(lengths + i * width, &size, (size_t)width); /* little endian */
        if (missing)
            missing[i] = (uint8_t)status;
        at += size;
    }
    NpyString_release_allocator(allocator);
    if (!same || at != found->bytes) {
        PyErr_SetString(PyExc_RuntimeError, "array of StringDType changed during pickling");
        return -1;
    }
    return 0;
}

/* Return whether the text is well-formed UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above
 * U+10FFFF. */
static bool is_utf8(const uint8_t *s, size_t n)
{
    const uint8_t *end = s + n;
    while (s < end) {
        uint64_t eight;
        while (end - s >= 8) {
            memcpy(&eight, s, 8);
            if (eight & 0x8080808080808080u)
                break;
            s += 8;
        }
        if (s == end)
            break;
        uint8_t lead = *s++;
        if (lead < 0x80)
            continue;
        int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || end - s < more)
            return false;
        uint8_t low = lead == 0xe0   ? 0xa0
                      : lead == 0xf0 ? 0x90
                                     : 0x80,
                high = lead == 0xed   ? 0x9f
                       : lead == 0xf4 ? 0x8f
                                      : 0xbf;
        if (*s < low || *s > high)
            return false;
        for (int i = 1; i < more; i++)
            if ((s[i] & 0xc0) != 0x80)
                return false;
        s += more;
    }
    return true;
}

/* Pack a copy of the text and validate the copy; replace invalid text with "". Return 1, 0 if it is not UTF-8, or -1 if
 * there is not enough memory. */
static int pack_utf8(npy_string_allocator *allocator, npy_packed_static_string *element, const char *text, size_t size)
{
    npy_static_string packed = {0, NULL};
    if (NpyString_pack(allocator, element, text, size) < 0 || NpyString_load(allocator, element, &packed) < 0)
        return -1;
    if (is_utf8((const uint8_t *)packed.buf, packed.size))
        return 1;
    return NpyString_pack(allocator, element, "", 0) < 0 ? -1 : 0;
}

int prp_strings_fill(PyObject *array, const uint8_t *text, size_t bytes, const uint8_t *lengths, int width,
                     size_t count, const uint8_t *missing)
{
    PyArray_StringDTypeObject *dtype = string_dtype(array);
    if (!dtype)
        return -1;
    if ((size_t)PyArray_SIZE((PyArrayObject *)array) != count || !PyArray_ISWRITEABLE((PyArrayObject *)array)) {
        PyErr_SetString(PyExc_ValueError, "as many lengths as elements are needed, and an array that can be written");
        return -1;
    }
    if (missing && !dtype->na_object) {
        PyErr_SetString(PyExc_ValueError, "a dtype without na_object has no missing strings");
        return -1;
    }
    elements e;
    elements_of(&e, (PyArrayObject *)array, PyArray_IS_F_CONTIGUOUS((PyArrayObject *)array));
    const char *wrong = NULL;
    bool full = false;
    size_t at = 0;
    npy_string_allocator *allocator = NpyString_acquire_allocator(dtype);
    for (size_t i = 0; i < count && !wrong && !full; i++) {
        npy_packed_static_string *element = (npy_packed_static_string *)next_element(&e);
        uint64_t size = 0;
        memcpy(&size, lengths + i * (size_t)width, (size_t)width);
        if (size > bytes - at)
            wrong = "lengths of strings exceed their text";
        else if (missing && missing[i])
            full = NpyString_pack_null(allocator, element) < 0;
        else {
            int packed = pack_utf8(allocator, element, (const char *)text + at, size);
            full = packed < 0;
            wrong = packed ? NULL : "text of strings is not UTF-8";
        }
        at += wrong ? 0 : size;
    }
    NpyString_release_allocator(allocator);
    if (full)
        PyErr_NoMemory();
    else if (wrong)
        PyErr_SetString(PyExc_ValueError, wrong);
    return full || wrong ? -1 : 0;
}
