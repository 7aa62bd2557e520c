# uses: prelude
#
# Contains all calls into the Python layer. The other parts of the core import no Python module of pyray_ser.
#
# All of these calls are on slow paths, and each imports its module on first use.

# ---- errors --------------------------------------------------------------------------------------------------------

cdef int fail(int status, const prs_error *error, object store=None, object ref=None, object timeout=None) except -1:
    """Raise the exception for a status of the engine; no other function does."""
    from pyray_ser.store.statuses import exception

    if error is NULL or error.code != status:
        raise exception(status, store=store, ref=ref, timeout=timeout)
    raise exception(
        status, (<const char *>error.what).decode("utf-8", "replace"), errno=error.sys_errno, pid=error.pid,
        want=error.want, capacity=error.capacity, used=error.used, store=store, ref=ref, timeout=timeout)


cdef int corrupt(const char *why, object ref) except -1:
    return corrupt_for(why.decode("ascii"), ref)


cdef int corrupt_for(str reason, object ref) except -1:
    from pyray_ser.exceptions import CorruptObjectError

    raise CorruptObjectError(ref=None if ref is None else repr(ref), reason=reason)


cdef int store_closed(uint64_t ident) except -1:
    from pyray_ser.exceptions import StoreClosedError

    raise StoreClosedError(store=f"{ident:016x}")


cdef bint is_store_full(object error) except -1:
    from pyray_ser.exceptions import ObjectStoreFullError

    return isinstance(error, ObjectStoreFullError)


cdef object not_refs(str function, object given):
    """Return the exception for an argument that is neither a reference nor a list of references."""
    from pyray_ser.store.references import not_refs as error_for

    return error_for(function, given)


cdef int name_taken(object store, object name) except -1:
    from pyray_ser.exceptions import NameExistsError
    from pyray_ser.store.by_name import owner_of

    raise NameExistsError(name=name, owner=owner_of(store, name))


cdef int name_not_found(object name) except -1:
    from pyray_ser.exceptions import NameNotFoundError

    raise NameNotFoundError(name=name)


cdef int name_timeout(object name, object timeout) except -1:
    from pyray_ser.exceptions import GetTimeoutError

    raise GetTimeoutError(ref=f"named {name!r}", timeout=timeout)


cdef int names_full() except -1:
    from pyray_ser.exceptions import StoreFullError

    raise StoreFullError(table="names")


cdef object explain_failure(object value, object error):
    """Return an exception that names the part of `value` that could not be pickled, or `error` itself."""
    from pyray_ser.pickling.serialization import unpicklable

    return unpicklable(value, error)


# ---- which store ---------------------------------------------------------------------------------------------------

cdef object open_default_store():
    from pyray_ser.store.discovery import open_default

    return open_default()


cdef object find_store(const prs_oid *id, int32_t pid, uint64_t start_time, int32_t fd):
    """Return the store of a reference that the process `pid` sent, or None."""
    from pyray_ser.store.discovery import find

    return find(id.store, pid, start_time, fd)


cdef object find_arrived_store(const prs_oid *id, int32_t pid, uint64_t start_time, int32_t fd, bytes node):
    """Like `find_store`, but do not search again for the store of a process on another machine."""
    from pyray_ser.store.discovery import find_arrived

    return find_arrived(id.store, pid, start_time, fd, node)


cdef object unreachable_store(object ref):
    """Return the exception for a reference whose store `find_store` cannot find."""
    from pyray_ser.store.foreign import unreachable

    return unreachable(ref)


cdef object known_foreign(bytes identity):
    """Return the information that this process has about an object whose store it has not found."""
    from pyray_ser.store.foreign import known

    return known(identity)


cdef object state_of_foreign(object ref):
    from pyray_ser.store.foreign import state

    return state(ref)


cdef object copy_of_foreign(object ref):
    """Return the reference of the copy that this process has of a foreign object, or None."""
    from pyray_ser.store.foreign import copy_of

    return copy_of(ref)


cdef object resolve_foreign(object ref, object timeout):
    """Return a reference with the same value whose store is open here."""
    from pyray_ser.store.foreign import resolve

    return resolve(ref, timeout)


