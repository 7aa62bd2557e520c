"""The program that ``pyray-ser bench`` measures: one line after another, for this package or for Ray.

The command starts it in the interpreter of the library, so it uses no other module of this package, and no syntax that
an older interpreter lacks. It reads the settings as one line of JSON from standard input, and writes one JSON object
per line to standard output. It ends when its standard input is closed.

The names are those that ``ray microbenchmark`` prints, followed by the lines that only this package has.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # Prepare a line; return the call to measure, and the amount of work of one call, in the unit of the line.
    Prepare = Callable[["Bench"], "tuple[Callable[[], Any], float]"]

__all__ = ["LINES", "Bench", "main", "measure"]

LINES: list[tuple[str, str, bool, Prepare]] = []
"""Name, unit, whether only this package has the line, and the function that prepares it."""


def line(name: str, unit: str = "1/s", own: bool = False) -> Callable[[Prepare], Prepare]:
    """Add a line."""

    def add(prepare: Prepare) -> Prepare:
        LINES.append((name, unit, own, prepare))
        return prepare

    return add


class Bench:
    """
    One library, with the remote functions and classes that the lines use.

    Parameters
    ----------
    library : module
    settings : dict
        ``mb``: megabytes of a large array. ``batch``: number of calls in a batch.
    """

    def __init__(self, library: Any, settings: dict[str, Any]) -> None:
        self.library = library
        self.megabytes: int = settings["mb"]
        self.batch: int = settings["batch"]
        self.several = max(1, (os.cpu_count() or 1) // 2)
        self.cleanups: list[Callable[[], Any]] = []
        # Ray places an actor only where a CPU is free, unless the actor requests no CPU.
        make_class = library.remote(num_cpus=0) if library.__name__ == "ray" else library.remote

        # The functions refer to the library and to each other, and are pickled by value.
        @library.remote
        def small_value():  # type: ignore[no-untyped-def]
            return b"ok"

        @library.remote
        def put_small(count):  # type: ignore[no-untyped-def]
            for _ in range(count):
                library.put(0)

        @library.remote
        def put_large(count, size):  # type: ignore[no-untyped-def]
            import numpy

            for _ in range(count):
                library.put(numpy.zeros(size, dtype=numpy.int64))

        @library.remote
        def many_refs(count):  # type: ignore[no-untyped-def]
            return [library.put(1) for _ in range(count)]

        @library.remote
        def call_actors(actors, count):  # type: ignore[no-untyped-def]
            library.get([actors[i % len(actors)].small_value.remote() for i in range(count)])

        class Actor:
            def small_value(self):  # type: ignore[no-untyped-def]
                return b"ok"

            def small_value_arg(self, value):  # type: ignore[no-untyped-def]
                return b"ok"

            def small_value_batch(self, count):  # type: ignore[no-untyped-def]
                library.get([small_value.remote() for _ in range(count)])

        class AsyncActor:
            async def small_value(self):  # type: ignore[no-untyped-def]
                return b"ok"

            async def small_value_with_arg(self, value):  # type: ignore[no-untyped-def]
                return b"ok"

        class Client:
            def __init__(self, servers):  # type: ignore[no-untyped-def]
                self.servers = servers

            def small_value_batch(self, count):  # type: ignore[no-untyped-def]
                library.get([server.small_value.remote() for server in self.servers for _ in range(count)])

            def small_value_batch_arg(self, count):  # type: ignore[no-untyped-def]
                value = library.put(0)
                library.get([server.small_value_arg.remote(value) for server in self.servers for _ in range(count)])

        self.small_value, self.put_small, self.put_large = small_value, put_small, put_large
        self.many_refs, self.call_actors = many_refs, call_actors
        self._classes = {cls.__name__: make_class(cls) for cls in (Actor, AsyncActor, Client)}

    def actor(self, name: str, *arguments: Any) -> Any:
        """Start an actor; `clean_up` kills it after the current line of the benchmark."""
        actor = self._classes[name].remote(*arguments)
        self.cleanups.append(lambda: self.library.kill(actor))
        return actor

    def actors(self, name: str) -> list[Any]:
        """Start one actor per two CPUs, as Ray's program does."""
        return [self.actor(name) for _ in range(self.several)]

    def clean_up(self) -> None:
        """End the processes and actors that the current line started."""
        while self.cleanups:
            self.cleanups.pop()()


# ---- the lines of `ray microbenchmark` ----------------------------------------------------------------------------------


@line("single client get calls (Plasma Store)")
def _(bench: Bench) -> Any:
    get, ref = bench.library.get, bench.library.put(0)
    return lambda: get(ref), 1


@line("single client put calls (Plasma Store)")
def _(bench: Bench) -> Any:
    put = bench.library.put
    return lambda: put(0), 1


