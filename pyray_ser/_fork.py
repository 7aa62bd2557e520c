"""Protect forked children from imports that other threads had not finished at the time of the fork.

Many modules are imported at first use. A forked child inherits the lock of a module that another thread was importing,
and no thread of the child releases it. The child would wait forever when it imports that module. CPython does not
protect a program from this (see the discussion in bpo-6721). Two hooks do, for the modules of this package:

- Before a fork, `finish_imports` waits until other threads have imported the modules that they are importing. It is the
  only protection for compiled modules, which cannot be initialized twice, and for modules of other packages that such a
  module imports. The wait has a limit, because the other thread can wait for a lock that a hook of the fork holds:
  `logging.getLogger` needs one that the hook of `logging` holds.
- In the child, `forget_imports` drops the locks of imports that began after this wait, and modules that are executed in
  part. When the child imports these modules, they are executed again.

Modules of other packages are left as they are, even if a module of this package began their import. Some must not be
executed twice (numpy warns about it), and only their authors know which ones.

Two restrictions remain. If a package is executed again, its submodules that were complete are not attributes of it, but
`import` and `from` find them. If the forking thread is itself importing a module, the child keeps that lock and module,
because the import continues there.

The state of imports is private to CPython: the locks (`_module_locks`), their owners, and the flag of modules that are
being executed (`_initializing`). On a version of CPython without these names, the hooks protect less and raise no error.
CPython itself makes a new global import lock in the child. The table of the locks that threads wait for
(`_blocking_on`) stays as it is: it only serves to detect deadlocks, and no thread of the child waits for a dropped lock.
"""

import _thread
import os
import sys
from importlib import _bootstrap, _bootstrap_external
from time import monotonic, sleep

TYPE_CHECKING = bool()  # noqa: UP018  as in `__init__.py`
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_LIMIT = 5.0  # seconds

# Weak references to the locks of the modules that are being imported.
_locks: "dict[str, Callable[[], Any]]" = getattr(_bootstrap, "_module_locks", {})
_compiled: "type | tuple[()]" = getattr(_bootstrap_external, "ExtensionFileLoader", ())


class _Refusal:
    """A finder that refuses compiled modules which another thread was initializing at the time of the fork.

    Cython's modules return the same unfinished module if they are imported again, and report no error.
    """

    def __init__(self, names: "list[str]") -> None:
        self._names = names

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> None:
        if name in self._names:
            raise ImportError(
                f"cannot import {name}: another thread was initializing this compiled module when the process forked. "
                "Hint: import it before other threads start.",
                name=name,
            )


def _other_owners() -> "dict[str, int | None]":
    """Return the modules of this package whose locks do not belong to this thread, and the threads that own them.

    A lock without an owner is one that a thread is acquiring or releasing.
    """
    me = _thread.get_ident()
    ours = [(name, found()) for name, found in list(_locks.items()) if f"{name}.".startswith("pyray_ser.")]
    owners = {name: getattr(lock, "owner", me) for name, lock in ours}
    return {name: owner for name, owner in owners.items() if owner != me}


def finish_imports() -> None:
    """Wait until no other thread is importing a module of this package, at most `_LIMIT`."""
    deadline = monotonic() + _LIMIT
    while any(_other_owners().values()) and monotonic() < deadline:
        sleep(0.001)


def forget_imports() -> None:
    """Drop the locks of other threads' imports, and the modules that these threads had executed in part."""
    refused = []
    for name in _other_owners():
        _locks.pop(name, None)
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if getattr(spec, "_initializing", False):
            del sys.modules[name]
            if isinstance(getattr(spec, "loader", None), _compiled):
                refused.append(name)
        elif module is not None:
            _complete(name, module)
    if refused:
        sys.meta_path.insert(0, _Refusal(refused))


def _complete(name: str, module: "ModuleType") -> None:
    """Make a module an attribute of its package, the last step of its import."""
    package, _, attribute = name.rpartition(".")
    parent = sys.modules.get(package)
    if parent is not None and attribute not in vars(parent):
        setattr(parent, attribute, module)


os.register_at_fork(before=finish_imports, after_in_child=forget_imports)
