"""A slow pickler in pure Python that writes the same streams and can be stepped through in a debugger.

If ``PYRAY_SER_PICKLE_VERBOSE_DEBUG`` is set to ``1`` or ``2`` before pyray_ser is imported (Ray's
``RAY_PICKLE_VERBOSE_DEBUG`` also works), the package uses this pickler for everything. It then logs each step to the
logger ``pyray_ser.pickle``:

* 1: log each object that has a reducer, with its path, its type, and the rule that applied;
* 2: log all objects.

`Pickler.save` calls itself for each level of the data, so the call stack in a debugger shows the path to the current
object. Calls between Python functions use no C stack, so the recursion of this pickler does not count towards the
thread's recursion limit. The limit still applies to the user code that the pickler calls.

Reducers are tried in the order of `reducer_order.Reduction`. This pickler groups items into the same batches as the
compiled picklers, so both streams are equal after ``pickletools.optimize`` has removed unused memo entries.
"""

import io
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from itertools import islice
from types import FunctionType
from typing import Any

from .. import reconstruct
from .._pickle import _allow_calls
from ..exceptions import DeepRecursionError, SerializationError
from ..pickling.reducer_order import NO_RULE, Reduction, plain_reduce_ex
from .path import describe, path_text
from .text import brief, class_name
from .tracing import way_to_failure

__all__ = ["Pickler", "Written", "dump", "dumps", "install", "level"]

_BATCH = 1000
# The minimum size of data that `put` stores outside of the stream.
_THRESHOLD = 1024
# The maximum number of stack frames of this module; each level of a list needs three.
_FRAMES = 1_200_000
# User-defined reducers that recurse deeper than this count as infinite recursion; containers and plain instances do
# not.
_REDUCTIONS = 20_000

# The type stubs of pickle do not contain this private class.
_StandardPickler: Any = pickle._Pickler

_logger = logging.getLogger("pyray_ser.pickle")


def level() -> int:
    """Return the level in the environment variable: 0 (the compiled pickler), 1 or 2."""
    for name in ("PYRAY_SER_PICKLE_VERBOSE_DEBUG", "RAY_PICKLE_VERBOSE_DEBUG"):
        text = os.environ.get(name, "").strip()
        if text:
            try:
                return min(max(int(text), 0), 2)
            except ValueError:
                raise ValueError(f"{name} must be 0, 1 or 2, not {text!r}") from None
    return 0


def _log_to_stderr() -> None:
    """Make the log visible in a program that has not configured logging."""
    _logger.setLevel(logging.DEBUG)
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        _logger.addHandler(handler)


