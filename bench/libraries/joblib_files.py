"""Adapter for joblib, which writes a file in /dev/shm and opens it as a memory map."""

from __future__ import annotations

import os
import shutil
import tempfile

PACKAGES: list[str] = []
DISTRIBUTIONS = ["joblib"]
SKIPS: dict[str, str] = {}


class Library:
    def start(self) -> None:
        import joblib

        self._joblib = joblib
        self._folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="bench-joblib-")
        self._number = 0

    def put(self, value: object) -> str:
        self._number += 1
        path = f"{self._folder}/{self._number}"
        self._joblib.dump(value, path)
        return path

    def get(self, path: str) -> object:
        return self._joblib.load(path, mmap_mode="r")

    def free(self, path: str) -> None:
        os.unlink(path)

    def stop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
