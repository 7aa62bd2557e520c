# uses: prelude, policy, spill, store, views, refs, forms, write, read
#
# Functions that open stores, and functions for the command-line tools.

def create_store(path=None, *, capacity=0, max_clients=0, max_objects=0, lock_timeout=0.0, warm_reserve=0, spill_dir=None,
                 flags=0):
    """Create a store with this process as its first client; the store is anonymous if `path` is None."""
    # If a package is missing, raise the error here, before the store has a file, and not when the store is full.
    form = new_form(flags & PRS_OPEN_SPILL_FORM) if flags & PRS_OPEN_SPILL_FORM else None
    return _open(0, path, 0, -1, 0, capacity, max_clients, max_objects, lock_timeout, warm_reserve, spill_dir, flags, form)


def attach_path(path, *, lock_timeout=0.0, flags=0, tables_only=False):
    """
    Attach to the store in the file `path`.

    With `tables_only`, this process only looks at the store: statistics do not count it as a client. The packages that
    the store's spill files need may be missing then; objects can be listed, but not read.
    """
    return _open(1, path, 0, -1, 0, 0, 0, 0, lock_timeout, 0, None, flags, None, tables_only)


def attach_pid(pid, fd=-1, store=0, *, lock_timeout=0.0, flags=0, tables_only=False):
    """Attach to the given store (0: any) that process `pid` has open; return None if the process has no such store."""
    return _open(2, None, pid, fd, store, 0, 0, 0, lock_timeout, 0, None, flags, None, tables_only)


