"""Delay each fork until no other thread is importing a module of this package.

Many modules are imported at first use. A forked child inherits the lock of a module that another thread was importing
at the time of the fork. No thread of the child releases this lock, so the child would wait forever when it imports that
module. CPython does not protect a program from this (see the discussion in bpo-6721), so a fork waits until such
imports have ended.
"""

import os
import sys
from importlib import import_module


def finish_imports() -> None:
    """Wait for the modules of this package that other threads are importing.

    Importing a module again waits for the other thread, returns immediately if this thread is importing the module
    itself, and detects deadlocks. If the import fails, it also raises here; Python reports the exception as ignored,
    and the fork continues.
    """
    for name, module in list(sys.modules.items()):
        ours = name == "pyray_ser" or name.startswith("pyray_ser.")
        if ours and getattr(getattr(module, "__spec__", None), "_initializing", False):
            import_module(name)


os.register_at_fork(before=finish_imports)
