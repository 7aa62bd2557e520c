"""Run CPython's own suite for picklers with the pure-Python pickler.

The omitted tests assert that certain objects cannot be pickled, but this pickler pickles these objects by value.
"""

import io
import pickle
import unittest

import pytest

from pyray_ser.inspection import debug_pickler

suite = pytest.importorskip("test.pickletester", reason="the interpreter came without its test suite")


class PickleTests(suite.AbstractPickleTests, unittest.TestCase):
    def dumps(self, arg, proto=None, **kwargs):
        return debug_pickler.dumps(arg, proto, **kwargs)

    def loads(self, buf, **kwargs):
        return pickle.loads(buf, **kwargs)

    bad_stack_errors = (pickle.UnpicklingError, IndexError)
    truncated_errors = (pickle.UnpicklingError, EOFError, AttributeError, ValueError)

    # Objects of staticmethod and classmethod, and functions that cannot be imported, are pickled by value here.
    test_c_methods = test_py_methods = test_local_lookup_error = None
    # This test is for the module functions, which get the file's methods in a different way.
    test_framed_write_sizes_with_delayed_writer = None


class PersistentTests(suite.AbstractPersistentPicklerTests, unittest.TestCase):
    def dumps(self, arg, proto=None):
        persistent_id = self.persistent_id

        class Pickler(debug_pickler.Pickler):
            def persistent_id(self, obj):
                return persistent_id(obj)

        file = io.BytesIO()
        Pickler(file, proto).dump(arg)
        return file.getvalue()

    def loads(self, buf, **kwargs):
        persistent_load = self.persistent_load

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, pid):
                return persistent_load(pid)

        return Unpickler(io.BytesIO(buf), **kwargs).load()


class ObjectTests(suite.AbstractPicklerUnpicklerObjectTests, unittest.TestCase):
    pickler_class = debug_pickler.Pickler
    unpickler_class = pickle.Unpickler


class DispatchTableTests(suite.AbstractDispatchTableTests, unittest.TestCase):
    pickler_class = debug_pickler.Pickler

    def get_dispatch_table(self):
        return pickle.dispatch_table.copy()


class HookTests(suite.AbstractHookTests, unittest.TestCase):
    class pickler_class(debug_pickler.Pickler, suite.AbstractCustomPicklerClass):
        pass
