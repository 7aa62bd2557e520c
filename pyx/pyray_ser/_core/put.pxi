# `put`: which way a value takes into the store.

# What `pyray_ser.pickling.registry` has, once it is imported: the reducer of a class or None, and a list of the number of changes.
cdef object registry_find = None
cdef list registry_version = None
cdef dict copyreg_table = _copyreg_table
# {type: the number of changes when it had no serializer}
cdef dict unregistered = {}


def set_registry(find, list version):
    """Ask `find(cls)` for the serializer of a class that `put` would write by itself; again once `version[0]` has changed."""
    global registry_find, registry_version
    registry_version = version
    registry_find = find


cdef bint has_reducer(object value) except -1:
    """Whether somebody registered how values of this type are pickled."""
    cls = type(value)
    if cls in copyreg_table:
        return True
    if registry_version is None:
        return False
    changes = registry_version[0]
    if unregistered.get(cls) == changes:
        return False
    if registry_find(cls) is not None:
        return True
    unregistered[cls] = changes
    return False


cdef ObjectRef put_memory(Store store, object value, int64_t deadline):
    """bytes, bytearray, array.array and memoryview: one copy, no pickling. None if it is something else."""
    cdef Py_buffer view
    cdef bytes stream
    global array_type
    if PyBytes_CheckExact(value):
        return put_buffer(store, <const uint8_t *>PyBytes_AS_STRING(BYTES_STREAM), PyBytes_GET_SIZE(BYTES_STREAM),
                          PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), None, NULL, deadline)
    if PyByteArray_CheckExact(value):
        stream = BYTEARRAY_STREAM
    elif PyMemoryView_Check(value):
        if has_reducer(value):
            return None
        from pyray_ser.pickling.serialization import memoryview_call

        written = memoryview_call(MEMORYVIEW_STREAM, value)
        if written is None:
            return None
        stream, value = written
    elif prx_is_array(value):
        if array_type is None:
            from array import array as array_type
        if type(value) is not array_type or value.typecode in "uw" or has_reducer(value):
            return None
        stream = ARRAY_STREAM[:ARRAY_TYPECODE] + value.typecode.encode() + ARRAY_STREAM[ARRAY_TYPECODE + 1:]
    else:
        return None
    # The buffer stays exported during the copy, so its owner cannot resize it under us.
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    try:
        return put_buffer(store, <const uint8_t *>PyBytes_AS_STRING(stream), PyBytes_GET_SIZE(stream), view.buf, view.len,
                          None, NULL, deadline)
    finally:
        PyBuffer_Release(&view)


cdef ObjectRef put_value(Store store, object value, int64_t deadline):
    cdef uint8_t[HEAD] stream
    cdef prp_array_source source
    cdef ObjectRef ref
    cdef Py_ssize_t n = scalar_stream(value, stream)
    if n:
        return put_stream(store, stream, n, deadline)
    if prp_ndarray_looks(value):
        n = 0 if has_reducer(value) else prp_ndarray().template_put(value, stream, &source)
        if n:
            return put_buffer(store, stream, n, source.data, source.nbytes, value, &source, deadline)
    elif type(value) is ObjectRef:
        raise TypeError(
            "put() does not take an ObjectRef: that object is stored already. To store the reference itself, wrap it "
            "in a list: put([ref])")
    else:
        ref = put_memory(store, value, deadline)
        if ref is not None:
            return ref
    return put_general(store, value, deadline)


@cython.binding(False)
def put(value, *, timeout=None, name=None, explain=False):
    """
    Store a value and return a reference to it.

    Parameters
    ----------
    value : object
        Anything that can be pickled. Large buffers are copied once, into the store.
    timeout : float, optional
        How many seconds to wait for room while the store is full; default is not to wait.
    name : str, optional
        A name under which `get_by_name` finds the object, in any process that uses this store. It then lives until it is
        freed or the store ends.
    explain : bool, optional
        Also tell what became of each part: the value is visited a second time for that.

    Returns
    -------
    ObjectRef
        With `explain`, a tuple ``(ref, explanation)``: a `pyray_ser.inspection.Explanation`, which prints as a tree, tells by
        path how many bytes are read in place (zero-copy), are copied by readers, stay in the stream (in-band), or were in
        the store already and are referred to.

    Raises
    ------
    TypeError
        If something inside cannot be pickled; the message tells where. Also for an `ObjectRef`.
    ObjectStoreFullError
        If there is no room.
    NameExistsError
        If the name is taken; nothing is stored then.
    """
    cdef int64_t deadline = 0
    cdef Store store = default_store
    if timeout is not None:
        deadline = deadline_of(timeout)
    if store is None:
        store = default_or_open()
    cdef ObjectRef ref
    if explain:
        ref = put_value(store, value, deadline) if name is None else put_named(store, value, name, deadline)
        from pyray_ser.inspection import explain_put

        return ref, explain_put(value, store)
    if name is not None:
        return put_named(store, value, name, deadline)
    return put_value(store, value, deadline)
