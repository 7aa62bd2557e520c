# uses: prelude, policy, spill, ledger, store, pickling, refs, names, forms
#
# Implements `put`: computes the layout of an object, chooses how to write the value, and writes it from the first byte
# to the last.

# `lay_out` assigns an offset to all bytes of an object before the first byte is written.
#
# The parts of a layout are in ascending order and do not overlap. Writers fill them in order and pad between them, so
# padding never overwrites a part.

# The position of one buffer in the stored form.
cdef struct Place:
    uint64_t off
    bint foreign       # the buffer is in the object `other`
    prs_oid other


# A range of bytes that is written in one piece: `size` bytes at `data`, or, if `data` is NULL, the strided array of
# buffer `index`.
cdef struct Part:
    uint64_t off
    uint64_t size
    const uint8_t *data
    Py_ssize_t index


# The layout of the stored form: a position for each buffer, and `count` parts.
cdef struct Layout:
    uint64_t total
    Place *places
    Part *parts
    Py_ssize_t count
    void *memory


cdef struct Range:
    const uint8_t *start
    const uint8_t *stop
    Py_ssize_t index


# A group of buffers that overlap in memory. It is stored once, and its buffers keep their relative positions.
cdef struct Group:
    const uint8_t *start
    uint64_t size
    uint64_t off
    bint placed


cdef int by_start(const void *a, const void *b) noexcept nogil:
    cdef const Range *x = <const Range *>a
    cdef const Range *y = <const Range *>b
    if x.start != y.start:
        return -1 if x.start < y.start else 1
    if x.stop != y.stop:
        return 1 if x.stop < y.stop else -1
    return 0


cdef int lay_out(Layout *layout, Gathered gathered, Store store) except -1:
    """
    Assign a position to each buffer.

    Buffers that overlap in memory, such as several views of one array, become one part and keep their relative
    positions. Buffers that are in an object of `store` (None: do not check) are stored as references to that object.
    `free_layout` frees the result.
    """
    cdef Py_ssize_t n = gathered.nbuffers
    cdef Range *ranges
    layout.memory = NULL
    layout.count = 0
    if n > PRS_NO_SLOT - 1:
        raise OverflowError("an object cannot have that many buffers")
    layout.memory = PyMem_Malloc(n * (sizeof(Place) + sizeof(Part)) + 1)
    ranges = <Range *>PyMem_Malloc(n * (sizeof(Range) + sizeof(Group)) + 1)
    if layout.memory is NULL or ranges is NULL:
        PyMem_Free(ranges)
        raise MemoryError()
    layout.places = <Place *>layout.memory
    layout.parts = <Part *>(layout.places + n)
    try:
        place_parts(layout, gathered, store, ranges, <Group *>(ranges + n))
    finally:
        PyMem_Free(ranges)
    return 0


cdef void free_layout(Layout *layout) noexcept:
    PyMem_Free(layout.memory)
    layout.memory = NULL