cdef int begin_foreign(list refs) except -1:
    """Start to search for the stores of references in other threads."""
    from pyray_ser.store.foreign import begin

    begin(refs)
    return 0


cdef bint is_foreign_ready(object ref) except -1:
    """Return whether a wait for a foreign object would end."""
    from pyray_ser.store.foreign import is_ready

    return is_ready(ref)


cdef bint reattach_store(Store store) except -1:
    from pyray_ser.store.discovery import reattach

    return reattach(store)


cdef int warn_of_shrunk_store(uint64_t wanted, uint64_t capacity) except -1:
    from pyray_ser import _log

    _log.warning(
        "limits of this process (ulimit -v, ulimit -f) leave no room for a store of %d bytes: it has %d; "
        "give a capacity to choose, or raise them", wanted, capacity)
    return 0


cdef bint drop_results(object store, uint64_t size) except -1:
    """Drop cached results until `size` bytes may be free; return whether there were any."""
    from pyray_ser.store.cached_results import drop_results as drop

    return drop(store, size) > 0


cdef object new_form(uint32_t flags):
    """Return the `Form` that describes how spill files are written."""
    from pyray_ser.store.spill_codec import Form

    return Form(flags)


# ---- references ----------------------------------------------------------------------------------------------------

# The context variable of `pyray_ser.store.scopes` and the name of this node; set when the first reference is sent.
cdef object scope_variable = None
cdef bytes node_name = None
# `pyray_ser._load_ref`, which pickled references call.
cdef object ref_loader = None


cdef object loader():
    global ref_loader
    if ref_loader is None:
        from pyray_ser import _load_ref

        ref_loader = _load_ref
    return ref_loader


cdef int find_scope_variable() except -1:
    global scope_variable, node_name
    from pyray_ser.store.discovery import node_name as name
    from pyray_ser.store.scopes import _current

    node_name = name()
    scope_variable = _current
    return 0


cdef bytes hold_in_scope(object ref, int kind):
    """Return bytes for `load_ref`, and make the caller's scope hold the object."""
    from pyray_ser.store.scopes import hold

    return hold(ref, kind, node_name)


cdef int release_from_scopes(bytes identity) except -1:
    from pyray_ser.store.scopes import release

    release(identity)
    return 0


cdef object text_of_ref(object ref):
    from pyray_ser.store.references import text

    return text(ref)


cdef object html_of_ref(object ref):
    from pyray_ser.store.references import html

    return html(ref)


cdef object reduce_ref(object ref):
    from pyray_ser.store.references import reduce

    return reduce(ref)


cdef object await_ref(object ref):
    from pyray_ser.store.waiting import wait_async

    return wait_async(ref)


cdef object future_of_ref(object ref):
    from pyray_ser.store.waiting import future

    return future(ref)


# ---- waiting without limit -----------------------------------------------------------------------------------------

cdef int check_endless_get(object ref) except -1:
    """Raise an exception if no other thread or process can seal the object that this thread waits for."""
    from pyray_ser.store.endless import check_seal

    check_seal(ref)
    return 0


cdef int64_t patience_for_name() except -1:
    """Return how many ns a wait for a name lasts before it calls `check_endless_name`."""
    from pyray_ser.store.endless import PATIENCE

    return <int64_t>(PATIENCE * 1e9)


cdef int check_endless_name(Store store, object name) except -1:
    """Raise an exception if no process can still put an object with that name."""
    from pyray_ser.store.endless import check_name

    check_name(store, name)
    return 0


# ---- pickling ------------------------------------------------------------------------------------------------------

cdef object pickler_module():
    # This module connects the pickler with the registered serializers and the reducers of third-party types.
    from pyray_ser.pickling.serialization import _pickle

    return _pickle


cdef object unpickler_module():
    from pyray_ser import _unpickle

    return _unpickle


cdef object call_of_memoryview(bytes stream, object view):
    """Return the stream of a memoryview and the object to store as its buffer, or None if a pickler is needed."""
    from pyray_ser.pickling.serialization import memoryview_call

    return memoryview_call(stream, view)


cdef object explanation_of_put(object value, Store store):
    from pyray_ser.inspection import explain_put

    return explain_put(value, store)
