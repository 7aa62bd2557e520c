"""Run the standard library's own pickle tests with our unpickler and the standard library's C pickler.

The only omitted tests of unpicklers are ``SizeofTests``, which count the bytes of the C structures of the standard
library's classes.
"""

import collections
import io
import pickle
import sys
import unittest

import pytest

_pickle = pytest.importorskip("_pickle")
pickletester = pytest.importorskip("test.pickletester")
test_pickle = pytest.importorskip("test.test_pickle")

from pyray_ser import _unpickle  # noqa: E402


@pytest.fixture(autouse=True)
def no_module_that_answers_to_any_name(monkeypatch):
    """Hide torch's modules: they raise unexpected exceptions if the standard library searches them for a global."""
    for name in [name for name in sys.modules if name.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)


class ModuleTests(pickletester.AbstractPickleModuleTests, unittest.TestCase):
    from _pickle import Pickler, dump, dumps

    from pyray_ser._unpickle import Unpickler, load, loads


class UnpicklerTests(pickletester.AbstractUnpickleTests, unittest.TestCase):
    unpickler = _unpickle.Unpickler
    bad_stack_errors = (pickle.UnpicklingError,)
    truncated_errors = (pickle.UnpicklingError,)

    def loads(self, buf, **kwds):
        return self.unpickler(io.BytesIO(buf), **kwds).load()


class InMemoryUnpicklerTests(pickletester.AbstractUnpickleTests, pickletester.AbstractPickleTests, unittest.TestCase):
    pickler = _pickle.Pickler
    unpickler = _unpickle.Unpickler
    bad_stack_errors = (pickle.UnpicklingError,)
    truncated_errors = (pickle.UnpicklingError,)

    def dumps(self, arg, protocol=None, **kwds):
        return _pickle.dumps(arg, protocol, **kwds)

    def loads(self, buf, **kwds):
        return _unpickle.loads(buf, **kwds)


class PeekingUnpicklerTests(UnpicklerTests):
    """Run the tests with readers that have peek()."""

    def loads(self, buf, **kwds):
        return self.unpickler(io.BufferedReader(io.BytesIO(buf)), **kwds).load()


class MinimalFile:
    """A reader that has only read() and readline()."""

    def __init__(self, data):
        file = io.BytesIO(data)
        self.read, self.readline = file.read, file.readline


class MinimalUnpicklerTests(UnpicklerTests):
    """Run the tests with readers that have neither readinto() nor peek()."""

    def loads(self, buf, **kwds):
        return self.unpickler(MinimalFile(buf), **kwds).load()


class PicklerTests(test_pickle.PyPicklerTests):
    pickler = _pickle.Pickler
    unpickler = _unpickle.Unpickler


class PythonPicklerTests(test_pickle.PyPicklerTests):
    pickler = pickle._Pickler
    unpickler = _unpickle.Unpickler


class PersistentTests(test_pickle.PyPersPicklerTests):
    pickler = _pickle.Pickler
    unpickler = _unpickle.Unpickler


class IdentityPersistentTests(test_pickle.PyIdPersPicklerTests):
    pickler = _pickle.Pickler
    unpickler = _unpickle.Unpickler


class ObjectTests(pickletester.AbstractPicklerUnpicklerObjectTests, unittest.TestCase):
    pickler_class = _pickle.Pickler
    unpickler_class = _unpickle.Unpickler

    def test_memo_refuses_what_is_no_memo(self):
        unpickler = self.unpickler_class(io.BytesIO())
        with self.assertRaises(TypeError):
            unpickler.memo = object
        with self.assertRaises(ValueError):
            unpickler.memo = {-1: None}
        unpickler.memo = {1: None}


class DispatchTableTests(pickletester.AbstractDispatchTableTests, unittest.TestCase):
    pickler_class = _pickle.Pickler

    def get_dispatch_table(self):
        return collections.ChainMap({}, pickle.dispatch_table)
