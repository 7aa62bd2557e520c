"""A page for the web server of the scheduler: for each host, the objects, bytes and pulls of its store.

The page is plain HTML and needs no bokeh. A scheduler serves it as ``/pyray-ser`` if it preloads `pyray_ser.distributed`,
or if Dask's setting ``distributed.scheduler.http.routes`` lists this module.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from distributed.http.utils import RequestHandler, get_handlers

from .figures import Cluster, Report, by_host

if TYPE_CHECKING:
    import distributed

__all__ = ["install", "routes"]

_REFRESH = 2
_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em; color-scheme: light dark }
table { border-collapse: collapse }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #8886 }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
"""
_HEADS = ("Host", "Store", "Workers", "Objects", "Used", "Capacity", "Spilled", "Pulls", "Pulled", "Failed pulls")


class Page(RequestHandler):  # type: ignore[misc]
    """Answer a request for the page."""

    def get(self) -> None:
        """Write the page."""
        workers = self.server.workers.values()
        cluster = by_host(Report(worker.address, worker.last_seen, worker.metrics) for worker in workers)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(_html(cluster))


# Dask reads this list. The pattern allows any prefix, because Dask's `http_prefix` is unknown to `install`.
routes: list[tuple[str, type, dict[str, Any]]] = [(r"(?:.*/)?pyray-ser/?", Page, {})]


def install(scheduler: distributed.Scheduler) -> None:
    """
    Add the page to the web server of a scheduler.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """
    scheduler.http_application.add_handlers(".*", get_handlers(scheduler, [__name__]))


def _html(cluster: Cluster) -> str:
    from dask.utils import format_bytes

    rows = []
    for host in cluster.hosts:
        stats = host["stats"]
        rows.append(
            (
                host["host"], host["id"], len(host["workers"]), stats["objects"], format_bytes(stats["used"]),
                format_bytes(stats["capacity"]), format_bytes(stats["spilled_bytes"]), stats["pulls"],
                format_bytes(stats["pulled_bytes"]), stats["failed_pulls"],
            )
        )  # fmt: skip
    head = "".join(f'<th scope="col">{name}</th>' for name in _HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
    note = ""
    if cluster.silent:
        note = f"<p>Workers that do not use pyray_ser.distributed: {escape(', '.join(cluster.silent))}</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH}">'
        f"<title>pyray_ser: hosts</title><style>{_STYLE}</style></head>\n<body><h1>Shared values of each host</h1>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n{note}</body></html>\n"
    )
