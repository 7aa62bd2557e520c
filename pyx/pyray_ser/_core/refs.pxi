# uses: prelude, policy, store, pickling
#
# Defines ObjectRef, a reference of this process to an object, and the functions that send and receive references in
# messages.

cdef inline ObjectRef new_ref(Store store, prs_store *handle, const prs_oid *id):
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.id = id[0]
    ref.handle = handle
    ref.store = store
    return ref


@cython.final
@cython.no_gc
cdef class Foreign:
    """The message that a reference came in, for a reference whose store this process has not found.

    `known` belongs to `pyray_ser.store.foreign`, and all references of this process to the same object share it.
    """

    cdef bytes message
    cdef object known

    def __cinit__(self, bytes message not None, known):
        self.message = message
        self.known = known


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class ObjectRef:
    """
    A reference to an object in a store.

    `put` and `seal` return it. The object exists as long as any process holds a reference or a view. Any mechanism that
    uses pickle can send a reference to another process. References are awaitable, hashable and ordered (by store, then
    by age).

    Examples
    --------
    >>> ref = pyray_ser.put(numpy.zeros(1000))
    >>> ref.state, ref.size >= 8000
    ('sealed', True)
    >>> pyray_ser.ObjectRef.from_hex(ref.hex()) == ref
    True
    """

    # `handle` is the handle that holds our reference (NULL if the object is lost or not yet found). `lay` is the
    # address of the object's bytes at the last get (NULL: unknown), and is used only for prefetching. `origin` is set
    # if the store was not found when the reference arrived.
    cdef prs_oid id
    cdef prs_store *handle
    cdef Store store
    cdef const uint8_t *lay
    cdef Foreign origin
    cdef object __weakref__

    def __init__(self):
        raise TypeError("references are made by put() and seal(); ObjectRef.from_hex() reads one written down")

    def __dealloc__(self):
        # A handle that was closed or replaced after a fork has already released its references.
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
        """Return the 24 bytes that identify the object."""
        return oid_bytes(&self.id)

    def hex(self):
        """Return the result of `binary` as 48 hexadecimal digits."""
        return oid_bytes(&self.id).hex()

    @staticmethod
    def from_binary(data):
        """
        Return a reference to the object that `binary` identified.

        If this process finds the store, the object must exist. If not, the result is the reference that unpickling
        would return, and `get` raises the exception.

        Parameters
        ----------
        data : bytes-like
            24 bytes.

        Returns
        -------
        ObjectRef

        Raises
        ------
        ValueError
            If `data` has a different length.
        ObjectLostError, ObjectFreedError
            If the store is found, but the object is lost or was freed.
        """
        cdef bytes identity = bytes(data)
        if len(identity) != sizeof(prs_oid):
            raise ValueError("an object reference is 24 bytes, or 48 hexadecimal digits")
        cdef ObjectRef ref = load_ref(identity)
        if ref.store is not None:
            adopt(ref)
        return ref

    @staticmethod
    def from_hex(text):
        """Return a reference to the object that `hex` identified; see `from_binary`."""
        return ObjectRef.from_binary(bytes.fromhex(text))

    @property
    def size(self):
        """int or None : Size of the stored form in bytes, including the header; None until the object is sealed."""
        cdef prs_view view
        cdef ObjectRef copy
        if self.store is None:
            copy = copy_of_foreign(self)
            if copy is not None:
                return copy.size
        adopt(self)
        cdef int status = prs_pin(self.handle, &self.id, &view)
        if status == PRS_E_AGAIN:
            return None
        if status == PRS_E_SPILLED:  # the size is known without reading the object back
            return view.size
        if status != PRS_OK:
            fail(status, NULL, self.store, self)
        prs_unpin(self.handle, &self.id)
        return view.size

    @property
    def serial(self):
        """int : Serial number of the object in its store; later objects have larger serial numbers."""
        return self.id.serial

    @property
    def store_id(self):
        """int : Id of the store."""
        return self.id.store

    @property
    def state(self):
        """
        str : One of "sealed", "creating", "freed", "lost" and, after `shutdown`, "closed".

        "foreign" if the reference comes from another machine or container, and this process cannot find its store.
        """
        cdef int status
        if self.store is None:
            return state_of_foreign(self)
        if self.store.handle is NULL:
            return "closed"
        status = prs_state(self.store.handle, &self.id)
        if status == PRS_OK:
            return "sealed"
        return "creating" if status == PRS_E_AGAIN else "freed" if status == PRS_E_FREED else "lost"

    def __repr__(self):
        return text_of_ref(self)

    def _repr_html_(self):
        return html_of_ref(self)

    def __await__(self):
        return await_ref(self).__await__()

    def future(self):
        """
        Return a future for the value.

        Returns
        -------
        concurrent.futures.Future
        """
        return future_of_ref(self)

    def __reduce_ex__(self, protocol):
        cdef Gathered gathering = current_gathering()
        if gathering is not None and gathering.store == self.id.store and self.handle is not NULL:
            gathering.edges.append(self)
            return loader(), (oid_bytes(&self.id),)
        if self.store is None:  # this process has no hold to pass on, so forward the message that the reference came in
            return loader(), (message_it_came_in(self),)
        return reduce_ref(self)

    def __reduce__(self):
        return self.__reduce_ex__(4)

    def __dask_tokenize__(self):
        # Without this method, Dask pickles the reference, and a pickled reference holds the object until `free`.
        return "pyray_ser.ObjectRef", self.hex()

    def to_message(self):
        """
        Return the reference as bytes for one message to another process on this machine, over a pipe, socket or queue.

        Use this for a message that is loaded exactly once; pickle cannot know whether that is the case. The object is
        held until the receiver calls `from_message`.

        Returns
        -------
        bytes
            At most 88 bytes.

        Raises
        ------
        ObjectLostError, ObjectFreedError
            If the object is lost or was freed.
        StoreClosedError
            If the store was closed by `shutdown`.

        Examples
        --------
        >>> pipe.send_bytes(ref.to_message())
        >>> array = pyray_ser.get(ObjectRef.from_message(pipe.recv_bytes()))
        """
        return once(self)

    @staticmethod
    def from_message(data):
        """
        Return the reference that `to_message` wrote, and take over the message's hold on the object.

        Parameters
        ----------
        data : bytes-like

        Returns
        -------
        ObjectRef
            The reference, even if the object is lost or freed; `get` then raises an exception.

        Raises
        ------
        CorruptObjectError
            If `data` is not a reference.
        """
        return load_ref(data if PyBytes_CheckExact(data) else bytes(data))

    def travel(self, int kind, bytes node, uint32_t note=0):
        """
        Acquire a token of `kind` (1: loaded once, 2: any number of times), and write it together with the object's id
        and the sender's locator. If this process has not found the store, return the message that the reference came in.

        `Store.flights` shows `note`, even after this process has ended.

        Returns
        -------
        tuple of (bytes, tuple)
            The bytes for `load_ref`, and the token for `drop_token`.
        """
        cdef prs_token token
        return message_of(self, kind, node, &token, note), (token.index, token.serial)

    def drop_token(self, tuple token):
        """Release a token that `travel` acquired. Releasing it twice is harmless."""
        if self.store is not None:
            drop_token(self.store, oid_bytes(&self.id), token)


