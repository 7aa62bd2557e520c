# Statuses of the engine as exceptions, timeouts as deadlines.

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


cdef int64_t deadline_of(object timeout) except -1:
    """Absolute time in ns: FOREVER for None, 0 for "do not wait"."""
    if timeout is None:
        return FOREVER
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    if seconds == 0:
        return 0
    if seconds > 1e9:
        return FOREVER
    return prx_now() + <int64_t>(seconds * 1e9)
