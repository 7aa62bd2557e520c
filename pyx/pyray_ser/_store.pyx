"""The handle on a store, references, and the paths of `put` and `get`.

What runs per operation is here: a small value or an array is written into its extent and read from it without a Python
frame in between. Policy is elsewhere: which store is found (`pyray_ser.store`), how a reference travels
(`pyray_ser.ref`), which exception a status becomes (`pyray_ser._status`); these modules are imported when they are first
needed and are called on slow paths only.

No lock of ours is ever held here; the engine's own are taken and left within one call of it. Destructors call only
functions of the engine that never block.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact, PyFloat_FromDouble
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact, PyLong_FromLongLong
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, Py_GE, Py_GT, Py_LE, Py_LT, Py_NE
from cpython.ref cimport PyObject
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free as c_free, qsort
from libc.string cimport memcmp, memcpy, memset

from pyray_ser._buffers cimport Block, Gathered, Span, block, current_gathering, gather, load
from pyray_ser._ndarray cimport (
    PRP_ARRAY_DIRECT, PRP_ARRAY_MAX_DIMS, PRP_ARRAY_WRITABLE, prp_array_source, prp_array_template_looks, prp_ndarray,
    prp_ndarray_api, prp_ndarray_looks
)
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
    """
    int64_t prx_now() noexcept nogil
    void prx_nap(int64_t ns) noexcept nogil
    void *prx_aligned(size_t n) noexcept nogil
    bint prx_is_ascii(object s) noexcept
    Py_ssize_t prx_ascii_len(object s) noexcept
    const char *prx_ascii(object s) noexcept
    bint prx_is_array(object o) noexcept
    # A new reference that came as a plain pointer becomes an object of Cython's.
    object prx_steal(void *p)

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char *s, Py_ssize_t size, const char *errors)
    int Py_AtExit(void (*func)() noexcept) noexcept
    bint PyUnicode_CheckExact(object o) noexcept
    bint PyByteArray_CheckExact(object o) noexcept
    bint PyMemoryView_Check(object o) noexcept
    object PyMemoryView_FromObject(object o)
    double PyFloat_Unpack8(const char *p, int le) except? -1
    int PyFloat_Pack8(double x, char *p, int le) except -1
    int64_t _PyLong_AsTime_t(object)


# Copies longer than this are made without the GIL.
cdef enum:
    LONG_COPY = 64 * 1024
    COW_FROM = 256 * 1024           # mode "c": a mapping from here on, below a copy
    REFERENCE_FROM = 64 * 1024      # re-put by reference: from this size on,
    REFERENCE_SHARE = 16            # and only if it is at least this part of the object it would keep alive
    HEAD = 64 + 1024                # header, one entry and the stream of one array or scalar

cdef int64_t FOREVER = INT64_MAX

STATUS = {
    "SYS": PRS_E_SYS, "NOMEM": PRS_E_NOMEM, "FULL": PRS_E_FULL, "BACKING": PRS_E_BACKING, "CLIENTS": PRS_E_CLIENTS,
    "OBJECTS": PRS_E_OBJECTS, "LOST": PRS_E_LOST, "FREED": PRS_E_FREED, "AGAIN": PRS_E_AGAIN, "TIMEOUT": PRS_E_TIMEOUT,
    "BUSY": PRS_E_BUSY, "CORRUPT": PRS_E_CORRUPT, "VERSION": PRS_E_VERSION, "FOREIGN": PRS_E_FOREIGN,
    "CLOSED": PRS_E_CLOSED, "INTR": PRS_E_INTR, "INVAL": PRS_E_INVAL, "NOTFOUND": PRS_E_NOTFOUND,
    "EXISTS": PRS_E_EXISTS,
}


# ---- errors --------------------------------------------------------------------------------------------------------

cdef int fail(int status, const prs_error *error, object store=None, object ref=None, object timeout=None) except -1:
    """The one place that raises what the engine reported."""
    from pyray_ser._status import exception

    if error is NULL or error.code != status:
        raise exception(status, store=store, ref=ref, timeout=timeout)
    raise exception(
        status, (<const char *>error.what).decode("utf-8", "replace"), errno=error.sys_errno, pid=error.pid,
        want=error.want, capacity=error.capacity, used=error.used, store=store, ref=ref, timeout=timeout)


cdef int corrupt(const char *why, object ref) except -1:
    from pyray_ser.exceptions import CorruptObjectError

    raise CorruptObjectError(ref=None if ref is None else repr(ref), reason=why.decode("ascii"))


cdef int64_t deadline_of(object timeout) except -1:
    """Absolute time in ns: FOREVER for None, 0 for "do not wait"."""
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


# ---- open handles ----------------------------------------------------------------------------------------------------

cdef Link *links = NULL


cdef void close_at_exit() noexcept:
    # Runs after the interpreter is gone. A daemon thread may still be inside a call without the GIL: what it uses is left
    # to the kernel.
    cdef Link *link = links
    while link is not NULL:
        if link.handle is not NULL and link.users == 0:
            prs_close(link.handle)
            link.handle = NULL
        link = link.next


cdef inline prs_store *begin(Store store) noexcept:
    """Before the GIL is released around the engine: keeps the handle from being closed."""
    store.link.users += 1
    return store.handle


cdef inline void end(Store store) noexcept:
    cdef Link *link = store.link
    link.users -= 1
    if link.users == 0 and link.closing and link.handle is not NULL:
        prs_close(link.handle)
        link.handle = NULL


# Every open store of this process by its id, and the one that put() uses.
cdef dict stores = {}
cdef Store default_store = None


