"""The logger of the package: ``logging.getLogger("pyray_ser")``.

This module imports `logging` only if the program has imported it, or to show a warning, because warnings need no setup.
The import takes longer than a first `put`.

The logger is looked up once. `logging.getLogger` acquires a lock, and if a signal handler raises an exception inside
this call, the lock stays held. Every thread that opens or closes a store would then wait for that lock.
"""

import sys

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from logging import Logger

__all__ = ["debug", "exception", "info", "warning"]

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40
_logger: "Logger | None" = None


def _write(level: int, message: str, arguments: tuple[object, ...], exc_info: bool = False) -> None:
    if level < _WARNING and "logging" not in sys.modules:
        return  # the program has not imported logging, so it cannot have configured it
    global _logger
    if _logger is None:
        import logging

        _logger = logging.getLogger("pyray_ser")
    # With a stack level of two frames, the log record names the caller of `info`.
    _logger.log(level, message, *arguments, exc_info=exc_info, stacklevel=3)


def debug(message: str, *arguments: object) -> None:
    """Write a record of level DEBUG."""
    _write(_DEBUG, message, arguments)


def info(message: str, *arguments: object) -> None:
    """Write a record of level INFO."""
    _write(_INFO, message, arguments)


def warning(message: str, *arguments: object) -> None:
    """Write a record of level WARNING."""
    _write(_WARNING, message, arguments)


def exception(message: str, *arguments: object) -> None:
    """Write a record of level ERROR with the current exception, in code that cannot raise it."""
    _write(_ERROR, message, arguments, exc_info=True)
