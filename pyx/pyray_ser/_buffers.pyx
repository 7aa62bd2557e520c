"""Buffers over foreign memory, and the pickler that collects buffers instead of copying them.

`Block` exports bytes that something else keeps alive: a pin on a stored object, a copy-on-write mapping,
somebody's blob. `Gathered` is the form between pickling and storing: nothing in it is copied yet.

`gather` is the put mode of the interim pickler: the standard library's C pickler with a buffer callback, exact
ndarrays written by `csrc/ndarray`, functions and classes by value through cloudpickle where they cannot be imported.
"""

import sys
from _pickle import Pickler, PickleBuffer
from copyreg import dispatch_table as copyreg_table
from types import FunctionType

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from pyray_ser._ndarray cimport (
    PRP_ARRAY_DIRECT, prp_array_source, prp_ndarray, prp_ndarray_api, prp_ndarray_looks
)

# Out-of-band from here on: below, the table entry and the extra object cost more than the copy.
cdef enum:
    OUT_OF_BAND_FROM = 1024


# ---- exporters -----------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Bytes that another object keeps alive, as a buffer."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, self.readonly, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<{self.size} {'read-only' if self.readonly else 'writable'} bytes of {self.owner!r}>"


# A buffer of no bytes still needs an address: numpy takes NULL for "allocate".
cdef const uint8_t nothing = 0


cdef Block block(object owner, const uint8_t *data, Py_ssize_t size, bint readonly):
    cdef Block made = Block.__new__(Block)
    made.owner = owner
    made.data = data if data is not NULL else &nothing
    made.size = size
    made.readonly = readonly
    return made


@cython.final
@cython.no_gc
cdef class Export:
    """Somebody's contiguous buffer, held open as long as this object lives."""

    def __cinit__(self, exporter):
        self.held = False
        PyObject_GetBuffer(exporter, &self.view, PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.view.buf, self.view.len, True, flags)

    def __len__(self):
        return self.view.len


# ---- what a pickler wrote ------------------------------------------------------------------------------------------

@cython.final
cdef class Gathered:
    """The stream in pieces, the buffers it asks for, and the references it met."""

    def __cinit__(self):
        self.keep = []
        self.edges = []

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.nviews):
            PyBuffer_Release(&self.views[i])
        PyMem_Free(self.views)
        PyMem_Free(self.buffers)
        PyMem_Free(self.stream)

    cdef int add_stream(self, const void *data, size_t size) except -1:
        cdef Span *grown
        if self.nstream == self.stream_room:
            grown = <Span *>PyMem_Realloc(self.stream, (self.stream_room * 2 + 2) * sizeof(Span))
            if grown is NULL:
                raise MemoryError()
            self.stream = grown
            self.stream_room = self.stream_room * 2 + 2
        self.stream[self.nstream].data = data
        self.stream[self.nstream].size = size
        self.nstream += 1
        self.stream_size += size
        return 0

    cdef int add_buffer(self, const void *data, size_t size) except -1:
        cdef Span *grown
        if self.nbuffers == self.buffers_room:
            grown = <Span *>PyMem_Realloc(self.buffers, (self.buffers_room * 2 + 4) * sizeof(Span))
            if grown is NULL:
                raise MemoryError()
            self.buffers = grown
            self.buffers_room = self.buffers_room * 2 + 4
        self.buffers[self.nbuffers].data = data
        self.buffers[self.nbuffers].size = size
        self.nbuffers += 1
        return 0

    cdef int add_view(self, object exporter) except -1:
        """Add the buffer of `exporter` and hold it open. Raises BufferError if it is not contiguous."""
        cdef Py_buffer view
        cdef Py_buffer *grown
        PyObject_GetBuffer(exporter, &view, PyBUF_ANY_CONTIGUOUS)
        # A Py_buffer may be moved: nothing of it but `buf`, `len` and what its exporter keeps in it is used from here on.
        if self.nviews & (self.nviews - 1) == 0:
            grown = <Py_buffer *>PyMem_Realloc(self.views, (self.nviews * 2 + 1) * sizeof(Py_buffer))
            if grown is NULL:
                PyBuffer_Release(&view)
                raise MemoryError()
            self.views = grown
        self.views[self.nviews] = view
        self.nviews += 1
        return self.add_buffer(view.buf, view.len)


