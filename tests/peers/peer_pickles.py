"""Replace the functions of `pickle`, so that unchanged tests of other projects use the functions of this package."""

from __future__ import annotations

import io
import pickle

import pyray_ser

_dumps, _loads, _load = pickle.dumps, pickle.loads, pickle.load
# A pickle that represents an object of the store begins with these bytes.
_MARK = b"\x80\x05\x95pyray_ser:"
_refs = []


def by_our_pickler() -> None:
    """Replace ``pickle.dumps`` and the related names by our functions."""
    pickle.dumps, pickle.loads = pyray_ser.dumps, pyray_ser.loads
    pickle.dump, pickle.load = pyray_ser.dump, pyray_ser.load


def by_put_and_get() -> None:
    """Make ``pickle.dumps`` put a value and ``pickle.loads`` get it."""
    pickle.dumps, pickle.loads, pickle.dump, pickle.load = _put, _get, _put_into, _get_from


def _put(obj, protocol=None, *, fix_imports=True, buffer_callback=None):
    if buffer_callback is not None:
        return _dumps(obj, protocol, fix_imports=fix_imports, buffer_callback=buffer_callback)
    _refs.append(pyray_ser.put(obj))
    return _MARK + str(len(_refs) - 1).encode() + b"."


def _get(data, /, **options):
    start = bytes(memoryview(data).cast("B")[: len(_MARK)])
    if start != _MARK:
        return _loads(data, **options)
    number = bytes(memoryview(data).cast("B")[len(_MARK) :]).partition(b".")[0]
    return pyray_ser.get(_refs[int(number)], mmap_mode="c")


def _put_into(obj, file, protocol=None, *, fix_imports=True, buffer_callback=None):
    file.write(_put(obj, protocol, fix_imports=fix_imports, buffer_callback=buffer_callback))


def _get_from(file, **options):
    data = file.read(len(_MARK))
    if data == _MARK:
        while not data.endswith(b"."):
            data += file.read(1)
        return _get(data)
    if not file.seekable():
        return _load(io.BytesIO(data + file.read()), **options)
    file.seek(-len(data), io.SEEK_CUR)
    return _load(file, **options)
