"""Test the options of `init`: common notations of sizes, errors for invalid values, warnings for ignored options."""

import pytest
from isolated import run

from pyray_ser.store import options


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (64 << 20, 64 << 20),
        ("64M", 64 << 20),
        ("64 MiB", 64 << 20),
        ("0.5g", 512 << 20),
        ("67108864", 64 << 20),
        (6.4e7, 64_000_000),
    ],
)
def test_a_size_is_a_number_or_a_text_with_a_unit(given, size):
    assert options.check(capacity=given) == {"capacity": size}


def test_numpy_integers_are_sizes_and_counts():
    numpy = pytest.importorskip("numpy")
    assert options.check(capacity=numpy.int64(1 << 24), max_clients=numpy.uint8(9)) == {
        "capacity": 1 << 24,
        "max_clients": 9,
    }


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("capacity", True, TypeError, "capacity must be a number of bytes or a size such as"),
        ("capacity", 100, ValueError, "at least 1048576 bytes, not 100; hint:"),
        ("capacity", -5, ValueError, "at least"),
        ("capacity", 10**15, ValueError, "at most 8.0 TiB, not 1000000000000000"),
        ("capacity", 0.5, ValueError, "whole number of bytes, not 0.5"),
        ("capacity", float("nan"), ValueError, "whole number"),
        ("capacity", "much", ValueError, "capacity must be a size, not 'much'; hint:"),
        ("capacity", [1], TypeError, r"not \[1\]"),
        ("max_clients", 5000, ValueError, "between 4 and 4096, not 5000"),
        ("max_clients", 0, ValueError, "between"),
        ("max_clients", True, TypeError, "must be an int, not True"),
        ("max_clients", "9", TypeError, "must be an int"),
        ("max_objects", 0, ValueError, "between"),
        ("max_objects", 2.5, TypeError, "must be an int"),
        ("lock_timeout", 0, ValueError, "must be positive"),
        ("lock_timeout", True, TypeError, "number of seconds, not True"),
        ("lock_timeout", float("nan"), ValueError, "positive"),
        ("lock_timeout", "1", TypeError, "number of seconds"),
        ("warm_reserve", 0, ValueError, "must be positive"),
        ("warm_reserve", True, TypeError, "number of bytes"),
        ("liveness", "maybe", ValueError, "liveness must be"),
        ("spill_compress", "zip", ValueError, "spill_compress must be"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_with_the_reason(name, value, error, words):
    with pytest.raises(error, match=words):
        options.check(**{name: value})


def test_init_takes_a_size_wherever_the_environment_variable_does():
    run("""
        import pyray_ser
        assert pyray_ser.init(capacity="48M").capacity == 48 << 20
    """)


def test_init_after_the_first_put_warns_with_both_values():
    run("""
        import warnings, pyray_ser
        ref = pyray_ser.put(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            store = pyray_ser.init(capacity=100 << 20, spill_dir="/nowhere/at/all", max_objects=5000, lock_timeout=9)
        (warning,) = caught
        assert warning.category is RuntimeWarning and warning.filename == __file__
        text = str(warning.message)
        for words in ("capacity=104857600 (100.0 MiB)", str(store.capacity), "spill_dir='/nowhere/at/all' (it has None)",
                      "max_objects=5000", "lock_timeout=9.0 (it has 1.0)", "already; hint: call init() before the first put"):
            assert words in text, text
        assert pyray_ser.get(ref) == 1
    """)


def test_init_that_repeats_what_the_store_has_is_silent():
    run("""
        import warnings, pyray_ser
        warnings.simplefilter("error")
        given = dict(capacity=(20 << 20) + 1, max_clients=9, max_objects=5000, lock_timeout=2, warm_reserve="1M", liveness="pid")
        store = pyray_ser.init(**given)
        assert pyray_ser.init(**given) is store and pyray_ser.init() is store
        assert store.options["liveness"] == "pid" and store.options["max_objects"] >= 5000
        pyray_ser.shutdown()
        assert pyray_ser.init(capacity=30 << 20).capacity == 30 << 20
    """)


def test_two_calls_of_init_that_ask_for_different_things_conflict():
    run("""
        import pyray_ser
        store = pyray_ser.init(capacity="32M")
        try:
            pyray_ser.init(capacity="64M")
        except ValueError as error:
            text = str(error)
        assert text.startswith("capacity must be 33554432 (32.0 MiB)") and "not 67108864 (64.0 MiB); hint:" in text, text
        assert pyray_ser.init() is store
    """)


def test_init_that_failed_leaves_no_options_behind(tmp_path):
    run(f"""
        import pyray_ser
        try:
            pyray_ser.init(spill_dir={str(tmp_path / "a" / "b")!r})
        except FileNotFoundError as error:
            assert "spill_dir must be a directory that can be made" in str(error), error
        pyray_ser.init(spill_dir={str(tmp_path / "c")!r})
    """)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_asks_for_another_store_than_it_joins_is_warned(method):
    run(f"""
        import multiprocessing, warnings, pyray_ser
        def child(queue):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                pyray_ser.init(capacity="300M")
            queue.put([str(warning.message) for warning in caught])
        if __name__ == "__main__":
            pyray_ser.init(capacity="50M")
            context = multiprocessing.get_context({method!r})
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            (text,) = queue.get()
            process.join()
            assert "capacity=314572800 (300.0 MiB) (it has 52428800 (50.0 MiB))" in text, text
    """)


def test_a_program_that_joins_its_callers_store_is_told_who_made_it():
    run("""
        import subprocess, sys, pyray_ser
        pyray_ser.init(capacity="50M")
        code = "import pyray_ser; pyray_ser.init(capacity='400M')"
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
        assert "this process joined <Store" in done.stderr and "which another process made; hint:" in done.stderr, done.stderr
    """)


def test_pool_options_that_come_too_late_are_refused():
    run("""
        import pyray_ser
        @pyray_ser.remote
        def one():
            return 1
        pyray_ser.init(num_workers=1)
        assert pyray_ser.get(one.remote()) == 1
        try:
            pyray_ser.init(num_workers=2)
        except ValueError as error:
            assert "shutdown() first" in str(error)
        else:
            raise AssertionError("accepted")
    """)