@cython.final
cdef class Store:
    """
    One open store.

    Made by `init`, or when the first `put` or the first reference needs it; `shutdown` closes it.

    Attributes
    ----------
    id : int
        Random identity of the store, part of every reference.
    path : str or None
        The file of a named store.
    """

    def __init__(self):
        raise TypeError("stores are opened by init()")

    def __dealloc__(self):
        # Only when the interpreter tears the modules down: an open store is in `stores`.
        cdef Link *link = self.link
        if link is not NULL and link.handle is not NULL and link.users == 0:
            prs_close(link.handle)
            link.handle = NULL

    cdef int opened(self, prs_store *handle) except -1:
        global links
        cdef Link *link
        if links is NULL and Py_AtExit(close_at_exit) < 0:
            pass  # 32 others are registered: the process's end is noticed by the other clients instead
        link = <Link *>PyMem_RawMalloc(sizeof(Link))
        if link is NULL:
            prs_close(handle)
            raise MemoryError()
        link.handle = handle
        link.users = 0
        link.closing = False
        link.next = links
        links = link
        self.link = link
        self.handle = handle
        self.id = prs_id(handle)
        stores[self.id] = self
        return 0

    cdef int check_open(self) except -1:
        if self.handle is NULL:
            from pyray_ser.exceptions import StoreClosedError

            raise StoreClosedError(store=f"{self.id:016x}")
        return 0

    @property
    def closed(self):
        """Whether `shutdown` has closed it."""
        return self.handle is NULL

    @property
    def capacity(self):
        """Bytes it may hold."""
        self.check_open()
        return prs_capacity(self.handle)

    @property
    def locator(self):
        """tuple of int : pid, start time and descriptor under which others find it."""
        cdef int32_t pid, fd
        cdef uint64_t start
        self.check_open()
        prs_locator(self.handle, &pid, &start, &fd)
        return pid, start, fd

    @property
    def spill_dir(self):
        """str or None : the directory for objects that do not fit."""
        self.check_open()
        cdef bytes directory = prs_spill_directory(self.handle)
        return directory.decode("utf-8", "surrogateescape") or None

    @property
    def orphaned(self):
        """Whether a fork left this process without a client slot in it."""
        return self.handle is not NULL and prs_is_orphan(self.handle)

    def __repr__(self):
        if self.handle is NULL:
            return f"<Store {self.id:016x} (closed)>"
        where = "anonymous" if self.path is None else repr(self.path)
        return f"<Store {self.id:016x} {where}, {prs_capacity(self.handle)} bytes>"

    def close(self):
        """Stop being a client. Views stay valid, references do not. May be repeated."""
        global default_store
        cdef Link *link = self.link
        if self.handle is NULL:
            return
        self.handle = NULL
        if stores.get(self.id) is self:
            del stores[self.id]
        if default_store is self:
            default_store = None
        if link.users:
            link.closing = True
            return
        cdef prs_store *handle = link.handle
        link.handle = NULL
        with nogil:
            prs_close(handle)

    def stats(self):
        """The engine's counters, as a dict of int."""
        cdef prs_stats s
        self.check_open()
        cdef int status
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_get_stats(handle, &s)
        end(self)
        if status != PRS_OK:
            fail(status, NULL, self)
        return {
            "capacity": s.capacity, "used": s.used, "reserved": s.reserved, "backed": s.backed, "overhead": s.overhead,
            "objects": s.objects, "unsealed": s.unsealed, "largest_free": s.largest_free, "slots": s.slots,
            "in_flight": s.in_flight, "edges": s.edges, "spilled": s.spilled,
            "spilled_bytes": s.spilled_bytes, "orphaned": s.orphaned, "serial": s.serial, "clients": s.clients, "max_clients": s.max_clients, "reaped": s.reaped, "stolen": s.stolen,
        }

    def records(self):
        """One dict per object, oldest slot first."""
        cdef dict named = {identity: name for name, identity in names_of(self)}
        cdef prs_record[64] found
        cdef uint32_t cursor = 0
        cdef int n, i
        cdef prs_store *handle
        cdef list out = []
        while True:
            self.check_open()
            handle = begin(self)
            with nogil:
                n = prs_list(handle, &cursor, found, 64)
            end(self)
            if n < 0:
                fail(n, NULL, self)
            for i in range(n):
                out.append({
                    "id": oid_bytes(&found[i].id).hex(), "serial": found[i].id.serial, "size": found[i].size,
                    "extent": found[i].extent, "offset": found[i].off, "state": STATES.get(found[i].state, "unknown"),
                    "ref_holders": found[i].ref_holders, "pin_holders": found[i].pin_holders,
                    "tokens_and_edges": found[i].tokens_and_edges, "creator_pid": found[i].creator_pid or None,
                    "created": found[i].created, "freed": bool(found[i].freed), "orphaned": bool(found[i].orphaned),
                    "spilled": bool(found[i].spilled), "name": named.get(oid_bytes(&found[i].id)),
                })
            if n < 64:
                return out

    def client_pids(self):
        """Pids of the processes that are attached."""
        cdef int32_t[4096] pids
        self.check_open()
        cdef int n = prs_client_pids(self.handle, pids, 4096)
        if n < 0:
            fail(n, NULL, self)
        return [pids[i] for i in range(n)]

    def check(self):
        """Verify every invariant of the store; raises `CorruptObjectError` that says which one is broken."""
        cdef prs_error error
        cdef int status
        self.check_open()
        error.code = 0
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_check(handle, &error)
        end(self)
        if status != PRS_OK:
            fail(status, &error, self)

    def look(self, double min_age=0):
        """Clean up after dead clients, unless somebody did within `min_age` seconds."""
        cdef int status
        cdef int64_t age = <int64_t>(min_age * 1e9)
        self.check_open()
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_look(handle, age)
        end(self)
        if status < 0:
            fail(status, NULL, self)

    def trim(self, uint64_t keep=0):
        """Give freed pages beyond `keep` bytes back to the kernel; returns how many bytes went."""
        cdef uint64_t given
        self.check_open()
        cdef prs_store *handle = begin(self)
        with nogil:
            given = prs_trim(handle, keep)
        end(self)
        return given

    cdef int alloc(self, uint64_t size, unsigned flags, prs_draft *draft, int64_t deadline) except -1:
        """Allocate; while the store is full, try again until `deadline` (0: once)."""
        cdef prs_error error
        cdef int status
        cdef prs_store *handle
        cdef int64_t nap = 1000000
        while True:
            self.check_open()
            error.code = 0
            if size < PRS_SMALL_MAX and not flags & PRS_ALLOC_WINDOW:
                status = prs_alloc(self.handle, size, flags, draft, &error)
            else:
                handle = begin(self)
                with nogil:
                    status = prs_alloc(handle, size, flags, draft, &error)
                end(self)
            if status == PRS_OK:
                return 0
            if status == PRS_E_CLOSED:
                revive(self)
                continue
            if status not in (PRS_E_FULL, PRS_E_BACKING, PRS_E_OBJECTS) or deadline == 0 or prx_now() >= deadline:
                fail(status, &error, self)
            with nogil:
                prx_nap(nap)
            nap = min(nap * 2, 20000000)
            PyErr_CheckSignals()

    cdef int write(self, prs_draft *draft, uint64_t at, const void *src, size_t n) except -1:
        cdef prs_error error
        cdef int status
        cdef prs_store *handle
        error.code = 0
        if n == 0:
            return 0
        if draft.dst is not NULL:
            memcpy(<uint8_t *>draft.dst + at, src, n)
            return 0
        self.check_open()
        handle = begin(self)
        if n < LONG_COPY:
            status = prs_write(handle, draft, at, src, n, &error)
        else:
            with nogil:
                status = prs_write(handle, draft, at, src, n, &error)
        end(self)
        if status != PRS_OK:
            fail(status, &error, self)
        return 0

    cdef ObjectRef seal(self, prs_draft *draft):
        return seal_or_abort(self, draft)

    cdef void abort(self, prs_draft *draft, bint keep_window) noexcept:
        if self.handle is not NULL:
            prs_abort(self.handle, draft, keep_window)

    def attach_again(self, int32_t pid, int fd):
        """In a forked child without a client slot: become a client anew. False if `pid` does not have this store."""
        cdef prs_store *handle = NULL
        cdef prs_options options
        memset(&options, 0, sizeof(options))
        if self.handle is NULL or not prs_is_orphan(self.handle):
            return self.handle is not NULL
        if prs_attach_pid(&handle, pid, fd, self.id, &options, NULL) != PRS_OK:
            return False
        # The old handle stays in its link for the views taken through it.
        self.opened(handle)
        return True

    cdef ObjectRef reference(self, const prs_oid *id):
        """One more reference to an object that this process holds or is making."""
        self.check_open()
        cdef ObjectRef ref = new_ref(self, NULL, id)
        cdef int status = prs_ref(self.handle, id)
        if status != PRS_OK:
            fail(status, NULL, self, ref)
        ref.handle = self.handle
        return ref


STATES = {
    PRS_STATE_RESERVED: "reserved", PRS_STATE_CREATING: "creating", PRS_STATE_SEALED: "sealed",
    PRS_STATE_FREEING: "freeing", PRS_STATE_SPILLING: "spilling",
}


# ---- opening ---------------------------------------------------------------------------------------------------------

cdef int revive(Store store) except -1:
    """Make a store usable again in a forked child that got no client slot; raises if it cannot be."""
    from pyray_ser.store import reattach

    if store.handle is NULL or not prs_is_orphan(store.handle) or not reattach(store):
        store.check_open()
        fail(PRS_E_CLOSED, NULL, store)
    return 0


def create_store(path=None, *, capacity=0, max_clients=0, max_objects=0, lock_timeout=0.0, warm_reserve=0, spill_dir=None,
                 flags=0):
    """A new store with this process as its first client; `path` None makes an anonymous one."""
    return _open(0, path, 0, -1, 0, capacity, max_clients, max_objects, lock_timeout, warm_reserve, spill_dir, flags)


def attach_path(path, *, lock_timeout=0.0, flags=0):
    """Attach to the store in the file `path`."""
    return _open(1, path, 0, -1, 0, 0, 0, 0, lock_timeout, 0, None, flags)


def attach_pid(pid, fd=-1, store=0, *, lock_timeout=0.0, flags=0):
    """Attach to a store (0: any) that process `pid` has open; None if it has no such store."""
    return _open(2, None, pid, fd, store, 0, 0, 0, lock_timeout, 0, None, flags)


def snapshot(path):
    """
    A copy of the tables of the store in the file `path`, to look at one that nobody uses any more without changing it.

    Returns
    -------
    tuple of (Store, str or None)
        The copy, good for `stats`, `records`, `check` and `names_of` only, and the spill directory of the original.
    """
    cdef char[PRS_SPILL_DIR_MAX] directory
    cdef prs_error error
    cdef prs_store *handle = NULL
    cdef int status
    cdef bytes encoded = path_bytes(path)
    cdef const char *name = encoded
    error.code = 0
    memset(directory, 0, PRS_SPILL_DIR_MAX)
    with nogil:
        status = prs_snapshot(&handle, name, directory, &error)
    if status != PRS_OK:
        fail(status, &error, path)
    if prs_id(handle) in stores:
        prs_close(handle)
        raise ValueError(f"{path}: this process uses that store itself")
    cdef Store store = Store.__new__(Store)
    store.opened(handle)
    spilled_to = (<const char *>directory).decode("utf-8", "surrogateescape")
    return store, spilled_to or None


cdef object _open(int how, path, int32_t pid, int fd, uint64_t ident, uint64_t capacity, uint32_t max_clients,
                  uint32_t max_objects, double lock_timeout, uint64_t warm_reserve, spill_dir, uint32_t flags):
    cdef prs_options options
    cdef prs_error error
    cdef prs_store *handle = NULL
    cdef int status
    cdef bytes encoded = None, encoded_spill = None
    cdef const char *name = NULL
    memset(&options, 0, sizeof(options))
    error.code = 0
    if path is not None:
        encoded = path_bytes(path)
        name = encoded
    if spill_dir is not None:
        encoded_spill = path_bytes(spill_dir)
        options.spill_dir = encoded_spill
    options.path = name
    options.capacity = capacity
    options.max_clients = max_clients
    options.max_objects = max_objects
    options.lock_timeout = <int64_t>(lock_timeout * 1e9)
    options.warm_reserve = warm_reserve
    options.flags = flags
    with nogil:
        if how == 0:
            status = prs_create(&handle, &options, &error)
        elif how == 1:
            status = prs_attach_path(&handle, name, &options, &error)
        else:
            status = prs_attach_pid(&handle, pid, fd, ident, &options, &error)
    if how == 2 and status in (PRS_E_NOTFOUND, PRS_E_FOREIGN):
        return None
    if status != PRS_OK:
        fail(status, &error, path)
    cdef Store known = stores.get(prs_id(handle))
    if known is not None:
        prs_close(handle)
        return known
    cdef Store store = Store.__new__(Store)
    store.path = path
    store.opened(handle)
    return store


cdef bytes path_bytes(object path):
    import os

    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def stores_of(int32_t pid):
    """list of (int, int) : id and descriptor of each store that process `pid` has open."""
    cdef uint64_t[64] ids
    cdef int[64] fds
    cdef int n = prs_list_pid(pid, ids, fds, 64)
    return [(ids[i], fds[i]) for i in range(n)]


def open_stores():
    """list of Store : those open in this process."""
    return list(stores.values())


def default():
    """Store or None : the one that `put` uses."""
    return default_store


def set_default(Store store):
    """Make `store` (None: none) the one that `put` uses."""
    global default_store
    default_store = store


def start_time(int32_t pid):
    """int : when process `pid` started, in clock ticks; 0 if it is gone."""
    return prs_start_time(pid)


def fork_count():
    """int : differs in every forked child."""
    return prs_fork_count()


cdef Store default_or_open():
    if default_store is None:
        from pyray_ser.store import open_default

        open_default()
    return default_store


