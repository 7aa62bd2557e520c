"""Test references in a process that cannot reach their store: on another host, in another container."""

import os
import select
import subprocess
import sys

import pyray_ser


def test_loading_opens_no_pipe_of_the_process_that_has_the_senders_number(tmp_path):
    """The sender's pid and descriptor mean something else on this host."""
    with pyray_ser.scope():
        ref = pyray_ser.put(1)
        load, (message,) = ref.__reduce__()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[reading])
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    assert poll.poll(0) == []
    for node in (b"elsewhere", os.uname().nodename.encode()[:32]):
        place = child.pid.to_bytes(4, "little") + reading.to_bytes(4, "little")
        far = load(b"\x01" * 8 + message[8:32] + place + message[40:56] + node)
        assert far.state in ("foreign", "lost")
    opened = poll.poll(0)
    child.communicate(b"\n")
    os.close(reading)
    assert opened == [], "a pipe of an unrelated process was opened"
