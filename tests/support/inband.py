"""Pickle values by the rules of `put` with each of the picklers, to see which bytes stay in the stream."""

import io
import pickle

import pytest

from pyray_ser.inspection.debug_pickler import Pickler

ENGINES = ["python", "compiled", "compiled, read by pickle"]
_engine = ENGINES[0]


@pytest.fixture(params=ENGINES, autouse=True)
def engine(request):
    """Run each test with each pickler and unpickler, in modules that import this fixture."""
    global _engine
    _engine = request.param
    yield request.param
    _engine = ENGINES[0]


def put(value):
    """Pickle as `put` does; return the stream and the buffers of 1 KiB and more, as memoryviews."""
    if _engine != "python":
        from pyray_ser import dumps_frames

        _, stream, *buffers = dumps_frames(value)
        return bytes(stream), [buffer.cast("B") if buffer.nbytes else buffer for buffer in buffers]
    buffers = []

    def take(buffer):
        if buffer.raw().nbytes < 1024:
            return True
        buffers.append(buffer.raw())
        return False

    file = io.BytesIO()
    Pickler(file, buffer_callback=take, put=True).dump(value)
    return file.getvalue(), buffers


def load(stream, buffers):
    """Load with read-only copies of the buffers, because the memory of the store is read-only too."""
    buffers = [memoryview(bytes(buffer)) for buffer in buffers]
    if _engine == "compiled":
        from pyray_ser import _unpickle

        return _unpickle.loads(stream, buffers=buffers)
    return pickle.loads(stream, buffers=buffers)
