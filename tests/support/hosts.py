"""Simulate hosts on this machine by namespaces with their own network, process IDs, `/dev/shm` and host name.

A program that uses `Hosts` runs in its own namespaces (`PREFIX`). When the program ends, the kernel ends all hosts and
their networks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

_USER = () if os.geteuid() == 0 else ("--user", "--map-root-user")
_NEW = ("--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child")
PREFIX = ("unshare", *_USER, *_NEW)

_PROBE = """
set -e
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
ip link add name probe type bridge
unshare --net --mount --pid --ipc --uts --fork --mount-proc --kill-child sh -c 'mount -t tmpfs tmpfs /dev/shm; hostname probe' &
wait $!
ip link add name left type veth peer name right
"""


def missing() -> str:
    """Return the reason why this system cannot create namespaces, or an empty string."""
    try:
        probe = subprocess.run([*PREFIX, "sh", "-c", _PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no namespaces: {error}"
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else ""


# Reno instead of the system's default, because `bbr` stalls for seconds if both ends of a link share one processor.
_CONGESTION = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"


def _do(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Host:
    """
    One host.

    Parameters
    ----------
    number : int
        From 1; the last part of the address.

    Attributes
    ----------
    address : str
    """

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        script = f"mount -t tmpfs tmpfs /dev/shm && hostname host{number} && {_CONGESTION} && echo ready && exec sleep infinity"
        self._init = subprocess.Popen(["unshare", *_NEW, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n"
        with open(f"/proc/{self._init.pid}/task/{self._init.pid}/children") as children:
            self.pid = int(children.read().split()[0])
        name = f"host{number}"
        _do("ip", "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        _do("ip", "link", "set", name, "master", "switch", "up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            self.run("ip", *words.split())

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another one on this host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--ipc", "--uts", "--", *words]

    def run(self, *words: str) -> str:
        """Run a command on this host and return its output."""
        return subprocess.run(self.command(*words), check=True, stdout=subprocess.PIPE, text=True).stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command on this host; the command ends with the host."""
        return subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL)

    def received(self) -> int:
        """Return how many bytes this host has received."""
        # Read /proc, because `/sys` still shows the devices of the machine.
        counters = next(line for line in self.run("cat", "/proc/self/net/dev").splitlines() if "eth0:" in line)
        return int(counters.partition(":")[2].split()[0])

    def stores(self) -> list[str]:
        """Return the files in `/dev/shm`."""
        return self.run("find", "/dev/shm", "-type", "f").split()

    def end(self) -> None:
        """End the host abruptly, as a power failure would."""
        if self._init.poll() is None:
            # Kill the first process of the host, not its parent: the parent then waits until all processes have ended.
            os.kill(self.pid, signal.SIGKILL)
            self._init.wait()
        assert self._init.stdout is not None
        self._init.stdout.close()


class Hosts:
    """
    Several hosts on one network, in a program that runs under `PREFIX`.

    Parameters
    ----------
    count : int

    Examples
    --------
    >>> with Hosts(2) as (first, second):
    ...     first.start("python", "program.py")
    """

    def __init__(self, count: int) -> None:
        _do("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
        _do("sh", "-c", _CONGESTION)
        _do("ip", "link", "set", "lo", "up")
        _do("ip", "link", "add", "name", "switch", "type", "bridge")
        _do("ip", "addr", "add", "10.77.0.254/24", "dev", "switch")
        _do("ip", "link", "set", "switch", "up")
        self.hosts = [Host(number + 1) for number in range(count)]

    def __enter__(self) -> list[Host]:
        return self.hosts

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:
            host.end()


def start_scheduler(host: Host, *words: str) -> str:
    """Start a Dask scheduler on a host and return its address."""
    # Without an address, older versions of Dask ask the network for one, and these hosts have no name server.
    host.start(
        sys.executable, "-P", "-m", "distributed.cli.dask_scheduler", "--host", host.address, "--port", "8786",
        "--no-dashboard", *words,
    )  # fmt: skip
    return f"tcp://{host.address}:8786"


def start_workers(host: Host, scheduler: str, count: int, *words: str) -> subprocess.Popen[bytes]:
    """Start Dask workers with one thread each and their nannies on a host."""
    return host.start(
        sys.executable, "-P", "-m", "distributed.cli.dask_worker", scheduler, "--nworkers", str(count), "--nthreads", "1",
        "--no-dashboard", "--memory-limit", "4GB", "--host", host.address, "--local-directory", os.getcwd(), *words,
    )  # fmt: skip
