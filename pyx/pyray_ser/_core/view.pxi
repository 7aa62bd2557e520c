# What keeps the bytes of an object in place: a pin, or private memory over one.

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
