# Writing what a pickler gathered: where each buffer goes, and by which copy.

cdef struct Range:
    const uint8_t *start
    const uint8_t *stop
    Py_ssize_t index


# Buffers that overlap, one after the other: stored once, as they lie.
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


cdef uint64_t place_buffers(Gathered gathered, Place *places, Store store) except? 0:
    """
    Decide where each buffer goes; returns the size of the whole form.

    Buffers that overlap in memory, such as several views of one array, are placed once, as they lie there. Buffers that
    lie in an object of `store` (None: look for none) are referred to.
    """
    cdef Py_ssize_t n = gathered.nbuffers, i, j, count = 0
    cdef uint64_t end = sizeof(prs_header) + n * sizeof(prs_buffer_entry) + gathered.stream_size
    cdef uint64_t at
    cdef const uint8_t *stop
    cdef const uint8_t *covered
    cdef bint sorted_already = True
    cdef Span span
    cdef Range *ranges
    cdef Group *groups = NULL
    cdef Group *group
    cdef Py_ssize_t ngroups = 0
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
        groups = <Group *>PyMem_Malloc((count + 1) * sizeof(Group))
        if groups is NULL:
            raise MemoryError()
        i = 0
        while i < count:
            # ranges[i:j] overlap, one after the other; `stop` is where they end.
            stop = ranges[i].stop
            j = i + 1
            while j < count and ranges[j].start < stop:
                stop = max(stop, ranges[j].stop)
                j += 1
            groups[ngroups].start = covered = ranges[i].start
            groups[ngroups].size = stop - ranges[i].start
            groups[ngroups].placed = False
            while i < j:
                places[ranges[i].index].off = ngroups
                places[ranges[i].index].written = ranges[i].stop > covered
                covered = max(covered, ranges[i].stop)
                i += 1
            ngroups += 1
        # In the order of the stream, whatever that of the addresses: so they are written one after the other.
        for i in range(n):
            span = gathered.buffer(i)
            if span.size == 0 or span.data is NULL or places[i].foreign:
                continue
            group = &groups[places[i].off]
            if not group.placed:
                place(&end, group.size, &group.off)
                group.placed = True
            places[i].off = group.off + (<const uint8_t *>span.data - group.start)
    finally:
        PyMem_Free(groups)
        PyMem_Free(ranges)
    return end


# Collects small pieces, so that the engine is called once for many of them.
cdef struct Writer:
    prs_draft *draft
    uint8_t *scratch
    uint64_t at         # offset in the object of the first byte in scratch
    size_t fill
    uint64_t high       # nothing was written from here on, neither to scratch nor to the object

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
    # Padding may be written over what nobody has written yet, and over nothing else: buffers come in the order of the
    # stream, which need not be the order of their places.
    gap = at - w.high if at >= w.high == w.at + w.fill else SCRATCH
    w.high = max(w.high, at + size)
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

        told = unpicklable(value, error)
        if told is error:
            raise
        raise told from error
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
        writer.high = 0
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
            named = set()
            for i in range(n):
                if places[i].foreign and places[i].other.serial not in named:
                    named.add(places[i].other.serial)
                    add_edge(store, &draft, &places[i].other)
            for inner in gathered.edges:
                if inner.id.serial not in named:
                    named.add(inner.id.serial)
                    add_edge(store, &draft, &inner.id)
        allocated = False
        return seal_or_abort(store, &draft)
    finally:
        if allocated:
            store.abort(&draft, False)
        PyMem_Free(head)
        PyMem_Free(writer.scratch)
        if places != few:
            PyMem_Free(places)
