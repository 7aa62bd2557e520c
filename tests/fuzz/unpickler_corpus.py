"""Read the useful inputs that coverage-guided fuzzing has found: one per line, in base64, in the files of ``corpus/``.

``python unpickler_corpus.py pickles|arrays FOLDER`` writes inputs to these files: those in FOLDER, which libFuzzer has
minimized with -merge=1.
"""

import base64
import os
import pickletools
import sys

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")

ARRAY_NAMES = frozenset(
    {"numpy:ndarray", "numpy:dtype", "numpy._core.numeric:_frombuffer", "numpy.core.numeric:_frombuffer"}
)
# The out-of-band buffers for pickles that are read as arrays; the arrays use the memory of these buffers.
BUFFERS = [bytes(range(256)), bytearray(4096), b""]


def _read(kind):
    path = os.path.join(FOLDER, f"{kind}.txt")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [base64.b64decode(line) for line in file if not line.startswith("#")]


def pickles():
    """Return the pickles that are read with the names that `unpickler_seeds.allowed` allows."""
    return _read("pickles")


def arrays():
    """Return the pickles that are read with `ARRAY_NAMES` and `BUFFERS`."""
    return _read("arrays")


def array_seeds():
    """Return pickles of arrays by our picklers and by the standard library, with the data in `BUFFERS` or in-band."""
    import pickle

    import numpy as np

    from pyray_ser import _pickle

    values = [
        np.arange(4.0), np.arange(30, dtype="u2"), np.arange(6, dtype=">i4").reshape(2, 3), np.array(7.5),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros((0, 3)), np.ones((1, 2, 1), "c16"),
        np.array([True, False]), np.zeros(3, "M8[ns]"), np.arange(12)[::2], np.array(["a", "bc"]),
        [np.arange(5), np.arange(5, dtype="f4")], {"a": np.arange(3), "b": [np.ones((2, 2))]},
    ]  # fmt: skip
    found = {}
    for value in values:
        found.setdefault(_pickle.dumps(value))
        found.setdefault(_pickle.dumps(value, buffer_callback=[].append))
        found.setdefault(_pickle._put(value)[0])
        found.setdefault(pickle.dumps(value, 5))
        found.setdefault(pickle.dumps(value, 5, buffer_callback=[].append))
    return list(found)


def opcodes(data):
    """Return [(name, argument)] as far as pickletools can parse the stream, and the offset of the rest."""
    found, start = [], -1
    try:
        for opcode, argument, at in pickletools.genops(data):
            found.append((opcode.name, argument))
            start = at
    except Exception:
        # After the start of the last opcode that pickletools can parse, an unpickler may still execute more opcodes.
        return found, start + 1
    return found, len(data)


def gives_state(data):
    """
    Return whether the stream may contain a BUILD.

    numpy trusts the state that a BUILD sets in its objects, so a forged state can crash the process.
    """
    if b"b" not in data:
        return False
    found, rest = opcodes(data)
    return ("BUILD", None) in found or b"b" in data[rest:]


def main():
    kind, folder = sys.argv[1:]
    found = set()
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            found.add(file.read())
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, f"{kind}.txt"), "w") as file:
        file.write("# Written by unpickler_corpus.py from a folder that libFuzzer has minimized.\n")
        file.writelines(
            base64.b64encode(data).decode() + "\n" for data in sorted(found, key=lambda data: (len(data), data))
        )


if __name__ == "__main__":
    main()
