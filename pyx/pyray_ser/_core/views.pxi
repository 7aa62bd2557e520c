# uses: prelude, policy
#
# What keeps bytes in place: a pin on a stored object, private memory over one, somebody's buffer; and buffers over them.

@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Bytes that another object keeps alive, as a buffer."""

    # `size` bytes at `data`, which stay where they are as long as `owner` lives.
    cdef object owner
    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, self.readonly, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<{self.size} {'read-only' if self.readonly else 'writable'} bytes of {self.owner!r}>"


# A buffer of no bytes still needs an address: numpy takes NULL for "allocate".
cdef const uint8_t nothing = 0


cdef Block block(object owner, const uint8_t *data, Py_ssize_t size, bint readonly):
    cdef Block made = Block.__new__(Block)
    made.owner = owner
    made.data = data if data is not NULL else &nothing
    made.size = size
    made.readonly = readonly
    return made


@cython.final
@cython.no_gc
cdef class Export:
    """Somebody's contiguous buffer, held open as long as this object lives; read-only, whatever it was."""

    # Somebody's buffer, held open.
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, exporter):
        self.held = False
        PyObject_GetBuffer(exporter, &self.view, PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.view.buf, self.view.len, True, flags)

    def __len__(self):
        return self.view.len


# Pins come and go with every array. The destructor that Cython makes saves and restores the exception under way, which the
# engine never touches; so there is one of our own (`drop_pin`), and a list of dead pins for it.
cdef enum:
    SPARE_PINS = 256

cdef PyObject *spare_pins[SPARE_PINS]
cdef int spare_count = 0


cdef void drop_pin(PyObject *dead) noexcept:
    global spare_count
    if (<Pin>dead).handle is not NULL:
        prs_unpin((<Pin>dead).handle, &(<Pin>dead).id)
    if spare_count < SPARE_PINS:
        spare_pins[spare_count] = dead
        spare_count += 1
    else:
        prx_free(dead)


cdef inline Pin new_pin():
    """A pin of nothing yet: no handle."""
    global spare_count
    cdef Pin pin
    if spare_count == 0:
        return Pin.__new__(Pin)
    spare_count -= 1
    pin = <Pin>prx_reborn(spare_pins[spare_count])
    pin.handle = NULL
    pin.twin = NULL
    return pin


@cython.final
cdef class Pin:
    """The bytes of one stored object, read-only, as long as this lives. The base of arrays that `get` returns."""

    # The bytes of one sealed object, in the read-only mapping. `twin` (borrowed, NULL: none): the Private made by twin_of.
    cdef prs_store *handle
    cdef prs_oid id
    cdef prs_view view
    cdef void *twin

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.view.data, self.view.size, True, flags)

    def __len__(self):
        return self.view.size

    def __repr__(self):
        return f"<view of stored object {self.id.serial}, {self.view.size} bytes>"


prx_set_dealloc(Pin, drop_pin)


@cython.final
@cython.no_gc
cdef class Private:
    """Writable bytes that only this process sees: what mode "c" gives."""

    # Writable memory of our own: a copy, or a copy-on-write mapping that still needs its pin. `origin`: whose twin it is.
    cdef void *memory
    cdef size_t length
    cdef Pin pin
    cdef Pin origin
    cdef uint8_t *data
    cdef uint64_t size

    def __dealloc__(self):
        if self.origin is not None:
            self.origin.twin = NULL
        if self.pin is not None:
            prs_cow_close(self.memory, self.length)
        else:
            c_free(self.memory)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, False, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<private copy of {self.size} bytes>"


cdef Private privately(Pin pin, ObjectRef ref):
    cdef Private made = Private.__new__(Private)
    cdef prs_error error
    cdef int status
    cdef void *memory
    cdef size_t length
    cdef uint8_t *data
    made.size = pin.view.size
    if made.size < COW_FROM:
        made.memory = prx_aligned(made.size)
        if made.memory is NULL:
            raise MemoryError()
        memcpy(made.memory, pin.view.data, made.size)
        made.data = <uint8_t *>made.memory
        return made
    error.code = 0
    status = prs_cow_open(pin.handle, &pin.id, &pin.view, &memory, &length, &data, &error)
    if status != PRS_OK:
        fail(status, &error, None, ref)
    made.memory = memory
    made.length = length
    made.data = data
    made.pin = pin
    return made


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