# The type of references to task results that are not in a store yet, and the function that gets the values of a list
# with such references. `pyray_ser.tasks` registers both on first use.
cdef object promise_type = None
cdef object promise_get = None


def set_promises(type promises, getter):
    """Make `get` accept instances of `promises`, alone or in lists, by calling ``getter(refs, timeout, mmap_mode)``."""
    global promise_type, promise_get
    promise_type = promises
    promise_get = getter


def is_promise(ref):
    """Return whether `ref` is a reference to the result of a task."""
    return promise_type is not None and isinstance(ref, promise_type)


cdef bint names_promise(object refs) except -1:
    if isinstance(refs, list):
        for ref in refs:
            if type(ref) is not ObjectRef and isinstance(ref, promise_type):
                return True
        return False
    return isinstance(refs, promise_type)


cdef int check_refs(str function, object refs) except -1:
    """Check the type of each reference; return how many of them are foreign (2 means two or more)."""
    cdef int foreign = 0
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"{function}() takes ObjectRefs, but the list holds {type(ref).__name__!r}: {ref!r:.80}")
        if foreign < 2 and (<ObjectRef>ref).store is None:
            foreign += 1
    return foreign


# References in messages: the sender acquires a token, and the receiver claims it.

# The form of a reference in a message. This form has all data that a receiver needs to find the store and claim the
# token. Little endian, without padding. The name of the node follows, with up to NODE_MAX bytes.
cdef struct Travel:
    prs_oid id
    uint64_t start_time     # start time of the sender; with pid and fd it forms the locator
    int32_t pid
    int32_t fd
    uint32_t kind           # 0, PRS_TOKEN_ONCE or PRS_TOKEN_STICKY
    uint32_t token_index
    uint64_t token_serial

