"""The pickler: `Pickler`, `dump` and `dumps`, compatible with those of the standard library.

csrc/pickle implements the pickler; this module defines the types, checks arguments and handles rare cases.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

cdef extern from "pickle/pickler.h":
    ctypedef struct prp_memo_slot:
        pass

    ctypedef struct prp_memo:
        prp_memo_slot *slots
        size_t mask
        PyObject **keys
        uint32_t count

    ctypedef struct prp_saver:
        prp_memo memo
        int proto
        bint bin
        bint elide
        bint fast
        bint fix_imports
        PyObject *write
        PyObject *persistent_id
        PyObject *reducer_override
        PyObject *dispatch_table
        PyObject *buffer_callback

    ctypedef struct prp_globals:
        PyObject *registry_version
        PyObject *registry_find
        PyObject *put_reducers
        PyObject *path_text
        PyObject *new_by_value
        PyObject *pickling_error
        PyObject *deep_recursion_error

    prp_globals prp_g
    const int PRP_MEMO_ABSENT

    int prp_setup() except -1
    int prp_saver_init(prp_saver *s) except -1
    void prp_saver_free(prp_saver *s)
    void prp_saver_finish(prp_saver *s)
    void prp_saver_protocol(prp_saver *s, int proto)
    prp_saver *prp_acquire() except NULL
    void prp_release(prp_saver *s)
    int prp_dump(prp_saver *s, object root) except -1
    object prp_dumps(object obj, int proto, bint fix_imports, PyObject *buffer_callback)
    int prp_out_flush(prp_saver *s) except -1
    void prp_memo_own_all(prp_saver *s)
    void prp_memo_clear(prp_memo *memo, size_t keep)
    list prp_memo_entries(const prp_memo *memo)
    int64_t prp_memo_add_as(prp_memo *memo, PyObject *key, uint32_t index)
    PyObject *prp_type_lookup(PyTypeObject *type, object name)
    void Py_XDECREF(PyObject *obj)
    object PyObject_GenericGetDict(object obj, void *context)
    ctypedef struct PyTypeObject:
        pass

cdef extern from "common/interp.h":
    int prp_allow_calls(int calls)

cdef extern from "common/foreign.h":
    bint prp_has_intruder()
    int prp_set_intruder(object intruder) except -1

cdef extern from "pickle/put.h":
    int prp_put(object obj, unsigned int flags, prp_put_result *result) except -1
    int prp_put_check(const prp_put_result *result) except -1
    int prp_put_gather_ "prp_put_gather"(const prp_put_buffer *buffer, void *to) except -1
    void prp_put_release_ "prp_put_release"(prp_put_result *result)

import io

prp_setup()

from pickle import PickleBuffer, PicklingError

DeepRecursionError = <object>prp_g.deep_recursion_error

cdef size_t KEEP_SLOTS = 1 << 16
cdef object NO_HOOK = object()  # None as a hook raises an error, as in _pickle


# ---- callbacks of the C code -----------------------------------------------------------------------------------------

cdef object _cloud_pickler = None
cdef object _no_file = io.BytesIO()  # no code writes to it


def _new_by_value():
    """Return a pickler that reduces functions and classes by value, for one dump."""
    global _cloud_pickler
    if _cloud_pickler is None:
        try:
            from pyray_ser.pickling.class_by_value import ByValuePickler
        except ModuleNotFoundError:
            raise
        except (ImportError, AttributeError) as error:
            raise PicklingError(
                "this object is pickled by cloudpickle, whose import a signal handler or finalizer has interrupted; "
                "hint: import cloudpickle before such code can run") from error

        _cloud_pickler = ByValuePickler
    return _cloud_pickler(_no_file)

cdef object _kept_new_by_value = _new_by_value
prp_g.new_by_value = <PyObject *>_kept_new_by_value

cdef object _kept_registry = None, _kept_put_reducers = None, _kept_path_text = None


def _set_registry(find, version):
    """Use registered serializers.

    `find(cls)` returns the reducer for a class or None; it is called again after `version[0]` has changed.
    """
    global _kept_registry
    if not callable(find) or type(version) is not list or len(version) != 1:
        raise TypeError("find must be callable and version a list of one int")
    _kept_registry = (find, version)
    prp_g.registry_find = <PyObject *>find
    prp_g.registry_version = <PyObject *>version


def _set_put_reducers(reducers):
    """Set the reducers of put mode: {exact type: callable that reduces like `__reduce__` or returns NotImplemented}."""
    global _kept_put_reducers
    if type(reducers) is not dict:
        raise TypeError("reducers must be a dict")
    _kept_put_reducers = reducers
    prp_g.put_reducers = <PyObject *>reducers


def _set_path_text(function):
    """Set the function that formats the path to an object that cannot be pickled, from steps as in `_walk.Walker`."""
    global _kept_path_text
    if not callable(function):
        raise TypeError("a callable is needed")
    _kept_path_text = function
    prp_g.path_text = <PyObject *>function


# ---- arguments ----------------------------------------------------------------------------------------------------------

cdef inline int _protocol(protocol) except -1:
    if protocol is None:
        return 5
    cdef long number = protocol
    if number < 0:
        return 5
    if number > 5:
        raise ValueError("pickle protocol must be <= 5")
    return <int>number


cdef inline PyObject *_callback(buffer_callback, int protocol) except? NULL:
    if buffer_callback is None:
        return NULL
    if protocol < 5:
        raise ValueError("buffer_callback needs protocol >= 5")
    return <PyObject *>buffer_callback


cdef object _write_of(file):
    try:
        return file.write
    except AttributeError:
        raise TypeError("file must have a 'write' attribute") from None


# ---- functions ----------------------------------------------------------------------------------------------------------

@cython.binding(False)
def dumps(obj, protocol=None, *, bint fix_imports=True, buffer_callback=None):
    """Return the pickled representation of the object as a bytes object.

    Parameters
    ----------
    obj : object
    protocol : int, optional
        0 to 5; None and negative numbers mean 5.
    fix_imports : bool, optional
        Below protocol 3, map names to their Python 2 equivalents.
    buffer_callback : callable, optional
        Called with each `PickleBuffer`. If it returns a false value, the buffer is not written to the pickle. Requires
        protocol 5.

    Returns
    -------
    bytes

    Raises
    ------
    PicklingError, TypeError, AttributeError
        If a part of `obj` cannot be pickled.
    DeepRecursionError
        If code outside of the pickler recurses too deeply.
    ValueError
        If `protocol` is above 5, or below 5 with a `buffer_callback`.

    Examples
    --------
    >>> pyray_ser.loads(pyray_ser.dumps([1, "two"]))
    [1, 'two']
    """
    cdef int number = 5
    if protocol is not None:
        number = _protocol(protocol)
    cdef PyObject *callback = NULL
    if buffer_callback is not None:
        callback = _callback(buffer_callback, number)
    return prp_dumps(obj, number, fix_imports, callback)


@cython.binding(False)
def dump(obj, file, protocol=None, *, bint fix_imports=True, buffer_callback=None):
    """Write the pickled representation of the object to the open file.

    Parameters
    ----------
    obj : object
    file : object with a ``write(bytes)`` method
    protocol, fix_imports, buffer_callback
        As for `dumps`.

    Raises
    ------
    PicklingError, TypeError, AttributeError, DeepRecursionError, ValueError
        As for `dumps`; also TypeError if `file` has no ``write``.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> pyray_ser.dump([1, "two"], file)
    >>> pyray_ser.loads(file.getvalue())
    [1, 'two']
    """
    cdef int number = _protocol(protocol)
    cdef PyObject *callback = _callback(buffer_callback, number)
    write = _write_of(file)
    cdef prp_saver *s = prp_acquire()
    try:
        prp_saver_protocol(s, number)
        s.fix_imports = fix_imports and number < 3
        s.buffer_callback = callback
        s.write = <PyObject *>write
        s.elide = number >= 5
        prp_dump(s, obj)
        prp_out_flush(s)
    finally:
        prp_release(s)


# ---- Pickler ------------------------------------------------------------------------------------------------------------

cdef class Pickler:
    """Pickler(file, protocol=None, *, fix_imports=True, buffer_callback=None)
