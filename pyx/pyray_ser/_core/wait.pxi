# uses: prelude, policy, store, refs
#
# Functions that free objects and wait for them.

# True once any scope has held an object; until then, free() need not release objects from scopes.
cdef bint scopes_hold = False


def scope_holds():
    """Record that a scope holds an object, so that `free` releases it from the scope."""
    global scopes_hold
    scopes_hold = True


cdef int free_one(ObjectRef ref) except -1:
    cdef prs_error error
    cdef int status
    cdef Store store = ref.store
    if store is None:
        return 0
    store.check_open()
    error.code = 0
    status = prs_free(store.handle, &ref.id, &error)
    if status == PRS_E_CLOSED:
        revive(store)
        store.check_open()
        status = prs_free(store.handle, &ref.id, &error)
    if status not in (PRS_OK, PRS_E_LOST, PRS_E_FREED):
        fail(status, &error, store, ref)
    if scopes_hold:
        release_from_scopes(oid_bytes(&ref.id))
    return 0


@cython.binding(False)
def free(refs):
    """
    Free objects in all processes.

    Values that `get` returned stay valid, and the memory is released when the last of them is released. A later `get`
    raises `ObjectFreedError`. The name of the object, if any, can be used again. Freeing twice is harmless.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
        References to task results are also accepted: a result that is not ready yet is freed as soon as it is.

    Raises
    ------
    TypeError
        If `refs` is neither a reference nor a list of references.
    StoreClosedError
        If the store was closed by `shutdown`.

    Examples
    --------
    >>> ref = pyray_ser.put("text")
    >>> pyray_ser.free(ref)
    >>> ref.state
    'freed'
    """
    if type(refs) is ObjectRef:
        free_one(<ObjectRef>refs)
        return
    if promise_type is not None and names_promise(refs):
        for ref in (tuple(refs) if isinstance(refs, list) else (refs,)):
            if not is_promise(ref):
                check_refs("free", (ref,))
                free_one(<ObjectRef>ref)
            else:
                ref.free()
        return
    if not isinstance(refs, list):
        raise not_refs("free", refs)
    check_refs("free", refs)
    for ref in tuple(refs):
        free_one(<ObjectRef>ref)


cdef inline bint ready_now(ObjectRef ref) except -1:
    if ref.store is None:
        return is_foreign_ready(ref)
    return ref.store.handle is NULL or prs_state(ref.store.handle, &ref.id) != PRS_E_AGAIN


def is_ready(ObjectRef ref not None):
    """Return whether a wait for the object would end, because it is sealed, freed or lost."""
    return ready_now(ref)


def scan(list refs):
    """Return the indices of the references for which `is_ready` is true."""
    cdef ObjectRef ref
    cdef Py_ssize_t i = 0
    cdef list found = []
    for ref in refs:
        if ready_now(ref):
            found.append(i)
        i += 1
    return found


def watch(list refs):
    """Register a wait for these objects, so that `epoch` changes when one of them is ready."""
    cdef ObjectRef ref
    cdef prs_store *handle
    for ref in refs:
        handle = begin(ref.store) if ref.store is not None else NULL
        if handle is not NULL:
            with nogil:  # this call may clean up after a dead creator
                prs_wait_any(handle, &ref.id)
            end(handle)


def epoch(Store store):
    """Return a counter that changes when an object that is waited for is ready."""
    return prs_epoch(store.handle) if store.handle is not NULL else 0


def wait_epoch(Store store, uint32_t seen, double timeout):
    """Sleep until `epoch` differs from `seen`, but for at most `timeout` seconds and at most 0.1 seconds."""
    cdef int64_t left = <int64_t>(min(timeout, 1.0) * 1e9)
    cdef int status
    if store.handle is NULL:
        return
    cdef prs_store *handle = begin(store)
    with nogil:
        status = prs_wait_epoch(handle, seen, left)
        # A dead creator does not change the counter, so reap it here.
        if status != PRS_OK:
            prs_reap_dead(handle, 1000000000)
    end(handle)
