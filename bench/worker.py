"""Measure one library in this process. The script reads commands as lines of JSON and answers each with one line.

The script needs only Python, numpy and the library, because it also runs in the environments of the compared libraries.
Output of the libraries goes to stderr. `worker.py MODULE --cold` measures only the start and ends.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from time import perf_counter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy  # noqa: F401 - every program that shares arrays imports numpy, so that does not count as cold start
from measuring import data
from measuring.machine import versions

ROUND = 0.01  # seconds that one round should take
MOST = 1000  # maximum number of live objects
MOST_BYTES = 200_000_000  # maximum total size of these objects


class Worker:
    def __init__(self, module: str):
        self._adapter = import_module(f"libraries.{module}")
        self._library = self._adapter.Library()
        self._values: dict[str, tuple[object, object, dict[str, int]]] = {}

    def start(self) -> dict:
        """Return the time from the start of the library until it has put and got the first object."""
        begin = perf_counter()
        self._library.start()
        value = data.small()
        handle = self._library.put(value)
        got = self._library.get(handle)
        taken = perf_counter() - begin
        data.check("the first object", value, got)
        del got
        self._library.free(handle)
        return {"seconds": taken, "versions": versions("numpy", *self._adapter.DISTRIBUTIONS)}

    def prepare(self, name: str) -> dict:
        """Put a value, check that `get` returns an equal value, and determine the number of operations per round."""
        if name in self._adapter.SKIPS:
            return {"skipped": self._adapter.SKIPS[name]}
        value = data.VALUES[name]()
        handle = self._library.put(value)
        got = self._library.get(handle)
        if not data.equal(value, got):
            return {"skipped": f"comes back as {type(got).__name__!r}, not equal"}
        del got
        size = getattr(value, "nbytes", 1000)
        numbers = {}
        for operation in ("put", "get"):
            number = 1
            # The result of get is dropped immediately; the objects of put stay until the round is over.
            most = max(1, min(MOST, MOST_BYTES // size)) if operation == "put" else MOST
            self._values[name] = (value, handle, {operation: number})
            while number < most:
                taken = self.round(name, operation)["seconds"] * number
                if taken > ROUND / 2:
                    break
                number = min(most, number * 2)
                self._values[name][2][operation] = number
            numbers[operation] = number
        self._values[name] = (value, handle, numbers)
        return {"numbers": numbers}

    def round(self, name: str, operation: str) -> dict:
        """Return seconds per operation, without the time to free objects, which some libraries do asynchronously."""
        value, handle, numbers = self._values[name]
        number = numbers[operation]
        if operation == "put":
            put = self._library.put
            handles = [None] * number
            begin = perf_counter()
            for i in range(number):
                handles[i] = put(value)
            taken = perf_counter() - begin
            for i in range(number):
                self._library.free(handles[i])
                handles[i] = None
        else:
            get = self._library.get
            begin = perf_counter()
            for _ in range(number):
                get(handle)
            taken = perf_counter() - begin
        return {"seconds": taken / number}

    def forget(self, name: str) -> dict:
        """Free the object that `prepare` put."""
        _, handle, _ = self._values.pop(name)
        self._library.free(handle)
        return {}

    def stop(self) -> dict:
        for name in list(self._values):
            self.forget(name)
        self._library.stop()
        return {}


def main() -> None:
    # Child processes of the libraries may write to stdout, but their output must not mix with our lines.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    if sys.argv[2:] == ["--cold"]:
        print(json.dumps(worker.start()), file=answers)
        worker.stop()
        return
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
