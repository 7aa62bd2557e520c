#!/usr/bin/env python3
"""Draw the pictures of the README and the documentation: `draw.py --out docs/pictures [diagrams] [charts] [terminal]`.

It needs matplotlib, rich and pyray_ser. `make pictures` provides them.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("diagrams", "charts", "terminal")

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"only these: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "bench" / "data", metavar="DIR", help="figures for the charts"
    )
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds or KINDS:
        module = import_module(kind)
        for path in module.draw(options.data, out) if kind == "charts" else module.draw(out):
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
