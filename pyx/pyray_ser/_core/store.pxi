# uses: prelude, policy, spill, ledger
#
# Defines `Store`: an open handle of this process with its allocations, statistics and records.

cdef bint exit_registered = False


cdef void close_at_exit() noexcept:
    # This runs after the interpreter has ended. A daemon thread may still be inside a call without the GIL; its
    # resources are left to the kernel.
    prs_close_all()


# The open stores of this process by id, and the store that put() uses.
cdef dict stores = {}
cdef Store default_store = None


# Names with this prefix belong to the package, and `names` omits them.
NAME_RESERVED = "pyray_ser/"
# The prefix of the names of cached results.
NAME_CACHED = NAME_RESERVED + "cached/"


def names_of(Store store not None, str prefix=""):
    """
    Return a list of tuples for the names that start with a prefix: name, `binary` of its object, version, age in seconds,
    whether the name keeps the object, number of uses, order of the last use, note.
    """
    cdef char[PRS_NAME_MAX + 1] text
    cdef uint32_t cursor = 0
    cdef prs_oid id
    cdef prs_name_info info
    cdef int more
    cdef prs_store *handle
    cdef list found = []
    # Surrogates are valid in a str, but not in a name.
    cdef bytes start = prefix.encode("utf-8", "surrogatepass")
    cdef const char *first = start
    cdef size_t length = len(start)
    while True:
        store.check_open()
        handle = begin(store)
        with nogil:
            more = prs_name_next(handle, &cursor, first, length, text, &id, &info)
        end(handle)
        if not more:
            return found
        # The bytes come from another process and may not be valid UTF-8.
        found.append(((<const char *>text).decode("utf-8", "replace"), oid_bytes(&id), info.version, info.age,
                      bool(info.keeps), info.uses, info.used, info.note))


cdef bint drop_cached(Store store, uint64_t size) except -1:
    """Drop cached results until `size` bytes may be free; return whether there were any."""
    # Most stores have none. Then import nothing, because this process may not be able to read files any more.
    return bool(names_of(store, NAME_CACHED)) and drop_results(store, size)


cdef int revive(Store store) except -1:
    """Make a forked child that has no client slot a client again; raise an exception if that fails."""
    if store.handle is NULL or not prs_is_orphan(store.handle) or not reattach_store(store):
        store.check_open()
        fail(PRS_E_CLOSED, NULL, store)
    return 0


