"""Two ways to send a value to other processes: through the store, and pickled through a pipe.

Each of these ways is an object in the parent, and each worker has a pickled copy of the object. `publish` converts a
value to the payload for every worker, and `receive` converts the payload to the value. `wrap` and `unwrap` do the same
for an answer that is an array.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import pyray_ser


class StoreWay:
    """Put the value once and send references."""

    name = "pyray_ser"

    def publish(self, value: dict[str, Any]) -> dict[str, Any]:
        return {key: pyray_ser.put(item) for key, item in value.items()}

    def receive(self, payload: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(payload, pyray_ser.get(list(payload.values())), strict=True))

    def again(self, payload: dict[str, Any], key: str, times: int) -> float | None:
        """Return the average time, in seconds, to get an item of the value again."""
        ref = payload[key]
        start = time.perf_counter()
        for _ in range(times):
            pyray_ser.get(ref)
        return (time.perf_counter() - start) / times

    def wrap(self, answer: Any) -> Any:
        return pyray_ser.put(answer) if isinstance(answer, np.ndarray) else answer

    def unwrap(self, answer: Any) -> Any:
        return pyray_ser.get(answer) if isinstance(answer, pyray_ser.ObjectRef) else answer

    def close(self) -> None:
        """Release the store before a worker ends."""
        pyray_ser.shutdown()


class PipeWay:
    """Pickle the value for every worker, as multiprocessing does with an argument."""

    name = "multiprocessing"

    def publish(self, value: dict[str, Any]) -> dict[str, Any]:
        return value

    def receive(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    def again(self, payload: dict[str, Any], key: str, times: int) -> float | None:
        return None

    def wrap(self, answer: Any) -> Any:
        return answer

    def unwrap(self, answer: Any) -> Any:
        return answer

    def close(self) -> None:
        pass


Way = StoreWay | PipeWay
