# The handle on a store, references, pins. Other extensions reach the engine through the methods here: only `_core` is
# linked with it.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pyray_ser._buffers cimport Gathered
from pyray_ser._prs cimport prs_buffer_entry, prs_draft, prs_error, prs_header, prs_oid, prs_store, prs_view


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
    cdef ObjectRef seal_window(self, prs_draft *draft)
    cdef void abort(self, prs_draft *draft) noexcept
    cdef ObjectRef reference(self, const prs_oid *id)


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


# See _core/write_many.pxi. [0, at) is written; `fill` bytes more are in the scratch memory.
cdef struct Writer:
    prs_draft *draft    # NULL: `dst` is memory that no store knows
    uint8_t *dst        # NULL: by way of the scratch memory
    uint8_t *scratch
    uint64_t at
    size_t fill


cdef int check_header(const void *data, uint64_t have, uint64_t total, prs_header *header, object ref) except -1
cdef int check_entry(const prs_header *header, const void *table, uint32_t index, prs_buffer_entry *entry, object ref) except -1
cdef uint64_t body_offset(const prs_header *header) noexcept nogil
cdef int place(uint64_t *end, uint64_t size, uint64_t *off) except -1
cdef void write_header(void *dst, uint64_t total, uint64_t stream_size, uint32_t nbuffers) noexcept nogil
cdef void write_entry(void *dst, uint32_t index, uint64_t off, uint64_t size) noexcept nogil
cdef int lay_out(Layout *layout, Gathered gathered, Store store) except -1
cdef void free_layout(Layout *layout) noexcept
cdef void writer_open_memory(Writer *w, uint8_t *dst) noexcept
cdef int write_form(Writer *w, Store store, Gathered gathered, const Layout *layout) except -1
# The value of a whole form at `data`, which `owner` keeps alive; `store` (None: none) holds the objects it names.
cdef object decode(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable, Store store,
                   ObjectRef ref)
# The same, of allowed globals only (None: any).
cdef object decode_allowed(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable,
                           Store store, ObjectRef ref, object allow)
cdef Store default_or_open()
cdef ObjectRef put_gathered(Store store, Gathered gathered, int64_t deadline)
# Absolute time in ns from seconds: for ever for None, 0 for "do not wait".
cdef int64_t deadline_of(object timeout) except -1
cdef int corrupt(const char *why, object ref) except -1
# An open window is no use of the handle: it only keeps its memory.
cdef void window_opened(prs_draft *draft) noexcept
cdef void window_aborted(prs_draft *draft) noexcept
cdef void window_closed(prs_draft *draft) noexcept
cdef bytes MEMORYVIEW_STREAM