@cython.final
cdef class Store:
    """
    One open store.

    `init` creates it, or else the first `put` or reference that needs it; `shutdown` closes it.

    Attributes
    ----------
    id : int
        The random id of the store, which is part of every reference.
    path : str or None
        The file of a named store.
    """

    # NULL after close(). The engine keeps the handle until the last call, draft, view or window ends.
    cdef prs_store *handle
    cdef readonly uint64_t id
    cdef readonly object path
    cdef object spill_form  # a pyray_ser.store.spill_codec.Form, set on first use
    cdef object __weakref__

    def __init__(self):
        raise TypeError("stores are opened by init()")

    def __dealloc__(self):
        # The handle is still open here only during interpreter shutdown, because `stores` keeps open stores alive.
        if self.handle is not NULL and prs_end(self.handle):
            prs_release(self.handle)

    cdef int opened(self, prs_store *handle) except -1:
        global exit_registered
        if not exit_registered:
            exit_registered = True
            Py_AtExit(close_at_exit)  # this fails if all 32 entries are in use; other clients then detect the exit
        self.id = prs_id(handle)
        try:
            stores[self.id] = self
        except BaseException:
            with nogil:
                prs_release(handle)
            raise
        self.handle = handle
        return 0

    cdef int check_open(self) except -1:
        if self.handle is NULL:
            store_closed(self.id)
        return 0

    @property
    def closed(self):
        """bool : Whether `shutdown` has closed the store."""
        return self.handle is NULL

    @property
    def capacity(self):
        """int : Capacity of the store in bytes."""
        self.check_open()
        return prs_capacity(self.handle)

    @property
    def options(self):
        """dict : The options used to create the store; `lock_timeout` and `liveness` are those of this process."""
        cdef prs_options chosen
        self.check_open()
        prs_chosen(self.handle, &chosen)
        return {
            "capacity": chosen.capacity, "max_clients": chosen.max_clients, "max_objects": chosen.max_objects,
            "warm_reserve": chosen.warm_reserve, "lock_timeout": chosen.lock_timeout / 1e9,
            "liveness": "pid" if chosen.flags & PRS_OPEN_PID_LIVENESS else "auto", "spill_dir": self.spill_dir,
            "spill_checksum": self.spill_checksum, "spill_compress": self.spill_compress,
        }

    @property
    def locator(self):
        """tuple of int : Pid, start time and descriptor by which other processes find the store."""
        cdef int32_t pid, fd
        cdef uint64_t start
        self.check_open()
        prs_locator(self.handle, &pid, &start, &fd)
        return pid, start, fd

    @property
    def spill_dir(self):
        """str or None : The directory to which objects that do not fit are spilled."""
        self.check_open()
        cdef bytes directory = prs_spill_directory(self.handle)
        return directory.decode("utf-8", "surrogateescape") or None

    @property
    def spill_compress(self):
        """str or None : How spilled objects are compressed."""
        self.check_open()
        cdef uint32_t flags = prs_spill_form(self.handle)
        return "lz4" if flags & PRS_OPEN_SPILL_LZ4 else "zstd" if flags & PRS_OPEN_SPILL_ZSTD else None

    @property
    def spill_checksum(self):
        """bool : Whether spilled objects have a digest."""
        self.check_open()
        return bool(prs_spill_form(self.handle) & PRS_OPEN_SPILL_DIGEST)

    @property
    def orphaned(self):
        """bool : Whether a fork left this process without a client slot in the store."""
        return self.handle is not NULL and prs_is_orphan(self.handle)

    def __repr__(self):
        if self.handle is NULL:
            return f"<Store {self.id:016x} (closed)>"
        where = "anonymous" if self.path is None else repr(self.path)
        return f"<Store {self.id:016x} {where}, {prs_capacity(self.handle)} bytes>"

    def close(self):
        """Stop being a client. Views stay valid, but references become invalid. Closing twice is harmless."""
        global default_store
        cdef prs_store *handle = self.handle
        if handle is NULL:
            return
        self.handle = NULL
        if stores.get(self.id) is self:
            del stores[self.id]
        if default_store is self:
            default_store = None
        if prs_end(handle):
            with nogil:
                prs_release(handle)

    def stats(self):
        """Return the engine's counters, as a dict of int."""
        cdef prs_stats s
        self.check_open()
        cdef int status
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_get_stats(handle, &s)
        end(handle)
        if status != PRS_OK:
            fail(status, NULL, self)
        return {
            "capacity": s.capacity, "used": s.used, "reserved": s.reserved, "backed": s.backed, "overhead": s.overhead,
            "objects": s.objects, "unsealed": s.unsealed, "largest_free": s.largest_free, "slots": s.slots,
            "in_flight": s.in_flight, "edges": s.edges, "spilled": s.spilled,
            "spilled_bytes": s.spilled_bytes, "orphaned": s.orphaned, "serial": s.serial, "clients": s.clients,
            "max_clients": s.max_clients, "reaped": s.reaped, "stolen": s.stolen,
            "pulls": s.pulls, "pulled_bytes": s.pulled_bytes, "failed_pulls": s.failed_pulls,
        }

    def count_pull(self, uint64_t nbytes):
        """Count a value of this many bytes that this process has received from another host."""
        self.check_open()
        cdef prs_store *handle = begin(self)
        prs_count_pull(handle, nbytes)
        end(handle)

    def count_failed_pull(self):
        """Count a value of another host that this process has not received."""
        self.check_open()
        cdef prs_store *handle = begin(self)
        prs_count_failed_pull(handle)
        end(handle)

    def records(self):
        """Return one dict per object, in slot order."""
        cdef dict named = {entry[1]: (entry[0], entry[5]) for entry in names_of(self)}
        cdef prs_record[64] found
        cdef uint32_t cursor = 0
        cdef int n, i
        cdef prs_store *handle
        cdef list out = []
        cdef int64_t now = prx_wall_seconds()
        while True:
            self.check_open()
            handle = begin(self)
            with nogil:
                n = prs_list(handle, &cursor, found, 64)
            end(handle)
            if n < 0:
                fail(n, NULL, self)
            for i in range(n):
                name, uses = named.get(oid_bytes(&found[i].id), (None, 0))
                out.append({
                    "id": oid_bytes(&found[i].id).hex(), "serial": found[i].id.serial, "size": found[i].size,
                    "extent": found[i].extent, "offset": found[i].off, "state": STATES.get(found[i].state, "unknown"),
                    "ref_holders": found[i].ref_holders, "pin_holders": found[i].pin_holders,
                    "tokens_and_edges": found[i].tokens_and_edges, "creator_pid": found[i].creator_pid or None,
                    "created": now - found[i].age, "age": found[i].age, "freed": bool(found[i].freed), "orphaned": bool(found[i].orphaned),
                    "spilled": bool(found[i].spilled), "name": name, "uses": uses,
                })
            if n < 64:
                return out

    def flights(self):
        """
        Return one dict per reference in flight, in arbitrary order.

        `sender_alive` is false for a sender that is no longer a client; its pid is the one in its own pid namespace.
        """
        cdef prs_flight[64] found
        cdef prs_error error
        cdef uint32_t cursor = 0
        cdef int n, i
        cdef prs_store *handle
        cdef list out = []
        cdef int64_t now = prx_wall_seconds()
        while True:
            self.check_open()
            error.code = 0
            handle = begin(self)
            with nogil:
                n = prs_flights(handle, &cursor, found, 64, &error)
            end(handle)
            if n < 0:
                fail(n, &error, self)
            for i in range(n):
                out.append({
                    "id": oid_bytes(&found[i].id).hex(), "serial": found[i].id.serial,
                    "once": found[i].kind == PRS_TOKEN_ONCE, "sender_pid": found[i].sender_pid,
                    "sender_alive": bool(found[i].sender_alive), "object_gone": bool(found[i].object_gone),
                    "created": now - found[i].age, "age": found[i].age, "note": found[i].note, "size": found[i].size,
                    "token": (found[i].token.index, found[i].token.serial),
                })
            if n < 64:
                return out

    def end_flights(self, int32_t pid=0, double min_age=0):
        """
        End the references in flight whose sender is no longer a client, and return how many there were.

        Call this only if those messages can no longer be received. It ends references that were sent at least `min_age`
        seconds ago and, if `pid` is given, only those sent by that process. References that may be loaded any number of
        times are kept, unless their object is freed.
        """
        cdef prs_error error
        cdef int n
        cdef int64_t age = <int64_t>(min(max(min_age, 0.0), 9e9) * 1e9)
        self.check_open()
        error.code = 0
        cdef prs_store *handle = begin(self)
        with nogil:
            n = prs_flights_end(handle, pid, age, &error)
        end(handle)
        if n < 0:
            fail(n, &error, self)
        return n

    def client_pids(self):
        """Return the pids of the attached processes."""
        cdef int32_t[4096] pids
        self.check_open()
        cdef int n = prs_client_pids(self.handle, pids, 4096)
        if n < 0:
            fail(n, NULL, self)
        return [pids[i] for i in range(n)]

    def leave(self):
        """Announce that this process is leaving; return whether every other live client has also announced this."""
        self.check_open()
        return bool(prs_leave(self.handle))

    def check(self):
        """Verify every invariant of the store; raise a `CorruptObjectError` that names the broken one."""
        cdef prs_error error
        cdef int status
        self.check_open()
        error.code = 0
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_check(handle, &error)
        end(handle)
        if status != PRS_OK:
            fail(status, &error, self)

    def look(self, double min_age=0):
        """Clean up after dead clients, unless a client did so within the last `min_age` seconds."""
        cdef int status
        cdef int64_t age = <int64_t>(min_age * 1e9)
        self.check_open()
        cdef prs_store *handle = begin(self)
        with nogil:
            status = prs_reap_dead(handle, age)
        end(handle)
        if status < 0:
            fail(status, NULL, self)

    def trim(self, uint64_t keep=0):
        """Return freed pages beyond `keep` bytes to the kernel; return the number of bytes released."""
        cdef uint64_t given
        self.check_open()
        cdef prs_store *handle = begin(self)
        with nogil:
            given = prs_trim(handle, keep)
        end(handle)
        return given

    cdef int alloc(self, uint64_t size, unsigned flags, prs_draft *draft, int64_t deadline) except -1:
        """
        Allocate; while the store is full, drop cached results, then retry until `deadline` (0: try once).

        The draft counts as a use of the handle until `seal_or_abort` or `abort`.
        """
        cdef prs_error error
        cdef int status
        cdef prs_store *handle
        cdef int64_t nap = 1000000
        cdef int rounds = 0
        cdef bint droppable = True
        while True:
            self.check_open()
            error.code = 0
            handle = begin(self)
            with nogil:
                status = prs_alloc(handle, size, flags, draft, &error)
            if status == PRS_OK:
                if not flags & PRS_ALLOC_WINDOW:
                    ledger_begin(self, draft, size)
                return 0
            end(handle)
            if status == PRS_E_CLOSED:
                revive(self)
                continue
            # Another thread may have closed the store in the meantime.
            if status == PRS_E_FULL and rounds < 64 and self.handle is not NULL and prs_spill_form(self.handle):
                rounds += 1
                try:
                    if make_room(self, size):
                        continue
                except Exception as problem:
                    # The disk is full, but may have room later.
                    if not is_store_full(problem) or deadline == 0 or prx_now() >= deadline:
                        raise
            # An object larger than the whole store never fits.
            hopeless = status == PRS_E_FULL and error.sys_errno == 0 and error.want > error.capacity
            if status in (PRS_E_FULL, PRS_E_OBJECTS) and not hopeless and droppable:
                droppable = drop_cached(self, size)
                if droppable:
                    continue
            if (status not in (PRS_E_FULL, PRS_E_BACKING, PRS_E_OBJECTS) or hopeless or deadline == 0
                    or prx_now() >= deadline):
                fail(status, &error, self)
            with nogil:
                prx_nap(nap)
            nap = min(nap * 2, 20000000)
            rounds = 0  # counts attempts without a pause
            PyErr_CheckSignals()

    cdef int write(self, prs_draft *draft, uint64_t at, const void *src, size_t n) except -1:
        cdef prs_error error
        cdef int status
        error.code = 0
        if n == 0:
            return 0
        ledger_write(self, draft, at, n)
        if draft.dst is not NULL:
            memcpy(<uint8_t *>draft.dst + at, src, n)
            return 0
        with nogil:
            status = prs_write(draft.store, draft, at, src, n, &error)
        if status != PRS_OK:
            fail(status, &error, self)
        return 0

    cdef void abort(self, prs_draft *draft) noexcept:
        forget_ledger(self, draft)
        prs_abort(draft.store, draft)
        end(draft.store)

    def attach_again(self, int32_t pid, int fd):
        """Make a forked child without a client slot a client again; return False if `pid` has not opened the store."""
        cdef prs_store *handle = NULL
        cdef prs_options options
        memset(&options, 0, sizeof(options))
        if self.handle is NULL or not prs_is_orphan(self.handle):
            return self.handle is not NULL
        cdef int status
        cdef uint64_t ident = self.id
        with nogil:
            status = prs_attach_pid(&handle, pid, fd, ident, &options, NULL)
        if status != PRS_OK:
            return False
        if self.handle is NULL or not prs_is_orphan(self.handle):  # another thread closed or attached it meanwhile
            with nogil:
                prs_release(handle)
            return self.handle is not NULL
        # Views that were created through the old handle keep that handle alive.
        self.opened(handle)
        return True

    def renew(self):
        """
        In a forked child, become a client that holds none of its parent's objects; return False if no slot is free.

        References created before the fork still identify their objects, and hold them again on first use. Views created
        before the fork keep their pins.
        """
        cdef prs_store *handle = NULL
        cdef prs_store *inherited
        cdef prs_options options
        cdef int32_t pid, fd
        cdef uint64_t start
        cdef int status
        self.check_open()
        if prs_is_orphan(self.handle):
            return False
        memset(&options, 0, sizeof(options))
        inherited = self.handle
        prs_locator(inherited, &pid, &start, &fd)
        cdef uint64_t ident = self.id
        with nogil:
            status = prs_attach_pid(&handle, pid, fd, ident, &options, NULL)
        if status != PRS_OK:
            return False
        if self.handle != inherited:  # another thread closed or renewed the store meanwhile
            with nogil:
                prs_release(handle)
            return self.handle is not NULL
        self.opened(handle)
        # Close the old handle, but do not free it: references compare handles by address, so no new handle may get its
        # address.
        if prs_end(inherited):
            with nogil:
                prs_close(inherited)
        return True


STATES = {
    PRS_STATE_RESERVED: "reserved", PRS_STATE_CREATING: "creating", PRS_STATE_SEALED: "sealed",
    PRS_STATE_FREEING: "freeing", PRS_STATE_SPILLING: "spilling",
}


def open_stores():
    """Return a list of the stores that this process has open."""
    return list(stores.values())


def default():
    """Return the store that `put` uses, or None."""
    return default_store


def set_default(Store store):
    """Set the store that `put` uses; with None, `put` finds or opens a store."""
    global default_store
    default_store = store


cdef Store default_or_open():
    cdef Store store = default_store
    if store is None:
        # Do not use `default_store` here: another thread may have closed that store and set the variable to None.
        store = open_default_store()
    return store