cdef extern from *:
    """
    /* Borrowed: the call that made it current keeps it alive. */
    static _Thread_local PyObject *prx_gathering;
    """
    PyObject *prx_gathering


cdef Gathered current_gathering():
    if prx_gathering is NULL:
        return None
    return <Gathered>prx_gathering


cdef Gathered swap_gathering(Gathered gathered):
    global prx_gathering
    cdef Gathered before = current_gathering()
    prx_gathering = NULL if gathered is None else <PyObject *>gathered
    return before


# ---- the interim pickler -------------------------------------------------------------------------------------------

class _HookedPickler(Pickler):
    """The C pickler with room for a hook per instance."""

    __slots__ = ("dispatch_table", "reducer_override")


# Names of dtypes as str objects, so that one stream holds each only once.
cdef dict dtype_names = {}
# cloudpickle's reducers, once it was needed: an instance of its pickler that is only asked, and its table.
cdef object cloud = None
cdef dict cloud_table = None
cdef object ndarray = None


cdef int load_cloudpickle() except -1:
    global cloud, cloud_table
    if cloud is None:
        import io

        import cloudpickle

        cloud_table = dict(cloudpickle.Pickler(io.BytesIO(), protocol=5)._dispatch_table)
        cloud = cloudpickle.Pickler(io.BytesIO(), protocol=5)
    return 0


