"""Converts arrays to and from streams and buffers (`csrc/ndarray`).

No other extension uses numpy's C API. `prp_ndarray()` of ``csrc/ndarray/api.h`` imports this one for the first array; C
code uses the table in the capsule ``_api``. The functions below wrap that table for tests and tools; hot paths do not
use them.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from "ndarray/ndarray.h":
    const prp_ndarray_api *prp_ndarray_init() except NULL

    ctypedef struct prp_strings:
        size_t count
        uint64_t bytes
        uint64_t longest
        bint missing

    int prp_strings_measure(object array, prp_strings *found) except -1
    int prp_strings_copy(object array, bint fortran, const prp_strings *found, char *text, uint8_t *lengths, int width,
                         uint8_t *missing) except -1
    int prp_strings_fill(object array, const uint8_t *text, size_t bytes, const uint8_t *lengths, int width, size_t count,
                         const uint8_t *missing) except -1

cdef const prp_ndarray_api *table = prp_ndarray_init()
_api = PyCapsule_New(<void *>table, PRP_NDARRAY_CAPSULE, NULL)


def template_put(array):
    """
    Return the stream and the data of one array, as `put` writes them.

    Parameters
    ----------
    array : object
        Any object, but only exact `numpy.ndarray` objects of plain dtypes have a template.

    Returns
    -------
    tuple of (bytes, bytes) or None
        The pickle stream and its out-of-band buffer; None if `array` needs the general pickler.
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
    Return the array that a template stream describes, over `data` and without a copy.

    Parameters
    ----------
    stream : bytes-like
        A stream from `template_put`.
    data : bytes-like
        The buffer; it becomes the base of the array.
    writable : bool
        Whether the array is writable; if so, `data` must be writable.

    Returns
    -------
    numpy.ndarray or None
        None if `stream` is not the template or does not fit `data`.
    """
    cdef Py_buffer view
    cdef void *array
    # The memoryview is the base of the array, so the buffer stays exported as long as the array exists.
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
    # The function in the table returned a new reference as a void pointer, and the cast has added a second reference.
    decref(result)
    return result


def strings_out(array, bint fortran=False):
    """
    Return the contents of an array of strings.

    Parameters
    ----------
    array : numpy.ndarray
        Of `numpy.dtypes.StringDType`.
    fortran : bool
        Read the elements in Fortran order, not in C order.

    Returns
    -------
    tuple of (bytes, bytes, int, bytes or None)
        The UTF-8 text of all strings; their lengths in bytes, little endian; the size of each length in bytes; and one
        byte per string, 1 if it is missing, or None if none is missing.
    """
    cdef prp_strings found
    prp_strings_measure(array, &found)
    cdef int width = 1 if found.longest <= 0xff else 2 if found.longest <= 0xffff else 4 if found.longest <= 0xffffffff else 8
    text = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>found.bytes)
    lengths = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(found.count * width))
    missing = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>found.count) if found.missing else None
    prp_strings_copy(array, fortran, &found, PyBytes_AS_STRING(text), <uint8_t *>PyBytes_AS_STRING(lengths), width,
                     NULL if missing is None else <uint8_t *>PyBytes_AS_STRING(missing))
    return text, lengths, width, missing


def strings_in(array, const uint8_t[::1] text not None, const uint8_t[::1] lengths not None, int width,
               const uint8_t[::1] missing=None):
    """
    Set the strings of a contiguous array, in memory order, to the result of `strings_out`.

    Parameters
    ----------
    array : numpy.ndarray
        Of `numpy.dtypes.StringDType`.
    text, lengths, missing : bytes-like
    width : int
        1, 2, 4 or 8.

    Raises
    ------
    ValueError
        If `width`, `lengths` and `missing` do not match.
    """
    if width not in (1, 2, 4, 8) or lengths.shape[0] % width:
        raise ValueError("lengths of strings take 1, 2, 4 or 8 bytes")
    cdef size_t count = lengths.shape[0] // width
    if missing is not None and <size_t>missing.shape[0] != count:
        raise ValueError("as many marks of missing strings as lengths are needed")
    cdef const uint8_t *marks = NULL
    if missing is not None:
        marks = &missing[0]
    # prp_strings_fill does not dereference the address of an empty buffer.
    prp_strings_fill(array, &text[0], text.shape[0], &lengths[0], width, count, marks)


cdef extern from "Python.h":
    void decref "Py_DECREF"(object)
