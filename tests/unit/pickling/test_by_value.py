"""Test that objects of ``__main__`` can be loaded in a process with a different ``__main__``."""

import pytest
from isolated import run

import pyray_ser

SCRIPT = """
    import enum, functools, subprocess, sys, typing, pyray_ser
    P = typing.ParamSpec("P"); Ts = typing.TypeVarTuple("Ts"); T = typing.TypeVar("T")
    Bounded = typing.ParamSpec("Bounded", bound=int, covariant=True)
    @functools.lru_cache(maxsize=3, typed=True)
    def cached(x):
        return x + 1
    class Private:
        __slots__ = ("__hidden", "open")
        def __init__(self):
            self.__hidden = 5
            self.open = 6
        def get(self):
            return self.__hidden, self.open
    class Bits(enum.IntFlag):
        LOW = 11
        HIGH = 37
    class Access(enum.Flag):
        R = 1
        W = 2
        RW = 3
        READ = 1
    value = {value}
    code = "import sys, pyray_ser; value = pyray_ser.deserialize(sys.stdin.buffer.read()); " + {test!r}
    done = subprocess.run([sys.executable, "-P", "-c", code], input=pyray_ser.serialize(value), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
"""


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("P", "assert repr(value) == '~P' and value.__name__ == 'P'"),
        ("Bounded", "assert value.__bound__ is int and value.__covariant__"),
        ("Ts", "assert value.__name__ == 'Ts'"),
        ("[P, P, typing.Callable[P, T]]", "assert value[0] is value[1] is value[2].__parameters__[0]"),
        ("cached", "assert value(1) == 2 and value.cache_parameters() == {'maxsize': 3, 'typed': True}"),
        ("[cached, cached]", "assert value[0] is value[1]"),
        ("Private()", "assert value.get() == (5, 6)"),
        ("Bits.HIGH", "assert value == 37 and list(type(value).__members__) == ['LOW', 'HIGH']"),
        ("[Access.RW, Access.R]", "a = type(value[1]); assert value == [a['RW'], a['READ']] and a.RW is a.R | a.W"),
    ],
)
def test_it_is_read_elsewhere(value, test):
    run(SCRIPT.format(value=value, test=test))


def test_what_can_be_imported_goes_by_name():
    run("""
        import functools, re, typing, pyray_ser
        import fnmatch
        cached = next(f for f in vars(fnmatch).values() if isinstance(f, functools._lru_cache_wrapper))
        assert pyray_ser.deserialize(pyray_ser.serialize(cached)) is cached
    """)


def test_an_open_file_is_refused_before_and_after_an_object_that_is_pickled_by_value(tmp_path):
    import io

    made = type("Made", (), {"__module__": "__main__"})
    function = eval("lambda: file", {"__name__": "__main__"})
    (tmp_path / "text").write_text("content")
    with open(tmp_path / "text") as file:
        function.__globals__["file"] = file
        for value in ([file, made()], [made(), file], [function, file], [file], function):
            with pytest.raises(TypeError, match="TextIOWrapper"):
                pyray_ser.put(value)
            assert not pyray_ser.util.inspect_serializability(value, print_file=io.StringIO())[0]


def test_the_standard_streams_are_pickled_by_name():
    run("""
        import io, sys, pyray_ser
        class Made:
            pass
        def function():
            return sys.stderr
        for value in ([sys.stdout, Made()], [Made(), sys.stdout], [sys.stdout], [function, sys.stderr]):
            found = pyray_ser.get(pyray_ser.put(value))
            assert any(item is sys.stdout or item is sys.stderr for item in found)
            assert pyray_ser.util.inspect_serializability(value, print_file=io.StringIO())[0]
    """)


def test_an_object_that_is_pickled_by_value_changes_nothing_about_others():
    """cloudpickle has reducers for types such as memoryview, which apply only if the types' own reductions fail."""
    import collections
    import logging
    import types

    made = type("Made", (), {"__module__": "__main__"})
    values = [
        memoryview(b"abc"),
        collections.OrderedDict(a=1).keys(),
        {"a": 1}.items(),
        types.MappingProxyType({"a": 1}),
        logging.getLogger("pyray_ser.test"),
        property(len),
        bytearray(b"x"),
    ]
    for value in values:
        results = []
        for both in ([value, made()], [made(), value]):
            try:
                results.append({type(item).__name__ for item in pyray_ser.get(pyray_ser.put(both))})
            except TypeError:
                results.append({"refused"})
        assert results[0] == results[1], (value, results)
