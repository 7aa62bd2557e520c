# Buffers over foreign memory, and the form between the pickler and whoever stores what it wrote.

from libc.stdint cimport uint8_t, uint64_t

from pyray_ser._ndarray cimport prp_array_source
from pyray_ser._pickle cimport prp_put_result


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


# A run of bytes. `data` NULL with a size: a strided array, see Gathered.write.
cdef struct Span:
    const void *data
    size_t size


cdef class Gathered:
    # What the pickler made of a value: the stream in pieces, the out-of-band buffers in the order the stream asks for
    # them, and the references to objects of `store` that it met (0: none are collected). Nothing is copied yet.
    cdef prp_put_result result
    cdef bint held
    cdef list edges
    cdef uint64_t store
    cdef uint64_t stream_size
    cdef Py_ssize_t nstream
    cdef Py_ssize_t nbuffers

    cdef Span stream(self, Py_ssize_t i) noexcept
    cdef Span buffer(self, Py_ssize_t i) noexcept
    # Raise if an array was resized since: what its bytes were is gone.
    cdef int check(self) except -1
    # Write buffer i, whose data is NULL, to `to`; needs the GIL.
    cdef int write(self, Py_ssize_t i, void *to) except -1
    # The same buffer as an array and how it lies.
    cdef object array(self, Py_ssize_t i)
    cdef const prp_array_source *source(self, Py_ssize_t i) noexcept


cdef Block block(object owner, const uint8_t *data, Py_ssize_t size, bint readonly)

# The gathering under way in this thread, or None: an ObjectRef that is reduced looks here.
cdef Gathered current_gathering()

# Pickle `value` in put mode. References to objects of `store` (0: none) are collected as edges; the others pickle
# themselves. The result must not outlive changes to `value`.
cdef Gathered gather(object value, uint64_t store)

# The value of a stream whose out-of-band buffers are `buffers[0..count)`, in memory that `owner` keeps.
# `allow`: None, or what `loads` takes. `writable`: the memory is private to this process.
cdef object load(const uint8_t *stream, size_t size, const Span *buffers, size_t count, object owner, object allow,
                 bint writable)
