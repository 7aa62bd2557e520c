"""Visits all objects that a pickler would visit, in one pass, and tracks the path to each.

Purpose: find the objects that cannot be pickled, their paths, and the pickled size of each
part, for graphs of millions of objects.

Algorithm: the order of visits, the memo and the opcodes are those of pickle protocol 5, but nothing is written. The
walker visits built-in types and containers itself, on an explicit stack. For other objects it gets the reduction from
the caller's function (or directly from ``__reduce_ex__``, if the caller declares that its function would only call
that) and walks the parts in the order in which a pickler saves them. If an object cannot be pickled, the walker reports
it together with the stack, and continues without it.

Guarantee: the walker reduces each object exactly once, as a pickler does, and reads no other attributes. Only memory
limits the depth. The walker keeps visited objects alive until the end of the walk, so that no two of them have the same
address.
"""

cimport cython
from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport Py_TYPE, PyCallable_Check, PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uintptr_t

from bisect import bisect_left, bisect_right
from pickle import PickleBuffer, PicklingError
from types import FunctionType

cdef extern from *:
    """
    /* Length of the UTF-8 form with surrogates, as pickle writes it. Unlike PyUnicode_AsUTF8AndSize, this
       does not cache that form in the object. */
    static Py_ssize_t prs_utf8_length(PyObject *text)
    {
        Py_ssize_t n = PyUnicode_GET_LENGTH(text), bytes = 0;
        if (PyUnicode_IS_ASCII(text))
            return n;
        int kind = PyUnicode_KIND(text);
        const void *data = PyUnicode_DATA(text);
        for (Py_ssize_t i = 0; i < n; i++) {
            Py_UCS4 c = PyUnicode_READ(kind, data, i);
            bytes += c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        }
        return bytes;
    }
    """
    Py_ssize_t prs_utf8_length(PyObject *text)
    int PyIter_Check(object)

cdef extern from "Python.h":
    # These functions return PyObject *, so that Cython does not raise an exception for NULL.
    PyObject *PyObject_GenericGetDict(PyObject *obj, void *context)
    void PyErr_Clear()
    PyTypeObject PyLong_Type, PyFloat_Type, PyBool_Type, PyUnicode_Type, PyBytes_Type, PyList_Type
    PyTypeObject PyTuple_Type, PyDict_Type, PySet_Type, PyFrozenSet_Type, PyByteArray_Type

# `Kind` is the kind of object that a frame walks. `Part` lists the parts of a reduction in the order in which a pickler
# saves them.
cdef enum Kind:
    LIST
    TUPLE
    DICT
    SET
    REDUCE

cdef enum Part:
    CALLABLE
    ARGS
    KWARGS
    MEMOIZE
    LIST_ITEMS
    DICT_ITEMS
    SETTER
    STATE
    FINISHED

# Maximum depth at which an object's reduction may contain the object itself. Beyond this depth the walk fails, as a
# pickler would.
cdef enum:
    SELF_NESTING = 50
# Nesting depth of reductions (not of containers or plain instances) that we treat as infinite recursion.
cdef enum:
    REDUCTION_DEPTH = 100_000

# The results of `classify`, see Walker.
ASK, PLAIN = 0, 1


def instance_dict(obj):
    """Return the real ``__dict__`` of an instance, even if its class overrides the attribute, or None."""
    cdef PyObject *found = PyObject_GenericGetDict(<PyObject *>obj, NULL)
    if found == NULL:
        PyErr_Clear()                   # this is an AttributeError, because only C code has run
        return None
    attributes = <object>found
    Py_DECREF(attributes)
    return attributes


@cython.final
cdef class Node:
    """The number of bytes below one step of a path. The walker keeps only large nodes."""

    cdef readonly tuple step
    cdef readonly object obj
    cdef readonly long long inband, zero_copy, copied, referenced
    cdef readonly list children
    cdef readonly long long others          # number of children that were not kept (too many or too small)
    cdef readonly long long others_bytes

    @property
    def total(self):
        return self.inband + self.zero_copy + self.copied + self.referenced


