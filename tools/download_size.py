#!/usr/bin/env python3
"""Print how much pip is going to download if the index has no CPU build of torch.

    python tools/download_size.py REQUIREMENT ...

The builds for GPUs require gigabytes of libraries. pip determines the packages that it would install; this downloads
only metadata. If they include a torch that is not a CPU build, the script queries and prints the sizes of all
files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen


def plan(requirements: list[str]) -> list[dict]:
    """Return the packages that pip would install, from its report."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", *requirements]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["install"]


def gpu_build(items: list[dict]) -> str | None:
    """Return the version of torch if pip would install one that is not a CPU build."""
    versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in items}
    version = versions.get("torch")
    # Some indexes mark their CPU builds in the version; others do not, but such builds need no part of CUDA.
    if version is None or "+cpu" in version or not any("nvidia" in name for name in versions):
        return None
    return version


def size_of(url: str) -> int:
    """Return the size of a file; 0 if it is on this machine already."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        if not Path(unquote(parts.path)).exists():
            raise FileNotFoundError(unquote(parts.path))
        return 0
    with urlopen(Request(url, method="HEAD"), timeout=60) as answer:
        return int(answer.headers["Content-Length"])


def main() -> int:
    items = plan(sys.argv[1:])
    version = gpu_build(items)
    if version is None:
        return 0
    sizes = sorted(((size_of(item["download_info"]["url"]), item["metadata"]["name"]) for item in items), reverse=True)
    total = sum(size for size, _ in sizes)
    largest = ", ".join(f"{name} {size / 1e6:.0f} MB" for size, name in sizes[:4])
    print(
        f"this index offers no CPU build of torch: torch {version} and what it needs are {total / 1e9:.1f} GB to "
        f"download ({largest}, ...)",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
