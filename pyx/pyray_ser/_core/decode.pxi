# From the bytes of an object to its value.

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
    # Python code runs in between, and another thread may close the store: what pins is what the pin remembers.
    store.check_open()
    handle = store.handle
    status = prs_pin_named(handle, &pin.id, &pin.view)
    while status == PRS_E_AGAIN or status == PRS_E_SPILLED:
        if status == PRS_E_SPILLED:
            status = restore(store, &pin.id, True, &pin.view, ref, &handle)
            if status == PRS_OK:
                break
        else:  # sealed long ago: somebody spills it just now
            store.check_open()
            handle = begin(store)
            with nogil:
                if prs_wait(handle, &pin.id, -1) == PRS_E_FREED:  # it ended for all but the outer object
                    prx_nap(1000000)
            end(handle)
        PyErr_CheckSignals()
        store.check_open()
        handle = store.handle
        status = prs_pin_named(handle, &pin.id, &pin.view)
    if status != PRS_OK:
        # The outer object holds it: that it is not there means that the table does not tell the truth, or that it was
        # spilled and its file is gone.
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
