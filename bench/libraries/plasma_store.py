"""Adapter for the last release of Plasma, in pyarrow 11: a server process, and arrays in pyarrow's serialization."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

PACKAGES = ["pyarrow==11.*", "numpy<2"]
DISTRIBUTIONS = ["pyarrow"]
SKIPS: dict[str, str] = {}


class Library:
    def start(self) -> None:
        warnings.simplefilter("ignore")  # every call issues a deprecation warning
        from pyarrow import plasma

        self._stack = ExitStack()
        socket, _ = self._stack.enter_context(plasma.start_plasma_store(2 * 10**9))
        self._client = plasma.connect(socket)
        self.put = self._client.put
        self.get = self._client.get

    def free(self, handle: object) -> None:
        self._client.delete([handle])

    def stop(self) -> None:
        self._client.disconnect()
        self._stack.close()