class Pickler(_StandardPickler):  # type: ignore[misc]
    """A Python implementation of the interface of `pickle.Pickler`.

    The standard library's Python pickler writes atoms, strings, globals and frames. This class
    writes containers and reductions itself, because it must know the path to each object.

    Parameters
    ----------
    file : file
        Something with ``write``.
    protocol : int, optional
        0 to 5; None means 5.
    fix_imports : bool, optional
        For protocols below 3, write the module names of Python 2.
    buffer_callback : callable, optional
        Takes buffers out of the stream (PEP 574).
    put : bool, optional
        Use the reducers of `pickling.reducers`, as `put` does.
    log_level : int, optional
        0, 1 or 2; the default is the level of the environment variable.
    """

    def __init__(
        self,
        file: Any,
        protocol: int | None = None,
        *,
        fix_imports: bool = True,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
        put: bool = False,
        log_level: int | None = None,
    ) -> None:
        protocol = 5 if protocol is None else protocol
        super().__init__(file, protocol, fix_imports=fix_imports, buffer_callback=buffer_callback)
        self._put = put
        self._log_level = level() if log_level is None else log_level
        self._steps: list[tuple[Any, str, Any, Any]] = []
        self._reduction: Reduction | None = None
        self._no_persistent_id = False
        self._nested = 0
        self._calls = 0
        if self._log_level:
            _log_to_stderr()

    def dump(self, obj: Any) -> None:
        """Write the pickled form of an object to the file."""
        if not hasattr(self, "_steps"):
            raise pickle.PicklingError(f"Pickler.__init__() was not called by {type(self).__name__}.__init__()")
        self._steps = []
        self._nested = 0
        self._reduction = Reduction(
            getattr(self, "reducer_override", NO_RULE),
            getattr(self, "dispatch_table", NO_RULE),
            protocol=self.proto,
            buffers=self._put,
        )
        self._no_persistent_id = getattr(self.persistent_id, "__func__", None) is _StandardPickler.persistent_id
        limit = sys.getrecursionlimit()
        self._calls = _allow_calls(_FRAMES)
        try:
            super().dump(obj)
        except RecursionError as error:
            raise DeepRecursionError(path=self._path(tail=5)) from error
        except Exception as error:
            path = way_to_failure(self._steps)
            if path:
                error.add_note(f"at {path} of the object being pickled")
            raise
        finally:
            # User code or another thread may have changed the limit meanwhile.
            _allow_calls(self._calls + sys.getrecursionlimit() - limit)
            self._steps = []
            self._reduction = None

    # ---- one object --------------------------------------------------------------------------

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Write one object and its content."""
        self.framer.commit_frame()
        if save_persistent_id:
            pid = None if self._no_persistent_id else self._foreign(self.persistent_id, obj)
            if pid is not None:
                self._log(1, obj, "persistent_id")
                self.save_pers(pid)
                return
        known = self.memo.get(id(obj))
        if known is not None:
            self._log(2, obj, f"memo {known[0]}")
            self.write(self.get(known[0]))
            return
        cls = type(obj)
        write = _CONTAINERS.get(cls) or _ATOMS.get(cls)
        if self._put and (cls is bytes or cls is bytearray) and len(obj) >= _THRESHOLD:
            self._log(2, obj, "out-of-band")
            self._save_reduction(obj, (cls, (pickle.PickleBuffer(obj),)))
            return
        if write is not None:
            self._log(2, obj, "built-in")
            write(self, obj)
            return
        if self._reduction is None:
            raise RuntimeError("Pickler.save works inside dump only")
        rule, value = self._foreign(self._reduction, obj)
        self._log(1, obj, rule)
        if type(value) is str:
            self.save_global(obj, value)
        elif type(value) is tuple:
            nests = rule != "__reduce_ex__" or not plain_reduce_ex(cls)
            self._nested += nests
            if self._nested > _REDUCTIONS:
                raise RecursionError("reductions nest without end")
            self._save_reduction(obj, value)
            self._nested -= nests
        else:
            raise pickle.PicklingError("__reduce__ must return a string or tuple")

    def _save_child(self, holder: Any, kind: str, key: Any, child: Any) -> None:
        self._steps.append((holder, kind, key, child))
        self.save(child)
        self._steps.pop()

    def _foreign(self, function: Callable[[Any], Any], obj: Any) -> Any:
        """Call user code, with the same recursion depth available as in the caller of `dump`."""
        calls = _allow_calls(self._calls)
        try:
            return function(obj)
        finally:
            _allow_calls(calls)

    # ---- containers --------------------------------------------------------------------------

    def _save_list(self, obj: list[Any]) -> None:
        self.write(pickle.EMPTY_LIST if self.bin else pickle.MARK + pickle.LIST)
        self.memoize(obj)
        if not self.bin or len(obj) == 1:
            self._each(self._list_item, obj, enumerate(obj), pickle.APPEND)
            return
        for start in range(0, len(obj), _BATCH):
            self.write(pickle.MARK)
            for index in range(start, min(start + _BATCH, len(obj))):
                self._save_child(obj, "item", index, obj[index])
            self.write(pickle.APPENDS)

    def _save_tuple(self, obj: tuple[Any, ...]) -> None:
        if not obj:
            self.write(pickle.EMPTY_TUPLE if self.bin else pickle.MARK + pickle.TUPLE)
            return
        short = len(obj) <= 3 and self.proto >= 2
        if not short:
            self.write(pickle.MARK)
        for index, item in enumerate(obj):
            self._save_child(obj, "item", index, item)
        known = self.memo.get(id(obj))
        if known is not None:
            # The tuple contains itself through a mutable object, so writing its items has already written the tuple.
            if short:
                self.write(pickle.POP * len(obj))
            else:
                self.write(pickle.POP_MARK if self.bin else pickle.POP * (len(obj) + 1))
            self.write(self.get(known[0]))
            return
        self.write((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)[len(obj) - 1] if short else pickle.TUPLE)
        self.memoize(obj)

    def _save_dict(self, obj: dict[Any, Any]) -> None:
        self.write(pickle.EMPTY_DICT if self.bin else pickle.MARK + pickle.DICT)
        self.memoize(obj)
        if not obj:
            return
        if not self.bin or len(obj) == 1:
            self._each(self._dict_item, obj, iter(obj.items()), pickle.SETITEM)
        else:
            self._in_full_batches(self._dict_item, obj, iter(obj.items()), pickle.SETITEMS)

    def _save_set(self, obj: set[Any]) -> None:
        if self.proto < 4:
            self._save_reduction(obj, (set, (list(obj),)))
            return
        self.write(pickle.EMPTY_SET)
        self.memoize(obj)
        if obj:
            self._in_full_batches(self._element, obj, iter(obj), pickle.ADDITEMS)

    def _save_frozenset(self, obj: frozenset[Any]) -> None:
        if self.proto < 4:
            self._save_reduction(obj, (frozenset, (list(obj),)))
            return
        self.write(pickle.MARK)
        for item in obj:
            self._element(obj, item)
        known = self.memo.get(id(obj))
        if known is not None:
            self.write(pickle.POP_MARK + self.get(known[0]))
            return
        self.write(pickle.FROZENSET)
        self.memoize(obj)

    def _save_picklebuffer(self, obj: pickle.PickleBuffer) -> None:
        if self.proto < 5:
            raise pickle.PicklingError("PickleBuffer can only be pickled with protocol >= 5")
        with obj.raw() as view:
            if not view.contiguous:
                raise pickle.PicklingError("PickleBuffer can not be pickled when pointing to a non-contiguous buffer")
            callback = self._buffer_callback
            if callback is not None and not self._foreign(callback, obj):
                self.write(pickle.NEXT_BUFFER + (pickle.READONLY_BUFFER if view.readonly else b""))
                return
            data = view.tobytes()
            if not view.readonly:
                header = pickle.BYTEARRAY8 + len(data).to_bytes(8, "little")
            elif len(data) <= 0xFF:
                header = pickle.SHORT_BINBYTES + len(data).to_bytes(1, "little")
            elif len(data) <= 0xFFFFFFFF:
                header = pickle.BINBYTES + len(data).to_bytes(4, "little")
            else:
                header = pickle.BINBYTES8 + len(data).to_bytes(8, "little")
            if len(data) < self.framer._FRAME_SIZE_TARGET:
                self.write(header + data)
            else:
                self._write_large_bytes(header, data)
            # Check the memo, as the compiled picklers do, because it may already contain equal bytes.
            self.memoize(obj)

    def _list_item(self, holder: Any, item: tuple[int, Any]) -> None:
        self._save_child(holder, "item" if type(holder) is list else "listitem", item[0], item[1])

    def _dict_item(self, holder: Any, item: tuple[Any, Any]) -> None:
        exact = type(holder) is dict
        self._save_child(holder, "key" if exact else "dictkey", item[0], item[0])
        self._save_child(holder, "value" if exact else "dictvalue", item[0], item[1])

    def _element(self, holder: Any, item: Any) -> None:
        self._save_child(holder, "element", None, item)

    def _each(self, save: Callable[[Any, Any], None], holder: Any, items: Iterable[Any], opcode: bytes) -> None:
        for item in items:
            save(holder, item)
            self.write(opcode)

    def _in_full_batches(
        self, save: Callable[[Any, Any], None], holder: Any, items: Iterator[Any], opcode: bytes
    ) -> None:
        # Write another batch after each full one, even an empty batch, because the compiled pickler does not look
        # ahead.
        count = _BATCH
        while count == _BATCH:
            self.write(pickle.MARK)
            count = 0
            for count, item in enumerate(islice(items, _BATCH), 1):  # noqa: B007
                save(holder, item)
            self.write(opcode)

    def _in_batches(
        self, save: Callable[[Any, Any], None], holder: Any, items: Iterator[Any], one: bytes, many: bytes
    ) -> None:
        """Write the items of a reduction; a batch of one item has no mark."""
        if not self.bin:
            self._each(save, holder, items, one)
            return
        while batch := self._foreign(list, islice(items, _BATCH)):
            if len(batch) == 1:
                self._each(save, holder, batch, one)
            else:
                self.write(pickle.MARK)
                for item in batch:
                    save(holder, item)
                self.write(many)
            if len(batch) < _BATCH:
                return

    # ---- reductions --------------------------------------------------------------------------

    def _save_reduction(self, obj: Any, value: tuple[Any, ...]) -> None:
        if not 2 <= len(value) <= 6:
            raise pickle.PicklingError("tuple returned by __reduce__ must contain 2 through 6 elements")
        function, args, state, listitems, dictitems, setter = (*value, None, None, None, None)[:6]
        if not callable(function):
            raise pickle.PicklingError("first item of the tuple returned by __reduce__ must be callable")
        if type(args) is not tuple:
            raise pickle.PicklingError("second item of the tuple returned by __reduce__ must be a tuple")
        for position, items in (("fourth", listitems), ("fifth", dictitems)):
            if items is not None and not hasattr(items, "__next__"):
                raise pickle.PicklingError(
                    f"{position} element of the tuple returned by __reduce__ must be an iterator, "
                    f"not {type(items).__name__}"
                )
        if setter is not None and not callable(setter):
            raise pickle.PicklingError("sixth element of the tuple returned by __reduce__ must be a function")
        self._save_call(obj, function, args)
        known = self.memo.get(id(obj))
        if known is not None:
            # The arguments refer to the object, so writing them has already written the whole object. The compiled
            # picklers stop here, too.
            self.write(pickle.POP + self.get(known[0]))
            return
        self.memoize(obj)
        if listitems is not None:
            self._in_batches(self._list_item, obj, enumerate(listitems), pickle.APPEND, pickle.APPENDS)
        if dictitems is not None:
            self._in_batches(self._dict_item, obj, dictitems, pickle.SETITEM, pickle.SETITEMS)
        if state is None:
            return
        if setter is None:
            self._save_child(obj, "state", None, state)
            self.write(pickle.BUILD)
        else:
            self._save_child(obj, "setter", None, setter)
            self.save(obj)
            self._save_child(obj, "state", None, state)
            self.write(pickle.TUPLE2 + pickle.REDUCE + pickle.POP)

    def _save_call(self, obj: Any, function: Any, args: tuple[Any, ...]) -> None:
        """Write the call that makes the object, without its state; pickle has special opcodes for ``cls.__new__``."""
        name = getattr(function, "__name__", "") if self.proto >= 2 else ""
        if name == "__newobj_ex__":
            cls, args, kwargs = args
            self._check_class(obj, cls, name)
            if self.proto >= 4:
                self._save_child(obj, "callable", None, cls)
                self._save_child(obj, "args", None, args)
                self._save_child(obj, "kwargs", None, kwargs)
                self.write(pickle.NEWOBJ_EX)
                return
            function, args = partial(cls.__new__, cls, *args, **kwargs), ()
        elif name == "__newobj__":
            cls = args[0]
            self._check_class(obj, cls, name)
            self._save_child(obj, "callable", None, cls)
            self._save_child(obj, "args", None, args[1:])
            self.write(pickle.NEWOBJ)
            return
        self._save_child(obj, "callable", None, function)
        self._save_child(obj, "args", None, args)
        self.write(pickle.REDUCE)

    @staticmethod
    def _check_class(obj: Any, cls: Any, name: str) -> None:
        if not hasattr(cls, "__new__"):
            raise pickle.PicklingError(f"args[0] from {name} args has no __new__")
        if obj is not None and cls is not obj.__class__:
            raise pickle.PicklingError(f"args[0] from {name} args has the wrong class")

    # ---- where we are ------------------------------------------------------------------------

    def _path(self, tail: int = 100) -> str:
        """Return the path to the current object; leave out the middle of a very long path."""
        if len(self._steps) <= 2 * tail:
            return path_text(describe(self._steps))
        return f"{path_text(describe(self._steps[:tail]))} ... {path_text(describe(self._steps[-tail:]))}"

    def _log(self, least: int, obj: Any, rule: str) -> None:
        if self._log_level >= least:
            _logger.debug("%s %s: %s %s", self._path() or "(root)", class_name(type(obj)), rule, brief(obj, 60))


_CONTAINERS: dict[type, Callable[[Pickler, Any], None]] = {
    list: Pickler._save_list,
    tuple: Pickler._save_tuple,
    dict: Pickler._save_dict,
    set: Pickler._save_set,
    frozenset: Pickler._save_frozenset,
    pickle.PickleBuffer: Pickler._save_picklebuffer,
}
_ATOMS: dict[type, Callable[[Pickler, Any], None]] = {
    cls: function for cls, function in _StandardPickler.dispatch.items() if cls not in (FunctionType, type)
}


def dump(
    obj: Any,
    file: Any,
    protocol: int | None = None,
    *,
    fix_imports: bool = True,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
) -> None:
    """Write the pickled form of an object to a file, as `pickle.dump`."""
    Pickler(file, protocol, fix_imports=fix_imports, buffer_callback=buffer_callback).dump(obj)


def dumps(
    obj: Any,
    protocol: int | None = None,
    *,
    fix_imports: bool = True,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
) -> bytes:
    """Return the pickled form of an object, as `pickle.dumps`."""
    file = io.BytesIO()
    Pickler(file, protocol, fix_imports=fix_imports, buffer_callback=buffer_callback).dump(obj)
    return file.getvalue()


# ---- in place of the compiled pickler ------------------------------------------------------------


class Written:
    """A value that this pickler writes while the compiled pickler runs.

    When `put` stores this object, it stores the stream of this pickler and its buffers, and `get` returns the value.
    Because this pickler runs inside the compiled one, the store registers the references in the value.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        file, buffers = io.BytesIO(), []

        def take(buffer: pickle.PickleBuffer) -> bool:
            small = buffer.raw().nbytes < _THRESHOLD
            if not small:
                buffers.append(buffer)
            return small

        Pickler(file, buffer_callback=take, put=True).dump(self.value)
        # Pass the data as a buffer. The pickler would write a long `bytes` object as a call of `bytes`, which safe mode
        # would have to allow.
        return reconstruct.load_stream, (pickle.PickleBuffer(file.getvalue()), *buffers)


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that takes the value to write as its first argument."""

    @wraps(function)
    def wrapper(value: Any, *args: Any, **kwargs: Any) -> Any:
        from .._core import ObjectRef
        from . import serialization_error

        if isinstance(value, ObjectRef):
            return function(value, *args, **kwargs)
        try:
            return function(Written(value), *args, **kwargs)
        except SerializationError as error:
            cause = error.__cause__ or error
            raise serialization_error(value, cause) from cause

    return wrapper


def install() -> None:
    """Make the package use this pickler for everything; called at import if the environment variable is set."""
    package = sys.modules[__package__.partition(".")[0]]
    from .. import api
    from ..pickling import serialization

    replacements = {"Pickler": Pickler, "dump": dump, "dumps": dumps}
    for name, module in (("put", api), ("serialize", serialization), ("dumps_frames", serialization)):
        replacements[name] = _writing(getattr(module, name))
    for name, function in replacements.items():
        for module in (package, api, serialization):
            # Do not use hasattr: the package imports some names lazily, and these must be replaced, too.
            if name in getattr(module, "__all__", ()):
                setattr(module, name, function)
