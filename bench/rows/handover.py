"""Measure what sending a reference through a pipe costs in addition to the pipe itself, and what it saves."""

from __future__ import annotations

import multiprocessing
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from time import perf_counter

import numpy as np
from measuring import data
from measuring.claim import Claim, at_least, at_most
from measuring.timing import interleaved, median, median_ratio

import pyray_ser

ROW = "handover"
FIRST, BOTH = struct.Struct("<d"), struct.Struct("<dd")
BYTES, OBJECT, SHAPE, REF, MESSAGE, LARGE_REF, ARRAY, STOP = b"B", b"O", b"H", b"R", b"M", b"L", b"A", b"S"


class _Shape:
    """An object whose pickle has the form of a pickled reference: the name of a callable, and bytes."""

    def __init__(self, content: bytes):
        self.content = content


def _reduce_shape(shape: _Shape) -> tuple[type[bytes], tuple[bytes]]:
    return bytes, (shape.content,)


ForkingPickler.register(_Shape, _reduce_shape)


def _serve(pipe: Connection) -> None:
    """Answer messages. A message of one byte sets the kind of all following messages, so these need no extra byte."""
    kind = BYTES
    while True:
        message = pipe.recv_bytes()
        if len(message) == 1:
            kind = message
            if kind == STOP:
                return
            pipe.send_bytes(kind)
        elif kind == REF:
            array = pyray_ser.get(ForkingPickler.loads(message))
            pipe.send_bytes(FIRST.pack(array[0]))
            del array
        elif kind == MESSAGE:
            array = pyray_ser.get(pyray_ser.ObjectRef.from_message(message))
            pipe.send_bytes(FIRST.pack(array[0]))
            del array
        elif kind == LARGE_REF:
            array = pyray_ser.get(ForkingPickler.loads(message))
            pipe.send_bytes(BOTH.pack(array[0], array[-1]))
            del array
        elif kind == ARRAY:
            array = np.frombuffer(message, np.float64)
            pipe.send_bytes(BOTH.pack(array[0], array[-1]))
            # Freeing 100 MB takes 10 ms, so free the array here, before the other process times the next message.
            del array, message
        elif kind in (OBJECT, SHAPE):
            pipe.send_bytes(ForkingPickler.loads(message)[: FIRST.size])
        else:
            pipe.send_bytes(message[: FIRST.size])


class _Child:
    def __enter__(self) -> _Child:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.pipe.send_bytes(STOP)
        self._process.join()

    def expect(self, kind: bytes) -> None:
        self.pipe.send_bytes(kind)
        self.pipe.recv_bytes()


def reference(quick: bool) -> list[Claim]:
    """
    Measure a reference to an existing object: send it, `get` the object, read the first element, answer.

    The row sends the reference in two ways: as a raw message by `send_bytes`, and by `send`, which pickles it. For
    comparison, the row sends as many plain bytes in each way. For the second way, the row also sends a `_Shape`, whose
    pickle has the form and length of a pickled reference.
    """
    array = data.small()
    ref = pyray_ser.put(array)
    length = len(ForkingPickler.dumps(ref))
    raw = bytes(len(ref.to_message()))
    packed = bytes(length - (len(ForkingPickler.dumps(bytes(length))) - length))
    assert len(ForkingPickler.dumps(packed)) == length
    shape = _Shape(bytes(length - len(ForkingPickler.dumps(_Shape(b"")))))
    assert len(ForkingPickler.dumps(shape)) == length
    with _Child() as child:
        pipe = child.pipe

        def trip(kind: bytes, send: Callable[[], None], expected: bytes) -> Callable[[], float]:
            def run() -> float:
                child.expect(kind)
                start = perf_counter()
                send()
                answer = pipe.recv_bytes()
                taken = perf_counter() - start
                assert answer == expected
                return taken

            return run

        results = interleaved(
            50 if quick else 1500,
            {
                "bytes": trip(BYTES, lambda: pipe.send_bytes(raw), bytes(FIRST.size)),
                "message": trip(MESSAGE, lambda: pipe.send_bytes(ref.to_message()), FIRST.pack(array[0])),
                "pickled bytes": trip(OBJECT, lambda: pipe.send(packed), bytes(FIRST.size)),
                "shape": trip(SHAPE, lambda: pipe.send(shape), bytes(FIRST.size)),
                "reference": trip(REF, lambda: pipe.send(ref), FIRST.pack(array[0])),
            },
            warm_up=20,
        )
    times = {name: median(result) * 1e6 for name, result in results.items()}

    def over(how: str, name: str, what: str, more: str = "") -> Claim:
        note = f"{times[how]:.1f} and {times[name]:.1f} us{more}"
        return at_most(ROW, what, median_ratio(results[how], results[name]), 1.3, "x", note=note, times_us=times)

    floor = median_ratio(results["shape"], results["pickled bytes"])
    return [
        over("message", "bytes", "a reference over as many bytes, both by send_bytes()"),
        over(
            "reference",
            "pickled bytes",
            "a reference over as many bytes, both by send()",
            f"; an empty object pickled in the same form {floor:.3f} x",
        ),
        at_most(ROW, "bytes of a pickled reference", float(length), 150, "bytes"),
    ]


def large(quick: bool) -> list[Claim]:
    """Measure 100 MB: put, send the reference, read the first and last element; compare with sending the bytes."""
    size = 10**7 if quick else 10**8
    array = data.large(size)
    view = memoryview(array).cast("B")
    expected = BOTH.pack(array[0], array[-1])
    with _Child() as child:
        pipe = child.pipe

        def copied() -> float:
            child.expect(ARRAY)
            start = perf_counter()
            pipe.send_bytes(view)
            answer = pipe.recv_bytes()
            taken = perf_counter() - start
            assert answer == expected
            return taken

        def shared() -> float:
            child.expect(LARGE_REF)
            start = perf_counter()
            ref = pyray_ser.put(array)
            pipe.send(ref)
            answer = pipe.recv_bytes()
            taken = perf_counter() - start
            assert answer == expected
            del ref
            return taken

        results = interleaved(3 if quick else 11, {"through the pipe": copied, "by reference": shared}, warm_up=3)
    times = {name: median(result) * 1e3 for name, result in results.items()}
    ratio = median_ratio(results["through the pipe"], results["by reference"])
    return [
        at_least(
            ROW,
            "100 MB put, handed over and read, faster than through the pipe",
            ratio,
            15,
            "x",
            note=f"{times['by reference']:.1f} and {times['through the pipe']:.1f} ms",
            times_ms=times,
        )
    ]
