# The types of the core that more than one part of it names, whatever the order of the parts.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyray_ser._ndarray cimport prp_array_source
from pyray_ser._pickle cimport prp_put_result
from pyray_ser._prs cimport prs_buffer_entry, prs_draft, prs_error, prs_header, prs_oid, prs_store, prs_view


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


cdef class Store:
    # NULL from close() on. The engine's handle outlives it until the last call, draft, view and window is gone.
    cdef prs_store *handle
    cdef readonly uint64_t id
    cdef readonly object path
    cdef object spill_form  # pyray_ser.store.spill_codec.Form, once it is needed
    cdef object __weakref__

    cdef int opened(self, prs_store *handle) except -1
    cdef int check_open(self) except -1
    cdef int alloc(self, uint64_t size, unsigned flags, prs_draft *draft, int64_t deadline) except -1
    cdef int write(self, prs_draft *draft, uint64_t at, const void *src, size_t n) except -1
    cdef void abort(self, prs_draft *draft) noexcept


cdef class ObjectRef:
    # handle is the one that holds our reference, NULL if none does (lost, or not yet found). `lay`: where the object's bytes
    # were at the last get (NULL: not known), to be prefetched and nothing else.
    cdef prs_oid id
    cdef prs_store *handle
    cdef Store store
    cdef const uint8_t *lay
    cdef bytes origin
    cdef object __weakref__


cdef class Pin:
    # The bytes of one sealed object, in the read-only mapping. `twin` (borrowed, NULL: none): the Private made by twin_of.
    cdef prs_store *handle
    cdef prs_oid id
    cdef prs_view view
    cdef void *twin


cdef class Private:
    # Writable memory of our own: a copy, or a copy-on-write mapping that still needs its pin. `origin`: whose twin it is.
    cdef void *memory
    cdef size_t length
    cdef Pin pin
    cdef Pin origin
    cdef uint8_t *data
    cdef uint64_t size


# Where each buffer of a Gathered lies in the stored form.
cdef struct Place:
    uint64_t off
    bint foreign       # the entry names another object
    prs_oid other


# Bytes that are written as one: `size` bytes at `data`, or, if that is NULL, what buffer `index` gathers.
cdef struct Part:
    uint64_t off
    uint64_t size
    const uint8_t *data
    Py_ssize_t index


# The whole form: a place for each buffer, and `count` parts that ascend and do not overlap.
cdef struct Layout:
    uint64_t total
    Place *places
    Part *parts
    Py_ssize_t count
    void *memory


# A sink that is filled in ascending order. [0, at) is written; `fill` bytes more are in the scratch memory.
cdef struct Writer:
    prs_draft *draft    # NULL: `dst` is memory that no store knows
    uint8_t *dst        # NULL: by way of the scratch memory
    uint8_t *scratch
    uint64_t at
    size_t fill
