# The put interface of the pickler, for the core; csrc/pickle/put.h documents the lifetimes.

from libc.stdint cimport int64_t

cdef extern from "pickle/put.h":
    enum:
        PRP_PUT_SMALL_ROOT

    ctypedef struct prp_put_segment:
        const void *data
        size_t len

    ctypedef struct prp_put_buffer:
        const void *data
        size_t len
        bint readonly

    ctypedef struct prp_put_result:
        const prp_put_segment *segments
        size_t segment_count
        size_t stream_len
        const prp_put_buffer *buffers
        size_t buffer_count

cdef int put_pickle(object obj, unsigned int flags, prp_put_result *result) except -1
cdef int put_check(const prp_put_result *result) except -1
cdef int put_gather(const prp_put_buffer *buffer, void *to) except -1
cdef void put_release(prp_put_result *result) noexcept
