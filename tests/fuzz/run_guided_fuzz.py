"""Fuzz the unpickler with libFuzzer, guided by coverage; ``make fuzz`` starts this script.

    python run_guided_fuzz.py GUIDE [--arrays] CORPUS [libFuzzer's own options and folders]

GUIDE is the library built from guide.c. CORPUS is a folder to which libFuzzer adds inputs that reach new code. With
-merge=1 CORPUS FOUND, libFuzzer adds the smallest inputs of FOUND; unpickler_corpus.py makes them part of the tests.
Each input must produce a value or an exception other than SystemError. This result must be the same for the standard
library and for each way to load with our unpickler. The memory of our unpickler must never exceed `allowance`. With
``--arrays``, the inputs are read as arrays over buffers.

libFuzzer saves an input that causes an abort as ``crash-...`` in the folder given by -artifact_prefix=.
"""

import ctypes
import os
import random
import sys
import time

import unpickler_compare as compare
import unpickler_corpus as corpus
import unpickler_seeds as seeds
from unpickler_mutate import mutate

from pyray_ser import _unpickle

POOL = seeds.seeds()


def allowance(size):
    """
    Return how much memory loading a pickle of `size` bytes may use at its peak.

    Cached facts about a class stay allocated, up to 15 kB. An empty set takes 230 bytes for an opcode of one byte, and
    a deque takes 800 bytes for a call of four opcodes.
    """
    return 40_000 + 300 * size


class TooMuch(Exception):
    pass


def try_input(data):
    start = time.process_time()
    guide.guide_count()
    try:
        _unpickle.loads(data, allow=seeds.allowed)
    except Exception:
        pass  # `compare.difference` compares the exceptions
    peak = guide.guide_peak()
    seconds = time.process_time() - start
    if peak > allowance(len(data)) or seconds > 2:
        raise TooMuch(f"{peak} bytes and {seconds} s of the processor for {len(data)} of input")
    difference = compare.difference(data)
    assert not difference, difference


def try_arrays(data):
    difference = compare.array_difference(data)
    assert not difference, difference


def change(data, seed):
    rng = random.Random(seed)
    return mutate(data, rng, POOL)


def main():
    global guide
    library, *options = sys.argv[1:]
    # Keep the GIL, because libFuzzer calls back into Python.
    guide = ctypes.PyDLL(library)
    guide.guide_peak.restype = ctypes.c_ssize_t
    arrays = "--arrays" in options
    options = [option for option in options if option != "--arrays"]
    if not any(option.startswith("-merge") for option in options):
        folder = next(option for option in options if not option.startswith("-"))
        for number, data in enumerate(corpus.arrays() + corpus.array_seeds() if arrays else corpus.pickles() + POOL):
            with open(os.path.join(folder, f"seed-{number}"), "wb") as file:
                file.write(data)
    # The first argument is the command that libFuzzer starts through a shell for -merge.
    program = " ".join([sys.executable, "-P", os.path.abspath(__file__), library, *(["--arrays"] if arrays else [])])
    words = [program.encode(), *(option.encode() for option in options)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    one = ctypes.py_object(try_arrays if arrays else try_input)
    return guide.guide_run(len(words), argv, one, ctypes.py_object(change))


if __name__ == "__main__":
    sys.exit(main())
