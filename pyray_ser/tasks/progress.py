"""A progress bar for a list of references."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..store.waiting import wait

__all__ = ["progress"]


def progress(refs: list[Any], *, description: str | None = None, file: Any = None) -> list[Any]:
    """
    Show how many of several references are ready, until all of them are ready.

    Parameters
    ----------
    refs : list of TaskRef or ObjectRef
    description : str, optional
        The text before the bar.
    file : file-like, optional
        Default is standard error.

    Returns
    -------
    list
        The same references, for ``get(progress(refs))``.

    Examples
    --------
    >>> @pyray_ser.remote
    ... def double(x):
    ...     return 2 * x
    >>> values = pyray_ser.get(pyray_ser.progress([double.remote(i) for i in range(100)]))
    >>> sum(values)
    9900
    """
    bar = _bar(len(refs), description, sys.stderr if file is None else file)
    left = list(dict.fromkeys(refs))
    done = len(refs) - len(left)
    try:
        bar.update(done)
        while left:
            ready, left = wait(left, num_returns=1)
            more, left = wait(left, num_returns=len(left), timeout=0) if left else ([], [])
            bar.update(len(ready) + len(more))
            if left:
                # If there are many small tasks, one step of the bar covers several tasks.
                time.sleep(0 if len(left) < 10 else 0.01)
    finally:
        bar.close()
    return refs


def _bar(total: int, description: str | None, file: Any) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(total, description, file)
    return tqdm(total=total, desc=description, file=file, unit="task")


class _Line:
    """The progress display that is used without tqdm: one line that is overwritten."""

    def __init__(self, total: int, description: str | None, file: Any) -> None:
        self._total = total
        self._before = f"{description}: " if description else ""
        self._file = file
        self._done = 0
        self._started = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        self._file.write(f"\r{self._before}{self._done}/{self._total} [{time.monotonic() - self._started:.1f} s]")
        self._file.flush()

    def close(self) -> None:
        self._file.write("\n")
        self._file.flush()