@cython.final
@cython.freelist(64)
cdef class Frame:
    cdef int kind
    cdef object obj             # the container, or the object being reduced
    cdef object parts           # REDUCE: [callable, args, kwargs, listitems, dictitems, setter, state]
    cdef object iterator        # used by SET and for the item iterators
    cdef object key, child      # the current step of the walk
    cdef Py_ssize_t position
    cdef Py_ssize_t size
    cdef int part
    cdef bint foreign
    cdef bint copying           # whether the function that the reduction calls copies its buffers
    cdef bint of_key            # whether `child` is a key, not a value
    cdef object pending         # the value that follows the key
    cdef long long inband, zero_copy, copied, referenced
    cdef list children
    cdef long long others, others_bytes


cdef struct Entry:
    PyObject *obj       # owned
    Py_ssize_t index    # memo index, or -1 - n while n reductions of the object are in progress


cdef inline Py_ssize_t length_prefix(Py_ssize_t n) noexcept:
    """Return the size of the opcode and length field before a string of n bytes."""
    return 2 if n < 256 else 5 if n <= 0xFFFFFFFF else 9


@cython.final
cdef class Walker:
    """One walk over the objects below a root.

    Parameters
    ----------
    reduce : callable
        ``reduce(obj)`` returns ``(value, name)``: the reduction (a tuple), or a string for an object that is pickled by
        reference, with the global's ``(module, qualname)`` in `name`. It raises an exception if the object cannot be
        pickled.
    classify : callable
        ``classify(cls)`` returns `PLAIN` if `reduce` would only call ``obj.__reduce_ex__(5)``.
    on_failure : callable
        Called as ``on_failure(steps, skipped, obj, error)``; the steps lead from the root to the object. If there are
        more than twice `half` steps, only the first and the last `half` are passed, and `skipped` is the number of
        omitted ones.
    threshold : int
        Buffers of at least this size are out-of-band; -1 keeps bytes and bytearrays in the stream, as the
        standard pickler does, and makes PickleBuffers of any size out-of-band.
    keep : int
        Keep nodes of at least this size.
    max_failures : int
        Report this many failures; only count further ones.
    copying : frozenset of function
        Functions that occur in reductions and copy the buffers in their arguments.
    refers : callable, optional
        ``refers(address, size)`` returns whether these bytes are already in the store, so that `put` does not copy
        them.
    half : int, optional
        See `on_failure`.
    """

    cdef object reduce, classify, on_failure, refers
    cdef frozenset copying
    cdef Py_ssize_t threshold
    cdef long long keep
    cdef list stack
    cdef dict classes, ranges
    cdef list starts, stops           # addresses of buffers counted so far: sorted intervals that do not touch
    cdef Py_ssize_t half
    cdef Entry *table
    cdef size_t mask, used
    cdef Py_ssize_t memo_size
    cdef Py_ssize_t foreign_depth
    cdef Py_ssize_t max_failures
    cdef readonly Py_ssize_t failures
    cdef readonly Py_ssize_t visited        # number of containers and reductions
    cdef readonly object root               # the Node of the root

    def __cinit__(self, reduce, classify, on_failure, Py_ssize_t threshold=1024, long long keep=1024,
                  Py_ssize_t max_failures=1000, frozenset copying=frozenset(), refers=None, Py_ssize_t half=50):
        self.mask = 1023
        self.table = <Entry *>PyMem_Calloc(self.mask + 1, sizeof(Entry))
        if self.table == NULL:
            raise MemoryError()
        self.reduce, self.classify, self.on_failure = reduce, classify, on_failure
        self.threshold, self.keep, self.max_failures = threshold, keep, max_failures
        self.copying, self.refers = copying, refers
        self.stack, self.classes, self.ranges = [], {}, {}
        self.starts, self.stops, self.half = [], [], half

    def __dealloc__(self):
        self.forget()

    cdef void forget(self) noexcept:
        cdef size_t i
        cdef Entry *table = self.table
        self.table = NULL
        if table != NULL:
            for i in range(self.mask + 1):
                Py_XDECREF(table[i].obj)
            PyMem_Free(table)

    # ---- memo: open addressing on addresses -------------------------------------------------

    cdef inline Entry *slot(self, PyObject *obj) noexcept:
        cdef uintptr_t address = <uintptr_t>obj
        cdef size_t i = ((address >> 4) * <size_t>0x9E3779B97F4A7C15) >> 20
        while True:
            i &= self.mask
            if self.table[i].obj == obj or self.table[i].obj == NULL:
                return &self.table[i]
            i += 1

    cdef Entry *enter(self, PyObject *obj, Py_ssize_t index) except NULL:
        """Add an object that is not in the table."""
        cdef Entry *old
        cdef Entry *entry
        cdef size_t i, size
        if self.used * 3 > self.mask * 2:
            size, old = self.mask + 1, self.table
            entry = <Entry *>PyMem_Calloc(size * 4, sizeof(Entry))
            if entry == NULL:
                raise MemoryError()
            self.table, self.mask = entry, size * 4 - 1
            for i in range(size):
                if old[i].obj != NULL:
                    self.slot(old[i].obj)[0] = old[i]
            PyMem_Free(old)
        entry = self.slot(obj)
        Py_INCREF(<object>obj)
        entry.obj, entry.index = obj, index
        self.used += 1
        return entry

    cdef int memoize(self, PyObject *obj, Frame frame) except -1:
        """Assign the next memo index to an object; later visits count as references."""
        cdef Entry *entry = self.slot(obj)
        if entry.obj == NULL:
            self.enter(obj, self.memo_size)
        elif entry.index < 0:
            entry.index = self.memo_size
        else:
            return 0
        self.memo_size += 1
        frame.inband += 1
        return 0

    # ---- values without inner structure ------------------------------------------------------

    cdef bint leaf(self, PyObject *obj, Frame frame) except -1:
        """If an object has no parts to walk, count it and return True; return False for other objects."""
        cdef PyTypeObject *cls = Py_TYPE(<object>obj)
        cdef long long value
        cdef int overflow = 0
        cdef Py_ssize_t n
        cdef Entry *entry
        if cls == &PyLong_Type:
            value = PyLong_AsLongLongAndOverflow(<object>obj, &overflow)
            if overflow:
                n = (<object>obj).bit_length() // 8 + 1
                frame.inband += n + (2 if n < 256 else 5)
            elif 0 <= value <= 0xFFFF:
                frame.inband += 2 if value <= 0xFF else 3
            elif -0x80000000 <= value <= 0x7FFFFFFF:
                frame.inband += 5
            else:
                n = 4
                while n < 8 and not (-(<long long>1 << (8 * n - 1)) <= value < (<long long>1 << (8 * n - 1))):
                    n += 1
                frame.inband += n + 2
            return True
        if cls == &PyFloat_Type:
            frame.inband += 9
            return True
        if <object>obj is None or cls == &PyBool_Type:
            frame.inband += 1
            return True
        entry = self.slot(obj)
        if entry.obj != NULL and entry.index >= 0:
            frame.inband += 2 if entry.index < 256 else 5
            return True
        if cls == &PyUnicode_Type:
            n = prs_utf8_length(obj)
            self.enter(obj, self.memo_size)
            self.memo_size += 1
            n += length_prefix(n) + 1
            frame.inband += n
            if n >= self.keep:
                self.add(frame, self.leaf_node(obj, n, 0, 0))
            return True
        if cls == &PyBytes_Type or cls == &PyByteArray_Type:
            n = len(<object>obj)
            self.enter(obj, self.memo_size)
            self.memo_size += 1
            if 0 <= self.threshold <= n:
                frame.copied += n
                frame.inband += 12
                self.add(frame, self.leaf_node(obj, 12, 0, n))
                return True
            n += (length_prefix(n) if cls == &PyBytes_Type else 9) + 1
            frame.inband += n
            if n >= self.keep:
                self.add(frame, self.leaf_node(obj, n, 0, 0))
            return True
        if cls == &PyTuple_Type and PyTuple_GET_SIZE(<object>obj) == 0:
            frame.inband += 1
            return True
        if <object>obj is Ellipsis or <object>obj is NotImplemented:
            frame.inband += 13 if <object>obj is Ellipsis else 19
            return True
        return False

    # ---- nodes -----------------------------------------------------------------------------

    cdef Node leaf_node(self, PyObject *obj, long long inband, long long zero_copy, long long copied):
        cdef Node node = Node.__new__(Node)
        node.obj = <object>obj
        node.inband, node.zero_copy, node.copied = inband, zero_copy, copied
        return node

    cdef int add(self, Frame frame, Node node) except -1:
        """Add a node to the frame at its current step; if there are many nodes, merge the small ones."""
        node.step = self.step(frame)
        if frame.children is None:
            frame.children = []
        frame.children.append(node)
        if len(frame.children) > 256:
            frame.children.sort(key=total_of, reverse=True)
            for small in frame.children[128:]:
                frame.others += 1
                frame.others_bytes += (<Node>small).total
            del frame.children[128:]
        return 0

    cdef Node node_of(self, Frame frame):
        cdef Node node = self.leaf_node(<PyObject *>frame.obj, frame.inband, frame.zero_copy, frame.copied)
        node.referenced = frame.referenced
        if frame.children is not None:
            frame.children.sort(key=total_of, reverse=True)
        node.children = frame.children
        node.others, node.others_bytes = frame.others, frame.others_bytes
        return node

    cdef tuple step(self, Frame frame):
        """Return the position of a frame: ``(object, kind of step, key, child)``."""
        cdef object kind, key = frame.key
        if frame.kind == LIST or frame.kind == TUPLE:
            kind, key = "item", frame.position - 1
        elif frame.kind == DICT:
            kind = "key" if frame.of_key else "value"
        elif frame.kind == SET:
            kind = "element"
        elif frame.part == LIST_ITEMS:
            kind, key = "listitem", frame.position - 1
        elif frame.part == DICT_ITEMS:
            kind = "dictkey" if frame.of_key else "dictvalue"
        else:
            kind = ("callable", "args", "kwargs", None, None, None, "setter", "state")[frame.part]
            key = None
        return frame.obj, kind, key, frame.child

    cdef int fail(self, obj, error) except -1:
        cdef list stack
        cdef Py_ssize_t skipped
        self.failures += 1
        if self.failures <= self.max_failures:
            # `obj` is the child of the last frame; fail_frame removes the frame of `obj` itself first.
            stack = self.stack
            skipped = max(len(stack) - 2 * self.half, 0)
            if skipped:
                stack = stack[:self.half] + stack[len(stack) - self.half:]
            self.on_failure([self.step(<Frame>frame) for frame in stack], skipped, obj, error)
        return 0

    cdef int fail_frame(self, Frame frame, error) except -1:
        """Report the object of the top frame, because its walk failed."""
        self.stack.pop()
        try:
            self.fail(frame.obj, error)
        finally:
            self.stack.append(frame)
        return 0

    # ---- the walk --------------------------------------------------------------------------

    def walk(self, obj):
        """Walk all objects below `obj` and return the root Node. A Walker can be used only once."""
        cdef Frame frame = Frame.__new__(Frame)
        cdef Frame top
        if self.table == NULL or self.root is not None:
            raise RuntimeError("a Walker walks once")
        try:
            # The outermost frame is not on the stack; it only sums up the sizes.
            frame.obj = None
            frame.kind = TUPLE
            if not self.leaf(<PyObject *>obj, frame):
                self.descend(obj, frame)
            while self.stack:
                top = <Frame>self.stack[len(self.stack) - 1]
                if self.advance(top):
                    self.descend(top.child, top)
                else:
                    self.leave(top, frame)
            frame.obj = obj
            if frame.children is not None and len(frame.children) == 1:
                self.root = frame.children[0]
            else:
                self.root = self.node_of(frame)
        finally:
            self.stack = []
            self.forget()
        return self.root

    cdef int leave(self, Frame frame, Frame outermost) except -1:
        cdef Frame above
        self.stack.pop()
        if frame.kind == TUPLE:
            self.memoize(<PyObject *>frame.obj, frame)
        elif frame.kind == REDUCE and frame.foreign:
            self.foreign_depth -= 1
        above = <Frame>self.stack[len(self.stack) - 1] if self.stack else outermost
        above.inband += frame.inband
        above.zero_copy += frame.zero_copy
        above.copied += frame.copied
        above.referenced += frame.referenced
        if above is outermost or frame.inband + frame.zero_copy + frame.copied + frame.referenced >= self.keep:
            self.add(above, self.node_of(frame))
        return 0

    cdef bint advance(self, Frame frame) except -1:
        """Advance to the next child that must be walked; return False if there is none."""
        cdef PyObject *item
        cdef object keep
        if frame.kind == LIST:
            while frame.position < PyList_GET_SIZE(frame.obj):
                keep = <object>PyList_GET_ITEM(frame.obj, frame.position)
                frame.position += 1
                if not self.leaf(<PyObject *>keep, frame):
                    frame.child = keep
                    return True
            return False
        if frame.kind == TUPLE:
            while frame.position < frame.size:
                item = <PyObject *>PyTuple_GET_ITEM(frame.obj, frame.position)
                frame.position += 1
                if not self.leaf(item, frame):
                    frame.child = <object>item
                    return True
            return False
        if frame.kind == DICT:
            return self.advance_dict(frame)
        if frame.kind == SET:
            return self.advance_items(frame)
        return self.advance_reduction(frame)

    cdef bint advance_dict(self, Frame frame) except -1:
        cdef PyObject *key
        cdef PyObject *value
        cdef object pending
        if frame.pending is not None:
            pending = (<tuple>frame.pending)[0]
            frame.pending = None
            frame.of_key = False
            if not self.leaf(<PyObject *>pending, frame):
                frame.child = pending
                return True
        while len(<dict>frame.obj) == frame.size:
            if not PyDict_Next(frame.obj, &frame.position, &key, &value):
                return False
            frame.key = <object>key
            pending = <object>value
            frame.of_key = True
            if not self.leaf(key, frame):
                frame.pending = (pending,)
                frame.child = frame.key
                return True
            frame.of_key = False
            if not self.leaf(<PyObject *>pending, frame):
                frame.child = pending
                return True
        self.fail_frame(frame, RuntimeError("dictionary changed size during iteration"))
        return False

    cdef bint advance_items(self, Frame frame) except -1:
        """Advance to the next element of a set, or of the list items of a reduction."""
        while True:
            try:
                frame.child = next(frame.iterator)
            except StopIteration:
                return False
            except Exception as error:
                self.fail_frame(frame, error)
                return False
            frame.position += 1
            if not self.leaf(<PyObject *>frame.child, frame):
                return True

    cdef bint advance_pairs(self, Frame frame) except -1:
        """Advance to the next pair of the dict items of a reduction."""
        cdef object pair
        while True:
            if frame.pending is not None:
                frame.child = (<tuple>frame.pending)[0]
                frame.pending = None
                frame.of_key = False
            else:
                try:
                    pair = next(frame.iterator)
                    if type(pair) is not tuple or len(<tuple>pair) != 2:
                        raise TypeError("dict items iterator must return 2-tuples")
                except StopIteration:
                    return False
                except Exception as error:
                    self.fail_frame(frame, error)
                    return False
                frame.key = (<tuple>pair)[0]
                frame.pending = ((<tuple>pair)[1],)
                frame.of_key = True
                frame.child = frame.key
            if not self.leaf(<PyObject *>frame.child, frame):
                return True

    cdef bint advance_reduction(self, Frame frame) except -1:
        cdef list parts = frame.parts
        cdef object part
        while True:
            if frame.iterator is not None:
                if frame.part == LIST_ITEMS:
                    if self.advance_items(frame):
                        return True
                elif self.advance_pairs(frame):
                    return True
                frame.iterator = None
            frame.part += 1
            if frame.part >= FINISHED:
                frame.parts = None
                return False
            if frame.part == MEMOIZE:
                self.memoize(<PyObject *>frame.obj, frame)
                continue
            part = parts[frame.part]
            if part is None:
                continue
            parts[frame.part] = None
            if frame.part >= LIST_ITEMS:
                frame.inband += 1
            if frame.part == LIST_ITEMS or frame.part == DICT_ITEMS:
                frame.iterator = part
                frame.position = 0
                frame.inband += 1
                continue
            if not self.leaf(<PyObject *>part, frame):
                frame.child = part
                return True

    cdef int descend(self, obj, Frame parent) except -1:
        """Push a frame for an object for which `leaf` returned False."""
        cdef PyTypeObject *cls = Py_TYPE(obj)
        cdef Frame frame = Frame.__new__(Frame)
        cdef Entry *entry
        frame.obj = obj
        self.visited += 1
        if cls == &PyList_Type:
            frame.kind = LIST
            frame.size = PyList_GET_SIZE(obj)
            self.memoize(<PyObject *>obj, frame)
            frame.inband += 1 + batches(frame.size)
        elif cls == &PyDict_Type:
            frame.kind = DICT
            frame.size = len(<dict>obj)
            self.memoize(<PyObject *>obj, frame)
            frame.inband += 1 + batches(frame.size)
        elif cls == &PyTuple_Type:
            frame.kind = TUPLE
            frame.size = PyTuple_GET_SIZE(obj)
            frame.inband += 1 if frame.size <= 3 else 2
            entry = self.slot(<PyObject *>obj)
            if entry.obj != NULL:
                # This tuple contains itself through a memoized object, so we count the inner visit as a reference.
                parent.inband += 2
                return 0
            self.enter(<PyObject *>obj, -1)
        elif cls == &PySet_Type or cls == &PyFrozenSet_Type:
            frame.kind = SET
            frame.iterator = iter(obj)
            self.memoize(<PyObject *>obj, frame)
            frame.inband += 2 if cls == &PyFrozenSet_Type else 1 + 2 * ((len(obj) + 999) // 1000)
        elif type(obj) is PickleBuffer:
            self.buffer(obj, parent)
            return 0
        else:
            return self.descend_reduction(obj, frame, parent)
        self.stack.append(frame)
        return 0

    cdef int descend_reduction(self, obj, Frame frame, Frame parent) except -1:
        cdef object value, name = None, cls = type(obj), kind
        cdef Py_ssize_t n
        cdef Entry *entry = self.slot(<PyObject *>obj)
        if entry.obj == NULL:
            self.enter(<PyObject *>obj, -1)
        else:
            entry.index -= 1
            if entry.index < -SELF_NESTING:
                entry.index = self.memo_size
                self.fail(obj, RecursionError("its reduction contains the object itself, without end"))
                return 0
        try:
            kind = self.classes.get(cls)
            if kind is None:
                kind = self.classes[cls] = self.classify(cls)
            if kind is PLAIN:
                value = obj.__reduce_ex__(5)
                if type(value) is str:
                    value, name = self.reduce(obj)
            else:
                value, name = self.reduce(obj)
                if self.foreign_depth >= REDUCTION_DEPTH:
                    raise RecursionError("deep recursion: reductions nest without end")
            if type(value) is str:
                # The object is pickled by reference, as module and name, each a memoized string.
                n = prs_utf8_length(<PyObject *>name[0]) + prs_utf8_length(<PyObject *>name[1]) + 8
                parent.inband += n
                self.memoize(<PyObject *>obj, parent)
                return 0
            frame.parts = self.parts_of(obj, value, kind is PLAIN)
            frame.copying = type(frame.parts[0]) is FunctionType and frame.parts[0] in self.copying
        except Exception as error:
            self.slot(<PyObject *>obj).index = self.memo_size
            self.memo_size += 1
            self.fail(obj, error)
            return 0
        frame.kind = REDUCE
        frame.part = -1
        frame.inband += 1
        if kind is not PLAIN:
            frame.foreign = True
            self.foreign_depth += 1
        self.stack.append(frame)
        return 0

    cdef list parts_of(self, obj, value, bint plain):
        """Check a reduction as a pickler does, and return its parts in the order of saving."""
        cdef Py_ssize_t n
        cdef tuple reduced
        cdef object function, args, kwargs = None, function_name
        if type(value) is not tuple:
            raise PicklingError("__reduce__ must return a string or tuple")
        reduced = value
        n = len(reduced)
        if n < 2 or n > 6:
            raise PicklingError("tuple returned by __reduce__ must contain 2 through 6 elements")
        function, args = reduced[0], reduced[1]
        if not PyCallable_Check(function):
            raise PicklingError("first item of the tuple returned by __reduce__ must be callable")
        if type(args) is not tuple:
            raise PicklingError("second item of the tuple returned by __reduce__ must be a tuple")
        if n > 3 and reduced[3] is not None and not PyIter_Check(reduced[3]):
            raise PicklingError("fourth element of the tuple returned by __reduce__ must be an iterator")
        if n > 4 and reduced[4] is not None and not PyIter_Check(reduced[4]):
            raise PicklingError("fifth element of the tuple returned by __reduce__ must be an iterator")
        if n > 5 and reduced[5] is not None and not PyCallable_Check(reduced[5]):
            raise PicklingError("sixth element of the tuple returned by __reduce__ must be a function")
        function_name = getattr(function, "__name__", None)
        if function_name == "__newobj__":
            if not args or not hasattr(args[0], "__new__"):
                raise PicklingError("args[0] from __newobj__ args has no __new__")
            if not plain and getattr(obj, "__class__", type(obj)) is not args[0]:
                # This part has the wrong class, but we continue, because its own parts may fail as well.
                self.fail(obj, PicklingError("args[0] from __newobj__ args has the wrong class"))
            function, args = args[0], args[1:]
        elif function_name == "__newobj_ex__":
            if len(<tuple>args) != 3:
                raise PicklingError("length of the NEWOBJ_EX argument tuple must be exactly 3")
            function, args, kwargs = <tuple>args
        return [
            function, args, kwargs, None,
            reduced[3] if n > 3 else None,
            reduced[4] if n > 4 else None,
            reduced[5] if n > 5 else None,
            reduced[2] if n > 2 else None,
        ]

    cdef int buffer(self, obj, Frame parent) except -1:
        """Count a PickleBuffer, which is out-of-band if it is large enough."""
        cdef Py_buffer view
        cdef Py_ssize_t n, new
        cdef bint contiguous, copying
        cdef object key
        cdef Node node
        try:
            PyObject_GetBuffer(obj, &view, PyBUF_FULL_RO)
        except Exception as error:
            self.fail(obj, error)
            return 0
        n = view.len
        contiguous = PyBuffer_IsContiguous(&view, b"A")
        key = (<uintptr_t>view.buf, n)
        PyBuffer_Release(&view)
        if not contiguous:
            self.fail(obj, PicklingError(
                "PickleBuffer can not be pickled when pointing to a non-contiguous buffer"))
            return 0
        if n < self.threshold:
            parent.inband += n + length_prefix(n) + 1
            return 0
        parent.inband += 2
        if key in self.ranges:
            return 0
        self.ranges[key] = obj          # keep the buffer alive, so that no other one gets its address
        # The top frame belongs to the argument tuple; the frame of the reduction is below it.
        copying = len(self.stack) > 1 and (<Frame>self.stack[len(self.stack) - 2]).copying
        node = self.leaf_node(<PyObject *>obj, 2, 0, 0)
        if self.refers is not None and self.refers(key[0], n):
            node.referenced = n
            parent.referenced += n
            self.add(parent, node)
            return 0
        # Bytes that several buffers share are stored once, so they count only for the first buffer.
        new = self.cover(key[0], key[0] + n)
        if new == 0:
            return 0
        if copying:
            node.copied = new
            parent.copied += new
        else:
            node.zero_copy = new
            parent.zero_copy += new
        self.add(parent, node)
        return 0

    cdef Py_ssize_t cover(self, start, stop) except -1:
        """Add the addresses from `start` to `stop`; return how many of them no earlier buffer covers."""
        cdef Py_ssize_t first = bisect_left(self.stops, start), last = bisect_right(self.starts, stop), i
        cdef Py_ssize_t known = 0
        for i in range(first, last):
            known += max(min(self.stops[i], stop) - max(self.starts[i], start), 0)
        cdef Py_ssize_t new = stop - start - known
        if first < last:
            start, stop = min(start, self.starts[first]), max(stop, self.stops[last - 1])
        self.starts[first:last] = [start]
        self.stops[first:last] = [stop]
        return new


cdef Py_ssize_t batches(Py_ssize_t n) noexcept:
    """Return how many opcodes surround n items: one MARK and one APPENDS or SETITEMS per thousand items."""
    return 0 if n == 0 else 1 if n == 1 else 2 * ((n + 999) // 1000)


def total_of(Node node):
    """Return the sort key of a node."""
    return node.inband + node.zero_copy + node.copied + node.referenced
