# The unpickler for other extensions. A `cimport` of this module imports pyray_ser._unpickle, but not numpy.

from libc.stdint cimport uint8_t

cdef extern from "unpickler.h":
    ctypedef struct prp_buffer:
        const uint8_t *ptr
        size_t len

    ctypedef struct prp_loader:
        bint fix_imports
        bint custom_find_class
        bint running
        void *self
        void *owner
        const prp_buffer *table
        size_t table_len
        int array_flags

# Return the value of a stream in memory of another object.
#
# stream, len    the pickle; need not outlive the call
# table, count   the out-of-band buffers in the order of the stream; the array need not outlive the call, but the memory
#                must live as long as `owner`
# owner          keeps the memory alive: a pin, a memoryview, ... It becomes the base of every array over the memory,
#                and every other buffer holds it. It must not export writable buffers, or arrays could be made writable
# allow          None, or as in `loads`
# flags          0, or PRP_ARRAY_WRITABLE if the memory is private to this process and may be written (mmap_mode "c")
#
# Without PRP_ARRAY_WRITABLE every array in the value that holds no objects is read-only and cannot be made writable,
# wherever its bytes lie.
cdef object load_stored(const uint8_t *stream, size_t len, const prp_buffer *table, size_t count, object owner, object allow,
                        int flags)

cdef class Unpickler:
    cdef prp_loader *loader
    cdef bint ready
    cdef object assigned_persistent_load
    cdef object __weakref__

    cdef int check_idle(self) except -1
