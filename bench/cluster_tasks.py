"""The functions that the workers of `cluster.py` and `cluster_hosts.py` run, and small programs of the latter.

python cluster_tasks.py serve ADDRESS NBYTES      send bytes to one caller
python cluster_tasks.py receive ADDRESS NBYTES new|used    receive them into such memory, and print the seconds
python cluster_tasks.py calls SCHEDULER           print the times of calls on a cluster as JSON
"""

from __future__ import annotations

import json
import socket
import sys
from time import perf_counter, sleep

import numpy

import pyray_ser

PORTS = {"plain": 8786, "sharing": 8796, "socket": 8806}


def make(nbytes: int) -> numpy.ndarray:
    return numpy.ones(nbytes // 8)


def look(value: numpy.ndarray) -> float:
    return float(value[0] + value[-1])


def read_all(value: numpy.ndarray) -> float:
    return float(value.sum())


def nothing(number: int) -> int:
    return number


def private_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10


def bytes_in_store() -> int:
    return pyray_ser.stats()["used"] if pyray_ser.is_initialized() else 0


def stored(nbytes: int) -> pyray_ser.ObjectRef[numpy.ndarray]:
    return pyray_ser.put(make(nbytes))


def release(ref: pyray_ser.ObjectRef[numpy.ndarray]) -> None:
    """Free an object; otherwise its host keeps it, because a reference has left the host."""
    pyray_ser.free(ref)


def timed_get(ref: pyray_ser.ObjectRef[numpy.ndarray]) -> tuple[float, float]:
    """Return the seconds of the first `get` of a reference and of the next one."""
    began = perf_counter()
    value = pyray_ser.get(ref)
    first = perf_counter() - began
    assert value[0] == value[-1] == 1.0
    began = perf_counter()
    pyray_ser.get(ref)
    return first, perf_counter() - began


def _serve(address: str, nbytes: int) -> None:
    value = memoryview(make(nbytes)).cast("B")
    with socket.create_server((address, PORTS["socket"])) as server:
        caller, _ = server.accept()
        with caller:
            caller.sendall(value)


def _receive(address: str, nbytes: int, memory: str) -> None:
    room = memoryview(numpy.empty(nbytes, dtype="u1"))
    if memory == "used":
        numpy.asarray(room).fill(1)
    for attempt in range(200):
        try:
            server = socket.create_connection((address, PORTS["socket"]))
            break
        except ConnectionRefusedError:
            if attempt == 199:
                raise
            sleep(0.05)
    with server:
        began = perf_counter()
        at = 0
        while at < nbytes:
            at += server.recv_into(room[at:])
        print(perf_counter() - began)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def _calls(scheduler: str) -> None:
    from distributed import Client

    client = Client(scheduler)
    pyray_ser.init(address=client)
    task = pyray_ser.remote(nothing)
    counter = pyray_ser.remote(Counter).remote()
    contenders = {
        "no-op by submit": lambda: client.submit(nothing, 1, pure=False).result(),
        "no-op by remote": lambda: pyray_ser.get(task.remote(1)),
        "actor call": lambda: pyray_ser.get(counter.add.remote()),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(120):
        for name, call in contenders.items():
            began = perf_counter()
            call()
            times[name].append(perf_counter() - began)
    print(json.dumps({name: sorted(found[20:])[50] for name, found in times.items()}))
    pyray_ser.shutdown()
    client.close()


if __name__ == "__main__":
    if sys.argv[1] == "calls":
        _calls(sys.argv[2])
    else:
        {"serve": _serve, "receive": _receive}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
