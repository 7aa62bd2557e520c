# Buffers over foreign memory, and the form between a pickler and whoever stores what it wrote.

from libc.stdint cimport uint8_t, uint64_t


cdef class Block:
    # `size` bytes at `data`, which stay where they are as long as `owner` lives.
    cdef object owner
    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef bint readonly


cdef class Export:
    # Somebody's buffer, held open.
    cdef Py_buffer view
    cdef bint held


# A run of bytes that something in Gathered.keep (or a view) keeps alive.
cdef struct Span:
    const void *data
    size_t size


cdef class Gathered:
    # What a pickler made of a value: the stream in pieces, the out-of-band buffers in the order the
    # stream asks for them, and the references to objects of `store` that it met (0: none are collected).
    cdef list keep
    cdef list edges
    cdef uint64_t store
    cdef Span *stream
    cdef Py_ssize_t nstream
    cdef Py_ssize_t stream_room
    cdef uint64_t stream_size
    cdef Span *buffers
    cdef Py_buffer *views
    cdef Py_ssize_t nbuffers
    cdef Py_ssize_t buffers_room
    cdef Py_ssize_t nviews

    cdef int add_stream(self, const void *data, size_t size) except -1
    cdef int add_buffer(self, const void *data, size_t size) except -1
    cdef int add_view(self, object exporter) except -1


cdef Block block(object owner, const uint8_t *data, Py_ssize_t size, bint readonly)

# The gathering under way in this thread, or None: an ObjectRef that is reduced looks here.
cdef Gathered current_gathering()
# Make `gathered` (or None) current; returns the one before, to be given back in the end.
cdef Gathered swap_gathering(Gathered gathered)

# Pickle `value` in put mode. References to objects of `store` (0: none) are collected as edges; the others pickle
# themselves.
cdef Gathered gather(object value, uint64_t store)
