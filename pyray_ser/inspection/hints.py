"""Hints for types that are known to fail.

This module finds types by name along the MRO, and so imports no package. The second column tells whether an instance
is a single resource. If so, the report names the resource, not the lock or the thread inside it.
"""

import sys
from typing import Any

from ..pickling.registry import UNREACHABLE
from .text import class_name
from .text import module_name as _module_name

__all__ = ["hint", "is_resource"]

_LOCK = (
    "create it where it is used: leave it out in __getstate__ and make a new one in __setstate__, or "
    "register_serializer for the class that holds it"
)
_FILE = "send the path (and the position) and open it on the other side, or read the contents first"
_CONNECTION = (
    "send what is needed to connect and connect on the other side (__reduce__ returning (Class, arguments)), "
    "or keep it in an actor"
)
_THREAD = "start it on the other side; send what it works on instead"
_POOL = "create it where it is used, once per process (a module global made at first use, or an actor)"
_ITERATOR = "send a list of its items, or what is needed to make it again; it cannot continue in another process"
_ASYNC = "await it first and send the result, or create it inside the event loop that uses it"
_FRAME = "send a text: traceback.format_exception(error), or the values needed from the frame"
_CONTEXT = "read the value (variable.get()) and send that"
_WEAK = "send a strong reference, or leave it out in __getstate__"
_PROCESS = "send its pid or its result; a process belongs to the one that started it"
_LOGGING = "send the logger's name (loggers travel by name) and configure handlers on the other side"

_KNOWN: dict[str, tuple[str, bool]] = {
    # threads and synchronization
    "_thread.lock": (_LOCK, False),
    "_thread.RLock": (_LOCK, False),
    "_thread._local": ("set its values again on the other side; they belong to one thread", False),
    "threading._RLock": (_LOCK, True),
    "threading.Condition": (_LOCK, True),
    "threading.Event": (_LOCK, True),
    "threading.Semaphore": (_LOCK, True),
    "threading.Barrier": (_LOCK, True),
    "threading.Thread": (_THREAD, True),
    "_queue.SimpleQueue": (
        "send its items, or use a queue of multiprocessing given to the process when it starts",
        False,
    ),
    "queue.Queue": ("send its items, or use a queue of multiprocessing given to the process when it starts", True),
    "concurrent.futures._base.Executor": (_POOL, True),
    "concurrent.futures.thread.ThreadPoolExecutor": (_POOL, True),
    "concurrent.futures._base.Future": ("wait for it and send result()", True),
    "multiprocessing.pool.Pool": (_POOL, True),
    "multiprocessing.process.BaseProcess": (_PROCESS, True),
    "multiprocessing.queues.Queue": ("give it to the process when it is started, as an argument of Process", True),
    "multiprocessing.synchronize.SemLock": (
        "give it to the process when it is started, as an argument of Process",
        True,
    ),
    "subprocess.Popen": (_PROCESS, True),
    # files, sockets, connections
    "_io._IOBase": (_FILE, False),
    "tempfile._TemporaryFileWrapper": (_FILE, True),
    "mmap.mmap": ("send the path and map it on the other side, or put the bytes", False),
    "socket.socket": (_CONNECTION, True),
    "_socket.socket": (_CONNECTION, False),
    "ssl.SSLContext": (_CONNECTION, True),
    "sqlite3.Connection": (_CONNECTION, False),
    "sqlite3.Cursor": ("fetch the rows first and send those", False),
    "http.client.HTTPConnection": (_CONNECTION, True),
    "smtplib.SMTP": (_CONNECTION, True),
    "selectors.BaseSelector": (_POOL, True),
    "select.epoll": (_POOL, False),
    "socketserver.BaseServer": (_CONNECTION, True),
    "psycopg2.extensions.connection": (_CONNECTION, True),
    "psycopg.Connection": (_CONNECTION, True),
    "pymysql.connections.Connection": (_CONNECTION, True),
    "sqlalchemy.engine.base.Engine": (_CONNECTION, True),
    "sqlalchemy.orm.session.Session": (_CONNECTION, True),
    "redis.client.Redis": (_CONNECTION, True),
    "h5py._hl.files.File": (_FILE, True),
    "botocore.client.BaseClient": (_CONNECTION, True),
    # iterators and frames
    "builtins.generator": (_ITERATOR, False),
    "builtins.async_generator": (_ITERATOR, False),
    "builtins.coroutine": (_ASYNC, False),
    "_asyncio.Future": (_ASYNC, True),
    "asyncio.futures.Future": (_ASYNC, True),
    "asyncio.mixins._LoopBoundMixin": (_ASYNC, True),
    "asyncio.events.AbstractEventLoop": (_ASYNC, True),
    "builtins.frame": (_FRAME, False),
    "builtins.traceback": (_FRAME, False),
    "_contextvars.Context": (_CONTEXT, False),
    "_contextvars.ContextVar": (_CONTEXT, False),
    "_contextvars.Token": (_CONTEXT, False),
    "weakref.ReferenceType": (_WEAK, False),
    "weakref.ProxyType": (_WEAK, False),
    "weakref.CallableProxyType": (_WEAK, False),
    "weakref.WeakValueDictionary": (_WEAK, True),
    "weakref.WeakKeyDictionary": (_WEAK, True),
    "logging.Handler": (_LOGGING, True),
    # the rest
    "builtins.module": ("import it inside the function that uses it", False),
    "_ctypes._Pointer": ("send what it points to; an address means nothing in another process", False),
    "_ctypes.CFuncPtr": ("load the library on the other side", False),
    "builtins.PyCapsule": ("it wraps a C pointer: make it again on the other side", False),
    "_hashlib.HASH": ("send the data, or the digest once it is final", False),
    "re.Scanner": ("send the pattern", False),
}
# Names of the same types in other versions of Python.
_ALIASES = {
    "builtins.weakref.ReferenceType": "weakref.ReferenceType",
    "builtins.weakproxy": "weakref.ProxyType",
    "builtins.weakcallableproxy": "weakref.CallableProxyType",
    "builtins.weakref": "weakref.ReferenceType",
    "_asyncio.Task": "_asyncio.Future",
    "ssl.SSLSocket": "socket.socket",
}


