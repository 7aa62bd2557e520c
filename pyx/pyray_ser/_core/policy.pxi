# The calls into the Python layer. All of them stand here: the other parts import nothing of pyray_ser.
#
# Each is made on a slow path, and imports its module when it is first called.

cdef int fail(int status, const prs_error *error, object store=None, object ref=None, object timeout=None) except -1:
    """The one place that raises what the engine reported."""
    from pyray_ser.store.statuses import exception

    if error is NULL or error.code != status:
        raise exception(status, store=store, ref=ref, timeout=timeout)
    raise exception(
        status, (<const char *>error.what).decode("utf-8", "replace"), errno=error.sys_errno, pid=error.pid,
        want=error.want, capacity=error.capacity, used=error.used, store=store, ref=ref, timeout=timeout)


cdef int corrupt(const char *why, object ref) except -1:
    from pyray_ser.exceptions import CorruptObjectError

    raise CorruptObjectError(ref=None if ref is None else repr(ref), reason=why.decode("ascii"))


cdef object new_form(uint32_t flags):
    from pyray_ser.store.spill_codec import Form

    return Form(flags)


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


cdef int name_taken(object name) except -1:
    from pyray_ser.exceptions import NameExistsError

    raise NameExistsError(name=name)
