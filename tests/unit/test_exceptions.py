"""Test exceptions: the documented hierarchy, complete messages, and pickling."""

import pickle
import re

import pytest

from pyray_ser import exceptions

CLASSES = [getattr(exceptions, name) for name in exceptions.__all__]


def drawn_hierarchy():
    """Return name -> (parent, builtin bases), read from the module's docstring."""
    drawn, above = {}, {}
    for line in exceptions.__doc__.splitlines():
        match = re.match(r"    ([ |]*(?:\+-- )?)(\w+Error)\b(?:\s+\(([\w, ]+)\))?", line)
        if match:
            column = len(match[1])
            bases = [base.strip() for base in (match[3] or "").split(",") if base.strip()]
            drawn[match[2]] = (above.get(column - 5), bases)
            above[column] = match[2]
    return drawn


def test_drawing_lists_exactly_the_public_classes():
    assert sorted(drawn_hierarchy()) == exceptions.__all__ == sorted(exceptions.__all__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_drawing_is_true(cls):
    parent, bases = drawn_hierarchy()[cls.__name__]
    names = [base.__name__ for base in cls.__bases__]
    assert names == [name for name in (parent, *bases) if name] if parent else names == ["Exception"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_has_documentation_of_its_own_and_composes_a_message(cls):
    assert cls.__doc__
    assert cls.__doc__ != cls.__mro__[1].__doc__
    assert len(str(cls())) > 10
    assert str(cls("said so")) == "said so"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_can_be_made_without_its_facts(cls):
    # tblib, which dask uses, loads pickled exceptions like this.
    assert type(cls.__new__(cls)) is cls


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_survives_pickling_with_its_facts(cls, protocol):
    texts = {"failures", "holders", "reason", "remote_traceback"}
    facts = dict.fromkeys(cls._facts - texts, 7)
    error = cls(**facts)
    error.add_note("seen")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is cls
    assert str(back) == str(error)
    assert back.__notes__ == ["seen"]
    for name, value in facts.items():
        assert getattr(back, name) == value


def test_unknown_fact_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        exceptions.CorruptObjectError(colour=1)


def test_facts_do_not_leak_between_siblings():
    assert not hasattr(exceptions.StoreClosedError(), "size")
    assert exceptions.ForeignStoreError(ref="r").ref == "r"


def test_full_store_names_size_capacity_holders_and_remedy():
    text = str(exceptions.ObjectStoreFullError(size=3 << 20, capacity=10 << 20, used=9 << 20, holders="a (8 MiB)"))
    for part in ("3.0 MiB", "capacity 10.0 MiB", "in use 9.0 MiB", "Held by: a (8 MiB)", "capacity=", "spill_dir"):
        assert part in text
    assert "larger than the whole store" in str(exceptions.ObjectStoreFullError(size=11, capacity=10))


def test_worker_died_names_the_signal():
    error = exceptions.WorkerDiedError(pid=12, exitcode=-9, task="f")
    assert error.signal == 9
    assert "SIGKILL" in str(error) and "memory" in str(error) and "12" in str(error)
    assert "status 3" in str(exceptions.WorkerDiedError(exitcode=3))
    assert "signal 63" in str(exceptions.WorkerDiedError(exitcode=-63)) or "SIGRTMAX" in str(
        exceptions.WorkerDiedError(exitcode=-63)
    )


def test_serialization_error_leaves_the_offenders_behind():
    import threading

    error = exceptions.SerializationError("no", path=".a", failures=(threading.Lock(),))
    assert error.failures
    back = pickle.loads(pickle.dumps(error))
    assert back.failures == () and back.path == ".a"


def test_deep_recursion_is_both():
    with pytest.raises(pickle.PicklingError, match="deep recursion"):
        raise exceptions.DeepRecursionError(path="[0]")
    assert isinstance(exceptions.DeepRecursionError(), RecursionError)


def test_bytes_are_written_for_people():
    assert [exceptions.bytes_text(n) for n in (0, 1023, 1024, 1536, 5 << 40, 5 << 50)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "5.0 TiB", "5120.0 TiB",
    ]  # fmt: skip
