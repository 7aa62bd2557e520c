"""What the kernel tells about processes: their command lines and how much memory they use."""

from __future__ import annotations

import shlex

__all__ = ["command_of", "memory_sizes"]

_COMMAND_MAX = 4096


def command_of(pid: int) -> str | None:
    """
    Return the command line of a process, quoted as for a shell.

    The process may have written anything there, so use `output.printable` before it reaches a terminal.

    Returns
    -------
    str or None
        None if the process has ended or may not be examined.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(_COMMAND_MAX)
    except OSError:
        return None
    words = [word.decode("utf-8", "backslashreplace") for word in data.rstrip(b"\0").split(b"\0")]
    # A process that sets its own title writes one text with spaces.
    text = words[0] if len(words) == 1 else " ".join(map(shlex.quote, words))
    return text or None


def memory_sizes(pid: int) -> dict[str, int] | None:
    """
    Return the proportional set size of a process.

    Returns
    -------
    dict or None
        ``pss``: bytes of its pages, where a page of n processes counts as 1/n. ``pss_shmem``: the part of it in shared
        memory, such as the pages of stores. None if the process has ended or may not be examined.
    """
    sizes = {"pss": 0, "pss_shmem": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name.lower() in sizes:
                    sizes[name.lower()] = int(rest.split()[0]) << 10
    except OSError:
        return None
    return sizes
