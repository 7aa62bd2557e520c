"""``pyray-ser clean``: remove the files of dead stores.

A named store is dead if no process in any pid namespace or container holds a lock on its file, and no visible process
has the file mapped. A directory of spilled objects is dead if no process holds the lock that every client of its store
holds. The command removes no other files. The kernel frees the memory of unnamed stores.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import _core
from ..store import named_stores
from .output import bytes_text, count, error, printable, write_json
from .stores import Found, find, opened

__all__ = ["add_arguments", "left_behind", "run", "spill_directories"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--spill-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="clean this directory of spilled objects, too; those of stores found and of PYRAY_SER_SPILL_DIR always are",
    )


def spill_directories(stores: list[Found], more: list[str]) -> list[str]:
    """Return the spill directories of the stores, of the environment variable, and of the arguments."""
    found = [os.path.abspath(path) for path in more]
    if os.environ.get("PYRAY_SER_SPILL_DIR"):
        found.append(os.path.abspath(os.environ["PYRAY_SER_SPILL_DIR"]))
    for store in stores:
        try:
            with opened(store) as (_, spill_dir):
                if spill_dir:
                    found.append(spill_dir)
        except (OSError, ValueError, RuntimeError, MemoryError):
            continue  # the store is damaged, of another version, or gone, which `check` reports
    return list(dict.fromkeys(found))


def left_behind(stores: list[Found]) -> list[dict[str, Any]]:
    """Return the files of dead named stores."""
    found = []
    for store in stores:
        if store.path is not None and not store.used:
            size = os.stat(store.path).st_blocks * 512
            found.append({"path": store.path, "id": store.id, "bytes": size})
    return found


def run(arguments: argparse.Namespace) -> int:
    """Remove the files, or show what would be removed."""
    stores = find()
    directories = spill_directories(stores, arguments.spill_dir)
    removed, problems = [], []
    for entry in left_behind(stores):
        folder = os.path.dirname(entry["path"])
        try:
            # Check again with the lock held, so that no other process can open the store.
            with named_stores.guard(folder):
                if arguments.dry_run:
                    removed.append(entry)
                elif named_stores.remove_dead(entry["path"]):
                    removed.append(entry)
                    named_stores.remove_directory(folder)
        except OSError as problem:
            problems.append(f"{entry['path']}: {problem}")
    spilled: list[dict[str, Any]] = []
    for path in directories:
        try:
            gone = _core.spill_clean(path, arguments.dry_run)
        except FileNotFoundError:
            continue
        except OSError as problem:
            problems.append(f"{path}: {problem}")
            continue
        if gone:
            spilled.append({"path": path, "stores": gone})
    if arguments.json:
        write_json({"dry_run": arguments.dry_run, "stores": removed, "spill_directories": spilled, "errors": problems})
        return int(bool(problems))
    verb = "would remove" if arguments.dry_run else "removed"
    for entry in removed:
        print(f"{verb} {printable(entry['path'])} ({bytes_text(entry['bytes'])})")
    for place in spilled:
        print(f"{verb} what {count(place['stores'], 'store', 'stores')} left in {printable(place['path'])}")
    if not removed and not spilled:
        print("nothing to remove")
    for line in problems:
        error(printable(line))
    return int(bool(problems))
