"""Adapter for this library."""

from __future__ import annotations

PACKAGES: list[str] = []
DISTRIBUTIONS = ["pyray_ser", "cloudpickle"]
SKIPS: dict[str, str] = {}


class Library:
    def start(self) -> None:
        import pyray_ser

        self._package = pyray_ser
        # The timed call is the function that a program would call, without a wrapper.
        self.put, self.get = pyray_ser.put, pyray_ser.get

    def free(self, ref: object) -> None:
        """Do nothing: the caller has the last reference and drops it, which frees the object."""

    def stop(self) -> None:
        self._package.shutdown()
