# uses: prelude, policy, views, forms, read, window
#
# Functions that transfer the stored form of objects to another store without unpickling: `export_stored`,
# `create_stored`.

def export_stored(ref, timeout=None):
    """
    Return the bytes of an object in a form that another store accepts.

    Parameters
    ----------
    ref : ObjectRef
    timeout : float, optional
        As for `get`.

    Returns
    -------
    list of memoryview
        Read-only views that, one after the other, are the stored form. They pin the bytes and copy nothing. They
        include buffers that lie in other objects.
    """
    if type(ref) is not ObjectRef:
        raise not_refs("export", ref)
    cdef int64_t deadline = deadline_of(timeout)
    ref = resolved(<ObjectRef>ref, deadline)
    cdef Pin pin = pin_by(<ObjectRef>ref, deadline, timeout)
    cdef const uint8_t *data = pin.view.data
    cdef prs_header header
    cdef prs_buffer_entry *entries
    cdef uint32_t i
    cdef bint whole = True
    check_header(data, pin.view.size, pin.view.size, &header, ref)
    entries = <prs_buffer_entry *>PyMem_Malloc(header.nbuffers * sizeof(prs_buffer_entry) + 1)
    if entries is NULL:
        raise MemoryError()
    try:
        for i in range(header.nbuffers):
            check_entry(&header, data + sizeof(prs_header), i, &entries[i], ref)
            whole = whole and entries[i].slot == PRS_NO_SLOT
        if whole:
            return [memoryview(pin)]
        return export_with_others(<ObjectRef>ref, pin, &header, entries)
    finally:
        PyMem_Free(entries)


cdef list export_with_others(ObjectRef ref, Pin pin, const prs_header *header, prs_buffer_entry *entries):
    """
    Append the buffers that are in other objects to the bytes of an object.

    Buffers that overlap stay one piece, and each piece keeps its alignment.
    """
    cdef uint64_t table_end = sizeof(prs_header) + header.nbuffers * sizeof(prs_buffer_entry)
    cdef bytes head = PyBytes_FromStringAndSize(NULL, table_end)
    cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(head)
    cdef uint64_t end = header.total, before, at, skip
    cdef const uint8_t *start = NULL
    cdef uint32_t i
    cdef dict owners = {}
    cdef list others = [], pieces = [], piece = None, views
    for i in range(header.nbuffers):
        prs_format_write_entry(dst, i, entries[i].off, entries[i].len, NULL)
        if entries[i].slot == PRS_NO_SLOT:
            continue
        owner = owners.get(entries[i].serial)
        if owner is None:
            owners[entries[i].serial] = named_object(ref.store, &entries[i], False, ref, &start)
        else:
            within(owner, &entries[i], ref)
        others.append((entries[i].serial, entries[i].off, entries[i].len, i))
    # Each piece is [serial, first byte, end, indices of its buffers].
    for serial, off, length, index in sorted(others):
        if piece is not None and piece[0] == serial and off < piece[2]:
            piece[2] = max(piece[2], off + length)
            piece[3].append(index)
        else:
            piece = [serial, off, off + length, [index]]
            pieces.append(piece)
    views = [memoryview(head), memoryview(block(pin, pin.view.data + table_end, header.total - table_end, True))]
    # Readers load the buffers in the order of the table.
    for _, (serial, first, stop, indices) in sorted([(min(piece[3]), piece) for piece in pieces]):
        before = end
        skip = first % PRS_BUFFER_ALIGN if stop > first else 0
        place(&end, stop - first + skip, &at)
        at += skip
        if at > before:
            views.append(memoryview(bytes(at - before)))
        if stop > first:
            views.append(memoryview(block(owners[serial], (<Pin>owners[serial]).view.data + <uint64_t>first, stop - first, True)))
        for index in indices:
            i = index
            prs_format_write_entry(dst, i, at + (entries[i].off - <uint64_t>first), entries[i].len, NULL)
    prs_format_write_header(dst, end, header.stream_len, header.nbuffers)
    return views


def create_stored(size, timeout=None):
    """
    Return a window for the `size` bytes of an exported object; `seal` checks them.

    Parameters
    ----------
    size : int
        Bytes in the views that `export_stored` returned.
    timeout : float, optional
        As for `put`.
    """
    size = PyNumber_Index(size)
    if size < <Py_ssize_t>sizeof(prs_header) or size >= 1 << 63:
        raise ValueError(f"the stored form of an object cannot have {size} bytes")
    return open_window(size, 0 if timeout is None else deadline_of(timeout), True)
