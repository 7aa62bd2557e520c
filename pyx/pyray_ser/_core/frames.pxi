# uses: prelude, policy, store, views, pickling, forms, write, read
#
# Functions that create the stored form outside of a store: in one piece (`serialize`), or as frames for sockets and
# files.
#
# They write the same bytes as `put`, except that no buffer refers to another object, so any process can read the
# result.

def pack(value):
    """
    Return the stored form of a value as one bytes object.

    Parameters
    ----------
    value : object

    Returns
    -------
    bytes
    """
    return pack_gathered(gather(value, 0))


def pack_or_put(value, uint64_t limit):
    """
    Return the stored form of a small value; put a large value into the default store and return its reference.

    Parameters
    ----------
    value : object
    limit : int
        The maximum size of stream and buffers of a small value. A value that contains references is always put, so that
        the new object holds their objects.

    Returns
    -------
    bytes or ObjectRef
    """
    cdef Store store = default_or_open()
    cdef Gathered gathered = gather_or_explain(value, store.id)
    cdef uint64_t total = gathered.stream_size
    cdef Py_ssize_t i
    if not gathered.edges:
        for i in range(gathered.nbuffers):
            total += gathered.buffer(i).size
        if total <= limit:
            return pack_gathered(gathered)
    return put_gathered(store, gathered, 0)


cdef bytes pack_gathered(Gathered gathered):
    # Padding is zero, so that equal values have equal bytes.
    cdef Layout layout
    cdef Writer writer
    cdef bytes out
    layout.memory = NULL
    try:
        lay_out(&layout, gathered, None)
        if layout.total > <uint64_t>PY_SSIZE_T_MAX:
            raise OverflowError("the value is too large for a bytes object")
        out = PyBytes_FromStringAndSize(NULL, layout.total)
        writer_open_memory(&writer, <uint8_t *>PyBytes_AS_STRING(out))
        write_form(&writer, None, gathered, &layout)
        if writer.at != layout.total:
            raise SystemError("a value was not written to its last byte")
    finally:
        free_layout(&layout)
    return out


def pickled(value):
    """Return the stream of a value that has no buffers, without header and table."""
    cdef Gathered gathered = gather(value, 0)
    cdef Span span
    cdef Py_ssize_t i
    out = b""
    for i in range(gathered.nstream):
        span = gathered.stream(i)
        out += PyBytes_FromStringAndSize(<const char *>span.data, span.size)
    return out


def unpack(blob, allow=None):
    """
    Return the value that `pack` packed; arrays use the memory of `blob` and are read-only.

    Parameters
    ----------
    blob : bytes-like
    allow : collection of str or callable, optional
        As for `get`.

    Returns
    -------
    object

    Raises
    ------
    CorruptObjectError
        If `blob` is not a result of `pack`.
    UnpicklingError
        If the value needs a global that `allow` rejects.
    """
    cdef Export owner = Export.__new__(Export, blob)
    cdef const uint8_t *data = <const uint8_t *>owner.view.buf
    return decode_allowed(owner, data, data, owner.view.len, False, None, None, allow)


def unpack_private(blob):
    """Return the value that `pack` packed, using a copy of `blob`; arrays are writable."""
    cdef Export owner = Export.__new__(Export, bytearray(blob))
    return decode(owner, <const uint8_t *>owner.view.buf, <const uint8_t *>owner.view.buf, owner.view.len, True, None, None)


def pack_frames(value):
    """
    Return the stored form of a value as a list of memoryviews, without copying its buffers.

    Parameters
    ----------
    value : object

    Returns
    -------
    list of memoryview
        One frame with header and table, one with the stream, then one per buffer. The buffers belong to the value, so
        do not change it before they are sent. Until then the owner of a buffer cannot be resized, except an array with
        ``refcheck=False``.
    """
    cdef Gathered gathered = gather(value, 0)
    cdef Py_ssize_t n = gathered.nbuffers, i
    cdef uint64_t end = sizeof(prs_header) + n * sizeof(prs_buffer_entry)
    cdef uint64_t off
    cdef bytes head = PyBytes_FromStringAndSize(NULL, end)
    cdef bytes stream = PyBytes_FromStringAndSize(NULL, gathered.stream_size)
    cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(stream)
    cdef Span span
    for i in range(gathered.nstream):
        span = gathered.stream(i)
        memcpy(dst, span.data, span.size)
        dst += span.size
    dst = <uint8_t *>PyBytes_AS_STRING(head)
    frames = [memoryview(head), memoryview(stream)]
    end += gathered.stream_size
    for i in range(n):
        span = gathered.buffer(i)
        place(&end, span.size, &off)
        prs_format_write_entry(dst, i, off, span.size, NULL)
        if span.data is NULL:
            copy = PyBytes_FromStringAndSize(NULL, span.size)
            gathered.write(i, PyBytes_AS_STRING(copy))
            frames.append(memoryview(copy))
        else:
            frames.append(memoryview(block(gathered, <const uint8_t *>span.data, span.size, True)))
    prs_format_write_header(dst, end, gathered.stream_size, n)
    gathered.check()
    return frames


def unpack_frames(frames, allow=None):
    """
    Return the value that `pack_frames` packed; arrays use the memory of the frames and are read-only.

    Parameters
    ----------
    frames : sequence of bytes-like
    allow : collection of str or callable, optional
        As for `get`.

    Returns
    -------
    object

    Raises
    ------
    CorruptObjectError
        If `frames` is not a result of `pack_frames`.
    UnpicklingError
        If the value needs a global that `allow` rejects.
    """
    cdef prs_header header
    cdef prs_buffer_entry entry
    cdef Export piece
    cdef list held = [Export.__new__(Export, frame) for frame in frames]
    cdef Span *buffers
    cdef Py_ssize_t i
    if len(held) < 2:
        corrupt(b"there are fewer than two frames", None)
    piece = <Export>held[0]
    check_header(piece.view.buf, piece.view.len, 0, &header, None)
    if piece.view.len != <Py_ssize_t>(sizeof(prs_header) + header.nbuffers * sizeof(prs_buffer_entry)):
        corrupt(b"the first frame is not header and table", None)
    if len(held) != <Py_ssize_t>header.nbuffers + 2:
        corrupt(b"the number of frames is not the one the header tells", None)
    if header.stream_len != <uint64_t>(<Export>held[1]).view.len:
        corrupt(b"the second frame has not the length of the stream", None)
    buffers = <Span *>PyMem_Malloc((header.nbuffers + 1) * sizeof(Span))
    if buffers is NULL:
        raise MemoryError()
    try:
        for i in range(<Py_ssize_t>header.nbuffers):
            check_entry(&header, <const uint8_t *>(<Export>held[0]).view.buf + sizeof(prs_header), i, &entry, None)
            piece = <Export>held[i + 2]
            if entry.slot != PRS_NO_SLOT:
                corrupt(b"it refers to a store, but is outside of one", None)
            if entry.len != <uint64_t>piece.view.len:
                corrupt(b"a frame has not the length that the table tells", None)
            buffers[i].data = piece.view.buf
            buffers[i].size = piece.view.len
        piece = <Export>held[1]
        return load(<const uint8_t *>piece.view.buf, piece.view.len, buffers, header.nbuffers, Frames(held), allow, False)
    finally:
        PyMem_Free(buffers)


@cython.final
@cython.no_gc
cdef class Frames:
    """The owner of the frames of a loaded value. It exports no buffer, so no array over them can be made writable."""

    cdef list held

    def __cinit__(self, list held):
        self.held = held
