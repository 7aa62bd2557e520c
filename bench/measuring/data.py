"""Make the values with which libraries are measured, and compare them with the results."""

from __future__ import annotations

import numpy as np

__all__ = ["VALUES", "check", "equal", "large", "mapping", "small_arrays"]

MB = 1_000_000


def small() -> np.ndarray:
    """Return an array with 80 bytes of data."""
    return np.arange(10, dtype=np.float64)


def large(nbytes: int) -> np.ndarray:
    """Return an array of `size` bytes with no two equal pages; every page is written, so that it really exists."""
    return np.arange(nbytes // 8, dtype=np.float64)


def mapping() -> dict:
    """Return a typical dict that takes 1 KB when pickled: settings, a few numbers and strings, and a nested dict."""
    return {
        "name": "experiment-0173",
        "created": 1712345678.25,
        "enabled": True,
        "tags": ["train", "baseline", "2024-04", "gpu"],
        "learning_rate": 3e-4,
        "batch_size": 256,
        "shape": (256, 224, 224, 3),
        "notes": "warm-up over the first 500 steps, then cosine decay; see the report for the choice of the schedule",
        "metrics": {f"metric_{i:02d}": i / 7 for i in range(24)},
        "counts": {f"count_{i}": i * i * 1000 for i in range(16)},
        "parent": None,
    }


def small_arrays() -> list[np.ndarray]:
    """Return 10,000 arrays of 10 float64."""
    return [np.arange(i, i + 10, dtype=np.float64) for i in range(10_000)]


VALUES = {
    "int": lambda: 7,
    "80 B array": small,
    "1 KB dict": mapping,
    "10,000 small arrays": small_arrays,
    "1 MB array": lambda: large(MB),
    "100 MB array": lambda: large(100 * MB),
}


def equal(a: object, b: object) -> bool:
    """Return whether two values are equal, including arrays, contents of containers, and types."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def check(name: str, value: object, got: object) -> None:
    """Raise an error if a library does not return an equal value; the time for a wrong value means nothing."""
    if not equal(value, got):
        raise AssertionError(f"{name}: what came back is not what went in")