cdef int place_parts(Layout *layout, Gathered gathered, Store store, Range *ranges, Group *groups) except -1:
    cdef Py_ssize_t n = gathered.nbuffers, i, j, count = 0, ngroups = 0
    cdef uint64_t end = sizeof(prs_header) + n * sizeof(prs_buffer_entry) + gathered.stream_size
    cdef const uint8_t *stop
    cdef bint ascending = True
    cdef Place *places = layout.places
    cdef Place *at
    cdef Group *group
    cdef Span span
    for i in range(n):
        at = &places[i]
        at.off = 0
        at.foreign = False
        span = gathered.buffer(i)
        if span.size == 0 or span.data is NULL:
            continue
        if store is not None and span.size >= REFERENCE_FROM and worth_referring(
                store, span.data, span.size, &at.other, &at.off):
            at.foreign = True
            continue
        ranges[count].start = <const uint8_t *>span.data
        ranges[count].stop = ranges[count].start + span.size
        ranges[count].index = i
        ascending = ascending and (count == 0 or ranges[count - 1].stop <= ranges[count].start)
        count += 1
    if not ascending:
        qsort(ranges, count, sizeof(Range), by_start)
    i = 0
    while i < count:
        # Each range in ranges[i:j] overlaps an earlier one; `stop` is the end of their union.
        stop = ranges[i].stop
        j = i + 1
        while j < count and ranges[j].start < stop:
            stop = max(stop, ranges[j].stop)
            j += 1
        groups[ngroups].start = ranges[i].start
        groups[ngroups].size = stop - ranges[i].start
        groups[ngroups].placed = False
        while i < j:
            places[ranges[i].index].off = ngroups
            i += 1
        ngroups += 1
    # Use the order of the stream, not of addresses, because readers load the buffers in that order.
    for i in range(n):
        at = &places[i]
        span = gathered.buffer(i)
        if span.size == 0 or at.foreign:
            continue
        if span.data is NULL:  # a strided array, which is not contiguous in memory
            place(&end, span.size, &at.off)
            add_part(layout, at.off, span.size, NULL, i)
            continue
        group = &groups[at.off]
        if not group.placed:
            place(&end, group.size, &group.off)
            group.placed = True
            add_part(layout, group.off, group.size, group.start, i)
        at.off = group.off + (<const uint8_t *>span.data - group.start)
    layout.total = end
    return 0


cdef inline void add_part(Layout *layout, uint64_t off, uint64_t size, const uint8_t *data, Py_ssize_t index) noexcept:
    cdef Part *part = &layout.parts[layout.count]
    part.off = off
    part.size = size
    part.data = data
    part.index = index
    layout.count += 1


# Functions that write an object with one stream and at most one buffer.

cdef inline int alloc_small(Store store, uint64_t total, prs_draft *draft, int64_t deadline) except -1:
    """Allocate as `Store.alloc` does, but keep the GIL if the size is small and the call need not wait."""
    if (total > PRS_SMALL_MAX or store.handle is NULL
            or prs_alloc(store.handle, total, PRS_ALLOC_TRY, draft, NULL) != PRS_OK):
        return store.alloc(total, 0, draft, deadline)
    prs_use(draft.store)
    ledger_begin(store, draft, total)
    return 0


cdef object put_stream(Store store, const uint8_t *stream, Py_ssize_t stream_size, int64_t deadline):
    """Put an object that has no buffers and a short stream, so that its stored form has at most HEAD bytes."""
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


# The function that is called for every object that this process creates, or None.
cdef object note_origin = None


def set_note_origin(function):
    """Call ``function(store id, serial)`` for every object that this process creates; None ends these calls."""
    global note_origin
    note_origin = function


cdef inline ObjectRef seal_or_abort(Store store, prs_draft *draft):
    cdef prs_error error
    cdef int status
    cdef ObjectRef ref
    error.code = 0
    # Allocate this first, because no step may fail after the object is published.
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
    # Another thread may have closed the store during the copy; a close ends the draft.
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
    """Put an object with one buffer: `size` bytes at `data`, or the strided `array` if `source` describes one."""
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
    """Write a strided array to its position in the draft, without an intermediate copy."""
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
        # The layout omits the data of axes of stride 0, which repeat one element.
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
    """Return whether an object of this store contains these bytes, and they are a large enough part of it."""
    cdef prs_view view
    if store.handle is NULL:  # the store was closed after the put began; the allocation raises the error
        return False
    if prs_find(store.handle, data, size, inner, at) != PRS_OK or prs_pin(store.handle, inner, &view) != PRS_OK:
        return False
    prs_unpin(store.handle, inner)
    return size >= view.size // REFERENCE_SHARE


cdef int add_edge(Store store, prs_draft *draft, const prs_oid *inner, bint refers) except -1:
    """Make the draft hold `inner`; if the draft refers to bytes of `inner`, these stay allocated even after `free`."""
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


# Functions that write a Gathered from the first byte to the last.

cdef enum:
    SCRATCH = 256 * 1024
    PIECE = 32 * 1024   # larger pieces bypass the scratch memory


