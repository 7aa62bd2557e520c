# cython: binding=False
"""The unpickler (`csrc/unpickle`): types and functions compatible with the standard library's `pickle`."""

cimport cython
from cpython.buffer cimport PyBUF_CONTIG_RO, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport visitproc

import sys

from _pickle import UnpicklingError

cdef extern from "unpickler.h":
    int prp_load_init(object unpickling_error, object unpickler_type) except -1
    prp_loader *prp_loader_new() except NULL
    void prp_loader_free(prp_loader *loader)
    prp_loader *prp_loader_acquire() except NULL
    void prp_loader_release(prp_loader *loader)
    int prp_loader_set_strings(prp_loader *loader, void *encoding, void *errors) except -1
    int prp_loader_set_buffers(prp_loader *loader, object buffers) except -1
    int prp_loader_set_allow(prp_loader *loader, object allow) except -1
    void prp_loader_memory(prp_loader *loader, const uint8_t *data, size_t len)
    int prp_loader_file(prp_loader *loader, object file) except -1
    object prp_load(prp_loader *loader)
    object prp_load_find_class(prp_loader *loader, object module, object name)
    object prp_load_memo_copy(prp_loader *loader)
    int prp_load_memo_replace(prp_loader *loader, dict memo) except -1
    void prp_load_memo_clear(prp_loader *loader)
    int prp_loader_traverse(prp_loader *loader, visitproc visit, void *arg)
    void prp_loader_clear(prp_loader *loader)
    object prp_loads_function(object module_name)

cdef extern from "foreign.h":
    bint prp_has_intruder()
    int prp_set_intruder(object intruder) except -1

cdef extern from *:
    """
    /* Cython does not traverse objects that C members refer to. These slots do; they are set before a subclass exists. */
    static traverseproc prp_base_traverse;
    static inquiry prp_base_clear;
    static Py_ssize_t prp_loader_offset;

    static prp_loader *prp_loader_of(PyObject *self) { return *(prp_loader **)((char *)self + prp_loader_offset); }

    static int prp_traverse(PyObject *self, visitproc visit, void *arg)
    {
        int stop = prp_base_traverse(self, visit, arg);
        return stop || !prp_loader_of(self) ? stop : prp_loader_traverse(prp_loader_of(self), visit, arg);
    }

    static int prp_clear(PyObject *self)
    {
        prp_loader *loader = prp_loader_of(self);
        if (loader && !loader->running)
            prp_loader_clear(loader);
        return prp_base_clear(self);
    }

    static void prp_extend_slots(PyObject *type_, PyObject *instance, void *member)
    {
        PyTypeObject *type = (PyTypeObject *)type_;
        prp_loader_offset = (char *)member - (char *)instance;
        prp_base_traverse = type->tp_traverse;
        prp_base_clear = type->tp_clear;
        type->tp_traverse = prp_traverse;
        type->tp_clear = prp_clear;
    }
    """
    void prp_extend_slots(object type_, object instance, void *member)

__all__ = ["Unpickler", "UnpicklingError", "load", "loads"]

cdef object DEFAULT_BUFFERS = ()

# Since Python 3.13 the base class has a persistent_load that raises an exception, so that super().persistent_load(pid)
# works.
cdef bint BASE_REFUSES = sys.version_info >= (3, 13)


def refuse_persistent_id(pid):
    raise UnpicklingError(
        "A load persistent id instruction was encountered, but no persistent_load function was specified.")


cdef int set_options(prp_loader *loader, bint fix_imports, encoding, errors, buffers, allow) except -1:
    loader.fix_imports = fix_imports
    if encoding is not None or errors is not None:
        if (encoding is not None and not isinstance(encoding, str)) or (errors is not None and not isinstance(errors, str)):
            raise TypeError("encoding and errors must be str")
        prp_loader_set_strings(
            loader, <void *>encoding if encoding is not None else NULL, <void *>errors if errors is not None else NULL)
    if buffers is not DEFAULT_BUFFERS and buffers is not None:
        prp_loader_set_buffers(loader, buffers)
    if allow is not None:
        prp_loader_set_allow(loader, allow)
    return 0


# Written in C (loads.c), because Cython's parsing of arguments takes as long as loading a small object.
loads = prp_loads_function(__name__)