# ---- references ------------------------------------------------------------------------------------------------------

# How a reference travels: everything a receiver needs to find the store and take over. Little endian and without padding.
# Behind it come up to NODE_MAX bytes: the name of the node.
cdef struct Travel:
    prs_oid id
    uint64_t start_time     # of the sender; with pid and fd its locator
    int32_t pid
    int32_t fd
    uint32_t kind           # 0, PRS_TOKEN_ONCE or PRS_TOKEN_STICKY
    uint32_t token_index
    uint64_t token_serial

cdef enum:
    NODE_MAX = 32


cdef object oid_bytes(const prs_oid *id):
    return PyBytes_FromStringAndSize(<const char *>id, sizeof(prs_oid))


cdef inline ObjectRef new_ref(Store store, prs_store *handle, const prs_oid *id):
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.id = id[0]
    ref.handle = handle
    ref.store = store
    return ref


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class ObjectRef:
    """
    A reference to an object in a store.

    Made by `put` and `seal`. The object lives while any process holds a reference or a view. A reference can be sent to
    another process in any way that pickles it; it is awaitable, hashable and ordered (by store, then by age).
    """

    def __init__(self):
        raise TypeError("references are made by put() and seal(); ObjectRef.from_hex() reads one written down")

    def __dealloc__(self):
        # A handle that was closed, or that a fork orphaned and another replaced, has given its references back already.
        if self.handle is not NULL and self.handle == self.store.handle:
            prs_unref(self.handle, &self.id)

    def __hash__(self):
        return <Py_hash_t>(((self.id.serial * <uint64_t>0x9E3779B97F4A7C15) ^ self.id.store) >> 1)

    def __richcmp__(self, other, int op):
        if type(other) is not ObjectRef:
            return NotImplemented
        cdef ObjectRef that = <ObjectRef>other
        cdef int order
        if self.id.store != that.id.store:
            order = -1 if self.id.store < that.id.store else 1
        elif self.id.serial != that.id.serial:
            order = -1 if self.id.serial < that.id.serial else 1
        else:
            order = 0
        if op == Py_EQ:
            return order == 0
        if op == Py_NE:
            return order != 0
        if op == Py_LT:
            return order < 0
        if op == Py_LE:
            return order <= 0
        if op == Py_GT:
            return order > 0
        return order >= 0

    @classmethod
    def __class_getitem__(cls, item):
        from types import GenericAlias

        return GenericAlias(cls, item)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def binary(self):
        """bytes : the 24 bytes that identify the object."""
        return oid_bytes(&self.id)

    def hex(self):
        """str : the same as 48 hexadecimal digits."""
        return oid_bytes(&self.id).hex()

    @staticmethod
    def from_binary(data):
        """
        The reference with the identity that `binary` gave.

        The store must be open in this process or findable through its parents, and the object alive.
        """
        cdef bytes identity = bytes(data)
        if len(identity) != sizeof(prs_oid):
            raise ValueError("an object reference is 24 bytes, or 48 hexadecimal digits")
        cdef ObjectRef ref = load_ref(identity)
        adopt(ref)
        return ref

    @staticmethod
    def from_hex(text):
        """The reference with the identity that `hex` gave; see `from_binary`."""
        return ObjectRef.from_binary(bytes.fromhex(text))

    @property
    def size(self):
        """int or None : bytes of the stored form, header included; None while it is being made."""
        cdef prs_view view
        adopt(self)
        cdef int status = prs_pin(self.handle, &self.id, &view)
        if status == PRS_E_AGAIN:
            return None
        if status != PRS_OK:
            fail(status, NULL, self.store, self)
        prs_unpin(self.handle, &self.id)
        return view.size

    @property
    def serial(self):
        """int : number of the object in its store; later objects have larger ones."""
        return self.id.serial

    @property
    def store_id(self):
        """int : identity of the store."""
        return self.id.store

    @property
    def state(self):
        """str : "sealed", "creating", "freed", "lost" or, after `shutdown`, "closed"."""
        cdef int status
        if self.store is None:
            return "lost"
        if self.store.handle is NULL:
            return "closed"
        status = prs_state(self.store.handle, &self.id)
        if status == PRS_OK:
            return "sealed"
        return "creating" if status == PRS_E_AGAIN else "freed" if status == PRS_E_FREED else "lost"

    def __repr__(self):
        from pyray_ser.ref import text

        return text(self)

    def _repr_html_(self):
        from pyray_ser.ref import html

        return html(self)

    def __await__(self):
        from pyray_ser.waiting import wait_async

        return wait_async(self).__await__()

    def future(self):
        """
        A future that gets the value.

        Returns
        -------
        concurrent.futures.Future
        """
        from pyray_ser.waiting import future

        return future(self)

    def __reduce_ex__(self, protocol):
        cdef Gathered gathering = current_gathering()
        if gathering is not None and gathering.store == self.id.store and self.handle is not NULL:
            gathering.edges.append(self)
            return load_ref, (oid_bytes(&self.id),)
        from pyray_ser.ref import reduce

        return reduce(self)

    def __reduce__(self):
        return self.__reduce_ex__(4)

    def travel(self, int kind, bytes node):
        """
        What goes into a message: identity, locator and a token of `kind` (1: loaded once, 2: any number of times).

        Returns
        -------
        tuple of (bytes, tuple)
            The bytes for `load_ref`, and the token for `drop_token`.
        """
        cdef prs_token token
        return message_of(self, kind, node, &token), (token.index, token.serial)

    def drop_token(self, tuple token):
        """End a token that `travel` took; may be repeated."""
        if self.store is not None:
            drop_token(self.store, oid_bytes(&self.id), token)


cdef bytes message_of(ObjectRef ref, int kind, bytes node, prs_token *token):
    """What `travel` returns first; `token` gets what it took."""
    cdef Travel out
    cdef bytes text
    cdef int status
    cdef size_t length = min(PyBytes_GET_SIZE(node), NODE_MAX)
    memset(&out, 0, sizeof(out))
    memset(token, 0, sizeof(prs_token))
    out.id = ref.id
    if kind:
        adopt(ref)
        status = prs_token_take(ref.handle, &ref.id, kind, token)
        if status == PRS_E_CLOSED:
            revive(ref.store)
            adopt(ref)
            status = prs_token_take(ref.handle, &ref.id, kind, token)
        if status != PRS_OK:
            fail(status, NULL, ref.store, ref)
    if ref.store is not None and ref.store.handle is not NULL:
        prs_locator(ref.store.handle, &out.pid, &out.start_time, &out.fd)
    out.kind = kind
    out.token_index = token.index
    out.token_serial = token.serial
    text = PyBytes_FromStringAndSize(NULL, sizeof(out) + length)
    memcpy(PyBytes_AS_STRING(text), &out, sizeof(out))
    memcpy(PyBytes_AS_STRING(text) + sizeof(out), PyBytes_AS_STRING(node), length)
    return text


# The context variable of `pyray_ser.scope` and the name of this node, once a reference was sent.
cdef object scope_variable = None
cdef bytes node_name = None


@cython.binding(False)
def reduce_for_message(ObjectRef ref not None):
    """
    Reduce a reference for multiprocessing's own pickler: a token holds the object until the message is loaded.

    Compiled, because it runs once per message between two processes that have just woken up, where every line of Python
    costs several times what it costs in a loop.
    """
    global scope_variable, node_name
    cdef prs_token token
    if scope_variable is None:
        from pyray_ser.scope import _current
        from pyray_ser.store import node_name as name

        node_name = name()
        scope_variable = _current
    if get_value(scope_variable) is None:
        return load_ref, (message_of(ref, PRS_TOKEN_ONCE, node_name, &token),)
    from pyray_ser.scope import hold

    return load_ref, (hold(ref, PRS_TOKEN_ONCE, node_name),)


def drop_token(Store store, bytes identity, tuple token):
    """End a token by the store, the object's `binary` and the token; may be repeated."""
    cdef prs_token t
    cdef prs_oid id
    t.index, t.serial = token
    t.unused = 0
    if len(identity) != sizeof(prs_oid):
        raise ValueError("an object reference is 24 bytes")
    memcpy(&id, PyBytes_AS_STRING(identity), sizeof(prs_oid))
    if store.handle is not NULL:
        prs_token_drop(store.handle, &id, &t)


cdef int read_travel(bytes blob, Travel *out) except -1:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(blob)
    memset(out, 0, sizeof(Travel))
    if n == sizeof(prs_oid):
        memcpy(&out.id, PyBytes_AS_STRING(blob), sizeof(prs_oid))
        out.fd = -1
    elif <Py_ssize_t>sizeof(Travel) <= n <= <Py_ssize_t>sizeof(Travel) + NODE_MAX:
        memcpy(out, PyBytes_AS_STRING(blob), sizeof(Travel))
    else:
        corrupt(b"a pickled reference has the wrong length", None)
    return 0


def load_ref(bytes blob not None):
    """
    Take over a reference that was pickled.

    Never fails because of the object: a reference to what is gone loads, and `get` says what became of it.
    """
    cdef Travel message
    cdef prs_token token
    cdef int status
    read_travel(blob, &message)
    cdef Store store = stores.get(message.id.store)
    if store is None:
        from pyray_ser.store import find

        store = find(message.id.store, message.pid, message.start_time, message.fd)
    cdef ObjectRef ref = new_ref(store, NULL, &message.id)
    if store is None:
        ref.origin = blob
        return ref
    if store.handle is NULL:
        return ref
    if prs_is_orphan(store.handle):
        revive(store)
    if message.kind == PRS_TOKEN_ONCE and message.token_index:
        token.index = message.token_index
        token.unused = 0
        token.serial = message.token_serial
        status = prs_token_claim(store.handle, &ref.id, &token)
    else:
        status = prs_ref(store.handle, &ref.id)
    if status == PRS_OK:
        ref.handle = store.handle
    return ref


