"""How long a test waits before it calls something hung: longer on a machine that has more to do than it can."""

from __future__ import annotations

import os

_MOST = 20.0


def patience(seconds: float) -> float:
    """
    Return a limit of time for what takes less than `seconds` on an idle machine.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    float
        `seconds`, times the processes that wait for each CPU at the moment.
    """
    return seconds * min(_MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))
