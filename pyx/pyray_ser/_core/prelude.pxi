# uses: nothing
#
# Python and C declarations, constants, deadlines, and `begin` and `end`, which keep a handle open during a call.

from copyreg import dispatch_table as _copyreg_table

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrnoWithFilenameObject
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact, PyFloat_FromDouble
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact, PyLong_FromLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from cpython.object cimport Py_EQ, Py_GT, Py_LE, Py_LT, Py_NE
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free as c_free, qsort
from libc.string cimport memcmp, memcpy, memset, strcmp

from pyray_ser._ndarray cimport (
    PRP_ARRAY_DIRECT, PRP_ARRAY_MAX_DIMS, PRP_ARRAY_PLAIN_OWNER, PRP_ARRAY_WRITABLE, prp_array_source,
    prp_array_template_looks, prp_ndarray, prp_ndarray_looks
)
from pyray_ser._pickle cimport prp_put_buffer, prp_put_result
from pyray_ser._prs cimport *


cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>

    static int64_t prx_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* For display only, because this clock jumps when it is set. */
    static int64_t prx_wall_seconds(void)
    {
        return (int64_t)time(NULL);
    }

    static void prx_nap(int64_t ns)
    {
        struct timespec t = {ns / 1000000000, ns % 1000000000};
        nanosleep(&t, NULL);
    }

    static void *prx_aligned(size_t n)
    {
        void *memory = NULL;
        return posix_memalign(&memory, 64, n ? n : 1) ? NULL : memory;
    }

    #define prx_is_ascii(s) PyUnicode_IS_COMPACT_ASCII(s)
    #define prx_ascii_len(s) PyUnicode_GET_LENGTH(s)
    #define prx_ascii(s) ((const char *)PyUnicode_1BYTE_DATA(s))
    #define prx_is_array(o) (strcmp(Py_TYPE(o)->tp_name, "array.array") == 0)
    #define prx_steal(p) ((PyObject *)(p))
    #define prx_prefetch(p) (__builtin_prefetch(p), __builtin_prefetch((const char *)(p) + 64))

    #define prx_set_dealloc(type, function) (((PyTypeObject *)(type))->tp_dealloc = (function))
    #if CYTHON_USE_TYPE_SPECS
    #error "a pin's destructor would have to give its type back"
    #endif
    #define prx_free(dead) (Py_TYPE(dead)->tp_free(dead))
    #define prx_reborn(dead) PyObject_Init((dead), Py_TYPE(dead))
    """
    int64_t prx_now() noexcept nogil
    int64_t prx_wall_seconds() noexcept nogil
    void prx_nap(int64_t ns) noexcept nogil
    void *prx_aligned(size_t n) noexcept nogil
    bint prx_is_ascii(object s) noexcept
    Py_ssize_t prx_ascii_len(object s) noexcept
    const char *prx_ascii(object s) noexcept
    bint prx_is_array(object o) noexcept
    # Convert a new reference that C returned as a pointer into an object that Cython owns.
    object prx_steal(void *p)
    # Prefetch two cache lines; the address may be invalid.
    void prx_prefetch(const void *p) noexcept
    void prx_set_dealloc(type of, void (*function)(PyObject *) noexcept) noexcept
    void prx_free(PyObject *dead) noexcept
    object prx_reborn(PyObject *dead)

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char *s, Py_ssize_t size, const char *errors)
    int Py_AtExit(void (*func)() noexcept) noexcept
    bint PyUnicode_CheckExact(object o) noexcept
    bint PyByteArray_CheckExact(object o) noexcept
    bint PyMemoryView_Check(object o) noexcept
    object PyMemoryView_FromObject(object o)
    object PyMemoryView_FromMemory(char *memory, Py_ssize_t size, int flags)
    double PyFloat_Unpack8(const char *p, int le) except? -1
    int PyFloat_Pack8(double x, char *p, int le) except -1
    Py_ssize_t PY_SSIZE_T_MAX


# Forward declarations for parts that are included before the definition.
cdef class Store
cdef class ObjectRef


# Copies of at least LONG_COPY bytes release the GIL.
cdef enum:
    LONG_COPY = 64 * 1024
    COW_FROM = 256 * 1024           # mode "c" maps objects of at least this size and copies smaller ones
    REFERENCE_FROM = 64 * 1024      # minimum size of a buffer that `put` stores as a reference
    REFERENCE_SHARE = 16            # the buffer must also be at least 1/16 of the object that it keeps alive
    PAD = 4096                      # maximum padding before a buffer: one page
    HEAD = 64 + 1024                # header, one entry and the stream of one array or scalar

cdef int64_t FOREVER = INT64_MAX

STATUS = {
    "SYS": PRS_E_SYS, "NOMEM": PRS_E_NOMEM, "FULL": PRS_E_FULL, "BACKING": PRS_E_BACKING, "CLIENTS": PRS_E_CLIENTS,
    "OBJECTS": PRS_E_OBJECTS, "LOST": PRS_E_LOST, "FREED": PRS_E_FREED, "AGAIN": PRS_E_AGAIN, "TIMEOUT": PRS_E_TIMEOUT,
    "BUSY": PRS_E_BUSY, "CORRUPT": PRS_E_CORRUPT, "VERSION": PRS_E_VERSION, "FOREIGN": PRS_E_FOREIGN,
    "CLOSED": PRS_E_CLOSED, "INTR": PRS_E_INTR, "INVAL": PRS_E_INVAL, "NOTFOUND": PRS_E_NOTFOUND,
    "EXISTS": PRS_E_EXISTS, "SPILLED": PRS_E_SPILLED,
}


cdef int64_t deadline_of(object timeout) except -1:
    """Return the deadline in ns of the monotonic clock: FOREVER for None, 0 for "do not wait"."""
    if timeout is None:
        return FOREVER
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    if seconds == 0:
        return 0
    if seconds > 1e9:
        return FOREVER
    return prx_now() + <int64_t>(seconds * 1e9)


cdef inline prs_store *begin(Store store) noexcept:
    """Keep the handle open during a call of the engine without the GIL; return it, or NULL if it is closed."""
    if store.handle is not NULL:
        prs_use(store.handle)
    return store.handle


cdef inline void end(prs_store *handle) noexcept:
    """End the use that `begin` started; if the store was closed meanwhile, the last use releases its handle."""
    if handle is not NULL and prs_unuse(handle):
        with nogil:
            prs_release(handle)


cdef object oid_bytes(const prs_oid *id):
    return PyBytes_FromStringAndSize(<const char *>id, sizeof(prs_oid))
