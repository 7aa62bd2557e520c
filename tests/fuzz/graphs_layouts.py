"""Create random collections of buffers of every kind, in any order, with sizes around every size threshold of the code.

`layout(seed)` returns a list, tuple or dict of arrays, bytes, bytearrays, memoryviews, text and frames. All bytes are
random, so that the comparison detects each byte that was not written, written twice, or written to the wrong address.
"""

from __future__ import annotations

import array as arrays
import random

import numpy as np

PLAIN_TYPES = (
    "?",
    "i1",
    "u1",
    "<i2",
    ">i2",
    "<u4",
    "<i8",
    ">i8",
    "f2",
    "f4",
    "<f8",
    ">f8",
    "c8",
    "c16",
    "U3",
    "S5",
    "M8[s]",
    "m8[ns]",
    "V6",
)
STRUCTURES = (
    np.dtype([("a", "<i4"), ("b", "<f8")]),
    np.dtype([("a", "u1"), ("b", "<f8")], align=True),
    np.dtype([("a", "<i2", (2, 3)), ("b", "S3"), ("c", [("d", "f4")])]),
)

# The code changes its behavior at these sizes in bytes: allocation units and magazines of the store, the smallest
# out-of-band buffer, pages, the pieces that write_many writes, kinds of copies, frames of the pickler, alignment of
# large buffers, private mappings, parallel copies, pieces of a spill file, and huge pages.
THRESHOLDS = (16, 32, 64, 128, 256, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10)
LARGE_THRESHOLDS = (128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)

_NOISE = np.frombuffer(random.Random("layouts").randbytes(6 << 20), np.uint8)


def noise(r, nbytes):
    """Return random bytes as a writable array of uint8, at an address that is a multiple of 16."""
    at = int(r.random() * 2000)
    if at + nbytes <= len(_NOISE):
        return _NOISE[at : at + nbytes].copy()
    return np.resize(_NOISE, nbytes)


def size(r, large=0.02):
    """Return a number of bytes near a threshold."""
    chosen = r.choice(LARGE_THRESHOLDS) if r.random() < large else THRESHOLDS[int(r.random() ** 1.3 * len(THRESHOLDS))]
    if r.random() < 0.1:
        return int(r.random() * chosen * 2)
    return max(0, chosen + r.choice((-1, 0, 1)) * r.choice((0, 1, 8, 16, 64)))


