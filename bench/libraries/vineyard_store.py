"""Adapter for vineyard, which has a server process with its own metadata."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack

PACKAGES = ["vineyard", "numpy"]
DISTRIBUTIONS = ["vineyard"]
# vineyard stores every element as a separate object with metadata, and returns the list as a tuple.
SKIPS = {"10,000 small arrays": "takes a minute and comes back as a tuple"}


class Library:
    def start(self) -> None:
        import vineyard
        from vineyard.deploy.local import start_vineyardd

        self._stack = ExitStack()
        self._folder = tempfile.mkdtemp(prefix="bench-vineyard-")
        socket = os.path.join(self._folder, "socket")
        self._stack.enter_context(start_vineyardd(meta="local", size="2Gi", socket=socket, rpc=False))
        self._client = vineyard.connect(socket)
        self.put = self._client.put
        self.get = self._client.get

    def free(self, handle: object) -> None:
        self._client.delete(handle)

    def stop(self) -> None:
        self._client.close()
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)