cdef int adopt(ObjectRef ref) except -1:
    """Make sure that this process holds the object through the store's present handle."""
    cdef Travel message
    cdef int status
    if ref.handle is not NULL and ref.handle == ref.store.handle:
        return 0
    if ref.store is None:
        from pyray_ser.store import find, unreachable

        read_travel(ref.origin, &message)
        store = find(ref.id.store, message.pid, message.start_time, message.fd)
        if store is None:
            raise unreachable(ref, ref.origin[sizeof(Travel):])
        ref.store = store
    ref.store.check_open()
    status = prs_ref(ref.store.handle, &ref.id)
    if status == PRS_E_CLOSED:
        revive(ref.store)
        status = prs_ref(ref.store.handle, &ref.id)
    if status != PRS_OK:
        # prs_ref may not tell "freed" from "lost"; the slot may still know.
        if prs_state(ref.store.handle, &ref.id) == PRS_E_FREED:
            status = PRS_E_FREED
        fail(status, NULL, ref.store, ref)
    ref.handle = ref.store.handle
    return 0


# ---- views -----------------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(256)
cdef class Pin:
    """The bytes of one stored object, read-only, as long as this lives. The base of arrays that `get` returns."""

    def __dealloc__(self):
        if self.handle is not NULL:
            prs_unpin(self.handle, &self.id)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.view.data, self.view.size, True, flags)

    def __len__(self):
        return self.view.size

    def __repr__(self):
        return f"<view of stored object {self.id.serial}, {self.view.size} bytes>"


@cython.final
@cython.no_gc
cdef class Private:
    """Writable bytes that only this process sees: what mode "c" gives."""

    def __dealloc__(self):
        if self.pin is not None:
            prs_cow_close(self.memory, self.length)
        else:
            c_free(self.memory)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, False, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<private copy of {self.size} bytes>"


cdef Private privately(Pin pin, ObjectRef ref):
    cdef Private made = Private.__new__(Private)
    cdef prs_error error
    cdef int status
    cdef void *memory
    cdef size_t length
    cdef uint8_t *data
    made.size = pin.view.size
    if made.size < COW_FROM:
        made.memory = prx_aligned(made.size)
        if made.memory is NULL:
            raise MemoryError()
        memcpy(made.memory, pin.view.data, made.size)
        made.data = <uint8_t *>made.memory
        return made
    error.code = 0
    status = prs_cow_open(pin.handle, &pin.id, &pin.view, &memory, &length, &data, &error)
    if status != PRS_OK:
        fail(status, &error, None, ref)
    made.memory = memory
    made.length = length
    made.data = data
    made.pin = pin
    return made


# ---- headers and tables ----------------------------------------------------------------------------------------------

cdef int check_header(const void *data, uint64_t have, uint64_t total, prs_header *header, object ref) except -1:
    """Copy and check a header of which `have` bytes are there; the whole form must have `total` bytes (0: any)."""
    cdef const char *why = prs_format_check_header(data, have, header)
    if why is NULL and total and header.total != total:
        why = b"its length is not the one its header tells"
    if why is not NULL:
        corrupt(why, ref)
    return 0


cdef int check_entry(const prs_header *header, const void *table, uint32_t index, prs_buffer_entry *entry, object ref) except -1:
    cdef const char *why = prs_format_check_entry(header, table, index, entry)
    if why is not NULL:
        corrupt(why, ref)
    return 0


cdef uint64_t body_offset(const prs_header *header) noexcept nogil:
    return prs_format_body(header)


cdef int place(uint64_t *end, uint64_t size, uint64_t *off) except -1:
    if not prs_format_place(end, size, off):
        raise OverflowError("the object is larger than any store")
    return 0


cdef void handle_close_window(prs_store *handle, const prs_draft *draft) noexcept:
    # A window keeps a pin, so the handle's memory is there even after close().
    prs_window_close(handle, draft)


cdef void write_header(void *dst, uint64_t total, uint64_t stream_size, uint32_t nbuffers) noexcept nogil:
    prs_format_write_header(dst, total, stream_size, nbuffers)


cdef void write_entry(void *dst, uint32_t index, uint64_t off, uint64_t size) noexcept nogil:
    prs_format_write_entry(dst, index, off, size, NULL)


# ---- put: one stream, at most one buffer -----------------------------------------------------------------------------

cdef Py_ssize_t scalar_stream(object value, uint8_t *out) except -1:
    """Write the stream of None, a bool, int, float or short ASCII str to `out` (280 bytes); 0 if it is something else."""
    cdef long long number
    cdef int overflow, n
    cdef Py_ssize_t length
    out[0] = 0x80
    out[1] = 5
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return 0
        if 0 <= number <= 0xff:
            out[2] = c'K'
            n = 1
        elif 0 <= number <= 0xffff:
            out[2] = c'M'
            n = 2
        elif -0x80000000LL <= number <= 0x7fffffffLL:
            out[2] = c'J'
            n = 4
        else:
            n = 8
            # drop bytes that only repeat the sign
            while (number >> (8 * (n - 1) - 1)) == (-1 if number < 0 else 0):
                n -= 1
            out[2] = 0x8a
            out[3] = n
            memcpy(out + 4, &number, n)
            out[4 + n] = c'.'
            return 5 + n
        memcpy(out + 3, &number, n)
        out[3 + n] = c'.'
        return 4 + n
    if PyFloat_CheckExact(value):
        out[2] = c'G'
        PyFloat_Pack8(PyFloat_AS_DOUBLE(value), <char *>out + 3, 0)
        out[11] = c'.'
        return 12
    if value is None:
        out[2] = c'N'
        out[3] = c'.'
        return 4
    if value is True or value is False:
        out[2] = 0x88 if value is True else 0x89
        out[3] = c'.'
        return 4
    if PyUnicode_CheckExact(value) and prx_is_ascii(value):
        length = prx_ascii_len(value)
        if length > 255:
            return 0
        out[2] = 0x8c
        out[3] = <uint8_t>length
        memcpy(out + 4, prx_ascii(value), length)
        out[4 + length] = c'.'
        return 5 + length
    return 0


# Streams of values that are one buffer: the stream asks for the buffer and calls the type.
#   PROTO 5, 'builtins', name, STACK_GLOBAL, NEXT_BUFFER, TUPLE1, REDUCE, STOP
cdef bytes BYTES_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x05bytes\x93\x97\x85R."
cdef bytes BYTEARRAY_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x09bytearray\x93\x97\x85R."
MEMORYVIEW_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x0amemoryview\x93\x97\x85R."
#   array.array(typecode, bytes(<buffer>))
cdef bytes ARRAY_STREAM = b"\x80\x05\x8c\x05array\x8c\x05array\x93\x8c\x01?\x8c\x08builtins\x8c\x05bytes\x93\x97\x85R\x86R."
cdef bytes MEMORYVIEW_CALL = MEMORYVIEW_STREAM[2:len(MEMORYVIEW_STREAM) - 1]
cdef Py_ssize_t ARRAY_TYPECODE = ARRAY_STREAM.index(b"?")
cdef object array_type = None


cdef object put_stream(Store store, const uint8_t *stream, Py_ssize_t stream_size, int64_t deadline):
    """An object that is its stream, at most HEAD bytes."""
    cdef uint64_t total = sizeof(prs_header) + stream_size
    cdef prs_draft draft
    cdef prs_error error
    cdef uint8_t[HEAD] head
    error.code = 0
    if prs_alloc(store.handle, total, 0, &draft, &error) != PRS_OK:
        store.alloc(total, 0, &draft, deadline)
    if draft.dst is not NULL:
        prs_format_write_header(draft.dst, total, stream_size, 0)
        memcpy(<uint8_t *>draft.dst + sizeof(prs_header), stream, stream_size)
    else:
        prs_format_write_header(head, total, stream_size, 0)
        memcpy(head + sizeof(prs_header), stream, stream_size)
        write_or_abort(store, &draft, 0, head, total)
    return seal_or_abort(store, &draft)


cdef int write_or_abort(Store store, prs_draft *draft, uint64_t at, const void *data, size_t size) except -1:
    try:
        return store.write(draft, at, data, size)
    except BaseException:
        store.abort(draft, False)
        raise


cdef inline ObjectRef seal_or_abort(Store store, prs_draft *draft):
    cdef prs_error error
    cdef int status
    # The reference is made first: once the object is published, nothing may fail.
    cdef ObjectRef ref = new_ref(store, NULL, &draft.id)
    error.code = 0
    if store.handle is NULL:  # closed by another thread during the copy: the draft went with it
        store.check_open()
    status = prs_seal(store.handle, draft, &error)
    if status != PRS_OK:
        prs_abort(store.handle, draft, False)
        fail(status, &error, store)
    ref.handle = store.handle
    return ref


cdef object put_buffer(Store store, const uint8_t *stream, Py_ssize_t stream_size, const void *data, uint64_t size,
                       object array, const prp_array_source *source, int64_t deadline):
    """An object of one buffer: `size` bytes at `data`, or gathered from `array` if `source` says so."""
    cdef uint64_t body = sizeof(prs_header) + sizeof(prs_buffer_entry) + stream_size
    cdef uint64_t total = body, off = 0
    cdef prs_draft draft
    cdef prs_error error
    cdef prs_oid inner
    cdef uint8_t[HEAD] head
    cdef uint8_t *dst
    cdef bint gathers = source is not NULL and source.kind != PRP_ARRAY_DIRECT
    cdef bint refers = not gathers and size >= REFERENCE_FROM and worth_referring(store, data, size, &inner, &off)
    error.code = 0
    if refers:
        store.alloc(total, PRS_ALLOC_ORDERED, &draft, deadline)
    else:
        place(&total, size, &off)
        if total > PRS_SMALL_MAX or prs_alloc(store.handle, total, 0, &draft, &error) != PRS_OK:
            store.alloc(total, 0, &draft, deadline)
    dst = <uint8_t *>draft.dst if draft.dst is not NULL else head
    prs_format_write_header(dst, total, stream_size, 1)
    prs_format_write_entry(dst, 0, off, size, &inner if refers else NULL)
    memcpy(dst + sizeof(prs_header) + sizeof(prs_buffer_entry), stream, stream_size)
    if dst == head:
        write_or_abort(store, &draft, 0, head, body)
    if refers:
        add_edge(store, &draft, &inner)
    elif gathers:
        try:
            gather_array(store, &draft, off, array, source)
        except BaseException:
            store.abort(&draft, False)
            raise
    elif dst == head:
        write_or_abort(store, &draft, off, data, size)
    elif size:
        memcpy(dst + off, data, size)
    return seal_or_abort(store, &draft)


