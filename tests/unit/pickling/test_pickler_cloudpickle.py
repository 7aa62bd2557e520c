"""Run cloudpickle's own test suite with our functions in place of those of cloudpickle and pickle.

`make test` downloads the suite. cloudpickle_bound.py replaces the functions in the pytest process that runs the suite,
and in the children that its tests start. This module names the tests with a different result, each with its reason; a
named test that passes, or any other failure, is an error here. Further tests cover the faults that the suite has
revealed.
"""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import types
import typing
import weakref
from pathlib import Path

import pytest
from isolated import run

import pyray_ser

OPEN_FILE = "an open text file is refused: cloudpickle would read it and send what it read"
RECURSION = "a RecursionError of the object's own code passes as it is, as with pickle; cloudpickle makes another exception of it"

FAILING = {
    "cloudpickle_file_test.py::CloudPickleFileTests::test_closed_file": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_empty_file": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_pickling_special_file_handles": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_plus_mode": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_r_mode": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_seek": OPEN_FILE,
    "cloudpickle_file_test.py::CloudPickleFileTests::test_w_mode": OPEN_FILE,
    "cloudpickle_test.py::CloudPickleTest::test_recursion_during_pickling": RECURSION,
    "cloudpickle_test.py::Protocol2CloudPickleTest::test_recursion_during_pickling": RECURSION,
}
# This test also fails with cloudpickle's own functions: later releases of numpy report another module for a ufunc.
LEFT_OUT = "test_importing_multiprocessing_does_not_impact_whichmodule"
# The suite itself skips these tests or expects them to fail.
SET_ASIDE = {
    "cloudpickle_test.py::CloudPickleTest::test_builtin_classmethod_descriptor": "gone from Python 3.11 on",
    "cloudpickle_test.py::Protocol2CloudPickleTest::test_builtin_classmethod_descriptor": "gone from Python 3.11 on",
    "cloudpickle_test.py::CloudPickleTest::test_dynamic_class_deterministic_roundtrip": "it calls xfail",
    "cloudpickle_test.py::Protocol2CloudPickleTest::test_dynamic_class_deterministic_roundtrip": "it calls xfail",
    "cloudpickle_test.py::Protocol2CloudPickleTest::test_out_of_band_buffers": "for protocol 5",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return {test: (outcome, output)} of one run of the suite."""
    folder = os.environ.get("PYRAY_SER_CLOUDPICKLE_SUITE")
    if not folder:
        pytest.skip("PYRAY_SER_CLOUDPICKLE_SUITE names no folder; `make test` makes one")
    if sys.version_info >= (3, 14):
        pytest.skip("the last cloudpickle that was distributed with its tests is older than Python 3.14")
    suite = os.path.join(os.path.abspath(folder), "suite")
    here = str(Path(__file__).parents[2] / "support")
    shutil.copy(os.path.join(here, "cloudpickle_bound.py"), os.path.join(suite, "tests", "sitecustomize.py"))
    results = tmp_path_factory.mktemp("cloudpickle") / "outcomes.json"
    path = [suite, here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1", "CLOUDPICKLE_OUTCOMES": str(results)
    }  # fmt: skip
    options = ["-c", os.devnull, "--rootdir", suite, "-p", "cloudpickle_bound", "-p", "no:cacheprovider", "-s", "-q"]
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options, "-k", f"not {LEFT_OUT}", "tests"],
        cwd=suite, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert results.exists(), ran.stdout[-3000:] + ran.stderr[-3000:]
    with open(results) as file:
        return {name: tuple(outcome) for name, outcome in json.load(file).items()}


def test_the_suite_has_run(outcomes):
    assert len(outcomes) > 250
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) > 230


def test_what_fails_is_what_must_differ(outcomes):
    failed = {name: said for name, (outcome, said) in outcomes.items() if outcome == "failed"}
    unexpected = {name: said[-1500:] for name, said in failed.items() if name not in FAILING}
    assert not unexpected, "\n\n".join(f"{name}\n{said}" for name, said in unexpected.items())
    assert not set(FAILING) - set(failed), "these no longer fail"


def test_nothing_else_is_set_aside(outcomes):
    expected = set(SET_ASIDE)
    if sys.version_info >= (3, 12):
        # These tests read pickles that older releases of cloudpickle wrote with the same version of Python, and such
        # pickles do not exist for newer versions.
        expected |= {name for name in outcomes if name.startswith("test_backward_compat.py")}
    assert {name for name, (outcome, _) in outcomes.items() if outcome == "skipped"} == expected


# ---- faults that the suite has revealed --------------------------------------------------------------------------------

EVERY_PROTOCOL = pytest.mark.parametrize("protocol", range(6))


def again(value, protocol=5):
    return pickle.loads(pyray_ser.dumps(value, protocol))


@EVERY_PROTOCOL
def test_type_variable_of_a_function(protocol):
    T = typing.TypeVar("T", bound=int, covariant=True)
    first, second = again([T, T], protocol)
    assert first is second is T  # cloudpickle recognizes its own type variable in this process, as it does for classes
    assert again(typing.AnyStr, protocol) is typing.AnyStr
    assert b"cloudpickle" not in pyray_ser.dumps(typing.AnyStr, protocol)


def test_type_variable_of_main_travels():
    source = """
        import sys, typing, pyray_ser
        T = typing.TypeVar("T", int, str)
        sys.stdout.buffer.write(pyray_ser.dumps([T, typing.Generic[T]]))
    """
    data = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(source)], capture_output=True, check=True).stdout
    T, generic = pickle.loads(data)
    assert T.__constraints__ == (int, str) and generic.__parameters__ == (T,)


@pytest.mark.parametrize("protocol", range(2, 6))  # protocols 0 and 1 cannot pickle slots
def test_field_markers_of_dataclasses_keep_their_identity(protocol):
    @dataclasses.dataclass
    class Local:
        a: int
        b: dataclasses.InitVar[int] = 3
        c: typing.ClassVar[int] = 4

    marker = Local.__dataclass_fields__["a"]._field_type
    assert again(marker, protocol) is marker
    source = """
        import sys, dataclasses, typing, pyray_ser
        @dataclasses.dataclass
        class Remote:
            a: int
            b: dataclasses.InitVar[int] = 3
            c: typing.ClassVar[int] = 4
        sys.stdout.buffer.write(pyray_ser.dumps(Remote(1), PROTOCOL))
    """.replace("PROTOCOL", str(protocol))
    data = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(source)], capture_output=True, check=True).stdout
    remote = pickle.loads(data)
    assert [field.name for field in dataclasses.fields(remote)] == ["a"]
    assert dataclasses.asdict(remote) == {"a": 1}


class Member:
    pass


@EVERY_PROTOCOL
def test_set_of_weak_references(protocol):
    members = [Member(), Member()]
    found, first, second = again([weakref.WeakSet(members), *members], protocol)
    assert set(found) == {first, second}
    assert len(again(weakref.WeakSet(), protocol)) == 0


@EVERY_PROTOCOL
def test_getset_descriptor(protocol):
    assert again(float.real, protocol) is float.real
    assert again([float.real, types.FunctionType.__code__], protocol)[0] is float.real


class Methods:
    def plain(self):
        return "plain"

    @classmethod
    def of_class(cls):
        return cls.__name__

    def __mangled(self):
        return "mangled"

    def mangled(self):
        return self.__mangled


Methods.other_name = lambda self, x: (type(self).__name__, x)


@EVERY_PROTOCOL
def test_bound_methods_whose_name_leads_elsewhere(protocol):
    one = Methods()
    assert again(one.other_name, protocol)(3) == ("Methods", 3)
    assert again(one.mangled(), protocol)() == "mangled"
    other, method = again([one, one.other_name], protocol)
    assert method.__self__ is other


@EVERY_PROTOCOL
def test_bound_methods_go_by_name(protocol):
    """Our pickler writes bound methods like the standard library, without references to cloudpickle or the function."""
    for method in (Methods().plain, Methods.of_class, Methods().of_class):
        assert again(method, protocol)() == method()
        data = pyray_ser.dumps(method, protocol)
        assert b"cloudpickle.cloudpickle" not in data
        # In protocol 5, our pickler omits opcodes that are not needed.
        assert protocol == 5 or data == pickle.dumps(method, protocol)


class Faulty(types.ModuleType):
    def __getattr__(self, name):
        raise ZeroDivisionError(name)


class Interrupting(types.ModuleType):
    def __getattr__(self, name):
        raise KeyboardInterrupt


def homeless():
    return "it works"


@EVERY_PROTOCOL
def test_module_that_raises_is_no_obstacle(protocol, monkeypatch):
    monkeypatch.setitem(sys.modules, "_faulty_module", Faulty("_faulty_module"))
    homes = {name for name, module in list(sys.modules.items()) if vars(module).get("homeless") is homeless}
    monkeypatch.setattr(homeless, "__module__", None)
    assert again(homeless, protocol)() == "it works"
    assert any(home.encode() in pyray_ser.dumps(homeless, protocol) for home in homes)
    # A class that no module contains is pickled by value.
    monkeypatch.setattr(homeless, "__qualname__", "nowhere")
    assert again(homeless, protocol)() == "it works"


def test_interrupt_while_modules_are_searched(monkeypatch):
    # Make this module the first in `sys.modules`, so that the search reaches it before it finds the function.
    modules = dict(sys.modules)
    sys.modules.clear()
    sys.modules["_interrupting_module"] = Interrupting("_interrupting_module")
    sys.modules.update(modules)
    try:
        monkeypatch.setattr(homeless, "__module__", None)
        with pytest.raises(KeyboardInterrupt):
            pyray_ser.dumps(homeless)
    finally:
        del sys.modules["_interrupting_module"]


def test_error_in_a_handler_that_interrupts_the_import_of_cloudpickle():
    script = """
    import sys, pyray_ser
    said = []

    def trace(frame, event, argument):
        if frame.f_code.co_filename.endswith("cloudpickle.py") and event == "line" and not said:
            said.append(None)
            sys.settrace(None)
            for obj in (memoryview(b"x"), lambda: 1):
                try:
                    pyray_ser.dumps(obj)
                except Exception as error:
                    said.append((type(error).__name__, "import cloudpickle before" in str(error)))
        return trace

    sys.settrace(trace)
    pyray_ser.loads(pyray_ser.dumps(memoryview(b"x")))
    print(said[1:], pyray_ser.loads(pyray_ser.dumps(lambda: 1))())
    """
    assert run(script) == "[('PicklingError', True), ('PicklingError', True)] 1"


@pytest.mark.parametrize("error", ["TimeoutError", "OSError", "ValueError"])
def test_exception_of_a_handler_inside_a_reduction_is_raised(error):
    script = f"""
    import sys, pyray_ser
    pyray_ser.dumps(memoryview(b"x"))

    def trace(frame, event, argument):
        if frame.f_code.co_name == "_memoryview_reduce":
            sys.settrace(None)
            raise {error}("by a handler")

    sys.settrace(trace)
    try:
        pyray_ser.dumps(memoryview(b"x"))
    except {error} as error:
        print(error)
    """
    assert run(script) == "by a handler"
