# uses: prelude, policy, store, refs
#
# Functions that bind names to objects and find objects by name.

# Maximum length of a name in bytes of UTF-8.
NAME_MAX = PRS_NAME_MAX


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


def usable_name(name):
    """Return the name; raise if it is reserved for this package."""
    if isinstance(name, str) and (<str>name).startswith(NAME_RESERVED):
        raise ValueError(
            f"names that start with {NAME_RESERVED!r} are reserved for this package: choose another than {name!r}")
    return name


cdef int bind_encoded(ObjectRef ref, bytes encoded, object name, uint32_t flags=0) except -1:
    cdef prs_error error
    cdef int status
    cdef prs_store *handle
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    while True:
        ref.store.check_open()
        error.code = 0
        handle = begin(ref.store)
        with nogil:
            status = prs_name_bind(handle, text, length, &ref.id, flags, &error)
        end(handle)
        # Cached results have names, too.
        if status != PRS_E_OBJECTS or not drop_cached(ref.store, 1):
            break
    if status == PRS_E_EXISTS:
        name_taken(ref.store, name)
    if status == PRS_E_OBJECTS:
        names_full()
    if status != PRS_OK:
        fail(status, &error, ref.store, ref)
    return 0


cdef ObjectRef find_encoded(Store store, bytes encoded, prs_name_info *info=NULL, uint32_t max_age=0):
    """
    Return the object with a name, or None; with `max_age`, count it as a use of the name.

    This releases the GIL, because the engine acquires the store's lock.
    """
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
            if max_age:
                status = prs_name_use(handle, text, length, max_age, &id, info)
            else:
                status = prs_name_find(handle, text, length, &id, info)
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


def find_name(Store store not None, name):
    """Return a reference to the object with that name in `store`, or None."""
    return find_encoded(store, name_bytes(name))


def find_version(Store store not None, name):
    """Return (reference, version, age in seconds, whether the name keeps the object) of a name; None if it is unbound."""
    cdef prs_name_info info
    cdef ObjectRef ref = find_encoded(store, name_bytes(name), &info)
    return None if ref is None else (ref, info.version, info.age, bool(info.keeps))


def use_name(Store store not None, bytes encoded not None, uint32_t max_age=0xFFFFFFFF):
    """
    Return a reference to the object with an encoded name, and count this as a use; None if there is none, or if it has
    the name for `max_age` seconds or longer.
    """
    return find_encoded(store, encoded, NULL, max_age)


def count_name(Store store not None, bytes encoded not None, uint32_t uses, uint64_t note):
    """Add `uses` to the use count of a name, and `note` to its note; return whether an object has the name."""
    cdef int status
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    cdef prs_store *handle
    while True:
        store.check_open()
        handle = begin(store)
        with nogil:
            status = prs_name_count(handle, text, length, uses, note)
        end(handle)
        if status != PRS_E_CLOSED:
            break
        revive(store)
    if status != PRS_OK and status != PRS_E_NOTFOUND:
        fail(status, NULL, store)
    return status == PRS_OK


def unbind_name(Store store not None, name, ObjectRef only=None):
    """
    Remove a name from its object; with `only`, do this only if the object is `only`.

    Returns
    -------
    int or None
        The number of uses of the name; None if it is unbound or belongs to another object.
    """
    cdef prs_error error
    cdef prs_name_info info
    cdef int status
    cdef bytes encoded = name_bytes(name)
    cdef const char *text = encoded
    cdef size_t length = PyBytes_GET_SIZE(encoded)
    cdef const prs_oid *id = NULL if only is None else &only.id
    cdef prs_store *handle
    while True:
        store.check_open()
        error.code = 0
        handle = begin(store)
        with nogil:
            status = prs_name_unbind(handle, text, length, id, &info, &error)
        end(handle)
        if status != PRS_E_CLOSED:
            break
        revive(store)
    if status != PRS_OK and status != PRS_E_NOTFOUND:
        fail(status, &error, store)
    return info.uses if status == PRS_OK else None


def creator_of(ObjectRef ref not None):
    """Return the pid of the client that made a sealed object; 0 if the object is gone, or that client has ended."""
    cdef int32_t pid
    if ref.store is None:
        return 0
    ref.store.check_open()
    cdef prs_store *handle = begin(ref.store)
    with nogil:
        pid = prs_creator(handle, &ref.id)
    end(handle)
    return pid


def move_name(Store store not None, old, new):
    """
    Give an object the name `new` instead of the name `old`, in one step.

    Raises
    ------
    NameNotFoundError, NameExistsError
    """
    cdef prs_error error
    cdef int status
    cdef bytes encoded = name_bytes(old), target = name_bytes(new)
    cdef const char *text = encoded
    cdef const char *target_text = target
    cdef size_t length = PyBytes_GET_SIZE(encoded), target_length = PyBytes_GET_SIZE(target)
    cdef prs_store *handle
    while True:
        store.check_open()
        error.code = 0
        handle = begin(store)
        with nogil:
            status = prs_name_move(handle, text, length, target_text, target_length, &error)
        end(handle)
        if status != PRS_E_CLOSED:
            break
        revive(store)
    if status == PRS_E_NOTFOUND:
        name_not_found(old)
    if status == PRS_E_EXISTS:
        name_taken(store, new)
    if status == PRS_E_OBJECTS:
        names_full()
    if status != PRS_OK:
        fail(status, &error, store)


def wait_name(Store store not None, name, timeout=None, uint64_t newer_than=0, ObjectRef other_than=None):
    """
    Wait until there is an object with a name, of a version above `newer_than`, other than the object `other_than`.

    Returns
    -------
    tuple
        As for `find_version`.

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
    cdef prs_name_info info
    cdef ObjectRef ref
    while True:
        # Read the counter before the lookup, so that a name that is bound after the lookup ends the sleep immediately.
        store.check_open()
        seen = prs_epoch(store.handle)
        ref = find_encoded(store, encoded, &info)
        if ref is not None and info.version > newer_than and (
                other_than is None or memcmp(&ref.id, &other_than.id, sizeof(prs_oid)) != 0):
            return ref, info.version, info.age, bool(info.keeps)
        if deadline == 0 and ref is None:
            name_not_found(name)
        if deadline == 0:
            name_timeout(name, timeout)
        ref = None  # do not hold an old version during the wait
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
