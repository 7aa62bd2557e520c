"""Test references in flight: the store lists each with its sender, and `end_flights` drops those of dead senders."""

import os
import signal
import time
from multiprocessing.reduction import ForkingPickler

import pytest

import pyray_ser
from pyray_ser.exceptions import StoreClosedError


@pytest.fixture
def opened():
    yield pyray_ser.init(capacity=16 << 20)
    pyray_ser.shutdown()


def send_and_die(count):
    """Return the pid of a child that sent references to its own objects and was killed."""
    pid = os.fork()
    if pid == 0:
        for i in range(count):
            ForkingPickler.dumps(pyray_ser.put(bytes(100 + i)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def test_a_flight_is_listed_until_it_is_received(opened):
    ref = pyray_ser.put(b"x" * 100)
    before = int(time.time())
    message = ForkingPickler.dumps(ref)
    (flight,) = opened.flights()
    assert flight["sender_pid"] == os.getpid() and flight["sender_alive"] is True and flight["once"] is True
    assert flight["id"] == ref.binary().hex() and before <= flight["created"] <= time.time() + 1
    assert opened.end_flights() == 0
    assert pyray_ser.get(ForkingPickler.loads(message)) == b"x" * 100
    assert opened.flights() == []


def test_what_the_dead_sent_is_ended_by_who_knows(opened):
    first, second = send_and_die(70), send_and_die(2)
    kept = ForkingPickler.dumps(pyray_ser.put(b"kept"))
    flights = opened.flights()
    assert len(flights) == 73
    assert {f["sender_pid"] for f in flights if not f["sender_alive"]} == {first, second}
    assert opened.end_flights(second, min_age=3600) == 0
    assert opened.end_flights(pid=second) == 2
    assert opened.stats()["objects"] == 71
    assert opened.end_flights() == 70
    assert opened.stats()["objects"] == 1
    assert pyray_ser.get(ForkingPickler.loads(kept)) == b"kept"
    opened.check()


def test_a_closed_store_has_no_list(opened):
    pyray_ser.shutdown()
    with pytest.raises(StoreClosedError):
        opened.flights()
    with pytest.raises(StoreClosedError):
        opened.end_flights()