def snapshot(path):
    """
    Copy the tables of the store in the file `path`, to inspect a store that no process uses without changing it.

    Returns
    -------
    tuple of (Store, str or None)
        The copy, which supports `stats`, `records`, `check` and `names_of` only, and the original's spill directory.

    Raises
    ------
    ValueError
        If this process has that store open.
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
        with nogil:
            prs_release(handle)
        raise ValueError(f"{path}: this process uses that store itself")
    cdef Store store = Store.__new__(Store)
    store.opened(handle)
    spilled_to = (<const char *>directory).decode("utf-8", "surrogateescape")
    return store, spilled_to or None


cdef object _open(int how, path, int32_t pid, int fd, uint64_t ident, uint64_t capacity, uint32_t max_clients,
                  uint32_t max_objects, double lock_timeout, uint64_t warm_reserve, spill_dir, uint32_t flags, form=None,
                  bint tables_only=False):
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
    options.flags = flags | (PRS_OPEN_VISITOR if tables_only else 0)
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
        with nogil:
            prs_release(handle)
        return known
    cdef Store store = Store.__new__(Store)
    cdef uint64_t shrunk_from = prs_shrunk_from(handle), actual = prs_capacity(handle)
    store.spill_form = form
    store.opened(handle)
    # Python code runs from here on, and may close the store: `handle` is no longer valid.
    try:
        store.path = path_of_file(store) if how == 2 else path
        if shrunk_from:
            warn_of_shrunk_store(shrunk_from, actual)
        if not tables_only:
            form_of(store)
    except BaseException:
        store.close()
        raise
    return store


cdef object path_of_file(Store store):
    # If this process is the last client, it must know which file to remove. The file was created without a name, so the
    # kernel tells only its directory.
    import os

    fd = store.locator[2]
    try:
        file = os.fstat(fd)
        if file.st_nlink == 0:
            return None  # a memfd, or a file that was removed
        with os.scandir(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}"))) as entries:
            return next((entry.path for entry in entries if entry.inode() == file.st_ino), None)
    except OSError:
        return None


cdef bytes path_bytes(object path):
    import os

    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def default_capacity():
    """Return the default capacity in bytes; 0 if the size of the memory is unknown."""
    return prs_default_capacity()


def stores_of(int32_t pid):
    """Return a list of (int, int): id and descriptor of each store that process `pid` has open."""
    cdef uint64_t[64] ids
    cdef int[64] fds
    cdef int n = prs_list_pid(pid, ids, fds, 64)
    return [(ids[i], fds[i]) for i in range(n)]


def start_time(int32_t pid):
    """Return the start time of process `pid` in clock ticks; 0 if it has ended."""
    return prs_start_time(pid)


def fork_count():
    """Return a number that differs between a process and its forked children."""
    return prs_fork_count()


def spill_clean(path, dry=True):
    """Count the subdirectories of a spill directory whose stores have ended; remove them unless `dry` is true."""
    cdef bytes encoded = path_bytes(path)
    cdef const char *text = encoded
    cdef bint count_only = dry
    cdef int n
    with nogil:
        n = prs_spill_count_ended(text) if count_only else prs_spill_clean(text)
    if n < 0:
        import os

        raise OSError(-n, os.strerror(-n), path)
    return n


def failpoint(name, int action, int after=1, int value=0):
    """Arm a failpoint (debug builds only); `action` is 1 kill, 2 stop, 3 fail with the errno `value`, 4 hold."""
    cdef bytes encoded = name.encode()
    return bool(prs_failpoint_arm(encoded, action, after, value))


def check_spilled(Store store):
    """
    Read every spilled object of `store` and check that its file is intact.

    Returns
    -------
    tuple of (int, list of dict)
        The number of objects read, and the ``id``, ``name``, ``size`` and ``error`` of each object that is lost or
        damaged.
    """
    cdef ObjectRef ref
    cdef bytes identity
    cdef prs_oid id
    cdef int64_t deadline = prx_now() + 10 * <int64_t>1000000000
    cdef list damaged = []
    cdef int n = 0
    cdef prs_header header
    cdef Pin pin
    form_of(store)  # raises an exception if a package is missing, which is not damage
    for record in store.records():
        if not record["spilled"] or record["freed"] or record["state"] == "creating":  # its file is not complete
            continue
        identity = bytes.fromhex(record["id"])
        memcpy(&id, PyBytes_AS_STRING(identity), sizeof(id))
        ref = new_ref(store, NULL, &id)
        n += 1
        try:
            pin = pin_by(ref, deadline, 10)
            check_header(pin.view.data, pin.view.size, pin.view.size, &header, ref)
        except Exception as error:
            if ref.state != "sealed":  # the object was released meanwhile
                n -= 1
                continue
            damaged.append({"id": record["id"], "name": record["name"], "size": record["size"],
                            "error": f"{type(error).__name__}: {error}"})
    return n, damaged


def find_address(Store store, size_t address, uint64_t size):
    """Return the object of `store` that contains these bytes and their offset, as (bytes, int), or None."""
    cdef prs_oid id
    cdef uint64_t at
    store.check_open()
    if prs_find(store.handle, <const void *>address, size, &id, &at) != PRS_OK:
        return None
    return oid_bytes(&id), at


def refers(Store store, size_t address, uint64_t size):
    """Return whether `put` would refer to these bytes, which are in an object of `store`, instead of copying them."""
    cdef prs_oid id
    cdef uint64_t at
    store.check_open()
    return size >= REFERENCE_FROM and worth_referring(store, <const void *>address, size, &id, &at)


cdef extern from *:
    """
    #include <sys/file.h>
    #include "store/platform/descriptor.h"

    static int prx_open(const char *path, int flags)
    {
        return prs_above_standard(open(path, flags | O_CLOEXEC));
    }

    /* Closing alone does not release a lock if a forked child has the same open file. */
    static void prx_close(int fd, int unlock)
    {
        if (unlock)
            flock(fd, LOCK_UN);
        close(fd);
    }
    """
    int prx_open(const char *path, int flags) noexcept nogil
    void prx_close(int fd, bint unlock) noexcept


# A lock is acquired before the first store is opened, and a child forked in the meantime must not release it.
prs_count_forks()


@cython.final
cdef class Opened:
    """
    An open file or directory and its lock, if any. When this object is freed, both are released, even if a signal
    handler raises an exception.

    Attributes
    ----------
    thread : int
        The thread that opened it, as passed by the caller; 0 if not passed.
    """

    cdef int fd
    cdef long forks
    cdef readonly object thread
    cdef object __weakref__

    def __cinit__(self, path, int flags, thread=0):
        self.fd = -1
        cdef bytes encoded = path_bytes(path)
        cdef const char *name = encoded
        self.thread = thread
        self.forks = prs_fork_count()
        while True:
            with nogil:
                self.fd = prx_open(name, flags)
            if self.fd >= 0 or errno != EINTR:
                break
            PyErr_CheckSignals()
        if self.fd < 0:
            PyErr_SetFromErrnoWithFilenameObject(OSError, path)

    def __dealloc__(self):
        self.close()

    cpdef void close(self) noexcept:
        """Unlock and close the file. A forked child only closes its descriptor; its parent keeps the lock."""
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            prx_close(fd, self.forks == prs_fork_count())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        """Return the descriptor, or -1 if it is closed."""
        return self.fd