@line("multi client put calls (Plasma Store)")
def _(bench: Bench) -> Any:
    get, put_small = bench.library.get, bench.put_small
    count = max(1, bench.batch // 10)
    return lambda: get([put_small.remote(count) for _ in range(10)]), 10 * count


@line("single client put gigabytes", "GB/s")
def _(bench: Bench) -> Any:
    import numpy

    put, array = bench.library.put, numpy.zeros(bench.megabytes * 125_000, dtype=numpy.int64)
    return lambda: put(array), array.nbytes / 1e9


@line("single client tasks and get batch")
def _(bench: Bench) -> Any:
    get, small_value, count = bench.library.get, bench.small_value, bench.batch
    # One call is one batch of 1000 tasks, as Ray counts it.
    return lambda: get([small_value.remote() for _ in range(count)]), count / 1000


@line("multi client put gigabytes", "GB/s")
def _(bench: Bench) -> Any:
    get, put_large, size = bench.library.get, bench.put_large, bench.megabytes * 12_500
    return lambda: get([put_large.remote(10, size) for _ in range(10)]), 100 * 8 * size / 1e9


@line("single client get object containing 10k refs")
def _(bench: Bench) -> Any:
    get, ref = bench.library.get, bench.many_refs.remote(10_000)
    return lambda: get(ref), 1


@line("single client wait 1k refs")
def _(bench: Bench) -> Any:
    wait, small_value = bench.library.wait, bench.small_value

    def wait_for_each() -> None:
        waiting = [small_value.remote() for _ in range(1000)]
        while waiting:
            _, waiting = wait(waiting)

    return wait_for_each, 1


@line("single client tasks sync")
def _(bench: Bench) -> Any:
    get, small_value = bench.library.get, bench.small_value
    return lambda: get(small_value.remote()), 1


@line("single client tasks async")
def _(bench: Bench) -> Any:
    get, small_value, count = bench.library.get, bench.small_value, bench.batch
    return lambda: get([small_value.remote() for _ in range(count)]), count


@line("multi client tasks async")
def _(bench: Bench) -> Any:
    get, clients, count = bench.library.get, [bench.actor("Actor") for _ in range(4)], bench.batch
    return lambda: get([client.small_value_batch.remote(count) for client in clients]), 4 * count


def _sync(name: str) -> Prepare:
    def prepare(bench: Bench) -> Any:
        get, actor = bench.library.get, bench.actor(name)
        return lambda: get(actor.small_value.remote()), 1

    return prepare


def _async(name: str) -> Prepare:
    def prepare(bench: Bench) -> Any:
        get, actor, count = bench.library.get, bench.actor(name), bench.batch
        return lambda: get([actor.small_value.remote() for _ in range(count)]), count

    return prepare


def _one_to_many(name: str) -> Prepare:
    def prepare(bench: Bench) -> Any:
        get, servers, count = bench.library.get, bench.actors(name), bench.batch
        client = bench.actor("Client", servers)
        return lambda: get(client.small_value_batch.remote(count)), count * len(servers)

    return prepare


def _many_to_many(name: str) -> Prepare:
    def prepare(bench: Bench) -> Any:
        get, servers, count = bench.library.get, bench.actors(name), bench.batch
        call_actors = bench.call_actors
        return lambda: get([call_actors.remote(servers, count) for _ in range(4)]), 4 * count

    return prepare


def _add_actors() -> None:
    line("1:1 actor calls sync")(_sync("Actor"))
    line("1:1 actor calls async")(_async("Actor"))
    line("1:n actor calls async")(_one_to_many("Actor"))
    line("n:n actor calls async")(_many_to_many("Actor"))

    @line("n:n actor calls with arg async")
    def _(bench: Bench) -> Any:
        get, count = bench.library.get, bench.batch
        clients = [bench.actor("Client", [server]) for server in bench.actors("Actor")]
        return lambda: get([client.small_value_batch_arg.remote(count) for client in clients]), count * len(clients)

    line("1:1 async-actor calls sync")(_sync("AsyncActor"))
    line("1:1 async-actor calls async")(_async("AsyncActor"))

    @line("1:1 async-actor calls with args async")
    def _(bench: Bench) -> Any:
        get, actor, count = bench.library.get, bench.actor("AsyncActor"), bench.batch
        return lambda: get([actor.small_value_with_arg.remote(i) for i in range(count)]), count

    line("1:n async-actor calls async")(_one_to_many("AsyncActor"))
    line("n:n async-actor calls async")(_many_to_many("AsyncActor"))


_add_actors()


# ---- the lines of this package -------------------------------------------------------------------------------------------


@line("get array in place", own=True)
def _(bench: Bench) -> Any:
    import numpy

    get, ref = bench.library.get, bench.library.put(numpy.zeros(bench.megabytes * 125_000))
    return lambda: get(ref), 1


@line("get by name", own=True)
def _(bench: Bench) -> Any:
    get_by_name = bench.library.get_by_name
    bench.library.put(0, name="bench", replace=True)
    bench.cleanups.append(lambda: bench.library.delete("bench"))
    return lambda: get_by_name("bench"), 1


@line("put by name", own=True)
def _(bench: Bench) -> Any:
    put = bench.library.put
    put(0, name="bench", replace=True)
    bench.cleanups.append(lambda: bench.library.delete("bench"))
    return lambda: put(0, name="bench", replace=True), 1


@line("get_or_put hit", own=True)
def _(bench: Bench) -> Any:
    get_or_put = bench.library.get_or_put
    bench.cleanups.append(lambda: bench.library.delete("bench"))
    return lambda: get_or_put("bench", int), 1


@line("cached hit", own=True)
def _(bench: Bench) -> Any:
    @bench.library.cached  # type: ignore[misc]
    def squares(count: int) -> list[int]:
        return [i * i for i in range(count)]

    bench.cleanups.append(squares.cache_clear)
    return lambda: squares(100), 1


@line("pool with install, 10 MB arrays", own=True)
def _(bench: Bench) -> Any:
    import multiprocessing

    import numpy

    bench.library.install()
    bench.cleanups.append(bench.library.uninstall)
    pool = multiprocessing.get_context("spawn").Pool(1)
    bench.cleanups.append(pool.join)
    bench.cleanups.append(pool.terminate)
    array = numpy.zeros(1_250_000)
    return lambda: pool.apply(len, (array,)), 1


# ---- measuring -----------------------------------------------------------------------------------------------------------


def measure(
    call: Callable[[], Any], amount: float, rounds: int, seconds: float, note: Callable[[int], None]
) -> list[float]:
    """
    Return the amount of work per second, for each round.

    Parameters
    ----------
    call : callable
    amount : float
        The amount of work of one call.
    rounds : int
    seconds : float
        Minimum duration of a round, approximately.
    note : callable
        Called before each round with its number.
    """
    call()
    times, spent = 1, 0.0
    while True:
        spent = _time(call, times)
        if spent >= seconds / 4:
            break
        times = max(2 * times, min(10 * times, int(times * seconds / 4 / max(spent, 1e-9))))
    times = max(1, round(times * seconds / spent))
    rates = []
    for number in range(rounds):
        note(number)
        rates.append(amount * times / _time(call, times))
    return rates


def _time(call: Callable[[], Any], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return max(time.perf_counter() - began, 1e-9)


def _start(library: Any) -> None:
    if library.__name__ != "ray":
        library.init()
        return
    import logging

    # Start a local cluster, even if the environment names a cluster.
    os.environ.pop("RAY_ADDRESS", None)
    library.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)


class _Watch:
    """Interrupts this process when its standard input is closed, because the command has ended then."""

    def __init__(self) -> None:
        self.over = False
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        # os.read takes no lock, which a forked worker would inherit.
        while os.read(0, 1):
            pass
        if not self.over:
            self.over = True
            os.kill(os.getpid(), signal.SIGINT)


def main(name: str) -> int:
    """Measure the lines of one library."""
    settings = json.loads(_read_line())
    # Other code may print, so answers go to a copy of standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = _Watch()
    library = None
    try:
        try:
            library = importlib.import_module(name)
            _start(library)
        except Exception as error:
            tell(fatal=f"{type(error).__name__}: {error}", missing=isinstance(error, ImportError))
            return 1
        tell(version=str(getattr(library, "__version__", "")), python=sys.version.split()[0])
        bench = Bench(library, settings)
        for number, (what, unit, _, prepare) in enumerate(LINES):
            if number in settings["lines"]:
                _measure_line(bench, what, unit, prepare, settings, tell)
        tell(done=True)
    finally:
        watch.over = True
        if library is not None:
            library.shutdown()
    return 0


def _measure_line(
    bench: Bench, name: str, unit: str, prepare: Prepare, settings: dict[str, Any], tell: Callable[..., None]
) -> None:
    try:
        try:
            tell(name=name, round=0)
            call, amount = prepare(bench)
            rates = measure(
                call, amount, settings["rounds"], settings["seconds"], lambda number: tell(name=name, round=number)
            )
        finally:
            bench.clean_up()
    except Exception as error:
        tell(name=name, unit=unit, error=f"{type(error).__name__}: {error}")
    else:
        tell(name=name, unit=unit, rounds=rates)


def _read_line() -> bytes:
    """Read one line from standard input without a buffer, so that nothing that follows is lost."""
    found = b""
    while not found.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise SystemExit(1)
        found += piece
    return found


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1]))
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None
