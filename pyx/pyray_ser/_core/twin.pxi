# Stored buffers for libraries that know no read-only memory: the same bytes, copy-on-write.
#
# One private mapping serves all buffers that one `get` took from an object, however many; it lives as long as any of them.

cdef Private twin_of(Pin pin):
    """The private memory that belongs to this pin; made when it is first asked for."""
    cdef Private made
    if pin.twin is not NULL:
        return <Private>pin.twin
    made = privately(pin, None)
    made.origin = pin
    pin.twin = <void *>made
    return made


cdef inline bint lies_in(object owner, const uint8_t *data, uint64_t size) noexcept:
    cdef Pin pin
    if type(owner) is not Pin:
        return False
    pin = <Pin>owner
    return (pin.view.data <= data and size <= pin.view.size
            and <uint64_t>(data - pin.view.data) <= pin.view.size - size)


def writable_twin(buffer):
    """
    The same bytes, writable, and private to this process.

    Parameters
    ----------
    buffer : StoredBuffer
        What a function named by a stream gets for an out-of-band buffer.

    Returns
    -------
    buffer or None
        Over a copy-on-write mapping of the stored object (of a small one: a copy), which all buffers of one `get` share:
        what was one memory stays one. None if the bytes are not an object's.
    """
    cdef Py_buffer view
    cdef const uint8_t *data
    cdef uint64_t size
    cdef Pin pin = None
    cdef Private twin
    cdef object owner = getattr(buffer, "owner", None)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    data = <const uint8_t *>view.buf
    size = view.len
    PyBuffer_Release(&view)
    if lies_in(owner, data, size):
        pin = <Pin>owner
    elif type(owner) is Owners:
        if lies_in((<Owners>owner).own, data, size):
            pin = <Pin>(<Owners>owner).own
        else:
            for other in (<Owners>owner).others.values():
                if lies_in(other, data, size):
                    pin = <Pin>other
                    break
    if pin is None:
        return None
    twin = twin_of(pin)
    return block(twin, twin.data + (data - pin.view.data), size, False)
