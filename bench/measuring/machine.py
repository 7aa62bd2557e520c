"""Collect the facts to record with each figure: machine, kernel, versions, date."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module, metadata

__all__ = ["describe", "versions"]


def describe() -> dict:
    """Describe the machine well enough to compare figures, but without identifying it."""
    with open("/proc/meminfo") as file:
        kib = int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "virtual": _is_virtual(),
        "memory_gib": round(kib / 2**20),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(os.getloadavg()[0], 2),
    }


def _is_virtual() -> bool:
    with open("/proc/cpuinfo") as file:
        return any(line.startswith("flags") and " hypervisor" in line for line in file)


def _own_word(package: str) -> str | None:
    """Return the `__version__` of a package that has no installer metadata."""
    try:
        return getattr(import_module(package), "__version__", None)
    except ImportError:
        return None


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python and of these packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = _own_word(package)
    return found
