# uses: prelude, policy, store, refs
#
# Freeing objects, and waiting for them.

# Whether a reference was pickled so that a scope holds its object: only then has free() something to forget.
cdef bint scopes_hold = False


def scope_holds():
    """Say that a scope holds an object from now on."""
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
    End objects for everyone.

    Values that were taken stay valid, and their memory returns with the last of them; a later `get` raises
    `ObjectFreedError`. The object's name, if it has one, is free again. Freeing twice is harmless.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
        Or of references to the results of tasks: one that is not there yet is freed when it is.
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


def is_ready(ObjectRef ref not None):
    """Whether waiting for the object is over: it is sealed, or it is lost."""
    return ref.store is None or ref.store.handle is NULL or prs_state(ref.store.handle, &ref.id) != PRS_E_AGAIN


def scan(list refs):
    """list of int : indices of the references that `is_ready` is true for."""
    cdef ObjectRef ref
    cdef Py_ssize_t i = 0
    cdef list found = []
    for ref in refs:
        if ref.store is None or ref.store.handle is NULL or prs_state(ref.store.handle, &ref.id) != PRS_E_AGAIN:
            found.append(i)
        i += 1
    return found


def watch(list refs):
    """Tell the store that somebody waits for these; `epoch` changes when one of them gets ready."""
    cdef ObjectRef ref
    cdef prs_store *handle
    for ref in refs:
        handle = begin(ref.store) if ref.store is not None else NULL
        if handle is not NULL:
            with nogil:  # it cleans up after a dead creator
                prs_wait_any(handle, &ref.id)
            end(handle)


def epoch(Store store):
    """int : a counter that changes when an object somebody waits for gets ready."""
    return prs_epoch(store.handle) if store.handle is not NULL else 0


def wait_epoch(Store store, uint32_t seen, double timeout):
    """Sleep until `epoch` is not `seen`, at most `timeout` seconds and at most 0.1."""
    cdef int64_t left = <int64_t>(min(timeout, 1.0) * 1e9)
    cdef int status
    if store.handle is NULL:
        return
    cdef prs_store *handle = begin(store)
    with nogil:
        status = prs_wait_epoch(handle, seen, left)
        # Death of a creator is found by looking.
        if status != PRS_OK:
            prs_reap_dead(handle, 1000000000)
    end(handle)
