"""Refuse what this package cannot run in, before anything compiled is loaded.

An extension module of this package belongs to the interpreter that loads it first. Were that a subinterpreter, the attempt alone would
lock the main one out for the life of the process, so the extensions must not be reached there.
"""

import sys


def _is_main() -> bool:
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter

        return _is_main_interpreter()
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:
        # A build without it: the extensions themselves refuse all interpreters but the first one that loads them.
        return True
    return int(interpreters.get_current()) == int(interpreters.get_main())


if not _is_main():
    raise ImportError("pyray_ser does not support subinterpreters: import it in the main interpreter of the process")

from ._platform import unsupported  # noqa: E402  a subinterpreter keeps nothing of this package

_reason = unsupported()
if _reason:
    raise ImportError(_reason)
