# Writing an object of one stream and at most one buffer.

cdef inline int alloc_small(Store store, uint64_t total, prs_draft *draft, int64_t deadline) except -1:
    """`Store.alloc`, without releasing the GIL if the size is small and nothing has to be waited for."""
    if (total > PRS_SMALL_MAX or store.handle is NULL
            or prs_alloc(store.handle, total, PRS_ALLOC_TRY, draft, NULL) != PRS_OK):
        return store.alloc(total, 0, draft, deadline)
    prs_use(draft.store)
    return ledger_begin(store, draft, total)


cdef object put_stream(Store store, const uint8_t *stream, Py_ssize_t stream_size, int64_t deadline):
    """An object that is its stream, at most HEAD bytes."""
    cdef uint64_t total = sizeof(prs_header) + stream_size
    cdef prs_draft draft
    cdef uint8_t[HEAD] head
    alloc_small(store, total, &draft, deadline)
    if draft.dst is not NULL:
        ledger_write(store, &draft, 0, total)
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
        store.abort(draft)
        raise


# Told of every object that is made here, if somebody asked for that.
cdef object note_origin = None


def set_note_origin(function):
    """Let ``function(store id, serial)`` be called for every object that this process makes; None ends it."""
    global note_origin
    note_origin = function


cdef inline ObjectRef seal_or_abort(Store store, prs_draft *draft):
    cdef prs_error error
    cdef int status
    cdef ObjectRef ref
    error.code = 0
    # The reference is made first: once the object is published, nothing may fail.
    try:
        ref = new_ref(store, NULL, &draft.id)
        if note_origin is not None:
            note_origin(store.id, draft.id.serial)
    except BaseException:
        store.abort(draft)
        raise
    if prx_ledger or (draft.dst is NULL and prs_draft_in_file(draft.store, draft)):
        try:
            ledger_seal(store, draft)
            if draft.dst is NULL and prs_draft_in_file(draft.store, draft):
                finish_file(store, draft)
        except BaseException:
            store.abort(draft)
            raise
    # Another thread may have closed the store during the copy: the draft goes with it.
    status = prs_seal(draft.store, draft, &error) if store.handle == draft.store else PRS_E_CLOSED
    if status != PRS_OK:
        store.abort(draft)
        if status == PRS_E_CLOSED:
            store.check_open()
        fail(status, &error, store)
    ref.handle = draft.store
    end(draft.store)
    return ref


cdef object put_buffer(Store store, const uint8_t *stream, Py_ssize_t stream_size, const void *data, uint64_t size,
                       object array, const prp_array_source *source, int64_t deadline):
    """An object of one buffer: `size` bytes at `data`, or gathered from `array` if `source` says so."""
    cdef uint64_t body = sizeof(prs_header) + sizeof(prs_buffer_entry) + stream_size
    cdef uint64_t total = body, off = 0
    cdef prs_draft draft
    cdef prs_oid inner
    cdef uint8_t[HEAD + PAD] head
    cdef uint8_t *dst
    cdef bint gathers = source is not NULL and source.kind != PRP_ARRAY_DIRECT
    cdef bint refers = not gathers and size >= REFERENCE_FROM and worth_referring(store, data, size, &inner, &off)
    if refers:
        store.alloc(total, PRS_ALLOC_ORDERED, &draft, deadline)
    else:
        place(&total, size, &off)
        alloc_small(store, total, &draft, deadline)
    dst = <uint8_t *>draft.dst if draft.dst is not NULL else head
    prs_format_write_header(dst, total, stream_size, 1)
    prs_format_write_entry(dst, 0, off, size, &inner if refers else NULL)
    memcpy(dst + sizeof(prs_header) + sizeof(prs_buffer_entry), stream, stream_size)
    if not refers:
        memset(dst + body, 0, off - body)
        body = off
    if dst == head:
        write_or_abort(store, &draft, 0, head, body)
    else:
        ledger_write(store, &draft, 0, body)
    if refers or gathers:
        try:
            if refers:
                add_edge(store, &draft, &inner, True)
            else:
                gather_array(store, &draft, off, array, source)
        except BaseException:
            store.abort(&draft)
            raise
        return seal_or_abort(store, &draft)
    if source is not NULL and not prp_ndarray().lies_at(array, data, size):
        store.abort(&draft)
        raise RuntimeError("an array was resized while it was stored")
    if dst == head:
        write_or_abort(store, &draft, off, data, size)
    elif size:
        ledger_write(store, &draft, off, size)
        memcpy(dst + off, data, size)
    return seal_or_abort(store, &draft)


cdef int gather_array(Store store, prs_draft *draft, uint64_t off, object array, const prp_array_source *source) except -1:
    """Write a strided array to where it belongs, once, without a copy in between."""
    cdef Py_ssize_t[PRP_ARRAY_MAX_DIMS] shape
    cdef Py_ssize_t[PRP_ARRAY_MAX_DIMS] strides
    cdef prs_error error
    cdef int status, i
    cdef int nd = source.layout.nd
    cdef size_t itemsize
    cdef uint64_t total
    cdef const void *first
    ledger_write(store, draft, off, source.nbytes)
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
    error.code = 0
    with nogil:
        status = prs_write_strided(draft.store, draft, off, first, nd, shape, strides, itemsize, &error)
    if status != PRS_OK:
        fail(status, &error, store)
    return 0


cdef bint worth_referring(Store store, const void *data, uint64_t size, prs_oid *inner, uint64_t *at) noexcept:
    """Whether these bytes are an object's of this store, and enough of it to keep it alive for them."""
    cdef prs_view view
    if store.handle is NULL:  # closed by what ran since the put began: the allocation says so
        return False
    if prs_find(store.handle, data, size, inner, at) != PRS_OK or prs_pin(store.handle, inner, &view) != PRS_OK:
        return False
    prs_unpin(store.handle, inner)
    return size >= view.size // REFERENCE_SHARE


cdef int add_edge(Store store, prs_draft *draft, const prs_oid *inner, bint refers) except -1:
    """Let the draft hold `inner`; if it refers to its bytes, also against `free`."""
    cdef prs_error error
    cdef int status
    error.code = 0
    with nogil:
        if refers:
            status = prs_add_bytes_edge(draft.store, draft, inner, &error)
        else:
            status = prs_add_edge(draft.store, draft, inner, &error)
    if status != PRS_OK:
        fail(status, &error, store)
    return 0
