"""Test that a load uses the same bytes that it has checked, even if shared memory changes meanwhile.

Another process flips one byte of a mapping as fast as it can, while this process reads the mapping repeatedly for a
short time.
"""

import contextlib
import mmap
import os
import pickle
import subprocess
import sys
import time

import pytest

from pyray_ser import _pickle, _unpickle, loads

SECONDS = 1.0
FLIPPER = """
import mmap, os, sys, time
file, at, one, other, parent = sys.argv[1], *map(int, sys.argv[2:])
with open(file, "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
end = time.monotonic() + 60
m[at] = other
print("ready", flush=True)
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(2000):
        m[at] = one
        m[at] = other
"""


@contextlib.contextmanager
def flipped(path, at, one, other):
    """Yield the mapping of a page; another process writes `one` and `other` in turn to byte `at`."""
    path.write_bytes(bytes(mmap.PAGESIZE * 2))
    with open(path, "r+b") as f:
        mapping = mmap.mmap(f.fileno(), 0)
    child = subprocess.Popen(
        [sys.executable, "-c", FLIPPER, *map(str, (path, at, one, other, os.getpid()))], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        yield mapping
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def repeat(seconds=SECONDS):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield from range(50)


def fill(mapping, data, at):
    """Write all bytes except byte `at`, which the other process writes."""
    mapping[:at] = data[:at]
    mapping[at + 1 : len(data)] = data[at + 1 :]


@contextlib.contextmanager
def changing(path, stream, at):
    """Yield a view of a stream whose byte `at` alternates between `a` and a byte that is not valid ASCII or UTF-8."""
    with flipped(path, at, 0xE9, 0x61) as mapping:
        fill(mapping, stream, at)
        with memoryview(mapping)[: len(stream)].toreadonly() as view:
            yield view


@pytest.mark.parametrize("length", [2, 5, 12, 20, 32, 200])
@pytest.mark.parametrize("load", [loads, _unpickle.loads])
def test_a_str_is_ascii_or_not(tmp_path, length, load):
    stream = pickle.dumps("a" * length, 5)
    at = stream.index(b"a" * length) + length - 1
    seen = set()
    with changing(tmp_path / "bytes", stream, at) as view:
        for _ in repeat():
            try:
                text = load(view)
            except UnicodeDecodeError:
                seen.add("refused")
                continue
            assert not text.isascii() or ord(text[-1]) < 128
            assert text == "a" * length
            seen.add("read")
    assert seen == {"refused", "read"}  # the byte changed between two loads


@pytest.mark.parametrize("length", [2, 5, 12, 20])
def test_a_str_among_others_is_ascii_or_not(tmp_path, length):
    # The unpickler has a separate loop for strings that only a list refers to.
    texts = [letter * length for letter in "bcdaef"]
    stream = _pickle.dumps([letter * length for letter in "bcdaef"])
    at = stream.index(b"a" * length) + length - 1
    seen = set()
    with changing(tmp_path / "bytes", stream, at) as view:
        for _ in repeat():
            try:
                assert loads(view) == texts
                seen.add("read")
            except UnicodeDecodeError:
                seen.add("refused")
    assert seen == {"refused", "read"}


def test_a_character_is_read_once(tmp_path):
    stream = pickle.dumps(["a"], 5)
    at = stream.index(b"a")
    seen = set()
    with changing(tmp_path / "bytes", stream, at) as view:
        for _ in repeat():
            try:
                assert loads(view) == ["a"]
                seen.add("read")
            except UnicodeDecodeError:
                seen.add("refused")
    assert seen == {"refused", "read"}


def test_strings_of_an_array_are_utf8(tmp_path):
    np = pytest.importorskip("numpy")
    from pyray_ser import _ndarray

    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("numpy before 2.0 has no StringDType")
    n = 4096
    seen = set()
    with flipped(tmp_path / "bytes", n - 1, 0xF4, 0x61) as mapping:
        mapping[: n - 1] = b"a" * (n - 1)
        view = memoryview(mapping)[:n].toreadonly()
        for _ in repeat(2.5):
            array = np.empty(1, np.dtypes.StringDType())
            try:
                _ndarray.strings_in(array, view, n.to_bytes(4, "little"), 4)
            except ValueError:
                assert array[0] == ""  # a refused text leaves the array empty
                seen.add("refused")
                continue
            assert _ndarray.strings_out(array)[0] == b"a" * n
            seen.add("read")
        view.release()
    assert seen == {"refused", "read"}


def test_the_name_of_a_dtype_is_kept_as_it_was_judged(tmp_path):
    pytest.importorskip("numpy")
    from pyray_ser import _ndarray

    def stream(name, shape):
        return b"\x80\x05\x8c\x05numpy\x8c\x07ndarray\x93(" + shape + b"\x8c\x06" + name.encode() + b"\x97K\0NtR."

    many = b"(" + b"J\1\0\0\0" * 20 + b"t"  # too long for the cache of streams
    at = stream("|S1000", many).index(b"|S1") + 1
    size = 1000
    with flipped(tmp_path / "bytes", at, ord("S"), ord("V")) as mapping:
        for _ in repeat(2.5):
            size = size + 1 if size < 9999 else 1000
            made = stream(f"|S{size}", many)
            fill(mapping, made, at)
            view = memoryview(mapping)[: len(made)].toreadonly()
            _ndarray.from_stream(view, bytes(size))
            view.release()
            for kind in "SV":
                name = f"|{kind}{size}"
                assert _ndarray.from_stream(stream(name, b"K\x01\x85"), bytes(size)).dtype.str == name
