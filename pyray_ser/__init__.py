"""Put Python objects into shared memory once, read them in place from every process."""

from ._version import __version__

__all__ = ["__version__"]
