# Where the bytes of an object go. One function decides it, before anything is written.
#
# The parts of a layout ascend and do not overlap. Writers walk through them from the first byte to the last and pad as they go, so
# padding never covers what another part fills.

cdef struct Range:
    const uint8_t *start
    const uint8_t *stop
    Py_ssize_t index


# Buffers that overlap in memory: stored once, as they lie.
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
    Decide where each buffer goes.

    Buffers that overlap in memory, such as several views of one array, become one part, as they lie there. Buffers that
    lie in an object of `store` (None: look for none) are referred to. `free_layout` frees what this allocates.
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
        # ranges[i:j] overlap, one after the other; `stop` is where they end.
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
    # In the order of the stream, whatever that of the addresses: readers load in that order.
    for i in range(n):
        at = &places[i]
        span = gathered.buffer(i)
        if span.size == 0 or at.foreign:
            continue
        if span.data is NULL:  # gathered from a strided array: it lies nowhere in one piece
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
