# uses: prelude, policy, spill, store, views, pickling, refs, forms
#
# Implements `get` and `get_buffer`, which return the value or the buffers of an object.

cdef object decode(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable, Store store,
                   ObjectRef ref):
    return decode_allowed(owner, form, data, size, writable, store, ref, None)


cdef object decode_allowed(object owner, const uint8_t *form, const uint8_t *data, uint64_t size, bint writable,
                           Store store, ObjectRef ref, object allow):
    """Return the value of the form at `data`, which `owner` keeps alive and which may refer to objects in `store`.

    Header, table and stream are read from `form`, which has the same bytes. If `data` is a new private mapping, a read
    from it would cause a page fault, and a page fault costs as much as creating the mapping.
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
            pass  # the unpickler checks every global, also those of the templates below
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


cdef object named_object(Store store, const prs_buffer_entry *entry, bint writable, ObjectRef ref, const uint8_t **start):
    """Return an owner of the other object that contains a buffer; set `start` to the address of the buffer."""
    cdef Pin pin = new_pin()
    cdef int status
    cdef prs_store *handle
    cdef object owner = pin
    if store is None:
        corrupt(b"it refers to a store, but is outside of one", ref)
    pin.id.store = store.id
    pin.id.serial = entry.serial
    pin.id.slot = entry.slot
    pin.id.generation = entry.generation
    # Python code runs below, and another thread may close the store, so we store in the pin the handle through which we
    # pinned the object.
    store.check_open()
    handle = store.handle
    status = prs_pin_named(handle, &pin.id, &pin.view)
    while status == PRS_E_AGAIN or status == PRS_E_SPILLED:
        if status == PRS_E_SPILLED:
            status = restore(store, &pin.id, PRS_PIN_NAMED, &pin.view, ref, &handle)
            if status == PRS_OK:
                break
        else:  # the object is sealed, so a process is spilling it
            store.check_open()
            handle = begin(store)
            with nogil:
                if prs_wait(handle, &pin.id, -1) == PRS_E_FREED:
                    # The object was freed, but the outer object still keeps it.
                    prx_nap(1000000)
            end(handle)
        PyErr_CheckSignals()
        store.check_open()
        handle = store.handle
        status = prs_pin_named(handle, &pin.id, &pin.view)
    if status != PRS_OK:
        # The outer object keeps this object alive. So this object can be missing only if the table is corrupt, or if
        # the object was spilled and its file was deleted.
        if status in (PRS_E_CLOSED, PRS_E_FREED, PRS_E_SYS, PRS_E_NOMEM):
            fail(status, NULL, store, ref)
        if status == PRS_E_LOST and prs_state(handle, &pin.id) == PRS_OK:
            fail(status, NULL, store, ref)
        corrupt(b"a buffer refers to an object that is not there", ref)
    pin.handle = handle
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
    """Return a pin, or return None and set `status` to the reason."""
    cdef Pin pin = new_pin()
    status[0] = prs_pin(ref.handle, &ref.id, &pin.view)
    if status[0] != PRS_OK:
        return None
    pin.handle = ref.handle
    pin.id = ref.id
    return pin


cdef Pin pin_by(ObjectRef ref, int64_t deadline, object timeout):
    """Return a pin; wait until the object is sealed if necessary."""
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
            status = restore(store, &ref.id, PRS_PIN_PLAIN, &pin.view, ref, &handle)
            if status == PRS_OK:
                pin.handle = handle
                pin.id = ref.id
                return pin
        if status != PRS_E_AGAIN:
            fail(status, NULL, store, ref)
        left = -1
        if deadline == FOREVER and not asked:
            asked = True
            check_endless_get(ref)
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


cdef ObjectRef resolved(ObjectRef ref, int64_t deadline):
    """Return `ref` or, if this process cannot find its store, the reference of a copy in an open store."""
    if ref.store is not None:
        return ref
    if deadline == FOREVER:
        return resolve_foreign(ref, None)
    return resolve_foreign(ref, (deadline - prx_now()) / 1e9 if deadline else 0)


cdef inline void *array_in_place(Pin pin) except? NULL:
    """Return the array (a new reference) if the object is a single plain array; NULL: use `decode_allowed`."""
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
        ref = resolved(ref, deadline)
        pin = pin_by(ref, deadline, timeout)
    else:
        pin.handle = ref.handle
        pin.id = ref.id
        ref.lay = pin.view.data
    if writable:
        copy = privately(pin, ref)
        # A mapping keeps the pin, so we may read the stream from the pinned bytes.
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
    Return the value of an object, or a list of values for a list of references.

    Arrays and other buffers stay in the store: they are read-only and not copied.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
        References to task results are also accepted.
    timeout : float, optional
        How many seconds to wait for objects that are not sealed yet; default is no limit.
    mmap_mode : {"r", "c"}
        "r" reads in place. "c" returns writable values in a private copy-on-write mapping; writing to them does not
        change the stored object.
    allow : collection of str or callable, optional
        The globals that may be loaded: names ``"module:qualname"`` or a predicate ``(module, qualname) -> bool``. By
        default all globals may be loaded. Allowed classes still run their own code.

    Returns
    -------
    object or list

    Raises
    ------
    GetTimeoutError
        If an object is not sealed in time, or if only the calling thread could seal it.
    ObjectLostError, ObjectFreedError
        If an object is lost or was freed.
    ForeignStoreError
        If this process cannot find the store.
    StoreClosedError
        If the store was closed by `shutdown`.
    CorruptObjectError
        If the bytes of an object are damaged.
    TaskError, TaskCancelledError, WorkerDiedError
        If a task has no result.
    UnpicklingError
        If an object needs a global that `allow` rejects.
    TypeError
        If `refs` is neither a reference nor a list of references.
    ValueError
        If `mmap_mode` is neither "r" nor "c", or `timeout` is negative.

    Examples
    --------
    >>> ref = pyray_ser.put([1, "two"])
    >>> pyray_ser.get(ref)
    [1, 'two']
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
        raise not_refs("get", refs)
    if check_refs("get", refs) > 1:
        begin_foreign(refs)
    return [get_one(<ObjectRef>ref, deadline, timeout, writable, allow) for ref in tuple(refs)]


cdef object READ = "r"


def get_buffer(ref, *, timeout=None):
    """
    Return the buffers of an object, without unpickling it.

    Parameters
    ----------
    ref : ObjectRef
    timeout : float, optional
        As for `get`.

    Returns
    -------
    memoryview or list of memoryview
        The buffer of an object that is one buffer (bytes, an array, a result of `create`). For other objects, a list of
        the pickle stream and the out-of-band buffers in its order. All are read-only, and nothing is copied.

    Raises
    ------
    GetTimeoutError, ObjectLostError, ObjectFreedError, ForeignStoreError, StoreClosedError, CorruptObjectError
        As for `get`.
    TypeError
        If `ref` is not an `ObjectRef`.
    ValueError
        If `timeout` is negative.

    Examples
    --------
    >>> bytes(pyray_ser.get_buffer(pyray_ser.put(b"bytes")))
    b'bytes'
    """
    if type(ref) is not ObjectRef:
        raise not_refs("get_buffer", ref)
    cdef int64_t deadline = deadline_of(timeout)
    ref = resolved(<ObjectRef>ref, deadline)
    cdef Pin pin = pin_by(<ObjectRef>ref, deadline, timeout)
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
    """Return whether the value that the stream describes is its only buffer."""
    cdef bytes head = PyBytes_FromStringAndSize(<const char *>stream, min(n, 64))
    return (prp_array_template_looks(stream, n)
            or head.startswith((BYTES_STREAM, BYTEARRAY_STREAM, ARRAY_STREAM[:ARRAY_TYPECODE]))
            or MEMORYVIEW_CALL in head)
