# uses: prelude, policy, store, refs
#
# Functions that bind names to objects and find objects by name.

cdef bytes name_bytes(object name):
    if not isinstance(name, str):
        raise TypeError(f"the name of an object is a str, not {type(name).__name__!r}")
    # A name with lone surrogates raises UnicodeEncodeError, which is a ValueError.
    cdef bytes encoded = (<str>name).encode()
    if not 0 < PyBytes_GET_SIZE(encoded) <= PRS_NAME_MAX:
        raise ValueError(f"the name of an object has 1 to {PRS_NAME_MAX} bytes of UTF-8, not {len(encoded)}")
    if b"\0" in encoded:
        raise ValueError("the name of an object cannot hold a null character")
    return encoded


cdef int bind_encoded(ObjectRef ref, bytes encoded, object name, bint keep=True) except -1:
    cdef prs_error error
    cdef int status
    cdef prs_store *handle
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    ref.store.check_open()
    error.code = 0
    handle = begin(ref.store)
    with nogil:
        status = prs_name_bind_as(handle, text, length, &ref.id, keep, &error)
    end(handle)
    if status == PRS_E_EXISTS:
        name_taken(name)
    if status == PRS_E_OBJECTS:
        names_full()
    if status != PRS_OK:
        fail(status, &error, ref.store, ref)
    return 0


cdef ObjectRef find_encoded(Store store, bytes encoded):
    """Return the object with a name, or None. This releases the GIL, because the engine acquires the store's lock."""
    cdef prs_oid id
    cdef int status
    cdef prs_store *handle
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    # Allocate this first, because no step may fail after the engine has returned a reference.
    memset(&id, 0, sizeof(id))
    cdef ObjectRef ref = new_ref(store, NULL, &id)
    while True:
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_name_find(handle, text, length, &id)
        end(handle)
        if status != PRS_E_CLOSED:
            break
        revive(store)
    if status == PRS_E_NOTFOUND:
        return None
    if status != PRS_OK:
        fail(status, NULL, store)
    ref.id = id
    ref.handle = handle
    return ref


def bind_name(ObjectRef ref not None, name):
    """Bind a name to a stored object."""
    adopt(ref)
    bind_encoded(ref, name_bytes(name), name)


def find_name(Store store not None, name):
    """Return a reference to the object with that name in `store`, or None."""
    return find_encoded(store, name_bytes(name))


def wait_name(Store store not None, name, timeout=None):
    """
    Return a reference to the object with a name; wait until there is such an object.

    Returns
    -------
    ObjectRef

    Raises
    ------
    NameNotFoundError
        If there is no such object and `timeout` is 0, or if the wait has no limit and no process can still put such an
        object.
    GetTimeoutError
        If there is no such object in time.
    """
    cdef int64_t deadline = deadline_of(timeout), left, ask = FOREVER
    cdef bytes encoded = name_bytes(name)
    cdef uint32_t seen
    cdef int status
    cdef prs_store *handle
    cdef ObjectRef ref
    while True:
        # Read the counter before the lookup, so that a name that is bound after the lookup ends the sleep immediately.
        store.check_open()
        seen = prs_epoch(store.handle)
        ref = find_encoded(store, encoded)
        if ref is not None:
            return ref
        if deadline == 0:
            name_not_found(name)
        if deadline == FOREVER:
            if ask == FOREVER:
                ask = prx_now() + patience_for_name()
            elif prx_now() > ask:
                check_endless_name(store, name)
                ask = FOREVER - 1
        left = min(deadline - prx_now(), <int64_t>100000000)
        if left <= 0:
            name_timeout(name, timeout)
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_wait_epoch(handle, seen, left)
        end(handle)
        PyErr_CheckSignals()
        if status == PRS_E_CLOSED:
            revive(store)
        elif status not in (PRS_OK, PRS_E_TIMEOUT, PRS_E_INTR):
            fail(status, NULL, store)
