"""Let no fork happen while another thread imports a module of this package.

Many modules are imported at first use. A forked child inherits the lock of a module that another thread was importing
at that moment, and nobody releases it: the child would wait for ever when it uses that module. CPython does not protect
a program from this (bpo-6721 has the discussion), so a fork waits until such imports are over.
"""

import os
import sys
from importlib import import_module


def finish_imports() -> None:
    """Wait for the modules of this package that other threads are importing.

    The import statement waits for them, returns at once for a module that this thread is importing itself, and
    detects a deadlock. If the import fails, it fails here, too, and Python reports it as ignored: the fork goes on.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("pyray_ser") and getattr(getattr(module, "__spec__", None), "_initializing", False):
            import_module(name)


os.register_at_fork(before=finish_imports)
