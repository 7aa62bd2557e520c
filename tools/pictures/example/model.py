"""A model for the picture of ``pyray-ser inspect``: most of its bytes are weights, and it holds a lock."""

from __future__ import annotations

import threading

import numpy as np


class Cache:
    """Remembers results."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.results: dict[str, float] = {}


class Model:
    """Weights, words and a cache."""

    def __init__(self) -> None:
        self.weights = {"encoder": np.zeros((4000, 1000)), "decoder": np.zeros((1000, 1000))}
        self.words = {f"word{i}": i for i in range(100_000)}
        self.cache = Cache()


pipeline = Model()
