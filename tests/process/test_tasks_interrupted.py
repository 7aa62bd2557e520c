"""Test calls made in signal handlers and finalizers that interrupt other calls of the same thread."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from isolated import run

from pyray_ser.tasks.collector import Collector

COMMON = """
import faulthandler, gc, signal, threading, time
faulthandler.dump_traceback_later(80, exit=True)
import pyray_ser as ray
@ray.remote
def same(value): return value
@ray.remote
class Keeper:
    def same(self, value): return value
    def numbers(self, count): yield from range(count)
"""


@pytest.mark.parametrize("how", ["remote", "get"])
@pytest.mark.parametrize("of", ["task", "actor", "stream"])
def test_a_signal_handler_may_call(how, of):
    script = f"""
    {COMMON}
    if __name__ == "__main__":
        ray.init(num_workers=2)
        keeper = Keeper.remote()
        handled, inside = [], []
        def handle(*_):
            # Not the actor that streams: it waits for the reader, which this interrupts.
            if inside:
                return
            inside.append(True)
            ref = (keeper.same if {of!r} == "actor" else same).remote(1)
            handled.append(ray.get(ref, timeout=60) if {how!r} == "get" else ref)
            inside.clear()
        ray.get([same.remote(0), keeper.same.remote(0)])
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        rounds = 0
        while rounds < 20 or len(handled) < 50:
            rounds += 1
            if {of!r} == "stream":
                assert [ray.get(ref) for ref in keeper.numbers.remote(30)] == list(range(30))
            else:
                call = same if {of!r} == "task" else keeper.same
                assert ray.get([call.remote(i) for i in range(10)]) == list(range(10))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert all(ray.get(ref) == 1 if {how!r} == "remote" else ref == 1 for ref in handled)
        print("fine")
    """.replace("    " + COMMON, COMMON.replace("\n", "\n    "))
    assert run(script) == "fine"


@pytest.mark.parametrize("how", ["remote", "get"])
@pytest.mark.parametrize("of", ["task", "actor"])
def test_a_finalizer_may_call(how, of):
    script = f"""
    {COMMON}
    class Handle:
        def __init__(self): self.cycle = self
        def __del__(self):
            ref = call.remote(1)
            finalized.append(ray.get(ref, timeout=60) if {how!r} == "get" else ref)
    if __name__ == "__main__":
        ray.init(num_workers=1)
        finalized = []
        keeper = Keeper.remote()
        call = same if {of!r} == "task" else keeper.same
        ray.get(call.remote(0))
        gc.set_threshold(50)
        for i in range(400):
            garbage = [[] for _ in range(i % 23)]
            Handle()
            assert ray.get(call.remote(i)) == i
        gc.set_threshold(100_000)
        gc.collect()
        # The collection may go on in another thread.
        while len(finalized) < 400:
            gc.collect()
            time.sleep(0.01)
        assert all(ray.get(ref) == 1 if {how!r} == "remote" else ref == 1 for ref in finalized)
        print("fine" if len(finalized) == 400 else len(finalized))
    """.replace("    " + COMMON, COMMON.replace("\n", "\n    "))
    assert run(script) == "fine"


# This script interrupts the main thread while it registers the pipe of an actor with epoll.
INTERRUPTED = """
    import time
    import pyray_ser as ray
    from pyray_ser.tasks.collector import Collector, collector
    @ray.remote
    class Keeper:
        def same(self, value): return value
    if __name__ == "__main__":
        keeper = Keeper.remote()
        client = keeper._client
        channel = client.channel
        assert ray.get(keeper.same.remote(0)) == 0
        register, left = Collector._register, [channel.calls.fileno()]
        def interrupted(self, fd, events):
            if fd in left:
                left.clear()
                {handler}
            register(self, fd, events)
        Collector._register = interrupted
        reader = collector()
        # The second call finds the first one under way, and has the collector read.
        refs = [keeper.same.remote(i) for i in range(2)]
        assert not left
        print(ray.get(refs, timeout=60))
        ray.tasks.shutdown()
        print(reader.over)
