"""Test `install().report()`: the counts of what went through shared memory, and of what did not and why."""

from __future__ import annotations

import json
import re

import pytest
from isolated import run

import pyray_ser
from pyray_ser.pool_hooks.report import Report

HEAD = """
import json, multiprocessing as mp, sys
import numpy as np
import pyray_ser

def total(value):
    return len(value)

def echo(value):
    return value
"""


def report(body: str, *, errors: bool = False) -> dict:
    """Run a program that ends with the name `installed`, and return the report as a dict."""
    import textwrap

    text = run(HEAD + textwrap.dedent(body) + "\nprint(json.dumps(installed.report().as_dict()))", errors=errors)
    return json.loads(text.splitlines()[-1])


def test_large_buffers_are_counted_as_shared():
    found = report("""
    installed = pyray_ser.install()
    array = np.zeros(1_000_000)
    with mp.get_context("fork").Pool(1) as pool:
        pool.map(total, [array, array, b"x" * 2_000_000])
    """)
    assert found["shared"] == {"buffers": 3, "bytes": 18_000_000}
    assert found["in_band"] == {} and found["messages"]["count"] >= 1
    assert 0 < found["other_bytes"] == found["messages"]["bytes"] < 10_000


def test_received_buffers_and_those_that_are_sent_on_are_counted():
    found = report("""
    installed = pyray_ser.install()
    with mp.get_context("fork").Pool(1) as pool:
        (array,) = pool.map(echo, [np.zeros(1_000_000)])
        pool.map(total, [array])
    """)
    assert found["received"] == {"buffers": 1, "bytes": 8_000_000}
    assert found["reused"] == {"buffers": 1, "bytes": 8_000_000} and found["shared"]["buffers"] == 2


def test_small_buffers_and_strings_are_counted():
    found = report("""
    installed = pyray_ser.install()
    with mp.get_context("fork").Pool(1) as pool:
        pool.map(total, [np.zeros(1000), np.zeros(100_000), b"x" * 100_000, ["text"] * 1000], chunksize=1)
    """)
    assert found["shared"]["buffers"] == 0
    assert found["in_band"] == {"below_min_bytes": {"buffers": 3, "bytes": 908_000}}
    assert 1000 < found["other_bytes"] < 20_000


def test_arrays_that_are_not_contiguous_are_counted_once():
    found = report("""
    installed = pyray_ser.install()
    with mp.get_context("fork").Pool(1) as pool:
        pool.map(total, [np.zeros(1_000_000)[::2]])
    """)
    assert found["shared"] == {"buffers": 1, "bytes": 4_000_000} and not found["in_band"]


def test_a_pool_that_was_started_before_is_named():
    found = report("""
    import time
    with mp.get_context("fork").Pool(1) as pool:
        time.sleep(0.1)
        installed = pyray_ser.install()
        pool.map(total, [np.zeros(1_000_000), np.zeros(500_000)])
    """)
    assert found["shared"]["buffers"] == 0 and list(found["in_band"]) == ["started_before_install"]
    assert found["in_band"]["started_before_install"]["bytes"] >= 12_000_000


def test_a_receiver_that_was_started_before_is_named():
    found = report("""
    import time
    def receive(connection):
        connection.recv()
    reading, writing = mp.Pipe(False)
    process = mp.get_context("fork").Process(target=receive, args=(reading,))
    process.start()
    reading.close()
    time.sleep(0.1)
    installed = pyray_ser.install()
    writing.send(np.zeros(1_000_000))
    process.join()
    """)
    assert found["in_band"] == {"started_before_install": {"buffers": 1, "bytes": 8_000_000}}


def test_sockets_are_named():
    found = report("""
    import threading
    from multiprocessing.connection import Client, Listener
    installed = pyray_ser.install()
    with Listener(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept().recv())
        thread.start()
        with Client(listener.address) as client:
            client.send(np.zeros(1_000_000))
        thread.join()
    """)
    assert found["in_band"] == {"not_a_local_pipe": {"buffers": 1, "bytes": 8_000_000}}


def test_a_full_store_and_the_limit_are_named():
    found = report("""
    pyray_ser.init(capacity="16M")
    installed = pyray_ser.install(max_in_flight=1 << 30)
    with mp.get_context("fork").Pool(1) as pool:
        pool.map(total, [np.zeros(4_000_000)])
        pyray_ser.install(max_in_flight=0)
        pool.map(total, [np.zeros(1_000_000)])
    """)
    assert found["in_band"] == {
        "store_full": {"buffers": 1, "bytes": 32_000_000},
        "max_in_flight": {"buffers": 1, "bytes": 8_000_000},
    }


