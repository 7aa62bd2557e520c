"""Refuse unsupported interpreters before an extension module is loaded.

An extension module of this package can be used only by the interpreter that loads it first. If a subinterpreter loads
it first, the main interpreter of this process can never load it. So subinterpreters must not load the extensions.
"""

import sys


def _is_main() -> bool:
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter

        return _is_main_interpreter()
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:
        # This build of Python has no such module. The extensions then accept only the first interpreter that loads
        # them.
        return True
    return int(interpreters.get_current()) == int(interpreters.get_main())


if not _is_main():
    raise ImportError("pyray_ser does not support subinterpreters: import it in the main interpreter of the process")

from ._platform import unsupported  # noqa: E402  a subinterpreter imports nothing else

_reason = unsupported()
if _reason:
    raise ImportError(_reason)