def load(file, *, bint fix_imports=True, encoding=None, errors=None, buffers=DEFAULT_BUFFERS, allow=None):
    """
    Read one object from a pickle in a file.

    Parameters
    ----------
    file : file object
        A binary file with `read` and `readline`; `readinto` and `peek` are used if it has them. Afterwards its position
        is after the last byte of the pickle.
    fix_imports, encoding, errors, buffers, allow
        As in `loads`.

    Returns
    -------
    object
        The object.

    Raises
    ------
    UnpicklingError
        If the data is not a pickle, or names a global that `allow` rejects.
    EOFError
        If the file ends before the pickle does.
    ImportError, AttributeError
        If a global in the pickle does not exist.
    TypeError
        If `file` lacks a method, or `encoding` or `errors` is not a str.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO(pyray_ser.dumps([1, "two"]))
    >>> pyray_ser.load(file)
    [1, 'two']
    """
    cdef prp_loader *loader = prp_loader_acquire()
    try:
        set_options(loader, fix_imports, encoding, errors, buffers, allow)
        prp_loader_file(loader, file)
        return prp_load(loader)
    finally:
        prp_loader_release(loader)


cdef object load_stored(const uint8_t *stream, size_t len, const prp_buffer *table, size_t count, object owner, object allow,
                        int flags):
    cdef prp_loader *loader = prp_loader_acquire()
    try:
        if allow is not None:
            prp_loader_set_allow(loader, allow)
        loader.owner = <void *>owner
        loader.table = table
        loader.table_len = count
        loader.array_flags = flags
        prp_loader_memory(loader, stream, len)
        return prp_load(loader)
    finally:
        prp_loader_release(loader)


