"""This library."""

from __future__ import annotations

PACKAGES: list[str] = []
DISTRIBUTIONS = ["pyray_ser", "cloudpickle"]
SKIPS: dict[str, str] = {}


class Library:
    def start(self) -> None:
        import pyray_ser

        self._package = pyray_ser
        # Nothing may stand between the clock and the function that a program would call.
        self.put, self.get = pyray_ser.put, pyray_ser.get

    def free(self, ref: object) -> None:
        """The last reference is the caller's, who drops it."""

    def stop(self) -> None:
        self._package.shutdown()