cdef int gather_array(Store store, prs_draft *draft, uint64_t off, object array, const prp_array_source *source) except -1:
    """Write a strided array to where it belongs, once, without a copy in between."""
    cdef Py_ssize_t[PRP_ARRAY_MAX_DIMS] shape
    cdef Py_ssize_t[PRP_ARRAY_MAX_DIMS] strides
    cdef prs_error error
    cdef int status, i
    cdef int nd = source.layout.nd
    cdef prs_store *handle
    cdef size_t itemsize
    cdef uint64_t total
    cdef const void *first
    if draft.dst is not NULL:
        prp_ndarray().gather(array, source, <uint8_t *>draft.dst + off, source.nbytes)
        return 0
    interface = array.__array_interface__
    array_strides = array.strides
    if interface["shape"] != tuple([source.layout.shape[i] for i in range(nd)]):
        raise ValueError("the array changed while it was written")
    first = <const void *><size_t>interface["data"][0]
    total = itemsize = array.dtype.itemsize
    for i in range(nd):
        strides[i] = array_strides[i]
        # Axes of stride 0 carry no data: the layout sets them aside.
        shape[i] = 1 if strides[i] == 0 and source.layout.shape[i] > 1 else source.layout.shape[i]
        total *= shape[i]
    if total != source.nbytes:
        raise ValueError("the array changed while it was written")
    store.check_open()
    error.code = 0
    handle = begin(store)
    with nogil:
        status = prs_write_strided(handle, draft, off, first, nd, shape, strides, itemsize, &error)
    end(store)
    if status != PRS_OK:
        fail(status, &error, store)
    return 0


cdef bint worth_referring(Store store, const void *data, uint64_t size, prs_oid *inner, uint64_t *at) noexcept:
    """Whether these bytes are an object's of this store, and enough of it to keep it alive for them."""
    cdef prs_view view
    if prs_find(store.handle, data, size, inner, at) != PRS_OK or prs_pin(store.handle, inner, &view) != PRS_OK:
        return False
    prs_unpin(store.handle, inner)
    return size >= view.size // REFERENCE_SHARE


cdef int add_edge(Store store, prs_draft *draft, const prs_oid *inner) except -1:
    cdef prs_error error
    error.code = 0
    store.check_open()
    cdef int status = prs_add_edge(store.handle, draft, inner, &error)
    if status != PRS_OK:
        store.abort(draft, False)
        fail(status, &error, store)
    return 0


cdef ObjectRef put_memory(Store store, object value, int64_t deadline):
    """bytes, bytearray, array.array and memoryview: one copy, no pickling. None if it is something else."""
    cdef Py_buffer view
    cdef bytes stream
    global array_type
    if PyBytes_CheckExact(value):
        return put_buffer(store, <const uint8_t *>PyBytes_AS_STRING(BYTES_STREAM), PyBytes_GET_SIZE(BYTES_STREAM),
                          PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), None, NULL, deadline)
    if PyByteArray_CheckExact(value):
        stream = BYTEARRAY_STREAM
    elif PyMemoryView_Check(value):
        from pyray_ser.serialization import memoryview_call

        stream, value = memoryview_call(MEMORYVIEW_STREAM, value)
    elif prx_is_array(value):
        if array_type is None:
            from array import array as array_type
        if type(value) is not array_type or value.typecode in "uw":
            return None
        stream = ARRAY_STREAM[:ARRAY_TYPECODE] + value.typecode.encode() + ARRAY_STREAM[ARRAY_TYPECODE + 1:]
    else:
        return None
    # The buffer stays exported during the copy, so its owner cannot resize it under us.
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    try:
        return put_buffer(store, <const uint8_t *>PyBytes_AS_STRING(stream), PyBytes_GET_SIZE(stream), view.buf, view.len,
                          None, NULL, deadline)
    finally:
        PyBuffer_Release(&view)


cdef ObjectRef put_value(Store store, object value, int64_t deadline):
    cdef uint8_t[HEAD] stream
    cdef prp_array_source source
    cdef ObjectRef ref
    cdef Py_ssize_t n = scalar_stream(value, stream)
    if n:
        return put_stream(store, stream, n, deadline)
    if prp_ndarray_looks(value):
        n = prp_ndarray().template_put(value, stream, &source)
        if n:
            return put_buffer(store, stream, n, source.data, source.nbytes, value, &source, deadline)
    elif type(value) is ObjectRef:
        raise TypeError(
            "put() does not take an ObjectRef: that object is stored already. To store the reference itself, wrap it "
            "in a list: put([ref])")
    else:
        ref = put_memory(store, value, deadline)
        if ref is not None:
            return ref
    return put_general(store, value, deadline)


# ---- put: any value --------------------------------------------------------------------------------------------------

cdef struct Range:
    const uint8_t *start
    const uint8_t *stop
    Py_ssize_t index


cdef int by_start(const void *a, const void *b) noexcept nogil:
    cdef const Range *x = <const Range *>a
    cdef const Range *y = <const Range *>b
    if x.start != y.start:
        return -1 if x.start < y.start else 1
    if x.stop != y.stop:
        return 1 if x.stop < y.stop else -1
    return 0


cdef uint64_t place_buffers(Gathered gathered, Place *places, Store store) except? 0:
    """
    Decide where each buffer goes; returns the size of the whole form.

    Buffers that overlap in memory, such as several views of one array, are placed once, as they lie there. Buffers that
    lie in an object of `store` (None: look for none) are referred to.
    """
    cdef Py_ssize_t n = gathered.nbuffers, i, j, count = 0
    cdef uint64_t end = sizeof(prs_header) + n * sizeof(prs_buffer_entry) + gathered.stream_size
    cdef uint64_t off, at
    cdef const uint8_t *stop
    cdef const uint8_t *covered
    cdef bint sorted_already = True
    cdef Span span
    cdef Range *ranges
    if n > PRS_NO_SLOT - 1:
        raise OverflowError("an object cannot have that many buffers")
    ranges = <Range *>PyMem_Malloc((n + 1) * sizeof(Range))
    if ranges is NULL:
        raise MemoryError()
    try:
        for i in range(n):
            places[i].foreign = False
            places[i].written = False
            places[i].off = 0
            span = gathered.buffer(i)
            if span.size == 0:
                continue
            if span.data is NULL:  # gathered from a strided array: it lies nowhere in one piece
                place(&end, span.size, &places[i].off)
                places[i].written = True
                continue
            if store is not None and span.size >= REFERENCE_FROM and worth_referring(
                    store, span.data, span.size, &places[i].other, &at):
                places[i].foreign = True
                places[i].off = at
                continue
            ranges[count].start = <const uint8_t *>span.data
            ranges[count].stop = ranges[count].start + span.size
            ranges[count].index = i
            sorted_already = sorted_already and (count == 0 or ranges[count - 1].stop <= ranges[count].start)
            count += 1
        if not sorted_already:
            qsort(ranges, count, sizeof(Range), by_start)
        i = 0
        while i < count:
            # ranges[i:j] overlap, one after the other; `stop` is where they end.
            stop = ranges[i].stop
            j = i + 1
            while j < count and ranges[j].start < stop:
                stop = max(stop, ranges[j].stop)
                j += 1
            place(&end, stop - ranges[i].start, &off)
            covered = ranges[i].start
            at = <uint64_t>ranges[i].start
            while i < j:
                places[ranges[i].index].off = off + (<uint64_t>ranges[i].start - at)
                places[ranges[i].index].written = ranges[i].stop > covered
                covered = max(covered, ranges[i].stop)
                i += 1
    finally:
        PyMem_Free(ranges)
    return end


# Collects small pieces, so that the engine is called once for many of them.
cdef struct Writer:
    prs_draft *draft
    uint8_t *scratch
    uint64_t at         # offset in the object of the first byte in scratch
    size_t fill

cdef enum:
    SCRATCH = 256 * 1024
    PIECE = 32 * 1024   # larger pieces go on their own


cdef int writer_flush(Writer *w, Store store) except -1:
    if w.fill:
        store.write(w.draft, w.at, w.scratch, w.fill)
        w.at += w.fill
        w.fill = 0
    return 0


cdef int writer_add(Writer *w, Store store, uint64_t at, const void *data, size_t size) except -1:
    cdef size_t gap
    if w.draft.dst is not NULL:
        memcpy(<uint8_t *>w.draft.dst + at, data, size)
        return 0
    gap = at - (w.at + w.fill) if at >= w.at + w.fill else SCRATCH
    if size > PIECE or gap > 4096 or w.fill + gap + size > SCRATCH:
        writer_flush(w, store)
        if size > PIECE:
            return store.write(w.draft, at, data, size)
        w.at = at
        gap = 0
    memset(w.scratch + w.fill, 0, gap)
    memcpy(w.scratch + w.fill + gap, data, size)
    w.fill += gap + size
    return 0