cdef bint importable(object value):
    """Whether a function or class is found under its own name, so that its name can stand for it."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module == "__main__":
        return False
    found = sys.modules.get(module)
    if found is None:
        return False
    for part in (<str>name).split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    return found is value


@cython.final
cdef class _Collector:
    """One pickler and what it is writing to; used again for the next value."""

    cdef object pickler
    cdef Gathered into
    cdef object last_globals

    def __cinit__(self):
        self.pickler = _HookedPickler(self, 5, buffer_callback=self.take_buffer)
        self.pickler.reducer_override = self.reduce

    cpdef write(self, data):
        # Small frames come as bytes of the pickler's own, large bytes objects as they are: nothing is copied here.
        if type(data) is not bytes:
            data = bytes(data)
        self.into.keep.append(data)
        self.into.add_stream(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def take_buffer(self, buffer):
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
        # A small writable buffer would come back as a bytearray, that is writable: those go out-of-band too.
        cdef bint in_band = view.len < OUT_OF_BAND_FROM and view.readonly
        PyBuffer_Release(&view)
        if not in_band:
            self.into.add_view(buffer)
        return in_band

    def reduce(self, value):
        cdef type kind = type(value)
        if prp_ndarray_looks(value):
            return reduce_array(value)
        if kind is FunctionType or issubclass(kind, type):
            if cloud is None and "cloudpickle" not in sys.modules and importable(value):
                return NotImplemented
            load_cloudpickle()
            return cloud.reducer_override(value)
        if not (<PyTypeObject *>kind).tp_flags & TPFLAGS_HEAPTYPE or kind.__module__ in CLOUD_MODULES:
            # Modules, cells, code, properties, files and the like, which cloudpickle knows a way for.
            if kind in copyreg_table or kind.__module__ not in CLOUD_MODULES or kind in PLAIN_TYPES:
                return NotImplemented
            load_cloudpickle()
            reducer = cloud_table.get(kind)
            if reducer is not None:
                return reducer(value)
        return NotImplemented


cdef extern from *:
    """
    #define PRX_HEAPTYPE Py_TPFLAGS_HEAPTYPE
    """
    unsigned long TPFLAGS_HEAPTYPE "PRX_HEAPTYPE"


CLOUD_MODULES = frozenset({"builtins", "types", "_io", "abc", "weakref", "_weakrefset", "logging", "collections", "typing"})
PLAIN_TYPES = frozenset({
    complex, range, slice, object, bytearray, memoryview, type(len), type(Ellipsis), type(NotImplemented), BaseException,
    Exception, ValueError, TypeError, KeyError, IndexError, RuntimeError, OSError, AttributeError,
})


cdef object reduce_array(object array):
    cdef const prp_ndarray_api *table = prp_ndarray()
    cdef prp_array_source source
    cdef object data, strides = None
    cdef tuple shape
    global ndarray
    if ndarray is None:
        from numpy import ndarray as found
        ndarray = found
    if table.describe(array, &source) == 0:
        return reduce_odd_array(array)
    shape = ints(source.layout.shape, source.layout.nd)
    if source.layout.has_strides:
        strides = ints(source.layout.strides, source.layout.nd)
    if source.kind == PRP_ARRAY_DIRECT and source.nbytes >= OUT_OF_BAND_FROM:
        data = PickleBuffer(block(array, <const uint8_t *>source.data, source.nbytes, source.layout.readonly))
    elif source.kind == PRP_ARRAY_DIRECT:
        data = PyBytes_FromStringAndSize(<const char *>source.data, source.nbytes)
    elif source.nbytes >= OUT_OF_BAND_FROM:
        gathered = PyByteArray_FromStringAndSize(NULL, source.nbytes)
        table.gather(array, &source, PyByteArray_AS_STRING(gathered), source.nbytes)
        data = PickleBuffer(block(gathered, <const uint8_t *>PyByteArray_AS_STRING(gathered), source.nbytes,
                                  source.layout.readonly))
    else:
        data = PyBytes_FromStringAndSize(NULL, source.nbytes)
        table.gather(array, &source, PyBytes_AS_STRING(data), source.nbytes)
    name = (<bytes>source.layout.dtype[:source.layout.dtype_len])
    dtype = dtype_names.get(name)
    if dtype is None:
        if len(dtype_names) > 256:
            dtype_names.clear()
        dtype = dtype_names[name] = name.decode("ascii")
    if strides is None:
        return ndarray, (shape, dtype, data)
    return ndarray, (shape, dtype, data, 0, strides)


cdef tuple ints(const int64_t *values, int n):
    return tuple([values[i] for i in range(n)])


cdef object reduce_odd_array(object array):
    """Structured and other dtypes that no short name tells; arrays of objects and subclasses pickle themselves."""
    dtype = array.dtype
    if type(array) is not ndarray or dtype.hasobject or dtype.itemsize == 0 or dtype.kind not in "biufcSUVmM":
        return NotImplemented
    flags = array.flags
    if not flags.c_contiguous and not flags.f_contiguous:
        array = array.copy()
        flags = array.flags
    strides = None if flags.c_contiguous else array.strides
    cdef size_t address = array.__array_interface__["data"][0]
    cdef Py_ssize_t nbytes = array.nbytes
    if nbytes >= OUT_OF_BAND_FROM:
        data = PickleBuffer(block(array, <const uint8_t *>address, nbytes, not flags.writeable))
    else:
        data = PyBytes_FromStringAndSize(<const char *>address, nbytes)
    return ndarray, (array.shape, dtype, data, 0, strides)


# One collector at rest: a put inside a put (from a __reduce__) makes its own.
cdef _Collector resting = None
# A memo that grew larger than this is not kept; it would be cleared at each put.
cdef enum:
    KEEP_MEMO_BELOW = 64 * 1024


cdef Gathered gather(object value, uint64_t store):
    global resting
    cdef Gathered into = Gathered.__new__(Gathered)
    cdef Gathered before
    cdef _Collector collector = resting
    resting = None
    if collector is None:
        collector = _Collector.__new__(_Collector)
    collector.into = into
    into.store = store
    before = swap_gathering(into)
    try:
        collector.pickler.dump(value)
    finally:
        swap_gathering(before)
        collector.into = None
        collector.pickler.clear_memo()
        if resting is None and into.stream_size < KEEP_MEMO_BELOW:
            resting = collector
        else:
            # Break the cycle between the pickler and its hooks now, not at the next collection.
            del collector.pickler.reducer_override
            collector.pickler = None
    return into
