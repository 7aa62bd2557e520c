"""What of a value stays in the stream, and what leaves it, by the rules of `put`."""

import io

from pyray_ser.verbose_pickler import Pickler


def put(value):
    """Pickle as `put` does; return the stream and the buffers of 1 KiB and more."""
    buffers = []

    def take(buffer):
        if buffer.raw().nbytes < 1024:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    Pickler(file, buffer_callback=take, put=True).dump(value)
    return file.getvalue(), buffers


def read_only(buffers):
    """The buffers as the store gives them out: other memory, which nobody can write."""
    return [memoryview(bytes(buffer.raw())) for buffer in buffers]