"""


def test_a_handler_may_get_a_result_before_the_pipe_is_watched():
    handler = "assert ray.get(keeper.same.remote(7), timeout=30) == 7"
    assert run(INTERRUPTED.format(handler=handler)) == "[0, 1]\nTrue"


def test_a_process_that_is_let_go_while_it_is_added_is_reaped():
    handler = """
                register(self, fd, events)
                client.release()
                while not channel.calls.closed:
                    time.sleep(0.001)"""
    assert run(INTERRUPTED.format(handler=handler)) == "[0, 1]\nTrue"


def test_a_handler_may_get_a_result_before_the_pool_is_told_of_the_call_it_interrupts():
    script = """
    import time
    import pyray_ser as ray
    from pyray_ser.tasks import engine
    @ray.remote
    def same(value): return value
    @ray.remote
    def numbers(count): yield from range(count)
    class Tokens:
        def __init__(self, queue): self.queue, self.inside = queue, False
        def get(self): return self.queue.get()
        def empty(self): return self.queue.empty()
        def put(self, token):
            if not self.inside:
                self.inside = True
                assert ray.get(same.remote(7), timeout=30) == 7
            self.queue.put(token)
    if __name__ == "__main__":
        ray.init(num_workers=2)
        ray.get([numbers.remote(1).ref for _ in range(4)])
        pool = engine.current()
        while len(pool._idle) < 2:
            time.sleep(0.001)
        pool._tokens = Tokens(pool._tokens)
        # Its worker waits for the reader after 16 results; the other one is free.
        print([ray.get(ref) for ref in numbers.remote(100)] == list(range(100)))
    """
    assert run(script) == "True"


class _Registered:
    """A fake object with the methods of a channel and of epoll that a collector needs."""

    def __init__(self, thread):
        descriptor = SimpleNamespace(fileno=lambda: 1001)
        self.calls = SimpleNamespace(fileno=lambda: 1000, reader=thread, blocked=False)
        self.process = SimpleNamespace(watch=descriptor)


def _collector(channel):
    made = Collector.__new__(Collector)
    made.thread = channel.calls.reader
    made._epoll = SimpleNamespace(register=lambda fd, events: None, modify=None, unregister=lambda fd: None)
    turn = object()
    made._turns, made._registered, made._channels, made._watched = {channel: turn}, {channel: turn}, {}, {}
    return made


def test_a_channel_whose_descriptor_another_one_got_is_not_watched():
    channel = _Registered(7)
    made = _collector(channel)
    made._channels = {1000: channel}
    assert made.has(channel)
    made._channels = {1000: _Registered(7)}
    assert not made.has(channel)


def test_a_channel_that_was_added_again_while_it_was_dropped_is_watched():
    channel = _Registered(7)
    made = _collector(channel)
    made._channels = {1000: channel, 1001: channel}
    made._drop_unless_new(channel)
    assert made.has(channel) and made._channels == {1000: channel, 1001: channel}
    channel.calls.reader = 0
    made._drop_unless_new(channel)
    assert not made.has(channel) and made._channels == {}


@pytest.mark.parametrize("restarts", [0, 1])
def test_exception_at_any_line_of_a_death_leaves_no_socket_and_no_process(restarts):
    """A signal handler of the program may raise at each line with which the main thread handles the death of an actor."""
    script = f"""
    import itertools, linecache, os, signal, sys, time
    import pyray_ser as ray

    HERE = os.path.join(os.path.dirname(ray.__file__), "tasks")

    class Struck(Exception): pass

    @ray.remote
    class Actor:
        def same(self, value): return value
        def die(self): os.kill(os.getpid(), signal.SIGKILL)

    def strike_at(n):
        lines = itertools.count(1)
        def trace(frame, event, arg):
            if not frame.f_code.co_filename.startswith(HERE): return None
            # The interpreter runs signal handlers only at calls, loops and function starts.
            if event == "line" and "(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno) and next(lines) == n:
                sys.settrace(None)
                raise Struck
            return trace
        return trace

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)

    restarts = {restarts}
    struck = 0
    for n in itertools.count(1):
        actor = Actor.options(max_restarts=restarts).remote()
        assert ray.get(actor.same.remote(1), timeout=60) == 1
        client = actor._client
        killers, process = client._killers, client.channel.process
        # Hold the turn, as the main thread does while it waits, and let the process die meanwhile.
        ref = actor.die.remote()
        sys.settrace(strike_at(n))
        try:
            ray.get(ref, timeout=60)
        except Struck:
            struck += 1
        except ray.exceptions.WorkerDiedError:
            pass
        finally:
            armed = sys.gettrace() is not None
            sys.settrace(None)
        if restarts:
            assert ray.get(actor.same.remote(2), timeout=60) == 2
            ray.kill(actor)
        until(lambda: killers.fileno() < 0)
        until(lambda: process.process.exitcode is not None)
        assert process.process.exitcode == -signal.SIGKILL
        if armed:
            break
    assert struck > 15, struck
    print("struck", struck)
    """
    assert "struck" in run(script, timeout=300)
