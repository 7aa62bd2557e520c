"""The loop over stores that several commands share: query each store, and report those that cannot be opened."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from .. import _core
from . import CommandError
from .stores import Found, opened, selected

__all__ = ["clients", "each", "each_found"]

Ask = Callable[[_core.Store, "str | None"], dict[str, Any]]
AskFound = Callable[[Found, _core.Store, "str | None"], dict[str, Any]]


def each(arguments: argparse.Namespace, ask: Ask) -> tuple[list[dict[str, Any]], int]:
    """Do the same as `each_found`, for a function that needs only the store and its spill directory."""
    return each_found(arguments, lambda found, store, spill_dir: ask(store, spill_dir))


def each_found(arguments: argparse.Namespace, ask: AskFound) -> tuple[list[dict[str, Any]], int]:
    """
    Query every selected store.

    Returns
    -------
    tuple of (list of dict, int)
        The results of `ask`, with ``id``, ``path``, ``pids``, ``used`` and, if a store could not be read, ``error``.
        The second item is the exit status.
    """
    try:
        stores = selected(arguments.store)
    except LookupError as problem:
        raise CommandError(problem.args[0]) from problem
    answers = []
    for found in stores:
        try:
            answers.append(_one(found, ask))
        except ProcessLookupError as problem:
            # If the user selected no particular stores, skip a store that has just ended.
            if arguments.store:
                raise CommandError(f"{found.label}: {problem}") from problem
    return answers, int(any("error" in answer for answer in answers))


def _one(found: Found, ask: AskFound) -> dict[str, Any]:
    answer = {"label": found.label, **found.describe()}
    try:
        with opened(found) as (store, spill_dir):
            answer.update(ask(found, store, spill_dir))
    except ProcessLookupError:
        raise
    except (OSError, ValueError, RuntimeError, MemoryError, ImportError) as problem:
        answer["error"] = f"{type(problem).__name__}: {problem}"
    return answer


def clients(store: _core.Store) -> list[int]:
    """Return the pids of a store's clients, except the pid of this tool."""
    return sorted(pid for pid in store.client_pids() if pid != os.getpid())