def typed(r, kind, n):
    """Return a one-dimensional array of n random elements."""
    dtype = np.dtype(kind)
    if dtype.kind == "b":
        return noise(r, n) > 127
    if dtype.kind == "U":
        return (noise(r, n * dtype.itemsize // 4) % 90 + 32).astype("u4").view(dtype)
    if dtype.kind in "fc":  # a copy may change the bits of a signalling NaN
        return (noise(r, n) / 7).astype(dtype)
    return noise(r, n * dtype.itemsize).view(dtype)


def array(r, n, kind=None):
    """
    Return an array of about n elements in a random layout.

    Parameters
    ----------
    r : random.Random
    n : int
    kind : str, optional
        The dtype of the array; by default a random dtype.
    """
    kind = kind or (r.choice(("<f8", "<i8", "u1", "<f4")) if r.random() < 0.6 else r.choice(PLAIN_TYPES))
    form = int(r.random() * 14)
    if form < 4:
        made = typed(r, kind, n)
    elif form == 4:
        made = typed(r, kind, 2 * n)[::2]
    elif form == 5:
        made = typed(r, kind, n)[::-1]
    elif form == 6:
        made = typed(r, kind, 3 * n).reshape(-1, 3)[:, 1]
    elif form == 7:
        made = typed(r, kind, n // 2 * 2).reshape(2, -1)
    elif form == 8:
        made = typed(r, kind, n // 3 * 3).reshape(3, -1).T
    elif form == 9:
        made = np.asfortranarray(typed(r, kind, n // 4 * 4).reshape(2, 2, -1))
    elif form == 10:
        made = typed(r, kind, n // 4 * 8).reshape(2, 2, -1)[:, :, ::2].transpose(1, 0, 2)
    elif form == 11:
        made = typed(r, kind, n + 2)[1:-1]
    elif form == 12:
        made = np.broadcast_to(typed(r, kind, 4), (n // 4, 4))
    else:
        made = typed(r, kind, n).reshape(1, n, 1)
    if form != 12 and r.random() < 0.2:
        made.flags.writeable = False
    return made


def structured(r, n):
    """Return a structured array, which may have padding, be strided, or be a view of one field."""
    dtype = r.choice(STRUCTURES)
    made = np.zeros(n, dtype)
    for name in dtype.names[:1]:
        made[name] = (noise(r, n) % 100).reshape((n,) + (1,) * (made[name].ndim - 1))
    return r.choice((made, made, made[::2], made[dtype.names[0]]))


def views(r, n):
    """Return several views of one base array, and possibly the base itself, in random order."""
    base = typed(r, r.choice(("<f8", "<i4", "u1")), n)
    found = [base, base[: n // 2], base[n // 2 :], base[::2], base[1:-1], base[: n // 2 * 2].reshape(2, -1), base[::-1]]
    if r.random() < 0.3:
        found[-1] = base.reshape(1, -1).T
        base.flags.writeable = False
    r.shuffle(found)
    return found[: 1 + int(r.random() * 5)] + found[:1]


def misaligned(r, n):
    """Return an array with unaligned elements."""
    return noise(r, 8 * n + 1)[1:].view("<f8" if r.random() < 0.1 else "<i8")


def buffer(r, nbytes, memory_views=True):
    """
    Return an object of a random kind that contains about `nbytes` bytes.

    Parameters
    ----------
    r : random.Random
    nbytes : int
    memory_views : bool
        Whether the object may be a memoryview.
    """
    kind = int(r.random() * 20)
    if kind < 9:
        dtype = r.choice(("<f8", "<f8", "u1", "<i4", "c16")) if r.random() < 0.7 else r.choice(PLAIN_TYPES)
        return array(r, nbytes // np.dtype(dtype).itemsize, dtype)
    if kind < 11:
        return noise(r, nbytes // 8 * 16).view("<f8").view("<i8")[::2]
    if kind == 11:
        return noise(r, nbytes).tobytes()
    if kind == 12:
        return bytearray(noise(r, nbytes))
    if kind == 13 and memory_views:
        flat = memoryview(noise(r, nbytes // 8 * 8))
        return r.choice((flat, flat.toreadonly(), flat[::2], flat.cast("q") if len(flat) else flat))
    if kind == 14:
        return arrays.array("q", noise(r, nbytes // 8 * 8).tobytes())
    if kind == 15:
        return "".join(r.choice(("x", "é", "日"))) * (nbytes // 2)
    if kind == 16:
        return np.asfortranarray(noise(r, nbytes // 16 * 16).view("<i8").reshape(2, -1))
    if kind == 17:
        return structured(r, nbytes // 12)
    if kind == 18:
        return misaligned(r, nbytes // 8)
    return typed(r, "<i8", nbytes // 8)


def layout(seed, large=0.02, memory_views=True, frames=True):
    """
    Create a random collection of buffers.

    Parameters
    ----------
    seed : int or str
    large : float
        Fraction of buffers with 128 KiB to 2 MiB.
    memory_views : bool
    frames : bool
        Whether it may contain pandas frames and series.

    Returns
    -------
    object
    """
    r = random.Random(seed)
    count = 1 + int(r.random() ** 2 * 12)
    if r.random() < 0.3:
        # Also test sizes in ascending or descending order, not only in random order.
        sizes = sorted((size(r, large) for _ in range(count)), reverse=r.random() < 0.5)
    else:
        sizes = [size(r, large) for _ in range(count)]
    found = [buffer(r, nbytes, memory_views) for nbytes in sizes]
    if r.random() < 0.25:
        at = int(r.random() * (len(found) + 1))
        found[at:at] = views(r, r.choice((20, 130, 600, 9000)))
    if r.random() < 0.25:
        found.insert(int(r.random() * len(found)), found[int(r.random() * len(found))])
    if frames and r.random() < 0.01:
        found.insert(int(r.random() * len(found)), _frame(r))
    if r.random() < 0.5:
        # This array makes the object so large that put writes it into the store piece by piece.
        found.append(typed(r, "<f8", r.choice((1000, 8100, 8192, 10_000, 33_000))))
    form = r.random()
    if form < 0.5:
        return found
    if form < 0.6:
        return tuple(found)
    if form < 0.9:
        return {f"buffer{i}": x for i, x in enumerate(found)}
    return [found[: len(found) // 2], {"rest": found[len(found) // 2 :], "text": "x" * r.choice((10, 1000, 70_000))}]


def _frame(r):
    import pandas as pd

    n = r.choice((3, 130, 520, 9000))
    frame = pd.DataFrame(typed(r, "<i8", 3 * n).reshape(n, 3), columns=list("abc"))
    return r.choice((frame, frame["b"], frame[["c", "a"]], frame.T, frame.iloc[::2]))
