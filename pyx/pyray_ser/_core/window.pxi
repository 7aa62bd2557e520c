# uses: prelude, policy, store, refs, forms, write
#
# Objects that are filled in place: the results of `create` and `empty`, until `seal` or `abort`.
#
# A window is a writable mapping of one unsealed object. Sealing replaces it by a read-only mapping at the same address,
# so arrays and memoryviews over it stay valid. A window belongs to the process that created it; a forked child cannot
# export its buffer.

# Room for the stream. Sealing writes the stream, because the shape of the array is not known earlier.
cdef enum:
    STREAM_ROOM = 1024

cdef enum State:
    OPEN
    SEALED
    ABORTED
    GONE        # no window was ever mapped

cdef object open_windows = None  # a WeakValueDictionary by id; created with the first window


@cython.final
@cython.no_gc
cdef class Window:
    """
    The writable bytes of an unsealed object.

    Attributes
    ----------
    ref : ObjectRef
        A reference to the object; other processes can wait for it before it is sealed.
    """

    cdef Store store
    cdef prs_draft draft
    cdef uint8_t *data
    cdef uint64_t off
    cdef uint64_t size
    cdef State state
    cdef bint stored        # whether the bytes are the stored form of an object, see create_stored
    cdef long forks
    cdef object __weakref__

    def __cinit__(self):
        self.state = GONE

    def __init__(self):
        raise TypeError("use create() or empty()")

    def __dealloc__(self):
        if self.state == GONE:
            return
        # The window keeps its handle even if the store has been closed. A forked child does not own the object.
        if self.state == OPEN and self.forks == prs_fork_count() and self.store.handle == self.draft.store:
            prs_abort_keep_window(self.draft.store, &self.draft)
        prs_window_close(self.draft.store, &self.draft)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.state == OPEN and self.forks != prs_fork_count():
            raise BufferError("an unsealed object belongs to the process that made it, not to its forked children")
        if self.state == GONE:
            raise BufferError("this object was never made")
        # An aborted window is private memory. A handler may abort it before `create` returns the first view.
        PyBuffer_FillInfo(view, self, self.data, self.size, self.state == SEALED, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<window of {self.size} bytes, {('open', 'sealed', 'aborted', 'gone')[self.state]}>"

    @property
    def ref(self):
        return reference_to(self.store, &self.draft.id)

    @property
    def sealed(self):
        """bool : Whether the object is sealed, so that it can no longer be written."""
        return self.state == SEALED

    cdef int check_open(self) except -1:
        if self.state != OPEN:
            raise ValueError(f"the object is {('open', 'sealed already', 'aborted', 'gone')[self.state]}")
        if self.forks != prs_fork_count():
            raise ValueError("an unsealed object belongs to the process that made it, not to its forked children")
        self.store.check_open()
        return 0


cdef ObjectRef reference_to(Store store, const prs_oid *id):
    """Return another reference to an object of this process, sealed or not."""
    store.check_open()
    cdef ObjectRef ref = new_ref(store, NULL, id)
    cdef int status = prs_ref(store.handle, id)
    if status != PRS_OK:
        fail(status, NULL, store, ref)
    ref.handle = store.handle
    return ref


cdef ObjectRef seal_window(Store store, prs_draft *draft):
    """Seal the object of a window. On failure the window is unchanged, unless its object is lost."""
    cdef prs_error error
    cdef int status
    cdef ObjectRef ref = new_ref(store, NULL, &draft.id)
    if note_origin is not None:
        note_origin(store.id, draft.id.serial)
    store.check_open()
    error.code = 0
    status = prs_seal(draft.store, draft, &error) if draft.store == store.handle else PRS_E_LOST
    if status != PRS_OK:
        fail(status, &error, store)
    ref.handle = draft.store
    return ref


cdef list all_open():
    """Return the open windows. Other threads may open and close windows in the meantime."""
    if open_windows is None:
        return []
    return [window for window in [found() for found in open_windows.valuerefs()] if window is not None]


cdef int forget(Window window) except -1:
    open_windows.pop(<size_t><void *>window, None)
    return 0


cdef Window open_window(uint64_t size, int64_t deadline, bint stored=False):
    global open_windows
    cdef Window made = Window.__new__(Window)
    cdef uint64_t total = sizeof(prs_header) + sizeof(prs_buffer_entry) + STREAM_ROOM
    cdef Store store = default_or_open()
    made.forks = prs_fork_count()
    made.stored = stored
    if stored:
        total = size
    else:
        place(&total, size, &made.off)
    store.alloc(total, PRS_ALLOC_WINDOW, &made.draft, deadline)
    made.store = store
    made.data = <uint8_t *>made.draft.window + made.off
    made.size = size
    made.state = OPEN
    end(made.draft.store)  # an open window is no use of the handle, but keeps the handle's memory allocated
    if open_windows is None:
        from weakref import WeakValueDictionary

        empty_table = WeakValueDictionary()
        if open_windows is None:  # another thread may have created the dict meanwhile
            open_windows = empty_table
    open_windows[<size_t><void *>made] = made
    return made


def create(size, timeout=None):
    """Return a window of `size` bytes; `timeout` is as for `put`."""
    size = PyNumber_Index(size)
    if size < 0 or size >= 1 << 63:
        raise ValueError(f"an object cannot have {size} bytes")
    return open_window(size, 0 if timeout is None else deadline_of(timeout))


def array_over(Window window not None, shape, dtype, order):
    """Return a writable array over a window."""
    import numpy

    array = numpy.ndarray(shape, dtype, window, 0, order=order)
    return array


def window_of(value):
    """
    Return the window that contains a buffer or array.

    Parameters
    ----------
    value : Window, memoryview or numpy.ndarray

    Raises
    ------
    ValueError
        If `value` is neither a result of `create` or `empty` nor a view of such a result.
    """
    seen = value
    for _ in range(64):
        if type(seen) is Window:
            return seen
        if type(seen) is memoryview:
            seen = seen.obj
        else:
            seen = getattr(seen, "base", None)
        if seen is None:
            break
    raise ValueError("this is neither a result of create() or empty(), nor a view of one")


cdef int check_whole(Window window, value) except -1:
    cdef Py_buffer view
    cdef bint whole
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    whole = <uint8_t *>view.buf == window.data and <uint64_t>view.len == window.size
    PyBuffer_Release(&view)
    if not whole:
        raise ValueError("seal() takes the whole buffer that create() returned, not a part of it")
    return 0


cdef int check_stored(Window window) except -1:
    """Check header and table, which come from another store. Readers check them again."""
    cdef prs_header header
    cdef prs_buffer_entry entry
    cdef uint32_t i
    check_header(window.data, window.size, window.size, &header, None)
    for i in range(header.nbuffers):
        check_entry(&header, window.data + sizeof(prs_header), i, &entry, None)
        # The buffer is in an object of the other store. In this store, its slot may have an unrelated object.
        if entry.slot != PRS_NO_SLOT:
            corrupt(b"a buffer refers to an object of another store", None)
    return 0


def seal(value):
    """
    Publish the object that contains `value`, with the type and shape of `value`, and make it read-only.

    A result of `create_stored` keeps the value that its bytes describe.

    Parameters
    ----------
    value : Window, memoryview or numpy.ndarray
        The whole memory of the object.

    Returns
    -------
    ObjectRef

    Raises
    ------
    ValueError
        If `value` is only a part of the object, or is not in an object that this process can seal.
    TypeError
        If the type of `value` cannot be stored without the pickler.
    ObjectLostError
        If the object has been reclaimed.
    CorruptObjectError
        If the bytes in a result of `create_stored` are not the stored form of an object.
    StoreClosedError
        If the store was closed.
    """
    cdef Window window = window_of(value)
    cdef uint8_t[1024] stream
    cdef prp_array_source source
    cdef Py_ssize_t n
    cdef uint64_t total
    cdef ObjectRef ref
    window.check_open()
    if window.stored:
        check_whole(window, value)
        window.check_open()  # a finalizer may have sealed it
        check_stored(window)
    elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        n = prp_ndarray().template_put(value, stream, &source)
        if n == 0 or n > STREAM_ROOM:
            raise TypeError(f"seal() cannot store an array of dtype {value.dtype}; fill one from create() instead")
        if source.nbytes != window.size or (source.nbytes and source.data != window.data):
            raise ValueError("seal() takes the whole array that empty() returned, not a part of it")
    else:
        if type(value) is memoryview:
            written = call_of_memoryview(MEMORYVIEW_STREAM, value)
        else:
            written = (MEMORYVIEW_STREAM, value) if type(value) is Window else None
        n = PyBytes_GET_SIZE(written[0]) if written is not None else 0
        if n == 0 or n > STREAM_ROOM:
            raise TypeError(
                f"seal() cannot store a {type(value).__name__!r} of this kind; give it a result of create() or empty(), "
                "or an array by view(numpy.ndarray)")
        check_whole(window, value)
        memcpy(stream, PyBytes_AS_STRING(written[0]), n)
    window.check_open()  # Python code ran meanwhile, and another thread may have called seal()
    if not window.stored:
        total = window.off + window.size
        prs_format_write_header(window.draft.window, total, n, 1)
        prs_format_write_entry(window.draft.window, 0, window.off, window.size, NULL)
        memcpy(<uint8_t *>window.draft.window + sizeof(prs_header) + sizeof(prs_buffer_entry), stream, n)
    ref = seal_window(window.store, &window.draft)
    window.state = SEALED
    forget(window)
    freeze(value)
    return ref


cdef int freeze(value) except -1:
    """Mark the array and its bases read-only, because the mapping is now read-only."""
    while getattr(value, "flags", None) is not None and hasattr(value, "setflags"):
        value.setflags(write=False)
        value = value.base
    return 0


def abort(value):
    """
    Discard an unsealed object. Its views stay valid, and read as zeros.

    Parameters
    ----------
    value : Window, memoryview or numpy.ndarray

    Raises
    ------
    ValueError
        If `value` is not in an unsealed object of this process.
    StoreClosedError
        If the store was closed.
    """
    cdef Window window = window_of(value)
    window.check_open()
    prs_abort_keep_window(window.draft.store, &window.draft)
    window.state = ABORTED
    forget(window)


def is_ours(ObjectRef ref not None):
    """Return whether `ref` refers to an unsealed object of this process, so that no other process can seal it."""
    cdef Window window
    for window in all_open():
        # Compare ids, because a window of a closed store has no reference.
        if (window.state == OPEN and window.forks == prs_fork_count() and window.draft.id.store == ref.id.store
                and window.draft.id.serial == ref.id.serial):
            return True
    return False


def abort_all():
    """Discard all unsealed objects of this process before its stores are closed."""
    cdef Window window
    cdef list windows = all_open()
    for window in windows:
        if window.state == OPEN and window.forks == prs_fork_count():
            if window.store.handle == window.draft.store:
                prs_abort_keep_window(window.draft.store, &window.draft)
            window.state = ABORTED
    for window in windows:  # this runs Python code, so a signal handler may raise an exception here
        forget(window)