--

    Write pickled objects to a file; compatible with `pickle.Pickler`.

    A subclass or an instance may define `persistent_id`, `reducer_override` and `dispatch_table`.

    Parameters
    ----------
    file : object with a ``write(bytes)`` method
    protocol, fix_imports, buffer_callback
        As for `dumps`.

    Raises
    ------
    TypeError
        If `file` has no ``write``.
    ValueError
        As for `dumps`.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> pickler = pyray_ser.Pickler(file)
    >>> pickler.dump([1, "two"])
    >>> pyray_ser.loads(file.getvalue())
    [1, 'two']
    """

    cdef prp_saver saver
    cdef object _write, _buffer_callback
    cdef bint running
    cdef dict __dict__
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        prp_saver_init(&self.saver)

    def __dealloc__(self):
        prp_saver_free(&self.saver)

    def __init__(self, file, protocol=None, *, bint fix_imports=True, buffer_callback=None):
        if self.running:
            raise RuntimeError("Pickler.__init__() called while it is pickling")
        cdef int number = _protocol(protocol)
        write = _write_of(file)
        _callback(buffer_callback, number)
        prp_memo_clear(&self.saver.memo, KEEP_SLOTS)
        prp_saver_protocol(&self.saver, number)
        self.saver.fix_imports = fix_imports and number < 3
        self.saver.fast = False
        self._write = write
        self._buffer_callback = buffer_callback

    def dump(self, obj, /):
        """
        Write the pickled representation of an object to the open file.

        Parameters
        ----------
        obj : object

        Raises
        ------
        PicklingError, TypeError, AttributeError, DeepRecursionError
            As for `dumps`; PicklingError also if a subclass did not call ``Pickler.__init__``.
        RuntimeError
            If this Pickler is pickling already.
        """
        cdef prp_saver *s = &self.saver
        if self._write is None:
            raise PicklingError(f"Pickler.__init__() was not called by {type(self).__name__}.__init__()")
        if self.running:
            raise RuntimeError("Pickler.dump() called while this Pickler is pickling")
        persistent_id = None
        reducer_override = dispatch_table = NO_HOOK
        if type(self) is not Pickler or PyObject_GenericGetDict(self, NULL):
            if _has_persistent_id(self):
                persistent_id = self.persistent_id
            reducer_override = getattr(self, "reducer_override", NO_HOOK)
            dispatch_table = getattr(self, "dispatch_table", NO_HOOK)
        s.persistent_id = NULL if persistent_id is None else <PyObject *>persistent_id
        s.reducer_override = NULL if reducer_override is NO_HOOK else <PyObject *>reducer_override
        s.dispatch_table = NULL if dispatch_table is NO_HOOK else <PyObject *>dispatch_table
        buffer_callback = self._buffer_callback
        s.buffer_callback = NULL if buffer_callback is None else <PyObject *>buffer_callback
        write = self._write
        s.write = <PyObject *>write
        self.running = True
        try:
            prp_dump(s, obj)
            prp_out_flush(s)
        finally:
            s.persistent_id = s.reducer_override = s.dispatch_table = s.buffer_callback = s.write = NULL
            prp_saver_finish(s)
            self.running = False

    def persistent_id(self, obj, /):
        """Return a persistent id for `obj`, or None to pickle it as usual; subclasses override this."""
        return None

    def clear_memo(self):
        """Clear the memo, so that objects that have already been pickled are written again."""
        prp_memo_clear(&self.saver.memo, KEEP_SLOTS)
        prp_memo_own_all(&self.saver)

    @property
    def memo(self):
        """PicklerMemoProxy : The objects pickled so far; assign the memo of another Pickler, or a dict."""
        return PicklerMemoProxy.__new__(PicklerMemoProxy, self)

    @memo.setter
    def memo(self, value):
        if type(value) is PicklerMemoProxy:
            value = (<PicklerMemoProxy>value).copy()
        elif not isinstance(value, dict):
            raise TypeError(f"'memo' attribute must be a PicklerMemoProxy object or dict, not {type(value).__name__}")
        entries = []
        for entry in value.values():
            if not isinstance(entry, tuple) or len(entry) != 2:
                raise TypeError("'memo' values must be 2-item tuples")
            entries.append((<uint32_t?>entry[0], entry[1]))
        prp_memo_clear(&self.saver.memo, KEEP_SLOTS)
        prp_memo_own_all(&self.saver)
        for index, obj in entries:
            if prp_memo_add_as(&self.saver.memo, <PyObject *>obj, index) < PRP_MEMO_ABSENT:
                raise

    @property
    def bin(self):
        """int : 1 if opcodes are binary (protocol 1 and up), else 0."""
        return int(self.saver.bin)

    @bin.setter
    def bin(self, value):
        self.saver.bin = bool(value)

    @property
    def fast(self):
        """int : If true, objects are not memoized. Deprecated; objects that contain themselves raise ValueError."""
        return int(self.saver.fast)

    @fast.setter
    def fast(self, value):
        self.saver.fast = bool(value)

    def __sizeof__(self):
        return object.__sizeof__(self) + (self.saver.memo.mask + 1) * (sizeof(prp_memo_slot) + sizeof(void *) // 2)


cdef PyObject *_base_persistent_id = prp_type_lookup(<PyTypeObject *>Pickler, "persistent_id")


cdef bint _has_persistent_id(Pickler self):
    if "persistent_id" in PyObject_GenericGetDict(self, NULL):
        return True
    cls = type(self)
    cdef PyObject *found = prp_type_lookup(<PyTypeObject *>cls, "persistent_id")
    cdef bint own = found != _base_persistent_id
    Py_XDECREF(found)
    return own


@cython.final
cdef class PicklerMemoProxy:
    """The memo of a Pickler, which can be cleared, copied, and assigned to another Pickler."""

    cdef Pickler pickler

    def __cinit__(self, Pickler pickler not None):
        self.pickler = pickler

    __hash__ = None

    def clear(self):
        """Remove all items."""
        self.pickler.clear_memo()

    def copy(self):
        """Return the memo as a dict from id of the object to (index, object)."""
        result = {}
        for index, obj in prp_memo_entries(&self.pickler.saver.memo):
            result[<size_t><PyObject *>obj] = (index, obj)
        return result

    def __reduce__(self):
        return dict, (self.copy(),)


# ---- put mode -----------------------------------------------------------------------------------------------------------

cdef int put_pickle(object obj, unsigned int flags, prp_put_result *result) except -1:
    return prp_put(obj, flags, result)


cdef int put_check(const prp_put_result *result) except -1:
    return prp_put_check(result)


cdef int put_gather(const prp_put_buffer *buffer, void *to) except -1:
    return prp_put_gather_(buffer, to)


cdef void put_release(prp_put_result *result) noexcept:
    prp_put_release_(result)


@cython.binding(False)
def _put(obj, unsigned int flags=0):
    """Return the stream and the list of buffers that `put` would store, all copied to bytes."""
    cdef prp_put_result result
    cdef size_t i
    prp_put(obj, flags, &result)
    try:
        stream = b"".join([
            PyBytes_FromStringAndSize(<const char *>result.segments[i].data, <Py_ssize_t>result.segments[i].len)
            for i in range(result.segment_count)
        ])
        buffers = []
        for i in range(result.buffer_count):
            data = PyBytes_FromStringAndSize(<const char *>result.buffers[i].data, <Py_ssize_t>result.buffers[i].len)
            if result.buffers[i].data == NULL:
                prp_put_gather_(&result.buffers[i], <char *>data)
            buffers.append(data)
        return stream, buffers
    finally:
        prp_put_release_(&result)


# ---- debugging ----------------------------------------------------------------------------------------------------------

def _allow_calls(int calls):
    """Allow this thread to make `calls` more recursive calls from here; return how many it could make before."""
    return prp_allow_calls(calls)


def _set_intruder(intruder):
    """Run `intruder(file, line, may_raise)` before every call that can run Python code; None: run nothing.

    Only in a build with PYRAY_SER_INTRUDER=1.
    """
    prp_set_intruder(intruder)


if not prp_has_intruder():
    del _set_intruder