_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__")


def _entry(cls: type, own_hooks: bool = True) -> tuple[str, bool] | None:
    """Find the nearest known base class; if `own_hooks` is false, stop at a class that defines how it is pickled."""
    for base in vars(type)["__mro__"].__get__(cls):
        name = class_name(base)
        if "." not in name:
            name = f"builtins.{name}"
        found = _KNOWN.get(_ALIASES.get(name, name))
        if found is not None:
            return found
        if not own_hooks and any(name in vars(type)["__dict__"].__get__(base) for name in _HOOKS):
            return None
    return None


def hint(obj: Any) -> str:
    """Return a hint for an object that cannot be pickled."""
    cls = type(obj)
    found = _entry(cls)
    if found is not None:
        return found[0]
    name = class_name(cls).rpartition(".")[2]
    register = f"register_serializer({name}, serializer=..., deserializer=...)"
    if _is_own(cls):
        return f"give {name} a __reduce__ that returns (callable, arguments), or {register}"
    if _is_heap_type(cls) and not _is_compiled(cls):
        return f"use {register}"
    if cls in UNREACHABLE:
        return "make it again on the other side, from data that you send"
    return f"make it again on the other side, or use {register} if it can be made from data"


def _is_heap_type(cls: type) -> bool:
    return bool(vars(type)["__flags__"].__get__(cls) & (1 << 9))


def _is_compiled(cls: type) -> bool:
    """Return whether a class is defined in compiled code, so that a user cannot add a method."""
    if not _is_heap_type(cls) or vars(type)["__flags__"].__get__(cls) & (1 << 8):  # immutable
        return True
    module = sys.modules.get(_module_name(cls))
    if module is None or vars(module).get("__name__") == "__main__":
        return False
    path = vars(module).get("__file__")
    return vars(module).get("__spec__") is not None and (type(path) is not str or not path.endswith((".py", ".pyc")))


def _is_own(cls: type) -> bool:
    """Return whether the user can change a class: it is not compiled, installed or in the standard library."""
    module = _module_name(cls)
    if module in ("__main__", "__mp_main__"):
        return _is_heap_type(cls)
    if _is_compiled(cls) or module.partition(".")[0] in sys.stdlib_module_names:
        return False
    loaded = sys.modules.get(module)
    path = vars(loaded).get("__file__") if loaded is not None else None
    return type(path) is not str or not any(part in path.split("/") for part in ("site-packages", "dist-packages"))


def is_resource(obj: Any) -> bool:
    """Return whether an object is a single resource, which the report names as a whole."""
    found = _entry(type(obj), own_hooks=False)
    return found is not None and found[1]