# Writes to memory at `dst` or to a draft, in ascending order. It collects small pieces for a draft in scratch memory,
# so that one call of the engine writes many pieces. The bytes [0, at) have been written; the next `fill` bytes are in
# the scratch memory.
cdef struct Writer:
    prs_draft *draft    # NULL if `dst` is memory outside of stores
    uint8_t *dst        # if NULL, write through the scratch memory
    uint8_t *scratch
    uint64_t at
    size_t fill


cdef int writer_open(Writer *w, Store store, prs_draft *draft) except -1:
    w.draft = draft
    w.dst = <uint8_t *>draft.dst
    w.scratch = NULL
    w.at = 0
    w.fill = 0
    if w.dst is NULL:
        w.scratch = <uint8_t *>PyMem_Malloc(SCRATCH)
        if w.scratch is NULL:
            raise MemoryError()
    return 0


cdef void writer_open_memory(Writer *w, uint8_t *dst) noexcept:
    w.draft = NULL
    w.dst = dst
    w.scratch = NULL
    w.at = 0
    w.fill = 0


cdef void writer_close(Writer *w) noexcept:
    PyMem_Free(w.scratch)
    w.scratch = NULL


cdef int writer_flush(Writer *w, Store store) except -1:
    if w.fill:
        store.write(w.draft, w.at, w.scratch, w.fill)
        w.at += w.fill
        w.fill = 0
    return 0


cdef uint8_t *writer_room(Writer *w, Store store, uint64_t at, size_t size) except? NULL:
    """Pad up to offset `at`; return memory for `size` bytes, or NULL if the caller must write them to the draft."""
    cdef uint64_t gap = at - w.at - w.fill
    cdef uint8_t *room
    if at < w.at + w.fill or gap > PRS_PAGE_ALIGN:
        raise SystemError(f"a part at {at} does not follow {w.at + w.fill} in a new object")
    if w.dst is not NULL:
        room = w.dst + w.at
        memset(room, 0, gap)
        if w.draft is not NULL:
            ledger_write(store, w.draft, w.at, gap + size)
        w.at = at + size
        return room + gap
    if w.fill + gap + size > SCRATCH or size > PIECE:
        if w.fill + gap > SCRATCH:
            writer_flush(w, store)
        memset(w.scratch + w.fill, 0, gap)
        w.fill += gap
        gap = 0
        writer_flush(w, store)
        if size > PIECE:
            return NULL
    room = w.scratch + w.fill
    memset(room, 0, gap)
    w.fill += gap + size
    return room + gap


cdef int writer_bytes(Writer *w, Store store, uint64_t at, const void *data, size_t size) except -1:
    cdef uint8_t *room = writer_room(w, store, at, size)
    if room is NULL:
        store.write(w.draft, at, data, size)
        w.at = at + size
    elif size < LONG_COPY:
        memcpy(room, data, size)
    else:
        with nogil:
            memcpy(room, data, size)
    return 0


cdef int writer_array(Writer *w, Store store, uint64_t at, size_t size, Gathered gathered, Py_ssize_t index) except -1:
    cdef uint8_t *room = writer_room(w, store, at, size)
    if room is NULL:
        gather_array(store, w.draft, at, gathered.array(index), gathered.source(index))
        w.at = at + size
    else:
        gathered.write(index, room)
    return 0


cdef int write_form(Writer *w, Store store, Gathered gathered, const Layout *layout) except -1:
    """Write the whole stored form: header, table, stream and parts, with zeros between them."""
    cdef Py_ssize_t n = gathered.nbuffers, i
    cdef uint64_t at = sizeof(prs_header) + n * sizeof(prs_buffer_entry)
    cdef uint8_t[HEAD] few
    cdef uint8_t *head = few
    cdef const Place *entry
    cdef const Part *part
    cdef Span span
    try:
        if at > HEAD:
            head = <uint8_t *>PyMem_Malloc(at)
            if head is NULL:
                raise MemoryError()
        prs_format_write_header(head, layout.total, gathered.stream_size, n)
        for i in range(n):
            entry = &layout.places[i]
            prs_format_write_entry(head, i, entry.off, gathered.buffer(i).size, &entry.other if entry.foreign else NULL)
        writer_bytes(w, store, 0, head, at)
    finally:
        if head != few:
            PyMem_Free(head)
    for i in range(gathered.nstream):
        span = gathered.stream(i)
        writer_bytes(w, store, at, span.data, span.size)
        at += span.size
    gathered.check()
    for i in range(layout.count):
        part = &layout.parts[i]
        if part.data is not NULL:
            writer_bytes(w, store, part.off, part.data, part.size)
        else:
            writer_array(w, store, part.off, part.size, gathered, part.index)
    return writer_flush(w, store)


