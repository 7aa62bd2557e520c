# uses: prelude, policy
#
# Defines objects that keep bytes in place (pins on stored objects, private copies, foreign buffers), and buffers over
# these bytes.

@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """A buffer over bytes that another object keeps alive."""

    # The `size` bytes at `data` stay in place as long as `owner` is alive.
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


# Even an empty buffer needs an address, because numpy allocates memory if the address is NULL.
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
    """A contiguous buffer of another object, exported as long as this object is alive; always read-only."""

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


# Every array creates and releases a pin. Cython's destructor saves and restores the current exception, although the
# engine never changes it. `drop_pin` replaces this destructor, and keeps freed pins in a free list.
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
    """Return a pin without a handle, which pins nothing yet."""
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
    """The bytes of one sealed object, read-only and pinned; the base of arrays that `get` returns."""

    # `view` is in the read-only mapping. `twin` (borrowed; NULL if none) is the Private that twin_of created.
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
    """Writable bytes that are private to this process, for mode "c"."""

    # `memory` is a copy, or a copy-on-write mapping that still needs its pin. `origin` is the pin whose twin this is.
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
    """Owns all objects that contain buffers of a value, if there are several.

    It exports no buffer, so no array over it can be made writable.
    """

    cdef object own
    cdef dict others

    def __cinit__(self, own, dict others):
        self.own = own
        self.others = others

    def __repr__(self):
        return f"<{self.own!r} and {len(self.others)} objects that it refers to>"


# Copy-on-write views of stored buffers, for libraries that do not support read-only memory.
#
# All buffers that one `get` returned for an object share one private mapping, which exists as long as any of these
# buffers.

cdef Private twin_of(Pin pin):
    """Return the private memory that belongs to this pin; the first call creates it."""
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
    Return a buffer with the same bytes, writable and private to this process.

    Parameters
    ----------
    buffer : StoredBuffer
        The out-of-band buffer that a function in a stream receives.

    Returns
    -------
    buffer or None
        A buffer in a copy-on-write mapping of the stored object (in a copy, if the object is small). All buffers of one
        `get` share this mapping, so buffers that overlapped still overlap. None if the bytes are not in an object.
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
