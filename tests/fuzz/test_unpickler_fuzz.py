"""For mutated pickles, the standard library and our unpickler must return equal values or raise similar exceptions.

The number of rounds is small here; ``make fuzz`` runs as long as requested, guided by coverage, in a sanitizer build.
The tests also read the useful inputs that it has found, which are in ``corpus/``.
"""

import os
import random
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import unpickler_compare as compare
import unpickler_corpus as corpus
import unpickler_seeds as seeds
from unpickler_mutate import mutate

SEEDS = seeds.seeds()


def test_seeds_are_read_alike():
    for data in SEEDS:
        difference = compare.difference(data)
        assert not difference, (data, difference)


@pytest.mark.parametrize("start", range(8))
def test_changed_pickles_are_read_alike(start):
    rng = random.Random(start)
    for _ in range(3000):
        data = mutate(rng.choice(SEEDS), rng, SEEDS)
        difference = compare.difference(data)
        assert not difference, (data, difference)


def test_every_truncation_is_read_alike():
    for data in SEEDS[::3]:
        for end in range(len(data)):
            difference = compare.difference(data[:end])
            assert not difference, (data[:end], difference)


def test_inputs_found_by_coverage_are_read_alike():
    inputs = corpus.pickles()
    assert len(inputs) > 100
    for data in inputs:
        difference = compare.difference(data)
        assert not difference, (data, difference)


def test_arrays_found_by_coverage_are_read_alike():
    inputs = corpus.arrays()
    assert len(inputs) > 50
    for data in inputs:
        difference = compare.array_difference(data)
        assert not difference, (data, difference)


def test_changed_arrays_are_read_alike():
    rng, originals = random.Random(0), corpus.array_seeds()
    for _ in range(2000):
        data = mutate(rng.choice(originals), rng, originals)
        difference = compare.array_difference(data)
        assert not difference, (data, difference)