cdef ObjectRef put_general(Store store, object value, int64_t deadline):
    return put_gathered(store, gather_or_explain(value, store.id), deadline)


cdef ObjectRef put_gathered(Store store, Gathered gathered, int64_t deadline):
    cdef Py_ssize_t n = gathered.nbuffers, i
    cdef Layout layout
    cdef prs_draft draft
    cdef Writer writer
    cdef unsigned flags = PRS_ALLOC_ORDERED if gathered.edges else 0
    cdef bint allocated = False
    cdef set named
    cdef ObjectRef inner
    writer.scratch = NULL
    try:
        lay_out(&layout, gathered, store)
        for i in range(n):
            if layout.places[i].foreign:
                flags = PRS_ALLOC_ORDERED
        store.alloc(layout.total, flags, &draft, deadline)
        allocated = True
        writer_open(&writer, store, &draft)
        write_form(&writer, store, gathered, &layout)
        if flags:
            named = set()
            for i in range(n):
                if layout.places[i].foreign and layout.places[i].other.serial not in named:
                    named.add(layout.places[i].other.serial)
                    add_edge(store, &draft, &layout.places[i].other, True)
            for inner in gathered.edges:
                if inner.id.serial not in named:
                    named.add(inner.id.serial)
                    add_edge(store, &draft, &inner.id, False)
        allocated = False
        return seal_or_abort(store, &draft)
    finally:
        if allocated:
            store.abort(&draft)
        writer_close(&writer)
        free_layout(&layout)


# Functions by which `put` chooses how to write a value.

# `pyray_ser.pickling.registry` sets these two: find(cls) returns the reducer or None, and the list contains the number
# of registry changes so far.
cdef object registry_find = None
cdef list registry_version = None
cdef dict copyreg_table = _copyreg_table
# {type: the number of registry changes when `find` last returned None for the type}
cdef dict unregistered = {}


def set_registry(find, list version):
    """Let `find(cls)` override how `put` writes a class; it is called again whenever `version[0]` has changed."""
    global registry_find, registry_version
    registry_version = version
    registry_find = find


cdef bint has_reducer(object value) except -1:
    """Return whether a reducer is registered for the type of this value."""
    cls = type(value)
    if cls in copyreg_table:
        return True
    if registry_version is None:
        return False
    changes = registry_version[0]
    if unregistered.get(cls) == changes:
        return False
    if registry_find(cls) is not None:
        return True
    unregistered[cls] = changes
    return False


cdef object array_type = None


cdef ObjectRef put_memory(Store store, object value, int64_t deadline):
    """Put bytes, bytearray, array.array or memoryview with one copy and no pickling; return None for other values."""
    cdef Py_buffer view
    cdef bytes stream
    global array_type
    if PyBytes_CheckExact(value):
        return put_buffer(store, <const uint8_t *>PyBytes_AS_STRING(BYTES_STREAM), PyBytes_GET_SIZE(BYTES_STREAM),
                          PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), None, NULL, deadline)
    if PyByteArray_CheckExact(value):
        stream = BYTEARRAY_STREAM
    elif PyMemoryView_Check(value):
        if has_reducer(value):
            return None
        written = call_of_memoryview(MEMORYVIEW_STREAM, value)
        if written is None:
            return None
        stream, value = written
    elif prx_is_array(value):
        if array_type is None:
            from array import array as array_type
        if type(value) is not array_type or value.typecode in "uw" or has_reducer(value):
            return None
        stream = ARRAY_STREAM[:ARRAY_TYPECODE] + value.typecode.encode() + ARRAY_STREAM[ARRAY_TYPECODE + 1:]
    else:
        return None
    # The buffer stays exported during the copy, so its owner cannot resize it.
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
        n = 0 if has_reducer(value) else prp_ndarray().template_put(value, stream, &source)
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


