"""Build values with mixed sizes and memory layouts, for tests of the code that writes them."""

import random

import numpy as np

# These sizes are on both sides of each threshold: in-band data, small objects, copies in pieces, frames, references,
# pages.
EDGES = [1, 900, 1023, 1024, 1600, 4095, 4096, 4097, 32 * 1024, 64 * 1024, 65 * 1024, 256 * 1024]
SIZES = [n + d for n in EDGES for d in (-8, 0, 8) if n + d > 0]


def contiguous(n, seed):
    return np.arange(n // 8 + 1, dtype="i8") + seed


def strided(n, seed):
    return (np.arange(2 * (n // 8 + 1), dtype="i8") + seed)[::2]


def reverse(n, seed):
    return contiguous(n, seed)[::-1]


def column(n, seed):
    return (np.arange(3 * (n // 8 + 1), dtype="i8") + seed).reshape(-1, 3)[:, 1]


def fortran(n, seed):
    return np.asfortranarray(contiguous(16 * (n // 128 + 1) * 8, seed)[: 16 * (n // 128 + 1)].reshape(-1, 16))


def broadcast(n, seed):
    return np.broadcast_to(contiguous(n, seed), (3, n // 8 + 1))


def frozen(n, seed):
    array = contiguous(n, seed)
    array.flags.writeable = False
    return array


def blob(n, seed):
    return bytes([seed % 251]) * n


def mutable_blob(n, seed):
    return bytearray(blob(n, seed))


def text(n, seed):
    return chr(ord("a") + seed % 26) * n


MAKERS = [contiguous, strided, reverse, column, fortran, broadcast, frozen, blob, mutable_blob, text]


def mix(seed):
    """Return a list or dict of up to eight parts in random order; some overlap in memory, and some occur twice."""
    draw = random.Random(seed)
    parts = [draw.choice(MAKERS)(draw.choice(SIZES), draw.randrange(1000)) for _ in range(draw.randint(1, 8))]
    for array in [part for part in parts if isinstance(part, np.ndarray)]:
        if draw.random() < 0.4:
            start = draw.randrange(len(array))
            parts.insert(draw.randrange(len(parts) + 1), array[start : start + draw.randrange(1, len(array) + 1)])
    if draw.random() < 0.3:
        parts.append(parts[0])
    return parts if draw.random() < 0.5 else {f"key{i}": part for i, part in enumerate(parts)}


def assert_same(a, b):
    assert type(a) is type(b) or isinstance(a, np.ndarray)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    for x, y in zip(a, b, strict=True):
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and np.array_equal(x, y), (x.shape, x.strides)
        else:
            assert type(x) is type(y) and x == y