cdef enum:
    NODE_MAX = 32


cdef int take_token(ObjectRef ref, int kind, uint32_t note, prs_token *token) except 1:
    """Return the engine's status. The engine acquires the store's lock, so this function releases the GIL."""
    cdef prs_store *handle
    cdef int status
    adopt(ref)
    handle = begin(ref.store)
    with nogil:
        status = prs_token_take_noted(handle, &ref.id, kind, note, token)
    end(handle)
    return status


cdef bytes message_of(ObjectRef ref, int kind, bytes node, prs_token *token, uint32_t note=0):
    """Return the bytes of a message; set `token` to the token that the message carries."""
    cdef Travel out
    cdef int status
    cdef size_t length = min(PyBytes_GET_SIZE(node), NODE_MAX)
    memset(token, 0, sizeof(prs_token))
    if ref.store is None:
        return message_it_came_in(ref)
    # Allocate this first, because no step may fail after the token is acquired.
    cdef bytes text = PyBytes_FromStringAndSize(NULL, sizeof(out) + length)
    memset(&out, 0, sizeof(out))
    out.id = ref.id
    if kind:
        status = take_token(ref, kind, note, token)
        if status == PRS_E_CLOSED:
            revive(ref.store)
            status = take_token(ref, kind, note, token)
        if status != PRS_OK:
            fail(status, NULL, ref.store, ref)
    if ref.store.handle is not NULL:
        prs_locator(ref.store.handle, &out.pid, &out.start_time, &out.fd)
    out.kind = kind
    out.token_index = token.index
    out.token_serial = token.serial
    memcpy(PyBytes_AS_STRING(text), &out, sizeof(out))
    memcpy(PyBytes_AS_STRING(text) + sizeof(out), PyBytes_AS_STRING(node), length)
    return text


cdef bytes once(ObjectRef ref):
    """Return bytes for one `load_ref`. A token holds the object until that call, but at most until the scope ends."""
    cdef prs_token token
    if ref.store is None:
        return message_it_came_in(ref)
    if scope_variable is None:
        find_scope_variable()
    if get_value(scope_variable) is None:
        return message_of(ref, PRS_TOKEN_ONCE, node_name, &token)
    return hold_in_scope(ref, PRS_TOKEN_ONCE)


@cython.binding(False)
def reduce_for_message(ObjectRef ref not None):
    """
    Reduce a reference for multiprocessing's own pickler: a token holds the object until the message is loaded.

    This function is compiled, because it runs once per message in a process that has just woken up. There, a line of
    Python takes several times as long as in a loop.
    """
    return loader(), (once(ref),)


# PROTO 4, 'pyray_ser', '_load_ref', STACK_GLOBAL, SHORT_BINBYTES; after the bytes: TUPLE1, REDUCE, STOP
cdef bytes MESSAGE_HEAD = b"\x80\x04\x8c\x09pyray_ser\x8c\x09_load_ref\x93C"


@cython.binding(False)
def pickle_for_message(ObjectRef ref not None):
    """Return the pickle of a reference that multiprocessing's own pickler would write, without using a pickler."""
    cdef bytes travel = once(ref)
    return b"%b%c%b\x85R." % (MESSAGE_HEAD, len(travel), travel)


def drop_token(Store store, bytes identity, tuple token):
    """Release a token, given the store, the object's `binary` and the token. Releasing it twice is harmless."""
    cdef prs_token t
    cdef prs_oid id
    t.index, t.serial = token
    t.unused = 0
    if len(identity) != sizeof(prs_oid):
        raise ValueError("an object reference is 24 bytes")
    memcpy(&id, PyBytes_AS_STRING(identity), sizeof(prs_oid))
    cdef prs_store *handle = begin(store)
    if handle is not NULL:
        with nogil:
            prs_token_drop(handle, &id, &t)
        end(handle)