def test_what_is_in_the_store_does_not_count_toward_the_limit():
    # The array alone is larger than the limit, a quarter of the capacity.
    found = report("""
    pyray_ser.init(capacity="64M")
    installed = pyray_ser.install()
    array = pyray_ser.get(pyray_ser.put(np.zeros(4_000_000)))
    own = np.zeros(4_000_000)
    with mp.get_context("fork").Pool(2) as pool:
        pool.map(total, [array] * 8, chunksize=1)
        pool.map(total, [array[:3_000_000], array[1_000_000:]], chunksize=1)
        pool.map(total, [own])
    """)
    assert (
        found["shared"] == {"buffers": 10, "bytes": 8 * 32_000_000 + 2 * 24_000_000}
        and found["reused"] == found["shared"]
    )
    assert found["in_band"] == {"max_in_flight": {"buffers": 1, "bytes": 32_000_000}}


def test_sizes_may_be_text():
    found = report("""
    installed = pyray_ser.install(min_bytes="8M", max_in_flight="16M")
    with mp.get_context("fork").Pool(1) as pool:
        pool.map(total, [np.zeros(n) for n in (1 << 19, 1 << 20, 1 << 22)], chunksize=1)
    """)
    assert found["shared"] == {"buffers": 1, "bytes": 8 << 20}
    assert found["in_band"] == {
        "below_min_bytes": {"buffers": 1, "bytes": 4 << 20},
        "max_in_flight": {"buffers": 1, "bytes": 32 << 20},
    }


def test_a_process_that_left_the_store_is_named():
    found = report("""
    import resource
    installed = pyray_ser.install()
    with mp.get_context("fork").Pool(1) as pool:
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size - (1 << 20), resource.RLIM_INFINITY))
        pool.map(total, [np.zeros(1_000_000)])
    """)
    assert found["in_band"] == {"left_store": {"buffers": 1, "bytes": 8_000_000}}


def test_arguments_of_processes_are_counted():
    found = report("""
    if __name__ == "__main__":
        installed = pyray_ser.install()
        process = mp.get_context("spawn").Process(target=total, args=(np.zeros(1_000_000),))
        process.start()
        process.join()
    else:
        installed = pyray_ser.install()
    """)
    assert found["arguments"] == {"buffers": 1, "bytes": 8_000_000}


def test_children_count_for_themselves():
    found = report("""
    def child(queue):
        queue.put(pyray_ser.install().report().as_dict())

    installed = pyray_ser.install()
    ours, theirs = mp.Pipe()
    ours.send(np.zeros(1_000_000))
    theirs.recv()
    queue = mp.get_context("fork").SimpleQueue()
    process = mp.get_context("fork").Process(target=child, args=(queue,))
    process.start()
    found = queue.get()
    process.join()
    assert found["messages"]["count"] == found["shared"]["buffers"] == 0 and found["pid"] == process.pid, found
    """)
    assert found["shared"]["buffers"] == 1


def test_text_html_and_the_summary():
    with pyray_ser.install() as installed:
        made = installed.report()
    assert type(made) is Report
    text = str(made)
    assert "through shared memory" in text and "each process counts what it sends itself" in text
    assert re.search(r"process \d+ sent \d+ messages", repr(made))
    page = made._repr_html_()
    assert "<table>" in page and page.count("<tr>") == page.count("</tr>") and "color" not in page
    json.dumps(made.as_dict())


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_the_summary_is_logged_at_exit_if_the_program_wants_it(level):
    lines = run(
        f"""
    import logging, sys
    logging.basicConfig(level=logging.{level}, stream=sys.stdout, format="%(name)s %(message)s")
    import pyray_ser
    pyray_ser.install()
    pyray_ser.install()
    """
    ).splitlines()
    assert sum("pyray_ser install(): process" in line for line in lines) == (level == "INFO")


def test_a_refused_array_is_offered_once():
    import numpy as np

    from pyray_ser.pool_hooks import message

    class Taker:
        min_bytes, mmap_mode, refused = 1000, "c", -1

        def __init__(self):
            self.offered = []

        def take(self, view):
            self.offered.append(view.nbytes)

    taker = Taker()
    value = [np.ones(100_000), b"x" * 800_000, np.zeros(50_000), np.ones(100_000)]
    assert len(message.dumps(value, taker).getvalue()) > 2_800_000
    assert taker.offered == [800_000, 800_000, 400_000, 800_000]


def test_an_array_of_the_store_counts_as_not_copied_from_the_first_message_on():
    found = report("""
    table = pyray_ser.get(pyray_ser.put(np.ones(1_000_000)))
    installed = pyray_ser.install()
    with mp.get_context("fork").Pool(1) as pool:
        for _ in range(3):
            pool.map(total, [table])
        pool.map(total, [np.ones(1_000_000)])
    """)
    assert found["shared"] == {"buffers": 4, "bytes": 32_000_000}
    assert found["reused"] == {"buffers": 3, "bytes": 24_000_000}
