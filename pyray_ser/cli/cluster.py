"""``--cluster ADDRESS`` of `ls` and `top`: the figures of all hosts of a Dask cluster, from its scheduler."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING, Any

from . import CommandError
from .output import bytes_text, count, printable, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..distributed.figures import Cluster

__all__ = ["Watch", "add_argument", "text"]

# Seconds to wait for the scheduler.
_LIMIT = 10
# A worker that has just started reports its figures with its next heartbeat: how often to ask again, after how many seconds.
_TRIES = 5
_PAUSE = 0.5


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--cluster``."""
    parser.add_argument(
        "--cluster", metavar="ADDRESS",
        help="instead: objects, bytes and pulls of each host of the Dask cluster with this scheduler",
    )  # fmt: skip


class Watch:
    """
    Asks the scheduler of a cluster, once or repeatedly.

    Parameters
    ----------
    arguments : argparse.Namespace
        With ``cluster`` and ``store``.

    Raises
    ------
    CommandError
        If stores are selected, too, or a package is missing.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.store:
            raise CommandError("--cluster shows all hosts of a cluster: omit the store")
        try:
            import distributed  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("dask", "distributed"):
                raise
            raise CommandError("--cluster needs Dask; hint: pip install distributed") from error
        self.address: str = arguments.cluster
        self._before: dict[str, tuple[float, int]] = {}

    def look(self) -> dict[str, Any]:
        """
        Return ``address``, ``hosts`` and ``silent``, as `figures.Cluster` describes them.

        Each host also has ``pulled_bytes_per_second`` since the last look, or None.

        Raises
        ------
        CommandError
            If the scheduler does not answer, or no worker reports figures.
        """
        found = asyncio.run(self._ask())
        now, seen = time.monotonic(), {}
        for host in found.hosts:
            pulled = host["stats"]["pulled_bytes"]
            seen[host["id"]] = (now, pulled)
            then, before = self._before.get(host["id"], (now, pulled))
            host["pulled_bytes_per_second"] = (pulled - before) / (now - then) if now > then else None
        self._before = seen
        return {"address": self.address, "hosts": found.hosts, "silent": found.silent}

    async def _ask(self) -> Cluster:
        from ..distributed.figures import Report, by_host

        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE)
            workers = await self._workers()
            found = by_host(Report(address, info["last_seen"], info["metrics"]) for address, info in workers.items())
            if found.hosts:
                return found
        if not workers:
            raise CommandError(f"the cluster {self.address} has no workers")
        raise CommandError(
            f"no worker of {self.address} shares values ({count(len(workers), 'worker', 'workers')}); hint: "
            "pyray_ser.distributed.enable(client), or start them with --preload pyray_ser.distributed"
        )

    async def _workers(self) -> dict[str, Any]:
        from distributed import Security, rpc

        try:
            arguments = Security().get_connection_args("client")
            async with rpc(self.address, timeout=_LIMIT, connection_args=arguments) as scheduler:
                # The limit of rpc is for the connection only; the scheduler may be stopped.
                identity = await asyncio.wait_for(scheduler.identity(), 2 * _LIMIT)
        except OSError as error:
            raise CommandError(f"no scheduler answers at {self.address}: {_reason(error)}") from error
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise CommandError(f"cannot connect to {self.address}: {_reason(error)}") from error
        if identity.get("type") != "Scheduler":
            raise CommandError(f"{self.address} is a {identity.get('type')}; hint: give the address of the scheduler")
        workers: dict[str, Any] = identity["workers"]
        return workers


def _reason(error: BaseException) -> str:
    """Return the text of the first cause of an error, in one line."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return printable(" ".join(str(error).split())) or f"it takes longer than {2 * _LIMIT} s"


_COLUMNS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("HOST", "l", lambda host: printable(host["host"])),
    ("STORE", "l", lambda host: str(host["id"])),
    ("WORKERS", "r", lambda host: str(len(host["workers"]))),
    ("OBJECTS", "r", lambda host: str(host["stats"]["objects"])),
    ("USED", "r", lambda host: bytes_text(host["stats"]["used"])),
    ("CAPACITY", "r", lambda host: bytes_text(host["stats"]["capacity"])),
    ("SPILLED", "r", lambda host: bytes_text(host["stats"]["spilled_bytes"])),
    ("PULLS", "r", lambda host: str(host["stats"]["pulls"])),
    ("PULLED", "r", lambda host: bytes_text(host["stats"]["pulled_bytes"])),
    ("FAILED", "r", lambda host: str(host["stats"]["failed_pulls"])),
]


def text(answer: dict[str, Any]) -> str:
    """Return the answer of `Watch.look` as a table."""
    hosts = answer["hosts"]
    columns = list(_COLUMNS)
    if any(host["pulled_bytes_per_second"] is not None for host in hosts):
        columns.append(("PULLED/S", "r", lambda host: bytes_text(int(host["pulled_bytes_per_second"] or 0))))
    number = sum(len(host["workers"]) for host in hosts)
    lines = [
        f"{printable(answer['address'])}  ({count(len(hosts), 'host', 'hosts')}, {count(number, 'worker', 'workers')})",
        table([head for head, _, _ in columns], [[cell(host) for _, _, cell in columns] for host in hosts],
              "".join(side for _, side, _ in columns)),
    ]  # fmt: skip
    if answer["silent"]:
        lines.append(f"no figures from {', '.join(map(printable, answer['silent']))}: see pyray_ser.distributed.enable")
    return "\n".join(lines) + "\n"
