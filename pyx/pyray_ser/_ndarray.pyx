"""Arrays in and out of streams and buffers (`csrc/ndarray`).

The only extension that uses numpy's C API. It is imported when the first array is met, by `prp_ndarray()` of
``csrc/ndarray/api.h``; its users take the table in the capsule ``_api``. The functions below are the same table for Python:
tests and tools use them, the hot paths do not.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport PyObject

cdef extern from "ndarray/ndarray.h":
    const prp_ndarray_api *prp_ndarray_init() except NULL

cdef const prp_ndarray_api *table = prp_ndarray_init()
_api = PyCapsule_New(<void *>table, PRP_NDARRAY_CAPSULE, NULL)


def template_put(array):
    """
    Stream and data of one array, as `put` writes them.

    Parameters
    ----------
    array : object
        Anything; only exact `numpy.ndarray` objects of plain dtypes have a template.

    Returns
    -------
    tuple of (bytes, bytes) or None
        The pickle stream, and the buffer it asks for; None if `array` is for the general pickler.
    """
    cdef uint8_t[1024] out
    cdef prp_array_source source
    assert PRP_ARRAY_STREAM_MAX <= sizeof(out)
    cdef Py_ssize_t length = table.template_put(array, out, &source)
    if length == 0:
        return None
    data = PyBytes_FromStringAndSize(<const char *>source.data if source.kind == PRP_ARRAY_DIRECT else NULL, source.nbytes)
    if source.kind == PRP_ARRAY_GATHER:
        table.gather(array, &source, PyBytes_AS_STRING(data), source.nbytes)
    return PyBytes_FromStringAndSize(<char *>out, length), data


def from_stream(const uint8_t[::1] stream not None, data, *, bint writable=False):
    """
    The array that a template stream describes, over `data` and without a copy.

    Parameters
    ----------
    stream : bytes-like
        What `template_put` gave.
    data : bytes-like
        The buffer; it becomes the base of the array.
    writable : bool
        Whether the array may be written to; `data` must be writable then.

    Returns
    -------
    numpy.ndarray or None
        None if `stream` is not the template or does not fit `data`.
    """
    cdef Py_buffer view
    cdef void *array
    # The exporter stays locked as long as the array: the memoryview is its base.
    owner = memoryview(data)
    PyObject_GetBuffer(owner, &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    try:
        array = table.from_stream(
            &stream[0] if stream.shape[0] else NULL, stream.shape[0],
            <const uint8_t *>view.buf, view.len, owner, PRP_ARRAY_WRITABLE if writable else 0)
    finally:
        PyBuffer_Release(&view)
    if array is NULL:
        return None
    result = <object>array
    # The table's functions give a new reference, which a void pointer does not carry.
    decref(result)
    return result


cdef extern from "Python.h":
    void decref "Py_DECREF"(object)
