# `get` and `get_buffer`.

cdef inline Pin pin_now(ObjectRef ref, int *status):
    """A pin, or None with `status` telling why not."""
    cdef Pin pin = new_pin()
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
    cdef bint asked = False
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
        if status == PRS_E_SPILLED:
            pin = Pin.__new__(Pin)
            status = restore(store, &ref.id, False, &pin.view, ref, &handle)
            if status == PRS_OK:
                pin.handle = handle
                pin.id = ref.id
                return pin
        if status != PRS_E_AGAIN:
            fail(status, NULL, store, ref)
        left = -1
        if deadline == FOREVER and not asked:
            asked = True
            from pyray_ser.store.endless import check_seal

            check_seal(ref)
        if deadline != FOREVER:
            left = deadline - prx_now() if deadline else 0
            if left <= 0:
                fail(PRS_E_TIMEOUT, NULL, store, ref, timeout)
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_wait(handle, &ref.id, left)
        end(handle)
        PyErr_CheckSignals()
        if status not in (PRS_OK, PRS_E_TIMEOUT, PRS_E_INTR):
            fail(status, NULL, store, ref)


cdef inline void *array_in_place(Pin pin) except? NULL:
    """The array (a new reference) if the object is one array and nothing else; NULL: the general way says what it is."""
    cdef prs_header header
    cdef prs_buffer_entry entry
    cdef const uint8_t *form = pin.view.data
    cdef const uint8_t *stream = form + sizeof(prs_header) + sizeof(prs_buffer_entry)
    if (not prs_format_one_buffer(form, pin.view.size, &header, &entry)
            or not prp_array_template_looks(stream, header.stream_len)):
        return NULL
    return prp_ndarray().from_stream(stream, header.stream_len, form + (entry.off if entry.len else 0), entry.len, pin,
                                     PRP_ARRAY_PLAIN_OWNER)


cdef object get_one(ObjectRef ref, int64_t deadline, object timeout, bint writable, object allow):
    cdef Pin pin = new_pin()
    cdef Private copy
    cdef void *array
    prx_prefetch(ref.lay)
    if ref.handle is NULL or ref.handle != ref.store.handle or prs_pin(ref.handle, &ref.id, &pin.view) != PRS_OK:
        pin = pin_by(ref, deadline, timeout)
    else:
        pin.handle = ref.handle
        pin.id = ref.id
        ref.lay = pin.view.data
    if writable:
        copy = privately(pin, ref)
        # A mapping keeps the pin, so its stream may be read, and kept, through the pin's bytes.
        return decode_allowed(copy, pin.view.data if copy.pin is not None else copy.data, copy.data, copy.size, True,
                              ref.store, ref, allow)
    if allow is None:
        array = array_in_place(pin)
        if array is not NULL:
            return prx_steal(array)
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
        from pyray_ser.store.references import not_refs

        raise not_refs("get", refs)
    check_refs("get", refs)
    return [get_one(<ObjectRef>ref, deadline, timeout, writable, allow) for ref in tuple(refs)]


cdef object READ = "r"

cdef int check_refs(str function, object refs) except -1:
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"{function}() takes ObjectRefs, but the list holds {type(ref).__name__!r}: {ref!r:.80}")
    return 0


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
        from pyray_ser.store.references import not_refs

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
