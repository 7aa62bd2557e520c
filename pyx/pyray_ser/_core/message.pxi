# How a reference travels in a message: locator and token out, claim and adoption in.

# How a reference travels: everything a receiver needs to find the store and take over. Little endian and without padding.
# Behind it come up to NODE_MAX bytes: the name of the node.
cdef struct Travel:
    prs_oid id
    uint64_t start_time     # of the sender; with pid and fd its locator
    int32_t pid
    int32_t fd
    uint32_t kind           # 0, PRS_TOKEN_ONCE or PRS_TOKEN_STICKY
    uint32_t token_index
    uint64_t token_serial

cdef enum:
    NODE_MAX = 32


cdef int take_token(ObjectRef ref, int kind, uint32_t note, prs_token *token) except 1:
    """The engine's status. It takes the store's lock, so the GIL is released."""
    cdef prs_store *handle
    cdef int status
    adopt(ref)
    handle = begin(ref.store)
    with nogil:
        status = prs_token_take_noted(handle, &ref.id, kind, note, token)
    end(handle)
    return status


cdef bytes message_of(ObjectRef ref, int kind, bytes node, prs_token *token, uint32_t note=0):
    """What `travel` returns first; `token` gets what it took."""
    cdef Travel out
    cdef int status
    cdef size_t length = min(PyBytes_GET_SIZE(node), NODE_MAX)
    # Made first: once there is a token, nothing may fail.
    cdef bytes text = PyBytes_FromStringAndSize(NULL, sizeof(out) + length)
    memset(&out, 0, sizeof(out))
    memset(token, 0, sizeof(prs_token))
    out.id = ref.id
    if kind:
        status = take_token(ref, kind, note, token)
        if status == PRS_E_CLOSED:
            revive(ref.store)
            status = take_token(ref, kind, note, token)
        if status != PRS_OK:
            fail(status, NULL, ref.store, ref)
    if ref.store is not None and ref.store.handle is not NULL:
        prs_locator(ref.store.handle, &out.pid, &out.start_time, &out.fd)
    out.kind = kind
    out.token_index = token.index
    out.token_serial = token.serial
    memcpy(PyBytes_AS_STRING(text), &out, sizeof(out))
    memcpy(PyBytes_AS_STRING(text) + sizeof(out), PyBytes_AS_STRING(node), length)
    return text


# The context variable of `pyray_ser.scope` and the name of this node, once a reference was sent.
cdef object scope_variable = None
cdef bytes node_name = None
# `pyray_ser._load_ref`: what pickled references call.
cdef object ref_loader = None


cdef object loader():
    global ref_loader
    if ref_loader is None:
        from pyray_ser import _load_ref

        ref_loader = _load_ref
    return ref_loader


cdef bytes once(ObjectRef ref):
    """What `load_ref` takes, to be loaded once: a token holds the object until then, or to the end of the scope."""
    global scope_variable, node_name
    cdef prs_token token
    if scope_variable is None:
        from pyray_ser.store.scopes import _current
        from pyray_ser.store.discovery import node_name as name

        node_name = name()
        scope_variable = _current
    if get_value(scope_variable) is None:
        return message_of(ref, PRS_TOKEN_ONCE, node_name, &token)
    from pyray_ser.store.scopes import hold

    return hold(ref, PRS_TOKEN_ONCE, node_name)


@cython.binding(False)
def reduce_for_message(ObjectRef ref not None):
    """
    Reduce a reference for multiprocessing's own pickler: a token holds the object until the message is loaded.

    Compiled, because it runs once per message between two processes that have just woken up, where every line of Python
    costs several times what it costs in a loop.
    """
    return loader(), (once(ref),)


# PROTO 4, 'pyray_ser', '_load_ref', STACK_GLOBAL, SHORT_BINBYTES; behind the bytes: TUPLE1, REDUCE, STOP
cdef bytes MESSAGE_HEAD = b"\x80\x04\x8c\x09pyray_ser\x8c\x09_load_ref\x93C"


@cython.binding(False)
def pickle_for_message(ObjectRef ref not None):
    """What multiprocessing's own pickler makes of a reference, without a pickler."""
    cdef bytes travel = once(ref)
    return b"%b%c%b\x85R." % (MESSAGE_HEAD, len(travel), travel)


def drop_token(Store store, bytes identity, tuple token):
    """End a token by the store, the object's `binary` and the token; may be repeated."""
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


def load_ref(bytes blob not None):
    """
    Take over a reference that was pickled.

    Never fails because of the object: a reference to what is gone loads, and `get` says what became of it.
    """
    cdef Travel message
    cdef prs_token token
    cdef int status
    read_travel(blob, &message)
    cdef Store store = stores.get(message.id.store)
    if store is None:
        from pyray_ser.store.discovery import find

        store = find(message.id.store, message.pid, message.start_time, message.fd)
    cdef ObjectRef ref = new_ref(store, NULL, &message.id)
    if store is None:
        ref.origin = blob
        return ref
    if store.handle is NULL:
        return ref
    if prs_is_orphan(store.handle):
        revive(store)
        if store.handle is NULL:  # closed meanwhile
            return ref
    cdef prs_store *handle = begin(store)
    if message.kind == PRS_TOKEN_ONCE and message.token_index:
        token.index = message.token_index
        token.unused = 0
        token.serial = message.token_serial
        with nogil:
            status = prs_token_claim(handle, &ref.id, &token)
    else:
        status = prs_ref(handle, &ref.id)
    end(handle)
    if status == PRS_OK:
        ref.handle = handle
    return ref


cdef int adopt(ObjectRef ref) except -1:
    """Make sure that this process holds the object through the store's present handle."""
    cdef Travel message
    cdef int status
    if ref.handle is not NULL and ref.handle == ref.store.handle:
        return 0
    if ref.store is None:
        from pyray_ser.store.discovery import find, unreachable

        read_travel(ref.origin, &message)
        store = find(ref.id.store, message.pid, message.start_time, message.fd)
        if store is None:
            raise unreachable(ref, ref.origin[sizeof(Travel):])
        ref.store = store
    ref.store.check_open()
    status = prs_ref(ref.store.handle, &ref.id)
    if status == PRS_E_CLOSED:
        revive(ref.store)
        ref.store.check_open()
        status = prs_ref(ref.store.handle, &ref.id)
    if status != PRS_OK:
        # prs_ref may not tell "freed" from "lost"; the slot may still know.
        if prs_state(ref.store.handle, &ref.id) == PRS_E_FREED:
            status = PRS_E_FREED
        fail(status, NULL, ref.store, ref)
    ref.handle = ref.store.handle
    return 0