def loads_in_place(stream, buffers, *, allow=None, bint writable=False):
    """
    Read one object whose arrays use the memory of the given buffers, as the store does with its memory.

    Parameters
    ----------
    stream : bytes-like
        The pickle.
    buffers : iterable of bytes-like
        The out-of-band buffers in the order of the stream. They stay exported as long as any part of the value uses
        them.
    allow
        As in `loads`.
    writable : bool
        Whether arrays over the buffers are writable; if so, all buffers must be writable. Otherwise every array in the
        value, except arrays of objects, is read-only and cannot be made writable.

    Returns
    -------
    object
        The object.
    """
    # The views in the tuple keep the memory alive; a tuple exports no buffer, so no array can be made writable through
    # its base.
    cdef tuple owner = tuple([memoryview(buffer) for buffer in buffers])
    cdef Py_ssize_t i, count = len(owner)
    cdef prp_buffer *table = <prp_buffer *>PyMem_Malloc((count + 1) * sizeof(prp_buffer))
    cdef Py_buffer view
    if table is NULL:
        raise MemoryError
    try:
        for i in range(count):
            PyObject_GetBuffer(owner[i], &view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
            table[i].ptr = <const uint8_t *>view.buf
            table[i].len = view.len
            PyBuffer_Release(&view)
        PyObject_GetBuffer(stream, &view, PyBUF_CONTIG_RO)
        try:
            return load_stored(<const uint8_t *>view.buf, view.len, table, count, owner, allow, 1 if writable else 0)
        finally:
            PyBuffer_Release(&view)
    finally:
        PyMem_Free(table)


@cython.final
cdef class UnpicklerMemoProxy:
    """The memo of an `Unpickler`, which can be copied, cleared, and assigned to another unpickler."""

    cdef Unpickler unpickler

    def __init__(self):
        raise TypeError(f"cannot create '{type(self).__name__}' instances")

    def clear(self):
        """Remove all items."""
        self.unpickler.check_idle()
        prp_load_memo_clear(self.unpickler.loader)

    def copy(self):
        """Return the memo as a dict from index to object."""
        return prp_load_memo_copy(self.unpickler.loader)

    def __reduce__(self):
        return dict, (prp_load_memo_copy(self.unpickler.loader),)

    __hash__ = None


cdef class Unpickler:
    """Unpickler(file, *, fix_imports=True, encoding="ASCII", errors="strict", buffers=(), allow=None)
--

    Reads pickles from a file; can be subclassed.

    Parameters
    ----------
    file : file object
        See `load`.
    fix_imports, encoding, errors, buffers, allow
        See `loads`.

    Attributes
    ----------
    memo
        The objects read so far, by memo index; kept between calls of `load`. Assign a dict or another Unpickler's memo.
    persistent_load : callable
        Returns the object of a persistent id. Define it in a subclass, or assign it; by default there is none.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO(pyray_ser.dumps([1, "two"]))
    >>> pyray_ser.Unpickler(file).load()
    [1, 'two']
    """

    def __cinit__(self):
        self.loader = prp_loader_new()

    def __init__(self, file, *, bint fix_imports=True, encoding="ASCII", errors="strict", buffers=DEFAULT_BUFFERS,
                 allow=None):
        self.check_idle()
        self.ready = False
        # Reading attributes of the file may run code that uses this object.
        self.loader.running = True
        try:
            prp_loader_clear(self.loader)
            prp_loader_file(self.loader, file)
            set_options(self.loader, fix_imports, encoding, errors, buffers, allow)
            self.loader.self = <void *>self
            self.ready = True
        finally:
            self.loader.running = False

    def __dealloc__(self):
        prp_loader_free(self.loader)

    cdef int check_idle(self) except -1:
        if self.loader.running:
            raise RuntimeError("the Unpickler is in the middle of a load")
        return 0

    def load(self):
        """
        Read the next pickle of the file.

        Returns
        -------
        object
            The object.

        Raises
        ------
        UnpicklingError, EOFError
            As for `load`; UnpicklingError also if a subclass did not call ``Unpickler.__init__``.
        RuntimeError
            If this Unpickler is loading already.
        """
        if not self.ready:
            raise UnpicklingError(f"Unpickler.__init__() was not called by {type(self).__name__}.__init__()")
        self.check_idle()
        self.loader.custom_find_class = type(self) is not Unpickler
        return prp_load(self.loader)

    def find_class(self, module_name, global_name, /):
        """
        Return the object with a global name; subclasses may override this method.

        Parameters
        ----------
        module_name, global_name : str
            As in the stream. This method maps Python 2 names and checks `allow`.

        Returns
        -------
        object
            Usually a class or function.

        Raises
        ------
        UnpicklingError
            If `allow` rejects the name.
        ImportError, AttributeError
            If there is no such module or name.
        """
        if not isinstance(module_name, str) or not isinstance(global_name, str):
            raise TypeError("find_class() takes two str")
        return prp_load_find_class(self.loader, module_name, global_name)

    @property
    def memo(self):
        cdef UnpicklerMemoProxy proxy = UnpicklerMemoProxy.__new__(UnpicklerMemoProxy)
        proxy.unpickler = self
        return proxy

    @memo.setter
    def memo(self, value):
        self.check_idle()
        if type(value) is UnpicklerMemoProxy:
            value = prp_load_memo_copy((<UnpicklerMemoProxy>value).unpickler.loader)
        elif not isinstance(value, dict):
            raise TypeError(
                f"'memo' attribute must be an UnpicklerMemoProxy object or dict, not {type(value).__name__}")
        self.check_idle()  # another thread may have started a load meanwhile
        self.loader.running = True
        try:
            prp_load_memo_replace(self.loader, value)
        finally:
            self.loader.running = False

    @memo.deleter
    def memo(self):
        raise TypeError("attribute deletion is not supported")

    @property
    def persistent_load(self):
        if self.assigned_persistent_load is None:
            if BASE_REFUSES:
                return refuse_persistent_id
            raise AttributeError("persistent_load")
        return self.assigned_persistent_load

    @persistent_load.setter
    def persistent_load(self, value):
        if not callable(value):
            raise TypeError("persistent_load must be a callable taking one argument")
        self.assigned_persistent_load = value

    @persistent_load.deleter
    def persistent_load(self):
        if not BASE_REFUSES:
            raise TypeError("attribute deletion is not supported")
        if self.assigned_persistent_load is None:
            raise AttributeError("persistent_load")
        self.assigned_persistent_load = None


cdef Unpickler sample = Unpickler.__new__(Unpickler)
prp_extend_slots(Unpickler, sample, &sample.loader)
sample = None
prp_load_init(UnpicklingError, Unpickler)


# ---- debugging ----------------------------------------------------------------------------------------------------------

def _set_intruder(intruder):
    """Run `intruder(file, line, may_raise)` before every call that can run Python code; None: run nothing.

    Only in a build with PYRAY_SER_INTRUDER=1.
    """
    prp_set_intruder(intruder)


if not prp_has_intruder():
    del _set_intruder