cdef ObjectRef put_general(Store store, object value, int64_t deadline):
    cdef Gathered gathered
    try:
        gathered = gather(value, store.id)
    except Exception as error:
        from pyray_ser.serialization import unpicklable

        raise unpicklable(value, error) from error
    return put_gathered(store, gathered, deadline)


cdef ObjectRef put_gathered(Store store, Gathered gathered, int64_t deadline):
    cdef Py_ssize_t n = gathered.nbuffers, i
    cdef uint64_t table_end = sizeof(prs_header) + n * sizeof(prs_buffer_entry)
    cdef uint64_t total, at
    cdef Place[8] few
    cdef Place *places = few
    cdef uint8_t *head = NULL
    cdef prs_draft draft
    cdef Writer writer
    cdef unsigned flags = PRS_ALLOC_ORDERED if gathered.edges else 0
    cdef bint allocated = False
    cdef set named
    cdef ObjectRef inner
    cdef Span span
    writer.scratch = NULL
    try:
        if n > 8:
            places = <Place *>PyMem_Malloc(n * sizeof(Place))
            if places is NULL:
                raise MemoryError()
        total = place_buffers(gathered, places, store)
        for i in range(n):
            if places[i].foreign:
                flags = PRS_ALLOC_ORDERED
        store.alloc(total, flags, &draft, deadline)
        allocated = True
        writer.draft = &draft
        writer.at = 0
        writer.fill = 0
        if draft.dst is NULL:
            writer.scratch = <uint8_t *>PyMem_Malloc(SCRATCH)
            if writer.scratch is NULL:
                raise MemoryError()
        head = <uint8_t *>PyMem_Malloc(table_end)
        if head is NULL:
            raise MemoryError()
        prs_format_write_header(head, total, gathered.stream_size, n)
        for i in range(n):
            prs_format_write_entry(head, i, places[i].off, gathered.buffer(i).size,
                                   &places[i].other if places[i].foreign else NULL)
        writer_add(&writer, store, 0, head, table_end)
        at = table_end
        for i in range(gathered.nstream):
            span = gathered.stream(i)
            writer_add(&writer, store, at, span.data, span.size)
            at += span.size
        for i in range(n):
            if not places[i].written:
                continue
            span = gathered.buffer(i)
            if span.data is not NULL:
                writer_add(&writer, store, places[i].off, span.data, span.size)
            elif draft.dst is not NULL:
                gathered.write(i, <uint8_t *>draft.dst + places[i].off)
            else:
                gather_array(store, &draft, places[i].off, gathered.array(i), gathered.source(i))
        writer_flush(&writer, store)
        if flags:
            store.check_open()
            named = set()
            for i in range(n):
                if places[i].foreign and places[i].other.serial not in named:
                    named.add(places[i].other.serial)
                    edge(store, &draft, &places[i].other)
            for inner in gathered.edges:
                if inner.id.serial not in named:
                    named.add(inner.id.serial)
                    edge(store, &draft, &inner.id)
        allocated = False
        return seal_or_abort(store, &draft)
    finally:
        if allocated:
            store.abort(&draft, False)
        PyMem_Free(head)
        PyMem_Free(writer.scratch)
        if places != few:
            PyMem_Free(places)


cdef int edge(Store store, prs_draft *draft, const prs_oid *inner) except -1:
    cdef prs_error error
    error.code = 0
    cdef int status = prs_add_edge(store.handle, draft, inner, &error)
    if status != PRS_OK:
        fail(status, &error, store)
    return 0


@cython.binding(False)
def put(value, *, timeout=None, name=None):
    """
    Store a value and return a reference to it.

    Parameters
    ----------
    value : object
        Anything that can be pickled. Large buffers are copied once, into the store.
    timeout : float, optional
        How many seconds to wait for room while the store is full; default is not to wait.
    name : str, optional
        A name under which `get_by_name` finds the object, in any process that uses this store. It then lives until it is
        freed or the store ends.

    Returns
    -------
    ObjectRef

    Raises
    ------
    TypeError
        If something inside cannot be pickled; the message tells where. Also for an `ObjectRef`.
    ObjectStoreFullError
        If there is no room.
    NameExistsError
        If the name is taken; nothing is stored then.
    """
    cdef int64_t deadline = 0
    cdef Store store = default_store
    if timeout is not None:
        deadline = deadline_of(timeout)
    if store is None:
        store = default_or_open()
    if name is not None:
        return put_named(store, value, name, deadline)
    return put_value(store, value, deadline)


# ---- names -----------------------------------------------------------------------------------------------------------

cdef bytes name_bytes(object name):
    if not isinstance(name, str):
        raise TypeError(f"the name of an object is a str, not {type(name).__name__!r}")
    # What UTF-8 cannot say (lone surrogates) cannot be a name either: UnicodeEncodeError is a ValueError.
    cdef bytes encoded = (<str>name).encode()
    if not 0 < PyBytes_GET_SIZE(encoded) <= PRS_NAME_MAX:
        raise ValueError(f"the name of an object has 1 to {PRS_NAME_MAX} bytes of UTF-8, not {len(encoded)}")
    if b"\0" in encoded:
        raise ValueError("the name of an object cannot hold a null character")
    return encoded


cdef ObjectRef put_named(Store store, object value, object name, int64_t deadline):
    cdef bytes encoded = name_bytes(name)
    # A taken name is found before the value is copied; binding decides.
    if find_encoded(store, encoded) is not None:
        name_taken(name)
    cdef ObjectRef ref = put_value(store, value, deadline)
    bind_encoded(ref, encoded, name)
    return ref


cdef int name_taken(object name) except -1:
    from pyray_ser.exceptions import NameExistsError

    raise NameExistsError(name=name)


cdef int bind_encoded(ObjectRef ref, bytes encoded, object name) except -1:
    cdef prs_error error
    cdef int status
    cdef prs_store *handle
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    ref.store.check_open()
    error.code = 0
    handle = begin(ref.store)
    with nogil:
        status = prs_name_bind(handle, text, length, &ref.id, &error)
    end(ref.store)
    if status == PRS_E_EXISTS:
        name_taken(name)
    if status == PRS_E_OBJECTS:
        from pyray_ser.exceptions import StoreFullError

        raise StoreFullError(table="names")
    if status != PRS_OK:
        fail(status, &error, ref.store, ref)
    return 0


cdef ObjectRef find_encoded(Store store, bytes encoded):
    """The object of a name, or None. Takes the store's lock, so the GIL is released."""
    cdef prs_oid id
    cdef int status
    cdef prs_store *handle
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    # Made first: once the engine has given a reference, nothing may fail.
    memset(&id, 0, sizeof(id))
    cdef ObjectRef ref = new_ref(store, NULL, &id)
    while True:
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_name_find(handle, text, length, &id)
        end(store)
        if status != PRS_E_CLOSED:
            break
        revive(store)
    if status == PRS_E_NOTFOUND:
        return None
    if status != PRS_OK:
        fail(status, NULL, store)
    ref.id = id
    ref.handle = handle
    return ref


def bind_name(ObjectRef ref not None, name):
    """Give a stored object a name."""
    adopt(ref)
    bind_encoded(ref, name_bytes(name), name)


def find_name(Store store not None, name):
    """ObjectRef or None : the object of that name in `store`."""
    return find_encoded(store, name_bytes(name))


def wait_name(Store store not None, name, timeout=None):
    """
    The object of a name, waiting for somebody to give it.

    Returns
    -------
    ObjectRef

    Raises
    ------
    NameNotFoundError
        If there is none and `timeout` is 0.
    GetTimeoutError
        If there is none in time.
    """
    cdef int64_t deadline = deadline_of(timeout), left
    cdef bytes encoded = name_bytes(name)
    cdef uint32_t seen
    cdef int status
    cdef prs_store *handle
    cdef ObjectRef ref
    while True:
        # The counter is read before the look: a name given after it ends the sleep at once.
        store.check_open()
        seen = prs_epoch(store.handle)
        ref = find_encoded(store, encoded)
        if ref is not None:
            return ref
        if deadline == 0:
            from pyray_ser.exceptions import NameNotFoundError

            raise NameNotFoundError(name=name)
        left = min(deadline - prx_now(), <int64_t>100000000)
        if left <= 0:
            from pyray_ser.exceptions import GetTimeoutError

            raise GetTimeoutError(ref=f"named {name!r}", timeout=timeout)
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_wait_epoch(handle, seen, left)
        end(store)
        PyErr_CheckSignals()
        if status == PRS_E_CLOSED:
            revive(store)
        elif status not in (PRS_OK, PRS_E_TIMEOUT, PRS_E_INTR):
            fail(status, NULL, store)


def names_of(Store store not None):
    """list of (str, bytes) : every name and the `binary` of its object."""
    cdef char[PRS_NAME_MAX + 1] text
    cdef uint32_t cursor = 0
    cdef prs_oid id
    cdef int more
    cdef prs_store *handle
    cdef list found = []
    while True:
        store.check_open()
        handle = begin(store)
        with nogil:
            more = prs_name_next(handle, &cursor, text, &id)
        end(store)
        if not more:
            return found
        # The bytes were written by another process: shown whatever they are.
        found.append(((<const char *>text).decode("utf-8", "replace"), oid_bytes(&id)))


def spill_clean(path, dry=True):
    """int : how many directories of stores that are gone lie in a spill directory; removed unless `dry`."""
    cdef bytes encoded = path_bytes(path)
    cdef const char *text = encoded
    cdef bint count_only = dry
    cdef int n
    with nogil:
        n = prs_spill_clean(text, count_only)
    if n < 0:
        import os

        raise OSError(-n, os.strerror(-n), path)
    return n


def failpoint(name, int action, int after=1, int value=0):
    """Arm a point of fault injection (debug builds only): 1 kills, 2 stops, 3 fails with the errno `value`, 4 holds."""
    cdef bytes encoded = name.encode()
    return bool(prs_failpoint_arm(encoded, action, after, value))


