# Writing what a pickler gathered, from the first byte to the last.

# A sink that is filled in ascending order: memory at `dst`, or a draft. Small pieces for a draft are collected first, so that the
# engine is called once for many of them.
cdef enum:
    SCRATCH = 256 * 1024
    PIECE = 32 * 1024   # larger pieces go on their own


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
    """Pad up to offset `at`; return where `size` bytes go that the caller writes now, or NULL if they go to the draft alone."""
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
    """Write the whole form: header, table, stream, parts, and zeros between them."""
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
    cdef Gathered gathered
    try:
        gathered = gather(value, store.id)
    except Exception as error:
        from pyray_ser.pickling.serialization import unpicklable

        told = unpicklable(value, error)
        if told is error:
            raise
        raise told from error
    return put_gathered(store, gathered, deadline)


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
