"""Test that `.remote()` checks the arguments in the caller, and the `map` of remote functions."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import math
import operator
import threading
import time
from pathlib import Path

import pytest

import pyray_ser as ray
from pyray_ser.exceptions import GetTimeoutError, TaskError
from pyray_ser.tasks import signatures


@pytest.fixture(autouse=True, scope="module")
def pool():
    ray.init(num_workers=2)
    yield
    ray.shutdown()


@ray.remote
def add(a, b=0):
    return a + b


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(1, *args)

    return wrapper


def test_arguments_that_do_not_fit_raise_at_the_call():
    with pytest.raises(TypeError, match=r"add: missing a required argument: 'a'; its signature is add\(a, b=0\)"):
        add.remote()
    for args, kwargs in (((1, 2, 3), {}), ((1,), {"c": 2}), ((1,), {"a": 2}), ((), {"b": 2})):
        with pytest.raises(TypeError, match="its signature is"):
            add.remote(*args, **kwargs)
    assert ray.get([add.remote(1), add.remote(1, 2), add.remote(1, b=2), add.remote(a=1, b=2)]) == [1, 3, 3, 3]


def test_references_fit_where_any_value_does():
    assert ray.get(add.remote(ray.put(1), b=add.remote(1))) == 2
    with pytest.raises(TypeError):
        add.remote(*[ray.put(1)] * 3)


def test_functions_that_have_no_signature_are_not_checked():
    signatures.of_callable(max, "max").check((), {"x": 1})
    assert ray.get(ray.remote(max).remote(1, 2)) == 2
    with pytest.raises(TaskError, match="TypeError"):
        ray.get(ray.remote(max).remote())


def test_a_decorated_function_is_checked_by_what_its_decorator_takes():
    @ray.remote
    @wrapped
    def needs_two(a, b):
        return a, b

    assert ray.get(needs_two.remote(2)) == (1, 2)


def test_a_signature_that_the_program_set_is_not_used():
    def function(*args):
        return args

    function.__signature__ = inspect.signature(lambda a: None)
    assert ray.get(ray.remote(function).remote(1, 2)) == (1, 2)


FUNCTIONS = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /, b=1: None,
    lambda a, /, b, *c: None,
    lambda *a: None,
    lambda **a: None,
    lambda a, b=1, *, c: None,
    lambda a=1, *, c=2, **d: None,
    lambda a, *b, c, d=1: None,
    functools.partial(lambda a, b, c=1: None, 1),
    functools.partial(lambda a, b, c=1: None, b=1),
    functools.partial(lambda a, /, b: None, 1),
    operator.itemgetter(0).__call__,
    math.hypot,
    math.copysign,
]


def outcome(call, /, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except TypeError as error:
        return str(error).removeprefix("f: ").partition(";")[0]
    return "fits"


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_the_check_agrees_with_inspect(function):
    check = signatures.of_callable(function, "f").check
    try:
        signature = inspect.signature(function)
    except ValueError:
        check((), {"x": 1})
        return
    for given in range(4):
        for names in itertools.chain.from_iterable(itertools.combinations("abcx", n) for n in range(4)):
            args, kwargs = (0,) * given, dict.fromkeys(names, 0)
            wanted = outcome(signature.bind, *args, **kwargs)
            assert outcome(check, args, kwargs) == outcome(check, args, kwargs) == wanted, (args, kwargs)


def test_a_keyword_may_have_the_name_of_a_positional_only_parameter():
    @ray.remote
    def function(a=1, /, **b):
        return a, b

    assert ray.get(function.remote(a=2)) == (1, {"a": 2})


@ray.remote
class Counter:
    def __init__(self, start, step=1):
        self.value = start
        self.step = step

    def add(self, n, *, twice=False):
        self.value += n * self.step * (1 + twice)
        return self.value

    @staticmethod
    def static(a):
        return a

    @classmethod
    def cls(cls, a):
        return cls.__name__, a

    def handle(self, other):
        return ray.get(other.add.remote(1, 2, 3))


def test_actors_check_the_arguments_of_constructors_and_methods():
    with pytest.raises(TypeError, match=r"Counter: missing a required argument: 'start'"):
        Counter.remote()
    with pytest.raises(TypeError, match="Counter: got an unexpected keyword argument 'stop'"):
        Counter.remote(1, stop=2)
    counter = Counter.remote(1, step=2)
    with pytest.raises(
        TypeError, match=r"Counter.add: too many positional arguments; its signature is Counter\.add\(n, \*"
    ):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError, match=r"Counter\.static"):
        counter.static.remote()
    with pytest.raises(TypeError, match=r"Counter\.cls"):
        counter.cls.remote(1, 2)
    assert ray.get(counter.add.remote(1, twice=True)) == 5
    assert ray.get([counter.static.remote(1), counter.cls.remote(1)]) == [1, ("Counter", 1)]
    other = Counter.remote(1)
    with pytest.raises(TaskError, match="positional argument"):
        ray.get(other.handle.remote(counter))


# ---- map


@ray.remote
def square(x):
    return x * x


@ray.remote
async def later(x):
    return x + 1


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_yields_results_in_order(chunksize):
    assert list(square.map(range(20), chunksize=chunksize)) == [x * x for x in range(20)]
    assert list(add.map(range(5), range(3), chunksize=chunksize)) == [0, 2, 4]
    assert list(later.map(range(3), chunksize=chunksize)) == [1, 2, 3]
    assert list(square.map([], chunksize=chunksize)) == []


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_takes_references(chunksize):
    refs = [ray.put(2), square.remote(2), 5]
    assert list(square.map(refs, chunksize=chunksize)) == [4, 16, 25]


def test_map_makes_new_calls_as_results_are_taken():
    numbers = itertools.count()
    found = square.map(numbers, in_flight=3)
    assert next(numbers) == 3
    assert [next(found) for _ in range(3)] == [0, 1, 4]
    assert next(numbers) == 7
    found = square.map(itertools.count(), chunksize=10)
    assert list(itertools.islice(found, 25)) == [x * x for x in range(25)]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_the_error_of_a_call(chunksize):
    found = add.map([1, 2, "x", 4], chunksize=chunksize)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(TypeError) as caught:
        next(found)
    assert isinstance(caught.value, TaskError) and caught.value.task == "add"


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_checks_arguments(chunksize):
    with pytest.raises(TypeError, match="its signature is"):
        square.map([1], [2], chunksize=chunksize)
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        square.map([1], chunksize=0)
    with pytest.raises(ValueError, match="in_flight must be at least 1"):
        square.map([1], in_flight=0)
    with pytest.raises(TypeError, match="map needs one result for each call"):
        square.options(num_returns=2).map([1])


@pytest.mark.parametrize("chunksize", [1, 2])
def test_dropping_a_map_cancels_calls_that_have_not_started(chunksize, tmp_path):
    slow = [ray.remote(time.sleep).remote(1) for _ in range(2)]  # one for each worker
    found = ray.remote(Path.touch).map([tmp_path / str(i) for i in range(4)], chunksize=chunksize)
    del found
    ray.get(slow)
    assert list(square.map(range(4))) == [0, 1, 4, 9]
    assert not list(tmp_path.iterdir())


def test_map_has_a_timeout():
    found = ray.remote(time.sleep).map([0, 30], timeout=2)
    assert next(found) is None
    with pytest.raises(GetTimeoutError):
        next(found)
    ray.shutdown()
    ray.init(num_workers=2)


def test_maps_of_several_threads_run_at_the_same_time():
    results = {}

    def work(n):
        results[n] = list(square.map(range(n, n + 20)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [x * x for x in range(n, n + 20)] for n in range(4)}


# ---- map of an actor's method


@ray.remote
class Calculator:
    def __init__(self, start=0):
        self.calls = [start]

    def add(self, x, y=0):
        self.calls.append(x)
        return x + y

    def log(self):
        return self.calls

    def nap(self, seconds):
        time.sleep(seconds)
        return seconds

    def numbers(self, n):
        yield from range(n)

    def mapped(self, other, items):
        return list(other.add.map(items, chunksize=2))


@ray.remote
class AsyncCalculator:
    def __init__(self):
        self.calls = []
        self.running = self.most = 0

    async def add(self, x, y=0):
        self.calls.append(x)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.05)
        self.running -= 1
        return x + y

    def log(self):
        return self.calls

    def concurrent(self):
        return self.most


@pytest.mark.parametrize("chunksize", [1, 3, 100])
@pytest.mark.parametrize("cls", [Calculator, AsyncCalculator])
def test_map_of_a_method_yields_results_in_order(cls, chunksize):
    actor = cls.remote()
    assert list(actor.add.map(range(20), chunksize=chunksize)) == list(range(20))
    assert list(actor.add.map(range(5), range(3), chunksize=chunksize)) == [0, 2, 4]
    assert list(actor.add.map([], chunksize=chunksize)) == []
    assert ray.get(actor.log.remote())[-23:] == [*range(20), *range(3)]


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("cls", [Calculator, AsyncCalculator])
def test_map_of_a_method_takes_references(cls, chunksize):
    actor = cls.remote()
    # Two of these are results of the actor itself, which are not ready yet.
    refs = [ray.put(2), square.remote(2), actor.add.remote(6), 7, actor.add.remote(8)]
    assert list(actor.add.map(refs, chunksize=chunksize)) == [2, 4, 6, 7, 8]


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("cls", [Calculator, AsyncCalculator])
def test_map_of_a_method_starts_its_calls_between_earlier_and_later_calls(cls, chunksize):
    actor = cls.remote()
    first = actor.add.remote(-1)
    found = actor.add.map(range(8), chunksize=chunksize)
    last = actor.add.remote(-2)
    assert list(found) == list(range(8))
    assert ray.get([first, last]) == [-1, -2]
    assert ray.get(actor.log.remote())[-10:] == [-1, *range(8), -2]


def test_map_of_a_coroutine_method_runs_concurrently():
    actor = AsyncCalculator.remote()
    list(actor.add.map(range(10), in_flight=5))
    assert 1 < ray.get(actor.concurrent.remote()) <= 5
    list(actor.add.map(range(10), chunksize=10))
    assert ray.get(actor.concurrent.remote()) == 10


def test_map_of_a_method_makes_new_calls_as_results_are_taken():
    actor = Calculator.remote()
    numbers = itertools.count()
    found = actor.add.map(numbers, in_flight=3)
    assert next(numbers) == 3
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    assert next(numbers) == 7
    found = actor.add.map(itertools.count(), chunksize=10)
    assert list(itertools.islice(found, 25)) == list(range(25))


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("cls", [Calculator, AsyncCalculator])
def test_map_of_a_method_raises_the_error_of_a_call(cls, chunksize):
    found = cls.remote().add.map([1, 2, "x", "y"], chunksize=chunksize)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(TypeError) as caught:
        next(found)
    assert isinstance(caught.value, TaskError) and caught.value.task == f"{cls.__name__}.add"


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_of_a_method_checks_arguments(chunksize):
    actor = Calculator.remote()
    with pytest.raises(TypeError, match=r"Calculator\.add: too many positional arguments"):
        actor.add.map([1], [2], [3], chunksize=chunksize)
    with pytest.raises(TypeError, match=r"argument 1 of Calculator\.add: cannot pickle '_thread.lock' object"):
        actor.add.map([1, 2], [3, threading.Lock()], chunksize=chunksize)
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        actor.add.map([1], chunksize=0)
    with pytest.raises(ValueError, match="in_flight must be at least 1"):
        actor.add.map([1], in_flight=0)
    for method in (actor.numbers, actor.add.options(num_returns=2)):
        with pytest.raises(TypeError, match="map needs one result for each call"):
            method.map([1], chunksize=chunksize)


def test_map_of_a_method_has_a_timeout():
    actor = Calculator.remote()
    found = actor.nap.map([0, 30], timeout=2)
    assert next(found) == 0
    with pytest.raises(GetTimeoutError):
        next(found)
    ray.kill(actor)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_of_a_method_keeps_the_actor_alive(chunksize):
    found = Calculator.remote(1).add.map(range(40), in_flight=2, chunksize=chunksize)
    gc.collect()
    assert list(found) == list(range(40))


@pytest.mark.parametrize("chunksize", [1, 2])
def test_dropping_the_map_of_a_method_cancels_calls_that_have_not_started(chunksize):
    actor = Calculator.remote()
    ray.get(actor.log.remote())
    slow = actor.nap.remote(1)
    found = actor.add.map(range(40), chunksize=chunksize)
    del found
    assert ray.get(slow) == 1
    assert ray.get(actor.log.remote()) == [0]


def test_map_of_a_method_works_through_a_handle_in_another_process():
    actor, other = Calculator.remote(), Calculator.remote()
    assert ray.get(actor.mapped.remote(other, [3, ray.put(4), 5])) == [3, 4, 5]
    assert ray.get(other.log.remote()) == [0, 3, 4, 5]
