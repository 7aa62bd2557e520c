# ObjectRef: one reference of this process to one object.

cdef object oid_bytes(const prs_oid *id):
    return PyBytes_FromStringAndSize(<const char *>id, sizeof(prs_oid))


cdef inline ObjectRef new_ref(Store store, prs_store *handle, const prs_oid *id):
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.id = id[0]
    ref.handle = handle
    ref.store = store
    return ref


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class ObjectRef:
    """
    A reference to an object in a store.

    Made by `put` and `seal`. The object lives while any process holds a reference or a view. A reference can be sent to
    another process in any way that pickles it; it is awaitable, hashable and ordered (by store, then by age).
    """

    def __init__(self):
        raise TypeError("references are made by put() and seal(); ObjectRef.from_hex() reads one written down")

    def __dealloc__(self):
        # A handle that was closed, or that a fork orphaned and another replaced, has given its references back already.
        if self.handle is not NULL and self.handle == self.store.handle:
            prs_unref(self.handle, &self.id)

    def __hash__(self):
        return <Py_hash_t>(((self.id.serial * <uint64_t>0x9E3779B97F4A7C15) ^ self.id.store) >> 1)

    def __richcmp__(self, other, int op):
        if type(other) is not ObjectRef:
            return NotImplemented
        cdef ObjectRef that = <ObjectRef>other
        cdef int order
        if self.id.store != that.id.store:
            order = -1 if self.id.store < that.id.store else 1
        elif self.id.serial != that.id.serial:
            order = -1 if self.id.serial < that.id.serial else 1
        else:
            order = 0
        if op == Py_EQ:
            return order == 0
        if op == Py_NE:
            return order != 0
        if op == Py_LT:
            return order < 0
        if op == Py_LE:
            return order <= 0
        if op == Py_GT:
            return order > 0
        return order >= 0

    @classmethod
    def __class_getitem__(cls, item):
        from types import GenericAlias

        return GenericAlias(cls, item)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def binary(self):
        """bytes : the 24 bytes that identify the object."""
        return oid_bytes(&self.id)

    def hex(self):
        """str : the same as 48 hexadecimal digits."""
        return oid_bytes(&self.id).hex()

    @staticmethod
    def from_binary(data):
        """
        The reference with the identity that `binary` gave.

        The store must be open in this process or findable through its parents, and the object alive.
        """
        cdef bytes identity = bytes(data)
        if len(identity) != sizeof(prs_oid):
            raise ValueError("an object reference is 24 bytes, or 48 hexadecimal digits")
        cdef ObjectRef ref = load_ref(identity)
        adopt(ref)
        return ref

    @staticmethod
    def from_hex(text):
        """The reference with the identity that `hex` gave; see `from_binary`."""
        return ObjectRef.from_binary(bytes.fromhex(text))

    @property
    def size(self):
        """int or None : bytes of the stored form, header included; None while it is being made."""
        cdef prs_view view
        adopt(self)
        cdef int status = prs_pin(self.handle, &self.id, &view)
        if status == PRS_E_AGAIN:
            return None
        if status == PRS_E_SPILLED:  # the size is known without reading it back
            return view.size
        if status != PRS_OK:
            fail(status, NULL, self.store, self)
        prs_unpin(self.handle, &self.id)
        return view.size

    @property
    def serial(self):
        """int : number of the object in its store; later objects have larger ones."""
        return self.id.serial

    @property
    def store_id(self):
        """int : identity of the store."""
        return self.id.store

    @property
    def state(self):
        """str : "sealed", "creating", "freed", "lost" or, after `shutdown`, "closed"."""
        cdef int status
        if self.store is None:
            return "lost"
        if self.store.handle is NULL:
            return "closed"
        status = prs_state(self.store.handle, &self.id)
        if status == PRS_OK:
            return "sealed"
        return "creating" if status == PRS_E_AGAIN else "freed" if status == PRS_E_FREED else "lost"

    def __repr__(self):
        from pyray_ser.store.references import text

        return text(self)

    def _repr_html_(self):
        from pyray_ser.store.references import html

        return html(self)

    def __await__(self):
        from pyray_ser.store.waiting import wait_async

        return wait_async(self).__await__()

    def future(self):
        """
        A future that gets the value.

        Returns
        -------
        concurrent.futures.Future
        """
        from pyray_ser.store.waiting import future

        return future(self)

    def __reduce_ex__(self, protocol):
        cdef Gathered gathering = current_gathering()
        if gathering is not None and gathering.store == self.id.store and self.handle is not NULL:
            gathering.edges.append(self)
            return loader(), (oid_bytes(&self.id),)
        from pyray_ser.store.references import reduce

        return reduce(self)

    def __reduce__(self):
        return self.__reduce_ex__(4)

    def to_message(self):
        """
        The reference as bytes for a message of your own, on a pipe, a socket or a queue between processes of this machine.

        What pickles a reference cannot know how often it will be loaded; who calls this says: once. The object is held until
        `from_message` has taken over in the receiver.

        Returns
        -------
        bytes
            At most 88.

        Examples
        --------
        >>> pipe.send_bytes(ref.to_message())
        >>> array = pyray_ser.get(ObjectRef.from_message(pipe.recv_bytes()))
        """
        return once(self)

    @staticmethod
    def from_message(data):
        """
        The reference that `to_message` wrote.

        Parameters
        ----------
        data : bytes-like

        Returns
        -------
        ObjectRef
            Also if the object is gone: `get` says what became of it.

        Raises
        ------
        CorruptObjectError
            If these bytes are no reference.
        """
        return load_ref(data if PyBytes_CheckExact(data) else bytes(data))

    def travel(self, int kind, bytes node, uint32_t note=0):
        """
        What goes into a message: identity, locator and a token of `kind` (1: loaded once, 2: any number of times).

        `note` is for whoever finds the token in `Store.flights` after this process has died.

        Returns
        -------
        tuple of (bytes, tuple)
            The bytes for `load_ref`, and the token for `drop_token`.
        """
        cdef prs_token token
        return message_of(self, kind, node, &token, note), (token.index, token.serial)

    def drop_token(self, tuple token):
        """End a token that `travel` took; may be repeated."""
        if self.store is not None:
            drop_token(self.store, oid_bytes(&self.id), token)