# ---- get -------------------------------------------------------------------------------------------------------------

cdef object load_scalar(const uint8_t *stream, uint64_t n, bint *done):
    """The value of a stream that `scalar_stream` wrote. Each byte is read once: shared bytes may change."""
    cdef uint8_t op
    cdef uint64_t length
    cdef long long number
    cdef uint8_t[8] raw
    done[0] = False
    if n < 4 or stream[0] != 0x80 or stream[1] != 5 or stream[n - 1] != c'.':
        return None
    op = stream[2]
    done[0] = True
    if op == c'K' and n == 5:
        return PyLong_FromLongLong(stream[3])
    if op == c'M' and n == 6:
        return PyLong_FromLongLong(stream[3] | <uint32_t>stream[4] << 8)
    if op == c'J' and n == 8:
        memcpy(raw, stream + 3, 4)
        return PyLong_FromLongLong((<int32_t *>raw)[0])
    if op == c'G' and n == 12:
        memcpy(raw, stream + 3, 8)
        return PyFloat_FromDouble(PyFloat_Unpack8(<const char *>raw, 0))
    if op == c'N' and n == 4:
        return None
    if op == 0x88 and n == 4:
        return True
    if op == 0x89 and n == 4:
        return False
    if op == 0x8c:
        length = stream[3]
        if length + 5 == n:
            return PyUnicode_DecodeUTF8(<const char *>stream + 4, length, "surrogatepass")
    if op == 0x8a:
        length = stream[3]
        if 0 < length <= 8 and length + 5 == n:
            memcpy(raw, stream + 4, length)
            memset(raw + length, 0xff if raw[length - 1] & 0x80 else 0, 8 - length)
            memcpy(&number, raw, 8)
            return PyLong_FromLongLong(number)
    done[0] = False
    return None


cdef object load_memory(const uint8_t *stream, uint64_t n, object owner, const uint8_t *data, uint64_t size, bint writable):
    """The value of a stream that `put_memory` wrote, or None."""
    cdef object array
    if n == <uint64_t>PyBytes_GET_SIZE(BYTES_STREAM) and memcmp(stream, PyBytes_AS_STRING(BYTES_STREAM), n) == 0:
        return copied_bytes(data, size)
    if n == <uint64_t>PyBytes_GET_SIZE(BYTEARRAY_STREAM) and memcmp(stream, PyBytes_AS_STRING(BYTEARRAY_STREAM), n) == 0:
        return bytearray(block(owner, data, size, True))
    if n == <uint64_t>PyBytes_GET_SIZE(MEMORYVIEW_STREAM) and memcmp(stream, PyBytes_AS_STRING(MEMORYVIEW_STREAM), n) == 0:
        return PyMemoryView_FromObject(block(owner, data, size, not writable))
    if (n == <uint64_t>PyBytes_GET_SIZE(ARRAY_STREAM)
            and memcmp(stream, PyBytes_AS_STRING(ARRAY_STREAM), ARRAY_TYPECODE) == 0
            and memcmp(stream + ARRAY_TYPECODE + 1, PyBytes_AS_STRING(ARRAY_STREAM) + ARRAY_TYPECODE + 1,
                       n - ARRAY_TYPECODE - 1) == 0):
        from array import array as array_of

        array = array_of(chr(stream[ARRAY_TYPECODE]))
        array.frombytes(block(owner, data, size, True))
        return array
    return None


cdef object copied_bytes(const uint8_t *data, uint64_t size):
    cdef bytes made
    cdef char *dst
    if size < LONG_COPY:
        return PyBytes_FromStringAndSize(<const char *>data, size)
    made = PyBytes_FromStringAndSize(NULL, size)
    dst = PyBytes_AS_STRING(made)
    with nogil:
        memcpy(dst, data, size)
    return made


cdef object decode(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable, Store store,
                   ObjectRef ref):
    return decode_allowed(owner, form, data, size, writable, store, ref, None)


cdef object decode_allowed(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable,
                           Store store, ObjectRef ref, object allow):
    """The value of a whole form at `data`, which `owner` keeps alive; `store` (None: none) holds the objects it names.

    Header, table and stream are read at `form`: the same bytes, where reading them is cheap. A private mapping has no
    pages yet, and the first look at it would cost as much as making it.
    """
    cdef prs_header header
    cdef prs_buffer_entry entry
    cdef const uint8_t *stream
    cdef bint done = False
    cdef void *array
    cdef uint32_t i
    cdef Span[16] few
    check_header(form, size, size, &header, ref)
    stream = form + sizeof(prs_header) + header.nbuffers * sizeof(prs_buffer_entry)
    if header.nbuffers == 0:
        value = load_scalar(stream, header.stream_len, &done)
        if done:
            return value
        return load(stream, header.stream_len, NULL, 0, owner, allow, writable)
    if header.nbuffers == 1:
        check_entry(&header, form + sizeof(prs_header), 0, &entry, ref)
        if entry.slot == PRS_NO_SLOT:
            data = data + (entry.off if entry.len else 0)
        else:
            owner = named_object(store, &entry, writable, ref, &data)
        if allow is not None:
            pass  # the unpickler looks at every name, also at those of the short ways
        elif prp_array_template_looks(stream, header.stream_len):
            array = prp_ndarray().from_stream(stream, header.stream_len, data, entry.len, owner,
                                              PRP_ARRAY_WRITABLE if writable else 0)
            if array is not NULL:
                return prx_steal(array)
        else:
            value = load_memory(stream, header.stream_len, owner, data, entry.len, writable)
            if value is not None:
                return value
        few[0].data = data
        few[0].size = entry.len
        return load(stream, header.stream_len, few, 1, owner, allow, writable)
    cdef Span *buffers = few
    cdef dict named = None
    cdef const uint8_t *start
    if header.nbuffers > 16:
        buffers = <Span *>PyMem_Malloc(header.nbuffers * sizeof(Span))
        if buffers is NULL:
            raise MemoryError()
    try:
        for i in range(header.nbuffers):
            check_entry(&header, form + sizeof(prs_header), i, &entry, ref)
            if entry.slot == PRS_NO_SLOT:
                start = data + (entry.off if entry.len else 0)
            else:
                if named is None:
                    named = {}
                other = named.get(entry.serial)
                if other is None:
                    named[entry.serial] = named_object(store, &entry, writable, ref, &start)
                else:
                    start = within(other, &entry, ref)
            buffers[i].data = start
            buffers[i].size = entry.len
        if named is not None:
            owner = Owners(owner, named)
        return load(stream, header.stream_len, buffers, header.nbuffers, owner, allow, writable)
    finally:
        if buffers != few:
            PyMem_Free(buffers)


@cython.final
@cython.no_gc
cdef class Owners:
    """Everything that a value's buffers lie in, when that is more than one object. Exports nothing, least of all to write."""

    cdef object own
    cdef dict others

    def __cinit__(self, own, dict others):
        self.own = own
        self.others = others

    def __repr__(self):
        return f"<{self.own!r} and {len(self.others)} objects that it refers to>"


cdef object named_object(Store store, const prs_buffer_entry *entry, bint writable, ObjectRef ref, const uint8_t **start):
    """Hold the other object that a buffer lies in; `start` gets the buffer's first byte."""
    cdef Pin pin = Pin.__new__(Pin)
    cdef int status
    cdef prs_store *handle
    cdef object owner = pin
    if store is None:
        corrupt(b"it refers to a store, but is outside of one", ref)
    pin.id.store = store.id
    pin.id.serial = entry.serial
    pin.id.slot = entry.slot
    pin.id.generation = entry.generation
    status = prs_pin(store.handle, &pin.id, &pin.view)
    while status == PRS_E_AGAIN:  # sealed long ago: somebody spills it just now
        handle = begin(store)
        with nogil:
            status = prs_wait(handle, &pin.id, -1)
        end(store)
        PyErr_CheckSignals()
        store.check_open()
        status = prs_pin(store.handle, &pin.id, &pin.view)
    if status != PRS_OK:
        # The outer object holds it: that it is not there means that the table does not tell the truth, or that it was
        # spilled and its file is gone.
        if status in (PRS_E_CLOSED, PRS_E_FREED, PRS_E_SYS, PRS_E_NOMEM):
            fail(status, NULL, store, ref)
        if status == PRS_E_LOST and prs_state(store.handle, &pin.id) == PRS_OK:
            fail(status, NULL, store, ref)
        corrupt(b"a buffer refers to an object that is not there", ref)
    pin.handle = store.handle
    if writable:
        owner = privately(pin, ref)
    start[0] = within(owner, entry, ref)
    return owner


cdef const uint8_t *within(object owner, const prs_buffer_entry *entry, ObjectRef ref) except NULL:
    cdef uint64_t size
    cdef const uint8_t *data
    if type(owner) is Pin:
        size = (<Pin>owner).view.size
        data = (<Pin>owner).view.data
    else:
        size = (<Private>owner).size
        data = (<Private>owner).data
    if entry.len > size or entry.off > size - entry.len:
        corrupt(b"a buffer lies outside of the object it refers to", ref)
    return data + entry.off


cdef inline Pin pin_now(ObjectRef ref, int *status):
    """A pin, or None with `status` telling why not."""
    cdef Pin pin = Pin.__new__(Pin)
    status[0] = prs_pin(ref.handle, &ref.id, &pin.view)
    if status[0] != PRS_OK:
        return None
    pin.handle = ref.handle
    pin.id = ref.id
    return pin


