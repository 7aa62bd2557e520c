# The function table of csrc/ndarray/api.h. `cimport pyray_ser._ndarray` only declares it. `prp_ndarray()` returns it,
# and imports the extension and numpy on the first call.

from libc.stdint cimport int64_t, uint8_t

cdef extern from "ndarray/api.h" nogil:
    enum:
        PRP_ARRAY_MAX_DIMS
        PRP_ARRAY_MAX_DTYPE
        PRP_ARRAY_STREAM_MAX
        PRP_ARRAY_WRITABLE
        PRP_ARRAY_EXACT
        PRP_ARRAY_PLAIN_OWNER
        PRP_NDARRAY_VERSION
    const char *PRP_NDARRAY_CAPSULE

    ctypedef enum prp_array_kind:
        PRP_ARRAY_DIRECT
        PRP_ARRAY_GATHER

    ctypedef struct prp_array_template:
        int nd
        bint has_strides
        bint readonly
        uint8_t dtype_len
        const char *dtype
        int64_t shape[32]
        int64_t strides[32]

    ctypedef struct prp_array_source:
        prp_array_kind kind
        const void *data
        size_t nbytes
        prp_array_template layout

    bint prp_array_template_looks(const uint8_t *stream, size_t len) noexcept
    bint prp_array_template_read(const uint8_t *stream, size_t len, prp_array_template *t) noexcept
    size_t prp_array_template_write(uint8_t *out, const prp_array_template *t) noexcept

cdef extern from "ndarray/api.h":
    # These functions return -1, or NULL with an exception set, if they fail. NULL without an exception means that the
    # input does not fit; such functions return void *, so that Cython leaves the check to the caller.
    ctypedef struct prp_ndarray_api:
        int version
        int (*describe)(object obj, prp_array_source *source) except -1
        Py_ssize_t (*template_put)(object obj, uint8_t *out, prp_array_source *source) except -1
        bint (*lies_at)(object obj, const void *data, size_t nbytes) noexcept
        int (*gather)(object obj, const prp_array_source *source, void *dst, size_t dst_len) except -1
        void *(*from_stream)(const uint8_t *stream, size_t len, const uint8_t *data, size_t data_len, object owner, int flags) except? NULL
        void *(*from_parts)(object shape, object dtype, int64_t offset, object strides, bint fortran, const uint8_t *data, size_t data_len, object owner, int flags) except? NULL
        int (*seal)(object obj) except -1
        void *(*plain_dtype)(const char *name, size_t len) except? NULL
        object (*dtype_from_name)(const char *name, size_t len)

    bint prp_ndarray_looks(object obj) noexcept
    const prp_ndarray_api *prp_ndarray() except NULL
