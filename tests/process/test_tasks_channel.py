"""Test the thread that reads answers, and channels whose descriptor numbers are reused."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from multiprocessing.connection import Connection

import pytest

from pyray_ser._calls import Descriptor, Job
from pyray_ser.exceptions import WorkerDiedError
from pyray_ser.tasks import protocol
from pyray_ser.tasks.channel import Channel, number
from pyray_ser.tasks.collector import collector, end_collector
from pyray_ser.tasks.refs import TaskRef


class Peer:
    """A fake process with two pipes: one for messages, and one whose end means that the process has ended."""

    def __init__(self, take: tuple[int, int] | None = None) -> None:
        ends = [end.detach() for end in socket.socketpair()] + [*os.pipe()]
        # Move the ends to high descriptor numbers, so that a second peer can take over the numbers of the first.
        numbers = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 200 if take is None else 300) for end in ends]
        for end in ends:
            os.close(end)
        if take is not None:
            for i, number in ((0, take[0]), (2, take[1])):
                os.dup2(numbers[i], number)
                os.close(numbers[i])
                numbers[i] = number
        fd, theirs, watch, self.life = numbers
        self.numbers = fd, watch
        self.pipe, self.watch = Descriptor(fd), Descriptor(watch)
        self.theirs = Connection(theirs)

    def end(self) -> None:
        self.theirs.close()
        os.close(self.life)

    def died(self, task) -> WorkerDiedError:
        return WorkerDiedError(pid=1, task=task)

    def kill(self) -> None:
        self.end()

    def reap(self) -> None:
        self.watch.close()


@pytest.fixture(autouse=True)
def nothing_reads_afterwards():
    yield
    end_collector()


def job() -> Job:
    n = number()
    return Job(TaskRef("task"), protocol.write(protocol.CALL, n, b""), n, None)


def test_a_new_process_may_get_the_numbers_of_one_that_has_just_died():
    first, calls = Peer(), [job(), job()]
    numbers = first.numbers
    settled = threading.Event()
    made = []

    def succeed(channel: Channel) -> None:
        # This runs while the collector handles the first channel, whose descriptors are closed and no longer watched.
        assert list(channel.calls.sent.values()) == [calls[0]]
        channel.abandon()
        assert not {*numbers} & {*collector()._channels}
        first.reap()
        second = Peer(numbers)
        made.append((second, Channel(second, second.pipe)))
        made[0][1].submit(calls[1])
        made[0][1].collect_later()

    channel = Channel(first, first.pipe, succeed)
    channel.submit(calls[0])
    calls[1].ref.add_done_callback(lambda _: settled.set())
    # Both descriptors of the channel become ready before the collector checks them.
    first.end()
    channel.collect_later()
    while not made:
        assert not settled.wait(0.01)
    second, successor = made[0]
    # The collector must not mistake events of the first channel for events of the second.
    assert not settled.wait(0.3) and not successor.dead
    second.theirs.send_bytes(protocol.write(protocol.END, calls[1].number))
    assert settled.wait(240) and type(calls[1].ref.outcome) is bytes
    successor.close()
    second.end()


@pytest.mark.parametrize("how", ["give_up", "abandon"])
@pytest.mark.parametrize("lives", [True, False], ids=["lives", "reaped"])
def test_the_collector_forgets_a_channel_that_another_thread_gives_up(how, lives):
    peer = Peer()
    channel = Channel(peer, peer.pipe)
    channel.submit(job())
    channel.collect_later()
    reader = collector()
    assert reader.has(channel)
    getattr(channel, how)()
    if not lives:
        peer.end()
        peer.reap()
    left = time.monotonic() + 240
    while channel in list(reader._channels.values()) or channel in list(reader._turns):
        assert time.monotonic() < left, "it is watched although it is closed"
        time.sleep(0.01)
    if lives:
        peer.end()