cdef Pin pin_by(ObjectRef ref, int64_t deadline, object timeout):
    """A pin, after waiting for the object to be sealed if it must be."""
    cdef int status = PRS_OK
    cdef Pin pin
    cdef prs_store *handle
    cdef int64_t left
    cdef Store store
    while True:
        adopt(ref)
        pin = pin_now(ref, &status)
        if pin is not None:
            return pin
        store = ref.store
        if status == PRS_E_CLOSED:
            revive(store)
            continue
        if status != PRS_E_AGAIN:
            fail(status, NULL, store, ref)
        left = -1
        if deadline != FOREVER:
            left = deadline - prx_now() if deadline else 0
            if left <= 0:
                fail(PRS_E_TIMEOUT, NULL, store, ref, timeout)
        handle = begin(store)
        with nogil:
            status = prs_wait(handle, &ref.id, left)
        end(store)
        PyErr_CheckSignals()
        if status not in (PRS_OK, PRS_E_TIMEOUT, PRS_E_INTR):
            fail(status, NULL, store, ref)


cdef object get_one(ObjectRef ref, int64_t deadline, object timeout, bint writable, object allow):
    cdef int status
    cdef Pin pin = None
    cdef Private copy
    if ref.handle is not NULL and ref.handle == ref.store.handle:
        pin = pin_now(ref, &status)
    if pin is None:
        pin = pin_by(ref, deadline, timeout)
    if writable:
        copy = privately(pin, ref)
        # A mapping keeps the pin, so its stream may be read, and kept, through the pin's bytes.
        return decode_allowed(copy, pin.view.data if copy.pin is not None else copy.data, copy.data, copy.size, True,
                              ref.store, ref, allow)
    return decode_allowed(pin, pin.view.data, pin.view.data, pin.view.size, False, ref.store, ref, allow)


@cython.binding(False)
def get(refs, *, timeout=None, mmap_mode="r", allow=None):
    """
    The value of an object, or the list of values of a list of objects.

    Arrays and other buffers lie in the store itself: nothing is copied, and nothing can be written to.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
    timeout : float, optional
        How many seconds to wait for objects that are still being made; default is without limit.
    mmap_mode : {"r", "c"}
        "r" reads in place. "c" gives writable values over a private copy-on-write mapping: the stored object is not
        changed.
    allow : collection of str or callable, optional
        The globals that may be loaded: names ``"module:qualname"`` or a predicate ``(module, qualname) -> bool``. Default is
        any. Classes that are allowed still run their own code.

    Returns
    -------
    object or list

    Raises
    ------
    GetTimeoutError
        If an object is not ready in time.
    ObjectLostError, ObjectFreedError
        If an object is gone.
    CorruptObjectError
        If its bytes do not check out.
    """
    cdef int64_t deadline = FOREVER
    cdef bint writable = False
    if timeout is not None:
        deadline = deadline_of(timeout)
    if mmap_mode is not READ:
        if mmap_mode == "c":
            writable = True
        elif mmap_mode != "r":
            raise ValueError(f'mmap_mode must be "r" or "c", not {mmap_mode!r}')
    if type(refs) is ObjectRef:
        return get_one(<ObjectRef>refs, deadline, timeout, writable, allow)
    if promise_type is not None and names_promise(refs):
        return promise_get(refs, timeout, "c" if writable else "r")
    if not isinstance(refs, list):
        from pyray_ser.ref import not_refs

        raise not_refs("get", refs)
    check_refs("get", refs)
    return [get_one(<ObjectRef>ref, deadline, timeout, writable, allow) for ref in tuple(refs)]


cdef object READ = "r"

# References to what is not in any store yet: results of tasks (`pyray_ser.tasks`), which registers their type when it is
# first used, and the function that gets a list which holds such.
cdef object promise_type = None
cdef object promise_get = None


def set_promises(type promises, getter):
    """Let `get` take instances of `promises`, alone or in lists, by calling ``getter(refs, timeout, mmap_mode)``."""
    global promise_type, promise_get
    promise_type = promises
    promise_get = getter


def is_promise(ref):
    """Whether this is a reference to something that a task is making."""
    return promise_type is not None and isinstance(ref, promise_type)


cdef bint names_promise(object refs) except -1:
    if isinstance(refs, list):
        for ref in refs:
            if type(ref) is not ObjectRef and isinstance(ref, promise_type):
                return True
        return False
    return isinstance(refs, promise_type)


cdef int check_refs(str function, object refs) except -1:
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"{function}() takes ObjectRefs, but the list holds {type(ref).__name__!r}: {ref!r:.80}")
    return 0


def get_buffer(ref, *, timeout=None):
    """
    The buffers of an object, without loading it.

    Parameters
    ----------
    ref : ObjectRef
    timeout : float, optional
        As for `get`.

    Returns
    -------
    memoryview or list of memoryview
        For an object that is one buffer (bytes, an array, what `create` made) that buffer; else the out-of-band buffers
        in the order of the stream, after the stream itself. All read-only, nothing is copied.
    """
    if type(ref) is not ObjectRef:
        from pyray_ser.ref import not_refs

        raise not_refs("get_buffer", ref)
    cdef Pin pin = pin_by(<ObjectRef>ref, deadline_of(timeout), timeout)
    cdef prs_header header
    cdef prs_buffer_entry entry
    cdef const uint8_t *data = pin.view.data
    cdef const uint8_t *start
    cdef const uint8_t *stream
    cdef uint32_t i
    cdef list views = []
    check_header(data, pin.view.size, pin.view.size, &header, ref)
    for i in range(header.nbuffers):
        check_entry(&header, data + sizeof(prs_header), i, &entry, ref)
        if entry.slot == PRS_NO_SLOT:
            views.append(memoryview(block(pin, data + (entry.off if entry.len else 0), entry.len, True)))
        else:
            owner = named_object((<ObjectRef>ref).store, &entry, False, ref, &start)
            views.append(memoryview(block(owner, start, entry.len, True)))
    stream = data + sizeof(prs_header) + header.nbuffers * sizeof(prs_buffer_entry)
    if header.nbuffers == 1 and is_one_buffer(stream, header.stream_len):
        return views[0]
    views.insert(0, memoryview(block(pin, stream, header.stream_len, True)))
    return views


cdef bint is_one_buffer(const uint8_t *stream, uint64_t n):
    """Whether the stream only says what its one buffer is."""
    cdef bytes head = PyBytes_FromStringAndSize(<const char *>stream, min(n, 64))
    return (prp_array_template_looks(stream, n)
            or head.startswith((BYTES_STREAM, BYTEARRAY_STREAM, ARRAY_STREAM[:ARRAY_TYPECODE]))
            or MEMORYVIEW_CALL in head)


# ---- the rest of an object's life ------------------------------------------------------------------------------------

# Whether a reference was pickled so that a scope holds its object: only then has free() something to forget.
cdef bint scopes_hold = False


def scope_holds():
    """Say that a scope holds an object from now on."""
    global scopes_hold
    scopes_hold = True


cdef int free_one(ObjectRef ref) except -1:
    cdef prs_error error
    cdef int status
    cdef Store store = ref.store
    if store is None:
        return 0
    store.check_open()
    error.code = 0
    status = prs_free(store.handle, &ref.id, &error)
    if status == PRS_E_CLOSED:
        revive(store)
        status = prs_free(store.handle, &ref.id, &error)
    if status not in (PRS_OK, PRS_E_LOST, PRS_E_FREED):
        fail(status, &error, store, ref)
    if scopes_hold:
        from pyray_ser.scope import release

        release(oid_bytes(&ref.id))
    return 0


@cython.binding(False)
def free(refs):
    """
    End objects for everyone.

    Values that were taken stay valid, and their memory returns with the last of them; a later `get` raises
    `ObjectFreedError`. The object's name, if it has one, is free again. Freeing twice is harmless.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
    """
    if type(refs) is ObjectRef:
        free_one(<ObjectRef>refs)
        return
    if not isinstance(refs, list):
        from pyray_ser.ref import not_refs

        raise not_refs("free", refs)
    check_refs("free", refs)
    for ref in tuple(refs):
        free_one(<ObjectRef>ref)


def is_ready(ObjectRef ref not None):
    """Whether waiting for the object is over: it is sealed, or it is lost."""
    return ref.store is None or ref.store.handle is NULL or prs_state(ref.store.handle, &ref.id) != PRS_E_AGAIN


def scan(list refs):
    """list of int : indices of the references that `is_ready` is true for."""
    cdef ObjectRef ref
    cdef Py_ssize_t i = 0
    cdef list found = []
    for ref in refs:
        if ref.store is None or ref.store.handle is NULL or prs_state(ref.store.handle, &ref.id) != PRS_E_AGAIN:
            found.append(i)
        i += 1
    return found


def watch(list refs):
    """Tell the store that somebody waits for these; `epoch` changes when one of them gets ready."""
    cdef ObjectRef ref
    for ref in refs:
        if ref.store is not None and ref.store.handle is not NULL:
            prs_wait_any(ref.store.handle, &ref.id)


def epoch(Store store):
    """int : a counter that changes when an object somebody waits for gets ready."""
    return prs_epoch(store.handle) if store.handle is not NULL else 0


def wait_epoch(Store store, uint32_t seen, double timeout):
    """Sleep until `epoch` is not `seen`, at most `timeout` seconds and at most 0.1."""
    cdef int64_t left = <int64_t>(min(timeout, 1.0) * 1e9)
    cdef int status
    if store.handle is NULL:
        return
    cdef prs_store *handle = begin(store)
    with nogil:
        status = prs_wait_epoch(handle, seen, left)
        # Death of a creator is found by looking.
        if status != PRS_OK:
            prs_look(handle, 1000000000)
    end(store)


def find_address(Store store, size_t address, uint64_t size):
    """(bytes, int) or None : which object of `store` these bytes lie in, and at which offset."""
    cdef prs_oid id
    cdef uint64_t at
    store.check_open()
    if prs_find(store.handle, <const void *>address, size, &id, &at) != PRS_OK:
        return None
    return oid_bytes(&id), at
