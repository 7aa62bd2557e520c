"""Compute how long a test waits before it reports a hang: longer on an overloaded machine."""

from __future__ import annotations

import os

_MOST = 20.0


def patience(seconds: float) -> float:
    """
    Return a time limit for work that takes less than `seconds` on an idle machine.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    float
        `seconds` times the current number of runnable processes per CPU.
    """
    return seconds * min(_MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))
