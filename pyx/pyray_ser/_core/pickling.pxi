# uses: prelude, policy
#
# The interface to the pickler and the unpickler; no other part calls them.
#
# `Gathered` is the result of pickling a value before it is stored: it records the address of each byte and copies
# nothing.
#
# The first value that needs `_pickle` or `_unpickle` imports it; small values and single arrays do not need them.

# A contiguous range of bytes. If `data` is NULL and `size` is not 0, it is a strided array; see Gathered.write.
cdef struct Span:
    const void *data
    size_t size


cdef extern from "pickle/put.h":
    ctypedef struct strided "prp_put_buffer":
        PyObject *owner
        void *source

ctypedef int (*put_pickle_type)(object, unsigned int, prp_put_result *) except -1
ctypedef int (*put_check_type)(const prp_put_result *) except -1
ctypedef int (*put_gather_type)(const prp_put_buffer *, void *) except -1
ctypedef void (*put_release_type)(prp_put_result *) noexcept
ctypedef object (*load_stored_type)(const uint8_t *, size_t, const Span *, size_t, object, object, int)

cdef put_pickle_type put_pickle = NULL
cdef put_check_type put_check = NULL
cdef put_gather_type put_gather = NULL
cdef put_release_type put_release = NULL
cdef load_stored_type load_stored = NULL


cdef void *exported(object module, str name, const char *signature) except NULL:
    """Return a C function of another extension. Unlike a cimport, this imports the extension only when it is needed."""
    capsule = module.__pyx_capi__[name]
    cdef const char *found = PyCapsule_GetName(capsule)
    if strcmp(found, signature) != 0:
        raise ImportError(f"{module.__name__}.{name} is of another build: {found.decode()}, not {signature.decode()}")
    return PyCapsule_GetPointer(capsule, found)


cdef int connect_pickler() except -1:
    global put_pickle, put_check, put_gather, put_release
    module = pickler_module()
    put_check = <put_check_type>exported(module, "put_check", b"int (prp_put_result const *)")
    put_gather = <put_gather_type>exported(module, "put_gather", b"int (prp_put_buffer const *, void *)")
    put_release = <put_release_type>exported(module, "put_release", b"void (prp_put_result *)")
    put_pickle = <put_pickle_type>exported(module, "put_pickle", b"int (PyObject *, unsigned int, prp_put_result *)")
    return 0


cdef int connect_unpickler() except -1:
    global load_stored
    # prp_buffer has the same layout as Span: a pointer and a length.
    load_stored = <load_stored_type>exported(
        unpickler_module(), "load_stored",
        b"PyObject *(uint8_t const *, size_t, prp_buffer const *, size_t, PyObject *, PyObject *, int)")
    return 0


@cython.final
@cython.no_gc
cdef class Gathered:
    """The pickle of a value, not copied yet: pieces of the stream, out-of-band buffers, and references."""

    # The buffers are in the order of the stream. `edges` are the references to objects of `store` in the value (0: none
    # are collected).
    cdef prp_put_result result
    cdef bint held
    cdef list edges
    cdef uint64_t store
    cdef uint64_t stream_size
    cdef Py_ssize_t nstream
    cdef Py_ssize_t nbuffers

    def __dealloc__(self):
        if self.held:
            put_release(&self.result)

    cdef Span stream(self, Py_ssize_t i) noexcept:
        cdef Span span
        span.data = self.result.segments[i].data
        span.size = self.result.segments[i].len
        return span

    cdef Span buffer(self, Py_ssize_t i) noexcept:
        cdef Span span
        span.data = self.result.buffers[i].data
        span.size = self.result.buffers[i].len
        return span

    cdef int check(self) except -1:
        """Raise an exception if an array was resized since it was pickled, because resizing frees its bytes."""
        return put_check(&self.result)

    cdef int write(self, Py_ssize_t i, void *to) except -1:
        """Write buffer i, whose data is NULL, to `to`; needs the GIL."""
        return put_gather(&self.result.buffers[i], to)

    # Return the array of such a buffer and its layout.
    cdef object array(self, Py_ssize_t i):
        return <object>(<const strided *>&self.result.buffers[i]).owner

    cdef const prp_array_source *source(self, Py_ssize_t i) noexcept:
        return <const prp_array_source *>(<const strided *>&self.result.buffers[i]).source


cdef extern from *:
    """
    /* Borrowed: `gather` keeps it alive. */
    static _Thread_local PyObject *prx_gathering;
    """
    PyObject *prx_gathering


cdef Gathered current_gathering():
    """Return the Gathered that this thread is filling, or None; `ObjectRef.__reduce_ex__` adds its edges to it."""
    if prx_gathering is NULL:
        return None
    return <Gathered>prx_gathering


cdef Gathered gather(object value, uint64_t store):
    """
    Pickle `value` in put mode.

    References to objects of `store` (0: none) are collected as edges; other references are pickled as usual. The result
    becomes invalid when `value` changes.
    """
    global prx_gathering
    cdef Gathered into = Gathered.__new__(Gathered)
    cdef PyObject *before = prx_gathering
    if put_pickle is NULL:
        connect_pickler()
    into.store = store
    into.edges = []
    prx_gathering = <PyObject *>into
    try:
        put_pickle(value, 0, &into.result)
    finally:
        prx_gathering = before
    into.held = True
    into.stream_size = into.result.stream_len
    into.nstream = into.result.segment_count
    into.nbuffers = into.result.buffer_count
    return into


cdef Gathered gather_or_explain(object value, uint64_t store):
    """The same as `gather`, but errors name the part of the value that failed."""
    try:
        return gather(value, store)
    except Exception as error:
        told = explain_failure(value, error)
        if told is error:
            raise
        raise told from error


cdef object load(const uint8_t *stream, size_t size, const Span *buffers, size_t count, object owner, object allow,
                 bint writable):
    """
    Return the value of a stream whose out-of-band buffers are `buffers[0..count)`, in memory that `owner` keeps alive.

    `allow` is None, or as for `loads`; `writable` is true if the memory is private to this process.
    """
    if load_stored is NULL:
        connect_unpickler()
    return load_stored(stream, size, buffers, count, owner, allow, PRP_ARRAY_WRITABLE if writable else 0)