cdef bytes message_it_came_in(ObjectRef ref):
    if ref.origin is None:  # this instance was created by __new__ alone
        corrupt(b"the reference was never loaded", None)
    return ref.origin.message


cdef int read_travel(bytes blob, Travel *out) except -1:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(blob)
    memset(out, 0, sizeof(Travel))
    if n == sizeof(prs_oid):
        memcpy(&out.id, PyBytes_AS_STRING(blob), sizeof(prs_oid))
        out.fd = -1
    elif <Py_ssize_t>sizeof(Travel) <= n <= <Py_ssize_t>sizeof(Travel) + NODE_MAX:
        memcpy(out, PyBytes_AS_STRING(blob), sizeof(Travel))
    else:
        corrupt(b"a pickled reference has the wrong length", None)
    return 0


cdef int hold_arrived(prs_store *handle, const prs_oid *id, const Travel *message) noexcept:
    """Acquire a reference, and end the token of the message; return the engine's status."""
    cdef prs_token token
    cdef int status
    if not message.token_index or message.kind != PRS_TOKEN_ONCE:
        return prs_ref(handle, id)
    token.index = message.token_index
    token.unused = 0
    token.serial = message.token_serial
    with nogil:
        status = prs_token_claim(handle, id, &token)
    return status


def load_ref(bytes blob not None):
    """
    Load a pickled reference and claim its token.

    This does not fail if the object is lost or freed, or if the store cannot be found: it returns the reference, and
    `get` raises an exception.
    """
    cdef Travel message
    read_travel(blob, &message)
    cdef Store store = stores.get(message.id.store)
    if store is None:
        store = find_arrived_store(&message.id, message.pid, message.start_time, message.fd, blob[sizeof(Travel):])
    cdef ObjectRef ref = new_ref(store, NULL, &message.id)
    if store is None:
        ref.origin = Foreign.__new__(Foreign, blob, known_foreign(oid_bytes(&ref.id)))
        return ref
    if store.handle is NULL:
        return ref
    if prs_is_orphan(store.handle):
        revive(store)
        if store.handle is NULL:  # the store was closed meanwhile
            return ref
    cdef prs_store *handle = begin(store)
    cdef int status = hold_arrived(handle, &ref.id, &message)
    end(handle)
    if status == PRS_OK:
        ref.handle = handle
    return ref


def is_foreign(ObjectRef ref not None):
    """Return whether this process has not found the store of a reference."""
    return ref.store is None


def foreign_parts(ObjectRef ref not None):
    """Return the message that a foreign reference came in, and what this process knows about its object."""
    return message_it_came_in(ref), ref.origin.known


def find_foreign(ObjectRef ref not None):
    """Search for the store of a foreign reference again; return whether this process has it open now."""
    cdef Travel message
    cdef Store store
    cdef prs_store *handle
    if ref.store is not None:
        return True
    read_travel(message_it_came_in(ref), &message)
    store = find_store(&ref.id, message.pid, message.start_time, message.fd)
    if store is None:
        return False
    if ref.store is None:  # another thread may have set it meanwhile
        ref.store = store
        handle = begin(store)
        if handle is not NULL and hold_arrived(handle, &ref.id, &message) == PRS_OK:
            if ref.handle is NULL:
                ref.handle = handle
            else:
                prs_unref(handle, &ref.id)
        end(handle)
    return True


cdef int adopt(ObjectRef ref) except -1:
    """Ensure that this process holds the object through the store's current handle."""
    cdef int status
    if ref.handle is not NULL and ref.handle == ref.store.handle:
        return 0
    if ref.store is None and not find_foreign(ref):
        raise unreachable_store(ref)
    ref.store.check_open()
    status = prs_ref(ref.store.handle, &ref.id)
    if status == PRS_E_CLOSED:
        revive(ref.store)
        ref.store.check_open()
        status = prs_ref(ref.store.handle, &ref.id)
    if status != PRS_OK:
        # prs_ref cannot always distinguish a freed object from a lost one, but the slot may still contain this
        # information.
        if prs_state(ref.store.handle, &ref.id) == PRS_E_FREED:
            status = PRS_E_FREED
        fail(status, NULL, ref.store, ref)
    ref.handle = ref.store.handle
    return 0
