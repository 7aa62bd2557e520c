"""Pickles changed with coverage for a guide, by libFuzzer: ``make fuzz`` says how this is started.

    python run_guided_fuzz.py GUIDE [--arrays] CORPUS [libFuzzer's own options and folders]

GUIDE is the library made of guide.c, CORPUS a folder that inputs which reach new code are added to; with -merge=1 CORPUS FOUND it gets
the smallest of those in FOUND (and unpickler_corpus.py makes them part of the tests). Each input must end in a value or
an exception that is not SystemError, the same in all our ways to read and in the standard library; our memory must stay below
`allowance` at every moment. With ``--arrays``, arrays over buffers are what is read.

What aborts is kept by libFuzzer as ``crash-...`` in the folder of -artifact_prefix=.
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
    """How much memory a pickle of `size` bytes may take on the way. What is learned of a class is kept, 15 kB at most; an empty set
    is 230 bytes for an opcode of one, a deque 800 for the four of a call."""
    return 40_000 + 300 * size


class TooMuch(Exception):
    pass


def try_input(data):
    start = time.process_time()
    guide.guide_count()
    try:
        _unpickle.loads(data, allow=seeds.allowed)
    except Exception:
        pass  # which one it is, is compared below
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
    # The GIL is kept: libFuzzer calls back into Python.
    guide = ctypes.PyDLL(library)
    guide.guide_peak.restype = ctypes.c_ssize_t
    arrays = "--arrays" in options
    options = [option for option in options if option != "--arrays"]
    if not any(option.startswith("-merge") for option in options):
        folder = next(option for option in options if not option.startswith("-"))
        for number, data in enumerate(corpus.arrays() + corpus.array_seeds() if arrays else corpus.pickles() + POOL):
            with open(os.path.join(folder, f"seed-{number}"), "wb") as file:
                file.write(data)
    # What it starts itself, for -merge, by a shell.
    program = " ".join([sys.executable, "-P", os.path.abspath(__file__), library, *(["--arrays"] if arrays else [])])
    words = [program.encode(), *(option.encode() for option in options)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    one = ctypes.py_object(try_arrays if arrays else try_input)
    return guide.guide_run(len(words), argv, one, ctypes.py_object(change))


if __name__ == "__main__":
    sys.exit(main())