cdef ObjectRef put_named(Store store, object value, object name, uint32_t flags, int64_t deadline):
    cdef bytes encoded = name_bytes(name)
    # Fail before copying the value if the name is taken; bind_encoded checks again.
    if not flags & PRS_NAME_REPLACE and find_encoded(store, encoded) is not None:
        # A killed process may be the only holder of an object with an ephemeral name.
        store.look()
        if find_encoded(store, encoded) is not None:
            name_taken(store, name)
    cdef ObjectRef ref = put_value(store, value, deadline)
    bind_encoded(ref, encoded, name, flags)
    return ref


@cython.binding(False)
def put(value, *, timeout=None, name=None, replace=False, ephemeral=False, explain=False):
    """
    Store a value and return a reference to it.

    Parameters
    ----------
    value : object
        Anything that can be pickled. Large buffers are copied once, into the store.
    timeout : float, optional
        How many seconds to wait for room while the store is full. None, the default, means not to wait.
    name : str, optional
        A name of 1 to 215 bytes of UTF-8, by which `get_by_name` finds the object in any process that uses this store.
        The object then exists until it is freed or the store ends.
    replace : bool, optional
        If true, and the name belongs to another object, this object takes its place in one step: a reader finds the old
        or the new object. The old object lives on as long as a process holds a reference or a view.
    ephemeral : bool, optional
        If true, the name does not keep the object alive: name and object end when no process holds a reference or a
        view any more, even if the processes were killed.
    explain : bool, optional
        Also return how each part was stored. This visits the value a second time.

    Returns
    -------
    ObjectRef
        With `explain`, a tuple ``(ref, explanation)``. The `pyray_ser.inspection.Explanation` prints as a tree. It
        lists by path how many bytes readers use in place (zero-copy), how many they copy, how many stay in the stream
        (in-band), and how many were already in the store and are stored as references.

    Raises
    ------
    SerializationError
        If a part of the value cannot be pickled; the message contains its path. It is a `TypeError`.
    TypeError
        If `value` is an `ObjectRef`, or `name` is not a str.
    ValueError
        If `timeout` is negative, if `name` is not a valid name or starts with ``pyray_ser/``, or if `replace` or
        `ephemeral` is given without a name.
    ObjectStoreFullError
        If there is no room.
    StoreFullError
        If a table of the store is full, although there may be free memory.
    StoreBusyError
        If a process that is alive but stopped holds the store's lock.
    NameExistsError
        If the name is taken and `replace` is false; the new object is then discarded. The message says which process put
        the other object.

    Examples
    --------
    >>> ref = pyray_ser.put({"a": numpy.zeros(1000)})
    >>> pyray_ser.get(ref)["a"].flags.writeable
    False
    """
    cdef int64_t deadline = 0
    cdef Store store = default_store
    if timeout is not None:
        deadline = deadline_of(timeout)
    if store is None:
        store = default_or_open()
    cdef ObjectRef ref
    cdef uint32_t flags = (PRS_NAME_REPLACE if replace else 0) | (PRS_NAME_EPHEMERAL if ephemeral else 0)
    if name is not None:
        usable_name(name)
    elif flags:
        raise ValueError("replace=True and ephemeral=True are about a name: give one")
    if explain:
        ref = put_value(store, value, deadline) if name is None else put_named(store, value, name, flags, deadline)
        return ref, explanation_of_put(value, store)
    if name is not None:
        return put_named(store, value, name, flags, deadline)
    return put_value(store, value, deadline)


def put_reserved(value, name, *, ephemeral=False):
    """Store a value in the default store under a name of this package."""
    cdef Store store = default_store
    if store is None:
        store = default_or_open()
    return put_named(store, value, name, PRS_NAME_EPHEMERAL if ephemeral else 0, 0)
